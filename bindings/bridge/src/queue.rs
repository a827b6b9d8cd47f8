//! The completion queue: one per host loop or blocking thread, one wake when it goes from empty to non-empty.

use std::{
    fmt, io,
    sync::{Arc, Mutex, Weak},
    time::{Duration, Instant},
};

use valkyrie_sdk::{Bytes, Metadata, Record, Response, Status};

use crate::{
    fork::{Held, OwnedGuard},
    handle::lock,
    ledger::{Line, Outlet, Signal},
    operation,
};

/// The outcome of one accepted operation.
#[derive(Debug)]
pub struct Completion {
    /// The operation, as its submission returned it.
    pub op: u64,
    /// What came of it.
    pub outcome: Result<Value, Status>,
}

/// What an operation gives when it succeeds.
#[derive(Debug)]
#[non_exhaustive]
pub enum Value {
    /// Nothing but success: connect, send, half-close, close.
    Done,
    /// The answer of a unary call.
    Response(Response),
    /// One or more messages of a stream, its end, or both.
    Messages {
        /// In order; empty only together with `end`.
        messages: Vec<Bytes>,
        /// The stream ended with OK after them.
        end: Option<End>,
    },
    /// What happened meanwhile, for the host's log.
    Logs(Vec<Record>),
}

/// How a stream ended well.
#[derive(Clone, Debug, Default)]
pub struct End {
    /// Initial metadata.
    pub metadata: Metadata,
    /// Trailers.
    pub trailers: Metadata,
}

/// Completions on their way to one host loop. The host owns it; operations hold it weakly.
pub struct Queue(Line<Completion, Wake>);

/// How often a thread that waits looks for what is overdue: what it waits for may be begun after it.
const WATCH: Duration = Duration::from_secs(1);

/// Every queue there is: a fork holds their locks, and a child renews their descriptors.
static QUEUES: Mutex<Vec<Weak<Queue>>> = Mutex::new(Vec::new());

pub(crate) enum Wake {
    Call(Box<dyn Fn() + Send + Sync>),
    Fd(EventFd),
    Thread,
}

impl Signal for Wake {
    fn raise(&self) {
        if let Self::Fd(fd) = self {
            fd.signal();
        }
    }

    fn lower(&self) {
        if let Self::Fd(fd) = self {
            fd.clear();
        }
    }

    fn wake(&self) {
        if let Self::Call(wake) = self {
            wake();
        }
    }
}

impl Outlet for Queue {
    type Item = Completion;
    type Signal = Wake;

    fn line(&self) -> &Line<Completion, Wake> {
        &self.0
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("waiting", &self.0.len()).finish_non_exhaustive()
    }
}

impl Queue {
    fn with_wake(wake: Wake) -> Arc<Self> {
        let queue = Arc::new(Self(Line::new(wake)));
        let mut queues = lock(&QUEUES);
        queues.retain(|queue| queue.strong_count() > 0);
        queues.push(Arc::downgrade(&queue));
        queue
    }

    /// A queue that calls `wake` from a native thread, once each time it goes from empty to non-empty. `wake` must not
    /// block and must not enter the host's language.
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> Arc<Self> {
        Self::with_wake(Wake::Call(Box::new(wake)))
    }

    /// A queue with a file descriptor that is readable while it is not empty, for a host's poller.
    ///
    /// # Errors
    /// The system's, when it gives no descriptor.
    pub fn with_fd() -> io::Result<Arc<Self>> {
        Ok(Self::with_wake(Wake::Fd(EventFd::new()?)))
    }

    /// A queue for a thread that blocks in [`Queue::wait`].
    pub fn blocking() -> Arc<Self> {
        Self::with_wake(Wake::Thread)
    }

    /// The descriptor of [`Queue::with_fd`]. Belongs to the queue: poll it, never read or close it.
    pub fn fd(&self) -> Option<i32> {
        match self.0.signal() {
            Wake::Fd(fd) => Some(fd.reader),
            _ => None,
        }
    }

    /// Moves up to `max` completions to the end of `out`; how many. Cheap on an empty queue: a host may call it
    /// whenever it calls in.
    pub fn drain(&self, out: &mut Vec<Completion>, max: usize) -> usize {
        operation::settle();
        operation::watch(self);
        self.0.drain(out, max)
    }

