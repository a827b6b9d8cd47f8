//! A client's connections: which servers it may use, what became of the last try of each, and who waits for one.

use std::{
    borrow::Cow,
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use valkyrie_protocol::{Reason, Status, Time};

use crate::{
    Connector, Endpoint, Level, Peer, Runtime, Token,
    connection::{Guest, Link, Side, Terms, lock, status_in},
    credentials::Credentials,
    lead,
    log::of_connection,
    observer::{Observer, Step},
    policy::{
        Attempts, BackendState, BalancePolicy, Balancer, Breaker, BreakerState, Budget, CallOutcome, Edge,
        Failure, GiveUp, Hedge, HedgeStep, Latency, MethodPolicy, Outliers, Permit, Random, Reconnect,
        ReconnectPolicy, Rejection, Seen, ServiceConfig, Throttle, Verdict,
    },
    runtime::{race, sleep_until},
    timeline::{Sent, Timeline},
};

#[cfg(feature = "tls")]
use crate::{tls::ClientTls, transport::tls::Sealed};

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

/// How connections are made.
pub(crate) struct Dialer {
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) terms: Terms,
    pub(crate) timeout: Duration,
    pub(crate) credentials: Option<Arc<Credentials>>,
    pub(crate) connectors: HashMap<String, Arc<dyn Connector>>,
    pub(crate) observer: Option<Arc<dyn Observer>>,
    #[cfg(feature = "tls")]
    pub(crate) tls: ClientTls,
}

impl Dialer {
    fn connector(&self, endpoint: &Endpoint) -> Result<Arc<dyn Connector>, Status> {
        let connector = match self.connectors.get(endpoint.scheme()) {
            Some(connector) => connector.clone(),
            None => crate::transport::connector(
                endpoint,
                #[cfg(feature = "tls")]
                &self.tls,
                &self.terms,
            )?,
        };
        #[cfg(feature = "tls")]
        if self.tls.sealed {
            let security = self.tls.build(endpoint)?;
            return Ok(Arc::new(Sealed { carrier: connector, security }));
        }
        Ok(connector)
    }

    /// A server that the client may use.
    pub(crate) fn backend(&self, endpoint: Endpoint) -> Result<Arc<Backend>, Status> {
        let connector = self.connector(&endpoint)?;
        Ok(Arc::new(Backend { endpoint, connector, silent: AtomicBool::new(false) }))
    }
}

/// One server.
pub(crate) struct Backend {
    pub(crate) endpoint: Endpoint,
    connector: Arc<dyn Connector>,
    /// Its last connection ended because it said nothing: the next one gets no calls before its first word, as a system takes
    /// connections for a process that has stopped.
    silent: AtomicBool,
}

/// A connection for an attempt, and the server's place in the list.
#[derive(Clone)]
pub(crate) struct Picked {
    pub(crate) link: Arc<Link>,
    place: u32,
}

/// An attempt that goes out. It is to be given back: to [`Pool::succeeded`], [`Pool::failed`] or [`Pool::cancelled`].
pub(crate) struct Admitted {
    pub(crate) link: Arc<Link>,
    place: u32,
    permit: Option<Permit>,
    pub(crate) began: Time,
    /// The attempt's own time limit, or the call's deadline.
    pub(crate) ends: Option<Time>,
}

/// Whether an attempt may go out.
pub(crate) enum Admission {
    Go(Admitted),
    /// Once there is a connection.
    Wait,
    /// By this client's own throttle or breaker, which is final.
    Refused(Status),
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
    config: ServiceConfig,
    state: Mutex<State>,
    /// Breakers changed.
    news: AtomicBool,
}

struct State {
    members: Vec<Member>,
    /// Whether the balancer is to be told of what changed, and when a member is to be dialled that no call waits for.
    stale: bool,
    next_dial: Option<Time>,
    closed: bool,
    /// Connections that were there when the client was closed.
    closing: Vec<Arc<Link>>,
    /// Those who wait for whatever changes.
    waiting: Vec<Waker>,
    /// Tries that ended.
    tries: u64,
    /// Changes of breakers that nobody was told of.
    edges: Vec<(Edge, u32, Lane)>,
    /// By method, and the methods by lane.
    lanes: HashMap<Bytes, Lane>,
    methods: Vec<Bytes>,
    /// That of the last call, which the next one's often is.
    last_lane: Lane,
    /// How long the calls of hedged methods took, by lane.
    latencies: Vec<Option<Box<Latency>>>,
    balancer: Balancer,
    outliers: Outliers,
    throttle: Throttle,
    budget: Budget,
    random: Random,
}

/// The number of a method's breaker at each member.
pub(crate) type Lane = u32;

