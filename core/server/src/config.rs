//! The configuration: what its keys mean, how a file is read in three formats, and the commented file that
//! `config generate` writes. Every error names file, line, key, value and the fix.

use std::{
    fmt, fs, io,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use clap::ValueEnum;
use serde::{Deserialize, Deserializer, Serialize, de};
use valkyrie_sdk::{Endpoint, Limits};

/// How logs are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// What is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogLevel {
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

/// The formats of a configuration file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// `.yaml`, `.yml`
    Yaml,
    /// `.toml`
    Toml,
    /// `.json`
    Json,
}

/// The least protection of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum MinSecurity {
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
pub(crate) enum AuditOnFailure {
    /// They go on, and how many records are missing is recorded later.
    #[default]
    FailOpen,
    /// They are refused.
    FailClosed,
}

/// How a key signs tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Algorithm {
    EdDSA,
    ES256,
    RS256,
    HS256,
}

/// One entry of `token_issuers`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenIssuer {
    pub(crate) issuer: String,
    pub(crate) audience: String,
    pub(crate) name: Option<String>,
    pub(crate) typ: Option<String>,
    pub(crate) roles_claim: Option<String>,
    #[serde(default = "leeway_s", deserialize_with = "ranged::<_, 0, 300>")]
    pub(crate) leeway_s: u64,
    #[serde(default)]
    pub(crate) keys: Vec<TokenKey>,
    pub(crate) jwks_file: Option<PathBuf>,
    pub(crate) jwks_url: Option<String>,
    pub(crate) jwks_roots: Option<PathBuf>,
}

/// One key of an issuer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenKey {
    pub(crate) kid: String,
    pub(crate) algorithm: Algorithm,
    pub(crate) file: PathBuf,
}

fn leeway_s() -> u64 {
    30
}

/// The configuration file. [`KEYS`] documents every key; a test holds the two together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    #[serde(deserialize_with = "endpoints")]
    pub(crate) bind: Vec<String>,
    #[serde(deserialize_with = "ranged::<_, 0, 86_400_000>")]
    pub(crate) drain_timeout_ms: u64,
    #[serde(deserialize_with = "ranged::<_, 1, 10_000_000>")]
    pub(crate) max_connections: u64,
    #[serde(deserialize_with = "ranged::<_, 1, 1_000_000>")]
    pub(crate) max_running_handlers: u64,
    #[serde(deserialize_with = "ranged::<_, 65_536, 1_073_741_824>")]
    pub(crate) max_message_bytes: u64,
    #[serde(deserialize_with = "ranged::<_, 100, 65_536>")]
    pub(crate) max_concurrent_streams: u64,
    pub(crate) allow_origins: Vec<String>,
    pub(crate) certificates: PathBuf,
    pub(crate) private_key: PathBuf,
    pub(crate) client_authorities: PathBuf,
    pub(crate) revocation_lists: PathBuf,
    pub(crate) min_security: MinSecurity,
    pub(crate) token_issuers: Vec<TokenIssuer>,
    pub(crate) static_tokens: PathBuf,
    pub(crate) policy: PathBuf,
    pub(crate) open_to_all: bool,
    pub(crate) audit: PathBuf,
    pub(crate) audit_on_failure: AuditOnFailure,
    #[serde(deserialize_with = "ranged::<_, 65_536, 1_099_511_627_776>")]
    pub(crate) audit_max_file_bytes: u64,
    pub(crate) audit_key: PathBuf,
    pub(crate) metrics: bool,
    pub(crate) log_format: LogFormat,
    pub(crate) log_level: LogLevel,
    /// The file that it was read from and the text of it, for errors that show when it is put to use.
    #[serde(skip)]
    origin: Option<(String, String)>,
}

