//! How many handlers a server runs at once, learnt from how long they take: Gradient2, as Netflix's concurrency-limits describes it.
//!
//! While handlers take no longer than they used to, the limit grows by a headroom; once they take longer, something behind them has
//! a queue, and the limit falls by the gradient: limit × max(½, min(1, tolerance × long / short)) + headroom, smoothed. Beside the
//! formula, which forgets under a long overload what was normal before it: while handlers take longer than is tolerated, the long
//! average follows ten times as slowly, unless the limit has come to rest at its lowest: then it is no queue that takes time. A server
//! that is asked for too much without a break for ten minutes comes to four times the limit so, and one whose work takes ten
//! times as long for good to its old limit after some minutes.

use std::time::Duration;

use valkyrie_protocol::{Priority, Time};

use super::micros;

/// How a server limits its running handlers, and what becomes of calls beyond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimiterPolicy {
    /// The limit to begin with. Default 20 (Netflix).
    pub initial: u32,
    /// The least that it falls to. Default 4.
    pub min: u32,
    /// The most that it grows to. Default 1,000.
    pub max: u32,
    /// How much of each newly found limit takes effect, in percent. Default 20 (Netflix).
    pub smoothing_percent: u32,
    /// How long handlers may take before the limit falls, in percent of what they took in the long run. Default 150 (Netflix).
    pub tolerance_percent: u32,
    /// How many windows of 100 ms the long run has. Default 600 (Netflix).
    pub long_windows: u32,
    /// The share of the limit that normal and bulk calls may take together, in percent: the rest is for critical ones. Default 80.
    pub normal_percent: u32,
    /// The share that bulk calls may take, in percent. Default 50.
    pub bulk_percent: u32,
    /// Calls of one class that may wait; further ones are refused as they come. Each takes about 300 bytes beside its message, which is
    /// counted by its connection. Default 1,024.
    pub max_waiting: usize,
    /// The longest that a call waits, or half of the time that it has left. Default 100 ms.
    pub wait: Duration,
    /// The same of a class that has had calls waiting for so long without a break as `wait` says. The newest goes first then, since
    /// it still has somebody who waits for it, until nothing was refused for a second. Default 3 ms: the refusal is to be with its caller
    /// in 5 (CoDel; Facebook, "Fail at Scale").
    pub overload_wait: Duration,
    /// After how long a refused call may come back, ± 50 %. Default 100 ms.
    pub pushback: Duration,
}

impl Default for LimiterPolicy {
    fn default() -> Self {
        Self {
            initial: 20,
            min: 4,
            max: 1_000,
            smoothing_percent: 20,
            tolerance_percent: 150,
            long_windows: 600,
            normal_percent: 80,
            bulk_percent: 50,
            max_waiting: 1_024,
            wait: Duration::from_millis(100),
            overload_wait: Duration::from_millis(3),
            pushback: Duration::from_millis(100),
        }
    }
}

impl LimiterPolicy {
    /// What is wrong with it, if anything.
    #[cfg(feature = "native")]
    pub(crate) fn fault(&self) -> Option<String> {
        let Self { initial, min, max, .. } = *self;
        if min == 0 || min > initial || initial > max {
            return Some(format!(
                "1 <= min <= initial <= max is needed, and min is {min}, initial {initial}, max {max}"
            ));
        }
        let percents = [
            ("smoothing_percent", self.smoothing_percent, 1, 100),
            ("tolerance_percent", self.tolerance_percent, 100, 1_000),
            ("normal_percent", self.normal_percent, 1, 100),
            ("bulk_percent", self.bulk_percent, 1, self.normal_percent),
        ];
        for (name, percent, least, most) in percents {
            if !(least..=most).contains(&percent) {
                return Some(format!("{name} is {percent}; it is to be from {least} to {most}"));
            }
        }
        if self.long_windows == 0
            || self.max_waiting == 0
            || self.wait.is_zero()
            || self.overload_wait.is_zero()
        {
            return Some("long_windows, max_waiting, wait and overload_wait are to be more than 0".into());
        }
        None
    }

    /// The part of a limit that calls of a class, and less urgent ones, may take.
    pub(super) fn share(&self, class: Priority, limit: u32) -> u32 {
        let percent = match class {
            Priority::Critical => 100,
            Priority::Normal => self.normal_percent,
            Priority::Bulk => self.bulk_percent,
        };
        (u64::from(limit) * u64::from(percent)).div_ceil(100) as u32
    }
}

