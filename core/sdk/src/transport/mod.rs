//! What carries bytes or whole messages between two peers. The trait is ours, so that a transport can be registered
//! by scheme from outside; one driver loop owns it and is the only caller.

#[cfg(feature = "native")]
pub(crate) mod memory;
#[cfg(feature = "quic")]
pub(crate) mod quic;
#[cfg(feature = "native")]
mod race;
#[cfg(feature = "native")]
pub(crate) mod socket;
#[cfg(feature = "tls")]
pub(crate) mod tls;
#[cfg(feature = "websocket")]
pub(crate) mod websocket;

use std::{
    io::{self, IoSlice},
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use valkyrie_protocol::{Priority, Reason, Status};

use crate::{BoxFuture, Endpoint, Peer, connection::Terms};

/// How a transport delivers: as bytes without borders, or as messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// A byte stream: TCP, Unix sockets.
    Bytes,
    /// Messages that hold whole frames, never a split one: WebSocket.
    Messages,
    /// A byte stream for the connection's frames, and one for each call, by [`Transport::streams`]: QUIC.
    Streams,
}

/// One transport link. Dropping it closes it.
pub trait Transport: Send + 'static {
    /// How it delivers. Default: bytes.
    fn carrier(&self) -> Carrier {
        Carrier::Bytes
    }

    /// Reads what is there into `into`: the number of bytes, 0 at the end.
    ///
    /// # Errors
    /// Whatever ends the link; the driver closes the connection.
    fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut ReadBuffer) -> Poll<io::Result<usize>>;

    /// As [`Transport::poll_read`] without waiting, for a driver that spins: `WouldBlock` when nothing is there. Default:
    /// `Unsupported`, and the driver sleeps instead.
    ///
    /// # Errors
    /// Whatever ends the link, beside those two.
    fn read_now(&mut self, into: &mut ReadBuffer) -> io::Result<usize> {
        let _ = into;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Writes from `parts`, in order: how many bytes were taken. A message carrier takes all of them as one message
    /// or is pending.
    ///
    /// # Errors
    /// Whatever ends the link.
    fn poll_write(&mut self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>>;

    /// Brings what was written on its way. Default: nothing to do.
    ///
    /// # Errors
    /// Whatever ends the link.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let _ = cx;
        Poll::Ready(Ok(()))
    }

    /// Ends the writing direction.
    ///
    /// # Errors
    /// Whatever ends the link.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// About how many bytes were read of a message that is not whole, when the carrier is [`Carrier::Messages`]: what
    /// never becomes whole has a limit of time. Default: 0.
    fn unfinished(&self) -> usize {
        0
    }

    /// Whether the peer may still refuse the connection, which its first word tells: it asked for a certificate. Default:
    /// false.
    fn is_provisional(&self) -> bool {
        false
    }

    /// No call is open and nothing is to be done: room that is kept for speed may be given back. Default: nothing.
    fn rest(&mut self) {}

    /// The streams of calls, when the carrier is [`Carrier::Streams`]. Default: none.
    fn streams(&mut self) -> Option<&mut dyn Streams> {
        None
    }

    /// The link as one that a thread may poll, when it is a socket. Default: none.
    fn pollable(&mut self) -> Option<&mut dyn Pollable> {
        None
    }
}

/// A socket that leaves the runtime's poller while a thread polls it ([`crate::Lead`]). While it is detached, reads and
/// writes ask nobody: they are pending until the thread has said what its poll told.
pub trait Pollable: Send {
    /// What to poll.
    fn descriptor(&self) -> i32;

    /// Leaves the poller.
    ///
    /// # Errors
    /// Whatever ends the link.
    fn detach(&mut self) -> io::Result<()>;

    /// Goes back to the poller of the runtime that is current.
    ///
    /// # Errors
    /// Whatever ends the link.
    fn attach(&mut self) -> io::Result<()>;

    /// While detached: the descriptor is readable.
    fn set_readable(&mut self);

    /// While detached: a write found no room, and the descriptor is to be polled for it.
    fn is_full(&self) -> bool;
}

/// The streams of a carrier that multiplexes. Each is named by the id of its call; the transport itself is stream 0.
/// Each direction of a stream arrives in order and on its own, and is controlled by the carrier.
pub trait Streams: Send {
    /// A stream that the peer opened, or one that said [`StreamIo::Blocked`] and may go on.
    ///
    /// # Errors
    /// Whatever ends the link.
    fn poll_changed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<u64>>;

