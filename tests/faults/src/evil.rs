//! The evil peers: they run a script over real sockets and keep what they see. What must be seen is compared at the end.

use std::{
    collections::BTreeMap,
    future::Future,
    io,
    process::{Command, Stdio},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
    sync::watch,
    task::JoinSet,
};
use valkyrie_protocol::{
    ErrorCode, FrameHeader, FrameType, GoAway, HEADER_LEN, OPTIONAL_TYPE, Reset, StatusRecord,
};
use valkyrie_sdk::{Client, Code};

use crate::{
    frame::{Frame, Payload, Position, Record, StreamId, Ws},
    script::{Carrier, Expected, Script, Side, Step, Target},
    target::{Honest, Program, Server},
};

/// No step takes longer: a hang is a failure, and no timer that is tested is near it.
const HANG: Duration = Duration::from_secs(200);
/// What an evil peer collects before it writes.
const BLOCK: usize = 32 << 10;
/// An answer to what is wrong is short.
const LONGEST_ANSWER: u64 = 2_048;
/// Memory that a flood may cost the server, unless its script says another number.
const MEMORY_KIB: u64 = 8_192;

/// Runs a script, checks what was seen and prints its row of the table.
///
/// # Panics
/// When something else was seen.
pub async fn run(name: &str) {
    let script = Script::read(name);
    match script.evil {
        Side::Client => attack_server(name, &script).await,
        Side::Server => attack_client(name, &script).await,
    }
}

fn row(name: &str, script: &Script, result: &str, memory: &str, times: &str) {
    let side = if script.evil == Side::Client { "client" } else { "server" };
    println!("fault\t{name}\t{side}\t{}\t{result}\t{memory}\t{times}", script.about);
}

/// Sends bytes to a server and waits until it closes: the code of its GOAWAY.
///
/// # Panics
/// When it does not close, or answers more than a short GOAWAY.
pub async fn refusal(endpoint: &str, bytes: &[u8]) -> Option<String> {
    let mut peer = Peer::new(connect(endpoint).await, 1, Carrier::Tcp);
    peer.write(bytes).await;
    let seen = bounded(endpoint, peer.until(|seen| seen.closed)).await;
    assert!(seen.bytes <= LONGEST_ANSWER, "{} bytes of answer", seen.bytes);
    seen.goaway.map(|(code, ..)| code)
}

/// Runs a script of an evil client against a server that is there already, over TCP.
///
/// # Panics
/// When something else is seen than must be.
pub async fn attack(name: &str, endpoint: &str) {
    attacks(name, &Script::read(name), endpoint, Carrier::Tcp).await;
}

/// Has an evil client attack a server again and again until an honest client beside it has called often enough: the what
/// the evil one prints at its end, and the honest client's 99th percentiles alone and beside. `attacker` makes the process
/// that attacks an endpoint and ends with its input.
///
/// # Panics
/// When the attacker cannot be started, or ends before its input does.
pub async fn flood(name: &str, attacker: impl FnOnce(&str) -> Command) -> (String, Duration, Duration) {
    let script = Script::read(name);
    let server = target(&script).await;
    let endpoint = server.endpoint("tcp");
    let client = async || Client::connect(endpoint).await.expect("an honest client connects");
    let alone = Honest::alone(client().await).await;
    let mut attacker = attacker(endpoint);
    let attacker = attacker.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut attacker = attacker.spawn().expect("the attacker starts");
    let beside = Honest::alone(client().await).await;
    assert!(attacker.try_wait().expect("it is ours").is_none(), "{name}: the attacker gave up");
    drop(attacker.stdin.take());
    let ended = attacker.wait_with_output().expect("it ends");
    assert!(ended.status.success(), "{name}: the attacker saw something else");
    (String::from_utf8_lossy(&ended.stdout).trim().to_owned(), alone, beside)
}

async fn target(script: &Script) -> Server {
    match script.target {
        Target::Program => Server::Program(Program::start(&[])),
        Target::Sdk => Server::sdk(script.limits.limits()).await,
    }
}

