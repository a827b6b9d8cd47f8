//! A client's connections: which servers it may use, what became of the last try of each, and who waits for one.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use valkyrie_protocol::{Metadata, Reason, Status, Time};

mod breakers;
mod course;
mod dial;
mod further;
#[cfg(feature = "native")]
mod health;
mod member;
#[cfg(feature = "native")]
pub(crate) mod servers;

pub use breakers::BreakerInfo;
pub(crate) use course::{Admission, Admitted, Course, Plan};
pub(crate) use dial::Dialer;

use course::Method;
use member::Member;

#[cfg(feature = "native")]
use crate::log::Logger;
#[cfg(feature = "script")]
use crate::script::Script;
use crate::{
    Connector, Endpoint, Level, Runtime,
    connection::{Link, lock},
    log::of_connection,
    metrics::Counts,
    observer::{CallId, Step},
    policy::{
        BackendState, BalancePolicy, Balancer, BreakerState, Budget, Edge, Latency, Outliers, Random,
        ServiceConfig, Throttle,
    },
    runtime::{race, sleep_until},
};
#[cfg(feature = "observe")]
use crate::{
    metrics::{BackendCounts, BackendMetrics, ClientMetrics},
    observer::{Event, Watch},
    policy::Breaker,
};

/// Where a client stands with its servers, as gRPC names it (<https://github.com/grpc/grpc/blob/master/doc/connectivity-semantics-and-api.md>).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Connectivity {
    /// No connection, and none is being made: the next call makes one.
    Idle,
    /// A connection is being made.
    Connecting,
    /// There is a connection that takes calls.
    Ready,
    /// The last try failed, and the next one waits.
    TransientFailure,
    /// The client is closed.
    Shutdown,
}

/// A server's part in the list.
#[derive(Clone)]
pub(crate) struct Listed {
    pub(crate) backend: Arc<Backend>,
    pub(crate) weight: u32,
    pub(crate) level: u8,
}

/// One server.
pub(crate) struct Backend {
    pub(crate) endpoint: Endpoint,
    connector: Arc<dyn Connector>,
    /// Its last connection ended because it said nothing: the next one gets no calls before its first word, as a system takes
    /// connections for a process that has stopped.
    silent: AtomicBool,
}

impl Backend {
    fn new(endpoint: Endpoint, connector: Arc<dyn Connector>) -> Self {
        Self { endpoint, connector, silent: AtomicBool::new(false) }
    }
}

/// A connection for an attempt, and its server's place: another's, perhaps, once the server has left the list.
#[derive(Clone)]
pub(crate) struct Picked {
    pub(crate) link: Arc<Link>,
    backend: Arc<Backend>,
    place: u32,
}

/// No connection now.
#[derive(Clone, Debug)]
pub(crate) struct Unpicked {
    /// Why the last try failed.
    pub(crate) status: Status,
    /// When the next one may be made, if waiting helps.
    pub(crate) not_before: Option<Time>,
}

/// What somebody who wants a connection has seen fail since.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask {
    /// Whether to try at once what failed a moment ago.
    at_once: bool,
    /// Tries that had ended before.
    since: Option<u64>,
}

impl Ask {
    pub(crate) fn new(at_once: bool) -> Self {
        Self { at_once, since: None }
    }
}

pub(crate) struct Pool {
    dialer: Dialer,
    state: Mutex<State>,
    /// Breakers changed.
    news: AtomicBool,
}

