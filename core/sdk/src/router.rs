//! From a method's path to its handler, and the handler's run: inline first, as a task when it has to wait.

#[cfg(feature = "native")]
use std::collections::BTreeMap;
use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use valkyrie_protocol::{Code, Finish, Metadata, Priority, Reason, Status, Time};

use crate::{
    HandlerFuture, Principal, Reply, ServerCall,
    connection::{Inbox, Link, StreamHandle},
    guard::Guard,
    handler::First,
    metrics::Tally,
};
#[cfg(feature = "native")]
use crate::{
    MessageHandler,
    keys::{Key, Keys},
    load::{Granted, Load, Ticket},
    metrics::{MethodMetrics, Served},
    options::KEY,
};

/// A call that came in and has no handler yet.
pub(crate) struct Arrived {
    pub(crate) stream: StreamHandle,
    pub(crate) principal: Arc<Principal>,
    pub(crate) method: Bytes,
    pub(crate) metadata: Metadata,
    pub(crate) priority: Priority,
    pub(crate) message: Option<Bytes>,
    pub(crate) end: bool,
    /// Its place, while it waits in the server's line.
    #[cfg(feature = "native")]
    pub(crate) ticket: Option<Ticket>,
    /// What counts it, once the router has seen it.
    pub(crate) tally: Option<Tally>,
}

/// The right to run a handler.
pub(crate) enum Permit {
    /// One of its connection's.
    Connection,
    /// One of the server's, which has a limit; health needs none.
    #[cfg(feature = "native")]
    Server(Option<Granted>),
}

impl Permit {
    /// What it was for has come to its end, and tells how long such calls take.
    fn ended(&mut self) {
        #[cfg(feature = "native")]
        if let Permit::Server(Some(granted)) = self {
            granted.ended();
        }
    }
}

impl Arrived {
    /// Bytes of the message that came with it.
    pub(crate) fn first_len(&self) -> usize {
        self.message.as_ref().map_or(0, Bytes::len)
    }

    /// Whether the whole request came with it.
    fn is_whole(&self) -> bool {
        self.end && self.message.is_some()
    }
}

type Outcome = Result<Finish, Status>;

/// An outcome, and what is to count it.
pub(crate) type Answered = (Outcome, Option<Tally>);

/// The code that an outcome counts as.
pub(crate) fn code_of<T>(outcome: &Result<T, Status>) -> Code {
    outcome.as_ref().err().map_or(Code::Ok, Status::code)
}

/// What is answered whatever the load.
#[cfg(feature = "native")]
const HEALTH: &[u8] = b"/valkyrie.Health/";

/// Handlers by path. `/a/b` is exact; `/a/*` takes every path below `/a/` that no exact or longer one takes.
pub(crate) struct Router {
    #[cfg(feature = "native")]
    exact: BTreeMap<String, Arc<Served>>,
    /// Longest first.
    #[cfg(feature = "native")]
    prefixes: Vec<(String, Arc<Served>)>,
    /// Counts what is for none of them.
    #[cfg(feature = "native")]
    others: Arc<Served>,
    max_running: usize,
    /// One limit for all connections, in place of one for each.
    #[cfg(feature = "native")]
    pub(crate) load: Option<Arc<Load>>,
    /// Where calls with idempotency keys are run once.
    #[cfg(feature = "native")]
    pub(crate) keys: Option<Arc<Keys>>,
    pub(crate) guard: Guard,
}

impl Router {
    #[cfg(feature = "native")]
    pub(crate) fn new(
        max_running: usize,
        load: Option<Arc<Load>>,
        keys: Option<Arc<Keys>>,
        guard: Guard,
    ) -> Self {
        let others = Arc::new(Served::new("other".to_owned(), None));
        Self { exact: BTreeMap::new(), prefixes: Vec::new(), others, max_running, load, keys, guard }
    }

    /// What was counted of the calls, by the handlers' paths.
    #[cfg(feature = "native")]
    pub(crate) fn metrics(&self) -> Vec<MethodMetrics> {
        let prefixes = self.prefixes.iter().map(|(_, served)| served);
        let mut all: Vec<_> = self.exact.values().chain(prefixes).collect();
        all.sort_by(|one, other| one.path().cmp(other.path()));
        all.push(&self.others);
        all.iter().map(|served| served.metrics()).filter(|method| !method.calls.is_empty()).collect()
    }

    /// A call came in over that connection, which read it then.
    pub(crate) fn count(&self, call: &mut Arrived, since: Time) {
        #[cfg(feature = "native")]
        {
            let served = std::str::from_utf8(&call.method).ok().and_then(|method| self.find(method));
            let served = served.unwrap_or(&self.others);
            call.tally = Some(Tally::new(served.clone(), call.stream.link.id, since));
        }
        #[cfg(not(feature = "native"))]
        let _ = (call, since);
    }

