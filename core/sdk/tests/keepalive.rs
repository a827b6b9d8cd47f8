//! Peers that are gone without a word, and connections that something between dropped: processes that are stopped, sockets
//! whose bytes go nowhere. The client's clock runs ten times as fast here, so that 30 s take three.

#![cfg(all(unix, feature = "quic"))]

mod calling;
mod kept;

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, IoSlice},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::BytesMut;
use calling::bounded;
use kept::{Kept, field};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
};
use valkyrie_protocol::{Config, Connection, Opened, Role, TransmitBuffer};
use valkyrie_sdk::{
    BoxFuture, Bytes, CallOptions, Client, ClientBuilder, Code, EchoHandler, Metadata, Priority, Reason,
    Reply, Runtime, ServerBuilder, ServerControl, Time, Timer, TokioRuntime, handler_fn,
    policy::ServiceConfig,
};

/// tokio's runtime with a clock that is so many times as fast.
struct Fast(TokioRuntime);

const SPEED: u32 = 10;

impl Fast {
    fn current() -> Arc<dyn Runtime> {
        Arc::new(Self(TokioRuntime::current().unwrap()))
    }
}

impl Runtime for Fast {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.0.spawn(task);
    }

    fn now(&self) -> Time {
        Time::from_micros(self.0.now().as_micros() * u64::from(SPEED))
    }

    fn timer(&self) -> Box<dyn Timer> {
        Box::new(FastTimer(self.0.timer()))
    }
}

struct FastTimer(Box<dyn Timer>);

impl Timer for FastTimer {
    fn reset(&mut self, deadline: Option<Time>) {
        // Not before its time, which is cut down.
        self.0.reset(deadline.map(|at| Time::from_micros(at.as_micros().div_ceil(SPEED.into()))));
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.0.poll(cx)
    }
}

/// For so long nothing is said, by the fast clock.
async fn silence(time: Duration) {
    tokio::time::sleep(time / SPEED).await;
}

fn client(endpoint: impl Into<String>) -> ClientBuilder {
    // Time to fail over, and for machines that have other things to do.
    Client::builder()
        .endpoint(endpoint)
        .runtime(Fast::current())
        .timeout_ms(300_000)
        .connect_timeout_ms(100_000)
}

fn idempotent() -> CallOptions {
    CallOptions::new().with_idempotent(true)
}

type Executed = Arc<Mutex<HashMap<Bytes, usize>>>;

/// Counts what it executes.
fn counting(executed: &Executed) -> ServerBuilder {
    let executed = executed.clone();
    let count = handler_fn(move |mut call| {
        let executed = executed.clone();
        async move {
            let message = call.message().await?;
            *executed.lock().unwrap().entry(message.clone()).or_default() += 1;
            Ok(Reply::message(message))
        }
    });
    ServerBuilder::new().handler("/count", count).handler("/echo", EchoHandler)
}

async fn serve(server: ServerBuilder, bind: &str) -> (String, ServerControl) {
    let server = server.bind(bind).build().await.unwrap();
    let (endpoint, control) = (server.endpoints().remove(0), server.control());
    tokio::spawn(async move { server.start().await });
    (endpoint, control)
}

/// Something between that forgets connections without a word: nothing passes any more on those that there are.
struct Nat {
    endpoint: String,
    forgets: watch::Sender<u64>,
}

impl Nat {
    async fn before(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("tcp://{}", listener.local_addr().unwrap());
        let (server, forgets) = (server.trim_start_matches("tcp://").to_owned(), watch::Sender::new(0));
        let told = forgets.subscribe();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let far = TcpStream::connect(&server).await.unwrap();
                tokio::spawn(pass(near, far, told.clone()));
            }
        });
        Self { endpoint, forgets }
    }

    fn forget(&self) {
        self.forgets.send_modify(|times| *times += 1);
    }
}

async fn pass(mut near: TcpStream, mut far: TcpStream, told: watch::Receiver<u64>) {
    let begun = *told.borrow();
    // Asked of what was read, as it is: what was written after `forget` is never passed on.
    let forgotten = || *told.borrow() != begun;
    let (mut up, mut down) = (vec![0; 4_096], vec![0; 4_096]);
    loop {
        tokio::select! {
            read = near.read(&mut up) => match read {
                Ok(count) if count > 0 => {
                    if !forgotten() && far.write_all(&up[..count]).await.is_err() { return }
                }
                // A forgotten server never hears of it.
                _ if forgotten() => std::future::pending().await,
                _ => return,
            },
            read = far.read(&mut down) => match read {
                Ok(count) if count > 0 => {
                    if !forgotten() && near.write_all(&down[..count]).await.is_err() { return }
                }
                _ if forgotten() => std::future::pending().await,
                _ => return,
            },
        }
    }
}