    /// Opens the next stream of this side: its ids are 1, 3, 5 and so on.
    ///
    /// # Errors
    /// Whatever ends the link.
    fn poll_open(&mut self, cx: &mut Context<'_>, stream: u64, priority: Priority) -> Poll<io::Result<()>>;

    /// Reads what is there into `into`.
    fn read(&mut self, stream: u64, into: &mut ReadBuffer) -> StreamIo;

    /// Writes from `parts`, in order.
    fn write(&mut self, stream: u64, parts: &[IoSlice<'_>]) -> StreamIo;

    /// Ends the writing direction: what was written is still delivered.
    fn finish(&mut self, stream: u64);

    /// Forgets a stream: a direction that has not ended is reset with `code`.
    fn close(&mut self, stream: u64, code: u16);
}

/// What became of one read or write of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamIo {
    /// That many bytes.
    Done(usize),
    /// None now; [`Streams::poll_changed`] names the stream when there may be.
    Blocked,
    /// The peer ended its direction; reads only.
    End,
    /// The peer reset the stream, or stopped reading it, with this code.
    Reset(u16),
    /// The link is gone, which the transport itself tells too.
    Lost,
}

/// Makes connections for a scheme.
pub trait Connector: Send + Sync + 'static {
    /// Connects to `endpoint`. The client bounds the time.
    fn connect<'a>(&'a self, endpoint: &'a Endpoint) -> BoxFuture<'a, io::Result<Box<dyn Transport>>>;
}

/// Accepts connections.
pub trait Listener: Send + 'static {
    /// The next connection and who it is from.
    ///
    /// # Errors
    /// A failed accept; the server waits and goes on.
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Box<dyn Transport>, Peer)>>;

    /// Where it listens, as an endpoint that a client can use.
    fn endpoint(&self) -> String;

    /// The socket address, when there is one. Default: none.
    fn local_addr(&self) -> Option<std::net::SocketAddr> {
        None
    }
}

/// The buffer that a connection reads into. Frames are sliced out of it without a copy.
#[derive(Debug, Default)]
pub struct ReadBuffer {
    pub(crate) bytes: BytesMut,
}

impl ReadBuffer {
    /// Appends a copy of `bytes`.
    pub fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Appends owned bytes; without a copy when the buffer is empty and nobody else holds them.
    pub fn push(&mut self, bytes: Bytes) {
        if self.bytes.is_empty() {
            match bytes.try_into_mut() {
                Ok(bytes) => self.bytes = bytes,
                Err(bytes) => self.bytes.extend_from_slice(&bytes),
            }
        } else {
            self.bytes.extend_from_slice(&bytes);
        }
    }
}

/// The built-in connector of an endpoint's scheme.
pub(crate) fn connector(
    endpoint: &Endpoint,
    #[cfg(feature = "tls")] tls: &crate::tls::ClientTls,
    terms: &Terms,
) -> Result<Arc<dyn Connector>, Status> {
    // Only some carriers ask.
    let patience = terms.patience();
    let _ = patience;
    #[cfg(feature = "tls")]
    let _ = tls;
    match endpoint.scheme() {
        #[cfg(feature = "native")]
        "tcp" => Ok(Arc::new(socket::Tcp { patience })),
        #[cfg(all(feature = "native", unix))]
        "unix" => Ok(Arc::new(socket::Unix)),
        #[cfg(feature = "native")]
        "memory" => Ok(Arc::new(memory::Memory)),
        #[cfg(feature = "websocket")]
        "ws" => Ok(Arc::new(websocket::Ws { patience })),
        #[cfg(all(feature = "native", feature = "tls"))]
        "tls" => Ok(Arc::new(tls::TlsConnector { security: tls.build(endpoint)?, patience })),
        #[cfg(all(feature = "websocket", feature = "tls"))]
        "wss" => Ok(Arc::new(websocket::Wss { security: tls.build(endpoint)?, patience })),
        #[cfg(feature = "quic")]
        "quic" => Ok(Arc::new(quic::QuicConnector::new(tls.build(endpoint)?, &terms.limits))),
        scheme => Err(Status::from_reason(
            Reason::UNSUPPORTED_SCHEME,
            format!("no transport for the scheme {scheme} of {endpoint}"),
        )),
    }
}
