//! Token buckets and quotas, in whole numbers and a table of a fixed size. Time is handed in.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap, HashMap, hash_map::RandomState},
    hash::BuildHasher,
    sync::Arc,
    time::Duration,
};

use valkyrie_protocol::Time;

/// What a call costs: each microsecond adds `per_second` to a bucket.
const TOKEN: u64 = 1_000_000;
/// How many buckets are looked at for one that can go.
const LOOKS: usize = 64;

/// How often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rate {
    /// `burst` calls at once, and `per_second` after them.
    Bucket { per_second: u64, burst: u64 },
    /// So many calls in a window, which begins with its first.
    Quota { calls: u64, window_us: u64 },
}

/// A limit of a policy: each principal that it is for has a bucket of its own.
#[derive(Debug)]
pub(crate) struct Limit {
    /// The same in every version of a policy that has the limit unchanged: what was taken stays taken.
    id: u64,
    rate: Rate,
    /// What it is called in the audit.
    pub(crate) text: Arc<str>,
}

impl Limit {
    pub(crate) fn new(rate: Rate, principals: &[&str], methods: &[&str]) -> Self {
        let (principals, methods) = (principals.join(" "), methods.join(" "));
        let text = match rate {
            Rate::Bucket { per_second, burst } => {
                format!("limit of {principals} on {methods}: {per_second} per second, burst {burst}")
            }
            Rate::Quota { calls, window_us } => {
                format!("quota of {principals} on {methods}: {calls} in {} s", window_us / 1_000_000)
            }
        };
        let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
        let id = digest.as_ref().iter().take(8).fold(0, |id, byte| id << 8 | u64::from(*byte));
        Self { id, rate, text: text.into() }
    }
}

/// What one principal has left of one limit.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// Of a bucket: what is in it, in millionths of a call. Of a quota: the calls that are left.
    level: u64,
    /// Of a bucket: when that was so. Of a quota: when its window began.
    at: u64,
}

impl Bucket {
    fn full(rate: Rate, now: u64) -> Self {
        let level = match rate {
            Rate::Bucket { burst, .. } => burst * TOKEN,
            Rate::Quota { calls, .. } => calls,
        };
        Self { level, at: now }
    }

    /// Fills it up to now, and gives the microseconds until it has a call: 0 when it has.
    fn wait(&mut self, rate: Rate, now: u64) -> u64 {
        // Whoever comes with an earlier time was overtaken by another thread.
        let now = now.max(self.at);
        match rate {
            Rate::Bucket { per_second, burst } => {
                let more = (now - self.at).saturating_mul(per_second);
                *self = Self { level: self.level.saturating_add(more).min(burst * TOKEN), at: now };
                TOKEN.saturating_sub(self.level).div_ceil(per_second)
            }
            Rate::Quota { calls, window_us } => {
                if self.level == calls || now - self.at >= window_us {
                    *self = Self::full(rate, now);
                }
                if self.level > 0 { 0 } else { window_us - (now - self.at) }
            }
        }
    }

    /// Takes the call that it has.
    fn take(&mut self, rate: Rate) {
        self.level -= match rate {
            Rate::Bucket { .. } => TOKEN,
            Rate::Quota { .. } => 1,
        };
    }

    /// From when on it is as good as new.
    fn full_at(&self, rate: Rate) -> u64 {
        match rate {
            Rate::Bucket { per_second, burst } => {
                self.at.saturating_add((burst * TOKEN - self.level).div_ceil(per_second))
            }
            Rate::Quota { window_us, .. } => self.at.saturating_add(window_us),
        }
    }
}

/// Every bucket that is not full, and some that are. About 100 bytes each, 6.5 MiB for as many as there may be.
pub(crate) struct Buckets {
    /// Tells principals apart, by a hash whose key nobody outside knows: two that meet in 64 bits would share a bucket.
    hasher: RandomState,
    most: usize,
    own: HashMap<u64, Slot>,
    /// Of each bucket when it is full or, where it was used since, some time before: the next to go.
    order: BinaryHeap<Reverse<(u64, u64)>>,
    /// By limit: what all those share who came when there was no room.
    shared: HashMap<u64, Bucket>,
}

#[derive(Debug)]
struct Slot {
    limit: u64,
    bucket: Bucket,
    full_at: u64,
}

impl Buckets {
    /// As many as there may be.
    pub(crate) const MOST: usize = 65_536;

    pub(crate) fn new(most: usize) -> Self {
        Self {
            hasher: RandomState::new(),
            most,
            own: HashMap::new(),
            order: BinaryHeap::new(),
            shared: HashMap::new(),
        }
    }

