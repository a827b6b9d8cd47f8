//! The client: one endpoint, one connection that is made when needed and made again when lost, and the calls on it.

use std::{
    collections::HashMap,
    future::Future,
    io,
    ops::RangeInclusive,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use valkyrie_protocol::{Limits, Opened, Reason, Status, StreamKey, Time};

use crate::{
    BoxFuture, CallOptions, ConnectionInfo, Connector, DEFAULT_CONNECT_TIMEOUT_MS, DEFAULT_METHOD,
    DEFAULT_TIMEOUT_MS, Endpoint, Interceptor, Level, Log, Peer, RecvStream, Response, Runtime, Security,
    SendStream, Token, TokenSource, ValkyrieClient,
    connection::{Guest, Link, Side, Terms, cancelled, lock, status_in},
    credentials::Credentials,
    flight::Flight,
    lead::{self, Lead},
    log::{Logger, of_connection},
    runtime::{race, sleep_until},
    stream::halves,
};

#[cfg(feature = "tls")]
use crate::{
    Pem,
    tls::{ClientTls, Identity},
    transport::tls::Sealed,
};

/// How long [`Client::close`] lets calls in flight go on.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Describes a client; [`ClientBuilder::build`] makes it.
#[must_use = "a builder does nothing until it is built"]
#[derive(Default)]
pub struct ClientBuilder {
    endpoint: Option<String>,
    timeout_ms: Option<u64>,
    connect_timeout_ms: Option<u64>,
    terms: Terms,
    lazy: bool,
    #[cfg(feature = "tls")]
    tls: ClientTls,
    min_security: Option<Security>,
    tokens: Option<Arc<dyn TokenSource>>,
    interceptors: Vec<Arc<dyn Interceptor>>,
    runtime: Option<Arc<dyn Runtime>>,
    connectors: HashMap<String, Arc<dyn Connector>>,
}

impl ClientBuilder {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Where to connect: `tcp://host:port`, `tls://host:port`, `quic://host:port`, `ws://host:port/path`, `wss://host:port/path`,
    /// `unix:///path`, `memory:name`. Required.
    pub fn endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.endpoint = Some(endpoint.into());
        self
    }

    /// Time limit of unary calls that give none, in milliseconds. Default 5,000.
    pub fn timeout_ms(mut self, timeout_ms: u64) -> Self {
        self.timeout_ms = Some(timeout_ms);
        self
    }

    /// Time limit of making a connection, in milliseconds. Default 5,000.
    pub fn connect_timeout_ms(mut self, timeout_ms: u64) -> Self {
        self.connect_timeout_ms = Some(timeout_ms);
        self
    }

    /// What the client is ready to receive. Default [`Limits::default`].
    pub fn limits(mut self, limits: Limits) -> Self {
        self.terms.limits = limits;
        self
    }

    /// The certificates to trust: a server's chain must end in one of them. Default: none.
    #[cfg(feature = "tls")]
    pub fn trusted_certificates(mut self, pem: impl Into<Pem>) -> Self {
        self.tls.trusted = Some(pem.into());
        self
    }

    /// Whether to trust the authorities that the system trusts, beside those that are given. Default false.
    #[cfg(feature = "tls")]
    pub fn system_roots(mut self, trusted: bool) -> Self {
        self.tls.system_roots = trusted;
        self
    }

    /// The revocation lists (CRL) of the authorities, in PEM. A server's certificate that one of them names is refused.
    /// Default: none.
    #[cfg(feature = "tls")]
    pub fn revocation_lists(mut self, pem: impl Into<Pem>) -> Self {
        self.tls.revoked = Some(pem.into());
        self
    }

    /// The certificate chain that the client shows to a server which asks, its own first, and the private key. Default:
    /// none.
    #[cfg(feature = "tls")]
    pub fn identity(mut self, certificates: impl Into<Pem>, key: impl Into<Pem>) -> Self {
        self.tls.identity = Some(Identity { certificates: certificates.into(), key: key.into() });
        self
    }

    /// The name that the server's certificate must be for. Default: the endpoint's host.
    #[cfg(feature = "tls")]
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.tls.name = Some(name.into());
        self
    }

    /// Whether to speak TLS 1.3 with the server inside of whatever carries the bytes, so that nobody between the two can read
    /// or change them: not a proxy that ends the TLS outside either. Trust, identity and name count for it, and for the TLS
    /// outside, if there is one. Over `quic://` all calls share one stream then. Default false.
    #[cfg(feature = "tls")]
    pub fn sealed(mut self, sealed: bool) -> Self {
        self.tls.sealed = sealed;
        self
    }

    /// The least protection that connections must have. Default: [`Security::Mtls`] with an identity, [`Security::Tls`] with
    /// certificates to trust, else [`Security::Insecure`].
    pub fn min_security(mut self, least: Security) -> Self {
        self.min_security = Some(least);
        self
    }

    /// The token that says whom the client calls for, the same on each connection. It goes out ahead of the first calls, which
    /// do not wait for the server's word on it. Default: none.
    pub fn token(self, token: impl Into<String>) -> Self {
        self.token_source(Arc::new(Token::new(token)))
    }

    /// Where the client gets its tokens: for each new connection, and for a newer one before the last one ends, while streams
    /// go on. Default: none.
    pub fn token_source(mut self, source: Arc<dyn TokenSource>) -> Self {
        self.tokens = Some(source);
        self
    }

    /// Asks before each attempt of a call, behind those that were added before. Default: nobody.
    pub fn interceptor(mut self, interceptor: Arc<dyn Interceptor>) -> Self {
        self.interceptors.push(interceptor);
        self
    }

    /// How long the task of a connection looks for an answer before it sleeps, in microseconds: 0, never, by default. 10 to
    /// 50 save the time of falling asleep and waking up where a call takes less than that. The thread does nothing else
    /// meanwhile; spins in vain make spins rare. Over tcp and unix.
    pub fn spin_us(mut self, spin_us: u64) -> Self {
        self.terms.spin = Duration::from_micros(spin_us);
        self
    }

    /// The protocol versions to offer: 1 to 1, all that there are, by default. Another range is for trying what peers of
    /// other versions will do; whatever is agreed on, it behaves as version 1.
    #[doc(hidden)]
    pub fn versions(mut self, versions: RangeInclusive<u8>) -> Self {
        self.terms.versions = versions;
        self
    }

    /// Takes what happens to the client's connections, for a host to log. Default: nobody, which costs nothing.
    pub fn log(mut self, log: Arc<dyn Log>) -> Self {
        self.terms.log = Logger(Some(log));
        self
    }

    /// Whether [`ClientBuilder::build`] leaves the first connection to the first call. Default false.
    pub fn lazy(mut self, lazy: bool) -> Self {
        self.lazy = lazy;
        self
    }

    /// What runs the connection. Default: the tokio runtime that is current at build.
    pub fn runtime(mut self, runtime: Arc<dyn Runtime>) -> Self {
        self.runtime = Some(runtime);
        self
    }

    /// Registers a transport by scheme, ahead of the built-in ones.
    pub fn connector(mut self, scheme: impl Into<String>, connector: Arc<dyn Connector>) -> Self {
        self.connectors.insert(scheme.into(), connector);
        self
    }

    /// Makes the client and, unless lazy, its first connection.
    ///
    /// # Errors
    /// INVALID_ENDPOINT, UNSUPPORTED_SCHEME or INVALID_CONFIGURATION for what is written wrong; INSECURE_CREDENTIALS for a
    /// token that would travel unencrypted beyond this machine; CONNECT_FAILED, CONNECT_TIMEOUT or NAME_RESOLUTION when nobody
    /// answers; CREDENTIALS_UNAVAILABLE when the source of tokens fails.
    pub async fn build(self) -> Result<Client, Status> {
        let lazy = self.lazy;
        let client = self.connect_lazily()?;
        if !lazy {
            client.ready().await?;
        }
        Ok(client)
    }

    /// Makes the client without a connection: the first call, or [`Client::ready`], makes it.
    ///
    /// # Errors
    /// As [`ClientBuilder::build`] for what is written wrong.
    pub fn connect_lazily(mut self) -> Result<Client, Status> {
        let invalid = |message: &'static str| Status::from_reason(Reason::INVALID_CONFIGURATION, message);
        let endpoint = self
            .endpoint
            .take()
            .ok_or_else(|| invalid("no endpoint; call .endpoint(\"tcp://host:port\")"))?;
        let endpoint = Endpoint::parse(&endpoint)?;
        if self.timeout_ms == Some(0) || self.connect_timeout_ms == Some(0) {
            return Err(invalid("a timeout of 0 ms lets no call succeed; leave it out for the default"));
        }
        let connector = self.make_connector(&endpoint)?;
        self.check_security(&endpoint)?;
        let runtime = match self.runtime {
            Some(runtime) => runtime,
            None => default_runtime()?,
        };
        let connect_timeout =
            Duration::from_millis(self.connect_timeout_ms.unwrap_or(DEFAULT_CONNECT_TIMEOUT_MS));
        #[cfg(feature = "tls")]
        let sealed = self.tls.sealed;
        #[cfg(not(feature = "tls"))]
        let sealed = false;
        let credentials = match self.tokens {
            Some(source) => Some(Credentials::new(
                source,
                &endpoint,
                sealed,
                runtime.clone(),
                connect_timeout,
                self.terms.log.clone(),
            )?),
            None => None,
        };
        Ok(Client(Arc::new(Inner {
            endpoint,
            timeout: Duration::from_millis(self.timeout_ms.unwrap_or(DEFAULT_TIMEOUT_MS)),
            connect_timeout,
            credentials,
            interceptors: self.interceptors,
            terms: self.terms,
            connector,
            runtime,
            state: Mutex::new(State::Idle),
        })))
    }
}