    /// Adds a handler.
    ///
    /// # Errors
    /// INVALID_CONFIGURATION for a path that does not begin with `/` or is taken.
    #[cfg(feature = "native")]
    pub(crate) fn add(&mut self, path: String, handler: Arc<dyn MessageHandler>) -> Result<(), Status> {
        let invalid = |why: &str| {
            Err(Status::from_reason(Reason::INVALID_CONFIGURATION, format!("handler path {path:?} {why}")))
        };
        if !path.starts_with('/') {
            return invalid("does not begin with /");
        }
        let served = Arc::new(Served::new(path.clone(), Some(handler)));
        match path.strip_suffix('*') {
            Some(prefix) if prefix.contains('*') || !prefix.ends_with('/') => {
                invalid("may have one *, after the last /")
            }
            Some(prefix) => {
                if self.prefixes.iter().any(|(other, _)| other == prefix) {
                    return invalid("has a handler already");
                }
                // The longest first.
                let at = self.prefixes.partition_point(|(other, _)| other.len() >= prefix.len());
                self.prefixes.insert(at, (prefix.to_owned(), served));
                Ok(())
            }
            None if path.contains('*') => invalid("may have one *, after the last /"),
            None if self.exact.contains_key(&path) => invalid("has a handler already"),
            None => {
                self.exact.insert(path, served);
                Ok(())
            }
        }
    }

    /// Handlers that run at once for one connection; none where they are counted for the server.
    pub(crate) fn max_running(&self) -> Option<usize> {
        #[cfg(feature = "native")]
        if self.load.is_some() {
            return None;
        }
        Some(self.max_running)
    }

    /// The right to run a call's handler now, of which its connection has some `free`.
    pub(crate) fn permit(self: &Arc<Self>, call: &Arrived, free: bool) -> Option<Permit> {
        #[cfg(feature = "native")]
        if let Some(load) = &self.load {
            if call.method.starts_with(HEALTH) {
                return Some(Permit::Server(None));
            }
            return Some(Permit::Server(Some(load.enter(self, call.priority)?)));
        }
        let _ = call;
        free.then_some(Permit::Connection)
    }

    #[cfg(feature = "native")]
    fn find(&self, method: &str) -> Option<&Arc<Served>> {
        self.exact.get(method).or_else(|| {
            self.prefixes
                .iter()
                .find(|(prefix, _)| method.starts_with(prefix.as_str()))
                .map(|(_, served)| served)
        })
    }

    /// Starts the handler of a call that holds a permit: its outcome, when the first poll already has one, which is the caller's to
    /// count. So is the credit of its first message to return.
    pub(crate) fn start(self: &Arc<Self>, mut arrived: Arrived, permit: Permit) -> Option<Answered> {
        let stream = arrived.stream.clone();
        let (is_whole, outlives) = (arrived.is_whole(), self.outlives(&arrived));
        let tally = arrived.tally.take();
        let mut future = match self.begin(arrived, tally.as_ref()) {
            Ok(future) => future,
            Err(status) => return Some((Err(status), tally)),
        };
        match poll(&mut future, &mut Context::from_waker(Waker::noop())) {
            Poll::Ready(outcome) => Some((outcome, tally)),
            Poll::Pending => {
                let runtime = stream.link.runtime.clone();
                runtime.spawn(Box::pin(Run {
                    router: self.clone(),
                    stream,
                    future: Some(future),
                    tally,
                    permit,
                    is_whole,
                    outlives,
                }));
                None
            }
        }
    }

    /// Whether a call goes on when its connection ends.
    fn outlives(&self, arrived: &Arrived) -> bool {
        #[cfg(feature = "native")]
        return self.keys.is_some() && arrived.metadata.get(KEY).is_some();
        #[cfg(not(feature = "native"))]
        {
            let _ = arrived;
            false
        }
    }

    /// A handler's work, not yet begun.
    fn begin(&self, arrived: Arrived, tally: Option<&Tally>) -> Result<HandlerFuture, Status> {
        let Arrived { stream, principal, method, metadata, priority, message, end, .. } = arrived;
        let Some(handler) = tally.and_then(Tally::handler) else {
            stream.release();
            let method = String::from_utf8_lossy(&method).into_owned();
            return Err(Status::from_reason(Reason::UNKNOWN_METHOD, format!("unknown method {method}")));
        };
        let first = match (message, end) {
            (Some(message), end) => First::Message(message, end),
            (None, true) => First::End,
            (None, false) => First::None,
        };
        let call =
            ServerCall { stream, principal, inbox: Inbox::default(), method, metadata, priority, first };
        #[cfg(feature = "native")]
        if let Some(key) = Key::of(&call.metadata)? {
            match &self.keys {
                Some(keys) => return Ok(keys.work(handler.clone(), call, key)),
                None => key.unkept()?,
            }
        }
        catch_unwind(AssertUnwindSafe(|| handler.handle(call))).map_err(|panic| panicked(&*panic))
    }

