//! The C library over the bridge. The header that is made from this file is its documentation.
//!
//! Every exported function is wrapped by [`guard`]: a panic becomes INTERNAL and never leaves `extern "C"`.
#![allow(non_camel_case_types, reason = "the names are C's")]
#![allow(clippy::missing_safety_doc, reason = "the header's head states the rules of every pointer")]

use std::{
    collections::{HashMap, VecDeque},
    ffi::{CStr, CString, c_char, c_void},
    mem::offset_of,
    panic::{AssertUnwindSafe, catch_unwind},
    ptr, slice,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use valkyrie_bridge::{
    self as bridge, Bytes, CallOptions, ClientOptions, Code, Completion, Handle, Metadata, Priority, Queue,
    Reason, Response, Status, Value,
};

/// A status code: gRPC's numbers, VALKYRIE_CODE_…. A number without a name here is passed on as it came.
pub type valkyrie_code = u32;

/// Success.
pub const VALKYRIE_CODE_OK: u32 = 0;
/// The caller gave up, or the client is closed.
pub const VALKYRIE_CODE_CANCELLED: u32 = 1;
/// An error without a better code.
pub const VALKYRIE_CODE_UNKNOWN: u32 = 2;
/// Something that can never be right.
pub const VALKYRIE_CODE_INVALID_ARGUMENT: u32 = 3;
/// The deadline passed before the call ended.
pub const VALKYRIE_CODE_DEADLINE_EXCEEDED: u32 = 4;
/// The thing asked for does not exist.
pub const VALKYRIE_CODE_NOT_FOUND: u32 = 5;
/// The thing to create exists.
pub const VALKYRIE_CODE_ALREADY_EXISTS: u32 = 6;
/// The caller is known and may not do this.
pub const VALKYRIE_CODE_PERMISSION_DENIED: u32 = 7;
/// A limit or a quota is used up.
pub const VALKYRIE_CODE_RESOURCE_EXHAUSTED: u32 = 8;
/// The system is not in the state that the call needs.
pub const VALKYRIE_CODE_FAILED_PRECONDITION: u32 = 9;
/// A conflict; try the whole again.
pub const VALKYRIE_CODE_ABORTED: u32 = 10;
/// Past the valid range.
pub const VALKYRIE_CODE_OUT_OF_RANGE: u32 = 11;
/// The server has no such method.
pub const VALKYRIE_CODE_UNIMPLEMENTED: u32 = 12;
/// Something that must hold does not.
pub const VALKYRIE_CODE_INTERNAL: u32 = 13;
/// The service cannot be reached now.
pub const VALKYRIE_CODE_UNAVAILABLE: u32 = 14;
/// Data is lost or corrupt.
pub const VALKYRIE_CODE_DATA_LOSS: u32 = 15;
/// The caller did not prove who it is.
pub const VALKYRIE_CODE_UNAUTHENTICATED: u32 = 16;

/// The default priority class.
pub const VALKYRIE_PRIORITY_NORMAL: u32 = 0;
/// Ahead of everything else.
pub const VALKYRIE_PRIORITY_CRITICAL: u32 = 1;
/// Behind everything else, with a small share always.
pub const VALKYRIE_PRIORITY_BULK: u32 = 2;

/// Bytes that belong to somebody else. {NULL, 0} is empty.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct valkyrie_bytes {
    /// The first byte; may be NULL when len is 0.
    pub data: *const u8,
    /// How many bytes.
    pub len: usize,
}

/// One entry of metadata to send.
#[repr(C)]
pub struct Entry {
    /// 1 to 128 of a-z 0-9 - _ .
    pub key: *const c_char,
    /// Printable ASCII, or any bytes when the key ends in -bin.
    pub value: valkyrie_bytes,
}

/// Options of a client: begin with VALKYRIE_CLIENT_OPTIONS_INIT. NULL instead of them means every default.
#[repr(C)]
pub struct valkyrie_client_options {
    /// sizeof of this structure as the program knows it.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Time limit of unary calls that give none, in milliseconds; 0 means 5,000.
    pub timeout_ms: u64,
    /// Time limit of making a connection, in milliseconds; 0 means 5,000.
    pub connect_timeout_ms: u64,
    /// PEM text, ended by NUL: a server's certificates must lead to one of these. Needed for quic://; NULL means none.
    pub trusted_certificates: *const c_char,
}

