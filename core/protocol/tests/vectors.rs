//! The wire vectors: every frame type as hex and as fields, and the broken ones with the code they deserve.
//!
//! `tests/vectors/v1.json` is data for every language. `VALKYRIE_BLESS=1 cargo test -p valkyrie-protocol --test
//! vectors` writes it again with what was added, and the sums of the new vectors behind those of `v1.sums`. A vector is
//! never changed and never removed: nothing rewrites a line of that list.

use std::io::IoSlice;

use bytes::BytesMut;
use serde_json::{Value, json};
use valkyrie_protocol::{
    AUTH_FOLLOWS, Auth, Authenticated, Call, Class, Config, Connection, ErrorCode, FLAG_END, FLAG_MESSAGE,
    FLAG_MORE, FrameHeader, FrameType, GoAway, HEADER_LEN, Head, Hello, Limits, OPTIONAL_ID, Ping, Reason,
    Reset, Role, StatusRecord, Time, Window,
};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// A frame with both checksums right.
fn frame(frame_type: u8, flags: u16, stream: u64, priority: u8, record: &[u8], payload: &[u8]) -> Vec<u8> {
    let body = [record, payload].concat();
    let header = FrameHeader {
        frame_type: FrameType(frame_type),
        flags,
        stream,
        payload_len: payload.len() as u32,
        metadata_len: record.len() as u32,
        priority,
        epoch: 0,
        payload_crc: if body.is_empty() { 0 } else { crc32c::crc32c(&body) },
    };
    [&header.encode()[..], &body].concat()
}

macro_rules! record {
    ($record:expr) => {{
        let mut out = BytesMut::new();
        $record.encode(&mut out);
        out.to_vec()
    }};
}

fn pairs(entries: &[(&str, &[u8])]) -> Value {
    entries.iter().map(|(key, value)| json!([key, hex(value)])).collect()
}

fn extensions(entries: &[(u32, &[u8])]) -> Value {
    entries.iter().map(|(id, value)| json!([id, hex(value)])).collect()
}

fn good(name: &str, kind: &str, frame: Vec<u8>, record: Value) -> Value {
    let header = FrameHeader::decode(frame.first_chunk::<HEADER_LEN>().unwrap()).unwrap();
    let payload = &frame[HEADER_LEN + header.metadata_len as usize..];
    json!({
        "name": name,
        "hex": hex(&frame),
        "type": kind,
        "flags": header.flags,
        "stream": header.stream,
        "priority": header.priority,
        "record": record,
        "payload": hex(payload),
        "spec": proves(name),
    })
}

fn hello_bytes() -> Vec<u8> {
    let hello = Hello {
        min_version: 1,
        max_version: 1,
        features: 0,
        settings: vec![(1, 65_536)],
        extensions: vec![],
    };
    frame(0x01, 0, 0, 0, &record!(hello), b"")
}

fn hello_with(settings: &[(u32, u64)], extensions: &[(u32, &[u8])]) -> Vec<u8> {
    let (settings, extensions) = (settings.to_vec(), extensions.to_vec());
    let hello = Hello { min_version: 1, max_version: 1, features: 0, settings, extensions };
    frame(0x01, 0, 0, 0, &record!(hello), b"")
}

fn call_bytes(stream: u64, flags: u16, method: &str, payload: &[u8]) -> Vec<u8> {
    let call = Call { method, timeout_us: 0, codec: 0, schema: 0, metadata: vec![], extensions: vec![] };
    frame(0x10, flags, stream, 1, &record!(call), payload)
}

