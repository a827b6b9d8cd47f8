//! tcp:// and unix://, and anything else that tokio reads and writes as bytes.

use std::{
    io::{self, IoSlice, Read},
    pin::{Pin, pin},
    task::{Context, Poll},
};

use std::future::Future;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use crate::{BoxFuture, Connector, Endpoint, ReadBuffer, Transport};

pub(crate) struct Socket<S>(pub(crate) S);

/// What a read past the runtime takes at most; whoever spins waits for little.
const READ_NOW: usize = 4 << 10;

/// Reading past the runtime, which would have to be asked first whether there is anything.
pub(crate) trait ReadNow {
    /// As `read(2)` on a socket that does not block.
    fn read_now(&self, into: &mut [u8]) -> io::Result<usize>;
}

impl ReadNow for tokio::net::TcpStream {
    fn read_now(&self, into: &mut [u8]) -> io::Result<usize> {
        (&*socket2::SockRef::from(self)).read(into)
    }
}

#[cfg(unix)]
impl ReadNow for tokio::net::UnixStream {
    fn read_now(&self, into: &mut [u8]) -> io::Result<usize> {
        (&*socket2::SockRef::from(self)).read(into)
    }
}

impl ReadNow for tokio::io::DuplexStream {
    fn read_now(&self, _into: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl<S: AsyncRead + AsyncWrite + ReadNow + Unpin + Send + 'static> Transport for Socket<S> {
    fn read_now(&mut self, into: &mut ReadBuffer) -> io::Result<usize> {
        let mut room = [0; READ_NOW];
        self.0.read_now(&mut room).inspect(|len| into.put(&room[..*len]))
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut ReadBuffer) -> Poll<io::Result<usize>> {
        // Reading holds no state between polls, so a fresh future for each is the same read.
        pin!(self.0.read_buf(&mut into.bytes)).poll(cx)
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match parts {
            [only] => Pin::new(&mut self.0).poll_write(cx, only),
            parts => Pin::new(&mut self.0).poll_write_vectored(cx, parts),
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

pub(crate) struct Tcp;

/// Connects to the first address that answers, with Nagle's algorithm off.
pub(crate) async fn connect_tcp(authority: &str) -> io::Result<tokio::net::TcpStream> {
    let addresses: Vec<_> = tokio::net::lookup_host(authority)
        .await
        .map_err(|error| io::Error::new(io::ErrorKind::NotFound, format!("{authority}: {error}")))?
        .collect();
    let stream = tokio::net::TcpStream::connect(&addresses[..]).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

impl Connector for Tcp {
    fn connect<'a>(&'a self, endpoint: &'a Endpoint) -> BoxFuture<'a, io::Result<Box<dyn Transport>>> {
        Box::pin(async move {
            let stream = connect_tcp(endpoint.authority()).await?;
            Ok(Box::new(Socket(stream)) as Box<dyn Transport>)
        })
    }
}

#[cfg(unix)]
pub(crate) struct Unix;

#[cfg(unix)]
impl Connector for Unix {
    fn connect<'a>(&'a self, endpoint: &'a Endpoint) -> BoxFuture<'a, io::Result<Box<dyn Transport>>> {
        Box::pin(async move {
            let stream = tokio::net::UnixStream::connect(endpoint.address()).await?;
            Ok(Box::new(Socket(stream)) as Box<dyn Transport>)
        })
    }
}
