//! QUIC over links that misbehave, and QUIC peers that do.

use std::{
    collections::HashMap,
    fs,
    future::Future,
    net::SocketAddr,
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use quinn::VarInt;
use serde_json::{Value, json};
use tokio::{net::UdpSocket, task::JoinSet};
use valkyrie_faults::{
    frame::{Frame, Position},
    proxy::{Direction, Faults, Proxy},
    quic::{self, Rewrite},
    seed,
    target::{Honest, Program, Server},
};
use valkyrie_protocol::{ErrorCode, FrameHeader, FrameType, GoAway, HEADER_LEN};
use valkyrie_sdk::{
    CallOptions, Client, EchoHandler, HandlerFuture, MessageHandler, Priority, Reply, ServerBuilder,
    ServerCall, ServerControl, handler_fn,
};

/// A hang is bounded far above anything that should take that long.
async fn bounded<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(200), work).await.unwrap_or_else(|_| panic!("{what} hangs"))
}

/// A certificate and its key, as PEM.
static IDENTITY: LazyLock<(String, String)> = LazyLock::new(|| {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
});

/// Answers with every bit the other way, and counts how often it was called with each message's first eight bytes.
#[derive(Clone, Default)]
struct Inverts(Arc<Mutex<HashMap<u64, u32>>>);

impl MessageHandler for Inverts {
    fn handle(&self, mut call: ServerCall) -> HandlerFuture {
        let counts = self.0.clone();
        HandlerFuture::new(async move {
            let message = call.message().await?;
            let nonce = u64::from_le_bytes(message[..8].try_into().unwrap());
            *counts.lock().unwrap().entry(nonce).or_default() += 1;
            Ok(Reply::message(inverted(&message)))
        })
    }
}

fn inverted(message: &[u8]) -> Vec<u8> {
    message.iter().map(|byte| !byte).collect()
}

/// A message that no other call sends.
fn message(nonce: u64, len: usize) -> Vec<u8> {
    let pattern = (8..len as u64).map(|at| (at * 7 + at / 251 + nonce) as u8);
    nonce.to_le_bytes().into_iter().chain(pattern).collect()
}

/// A server, a client of it through a proxy, and what the handler counted.
struct Through {
    proxy: Proxy,
    client: Client,
    control: ServerControl,
    inverts: Inverts,
}

impl Through {
    async fn new(faults: Faults) -> Through {
        let inverts = Inverts::default();
        let flood = handler_fn(|mut call| async move {
            loop {
                call.send(vec![1; 32 << 10]).await?;
            }
        });
        let count = handler_fn(|mut call| async move {
            while call.recv().await?.is_some() {
                call.send("").await?;
            }
            Ok(Reply::end())
        });
        let server = ServerBuilder::new()
            .bind("quic://127.0.0.1:0")
            .identity(IDENTITY.0.clone(), IDENTITY.1.clone())
            .open_to_all(true)
            .handler("/echo", EchoHandler)
            .handler("/invert", inverts.clone())
            .handler("/flood", flood)
            .handler("/count", count)
            .build()
            .await
            .unwrap();
        let (endpoint, control) = (server.endpoints()[0].replace("quic://", "udp://"), server.control());
        tokio::spawn(async move { server.start().await });
        let proxy = Proxy::start("udp://127.0.0.1:0", &endpoint, seed()).await.unwrap();
        proxy.set_both(faults);
        let client = Client::builder()
            .endpoint(proxy.endpoint().replace("udp://", "quic://"))
            .trusted_certificates(IDENTITY.0.clone())
            .timeout_ms(150_000)
            .build()
            .await
            .unwrap();
        Through { proxy, client, control, inverts }
    }

    /// Calls, so many at once, and checks each answer; gives the nonce after the last.
    async fn calls(&self, first: u64, count: u64, at_once: u64, len: impl Fn(u64) -> usize) -> u64 {
        let mut running = JoinSet::new();
        for nonce in first..first + count {
            if running.len() as u64 >= at_once {
                running.join_next().await.unwrap().unwrap();
            }
            let (client, message) = (self.client.clone(), message(nonce, len(nonce)));
            running.spawn(async move {
                let answer = bounded("a call", client.call("/invert", message.clone())).await.unwrap();
                assert!(answer.message == inverted(&message), "another answer than that of call {nonce}");
            });
        }
        while let Some(ended) = running.join_next().await {
            ended.unwrap();
        }
        first + count
    }