impl ClientBuilder {
    fn check_security(&self, endpoint: &Endpoint) -> Result<(), Status> {
        let encrypted = matches!(endpoint.scheme(), "tls" | "wss" | "quic");
        #[cfg(feature = "tls")]
        let (encrypted, trusts, shows) = (
            encrypted || self.tls.sealed,
            self.tls.sealed || self.tls.trusted.is_some() || self.tls.system_roots,
            self.tls.identity.is_some(),
        );
        #[cfg(not(feature = "tls"))]
        let (trusts, shows) = (false, false);
        let level = |encrypted, shows| match (encrypted, shows) {
            (false, _) => Security::Insecure,
            (true, false) => Security::Tls,
            (true, true) => Security::Mtls,
        };
        let reached = level(encrypted, shows);
        let least = self.min_security.unwrap_or(level(trusts || shows, shows));
        if reached >= least {
            return Ok(());
        }
        Err(Status::from_reason(
            Reason::SECURITY_TOO_LOW,
            match reached {
                Security::Insecure => format!(
                    "{endpoint} is not encrypted, and the client asks for {least:?}: use tls://, wss://, quic:// or a sealed session"
                ),
                _ => format!(
                    "{endpoint} would not learn who the client is, and the client asks for {least:?}: give an identity, its certificates and key"
                ),
            },
        ))
    }

