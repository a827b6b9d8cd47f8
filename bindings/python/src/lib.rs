//! `valkyrie._native`: Python's values to the bridge's and back, and the awaits. What a user sees is Python's side.
//!
//! A native thread never takes the GIL: it pushes to a queue and signals a descriptor or a condition.
// pyo3's macros write items without documentation.
#![allow(missing_docs, reason = "the Python names are documented in _native.pyi")]

mod hub;
mod log;
mod operation;
mod queue;
mod values;

use pyo3::{
    exceptions::{PyImportError, PyValueError},
    prelude::*,
};
use valkyrie_bridge::{self as bridge, CallOptions, ClientOptions, Handle};

use crate::{
    operation::{Operation, Start},
    values::{
        flag, identity_in, key_in, message_in, milliseconds, milliseconds_or_0, options_in, pem, raised,
        security_in, text, token_in,
    },
};

#[pyfunction]
#[pyo3(signature = (endpoint, timeout, connect_timeout, *, trusted_certificates, system_roots, revocation_lists, identity, server_name, sealed, min_security, token, service_config, keepalive, keepalive_timeout, keepalive_idle))]
#[expect(clippy::too_many_arguments, reason = "they are Python's options")]
fn connect(
    py: Python<'_>,
    endpoint: &Bound<'_, PyAny>,
    timeout: &Bound<'_, PyAny>,
    connect_timeout: &Bound<'_, PyAny>,
    trusted_certificates: Option<&Bound<'_, PyAny>>,
    system_roots: &Bound<'_, PyAny>,
    revocation_lists: Option<&Bound<'_, PyAny>>,
    identity: Option<&Bound<'_, PyAny>>,
    server_name: Option<&Bound<'_, PyAny>>,
    sealed: &Bound<'_, PyAny>,
    min_security: Option<&Bound<'_, PyAny>>,
    token: Option<&Bound<'_, PyAny>>,
    service_config: Option<&Bound<'_, PyAny>>,
    keepalive: Option<&Bound<'_, PyAny>>,
    keepalive_timeout: Option<&Bound<'_, PyAny>>,
    keepalive_idle: Option<&Bound<'_, PyAny>>,
) -> PyResult<Operation> {
    let endpoint = text(endpoint, "endpoint is a str such as 'tcp://host:port'")?.to_str()?.to_owned();
    let mut options = ClientOptions::default();
    options.timeout_ms = milliseconds(timeout, "timeout")?;
    options.connect_timeout_ms = milliseconds(connect_timeout, "connect_timeout")?;
    options.trusted_certificates =
        trusted_certificates.map(|given| pem(given, "trusted_certificates")).transpose()?;
    options.system_roots = flag(system_roots, "system_roots")?;
    options.revocation_lists = revocation_lists.map(|given| pem(given, "revocation_lists")).transpose()?;
    options.identity = identity.map(identity_in).transpose()?;
    if let Some(name) = server_name {
        options.server_name = Some(text(name, "server_name is a str")?.to_str()?.to_owned());
    }
    options.sealed = flag(sealed, "sealed")?;
    options.min_security = min_security.map(security_in).transpose()?;
    options.token = token.map(token_in).transpose()?;
    if let Some(config) = service_config {
        options.service_config = Some(text(config, "service_config is a str")?.to_str()?.to_owned());
    }
    options.keepalive_ms = keepalive.map(|given| milliseconds_or_0(given, "keepalive")).transpose()?;
    options.keepalive_timeout_ms =
        keepalive_timeout.map(|given| milliseconds(given, "keepalive_timeout")).transpose()?;
    options.keepalive_idle_ms =
        keepalive_idle.map(|given| milliseconds_or_0(given, "keepalive_idle")).transpose()?;
    log::ask_level(py)?;
    Ok(Operation::new(Start::Connect { endpoint, options: Box::new(options) }))
}