    /// Every call was handled once, all of them on the one connection.
    fn check(&self, calls: u64) {
        let counts = self.inverts.0.lock().unwrap();
        assert_eq!(counts.len() as u64, calls);
        assert!(counts.values().all(|count| *count == 1));
        assert_eq!(self.control.stats().connections_total, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f35_a_client_whose_port_changes_loses_no_call() {
    let through = Through::new(Faults::default()).await;
    let mut next = 0;
    for round in 0..5 {
        let (calls, ()) =
            tokio::join!(through.calls(next, 200, 16, |nonce| 8 + nonce as usize * 97 % 40_000), async {
                // In the middle of them.
                let so_far = || through.inverts.0.lock().unwrap().len();
                while so_far() < round * 200 + 50 {
                    tokio::task::yield_now().await;
                }
                through.proxy.rebind();
            });
        next = calls;
    }
    // And while nothing is on its way.
    through.proxy.rebind();
    next = through.calls(next, 20, 1, |_| 100).await;
    through.check(next);
}

/// Each fault by itself, and then all of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f36_bad_datagrams_are_nobodys_answer() {
    let through = Through::new(Faults::default()).await;
    let none = Faults::default();
    let lossy = Faults { loss: 0.3, ..none };
    let all = Faults { duplicate: 2.0, reorder: 0.1, loss: 0.1, corrupt: 5e-5, ..none };
    // About one datagram in five.
    let corrupt = Faults { corrupt: 1.5e-4, ..none };
    let mut next = 0;
    for (faults, calls) in [
        ([Faults { duplicate: 2.0, ..none }; 2], 1_000),
        ([Faults { reorder: 0.1, ..none }; 2], 1_000),
        // One way at a time: both at once let the probes for what was lost wait for tens of seconds.
        ([lossy, none], 100),
        ([none, lossy], 100),
        ([corrupt; 2], 200),
        ([all; 2], 200),
    ] {
        let before = Direction::BOTH.map(|direction| through.proxy.passed(direction));
        for (direction, faults) in Direction::BOTH.into_iter().zip(faults) {
            through.proxy.set(direction, faults);
        }
        next = through.calls(next, calls, 64, |nonce| 8 + nonce as usize * 97 % 5_000).await;
        for direction in Direction::BOTH {
            let (faults, before) = (faults[direction as usize], before[direction as usize]);
            let passed = through.proxy.passed(direction);
            assert_eq!(passed.lost > before.lost, faults.loss > 0.0);
            assert_eq!(passed.flipped > before.flipped, faults.corrupt > 0.0);
        }
    }
    through.check(next);
}

/// Datagrams whose bits were changed on the way and whose checksums were made right again, as the proxy's kernel does when it
/// sends them: a checksum is no proof of who wrote, the session's tag is. None of them reaches a call, however many come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn n2_a_changed_bit_under_a_right_checksum_is_refused_by_the_session() {
    let through = Through::new(Faults::default()).await;
    let next = through.calls(0, 10, 1, |_| 500).await;
    for direction in Direction::BOTH {
        let before = through.proxy.passed(direction);
        let handled = through.inverts.0.lock().unwrap().len();
        // One bit in a hundred bytes: no datagram of a call stays as it was.
        through.proxy.set(direction, Faults { corrupt: 0.01, ..Faults::default() });
        let (client, sent) = (through.client.clone(), message(next + direction as u64, 4_000));
        let call = tokio::spawn({
            let sent = sent.clone();
            async move { client.call("/invert", sent).await }
        });
        bounded("changed datagrams", async {
            while through.proxy.passed(direction).flipped < before.flipped + 500 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert!(!call.is_finished(), "an answer through changed datagrams");
        let now = through.inverts.0.lock().unwrap().len();
        assert_eq!(now - handled, direction as usize, "only where the request came through whole");
        through.proxy.set(direction, Faults::default());
        assert!(bounded("the call", call).await.unwrap().unwrap().message == inverted(&sent));
    }
    through.check(next + 2);
}

/// A link that never carries more than 1,200 bytes, and one that stops to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f38_datagrams_above_1200_bytes_are_lost() {
    let narrow = Faults { mtu: Some(1_200), ..Faults::default() };
    for at_first in [true, false] {
        let through = Through::new(if at_first { narrow } else { Faults::default() }).await;
        let mut next = 0;
        if !at_first {
            // Until the connection has found out that more passes.
            while Direction::BOTH.iter().any(|direction| through.proxy.passed(*direction).longest <= 1_200) {
                next = through.calls(next, 1, 1, |_| 100_000).await;
            }
            through.proxy.set_both(narrow);
        }
        next = through.calls(next, 200, 16, |nonce| 8 + nonce as usize * 97 % 20_000).await;
        next = through.calls(next, 1, 1, |_| 4 << 20).await;
        through.check(next);
        // Longer ones were tried.
        assert!(Direction::BOTH.iter().all(|direction| through.proxy.passed(*direction).lost > 0));
    }
}

/// A reader that does not read holds up no call beside it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_nobody_reads_holds_up_no_other() {
    let through = Through::new(Faults::default()).await;
    let mut floods = Vec::new();
    for _ in 0..3 {
        let mut flood = through.client.stream("/flood", "", CallOptions::new()).await.unwrap();
        assert!(bounded("a flood", flood.recv()).await.unwrap().is_some());
        floods.push(flood);
    }
    let calls = through.calls(0, 500, 8, |_| 32 << 10).await;
    through.check(calls);
    // Nor is a flood lost.
    for mut flood in floods {
        for _ in 0..100 {
            assert_eq!(bounded("a flood", flood.recv()).await.unwrap().unwrap(), vec![1; 32 << 10]);
        }
    }
}

// ---- evil peers ----

/// Memory that a flood may cost the server.
const MEMORY_KIB: u64 = 8_192;

/// The program, with /echo over QUIC, and an honest client of it.
struct Attacked {
    server: Server,
    honest: Honest,
    before: u64,
    alone: Duration,
}

impl Attacked {
    async fn new() -> Attacked {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("valkyrie-faults-quic-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let path = |ending: &str| std::env::temp_dir().join(format!("{name}.{ending}"));
        let (certificates, key) = (path("pem"), path("key"));
        fs::write(&certificates, &IDENTITY.0).unwrap();
        fs::write(&key, &IDENTITY.1).unwrap();
        let server = Server::Program(Program::start(&[
            "--bind",
            "quic://127.0.0.1:0",
            "--certificates",
            certificates.to_str().unwrap(),
            "--private-key",
            key.to_str().unwrap(),
            "--open-to-all",
            "true",
        ]));
        fs::remove_file(certificates).unwrap();
        fs::remove_file(key).unwrap();
        let alone = Honest::alone(honest_client(&server).await).await;
        let before = server.rest().unwrap();
        let honest = Honest::start(honest_client(&server).await);
        Attacked { server, honest, before, alone }
    }

    fn address(&self) -> SocketAddr {
        self.server.endpoint("quic").trim_start_matches("quic://").parse().unwrap()
    }

    /// The honest client was served all the time, a new one is too, and memory stayed in its bounds.
    async fn check(self, name: &str, about: &str, seen: &str) {
        honest_client(&self.server).await.request("hello").await.unwrap();
        let beside = self.honest.stop().await;
        let grown = self.server.peak().unwrap().saturating_sub(self.before);
        println!(
            "fault\t{name}\tclient\t{about}\t{seen}\t{grown} KiB\t{} us, alone {} us",
            beside.as_micros(),
            self.alone.as_micros()
        );
        assert!(grown <= MEMORY_KIB, "{name}: the server grew by {grown} KiB");
    }
}

async fn honest_client(server: &Server) -> Client {
    let client = Client::builder().endpoint(server.endpoint("quic")).trusted_certificates(IDENTITY.0.clone());
    client.timeout_ms(100_000).build().await.unwrap()
}

/// A raw connection on which both have said HELLO.
struct Raw {
    connection: quinn::Connection,
    _control: quinn::SendStream,
    said: quinn::RecvStream,
}

impl Raw {
    async fn new(server: SocketAddr, rewrite: Rewrite) -> Raw {
        let connection =
            bounded("a handshake", quic::connect(server, quic::config(&IDENTITY.0, rewrite))).await;
        let (mut control, mut said) = connection.open_bi().await.unwrap();
        control.write_all(&frames(&json!([{ "type": "HELLO" }]))).await.unwrap();
        let mut header = [0; HEADER_LEN];
        bounded("a hello", said.read_exact(&mut header)).await.unwrap();
        let header = FrameHeader::decode(&header).unwrap();
        assert_eq!(header.frame_type, FrameType::HELLO);
        said.read_exact(&mut vec![0; header.body_len() as usize]).await.unwrap();
        Raw { connection, _control: control, said }
    }

