//! Whom a server lets in: its authenticator's decisions on credentials, what an address pays for refused ones, and the gate that
//! each call passes.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::{Duration, SystemTime},
};

use valkyrie_protocol::{Reason, Secret, Status, Time};

use crate::{
    Authenticator, BoxFuture, CallInfo, Gate, Level, Peer, Principal, Refusal,
    connection::{Link, lock},
    log::of_connection,
    router::{Arrived, Router},
    runtime::{race, sleep_until},
};

/// How long a decision may take. On a connection's first credentials the handshake's timer is the shorter one.
const DECISION_TIMEOUT: Duration = Duration::from_secs(5);

/// What a server asks of those who call.
#[derive(Default)]
pub(crate) struct Guard {
    pub(crate) authenticator: Option<Arc<dyn Authenticator>>,
    pub(crate) gate: Option<Arc<dyn Gate>>,
    penalties: Mutex<Penalties>,
}

/// Lets nobody call anything but health: a server that asks who calls, and was not told who may.
pub(crate) struct Closed;

impl Gate for Closed {
    fn admit(&self, call: &CallInfo<'_>) -> Result<(), Status> {
        if call.method.starts_with("/valkyrie.Health/") {
            return Ok(());
        }
        let reason = match call.principal.is_anonymous() {
            true => Reason::UNAUTHENTICATED,
            false => Reason::PERMISSION_DENIED,
        };
        Err(Status::from_reason(
            reason,
            "the server has credentials and no policy, so nobody may call anything but health: its builder's .gate(…) or \
             .open_to_all(true) changes that",
        ))
    }
}

impl Guard {
    /// Whether connections of a peer's address are closed as they come, for the credentials that were refused before.
    pub(crate) fn is_barred(&self, peer: &Peer, now: Time) -> bool {
        self.authenticator.is_some()
            && address(&peer.endpoint).is_some_and(|address| lock(&self.penalties).is_barred(address, now))
    }

    /// Asks the gate, if there is one.
    pub(crate) fn admit(&self, call: &Arrived) -> Result<(), Status> {
        let Some(gate) = &self.gate else { return Ok(()) };
        let link = &call.stream.link;
        let info = CallInfo {
            principal: &call.principal,
            // Checked to be UTF-8 when the CALL frame was read.
            method: std::str::from_utf8(&call.method).unwrap_or(""),
            peer: &link.peer,
            connection: link.id,
        };
        let asked = catch_unwind(AssertUnwindSafe(|| gate.admit(&info)));
        asked.unwrap_or_else(|_| Err(Status::from_reason(Reason::INTERNAL, "the gate panicked")))
    }
}

/// Decides on the credentials of a connection; whether it did at once.
pub(crate) fn authenticate(router: &Arc<Router>, link: &Arc<Link>, token: Secret) -> bool {
    let deciding = Deciding { router: router.clone(), link: link.clone(), decided: false };
    let mut future: BoxFuture<'static, ()> = Box::pin(deciding.run(token));
    let poll = || future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    match catch_unwind(AssertUnwindSafe(poll)) {
        Ok(Poll::Pending) => {
            link.runtime.spawn(future);
            false
        }
        // A panic refused them.
        Ok(Poll::Ready(())) | Err(_) => true,
    }
}

/// A decision under way. Dropped without one, it refuses.
struct Deciding {
    router: Arc<Router>,
    link: Arc<Link>,
    decided: bool,
}

impl Deciding {
    async fn run(mut self, token: Secret) {
        let Some(authenticator) = &self.router.guard.authenticator else { return };
        let runtime = &*self.link.runtime;
        let timeout = sleep_until(runtime, runtime.now().after(DECISION_TIMEOUT));
        let decision = authenticator.authenticate(token.as_bytes(), &self.link.peer, SystemTime::now());
        let outcome = race(decision, timeout).await;
        self.decide(outcome.unwrap_or_else(|| Err(Refusal("the authenticator took too long".into()))));
    }

