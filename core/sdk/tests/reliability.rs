//! What a client does about servers that fail: real servers, real sockets, and a count of what was executed.

mod calling;

use std::{
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::Poll,
    time::Duration,
};

use calling::{Executed, bounded, call_all, counting};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use valkyrie_sdk::{
    Bytes, CallOptions, Client, ClientBuilder, Code, Connectivity, EchoHandler, Level, Limits, Log, Reason,
    Record, Reply, Response, ServerBuilder, ServerControl, Sink, Status, handler_fn, policy::ServiceConfig,
};

struct Serving {
    endpoint: String,
    control: ServerControl,
}

/// A server that counts what it executes.
async fn serve(bind: &str, executed: &Executed) -> Serving {
    let server =
        ServerBuilder::new().bind(bind).handler("/count", counting(executed)).handler("/echo", EchoHandler);
    let server = bounded("a bind", server.build()).await.unwrap();
    let serving = Serving { endpoint: server.endpoints().remove(0), control: server.control() };
    tokio::spawn(async move { server.start().await });
    serving
}

fn config(text: &str) -> ServiceConfig {
    ServiceConfig::parse(text).unwrap()
}

fn list(servers: &[Serving]) -> String {
    servers.iter().map(|serving| serving.endpoint.as_str()).collect::<Vec<_>>().join(",")
}

/// One of three servers goes away, at once and for good, while many idempotent calls are made: none of them fails.
#[tokio::test(flavor = "multi_thread")]
async fn idempotent_calls_outlive_a_server() {
    for policy in ["pick_first", "round_robin", "least_request"] {
        let executed = Executed::default();
        let mut servers = Vec::new();
        for _ in 0..3 {
            servers.push(serve("127.0.0.1:0", &executed).await);
        }
        let text = format!(
            r#"{{"methods": [{{"names": ["/count"], "idempotent": true}}], "balance": {{"policy": "{policy}"}}}}"#
        );
        let client = Client::builder().endpoint(list(&servers)).service_config(config(&text));
        let client = bounded("a connect", client.build()).await.unwrap();
        let (callers, made) = call_all(&client, 32, 10_000);
        while made.load(SeqCst) < 3_000 {
            tokio::task::yield_now().await;
        }
        servers[0].control.shutdown_now();
        for caller in callers {
            caller.await.unwrap();
        }
        assert_eq!(executed.lock().unwrap().len(), 10_000);
        let with_calls = |serving: &&Serving| serving.control.stats().calls_total > 0;
        let used = servers.iter().filter(with_calls).count();
        assert_eq!(used, if policy == "pick_first" { 2 } else { 3 }, "{policy}");
        client.close().await;
    }
}

