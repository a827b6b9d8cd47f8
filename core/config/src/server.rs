//! What a configuration says of security, put to use: what a server shows, whose credentials it takes, and who decides about calls.

use std::{
    fs::{self, File},
    io::{self, Read},
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::Duration,
};

use valkyrie_sdk::{
    Authenticator, Endpoint, Jwt, JwtAlgorithm, JwtBuilder, Log, Pem, Principal, Security, ServerBuilder,
    StaticTokens, Status,
    access::{Access, Audit, Policy},
};
use zeroize::Zeroizing;

use crate::{
    Algorithm, AuditOnFailure, Config, ConfigError, MinSecurity, Profile, TokenIssuer, profile::is_example,
};

/// The rules where everybody may call everything, so that even that can be audited.
const EVERYBODY: &str = r#"
version = 1
[roles.everybody]
allow = ["/*"]
[[bindings]]
principals = ["*"]
roles = ["everybody"]
"#;
/// What is said of a secret that everybody knows.
const EXAMPLE: &str =
    "is a secret that stands in manuals, which profile prod refuses: write random bytes (openssl rand 32)";
/// The largest file of static tokens or of a key.
const MOST_BYTES: u64 = 16 << 20;
/// The shortest key of an audit: what SHA-256 gives.
const AUDIT_KEY_BYTES: usize = 32;

/// Whether a key names a file.
pub fn given(path: &Path) -> bool {
    !path.as_os_str().is_empty()
}

impl Config {
    /// Whether anything here asks who somebody is. Then nobody may call anything but health, unless a policy or `open_to_all` says
    /// more.
    pub fn has_credentials(&self) -> bool {
        [&self.certificates, &self.client_authorities, &self.static_tokens]
            .into_iter()
            .any(|path| given(path))
            || !self.token_issuers.is_empty()
            || self.min_security != MinSecurity::Insecure
    }

    /// Whether everything is denied for the want of a policy.
    pub fn denies_all(&self) -> bool {
        self.has_credentials() && !given(&self.policy) && !self.open_to_all
    }

    /// Whether everybody may call everything.
    pub fn allows_all(&self) -> bool {
        !self.has_credentials() && !given(&self.policy)
    }

