//! One operation: a coroutine for a task to await, or a call that blocks. It begins when it is awaited or waited for.

use std::{cell::Cell, mem, sync::Arc, time::Duration};

use pyo3::{
    PyTraverseError, PyVisit,
    exceptions::{PyRuntimeError, PyRuntimeWarning, PyStopIteration, PyTypeError},
    intern,
    prelude::*,
    sync::PyOnceLock,
    types::{PyString, PyTuple, PyType},
};
use valkyrie_bridge::{
    self as bridge, Bytes, CallOptions, ClientOptions, Connectivity, Handle, Queue, Status, Value,
};

use crate::{
    hub::{Hub, Wait},
    log,
    values::{raised, take_back, value_out},
};

/// How long a blocked thread waits before it looks for signals such as Ctrl-C.
const SIGNAL_SLICE: Duration = Duration::from_millis(50);

/// What an operation does.
pub(crate) enum Start {
    Connect { endpoint: String, options: Box<ClientOptions> },
    Ready { client: Handle },
    TokenWanted { client: Handle },
    ConnectivityOtherThan { client: Handle, seen: Connectivity },
    BreakersOtherThan { client: Handle, seen: u64 },
    Call { client: Handle, method: Py<PyString>, message: Bytes, options: CallOptions, whole: bool },
    Send { stream: Handle, message: Bytes },
    HalfClose { stream: Handle },
    Recv { stream: Handle, max: usize },
    Close { client: Handle },
}

/// An operation that was accepted.
pub(crate) struct Accepted {
    pub(crate) op: u64,
    /// The client that it connects.
    client: Option<Handle>,
    /// It waits for a request, whose number it gives.
    is_request: bool,
    pub(crate) whole: bool,
}

impl Start {
    fn submit(self, py: Python<'_>, queue: &Arc<Queue>) -> PyResult<Accepted> {
        let (mut client, mut is_request, mut whole) = (None, false, false);
        let accepted = match self {
            Self::Connect { endpoint, options } => {
                py.detach(|| bridge::connect(queue, &endpoint, *options)).map(|(handle, op)| {
                    client = Some(handle);
                    op
                })
            }
            Self::Ready { client: made } => {
                client = Some(made);
                bridge::ready(made, queue)
            }
            Self::TokenWanted { client } => {
                is_request = true;
                bridge::token_wanted(client, queue)
            }
            Self::Call { client, method, message, options, whole: all } => {
                whole = all;
                bridge::call(client, queue, &method.bind(py).to_string_lossy(), message, options)
            }
            Self::Send { stream, message } => bridge::send(stream, queue, message),
            Self::HalfClose { stream } => bridge::half_close(stream, queue),
            Self::Recv { stream, max } => bridge::recv(stream, queue, max),
            Self::Close { client } => bridge::close(client, queue),
            Self::ConnectivityOtherThan { client, seen } => {
                bridge::connectivity_other_than(client, queue, seen)
            }
            Self::BreakersOtherThan { client, seen } => bridge::breakers_other_than(client, queue, seen),
        };
        let op = accepted.map_err(|status| {
            client.inspect(|client| bridge::client_free(*client));
            raised(py, &status)
        })?;
        Ok(Accepted { op, client, is_request, whole })
    }
}

impl Start {
    /// Nobody will begin it.
    fn abandon(self) {
        if let Self::Ready { client } = self {
            bridge::client_free(client);
        }
    }
}

impl Accepted {
    /// Nobody waits for it any more.
    pub(crate) fn abandon(&self) {
        bridge::cancel(self.op);
        if let Some(client) = self.client {
            bridge::client_free(client);
        }
    }

    /// The handle of what was connected, the number of a request, or else the value that completed it.
    pub(crate) fn value(&self, py: Python<'_>, value: Py<PyAny>) -> PyResult<Py<PyAny>> {
        let number = match self.client {
            Some(client) => client.to_raw(),
            None if self.is_request => self.op,
            None => return Ok(value),
        };
        Ok(number.into_pyobject(py)?.into_any().unbind())
    }
}

enum State {
    New(Start),
    /// A task of asyncio waits.
    Waiting(Accepted, Py<Wait>),
    /// Another library's loop runs: its own coroutine waits.
    Elsewhere(Py<PyAny>),
    Over,
}

#[pyclass(module = "valkyrie._native")]
pub(crate) struct Operation(State);