    /// Starts a call that waited, with a permit of its connection's that is taken for it, and those after it while they end
    /// at once.
    pub(crate) fn start_holding_permit(self: &Arc<Self>, first: Arrived, link: &Link) {
        let mut next = Some(first);
        while let Some(arrived) = next {
            let key = arrived.stream.key;
            match self.start(arrived, Permit::Connection) {
                // It runs, and has the permit.
                None => return,
                Some((outcome, tally)) => {
                    tally.into_iter().for_each(|tally| tally.ended(code_of(&outcome), link.runtime.now()));
                    link.respond(key, outcome);
                }
            }
            next = link.release_permit();
        }
    }

    /// Runs a call that waited in the server's line, as a task of its own.
    #[cfg(feature = "native")]
    pub(crate) async fn run(self: Arc<Self>, mut arrived: Arrived, permit: Permit) {
        let stream = arrived.stream.clone();
        let mut run = Run {
            router: self.clone(),
            stream: stream.clone(),
            future: None,
            tally: arrived.tally.take(),
            permit,
            is_whole: arrived.is_whole(),
            outlives: self.outlives(&arrived),
        };
        // It may have ended, or be about to, while the task waited for its turn.
        let late = stream.remaining().is_some_and(|remaining| remaining.is_zero());
        if late || stream.is_gone() {
            run.ended(if late { Code::DeadlineExceeded } else { Code::Cancelled });
            stream.release();
            return;
        }
        match self.begin(arrived, run.tally.as_ref()) {
            Ok(future) => run.future = Some(future),
            Err(status) => {
                run.ended(status.code());
                stream.link.respond(stream.key, Err(status));
            }
        }
        run.await;
    }
}

fn poll(future: &mut HandlerFuture, cx: &mut Context<'_>) -> Poll<Outcome> {
    match catch_unwind(AssertUnwindSafe(|| Pin::new(future).poll(cx))) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(result)) => Poll::Ready(result.map(|Reply { message, metadata, trailers }| Finish {
            message,
            metadata,
            trailers,
        })),
        Err(panic) => Poll::Ready(Err(panicked(&*panic))),
    }
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Status {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    let text: String = text.chars().take(200).collect();
    Status::from_reason(Reason::HANDLER_PANICKED, format!("the handler panicked: {text}"))
}

/// A handler that had to wait. Holds its permit until it ends, or until its call is gone.
struct Run {
    router: Arc<Router>,
    stream: StreamHandle,
    future: Option<HandlerFuture>,
    tally: Option<Tally>,
    permit: Permit,
    /// Its request came whole: how long it takes is the handler's doing, not its caller's.
    is_whole: bool,
    /// It goes on when the connection ends: whoever asks again gets its answer.
    outlives: bool,
}

impl Run {
    /// Counts the call, once.
    fn ended(&mut self, code: Code) {
        if let Some(tally) = self.tally.take() {
            tally.ended(code, self.stream.link.runtime.now());
        }
    }
}

impl Future for Run {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if let Some(future) = &mut this.future {
            let outlives = |status: &Status| {
                this.outlives && !matches!(status.reason(), Reason::CANCELLED | Reason::DEADLINE_EXCEEDED)
            };
            let told = match this.stream.poll_gone(cx).filter(|status| !outlives(status)) {
                None => {
                    let outcome = std::task::ready!(poll(future, cx));
                    let told = outcome.is_ok();
                    this.ended(code_of(&outcome));
                    this.stream.link.respond(this.stream.key, outcome);
                    told
                }
                Some(status) => {
                    this.ended(status.code());
                    status.reason() == Reason::DEADLINE_EXCEEDED
                }
            };
            this.future = None;
            if told && this.is_whole {
                this.permit.ended();
            }
        }
        Poll::Ready(())
    }
}

impl Drop for Run {
    /// However the task ends, the permit goes on: to the next call in line, or back.
    fn drop(&mut self) {
        self.future = None;
        let link = &self.stream.link;
        match self.permit {
            Permit::Connection => {
                if let Some(next) = link.release_permit() {
                    self.router.start_holding_permit(next, link);
                }
            }
            // The server's is given back when it is dropped.
            #[cfg(feature = "native")]
            Permit::Server(_) => link.handler_ended(),
        }
    }
}
