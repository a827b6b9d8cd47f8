//! JSON Web Tokens (RFC 7519) as servers check them: signed, for this server, of an issuer whose keys are configured, and not
//! over. Nothing that a token says chooses how it is checked: its key is one of the issuer's, its algorithm is the key's.
//!
//! It stands on ring alone, which rustls has brought, and not on the crate jsonwebtoken: that one takes its cryptography from
//! what is installed for the whole process, which a library inside somebody's program must neither set nor trust, it rounds
//! numbers that are no integers, and of a claim that is there twice it believes one.

mod json;
mod jwks;
mod keys;
#[cfg(feature = "jwks")]
mod remote;
mod tokens;

use std::{
    fmt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use data_encoding::BASE64URL_NOPAD;
use valkyrie_protocol::{Reason, Status};

use self::{
    json::{Json, LIST, Object},
    jwks::{File, Remote, Source},
    keys::{HS256, Key},
};
pub use self::{jwks::JwksFetch, keys::JwtAlgorithm, tokens::StaticTokens};
use crate::{Authenticator, BoxFuture, Level, Log, Peer, Principal, Record, Refusal, log::Logger};

/// The longest token, in bytes: of a longer one nothing is read.
const TOKEN_BYTES: usize = 8 << 10;
/// How far the issuer's clock and ours may be apart, if nothing else is said, and at most.
const LEEWAY: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(5 * 60));
/// The longest subject or role, in bytes.
const NAME_BYTES: usize = 256;
/// The claims that mean something here already (RFC 7519 section 4.1, RFC 7800).
const CLAIMS: [&str; 8] = ["iss", "sub", "aud", "exp", "nbf", "iat", "jti", "cnf"];

/// Checks the tokens of one issuer, or of several ([`Jwt::and`]). Made by [`JwtBuilder`].
///
/// A token is a JWS in compact form (RFC 7515) of at most 8 KiB, in unpadded canonical base64url, in whose header and claims
/// nothing stands twice. Its principal is `sub:` and the claim `sub`, or `sub@NAME:` and that claim for an issuer with a
/// [`JwtBuilder::name`]. It expires exactly with the claim `exp`; leeway applies to accepting a token only.
///
/// | | |
/// |---|---|
/// | `alg` | must be the algorithm of the key; `none` is no key's |
/// | `kid` | looked up among the issuer's keys and nowhere else; without it exactly one of them must have the algorithm |
/// | `typ` | must be `at+jwt` (RFC 9068), or what [`JwtBuilder::typ`] says, in any case, after `application/` or not |
/// | `crit` | refused: it demands what is not known here |
/// | `jku`, `x5u`, `jwk`, `x5c` | ignored: keys are never taken from a token |
/// | `iss` | must be an issuer's; decides whose keys are asked |
/// | `aud` | must be, or have among at most 64 strings, the issuer's audience |
/// | `sub` | 1 to 256 bytes without control characters |
/// | `exp` | required; `now < exp + leeway` |
/// | `nbf`, `iat` | if there, `now + leeway >=` them |
/// | `cnf` | if there, only with `x5t#S256`, which must be the SHA-256 of the peer's certificate (RFC 8705) |
///
/// Times are integers in seconds since 1970 that fit 64 bits: fractions, which RFC 7519 allows and nobody needs, are refused.
pub struct Jwt {
    issuers: Vec<Issuer>,
}

impl fmt::Debug for Jwt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.issuers.iter().map(|issuer| &issuer.issuer)).finish()
    }
}

impl Jwt {
    /// With other issuers beside these. A token is checked with its own issuer's keys and no others.
    ///
    /// # Errors
    /// `INVALID_CONFIGURATION` when two of them are one issuer or have one name: their subjects could not be told apart. All
    /// but one must have a [`JwtBuilder::name`].
    pub fn and(mut self, others: Jwt) -> Result<Jwt, Status> {
        for other in others.issuers {
            for issuer in &self.issuers {
                if issuer.issuer == other.issuer {
                    return invalid(format!(
                        "issuer {:?} is configured twice; give it all its keys",
                        other.issuer
                    ));
                }
                if issuer.principal == other.principal {
                    return invalid(format!(
                        "the subjects of issuers {:?} and {:?} would have the same principals; give one of them another \
                         name",
                        issuer.issuer, other.issuer
                    ));
                }
            }
            self.issuers.push(other);
        }
        Ok(self)
    }

    async fn check(&self, token: &[u8], peer: &Peer, now: SystemTime) -> Result<Principal, String> {
        let token = Token::read(token)?;
        let known = |issuer: &&Issuer| issuer.issuer == token.issuer;
        let issuer = self.issuers.iter().find(known).ok_or("iss is no configured issuer")?;
        issuer.verify(&token, now).await?;
        issuer.accept(&token.payload, peer, now)
    }
}

