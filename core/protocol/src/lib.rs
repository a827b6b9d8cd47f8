//! The Valkyrie wire protocol, version 1, as a state machine: bytes and time in, bytes and events out.
//!
//! It decides which bytes mean what and what must happen next. It deliberately never touches a socket, a clock, a
//! thread or a random source: [`Time`] is handed in, `handle_*` takes what arrived, `poll_*` says what to do.
//! `PROTOCOL.md` in the repository's root is normative; comments here cite its sections.
#![forbid(unsafe_code)]

mod connection;
mod error;
mod grease;
mod header;
mod limits;
mod metadata;
mod queue;
mod record;
mod status;
mod stream;
mod time;
mod transmit;

// The public interface is:
pub use connection::{
    Config, Connection, ConnectionState, Event, Finish, Keepalive, Opened, Role, Secret, SendError,
    StreamAction,
};
pub use error::{ConnectionError, ErrorCode};
pub use header::{
    FLAG_END, FLAG_MESSAGE, FLAG_MORE, FrameHeader, FrameType, HEADER_LEN, MAGIC, OPTIONAL_TYPE, VERSION,
};
pub use limits::{INITIAL, Limits};
pub use metadata::{Metadata, MetadataError, MetadataValue};
pub use record::{
    AUTH_FOLLOWS, Auth, Authenticated, Call, Extension, GoAway, Head, Hello, OPTIONAL_ID, Ping, RecordError,
    Reset, StatusRecord, Window,
};
pub use status::{Class, Code, Detail, Reason, Status};
pub use stream::{Priority, StreamKey};
pub use time::Time;
pub use transmit::TransmitBuffer;