    /// The code of the GOAWAY that ends the connection.
    async fn refusal(mut self) -> String {
        let mut code = None;
        let mut header = [0; HEADER_LEN];
        while bounded("the end", self.said.read_exact(&mut header)).await.is_ok() {
            let header = FrameHeader::decode(&header).unwrap();
            let mut body = vec![0; header.body_len() as usize];
            self.said.read_exact(&mut body).await.unwrap();
            if header.frame_type == FrameType::GOAWAY {
                let record = &body[..header.metadata_len as usize];
                code = Some(ErrorCode::from_number(GoAway::decode(record).unwrap().code).name().to_owned());
            }
        }
        code.expect("a go-away")
    }
}

fn honestly() -> Rewrite {
    Arc::new(|_| {})
}

/// Frames as the scripts have them.
fn frames(list: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    let mut position = Position { next_stream: 1, round: 0 };
    for frame in list.as_array().unwrap() {
        serde_json::from_value::<Frame>(frame.clone()).unwrap().write(&mut out, &mut position);
    }
    out
}

/// A packet of one stream is lost for ever: its call waits, and those beside it do not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_stream_lost_holds_up_no_other() {
    let server = Attacked::new().await;
    let hidden = Arc::new(AtomicUsize::new(0));
    let count = hidden.clone();
    let rewrite = move |packet: &mut [u8]| _ = count.fetch_add(quic::hide_stream(packet, 4), Relaxed);
    let raw = Raw::new(server.address(), Arc::new(rewrite)).await;
    let call = |stream: u64| {
        frames(
            &json!([{ "type": "CALL", "stream": stream, "flags": "MESSAGE END", "record": { "method": "/echo" }, "payload": "hello" }]),
        )
    };
    let (mut send, mut lost) = raw.connection.open_bi().await.unwrap();
    assert_eq!(u64::from(send.id()), 4);
    let first = call(1);
    send.write_all(&first).await.unwrap();
    send.finish().unwrap();
    // The server has acknowledged packets with nothing of the call in them.
    bounded("an acknowledgement", send.stopped()).await.unwrap();
    assert_eq!(hidden.load(Relaxed), first.len());
    for at in 1..100 {
        let (mut send, mut answer) = raw.connection.open_bi().await.unwrap();
        send.write_all(&call(2 * at + 1)).await.unwrap();
        send.finish().unwrap();
        let answer = bounded("an answer", answer.read_to_end(1 << 20)).await.unwrap();
        assert!(answer.ends_with(b"hello"));
    }
    let waits = std::future::poll_fn(|cx| {
        let mut byte = [0];
        let mut buffer = tokio::io::ReadBuf::new(&mut byte);
        std::task::Poll::Ready(
            tokio::io::AsyncRead::poll_read(std::pin::Pin::new(&mut lost), cx, &mut buffer).is_pending(),
        )
    });
    assert!(waits.await);
    server
        .check(
            "what_one_stream_lost_holds_up_no_other",
            "a packet of one stream is lost",
            "99 others answered",
        )
        .await;
}

/// Four clients whose packets hold what `fill` writes in place of a megabyte on streams; how many frames there were.
async fn instead(
    server: SocketAddr,
    fill: impl Fn(u64, &mut Vec<u8>) + Clone + Send + Sync + 'static,
) -> u64 {
    let written = Arc::new(AtomicU64::new(0));
    let mut all = JoinSet::new();
    for _ in 0..4 {
        let (fill, written) = (fill.clone(), written.clone());
        let evil = Arc::new(AtomicBool::new(false));
        let turned = evil.clone();
        let round = AtomicU64::new(0);
        let rewrite = move |packet: &mut [u8]| {
            // Shorter ones acknowledge.
            if !turned.load(Relaxed) || packet.len() < 1_000 {
                return;
            }
            let mut out = Vec::new();
            let mut frame = Vec::new();
            loop {
                frame.clear();
                fill(round.load(Relaxed), &mut frame);
                if out.len() + frame.len() > packet.len() {
                    break;
                }
                round.fetch_add(1, Relaxed);
                written.fetch_add(1, Relaxed);
                out.append(&mut frame);
            }
            packet.fill(0);
            packet[..out.len()].copy_from_slice(&out);
        };
        let raw = Raw::new(server, Arc::new(rewrite)).await;
        evil.store(true, Relaxed);
        all.spawn(async move {
            for _ in 0..4 {
                let Ok((mut send, _)) = raw.connection.open_bi().await else { return };
                // An error is that the server has had enough.
                let sent = async {
                    send.write_all(&[0; 250 << 10]).await.ok()?;
                    send.finish().ok()?;
                    send.stopped().await.ok()
                };
                bounded("what is acknowledged or refused", sent).await;
            }
        });
    }
    while let Some(ended) = all.join_next().await {
        ended.unwrap();
    }
    written.load(Relaxed)
}

/// One byte of every two, on four streams in turn, up to the end of their windows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f37_streams_full_of_gaps() {
    let server = Attacked::new().await;
    let gap = |round: u64, out: &mut Vec<u8>| {
        let offset = 1 + 2 * (round / 4);
        quic::stream_frame(out, 4 + 4 * (round % 4), (offset % (256 << 10)) as u32, &[0]);
    };
    let frames = instead(server.address(), gap).await;
    server
        .check("f37_streams_full_of_gaps", "bytes with gaps between them", &format!("{frames} frames"))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f37_path_challenges() {
    let server = Attacked::new().await;
    let challenge = |round: u64, out: &mut Vec<u8>| {
        out.push(0x1a);
        out.extend(round.to_be_bytes());
    };
    let frames = instead(server.address(), challenge).await;
    server.check("f37_path_challenges", "PATH_CHALLENGE flood", &format!("{frames} frames")).await;
}

/// New ids without an end, each of which retires those before it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f37_new_connection_ids() {
    let server = Attacked::new().await;
    let id = |round: u64, out: &mut Vec<u8>| {
        let number = (10 + round) as u32 | 0x8000_0000;
        out.push(0x18);
        out.extend(number.to_be_bytes());
        out.extend(number.to_be_bytes());
        out.push(8);
        out.extend(round.to_be_bytes());
        out.extend([round as u8; 16]);
    };
    let frames = instead(server.address(), id).await;
    server.check("f37_new_connection_ids", "NEW_CONNECTION_ID flood", &format!("{frames} frames")).await;
}

