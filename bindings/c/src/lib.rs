//! The C library over the bridge. The header that is made from this file is its documentation.
//!
//! Every exported function is wrapped by [`guard`] or [`quiet`]: a panic becomes INTERNAL and never leaves `extern "C"`.
//! No lock is held while a callback of the host's runs, and nothing of this library has to be dropped then, so that a
//! C++ exception or a longjmp may leave through it.
#![allow(non_camel_case_types, reason = "the names are C's")]
#![allow(clippy::missing_safety_doc, reason = "the header's head states the rules of every pointer")]

mod table;

use std::{
    borrow::Cow,
    collections::{BTreeMap, VecDeque},
    ffi::{CStr, CString, c_char, c_void},
    future::poll_fn,
    mem::{MaybeUninit, offset_of},
    panic::{AssertUnwindSafe, catch_unwind},
    ptr, slice,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    thread,
    time::Duration,
};

use valkyrie_bridge::{
    self as bridge, BoxFuture, ByOperation, Bytes, CallOptions, ClientOptions, Code, Completion,
    Connectivity, Handle, IdempotencyKey, Level, Listener, Metadata, Pem, Priority, Queue, Reason, Record,
    Security, Status, Token, TokenOption, TokenSource, Value,
};

use table::{Object, Part};

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

/// MTLS with an identity, TLS with certificates to trust, else INSECURE.
pub const VALKYRIE_SECURITY_DEFAULT: u32 = 0;
/// Connections need no protection.
pub const VALKYRIE_SECURITY_INSECURE: u32 = 1;
/// Connections must be encrypted, and the server proves who it is.
pub const VALKYRIE_SECURITY_TLS: u32 = 2;
/// So, and the client proves who it is by a certificate.
pub const VALKYRIE_SECURITY_MTLS: u32 = 3;

/// valkyrie_operation_start: makes a client. Needs target, the endpoint; client_options may be NULL.
pub const VALKYRIE_OPERATION_CONNECT: u32 = 1;
/// valkyrie_operation_start: closes a client, as valkyrie_client_close. Needs client.
pub const VALKYRIE_OPERATION_CLOSE: u32 = 2;
/// valkyrie_operation_start: one message out, one back. Needs client and target, the method; call_options may be NULL.
pub const VALKYRIE_OPERATION_CALL: u32 = 3;
/// valkyrie_operation_start: sends message on a stream. Needs call.
pub const VALKYRIE_OPERATION_SEND: u32 = 4;
/// valkyrie_operation_start: half-closes a stream. Needs call.
pub const VALKYRIE_OPERATION_HALF_CLOSE: u32 = 5;
/// valkyrie_operation_start: takes the next message of a stream. Needs call.
pub const VALKYRIE_OPERATION_RECV: u32 = 6;
/// valkyrie_operation_start: waits for the next record of what happens to connections, to be logged. target is the least
/// grave level that is wanted: "error", "warn", "info" or "debug"; NULL means "warn". The completion's message is the
/// sentence, with metadata: level, target, and particulars such as endpoint. Its callback begins the next, as one record
/// is given at a time: the queue keeps the last 1,024 until then. A second one beside it ends the first with CANCELLED.
pub const VALKYRIE_OPERATION_LOG: u32 = 7;

/// valkyrie_operation_start: waits until a client no longer stands with its servers as connectivity says, and says how it does.
/// Needs client and connectivity. Steps that followed each other at once may be passed over; a client that is closed stands as
/// SHUTDOWN for ever, and who has seen that gets CANCELLED. It is not counted by valkyrie_in_flight.
pub const VALKYRIE_OPERATION_CONNECTIVITY: u32 = 8;

/// valkyrie_operation_start: waits until a client's circuit breakers are others than those that seen stands for, and shows them as
/// valkyrie_client_breakers does: the completion's message. Needs client and seen, which is 0 at first, so that it completes at once,
/// and then the seen of the completion before. Steps that followed each other at once may be passed over; one that is given up loses
/// nothing. It fails with CANCELLED, reason CLIENT_CLOSED, once the client is closed. It is not counted by valkyrie_in_flight.
pub const VALKYRIE_OPERATION_BREAKERS: u32 = 9;

/// No connection, and none is being made: the next call makes one.
pub const VALKYRIE_CONNECTIVITY_IDLE: u32 = 0;
/// A connection is being made.
pub const VALKYRIE_CONNECTIVITY_CONNECTING: u32 = 1;
/// There is a connection that takes calls.
pub const VALKYRIE_CONNECTIVITY_READY: u32 = 2;
/// The last try failed, and the next one waits.
pub const VALKYRIE_CONNECTIVITY_TRANSIENT_FAILURE: u32 = 3;
/// The client is closed.
pub const VALKYRIE_CONNECTIVITY_SHUTDOWN: u32 = 4;

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
///
/// Certificates, lists and keys are PEM text ended by NUL, or "file:" and the path of a file, as in "file:/etc/ca.pem": it is
/// looked at again for each connection, once a second at most, so that it may be replaced. NULL means none.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct valkyrie_client_options {
    /// sizeof of this structure as the program knows it.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Time limit of unary calls that give none, in milliseconds; 0 means 5,000.
    pub timeout_ms: u64,
    /// Time limit of making a connection, in milliseconds; 0 means 5,000.
    pub connect_timeout_ms: u64,
    /// PEM: a server's certificates must lead to one of these. Where connections are encrypted, this or system_roots is
    /// needed.
    pub trusted_certificates: *const c_char,
    /// PEM: the authorities' revocation lists. A server's certificate that one of them names is refused.
    pub revocation_lists: *const c_char,
    /// PEM: the certificate chain to show to a server that asks, the client's own first; with identity_key or not at all.
    pub identity_certificates: *const c_char,
    /// PEM: its private key.
    pub identity_key: *const c_char,
    /// The name that the server's certificate must be for; NULL means the endpoint's host.
    pub server_name: *const c_char,
    /// 1: also trust the authorities that the system trusts.
    pub system_roots: u32,
    /// 1: speak TLS 1.3 with the server inside of whatever carries the bytes, so that nobody between the two can read or
    /// change them.
    pub sealed: u32,
    /// The least protection of connections: VALKYRIE_SECURITY_…
    pub min_security: u32,
    /// Zero.
    pub reserved_too: u32,
    /// What says whom the client calls for, such as a JWT; NULL means nothing, or token_source.
    pub token: *const c_char,
    /// Instead of token: makes one for each new connection, and a newer one before the last ends, while streams go on.
    pub token_source: valkyrie_token_source,
    /// What token_source gets.
    pub token_user_data: *mut c_void,
    /// What the client does about failures: JSON with the keys of docs/policies.md, ended by NUL; NULL means their defaults.
    /// One that is wrong fails the connect with reason INVALID_CONFIGURATION, and says line, key and what to write instead.
    pub service_config: *const c_char,
    /// How long the server may be silent while calls are open until it is asked whether it is there, in milliseconds; 0 means
    /// 30,000, VALKYRIE_NO_TIMEOUT never; at least 10,000. One that says nothing within keepalive_timeout_ms is gone: the
    /// connection ends with CONNECTION_LOST, and its calls are retried by their policy (gRFC A8). Other times fail the connect
    /// with reason INVALID_CONFIGURATION.
    pub keepalive_ms: u64,
    /// How long its answer may take, in milliseconds; 0 means 10,000; at least 1,000.
    pub keepalive_timeout_ms: u64,
    /// As keepalive_ms while no call is open, for networks that forget who is idle; 0 means never; at least 300,000.
    pub keepalive_idle_ms: u64,
}

/// Options of a call: begin with VALKYRIE_CALL_OPTIONS_INIT. NULL instead of them means every default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct valkyrie_call_options {
    /// sizeof of this structure as the program knows it.
    pub struct_size: u32,
    /// VALKYRIE_PRIORITY_…; 0 is normal.
    pub priority: u32,
    /// Milliseconds; 0 means the client's for unary calls and none for streams; VALKYRIE_NO_TIMEOUT means none.
    pub timeout_ms: u64,
    /// metadata_len entries, copied; may be NULL when that is 0.
    pub metadata: *const Entry,
    /// How many entries, at most 128.
    pub metadata_len: usize,
    /// 1: a unary call that may be executed twice, so that it is tried again though a server may have seen it (gRFC A6). 0
    /// means what service_config says of the method, which is no by default. Streams are not tried again.
    pub idempotent: u32,
    /// 1: with an idempotency key that is drawn, 128 random bits, instead of idempotency_key.
    pub draw_idempotency_key: u32,
    /// 1 to 64 bytes that tell a unary call from every other of its caller's and its method's, as an order's number does; data
    /// NULL means none. It may be tried again then like an idempotent one: a server that keeps keys runs it once and answers
    /// each time, with valkyrie-replayed in the metadata of an answer that is not the first (PROTOCOL.md, W5-12).
    /// INVALID_ARGUMENT for another length, for a key that was used for another message, and for streams. Copied.
    pub idempotency_key: valkyrie_bytes,
}

