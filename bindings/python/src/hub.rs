//! One asyncio loop's queue, and the futures that wait on it.

use std::{
    cell::RefCell,
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use pyo3::{PyTraverseError, PyVisit, intern, prelude::*, sync::PyOnceLock};
use valkyrie_bridge::{Completion, Queue, Status, Value};

use crate::values::{take_back, value_out};

/// Completions taken in one crossing.
const BATCH: usize = 1024;

/// What the loop's reader calls. Nobody else holds it, so it goes when the loop is closed, and what is under way is then
/// cancelled.
#[pyclass(frozen, module = "valkyrie._native")]
struct Reader(Arc<Hub>);

pub(crate) struct Hub {
    queue: Arc<Queue>,
    event_loop: Py<PyAny>,
    create_future: Py<PyAny>,
    waiting: Mutex<HashMap<u64, Waiter>>,
}

struct Waiter {
    future: Py<PyAny>,
    whole: bool,
}

/// Every loop's, for a thread that runs a loop it did not run last.
static HUBS: Mutex<Vec<Weak<Hub>>> = Mutex::new(Vec::new());

thread_local! {
    /// The hub of the loop that this thread ran last.
    static LAST: RefCell<Weak<Hub>> = const { RefCell::new(Weak::new()) };
}

/// No Python object is made or dropped under these locks, so that no finaliser runs while one is held.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    /// The hub of the loop that runs on this thread; `None` without a loop.
    pub(crate) fn running(py: Python<'_>) -> PyResult<Option<Arc<Self>>> {
        static RUNNING: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let event_loop = RUNNING.import(py, "asyncio", "_get_running_loop")?.call0()?;
        if event_loop.is_none() {
            return Ok(None);
        }
        // The hub keeps its loop, so that no other can have the loop's address while the hub is there.
        let is_its = |hub: &Arc<Self>| hub.event_loop.is(&event_loop);
        if let Some(hub) = LAST.with_borrow(Weak::upgrade).filter(is_its) {
            return Ok(Some(hub));
        }
        let alive: Vec<_> = lock(&HUBS).iter().filter_map(Weak::upgrade).collect();
        let hub = match alive.into_iter().find(is_its) {
            Some(hub) => hub,
            None => Self::start(&event_loop)?,
        };
        LAST.set(Arc::downgrade(&hub));
        Ok(Some(hub))
    }

    fn start(event_loop: &Bound<'_, PyAny>) -> PyResult<Arc<Self>> {
        let py = event_loop.py();
        let hub = Arc::new(Self {
            queue: Queue::with_fd()?,
            event_loop: event_loop.clone().unbind(),
            create_future: event_loop.getattr(intern!(py, "create_future"))?.unbind(),
            waiting: Mutex::default(),
        });
        let reader = Bound::new(py, Reader(hub.clone()))?;
        event_loop.call_method1(intern!(py, "add_reader"), (hub.queue.fd(), reader))?;
        let mut hubs = lock(&HUBS);
        hubs.retain(|hub| hub.strong_count() > 0);
        hubs.push(Arc::downgrade(&hub));
        Ok(hub)
    }

    pub(crate) fn queue(&self) -> &Arc<Queue> {
        &self.queue
    }

    /// A future of the loop, ready to be given to the task that runs.
    pub(crate) fn future<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let future = self.create_future.bind(py).call0()?;
        // What tells a task that it was awaited.
        future.setattr(intern!(py, "_asyncio_future_blocking"), true)?;
        Ok(future)
    }

    /// Completes `future` when `op` completes.
    pub(crate) fn expect(&self, op: u64, future: Py<PyAny>, whole: bool) {
        lock(&self.waiting).insert(op, Waiter { future, whole });
    }
}

impl Waiter {
    fn settle(self, py: Python<'_>, outcome: Result<Value, Status>) {
        let future = self.future.bind(py);
        let settled = match value_out(py, outcome, self.whole) {
            Ok(value) => future.call_method1(intern!(py, "set_result"), (value,)),
            Err(error) => {
                let exception = error.into_value(py);
                future.call_method1(intern!(py, "set_exception"), (exception,))
            }
        };
        // A future that was cancelled takes no result.
        if let Err(error) = settled
            && !future
                .call_method0(intern!(py, "done"))
                .is_ok_and(|done| done.is_truthy().unwrap_or_default())
        {
            error.write_unraisable(py, Some(future));
        }
    }
}

#[pymethods]
impl Reader {
    fn __call__(&self, py: Python<'_>) {
        let hub = &*self.0;
        let mut taken = Vec::new();
        hub.queue.drain(&mut taken, BATCH);
        for Completion { op, outcome, .. } in taken {
            let waiter = lock(&hub.waiting).remove(&op);
            if let Some(waiter) = waiter {
                waiter.settle(py, outcome);
            }
        }
        take_back(py);
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.0.event_loop)?;
        visit.call(&self.0.create_future)?;
        // Locked: this thread is adding or removing one. What is not visited is kept.
        if let Ok(waiting) = self.0.waiting.try_lock() {
            for waiter in waiting.values() {
                visit.call(&waiter.future)?;
            }
        }
        Ok(())
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.queue.close();
    }
}