/// Options of a call: begin with VALKYRIE_CALL_OPTIONS_INIT. NULL instead of them means every default.
#[repr(C)]
pub struct valkyrie_call_options {
    /// sizeof of this structure as the program knows it.
    pub struct_size: u32,
    /// VALKYRIE_PRIORITY_…; 0 is normal.
    pub priority: u32,
    /// Milliseconds; 0 means the client's for unary calls and none for streams; VALKYRIE_NO_TIMEOUT means none.
    pub timeout_ms: u64,
    /// metadata_len entries, copied; may be NULL when that is 0.
    pub metadata: *const Entry,
    /// How many entries.
    pub metadata_len: usize,
}

/// Metadata that was received. Borrowed from the object it came from.
pub struct valkyrie_metadata(Metadata);

/// Why something failed. Immutable.
pub struct valkyrie_error {
    status: Status,
    message: CString,
    metadata: valkyrie_metadata,
    trailers: valkyrie_metadata,
}

/// The answer of a unary call. Immutable.
pub struct valkyrie_response {
    message: Bytes,
    metadata: valkyrie_metadata,
    trailers: valkyrie_metadata,
}

/// A message that was received. Immutable.
pub struct valkyrie_message(Bytes);

/// Makes calls to one endpoint.
pub struct valkyrie_client {
    handle: Handle,
    closed: AtomicBool,
}

/// One stream of any shape.
pub struct valkyrie_call {
    handle: Handle,
    inner: Mutex<CallInner>,
    metadata: std::sync::OnceLock<valkyrie_metadata>,
    trailers: std::sync::OnceLock<valkyrie_metadata>,
}

#[derive(Default)]
struct CallInner {
    ready: VecDeque<Bytes>,
    ended: bool,
}

/// Called from valkyrie_queue_dispatch, exactly once per accepted call: code 0 with the response, or another code with
/// the error. Whichever it is belongs to the callback, which frees it.
pub type valkyrie_callback = Option<
    extern "C" fn(
        code: valkyrie_code,
        response: *mut valkyrie_response,
        error: *mut valkyrie_error,
        user_data: *mut c_void,
    ),
>;

/// Completions on their way to the host's own loop.
pub struct valkyrie_queue {
    queue: Arc<Queue>,
    waiting: Mutex<HashMap<u64, Waiting>>,
}

struct Waiting {
    callback: extern "C" fn(valkyrie_code, *mut valkyrie_response, *mut valkyrie_error, *mut c_void),
    user_data: *mut c_void,
}

// SAFETY: the library only hands `user_data` back; what it points to is the host's, whose callback runs on the thread
// that dispatches.
unsafe impl Send for Waiting {}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn invalid(message: impl Into<String>) -> Status {
    Status::from_reason(Reason::INVALID_ARGUMENT, message.into())
}

fn closed() -> Status {
    Status::from_reason(Reason::CLIENT_CLOSED, "the client is closed")
}

/// A status as the object that C sees.
fn error(status: Status) -> *mut valkyrie_error {
    let message = status.message().replace('\0', " ");
    Box::into_raw(Box::new(valkyrie_error {
        message: CString::new(message).unwrap_or_default(),
        metadata: valkyrie_metadata(status.metadata().clone()),
        trailers: valkyrie_metadata(status.trailers().clone()),
        status,
    }))
}

/// Runs the body of an exported function: a status becomes the code and the error, a panic INTERNAL.
///
/// # Safety
/// `out` is NULL or points to a writable pointer.
unsafe fn guard(out: *mut *mut valkyrie_error, body: impl FnOnce() -> Result<(), Status>) -> valkyrie_code {
    let status = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return VALKYRIE_CODE_OK,
        Ok(Err(status)) => status,
        Err(_) => Status::from_reason(Reason::INTERNAL, "the library panicked"),
    };
    // A status of the server's own may carry the number 0 no more than this may.
    let code = if status.code() == Code::Ok { Code::Unknown } else { status.code() };
    if !out.is_null() {
        // SAFETY: the caller passes NULL or a writable pointer.
        unsafe { *out = error(status) };
    }
    code.number()
}

