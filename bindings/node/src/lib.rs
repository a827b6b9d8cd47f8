//! The native part of the npm package `valkyrie-sdk`: checks nothing twice, holds no policy, owns no thread.
//!
//! JavaScript picks a *slot* (a small number) for each operation and finds its promise by it. Everything an operation
//! ends with, a refusal too, goes through [`Loop::drain`], which hands a batch to JavaScript in one crossing (in
//! the layout of `valkyrie_bridge::layout`). The unary calls of one turn come in one crossing too (`gathered.rs`). A native thread only ever triggers the one wake function; it never runs JavaScript.

mod gathered;

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    sync::Arc,
};

use bytes::Bytes;
use napi::{
    Env, Error, Result, Status as NapiStatus,
    bindgen_prelude::{Buffer, FromNapiValue, Function, Unknown},
    sys,
    threadsafe_function::{ThreadsafeFunction, ThreadsafeFunctionCallMode},
};
use napi_derive::napi;
use valkyrie_bridge::{
    self as bridge, ByOperation, CallOptions, ClientOptions, Completion, Connectivity, Handle,
    IdempotencyKey, Level, Listener, Metadata, Pem, Priority, Queue, Status, Token, TokenOption, Value,
    layout::{self, Batch},
    outcome,
};

/// How many completions leave the bridge's queue at once.
const DRAIN_MAX: usize = 512;
/// Records for the log that one completion brings at most.
const LOGS_MAX: usize = 64;

/// What a client asks of connections that are encrypted, and shows there; JavaScript's side says what each is.
#[napi(object, object_to_js = false)]
#[expect(missing_docs, reason = "index.d.ts says what each is")]
pub struct Security {
    pub trusted_certificates: Option<PemSource>,
    pub system_roots: bool,
    pub revocation_lists: Option<PemSource>,
    pub identity_certificates: Option<PemSource>,
    pub identity_key: Option<PemSource>,
    pub server_name: Option<String>,
    pub sealed: bool,
    pub min_security: Option<String>,
    pub token: Option<String>,
    /// The host makes the tokens.
    pub asks_for_tokens: bool,
}

/// PEM text, or the path of a file of it.
#[napi(object, object_to_js = false)]
#[expect(missing_docs, reason = "the names say it")]
pub struct PemSource {
    pub text: Option<String>,
    pub file: Option<String>,
}

impl From<PemSource> for Pem {
    fn from(source: PemSource) -> Self {
        match source.file {
            Some(path) => Self::file(path),
            None => Self::from(source.text.unwrap_or_default()),
        }
    }
}

impl Security {
    fn into_options(self, options: &mut ClientOptions) {
        options.trusted_certificates = self.trusted_certificates.map(Pem::from);
        options.system_roots = self.system_roots;
        options.revocation_lists = self.revocation_lists.map(Pem::from);
        options.identity = self.identity_certificates.map(Pem::from).zip(self.identity_key.map(Pem::from));
        options.server_name = self.server_name;
        options.sealed = self.sealed;
        options.min_security = self.min_security.as_deref().and_then(bridge::Security::from_name);
        options.token = match self.token {
            Some(token) => Some(TokenOption::Source(Arc::new(Token::new(token)))),
            None => self.asks_for_tokens.then_some(TokenOption::Host),
        };
    }
}

/// Weak, so that an idle client does not keep the process alive; [`Loop`] refers it while operations are in flight.
type Wake = ThreadsafeFunction<(), (), (), NapiStatus, false, true, 1>;

/// The version of the native part and a hash of the core's sources, equal in every language of one release.
#[napi]
pub fn version() -> &'static str {
    bridge::version()
}

/// The version of the layout of what [`Loop::drain`] gives.
#[napi]
pub fn layout_version() -> u32 {
    layout::VERSION
}

/// Operations of the whole process that are accepted and not complete.
#[napi]
pub fn in_flight() -> u32 {
    u32::try_from(bridge::in_flight()).unwrap_or(u32::MAX)
}

/// One JavaScript environment's (main thread's or worker's) side of the boundary: one queue, one wake function.
#[napi]
pub struct Loop {
    shared: Rc<Shared>,
}

struct Shared {
    queue: Arc<Queue>,
    wake: Arc<Wake>,
    table: RefCell<Table>,
    /// Methods of gathered calls, by the number that JavaScript has for each.
    methods: RefCell<Vec<String>>,
    listener: Arc<Listener>,
    /// The operation that waits for records, which does not keep the process alive.
    listening: Cell<Option<u64>>,
    logs: Cell<bool>,
}

