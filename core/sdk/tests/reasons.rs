//! Every reason that is not the wire's own, provoked once through the interface that users have. The wire's own are
//! provoked in the protocol's tests, and those of the language boundary in the bridge's.

use std::{
    collections::BTreeSet,
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use valkyrie_protocol::{ErrorCode, FrameHeader, FrameType, GoAway, Hello, Reset};
use valkyrie_sdk::{
    BoxFuture, CallOptions, Class, Client, Connector, EchoHandler, Endpoint, Metadata, Principal, Reason,
    Reply, ServerBuilder, Sink, Status, Time, Transport,
    access::{Access, Policy},
    handler_fn,
    policy::{LimiterPolicy, ServiceConfig},
};

/// Provoked by tests/tls.rs and tests/certificates.rs.
const OF_TLS: std::ops::RangeInclusive<u16> =
    Reason::CERTIFICATE_UNTRUSTED.number()..=Reason::RECORD_AUTHENTICATION.number();

/// Provoked by the tests of the bridge.
const OF_THE_BOUNDARY: [Reason; 2] = [Reason::FORKED, Reason::ABANDONED];

fn frame(frame_type: FrameType, stream: u64, record: impl FnOnce(&mut BytesMut)) -> Vec<u8> {
    let mut body = BytesMut::new();
    record(&mut body);
    let header = FrameHeader {
        frame_type,
        flags: 0,
        stream,
        payload_len: 0,
        metadata_len: body.len() as u32,
        priority: 0,
        epoch: 0,
        payload_crc: crc32c::crc32c(&body),
    };
    [&header.encode()[..], &body].concat()
}

/// What a call ends with when its server says hello and then this.
async fn answered_with(bytes: Vec<u8>) -> Status {
    let hello =
        Hello { min_version: 1, max_version: 1, features: 0, settings: Vec::new(), extensions: Vec::new() };
    let greeting = frame(FrameType::HELLO, 0, |out| hello.encode(out));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("tcp://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut call = [0; 80];
        socket.read_exact(&mut call).await.unwrap();
        socket.write_all(&[greeting, bytes].concat()).await.unwrap();
        // Open until the caller is done with it.
        let _ = socket.read_to_end(&mut Vec::new()).await;
    });
    let once = r#"{"methods": [{"names": ["*"], "retry": {"max_attempts": 1, "transparent": false}}]}"#;
    let client = Client::builder().endpoint(endpoint).service_config(ServiceConfig::parse(once).unwrap());
    let client = client.build().await.unwrap();
    let status = client.request("hello").await.unwrap_err();
    client.close_now();
    server.await.unwrap();
    status
}

async fn reset_with(code: ErrorCode) -> Status {
    let reset = Reset { code: code.number(), extensions: Vec::new() };
    answered_with(frame(FrameType::RESET, 1, |out| reset.encode(out))).await
}

async fn go_away_with(code: ErrorCode) -> Status {
    let go_away = GoAway { last_stream: 0, code: code.number(), message: "as asked", extensions: Vec::new() };
    answered_with(frame(FrameType::GOAWAY, 0, |out| go_away.encode(out))).await
}

/// What a client that gives up as soon as this says so says at last to calls that are always UNAVAILABLE.
async fn given_up(endpoint: &str, config: &str) -> Status {
    let client = Client::builder().endpoint(endpoint).service_config(ServiceConfig::parse(config).unwrap());
    let client = client.build().await.unwrap();
    loop {
        let status = client.call("/away", "").await.unwrap_err();
        if status.reason() != Reason::NONE {
            return status;
        }
    }
}

/// A transport that never gets there.
struct Never;

impl Connector for Never {
    fn connect<'a>(&'a self, _: &'a Endpoint) -> BoxFuture<'a, io::Result<Box<dyn Transport>>> {
        Box::pin(std::future::pending())
    }
}

/// Tells a test what a submitted call came to.
struct Told(tokio::sync::mpsc::UnboundedSender<Status>);

impl Sink for Told {
    fn complete(&self, _token: u64, result: Result<valkyrie_sdk::Response, Status>) {
        let _ = self.0.send(result.unwrap_err());
    }
}