/// # Safety
/// `pointer` is NULL or a live object of this library.
unsafe fn object<'a, T>(pointer: *const T, name: &str) -> Result<&'a T, Status> {
    // SAFETY: the caller passes NULL or a live object.
    unsafe { pointer.as_ref() }.ok_or_else(|| invalid(format!("{name} is NULL")))
}

/// # Safety
/// `pointer` is NULL or a string that ends in NUL.
unsafe fn text<'a>(pointer: *const c_char, name: &str) -> Result<&'a str, Status> {
    if pointer.is_null() {
        return Err(invalid(format!("{name} is NULL")));
    }
    // SAFETY: it is not NULL, and the caller passes a string that ends in NUL.
    let text = unsafe { CStr::from_ptr(pointer) };
    text.to_str().map_err(|_| invalid(format!("{name} is not UTF-8")))
}

/// # Safety
/// `bytes.data` has `bytes.len` readable bytes, or is NULL.
unsafe fn copy(bytes: valkyrie_bytes, name: &str) -> Result<Bytes, Status> {
    if bytes.len == 0 {
        return Ok(Bytes::new());
    }
    if bytes.data.is_null() {
        return Err(invalid(format!("{name} is NULL with a length of {}", bytes.len)));
    }
    if bytes.len > isize::MAX as usize {
        return Err(invalid(format!("{name} has a length of {}", bytes.len)));
    }
    // SAFETY: it is not NULL, the length fits, and the caller vouches for the bytes.
    Ok(Bytes::copy_from_slice(unsafe { slice::from_raw_parts(bytes.data, bytes.len) }))
}

fn lend(bytes: &[u8]) -> valkyrie_bytes {
    valkyrie_bytes { data: if bytes.is_empty() { ptr::null() } else { bytes.as_ptr() }, len: bytes.len() }
}

/// # Safety
/// `options` is NULL or points to as many bytes as its first field says.
unsafe fn call_options(options: *const valkyrie_call_options) -> Result<CallOptions, Status> {
    let mut out = CallOptions::default();
    if options.is_null() {
        return Ok(out);
    }
    // SAFETY: not NULL, and every version of the structure begins with its size.
    let size = unsafe { ptr::addr_of!((*options).struct_size).read() } as usize;
    if size < size_of::<valkyrie_call_options>() {
        return Err(invalid(format!(
            "struct_size {size} of the call options is too small; use the INIT macro"
        )));
    }
    // SAFETY: the structure is at least as large as ours.
    let options = unsafe { &*options };
    out.priority = match options.priority {
        VALKYRIE_PRIORITY_NORMAL => Priority::Normal,
        VALKYRIE_PRIORITY_CRITICAL => Priority::Critical,
        VALKYRIE_PRIORITY_BULK => Priority::Bulk,
        other => return Err(invalid(format!("priority {other} is not 0 to 2"))),
    };
    out.timeout_ms = (options.timeout_ms != 0).then_some(options.timeout_ms);
    if options.metadata_len > 0 {
        if options.metadata.is_null() {
            return Err(invalid("metadata is NULL with a length"));
        }
        if options.metadata_len > 128 {
            return Err(invalid(format!("{} entries of metadata, at most 128", options.metadata_len)));
        }
        // SAFETY: not NULL, the length is small, and the caller vouches for the entries.
        for entry in unsafe { slice::from_raw_parts(options.metadata, options.metadata_len) } {
            // SAFETY: the caller vouches for the strings and bytes of the entries.
            let (key, value) =
                unsafe { (text(entry.key, "metadata key")?, copy(entry.value, "metadata value")?) };
            out.metadata.insert(key, value)?;
        }
    }
    Ok(out)
}

thread_local! {
    /// What this thread blocks on.
    static QUEUE: Arc<Queue> = Queue::blocking();
}

/// Submits an operation and blocks this thread until it completes.
fn run<T>(submit: impl FnOnce(&Arc<Queue>) -> Result<(T, u64), Status>) -> Result<(T, Value), Status> {
    QUEUE.with(|queue| {
        let (extra, op) = submit(queue)?;
        let mut taken = Vec::new();
        loop {
            queue.wait(None);
            queue.drain(&mut taken, usize::MAX);
            for Completion { op: done, outcome } in taken.drain(..) {
                if done == op {
                    return outcome.map(|value| (extra, value));
                }
            }
        }
    })
}

