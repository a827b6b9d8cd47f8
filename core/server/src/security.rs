//! What the configuration says of security, put to use: what the server shows, whose credentials it takes, and the gate that every
//! call passes, whose refusals are counted and logged. Who may call what is decided by the sdk.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Read},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tracing::{debug, error, info, warn};
use valkyrie_sdk::{
    Authenticator, CallInfo, Gate, Jwt, JwtAlgorithm, JwtBuilder, Level, Log, Peer, Pem, Principal, Reason,
    Record, Refusal, Security, ServerBuilder, StaticTokens, Status,
    access::{Access, Audit, AuditStats, Policy},
};
use zeroize::Zeroizing;

use crate::config::{Algorithm, AuditOnFailure, Config, ConfigError, MinSecurity, TokenIssuer};

/// The rules where everybody may call everything, so that even that can be audited.
const EVERYBODY: &str = r#"
version = 1
[roles.everybody]
allow = ["/*"]
[[bindings]]
principals = ["*"]
roles = ["everybody"]
"#;
/// The largest file of static tokens or of a key.
const MOST_BYTES: u64 = 16 << 20;
/// The shortest key of an audit: what SHA-256 gives.
const AUDIT_KEY_BYTES: usize = 32;
/// Refusals that are logged in a second; more are counted. Strangers must not fill a disk.
const LINES_PER_SECOND: u32 = 10;
/// How often it is looked whether the policy or the audit has something to say.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

fn given(path: &Path) -> bool {
    !path.as_os_str().is_empty()
}

impl Config {
    /// Whether anything here asks who somebody is. Then nobody may call anything but health, unless a policy or `open_to_all` says
    /// more.
    pub(crate) fn has_credentials(&self) -> bool {
        [&self.certificates, &self.client_authorities, &self.static_tokens]
            .into_iter()
            .any(|path| given(path))
            || !self.token_issuers.is_empty()
            || self.min_security != MinSecurity::Insecure
    }

    /// Whether everything is denied for the want of a policy.
    pub(crate) fn denies_all(&self) -> bool {
        self.has_credentials() && !given(&self.policy) && !self.open_to_all
    }

    /// Whether everybody may call everything.
    pub(crate) fn allows_all(&self) -> bool {
        !self.has_credentials() && !given(&self.policy)
    }

    /// A builder that shows and asks for what is configured, and the gate to give it, without its audit.
    ///
    /// # Errors
    /// What cannot be used, with its key.
    pub(crate) fn secured(&self) -> Result<(ServerBuilder, Option<Access>), ConfigError> {
        self.check_identity()?;
        let mut builder = ServerBuilder::new().log(Arc::new(ToLog)).min_security(match self.min_security {
            MinSecurity::Insecure => Security::Insecure,
            MinSecurity::Tls => Security::Tls,
            MinSecurity::Mtls => Security::Mtls,
        });
        if given(&self.certificates) {
            builder = builder.identity(Pem::file(&self.certificates), Pem::file(&self.private_key));
        }
        if given(&self.client_authorities) {
            builder = builder.client_authorities(Pem::file(&self.client_authorities));
        }
        if given(&self.revocation_lists) {
            builder = builder.revocation_lists(Pem::file(&self.revocation_lists));
        }
        let authenticators = self.authenticators()?;
        if !authenticators.is_empty() {
            builder = builder.authenticator(authenticators);
        }
        if given(&self.policy) && self.open_to_all {
            return Err(self.wrong("open_to_all", "a policy says who may call what: take one of the two out"));
        }
        let policy = if given(&self.policy) {
            Policy::from_file(&self.policy)
        } else if self.denies_all() {
            Ok(Policy::default())
        } else if self.has_credentials() || given(&self.audit) {
            Policy::from_toml(EVERYBODY)
        } else {
            return Ok((builder, None));
        };
        let policy = policy.map_err(|status| self.wrong("policy", status.message()))?;
        Ok((builder, Some(Access::new(policy))))
    }

    /// Checks everything that [`Config::secured`] names, without a port and without writing anything.
    ///
    /// # Errors
    /// What cannot be used, with its key.
    pub(crate) async fn check(&self) -> Result<(), ConfigError> {
        let (builder, _) = self.secured()?;
        self.audit_key()?;
        let built = builder.bind("memory:valkyrie-server-check").build().await;
        let wrong = |status: Status| {
            self.blame(&status).unwrap_or_else(|| self.wrong("certificates", status.message()))
        };
        built.map(drop).map_err(wrong)
    }

