//! What must not break Valkyrie, as scripts and as a link that misbehaves: evil peers over real sockets, a fault proxy,
//! and what is measured beside them. README.md has the table of faults. It is no part of what ships.
#![forbid(unsafe_code)]

pub mod evil;
pub mod frame;
pub mod proxy;
pub mod quic;
pub mod script;
pub mod target;

use std::sync::LazyLock;

/// Where a test's chances come from: `VALKYRIE_SEED`, or a number that is printed.
pub fn seed() -> u64 {
    static SEED: LazyLock<u64> = LazyLock::new(|| {
        let seed = std::env::var("VALKYRIE_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
        println!("VALKYRIE_SEED={seed}");
        seed
    });
    *SEED
}
