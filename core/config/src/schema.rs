//! The schema: every key with its type, range, default and meaning, in one table.

use std::{ops::RangeInclusive, path::PathBuf, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::{Map, Value};
use valkyrie_sdk::{
    Endpoint, Limits,
    policy::{DedupPolicy, LimiterPolicy},
};

use crate::{ConfigError, Format, Profile, layers::Origins};

/// How logs are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// What is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// What ends the server.
    Error,
    /// And what an operator should look at.
    Warn,
    /// And what the server does: start, drain, end.
    #[default]
    Info,
    /// And every call with its correlation id.
    Debug,
}

/// The least protection of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum MinSecurity {
    /// As what is bound says.
    #[default]
    Insecure,
    /// Encrypted: tls://, wss://, quic://, or a sealed session over anything.
    Tls,
    /// So, and clients show a certificate.
    Mtls,
}

/// What happens to calls whose decision cannot be recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuditOnFailure {
    /// They go on, and how many records are missing is recorded later.
    #[default]
    FailOpen,
    /// They are refused.
    FailClosed,
}

/// How a key signs tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Algorithm {
    /// Ed25519.
    EdDSA,
    /// ECDSA with P-256 and SHA-256.
    ES256,
    /// RSA PKCS #1 v1.5 with SHA-256.
    RS256,
    /// HMAC with SHA-256 and a shared secret.
    HS256,
}

/// One entry of `token_issuers`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenIssuer {
    /// The claim `iss`.
    pub issuer: String,
    /// The claim `aud`.
    pub audience: String,
    /// What stands in its principals, `sub@NAME:subject`.
    pub name: Option<String>,
    /// The header `typ`; `*` takes any.
    pub typ: Option<String>,
    /// The claim with the roles.
    pub roles_claim: Option<String>,
    /// How far clocks may be apart, in seconds: 0 to 300, 30 by default.
    #[serde(default = "leeway_s", deserialize_with = "ranged::<_, 0, 300>")]
    pub leeway_s: u64,
    /// Its keys, each in a file.
    #[serde(default)]
    pub keys: Vec<TokenKey>,
    /// Its keys in one file (JWKS).
    pub jwks_file: Option<PathBuf>,
    /// Where it publishes its keys (JWKS).
    pub jwks_url: Option<String>,
    /// The certificates to trust there, in PEM.
    pub jwks_roots: Option<PathBuf>,
}

/// One key of an issuer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenKey {
    /// The header `kid`.
    pub kid: String,
    /// How it signs.
    pub algorithm: Algorithm,
    /// `PUBLIC KEY` in PEM; of HS256 the secret's bytes.
    pub file: PathBuf,
}

fn leeway_s() -> u64 {
    30
}