fn frames() -> Vec<Value> {
    let settings = vec![(1, 65_536), (2, 4 << 20), (3, 16_384), (4, 1_024), (5, 262_144), (6, 1 << 20)];
    let mut out = Vec::new();
    for (name, settings, extensions_in) in [
        ("hello with every setting", settings.clone(), vec![]),
        (
            "hello with a setting and an extension to skip",
            vec![(OPTIONAL_ID | 99, u64::MAX)],
            vec![(OPTIONAL_ID | 7, &b"grease"[..])],
        ),
        ("hello of a client whose credentials follow", settings.clone(), vec![(AUTH_FOLLOWS, &b""[..])]),
    ] {
        let hello =
            Hello { min_version: 1, max_version: 1, features: 0, settings, extensions: extensions_in };
        let fields = json!({"min_version": 1, "max_version": 1, "features": 0,
            "settings": hello.settings.iter().map(|(id, value)| json!([id, value])).collect::<Value>(),
            "extensions": extensions(&hello.extensions)});
        out.push(good(name, "HELLO", frame(0x01, 0, 0, 0, &record!(hello), b""), fields));
    }
    for (name, token) in [("credentials", &b"a token"[..]), ("credentials of 300 bytes", &[b'.'; 300])] {
        let auth = Auth { token, extensions: vec![] };
        let fields = json!({"token": hex(token), "extensions": []});
        out.push(good(name, "AUTH", frame(0x02, 0, 0, 0, &record!(auth), b""), fields));
    }
    for (name, expires_in_ms) in
        [("credentials accepted for an hour", 3_600_000), ("credentials accepted for ever", 0)]
    {
        let answer = Authenticated { expires_in_ms, extensions: vec![] };
        let fields = json!({"expires_in_ms": expires_in_ms, "extensions": []});
        out.push(good(name, "AUTHENTICATED", frame(0x07, 0, 0, 0, &record!(answer), b""), fields));
    }
    for (name, kind, number) in [("ping", "PING", 0x03), ("pong", "PONG", 0x04)] {
        let ping = Ping { data: 0x0123_4567_89ab_cdef, extensions: vec![] };
        let fields = json!({"data": ping.data, "extensions": []});
        out.push(good(name, kind, frame(number, 0, 0, 0, &record!(ping), b""), fields));
    }
    for (name, code, message, ext) in [
        ("go away without error", 0u16, "the server is shutting down", vec![]),
        ("go away for the version", 6, "no shared version", vec![(1u32, &[1u8, 1][..])]),
    ] {
        let go_away = GoAway { last_stream: 41, code, message, extensions: ext };
        let fields = json!({"last_stream": 41, "code": code, "message": message, "extensions": extensions(&go_away.extensions)});
        out.push(good(name, "GOAWAY", frame(0x05, 0, 0, 0, &record!(go_away), b""), fields));
    }
    for (name, stream, offset) in
        [("window of the connection", 0, 1u64 << 20), ("window of a stream", 7, 250)]
    {
        let window = Window { offset, extensions: vec![] };
        let fields = json!({"offset": offset, "extensions": []});
        out.push(good(name, "WINDOW", frame(0x06, 0, stream, 0, &record!(window), b""), fields));
    }
    let many: Vec<(&str, &[u8])> = vec![("request-id", b"a1b2"), ("trace-bin", &[0, 1, 0xfe, 0xff])];
    for (name, method, timeout_us, metadata, flags, priority, payload) in [
        (
            "unary call in one frame",
            "/echo",
            5_000_000,
            vec![],
            FLAG_END | FLAG_MESSAGE,
            1,
            &b"Hello, World!"[..],
        ),
        ("unary call with an empty message", "/echo", 0, vec![], FLAG_END | FLAG_MESSAGE, 1, b""),
        ("call that opens a stream", "/pkg.Service/Upload", 0, many.clone(), 0, 2, b""),
        ("call whose message goes on", "/echo", 250, vec![], FLAG_MESSAGE | FLAG_MORE, 0, b"first part"),
        ("call that half-closes without a message", "/echo", 65_536, vec![], FLAG_END, 1, b""),
    ] {
        let call = Call { method, timeout_us, codec: 0, schema: 0, metadata, extensions: vec![] };
        let fields = json!({"method": method, "timeout_us": timeout_us, "codec": 0, "schema": 0,
            "metadata": pairs(&call.metadata), "extensions": []});
        out.push(good(name, "CALL", frame(0x10, flags, 1, priority, &record!(call), payload), fields));
    }
    let head = Head { metadata: many.clone(), extensions: vec![] };
    let fields = json!({"metadata": pairs(&many), "extensions": []});
    out.push(good("head", "HEAD", frame(0x11, 0, 1, 1, &record!(head), b""), fields));
    for (name, flags, payload) in [
        ("whole message", FLAG_MESSAGE, &b"message"[..]),
        ("fragment", FLAG_MESSAGE | FLAG_MORE, b"frag"),
        ("last message of a sender", FLAG_MESSAGE | FLAG_END, b""),
        ("half-close", FLAG_END, b""),
    ] {
        out.push(good(name, "MESSAGE", frame(0x12, flags, 3, 1, b"", payload), Value::Null));
    }
    for (name, code, reason, message, details, pushback_ms, metadata, trailers, flags, payload) in [
        (
            "status ok with the answer",
            0u32,
            0u16,
            "",
            vec![],
            None,
            vec![],
            vec![],
            FLAG_END | FLAG_MESSAGE,
            &b"Hello, World!"[..],
        ),
        ("status ok after a stream", 0, 0, "", vec![], None, vec![], many.clone(), FLAG_END, b""),
        (
            "status with everything",
            8,
            0,
            "quota is used up",
            vec![("test.Quota", &[1u8, 2, 3][..])],
            Some(1_500u64),
            many.clone(),
            many.clone(),
            FLAG_END,
            b"",
        ),
        (
            "status of the library",
            12,
            112,
            "unknown method /nope",
            vec![],
            None,
            vec![],
            vec![],
            FLAG_END,
            b"",
        ),
        (
            "status with an unknown code that must not be retried",
            4_242,
            60_000,
            "\u{e9}\u{1f680}",
            vec![],
            Some(u64::MAX),
            vec![],
            vec![],
            FLAG_END,
            b"",
        ),
    ] {
        let status = StatusRecord {
            code,
            reason,
            message,
            details,
            pushback_ms,
            metadata,
            trailers,
            extensions: vec![],
        };
        let fields = json!({"code": code, "reason": reason, "message": message, "details": pairs(&status.details),
            "pushback_ms": pushback_ms, "metadata": pairs(&status.metadata), "trailers": pairs(&status.trailers), "extensions": []});
        out.push(good(name, "STATUS", frame(0x13, flags, 1, 1, &record!(status), payload), fields));
    }
    let reset = Reset { code: ErrorCode::CANCEL.number(), extensions: vec![] };
    out.push(good(
        "reset",
        "RESET",
        frame(0x14, 0, 5, 1, &record!(reset), b""),
        json!({"code": 11, "extensions": []}),
    ));
    out.push(good(
        "unknown optional frame",
        "0xc3",
        frame(0xc3, 0x0f00, 0, 0, b"any", b"thing"),
        Value::Null,
    ));
    out
}

