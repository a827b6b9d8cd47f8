//! The outcome of a call: gRPC's seventeen codes, a stable reason above them, a message and details.

use std::{borrow::Cow, fmt, time::Duration};

use bytes::Bytes;

use crate::{ErrorCode, Metadata, MetadataError};

/// A status code: gRPC's names and numbers (<https://grpc.io/docs/guides/status-codes/>). A number that has no name
/// here keeps its value and reads as `UNKNOWN`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Code(u32);

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal;)*) => {
        #[allow(non_upper_case_globals, reason = "read as variants: Code::DeadlineExceeded")]
        impl Code {
            $($(#[$doc])* pub const $name: Code = Code($number);)*
            /// Every named code, in the order of the numbers.
            pub const ALL: &'static [Code] = &[$(Code($number)),*];

            /// The code's name as it is written everywhere: `DEADLINE_EXCEEDED`. `UNKNOWN` for a number without a name.
            pub const fn name(self) -> &'static str {
                match self.0 { $($number => $text,)* _ => "UNKNOWN" }
            }

            /// The code of that name, `None` when there is none.
            pub fn from_name(name: &str) -> Option<Code> {
                match name { $($text => Some(Code($number)),)* _ => None }
            }
        }
    };
}

codes! {
    /// The call succeeded.
    Ok = 0, "OK";
    /// The caller gave up.
    Cancelled = 1, "CANCELLED";
    /// An error without a better code, or a code whose number is not known here.
    Unknown = 2, "UNKNOWN";
    /// The caller sent something that can never be right.
    InvalidArgument = 3, "INVALID_ARGUMENT";
    /// The deadline passed before the call ended.
    DeadlineExceeded = 4, "DEADLINE_EXCEEDED";
    /// The thing asked for does not exist.
    NotFound = 5, "NOT_FOUND";
    /// The thing to create exists.
    AlreadyExists = 6, "ALREADY_EXISTS";
    /// The caller is known and may not do this.
    PermissionDenied = 7, "PERMISSION_DENIED";
    /// A limit or a quota is used up.
    ResourceExhausted = 8, "RESOURCE_EXHAUSTED";
    /// The system is not in the state that the call needs.
    FailedPrecondition = 9, "FAILED_PRECONDITION";
    /// A conflict, such as a lost race; try the whole again.
    Aborted = 10, "ABORTED";
    /// Past the valid range.
    OutOfRange = 11, "OUT_OF_RANGE";
    /// The server has no such method.
    Unimplemented = 12, "UNIMPLEMENTED";
    /// Something that must hold does not: a bug or a broken peer.
    Internal = 13, "INTERNAL";
    /// The service cannot be reached now; a retry may help.
    Unavailable = 14, "UNAVAILABLE";
    /// Data is lost or corrupt.
    DataLoss = 15, "DATA_LOSS";
    /// The caller did not prove who it is.
    Unauthenticated = 16, "UNAUTHENTICATED";
}

impl Code {
    /// The code with that number, named or not.
    pub const fn from_number(number: u32) -> Code {
        Code(number)
    }

    /// The number on the wire.
    pub const fn number(self) -> u32 {
        self.0
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.name(), self.0)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whose fault an error is, which answers what to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// The application said so, with a code of its own and no reason of ours.
    Application,
    /// The caller's: change the call.
    Caller,
    /// Credentials: get others.
    Auth,
    /// Nobody's for long: trying again may help.
    Transient,
    /// The server's: report it there.
    Server,
    /// One of the two peers broke the protocol, or something between them broke the bytes.
    Protocol,
}

impl Class {
    /// The class in lower case, as logs and metrics write it.
    pub const fn name(self) -> &'static str {
        match self {
            Class::Application => "application",
            Class::Caller => "caller",
            Class::Auth => "auth",
            Class::Transient => "transient",
            Class::Server => "server",
            Class::Protocol => "protocol",
        }
    }
}