/// What valkyrie_operation_start begins: make it with VALKYRIE_OPERATION_INIT(VALKYRIE_OPERATION_…) and fill in what that
/// kind needs. Everything in it is copied.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct valkyrie_operation {
    /// sizeof of this structure as the program knows it.
    pub struct_size: u32,
    /// VALKYRIE_OPERATION_…
    pub kind: u32,
    /// For CALL, CLOSE, CONNECTIVITY and BREAKERS.
    pub client: *const valkyrie_client,
    /// For SEND, HALF_CLOSE and RECV.
    pub call: *const valkyrie_call,
    /// The endpoint for CONNECT, the method for CALL, the level for LOG; ended by NUL.
    pub target: *const c_char,
    /// For CALL and SEND.
    pub message: valkyrie_bytes,
    /// For CONNECT.
    pub client_options: *const valkyrie_client_options,
    /// For CALL.
    pub call_options: *const valkyrie_call_options,
    /// For CONNECTIVITY: how the client stood, VALKYRIE_CONNECTIVITY_…
    pub connectivity: u32,
    /// Zero.
    pub reserved: u32,
    /// For BREAKERS: 0, or the seen of the completion before.
    pub seen: u64,
}

/// Makes a token, and answers request by valkyrie_token_provide, before it returns or later. It is called on a thread of the
/// library's own, so it may block, and never twice at once for one client unless it took longer than connect_timeout_ms; it
/// must not throw. user_data must live until the client is freed and no call of it runs.
pub type valkyrie_token_source = Option<unsafe extern "C" fn(request: u64, user_data: *mut c_void)>;

/// How an operation ended. Lives until the callback returns. Later versions may have more fields behind these.
#[repr(C)]
pub struct valkyrie_completion {
    /// The number that valkyrie_operation_start gave.
    pub operation: u64,
    /// VALKYRIE_OPERATION_…
    pub kind: u32,
    /// 0, or why it failed.
    pub code: valkyrie_code,
    /// The client after a CONNECT that succeeded, else NULL. The callback's: free it with valkyrie_client_free.
    pub client: *mut valkyrie_client,
    /// The answer of a CALL, the message of a RECV, the record of a LOG or what BREAKERS shows; NULL for others, on failure, and at
    /// the end of a stream. The callback's: free it with valkyrie_message_free.
    pub message: *mut valkyrie_message,
    /// NULL when code is 0. The callback's: free it with valkyrie_error_free.
    pub error: *mut valkyrie_error,
    /// How the client stands after a CONNECTIVITY that succeeded, VALKYRIE_CONNECTIVITY_…, else 0.
    pub connectivity: u32,
    /// After a RECV: how many messages of that stream are here, so that as many valkyrie_call_recv do not block. Else 0.
    pub ready: u32,
    /// What stands for the breakers that a BREAKERS shows: the seen of the next one. 0 for others and on failure.
    pub seen: u64,
}

/// Metadata that was received. Borrowed from the object it came from.
pub struct valkyrie_metadata {
    _name: (),
}

/// Why something failed. Immutable.
pub struct valkyrie_error {
    _name: (),
}

/// A message that was received: the answer of a call, or one message of a stream. Immutable.
pub struct valkyrie_message {
    _name: (),
}

/// Makes calls to one endpoint.
pub struct valkyrie_client {
    _name: (),
}

/// One stream of any shape.
pub struct valkyrie_call {
    _name: (),
}

/// Completions on their way to the host's own loop.
pub struct valkyrie_queue {
    _name: (),
}

/// Called from valkyrie_queue_dispatch or valkyrie_queue_free, exactly once per operation that was begun. It may call
/// any function, free the queue, and leave by a C++ exception or longjmp: the callbacks behind it run in the next dispatch.
pub type valkyrie_callback =
    Option<unsafe extern "C-unwind" fn(completion: *const valkyrie_completion, user_data: *mut c_void)>;

struct Failure {
    status: Status,
    message: CString,
}

#[derive(Default)]
struct Message {
    bytes: Bytes,
    metadata: Metadata,
    trailers: Metadata,
}

struct Call {
    stream: Handle,
    /// What one crossing brought and nobody has asked for yet.
    ready: VecDeque<Bytes>,
    /// How the stream ended well.
    end: Option<bridge::End>,
}

/// What completes an operation that valkyrie_operation_start began.
struct Waiting {
    queue: usize,
    kind: u32,
    /// The client that is being made.
    client: Option<Handle>,
    call: *const valkyrie_call,
    callback: unsafe extern "C-unwind" fn(*const valkyrie_completion, *mut c_void),
    user_data: *mut c_void,
}

// SAFETY: `call` is a number that is never read through. The library only hands `user_data` back; what it points to is
// the host's, whose callback runs on the thread that dispatches.
unsafe impl Send for Waiting {}

/// Operations with a callback, by number, in one map for each of so many queues: two of them may share one.
static WAITING: [OnceLock<Mutex<ByOperation<Waiting>>>; 16] = [const { OnceLock::new() }; 16];

/// Callbacks that one dispatch runs at most.
const MAX_CALLBACKS: usize = 1024;
/// Messages that one crossing may bring.
const BATCH: usize = 64;

fn waiting(queue: *const valkyrie_queue) -> MutexGuard<'static, ByOperation<Waiting>> {
    let map = WAITING[queue.addr() / 16 % 16].get_or_init(Mutex::default);
    map.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps everything of this file and of the table locked over a fork.
fn hold(held: &mut bridge::Held) {
    for map in &WAITING {
        held.push(Box::new(map.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)));
    }
    held.push(Box::new(requests()));
    table::hold(held);
}

fn invalid(message: impl Into<String>) -> Status {
    Status::from_reason(Reason::INVALID_ARGUMENT, message.into())
}

/// What a pointer says that finds nothing.
fn dead<T>(pointer: *const T, name: &str) -> Status {
    if pointer.is_null() {
        return invalid(format!("{name} is NULL"));
    }
    invalid(format!("{name} is not alive: it was freed, or is no such object"))
}

fn full() -> Status {
    Status::from_reason(Reason::QUEUE_FULL, "too many objects are alive: free some")
}

/// The number of a code; never 0, which a status of the server's own may carry no more than this may.
fn failure_code(status: &Status) -> valkyrie_code {
    let code = if status.code() == Code::Ok { Code::Unknown } else { status.code() };
    code.number()
}

/// A status as the object that C sees; NULL when there is no room for it.
fn error(status: Status) -> *mut valkyrie_error {
    let message = CString::new(status.message().replace('\0', " ")).unwrap_or_default();
    table::insert(Object::Failure(Box::new(Failure { status, message }))).unwrap_or(ptr::null_mut())
}

fn message(bytes: Bytes, metadata: Metadata, trailers: Metadata) -> Result<*mut valkyrie_message, Status> {
    table::insert(Object::Message(Box::new(Message { bytes, metadata, trailers }))).map_err(|_| full())
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
    let code = failure_code(&status);
    if !out.is_null() {
        // SAFETY: the caller passes NULL or a writable pointer.
        unsafe { *out = error(status) };
    }
    code
}

/// Runs the body of an exported function that cannot fail.
fn quiet<T>(otherwise: T, body: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or(otherwise)
}

/// What [`guard`] is for an exported function that gives a code and no error.
fn code(body: impl FnOnce() -> Result<(), Status>) -> valkyrie_code {
    // SAFETY: NULL is allowed.
    unsafe { guard(ptr::null_mut(), body) }
}

fn client(pointer: *const valkyrie_client) -> Result<Handle, Status> {
    let found = table::with(pointer, |object| match object {
        Object::Client(handle) => Some(*handle),
        _ => None,
    });
    found.ok_or_else(|| dead(pointer, "client"))
}

fn with_call<R>(pointer: *const valkyrie_call, read: impl FnOnce(&mut Call) -> R) -> Result<R, Status> {
    let found = table::with(pointer, |object| match object {
        Object::Call(call) => Some(read(call)),
        _ => None,
    });
    found.ok_or_else(|| dead(pointer, "call"))
}

fn stream(pointer: *const valkyrie_call) -> Result<Handle, Status> {
    with_call(pointer, |call| call.stream)
}

