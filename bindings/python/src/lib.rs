//! `valkyrie._native`: Python's values to the bridge's and back. Waiting, loops and exceptions are Python's side.
//!
//! A native thread never takes the GIL: it pushes to a queue and signals a descriptor or a condition.
// pyo3's macros write items without documentation.
#![allow(missing_docs, reason = "the Python names are documented in _native.pyi")]

use std::{sync::Arc, time::Duration};

use pyo3::{
    buffer::PyBuffer,
    create_exception,
    exceptions::{PyException, PyTypeError, PyValueError},
    prelude::*,
    types::{PyBytes, PyList, PyString, PyTuple},
};
use valkyrie_bridge::{
    self as bridge, Bytes, CallOptions, ClientOptions, Completion, End, Handle, Metadata, Priority, Status,
    Value,
};

create_exception!(_native, Refused, PyException, "A refused submission; args are the fields of a status.");

/// How long a blocked thread waits before it looks for signals such as Ctrl-C.
const SIGNAL_SLICE: Duration = Duration::from_millis(50);
/// Completions taken in one crossing.
const BATCH: usize = 1024;

const DONE: u8 = 0;
const MESSAGE: u8 = 1;
const MESSAGES: u8 = 2;
const ERROR: u8 = 3;

fn metadata_out<'py>(py: Python<'py>, metadata: &Metadata) -> PyResult<Bound<'py, PyList>> {
    let entries = metadata.iter().map(|(key, value)| (key, PyBytes::new(py, value)));
    PyList::new(py, entries)
}

/// `(code, reason, reason name, class, message, details, pushback_ms, metadata, trailers)`
fn status_out<'py>(py: Python<'py>, status: &Status) -> PyResult<Bound<'py, PyTuple>> {
    let details = status.details().iter().map(|detail| (&detail.type_name, PyBytes::new(py, &detail.value)));
    let pushback = status.pushback().map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
    (
        status.code().number(),
        status.reason().number(),
        status.reason().name(),
        status.class().name(),
        status.message(),
        PyList::new(py, details)?,
        pushback,
        metadata_out(py, status.metadata())?,
        metadata_out(py, status.trailers())?,
    )
        .into_pyobject(py)
}

fn refused(py: Python<'_>, status: &Status) -> PyErr {
    match status_out(py, status) {
        Ok(fields) => Refused::new_err(fields.unbind()),
        Err(error) => error,
    }
}

/// `(op, kind, value)`
fn completion_out<'py>(py: Python<'py>, completion: Completion) -> PyResult<Bound<'py, PyTuple>> {
    let op = completion.op;
    match completion.outcome {
        Ok(Value::Done) => (op, DONE, py.None()).into_pyobject(py),
        Ok(Value::Response(response)) => {
            let value = (
                PyBytes::new(py, &response.message),
                // The usual answer has neither: None costs nothing.
                (!response.metadata.is_empty()).then(|| metadata_out(py, &response.metadata)).transpose()?,
                (!response.trailers.is_empty()).then(|| metadata_out(py, &response.trailers)).transpose()?,
            );
            (op, MESSAGE, value).into_pyobject(py)
        }
        Ok(Value::Messages { messages, end }) => {
            let messages = PyList::new(py, messages.iter().map(|message| PyBytes::new(py, message)))?;
            let end = match end {
                Some(End { metadata, trailers }) => {
                    Some((metadata_out(py, &metadata)?, metadata_out(py, &trailers)?))
                }
                None => None,
            };
            (op, MESSAGES, (messages, end)).into_pyobject(py)
        }
        // A kind of a later bridge: said, never dropped.
        Ok(_) => {
            let status =
                Status::from_reason(bridge::Reason::INTERNAL, "an outcome that this package does not know");
            (op, ERROR, status_out(py, &status)?).into_pyobject(py)
        }
        Err(status) => (op, ERROR, status_out(py, &status)?).into_pyobject(py),
    }
}

fn message_in(message: &Bound<'_, PyAny>) -> PyResult<Bytes> {
    if let Ok(bytes) = message.cast::<PyBytes>() {
        return Ok(Bytes::copy_from_slice(bytes.as_bytes()));
    }
    if let Ok(buffer) = PyBuffer::<u8>::get(message) {
        return Ok(Bytes::from(buffer.to_vec(message.py())?));
    }
    let name = message.get_type().name()?;
    Err(PyTypeError::new_err(format!("a message is bytes or a buffer of bytes, not {name}")))
}

