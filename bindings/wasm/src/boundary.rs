//! What JavaScript calls. Checked arguments come in, outcomes leave through [`turn`]; nothing here waits or throws.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    future::Future,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use js_sys::Function;
use valkyrie_sdk::{
    CallOptions, Client, ClientBuilder, Connectivity, Level, Log, Priority, Reason, Record, Records,
    Response, Sink, Status, Submission, Token, policy::ServiceConfig,
};
use wasm_bindgen::prelude::*;

use crate::{
    layout::{self, Batch},
    pack::{self, Value},
    report,
    requests::{Notice, Requests},
    runtime::{self, PageRuntime},
    socket::PageConnector,
    stream::Stream,
};

thread_local! {
    static BOUNDARY: RefCell<Boundary> = RefCell::default();
    /// The least grave level that JavaScript listens to; 0 is none.
    static LEVEL: Cell<u8> = const { Cell::new(0) };
}

/// Never borrowed while the sdk runs, which calls back.
#[derive(Default)]
struct Boundary {
    clients: HashMap<u32, Client>,
    /// What clients ask JavaScript for.
    requests: HashMap<u32, Arc<Requests<Slot>>>,
    streams: HashMap<u32, Rc<Stream>>,
    /// The last number given to a client or a stream. 0 is none.
    last_id: u32,
    /// Unary calls in flight, by slot.
    submissions: HashMap<u32, Submission>,
    outcomes: VecDeque<(u32, Result<Value, Status>)>,
    /// Of this turn, [`Records::MAX`] at most.
    records: Vec<Record>,
}

impl Boundary {
    /// A number that nothing alive has.
    fn new_id(&mut self) -> u32 {
        loop {
            self.last_id = self.last_id.wrapping_add(1);
            let id = self.last_id;
            if id != 0 && !self.clients.contains_key(&id) && !self.streams.contains_key(&id) {
                return id;
            }
        }
    }
}

fn boundary<T>(then: impl FnOnce(&mut Boundary) -> T) -> T {
    BOUNDARY.with_borrow_mut(then)
}

fn complete(slot: u32, outcome: Result<Value, Status>) {
    boundary(|boundary| boundary.outcomes.push_back((slot, outcome)));
    runtime::request_turn();
}

/// Runs an operation whose outcome is the slot's.
fn run(slot: u32, operation: impl Future<Output = Result<Value, Status>> + 'static) {
    runtime::spawn(async move { complete(slot, operation.await) });
}

/// Waits for a request of a token.
struct Slot(u32);

impl Notice for Slot {
    fn number(&self) -> u64 {
        self.0.into()
    }

    fn tell(&self) -> bool {
        complete(self.0, Ok(Value::Done));
        true
    }

    fn end(&self, why: Status) {
        complete(self.0, Err(why));
    }
}

/// Takes the outcome of a unary call; its token is the slot.
struct Unary;

impl Sink for Unary {
    fn complete(&self, token: u64, result: Result<Response, Status>) {
        complete(token as u32, result.map(Value::Response));
    }
}

/// Keeps records for the next turn.
struct Logs;

impl Log for Logs {
    fn enabled(&self, level: Level) -> bool {
        level.number() <= LEVEL.get()
    }

    fn log(&self, record: Record) {
        boundary(|boundary| {
            if boundary.records.len() < Records::MAX {
                boundary.records.push(record);
            }
        });
        runtime::request_turn();
    }
}

/// From now on records of this level, 1 to 4, and graver ones come with a turn's outcomes; 0: none.
#[wasm_bindgen]
pub fn log(level: u8) {
    LEVEL.set(level);
    if level == 0 {
        boundary(|boundary| boundary.records.clear());
    }
}

/// The version of the layout of what [`turn`] gives.
#[wasm_bindgen]
pub fn layout_version() -> u32 {
    layout::VERSION
}

/// The version of this module and a hash of the core's sources, equal in every language of one release.
#[wasm_bindgen]
pub fn version() -> String {
    concat!(env!("CARGO_PKG_VERSION"), " (core ", env!("VALKYRIE_CORE_HASH"), ")").to_owned()
}