impl Authenticator for Jwt {
    fn authenticate<'a>(
        &'a self,
        token: &'a [u8],
        peer: &'a Peer,
        now: SystemTime,
    ) -> BoxFuture<'a, Result<Principal, Refusal>> {
        Box::pin(
            async move { self.check(token, peer, now).await.map_err(|why| Refusal(format!("jwt: {why}"))) },
        )
    }
}

/// A token taken apart, none of it believed yet. Not much of it is in memory while keys are fetched.
struct Token<'a> {
    header: Object,
    issuer: String,
    payload: Vec<u8>,
    /// What is signed: header and payload as they came.
    signed: &'a [u8],
    signature: Vec<u8>,
}

impl<'a> Token<'a> {
    fn read(token: &'a [u8]) -> Result<Self, String> {
        if token.len() > TOKEN_BYTES {
            return Err(format!("the token has more than {TOKEN_BYTES} bytes"));
        }
        let mut parts = token.split(|byte| *byte == b'.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err("the token does not have three parts".into());
        };
        let signed = &token[..header.len() + 1 + payload.len()];
        let decode = |name: &str, part| {
            BASE64URL_NOPAD
                .decode(part)
                .map_err(|_| format!("the {name} is not unpadded canonical base64url"))
        };
        let header = Object::parse(&decode("header", header)?, &["alg", "kid", "typ", "crit"], 0);
        let header = header.map_err(|why| format!("the header {why}"))?;
        let payload = decode("payload", payload)?;
        let issuer = claims(&payload, &["iss"])?.text("iss")?.ok_or("iss is missing")?.to_owned();
        Ok(Self { header, issuer, payload, signed, signature: decode("signature", signature)? })
    }
}

/// These claims, with lists of text or objects of it.
fn claims(payload: &[u8], wanted: &[&str]) -> Result<Object, String> {
    Object::parse(payload, wanted, 1).map_err(|why| format!("the payload {why}"))
}

/// An issuer, its keys, and what its tokens must say.
struct Issuer {
    issuer: String,
    audience: String,
    /// What comes before the subject.
    principal: String,
    typ: Option<String>,
    roles_claim: String,
    leeway: Duration,
    keys: Arc<[Key]>,
    source: Option<Source>,
    log: Logger,
}

impl Issuer {
    /// Checks the header and the signature.
    async fn verify(&self, token: &Token<'_>, now: SystemTime) -> Result<(), String> {
        let header = &token.header;
        let alg = header.text("alg")?.ok_or("alg is missing")?;
        let kid = header.text("kid")?;
        let typ = header.text("typ")?;
        if header.get("crit").is_some() {
            return Err("crit demands what is not known here".into());
        }
        if let Some(expected) = &self.typ {
            let typ = typ.ok_or("typ is missing")?;
            let short = match typ.split_at_checked("application/".len()) {
                Some((start, rest)) if start.eq_ignore_ascii_case("application/") => rest,
                _ => typ,
            };
            if !short.eq_ignore_ascii_case(expected) {
                return Err("typ is not that of an access token of this issuer".into());
            }
        }
        // An algorithm that no key can have is not worth asking for keys.
        if ![JwtAlgorithm::EdDsa.name(), JwtAlgorithm::Es256.name(), JwtAlgorithm::Rs256.name(), HS256]
            .contains(&alg)
        {
            return Err("alg is not supported".into());
        }
        let fits = |key: &Key| match kid {
            Some(kid) => key.kid.as_deref() == Some(kid),
            None => key.alg == alg,
        };
        let published = match &self.source {
            Some(source) if !self.keys.iter().any(fits) => {
                let keys = source.keys(|keys| keys.iter().any(fits), now).await;
                if let (Some(log), Some(news)) = (self.log.wants(Level::Warn), source.news()) {
                    log.log(Record::new(Level::Warn, "valkyrie.jwt", news).with("issuer", &self.issuer));
                }
                keys?
            }
            _ => Arc::default(),
        };
        let mut fitting = self.keys.iter().chain(&*published).filter(|key| fits(key));
        let key = match (fitting.next(), kid) {
            (Some(key), _) => key,
            (None, Some(_)) => return Err("kid is no key of the issuer".into()),
            (None, None) => return Err("the token has no kid, and no key of the issuer has its alg".into()),
        };
        if fitting.next().is_some() {
            return Err("the token has no kid, and several keys of the issuer have its alg".into());
        }
        if key.alg != alg {
            return Err("alg is not that of the key".into());
        }
        if !key.verify(token.signed, &token.signature) {
            return Err("the signature is wrong".into());
        }
        Ok(())
    }