/// A stable error reason, finer than [`Code`]. The hundreds give the [`Class`]; numbers are never reused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Reason(u16);

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $number:literal => $code:ident;)*) => {
        impl Reason {
            $($(#[$doc])* pub const $name: Reason = Reason($number);)*
            /// Every named reason, in the order of the numbers.
            pub const ALL: &'static [Reason] = &[$(Reason($number)),*];

            /// The reason's name: `CONNECTION_LOST`. `UNKNOWN` for a number without a name.
            pub const fn name(self) -> &'static str {
                match self.0 { $($number => stringify!($name),)* _ => "UNKNOWN" }
            }

            /// The status code that goes with the reason.
            pub const fn code(self) -> Code {
                match self.0 { $($number => Code::$code,)* _ => Code::Unknown }
            }
        }
    };
}

reasons! {
    /// No reason of the library's: the application's own status.
    NONE = 0 => Unknown;
    /// An argument of the call is not valid.
    INVALID_ARGUMENT = 100 => InvalidArgument;
    /// The endpoint cannot be parsed.
    INVALID_ENDPOINT = 101 => InvalidArgument;
    /// No transport is registered for the endpoint's scheme.
    UNSUPPORTED_SCHEME = 102 => InvalidArgument;
    /// The method is empty, does not begin with `/`, or is too long.
    INVALID_METHOD = 103 => InvalidArgument;
    /// A metadata key or value is not legal.
    INVALID_METADATA = 104 => InvalidArgument;
    /// A message is larger than the maximum message.
    MESSAGE_TOO_LARGE = 105 => ResourceExhausted;
    /// Metadata is larger than the maximum metadata.
    METADATA_TOO_LARGE = 106 => ResourceExhausted;
    /// The caller cancelled.
    CANCELLED = 107 => Cancelled;
    /// The deadline passed.
    DEADLINE_EXCEEDED = 108 => DeadlineExceeded;
    /// The client is closed.
    CLIENT_CLOSED = 109 => Cancelled;
    /// A message was sent after half-close, or twice where one is allowed.
    STREAM_MISUSE = 110 => FailedPrecondition;
    /// A builder or configuration value is not valid.
    INVALID_CONFIGURATION = 111 => InvalidArgument;
    /// The server has no handler for the method.
    UNKNOWN_METHOD = 112 => Unimplemented;
    /// The local address cannot be bound.
    BIND_FAILED = 113 => FailedPrecondition;

    /// Nobody may do this without credentials.
    UNAUTHENTICATED = 200 => Unauthenticated;
    /// The caller is known, and may not do this.
    PERMISSION_DENIED = 201 => PermissionDenied;
    /// The server refused the credentials of the connection. It never says why.
    CREDENTIALS_REFUSED = 202 => Unauthenticated;
    /// The credentials of the connection expired before newer ones came.
    CREDENTIALS_EXPIRED = 203 => Unauthenticated;
    /// The client's own source of tokens gave none.
    CREDENTIALS_UNAVAILABLE = 204 => Unauthenticated;
    /// The token would travel unencrypted.
    INSECURE_CREDENTIALS = 205 => FailedPrecondition;
    /// The peer's certificate ends in no authority that is trusted.
    CERTIFICATE_UNTRUSTED = 210 => Unauthenticated;
    /// The peer's certificate has expired.
    CERTIFICATE_EXPIRED = 211 => Unauthenticated;
    /// The peer's certificate is not valid yet.
    CERTIFICATE_NOT_YET_VALID = 212 => Unauthenticated;
    /// The server's certificate is for another name.
    CERTIFICATE_NAME = 213 => Unauthenticated;
    /// The peer's certificate is for another usage.
    CERTIFICATE_USAGE = 214 => Unauthenticated;
    /// The peer's certificate was revoked.
    CERTIFICATE_REVOKED = 215 => Unauthenticated;
    /// The peer's certificate cannot be used: its encoding, signature, algorithm or extensions.
    CERTIFICATE_INVALID = 216 => Unauthenticated;
    /// The server asks for a client certificate, and none was shown.
    CLIENT_CERTIFICATE_REQUIRED = 217 => Unauthenticated;
    /// The server refused the client's certificate.
    CLIENT_CERTIFICATE_REFUSED = 218 => Unauthenticated;
    /// The server's port speaks TLS, or takes only sealed sessions.
    TLS_REQUIRED = 219 => FailedPrecondition;
    /// The server's port does not speak TLS.
    TLS_NOT_SPOKEN = 220 => FailedPrecondition;
    /// The peer does not speak TLS 1.3.
    TLS_VERSION = 221 => FailedPrecondition;
    /// The peer speaks TLS, but not Valkyrie over it.
    ALPN_MISMATCH = 222 => FailedPrecondition;
    /// TLS failed in another way.
    TLS_FAILED = 223 => Unauthenticated;
    /// The endpoint is less secure than the client's own policy asks for.
    SECURITY_TOO_LOW = 224 => FailedPrecondition;
    /// Encrypted bytes are not what the peer sent.
    RECORD_AUTHENTICATION = 225 => DataLoss;

    /// Nothing listens at the address, or it cannot be reached.
    CONNECT_FAILED = 300 => Unavailable;
    /// The connection was not made within the connect timeout.
    CONNECT_TIMEOUT = 301 => Unavailable;
    /// The endpoint's name has no address.
    NAME_RESOLUTION = 302 => Unavailable;
    /// The connection ended while the call ran.
    CONNECTION_LOST = 303 => Unavailable;
    /// The server is going away and did not process the call.
    GOING_AWAY = 304 => Unavailable;
    /// The server refused the stream before it did any work.
    STREAM_REFUSED = 305 => Unavailable;
    /// Too many calls wait for a stream on this client.
    QUEUE_FULL = 306 => ResourceExhausted;
    /// The peer asks for calm: too many resets or control frames.
    ENHANCE_CALM = 307 => ResourceExhausted;
    /// The process forked while the call ran; the call goes on in the parent.
    FORKED = 308 => Unavailable;
    /// The caller calls more often than it may; the status says how long to wait.
    RATE_LIMITED = 309 => ResourceExhausted;
    /// The client's circuit breaker lets no call to the server pass now.
    BREAKER_OPEN = 310 => Unavailable;
    /// The client holds calls back, since its servers refuse too many.
    THROTTLED = 311 => Unavailable;
    /// The server has more calls than it can handle in time; no handler saw the call, and the status says when to come back.
    OVERLOADED = 312 => ResourceExhausted;

    /// The handler panicked.
    HANDLER_PANICKED = 400 => Internal;
    /// A unary call ended with OK and without a message.
    MISSING_MESSAGE = 401 => Internal;
    /// The library broke one of its own rules.
    INTERNAL = 402 => Internal;
    /// The operation was dropped without an outcome.
    ABANDONED = 403 => Internal;
    /// The call may have been run before, and the server does not know its idempotency key any more: it is not run again.
    KEY_FORGOTTEN = 404 => FailedPrecondition;

    /// The bytes are not Valkyrie's: wrong magic.
    BAD_MAGIC = 500 => Internal;
    /// The two peers share no protocol version.
    VERSION_MISMATCH = 501 => Unimplemented;
    /// A frame header does not match its checksum.
    HEADER_CHECKSUM = 502 => DataLoss;
    /// A frame's body does not match its checksum.
    PAYLOAD_CHECKSUM = 503 => DataLoss;
    /// A frame is larger than the negotiated limit.
    FRAME_TOO_LARGE = 504 => Internal;
    /// A frame type that is not known and not optional.
    UNKNOWN_FRAME = 505 => Internal;
    /// A control record cannot be decoded.
    MALFORMED_RECORD = 506 => Internal;
    /// More bytes were sent than the window allows, or a window overflowed.
    FLOW_CONTROL = 507 => Internal;
    /// A frame that the stream's state does not allow.
    STREAM_STATE = 508 => Internal;
    /// The peer did not finish the handshake in time.
    HANDSHAKE_TIMEOUT = 509 => Unavailable;
    /// The connection ended inside a frame.
    TRUNCATED_FRAME = 510 => Unavailable;
    /// A frame did not arrive in full in time.
    FRAME_TIMEOUT = 511 => Unavailable;
    /// A reserved bit is set, or another rule of the protocol is broken.
    PROTOCOL_VIOLATION = 512 => Internal;
    /// A setting that is not known and not optional, or out of its range.
    INVALID_SETTING = 513 => Internal;
    /// A stream id that is reused, falling or of the wrong parity.
    STREAM_ID = 514 => Internal;
}

