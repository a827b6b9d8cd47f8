//! memory:name: both ends in this process, for documentation, tests and embedding.

use std::{
    collections::HashMap,
    io,
    sync::{Mutex, OnceLock},
    task::{Context, Poll},
};

use tokio::{io::DuplexStream, sync::mpsc};

use super::socket::Socket;
use crate::{BoxFuture, Connector, Endpoint, Listener, Peer, Transport, connection::lock};

/// Bytes that each direction holds.
const CAPACITY: usize = 256 << 10;
/// Connections that wait to be accepted.
const BACKLOG: usize = 128;

fn names() -> &'static Mutex<HashMap<String, mpsc::Sender<DuplexStream>>> {
    static NAMES: OnceLock<Mutex<HashMap<String, mpsc::Sender<DuplexStream>>>> = OnceLock::new();
    NAMES.get_or_init(Mutex::default)
}

pub(crate) struct Memory;

impl Connector for Memory {
    fn connect<'a>(&'a self, endpoint: &'a Endpoint) -> BoxFuture<'a, io::Result<Box<dyn Transport>>> {
        Box::pin(async move {
            let refused = || io::Error::new(io::ErrorKind::ConnectionRefused, "nothing listens there");
            let accept = lock(names()).get(endpoint.address()).cloned().ok_or_else(refused)?;
            let (ours, theirs) = tokio::io::duplex(CAPACITY);
            accept.send(theirs).await.map_err(|_| refused())?;
            Ok(Box::new(Socket(ours)) as Box<dyn Transport>)
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
            let peer = Peer { endpoint: "memory:".to_owned(), uid: None };
            Ok((Box::new(Socket(stream)) as Box<dyn Transport>, peer))
        })
    }

    fn endpoint(&self) -> String {
        format!("memory:{}", self.name)
    }
}