    /// Checks the claims of a token that the issuer signed.
    fn accept(&self, payload: &[u8], peer: &Peer, now: SystemTime) -> Result<Principal, String> {
        let claims = &claims(payload, &["sub", "aud", "exp", "nbf", "iat", "cnf", &self.roles_claim])?;
        let now = now.duration_since(UNIX_EPOCH).map_err(|_| "the clock is before 1970")?;
        let latest = now.saturating_add(self.leeway);
        let expires = time(claims, "exp")?.ok_or("exp is missing")?;
        if now >= expires.saturating_add(self.leeway) {
            return Err("the token has expired".into());
        }
        let expires = UNIX_EPOCH.checked_add(expires).ok_or("exp is later than any clock")?;
        if time(claims, "nbf")?.is_some_and(|start| start > latest) {
            return Err("the token is not valid yet".into());
        }
        if time(claims, "iat")?.is_some_and(|issued| issued > latest) {
            return Err("the token was issued in the future".into());
        }
        let for_us = match claims.get("aud") {
            None => return Err("aud is missing".into()),
            Some(audience) => strings("aud", audience)?.contains(&self.audience.as_str()),
        };
        if !for_us {
            return Err("aud is not this server's".into());
        }
        let subject = name("sub", claims.text("sub")?.ok_or("sub is missing")?)?;
        if let Some(confirmation) = claims.get("cnf") {
            bound(confirmation, peer)?;
        }
        let roles = match claims.get(&self.roles_claim) {
            None => Vec::new(),
            Some(Json::Text(words)) => words.split(' ').filter(|word| !word.is_empty()).collect(),
            Some(list) => strings("the roles claim", list)?,
        };
        if roles.len() > LIST {
            return Err(format!("the roles claim has more than {LIST} entries"));
        }
        let roles: Result<Vec<_>, _> =
            roles.into_iter().map(|role| name("a role", role).map(str::to_owned)).collect();
        Ok(Principal::new(&format!("{}{subject}", self.principal)).with_roles(roles?).with_expiry(expires))
    }
}

/// A NumericDate (RFC 7519 section 2) since 1970.
fn time(claims: &Object, name: &str) -> Result<Option<Duration>, String> {
    match claims.get(name) {
        None => Ok(None),
        Some(Json::Integer(seconds)) => Ok(Some(Duration::from_secs(*seconds))),
        Some(other) => Err(format!("{name} is {}, not a whole number of seconds since 1970", other.kind())),
    }
}

/// One string, or a list of them.
fn strings<'a>(name: &str, value: &'a Json) -> Result<Vec<&'a str>, String> {
    let list = match value {
        Json::Text(text) => return Ok(vec![text]),
        Json::List(list) => list,
        other => return Err(format!("{name} is {}, not a string or a list of strings", other.kind())),
    };
    if list.len() > LIST {
        return Err(format!("{name} has more than {LIST} entries"));
    }
    let text = |value: &'a Json| match value {
        Json::Text(text) => Ok(text.as_str()),
        other => Err(format!("{name} has an entry that is {}, not a string", other.kind())),
    };
    list.iter().map(text).collect()
}

/// What goes into policies and logs: short, and on one line.
fn name<'a>(what: &str, text: &'a str) -> Result<&'a str, String> {
    if text.is_empty() {
        return Err(format!("{what} is empty"));
    }
    if text.len() > NAME_BYTES {
        return Err(format!("{what} has more than {NAME_BYTES} bytes"));
    }
    if text.chars().any(char::is_control) {
        return Err(format!("{what} has a control character"));
    }
    Ok(text)
}

/// Checks that the token came over the connection that it is bound to (RFC 8705 section 3.1).
fn bound(confirmation: &Json, peer: &Peer) -> Result<(), String> {
    let Json::Object(members) = confirmation else {
        return Err(format!("cnf is {}, not an object", confirmation.kind()));
    };
    let thumbprint = members.text("x5t#S256")?;
    let (Some(thumbprint), 1) = (thumbprint, members.0.len()) else {
        return Err("cnf binds the token to something other than a certificate".into());
    };
    let Some(certificate) = &peer.certificate else {
        return Err("the token is bound to a certificate, and the peer showed none".into());
    };
    if BASE64URL_NOPAD.decode(thumbprint.as_bytes()).ok().as_deref() != Some(&certificate.sha256[..]) {
        return Err("the token is bound to another certificate".into());
    }
    Ok(())
}