struct State {
    config: ServiceConfig,
    /// By place. A place stays its server's while something of it is under way, though it may have left the list.
    members: Vec<Member>,
    /// The list: places, in the servers' order.
    order: Vec<u32>,
    /// What the list is made of, where resolvers give servers.
    #[cfg(feature = "native")]
    parts: servers::Parts,
    /// Whether the balancer is to be told of what changed, and when a member is to be dialled that no call waits for, or is believed
    /// again.
    stale: bool,
    next_dial: Option<Time>,
    closed: bool,
    /// Connections that were there when the client was closed.
    closing: Vec<Arc<Link>>,
    /// Those who wait for whatever changes, and those who wait for a breaker that does, or for the end of what servers are asked.
    waiting: Vec<Waker>,
    watching: Vec<Waker>,
    /// Tries that ended.
    tries: u64,
    /// Those to be dialled because their connections are full, once nothing is locked.
    dials: Vec<Arc<Backend>>,
    /// A connection that was full has room, and somebody waits.
    freed: bool,
    /// How often it was changed what servers are asked about their health.
    #[cfg(feature = "native")]
    questions: u64,
    /// Changes of breakers that nobody was told of.
    edges: Vec<(Edge, u32, Lane)>,
    /// By method, and the methods by lane.
    lanes: HashMap<Bytes, Lane>,
    methods: Vec<Method>,
    /// That of the last call, which the next one's often is.
    last_lane: Lane,
    /// How long the calls of hedged methods took, by lane.
    latencies: Vec<Option<Box<Latency>>>,
    balancer: Balancer,
    outliers: Outliers,
    throttle: Throttle,
    budget: Budget,
    random: Random,
    counts: Counts,
}

/// The number of a method's breaker at each member.
pub(crate) type Lane = u32;

/// Changes of breakers that wait to be told; further ones are not.
const MAX_EDGES: usize = 64;
impl State {
    /// The servers of the list, with their places.
    fn listed(&self) -> impl Iterator<Item = (u32, &Member)> {
        self.order.iter().map(|place| (*place, &self.members[*place as usize]))
    }

    /// A connection, the reason why there is none, or whom to dial first, if not somebody else does.
    fn pick(&mut self, now: Time, ask: &mut Ask) -> Result<Option<Result<Picked, Unpicked>>, Arc<Backend>> {
        if self.closed {
            return Ok(Some(Err(Unpicked { status: closed(), not_before: None })));
        }
        let most = self.config.connections.most();
        // Whoever waits, waits for one that may have calls.
        let all = self.listed().all(|(_, member)| member.isolated.is_some());
        let may_be_had = |member: &Member| all || member.isolated.is_none();
        for (place, member) in self.listed().filter(|(_, member)| may_be_had(member)) {
            if let Some(link) = member.link(most, now).or_else(|| member.made_since(ask.since)) {
                let backend = member.backend.clone();
                return Ok(Some(Ok(Picked { link: link.clone(), backend, place })));
            }
        }
        ask.since.get_or_insert(self.tries);
        #[cfg(feature = "native")]
        if self.order.is_empty() {
            return Ok(self.unresolved(now, *ask));
        }
        if self.listed().any(|(_, member)| member.dialing) {
            return Ok(None);
        }
        let has_too_few = |member: &Member| member.usable().is_none() || member.grows(most, now);
        let may_dial = |(_, member): &(u32, &Member)| {
            may_be_had(member) && has_too_few(member) && member.may_dial(now, *ask)
        };
        let may_dial = self.listed().filter(may_dial);
        if let Some((place, _)) = may_dial.min_by_key(|(_, member)| member.note_silence()) {
            return Err(self.members[place as usize].dial(now));
        }
        let failed = || self.listed().filter_map(|(_, member)| member.failed());
        let status = match failed().max_by_key(|(_, _, number)| *number) {
            Some((status, ..)) => status.clone(),
            None => Status::from_reason(Reason::NAME_RESOLUTION, "there is no server to connect to"),
        };
        let not_before = failed().map(|(_, not_before, _)| not_before).min();
        Ok(Some(Err(Unpicked { status: status.as_unprocessed(), not_before })))
    }

    /// Something changed about the members.
    fn changed(&mut self) -> Vec<Waker> {
        self.stale = true;
        std::mem::take(&mut self.waiting)
    }

