//! The completion queue: one per host loop or blocking thread, one wake when it goes from empty to non-empty.

use std::{
    collections::VecDeque,
    fmt, io,
    sync::{
        Arc, Condvar, Mutex, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use valkyrie_sdk::{Bytes, Metadata, Response, Status};

use crate::{
    fork::{Held, OwnedGuard},
    handle::lock,
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
pub struct Queue {
    items: Mutex<Items>,
    filled: Condvar,
    wake: Wake,
    closed: AtomicBool,
}

#[derive(Default)]
struct Items {
    waiting: VecDeque<Completion>,
    /// The descriptor is readable.
    signalled: bool,
}

/// Every queue there is: a fork holds their locks, and a child renews their descriptors.
static QUEUES: Mutex<Vec<Weak<Queue>>> = Mutex::new(Vec::new());

enum Wake {
    Call(Box<dyn Fn() + Send + Sync>),
    Fd(EventFd),
    Thread,
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("waiting", &lock(&self.items).waiting.len()).finish_non_exhaustive()
    }
}

impl Queue {
    fn with_wake(wake: Wake) -> Arc<Self> {
        let queue = Arc::new(Self {
            items: Mutex::default(),
            filled: Condvar::new(),
            wake,
            closed: AtomicBool::new(false),
        });
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
        match &self.wake {
            Wake::Fd(fd) => Some(fd.reader),
            _ => None,
        }
    }

    /// Moves up to `max` completions to the end of `out`; how many. Cheap on an empty queue: a host may call it
    /// whenever it calls in.
    pub fn drain(&self, out: &mut Vec<Completion>, max: usize) -> usize {
        operation::settle();
        let items = &mut *lock(&self.items);
        let count = items.waiting.len().min(max);
        out.extend(items.waiting.drain(..count));
        if items.waiting.is_empty()
            && items.signalled
            && let Wake::Fd(fd) = &self.wake
        {
            // Under the lock, so that a completion cannot signal between and be lost.
            fd.clear();
            items.signalled = false;
        }
        count
    }

    /// Waits until something is there, at most `timeout`; whether something is.
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        operation::settle();
        let until = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut items = lock(&self.items);
        while items.waiting.is_empty() && !self.closed.load(Ordering::Acquire) {
            items = match until {
                None => self.filled.wait(items).unwrap_or_else(std::sync::PoisonError::into_inner),
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return false;
                    }
                    self.filled.wait_timeout(items, left).unwrap_or_else(std::sync::PoisonError::into_inner).0
                }
            };
        }
        !items.waiting.is_empty()
    }

    /// The host's loop is gone: what waits on the queue is cancelled, and its completions are dropped. Idempotent.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let dropped = std::mem::take(&mut lock(&self.items).waiting);
        self.filled.notify_all();
        drop(dropped);
        operation::cancel_all(self);
    }

    /// Adds a completion; whether [`Queue::wake`] is to be called for it, once no lock is held.
    #[must_use]
    pub(crate) fn put(&self, completion: Completion) -> bool {
        let items = &mut *lock(&self.items);
        if self.closed.load(Ordering::Acquire) {
            return false;
        }
        let first = items.waiting.is_empty();
        items.waiting.push_back(completion);
        if first && let Wake::Fd(fd) = &self.wake {
            fd.signal();
            items.signalled = true;
        }
        first
    }

    pub(crate) fn wake(&self) {
        // Whatever the kind of queue, a thread may block on it.
        self.filled.notify_all();
        if let Wake::Call(wake) = &self.wake {
            wake();
        }
    }
}

pub(crate) fn hold(held: &mut Held) {
    let queues = lock(&QUEUES);
    let alive: Vec<_> = queues.iter().filter_map(Weak::upgrade).collect();
    held.push(Box::new(queues));
    for queue in alive {
        held.push(Box::new(OwnedGuard::lock(queue, |queue| &queue.items)));
    }
}

/// In a child: its descriptors stop being the parent's too. They are readable, so that a host that polls drains, which
/// is when it is told what the fork cut off.
#[cfg(unix)]
pub(crate) fn renew() {
    for queue in lock(&QUEUES).iter().filter_map(Weak::upgrade) {
        let items = &mut *lock(&queue.items);
        if let Wake::Fd(fd) = &queue.wake {
            fd.renew();
            fd.signal();
            items.signalled = true;
        }
    }
}

/// An eventfd, or a pipe where there is none.
struct EventFd {
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