fn response(value: Value) -> Result<*mut valkyrie_response, Status> {
    match value {
        Value::Response(Response { message, metadata, trailers, .. }) => {
            Ok(Box::into_raw(Box::new(valkyrie_response {
                message,
                metadata: valkyrie_metadata(metadata),
                trailers: valkyrie_metadata(trailers),
            })))
        }
        _ => Err(Status::from_reason(Reason::INTERNAL, "a unary call completed with something else")),
    }
}

/// The version and a hash of the core, which is the same in every language. Lives for ever.
#[unsafe(no_mangle)]
pub extern "C" fn valkyrie_version() -> *const c_char {
    static VERSION: std::sync::OnceLock<CString> = std::sync::OnceLock::new();
    VERSION.get_or_init(|| CString::new(bridge::version()).unwrap_or_default()).as_ptr()
}

/// The version of the interface that the library has; equal to VALKYRIE_ABI_VERSION or the header does not fit.
#[unsafe(no_mangle)]
pub extern "C" fn valkyrie_abi_version() -> u32 {
    1
}

/// The name of a code, such as "DEADLINE_EXCEEDED"; "UNKNOWN" for a number without one. Lives for ever.
#[unsafe(no_mangle)]
pub extern "C" fn valkyrie_code_name(code: valkyrie_code) -> *const c_char {
    static NAMES: std::sync::OnceLock<Vec<CString>> = std::sync::OnceLock::new();
    let names = NAMES
        .get_or_init(|| Code::ALL.iter().map(|code| CString::new(code.name()).unwrap_or_default()).collect());
    names.get(code as usize).unwrap_or(&names[2]).as_ptr()
}

/// Makes a client and its first connection. Blocks. endpoint: "tcp://host:port", "unix:///path", "ws://host:port".
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_client_connect(
    endpoint: *const c_char,
    options: *const valkyrie_client_options,
    out: *mut *mut valkyrie_client,
    error: *mut *mut valkyrie_error,
) -> valkyrie_code {
    // SAFETY: every pointer is as the head of the header asks.
    unsafe {
        guard(error, || {
            let endpoint = text(endpoint, "endpoint")?;
            if out.is_null() {
                return Err(invalid("out is NULL"));
            }
            let mut chosen = ClientOptions::default();
            if !options.is_null() {
                let size = ptr::addr_of!((*options).struct_size).read() as usize;
                // What was there first; a program that knows no more leaves the rest at its default.
                if size < offset_of!(valkyrie_client_options, trusted_certificates) {
                    return Err(invalid(format!(
                        "struct_size {size} of the client options is too small; use the INIT macro"
                    )));
                }
                if (*options).timeout_ms != 0 {
                    chosen.timeout_ms = (*options).timeout_ms;
                }
                if (*options).connect_timeout_ms != 0 {
                    chosen.connect_timeout_ms = (*options).connect_timeout_ms;
                }
                if size >= size_of::<valkyrie_client_options>() && !(*options).trusted_certificates.is_null()
                {
                    let pem = text((*options).trusted_certificates, "trusted_certificates")?;
                    chosen.trusted_certificates = Some(pem.to_owned().into());
                }
            }
            let mut made = None;
            let result = run(|queue| {
                let (handle, op) = bridge::connect(queue, endpoint, chosen)?;
                made = Some(handle);
                Ok((handle, op))
            });
            match result {
                Ok((handle, _)) => {
                    *out =
                        Box::into_raw(Box::new(valkyrie_client { handle, closed: AtomicBool::new(false) }));
                    Ok(())
                }
                Err(status) => {
                    if let Some(handle) = made {
                        bridge::client_free(handle);
                    }
                    Err(status)
                }
            }
        })
    }
}

/// Closes gracefully: calls in flight may finish within 5 s. Blocks. Idempotent. Later calls fail with CANCELLED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_client_close(
    client: *const valkyrie_client,
    error: *mut *mut valkyrie_error,
) -> valkyrie_code {
    // SAFETY: every pointer is as the head of the header asks.
    unsafe {
        guard(error, || {
            let client = object(client, "client")?;
            client.closed.store(true, Ordering::Release);
            run(|queue| bridge::close(client.handle, queue).map(|op| ((), op))).map(drop)
        })
    }
}

/// Frees a client; calls in flight end with CANCELLED. Takes NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_client_free(client: *mut valkyrie_client) {
    if !client.is_null() {
        // SAFETY: a live object that this library boxed, given back once.
        let client = unsafe { Box::from_raw(client) };
        let _ = catch_unwind(|| bridge::client_free(client.handle));
    }
}

