//! What must not break Valkyrie, as scripts and as a link that misbehaves: evil peers over real sockets, a fault proxy,
//! and what is measured beside them. README.md has the table of faults. It is no part of what ships.
#![forbid(unsafe_code)]

pub mod evil;
pub mod frame;
pub mod proxy;
pub mod quic;
pub mod script;
pub mod target;
