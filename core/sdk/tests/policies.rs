//! The policies together: what an outage costs, and the numbers that other implementations compare with.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};
use valkyrie_sdk::{
    Code, Reason, Status, Time,
    policy::{
        Attempts, BackendState, Backoff, BalanceConfig, BalancePolicy, Balancer, Breaker, BreakerPolicy,
        BreakerState, Budget, BudgetPolicy, CallOutcome, Extra, Failure, Random, Reconnect, ReconnectPolicy,
        RetryPolicy, Rides, Seen, Throttle, ThrottlePolicy, Verdict,
    },
};

fn micros(at: u64) -> Time {
    Time::from_micros(at)
}

/// What ten clients of 100 idempotent calls a second each send in a minute, of which the server lets a part succeed, in
/// attempts for each call; and the worst share beyond the calls of any ten seconds.
fn load(seed: u64, success_percent: u64, max_attempts: u32) -> (f64, f64) {
    let policy = RetryPolicy { max_attempts, ..RetryPolicy::default() };
    let failure = Failure::new(&Status::new(Code::Unavailable, ""), Seen::Perhaps);
    let (mut calls, mut sent, mut worst) = (0_u64, Vec::new(), 0.0_f64);
    for client in 0..10 {
        let mut random = Random::new(seed * 10 + client);
        let mut luck = Random::new(1_000 + seed * 10 + client);
        let mut budget = Budget::new(BudgetPolicy::default());
        // What happens when; calls at one instant in the order in which they began.
        let mut due = BTreeMap::new();
        for call in 0..6_000_u64 {
            let began = call * 10_000;
            let deadline = micros(began + 5_000_000);
            due.insert((began, call), Attempts::new(policy, true, Some(deadline)));
        }
        calls += 6_000;
        while let Some(((now, call), mut attempts)) = due.pop_first() {
            let now = micros(now);
            attempts.begin(now, &mut budget);
            sent.push(now.as_micros());
            if luck.below(100) < success_percent {
                attempts.succeeded(&mut budget);
            } else if let Verdict::Retry { at, transparent: false } =
                attempts.failed(&failure, now, &mut budget, &mut random)
            {
                due.insert((at.as_micros(), call), attempts);
            }
        }
    }
    sent.sort_unstable();
    for second in 0..50 {
        let from = sent.partition_point(|at| *at < second * 1_000_000);
        let to = sent.partition_point(|at| *at < (second + 10) * 1_000_000);
        worst = worst.max((to - from) as f64 / 10_000.0);
    }
    (sent.len() as f64 / calls as f64, worst)
}

#[test]
fn an_outage_is_not_made_worse() {
    for (seed, success_percent, max_attempts) in
        [(1, 0, 3), (2, 0, 5), (3, 1, 5), (4, 10, 3), (5, 30, 5), (6, 50, 3), (7, 70, 5), (8, 90, 3)]
    {
        let (all, worst) = load(seed, success_percent, max_attempts);
        println!(
            "seed {seed}: {success_percent} % succeed: {all:.4} attempts for each call, {worst:.4} in the worst 10 s"
        );
        assert!(all <= 1.10, "{all} with {success_percent} % of success, seed {seed}");
        // A window here may take in a bucket more than the budget's.
        assert!(worst <= 1.12, "{worst} with {success_percent} % of success, seed {seed}");
        if success_percent == 0 {
            assert!(all <= 1.0 + 35.0 / 6_000.0 + 1e-9, "35 retries for each client: {all}");
        }
    }
}