/// One message out, one message back. Blocks. options may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_client_call(
    client: *const valkyrie_client,
    method: *const c_char,
    message: valkyrie_bytes,
    options: *const valkyrie_call_options,
    out: *mut *mut valkyrie_response,
    error: *mut *mut valkyrie_error,
) -> valkyrie_code {
    // SAFETY: every pointer is as the head of the header asks.
    unsafe {
        guard(error, || {
            let (client, method) = (object(client, "client")?, text(method, "method")?);
            let (message, options) = (copy(message, "message")?, call_options(options)?);
            if out.is_null() {
                return Err(invalid("out is NULL"));
            }
            let (_, value) =
                run(|queue| bridge::call(client.handle, queue, method, message, options).map(|op| ((), op)))?;
            *out = response(value)?;
            Ok(())
        })
    }
}

/// valkyrie_client_call of the default method, "/echo", with every default. Blocks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_client_request(
    client: *const valkyrie_client,
    message: valkyrie_bytes,
    out: *mut *mut valkyrie_response,
    error: *mut *mut valkyrie_error,
) -> valkyrie_code {
    // SAFETY: every pointer is as the head of the header asks.
    unsafe { valkyrie_client_call(client, c"/echo".as_ptr(), message, ptr::null(), out, error) }
}

/// Begins a call and returns at once. callback runs in valkyrie_queue_dispatch of that queue, exactly once; not at all
/// when this function fails. operation may be NULL; else it gets the number for valkyrie_operation_cancel.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_client_call_start(
    client: *const valkyrie_client,
    queue: *const valkyrie_queue,
    method: *const c_char,
    message: valkyrie_bytes,
    options: *const valkyrie_call_options,
    operation: *mut u64,
    error: *mut *mut valkyrie_error,
    callback: valkyrie_callback,
    user_data: *mut c_void,
) -> valkyrie_code {
    // SAFETY: every pointer is as the head of the header asks.
    unsafe {
        guard(error, || {
            let (client, queue) = (object(client, "client")?, object(queue, "queue")?);
            let (method, message) = (text(method, "method")?, copy(message, "message")?);
            let options = call_options(options)?;
            let callback = callback.ok_or_else(|| invalid("callback is NULL"))?;
            // Held until the callback is known, so that a dispatch on another thread finds it.
            let mut waiting = lock(&queue.waiting);
            let op = bridge::call(client.handle, &queue.queue, method, message, options)?;
            waiting.insert(op, Waiting { callback, user_data });
            if !operation.is_null() {
                *operation = op;
            }
            Ok(())
        })
    }
}

/// Gives a call up: its callback gets CANCELLED unless it is complete. Idempotent; unknown numbers are ignored.
#[unsafe(no_mangle)]
pub extern "C" fn valkyrie_operation_cancel(operation: u64) {
    let _ = catch_unwind(|| bridge::cancel(operation));
}

/// Makes a completion queue.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_queue_new(
    out: *mut *mut valkyrie_queue,
    error: *mut *mut valkyrie_error,
) -> valkyrie_code {
    // SAFETY: every pointer is as the head of the header asks.
    unsafe {
        guard(error, || {
            if out.is_null() {
                return Err(invalid("out is NULL"));
            }
            let queue = Queue::with_fd().map_err(|error| {
                Status::from_reason(Reason::INTERNAL, format!("no descriptor for the queue: {error}"))
            })?;
            *out = Box::into_raw(Box::new(valkyrie_queue { queue, waiting: Mutex::default() }));
            Ok(())
        })
    }
}

/// A descriptor that is readable while a callback waits, for poll, epoll or select; -1 for NULL. Belongs to the queue:
/// never read or close it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_queue_fd(queue: *const valkyrie_queue) -> i32 {
    // SAFETY: NULL or a live queue.
    unsafe { queue.as_ref() }.and_then(|queue| queue.queue.fd()).unwrap_or(-1)
}

