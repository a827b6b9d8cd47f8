//! Profiles: other defaults for other places, and what is too unsafe for one that others rely on.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use valkyrie_sdk::Endpoint;

use crate::{Config, ConfigError, MinSecurity};

/// Where a server runs: its defaults, and in production what it refuses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// At somebody's desk: the defaults of [`KEYS`](crate::KEYS).
    #[default]
    Dev,
    /// In a test: any port of this machine, warnings only, a drain of one second.
    Test,
    /// As production will be, without what it refuses: logs as JSON.
    Staging,
    /// Logs as JSON, and TLS for every connection; what is unsafe is refused.
    Prod,
}

impl Profile {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Dev, Self::Test, Self::Staging, Self::Prod];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::Test => "test",
            Self::Staging => "staging",
            Self::Prod => "prod",
        }
    }

    /// The keys whose defaults are others here. Every source wins over them.
    pub fn defaults(self) -> Map<String, Value> {
        let defaults = match self {
            Self::Dev => json!({}),
            Self::Test => json!({"bind": ["127.0.0.1:0"], "drain_timeout_ms": 1_000, "log_level": "warn"}),
            Self::Staging => json!({"log_format": "json"}),
            Self::Prod => json!({"log_format": "json", "min_security": "tls"}),
        };
        defaults.as_object().cloned().unwrap_or_default()
    }
}

impl Config {
    /// What profile `prod` refuses, as far as the keys tell; which files it refuses is in the check of these.
    pub(crate) fn check_profile(&self) -> Result<(), ConfigError> {
        if self.profile != Profile::Prod {
            return Ok(());
        }
        let open = || self.bind.iter().filter(|bind| is_open(bind));
        let refuse = |key: &str, why: String| Err(self.wrong(key, why));
        if self.min_security == MinSecurity::Insecure {
            if let Some(bind) = open().find(|bind| is_plain(bind)) {
                return refuse(
                    "bind",
                    format!(
                        "{bind:?} takes what is not encrypted from other machines, which profile prod refuses; write tls://, or an address of \
                         this machine (127.0.0.1, unix:///path), or take min_security: insecure out"
                    ),
                );
            }
            if let Some(bind) = open().next() {
                let why = format!(
                    "insecure is refused by profile prod while {bind:?} is open to other machines; write tls or mtls"
                );
                return refuse("min_security", why);
            }
        }
        if self.open_to_all {
            let why = "true lets everybody call everything, which profile prod refuses; write false, and who may call what into a policy";
            return refuse("open_to_all", why.to_owned());
        }
        if !self.static_tokens.as_os_str().is_empty() {
            let why = format!(
                "{} has tokens for development, which profile prod refuses; take it out and name token_issuers",
                self.static_tokens.display()
            );
            return refuse("static_tokens", why);
        }
        Ok(())
    }
}

/// Whether others than this machine may reach what is bound.
fn is_open(bind: &str) -> bool {
    let Ok(endpoint) = Endpoint::parse(bind) else { return true };
    if ["unix", "memory"].contains(&endpoint.scheme()) {
        return false;
    }
    let address = endpoint.address().parse::<SocketAddr>().map(|address| address.ip());
    let address = address.or_else(|_| endpoint.host().trim_matches(['[', ']']).parse::<IpAddr>());
    let is_local = address.map_or(endpoint.host() == "localhost", |ip| ip.to_canonical().is_loopback());
    !is_local
}

fn is_plain(bind: &str) -> bool {
    Endpoint::parse(bind).is_ok_and(|endpoint| !["tls", "wss", "quic"].contains(&endpoint.scheme()))
}

/// Secrets that stand in manuals, and so in the lists of those who guess.
#[cfg(feature = "server")]
pub(crate) fn is_example(secret: &[u8]) -> bool {
    const EXAMPLES: &[&str] = &[
        "changeme",
        "change-me",
        "default",
        "example",
        "password",
        "secret",
        "test",
        "token",
        "valkyrie",
        "your-256-bit-secret",
        "your-secret-key",
        "0123456789abcdef",
    ];
    let text = String::from_utf8_lossy(secret).trim().to_ascii_lowercase();
    // One of them, or one of them again and again, to be long enough.
    let is_repeated = |word: &&str| !text.is_empty() && text.replace(*word, "").trim().is_empty();
    EXAMPLES.iter().any(is_repeated) || secret.windows(2).all(|two| two[0] == two[1])
}
