//! The two halves of a stream that a client opened, and its way through the client's policies.

use std::{sync::Arc, task::Poll};

use bytes::Bytes;
use valkyrie_protocol::{Metadata, Opened, Reason, Status, Time};

#[cfg(feature = "native")]
use crate::connection::Link;
use crate::{
    BoxFuture,
    connection::{Inbox, StreamHandle, cancelled},
    observer::Step,
    policy::Verdict,
    pool::{Admission, Admitted, Course, Plan, Pool},
};

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
    /// Until the end is known.
    way: Option<Box<Way>>,
    /// Another attempt, which whoever reads waits for.
    again: Option<Again>,
    /// How it ended badly.
    failed: Option<Status>,
}

type Again = BoxFuture<'static, Result<(StreamHandle, Box<Way>), Status>>;

/// Opens a stream, over as many attempts as its policy allows. A call that is whole, its one message sent and half-closed, is
/// kept for further attempts until the first part of its answer is read.
pub(crate) async fn open(
    pool: &Arc<Pool>,
    plan: Plan<'_>,
    mut call: Opened,
) -> Result<(SendStream, RecvStream), Status> {
    let id = pool.begins(&plan);
    let (course, admission) = pool.begin(plan, id);
    (call.method, call.deadline) = (course.method.clone(), course.deadline);
    let finished = call.end;
    let way = Way {
        pool: pool.clone(),
        course,
        admitted: None,
        number: 1,
        call: Some(call),
        answered: false,
        ended: false,
    };
    let (stream, way) = Box::new(way).open(Some(admission), None).await?;
    let sender = SendStream { stream: stream.clone(), finished };
    let (inbox, trailers) = (Inbox::default(), Metadata::new());
    let way = Some(way);
    Ok((sender, RecvStream { stream, inbox, trailers, ended: false, way, again: None, failed: None }))
}

/// Opens a stream beside the policies: the call is whole, and nothing of it is tried again.
#[cfg(feature = "native")]
pub(crate) fn open_on(link: &Arc<Link>, call: Opened) -> Result<RecvStream, Status> {
    let stream = link.stream(call)?;
    let (inbox, trailers) = (Inbox::default(), Metadata::new());
    Ok(RecvStream { stream, inbox, trailers, ended: false, way: None, again: None, failed: None })
}

/// A stream's way through the policies of its client. It holds its place until its end is read, or its reader dropped.
struct Way {
    pool: Arc<Pool>,
    course: Course,
    admitted: Option<Admitted>,
    /// The attempt that goes on, counted from 1.
    number: u64,
    /// The call, for another attempt.
    call: Option<Opened>,
    /// Something of the answer was read.
    answered: bool,
    /// Its end was counted.
    ended: bool,
}

impl Way {
    /// Opens the stream with what was admitted, or from then on. Boxed: one piece of code for the first attempt and all others.
    fn open(mut self: Box<Self>, admission: Option<Admission>, at: Option<Time>) -> Again {
        Box::pin(async move {
            self.until(at).await;
            let mut admission = match admission {
                Some(admission) => admission,
                None => self.pool.admit(&mut self.course, None),
            };
            loop {
                self.pool.tell();
                let mut waited_for = None;
                match admission {
                    Admission::Go(admitted) => {
                        if let Some(server) = &self.pool.named(&admitted) {
                            self.note(Step::Attempt { number: self.number, server });
                        }
                        match self.call().and_then(|call| admitted.link.stream(call)) {
                            Ok(stream) => {
                                self.admitted = Some(admitted);
                                if self.call.as_ref().is_some_and(|call| !call.end) {
                                    self.commit();
                                }
                                return Ok((stream, self));
                            }
                            Err(status) => self.once_more(Some(admitted), status, None).await?,
                        }
                    }
                    Admission::Wait => {
                        self.note(Step::Waits);
                        match self.pool.link_before(self.course.deadline).await {
                            Ok(picked) => waited_for = Some(picked),
                            Err(unpicked) => {
                                self.once_more(None, unpicked.status, unpicked.not_before).await?;
                            }
                        }
                    }
                    Admission::Refused(status) => {
                        self.ended(Some(&status));
                        return Err(status);
                    }
                }
                admission = self.pool.admit(&mut self.course, waited_for);
            }
        })
    }

