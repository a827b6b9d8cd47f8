//! Where a server's connections come from: the addresses it binds. Serving them is the server's.
//!
//! The server knows these only by a trait and a pointer to [`bind`], so that a program which serves another transport
//! links none of them: they weigh more than the server itself.

use std::{io, net::SocketAddr, path::PathBuf};

use tokio::net::TcpListener;
use valkyrie_protocol::{Limits, Reason, Status};

#[cfg(feature = "quic")]
use crate::transport::quic::{self, Identity};
use crate::{
    BoxFuture, Endpoint, Listener, Peer, Transport,
    transport::{memory::MemoryListener, socket::Socket},
};

/// How long the end of a server waits for its UDP port to be free.
#[cfg(feature = "quic")]
const PORT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(3);

/// A connection that has not said its protocol yet, and becomes one that has.
pub(crate) type Arriving = BoxFuture<'static, io::Result<(Box<dyn Transport>, Peer)>>;

/// What is bound.
pub(crate) trait Bound: Send {
    fn local_addr(&self) -> Option<SocketAddr>;

    fn endpoints(&self) -> Vec<String>;

    /// The next connection. Dropping the future loses none.
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Arriving>>;

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
    #[cfg(feature = "quic")]
    pub(crate) identity: Option<Identity>,
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
            Status::from_reason(Reason::BIND_FAILED, format!("cannot listen on {endpoint}: {error}"))
        };
        // Only some transports ask.
        let _ = (limits, doors);
        let bound: Box<dyn Bound> = match endpoint.scheme() {
            "tcp" | "ws" => {
                let listener = TcpListener::bind(endpoint.authority()).await.map_err(failed)?;
                let address = listener.local_addr().map_err(failed)?;
                Box::new(Tcp {
                    listener,
                    address,
                    #[cfg(feature = "websocket")]
                    origins: doors.origins.as_slice().into(),
                })
            }
            #[cfg(unix)]
            "unix" => {
                let path = PathBuf::from(endpoint.address());
                let listener = bind_unix(&path).map_err(failed)?;
                Box::new(Unix { listener, path })
            }
            #[cfg(feature = "quic")]
            "quic" => {
                let identity = doors.identity.as_ref().ok_or_else(|| {
                    Status::from_reason(
                        Reason::INVALID_CONFIGURATION,
                        format!("{endpoint} needs a certificate; call .identity(certificates, key)"),
                    )
                })?;
                let mut addresses = tokio::net::lookup_host(endpoint.authority()).await.map_err(failed)?;
                let address = addresses.next().ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
                let listening = quic::bind(address, identity, limits)?;
                let address = listening.endpoint.local_addr().map_err(failed)?;
                Box::new(Quic { listening, address })
            }
            "memory" => {
                let listener: Box<dyn Listener> =
                    Box::new(MemoryListener::bind(endpoint.address()).map_err(failed)?);
                Box::new(listener)
            }
            scheme => {
                return Err(Status::from_reason(
                    Reason::UNSUPPORTED_SCHEME,
                    format!("a server cannot listen on the scheme {scheme} of {endpoint}"),
                ));
            }
        };
        Ok(bound)
    })
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
            Ok(Box::pin(async { Ok(accepted) }) as Arriving)
        })
    }
}

struct Tcp {
    listener: TcpListener,
    address: SocketAddr,
    #[cfg(feature = "websocket")]
    origins: std::sync::Arc<[String]>,
}

impl Bound for Tcp {
    fn local_addr(&self) -> Option<SocketAddr> {
        Some(self.address)
    }

    fn endpoints(&self) -> Vec<String> {
        let schemes: &[&str] = if cfg!(feature = "websocket") { &["tcp", "ws"] } else { &["tcp"] };
        schemes.iter().map(|scheme| format!("{scheme}://{}", self.address)).collect()
    }

    fn accept(&mut self) -> BoxFuture<'_, io::Result<Arriving>> {
        Box::pin(async {
            let (stream, from) = self.listener.accept().await?;
            #[cfg(feature = "websocket")]
            let origins = self.origins.clone();
            Ok(Box::pin(async move {
                stream.set_nodelay(true)?;
                let mut first = [0];
                if stream.peek(&mut first).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                #[cfg(feature = "websocket")]
                if first[0] == b'G' {
                    let peer = Peer::new(format!("ws://{from}"));
                    return Ok((crate::transport::websocket::accept(stream, &origins).await?, peer));
                }
                let peer = Peer::new(format!("tcp://{from}"));
                Ok((Box::new(Socket::Attached(stream)) as Box<dyn Transport>, peer))
            }) as Arriving)
        })
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

    fn accept(&mut self) -> BoxFuture<'_, io::Result<Arriving>> {
        Box::pin(async {
            let (stream, _) = self.listener.accept().await?;
            let uid = stream.peer_cred().ok().map(|cred| cred.uid());
            let peer = Peer { uid, ..Peer::new("unix:") };
            Ok(Box::pin(async { Ok((Box::new(Socket::Attached(stream)) as Box<dyn Transport>, peer)) })
                as Arriving)
        })
    }
}

#[cfg(unix)]
impl Drop for Unix {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Binds a Unix socket of mode 0600. A socket that nobody listens on any more is replaced; anything else at the path
/// is left alone.
#[cfg(unix)]
fn bind_unix(path: &std::path::Path) -> io::Result<tokio::net::UnixListener> {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    if let Ok(found) = std::fs::symlink_metadata(path) {
        if !found.file_type().is_socket() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the path exists and is not a socket"));
        }
        match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => return Err(io::Error::new(io::ErrorKind::AddrInUse, "another server listens there")),
            Err(_) => std::fs::remove_file(path)?,
        }
    }
    let listener = tokio::net::UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
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
            Ok(Box::pin(handshake.finish()) as Arriving)
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
