//! Faults that need a real client's calls and not a script: what is logged, cancels at every step, deadlines in a queue,
//! priorities, and every broken vector against a live server.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
};
use valkyrie_faults::{
    evil,
    frame::{Frame, Kind, Position},
    target::{Program, Server},
};
use valkyrie_sdk::{
    CallOptions, Client, Code, EchoHandler, Limits, Metadata, Priority, Reason, Reply, ServerBuilder,
    ServerControl, Status, handler_fn,
};

/// A hang is bounded far above anything that should take that long.
async fn bounded<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(100), work).await.unwrap_or_else(|_| panic!("{what} hangs"))
}

async fn start(builder: ServerBuilder) -> (Client, ServerControl) {
    let server = builder.bind("127.0.0.1:0").handler("/echo", EchoHandler).build().await.unwrap();
    let (endpoint, control) = (server.endpoints()[0].clone(), server.control());
    tokio::spawn(async move { server.start().await });
    (Client::connect(&endpoint).await.unwrap(), control)
}

/// Calls until the server has no other stream: its count is what an honest call sees.
async fn at_rest(client: &Client, control: &ServerControl) {
    bounded("the streams", async {
        while control.stats().streams > 0 {
            client.request("again").await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn every_broken_vector_ends_its_connection_and_nobody_elses() {
    let server = Server::sdk(Limits::default()).await;
    let endpoint = server.endpoint("tcp");
    let honest = Client::connect(endpoint).await.unwrap();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../vectors/v1.json");
    let vectors: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let unhex = |value: &serde_json::Value| -> Vec<u8> {
        let text = value.as_str().unwrap();
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    };
    for vector in vectors["broken"].as_array().unwrap() {
        let name = vector["name"].as_str().unwrap();
        // The sniffing port takes a G for the beginning of a WebSocket handshake.
        if name == "first: http" {
            continue;
        }
        let mut bytes = if name.starts_with("first: ") { Vec::new() } else { unhex(&vectors["hello"]) };
        bytes.extend(unhex(&vector["hex"]));
        let code = evil::refusal(endpoint, &bytes).await;
        assert_eq!(code.as_deref(), vector["error"].as_str(), "{name}");
        assert_eq!(honest.request("still here").await.unwrap(), "still here", "{name}");
    }
}

/// Whatever a peer writes into names, nothing of it ends a line of the log, begins a new one, moves a terminal's cursor
/// or passes for a field of ours.
#[tokio::test]
async fn f11_nothing_unescaped_reaches_the_log() {
    let server = Server::Program(Program::start(&["--log-level", "debug"]));
    let endpoint = server.endpoint("tcp").to_owned();
    for script in ["f11_method_with_a_line_break", "f11_metadata_with_a_nul", "f11_method_that_is_not_utf8"] {
        evil::attack(script, &endpoint).await;
    }
    let client = Client::connect(&endpoint).await.unwrap();
    let forged = "me code=OK method=/admin \"quoted\" \\";
    let metadata = Metadata::new().with("x-correlation-id", forged).unwrap();
    client.call_with("/echo", "hello", CallOptions::new().with_metadata(metadata)).await.unwrap();
    let status = client.call("/echo%0a%1b[31m", "hello").await.unwrap_err();
    assert_eq!(status.reason(), Reason::UNKNOWN_METHOD);
    let Server::Program(program) = &server else { unreachable!() };
    let log = bounded("the log", async {
        loop {
            let log = String::from_utf8(program.log()).unwrap();
            if log.contains("quoted") && log.ends_with('\n') {
                break log;
            }
            client.request("again").await.unwrap();
        }
    })
    .await;
    assert!(log.chars().all(|c| c == '\n' || matches!(c, ' '..='~')), "{log:?}");
    for line in log.lines() {
        assert!(line.starts_with("20"), "a line that is none of ours: {line:?}");
    }
    let line = log.lines().find(|line| line.contains("quoted")).unwrap();
    assert!(line.contains(&format!("correlation_id={forged:?}")), "{line}");
}

/// More connections than descriptors: those beyond are closed at once, those that stand are served, and when some end
/// there is room again.
#[tokio::test]
async fn f53_more_connections_than_descriptors() {
    let server = Server::Program(Program::start_with_descriptors(100));
    let endpoint = server.endpoint("tcp");
    let honest = Client::connect(endpoint).await.unwrap();
    let address = endpoint.trim_start_matches("tcp://");
    let mut hello = Vec::new();
    let kind = Kind::Name("HELLO".into());
    Frame { kind, ..Frame::default() }.write(&mut hello, &mut Position { next_stream: 1, round: 0 });
    let (mut held, mut refused) = (Vec::new(), 0);
    for _ in 0..200 {
        let mut socket = TcpStream::connect(address).await.unwrap();
        let _ = socket.write_all(&hello).await;
        match bounded("an answer", socket.read_u8()).await {
            Ok(_) => held.push(socket),
            Err(_) => refused += 1,
        }
    }
    assert_eq!((held.len(), refused), (100 - 64 - 1, 200 - (100 - 64 - 1)));
    assert_eq!(honest.request("still here").await.unwrap(), "still here");
    drop(held);
    bounded("room", async { while Client::connect(endpoint).await.is_err() {} }).await;
}

struct OnDrop(mpsc::UnboundedSender<()>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

/// Whenever a caller gives up, the handler's future is dropped, and nothing of the call is left at either end.
#[tokio::test]
async fn f24_a_call_may_be_given_up_at_every_step() {
    let (ended, mut ends) = mpsc::unbounded_channel();
    let talk = handler_fn(move |mut call| {
        let guard = OnDrop(ended.clone());
        async move {
            let _guard = guard;
            while let Some(message) = call.recv().await? {
                call.send(message).await?;
            }
            Ok::<_, Status>(Reply::end())
        }
    });
    let (client, control) = start(ServerBuilder::new().handler("/talk", talk)).await;
    let calls = || control.stats().calls_total;

    // Before it is sent: the server never hears of it.
    let before = calls();
    drop(client.open("/talk", CallOptions::new()));
    drop(client.call("/talk", "never"));
    assert_eq!(client.request("after").await.unwrap(), "after");
    assert_eq!(calls(), before + 1);

    // As soon as it is sent, in the middle of the upload, after the first answer, after the last message of ours.
    for step in 0..4 {
        let (mut send, mut recv) = client.open("/talk", CallOptions::new()).await.unwrap();
        if step > 0 {
            send.send("upload").await.unwrap();
        }
        if step > 1 {
            assert_eq!(bounded("an answer", recv.recv()).await.unwrap().unwrap(), "upload");
        }
        if step > 2 {
            send.finish().await.unwrap();
        }
        drop((send, recv));
        // What is opened and given up in one write never has a handler, or has one that ends.
        if step > 1 {
            bounded("the handler", ends.recv()).await.unwrap();
        }
        at_rest(&client, &control).await;
    }

    // A unary call that is on its way.
    let mut call = Box::pin(client.call_with("/talk", "hello", CallOptions::new()));
    assert!(std::future::poll_fn(|cx| std::task::Poll::Ready(call.as_mut().poll(cx))).await.is_pending());
    drop(call);
    at_rest(&client, &control).await;
    while ends.try_recv().is_ok() {}

    // After its last byte there is nothing to give up.
    let (mut send, mut recv) = client.open("/talk", CallOptions::new()).await.unwrap();
    send.finish().await.unwrap();
    assert_eq!(bounded("the end", recv.recv()).await.unwrap(), None);
    drop(recv);
    bounded("the handler", ends.recv()).await.unwrap();
    at_rest(&client, &control).await;
    assert_eq!(client.connections()[0].streams, 0);
}

/// A client at the end of its stream ids goes on with a new connection; what runs on the old one goes on, and then it is
/// closed. With four streams for each connection, since nobody lives to see 2^61 calls.
// spec: W7-01
#[tokio::test]
async fn f16_a_client_whose_streams_are_used_up_makes_a_new_connection() {
    let server =
        ServerBuilder::new().bind("127.0.0.1:0").handler("/echo", EchoHandler).build().await.unwrap();
    let (endpoint, control) = (server.endpoints()[0].clone(), server.control());
    tokio::spawn(async move { server.start().await });
    let limits = Limits { last_stream: 7, ..Limits::default() };
    let client = Client::builder().endpoint(endpoint).limits(limits).build().await.unwrap();
    let (mut send, mut recv) = client.open("/echo", CallOptions::new()).await.unwrap();
    for at in 0..9 {
        assert_eq!(client.request(at.to_string()).await.unwrap(), at.to_string());
    }
    assert_eq!(control.stats().connections_total, 3, "4, 4 and 2 streams");
    send.send("still here").await.unwrap();
    assert_eq!(bounded("the old connection", recv.recv()).await.unwrap().unwrap(), "still here");
    send.finish().await.unwrap();
    assert_eq!(bounded("the end", recv.recv()).await.unwrap(), None);
    // The first and the second one: the third has streams left.
    bounded("the end of what is used up", async {
        while control.stats().connections > 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(control.stats().connections_total, 3);
}

/// A call whose deadline passes while it waits for a permit is never handled.
// spec: W7-17, W7-19
#[tokio::test]
async fn f25_a_deadline_that_passes_in_the_queue_starts_no_handler() {
    let starts = Arc::new(AtomicUsize::new(0));
    let count = starts.clone();
    let hold = handler_fn(move |_| {
        count.fetch_add(1, Relaxed);
        std::future::pending::<Result<Reply, Status>>()
    });
    let (client, control) = start(ServerBuilder::new().max_running_handlers(1).handler("/hold", hold)).await;
    let held = client.open("/hold", CallOptions::new()).await.unwrap();
    bounded("the first handler", async {
        while starts.load(Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    for timeout in [Duration::ZERO, Duration::from_millis(1), Duration::from_millis(50)] {
        let options = CallOptions::new().with_timeout(timeout);
        let status = bounded("the deadline", client.call_with("/hold", "", options)).await.unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded, "{timeout:?}");
    }
    // A server counts from when it has read a call: it may be late here a little after its caller.
    bounded("the end of the line", async {
        while control.stats().queued > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    drop(held);
    at_rest(&client, &control).await;
    assert_eq!(starts.load(Relaxed), 1);
}

/// Bulk uploads fill the connection; critical calls beside them are answered, and bulk goes on. The times are printed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f28_critical_calls_pass_bulk_ones() {
    let (client, _control) = start(ServerBuilder::new()).await;
    let critical = CallOptions::new().with_priority(Priority::Critical);
    let p99 = async |calls: usize| {
        let mut times = Vec::new();
        for _ in 0..calls {
            let began = Instant::now();
            client.call_with("/echo", "urgent", critical.clone()).await.unwrap();
            times.push(began.elapsed());
        }
        times.sort_unstable();
        times[calls * 99 / 100]
    };
    let idle = p99(500).await;
    let mut bulk = Vec::new();
    let moved = Arc::new(AtomicUsize::new(0));
    for _ in 0..4 {
        let options = CallOptions::new().with_priority(Priority::Bulk);
        let (mut send, mut recv) = client.open("/echo", options).await.unwrap();
        bulk.push(tokio::spawn(async move { while send.send(vec![1; 64 << 10]).await.is_ok() {} }));
        let moved = moved.clone();
        bulk.push(tokio::spawn(async move {
            while let Ok(Some(message)) = recv.recv().await {
                moved.fetch_add(message.len(), Relaxed);
            }
        }));
    }
    let flows = async |least: usize| {
        bounded("bulk", async {
            while moved.load(Relaxed) < least {
                tokio::task::yield_now().await;
            }
        })
        .await;
    };
    flows(8 << 20).await;
    let before = moved.load(Relaxed);
    let busy = p99(500).await;
    let beside = moved.load(Relaxed) - before;
    flows(before + (8 << 20)).await;
    bulk.iter().for_each(tokio::task::JoinHandle::abort);
    println!(
        "fault\tf28_critical_calls_pass_bulk_ones\tboth\tcritical calls while bulk fills the connection\t{} MiB of bulk \
         beside 500 calls\t-\t{} us, alone {} us",
        beside >> 20,
        busy.as_micros(),
        idle.as_micros()
    );
}
