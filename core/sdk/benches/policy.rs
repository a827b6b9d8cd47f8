//! What the policies cost a healthy call, each alone and all together, and what a tripped breaker's rejection costs.
//! `cargo bench -p valkyrie-sdk --bench policy` prints the quickest and the median of 200 short runs, in nanoseconds, as a loaded machine
//! stretches most of them; and the largest allocation, which must be none.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use valkyrie_sdk::{
    Code, Status, Time,
    policy::{
        Attempts, BackendState, Balancer, Breaker, BreakerState, Budget, CallOutcome, Hedge, HedgePolicy,
        Latency, Outliers, Random, ServiceConfig, Throttle,
    },
};

#[allow(dead_code, unreachable_pub)]
#[path = "../../../tests/fuzz/src/allocator.rs"]
mod allocator;

const RUNS: usize = 200;
const TIMES: u64 = 5_000;
/// Between two calls, so that windows turn.
const STEP_US: u64 = 10;

fn print(name: &str, mut work: impl FnMut(Time)) {
    let mut now = 0;
    let mut round = || {
        for _ in 0..TIMES {
            now += STEP_US;
            work(Time::from_micros(now));
        }
    };
    round();
    let mut runs = [0.0; RUNS];
    let memory = allocator::measure(|| {
        for run in &mut runs {
            let began = Instant::now();
            round();
            *run = began.elapsed().as_nanos() as f64 / TIMES as f64;
        }
    });
    runs.sort_by(f64::total_cmp);
    println!("{name:<34} {:>8.1} {:>8.1} ns {:>6} bytes allocated", runs[0], runs[RUNS / 2], memory.largest);
    assert_eq!(memory.largest, 0, "{name} allocates");
}

/// Everything that a client has of its policies.
struct Stack {
    config: ServiceConfig,
    random: Random,
    budget: Budget,
    throttle: Throttle,
    balancer: Balancer,
    outliers: Outliers,
    breakers: [Breaker; 3],
}

impl Stack {
    fn new() -> Self {
        let methods = r#"{"methods": [{"names": ["*"], "timeout_ms": 100}, {"names": ["/store.Items/*"], "idempotent": true},
            {"names": ["/store.Items/Get"], "retry": {"max_attempts": 5}}]}"#;
        let config = ServiceConfig::parse(methods).expect("a config");
        let breaker = || Breaker::new(config.method("/echo").breaker);
        let mut stack = Self {
            random: Random::new(1),
            budget: Budget::new(config.retry_budget),
            throttle: Throttle::new(config.throttle),
            balancer: Balancer::new(config.balance),
            outliers: Outliers::new(config.outlier),
            breakers: [breaker(), breaker(), breaker()],
            config,
        };
        stack.balancer.update(&[BackendState::default(); 3]);
        stack.outliers.update([None; 3]);
        stack
    }

    fn call(&mut self, now: Time) {
        let method = *self.config.method("/store.Items/Get");
        let mut attempts =
            Attempts::new(method.retry, method.idempotent, Some(now.after(Duration::from_secs(5))));
        black_box(attempts.begin(now, &mut self.budget));
        assert!(self.throttle.admit(now, &mut self.random));
        let backend = self.balancer.pick(&[], |_| 0, &mut self.random).expect("one") as usize;
        let permit = self.breakers[backend].acquire(now).0.expect("closed");
        attempts.commit();
        black_box(self.breakers[backend].done(permit, CallOutcome::Success, Duration::ZERO, now));
        self.outliers.record(backend, true);
        self.throttle.accepted(now);
        attempts.succeeded(&mut self.budget);
    }
}

fn main() {
    println!("{:<34} {:>8} {:>8}", "healthy", "best", "median");
    let mut stack = Stack::new();
    for path in ["/store.Items/Get", "/store.Items/Put", "/echo"] {
        print(&format!("config.method, {path}"), |_| {
            black_box(stack.config.method(black_box(path)));
        });
    }
    print("Attempts and Budget", |now| {
        let mut attempts = Attempts::new(Default::default(), true, Some(now));
        black_box(attempts.begin(now, &mut stack.budget));
        attempts.commit();
        attempts.succeeded(&mut stack.budget);
    });
    print("Throttle", |now| {
        black_box(stack.throttle.admit(now, &mut stack.random));
        stack.throttle.accepted(now);
    });
    print("Balancer, least_request of 3", |_| {
        black_box(stack.balancer.pick(&[], |place| place, &mut stack.random));
    });
    print("Outliers", |_| stack.outliers.record(black_box(1), true));
    print("Breaker", |now| {
        let permit = stack.breakers[0].acquire(now).0.expect("closed");
        black_box(stack.breakers[0].done(permit, CallOutcome::Success, Duration::ZERO, now));
    });
    let (mut latency, hedged) = (Latency::default(), HedgePolicy { enabled: true, ..HedgePolicy::default() });
    print("Hedge and Latency", |now| {
        let hedge = Hedge::begin(&hedged, true, None, &latency, now, &mut stack.budget);
        black_box(hedge.expect("hedged").won(0, &mut stack.budget));
        latency.record(Duration::from_micros(now.as_micros() & 1_023));
    });
    let mut stack = Stack::new();
    print("all of a call, not hedged", |now| stack.call(now));

    println!("not healthy");
    let mut breaker = Breaker::new(stack.config.method("/echo").breaker);
    breaker.isolate(Time::default());
    print("a tripped breaker's rejection", |now| {
        let (refused, edge) = breaker.acquire(now);
        assert!(edge.is_none());
        let refused = refused.expect_err("isolated");
        assert_eq!(refused.state, BreakerState::Isolated);
        black_box(Status::new(Code::Unavailable, "the circuit breaker is open"));
    });
    let mut throttle = Throttle::new(stack.config.throttle);
    print("a throttle that refuses", |now| {
        if throttle.admit(now, &mut stack.random) {
            throttle.refused(now);
        }
    });
}
