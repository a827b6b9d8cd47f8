//! One unary call from its submission to its result, over as many attempts as its policy allows.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use valkyrie_protocol::{Metadata, Opened, Priority, Reason, Status, StreamKey, Time};

mod hedged;

use hedged::Copies;

use crate::{
    Response, Sink,
    connection::{cancelled, lock},
    observer::Step,
    options::KEY_AGE,
    policy::Verdict,
    pool::{Admission, Admitted, Course, Picked, Plan, Pool, Unpicked},
};

/// What a call asks for, kept for its next attempt.
pub(crate) struct Request {
    pub(crate) metadata: Metadata,
    pub(crate) priority: Priority,
    pub(crate) message: Bytes,
    pub(crate) key: Keyed,
}

/// Whether a request has an idempotency key.
pub(crate) enum Keyed {
    No,
    /// In its metadata, and not sent yet.
    Unsent,
    /// First sent then.
    Since(Time),
}

/// Who takes the result.
pub(crate) enum Receiver {
    Sink(u64, Arc<dyn Sink>),
    /// A future, which may be waiting.
    Future(Option<Waker>),
    /// The future's, which it has not taken.
    Result(Result<Response, Status>),
    Told,
}

/// A call. It takes the outcome of each of its attempts, by their number.
pub(crate) struct Call {
    pool: Arc<Pool>,
    state: Mutex<State>,
}

struct State {
    request: Request,
    course: Course,
    /// The attempt that goes on, counted from 1.
    attempt: u64,
    stage: Stage,
    receiver: Receiver,
}

enum Stage {
    /// For a connection, or for the time of the next attempt.
    Waiting,
    Open(Admitted, StreamKey),
    Hedged(Box<Copies>),
    Over,
}

impl Request {
    /// The attempt, and the request stays for another one if the policy keeps it.
    fn opened(&mut self, course: &mut Course, deadline: Option<Time>, now: impl Fn() -> Time) -> Opened {
        let Request { metadata, priority, message, key } = self;
        let (mut metadata, message) = match course.keeps(message.len()) {
            true => (metadata.clone(), message.clone()),
            false => (std::mem::take(metadata), std::mem::take(message)),
        };
        match *key {
            Keyed::No => {}
            Keyed::Unsent => *key = Keyed::Since(now()),
            Keyed::Since(first) => {
                // Rounded up: it is not to look younger than it is.
                let age = now().since(first).as_millis() as u64 + 1;
                let _ = metadata.insert(KEY_AGE, age.to_string());
            }
        }
        let (method, priority) = (course.method.clone(), *priority);
        Opened { method, metadata, priority, deadline, message: Some(message), end: true }
    }
}

impl State {
    /// What was under way, which no longer is.
    fn close(&mut self) -> Option<(Admitted, StreamKey)> {
        if !matches!(self.stage, Stage::Open(..)) {
            return None;
        }
        match std::mem::replace(&mut self.stage, Stage::Waiting) {
            Stage::Open(admitted, key) => Some((admitted, key)),
            Stage::Waiting | Stage::Hedged(_) | Stage::Over => None,
        }
    }
}

impl Call {
    /// Begins a call.
    pub(crate) fn begin(pool: &Arc<Pool>, plan: Plan<'_>, request: Request, receiver: Receiver) -> Arc<Self> {
        #[cfg(feature = "script")]
        let script = pool.script().inspect(|script| script.hold());
        let id = pool.begins(&plan);
        let (course, admission) = pool.begin(plan, id);
        let state = State { request, course, attempt: 1, stage: Stage::Waiting, receiver };
        let call = Arc::new(Self { pool: pool.clone(), state: Mutex::new(state) });
        call.admitted(lock(&call.state), admission);
        pool.tell();
        #[cfg(feature = "script")]
        script.into_iter().for_each(|script| script.release());
        call
    }