/// Describes an issuer of tokens and the keys that it signs with; [`JwtBuilder::build`] checks it all.
///
/// ```no_run
/// # fn main() -> Result<(), valkyrie_sdk::Status> {
/// use valkyrie_sdk::JwtBuilder;
///
/// let jwt = JwtBuilder::new("https://id.example.com", "orders").jwks_file("/etc/valkyrie/keys.json").build()?;
/// # Ok(())
/// # }
/// ```
#[must_use = "a builder does nothing until it is built"]
pub struct JwtBuilder {
    issuer: Issuer,
    name: Option<String>,
    keys: Vec<Key>,
    /// What was wrong first.
    wrong: Option<String>,
    #[cfg(feature = "jwks")]
    url: Option<String>,
    #[cfg(feature = "jwks")]
    roots: Option<Vec<u8>>,
}

impl JwtBuilder {
    /// Tokens whose claim `iss` is exactly this issuer and whose claim `aud` names this audience.
    pub fn new(issuer: impl Into<String>, audience: impl Into<String>) -> Self {
        Self {
            issuer: Issuer {
                issuer: issuer.into(),
                audience: audience.into(),
                principal: "sub:".into(),
                typ: Some("at+jwt".into()),
                roles_claim: "roles".into(),
                leeway: LEEWAY.0,
                keys: Arc::default(),
                source: None,
                log: Logger::default(),
            },
            name: None,
            keys: Vec::new(),
            wrong: None,
            #[cfg(feature = "jwks")]
            url: None,
            #[cfg(feature = "jwks")]
            roots: None,
        }
    }

    /// Verifies tokens with that `kid` by a public key, given as PEM text with a section `PUBLIC KEY`.
    pub fn key_pem(self, kid: &str, algorithm: JwtAlgorithm, pem: impl AsRef<[u8]>) -> Self {
        self.key(Key::pem(kid, algorithm, pem.as_ref()))
    }

    /// As [`JwtBuilder::key_pem`], from a file, which is read once and now.
    pub fn key_file(self, kid: &str, algorithm: JwtAlgorithm, path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let pem =
            std::fs::read(&path).map_err(|error| format!("key {} cannot be read: {error}", path.display()));
        self.key(pem.and_then(|pem| Key::pem(kid, algorithm, &pem)))
    }

    /// Verifies tokens with that `kid` by a secret of at least 32 bytes that the issuer has too, with HS256: for issuers that
    /// can do nothing else, since whoever checks such tokens can make them.
    pub fn hs256_secret(self, kid: &str, secret: impl AsRef<[u8]>) -> Self {
        self.key(Key::secret(kid, secret.as_ref()))
    }

    /// Verifies by the keys of a JSON Web Key Set (RFC 7517): at most 256 KiB and 64 keys, of which Ed25519 ones do EdDSA, P-256
    /// ones ES256 and RSA ones from 2,048 bits on RS256. All others are ignored, and so are secrets, keys whose `use`,
    /// `key_ops` or `alg` is another, and keys whose private half is published.
    pub fn jwks(mut self, document: impl AsRef<[u8]>) -> Self {
        match jwks::parse(document.as_ref()) {
            Ok(keys) => keys.into_iter().fold(self, |builder, key| builder.key(Ok(key))),
            Err(why) => {
                self.wrong.get_or_insert(format!("key set {why}"));
                self
            }
        }
    }

    /// As [`JwtBuilder::jwks`], from a file, which is read now and again whenever its time of change or its length is another;
    /// that is looked at once a second at most, as tokens come. While the file cannot be read, its last keys hold for 1 h.
    pub fn jwks_file(self, path: impl Into<PathBuf>) -> Self {
        let source = File::open(path.into()).map(Source::File);
        self.source(source)
    }

    /// As [`JwtBuilder::jwks`], from wherever `fetch` brings it: at the first token, then with tokens that come 5 min after the
    /// last time, or whose `kid` is not known, but once in 30 s at most. A key holds while it is listed. While fetching fails, the
    /// last keys hold for 1 h since they were fetched.
    pub fn jwks_from(self, fetch: impl JwksFetch) -> Self {
        self.source(Ok(Source::Remote(Arc::new(Remote::new(Box::new(fetch))))))
    }

    /// As [`JwtBuilder::jwks_from`], by GET from an `https://` URL, over TLS 1.3 and HTTP/1.1, within 5 s and without following
    /// redirects. The server's certificate must come from [`JwtBuilder::jwks_roots_pem`]. For development `http://` will
    /// do for this machine's own addresses.
    #[cfg(feature = "jwks")]
    pub fn jwks_url(mut self, url: impl Into<String>) -> Self {
        self.url = Some(url.into());
        self
    }

