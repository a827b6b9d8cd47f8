//! Where a server's connections come from: the addresses it binds. Serving them is the server's.
//!
//! The server knows these only by a trait and a pointer to [`bind`], so that a program which serves another transport
//! links none of them: they weigh more than the server itself.

use std::{io, net::SocketAddr, path::PathBuf, time::Duration};

use tokio::net::{TcpListener, TcpStream};
use valkyrie_protocol::{ErrorCode, Limits, Reason, Status};

#[cfg(feature = "quic")]
use crate::transport::quic;
use crate::{
    BoxFuture, Endpoint, Listener, Peer, Security,
    connection::Guest,
    transport::{
        memory::MemoryListener,
        socket::{Socket, prepare},
    },
};
#[cfg(feature = "tls")]
use crate::{
    ReadBuffer,
    tls::{self, ServerTls},
    transport::tls as records,
};

/// How long the end of a server waits for its UDP port to be free.
#[cfg(feature = "quic")]
const PORT_TIMEOUT: Duration = Duration::from_secs(3);

/// A connection that has not said its protocol yet, and becomes one that has.
pub(crate) struct Arriving {
    /// Where it comes from, as an endpoint.
    pub(crate) from: String,
    pub(crate) guest: BoxFuture<'static, io::Result<Guest>>,
}

/// The error of whom left without a byte, as those do who look whether somebody listens.
fn left() -> io::Error {
    io::ErrorKind::UnexpectedEof.into()
}

/// Whether it is [`left`]'s.
pub(crate) fn left_at_once(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof && error.get_ref().is_none()
}

/// What is bound.
pub(crate) trait Bound: Send {
    fn local_addr(&self) -> Option<SocketAddr>;

    fn endpoints(&self) -> Vec<String>;

    /// The next connection. Dropping the future loses none.
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Arriving>>;

    /// Whether the system takes connections before this does: what waits there, with its first calls, is lost with the port.
    fn has_backlog(&self) -> bool {
        false
    }

    /// Ends when the port is free again; `idle` does when the server has no connection left.
    fn close<'a>(self: Box<Self>, idle: BoxFuture<'a, ()>) -> BoxFuture<'a, ()> {
        drop((self, idle));
        Box::pin(std::future::ready(()))
    }
}

/// Whom the transports let in, and what they show.
#[derive(Default)]
pub(crate) struct Doors {
    pub(crate) origins: Vec<String>,
    pub(crate) least: Security,
    /// How long what was sent may lie unacknowledged.
    pub(crate) patience: Option<Duration>,
    #[cfg(feature = "tls")]
    pub(crate) tls: ServerTls,
    /// Set with an identity: a server that has none, as the one inside of the native packages, links no server of TLS.
    #[cfg(feature = "tls")]
    pub(crate) sealing: Option<Sealing>,
}

/// Makes what opens sealed sessions.
#[cfg(feature = "tls")]
pub(crate) type Sealing = fn(&ServerTls) -> Result<Option<Unseal>, Status>;
#[cfg(feature = "tls")]
type Unseal = Box<dyn Fn(Guest) -> BoxFuture<'static, io::Result<Guest>> + Send + Sync>;

impl Doors {
    /// Whether anybody is to prove who it is, or to be told in secret.
    pub(crate) fn has_credentials(&self) -> bool {
        #[cfg(feature = "tls")]
        if self.tls.identity.is_some() {
            return true;
        }
        self.least > Security::Insecure
    }

    /// What each connection passes, whatever carried it.
    pub(crate) fn doorman(&self) -> Result<Doorman, Status> {
        let invalid = |message| Err(Status::from_reason(Reason::INVALID_CONFIGURATION, message));
        #[cfg(feature = "tls")]
        {
            if self.least > Security::Insecure && self.tls.identity.is_none() {
                return invalid(
                    "min_security asks for TLS, and there is no certificate; call .identity(certificates, key)",
                );
            }
            if self.least == Security::Mtls && self.tls.authorities.is_none() {
                return invalid("min_security asks for client certificates; call .client_authorities(pem)");
            }
            let unseal = match self.sealing {
                Some(sealing) => sealing(&self.tls)?,
                None => None,
            };
            Ok(Doorman { least: self.least, unseal })
        }
        #[cfg(not(feature = "tls"))]
        match self.least {
            Security::Insecure => Ok(Doorman { least: self.least }),
            _ => invalid("min_security asks for TLS, which this build is without"),
        }
    }
}

/// Opens sealed sessions, and turns away what is not protected enough.
pub(crate) struct Doorman {
    least: Security,
    #[cfg(feature = "tls")]
    unseal: Option<Unseal>,
}

