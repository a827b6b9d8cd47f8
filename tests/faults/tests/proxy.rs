//! The fault proxy by itself, and Valkyrie's calls through it.

use std::{
    collections::BTreeSet,
    future::Future,
    io::ErrorKind,
    process::{Command, Stdio},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket, UnixListener, UnixStream},
};
use valkyrie_faults::{
    proxy::{Direction, Faults, Passed, Proxy},
    seed,
};
use valkyrie_sdk::{CallOptions, Client, EchoHandler, Reason, ServerBuilder, handler_fn};

/// A hang is bounded far above anything that should take that long.
async fn bounded<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(100), work).await.unwrap_or_else(|_| panic!("{what} hangs"))
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 251) as u8).collect()
}

struct Pair {
    proxy: Proxy,
    client: TcpStream,
    server: TcpStream,
    listener: TcpListener,
}

async fn pair() -> Pair {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = format!("tcp://{}", listener.local_addr().unwrap());
    let proxy = Proxy::start("tcp://127.0.0.1:0", &upstream, seed()).await.unwrap();
    let client = TcpStream::connect(proxy.endpoint().trim_start_matches("tcp://")).await.unwrap();
    let (server, _) = listener.accept().await.unwrap();
    Pair { proxy, client, server, listener }
}

async fn carried(pair: &mut Pair, data: &[u8]) -> Vec<u8> {
    let mut came = vec![0; data.len()];
    let (sent, read) = tokio::join!(pair.client.write_all(data), pair.server.read_exact(&mut came));
    sent.unwrap();
    read.unwrap();
    came
}

#[tokio::test]
async fn bytes_pass_as_they_are_in_any_number_of_pieces() {
    let data = pattern(200_000);
    let slow = Faults {
        slice: Some(100),
        delay: Duration::from_millis(2),
        jitter: Duration::from_millis(2),
        ..Faults::default()
    };
    for (faults, pieces) in
        [(Faults::default(), 1), (slow, 2_000), (Faults { bandwidth: Some(4 << 20), ..slow }, 2_000)]
    {
        let mut pair = pair().await;
        pair.proxy.set_both(faults);
        assert!(bounded("the link", carried(&mut pair, &data)).await == data, "{faults:?}");
        let passed = pair.proxy.passed(Direction::Up);
        assert_eq!((passed.bytes, passed.flipped), (200_000, 0));
        assert!(passed.pieces >= pieces, "{passed:?} with {faults:?}");
        assert_eq!(pair.proxy.passed(Direction::Down), Passed::default());
    }
}

#[tokio::test]
async fn unix_sockets_are_carried_too() {
    let folder = std::env::temp_dir();
    let path = |name: &str| folder.join(format!("valkyrie-faults-{}-{name}.sock", std::process::id()));
    let (front, back) = (path("front"), path("back"));
    let listener = UnixListener::bind(&back).unwrap();
    let place = |path: &std::path::Path| format!("unix://{}", path.display());
    let proxy = Proxy::start(&place(&front), &place(&back), seed()).await.unwrap();
    let mut client = UnixStream::connect(&front).await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    client.write_all(b"over").await.unwrap();
    let mut came = [0; 4];
    server.read_exact(&mut came).await.unwrap();
    assert_eq!(&came, b"over");
    proxy.cut();
    assert_eq!(bounded("the cut", client.read(&mut came)).await.unwrap_or(0), 0);
    drop(proxy);
    std::fs::remove_file(back).unwrap();
}

#[tokio::test]
async fn flipped_bits_are_counted() {
    let data = pattern(100_000);
    let mut pair = pair().await;
    pair.proxy.set(Direction::Up, Faults { corrupt: 0.01, ..Faults::default() });
    let came = carried(&mut pair, &data).await;
    let bits: u32 = data.iter().zip(&came).map(|(sent, came)| (sent ^ came).count_ones()).sum();
    assert_eq!(u64::from(bits), pair.proxy.passed(Direction::Up).flipped);
    assert!((500..2_000).contains(&bits), "{bits} of 100,000 bytes");
}