macro_rules! schema {
    ($($(#[$attribute:meta])? $key:ident: $type:ty = $default:expr, $doc:literal;)*) => {
        /// The configuration: a field for each key, with its default where no layer has said more. [`KEYS`] is the same as a table.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        #[non_exhaustive]
        #[allow(rustdoc::bare_urls)]
        pub struct Config {
            $(#[doc = $doc] $(#[$attribute])? pub $key: $type,)*
            /// Which layers have set what.
            #[serde(skip)]
            pub(crate) origins: Origins,
        }

        /// Every key, in the order that a generated file has.
        pub const KEYS: &[Key] = &[$(Key { name: stringify!($key), doc: $doc },)*];

        impl Default for Config {
            fn default() -> Self {
                Self { $($key: $default,)* origins: Origins::default() }
            }
        }
    };
}

schema! {
    profile: Profile = Profile::Dev, "dev, test, staging or prod: other defaults, and prod refuses what is unsafe: min_security: insecure and plaintext for other machines, open_to_all, static_tokens, secrets that stand in manuals, private keys that others may read.";
    #[serde(deserialize_with = "endpoints")]
    bind: Vec<String> = vec!["0.0.0.0:8080".into()], "Where to listen, at least one of: host:port or tcp://host:port, which answers WebSocket (ws://) too, tls://host:port, which answers wss:// too, quic://host:port, unix:///path. With certificates each of them takes sealed sessions.";
    #[serde(deserialize_with = "ranged::<_, 0, 86_400_000>")]
    drain_timeout_ms: u64 = 30_000, "How long a shutdown lets calls finish, in milliseconds: 0 to 86400000.";
    #[serde(deserialize_with = "ranged::<_, 1, 10_000_000>")]
    max_connections: u64 = 65_536, "Connections at once; further ones are closed as they come: 1 to 10000000, and never more than there are descriptors, less 64.";
    #[serde(deserialize_with = "ranged::<_, 1, 1_000_000>")]
    max_running_handlers: u64 = 256, "Handlers that run at once for one connection; further calls wait in order: 1 to 1000000. Of no meaning with concurrency_limit.";
    concurrency_limit: bool = false, "true runs as many handlers at once, for all connections together, as the server can do without their taking longer, and refuses calls that would wait too long (OVERLOADED) before a handler has seen them.";
    #[serde(deserialize_with = "ranged::<_, 1, 1_000_000>")]
    concurrency_initial: u64 = LimiterPolicy::default().initial.into(), "The limit that concurrency_limit begins with: 1 to 1000000.";
    #[serde(deserialize_with = "ranged::<_, 1, 1_000_000>")]
    concurrency_min: u64 = LimiterPolicy::default().min.into(), "The least that it falls to: 1 to 1000000, and no more than concurrency_initial.";
    #[serde(deserialize_with = "ranged::<_, 1, 1_000_000>")]
    concurrency_max: u64 = LimiterPolicy::default().max.into(), "The most that it grows to: 1 to 1000000, and no less than concurrency_initial.";
    #[serde(deserialize_with = "ranged::<_, 1, 86_400_000>")]
    concurrency_wait_ms: u64 = ms(LimiterPolicy::default().wait), "The longest that a call waits for it, or half of the time that the call has left, in milliseconds: 1 to 86400000.";
    #[serde(deserialize_with = "ranged::<_, 1, 1_000_000>")]
    concurrency_max_waiting: u64 = LimiterPolicy::default().max_waiting as u64, "Calls of one class (critical, normal, bulk) that may wait for it; further ones are refused as they come: 1 to 1000000.";
    dedup: bool = false, "true runs calls with an idempotency key once, and gives whoever asks again the same answer. Without it such a call that comes again ends with KEY_FORGOTTEN.";
    #[serde(deserialize_with = "ranged::<_, 1, 10_000_000>")]
    dedup_keys: u64 = DedupPolicy::default().capacity as u64, "Keys that dedup knows at once, each about 200 bytes beside its answer: 1 to 10000000.";
    #[serde(deserialize_with = "ranged::<_, 1, 1_099_511_627_776>")]
    dedup_bytes: u64 = DedupPolicy::default().bytes as u64, "Bytes of answers that it keeps at once: 1 to 1099511627776.";
    #[serde(deserialize_with = "ranged::<_, 1, 1_073_741_824>")]
    dedup_max_answer_bytes: u64 = DedupPolicy::default().max_answer_bytes as u64, "The longest answer that it keeps, in bytes: 1 to 1073741824.";
    #[serde(deserialize_with = "ranged::<_, 1_000, 86_400_000>")]
    dedup_ttl_ms: u64 = ms(DedupPolicy::default().ttl), "How long it keeps an answer, in milliseconds: 1000 to 86400000.";
    #[serde(deserialize_with = "ranged_or_0::<_, 1, 2_592_000_000>")]
    max_connection_age_ms: u64 = 0, "How old a connection becomes before it drains, ± 10 %, in milliseconds: 1 to 2592000000, or 0 for as old as it likes. Its client makes its next calls over another one.";
    #[serde(deserialize_with = "ranged::<_, 0, 86_400_000>")]
    connection_grace_ms: u64 = 30_000, "How long a connection that is too old lets calls finish, in milliseconds: 0 to 86400000.";
    #[serde(deserialize_with = "ranged_or_0::<_, 1, 2_592_000_000>")]
    max_connection_idle_ms: u64 = 0, "How long a connection may have no call before it is closed, in milliseconds: 1 to 2592000000, or 0 for ever.";
    #[serde(deserialize_with = "ranged_or_0::<_, 10_000, 86_400_000>")]
    keepalive_ms: u64 = 300_000, "How long a client with calls may be silent until it is asked whether it is there, in milliseconds: 10000 to 86400000, or 0 for never.";
    #[serde(deserialize_with = "ranged::<_, 1_000, 86_400_000>")]
    keepalive_timeout_ms: u64 = 20_000, "How long its answer may take, in milliseconds: 1000 to 86400000.";
    #[serde(deserialize_with = "ranged_or_0::<_, 300_000, 86_400_000>")]
    keepalive_idle_ms: u64 = 7_200_000, "As keepalive_ms for clients without calls, in milliseconds: 300000 to 86400000, or 0 for never.";
    #[serde(deserialize_with = "ranged::<_, 65_536, 1_073_741_824>")]
    max_message_bytes: u64 = Limits::default().max_message_bytes.into(), "The largest message taken, in bytes: 65536 to 1073741824. A connection may hold this much per unfinished message.";
    #[serde(deserialize_with = "ranged::<_, 100, 65_536>")]
    max_concurrent_streams: u64 = Limits::default().max_concurrent_streams.into(), "Streams that one connection may have open at once: 100 to 65536.";
    allow_origins: Vec<String> = Vec::new(), "Pages of these origins (https://app.example, or *) may connect by WebSocket, beside same-origin and loopback pages.";
    certificates: PathBuf = PathBuf::new(), "File with the certificate chain in PEM, the server's own first; tls://, quic:// and sealed sessions need it. It is read again when it changes.";
    private_key: PathBuf = PathBuf::new(), "File with the certificate's private key in PEM, for this server's user only. It is read again when it changes.";
    client_authorities: PathBuf = PathBuf::new(), "File with the certificates of authorities in PEM: every client over TLS must show a certificate of theirs (mTLS). It is read again when it changes.";
    revocation_lists: PathBuf = PathBuf::new(), "File with the revocation lists (CRL) of client_authorities in PEM. It is read again when it changes.";
    min_security: MinSecurity = MinSecurity::default(), "insecure, tls or mtls: what every connection must have, unix:// too; others are refused. tls means tls://, wss://, quic:// or sealed; mtls needs client_authorities.";
    token_issuers: Vec<TokenIssuer> = Vec::new(), "Who signs the tokens (JWT) that clients may send, a list. Each has issuer (the claim iss) and audience (the claim aud), and keys: a list of kid, algorithm (EdDSA, ES256, RS256, HS256) and file (PUBLIC KEY in PEM; of HS256 the secret's bytes); or jwks_file; or jwks_url with jwks_roots, a file of the certificates to trust there. Optional: name (principals are sub@NAME:subject, for several issuers), typ (at+jwt; * takes any), roles_claim (roles), leeway_s (30; 0 to 300).";
    static_tokens: PathBuf = PathBuf::new(), "File with tokens for development, readable for its owner only (chmod 600), taken from this machine only. Each line: a principal (sub:NAME), the token, and any roles.";
    policy: PathBuf = PathBuf::new(), "File (.toml or .json) that says who may call what and how often; it is read again when it changes, and at once on SIGHUP. Without it, a server with certificates, tokens or min_security answers nothing but /valkyrie.Health/*.";
    open_to_all: bool = false, "true lets everybody call everything where there is no policy, whatever else is configured.";
    audit: PathBuf = PathBuf::new(), "File that gets a line for every decision on a call or on credentials; `valkyrie audit verify` checks it.";
    audit_on_failure: AuditOnFailure = AuditOnFailure::default(), "fail_open or fail_closed: whether calls go on or are refused while the audit cannot be written.";
    #[serde(deserialize_with = "ranged::<_, 65_536, 1_099_511_627_776>")]
    audit_max_file_bytes: u64 = 64 << 20, "The size from which the audit's file is set aside and a new one begun, in bytes: 65536 to 1099511627776. Nothing is deleted.";
    audit_key: PathBuf = PathBuf::new(), "File whose bytes are the key of the audit's hashes, at least 32: without it whoever can write the audit can make all of it anew.";
    metrics: bool = true, "Whether /valkyrie.Metrics/Get and /valkyrie.Metrics/Connections answer.";
    admin: String = String::new(), "Where /healthz, /readyz, /metrics, /debug/connections and /reload are answered over HTTP, whatever metrics says: 127.0.0.1:port or unix:///path. It asks nobody who they are. Nowhere by default.";
    admin_open: bool = false, "true lets admin be an address that other machines reach, 0.0.0.0:9090 say: keep strangers off that port. /reload stays this machine's.";
    otlp_endpoint: String = String::new(), "A receiver of OpenTelemetry, http://host:4318 or https://host: it gets the metrics of /valkyrie.Metrics/Get by OTLP over HTTP, whether that answers or not. /v1/metrics is put behind it.";
    otlp_roots: PathBuf = PathBuf::new(), "File with the certificates of authorities in PEM to trust at an https:// otlp_endpoint. Without it, those that the system trusts.";
    otlp_service_name: String = "valkyrie-server".into(), "The attribute service.name of what the receiver gets.";
    #[serde(deserialize_with = "ranged::<_, 100, 86_400_000>")]
    otlp_interval_ms: u64 = 60_000, "How often it gets the metrics, in milliseconds: 100 to 86400000.";
    otlp_spans: bool = false, "true gives it a span for each call as well, a part of its caller's trace where the call says so (traceparent of W3C). /v1/traces is put behind otlp_endpoint.";
    #[serde(deserialize_with = "ranged::<_, 0, 100>")]
    otlp_sample_percent: u64 = 100, "How many of 100 calls that are in no trace get one: 0 to 100. Those that are in one are recorded when the trace is.";
    #[serde(deserialize_with = "ranged::<_, 1, 3_600_000>")]
    otlp_timeout_ms: u64 = 10_000, "How long each post to it may take, in milliseconds: 1 to 3600000.";
    log_format: LogFormat = LogFormat::default(), "text or json, one line per event on standard error.";
    log_level: LogLevel = LogLevel::default(), "error, warn, info or debug; debug has a line per call with its correlation id.";
}

/// One key of the configuration.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Key {
    /// As it is written in a file; in the environment in capitals behind `VALKYRIE_`, as a flag with `-` for `_`.
    pub name: &'static str,
    /// What it means, with unit and range.
    pub doc: &'static str,
}

impl Key {
    /// The key of that name.
    pub fn of(name: &str) -> Option<&'static Self> {
        KEYS.iter().find(|key| key.name == name)
    }
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn endpoints<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let endpoints = Vec::<String>::deserialize(deserializer)?;
    if endpoints.is_empty() {
        return Err(de::Error::custom("the list is empty; give at least one, such as 127.0.0.1:8080"));
    }
    for endpoint in &endpoints {
        let parsed = Endpoint::parse(endpoint).map_err(|status| de::Error::custom(status.message()))?;
        if !["tcp", "ws", "tls", "wss", "quic", "unix", "memory"].contains(&parsed.scheme()) {
            return Err(de::Error::custom(format!(
                "nothing listens at {endpoint:?}; write tcp://, tls://, quic:// or unix://"
            )));
        }
    }
    Ok(endpoints)
}

fn ranged<'de, D: Deserializer<'de>, const LEAST: u64, const MOST: u64>(
    deserializer: D,
) -> Result<u64, D::Error> {
    const fn range<const LEAST: u64, const MOST: u64>() -> RangeInclusive<u64> {
        LEAST..=MOST
    }
    let value = i128::from(i64::deserialize(deserializer)?);
    match u64::try_from(value) {
        Ok(value) if range::<LEAST, MOST>().contains(&value) => Ok(value),
        _ => {
            Err(de::Error::custom(format!("{value} is out of range; write a number from {LEAST} to {MOST}")))
        }
    }
}

/// As [`ranged`], or 0, which is never.
fn ranged_or_0<'de, D: Deserializer<'de>, const LEAST: u64, const MOST: u64>(
    deserializer: D,
) -> Result<u64, D::Error> {
    let value = i128::from(i64::deserialize(deserializer)?);
    match u64::try_from(value) {
        Ok(value) if value == 0 || (LEAST..=MOST).contains(&value) => Ok(value),
        _ => Err(de::Error::custom(format!(
            "{value} is out of range; write a number from {LEAST} to {MOST}, or 0 for never"
        ))),
    }
}

impl Config {
    /// The text of a file with every key at its default; YAML and TOML with comments, which JSON does not have.
    pub fn generate(format: Format) -> String {
        let values = Self::default().values();
        if format == Format::Json {
            return format!("{:#}\n", Value::Object(values));
        }
        let mut text = String::from("# valkyrie-server's configuration; every value is the default.\n");
        for key in KEYS {
            text.push_str(&format!("\n# {}\n{}\n", key.doc, format.line(key.name, &values[key.name])));
        }
        text
    }

    /// Each key with its value.
    pub(crate) fn values(&self) -> Map<String, Value> {
        match serde_json::to_value(self) {
            Ok(Value::Object(values)) => values,
            _ => unreachable!("a struct is an object"),
        }
    }

    /// How many handlers may run at once, if that is not fixed.
    ///
    /// # Errors
    /// What is wrong between two of its keys.
    pub fn limiter(&self) -> Result<Option<LimiterPolicy>, ConfigError> {
        let (initial, min, max) = (self.concurrency_initial, self.concurrency_min, self.concurrency_max);
        if min > initial {
            let message =
                format!("{min} is more than concurrency_initial, {initial}; write a smaller number");
            return Err(self.wrong("concurrency_min", message));
        }
        if max < initial {
            let message = format!("{max} is less than concurrency_initial, {initial}; write a larger number");
            return Err(self.wrong("concurrency_max", message));
        }
        let u32 = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        Ok(self.concurrency_limit.then(|| LimiterPolicy {
            initial: u32(initial),
            min: u32(min),
            max: u32(max),
            wait: Duration::from_millis(self.concurrency_wait_ms),
            max_waiting: usize::try_from(self.concurrency_max_waiting).unwrap_or(usize::MAX),
            ..LimiterPolicy::default()
        }))
    }

    /// What is kept of calls with idempotency keys, if anything.
    ///
    /// # Errors
    /// What is wrong between two of its keys.
    pub fn dedup(&self) -> Result<Option<DedupPolicy>, ConfigError> {
        let (answer, all) = (self.dedup_max_answer_bytes, self.dedup_bytes);
        if answer > all {
            let message = format!("{answer} is more than dedup_bytes, {all}; write a smaller number");
            return Err(self.wrong("dedup_max_answer_bytes", message));
        }
        let usize = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
        Ok(self.dedup.then(|| DedupPolicy {
            capacity: usize(self.dedup_keys),
            bytes: usize(all),
            max_answer_bytes: usize(answer),
            ttl: Duration::from_millis(self.dedup_ttl_ms),
        }))
    }

    /// The limits that the server announces.
    pub fn limits(&self) -> Limits {
        let u32 = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        Limits {
            max_message_bytes: u32(self.max_message_bytes),
            max_concurrent_streams: u32(self.max_concurrent_streams),
            ..Limits::default()
        }
    }
}