/// First packets from so many ports, none of which goes on: none is answered with more than three times its bytes and a
/// part of a datagram, most are asked to show that their port is their own, and who does so is served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f37_first_packets_from_everywhere() {
    const PORTS: usize = 500;
    let server = Attacked::new().await;
    let mut endpoint = quinn_proto::Endpoint::new(Arc::default(), None, false, None);
    let config = quic::config(&IDENTITY.0, honestly());
    let (mut ports, mut retries, mut handshakes) = (Vec::new(), 0, 0);
    let mut buffer = [0; 2_000];
    for _ in 0..PORTS {
        let (_, mut connection) =
            endpoint.connect(Instant::now(), config.clone(), server.address(), "127.0.0.1").unwrap();
        let mut packet = Vec::new();
        assert!(connection.poll_transmit(Instant::now(), 1, &mut packet).is_some());
        assert_eq!(packet.len(), 1_200);
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(server.address()).await.unwrap();
        socket.send(&packet).await.unwrap();
        let came = bounded("an answer", socket.recv(&mut buffer)).await.unwrap();
        // A long header's type: Retry.
        match buffer[0] & 0xb0 == 0xb0 {
            true => retries += 1,
            false => handshakes += 1,
        }
        ports.push((socket, came));
    }
    // Handshakes fill the server: only who shows its address is let in.
    honest_client(&server.server).await.request("through a retry").await.unwrap();
    // What nobody acknowledges is sent again, as long as it may be.
    let (first, came) = &mut ports[0];
    while *came < 2 * 1_200 {
        *came += bounded("an answer", first.recv(&mut buffer)).await.unwrap();
    }
    let mut all = 0;
    for (socket, mut came) in ports {
        while let Ok(more) = socket.try_recv(&mut buffer) {
            came += more;
        }
        // quinn looks before a datagram, not behind it.
        assert!(came < 4 * 1_200, "{came} bytes of answer to 1,200");
        all += came;
    }
    assert!(all <= 3 * 1_200 * PORTS, "{all} bytes of answer");
    // More than fit at once where the first gave up meanwhile.
    assert!(handshakes >= 32 && retries > 0, "{handshakes} handshakes, {retries} retries");
    let seen = format!("{handshakes} handshakes, {retries} retries, {all} bytes of answer");
    server
        .check("f37_first_packets_from_everywhere", "first packets of 500 clients that do not go on", &seen)
        .await;
}