    /// Waits until something is there, at most `timeout`; whether something is.
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        operation::settle();
        let until = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            operation::watch(self);
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if self.0.wait(Some(left.map_or(WATCH, |left| left.min(WATCH)))) {
                return true;
            }
            if left.is_some_and(|left| left <= WATCH) || self.0.is_closed() {
                return false;
            }
        }
    }

    /// Whether something that completes here may be overdue.
    pub(crate) fn may_be_overdue(&self) -> bool {
        self.0.has_due()
    }

    /// The host's loop is gone: what waits on the queue is cancelled, its completions are dropped, and nothing more is
    /// accepted for it. Idempotent.
    pub fn close(&self) {
        self.0.close();
        operation::cancel_all(self);
    }
}

pub(crate) fn hold(held: &mut Held) {
    let queues = lock(&QUEUES);
    let alive: Vec<_> = queues.iter().filter_map(Weak::upgrade).collect();
    held.push(Box::new(queues));
    for queue in alive {
        held.push(Box::new(OwnedGuard::lock(queue, |queue| queue.0.items())));
    }
}

/// In a child: its descriptors stop being the parent's too. They are readable, so that a host that polls drains, which
/// is when it is told what the fork cut off.
#[cfg(unix)]
pub(crate) fn renew() {
    for queue in lock(&QUEUES).iter().filter_map(Weak::upgrade) {
        queue.0.renew(|wake| {
            if let Wake::Fd(fd) = wake {
                fd.renew();
            }
        });
    }
}

/// An eventfd, or a pipe where there is none.
pub(crate) struct EventFd {
    reader: i32,
    writer: i32,
}

impl EventFd {
    #[cfg(target_os = "linux")]
    fn new() -> io::Result<Self> {
        // SAFETY: eventfd takes no pointers; the result is checked.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { reader: fd, writer: fd })
    }

    #[cfg(all(unix, not(target_os = "linux")))]
    fn new() -> io::Result<Self> {
        let mut fds = [0; 2];
        // SAFETY: the array has room for the two descriptors that pipe writes.
        if unsafe { libc::pipe(fds.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        for fd in fds {
            // SAFETY: both descriptors are ours and open; fcntl takes no pointers here.
            unsafe {
                libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
                libc::fcntl(fd, libc::F_SETFL, libc::O_NONBLOCK);
            }
        }
        Ok(Self { reader: fds[0], writer: fds[1] })
    }

    #[cfg(not(unix))]
    fn new() -> io::Result<Self> {
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "no pollable descriptor on this system; use a wake function",
        ))
    }

    fn signal(&self) {
        #[cfg(unix)]
        {
            let one = 1u64.to_ne_bytes();
            // SAFETY: `one` is 8 readable bytes and the descriptor is open as long as self. A full counter or pipe is
            // readable already, so a failed write loses nothing.
            let _ = unsafe { libc::write(self.writer, one.as_ptr().cast(), one.len()) };
        }
    }

    /// The same numbers for a new descriptor that no other process has.
    #[cfg(unix)]
    fn renew(&self) {
        let Ok(fresh) = Self::new() else { return };
        for (from, to) in [(fresh.reader, self.reader), (fresh.writer, self.writer)] {
            // SAFETY: the four descriptors are ours and open; neither call takes a pointer.
            unsafe {
                libc::dup2(from, to);
                libc::fcntl(to, libc::F_SETFD, libc::FD_CLOEXEC);
            }
        }
    }

    fn clear(&self) {
        #[cfg(unix)]
        {
            let mut taken = [0u8; 8];
            // SAFETY: `taken` has room for 8 bytes and the descriptor is open as long as self; it does not block.
            while unsafe { libc::read(self.reader, taken.as_mut_ptr().cast(), taken.len()) } > 0
                && self.reader != self.writer
            {}
        }
    }
}

impl Drop for EventFd {
    fn drop(&mut self) {
        #[cfg(unix)]
        // SAFETY: both descriptors are ours, and nobody uses them after this.
        unsafe {
            libc::close(self.reader);
            if self.writer != self.reader {
                libc::close(self.writer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;

    #[test]
    fn a_host_is_woken_once_for_all_that_it_has_not_read() {
        let wakes = Arc::new(AtomicUsize::new(0));
        let queue = Queue::new({
            let wakes = wakes.clone();
            move || {
                wakes.fetch_add(1, SeqCst);
            }
        });
        let put = |op| {
            if queue.0.put(Completion { op, outcome: Ok(Value::Done) }) {
                queue.0.wake();
            }
        };
        let mut out = Vec::new();
        for round in 1..=3 {
            (0..1_000).for_each(put);
            assert_eq!(wakes.load(SeqCst), round);
            // It is not empty until the last is taken.
            assert_eq!(queue.drain(&mut out, 999), 999);
            put(1_000);
            assert_eq!(wakes.load(SeqCst), round);
            assert_eq!(queue.drain(&mut out, 999), 2);
        }
    }
}
