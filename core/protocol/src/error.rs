//! The error codes of RESET and GOAWAY, and the error that ends a connection.

use std::{borrow::Cow, fmt};

use crate::{Reason, Status};

/// Why a stream was reset or a connection ended, as the u16 on the wire. Unknown numbers keep their value.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ErrorCode(u16);

macro_rules! error_codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal => $reason:ident;)*) => {
        impl ErrorCode {
            $($(#[$doc])* pub const $name: ErrorCode = ErrorCode($number);)*
            /// Every named code, in the order of the numbers.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode($number)),*];

            /// The code's name: `FLOW_CONTROL`. `UNKNOWN` for a number without a name.
            pub const fn name(self) -> &'static str {
                match self.0 { $($number => stringify!($name),)* _ => "UNKNOWN" }
            }

            /// The one mapping from an error code to the reason of a status.
            pub const fn reason(self) -> Reason {
                match self.0 { $($number => Reason::$reason,)* _ => Reason::PROTOCOL_VIOLATION }
            }
        }
    };
}

error_codes! {
    /// No error: a graceful end. A call it cuts off was not processed.
    NO_ERROR = 0 => GOING_AWAY;
    /// A rule of the protocol is broken.
    PROTOCOL = 1 => PROTOCOL_VIOLATION;
    /// The sender's own fault.
    INTERNAL = 2 => INTERNAL;
    /// More message bytes than the window allows, or a window beyond its maximum.
    FLOW_CONTROL = 3 => FLOW_CONTROL;
    /// A frame over the limit.
    FRAME_SIZE = 4 => FRAME_TOO_LARGE;
    /// A checksum does not match.
    CHECKSUM = 5 => PAYLOAD_CHECKSUM;
    /// No shared version; the extension says which ones are.
    VERSION = 6 => VERSION_MISMATCH;
    /// An unknown frame type without the optional bit.
    UNKNOWN_FRAME = 7 => UNKNOWN_FRAME;
    /// An unknown setting without the optional bit, or one out of range.
    SETTING = 8 => INVALID_SETTING;
    /// The handshake or a frame took too long.
    TIMEOUT = 9 => HANDSHAKE_TIMEOUT;
    /// The stream was refused before any work; safe to repeat.
    REFUSED = 10 => STREAM_REFUSED;
    /// The caller gave up.
    CANCEL = 11 => CANCELLED;
    /// The deadline passed.
    DEADLINE = 12 => DEADLINE_EXCEEDED;
    /// A frame for a stream whose sender had already ended it.
    STREAM_CLOSED = 13 => STREAM_STATE;
    /// A message over the receiver's maximum.
    MESSAGE_SIZE = 14 => MESSAGE_TOO_LARGE;
    /// A control record that cannot be decoded or holds illegal text.
    RECORD = 15 => MALFORMED_RECORD;
    /// The peer must do less.
    ENHANCE_CALM = 16 => ENHANCE_CALM;
    /// A stream id that is reused, falling or of the wrong parity.
    STREAM_ID = 17 => STREAM_ID;
    /// The first bytes are not Valkyrie's.
    MAGIC = 18 => BAD_MAGIC;
    /// The credentials of the connection were refused, or have expired.
    UNAUTHENTICATED = 19 => CREDENTIALS_REFUSED;
    /// What came is not encrypted, and must be.
    TLS_REQUIRED = 20 => TLS_REQUIRED;
}

impl ErrorCode {
    /// The code with that number, named or not.
    pub const fn from_number(number: u16) -> Self {
        Self(number)
    }

    /// The number on the wire.
    pub const fn number(self) -> u16 {
        self.0
    }
}

impl fmt::Debug for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.name(), self.0)
    }
}

/// Why a connection ended. After one, the connection only transmits its GOAWAY and then nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionError {
    /// The code that the peer is told, or that the peer told.
    pub code: ErrorCode,
    /// The fine reason for the callers of this side.
    pub reason: Reason,
    /// A sentence for people.
    pub message: Cow<'static, str>,
}

impl ConnectionError {
    pub(crate) fn new(code: ErrorCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, reason: code.reason(), message: message.into() }
    }

    pub(crate) fn with_reason(mut self, reason: Reason) -> Self {
        self.reason = reason;
        self
    }

    /// The status of each call that the error cuts off.
    pub fn status(&self) -> Status {
        Status::from_reason(self.reason, self.message.clone())
    }
}

impl fmt::Display for ConnectionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.name(), self.message)
    }
}

impl std::error::Error for ConnectionError {}
