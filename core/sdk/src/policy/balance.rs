//! Which backend a call goes to: pick_first, round_robin or least_request, by levels of locality, around those that are ejected.

use super::Random;

/// How backends are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BalancePolicy {
    /// The first one that is usable, in the order of the list: failover.
    PickFirst,
    /// One after the other. Weights are ignored.
    RoundRobin,
    /// The less busy of two that are drawn (Mitzenmacher, "The power of two choices", 2001), by calls in flight for each
    /// unit of weight. The default.
    #[default]
    LeastRequest,
}

/// How the backends of a client share its calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BalanceConfig {
    /// How one is chosen. Default: least_request.
    pub policy: BalancePolicy,
    /// While the usable share of a level is below 100 / this, in percent, the rest of its calls goes to the next level. Default 140:
    /// below 71 % (Envoy's overprovisioning factor).
    pub overprovisioning_percent: u32,
    /// A level with a smaller usable share than this, in percent, while no level has room for its calls, uses all of its backends:
    /// health that says that hardly anybody is well is more likely wrong. Default 50 (Envoy).
    pub panic_percent: u32,
}

impl Default for BalanceConfig {
    fn default() -> Self {
        Self { policy: BalancePolicy::default(), overprovisioning_percent: 140, panic_percent: 50 }
    }
}

/// A backend, as the balancer is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendState {
    /// Whether calls can be sent to it: connected, or never tried. False after a failure to connect, for a breaker that is open, or
    /// a health check that says not_serving.
    pub ready: bool,
    /// Whether outlier detection ejected it.
    pub ejected: bool,
    /// Its share under least_request, beside the others'. 0 counts as 1. Default 1.
    pub weight: u32,
    /// How far away it is: 0 is nearest, and further ones are for when nearer ones are not enough. Default 0.
    pub level: u8,
}

impl Default for BackendState {
    fn default() -> Self {
        Self { ready: true, ejected: false, weight: 1, level: 0 }
    }
}

/// The balancer of one client. [`Balancer::update`] does the work, whenever a backend changes; [`Balancer::pick`] allocates nothing
/// and looks at two backends.
#[derive(Clone, Debug)]
pub struct Balancer {
    config: BalanceConfig,
    levels: Vec<Level>,
    weights: Vec<u32>,
    /// Every backend, nearest first: what is left when nobody is usable.
    all: Vec<u32>,
    /// The nearest level that gets calls, and whether it gets all of them.
    nearest: usize,
    shared: bool,
    turn: usize,
    panicking: bool,
}

#[derive(Clone, Debug)]
struct Level {
    /// The upper end of its part of 100, exclusive; that of the level before it when it gets none.
    share_ends: u64,
    backends: Vec<u32>,
}

impl Balancer {
    /// Of no backend yet.
    pub fn new(config: BalanceConfig) -> Self {
        Self {
            config,
            levels: Vec::new(),
            weights: Vec::new(),
            all: Vec::new(),
            nearest: 0,
            shared: false,
            turn: 0,
            panicking: false,
        }
    }

    /// The config is another one now. Call [`Balancer::update`] next.
    pub fn set_config(&mut self, config: BalanceConfig) {
        self.config = config;
    }

    /// The backends are these now, by their places in the list.
    pub fn update(&mut self, backends: &[BackendState]) {
        self.update_places(&(0..).zip(backends.iter().copied()).collect::<Vec<_>>());
    }

