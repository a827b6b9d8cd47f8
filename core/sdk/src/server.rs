//! The server: listeners, the connections they accept, and a graceful end.

use std::{
    io,
    net::SocketAddr,
    ops::RangeInclusive,
    sync::{
        Arc, Mutex,
        atomic::{
            AtomicU64, AtomicUsize,
            Ordering::{AcqRel, Acquire, Relaxed},
        },
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
};
use valkyrie_protocol::{Keepalive, Limits, Reason, Status};

use crate::{
    Authenticator, BoxFuture, ConnectionInfo, Gate, Health, Listener, Log, MessageHandler, Runtime, Security,
    ServerMetrics, TokioRuntime, ValkyrieServer,
    connection::{Driver, Link, Side, Terms, lock, unless_0},
    failures::Failures,
    guard::{Closed, Guard},
    keys::Keys,
    listen::{self, Arriving, Bind, Bound, Doorman, Doors},
    load::Load,
    log::Logger,
    policy::{DedupPolicy, LimiterPolicy, Random},
    router::Router,
    runtime::{race, sleep_until},
    table::{Phase, Table},
};
#[cfg(feature = "tls")]
use crate::{Pem, tls::Identity};

/// How long a new connection may take to say which protocol it speaks.
const SNIFF_TIMEOUT: Duration = Duration::from_secs(5);
/// How long nobody may come for a port that is to be closed to have nobody left in its backlog, and how long that takes at most.
const BACKLOG_REST: Duration = Duration::from_millis(1);
const BACKLOG_TIME: Duration = Duration::from_millis(100);
/// How long accepting rests after an error such as "too many open files": doubled from the first to the second.
const ACCEPT_BACKOFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// More patient than clients are, who have somebody waiting.
const KEEPALIVE: Keepalive = Keepalive {
    time: Some(Duration::from_secs(300)),
    idle: Some(Duration::from_secs(7_200)),
    timeout: Duration::from_secs(20),
};

/// Describes a server; [`ServerBuilder::build`] binds it.
#[must_use = "a builder does nothing until it is built"]
pub struct ServerBuilder {
    /// Each with what binds it: a program that never asks for an address has none of these transports' servers in it.
    binds: Vec<(String, Bind)>,
    handlers: Vec<(String, Arc<dyn MessageHandler>)>,
    terms: Terms,
    max_running_handlers: usize,
    concurrency_limit: Option<LimiterPolicy>,
    dedup: Option<DedupPolicy>,
    max_connections: usize,
    drain_timeout_ms: u64,
    health: Option<Health>,
    max_connection_age_ms: Option<u64>,
    connection_grace_ms: u64,
    doors: Doors,
    guard: Guard,
    open_to_all: bool,
    listeners: Vec<Box<dyn Listener>>,
    log: Logger,
}

impl Default for ServerBuilder {
    fn default() -> Self {
        Self {
            binds: Vec::new(),
            handlers: Vec::new(),
            terms: Terms { keepalive: KEEPALIVE, ..Terms::default() },
            max_running_handlers: 256,
            concurrency_limit: None,
            dedup: None,
            max_connections: 65_536,
            drain_timeout_ms: 30_000,
            health: None,
            max_connection_age_ms: None,
            connection_grace_ms: 30_000,
            doors: Doors::default(),
            guard: Guard::default(),
            open_to_all: false,
            listeners: Vec::new(),
            log: Logger::default(),
        }
    }
}

impl ServerBuilder {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Listens there too: `host:port`, `tcp://host:port`, `tls://host:port`, `quic://host:port`, `unix:///path`, `memory:name`. A
    /// TCP port answers WebSocket handshakes as well: `tls://` those of `wss://`. With an identity, every carrier takes sealed
    /// sessions too. Port 0 lets the system choose.
    pub fn bind(mut self, endpoint: impl Into<String>) -> Self {
        self.binds.push((endpoint.into(), listen::bind));
        self
    }

    /// The certificate chain that the server shows, its own first, and the private key. Required for `tls://`, `quic://` and
    /// sealed sessions. Default: none.
    #[cfg(feature = "tls")]
    pub fn identity(mut self, certificates: impl Into<Pem>, key: impl Into<Pem>) -> Self {
        self.doors.tls.identity = Some(Identity { certificates: certificates.into(), key: key.into() });
        self.doors.sealing = Some(listen::sealing);
        self
    }

    /// The authorities that vouch for clients: each client must show a certificate of theirs (mTLS). Default: none, and
    /// clients are asked for none.
    #[cfg(feature = "tls")]
    pub fn client_authorities(mut self, pem: impl Into<Pem>) -> Self {
        self.doors.tls.authorities = Some(pem.into());
        self.doors.sealing = Some(listen::sealing);
        self
    }

    /// The revocation lists (CRL) of the clients' authorities, in PEM. A certificate that one of them names is refused.
    /// Default: none.
    #[cfg(feature = "tls")]
    pub fn revocation_lists(mut self, pem: impl Into<Pem>) -> Self {
        self.doors.tls.revoked = Some(pem.into());
        self
    }

    /// The least protection that connections must have: others are told TLS_REQUIRED and closed. Default
    /// [`Security::Insecure`], as what is bound says.
    pub fn min_security(mut self, least: Security) -> Self {
        self.doors.least = least;
        self
    }

    /// Decides whom the credentials of a connection stand for. Decisions take 5 s at most and hold nothing up but what came
    /// behind a connection's first token, 16 KiB of it. For 1 s after the third first token of one address that is refused, and
    /// after each further one, its connections are closed as they come; 10 s without one forgive all. Default: nobody, and
    /// every token is accepted and means nothing.
    pub fn authenticator(mut self, authenticator: impl Authenticator) -> Self {
        self.guard.authenticator = Some(Arc::new(authenticator));
        self
    }

    /// Asks before anything is done for a call, and tells of decisions on credentials. Default: nobody, which costs nothing,
    /// while the server has no credentials; with an identity, an authenticator or a `min_security` nobody may call anything but
    /// `/valkyrie.Health/*` then, until [`ServerBuilder::open_to_all`] says otherwise.
    pub fn gate(mut self, gate: Arc<dyn Gate>) -> Self {
        self.guard.gate = Some(gate);
        self
    }

    /// Whether everybody whom the server talks to may call everything where no gate decides, though it has credentials: for
    /// servers whose TLS is there for secrecy, and whose clients' certificates or handlers decide on the rest. Default false.
    pub fn open_to_all(mut self, open: bool) -> Self {
        self.open_to_all = open;
        self
    }

    /// Takes what goes wrong at the server's ports, for a host to log: connections that failed before they stood
    /// ([`ServerControl::failures`]), each address once in a minute with how many it left out, of 1,024 addresses; and files of
    /// certificates, keys and revocation lists that changed and cannot be used. All of it is of level
    /// [`Warn`](crate::Level::Warn), but for files that can be used again. Default: nobody, which costs nothing.
    pub fn log(mut self, log: Arc<dyn Log>) -> Self {
        self.log = Logger(Some(log));
        self
    }

    /// Answers the calls of a path: `/a/b`, or `/a/*` for everything below `/a/` without a longer match.
    pub fn handler(mut self, path: impl Into<String>, handler: impl MessageHandler) -> Self {
        self.handlers.push((path.into(), Arc::new(handler)));
        self
    }

    /// Answers `/valkyrie.Health/Check` and `/valkyrie.Health/Watch`, to everybody and whatever the load, and says `draining` there when the
    /// server drains. Default: nobody answers, which clients take for health.
    pub fn health(mut self, health: &Health) -> Self {
        self.health = Some(health.clone());
        self.handler("/valkyrie.Health/Check", health.check())
            .handler("/valkyrie.Health/Watch", health.watch())
    }

    /// What each connection is ready to receive. Default [`Limits::default`].
    pub fn limits(mut self, limits: Limits) -> Self {
        self.terms.limits = limits;
        self
    }

    /// How long the task of a connection looks for the next call before it sleeps, in microseconds: 0, never, by default. 10 to
    /// 50 save the time of falling asleep and waking up where a call takes less than that. The thread does nothing else
    /// meanwhile; spins in vain make spins rare. Over tcp and unix.
    pub fn spin_us(mut self, spin_us: u64) -> Self {
        self.terms.spin = Duration::from_micros(spin_us);
        self
    }

    /// How long a client may be silent while calls of it run until it is asked by PING whether it is there, in milliseconds:
    /// 300,000 by default, at least 10,000; 0 for never. One that says nothing within [`ServerBuilder::keepalive_timeout_ms`] is
    /// gone: its connection is closed, and its handlers are stopped. Source: PROTOCOL.md, W9-16; gRFC A8 has 7,200,000.
    pub fn keepalive_ms(mut self, time_ms: u64) -> Self {
        self.terms.keepalive.time = unless_0(time_ms);
        self
    }

    /// How long the answer to a keepalive's PING may take, in milliseconds; anything that is received is one. Default 20,000,
    /// at least 1,000. On Linux the system, too, gives a TCP connection up on which nothing was acknowledged for this and
    /// [`ServerBuilder::keepalive_ms`] together (`TCP_USER_TIMEOUT`). Source: gRFC A8 and A18.
    pub fn keepalive_timeout_ms(mut self, timeout_ms: u64) -> Self {
        self.terms.keepalive.timeout = Duration::from_millis(timeout_ms);
        self
    }

    /// As [`ServerBuilder::keepalive_ms`] for clients without a call, in milliseconds: 7,200,000 by default, at least 300,000;
    /// 0 for never. Source: gRFC A8.
    pub fn keepalive_idle_ms(mut self, time_ms: u64) -> Self {
        self.terms.keepalive.idle = unless_0(time_ms);
        self
    }

    /// How long a connection may have no call before it is closed, in milliseconds: 0, for ever, by default. PINGs do not count.
    /// Its client is told, and a call that is on its way is refused, which clients repeat elsewhere: none is lost. Source: gRFC
    /// A9.
    pub fn max_connection_idle_ms(mut self, time_ms: u64) -> Self {
        self.terms.max_idle = unless_0(time_ms);
        self
    }

    /// The protocol versions to offer: 1 to 1, all that there are, by default. Another range is for trying what peers of
    /// other versions will do; whatever is agreed on, it behaves as version 1.
    #[doc(hidden)]
    pub fn versions(mut self, versions: RangeInclusive<u8>) -> Self {
        self.terms.versions = versions;
        self
    }

    /// Handlers that run at once for one connection; further calls wait in order. Default 256.
    pub fn max_running_handlers(mut self, most: usize) -> Self {
        self.max_running_handlers = most;
        self
    }

    /// Handlers that run at once for all connections together, as many as the server can do without their taking longer, in place of
    /// [`ServerBuilder::max_running_handlers`]. Calls beyond wait, critical ones first and bulk one time in sixteen, and
    /// normal and bulk calls leave a part of the limit to critical ones; whoever waits for too long is refused with OVERLOADED and
    /// a pushback, before a handler has seen the call. How long handlers take is learnt of calls whose request came whole, which had to wait for
    /// something, and ended well or at their deadline. `/valkyrie.Health/*` is answered whatever the load. Default: none.
    pub fn concurrency_limit(mut self, policy: LimiterPolicy) -> Self {
        self.concurrency_limit = Some(policy);
        self
    }

    /// Keeps what calls with an idempotency key came to (`CallOptions::with_idempotency_key`): each of a principal, a method and a key is run
    /// once. While it runs, others of its key wait for its answer; later ones get it without a run, with `valkyrie-replayed: true`
    /// in their metadata. Errors are answers, too, but those with a pushback: their call is run again. Such a handler goes on when its connection
    /// ends, until its deadline; given up by its caller, late or in a panic, it is not run again, and who asks is told CANCELLED. An
    /// attempt that is not its call's first, and of which the server does not know that it knows everything, ends with KEY_FORGOTTEN.
    /// Callers who prove nothing are one principal: their keys are to be hard to guess. Default: none, and then calls with a key are
    /// run when they come for the first time, and end with KEY_FORGOTTEN when they come again.
    pub fn dedup(mut self, policy: DedupPolicy) -> Self {
        self.dedup = Some(policy);
        self
    }

    /// Connections at once; further ones are closed as they come. Default 65,536. On Linux never more than the process
    /// may have descriptors, less 64: a connection that is refused is told so, one that cannot be accepted waits.
    pub fn max_connections(mut self, most: usize) -> Self {
        self.max_connections = most;
        self
    }

    /// How long a shutdown lets calls finish, in milliseconds. Default 30,000.
    pub fn drain_timeout_ms(mut self, timeout_ms: u64) -> Self {
        self.drain_timeout_ms = timeout_ms;
        self
    }

    /// How old a connection becomes, in milliseconds, ± 10 % so that they do not all go at once: then it drains, and its client, which is told,
    /// makes its next calls over another one, perhaps to another server. Calls on the way are taken (PROTOCOL.md, W9-19).
    /// Default: as old as it may (gRFC A9).
    pub fn max_connection_age_ms(mut self, age_ms: u64) -> Self {
        self.max_connection_age_ms = Some(age_ms);
        self
    }

    /// How long a connection that is too old lets calls finish, in milliseconds. Default 30,000.
    pub fn connection_grace_ms(mut self, grace_ms: u64) -> Self {
        self.connection_grace_ms = grace_ms;
        self
    }

    /// Lets pages of that origin (`https://app.example`, or `*`) connect by WebSocket, beside same-origin and loopback
    /// pages, which always may.
    pub fn allow_origin(mut self, origin: impl Into<String>) -> Self {
        self.doors.origins.push(origin.into());
        self
    }

    /// Accepts connections of a transport from outside.
    pub fn listener(mut self, listener: Box<dyn Listener>) -> Self {
        self.listeners.push(listener);
        self
    }

    /// Binds every address. Nothing is accepted before [`Server::start`].
    ///
    /// # Errors
    /// INVALID_CONFIGURATION, INVALID_ENDPOINT or UNSUPPORTED_SCHEME for what is written wrong; BIND_FAILED with the
    /// address and the system's reason.
    pub async fn build(mut self) -> Result<Server, Status> {
        let invalid = |message: String| Err(Status::from_reason(Reason::INVALID_CONFIGURATION, message));
        let Some(runtime) = TokioRuntime::current() else {
            return invalid("no tokio runtime is current; build inside one".into());
        };
        if self.binds.is_empty() && self.listeners.is_empty() {
            return invalid("no address; call .bind(\"127.0.0.1:8080\")".into());
        }
        if self.max_running_handlers == 0 || self.max_connections == 0 {
            return invalid("max_running_handlers and max_connections are at least 1".into());
        }
        self.terms.check_keepalive()?;
        if let Some(fault) = self.concurrency_limit.and_then(|policy| policy.fault()) {
            return invalid(format!("concurrency_limit: {fault}"));
        }
        if self.max_connection_age_ms == Some(0) {
            return invalid("max_connection_age_ms is at least 1".into());
        }
        if let Some(fault) = self.dedup.and_then(|policy| policy.fault()) {
            return invalid(format!("dedup: {fault}"));
        }
        let runtime: Arc<dyn Runtime> = Arc::new(runtime);
        self.doors.patience = self.terms.patience();
        let has_credentials = self.guard.authenticator.is_some() || self.doors.has_credentials();
        if has_credentials && !self.open_to_all && self.guard.gate.is_none() {
            self.guard.gate = Some(Arc::new(Closed));
        }
        let load = self.concurrency_limit.map(|policy| Arc::new(Load::new(policy, runtime.clone())));
        let keys = self.dedup.map(|policy| Arc::new(Keys::new(policy, runtime.clone())));
        let mut router = Router::new(self.max_running_handlers, load, keys, self.guard);
        for (path, handler) in self.handlers {
            router.add(path, handler)?;
        }
        #[cfg(feature = "tls")]
        {
            self.doors.tls.log = self.log.clone();
        }
        let doorman = self.doors.doorman()?;
        let mut bound: Vec<Box<dyn Bound>> = Vec::new();
        for (endpoint, bind) in &self.binds {
            bound.push(bind(endpoint, &self.terms.limits, &self.doors).await?);
        }
        for listener in self.listeners {
            bound.push(Box::new(listener));
        }
        Ok(Server {
            local_addr: bound.iter().find_map(|bound| bound.local_addr()),
            endpoints: bound.iter().flat_map(|bound| bound.endpoints()).collect(),
            bound: Mutex::new(Some(bound)),
            shared: Arc::new(Shared {
                router: Arc::new(router),
                runtime,
                terms: self.terms,
                doorman,
                failures: Failures::new(self.log),
                max_connections: AtomicUsize::new(self.max_connections.min(most_connections())),
                drain_timeout_ms: AtomicU64::new(self.drain_timeout_ms),
                health: self.health,
                max_age: self.max_connection_age_ms.map(Duration::from_millis),
                grace: Duration::from_millis(self.connection_grace_ms),
                links: Table::default(),
                accepted: AtomicU64::new(0),
                refused: AtomicU64::new(0),
                opening: AtomicUsize::new(0),
                listening: AtomicUsize::new(0),
                accepting: AtomicUsize::new(0),
                calls_before: AtomicU64::new(0),
                calls_cut: AtomicU64::new(0),
                drained: AtomicU64::new(0),
                aged: AtomicU64::new(0),
                idle: AtomicU64::new(0),
                silent: AtomicU64::new(0),
                phase: watch::Sender::new(Phase::Serving),
                changed: Notify::new(),
            }),
        })
    }
}

/// Descriptors that are kept for everything but connections.
const SPARE_DESCRIPTORS: usize = 64;

/// How many connections the process has descriptors for.
fn most_connections() -> usize {
    // The soft limit, as Linux tells it: `Max open files            1024                 524288               files`.
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().next()?.parse::<usize>().ok());
    soft.map_or(usize::MAX, |soft| soft.saturating_sub(SPARE_DESCRIPTORS).max(1))
}

