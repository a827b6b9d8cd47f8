//! Servers that come and go: what each part of the list is now, and what becomes of a server that has left it.

use std::collections::{HashMap, HashSet};

use super::{
    Arc, Ask, Backend, Connectivity, Context, Link, Listed, Member, Picked, Poll, Pool, State, Status, Time,
    Unpicked, Waker, dial::LEFT, lock,
};
use crate::{Connector, ResolvedServer, endpoint::MAX_SERVERS, policy::ReconnectPolicy, resolve};

/// Their places, with those of servers that have left and still have calls.
const MAX_PLACES: usize = 4 * MAX_SERVERS;

/// A piece of the list: servers that were written into the endpoint, or what one resolver gives.
struct Part {
    /// Where it stands; its servers may be further away.
    level: u8,
    /// Of a resolver, none until its first set.
    servers: Vec<Listed>,
    /// Why there is no first set yet, when it is asked for again if ever, and which of all tries that was.
    failed: Option<(Status, Option<Time>, u64)>,
}

/// The pieces of a list that has resolvers.
#[derive(Default)]
pub(super) struct Parts {
    all: Vec<Part>,
    /// Those whom nobody follows yet: the first call begins it.
    unstarted: Vec<resolve::Source>,
    /// Connections that failed or were lost.
    troubles: u64,
}

impl Parts {
    pub(super) fn trouble(&mut self) {
        self.troubles = self.troubles.wrapping_add(1);
    }

    /// Whom to follow from now on.
    pub(super) fn start(&mut self) -> Vec<resolve::Source> {
        std::mem::take(&mut self.unstarted)
    }
}

impl Member {
    /// Whether nothing of it is under way.
    fn is_vacant(&self) -> bool {
        self.in_flight == 0 && self.links.is_empty() && !self.dialing
    }

    fn listed(&self) -> Listed {
        Listed { backend: self.backend.clone(), weight: self.weight, level: self.level }
    }

    /// It had left the list and is published anew, before its place was another's.
    fn is_back(&mut self) {
        self.backoff.reset();
        if self.failed().is_some() {
            self.tried = None;
        }
    }
}

impl State {
    /// While no resolver has given a server: why, or nothing while one is asked.
    pub(super) fn unresolved(&self, now: Time, ask: Ask) -> Option<Result<Picked, Unpicked>> {
        let failed = |part: &Part| {
            let (status, not_before, number) = part.failed.as_ref()?;
            let asked_again = not_before.is_some_and(|at| at <= now);
            let seen = ask.since.is_some_and(|since| *number <= since);
            (!seen || !asked_again).then(|| (status.clone(), *not_before, *number))
        };
        let failures: Option<Vec<_>> = self.parts.all.iter().map(failed).collect();
        let (status, not_before, _) = failures?.into_iter().max_by_key(|(.., number)| *number)?;
        Some(Err(Unpicked { status: status.as_unprocessed(), not_before }))
    }

    /// As [`State::connectivity`], while no resolver has given a server.
    pub(super) fn resolving(&self, now: Time) -> Connectivity {
        let waits = |part: &Part| match &part.failed {
            Some((_, not_before, _)) => not_before.is_none_or(|at| at > now),
            None => false,
        };
        match self.parts.all.iter().all(waits) {
            _ if !self.parts.unstarted.is_empty() => Connectivity::Idle,
            true => Connectivity::TransientFailure,
            false => Connectivity::Connecting,
        }
    }

