//! The object-safe faces of a client and a server, for code that must not know which one it holds.

use std::{future::Future, pin::Pin};

use bytes::Bytes;
use valkyrie_protocol::Status;

use crate::{CallOptions, RecvStream, Response, SendStream};

/// A boxed future that can move between threads.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Anything that makes calls. [`crate::Client`] is one.
pub trait ValkyrieClient: Send + Sync {
    /// One message out, one message back. See [`crate::Client::call`].
    fn call<'a>(
        &'a self,
        method: &'a str,
        message: Bytes,
        options: CallOptions,
    ) -> BoxFuture<'a, Result<Response, Status>>;
    /// Opens a stream of any shape. See [`crate::Client::open`].
    fn open<'a>(
        &'a self,
        method: &'a str,
        options: CallOptions,
    ) -> BoxFuture<'a, Result<(SendStream, RecvStream), Status>>;
    /// Ends gracefully. See [`crate::Client::close`].
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// Anything that answers calls. [`crate::Server`] is one.
pub trait ValkyrieServer: Send + Sync {
    /// Serves until shut down. See `Server::start`.
    fn start(&self) -> BoxFuture<'_, Result<(), Status>>;
    /// Where it listens, as endpoints that a client can use.
    fn endpoints(&self) -> Vec<String>;
    /// Stops accepting, lets calls finish within the drain time, then closes.
    fn shutdown(&self) -> BoxFuture<'_, ()>;
}