fn queue(pointer: *const valkyrie_queue) -> Result<Arc<Queue>, Status> {
    let found = table::with(pointer, |object| match object {
        Object::Queue(queue, _) => Some(queue.clone()),
        _ => None,
    });
    found.ok_or_else(|| dead(pointer, "queue"))
}

fn listener(pointer: *const valkyrie_queue) -> Result<Arc<Listener>, Status> {
    let found = table::with(pointer, |object| match object {
        Object::Queue(_, listener) => Some(listener.clone()),
        _ => None,
    });
    found.ok_or_else(|| dead(pointer, "queue"))
}

/// # Safety
/// `pointer` is NULL or a string that ends in NUL.
unsafe fn level(pointer: *const c_char) -> Result<Level, Status> {
    if pointer.is_null() {
        return Ok(Level::Warn);
    }
    // SAFETY: the caller passes a string that ends in NUL.
    let name = unsafe { text(pointer, "target")? };
    Level::ALL
        .into_iter()
        .find(|level| level.name() == name)
        .ok_or_else(|| invalid(format!("level '{name}' is not 'error', 'warn', 'info' or 'debug'")))
}

fn with_message<R>(pointer: *const valkyrie_message, read: impl FnOnce(&Message) -> R) -> Option<R> {
    table::with(pointer, |object| match object {
        Object::Message(message) => Some(read(message)),
        _ => None,
    })
}

fn with_failure<R>(pointer: *const valkyrie_error, read: impl FnOnce(&Failure) -> Option<R>) -> Option<R> {
    table::with(pointer, |object| match object {
        Object::Failure(failure) => read(failure),
        _ => None,
    })
}

fn with_metadata<R>(
    pointer: *const valkyrie_metadata,
    read: impl FnOnce(&Metadata) -> Option<R>,
) -> Option<R> {
    let (whole, part) = table::whole(pointer);
    let part = part?;
    table::with(whole, |object| {
        let (metadata, trailers) = match object {
            Object::Message(message) => (&message.metadata, &message.trailers),
            Object::Failure(failure) => (failure.status.metadata(), failure.status.trailers()),
            Object::Call(call) => call.end.as_ref().map(|end| (&end.metadata, &end.trailers))?,
            _ => return None,
        };
        read(match part {
            Part::Metadata => metadata,
            Part::Trailers => trailers,
        })
    })
}

/// Takes an object back; a pointer to none is an error, NULL is nothing.
fn free<T>(
    pointer: *const T,
    name: &str,
    wanted: impl FnOnce(&Object) -> bool,
) -> Result<Option<Object>, Status> {
    if pointer.is_null() {
        return Ok(None);
    }
    table::remove(pointer, wanted).map(Some).ok_or_else(|| dead(pointer, name))
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

/// A method, as text; bytes that are no UTF-8 are no method either, which the core says.
///
/// # Safety
/// As for [`text`].
unsafe fn method<'a>(pointer: *const c_char, name: &str) -> Result<Cow<'a, str>, Status> {
    if pointer.is_null() {
        return Err(invalid(format!("{name} is NULL")));
    }
    // SAFETY: it is not NULL, and the caller passes a string that ends in NUL.
    Ok(unsafe { CStr::from_ptr(pointer) }.to_string_lossy())
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

/// Reads a structure that begins with its size as the program knows it. A shorter one, which ends where a field does,
/// is an older one: what it lacks is zero. A longer one is a newer one: it must be zero behind what this library knows.
///
/// # Safety
/// `structure` points to as many readable bytes as its first field says. All zeros are a `T`, and so is any pattern of
/// bits in one of its fields. `starts` are the offsets of its fields that an older structure may end before.
unsafe fn grown<T: Copy>(structure: *const T, name: &str, starts: &[usize]) -> Result<T, Status> {
    /// No structure will ever be larger.
    const MAX: usize = 4096;
    let known = size_of::<T>();
    // SAFETY: every version of the structure begins with its size.
    let size = unsafe { structure.cast::<u32>().read_unaligned() } as usize;
    if size > MAX || (size < known && !starts.contains(&size)) {
        let macros = "begin with the INIT macro";
        return Err(invalid(format!("struct_size {size} of the {name} is the size of no version; {macros}")));
    }
    let mut out = MaybeUninit::<T>::zeroed();
    // SAFETY: both have as many bytes, and zeros behind them are a T.
    let out = unsafe {
        ptr::copy_nonoverlapping(structure.cast::<u8>(), out.as_mut_ptr().cast(), size.min(known));
        out.assume_init()
    };
    for at in known..size {
        // SAFETY: the structure has `size` bytes.
        if unsafe { structure.cast::<u8>().add(at).read() } != 0 {
            return Err(invalid(format!(
                "byte {at} of the {name} is set, and this library knows {known}: the program asks for what only a newer \
                 library has"
            )));
        }
    }
    Ok(out)
}

/// # Safety
/// `options` is NULL or points to as many bytes as its first field says.
unsafe fn client_options(options: *const valkyrie_client_options) -> Result<ClientOptions, Status> {
    let mut out = ClientOptions::default();
    if options.is_null() {
        return Ok(out);
    }
    let starts = [
        offset_of!(valkyrie_client_options, timeout_ms),
        offset_of!(valkyrie_client_options, connect_timeout_ms),
        offset_of!(valkyrie_client_options, trusted_certificates),
        offset_of!(valkyrie_client_options, revocation_lists),
        offset_of!(valkyrie_client_options, token),
        offset_of!(valkyrie_client_options, service_config),
        offset_of!(valkyrie_client_options, keepalive_ms),
    ];
    // SAFETY: the caller vouches for it, and it is made of numbers and pointers.
    let options = unsafe { grown(options, "client options", &starts)? };
    if options.timeout_ms != 0 {
        out.timeout_ms = options.timeout_ms;
    }
    if options.connect_timeout_ms != 0 {
        out.connect_timeout_ms = options.connect_timeout_ms;
    }
    // SAFETY: the caller vouches for the strings.
    unsafe {
        out.trusted_certificates = pem(options.trusted_certificates, "trusted_certificates")?;
        out.revocation_lists = pem(options.revocation_lists, "revocation_lists")?;
        out.identity = match (
            pem(options.identity_certificates, "identity_certificates")?,
            pem(options.identity_key, "identity_key")?,
        ) {
            (Some(certificates), Some(key)) => Some((certificates, key)),
            (None, None) => None,
            _ => return Err(invalid("identity_certificates and identity_key come together; one is NULL")),
        };
        if !options.server_name.is_null() {
            out.server_name = Some(text(options.server_name, "server_name")?.to_owned());
        }
        if !options.service_config.is_null() {
            out.service_config = Some(text(options.service_config, "service_config")?.to_owned());
        }
    }
    let given = |ms| (ms != 0).then_some(ms);
    out.keepalive_ms = given(options.keepalive_ms);
    out.keepalive_timeout_ms = given(options.keepalive_timeout_ms);
    out.keepalive_idle_ms = given(options.keepalive_idle_ms);
    out.system_roots = flag(options.system_roots, "system_roots")?;
    out.sealed = flag(options.sealed, "sealed")?;
    out.min_security = match options.min_security {
        VALKYRIE_SECURITY_DEFAULT => None,
        VALKYRIE_SECURITY_INSECURE => Some(Security::Insecure),
        VALKYRIE_SECURITY_TLS => Some(Security::Tls),
        VALKYRIE_SECURITY_MTLS => Some(Security::Mtls),
        other => return Err(invalid(format!("min_security {other} is not 0 to 3"))),
    };
    if options.reserved_too != 0 {
        return Err(invalid(format!(
            "reserved_too of the client options is {}, not 0",
            options.reserved_too
        )));
    }
    let source = |source| Some(TokenOption::Source(source));
    out.token = match (options.token.is_null(), options.token_source) {
        (true, None) => None,
        // SAFETY: the caller vouches for the string.
        (false, None) => source(Arc::new(Token::new(unsafe { text(options.token, "token")? }))),
        (true, Some(function)) => source(Arc::new(Source { function, user_data: options.token_user_data })),
        (false, Some(_)) => return Err(invalid("token and token_source exclude each other")),
    };
    Ok(out)
}

/// A function that makes tokens.
#[derive(Clone, Copy)]
struct Source {
    function: unsafe extern "C" fn(u64, *mut c_void),
    user_data: *mut c_void,
}

// SAFETY: the library only hands `user_data` back; what it points to is the host's, who knows of the thread.
unsafe impl Send for Source {}
// SAFETY: as above.
unsafe impl Sync for Source {}

impl Source {
    /// On its own thread.
    fn run(self, request: u64) {
        // SAFETY: the host gave the function with this data.
        unsafe { (self.function)(request, self.user_data) }
    }
}

impl TokenSource for Source {
    fn token(&self) -> BoxFuture<'_, Result<Token, Status>> {
        Box::pin(async move {
            let source = *self;
            let asked = Asked::new();
            let request = asked.0;
            let thread = thread::Builder::new().name("valkyrie-token".into());
            thread.spawn(move || source.run(request)).map_err(|error| {
                let message = format!("no thread for token_source: {error}");
                Status::from_reason(Reason::CREDENTIALS_UNAVAILABLE, message)
            })?;
            poll_fn(|cx| asked.poll(cx)).await
        })
    }
}

/// A request of a token, until it is dropped.
struct Asked(u64);

struct Request {
    answer: Option<Result<Token, Status>>,
    waker: Waker,
}

/// Requests that somebody waits for, by number. They are few: one for each client at most.
static REQUESTS: Mutex<BTreeMap<u64, Request>> = Mutex::new(BTreeMap::new());

fn requests() -> MutexGuard<'static, BTreeMap<u64, Request>> {
    REQUESTS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Asked {
    fn new() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let number = LAST.fetch_add(1, Relaxed) + 1;
        requests().insert(number, Request { answer: None, waker: Waker::noop().clone() });
        Self(number)
    }

    fn poll(&self, cx: &Context<'_>) -> Poll<Result<Token, Status>> {
        let mut all = requests();
        let Some(request) = all.get_mut(&self.0) else { return Poll::Pending };
        match request.answer.take() {
            Some(answer) => Poll::Ready(answer),
            None => {
                request.waker.clone_from(cx.waker());
                Poll::Pending
            }
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let over = requests().remove(&self.0);
        drop(over);
    }
}

/// PEM text, or `file:` and a path; `None` for NULL.
///
/// # Safety
/// `pointer` is NULL or a string that ends in NUL.
unsafe fn pem(pointer: *const c_char, name: &str) -> Result<Option<Pem>, Status> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller vouches for the string.
    let text = unsafe { text(pointer, name)? };
    Ok(Some(match text.strip_prefix("file:") {
        Some(path) => Pem::file(path),
        None => Pem::from(text.to_owned()),
    }))
}

