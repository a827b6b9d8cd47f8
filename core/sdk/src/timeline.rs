//! What became of a call's attempts, for the error that it ends with.

use std::fmt::Write;

use valkyrie_protocol::{Status, Time};

use crate::policy::{BreakerState, Verdict};

/// The failed attempts of one call. Empty, it has no memory of its own.
#[derive(Debug, Default)]
pub(crate) struct Timeline {
    /// When the call's first attempt looked for a connection.
    began: Time,
    /// When the one that goes on did.
    asked: Option<Time>,
    past: Vec<Past>,
}

#[derive(Debug)]
struct Past {
    /// The server and when the attempt went out, if there was a connection.
    sent: Option<(String, Time)>,
    asked: Time,
    ended: Time,
    what: String,
    breaker: Option<BreakerState>,
    verdict: Verdict,
}

impl Timeline {
    /// An attempt looks for a connection.
    pub(crate) fn asks(&mut self, now: Time) {
        if self.asked.is_none() && self.past.is_empty() {
            self.began = now;
        }
        self.asked.get_or_insert(now);
    }

    /// It failed. `sent` names the server and the time, if it went out.
    pub(crate) fn failed(
        &mut self,
        sent: Option<(String, Time)>,
        status: &Status,
        breaker: Option<BreakerState>,
        verdict: Verdict,
        now: Time,
    ) {
        let what = format!("{} {}", status.code().name(), status.reason());
        let asked = self.asked.take().unwrap_or(now);
        self.past.push(Past { sent, asked, ended: now, what, breaker, verdict });
    }

    /// A line for each attempt, in milliseconds since the call began.
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        for (number, past) in (1..).zip(&self.past) {
            // A string takes everything.
            let _ = past.write(&mut out, number, self.began);
        }
        out.truncate(out.trim_end().len());
        out
    }
}

impl Past {
    fn write(&self, out: &mut String, number: u32, began: Time) -> std::fmt::Result {
        let ms = |from: Time, to: Time| {
            let micros = to.since(from).as_micros();
            format!("{}.{:03} ms", micros / 1_000, micros % 1_000)
        };
        write!(out, "attempt {number} at {}", ms(began, self.asked))?;
        match &self.sent {
            Some((server, at)) => {
                let (waited, took) = (ms(self.asked, *at), ms(*at, self.ended));
                write!(out, ": {server}, waited {waited}, took {took}: {}", self.what)?;
            }
            None => write!(out, ": no connection, waited {}: {}", ms(self.asked, self.ended), self.what)?,
        }
        if let Some(breaker) = self.breaker {
            write!(out, ", breaker {}", breaker.name())?;
        }
        match self.verdict {
            Verdict::Retry { at, transparent } => {
                let how = if transparent { "sent again" } else { "retry" };
                writeln!(out, "; {how} at {}", ms(began, at))
            }
            Verdict::GiveUp(why) => writeln!(out, "; no retry: {}", why.name()),
        }
    }
}