    /// The backends are these now, in their order, each with the place that [`Balancer::pick`] names it by. Places need not follow each
    /// other; none is given twice.
    pub fn update_places(&mut self, backends: &[(u32, BackendState)]) {
        self.weights.clear();
        for (place, backend) in backends {
            let place = *place as usize;
            self.weights.resize(self.weights.len().max(place + 1), 1);
            self.weights[place] = backend.weight.max(1);
        }

        // Of each level, the nearest first: all of its backends, those that are usable, and how much of all calls it has room for, in
        // percent.
        let mut found: Vec<(Vec<u32>, Vec<u32>, u64)> = Vec::new();
        self.all.clear();
        let levels = || backends.iter().map(|(_, backend)| backend.level);
        let mut nearest = levels().min();
        while let Some(level) = nearest {
            let (mut all, mut well) = (Vec::new(), Vec::new());
            for (place, backend) in backends.iter().filter(|(_, backend)| backend.level == level) {
                all.push(*place);
                if backend.ready && !backend.ejected {
                    well.push(*place);
                }
            }
            let room = well.len() as u64 * u64::from(self.config.overprovisioning_percent) / all.len() as u64;
            self.all.extend_from_slice(&all);
            found.push((all, well, room.min(100)));
            nearest = levels().filter(|further| *further > level).min();
        }
        let room: u64 = found.iter().map(|(.., room)| room).sum();

        self.levels.clear();
        (self.nearest, self.shared) = (0, false);
        self.panicking = room < 100 && !backends.is_empty();
        if room == 0 {
            let level = Level { share_ends: 100, backends: self.all.clone() };
            self.levels.extend((!backends.is_empty()).then_some(level));
            return;
        }
        let (mut given, mut panicking) = (0, false);
        for (all, well, part) in found {
            // Nearer levels take what they have room for; where all levels together have too little, each takes its proportion.
            let share = if room < 100 { part * 100 / room } else { part.min(100 - given) };
            if share > 0 && given == 0 {
                self.nearest = self.levels.len();
            }
            self.shared |= share > 0 && given > 0;
            given += share;
            let few = well.len() as u64 * 100 < all.len() as u64 * u64::from(self.config.panic_percent);
            let panics = room < 100 && few && share > 0;
            panicking |= panics;
            self.levels.push(Level { share_ends: given, backends: if panics { all } else { well } });
        }
        self.panicking &= panicking;
        // What rounding left is for the furthest of those that have a share.
        for level in &mut self.levels {
            if level.share_ends == given {
                level.share_ends = 100;
            }
        }
    }

    /// The place of the backend for a call, if there is any: not one of those in `tried` while there are others that are usable, or
    /// others at all. Draws, in this order: once for the level, when calls go to more than one; twice under least_request, when
    /// there are at least two to choose from.
    #[inline]
    pub fn pick(
        &mut self,
        tried: &[u32],
        in_flight: impl Fn(u32) -> u32,
        random: &mut Random,
    ) -> Option<u32> {
        let chosen = if self.levels.is_empty() {
            return None;
        } else if self.shared && self.config.policy != BalancePolicy::PickFirst {
            let part = random.below(100);
            self.levels.iter().position(|level| part < level.share_ends).unwrap_or(self.nearest)
        } else {
            self.nearest
        };
        if tried.is_empty() {
            let list = &self.levels[chosen].backends;
            return self.choose(list.len(), |at| list[at], in_flight, random).map(|(place, turn)| {
                self.turn = turn;
                place
            });
        }
        self.pick_another(chosen, tried, in_flight, random)
    }

    fn pick_another(
        &mut self,
        chosen: usize,
        tried: &[u32],
        in_flight: impl Fn(u32) -> u32,
        random: &mut Random,
    ) -> Option<u32> {
        let lists = std::iter::once(&self.levels[chosen])
            .chain(&self.levels)
            .map(|level| &level.backends)
            .chain(std::iter::once(&self.all));
        let mut found = None;
        for list in lists {
            let untried = || list.iter().filter(|place| !tried.contains(place)).copied();
            let at = |at: usize| untried().nth(at).unwrap_or_default();
            found = self.choose(untried().count(), at, &in_flight, random);
            if found.is_some() {
                break;
            }
        }
        let list = &self.levels[chosen].backends;
        let (place, turn) = found.or_else(|| self.choose(list.len(), |at| list[at], &in_flight, random))?;
        self.turn = turn;
        Some(place)
    }

    /// One of `count` backends, and whose turn is next.
    fn choose(
        &self,
        count: usize,
        at: impl Fn(usize) -> u32,
        in_flight: impl Fn(u32) -> u32,
        random: &mut Random,
    ) -> Option<(u32, usize)> {
        match (self.config.policy, count) {
            (_, 0) => None,
            (BalancePolicy::PickFirst, _) | (_, 1) => Some((at(0), self.turn)),
            (BalancePolicy::RoundRobin, _) => Some((at(self.turn % count), self.turn.wrapping_add(1))),
            (BalancePolicy::LeastRequest, _) => {
                let first = random.below(count as u64) as usize;
                let second = random.below(count as u64 - 1) as usize;
                let (first, second) = (at(first), at(if second >= first { second + 1 } else { second }));
                // (a + 1) / weight of a, beside the same of b; the first one drawn where they are equal.
                let load = |one: u32, other: u32| {
                    (u64::from(in_flight(one)) + 1) * u64::from(self.weights[other as usize])
                };
                let place = if load(second, first) < load(first, second) { second } else { first };
                Some((place, self.turn))
            }
        }
    }

