//! A client's breakers as a program sees and sets them.

use std::{
    sync::Arc,
    task::{Poll, Waker},
    time::Duration,
};

use valkyrie_protocol::{Reason, Status, Time};

use super::{Lane, Member, Pool, State, closed, course::NO_LANE};
use crate::{
    Endpoint,
    connection::lock,
    policy::{Breaker, BreakerState, Rejection},
};

/// The breaker of one server for one method, as an observer sees it; or what stands for all methods of a server that is isolated.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BreakerInfo {
    /// The server's endpoint.
    pub server: String,
    /// Calls of which method; `None` for all, while the whole server is isolated.
    pub method: Option<String>,
    /// What it does.
    pub state: BreakerState,
    /// How long it has done so; `None` while it has never done anything else.
    pub age: Option<Duration>,
    /// An open one's: after how long it lets trial calls pass; 0 once the next call is one.
    pub opens_for: Option<Duration>,
    /// Calls that it remembers, 10 s of them unless the service config says otherwise.
    pub calls: u64,
    /// Those of them that failed.
    pub failures: u64,
    /// How often its state has changed.
    pub changes: u64,
}

impl BreakerInfo {
    fn of(server: &str, method: &[u8], breaker: &mut Breaker, now: Time) -> Self {
        let (calls, failures) = breaker.counts(now);
        Self {
            server: server.to_owned(),
            method: Some(String::from_utf8_lossy(method).into_owned()),
            state: breaker.state(),
            age: breaker.since().map(|since| now.since(since)),
            opens_for: breaker.until().map(|until| until.since(now)),
            calls,
            failures,
            changes: breaker.changes(),
        }
    }

    fn of_server(server: &str, since: Time, now: Time) -> Self {
        Self {
            server: server.to_owned(),
            method: None,
            state: BreakerState::Isolated,
            age: Some(now.since(since)),
            opens_for: None,
            calls: 0,
            failures: 0,
            changes: 1,
        }
    }

    /// What makes it another one: one that never changed is like none.
    fn mark(&self) -> Option<(&str, Option<&str>, BreakerState, u64)> {
        (self.changes > 0).then_some((&self.server, self.method.as_deref(), self.state, self.changes))
    }
}

impl Member {
    /// Why it gets no call at all.
    pub(super) fn isolation(&self) -> Option<Rejection> {
        self.isolated.map(|_| Rejection { state: BreakerState::Isolated, until: None })
    }
}

impl State {
    fn breakers(&mut self, now: Time) -> Vec<BreakerInfo> {
        let Self { members, methods, .. } = self;
        let mut all = Vec::new();
        for member in members.iter_mut().filter(|member| member.at.is_some()) {
            let server = member.backend.endpoint.to_string();
            all.extend(member.isolated.map(|since| BreakerInfo::of_server(&server, since, now)));
            for (method, breaker) in methods.iter().zip(&mut member.breakers) {
                all.extend(breaker.as_mut().map(|it| BreakerInfo::of(&server, &method.name, it, now)));
            }
        }
        all
    }

    fn set_isolated(&mut self, place: u32, lane: Option<Lane>, isolated: bool, now: Time) {
        let lanes = match lane {
            Some(lane) => lane..lane + 1,
            None => {
                let member = &mut self.members[place as usize];
                member.isolated = isolated.then(|| member.isolated.unwrap_or(now));
                // It is one of its own; its end is that of the methods', too.
                0..if isolated { 0 } else { member.breakers.len() as Lane }
            }
        };
        for lane in lanes {
            let edge = match isolated {
                true => self.breaker(place, lane).and_then(|breaker| breaker.isolate(now)),
                false => match self.members[place as usize].breakers.get_mut(lane as usize) {
                    Some(Some(breaker)) => breaker.restore(now),
                    _ => None,
                },
            };
            self.note(edge, place, lane);
        }
    }
}

/// Whoever waits for a change of a breaker. There may be none for long, and others wait, too.
struct Watcher<'a> {
    pool: &'a Pool,
    waker: Option<Waker>,
}

impl Drop for Watcher<'_> {
    fn drop(&mut self) {
        let Some(mine) = &self.waker else { return };
        let left = {
            let watching = &mut lock(&self.pool.state).watching;
            let place = watching.iter().position(|waker| waker.will_wake(mine));
            place.map(|place| watching.remove(place))
        };
        // Something else of the same task may wait by the same waker, and does so anew then.
        left.into_iter().for_each(Waker::wake);
    }
}

impl Pool {
    /// Each breaker that there is.
    pub(crate) fn breakers(&self) -> Vec<BreakerInfo> {
        let now = self.runtime().now();
        lock(&self.state).breakers(now)
    }

    /// Resolves once one of them has changed, and fails once nothing changes any more.
    pub(crate) async fn breakers_other_than(&self, seen: &[BreakerInfo]) -> Result<Vec<BreakerInfo>, Status> {
        let mut watcher = Watcher { pool: self, waker: None };
        std::future::poll_fn(|cx| {
            let now = self.runtime().now();
            let mut state = lock(&self.state);
            let breakers = state.breakers(now);
            if !breakers.iter().filter_map(BreakerInfo::mark).eq(seen.iter().filter_map(BreakerInfo::mark)) {
                watcher.waker = None;
                return Poll::Ready(Ok(breakers));
            }
            if state.closed {
                watcher.waker = None;
                return Poll::Ready(Err(closed()));
            }
            state.watch(cx);
            watcher.waker = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Isolates a server, or one method of it, or ends that.
    pub(crate) fn set_isolated(
        self: &Arc<Self>,
        server: &str,
        method: Option<&str>,
        isolated: bool,
    ) -> Result<(), Status> {
        let invalid = |message: String| Err(Status::from_reason(Reason::INVALID_ARGUMENT, message));
        let now = self.runtime().now();
        let wakers = {
            let state = &mut *lock(&self.state);
            let named = |(place, member): (u32, &Member)| (place, member.backend.endpoint.to_string());
            let names: Vec<_> = state.listed().map(named).collect();
            // One that was found at an address of its name is named with it, as no endpoint is written.
            let server = match names.iter().any(|(_, name)| name == server) {
                true => server.to_owned(),
                false => Endpoint::parse(server)?.to_string(),
            };
            let lane = method.map(|method| state.lane(method).0);
            if lane == Some(NO_LANE) {
                return invalid("too many methods have a breaker, or its name is too long".to_owned());
            }
            let places: Vec<_> =
                names.iter().filter(|(_, name)| *name == server).map(|(place, _)| *place).collect();
            if places.is_empty() {
                let names: Vec<_> = names.into_iter().map(|(_, name)| name).collect();
                return invalid(format!("the client has no server {server}; it has {}", names.join(", ")));
            }
            for place in places {
                state.set_isolated(place, lane, isolated, now);
            }
            self.note_news(state);
            let mut wakers = state.changed();
            wakers.append(&mut state.watching);
            wakers
        };
        wakers.into_iter().for_each(Waker::wake);
        self.tell();
        Ok(())
    }
}