/// Runs the callbacks that wait, on this thread, and gives how many; waits for the first one at most timeout_ms
/// (0: not at all; VALKYRIE_NO_TIMEOUT: for ever). A callback may begin calls, not free the queue.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_queue_dispatch(queue: *const valkyrie_queue, timeout_ms: u64) -> usize {
    // SAFETY: NULL or a live queue.
    let Some(queue) = (unsafe { queue.as_ref() }) else { return 0 };
    let body = AssertUnwindSafe(|| {
        let mut taken = Vec::new();
        let wait = (timeout_ms != u64::MAX).then(|| Duration::from_millis(timeout_ms));
        if timeout_ms > 0 {
            queue.queue.wait(wait);
        }
        queue.queue.drain(&mut taken, usize::MAX);
        let mut count = 0;
        for Completion { op, outcome } in taken {
            let Some(Waiting { callback, user_data }) = lock(&queue.waiting).remove(&op) else { continue };
            count += 1;
            match outcome.and_then(response) {
                Ok(response) => callback(VALKYRIE_CODE_OK, response, ptr::null_mut(), user_data),
                Err(status) => {
                    let code = if status.code() == Code::Ok { Code::Unknown } else { status.code() };
                    callback(code.number(), ptr::null_mut(), error(status), user_data);
                }
            }
        }
        count
    });
    catch_unwind(body).unwrap_or(0)
}

/// Frees a queue. Calls that wait on it are cancelled, and their callbacks run here with CANCELLED. Takes NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_queue_free(queue: *mut valkyrie_queue) {
    if queue.is_null() {
        return;
    }
    // SAFETY: a live object that this library boxed, given back once.
    let queue = unsafe { Box::from_raw(queue) };
    let _ = catch_unwind(AssertUnwindSafe(|| {
        queue.queue.close();
        let waiting = std::mem::take(&mut *lock(&queue.waiting));
        for (op, Waiting { callback, user_data }) in waiting {
            bridge::cancel(op);
            let status = Status::from_reason(Reason::CANCELLED, "the queue was freed");
            callback(VALKYRIE_CODE_CANCELLED, ptr::null_mut(), error(status), user_data);
        }
    }));
}

/// Opens a stream of any shape. Does not block: what the server says comes with send and recv.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_client_open(
    client: *const valkyrie_client,
    method: *const c_char,
    options: *const valkyrie_call_options,
    out: *mut *mut valkyrie_call,
    error: *mut *mut valkyrie_error,
) -> valkyrie_code {
    // SAFETY: every pointer is as the head of the header asks.
    unsafe {
        guard(error, || {
            let (client, method) = (object(client, "client")?, text(method, "method")?);
            let options = call_options(options)?;
            if out.is_null() {
                return Err(invalid("out is NULL"));
            }
            if client.closed.load(Ordering::Acquire) {
                return Err(closed());
            }
            let handle = QUEUE.with(|queue| bridge::open(client.handle, queue, method, options))?;
            *out = Box::into_raw(Box::new(valkyrie_call {
                handle,
                inner: Mutex::default(),
                metadata: std::sync::OnceLock::new(),
                trailers: std::sync::OnceLock::new(),
            }));
            Ok(())
        })
    }
}

/// Sends a message. Blocks while the peer's credit is used up.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_call_send(
    call: *const valkyrie_call,
    message: valkyrie_bytes,
    error: *mut *mut valkyrie_error,
) -> valkyrie_code {
    // SAFETY: every pointer is as the head of the header asks.
    unsafe {
        guard(error, || {
            let (call, message) = (object(call, "call")?, copy(message, "message")?);
            run(|queue| bridge::send(call.handle, queue, message).map(|op| ((), op))).map(drop)
        })
    }
}

/// No more messages from this side.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_call_half_close(
    call: *const valkyrie_call,
    error: *mut *mut valkyrie_error,
) -> valkyrie_code {
    // SAFETY: every pointer is as the head of the header asks.
    unsafe {
        guard(error, || {
            let call = object(call, "call")?;
            run(|queue| bridge::half_close(call.handle, queue).map(|op| ((), op))).map(drop)
        })
    }
}