/// A server goes with many more calls under way than the retry budget pays for one by one: all of them are answered by the other.
#[tokio::test(flavor = "multi_thread")]
async fn all_calls_of_a_lost_connection_are_tried_elsewhere() {
    const CALLS: usize = 600;
    let (running, executed) = (Arc::new(AtomicUsize::new(0)), Executed::default());
    let hangs = {
        let running = running.clone();
        handler_fn(move |_| {
            running.fetch_add(1, SeqCst);
            std::future::pending()
        })
    };
    let first = ServerBuilder::new().bind("127.0.0.1:0").max_running_handlers(1_000);
    let first = first.handler("/count", hangs).handler("/echo", EchoHandler);
    let first = first.build().await.unwrap();
    let control = first.control();
    let second = serve("127.0.0.1:0", &executed).await;
    let endpoint = format!("{},{}", first.endpoints()[0], second.endpoint);
    tokio::spawn(async move { first.start().await });
    let text =
        r#"{"methods": [{"names": ["/count"], "idempotent": true}], "balance": {"policy": "round_robin"}}"#;
    let client = Client::builder().endpoint(endpoint).service_config(config(text)).build().await.unwrap();
    bounded("two connections", async {
        while client.connections().len() < 2 {
            client.request("").await.unwrap();
        }
    })
    .await;
    let calls: Vec<_> = (0..CALLS)
        .map(|number| {
            let client = client.clone();
            let options = CallOptions::new().with_timeout(Duration::from_secs(60));
            tokio::spawn(async move { client.call_with("/count", number.to_string(), options).await })
        })
        .collect();
    bounded("half of them under way", async {
        while running.load(SeqCst) < CALLS / 2 || executed.lock().unwrap().len() < CALLS / 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    control.shutdown_now();
    for call in calls {
        let answer = bounded("a call", call).await.unwrap();
        answer.unwrap_or_else(|status| panic!("{status}: {}", status.timeline()));
    }
    assert_eq!(executed.lock().unwrap().len(), CALLS);
}

/// The only server goes away and comes back a moment later: calls wait for it, and what was not executed is executed once.
#[tokio::test(flavor = "multi_thread")]
async fn calls_wait_for_a_server_that_restarts() {
    let executed = Executed::default();
    let first = serve("127.0.0.1:0", &executed).await;
    let address = first.endpoint.clone();
    let quick =
        r#"{"methods": [{"names": ["*"], "retry": {"max_attempts": 5}}], "reconnect": {"base_ms": 50}}"#;
    let client =
        Client::builder().endpoint(address.as_str()).service_config(config(quick)).build().await.unwrap();
    client.call("/count", "before").await.unwrap();
    assert_eq!(client.connectivity(), Connectivity::Ready);
    bounded("a shutdown", first.control.shutdown()).await;
    // The dead connection leaves without a call to find it.
    let other = client.connectivity_other_than(Connectivity::Ready);
    assert_eq!(bounded("the end of the connection", other).await, Connectivity::Idle);
    bounded("the pool's part in it", async {
        while !client.connections().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;

    let call = {
        let client = client.clone();
        tokio::spawn(async move { client.call("/count", "meanwhile").await })
    };
    let state = async {
        let mut seen = Connectivity::Idle;
        while seen != Connectivity::TransientFailure {
            seen = client.connectivity_other_than(seen).await;
        }
    };
    bounded("a failed dial", state).await;
    let second = serve(address.strip_prefix("tcp://").unwrap(), &executed).await;
    bounded("the call", call).await.unwrap().unwrap();
    assert_eq!(executed.lock().unwrap()[&Bytes::from("meanwhile")], 1);
    client.close().await;
    assert_eq!(client.connectivity(), Connectivity::Shutdown);
    second.control.shutdown_now();
}

/// Two wait in one task, and one of them gives up: the other still hears of the change.
#[tokio::test]
async fn who_gives_up_waiting_for_a_connectivity_takes_nobody_along() {
    let server = serve("127.0.0.1:0", &Executed::default()).await;
    let client = Client::connect(server.endpoint.as_str()).await.unwrap();
    let mut gives_up = Box::pin(client.connectivity_other_than(Connectivity::Ready));
    let mut stays = Box::pin(client.connectivity_other_than(Connectivity::Ready));
    std::future::poll_fn(|cx| {
        assert!(gives_up.as_mut().poll(cx).is_pending() && stays.as_mut().poll(cx).is_pending());
        Poll::Ready(())
    })
    .await;
    drop(gives_up);
    let close = async {
        client.close().await;
    };
    let (state, ()) = bounded("the end", async { tokio::join!(stays, close) }).await;
    assert_eq!(state, Connectivity::Shutdown);
    server.control.shutdown_now();
}

/// Between a client and a server, and cuts the connection when the server has answered so many times.
async fn cutting(server: &str) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("tcp://{}", listener.local_addr().unwrap());
    let (target, cuts) = (server.strip_prefix("tcp://").unwrap().to_owned(), Arc::new(AtomicUsize::new(0)));
    let all = cuts.clone();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let (target, cuts) = (target.clone(), all.clone());
            tokio::spawn(async move {
                let mut server = TcpStream::connect(target).await.unwrap();
                let (mut from_client, mut from_server) = (vec![0; 65_536], vec![0; 65_536]);
                let mut called = false;
                loop {
                    tokio::select! {
                        read = client.read(&mut from_client) => {
                            let Ok(len @ 1..) = read else { return };
                            called |= from_client[..len].windows(6).any(|window| window == b"/count");
                            if server.write_all(&from_client[..len]).await.is_err() {
                                return;
                            }
                        }
                        read = server.read(&mut from_server) => {
                            let Ok(len @ 1..) = read else { return };
                            let answers = from_server[..len].windows(4).any(|window| window == b"once");
                            if called && answers {
                                // Executed, and the answer is lost, but for what tells that the server lives.
                                cuts.fetch_add(1, SeqCst);
                                let _ = client.write_all(&from_server[..1]).await;
                                return;
                            }
                            if client.write_all(&from_server[..len]).await.is_err() {
                                return;
                            }
                        }
                    }
                }
            });
        }
    });
    (endpoint, cuts)
}

