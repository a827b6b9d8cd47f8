//! One asyncio loop's queue, and what its tasks wait for.

use std::{
    cell::{Cell, RefCell},
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use pyo3::{
    PyTraverseError, PyVisit,
    exceptions::asyncio::CancelledError,
    intern,
    prelude::*,
    sync::PyOnceLock,
    types::{IntoPyDict, PyCFunction},
};
use valkyrie_bridge::{self as bridge, ByOperation, Completion, Queue, Value};

use crate::{
    log,
    values::{take_back, value_out},
};

/// Completions taken in one crossing.
const BATCH: usize = 1024;

/// What the loop's reader calls. Nobody else holds it, so it goes when the loop is closed, and what is under way is then
/// cancelled.
#[pyclass(frozen, module = "valkyrie._native")]
struct Reader(Arc<Hub>);

pub(crate) struct Hub {
    queue: Arc<Queue>,
    event_loop: Py<PyAny>,
    waiting: Mutex<ByOperation<Py<Wait>>>,
    /// The loop will call [`Flush`].
    flushes: AtomicBool,
}

/// What was begun in a turn of the loop leaves at its end.
#[pyclass(frozen, module = "valkyrie._native")]
struct Flush(Weak<Hub>);

#[pymethods]
impl Flush {
    fn __call__(&self) {
        if let Some(hub) = self.0.upgrade() {
            hub.flushes.store(false, Relaxed);
            hub.queue.drive();
        }
    }
}

/// Every loop's, for a thread that runs a loop it did not run last.
static HUBS: Mutex<Vec<Weak<Hub>>> = Mutex::new(Vec::new());

thread_local! {
    /// The hub of the loop that this thread ran last.
    static LAST: RefCell<Weak<Hub>> = const { RefCell::new(Weak::new()) };
    /// This thread is in a step of a task that the hub woke: its loop is the one that runs.
    static STEPPING: Cell<bool> = const { Cell::new(false) };
}

/// No Python object is made or dropped under these locks, so that no finaliser runs while one is held.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    /// The hub of the loop that runs on this thread; `None` without a loop.
    pub(crate) fn running(py: Python<'_>) -> PyResult<Option<Arc<Self>>> {
        if STEPPING.get()
            && let Some(hub) = LAST.with_borrow(Weak::upgrade)
        {
            return Ok(Some(hub));
        }
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
        watch_forks(py)?;
        let hub = Arc::new(Self {
            queue: Queue::driving()?,
            flushes: AtomicBool::new(false),
            event_loop: event_loop.clone().unbind(),
            waiting: Mutex::default(),
        });
        let reader = Bound::new(py, Reader(hub.clone()))?;
        event_loop.call_method1(intern!(py, "add_reader"), (hub.queue.fd()?, reader))?;
        let mut hubs = lock(&HUBS);
        hubs.retain(|hub| hub.strong_count() > 0);
        hubs.push(Arc::downgrade(&hub));
        drop(hubs);
        log::listen(&hub.queue);
        Ok(hub)
    }

    /// Begins an operation. Where this loop drives the connection, what is begun in one turn leaves at its end.
    pub(crate) fn begin<T>(
        self: &Arc<Self>,
        py: Python<'_>,
        submit: impl FnOnce(&Arc<Queue>) -> PyResult<T>,
    ) -> PyResult<T> {
        if !self.queue.drives() {
            return submit(&self.queue);
        }
        if !STEPPING.get() && !self.flushes.swap(true, Relaxed) {
            let flush = Bound::new(py, Flush(Arc::downgrade(self)))?;
            let soon = self.event_loop.call_method1(py, intern!(py, "call_soon"), (flush,));
            soon.inspect_err(|_| self.flushes.store(false, Relaxed))?;
        }
        bridge::expecting_to_lead(|| submit(&self.queue))
    }

    /// What a task yields to wait for an operation that was just accepted.
    pub(crate) fn wait(&self, py: Python<'_>, op: u64, whole: bool) -> PyResult<Py<Wait>> {
        let event_loop = self.event_loop.clone_ref(py);
        let wait =
            Py::new(py, Wait { blocking: true, op, whole, event_loop, waker: None, state: State::Waiting })?;
        lock(&self.waiting).insert(op, wait.clone_ref(py));
        Ok(wait)
    }
}

/// A child of a fork made in a task's step is in no loop's step: its loop would be a new one.
fn watch_forks(py: Python<'_>) -> PyResult<()> {
    static ONCE: PyOnceLock<()> = PyOnceLock::new();
    ONCE.get_or_try_init(py, || {
        let leave = PyCFunction::new_closure(py, None, None, |_, _| STEPPING.set(false))?;
        let options = [("after_in_child", leave)].into_py_dict(py)?;
        py.import("os")?.call_method("register_at_fork", (), Some(&options)).map(drop)
    })
    .copied()
}

struct Stepping;

impl Stepping {
    fn begin() -> Self {
        STEPPING.set(true);
        Self
    }
}

impl Drop for Stepping {
    fn drop(&mut self) {
        STEPPING.set(false);
    }
}

enum State {
    Waiting,
    Complete(PyResult<Py<PyAny>>),
    Cancelled(Option<Py<PyAny>>),
    /// The operation took its outcome.
    Taken,
}

