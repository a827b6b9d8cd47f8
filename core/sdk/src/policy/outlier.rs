//! Outlier ejection (gRFC A50): a backend that fails much more often than the others gets no calls for a while.
//!
//! Rates are whole millionths and their spread is compared squared, so that every machine decides alike. A sweep ejects by success rate
//! first, then by failure percentage, then lets those return whose time is over.

use std::time::Duration;

use valkyrie_protocol::Time;

use super::Random;

/// Which backends are ejected. The defaults are A50's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutlierPolicy {
    /// Whether any is. Default true; a set of fewer than five backends is left alone either way.
    pub enabled: bool,
    /// How often the backends are compared. Default 10 s.
    pub interval: Duration,
    /// How long a backend is ejected, times how often it was lately. Default 30 s.
    pub base_ejection: Duration,
    /// The longest ejection. Default 300 s.
    pub ejection_cap: Duration,
    /// How many backends may be ejected, in percent; one always may. Default 10.
    pub max_ejected_percent: u32,
    /// Ejection of those whose success rate is far below the mean.
    pub success_rate: SuccessRate,
    /// Ejection of those that fail more often than a threshold says.
    pub failure_percentage: FailurePercentage,
}

/// Ejection by success rate: below mean − factor × standard deviation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SuccessRate {
    /// The chance in percent that an outlier is ejected. 0: never. Default 100.
    pub enforced_percent: u32,
    /// The factor, in thousandths. Default 1,900.
    pub stdev_factor_thousandths: u32,
    /// Fewer backends with enough calls are not compared. Default 5.
    pub min_hosts: u32,
    /// Calls between two sweeps that are enough. Default 100.
    pub min_calls: u32,
}

/// Ejection by failure percentage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailurePercentage {
    /// The chance in percent that such a backend is ejected. Default 0: never, as in Envoy.
    pub enforced_percent: u32,
    /// More failures than this, in percent. Default 85.
    pub threshold_percent: u32,
    /// With fewer backends none is ejected. Default 5.
    pub min_hosts: u32,
    /// Calls between two sweeps that are enough. Default 50.
    pub min_calls: u32,
}

impl Default for OutlierPolicy {
    fn default() -> Self {
        Self {
            enabled: true,
            interval: Duration::from_secs(10),
            base_ejection: Duration::from_secs(30),
            ejection_cap: Duration::from_secs(300),
            max_ejected_percent: 10,
            success_rate: SuccessRate {
                enforced_percent: 100,
                stdev_factor_thousandths: 1_900,
                min_hosts: 5,
                min_calls: 100,
            },
            failure_percentage: FailurePercentage {
                enforced_percent: 0,
                threshold_percent: 85,
                min_hosts: 5,
                min_calls: 50,
            },
        }
    }
}

/// A backend was ejected, or returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ejection {
    /// The backend's place in the list.
    pub backend: usize,
    /// Whether it is ejected now.
    pub ejected: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Host {
    successes: u32,
    failures: u32,
    ejected: Option<Time>,
    multiplier: u32,
}

impl Host {
    fn calls(&self) -> u64 {
        u64::from(self.successes) + u64::from(self.failures)
    }

    /// Successes in millionths.
    fn rate(&self) -> u64 {
        u64::from(self.successes) * 1_000_000 / self.calls().max(1)
    }
}

/// What is known of the backends of one client.
#[derive(Clone, Debug)]
pub struct Outliers {
    policy: OutlierPolicy,
    hosts: Vec<Host>,
    sweep: Option<Time>,
}

impl Outliers {
    /// Of no backend yet.
    pub fn new(policy: OutlierPolicy) -> Self {
        Self { policy, hosts: Vec::new(), sweep: None }
    }

    /// The policy is another one now: those that return, which are all when it is switched off.
    pub fn set_policy(&mut self, policy: OutlierPolicy) -> Vec<Ejection> {
        let mut changes = Vec::new();
        if !policy.enabled {
            self.sweep = None;
            for (backend, host) in self.hosts.iter_mut().enumerate() {
                if std::mem::take(host).ejected.is_some() {
                    changes.push(Ejection { backend, ejected: false });
                }
            }
        }
        self.policy = policy;
        changes
    }