fn with_header(mut frame: Vec<u8>, at: usize, value: u8) -> Vec<u8> {
    frame[at] = value;
    let crc = crc32c::crc32c(&frame[..36]);
    frame[36..40].copy_from_slice(&crc.to_le_bytes());
    frame
}

/// What a server must refuse, after a right HELLO unless the name says otherwise.
fn broken() -> Vec<Value> {
    let call = call_bytes(1, FLAG_END | FLAG_MESSAGE, "/echo", b"x");
    let flip = |mut bytes: Vec<u8>, at: usize| {
        bytes[at] ^= 1;
        bytes
    };
    let raw = |name: &str, error: &str, bytes: Vec<u8>| json!({"name": name, "hex": hex(&bytes), "error": error, "spec": proves(name)});
    let unary = FLAG_END | FLAG_MESSAGE;
    let unknown_setting =
        Hello { min_version: 1, max_version: 1, features: 0, settings: vec![(99, 1)], extensions: vec![] };
    let unknown = [(5u32, &b""[..])];
    let ping = |extensions: &[(u32, &'static [u8])]| Ping { data: 1, extensions: extensions.to_vec() };
    let ok = || StatusRecord {
        code: 0,
        reason: 0,
        message: "",
        details: vec![],
        pushback_ms: None,
        metadata: vec![],
        trailers: vec![],
        extensions: vec![],
    };
    let long = Head { metadata: vec![("a", b"".as_slice()); 129], extensions: vec![] };
    let with_value = |key, value| Call {
        method: "/echo",
        timeout_us: 0,
        codec: 0,
        schema: 0,
        metadata: vec![(key, value)],
        extensions: vec![],
    };
    let announced = || hello_with(&[], &[(AUTH_FOLLOWS, b"")]);
    let auth = |stream, token| frame(0x02, 0, stream, 0, &record!(Auth { token, extensions: vec![] }), b"");
    let accepted = Authenticated { expires_in_ms: 0, extensions: vec![] };
    let newer = Hello { min_version: 2, max_version: 3, features: 0, settings: vec![], extensions: vec![] };
    vec![
        raw("first: http", "MAGIC", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
        raw("first: tls", "MAGIC", vec![0x16, 3, 1, 0, 5]),
        raw("first: a call before hello", "PROTOCOL", call.clone()),
        raw("first: a newer version only", "VERSION", frame(0x01, 0, 0, 0, &record!(newer), b"")),
        raw(
            "first: a setting that is unknown and not optional",
            "SETTING",
            frame(0x01, 0, 0, 0, &record!(unknown_setting), b""),
        ),
        raw("first: a hello cut short", "RECORD", frame(0x01, 0, 0, 0, &[1, 1], b"")),
        raw("a second hello", "PROTOCOL", hello_bytes()),
        raw("a header bit flipped", "CHECKSUM", flip(call.clone(), 8)),
        raw("a header checksum bit flipped", "CHECKSUM", flip(call.clone(), 36)),
        raw("a payload bit flipped", "CHECKSUM", flip(call.clone(), call.len() - 1)),
        raw("another version in the header", "VERSION", with_header(call.clone(), 4, 2)),
        raw("a reserved flag", "PROTOCOL", with_header(call.clone(), 7, 0x80)),
        raw("a reserved byte", "PROTOCOL", with_header(call.clone(), 30, 1)),
        raw("a priority class of 3", "PROTOCOL", with_header(call.clone(), 24, 3)),
        raw("a key epoch without a seal", "PROTOCOL", with_header(call.clone(), 25, 1)),
        raw("a payload length of 4 GiB", "FRAME_SIZE", with_header(call.clone(), 19, 0xff)),
        raw("a metadata length of 16 MiB", "FRAME_SIZE", with_header(call.clone(), 23, 1)),
        raw("an unknown frame that is not optional", "UNKNOWN_FRAME", frame(0x42, 0, 0, 0, b"", b"")),
        raw("a call of the server's parity", "STREAM_ID", call_bytes(2, unary, "/echo", b"")),
        raw("a stream opened twice", "STREAM_ID", [call.clone(), call.clone()].concat()),
        raw(
            "stream ids that fall",
            "STREAM_ID",
            [call_bytes(9, unary, "/echo", b""), call_bytes(7, unary, "/echo", b"")].concat(),
        ),
        raw(
            "a message on a stream that was never opened",
            "PROTOCOL",
            frame(0x12, FLAG_MESSAGE, 99, 1, b"", b"x"),
        ),
        raw("a message on stream 0", "PROTOCOL", frame(0x12, FLAG_MESSAGE, 0, 1, b"", b"x")),
        raw(
            "a ping on a stream",
            "PROTOCOL",
            frame(0x03, 0, 1, 0, &record!(Ping { data: 1, extensions: vec![] }), b""),
        ),
        raw("a payload without the message flag", "PROTOCOL", frame(0x12, 0, 1, 1, b"", b"x")),
        raw(
            "a fragment that is also the end",
            "PROTOCOL",
            frame(0x12, FLAG_MESSAGE | FLAG_MORE | FLAG_END, 1, 1, b"", b"x"),
        ),
        raw(
            "a status from the caller",
            "PROTOCOL",
            [call_bytes(1, 0, "/hang", b""), frame(0x13, FLAG_END, 1, 1, &record!(ok()), b"")].concat(),
        ),
        raw("a method without a slash", "RECORD", call_bytes(1, unary, "echo", b"")),
        raw("a method with a line break", "RECORD", call_bytes(1, unary, "/a\r\nb", b"")),
        raw("a list of 2^30 entries", "RECORD", frame(0x11, 0, 1, 1, &[0xfc, 0, 0, 0, 0x40, 0], b"")),
        raw(
            "an extension that is unknown and not optional",
            "RECORD",
            frame(
                0x10,
                unary,
                1,
                1,
                &record!(Call {
                    method: "/echo",
                    timeout_us: 0,
                    codec: 0,
                    schema: 0,
                    metadata: vec![],
                    extensions: vec![(5, b"")]
                }),
                b"",
            ),
        ),
        raw(
            "a metadata key in upper case",
            "RECORD",
            frame(
                0x10,
                unary,
                1,
                1,
                &record!(Call {
                    method: "/echo",
                    timeout_us: 0,
                    codec: 0,
                    schema: 0,
                    metadata: vec![("Key", b"")],
                    extensions: vec![]
                }),
                b"",
            ),
        ),
        raw(
            "a window far ahead",
            "FLOW_CONTROL",
            frame(0x06, 0, 0, 0, &record!(Window { offset: u64::MAX, extensions: vec![] }), b""),
        ),
        raw("credentials, which this version has not", "UNKNOWN_FRAME", frame(0x02, 0, 0, 0, b"token", b"")),
        raw("first: a call ahead of the credentials", "PROTOCOL", [announced(), call.clone()].concat()),
        raw("first: a token of 8,193 bytes", "RECORD", [announced(), auth(0, &[b'.'; 8_193])].concat()),
        raw("first: credentials on a stream", "PROTOCOL", [announced(), auth(1, b"a token")].concat()),
        raw("an answer to no credentials", "PROTOCOL", frame(0x07, 0, 0, 0, &record!(accepted), b"")),
        raw("a flag on a ping", "PROTOCOL", frame(0x03, FLAG_END, 0, 0, &record!(ping(&[])), b"")),
        raw(
            "a status that goes on",
            "PROTOCOL",
            frame(0x13, FLAG_MESSAGE | FLAG_MORE, 1, 1, &record!(ok()), b"x"),
        ),
        raw("more of no message", "PROTOCOL", frame(0x12, FLAG_MORE, 1, 1, b"", b"")),
        raw(
            "a checksum of an empty body",
            "CHECKSUM",
            with_header(frame(0x12, FLAG_END, 1, 1, b"", b""), 32, 1),
        ),
        raw("an integer wider than its field", "RECORD", frame(0x14, 0, 1, 1, &[0xfc, 11, 0, 0, 0, 0], b"")),
        raw("an integer of no width", "RECORD", frame(0x14, 0, 1, 1, &[0xfe, 0], b"")),
        raw("a byte behind a record", "RECORD", frame(0x03, 0, 0, 0, &[1, 0, 0], b"")),
        raw("a message with a record", "RECORD", frame(0x12, FLAG_MESSAGE, 1, 1, &[0], b"x")),
        raw("a list of 129 entries", "RECORD", frame(0x11, 0, 1, 1, &record!(long), b"")),
        raw("text that is not utf-8", "RECORD", frame(0x05, 0, 0, 0, &[0, 0, 1, 0xff, 0], b"")),
        raw("an option of 2", "RECORD", frame(0x13, FLAG_END, 1, 1, &[0, 0, 0, 0, 2, 0, 0, 0], b"")),
        raw("an extension of a ping", "RECORD", frame(0x03, 0, 0, 0, &record!(ping(&unknown)), b"")),
        raw("an extension of a go away", "RECORD", frame(0x05, 0, 0, 0, &[0, 0, 0, 1, 5, 0], b"")),
        raw("an extension of a window", "RECORD", frame(0x06, 0, 0, 0, &[0, 1, 5, 0], b"")),
        raw("an extension of a head", "RECORD", frame(0x11, 0, 1, 1, &[0, 1, 5, 0], b"")),
        raw(
            "an extension of a status",
            "RECORD",
            frame(0x13, FLAG_END, 1, 1, &[0, 0, 0, 0, 0, 0, 0, 1, 5, 0], b""),
        ),
        raw("an extension of a reset", "RECORD", frame(0x14, 0, 1, 1, &[11, 1, 5, 0], b"")),
        raw(
            "a metadata value with a line break",
            "RECORD",
            frame(0x10, unary, 1, 1, &record!(with_value("text", b"a\r\nb")), b""),
        ),
        raw(
            "a metadata key of nothing",
            "RECORD",
            frame(0x10, unary, 1, 1, &record!(with_value("", b"")), b""),
        ),
        raw(
            "a method of 513 characters",
            "RECORD",
            call_bytes(1, unary, &format!("/{}", "m".repeat(512)), b""),
        ),
        raw("first: an extension of hello", "RECORD", hello_with(&[], &unknown)),
        raw("first: a setting below its range", "SETTING", hello_with(&[(1, 16_383)], &[])),
        raw("first: a setting above its range", "SETTING", hello_with(&[(5, (1 << 31) + 1)], &[])),
        raw("first: a setting twice", "SETTING", hello_with(&[(1, 65_536), (1, 65_536)], &[])),
        raw("a stream id of 2^62", "STREAM_ID", call_bytes((1 << 62) + 1, unary, "/echo", b"")),
        raw(
            "a half-close inside a message",
            "PROTOCOL",
            [call_bytes(1, FLAG_MESSAGE | FLAG_MORE, "/hang", b"x"), frame(0x12, FLAG_END, 1, 1, b"", b"")]
                .concat(),
        ),
        raw(
            "a payload without the message flag, on an open stream",
            "PROTOCOL",
            [call_bytes(1, 0, "/hang", b""), frame(0x12, 0, 1, 1, b"", b"x")].concat(),
        ),
        raw(
            "a fragment that is also the end, on an open stream",
            "PROTOCOL",
            [
                call_bytes(1, 0, "/hang", b""),
                frame(0x12, FLAG_MESSAGE | FLAG_MORE | FLAG_END, 1, 1, b"", b"x"),
            ]
            .concat(),
        ),
        raw(
            "more of no message, on an open stream",
            "PROTOCOL",
            [call_bytes(1, 0, "/hang", b""), frame(0x12, FLAG_MORE, 1, 1, b"", b"")].concat(),
        ),
        raw("a window for a stream that was never opened", "PROTOCOL", frame(0x06, 0, 99, 0, &[0, 0], b"")),
    ]
}

/// The rules of PROTOCOL.md that a vector shows.
fn proves(name: &str) -> Vec<&'static str> {
    let rules = match name {
        "hello with every setting" | "go away without error" => "W1-01 W5-01",
        "hello with a setting and an extension to skip" => "W5-05 W6-09",
        "go away for the version" => "W6-04",
        "call whose message goes on" | "fragment" => "W3-03",
        "unary call with an empty message" | "call that half-closes without a message" => "W7-03",
        "status with an unknown code that must not be retried" => "W10-01",
        "unknown optional frame" => "W4-01",
        "first: http" | "first: tls" => "W1-03",
        "first: a call before hello" => "W1-08 W6-01",
        "first: a newer version only" => "W6-03",
        "hello of a client whose credentials follow" | "first: a call ahead of the credentials" => "W6-13",
        "credentials" | "credentials of 300 bytes" => "W5-01",
        name if name.starts_with("credentials accepted") => "W6-16",
        "first: a token of 8,193 bytes" => "W6-15",
        "first: credentials on a stream" => "W4-03",
        "an answer to no credentials" => "W6-17",
        "first: an extension of hello" => "W5-06",
        name if name.starts_with("first: a setting") => "W6-10",
        "first: a hello cut short" | "a byte behind a record" | "a message with a record" => "W5-02",
        "a second hello" => "W6-02",
        "a header bit flipped" | "a header checksum bit flipped" => "W1-04",
        "a payload bit flipped" | "a checksum of an empty body" => "W1-12",
        "another version in the header" => "W1-05 W6-06",
        "a reserved flag" | "a reserved byte" | "a priority class of 3" => "W1-06",
        "a key epoch without a seal" => "W1-09",
        "a payload length of 4 GiB" | "a metadata length of 16 MiB" => "W1-07",
        "an unknown frame that is not optional" | "credentials, which this version has not" => "W1-10 W4-02",
        "a call of the server's parity" | "a stream opened twice" | "stream ids that fall" => "W7-01",
        "a stream id of 2^62" => "W7-01",
        "a message on a stream that was never opened" => "W7-05",
        "a window for a stream that was never opened" => "W7-05",
        "a message on stream 0" | "a ping on a stream" => "W1-11 W4-03",
        "a payload without the message flag" | "a payload without the message flag, on an open stream" => {
            "W3-02"
        }
        "a flag on a ping" => "W1-11 W3-01",
        "a fragment that is also the end" | "a fragment that is also the end, on an open stream" => "W3-03",
        "more of no message" | "more of no message, on an open stream" | "a status that goes on" => "W3-03",
        "a status from the caller" => "W7-08",
        "a half-close inside a message" => "W7-09",
        "an integer wider than its field" | "an integer of no width" => "W5-01",
        "a list of 2^30 entries" | "a list of 129 entries" => "W5-03",
        "text that is not utf-8" | "an option of 2" => "W5-04",
        name if name.starts_with("an extension") => "W5-06",
        "a metadata key in upper case" | "a metadata key of nothing" => "W5-07",
        "a metadata value with a line break" => "W5-08",
        name if name.starts_with("a method") => "W5-10",
        "a window far ahead" => "W8-03",
        _ => "",
    };
    rules.split_whitespace().collect()
}

#[test]
fn the_committed_vectors_are_what_this_crate_writes() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/v1.json");
    let ours = json!({"version": 1, "hello": hex(&hello_bytes()), "frames": frames(), "broken": broken()});
    if std::env::var_os("VALKYRIE_BLESS").is_some() {
        std::fs::write(path, format!("{ours:#}\n")).unwrap();
    }
    let committed: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(committed, ours, "the wire changed; see the head of this file");
}

/// A value with its keys in order, without the rules that a vector shows: those may be added to.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().filter(|(key, _)| *key != "spec").collect();
            fields.sort_unstable_by_key(|(key, _)| *key);
            fields.iter().map(|(key, value)| format!("{key}={};", canonical(value))).collect()
        }
        Value::Array(items) => items.iter().map(|item| canonical(item) + ",").collect(),
        other => other.to_string(),
    }
}

