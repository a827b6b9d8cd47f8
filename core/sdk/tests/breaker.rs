//! The breaker behind a lock, as clients have it: under every order in which a few threads can run (loom), and among a thousand
//! threads.

use std::{
    sync::{Barrier, Mutex, mpsc},
    thread,
    time::Duration,
};

use valkyrie_sdk::{
    Time,
    policy::{Breaker, BreakerPolicy, BreakerState, CallOutcome, Edge, Permit},
};

use BreakerState::{Closed, HalfOpen, Isolated, Open};

fn at(ms: u64) -> Time {
    Time::from_micros(ms * 1_000)
}

/// One that opens with the first failure and lets two trial calls through.
fn small() -> Breaker {
    Breaker::new(BreakerPolicy { min_calls: 1, probes: 2, ..BreakerPolicy::default() })
}

fn end(breaker: &mut Breaker, permit: Permit, outcome: CallOutcome, now: Time) -> Option<Edge> {
    breaker.done(permit, outcome, Duration::ZERO, now)
}

fn legal(edge: Edge) -> bool {
    matches!(
        (edge.from, edge.to),
        (Closed | HalfOpen, Open) | (Open, HalfOpen) | (HalfOpen | Isolated, Closed) | (_, Isolated)
    )
}

/// Each edge begins where the one before it ended.
fn chained(edges: &[Edge], last: BreakerState) {
    let mut state = Closed;
    for edge in edges {
        assert!(edge.from == state && legal(*edge), "{edges:?}");
        state = edge.to;
    }
    assert_eq!(state, last, "{edges:?}");
}

struct Shared {
    breaker: Breaker,
    edges: Vec<Edge>,
    trials: u32,
}

impl Shared {
    fn acquire(&mut self, now: Time) -> Option<Permit> {
        let (permit, edge) = self.breaker.acquire(now);
        self.edges.extend(edge);
        let permit = permit.ok()?;
        self.trials += u32::from(self.breaker.state() == HalfOpen);
        Some(permit)
    }

    fn end(&mut self, permit: Permit, outcome: CallOutcome, now: Time) {
        self.edges.extend(end(&mut self.breaker, permit, outcome, now));
    }
}

/// A breaker that opened at 0, and the permit of a call that began before.
fn opened() -> (Shared, Permit) {
    let mut shared = Shared { breaker: small(), edges: Vec::new(), trials: 0 };
    let late = shared.acquire(at(0)).expect("closed");
    let first = shared.acquire(at(0)).expect("closed");
    shared.end(first, CallOutcome::Failure, at(0));
    assert_eq!(shared.breaker.state(), Open);
    (shared, late)
}

#[test]
fn exactly_two_trials_in_every_order_and_a_late_success_does_not_close_it() {
    loom::model(|| {
        let (shared, late) = opened();
        let shared = loom::sync::Arc::new(loom::sync::Mutex::new(shared));
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let shared = shared.clone();
                loom::thread::spawn(move || {
                    let permit = shared.lock().unwrap().acquire(at(5_000));
                    if let Some(permit) = permit {
                        shared.lock().unwrap().end(permit, CallOutcome::Success, at(5_001));
                    }
                })
            })
            .collect();
        shared.lock().unwrap().end(late, CallOutcome::Success, at(5_000));
        // A third caller finds no trial left, or the breaker closed.
        let permit = shared.lock().unwrap().acquire(at(5_000));
        if let Some(permit) = permit {
            shared.lock().unwrap().end(permit, CallOutcome::Success, at(5_001));
        }
        for thread in threads {
            thread.join().unwrap();
        }
        let shared = shared.lock().unwrap();
        assert_eq!(shared.trials, 2);
        chained(&shared.edges, Closed);
    });
}

