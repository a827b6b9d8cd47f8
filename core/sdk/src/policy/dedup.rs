//! What a server remembers of idempotency keys: which calls run, what the others came to, and since when nothing was forgotten.
//!
//! A key is forgotten when it is old, or when there is no room, the one that ended first before others. That moves a line in time: of
//! a key that was first used behind it, the server knows that it does not know it, and whatever is older may have been run.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use valkyrie_protocol::Time;

/// What a server keeps of calls with idempotency keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DedupPolicy {
    /// Keys at once, of all principals together: about 200 bytes each beside the answer. Default 65,536.
    pub capacity: usize,
    /// Bytes of answers at once. Default 64 MiB.
    pub bytes: usize,
    /// A longer answer is not kept: who asks for it again is told KEY_FORGOTTEN. Default 64 KiB.
    pub max_answer_bytes: usize,
    /// How long an answer is kept. Default 10 min.
    pub ttl: Duration,
}

impl Default for DedupPolicy {
    fn default() -> Self {
        Self { capacity: 65_536, bytes: 64 << 20, max_answer_bytes: 64 << 10, ttl: Duration::from_secs(600) }
    }
}

/// How much later than its age says a call may have been sent first: it was on its way, and waited.
const SPARE: Duration = Duration::from_secs(1);

/// The keys of one server. `W` is what lets others wait for a call that runs, `A` an answer.
#[derive(Debug)]
pub struct Dedup<W, A> {
    policy: DedupPolicy,
    keys: HashMap<u128, Entry<W, A>>,
    /// Those that have ended, in that order.
    ended: VecDeque<(Time, u128)>,
    bytes: usize,
    /// Calls that began until then may have been forgotten.
    forgotten: Time,
}

#[derive(Debug)]
struct Entry<W, A> {
    request: u64,
    began: Time,
    state: State<W, A>,
}

#[derive(Debug)]
enum State<W, A> {
    Running(W),
    Ended(Option<(A, usize)>),
}

/// What is known of a key.
#[derive(Debug, PartialEq, Eq)]
pub enum Known<W, A> {
    /// Nothing: its call is to run, and [`Dedup::ended`] is to be told.
    New,
    /// Its call runs.
    Running(W),
    /// Its call has ended so.
    Ended(A),
    /// It may have been run, and the answer is not there.
    Forgotten,
    /// It was used for another request.
    Other,
    /// As many calls run as keys can be kept.
    Full,
}

impl<W: Clone, A: Clone> Dedup<W, A> {
    /// Knows nothing of what was before `now`.
    pub fn new(policy: DedupPolicy, now: Time) -> Self {
        Self { policy, keys: HashMap::new(), ended: VecDeque::new(), bytes: 0, forgotten: now }
    }

    /// How many keys are known, and the bytes of the answers that are kept.
    pub fn kept(&self) -> (usize, usize) {
        (self.keys.len(), self.bytes)
    }

    /// A request with a key comes in; `age` when it is not the first time that it is sent. `watch` is what others wait with
    /// when it runs.
    pub fn begin(
        &mut self,
        key: u128,
        request: u64,
        age: Option<Duration>,
        now: Time,
        watch: W,
    ) -> Known<W, A> {
        while let Some((at, _)) = self.ended.front()
            && now.since(*at) >= self.policy.ttl
        {
            self.forget_oldest();
        }
        if let Some(entry) = self.keys.get(&key) {
            return match &entry.state {
                _ if entry.request != request => Known::Other,
                State::Running(watch) => Known::Running(watch.clone()),
                State::Ended(Some((answer, _))) => Known::Ended(answer.clone()),
                State::Ended(None) => Known::Forgotten,
            };
        }
        if age.is_some_and(|age| now.since(self.forgotten) <= age.saturating_add(SPARE)) {
            return Known::Forgotten;
        }
        if self.keys.len() >= self.policy.capacity && !self.forget_oldest() {
            return Known::Full;
        }
        self.keys.insert(key, Entry { request, began: now, state: State::Running(watch) });
        Known::New
    }

    /// The call of a key that was new has ended: with an answer of so many bytes, or one that is not to be had again.
    pub fn ended(&mut self, key: u128, answer: Option<(A, usize)>, now: Time) {
        let answer = answer.filter(|(_, len)| *len <= self.policy.max_answer_bytes.min(self.policy.bytes));
        let len = answer.as_ref().map_or(0, |(_, len)| *len);
        while self.bytes > self.policy.bytes - len && self.forget_oldest() {}
        if let Some(entry) = self.keys.get_mut(&key) {
            entry.state = State::Ended(answer);
            self.bytes += len;
            self.ended.push_back((now, key));
        }
    }

    /// The call of a key that was new asks to be sent again: as if it had not come.
    pub fn undone(&mut self, key: u128) {
        self.keys.remove(&key);
    }

    /// Whether there was one.
    fn forget_oldest(&mut self) -> bool {
        let Some((_, key)) = self.ended.pop_front() else { return false };
        if let Some(entry) = self.keys.remove(&key) {
            self.forgotten = self.forgotten.max(entry.began);
            if let State::Ended(Some((_, len))) = entry.state {
                self.bytes -= len;
            }
        }
        true
    }
}