/// `v1.sums` has a line for every vector there ever was: kind, checksum, name.
// spec: W12-02
#[test]
fn no_vector_is_ever_changed_or_removed() {
    let mut kept: Vec<String> = Vec::new();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/v1.sums");
    kept.extend(std::fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned));
    let lines = |kind: &str, vectors: Vec<Value>| {
        let line = |vector: &Value| {
            let name = vector["name"].as_str().unwrap();
            format!("{kind} {:08x} {name}", crc32c::crc32c(canonical(vector).as_bytes()))
        };
        vectors.iter().map(line).collect::<Vec<_>>()
    };
    let ours = [lines("frame", frames()), lines("broken", broken())].concat();
    if std::env::var_os("VALKYRIE_BLESS").is_some() {
        kept.extend(ours.iter().filter(|line| !kept.contains(line)).cloned().collect::<Vec<_>>());
        std::fs::write(path, kept.join("\n") + "\n").unwrap();
    }
    let gone: Vec<_> = kept.iter().filter(|line| !ours.contains(line)).collect();
    assert!(gone.is_empty(), "vectors were changed or removed: {gone:#?}");
    let new: Vec<_> = ours.iter().filter(|line| !kept.contains(line)).collect();
    assert!(new.is_empty(), "not in v1.sums, see the head of this file: {new:#?}");
    let names: std::collections::BTreeSet<_> = ours.iter().map(|line| line.splitn(3, ' ').nth(2)).collect();
    assert_eq!(names.len(), ours.len(), "two vectors have one name");
}