fn flag(value: u32, name: &str) -> Result<bool, Status> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(invalid(format!("{name} is {other}, not 0 or 1"))),
    }
}

/// # Safety
/// `options` is NULL or points to as many bytes as its first field says.
unsafe fn call_options(options: *const valkyrie_call_options) -> Result<CallOptions, Status> {
    let mut out = CallOptions::default();
    if options.is_null() {
        return Ok(out);
    }
    let starts = [
        offset_of!(valkyrie_call_options, timeout_ms),
        offset_of!(valkyrie_call_options, metadata),
        offset_of!(valkyrie_call_options, idempotent),
        offset_of!(valkyrie_call_options, idempotency_key),
    ];
    // SAFETY: the caller vouches for it, and it is made of numbers and pointers.
    let options = unsafe { grown(options, "call options", &starts)? };
    out.priority = match options.priority {
        VALKYRIE_PRIORITY_NORMAL => Priority::Normal,
        VALKYRIE_PRIORITY_CRITICAL => Priority::Critical,
        VALKYRIE_PRIORITY_BULK => Priority::Bulk,
        other => return Err(invalid(format!("priority {other} is not 0 to 2"))),
    };
    out.timeout_ms = (options.timeout_ms != 0).then_some(options.timeout_ms);
    out.idempotent = flag(options.idempotent, "idempotent")?;
    let drawn = flag(options.draw_idempotency_key, "draw_idempotency_key")?;
    // SAFETY: the caller vouches for the bytes.
    let key = unsafe { copy(options.idempotency_key, "idempotency_key")? };
    out.idempotency_key = match (options.idempotency_key.data.is_null(), drawn) {
        (true, drawn) => drawn.then_some(IdempotencyKey::Drawn),
        (false, false) => Some(IdempotencyKey::Given(key)),
        (false, true) => return Err(invalid("idempotency_key and draw_idempotency_key exclude each other")),
    };
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
fn run(submit: impl FnOnce(&Arc<Queue>) -> Result<u64, Status>) -> Result<Value, Status> {
    // A thread that is ending may have none left.
    let queue = QUEUE.try_with(Arc::clone).unwrap_or_else(|_| Queue::blocking());
    let op = submit(&queue)?;
    let mut taken = Vec::new();
    loop {
        queue.wait(None);
        queue.drain(&mut taken, usize::MAX);
        for Completion { op: done, outcome } in taken.drain(..) {
            if done == op {
                return outcome;
            }
        }
    }
}

/// The reply of a unary call.
fn reply(value: Value) -> Result<*mut valkyrie_message, Status> {
    match value {
        Value::Response(response) => message(response.message, response.metadata, response.trailers),
        _ => Err(Status::from_reason(Reason::INTERNAL, "a unary call completed with something else")),
    }
}

/// Whether a stream's next message or its end needs no crossing.
fn is_here(call: *const valkyrie_call) -> Result<bool, Status> {
    with_call(call, |call| !call.ready.is_empty() || call.end.is_some())
}

/// The next message, `None` at the end, after what came has joined what was here; the rest waits for who asks next.
fn first(call: *const valkyrie_call, came: Value) -> Result<Option<Bytes>, Status> {
    let Value::Messages { messages, end } = came else { return Ok(None) };
    with_call(call, |call| {
        call.ready.extend(messages);
        if call.end.is_none() {
            call.end = end;
        }
        match call.ready.pop_front() {
            None if call.end.is_none() => Err(Status::from_reason(
                Reason::STREAM_MISUSE,
                "another receive took the message: one at a time",
            )),
            next => Ok(next),
        }
    })?
}

fn one_message(bytes: Option<Bytes>) -> Result<*mut valkyrie_message, Status> {
    bytes.map_or(Ok(ptr::null_mut()), |bytes| message(bytes, Metadata::default(), Metadata::default()))
}

/// A record as a message whose metadata are its particulars.
fn record(value: Value) -> Result<*mut valkyrie_message, Status> {
    let mut metadata = Metadata::default();
    // What is no legal value, as a path may be, is left out: the sentence has it too.
    let mut add = |key: &str, value: String| drop(metadata.insert(key, value));
    let Value::Logs(records) = value else {
        return Err(Status::from_reason(Reason::INTERNAL, "a record completed with something else"));
    };
    let Some(Record { level, target, message: sentence, fields, .. }) = records.into_iter().next() else {
        return Ok(ptr::null_mut());
    };
    add("level", level.name().to_owned());
    add("target", target.to_owned());
    fields.into_iter().for_each(|(key, value)| add(key, value));
    message(sentence.into(), metadata, Metadata::default())
}

fn made(handle: Handle) -> Result<*mut valkyrie_client, Status> {
    table::insert(Object::Client(handle)).map_err(|_| {
        bridge::client_free(handle);
        full()
    })
}

/// The number of how a client stands.
fn stands(value: &Value) -> u32 {
    match value {
        Value::Connectivity(state) => *state as u32,
        _ => VALKYRIE_CONNECTIVITY_SHUTDOWN,
    }
}

/// # Errors
/// INVALID_ARGUMENT for a number that is none.
fn seen(number: u32) -> Result<Connectivity, Status> {
    let known = bridge::CONNECTIVITIES.get(number as usize).copied();
    known.ok_or_else(|| invalid(format!("connectivity {number} of the operation is not 0 to 4")))
}

/// What the callback of an operation gets.
fn completion(operation: u64, waiting: &Waiting, outcome: Result<Value, Status>) -> valkyrie_completion {
    let mut out = valkyrie_completion {
        operation,
        kind: waiting.kind,
        code: VALKYRIE_CODE_OK,
        client: ptr::null_mut(),
        message: ptr::null_mut(),
        error: ptr::null_mut(),
        connectivity: VALKYRIE_CONNECTIVITY_IDLE,
        ready: 0,
        seen: 0,
    };
    let filled = outcome.and_then(|value| {
        match waiting.kind {
            VALKYRIE_OPERATION_CONNECT => {
                out.client = waiting.client.map_or(Ok(ptr::null_mut()), made)?;
            }
            VALKYRIE_OPERATION_CALL => out.message = reply(value)?,
            VALKYRIE_OPERATION_RECV => {
                out.message = one_message(first(waiting.call, value)?)?;
                out.ready = with_call(waiting.call, |call| call.ready.len() as u32).unwrap_or(0);
            }
            VALKYRIE_OPERATION_LOG => out.message = record(value)?,
            VALKYRIE_OPERATION_CONNECTIVITY => out.connectivity = stands(&value),
            VALKYRIE_OPERATION_BREAKERS => {
                if let Value::Breakers { seen, json } = value {
                    out.message = one_message(Some(json.into()))?;
                    out.seen = seen;
                }
            }
            _ => {}
        }
        Ok(())
    });
    if let Err(status) = filled {
        if out.client.is_null()
            && let Some(handle) = waiting.client
        {
            bridge::client_free(handle);
        }
        out.code = failure_code(&status);
        out.error = error(status);
    }
    out
}

/// A completion and who gets it: nothing that has to be dropped, since the callback may not come back.
struct Due {
    callback: unsafe extern "C-unwind" fn(*const valkyrie_completion, *mut c_void),
    user_data: *mut c_void,
    completion: valkyrie_completion,
}

impl Due {
    fn new(operation: u64, waiting: &Waiting, outcome: Result<Value, Status>) -> Self {
        Self {
            callback: waiting.callback,
            user_data: waiting.user_data,
            completion: completion(operation, waiting, outcome),
        }
    }

    fn run(&self) {
        // SAFETY: the host gave the function with this data, and the completion lives until it returns.
        unsafe { (self.callback)(&raw const self.completion, self.user_data) }
    }
}

/// Submits with the callback's map locked until the callback is in it, so that a dispatch on another thread finds it.
fn accept(
    queue: *const valkyrie_queue,
    mut entry: Waiting,
    submit: impl FnOnce(&mut Waiting) -> Result<u64, Status>,
) -> Result<u64, Status> {
    let mut all = waiting(queue);
    let op = submit(&mut entry)?;
    all.insert(op, entry);
    Ok(op)
}

/// Takes the next completion of a queue that has a callback.
fn next_due(pointer: *const valkyrie_queue) -> Option<Due> {
    let queue = queue(pointer).ok()?;
    let mut taken = Vec::with_capacity(1);
    while queue.drain(&mut taken, 1) > 0 {
        let Completion { op, outcome } = taken.pop()?;
        // In a child of a fork the thread that began it may have left between.
        let Some(found) = waiting(pointer).remove(&op) else { continue };
        return Some(Due::new(op, &found, outcome));
    }
    None
}

/// Takes the next operation of a queue that ends before it is complete.
fn next_abandoned(pointer: *const valkyrie_queue) -> Option<Due> {
    let (op, found) = {
        let mut all = waiting(pointer);
        let op = all.iter().find(|(_, waiting)| waiting.queue == pointer.addr()).map(|(op, _)| *op)?;
        (op, all.remove(&op)?)
    };
    Some(Due::new(op, &found, Err(Status::from_reason(Reason::CANCELLED, "the queue was freed"))))
}

/// The version and a hash of the core, which is the same in every language.
///
/// Thread: any. Owner: the library; the string lives for ever.
#[unsafe(no_mangle)]
pub extern "C" fn valkyrie_version() -> *const c_char {
    static VERSION: OnceLock<CString> = OnceLock::new();
    VERSION.get_or_init(|| CString::new(bridge::version()).unwrap_or_default()).as_ptr()
}

/// The version of the interface that the library has; equal to VALKYRIE_ABI_VERSION or the header does not fit.
///
/// Thread: any.
#[unsafe(no_mangle)]
pub extern "C" fn valkyrie_abi_version() -> u32 {
    1
}

/// The name of a code, such as "DEADLINE_EXCEEDED"; "UNKNOWN" for a number without one.
///
/// Thread: any. Owner: the library; the string lives for ever.
#[unsafe(no_mangle)]
pub extern "C" fn valkyrie_code_name(code: valkyrie_code) -> *const c_char {
    static NAMES: OnceLock<Vec<CString>> = OnceLock::new();
    let names = NAMES
        .get_or_init(|| Code::ALL.iter().map(|code| CString::new(code.name()).unwrap_or_default()).collect());
    names.get(code as usize).unwrap_or(&names[2]).as_ptr()
}

/// Makes a client and its first connection. endpoint: "tcp://host:port", "unix:///path", "ws://host:port/path", the
/// encrypted "tls://host:port", "wss://host:port/path" and "quic://host:port", whose options say whom to trust, or
/// "echo://core", a server inside the library for tests without one. options may be NULL.
///
/// Thread: any; blocks until the connection stands or connect_timeout_ms has passed.
/// Owner: *out is the caller's, freed with valkyrie_client_free; *error with valkyrie_error_free; the rest is copied.
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
            let (endpoint, options) = (text(endpoint, "endpoint")?, client_options(options)?);
            if out.is_null() {
                return Err(invalid("out is NULL"));
            }
            let mut connecting = None;
            let result = run(|queue| {
                let (handle, op) = bridge::connect(queue, endpoint, options)?;
                connecting = Some(handle);
                Ok(op)
            });
            let handle = connecting.ok_or_else(|| Status::from_reason(Reason::INTERNAL, "no client"));
            match result.and(handle) {
                Ok(handle) => *out = made(handle)?,
                Err(status) => {
                    if let Some(handle) = connecting {
                        bridge::client_free(handle);
                    }
                    return Err(status);
                }
            }
            Ok(())
        })
    }
}

