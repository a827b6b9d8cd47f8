//! The server that every language's runner calls, and the runner in Rust. What must happen is data: `cases.json`;
//! what each action and method means is in `README.md`.
#![forbid(unsafe_code)]

pub mod records;
mod runner;
mod server;
mod websocket;

pub use runner::{Outcome, Settings, run};
pub use server::{Absent, absent_udp, access_table, identity, issuer, methods, private_server, versions};
pub use websocket::websocket_to;
