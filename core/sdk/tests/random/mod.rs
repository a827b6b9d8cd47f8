//! Chance that can be had again.

use std::time::{SystemTime, UNIX_EPOCH};

/// A generator of numbers from a seed: xorshift64*.
pub(crate) struct Random(u64);

impl Random {
    /// From `VALKYRIE_SEED`, or the clock; the seed is printed.
    pub(crate) fn new() -> Self {
        let given = std::env::var("VALKYRIE_SEED").ok().and_then(|seed| seed.parse().ok());
        let clock = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64 | 1;
        let seed = given.unwrap_or_else(clock);
        println!("VALKYRIE_SEED={seed}");
        Self(seed)
    }

    /// Below `limit`.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit
    }
}
