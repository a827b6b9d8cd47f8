//! Values and errors, in and out.

use std::{
    path::PathBuf,
    ptr,
    sync::{
        Arc,
        atomic::{AtomicPtr, Ordering},
    },
};

use pyo3::{
    buffer::PyBuffer,
    exceptions::{PyTypeError, PyValueError},
    prelude::*,
    sync::PyOnceLock,
    types::{PyBool, PyBytes, PyFloat, PyInt, PyList, PyMapping, PyString, PyTuple},
};
use valkyrie_bridge::{
    self as bridge, Bytes, CallOptions, End, IdempotencyKey, Metadata, Pem, Priority, Response, Security,
    Status, Token, TokenOption, Value,
};

/// From here on a message of `bytes` is lent to the core, not copied. Below, a copy costs less than the loan.
const LENT_BYTES: usize = 16 * 1024;

fn metadata_out<'py>(py: Python<'py>, metadata: &Metadata) -> PyResult<Bound<'py, PyList>> {
    let entries = metadata.iter().map(|(key, value)| (key, PyBytes::new(py, value)));
    PyList::new(py, entries)
}

/// The exception of a status, which is Python's side to choose.
pub(crate) fn raised(py: Python<'_>, status: &Status) -> PyErr {
    static FROM_STATUS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let exception = || {
        let fields = status_out(py, status)?;
        FROM_STATUS.import(py, "valkyrie._errors", "from_status")?.call1((fields,))
    };
    exception().map_or_else(|error| error, PyErr::from_value)
}

/// `(code, reason, reason name, class, message, timeline, details, pushback_ms, metadata, trailers)`
fn status_out<'py>(py: Python<'py>, status: &Status) -> PyResult<Bound<'py, PyTuple>> {
    let details = status.details().iter().map(|detail| (&detail.type_name, PyBytes::new(py, &detail.value)));
    let pushback = status.pushback().map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
    (
        status.code().number(),
        status.reason().number(),
        status.reason().name(),
        status.class().name(),
        status.message(),
        status.timeline(),
        PyList::new(py, details)?,
        pushback,
        metadata_out(py, status.metadata())?,
        metadata_out(py, status.trailers())?,
    )
        .into_pyobject(py)
}

/// A call's message, or with `whole` `(message, metadata, trailers)`; for a stream `(messages, end)`; for breakers `(seen, json)`.
pub(crate) fn value_out(py: Python<'_>, outcome: Result<Value, Status>, whole: bool) -> PyResult<Py<PyAny>> {
    match outcome {
        Ok(Value::Done) => Ok(py.None()),
        Ok(Value::Response(Response { message, metadata, trailers, .. })) => {
            let message = PyBytes::new(py, &message);
            if !whole {
                return Ok(message.into_any().unbind());
            }
            let value = (message, metadata_out(py, &metadata)?, metadata_out(py, &trailers)?);
            Ok(value.into_pyobject(py)?.into_any().unbind())
        }
        Ok(Value::Messages { messages, end }) => {
            let messages = PyList::new(py, messages.iter().map(|message| PyBytes::new(py, message)))?;
            let end = match end {
                Some(End { metadata, trailers }) => {
                    Some((metadata_out(py, &metadata)?, metadata_out(py, &trailers)?))
                }
                None => None,
            };
            Ok((messages, end).into_pyobject(py)?.into_any().unbind())
        }
        Ok(Value::Connectivity(state)) => Ok((state as u8).into_pyobject(py)?.into_any().unbind()),
        Ok(Value::Breakers { seen, json }) => Ok((seen, json).into_pyobject(py)?.into_any().unbind()),
        // A kind of a later bridge: said, never dropped.
        Ok(_) => {
            let message = "an outcome that this package does not know";
            Err(raised(py, &Status::from_reason(bridge::Reason::INTERNAL, message)))
        }
        Err(status) => Err(raised(py, &status)),
    }
}

pub(crate) fn message_in(message: &Bound<'_, PyAny>) -> PyResult<Bytes> {
    if let Ok(bytes) = message.cast_exact::<PyBytes>() {
        let lend = bytes.as_bytes().len() >= LENT_BYTES;
        return Ok(if lend { Loan::bytes(bytes) } else { Bytes::copy_from_slice(bytes.as_bytes()) });
    }
    if let Ok(buffer) = PyBuffer::<u8>::get(message) {
        return Ok(Bytes::from(buffer.to_vec(message.py())?));
    }
    let name = message.get_type().name()?;
    Err(PyTypeError::new_err(format!("a message is bytes or a buffer of bytes, not {name}")))
}

