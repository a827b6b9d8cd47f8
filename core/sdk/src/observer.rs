//! Who is told what becomes of a client's calls and their attempts.

use valkyrie_protocol::{Status, Time};

use crate::{Endpoint, Response, policy::Edge};

/// Is told each step of each call, in order, perhaps with the client's locks held: it must not block nor call the client.
pub(crate) trait Observer: Send + Sync {
    /// The answer to a call that is not for a server.
    fn answer(&self, method: &str) -> Option<Result<Response, Status>>;
    /// A call is about to begin on this thread.
    fn hold(&self);
    /// It has begun.
    fn release(&self);
    /// The client is gone.
    fn over(&self);
    /// Something happened.
    fn note(&self, now: Time, step: Step<'_>);
}

/// What can happen.
pub(crate) enum Step<'a> {
    /// A call began.
    Call { method: &'a str, idempotent: bool, deadline: Option<Time> },
    /// It waits for a connection.
    Waits,
    /// An attempt of it goes out, counted from 1.
    Attempt { number: u64, backend: Option<&'a Endpoint> },
    /// An attempt ended. One that found no connection has no backend.
    AttemptEnded { number: u64, backend: Option<&'a Endpoint>, failure: Option<&'a Status> },
    /// The next attempt is not made before then.
    Retry { at: Time, transparent: bool },
    /// There is no next attempt, and why.
    NoRetry { why: &'static str },
    /// The call ended.
    Ended { failure: Option<&'a Status> },
    /// A connection is tried.
    Dial { backend: &'a Endpoint },
    /// It is there, or not.
    Dialled { backend: &'a Endpoint, failure: Option<&'a Status> },
    /// A connection is over.
    Lost { backend: &'a Endpoint },
    /// A breaker changed.
    Breaker { backend: &'a Endpoint, method: &'a [u8], edge: &'a Edge },
}