/// To be called first, once. `wake` must see to it that [`turn`] is called soon, and may not call it itself; `fatal` is
/// told why when the module panics, and then it must not be called again.
#[wasm_bindgen]
pub fn start(wake: Function, fatal: Function) {
    thread_local!(static FATAL: RefCell<Option<Function>> = const { RefCell::new(None) });
    FATAL.set(Some(fatal));
    runtime::set_wake(wake);
    std::panic::set_hook(Box::new(|panic| {
        let message = JsValue::from(panic.to_string());
        // The trap that follows is all that is left to say if it fails.
        FATAL.with_borrow(|fatal| fatal.as_ref().map(|fatal| fatal.call1(&JsValue::UNDEFINED, &message)));
    }));
}

/// Runs every task that is ready, then gives a batch of outcomes, `None` when there is none.
#[wasm_bindgen]
pub fn turn() -> Option<Vec<u8>> {
    runtime::run_tasks();
    let (mut batch, more) = boundary(|boundary| {
        let mut batch = Batch::default();
        if !boundary.records.is_empty() {
            batch.logs(&std::mem::take(&mut boundary.records));
        }
        while batch.has_room() {
            let Some((slot, outcome)) = boundary.outcomes.pop_front() else { break };
            boundary.submissions.remove(&slot);
            pack::push(&mut batch, slot, outcome);
        }
        (batch, !boundary.outcomes.is_empty())
    });
    if !more {
        runtime::end_turn();
    }
    (!batch.is_empty()).then(|| {
        let (mut bytes, pieces) = batch.parts(more);
        pieces.iter().for_each(|piece| bytes.extend_from_slice(piece));
        bytes
    })
}

/// Begins to connect and gives the client's number; 0 when it was refused. Without a token `asks` is whether JavaScript makes
/// them.
#[wasm_bindgen]
#[expect(clippy::too_many_arguments, reason = "an object would have to be read field by field")]
pub fn connect(
    slot: u32,
    endpoint: String,
    timeout_ms: f64,
    connect_timeout_ms: f64,
    token: Option<String>,
    asks: bool,
    service_config: Option<String>,
    keepalive_ms: f64,
    keepalive_timeout_ms: f64,
    keepalive_idle_ms: f64,
) -> u32 {
    let keepalive = [keepalive_ms, keepalive_timeout_ms, keepalive_idle_ms];
    let builder = builder(endpoint, timeout_ms, connect_timeout_ms, keepalive);
    connect_with(slot, builder, token, asks, service_config)
}

/// As [`connect`], by a sealed session. All of them PEM, but for the name that the server's certificate must be for.
#[cfg(feature = "sealed")]
#[wasm_bindgen]
#[expect(clippy::too_many_arguments, reason = "an object would have to be read field by field")]
pub fn connect_sealed(
    slot: u32,
    endpoint: String,
    timeout_ms: f64,
    connect_timeout_ms: f64,
    token: Option<String>,
    asks: bool,
    service_config: Option<String>,
    keepalive_ms: f64,
    keepalive_timeout_ms: f64,
    keepalive_idle_ms: f64,
    trusted_certificates: Option<String>,
    server_name: Option<String>,
    certificates: Option<String>,
    key: Option<String>,
) -> u32 {
    let keepalive = [keepalive_ms, keepalive_timeout_ms, keepalive_idle_ms];
    let mut builder = builder(endpoint, timeout_ms, connect_timeout_ms, keepalive).sealed(true);
    if let Some(pem) = trusted_certificates {
        builder = builder.trusted_certificates(pem);
    }
    if let Some(name) = server_name {
        builder = builder.server_name(name);
    }
    if let (Some(certificates), Some(key)) = (certificates, key) {
        builder = builder.identity(certificates, key);
    }
    connect_with(slot, builder, token, asks, service_config)
}

