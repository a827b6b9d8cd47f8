//! The client: what it is built from, and the calls that it makes.

use std::{collections::HashMap, ops::RangeInclusive, sync::Arc, time::Duration};

use bytes::Bytes;
use valkyrie_protocol::{Limits, Opened, Reason, Status};

use crate::{
    BoxFuture, CallOptions, ConnectionInfo, Connectivity, Connector, DEFAULT_CONNECT_TIMEOUT_MS,
    DEFAULT_METHOD, DEFAULT_TIMEOUT_MS, Endpoint, Interceptor, Log, RecvStream, Response, Runtime, Security,
    SendStream, Token, TokenSource, ValkyrieClient,
    call::{Call, Keyed, Pending, Receiver, Request},
    connection::{Terms, unless_0},
    credentials::Credentials,
    lead::Lead,
    log::Logger,
    options::{IdempotencyKey, KEY, KEY_MOST},
    policy::ServiceConfig,
    pool::{Ask, BreakerInfo, Dialer, Listed, Plan, Pool},
    stream,
};

#[cfg(feature = "script")]
use crate::script;
#[cfg(feature = "observe")]
use crate::{
    ClientMetrics,
    observer::{Observer, Watch},
};
#[cfg(feature = "tls")]
use crate::{
    Pem,
    tls::{ClientTls, Identity},
};
#[cfg(feature = "native")]
use crate::{Resolver, resolve::Source};

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
    service_config: ServiceConfig,
    #[cfg(feature = "observe")]
    observer: Option<Arc<dyn Observer>>,
    runtime: Option<Arc<dyn Runtime>>,
    connectors: HashMap<String, Arc<dyn Connector>>,
    #[cfg(feature = "native")]
    resolvers: HashMap<String, Arc<dyn Resolver>>,
}

impl ClientBuilder {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Where to connect: `tcp://host:port`, `tls://host:port`, `quic://host:port`, `ws://host:port/path`, `wss://host:port/path`,
    /// `unix:///path`, `memory:name`; `dns+tcp://name:port`, `dns+tls://name:port`, `dns+quic://name:port`, `dns+ws://name:port/path` or
    /// `dns+wss://name:port/path` for a server at each address of the name, which is looked up every 30 s, and after 5 s when a
    /// connection failed; `file:///path` for the servers of a file, which is looked at every second. Several, with commas between them, are servers of one service, which share the calls as
    /// [`ClientBuilder::service_config`] says. Behind a `|` stand servers that are further away, of the next level: in
    /// `tcp://a:1,tcp://b:1|tcp://c:1` the last one gets calls only as far as the nearer ones have no room for them. Required.
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

    /// How calls are retried, held back and shared among servers. Default: as [`ServiceConfig`] says for each of its fields.
    pub fn service_config(mut self, config: ServiceConfig) -> Self {
        self.service_config = config;
        self
    }

    /// How long the task of a connection looks for an answer before it sleeps, in microseconds: 0, never, by default. 10 to
    /// 50 save the time of falling asleep and waking up where a call takes less than that. The thread does nothing else
    /// meanwhile; spins in vain make spins rare. Over tcp and unix.
    pub fn spin_us(mut self, spin_us: u64) -> Self {
        self.terms.spin = Duration::from_micros(spin_us);
        self
    }

    /// How long the server may be silent while calls are open until it is asked by PING whether it is there, in milliseconds:
    /// 30,000 by default, at least 10,000; 0 for never, nor ahead of calls. One that says nothing within
    /// [`ClientBuilder::keepalive_timeout_ms`] is gone: the connection ends with CONNECTION_LOST, and its calls are retried
    /// as their methods' policy says.
    ///
    /// A call that is made after 15 s of silence goes behind a PING, too, as what lies between may have dropped the connection.
    /// The answer has a quarter of the call's time then, 1 s at most, and at least 200 ms and four times what HELLO took. Source:
    /// PROTOCOL.md, W9-16 and W9-17; gRFC A8.
    pub fn keepalive_ms(mut self, time_ms: u64) -> Self {
        self.terms.keepalive.time = unless_0(time_ms);
        self
    }

    /// How long the answer to a keepalive's PING may take, in milliseconds; anything that is received is one. Default 10,000,
    /// at least 1,000. On Linux the system, too, gives a TCP connection up on which nothing was acknowledged for this and
    /// [`ClientBuilder::keepalive_ms`] together (`TCP_USER_TIMEOUT`). Source: gRFC A8, which has 20,000, and A18.
    pub fn keepalive_timeout_ms(mut self, timeout_ms: u64) -> Self {
        self.terms.keepalive.timeout = Duration::from_millis(timeout_ms);
        self
    }