async fn attack_server(name: &str, script: &Script) {
    let server = target(script).await;
    let client = async || Client::connect(server.endpoint("tcp")).await.expect("an honest client connects");
    let alone = Honest::alone(client().await).await;
    let before = server.rest();
    let honest = Honest::start(client().await);
    let mut result = String::new();
    for carrier in &script.carriers {
        let endpoint = server.endpoint(if *carrier == Carrier::Unix { "unix" } else { "tcp" });
        result = attacks(name, script, endpoint, *carrier).await;
    }
    let beside = honest.stop().await;
    let mut memory = "-".to_owned();
    if let (Some(before), Some(peak)) = (before, server.peak()) {
        let grown = peak.saturating_sub(before);
        let most = script.seen.memory_kib.unwrap_or(MEMORY_KIB);
        assert!(grown <= most, "{name}: the server grew by {grown} KiB, more than {most}");
        memory = format!("{grown} KiB");
    }
    if let Some(most) = script.seen.handlers_most {
        assert!(server.held() <= most, "{name}: {} handlers were started", server.held());
    }
    if let Some(peak) = script.seen.running_peak {
        assert_eq!(server.running_peak(), peak, "{name}: handlers at once");
    }
    let times = format!("{} us, alone {} us", beside.as_micros(), alone.as_micros());
    row(name, script, &result, &memory, &times);
}

/// Every connection of a script, and what the last of them saw.
async fn attacks(name: &str, script: &Script, endpoint: &str, carrier: Carrier) -> String {
    let mut position = Position { next_stream: 1, round: 0 };
    let cut = script.cut.as_ref().map(|frame| {
        let mut bytes = Vec::new();
        frame.write(&mut bytes, &mut position);
        bytes
    });
    let count = cut.as_ref().map_or(script.connections, Vec::len);
    let mut all = JoinSet::new();
    let mut result = String::new();
    for at in 0..count {
        let socket = connect(endpoint).await;
        let (script, name, cut) = (script.clone(), name.to_owned(), cut.clone());
        let attack = async move {
            let mut peer = Peer::new(socket, 1, carrier);
            peer.steps(&script.steps).await;
            if let Some(cut) = cut {
                peer.write(&cut[..at]).await;
                peer.half_close().await;
            }
            peer.check(&name, &script.seen).await
        };
        if script.together {
            all.spawn(attack);
        } else {
            result = attack.await;
        }
    }
    while let Some(done) = all.join_next().await {
        result = done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
    }
    result
}

async fn attack_client(name: &str, script: &Script) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback can be bound");
    let endpoint = format!("tcp://{}", listener.local_addr().expect("it is bound"));
    let honest = Server::sdk(valkyrie_sdk::Limits::default()).await;
    let beside = Client::connect(honest.endpoint("tcp")).await.expect("an honest server");
    let mut position = Position { next_stream: 2, round: 0 };
    let cut = script.cut.as_ref().map(|frame| {
        let mut bytes = Vec::new();
        frame.write(&mut bytes, &mut position);
        bytes
    });
    let count = cut.as_ref().map_or(script.connections, Vec::len);
    let mut result = String::new();
    for at in 0..count {
        let builder = Client::builder().endpoint(&*endpoint).lazy(true).timeout_ms(100_000);
        let client = builder.limits(script.limits.limits()).build().await.expect("a lazy client");
        let call = client.request("hello");
        let attack = async {
            let (socket, _) = listener.accept().await.expect("the client connects");
            let mut peer = Peer::new(split(socket), 2, Carrier::Tcp);
            peer.steps(&script.steps).await;
            if let Some(cut) = &cut {
                peer.write(&cut[..at]).await;
                peer.half_close().await;
            }
            peer.check(name, &script.seen).await
        };
        let (answer, seen) = bounded(name, async { tokio::join!(call, attack) }).await;
        let expected = &script.seen.client;
        let outcome = match &answer {
            Ok(_) => "answered".to_owned(),
            Err(status) => status.reason().name().to_owned(),
        };
        let right = if expected.is_empty() { answer.is_ok() } else { expected.contains(&outcome) };
        assert!(right, "{name}, connection {at}: the call ended with {answer:?}, not {expected:?}");
        assert_eq!(beside.request("honest").await.expect("an honest server answers"), "honest");
        result = format!("{outcome}; {seen}");
    }
    row(name, script, &result, "-", "-");
}