/// F34. After a silence the next call costs one short wait and not the minutes that TCP would try; the one that may not be
/// repeated is told.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_was_dropped_while_it_was_idle_costs_one_short_wait() {
    let executed = Executed::default();
    let (endpoint, control) = serve(counting(&executed), "127.0.0.1:0").await;
    let nat = Nat::before(&endpoint).await;
    let log = Kept::default();
    let client = client(nat.endpoint.as_str()).log(Arc::new(log.clone())).build().await.unwrap();

    client.call("/count", "first").await.unwrap();
    silence(Duration::from_secs(16)).await;
    nat.forget();
    let answer = bounded("a call", client.call_with("/count", "again", idempotent())).await.unwrap();
    assert_eq!(answer.message, "again");
    assert_eq!(control.stats().connections_total, 2);
    let told = log.take();
    let gone = told.iter().find(|record| record.message.contains("the peer is gone"));
    assert_eq!(field(gone.unwrap_or_else(|| panic!("{told:?}")), "reason"), "CONNECTION_LOST");

    silence(Duration::from_secs(16)).await;
    nat.forget();
    let error = bounded("a call", client.call("/count", "once")).await.unwrap_err();
    assert_eq!((error.code(), error.reason()), (Code::Unavailable, Reason::CONNECTION_LOST), "{error}");
    bounded("a call", client.call("/count", "after")).await.unwrap();

    let executed = executed.lock().unwrap();
    let expected = ["first", "again", "after"].map(|message| (Bytes::from(message), 1));
    assert_eq!(*executed, HashMap::from(expected));
}

/// Who is idle and there keeps its connection, however long that was.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_was_only_idle_is_kept() {
    let (endpoint, control) = serve(counting(&Executed::default()), "127.0.0.1:0").await;
    // By the ordinary clock, a second is long enough for any answer.
    let client = Client::builder().endpoint(endpoint).build().await.unwrap();
    client.call("/count", "first").await.unwrap();
    // The silence itself is what is tried: it has no event.
    tokio::time::sleep(Duration::from_millis(15_500)).await;
    client.call("/count", "second").await.unwrap();
    assert_eq!(control.stats().connections_total, 1);
}

/// The program of [`Stopped`]'s children: this one, once more.
#[test]
fn child() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    if let Ok(endpoint) = std::env::var("KEEPALIVE_TEST_CALL") {
        let forever = CallOptions::new().with_timeout(Duration::MAX);
        let call = async { Client::connect(&endpoint).await?.call_with("/hang", "x", forever).await };
        panic!("{:?}", runtime.block_on(call));
    }
    let Ok(bind) = std::env::var("KEEPALIVE_TEST_BIND") else { return };
    runtime.block_on(async {
        let server = counting(&Executed::default()).bind(bind).build().await.unwrap();
        println!("\nserving {}", server.endpoints()[0]);
        server.start().await.unwrap();
    });
}

/// A peer in a process of its own, which can be stopped: its sockets stand and take bytes, and nobody reads them.
struct Stoppable {
    process: Child,
    /// Of a server.
    endpoint: String,
}

impl Stoppable {
    fn start(name: &str, value: &str) -> Self {
        let process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env(name, value)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self { process, endpoint: String::new() }
    }

    fn serving(bind: &str) -> Self {
        let mut server = Self::start("KEEPALIVE_TEST_BIND", bind);
        let lines = BufReader::new(server.process.stdout.take().unwrap()).lines();
        server.endpoint = lines
            .map(|line| line.unwrap())
            .find_map(|line| line.strip_prefix("serving ").map(str::to_owned))
            .expect("the child says where it serves");
        server
    }

    /// Each of its threads has stopped when this returns: until then one may answer.
    async fn stop(&self) {
        self.signal("STOP");
        let tasks = format!("/proc/{}/task", self.process.id());
        let runs = || {
            let tasks = std::fs::read_dir(&tasks).into_iter().flatten().flatten();
            let states = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok());
            states.into_iter().any(|stat| !stat.contains(") T "))
        };
        while runs() {
            tokio::task::yield_now().await;
        }
    }

    fn signal(&self, name: &str) {
        let told = Command::new("kill").args(["-s", name, &self.process.id().to_string()]).status().unwrap();
        assert!(told.success());
    }
}

