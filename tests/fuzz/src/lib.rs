//! What the fuzz targets share: an allocator that counts, input as bytes of a wire, and an auditor of a connection.
//!
//! Each target is one file in `targets/` that begins with what it promises. `cargo xtask fuzz` builds and runs them.

mod allocator;
mod auditor;
mod wire;

pub use allocator::{Usage, count, measure};
pub use auditor::Auditor;
pub use wire::{Wire, bytes, hello, parse_frames, until_hello};
