//! The native part of the Kotlin package `dev.valkyrie`: checks nothing twice, holds no policy, owns no thread.
//!
//! Kotlin's `Native` declares what is exported here. A call is one crossing, which gives the operation's number; what it ends
//! with comes from [`drain`](Java_dev_valkyrie_Native_drain), in which one daemon thread of the JVM waits and which fills a
//! buffer with a batch. Text crosses as UTF-8 bytes, so that nothing here knows of the JVM's own encoding, and no object
//! of the JVM's is ever kept. What is refused is thrown by `Native.refused`, which every method may therefore call.
#![allow(
    non_snake_case,
    clippy::missing_safety_doc,
    clippy::too_many_arguments,
    reason = "the names and the arguments are the JVM's"
)]

mod host;
mod packed;

use std::{
    collections::VecDeque,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use bytes::Bytes;
use jni_sys::{JNIEnv, jboolean, jbyteArray, jclass, jint, jlong, jobject};
use valkyrie_bridge::{
    self as bridge, CallOptions, ClientOptions, Completion, Connectivity, Handle, IdempotencyKey, Level,
    Listener, Metadata, Priority, Queue, Security, Status, Token, TokenOption,
    layout::{self, Batch},
    outcome,
};

use crate::{
    host::{Host, OrNull, Room, enter},
    packed::{Fields, milliseconds},
};

/// How many completions leave the bridge's queue at once.
const DRAIN_MAX: usize = 512;
/// Records for the log that one completion brings at most.
const LOGS_MAX: usize = 64;

static QUEUE: LazyLock<Arc<Queue>> = LazyLock::new(Queue::blocking);
static LISTENER: LazyLock<Arc<Listener>> = LazyLock::new(Listener::new);
static DRAINED: Mutex<Drained> = Mutex::new(Drained { ready: VecDeque::new(), filled: None });

/// What the daemon thread has taken from the queue and Kotlin has not.
struct Drained {
    ready: VecDeque<Completion>,
    /// A batch that did not fit, with the numbers of its operations.
    filled: Option<(Vec<u64>, Batch)>,
}

/// The version of the native part and a hash of the core's sources, equal in every language of one release.
#[unsafe(no_mangle)]
pub extern "system" fn Java_dev_valkyrie_Native_version(env: *mut JNIEnv, class: jclass) -> jbyteArray {
    enter(env, class, |host| Ok(OrNull::from(host.new_bytes(bridge::version().as_bytes())))).0
}

/// The version of the layout of a batch.
#[unsafe(no_mangle)]
pub extern "system" fn Java_dev_valkyrie_Native_layoutVersion(_env: *mut JNIEnv, _class: jclass) -> jint {
    layout::VERSION as jint
}

/// Operations that are accepted and not complete.
#[unsafe(no_mangle)]
pub extern "system" fn Java_dev_valkyrie_Native_inFlight(env: *mut JNIEnv, class: jclass) -> jint {
    enter(env, class, |_| Ok(jint::try_from(bridge::in_flight()).unwrap_or(jint::MAX)))
}

/// Makes a client, and no connection yet; its handle.
#[unsafe(no_mangle)]
pub extern "system" fn Java_dev_valkyrie_Native_make(
    env: *mut JNIEnv,
    class: jclass,
    endpoint: jbyteArray,
    options: jbyteArray,
) -> jlong {
    enter(env, class, |host| {
        let options = client_options(Fields::of(host.bytes(options)))?;
        let client = bridge::make(&host.text(endpoint)?, options)?;
        Ok(client.to_raw().cast_signed())
    })
}

/// Makes a client's first connection; the operation.
#[unsafe(no_mangle)]
pub extern "system" fn Java_dev_valkyrie_Native_ready(
    env: *mut JNIEnv,
    class: jclass,
    client: jlong,
) -> jlong {
    enter(env, class, |_| operation(bridge::ready(handle(client), &QUEUE)))
}

/// Begins a unary call; the operation. `rest` is the key and the metadata, or null.
#[unsafe(no_mangle)]
pub extern "system" fn Java_dev_valkyrie_Native_call(
    env: *mut JNIEnv,
    class: jclass,
    client: jlong,
    method: jbyteArray,
    message: jbyteArray,
    timeout_ms: jlong,
    how: jint,
    rest: jbyteArray,
) -> jlong {
    enter(env, class, |host| {
        let options = call_options(host, timeout_ms, how, rest)?;
        let (method, message) = (host.text(method)?, host.message(message));
        operation(bridge::call(handle(client), &QUEUE, &method, message, options))
    })
}

/// Opens a stream in the background; its handle.
#[unsafe(no_mangle)]
pub extern "system" fn Java_dev_valkyrie_Native_open(
    env: *mut JNIEnv,
    class: jclass,
    client: jlong,
    method: jbyteArray,
    timeout_ms: jlong,
    how: jint,
    rest: jbyteArray,
) -> jlong {
    enter(env, class, |host| {
        let options = call_options(host, timeout_ms, how, rest)?;
        let stream = bridge::open(handle(client), &QUEUE, &host.text(method)?, options)?;
        Ok(stream.to_raw().cast_signed())
    })
}

/// Begins to send a message; complete when flow control has taken it.
#[unsafe(no_mangle)]
pub extern "system" fn Java_dev_valkyrie_Native_send(
    env: *mut JNIEnv,
    class: jclass,
    stream: jlong,
    message: jbyteArray,
) -> jlong {
    enter(env, class, |host| operation(bridge::send(handle(stream), &QUEUE, host.message(message))))
}

/// Begins to half-close.
#[unsafe(no_mangle)]
pub extern "system" fn Java_dev_valkyrie_Native_halfClose(
    env: *mut JNIEnv,
    class: jclass,
    stream: jlong,
) -> jlong {
    enter(env, class, |_| operation(bridge::half_close(handle(stream), &QUEUE)))
}

/// Begins to receive up to `max` messages.
#[unsafe(no_mangle)]
pub extern "system" fn Java_dev_valkyrie_Native_recv(
    env: *mut JNIEnv,
    class: jclass,
    stream: jlong,
    max: jint,
) -> jlong {
    enter(env, class, |_| operation(bridge::recv(handle(stream), &QUEUE, usize::try_from(max).unwrap_or(1))))
}

/// Cancels a stream; what is in flight on it completes. Idempotent.
#[unsafe(no_mangle)]
pub extern "system" fn Java_dev_valkyrie_Native_streamCancel(env: *mut JNIEnv, class: jclass, stream: jlong) {
    enter(env, class, |_| {
        bridge::stream_cancel(handle(stream));
        Ok(())
    });
}

/// Frees a stream, which cancels it when it is not finished. Idempotent.
#[unsafe(no_mangle)]
pub extern "system" fn Java_dev_valkyrie_Native_streamFree(env: *mut JNIEnv, class: jclass, stream: jlong) {
    enter(env, class, |_| {
        bridge::stream_free(handle(stream));
        Ok(())
    });
}

/// Cancels an operation. Idempotent; it still completes, exactly once.
#[unsafe(no_mangle)]
pub extern "system" fn Java_dev_valkyrie_Native_cancel(env: *mut JNIEnv, class: jclass, op: jlong) {
    enter(env, class, |_| {
        bridge::cancel(op.cast_unsigned());
        Ok(())
    });
}

/// Begins a graceful close.
#[unsafe(no_mangle)]
pub extern "system" fn Java_dev_valkyrie_Native_close(
    env: *mut JNIEnv,
    class: jclass,
    client: jlong,
) -> jlong {
    enter(env, class, |_| operation(bridge::close(handle(client), &QUEUE)))
}

/// Frees a client at once; calls in flight end as cancelled. Idempotent.
#[unsafe(no_mangle)]
pub extern "system" fn Java_dev_valkyrie_Native_free(env: *mut JNIEnv, class: jclass, client: jlong) {
    enter(env, class, |_| {
        bridge::client_free(handle(client));
        Ok(())
    });
}

/// Waits for the next request of a token for that client; the operation, which is the request's number.
#[unsafe(no_mangle)]
pub extern "system" fn Java_dev_valkyrie_Native_tokenWanted(
    env: *mut JNIEnv,
    class: jclass,
    client: jlong,
) -> jlong {
    enter(env, class, |_| operation(bridge::token_wanted(handle(client), &QUEUE)))
}

/// Answers a request, with a token or with why there is none. Whoever waited for it may be gone, and so may the client.
#[unsafe(no_mangle)]
pub extern "system" fn Java_dev_valkyrie_Native_tokenProvide(
    env: *mut JNIEnv,
    class: jclass,
    client: jlong,
    request: jlong,
    token: jbyteArray,
    error: jbyteArray,
) {
    enter(env, class, |host| {
        let error = host.text_or_none(error)?.unwrap_or_default();
        let answer = host.text_or_none(token)?.map(Token::new).ok_or(error);
        let _ = bridge::token_provide(handle(client), request.cast_unsigned(), answer);
        Ok(())
    });
}

/// Puts another service config in the place of a client's.
#[unsafe(no_mangle)]
pub extern "system" fn Java_dev_valkyrie_Native_setServiceConfig(
    env: *mut JNIEnv,
    class: jclass,
    client: jlong,
    config: jbyteArray,
) {
    enter(env, class, |host| bridge::set_service_config(handle(client), &host.text(config)?));
}

/// A client's breakers: JSON.
#[unsafe(no_mangle)]
pub extern "system" fn Java_dev_valkyrie_Native_breakers(
    env: *mut JNIEnv,
    class: jclass,
    client: jlong,
) -> jbyteArray {
    enter(env, class, |host| Ok(OrNull::from(host.new_bytes(bridge::breakers(handle(client))?.as_bytes())))).0
}

/// What became of a client's calls: Prometheus' text.
#[unsafe(no_mangle)]
pub extern "system" fn Java_dev_valkyrie_Native_metrics(
    env: *mut JNIEnv,
    class: jclass,
    client: jlong,
) -> jbyteArray {
    enter(env, class, |host| Ok(OrNull::from(host.new_bytes(bridge::metrics(handle(client))?.as_bytes())))).0
}

/// Holds calls back from one of a client's servers, or ends that.
#[unsafe(no_mangle)]
pub extern "system" fn Java_dev_valkyrie_Native_isolate(
    env: *mut JNIEnv,
    class: jclass,
    client: jlong,
    server: jbyteArray,
    method: jbyteArray,
    isolated: jboolean,
) {
    enter(env, class, |host| {
        let (server, method) = (host.text(server)?, host.text_or_none(method)?);
        let set = if isolated { bridge::isolate } else { bridge::restore };
        set(handle(client), &server, method.as_deref())
    });
}

/// Where a client stands with its servers: the number of a connectivity.
#[unsafe(no_mangle)]
pub extern "system" fn Java_dev_valkyrie_Native_connectivity(
    env: *mut JNIEnv,
    class: jclass,
    client: jlong,
) -> jint {
    enter(env, class, |_| Ok(bridge::connectivity(handle(client)) as jint))
}

/// Waits until it stands otherwise; the operation.
#[unsafe(no_mangle)]
pub extern "system" fn Java_dev_valkyrie_Native_connectivityOtherThan(
    env: *mut JNIEnv,
    class: jclass,
    client: jlong,
    seen: jint,
) -> jlong {
    enter(env, class, |_| {
        let seen = usize::try_from(seen).ok().and_then(|seen| bridge::CONNECTIVITIES.get(seen));
        let seen = seen.copied().unwrap_or(Connectivity::Shutdown);
        operation(bridge::connectivity_other_than(handle(client), &QUEUE, seen))
    })
}

/// Waits until a client's breakers are others than those that `seen` stands for; the operation, which gives two messages: JSON, and what stands
/// for them.
#[unsafe(no_mangle)]
pub extern "system" fn Java_dev_valkyrie_Native_breakersOtherThan(
    env: *mut JNIEnv,
    class: jclass,
    client: jlong,
    seen: jlong,
) -> jlong {
    enter(env, class, |_| {
        operation(bridge::breakers_other_than(handle(client), &QUEUE, seen.cast_unsigned()))
    })
}

/// From now on records of this level, 1 to 4, and graver ones are kept for [`Java_dev_valkyrie_Native_logged`]; 0: none.
#[unsafe(no_mangle)]
pub extern "system" fn Java_dev_valkyrie_Native_log(env: *mut JNIEnv, class: jclass, level: jint) {
    enter(env, class, |_| {
        LISTENER.set_level(Level::ALL.into_iter().find(|known| jint::from(known.number()) == level));
        Ok(())
    });
}

/// Waits for records; the operation.
#[unsafe(no_mangle)]
pub extern "system" fn Java_dev_valkyrie_Native_logged(env: *mut JNIEnv, class: jclass) -> jlong {
    enter(env, class, |_| operation(LISTENER.next(&QUEUE, LOGS_MAX)))
}

/// Waits for completions and writes a batch of them into a direct buffer: how many (u32, padded to 8 bytes), the number of each
/// operation (u64), and the batch, in which a record's slot is its index. The bytes written. When the buffer is too small,
/// the bytes it needs as a negative number: the batch waits for a larger one.
#[unsafe(no_mangle)]
pub extern "system" fn Java_dev_valkyrie_Native_drain(
    env: *mut JNIEnv,
    class: jclass,
    buffer: jobject,
) -> jlong {
    enter(env, class, |host| {
        let drained = &mut *DRAINED.lock().unwrap_or_else(PoisonError::into_inner);
        while drained.filled.is_none() {
            if drained.ready.is_empty() {
                QUEUE.wait(None);
                let mut completions = Vec::new();
                QUEUE.drain(&mut completions, DRAIN_MAX);
                drained.ready.extend(completions);
            }
            drained.fill();
        }
        Ok(drained.write(&mut host.room(buffer)))
    })
}

impl Drained {
    fn fill(&mut self) {
        let (mut ops, mut batch) = (Vec::new(), Batch::default());
        while batch.has_room()
            && let Some(Completion { op, outcome }) = self.ready.pop_front()
        {
            outcome::push(&mut batch, ops.len() as u32, outcome);
            ops.push(op);
        }
        if !batch.is_empty() {
            self.filled = Some((ops, batch));
        }
    }

    fn write(&mut self, room: &mut Room) -> jlong {
        let Some((ops, mut batch)) = self.filled.take() else { return 0 };
        let length = 8 * (1 + ops.len()) + batch.len();
        let bytes = jlong::try_from(length).unwrap_or(jlong::MAX);
        if length > room.len() {
            self.filled = Some((ops, batch));
            return -bytes;
        }
        let mut numbers = Vec::with_capacity(8 * (1 + ops.len()));
        std::iter::once(ops.len() as u64)
            .chain(ops)
            .for_each(|number| numbers.extend_from_slice(&number.to_le_bytes()));
        let (head, pieces) = batch.parts(false);
        room.write([&numbers[..], &head].into_iter().chain(pieces.iter().map(|piece| &piece[..])));
        bytes
    }
}

fn handle(raw: jlong) -> Handle {
    Handle::from_raw(raw.cast_unsigned())
}

fn operation(op: Result<u64, Status>) -> Result<jlong, Status> {
    op.map(u64::cast_signed)
}

fn client_options(mut fields: Fields) -> Result<ClientOptions, Status> {
    let mut options = ClientOptions::default();
    options.timeout_ms = fields.milliseconds()?.unwrap_or(options.timeout_ms);
    options.connect_timeout_ms = fields.milliseconds()?.unwrap_or(options.connect_timeout_ms);
    options.keepalive_ms = fields.milliseconds()?;
    options.keepalive_timeout_ms = fields.milliseconds()?;
    options.keepalive_idle_ms = fields.milliseconds()?;
    options.system_roots = fields.flag()?;
    options.sealed = fields.flag()?;
    let asks_for_tokens = fields.flag()?;
    options.trusted_certificates = fields.pem()?;
    options.revocation_lists = fields.pem()?;
    options.identity = fields.pem()?.zip(fields.pem()?);
    options.server_name = fields.text()?;
    options.min_security = fields.text()?.as_deref().and_then(Security::from_name);
    options.service_config = fields.text()?;
    options.token = match fields.text()? {
        Some(token) => Some(TokenOption::Source(Arc::new(Token::new(token)))),
        None => asks_for_tokens.then_some(TokenOption::Host),
    };
    Ok(options)
}

/// `how` is the number of the priority, and 4 more for a call that is idempotent, 8 more for a key that is drawn.
fn call_options(host: Host, timeout_ms: jlong, how: jint, rest: jbyteArray) -> Result<CallOptions, Status> {
    let priority = match how & 3 {
        0 => Priority::Critical,
        1 => Priority::Normal,
        _ => Priority::Bulk,
    };
    let (mut key, mut metadata) = (None::<Bytes>, Metadata::new());
    if !rest.is_null() {
        let mut fields = Fields::of(host.bytes(rest));
        key = fields.bytes()?;
        metadata = fields.metadata()?;
    }
    let drawn = (how & 8 != 0).then_some(IdempotencyKey::Drawn);
    Ok(CallOptions {
        timeout_ms: milliseconds(timeout_ms),
        metadata,
        priority,
        idempotent: how & 4 != 0,
        idempotency_key: drawn.or(key.map(IdempotencyKey::Given)),
    })
}