/// What stands for methods beyond this many: a name that a caller makes up costs no memory.
const MAX_LANES: usize = 1_024;
/// Changes of breakers that wait to be told; further ones are not.
const MAX_EDGES: usize = 64;
/// No method has a longer name (PROTOCOL.md, W5-10).
const MAX_METHOD: usize = 512;
/// Their breaker never opens.
const NO_LANE: Lane = Lane::MAX;

struct Member {
    backend: Arc<Backend>,
    /// Attempts of this client's calls that it has not answered.
    in_flight: u32,
    links: Vec<Arc<Link>>,
    dialing: bool,
    backoff: Reconnect,
    /// What came of the last try, and which of all it was.
    tried: Option<(Tried, u64)>,
    /// By lane.
    breakers: Vec<Option<Breaker>>,
}

enum Tried {
    /// A connection, for those who waited for it, though it may be over.
    Made(Arc<Link>),
    /// Why not, and when the next try may be made.
    Failed(Status, Time),
}

impl Member {
    fn new(backend: Arc<Backend>, policy: ReconnectPolicy) -> Self {
        let backoff = Reconnect::new(policy);
        let (links, breakers) = (Vec::new(), Vec::new());
        Self { backend, in_flight: 0, links, dialing: false, backoff, tried: None, breakers }
    }

    fn usable(&self) -> Option<&Arc<Link>> {
        self.links.iter().find(|link| link.is_usable())
    }

    /// Whether it fell silent, perhaps a moment ago, and nothing was heard of it since.
    fn note_silence(&self) -> bool {
        if self.links.iter().any(|link| link.timed_out()) {
            self.backend.silent.store(true, Relaxed);
        }
        self.backend.silent.load(Relaxed)
    }

    /// Whether a connection to it may be tried.
    fn may_dial(&self, now: Time, ask: Ask) -> bool {
        let again = |(tried, number): &(Tried, u64)| match tried {
            Tried::Made(_) => true,
            Tried::Failed(_, not_before) => {
                ask.since.is_none_or(|since| *number <= since) && (ask.at_once || *not_before <= now)
            }
        };
        !self.dialing && self.tried.as_ref().is_none_or(again)
    }

    /// What the last try said, and when the next one may be made, if it failed.
    fn failed(&self) -> Option<(&Status, Time, u64)> {
        match &self.tried {
            Some((Tried::Failed(status, not_before), number)) => Some((status, *not_before, *number)),
            _ => None,
        }
    }

    /// The connection that was made since.
    fn made_since(&self, since: Option<u64>) -> Option<&Arc<Link>> {
        match &self.tried {
            Some((Tried::Made(link), number)) if since.is_some_and(|since| *number > since) => Some(link),
            _ => None,
        }
    }

    fn dial(&mut self, now: Time) -> Arc<Backend> {
        self.dialing = true;
        self.note_silence();
        self.backoff.dialling(now);
        self.backend.clone()
    }

    /// There is a connection, unless it is over already: then it was looked for in vain when it ended.
    fn made(&mut self, link: Arc<Link>, now: Time, tries: &mut u64, random: &mut Random) {
        if let Some(status) = link.is_mute() {
            return self.failed_now(status, now, tries, random);
        }
        if !link.is_over() {
            self.links.push(link.clone());
        }
        *tries += 1;
        self.tried = Some((Tried::Made(link), *tries));
    }

    fn failed_now(&mut self, status: Status, now: Time, tries: &mut u64, random: &mut Random) {
        *tries += 1;
        let not_before = match status.reason() {
            // The server was not asked.
            Reason::CREDENTIALS_UNAVAILABLE => now,
            _ => self.backoff.failed(now, random),
        };
        self.tried = Some((Tried::Failed(status, not_before), *tries));
    }
}

