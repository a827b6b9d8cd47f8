//! One attempt at something that several need: whoever comes while it goes on waits for the same result.

use std::{
    future::Future,
    sync::Mutex,
    task::{Poll, Waker},
};

use valkyrie_protocol::Status;

use crate::connection::lock;

pub(crate) struct Flight<T>(Mutex<State<T>>);

struct State<T> {
    result: Option<Result<T, Status>>,
    wakers: Vec<Waker>,
}

impl<T> Default for Flight<T> {
    fn default() -> Self {
        Self(Mutex::new(State { result: None, wakers: Vec::new() }))
    }
}

impl<T: Clone + Send> Flight<T> {
    pub(crate) fn wait(&self) -> impl Future<Output = Result<T, Status>> + Send + '_ {
        std::future::poll_fn(move |cx| {
            let state = &mut *lock(&self.0);
            match &state.result {
                Some(result) => Poll::Ready(result.clone()),
                None => {
                    if !state.wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
                        state.wakers.push(cx.waker().clone());
                    }
                    Poll::Pending
                }
            }
        })
    }

    /// The first result stands.
    pub(crate) fn resolve(&self, result: Result<T, Status>) {
        let wakers = {
            let mut state = lock(&self.0);
            state.result.get_or_insert(result);
            std::mem::take(&mut state.wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    pub(crate) fn is_resolved(&self) -> bool {
        lock(&self.0).result.is_some()
    }
}