    fn decide(&mut self, outcome: Result<Principal, Refusal>) {
        self.decided = true;
        let now = SystemTime::now();
        let outcome = outcome.and_then(|principal| match principal.expires() {
            None => Ok((principal, None)),
            Some(expires) => match expires.duration_since(now) {
                Ok(left) if !left.is_zero() => Ok((principal, Some(left))),
                _ => Err(Refusal("they have expired".into())),
            },
        });
        let Self { router, link, .. } = &*self;
        if let Some(gate) = &router.guard.gate {
            let outcome = outcome.as_ref().map(|(principal, _)| principal);
            let tell = || gate.authenticated(&link.peer, link.id, outcome);
            // Its panic is its own: the decision stands.
            let _ = catch_unwind(AssertUnwindSafe(tell));
        }
        if let Err(refusal) = &outcome
            && let Some(log) = link.log.wants(Level::Warn)
        {
            let endpoint = &link.peer.endpoint;
            let sentence = ["the credentials of ", endpoint, " were refused: ", &refusal.0];
            log.log(of_connection(Level::Warn, &sentence, Some(Reason::CREDENTIALS_REFUSED), endpoint));
        }
        let refused_first = link.decided(outcome.ok());
        if refused_first && let Some(address) = address(&link.peer.endpoint) {
            lock(&router.guard.penalties).refused(address, link.runtime.now());
        }
    }
}

impl Drop for Deciding {
    fn drop(&mut self) {
        if !self.decided {
            self.decide(Err(Refusal("the authenticator panicked, or the runtime stopped".into())));
        }
    }
}

/// Addresses whose first credentials were refused lately.
#[derive(Default)]
struct Penalties(HashMap<IpAddr, Offence>);

#[derive(Clone, Copy)]
struct Offence {
    count: u32,
    last: Time,
}

impl Penalties {
    /// Addresses that are kept, about 64 bytes each; the one that was quiet the longest goes first.
    const MOST: usize = 1_024;
    /// So many cost nothing.
    const FREE: u32 = 2;
    /// What each further one costs.
    const PENALTY: Duration = Duration::from_secs(1);
    /// After so long without another one, all is forgotten.
    const MEMORY: Duration = Duration::from_secs(10);

    fn refused(&mut self, address: IpAddr, now: Time) {
        if self.0.len() >= Self::MOST && !self.0.contains_key(&address) {
            let quietest = self.0.iter().min_by_key(|(_, offence)| offence.last).map(|(address, _)| *address);
            quietest.and_then(|address| self.0.remove(&address));
        }
        let offence = self.0.entry(address).or_insert(Offence { count: 0, last: now });
        if now.since(offence.last) >= Self::MEMORY {
            offence.count = 0;
        }
        *offence = Offence { count: offence.count.saturating_add(1), last: now };
    }

    fn is_barred(&self, address: IpAddr, now: Time) -> bool {
        self.0
            .get(&address)
            .is_some_and(|offence| offence.count > Self::FREE && now.since(offence.last) < Self::PENALTY)
    }
}

/// The address behind a peer's endpoint; of an IPv6 address its network, which is one customer's.
pub(crate) fn address(endpoint: &str) -> Option<IpAddr> {
    let (_, authority) = endpoint.split_once("://")?;
    Some(match authority.parse::<SocketAddr>().ok()?.ip().to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        address => address,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Time {
        Time::from_micros(ms * 1_000)
    }

    #[test]
    fn the_third_refusal_bars_an_address_for_a_second() {
        let mut penalties = Penalties::default();
        let peer = address("tcp://192.0.2.1:5").unwrap();
        penalties.refused(peer, at(0));
        penalties.refused(peer, at(10));
        assert!(!penalties.is_barred(peer, at(11)));
        penalties.refused(peer, at(20));
        assert!(penalties.is_barred(peer, at(1_019)));
        assert!(!penalties.is_barred(peer, at(1_020)));
        penalties.refused(peer, at(1_100));
        assert!(penalties.is_barred(peer, at(2_099)));
        // Ten quiet seconds, and it begins anew.
        penalties.refused(peer, at(11_100));
        assert!(!penalties.is_barred(peer, at(11_101)));
    }

    #[test]
    fn the_table_of_addresses_is_bounded_and_ipv6_counts_by_network() {
        let mut penalties = Penalties::default();
        for number in 0..10_000u32 {
            penalties.refused(IpAddr::from(number.to_be_bytes()), at(number.into()));
        }
        assert_eq!(penalties.0.len(), Penalties::MOST);
        assert!(penalties.0.contains_key(&IpAddr::from(9_999u32.to_be_bytes())));
        assert_eq!(address("quic://[2001:db8::1]:1"), address("quic://[2001:db8::ffff:2]:2"));
        assert_ne!(address("quic://[2001:db8::1]:1"), address("quic://[2001:db8:0:1::1]:1"));
        assert_eq!(address("tcp://[::ffff:192.0.2.1]:1"), address("ws://192.0.2.1:2"));
        assert_eq!((address("unix:"), address("memory:")), (None, None));
    }
}