/// What a window holds at least.
const WINDOW: Duration = Duration::from_millis(100);
const WINDOW_SAMPLES: u32 = 10;
/// What takes longer than so many times the long run counts as that: one stream that lives for an hour is no sign of load.
const OUTLIER: f64 = 10.0;
/// How much more slowly the long run follows under overload.
const OVERLOADED: f64 = 0.1;
/// The least that the limit grows by in one go, before it is smoothed: Netflix's queue size.
const HEADROOM: f64 = 4.0;
/// Where a gradient of ½ lets the limit come to rest, and a little more.
const REST: f64 = 2.0 * HEADROOM + 1.0;

/// The limit of one server.
#[derive(Clone, Debug)]
pub struct Limiter {
    policy: LimiterPolicy,
    limit: f64,
    /// Mean time of a handler in the long run, in microseconds, and over how many windows it was learnt.
    long: f64,
    windows: u32,
    window: Sampled,
}

/// What was seen since a window began.
#[derive(Clone, Copy, Debug, Default)]
struct Sampled {
    began: Option<Time>,
    count: u32,
    sum: f64,
    most_running: u32,
}

impl Limiter {
    /// One that has learnt nothing.
    pub fn new(policy: LimiterPolicy) -> Self {
        Self { policy, limit: f64::from(policy.initial), long: 0.0, windows: 0, window: Sampled::default() }
    }

    /// How many handlers may run at once.
    #[inline]
    pub fn limit(&self) -> u32 {
        self.limit as u32
    }

    /// A handler has ended and took so long, as one of `running`.
    pub fn sample(&mut self, now: Time, took: Duration, running: u32) {
        let took = micros(took).max(1) as f64;
        let window = &mut self.window;
        let began = *window.began.get_or_insert(now);
        window.count += 1;
        window.sum += if self.windows == 0 { took } else { took.min(self.long * OUTLIER) };
        window.most_running = window.most_running.max(running);
        if window.count >= WINDOW_SAMPLES && now.since(began) >= WINDOW {
            let window = std::mem::take(&mut self.window);
            self.update(window.sum / f64::from(window.count), window.most_running);
        }
    }

