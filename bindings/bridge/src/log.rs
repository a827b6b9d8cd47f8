//! Records of what happens to connections, on their way to the host's own log. A native thread only ever puts one in a
//! bounded ring; the host takes them on its own thread, and is told by its ordinary queue that there are some.

use std::{
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicU8, Ordering::Relaxed},
    },
    time::Duration,
};

use valkyrie_sdk::{Level, Log, Reason, Record, Records, Status};

use crate::{
    Queue, Value,
    fork::{Held, OwnedGuard},
    handle::lock,
    operation::{Token, Work},
};

/// One host that listens: a ring of the last 1,024 records that it has not taken.
#[derive(Debug)]
pub struct Listener {
    /// The number of the least grave level that is wanted; 0 is none.
    level: AtomicU8,
    filled: AtomicBool,
    ring: Mutex<Ring>,
}

#[derive(Debug, Default)]
struct Ring {
    records: Records,
    /// Completes with the next record.
    waiting: Option<Arc<Token>>,
}

static LISTENERS: Mutex<Vec<Weak<Listener>>> = Mutex::new(Vec::new());
/// What the most curious of them wants: nothing is made that nobody wants, and that costs this to know.
static LEVEL: AtomicU8 = AtomicU8::new(0);

impl Listener {
    /// A listener that wants nothing yet.
    pub fn new() -> Arc<Self> {
        let new = Arc::new(Self {
            level: AtomicU8::new(0),
            filled: AtomicBool::new(false),
            ring: Mutex::default(),
        });
        let mut all = lock(&LISTENERS);
        all.retain(|listener| listener.strong_count() > 0);
        all.push(Arc::downgrade(&new));
        new
    }

    /// The least grave level that is wanted from now on. `None`: nothing; what was not taken is forgotten, and an
    /// operation that waits completes with CANCELLED. To be said before the listener is let go.
    pub fn set_level(&self, level: Option<Level>) {
        self.level.store(level.map_or(0, Level::number), Relaxed);
        let alive: Vec<_> = {
            let all = lock(&LISTENERS);
            let alive: Vec<_> = all.iter().filter_map(Weak::upgrade).collect();
            LEVEL.store(alive.iter().map(|one| one.level.load(Relaxed)).max().unwrap_or(0), Relaxed);
            alive
        };
        // With nothing locked: it may be the last of one of them.
        drop(alive);
        if level.is_none() {
            let mut ring = lock(&self.ring);
            ring.records.clear();
            self.filled.store(false, Relaxed);
            let waiting = ring.waiting.take();
            drop(ring);
            give_up(waiting, "nothing is logged any more");
        }
    }

    /// Records that wait, the oldest first. One load when there are none.
    pub fn take(&self) -> Vec<Record> {
        if !self.filled.load(Relaxed) {
            return Vec::new();
        }
        let mut ring = lock(&self.ring);
        self.filled.store(false, Relaxed);
        ring.records.take(usize::MAX)
    }

    /// Accepts an operation that completes with 1 to `max` records once there are some. It is not counted by
    /// [`in_flight`](crate::in_flight). One at a time: one that still waits completes with CANCELLED.
    ///
    /// # Errors
    /// CLIENT_CLOSED for a queue that is closed.
    pub fn next(&self, queue: &Arc<Queue>, max: usize) -> Result<u64, Status> {
        let token = Token::new(queue, Work::Nothing, Duration::MAX)?;
        let op = token.op;
        let mut ring = lock(&self.ring);
        let records = ring.records.take(max.max(1));
        self.filled.store(!ring.records.is_empty(), Relaxed);
        if records.is_empty() {
            let before = ring.waiting.replace(token);
            drop(ring);
            give_up(before, "another operation waits for records now");
        } else {
            drop(ring);
            self.complete(&token, records);
        }
        Ok(op)
    }

    /// What the operation does not take, because it was cancelled, stays.
    fn complete(&self, token: &Token, records: Vec<Record>) {
        if let Some(Ok(Value::Logs(records))) = token.complete(Ok(Value::Logs(records))) {
            let mut ring = lock(&self.ring);
            records.into_iter().for_each(|record| ring.records.push(record));
            self.filled.store(true, Relaxed);
        }
    }

    fn push(&self, record: Record) {
        let mut ring = lock(&self.ring);
        match ring.waiting.take() {
            Some(token) => {
                drop(ring);
                self.complete(&token, vec![record]);
            }
            None => {
                ring.records.push(record);
                self.filled.store(true, Relaxed);
            }
        }
    }
}