/// Here too, so that one face fits both modules: bundlers look for every name that it has.
#[cfg(not(feature = "sealed"))]
#[wasm_bindgen]
pub fn connect_sealed(slot: u32) -> u32 {
    let message = "sealed sessions are in another module: import 'valkyrie-sdk-web/sealed'";
    complete(slot, Err(Status::from_reason(Reason::INVALID_CONFIGURATION, message)));
    0
}

fn builder(
    endpoint: String,
    timeout_ms: f64,
    connect_timeout_ms: f64,
    [keepalive_ms, keepalive_timeout_ms, keepalive_idle_ms]: [f64; 3],
) -> ClientBuilder {
    // 0 and infinity are never.
    let or_never = |ms: u64| if ms == u64::MAX { 0 } else { ms };
    let connector = Arc::new(PageConnector);
    let mut builder = Client::builder()
        .endpoint(endpoint)
        .runtime(Arc::new(PageRuntime))
        .log(Arc::new(Logs))
        .connector("ws", connector.clone())
        .connector("wss", connector);
    if let Some(timeout_ms) = milliseconds(timeout_ms) {
        builder = builder.timeout_ms(timeout_ms);
    }
    if let Some(timeout_ms) = milliseconds(connect_timeout_ms) {
        builder = builder.connect_timeout_ms(timeout_ms);
    }
    if let Some(ms) = milliseconds(keepalive_ms) {
        builder = builder.keepalive_ms(or_never(ms));
    }
    if let Some(ms) = milliseconds(keepalive_timeout_ms) {
        builder = builder.keepalive_timeout_ms(ms);
    }
    if let Some(ms) = milliseconds(keepalive_idle_ms) {
        builder = builder.keepalive_idle_ms(or_never(ms));
    }
    builder
}

fn connect_with(
    slot: u32,
    mut builder: ClientBuilder,
    token: Option<String>,
    asks: bool,
    service_config: Option<String>,
) -> u32 {
    let requests = asks.then(|| Arc::new(Requests::new()));
    if let Some(token) = token {
        builder = builder.token(token);
    }
    if let Some(requests) = &requests {
        builder = builder.token_source(requests.clone());
    }
    let config = service_config.map_or(Ok(ServiceConfig::default()), |config| ServiceConfig::parse(&config));
    match config.and_then(|config| builder.service_config(config).connect_lazily()) {
        Ok(client) => {
            let connecting = client.clone();
            run(slot, async move { connecting.ready().await.map(|()| Value::Done) });
            boundary(|boundary| {
                let id = boundary.new_id();
                boundary.clients.insert(id, client);
                boundary.requests.extend(requests.map(|requests| (id, requests)));
                id
            })
        }
        Err(status) => {
            complete(slot, Err(status));
            0
        }
    }
}

/// Completes the slot when a token is wanted for that client.
#[wasm_bindgen]
pub fn token_wanted(client: u32, slot: u32) {
    match boundary(|boundary| boundary.requests.get(&client).cloned()) {
        Some(requests) => requests.wait(Slot(slot)),
        None => complete(slot, Err(Status::from_reason(Reason::CLIENT_CLOSED, "the client is closed"))),
    }
}

/// Answers the request that completed `slot`. Whoever waited for it may be gone, and so may the client.
#[wasm_bindgen]
pub fn token_provide(client: u32, slot: u32, token: Option<String>, error: Option<String>) {
    let unavailable = |why| Status::from_reason(Reason::CREDENTIALS_UNAVAILABLE, why);
    let answer = token.map(Token::new).ok_or_else(|| unavailable(error.unwrap_or_default()));
    if let Some(requests) = boundary(|boundary| boundary.requests.get(&client).cloned()) {
        requests.provide(slot.into(), answer);
    }
}

/// The client is gone: nothing is asked for it any more.
fn end_requests(client: u32) {
    if let Some(requests) = boundary(|boundary| boundary.requests.remove(&client)) {
        requests.end();
    }
}