/// Closes gracefully: calls in flight may finish within 5 s. Later calls fail with CANCELLED. A second close succeeds.
///
/// Thread: any; blocks until the calls in flight have ended.
/// Owner: client stays the caller's; *error is the caller's, freed with valkyrie_error_free.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_client_close(
    client: *const valkyrie_client,
    error: *mut *mut valkyrie_error,
) -> valkyrie_code {
    // SAFETY: every pointer is as the head of the header asks.
    unsafe {
        guard(error, || {
            let client = self::client(client)?;
            run(|queue| bridge::close(client, queue)).map(drop)
        })
    }
}

/// Puts another service config in the place of the client's, without a lost call: JSON with the keys of docs/policies.md, ended by
/// NUL. Calls that began keep their time limit and how they are tried again; all the rest heeds the new one. What is known of the
/// servers stays, such as an open breaker. One that is wrong fails with reason INVALID_CONFIGURATION, and changes nothing.
///
/// Thread: any; does not block.
/// Owner: config is copied; *error is the caller's, freed with valkyrie_error_free.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_client_set_service_config(
    client: *const valkyrie_client,
    config: *const c_char,
    error: *mut *mut valkyrie_error,
) -> valkyrie_code {
    // SAFETY: every pointer is as the head of the header asks.
    unsafe { guard(error, || bridge::set_service_config(self::client(client)?, text(config, "config")?)) }
}

/// A text that the bridge has of a client, as a message.
///
/// # Safety
/// Every pointer is as the head of the header asks.
unsafe fn text_of(
    client: *const valkyrie_client,
    text: fn(Handle) -> Result<String, Status>,
    out: *mut *mut valkyrie_message,
    error: *mut *mut valkyrie_error,
) -> valkyrie_code {
    // SAFETY: as the caller says.
    unsafe {
        guard(error, || {
            let client = self::client(client)?;
            if out.is_null() {
                return Err(invalid("out is NULL"));
            }
            *out = one_message(Some(text(client)?.into()))?;
            Ok(())
        })
    }
}

/// The client's circuit breakers, one for each server and method that was called or isolated, and one for each server that is
/// isolated as a whole: a message of JSON, a list of objects with server, method (null: all), state ("closed", "open", "half_open",
/// "isolated"), age_ms and opens_for_ms (or null), calls, failures and changes. VALKYRIE_OPERATION_BREAKERS waits for a change.
///
/// Thread: any; does not block.
/// Owner: *out is the caller's, freed with valkyrie_message_free; *error with valkyrie_error_free.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_client_breakers(
    client: *const valkyrie_client,
    out: *mut *mut valkyrie_message,
    error: *mut *mut valkyrie_error,
) -> valkyrie_code {
    // SAFETY: every pointer is as the head of the header asks.
    unsafe { text_of(client, bridge::breakers, out, error) }
}

/// What became of the client's calls since it was made, in Prometheus' text format: a message. Names begin with valkyrie_client_;
/// times are in seconds. A child of a fork counts anew.
///
/// Thread: any; does not block.
/// Owner: *out is the caller's, freed with valkyrie_message_free; *error with valkyrie_error_free.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_client_metrics(
    client: *const valkyrie_client,
    out: *mut *mut valkyrie_message,
    error: *mut *mut valkyrie_error,
) -> valkyrie_code {
    // SAFETY: every pointer is as the head of the header asks.
    unsafe { text_of(client, bridge::metrics, out, error) }
}