/// A server executed the call, and its answer is lost: it is not executed again, unless the call says that it may be.
#[tokio::test(flavor = "multi_thread")]
async fn what_may_have_been_executed_is_not_executed_again() {
    let executed = Executed::default();
    let server = serve("127.0.0.1:0", &executed).await;
    let (endpoint, cuts) = cutting(&server.endpoint).await;
    let client = Client::connect(&endpoint).await.unwrap();
    let status = bounded("a call", client.call("/count", "once")).await.unwrap_err();
    assert_eq!((status.code(), status.is_unprocessed()), (Code::Unavailable, false), "{status}");
    assert_eq!(executed.lock().unwrap()[&Bytes::from("once")], 1);
    assert_eq!(cuts.load(SeqCst), 1);

    let options = CallOptions::new().with_idempotent(true);
    let status = bounded("a call", client.call_with("/count", "once more", options)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert_eq!(executed.lock().unwrap()[&Bytes::from("once more")], 3, "three attempts are the default");
    server.control.shutdown_now();
}

/// A server that says when to come back is obeyed; one that says never is, too.
#[tokio::test]
async fn pushback_is_obeyed() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let times = asked.clone();
    let busy = handler_fn(move |mut call| {
        let times = times.clone();
        async move {
            let message = call.message().await?;
            let mut times = times.lock().unwrap();
            times.push(tokio::time::Instant::now());
            let busy = Status::new(Code::ResourceExhausted, "busy");
            match (&message[..], times.len()) {
                (b"later", 1) => Err(busy.with_pushback(Duration::from_millis(300))),
                (b"never", _) => Err(busy.with_pushback(Duration::MAX)),
                (b"mute", _) => Err(busy),
                _ => Ok(Reply::message(message)),
            }
        }
    });
    let server = ServerBuilder::new().bind("127.0.0.1:0").handler("/busy", busy).build().await.unwrap();
    let (endpoint, control) = (server.endpoints().remove(0), server.control());
    tokio::spawn(async move { server.start().await });
    let client = Client::connect(&endpoint).await.unwrap();
    let call = async |message: &'static str| {
        asked.lock().unwrap().clear();
        let result = client.call_with("/busy", message, CallOptions::new().with_idempotent(true)).await;
        (result.map(drop).map_err(|status| status.code()), asked.lock().unwrap().clone())
    };
    let (result, times) = call("later").await;
    assert_eq!((result, times.len()), (Ok(()), 2));
    assert!(times[1] - times[0] >= Duration::from_millis(300));
    assert_eq!(call("never").await.1.len(), 1);
    // RESOURCE_EXHAUSTED alone is no invitation.
    let (result, times) = call("mute").await;
    assert_eq!((result, times.len()), (Err(Code::ResourceExhausted), 1));
    control.shutdown_now();
}

#[derive(Default)]
struct Said(Mutex<Vec<String>>);

impl Log for Said {
    fn enabled(&self, level: Level) -> bool {
        level <= Level::Info
    }

    fn log(&self, record: Record) {
        self.0.lock().unwrap().push(record.message);
    }
}

