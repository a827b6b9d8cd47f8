//! A server's limit of concurrency: one for all of its connections, with one line for the calls beyond it.
//!
//! The line has places; each call that waits stays with its connection, which counts its bytes and ends it when it is
//! cancelled or late. Lock order: a connection's state, then this.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use valkyrie_protocol::{Priority, Reason, Status, StreamKey, Time};

use crate::{
    Runtime,
    connection::{Link, lock},
    metrics::LimitMetrics,
    policy::{Limiter, LimiterPolicy, Line, Random},
    router::{Arrived, Permit, Router},
    runtime::sleep_until,
};

/// How often calls that wait are looked at.
const TICK: Duration = Duration::from_millis(1);

/// What a server has taken on, and how much more it takes.
pub(crate) struct Load {
    policy: LimiterPolicy,
    runtime: Arc<dyn Runtime>,
    state: Mutex<State>,
}

struct State {
    limiter: Limiter,
    line: Line<Place>,
    random: Random,
    /// By class.
    shed: [u64; 3],
    /// Somebody hands out what is free.
    serving: bool,
    /// A task looks after those that wait.
    watched: bool,
}

/// Where a call waits.
struct Place {
    link: Arc<Link>,
    key: StreamKey,
    class: Priority,
}

impl Load {
    pub(crate) fn new(policy: LimiterPolicy, runtime: Arc<dyn Runtime>) -> Self {
        let state = State {
            limiter: Limiter::new(policy),
            line: Line::new(policy),
            random: Random::new(runtime.seed()),
            shed: [0; 3],
            serving: false,
            watched: false,
        };
        Self { policy, runtime, state: Mutex::new(state) }
    }

    /// What it does now, and what it refused.
    pub(crate) fn metrics(&self) -> LimitMetrics {
        let State { limiter, line, shed, .. } = &*lock(&self.state);
        let waiting = Priority::ALL.map(|class| line.waiting(class));
        LimitMetrics { limit: limiter.limit(), running: line.running(), waiting, shed: *shed }
    }

    /// The right to run, if there is room.
    pub(crate) fn enter(self: &Arc<Self>, router: &Arc<Router>, class: Priority) -> Option<Granted> {
        let mut state = lock(&self.state);
        let limit = state.limiter.limit();
        state.line.enter(class, limit).then(|| self.grant(router, class, self.runtime.now()))
    }

    fn grant(self: &Arc<Self>, router: &Arc<Router>, class: Priority, since: Time) -> Granted {
        Granted { load: self.clone(), router: router.clone(), class, since, ended: None }
    }

    /// A place in the line for a call that its connection keeps, whose lock the caller holds; [`Load::serve`] is to follow.
    ///
    /// # Errors
    /// OVERLOADED when too many wait.
    pub(crate) fn wait(
        self: &Arc<Self>,
        call: &Arrived,
        remaining: Option<Duration>,
    ) -> Result<Ticket, Status> {
        let class = call.priority;
        let place = Place { link: call.stream.link.clone(), key: call.stream.key, class };
        let mut state = lock(&self.state);
        let Some(number) = state.line.wait(class, place, remaining, self.runtime.now()) else {
            return Err(self.overloaded(&mut state, class));
        };
        Ok(Ticket { load: self.clone(), class, number })
    }

    fn overloaded(&self, state: &mut State, class: Priority) -> Status {
        state.shed[class as usize] += 1;
        let pushback = self.policy.pushback;
        let micros = u64::try_from(pushback.as_micros()).unwrap_or(u64::MAX);
        let pushback = (pushback / 2).saturating_add(Duration::from_micros(state.random.below(micros)));
        Status::from_reason(Reason::OVERLOADED, "the server has more calls than it can handle in time")
            .with_pushback(pushback)
    }

    /// Gives what is free to those that wait.
    pub(crate) fn serve(self: &Arc<Self>, router: &Arc<Router>) {
        let mut state = lock(&self.state);
        // What is given back meanwhile is seen by whoever serves.
        if state.serving || state.line.is_empty() {
            return;
        }
        state.serving = true;
        loop {
            let (now, limit) = (self.runtime.now(), state.limiter.limit());
            let mut late = Vec::new();
            let next = state.line.next(limit, now, &mut late);
            if next.is_none() && late.is_empty() {
                break;
            }
            state = self.refuse(late, state);
            if let Some((class, place)) = next {
                drop(state);
                let taken = place.link.take_queued(place.key);
                match taken {
                    Some(arrived) => {
                        let permit = Permit::Server(Some(self.grant(router, class, now)));
                        // On a task of its own: what blocks in a handler stalls its own connection at most.
                        self.runtime.spawn(Box::pin(router.clone().run(arrived, permit)));
                        state = lock(&self.state);
                    }
                    None => {
                        state = lock(&self.state);
                        state.line.leave(class);
                    }
                }
            }
        }
        state.serving = false;
        let unwatched = !state.line.is_empty() && !std::mem::replace(&mut state.watched, true);
        drop(state);
        if unwatched {
            self.runtime.spawn(Box::pin(watch(self.clone(), router.clone())));
        }
    }

    fn refuse<'a>(&'a self, late: Vec<Place>, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        if late.is_empty() {
            return state;
        }
        let late: Vec<_> =
            late.into_iter().map(|place| (self.overloaded(&mut state, place.class), place)).collect();
        drop(state);
        for (status, place) in late {
            place.link.refuse_queued(place.key, status);
        }
        lock(&self.state)
    }
}

/// Refuses those that have waited for too long, until nobody waits.
async fn watch(load: Arc<Load>, router: Arc<Router>) {
    loop {
        let mut late = Vec::new();
        {
            let mut state = lock(&load.state);
            state.line.expire(load.runtime.now(), &mut late);
            drop(load.refuse(late, state));
        }
        load.serve(&router);
        {
            let mut state = lock(&load.state);
            if state.line.is_empty() {
                state.watched = false;
                return;
            }
        }
        sleep_until(&*load.runtime, load.runtime.now().after(TICK)).await;
    }
}

/// The right to run a handler, until it is dropped.
pub(crate) struct Granted {
    load: Arc<Load>,
    router: Arc<Router>,
    class: Priority,
    since: Time,
    /// When the handler came to its end, if that tells how long such calls take.
    ended: Option<Time>,
}

impl Granted {
    /// The handler has come to its end, or to its call's deadline.
    pub(crate) fn ended(&mut self) {
        self.ended = Some(self.load.runtime.now());
    }
}

impl Drop for Granted {
    fn drop(&mut self) {
        let mut state = lock(&self.load.state);
        if let Some(now) = self.ended {
            let running = state.line.running();
            state.limiter.sample(now, now.since(self.since), running);
        }
        state.line.leave(self.class);
        let somebody_waits = !state.line.is_empty();
        drop(state);
        if somebody_waits {
            self.load.serve(&self.router);
        }
    }
}

/// A place in the line. Dropped, it is free.
pub(crate) struct Ticket {
    load: Arc<Load>,
    class: Priority,
    number: u64,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let place = lock(&self.load.state).line.forget(self.class, self.number);
        // What it holds is let go with the lock free.
        drop(place);
    }
}