/// Operations of this environment that are accepted and not yet handed to JavaScript.
#[derive(Default)]
struct Table {
    slots: ByOperation<u32>,
    /// Those that wait for what may never come, requests of tokens or a change, which do not keep the process alive.
    watches: ByOperation<u32>,
    ops: Vec<u64>,
    ready: VecDeque<(u32, Completion)>,
    scratch: Vec<Completion>,
    /// The last drain may have left completions in the queue, which wakes nobody for them.
    left_behind: bool,
}

#[napi]
impl Loop {
    /// `wake` is called, without arguments, when there is something to drain.
    #[napi(constructor)]
    pub fn new(env: Env, wake: Function<'_, (), ()>) -> Result<Self> {
        let wake: Arc<Wake> = Arc::new(
            wake.build_threadsafe_function::<()>()
                .callee_handled::<false>()
                .weak::<true>()
                .max_queue_size::<1>()
                .build()?,
        );
        let queue = Queue::new({
            let wake = Arc::clone(&wake);
            move || {
                // Full means that a wake is already on its way, closing that nobody is left to be woken.
                let _ = wake.call((), ThreadsafeFunctionCallMode::NonBlocking);
            }
        });
        let listener = Listener::new();
        env.add_env_cleanup_hook((Arc::clone(&queue), Arc::clone(&listener)), |(queue, listener)| {
            queue.close();
            listener.set_level(None);
        })?;
        Ok(Self {
            shared: Rc::new(Shared {
                queue,
                wake,
                table: RefCell::default(),
                methods: RefCell::default(),
                listener,
                listening: Cell::default(),
                logs: Cell::default(),
            }),
        })
    }

    /// Begins to connect; `None` means refused, and the refusal waits to be drained.
    #[napi]
    #[allow(clippy::too_many_arguments, reason = "as Client::call")]
    pub fn connect(
        &self,
        env: Env,
        slot: u32,
        endpoint: String,
        timeout_ms: f64,
        connect_timeout_ms: f64,
        security: Security,
        service_config: Option<String>,
        keepalive_ms: f64,
        keepalive_timeout_ms: f64,
        keepalive_idle_ms: f64,
    ) -> Option<Client> {
        let mut options = ClientOptions::default();
        options.timeout_ms = milliseconds(timeout_ms).unwrap_or(options.timeout_ms);
        options.connect_timeout_ms = milliseconds(connect_timeout_ms).unwrap_or(options.connect_timeout_ms);
        security.into_options(&mut options);
        options.service_config = service_config;
        options.keepalive_ms = milliseconds(keepalive_ms);
        options.keepalive_timeout_ms = milliseconds(keepalive_timeout_ms);
        options.keepalive_idle_ms = milliseconds(keepalive_idle_ms);
        match bridge::connect(&self.shared.queue, &endpoint, options) {
            Ok((handle, op)) => {
                self.shared.accepted(env, slot, Ok(op));
                Some(Client { handle, shared: Rc::clone(&self.shared) })
            }
            Err(status) => {
                self.shared.accepted(env, slot, Err(status));
                None
            }
        }
    }

    /// Waits for the next request of a token for that client; its number. `None`: refused, drain at once.
    #[napi]
    pub fn token_wanted(&self, env: Env, slot: u32, client: f64) -> Option<f64> {
        match bridge::token_wanted(Handle::from_raw(client as u64), &self.shared.queue) {
            Ok(op) => {
                self.shared.table.borrow_mut().watches.insert(op, slot);
                Some(op as f64)
            }
            Err(status) => {
                self.shared.accepted(env, slot, Err(status));
                None
            }
        }
    }

    /// Puts another service config in the place of that client's. `true`: refused, drain at once, and so for what follows.
    #[napi]
    pub fn set_service_config(&self, env: Env, slot: u32, client: f64, config: String) -> bool {
        let set = bridge::set_service_config(Handle::from_raw(client as u64), &config);
        self.shared.complete(env, slot, set.map(|()| Value::Done))
    }

    /// Its breakers: one message of JSON.
    #[napi]
    pub fn breakers(&self, env: Env, slot: u32, client: f64) -> bool {
        let breakers = bridge::breakers(Handle::from_raw(client as u64));
        let value = |text: String| Value::Messages { messages: vec![text.into()], end: None };
        self.shared.complete(env, slot, breakers.map(value))
    }

    /// Waits until they are others than what `seen` stands for: that message, and one that is the next `seen` in decimal. `true`:
    /// refused, drain at once.
    #[napi]
    pub fn breakers_other_than(&self, env: Env, slot: u32, client: f64, seen: f64) -> bool {
        let client = Handle::from_raw(client as u64);
        self.shared.watches(env, slot, bridge::breakers_other_than(client, &self.shared.queue, seen as u64))
    }