/// A `bytes` object that the core reads. Nobody can change it; a native thread that lets go of it hands it back through
/// [`RETURNED`], as it may not touch a reference count.
struct Loan {
    object: *mut pyo3::ffi::PyObject,
    bytes: *const [u8],
}

// SAFETY: a `bytes` object neither moves nor changes, and the reference that is owned here is given up on a thread that
// is attached to the interpreter.
unsafe impl Send for Loan {}

impl AsRef<[u8]> for Loan {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: it is the content of `object`, which is kept alive until `self` is dropped.
        unsafe { &*self.bytes }
    }
}

impl Loan {
    fn bytes(object: &Bound<'_, PyBytes>) -> Bytes {
        let bytes: *const [u8] = object.as_bytes();
        Bytes::from_owner(Self { object: object.clone().into_ptr(), bytes })
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let returned = Box::into_raw(Box::new(Returned { object: self.object, next: ptr::null_mut() }));
        let mut next = RETURNED.load(Ordering::Relaxed);
        loop {
            // SAFETY: nobody else knows of `returned` before the exchange succeeds.
            unsafe { (*returned).next = next };
            match RETURNED.compare_exchange_weak(next, returned, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(other) => next = other,
            }
        }
    }
}

struct Returned {
    object: *mut pyo3::ffi::PyObject,
    next: *mut Returned,
}

/// What the core has read. Without a lock, which a fork could find held by a thread that the child has not.
static RETURNED: AtomicPtr<Returned> = AtomicPtr::new(ptr::null_mut());

/// Drops what native threads gave back. Cheap when there is nothing.
pub(crate) fn take_back(py: Python<'_>) {
    if RETURNED.load(Ordering::Relaxed).is_null() {
        return;
    }
    let mut next = RETURNED.swap(ptr::null_mut(), Ordering::Acquire);
    while !next.is_null() {
        // SAFETY: the swap made the chain ours; each part came from `Box::into_raw`.
        let returned = unsafe { Box::from_raw(next) };
        next = returned.next;
        // SAFETY: the loan owned one reference, which this takes over.
        drop(unsafe { Bound::from_owned_ptr(py, returned.object) });
    }
}

/// A `str`; anything else is a `TypeError` that begins with `what`.
pub(crate) fn text<'a, 'py>(value: &'a Bound<'py, PyAny>, what: &str) -> PyResult<&'a Bound<'py, PyString>> {
    value.cast().or_else(|_| {
        let name = value.get_type().name()?;
        Err(PyTypeError::new_err(format!("{what}, not {name}")))
    })
}

/// Seconds as milliseconds: at least 1, `u64::MAX` for infinity.
pub(crate) fn milliseconds(timeout: &Bound<'_, PyAny>, name: &str) -> PyResult<u64> {
    let is_number = timeout.is_instance_of::<PyFloat>() || timeout.is_instance_of::<PyInt>();
    if !is_number || timeout.is_instance_of::<PyBool>() {
        let kind = timeout.get_type().name()?;
        return Err(PyTypeError::new_err(format!("{name} is a number of seconds, not {kind}")));
    }
    // An int that no float can hold is as good as infinite, unless it is below 0.
    let seconds = match timeout.extract::<f64>() {
        Ok(seconds) => seconds,
        Err(_) if timeout.gt(0)? => f64::INFINITY,
        Err(_) => -1.0,
    };
    if seconds > 0.0 {
        // `as` keeps to the limits of u64.
        return Ok(((seconds * 1000.0).round() as u64).max(1));
    }
    Err(PyValueError::new_err(format!("{name} {timeout} is not above 0 seconds")))
}

/// As [`milliseconds`]; 0 is never.
pub(crate) fn milliseconds_or_0(time: &Bound<'_, PyAny>, name: &str) -> PyResult<u64> {
    if !time.is_instance_of::<PyBool>() && time.eq(0)? { Ok(0) } else { milliseconds(time, name) }
}

/// `True` or `False`.
pub(crate) fn flag(value: &Bound<'_, PyAny>, name: &str) -> PyResult<bool> {
    let kind = || value.get_type().name();
    value.extract().or_else(|_| Err(PyTypeError::new_err(format!("{name} is a bool, not {}", kind()?))))
}