struct Shared {
    router: Arc<Router>,
    runtime: Arc<dyn Runtime>,
    terms: Terms,
    doorman: Doorman,
    failures: Failures,
    max_connections: AtomicUsize,
    drain_timeout_ms: AtomicU64,
    health: Option<Health>,
    /// After how long a connection drains, and how long that takes.
    max_age: Option<Duration>,
    grace: Duration,
    links: Table<Arc<Link>>,
    accepted: AtomicU64,
    refused: AtomicU64,
    /// Connections that have not said their protocol yet.
    opening: AtomicUsize,
    /// Listeners that run, and those of them that take connections.
    listening: AtomicUsize,
    accepting: AtomicUsize,
    /// Calls of connections that are over.
    calls_before: AtomicU64,
    calls_cut: AtomicU64,
    /// Connections that were told of a shutdown, that were too old, that had no call for too long, and whose clients were silent.
    drained: AtomicU64,
    aged: AtomicU64,
    idle: AtomicU64,
    silent: AtomicU64,
    phase: watch::Sender<Phase>,
    changed: Notify,
}

/// A bound server.
pub struct Server {
    bound: Mutex<Option<Vec<Box<dyn Bound>>>>,
    local_addr: Option<SocketAddr>,
    endpoints: Vec<String>,
    shared: Arc<Shared>,
}