    /// What became of its calls: one message of Prometheus' text.
    #[napi]
    pub fn metrics(&self, env: Env, slot: u32, client: f64) -> bool {
        let metrics = bridge::metrics(Handle::from_raw(client as u64));
        let value = |text: String| Value::Messages { messages: vec![text.into()], end: None };
        self.shared.complete(env, slot, metrics.map(value))
    }

    /// Holds calls back from one of its servers, or ends that.
    #[napi]
    pub fn isolate(
        &self,
        env: Env,
        slot: u32,
        client: f64,
        server: String,
        method: Option<String>,
        isolated: bool,
    ) -> bool {
        let set = if isolated { bridge::isolate } else { bridge::restore };
        let done = set(Handle::from_raw(client as u64), &server, method.as_deref());
        self.shared.complete(env, slot, done.map(|()| Value::Done))
    }

    /// Where that client stands with its servers: the number of a connectivity.
    #[napi]
    pub fn connectivity(&self, client: f64) -> u32 {
        bridge::connectivity(Handle::from_raw(client as u64)) as u32
    }

    /// Waits until it stands otherwise. `true`: refused, drain at once.
    #[napi]
    pub fn connectivity_other_than(&self, env: Env, slot: u32, client: f64, seen: u32) -> bool {
        let seen = bridge::CONNECTIVITIES.get(seen as usize).copied().unwrap_or(Connectivity::Shutdown);
        let client = Handle::from_raw(client as u64);
        self.shared.watches(env, slot, bridge::connectivity_other_than(client, &self.shared.queue, seen))
    }

    /// Answers a request. Whoever waited for it may be gone, and so may the client.
    #[napi]
    pub fn token_provide(&self, client: f64, request: f64, token: Option<String>, error: Option<String>) {
        let answer = token.map(Token::new).ok_or_else(|| error.unwrap_or_default());
        let _ = bridge::token_provide(Handle::from_raw(client as u64), request as u64, answer);
    }

    /// The number of a method that gathered calls may name.
    #[napi]
    pub fn method(&self, name: String) -> u32 {
        let methods = &mut *self.shared.methods.borrow_mut();
        methods.push(name);
        methods.len() as u32 - 1
    }

    /// Begins the calls in the first `len` bytes of `gathered`. `true`: one was refused, drain at once.
    #[napi]
    pub fn submit(&self, env: Env, gathered: &[u8], len: u32) -> bool {
        let methods = self.shared.methods.borrow();
        let slot = Cell::new(0);
        let calls = gathered::calls(&gathered[..gathered.len().min(len as usize)]).map(|call| {
            slot.set(call.slot);
            let method = methods.get(call.method).map_or("", String::as_str);
            let options = call_options(call.timeout_ms, call.how, Metadata::new(), None);
            (call.client, method, call.message, options)
        });
        let mut refused = false;
        bridge::call_many(&self.shared.queue, calls, |op| {
            refused |= self.shared.accepted(env, slot.get(), op)
        });
        refused
    }

    /// Cancels the operation in that slot. Idempotent; it still completes, exactly once.
    #[napi]
    pub fn cancel(&self, slot: u32) {
        let op = self.shared.table.borrow().ops.get(slot as usize).copied();
        if let Some(op) = op {
            bridge::cancel(op);
        }
    }

    /// From now on records of this level, 1 to 4, and graver ones come with what is drained; 0: none.
    #[napi]
    pub fn log(&self, level: u32) {
        let level = Level::ALL.into_iter().find(|known| u32::from(known.number()) == level);
        self.shared.logs.set(level.is_some());
        self.shared.listener.set_level(level);
        if level.is_some() && self.shared.listening.get().is_none() {
            self.shared.listen();
        }
    }

    /// The next batch of completions, `None` when there is none.
    #[napi]
    pub fn drain(&self, env: Env) -> Result<Option<Unknown<'static>>> {
        let table = &mut *self.shared.table.borrow_mut();
        if table.ready.is_empty() {
            table.left_behind = self.shared.queue.drain(&mut table.scratch, DRAIN_MAX) == DRAIN_MAX;
            for completion in table.scratch.drain(..) {
                if self.shared.listening.get() == Some(completion.op) {
                    self.shared.listening.set(None);
                    if self.shared.logs.get() {
                        self.shared.listen();
                    }
                    if completion.outcome.is_ok() {
                        table.ready.push_back((0, completion));
                    }
                } else if let Some(slot) =
                    table.slots.remove(&completion.op).or_else(|| table.watches.remove(&completion.op))
                {
                    table.ready.push_back((slot, completion));
                }
            }
        }
        if table.ready.is_empty() {
            return Ok(None);
        }
        let mut batch = Batch::default();
        while batch.has_room() {
            let Some((slot, completion)) = table.ready.pop_front() else { break };
            outcome::push(&mut batch, slot, completion.outcome);
        }
        let more = table.left_behind || !table.ready.is_empty();
        if !more && table.slots.is_empty() {
            self.shared.refer(env, false);
        }
        into_buffer(batch, env, more).map(Some)
    }
}