/// Holds the calls of a method, or all calls when method is NULL, back from a server: isolated true; or ends that: false. Those that
/// go on end; further ones go to the other servers, and fail with reason BREAKER_OPEN where there is none. INVALID_ARGUMENT for
/// what is none of the client's servers. The same again is nothing.
///
/// Thread: any; does not block.
/// Owner: server and method, ended by NUL, are copied; *error is the caller's, freed with valkyrie_error_free.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_client_isolate(
    client: *const valkyrie_client,
    server: *const c_char,
    method: *const c_char,
    isolated: bool,
    error: *mut *mut valkyrie_error,
) -> valkyrie_code {
    // SAFETY: every pointer is as the head of the header asks.
    unsafe {
        guard(error, || {
            let (client, server) = (self::client(client)?, text(server, "server")?);
            let method = if method.is_null() { None } else { Some(self::method(method, "method")?) };
            let set = if isolated { bridge::isolate } else { bridge::restore };
            set(client, server, method.as_deref())
        })
    }
}

/// How a client stands with its servers now, VALKYRIE_CONNECTIVITY_…; SHUTDOWN when it is closed or not alive.
/// VALKYRIE_OPERATION_CONNECTIVITY waits for a change.
///
/// Thread: any; does not block.
/// Owner: client stays the caller's.
#[unsafe(no_mangle)]
pub extern "C" fn valkyrie_client_connectivity(client: *const valkyrie_client) -> u32 {
    quiet(VALKYRIE_CONNECTIVITY_SHUTDOWN, || {
        self::client(client)
            .map_or(VALKYRIE_CONNECTIVITY_SHUTDOWN, |client| bridge::connectivity(client) as u32)
    })
}

/// Frees a client; calls in flight end with CANCELLED. INVALID_ARGUMENT when it was freed before.
///
/// Thread: any, also while others use the client: their calls end with an error.
/// Owner: the library has client back; NULL is nothing.
#[unsafe(no_mangle)]
pub extern "C" fn valkyrie_client_free(client: *mut valkyrie_client) -> valkyrie_code {
    code(|| {
        let object = free(client, "client", |object| matches!(object, Object::Client(_)))?;
        if let Some(Object::Client(handle)) = object {
            bridge::client_free(handle);
        }
        Ok(())
    })
}

/// One message out, one message back. options may be NULL.
///
/// Thread: any; blocks until the call ends or its time limit has passed.
/// Owner: *out is the caller's, freed with valkyrie_message_free; *error with valkyrie_error_free; the rest is copied.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_client_call(
    client: *const valkyrie_client,
    method: *const c_char,
    message: valkyrie_bytes,
    options: *const valkyrie_call_options,
    out: *mut *mut valkyrie_message,
    error: *mut *mut valkyrie_error,
) -> valkyrie_code {
    // SAFETY: every pointer is as the head of the header asks.
    unsafe {
        guard(error, || {
            let (client, method) = (self::client(client)?, self::method(method, "method")?);
            let (message, options) = (copy(message, "message")?, call_options(options)?);
            if out.is_null() {
                return Err(invalid("out is NULL"));
            }
            *out = reply(run(|queue| bridge::call(client, queue, &method, message, options))?)?;
            Ok(())
        })
    }
}

/// valkyrie_client_call of the default method, "/echo", with every default.
///
/// Thread: any; blocks as that does.
/// Owner: as of that.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_client_request(
    client: *const valkyrie_client,
    message: valkyrie_bytes,
    out: *mut *mut valkyrie_message,
    error: *mut *mut valkyrie_error,
) -> valkyrie_code {
    // SAFETY: every pointer is as the head of the header asks.
    unsafe { valkyrie_client_call(client, c"/echo".as_ptr(), message, ptr::null(), out, error) }
}

/// Begins what the operation describes and returns at once. callback runs in valkyrie_queue_dispatch of that queue,
/// exactly once; not at all when this function fails. number may be NULL; else it gets what valkyrie_operation_cancel
/// takes.
///
/// Thread: any; does not block.
/// Owner: the operation and all in it are copied; user_data is handed to callback; *error is the caller's, freed with
/// valkyrie_error_free.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_operation_start(
    queue: *const valkyrie_queue,
    operation: *const valkyrie_operation,
    number: *mut u64,
    error: *mut *mut valkyrie_error,
    callback: valkyrie_callback,
    user_data: *mut c_void,
) -> valkyrie_code {
    // SAFETY: every pointer is as the head of the header asks.
    unsafe {
        guard(error, || {
            let completes_in = &self::queue(queue)?;
            if operation.is_null() {
                return Err(invalid("operation is NULL"));
            }
            let starts = [offset_of!(valkyrie_operation, connectivity), offset_of!(valkyrie_operation, seen)];
            let asked = grown(operation, "operation", &starts)?;
            if asked.reserved != 0 {
                return Err(invalid(format!("reserved of the operation is {}, not 0", asked.reserved)));
            }
            let callback = callback.ok_or_else(|| invalid("callback is NULL"))?;
            let entry = Waiting {
                queue: queue.addr(),
                kind: asked.kind,
                client: None,
                call: asked.call,
                callback,
                user_data,
            };
            let target = || text(asked.target, "target");
            // Everything is read and copied before `accept` locks.
            let op = match asked.kind {
                VALKYRIE_OPERATION_CONNECT => {
                    let (endpoint, options) = (target()?, client_options(asked.client_options)?);
                    accept(queue, entry, |entry| {
                        let (handle, op) = bridge::connect(completes_in, endpoint, options)?;
                        entry.client = Some(handle);
                        Ok(op)
                    })?
                }
                VALKYRIE_OPERATION_CLOSE => {
                    let client = self::client(asked.client)?;
                    accept(queue, entry, |_| bridge::close(client, completes_in))?
                }
                VALKYRIE_OPERATION_CALL => {
                    let (client, method) = (self::client(asked.client)?, method(asked.target, "target")?);
                    let options = call_options(asked.call_options)?;
                    let message = copy(asked.message, "message")?;
                    accept(queue, entry, |_| bridge::call(client, completes_in, &method, message, options))?
                }
                VALKYRIE_OPERATION_SEND => {
                    let (stream, message) = (stream(asked.call)?, copy(asked.message, "message")?);
                    accept(queue, entry, |_| bridge::send(stream, completes_in, message))?
                }
                VALKYRIE_OPERATION_HALF_CLOSE => {
                    let stream = stream(asked.call)?;
                    accept(queue, entry, |_| bridge::half_close(stream, completes_in))?
                }
                VALKYRIE_OPERATION_RECV if is_here(asked.call)? => {
                    let value = Value::Messages { messages: Vec::new(), end: None };
                    accept(queue, entry, |_| bridge::done(completes_in, value))?
                }
                VALKYRIE_OPERATION_RECV => {
                    let stream = stream(asked.call)?;
                    accept(queue, entry, |_| bridge::recv(stream, completes_in, BATCH))?
                }
                VALKYRIE_OPERATION_LOG => {
                    let (level, listener) = (level(asked.target)?, listener(queue)?);
                    accept(queue, entry, |_| {
                        listener.set_level(Some(level));
                        listener.next(completes_in, 1)
                    })?
                }
                VALKYRIE_OPERATION_CONNECTIVITY => {
                    let (client, seen) = (self::client(asked.client)?, seen(asked.connectivity)?);
                    accept(queue, entry, |_| bridge::connectivity_other_than(client, completes_in, seen))?
                }
                VALKYRIE_OPERATION_BREAKERS => {
                    let client = self::client(asked.client)?;
                    accept(queue, entry, |_| bridge::breakers_other_than(client, completes_in, asked.seen))?
                }
                other => return Err(invalid(format!("kind {other} of the operation is not 1 to 9"))),
            };
            if !number.is_null() {
                *number = op;
            }
            Ok(())
        })
    }
}

/// Gives an operation up: its callback gets CANCELLED unless it is complete. Unknown numbers are ignored, and so is a
/// second time.
///
/// Thread: any; does not block.
#[unsafe(no_mangle)]
pub extern "C" fn valkyrie_operation_cancel(number: u64) {
    quiet((), || bridge::cancel(number));
}

/// Makes a completion queue.
///
/// Thread: any.
/// Owner: *out is the caller's, freed with valkyrie_queue_free; *error with valkyrie_error_free.
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
            *out = table::insert(Object::Queue(Queue::blocking(), Listener::new())).map_err(|_| full())?;
            Ok(())
        })
    }
}

/// A descriptor that is readable while a callback waits, for poll, epoll or select, from the first time on that it was
/// asked for; -1 when queue is not alive or the system has none.
///
/// Thread: any.
/// Owner: the descriptor is the queue's: never read or close it.
#[unsafe(no_mangle)]
pub extern "C" fn valkyrie_queue_fd(queue: *const valkyrie_queue) -> i32 {
    quiet(-1, || self::queue(queue).ok().and_then(|queue| queue.fd().ok()).unwrap_or(-1))
}

