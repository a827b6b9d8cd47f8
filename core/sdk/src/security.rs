//! Who a connection speaks for: what the transport proved of it, what its credentials say, and the principal that policies
//! name.

use std::{fmt, sync::Arc, time::SystemTime};

use valkyrie_protocol::Status;
use zeroize::Zeroize;

use crate::{BoxFuture, CallOptions, Peer};

/// How a connection must be protected, the least first. It is each side's own policy: no peer, proxy or reconnect lowers it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Security {
    /// Not at all.
    #[default]
    Insecure,
    /// Encrypted, and the server proves who it is: `tls://`, `wss://`, `quic://`, or a sealed session over anything.
    Tls,
    /// So, and the client proves who it is by a certificate.
    Mtls,
}

impl Security {
    /// That of a name: `insecure`, `tls` or `mtls`.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "insecure" => Some(Self::Insecure),
            "tls" => Some(Self::Tls),
            "mtls" => Some(Self::Mtls),
            _ => None,
        }
    }
}

/// What is known of a peer by the certificate that it showed and proved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerCertificate {
    /// Its DNS names, in the certificate's order.
    pub dns_names: Vec<String>,
    /// Its URIs, in the certificate's order: a SPIFFE id is one.
    pub uris: Vec<String>,
    /// SHA-256 over the certificate (RFC 8705, `x5t#S256`).
    pub sha256: [u8; 32],
}

/// Whom a call is made for, as a policy names it: `spiffe://domain/path` and `dns:name` by certificate, `sub:subject` by
/// token, `uid:1000` by Unix socket, `anonymous` for all others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    id: Arc<str>,
    roles: Arc<[String]>,
    expires: Option<SystemTime>,
}

impl Principal {
    /// Whoever proved nothing.
    pub const ANONYMOUS: &'static str = "anonymous";

    /// A principal without roles, which never expires.
    pub fn new(id: &str) -> Self {
        Self { id: id.into(), roles: Arc::default(), expires: None }
    }

    /// Whoever proved nothing.
    pub fn anonymous() -> Self {
        Self::new(Self::ANONYMOUS)
    }

    /// Whom a peer stands for that has not sent credentials, or not yet: by its certificate's first SPIFFE id, else its first
    /// DNS name; by its user id; or anonymous.
    pub fn of(peer: &Peer) -> Self {
        let of_certificate = peer.certificate.as_deref().and_then(|certificate| {
            let spiffe = certificate.uris.iter().find(|uri| uri.starts_with("spiffe://"));
            let dns = || certificate.dns_names.first().map(|name| Self::new(&format!("dns:{name}")));
            spiffe.map(|uri| Self::new(uri)).or_else(dns)
        });
        let of_user = || peer.uid.map(|uid| Self::new(&format!("uid:{uid}")));
        of_certificate.or_else(of_user).unwrap_or_else(Self::anonymous)
    }

    /// With the roles that its credentials grant, beside those of the policy.
    #[must_use]
    pub fn with_roles(mut self, roles: impl IntoIterator<Item = String>) -> Self {
        self.roles = roles.into_iter().collect();
        self
    }

    /// With the time at which its credentials end.
    #[must_use]
    pub fn with_expiry(mut self, expires: SystemTime) -> Self {
        self.expires = Some(expires);
        self
    }

    /// Its name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The roles that its credentials grant.
    pub fn roles(&self) -> &[String] {
        &self.roles
    }

    /// When its credentials end; `None` for never.
    pub fn expires(&self) -> Option<SystemTime> {
        self.expires
    }

    /// Whether it proved nothing.
    pub fn is_anonymous(&self) -> bool {
        &*self.id == Self::ANONYMOUS
    }
}

