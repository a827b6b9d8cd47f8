//! Calls of every shape over every built-in transport, against a real server.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::sync::Notify;
use valkyrie_sdk::{
    Bytes, CallOptions, Class, Client, ClientBuilder, Code, ConnectionInfo, ConnectionState, EchoHandler,
    Metadata, Priority, Reason, Reply, Security, Server, ServerBuilder, ServerControl, Status, handler_fn,
    policy::ServiceConfig,
};

/// Handlers that a test watches.
#[derive(Default)]
struct Watch {
    started: Notify,
    dropped: Notify,
    running: AtomicUsize,
}

struct Running(Arc<Watch>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, SeqCst);
        self.0.dropped.notify_one();
    }
}

async fn serve(binds: &[&str]) -> (Vec<String>, ServerControl, Arc<Watch>) {
    let watch = Arc::new(Watch::default());
    let watched = watch.clone();
    let (certificates, key) = identity();
    let mut builder = ServerBuilder::new()
        .drain_timeout_ms(2_000)
        .identity(certificates.as_str(), key.as_str())
        .open_to_all(true);
    for bind in binds {
        builder = builder.bind(*bind);
    }
    let server: Server = builder
        .handler("/echo", EchoHandler)
        .handler(
            "/hang",
            handler_fn(move |_call| {
                let watch = watched.clone();
                async move {
                    watch.running.fetch_add(1, SeqCst);
                    let _running = Running(watch.clone());
                    watch.started.notify_one();
                    std::future::pending::<Result<Reply, Status>>().await
                }
            }),
        )
        .handler(
            "/count",
            handler_fn(|mut call| async move {
                let count: usize = String::from_utf8_lossy(&call.message().await?).parse().unwrap_or(0);
                for number in 0..count {
                    call.send(number.to_string()).await?;
                }
                Ok(Reply::end())
            }),
        )
        .handler(
            "/sum",
            handler_fn(|mut call| async move {
                let mut sum = 0usize;
                while let Some(message) = call.recv().await? {
                    sum += message.len();
                }
                Ok(Reply::message(sum.to_string()))
            }),
        )
        .handler(
            "/status/*",
            handler_fn(|mut call| async move {
                let number = call.method().rsplit('/').next().and_then(|text| text.parse().ok()).unwrap_or(2);
                let message = String::from_utf8_lossy(&call.message().await?).into_owned();
                Err(Status::new(Code::from_number(number), message)
                    .with_detail("test.Detail", "d")
                    .with_pushback(Duration::from_millis(7)))
            }),
        )
        .handler(
            "/metadata",
            handler_fn(|call| async move {
                let metadata = call.metadata().clone();
                Ok(Reply::message("ok").with_metadata(metadata.clone()).with_trailers(metadata))
            }),
        )
        .handler(
            "/peer",
            handler_fn(|call| async move { Ok(Reply::message(format!("{:?}", call.peer().uid))) }),
        )
        .handler("/panic", handler_fn(|_call| async move { panic!("on purpose") }))
        .handler("/nothing", handler_fn(|_call| async move { Ok(Reply::end()) }))
        .build()
        .await
        .unwrap();
    let endpoints = server.endpoints();
    let control = server.control();
    tokio::spawn(async move { server.start().await });
    (endpoints, control, watch)
}

fn unique(name: &str) -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!("{name}-{}-{}", std::process::id(), NEXT.fetch_add(1, SeqCst))
}

/// A certificate for this machine, made anew for each run of the tests, and its key.
fn identity() -> &'static (String, String) {
    static IDENTITY: OnceLock<(String, String)> = OnceLock::new();
    IDENTITY.get_or_init(|| {
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    })
}

async fn connect(endpoint: &str) -> Result<Client, Status> {
    builder(endpoint).build().await
}

/// A client whose calls have time, however many programs share the processors.
fn builder(endpoint: &str) -> ClientBuilder {
    let builder = Client::builder().endpoint(endpoint).trusted_certificates(identity().0.as_str());
    builder.min_security(Security::Insecure).timeout_ms(60_000)
}

/// Calls have one attempt each: what became of it is their outcome.
fn one_attempt() -> ServiceConfig {
    let text = r#"{"methods": [{"names": ["*"], "retry": {"max_attempts": 1, "transparent": false}}]}"#;
    ServiceConfig::parse(text).unwrap()
}