/// One copy: from the messages to the Buffer.
fn into_buffer(mut batch: Batch, env: Env, more: bool) -> Result<Unknown<'static>> {
    let (mut data, mut value) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: `env` is the environment that called into this method, on its own thread; both out pointers are valid.
    let status = unsafe { sys::napi_create_buffer(env.raw(), batch.len(), &mut data, &mut value) };
    if status != sys::Status::napi_ok {
        return Err(Error::new(NapiStatus::from(status), "cannot allocate a Buffer"));
    }
    let mut to = data.cast::<u8>();
    let (head, pieces) = batch.parts(more);
    for part in std::iter::once(&head[..]).chain(pieces.iter().map(|piece| &piece[..])) {
        // SAFETY: `data` has room for `batch.len()` bytes, the sum of the parts' lengths; it is fresh memory that
        // nothing else refers to, so the ranges cannot overlap.
        unsafe {
            std::ptr::copy_nonoverlapping(part.as_ptr(), to, part.len());
            to = to.add(part.len());
        }
    }
    // SAFETY: `value` was made by the call above in this handle scope.
    unsafe { Unknown::from_napi_value(env.raw(), value) }
}

impl Shared {
    /// Begins to wait for records.
    fn listen(&self) {
        // A queue that is closed has nobody to tell.
        self.listening.set(self.listener.next(&self.queue, LOGS_MAX).ok());
    }

    /// An operation that is over.
    fn complete(&self, env: Env, slot: u32, outcome: std::result::Result<Value, Status>) -> bool {
        self.accepted(env, slot, outcome.and_then(|value| bridge::done(&self.queue, value)))
    }

    /// As [`Shared::accepted`], for one that waits for what may never come: it keeps no process alive.
    fn watches(&self, env: Env, slot: u32, op: std::result::Result<u64, Status>) -> bool {
        match op {
            Ok(op) => {
                self.table.borrow_mut().watches.insert(op, slot);
                false
            }
            Err(status) => self.accepted(env, slot, Err(status)),
        }
    }

    /// Notes an operation; `true` when it was refused, so that the outcome can be drained at once.
    fn accepted(&self, env: Env, slot: u32, op: std::result::Result<u64, Status>) -> bool {
        let table = &mut *self.table.borrow_mut();
        match op {
            Ok(op) => {
                if table.slots.is_empty() {
                    self.refer(env, true);
                }
                table.slots.insert(op, slot);
                if table.ops.len() <= slot as usize {
                    table.ops.resize(slot as usize + 1, 0);
                }
                table.ops[slot as usize] = op;
                false
            }
            Err(status) => {
                table.ready.push_back((slot, Completion { op: 0, outcome: Err(status) }));
                true
            }
        }
    }

    /// Whether the wake function keeps the event loop alive.
    fn refer(&self, env: Env, keep_alive: bool) {
        if self.wake.aborted() {
            return;
        }
        let raw = self.wake.raw();
        // SAFETY: `raw` lives as long as `self.wake`, which is not aborted; `env` is the environment that made it,
        // because every method of this file runs on that environment's thread. A failure changes nothing.
        unsafe {
            match keep_alive {
                true => sys::napi_ref_threadsafe_function(env.raw(), raw),
                false => sys::napi_unref_threadsafe_function(env.raw(), raw),
            };
        }
    }
}

/// A client; garbage collection frees it, which cancels what is in flight.
#[napi]
pub struct Client {
    handle: Handle,
    shared: Rc<Shared>,
}

#[napi]
impl Client {
    /// The number that gathered calls name the client by.
    #[napi]
    pub fn id(&self) -> f64 {
        self.handle.to_raw() as f64
    }