    /// What came of an attempt, which its connection read `at` that instant.
    pub(crate) fn complete(self: Arc<Self>, number: u64, result: Result<Response, Status>, at: Time) {
        let mut state = lock(&self.state);
        if matches!(state.stage, Stage::Hedged(_)) {
            self.copy_completed(state, number, result, at);
            return self.pool.tell();
        }
        if state.attempt != number {
            return;
        }
        let Some((admitted, _)) = state.close() else { return };
        match result {
            Ok(response) => {
                let server = self.pool.named(&admitted);
                let server = server.as_ref();
                self.pool.note(Some(state.course.id), || Step::AttemptEnded {
                    number,
                    server,
                    failure: None,
                });
                self.pool.succeeded(&mut state.course, admitted, at);
                self.end(state, Ok(response));
            }
            Err(status) => self.failed(state, Some(admitted), status, None),
        }
        self.pool.tell();
    }

    /// Begins an attempt: at once where there is a connection.
    fn attempt(self: &Arc<Self>, number: u64, waited_for: Option<Picked>) {
        let mut state = lock(&self.state);
        if state.attempt == number && matches!(state.stage, Stage::Waiting) {
            let admission = self.pool.admit(&mut state.course, waited_for);
            self.admitted(state, admission);
        }
    }

    /// The attempt may go out, or waits, or is the last.
    fn admitted(self: &Arc<Self>, mut guard: MutexGuard<'_, State>, admission: Admission) {
        let state = &mut *guard;
        let number = state.attempt;
        match admission {
            Admission::Go(admitted) => {
                match self.send(&mut state.request, &mut state.course, &admitted, number) {
                    Ok(key) if state.course.is_hedged() => {
                        let hedge = self.pool.hedge(&mut state.course, &admitted);
                        state.stage = Stage::Hedged(Box::new(Copies::new(hedge, number, admitted, key)));
                        self.watch(guard);
                    }
                    Ok(key) => state.stage = Stage::Open(admitted, key),
                    Err(status) => self.failed(guard, Some(admitted), status, None),
                }
            }
            Admission::Wait => {
                self.pool.note(Some(state.course.id), || Step::Waits);
                let (waiting, deadline) = (Waiting::new(self), state.course.deadline);
                drop(guard);
                self.pool.runtime().spawn(Box::pin(async move {
                    let picked = waiting.call.pool.link_before(deadline).await;
                    let call = waiting.over();
                    match picked {
                        Ok(picked) => call.attempt(number, Some(picked)),
                        Err(unpicked) => call.unpicked(number, unpicked),
                    }
                    call.pool.tell();
                }));
            }
            Admission::Refused(status) => self.end(guard, Err(status)),
        }
    }

    /// The attempt goes out.
    fn send(
        self: &Arc<Self>,
        request: &mut Request,
        course: &mut Course,
        admitted: &Admitted,
        number: u64,
    ) -> Result<StreamKey, Status> {
        if let Some(server) = &self.pool.named(admitted) {
            self.pool.note(Some(course.id), || Step::Attempt { number, server });
        }
        let mut opened = request.opened(course, admitted.ends, || self.pool.runtime().now());
        self.pool.carry(course.id, number, &mut opened.metadata);
        admitted.link.unary(opened, number, self.clone())
    }

    /// An attempt failed: the call does, or tries again, not before the time at which that is of any use.
    fn failed(
        self: &Arc<Self>,
        mut guard: MutexGuard<'_, State>,
        admitted: Option<Admitted>,
        status: Status,
        not_before: Option<Time>,
    ) {
        let state = &mut *guard;
        if matches!(state.stage, Stage::Over) {
            return;
        }
        let (number, id) = (state.attempt, Some(state.course.id));
        let server = admitted.as_ref().and_then(|admitted| self.pool.named(admitted));
        let (server, failure) = (server.as_ref(), Some(&status));
        self.pool.note(id, || Step::AttemptEnded { number, server, failure });
        let verdict = self.pool.failed(&mut state.course, admitted, &status, not_before);
        let (at, transparent) = match verdict {
            Verdict::Retry { at, transparent } => (at, transparent),
            Verdict::GiveUp(why) => {
                self.pool.note(id, || Step::NoRetry { why });
                return self.end(guard, Err(status));
            }
        };
        self.pool.note(id, || Step::Retry { at, transparent });
        state.attempt += 1;
        state.stage = Stage::Waiting;
        let number = state.attempt;
        drop(guard);
        if at <= self.pool.runtime().now() {
            self.attempt(number, None);
            return;
        }
        let waiting = Waiting::new(self);
        self.pool.runtime().spawn(Box::pin(async move {
            waiting.call.pool.until(at).await;
            let call = waiting.over();
            call.attempt(number, None);
            call.pool.tell();
        }));
    }

