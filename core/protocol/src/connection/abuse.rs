//! What a peer may cost, counted (PROTOCOL.md, "Abuse").

use std::time::Duration;

use super::{Connection, StreamAction};
use crate::{ConnectionError, ErrorCode, Limits, StreamKey, Time};

/// A leaky bucket, kept as the instant at which it will be empty.
#[derive(Debug)]
pub(super) struct Bucket {
    empty_at: Time,
    each: Duration,
    most: u32,
}

impl Bucket {
    /// Holds `most` at once and forgets `per_second`, at least 1.
    pub(super) fn new(most: u32, per_second: u32) -> Self {
        Self { empty_at: Time::default(), each: Duration::from_secs(1) / per_second.max(1), most }
    }

    /// Puts one in; whether the bucket holds it.
    pub(super) fn add(&mut self, now: Time) -> bool {
        self.empty_at = self.empty_at.max(now).after(self.each);
        self.empty_at.since(now) <= self.each.saturating_mul(self.most)
    }

    /// Takes one out.
    pub(super) fn pay_back(&mut self) {
        let empty_at = self.empty_at.as_micros();
        self.empty_at = Time::from_micros(empty_at.saturating_sub(self.each.as_micros() as u64));
    }

    /// When no more than `left` are in it.
    fn holds_at(&self, left: u32) -> Time {
        let leaks = self.each.saturating_mul(left).as_micros() as u64;
        Time::from_micros(self.empty_at.as_micros().saturating_sub(leaks))
    }
}

/// A deadline that is nearer than this when its call is opened counts as a reset when it passes.
pub(super) const BRIEF: Duration = Duration::from_secs(1);

/// What the peer has against this side by W9-07, kept so that it never comes to `most` (W9-15).
#[derive(Debug)]
pub(super) struct Account {
    /// Open calls with a brief deadline: the peer may end them, and count that, without a word of this side.
    brief: u32,
    /// Bad ends that the peer certainly counted by now, so that it has forgiven as much of them as this bucket.
    counted: Bucket,
    /// Resets that were sent since, which may lie unread for any time.
    unread: u32,
    /// The PING behind some of them.
    asked: Option<Asked>,
    ask_at: Time,
    most: u32,
}

#[derive(Debug)]
struct Asked {
    /// PINGs before it whose PONG has not come.
    ahead: u32,
    resets: u32,
}

impl Account {
    /// So often at most, or the PINGs would be glitches.
    const PAUSE: Duration = Duration::from_millis(20);

    pub(super) fn new(limits: &Limits, multiplexed: bool) -> Self {
        // An eighth is for clocks that differ, and for a carrier whose streams overtake each other.
        let less = |number: u32| number - number / 8;
        let most = if multiplexed { less(limits.max_resets) } else { limits.max_resets };
        Self {
            brief: 0,
            counted: Bucket::new(most, less(limits.resets_per_second)),
            unread: 0,
            asked: None,
            ask_at: Time::default(),
            most: most.max(1),
        }
    }

    /// Whether another call may end badly.
    pub(super) fn has_room(&self, now: Time) -> bool {
        self.room_at().is_some_and(|at| at <= now)
    }

    /// When another call may end badly; `None` for not before a brief one ends or a PONG comes.
    pub(super) fn room_at(&self) -> Option<Time> {
        let left = self.most.checked_sub(self.brief.saturating_add(self.unread).saturating_add(1))?;
        Some(self.counted.holds_at(left))
    }

    /// When the peer is to be asked how far it has read; `None` while there is no need.
    pub(super) fn ask_at(&self, waits: bool) -> Option<Time> {
        let worth = if waits { 1 } else { (self.most / 8).max(1) };
        (self.asked.is_none() && self.unread >= worth).then_some(self.ask_at)
    }

    /// A call with a brief deadline was opened.
    pub(super) fn open_brief(&mut self) {
        self.brief += 1;
    }

    /// It is over.
    pub(super) fn close_brief(&mut self) {
        self.brief -= 1;
    }

    /// A stream of this side was reset by it.
    pub(super) fn sent(&mut self) {
        self.unread += 1;
    }

    /// A stream of this side was ended badly by the peer.
    pub(super) fn told(&mut self, now: Time) {
        self.counted.add(now);
    }

    /// A call of this side completed.
    pub(super) fn pay_back(&mut self) {
        self.counted.pay_back();
    }