/// The same tests over every kind of carrier.
macro_rules! over_every_transport {
    ($($test:ident)*) => {
        mod tcp {
            $(#[tokio::test] async fn $test() { super::$test("tcp://127.0.0.1:0".to_owned()).await })*
        }
        mod quic {
            $(#[tokio::test] async fn $test() { super::$test("quic://127.0.0.1:0".to_owned()).await })*
        }
        mod memory {
            $(#[tokio::test] async fn $test() {
                super::$test(format!("memory:{}", super::unique("calls"))).await
            })*
        }
        #[cfg(unix)]
        mod unix {
            $(#[tokio::test] async fn $test() {
                let path = std::env::temp_dir().join(super::unique("valkyrie-calls"));
                super::$test(format!("unix://{}", path.display())).await
            })*
        }
    };
}

over_every_transport! {
    every_shape_works
    metadata_goes_both_ways
    every_status_code_arrives_with_its_message_and_details
    the_librarys_own_errors_have_their_reasons
    a_cancelled_or_expired_call_drops_its_handler
    a_storm_of_cancels_costs_nothing_but_its_calls
    a_thousand_calls_share_one_connection_while_a_slow_reader_waits
    credit_comes_back_whatever_becomes_of_a_call
    more_calls_than_streams_wait_their_turn
    a_shutdown_lets_calls_finish_and_refuses_new_ones
    a_lost_server_ends_streams_and_the_next_call_dials_again
    closing_the_client_at_once_cancels_what_runs
    an_answer_before_the_end_of_the_upload_arrives
    calls_that_wait_leave_room_for_those_that_run
    spinning_changes_nothing
}

// spec: W11-06
async fn every_shape_works(bind: String) {
    for endpoint in serve(&[&bind]).await.0 {
        every_shape(&endpoint).await;
    }
}

async fn every_shape(endpoint: &str) {
    let client = connect(endpoint).await.unwrap();
    assert_eq!(client.request("Hello, World!").await.unwrap(), "Hello, World!", "{endpoint}");
    for size in [0, 1, 32, 16 << 10, (16 << 10) + 1, 64 << 10, (64 << 10) + 1, 1 << 20, 4 << 20] {
        let message = Bytes::from(vec![(size % 251) as u8; size]);
        assert_eq!(
            client.call("/echo", message.clone()).await.unwrap().message,
            message,
            "{endpoint} {size}"
        );
    }

    let mut counted = client.stream("/count", "500", CallOptions::new()).await.unwrap();
    for number in 0..500 {
        assert_eq!(counted.recv().await.unwrap().unwrap(), number.to_string());
    }
    assert_eq!(counted.recv().await.unwrap(), None);
    assert_eq!(counted.recv().await.unwrap(), None);

    let (mut send, mut recv) = client.open("/sum", CallOptions::new()).await.unwrap();
    for _ in 0..64 {
        send.send(vec![7; 100_000]).await.unwrap();
    }
    send.finish().await.unwrap();
    assert_eq!(send.send("late").await.unwrap_err().reason(), Reason::STREAM_MISUSE);
    assert_eq!(recv.recv().await.unwrap().unwrap(), "6400000");
    assert_eq!(recv.recv().await.unwrap(), None);

    let (mut send, mut recv) = client.open("/echo", CallOptions::new()).await.unwrap();
    for number in 0..100u32 {
        send.send(number.to_string()).await.unwrap();
        assert_eq!(recv.recv().await.unwrap().unwrap(), number.to_string());
    }
    send.finish().await.unwrap();
    assert_eq!(recv.recv().await.unwrap(), None);
    client.close().await;
    assert_eq!(client.request("late").await.unwrap_err().reason(), Reason::CLIENT_CLOSED);
    client.close().await;
}

