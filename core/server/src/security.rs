//! The gate that every call passes, whose refusals are counted and logged. Who may call what is decided by the sdk.

use std::{
    fmt, io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tracing::{debug, error, info, warn};
use valkyrie_sdk::{
    CallInfo, Gate, Level, Log, Peer, Principal, Reason, Record, Refusal, Status,
    access::{Access, Audit, AuditStats},
};

/// Refusals that are logged in a second; more are counted. Strangers must not fill a disk.
const LINES_PER_SECOND: u32 = 10;
/// How often it is looked whether the policy or the audit has something to say.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The gate of the server's calls: what it refuses is counted and logged.
pub(crate) struct Door {
    access: Access,
    denied: AtomicU64,
    limited: AtomicU64,
    credentials_refused: AtomicU64,
    pace: Mutex<Pace>,
}

/// How many lines were written in this second.
struct Pace {
    since: Instant,
    lines: u32,
    left_out: u64,
}

/// What a door counted since the start.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) denied: u64,
    pub(crate) limited: u64,
    pub(crate) credentials_refused: u64,
    pub(crate) audit: AuditStats,
}

impl Door {
    pub(crate) fn new(access: Access) -> Self {
        Self {
            access,
            denied: AtomicU64::new(0),
            limited: AtomicU64::new(0),
            credentials_refused: AtomicU64::new(0),
            pace: Mutex::new(Pace { since: Instant::now(), lines: 0, left_out: 0 }),
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        Counts {
            denied: self.denied.load(Relaxed),
            limited: self.limited.load(Relaxed),
            credentials_refused: self.credentials_refused.load(Relaxed),
            audit: self.access.audit().map(Audit::stats).unwrap_or_default(),
        }
    }

    /// Whether there is room for another line, and how many were left out before it.
    fn line(&self) -> Option<u64> {
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        if pace.since.elapsed() >= Duration::from_secs(1) {
            (pace.since, pace.lines) = (Instant::now(), 0);
        }
        if pace.lines == LINES_PER_SECOND {
            pace.left_out += 1;
            return None;
        }
        pace.lines += 1;
        Some(std::mem::take(&mut pace.left_out))
    }

    /// Reads the policy again: whether it is another one. Who tends it tells what came of it, too.
    ///
    /// # Errors
    /// What is wrong with it. Then the rules before it stay in force.
    pub(crate) fn reload(&self) -> Result<bool, String> {
        self.access.reload().map_err(|status| status.message().to_owned())
    }

    /// Writes what the audit still has to write.
    pub(crate) fn flush(&self) {
        if let Some(audit) = self.access.audit()
            && !audit.flush()
        {
            error!(why = ?audit.stats().failing, "the audit could not be written to its end");
        }
    }

    /// Says what becomes of the policy and the audit, and reads the policy again when it is told to. Never ends.
    pub(crate) async fn tend(self: Arc<Self>, mut reload: Reload) {
        let refused = |access: &Access| access.policy_error().map(|status| status.message().to_owned());
        let mut version = self.access.policy().rules().version().to_owned();
        let (mut told, mut lost, mut failing) = (None, 0, None);
        let mut looks = tokio::time::interval(LOOK_AGAIN);
        loop {
            let asked = tokio::select! {
                () = reload.asked() => true,
                _ = looks.tick() => false,
            };
            if asked {
                // What is wrong with it is told below.
                let _ = self.access.reload();
                told = None;
            }
            let now = self.access.policy().rules().version().to_owned();
            let error = refused(&self.access);
            if now != version {
                info!(version = %now, "policy loaded");
                version = now;
            } else if asked && error.is_none() {
                info!(%version, "policy unchanged");
            }
            if error != told {
                if let Some(why) = &error {
                    warn!(
                        why = why.as_str(),
                        "the policy's file was refused; the rules before it stay in force"
                    );
                }
                told = error;
            }
            let audit = self.counts().audit;
            if audit.failing != failing {
                match &audit.failing {
                    Some(why) => error!(why = why.as_str(), "the audit cannot be written"),
                    None => info!("the audit is written again"),
                }
                failing = audit.failing;
            }
            if audit.lost != lost {
                error!(records = audit.lost - lost, "the audit had no room for records");
                lost = audit.lost;
            }
        }
    }
}

impl Gate for Door {
    fn admit(&self, call: &CallInfo<'_>) -> Result<(), Status> {
        let result = Gate::admit(&self.access, call);
        if let Err(status) = &result {
            let limited = status.reason() == Reason::RATE_LIMITED;
            (if limited { &self.limited } else { &self.denied }).fetch_add(1, Relaxed);
            if let Some(left_out) = self.line() {
                // As strings, and so quoted: strangers wrote them.
                warn!(
                    principal = call.principal.id(),
                    method = call.method,
                    peer = call.peer.endpoint.as_str(),
                    connection = call.connection,
                    reason = status.reason().name(),
                    left_out,
                    "call refused"
                );
            }
        }
        result
    }

    fn authenticated(&self, peer: &Peer, connection: u64, outcome: Result<&Principal, &Refusal>) {
        Gate::authenticated(&self.access, peer, connection, outcome);
        match outcome {
            Ok(principal) => {
                debug!(
                    principal = principal.id(),
                    peer = peer.endpoint.as_str(),
                    connection,
                    "credentials accepted"
                );
            }
            Err(refusal) => {
                self.credentials_refused.fetch_add(1, Relaxed);
                if let Some(left_out) = self.line() {
                    let (peer, why) = (peer.endpoint.as_str(), refusal.0.as_str());
                    warn!(peer, connection, why, left_out, "credentials refused");
                }
            }
        }
    }
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Door").field(&self.access).finish()
    }
}

/// The signal that asks for the policy to be read again: SIGHUP.
pub(crate) struct Reload(#[cfg(unix)] tokio::signal::unix::Signal);

impl Reload {
    pub(crate) fn new() -> io::Result<Self> {
        #[cfg(unix)]
        return Ok(Self(tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup())?));
        #[cfg(not(unix))]
        Ok(Self())
    }

    pub(crate) async fn asked(&mut self) {
        #[cfg(unix)]
        self.0.recv().await;
        #[cfg(not(unix))]
        std::future::pending::<()>().await;
    }
}

/// Writes what the sdk tells to the server's log.
pub(crate) struct ToLog;

impl Log for ToLog {
    fn enabled(&self, level: Level) -> bool {
        level <= Level::Info
    }

    fn log(&self, record: Record) {
        let fields: Vec<String> =
            record.fields.iter().map(|(key, value)| format!("{key}={value:?}")).collect();
        let (message, fields) = (record.message.as_str(), fields.join(" "));
        match record.level {
            Level::Error => error!(message, fields),
            Level::Info => info!(message, fields),
            _ => warn!(message, fields),
        }
    }
}