async fn bounded<T>(name: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(HANG, work).await.unwrap_or_else(|_| panic!("{name} hangs"))
}

type Halves = (Box<dyn AsyncRead + Send + Unpin>, Box<dyn AsyncWrite + Send + Unpin>);

fn split(stream: TcpStream) -> Halves {
    let _ = stream.set_nodelay(true);
    let (read, write) = stream.into_split();
    (Box::new(read), Box::new(write))
}

async fn connect(endpoint: &str) -> Halves {
    match endpoint.split_once("://") {
        Some(("unix", path)) => {
            let (read, write) = UnixStream::connect(path).await.expect("the target listens").into_split();
            (Box::new(read), Box::new(write))
        }
        Some((_, address)) => split(TcpStream::connect(address).await.expect("the target listens")),
        None => panic!("{endpoint:?} is no endpoint"),
    }
}

/// What an evil peer saw.
#[derive(Clone, Debug, Default)]
struct Seen {
    frames: BTreeMap<String, usize>,
    /// Code, last stream and message.
    goaway: Option<(String, u64, String)>,
    resets: BTreeMap<String, usize>,
    statuses: BTreeMap<String, usize>,
    http: Option<u16>,
    ws_close: Option<u16>,
    bytes: u64,
    closed: bool,
}

/// One evil connection: writes as it is told, reads beside it.
struct Peer {
    carrier: Carrier,
    write: Box<dyn AsyncWrite + Send + Unpin>,
    out: Vec<u8>,
    position: Position,
    seen: watch::Receiver<Seen>,
    reading: watch::Sender<bool>,
    /// Nobody takes what it writes.
    refused: bool,
}

impl Peer {
    fn new((read, write): Halves, next_stream: u64, carrier: Carrier) -> Self {
        let (reading, may_read) = watch::channel(true);
        let (report, seen) = watch::channel(Seen::default());
        tokio::spawn(reader(read, may_read, report, carrier));
        let position = Position { next_stream, round: 0 };
        Self { carrier, write, out: Vec::new(), position, seen, reading, refused: false }
    }

    async fn steps(&mut self, steps: &[Step]) {
        for step in steps {
            match step {
                Step::Send(frames) => {
                    frames.iter().for_each(|frame| frame.write(&mut self.out, &mut self.position));
                    self.flush().await;
                }
                Step::Repeat { times, send, every_ms } => {
                    for round in 0..*times {
                        self.position.round = round;
                        send.iter().for_each(|frame| frame.write(&mut self.out, &mut self.position));
                        if self.out.len() >= BLOCK || *every_ms > 0 {
                            self.flush().await;
                        }
                        if *every_ms > 0 {
                            // The pace is the attack: nothing is waited for.
                            tokio::time::sleep(Duration::from_millis(*every_ms)).await;
                        }
                        if self.refused {
                            break;
                        }
                    }
                    self.flush().await;
                }
                Step::Wait { frame, count } => {
                    let come =
                        |seen: &Seen| seen.closed || seen.frames.get(frame).is_some_and(|have| have >= count);
                    bounded(frame, self.until(come)).await;
                }
                Step::StopReading => {
                    self.reading.send_replace(false);
                }
                Step::HalfClose => self.half_close().await,
            }
        }
    }

    async fn flush(&mut self) {
        let out = std::mem::take(&mut self.out);
        self.write(&out).await;
    }

    /// Writes, unless the other side has ended: a peer that does not read is no reason to wait for ever.
    async fn write(&mut self, bytes: &[u8]) {
        if self.refused {
            return;
        }
        let mut seen = self.seen.clone();
        let closed = async {
            // An error means that the reader is gone, and with it the connection.
            let _ = seen.wait_for(|seen| seen.closed).await;
        };
        let written = tokio::select! {
            written = self.write.write_all(bytes) => written,
            () = closed => Err(io::ErrorKind::BrokenPipe.into()),
        };
        self.refused = written.is_err();
    }