#[cfg(unix)]
#[tokio::test]
async fn a_unix_socket_is_of_mode_0600_and_tells_who_calls() {
    use std::os::unix::fs::PermissionsExt;
    let path = std::env::temp_dir().join(unique("valkyrie-shapes"));
    let endpoint = format!("unix://{}", path.display());
    let (_, control, _) = serve(&[&endpoint]).await;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    // The system vouches for who calls: this process, as whom it made the socket's file.
    use std::os::unix::fs::MetadataExt;
    let client = Client::connect(&endpoint).await.unwrap();
    let peer = client.call("/peer", "").await.unwrap().message;
    assert_eq!(peer, format!("{:?}", Some(std::fs::metadata(&path).unwrap().uid())));
    control.shutdown().await;
}

#[tokio::test]
async fn a_method_goes_to_its_own_handler_or_the_longest_prefix() {
    let named =
        |name: &'static str| handler_fn(move |_| async move { Ok::<_, Status>(Reply::message(name)) });
    let endpoint = format!("memory:{}", unique("routes"));
    let server = ServerBuilder::new()
        .bind(&endpoint)
        .handler("/*", named("all"))
        .handler("/a/*", named("a"))
        .handler("/a/b/*", named("a-b"))
        .handler("/a/b", named("exact"))
        .build()
        .await
        .unwrap();
    tokio::spawn(async move { server.start().await });
    let client = Client::connect(&endpoint).await.unwrap();
    for (method, handler) in
        [("/a/b", "exact"), ("/a/b/c", "a-b"), ("/a/c", "a"), ("/a", "all"), ("/ab/c", "all"), ("/a/", "a")]
    {
        assert_eq!(client.call(method, "").await.unwrap().message, handler, "{method}");
    }
    for path in ["", "a", "/a*", "/*/a", "/a/*/b"] {
        let refused = ServerBuilder::new().bind("memory:refused").handler(path, EchoHandler).build().await;
        let status = refused.map(drop).unwrap_err();
        assert_eq!(status.reason(), Reason::INVALID_CONFIGURATION, "{path}");
        assert!(status.message().contains(&format!("{path:?}")), "{status}");
    }
}

// spec: W5-09
async fn metadata_goes_both_ways(bind: String) {
    let (endpoints, ..) = serve(&[&bind]).await;
    let client = connect(&endpoints[0]).await.unwrap();
    let metadata = Metadata::new()
        .with("text", "value")
        .unwrap()
        .with("data-bin", Bytes::from_static(b"\x00\xff\r\n"))
        .unwrap();
    let options = CallOptions::new().with_metadata(metadata.clone());
    let response = client.call_with("/metadata", "", options).await.unwrap();
    assert_eq!(response.metadata, metadata);
    assert_eq!(response.trailers, metadata);
}

async fn every_status_code_arrives_with_its_message_and_details(bind: String) {
    let (endpoints, ..) = serve(&[&bind]).await;
    let client = connect(&endpoints[0]).await.unwrap();
    for number in (1..=16).chain([99]) {
        let status = client.call(&format!("/status/{number}"), "a reason").await.unwrap_err();
        assert_eq!((status.code().number(), status.message()), (number, "a reason"));
        assert_eq!((status.reason(), status.class()), (Reason::NONE, Class::Application));
        assert_eq!(status.details()[0].value, "d");
        assert_eq!(status.pushback(), Some(Duration::from_millis(7)));
    }
}

