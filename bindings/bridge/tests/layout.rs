//! The published layout of completions, byte for byte. `layout.json` has the bytes and what they mean; the tests of the
//! npm packages read it too.

use std::time::Duration;

use valkyrie_bridge::{
    Bytes, Code, Level, Metadata, Record, Status,
    layout::{Batch, VERSION},
};

fn metadata(entries: &[(&str, &'static [u8])]) -> Metadata {
    let mut metadata = Metadata::new();
    for (key, value) in entries {
        metadata.insert(key, *value).unwrap();
    }
    metadata
}

#[test]
fn every_kind_of_completion_has_the_published_bytes() {
    let published = include_str!("layout.json");
    let mut batch = Batch::default();
    assert!(batch.is_empty());
    batch.done(0);
    batch.response(1, Bytes::from_static(b"hello"), &Metadata::new(), &Metadata::new());
    let (head, trailers) = (metadata(&[("a", b"1"), ("b-bin", &[0, 255])]), metadata(&[("t", b"z")]));
    batch.response(2, Bytes::new(), &head, &Metadata::new());
    batch.messages(3, vec![Bytes::from_static(b"x"), Bytes::new()], None);
    batch.messages(4, Vec::new(), Some((&head, &trailers)));
    let status = Status::new(Code::Unavailable, "später")
        .with_detail("type", &b"\x01"[..])
        .with_pushback(Duration::from_millis(1_500))
        .with_trailers(metadata(&[("k", b"v")]))
        .with_timeline("attempt 1".into());
    batch.error(5, &status);
    batch.logs(&[Record::new(Level::Warn, "valkyrie.connection", "lost").with("endpoint", "tcp://h:1")]);
    assert!(batch.has_room());
    let len = batch.len();
    let (head, pieces) = batch.parts(true);
    let bytes = head.iter().chain(pieces.iter().flatten());
    let bytes = bytes.map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(bytes.len(), 2 * len);
    assert!(published.contains(&format!("\"version\": {VERSION},")));
    assert!(published.contains(&format!("\"bytes\": \"{bytes}\"")), "{bytes}");
}
