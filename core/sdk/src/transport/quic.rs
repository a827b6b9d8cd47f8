//! quic://: TLS 1.3 over UDP, one QUIC stream for each call and the first one for the connection.

use std::{
    collections::HashMap,
    future::Future,
    io::{self, IoSlice},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{
            AtomicBool,
            Ordering::{AcqRel, Release},
        },
    },
    task::{Context, Poll, Wake, Waker, ready},
    time::Duration,
};

use quinn::{
    AsyncUdpSocket, RecvStream, SendStream, UdpPoller, VarInt,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
    udp::UdpSocketState,
};
use rustls::{AlertDescription, pki_types::CertificateDer};
use tokio::{
    io::Interest,
    net::UdpSocket,
    sync::{mpsc, watch},
};
use valkyrie_protocol::{Limits, Priority, Reason, Status};

use super::{ReadBuffer, StreamIo, Streams, race};
use crate::{
    BoxFuture, Carrier, Connector, Endpoint, Peer, Transport,
    connection::{Guest, lock, status_in},
    tls::{self, ClientSecurity, ServerSecurity},
};

/// A connection on which nothing arrives for so long is lost; a client asks for a sign of life in time.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// How long the end of a connection waits for its last bytes to be acknowledged.
const LINGER: Duration = Duration::from_secs(1);
/// Handshakes in flight, each of which costs about 125 KiB for up to 8 s: beyond so many a client must show that its
/// address is its own (Retry), which costs one round trip and no memory.
const RETRY_ABOVE: usize = 32;
/// Beyond so many handshakes nobody new is heard.
const MAX_INCOMING: usize = 1_024;
/// What is buffered for one that was not looked at yet, and for all of them.
const INCOMING_BUFFER: u64 = 1 << 20;
const INCOMING_BUFFER_TOTAL: u64 = 32 << 20;
/// Bytes written and not acknowledged, of all streams.
const SEND_WINDOW: u64 = 4 << 20;
/// So many bytes of a critical call go ahead of other streams' (QUIC's order is strict, and one that went on so would
/// leave nothing to others); then all have their turn, a packet each.
const URGENT: usize = 64 << 10;
/// Bytes of one read.
const READ_SIZE: usize = 64 << 10;

fn invalid(message: String) -> Status {
    Status::from_reason(Reason::INVALID_CONFIGURATION, message)
}

fn transport_config(limits: &Limits, streams: u32) -> quinn::TransportConfig {
    let mut config = quinn::TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(streams))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(limits.stream_window_bytes))
        .receive_window(VarInt::from_u32(limits.connection_window_bytes))
        .send_window(SEND_WINDOW)
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(IDLE_TIMEOUT.try_into().ok());
    config
}

/// quinn's tasks of one client connection, which may be polled once more when nobody runs them any longer: the end of a
/// process is no reason to let a server wait for its idle limit.
#[derive(Debug, Default)]
struct Tasks(Mutex<Vec<Arc<Task>>>);

/// A task, and who waits for it.
struct Task(Mutex<Option<(TaskFuture, Waker)>>);

type TaskFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

impl std::fmt::Debug for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Task")
    }
}

impl Task {
    fn poll(&self, cx: Option<&Context<'_>>) -> Poll<()> {
        let mut running = lock(&self.0);
        let Some((future, waker)) = &mut *running else { return Poll::Ready(()) };
        if let Some(cx) = cx {
            waker.clone_from(cx.waker());
        }
        let polled = future.as_mut().poll(&mut Context::from_waker(waker));
        if polled.is_ready() {
            *running = None;
        }
        polled
    }
}

impl Tasks {
    /// Hands what is to be sent to the system now.
    fn run_now(&self) {
        let tasks = lock(&self.0).clone();
        for task in tasks {
            let _ = task.poll(None);
        }
    }
}

/// What a client's connection lives on. The tasks know the endpoint and it knows them, until this is dropped.
struct Own {
    _endpoint: quinn::Endpoint,
    tasks: Arc<Tasks>,
}