    /// Tells the balancer what became of the members.
    fn refresh(&mut self, now: Time) {
        self.stale = false;
        let state = |(at, (place, member)): (usize, (u32, &Member))| {
            let (ready, ejected) = (member.is_ready(now), self.outliers.is_ejected(at));
            (place, BackendState { ready, ejected, weight: member.weight, level: member.level })
        };
        let states: Vec<_> = self.listed().enumerate().map(state).collect();
        self.next_dial = None;
        if self.config.balance.policy != BalancePolicy::PickFirst && self.order.len() > 1 {
            let due = |(_, member): (u32, &Member)| match member.failed() {
                _ if member.usable().is_some() || member.dialing => member.flaps.held_until(now),
                Some((_, not_before, _)) => Some(not_before),
                None => Some(Time::default()),
            };
            self.next_dial = self.listed().filter_map(due).min();
        }
        self.balancer.update_places(&states);
    }

    /// Does what is due from time to time: ejects outliers, and gives those that are to be dialled beside the one that has the calls.
    fn due_dials(&mut self, now: Time) -> Vec<Arc<Backend>> {
        if self.order.len() > 1 && self.outliers.due(now).is_some_and(|at| at <= now) {
            self.stale |= !self.outliers.sweep(now, &mut self.random).is_empty();
        }
        if self.closed || self.next_dial.is_none_or(|at| now < at) {
            return Vec::new();
        }
        self.stale = true;
        let State { order, members, .. } = self;
        let mut dial = |place: &u32| {
            let member = &mut members[*place as usize];
            let due = member.usable().is_none() && member.may_dial(now, Ask::new(false));
            due.then(|| member.dial(now))
        };
        order.iter().filter_map(&mut dial).collect()
    }

    /// The config is another one from now on. What was learnt of the servers stays where it still means something. Gives the old
    /// one, to be dropped with nothing locked.
    fn configure(&mut self, config: ServiceConfig, now: Time) -> ServiceConfig {
        self.budget.set_policy(config.retry_budget);
        self.throttle.set_policy(config.throttle);
        self.balancer.set_config(config.balance);
        self.outliers.set_policy(config.outlier);
        for member in &mut self.members {
            member.backoff.set_policy(config.reconnect);
        }
        for (lane, method) in self.methods.iter_mut().enumerate() {
            method.policy = *config.method(std::str::from_utf8(&method.name).unwrap_or_default());
            for (place, member) in (0..).zip(&mut self.members) {
                let Some(Some(breaker)) = member.breakers.get_mut(lane) else { continue };
                if let Some(edge) = breaker.set_policy(method.policy.breaker, now)
                    && self.edges.len() < MAX_EDGES
                {
                    self.edges.push((edge, place, lane as Lane));
                }
            }
        }
        std::mem::replace(&mut self.config, config)
    }

    /// Those who are to look again.
    fn told(&mut self) -> Vec<Waker> {
        let mut wakers = std::mem::take(&mut self.watching);
        if std::mem::take(&mut self.freed) {
            wakers.append(&mut self.waiting);
        }
        wakers
    }

    fn watch(&mut self, cx: &Context<'_>) {
        if !self.watching.iter().any(|waker| waker.will_wake(cx.waker())) {
            self.watching.push(cx.waker().clone());
        }
    }

    fn wait(&mut self, cx: &Context<'_>) {
        if !self.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            self.waiting.push(cx.waker().clone());
        }
    }

    fn connectivity(&self, now: Time) -> Connectivity {
        let any = |is: &dyn Fn(&Member) -> bool| self.listed().any(|(_, member)| is(member));
        #[cfg(feature = "native")]
        if self.order.is_empty() && !self.closed {
            return self.resolving(now);
        }
        if self.closed {
            Connectivity::Shutdown
        } else if any(&|member| member.is_ready(now)) {
            Connectivity::Ready
        } else if any(&|member| member.dialing || member.is_asked()) {
            Connectivity::Connecting
        } else if any(&|member| {
            member.usable().is_some() || member.failed().is_some_and(|(_, not_before, _)| not_before > now)
        }) {
            Connectivity::TransientFailure
        } else {
            Connectivity::Idle
        }
    }
}