#[tokio::test]
async fn a_cut_resets_a_close_ends_and_new_connections_are_taken() {
    for reset in [true, false] {
        let mut pair = pair().await;
        assert_eq!(carried(&mut pair, b"first").await, b"first");
        if reset {
            pair.proxy.cut()
        } else {
            pair.proxy.close()
        }
        let mut rest = Vec::new();
        let ended = bounded("the end", pair.client.read_to_end(&mut rest)).await;
        assert_eq!(
            ended.map_err(|error| error.kind()),
            if reset { Err(ErrorKind::ConnectionReset) } else { Ok(0) }
        );
        let ended = bounded("the other end", pair.server.read_to_end(&mut rest)).await;
        assert_eq!(ended.is_err(), reset);
        let address = pair.proxy.endpoint().trim_start_matches("tcp://").to_owned();
        let mut client = TcpStream::connect(address).await.unwrap();
        let (mut server, _) = pair.listener.accept().await.unwrap();
        client.write_all(b"again").await.unwrap();
        let mut came = [0; 5];
        server.read_exact(&mut came).await.unwrap();
        assert_eq!(&came, b"again");
    }
}

#[tokio::test]
async fn a_connection_is_cut_or_half_closed_after_so_many_bytes() {
    let data = pattern(10_000);
    for (cut_after, half_close_after) in [(Some(1_234), None), (None, Some(1_234))] {
        let mut pair = pair().await;
        pair.proxy.set(Direction::Up, Faults { cut_after, half_close_after, ..Faults::default() });
        pair.client.write_all(&data).await.unwrap();
        let mut came = Vec::new();
        let ended = bounded("the end", pair.server.read_to_end(&mut came)).await;
        assert_eq!(pair.proxy.passed(Direction::Up).bytes, 1_234);
        if cut_after.is_some() {
            // A reset may take what was on its way with it.
            assert!(ended.is_err() && data.starts_with(&came));
        } else {
            assert!(ended.is_ok() && came == data[..1_234]);
            pair.server.write_all(b"still here").await.unwrap();
            let mut answer = [0; 10];
            pair.client.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"still here");
        }
    }
}

#[tokio::test]
async fn one_direction_ends_when_it_is_told_to() {
    let mut pair = pair().await;
    assert_eq!(carried(&mut pair, b"first").await, b"first");
    pair.proxy.half_close(Direction::Up);
    let mut rest = Vec::new();
    assert_eq!(bounded("the half-close", pair.server.read_to_end(&mut rest)).await.unwrap(), 0);
    pair.client.write_all(b"nobody hears this").await.unwrap();
    pair.server.write_all(b"answer").await.unwrap();
    let mut answer = [0; 6];
    pair.client.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"answer");
    assert_eq!(pair.proxy.passed(Direction::Up).bytes, 5);
}

#[tokio::test]
async fn a_stopped_direction_holds_a_bounded_amount_and_lets_it_go() {
    let mut pair = pair().await;
    pair.proxy.set(Direction::Up, Faults { stop: true, ..Faults::default() });
    let block = pattern(64 << 10);
    let mut sent = 0;
    // Until nobody takes any more: what the kernel's buffers and the proxy's hold.
    while let Ok(written) = tokio::time::timeout(Duration::from_secs(1), pair.client.write(&block)).await {
        sent += written.unwrap();
        assert!(sent < 64 << 20, "{sent} bytes were taken");
    }
    // The other direction is as it was.
    pair.server.write_all(b"hello").await.unwrap();
    let mut answer = [0; 5];
    pair.client.read_exact(&mut answer).await.unwrap();
    assert_eq!(pair.proxy.passed(Direction::Up).bytes, 0);
    pair.proxy.set(Direction::Up, Faults::default());
    let mut came = vec![0; sent];
    bounded("what was held", pair.server.read_exact(&mut came)).await.unwrap();
}