/// Counts of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerStats {
    /// Connections now.
    pub connections: usize,
    /// Connections accepted since the start.
    pub connections_total: u64,
    /// Connections closed as they came, because there were too many or for credentials that were refused before.
    pub connections_refused: u64,
    /// Calls since the start.
    pub calls_total: u64,
    /// Streams open now.
    pub streams: usize,
    /// Calls that ran when a shutdown closed their connection.
    pub calls_cut: u64,
    /// Handlers that run.
    pub running: usize,
    /// Calls that wait for a handler to end.
    pub queued: usize,
    /// How many handlers may run now, where there is a [`ServerBuilder::concurrency_limit`].
    pub limit: Option<u32>,
    /// Calls that it refused.
    pub shed: u64,
    /// Whether the server is shutting down.
    pub draining: bool,
}

/// Ends and observes a server from anywhere. Cheap to clone.
#[derive(Clone)]
pub struct ServerControl(Arc<Shared>);

impl Server {
    /// Serves until shut down. May be called once.
    ///
    /// # Errors
    /// INVALID_CONFIGURATION when it was started before.
    ///
    /// # Cancel safety
    /// Dropping the future stops accepting and cuts every connection.
    pub async fn start(&self) -> Result<(), Status> {
        let Some(bound) = lock(&self.bound).take() else {
            return Err(Status::from_reason(Reason::INVALID_CONFIGURATION, "the server was started before"));
        };
        let mut tasks = JoinSet::new();
        for listener in bound {
            tasks.spawn(self.shared.clone().accept_loop(listener));
        }
        let _cut = CutOnDrop(&self.shared);
        while tasks.join_next().await.is_some() {}
        self.shared.drained().await;
        Ok(())
    }