/// A backend that loses its connection each second, with all calls of the last 200 ms or second on it: in attempts for each of 100 calls
/// a second, over a minute, where the others of a second are answered or none is.
fn lost(latency_ms: u64, answers: bool) -> f64 {
    let (policy, mut budget, mut rides) =
        (RetryPolicy::default(), Budget::new(BudgetPolicy::default()), Rides::default());
    let mut random = Random::new(latency_ms);
    let mut due = BTreeMap::new();
    for call in 0..6_000_u64 {
        due.insert((call * 10_000, call), Attempts::new(policy, true, None));
    }
    let mut sent = 0;
    // What ends when: with its connection, or with an answer.
    let mut open: BTreeMap<(u64, u64), (Attempts, bool)> = BTreeMap::new();
    loop {
        let begins = due.first_key_value().map(|(key, _)| *key);
        let ends = open.first_key_value().map(|(key, _)| *key);
        match (begins, ends) {
            (Some(begins), ends) if ends.is_none_or(|ends| begins <= ends) => {
                let Some(((now, call), mut attempts)) = due.pop_first() else { continue };
                attempts.begin(micros(now), &mut budget);
                sent += 1;
                let lost_at = (now / 1_000_000 + 1) * 1_000_000;
                let answered_at = now + latency_ms * 1_000;
                let is_lost = !answers || answered_at >= lost_at;
                open.insert((if is_lost { lost_at } else { answered_at }, call), (attempts, is_lost));
            }
            (_, Some(_)) => {
                let Some(((now, call), (mut attempts, is_lost))) = open.pop_first() else { continue };
                if !is_lost {
                    attempts.succeeded(&mut budget);
                    continue;
                }
                let (at, connection) = (micros(now), now / 1_000_000);
                let mut failure =
                    Failure::new(&Status::from_reason(Reason::CONNECTION_LOST, ""), Seen::Perhaps);
                failure.extra = (attempts.begun() == 1).then(|| rides.extra(connection, at));
                let verdict = attempts.failed(&failure, at, &mut budget, &mut random);
                if let Verdict::Retry { at: again, .. } = verdict {
                    if failure.extra == Some(Extra::Lost) {
                        rides.paid(connection, at);
                    }
                    due.insert((again.as_micros(), call), attempts);
                }
            }
            _ => return f64::from(sent) / 6_000.0,
        }
    }
}

#[test]
fn one_charge_for_a_lost_connection_does_not_make_an_outage_worse() {
    for (latency_ms, answers) in [(1_000, false), (1_000, true), (200, true), (50, true)] {
        let all = lost(latency_ms, answers);
        println!("{latency_ms} ms, others answered: {answers}: {all:.4} attempts for each call");
        assert!(all <= 1.10, "{all} with {latency_ms} ms");
    }
}

#[test]
fn all_calls_of_a_lost_connection_go_with_one_charge_once_in_half_a_minute() {
    let (mut budget, mut rides) = (Budget::new(BudgetPolicy::default()), Rides::default());
    let mut lose = |connection: u64, now: Time| {
        let before = budget.tokens();
        let take = |_: &u32| {
            let extra = rides.extra(connection, now);
            let cost = budget.take(extra, now);
            if cost.is_some() && extra == Extra::Lost {
                rides.paid(connection, now);
            }
            cost.is_some()
        };
        ((0..1_000).filter(take).count(), before - budget.tokens())
    };
    assert_eq!(lose(1, micros(0)), (1_000, 14));
    // The window is full of them, so that nobody else is tried again for ten seconds; nor is a second connection so soon.
    assert_eq!(lose(2, micros(9_000_000)), (0, 0));
    assert_eq!(lose(3, micros(29_000_000)), (34, 34 * 14));
    assert_eq!(lose(4, micros(30_000_000)), (0, 0), "the bucket is empty");
}

/// One of three backends is dead, and nothing is retried: how many of the calls of each second fail, at 300 calls a second.
#[test]
fn one_dead_backend_of_three_costs_less_than_a_hundredth_of_the_calls_after_two_seconds() {
    for seed in 1..=5 {
        let mut random = Random::new(seed);
        let mut breakers = [(); 3].map(|()| Breaker::new(BreakerPolicy::default()));
        let mut balancer = Balancer::new(BalanceConfig::default());
        let mut backends = [BackendState::default(); 3];
        balancer.update(&backends);
        let mut back_at = None;
        let mut failed = [0_u32; 60];
        for call in 0..18_000_u64 {
            let now = micros(call * 1_000_000 / 300);
            if back_at.is_some_and(|at| now >= at) {
                backends[1].ready = true;
                balancer.update(&backends);
                back_at = None;
            }
            let backend = balancer.pick(&[], |_| 0, &mut random).expect("one") as usize;
            let (permit, _) = breakers[backend].acquire(now);
            let outcome = if backend == 1 { CallOutcome::Failure } else { CallOutcome::Success };
            failed[(call / 300) as usize] += u32::from(backend == 1);
            let edge =
                permit.ok().and_then(|permit| breakers[backend].done(permit, outcome, Duration::ZERO, now));
            if edge.is_some_and(|edge| edge.to == BreakerState::Open) {
                backends[backend].ready = false;
                balancer.update(&backends);
                back_at = breakers[backend].acquire(now).0.expect_err("open").until;
            }
        }
        let rest: u32 = failed[2..].iter().sum();
        println!("seed {seed}: {} failed in 2 s, {rest} of 17,400 in the next 58 s", failed[0] + failed[1]);
        assert!(rest * 100 < 17_400, "{failed:?}, seed {seed}");
        assert!(failed[2..].iter().all(|failed| *failed < 3), "{failed:?}, seed {seed}");
    }
}