/// Every key with what it means, in the order that the generated file has.
const KEYS: &[(&str, &str)] = &[
    (
        "bind",
        "Where to listen, at least one of: host:port or tcp://host:port, which answers WebSocket (ws://) too, tls://host:port, which answers wss:// too, quic://host:port, unix:///path. With certificates each of them takes sealed sessions.",
    ),
    ("drain_timeout_ms", "How long a shutdown lets calls finish, in milliseconds: 0 to 86400000."),
    (
        "max_connections",
        "Connections at once; further ones are closed as they come: 1 to 10000000, and never more than there are descriptors, less 64.",
    ),
    (
        "max_running_handlers",
        "Handlers that run at once for one connection; further calls wait in order: 1 to 1000000.",
    ),
    (
        "max_message_bytes",
        "The largest message taken, in bytes: 65536 to 1073741824. A connection may hold this much per unfinished message.",
    ),
    ("max_concurrent_streams", "Streams that one connection may have open at once: 100 to 65536."),
    (
        "allow_origins",
        "Pages of these origins (https://app.example, or *) may connect by WebSocket, beside same-origin and loopback pages.",
    ),
    (
        "certificates",
        "File with the certificate chain in PEM, the server's own first; tls://, quic:// and sealed sessions need it. It is read again when it changes.",
    ),
    (
        "private_key",
        "File with the certificate's private key in PEM, for this server's user only. It is read again when it changes.",
    ),
    (
        "client_authorities",
        "File with the certificates of authorities in PEM: every client over TLS must show a certificate of theirs (mTLS). It is read again when it changes.",
    ),
    (
        "revocation_lists",
        "File with the revocation lists (CRL) of client_authorities in PEM. It is read again when it changes.",
    ),
    (
        "min_security",
        "insecure, tls or mtls: what every connection must have, unix:// too; others are refused. tls means tls://, wss://, quic:// or sealed; mtls needs client_authorities.",
    ),
    (
        "token_issuers",
        "Who signs the tokens (JWT) that clients may send, a list. Each has issuer (the claim iss) and audience (the claim aud), and keys: a list of kid, algorithm (EdDSA, ES256, RS256, HS256) and file (PUBLIC KEY in PEM; of HS256 the secret's bytes); or jwks_file; or jwks_url with jwks_roots, a file of the certificates to trust there. Optional: name (principals are sub@NAME:subject, for several issuers), typ (at+jwt; * takes any), roles_claim (roles), leeway_s (30; 0 to 300).",
    ),
    (
        "static_tokens",
        "File with tokens for development, readable for its owner only (chmod 600), taken from this machine only. Each line: a principal (sub:NAME), the token, and any roles.",
    ),
    (
        "policy",
        "File (.toml or .json) that says who may call what and how often; it is read again when it changes, and at once on SIGHUP. Without it, a server with certificates, tokens or min_security answers nothing but /valkyrie.Health/*.",
    ),
    (
        "open_to_all",
        "true lets everybody call everything where there is no policy, whatever else is configured.",
    ),
    (
        "audit",
        "File that gets a line for every decision on a call or on credentials; `valkyrie audit verify` checks it.",
    ),
    (
        "audit_on_failure",
        "fail_open or fail_closed: whether calls go on or are refused while the audit cannot be written.",
    ),
    (
        "audit_max_file_bytes",
        "The size from which the audit's file is set aside and a new one begun, in bytes: 65536 to 1099511627776. Nothing is deleted.",
    ),
    (
        "audit_key",
        "File whose bytes are the key of the audit's hashes, at least 32: without it whoever can write the audit can make all of it anew.",
    ),
    ("metrics", "Whether /valkyrie.Metrics/Get and /valkyrie.Metrics/Connections answer."),
    ("log_format", "text or json, one line per event on standard error."),
    ("log_level", "error, warn, info or debug; debug has a line per call with its correlation id."),
];