    /// The first socket address it listens on, with the port that the system chose.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.local_addr
    }

    /// Where it listens, as endpoints that a client can use.
    pub fn endpoints(&self) -> Vec<String> {
        self.endpoints.clone()
    }

    /// A handle that ends and observes the server.
    pub fn control(&self) -> ServerControl {
        ServerControl(self.shared.clone())
    }
}

struct CutOnDrop<'a>(&'a Shared);

impl Drop for CutOnDrop<'_> {
    fn drop(&mut self) {
        self.0.cut();
    }
}

impl ServerControl {
    /// Takes no new connections and no new calls; those that run go on, and those that are on their way while their clients are told, within
    /// milliseconds and a round trip. Does not wait.
    pub fn drain(&self) {
        self.0.drain();
    }

    /// Drains, waits until every call has ended or the drain timeout has passed, and closes.
    pub async fn shutdown(&self) {
        self.0.drain();
        self.0.drained().await;
    }

    /// Closes at once; calls in flight are cut.
    pub fn shutdown_now(&self) {
        self.0.drain();
        self.0.cut();
    }

    /// Another [`ServerBuilder::max_connections`], at least 1 and never more than there are descriptors, for connections that come from now on;
    /// those that are there stay, however many they are.
    pub fn set_max_connections(&self, most: usize) {
        self.0.max_connections.store(most.clamp(1, most_connections()), Relaxed);
    }