async fn the_librarys_own_errors_have_their_reasons(bind: String) {
    let (endpoints, ..) = serve(&[&bind]).await;
    let client = connect(&endpoints[0]).await.unwrap();
    let reason = |result: Result<_, Status>| result.map(|_: valkyrie_sdk::Response| ()).unwrap_err().reason();
    assert_eq!(reason(client.call("/unknown", "").await), Reason::UNKNOWN_METHOD);
    assert_eq!(reason(client.call("unknown", "").await), Reason::INVALID_METHOD);
    assert_eq!(reason(client.call("/panic", "").await), Reason::HANDLER_PANICKED);
    assert_eq!(reason(client.call("/nothing", "").await), Reason::MISSING_MESSAGE);
    assert_eq!(reason(client.call("/echo", vec![0; (4 << 20) + 1]).await), Reason::MESSAGE_TOO_LARGE);
    let large = Metadata::new().with("large", "v".repeat(20_000)).unwrap();
    let options = CallOptions::new().with_metadata(large);
    assert_eq!(reason(client.call_with("/echo", "", options).await), Reason::METADATA_TOO_LARGE);
    let options = CallOptions::new().with_timeout(Duration::from_millis(30));
    assert_eq!(reason(client.call_with("/hang", "", options).await), Reason::DEADLINE_EXCEEDED);
    // The connection took no harm.
    assert_eq!(client.request("still here").await.unwrap(), "still here");

    let built = |endpoint: &str| {
        Client::builder().endpoint(endpoint).connect_lazily().map(drop).unwrap_err().reason()
    };
    assert_eq!(built("nonsense"), Reason::INVALID_ENDPOINT);
    assert_eq!(built("carrier-pigeon://loft"), Reason::UNSUPPORTED_SCHEME);
    let absent = Client::connect("tcp://127.0.0.1:1").await.map(drop).unwrap_err();
    assert_eq!((absent.code(), absent.reason()), (Code::Unavailable, Reason::CONNECT_FAILED));
    let absent = Client::connect("tcp://no-such-host.invalid:80").await.map(drop).unwrap_err();
    assert_eq!(absent.reason(), Reason::NAME_RESOLUTION);
    let taken = ServerBuilder::new()
        .bind(endpoints[0].clone())
        .identity(identity().0.as_str(), identity().1.as_str())
        .open_to_all(true)
        .build()
        .await
        .map(drop)
        .unwrap_err();
    assert_eq!(taken.reason(), Reason::BIND_FAILED);
}

// spec: W7-13, W7-17
async fn a_cancelled_or_expired_call_drops_its_handler(bind: String) {
    let (endpoints, _, watch) = serve(&[&bind]).await;
    let client = connect(&endpoints[0]).await.unwrap();
    let call = tokio::spawn({
        let client = client.clone();
        async move { client.call_with("/hang", "", CallOptions::new().with_timeout(Duration::MAX)).await }
    });
    watch.started.notified().await;
    call.abort();
    watch.dropped.notified().await;

    // Time enough to be read by the server before its deadline: a call that is given up before its handler starts has none.
    let options = CallOptions::new().with_timeout(Duration::from_secs(1));
    assert_eq!(client.call_with("/hang", "", options).await.unwrap_err().code(), Code::DeadlineExceeded);
    watch.dropped.notified().await;

    let (send, recv) = client.open("/hang", CallOptions::new()).await.unwrap();
    watch.started.notified().await;
    watch.started.notified().await;
    drop(send);
    watch.dropped.notified().await;
    drop(recv);
    assert_eq!(watch.running.load(SeqCst), 0);
    assert_eq!(client.connections()[0].streams, 0);
}

/// Ten times as many as a server forgives at once, and none beside them that completes.
// spec: W9-15
async fn a_storm_of_cancels_costs_nothing_but_its_calls(bind: String) {
    let (endpoints, control, watch) = serve(&[&bind]).await;
    let client = connect(&endpoints[0]).await.unwrap();
    let options = CallOptions::new().with_timeout(Duration::MAX);
    let calls: Vec<_> = (0..10_000)
        .map(|_| {
            let (client, options) = (client.clone(), options.clone());
            tokio::spawn(async move { client.call_with("/hang", "", options).await })
        })
        .collect();
    watch.started.notified().await;
    let connection = client.connections()[0].id;
    for call in &calls {
        call.abort();
    }
    for call in calls {
        assert!(call.await.unwrap_err().is_cancelled());
    }
    // Over QUIC the resets arrive in any order.
    let left = || watch.running.load(SeqCst) + control.connections()[0].streams;
    while left() > 0 {
        assert_eq!(client.request("alive").await.unwrap(), "alive");
    }
    let seen = [client.connections(), control.connections()].map(|of| (of.len(), of[0].streams));
    assert_eq!((seen, client.connections()[0].id), ([(1, 0), (1, 0)], connection));
}

async fn a_thousand_calls_share_one_connection_while_a_slow_reader_waits(bind: String) {
    let (endpoints, control, _) = serve(&[&bind]).await;
    let client = connect(&endpoints[0]).await.unwrap();
    let mut slow = client.stream("/count", "20000", CallOptions::new()).await.unwrap();
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..1_000u32 {
        let client = client.clone();
        calls.spawn(async move { (number, client.request(number.to_string()).await.unwrap()) });
    }
    while let Some(done) = calls.join_next().await {
        let (number, answer) = done.unwrap();
        assert_eq!(answer, number.to_string());
    }
    assert_eq!(control.stats().connections, 1);
    let mut count = 0;
    while slow.recv().await.unwrap().is_some() {
        count += 1;
    }
    assert_eq!(count, 20_000);
}

