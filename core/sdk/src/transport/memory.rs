//! memory:name: both ends in this process, for documentation, tests and embedding.

use std::{
    collections::HashMap,
    future::Future,
    io::{self, IoSlice},
    pin::{Pin, pin},
    sync::{Mutex, OnceLock},
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncReadExt, AsyncWrite, DuplexStream},
    sync::mpsc,
};

use crate::{BoxFuture, Connector, Endpoint, Listener, Peer, ReadBuffer, Transport, connection::lock};

/// Bytes that each direction holds.
const CAPACITY: usize = 256 << 10;
/// Connections that wait to be accepted.
const BACKLOG: usize = 128;

fn names() -> &'static Mutex<HashMap<String, mpsc::Sender<DuplexStream>>> {
    static NAMES: OnceLock<Mutex<HashMap<String, mpsc::Sender<DuplexStream>>>> = OnceLock::new();
    NAMES.get_or_init(Mutex::default)
}

/// One end.
struct Pipe(DuplexStream);

impl Transport for Pipe {
    fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut ReadBuffer) -> Poll<io::Result<usize>> {
        // Reading holds no state between polls, so a fresh future for each is the same read.
        pin!(self.0.read_buf(&mut into.bytes)).poll(cx)
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, parts)
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

pub(crate) struct Memory;

impl Connector for Memory {
    fn connect<'a>(&'a self, endpoint: &'a Endpoint) -> BoxFuture<'a, io::Result<Box<dyn Transport>>> {
        Box::pin(async move {
            let refused = || io::Error::new(io::ErrorKind::ConnectionRefused, "nothing listens there");
            let accept = lock(names()).get(endpoint.address()).cloned().ok_or_else(refused)?;
            let (ours, theirs) = tokio::io::duplex(CAPACITY);
            accept.send(theirs).await.map_err(|_| refused())?;
            Ok(Box::new(Pipe(ours)) as Box<dyn Transport>)
        })
    }
}

/// Listens under a name until dropped.
pub(crate) struct MemoryListener {
    name: String,
    incoming: mpsc::Receiver<DuplexStream>,
}

impl MemoryListener {
    pub(crate) fn bind(name: &str) -> io::Result<Self> {
        let (accept, incoming) = mpsc::channel(BACKLOG);
        let mut names = lock(names());
        if names.contains_key(name) {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "the name is in use in this process"));
        }
        names.insert(name.to_owned(), accept);
        Ok(Self { name: name.to_owned(), incoming })
    }
}

impl Drop for MemoryListener {
    fn drop(&mut self) {
        lock(names()).remove(&self.name);
    }
}

impl Listener for MemoryListener {
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Box<dyn Transport>, Peer)>> {
        self.incoming.poll_recv(cx).map(|stream| {
            let stream = stream.ok_or_else(|| io::Error::other("the listener is closed"))?;
            let peer = Peer::new("memory:");
            Ok((Box::new(Pipe(stream)) as Box<dyn Transport>, peer))
        })
    }

    fn endpoint(&self) -> String {
        format!("memory:{}", self.name)
    }
}