impl State {
    /// A connection, the reason why there is none, or whom to dial first, if not somebody else does.
    fn pick(&mut self, now: Time, ask: &mut Ask) -> Result<Option<Result<Picked, Unpicked>>, Arc<Backend>> {
        if self.closed {
            return Ok(Some(Err(Unpicked { status: closed(), not_before: None })));
        }
        for (place, member) in (0..).zip(&self.members) {
            if let Some(link) = member.usable().or_else(|| member.made_since(ask.since)) {
                return Ok(Some(Ok(Picked { link: link.clone(), place })));
            }
        }
        ask.since.get_or_insert(self.tries);
        if self.members.iter().any(|member| member.dialing) {
            return Ok(None);
        }
        let may_dial = self.members.iter_mut().filter(|member| member.may_dial(now, *ask));
        if let Some(member) = may_dial.min_by_key(|member| member.note_silence()) {
            return Err(member.dial(now));
        }
        let failed = || self.members.iter().filter_map(Member::failed);
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
    fn refresh(&mut self, config: &ServiceConfig) {
        self.stale = false;
        let states: Vec<_> = self
            .members
            .iter()
            .enumerate()
            .map(|(place, member)| BackendState {
                ready: member.usable().is_some(),
                ejected: self.outliers.is_ejected(place),
                ..BackendState::default()
            })
            .collect();
        self.balancer.update(&states);
        self.next_dial = None;
        if config.balance.policy != BalancePolicy::PickFirst && self.members.len() > 1 {
            let due = |(member, state): (&Member, &BackendState)| match member.failed() {
                _ if state.ready || member.dialing => None,
                Some((_, not_before, _)) => Some(not_before),
                None => Some(Time::default()),
            };
            self.next_dial = self.members.iter().zip(&states).filter_map(due).min();
        }
    }

    /// Does what is due from time to time: ejects outliers, and gives those that are to be dialled beside the one that has the calls.
    fn due_dials(&mut self, now: Time) -> Vec<Arc<Backend>> {
        if self.members.len() > 1 && self.outliers.due(now).is_some_and(|at| at <= now) {
            self.stale |= !self.outliers.sweep(now, &mut self.random).is_empty();
        }
        if self.closed || self.next_dial.is_none_or(|at| now < at) {
            return Vec::new();
        }
        self.stale = true;
        let due = |member: &&mut Member| member.usable().is_none() && member.may_dial(now, Ask::new(false));
        self.members.iter_mut().filter(due).map(|member| member.dial(now)).collect()
    }

    /// The method's lane and its name, which all of its calls share.
    fn lane(&mut self, method: &str) -> (Lane, Bytes) {
        if let Some(name) = self.methods.get(self.last_lane as usize)
            && name == method.as_bytes()
        {
            return (self.last_lane, name.clone());
        }
        if let Some((name, lane)) = self.lanes.get_key_value(method.as_bytes()) {
            self.last_lane = *lane;
            return (*lane, name.clone());
        }
        let name = Bytes::copy_from_slice(method.as_bytes());
        if self.lanes.len() >= MAX_LANES || name.len() > MAX_METHOD {
            return (NO_LANE, name);
        }
        let lane = self.lanes.len() as Lane;
        self.lanes.insert(name.clone(), lane);
        self.methods.push(name.clone());
        (lane, name)
    }

    /// The breaker of a member for a method, made at its first call.
    fn breaker(&mut self, place: u32, config: &ServiceConfig, course: &Course) -> Option<&mut Breaker> {
        if course.lane == NO_LANE {
            return None;
        }
        let (breakers, lane) = (&mut self.members[place as usize].breakers, course.lane as usize);
        if breakers.len() <= lane {
            breakers.resize_with(lane + 1, || None);
        }
        Some(breakers[lane].get_or_insert_with(|| Breaker::new(course.policy(config).breaker)))
    }

    /// A member that takes calls and whose breaker lets this one pass: not one that was tried, while there are others. `None`
    /// while there is no connection to one that may take it.
    fn choose(
        &mut self,
        config: &ServiceConfig,
        now: Time,
        course: &Course,
    ) -> Result<Option<Chosen>, Rejection> {
        if self.stale {
            self.refresh(config);
        }
        let mut avoid = Cow::Borrowed(&course.tried[..]);
        let mut passed_over = 0;
        let mut rejection = None;
        let mut waits = self.members.is_empty();
        while passed_over < self.members.len() {
            let State { balancer, members, random, .. } = self;
            let load = |place: u32| members[place as usize].in_flight;
            let Some(place) = balancer.pick(&avoid, load, random) else { break };
            if passed_over > 0 && avoid[avoid.len() - passed_over..].contains(&place) {
                break;
            }
            let link = members[place as usize].usable().cloned();
            let breaker = self.breaker(place, config, course);
            match (link, breaker) {
                (Some(link), None) => return Ok(Some(Chosen { link, place, permit: None })),
                (Some(link), Some(breaker)) => {
                    let (permit, edge) = breaker.acquire(now);
                    self.note(edge, place, course.lane);
                    match permit {
                        Ok(permit) => return Ok(Some(Chosen { link, place, permit: Some(permit) })),
                        Err(why) => rejection = Some(why),
                    }
                }
                (None, breaker) => match breaker.and_then(|breaker| breaker.refusal(now)) {
                    Some(why) => rejection = Some(why),
                    None => {
                        waits = true;
                        self.stale = true;
                    }
                },
            }
            avoid.to_mut().push(place);
            passed_over += 1;
        }
        match rejection {
            Some(rejection) if !waits => Err(rejection),
            _ => Ok(None),
        }
    }

    /// As [`State::choose`], for one that was waited for.
    fn choose_this(
        &mut self,
        picked: Picked,
        config: &ServiceConfig,
        now: Time,
        course: &Course,
    ) -> Result<Chosen, Rejection> {
        let Picked { link, place } = picked;
        let permit = match self.breaker(place, config, course) {
            Some(breaker) => {
                let (permit, edge) = breaker.acquire(now);
                self.note(edge, place, course.lane);
                Some(permit?)
            }
            None => None,
        };
        Ok(Chosen { link, place, permit })
    }

    fn count(&mut self, now: Time, course: &mut Course) -> Option<Time> {
        let Course { limit, attempts, unary, deadline, .. } = course;
        *limit.get_or_insert_with(|| {
            let ends = attempts.begin(now, &mut self.budget);
            if *unary { ends } else { *deadline }
        })
    }

    /// What was chosen, unless the throttle holds it back.
    fn go(&mut self, now: Time, course: &mut Course, chosen: Chosen) -> Admission {
        let Chosen { link, place, permit } = chosen;
        let ends = self.count(now, course);
        self.members[place as usize].in_flight += 1;
        let admitted = Admitted { link, place, permit, began: now, ends };
        if self.throttle.admit(now, &mut self.random) {
            return Admission::Go(admitted);
        }
        self.give_back(&admitted, course, None, now);
        let message = "the servers refuse so many calls that the client holds this one back";
        Admission::Refused(Status::from_reason(Reason::THROTTLED, message))
    }

    /// How long the method's calls took.
    fn latency(&mut self, lane: Lane) -> Option<&mut Latency> {
        if lane == NO_LANE {
            return None;
        }
        if self.latencies.len() <= lane as usize {
            self.latencies.resize_with(lane as usize + 1, || None);
        }
        Some(self.latencies[lane as usize].get_or_insert_default())
    }

    /// An attempt has failed.
    fn fail(
        &mut self,
        admitted: &Admitted,
        config: &ServiceConfig,
        course: &mut Course,
        status: &Status,
        now: Time,
    ) {
        // A server that goes away gracefully has not failed.
        let leaves = status.is_unprocessed() && status.reason() == Reason::GOING_AWAY;
        let outcome = match course.policy(config).breaker.is_failure(status.code(), status.reason()) {
            _ if leaves => None,
            true => Some(CallOutcome::Failure),
            false => Some(CallOutcome::Success),
        };
        match Throttle::is_refusal(status.code(), status.reason()) && !leaves {
            true => self.throttle.refused(now),
            false => self.throttle.accepted(now),
        }
        self.give_back(admitted, course, outcome, now);
        course.avoid(admitted);
    }

    /// Where an attempt went, for its call's timeline.
    fn sent(&self, admitted: &Admitted, course: &Course) -> Sent {
        let member = &self.members[admitted.place as usize];
        let breaker = member.breakers.get(course.lane as usize).and_then(Option::as_ref);
        let breaker = breaker.map(|breaker| breaker.state());
        Sent { server: member.backend.endpoint.label(), at: admitted.began, breaker }
    }

    /// An attempt has ended, with an outcome or without.
    fn give_back(&mut self, admitted: &Admitted, course: &Course, outcome: Option<CallOutcome>, now: Time) {
        let member = &mut self.members[admitted.place as usize];
        member.in_flight -= 1;
        if let Some(outcome) = outcome {
            self.outliers.record(admitted.place as usize, outcome == CallOutcome::Success);
        }
        let Some(permit) = admitted.permit else { return };
        let Some(Some(breaker)) = member.breakers.get_mut(course.lane as usize) else { return };
        let edge = match outcome {
            Some(outcome) => {
                let took = if course.unary { now.since(admitted.began) } else { Duration::ZERO };
                breaker.done(permit, outcome, took, now)
            }
            None => {
                breaker.cancelled(permit);
                None
            }
        };
        self.note(edge, admitted.place, course.lane);
    }

    /// A breaker changed, which is told with nothing locked.
    fn note(&mut self, edge: Option<Edge>, place: u32, lane: Lane) {
        if let Some(edge) = edge
            && self.edges.len() < MAX_EDGES
        {
            self.edges.push((edge, place, lane));
        }
    }

    fn wait(&mut self, cx: &Context<'_>) {
        if !self.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            self.waiting.push(cx.waker().clone());
        }
    }

