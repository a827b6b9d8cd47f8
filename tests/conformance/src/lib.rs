//! The server that every language's runner calls, and the runner in Rust. What must happen is data: `cases.json`;
//! what each action and method means is in `README.md`.
#![forbid(unsafe_code)]

pub mod records;
mod runner;
mod server;

pub use runner::{Outcome, Settings, run};
pub use server::{Absent, absent_udp, identity, issuer, methods, private_server, versions};