impl Operation {
    pub(crate) fn new(start: Start) -> Self {
        Self(State::New(start))
    }

    fn take(&mut self) -> State {
        mem::replace(&mut self.0, State::Over)
    }

    /// Accepts it for a queue that somebody else drains.
    pub(crate) fn submit(&mut self, py: Python<'_>, queue: &Arc<Queue>) -> PyResult<Accepted> {
        match self.take() {
            State::New(start) => start.submit(py, queue),
            _ => Err(PyRuntimeError::new_err("cannot begin an operation twice")),
        }
    }

    /// Hands it to the library whose loop runs on this thread.
    fn go_elsewhere(&mut self, py: Python<'_>, start: Start) -> PyResult<Py<PyAny>> {
        static WAIT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        // Who has not imported it does not run it.
        let trio = py.import("sys")?.getattr("modules")?.call_method1("get", ("trio",))?;
        if trio.is_none() || !trio.getattr("lowlevel")?.call_method0("in_trio_run")?.is_truthy()? {
            return Err(PyRuntimeError::new_err("no running event loop"));
        }
        let waiting = WAIT.import(py, "valkyrie._trio", "wait")?.call1((Self::new(start),))?;
        self.forward(waiting, intern!(py, "send"), &py.None().into_bound(py))
    }

    fn forward(
        &mut self,
        waiting: Bound<'_, PyAny>,
        method: &Bound<'_, PyString>,
        value: &Bound<'_, PyAny>,
    ) -> PyResult<Py<PyAny>> {
        let yielded = waiting.call_method1(method, (value,))?;
        self.0 = State::Elsewhere(waiting.unbind());
        Ok(yielded.unbind())
    }

    /// Ends it where it stands.
    fn abandon(&mut self) {
        match self.take() {
            State::Waiting(accepted, _) => accepted.abandon(),
            State::New(start) => start.abandon(),
            State::Elsewhere(_) | State::Over => {}
        }
    }
}

#[pymethods]
impl Operation {
    /// Makes the client that this is to connect, and gives its handle, which is whoever's asks.
    fn client(&mut self, py: Python<'_>) -> PyResult<u64> {
        let State::New(Start::Connect { endpoint, options }) = self.take() else {
            return Err(PyRuntimeError::new_err("only what connects has a client, before it begins"));
        };
        let made = py.detach(|| bridge::make(&endpoint, *options)).map_err(|status| raised(py, &status))?;
        self.0 = State::New(Start::Ready { client: made });
        Ok(made.to_raw())
    }

    fn __await__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __iter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __next__(&mut self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        match self.take() {
            State::New(start) => {
                take_back(py);
                let Some(hub) = Hub::running(py)? else { return self.go_elsewhere(py, start) };
                let accepted = hub.begin(py, |queue| start.submit(py, queue))?;
                let wait = hub.wait(py, accepted.op, accepted.whole).inspect_err(|_| accepted.abandon())?;
                self.0 = State::Waiting(accepted, wait.clone_ref(py));
                Ok(wait.into_any())
            }
            State::Waiting(accepted, wait) => {
                let outcome = wait.borrow_mut(py).take();
                let outcome =
                    outcome.unwrap_or_else(|| Err(PyRuntimeError::new_err("the operation is not complete")));
                match outcome.and_then(|value| accepted.value(py, value)) {
                    // A tuple would be taken for the arguments of the exception.
                    Ok(value) if value.bind(py).is_instance_of::<PyTuple>() => {
                        Err(PyStopIteration::new_err((value,)))
                    }
                    Ok(value) => Err(PyStopIteration::new_err(value)),
                    Err(error) => {
                        accepted.abandon();
                        Err(error)
                    }
                }
            }
            State::Elsewhere(waiting) => {
                self.forward(waiting.into_bound(py), intern!(py, "send"), &py.None().into_bound(py))
            }
            State::Over => Err(PyRuntimeError::new_err("cannot await an operation twice")),
        }
    }

