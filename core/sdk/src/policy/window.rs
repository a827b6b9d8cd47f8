//! Counters over a sliding window of time, in buckets: what falls out of the window is forgotten a bucket at a time.

use std::time::Duration;

use valkyrie_protocol::Time;

use super::micros;

/// `K` counters over `N` buckets, so over the last N - 1 to N bucket lengths. Nothing is allocated, and while time stays in a
/// bucket moving on is one comparison.
#[derive(Clone, Debug)]
pub(super) struct Window<const N: usize, const K: usize> {
    bucket_us: u64,
    /// The end of the bucket that is counted into, exclusive.
    ends_us: u64,
    current: usize,
    buckets: [[u32; K]; N],
    totals: [u64; K],
}

impl<const N: usize, const K: usize> Window<N, K> {
    /// A window that long.
    pub(super) fn new(length: Duration) -> Self {
        let bucket_us = (micros(length) / N as u64).max(1);
        Self { bucket_us, ends_us: 0, current: 0, buckets: [[0; K]; N], totals: [0; K] }
    }

    /// Forgets what is too old at `now`. A `now` before an earlier one changes nothing.
    #[inline]
    pub(super) fn advance(&mut self, now: Time) {
        if now.as_micros() >= self.ends_us {
            self.turn(now.as_micros());
        }
    }

    #[cold]
    fn turn(&mut self, now_us: u64) {
        let passed = (now_us - self.ends_us) / self.bucket_us + 1;
        if passed >= N as u64 {
            self.clear();
        } else {
            for _ in 0..passed {
                self.current = (self.current + 1) % N;
                let old = std::mem::replace(&mut self.buckets[self.current], [0; K]);
                for (total, old) in self.totals.iter_mut().zip(old) {
                    *total -= u64::from(old);
                }
            }
        }
        // Buckets begin at whole multiples of their length, whenever the first call came.
        self.ends_us = (now_us / self.bucket_us).saturating_add(1).saturating_mul(self.bucket_us);
    }

    /// Counts one more of the `counter`th, in the bucket that the last `advance` came to.
    #[inline]
    pub(super) fn add(&mut self, counter: usize) {
        // A bucket that is full stays full: u32::MAX calls in a bucket are not to be had.
        if let Some(more) = self.buckets[self.current][counter].checked_add(1) {
            self.buckets[self.current][counter] = more;
            self.totals[counter] += 1;
        }
    }

    /// All that the window holds of the `counter`th.
    #[inline]
    pub(super) fn total(&self, counter: usize) -> u64 {
        self.totals[counter]
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.buckets = [[0; K]; N];
        self.totals = [0; K];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Random;

    #[test]
    fn counts_what_a_list_of_all_events_counts() {
        let seed = 11;
        let mut random = Random::new(seed);
        let mut window: Window<10, 1> = Window::new(Duration::from_secs(10));
        let (mut now, mut events) = (0_u64, Vec::new());
        for _ in 0..20_000 {
            now += match random.below(50) {
                0 => random.below(25_000_000),
                1 => 1_000_000,
                _ => random.below(200_000),
            };
            window.advance(Time::from_micros(now));
            window.add(0);
            events.push(now);
            let oldest = (now / 1_000_000).saturating_sub(9) * 1_000_000;
            let expected = events.iter().rev().take_while(|event| **event >= oldest).count() as u64;
            assert_eq!(window.total(0), expected, "at {now}, seed {seed}");
        }
    }

    #[test]
    fn time_that_goes_back_or_to_its_end_is_no_harm() {
        let mut window: Window<10, 1> = Window::new(Duration::from_secs(10));
        for now in [5_000_000, 1, 0, u64::MAX, u64::MAX - 1, 0, u64::MAX] {
            window.advance(Time::from_micros(now));
            window.add(0);
            assert!(window.total(0) >= 1);
        }
    }
}