/// Runs the callbacks that wait, at most 1,024, and gives how many; waits for the first one at most timeout_ms
/// (0: not at all; VALKYRIE_NO_TIMEOUT: for ever). 0 at once when queue is not alive.
///
/// Thread: any, and the callbacks run on it; several may dispatch one queue, each callback runs once. Blocks for
/// timeout_ms at most.
/// Owner: queue stays the caller's; what a callback gets is the callback's.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn valkyrie_queue_dispatch(queue: *const valkyrie_queue, timeout_ms: u64) -> usize {
    quiet((), || {
        if let (Ok(queue), 1..) = (self::queue(queue), timeout_ms) {
            queue.wait((timeout_ms != u64::MAX).then(|| Duration::from_millis(timeout_ms)));
        }
    });
    let mut count = 0;
    while count < MAX_CALLBACKS
        && let Some(due) = quiet(None, || next_due(queue))
    {
        due.run();
        count += 1;
    }
    count
}

/// Frees a queue. Operations that wait on it are cancelled, and their callbacks run here with CANCELLED.
/// INVALID_ARGUMENT when it was freed before.
///
/// Thread: any, also while others dispatch the queue, and in its own callbacks.
/// Owner: the library has queue back; NULL is nothing.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn valkyrie_queue_free(queue: *mut valkyrie_queue) -> valkyrie_code {
    quiet((), || {
        if let Ok(queue) = self::queue(queue) {
            queue.close();
        }
    });
    // It goes last, so that who leaves a callback by an exception may free it again for those behind.
    while let Some(due) = quiet(None, || next_abandoned(queue)) {
        due.run();
    }
    code(|| {
        let object = free(queue, "queue", |object| matches!(object, Object::Queue(..)))?;
        if let Some(Object::Queue(_, listener)) = object {
            listener.set_level(None);
        }
        Ok(())
    })
}

/// Opens a stream of any shape. What the server says comes with send and recv. options may be NULL.
///
/// Thread: any; does not block.
/// Owner: *out is the caller's, freed with valkyrie_call_free; *error with valkyrie_error_free; the rest is copied.
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
            let (client, method) = (self::client(client)?, self::method(method, "method")?);
            let options = call_options(options)?;
            if out.is_null() {
                return Err(invalid("out is NULL"));
            }
            let queue = QUEUE.try_with(Arc::clone).unwrap_or_else(|_| Queue::blocking());
            let stream = bridge::open(client, &queue, &method, options)?;
            let call = Call { stream, ready: VecDeque::new(), end: None };
            *out = table::insert(Object::Call(Box::new(call))).map_err(|_| {
                bridge::stream_free(stream);
                full()
            })?;
            Ok(())
        })
    }
}

/// Sends a message on a stream.
///
/// Thread: any, one sender at a time for an order; blocks while the peer's credit is used up.
/// Owner: message is copied; *error is the caller's, freed with valkyrie_error_free.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_call_send(
    call: *const valkyrie_call,
    message: valkyrie_bytes,
    error: *mut *mut valkyrie_error,
) -> valkyrie_code {
    // SAFETY: every pointer is as the head of the header asks.
    unsafe {
        guard(error, || {
            let (stream, message) = (stream(call)?, copy(message, "message")?);
            run(|queue| bridge::send(stream, queue, message)).map(drop)
        })
    }
}

/// No more messages from this side.
///
/// Thread: any, after the last send; blocks as that does.
/// Owner: call stays the caller's; *error is the caller's, freed with valkyrie_error_free.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_call_half_close(
    call: *const valkyrie_call,
    error: *mut *mut valkyrie_error,
) -> valkyrie_code {
    // SAFETY: every pointer is as the head of the header asks.
    unsafe {
        guard(error, || {
            let stream = stream(call)?;
            run(|queue| bridge::half_close(stream, queue)).map(drop)
        })
    }
}

/// The next message; *out is NULL with code 0 once the call has ended well.
///
/// Thread: any, one receiver at a time; blocks until a message or the end is there.
/// Owner: *out is the caller's, freed with valkyrie_message_free; *error with valkyrie_error_free.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_call_recv(
    call: *const valkyrie_call,
    out: *mut *mut valkyrie_message,
    error: *mut *mut valkyrie_error,
) -> valkyrie_code {
    // SAFETY: every pointer is as the head of the header asks.
    unsafe {
        guard(error, || {
            let stream = stream(call)?;
            if out.is_null() {
                return Err(invalid("out is NULL"));
            }
            let value = if is_here(call)? {
                Value::Messages { messages: Vec::new(), end: None }
            } else {
                run(|queue| bridge::recv(stream, queue, BATCH))?
            };
            *out = one_message(first(call, value)?)?;
            Ok(())
        })
    }
}

/// Initial metadata once the call has ended well; NULL before.
///
/// Thread: any.
/// Owner: the call's; it lives until the call is freed.
#[unsafe(no_mangle)]
pub extern "C" fn valkyrie_call_metadata(call: *const valkyrie_call) -> *const valkyrie_metadata {
    call_part(call, Part::Metadata)
}

/// Trailers once the call has ended well; NULL before.
///
/// Thread: any.
/// Owner: the call's; they live until the call is freed.
#[unsafe(no_mangle)]
pub extern "C" fn valkyrie_call_trailers(call: *const valkyrie_call) -> *const valkyrie_metadata {
    call_part(call, Part::Trailers)
}

fn call_part(call: *const valkyrie_call, part: Part) -> *const valkyrie_metadata {
    quiet(ptr::null(), || match with_call(call, |call| call.end.is_some()) {
        Ok(true) => table::part(call, part),
        _ => ptr::null(),
    })
}

/// Cancels a call in both directions; what waits on it ends with CANCELLED. Nothing when it has ended or is not alive.
///
/// Thread: any; does not block.
/// Owner: call stays the caller's.
#[unsafe(no_mangle)]
pub extern "C" fn valkyrie_call_cancel(call: *const valkyrie_call) {
    quiet((), || {
        if let Ok(stream) = stream(call) {
            bridge::stream_cancel(stream);
        }
    });
}

/// Frees a call; one that has not ended is cancelled. INVALID_ARGUMENT when it was freed before.
///
/// Thread: any, also while others use the call: what they do ends with an error.
/// Owner: the library has call back; NULL is nothing.
#[unsafe(no_mangle)]
pub extern "C" fn valkyrie_call_free(call: *mut valkyrie_call) -> valkyrie_code {
    code(|| {
        let object = free(call, "call", |object| matches!(object, Object::Call(_)))?;
        if let Some(Object::Call(call)) = object {
            bridge::stream_free(call.stream);
        }
        Ok(())
    })
}

/// The bytes of a message. Empty when message is not alive.
///
/// Thread: any.
/// Owner: the message's; they live until it is freed.
#[unsafe(no_mangle)]
pub extern "C" fn valkyrie_message_bytes(message: *const valkyrie_message) -> valkyrie_bytes {
    quiet(lend(&[]), || with_message(message, |message| lend(&message.bytes)).unwrap_or(lend(&[])))
}

/// Initial metadata that came with the answer of a call; none with a message of a stream. NULL when message is not
/// alive.
///
/// Thread: any.
/// Owner: the message's; it lives until that is freed.
#[unsafe(no_mangle)]
pub extern "C" fn valkyrie_message_metadata(message: *const valkyrie_message) -> *const valkyrie_metadata {
    message_part(message, Part::Metadata)
}

/// Trailers that came with the answer of a call; none with a message of a stream. NULL when message is not alive.
///
/// Thread: any.
/// Owner: the message's; they live until that is freed.
#[unsafe(no_mangle)]
pub extern "C" fn valkyrie_message_trailers(message: *const valkyrie_message) -> *const valkyrie_metadata {
    message_part(message, Part::Trailers)
}

fn message_part(message: *const valkyrie_message, part: Part) -> *const valkyrie_metadata {
    quiet(ptr::null(), || with_message(message, |_| table::part(message, part)).unwrap_or(ptr::null()))
}

/// Frees a message. INVALID_ARGUMENT when it was freed before.
///
/// Thread: any, while no other reads its bytes or metadata.
/// Owner: the library has message back; NULL is nothing.
#[unsafe(no_mangle)]
pub extern "C" fn valkyrie_message_free(message: *mut valkyrie_message) -> valkyrie_code {
    code(|| free(message, "message", |object| matches!(object, Object::Message(_))).map(drop))
}

/// How many entries there are; 0 when metadata is not alive.
///
/// Thread: any.
/// Owner: metadata stays with the object it came from.
#[unsafe(no_mangle)]
pub extern "C" fn valkyrie_metadata_len(metadata: *const valkyrie_metadata) -> usize {
    quiet(0, || with_metadata(metadata, |metadata| Some(metadata.len())).unwrap_or(0))
}