    fn connectivity(&self, now: Time) -> Connectivity {
        let any = |is: &dyn Fn(&Member) -> bool| self.members.iter().any(is);
        if self.closed {
            Connectivity::Shutdown
        } else if any(&|member| member.usable().is_some()) {
            Connectivity::Ready
        } else if any(&|member| member.dialing) {
            Connectivity::Connecting
        } else if any(&|member| member.failed().is_some_and(|(_, not_before, _)| not_before > now)) {
            Connectivity::TransientFailure
        } else {
            Connectivity::Idle
        }
    }
}

struct Chosen {
    link: Arc<Link>,
    place: u32,
    permit: Option<Permit>,
}

/// A call that begins.
pub(crate) struct Plan<'a> {
    pub(crate) method: &'a str,
    pub(crate) policy: &'a MethodPolicy,
    pub(crate) idempotent: bool,
    pub(crate) deadline: Option<Time>,
    pub(crate) now: Time,
    /// Whether it has one answer, so that the time that it takes says how its server does.
    pub(crate) unary: bool,
}

/// A call's way through the policies: what it is, and what became of its attempts.
pub(crate) struct Course {
    pub(crate) method: Bytes,
    lane: Lane,
    attempts: Attempts,
    /// The attempt that is under way was counted, and has this limit.
    limit: Option<Option<Time>>,
    pub(crate) deadline: Option<Time>,
    unary: bool,
    /// Whether copies of it may be sent.
    hedged: bool,
    /// Whether its message was counted.
    kept: Option<bool>,
    /// The places of those that failed it.
    tried: Vec<u32>,
    timeline: Timeline,
}