impl Drop for Own {
    fn drop(&mut self) {
        let tasks = std::mem::take(&mut *lock(&self.tasks.0));
        drop(tasks);
    }
}

impl quinn::Runtime for Tasks {
    fn new_timer(&self, at: std::time::Instant) -> Pin<Box<dyn quinn::AsyncTimer>> {
        quinn::TokioRuntime.new_timer(at)
    }

    fn spawn(&self, future: TaskFuture) {
        let task = Arc::new(Task(Mutex::new(Some((future, Waker::noop().clone())))));
        lock(&self.0).push(task.clone());
        quinn::TokioRuntime.spawn(Box::pin(std::future::poll_fn(move |cx| task.poll(Some(cx)))));
    }

    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        quinn::TokioRuntime.wrap_udp_socket(socket)
    }
}

/// A UDP socket that tells when it is closed. Once there is a connection it does not believe that nobody listens at the
/// other end, which may be an attacker's word; who makes one is told.
#[derive(Debug)]
struct Udp {
    socket: UdpSocket,
    state: UdpSocketState,
    /// The system says it once, to whichever call comes first: a read, a write, or who waits for it.
    refused: Option<mpsc::Sender<io::Error>>,
    _open: watch::Sender<()>,
}

impl Udp {
    fn new(
        socket: std::net::UdpSocket,
        refused: Option<mpsc::Sender<io::Error>>,
    ) -> io::Result<(Arc<Self>, watch::Receiver<()>)> {
        // It makes the socket nonblocking, too.
        let state = UdpSocketState::new((&socket).into())?;
        let (open, closed) = watch::channel(());
        let socket = UdpSocket::from_std(socket)?;
        Ok((Arc::new(Self { socket, state, refused, _open: open }), closed))
    }

    fn endpoint(
        self: Arc<Self>,
        server: Option<quinn::ServerConfig>,
        runtime: Arc<dyn quinn::Runtime>,
    ) -> io::Result<quinn::Endpoint> {
        quinn::Endpoint::new_with_abstract_socket(quinn::EndpointConfig::default(), server, self, runtime)
    }

    fn tell(&self, error: io::Error) {
        use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable};
        if let Some(refused) = &self.refused
            && matches!(error.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable)
        {
            let _ = refused.try_send(error);
        }
    }

    /// Resolves when the system says that the other end cannot be reached, and neither a read nor a write met it first.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    async fn refusal(&self) -> io::Error {
        loop {
            if let Err(error) = self.socket.ready(Interest::ERROR).await {
                return error;
            }
            if let Ok(Some(error)) = self.socket.take_error() {
                return error;
            }
            // It was another's: wait for the next.
            let _ = self.socket.try_io(Interest::ERROR, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
        }
    }

    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    async fn refusal(&self) -> io::Error {
        std::future::pending().await
    }
}

impl AsyncUdpSocket for Udp {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Poller { socket: self, writable: None })
    }

    fn try_send(&self, transmit: &quinn::udp::Transmit<'_>) -> io::Result<()> {
        let send = || self.state.try_send((&self.socket).into(), transmit);
        match self.socket.try_io(Interest::WRITABLE, send) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
            // What UDP loses is sent again, and a probe of the path's MTU may be too long.
            Err(error) => {
                self.tell(error);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [io::IoSliceMut<'_>],
        meta: &mut [quinn::udp::RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.socket.poll_recv_ready(cx))?;
            let recv = || self.state.recv((&self.socket).into(), buffers, meta);
            match self.socket.try_io(Interest::READABLE, recv) {
                Ok(count) => return Poll::Ready(Ok(count)),
                Err(error) => self.tell(error),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }
}

/// Waits for room to write, for one of those who share a socket.
struct Poller {
    socket: Arc<Udp>,
    writable: Option<Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>>,
}

impl std::fmt::Debug for Poller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Poller")
    }
}

impl UdpPoller for Poller {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { socket, writable } = &mut *self;
        let waiting = writable.get_or_insert_with(|| {
            let socket = socket.clone();
            Box::pin(async move { socket.socket.writable().await })
        });
        let polled = waiting.as_mut().poll(cx);
        if polled.is_ready() {
            *writable = None;
        }
        polled
    }
}