    /// As [`ClientBuilder::keepalive_ms`] while no call is open, for networks that forget who is idle, in milliseconds: 0,
    /// never, by default; at least 300,000. Source: gRFC A8.
    pub fn keepalive_idle_ms(mut self, time_ms: u64) -> Self {
        self.terms.keepalive.idle = unless_0(time_ms);
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

    /// Who is told each step of each call as it happens: attempts, waits, retries and why there is none, connections, breakers. Default: nobody, which
    /// costs a call nothing but the question.
    #[cfg(feature = "observe")]
    pub fn observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observer = Some(observer);
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

    /// Registers what finds the servers of endpoints of a scheme, ahead of the built-in `dns+tcp` and its like and `file`. Endpoints
    /// that are resolved may stand beside others, in lists and in levels. Nothing is asked for before the client's first use.
    #[cfg(feature = "native")]
    pub fn resolver(mut self, scheme: impl Into<String>, resolver: Arc<dyn Resolver>) -> Self {
        self.resolvers.insert(scheme.into(), resolver);
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
    #[cfg_attr(not(feature = "script"), expect(unused_mut, reason = "a script brings its own runtime"))]
    pub fn connect_lazily(mut self) -> Result<Client, Status> {
        let invalid = |message: &'static str| Status::from_reason(Reason::INVALID_CONFIGURATION, message);
        let Some(endpoint) = &self.endpoint else {
            return Err(invalid("no endpoint; call .endpoint(\"tcp://host:port\")"));
        };
        let endpoints = Endpoint::parse_all(endpoint)?;
        if self.timeout_ms == Some(0) || self.connect_timeout_ms == Some(0) {
            return Err(invalid("a timeout of 0 ms lets no call succeed; leave it out for the default"));
        }
        #[cfg(feature = "script")]
        let script = match endpoints.iter().any(|(endpoint, _)| endpoint.scheme() == script::SCHEME) {
            true => Some(self.scripted(&endpoints)?),
            false => None,
        };
        self.terms.check_keepalive()?;
        let runtime = match self.runtime {
            Some(runtime) => runtime,
            None => default_runtime()?,
        };
        let timeout = Duration::from_millis(self.connect_timeout_ms.unwrap_or(DEFAULT_CONNECT_TIMEOUT_MS));
        let log = self.terms.log.clone();
        let credentials = self.tokens.map(|source| Credentials::new(source, runtime.clone(), timeout, log));
        #[cfg(feature = "tls")]
        let tls = ClientTls { log: self.terms.log.clone(), ..self.tls };
        let dialer = Dialer {
            runtime,
            terms: self.terms,
            timeout,
            credentials,
            min_security: self.min_security,
            connectors: self.connectors,
            #[cfg(feature = "observe")]
            watch: Watch::new(
                self.observer,
                #[cfg(feature = "script")]
                script,
            ),
            #[cfg(feature = "tls")]
            tls,
        };
        let mut servers = Vec::with_capacity(endpoints.len());
        #[cfg(feature = "native")]
        let mut sources = Vec::new();
        for (endpoint, level) in &endpoints {
            #[cfg(feature = "native")]
            if let Some(source) =
                Source::of(endpoint, servers.len() + sources.len(), &self.resolvers, &dialer)?
            {
                sources.push(source);
                continue;
            }
            servers.push(Listed { backend: dialer.backend(endpoint.clone())?, weight: 1, level: *level });
        }
        // Told after what is wrong with the endpoints themselves.
        servers.iter().try_for_each(|listed| dialer.admits(&listed.backend.endpoint))?;
        let pool = Pool::new(dialer, servers, self.service_config);
        #[cfg(feature = "native")]
        let pool = pool.with_sources(endpoints.iter().map(|(_, level)| *level), sources);
        let [(endpoint, _), ..] = &endpoints[..] else { return Err(invalid("no endpoint")) };
        Ok(Client(Arc::new(Inner {
            endpoint: endpoint.clone(),
            timeout: Duration::from_millis(self.timeout_ms.unwrap_or(DEFAULT_TIMEOUT_MS)),
            interceptors: self.interceptors,
            pool: Arc::new(pool),
        })))
    }
}

impl ClientBuilder {
    #[cfg(feature = "script")]
    fn scripted(&mut self, endpoints: &[(Endpoint, u8)]) -> Result<Arc<script::Script>, Status> {
        let script = Arc::new(script::Script::new(endpoints)?);
        self.runtime = Some(script.clone());
        self.connectors.insert(script::SCHEME.to_owned(), script.clone());
        Ok(script)
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

/// Makes calls to one service. Cheap to clone; clones share the connections. When the last clone is dropped, calls in
/// flight end with CANCELLED.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    endpoint: Endpoint,
    timeout: Duration,
    interceptors: Vec<Arc<dyn Interceptor>>,
    pool: Arc<Pool>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        #[cfg(feature = "script")]
        if let Some(script) = self.pool.script() {
            script.over();
        }
        for link in self.pool.close() {
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
pub struct Submission(Option<Arc<Call>>);

impl Submission {
    /// Gives the call up: it completes with CANCELLED unless it is complete. Idempotent.
    pub fn cancel(&self) {
        if let Some(call) = &self.0 {
            call.cancel();
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

    /// Where the client connects: the first of several.
    pub fn endpoint(&self) -> &Endpoint {
        &self.0.endpoint
    }

    /// Waits until there is a connection, making one if there is none.
    ///
    /// # Errors
    /// Why none could be made; CLIENT_CLOSED after close.
    pub async fn ready(&self) -> Result<(), Status> {
        // Time stands still there but while a call is open.
        #[cfg(feature = "script")]
        if self.0.pool.script().is_some() {
            return Ok(());
        }
        self.0.pool.link(Ask::new(true)).await.map(drop).map_err(|unpicked| unpicked.status)
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
        if let Some(answer) = self.answer(method) {
            return answer;
        }
        self.intercept(method, &mut options)?;
        let key = self.key(&mut options)?;
        Pending::new(self.begin(method, message.into(), options, key, Receiver::Future(None))).await
    }

    fn begin(
        &self,
        method: &str,
        message: Bytes,
        options: CallOptions,
        key: Keyed,
        receiver: Receiver,
    ) -> Arc<Call> {
        let CallOptions { timeout, metadata, priority, idempotent, .. } = options;
        let pool = &self.0.pool;
        let (now, default_timeout) = (pool.runtime().now(), self.0.timeout);
        let idempotent = idempotent || !matches!(key, Keyed::No);
        let plan = Plan { method, idempotent, timeout, default_timeout, now, unary: true };
        Call::begin(pool, plan, Request { metadata, priority, message, key }, receiver)
    }

    /// Opens a stream of any shape. Without a timeout in `options` it has none. One that could not be opened where it was to be
    /// goes elsewhere, as the service config says; once it is open it has one attempt.
    ///
    /// # Errors
    /// As [`Client::call`]; what the server says arrives at the receiving half.
    pub async fn open(&self, method: &str, options: CallOptions) -> Result<(SendStream, RecvStream), Status> {
        self.begin_stream(method, None, options).await
    }

    /// Server streaming: sends one message, half-closes and gives the receiving half. Until something of the answer was read the
    /// call is tried again as a unary one is, by whoever reads.
    ///
    /// # Errors
    /// As [`Client::open`].
    pub async fn stream(
        &self,
        method: &str,
        message: impl Into<Bytes>,
        options: CallOptions,
    ) -> Result<RecvStream, Status> {
        Ok(self.begin_stream(method, Some(message.into()), options).await?.1)
    }

    async fn begin_stream(
        &self,
        method: &str,
        message: Option<Bytes>,
        mut options: CallOptions,
    ) -> Result<(SendStream, RecvStream), Status> {
        self.intercept(method, &mut options)?;
        no_key(&options)?;
        let CallOptions { timeout, metadata, priority, idempotent, .. } = options;
        let pool = &self.0.pool;
        let (now, default_timeout) = (pool.runtime().now(), Duration::MAX);
        let end = message.is_some();
        let plan = Plan { method, idempotent, timeout, default_timeout, now, unary: false };
        // The pool has the method's name and the deadline.
        let call = Opened { method: Bytes::new(), metadata, priority, deadline: None, message, end };
        stream::open(pool, plan, call).await
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
        if let Some(answer) = self.answer(method) {
            sink.complete(token, answer);
            return Submission(None);
        }
        match self.intercept(method, &mut options).and_then(|()| self.key(&mut options)) {
            Ok(key) => {
                Submission(Some(self.begin(method, message, options, key, Receiver::Sink(token, sink))))
            }
            Err(status) => {
                sink.complete(token, Err(status));
                Submission(None)
            }
        }
    }

    /// Ends gracefully: calls in flight may finish within 5 s, then the connection closes. Later calls fail with
    /// CLIENT_CLOSED. Idempotent.
    pub async fn close(&self) {
        let links = self.0.pool.close();
        for link in &links {
            link.close(self.0.pool.runtime().now().after(CLOSE_TIMEOUT), "the client is closing");
        }
        for link in &links {
            link.closed().await;
        }
    }

    /// Ends at once: calls in flight end with CANCELLED. Idempotent.
    pub fn close_now(&self) {
        for link in self.0.pool.close() {
            link.abort(Status::from_reason(Reason::CLIENT_CLOSED, "the client is closed"));
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
        Lead::take(self.0.pool.only_link().ok_or(Duration::ZERO)?, detached)
    }

    /// Puts another service config in the place of the one that the client has, without a lost call. Calls that began keep their
    /// time limit and how they are tried again or hedged; the servers' breakers, the throttle, the retry budget, the balance, the outliers
    /// and the waits between dials are the client's, and heed the new one at once, for those calls too.
    ///
    /// What is known of the servers stays where it still means something: an open breaker is open until its time is over, unless
    /// breakers are switched off; spent tokens stay spent; a window begins anew only where its length is another one.
    pub fn set_service_config(&self, config: ServiceConfig) {
        self.0.pool.set_config(config);
    }

    /// The breakers: one for each server and method that was called or isolated, and one for each server that is isolated as a whole.
    pub fn breakers(&self) -> Vec<BreakerInfo> {
        self.0.pool.breakers()
    }

    /// Waits until a breaker has another state than in `seen`, and gives all of them. Steps that followed each other at once may be
    /// passed over.
    ///
    /// # Errors
    /// CLIENT_CLOSED once the client is closed.
    ///
    /// # Cancel safety
    /// Nothing is lost by dropping the future.
    pub async fn breakers_other_than(&self, seen: &[BreakerInfo]) -> Result<Vec<BreakerInfo>, Status> {
        self.0.pool.breakers_other_than(seen).await
    }

    /// Holds the calls of a method back from a server by hand, or with `None` all calls, until [`Client::restore`]: those that go on
    /// end, further ones go to the other servers, and fail with BREAKER_OPEN where there is none. Connections stay. Idempotent.
    /// The server is named as [`BreakerInfo::server`] does. One that leaves the set of its resolver may be forgotten, with this.
    /// Source: the manual control of Polly's circuit breaker.
    ///
    /// # Errors
    /// INVALID_ENDPOINT for what is no endpoint; INVALID_ARGUMENT for one that is none of the client's servers, and for a method
    /// beyond the 1,024 that have a breaker.
    pub fn isolate(&self, server: &str, method: Option<&str>) -> Result<(), Status> {
        self.0.pool.set_isolated(server, method, true)
    }

    /// Ends [`Client::isolate`]: the breaker is closed, with nothing remembered. With `None` for the server and each of its methods.
    /// Idempotent.
    ///
    /// # Errors
    /// As [`Client::isolate`].
    pub fn restore(&self, server: &str, method: Option<&str>) -> Result<(), Status> {
        self.0.pool.set_isolated(server, method, false)
    }

    /// The client's connections.
    pub fn connections(&self) -> Vec<ConnectionInfo> {
        self.0.pool.links().iter().map(|link| link.info()).collect()
    }

    /// What became of the client's calls since it was made. Looks at each of its connections.
    #[cfg(feature = "observe")]
    pub fn metrics(&self) -> ClientMetrics {
        self.0.pool.metrics()
    }

    /// Where the client stands with its servers now.
    pub fn connectivity(&self) -> Connectivity {
        self.0.pool.connectivity()
    }

    /// Waits until the client no longer stands as in `seen`, and says how it does. Steps that followed each other at once may
    /// be passed over.
    ///
    /// # Cancel safety
    /// Nothing is lost by dropping the future.
    pub async fn connectivity_other_than(&self, seen: Connectivity) -> Connectivity {
        self.0.pool.connectivity_other_than(seen).await
    }

    /// The answer to a call that is no server's.
    fn answer(&self, method: &str) -> Option<Result<Response, Status>> {
        #[cfg(feature = "script")]
        return self.0.pool.script()?.answer(method);
        #[cfg(not(feature = "script"))]
        {
            let _ = method;
            None
        }
    }

    fn intercept(&self, method: &str, options: &mut CallOptions) -> Result<(), Status> {
        self.0.interceptors.iter().try_for_each(|interceptor| interceptor.before(method, options))
    }

    /// Puts a call's idempotency key into its metadata.
    fn key(&self, options: &mut CallOptions) -> Result<Keyed, Status> {
        let key = match options.idempotency_key.take() {
            None => return Ok(Keyed::No),
            Some(IdempotencyKey::Given(key)) => key,
            Some(IdempotencyKey::Drawn) => {
                let runtime = self.0.pool.runtime();
                [runtime.seed().to_le_bytes(), runtime.seed().to_le_bytes()].concat().into()
            }
        };
        if key.is_empty() || key.len() > KEY_MOST {
            let why = format!("an idempotency key is 1 to {KEY_MOST} bytes; this one is {}", key.len());
            return Err(Status::from_reason(Reason::INVALID_ARGUMENT, why));
        }
        options.metadata.insert(KEY, key)?;
        Ok(Keyed::Unsent)
    }
}

/// A stream is not run once by a key.
fn no_key(options: &CallOptions) -> Result<(), Status> {
    let why = "an idempotency key is for unary calls, and this is a stream";
    match options.idempotency_key {
        None => Ok(()),
        Some(_) => Err(Status::from_reason(Reason::INVALID_ARGUMENT, why)),
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
