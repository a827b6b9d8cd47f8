//! Tokens that the host makes: the core asks for one, and the host learns of it by an operation that completes, and answers.
//!
//! Nothing in here is of this crate: the browser's part, which has no threads and so no bridge, includes this file.

use std::{
    future::poll_fn,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use valkyrie_sdk::{BoxFuture, Reason, Status, Token, TokenSource};

/// An operation of the host's that waits for a request.
pub(crate) trait Notice: Send + Sync + 'static {
    /// Its number, by which the host answers.
    fn number(&self) -> u64;
    /// Completes it: a token is wanted. `false` when the host had given it up, so that nobody has heard of it.
    fn tell(&self) -> bool;
    /// Completes it: none will ever be.
    fn end(&self, why: Status);
}

/// One client's requests: one at a time, since the core asks no second time before the first is over.
pub(crate) struct Requests<N>(Mutex<State<N>>);

struct State<N> {
    waiting: Option<N>,
    asked: Option<Asked>,
    over: bool,
}

struct Asked {
    /// The operation by which the host was told.
    told: Option<u64>,
    answer: Option<Result<Token, Status>>,
    waker: Waker,
}

impl<N: Notice> Requests<N> {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(State { waiting: None, asked: None, over: false }))
    }

    fn lock(&self) -> MutexGuard<'_, State<N>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Completes `notice` with the next request, which may be there. One that still waits is ended.
    pub(crate) fn wait(&self, notice: N) {
        let mut state = self.lock();
        if state.over {
            drop(state);
            return notice.end(Status::from_reason(Reason::CLIENT_CLOSED, "the client is closed"));
        }
        let before = state.waiting.replace(notice);
        drop(state);
        if let Some(before) = before {
            before.end(Status::from_reason(
                Reason::CANCELLED,
                "another operation waits for requests of tokens now",
            ));
        }
        self.tell();
    }

    /// Answers the request that completed that operation. `false` when nobody waits for it any more.
    pub(crate) fn provide(&self, number: u64, answer: Result<Token, Status>) -> bool {
        let mut state = self.lock();
        let asked = state.asked.as_mut().filter(|asked| asked.told == Some(number) && asked.answer.is_none());
        let Some(asked) = asked else { return false };
        asked.answer = Some(answer);
        let waker = asked.waker.clone();
        drop(state);
        waker.wake();
        true
    }

    /// The client is gone: nothing will be asked.
    pub(crate) fn end(&self) {
        let mut state = self.lock();
        state.over = true;
        let waiting = state.waiting.take();
        drop(state);
        if let Some(waiting) = waiting {
            waiting.end(Status::from_reason(Reason::CLIENT_CLOSED, "the client is closed"));
        }
    }

    /// Brings what is asked and who waits for it together, with nothing locked while the host is told.
    fn tell(&self) {
        loop {
            let mut state = self.lock();
            let State { waiting, asked: Some(asked), .. } = &mut *state else { return };
            if asked.told.is_some() {
                return;
            }
            let Some(notice) = waiting.take() else { return };
            asked.told = Some(notice.number());
            drop(state);
            if notice.tell() {
                return;
            }
            if let Some(asked) = &mut self.lock().asked
                && asked.told == Some(notice.number())
            {
                asked.told = None;
            }
        }
    }

    fn poll(&self, cx: &Context<'_>) -> Poll<Result<Token, Status>> {
        let mut state = self.lock();
        let Some(asked) = &mut state.asked else { return Poll::Pending };
        match asked.answer.take() {
            Some(answer) => Poll::Ready(answer),
            None => {
                asked.waker.clone_from(cx.waker());
                Poll::Pending
            }
        }
    }
}

impl<N: Notice> TokenSource for Requests<N> {
    fn token(&self) -> BoxFuture<'_, Result<Token, Status>> {
        Box::pin(async move {
            let _asking = Asking(self);
            self.lock().asked = Some(Asked { told: None, answer: None, waker: Waker::noop().clone() });
            self.tell();
            poll_fn(|cx| self.poll(cx)).await
        })
    }
}

/// What the core waits for, until it has it or waits no longer.
struct Asking<'a, N: Notice>(&'a Requests<N>);

impl<N: Notice> Drop for Asking<'_, N> {
    fn drop(&mut self) {
        let over = self.0.lock().asked.take();
        drop(over);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering::SeqCst},
        },
    };

    use super::*;

    #[derive(Default)]
    struct Seen {
        told: AtomicUsize,
        ended: AtomicUsize,
        gone: bool,
    }

    impl Notice for (u64, Arc<Seen>) {
        fn number(&self) -> u64 {
            self.0
        }

        fn tell(&self) -> bool {
            self.1.told.fetch_add(1, SeqCst);
            !self.1.gone
        }

        fn end(&self, _why: Status) {
            self.1.ended.fetch_add(1, SeqCst);
        }
    }

    #[test]
    fn each_request_is_told_once_and_answered_once() {
        let requests = Requests::new();
        let (gone, seen) = (Arc::new(Seen { gone: true, ..Seen::default() }), Arc::new(Seen::default()));
        let mut cx = Context::from_waker(Waker::noop());
        let told = || seen.told.load(SeqCst);
        // Whoever gave up is passed over, whether it waited before the request or after it.
        requests.wait((1, gone.clone()));
        let mut token = pin!(requests.token());
        assert!(token.as_mut().poll(&mut cx).is_pending());
        assert!(!requests.provide(1, Ok(Token::new("late"))));
        requests.wait((2, gone.clone()));
        assert_eq!(gone.told.load(SeqCst), 2);
        requests.wait((3, seen.clone()));
        assert_eq!(told(), 1);
        // The next waits for the next request.
        requests.wait((4, seen.clone()));
        assert_eq!(told(), 1);
        assert!(!requests.provide(4, Ok(Token::new("of nobody's"))));
        assert!(requests.provide(3, Ok(Token::new("a"))));
        assert!(!requests.provide(3, Ok(Token::new("b"))), "a second answer");
        assert!(matches!(token.as_mut().poll(&mut cx), Poll::Ready(Ok(_))));
        // A request that the core gave up is not answered, nor does its answer reach another.
        {
            let mut token = pin!(requests.token());
            assert!(token.as_mut().poll(&mut cx).is_pending());
            assert_eq!(told(), 2);
        }
        assert!(!requests.provide(4, Ok(Token::new("late"))));
        let mut token = pin!(requests.token());
        assert!(token.as_mut().poll(&mut cx).is_pending());
        assert!(!requests.provide(4, Ok(Token::new("late"))));
        requests.wait((5, seen.clone()));
        let failure = Status::from_reason(Reason::CREDENTIALS_UNAVAILABLE, "no");
        assert!(requests.provide(5, Err(failure)));
        assert!(matches!(token.as_mut().poll(&mut cx), Poll::Ready(Err(_))));
        // One at a time, and none behind the end.
        requests.wait((6, seen.clone()));
        requests.wait((7, seen.clone()));
        assert_eq!(seen.ended.load(SeqCst), 1);
        requests.end();
        requests.wait((8, seen.clone()));
        assert_eq!((told(), seen.ended.load(SeqCst)), (3, 3));
    }
}
