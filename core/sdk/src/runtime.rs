//! Spawn, sleep and now: all that the sdk asks of its host. tokio natively, the page's event loop in a browser.

use std::{
    future::Future,
    hash::{BuildHasher, RandomState},
    task::{Context, Poll},
};

use valkyrie_protocol::Time;

use crate::BoxFuture;

/// A host that runs tasks and knows the time.
pub trait Runtime: Send + Sync + 'static {
    /// Runs a task to its end, detached.
    fn spawn(&self, task: BoxFuture<'static, ()>);
    /// Microseconds since an origin that never changes while the process lives.
    fn now(&self) -> Time;
    /// A timer that is not set.
    fn timer(&self) -> Box<dyn Timer>;
    /// Another number each time, for the waits of a client and its choice among servers: two clients that fail together shall
    /// not come back together. Nobody gains by guessing it. Default: that of the standard library's hash maps, which is always the
    /// same where the system has no source of random bytes.
    fn seed(&self) -> u64 {
        RandomState::new().hash_one(0)
    }
}

/// One resettable timer.
pub trait Timer: Send {
    /// Sets the instant it fires at; `None` stops it.
    fn reset(&mut self, deadline: Option<Time>);
    /// Ready once the instant has passed; pending while it has not, or is not set.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()>;
}

/// Waits until `deadline` on a fresh timer.
pub(crate) fn sleep_until(runtime: &dyn Runtime, deadline: Time) -> impl Future<Output = ()> + Send + use<> {
    let mut timer = runtime.timer();
    timer.reset(Some(deadline));
    std::future::poll_fn(move |cx| timer.poll(cx))
}

/// The first future's output, or `None` when the second is ready before it.
pub(crate) async fn race<T>(
    first: impl Future<Output = T> + Send,
    second: impl Future<Output = ()> + Send,
) -> Option<T> {
    let mut first = std::pin::pin!(first);
    let mut second = std::pin::pin!(second);
    std::future::poll_fn(move |cx| match first.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => second.as_mut().poll(cx).map(|()| None),
    })
    .await
}

#[cfg(feature = "native")]
pub use native::TokioRuntime;
#[cfg(feature = "native")]
pub(crate) use native::now as native_now;

#[cfg(feature = "native")]
mod native {
    use std::{
        future::Future,
        pin::Pin,
        sync::OnceLock,
        task::{Context, Poll},
        time::{Duration, Instant},
    };

    use valkyrie_protocol::Time;

    use super::{Runtime, Timer};
    use crate::BoxFuture;

    /// The tokio runtime that was current when this was made.
    #[derive(Clone, Debug)]
    pub struct TokioRuntime {
        handle: tokio::runtime::Handle,
    }

    impl TokioRuntime {
        /// The current runtime, `None` outside of one.
        pub fn current() -> Option<Self> {
            Some(Self { handle: tokio::runtime::Handle::try_current().ok()? })
        }
    }

    fn origin() -> Instant {
        static ORIGIN: OnceLock<Instant> = OnceLock::new();
        *ORIGIN.get_or_init(Instant::now)
    }

    /// What every such runtime's clock says.
    pub(crate) fn now() -> Time {
        Time::default().after(origin().elapsed())
    }

    impl Runtime for TokioRuntime {
        fn spawn(&self, task: BoxFuture<'static, ()>) {
            self.handle.spawn(task);
        }

        fn now(&self) -> Time {
            now()
        }

        fn timer(&self) -> Box<dyn Timer> {
            Box::new(TokioTimer { sleep: None, handle: self.handle.clone() })
        }
    }

    struct TokioTimer {
        sleep: Option<(Pin<Box<tokio::time::Sleep>>, bool)>,
        handle: tokio::runtime::Handle,
    }

    impl Timer for TokioTimer {
        fn reset(&mut self, deadline: Option<Time>) {
            let Some(deadline) = deadline else {
                if let Some((_, set)) = &mut self.sleep {
                    *set = false;
                }
                return;
            };
            let at = origin()
                .checked_add(Duration::from_micros(deadline.as_micros()))
                .unwrap_or_else(|| Instant::now() + Duration::from_secs(86_400 * 365));
            match &mut self.sleep {
                Some((sleep, set)) => {
                    sleep.as_mut().reset(at.into());
                    *set = true;
                }
                None => {
                    let _entered = self.handle.enter();
                    self.sleep = Some((Box::pin(tokio::time::sleep_until(at.into())), true));
                }
            }
        }

        fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
            match &mut self.sleep {
                Some((sleep, true)) => sleep.as_mut().poll(cx),
                _ => Poll::Pending,
            }
        }
    }
}