/// The breaker of the server that fails opens, and the other one gets the calls; alone, its calls are refused here; then so many
/// trial calls pass, and it closes.
#[tokio::test(flavor = "multi_thread")]
async fn a_breaker_opens_tries_and_closes() {
    let failing = Arc::new(AtomicUsize::new(1));
    let mut servers = Vec::new();
    for number in 0..2 {
        let failing = failing.clone();
        let flaky = handler_fn(move |_| {
            let fails = number == 0 && failing.load(SeqCst) == 1;
            async move {
                match fails {
                    true => Err(Status::new(Code::Unavailable, "failing")),
                    false => Ok(Reply::message(number.to_string())),
                }
            }
        });
        let server = ServerBuilder::new().bind("127.0.0.1:0").handler("/flaky", flaky).build().await.unwrap();
        servers.push(Serving { endpoint: server.endpoints().remove(0), control: server.control() });
        tokio::spawn(async move { server.start().await });
    }
    let text = r#"{"methods": [{"names": ["*"], "retry": {"max_attempts": 1},
        "breaker": {"min_calls": 10, "open_ms": 100, "probes": 3}}], "balance": {"policy": "round_robin"},
        "throttle": {"enabled": false}}"#;
    let said = Arc::new(Said::default());
    let build = |endpoint: String| -> ClientBuilder {
        Client::builder().endpoint(endpoint).service_config(config(text)).log(said.clone())
    };

    let both = build(list(&servers)).build().await.unwrap();
    bounded("two connections", async {
        while both.connections().len() < 2 {
            let _ = both.call("/flaky", "").await;
        }
    })
    .await;
    let mut failed = 0;
    for _ in 0..100 {
        failed += usize::from(both.call("/flaky", "").await.is_err());
    }
    assert!((1..=15).contains(&failed), "{failed} of 100 went to the server that fails");
    both.close().await;

    let alone = build(servers[0].endpoint.clone()).build().await.unwrap();
    let mut reasons = Vec::new();
    for _ in 0..15 {
        reasons.push(alone.call("/flaky", "").await.unwrap_err().reason());
    }
    assert_eq!(reasons[..10], [Reason::NONE; 10]);
    assert_eq!(reasons[10..], [Reason::BREAKER_OPEN; 5]);
    // Other methods of the server have breakers of their own.
    assert_eq!(alone.call("/other", "").await.unwrap_err().code(), Code::Unimplemented);
    failing.store(0, SeqCst);
    bounded("the end of the open time", async {
        while alone.call("/flaky", "").await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    for _ in 0..2 {
        alone.call("/flaky", "").await.unwrap();
    }
    // It is told when the call's result is, on another thread.
    let edges = bounded("the breaker's last word", async {
        loop {
            let said = said.0.lock().unwrap().clone();
            let of_first = |line: &&String| line.contains("breaker") && line.contains(&servers[0].endpoint);
            let edges: Vec<_> = said.iter().filter(of_first).cloned().collect();
            if edges.last().is_some_and(|line| line.ends_with("is closed")) {
                break edges;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    let last = edges[edges.len() - 3..].iter().map(|line| line.split(" was ").nth(1).unwrap());
    assert_eq!(
        last.collect::<Vec<_>>(),
        ["closed and is open", "open and is half_open", "half_open and is closed"]
    );
    assert!(edges[0].contains("for /flaky"), "{edges:?}");
}

struct Told(std::sync::mpsc::Sender<Status>);

impl Sink for Told {
    fn complete(&self, _token: u64, result: Result<Response, Status>) {
        self.0.send(result.unwrap_err()).unwrap();
    }
}

/// A call that waits for its server ends with its client, and with its runtime.
#[test]
fn nobody_waits_for_ever() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let begin = || {
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let client = Client::builder().endpoint(format!("tcp://{nobody}")).connect_lazily().unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let options = CallOptions::new().with_timeout(Duration::MAX);
        let submission = client.submit("/echo", Bytes::new(), options, 1, Arc::new(Told(tell)));
        (client, submission, told)
    };
    let (client, _submission, told) = {
        let _entered = runtime.enter();
        begin()
    };
    let state = async {
        while client.connectivity() != Connectivity::TransientFailure {
            client.connectivity_other_than(client.connectivity()).await;
        }
    };
    runtime.block_on(bounded("a failed dial", state));
    client.close_now();
    let status = told.recv_timeout(Duration::from_secs(60)).unwrap();
    assert_eq!(status.reason(), Reason::CLIENT_CLOSED, "{status}");

    let (_client, _submission, told) = {
        let _entered = runtime.enter();
        begin()
    };
    runtime.shutdown_background();
    let status = told.recv_timeout(Duration::from_secs(60)).unwrap();
    assert_eq!(status.reason(), Reason::CONNECT_FAILED, "{status}");
}

/// A server-streaming call whose answer is lost goes elsewhere while nothing of it was read, if it may be executed twice, and only
/// then; what was read is never read again.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_stream_begins_again_until_its_answer_is_read() {
    let executed = Executed::default();
    let server = serve("127.0.0.1:0", &executed).await;
    let (endpoint, cuts) = cutting(&server.endpoint).await;
    let client = Client::connect(&endpoint).await.unwrap();
    let mut answers = client.stream("/count", "once", CallOptions::new()).await.unwrap();
    let status = bounded("an answer", answers.recv()).await.unwrap_err();
    assert_eq!((status.code(), status.is_unprocessed()), (Code::Unavailable, false), "{status}");
    assert_eq!((executed.lock().unwrap()[&Bytes::from("once")], cuts.load(SeqCst)), (1, 1));
    assert_eq!(answers.recv().await.unwrap_err(), status, "the end stays");

    let twice = || CallOptions::new().with_idempotent(true);
    let mut answers = client.stream("/count", "once more", twice()).await.unwrap();
    assert!(bounded("its metadata", answers.metadata()).await.unwrap().is_empty());
    assert_eq!(executed.lock().unwrap()[&Bytes::from("once more")], 3, "three attempts are the default");
    assert_eq!(answers.recv().await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(executed.lock().unwrap()[&Bytes::from("once more")], 3, "three attempts are the default");

    // Beside a server whose answers come, the first one's loss is not seen.
    let both = format!("{endpoint},{}", server.endpoint);
    let text = r#"{"methods": [{"names": ["*"], "idempotent": true}], "balance": {"policy": "round_robin"}}"#;
    let client = Client::builder().endpoint(both).service_config(config(text)).build().await.unwrap();
    bounded("two connections", async {
        while client.connections().len() < 2 {
            client.call("/echo", "").await.unwrap();
        }
    })
    .await;
    let before = cuts.load(SeqCst);
    for _ in 0..2 {
        let mut answers = client.stream("/count", "once again", CallOptions::new()).await.unwrap();
        assert_eq!(bounded("an answer", answers.recv()).await.unwrap().unwrap(), "once again");
        assert_eq!(bounded("the end", answers.recv()).await.unwrap(), None);
    }
    assert_eq!(cuts.load(SeqCst) - before, 1);
    assert_eq!(executed.lock().unwrap()[&Bytes::from("once again")], 3);

    let begun = Arc::new(AtomicUsize::new(0));
    let counted = begun.clone();
    let breaks = handler_fn(move |mut call| {
        counted.fetch_add(1, SeqCst);
        async move {
            call.send("first").await?;
            Err(Status::new(Code::Unavailable, "in the middle"))
        }
    });
    let breaking = ServerBuilder::new().bind("127.0.0.1:0").handler("/breaks", breaks).build().await.unwrap();
    let (endpoint, control) = (breaking.endpoints().remove(0), breaking.control());
    tokio::spawn(async move { breaking.start().await });
    let client = Client::connect(&endpoint).await.unwrap();
    let mut answers = client.stream("/breaks", "", twice()).await.unwrap();
    assert_eq!(bounded("an answer", answers.recv()).await.unwrap().unwrap(), "first");
    assert_eq!(bounded("the end", answers.recv()).await.unwrap_err().message(), "in the middle");
    assert_eq!(begun.load(SeqCst), 1, "what was read is not read again");
    control.shutdown_now();
    server.control.shutdown_now();
}

/// A stream waits for a server that restarts, as a unary call does, and for another connection when its own is used up.
#[tokio::test(flavor = "multi_thread")]
async fn streams_wait_for_a_connection() {
    let executed = Executed::default();
    let first = serve("127.0.0.1:0", &executed).await;
    let address = first.endpoint.clone();
    let quick = r#"{"methods": [{"names": ["*"], "retry": {"max_attempts": 5}}],
        "reconnect": {"base_ms": 50}}"#;
    let limits = Limits { last_stream: 5, ..Limits::default() };
    let build = || Client::builder().endpoint(address.as_str()).service_config(config(quick)).limits(limits);
    let client = build().build().await.unwrap();
    let mut connections = std::collections::HashSet::new();
    for number in 0..10 {
        let (mut send, mut recv) =
            bounded("a stream", client.open("/echo", CallOptions::new())).await.unwrap();
        connections.extend(client.connections().iter().map(|connection| connection.id));
        send.send(number.to_string()).await.unwrap();
        send.finish_now();
        assert_eq!(bounded("an answer", recv.recv()).await.unwrap().unwrap(), number.to_string());
        assert_eq!(bounded("the end", recv.recv()).await.unwrap(), None);
    }
    assert!(connections.len() >= 3, "three streams for each connection: {connections:?}");
    client.close().await;

    bounded("a shutdown", first.control.shutdown()).await;
    let client = build().connect_lazily().unwrap();
    let stream = {
        let client = client.clone();
        tokio::spawn(async move { client.stream("/count", "meanwhile", CallOptions::new()).await })
    };
    bounded("a failed dial", async {
        while client.connectivity() != Connectivity::TransientFailure {
            client.connectivity_other_than(client.connectivity()).await;
        }
    })
    .await;
    let second = serve(address.strip_prefix("tcp://").unwrap(), &executed).await;
    let mut answers = bounded("the stream", stream).await.unwrap().unwrap();
    assert_eq!(bounded("an answer", answers.recv()).await.unwrap().unwrap(), "meanwhile");
    assert_eq!(executed.lock().unwrap()[&Bytes::from("meanwhile")], 1);
    second.control.shutdown_now();
}

/// Streams count as calls in flight, and a breaker opens for them and is tried by them; each gives its permit back once, however it
/// ends.
#[tokio::test(flavor = "multi_thread")]
async fn streams_are_balanced_and_broken_as_calls_are() {
    let failing = Arc::new(AtomicUsize::new(1));
    let mut servers = Vec::new();
    for _ in 0..2 {
        let failing = failing.clone();
        let flaky = handler_fn(move |mut call| {
            let fails = failing.load(SeqCst) == 1;
            async move {
                while !fails && call.recv().await?.is_some() {}
                if fails { Err(Status::new(Code::Unavailable, "failing")) } else { Ok(Reply::end()) }
            }
        });
        let server = ServerBuilder::new().bind("127.0.0.1:0").handler("/flaky", flaky);
        let server = server.handler("/echo", EchoHandler).build().await.unwrap();
        servers.push(Serving { endpoint: server.endpoints().remove(0), control: server.control() });
        tokio::spawn(async move { server.start().await });
    }
    let both = Client::connect(&list(&servers)).await.unwrap();
    bounded("two connections", async {
        while both.connections().len() < 2 {
            both.call("/echo", "").await.unwrap();
        }
    })
    .await;
    let before: Vec<_> = servers.iter().map(|serving| serving.control.stats().calls_total).collect();
    let mut held = Vec::new();
    for _ in 0..10 {
        let mut halves = both.open("/echo", CallOptions::new()).await.unwrap();
        halves.0.send("held").await.unwrap();
        bounded("an answer", halves.1.recv()).await.unwrap();
        held.push(halves);
    }
    for (serving, before) in servers.iter().zip(before) {
        assert_eq!(serving.control.stats().calls_total - before, 5, "the less busy of two");
    }
    drop(held);

    let text = r#"{"methods": [{"names": ["*"], "retry": {"max_attempts": 1},
        "breaker": {"min_calls": 10, "open_ms": 100, "probes": 1}}], "throttle": {"enabled": false}}"#;
    let alone = Client::builder().endpoint(servers[0].endpoint.as_str()).service_config(config(text));
    let alone = alone.build().await.unwrap();
    let open = || alone.open("/flaky", CallOptions::new());
    for number in 0..10 {
        let (_send, mut recv) = open().await.unwrap();
        // An end that nobody reads counts, too.
        while number % 2 == 0 && recv.recv().await.is_ok() {}
        if number % 2 == 1 {
            bounded("the end", recv.metadata()).await.unwrap();
        }
    }
    assert_eq!(open().await.map(drop).unwrap_err().reason(), Reason::BREAKER_OPEN);
    failing.store(0, SeqCst);
    let trial = async || {
        bounded("a trial call's turn", async {
            loop {
                match open().await {
                    Ok(halves) => break halves,
                    Err(status) => assert_eq!(status.reason(), Reason::BREAKER_OPEN),
                }
                tokio::task::yield_now().await;
            }
        })
        .await
    };
    let halves = trial().await;
    assert_eq!(open().await.map(drop).unwrap_err().reason(), Reason::BREAKER_OPEN, "one trial call");
    // Given up, it gives its permit back, and says nothing of the server.
    drop(halves);
    let (mut send, mut recv) = open().await.unwrap();
    assert_eq!(open().await.map(drop).unwrap_err().reason(), Reason::BREAKER_OPEN, "one trial call");
    send.finish_now();
    assert_eq!(bounded("the end", recv.recv()).await.unwrap(), None);
    let _closed = (open().await.unwrap(), open().await.unwrap());
    servers.iter().for_each(|serving| serving.control.shutdown_now());
}
