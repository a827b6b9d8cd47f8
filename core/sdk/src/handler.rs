//! What a server runs for a call: the handler trait, the call it sees and the reply it gives.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use valkyrie_protocol::{Metadata, Priority, Reason, Status};

use crate::{
    PeerCertificate, Principal,
    connection::{Inbox, StreamHandle},
};

/// Answers the calls of one method or of a family of methods.
///
/// One trait for all four shapes: a unary handler takes [`ServerCall::message`] and returns [`Reply::message`]; a
/// streaming one uses [`ServerCall::recv`] and [`ServerCall::send`] and returns [`Reply::end`].
///
/// The future's first poll runs on the connection's own task: work that blocks belongs on a blocking thread of the
/// runtime. It is dropped when the call is cancelled or its deadline passes. A panic becomes INTERNAL.
pub trait MessageHandler: Send + Sync + 'static {
    /// Begins to answer `call`.
    fn handle(&self, call: ServerCall) -> HandlerFuture;
}

/// A handler's work in progress.
pub struct HandlerFuture(Work);

enum Work {
    Ready(Option<Result<Reply, Status>>),
    Pending(Pin<Box<dyn Future<Output = Result<Reply, Status>> + Send>>),
}

impl HandlerFuture {
    /// Work that may wait.
    pub fn new(future: impl Future<Output = Result<Reply, Status>> + Send + 'static) -> Self {
        Self(Work::Pending(Box::pin(future)))
    }

    /// Work that is already done: allocates nothing.
    pub fn ready(result: Result<Reply, Status>) -> Self {
        Self(Work::Ready(Some(result)))
    }
}

impl Future for HandlerFuture {
    type Output = Result<Reply, Status>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Work::Ready(result) => match result.take() {
                Some(result) => Poll::Ready(result),
                None => Poll::Pending,
            },
            Work::Pending(future) => future.as_mut().poll(cx),
        }
    }
}

/// A handler from an async closure.
///
/// ```
/// use valkyrie_sdk::{Reply, handler_fn};
/// let shout = handler_fn(|mut call| async move {
///     let text = call.message().await?.to_ascii_uppercase();
///     Ok(Reply::message(text))
/// });
/// # let _: Box<dyn valkyrie_sdk::MessageHandler> = Box::new(shout);
/// ```
pub fn handler_fn<F, Fut>(function: F) -> impl MessageHandler
where
    F: Fn(ServerCall) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Reply, Status>> + Send + 'static,
{
    HandlerFn(function)
}

struct HandlerFn<F>(F);

impl<F, Fut> MessageHandler for HandlerFn<F>
where
    F: Fn(ServerCall) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Reply, Status>> + Send + 'static,
{
    fn handle(&self, call: ServerCall) -> HandlerFuture {
        HandlerFuture::new((self.0)(call))
    }
}

/// How a call ends well: the last message, if any, and trailers.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    pub(crate) message: Option<Bytes>,
    pub(crate) metadata: Metadata,
    pub(crate) trailers: Metadata,
}

impl Reply {
    /// Ends with a message: the whole answer of a unary call.
    pub fn message(message: impl Into<Bytes>) -> Self {
        Self { message: Some(message.into()), ..Self::default() }
    }

    /// Ends without another message: after a stream.
    pub fn end() -> Self {
        Self::default()
    }

    /// With initial metadata; ignored when some was sent before.
    pub fn with_metadata(mut self, metadata: Metadata) -> Self {
        self.metadata = metadata;
        self
    }

    /// With trailers.
    pub fn with_trailers(mut self, trailers: Metadata) -> Self {
        self.trailers = trailers;
        self
    }
}

/// Who calls, as the transport knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Peer {
    /// Where from: `tcp://127.0.0.1:50312`, `unix:`, `ws://127.0.0.1:50313`, `memory:`.
    pub endpoint: String,
    /// The user id of the process behind a Unix socket.
    pub uid: Option<u32>,
    /// Whether nobody between the two can read or change what they say.
    pub encrypted: bool,
    /// The certificate that it showed and proved, when it was asked for one.
    pub certificate: Option<Arc<PeerCertificate>>,
}

impl Peer {
    /// A peer of which only the place is known.
    pub fn new(endpoint: impl Into<String>) -> Self {
        Self { endpoint: endpoint.into(), ..Self::default() }
    }
}