impl Default for Config {
    fn default() -> Self {
        let limits = Limits::default();
        Self {
            bind: vec!["0.0.0.0:8080".into()],
            drain_timeout_ms: 30_000,
            max_connections: 65_536,
            max_running_handlers: 256,
            max_message_bytes: limits.max_message_bytes.into(),
            max_concurrent_streams: limits.max_concurrent_streams.into(),
            allow_origins: Vec::new(),
            certificates: PathBuf::new(),
            private_key: PathBuf::new(),
            client_authorities: PathBuf::new(),
            revocation_lists: PathBuf::new(),
            min_security: MinSecurity::default(),
            token_issuers: Vec::new(),
            static_tokens: PathBuf::new(),
            policy: PathBuf::new(),
            open_to_all: false,
            audit: PathBuf::new(),
            audit_on_failure: AuditOnFailure::default(),
            audit_max_file_bytes: 64 << 20,
            audit_key: PathBuf::new(),
            metrics: true,
            log_format: LogFormat::default(),
            log_level: LogLevel::default(),
            origin: None,
        }
    }
}

fn endpoints<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let endpoints = Vec::<String>::deserialize(deserializer)?;
    if endpoints.is_empty() {
        return Err(de::Error::custom("the list is empty; give at least one, such as 127.0.0.1:8080"));
    }
    for endpoint in &endpoints {
        Endpoint::parse(endpoint).map_err(|status| de::Error::custom(status.message()))?;
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

/// Why a configuration file was refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ConfigError {
    file: String,
    line: Option<usize>,
    key: Option<String>,
    message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if let Some(key) = &self.key {
            write!(f, ": {key}")?;
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for ConfigError {}

impl Format {
    fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "yaml" | "yml" => Some(Self::Yaml),
            "toml" => Some(Self::Toml),
            "json" => Some(Self::Json),
            _ => None,
        }
    }
}

impl Config {
    /// Reads a file; its extension says the format.
    ///
    /// # Errors
    /// When it cannot be read, is not well-formed, or has an unknown key or an illegal value.
    pub(crate) fn read(path: &Path) -> Result<Self, ConfigError> {
        let file = path.display().to_string();
        let error = |message| ConfigError { file: file.clone(), line: None, key: None, message };
        let format = Format::of(path)
            .ok_or_else(|| error("has no known extension; name it .yaml, .yml, .toml or .json".to_owned()))?;
        let text = fs::read_to_string(path).map_err(|cause: io::Error| error(cause.to_string()))?;
        match Self::parse(&text, format) {
            Ok(config) => Ok(Self { origin: Some((file, text)), ..config }),
            Err((line, key, message)) => Err(ConfigError { line, key, message, file }),
        }
    }

    /// An error that shows when a key is put to use.
    pub(crate) fn wrong(&self, key: &str, message: impl Into<String>) -> ConfigError {
        let (file, line) = match &self.origin {
            Some((file, text)) => (file.clone(), line_of_key(text, key, None)),
            None => ("configuration".to_owned(), None),
        };
        ConfigError { file, line, key: Some(key.to_owned()), message: message.into() }
    }