    /// The list of backends changed: for each new one, its place in the old list if it was there. What was known of it stays.
    pub fn update(&mut self, earlier: impl IntoIterator<Item = Option<usize>>) {
        let known = |place: Option<usize>| place.and_then(|place| self.hosts.get(place).copied());
        self.hosts = earlier.into_iter().map(|place| known(place).unwrap_or_default()).collect();
    }

    /// An attempt ended. One that failed is one that the breaker counts, too.
    #[inline]
    pub fn record(&mut self, backend: usize, success: bool) {
        if let Some(host) = self.hosts.get_mut(backend) {
            let counter = if success { &mut host.successes } else { &mut host.failures };
            *counter = counter.saturating_add(1);
        }
    }

    /// Whether the backend is ejected.
    pub fn is_ejected(&self, backend: usize) -> bool {
        self.hosts.get(backend).is_some_and(|host| host.ejected.is_some())
    }

    /// When to sweep next. The first call begins the first interval; `None` when the policy is off.
    pub fn due(&mut self, now: Time) -> Option<Time> {
        let next = now.after(self.policy.interval);
        self.policy.enabled.then(|| *self.sweep.get_or_insert(next))
    }

    /// Compares the backends and begins the next interval. Draws once for each outlier whose `enforced_percent` is neither 0 nor
    /// 100, in the order of the list.
    pub fn sweep(&mut self, now: Time, random: &mut Random) -> Vec<Ejection> {
        let mut changes = Vec::new();
        if !self.policy.enabled {
            return changes;
        }
        self.sweep = Some(now.after(self.policy.interval));
        self.by_success_rate(now, random, &mut changes);
        self.by_failure_percentage(now, random, &mut changes);
        let longest = self.policy.ejection_cap.max(self.policy.base_ejection);
        for (backend, host) in self.hosts.iter_mut().enumerate() {
            (host.successes, host.failures) = (0, 0);
            match host.ejected {
                None => host.multiplier = host.multiplier.saturating_sub(1),
                Some(since) => {
                    let time = self.policy.base_ejection.saturating_mul(host.multiplier).min(longest);
                    if now > since.after(time) {
                        host.ejected = None;
                        changes.push(Ejection { backend, ejected: false });
                    }
                }
            }
        }
        changes
    }

    fn by_success_rate(&mut self, now: Time, random: &mut Random, changes: &mut Vec<Ejection>) {
        let rule = self.policy.success_rate;
        let has_enough = |host: &Host| host.calls() >= u64::from(rule.min_calls.max(1));
        let compared: Vec<&Host> = self.hosts.iter().filter(|host| has_enough(host)).collect();
        if rule.enforced_percent == 0 || compared.len() < rule.min_hosts as usize {
            return;
        }
        let count = compared.len() as i128;
        let sum: i128 = compared.iter().map(|host| i128::from(host.rate())).sum();
        // With d = count × rate − sum, the variance is Σd² / count³, and a rate is below mean − factor × deviation when
        // (−d × 1000)² × count > factor² × Σd².
        let squares: i128 = compared.iter().map(|host| (count * i128::from(host.rate()) - sum).pow(2)).sum();
        let factor = i128::from(rule.stdev_factor_thousandths);
        for backend in 0..self.hosts.len() {
            let host = &self.hosts[backend];
            let below = sum - count * i128::from(host.rate());
            let is_outlier = has_enough(host)
                && below > 0
                && (below * 1_000).saturating_pow(2).saturating_mul(count)
                    > factor.pow(2).saturating_mul(squares);
            if is_outlier && !self.eject(backend, rule.enforced_percent, now, random, changes) {
                return;
            }
        }
    }

    fn by_failure_percentage(&mut self, now: Time, random: &mut Random, changes: &mut Vec<Ejection>) {
        let rule = self.policy.failure_percentage;
        if rule.enforced_percent == 0 || self.hosts.len() < rule.min_hosts as usize {
            return;
        }
        for backend in 0..self.hosts.len() {
            let host = &self.hosts[backend];
            let is_outlier = host.calls() >= u64::from(rule.min_calls.max(1))
                && u64::from(host.failures) * 100 > host.calls() * u64::from(rule.threshold_percent);
            if is_outlier && !self.eject(backend, rule.enforced_percent, now, random, changes) {
                return;
            }
        }
    }

