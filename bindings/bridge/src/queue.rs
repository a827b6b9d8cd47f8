//! The completion queue: one per host loop or blocking thread, one wake when it goes from empty to non-empty.

use std::{
    collections::VecDeque,
    fmt, io,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use valkyrie_sdk::{Bytes, Metadata, Response, Status};

use crate::handle::lock;

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
    items: Mutex<VecDeque<Completion>>,
    filled: Condvar,
    wake: Wake,
    closed: AtomicBool,
}

enum Wake {
    Call(Box<dyn Fn() + Send + Sync>),
    Fd(EventFd),
    Thread,
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("waiting", &lock(&self.items).len()).finish_non_exhaustive()
    }
}

impl Queue {
    fn with_wake(wake: Wake) -> Arc<Self> {
        Arc::new(Self {
            items: Mutex::default(),
            filled: Condvar::new(),
            wake,
            closed: AtomicBool::new(false),
        })
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
        let mut items = lock(&self.items);
        let count = items.len().min(max);
        if count == 0 {
            return 0;
        }
        out.extend(items.drain(..count));
        if items.is_empty()
            && let Wake::Fd(fd) = &self.wake
        {
            // Under the lock, so that a push cannot signal between and be lost.
            fd.clear();
        }
        count
    }

    /// Waits until something is there, at most `timeout`; whether something is.
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        let until = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut items = lock(&self.items);
        while items.is_empty() && !self.closed.load(Ordering::Acquire) {
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
        !items.is_empty()
    }

    /// The host's loop is gone: what is queued and what comes later is dropped. Idempotent.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let dropped = std::mem::take(&mut *lock(&self.items));
        self.filled.notify_all();
        drop(dropped);
    }

    pub(crate) fn push(&self, completion: Completion) {
        let mut items = lock(&self.items);
        if self.closed.load(Ordering::Acquire) {
            return;
        }
        let first = items.is_empty();
        items.push_back(completion);
        if !first {
            return;
        }
        if let Wake::Fd(fd) = &self.wake {
            fd.signal();
        }
        drop(items);
        // Whatever the kind of queue, a thread may block on it.
        self.filled.notify_all();
        if let Wake::Call(wake) = &self.wake {
            wake();
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