impl Reason {
    /// The reason with that number, named or not.
    pub const fn from_number(number: u16) -> Reason {
        Reason(number)
    }

    /// The number on the wire.
    pub const fn number(self) -> u16 {
        self.0
    }

    /// Whose fault it is, by the hundreds of the number.
    pub const fn class(self) -> Class {
        match self.0 / 100 {
            0 => Class::Application,
            1 => Class::Caller,
            2 => Class::Auth,
            3 => Class::Transient,
            4 => Class::Server,
            _ => Class::Protocol,
        }
    }
}

impl fmt::Debug for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.name(), self.0)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One typed detail of a status: a type name and its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detail {
    /// Names the type of `value`, such as `example.v1.QuotaFailure`.
    pub type_name: String,
    /// The detail in whatever encoding the type has.
    pub value: Bytes,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Rare {
    details: Vec<Detail>,
    pushback: Option<Duration>,
    metadata: Metadata,
    trailers: Metadata,
    timeline: String,
}

/// The outcome of a call that did not simply succeed: code, reason, message, details.
///
/// Display prints `CODE: message`. It is cheap to clone and 40 bytes or so: rare parts are boxed.
#[derive(Clone, PartialEq, Eq)]
pub struct Status {
    code: Code,
    reason: Reason,
    /// Known on the caller's side only; it does not travel.
    unprocessed: bool,
    message: Cow<'static, str>,
    rare: Option<Box<Rare>>,
}

impl Status {
    /// A status of the application's own: a code and a message, no reason of the library's.
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, reason: Reason::NONE, unprocessed: false, message: message.into(), rare: None }
    }

    /// A status of the library's: the reason gives the code.
    pub fn from_reason(reason: Reason, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code: reason.code(), reason, unprocessed: false, message: message.into(), rare: None }
    }

    /// What went wrong, coarsely.
    pub fn code(&self) -> Code {
        self.code
    }

    /// What went wrong, finely; [`Reason::NONE`] when the application made the status.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// Whose fault it is.
    pub fn class(&self) -> Class {
        self.reason.class()
    }

    /// A sentence for people: lower case, no full stop, the fact and the value.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Typed details, empty for most statuses.
    pub fn details(&self) -> &[Detail] {
        self.rare.as_deref().map_or(&[], |rare| &rare.details)
    }

    /// How long the server asks to wait before another attempt; `Duration::MAX` means never.
    pub fn pushback(&self) -> Option<Duration> {
        self.rare.as_deref().and_then(|rare| rare.pushback)
    }

    /// Metadata that came before the status, when the call had no message to carry it.
    pub fn metadata(&self) -> &Metadata {
        static EMPTY: Metadata = Metadata::new();
        self.rare.as_deref().map_or(&EMPTY, |rare| &rare.metadata)
    }

    /// Trailers that came with the status.
    pub fn trailers(&self) -> &Metadata {
        static EMPTY: Metadata = Metadata::new();
        self.rare.as_deref().map_or(&EMPTY, |rare| &rare.trailers)
    }

    /// What became of the call's attempts, a line for each: the server, how long it waited for a connection and took, its outcome,
    /// the breaker's state, and whether there was another one or why not. Empty where no attempt was made; it does not travel.
    pub fn timeline(&self) -> &str {
        self.rare.as_deref().map_or("", |rare| &rare.timeline)
    }

    /// Whether another attempt may help: the default retryable code is `UNAVAILABLE` alone.
    pub fn is_retryable(&self) -> bool {
        self.code == Code::Unavailable
    }

    /// Whether the call provably did not reach a handler: it never left this side, or the server said so. Repeating it is
    /// safe then, whatever it does (gRFC A6, transparent retries).
    pub fn is_unprocessed(&self) -> bool {
        self.unprocessed
    }

    /// The same status of a call that provably did not reach a handler.
    pub fn as_unprocessed(mut self) -> Self {
        self.unprocessed = true;
        self
    }

    /// The same status with another code; the reason stays.
    pub fn with_code(mut self, code: Code) -> Self {
        self.code = code;
        self
    }

    /// The same status with a reason.
    pub fn with_reason(mut self, reason: Reason) -> Self {
        self.reason = reason;
        self
    }

    /// The same status with one more detail.
    pub fn with_detail(mut self, type_name: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.rare().details.push(Detail { type_name: type_name.into(), value: value.into() });
        self
    }

    /// The same status asking the caller to wait that long, to the millisecond.
    pub fn with_pushback(mut self, wait: Duration) -> Self {
        self.rare().pushback = Some(wait);
        self
    }

    /// The same status with initial metadata.
    pub fn with_metadata(mut self, metadata: Metadata) -> Self {
        if !metadata.is_empty() {
            self.rare().metadata = metadata;
        }
        self
    }

    /// The same status with trailers.
    pub fn with_trailers(mut self, trailers: Metadata) -> Self {
        if !trailers.is_empty() {
            self.rare().trailers = trailers;
        }
        self
    }

    /// The same status with the call's attempts.
    pub fn with_timeline(mut self, timeline: String) -> Self {
        self.rare().timeline = timeline;
        self
    }

    fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    /// The one mapping from an error code of RESET or GOAWAY to a status (PROTOCOL.md, "Error codes").
    pub fn from_error_code(code: ErrorCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self::from_reason(code.reason(), message)
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Status");
        out.field("code", &self.code).field("reason", &self.reason).field("message", &self.message);
        if let Some(rare) = &self.rare {
            out.field("details", &rare.details.len()).field("pushback", &rare.pushback);
        }
        out.finish()
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.message.as_ref() {
            "" => write!(f, "{}", self.code),
            message => write!(f, "{}: {message}", self.code),
        }
    }
}

impl std::error::Error for Status {}

impl From<MetadataError> for Status {
    /// INVALID_METADATA with the error's sentence.
    fn from(error: MetadataError) -> Self {
        Self::from_reason(Reason::INVALID_METADATA, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_grpcs_seventeen_in_order() {
        assert_eq!(Code::ALL.len(), 17);
        for (number, code) in Code::ALL.iter().enumerate() {
            assert_eq!(code.number() as usize, number);
            assert_eq!(Code::from_name(code.name()), Some(*code));
        }
    }

    #[test]
    fn unknown_numbers_keep_their_value_and_read_as_unknown() {
        assert_eq!(Code::from_number(99).number(), 99);
        assert_eq!(Code::from_number(99).name(), "UNKNOWN");
        assert_eq!(Reason::from_number(65_000).number(), 65_000);
    }

    #[test]
    fn reasons_are_many_unique_and_classed() {
        let named = &Reason::ALL[1..];
        assert!(named.len() >= 22, "{} reasons", named.len());
        for pair in Reason::ALL.windows(2) {
            assert!(pair[0] < pair[1]);
        }
        for reason in named {
            assert_ne!(reason.class(), Class::Application, "{reason:?}");
        }
    }
}
