//! A hedged call: copies of it that take their chance beside the first, until one of them is answered.

use std::{
    sync::{Arc, MutexGuard},
    task::{Poll, Waker},
};

use valkyrie_protocol::{Reason, Status, StreamKey, Time};

use super::{Call, Stage, State, lock};
use crate::{
    Response,
    observer::Step,
    policy::{Hedge, HedgeStep},
    pool::{Admission, Admitted},
};

/// The copies of a call that are under way.
pub(super) struct Copies {
    hedge: Hedge,
    /// The number of the first one.
    first: u64,
    open: Vec<Copy>,
    began: Time,
    /// Why the last one failed.
    failure: Option<Status>,
    /// A task waits for the time of the next one, and how to wake it.
    watched: bool,
    watcher: Option<Waker>,
}

struct Copy {
    number: u64,
    admitted: Admitted,
    key: StreamKey,
}

impl Copies {
    pub(super) fn new(hedge: Hedge, first: u64, admitted: Admitted, key: StreamKey) -> Self {
        let began = admitted.began;
        let open = vec![Copy { number: first, admitted, key }];
        Self { hedge, first, open, began, failure: None, watched: false, watcher: None }
    }

    fn take(&mut self, number: u64) -> Option<(u8, Admitted)> {
        let at = self.open.iter().position(|copy| copy.number == number)?;
        let Copy { admitted, .. } = self.open.swap_remove(at);
        // There are five at most.
        Some(((number - self.first) as u8, admitted))
    }
}

impl Call {
    /// What came of a copy.
    pub(super) fn copy_completed(
        self: &Arc<Self>,
        mut guard: MutexGuard<'_, State>,
        number: u64,
        result: Result<Response, Status>,
        at: Time,
    ) {
        let State { stage: Stage::Hedged(copies), course, .. } = &mut *guard else { return };
        let Some((copy, admitted)) = copies.take(number) else { return };
        let server = self.pool.named(&admitted);
        let (server, failure) = (server.as_ref(), result.as_ref().err());
        self.pool.note(Some(course.id), || Step::AttemptEnded { number, server, failure });
        match result {
            Ok(response) => {
                let took = at.since(copies.began);
                self.pool.copy_won(course, &mut copies.hedge, copy, admitted, took, at);
                self.end_hedged(guard, Ok(response));
            }
            Err(status) => {
                let step = self.pool.copy_failed(course, &mut copies.hedge, copy, admitted, &status);
                copies.failure = Some(status);
                self.take_step(guard, step);
            }
        }
    }

    /// Does what the policy says of the copies.
    fn take_step(self: &Arc<Self>, mut guard: MutexGuard<'_, State>, mut step: HedgeStep) {
        while let HedgeStep::Send(copy) = step {
            let state = &mut *guard;
            let Stage::Hedged(copies) = &mut state.stage else { return };
            let number = copies.first + u64::from(copy);
            step = match self.pool.admit(&mut state.course, None) {
                Admission::Go(admitted) => {
                    match self.send(&mut state.request, &mut state.course, &admitted, number) {
                        Ok(key) => {
                            state.course.avoid(&admitted);
                            copies.open.push(Copy { number, admitted, key });
                            HedgeStep::Wait
                        }
                        Err(status) => {
                            let (course, hedge) = (&mut state.course, &mut copies.hedge);
                            let step = self.pool.copy_failed(course, hedge, copy, admitted, &status);
                            copies.failure = Some(status);
                            step
                        }
                    }
                }
                // What is on the way goes on without it.
                Admission::Wait => copies.hedge.stop(Some(copy)),
                Admission::Refused(status) => {
                    copies.failure.get_or_insert(status);
                    copies.hedge.stop(Some(copy))
                }
            };
        }
        let Stage::Hedged(copies) = &mut guard.stage else { return };
        if let HedgeStep::End(_) = step {
            let status = copies.failure.take().unwrap_or_else(unsent);
            self.end_hedged(guard, Err(status));
        } else {
            self.watch(guard);
        }
    }

    /// Waits for the time of the next copy, if there is to be one.
    pub(super) fn watch(self: &Arc<Self>, mut guard: MutexGuard<'_, State>) {
        let Stage::Hedged(copies) = &mut guard.stage else { return };
        if copies.hedge.due().is_none() {
            return;
        }
        let (watched, waker) = (std::mem::replace(&mut copies.watched, true), copies.watcher.take());
        drop(guard);
        match watched {
            true => waker.into_iter().for_each(Waker::wake),
            false => self.pool.runtime().spawn(Box::pin(Watcher(self.clone()).run())),
        }
    }

    /// It is time for the next copy, or the client was closed.
    fn copy_due(self: &Arc<Self>) {
        let mut guard = lock(&self.state);
        let Stage::Hedged(copies) = &mut guard.stage else { return };
        let step = self.pool.copy_due(&mut copies.hedge);
        self.take_step(guard, step);
        self.pool.tell();
    }

    /// Ends the call and gives up the copies that are left.
    pub(super) fn end_hedged(&self, mut guard: MutexGuard<'_, State>, result: Result<Response, Status>) {
        let State { stage: Stage::Hedged(copies), course, .. } = &mut *guard else { return };
        let (losers, watcher) = (std::mem::take(&mut copies.open), copies.watcher.take());
        for Copy { admitted, .. } in &losers {
            self.pool.cancelled(course, admitted);
        }
        self.end(guard, result);
        watcher.into_iter().for_each(Waker::wake);
        for Copy { admitted, key, .. } in losers {
            admitted.link.cancel_unary(key);
        }
    }
}

fn unsent() -> Status {
    let message = "there was no connection for a copy of the call, and none of them is under way";
    Status::from_reason(Reason::CONNECT_FAILED, message)
}

/// Sends the copies of a call whose time has come, until its end. A runtime that stops drops it: nobody may wait for ever for a copy
/// that is not sent.
struct Watcher(Arc<Call>);

impl Watcher {
    async fn run(self) {
        let Call { pool, state } = &*self.0;
        let (mut timer, mut at) = (pool.runtime().timer(), None);
        std::future::poll_fn(|cx| {
            loop {
                let mut guard = lock(state);
                let Stage::Hedged(copies) = &mut guard.stage else { return Poll::Ready(()) };
                copies.watcher = Some(cx.waker().clone());
                let (due, idle) = (copies.hedge.due(), copies.open.is_empty());
                drop(guard);
                if due != at {
                    at = due;
                    timer.reset(at);
                }
                // A call of which nothing is under way ends with its client.
                let closed = idle && pool.poll_closed(cx).is_ready();
                if !closed && timer.poll(cx).is_pending() {
                    return Poll::Pending;
                }
                at = None;
                timer.reset(at);
                self.0.copy_due();
            }
        })
        .await;
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let mut guard = lock(&self.0.state);
        if let Stage::Hedged(copies) = &mut guard.stage
            && copies.open.is_empty()
        {
            let status = copies.failure.take().unwrap_or_else(unsent);
            self.0.end_hedged(guard, Err(status));
        }
    }
}