/// A UDP port that listens.
pub(crate) struct Listening {
    pub(crate) endpoint: quinn::Endpoint,
    /// Fails once the port is free again.
    pub(crate) closed: watch::Receiver<()>,
    /// One more than there are handshakes.
    handshakes: Arc<()>,
    noting: Option<Arc<Asking>>,
}

/// What makes the configuration of a connection whose client has to show a certificate: it notes what was wrong with it.
struct Asking {
    tls: ServerSecurity,
    config: quinn::ServerConfig,
}

impl Listening {
    /// The next client that may begin a handshake.
    pub(crate) async fn accept(&self) -> io::Result<Handshake> {
        loop {
            let incoming =
                self.endpoint.accept().await.ok_or_else(|| io::Error::other("the endpoint is closed"))?;
            let running = Arc::strong_count(&self.handshakes) - 1;
            if running >= MAX_INCOMING {
                let from = incoming.remote_address();
                incoming.ignore();
                return Ok(Handshake {
                    from,
                    incoming: None,
                    running: self.handshakes.clone(),
                    noting: None,
                });
            } else if running >= RETRY_ABOVE && incoming.may_retry() && !incoming.remote_address_validated() {
                // Its client's next packet comes here again, with the token.
                let _ = incoming.retry();
            } else {
                return Ok(Handshake {
                    from: incoming.remote_address(),
                    incoming: Some(incoming),
                    running: self.handshakes.clone(),
                    noting: self.noting.clone(),
                });
            }
        }
    }
}

/// Listens on a UDP port.
pub(crate) fn bind(address: SocketAddr, tls: ServerSecurity, limits: &Limits) -> Result<Listening, Status> {
    let crypto = tls.config(&[tls::ALPN])?;
    let crypto = QuicServerConfig::try_from(crypto).map_err(|error| invalid(error.to_string()))?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    // QUIC gives back the room of streams that have ended an eighth at a time, and one is the connection's own.
    let streams = limits.max_concurrent_streams.saturating_add(1) / 7 * 8 + 8;
    config
        .transport_config(Arc::new(transport_config(limits, streams)))
        .max_incoming(MAX_INCOMING)
        .incoming_buffer_size(INCOMING_BUFFER)
        .incoming_buffer_size_total(INCOMING_BUFFER_TOTAL);
    let noting = tls.asks().then(|| Arc::new(Asking { tls, config: config.clone() }));
    let bound = std::net::UdpSocket::bind(address);
    let endpoint = bound
        .and_then(|socket| Udp::new(socket, None))
        .and_then(|(udp, closed)| Ok((udp.endpoint(Some(config), Arc::new(quinn::TokioRuntime))?, closed)));
    match endpoint {
        Ok((endpoint, closed)) => Ok(Listening { endpoint, closed, handshakes: Arc::default(), noting }),
        Err(error) => Err(Status::from_reason(
            Reason::BIND_FAILED,
            format!("cannot listen on quic://{address}: {error}"),
        )),
    }
}

/// A connection that came in and has not proven who it is.
pub(crate) struct Handshake {
    pub(crate) from: SocketAddr,
    /// None: nobody new is heard.
    incoming: Option<quinn::Incoming>,
    running: Arc<()>,
    noting: Option<Arc<Asking>>,
}

