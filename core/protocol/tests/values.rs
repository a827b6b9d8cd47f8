//! The values that cross the API: how they read for people, what they keep, and what stands for nothing.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use valkyrie_protocol::{
    Class, Code, Config, Connection, ErrorCode, Metadata, MetadataError, Priority, Reason, RecordError, Role,
    Status, StatusRecord, Time,
};

#[test]
fn a_status_reads_as_code_and_message() {
    let status = Status::new(Code::NotFound, "no such key");
    assert_eq!(status.to_string(), "NOT_FOUND: no such key");
    assert_eq!(Status::new(Code::NotFound, "").to_string(), "NOT_FOUND");
    assert_eq!(
        format!("{status:?}"),
        r#"Status { code: NOT_FOUND(5), reason: NONE(0), message: "no such key" }"#
    );
    let rare = status.with_detail("a.Type", "x").with_pushback(Duration::from_secs(1));
    assert!(format!("{rare:?}").ends_with("details: 1, pushback: Some(1s) }"), "{rare:?}");
    let source: &dyn std::error::Error = &rare;
    assert!(source.source().is_none());
}

#[test]
fn a_status_keeps_its_reason_when_its_code_changes() {
    let status = Status::from_reason(Reason::QUEUE_FULL, "full").with_code(Code::Unavailable);
    assert_eq!((status.code(), status.reason()), (Code::Unavailable, Reason::QUEUE_FULL));
    assert_eq!((status.class(), status.is_retryable()), (Class::Transient, true));
    assert!(!Status::new(Code::Internal, "").is_retryable());
}

#[test]
fn what_a_status_does_not_have_is_empty() {
    let status =
        Status::new(Code::Internal, "").with_metadata(Metadata::new()).with_trailers(Metadata::new());
    assert!(status.details().is_empty() && status.pushback().is_none());
    assert!(status.metadata().is_empty() && status.trailers().is_empty());
    // Nothing was boxed for it either.
    assert_eq!(format!("{status:?}"), r#"Status { code: INTERNAL(13), reason: NONE(0), message: "" }"#);
}

/// Milliseconds travel, and the largest number of them means never.
#[test]
fn a_status_survives_its_record() {
    let metadata = Metadata::new().with("key", "one").unwrap().with("key", "two").unwrap();
    for (pushback, travels) in [(1_500, Some(Duration::from_millis(1_500))), (u64::MAX, Some(Duration::MAX))]
    {
        let wait = if pushback == u64::MAX { Duration::MAX } else { Duration::from_millis(pushback) };
        let status = Status::from_reason(Reason::ENHANCE_CALM, "calm")
            .with_detail("a.Type", &b"\x00\xff"[..])
            .with_metadata(metadata.clone())
            .with_trailers(metadata.clone())
            .with_pushback(wait);
        let mut bytes = BytesMut::new();
        StatusRecord::from_status(&status).encode(&mut bytes);
        let body = bytes.freeze();
        let read = StatusRecord::decode(&body).unwrap().to_status(&body).unwrap();
        assert_eq!((&read, read.pushback()), (&status, travels));
    }
}

#[test]
fn classes_have_the_words_of_logs() {
    let of = |number| Reason::from_number(number).class().name();
    assert_eq!(
        [0, 101, 200, 300, 400, 500, 900].map(of),
        ["application", "caller", "auth", "transient", "server", "protocol", "protocol"]
    );
}

#[test]
fn codes_and_reasons_read_as_their_names() {
    assert_eq!(
        (Code::Aborted.to_string(), format!("{:?}", Code::from_number(99))),
        ("ABORTED".into(), "UNKNOWN(99)".into())
    );
    assert_eq!(Reason::BAD_MAGIC.to_string(), "BAD_MAGIC");
    assert_eq!(format!("{:?}", ErrorCode::from_number(6)), "VERSION(6)");
    assert_eq!(ErrorCode::from_number(999).name(), "UNKNOWN");
    assert_eq!(ErrorCode::from_number(999).reason(), Reason::PROTOCOL_VIOLATION);
    assert_eq!((Code::from_name("NO_SUCH_CODE"), Code::from_name("OK")), (None, Some(Code::Ok)));
}

#[test]
fn an_error_of_a_connection_reads_as_code_and_sentence() {
    let mut connection = Connection::new(Config::new(Role::Server), Time::default());
    let error = connection.handle_read(Time::default(), &mut BytesMut::from("GET / HTTP/1.1")).unwrap_err();
    assert!(error.to_string().starts_with("MAGIC: first bytes [47, 45, 54, 20]"), "{error}");
    let source: &dyn std::error::Error = &error;
    assert!(source.source().is_none());
    assert_eq!(error.status().reason(), Reason::BAD_MAGIC);
}

#[test]
fn priorities_have_numbers_and_names() {
    for (number, class) in (0u8..).zip(Priority::ALL) {
        assert_eq!(Priority::from_number(number), Some(class));
        assert_eq!(Priority::from_name(class.name()), Some(class));
    }
    assert_eq!((Priority::from_number(3), Priority::from_name("urgent")), (None, None));
    assert_eq!(Priority::ALL.map(Priority::name), ["critical", "normal", "bulk"]);
}

#[test]
fn metadata_is_an_ordered_multimap() {
    let metadata =
        Metadata::new().with("a", "1").unwrap().with("b-bin", &b"\xff"[..]).unwrap().with("a", "2").unwrap();
    let pairs: Vec<_> = metadata.iter().map(|(key, value)| (key, &value[..])).collect();
    assert_eq!(pairs, [("a", &b"1"[..]), ("b-bin", b"\xff"), ("a", b"2")]);
    assert_eq!(metadata.get("a"), Some(&Bytes::from("1")));
    assert_eq!(
        (metadata.get_str("a"), metadata.get_str("b-bin"), metadata.get("c")),
        (Some("1"), None, None)
    );
    assert_eq!((metadata.len(), metadata.is_empty()), (3, false));
    assert_eq!(format!("{metadata:?}"), r#"{"a": b"1", "b-bin": b"\xff", "a": b"2"}"#);
}

#[test]
fn an_illegal_entry_says_what_is_wrong() {
    let key = Metadata::new().insert("Key", "v").unwrap_err();
    assert_eq!(key.to_string(), r#"metadata key "Key" is not 1 to 128 characters of a-z 0-9 - _ ."#);
    let value = Metadata::new().with("key", "\n").unwrap_err();
    assert_eq!(value, MetadataError::Value("key".into()));
    assert!(value.to_string().ends_with("end the key in -bin for bytes"), "{value}");
    assert_eq!(RecordError::from(value.clone()).to_string(), value.to_string());
    let status = Status::from(value.clone());
    assert_eq!((status.reason(), status.message()), (Reason::INVALID_METADATA, &value.to_string()[..]));
}

#[test]
fn time_saturates_at_both_ends() {
    let (early, late) = (Time::from_micros(5), Time::from_micros(7));
    assert_eq!((late.since(early), early.since(late)), (Duration::from_micros(2), Duration::ZERO));
    assert_eq!(late.after(Duration::MAX), Time::from_micros(u64::MAX));
    assert_eq!(late.after(Duration::from_millis(1)).as_micros(), 1_007);
    assert_eq!(Time::sooner(Some(early), Some(late)), Some(early));
    assert_eq!((Time::sooner(None, Some(late)), Time::sooner(None, None)), (Some(late), None));
}