    /// An error with the key of the file that the status names, if it names one.
    pub(crate) fn blame(&self, status: &Status) -> Option<ConfigError> {
        let files = [
            ("certificates", &self.certificates),
            ("private_key", &self.private_key),
            ("client_authorities", &self.client_authorities),
            ("revocation_lists", &self.revocation_lists),
        ];
        let named = |(_, path): &&(&str, &std::path::PathBuf)| {
            given(path) && status.message().contains(&path.display().to_string())
        };
        files.iter().find(named).map(|(key, _)| self.wrong(key, status.message()))
    }

    /// Opens the audit.
    ///
    /// # Errors
    /// A file that cannot be written, or is no audit, and a key that cannot be used.
    pub(crate) fn open_audit(&self) -> Result<Option<Audit>, ConfigError> {
        let key = self.audit_key()?;
        if !given(&self.audit) {
            return Ok(None);
        }
        let mut audit = Audit::builder(&self.audit).max_file_bytes(self.audit_max_file_bytes);
        if self.audit_on_failure == AuditOnFailure::FailClosed {
            audit = audit.fail_closed();
        }
        if let Some(key) = key {
            audit = audit.key(&key);
        }
        audit.open().map(Some).map_err(|status| self.wrong("audit", status.message()))
    }

    fn audit_key(&self) -> Result<Option<Zeroizing<Vec<u8>>>, ConfigError> {
        if !given(&self.audit_key) {
            return Ok(None);
        }
        let wrong = |why: String| self.wrong("audit_key", format!("{} {why}", self.audit_key.display()));
        if !given(&self.audit) {
            return Err(self.wrong("audit", "an audit_key is of no use without it"));
        }
        let key = secret(&self.audit_key).map_err(wrong)?;
        if key.len() < AUDIT_KEY_BYTES {
            let why = format!("has {} bytes; give {AUDIT_KEY_BYTES} random ones or more", key.len());
            return Err(wrong(why));
        }
        Ok(Some(key))
    }

    fn check_identity(&self) -> Result<(), ConfigError> {
        let needs_tls =
            |bind: &&String| ["tls://", "wss://", "quic://"].iter().any(|tls| bind.starts_with(tls));
        match (given(&self.certificates), given(&self.private_key)) {
            (true, true) => {}
            (true, false) => return Err(self.wrong("private_key", "certificates are of no use without it")),
            (false, true) => {
                return Err(self.wrong("certificates", "a private_key is of no use without them"));
            }
            (false, false) => {
                if let Some(bind) = self.bind.iter().find(needs_tls) {
                    return Err(
                        self.wrong("certificates", format!("{bind} needs certificates and private_key"))
                    );
                }
                if given(&self.client_authorities) {
                    return Err(self.wrong(
                        "certificates",
                        "client_authorities need certificates and private_key: clients show theirs over TLS only",
                    ));
                }
                if self.min_security != MinSecurity::Insecure {
                    return Err(self.wrong(
                        "certificates",
                        "min_security above insecure needs certificates and private_key",
                    ));
                }
            }
        }
        if given(&self.revocation_lists) && !given(&self.client_authorities) {
            return Err(self.wrong("client_authorities", "revocation_lists are of no use without them"));
        }
        if self.min_security == MinSecurity::Mtls && !given(&self.client_authorities) {
            return Err(self.wrong("client_authorities", "min_security: mtls needs them"));
        }
        Ok(())
    }

    fn authenticators(&self) -> Result<Vec<Box<dyn Authenticator>>, ConfigError> {
        let mut all: Vec<Box<dyn Authenticator>> = Vec::new();
        if given(&self.static_tokens) {
            let path = self.static_tokens.display();
            let wrong = |why: String| self.wrong("static_tokens", format!("{path}{why}"));
            let text = secret(&self.static_tokens).map_err(|why| wrong(format!(" {why}")))?;
            let tokens = static_tokens(&text);
            all.push(Box::new(tokens.map_err(|(line, why)| wrong(format!(":{line}: {why}")))?));
        }
        let mut jwt: Option<Jwt> = None;
        for (index, issuer) in self.token_issuers.iter().enumerate() {
            let wrong = |why: String| self.wrong(&format!("token_issuers[{index}].issuer"), why);
            let checked = issuer.jwt().map_err(wrong)?;
            jwt = Some(match jwt {
                Some(others) => others.and(checked).map_err(|status| wrong(status.message().to_owned()))?,
                None => checked,
            });
        }
        if let Some(jwt) = jwt {
            all.push(Box::new(jwt));
        }
        Ok(all)
    }
}