/// The entry at index, in the order it was sent: whether there is one. key (not ended by NUL) and value may be NULL.
///
/// Thread: any.
/// Owner: the bytes are those of the object that metadata came from, and live as long.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_metadata_at(
    metadata: *const valkyrie_metadata,
    index: usize,
    key: *mut valkyrie_bytes,
    value: *mut valkyrie_bytes,
) -> bool {
    let found = quiet(None, || {
        with_metadata(metadata, |metadata| {
            metadata.iter().nth(index).map(|(key, value)| (lend(key.as_bytes()), lend(value)))
        })
    });
    // SAFETY: each output is NULL or writable.
    found.map(|found| unsafe { give(found, key, value) }).is_some()
}

/// # Safety
/// Each output is NULL or writable.
unsafe fn give(
    found: (valkyrie_bytes, valkyrie_bytes),
    name: *mut valkyrie_bytes,
    value: *mut valkyrie_bytes,
) {
    // SAFETY: the caller vouches for them.
    unsafe {
        if !name.is_null() {
            *name = found.0;
        }
        if !value.is_null() {
            *value = found.1;
        }
    }
}

/// The status code; 0 for NULL, INVALID_ARGUMENT when error is not alive.
///
/// Thread: any.
/// Owner: error stays the caller's.
#[unsafe(no_mangle)]
pub extern "C" fn valkyrie_error_code(error: *const valkyrie_error) -> valkyrie_code {
    let otherwise = if error.is_null() { VALKYRIE_CODE_OK } else { VALKYRIE_CODE_INVALID_ARGUMENT };
    quiet(otherwise, || {
        with_failure(error, |failure| Some(failure_code(&failure.status))).unwrap_or(otherwise)
    })
}

/// A sentence for people, ended by NUL. "" when error is not alive.
///
/// Thread: any.
/// Owner: the error's; it lives until that is freed.
#[unsafe(no_mangle)]
pub extern "C" fn valkyrie_error_message(error: *const valkyrie_error) -> *const c_char {
    quiet(c"".as_ptr(), || {
        with_failure(error, |failure| Some(failure.message.as_ptr())).unwrap_or(c"".as_ptr())
    })
}

/// The stable reason, such as "CONNECTION_LOST"; "NONE" when the server's application made the status, and when error
/// is not alive. Not ended by NUL.
///
/// Thread: any.
/// Owner: the library; the bytes live for ever.
#[unsafe(no_mangle)]
pub extern "C" fn valkyrie_error_reason(error: *const valkyrie_error) -> valkyrie_bytes {
    let name = || with_failure(error, |failure| Some(failure.status.reason().name())).unwrap_or("NONE");
    lend(quiet("NONE", name).as_bytes())
}

/// Whose fault it is: "application", "caller", "auth", "transient", "server" or "protocol"; "application" when error is
/// not alive. Not ended by NUL.
///
/// Thread: any.
/// Owner: the library; the bytes live for ever.
#[unsafe(no_mangle)]
pub extern "C" fn valkyrie_error_class(error: *const valkyrie_error) -> valkyrie_bytes {
    let name = || with_failure(error, |failure| Some(failure.status.class().name()));
    lend(quiet(None, name).unwrap_or("application").as_bytes())
}

/// What became of the call's attempts, a line for each: the server, how long it waited and took, its outcome, the breaker's state, and
/// whether there was another one or why not. Empty when none was made, or error is not alive. Not ended by NUL.
///
/// Thread: any.
/// Owner: the bytes are the error's, and live until it is freed.
#[unsafe(no_mangle)]
pub extern "C" fn valkyrie_error_timeline(error: *const valkyrie_error) -> valkyrie_bytes {
    let timeline = || with_failure(error, |failure| Some(lend(failure.status.timeline().as_bytes())));
    quiet(None, timeline).unwrap_or(lend(b""))
}

/// Milliseconds that the server asks to wait before another attempt: whether it does. UINT64_MAX means never. out may
/// be NULL.
///
/// Thread: any.
/// Owner: error stays the caller's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_error_pushback_ms(error: *const valkyrie_error, out: *mut u64) -> bool {
    let Some(wait) = quiet(None, || with_failure(error, |failure| failure.status.pushback())) else {
        return false;
    };
    if !out.is_null() {
        // SAFETY: writable, as it is not NULL.
        unsafe { *out = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX) };
    }
    true
}

/// The detail at index: whether there is one. type_name (not ended by NUL) and value may be NULL.
///
/// Thread: any.
/// Owner: the bytes are the error's, and live until it is freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_error_detail(
    error: *const valkyrie_error,
    index: usize,
    type_name: *mut valkyrie_bytes,
    value: *mut valkyrie_bytes,
) -> bool {
    let found = quiet(None, || {
        with_failure(error, |failure| {
            let detail = failure.status.details().get(index)?;
            Some((lend(detail.type_name.as_bytes()), lend(&detail.value)))
        })
    });
    // SAFETY: each output is NULL or writable.
    found.map(|found| unsafe { give(found, type_name, value) }).is_some()
}

/// Initial metadata that came with the error; NULL when error is not alive.
///
/// Thread: any.
/// Owner: the error's; it lives until that is freed.
#[unsafe(no_mangle)]
pub extern "C" fn valkyrie_error_metadata(error: *const valkyrie_error) -> *const valkyrie_metadata {
    error_part(error, Part::Metadata)
}

/// Trailers that came with the error; NULL when error is not alive.
///
/// Thread: any.
/// Owner: the error's; they live until that is freed.
#[unsafe(no_mangle)]
pub extern "C" fn valkyrie_error_trailers(error: *const valkyrie_error) -> *const valkyrie_metadata {
    error_part(error, Part::Trailers)
}

fn error_part(error: *const valkyrie_error, part: Part) -> *const valkyrie_metadata {
    quiet(ptr::null(), || with_failure(error, |_| Some(table::part(error, part))).unwrap_or(ptr::null()))
}

/// Frees an error. INVALID_ARGUMENT when it was freed before.
///
/// Thread: any, while no other reads what it lent.
/// Owner: the library has error back; NULL is nothing.
#[unsafe(no_mangle)]
pub extern "C" fn valkyrie_error_free(error: *mut valkyrie_error) -> valkyrie_code {
    code(|| free(error, "error", |object| matches!(object, Object::Failure(_))).map(drop))
}

/// Answers a request that a valkyrie_token_source got, with token, not ended by NUL, or with why there is none: error, ended
/// by NUL, becomes part of the message of the calls that wait, and must hold no secret; NULL with a token. INVALID_ARGUMENT
/// when nobody waits: the answer took longer than connect_timeout_ms, or is the second.
///
/// Thread: any, also in the valkyrie_token_source; does not block.
/// Owner: both are copied.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valkyrie_token_provide(
    request: u64,
    token: valkyrie_bytes,
    error: *const c_char,
) -> valkyrie_code {
    code(|| {
        // SAFETY: every pointer is as the head of the header asks.
        let answer = match unsafe { (error.is_null(), copy(token, "token")?) } {
            (true, token) => {
                let text = str::from_utf8(&token).map_err(|_| invalid("token is not UTF-8"))?;
                Ok(Token::new(text))
            }
            (false, _) => {
                // SAFETY: as above.
                let why = unsafe { CStr::from_ptr(error) }.to_string_lossy().into_owned();
                Err(Status::from_reason(Reason::CREDENTIALS_UNAVAILABLE, why))
            }
        };
        let waker = match requests().get_mut(&request) {
            Some(found) if found.answer.is_none() => {
                found.answer = Some(answer);
                found.waker.clone()
            }
            _ => return Err(invalid("nobody waits for this answer")),
        };
        waker.wake();
        Ok(())
    })
}

/// Operations that were accepted and are not complete, in the whole process.
///
/// Thread: any.
#[unsafe(no_mangle)]
pub extern "C" fn valkyrie_in_flight() -> usize {
    quiet(0, bridge::in_flight)
}

/// Objects that the program has and did not free, in the whole process: for tests, since a leak checker cannot see what
/// the library keeps for a pointer.
///
/// Thread: any; takes time with the most objects there ever were.
#[unsafe(no_mangle)]
pub extern "C" fn valkyrie_alive() -> usize {
    quiet(0, table::alive)
}

/// Ends everything in the process: clients close at once, operations complete with CANCELLED, threads stop. Optional
/// before exit; what is still held may only be freed afterwards.
///
/// Thread: any, once nothing else of the library runs; does not block.
#[unsafe(no_mangle)]
pub extern "C" fn valkyrie_shutdown() {
    quiet((), bridge::shutdown);
}