    /// The list is what its parts are now. Servers that stay keep their places with all that is known of them; a place that a new one
    /// takes has nothing under way. The connections of those that have left.
    fn relist(&mut self) -> Result<Vec<Arc<Link>>, Status> {
        let reconnect = self.config.reconnect;
        let mut wanted: Vec<Listed> =
            self.parts.all.iter().flat_map(|part| part.servers.iter().cloned()).collect();
        // Stable: within its level each keeps its turn.
        wanted.sort_by_key(|listed| listed.level);
        let mut once = HashSet::new();
        wanted.retain(|listed| once.insert(Arc::as_ptr(&listed.backend)));

        let places: HashMap<_, _> = (0_usize..)
            .zip(&self.members)
            .map(|(place, member)| (Arc::as_ptr(&member.backend), place))
            .filter(|(backend, _)| once.contains(backend))
            .collect();
        let told: HashSet<_> = self.edges.iter().map(|(_, place, _)| *place as usize).collect();
        let is_free = |(place, member): (usize, &Member)| {
            let stays = places.contains_key(&Arc::as_ptr(&member.backend));
            (!stays && member.is_vacant() && !told.contains(&place)).then_some(place)
        };
        let free: Vec<_> = self.members.iter().enumerate().filter_map(is_free).collect();
        let fresh = (wanted.len() - places.len()).saturating_sub(free.len());
        if self.members.len() + fresh > MAX_PLACES {
            let message = format!(
                "servers change faster than their calls end: more than {MAX_PLACES} have calls or connections"
            );
            return Err(resolve::failed(message));
        }

        let was: Vec<_> = self.members.iter_mut().map(|member| member.at.take()).collect();
        let mut free = free.into_iter();
        let mut earlier = Vec::with_capacity(wanted.len());
        self.order.clear();
        for (at, listed) in wanted.into_iter().enumerate() {
            let place = match places.get(&Arc::as_ptr(&listed.backend)) {
                Some(place) => {
                    let member = &mut self.members[*place];
                    (member.at, member.weight, member.level) = (Some(at), listed.weight, listed.level);
                    if was[*place].is_none() {
                        member.is_back();
                    }
                    earlier.push(was[*place]);
                    *place
                }
                None => {
                    earlier.push(None);
                    let member = Member::new(listed, at, reconnect);
                    match free.next() {
                        Some(place) => {
                            self.members[place] = member;
                            place
                        }
                        None => {
                            self.members.push(member);
                            self.members.len() - 1
                        }
                    }
                }
            };
            self.order.push(place as u32);
        }
        self.outliers.update(earlier);
        let left = self.members.iter().zip(was).filter(|(member, was)| member.at.is_none() && was.is_some());
        Ok(left.flat_map(|(member, _)| member.links.iter().cloned()).collect())
    }
}

impl Pool {
    /// The list has these levels, one for each of its endpoints, of which those are resolved.
    pub(crate) fn with_sources(
        self,
        levels: impl Iterator<Item = u8>,
        unstarted: Vec<resolve::Source>,
    ) -> Self {
        if unstarted.is_empty() {
            return self;
        }
        {
            let State { members, parts, .. } = &mut *lock(&self.state);
            let mut fixed = members.iter();
            let servers = |at| match unstarted.iter().any(|source| source.part == at) {
                true => Vec::new(),
                false => fixed.next().map(Member::listed).into_iter().collect(),
            };
            let all = (0..).map(servers).zip(levels);
            let all = all.map(|(servers, level)| Part { level, servers, failed: None }).collect();
            *parts = Parts { all, unstarted, troubles: 0 };
        }
        self
    }

    /// Follows the resolvers, unless somebody does.
    pub(super) fn resolve(self: &Arc<Self>) {
        let sources = lock(&self.state).parts.start();
        self.follow(sources);
    }

    /// With nothing locked.
    pub(super) fn follow(self: &Arc<Self>, sources: Vec<resolve::Source>) {
        for source in sources {
            self.runtime().spawn(Box::pin(resolve::follow(self.clone(), source)));
        }
    }