    /// Another [`ServerBuilder::drain_timeout_ms`], for a drain that has not begun.
    pub fn set_drain_timeout_ms(&self, timeout_ms: u64) {
        self.0.drain_timeout_ms.store(timeout_ms, Relaxed);
    }

    /// Counts.
    pub fn stats(&self) -> ServerStats {
        let infos = self.connections();
        let load = self.0.router.load.as_ref().map(|load| load.metrics());
        ServerStats {
            connections: infos.len(),
            connections_total: self.0.accepted.load(Relaxed),
            connections_refused: self.0.refused.load(Relaxed),
            calls_total: self.0.calls_before.load(Relaxed) + infos.iter().map(|info| info.calls).sum::<u64>(),
            streams: infos.iter().map(|info| info.streams).sum(),
            calls_cut: self.0.calls_cut.load(Relaxed),
            running: infos.iter().map(|info| info.running).sum(),
            queued: infos.iter().map(|info| info.queued).sum(),
            limit: load.map(|load| load.limit),
            shed: load.map_or(0, |load| load.shed.iter().sum()),
            draining: *self.0.phase.borrow() != Phase::Serving,
        }
    }

    /// What became of the server's calls and connections. Looks at each connection.
    pub fn metrics(&self) -> ServerMetrics {
        let Shared { router, drained, aged, idle, silent, .. } = &*self.0;
        ServerMetrics {
            limit: router.load.as_ref().map(|load| load.metrics()),
            dedup: router.keys.as_ref().map(|keys| keys.metrics()),
            connections_drained: drained.load(Relaxed),
            connections_aged: aged.load(Relaxed),
            connections_idle: idle.load(Relaxed),
            connections_silent: silent.load(Relaxed),
            ..ServerMetrics::of(router.metrics(), &self.stats())
        }
    }