struct Datagrams {
    proxy: Proxy,
    client: UdpSocket,
    server: UdpSocket,
}

async fn datagrams() -> Datagrams {
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let upstream = format!("udp://{}", server.local_addr().unwrap());
    let proxy = Proxy::start("udp://127.0.0.1:0", &upstream, seed()).await.unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect(proxy.endpoint().trim_start_matches("udp://")).await.unwrap();
    Datagrams { proxy, client, server }
}

impl Datagrams {
    async fn next(&self) -> (Vec<u8>, std::net::SocketAddr) {
        let mut buffer = [0; 2_000];
        let (len, from) = bounded("a datagram", self.server.recv_from(&mut buffer)).await.unwrap();
        (buffer[..len].to_vec(), from)
    }
}

#[tokio::test]
async fn datagrams_are_lost_doubled_and_held_to_an_mtu() {
    let udp = datagrams().await;
    let set = |faults| udp.proxy.set(Direction::Up, faults);
    set(Faults { loss: 1.0, ..Faults::default() });
    udp.client.send(b"lost").await.unwrap();
    while udp.proxy.passed(Direction::Up).lost < 1 {
        tokio::task::yield_now().await;
    }
    set(Faults { mtu: Some(1_200), ..Faults::default() });
    udp.client.send(&[0; 1_201]).await.unwrap();
    udp.client.send(&[1; 1_200]).await.unwrap();
    assert_eq!(udp.next().await.0, [1; 1_200]);
    assert_eq!(udp.proxy.passed(Direction::Up).lost, 2);
    set(Faults { duplicate: 1.0, ..Faults::default() });
    udp.client.send(b"twice").await.unwrap();
    assert_eq!((udp.next().await.0, udp.next().await.0), (b"twice".to_vec(), b"twice".to_vec()));
    set(Faults { duplicate: 2.0, ..Faults::default() });
    udp.client.send(b"thrice").await.unwrap();
    let before = udp.proxy.passed(Direction::Up).pieces;
    for _ in 0..3 {
        assert_eq!(udp.next().await.0, b"thrice");
    }
    assert_eq!(udp.proxy.passed(Direction::Up).pieces, before + 3);
    set(Faults { corrupt: 1.0, ..Faults::default() });
    udp.client.send(&[0; 4]).await.unwrap();
    assert!(udp.next().await.0.iter().all(|byte| byte.count_ones() == 1));
}

#[tokio::test]
async fn datagrams_overtake_and_come_back_from_another_port() {
    let udp = datagrams().await;
    udp.proxy.set(Direction::Up, Faults { reorder: 1.0, ..Faults::default() });
    udp.client.send(b"first").await.unwrap();
    while udp.proxy.connections() == 0 {
        tokio::task::yield_now().await;
    }
    udp.proxy.set(Direction::Up, Faults::default());
    udp.client.send(b"second").await.unwrap();
    let came: BTreeSet<_> = [udp.next().await.0, udp.next().await.0].into();
    assert_eq!(came, [b"first".to_vec(), b"second".to_vec()].into());
    let (_, before) = {
        udp.client.send(b"before").await.unwrap();
        udp.next().await
    };
    udp.server.send_to(b"answer", before).await.unwrap();
    let mut answer = [0; 6];
    udp.client.recv(&mut answer).await.unwrap();
    assert_eq!(&answer, b"answer");
    udp.proxy.rebind();
    udp.client.send(b"after").await.unwrap();
    let (data, after) = udp.next().await;
    assert_eq!(data, b"after");
    assert_ne!(before, after);
    assert_eq!(udp.proxy.connections(), 1);
}

/// With every datagram held, the order is that of the dues: a held one behind one that was not.
#[tokio::test]
async fn a_held_datagram_comes_after_one_sent_later() {
    let udp = datagrams().await;
    udp.proxy.set(Direction::Up, Faults { delay: Duration::from_secs(2), ..Faults::default() });
    udp.client.send(b"held").await.unwrap();
    while udp.proxy.connections() == 0 {
        tokio::task::yield_now().await;
    }
    udp.proxy.set(Direction::Up, Faults::default());
    udp.client.send(b"overtakes").await.unwrap();
    assert_eq!(udp.next().await.0, b"overtakes");
    assert_eq!(udp.next().await.0, b"held");
}

