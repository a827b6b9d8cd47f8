//! A server of the list: its connections, its last try, its breakers.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use valkyrie_protocol::{Reason, Status, Time};

use super::{Ask, Backend, Listed};
use crate::{
    connection::{Health, Link},
    metrics::BackendCounts,
    policy::{Breaker, Flaps, Random, Reconnect, ReconnectPolicy, Rides},
};

pub(super) struct Member {
    pub(super) backend: Arc<Backend>,
    /// Where it stands in the list, unless it has left it: then it gets no calls.
    pub(super) at: Option<usize>,
    pub(super) weight: u32,
    pub(super) level: u8,
    /// Attempts of this client's calls that it has not answered.
    pub(super) in_flight: u32,
    pub(super) links: Vec<Arc<Link>>,
    pub(super) dialing: bool,
    pub(super) backoff: Reconnect,
    /// What came of the last try, and which of all it was.
    pub(super) tried: Option<(Tried, u64)>,
    /// By lane.
    pub(super) breakers: Vec<Option<Breaker>>,
    /// Since when somebody holds back all of its calls by hand.
    pub(super) isolated: Option<Time>,
    pub(super) counts: BackendCounts,
    pub(super) flaps: Flaps,
    /// Who pays for the calls of its last connection.
    pub(super) rides: Rides,
}

pub(super) enum Tried {
    /// A connection, for those who waited for it, though it may be over.
    Made(Arc<Link>),
    /// Why not, and when the next try may be made.
    Failed(Status, Time),
}

impl Member {
    pub(super) fn new(listed: Listed, at: usize, policy: ReconnectPolicy) -> Self {
        let Listed { backend, weight, level } = listed;
        Self {
            backend,
            at: Some(at),
            weight,
            level,
            in_flight: 0,
            links: Vec::new(),
            dialing: false,
            backoff: Reconnect::new(policy),
            tried: None,
            breakers: Vec::new(),
            isolated: None,
            counts: BackendCounts::default(),
            flaps: Flaps::new(),
            rides: Rides::default(),
        }
    }

    pub(super) fn usable(&self) -> Option<&Arc<Link>> {
        self.links.iter().find(|link| link.is_usable())
    }

    /// Whether it has a connection over which it does not say that it does not serve.
    pub(super) fn is_ready(&self, now: Time) -> bool {
        let serves = |link: &Arc<Link>| link.is_usable() && link.health() == Health::Serving;
        self.links.iter().any(serves) && self.flaps.held_until(now).is_none()
    }

    /// Whether it fell silent, perhaps a moment ago, and nothing was heard of it since.
    pub(super) fn note_silence(&self) -> bool {
        if self.links.iter().any(|link| link.timed_out()) {
            self.backend.silent.store(true, Relaxed);
        }
        self.backend.silent.load(Relaxed)
    }

    /// Whether a connection to it may be tried.
    pub(super) fn may_dial(&self, now: Time, ask: Ask) -> bool {
        let again = |(tried, number): &(Tried, u64)| match tried {
            Tried::Made(_) => true,
            Tried::Failed(_, not_before) => {
                ask.since.is_none_or(|since| *number <= since) && (ask.at_once || *not_before <= now)
            }
        };
        !self.dialing && self.tried.as_ref().is_none_or(again)
    }

    /// Whether it has not said yet whether it serves.
    pub(super) fn is_asked(&self) -> bool {
        self.links.iter().any(|link| link.is_usable() && link.health() == Health::Unknown)
    }

    /// What the last try said, and when the next one may be made, if it failed.
    pub(super) fn failed(&self) -> Option<(&Status, Time, u64)> {
        match &self.tried {
            Some((Tried::Failed(status, not_before), number)) => Some((status, *not_before, *number)),
            _ => None,
        }
    }

    /// The connection that was made since.
    pub(super) fn made_since(&self, since: Option<u64>) -> Option<&Arc<Link>> {
        match &self.tried {
            Some((Tried::Made(link), number)) if since.is_some_and(|since| *number > since) => Some(link),
            _ => None,
        }
    }

    pub(super) fn dial(&mut self, now: Time) -> Arc<Backend> {
        self.dialing = true;
        self.counts.dials += 1;
        self.note_silence();
        self.backoff.dialling(now);
        self.backend.clone()
    }

    /// There is a connection, unless it is over already: then it was looked for in vain when it ended.
    pub(super) fn made(&mut self, link: Arc<Link>, now: Time, tries: &mut u64, random: &mut Random) {
        if let Some(status) = link.is_mute() {
            self.counts.dials_failed += 1;
            return self.failed_now(status, now, tries, random);
        }
        self.counts.connections_made += 1;
        if link.is_over() {
            self.counts.connections_lost += 1;
        } else {
            self.links.push(link.clone());
        }
        *tries += 1;
        self.tried = Some((Tried::Made(link), *tries));
    }

    pub(super) fn failed_now(&mut self, status: Status, now: Time, tries: &mut u64, random: &mut Random) {
        *tries += 1;
        let not_before = match status.reason() {
            // The server was not asked.
            Reason::CREDENTIALS_UNAVAILABLE => now,
            _ => self.backoff.failed(now, random),
        };
        self.tried = Some((Tried::Failed(status, not_before), *tries));
    }
}