/// Who waits for another connectivity. Given up, it leaves nothing behind, however long nothing changes.
struct Lookout<'a> {
    pool: &'a Pool,
    waker: Option<Waker>,
}

impl Drop for Lookout<'_> {
    fn drop(&mut self) {
        let Some(mine) = &self.waker else { return };
        let left = {
            let waiting = &mut lock(&self.pool.state).waiting;
            let place = waiting.iter().position(|waker| waker.will_wake(mine));
            place.map(|place| waiting.remove(place))
        };
        // Something else of the same task may wait by the same waker, and does so anew then.
        left.into_iter().for_each(Waker::wake);
    }
}

fn closed() -> Status {
    Status::from_reason(Reason::CLIENT_CLOSED, "the client is closed")
}

impl Pool {
    /// Connections to these servers, none of which is made yet.
    pub(crate) fn new(dialer: Dialer, servers: Vec<Listed>, config: ServiceConfig) -> Self {
        let member = |(at, listed)| Member::new(listed, at, config.reconnect);
        let members: Vec<_> = servers.into_iter().enumerate().map(member).collect();
        let mut outliers = Outliers::new(config.outlier);
        outliers.update(members.iter().map(|_| None));
        let state = State {
            order: (0..members.len() as u32).collect(),
            members,
            #[cfg(feature = "native")]
            parts: servers::Parts::default(),
            stale: true,
            next_dial: None,
            closed: false,
            closing: Vec::new(),
            waiting: Vec::new(),
            watching: Vec::new(),
            tries: 0,
            dials: Vec::new(),
            freed: false,
            #[cfg(feature = "native")]
            questions: 0,
            edges: Vec::new(),
            lanes: HashMap::new(),
            methods: Vec::new(),
            last_lane: 0,
            latencies: Vec::new(),
            balancer: Balancer::new(config.balance),
            outliers,
            throttle: Throttle::new(config.throttle),
            budget: Budget::new(config.retry_budget),
            random: Random::new(dialer.runtime.seed()),
            config,
            counts: Counts::default(),
        };
        Self { dialer, state: Mutex::new(state), news: AtomicBool::new(false) }
    }

    pub(crate) fn runtime(&self) -> &Arc<dyn Runtime> {
        &self.dialer.runtime
    }

    #[cfg(feature = "native")]
    pub(crate) fn log(&self) -> &Logger {
        &self.dialer.terms.log
    }

    /// Whether anybody is told each step. Without the feature nobody is, and nothing is left of it.
    fn is_watched(&self) -> bool {
        #[cfg(feature = "observe")]
        return self.dialer.watch.is_some();
        #[cfg(not(feature = "observe"))]
        false
    }

    /// Who is told each step.
    #[cfg(feature = "observe")]
    pub(crate) fn watch(&self) -> Option<&Watch> {
        self.dialer.watch.as_ref()
    }

    /// The script of its servers, if they have one.
    #[cfg(feature = "script")]
    pub(crate) fn script(&self) -> Option<&Script> {
        self.watch()?.script.as_deref()
    }