/// As much of asyncio's future as a task needs, with one difference: the task that waits is stepped by the loop's reader
/// itself, without a handle and a turn of the loop for each.
#[pyclass(module = "valkyrie._native")]
pub(crate) struct Wait {
    #[pyo3(get, set, name = "_asyncio_future_blocking")]
    blocking: bool,
    op: u64,
    whole: bool,
    event_loop: Py<PyAny>,
    waker: Option<Waker>,
    state: State,
}

/// A task's wake-up and the context to call it in.
struct Waker {
    wake: Py<PyAny>,
    context: Option<Py<PyAny>>,
}

impl Waker {
    /// Steps the task. An error is one that ends the loop.
    fn call(&self, wait: &Bound<'_, Wait>) -> PyResult<()> {
        let py = wait.py();
        match &self.context {
            Some(context) => context.call_method1(py, intern!(py, "run"), (&self.wake, wait)),
            None => self.wake.call1(py, (wait,)),
        }
        .map(drop)
    }

    /// Leaves it to the loop to step the task.
    fn call_soon(&self, wait: &Bound<'_, Wait>) -> PyResult<()> {
        let py = wait.py();
        let event_loop = wait.borrow().event_loop.clone_ref(py);
        let options = [(intern!(py, "context"), &self.context)].into_py_dict(py)?;
        let call_soon = intern!(py, "call_soon");
        event_loop.bind(py).call_method(call_soon, (&self.wake, wait), Some(&options)).map(drop)
    }
}

impl Wait {
    /// The outcome, once.
    pub(crate) fn take(&mut self) -> Option<PyResult<Py<PyAny>>> {
        match mem::replace(&mut self.state, State::Taken) {
            State::Complete(outcome) => Some(outcome),
            State::Waiting | State::Cancelled(_) | State::Taken => None,
        }
    }
}

#[pymethods]
impl Wait {
    fn get_loop(&self, py: Python<'_>) -> Py<PyAny> {
        self.event_loop.clone_ref(py)
    }

    #[pyo3(signature = (wake, *, context = None))]
    fn add_done_callback(slf: &Bound<'_, Self>, wake: Py<PyAny>, context: Option<Py<PyAny>>) -> PyResult<()> {
        let waker = Waker { wake, context };
        if matches!(slf.borrow().state, State::Waiting) {
            slf.borrow_mut().waker = Some(waker);
            Ok(())
        } else {
            waker.call_soon(slf)
        }
    }

    #[pyo3(signature = (msg = None))]
    fn cancel(slf: &Bound<'_, Self>, msg: Option<Py<PyAny>>) -> PyResult<bool> {
        let waker = {
            let mut wait = slf.borrow_mut();
            if !matches!(wait.state, State::Waiting) {
                return Ok(false);
            }
            wait.state = State::Cancelled(msg);
            bridge::cancel(wait.op);
            wait.waker.take()
        };
        waker.map_or(Ok(()), |waker| waker.call_soon(slf))?;
        Ok(true)
    }

    /// Asked before the task is stepped: only a cancel is said here, the outcome by the operation itself.
    fn result(&self, py: Python<'_>) -> PyResult<()> {
        match &self.state {
            State::Cancelled(Some(message)) => Err(CancelledError::new_err((message.clone_ref(py),))),
            State::Cancelled(None) => Err(CancelledError::new_err(())),
            _ => Ok(()),
        }
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.event_loop)?;
        if let Some(Waker { wake, context }) = &self.waker {
            visit.call(wake)?;
            visit.call(context)?;
        }
        Ok(())
    }

    fn __clear__(&mut self) {
        self.waker = None;
    }
}

#[pymethods]
impl Reader {
    fn __call__(&self, py: Python<'_>) -> PyResult<()> {
        let hub = &self.0;
        let mut taken = Vec::new();
        hub.queue.drive_and_drain(&mut taken, BATCH);
        LAST.set(Arc::downgrade(hub));
        let stepping = Stepping::begin();
        let (mut ended, mut records) = (Ok(()), Vec::new());
        for Completion { op, outcome, .. } in taken {
            if let Ok(Value::Logs(more)) = outcome {
                records.extend(more);
                continue;
            }
            let Some(wait) = lock(&hub.waiting).remove(&op) else { continue };
            let wait = wait.bind(py);
            let outcome = value_out(py, outcome, wait.borrow().whole);
            let waker = {
                let mut wait = wait.borrow_mut();
                // Cancelled in the meantime: the task knows.
                if !matches!(wait.state, State::Waiting) {
                    continue;
                }
                wait.state = State::Complete(outcome);
                wait.waker.take()
            };
            let Some(waker) = waker else { continue };
            if ended.is_ok() {
                ended = waker.call(wait);
            } else if let Err(error) = waker.call_soon(wait) {
                error.write_unraisable(py, Some(wait.as_any()));
            }
        }
        drop(stepping);
        hub.queue.drive();
        take_back(py);
        ended.and(log::deliver(py, Some(&hub.queue), records))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.0.event_loop)?;
        // Locked: this thread is adding or removing one. What is not visited is kept.
        if let Ok(waiting) = self.0.waiting.try_lock() {
            for wait in waiting.values() {
                visit.call(wait)?;
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