    async fn half_close(&mut self) {
        self.refused |= self.write.shutdown().await.is_err();
    }

    async fn until(&mut self, come: impl Fn(&Seen) -> bool) -> Seen {
        if let Ok(seen) = self.seen.wait_for(|seen| come(seen)).await {
            return seen.clone();
        }
        self.seen.borrow().clone()
    }

    /// Compares what it sees to the end with what must be seen, which it gives in a few words.
    async fn check(mut self, name: &str, expected: &Expected) -> String {
        self.reading.send_replace(true);
        if expected.stays {
            const ALIVE: u64 = 0xFACE;
            let record = Record { data: ALIVE, ..Record::default() };
            let kind = crate::frame::Kind::Name("PING".into());
            let stream = StreamId::Number(0);
            let mut ping = Frame { kind, stream, record, payload: Payload::Len(0), ..Frame::default() };
            if self.carrier == Carrier::Ws {
                ping = Frame { ws: Some(Ws::binary(ping)), ..Frame::default() };
            }
            ping.write(&mut self.out, &mut self.position);
            self.flush().await;
            let alive = |seen: &Seen| seen.closed || seen.frames.contains_key("ALIVE");
            let seen = bounded(name, self.until(alive)).await;
            assert!(!seen.closed, "{name}: the connection did not stay: {seen:?}");
        } else {
            let seen = bounded(name, self.until(|seen| seen.closed)).await;
            assert!(seen.closed, "{name}: the connection stayed: {seen:?}");
        }
        let seen = self.seen.borrow().clone();
        let code = seen.goaway.as_ref().map(|(code, ..)| code.clone());
        if code.is_some() || !expected.goaway_may_be_lost {
            assert_eq!(code, expected.goaway, "{name}: {seen:?}");
        }
        if let (Some(most), Some((_, last, _))) = (expected.last_stream_most, &seen.goaway) {
            assert!(*last <= most, "{name}: it came as far as stream {last}");
        }
        for (code, count) in &expected.resets {
            let have = seen.resets.get(code).copied().unwrap_or_default();
            assert!(have >= *count, "{name}: {have} resets with {code}: {seen:?}");
        }
        assert!(seen.resets.keys().all(|code| expected.resets.contains_key(code)), "{name}: {seen:?}");
        assert_eq!(seen.statuses, expected.statuses, "{name}: {seen:?}");
        assert_eq!((seen.http, seen.ws_close), (expected.http, expected.ws_close), "{name}: {seen:?}");
        if !expected.stays && expected.resets.is_empty() && expected.statuses.is_empty() {
            let count = |name| seen.frames.get(name).copied().unwrap_or_default() as u64;
            let answers = (count("PONG") + count("AUTHENTICATED")) * 64;
            assert!(seen.bytes <= LONGEST_ANSWER + answers, "{name}: {} bytes of answer", seen.bytes);
        }
        let mut words = Vec::new();
        words.extend(seen.goaway.map(|(code, ..)| format!("GOAWAY {code}")));
        words.extend(seen.resets.iter().map(|(code, count)| format!("{count} RESET {code}")));
        words.extend(seen.http.map(|code| format!("HTTP {code}")));
        words.extend(seen.ws_close.map(|code| format!("close {code}")));
        words.push(if expected.stays { "stays" } else { "closed" }.to_owned());
        words.join(", ")
    }
}

/// Reads while it may and keeps what it saw.
async fn reader(
    mut read: Box<dyn AsyncRead + Send + Unpin>,
    mut may_read: watch::Receiver<bool>,
    report: watch::Sender<Seen>,
    carrier: Carrier,
) {
    let mut buffer = BytesMut::new();
    let mut messages = BytesMut::new();
    loop {
        if may_read.wait_for(|may| *may).await.is_err() {
            break;
        }
        let count = tokio::select! {
            read = read.read_buf(&mut buffer) => read.unwrap_or(0),
            changed = may_read.changed() => match changed {
                Ok(()) => continue,
                Err(_) => break,
            },
        };
        report.send_modify(|seen| {
            seen.bytes += count as u64;
            if carrier == Carrier::Ws {
                unwrap_web_socket(&mut buffer, &mut messages, seen);
                note_frames(&mut messages, seen);
            } else {
                note_frames(&mut buffer, seen);
            }
            seen.closed |= count == 0;
        });
        if count == 0 {
            break;
        }
    }
}

