//! Who a connection speaks for: what the transport proved of it, what its credentials say, and the principal that policies
//! name.

use std::{fmt, sync::Arc, time::SystemTime};

use crate::{BoxFuture, Peer};

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