#[tokio::test]
async fn the_program_does_what_its_flags_say() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = format!("tcp://{}", listener.local_addr().unwrap());
    let mut program = tokio::process::Command::new(env!("CARGO_BIN_EXE_valkyrie-fault-proxy"))
        .args(["--upstream", &upstream, "--half-close-after", "3", "--direction", "up", "--delay-ms", "1"])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut stdout = tokio::io::BufReader::new(program.stdout.take().unwrap());
    tokio::io::AsyncBufReadExt::read_line(&mut stdout, &mut line).await.unwrap();
    let address = line.trim().strip_prefix("listening tcp://").unwrap();
    let mut client = TcpStream::connect(address).await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    client.write_all(b"abcdef").await.unwrap();
    let mut came = Vec::new();
    bounded("the program", server.read_to_end(&mut came)).await.unwrap();
    assert_eq!(came, b"abc");
    let run = |argument: &str| {
        Command::new(env!("CARGO_BIN_EXE_valkyrie-fault-proxy")).arg(argument).output().unwrap()
    };
    let help = String::from_utf8(run("--help").stdout).unwrap();
    assert!(help.contains("--half-close-after <BYTES>") && help.contains("[default: both]"), "{help}");
    assert_eq!(run("--no-such-flag").status.code(), Some(2));
}

// ---- Valkyrie through it ----

async fn serve() -> (Proxy, Client, valkyrie_sdk::ServerControl) {
    let flood = handler_fn(|mut call| async move {
        loop {
            call.send(vec![1; 32 << 10]).await?;
        }
    });
    let server = ServerBuilder::new()
        .bind("127.0.0.1:0")
        .handler("/echo", EchoHandler)
        .handler("/flood", flood)
        .build()
        .await
        .unwrap();
    let endpoint = server.endpoints()[0].clone();
    let control = server.control();
    tokio::spawn(async move { server.start().await });
    let proxy = Proxy::start("tcp://127.0.0.1:0", &endpoint, seed()).await.unwrap();
    let client = Client::builder().endpoint(proxy.endpoint()).timeout_ms(100_000).build().await.unwrap();
    (proxy, client, control)
}

/// One byte per write, both ways: 10 MiB would take minutes, and 128 KiB take the same paths: two frames a message.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f13_one_byte_at_a_time_gives_the_same_answers() {
    let (proxy, client, _) = serve().await;
    proxy.set_both(Faults { slice: Some(1), ..Faults::default() });
    // What was on its way before is past.
    assert_eq!(bounded("the first call", client.request("first")).await.unwrap(), "first");
    let before = Direction::BOTH.map(|direction| proxy.passed(direction));
    let message = pattern(1 << 17);
    assert!(bounded("the call", client.request(message.clone())).await.unwrap() == message);
    for direction in Direction::BOTH {
        let (passed, before) = (proxy.passed(direction), before[direction as usize]);
        assert!(passed.bytes > 1 << 17);
        assert_eq!(passed.bytes - before.bytes, passed.pieces - before.pieces, "{direction:?}");
    }
}

#[tokio::test]
async fn calls_are_equal_through_a_slow_and_sliced_link() {
    let (proxy, client, _) = serve().await;
    proxy.set_both(Faults {
        delay: Duration::from_millis(3),
        jitter: Duration::from_millis(3),
        slice: Some(1_000),
        ..Faults::default()
    });
    for len in [0, 1, 1_000, 64 << 10, 1 << 20] {
        let message = pattern(len);
        assert!(bounded("a call", client.request(message.clone())).await.unwrap() == message, "{len}");
    }
    let (mut send, mut recv) = client.open("/echo", CallOptions::new()).await.unwrap();
    for at in 0..20_u8 {
        send.send(vec![at; 10_000]).await.unwrap();
        assert_eq!(bounded("a message", recv.recv()).await.unwrap().unwrap(), vec![at; 10_000]);
    }
    send.finish().await.unwrap();
    assert_eq!(bounded("the end", recv.recv()).await.unwrap(), None);
}

