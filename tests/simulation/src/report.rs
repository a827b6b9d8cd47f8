//! What a run tells, and the sum over many runs.

use std::{collections::BTreeMap, fmt, time::Duration};

use valkyrie_protocol::Code;

use crate::{Fault, Packets, RUN_SECONDS, Violation, log::chain};

/// What one run tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The seed that decides everything.
    pub seed: u64,
    /// The hash of the whole log, and its entries.
    pub hash: u64,
    /// Entries of the log.
    pub entries: u64,
    /// Events that were handled, each of which the auditor looked at.
    pub steps: u64,
    /// Calls that were made.
    pub calls: u64,
    /// How they ended, by the number of the status code.
    pub codes: [u64; 17],
    /// Calls whose caller crashed.
    pub lost: u64,
    /// Calls that were made anew, since no server had seen them.
    pub repeats: u64,
    /// Handlers that ran.
    pub executions: u64,
    /// Messages that were taken for sending.
    pub messages: u64,
    /// Frames and bytes that were sent.
    pub frames: u64,
    /// Bytes that were sent.
    pub bytes: u64,
    /// Connections that were made.
    pub connections: u64,
    /// Those of them that were of datagrams.
    pub datagram_connections: u64,
    /// Packets of datagram carriers.
    pub packets: Packets,
    /// Credentials that clients sent.
    pub authentications: u64,
    /// Faults, in the order of [`Fault::ALL`].
    pub faults: [u64; Fault::ALL.len()],
    /// What was wrong, and the last entries of the log before it.
    pub violation: Option<(Violation, String)>,
}

impl Report {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            seed,
            hash: 0,
            entries: 0,
            steps: 0,
            calls: 0,
            codes: [0; 17],
            lost: 0,
            repeats: 0,
            executions: 0,
            messages: 0,
            frames: 0,
            bytes: 0,
            connections: 0,
            datagram_connections: 0,
            authentications: 0,
            packets: Packets::default(),
            faults: [0; Fault::ALL.len()],
            violation: None,
        }
    }

    pub(crate) fn survived(&mut self, fault: Fault) {
        self.faults[fault as usize] += 1;
    }

    pub(crate) fn ended(&mut self, code: Code) {
        self.codes[code.number().min(16) as usize] += 1;
    }

    /// The one command that does the same again and prints every entry of the log.
    pub fn replay(&self) -> String {
        format!("cargo xtask simulate --seed {} --log", self.seed)
    }
}

/// The sum over the runs of seeds that follow each other. Runs are added in the order of their seeds, so that the hash
/// does not depend on how many ran at a time.
#[derive(Clone, Debug)]
pub struct Summary {
    first: u64,
    runs: u64,
    hash: u64,
    total: Report,
}

impl Summary {
    /// Nothing yet; the first run will be that of seed `first`.
    pub fn new(first: u64) -> Self {
        Self { first, runs: 0, hash: 0, total: Report::new(first) }
    }

    /// Adds the next run.
    pub fn add(&mut self, run: &Report) {
        let total = &mut self.total;
        self.runs += 1;
        self.hash = chain(chain(self.hash, run.seed), run.hash);
        total.entries += run.entries;
        total.steps += run.steps;
        total.calls += run.calls;
        total.lost += run.lost;
        total.repeats += run.repeats;
        total.executions += run.executions;
        total.messages += run.messages;
        total.frames += run.frames;
        total.bytes += run.bytes;
        total.connections += run.connections;
        total.datagram_connections += run.datagram_connections;
        total.authentications += run.authentications;
        total.packets += run.packets;
        for (sum, count) in total.codes.iter_mut().zip(run.codes) {
            *sum += count;
        }
        for (sum, count) in total.faults.iter_mut().zip(run.faults) {
            *sum += count;
        }
    }

    /// Simulated seconds so far.
    pub fn seconds(&self) -> u64 {
        self.runs * RUN_SECONDS
    }

    /// Calls so far.
    pub fn calls(&self) -> u64 {
        self.total.calls
    }

    /// Faults so far.
    pub fn faults(&self) -> u64 {
        self.total.faults.iter().sum()
    }

    /// The hash of the logs so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// The whole, as lines that can be pasted. `spent` and `jobs` are for the figures of speed only.
    pub fn print(&self, violations: usize, spent: Duration, jobs: usize) -> String {
        let Report { entries, steps, calls, codes, lost, repeats, executions, .. } = &self.total;
        let Report { messages, frames, bytes, connections, faults, .. } = &self.total;
        let Report { datagram_connections, authentications, packets, .. } = &self.total;
        let Packets { sent, lost: losses, doubled, overtaken } = packets;
        let ends: BTreeMap<usize, u64> = codes.iter().copied().enumerate().filter(|(_, n)| *n > 0).collect();
        let ends = ends.iter().map(|(code, n)| format!("{} {n}", Code::from_number(*code as u32).name()));
        let kinds = Fault::ALL.iter().zip(faults).map(|(fault, n)| format!("{fault:?} {n}"));
        let per_second = self.seconds() as f64 / spent.as_secs_f64();
        let lines = [
            ("seeds", format!("{} to {}", self.first, self.first + self.runs.max(1) - 1)),
            ("simulated", format!("{} s in {} runs of {RUN_SECONDS} s", self.seconds(), self.runs)),
            (
                "speed",
                format!(
                    "{per_second:.0} simulated s per s, {:.0} per job of {jobs}, {:.1} s in all",
                    per_second / jobs as f64,
                    spent.as_secs_f64()
                ),
            ),
            ("calls", format!("{calls}: {}, caller crashed {lost}", ends.collect::<Vec<_>>().join(", "))),
            ("handlers", format!("{executions} ran; {repeats} calls were repeated unseen")),
            (
                "wire",
                format!(
                    "{messages} messages, {frames} frames, {bytes} bytes, {connections} connections, {authentications} AUTH"
                ),
            ),
            (
                "datagrams",
                format!(
                    "{datagram_connections} connections, {sent} packets, {losses} losses, {doubled} doubled, {overtaken} overtaken"
                ),
            ),
            ("faults", format!("{}: {}", self.faults(), kinds.collect::<Vec<_>>().join(", "))),
            ("audited", format!("{steps} steps, {entries} entries of the log")),
            ("violations", violations.to_string()),
            ("hash", format!("{:016x}", self.hash)),
        ];
        lines.map(|(name, value)| format!("{name:<10}  {value}\n")).concat()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.violation {
            Some((Violation { invariant, what }, last)) => {
                write!(
                    f,
                    "{last}seed {}: {invariant} is violated: {what}\nreplay: {}",
                    self.seed,
                    self.replay()
                )
            }
            None => write!(f, "seed {}: {} calls, hash {:016x}", self.seed, self.calls, self.hash),
        }
    }
}