/// Begins a unary call. `timeout_ms` NaN: the default; infinite: none. `how`: the number of the priority, and 4
/// more for a call that is idempotent. `metadata`: what [`pack::metadata`] reads. `key`: the idempotency key.
#[wasm_bindgen]
pub fn call(
    client: u32,
    slot: u32,
    method: &str,
    message: Vec<u8>,
    timeout_ms: f64,
    how: u32,
    metadata: Option<Vec<u8>>,
    key: Option<Vec<u8>>,
) {
    let prepared = client_and_options(client, timeout_ms, how, metadata, key);
    match prepared {
        Ok((client, options)) => {
            let submission = client.submit(method, message.into(), options, slot.into(), unary());
            boundary(|boundary| boundary.submissions.insert(slot, submission));
        }
        Err(status) => complete(slot, Err(status)),
    }
}

/// Gives up the unary call in that slot, which still has its one outcome. Idempotent.
#[wasm_bindgen]
pub fn cancel(slot: u32) {
    if let Some(submission) = boundary(|boundary| boundary.submissions.get(&slot).cloned()) {
        submission.cancel();
    }
}

/// Opens a stream in the background and gives its number; 0 when it was refused, and `slot` has the refusal. Otherwise
/// the slot has no outcome.
#[wasm_bindgen]
pub fn open(
    client: u32,
    slot: u32,
    method: String,
    timeout_ms: f64,
    how: u32,
    metadata: Option<Vec<u8>>,
    key: Option<Vec<u8>>,
) -> u32 {
    match client_and_options(client, timeout_ms, how, metadata, key) {
        Ok((client, options)) => {
            let stream = Stream::open(client, method, options);
            boundary(|boundary| {
                let id = boundary.new_id();
                boundary.streams.insert(id, stream);
                id
            })
        }
        Err(status) => {
            complete(slot, Err(status));
            0
        }
    }
}

/// Begins to send a message; done when flow control has taken it.
#[wasm_bindgen]
pub fn send(stream: u32, slot: u32, message: Vec<u8>) {
    on_stream(stream, slot, |stream| stream.send(message.into()));
}

/// Begins to half-close.
#[wasm_bindgen]
pub fn half_close(stream: u32, slot: u32) {
    on_stream(stream, slot, Stream::half_close);
}

/// Begins to receive 1 to `max` messages or the end.
#[wasm_bindgen]
pub fn recv(stream: u32, slot: u32, max: u32) {
    on_stream(stream, slot, |stream| stream.recv(max as usize));
}

/// Cancels a stream; what is in flight on it ends. Idempotent.
#[wasm_bindgen]
pub fn stream_cancel(stream: u32) {
    if let Some(stream) = boundary(|boundary| boundary.streams.get(&stream).cloned()) {
        stream.cancel();
    }
}

/// Forgets a stream; one that has not ended is cancelled. Idempotent.
#[wasm_bindgen]
pub fn stream_free(stream: u32) {
    if let Some(stream) = boundary(|boundary| boundary.streams.remove(&stream)) {
        stream.cancel();
    }
}

/// Begins to close a client gracefully. Once closed it is forgotten: JavaScript's collector comes whenever it likes.
#[wasm_bindgen]
pub fn close(id: u32, slot: u32) {
    match find(id) {
        Ok(client) => run(slot, async move {
            client.close().await;
            boundary(|boundary| boundary.clients.remove(&id));
            end_requests(id);
            Ok(Value::Done)
        }),
        // It was closed before.
        Err(_) => complete(slot, Ok(Value::Done)),
    }
}

/// Puts another service config in the place of a client's.
#[wasm_bindgen]
pub fn set_service_config(client: u32, slot: u32, config: &str) {
    let set = |client: Client| ServiceConfig::parse(config).map(|config| client.set_service_config(config));
    complete(slot, find(client).and_then(set).map(|()| Value::Done));
}

/// A client's breakers: one message of JSON.
#[wasm_bindgen]
pub fn breakers(client: u32, slot: u32) {
    let json = |client: Client| report::breakers(&client.breakers());
    let value = |text: String| Value::Messages { messages: vec![text.into()], end: None };
    complete(slot, find(client).map(json).map(value));
}