impl DedupPolicy {
    /// What is wrong with it, if anything.
    #[cfg(feature = "native")]
    pub(crate) fn fault(&self) -> Option<String> {
        let none = self.capacity == 0 || self.ttl.is_zero();
        none.then(|| {
            format!("capacity and ttl are to be more than 0, and are {} and {:?}", self.capacity, self.ttl)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(second: u64) -> Time {
        Time::from_micros(second * 1_000_000)
    }

    fn dedup(change: fn(&mut DedupPolicy)) -> Dedup<&'static str, &'static str> {
        let mut policy = DedupPolicy::default();
        change(&mut policy);
        Dedup::new(policy, second(0))
    }

    #[test]
    fn runs_once_and_answers_as_often_as_asked() {
        let mut dedup = dedup(|_| {});
        assert_eq!(dedup.begin(1, 7, None, second(1), "one"), Known::New);
        assert_eq!(dedup.begin(1, 7, None, second(2), "two"), Known::Running("one"));
        assert_eq!(dedup.begin(1, 8, None, second(2), "two"), Known::Other);
        dedup.ended(1, Some(("answer", 6)), second(3));
        assert_eq!(
            dedup.begin(1, 7, Some(Duration::from_secs(900)), second(4), "three"),
            Known::Ended("answer")
        );
        assert_eq!(dedup.begin(1, 8, None, second(4), "three"), Known::Other);
        assert_eq!(dedup.begin(2, 7, None, second(4), "three"), Known::New);
    }

    #[test]
    fn what_may_have_been_forgotten_is_not_run_again_and_what_cannot_have_been_is() {
        let mut dedup = dedup(|policy| policy.ttl = Duration::from_secs(100));
        let age = |seconds| Some(Duration::from_secs(seconds));
        // It may have been run by whoever was here before.
        assert_eq!(dedup.begin(1, 7, age(10), second(10), ""), Known::Forgotten);
        assert_eq!(dedup.begin(1, 7, age(9), second(10), ""), Known::Forgotten, "a second to spare");
        assert_eq!(dedup.begin(1, 7, age(8), second(10), ""), Known::New);
        dedup.ended(1, Some(("answer", 6)), second(20));
        assert_eq!(dedup.begin(1, 7, age(117), second(119), ""), Known::Ended("answer"));
        // Old, it is gone; it began at 10.
        assert_eq!(dedup.begin(1, 7, age(110), second(120), ""), Known::Forgotten);
        assert_eq!(dedup.begin(2, 7, age(108), second(120), ""), Known::New);
    }

    #[test]
    fn is_bounded_in_keys_and_bytes() {
        let mut dedup =
            dedup(|policy| (policy.capacity, policy.bytes, policy.max_answer_bytes) = (100, 1_000, 90));
        for key in 0..100 {
            assert_eq!(dedup.begin(key, 0, None, second(1), ""), Known::New);
        }
        assert_eq!(dedup.begin(100, 0, None, second(1), ""), Known::Full, "none has ended");
        for key in 0..100 {
            dedup.ended(key, Some(("answer", 90)), second(2));
            assert!(dedup.bytes <= 1_000 && dedup.ended.len() <= 11);
        }
        assert_eq!(dedup.begin(99, 0, None, second(3), ""), Known::Ended("answer"));
        assert_eq!(dedup.begin(0, 0, Some(Duration::from_secs(1)), second(3), ""), Known::Forgotten);
        // Strangers' keys take the place of others', and never more.
        for key in 1_000..100_000 {
            assert_eq!(dedup.begin(key, 0, None, second(3), ""), Known::New);
            dedup.ended(key, Some(("answer", (key % 200) as usize)), second(3));
            assert!(dedup.bytes <= 1_000 && dedup.keys.len() <= 100 && dedup.ended.len() <= 100);
        }
    }

    #[test]
    fn an_answer_that_is_not_kept_is_not_made_again() {
        let mut dedup = dedup(|_| {});
        dedup.begin(1, 7, None, second(1), "");
        dedup.ended(1, Some(("long", 1 << 20)), second(2));
        assert_eq!(dedup.begin(1, 7, None, second(3), ""), Known::Forgotten);
        dedup.begin(2, 7, None, second(1), "");
        dedup.undone(2);
        assert_eq!(dedup.begin(2, 7, Some(Duration::from_millis(1)), second(3), ""), Known::New);
    }

    #[test]
    fn what_ended_without_an_answer_is_forgotten_in_its_turn() {
        let mut dedup = dedup(|policy| policy.ttl = Duration::from_secs(10));
        assert_eq!(dedup.begin(1, 7, None, second(1), ""), Known::New);
        dedup.ended(1, None, second(1));
        assert_eq!(
            dedup.begin(1, 7, None, second(2), ""),
            Known::Forgotten,
            "it was run, and its answer is gone"
        );
        assert_eq!(dedup.begin(1, 7, None, second(11), ""), Known::New);
    }
}