    /// Ejects the backend if luck has it: false when no more may be ejected.
    fn eject(
        &mut self,
        backend: usize,
        percent: u32,
        now: Time,
        random: &mut Random,
        changes: &mut Vec<Ejection>,
    ) -> bool {
        let ejected = self.hosts.iter().filter(|host| host.ejected.is_some()).count();
        let most = (self.hosts.len() * self.policy.max_ejected_percent as usize / 100).max(1);
        if ejected >= most {
            return false;
        }
        let host = &mut self.hosts[backend];
        if host.ejected.is_none() && (percent >= 100 || random.below(100) < u64::from(percent)) {
            host.ejected = Some(now);
            host.multiplier = host.multiplier.saturating_add(1);
            changes.push(Ejection { backend, ejected: true });
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(at: u64) -> Time {
        Time::from_micros(at * 1_000_000)
    }

    fn outliers(policy: OutlierPolicy, hosts: usize) -> Outliers {
        let mut outliers = Outliers::new(policy);
        outliers.update(vec![None; hosts]);
        outliers
    }

    fn calls(outliers: &mut Outliers, backend: usize, successes: u32, failures: u32) {
        (0..successes).for_each(|_| outliers.record(backend, true));
        (0..failures).for_each(|_| outliers.record(backend, false));
    }

    fn ejected(backend: usize) -> Ejection {
        Ejection { backend, ejected: true }
    }

    #[test]
    fn the_one_far_below_the_others_is_ejected_for_thirty_seconds_and_longer_each_time() {
        let mut outliers = outliers(OutlierPolicy::default(), 5);
        let mut random = Random::new(1);
        let before = random.clone();
        assert_eq!(outliers.due(second(0)), Some(second(10)));
        let mut log = Vec::new();
        for sweep in 1..=60 {
            for host in 0..4 {
                calls(&mut outliers, host, 100, 0);
            }
            if !outliers.is_ejected(4) {
                calls(&mut outliers, 4, 0, 100);
            }
            for change in outliers.sweep(second(sweep * 10), &mut random) {
                assert_eq!(change.backend, 4);
                log.push((sweep * 10, change.ejected));
            }
        }
        // Returned at the first sweep past 30 s, 60 s, …, and ejected again at the next one.
        assert_eq!(
            log,
            [
                (10, true),
                (50, false),
                (60, true),
                (130, false),
                (140, true),
                (240, false),
                (250, true),
                (380, false),
                (390, true),
                (550, false),
                (560, true)
            ]
        );
        assert_eq!(random, before, "nothing is left to luck at 100 %");
    }

    #[test]
    fn at_most_ten_percent_and_at_least_one() {
        for (hosts, most) in [(5, 1), (10, 1), (19, 1), (20, 2), (100, 10)] {
            let mut outliers = outliers(OutlierPolicy::default(), hosts);
            for host in 0..hosts {
                let bad = host < hosts / 8 + 1;
                calls(&mut outliers, host, if bad { 0 } else { 100 }, if bad { 100 } else { 0 });
            }
            let changes = outliers.sweep(second(10), &mut Random::new(1));
            assert_eq!(changes, (0..most).map(ejected).collect::<Vec<_>>(), "of {hosts}");
        }
    }

    #[test]
    fn few_calls_few_hosts_and_equal_hosts_are_left_alone() {
        let mut random = Random::new(1);
        let mut few = outliers(OutlierPolicy::default(), 4);
        let mut quiet = outliers(OutlierPolicy::default(), 6);
        let mut equal = outliers(OutlierPolicy::default(), 6);
        for host in 0..6 {
            calls(&mut few, host, if host == 0 { 0 } else { 200 }, 100);
            calls(&mut quiet, host, if host == 0 { 0 } else { 100 }, if host == 0 { 99 } else { 0 });
            calls(&mut equal, host, 50, 50);
        }
        for outliers in [&mut few, &mut quiet, &mut equal] {
            assert_eq!(outliers.sweep(second(10), &mut random), []);
        }
    }

    #[test]
    fn the_integers_decide_as_the_formula_does() {
        let seed = 8;
        let mut random = Random::new(seed);
        let mut found = 0;
        for round in 0..2_000 {
            let hosts = 5 + random.below(20) as usize;
            let mut outliers =
                outliers(OutlierPolicy { max_ejected_percent: 100, ..Default::default() }, hosts);
            let mut rates = Vec::new();
            for host in 0..hosts {
                let most = if random.below(8) == 0 { 150 } else { 20 };
                let failures = random.below(most) as u32;
                calls(&mut outliers, host, 200 - failures, failures);
                rates.push(f64::from(200 - failures) / 200.0);
            }
            let mean = rates.iter().sum::<f64>() / hosts as f64;
            let deviation =
                (rates.iter().map(|rate| (rate - mean).powi(2)).sum::<f64>() / hosts as f64).sqrt();
            let limit = mean - deviation * 1.9;
            if rates.iter().any(|rate| (rate - limit).abs() < 1e-5) {
                continue;
            }
            let expected: Vec<_> = (0..hosts).filter(|host| rates[*host] < limit).map(ejected).collect();
            found += expected.len();
            let changes = outliers.sweep(second(10), &mut random);
            assert_eq!(changes, expected, "round {round}, seed {seed}");
        }
        assert!(found > 500, "{found} outliers");
    }

    #[test]
    fn failure_percentage_ejects_above_its_threshold_with_its_chance() {
        let mut policy = OutlierPolicy::default();
        policy.success_rate.enforced_percent = 0;
        policy.failure_percentage.enforced_percent = 100;
        let mut outliers = outliers(OutlierPolicy { max_ejected_percent: 100, ..policy }, 5);
        let mut random = Random::new(1);
        for (host, failures) in [85, 86, 100, 0, 86].into_iter().enumerate() {
            calls(&mut outliers, host, 100 - failures, failures);
        }
        assert_eq!(outliers.sweep(second(10), &mut random), [ejected(1), ejected(2), ejected(4)]);

        policy.failure_percentage.enforced_percent = 30;
        let mut count = 0;
        for _ in 0..1_000 {
            let mut outliers = super::tests::outliers(policy, 5);
            calls(&mut outliers, 0, 0, 100);
            count += outliers.sweep(second(10), &mut random).len();
        }
        assert!((250..=350).contains(&count), "{count}");
    }

    #[test]
    fn what_is_known_moves_with_the_backend() {
        let mut outliers = outliers(OutlierPolicy::default(), 5);
        (0..4).for_each(|host| calls(&mut outliers, host, 100, 0));
        calls(&mut outliers, 4, 0, 100);
        outliers.sweep(second(10), &mut Random::new(1));
        outliers.update([Some(4), None, Some(0), Some(99)]);
        let states: Vec<_> = (0..5).map(|host| outliers.is_ejected(host)).collect();
        assert_eq!(states, [true, false, false, false, false]);
        let off = OutlierPolicy { enabled: false, ..OutlierPolicy::default() };
        assert_eq!(outliers.set_policy(off), [Ejection { backend: 0, ejected: false }]);
        assert_eq!((outliers.due(second(20)), outliers.is_ejected(0)), (None, false));
    }

    #[test]
    fn no_number_of_hosts_or_calls_overflows() {
        let mut policy = OutlierPolicy::default();
        policy.success_rate.stdev_factor_thousandths = u32::MAX;
        let mut outliers = outliers(policy, 10_000);
        for host in &mut outliers.hosts {
            host.successes = u32::MAX;
        }
        outliers.hosts[3] = Host { failures: u32::MAX, ..Host::default() };
        outliers.record(3, false);
        assert_eq!(outliers.sweep(Time::from_micros(u64::MAX), &mut Random::new(1)), []);
    }

    #[test]
    fn nobody_is_ejected_where_it_is_off_and_nobody_beyond_the_share_by_the_percentage_of_failures() {
        let mut random = Random::new(1);
        let mut off = outliers(OutlierPolicy { enabled: false, ..OutlierPolicy::default() }, 5);
        calls(&mut off, 4, 0, 100);
        assert_eq!((off.due(second(0)), off.sweep(second(10), &mut random)), (None, vec![]));

        let mut policy = OutlierPolicy::default();
        policy.success_rate.enforced_percent = 0;
        policy.failure_percentage.enforced_percent = 100;
        let mut outliers = outliers(policy, 5);
        (0..5).for_each(|host| calls(&mut outliers, host, 0, 100));
        assert_eq!(outliers.sweep(second(10), &mut random), [ejected(0)]);
    }
}
