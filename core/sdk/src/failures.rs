//! Connections that failed before they stood: counted by reason, and told to whoever logs, each address once in a minute.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::IpAddr,
    sync::Mutex,
    time::Duration,
};

use valkyrie_protocol::{Reason, Status, Time};

use crate::{
    Level, Record,
    connection::{lock, status_in},
    guard::address,
    log::Logger,
};

/// See the module.
#[derive(Default)]
pub(crate) struct Failures {
    log: Logger,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// The reasons are ours, and so few.
    counts: BTreeMap<Reason, u64>,
    /// Whom a record named in the last minute. What has no address is one peer.
    told: HashMap<Option<IpAddr>, Told>,
    /// Not logged, for there are more addresses than are kept.
    others: u64,
}

struct Told {
    at: Time,
    /// Not logged since.
    left_out: u64,
}

impl Failures {
    pub(crate) fn new(log: Logger) -> Self {
        Self { log, ..Self::default() }
    }

    /// How often which reason came, the lowest number first.
    pub(crate) fn counts(&self) -> Vec<(Reason, u64)> {
        lock(&self.seen).counts.iter().map(|(reason, count)| (*reason, *count)).collect()
    }

    /// Counts it, and logs it if it is `peer`'s first in a minute.
    pub(crate) fn note(&self, peer: &str, status: &Status, now: Time) {
        let log = self.log.wants(Level::Warn);
        let left_out = {
            let mut seen = lock(&self.seen);
            *seen.counts.entry(status.reason()).or_default() += 1;
            log.and_then(|_| seen.tell(address(peer), now))
        };
        if let (Some(log), Some(left_out)) = (log, left_out) {
            let record = Record::new(Level::Warn, "valkyrie.server", printable(status.message()));
            let record = record.with("peer", peer).with("reason", status.reason().name());
            log.log(record.with("left_out", &left_out.to_string()));
        }
    }

    /// As [`Failures::note`], of what a transport says.
    pub(crate) fn note_error(&self, peer: &str, error: &io::Error, now: Time) {
        let status = match status_in(error) {
            Some(status) => status.clone(),
            None => {
                let reason = match error.kind() {
                    io::ErrorKind::InvalidData => Reason::BAD_MAGIC,
                    io::ErrorKind::TimedOut => Reason::CONNECT_TIMEOUT,
                    _ => Reason::CONNECTION_LOST,
                };
                Status::from_reason(reason, error.to_string())
            }
        };
        self.note(peer, &status, now);
    }
}

impl Seen {
    /// Addresses that are kept, about 64 bytes each. While there are more in a minute, the others are counted only.
    const MOST: usize = 1_024;
    /// How long a record speaks for its address.
    const AGAIN: Duration = Duration::from_secs(60);

    /// Whether the address has a record now, and how many it stands for that had none.
    fn tell(&mut self, address: Option<IpAddr>, now: Time) -> Option<u64> {
        let Self { told, others, .. } = self;
        if let Some(told) = told.get_mut(&address) {
            if now.since(told.at) < Self::AGAIN {
                told.left_out += 1;
                return None;
            }
            told.at = now;
            return Some(std::mem::take(&mut told.left_out));
        }
        if told.len() >= Self::MOST {
            told.retain(|_, told| {
                let stays = now.since(told.at) < Self::AGAIN;
                *others += if stays { 0 } else { told.left_out };
                stays
            });
            if told.len() >= Self::MOST {
                *others += 1;
                return None;
            }
        }
        told.insert(address, Told { at: now, left_out: 0 });
        Some(std::mem::take(others))
    }
}

/// A stranger may have written parts of it.
fn printable(text: &str) -> String {
    const MOST: usize = 300;
    let mut safe = String::new();
    for char in text.chars().take(MOST) {
        match char {
            ' '..='~' => safe.push(char),
            other => safe.extend(other.escape_default()),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{Log, Records};

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Records>>);

    impl Log for Kept {
        fn enabled(&self, level: Level) -> bool {
            level <= Level::Warn
        }

        fn log(&self, record: Record) {
            lock(&self.0).push(record);
        }
    }

    impl Kept {
        fn failures(&self) -> Failures {
            Failures::new(Logger(Some(Arc::new(self.clone()))))
        }

        fn take(&self) -> Vec<Record> {
            lock(&self.0).take(usize::MAX)
        }
    }

    fn at(ms: u64) -> Time {
        Time::from_micros(ms * 1_000)
    }

    fn status(message: &str) -> Status {
        Status::from_reason(Reason::TLS_FAILED, message.to_owned())
    }

    #[test]
    fn each_address_has_one_record_in_a_minute() {
        let kept = Kept::default();
        let failures = kept.failures();
        for ms in [0, 1, 59_999, 60_000, 119_999] {
            failures.note("tls://192.0.2.1:5", &status("no"), at(ms));
            failures.note("tls://192.0.2.2:5", &status("no"), at(ms));
        }
        let records = kept.take();
        let told: Vec<_> =
            records.iter().map(|record| (record.fields[0].1.as_str(), record.fields[2].1.as_str())).collect();
        let (one, two) = ("tls://192.0.2.1:5", "tls://192.0.2.2:5");
        assert_eq!(told, [(one, "0"), (two, "0"), (one, "2"), (two, "2")]);
        assert_eq!(failures.counts(), [(Reason::TLS_FAILED, 10)]);
    }

    /// Every address of a botnet fails twice in each of three minutes: what is kept does not grow, and nothing is lost.
    #[test]
    fn the_addresses_are_bounded_and_what_is_left_out_is_said() {
        let kept = Kept::default();
        let failures = kept.failures();
        let mut said = 0;
        for minute in 0..3 {
            for number in 0..10_000u32 {
                let peer = format!("tcp://{}:1", IpAddr::from(number.to_be_bytes()));
                failures.note(&peer, &status("no"), at(minute * 60_000));
                failures.note(&peer, &status("no"), at(minute * 60_000));
            }
            let records = kept.take();
            assert_eq!(records.len(), Seen::MOST, "{minute}");
            said += records.len() as u64;
            said += records.iter().map(|record| record.fields[2].1.parse::<u64>().unwrap()).sum::<u64>();
            assert_eq!(lock(&failures.seen).told.len(), Seen::MOST);
        }
        let seen = lock(&failures.seen);
        let unsaid = seen.others + seen.told.values().map(|told| told.left_out).sum::<u64>();
        assert_eq!((said + unsaid, seen.counts[&Reason::TLS_FAILED]), (60_000, 60_000));
    }

    #[test]
    fn what_a_stranger_wrote_is_escaped_and_cut() {
        let kept = Kept::default();
        kept.failures().note("unix:", &status("a\u{1b}[31m\n\u{202e}\"é"), at(0));
        kept.failures().note("unix:", &status(&"\0".repeat(100_000)), at(0));
        let records = kept.take();
        assert_eq!(records[0].message, r#"a\u{1b}[31m\n\u{202e}"\u{e9}"#);
        assert_eq!(records[1].message.len(), 300 * r"\u{0}".len());
    }

    #[test]
    fn nobody_who_listens_costs_no_memory() {
        let failures = Failures::default();
        failures.note("tls://192.0.2.1:5", &status("no"), at(0));
        assert_eq!((failures.counts().len(), lock(&failures.seen).told.len()), (1, 0));
    }
}
