//! What was accepted and what completed: an operation stands in the [`Ledger`] until its completion stands in the
//! [`Line`] of its queue, and goes from the one to the other once, whatever is cancelled, closed or forked meanwhile.
//!
//! Nothing in here is of this crate but `sync`, the primitives: `tests/models.rs` puts a model checker's in their place.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasherDefault, Hasher},
    sync::{Arc, PoisonError, Weak},
    task::Waker,
    time::Instant,
};

use super::sync::{
    AtomicBool, AtomicU64, Condvar, Mutex, MutexGuard,
    Ordering::{Acquire, Relaxed, Release},
};

/// When an operation without a deadline is due.
pub(crate) const NEVER: u64 = u64::MAX;

/// How whoever drains a line learns that it is not empty.
pub(crate) trait Signal {
    /// Begins to show it. The line is locked.
    fn raise(&self);
    /// Ends to show it. The line is locked.
    fn lower(&self);
    /// Tells it once. Nothing is locked.
    fn wake(&self);
}

/// What waits to be drained.
pub(crate) struct Line<T, S> {
    items: Mutex<Items<T>>,
    filled: Condvar,
    signal: S,
    closed: AtomicBool,
    /// No operation that is to complete here is due before. Changed with the ledger locked.
    due: AtomicU64,
}

pub(crate) struct Items<T> {
    waiting: VecDeque<T>,
    /// Between `raise` and `lower`.
    raised: bool,
    /// Threads in [`Line::wait`]: telling a condition variable that nobody waits for costs a system call.
    blocked: usize,
    /// Of the thread that waits by other means than [`Line::wait`].
    attending: Option<Waker>,
}

impl<T> Items<T> {
    fn rouse(&self) -> bool {
        if let Some(attending) = &self.attending {
            attending.wake_by_ref();
        }
        self.attending.is_some()
    }
}

impl<T, S: Signal> Line<T, S> {
    pub(crate) fn new(signal: S) -> Self {
        Self {
            items: Mutex::new(Items { waiting: VecDeque::new(), raised: false, blocked: 0, attending: None }),
            filled: Condvar::new(),
            signal,
            closed: AtomicBool::new(false),
            due: AtomicU64::new(NEVER),
        }
    }

    /// The lock, which a fork holds.
    pub(crate) fn items(&self) -> &Mutex<Items<T>> {
        &self.items
    }

    fn lock(&self) -> MutexGuard<'_, Items<T>> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn signal(&self) -> &S {
        &self.signal
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Moves up to `max` items to the end of `out`; how many.
    pub(crate) fn drain(&self, out: &mut Vec<T>, max: usize) -> usize {
        let items = &mut *self.lock();
        let count = items.waiting.len().min(max);
        out.extend(items.waiting.drain(..count));
        if items.waiting.is_empty() && items.raised {
            // Under the lock, so that nothing can raise it between and be lost.
            self.signal.lower();
            items.raised = false;
        }
        count
    }

    /// Until [`Line::leave`], what comes wakes `waker` and raises no signal. `false` when another thread attends.
    pub(crate) fn attend(&self, waker: Waker) -> bool {
        let items = &mut *self.lock();
        let attends = items.attending.is_none() && !self.is_closed();
        if attends {
            items.attending = Some(waker);
        }
        attends
    }

    pub(crate) fn leave(&self) {
        let items = &mut *self.lock();
        items.attending = None;
        if !items.waiting.is_empty() && !items.raised {
            self.signal.raise();
            items.raised = true;
        }
    }

    /// Waits until something is there, at most until then; whether something is.
    pub(crate) fn wait(&self, until: Option<Instant>) -> bool {
        let mut items = self.lock();
        while items.waiting.is_empty() && !self.is_closed() {
            items.blocked += 1;
            items = match until {
                None => self.filled.wait(items).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        items.blocked -= 1;
                        return false;
                    }
                    self.filled.wait_timeout(items, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
            items.blocked -= 1;
        }
        !items.waiting.is_empty()
    }

    /// Whether an operation with a deadline was accepted.
    pub(crate) fn has_due(&self) -> bool {
        self.due.load(Relaxed) != NEVER
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Acquire)
    }

    /// What waits is dropped, and so is what comes. Idempotent.
    pub(crate) fn close(&self) {
        self.closed.store(true, Release);
        let dropped = {
            let items = &mut *self.lock();
            items.rouse();
            std::mem::take(&mut items.waiting)
        };
        self.filled.notify_all();
        drop(dropped);
    }

    /// Adds an item; whether [`Line::wake`] is to be called for it, once nothing is locked.
    #[must_use]
    pub(crate) fn put(&self, item: T) -> bool {
        let items = &mut *self.lock();
        if self.is_closed() {
            return false;
        }
        let first = items.waiting.is_empty();
        items.waiting.push_back(item);
        if first {
            if items.blocked > 0 {
                self.filled.notify_all();
            }
            // Whoever attends looks for itself.
            if !items.rouse() {
                self.signal.raise();
                items.raised = true;
            }
        }
        first
    }

    pub(crate) fn wake(&self) {
        self.signal.wake();
    }

    /// Changes the signal, which shows from then on whether something waits.
    pub(crate) fn change_signal(&self, change: impl FnOnce(&S)) {
        let items = &mut *self.lock();
        change(&self.signal);
        if !items.waiting.is_empty() {
            self.signal.raise();
            items.raised = true;
        }
    }