    fn make_connector(&mut self, endpoint: &Endpoint) -> Result<Arc<dyn Connector>, Status> {
        let connector = match self.connectors.remove(endpoint.scheme()) {
            Some(connector) => connector,
            None => crate::transport::connector(
                endpoint,
                #[cfg(feature = "tls")]
                &self.tls,
                &self.terms.limits,
            )?,
        };
        #[cfg(feature = "tls")]
        if self.tls.sealed {
            let security = self.tls.build(endpoint)?;
            return Ok(Arc::new(Sealed { carrier: connector, security }));
        }
        Ok(connector)
    }
}

#[cfg(feature = "native")]
fn default_runtime() -> Result<Arc<dyn Runtime>, Status> {
    match crate::TokioRuntime::current() {
        Some(runtime) => Ok(Arc::new(runtime)),
        None => Err(Status::from_reason(
            Reason::INVALID_CONFIGURATION,
            "no tokio runtime is current; build inside one or give .runtime(…)",
        )),
    }
}

#[cfg(not(feature = "native"))]
fn default_runtime() -> Result<Arc<dyn Runtime>, Status> {
    Err(Status::from_reason(Reason::INVALID_CONFIGURATION, "no runtime; give one with .runtime(…)"))
}

/// Makes calls to one endpoint. Cheap to clone; clones share the connection. When the last clone is dropped, calls in
/// flight end with CANCELLED.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    endpoint: Endpoint,
    timeout: Duration,
    connect_timeout: Duration,
    credentials: Option<Arc<Credentials>>,
    interceptors: Vec<Arc<dyn Interceptor>>,
    terms: Terms,
    connector: Arc<dyn Connector>,
    runtime: Arc<dyn Runtime>,
    state: Mutex<State>,
}