// spec: W9-01
#[test]
fn every_broken_vector_gets_its_code_and_one_go_away() {
    for vector in broken() {
        let name = vector["name"].as_str().unwrap();
        let mut connection = Connection::new(Config::new(Role::Server), Time::default());
        let mut out = valkyrie_protocol::TransmitBuffer::default();
        connection.poll_transmit(Time::default(), &mut out, usize::MAX);
        let greeting = out.len();
        let mut bytes = BytesMut::new();
        if !name.starts_with("first: ") {
            bytes.extend_from_slice(&hello_bytes());
        }
        bytes.extend_from_slice(&unhex(vector["hex"].as_str().unwrap()));
        let error = connection.handle_read(Time::default(), &mut bytes).unwrap_err();
        assert_eq!(error.code.name(), vector["error"].as_str().unwrap(), "{name}: {error}");
        // Told once, and then nothing more is read or said.
        out.consume(greeting);
        connection.poll_transmit(Time::default(), &mut out, usize::MAX);
        let mut parts = vec![IoSlice::new(&[]); out.part_count()];
        let count = out.parts(&mut parts);
        let said: Vec<u8> = parts[..count].iter().flat_map(|part| part.iter().copied()).collect();
        let header = FrameHeader::decode(said.first_chunk().unwrap()).unwrap();
        assert_eq!(header.frame_type, FrameType::GOAWAY, "{name}");
        let go_away = GoAway::decode(&said[HEADER_LEN..]).unwrap();
        assert_eq!(go_away.code, error.code.number(), "{name}");
        assert!(said.len() < 1_024, "{name}: {} bytes of answer", said.len());
        assert!(connection.handle_read(Time::default(), &mut BytesMut::from(&hello_bytes()[..])).is_err());
        let before = out.len();
        connection.poll_transmit(Time::default(), &mut out, usize::MAX);
        assert_eq!(out.len(), before, "{name}");
    }
}

