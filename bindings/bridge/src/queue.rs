//! The completion queue: one per host loop or blocking thread, one wake when it goes from empty to non-empty.

use std::{
    fmt, io,
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use valkyrie_sdk::{Bytes, Client, Connectivity, Metadata, Record, Response, Status};

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
    /// Where the client stands with its servers now.
    Connectivity(Connectivity),
    /// The client's breakers, which changed.
    Breakers {
        /// What stands for them: for the next wait.
        seen: u64,
        /// A list in JSON.
        json: String,
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
    line: Line<Completion, Wake>,
    /// The client of the latest operation, whose connection whoever waits may drive; 0 before.
    client: AtomicU64,
    /// Before when it is no use to ask whether it may, in microseconds from [`operation::now`]'s origin.
    asks_at: AtomicU64,
    /// Of a loop that may drive.
    #[cfg(target_os = "linux")]
    poller: Option<Arc<Poller>>,
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
        Self::keep(Self {
            line: Line::new(wake),
            client: AtomicU64::new(0),
            asks_at: AtomicU64::new(0),
            #[cfg(target_os = "linux")]
            poller: None,
        })
    }

    fn keep(queue: Self) -> Arc<Self> {
        let queue = Arc::new(queue);
        let mut queues = lock(&QUEUES);
        queues.retain(|queue| queue.strong_count() > 0);
        queues.push(Arc::downgrade(&queue));
        queue
    }

    /// A queue that calls `wake` from a native thread, once each time it goes from empty to non-empty. `wake` must not
    /// block and must not enter the host's language. The child of a fork is not woken for what waited before it: it drains
    /// when it calls in.
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

    /// As [`Queue::with_fd`], for a loop that drives the connection of its latest operation: it calls [`Queue::drive`] when
    /// the descriptor is readable, and after operations that it began in [`expecting_to_lead`](crate::expecting_to_lead).
    /// Where this system cannot, the descriptor is readable while the queue is not empty.
    ///
    /// # Errors
    /// The system's, when it gives no descriptor.
    pub fn driving() -> io::Result<Arc<Self>> {
        let event = EventFd::new()?;
        #[cfg(target_os = "linux")]
        let poller = Some(Arc::new(Poller::new(event.reader)?));
        Ok(Self::keep(Self {
            line: Line::new(Wake::Thread(event.into())),
            client: AtomicU64::new(0),
            asks_at: AtomicU64::new(0),
            #[cfg(target_os = "linux")]
            poller,
        }))
    }

    /// Whether the loop has a connection to drive: it may begin operations in
    /// [`expecting_to_lead`](crate::expecting_to_lead).
    pub fn drives(&self) -> bool {
        #[cfg(target_os = "linux")]
        return self.poller.as_ref().is_some_and(|poller| poller.sockets.load(Relaxed) > 0);
        #[cfg(not(target_os = "linux"))]
        false
    }

    /// Writes what was begun, where the connection is this loop's to drive. Cheap elsewhere.
    pub fn drive(&self) {
        self.drive_now(false, || {});
    }

    /// As [`Queue::drain`], of a loop whose descriptor is readable, after it has read, written and completed what it can
    /// without waiting, where the connection is its to drive.
    pub fn drive_and_drain(&self, out: &mut Vec<Completion>, max: usize) -> usize {
        let mut count = 0;
        self.drive_now(true, || count = self.drain(out, max));
        count
    }

    /// Runs `then` where nothing that came while it drove has raised the signal.
    fn drive_now(&self, readable: bool, then: impl FnOnce()) {
        #[cfg(target_os = "linux")]
        let _driven = self.poller.as_ref().and_then(|poller| {
            let client = self.client_to_drive()?;
            let watched = |socket| -> Box<dyn Send> { Box::new(Poller::watch(poller, socket)) };
            self.heed(drive::drive_now(&self.line, &client, watched, readable))
        });
        let _ = readable;
        then();
    }

    /// The client of the latest operation, unless it was said to be no use to ask for its connection.
    fn client_to_drive(&self) -> Option<Client> {
        let asks_at = self.asks_at.load(Relaxed);
        if asks_at != 0 && operation::now() < asks_at {
            return None;
        }
        operation::current_client(Handle::from_raw(self.client.load(Relaxed)))
    }

    fn heed<T>(&self, driven: Result<T, Duration>) -> Option<T> {
        let pause = driven.as_ref().err().filter(|pause| !pause.is_zero());
        let asks_at = pause.map_or(0, |pause| operation::now() + operation::micros(*pause));
        self.asks_at.store(asks_at, Relaxed);
        driven.ok()
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
        #[cfg(target_os = "linux")]
        if let Some(poller) = &self.poller {
            return Ok(poller.epoll);
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
            && let Some(client) = self.client_to_drive()
            && self.heed(drive::drive(&self.line, &client, until)).is_some()
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
                #[cfg(target_os = "linux")]
                if let Some(poller) = &queue.poller {
                    poller.renew(fd.reader);
                }
            }
        });
    }
}

/// A descriptor that is readable while a queue is not empty, or a socket that its loop drives is readable.
#[cfg(target_os = "linux")]
struct Poller {
    epoll: i32,
    sockets: AtomicUsize,
}

/// A socket that a loop drives, until dropped.
#[cfg(target_os = "linux")]
struct Watched {
    poller: Arc<Poller>,
    socket: i32,
    _polled: crate::descriptors::Polled,
}

#[cfg(target_os = "linux")]
impl Poller {
    fn new(event: i32) -> io::Result<Self> {
        let poller = Self { epoll: Self::open(event)?, sockets: AtomicUsize::new(0) };
        Ok(poller)
    }

    fn open(event: i32) -> io::Result<i32> {
        // SAFETY: it takes a number; the result is checked.
        let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if epoll < 0 {
            return Err(io::Error::last_os_error());
        }
        Self::control(epoll, libc::EPOLL_CTL_ADD, event);
        Ok(epoll)
    }

    fn control(epoll: i32, what: i32, fd: i32) {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
        // SAFETY: both descriptors are open and `event` is an event. A socket that cannot be added is not told of, and goes
        // back to the runtime for it.
        unsafe { libc::epoll_ctl(epoll, what, fd, &raw mut event) };
    }

    fn watch(this: &Arc<Self>, socket: i32) -> Watched {
        let _polled = crate::descriptors::Polled::new(socket);
        Self::control(this.epoll, libc::EPOLL_CTL_ADD, socket);
        this.sockets.fetch_add(1, Relaxed);
        Watched { poller: this.clone(), socket, _polled }
    }

    /// The same number for a poller that the parent has not: what it drives is not in it.
    fn renew(&self, event: i32) {
        let Ok(fresh) = Self::open(event) else { return };
        // SAFETY: both descriptors are ours and open; the calls take no pointer.
        unsafe {
            libc::dup2(fresh, self.epoll);
            libc::fcntl(self.epoll, libc::F_SETFD, libc::FD_CLOEXEC);
            libc::close(fresh);
        }
        self.sockets.store(0, Relaxed);
    }
}

#[cfg(target_os = "linux")]
impl Drop for Watched {
    fn drop(&mut self) {
        Poller::control(self.poller.epoll, libc::EPOLL_CTL_DEL, self.socket);
        self.poller.sockets.fetch_sub(1, Relaxed);
    }
}

#[cfg(target_os = "linux")]
impl Drop for Poller {
    fn drop(&mut self) {
        // SAFETY: the descriptor is ours, and nobody uses it after this.
        unsafe { libc::close(self.epoll) };
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