    async fn until(&self, at: Option<Time>) {
        if let Some(at) = at
            && at > self.pool.runtime().now()
        {
            self.pool.until(at).await;
        }
    }

    /// The call, and it stays for another attempt if the policy keeps it.
    fn call(&mut self) -> Result<Opened, Status> {
        let Some(call) = &self.call else { return Err(cancelled()) };
        let mut call = match self.course.keeps(call.message.as_ref().map_or(0, Bytes::len)) {
            true => call.clone(),
            false => self.call.take().ok_or_else(cancelled)?,
        };
        self.pool.carry(self.course.id, self.number, &mut call.metadata);
        Ok(call)
    }

    /// Waits for the time of the next attempt.
    async fn once_more(
        &mut self,
        admitted: Option<Admitted>,
        status: Status,
        not_before: Option<Time>,
    ) -> Result<(), Status> {
        let Some(at) = self.attempt_failed(admitted, &status, not_before) else {
            self.ended(Some(&status));
            return Err(self.course.explain(status));
        };
        self.until(Some(at)).await;
        Ok(())
    }

    fn note(&self, step: Step<'_>) {
        self.pool.note(Some(self.course.id), || step);
    }

    /// When the next attempt may be made, if there may be one.
    fn attempt_failed(
        &mut self,
        admitted: Option<Admitted>,
        status: &Status,
        not_before: Option<Time>,
    ) -> Option<Time> {
        let server = admitted.as_ref().and_then(|admitted| self.pool.named(admitted));
        self.note(Step::AttemptEnded { number: self.number, server: server.as_ref(), failure: Some(status) });
        match self.pool.failed(&mut self.course, admitted, status, not_before) {
            Verdict::Retry { at, transparent } => {
                self.note(Step::Retry { at, transparent });
                self.number += 1;
                Some(at)
            }
            Verdict::GiveUp(why) => {
                self.note(Step::NoRetry { why });
                None
            }
        }
    }

    /// No attempt follows any more.
    fn commit(&mut self) {
        self.call = None;
        self.course.commit();
    }

    /// Something of the answer is about to reach the caller.
    fn answered(&mut self) {
        if !self.answered {
            self.answered = true;
            self.commit();
        }
    }

    /// The call is over, once. What succeeded was counted.
    fn ended(&mut self, failure: Option<&Status>) {
        if !std::mem::replace(&mut self.ended, true) {
            self.note(Step::Ended { failure });
            failure.into_iter().for_each(|status| self.pool.ended(&self.course, status.code()));
        }
    }

    fn succeeded(&mut self) {
        if let Some(admitted) = self.admitted.take() {
            let now = self.pool.runtime().now();
            if let Some(server) = &self.pool.named(&admitted) {
                let (number, server) = (self.number, Some(server));
                self.note(Step::AttemptEnded { number, server, failure: None });
            }
            self.pool.succeeded(&mut self.course, admitted, now);
            self.ended(None);
            self.pool.tell();
        }
    }