/// Every reason of the wire's own is one that a peer can provoke (the others are in the sdk's tests).
#[test]
fn errors_are_reachable() {
    let mut reached = std::collections::BTreeSet::new();
    for vector in broken() {
        let mut connection = Connection::new(Config::new(Role::Server), Time::default());
        let mut bytes = BytesMut::new();
        if !vector["name"].as_str().unwrap().starts_with("first: ") {
            bytes.extend_from_slice(&hello_bytes());
        }
        bytes.extend_from_slice(&unhex(vector["hex"].as_str().unwrap()));
        let error = connection.handle_read(Time::default(), &mut bytes).unwrap_err();
        let status = error.status();
        assert_eq!((status.reason(), status.code()), (error.reason, error.reason.code()));
        assert!(!status.message().is_empty());
        reached.insert(status.reason());
    }
    let mut silent = Connection::new(Config::new(Role::Server), Time::default());
    reached.insert(silent.handle_timeout(Time::from_micros(u64::MAX)).unwrap_err().reason);
    let mut unfinished = Connection::new(Config::new(Role::Server), Time::default());
    unfinished.handle_read(Time::default(), &mut BytesMut::from(&hello_bytes()[..])).unwrap();
    let mut part = BytesMut::from(&call_bytes(1, FLAG_END | FLAG_MESSAGE, "/echo", b"hello")[..50]);
    unfinished.handle_read(Time::default(), &mut part).unwrap();
    reached.insert(unfinished.handle_end(&part).reason());
    reached.insert(unfinished.handle_timeout(Time::from_micros(u64::MAX)).unwrap_err().reason);
    let wire = Reason::ALL.iter().filter(|reason| reason.class() == Class::Protocol);
    let never: Vec<_> = wire.filter(|reason| !reached.contains(reason)).collect();
    assert!(never.is_empty(), "nothing provokes {never:?}");
}