enum State {
    Idle,
    /// Every call that needs the connection waits for it.
    Dialing(Arc<Flight<Arc<Link>>>),
    Ready(Arc<Link>),
    Closed(Option<Arc<Link>>),
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let State::Ready(link) = &*lock(&self.state) {
            link.abort(Status::from_reason(Reason::CLIENT_CLOSED, "the client was dropped"));
        }
    }
}

/// Takes the result of a call that was begun with [`Client::submit`].
pub trait Sink: Send + Sync {
    /// Called exactly once per accepted call, from whichever thread has the result. Must not block.
    fn complete(&self, token: u64, result: Result<Response, Status>);
}

/// A call begun with [`Client::submit`]. Dropping it does nothing.
#[derive(Clone)]
pub struct Submission(Arc<Mutex<Stage>>);

enum Stage {
    /// Waits for a connection.
    Waiting,
    Cancelled,
    Open(Arc<Link>, StreamKey),
    Over,
}

impl Submission {
    /// Gives the call up: it completes with CANCELLED unless it is complete. Idempotent.
    pub fn cancel(&self) {
        let mut stage = lock(&self.0);
        match std::mem::replace(&mut *stage, Stage::Over) {
            Stage::Waiting | Stage::Cancelled => *stage = Stage::Cancelled,
            Stage::Open(link, key) => {
                drop(stage);
                link.cancel_unary(key);
            }
            Stage::Over => {}
        }
    }
}