/// However a call ends, and whoever never read its messages: a connection that lost their credit would stop.
// spec: W8-04
async fn credit_comes_back_whatever_becomes_of_a_call(bind: String) {
    let (endpoints, _, watch) = serve(&[&bind]).await;
    let client = connect(&endpoints[0]).await.unwrap();
    let message = Bytes::from(vec![7; 60 << 10]);
    let whole_window = Bytes::from(vec![7; 1 << 20]);
    for method in ["/unknown", "/panic", "/nothing", "/status/5", "/metadata"] {
        // More than the connection's window in all.
        for _ in 0..20 {
            let _ = client.call(method, message.clone()).await;
        }
        assert!(client.call("/sum", whole_window.clone()).await.is_ok(), "{method}, unary");
        for _ in 0..20 {
            let (mut send, mut recv) = client.open(method, CallOptions::new()).await.unwrap();
            for _ in 0..3 {
                let _ = send.send(message.clone()).await;
            }
            let _ = send.finish().await;
            while let Ok(Some(_)) = recv.recv().await {}
        }
        assert!(client.call("/sum", whole_window.clone()).await.is_ok(), "{method}, streamed");
    }
    for _ in 0..20 {
        let (mut send, recv) = client.open("/hang", CallOptions::new()).await.unwrap();
        send.send(message.clone()).await.unwrap();
        watch.started.notified().await;
        drop((send, recv));
        watch.dropped.notified().await;
    }
    assert!(client.call("/sum", whole_window.clone()).await.is_ok(), "cancelled while it ran");
}

// spec: W7-19
#[tokio::test]
async fn calls_beyond_the_running_handlers_wait_in_order() {
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let order = Arc::new(std::sync::Mutex::new(Vec::new()));
    let (opened, seen) = (gate.clone(), order.clone());
    let endpoint = format!("memory:{}", unique("order"));
    let server = ServerBuilder::new()
        .bind(&endpoint)
        .max_running_handlers(2)
        .handler(
            "/note/*",
            handler_fn(move |call| {
                seen.lock().unwrap().push(call.method().to_owned());
                let gate = opened.clone();
                async move {
                    gate.acquire().await.map_err(|_| Status::new(Code::Aborted, "closed"))?.forget();
                    Ok(Reply::end())
                }
            }),
        )
        .build()
        .await
        .unwrap();
    let control = server.control();
    tokio::spawn(async move { server.start().await });
    let client = Client::connect(&endpoint).await.unwrap();
    let methods: Vec<String> = (0..50).map(|number| format!("/note/{number}")).collect();
    let mut calls = Vec::new();
    for method in &methods {
        calls.push(client.open(method, CallOptions::new()).await.unwrap());
    }
    while control.connections().first().is_none_or(|at| at.calls < methods.len() as u64) {
        tokio::task::yield_now().await;
    }
    gate.add_permits(methods.len());
    for (_send, recv) in &mut calls {
        assert_eq!(recv.recv().await.unwrap(), None);
    }
    assert_eq!(*order.lock().unwrap(), methods);
}