/// Takes HTTP's answer and the WebSocket frames behind it apart.
fn unwrap_web_socket(buffer: &mut BytesMut, messages: &mut BytesMut, seen: &mut Seen) {
    if seen.http.is_none() {
        let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") else { return };
        let head = buffer.split_to(end + 4);
        seen.http = std::str::from_utf8(&head).ok().and_then(|head| head.split(' ').nth(1)?.parse().ok());
        seen.frames.insert("HTTP".into(), 1);
    }
    if seen.http != Some(101) {
        return;
    }
    // What a server sends is not masked, and ours are never in parts.
    while let [first, second, rest @ ..] = &buffer[..] {
        let (len, at) = match (second & 127, rest) {
            (126, [a, b, ..]) => (usize::from(u16::from_be_bytes([*a, *b])), 4),
            (127, rest) if rest.len() >= 8 => {
                (u64::from_be_bytes(rest[..8].try_into().expect("eight bytes")) as usize, 10)
            }
            (126 | 127, _) => return,
            (len, _) => (usize::from(len), 2),
        };
        if buffer.len() < at + len {
            return;
        }
        let opcode = first & 15;
        buffer.advance(at);
        let payload = buffer.split_to(len);
        match opcode {
            8 => seen.ws_close = payload.first_chunk().map(|code| u16::from_be_bytes(*code)),
            2 => messages.extend_from_slice(&payload),
            _ => {}
        }
    }
}

fn note_frames(buffer: &mut BytesMut, seen: &mut Seen) {
    while let Some(start) = buffer.first_chunk::<HEADER_LEN>() {
        let header = FrameHeader::decode(start).expect("a real peer writes real frames");
        let whole = HEADER_LEN + header.metadata_len as usize + header.payload_len as usize;
        if buffer.len() < whole {
            return;
        }
        let frame = buffer.split_to(whole);
        let record = &frame[HEADER_LEN..HEADER_LEN + header.metadata_len as usize];
        let mut count = |name: &str| *seen.frames.entry(name.to_owned()).or_default() += 1;
        match header.frame_type {
            FrameType::HELLO => count("HELLO"),
            FrameType::AUTHENTICATED => count("AUTHENTICATED"),
            FrameType::PING => count("PING"),
            FrameType::PONG => {
                let ping = valkyrie_protocol::Ping::decode(record).expect("a PONG's record");
                count(if ping.data == 0xFACE { "ALIVE" } else { "PONG" });
            }
            FrameType::WINDOW => count("WINDOW"),
            FrameType::CALL => count("CALL"),
            FrameType::HEAD => count("HEAD"),
            FrameType::MESSAGE => count("MESSAGE"),
            FrameType::STATUS => {
                count("STATUS");
                let status = StatusRecord::decode(record).expect("a STATUS' record");
                *seen.statuses.entry(Code::from_number(status.code).name().to_owned()).or_default() += 1;
            }
            FrameType::RESET => {
                count("RESET");
                let code = ErrorCode::from_number(Reset::decode(record).expect("a RESET's record").code);
                *seen.resets.entry(code.name().to_owned()).or_default() += 1;
            }
            FrameType::GOAWAY => {
                count("GOAWAY");
                let go_away = GoAway::decode(record).expect("a GOAWAY's record");
                let code = ErrorCode::from_number(go_away.code).name().to_owned();
                seen.goaway = Some((code, go_away.last_stream, go_away.message.to_owned()));
            }
            FrameType(other) => {
                assert!(other & OPTIONAL_TYPE != 0, "a real peer sent a frame of type {other}")
            }
        }
    }
}