impl Doorman {
    pub(crate) async fn admit(&self, arriving: BoxFuture<'static, io::Result<Guest>>) -> io::Result<Guest> {
        let guest = arriving.await?;
        #[cfg(feature = "tls")]
        let guest = match &self.unseal {
            Some(unseal) if guest.refused.is_none() => unseal(guest).await?,
            _ => guest,
        };
        Ok(match self.least > Security::Insecure && !guest.peer.encrypted && guest.refused.is_none() {
            true => refused(guest),
            false => guest,
        })
    }
}

/// Tells a peer that it is to encrypt what it says.
fn refused(guest: Guest) -> Guest {
    let why = "this port takes nothing that is not encrypted: use tls:// or wss://, or a sealed session";
    Guest { refused: Some((ErrorCode::TLS_REQUIRED, why)), ..guest }
}

/// See [`Sealing`].
#[cfg(feature = "tls")]
pub(crate) fn sealing(said: &ServerTls) -> Result<Option<Unseal>, Status> {
    let Some(security) = said.build()? else { return Ok(None) };
    let config = std::sync::Arc::new(security.config(&[tls::ALPN_SEALED])?);
    Ok(Some(Box::new(move |guest| Box::pin(unsealed(guest, config.clone())))))
}

/// A sealed session begins as TLS does, on whatever carries it.
#[cfg(feature = "tls")]
async fn unsealed(mut guest: Guest, config: std::sync::Arc<rustls::ServerConfig>) -> io::Result<Guest> {
    if guest.read.bytes.is_empty() {
        let first = std::future::poll_fn(|cx| guest.transport.poll_read(cx, &mut guest.read)).await?;
        if first == 0 {
            return Err(left());
        }
    }
    if guest.read.bytes.first() != Some(&TLS_HANDSHAKE) {
        return Ok(guest);
    }
    let Guest { transport, peer, read, .. } = guest;
    let sealed = records::accept(transport, read, config).await?;
    let peer = tls::proved(peer, sealed.chain());
    Ok(Guest::new(Box::new(sealed), peer))
}

/// Binds an endpoint.
pub(crate) type Bind =
    for<'a> fn(&'a str, &'a Limits, &'a Doors) -> BoxFuture<'a, Result<Box<dyn Bound>, Status>>;

/// Binds an endpoint of one of our transports.
pub(crate) fn bind<'a>(
    endpoint: &'a str,
    limits: &'a Limits,
    doors: &'a Doors,
) -> BoxFuture<'a, Result<Box<dyn Bound>, Status>> {
    Box::pin(async move {
        let endpoint = Endpoint::parse(endpoint)?;
        let failed = |error: io::Error| {
            let hint = match error.kind() {
                io::ErrorKind::PermissionDenied if endpoint.scheme() != "unix" => {
                    "; ports below 1024 take the right to bind them (CAP_NET_BIND_SERVICE), others do not"
                }
                _ => "",
            };
            Status::from_reason(Reason::BIND_FAILED, format!("cannot listen on {endpoint}: {error}{hint}"))
        };
        // Only some transports ask.
        let _ = (limits, doors);
        let bound: Box<dyn Bound> = match endpoint.scheme() {
            "tcp" | "ws" | "tls" | "wss" => {
                let is_tls = matches!(endpoint.scheme(), "tls" | "wss");
                #[cfg(not(feature = "tls"))]
                if is_tls {
                    return Err(unsupported(&endpoint));
                }
                #[cfg(feature = "tls")]
                let tls = match is_tls {
                    true => Some(TlsDoor {
                        config: doors.security(&endpoint)?.config(TLS_SPOKEN)?.into(),
                        handshakes: std::sync::Arc::new(tokio::sync::Semaphore::new(MAX_HANDSHAKES)),
                    }),
                    false => None,
                };
                let listener = TcpListener::bind(endpoint.authority()).await.map_err(failed)?;
                let address = listener.local_addr().map_err(failed)?;
                Box::new(Tcp {
                    listener,
                    address,
                    #[cfg(feature = "tls")]
                    tls,
                    #[cfg(feature = "websocket")]
                    origins: doors.origins.as_slice().into(),
                    patience: doors.patience,
                })
            }
            #[cfg(unix)]
            "unix" => {
                let path = PathBuf::from(endpoint.address());
                let listener = crate::shared::bind_unix(&path).and_then(tokio::net::UnixListener::from_std);
                let listener = listener.map_err(failed)?;
                Box::new(Unix { listener, path })
            }
            #[cfg(feature = "quic")]
            "quic" => {
                let tls = doors.security(&endpoint)?;
                let mut addresses = tokio::net::lookup_host(endpoint.authority()).await.map_err(failed)?;
                let address = addresses.next().ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
                let listening = quic::bind(address, tls, limits)?;
                let address = listening.endpoint.local_addr().map_err(failed)?;
                Box::new(Quic { listening, address })
            }
            "memory" => {
                let listener: Box<dyn Listener> =
                    Box::new(MemoryListener::bind(endpoint.address()).map_err(failed)?);
                Box::new(listener)
            }
            _ => return Err(unsupported(&endpoint)),
        };
        Ok(bound)
    })
}

