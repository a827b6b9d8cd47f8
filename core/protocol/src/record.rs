//! Control records: what the metadata part of a frame holds, in the bincode 2 standard format (little endian, varint).
//!
//! This module hides the codec. Text and byte fields borrow from the read buffer; nothing is allocated for a record
//! without metadata, details or extensions.

use std::{fmt, time::Duration};

use bytes::{Bytes, BytesMut};
use wincode::{
    SchemaRead, SchemaWrite,
    config::Configuration,
    int_encoding::{LittleEndian, VarInt},
    len::BincodeLen,
};

use crate::{Code, Metadata, MetadataError, Reason, Status};

/// The bit of an extension's or setting's id that allows a receiver to ignore it when unknown.
pub const OPTIONAL_ID: u32 = 1 << 31;
/// The most entries of any list in a record.
const MAX_ENTRIES: usize = 128;
/// Extension of a client's HELLO: AUTH follows, and no call goes before it. What it holds is ignored.
pub const AUTH_FOLLOWS: u32 = OPTIONAL_ID | 1;
/// The longest token in bytes.
pub(crate) const MAX_TOKEN: usize = 8 << 10;
/// The longest method in bytes.
const MAX_METHOD: usize = 512;

type Config = Configuration<true, { 16 << 10 }, BincodeLen, LittleEndian, VarInt, u32, { 64 << 10 }>;
/// bincode 2's standard format, with bounds: no list allocates more than 16 KiB at once, no record is over 64 KiB.
const CONFIG: Config = Configuration::default()
    .with_varint_encoding()
    .with_preallocation_size_limit::<{ 16 << 10 }>()
    .with_deserialization_size_limit::<{ 64 << 10 }>();

/// An extension: what a later version may add to a record. Unknown ones are ignored when [`OPTIONAL_ID`] is set.
pub type Extension<'a> = (u32, &'a [u8]);

/// HELLO: the first frame of each side.
#[derive(Clone, Debug, PartialEq, Eq, SchemaWrite, SchemaRead)]
pub struct Hello<'a> {
    /// Lowest protocol version the sender speaks.
    pub min_version: u8,
    /// Highest protocol version the sender speaks.
    pub max_version: u8,
    /// Feature bits the sender offers; those that both offer are on.
    pub features: u64,
    /// `(id, value)`: what the sender is ready to receive.
    pub settings: Vec<(u32, u64)>,
    /// Room for later versions.
    pub extensions: Vec<Extension<'a>>,
}

/// AUTH: the credentials of a client. Debug does not show them.
#[derive(Clone, PartialEq, Eq, SchemaWrite, SchemaRead)]
pub struct Auth<'a> {
    /// The token, of at most 8,192 bytes.
    pub token: &'a [u8],
    /// Room for later versions.
    pub extensions: Vec<Extension<'a>>,
}

impl fmt::Debug for Auth<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth").field("extensions", &self.extensions).finish_non_exhaustive()
    }
}

/// AUTHENTICATED: the credentials were accepted.
#[derive(Clone, Debug, PartialEq, Eq, SchemaWrite, SchemaRead)]
pub struct Authenticated<'a> {
    /// Milliseconds until they end; 0 is never.
    pub expires_in_ms: u64,
    /// Room for later versions.
    pub extensions: Vec<Extension<'a>>,
}

/// CALL: opens a stream.
#[derive(Clone, Debug, PartialEq, Eq, SchemaWrite, SchemaRead)]
pub struct Call<'a> {
    /// The method's path, such as `/echo`.
    pub method: &'a str,
    /// Microseconds that remain until the deadline; 0 means none.
    pub timeout_us: u64,
    /// Codec of the messages; 0 is bytes as they are.
    pub codec: u16,
    /// Fingerprint of the service definition; 0 is none.
    pub schema: u64,
    /// Call metadata.
    pub metadata: Vec<(&'a str, &'a [u8])>,
    /// Room for later versions.
    pub extensions: Vec<Extension<'a>>,
}

/// HEAD: initial metadata of the answer.
#[derive(Clone, Debug, PartialEq, Eq, SchemaWrite, SchemaRead)]
pub struct Head<'a> {
    /// Initial metadata.
    pub metadata: Vec<(&'a str, &'a [u8])>,
    /// Room for later versions.
    pub extensions: Vec<Extension<'a>>,
}

/// STATUS: the end of an answer.
#[derive(Clone, Debug, PartialEq, Eq, SchemaWrite, SchemaRead)]
pub struct StatusRecord<'a> {
    /// Status code.
    pub code: u32,
    /// Reason, 0 for the application's own.
    pub reason: u16,
    /// A sentence for people.
    pub message: &'a str,
    /// `(type, bytes)` details.
    pub details: Vec<(&'a str, &'a [u8])>,
    /// Milliseconds to wait before another attempt; `u64::MAX` is never.
    pub pushback_ms: Option<u64>,
    /// Initial metadata, when no HEAD was sent.
    pub metadata: Vec<(&'a str, &'a [u8])>,
    /// Trailers.
    pub trailers: Vec<(&'a str, &'a [u8])>,
    /// Room for later versions.
    pub extensions: Vec<Extension<'a>>,
}