    /// Reads a text: the configuration, or the line, the key and the sentence of what is wrong.
    pub(crate) fn parse(text: &str, format: Format) -> Result<Self, (Option<usize>, Option<String>, String)> {
        match format {
            Format::Yaml
                if text.lines().all(|line| line.trim().is_empty() || line.trim().starts_with('#')) =>
            {
                Ok(Self::default())
            }
            Format::Yaml => serde_path_to_error::deserialize(yaml_serde::Deserializer::from_str(text))
                .map_err(|error| {
                    let key = key_of(error.path());
                    let error = error.into_inner();
                    (error.location().map(|at| at.line()), key, error.to_string())
                }),
            Format::Toml => {
                let line_of = |error: &toml::de::Error| {
                    error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1)
                };
                let deserializer = toml::Deserializer::parse(text)
                    .map_err(|error| (line_of(&error), None, error.message().to_owned()))?;
                serde_path_to_error::deserialize(deserializer).map_err(|error| {
                    let key = key_of(error.path());
                    let error = error.into_inner();
                    (line_of(&error), key, error.message().to_owned())
                })
            }
            Format::Json => serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_str(text))
                .map_err(|error| {
                    let key = key_of(error.path());
                    let error = error.into_inner();
                    (Some(error.line()), key, error.to_string())
                }),
        }
        .map_err(|(line, key, message)| {
            // The parsers' own position would repeat ours, and their path our key.
            let end = message.rfind(" at line ").unwrap_or(message.len());
            let message = &message[..end];
            let message = message
                .split_once(": ")
                .filter(|(path, _)| key.as_deref().is_some_and(|key| key.starts_with(path)))
                .map_or(message, |(_, rest)| rest);
            // Parsers point behind a value as often as at it; the key's line is where the fix goes.
            let line = key
                .as_deref()
                .and_then(|key| line_of_key(text, key, line.map(|line| (format, line))))
                .or(line);
            // A wrong type says what it is not; what the key means says what to write.
            let top = key.as_deref().and_then(|key| key.split(['.', '[']).next());
            let doc = KEYS.iter().find(|(known, _)| top == Some(known));
            let message = match doc {
                Some((_, doc)) if message.starts_with("invalid type") => format!("{message}: {doc}"),
                _ => message.to_owned(),
            };
            (line, key, message)
        })
    }

    /// The text of a file with every key at its default; YAML and TOML with comments, which JSON does not have.
    pub(crate) fn generate(format: Format) -> String {
        let Ok(serde_json::Value::Object(values)) = serde_json::to_value(Self::default()) else {
            unreachable!("a struct is an object")
        };
        if format == Format::Json {
            return format!("{:#}\n", serde_json::Value::Object(values));
        }
        let equals = if format == Format::Yaml { ": " } else { " = " };
        let mut text = String::from("# valkyrie-server's configuration; every value is the default.\n");
        for (key, doc) in KEYS {
            // A JSON scalar or list of scalars is the same in YAML's flow style and in TOML.
            text.push_str(&format!("\n# {doc}\n{key}{equals}{}\n", values[*key]));
        }
        text
    }

    /// The limits that the server announces.
    pub(crate) fn limits(&self) -> Limits {
        let u32 = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        Limits {
            max_message_bytes: u32(self.max_message_bytes),
            max_concurrent_streams: u32(self.max_concurrent_streams),
            ..Limits::default()
        }
    }
}

fn key_of(path: &serde_path_to_error::Path) -> Option<String> {
    let path = path.to_string();
    (!path.is_empty() && path != "." && path != "?").then_some(path)
}

