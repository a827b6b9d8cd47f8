//! Who drives a client's connection: a task of the runtime, or a thread that would only wait for what comes of it.
//!
//! A thread that blocks in a call has to wake the task, which has to wake the thread: two changes of thread, more than
//! all else together on a short way. So while such waits come soon one after the other, the thread drives: the socket
//! leaves the runtime's poller, and the thread reads, writes and polls it, for every call of the connection. Between two
//! waits the connection rests for [`REST`], after which the task takes it back, since somebody must answer a PING. Where
//! several threads wait, the task drives for all of them.

use std::{
    cell::Cell,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use valkyrie_protocol::Time;

use crate::{
    Timer,
    connection::{Driver, Link, lock},
};

/// How long a connection rests before the task takes it back, at least; twice as long at most. Waits that begin further
/// apart than this are left to the task.
const REST: Duration = Duration::from_millis(1);
/// How long no thread drives after several threads waited at once; the time doubles while they do.
const AFTER_CROWD: Duration = Duration::from_millis(10);
const MOST_DOUBLINGS: u32 = 7;
/// How long it is no use to ask where no thread can ever drive.
const NEVER: Duration = Duration::from_secs(1);
/// How long no thread drives after calls were under way in a connection that nobody came back to drive.
const AFTER_VAIN_REST: Duration = Duration::from_millis(100);

/// Who drives, and what is known of it.
#[derive(Default)]
pub(crate) struct Chair {
    seat: Seat,
    /// The task's.
    task: Option<Waker>,
    /// The task looks after [`REST`], or was woken to do so.
    ticking: bool,
    /// A thread drove since the task looked.
    used: bool,
    /// When a thread last asked to drive, and before when none may.
    asked: Option<Time>,
    not_before: Time,
    /// Crowds, one after the other.
    crowds: u32,
    /// Of whoever keeps count of detached sockets.
    detached: Option<Box<dyn Send>>,
}

#[derive(Default)]
enum Seat {
    /// The connection is over, or its runtime is, or it is a server's.
    #[default]
    Over,
    /// The task's.
    Task(Box<Driver>),
    /// The task or a thread drives just now; whether a thread came meanwhile that waits too.
    Driven { crowd: bool },
    /// A thread drove and is expected back.
    Resting(Box<Driver>),
}

thread_local! {
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `submit`, of a thread that is about to ask for the [`Lead`]: for what it submits to a connection that rests, nobody
/// is woken. Should the thread not come, the runtime sees to it within 2 ms.
pub fn expecting_to_lead<T>(submit: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            EXPECTED.set(self.0);
        }
    }
    let _restore = Restore(EXPECTED.replace(true));
    submit()
}

pub(crate) fn is_expected() -> bool {
    EXPECTED.get()
}

/// What drives a client's connection until it is over, where no thread does.
pub(crate) fn seat(driver: Driver) -> impl Future<Output = ()> + Send + 'static {
    let link = driver.link().clone();
    let timer = link.runtime.timer();
    lock(&link.chair).seat = Seat::Task(Box::new(driver));
    Task { link, timer }
}

struct Task {
    link: Arc<Link>,
    timer: Box<dyn Timer>,
}

/// Looks again later, because a thread drove since the last look.
fn tick(timer: &mut dyn Timer, link: &Link, cx: &mut Context<'_>) {
    // A timer that is due before it was polled wakes nobody.
    loop {
        timer.reset(Some(link.runtime.now().after(REST)));
        if timer.poll(cx).is_pending() {
            break;
        }
    }
}

impl Future for Task {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { link, timer } = &mut *self;
        let mut driver = {
            let chair = &mut *lock(&link.chair);
            let rests = match &chair.seat {
                Seat::Over => return Poll::Ready(()),
                Seat::Task(_) => false,
                Seat::Driven { .. } => true,
                Seat::Resting(_) => lock(&link.state).resting,
            };
            match &mut chair.task {
                Some(waker) => waker.clone_from(cx.waker()),
                none => *none = Some(cx.waker().clone()),
            }
            chair.ticking = rests && std::mem::take(&mut chair.used);
            if chair.ticking {
                tick(&mut **timer, link, cx);
                return Poll::Pending;
            }
            timer.reset(None);
            match std::mem::take(&mut chair.seat) {
                Seat::Task(driver) => {
                    chair.seat = Seat::Driven { crowd: false };
                    driver
                }
                Seat::Resting(mut driver) => {
                    lock(&link.state).resting = false;
                    driver.attach();
                    chair.detached = None;
                    // Others use the connection in their own ways.
                    let pause = match rests {
                        true if link.streams() > 0 => AFTER_VAIN_REST,
                        true => Duration::ZERO,
                        false => AFTER_CROWD,
                    };
                    chair.not_before = chair.not_before.max(link.runtime.now().after(pause));
                    chair.seat = Seat::Driven { crowd: false };
                    driver
                }
                driven => {
                    // The thread wakes this task when it stops.
                    chair.seat = driven;
                    return Poll::Pending;
                }
            }
        };
        let polled = Pin::new(&mut *driver).poll(cx);
        let mut chair = lock(&link.chair);
        if polled.is_pending() {
            chair.seat = Seat::Task(driver);
        } else {
            chair.seat = Seat::Over;
            drop(chair);
            drop(driver);
        }
        polled
    }
}

