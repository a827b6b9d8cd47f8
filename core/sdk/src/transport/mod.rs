//! What carries bytes or whole messages between two peers. The trait is ours, so that a transport can be registered
//! by scheme from outside; one driver loop owns it and is the only caller.

#[cfg(feature = "native")]
pub(crate) mod memory;
#[cfg(feature = "native")]
pub(crate) mod socket;
#[cfg(feature = "websocket")]
pub(crate) mod websocket;

use std::{
    io::{self, IoSlice},
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};

use crate::{BoxFuture, Endpoint, Peer};

/// How a transport delivers: as bytes without borders, or as messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// A byte stream: TCP, Unix sockets.
    Bytes,
    /// Messages that hold whole frames, never a split one: WebSocket.
    Messages,
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
) -> Result<std::sync::Arc<dyn Connector>, valkyrie_protocol::Status> {
    match endpoint.scheme() {
        #[cfg(feature = "native")]
        "tcp" => Ok(std::sync::Arc::new(socket::Tcp)),
        #[cfg(all(feature = "native", unix))]
        "unix" => Ok(std::sync::Arc::new(socket::Unix)),
        #[cfg(feature = "native")]
        "memory" => Ok(std::sync::Arc::new(memory::Memory)),
        #[cfg(feature = "websocket")]
        "ws" => Ok(std::sync::Arc::new(websocket::Ws)),
        scheme => Err(valkyrie_protocol::Status::from_reason(
            valkyrie_protocol::Reason::UNSUPPORTED_SCHEME,
            format!("no transport for the scheme {scheme} of {endpoint}"),
        )),
    }
}