/// RESET: ends a stream badly.
#[derive(Clone, Debug, PartialEq, Eq, SchemaWrite, SchemaRead)]
pub struct Reset<'a> {
    /// An [`ErrorCode`](crate::ErrorCode).
    pub code: u16,
    /// Room for later versions.
    pub extensions: Vec<Extension<'a>>,
}

/// WINDOW: raises credit.
#[derive(Clone, Debug, PartialEq, Eq, SchemaWrite, SchemaRead)]
pub struct Window<'a> {
    /// Message bytes that may be sent since the stream or the connection began: an absolute offset.
    pub offset: u64,
    /// Room for later versions.
    pub extensions: Vec<Extension<'a>>,
}

/// PING and PONG.
#[derive(Clone, Debug, PartialEq, Eq, SchemaWrite, SchemaRead)]
pub struct Ping<'a> {
    /// Any number; PONG repeats it.
    pub data: u64,
    /// Room for later versions.
    pub extensions: Vec<Extension<'a>>,
}

/// GOAWAY: no new streams.
#[derive(Clone, Debug, PartialEq, Eq, SchemaWrite, SchemaRead)]
pub struct GoAway<'a> {
    /// The highest stream id of the receiver's that the sender processed or may process. Higher ones were not.
    pub last_stream: u64,
    /// An [`ErrorCode`](crate::ErrorCode).
    pub code: u16,
    /// A sentence for people.
    pub message: &'a str,
    /// Room for later versions; id 1 with VERSION: lowest and highest version, a byte each.
    pub extensions: Vec<Extension<'a>>,
}

/// A record that cannot be decoded, or that holds something illegal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordError(String);

