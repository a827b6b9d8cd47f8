//! A client's tokens: asked for when a connection is made and before the last one ends, never twice at once.

use std::{
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use valkyrie_protocol::{Reason, Status};

use crate::{
    Endpoint, Level, Runtime, Token, TokenSource,
    connection::{Link, lock},
    flight::Flight,
    log::{Logger, of_connection},
    runtime::{race, sleep_until},
};

/// The longest token in bytes (PROTOCOL.md, W6-15).
const MAX_TOKEN: usize = 8 << 10;
/// So soon after a token was accepted another one is asked for at the earliest, and so long from one failure to the next try:
/// doubled from the first to the second.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

pub(crate) struct Credentials {
    source: Arc<dyn TokenSource>,
    runtime: Arc<dyn Runtime>,
    /// How long the source may take.
    timeout: Duration,
    log: Logger,
    asking: Mutex<Option<Arc<Flight<Token>>>>,
}

impl Credentials {
    /// Whether tokens may go to `endpoint`; `sealed` is whether connections are encrypted whatever carries them.
    ///
    /// # Errors
    /// INSECURE_CREDENTIALS where anybody on the way could read them.
    pub(crate) fn check(endpoint: &Endpoint, sealed: bool) -> Result<(), Status> {
        if sealed || may_carry_tokens(endpoint) {
            return Ok(());
        }
        Err(Status::from_reason(
            Reason::INSECURE_CREDENTIALS,
            format!(
                "a token would travel unencrypted to {endpoint}: use tls://, wss://, quic:// or .sealed(true)"
            ),
        ))
    }

    pub(crate) fn new(
        source: Arc<dyn TokenSource>,
        runtime: Arc<dyn Runtime>,
        timeout: Duration,
        log: Logger,
    ) -> Arc<Self> {
        Arc::new(Self { source, runtime, timeout, log, asking: Mutex::default() })
    }

    /// A new token, or the one that is being asked for.
    ///
    /// # Errors
    /// CREDENTIALS_UNAVAILABLE, with what the source said.
    pub(crate) async fn token(self: &Arc<Self>) -> Result<Token, Status> {
        let (flight, asking) = {
            let mut asking = lock(&self.asking);
            match &*asking {
                Some(flight) => (flight.clone(), None),
                None => {
                    let flight = Arc::<Flight<Token>>::default();
                    *asking = Some(flight.clone());
                    (flight.clone(), Some(Asking { credentials: self.clone(), flight }))
                }
            }
        };
        if let Some(asking) = asking {
            self.runtime.spawn(Box::pin(asking.run()));
        }
        flight.wait().await
    }

    async fn ask(&self) -> Result<Token, Status> {
        let deadline = self.runtime.now().after(self.timeout);
        match race(self.source.token(), sleep_until(&*self.runtime, deadline)).await {
            Some(Ok(token)) if (1..=MAX_TOKEN).contains(&token.as_bytes().len()) => Ok(token),
            Some(Ok(token)) => {
                let len = token.as_bytes().len();
                Err(unavailable(&format!("its token has {len} bytes, not 1 to {MAX_TOKEN}")))
            }
            Some(Err(status)) => Err(unavailable(status.message())),
            None => Err(unavailable(&format!("none within {} ms", self.timeout.as_millis() as u64))),
        }
    }

    /// Sends newer tokens on a connection before the last one ends, until it is over.
    pub(crate) async fn keep_fresh(self: Arc<Self>, link: Arc<Link>) {
        while let Some((since, expires_in)) = link.authenticated().await {
            let Some(expires_in) = expires_in else { continue };
            let expires = since.after(expires_in);
            // At 72 to 80 %: the clients of one server do not come all at once.
            let spread = RandomState::new().hash_one(link.id) % 80;
            let share = expires_in.saturating_mul(800 - spread as u32) / 1_000;
            let (mut at, mut pause) = (since.after(share.max(PAUSE.0)), PAUSE.0);
            loop {
                if race(sleep_until(&*self.runtime, at), link.closed()).await.is_none() {
                    return;
                }
                let status = match self.token().await {
                    Ok(token) if link.authenticate(&token) => break,
                    Ok(_) => return,
                    Err(status) => status,
                };
                self.failed(&link, &status);
                at = self.runtime.now().after(pause);
                pause = (pause * 2).min(PAUSE.1);
                if at >= expires {
                    return;
                }
            }
        }
    }

    fn failed(&self, link: &Link, status: &Status) {
        if let Some(log) = self.log.wants(Level::Warn) {
            let endpoint = &link.peer.endpoint;
            let sentence = ["no newer token for ", endpoint, ": ", status.message()];
            log.log(of_connection(Level::Warn, &sentence, Some(status.reason()), endpoint));
        }
    }
}

fn unavailable(why: &str) -> Status {
    Status::from_reason(Reason::CREDENTIALS_UNAVAILABLE, format!("the token source failed: {why}"))
}

/// The source is being asked. A source that panics, or whose runtime stops, gives none.
struct Asking {
    credentials: Arc<Credentials>,
    flight: Arc<Flight<Token>>,
}

impl Asking {
    async fn run(self) {
        let result = self.credentials.ask().await;
        self.settle(result);
    }

    fn settle(&self, result: Result<Token, Status>) {
        // Whoever comes from now on wants a newer one.
        *lock(&self.credentials.asking) = None;
        self.flight.resolve(result);
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        if !self.flight.is_resolved() {
            self.settle(Err(unavailable("it panicked, or its runtime stopped")));
        }
    }
}

/// Whether what goes to an endpoint stays between the two: over an encrypted transport, or inside one machine. Of a transport
/// that was registered from outside it is believed.
fn may_carry_tokens(endpoint: &Endpoint) -> bool {
    if !matches!(endpoint.scheme(), "tcp" | "ws") {
        return true;
    }
    #[cfg(feature = "native")]
    if let Some(address) = endpoint.resolved() {
        return address.ip().to_canonical().is_loopback();
    }
    let authority = endpoint.authority();
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_leave_the_machine_encrypted_only() {
        let may = |text: &str| may_carry_tokens(&Endpoint::parse(text).unwrap());
        for text in [
            "tcp://127.0.0.1:1",
            "tcp://127.9.9.9:1",
            "tcp://[::1]:1",
            "tcp://[::ffff:127.0.0.1]:1",
            "ws://localhost:80/path",
            "localhost:1",
            "unix:///run/x",
            "memory:x",
            "quic://example.com:1",
            "tls://example.com:1",
            "wss://example.com",
        ] {
            assert!(may(text), "{text}");
        }
        for text in [
            "tcp://10.0.0.1:1",
            "tcp://example.com:1",
            "tcp://localhost.example.com:1",
            "tcp://127.0.0.1.example.com:1",
            "ws://example.com/127.0.0.1",
            "ws://example.com",
            "tcp://[2001:db8::1]:1",
            "tcp://0.0.0.0:1",
        ] {
            assert!(!may(text), "{text}");
        }
    }
}
