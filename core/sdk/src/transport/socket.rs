//! tcp:// and unix://, polled by the runtime or by a thread of their own.

use std::{
    future::Future,
    io::{self, IoSlice, Read},
    net::SocketAddr,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::BytesMut;
use socket2::SockRef;
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, Interest},
    net::TcpStream,
};

use super::{Pollable, race};
use crate::{BoxFuture, Connector, Endpoint, ReadBuffer, Transport};

/// What a read past the runtime takes at most; whoever spins waits for little.
const READ_NOW: usize = 4 << 10;
/// What a read of a detached socket takes at least and at most. It is filled with zeros before.
const READ_LEAST: usize = 4 << 10;
const READ_MOST: usize = 64 << 10;

/// Not to end the process where nobody reads any more: `MSG_NOSIGNAL`. Apple's sockets have an option, which is set.
const NO_SIGNAL: i32 = if cfg!(any(target_os = "linux", target_os = "android")) { 0x4000 } else { 0 };

/// A socket of tokio's.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send + Sized + 'static {
    fn socket(&self) -> SockRef<'_>;
    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    fn try_write(&self, write: impl FnOnce() -> io::Result<usize>) -> io::Result<usize>;
    /// Off the runtime's poller.
    fn detach(self) -> io::Result<socket2::Socket>;
    /// Onto the poller of the current runtime.
    fn attach(socket: socket2::Socket) -> io::Result<Self>;
}

macro_rules! stream {
    ($type:ty) => {
        impl Stream for $type {
            fn socket(&self) -> SockRef<'_> {
                SockRef::from(self)
            }

            fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.poll_write_ready(cx)
            }

            fn try_write(&self, write: impl FnOnce() -> io::Result<usize>) -> io::Result<usize> {
                self.try_io(Interest::WRITABLE, write)
            }

            fn detach(self) -> io::Result<socket2::Socket> {
                Ok(self.into_std()?.into())
            }

            fn attach(socket: socket2::Socket) -> io::Result<Self> {
                Self::from_std(socket.into())
            }
        }
    };
}

stream!(TcpStream);
#[cfg(unix)]
stream!(UnixStream);

/// A socket, wherever it is polled.
pub(crate) enum Socket<S> {
    Attached(S),
    Detached(Detached),
    /// It went from the one to the other and did not arrive.
    Lost,
}

/// A socket that a thread polls. It does not block.
pub(crate) struct Detached {
    socket: socket2::Socket,
    /// There may be something to read.
    readable: bool,
    /// A write found no room.
    full: bool,
    read_size: usize,
}

fn lost() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the socket could not be polled")
}