    /// A PONG came; whether it answers this account's PING.
    pub(super) fn ponged(&mut self, now: Time) -> bool {
        match &mut self.asked {
            Some(Asked { ahead: 0, resets }) => {
                self.unread -= *resets;
                (0..*resets).for_each(|_| _ = self.counted.add(now));
                self.asked = None;
                true
            }
            Some(Asked { ahead, .. }) => {
                *ahead -= 1;
                false
            }
            None => false,
        }
    }
}

impl Connection {
    fn waits_for_room(&self) -> bool {
        self.failed.is_none() && !(self.held.is_empty() && self.paused.is_empty())
    }

    /// When there may be room for what waits for it.
    pub(super) fn next_room(&self) -> Option<Time> {
        let at = || Time::sooner(self.account.room_at(), self.account.ask_at(true));
        self.waits_for_room().then(at).flatten()
    }

    /// Ends a stream of this side that was opened: its RESET goes out at once or, where the peer would not forgive it, waits
    /// with the stream's place.
    pub(super) fn reset_local(&mut self, key: StreamKey, id: u64, code: ErrorCode) {
        let brief = self.streams.get(key).is_some_and(|stream| stream.brief);
        // A brief one has room of its own.
        if brief || self.held.is_empty() && self.account.has_room(self.now) {
            self.account.sent();
            self.forget(key);
            self.push_reset(id, code);
        } else {
            self.held.insert(id, code);
            self.forget(key);
        }
        self.settle_account();
    }

    /// The peer ended a stream whose RESET waits: nothing is left to say, and its place is free.
    pub(super) fn release(&mut self, id: u64) -> bool {
        let held = self.held.remove(&id).is_some();
        if held {
            self.open_local -= 1;
            if self.config.multiplexed {
                self.actions.push_back(StreamAction::Close { id });
            }
            self.open_next();
        }
        held
    }

    /// Sends the resets that there is room for, and then opens the calls.
    pub(super) fn use_room(&mut self) {
        if !self.waits_for_room() {
            return;
        }
        while self.account.has_room(self.now)
            && let Some((id, code)) = self.held.pop_first()
        {
            self.account.sent();
            self.open_local -= 1;
            self.push_reset(id, code);
            self.open_next();
        }
        while self.account.has_room(self.now)
            && let Some(key) = self.paused.pop_front()
        {
            if let Some(stream) = self.streams.get(key) {
                (stream.waiting, stream.called) = (false, true);
                // Once it is open, the next one.
                self.make_ready(key);
                break;
            }
        }
        self.settle_account();
    }

    /// Asks how far the peer has read, if it is time to.
    pub(super) fn settle_account(&mut self) {
        let at = self.account.ask_at(self.waits_for_room());
        if at.is_some_and(|at| at <= self.now) && self.failed.is_none() {
            self.account.asked = Some(Asked { ahead: self.pings, resets: self.account.unread });
            self.account.ask_at = self.now.after(Account::PAUSE);
            self.ping(0);
        }
    }

    /// A stream ended badly, and the peer is to blame.
    pub(super) fn count_reset(&mut self) -> Result<(), ConnectionError> {
        if self.resets.add(self.now) {
            return Ok(());
        }
        Err(calm(format!("{} more resets than completed calls", self.config.limits.max_resets)))
    }

    /// A frame that is legal, and that nobody needs many of.
    pub(super) fn count_glitch(&mut self) -> Result<(), ConnectionError> {
        if self.glitches.add(self.now) {
            return Ok(());
        }
        Err(calm(format!("{} frames that nobody needs", self.config.limits.max_glitches)))
    }

    /// A fragment of a message that goes on: short ones cost, longer ones pay back.
    pub(super) fn count_fragment(&mut self, len: usize) -> Result<(), ConnectionError> {
        let least = Limits::SMALL_FRAGMENT;
        // A frame is at most 1 MiB.
        let len = len as u32;
        self.fragment_overhead =
            (self.fragment_overhead + least.saturating_sub(len)).saturating_sub(len.saturating_sub(least));
        if self.fragment_overhead > self.config.limits.fragment_overhead_bytes {
            return Err(calm(format!("too many fragments of less than {least} bytes")));
        }
        Ok(())
    }

    /// An answer to a control frame of the peer's was queued.
    pub(super) fn count_answer(&mut self) -> Result<(), ConnectionError> {
        let most = self.config.limits.max_control_frames;
        self.control_answers += 1;
        if self.control_answers > most {
            return Err(calm(format!("{most} control frames wait for a peer that does not read")));
        }
        Ok(())
    }
}

fn calm(message: String) -> ConnectionError {
    ConnectionError::new(ErrorCode::ENHANCE_CALM, message)
}