    /// A builder that shows and asks for what is configured, and the gate to give it, without its audit.
    ///
    /// # Errors
    /// What cannot be used, with its key.
    pub fn secured(&self, log: &Arc<dyn Log>) -> Result<(ServerBuilder, Option<Access>), ConfigError> {
        self.check_identity()?;
        self.check_private_key()?;
        let mut builder = ServerBuilder::new().log(log.clone()).min_security(match self.min_security {
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
        let authenticators = self.authenticators(log)?;
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

    /// Where the admin port is to be, if there is to be one.
    ///
    /// # Errors
    /// What is no address, and one that others reach where nobody said that they may.
    pub fn admin(&self) -> Result<Option<Endpoint>, ConfigError> {
        if self.admin.is_empty() {
            return Ok(None);
        }
        let wrong = |why: &str| self.wrong("admin", format!("{:?} {why}", self.admin));
        let endpoint =
            Endpoint::parse(&self.admin).map_err(|status| self.wrong("admin", status.message()))?;
        match endpoint.scheme() {
            "unix" if cfg!(unix) => {}
            "tcp" if self.admin_open || is_loopback(endpoint.authority()) => {}
            "tcp" => {
                return Err(wrong(
                    "may be reached from other machines, and asks nobody who they are: write 127.0.0.1:9090 or unix:///path, or \
                     say admin_open: true",
                ));
            }
            _ => return Err(wrong("is neither host:port nor unix:///path")),
        }
        Ok(Some(endpoint))
    }

    /// Checks everything that [`Config::secured`] names, without a port and without writing anything.
    ///
    /// # Errors
    /// What cannot be used, with its key.
    pub async fn check(&self, log: &Arc<dyn Log>) -> Result<(), ConfigError> {
        let (builder, _) = self.secured(log)?;
        self.audit_key()?;
        self.check_keys()?;
        self.admin()?;
        self.otlp(log)?;
        let built = builder.bind("memory:valkyrie-server-check").build().await;
        let wrong = |status: Status| {
            self.blame(&status).unwrap_or_else(|| self.wrong("certificates", status.message()))
        };
        built.map(drop).map_err(wrong)
    }

    /// Checks what the keys `otlp_*` say.
    #[cfg(feature = "otel")]
    fn otlp(&self, log: &Arc<dyn Log>) -> Result<(), ConfigError> {
        self.exporter(log).map(drop)
    }

    /// Refuses them: this program has no exporter.
    ///
    /// # Errors
    /// When there is to be one.
    #[cfg(not(feature = "otel"))]
    pub fn otlp(&self, _: &Arc<dyn Log>) -> Result<(), ConfigError> {
        if self.otlp_endpoint.is_empty() {
            return Ok(());
        }
        let why = "this program was built without the feature otel: build it with --features otel, or take the key out";
        Err(self.wrong("otlp_endpoint", format!("{:?}: {why}", self.otlp_endpoint)))
    }

    /// What posts metrics and spans to a receiver, if there is one.
    ///
    /// # Errors
    /// An endpoint or authorities that cannot be used.
    #[cfg(feature = "otel")]
    pub fn exporter(&self, log: &Arc<dyn Log>) -> Result<Option<valkyrie_otel::Exporter>, ConfigError> {
        if self.otlp_endpoint.is_empty() {
            return Ok(None);
        }
        let mut builder = valkyrie_otel::Exporter::builder(&self.otlp_endpoint)
            .service_name(&self.otlp_service_name)
            .attribute("service.version", valkyrie_sdk::VERSION)
            .interval_ms(self.otlp_interval_ms)
            .timeout_ms(self.otlp_timeout_ms)
            .sample_ratio(self.otlp_sample_percent as f64 / 100.0)
            .log(log.clone());
        if given(&self.otlp_roots) {
            let path = self.otlp_roots.display();
            let pem = fs::read(&self.otlp_roots)
                .map_err(|error| self.wrong("otlp_roots", format!("{path}: {error}")))?;
            builder = builder.roots(pem);
        } else {
            builder = builder.system_roots(true);
        }
        builder.build().map(Some).map_err(|status| self.wrong("otlp_endpoint", status.message()))
    }

    /// An error with the key of the file that the status names, if it names one.
    pub fn blame(&self, status: &Status) -> Option<ConfigError> {
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
    pub fn open_audit(&self) -> Result<Option<Audit>, ConfigError> {
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
        if self.profile == Profile::Prod && is_example(&key) {
            return Err(wrong(EXAMPLE.to_owned()));
        }
        Ok(Some(key))
    }

    /// What profile `prod` refuses of a private key.
    fn check_private_key(&self) -> Result<(), ConfigError> {
        #[cfg(unix)]
        if self.profile == Profile::Prod && given(&self.private_key) {
            use std::os::unix::fs::PermissionsExt;
            let path = self.private_key.display();
            let found = fs::metadata(&self.private_key)
                .map_err(|error| self.wrong("private_key", format!("{path}: {error}")))?;
            let mode = found.permissions().mode() & 0o777;
            if mode & 0o077 != 0 {
                let why = format!(
                    "{path} may be read by others (mode {mode:04o}), which profile prod refuses: chmod 600 it, and make a new key if others had it"
                );
                return Err(self.wrong("private_key", why));
            }
        }
        Ok(())
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

    fn authenticators(&self, log: &Arc<dyn Log>) -> Result<Vec<Box<dyn Authenticator>>, ConfigError> {
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
            let checked = issuer.jwt(log, self.profile).map_err(wrong)?;
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
    fn jwt(&self, log: &Arc<dyn Log>, profile: Profile) -> Result<Jwt, String> {
        let read = |path: &Path| fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
        let mut builder = JwtBuilder::new(&self.issuer, &self.audience)
            .leeway(Duration::from_secs(self.leeway_s))
            .log(log.clone());
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
                    if profile == Profile::Prod && is_example(&shared) {
                        return Err(format!("{} {EXAMPLE}", key.file.display()));
                    }
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

/// Whether only this machine reaches `host:port`.
fn is_loopback(authority: &str) -> bool {
    let address = authority.parse::<SocketAddr>();
    address.map_or_else(|_| authority.starts_with("localhost:"), |address| address.ip().is_loopback())
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

#[cfg(test)]
mod tests {
    use super::is_loopback;

    #[test]
    fn addresses_that_only_this_machine_reaches() {
        for authority in ["127.0.0.1:1", "[::1]:1", "localhost:1"] {
            assert!(is_loopback(authority), "{authority}");
        }
        for authority in ["0.0.0.0:1", "[::]:1", "localhost.evil:1", "192.168.0.1:1"] {
            assert!(!is_loopback(authority), "{authority}");
        }
    }
}
