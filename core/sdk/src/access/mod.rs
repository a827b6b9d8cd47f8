//! What servers let happen: who may call what, how often, and a record of each decision.

mod audit;
mod policy;
mod rate;

use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use valkyrie_protocol::{Reason, Status, Time};

use self::{audit::Event, rate::Buckets};
use crate::{CallInfo, Gate, Peer, Principal, Refusal};

pub use audit::{Audit, AuditBuilder, AuditStats, AuditVerifier};
pub use policy::{Decision, Policy, Rules};

/// Decides of each call whether it is let in: by a [`Policy`], then by its limits, and records it. A server asks it as its
/// [`Gate`]: `ServerBuilder::new().gate(Arc::new(Access::new(Policy::from_file("policy.toml")?)))`.
///
/// A call is decided by one version of the policy. What a policy denies costs nothing of a limit.
pub struct Access {
    /// Where the clock of its limits begins.
    began: Instant,
    policy: Policy,
    buckets: Mutex<Buckets>,
    audit: Option<Audit>,
    refused: Mutex<Option<Status>>,
}

impl Access {
    /// By that policy, without an audit. [`Policy::default`] denies everything but health.
    pub fn new(policy: Policy) -> Self {
        let buckets = Mutex::new(Buckets::new(Buckets::MOST));
        Self { began: Instant::now(), policy, buckets, audit: None, refused: Mutex::default() }
    }

    /// Records every decision there.
    #[must_use]
    pub fn with_audit(mut self, audit: Audit) -> Self {
        self.audit = Some(audit);
        self
    }

    /// The policy.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The audit, if there is one.
    pub fn audit(&self) -> Option<&Audit> {
        self.audit.as_ref()
    }

    /// Why the policy's file was refused when it was last read; `None` when it is in force.
    pub fn policy_error(&self) -> Option<Status> {
        lock(&self.refused).clone()
    }

    /// Reads the policy's file again at once: whether its rules are others than those before. What was taken of limits that stay
    /// as they are stays taken.
    ///
    /// # Errors
    /// INVALID_CONFIGURATION with file, line and key; the rules in force stay.
    pub fn reload(&self) -> Result<bool, Status> {
        self.reloaded(self.policy.reload(), SystemTime::now())
    }

    fn reloaded(&self, outcome: Result<bool, Status>, wall: SystemTime) -> Result<bool, Status> {
        *lock(&self.refused) = outcome.as_ref().err().cloned();
        let rules = self.policy.rules();
        let event = match &outcome {
            Ok(false) => return outcome,
            Ok(true) => {
                lock(&self.buckets).keep(rules.all_limits());
                Event::new(wall, "policy", "loaded")
            }
            Err(status) => {
                Event { message: status.message().to_owned(), ..Event::new(wall, "policy", "refused") }
            }
        };
        // It has happened; a log that fails closed refuses the calls that follow.
        let _ = self.record(Event { policy: rules.version().to_owned(), ..event });
        outcome
    }

    /// Decides about one call. Limits go by `now`, whose origin must stay the same, and `wall` is what the audit has.
    ///
    /// # Errors
    /// UNAUTHENTICATED for `anonymous` and PERMISSION_DENIED for others whom the policy does not let in; RATE_LIMITED with the
    /// time to wait; UNAVAILABLE when the audit fails closed and cannot take it.
    pub fn admit(
        &self,
        principal: &Principal,
        method: &str,
        peer: &str,
        connection: u64,
        now: Time,
        wall: SystemTime,
    ) -> Result<(), Status> {
        if let Some(outcome) = self.policy.refresh(now) {
            // Whoever wants to know asks for `policy_error`: calls go on by the rules in force.
            let _ = self.reloaded(outcome, wall);
        }
        let rules = self.policy.rules();
        let decision = rules.decide(principal, method);
        let (outcome, rule, result) = if !decision.allowed {
            ("denied", decision.rule(), Err(denied(principal, method)))
        } else {
            let mut limits = rules.limits(&decision).peekable();
            let taken = match limits.peek() {
                Some(_) => lock(&self.buckets).take(principal.id(), limits, now),
                None => Ok(()),
            };
            match taken {
                Ok(()) => ("allowed", decision.rule(), Ok(())),
                Err((wait, limit)) => ("limited", &limit.text, Err(limited(principal, method, wait))),
            }
        };
        if self.audit.is_some() {
            self.record(Event {
                connection: Some(connection),
                peer: peer.to_owned(),
                principal: principal.id().to_owned(),
                method: method.to_owned(),
                policy: rules.version().to_owned(),
                rule: Some(rule.clone()),
                ..Event::new(wall, "call", outcome)
            })?;
        }
        result
    }

    /// Records whom credentials stood for, or why they were refused.
    ///
    /// # Errors
    /// UNAVAILABLE when the audit fails closed and cannot take it.
    pub fn authenticated(
        &self,
        outcome: Result<&Principal, &Refusal>,
        peer: &str,
        connection: u64,
        wall: SystemTime,
    ) -> Result<(), Status> {
        let mut event = match outcome {
            Ok(principal) => {
                Event { principal: principal.id().to_owned(), ..Event::new(wall, "credentials", "accepted") }
            }
            Err(refusal) => {
                Event { message: refusal.0.clone(), ..Event::new(wall, "credentials", "refused") }
            }
        };
        event.connection = Some(connection);
        event.peer = peer.to_owned();
        self.record(event)
    }

    fn record(&self, event: Event) -> Result<(), Status> {
        self.audit.as_ref().map_or(Ok(()), |audit| audit.record(event))
    }
}

impl Gate for Access {
    fn admit(&self, call: &CallInfo<'_>) -> Result<(), Status> {
        let (now, wall) = (Time::default().after(self.began.elapsed()), SystemTime::now());
        self.admit(call.principal, call.method, &call.peer.endpoint, call.connection, now, wall)
    }

    fn authenticated(&self, peer: &Peer, connection: u64, outcome: Result<&Principal, &Refusal>) {
        // Without room for it the calls that follow are refused, if the log fails closed.
        let _ = self.authenticated(outcome, &peer.endpoint, connection, SystemTime::now());
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = self.policy.rules().version().to_owned();
        f.debug_struct("Access").field("policy", &version).field("audit", &self.audit).finish()
    }
}

fn denied(principal: &Principal, method: &str) -> Status {
    if principal.is_anonymous() {
        Status::from_reason(
            Reason::UNAUTHENTICATED,
            format!("anonymous may not call {method}: credentials are needed"),
        )
    } else {
        Status::from_reason(Reason::PERMISSION_DENIED, format!("{} may not call {method}", principal.id()))
    }
}

/// Rounded up to what the wire can say, so that after it there is a call to be had.
fn limited(principal: &Principal, method: &str, wait: Duration) -> Status {
    let wait = Duration::from_millis(wait.as_micros().div_ceil(1_000).try_into().unwrap_or(u64::MAX));
    let message =
        format!("{} calls {method} too often: try again in {} ms", principal.id(), wait.as_millis());
    Status::from_reason(Reason::RATE_LIMITED, message).with_pushback(wait)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lower-case hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}
