//! The random source of the policies: SplitMix64, seeded. The algorithm and the order of the draws are part of the
//! specification (docs/policies.md), since the traces of all languages must be equal.

/// A seeded source of random numbers: SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators",
/// 2014). Not for secrets. One seed gives one sequence, on every machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Random(u64);

impl Random {
    /// The sequence of that seed. Every seed is as good as any other.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub const fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// A number from 0 to `bound` - 1: the upper 64 bits of the product of one draw and `bound`. 0 when `bound` is 0. Always
    /// one draw, so that the order of draws never depends on what was drawn; what that makes uneven is below 2⁻⁶⁴ × `bound`.
    pub const fn below(&mut self, bound: u64) -> u64 {
        ((self.draw() as u128 * bound as u128) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn begins_as_the_published_sequence_does() {
        // The first numbers of seed 1234567 as they are published with the algorithm.
        let mut random = Random::new(1_234_567);
        let drawn: [u64; 3] = std::array::from_fn(|_| random.draw());
        assert_eq!(drawn, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn stays_below_its_bound_and_draws_once() {
        for bound in [0, 1, 2, 3, 1_000_003, u64::MAX] {
            let (mut random, mut bare) = (Random::new(bound), Random::new(bound));
            for _ in 0..1_000 {
                let number = random.below(bound);
                assert!(number < bound.max(1), "{number} of {bound}");
                bare.draw();
                assert_eq!(random, bare);
            }
        }
    }

    #[test]
    fn is_even() {
        let mut random = Random::new(7);
        let mut counts = [0_u32; 10];
        (0..100_000).for_each(|_| counts[random.below(10) as usize] += 1);
        assert!(counts.iter().all(|count| (9_600..=10_400).contains(count)), "{counts:?}");
    }
}