/// Why credentials were refused: for the server's log and its audit. Its peer is only told that they were.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal(pub String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Decides whom the credentials of a connection stand for.
pub trait Authenticator: Send + Sync + 'static {
    /// Checks the token that a connection brought; `now` is the wall clock.
    ///
    /// # Errors
    /// Why it is refused, without a word of the token itself.
    fn authenticate<'a>(
        &'a self,
        token: &'a [u8],
        peer: &'a Peer,
        now: SystemTime,
    ) -> BoxFuture<'a, Result<Principal, Refusal>>;
}

/// Several, asked in order: the first that accepts decides. Tokens of several issuers are better checked by one authenticator,
/// which asks only the issuer's own keys and keeps their subjects apart.
impl Authenticator for Vec<Box<dyn Authenticator>> {
    fn authenticate<'a>(
        &'a self,
        token: &'a [u8],
        peer: &'a Peer,
        now: SystemTime,
    ) -> BoxFuture<'a, Result<Principal, Refusal>> {
        Box::pin(async move {
            let mut refusals = Vec::new();
            for authenticator in self {
                match authenticator.authenticate(token, peer, now).await {
                    Ok(principal) => return Ok(principal),
                    Err(refusal) => refusals.push(refusal.0),
                }
            }
            Err(Refusal(refusals.join("; ")))
        })
    }
}

impl<A: Authenticator + ?Sized> Authenticator for Arc<A> {
    fn authenticate<'a>(
        &'a self,
        token: &'a [u8],
        peer: &'a Peer,
        now: SystemTime,
    ) -> BoxFuture<'a, Result<Principal, Refusal>> {
        self.as_ref().authenticate(token, peer, now)
    }
}

/// A call that came in, before anything is done for it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct CallInfo<'a> {
    /// Whom it is made for.
    pub principal: &'a Principal,
    /// The method's path.
    pub method: &'a str,
    /// Who calls.
    pub peer: &'a Peer,
    /// The connection's number: [`ConnectionInfo::id`](crate::ConnectionInfo).
    pub connection: u64,
}

/// Asked before a server does anything for a call, and told of every decision on credentials. Runs on the connection's own
/// task, with no lock held: it must not block.
pub trait Gate: Send + Sync + 'static {
    /// Whether the call may go on: once for each, before it takes a permit and before its handler starts.
    ///
    /// # Errors
    /// What its caller is told instead of an answer.
    fn admit(&self, call: &CallInfo<'_>) -> Result<(), Status>;

    /// Credentials were decided on, and nobody has been told yet. Default: nothing.
    fn authenticated(&self, peer: &Peer, connection: u64, outcome: Result<&Principal, &Refusal>) {
        let _ = (peer, connection, outcome);
    }
}

/// Asked before each attempt of a client's call, with no lock held.
pub trait Interceptor: Send + Sync + 'static {
    /// May change the options, for one to add metadata, or end the call.
    ///
    /// # Errors
    /// What the call ends with, before anything of it is sent.
    fn before(&self, method: &str, options: &mut CallOptions) -> Result<(), Status>;
}

/// What proves to a server whom a client calls for, such as a JWT. Its memory is overwritten when it is dropped, and Debug does
/// not show it. What was sent has gone through buffers that are not.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// A token of 1 to 8,192 bytes (PROTOCOL.md, section 6).
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Where a client gets its tokens: asked for each new connection, and for a newer one when four fifths of the time have passed
/// after which the server lets the last one end. Never twice at once for one client.
pub trait TokenSource: Send + Sync + 'static {
    /// A token that is valid now. One that does not come within the client's connect timeout counts as an error.
    ///
    /// # Errors
    /// Why there is none. Its message becomes part of that of the calls that wait; it must hold no secret.
    fn token(&self) -> BoxFuture<'_, Result<Token, Status>>;
}

/// The same token always: what [`ClientBuilder::token`](crate::ClientBuilder::token) makes of it.
impl TokenSource for Token {
    fn token(&self) -> BoxFuture<'_, Result<Token, Status>> {
        Box::pin(std::future::ready(Ok(self.clone())))
    }
}