#[tokio::test]
async fn a_cut_in_mid_stream_is_connection_lost_and_the_next_call_dials_again() {
    let (proxy, client, _) = serve().await;
    let mut flood = client.stream("/flood", "", CallOptions::new()).await.unwrap();
    assert!(flood.recv().await.unwrap().is_some());
    proxy.cut();
    let status = bounded("the stream", async {
        loop {
            match flood.recv().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended well"),
                Err(status) => break status,
            }
        }
    })
    .await;
    // A cut between two frames, or within one.
    assert!([Reason::CONNECTION_LOST, Reason::TRUNCATED_FRAME].contains(&status.reason()), "{status}");
    assert_eq!(bounded("the next call", client.request("again")).await.unwrap(), "again");
}

#[tokio::test]
async fn f04_flipped_bits_never_reach_an_application() {
    let (proxy, client, _) = serve().await;
    let message = pattern(10_000);
    let (mut answered, mut refused) = (0, 0);
    while refused < 20 {
        // About one frame in ten is hit.
        proxy.set_both(Faults { corrupt: 5e-6, ..Faults::default() });
        match bounded("a call", client.request(message.clone())).await {
            Ok(answer) => {
                assert!(answer == message);
                answered += 1;
            }
            Err(_) => refused += 1,
        }
    }
    let flipped: u64 = Direction::BOTH.iter().map(|direction| proxy.passed(*direction).flipped).sum();
    println!("{answered} calls answered, {refused} refused, {flipped} bits flipped");
    assert!(flipped >= refused);
}

/// A consumer that is slow because its link is: the server writes what the link has room for and the window, and not
/// more, and serves others meanwhile.
#[tokio::test]
async fn f26_a_slow_consumer_costs_its_window_and_nobody_else() {
    let (proxy, client, control) = serve().await;
    proxy.set(Direction::Down, Faults { bandwidth: Some(256 << 10), ..Faults::default() });
    let mut flood = client.stream("/flood", "", CallOptions::new()).await.unwrap();
    assert!(bounded("the flood", flood.recv()).await.unwrap().is_some());
    let other = Proxy::start("tcp://127.0.0.1:0", proxy.upstream(), seed()).await.unwrap();
    let other = Client::connect(other.endpoint()).await.unwrap();
    for _ in 0..200 {
        bounded("the other client", other.request(vec![2; 32 << 10])).await.unwrap();
    }
    let slow = control.connections().into_iter().min_by_key(|connection| connection.id).unwrap();
    // The proxy's buffer and what the kernel keeps of two sockets are the link's; the rest is ours: what was taken, the
    // stream's window, its send buffer and one turn of the driver.
    let taken = proxy.passed(Direction::Down).bytes;
    let link = (256 << 10) + (8 << 20);
    let most = taken + link + 3 * (256 << 10);
    assert!(slow.bytes_out < most, "{} bytes were written, {taken} taken", slow.bytes_out);
}

/// A consumer that is slow by itself: others on the same connection go on, and the server holds its window.
#[tokio::test]
async fn f26_a_reader_that_stops_holds_up_nobody_on_its_connection() {
    let (_proxy, client, control) = serve().await;
    let mut flood = client.stream("/flood", "", CallOptions::new()).await.unwrap();
    assert!(flood.recv().await.unwrap().is_some());
    for _ in 0..200 {
        client.request(vec![2; 32 << 10]).await.unwrap();
    }
    let sent = control.connections()[0].bytes_out;
    assert!(sent < 200 * (33 << 10) + (1 << 20), "{sent} bytes written for a reader that stopped");
}