impl Course {
    /// The call's last status, with what became of its attempts.
    pub(crate) fn explain(&self, status: Status) -> Status {
        match self.timeline.text() {
            text if text.is_empty() => status,
            text => status.with_timeline(text),
        }
    }

    /// Whether copies of it may be sent beside the attempt that goes out.
    pub(crate) fn is_hedged(&self) -> bool {
        self.hedged && self.kept == Some(true)
    }

    /// Other attempts go elsewhere, while there are other servers.
    pub(crate) fn avoid(&mut self, admitted: &Admitted) {
        self.tried.push(admitted.place);
    }

    fn policy<'a>(&self, config: &'a ServiceConfig) -> &'a MethodPolicy {
        config.method(std::str::from_utf8(&self.method).unwrap_or_default())
    }

    /// How an attempt with that time limit failed.
    fn failure(&self, status: &Status, limit: Option<Time>) -> Failure {
        let of_attempt =
            status.reason() == Reason::DEADLINE_EXCEEDED && limit.is_some() && limit != self.deadline;
        let seen = if status.is_unprocessed() { Seen::Unprocessed } else { Seen::Perhaps };
        if of_attempt { Failure::attempt_timeout() } else { Failure::new(status, seen) }
    }

    /// The answer is about to reach the caller: no attempt follows.
    pub(crate) fn commit(&mut self) {
        self.attempts.commit();
    }

    /// Its message goes out: whether to keep it for another attempt.
    pub(crate) fn keeps(&mut self, len: usize) -> bool {
        *self.kept.get_or_insert_with(|| self.attempts.keep(len as u64))
    }
}

fn closed() -> Status {
    Status::from_reason(Reason::CLIENT_CLOSED, "the client is closed")
}

impl Pool {
    /// Connections to these servers, none of which is made yet.
    pub(crate) fn new(dialer: Dialer, backends: Vec<Arc<Backend>>, config: ServiceConfig) -> Self {
        let members: Vec<_> =
            backends.into_iter().map(|backend| Member::new(backend, config.reconnect)).collect();
        let mut outliers = Outliers::new(config.outlier);
        outliers.update(members.iter().map(|_| None));
        let state = State {
            members,
            stale: true,
            next_dial: None,
            closed: false,
            closing: Vec::new(),
            waiting: Vec::new(),
            tries: 0,
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
        };
        Self { dialer, config, state: Mutex::new(state), news: AtomicBool::new(false) }
    }

    pub(crate) fn runtime(&self) -> &Arc<dyn Runtime> {
        &self.dialer.runtime
    }

    /// Who is told each step. Without scripts nobody is, and nothing is left of it.
    pub(crate) fn observer(&self) -> Option<&Arc<dyn Observer>> {
        match cfg!(feature = "script") {
            true => self.dialer.observer.as_ref(),
            false => None,
        }
    }