/// PROTOCOL.md is what a stranger reads: its lists of codes and reasons are those of the code, and so they cannot
/// change by accident.
// spec: W10-02
#[test]
fn the_specification_lists_every_code_and_reason() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../PROTOCOL.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (_, text) = text.split_once("### Error codes").unwrap();
    let (mut codes, mut reasons) = (Vec::new(), Vec::new());
    for line in text.lines().filter(|line| line.starts_with('|')) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        if let Ok(number) = cells[0].parse::<u16>() {
            let reason = if number == ErrorCode::CHECKSUM.number() { "PAYLOAD_CHECKSUM" } else { cells[2] };
            codes.push((number, cells[1], reason.split([',', ' ']).next().unwrap()));
        }
        for triple in cells.rsplit(|cell| cell.is_empty()) {
            if let [name, number, code] = triple
                && let (Ok(number), Ok(code)) = (number.parse::<u16>(), code.parse::<u32>())
            {
                reasons.push((number, *name, code));
            }
        }
    }
    reasons.sort_unstable();
    let ours = ErrorCode::ALL.iter().map(|code| (code.number(), code.name(), code.reason().name()));
    assert_eq!(codes, ours.collect::<Vec<_>>());
    let named = Reason::ALL.iter().filter(|reason| **reason != Reason::NONE);
    let ours = named.map(|reason| (reason.number(), reason.name(), reason.code().number()));
    assert_eq!(reasons, ours.collect::<Vec<_>>());
    for reason in Reason::ALL {
        assert_eq!(Reason::from_number(reason.number()), *reason);
        let class = [
            Class::Application,
            Class::Caller,
            Class::Auth,
            Class::Transient,
            Class::Server,
            Class::Protocol,
        ];
        assert_eq!(reason.class(), class[usize::from(reason.number() / 100)], "{reason:?}");
    }
}

/// A record as the core reads it, in the words of the vectors.
fn fields(frame_type: FrameType, record: &[u8]) -> Value {
    match frame_type {
        FrameType::HELLO => {
            let Hello { min_version, max_version, features, settings, extensions: more } =
                Hello::decode(record).unwrap();
            json!({"min_version": min_version, "max_version": max_version, "features": features,
                "settings": settings, "extensions": extensions(&more)})
        }
        FrameType::AUTH => {
            let Auth { token, extensions: more } = Auth::decode(record).unwrap();
            json!({"token": hex(token), "extensions": extensions(&more)})
        }
        FrameType::AUTHENTICATED => {
            let Authenticated { expires_in_ms, extensions: more } = Authenticated::decode(record).unwrap();
            json!({"expires_in_ms": expires_in_ms, "extensions": extensions(&more)})
        }
        FrameType::PING | FrameType::PONG => {
            let Ping { data, extensions: more } = Ping::decode(record).unwrap();
            json!({"data": data, "extensions": extensions(&more)})
        }
        FrameType::GOAWAY => {
            let GoAway { last_stream, code, message, extensions: more } = GoAway::decode(record).unwrap();
            json!({"last_stream": last_stream, "code": code, "message": message, "extensions": extensions(&more)})
        }
        FrameType::WINDOW => {
            let Window { offset, extensions: more } = Window::decode(record).unwrap();
            json!({"offset": offset, "extensions": extensions(&more)})
        }
        FrameType::CALL => {
            let Call { method, timeout_us, codec, schema, metadata, extensions: more } =
                Call::decode(record).unwrap();
            json!({"method": method, "timeout_us": timeout_us, "codec": codec, "schema": schema,
                "metadata": pairs(&metadata), "extensions": extensions(&more)})
        }
        FrameType::HEAD => {
            let Head { metadata, extensions: more } = Head::decode(record).unwrap();
            json!({"metadata": pairs(&metadata), "extensions": extensions(&more)})
        }
        FrameType::STATUS => {
            let read = StatusRecord::decode(record).unwrap();
            json!({"code": read.code, "reason": read.reason, "message": read.message,
                "details": pairs(&read.details), "pushback_ms": read.pushback_ms, "metadata": pairs(&read.metadata),
                "trailers": pairs(&read.trailers), "extensions": extensions(&read.extensions)})
        }
        FrameType::RESET => {
            let Reset { code, extensions: more } = Reset::decode(record).unwrap();
            json!({"code": code, "extensions": extensions(&more)})
        }
        _ => Value::Null,
    }
}

#[test]
fn every_record_of_the_vectors_reads_back_field_by_field() {
    for vector in frames() {
        let bytes = unhex(vector["hex"].as_str().unwrap());
        let header = FrameHeader::decode(bytes.first_chunk().unwrap()).unwrap();
        let record = &bytes[HEADER_LEN..HEADER_LEN + header.metadata_len as usize];
        assert_eq!(fields(header.frame_type, record), vector["record"], "{}", vector["name"]);
    }
}

