//! What a server says of its own health, and how often it may change its mind (gRFC A17; A50 for the times).

#[cfg(any(feature = "native", test))]
use std::time::Duration;

use valkyrie_protocol::Time;

#[cfg(any(feature = "native", test))]
use super::window::Window;

/// Whether servers are asked for their health.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthPolicy {
    /// The name of the service that each server is asked about, on each connection, by `/valkyrie.Health/Watch`; empty for the server as
    /// a whole. Default: none, servers are not asked.
    pub service: Option<String>,
}

/// So often a server may stop serving within a minute before it is not believed any more.
#[cfg(any(feature = "native", test))]
const FALLS: u64 = 5;
#[cfg(any(feature = "native", test))]
const WINDOW: Duration = Duration::from_secs(60);
/// How long the first time, and that much longer each further time, up to the cap (gRFC A50).
#[cfg(any(feature = "native", test))]
const HOLD: Duration = Duration::from_secs(30);
#[cfg(any(feature = "native", test))]
const HOLD_CAP: Duration = Duration::from_secs(300);

/// How one server's health flaps: one that stops serving more than five times in a minute counts as not serving for a while.
#[derive(Clone, Debug)]
pub(crate) struct Flaps {
    #[cfg(any(feature = "native", test))]
    falls: Window<6, 1>,
    #[cfg(any(feature = "native", test))]
    held: Duration,
    until: Time,
}

impl Flaps {
    pub(crate) fn new() -> Self {
        Self {
            #[cfg(any(feature = "native", test))]
            falls: Window::new(WINDOW),
            #[cfg(any(feature = "native", test))]
            held: Duration::ZERO,
            until: Time::default(),
        }
    }

    /// It stopped serving.
    #[cfg(any(feature = "native", test))]
    pub(crate) fn fell(&mut self, now: Time) {
        self.falls.advance(now);
        self.falls.add(0);
        if self.falls.total(0) <= FALLS {
            return;
        }
        // One that kept still for as long as it was held last has recovered in between.
        if now.since(self.until) > self.held {
            self.held = Duration::ZERO;
        }
        self.held = self.held.saturating_add(HOLD).min(HOLD_CAP);
        self.until = now.after(self.held);
        self.falls.clear();
    }

    /// Until when it counts as not serving, whatever it says.
    pub(crate) fn held_until(&self, now: Time) -> Option<Time> {
        (now < self.until).then_some(self.until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::from_micros(seconds * 1_000_000)
    }

    fn fall(flaps: &mut Flaps, from: u64, times: u64) {
        (0..times).for_each(|fall| flaps.fell(at(from + fall)));
    }

    #[test]
    fn five_falls_in_a_minute_are_believed_and_six_are_not() {
        let mut flaps = Flaps::new();
        fall(&mut flaps, 0, 5);
        assert_eq!(flaps.held_until(at(5)), None);
        fall(&mut flaps, 60, 5);
        assert_eq!(flaps.held_until(at(65)), None, "the first five are forgotten");
        fall(&mut flaps, 66, 1);
        assert_eq!(flaps.held_until(at(66)), Some(at(96)));
        assert_eq!(flaps.held_until(at(96)), None);
    }

    #[test]
    fn one_that_goes_on_is_held_for_longer_up_to_five_minutes_and_one_that_kept_still_begins_anew() {
        let mut flaps = Flaps::new();
        let mut now = 1_000;
        for held in [30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300] {
            fall(&mut flaps, now, 6);
            assert_eq!(flaps.held_until(at(now + 5)), Some(at(now + 5 + held)));
            now += 5 + held;
        }
        now += 306;
        fall(&mut flaps, now, 6);
        assert_eq!(flaps.held_until(at(now + 5)), Some(at(now + 5 + 30)));
    }
}