#[tokio::test]
async fn credit_comes_back_of_calls_that_nobody_reads() {
    let handlers = Arc::new(tokio::sync::Semaphore::new(0));
    let gate = handlers.clone();
    let endpoint = format!("memory:{}", unique("queue"));
    let server = ServerBuilder::new()
        .bind(&endpoint)
        .max_running_handlers(1)
        .handler(
            "/gate",
            handler_fn(move |call| {
                // It will not read, and ends later.
                drop(call);
                let gate = gate.clone();
                async move {
                    gate.acquire().await.map_err(|_| Status::new(Code::Aborted, "closed"))?.forget();
                    Ok(Reply::message(""))
                }
            }),
        )
        .handler("/echo", EchoHandler)
        .build()
        .await
        .unwrap();
    let control = server.control();
    tokio::spawn(async move { server.start().await });
    let client = Client::connect(&endpoint).await.unwrap();
    let message = Bytes::from(vec![7; 60 << 10]);
    let until = async |reached: &dyn Fn(&ConnectionInfo) -> bool| {
        while !control.connections().first().is_some_and(reached) {
            tokio::task::yield_now().await;
        }
    };
    for round in 0..20u64 {
        let running = tokio::spawn({
            let client = client.clone();
            async move { client.call("/gate", "").await }
        });
        until(&|at| at.calls > 2 * round).await;
        // Behind the one that runs, with its message.
        let waiting = tokio::spawn({
            let (client, message) = (client.clone(), message.clone());
            async move { client.call("/gate", message).await }
        });
        until(&|at| at.calls > 2 * round + 1).await;
        waiting.abort();
        until(&|at| at.streams == 1).await;
        handlers.add_permits(1);
        running.await.unwrap().unwrap();
    }
    assert!(client.request(vec![7; 1 << 20]).await.is_ok(), "given up in the queue");
    for _ in 0..20 {
        let before = control.connections()[0].calls;
        let (mut send, mut recv) = client.open("/gate", CallOptions::new()).await.unwrap();
        send.send("first").await.unwrap();
        until(&|at| at.calls == before + 1).await;
        send.send(message.clone()).await.unwrap();
        // What is sent after it arrives after it.
        let after = tokio::spawn({
            let client = client.clone();
            async move { client.request("after").await }
        });
        until(&|at| at.calls == before + 2).await;
        handlers.add_permits(1);
        while let Ok(Some(_)) = recv.recv().await {}
        after.await.unwrap().unwrap();
    }
    assert!(client.request(vec![7; 1 << 20]).await.is_ok(), "sent to a handler that reads nothing");
}

/// Both sides look for bytes before they sleep: one call after the other, many at once, and the end of the server.
async fn spinning_changes_nothing(bind: String) {
    let (certificates, key) = identity();
    let builder =
        ServerBuilder::new().bind(&bind).identity(certificates.as_str(), key.as_str()).open_to_all(true);
    let server =
        builder.spin_us(20).drain_timeout_ms(2_000).handler("/echo", EchoHandler).build().await.unwrap();
    let (endpoint, control) = (server.endpoints().remove(0), server.control());
    let served = tokio::spawn(async move { server.start().await });
    let client = Client::builder().endpoint(endpoint).trusted_certificates(certificates.as_str()).spin_us(20);
    let client = client.min_security(Security::Insecure);
    let client = client.timeout_ms(60_000).build().await.unwrap();
    for number in 0..200 {
        let message = number.to_string();
        assert_eq!(client.request(message.clone()).await.unwrap(), message);
    }
    let large = Bytes::from(vec![7; 300 << 10]);
    let many: Vec<_> = (0..8)
        .map(|_| {
            let (client, large) = (client.clone(), large.clone());
            tokio::spawn(async move { client.request(large).await })
        })
        .collect();
    for call in many {
        assert_eq!(call.await.unwrap().unwrap(), large);
    }
    let (_send, mut recv) = client.open("/echo", CallOptions::new()).await.unwrap();
    control.shutdown_now();
    assert!(recv.recv().await.is_err());
    served.await.unwrap().unwrap();
}

/// A server with one permit, and a client of it.
async fn one_permit(bind: &str) -> (ServerControl, Client) {
    let (certificates, key) = identity();
    let server = ServerBuilder::new()
        .bind(bind)
        .identity(certificates.as_str(), key.as_str())
        .open_to_all(true)
        .max_running_handlers(1)
        .handler("/echo", EchoHandler)
        .build()
        .await
        .unwrap();
    let (endpoint, control) = (server.endpoints().remove(0), server.control());
    tokio::spawn(async move { server.start().await });
    let client = Client::builder().endpoint(endpoint).trusted_certificates(certificates.as_str());
    let client = client.min_security(Security::Insecure).service_config(one_attempt());
    (control, client.timeout_ms(60_000).build().await.unwrap())
}

