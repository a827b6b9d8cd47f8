//! What a peer may cost, counted (PROTOCOL.md, "Abuse").

use std::time::Duration;

use super::Connection;
use crate::{ConnectionError, ErrorCode, Limits, Time};

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
    fn add(&mut self, now: Time) -> bool {
        self.empty_at = self.empty_at.max(now).after(self.each);
        self.empty_at.since(now) <= self.each.saturating_mul(self.most)
    }

    /// Takes one out.
    pub(super) fn pay_back(&mut self) {
        let empty_at = self.empty_at.as_micros();
        self.empty_at = Time::from_micros(empty_at.saturating_sub(self.each.as_micros() as u64));
    }
}

impl Connection {
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