impl RecordError {
    pub(crate) fn new(what: &str) -> Self {
        Self(what.to_owned())
    }
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for RecordError {}

impl From<MetadataError> for RecordError {
    fn from(error: MetadataError) -> Self {
        Self(error.to_string())
    }
}

macro_rules! record {
    ($($name:ident { $($list:ident),* } $(knows $known:literal)?;)*) => {$(
        impl<'a> $name<'a> {
            /// Appends the record to `out`.
            pub fn encode(&self, out: &mut BytesMut) {
                // Sizing and writing cannot fail: every field is in memory and `out` is grown to fit.
                let size = wincode::config::serialized_size(self, CONFIG).unwrap_or(0) as usize;
                let start = out.len();
                out.resize(start + size, 0);
                let mut room = &mut out[start..];
                let written = wincode::config::serialize_into(&mut room, self, CONFIG);
                debug_assert!(written.is_ok() && room.is_empty());
            }

            /// Reads a record that fills `bytes` exactly.
            ///
            /// # Errors
            /// When the bytes are not such a record, a list is too long, or an extension that is not known is not
            /// optional.
            pub fn decode(bytes: &'a [u8]) -> Result<Self, RecordError> {
                let record: Self = wincode::config::deserialize_exact(bytes, CONFIG)
                    .map_err(|error| RecordError(format!("{} record: {error}", stringify!($name))))?;
                $(limit(stringify!($name), stringify!($list), record.$list.len())?;)*
                check_extensions(&record.extensions, &[$($known)?])?;
                Ok(record)
            }
        }
    )*};
}

record! {
    Hello { settings, extensions };
    Auth { extensions };
    Authenticated { extensions };
    Call { metadata, extensions };
    Head { metadata, extensions };
    StatusRecord { details, metadata, trailers, extensions };
    Reset { extensions };
    Window { extensions };
    Ping { extensions };
    // EXTENSION_VERSIONS
    GoAway { extensions } knows 1;
}

fn limit(record: &str, list: &str, len: usize) -> Result<(), RecordError> {
    if len > MAX_ENTRIES {
        return Err(RecordError(format!("{record} record: {len} entries in {list}, at most {MAX_ENTRIES}")));
    }
    Ok(())
}

/// Refuses an extension that is not known here and not optional.
fn check_extensions(extensions: &[Extension<'_>], known: &[u32]) -> Result<(), RecordError> {
    match extensions.iter().find(|(id, _)| id & OPTIONAL_ID == 0 && !known.contains(id)) {
        Some((id, _)) => Err(RecordError(format!("extension {id} is unknown and not optional"))),
        None => Ok(()),
    }
}

/// Checks a method: 1 to 512 characters, beginning with `/`, of printable ASCII without a space.
pub(crate) fn check_method(method: &str) -> Result<(), RecordError> {
    if method.len() > MAX_METHOD
        || !method.starts_with('/')
        || !method.bytes().all(|byte| byte.is_ascii_graphic())
    {
        let shown: String = method.chars().take(64).collect();
        return Err(RecordError(format!(
            "method {shown:?} is not 1 to {MAX_METHOD} printable characters beginning with /"
        )));
    }
    Ok(())
}

/// The entries of a record as metadata whose values share `body`, the bytes that the record was read from.
pub(crate) fn metadata_from(entries: &[(&str, &[u8])], body: &Bytes) -> Result<Metadata, RecordError> {
    // As many as there are, and no room for more: a flood of calls must not hold what nothing fills.
    let mut metadata = Metadata::with_capacity(entries.len());
    for (key, value) in entries {
        metadata.push_checked(body.slice_ref(key.as_bytes()), body.slice_ref(value))?;
    }
    Ok(metadata)
}

/// Metadata as the entries of a record.
pub(crate) fn entries(metadata: &Metadata) -> Vec<(&str, &[u8])> {
    metadata.iter().map(|(key, value)| (key, value.as_ref())).collect()
}

impl<'a> StatusRecord<'a> {
    /// The record of a status.
    pub fn from_status(status: &'a Status) -> Self {
        Self {
            code: status.code().number(),
            reason: status.reason().number(),
            message: status.message(),
            details: status.details().iter().map(|d| (d.type_name.as_str(), d.value.as_ref())).collect(),
            pushback_ms: status.pushback().map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
            metadata: entries(status.metadata()),
            trailers: entries(status.trailers()),
            extensions: Vec::new(),
        }
    }

    /// The status of a record that was read from `body`.
    ///
    /// # Errors
    /// When metadata or trailers hold something illegal.
    pub fn to_status(&self, body: &Bytes) -> Result<Status, RecordError> {
        let mut status = Status::new(Code::from_number(self.code), self.message.to_owned())
            .with_reason(Reason::from_number(self.reason))
            .with_metadata(metadata_from(&self.metadata, body)?)
            .with_trailers(metadata_from(&self.trailers, body)?);
        for (type_name, value) in &self.details {
            status = status.with_detail(*type_name, body.slice_ref(value));
        }
        if let Some(ms) = self.pushback_ms {
            let wait = if ms == u64::MAX { Duration::MAX } else { Duration::from_millis(ms) };
            status = status.with_pushback(wait);
        }
        Ok(status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // spec: W5-01
    #[test]
    fn records_are_bincode_2_standard_to_the_byte() {
        let call = Call {
            method: "/echo",
            timeout_us: 5_000_000,
            codec: 3,
            schema: 1 << 40,
            metadata: vec![("key", b"value"), ("data-bin", b"\x00\xff")],
            extensions: vec![(OPTIONAL_ID | 9, b"x")],
        };
        let mut ours = BytesMut::new();
        call.encode(&mut ours);
        let tuple = (call.method, call.timeout_us, call.codec, call.schema, &call.metadata, &call.extensions);
        let oracle = bincode::encode_to_vec(tuple, bincode::config::standard()).unwrap();
        assert_eq!(&ours[..], &oracle[..]);
        assert_eq!(Call::decode(&ours).unwrap(), call);

        let status = Status::new(Code::NotFound, "nothing there").with_pushback(Duration::from_millis(250));
        let record = StatusRecord::from_status(&status);
        let mut ours = BytesMut::new();
        record.encode(&mut ours);
        let empty: Vec<(&str, &[u8])> = Vec::new();
        let none: Vec<(u32, &[u8])> = Vec::new();
        let tuple = (5u32, 0u16, "nothing there", &empty, Some(250u64), &empty, &empty, &none);
        assert_eq!(&ours[..], &bincode::encode_to_vec(tuple, bincode::config::standard()).unwrap()[..]);
        assert_eq!(StatusRecord::decode(&ours).unwrap().to_status(&Bytes::new()).unwrap(), status);
    }

    // spec: W5-02, W5-03
    #[test]
    fn trailing_bytes_and_length_bombs_are_refused() {
        let mut bytes = BytesMut::new();
        Ping { data: 1, extensions: vec![] }.encode(&mut bytes);
        bytes.extend_from_slice(b"x");
        assert!(Ping::decode(&bytes).is_err());
        // 2^30 entries claimed in a few bytes.
        assert!(Head::decode(&[0xfc, 0, 0, 0, 0x40, 0]).is_err());
        assert!(Reset::decode(&[]).is_err());
    }

    // spec: W5-10
    #[test]
    fn methods_that_would_break_a_log_line_are_refused() {
        for method in ["", "echo", "/a b", "/a\nb", "/\u{e9}", &format!("/{}", "m".repeat(512))] {
            assert!(check_method(method).is_err(), "{method:?}");
        }
        assert!(check_method("/pkg.Service/Method").is_ok());
    }
}
