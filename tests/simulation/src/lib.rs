//! The protocol in a simulated network: virtual time, many clients and servers, seeded faults, and an auditor that
//! looks at every step.
//!
//! A run is a function of its seed: 120 simulated seconds of which the first 95 have faults. Then everything is healed,
//! what runs has ten seconds, probes must succeed, and at last nothing may be left. The same seed gives the same log,
//! which is compared by its hash. The simulation deliberately knows only `valkyrie-protocol`: its applications, drivers
//! and kernels are its own. A link carries ordered bytes, or datagrams with a channel for each call.
#![forbid(unsafe_code)]

mod apps;
mod auditor;
mod channels;
mod datagrams;
mod faults;
mod log;
mod network;
mod plan;
mod random;
mod report;
mod world;

// The public interface is:
pub use auditor::Violation;
pub use datagrams::Packets;
pub use faults::Fault;
pub use report::{Report, Summary};

/// Simulated seconds of one run.
pub const RUN_SECONDS: u64 = 120;

/// Lives one run. With `print`, every entry of the log goes to standard output.
pub fn run(seed: u64, mutation: Option<Mutation>, print: bool) -> Report {
    world::World::new(seed, mutation, print).run()
}

/// A mistake that is made on purpose, in the network, a driver or an application, so that a test can see the auditor
/// notice it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// A link exchanges two pieces of a stream.
    SwapsReads,
    /// A link brings a piece twice.
    RepeatsReads,
    /// A carrier of datagrams hands on what it got before.
    RepeatsPackets,
    /// A carrier of datagrams does not wait for what is missing.
    SkipsGaps,
    /// A driver does not mind changed bits.
    OverlooksFlips,
    /// A client's driver lets no time pass.
    ForgetsTimers,
    /// A partition is never healed.
    StaysBlocked,
    /// A caller is told the end twice.
    EndsTwice,
    /// A caller is never told the end.
    NeverEnds,
    /// A caller gives up and does not tell the protocol.
    LeaksStream,
    /// A caller repeats what a server may have seen.
    RepeatsProcessed,
    /// A caller takes messages and returns no credit.
    KeepsCredit,
    /// A caller returns more credit than it got bytes.
    DoublesCredit,
    /// A caller misses a message.
    DropsMessage,
    /// A caller gets a message twice.
    DoublesMessage,
    /// A caller gets another call's message.
    MixesMessages,
    /// A server runs a handler twice.
    ExecutesTwice,
    /// A handler sends its last message twice.
    AnswersTwice,
    /// A handler answers with another call's nonce.
    EchoesAnother,
    /// A handler ends and keeps its permit.
    LeaksPermit,
    /// A server's driver takes its client at once, and looks at the credentials later.
    TrustsAnyone,
}
