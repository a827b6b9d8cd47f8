//! The completion queue: one per host loop or blocking thread, one wake when it goes from empty to non-empty.

use std::{
    fmt, io,
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use valkyrie_sdk::{Bytes, Metadata, Record, Response, Status};

#[cfg(unix)]
use crate::drive;
use crate::{
    Handle,
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
pub struct Queue {
    line: Line<Completion, Wake>,
    /// The client of the latest operation, whose connection a thread may drive while it waits; 0 before.
    client: AtomicU64,
}

/// How often a thread that waits looks for what is overdue: what it waits for may be begun after it.
const WATCH: Duration = Duration::from_secs(1);

/// Every queue there is: a fork holds their locks, and a child renews their descriptors.
static QUEUES: Mutex<Vec<Weak<Queue>>> = Mutex::new(Vec::new());

pub(crate) enum Wake {
    Call(Box<dyn Fn() + Send + Sync>),
    /// A thread that waits, or a poller once it has asked for the descriptor.
    Thread(OnceLock<EventFd>),
}

impl Wake {
    fn fd(&self) -> Option<&EventFd> {
        match self {
            Self::Thread(fd) => fd.get(),
            Self::Call(_) => None,
        }
    }
}

impl Signal for Wake {
    fn raise(&self) {
        if let Some(fd) = self.fd() {
            fd.signal();
        }
    }

    fn lower(&self) {
        if let Some(fd) = self.fd() {
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
        &self.line
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("waiting", &self.line.len()).finish_non_exhaustive()
    }
}

impl Queue {
    fn with_wake(wake: Wake) -> Arc<Self> {
        let queue = Arc::new(Self { line: Line::new(wake), client: AtomicU64::new(0) });
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
        Ok(Self::with_wake(Wake::Thread(EventFd::new()?.into())))
    }

    /// A queue for a thread that blocks in [`Queue::wait`].
    pub fn blocking() -> Arc<Self> {
        Self::with_wake(Wake::Thread(OnceLock::new()))
    }

    /// A descriptor that is readable while the queue is not empty, from the first time on that it was asked for. Belongs
    /// to the queue: poll it, never read or close it.
    ///
    /// # Errors
    /// The system's, when it gives no descriptor; Unsupported for a queue with a wake function.
    pub fn fd(&self) -> io::Result<i32> {
        operation::settle();
        let Wake::Thread(fd) = self.line.signal() else { return Err(io::ErrorKind::Unsupported.into()) };
        if fd.get().is_none() {
            let new = EventFd::new()?;
            self.line.change_signal(|_| drop(fd.set(new)));
        }
        Ok(fd.get().map_or(-1, |fd| fd.reader))
    }

    /// Whether a thread that waits may drive a connection meanwhile: nobody polls a descriptor instead.
    pub(crate) fn may_drive(&self) -> bool {
        matches!(self.line.signal(), Wake::Thread(fd) if fd.get().is_none())
    }

    /// An operation of `client` completes here.
    pub(crate) fn expect(&self, client: Handle) {
        self.client.store(client.to_raw(), Relaxed);
    }

    /// Moves up to `max` completions to the end of `out`; how many. Cheap on an empty queue: a host may call it
    /// whenever it calls in.
    pub fn drain(&self, out: &mut Vec<Completion>, max: usize) -> usize {
        operation::settle();
        operation::watch(self);
        self.line.drain(out, max)
    }

    /// Waits until something is there, at most `timeout`; whether something is.
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        operation::settle();
        let until = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            operation::watch(self);
            let now = Instant::now();
            let soon = now + WATCH;
            let last = until.is_some_and(|until| until <= soon);
            if self.wait_until(if last { until.unwrap_or(soon) } else { soon }) {
                return true;
            }
            if last || self.line.is_closed() {
                return false;
            }
        }
    }

    fn wait_until(&self, until: Instant) -> bool {
        #[cfg(unix)]
        if self.may_drive()
            && let Some(client) = operation::current_client(Handle::from_raw(self.client.load(Relaxed)))
            && drive::drive(&self.line, &client, until)
        {
            return self.line.len() > 0;
        }
        self.line.wait(Some(until))
    }

    /// Whether something that completes here may be overdue.
    pub(crate) fn may_be_overdue(&self) -> bool {
        self.line.has_due()
    }

    /// The host's loop is gone: what waits on the queue is cancelled, its completions are dropped, and nothing more is
    /// accepted for it. Idempotent.
    pub fn close(&self) {
        self.line.close();
        operation::cancel_all(self);
    }
}

pub(crate) fn hold(held: &mut Held) {
    let queues = lock(&QUEUES);
    let alive: Vec<_> = queues.iter().filter_map(Weak::upgrade).collect();
    held.push(Box::new(queues));
    for queue in alive {
        held.push(Box::new(OwnedGuard::lock(queue, |queue| queue.line.items())));
    }
}

/// In a child: its descriptors stop being the parent's too. They are readable, so that a host that polls drains, which
/// is when it is told what the fork cut off.
#[cfg(unix)]
pub(crate) fn renew() {
    for queue in lock(&QUEUES).iter().filter_map(Weak::upgrade) {
        queue.line.forked(|wake| {
            if let Some(fd) = wake.fd() {
                fd.renew();
            }
        });
    }
}

/// An eventfd, or a pipe where there is none.
pub(crate) struct EventFd {
    pub(crate) reader: i32,
    writer: i32,
}

impl EventFd {
    #[cfg(target_os = "linux")]
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: eventfd takes no pointers; the result is checked.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { reader: fd, writer: fd })
    }

    #[cfg(all(unix, not(target_os = "linux")))]
    pub(crate) fn new() -> io::Result<Self> {
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
    pub(crate) fn new() -> io::Result<Self> {
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "no pollable descriptor on this system; use a wake function",
        ))
    }

    pub(crate) fn signal(&self) {
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

    pub(crate) fn clear(&self) {
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
            if queue.line.put(Completion { op, outcome: Ok(Value::Done) }) {
                queue.line.wake();
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
