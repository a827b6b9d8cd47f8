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
    /// `None` without a connection.
    sent: Option<Sent>,
    asked: Time,
    ended: Time,
    what: String,
    /// Of a copy of a hedged call nobody asks for another attempt.
    verdict: Option<Verdict>,
}

/// Where an attempt went.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) server: String,
    pub(crate) at: Time,
    pub(crate) breaker: Option<BreakerState>,
}

impl Timeline {
    /// An attempt looks for a connection.
    pub(crate) fn asks(&mut self, now: Time) {
        if self.asked.is_none() && self.past.is_empty() {
            self.began = now;
        }
        self.asked.get_or_insert(now);
    }

    /// When the call's first attempt looked for a connection.
    pub(crate) fn began(&self) -> Time {
        self.began
    }

    /// It failed.
    pub(crate) fn failed(
        &mut self,
        sent: Option<Sent>,
        status: &Status,
        verdict: Option<Verdict>,
        now: Time,
    ) {
        let what = format!("{} {}", status.code().name(), status.reason());
        // That of a copy was that of the one before it, perhaps.
        let began = sent.as_ref().map_or(now, |sent| sent.at);
        let asked = self.asked.take().unwrap_or(began);
        self.past.push(Past { sent, asked: asked.min(began), ended: now, what, verdict });
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
            let micros = to.as_micros().saturating_sub(from.as_micros());
            format!("{}.{:03} ms", micros / 1_000, micros % 1_000)
        };
        write!(out, "attempt {number} at {}", ms(began, self.asked))?;
        match &self.sent {
            Some(Sent { server, at, breaker }) => {
                let (waited, took) = (ms(self.asked, *at), ms(*at, self.ended));
                write!(out, ": {server}, waited {waited}, took {took}: {}", self.what)?;
                if let Some(breaker) = breaker {
                    write!(out, ", breaker {}", breaker.name())?;
                }
            }
            None => write!(out, ": no connection, waited {}: {}", ms(self.asked, self.ended), self.what)?,
        }
        match self.verdict {
            None => writeln!(out, "; a copy"),
            Some(Verdict::Retry { at, transparent }) => {
                let how = if transparent { "sent again" } else { "retry" };
                writeln!(out, "; {how} at {}", ms(began, at))
            }
            Some(Verdict::GiveUp(why)) => writeln!(out, "; no retry: {}", why.name()),
        }
    }
}