    fn update(&mut self, short: f64, running: u32) {
        let policy = &self.policy;
        let tolerated = |long: f64| long * f64::from(policy.tolerance_percent) / 100.0;
        self.windows = self.windows.saturating_add(1);
        if self.windows == 1 {
            self.long = short;
        }
        // The first windows count alike, as in a mean.
        let mut weight = (2.0 / (f64::from(policy.long_windows) + 1.0)).max(1.0 / f64::from(self.windows));
        if short > tolerated(self.long) && self.limit > f64::from(policy.min).max(REST) {
            weight *= OVERLOADED;
        }
        self.long += (short - self.long) * weight;
        if self.long > 2.0 * short {
            // What was learnt under load is forgotten sooner than it was learnt.
            self.long *= 0.95;
        }
        // A limit that is not needed is not proven, either.
        if f64::from(running) < self.limit / 2.0 {
            return;
        }
        let gradient = (tolerated(self.long) / short).clamp(0.5, 1.0);
        let found = self.limit * gradient + self.limit.sqrt().max(HEADROOM);
        let smoothing = f64::from(policy.smoothing_percent) / 100.0;
        let limit = self.limit * (1.0 - smoothing) + found * smoothing;
        self.limit = limit.clamp(f64::from(policy.min), f64::from(policy.max));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(us: u64) -> Time {
        Time::from_micros(us)
    }

    /// A server of so many workers, 10 ms a call, that is asked for so many calls at once; gives the limit after that time.
    fn saturate(limiter: &mut Limiter, from: Duration, length: Duration, workers: u32, calls: u32) -> u32 {
        work(limiter, from, length, (workers, 10_000), calls)
    }

    fn work(limiter: &mut Limiter, from: Duration, length: Duration, server: (u32, u64), calls: u32) -> u32 {
        let ((workers, each), mut now, end) = (server, micros(from), micros(from + length));
        while now < end {
            let running = limiter.limit().min(calls);
            let took = each * u64::from(running.max(workers)) / u64::from(workers);
            // So many of them end while one takes its time.
            for _ in 0..running {
                limiter.sample(at(now), Duration::from_micros(took), running);
                now += took / u64::from(running);
            }
        }
        limiter.limit()
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn finds_what_a_server_can_do_and_stays_there() {
        for workers in [4, 16, 64, 256] {
            let mut limiter = Limiter::new(LimiterPolicy::default());
            // What is normal is learnt while there is room.
            saturate(&mut limiter, Duration::ZERO, MINUTE, workers, workers.min(20) / 2);
            let limit = saturate(&mut limiter, MINUTE, MINUTE, workers, u32::MAX);
            assert!((workers..=workers * 5 / 2 + 4).contains(&limit), "{limit} for {workers} workers");
            let later = saturate(&mut limiter, MINUTE * 2, MINUTE * 10, workers, u32::MAX);
            assert!((workers..=limit * 5).contains(&later), "{limit}, and {later} after ten minutes");
        }
    }

    #[test]
    fn a_server_that_becomes_slower_is_given_less_and_one_that_recovers_more() {
        let mut limiter = Limiter::new(LimiterPolicy::default());
        let before = saturate(&mut limiter, Duration::ZERO, MINUTE, 64, u32::MAX);
        let slow = saturate(&mut limiter, MINUTE, MINUTE, 8, u32::MAX);
        assert!(slow < before / 3, "{before}, then {slow}");
        let after = saturate(&mut limiter, MINUTE * 2, MINUTE, 64, u32::MAX);
        assert!(after > slow * 3, "{before}, then {slow}, then {after}");
    }

    #[test]
    fn work_that_takes_longer_for_good_is_normal_in_the_end() {
        let mut limiter = Limiter::new(LimiterPolicy::default());
        let before = saturate(&mut limiter, Duration::ZERO, MINUTE * 2, 64, u32::MAX);
        let at_first = work(&mut limiter, MINUTE * 2, MINUTE / 4, (64, 100_000), u32::MAX);
        assert!(at_first < before / 2, "{before}, then {at_first}");
        let later = work(&mut limiter, MINUTE * 3, MINUTE * 5, (64, 100_000), u32::MAX);
        assert!(later >= 64, "{before}, then {at_first}, then {later}");
    }

    #[test]
    fn few_calls_prove_no_higher_limit() {
        let mut limiter = Limiter::new(LimiterPolicy::default());
        assert_eq!(saturate(&mut limiter, Duration::ZERO, MINUTE, 64, 9), 20);
    }

    #[test]
    fn no_time_that_a_handler_takes_leads_beyond_the_bounds() {
        let seed = 5;
        let mut random = crate::policy::Random::new(seed);
        let policy = LimiterPolicy { min: 3, initial: 7, max: 50, ..LimiterPolicy::default() };
        let (mut limiter, mut now) = (Limiter::new(policy), 0);
        for _ in 0..100_000 {
            now += random.below(20_000);
            let took = random.draw() >> random.below(64);
            limiter.sample(at(now), Duration::from_micros(took), random.below(100) as u32);
            assert!((3..=50).contains(&limiter.limit()), "{} at {now}, seed {seed}", limiter.limit());
        }
        for took in [0, u64::MAX] {
            limiter.sample(at(u64::MAX), Duration::from_micros(took), u32::MAX);
            limiter.sample(at(0), Duration::from_micros(took), 0);
        }
        assert!((3..=50).contains(&limiter.limit()));
    }

    #[test]
    fn one_long_stream_is_no_load() {
        let mut limiter = Limiter::new(LimiterPolicy::default());
        let before = saturate(&mut limiter, Duration::ZERO, MINUTE, 64, u32::MAX);
        limiter.sample(at(60_000_000), Duration::from_secs(3_600), before);
        let after = saturate(&mut limiter, MINUTE, Duration::from_secs(1), 64, u32::MAX);
        assert!(after.abs_diff(before) <= before / 10, "{before}, then {after}");
    }

    #[test]
    fn what_is_written_wrong_is_named() {
        let fault = |change: fn(&mut LimiterPolicy)| {
            let mut policy = LimiterPolicy::default();
            change(&mut policy);
            policy.fault()
        };
        assert_eq!(fault(|_| {}), None);
        assert!(fault(|policy| policy.min = 0).unwrap().contains("min is 0"));
        assert!(fault(|policy| policy.initial = 2_000).unwrap().contains("initial 2000"));
        assert!(fault(|policy| policy.bulk_percent = 90).unwrap().contains("bulk_percent is 90"));
        assert!(fault(|policy| policy.wait = Duration::ZERO).is_some());
    }
}