/// The next message; *out is NULL with code 0 once the call has ended well. Blocks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_call_recv(
    call: *const valkyrie_call,
    out: *mut *mut valkyrie_message,
    error: *mut *mut valkyrie_error,
) -> valkyrie_code {
    /// Messages that one crossing may bring.
    const BATCH: usize = 64;
    // SAFETY: every pointer is as the head of the header asks.
    unsafe {
        guard(error, || {
            let call = object(call, "call")?;
            if out.is_null() {
                return Err(invalid("out is NULL"));
            }
            let need = {
                let inner = lock(&call.inner);
                inner.ready.is_empty() && !inner.ended
            };
            if need {
                let (_, value) = run(|queue| bridge::recv(call.handle, queue, BATCH).map(|op| ((), op)))?;
                if let Value::Messages { messages, end } = value {
                    let mut inner = lock(&call.inner);
                    inner.ready.extend(messages);
                    if let Some(end) = end {
                        inner.ended = true;
                        let _ = call.metadata.set(valkyrie_metadata(end.metadata));
                        let _ = call.trailers.set(valkyrie_metadata(end.trailers));
                    }
                }
            }
            *out = match lock(&call.inner).ready.pop_front() {
                Some(message) => Box::into_raw(Box::new(valkyrie_message(message))),
                None => ptr::null_mut(),
            };
            Ok(())
        })
    }
}

/// Initial metadata once the call has ended well; NULL before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_call_metadata(call: *const valkyrie_call) -> *const valkyrie_metadata {
    // SAFETY: NULL or a live call.
    unsafe { call.as_ref() }.and_then(|call| call.metadata.get()).map_or(ptr::null(), ptr::from_ref)
}

/// Trailers once the call has ended well; NULL before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_call_trailers(call: *const valkyrie_call) -> *const valkyrie_metadata {
    // SAFETY: NULL or a live call.
    unsafe { call.as_ref() }.and_then(|call| call.trailers.get()).map_or(ptr::null(), ptr::from_ref)
}

/// Cancels a call in both directions; what blocks on it ends with CANCELLED. Idempotent. Takes NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_call_cancel(call: *const valkyrie_call) {
    // SAFETY: NULL or a live call.
    if let Some(call) = unsafe { call.as_ref() } {
        let _ = catch_unwind(AssertUnwindSafe(|| bridge::stream_cancel(call.handle)));
    }
}

/// Frees a call; one that has not ended is cancelled. Takes NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_call_free(call: *mut valkyrie_call) {
    if !call.is_null() {
        // SAFETY: a live object that this library boxed, given back once.
        let call = unsafe { Box::from_raw(call) };
        let _ = catch_unwind(AssertUnwindSafe(|| bridge::stream_free(call.handle)));
    }
}

/// The bytes of a message; live until it is freed. Empty for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_message_bytes(message: *const valkyrie_message) -> valkyrie_bytes {
    // SAFETY: NULL or a live message.
    unsafe { message.as_ref() }.map_or(lend(&[]), |message| lend(&message.0))
}

/// Frees a message. Takes NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_message_free(message: *mut valkyrie_message) {
    if !message.is_null() {
        // SAFETY: a live object that this library boxed, given back once.
        drop(unsafe { Box::from_raw(message) });
    }
}

/// The message of a response; lives until the response is freed. Empty for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_response_message(response: *const valkyrie_response) -> valkyrie_bytes {
    // SAFETY: NULL or a live response.
    unsafe { response.as_ref() }.map_or(lend(&[]), |response| lend(&response.message))
}

/// Initial metadata of a response; NULL for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_response_metadata(
    response: *const valkyrie_response,
) -> *const valkyrie_metadata {
    // SAFETY: NULL or a live response.
    unsafe { response.as_ref() }.map_or(ptr::null(), |response| &response.metadata)
}

/// Trailers of a response; NULL for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_response_trailers(
    response: *const valkyrie_response,
) -> *const valkyrie_metadata {
    // SAFETY: NULL or a live response.
    unsafe { response.as_ref() }.map_or(ptr::null(), |response| &response.trailers)
}

/// Frees a response. Takes NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_response_free(response: *mut valkyrie_response) {
    if !response.is_null() {
        // SAFETY: a live object that this library boxed, given back once.
        drop(unsafe { Box::from_raw(response) });
    }
}

/// How many entries there are; 0 for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_metadata_len(metadata: *const valkyrie_metadata) -> usize {
    // SAFETY: NULL or live metadata.
    unsafe { metadata.as_ref() }.map_or(0, |metadata| metadata.0.len())
}