// spec: W11-01
#[test]
fn any_split_of_the_bytes_gives_the_same_events() {
    let whole: Vec<u8> = [
        hello_bytes(),
        call_bytes(1, FLAG_MESSAGE | FLAG_MORE, "/echo", b"first "),
        frame(0xc3, 0, 0, 0, b"skip", b"me"),
        frame(0x12, FLAG_MESSAGE | FLAG_END, 1, 1, b"", b"second"),
        call_bytes(3, FLAG_END | FLAG_MESSAGE, "/echo", b"unary"),
    ]
    .concat();
    let run = |cuts: &[usize]| {
        let mut connection = Connection::new(Config::new(Role::Server), Time::default());
        let mut buffer = BytesMut::new();
        let mut events = Vec::new();
        let mut start = 0;
        for end in cuts.iter().copied().chain([whole.len()]) {
            buffer.extend_from_slice(&whole[start..end]);
            start = end;
            connection.handle_read(Time::default(), &mut buffer).unwrap();
            events.extend(std::iter::from_fn(|| connection.poll_event()));
        }
        assert!(buffer.is_empty());
        events
    };
    let expected = run(&[]);
    assert_eq!(expected.len(), 3);
    for cut in 0..=whole.len() {
        assert_eq!(run(&[cut]), expected, "cut at {cut}");
    }
    let every: Vec<usize> = (1..whole.len()).collect();
    assert_eq!(run(&every), expected, "one byte at a time");
}

// spec: W1-14
#[test]
fn an_end_inside_a_frame_is_told_from_a_clean_one() {
    let call = call_bytes(1, FLAG_END | FLAG_MESSAGE, "/echo", b"hello");
    for len in 0..call.len() {
        let mut connection = Connection::new(Config::new(Role::Server), Time::default());
        let mut buffer = BytesMut::from(&hello_bytes()[..]);
        buffer.extend_from_slice(&call[..len]);
        connection.handle_read(Time::default(), &mut buffer).unwrap();
        assert_eq!(connection.poll_event(), Some(valkyrie_protocol::Event::Connected));
        assert_eq!(connection.poll_event(), None, "a part of a frame was delivered");
        let status = connection.handle_end(&buffer);
        let expected = if len == 0 { "CONNECTION_LOST" } else { "TRUNCATED_FRAME" };
        assert_eq!(status.reason().name(), expected, "{len} bytes");
    }
}

// spec: W1-13
#[test]
fn a_claimed_length_allocates_nothing_ahead_of_its_check() {
    let mut huge = call_bytes(1, FLAG_END | FLAG_MESSAGE, "/echo", b"");
    huge[16..20].copy_from_slice(&(16u32 << 20).to_le_bytes());
    let huge = with_header(huge, 24, 1);
    let mut connection = Connection::new(Config::new(Role::Server), Time::default());
    let mut buffer = BytesMut::from(&hello_bytes()[..]);
    buffer.extend_from_slice(&huge);
    let error = connection.handle_read(Time::default(), &mut buffer).unwrap_err();
    assert_eq!(error.code, ErrorCode::FRAME_SIZE);
    assert!(buffer.capacity() < 64 << 10, "{} bytes reserved", buffer.capacity());

    // A length that is allowed gets room as bytes come, one read ahead, and not all that was claimed.
    let limits = Limits { max_frame_bytes: 1 << 20, stream_window_bytes: 1 << 20, ..Limits::default() };
    let mut connection = Connection::new(Config { limits, ..Config::new(Role::Server) }, Time::default());
    let payload = vec![7; 1 << 20];
    let mut call = &call_bytes(1, FLAG_MESSAGE | FLAG_END, "/echo", &payload)[..];
    let mut buffer = BytesMut::from(&hello_bytes()[..]);
    for part in [50, 1 << 10, 100 << 10, usize::MAX] {
        let (now, later) = call.split_at(part.min(call.len()));
        call = later;
        buffer.extend_from_slice(now);
        connection.handle_read(Time::default(), &mut buffer).unwrap();
        let most = 2 * (buffer.len() + (64 << 10));
        assert!(buffer.capacity() <= most, "{} of {} bytes", buffer.capacity(), buffer.len());
    }
    assert!(connection.poll_event().is_some() && buffer.is_empty());
}

// spec: W6-08, W9-06
#[test]
fn an_unfinished_frame_and_a_silent_peer_run_out_of_time() {
    let mut connection = Connection::new(Config::new(Role::Server), Time::default());
    let handshake = connection.poll_timeout().unwrap();
    assert_eq!(handshake, Time::from_micros(5_000_000));
    assert_eq!(connection.handle_timeout(handshake).unwrap_err().reason.name(), "HANDSHAKE_TIMEOUT");

    let mut connection = Connection::new(Config::new(Role::Server), Time::default());
    let mut buffer = BytesMut::from(&hello_bytes()[..]);
    buffer.extend_from_slice(&call_bytes(1, FLAG_END | FLAG_MESSAGE, "/echo", b"hello")[..50]);
    connection.handle_read(Time::from_micros(1), &mut buffer).unwrap();
    let due = connection.poll_timeout().unwrap();
    assert_eq!(due, Time::from_micros(10_000_001));
    assert_eq!(connection.handle_timeout(due).unwrap_err().reason.name(), "FRAME_TIMEOUT");
}