    /// There was no connection to be had.
    fn unpicked(self: &Arc<Self>, number: u64, unpicked: Unpicked) {
        let state = lock(&self.state);
        if state.attempt == number {
            self.failed(state, None, unpicked.status, unpicked.not_before);
        }
    }

    /// Hands the result to whoever waits for it.
    fn end(&self, mut state: MutexGuard<'_, State>, result: Result<Response, Status>) {
        if matches!(state.stage, Stage::Over) {
            return;
        }
        state.stage = Stage::Over;
        let failure = result.as_ref().err();
        self.pool.note(Some(state.course.id), || Step::Ended { failure });
        if let Err(status) = &result {
            self.pool.ended(&state.course, status.code());
        }
        let result = result.map_err(|status| state.course.explain(status));
        // Its handle may be kept for longer.
        state.request.message = Bytes::new();
        match std::mem::replace(&mut state.receiver, Receiver::Told) {
            Receiver::Sink(token, sink) => {
                drop(state);
                sink.complete(token, result);
            }
            Receiver::Future(waker) => {
                state.receiver = Receiver::Result(result);
                drop(state);
                waker.into_iter().for_each(Waker::wake);
            }
            Receiver::Result(_) | Receiver::Told => {}
        }
    }

    /// Gives the call up: it completes with CANCELLED unless it is complete. Idempotent.
    pub(crate) fn cancel(&self) {
        let mut state = lock(&self.state);
        if matches!(state.stage, Stage::Hedged(_)) {
            self.end_hedged(state, Err(cancelled()));
            return self.pool.tell();
        }
        let open = state.close();
        if let Some((admitted, _)) = &open {
            self.pool.cancelled(&state.course, admitted);
        }
        self.end(state, Err(cancelled()));
        if let Some((admitted, key)) = open {
            admitted.link.cancel_unary(key);
        }
        self.pool.tell();
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<Result<Response, Status>> {
        let mut state = lock(&self.state);
        match std::mem::replace(&mut state.receiver, Receiver::Told) {
            Receiver::Result(result) => Poll::Ready(result),
            _ => {
                state.receiver = Receiver::Future(Some(cx.waker().clone()));
                Poll::Pending
            }
        }
    }
}

/// A call that waits in a task. A runtime that stops drops the task: nobody may wait for ever.
struct Waiting {
    call: Arc<Call>,
    over: bool,
}

impl Waiting {
    fn new(call: &Arc<Call>) -> Self {
        Self { call: call.clone(), over: false }
    }

    fn over(mut self) -> Arc<Call> {
        self.over = true;
        self.call.clone()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if !self.over {
            let message = "the runtime stopped while the call waited for a connection";
            let status = Status::from_reason(Reason::CONNECT_FAILED, message).as_unprocessed();
            self.call.end(lock(&self.call.state), Err(status));
        }
    }
}

/// A call that a future waits for. Dropping it before its end cancels the call.
pub(crate) struct Pending(Option<Arc<Call>>);

impl Pending {
    pub(crate) fn new(call: Arc<Call>) -> Self {
        Self(Some(call))
    }
}

impl Future for Pending {
    type Output = Result<Response, Status>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(call) = &self.0 else { return Poll::Pending };
        let result = std::task::ready!(call.poll(cx));
        self.0 = None;
        Poll::Ready(result)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(call) = &self.0 {
            call.cancel();
        }
    }
}
