//! The ledger of operations and the line of completions under every order in which a few threads can run (loom): each
//! operation completes once, whoever drains hears of it, and nothing that was given up runs on.

/// What the ledger is made of, as the model checker wants it.
mod sync {
    pub(crate) use loom::sync::{
        Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    };
}
// The bridge uses all of it, and gives some of it to others.
#[allow(dead_code, unreachable_pub)]
#[path = "../src/ledger.rs"]
mod ledger;

use std::sync::Arc;

use ledger::{Ledger, Line, NEVER, Outlet, Signal};
use loom::{
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    thread,
};

/// A descriptor that is readable or not, and how often its host was woken.
#[derive(Default)]
struct Shown {
    raised: AtomicBool,
    wakes: AtomicUsize,
}

impl Signal for Shown {
    fn raise(&self) {
        self.raised.store(true, SeqCst);
    }

    fn lower(&self) {
        self.raised.store(false, SeqCst);
    }

    fn wake(&self) {
        self.wakes.fetch_add(1, SeqCst);
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
    Answer,
    Cancelled,
    Forked,
    Overdue,
}
use Outcome::*;

type Item = (u64, Outcome);

struct Queue(Line<Item, Shown>);

impl Outlet for Queue {
    type Item = Item;
    type Signal = Shown;

    fn line(&self) -> &Line<Item, Shown> {
        &self.0
    }
}

impl Queue {
    fn new() -> Arc<Self> {
        Arc::new(Self(Line::new(Shown::default())))
    }

    fn drain(&self) -> Vec<Item> {
        let mut out = Vec::new();
        self.0.drain(&mut out, usize::MAX);
        out
    }

    fn wakes(&self) -> usize {
        self.0.signal().wakes.load(SeqCst)
    }

    fn is_raised(&self) -> bool {
        self.0.signal().raised.load(SeqCst)
    }
}

/// What runs for an operation, and whether it was told to stop.
#[derive(Clone, Default)]
struct Work(Option<Arc<AtomicBool>>);

impl Work {
    fn new() -> (Self, Arc<AtomicBool>) {
        let stopped = Arc::new(AtomicBool::new(false));
        (Self(Some(stopped.clone())), stopped)
    }