    /// How many connections failed before they stood since the start, by reason, the lowest number first: a handshake of TLS with
    /// the reason that clients know ([`Reason::CERTIFICATE_UNTRUSTED`] and those behind it), what is not encrypted enough with
    /// TLS_REQUIRED, bytes that are not ours with BAD_MAGIC, a page of a foreign origin with PERMISSION_DENIED, and who was not
    /// ready in 5 s with CONNECT_TIMEOUT. QUEUE_FULL is for those that a limit refused: connections, descriptors, or handshakes at once; and
    /// CREDENTIALS_REFUSED for addresses whose tokens were refused before. Who connects and leaves without a byte is not counted.
    pub fn failures(&self) -> Vec<(Reason, u64)> {
        self.0.failures.counts()
    }

    /// Every connection.
    pub fn connections(&self) -> Vec<ConnectionInfo> {
        self.0.links.all().iter().map(|link| link.info()).collect()
    }
}

impl Shared {
    async fn accept_loop(self: Arc<Self>, listener: Box<dyn Bound>) {
        let _listening = Listening::new(&self);
        self.accepting.fetch_add(1, AcqRel);
        self.accept_until_told(listener).await;
    }

    async fn accept_until_told(self: &Arc<Self>, mut listener: Box<dyn Bound>) {
        let mut phase = self.phase.subscribe();
        let mut rest = ACCEPT_BACKOFF.0;
        loop {
            // The end comes first: who connects to a server that was told to stop is told to go elsewhere.
            let accepted = tokio::select! {
                biased;
                _ = phase.wait_for(|phase| *phase != Phase::Serving) => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok(arriving) => {
                    rest = ACCEPT_BACKOFF.0;
                    self.open(arriving);
                }
                // Out of descriptors, or a connection that died in the queue: those that stand go on (F53).
                Err(error) => {
                    self.failures.note("", &not_accepted(&error), self.runtime.now());
                    tokio::time::sleep(rest).await;
                    rest = (rest * 2).min(ACCEPT_BACKOFF.1);
                }
            }
        }
        // Who was let in by the system does not know it: its calls are answered, and it is told to go.
        let most = self.runtime.now().after(BACKLOG_TIME);
        while listener.has_backlog()
            && *phase.borrow() == Phase::Draining
            && self.runtime.now() < most
            && let Ok(Ok(arriving)) = tokio::time::timeout(BACKLOG_REST, listener.accept()).await
        {
            self.open(arriving);
        }
        let closed = listener.close(Box::pin(self.idle()));
        if self.accepting.fetch_sub(1, AcqRel) == 1 {
            self.tell_all();
        }
        closed.await;
    }