/// One call as its handler sees it. Dropping it unanswered is fine: the handler's result is the answer.
pub struct ServerCall {
    pub(crate) stream: StreamHandle,
    pub(crate) principal: Arc<Principal>,
    pub(crate) inbox: Inbox,
    pub(crate) method: Bytes,
    pub(crate) metadata: Metadata,
    pub(crate) priority: Priority,
    pub(crate) first: First,
}

/// The message that came with the CALL frame.
pub(crate) enum First {
    /// No message yet; more may come.
    None,
    /// A message; whether the caller half-closed with it.
    Message(Bytes, bool),
    /// The caller half-closed without a message.
    End,
    /// Taken.
    Taken(bool),
}

impl ServerCall {
    /// The method's path.
    pub fn method(&self) -> &str {
        // Checked to be UTF-8 when the CALL frame was read.
        std::str::from_utf8(&self.method).unwrap_or("")
    }

    /// The call's metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// How long the caller still waits; `None` without a deadline.
    pub fn remaining(&self) -> Option<Duration> {
        self.stream.remaining()
    }

    /// Who calls.
    pub fn peer(&self) -> &Peer {
        self.stream.peer()
    }

    /// Whom the call is made for, as its connection stood for when it came in.
    pub fn principal(&self) -> &Principal {
        &self.principal
    }

    /// The call's priority class.
    pub fn priority(&self) -> Priority {
        self.priority
    }

    /// The single message of a unary or server-streaming call.
    ///
    /// # Errors
    /// INVALID_ARGUMENT when the caller half-closed without one; CANCELLED when the call is gone.
    pub async fn message(&mut self) -> Result<Bytes, Status> {
        self.recv().await?.ok_or_else(|| {
            Status::from_reason(Reason::INVALID_ARGUMENT, "the call has no message, and one is needed")
        })
    }

    /// The next message; `None` once the caller half-closed. Cancel safe.
    ///
    /// # Errors
    /// CANCELLED when the call is gone.
    pub async fn recv(&mut self) -> Result<Option<Bytes>, Status> {
        match std::mem::replace(&mut self.first, First::Taken(false)) {
            First::Message(message, end) => {
                self.first = First::Taken(end);
                Ok(Some(message))
            }
            First::End | First::Taken(true) => {
                self.first = First::Taken(true);
                Ok(None)
            }
            First::None | First::Taken(false) => self.inbox.recv(&self.stream).await,
        }
    }

    /// The message, when it came with the call: no waiting, no future.
    pub(crate) fn take_first(&mut self) -> Option<Bytes> {
        match &self.first {
            First::Message(_, true) => match std::mem::replace(&mut self.first, First::Taken(true)) {
                First::Message(message, _) => Some(message),
                _ => None,
            },
            _ => None,
        }
    }

    /// Sends a message and waits until there is room for it. Cancel safe: a message is sent whole or not at all.
    ///
    /// # Errors
    /// CANCELLED when the call is gone; MESSAGE_TOO_LARGE over the caller's maximum.
    pub async fn send(&mut self, message: impl Into<Bytes>) -> Result<(), Status> {
        self.stream.send(message.into()).await
    }

    /// Sends initial metadata now, before any message.
    ///
    /// # Errors
    /// STREAM_MISUSE when a message or metadata was sent before; CANCELLED when the call is gone.
    pub fn send_metadata(&mut self, metadata: Metadata) -> Result<(), Status> {
        self.stream.send_metadata(metadata)
    }
}

impl Drop for ServerCall {
    fn drop(&mut self) {
        self.inbox.release(&self.stream);
    }
}

/// Sends every message back: a unary answer for a unary call, a stream for a stream.
#[derive(Clone, Copy, Debug, Default)]
pub struct EchoHandler;

impl MessageHandler for EchoHandler {
    fn handle(&self, mut call: ServerCall) -> HandlerFuture {
        if let Some(message) = call.take_first() {
            return HandlerFuture::ready(Ok(Reply::message(message)));
        }
        HandlerFuture::new(async move {
            while let Some(message) = call.recv().await? {
                call.send(message).await?;
            }
            Ok(Reply::end())
        })
    }
}
