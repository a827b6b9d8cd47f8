//! A call's way through the policies: where its attempts go, and what becomes of them.

use std::{
    borrow::Cow,
    sync::{Arc, MutexGuard},
    time::Duration,
};

use bytes::Bytes;
use valkyrie_protocol::{Code, Reason, Status, Time};

use super::{Lane, MAX_EDGES, Picked, Pool, State, closed};
#[cfg(feature = "observe")]
use crate::observer::Step;
use crate::{
    Endpoint,
    connection::{Link, lock},
    observer::CallId,
    policy::{
        Attempts, Breaker, CallOutcome, Edge, Extra, Failure, GiveUp, Hedge, HedgePolicy, HedgeStep, Latency,
        MethodPolicy, Permit, Rejection, Seen, Throttle, Verdict,
    },
    timeline::{Sent, Timeline},
};

/// What stands for methods beyond this many: a name that a caller makes up costs no memory.
const MAX_LANES: usize = 1_024;
/// No method has a longer name (PROTOCOL.md, W5-10).
const MAX_METHOD: usize = 512;
/// So many servers are drawn for an attempt until it goes to the next one that takes it.
const MAX_PASSED_OVER: usize = 16;
/// Their breaker never opens.
pub(super) const NO_LANE: Lane = Lane::MAX;

/// A method that was called, and its policy as of now.
pub(super) struct Method {
    pub(super) name: Bytes,
    pub(super) policy: MethodPolicy,
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

struct Chosen {
    link: Arc<Link>,
    place: u32,
    permit: Option<Permit>,
}

/// A call that begins.
pub(crate) struct Plan<'a> {
    pub(crate) method: &'a str,
    /// Whether its caller says so; else its method's policy does.
    pub(crate) idempotent: bool,
    /// The caller's time limit, and that of calls to which nobody gives one. [`Duration::MAX`] is none.
    pub(crate) timeout: Option<Duration>,
    pub(crate) default_timeout: Duration,
    pub(crate) now: Time,
    /// Whether it has one answer, so that the time that it takes says how its server does.
    pub(crate) unary: bool,
}

impl Plan<'_> {
    /// Whether it may be executed twice, and until when it lasts.
    fn means(&self, policy: &MethodPolicy) -> (bool, Option<Time>) {
        let timeout = self.timeout.or(policy.timeout).unwrap_or(self.default_timeout);
        let deadline = (timeout != Duration::MAX).then(|| self.now.after(timeout));
        (self.idempotent || policy.idempotent, deadline)
    }
}