impl Handshake {
    /// Finishes it.
    pub(crate) async fn finish(self) -> io::Result<Guest> {
        let Self { from, incoming, running, noting } = self;
        let Some(incoming) = incoming else {
            let why = format!("{MAX_INCOMING} handshakes of QUIC run on the port");
            return Err(tls::failed(Reason::QUEUE_FULL, why));
        };
        let peer = Peer::new(format!("quic://{from}"));
        let mut noted = None;
        let connecting = match &noting {
            Some(asking) => {
                let (crypto, notes) = asking.tls.noting(&[tls::ALPN]).map_err(io::Error::other)?;
                let crypto = QuicServerConfig::try_from(crypto).map_err(io::Error::other)?;
                noted = Some(notes);
                let mut config = asking.config.clone();
                config.crypto = Arc::new(crypto);
                incoming.accept_with(Arc::new(config))
            }
            None => incoming.accept(),
        };
        let refused = |error| match noted.as_ref().and_then(|noted| noted.refused()) {
            Some(why) => tls::told(&why, "client"),
            None => told(error, "client"),
        };
        let connection = match connecting {
            Ok(connecting) => connecting.await.map_err(refused)?,
            Err(error) => return Err(refused(error)),
        };
        drop(running);
        if protocol(&connection).as_deref() != Some(tls::ALPN) {
            return Err(tls::no_protocol());
        }
        let chain = connection
            .peer_identity()
            .and_then(|chain| chain.downcast::<Vec<CertificateDer<'static>>>().ok());
        let peer = tls::proved(peer, chain.as_ref().map(|chain| chain.as_slice()));
        let control = connection.accept_bi().await.map_err(io::Error::from)?;
        let accept = Some(accepting_next(connection.clone()));
        Ok(Guest::new(Box::new(Quic::new(None, connection, control, accept)), peer))
    }
}

type Opening = BoxFuture<'static, Result<(SendStream, RecvStream), quinn::ConnectionError>>;

fn accepting_next(connection: quinn::Connection) -> Opening {
    Box::pin(async move { connection.accept_bi().await })
}

/// What both agreed to speak.
fn protocol(connection: &quinn::Connection) -> Option<Vec<u8>> {
    connection.handshake_data()?.downcast::<quinn::crypto::rustls::HandshakeData>().ok()?.protocol
}

/// What ended a connection that stood. It is servers that refuse a certificate then.
fn lost(error: quinn::ConnectionError) -> io::Error {
    told(error, "server")
}

/// What ended a connection, or kept it from standing.
fn told(error: quinn::ConnectionError, peer: &str) -> io::Error {
    use quinn::ConnectionError as E;
    // An alert of TLS is told as the second byte of a code (RFC 9001, section 4.8).
    let alert = |code: u64| u8::try_from(code & 0xFF).ok().filter(|_| code >> 8 == 1);
    match &error {
        E::ConnectionClosed(close) => match alert(u64::from(close.error_code)) {
            Some(alert) => tls::told_by_alert(alert.into(), peer),
            None => error.into(),
        },
        // This side's own alert says nothing of its certificate, which nobody refused.
        E::TransportError(own) => match alert(u64::from(own.code)).map(AlertDescription::from) {
            Some(alert @ (AlertDescription::NoApplicationProtocol | AlertDescription::ProtocolVersion)) => {
                tls::told_by_alert(alert, peer)
            }
            Some(AlertDescription::CertificateRequired) if peer == "client" => {
                tls::told(&rustls::Error::NoCertificatesPresented, peer)
            }
            None if !own.reason.starts_with("TLS error") => error.into(),
            _ => tls::failed(Reason::TLS_FAILED, format!("the TLS handshake failed: {}", own.reason)),
        },
        _ => error.into(),
    }
}

/// Connects by QUIC, as its TLS is configured.
pub(crate) struct QuicConnector {
    security: ClientSecurity,
    transport: Arc<quinn::TransportConfig>,
}

impl QuicConnector {
    pub(crate) fn new(security: ClientSecurity, limits: &Limits) -> Self {
        let mut transport = transport_config(limits, 0);
        transport.keep_alive_interval(Some(KEEP_ALIVE));
        Self { security, transport: Arc::new(transport) }
    }
}

impl Connector for QuicConnector {
    fn connect<'a>(&'a self, endpoint: &'a Endpoint) -> BoxFuture<'a, io::Result<Box<dyn Transport>>> {
        Box::pin(async move {
            let name = self.security.name.to_str();
            let addresses = super::socket::addresses(endpoint).await?;
            // It was reached, and is not whom the client looks for: no other address makes that good.
            let ends = |error: &io::Error| status_in(error).is_some();
            race::first(addresses, |address| self.connect_to(address, &name), ends).await
        })
    }
}

impl QuicConnector {
    async fn connect_to(&self, address: SocketAddr, name: &str) -> io::Result<Box<dyn Transport>> {
        let local: SocketAddr = match address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = std::net::UdpSocket::bind(local)?;
        // Only a connected socket is told that nobody listens; elsewhere than on Linux such a one may not name an address
        // when it sends, and only the time limit tells.
        #[cfg(any(target_os = "linux", target_os = "android"))]
        socket.connect(address)?;
        let (tell, mut refused) = mpsc::channel(1);
        let (udp, _) = Udp::new(socket, Some(tell))?;
        let tasks = Arc::new(Tasks::default());
        let endpoint = udp.clone().endpoint(None, tasks.clone())?;
        let own = Own { _endpoint: endpoint.clone(), tasks };
        let (config, noted) = self.security.config(tls::ALPN).map_err(io::Error::other)?;
        let crypto = QuicClientConfig::try_from(config).map_err(io::Error::other)?;
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(self.transport.clone());
        let connecting = endpoint.connect_with(config, address, name).map_err(io::Error::other)?;
        let connection = tokio::select! {
            connected = connecting => connected.map_err(|error| match noted.refused() {
                Some(why) => tls::told(&why, "server"),
                None => told(error, "server"),
            })?,
            error = udp.refusal() => return Err(error),
            Some(error) = refused.recv() => return Err(error),
        };
        if protocol(&connection).as_deref() != Some(tls::ALPN) {
            return Err(tls::no_protocol());
        }
        let control = connection.open_bi().await.map_err(lost)?;
        let mut quic = Quic::new(Some(own), connection, control, None);
        quic.asked = noted.was_asked();
        Ok(Box::new(quic))
    }
}

/// Which streams may go on, told by their wakers to the one driver.
#[derive(Default)]
struct Changed {
    ids: Mutex<Vec<u64>>,
    driver: Mutex<Option<Waker>>,
}

struct StreamWaker {
    id: u64,
    told: AtomicBool,
    changed: Arc<Changed>,
}

impl Wake for StreamWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.told.swap(true, AcqRel) {
            lock(&self.changed.ids).push(self.id);
            if let Some(driver) = &*lock(&self.changed.driver) {
                driver.wake_by_ref();
            }
        }
    }
}