    /// Takes a call from each of these limits, or from none.
    ///
    /// # Errors
    /// How long it is until all of them have one, and the limit that has it last.
    pub(crate) fn take<'a>(
        &mut self,
        principal: &str,
        limits: impl Iterator<Item = &'a Limit> + Clone,
        now: Time,
    ) -> Result<(), (Duration, &'a Limit)> {
        let now = now.as_micros();
        let mut longest: Option<(u64, &Limit)> = None;
        for limit in limits.clone() {
            let wait = self.bucket(principal, limit, now).wait(limit.rate, now);
            if wait > longest.map_or(0, |(longest, _)| longest) {
                longest = Some((wait, limit));
            }
        }
        if let Some((wait, limit)) = longest {
            return Err((Duration::from_micros(wait), limit));
        }
        for limit in limits {
            let key = self.key(principal, limit);
            match self.own.get_mut(&key) {
                Some(slot) => {
                    slot.bucket.take(limit.rate);
                    slot.full_at = slot.bucket.full_at(limit.rate);
                }
                None => self.bucket(principal, limit, now).take(limit.rate),
            }
        }
        Ok(())
    }

    /// Forgets the buckets of limits that are no more.
    pub(crate) fn keep(&mut self, limits: &[Limit]) {
        let ids: BTreeSet<u64> = limits.iter().map(|limit| limit.id).collect();
        self.own.retain(|_, slot| ids.contains(&slot.limit));
        self.shared.retain(|limit, _| ids.contains(limit));
        self.order = self.own.iter().map(|(key, slot)| Reverse((slot.full_at, *key))).collect();
    }

    fn key(&self, principal: &str, limit: &Limit) -> u64 {
        self.hasher.hash_one((principal, limit.id))
    }

    /// The principal's own bucket if it has one or there is room for it, else the shared one.
    fn bucket(&mut self, principal: &str, limit: &Limit, now: u64) -> &mut Bucket {
        let key = self.key(principal, limit);
        if !self.own.contains_key(&key) {
            if !self.room(now) {
                return self.shared.entry(limit.id).or_insert_with(|| Bucket::full(limit.rate, now));
            }
            self.order.push(Reverse((now, key)));
        }
        let bucket = Bucket::full(limit.rate, now);
        &mut self.own.entry(key).or_insert(Slot { limit: limit.id, bucket, full_at: now }).bucket
    }

    /// Makes room for one bucket: only one that is full can go, since that takes nothing from anyone and gives nothing.
    fn room(&mut self, now: u64) -> bool {
        if self.own.len() < self.most {
            return true;
        }
        for _ in 0..LOOKS {
            let Some(Reverse((said, key))) = self.order.peek().copied() else { return false };
            if said > now {
                return false;
            }
            self.order.pop();
            match self.own.get(&key) {
                Some(slot) if slot.full_at > said => self.order.push(Reverse((slot.full_at, key))),
                _ => {
                    self.own.remove(&key);
                    return true;
                }
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A seeded generator (SplitMix64, Steele and others 2014).
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut word = self.0;
            word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (word ^ (word >> 31)) % bound
        }
    }

    /// Prints its seed; `VALKYRIE_SEED` runs one again.
    fn seed() -> u64 {
        let seed = std::env::var("VALKYRIE_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| RandomState::new().hash_one(()));
        println!("VALKYRIE_SEED={seed}");
        seed
    }

    fn limit(rate: Rate) -> Limit {
        Limit::new(rate, &["*"], &["/*"])
    }

    fn take(buckets: &mut Buckets, who: &str, limits: &[Limit], now: u64) -> Result<(), u64> {
        let taken = buckets.take(who, limits.iter(), Time::from_micros(now));
        taken.map_err(|(wait, _)| wait.as_micros() as u64)
    }

    /// The simplest thing that is right: every call that was let through, and when. A bucket lets a call through when, for
    /// each of them and it, no more came than the burst and what the time since adds.
    fn model(rate: Rate, let_through: &[u64], now: u64) -> bool {
        match rate {
            Rate::Bucket { per_second, burst } => (0..=let_through.len()).all(|from| {
                let count = (let_through.len() - from + 1) as u128;
                let since = let_through.get(from).copied().unwrap_or(now);
                count * 1_000_000
                    <= u128::from(burst) * 1_000_000 + u128::from(now - since) * u128::from(per_second)
            }),
            Rate::Quota { calls, window_us } => {
                let (mut start, mut used) = (None, 0);
                for at in let_through {
                    if start.is_none_or(|start| at - start >= window_us) {
                        (start, used) = (Some(*at), 0);
                    }
                    used += 1;
                }
                start.is_none_or(|start| now - start >= window_us) || used < calls
            }
        }
    }

    #[test]
    fn buckets_do_what_the_model_says_and_wait_no_longer_than_needed() {
        let mut dice = Dice(seed());
        for _ in 0..300 {
            let rate = if dice.below(2) == 0 {
                Rate::Bucket { per_second: 1 + dice.below(5_000), burst: 1 + dice.below(20) }
            } else {
                Rate::Quota { calls: 1 + dice.below(10), window_us: 1_000_000 * (1 + dice.below(3)) }
            };
            let limits = [limit(rate)];
            let (mut now, mut through) = (dice.below(1 << 40), Vec::new());
            let mut buckets = Buckets::new(4);
            for _ in 0..100 {
                now += match dice.below(4) {
                    0 => 0,
                    1 => dice.below(500),
                    2 => dice.below(100_000),
                    _ => dice.below(2_000_000),
                };
                match take(&mut buckets, "a", &limits, now) {
                    Ok(()) => {
                        assert!(model(rate, &through, now), "{rate:?} let one too many through at {now}");
                        through.push(now);
                    }
                    Err(wait) => {
                        assert!(!model(rate, &through, now), "{rate:?} held one back at {now}");
                        assert!(!model(rate, &through, now + wait - 1), "{rate:?}: {wait} is too long");
                        assert!(model(rate, &through, now + wait), "{rate:?}: {wait} is too short");
                    }
                }
            }
        }
    }

    #[test]
    fn what_one_limit_refuses_costs_nothing_of_the_others() {
        let limits = [
            Limit::new(Rate::Bucket { per_second: 1, burst: 1 }, &["*"], &["/a"]),
            Limit::new(Rate::Quota { calls: 2, window_us: 60_000_000 }, &["*"], &["/*"]),
        ];
        let mut buckets = Buckets::new(8);
        assert_eq!(take(&mut buckets, "a", &limits, 0), Ok(()));
        for _ in 0..5 {
            assert_eq!(take(&mut buckets, "a", &limits, 0), Err(1_000_000));
        }
        assert_eq!(take(&mut buckets, "a", &limits, 1_000_000), Ok(()));
        // Both are used up: the longer wait is told.
        assert_eq!(take(&mut buckets, "a", &limits, 1_000_000), Err(59_000_000));
        assert_eq!(take(&mut buckets, "b", &limits, 1_000_000), Ok(()));
    }

    #[test]
    fn strangers_beyond_the_table_share_a_bucket_and_the_known_keep_theirs() {
        let limits = [limit(Rate::Bucket { per_second: 1, burst: 2 })];
        let mut buckets = Buckets::new(1_000);
        for known in 0..1_000 {
            assert_eq!(take(&mut buckets, &known.to_string(), &limits, 0), Ok(()));
        }
        let strangers =
            (0..100_000).filter(|n| take(&mut buckets, &format!("s{n}"), &limits, 0).is_ok()).count();
        assert_eq!((strangers, buckets.own.len(), buckets.order.len()), (2, 1_000, 1_000));
        // Whoever is known still has what it had: one of its two.
        assert_eq!(take(&mut buckets, "7", &limits, 0), Ok(()));
        assert_eq!(take(&mut buckets, "7", &limits, 0), Err(1_000_000));
        // A second later all but that one are full again, so that strangers take their places, the idlest first.
        let placed = (0..2_000).filter(|n| take(&mut buckets, &format!("t{n}"), &limits, 1_000_000).is_ok());
        assert_eq!(placed.count(), 999 + 1);
        assert_eq!((buckets.own.len(), buckets.order.len()), (1_000, 1_000));
        assert_eq!(take(&mut buckets, "7", &limits, 1_000_000), Ok(()));
        assert_eq!(take(&mut buckets, "7", &limits, 1_000_000), Err(1_000_000));
    }

    #[test]
    fn another_version_keeps_what_was_taken_of_a_limit_that_stays() {
        let stays = || limit(Rate::Quota { calls: 1, window_us: 1_000_000 });
        let goes = limit(Rate::Quota { calls: 9, window_us: 1_000_000 });
        let mut buckets = Buckets::new(8);
        assert_eq!(take(&mut buckets, "a", &[stays(), goes], 0), Ok(()));
        buckets.keep(&[stays()]);
        assert_eq!((buckets.own.len(), buckets.order.len()), (1, 1));
        assert_eq!(take(&mut buckets, "a", &[stays()], 400_000), Err(600_000));
        assert_eq!(take(&mut buckets, "a", &[stays()], 1_000_000), Ok(()));
    }

    #[test]
    fn the_ends_of_time_and_of_rates_do_no_harm() {
        let most = Rate::Bucket { per_second: 1_000_000_000, burst: 1_000_000_000 };
        let long = Rate::Quota { calls: 1_000_000_000_000, window_us: 31_622_400_000_000 };
        let limits = [limit(most), limit(long)];
        let mut buckets = Buckets::new(8);
        for now in [0, u64::MAX, 0, 1, u64::MAX] {
            assert_eq!(take(&mut buckets, "a", &limits, now), Ok(()));
        }
    }
}