/// Completes the slot once they are others than what `seen` stands for: that message, and one that is the next `seen` in decimal.
#[wasm_bindgen]
pub fn breakers_other_than(client: u32, slot: u32, seen: f64) {
    run(slot, async move {
        let client = find(client)?;
        let mut now = client.breakers();
        if report::mark(&now) == seen as u64 {
            now = client.breakers_other_than(&now).await?;
        }
        let messages = vec![report::breakers(&now).into(), report::mark(&now).to_string().into()];
        Ok(Value::Messages { messages, end: None })
    });
}

/// Holds calls back from one of its servers, or ends that.
#[wasm_bindgen]
pub fn isolate(client: u32, slot: u32, server: &str, method: Option<String>, isolated: bool) {
    let set = if isolated { Client::isolate } else { Client::restore };
    let done = find(client).and_then(|client| set(&client, server, method.as_deref()));
    complete(slot, done.map(|()| Value::Done));
}

/// Where a client stands with its servers: the number of a connectivity.
#[wasm_bindgen]
pub fn connectivity(client: u32) -> u8 {
    find(client).map_or(Connectivity::Shutdown, |client| client.connectivity()) as u8
}

/// Completes the slot once the client no longer stands as that number says.
#[wasm_bindgen]
pub fn connectivity_other_than(client: u32, slot: u32, seen: u8) {
    let states =
        [Connectivity::Idle, Connectivity::Connecting, Connectivity::Ready, Connectivity::TransientFailure];
    match (find(client), states.get(usize::from(seen)).copied()) {
        (Ok(client), Some(seen)) => run(slot, async move {
            client.connectivity_other_than(seen).await;
            Ok(Value::Done)
        }),
        _ => complete(slot, Ok(Value::Done)),
    }
}

/// Forgets a client at once; calls in flight end as cancelled. Idempotent.
#[wasm_bindgen]
pub fn client_free(client: u32) {
    if let Some(found) = boundary(|boundary| boundary.clients.remove(&client)) {
        found.close_now();
    }
    end_requests(client);
}

fn unary() -> Arc<dyn Sink> {
    thread_local!(static UNARY: Arc<dyn Sink> = Arc::new(Unary));
    UNARY.with(Arc::clone)
}

fn find(client: u32) -> Result<Client, Status> {
    let found = boundary(|boundary| boundary.clients.get(&client).cloned());
    found.ok_or_else(|| Status::from_reason(Reason::CLIENT_CLOSED, "the client is closed"))
}

fn on_stream<F>(stream: u32, slot: u32, operation: impl FnOnce(Rc<Stream>) -> F)
where
    F: Future<Output = Result<Value, Status>> + 'static,
{
    match boundary(|boundary| boundary.streams.get(&stream).cloned()) {
        Some(stream) => run(slot, operation(stream)),
        None => complete(slot, Err(Status::from_reason(Reason::STREAM_MISUSE, "the stream is closed"))),
    }
}

fn client_and_options(
    client: u32,
    timeout_ms: f64,
    how: u32,
    metadata: Option<Vec<u8>>,
    key: Option<Vec<u8>>,
) -> Result<(Client, CallOptions), Status> {
    let client = find(client)?;
    let priority = match how & 3 {
        0 => Priority::Critical,
        1 => Priority::Normal,
        _ => Priority::Bulk,
    };
    let mut options = CallOptions::new().with_priority(priority).with_idempotent(how & 4 != 0);
    if let Some(metadata) = metadata {
        options = options.with_metadata(pack::metadata(metadata)?);
    }
    if let Some(key) = key {
        options = options.with_idempotency_key(key);
    }
    options.timeout = milliseconds(timeout_ms).map(|ms| match ms {
        u64::MAX => Duration::MAX,
        ms => Duration::from_millis(ms),
    });
    Ok((client, options))
}

/// NaN stands for "not given", infinity for "no limit"; a fraction is rounded up.
fn milliseconds(value: f64) -> Option<u64> {
    (!value.is_nan()).then(|| value.ceil() as u64)
}