#[tokio::test]
async fn errors_are_reachable() {
    let server = ServerBuilder::new()
        .bind("127.0.0.1:0")
        .handler("/echo", EchoHandler)
        .handler("/hang", handler_fn(|_| std::future::pending::<Result<Reply, Status>>()))
        .handler("/panic", handler_fn(|_| async { panic!("on purpose") }))
        .handler("/nothing", handler_fn(|_| async { Ok(Reply::end()) }))
        .handler("/own", handler_fn(|_| async { Err(Status::new(valkyrie_sdk::Code::NotFound, "no such")) }))
        .handler("/away", handler_fn(|_| async { Err(Status::new(valkyrie_sdk::Code::Unavailable, "away")) }))
        .handler("/needs", handler_fn(|mut call| async move { call.message().await.map(Reply::message) }))
        .build()
        .await
        .unwrap();
    let (endpoint, control) = (server.endpoints()[0].clone(), server.control());
    let serving = tokio::spawn(async move { server.start().await });
    let client = Client::connect(&endpoint).await.unwrap();
    let call = async |method: &str| client.call(method, "").await.map(drop).unwrap_err();
    let connect = async |endpoint: &str| Client::connect(endpoint).await.map(drop).unwrap_err();
    let mut reached = Vec::new();

    reached.push((Reason::NONE, call("/own").await));
    reached.push((Reason::INVALID_ARGUMENT, {
        let (mut send, mut recv) = client.open("/needs", CallOptions::new()).await.unwrap();
        send.finish().await.unwrap();
        recv.recv().await.unwrap_err()
    }));
    reached.push((Reason::INVALID_ENDPOINT, connect("nonsense").await));
    reached.push((Reason::UNSUPPORTED_SCHEME, connect("carrier-pigeon://loft").await));
    reached.push((Reason::INVALID_METHOD, call("no slash").await));
    reached.push((Reason::INVALID_METADATA, Metadata::new().with("Upper", "case").unwrap_err().into()));
    reached.push((Reason::MESSAGE_TOO_LARGE, { client.request(vec![0; (4 << 20) + 1]).await.unwrap_err() }));
    reached.push((Reason::METADATA_TOO_LARGE, {
        let large = Metadata::new().with("large", "v".repeat(20_000)).unwrap();
        let options = CallOptions::new().with_metadata(large);
        client.call_with("/echo", "", options).await.map(drop).unwrap_err()
    }));
    reached.push((Reason::CANCELLED, {
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        let submission = client.submit("/hang", "".into(), CallOptions::new(), 1, Arc::new(Told(tell)));
        submission.cancel();
        told.recv().await.unwrap()
    }));
    reached.push((Reason::DEADLINE_EXCEEDED, {
        let options = CallOptions::new().with_timeout(Duration::from_millis(20));
        client.call_with("/hang", "", options).await.map(drop).unwrap_err()
    }));
    reached.push((Reason::CLIENT_CLOSED, {
        let closed = Client::connect(&endpoint).await.unwrap();
        closed.close().await;
        closed.request("late").await.unwrap_err()
    }));
    reached.push((Reason::STREAM_MISUSE, {
        let (mut send, _recv) = client.open("/echo", CallOptions::new()).await.unwrap();
        send.finish().await.unwrap();
        send.send("after the end").await.unwrap_err()
    }));
    reached.push((Reason::INVALID_CONFIGURATION, {
        ServerBuilder::new()
            .bind("127.0.0.1:0")
            .handler("no slash", EchoHandler)
            .build()
            .await
            .map(drop)
            .unwrap_err()
    }));
    reached.push((Reason::UNKNOWN_METHOD, call("/unknown").await));
    reached.push((Reason::BIND_FAILED, {
        ServerBuilder::new()
            .bind(&endpoint)
            .handler("/echo", EchoHandler)
            .build()
            .await
            .map(drop)
            .unwrap_err()
    }));

    let access = Access::new(
        Policy::from_toml(
            "version = 1\n[roles.some]\nallow = ['/a']\n[[bindings]]\nprincipals = ['*']\nroles = ['some']\n\
             [[quotas]]\nprincipals = ['*']\ncalls = 1\nseconds = 60\n",
        )
        .unwrap(),
    );
    let admit = |principal: &str, method: &str| {
        access.admit(
            &Principal::new(principal),
            method,
            "memory:",
            1,
            Time::default(),
            SystemTime::UNIX_EPOCH,
        )
    };
    admit("sub:a", "/a").unwrap();
    reached.push((Reason::UNAUTHENTICATED, admit(Principal::ANONYMOUS, "/b").unwrap_err()));
    reached.push((Reason::PERMISSION_DENIED, admit("sub:a", "/b").unwrap_err()));
    reached.push((Reason::RATE_LIMITED, admit("sub:a", "/a").unwrap_err()));

    reached.push((Reason::CONNECT_FAILED, connect("tcp://127.0.0.1:1").await));
    reached.push((Reason::CONNECT_TIMEOUT, {
        let builder = Client::builder().endpoint("never://here").connector("never", Arc::new(Never));
        builder.connect_timeout_ms(20).build().await.map(drop).unwrap_err()
    }));
    reached.push((Reason::NAME_RESOLUTION, connect("tcp://no-such-host.invalid:80").await));
    reached.push((Reason::CREDENTIALS_REFUSED, go_away_with(ErrorCode::UNAUTHENTICATED).await));
    reached.push((Reason::CREDENTIALS_EXPIRED, reset_with(ErrorCode::UNAUTHENTICATED).await));
    reached.push((Reason::CREDENTIALS_UNAVAILABLE, {
        let long = Client::builder().endpoint(&endpoint).token("t".repeat(8_193));
        long.build().await.map(drop).unwrap_err()
    }));
    reached.push((Reason::INSECURE_CREDENTIALS, {
        let far = Client::builder().endpoint("tcp://192.0.2.1:80").token("token");
        far.build().await.map(drop).unwrap_err()
    }));
    reached.push((Reason::GOING_AWAY, go_away_with(ErrorCode::NO_ERROR).await));
    reached.push((Reason::STREAM_REFUSED, reset_with(ErrorCode::REFUSED).await));
    reached.push((Reason::QUEUE_FULL, {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = Client::connect(&format!("tcp://{}", silent.local_addr().unwrap())).await.unwrap();
        let mut calls = Vec::new();
        loop {
            match client.open("/echo", CallOptions::new()).await {
                Ok(call) => calls.push(call),
                Err(status) => break status,
            }
        }
    }));
    reached.push((Reason::OVERLOADED, {
        let one = LimiterPolicy { min: 1, initial: 1, max: 1, ..LimiterPolicy::default() };
        let hang = handler_fn(|_| std::future::pending::<Result<Reply, Status>>());
        let server = ServerBuilder::new().bind("127.0.0.1:0").handler("/hang", hang).concurrency_limit(one);
        let server = server.build().await.unwrap();
        let client = Client::builder().endpoint(&server.endpoints()[0]).connect_lazily().unwrap();
        tokio::spawn(async move { server.start().await });
        let _runs = client.open("/hang", CallOptions::new()).await.unwrap();
        client.call("/hang", "").await.map(drop).unwrap_err()
    }));
    reached.push((Reason::ENHANCE_CALM, go_away_with(ErrorCode::ENHANCE_CALM).await));

    let breaker = r#"{"methods": [{"names": ["*"], "breaker": {"min_calls": 3}}]}"#;
    reached.push((Reason::BREAKER_OPEN, given_up(&endpoint, breaker).await));
    let throttle =
        r#"{"methods": [{"names": ["*"], "breaker": {"enabled": false}}], "throttle": {"min_calls": 3}}"#;
    reached.push((Reason::THROTTLED, given_up(&endpoint, throttle).await));

    reached.push((Reason::HANDLER_PANICKED, call("/panic").await));
    reached.push((Reason::MISSING_MESSAGE, call("/nothing").await));
    reached.push((Reason::KEY_FORGOTTEN, {
        let key = Metadata::new().with("valkyrie-idempotency-key-bin", "key").unwrap();
        let again = CallOptions::new().with_metadata(key.with("valkyrie-key-age-ms", "1").unwrap());
        client.call_with("/echo", "", again).await.map(drop).unwrap_err()
    }));
    reached.push((Reason::INTERNAL, go_away_with(ErrorCode::INTERNAL).await));

    reached.push((Reason::CONNECTION_LOST, {
        let (_send, mut recv) = client.open("/hang", CallOptions::new()).await.unwrap();
        client.request("it stands").await.unwrap();
        control.shutdown_now();
        recv.recv().await.unwrap_err()
    }));
    serving.await.unwrap().unwrap();

    let mut seen: BTreeSet<Reason> = OF_THE_BOUNDARY.into();
    seen.extend(OF_TLS.map(Reason::from_number));
    for (expected, status) in reached {
        assert_eq!(status.reason(), expected, "{status}");
        // The reason gives the code; only the application's own statuses have any.
        assert!(expected == Reason::NONE || status.code() == expected.code(), "{status}");
        assert!(!status.message().is_empty(), "{expected}");
        seen.insert(expected);
    }
    let ours = Reason::ALL.iter().filter(|reason| reason.class() != Class::Protocol);
    let never: Vec<_> = ours.filter(|reason| !seen.contains(reason)).collect();
    assert!(never.is_empty(), "nothing provokes {never:?}");
    assert!(Reason::ALL.len() > 22);
}