    /// Begins a unary call. `true`: refused, drain at once. `timeout_ms` NaN: the default; infinite: none.
    #[napi]
    #[allow(clippy::too_many_arguments, reason = "one crossing; an options object costs one more per field")]
    pub fn call(
        &self,
        env: Env,
        slot: u32,
        method: String,
        message: &[u8],
        timeout_ms: f64,
        how: u32,
        keys: Option<Vec<String>>,
        values: Option<Vec<Buffer>>,
        key: Option<Buffer>,
    ) -> bool {
        let op = metadata(keys, values).and_then(|metadata| {
            let options = call_options(timeout_ms, how, metadata, key);
            bridge::call(self.handle, &self.shared.queue, &method, Bytes::copy_from_slice(message), options)
        });
        self.shared.accepted(env, slot, op)
    }

    /// Opens a stream in the background. `None`: refused, and the refusal waits in `slot` to be drained.
    #[napi]
    #[allow(clippy::too_many_arguments, reason = "as call")]
    pub fn open(
        &self,
        env: Env,
        slot: u32,
        method: String,
        timeout_ms: f64,
        how: u32,
        keys: Option<Vec<String>>,
        values: Option<Vec<Buffer>>,
        key: Option<Buffer>,
    ) -> Option<Stream> {
        let stream = metadata(keys, values).and_then(|metadata| {
            let options = call_options(timeout_ms, how, metadata, key);
            bridge::open(self.handle, &self.shared.queue, &method, options)
        });
        match stream {
            Ok(handle) => Some(Stream { handle, shared: Rc::clone(&self.shared) }),
            Err(status) => {
                self.shared.accepted(env, slot, Err(status));
                None
            }
        }
    }

    /// Begins a graceful close.
    #[napi]
    pub fn close(&self, env: Env, slot: u32) -> bool {
        self.shared.accepted(env, slot, bridge::close(self.handle, &self.shared.queue))
    }

    /// Frees the client at once; calls in flight end as cancelled. Idempotent.
    #[napi]
    pub fn free(&self) {
        bridge::client_free(self.handle);
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        bridge::client_free(self.handle);
    }
}

/// A stream; garbage collection frees it, which cancels it when it is not finished.
#[napi]
pub struct Stream {
    handle: Handle,
    shared: Rc<Shared>,
}

#[napi]
impl Stream {
    /// Begins to send a message; complete when flow control has taken it.
    #[napi]
    pub fn send(&self, env: Env, slot: u32, message: &[u8]) -> bool {
        let op = bridge::send(self.handle, &self.shared.queue, Bytes::copy_from_slice(message));
        self.shared.accepted(env, slot, op)
    }

    /// Begins to half-close.
    #[napi]
    pub fn half_close(&self, env: Env, slot: u32) -> bool {
        self.shared.accepted(env, slot, bridge::half_close(self.handle, &self.shared.queue))
    }

    /// Begins to receive up to `max` messages.
    #[napi]
    pub fn recv(&self, env: Env, slot: u32, max: u32) -> bool {
        self.shared.accepted(env, slot, bridge::recv(self.handle, &self.shared.queue, max as usize))
    }

    /// Cancels the stream; what is in flight on it completes. Idempotent.
    #[napi]
    pub fn cancel(&self) {
        bridge::stream_cancel(self.handle);
    }

    /// Frees the stream. Idempotent.
    #[napi]
    pub fn free(&self) {
        bridge::stream_free(self.handle);
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        bridge::stream_free(self.handle);
    }
}

/// NaN stands for "not given", infinity for "no limit"; a fraction is rounded up.
fn milliseconds(value: f64) -> Option<u64> {
    (!value.is_nan()).then(|| value.ceil() as u64)
}

/// `how` is the number of the priority, and 4 more for a call that is idempotent, 8 more for a key that is drawn.
fn call_options(timeout_ms: f64, how: u32, metadata: Metadata, key: Option<Buffer>) -> CallOptions {
    let priority = match how & 3 {
        0 => Priority::Critical,
        1 => Priority::Normal,
        _ => Priority::Bulk,
    };
    let given = key.map(|key| IdempotencyKey::Given(Bytes::copy_from_slice(&key)));
    let idempotency_key = if how & 8 != 0 { Some(IdempotencyKey::Drawn) } else { given };
    CallOptions {
        timeout_ms: milliseconds(timeout_ms),
        metadata,
        priority,
        idempotent: how & 4 != 0,
        idempotency_key,
    }
}

fn metadata(keys: Option<Vec<String>>, values: Option<Vec<Buffer>>) -> std::result::Result<Metadata, Status> {
    let mut metadata = Metadata::new();
    for (key, value) in keys.unwrap_or_default().into_iter().zip(values.unwrap_or_default()) {
        metadata.insert(key, Bytes::copy_from_slice(&value))?;
    }
    Ok(metadata)
}