/// Numbers beyond what floats hold are text.
fn texts(numbers: impl IntoIterator<Item = u64>) -> Value {
    numbers.into_iter().map(|number| json!(number.to_string())).collect()
}

fn vectors() -> Value {
    let seeds = [0, 1, 1_234_567, u64::MAX].map(|seed| {
        let (mut random, mut bounded) = (Random::new(seed), Random::new(seed));
        json!({
            "seed": seed.to_string(),
            "draws": texts((0..5).map(|_| random.draw())),
            "below_100": (0..10).map(|_| bounded.below(100)).collect::<Vec<_>>(),
        })
    });
    let backoff = [(25, 2_000, 1_000), (100, 1_500, 300)].map(|(base_ms, thousandths, cap_ms)| {
        let mut random = Random::new(7);
        let (base, cap) = (Duration::from_millis(base_ms), Duration::from_millis(cap_ms));
        let backoff = Backoff { base, multiplier_thousandths: thousandths, cap };
        json!({
            "seed": "7", "base_ms": base_ms, "multiplier": f64::from(thousandths) / 1_000.0, "cap_ms": cap_ms,
            "waits_us": (0..8).map(|n| backoff.wait(n, &mut random).as_micros() as u64).collect::<Vec<_>>(),
        })
    });
    let mut random = Random::new(7);
    let mut reconnect = Reconnect::new(ReconnectPolicy::default());
    let dials: Vec<u64> = (0..10)
        .map(|_| {
            reconnect.dialling(micros(0));
            reconnect.failed(micros(0), &mut random).as_micros()
        })
        .collect();
    let mut random = Random::new(7);
    let mut throttle = Throttle::new(ThrottlePolicy { min_calls: 0, ..ThrottlePolicy::default() });
    let passes: String = (0..200_u64)
        .map(|call| {
            let now = micros(call * 10_000);
            let passed = throttle.admit(now, &mut random);
            match (passed, call % 7) {
                (false, _) => {}
                (true, 0) => throttle.accepted(now),
                (true, _) => throttle.refused(now),
            }
            if passed { '1' } else { '0' }
        })
        .collect();
    let picks = [BalancePolicy::RoundRobin, BalancePolicy::LeastRequest].map(|policy| {
        let mut random = Random::new(7);
        let mut balancer = Balancer::new(BalanceConfig { policy, ..BalanceConfig::default() });
        let backend = |level, ready| BackendState { level, ready, ..BackendState::default() };
        balancer.update(&[
            backend(0, true),
            backend(0, true),
            backend(0, false),
            backend(0, false),
            backend(1, true),
            backend(1, true),
        ]);
        let mut busy = [0_u32; 6];
        let picks: Vec<u32> = (0..30)
            .filter_map(|pick| {
                let tried: &[u32] = if pick % 5 == 4 { &[0] } else { &[] };
                let place = balancer.pick(tried, |place| busy[place as usize], &mut random)?;
                busy[place as usize] += 1;
                Some(place)
            })
            .collect();
        json!({ "policy": format!("{policy:?}"), "seed": "7", "picks": picks })
    });
    json!({
        "random": seeds, "backoff": backoff,
        "reconnect": { "seed": "7", "waits_us": dials },
        "throttle": { "seed": "7", "every_us": 10_000, "accepted": "every 7th from the first, if it passes; the others are refused", "passes": passes },
        "balance": { "backends": "levels 0 0 0 0 1 1, the third and the fourth not ready; each pick stays in flight; backend 0 was tried before every fifth pick", "picks": picks },
    })
}

#[test]
fn the_vectors_are_what_the_policies_give() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/policies.json");
    let expected = vectors();
    if std::env::var_os("VALKYRIE_BLESS").is_some() {
        let parts = expected.as_object().expect("an object");
        let lines: Vec<_> = parts.iter().map(|(name, part)| format!("{name:?}: {part}")).collect();
        std::fs::write(path, format!("{{\n{}\n}}\n", lines.join(",\n"))).expect("written");
    }
    let text = std::fs::read_to_string(path).expect("tests/vectors/policies.json");
    let found: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(found, expected, "VALKYRIE_BLESS=1 writes it again");
}