impl Detached {
    fn poll_read(&mut self, into: &mut BytesMut) -> Poll<io::Result<usize>> {
        if !self.readable {
            return Poll::Pending;
        }
        let start = into.len();
        let room = (into.capacity() - start).min(self.read_size);
        into.resize(start + room, 0);
        let read = (&self.socket).read(&mut into[start..]);
        into.truncate(start + *read.as_ref().unwrap_or(&0));
        match read {
            Ok(count) => {
                if count == self.read_size {
                    self.read_size = (count * 2).min(READ_MOST);
                } else if count < self.read_size / 4 {
                    self.read_size = (self.read_size / 2).max(READ_LEAST);
                }
                // Less than there is room for is all that there was.
                self.readable = count == room;
                Poll::Ready(Ok(count))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                Poll::Pending
            }
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    fn poll_write(&mut self, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let written = self.socket.send_vectored_with_flags(parts, NO_SIGNAL);
        self.full = matches!(&written, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        if self.full { Poll::Pending } else { Poll::Ready(written) }
    }
}

impl<S: Stream> Transport for Socket<S> {
    fn read_now(&mut self, into: &mut ReadBuffer) -> io::Result<usize> {
        let mut room = [0; READ_NOW];
        let len = match self {
            Self::Attached(stream) => (&*stream.socket()).read(&mut room)?,
            Self::Detached(detached) => (&detached.socket).read(&mut room)?,
            Self::Lost => return Err(lost()),
        };
        into.put(&room[..len]);
        Ok(len)
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut ReadBuffer) -> Poll<io::Result<usize>> {
        match self {
            // Reading holds no state between polls, so a fresh future for each is the same read.
            Self::Attached(stream) => pin!(stream.read_buf(&mut into.bytes)).poll(cx),
            Self::Detached(detached) => detached.poll_read(&mut into.bytes),
            Self::Lost => Poll::Ready(Err(lost())),
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self {
            Self::Attached(stream) => loop {
                ready!(stream.poll_writable(cx))?;
                match stream.try_write(|| stream.socket().send_vectored_with_flags(parts, NO_SIGNAL)) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    written => return Poll::Ready(written),
                }
            },
            Self::Detached(detached) => detached.poll_write(parts),
            Self::Lost => Poll::Ready(Err(lost())),
        }
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Attached(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Detached(detached) => Poll::Ready(detached.socket.shutdown(std::net::Shutdown::Write)),
            Self::Lost => Poll::Ready(Ok(())),
        }
    }

    #[cfg(unix)]
    fn pollable(&mut self) -> Option<&mut dyn Pollable> {
        Some(self)
    }
}

#[cfg(unix)]
impl<S: Stream> Pollable for Socket<S> {
    fn descriptor(&self) -> i32 {
        use std::os::fd::AsRawFd;
        match self {
            Self::Attached(stream) => stream.socket().as_raw_fd(),
            Self::Detached(detached) => detached.socket.as_raw_fd(),
            Self::Lost => -1,
        }
    }

    fn detach(&mut self) -> io::Result<()> {
        if let Self::Attached(stream) = std::mem::replace(self, Self::Lost) {
            // What came before it is polled is not told again.
            let socket = stream.detach()?;
            *self = Self::Detached(Detached { socket, readable: true, full: false, read_size: READ_LEAST });
        }
        Ok(())
    }

    fn attach(&mut self) -> io::Result<()> {
        if let Self::Detached(detached) = std::mem::replace(self, Self::Lost) {
            *self = Self::Attached(S::attach(detached.socket)?);
        }
        Ok(())
    }

    fn set_readable(&mut self) {
        if let Self::Detached(detached) = self {
            detached.readable = true;
        }
    }

    fn is_full(&self) -> bool {
        matches!(self, Self::Detached(Detached { full: true, .. }))
    }
}

/// Turns Nagle's algorithm off, and has Linux give the connection up when what was sent stays unacknowledged for so long
/// (`TCP_USER_TIMEOUT`, RFC 5482, as gRFC A18 asks for): it would try for a quarter of an hour, whatever keepalive found.
pub(crate) fn prepare(stream: &TcpStream, patience: Option<Duration>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if patience.is_some() {
        // A system that has not got it tries for longer.
        let _ = SockRef::from(stream).set_tcp_user_timeout(patience);
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let _ = patience;
    Ok(())
}

pub(crate) struct Tcp {
    /// As [`prepare`] takes it.
    pub(crate) patience: Option<Duration>,
}

/// Where to connect to: the address that was found before, or those that the host's name has now.
pub(crate) async fn addresses(endpoint: &Endpoint) -> io::Result<Vec<SocketAddr>> {
    if let Some(address) = endpoint.resolved() {
        return Ok(vec![address]);
    }
    let authority = endpoint.host_and_port();
    match tokio::net::lookup_host(&authority).await {
        Ok(addresses) => Ok(addresses.collect()),
        Err(error) => Err(io::Error::new(io::ErrorKind::NotFound, format!("{authority}: {error}"))),
    }
}

/// Connects to the first address that answers.
pub(crate) async fn connect_tcp(endpoint: &Endpoint, patience: Option<Duration>) -> io::Result<TcpStream> {
    let stream = race::first(addresses(endpoint).await?, TcpStream::connect, |_| false).await?;
    prepare(&stream, patience)?;
    Ok(stream)
}

impl Connector for Tcp {
    fn connect<'a>(&'a self, endpoint: &'a Endpoint) -> BoxFuture<'a, io::Result<Box<dyn Transport>>> {
        Box::pin(async move {
            let stream = connect_tcp(endpoint, self.patience).await?;
            Ok(Box::new(Socket::Attached(stream)) as Box<dyn Transport>)
        })
    }
}

#[cfg(unix)]
pub(crate) struct Unix;

#[cfg(unix)]
impl Connector for Unix {
    fn connect<'a>(&'a self, endpoint: &'a Endpoint) -> BoxFuture<'a, io::Result<Box<dyn Transport>>> {
        Box::pin(async move {
            let stream = UnixStream::connect(endpoint.address()).await?;
            Ok(Box::new(Socket::Attached(stream)) as Box<dyn Transport>)
        })
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn linux_gives_up_when_keepalive_does() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Endpoint::parse(&listener.local_addr().unwrap().to_string()).unwrap();
        for patience in [None, Some(Duration::from_secs(40))] {
            let near = connect_tcp(&endpoint, patience).await.unwrap();
            let (far, _) = listener.accept().await.unwrap();
            prepare(&far, patience).unwrap();
            for stream in [near, far] {
                assert!(stream.nodelay().unwrap());
                assert_eq!(SockRef::from(&stream).tcp_user_timeout().unwrap(), patience);
            }
        }
    }
}