    fn open(self: &Arc<Self>, arriving: Arriving) {
        self.accepted.fetch_add(1, Relaxed);
        let open = self.links.len() + self.opening.load(Relaxed);
        let most = self.max_connections.load(Relaxed);
        if open >= most {
            self.refused.fetch_add(1, Relaxed);
            let full = full(format!("there are {most} connections, and the server takes no more"));
            self.failures.note(&arriving.from, &full, self.runtime.now());
            return;
        }
        self.opening.fetch_add(1, Relaxed);
        tokio::spawn(Opening(self.clone()).serve(arriving));
    }

    /// Drives a connection until it is over, which it soon is once it has that age, ± 10 %.
    async fn aged(&self, age: Duration, link: &Link, mut driver: Driver) {
        let mut random = Random::new(self.runtime.seed());
        let tenth = u64::try_from(age.as_micros() / 10).unwrap_or(u64::MAX);
        let spread = Duration::from_micros(random.below(tenth.saturating_mul(2).saturating_add(1)));
        let age = (age - Duration::from_micros(tenth)).saturating_add(spread);
        let old = sleep_until(&*self.runtime, self.runtime.now().after(age));
        if race(&mut driver, old).await.is_none() {
            self.aged.fetch_add(1, Relaxed);
            link.close(self.runtime.now().after(self.grace), "the connection has reached its age");
            driver.await;
        }
    }

    fn drain_timeout(&self) -> Duration {
        Duration::from_millis(self.drain_timeout_ms.load(Relaxed))
    }

    fn drain(&self) {
        let first = self.phase.send_if_modified(|phase| {
            let first = *phase == Phase::Serving;
            if first {
                *phase = Phase::Draining;
            }
            first
        });
        if first && let Some(health) = &self.health {
            health.drain();
        }
        if first && self.accepting.load(Acquire) == 0 {
            self.tell_all();
        }
    }

    /// Tells every connection that the server goes: once nobody comes in any more, as who is told may try at once to come again.
    fn tell_all(&self) {
        let deadline = self.runtime.now().after(self.drain_timeout());
        for link in self.links.enter(Phase::Draining) {
            self.drained.fetch_add(1, Relaxed);
            link.close(deadline, "the server is shutting down");
        }
    }

    fn cut(&self) {
        self.phase.send_replace(Phase::Stopping);
        for link in self.links.enter(Phase::Stopping) {
            link.abort(Status::from_reason(Reason::CONNECTION_LOST, "the server stopped"));
        }
    }

    /// Waits until no connection is left.
    async fn idle(&self) {
        self.until(|shared| shared.links.len() == 0 && shared.opening.load(Relaxed) == 0).await;
    }

    /// Waits until no connection is left and every port is free.
    async fn drained(&self) {
        self.idle().await;
        self.until(|shared| shared.listening.load(Relaxed) == 0).await;
    }

    async fn until(&self, reached: impl Fn(&Self) -> bool) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if reached(self) {
                return;
            }
            changed.await;
        }
    }
}

