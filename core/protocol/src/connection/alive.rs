//! Whether the peer is there: a PING where nothing is heard of it, and an end where that stays so (PROTOCOL.md, "Silence").
//! And a gentle end for a connection that nobody uses.
//!
//! Everything that is received answers. Who hears enough is never asked, and costs no timer of its own: the bound of the
//! next look is moved when it is reached, and not by each frame.

use std::time::Duration;

use super::{Connection, Event};
use crate::{ConnectionError, ErrorCode, Reason, Time};

/// When a silent peer is asked whether it is there, and how long it may take to say so. Default: never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keepalive {
    /// Silence after which a PING goes out while a stream is open. With it a PING goes ahead of a call, too, that is opened
    /// after 15 s of silence, and has a quarter of the call's time: 1 s at most, and at least 200 ms and four times what HELLO took.
    pub time: Option<Duration>,
    /// Silence after which a PING goes out while no stream is.
    pub idle: Option<Duration>,
    /// How long the answer to a PING may take, which is anything at all.
    pub timeout: Duration,
}

/// Silence after which the next call is to be preceded by a PING.
const DOUBT_AFTER: Duration = Duration::from_secs(15);
/// How long the answer may take then at most, and at least where the path does not need more.
const DOUBT: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(1));

/// What is known of the peer's being there.
#[derive(Debug)]
pub(super) struct Alive {
    began: Time,
    /// When something was heard of it, at first when the connection began.
    heard: Time,
    /// A PING is out, and something is to be heard until then.
    answer_by: Option<Time>,
    /// No silence is long enough earlier.
    look_at: Option<Time>,
    /// When the last stream ended, at first when the connection began.
    at_rest: Time,
    /// A connection that is let go of when nobody uses it has been at rest for no long enough time earlier.
    leave_at: Option<Time>,
    /// How long its HELLO took: a round trip and the time that the peer needed, or one way where both HELLOs crossed.
    hello: Duration,
}

impl Alive {
    pub(super) fn new(now: Time, keepalive: &Keepalive, max_idle: Option<Duration>) -> Self {
        Self {
            began: now,
            heard: now,
            answer_by: None,
            look_at: keepalive.idle.map(|idle| now.after(idle)),
            at_rest: now,
            leave_at: max_idle.map(|idle| now.after(idle)),
            hello: Duration::ZERO,
        }
    }

    /// Something came.
    pub(super) fn hear(&mut self, now: Time) {
        self.heard = now;
        self.answer_by = None;
    }

    /// What came is the peer's HELLO.
    pub(super) fn greeted(&mut self, now: Time) {
        self.hello = now.since(self.began);
    }

    pub(super) fn next(&self) -> Option<Time> {
        Time::sooner(self.leave_at, Time::sooner(self.answer_by, self.look_at))
    }

    /// The connection is over.
    pub(super) fn stop(&mut self) {
        (self.answer_by, self.look_at, self.leave_at) = (None, None, None);
    }

    /// Whether a call that is opened now is to be sure of the peer.
    fn is_doubtful(&self, now: Time) -> bool {
        now.since(self.heard) >= DOUBT_AFTER
    }

    /// How long the answer ahead of a call may take that has so much time.
    fn doubt(&self, time: Option<Duration>) -> Duration {
        let (least, most) = DOUBT;
        time.map_or(most, |time| time / 4).max(least).max(self.hello * 4).min(most)
    }
}

impl Connection {
    /// When something was received last, or the connection began.
    pub fn heard(&self) -> Time {
        self.alive.heard
    }

    /// A stream opens: silence counts from now on.
    pub(super) fn watch(&mut self, now: Time) {
        if let Some(time) = self.config.keepalive.time {
            self.alive.look_at = Time::sooner(self.alive.look_at, Some(now.after(time)));
        }
    }

    /// A stream is over, perhaps the last one.
    pub(super) fn rest(&mut self) {
        if let Some(idle) = self.config.max_idle
            && self.streams() == 0
            && !self.is_draining()
        {
            self.alive.at_rest = self.now;
            self.alive.leave_at.get_or_insert(self.now.after(idle));
        }
    }

    /// Calls are about to be written: whoever was silent for long is asked ahead of them.
    pub(super) fn doubt(&mut self, now: Time) {
        if self.waiting_opens > 0
            && self.alive.is_doubtful(now)
            && self.alive.answer_by.is_none()
            && self.config.keepalive.time.is_some()
            && self.failed.is_none()
        {
            self.ask(now, self.alive.doubt(None));
        }
    }

    /// A call is written with that deadline, perhaps while an answer is due.
    pub(super) fn hurry(&mut self, now: Time, deadline: Option<Time>) {
        if let Some(at) = self.alive.answer_by
            && self.alive.is_doubtful(now)
        {
            let time = deadline.map(|deadline| deadline.since(now));
            self.alive.answer_by = Some(at.min(now.after(self.alive.doubt(time))));
        }
    }

    /// Asks the peer whether it is there.
    fn ask(&mut self, now: Time, timeout: Duration) {
        self.ping(0);
        self.alive.answer_by = Some(now.after(timeout));
    }

    /// Looks whether the silence, or the rest, is too long, if it is time to.
    ///
    /// # Errors
    /// TIMEOUT when a PING was not answered.
    pub(super) fn look(&mut self, now: Time) -> Result<(), ConnectionError> {
        let due = |at: Option<Time>| at.is_some_and(|at| at <= now);
        if due(self.alive.answer_by) {
            let silence = now.since(self.alive.heard).as_millis() as u64;
            let what = format!("the peer is gone: it was silent for {silence} ms and did not answer a PING");
            return Err(ConnectionError::new(ErrorCode::TIMEOUT, what).with_reason(Reason::CONNECTION_LOST));
        }
        if due(self.alive.look_at) {
            let Keepalive { time, idle, timeout } = self.config.keepalive;
            let silence = if self.streams() > 0 { time } else { idle };
            self.alive.look_at = silence.map(|silence| self.alive.heard.after(silence));
            if due(self.alive.look_at) {
                self.alive.look_at = silence.map(|silence| now.after(silence));
                if self.alive.answer_by.is_none() {
                    self.ask(now, timeout);
                }
            }
        }
        if due(self.alive.leave_at) {
            // Who is busy is looked at when it is at rest again.
            let idle = self.config.max_idle.filter(|_| self.streams() == 0);
            self.alive.leave_at = idle.map(|idle| self.alive.at_rest.after(idle));
            if due(self.alive.leave_at) {
                self.alive.leave_at = None;
                if !self.is_draining() {
                    self.go_away("nobody used the connection for long");
                    self.events.push_back(Event::Idle);
                }
            }
        }
        Ok(())
    }
}