fn unary(
    client: u64,
    method: &Bound<'_, PyAny>,
    message: &Bound<'_, PyAny>,
    options: CallOptions,
    whole: bool,
) -> PyResult<Operation> {
    let method = text(method, METHOD)?.clone().unbind();
    let message = message_in(message)?;
    Ok(Operation::new(Start::Call { client: Handle::from_raw(client), method, message, options, whole }))
}

#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "they are Python's options")]
#[pyo3(signature = (client, method, message, timeout, metadata, priority, idempotent, idempotency_key))]
fn call(
    client: u64,
    method: &Bound<'_, PyAny>,
    message: &Bound<'_, PyAny>,
    timeout: Option<&Bound<'_, PyAny>>,
    metadata: Option<&Bound<'_, PyAny>>,
    priority: Option<&Bound<'_, PyAny>>,
    idempotent: Option<&Bound<'_, PyAny>>,
    idempotency_key: Option<&Bound<'_, PyAny>>,
) -> PyResult<Operation> {
    let mut options = options_in(timeout, metadata, priority, idempotent)?;
    options.idempotency_key = idempotency_key.map(key_in).transpose()?;
    unary(client, method, message, options, false)
}

#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "they are Python's options")]
#[pyo3(signature = (client, method, message, timeout, metadata, priority, idempotent, idempotency_key))]
fn call_whole(
    client: u64,
    method: &Bound<'_, PyAny>,
    message: &Bound<'_, PyAny>,
    timeout: Option<&Bound<'_, PyAny>>,
    metadata: Option<&Bound<'_, PyAny>>,
    priority: Option<&Bound<'_, PyAny>>,
    idempotent: Option<&Bound<'_, PyAny>>,
    idempotency_key: Option<&Bound<'_, PyAny>>,
) -> PyResult<Operation> {
    let mut options = options_in(timeout, metadata, priority, idempotent)?;
    options.idempotency_key = idempotency_key.map(key_in).transpose()?;
    unary(client, method, message, options, true)
}

/// What a method must be, for a message.
const METHOD: &str = "method is a str such as '/echo'";

#[pyfunction]
fn open(
    py: Python<'_>,
    client: u64,
    method: &Bound<'_, PyAny>,
    timeout: Option<&Bound<'_, PyAny>>,
    metadata: Option<&Bound<'_, PyAny>>,
    priority: Option<&Bound<'_, PyAny>>,
) -> PyResult<u64> {
    let options = options_in(timeout, metadata, priority, None)?;
    // No surrogate is part of a method, which the core says.
    let method = text(method, METHOD)?.to_string_lossy();
    operation::with_blocking_queue(|queue| bridge::open(Handle::from_raw(client), queue, &method, options))
        .map(Handle::to_raw)
        .map_err(|status| raised(py, &status))
}

#[pyfunction]
fn send(stream: u64, message: &Bound<'_, PyAny>) -> PyResult<Operation> {
    Ok(Operation::new(Start::Send { stream: Handle::from_raw(stream), message: message_in(message)? }))
}

#[pyfunction]
fn half_close(stream: u64) -> Operation {
    Operation::new(Start::HalfClose { stream: Handle::from_raw(stream) })
}

#[pyfunction]
fn recv(stream: u64, max: usize) -> Operation {
    Operation::new(Start::Recv { stream: Handle::from_raw(stream), max })
}

#[pyfunction]
fn close(client: u64) -> Operation {
    Operation::new(Start::Close { client: Handle::from_raw(client) })
}

#[pyfunction]
fn set_service_config(py: Python<'_>, client: u64, config: &Bound<'_, PyAny>) -> PyResult<()> {
    let config = text(config, "service_config is a str")?.to_str()?;
    bridge::set_service_config(Handle::from_raw(client), config).map_err(|status| raised(py, &status))
}

#[pyfunction]
fn breakers(py: Python<'_>, client: u64) -> PyResult<String> {
    bridge::breakers(Handle::from_raw(client)).map_err(|status| raised(py, &status))
}

/// The number is what stands for those that were seen; its outcome has the next one.
#[pyfunction]
fn breakers_other_than(client: u64, seen: u64) -> Operation {
    Operation::new(Start::BreakersOtherThan { client: Handle::from_raw(client), seen })
}