/// A limit is reached.
fn full(why: String) -> Status {
    Status::from_reason(Reason::QUEUE_FULL, why)
}

/// Why the system hands no connection over.
fn not_accepted(error: &io::Error) -> Status {
    // EMFILE and ENFILE: of the process, and of the system.
    match error.raw_os_error() {
        Some(23 | 24) => full(format!("a connection waits, for no descriptor is left: {error}")),
        _ => {
            Status::from_reason(Reason::CONNECTION_LOST, format!("a connection cannot be accepted: {error}"))
        }
    }
}

/// A listener whose port may not be free yet.
struct Listening(Arc<Shared>);

impl Listening {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.listening.fetch_add(1, Relaxed);
        Self(shared.clone())
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.listening.fetch_sub(1, Relaxed);
        self.0.changed.notify_waiters();
    }
}

/// A connection that has not said its protocol yet.
struct Opening(Arc<Shared>);

impl Drop for Opening {
    fn drop(&mut self) {
        self.0.opening.fetch_sub(1, Relaxed);
        self.0.changed.notify_waiters();
    }
}

impl Opening {
    async fn serve(self, arriving: Arriving) {
        let shared = self.0.clone();
        let Arriving { from, guest } = arriving;
        let mut phase = shared.phase.subscribe();
        let opened = tokio::select! {
            biased;
            _ = phase.wait_for(|phase| *phase == Phase::Stopping) => return,
            opened = tokio::time::timeout(SNIFF_TIMEOUT, shared.doorman.admit(guest)) => opened,
        };
        let (failures, now) = (&shared.failures, shared.runtime.now());
        // A stranger that says nothing, or not enough, is closed without a word.
        let guest = match opened {
            Ok(Ok(guest)) => guest,
            Ok(Err(error)) => {
                if !listen::left_at_once(&error) {
                    failures.note_error(&from, &error, now);
                }
                return;
            }
            Err(_) => {
                let why = format!("it was not ready in {} s", SNIFF_TIMEOUT.as_secs());
                failures.note(&from, &Status::from_reason(Reason::CONNECT_TIMEOUT, why), now);
                return;
            }
        };
        if shared.router.guard.is_barred(&guest.peer, now) {
            shared.refused.fetch_add(1, Relaxed);
            let why = "the last credentials of the address were refused: it is to wait";
            failures.note(&from, &Status::from_reason(Reason::CREDENTIALS_REFUSED, why), now);
            return;
        }
        if let Some((code, why)) = &guest.refused {
            failures.note(&from, &Status::from_reason(code.reason(), *why), now);
        }
        let is_refused = guest.refused.is_some();
        let side = Side::Server(shared.router.clone());
        let (link, driver) = Link::new(guest, &shared.terms, shared.runtime.clone(), side);
        let phase = shared.links.insert(link.id, link.clone());
        drop(self);
        match phase {
            Phase::Serving => {}
            Phase::Draining => {
                link.close(shared.runtime.now().after(shared.drain_timeout()), "the server is shutting down");
            }
            Phase::Stopping => link.abort(Status::from_reason(Reason::CONNECTION_LOST, "the server stopped")),
        }
        match shared.max_age {
            None => driver.await,
            // Only who has an age pays for its timer.
            Some(age) => Box::pin(shared.aged(age, &link, driver)).await,
        }
        let info = link.info();
        shared.calls_before.fetch_add(info.calls, Relaxed);
        shared.idle.fetch_add(link.was_idle().into(), Relaxed);
        shared.silent.fetch_add(link.timed_out().into(), Relaxed);
        let serving = *shared.phase.borrow() == Phase::Serving;
        if let Some(status) = link.failed().filter(|_| serving && !is_refused) {
            shared.failures.note(&from, &status, shared.runtime.now());
        }
        if !serving {
            shared.calls_cut.fetch_add(info.streams as u64, Relaxed);
        }
        shared.links.remove(link.id);
        shared.changed.notify_waiters();
    }
}

impl ValkyrieServer for Server {
    fn start(&self) -> BoxFuture<'_, Result<(), Status>> {
        Box::pin(self.start())
    }

    fn endpoints(&self) -> Vec<String> {
        self.endpoints()
    }

    fn shutdown(&self) -> BoxFuture<'_, ()> {
        Box::pin(async { self.control().shutdown().await })
    }
}