impl Client {
    /// Begins to describe a client.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::new()
    }

    /// Connects with every default.
    ///
    /// # Errors
    /// As [`ClientBuilder::build`].
    pub async fn connect(endpoint: &str) -> Result<Client, Status> {
        Self::builder().endpoint(endpoint).build().await
    }

    /// Where the client connects.
    pub fn endpoint(&self) -> &Endpoint {
        &self.0.endpoint
    }

    /// Waits until there is a connection, making one if there is none.
    ///
    /// # Errors
    /// Why none could be made; CLIENT_CLOSED after close.
    pub async fn ready(&self) -> Result<(), Status> {
        self.link().await.map(drop)
    }

    /// Sends a message to the default method, `/echo`, and gives the answer.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn request(&self, message: impl Into<Bytes>) -> Result<Bytes, Status> {
        Ok(self.call(DEFAULT_METHOD, message).await?.message)
    }

    /// One message out, one message back, within the client's time limit (5,000 ms unless built otherwise).
    ///
    /// # Errors
    /// Whatever status the server gave, or the library's: DEADLINE_EXCEEDED, UNAVAILABLE, INVALID_ARGUMENT …
    ///
    /// # Cancel safety
    /// Dropping the future cancels the call, and the server's handler with it.
    pub async fn call(&self, method: &str, message: impl Into<Bytes>) -> Result<Response, Status> {
        self.call_with(method, message, CallOptions::new()).await
    }

    /// As [`Client::call`], with options.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn call_with(
        &self,
        method: &str,
        message: impl Into<Bytes>,
        mut options: CallOptions,
    ) -> Result<Response, Status> {
        self.intercept(method, &mut options)?;
        let deadline = self.deadline(options.timeout.or(Some(self.0.timeout)));
        let link = self.link_before(deadline).await?;
        let call = opened(method, options, deadline, Some(message.into()), true);
        let answer = Arc::new(Answer::default());
        let key = link.unary(call, 0, answer.clone())?;
        Pending { link, key, answer, over: false }.await
    }

    /// Opens a stream of any shape. Without a timeout in `options` it has none.
    ///
    /// # Errors
    /// As [`Client::call`]; what the server says arrives at the receiving half.
    pub async fn open(
        &self,
        method: &str,
        mut options: CallOptions,
    ) -> Result<(SendStream, RecvStream), Status> {
        self.intercept(method, &mut options)?;
        let deadline = self.deadline(options.timeout);
        let link = self.link_before(deadline).await?;
        let stream = link.stream(opened(method, options, deadline, None, false))?;
        Ok(halves(stream, false))
    }

    /// Server streaming: sends one message, half-closes and gives the receiving half.
    ///
    /// # Errors
    /// As [`Client::open`].
    pub async fn stream(
        &self,
        method: &str,
        message: impl Into<Bytes>,
        mut options: CallOptions,
    ) -> Result<RecvStream, Status> {
        self.intercept(method, &mut options)?;
        let deadline = self.deadline(options.timeout);
        let link = self.link_before(deadline).await?;
        let stream = link.stream(opened(method, options, deadline, Some(message.into()), true))?;
        Ok(halves(stream, true).1)
    }

    /// Begins a unary call without a future: `sink` gets the result with `token`, exactly once, perhaps before this
    /// returns. For language bindings; no task is spawned while the connection stands.
    pub fn submit(
        &self,
        method: &str,
        message: Bytes,
        mut options: CallOptions,
        token: u64,
        sink: Arc<dyn Sink>,
    ) -> Submission {
        if let Err(status) = self.intercept(method, &mut options) {
            let submission = Submission(Arc::new(Mutex::new(Stage::Waiting)));
            submission.refuse(status, token, &*sink);
            return submission;
        }
        let deadline = self.deadline(options.timeout.or(Some(self.0.timeout)));
        let call = opened(method, options, deadline, Some(message), true);
        let submission = Submission(Arc::new(Mutex::new(Stage::Waiting)));
        let ready = match &*lock(&self.0.state) {
            State::Ready(link) if link.is_usable() => Some(link.clone()),
            _ => None,
        };
        match ready {
            Some(link) => submission.begin(&link, call, token, sink),
            None => {
                let (client, submission) = (self.clone(), submission.clone());
                self.0.runtime.spawn(Box::pin(async move {
                    match client.link_before(deadline).await {
                        Ok(link) => submission.begin(&link, call, token, sink),
                        Err(status) => submission.refuse(status, token, &*sink),
                    }
                }));
            }
        }
        submission
    }

    /// Ends gracefully: calls in flight may finish within 5 s, then the connection closes. Later calls fail with
    /// CLIENT_CLOSED. Idempotent.
    pub async fn close(&self) {
        let link = match std::mem::replace(&mut *lock(&self.0.state), State::Closed(None)) {
            State::Ready(link) | State::Closed(Some(link)) => link,
            _ => return,
        };
        // Kept, so that a second close waits as well.
        *lock(&self.0.state) = State::Closed(Some(link.clone()));
        link.close(self.0.runtime.now().after(CLOSE_TIMEOUT), "the client is closing");
        link.closed().await;
    }

    /// Ends at once: calls in flight end with CANCELLED. Idempotent.
    pub fn close_now(&self) {
        let before = std::mem::replace(&mut *lock(&self.0.state), State::Closed(None));
        if let State::Ready(link) | State::Closed(Some(link)) = before {
            link.abort(closed());
        }
    }

    /// Lets the calling thread drive the connection, which it would otherwise only wait for.
    ///
    /// `detached` is told of the socket when it leaves the runtime's poller; what it gives is kept until the socket is
    /// back there or closed.
    ///
    /// # Errors
    /// How long it is no use to ask again, when it is better to wait: without a connection over tcp or unix, where such
    /// waits do not come one soon after the other, and where others drive.
    pub fn lead(&self, detached: impl FnOnce(i32) -> Box<dyn Send>) -> Result<Lead, Duration> {
        let link = match &*lock(&self.0.state) {
            State::Ready(link) => link.clone(),
            _ => return Err(Duration::ZERO),
        };
        Lead::take(link, detached)
    }

    /// The client's connections: none or one.
    pub fn connections(&self) -> Vec<ConnectionInfo> {
        match &*lock(&self.0.state) {
            State::Ready(link) => vec![link.info()],
            _ => Vec::new(),
        }
    }

    fn intercept(&self, method: &str, options: &mut CallOptions) -> Result<(), Status> {
        self.0.interceptors.iter().try_for_each(|interceptor| interceptor.before(method, options))
    }

    fn deadline(&self, timeout: Option<Duration>) -> Option<Time> {
        timeout.filter(|timeout| *timeout != Duration::MAX).map(|timeout| self.0.runtime.now().after(timeout))
    }

    async fn link_before(&self, deadline: Option<Time>) -> Result<Arc<Link>, Status> {
        if let State::Ready(link) = &*lock(&self.0.state)
            && link.is_usable()
        {
            return Ok(link.clone());
        }
        let Some(deadline) = deadline else { return self.link().await };
        let passed = || {
            Status::from_reason(
                Reason::DEADLINE_EXCEEDED,
                "the deadline passed before there was a connection",
            )
        };
        if deadline <= self.0.runtime.now() {
            return Err(passed());
        }
        race(self.link(), sleep_until(&*self.0.runtime, deadline)).await.unwrap_or_else(|| Err(passed()))
    }

    /// The connection, dialled when there is none that takes calls. Every caller joins the same attempt.
    async fn link(&self) -> Result<Arc<Link>, Status> {
        let (dial, attempt) = {
            let mut state = lock(&self.0.state);
            match &*state {
                State::Closed(_) => return Err(closed()),
                State::Ready(link) if link.is_usable() => return Ok(link.clone()),
                State::Dialing(dial) => (dial.clone(), None),
                State::Ready(_) | State::Idle => {
                    let dial = Arc::<Flight<Arc<Link>>>::default();
                    *state = State::Dialing(dial.clone());
                    (dial.clone(), Some(Attempt { inner: self.0.clone(), dial }))
                }
            }
        };
        if let Some(attempt) = attempt {
            // With nothing locked: a runtime that has ended drops the task here.
            self.0.runtime.spawn(Box::pin(attempt.run()));
        }
        dial.wait().await
    }
}