    /// Tells the observer, if there is one.
    pub(crate) fn note<'a>(&self, step: impl FnOnce() -> Step<'a>) {
        if let Some(observer) = self.observer() {
            observer.note(self.runtime().now(), step());
        }
    }

    /// Where an attempt goes, for the observer if there is one.
    pub(crate) fn named(&self, admitted: &Admitted) -> Option<Endpoint> {
        self.observer()?;
        Some(lock(&self.state).members[admitted.place as usize].backend.endpoint.clone())
    }

    pub(crate) fn config(&self) -> &ServiceConfig {
        &self.config
    }

    /// A call begins, and asks for its first attempt.
    pub(crate) fn begin(self: &Arc<Self>, plan: Plan<'_>) -> (Course, Admission) {
        let Plan { method, policy, idempotent, deadline, now, unary } = plan;
        let attempts = Attempts::new(policy.retry, idempotent, deadline);
        let hedged = unary && idempotent && policy.hedge.enabled;
        let mut state = lock(&self.state);
        let (lane, method) = state.lane(method);
        let (tried, timeline) = (Vec::new(), Timeline::default());
        let mut course = Course {
            method,
            lane,
            attempts,
            unary,
            hedged,
            limit: None,
            deadline,
            kept: None,
            tried,
            timeline,
        };
        let admission = self.admit_now(state, &mut course, None, now);
        (course, admission)
    }

    /// Whether an attempt may go out, and where: over `waited_for`, though it may be over, if it waited.
    pub(crate) fn admit(self: &Arc<Self>, course: &mut Course, waited_for: Option<Picked>) -> Admission {
        let now = self.runtime().now();
        self.admit_now(lock(&self.state), course, waited_for, now)
    }

    fn admit_now(
        self: &Arc<Self>,
        mut state: MutexGuard<'_, State>,
        course: &mut Course,
        waited_for: Option<Picked>,
        now: Time,
    ) -> Admission {
        course.timeline.asks(now);
        if state.closed {
            return Admission::Refused(closed());
        }
        let dials = state.due_dials(now);
        // Others may be connected by now: those who waited together are not to meet at one server.
        let chosen = match (state.choose(&self.config, now, course), waited_for) {
            (Ok(None), Some(picked)) => state.choose_this(picked, &self.config, now, course).map(Some),
            (chosen, _) => chosen,
        };
        let admission = match chosen {
            Ok(Some(chosen)) => state.go(now, course, chosen),
            Ok(None) => Admission::Wait,
            Err(_) => {
                let message = "the circuit breaker lets no call pass now";
                Admission::Refused(Status::from_reason(Reason::BREAKER_OPEN, message))
            }
        };
        self.note_news(&state);
        drop(state);
        dials.into_iter().for_each(|backend| self.dial(backend));
        admission
    }

    /// An attempt succeeded.
    pub(crate) fn succeeded(&self, course: &mut Course, admitted: Admitted, now: Time) {
        let state = &mut *lock(&self.state);
        state.throttle.accepted(now);
        course.attempts.succeeded(&mut state.budget);
        state.give_back(&admitted, course, Some(CallOutcome::Success), now);
        self.note_news(state);
    }

    /// An attempt failed, before it went out if it was not admitted. The next one is not to be made before that time.
    pub(crate) fn failed(
        &self,
        course: &mut Course,
        admitted: Option<Admitted>,
        status: &Status,
        not_before: Option<Time>,
    ) -> Verdict {
        let now = self.runtime().now();
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        let limit = state.count(now, course);
        course.limit = None;
        let mut sent = None;
        if let Some(admitted) = &admitted {
            state.fail(admitted, &self.config, course, status, now);
            sent = Some(state.sent(admitted, course));
        }
        let failure = course.failure(status, limit);
        let verdict = course.attempts.failed(&failure, now, &mut state.budget, &mut state.random);
        self.note_news(state);
        drop(guard);
        let verdict = match verdict {
            Verdict::Retry { at, transparent } => {
                let at = not_before.map_or(at, |not_before| at.max(not_before));
                match course.deadline.is_some_and(|deadline| at >= deadline) {
                    true => Verdict::GiveUp(GiveUp::NoTime),
                    false => Verdict::Retry { at, transparent },
                }
            }
            verdict => verdict,
        };
        course.timeline.failed(sent, status, Some(verdict), now);
        verdict
    }

    /// The copies that are to be sent beside an attempt.
    pub(crate) fn hedge(&self, course: &mut Course, admitted: &Admitted) -> Hedge {
        course.avoid(admitted);
        let policy = &course.policy(&self.config).hedge;
        let p95 = lock(&self.state).latency(course.lane).and_then(|latency| latency.p95());
        Hedge::sent(policy, course.deadline, p95, admitted.began)
    }

    /// Whether the next copy is to be sent now.
    pub(crate) fn copy_due(&self, hedge: &mut Hedge) -> HedgeStep {
        let now = self.runtime().now();
        let mut state = lock(&self.state);
        if state.closed { hedge.stop(None) } else { hedge.poll(now, &mut state.budget) }
    }

    /// A copy failed.
    pub(crate) fn copy_failed(
        &self,
        course: &mut Course,
        hedge: &mut Hedge,
        copy: u8,
        admitted: Admitted,
        status: &Status,
    ) -> HedgeStep {
        let now = self.runtime().now();
        let state = &mut *lock(&self.state);
        state.fail(&admitted, &self.config, course, status, now);
        course.timeline.failed(Some(state.sent(&admitted, course)), status, None, now);
        self.note_news(state);
        hedge.failed(copy, &course.failure(status, admitted.ends), now, &mut state.budget)
    }

    /// A copy succeeded, so long after the first one went out.
    pub(crate) fn copy_won(
        &self,
        course: &Course,
        hedge: &mut Hedge,
        copy: u8,
        admitted: Admitted,
        took: Duration,
        now: Time,
    ) {
        let state = &mut *lock(&self.state);
        state.throttle.accepted(now);
        hedge.won(copy, &mut state.budget);
        state.latency(course.lane).into_iter().for_each(|latency| latency.record(took));
        state.give_back(&admitted, course, Some(CallOutcome::Success), now);
        self.note_news(state);
    }

    /// An attempt was given up.
    pub(crate) fn cancelled(&self, course: &Course, admitted: &Admitted) {
        let now = self.runtime().now();
        lock(&self.state).give_back(admitted, course, None, now);
    }

    fn note_news(&self, state: &State) {
        if !state.edges.is_empty() {
            self.news.store(true, Relaxed);
        }
    }

    /// Tells whoever wants to know which breakers changed. With nothing locked.
    #[inline]
    pub(crate) fn tell(&self) {
        if self.news.load(Relaxed) {
            self.tell_now();
        }
    }

    fn tell_now(&self) {
        while self.news.load(Relaxed) {
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
                if !wanted && self.observer().is_none() {
                    continue;
                }
                let endpoint = &state.members[place as usize].backend.endpoint;
                let method = state.methods.get(lane as usize).map_or(&[][..], |method| &method[..]);
                if let Some(observer) = self.observer() {
                    observer.note(at, Step::Breaker { backend: endpoint, method, edge: &edge });
                }
                let endpoint = &endpoint.to_string();
                let method = std::str::from_utf8(method).unwrap_or_default();
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

    /// With nothing locked: a runtime that has ended drops the task here, which tells everybody who waits.
    fn dial(self: &Arc<Self>, backend: Arc<Backend>) {
        self.note(|| Step::Dial { backend: &backend.endpoint });
        let attempt = Attempt { pool: self.clone(), backend, settled: false };
        self.runtime().spawn(Box::pin(attempt.run()));
    }

    /// The one connection that there is.
    pub(crate) fn only_link(&self) -> Option<Arc<Link>> {
        let state = lock(&self.state);
        let [Member { links, .. }] = &state.members[..] else { return None };
        match &links[..] {
            [link] => Some(link.clone()),
            _ => None,
        }
    }

    pub(crate) fn links(&self) -> Vec<Arc<Link>> {
        lock(&self.state).members.iter().flat_map(|member| member.links.iter().cloned()).collect()
    }

    pub(crate) fn connectivity(&self) -> Connectivity {
        lock(&self.state).connectivity(self.runtime().now())
    }

    /// Resolves once it is another one.
    pub(crate) async fn connectivity_other_than(&self, seen: Connectivity) -> Connectivity {
        std::future::poll_fn(|cx| {
            let mut state = lock(&self.state);
            let now = state.connectivity(self.runtime().now());
            if now != seen {
                return Poll::Ready(now);
            }
            state.wait(cx);
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
            (state.closing.clone(), std::mem::take(&mut state.waiting))
        };
        wakers.into_iter().for_each(Waker::wake);
        links
    }

    fn dialled(self: &Arc<Self>, backend: &Arc<Backend>, result: Result<Arc<Link>, Status>) {
        self.note(|| Step::Dialled { backend: &backend.endpoint, failure: result.as_ref().err() });
        let now = self.runtime().now();
        let (wakers, late) = {
            let state = &mut *lock(&self.state);
            let closed = state.closed;
            let State { members, random, tries, .. } = state;
            let member = members.iter_mut().find(|member| Arc::ptr_eq(&member.backend, backend));
            let late = match (member, result) {
                (Some(member), Ok(link)) if !closed => {
                    member.dialing = false;
                    member.made(link, now, tries, random);
                    None
                }
                (_, Ok(link)) => Some(link),
                (Some(member), Err(status)) => {
                    member.dialing = false;
                    member.failed_now(status, now, tries, random);
                    None
                }
                (None, Err(_)) => None,
            };
            (state.changed(), late)
        };
        if let Some(link) = late {
            link.abort(self::closed());
        }
        wakers.into_iter().for_each(Waker::wake);
    }

    /// A connection is over. One on which nothing was ever heard is a try that failed.
    fn over(&self, backend: &Arc<Backend>, link: &Arc<Link>) {
        self.note(|| Step::Lost { backend: &backend.endpoint });
        let now = self.runtime().now();
        let wakers = {
            let state = &mut *lock(&self.state);
            let State { members, tries, random, .. } = state;
            let of = |member: &&mut Member| Arc::ptr_eq(&member.backend, backend);
            if let Some(member) = members.iter_mut().find(of)
                && let Some(at) = member.links.iter().position(|other| Arc::ptr_eq(other, link))
            {
                member.note_silence();
                member.links.remove(at);
                match link.is_mute() {
                    None => member.backoff.reset(),
                    Some(status) => member.failed_now(status, now, tries, random),
                }
            }
            state.changed()
        };
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// A dial in progress. Dropped with its runtime, it tells everybody who waits.
struct Attempt {
    pool: Arc<Pool>,
    backend: Arc<Backend>,
    settled: bool,
}

impl Attempt {
    async fn run(mut self) {
        let result = match &self.pool.dialer.credentials {
            None => self.connect(None).await,
            Some(credentials) => match credentials.token().await {
                Ok(token) => self.connect(Some(token)).await,
                Err(status) => Err(status),
            },
        };
        self.log(&result);
        self.settle(result);
    }

    async fn connect(&self, token: Option<Token>) -> Result<Arc<Link>, Status> {
        let Dialer { runtime, terms, timeout, credentials, .. } = &self.pool.dialer;
        let endpoint = &self.backend.endpoint;
        let deadline = runtime.now().after(*timeout);
        let connecting = self.backend.connector.connect(endpoint);
        match race(connecting, sleep_until(&**runtime, deadline)).await {
            Some(Ok(transport)) => {
                let peer = Peer::new(endpoint.to_string());
                let provisional = transport.is_provisional() || self.backend.silent.load(Relaxed);
                let (guest, side) = (Guest::new(transport, peer), Side::Client(token));
                let (link, driver) = Link::new(guest, terms, runtime.clone(), side);
                let (pool, backend, driven) =
                    (Arc::downgrade(&self.pool), self.backend.clone(), link.clone());
                runtime.spawn(Box::pin(async move {
                    let _over = Over { pool, backend, link: driven };
                    lead::seat(driver).await;
                }));
                let greeted = match provisional {
                    true => race(link.greeted(), sleep_until(&**runtime, deadline)).await,
                    false => Some(Ok(())),
                };
                let greeted = greeted.unwrap_or_else(|| Err(self.too_late()));
                if provisional && greeted.is_ok() {
                    self.backend.silent.store(false, Relaxed);
                }
                if let Err(status) = &greeted {
                    link.abort(status.clone());
                } else if let Some(credentials) = credentials {
                    runtime.spawn(Box::pin(credentials.clone().keep_fresh(link.clone())));
                }
                greeted.map(|()| link)
            }
            Some(Err(error)) => Err(connect_failed(endpoint, &error)),
            None => Err(self.too_late()),
        }
    }

    fn too_late(&self) -> Status {
        let (endpoint, timeout) = (&self.backend.endpoint, self.pool.dialer.timeout);
        let message = format!("no connection to {endpoint} within {} ms", timeout.as_millis());
        Status::from_reason(Reason::CONNECT_TIMEOUT, message)
    }

    fn log(&self, result: &Result<Arc<Link>, Status>) {
        let level = if result.is_ok() { Level::Info } else { Level::Warn };
        let Some(log) = self.pool.dialer.terms.log.wants(level) else { return };
        let endpoint = &self.backend.endpoint.to_string();
        log.log(match result {
            Ok(_) => of_connection(level, &["connected to ", endpoint], None, endpoint),
            Err(status) => of_connection(level, &[status.message()], Some(status.reason()), endpoint),
        });
    }

    fn settle(&mut self, result: Result<Arc<Link>, Status>) {
        self.settled = true;
        self.pool.dialled(&self.backend, result);
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if !self.settled {
            let message = "the runtime stopped while connecting";
            self.settle(Err(Status::from_reason(Reason::CONNECT_FAILED, message)));
        }
    }
}

/// Takes a connection out of its pool when its driver ends.
struct Over {
    pool: Weak<Pool>,
    backend: Arc<Backend>,
    link: Arc<Link>,
}

impl Drop for Over {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.over(&self.backend, &self.link);
        }
    }
}

fn connect_failed(endpoint: &Endpoint, error: &io::Error) -> Status {
    if let Some(status) = status_in(error) {
        let message = format!("cannot connect to {endpoint}: {}", status.message());
        return Status::from_reason(status.reason(), message);
    }
    let reason = match error.kind() {
        io::ErrorKind::NotFound if endpoint.scheme() != "unix" => Reason::NAME_RESOLUTION,
        _ => Reason::CONNECT_FAILED,
    };
    Status::from_reason(reason, format!("cannot connect to {endpoint}: {error}"))
}
