//! How long to wait before the next attempt of a call, and before the next connection to a backend.

use std::time::Duration;

use valkyrie_protocol::Time;

use super::{Random, micros};

/// The wait before a call's retries: full jitter under a ceiling that grows (gRFC A6, "Exponential Backoff"; AWS, "Exponential
/// backoff and jitter").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The ceiling before the first retry. Default 25 ms (gRFC A44).
    pub base: Duration,
    /// By how many thousandths the ceiling grows with each retry. Default 2,000: it doubles.
    pub multiplier_thousandths: u32,
    /// The highest ceiling. Default 1 s.
    pub cap: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { base: Duration::from_millis(25), multiplier_thousandths: 2_000, cap: Duration::from_secs(1) }
    }
}

impl Backoff {
    /// The most that is waited before the retry that `earlier` others came before: base × multiplier^earlier, at most the cap.
    /// Whole microseconds, rounded down at each step.
    pub fn ceiling(&self, earlier: u32) -> Duration {
        let cap = micros(self.cap);
        let mut ceiling = micros(self.base).min(cap);
        for _ in 0..earlier {
            let next = grown(ceiling, self.multiplier_thousandths, cap);
            if next == ceiling {
                break;
            }
            ceiling = next;
        }
        Duration::from_micros(ceiling)
    }

    /// The wait: whole microseconds from 0 to the ceiling, both included. One draw.
    pub fn wait(&self, earlier: u32, random: &mut Random) -> Duration {
        Duration::from_micros(random.below(micros(self.ceiling(earlier)).saturating_add(1)))
    }
}

fn grown(us: u64, thousandths: u32, cap: u64) -> u64 {
    us.checked_mul(u64::from(thousandths)).map_or(cap, |grown| (grown / 1_000).min(cap))
}

/// How often a backend is dialled (gRPC's connection backoff, with a lower cap).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReconnectPolicy {
    /// The wait after the first failure. Default 1 s.
    pub base: Duration,
    /// By how many thousandths it grows with each further one. Default 1,600.
    pub multiplier_thousandths: u32,
    /// How much of the wait is random, up or down, in percent. Default 20.
    pub jitter_percent: u32,
    /// The longest wait, its random part included. Default 30 s.
    pub cap: Duration,
}

impl Default for ReconnectPolicy {
    fn default() -> Self {
        Self {
            base: Duration::from_secs(1),
            multiplier_thousandths: 1_600,
            jitter_percent: 20,
            cap: Duration::from_secs(30),
        }
    }
}

/// When one backend may be dialled again. Waits count from the beginning of the last dial, as gRPC's do, so a dial that took long
/// is followed sooner.
#[derive(Clone, Debug)]
pub struct Reconnect {
    policy: ReconnectPolicy,
    failures: u32,
    dialled: Time,
}

impl Reconnect {
    /// A backend that was never dialled.
    pub fn new(policy: ReconnectPolicy) -> Self {
        Self { policy, failures: 0, dialled: Time::default() }
    }

    /// A dial begins.
    pub fn dialling(&mut self, now: Time) {
        self.dialled = now;
    }

    /// The dial failed, or nothing was heard on the connection: when to dial next. One draw.
    pub fn failed(&mut self, now: Time, random: &mut Random) -> Time {
        let wait = self.wait(random);
        self.failures = self.failures.saturating_add(1);
        self.dialled.after(wait).max(now)
    }

    /// The policy is another one now, from the next failure on.
    pub fn set_policy(&mut self, policy: ReconnectPolicy) {
        self.policy = policy;
    }

    /// Forgets the failures: the backend was heard, the network came back, or the backend's address was published anew.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    fn wait(&self, random: &mut Random) -> Duration {
        let ReconnectPolicy { base, multiplier_thousandths, jitter_percent, cap, .. } = self.policy;
        let jitter = u64::from(jitter_percent.min(100));
        // Jitter never leads past the cap: "settled within the cap" can be promised, and dials at the cap stay apart.
        let cap = micros(cap).saturating_mul(100) / (100 + jitter);
        let middle = Backoff { base, multiplier_thousandths, cap: Duration::from_micros(cap) };
        let middle = micros(middle.ceiling(self.failures));
        let spread = middle.saturating_mul(jitter) / 100;
        Duration::from_micros(middle - spread + random.below(spread.saturating_mul(2).saturating_add(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Time {
        Time::from_micros(ms * 1_000)
    }

    #[test]
    fn ceilings_double_up_to_the_cap() {
        let ceilings: Vec<_> =
            (0..8).map(|earlier| Backoff::default().ceiling(earlier).as_millis()).collect();
        assert_eq!(ceilings, [25, 50, 100, 200, 400, 800, 1_000, 1_000]);
        assert_eq!(Backoff::default().ceiling(u32::MAX), Duration::from_secs(1));
        let endless = Backoff { base: Duration::MAX, multiplier_thousandths: u32::MAX, cap: Duration::MAX };
        assert_eq!(micros(endless.ceiling(9)), u64::MAX);
        endless.wait(9, &mut Random::new(1));
    }

    #[test]
    fn full_jitter_fills_the_room_under_the_ceiling() {
        let mut random = Random::new(3);
        let waits: Vec<_> = (0..10_000).map(|_| Backoff::default().wait(1, &mut random)).collect();
        assert!(waits.iter().all(|wait| *wait <= Duration::from_millis(50)));
        for part in 0..10 {
            let inside = Duration::from_millis(part * 5)..Duration::from_millis((part + 1) * 5);
            let count = waits.iter().filter(|wait| inside.contains(*wait)).count();
            assert!((850..=1_150).contains(&count), "{count} in {inside:?}");
        }
    }

    #[test]
    fn dials_grow_apart_and_stay_within_jitter_and_cap() {
        let mut random = Random::new(5);
        let mut reconnect = Reconnect::new(ReconnectPolicy::default());
        let mut now = at(0);
        for middle_ms in [1_000, 1_600, 2_560, 4_096, 6_553, 10_485, 16_777, 25_000, 25_000, 25_000] {
            reconnect.dialling(now);
            let next = reconnect.failed(now, &mut random);
            let wait = next.since(now).as_millis();
            assert!((middle_ms * 79 / 100..=middle_ms * 121 / 100).contains(&wait), "{wait} for {middle_ms}");
            assert!(wait <= 30_000);
            now = next;
        }
    }

    #[test]
    fn a_backend_that_was_heard_begins_anew() {
        let mut random = Random::new(5);
        let mut reconnect = Reconnect::new(ReconnectPolicy::default());
        for _ in 0..5 {
            reconnect.failed(at(0), &mut random);
        }
        reconnect.reset();
        let wait = reconnect.failed(at(0), &mut random).since(at(0));
        assert!(wait <= Duration::from_millis(1_200), "{wait:?}");
    }

    #[test]
    fn a_dial_that_took_longer_than_the_wait_is_followed_at_once() {
        let mut reconnect = Reconnect::new(ReconnectPolicy::default());
        reconnect.dialling(at(0));
        assert_eq!(reconnect.failed(at(5_000), &mut Random::new(1)), at(5_000));
    }
}