fn closed() -> Status {
    Status::from_reason(Reason::CLIENT_CLOSED, "the client is closed")
}

fn opened(
    method: &str,
    options: CallOptions,
    deadline: Option<Time>,
    message: Option<Bytes>,
    end: bool,
) -> Opened {
    Opened {
        method: match method {
            DEFAULT_METHOD => Bytes::from_static(DEFAULT_METHOD.as_bytes()),
            method => Bytes::copy_from_slice(method.as_bytes()),
        },
        metadata: options.metadata,
        priority: options.priority,
        deadline,
        message,
        end,
    }
}

/// A dial in progress. Dropped with its runtime, it tells everybody who waits.
struct Attempt {
    inner: Arc<Inner>,
    dial: Arc<Flight<Arc<Link>>>,
}

impl Attempt {
    async fn run(self) {
        let inner = &self.inner;
        let result = match &inner.credentials {
            None => self.connect(None).await,
            Some(credentials) => match credentials.token().await {
                Ok(token) => self.connect(Some(token)).await,
                Err(status) => Err(status),
            },
        };
        self.log(&result);
        self.settle(result);
    }

    async fn connect(&self, token: Option<Token>) -> Result<Arc<Link>, Status> {
        let inner = &self.inner;
        let deadline = inner.runtime.now().after(inner.connect_timeout);
        let connecting = inner.connector.connect(&inner.endpoint);
        match race(connecting, sleep_until(&*inner.runtime, deadline)).await {
            Some(Ok(transport)) => {
                let peer = Peer::new(inner.endpoint.to_string());
                let provisional = transport.is_provisional();
                let (guest, side) = (Guest::new(transport, peer), Side::Client(token));
                let (link, driver) = Link::new(guest, &inner.terms, inner.runtime.clone(), side);
                inner.runtime.spawn(Box::pin(lead::seat(driver)));
                let greeted = match provisional {
                    true => race(link.greeted(), sleep_until(&*inner.runtime, deadline)).await,
                    false => Some(Ok(())),
                };
                let greeted = greeted.unwrap_or_else(|| Err(self.too_late()));
                if let Err(status) = &greeted {
                    link.abort(status.clone());
                } else if let Some(credentials) = &inner.credentials {
                    inner.runtime.spawn(Box::pin(credentials.clone().keep_fresh(link.clone())));
                }
                greeted.map(|()| link)
            }
            Some(Err(error)) => Err(connect_failed(&inner.endpoint, &error)),
            None => Err(self.too_late()),
        }
    }

    fn too_late(&self) -> Status {
        let Inner { endpoint, connect_timeout, .. } = &*self.inner;
        let message = format!("no connection to {endpoint} within {} ms", connect_timeout.as_millis());
        Status::from_reason(Reason::CONNECT_TIMEOUT, message)
    }