impl Drop for Task {
    /// A runtime that stops drops the task, and with it the driver, which tells everybody who waits. A thread that drives
    /// does so when it stops.
    fn drop(&mut self) {
        let seat = std::mem::take(&mut lock(&self.link.chair).seat);
        drop(seat);
    }
}

/// What a thread that drives polls for, before its next [`Lead::step`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest {
    /// The descriptor to poll for reading.
    pub descriptor: i32,
    /// For writing as well.
    pub writable: bool,
    /// At most how long to wait. `None`: for ever.
    pub timeout: Option<Duration>,
}

/// The right of one thread to drive a connection, until dropped. It drives for every call of the connection, whoever
/// waits for them.
pub struct Lead {
    link: Arc<Link>,
    /// There until the connection is over.
    driver: Option<Box<Driver>>,
}

impl Lead {
    pub(crate) fn take(
        link: Arc<Link>,
        detached: impl FnOnce(i32) -> Box<dyn Send>,
    ) -> Result<Self, Duration> {
        let driver = Self::sit_down(&link, detached)?;
        // What is submitted from now on wakes whoever drove last, which does no harm: the first step looks for it.
        lock(&link.state).resting = false;
        Ok(Self { link, driver: Some(driver) })
    }

    fn sit_down(link: &Link, detached: impl FnOnce(i32) -> Box<dyn Send>) -> Result<Box<Driver>, Duration> {
        let now = link.runtime.now();
        let chair = &mut *lock(&link.chair);
        let soon = chair.asked.replace(now).is_some_and(|at| now.since(at) < REST);
        match &mut chair.seat {
            Seat::Over => return Err(Duration::ZERO),
            Seat::Driven { crowd } => {
                *crowd = true;
                return Err(Duration::ZERO);
            }
            Seat::Task(_) if now < chair.not_before => return Err(chair.not_before.since(now)),
            Seat::Task(_) if !soon || chair.task.is_none() => return Err(Duration::ZERO),
            Seat::Task(driver) => {
                let descriptor = driver.socket().ok_or(NEVER)?.descriptor();
                let detached = detached(descriptor);
                driver.detach();
                chair.detached = Some(detached);
            }
            Seat::Resting(_) => {}
        }
        chair.used = true;
        match std::mem::replace(&mut chair.seat, Seat::Driven { crowd: false }) {
            Seat::Task(driver) | Seat::Resting(driver) => Ok(driver),
            Seat::Over | Seat::Driven { .. } => Err(Duration::ZERO),
        }
    }

    /// Does all that can be done without waiting; what to poll for next, or `None` once the connection is over. `cx` is
    /// woken when there is something to do before that.
    pub fn step(&mut self, cx: &mut Context<'_>) -> Option<Interest> {
        let driver = self.driver.as_mut()?;
        if Pin::new(&mut **driver).poll(cx).is_ready() {
            self.driver = None;
            return None;
        }
        let timer_at = driver.timer_at();
        let socket = driver.socket()?;
        let (descriptor, writable) = (socket.descriptor(), socket.is_full());
        let timeout = timer_at.map(|at| at.since(self.link.runtime.now()));
        Some(Interest { descriptor, writable, timeout })
    }

    /// The descriptor is readable: the next step reads.
    pub fn set_readable(&mut self) {
        if let Some(socket) = self.driver.as_mut().and_then(|driver| driver.socket()) {
            socket.set_readable();
        }
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // As a task that panics: the connection is over.
            self.driver = None;
        }
        let mut over = None;
        let task = {
            let mut chair = lock(&self.link.chair);
            let chair = &mut *chair;
            match (self.driver.take(), &chair.seat) {
                (Some(mut driver), Seat::Driven { crowd }) => {
                    let full = driver.socket().is_some_and(|socket| socket.is_full());
                    let mut state = lock(&self.link.state);
                    state.driver.clone_from(&chair.task);
                    state.resting = !crowd && !full && !state.dirty;
                    let rests = state.resting;
                    drop(state);
                    if *crowd {
                        let pause = AFTER_CROWD * (1 << chair.crowds);
                        chair.not_before = self.link.runtime.now().after(pause);
                        chair.crowds = (chair.crowds + 1).min(MOST_DOUBLINGS);
                    } else {
                        chair.crowds = 0;
                    }
                    chair.seat = Seat::Resting(driver);
                    let sees_to_it = rests && chair.ticking;
                    chair.ticking = true;
                    if sees_to_it { None } else { chair.task.clone() }
                }
                // The runtime is gone, or the connection is over.
                (driver, _) => {
                    over = driver;
                    chair.seat = Seat::Over;
                    chair.detached = None;
                    chair.task.take()
                }
            }
        };
        drop(over);
        if let Some(task) = task {
            task.wake();
        }
    }
}
