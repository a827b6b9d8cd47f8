//! The two halves of a stream that a client opened.

use std::task::Poll;

use bytes::Bytes;
use valkyrie_protocol::{Metadata, Status};

use crate::connection::{Inbox, StreamHandle};

/// The sending half. Dropping it before [`SendStream::finish`] cancels the call: a half-written upload must not look
/// like a whole one.
pub struct SendStream {
    stream: StreamHandle,
    finished: bool,
}

/// The receiving half. Dropping it before the end cancels the call.
pub struct RecvStream {
    stream: StreamHandle,
    inbox: Inbox,
    trailers: Metadata,
    ended: bool,
}

pub(crate) fn halves(stream: StreamHandle, finished: bool) -> (SendStream, RecvStream) {
    (
        SendStream { stream: stream.clone(), finished },
        RecvStream { stream, inbox: Inbox::default(), trailers: Metadata::new(), ended: false },
    )
}

impl SendStream {
    /// Sends a message, waiting while 256 KiB of earlier ones wait for the peer's credit, each counted as 256 bytes more
    /// than its length.
    ///
    /// # Errors
    /// The status that ended the call; STREAM_MISUSE after the half-close; MESSAGE_TOO_LARGE over the peer's maximum.
    ///
    /// # Cancel safety
    /// A message is queued whole or not at all.
    pub async fn send(&mut self, message: impl Into<Bytes>) -> Result<(), Status> {
        self.stream.send(message.into()).await
    }

    /// Half-closes: no more messages from this side. Idempotent.
    ///
    /// # Errors
    /// The status that ended the call, if it failed before.
    pub async fn finish(&mut self) -> Result<(), Status> {
        self.finish_now();
        Ok(())
    }

    /// As [`SendStream::finish`], which never waits.
    pub fn finish_now(&mut self) {
        if !self.finished {
            self.finished = true;
            self.stream.finish();
        }
    }

    /// Cancels the call in both directions. Idempotent.
    pub fn cancel(&mut self) {
        self.finished = true;
        self.stream.cancel();
    }
}

impl Drop for SendStream {
    fn drop(&mut self) {
        if !self.finished {
            self.stream.cancel();
        }
    }
}

impl RecvStream {
    /// The next message; `None` once the call has ended with OK.
    ///
    /// # Errors
    /// The status that the call ended with.
    ///
    /// # Cancel safety
    /// A message that was not returned is returned by the next call.
    pub async fn recv(&mut self) -> Result<Option<Bytes>, Status> {
        let result = self.inbox.recv(&self.stream).await;
        self.note(&result);
        result
    }

    /// As [`RecvStream::recv`], when it would not wait.
    pub fn try_recv(&mut self) -> Option<Result<Option<Bytes>, Status>> {
        match self.inbox.poll_recv(&self.stream, None) {
            Poll::Pending => None,
            Poll::Ready(result) => {
                self.note(&result);
                Some(result)
            }
        }
    }

    fn note(&mut self, result: &Result<Option<Bytes>, Status>) {
        if !matches!(result, Ok(Some(_))) {
            self.ended = true;
            self.trailers = self.stream.trailers();
        }
    }

    /// Initial metadata, once it or the first message is there.
    ///
    /// # Errors
    /// The status that the call ended with before either.
    pub async fn metadata(&mut self) -> Result<Metadata, Status> {
        self.stream.head(!self.inbox.is_empty()).await
    }

    /// Trailers; empty before the end.
    pub fn trailers(&self) -> &Metadata {
        &self.trailers
    }

    /// Cancels the call in both directions. Idempotent.
    pub fn cancel(&mut self) {
        self.ended = true;
        self.stream.cancel();
    }
}

impl Drop for RecvStream {
    fn drop(&mut self) {
        if !self.ended {
            self.stream.cancel();
        }
        self.inbox.release(&self.stream);
    }
}