#[pyfunction]
fn metrics(py: Python<'_>, client: u64) -> PyResult<String> {
    bridge::metrics(Handle::from_raw(client)).map_err(|status| raised(py, &status))
}

/// Or ends that.
#[pyfunction]
fn isolate(
    py: Python<'_>,
    client: u64,
    server: &Bound<'_, PyAny>,
    method: Option<&Bound<'_, PyAny>>,
    isolated: bool,
) -> PyResult<()> {
    let server = text(server, "server is a str such as 'tcp://host:port'")?.to_str()?;
    let method = method.map(|method| text(method, METHOD)).transpose()?;
    let method = method.map(|method| method.to_str()).transpose()?;
    let set = if isolated { bridge::isolate } else { bridge::restore };
    set(Handle::from_raw(client), server, method).map_err(|status| raised(py, &status))
}

/// By its number.
#[pyfunction]
fn connectivity(client: u64) -> u8 {
    bridge::connectivity(Handle::from_raw(client)) as u8
}

#[pyfunction]
fn connectivity_other_than(client: u64, seen: usize) -> PyResult<Operation> {
    let seen = bridge::CONNECTIVITIES.get(seen).copied();
    let seen = seen.ok_or_else(|| PyValueError::new_err("seen is no number of a connectivity"))?;
    Ok(Operation::new(Start::ConnectivityOtherThan { client: Handle::from_raw(client), seen }))
}

#[pyfunction]
fn token_wanted(client: u64) -> Operation {
    Operation::new(Start::TokenWanted { client: Handle::from_raw(client) })
}

/// Whoever waited for it may be gone, and so may the client.
#[pyfunction]
fn token_provide(client: u64, request: u64, token: Option<String>, error: Option<String>) {
    let answer = token.map(bridge::Token::new).ok_or_else(|| error.unwrap_or_default());
    let _ = bridge::token_provide(Handle::from_raw(client), request, answer);
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
    // SAFETY: this thread is attached to the interpreter that loads the module.
    let interpreter = unsafe { pyo3::ffi::PyInterpreterState_GetID(pyo3::ffi::PyInterpreterState_Get()) };
    if interpreter != 0 {
        let message = "valkyrie works in the main interpreter only, not in subinterpreters";
        return Err(PyImportError::new_err(message));
    }
    module.add_class::<Operation>()?;
    module.add_class::<queue::Queue>()?;
    module.add_function(wrap_pyfunction!(connect, module)?)?;
    module.add_function(wrap_pyfunction!(call, module)?)?;
    module.add_function(wrap_pyfunction!(call_whole, module)?)?;
    module.add_function(wrap_pyfunction!(open, module)?)?;
    module.add_function(wrap_pyfunction!(send, module)?)?;
    module.add_function(wrap_pyfunction!(half_close, module)?)?;
    module.add_function(wrap_pyfunction!(recv, module)?)?;
    module.add_function(wrap_pyfunction!(close, module)?)?;
    module.add_function(wrap_pyfunction!(set_service_config, module)?)?;
    module.add_function(wrap_pyfunction!(breakers, module)?)?;
    module.add_function(wrap_pyfunction!(breakers_other_than, module)?)?;
    module.add_function(wrap_pyfunction!(isolate, module)?)?;
    module.add_function(wrap_pyfunction!(metrics, module)?)?;
    module.add_function(wrap_pyfunction!(connectivity, module)?)?;
    module.add_function(wrap_pyfunction!(connectivity_other_than, module)?)?;
    module.add_function(wrap_pyfunction!(token_wanted, module)?)?;
    module.add_function(wrap_pyfunction!(token_provide, module)?)?;
    module.add_function(wrap_pyfunction!(stream_free, module)?)?;
    module.add_function(wrap_pyfunction!(client_free, module)?)?;
    module.add_function(wrap_pyfunction!(in_flight, module)?)?;
    module.add_function(wrap_pyfunction!(version, module)?)?;
    Ok(())
}