/// What is wrong on a call's stream ends its connection with the right code.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f15_frames_on_the_wrong_stream() {
    let server = Attacked::new().await;
    let call = json!({ "type": "CALL", "stream": 1, "flags": "MESSAGE", "record": { "method": "/echo" } });
    for (wrong, code) in [
        (
            json!([{ "hex": "00000000000000000000000000000000000000000000000000000000000000000000000000000000" }]),
            "MAGIC",
        ),
        (json!([{ "type": "MESSAGE", "stream": 1, "flags": "MESSAGE" }]), "PROTOCOL"),
        (
            json!([{ "type": "CALL", "stream": 3, "flags": "MESSAGE END", "record": { "method": "/echo" } }]),
            "PROTOCOL",
        ),
        (json!([{ "type": "WINDOW", "stream": 1 }]), "PROTOCOL"),
        (json!([{ "type": "RESET", "stream": 1 }]), "PROTOCOL"),
        (json!([{ "type": "HELLO" }]), "PROTOCOL"),
        (json!([call, call]), "STREAM_ID"),
        (json!([call, { "type": "MESSAGE", "stream": 3, "flags": "MESSAGE" }]), "PROTOCOL"),
        (json!([call, { "type": "PING" }]), "PROTOCOL"),
    ] {
        let raw = Raw::new(server.address(), honestly()).await;
        let (mut send, _receive) = raw.connection.open_bi().await.unwrap();
        send.write_all(&frames(&wrong)).await.unwrap();
        assert_eq!(raw.refusal().await, code, "{wrong}");
    }
    server
        .check("f15_frames_on_the_wrong_stream", "frames that do not belong on a call's stream", "refused")
        .await;
}