/// A call's way through the policies: what it is, and what became of its attempts. Its time limit and how it is tried again or sent
/// beside are as the config said when it began; the client's breakers, throttle, budget and balance are as they are now.
pub(crate) struct Course {
    pub(crate) id: CallId,
    pub(crate) method: Bytes,
    lane: Lane,
    attempts: Attempts,
    /// The attempt that is under way was counted, and has this limit.
    limit: Option<Option<Time>>,
    pub(crate) deadline: Option<Time>,
    unary: bool,
    /// How copies of it are sent, if they may be.
    hedge: Option<HedgePolicy>,
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
        self.hedge.is_some() && self.kept == Some(true)
    }

    /// Other attempts go elsewhere, while there are other servers.
    pub(crate) fn avoid(&mut self, admitted: &Admitted) {
        self.tried.push(admitted.place);
    }

    /// How an attempt with that time limit failed.
    fn failure(&self, status: &Status, limit: Option<Time>) -> Failure {
        let of_attempt =
            status.reason() == Reason::DEADLINE_EXCEEDED && limit.is_some() && limit != self.deadline;
        let seen = if status.is_unprocessed() { Seen::Unprocessed } else { Seen::Perhaps };
        if of_attempt { Failure::attempt_timeout() } else { Failure::new(status, seen) }
    }

    /// Whether its first attempt failed as all others on that connection did. What a server says of another one is none of this.
    fn is_lost_with(&self, admitted: &Admitted, status: &Status) -> bool {
        let first = self.attempts.begun() == 1;
        first && status.reason() == Reason::CONNECTION_LOST && !admitted.link.is_usable()
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

impl State {
    /// The method's lane and its name, which all of its calls share.
    pub(super) fn lane(&mut self, method: &str) -> (Lane, Bytes) {
        if let Some(Method { name, .. }) = self.methods.get(self.last_lane as usize)
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
        self.methods.push(Method { name: name.clone(), policy: *self.config.method(method) });
        (lane, name)
    }

    /// The method's policy as of now.
    fn policy(&self, lane: Lane, method: &[u8]) -> &MethodPolicy {
        match self.methods.get(lane as usize) {
            Some(method) => &method.policy,
            None => self.config.method(std::str::from_utf8(method).unwrap_or_default()),
        }
    }

    /// The breaker of a member for a method, made at its first call.
    pub(super) fn breaker(&mut self, place: u32, lane: Lane) -> Option<&mut Breaker> {
        let (policy, lane) = (self.methods.get(lane as usize)?.policy.breaker, lane as usize);
        let breakers = &mut self.members[place as usize].breakers;
        if breakers.len() <= lane {
            breakers.resize_with(lane + 1, || None);
        }
        Some(breakers[lane].get_or_insert_with(|| Breaker::new(policy)))
    }

    /// A member that takes calls and whose breaker lets this one pass: not one that was tried, while there are others. `None`
    /// while there is no connection to one that may take it.
    fn choose(&mut self, now: Time, course: &Course) -> Result<Option<Chosen>, Rejection> {
        if self.stale {
            self.refresh(now);
        }
        let mut avoid = Cow::Borrowed(&course.tried[..]);
        let mut passed_over = 0;
        let mut refused = None;
        let mut waits = self.order.is_empty();
        while passed_over < self.order.len().min(MAX_PASSED_OVER) {
            let State { balancer, members, random, .. } = self;
            let load = |place: u32| members[place as usize].in_flight;
            let Some(place) = balancer.pick(&avoid, load, random) else { break };
            if passed_over > 0 && avoid[avoid.len() - passed_over..].contains(&place) {
                break;
            }
            match self.take(place, now, course) {
                Ok(Some(chosen)) => return Ok(Some(chosen)),
                Ok(None) => waits = true,
                Err(why) => refused = Some(why),
            }
            avoid.to_mut().push(place);
            passed_over += 1;
        }
        if passed_over == MAX_PASSED_OVER {
            // Of many servers few are connected, or let calls pass: the first of those, from any one on.
            let count = self.order.len();
            let from = self.random.below(count as u64) as usize;
            for at in from..from + count {
                let place = self.order[at % count];
                if avoid.contains(&place) {
                    continue;
                }
                match self.take(place, now, course) {
                    Ok(Some(chosen)) => return Ok(Some(chosen)),
                    Ok(None) => waits = true,
                    Err(why) => refused = Some(why),
                }
            }
        }
        match refused {
            Some(why) if !waits => Err(why),
            _ => Ok(None),
        }
    }

    /// That member, if its breaker lets the call pass; `None` while it has no connection with room.
    fn take(&mut self, place: u32, now: Time, course: &Course) -> Result<Option<Chosen>, Rejection> {
        let most = self.config.connections.most();
        let member = &self.members[place as usize];
        if let Some(isolation) = member.isolation() {
            return Err(self.rejected(place, isolation));
        }
        let link = member.link(most, now).cloned();
        let breaker = self.breaker(place, course.lane);
        match (link, breaker) {
            (Some(link), None) => Ok(Some(Chosen { link, place, permit: None })),
            (Some(link), Some(breaker)) => {
                let (permit, edge) = breaker.acquire(now);
                self.note(edge, place, course.lane);
                let permit = permit.map_err(|why| self.rejected(place, why))?;
                Ok(Some(Chosen { link, place, permit: Some(permit) }))
            }
            (None, breaker) => match breaker.and_then(|breaker| breaker.refusal(now)) {
                Some(why) => Err(self.rejected(place, why)),
                None => {
                    let member = &mut self.members[place as usize];
                    match member.grows(most, now) {
                        true if member.dialing => {}
                        true => self.dials.push(member.dial(now)),
                        false => self.stale = true,
                    }
                    Ok(None)
                }
            },
        }
    }

    /// As [`State::choose`], for one that was waited for, unless its server has left the list meanwhile.
    fn choose_this(
        &mut self,
        picked: Picked,
        now: Time,
        course: &Course,
    ) -> Result<Option<Chosen>, Rejection> {
        let Picked { link, backend, place } = picked;
        let member = &self.members[place as usize];
        if member.at.is_none() || !Arc::ptr_eq(&member.backend, &backend) {
            return Ok(None);
        }
        if let Some(isolation) = member.isolation() {
            return Err(self.rejected(place, isolation));
        }
        let permit = match self.breaker(place, course.lane) {
            Some(breaker) => {
                let (permit, edge) = breaker.acquire(now);
                self.note(edge, place, course.lane);
                Some(permit.map_err(|why| self.rejected(place, why))?)
            }
            None => None,
        };
        Ok(Some(Chosen { link, place, permit }))
    }

    fn count(&mut self, now: Time, course: &mut Course) -> Option<Time> {
        let Course { limit, attempts, unary, deadline, .. } = course;
        *limit.get_or_insert_with(|| {
            let ends = attempts.begin(now, &mut self.budget);
            if *unary { ends } else { *deadline }
        })
    }

    fn rejected(&mut self, place: u32, why: Rejection) -> Rejection {
        self.members[place as usize].counts.breaker_rejections += 1;
        why
    }

    /// What was chosen, unless the throttle holds it back.
    fn go(&mut self, now: Time, course: &mut Course, chosen: Chosen) -> Admission {
        let Chosen { link, place, permit } = chosen;
        // Of a hedged call the first attempt was counted.
        let is_copy = course.limit.is_some();
        let ends = self.count(now, course);
        let member = &mut self.members[place as usize];
        member.in_flight += 1;
        link.carry(link.carried() + 1);
        let admitted = Admitted { link, place, permit, began: now, ends };
        if self.throttle.admit(now, &mut self.random) {
            member.counts.attempts += 1;
            self.counts.hedged_copies += u64::from(is_copy);
            return Admission::Go(admitted);
        }
        self.counts.throttled += 1;
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
        course: &mut Course,
        status: &Status,
        extra: Option<Extra>,
        now: Time,
    ) {
        // A server that goes away gracefully has not failed.
        let leaves = status.is_unprocessed() && status.reason() == Reason::GOING_AWAY;
        let breaker = &self.policy(course.lane, &course.method).breaker;
        let outcome = match breaker.is_failure(status.code(), status.reason()) {
            _ if leaves || extra == Some(Extra::Rider) => None,
            true => Some(CallOutcome::Failure),
            false => Some(CallOutcome::Success),
        };
        // One event, which was counted with the first of its calls.
        if extra == Some(Extra::Rider) {
            self.give_back(admitted, course, outcome, now);
            return course.avoid(admitted);
        }
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
        self.freed |=
            self.config.connections.most() > 1 && !admitted.link.has_room() && !self.waiting.is_empty();
        admitted.link.carry(admitted.link.carried() - 1);
        if let (Some(outcome), Some(at)) = (outcome, member.at) {
            self.outliers.record(at, outcome == CallOutcome::Success);
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
    pub(super) fn note(&mut self, edge: Option<Edge>, place: u32, lane: Lane) {
        if let Some(edge) = edge {
            self.members[place as usize].counts.breaker_changes[edge.to as usize] += 1;
            if self.edges.len() < MAX_EDGES {
                self.edges.push((edge, place, lane));
            }
        }
    }

    /// A call has ended.
    fn ended(&mut self, course: &Course, code: Code, now: Time) {
        let began = course.timeline.began();
        self.counts.ended(course.lane as usize, self.methods.len(), code, began, now);
    }
}

impl Pool {
    /// A call is about to begin, and has a number for those who watch.
    pub(crate) fn begins(&self, plan: &Plan<'_>) -> CallId {
        #[cfg(feature = "observe")]
        if let Some(watch) = &self.dialer.watch {
            let (call, method) = (watch.call(), plan.method);
            let (idempotent, deadline) = {
                let mut state = lock(&self.state);
                let (lane, name) = state.lane(method);
                plan.means(state.policy(lane, &name))
            };
            self.note_at(plan.now, Some(call), Step::Call { method, idempotent, deadline });
            return call;
        }
        let _ = plan;
        CallId::default()
    }

    /// Where an attempt goes, for the observer if there is one.
    pub(crate) fn named(&self, admitted: &Admitted) -> Option<Endpoint> {
        if !self.is_watched() {
            return None;
        }
        Some(lock(&self.state).members[admitted.place as usize].backend.endpoint.clone())
    }

    /// A call begins, and asks for its first attempt.
    pub(crate) fn begin(self: &Arc<Self>, plan: Plan<'_>, id: CallId) -> (Course, Admission) {
        let Plan { method: name, now, unary, .. } = plan;
        let mut state = lock(&self.state);
        let (lane, method) = state.lane(name);
        let policy = state.policy(lane, &method);
        let (idempotent, deadline) = plan.means(policy);
        let attempts = Attempts::new(policy.retry, idempotent, deadline);
        let hedge = (unary && idempotent && policy.hedge.enabled).then_some(policy.hedge);
        let (tried, timeline) = (Vec::new(), Timeline::default());
        let mut course = Course {
            id,
            method,
            lane,
            attempts,
            unary,
            hedge,
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
        let mut dials = state.due_dials(now);
        // Others may be connected by now: those who waited together are not to meet at one server.
        let chosen = match (state.choose(now, course), waited_for) {
            (Ok(None), Some(picked)) if !state.outgrew(&picked, now) => {
                state.choose_this(picked, now, course)
            }
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
        #[cfg(feature = "native")]
        let sources = state.parts.start();
        dials.append(&mut state.dials);
        drop(state);
        #[cfg(feature = "native")]
        self.follow(sources);
        dials.into_iter().for_each(|backend| self.dial(backend));
        admission
    }

    /// An attempt succeeded.
    pub(crate) fn succeeded(&self, course: &mut Course, admitted: Admitted, now: Time) {
        let state = &mut *lock(&self.state);
        state.throttle.accepted(now);
        course.attempts.succeeded(&mut state.budget);
        state.give_back(&admitted, course, Some(CallOutcome::Success), now);
        state.ended(course, Code::Ok, now);
        self.note_news(state);
    }

    /// A call ended with that code, which is not OK: what succeeds is counted where its attempt is.
    pub(crate) fn ended(&self, course: &Course, code: Code) {
        if cfg!(feature = "observe") {
            let now = self.runtime().now();
            lock(&self.state).ended(course, code, now);
        }
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
        let lost = admitted.as_ref().filter(|admitted| course.is_lost_with(admitted, status));
        let extra = lost.map(|lost| state.members[lost.place as usize].rides.extra(lost.link.id, now));
        if let Some(admitted) = &admitted {
            state.fail(admitted, course, status, extra, now);
            sent = Some(state.sent(admitted, course));
        }
        let failure = Failure { extra, ..course.failure(status, limit) };
        let verdict = course.attempts.failed(&failure, now, &mut state.budget, &mut state.random);
        if let (Some(Extra::Lost), Some(lost), Verdict::Retry { transparent: false, .. }) =
            (extra, lost, verdict)
        {
            state.members[lost.place as usize].rides.paid(lost.link.id, now);
        }
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
        match verdict {
            Verdict::GiveUp(why) => state.counts.not_retried(why),
            Verdict::Retry { transparent: true, .. } => state.counts.transparent_retries += 1,
            Verdict::Retry { .. } if failure.pushback.is_some() => state.counts.pushback_retries += 1,
            Verdict::Retry { .. } => state.counts.retries += 1,
        }
        self.note_news(state);
        drop(guard);
        course.timeline.failed(sent, status, Some(verdict), now);
        verdict
    }

    /// The copies that are to be sent beside an attempt.
    pub(crate) fn hedge(&self, course: &mut Course, admitted: &Admitted) -> Hedge {
        course.avoid(admitted);
        let policy = course.hedge.unwrap_or_default();
        let p95 = lock(&self.state).latency(course.lane).and_then(|latency| latency.p95());
        Hedge::sent(&policy, course.deadline, p95, admitted.began)
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
        state.fail(&admitted, course, status, None, now);
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
        state.ended(course, Code::Ok, now);
        self.note_news(state);
    }

    /// An attempt was given up. To be told with nothing locked.
    pub(crate) fn cancelled(&self, course: &Course, admitted: &Admitted) {
        let now = self.runtime().now();
        let state = &mut *lock(&self.state);
        state.give_back(admitted, course, None, now);
        self.note_news(state);
    }
}