    /// The stream failed: another attempt, if there may be one. What its caller ended says nothing of the server, nor does a time
    /// limit once the answer had begun.
    fn failed(mut self: Box<Self>, status: &mut Status) -> Option<Again> {
        let reason = status.reason();
        if reason == Reason::CANCELLED || reason == Reason::DEADLINE_EXCEEDED && self.answered {
            self.ended(Some(status));
            return None;
        }
        let admitted = self.admitted.take();
        let at = self.attempt_failed(admitted, status, None);
        self.pool.tell();
        let Some(at) = at else {
            self.ended(Some(status));
            *status = self.course.explain(std::mem::replace(status, cancelled()));
            return None;
        };
        Some(self.open(None, Some(at)))
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        if let Some(admitted) = self.admitted.take() {
            self.pool.cancelled(&self.course, &admitted);
            self.pool.tell();
        }
        if !self.ended {
            self.ended(Some(&cancelled()));
        }
    }
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
        loop {
            self.stands().await?;
            let mut result = self.inbox.recv(&self.stream).await;
            if !self.begins_again(&mut result) {
                return result;
            }
        }
    }

    /// As [`RecvStream::recv`], when it would not wait.
    pub fn try_recv(&mut self) -> Option<Result<Option<Bytes>, Status>> {
        if let Some(status) = &self.failed {
            return Some(Err(status.clone()));
        }
        if self.again.is_some() {
            return None;
        }
        match self.inbox.poll_recv(&self.stream, None) {
            Poll::Pending => None,
            Poll::Ready(mut result) => (!self.begins_again(&mut result)).then_some(result),
        }
    }

    /// Waits for the next attempt, if the last one failed and nothing of it was read.
    async fn stands(&mut self) -> Result<(), Status> {
        if let Some(again) = &mut self.again {
            let opened = again.await;
            self.again = None;
            match opened {
                Ok((stream, way)) => (self.stream, self.way) = (stream, Some(way)),
                Err(status) => {
                    (self.ended, self.trailers) = (true, status.trailers().clone());
                    self.failed = Some(status);
                }
            }
        }
        self.failed.clone().map_or(Ok(()), Err)
    }

    /// What was read: whether it stays with the call, for which there is another attempt.
    fn begins_again(&mut self, result: &mut Result<Option<Bytes>, Status>) -> bool {
        match (&mut *result, &mut self.way) {
            (Ok(Some(_)), Some(way)) => way.answered(),
            (Ok(None), Some(way)) => way.succeeded(),
            (Err(status), way) => self.again = way.take().and_then(|way| way.failed(status)),
            (Ok(_), None) => {}
        }
        if self.again.is_none() && !matches!(result, Ok(Some(_))) {
            self.ended = true;
            self.failed = result.as_ref().err().cloned();
            self.trailers = self.stream.trailers();
        }
        self.again.is_some()
    }

    /// Initial metadata, once it or the first message is there.
    ///
    /// # Errors
    /// The status that the call ended with before either.
    pub async fn metadata(&mut self) -> Result<Metadata, Status> {
        loop {
            self.stands().await?;
            let head = self.stream.head(!self.inbox.is_empty()).await;
            // The status of a failure has metadata, too; it stays to be read.
            match self.stream.end() {
                Some(Err(mut status)) if self.inbox.is_empty() && !self.stream.has_messages() => {
                    self.again = self.way.take().and_then(|way| way.failed(&mut status));
                }
                _ => self.way.iter_mut().for_each(|way| way.answered()),
            }
            if self.again.is_none() {
                return head;
            }
        }
    }

    /// Trailers; empty before the end.
    pub fn trailers(&self) -> &Metadata {
        &self.trailers
    }

    /// Cancels the call in both directions. Idempotent.
    pub fn cancel(&mut self) {
        self.ended = true;
        if self.again.take().is_some() {
            self.failed = Some(cancelled());
        }
        self.stream.cancel();
    }
}

impl Drop for RecvStream {
    fn drop(&mut self) {
        // An end that nobody read is an outcome all the same.
        if let Some(mut way) = self.way.take() {
            match self.stream.end() {
                Some(Ok(())) => way.succeeded(),
                Some(Err(mut status)) => {
                    way.commit();
                    way.failed(&mut status);
                }
                None => {}
            }
        }
        if !self.ended {
            self.stream.cancel();
        }
        self.inbox.release(&self.stream);
    }
}