    fn send(&mut self, py: Python<'_>, value: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        match self.take() {
            State::Elsewhere(waiting) => self.forward(waiting.into_bound(py), intern!(py, "send"), value),
            state => {
                self.0 = state;
                if value.is_none() {
                    self.__next__(py)
                } else {
                    Err(PyTypeError::new_err("an operation takes no values"))
                }
            }
        }
    }

    #[pyo3(signature = (kind, value = None, traceback = None))]
    fn throw(
        &mut self,
        kind: &Bound<'_, PyAny>,
        value: Option<&Bound<'_, PyAny>>,
        traceback: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let state = self.take();
        let exception = match (kind.cast::<PyType>(), value) {
            (Err(_), _) => kind.clone(),
            (Ok(kind), Some(value)) if value.is_instance(kind)? => value.clone(),
            (Ok(kind), Some(value)) => kind.call1((value,))?,
            (Ok(kind), None) => kind.call0()?,
        };
        if let Some(traceback) = traceback {
            exception.setattr(intern!(kind.py(), "__traceback__"), traceback)?;
        }
        match state {
            State::Elsewhere(waiting) => {
                let py = kind.py();
                self.forward(waiting.into_bound(py), intern!(py, "throw"), &exception)
            }
            state => {
                self.0 = state;
                self.abandon();
                Err(PyErr::from_value(exception))
            }
        }
    }

    fn close(&mut self, py: Python<'_>) -> PyResult<()> {
        match self.take() {
            State::Elsewhere(waiting) => waiting.call_method0(py, intern!(py, "close")).map(drop),
            state => {
                self.0 = state;
                self.abandon();
                Ok(())
            }
        }
    }

    /// Blocks until it is complete, with the GIL released, and lets signal handlers run meanwhile.
    fn wait(&mut self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let State::New(start) = self.take() else {
            return Err(PyRuntimeError::new_err("cannot wait for an operation twice"));
        };
        with_blocking_queue(|queue| {
            let accepted = start.submit(py, queue)?;
            let outcome = block(py, queue, &accepted).and_then(|outcome| {
                take_back(py);
                value_out(py, outcome, accepted.whole)
            });
            match log::deliver(py, None, Vec::new()).and(outcome) {
                Ok(value) => accepted.value(py, value),
                Err(error) => {
                    accepted.abandon();
                    Err(error)
                }
            }
        })
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        match &self.0 {
            State::Waiting(_, wait) => visit.call(wait),
            State::Elsewhere(waiting) => visit.call(waiting),
            State::New(_) | State::Over => Ok(()),
        }
    }

    fn __clear__(&mut self) {
        self.abandon();
    }
}

/// As Python's own coroutines: one that is given up is cancelled, one that never began is said.
impl Drop for Operation {
    fn drop(&mut self) {
        match self.take() {
            State::New(start) => {
                let warned = Python::try_attach(|py| {
                    let raised = PyErr::take(py);
                    let kind = py.get_type::<PyRuntimeWarning>();
                    if let Err(error) = PyErr::warn(py, &kind, c"an operation was never awaited", 1) {
                        error.write_unraisable(py, None);
                    }
                    if let Some(raised) = raised {
                        raised.restore(py);
                    }
                });
                let _ = warned;
                start.abandon();
            }
            State::Waiting(accepted, _) => accepted.abandon(),
            State::Elsewhere(_) | State::Over => {}
        }
    }
}

thread_local! {
    /// The queue that this thread blocks on, while it does not.
    static IDLE: Cell<Option<Arc<Queue>>> = const { Cell::new(None) };
}

/// Runs `work` with a queue of this thread. A signal handler or a finaliser may come here again: it gets another.
pub(crate) fn with_blocking_queue<T>(work: impl FnOnce(&Arc<Queue>) -> T) -> T {
    let queue = IDLE.take().unwrap_or_else(Queue::blocking);
    let result = work(&queue);
    IDLE.set(Some(queue));
    result
}

fn block(py: Python<'_>, queue: &Arc<Queue>, accepted: &Accepted) -> PyResult<Result<Value, Status>> {
    // Only a thread of ours waits for requests: no signal is handled there.
    let slice = (!accepted.is_request).then_some(SIGNAL_SLICE);
    let mut taken = Vec::new();
    loop {
        let ready = py.detach(|| {
            let ready = queue.wait(slice);
            queue.drain(&mut taken, usize::MAX);
            ready
        });
        // Anything else was given up by an earlier exception.
        if let Some(completion) = taken.drain(..).find(|completion| completion.op == accepted.op) {
            return Ok(completion.outcome);
        }
        if !ready {
            py.check_signals()?;
        }
    }
}
