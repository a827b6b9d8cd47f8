//! A stream as the boundary keeps it: opened in the background, its halves lent to at most one operation each.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    rc::Rc,
    task::{Poll, Waker},
};

use bytes::Bytes;
use valkyrie_sdk::{CallOptions, Client, Reason, RecvStream, SendStream, Status};

use crate::{
    pack::{End, Value},
    runtime::spawn,
};

/// JavaScript starts an operation of a half when the one before has ended.
#[derive(Default)]
pub(crate) struct Stream {
    opened: RefCell<Option<Result<(), Status>>>,
    sender: RefCell<Option<SendStream>>,
    receiver: RefCell<Option<RecvStream>>,
    cancelled: Cell<bool>,
    wakers: RefCell<[Option<Waker>; 2]>,
}

/// Which half an operation is about, and so whose waker is whose.
#[derive(Clone, Copy)]
enum Half {
    Send,
    Receive,
}

fn stale() -> Status {
    Status::from_reason(Reason::STREAM_MISUSE, "the stream is closed")
}

impl Stream {
    /// Opens a stream; what the connection or the server say arrives with its operations.
    pub(crate) fn open(client: Client, method: String, options: CallOptions) -> Rc<Self> {
        let stream = Rc::new(Self::default());
        let opening = stream.clone();
        spawn(async move {
            let result = client.open(&method, options).await.map(|(sender, receiver)| {
                // Dropping them cancels the call.
                if !opening.cancelled.get() {
                    opening.sender.replace(Some(sender));
                    opening.receiver.replace(Some(receiver));
                }
            });
            opening.opened.replace(Some(result));
            opening.wake();
        });
        stream
    }

    pub(crate) async fn send(self: Rc<Self>, message: Bytes) -> Result<Value, Status> {
        let mut sender = self.lend(Half::Send, &self.sender).await?;
        let result = self.unless_cancelled(Half::Send, sender.send(message)).await;
        self.give_back(&self.sender, sender);
        result.map(|()| Value::Done)
    }

    pub(crate) async fn half_close(self: Rc<Self>) -> Result<Value, Status> {
        let mut sender = self.lend(Half::Send, &self.sender).await?;
        let result = sender.finish().await;
        self.give_back(&self.sender, sender);
        result.map(|()| Value::Done)
    }

    /// Takes 1 to `max` messages, or the end. Credit goes back to the server for what was taken only.
    pub(crate) async fn recv(self: Rc<Self>, max: usize) -> Result<Value, Status> {
        let mut receiver = self.lend(Half::Receive, &self.receiver).await?;
        let result = self.unless_cancelled(Half::Receive, batch(&mut receiver, max)).await;
        self.give_back(&self.receiver, receiver);
        result
    }

    /// Cancels the call in both directions; operations that wait end with CANCELLED. Idempotent.
    pub(crate) fn cancel(&self) {
        self.cancelled.set(true);
        // A half that is lent is dropped by its operation.
        drop(self.sender.take());
        drop(self.receiver.take());
        self.wake();
    }

    fn wake(&self) {
        let wakers = self.wakers.take();
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    async fn lend<T>(&self, half: Half, from: &RefCell<Option<T>>) -> Result<T, Status> {
        let opened = std::future::poll_fn(|_| match &*self.opened.borrow() {
            Some(result) => Poll::Ready(result.clone()),
            None => Poll::Pending,
        });
        self.unless_cancelled(half, opened).await?;
        from.take().ok_or_else(stale)
    }

    fn give_back<T>(&self, to: &RefCell<Option<T>>, lent: T) {
        if !self.cancelled.get() {
            to.replace(Some(lent));
        }
    }

    async fn unless_cancelled<T>(
        &self,
        half: Half,
        work: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        let mut work = std::pin::pin!(work);
        std::future::poll_fn(|cx| {
            if self.cancelled.get() {
                return Poll::Ready(Err(Status::from_reason(Reason::CANCELLED, "the call was cancelled")));
            }
            let poll = work.as_mut().poll(cx);
            if poll.is_pending() {
                self.wakers.borrow_mut()[half as usize] = Some(cx.waker().clone());
            }
            poll
        })
        .await
    }
}

async fn batch(receiver: &mut RecvStream, max: usize) -> Result<Value, Status> {
    let mut messages = Vec::new();
    let mut next = receiver.recv().await?;
    while let Some(message) = next {
        messages.push(message);
        if messages.len() >= max {
            return Ok(Value::Messages { messages, end: None });
        }
        next = match receiver.try_recv() {
            Some(Ok(more)) => more,
            // An error is kept by the stream and given to the next call.
            Some(Err(_)) | None => return Ok(Value::Messages { messages, end: None }),
        };
    }
    let metadata = receiver.metadata().await.unwrap_or_default();
    let end = End { metadata, trailers: receiver.trailers().clone() };
    Ok(Value::Messages { messages, end: Some(end) })
}