impl TokenIssuer {
    fn jwt(&self) -> Result<Jwt, String> {
        let read = |path: &Path| fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
        let mut builder = JwtBuilder::new(&self.issuer, &self.audience)
            .leeway(Duration::from_secs(self.leeway_s))
            .log(Arc::new(ToLog));
        if let Some(name) = &self.name {
            builder = builder.name(name);
        }
        builder = match self.typ.as_deref() {
            None => builder,
            Some("*") => builder.any_typ(),
            Some(typ) => builder.typ(typ),
        };
        if let Some(claim) = &self.roles_claim {
            builder = builder.roles_claim(claim);
        }
        for key in &self.keys {
            let algorithm = match key.algorithm {
                Algorithm::EdDSA => JwtAlgorithm::EdDsa,
                Algorithm::ES256 => JwtAlgorithm::Es256,
                Algorithm::RS256 => JwtAlgorithm::Rs256,
                Algorithm::HS256 => {
                    let shared = secret(&key.file).map_err(|why| format!("{} {why}", key.file.display()))?;
                    builder = builder.hs256_secret(&key.kid, &*shared);
                    continue;
                }
            };
            builder = builder.key_file(&key.kid, algorithm, &key.file);
        }
        if let Some(path) = &self.jwks_file {
            builder = builder.jwks_file(path);
        }
        match (&self.jwks_url, &self.jwks_roots) {
            (Some(url), roots) => {
                builder = builder.jwks_url(url);
                if let Some(roots) = roots {
                    builder = builder.jwks_roots_pem(read(roots)?);
                }
            }
            (None, Some(_)) => return Err("jwks_roots is of no use without jwks_url".into()),
            (None, None) => {}
        }
        builder.build().map_err(|status| status.message().to_owned())
    }
}

/// Reads what nobody else may: no word of it is in an error.
fn secret(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = file.metadata().map_err(|error| error.to_string())?.permissions().mode();
        if mode & 0o077 != 0 {
            let mode = mode & 0o777;
            return Err(format!("may be read by others (mode {mode:04o}), and is a secret: chmod 600 it"));
        }
    }
    let mut bytes = Zeroizing::new(Vec::new());
    let read = file.take(MOST_BYTES + 1).read_to_end(&mut bytes);
    match read.map_err(|error: io::Error| error.to_string())? {
        read if read as u64 > MOST_BYTES => Err(format!("is longer than {MOST_BYTES} bytes")),
        _ => Ok(bytes),
    }
}

/// Lines of a principal, its token and its roles; empty lines and those that begin with # are nothing.
fn static_tokens(text: &[u8]) -> Result<StaticTokens, (usize, String)> {
    let told = |line: usize| move |status: Status| (line, status.message().to_owned());
    let text = std::str::from_utf8(text).map_err(|_| (1, "is not UTF-8".to_owned()))?;
    let mut tokens = StaticTokens::new().map_err(told(0))?;
    let mut listed = false;
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        let mut words = line.split_whitespace();
        let Some(principal) = words.next().filter(|word| !word.starts_with('#')) else { continue };
        // What stands there may be the token.
        if !principal.starts_with("sub:") || principal.len() == 4 {
            return Err((number, "begins with no principal; write: sub:NAME TOKEN ROLES".into()));
        }
        let token = words.next().ok_or((number, format!("{principal} has no token")))?;
        let principal = Principal::new(principal).with_roles(words.map(str::to_owned));
        tokens = tokens.token(token, principal).map_err(told(number))?;
        listed = true;
    }
    if listed { Ok(tokens) } else { Err((1, "lists no token; write lines of: sub:NAME TOKEN ROLES".into())) }
}

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

    async fn asked(&mut self) {
        #[cfg(unix)]
        self.0.recv().await;
        #[cfg(not(unix))]
        std::future::pending::<()>().await;
    }
}

/// Writes what the sdk tells to the server's log.
struct ToLog;

impl Log for ToLog {
    fn enabled(&self, level: Level) -> bool {
        level <= Level::Warn
    }

    fn log(&self, record: Record) {
        let fields: Vec<String> =
            record.fields.iter().map(|(key, value)| format!("{key}={value:?}")).collect();
        let (message, fields) = (record.message.as_str(), fields.join(" "));
        match record.level {
            Level::Error => error!(message, fields),
            _ => warn!(message, fields),
        }
    }
}