struct Ends {
    send: SendStream,
    recv: RecvStream,
    finished: bool,
    read_ended: bool,
    /// Bytes that still go ahead of other streams'.
    urgent: usize,
    waker: Arc<StreamWaker>,
    /// Resolves when the peer stops reading, which only a writer would learn otherwise.
    stopped: Option<BoxFuture<'static, Result<Option<VarInt>, quinn::StoppedError>>>,
}

struct Quic {
    /// A client's own, which its connection needs.
    own: Option<Own>,
    /// The server asked for a certificate.
    asked: bool,
    connection: quinn::Connection,
    /// The connection's own stream; there until the end.
    control: Option<(SendStream, RecvStream)>,
    accept: Option<Opening>,
    opening: Option<Opening>,
    streams: HashMap<u64, Ends>,
    changed: Arc<Changed>,
    runtime: tokio::runtime::Handle,
}

impl Quic {
    fn new(
        own: Option<Own>,
        connection: quinn::Connection,
        control: (SendStream, RecvStream),
        accept: Option<Opening>,
    ) -> Self {
        // What ends a connection goes first.
        let _ = control.0.set_priority(i32::MAX);
        Self {
            own,
            asked: false,
            connection,
            control: Some(control),
            accept,
            opening: None,
            streams: HashMap::new(),
            changed: Arc::default(),
            runtime: tokio::runtime::Handle::current(),
        }
    }

    fn add(&mut self, id: u64, (send, recv): (SendStream, RecvStream)) {
        let waker = Arc::new(StreamWaker { id, told: AtomicBool::new(false), changed: self.changed.clone() });
        waker.wake_by_ref();
        let ends = Ends { send, recv, finished: false, read_ended: false, urgent: 0, waker, stopped: None };
        self.streams.insert(id, ends);
    }
}

