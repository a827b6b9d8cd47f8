//! Chance that is the same for ever: xoshiro256** seeded by splitmix64, by Blackman and Vigna (public domain), written
//! here so that no update of a library can change what a stored seed does.

/// A stream of numbers that depends on its seed alone.
#[derive(Clone, Debug)]
pub(crate) struct Random {
    state: [u64; 4],
}

/// One step of splitmix64: also a good way to make one number of another.
pub(crate) fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        let mut at = seed;
        let state = [(); 4].map(|()| {
            let number = mix(at);
            at = at.wrapping_add(0x9E37_79B9_7F4A_7C15);
            number
        });
        Self { state }
    }

    pub(crate) fn next(&mut self) -> u64 {
        let [a, b, c, d] = &mut self.state;
        let number = b.wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let shifted = *b << 17;
        *c ^= *a;
        *d ^= *b;
        *b ^= *c;
        *a ^= *d;
        *c ^= shifted;
        *d = d.rotate_left(45);
        number
    }

    /// A number from `least` to `most`, both included. The bias of so short a way is below 2^-32.
    pub(crate) fn between(&mut self, least: u64, most: u64) -> u64 {
        debug_assert!(least <= most && most - least < 1 << 32);
        least + (((self.next() >> 32) * (most - least + 1)) >> 32)
    }

    /// An index below `count`.
    pub(crate) fn below(&mut self, count: usize) -> usize {
        self.between(0, count as u64 - 1) as usize
    }

    pub(crate) fn one_in(&mut self, count: u64) -> bool {
        self.between(1, count) == 1
    }

    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// A waiting time of that mean, as between independent arrivals, in whole steps: no floating point, whose last bits
    /// might differ between machines.
    pub(crate) fn wait(&mut self, mean: u64) -> u64 {
        // The sum of geometric halves: -log2 of a uniform number, with 8 bits behind the point, times ln 2.
        let number = self.next() | 1;
        let whole = u64::from(number.leading_zeros());
        let part = (number << whole) >> 55 & 0xFF;
        // log2 is close to linear between two powers of two.
        let halves = (whole << 8) + (255 - part);
        (mean * halves * 177) >> 16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first numbers of the published algorithms: a change of them would make every stored seed another one.
    #[test]
    fn numbers_are_the_published_ones() {
        assert_eq!([mix(0), mix(0x9E37_79B9_7F4A_7C15)], [0xE220_A839_7B1D_CDAF, 0x6E78_9E6A_A1B9_65F4]);
        let mut random = Random { state: [1, 2, 3, 4] };
        assert_eq!([(); 4].map(|()| random.next()), [11520, 0, 1_509_978_240, 1_215_971_899_390_074_240]);
    }

    #[test]
    fn waits_have_their_mean() {
        let mut random = Random::new(1);
        let mean: u64 = (0..100_000).map(|_| random.wait(1_000)).sum::<u64>() / 100_000;
        assert!((950..1050).contains(&mean), "{mean}");
    }
}