    fn stop(self) {
        if let Some(stopped) = self.0 {
            stopped.store(true, SeqCst);
        }
    }
}

type Operations = Arc<Ledger<Queue, Work>>;

fn ledger() -> Operations {
    Arc::new(Ledger { pending: Mutex::new(None), next: AtomicU64::new(1), settled: AtomicU64::new(0) })
}

/// As the bridge gives an operation up.
fn cancel(ledger: &Operations, op: u64) {
    if let Ok(work) = ledger.complete(op, (op, Cancelled)) {
        work.stop();
    }
}

/// As the bridge ends what is overdue.
fn watch(ledger: &Operations, queue: &Arc<Queue>, now: u64) {
    for op in ledger.overdue(queue, now) {
        if let Ok(work) = ledger.complete(op, (op, Overdue)) {
            work.stop();
        }
    }
}

/// As the bridge closes a queue.
fn close(ledger: &Operations, queue: &Arc<Queue>) {
    queue.0.close();
    for op in ledger.of(queue) {
        cancel(ledger, op);
    }
}

/// Runs `work` beside the rest.
fn beside(ledger: &Operations, work: impl FnOnce(Operations) + 'static) -> thread::JoinHandle<()> {
    let ledger = ledger.clone();
    thread::spawn(move || work(ledger))
}

/// A token that is dropped completes too, so this is also how that meets a cancel.
#[test]
fn an_answer_and_a_cancel_at_once_complete_once() {
    loom::model(|| {
        let (ledger, queue) = (ledger(), Queue::new());
        let (work, stopped) = Work::new();
        let op = ledger.accept(&queue, 0, NEVER, work).unwrap();
        let answer = beside(&ledger, move |ledger| drop(ledger.complete(op, (op, Answer))));
        cancel(&ledger, op);
        answer.join().unwrap();
        let got = queue.drain();
        assert!(got == [(op, Answer)] || got == [(op, Cancelled)], "{got:?}");
        assert_eq!(stopped.load(SeqCst), got == [(op, Cancelled)]);
        assert_eq!((ledger.count(|_| true), queue.wakes()), (0, 1));
    });
}

#[test]
fn a_thread_that_waits_gets_every_completion() {
    loom::model(|| {
        let (ledger, queue) = (ledger(), Queue::new());
        let ops = [0, 1].map(|_| ledger.accept(&queue, 0, NEVER, Work::default()).unwrap());
        let other = beside(&ledger, move |ledger| {
            for op in ops {
                assert!(ledger.complete(op, (op, Answer)).is_ok());
            }
        });
        let mut got = Vec::new();
        while got.len() < 2 {
            assert!(queue.0.wait(None));
            got.extend(queue.drain());
        }
        other.join().unwrap();
        assert_eq!(got, ops.map(|op| (op, Answer)));
        assert!(!queue.is_raised());
    });
}

#[test]
fn a_line_is_shown_and_woken_once_each_time_it_fills() {
    loom::model(|| {
        let (ledger, queue) = (ledger(), Queue::new());
        let ops = [0, 1].map(|_| ledger.accept(&queue, 0, NEVER, Work::default()).unwrap());
        let others = ops.map(|op| beside(&ledger, move |ledger| drop(ledger.complete(op, (op, Answer)))));
        let taken = queue.drain().len();
        for other in others {
            other.join().unwrap();
        }
        // What was taken between filled the line once, and what came after it once more.
        let left = 2 - taken;
        assert_eq!((queue.0.len(), queue.is_raised()), (left, left > 0));
        assert_eq!(queue.wakes(), usize::from(taken > 0) + usize::from(left > 0));
    });
}

#[test]
fn what_is_submitted_while_its_queue_closes_does_not_run_on() {
    loom::model(|| {
        let (ledger, queue) = (ledger(), Queue::new());
        let (work, stopped) = Work::new();
        let closes = beside(&ledger, {
            let queue = queue.clone();
            move |ledger| close(&ledger, &queue)
        });
        // As a unary call: what stops it is known once it was sent.
        let accepted = ledger.accept(&queue, 0, NEVER, Work::default());
        if let Some(op) = accepted
            && let Some(over) = ledger.attach(op, work)
        {
            over.stop();
        }
        closes.join().unwrap();
        assert_eq!(stopped.load(SeqCst), accepted.is_some());
        assert_eq!((ledger.count(|_| true), queue.0.len()), (0, 0));
    });
}

#[test]
fn a_queue_that_closes_keeps_no_completion_and_wakes_who_waits() {
    loom::model(|| {
        let (ledger, queue) = (ledger(), Queue::new());
        let op = ledger.accept(&queue, 0, NEVER, Work::default()).unwrap();
        let answer = beside(&ledger, move |ledger| drop(ledger.complete(op, (op, Answer))));
        let closes = beside(&ledger, {
            let queue = queue.clone();
            move |ledger| close(&ledger, &queue)
        });
        queue.0.wait(None);
        answer.join().unwrap();
        closes.join().unwrap();
        assert_eq!((ledger.count(|_| true), queue.0.len()), (0, 0));
    });
}

/// A fork copies the memory while it holds both locks.
#[test]
fn a_fork_finds_an_operation_in_one_place() {
    loom::model(|| {
        let (ledger, queue) = (ledger(), Queue::new());
        let op = ledger.accept(&queue, 0, NEVER, Work::default()).unwrap();
        let answer = beside(&ledger, move |ledger| drop(ledger.complete(op, (op, Answer))));
        let pending = ledger.lock();
        let copied = (pending.as_ref().is_some_and(|all| all.contains_key(&op)), queue.0.len());
        drop(pending);
        answer.join().unwrap();
        assert!(copied == (true, 0) || copied == (false, 1), "{copied:?}");
    });
}

#[test]
fn a_child_fails_what_the_fork_cut_off_once_and_keeps_what_is_its_own() {
    loom::model(|| {
        let (ledger, queue) = (ledger(), Queue::new());
        let (work, stopped) = Work::new();
        let parents = ledger.accept(&queue, 0, NEVER, work).unwrap();
        // Two threads of the child come in for the first time.
        let other = beside(&ledger, {
            let queue = queue.clone();
            move |ledger| {
                ledger.settle(1, |op| (op, Forked));
                assert!(!ledger.of(&queue).contains(&parents));
                cancel(&ledger, parents);
            }
        });
        ledger.settle(1, |op| (op, Forked));
        assert!(!ledger.of(&queue).contains(&parents));
        let own = ledger.accept(&queue, 1, NEVER, Work::default()).unwrap();
        assert!(ledger.complete(own, (own, Answer)).is_ok());
        other.join().unwrap();
        assert_eq!(queue.drain(), [(parents, Forked), (own, Answer)]);
        assert!(!stopped.load(SeqCst), "the child reached into what belongs to the parent");
    });
}

#[test]
fn what_is_overdue_completes_once_whoever_ends_it() {
    loom::model(|| {
        let (ledger, queue) = (ledger(), Queue::new());
        let (work, stopped) = Work::new();
        let op = ledger.accept(&queue, 0, 5, work).unwrap();
        let answer = thread::spawn({
            let ledger = ledger.clone();
            move || ledger.complete(op, (op, Answer)).is_ok()
        });
        watch(&ledger, &queue, 4);
        watch(&ledger, &queue, 5);
        let answered = answer.join().unwrap();
        let outcome = if answered { Answer } else { Overdue };
        assert_eq!((queue.drain(), stopped.load(SeqCst)), (vec![(op, outcome)], !answered));
        assert_eq!(ledger.count(|_| true), 0);
    });
}

#[test]
fn a_deadline_that_comes_while_others_are_looked_at_is_seen() {
    loom::model(|| {
        let (ledger, queue) = (ledger(), Queue::new());
        let early = ledger.accept(&queue, 0, 5, Work::default()).unwrap();
        let submit = thread::spawn({
            let (ledger, queue) = (ledger.clone(), queue.clone());
            move || ledger.accept(&queue, 0, 7, Work::default()).unwrap()
        });
        watch(&ledger, &queue, 6);
        let late = submit.join().unwrap();
        assert_eq!(queue.drain(), [(early, Overdue)]);
        watch(&ledger, &queue, 7);
        assert_eq!(queue.drain(), [(late, Overdue)]);
    });
}