// spec: W8-08
async fn calls_that_wait_leave_room_for_those_that_run(bind: String) {
    let (control, client) = one_permit(&bind).await;
    let (mut send, mut recv) = client.open("/echo", CallOptions::new()).await.unwrap();
    send.send("first").await.unwrap();
    assert_eq!(recv.recv().await.unwrap().unwrap(), "first");
    // More than twice the connection's window, all of it at the server and none of it begun.
    let message = Bytes::from(vec![7; 60 << 10]);
    let waiting: Vec<_> = (0..40)
        .map(|_| {
            let (client, message) = (client.clone(), message.clone());
            tokio::spawn(async move { client.request(message).await })
        })
        .collect();
    let all_run = async {
        while control.connections()[0].calls < 41 {
            tokio::task::yield_now().await;
        }
        for _ in 0..20 {
            send.send(message.clone()).await.unwrap();
            assert_eq!(recv.recv().await.unwrap().unwrap(), message);
        }
        send.finish().await.unwrap();
        assert_eq!(recv.recv().await.unwrap(), None);
        for call in waiting {
            assert_eq!(call.await.unwrap().unwrap(), message);
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all_run).await.expect("the calls hang");
    assert!(client.request(vec![7; 2 << 20]).await.is_ok(), "the credit came back");
}

/// Streams that nobody reads fill what their class may have of the connection, and no more urgent call waits for them.
// spec: W8-09, W8-10
#[tokio::test]
async fn f28_unread_streams_of_a_class_stop_no_more_urgent_call() {
    let (endpoints, _control, _watch) = serve(&[&format!("memory:{}", unique("kept"))]).await;
    let client = Client::connect(&endpoints[0]).await.unwrap();
    let message = Bytes::from(vec![7; 60 << 10]);
    let mut unread = Vec::new();
    for (class, next) in [(Priority::Bulk, Priority::Normal), (Priority::Normal, Priority::Critical)] {
        for _ in 0..16 {
            let (mut send, recv) =
                client.open("/hang", CallOptions::new().with_priority(class)).await.unwrap();
            let message = message.clone();
            let sender = tokio::spawn(async move { while send.send(message.clone()).await.is_ok() {} });
            unread.push((sender, recv));
        }
        for _ in 0..40 {
            let options = CallOptions::new().with_priority(next);
            let call = client.call_with("/echo", message.clone(), options);
            let reply = tokio::time::timeout(Duration::from_secs(60), call).await.expect("the call hangs");
            assert_eq!(reply.unwrap().message, message);
        }
    }
}

// spec: W8-08
#[tokio::test]
async fn calls_that_wait_are_refused_beyond_their_bound() {
    let (control, client) = one_permit(&format!("memory:{}", unique("bound"))).await;
    let (mut send, mut recv) = client.open("/echo", CallOptions::new()).await.unwrap();
    send.send("first").await.unwrap();
    assert_eq!(recv.recv().await.unwrap().unwrap(), "first");
    // 64 MiB hold 273 of them.
    let message = Bytes::from(vec![7; 240 << 10]);
    let waiting: Vec<_> = (0..300)
        .map(|_| {
            let (client, message) = (client.clone(), message.clone());
            let options = CallOptions::new().with_timeout(Duration::from_secs(60));
            tokio::spawn(async move { client.call_with("/echo", message, options).await })
        })
        .collect();
    let all_seen = async {
        while control.connections()[0].calls < 301 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all_seen).await.expect("the calls hang");
    send.finish().await.unwrap();
    assert_eq!(recv.recv().await.unwrap(), None);
    let mut refused = 0;
    for call in waiting {
        match call.await.unwrap() {
            Ok(_) => {}
            Err(status) => {
                assert_eq!(status.reason(), Reason::STREAM_REFUSED, "{status}");
                refused += 1;
            }
        }
    }
    assert!((1..=27).contains(&refused), "{refused}");
}

async fn more_calls_than_streams_wait_their_turn(bind: String) {
    let (endpoints, ..) = serve(&[&bind]).await;
    let client = connect(&endpoints[0]).await.unwrap();
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..3_000u32 {
        let client = client.clone();
        let method = if number % 2 == 0 { "/sum" } else { "/echo" };
        calls.spawn(async move { client.call(method, number.to_string()).await });
    }
    while let Some(done) = calls.join_next().await {
        done.unwrap().unwrap();
    }
}

// spec: W9-02, W11-13
async fn a_shutdown_lets_calls_finish_and_refuses_new_ones(bind: String) {
    let (endpoints, control, _) = serve(&[&bind]).await;
    let client = builder(&endpoints[0]).service_config(one_attempt()).build().await.unwrap();
    let (mut send, mut recv) = client.open("/echo", CallOptions::new()).await.unwrap();
    send.send("before").await.unwrap();
    assert_eq!(recv.recv().await.unwrap().unwrap(), "before");
    control.drain();
    send.send("after").await.unwrap();
    assert_eq!(recv.recv().await.unwrap().unwrap(), "after");
    // What is on its way until the client has been told is taken.
    while client.connections().iter().any(|connection| connection.state == ConnectionState::Open) {
        tokio::task::yield_now().await;
    }
    assert_eq!(client.request("new").await.unwrap_err().code(), Code::Unavailable);
    send.finish().await.unwrap();
    assert_eq!(recv.recv().await.unwrap(), None);
    control.shutdown().await;
    assert_eq!((control.stats().connections, control.stats().calls_cut), (0, 0));
}

async fn a_lost_server_ends_streams_and_the_next_call_dials_again(bind: String) {
    let (endpoints, control, _) = serve(&[&bind]).await;
    let client = connect(&endpoints[0]).await.unwrap();
    let (_send, mut recv) = client.open("/hang", CallOptions::new()).await.unwrap();
    client.request("up").await.unwrap();
    control.shutdown_now();
    let status = recv.recv().await.unwrap_err();
    assert_eq!((status.code(), status.reason()), (Code::Unavailable, Reason::CONNECTION_LOST));
    control.shutdown().await;
    assert_eq!(control.stats().calls_cut, 1);

    let address = endpoints[0].clone();
    let server = ServerBuilder::new()
        .bind(address)
        .identity(identity().0.as_str(), identity().1.as_str())
        .open_to_all(true)
        .handler("/echo", EchoHandler)
        .build()
        .await
        .unwrap();
    tokio::spawn(async move { server.start().await });
    assert_eq!(client.request("again").await.unwrap(), "again");
}

// spec: W11-12
async fn an_answer_before_the_end_of_the_upload_arrives(bind: String) {
    let (endpoints, ..) = serve(&[&bind]).await;
    let client = connect(&endpoints[0]).await.unwrap();
    for _ in 0..50 {
        let (mut send, mut recv) = client.open("/status/5", CallOptions::new()).await.unwrap();
        // The handler reads the first and answers; the others are on their way.
        let refused = loop {
            if let Err(status) = send.send(vec![7; 20_000]).await {
                break status;
            }
        };
        let status = recv.recv().await.unwrap_err();
        assert_eq!((status.code(), refused.code()), (Code::NotFound, Code::NotFound), "{status} {refused}");
    }
}

async fn closing_the_client_at_once_cancels_what_runs(bind: String) {
    let (endpoints, _, watch) = serve(&[&bind]).await;
    let client = connect(&endpoints[0]).await.unwrap();
    let call = tokio::spawn({
        let client = client.clone();
        async move { client.call("/hang", "").await }
    });
    watch.started.notified().await;
    let (mut send, _recv) = client.open("/hang", CallOptions::new()).await.unwrap();
    send.send("in time").await.unwrap();
    client.close_now();
    // Nobody would send it any more.
    let late = send.send("late").await.unwrap_err();
    assert_eq!((late.code(), late.reason()), (Code::Cancelled, Reason::CLIENT_CLOSED));
    let status = call.await.unwrap().unwrap_err();
    assert_eq!((status.code(), status.reason()), (Code::Cancelled, Reason::CLIENT_CLOSED));
    watch.dropped.notified().await;
}

#[test]
fn a_client_whose_runtime_has_ended_gives_an_error() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let client = {
        let _entered = runtime.enter();
        Client::builder().endpoint("tcp://127.0.0.1:1").connect_lazily().unwrap()
    };
    runtime.shutdown_background();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for _ in 0..2 {
            tell.send(runtime.block_on(client.ready())).unwrap();
        }
    });
    for _ in 0..2 {
        // A thread that hangs is left behind.
        let refused = told.recv_timeout(Duration::from_secs(60)).expect("it hangs").unwrap_err();
        assert_eq!(refused.reason(), Reason::CONNECT_FAILED);
    }
}