/// Rapid Reset, in QUIC's two ways: the caller resets what it sends, or reads no answer.
// spec: W11-08
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f17_rapid_reset_on_quic() {
    for stops in [false, true] {
        let server = Attacked::new().await;
        let raw = Raw::new(server.address(), honestly()).await;
        let mut opened = 0;
        while let Ok((mut send, mut receive)) = bounded("a stream", raw.connection.open_bi()).await {
            opened += 1;
            assert!(opened < 100_000, "nobody told it to calm down");
            let stream = 2 * opened - 1;
            let begun =
                frames(&json!([{ "type": "CALL", "stream": stream, "record": { "method": "/echo" } }]));
            let cancel = VarInt::from_u32(11);
            if send.write_all(&begun).await.is_err() {
                break;
            }
            let _ = receive.stop(cancel);
            if !stops {
                let _ = send.reset(cancel);
            }
            std::mem::forget(send);
        }
        let code = raw.refusal().await;
        assert_eq!(code, "ENHANCE_CALM");
        let (name, about) = match stops {
            false => ("f17_rapid_reset_on_quic", "streams opened and reset"),
            true => ("f17_rapid_reset_on_quic, stopped", "streams opened and not read"),
        };
        server.check(name, about, &format!("{opened} streams, then {code}")).await;
    }
}

/// While calls of a class fill a link that loses datagrams, those of the lower classes move too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f28_no_class_starves_on_quic() {
    let through = Through::new(Faults::default()).await;
    through.proxy.set(Direction::Up, Faults { loss: 0.02, ..Faults::default() });
    let moved: [Arc<AtomicUsize>; 3] = Default::default();
    let mut uploads = JoinSet::new();
    for (class, count) in [(Priority::Critical, 8), (Priority::Normal, 1), (Priority::Bulk, 1)] {
        for _ in 0..count {
            let options = CallOptions::new().with_priority(class);
            let (mut send, mut recv) = through.client.open("/count", options).await.unwrap();
            uploads.spawn(async move { while send.send(vec![1; 16 << 10]).await.is_ok() {} });
            let moved = moved[class as usize].clone();
            uploads.spawn(async move {
                while let Ok(Some(_)) = recv.recv().await {
                    moved.fetch_add(16 << 10, Relaxed);
                }
            });
        }
    }
    let now = || [0, 1, 2].map(|class| moved[class].load(Relaxed));
    bounded("the first class", async {
        while now()[0] < 8 << 20 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    uploads.shutdown().await;
    // Each moved about a third of a megabyte.
    assert!(now()[1..].iter().all(|moved| *moved >= 64 << 10), "{:?}", now());
}