    /// A resolver gave this set: whether it is another one than before. Servers that stay keep their connections, breakers and counts. Those
    /// that have left get no new calls, and their connections close once their calls have ended. Whatever is wrong with one
    /// server, nothing of the set is taken, and the last one stays.
    ///
    /// # Errors
    /// NAME_RESOLUTION for an empty set and for more than [`MAX_SERVERS`]; otherwise as for an endpoint that is written so.
    pub(crate) fn update(&self, part: usize, servers: &[ResolvedServer]) -> Result<bool, Status> {
        let listed = self.backends(part, servers)?;
        let (left, wakers): (_, Vec<Waker>) = {
            let state = &mut *lock(&self.state);
            let Some(own) = state.parts.all.get(part) else { return Ok(false) };
            let same = |(a, b): (&Listed, &Listed)| {
                Arc::ptr_eq(&a.backend, &b.backend) && a.weight == b.weight && a.level == b.level
            };
            if state.closed || own.servers.len() == listed.len() && own.servers.iter().zip(&listed).all(same)
            {
                return Ok(false);
            }
            let others: usize = state.parts.all.iter().map(|part| part.servers.len()).sum();
            too_many(others - own.servers.len() + listed.len())?;
            let before = std::mem::replace(&mut state.parts.all[part].servers, listed);
            let left = match state.relist() {
                Ok(left) => left,
                Err(status) => {
                    state.parts.all[part].servers = before;
                    return Err(status);
                }
            };
            state.parts.all[part].failed = None;
            // The breakers of a server that has left are none to look at any more.
            let mut wakers = state.changed();
            wakers.append(&mut state.watching);
            (left, wakers)
        };
        for link in left {
            link.close(Time::from_micros(u64::MAX), LEFT);
        }
        wakers.into_iter().for_each(Waker::wake);
        Ok(true)
    }

    /// The servers of a set, each once: those that are known as they are, others checked as a written endpoint is.
    fn backends(&self, part: usize, servers: &[ResolvedServer]) -> Result<Vec<Listed>, Status> {
        if servers.is_empty() {
            return Err(resolve::failed("there is no server in it".to_owned()));
        }
        too_many(servers.len())?;
        let wanted: HashSet<_> = servers.iter().map(|server| &server.endpoint).collect();
        let (level, mut known) = {
            let state = lock(&self.state);
            let known = state.members.iter().map(|member| &member.backend);
            let known = known.filter(|backend| wanted.contains(&backend.endpoint));
            let known: HashMap<_, _> =
                known.map(|backend| (backend.endpoint.clone(), backend.clone())).collect();
            (state.parts.all.get(part).map_or(0, |part| part.level), known)
        };
        // Of one scheme and one name, all addresses are connected to alike: certificates are read once for them.
        let mut alike: HashMap<(&str, &str), Arc<dyn Connector>> = HashMap::new();
        let mut once = HashSet::new();
        let mut listed = Vec::with_capacity(wanted.len());
        for server in servers {
            let endpoint = &server.endpoint;
            if !once.insert(endpoint) {
                continue;
            }
            let kind = (endpoint.scheme(), endpoint.host());
            let backend = match known.remove(endpoint) {
                Some(backend) => backend,
                None => {
                    let connector = match alike.get(&kind) {
                        Some(connector) => connector.clone(),
                        None => self.dialer.connector(endpoint)?,
                    };
                    self.dialer.admits(endpoint)?;
                    Arc::new(Backend::new(endpoint.clone(), connector))
                }
            };
            alike.entry(kind).or_insert_with(|| backend.connector.clone());
            listed.push(Listed { backend, weight: server.weight, level: level.saturating_add(server.level) });
        }
        Ok(listed)
    }

    /// How what failed is tried again.
    pub(crate) fn reconnect(&self) -> ReconnectPolicy {
        lock(&self.state).config.reconnect
    }

    /// A resolver failed, and is asked again at that time, if ever: told to those who wait for its first set.
    pub(crate) fn unresolved(&self, part: usize, status: Status, not_before: Option<Time>) {
        let wakers = {
            let state = &mut *lock(&self.state);
            let Some(own) = state.parts.all.get_mut(part).filter(|own| own.servers.is_empty()) else {
                return;
            };
            state.tries += 1;
            own.failed = Some((status, not_before, state.tries));
            state.changed()
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Whether the client was closed, or else a connection failed.
    pub(crate) fn poll_trouble(&self, cx: &Context<'_>, seen: &mut u64) -> Poll<bool> {
        let mut state = lock(&self.state);
        if state.closed {
            return Poll::Ready(true);
        }
        if std::mem::replace(seen, state.parts.troubles) != state.parts.troubles {
            return Poll::Ready(false);
        }
        state.wait(cx);
        Poll::Pending
    }
}

fn too_many(servers: usize) -> Result<(), Status> {
    match servers <= MAX_SERVERS {
        true => Ok(()),
        false => {
            Err(resolve::failed(format!("{servers} servers are more than the {MAX_SERVERS} of a client")))
        }
    }
}
