//! A thread that waits drives the connection it waits for: one `poll(2)` on its socket, and on what others wake it with.

use std::{
    cell::RefCell,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    task::{Context, Wake, Waker},
    time::{Duration, Instant},
};

use valkyrie_sdk::{Client, Lead};

use crate::{
    fork::generation,
    ledger::{Line, Signal},
    queue::EventFd,
};

/// What others wake a thread with. A system call is made for one that sleeps only.
struct Bell {
    state: AtomicU8,
    #[cfg(target_os = "linux")]
    _polled: crate::descriptors::Polled,
    // Closed last.
    fd: EventFd,
}

impl Bell {
    fn new() -> Option<Self> {
        let fd = EventFd::new().ok()?;
        Some(Self {
            state: AtomicU8::new(AWAKE),
            #[cfg(target_os = "linux")]
            _polled: crate::descriptors::Polled::new(fd.reader),
            fd,
        })
    }
}

const AWAKE: u8 = 0;
const ASLEEP: u8 = 1;
const RUNG: u8 = 2;

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.swap(RUNG, Ordering::AcqRel) == ASLEEP {
            self.fd.signal();
        }
    }
}

thread_local! {
    /// This thread's, of this fork generation: a child would ring at its parent.
    static BELL: RefCell<Option<(u64, Arc<Bell>)>> = const { RefCell::new(None) };
}

fn bell() -> Option<Arc<Bell>> {
    let now = generation();
    let own = |own: &RefCell<Option<(u64, Arc<Bell>)>>| {
        let own = &mut *own.borrow_mut();
        if own.as_ref().is_none_or(|(made_in, _)| *made_in != now) {
            // The parent's is closed already.
            std::mem::forget(own.take());
            *own = Some((now, Arc::new(Bell::new()?)));
        }
        own.as_ref().map(|(_, bell)| bell.clone())
    };
    // A thread that is ending may have none left.
    BELL.try_with(own).ok().flatten()
}

/// A line that rouses a thread, until dropped.
struct Attending<'a, T, S: Signal>(&'a Line<T, S>);

impl<T, S: Signal> Drop for Attending<'_, T, S> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// Drives the connection of `client` until there is something in `line`, at most until then.
///
/// # Errors
/// How long it is no use to try again, when it is not for this thread to drive, or not any longer.
pub(crate) fn drive<T, S: Signal>(
    line: &Line<T, S>,
    client: &Client,
    until: Instant,
) -> Result<(), Duration> {
    let detached = |descriptor| -> Box<dyn Send> {
        #[cfg(target_os = "linux")]
        return Box::new(crate::descriptors::Polled::new(descriptor));
        #[cfg(not(target_os = "linux"))]
        return Box::new(descriptor);
    };
    let mut lead = client.lead(detached)?;
    let bell = bell().ok_or(Duration::ZERO)?;
    let waker = Waker::from(bell.clone());
    let mut cx = Context::from_waker(&waker);
    if !line.attend(waker.clone()) {
        // What was submitted in expectation goes out.
        lead.step(&mut cx);
        return if line.len() > 0 { Ok(()) } else { Err(Duration::ZERO) };
    }
    let _attending = Attending(line);
    loop {
        bell.state.store(AWAKE, Ordering::Release);
        let Some(interest) = lead.step(&mut cx) else {
            return Err(Duration::ZERO);
        };
        if line.len() > 0 || line.is_closed() {
            return Ok(());
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        if bell.state.compare_exchange(AWAKE, ASLEEP, Ordering::AcqRel, Ordering::Acquire).is_err() {
            continue;
        }
        let timeout = interest.timeout.map_or(left, |timeout| timeout.min(left));
        let writable = if interest.writable { libc::POLLOUT } else { 0 };
        let mut polled = [
            libc::pollfd { fd: interest.descriptor, events: libc::POLLIN | writable, revents: 0 },
            libc::pollfd { fd: bell.fd.reader, events: libc::POLLIN, revents: 0 },
        ];
        // SAFETY: the two entries are ours, and their descriptors are open: the lead's and the bell's.
        unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, milliseconds(timeout)) };
        if polled[0].revents & !libc::POLLOUT != 0 {
            lead.set_readable();
        }
        if polled[1].revents != 0 {
            bell.fd.clear();
        }
    }
}

/// What a loop that drives is woken with while it does.
#[derive(Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

/// How often a loop goes on with what is left to do, before it sees to its other work.
#[cfg(target_os = "linux")]
const STEPS: usize = 4;

/// What a loop holds until it has drained: nothing that came while it drove raised the signal.
#[cfg(target_os = "linux")]
pub(crate) struct Driven<'a, T, S: Signal> {
    _attending: Option<Attending<'a, T, S>>,
    _lead: Lead,
}

/// Drives the connection of `client` as far as it comes without waiting.
///
/// # Errors
/// As [`drive`].
#[cfg(target_os = "linux")]
pub(crate) fn drive_now<'a, T, S: Signal>(
    line: &'a Line<T, S>,
    client: &Client,
    watched: impl FnOnce(i32) -> Box<dyn Send>,
    readable: bool,
) -> Result<Driven<'a, T, S>, Duration> {
    thread_local! {
        static FLAG: Arc<Flag> = Arc::default();
    }
    let flag = FLAG.try_with(Arc::clone).map_err(|_| Duration::ZERO)?;
    let mut lead = client.lead(watched)?;
    let waker = Waker::from(flag.clone());
    let attending = line.attend(waker.clone()).then(|| Attending(line));
    if readable {
        lead.set_readable();
    }
    let mut cx = Context::from_waker(&waker);
    for _ in 0..STEPS {
        flag.0.store(false, Ordering::Release);
        if lead.step(&mut cx).is_none() || !flag.0.load(Ordering::Acquire) || line.len() > 0 {
            break;
        }
    }
    Ok(Driven { _attending: attending, _lead: lead })
}

/// For `poll(2)`: not before the time has passed.
fn milliseconds(timeout: Duration) -> i32 {
    i32::try_from(timeout.as_micros().div_ceil(1_000)).unwrap_or(i32::MAX)
}