fn unsupported(endpoint: &Endpoint) -> Status {
    Status::from_reason(
        Reason::UNSUPPORTED_SCHEME,
        format!("a server cannot listen on the scheme {} of {endpoint}", endpoint.scheme()),
    )
}

#[cfg(feature = "tls")]
impl Doors {
    fn security(&self, endpoint: &Endpoint) -> Result<tls::ServerSecurity, Status> {
        self.tls.build()?.ok_or_else(|| {
            Status::from_reason(
                Reason::INVALID_CONFIGURATION,
                format!("{endpoint} needs a certificate; call .identity(certificates, key)"),
            )
        })
    }
}

/// A transport from outside: its connections have said who they are.
impl Bound for Box<dyn Listener> {
    fn local_addr(&self) -> Option<SocketAddr> {
        self.as_ref().local_addr()
    }

    fn endpoints(&self) -> Vec<String> {
        vec![self.as_ref().endpoint()]
    }

    fn accept(&mut self) -> BoxFuture<'_, io::Result<Arriving>> {
        Box::pin(async move {
            let accepted = std::future::poll_fn(|cx| self.as_mut().poll_accept(cx)).await?;
            let from = accepted.1.endpoint.clone();
            Ok(Arriving { from, guest: Box::pin(async { Ok(Guest::new(accepted.0, accepted.1)) }) })
        })
    }
}

/// The first byte of a TLS connection: a record of the handshake (RFC 8446, section 5.1).
#[cfg(feature = "tls")]
const TLS_HANDSHAKE: u8 = 0x16;
/// What may be spoken over it.
#[cfg(feature = "tls")]
const TLS_SPOKEN: &[&[u8]] = &[
    tls::ALPN,
    #[cfg(feature = "websocket")]
    tls::ALPN_HTTP,
];
/// TLS handshakes at once on one port, each of which costs a signature; others wait.
#[cfg(feature = "tls")]
const MAX_HANDSHAKES: usize = 256;
/// How long they do, of the 5 s that a newcomer has.
#[cfg(feature = "tls")]
const HANDSHAKE_WAIT: Duration = Duration::from_secs(4);

struct Tcp {
    listener: TcpListener,
    address: SocketAddr,
    /// A port of TLS, and of nothing else.
    #[cfg(feature = "tls")]
    tls: Option<TlsDoor>,
    #[cfg(feature = "websocket")]
    origins: std::sync::Arc<[String]>,
    patience: Option<Duration>,
}

impl Bound for Tcp {
    fn local_addr(&self) -> Option<SocketAddr> {
        Some(self.address)
    }

    fn endpoints(&self) -> Vec<String> {
        #[cfg(feature = "tls")]
        let is_tls = self.tls.is_some();
        #[cfg(not(feature = "tls"))]
        let is_tls = false;
        let schemes = if is_tls { ["tls", "wss"] } else { ["tcp", "ws"] };
        let known = if cfg!(feature = "websocket") { 2 } else { 1 };
        schemes[..known].iter().map(|scheme| format!("{scheme}://{}", self.address)).collect()
    }

    fn has_backlog(&self) -> bool {
        true
    }

    fn accept(&mut self) -> BoxFuture<'_, io::Result<Arriving>> {
        Box::pin(async {
            let (stream, from) = self.listener.accept().await?;
            let door = Door {
                #[cfg(feature = "tls")]
                tls: self.tls.clone(),
                #[cfg(feature = "websocket")]
                origins: self.origins.clone(),
                patience: self.patience,
            };
            #[cfg(feature = "tls")]
            let is_tls = door.tls.is_some();
            #[cfg(not(feature = "tls"))]
            let is_tls = false;
            let scheme = if is_tls { "tls" } else { "tcp" };
            Ok(Arriving { from: format!("{scheme}://{from}"), guest: Box::pin(door.pass(stream, from)) })
        })
    }
}

#[cfg(feature = "tls")]
#[derive(Clone)]
struct TlsDoor {
    config: std::sync::Arc<rustls::ServerConfig>,
    handshakes: std::sync::Arc<tokio::sync::Semaphore>,
}

/// What a TCP connection is asked, which its first byte answers.
struct Door {
    #[cfg(feature = "tls")]
    tls: Option<TlsDoor>,
    #[cfg(feature = "websocket")]
    origins: std::sync::Arc<[String]>,
    patience: Option<Duration>,
}