fn metadata_in(entries: Option<Vec<(String, Bound<'_, PyAny>)>>) -> PyResult<Metadata> {
    let mut metadata = Metadata::new();
    for (key, value) in entries.unwrap_or_default() {
        let value = match value.cast::<PyString>() {
            Ok(text) => Bytes::copy_from_slice(text.to_str()?.as_bytes()),
            Err(_) => message_in(&value)?,
        };
        metadata.insert(&key, value).map_err(|error| PyValueError::new_err(error.to_string()))?;
    }
    Ok(metadata)
}

fn options_in(
    timeout_ms: Option<u64>,
    metadata: Option<Vec<(String, Bound<'_, PyAny>)>>,
    priority: Option<&str>,
) -> PyResult<CallOptions> {
    let priority = match priority {
        None => Priority::Normal,
        Some(name) => Priority::from_name(name).ok_or_else(|| {
            PyValueError::new_err(format!("priority {name:?} is not 'critical', 'normal' or 'bulk'"))
        })?,
    };
    Ok(CallOptions { timeout_ms, metadata: metadata_in(metadata)?, priority })
}

/// A completion queue: with a descriptor for a loop's poller, or one that a thread blocks on.
#[pyclass(frozen)]
struct Queue(Arc<bridge::Queue>);

#[pymethods]
impl Queue {
    #[new]
    #[pyo3(signature = (*, blocking = false))]
    fn new(blocking: bool) -> PyResult<Self> {
        Ok(Self(if blocking { bridge::Queue::blocking() } else { bridge::Queue::with_fd()? }))
    }

    fn fileno(&self) -> PyResult<i32> {
        self.0.fd().ok_or_else(|| PyValueError::new_err("a blocking queue has no descriptor"))
    }

    fn drain<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyTuple>>> {
        let mut taken = Vec::new();
        self.0.drain(&mut taken, BATCH);
        taken.into_iter().map(|completion| completion_out(py, completion)).collect()
    }

    /// Blocks until something is there, with the GIL released, and lets signal handlers run meanwhile.
    fn wait(&self, py: Python<'_>) -> PyResult<()> {
        loop {
            if py.detach(|| self.0.wait(Some(SIGNAL_SLICE))) {
                return Ok(());
            }
            py.check_signals()?;
        }
    }

    fn close(&self) {
        self.0.close();
    }
}

#[pyfunction]
fn connect(
    py: Python<'_>,
    queue: &Queue,
    endpoint: &str,
    timeout_ms: u64,
    connect_timeout_ms: u64,
    trusted_certificates: Option<String>,
) -> PyResult<(u64, u64)> {
    let mut options = ClientOptions::default();
    options.timeout_ms = timeout_ms;
    options.connect_timeout_ms = connect_timeout_ms;
    options.trusted_certificates = trusted_certificates.map(Into::into);
    let result = py.detach(|| bridge::connect(&queue.0, endpoint, options));
    result.map(|(client, op)| (client.to_raw(), op)).map_err(|status| refused(py, &status))
}

#[pyfunction]
#[pyo3(signature = (queue, client, method, message, timeout_ms = None, metadata = None, priority = None))]
#[allow(clippy::too_many_arguments, reason = "one crossing carries the whole call")]
fn call(
    py: Python<'_>,
    queue: &Queue,
    client: u64,
    method: &str,
    message: &Bound<'_, PyAny>,
    timeout_ms: Option<u64>,
    metadata: Option<Vec<(String, Bound<'_, PyAny>)>>,
    priority: Option<&str>,
) -> PyResult<u64> {
    let message = message_in(message)?;
    let options = options_in(timeout_ms, metadata, priority)?;
    bridge::call(Handle::from_raw(client), &queue.0, method, message, options)
        .map_err(|status| refused(py, &status))
}

#[pyfunction]
#[pyo3(signature = (queue, client, method, timeout_ms = None, metadata = None, priority = None))]
fn open(
    py: Python<'_>,
    queue: &Queue,
    client: u64,
    method: &str,
    timeout_ms: Option<u64>,
    metadata: Option<Vec<(String, Bound<'_, PyAny>)>>,
    priority: Option<&str>,
) -> PyResult<u64> {
    let options = options_in(timeout_ms, metadata, priority)?;
    bridge::open(Handle::from_raw(client), &queue.0, method, options)
        .map(Handle::to_raw)
        .map_err(|status| refused(py, &status))
}

#[pyfunction]
fn send(py: Python<'_>, queue: &Queue, stream: u64, message: &Bound<'_, PyAny>) -> PyResult<u64> {
    let message = message_in(message)?;
    bridge::send(Handle::from_raw(stream), &queue.0, message).map_err(|status| refused(py, &status))
}

#[pyfunction]
fn half_close(py: Python<'_>, queue: &Queue, stream: u64) -> PyResult<u64> {
    bridge::half_close(Handle::from_raw(stream), &queue.0).map_err(|status| refused(py, &status))
}

#[pyfunction]
fn recv(py: Python<'_>, queue: &Queue, stream: u64, max: usize) -> PyResult<u64> {
    bridge::recv(Handle::from_raw(stream), &queue.0, max).map_err(|status| refused(py, &status))
}

#[pyfunction]
fn close(py: Python<'_>, queue: &Queue, client: u64) -> PyResult<u64> {
    bridge::close(Handle::from_raw(client), &queue.0).map_err(|status| refused(py, &status))
}

#[pyfunction]
fn cancel(op: u64) {
    bridge::cancel(op);
}

#[pyfunction]
fn stream_free(stream: u64) {
    bridge::stream_free(Handle::from_raw(stream));
}

#[pyfunction]
fn client_free(client: u64) {
    bridge::client_free(Handle::from_raw(client));
}

#[pyfunction]
fn in_flight() -> usize {
    bridge::in_flight()
}

#[pyfunction]
fn version() -> &'static str {
    bridge::version()
}

#[pymodule(gil_used = false)]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Queue>()?;
    module.add("Refused", module.py().get_type::<Refused>())?;
    for (name, kind) in [("DONE", DONE), ("MESSAGE", MESSAGE), ("MESSAGES", MESSAGES), ("ERROR", ERROR)] {
        module.add(name, kind)?;
    }
    module.add_function(wrap_pyfunction!(connect, module)?)?;
    module.add_function(wrap_pyfunction!(call, module)?)?;
    module.add_function(wrap_pyfunction!(open, module)?)?;
    module.add_function(wrap_pyfunction!(send, module)?)?;
    module.add_function(wrap_pyfunction!(half_close, module)?)?;
    module.add_function(wrap_pyfunction!(recv, module)?)?;
    module.add_function(wrap_pyfunction!(close, module)?)?;
    module.add_function(wrap_pyfunction!(cancel, module)?)?;
    module.add_function(wrap_pyfunction!(stream_free, module)?)?;
    module.add_function(wrap_pyfunction!(client_free, module)?)?;
    module.add_function(wrap_pyfunction!(in_flight, module)?)?;
    module.add_function(wrap_pyfunction!(version, module)?)?;
    Ok(())
}