    /// Whether health is ignored somewhere, since hardly anybody is well.
    pub fn is_panicking(&self) -> bool {
        self.panicking
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn balancer(policy: BalancePolicy, backends: &[BackendState]) -> Balancer {
        let mut balancer = Balancer::new(BalanceConfig { policy, ..BalanceConfig::default() });
        balancer.update(backends);
        balancer
    }

    fn backend(level: u8, ready: bool) -> BackendState {
        BackendState { ready, level, ..BackendState::default() }
    }

    /// How often each of them is picked of 10,000 times.
    fn counts(balancer: &mut Balancer, backends: usize, tried: &[u32]) -> Vec<usize> {
        let (mut random, mut counts) = (Random::new(1), vec![0; backends]);
        for _ in 0..10_000 {
            if let Some(place) = balancer.pick(tried, |_| 0, &mut random) {
                counts[place as usize] += 1;
            }
        }
        counts
    }

    const POLICIES: [BalancePolicy; 3] =
        [BalancePolicy::PickFirst, BalancePolicy::RoundRobin, BalancePolicy::LeastRequest];

    #[test]
    fn pick_first_takes_the_first_that_is_well() {
        let mut backends = [BackendState::default(); 3];
        let mut balancer = balancer(BalancePolicy::PickFirst, &backends);
        assert_eq!(counts(&mut balancer, 3, &[]), [10_000, 0, 0]);
        assert_eq!(counts(&mut balancer, 3, &[0]), [0, 10_000, 0]);
        backends[0].ready = false;
        backends[1].ejected = true;
        balancer.update(&backends);
        assert_eq!(counts(&mut balancer, 3, &[2]), [10_000, 0, 0], "tried the only one that is well");
    }

    #[test]
    fn round_robin_gives_each_the_same() {
        let mut balancer = balancer(BalancePolicy::RoundRobin, &[BackendState::default(); 4]);
        assert_eq!(counts(&mut balancer, 4, &[]), [2_500; 4]);
        let (mut random, before) = (Random::new(1), Random::new(1));
        let picks: Vec<_> = (0..5).filter_map(|_| balancer.pick(&[], |_| 0, &mut random)).collect();
        assert_eq!(picks, [0, 1, 2, 3, 0]);
        assert_eq!(random, before, "without a draw");
    }

    #[test]
    fn least_request_takes_the_less_busy_of_two() {
        let mut balancer = balancer(BalancePolicy::LeastRequest, &[BackendState::default(); 3]);
        let mut random = Random::new(1);
        let mut counts = [0; 3];
        for _ in 0..9_000 {
            let busy = |place| if place == 1 { 9 } else { 0 };
            counts[balancer.pick(&[], busy, &mut random).expect("one") as usize] += 1;
        }
        assert_eq!(counts[1], 0, "with three, one of two is always idle: {counts:?}");
        assert!((4_200..=4_800).contains(&counts[0]), "{counts:?}");
    }

    #[test]
    fn weights_divide_what_is_in_flight() {
        let weighted = |weight| BackendState { weight, ..BackendState::default() };
        let mut balancer = balancer(BalancePolicy::LeastRequest, &[weighted(1), weighted(3), weighted(0)]);
        let (mut random, mut flying) = (Random::new(1), [0_u32; 3]);
        for _ in 0..500 {
            let place = balancer.pick(&[], |place| flying[place as usize], &mut random).expect("one");
            flying[place as usize] += 1;
        }
        assert!((290..=310).contains(&flying[1]) && (95..=105).contains(&flying[0]), "{flying:?}");
    }

    #[test]
    fn calls_spill_over_to_the_next_level_as_the_nearest_fails() {
        for (well, expected) in [(10, 100), (8, 100), (7, 98), (5, 70), (1, 14), (0, 0)] {
            let mut backends: Vec<_> = (0..10).map(|place| backend(0, place < well)).collect();
            backends.extend([backend(1, true); 10]);
            let mut balancer = balancer(BalancePolicy::LeastRequest, &backends);
            assert!(!balancer.is_panicking());
            let counts = counts(&mut balancer, 20, &[]);
            let near: usize = counts[..10].iter().sum();
            assert!(near.abs_diff(expected * 100) <= 150, "{near} with {well} well");
            assert!(counts.iter().zip(&backends).all(|(count, backend)| *count == 0 || backend.ready));
        }
    }

    #[test]
    fn when_hardly_anybody_is_well_all_are_tried() {
        for policy in POLICIES {
            let mut balancer = balancer(policy, &[backend(0, false), backend(1, false), backend(0, false)]);
            assert!(balancer.is_panicking());
            let mut random = Random::new(1);
            let mut tried = Vec::new();
            for _ in 0..3 {
                tried.push(balancer.pick(&tried, |_| 0, &mut random).expect("try anyway"));
            }
            tried.sort_unstable();
            assert_eq!(tried, [0, 1, 2], "{policy:?}");
        }
        let backends: Vec<_> = (0..10).map(|place| backend(0, place < 4)).collect();
        let mut four_of_ten = balancer(BalancePolicy::RoundRobin, &backends);
        assert!(four_of_ten.is_panicking());
        assert_eq!(counts(&mut four_of_ten, 10, &[]), [1_000; 10]);
        let backends: Vec<_> = (0..10).map(|place| backend(0, place < 5)).collect();
        let mut half = balancer(BalancePolicy::RoundRobin, &backends);
        assert!(!half.is_panicking());
        assert_eq!(counts(&mut half, 10, &[])[5..], [0; 5]);
    }

    #[test]
    fn what_was_tried_is_left_out_while_there_are_others() {
        for policy in POLICIES {
            let backends = [backend(0, true), backend(0, true), backend(1, true), backend(1, false)];
            let mut balancer = balancer(policy, &backends);
            assert_eq!(counts(&mut balancer, 4, &[0]), [0, 10_000, 0, 0], "{policy:?}");
            assert_eq!(counts(&mut balancer, 4, &[1, 0])[..2], [0, 0], "{policy:?}");
            assert_eq!(counts(&mut balancer, 4, &[0, 1, 2]), [0, 0, 0, 10_000], "{policy:?}");
            let all_tried = counts(&mut balancer, 4, &[0, 1, 2, 3]);
            assert_eq!((all_tried[0] + all_tried[1], all_tried[3]), (10_000, 0), "{policy:?}");
        }
    }

    #[test]
    fn places_may_have_gaps_and_any_order() {
        for policy in POLICIES {
            let mut balancer = Balancer::new(BalanceConfig { policy, ..BalanceConfig::default() });
            balancer.update_places(&[(7, backend(0, true)), (2, backend(0, true)), (4, backend(1, true))]);
            let counts = counts(&mut balancer, 8, &[]);
            assert_eq!(counts[2] + counts[7], 10_000, "{policy:?}");
            assert_eq!(counts[2] == 0, policy == BalancePolicy::PickFirst, "{policy:?}: 7 stands first");
        }
    }

    #[test]
    fn without_backends_there_is_none_and_one_costs_no_draw() {
        for policy in POLICIES {
            let mut random = Random::new(1);
            assert_eq!(balancer(policy, &[]).pick(&[], |_| 0, &mut random), None);
            let mut one = balancer(policy, &[BackendState::default()]);
            assert_eq!(one.pick(&[], |_| 0, &mut random), Some(0));
            assert_eq!(one.pick(&[0], |_| 0, &mut random), Some(0));
            assert_eq!(random, Random::new(1));
        }
    }

    #[test]
    fn any_mix_of_backends_gives_one_that_is_there() {
        for seed in 0..2_000 {
            let mut random = Random::new(seed);
            let backends: Vec<_> = (0..1 + random.below(12))
                .map(|_| BackendState {
                    ready: random.below(3) > 0,
                    ejected: random.below(4) == 0,
                    weight: random.below(4) as u32,
                    level: random.below(3) as u8,
                })
                .collect();
            let mut balancer = balancer(POLICIES[random.below(3) as usize], &backends);
            for _ in 0..20 {
                let tried: Vec<u32> =
                    (0..random.below(4)).map(|_| random.below(backends.len() as u64) as u32).collect();
                let place = balancer.pick(&tried, |place| place, &mut random).expect("one") as usize;
                let untried_well = backends.iter().enumerate().any(|(place, backend)| {
                    backend.ready && !backend.ejected && !tried.contains(&(place as u32))
                });
                let well = backends[place].ready && !backends[place].ejected;
                assert!(well || balancer.is_panicking() || !untried_well, "seed {seed}");
            }
        }
    }
}