impl Door {
    async fn pass(self, stream: TcpStream, from: SocketAddr) -> io::Result<Guest> {
        prepare(&stream, self.patience)?;
        let mut first = [0];
        if stream.peek(&mut first).await? == 0 {
            return Err(left());
        }
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            return match first[0] {
                TLS_HANDSHAKE => self.secure(tls, stream, from).await,
                #[cfg(feature = "websocket")]
                b'G' => Err(crate::transport::websocket::ask_for_tls(stream).await),
                _ => Ok(refused(Guest::new(
                    Box::new(Socket::Attached(stream)),
                    Peer::new(format!("tcp://{from}")),
                ))),
            };
        }
        #[cfg(feature = "websocket")]
        if first[0] == b'G' {
            let peer = Peer::new(format!("ws://{from}"));
            return Ok(Guest::new(crate::transport::websocket::accept(stream, &self.origins).await?, peer));
        }
        Ok(Guest::new(Box::new(Socket::Attached(stream)), Peer::new(format!("tcp://{from}"))))
    }

    #[cfg(feature = "tls")]
    async fn secure(&self, tls: &TlsDoor, stream: TcpStream, from: SocketAddr) -> io::Result<Guest> {
        let Ok(running) = tokio::time::timeout(HANDSHAKE_WAIT, tls.handshakes.acquire()).await else {
            let why = format!("{MAX_HANDSHAKES} handshakes of TLS run on the port");
            return Err(tls::failed(Reason::QUEUE_FULL, why));
        };
        let running = running.map_err(io::Error::other)?;
        let socket = Box::new(Socket::Attached(stream));
        let secured = records::accept(socket, ReadBuffer::default(), tls.config.clone()).await?;
        drop(running);
        let peer = tls::proved(Peer::new(format!("tls://{from}")), secured.chain());
        #[cfg(feature = "websocket")]
        if secured.alpn() == tls::ALPN_HTTP {
            let peer = Peer { endpoint: format!("wss://{from}"), ..peer };
            let stream = crate::transport::websocket::Io::new(secured);
            return Ok(Guest::new(crate::transport::websocket::accept(stream, &self.origins).await?, peer));
        }
        Ok(Guest::new(Box::new(secured), peer))
    }
}

#[cfg(unix)]
struct Unix {
    listener: tokio::net::UnixListener,
    path: PathBuf,
}

#[cfg(unix)]
impl Bound for Unix {
    fn local_addr(&self) -> Option<SocketAddr> {
        None
    }

    fn endpoints(&self) -> Vec<String> {
        vec![format!("unix://{}", self.path.display())]
    }

    fn has_backlog(&self) -> bool {
        true
    }

    fn accept(&mut self) -> BoxFuture<'_, io::Result<Arriving>> {
        Box::pin(async {
            let (stream, _) = self.listener.accept().await?;
            let uid = stream.peer_cred().ok().map(|cred| cred.uid());
            let peer = Peer { uid, ..Peer::new("unix:") };
            let from = peer.endpoint.clone();
            let guest = Guest::new(Box::new(Socket::Attached(stream)), peer);
            Ok(Arriving { from, guest: Box::pin(async { Ok(guest) }) })
        })
    }
}

#[cfg(unix)]
impl Drop for Unix {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(feature = "quic")]
struct Quic {
    listening: quic::Listening,
    address: SocketAddr,
}

#[cfg(feature = "quic")]
impl Bound for Quic {
    fn local_addr(&self) -> Option<SocketAddr> {
        Some(self.address)
    }

    fn endpoints(&self) -> Vec<String> {
        vec![format!("quic://{}", self.address)]
    }

    fn accept(&mut self) -> BoxFuture<'_, io::Result<Arriving>> {
        Box::pin(async {
            let handshake = self.listening.accept().await?;
            let from = format!("quic://{}", handshake.from);
            Ok(Arriving { from, guest: Box::pin(handshake.finish()) })
        })
    }

    /// A UDP port stays while connections do, and a little longer: whoever knocks there is told at once.
    fn close<'a>(self: Box<Self>, idle: BoxFuture<'a, ()>) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let mut closed = self.listening.closed.clone();
            refuse_until_idle(&self.listening.endpoint, idle).await;
            drop(self);
            let _ = tokio::time::timeout(PORT_TIMEOUT, closed.changed()).await;
        })
    }
}

#[cfg(feature = "quic")]
async fn refuse_until_idle(quic: &quinn::Endpoint, idle: BoxFuture<'_, ()>) {
    let idle = async {
        idle.await;
        quic.wait_idle().await;
    };
    tokio::pin!(idle);
    loop {
        tokio::select! {
            biased;
            () = &mut idle => return,
            incoming = quic.accept() => match incoming {
                Some(incoming) => incoming.refuse(),
                None => return,
            },
        }
    }
}