/// The name of our stream for QUIC's: its first bidirectional stream is the connection's, the second call 1.
fn call_id(index: u64) -> u64 {
    (2 * index).saturating_sub(1)
}

fn code(code: VarInt) -> u16 {
    // A code that is none of ours reads as PROTOCOL.
    u16::try_from(code.into_inner()).unwrap_or(1)
}

impl Transport for Quic {
    fn carrier(&self) -> Carrier {
        Carrier::Streams
    }

    fn streams(&mut self) -> Option<&mut dyn Streams> {
        Some(self)
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut ReadBuffer) -> Poll<io::Result<usize>> {
        let Some((_, control)) = &mut self.control else { return Poll::Ready(Ok(0)) };
        match pin!(control.read_chunk(READ_SIZE, true)).poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(None)) => Poll::Ready(Ok(0)),
            Poll::Ready(Ok(Some(chunk))) => {
                let len = chunk.bytes.len();
                into.push(chunk.bytes);
                Poll::Ready(Ok(len))
            }
            Poll::Ready(Err(quinn::ReadError::ConnectionLost(
                quinn::ConnectionError::ApplicationClosed(_),
            ))) => Poll::Ready(Ok(0)),
            Poll::Ready(Err(quinn::ReadError::ConnectionLost(error))) => Poll::Ready(Err(lost(error))),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error.into())),
        }
    }

    fn is_provisional(&self) -> bool {
        self.asked
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let (Some((control, _)), Some(part)) =
            (&mut self.control, parts.iter().find(|part| !part.is_empty()))
        else {
            return Poll::Ready(Ok(0));
        };
        // Whichever of a read and a write comes first has to say why.
        Pin::new(control).poll_write(cx, part).map_err(|error| match error {
            quinn::WriteError::ConnectionLost(error) => lost(error),
            error => error.into(),
        })
    }

    fn poll_close(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.own.is_some() && self.streams.is_empty() {
            // Every call has its answer.
            drop(self.end());
        }
        // Otherwise dropping does it: what was written is still delivered.
        Poll::Ready(Ok(()))
    }
}

/// Closes the connection, and says so, when it is dropped.
struct End {
    connection: quinn::Connection,
    own: Option<Own>,
}

impl Drop for End {
    fn drop(&mut self) {
        self.connection.close(VarInt::from_u32(0), b"");
        if let Some(own) = &self.own {
            own.tasks.run_now();
        }
    }
}

impl Quic {
    fn end(&mut self) -> End {
        End { connection: self.connection.clone(), own: self.own.take() }
    }
}