impl Drop for Stoppable {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// F29. A server that is stopped is found by the calls that it has, those that may be repeated go to another one, and so does
/// what comes after; without another one calls end with UNAVAILABLE. One that goes on in time has lost nothing.
async fn a_stopped_server_is_found(bind: &str) {
    let (first, second) = (Stoppable::serving(bind), Stoppable::serving("tcp://127.0.0.1:0"));
    let (runtime, begun) = (Fast::current(), Fast::current().now());
    let alone = client(first.endpoint.as_str()).build().await.unwrap();
    let both = client(format!("{},{}", first.endpoint, second.endpoint));
    let in_order = ServiceConfig::parse(r#"{"balance": {"policy": "pick_first"}}"#).unwrap();
    let both = both.service_config(in_order).build().await.unwrap();
    alone.call("/count", "alone").await.unwrap();
    both.call("/count", "both").await.unwrap();
    bounded("a stop", first.stop()).await;

    let (lost, moved, told) = tokio::join!(
        bounded("a call", alone.call("/count", "lost")),
        bounded("a call", both.call_with("/count", "moved", idempotent())),
        bounded("a call", both.call("/count", "told")),
    );
    // 30 s and 10 s from the answers on, which came after that.
    assert!(runtime.now().since(begun) >= Duration::from_secs(40));
    for error in [lost.unwrap_err(), told.unwrap_err()] {
        assert_eq!((error.code(), error.reason()), (Code::Unavailable, Reason::CONNECTION_LOST), "{error}");
    }
    assert_eq!(moved.unwrap().message, "moved");
    bounded("a call", both.call("/count", "next")).await.unwrap();

    let other = client(second.endpoint.as_str()).build().await.unwrap();
    other.call("/count", "before").await.unwrap();
    bounded("a stop", second.stop()).await;
    let said = || other.connections()[0].bytes_out;
    let before = said();
    let (answer, ()) = tokio::join!(bounded("a call", other.call("/count", "waits")), async {
        // The call, and then the PING.
        let call = bounded("the call's bytes", grown(said, before)).await;
        bounded("the PING's bytes", grown(said, call)).await;
        second.signal("CONT");
    });
    assert_eq!(answer.unwrap().message, "waits");
}

async fn grown(count: impl Fn() -> u64, than: u64) -> u64 {
    while count() == than {
        // What another side has read tells nobody when it grows: it is looked at.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_stopped_is_found_over_tcp() {
    a_stopped_server_is_found("tcp://127.0.0.1:0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_stopped_is_found_over_unix() {
    let path = std::env::temp_dir().join(format!("valkyrie-keepalive-{}.sock", std::process::id()));
    a_stopped_server_is_found(&format!("unix://{}", path.display())).await;
    // A server that is killed leaves it.
    let _ = std::fs::remove_file(path);
}

/// F47. The server lets go of connections at about the time at which the next call is made: each is executed exactly once,
/// though none of them may be repeated.
#[tokio::test(flavor = "multi_thread")]
async fn f47_no_call_is_lost_to_the_end_of_an_idle_connection() {
    const CALLS: u64 = 120;
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let path = std::env::temp_dir().join(format!("valkyrie-idle-{}.sock", std::process::id()));
    let unix = format!("unix://{}", path.display());
    for bind in ["tcp://127.0.0.1:0", "tls://127.0.0.1:0", "quic://127.0.0.1:0", &unix, "memory:idle"] {
        let executed = Executed::default();
        let (mut server, mut client) = (counting(&executed).max_connection_idle_ms(20), Client::builder());
        if bind.starts_with("tls") || bind.starts_with("quic") {
            server = server.identity(certificate.clone(), key.clone()).open_to_all(true);
            client = client.trusted_certificates(certificate.clone());
        }
        let (endpoint, control) = serve(server, bind).await;
        let client = client.endpoint(endpoint).timeout_ms(60_000).build().await.unwrap();
        for number in 0..CALLS {
            // When the call comes is what is tried. A timer of tokio's is up to 1 ms late: around 20 ms, in both directions.
            tokio::time::sleep(Duration::from_micros(17_500 + 500 * (number % 9))).await;
            let message = Bytes::from(number.to_string());
            let answer = bounded("a call", client.call("/count", message)).await;
            answer.unwrap_or_else(|status| panic!("{bind}, call {number}: {status:?}"));
        }
        let executed = executed.lock().unwrap();
        assert!(executed.len() as u64 == CALLS && executed.values().all(|times| *times == 1), "{executed:?}");
        let connections = control.stats().connections_total;
        // Where this machine takes 20 ms between a dial and its call, a connection is let go before its first one.
        assert!((10..=2 * CALLS).contains(&connections), "{connections}");
        println!("{bind}: {CALLS} calls over {connections} connections");
    }
}

/// A call that arrives behind the GOAWAY of an idle connection finds somebody who refuses it, and no closed socket.
// spec: W9-18
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_lets_go_reads_on() {
    let (endpoint, _) = serve(counting(&Executed::default()).max_connection_idle_ms(20), "127.0.0.1:0").await;
    let mut stream = TcpStream::connect(endpoint.trim_start_matches("tcp://")).await.unwrap();
    let mut client = Connection::new(Config::new(Role::Client), Time::default());
    stream.write_all(&said(&mut client)).await.unwrap();
    // Type 5 is GOAWAY, 20 is RESET; the client is not told yet.
    let mut heard = BytesMut::new();
    bounded("a GOAWAY", hear(&mut stream, &mut heard, 5)).await;
    let opened = Opened {
        method: "/count".into(),
        metadata: Metadata::new(),
        priority: Priority::Normal,
        deadline: None,
        message: Some("late".into()),
        end: true,
    };
    client.open(opened).unwrap();
    stream.write_all(&said(&mut client)).await.unwrap();
    bounded("a RESET", hear(&mut stream, &mut heard, 20)).await;
    // And in the end the server closes.
    bounded("the end", stream.read_to_end(&mut Vec::new())).await.unwrap();
}

fn said(connection: &mut Connection) -> Vec<u8> {
    let mut out = TransmitBuffer::default();
    connection.poll_transmit(Time::default(), &mut out, usize::MAX);
    let mut parts = vec![IoSlice::new(&[]); out.part_count()];
    let count = out.parts(&mut parts);
    parts[..count].iter().flat_map(|part| part.iter().copied()).collect()
}

/// Reads until there is a frame of that type.
async fn hear(stream: &mut TcpStream, heard: &mut BytesMut, frame_type: u8) {
    const HEADER: usize = 40;
    loop {
        while heard.len() >= HEADER {
            let len = |at: usize| u32::from_le_bytes(heard[at..at + 4].try_into().unwrap()) as usize;
            let (whole, found) = (HEADER + len(16) + len(20), heard[5]);
            if heard.len() < whole {
                break;
            }
            let _ = heard.split_to(whole);
            if found == frame_type {
                return;
            }
        }
        assert!(stream.read_buf(heard).await.unwrap() > 0, "the server closed");
    }
}

/// The other way round: a client's process that is stopped while a call of it runs loses its connection, and the handler
/// stops.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_stopped_is_found() {
    let (says, mut hears) = mpsc::unbounded_channel();
    let hang = handler_fn(move |_| {
        let says = Says(says.clone());
        async move {
            says.0.send("begun").unwrap();
            std::future::pending().await
        }
    });
    let server = ServerBuilder::new().handler("/hang", hang).keepalive_ms(10_000).keepalive_timeout_ms(1_000);
    let (endpoint, control) = serve(server, "127.0.0.1:0").await;
    let caller = Stoppable::start("KEEPALIVE_TEST_CALL", &endpoint);
    assert_eq!(bounded("a call", hears.recv()).await, Some("begun"));
    bounded("a stop", caller.stop()).await;
    assert_eq!(bounded("the end", hears.recv()).await, Some("stopped"));
    bounded("the connection's end", async {
        while control.stats().connections > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

struct Says(mpsc::UnboundedSender<&'static str>);

impl Drop for Says {
    fn drop(&mut self) {
        let _ = self.0.send("stopped");
    }
}

/// What would ask too often, or too impatiently, is refused with the least that may be given.
#[tokio::test]
async fn times_that_are_too_short_are_refused() {
    let builder = || Client::builder().endpoint("tcp://127.0.0.1:1");
    for (builder, said) in [
        (builder().keepalive_ms(9_999), "keepalive_ms is 9999; give at least 10000, or 0 for never"),
        (
            builder().keepalive_idle_ms(299_999),
            "keepalive_idle_ms is 299999; give at least 300000, or 0 for never",
        ),
        (builder().keepalive_timeout_ms(0), "keepalive_timeout_ms is 0; give at least 1000"),
    ] {
        let error = builder.connect_lazily().err().unwrap();
        assert_eq!((error.reason(), error.message()), (Reason::INVALID_CONFIGURATION, said));
    }
    let most = builder().keepalive_ms(10_000).keepalive_idle_ms(300_000).keepalive_timeout_ms(1_000);
    assert!(most.connect_lazily().is_ok());
    assert!(builder().keepalive_ms(0).keepalive_idle_ms(0).connect_lazily().is_ok());

    let server = ServerBuilder::new().bind("127.0.0.1:0").keepalive_ms(1);
    let error = server.build().await.err().unwrap();
    assert_eq!(error.message(), "keepalive_ms is 1; give at least 10000, or 0 for never");
}