    /// In a child of a fork, which has none of the threads that attend: makes the signal anew with `renew` and raises it.
    #[cfg(unix)]
    pub(crate) fn forked(&self, renew: impl FnOnce(&S)) {
        let items = &mut *self.lock();
        std::mem::forget(items.attending.take());
        renew(&self.signal);
        self.signal.raise();
        items.raised = true;
    }
}

/// What is kept by the number of an operation. Numbers go up by one and are ours: nobody gains by choosing them.
pub type ByOperation<T> = HashMap<u64, T, BuildHasherDefault<OperationHasher>>;

/// Of [`ByOperation`].
#[derive(Debug, Default)]
pub struct OperationHasher(u64);

impl Hasher for OperationHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(self.0 ^ u64::from(*byte));
        }
    }

    fn write_u64(&mut self, operation: u64) {
        self.0 = operation.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Where operations complete.
pub(crate) trait Outlet {
    type Item;
    type Signal: Signal;
    fn line(&self) -> &Line<Self::Item, Self::Signal>;
}

/// An operation that was accepted and is not complete.
pub(crate) struct Pending<Q, W> {
    made_in: u64,
    queue: Weak<Q>,
    work: W,
    /// When it is overdue: its deadline, and then some. Microseconds from any origin, or [`NEVER`].
    due: u64,
}

/// Operations by number: exactly those that are not complete.
pub(crate) struct Ledger<Q, W> {
    // A static holds these, and the model checker's are made at run time only: so there is no `new`.
    pub(crate) pending: Mutex<Option<ByOperation<Pending<Q, W>>>>,
    pub(crate) next: AtomicU64,
    /// The fork generation in which [`Ledger::settle`] was done.
    pub(crate) settled: AtomicU64,
}

impl<Q: Outlet, W> Ledger<Q, W> {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Option<ByOperation<Pending<Q, W>>>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Accepts an operation and numbers it; `None` when its queue is closed.
    pub(crate) fn accept(&self, queue: &Arc<Q>, made_in: u64, due: u64, work: W) -> Option<u64> {
        let op = self.next.fetch_add(1, Relaxed);
        let mut pending = self.lock();
        // Under the lock: whoever closes the queue finds the operation afterwards, or has closed it before.
        if queue.line().is_closed() {
            return None;
        }
        queue.line().due.fetch_min(due, Relaxed);
        let queue = Arc::downgrade(queue);
        pending.get_or_insert_default().insert(op, Pending { made_in, queue, work, due });
        Some(op)
    }

    /// Completes an operation and gives its work. The first outcome counts; a later one is given back.
    pub(crate) fn complete(&self, op: u64, item: Q::Item) -> Result<W, Q::Item> {
        let (work, queue, wake) = {
            let mut all = self.lock();
            let Some(Pending { queue, work, .. }) = all.as_mut().and_then(|all| all.remove(&op)) else {
                return Err(item);
            };
            // Before the lock is released: a fork between would lose the completion to the child.
            let queue = queue.upgrade();
            let wake = queue.as_ref().is_some_and(|queue| queue.line().put(item));
            (work, queue, wake)
        };
        if let Some(queue) = queue.filter(|_| wake) {
            queue.line().wake();
        }
        Ok(work)
    }

    /// Gives an operation its work, once that is known; gives it back when the operation is complete.
    pub(crate) fn attach(&self, op: u64, work: W) -> Option<W> {
        match self.lock().as_mut().and_then(|all| all.get_mut(&op)) {
            Some(pending) => {
                pending.work = work;
                None
            }
            None => Some(work),
        }
    }

    /// The operations of `queue` that are overdue: each is told once, for the caller to complete. One load where none can
    /// be.
    pub(crate) fn overdue(&self, queue: &Q, now: u64) -> Vec<u64> {
        if queue.line().due.load(Relaxed) > now {
            return Vec::new();
        }
        let all = self.lock();
        let (mut late, mut next) = (Vec::new(), NEVER);
        for (op, pending) in all.iter().flatten() {
            if std::ptr::eq(pending.queue.as_ptr(), queue) {
                match pending.due <= now {
                    true => late.push(*op),
                    false => next = next.min(pending.due),
                }
            }
        }
        queue.line().due.store(next, Relaxed);
        late
    }

    /// The operations that complete in `queue`.
    pub(crate) fn of(&self, queue: &Q) -> Vec<u64> {
        let all = self.lock();
        let of = all.iter().flatten().filter(|(_, pending)| std::ptr::eq(pending.queue.as_ptr(), queue));
        of.map(|(op, _)| *op).collect()
    }

    pub(crate) fn all(&self) -> Vec<u64> {
        self.lock().iter().flatten().map(|(op, _)| *op).collect()
    }

    pub(crate) fn count(&self, counts: impl Fn(&W) -> bool) -> usize {
        self.lock().iter().flatten().filter(|(_, pending)| counts(&pending.work)).count()
    }

    /// Completes with `item` what an earlier generation than `now` accepted, once; its work is left as it is.
    pub(crate) fn settle(&self, now: u64, item: impl Fn(u64) -> Q::Item) {
        if self.settled.load(Acquire) == now {
            return;
        }
        let mut woken = Vec::new();
        {
            let mut all = self.lock();
            let lost = all.iter_mut().flat_map(|all| all.extract_if(|_, pending| pending.made_in != now));
            for (op, Pending { queue, work, .. }) in lost {
                // It hangs on the parent's connection and runtime.
                std::mem::forget(work);
                woken.extend(queue.upgrade().filter(|queue| queue.line().put(item(op))));
            }
            self.settled.store(now, Release);
        }
        for queue in woken {
            queue.line().wake();
        }
    }
}