    /// Tells who watches, if anybody does.
    pub(crate) fn note<'a>(&self, call: Option<CallId>, step: impl FnOnce() -> Step<'a>) {
        if self.is_watched() {
            self.note_at(self.runtime().now(), call, step());
        }
    }

    fn note_at(&self, at: Time, call: Option<CallId>, step: Step<'_>) {
        #[cfg(feature = "observe")]
        if let Some(watch) = &self.dialer.watch {
            watch.note(&Event { at, call, step });
        }
        #[cfg(not(feature = "observe"))]
        let _ = (at, call, step);
    }

    /// Who watches may add to what an attempt takes along.
    pub(crate) fn carry(&self, call: CallId, attempt: u64, metadata: &mut Metadata) {
        #[cfg(feature = "observe")]
        if let Some(watch) = &self.dialer.watch {
            watch.carry(call, attempt, metadata);
        }
        #[cfg(not(feature = "observe"))]
        let _ = (call, attempt, metadata);
    }

    /// The config is another one from now on.
    pub(crate) fn set_config(self: &Arc<Self>, config: ServiceConfig) {
        let now = self.runtime().now();
        let (old, wakers) = {
            let state = &mut *lock(&self.state);
            let old = state.configure(config, now);
            self.note_news(state);
            (old, state.changed())
        };
        #[cfg(feature = "native")]
        self.ask_anew(&old);
        drop(old);
        wakers.into_iter().for_each(Waker::wake);
        self.tell();
    }

    fn note_news(&self, state: &State) {
        if !state.edges.is_empty() || state.freed {
            self.news.store(true, Relaxed);
        }
    }

    /// Tells whoever wants to know which breakers changed, and who waits for room. With nothing locked.
    #[inline]
    pub(crate) fn tell(&self) {
        if self.news.load(Relaxed) {
            self.tell_now();
        }
    }

    fn tell_now(&self) {
        while self.news.load(Relaxed) {
            let wakers = lock(&self.state).told();
            wakers.into_iter().for_each(Waker::wake);
            let record = {
                let mut state = lock(&self.state);
                if state.edges.is_empty() {
                    self.news.store(false, Relaxed);
                    return;
                }
                let (edge, place, lane) = state.edges.remove(0);
                let Edge { from, to, at } = edge;
                let level = if to == BreakerState::Open { Level::Warn } else { Level::Info };
                let wanted = self.dialer.terms.log.wants(level).is_some();
                if !wanted && !self.is_watched() {
                    continue;
                }
                let endpoint = &state.members[place as usize].backend.endpoint;
                let method = state.methods.get(lane as usize).map_or(&[][..], |method| &method.name[..]);
                let method = std::str::from_utf8(method).unwrap_or_default();
                if self.is_watched() {
                    self.note_at(at, None, Step::Breaker { server: endpoint, method, edge: &edge });
                }
                let endpoint = &endpoint.to_string();
                let (from, to) = (from.name(), to.name());
                let sentence = ["the breaker of ", endpoint, " for ", method, " was ", from, " and is ", to];
                of_connection(level, &sentence, None, endpoint)
            };
            if let Some(log) = self.dialer.terms.log.wants(record.level) {
                log.log(record);
            }
        }
    }

    /// A connection, made if there is none. Whoever asks meanwhile waits for the same one.
    pub(crate) async fn link(self: &Arc<Self>, mut ask: Ask) -> Result<Picked, Unpicked> {
        #[cfg(feature = "native")]
        self.resolve();
        std::future::poll_fn(|cx| {
            let backend = {
                let mut state = lock(&self.state);
                let picked = state.pick(self.runtime().now(), &mut ask);
                if let Ok(Some(picked)) = picked {
                    return Poll::Ready(picked);
                }
                state.wait(cx);
                picked.err()
            };
            if let Some(backend) = backend {
                self.dial(backend);
            }
            Poll::Pending
        })
        .await
    }

    /// As [`Pool::link`], until then.
    pub(crate) async fn link_before(self: &Arc<Self>, deadline: Option<Time>) -> Result<Picked, Unpicked> {
        let link = self.link(Ask::new(false));
        let Some(deadline) = deadline else { return link.await };
        let too_late = || {
            let message = "the deadline passed before there was a connection";
            Unpicked { status: Status::from_reason(Reason::DEADLINE_EXCEEDED, message), not_before: None }
        };
        if deadline <= self.runtime().now() {
            return Err(too_late());
        }
        let runtime = self.runtime().clone();
        race(link, sleep_until(&*runtime, deadline)).await.unwrap_or_else(|| Err(too_late()))
    }

    pub(crate) fn poll_closed(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = lock(&self.state);
        if state.closed {
            return Poll::Ready(());
        }
        state.wait(cx);
        Poll::Pending
    }

    /// Waits until then, or until the client is closed.
    pub(crate) async fn until(&self, at: Time) {
        let closed = std::future::poll_fn(|cx| self.poll_closed(cx));
        race(closed, sleep_until(&**self.runtime(), at)).await;
        // Nothing may change for long, and others wait, too.
        std::future::poll_fn(|cx| {
            lock(&self.state).waiting.retain(|waker| !waker.will_wake(cx.waker()));
            Poll::Ready(())
        })
        .await;
    }

    /// The one connection that there is.
    pub(crate) fn only_link(&self) -> Option<Arc<Link>> {
        let state = lock(&self.state);
        let [place] = state.order[..] else { return None };
        match &state.members[place as usize].links[..] {
            [link] => Some(link.clone()),
            _ => None,
        }
    }

    pub(crate) fn links(&self) -> Vec<Arc<Link>> {
        lock(&self.state).members.iter().flat_map(|member| member.links.iter().cloned()).collect()
    }

    /// What was counted.
    #[cfg(feature = "observe")]
    pub(crate) fn metrics(&self) -> ClientMetrics {
        let state = &*lock(&self.state);
        let listed = state.members.iter().filter(|member| member.at.is_some());
        let servers = listed.map(|member| {
            let (mut streams, BackendCounts { mut bytes_in, mut bytes_out, .. }) = (0, member.counts);
            for link in &member.links {
                let (read, written) = link.bytes();
                (bytes_in, bytes_out) = (bytes_in + read, bytes_out + written);
                streams += link.streams();
            }
            let open = |breaker: &&Breaker| breaker.state() == BreakerState::Open;
            BackendMetrics {
                endpoint: member.backend.endpoint.label(),
                attempts: member.counts.attempts,
                in_flight: member.in_flight,
                connections: member.links.len(),
                dials: member.counts.dials,
                dials_failed: member.counts.dials_failed,
                connections_made: member.counts.connections_made,
                connections_lost: member.counts.connections_lost,
                streams,
                bytes_in,
                bytes_out,
                breaker_rejections: member.counts.breaker_rejections,
                breaker_changes: member.counts.changes(),
                breakers_open: member.breakers.iter().flatten().filter(open).count(),
            }
        });
        ClientMetrics {
            methods: state.counts.calls(state.methods.iter().map(|method| &method.name[..])),
            servers: servers.collect(),
            retries: state.counts.retries,
            transparent_retries: state.counts.transparent_retries,
            pushback_retries: state.counts.pushback_retries,
            not_retried: state.counts.why_not_retried(),
            hedged_copies: state.counts.hedged_copies,
            throttled: state.counts.throttled,
            budget_refusals: state.budget.refused(),
            budget_tokens: state.budget.tokens(),
        }
    }

    pub(crate) fn connectivity(&self) -> Connectivity {
        lock(&self.state).connectivity(self.runtime().now())
    }

    /// Resolves once it is another one.
    pub(crate) async fn connectivity_other_than(&self, seen: Connectivity) -> Connectivity {
        let mut lookout = Lookout { pool: self, waker: None };
        std::future::poll_fn(|cx| {
            let mut state = lock(&self.state);
            let now = state.connectivity(self.runtime().now());
            if now != seen {
                lookout.waker = None;
                return Poll::Ready(now);
            }
            state.wait(cx);
            lookout.waker = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Takes no calls from now on; the connections that there were.
    pub(crate) fn close(&self) -> Vec<Arc<Link>> {
        let (links, wakers) = {
            let state = &mut *lock(&self.state);
            let links = state.members.iter_mut().flat_map(|member| std::mem::take(&mut member.links));
            state.closing.extend(links);
            state.closed = true;
            let mut wakers = std::mem::take(&mut state.waiting);
            wakers.append(&mut state.watching);
            (state.closing.clone(), wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
        links
    }
}