/// A `str` is PEM text, a path the file that it names.
pub(crate) fn pem(value: &Bound<'_, PyAny>, name: &str) -> PyResult<Pem> {
    if let Ok(text) = value.cast::<PyString>() {
        return Ok(Pem::from(text.to_str()?.to_owned()));
    }
    if value.hasattr("__fspath__")? {
        return Ok(Pem::file(value.extract::<PathBuf>()?));
    }
    let kind = value.get_type().name()?;
    Err(PyTypeError::new_err(format!("{name} is a str of PEM text or a pathlib.Path of a file, not {kind}")))
}

/// `(certificates, key)`
pub(crate) fn identity_in(value: &Bound<'_, PyAny>) -> PyResult<(Pem, Pem)> {
    let pair = value.cast::<PyTuple>().ok().filter(|pair| pair.len() == 2);
    let Some(pair) = pair else {
        let kind = value.get_type().name()?;
        return Err(PyTypeError::new_err(format!("identity is a tuple (certificates, key), not {kind}")));
    };
    Ok((pem(&pair.get_item(0)?, "identity[0]")?, pem(&pair.get_item(1)?, "identity[1]")?))
}

/// `'insecure'`, `'tls'` or `'mtls'`
pub(crate) fn security_in(value: &Bound<'_, PyAny>) -> PyResult<Security> {
    let name = text(value, "min_security is a str")?.to_str()?;
    Security::from_name(name).ok_or_else(|| {
        PyValueError::new_err(format!("min_security {name:?} is not 'insecure', 'tls' or 'mtls'"))
    })
}

/// A `str` is the token, a function one that makes them. What is neither is not shown.
pub(crate) fn token_in(value: &Bound<'_, PyAny>) -> PyResult<TokenOption> {
    if let Ok(text) = value.cast::<PyString>() {
        return Ok(TokenOption::Source(Arc::new(Token::new(text.to_str()?.to_owned()))));
    }
    if value.is_callable() {
        return Ok(TokenOption::Host);
    }
    let kind = value.get_type().name()?;
    Err(PyTypeError::new_err(format!("token is a str or a function that gives one, not {kind}")))
}

/// Text, bytes, or `True` for a key that is drawn.
pub(crate) fn key_in(value: &Bound<'_, PyAny>) -> PyResult<IdempotencyKey> {
    if let Ok(text) = value.cast::<PyString>() {
        return Ok(IdempotencyKey::Given(Bytes::copy_from_slice(text.to_str()?.as_bytes())));
    }
    if let Ok(bytes) = value.cast::<PyBytes>() {
        return Ok(IdempotencyKey::Given(Bytes::copy_from_slice(bytes.as_bytes())));
    }
    if value.cast::<PyBool>().is_ok_and(|drawn| drawn.is_true()) {
        return Ok(IdempotencyKey::Drawn);
    }
    let kind = value.get_type().name()?;
    Err(PyTypeError::new_err(format!(
        "idempotency_key is a str, bytes, or True for one that is drawn, not {kind}"
    )))
}

fn metadata_in(entries: &Bound<'_, PyAny>) -> PyResult<Metadata> {
    let pairs = match entries.cast::<PyMapping>() {
        Ok(mapping) => mapping.items()?.into_any(),
        Err(_) => entries.clone(),
    };
    let mut metadata = Metadata::new();
    for pair in pairs.try_iter()? {
        let (key, value): (Bound<'_, PyString>, Bound<'_, PyAny>) = pair?.extract()?;
        let value = match value.cast::<PyString>() {
            Ok(text) => Bytes::copy_from_slice(text.to_str()?.as_bytes()),
            Err(_) => message_in(&value)?,
        };
        metadata.insert(key.to_str()?, value).map_err(|error| PyValueError::new_err(error.to_string()))?;
    }
    Ok(metadata)
}

pub(crate) fn options_in(
    timeout: Option<&Bound<'_, PyAny>>,
    metadata: Option<&Bound<'_, PyAny>>,
    priority: Option<&Bound<'_, PyAny>>,
    idempotent: Option<&Bound<'_, PyAny>>,
) -> PyResult<CallOptions> {
    let mut options = CallOptions::default();
    if let Some(timeout) = timeout {
        options.timeout_ms = Some(milliseconds(timeout, "timeout")?);
    }
    if let Some(metadata) = metadata {
        options.metadata = metadata_in(metadata)?;
    }
    if let Some(priority) = priority {
        let name = text(priority, "priority is a str")?.to_str()?;
        options.priority = Priority::from_name(name).ok_or_else(|| {
            PyValueError::new_err(format!("priority {name:?} is not 'critical', 'normal' or 'bulk'"))
        })?;
    }
    if let Some(idempotent) = idempotent {
        options.idempotent = flag(idempotent, "idempotent")?;
    }
    Ok(options)
}