/// The line that begins with the key, or with the list that holds the entry. Where several do, the parser's
/// own idea decides: YAML's is where the entry begins, and the others' is at the value or behind it.
fn line_of_key(text: &str, key: &str, near: Option<(Format, usize)>) -> Option<usize> {
    // What stands inside of an entry stands behind the entry's list.
    let (top, inner) = (key.split(['.', '[']).next()?, key.rsplit(['.', ']']).next()?);
    let begins = |line: &str, key: &str| {
        let line = line.trim_start_matches([' ', '\t', '-', '[', '{', '"', ',']);
        let rest = line.strip_prefix(key);
        rest.is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
    };
    let lines = |key: &str| -> Vec<usize> {
        text.lines().enumerate().filter(|(_, line)| begins(line, key)).map(|(index, _)| index + 1).collect()
    };
    let of = |found: Vec<usize>| {
        let near = match near {
            Some((Format::Yaml, near)) => found.iter().find(|line| **line >= near),
            Some((_, near)) => found.iter().rev().find(|line| **line <= near),
            None => None,
        };
        near.or(found.first()).copied()
    };
    let near = near.map(|(_, line)| line);
    match inner {
        inner if inner == top => of(lines(top)),
        "" => near.or_else(|| of(lines(top))),
        // In the middle of a line, perhaps.
        inner => of(lines(inner)).or(near).or_else(|| of(lines(top))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_files_read_back_as_the_defaults() {
        for format in [Format::Yaml, Format::Toml, Format::Json] {
            let text = Config::generate(format);
            assert_eq!(Config::parse(&text, format).unwrap(), Config::default(), "{text}");
        }
    }

    #[test]
    fn every_key_is_documented() {
        let serde_json::Value::Object(values) = serde_json::to_value(Config::default()).unwrap() else {
            unreachable!()
        };
        let mut documented: Vec<_> = KEYS.iter().map(|(key, _)| key.to_string()).collect();
        documented.sort();
        assert_eq!(values.keys().cloned().collect::<Vec<_>>(), documented);
    }

    #[test]
    fn errors_name_line_key_value_and_fix() {
        for (format, text, line, key, words) in [
            (Format::Yaml, "metrics: true\nbnid: [x]\n", 2, "bnid", ["bnid", "expected one of"]),
            (Format::Toml, "metrics = true\nbnid = 1\n", 2, "bnid", ["bnid", "expected one of"]),
            (Format::Json, "{\n\"metrics\": true,\n\"bnid\": 1}\n", 3, "bnid", ["bnid", "expected one of"]),
            (Format::Yaml, "# one\ndrain_timeout_ms: -5\n", 2, "drain_timeout_ms", ["-5", "from 0 to"]),
            (Format::Toml, "\n\nmax_connections = 0\n", 3, "max_connections", ["0 is", "from 1 to"]),
            (Format::Json, "{\n\"max_connections\": 0\n}", 2, "max_connections", ["0 is", "from 1 to"]),
            (Format::Yaml, "metrics: maybe\n", 1, "metrics", ["maybe", "boolean"]),
            (
                Format::Yaml,
                "drain_timeout_ms: lots\n",
                1,
                "drain_timeout_ms",
                ["lots", "in milliseconds: 0 to"],
            ),
            (Format::Toml, "log_level = 'loud'\n", 1, "log_level", ["loud", "debug"]),
            (Format::Yaml, "metrics: true\nbind: ['tcp://']\n", 2, "bind", ["tcp://", "host:port"]),
            (Format::Toml, "metrics = true\nbind = []\n", 2, "bind", ["empty", "127.0.0.1:8080"]),
            (
                Format::Yaml,
                "token_issuers:\n  - issuer: a\n    audience: x\n    leeway_s: 1\n  - issuer: b\n    audience: x\n    leeway_s: 999\n",
                7,
                "token_issuers[1].leeway_s",
                ["\"999 is", "from 0 to 300"],
            ),
            (
                Format::Json,
                "{\"token_issuers\": [{\n\"issuer\": \"a\",\n\"audience\": \"x\",\n\"typo\": 1}]}",
                4,
                "token_issuers[0].typo",
                ["unknown field `typo`", "jwks_file"],
            ),
            (
                Format::Yaml,
                "metrics: true\ntoken_issuers:\n  - audience: x\n",
                3,
                "token_issuers[0]",
                ["missing field", "issuer"],
            ),
        ] {
            let (found_line, found_key, message) = Config::parse(text, format).unwrap_err();
            let all = format!("{found_line:?} {found_key:?} {message:?}");
            assert_eq!((found_line, found_key.as_deref()), (Some(line), Some(key)), "{text}: {all}");
            assert!(words.iter().all(|word| all.contains(word)), "{text}: {all}");
        }
    }

    #[test]
    fn files_that_are_not_well_formed_name_the_line() {
        for (format, text, line) in [
            (Format::Yaml, "metrics: true\nbind: [\n", 3),
            (Format::Toml, "metrics = true\nbind = = 1\n", 2),
            (Format::Json, "{\n\"metrics\": true,\n", 3),
            (Format::Yaml, "metrics: true\nmetrics: false\n", 2),
        ] {
            let (found, _, message) = Config::parse(text, format).unwrap_err();
            assert!(found.is_some_and(|found| found.abs_diff(line) <= 1), "{format:?} {found:?}: {message}");
        }
    }
}