    /// The certificates of authorities, as PEM text, that the server of [`JwtBuilder::jwks_url`] must be certified by.
    #[cfg(feature = "jwks")]
    pub fn jwks_roots_pem(mut self, certificates: impl AsRef<[u8]>) -> Self {
        self.roots = Some(certificates.as_ref().to_owned());
        self
    }

    /// Principals are `sub@NAME:subject` instead of `sub:subject`, for where several issuers are. At most 64 of `a-z`, `0-9`, `.`
    /// and `-`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// What the header's `typ` must be, without `application/`. Default `at+jwt`. Many issuers write `JWT`; an identity token
    /// for the same audience could then pass for an access token.
    pub fn typ(mut self, typ: impl Into<String>) -> Self {
        self.issuer.typ = Some(typ.into());
        self
    }

    /// Takes tokens of whatever `typ`, or none.
    pub fn any_typ(mut self) -> Self {
        self.issuer.typ = None;
        self
    }

    /// The claim that has the principal's roles: a list of strings, or one string of words between spaces, as `scope` is. At
    /// most 64 of at most 256 bytes. Default `roles`.
    pub fn roles_claim(mut self, claim: impl Into<String>) -> Self {
        self.issuer.roles_claim = claim.into();
        self
    }

    /// How far the issuer's clock may be from this one's. Default 30 s, at most 5 min.
    pub fn leeway(mut self, leeway: Duration) -> Self {
        self.issuer.leeway = leeway;
        self
    }

    /// Takes what goes wrong with a key set that is read again or fetched, as warnings: the last keys may still do, for an hour
    /// at most. The same is said once. Default: nobody.
    pub fn log(mut self, log: Arc<dyn Log>) -> Self {
        self.issuer.log = Logger(Some(log));
        self
    }

    /// Checks it all.
    ///
    /// # Errors
    /// `INVALID_CONFIGURATION` with the value that is wrong and what to give instead: also where a file cannot be read.
    pub fn build(mut self) -> Result<Jwt, Status> {
        #[cfg(feature = "jwks")]
        if let Some(url) = self.url.take() {
            let fetch = remote::Https::new(&url, self.roots.as_deref());
            self = self.source(fetch.map(|fetch| Source::Remote(Arc::new(Remote::new(Box::new(fetch))))));
        }
        if let Some(wrong) = self.wrong {
            return invalid(wrong);
        }
        let issuer = &mut self.issuer;
        if issuer.issuer.is_empty() || issuer.audience.is_empty() {
            return invalid(
                "issuer and audience must not be empty; give what iss and aud of its tokens say".into(),
            );
        }
        if self.keys.is_empty() && issuer.source.is_none() {
            return invalid(format!(
                "issuer {:?} has no keys; give a key, a key set or its place",
                issuer.issuer
            ));
        }
        if issuer.leeway > LEEWAY.1 {
            return invalid(format!("leeway {:?} exceeds 5 min; set the clocks instead", issuer.leeway));
        }
        if issuer.roles_claim.is_empty() || CLAIMS.contains(&issuer.roles_claim.as_str()) {
            return invalid(format!("claim {:?} cannot have the roles; name another", issuer.roles_claim));
        }
        if let Some(name) = &self.name {
            let legal =
                |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-".contains(&byte);
            if name.is_empty() || name.len() > 64 || !name.bytes().all(legal) {
                return invalid(format!("issuer name {name:?} is not 1 to 64 of a-z, 0-9, . and -"));
            }
            issuer.principal = format!("sub@{name}:");
        }
        issuer.keys = self.keys.into();
        Ok(Jwt { issuers: vec![self.issuer] })
    }

    fn key(mut self, key: Result<Key, String>) -> Self {
        match key {
            Ok(key) if key.kid.is_some() && self.keys.iter().any(|other| other.kid == key.kid) => {
                self.wrong.get_or_insert(format!("two keys are {:?}", key.kid.unwrap_or_default()));
            }
            Ok(key) => self.keys.push(key),
            Err(why) => {
                self.wrong.get_or_insert(why);
            }
        }
        self
    }

    fn source(mut self, source: Result<Source, String>) -> Self {
        match source {
            Ok(_) if self.issuer.source.is_some() => {
                self.wrong.get_or_insert("an issuer's keys come from one place; two are given".into());
            }
            Ok(source) => self.issuer.source = Some(source),
            Err(why) => {
                self.wrong.get_or_insert(why);
            }
        }
        self
    }
}

fn invalid<T>(why: String) -> Result<T, Status> {
    Err(Status::from_reason(Reason::INVALID_CONFIGURATION, why))
}