fn give_up(waiting: Option<Arc<Token>>, message: &'static str) {
    if let Some(token) = waiting {
        token.complete(Err(Status::from_reason(Reason::CANCELLED, message)));
    }
}

/// What every client of the bridge logs to.
pub(crate) struct Logs;

impl Log for Logs {
    fn enabled(&self, level: Level) -> bool {
        level.number() <= LEVEL.load(Relaxed)
    }

    fn log(&self, record: Record) {
        let listeners: Vec<_> = lock(&LISTENERS).iter().filter_map(Weak::upgrade).collect();
        for listener in listeners {
            if record.level.number() <= listener.level.load(Relaxed) {
                listener.push(record.clone());
            }
        }
    }
}

pub(crate) fn hold(held: &mut Held) {
    let listeners = lock(&LISTENERS);
    let alive: Vec<_> = listeners.iter().filter_map(Weak::upgrade).collect();
    held.push(Box::new(listeners));
    for listener in alive {
        held.push(Box::new(OwnedGuard::lock(listener, |listener| &listener.ring)));
    }
}

/// In a child: what happened to the parent's connections is the parent's to say.
#[cfg(unix)]
pub(crate) fn forget() {
    for listener in lock(&LISTENERS).iter().filter_map(Weak::upgrade) {
        lock(&listener.ring).records.clear();
        listener.filled.store(false, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Completion, cancel};

    fn log(number: usize) {
        Logs.log(Record::new(Level::Warn, "test", number.to_string()));
    }

    fn drained(queue: &Queue) -> Vec<Completion> {
        let mut out = Vec::new();
        queue.drain(&mut out, usize::MAX);
        out
    }

    fn messages(outcome: Result<Value, Status>) -> Vec<String> {
        let Ok(Value::Logs(records)) = outcome else { panic!("no records") };
        records.into_iter().map(|record| record.message).collect()
    }

    // One test: what is wanted is the process's.
    #[test]
    fn records_come_by_the_queue_in_batches_and_stay_bounded() {
        let queue = Queue::blocking();
        let listener = Listener::new();
        assert!(!Logs.enabled(Level::Error));
        listener.set_level(Some(Level::Warn));
        assert!(Logs.enabled(Level::Warn) && !Logs.enabled(Level::Info));

        // The operation that waits takes the first record.
        let op = listener.next(&queue, 64).unwrap();
        (0..100_000).for_each(log);
        let first = drained(&queue);
        assert_eq!((first.len(), first[0].op), (1, op));
        assert_eq!(messages(first.into_iter().next().unwrap().outcome), ["0"]);
        // The next has what waits.
        listener.next(&queue, 64).unwrap();
        let batch = messages(drained(&queue).pop().unwrap().outcome);
        assert_eq!(batch.len(), 64);
        assert_eq!(batch[0], format!("{} records were dropped: nobody took them", 99_999 - Records::MAX));
        assert_eq!(batch[1], (100_000 - Records::MAX).to_string());
        assert_eq!(listener.take().len(), Records::MAX - 63);
        assert!(listener.take().is_empty());

        // An operation that was given up takes nothing.
        let op = listener.next(&queue, 64).unwrap();
        cancel(op);
        assert_eq!(drained(&queue)[0].outcome.as_ref().unwrap_err().reason(), Reason::CANCELLED);
        log(7);
        assert_eq!(listener.take()[0].message, "7");
        // So does one of a queue that is closed.
        let closed = Queue::blocking();
        listener.next(&closed, 64).unwrap();
        closed.close();
        log(8);
        assert!(drained(&closed).is_empty());
        assert!(listener.next(&closed, 1).is_err());
        assert_eq!(listener.take()[0].message, "8");
        // One at a time.
        let first = listener.next(&queue, 1).unwrap();
        let second = listener.next(&queue, 1).unwrap();
        let ended = drained(&queue);
        assert_eq!((ended.len(), ended[0].op), (1, first));
        log(9);
        let ended = drained(&queue);
        assert_eq!((ended.len(), ended[0].op), (1, second));

        log(10);
        listener.set_level(None);
        assert!(!Logs.enabled(Level::Error) && listener.take().is_empty());
        // Nor does anybody wait for what will not come.
        listener.set_level(Some(Level::Debug));
        listener.next(&queue, 1).unwrap();
        listener.set_level(None);
        assert_eq!(drained(&queue)[0].outcome.as_ref().unwrap_err().reason(), Reason::CANCELLED);
    }
}
