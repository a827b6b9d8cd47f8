//! Any bytes as any control record, and as metadata: ours reads what bincode 2 reads, within its own bounds, and
//! writes what it has read. The first byte chooses the record.
#![no_main]

use bytes::{Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;
use valkyrie_fuzz::measure;
use valkyrie_protocol::{
    Auth, Authenticated, Call, GoAway, Head, Hello, Metadata, MetadataError, OPTIONAL_ID, Ping, Reset,
    StatusRecord, Window,
};

/// The longest record that a frame may carry by default.
const LONGEST: usize = 16 << 10;
/// The most entries of a list.
const ENTRIES: usize = 128;
/// The record, what it is written to and the record again; or a status made of it, and its record.
const MOST: usize = 96 << 10;

type Pairs<'a> = Vec<(&'a str, &'a [u8])>;
type Extensions<'a> = Vec<(u32, &'a [u8])>;

/// Reads `$bytes` as both and compares: fields in their order, and which of them are lists.
macro_rules! compare {
    ($record:ident, $bytes:ident, { $($field:ident: $type:ty),* }, [$($list:ident),*]) => {{
        let usage = measure(|| {
            if let Ok(record) = $record::decode($bytes) {
                let mut written = BytesMut::new();
                record.encode(&mut written);
                assert_eq!($record::decode(&written).as_ref(), Ok(&record), "{written:02x?}");
            }
        });
        assert!(usage.largest <= LONGEST && usage.peak <= MOST, "{usage:?}");
        let config = bincode::config::standard().with_limit::<{ 1 << 20 }>();
        let oracle = bincode::borrow_decode_from_slice::<($($type,)*), _>($bytes, config);
        let oracle = oracle.ok().filter(|(_, read)| *read == $bytes.len()).map(|(($($field,)*), _)| {
            $record { $($field),* }
        });
        let oracle = oracle.filter(|record| {
            // GOAWAY has the one extension that is known.
            let known = if stringify!($record) == "GoAway" { &[1][..] } else { &[] };
            let mut extensions = record.extensions.iter();
            extensions.all(|(id, _)| id & OPTIONAL_ID != 0 || known.contains(id))
                && [$(record.$list.len()),*].iter().all(|len| *len <= ENTRIES)
        });
        let ours = $record::decode($bytes).ok();
        assert_eq!(ours, oracle);
        ours
    }};
}

fuzz_target!(|input: &[u8]| {
    let Some((kind, bytes)) = input.split_first() else { return };
    let bytes = &bytes[..bytes.len().min(LONGEST)];
    match kind % 11 {
        0 => drop(compare!(Hello, bytes, {
            min_version: u8, max_version: u8, features: u64, settings: Vec<(u32, u64)>, extensions: Extensions<'_>
        }, [settings, extensions])),
        1 => drop(compare!(Ping, bytes, { data: u64, extensions: Extensions<'_> }, [extensions])),
        2 => drop(compare!(GoAway, bytes, {
            last_stream: u64, code: u16, message: &str, extensions: Extensions<'_>
        }, [extensions])),
        3 => drop(compare!(Window, bytes, { offset: u64, extensions: Extensions<'_> }, [extensions])),
        4 => drop(compare!(Call, bytes, {
            method: &str, timeout_us: u64, codec: u16, schema: u64, metadata: Pairs<'_>, extensions: Extensions<'_>
        }, [metadata, extensions])),
        5 => drop(
            compare!(Head, bytes, { metadata: Pairs<'_>, extensions: Extensions<'_> }, [metadata, extensions]),
        ),
        6 => {
            let record = compare!(StatusRecord, bytes, {
                code: u32, reason: u16, message: &str, details: Pairs<'_>, pushback_ms: Option<u64>,
                metadata: Pairs<'_>, trailers: Pairs<'_>, extensions: Extensions<'_>
            }, [details, metadata, trailers, extensions]);
            if record.is_some() {
                status(bytes);
            }
        }
        7 => drop(compare!(Reset, bytes, { code: u16, extensions: Extensions<'_> }, [extensions])),
        9 => drop(compare!(Auth, bytes, { token: &[u8], extensions: Extensions<'_> }, [extensions])),
        10 => drop(
            compare!(Authenticated, bytes, { expires_in_ms: u64, extensions: Extensions<'_> }, [extensions]),
        ),
        _ => metadata(bytes),
    }
});

/// A status keeps every field of its record, and its record every field of it.
fn status(bytes: &[u8]) {
    let usage = measure(|| {
        let body = Bytes::copy_from_slice(bytes);
        let record = StatusRecord::decode(&body).expect("it was read before");
        let mut entries = record.metadata.iter().chain(&record.trailers);
        let legal = entries.all(|(key, value)| refusal(key, value).is_none());
        let Ok(status) = record.to_status(&body) else { return assert!(!legal) };
        assert!(legal);
        let again = StatusRecord::from_status(&status);
        assert_eq!(again.message, record.message);
        assert_eq!(again.details, record.details);
        assert_eq!(again.metadata, record.metadata);
        assert_eq!(again.trailers, record.trailers);
        assert_eq!(again.pushback_ms, record.pushback_ms);
    });
    assert!(usage.largest <= LONGEST && usage.peak <= MOST, "{usage:?}");
}

/// A key's length, the key, and its value: taken if and only if it is legal, and then found again.
fn metadata(bytes: &[u8]) {
    let Some((len, rest)) = bytes.split_first() else { return };
    let (key, value) = rest.split_at(rest.len().min(usize::from(*len)));
    let Ok(key) = std::str::from_utf8(key) else { return };
    let mut metadata = Metadata::new();
    let value = Bytes::copy_from_slice(value);
    let result = metadata.insert(key, value.clone());
    match refusal(key, &value) {
        None => {
            assert_eq!(result, Ok(()));
            assert_eq!(metadata.get(key), Some(&value));
            assert!(metadata.iter().eq([(key, &value)]));
        }
        Some("key") => assert!(matches!(result, Err(MetadataError::Key(_)))),
        Some(_) => assert!(matches!(result, Err(MetadataError::Value(_)))),
    }
}

/// What PROTOCOL.md, section 5, says against an entry.
fn refusal(key: &str, value: &[u8]) -> Option<&'static str> {
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
    if key.is_empty() || key.len() > Metadata::MAX_KEY_LEN || !key.chars().all(legal) {
        return Some("key");
    }
    let printable = value.iter().all(|byte| (0x20..=0x7e).contains(byte));
    (!printable && !key.ends_with("-bin")).then_some("value")
}