    fn log(&self, result: &Result<Arc<Link>, Status>) {
        let level = if result.is_ok() { Level::Info } else { Level::Warn };
        let Some(log) = self.inner.terms.log.wants(level) else { return };
        let endpoint = &self.inner.endpoint.to_string();
        log.log(match result {
            Ok(_) => of_connection(level, &["connected to ", endpoint], None, endpoint),
            Err(status) => of_connection(level, &[status.message()], Some(status.reason()), endpoint),
        });
    }

    fn settle(&self, mut result: Result<Arc<Link>, Status>) {
        {
            let mut state = lock(&self.inner.state);
            match &*state {
                State::Dialing(dial) if Arc::ptr_eq(dial, &self.dial) => {
                    *state = match &result {
                        Ok(link) => State::Ready(link.clone()),
                        Err(_) => State::Idle,
                    };
                }
                _ => {
                    if let Ok(link) = &result {
                        link.abort(closed());
                        result = Err(closed());
                    }
                }
            }
        }
        self.dial.resolve(result);
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if !self.dial.is_resolved() {
            self.settle(Err(Status::from_reason(
                Reason::CONNECT_FAILED,
                "the runtime stopped while connecting",
            )));
        }
    }
}

fn connect_failed(endpoint: &Endpoint, error: &io::Error) -> Status {
    if let Some(status) = status_in(error) {
        let message = format!("cannot connect to {endpoint}: {}", status.message());
        return Status::from_reason(status.reason(), message);
    }
    let reason = match error.kind() {
        io::ErrorKind::NotFound if endpoint.scheme() != "unix" => Reason::NAME_RESOLUTION,
        _ => Reason::CONNECT_FAILED,
    };
    Status::from_reason(reason, format!("cannot connect to {endpoint}: {error}"))
}

impl Submission {
    fn begin(&self, link: &Arc<Link>, call: Opened, token: u64, sink: Arc<dyn Sink>) {
        let mut stage = lock(&self.0);
        let refused = match &*stage {
            Stage::Cancelled => cancelled(),
            _ => match link.unary(call, token, sink.clone()) {
                Ok(key) => {
                    *stage = Stage::Open(link.clone(), key);
                    return;
                }
                Err(status) => status,
            },
        };
        *stage = Stage::Over;
        drop(stage);
        sink.complete(token, Err(refused));
    }

    fn refuse(&self, status: Status, token: u64, sink: &dyn Sink) {
        let before = std::mem::replace(&mut *lock(&self.0), Stage::Over);
        let status = if matches!(before, Stage::Cancelled) { cancelled() } else { status };
        sink.complete(token, Err(status));
    }
}

/// Where the result of a call that a future waits for arrives.
#[derive(Default)]
struct Answer(Mutex<AnswerState>);

#[derive(Default)]
struct AnswerState {
    result: Option<Result<Response, Status>>,
    waker: Option<Waker>,
}

impl Sink for Answer {
    fn complete(&self, _token: u64, result: Result<Response, Status>) {
        let waker = {
            let mut state = lock(&self.0);
            state.result = Some(result);
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// A unary call on its way. Dropping it cancels the call.
struct Pending {
    link: Arc<Link>,
    key: StreamKey,
    answer: Arc<Answer>,
    over: bool,
}

impl Future for Pending {
    type Output = Result<Response, Status>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let mut state = lock(&this.answer.0);
        match state.result.take() {
            Some(result) => {
                this.over = true;
                Poll::Ready(result)
            }
            None => {
                match &mut state.waker {
                    Some(waker) => waker.clone_from(cx.waker()),
                    none => *none = Some(cx.waker().clone()),
                }
                Poll::Pending
            }
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.over {
            self.link.cancel_unary(self.key);
        }
    }
}

impl ValkyrieClient for Client {
    fn call<'a>(
        &'a self,
        method: &'a str,
        message: Bytes,
        options: CallOptions,
    ) -> BoxFuture<'a, Result<Response, Status>> {
        Box::pin(self.call_with(method, message, options))
    }

    fn open<'a>(
        &'a self,
        method: &'a str,
        options: CallOptions,
    ) -> BoxFuture<'a, Result<(SendStream, RecvStream), Status>> {
        Box::pin(self.open(method, options))
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.close())
    }
}
