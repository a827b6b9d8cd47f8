//! Tokens that are listed instead of signed, for development.

use std::{fmt, time::SystemTime};

use ring::{hmac, rand::SystemRandom};

use super::invalid;
use crate::{Authenticator, BoxFuture, Endpoint, Peer, Principal, Refusal, Status};

/// The most tokens of a list: each of them is compared.
const MOST: usize = 1_024;
/// The shortest token that may come from elsewhere, in bytes.
const REMOTE_BYTES: usize = 32;

/// A list of tokens and whom each stands for, for development. They are taken from this machine only (Unix sockets, `memory:`,
/// loopback addresses), unless [`StaticTokens::allow_remote`] says more; whoever comes through a proxy on this machine is of this
/// machine. Comparing takes as long whichever token is right, and of
/// the tokens themselves nothing is kept.
pub struct StaticTokens {
    /// A key that nobody knows, under which tokens are kept and compared.
    key: hmac::Key,
    tokens: Vec<(hmac::Tag, Principal)>,
    shortest: usize,
    remote: bool,
}

impl fmt::Debug for StaticTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StaticTokens").field("tokens", &self.tokens.len()).finish_non_exhaustive()
    }
}

impl StaticTokens {
    /// An empty list.
    ///
    /// # Errors
    /// `INVALID_CONFIGURATION` when the system has no random numbers.
    pub fn new() -> Result<Self, Status> {
        match hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()) {
            Ok(key) => Ok(Self { key, tokens: Vec::new(), shortest: usize::MAX, remote: false }),
            Err(_) => invalid("static tokens need the system's random numbers, and it has none".into()),
        }
    }

    /// With one more token.
    ///
    /// # Errors
    /// `INVALID_CONFIGURATION` when it is empty or longer than 8,192 bytes, listed already, or the 1,025th.
    pub fn token(mut self, token: impl AsRef<[u8]>, principal: Principal) -> Result<Self, Status> {
        let (token, id) = (token.as_ref(), principal.id());
        if token.is_empty() || token.len() > super::TOKEN_BYTES {
            return invalid(format!("the static token of {id:?} has {} bytes; give 1 to 8192", token.len()));
        }
        if self.tokens.iter().any(|(tag, _)| hmac::verify(&self.key, token, tag.as_ref()).is_ok()) {
            return invalid(format!(
                "the static token of {id:?} is another principal's too; give each its own"
            ));
        }
        if self.tokens.len() == MOST {
            return invalid(format!("there are more than {MOST} static tokens; sign tokens instead"));
        }
        self.shortest = self.shortest.min(token.len());
        self.tokens.push((hmac::sign(&self.key, token), principal));
        self.checked()
    }

    /// Takes them from everywhere. Call it last or not, every token must then have 32 bytes or more.
    ///
    /// # Errors
    /// `INVALID_CONFIGURATION` when one is shorter.
    pub fn allow_remote(mut self) -> Result<Self, Status> {
        self.remote = true;
        self.checked()
    }

    fn checked(self) -> Result<Self, Status> {
        if self.remote && self.shortest < REMOTE_BYTES {
            return invalid(format!(
                "a static token has {} bytes; from elsewhere than this machine give {REMOTE_BYTES} random ones or more",
                self.shortest
            ));
        }
        Ok(self)
    }

    fn check(&self, token: &[u8], peer: &Peer) -> Result<Principal, &'static str> {
        if !self.remote && !is_local(&peer.endpoint) {
            return Err("static tokens are taken from this machine only");
        }
        if token.len() > super::TOKEN_BYTES {
            return Err("the token is too long");
        }
        let mut found = None;
        for (tag, principal) in &self.tokens {
            if hmac::verify(&self.key, token, tag.as_ref()).is_ok() {
                found = Some(principal);
            }
        }
        found.cloned().ok_or("the token is not listed")
    }
}

impl Authenticator for StaticTokens {
    fn authenticate<'a>(
        &'a self,
        token: &'a [u8],
        peer: &'a Peer,
        _: SystemTime,
    ) -> BoxFuture<'a, Result<Principal, Refusal>> {
        let checked = self.check(token, peer).map_err(|why| Refusal(format!("static tokens: {why}")));
        Box::pin(std::future::ready(checked))
    }
}

/// Whether a peer is on this machine for certain.
fn is_local(endpoint: &str) -> bool {
    if endpoint.starts_with("unix:") || endpoint.starts_with("memory:") {
        return true;
    }
    let authority = Endpoint::parse(endpoint).map(|endpoint| endpoint.authority().to_owned());
    authority.is_ok_and(|authority| {
        authority
            .parse::<std::net::SocketAddr>()
            .is_ok_and(|address| address.ip().to_canonical().is_loopback())
    })
}
