//! Who is told what becomes of a client's calls and their attempts.

use std::fmt;
#[cfg(feature = "observe")]
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use valkyrie_protocol::{Limits, Metadata, Status, Time};

#[cfg(feature = "script")]
use crate::script::Script;
use crate::{
    Endpoint,
    policy::{Edge, GiveUp},
};

/// Is told each step of each call of a client, as it happens: [`ClientBuilder::observer`](crate::ClientBuilder::observer).
///
/// It is told on whichever thread the step happens, those of one call in their order, perhaps with the client's locks held: it must not
/// block, panic, call the client, nor drop its last clone. A channel that another thread reads keeps all of that.
pub trait Observer: Send + Sync + 'static {
    /// Something happened.
    fn note(&self, event: &Event<'_>);

    /// May add to what an attempt takes along, which it was told of just now. Default: nothing.
    fn carry(&self, call: CallId, attempt: u64, metadata: &mut Metadata) {
        let _ = (call, attempt, metadata);
    }
}

/// A call: no two of a process have the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub(crate) u64);

impl CallId {
    /// Counted from 1.
    pub fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What happened, and when.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Event<'a> {
    /// On the clock of the client's [`Runtime`](crate::Runtime).
    pub at: Time,
    /// Which call it is a step of; none of what happens to servers and their connections, which many calls may wait for.
    pub call: Option<CallId>,
    /// What it is.
    pub step: Step<'a>,
}

/// What can happen.
///
/// A call: `Call`, then for each attempt `Waits` if there is no connection, `Attempt`, `AttemptEnded` and `Retry` or `NoRetry`, and
/// `Ended` once. Attempts that only wait have no `Attempt`; copies of a hedged call go out while others are under way, and end without a
/// verdict; a copy that another one was faster than has no end of its own.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Step<'a> {
    /// A call began.
    #[non_exhaustive]
    Call {
        /// Its method.
        method: &'a str,
        /// Whether it may be executed twice.
        idempotent: bool,
        /// When it is over.
        deadline: Option<Time>,
    },
    /// It waits for a connection.
    Waits,
    /// An attempt of it goes out.
    #[non_exhaustive]
    Attempt {
        /// Counted from 1.
        number: u64,
        /// Where it goes.
        server: &'a Endpoint,
    },
    /// An attempt ended.
    #[non_exhaustive]
    AttemptEnded {
        /// Its number.
        number: u64,
        /// Where it went; one that found no connection went nowhere.
        server: Option<&'a Endpoint>,
        /// Why it failed, if it did.
        failure: Option<&'a Status>,
    },
    /// There will be a next attempt.
    #[non_exhaustive]
    Retry {
        /// It is not made before then, which may be now.
        at: Time,
        /// The server has not processed the last one: this one is free.
        transparent: bool,
    },
    /// There is no next attempt.
    #[non_exhaustive]
    NoRetry {
        /// Why.
        why: GiveUp,
    },
    /// The call ended.
    #[non_exhaustive]
    Ended {
        /// Why it failed, if it did.
        failure: Option<&'a Status>,
    },
    /// A connection is tried.
    #[non_exhaustive]
    Dial {
        /// To whom.
        server: &'a Endpoint,
    },
    /// What carries the connection stands, TLS and all; its HELLO goes out with the first call.
    #[non_exhaustive]
    Connected {
        /// To whom.
        server: &'a Endpoint,
    },
    /// The server has said HELLO.
    #[non_exhaustive]
    Greeted {
        /// Who.
        server: &'a Endpoint,
        /// The version of the protocol that both speak.
        version: u8,
        /// What it is ready to receive.
        limits: &'a Limits,
    },
    /// The connection takes calls, or could not be made.
    #[non_exhaustive]
    Dialled {
        /// To whom.
        server: &'a Endpoint,
        /// Why not.
        failure: Option<&'a Status>,
    },
    /// A connection is over.
    #[non_exhaustive]
    Lost {
        /// To whom.
        server: &'a Endpoint,
        /// Why.
        failure: Option<&'a Status>,
    },
    /// A breaker changed.
    #[non_exhaustive]
    Breaker {
        /// Of which server.
        server: &'a Endpoint,
        /// Of which method.
        method: &'a str,
        /// From what to what.
        edge: &'a Edge,
    },
}

/// Those who are told: a script, somebody else, or both.
#[cfg(feature = "observe")]
pub(crate) struct Watch {
    observer: Option<Arc<dyn Observer>>,
    #[cfg(feature = "script")]
    pub(crate) script: Option<Arc<Script>>,
}

#[cfg(feature = "observe")]
impl Watch {
    /// `None` where nobody is told.
    pub(crate) fn new(
        observer: Option<Arc<dyn Observer>>,
        #[cfg(feature = "script")] script: Option<Arc<Script>>,
    ) -> Option<Self> {
        let watch = Self {
            observer,
            #[cfg(feature = "script")]
            script,
        };
        #[cfg(feature = "script")]
        let scripted = watch.script.is_some();
        #[cfg(not(feature = "script"))]
        let scripted = false;
        (scripted || watch.has_observer()).then_some(watch)
    }

    /// Whether somebody beside a script is told.
    pub(crate) fn has_observer(&self) -> bool {
        self.observer.is_some()
    }

    /// Another call.
    pub(crate) fn call(&self) -> CallId {
        static LAST: AtomicU64 = AtomicU64::new(0);
        CallId(LAST.fetch_add(1, Relaxed) + 1)
    }

    pub(crate) fn carry(&self, call: CallId, attempt: u64, metadata: &mut Metadata) {
        if let Some(observer) = &self.observer {
            observer.carry(call, attempt, metadata);
        }
    }

    pub(crate) fn note(&self, event: &Event<'_>) {
        #[cfg(feature = "script")]
        if let Some(script) = &self.script {
            script.note(event);
        }
        if let Some(observer) = &self.observer {
            observer.note(event);
        }
    }
}