#[test]
fn cancelled_and_failed_trials_in_every_order() {
    loom::model(|| {
        let (shared, late) = opened();
        let shared = loom::sync::Arc::new(loom::sync::Mutex::new(shared));
        let spawn = |work: fn(&mut Shared, Permit)| {
            let shared = shared.clone();
            loom::thread::spawn(move || {
                let permit = shared.lock().unwrap().acquire(at(5_000));
                if let Some(permit) = permit {
                    work(&mut shared.lock().unwrap(), permit);
                }
            })
        };
        let cancels = spawn(|shared, permit| {
            shared.breaker.cancelled(permit);
            shared.trials -= u32::from(shared.breaker.state() == HalfOpen);
        });
        let fails = spawn(|shared, permit| shared.end(permit, CallOutcome::Failure, at(5_001)));
        let trial = shared.lock().unwrap().acquire(at(5_000));
        shared.lock().unwrap().end(late, CallOutcome::Failure, at(5_000));
        if let Some(trial) = trial {
            shared.lock().unwrap().end(trial, CallOutcome::Success, at(5_001));
        }
        cancels.join().unwrap();
        fails.join().unwrap();
        let mut shared = shared.lock().unwrap();
        let state = shared.breaker.state();
        chained(&shared.edges, state);
        // The one that failed opened it, unless two others had taken its place.
        assert!(matches!(state, Open | HalfOpen), "{state:?}");
        let refused = shared.acquire(at(5_002)).is_none();
        assert!(refused || state == HalfOpen);
    });
}

#[test]
fn a_hand_that_isolates_wins_in_every_order() {
    loom::model(|| {
        let (shared, _) = opened();
        let shared = loom::sync::Arc::new(loom::sync::Mutex::new(shared));
        let calls = loom::thread::spawn({
            let shared = shared.clone();
            move || {
                let permit = shared.lock().unwrap().acquire(at(5_000));
                if let Some(permit) = permit {
                    shared.lock().unwrap().end(permit, CallOutcome::Success, at(5_001));
                }
            }
        });
        {
            let mut shared = shared.lock().unwrap();
            let edge = shared.breaker.isolate(at(5_000));
            shared.edges.extend(edge);
        }
        calls.join().unwrap();
        let mut shared = shared.lock().unwrap();
        assert!(shared.acquire(at(1 << 30)).is_none());
        let edge = shared.breaker.restore(at(1 << 30));
        shared.edges.extend(edge);
        chained(&shared.edges, Closed);
    });
}

#[test]
fn exactly_five_trials_among_a_thousand_threads() {
    const CALLERS: usize = 1_000;
    let mut breaker = Breaker::new(BreakerPolicy::default());
    let late = breaker.acquire(at(0)).0.expect("closed");
    while breaker.state() == Closed {
        let permit = breaker.acquire(at(0)).0.expect("closed");
        end(&mut breaker, permit, CallOutcome::Failure, at(0));
    }
    let (breaker, barrier) = (Mutex::new(breaker), Barrier::new(CALLERS));
    let (permits, came) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..CALLERS {
            let (breaker, barrier, permits) = (&breaker, &barrier, permits.clone());
            let caller = move || {
                barrier.wait();
                let (permit, edge) = breaker.lock().expect("no panic").acquire(at(5_000));
                permits.send((permit.ok(), edge)).expect("somebody listens");
            };
            thread::Builder::new().stack_size(128 << 10).spawn_scoped(scope, caller).expect("a thread");
        }
    });
    drop(permits);
    let (permits, edges): (Vec<_>, Vec<_>) = came.iter().unzip();
    let trials: Vec<_> = permits.into_iter().flatten().collect();
    let edges: Vec<_> = edges.into_iter().flatten().collect();
    assert_eq!(trials.len(), 5);
    assert_eq!(edges, [Edge { from: Open, to: HalfOpen, at: at(5_000) }]);

    let mut breaker = breaker.into_inner().expect("no panic");
    assert_eq!(end(&mut breaker, late, CallOutcome::Success, at(5_001)), None, "an era that is over");
    let ends: Vec<_> = trials
        .into_iter()
        .filter_map(|trial| end(&mut breaker, trial, CallOutcome::Success, at(5_002)))
        .collect();
    assert_eq!(ends, [Edge { from: HalfOpen, to: Closed, at: at(5_002) }]);
}