/// The entry at index, in the order it was sent: whether there is one. key (not ended by NUL) and value may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_metadata_at(
    metadata: *const valkyrie_metadata,
    index: usize,
    key: *mut valkyrie_bytes,
    value: *mut valkyrie_bytes,
) -> bool {
    // SAFETY: NULL or live metadata.
    let entry = unsafe { metadata.as_ref() }.and_then(|metadata| metadata.0.iter().nth(index));
    let Some((found, bytes)) = entry else { return false };
    // SAFETY: each output is NULL or writable.
    unsafe {
        if !key.is_null() {
            *key = lend(found.as_bytes());
        }
        if !value.is_null() {
            *value = lend(bytes);
        }
    }
    true
}

/// The status code; OK for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_error_code(error: *const valkyrie_error) -> valkyrie_code {
    // SAFETY: NULL or a live error.
    unsafe { error.as_ref() }.map_or(VALKYRIE_CODE_OK, |error| error.status.code().number())
}

/// A sentence for people, ended by NUL; lives until the error is freed. "" for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_error_message(error: *const valkyrie_error) -> *const c_char {
    // SAFETY: NULL or a live error.
    unsafe { error.as_ref() }.map_or(c"".as_ptr(), |error| error.message.as_ptr())
}

/// The stable reason, such as "CONNECTION_LOST"; "NONE" when the server's application made the status. Not ended by
/// NUL; lives for ever.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_error_reason(error: *const valkyrie_error) -> valkyrie_bytes {
    // SAFETY: NULL or a live error.
    lend(unsafe { error.as_ref() }.map_or("NONE", |error| error.status.reason().name()).as_bytes())
}

/// Whose fault it is: "application", "caller", "auth", "transient", "server" or "protocol". Not ended by NUL; lives for
/// ever.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_error_class(error: *const valkyrie_error) -> valkyrie_bytes {
    // SAFETY: NULL or a live error.
    lend(unsafe { error.as_ref() }.map_or("application", |error| error.status.class().name()).as_bytes())
}

/// Milliseconds that the server asks to wait before another attempt: whether it does. UINT64_MAX means never.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_error_pushback_ms(error: *const valkyrie_error, out: *mut u64) -> bool {
    // SAFETY: NULL or a live error.
    let Some(wait) = unsafe { error.as_ref() }.and_then(|error| error.status.pushback()) else {
        return false;
    };
    if !out.is_null() {
        // SAFETY: writable, as it is not NULL.
        unsafe { *out = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX) };
    }
    true
}

/// The detail at index: whether there is one. type_name (not ended by NUL) and value may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_error_detail(
    error: *const valkyrie_error,
    index: usize,
    type_name: *mut valkyrie_bytes,
    value: *mut valkyrie_bytes,
) -> bool {
    // SAFETY: NULL or a live error.
    let detail = unsafe { error.as_ref() }.and_then(|error| error.status.details().get(index));
    let Some(detail) = detail else { return false };
    // SAFETY: each output is NULL or writable.
    unsafe {
        if !type_name.is_null() {
            *type_name = lend(detail.type_name.as_bytes());
        }
        if !value.is_null() {
            *value = lend(&detail.value);
        }
    }
    true
}

/// Initial metadata that came with the error; NULL for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_error_metadata(error: *const valkyrie_error) -> *const valkyrie_metadata {
    // SAFETY: NULL or a live error.
    unsafe { error.as_ref() }.map_or(ptr::null(), |error| &error.metadata)
}

/// Trailers that came with the error; NULL for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_error_trailers(error: *const valkyrie_error) -> *const valkyrie_metadata {
    // SAFETY: NULL or a live error.
    unsafe { error.as_ref() }.map_or(ptr::null(), |error| &error.trailers)
}

/// Frees an error. Takes NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_error_free(error: *mut valkyrie_error) {
    if !error.is_null() {
        // SAFETY: a live object that this library boxed, given back once.
        drop(unsafe { Box::from_raw(error) });
    }
}

/// Operations that were accepted and are not complete, in the whole process.
#[unsafe(no_mangle)]
pub extern "C" fn valkyrie_in_flight() -> usize {
    catch_unwind(bridge::in_flight).unwrap_or(0)
}

/// Ends everything in the process: clients close at once, operations complete with CANCELLED, threads stop. Optional
/// before exit; what is still held may only be freed afterwards.
#[unsafe(no_mangle)]
pub extern "C" fn valkyrie_shutdown() {
    let _ = catch_unwind(bridge::shutdown);
}