impl Streams for Quic {
    fn poll_changed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<u64>> {
        match &mut *lock(&self.changed.driver) {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        while let Some(accept) = &mut self.accept
            && let Poll::Ready(accepted) = accept.as_mut().poll(cx)
        {
            let ends = accepted?;
            let id = call_id(ends.0.id().index());
            self.add(id, ends);
            self.accept = Some(accepting_next(self.connection.clone()));
        }
        let mut ids = lock(&self.changed.ids);
        while let Some(id) = ids.pop() {
            if let Some(ends) = self.streams.get(&id) {
                ends.waker.told.store(false, Release);
                return Poll::Ready(Ok(id));
            }
        }
        Poll::Pending
    }

    fn poll_open(&mut self, cx: &mut Context<'_>, stream: u64, priority: Priority) -> Poll<io::Result<()>> {
        let connection = &self.connection;
        let opening = self.opening.get_or_insert_with(|| {
            let connection = connection.clone();
            Box::pin(async move { connection.open_bi().await })
        });
        let ends = std::task::ready!(opening.as_mut().poll(cx))?;
        self.opening = None;
        debug_assert_eq!(call_id(ends.0.id().index()), stream);
        let urgent = if priority == Priority::Critical { URGENT } else { 0 };
        let _ = ends.0.set_priority((urgent > 0).into());
        self.add(stream, ends);
        if let Some(ends) = self.streams.get_mut(&stream) {
            ends.urgent = urgent;
        }
        Poll::Ready(Ok(()))
    }

    fn read(&mut self, stream: u64, into: &mut ReadBuffer) -> StreamIo {
        let Some(ends) = self.streams.get_mut(&stream) else { return StreamIo::Lost };
        let waker = Waker::from(ends.waker.clone());
        let cx = &mut Context::from_waker(&waker);
        if !ends.read_ended {
            match pin!(ends.recv.read_chunk(READ_SIZE, true)).poll(cx) {
                Poll::Pending => {}
                Poll::Ready(Ok(Some(chunk))) => {
                    let len = chunk.bytes.len();
                    into.push(chunk.bytes);
                    return StreamIo::Done(len);
                }
                Poll::Ready(Ok(None)) => {
                    ends.read_ended = true;
                    return StreamIo::End;
                }
                Poll::Ready(Err(quinn::ReadError::Reset(reset))) => {
                    ends.read_ended = true;
                    return StreamIo::Reset(code(reset));
                }
                Poll::Ready(Err(_)) => return StreamIo::Lost,
            }
        }
        // Nothing comes, but the peer may stop listening. A writer learns by itself what is no error.
        let nothing = if ends.read_ended { StreamIo::End } else { StreamIo::Blocked };
        if ends.finished {
            return nothing;
        }
        let stopped = ends.stopped.get_or_insert_with(|| Box::pin(ends.send.stopped()));
        let Poll::Ready(told) = stopped.as_mut().poll(cx) else { return StreamIo::Blocked };
        ends.stopped = Some(Box::pin(std::future::pending()));
        match told {
            Ok(Some(stopped)) if code(stopped) != 0 => StreamIo::Reset(code(stopped)),
            _ => nothing,
        }
    }

    fn write(&mut self, stream: u64, parts: &[IoSlice<'_>]) -> StreamIo {
        let Some(ends) = self.streams.get_mut(&stream) else { return StreamIo::Lost };
        let waker = Waker::from(ends.waker.clone());
        let cx = &mut Context::from_waker(&waker);
        let mut written = 0;
        for part in parts {
            match Pin::new(&mut ends.send).poll_write(cx, part) {
                Poll::Ready(Ok(count)) => {
                    written += count;
                    if count < part.len() {
                        break;
                    }
                }
                _ if written > 0 => break,
                Poll::Pending => return StreamIo::Blocked,
                Poll::Ready(Err(quinn::WriteError::Stopped(stopped))) => {
                    return StreamIo::Reset(code(stopped));
                }
                Poll::Ready(Err(_)) => return StreamIo::Lost,
            }
        }
        if ends.urgent > 0 {
            ends.urgent = ends.urgent.saturating_sub(written);
            if ends.urgent == 0 {
                let _ = ends.send.set_priority(0);
            }
        }
        StreamIo::Done(written)
    }

    fn finish(&mut self, stream: u64) {
        if let Some(ends) = self.streams.get_mut(&stream) {
            ends.finished = true;
            let _ = ends.send.finish();
        }
    }

    fn close(&mut self, stream: u64, code: u16) {
        let Some(mut ends) = self.streams.remove(&stream) else { return };
        let code = VarInt::from(code);
        if !ends.read_ended {
            let _ = ends.recv.stop(code);
        }
        if !ends.finished {
            let _ = ends.send.reset(code);
        }
    }
}

impl Drop for Quic {
    /// QUIC forgets what was not acknowledged when a connection is closed, so the end waits for it a little.
    fn drop(&mut self) {
        let client = self.accept.is_none();
        let end = self.end();
        if client && self.streams.is_empty() {
            return;
        }
        // A stream that is dropped looks finished: none may be before the connection is closed.
        let streams = std::mem::take(&mut self.streams);
        let Some((mut control, receive)) = self.control.take() else { return };
        self.runtime.spawn(async move {
            let answered = streams.is_empty();
            let acknowledged = control.stopped();
            let over = async {
                if answered {
                    // The client has its last answer when it closes.
                    end.connection.closed().await;
                } else {
                    let _ = control.finish();
                    let _ = acknowledged.await;
                }
            };
            let _ = tokio::time::timeout(LINGER, over).await;
            drop(end);
            drop((streams, control, receive));
        });
    }
}
