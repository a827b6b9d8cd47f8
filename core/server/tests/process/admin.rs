//! The admin port, asked by raw sockets.

use std::{
    fs,
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Shutdown, TcpStream, UdpSocket},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    time::Duration,
};

use serde_json::Value;

use super::{Folder, Server, exposition, open_echo, run};

/// Longer than the server leaves anybody: only a test that fails waits for it.
const PATIENCE: Duration = Duration::from_secs(60);

fn start(arguments: &[&str]) -> Server {
    Server::start(&[&["--bind", "127.0.0.1:0", "--admin", "127.0.0.1:0"], arguments].concat())
}

fn connect(server: &Server) -> TcpStream {
    let address = server.admin.strip_prefix("http://").expect(&server.admin);
    let socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// All that comes until the server closes. What it has not read may be lost on a reset, and the answer is there by then.
fn rest(mut socket: impl Read) -> String {
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

fn send(server: &Server, request: &[u8]) -> String {
    let mut socket = connect(server);
    // It may have heard enough before the end.
    let _ = socket.write_all(request);
    let _ = socket.shutdown(Shutdown::Write);
    rest(socket)
}

fn status(answer: &str) -> u16 {
    let code = answer.strip_prefix("HTTP/1.1 ").or(answer.strip_prefix("HTTP/1.0 "));
    code.and_then(|rest| rest.get(..3)?.parse().ok()).unwrap_or_else(|| panic!("{answer:?}"))
}

/// The status, the head and the body.
fn get(server: &Server, path: &str) -> (u16, String, String) {
    let answer = send(server, format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
    let (head, body) = answer.split_once("\r\n\r\n").expect(&answer);
    (status(&answer), head.to_ascii_lowercase(), body.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_scrapers_and_people_are_answered() {
    // Whatever the key `metrics` says of the methods.
    let server = start(&["--metrics", "false"]);
    let client = server.client().await;
    let _stream = open_echo(&client).await;
    client.request("one").await.unwrap();
    let (code, head, body) = get(&server, "/healthz");
    assert_eq!((code, body.as_str()), (200, "alive\n"), "{head}");
    for field in ["connection: close", "cache-control: no-store", "x-content-type-options: nosniff"] {
        assert!(head.contains(field), "{field}: {head}");
    }
    let (code, head, body) = get(&server, "/readyz?verbose");
    assert_eq!((code, body.as_str()), (200, "ready\n"), "{head}");

    let (code, head, body) = get(&server, "/metrics");
    assert!(code == 200 && head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    let families = exposition::parse(&body).unwrap_or_else(|why| panic!("{why}\n{body}"));
    let value = |name: &str| {
        let family = families.iter().find(|(known, _)| known == name).map(|(_, family)| family);
        family.and_then(|family| family.samples.first()).unwrap_or_else(|| panic!("{name}: {body}")).value
    };
    assert_eq!((value("valkyrie_connections"), value("valkyrie_calls_total")), (1.0, 2.0), "{body}");
    assert!(families.iter().any(|(_, family)| family.kind == "histogram" && !family.samples.is_empty()));

    let (code, head, body) = get(&server, "/debug/connections");
    assert!(code == 200 && head.contains("content-type: application/json"), "{head}");
    let listed: Value = serde_json::from_str(&body).unwrap();
    let first = &listed["connections"][0];
    assert_eq!((&listed["left_out"], listed["connections"].as_array().map(Vec::len)), (&0.into(), Some(1)));
    assert!(first["peer"].as_str().unwrap().starts_with("tcp://127.0.0.1:"), "{body}");
    assert_eq!((&first["transport"], &first["encrypted"]), (&"tcp".into(), &false.into()), "{body}");
    assert_eq!((&first["streams"], &first["calls"]), (&1.into(), &2.into()), "{body}");
    for number in ["age_ms", "silence_ms", "bytes_in", "bytes_out"] {
        assert!(first[number].is_u64(), "{number}: {body}");
    }

    // HEAD has what GET has, but for the body.
    let answer = send(&server, b"HEAD /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(answer.ends_with("\r\n\r\n") && answer.contains("content-length: 6\r\n"), "{answer}");
}

/// What the sdk writes of a client is read as well.
#[tokio::test]
async fn a_clients_metrics_are_in_the_format_too() {
    let server = Server::start(&["--bind", "127.0.0.1:0"]);
    let client = server.client().await;
    client.request("one").await.unwrap();
    let text = client.metrics().prometheus();
    let families = exposition::parse(&text).unwrap_or_else(|why| panic!("{why}\n{text}"));
    assert!(families.len() > 10, "{text}");
}

/// docs/operations.md names every family that a server with everything turned on has.
#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_are_those_that_the_documentation_names() {
    let folder = Folder::new();
    let file = folder.write(
        "server.yaml",
        "bind: ['127.0.0.1:0']\nadmin: '127.0.0.1:0'\nconcurrency_limit: true\ndedup: true\n",
    );
    let server = start(&["--config", &file]);
    let families = exposition::parse(&get(&server, "/metrics").2).unwrap();
    let mut table = String::from("| name | kind | what |\n|---|---|---|\n");
    for (name, family) in families {
        table.push_str(&format!("| `{name}` | {} | {} |\n", family.kind, family.help));
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/operations.md");
    let text = fs::read_to_string(path).unwrap();
    let (before, rest) = text.split_once("<!-- metrics -->\n").unwrap();
    let (found, after) = rest.split_once("<!-- end -->\n").unwrap();
    if std::env::var_os("VALKYRIE_BLESS").is_some() {
        fs::write(path, format!("{before}<!-- metrics -->\n{table}<!-- end -->\n{after}")).unwrap();
    } else {
        assert_eq!(found, table, "VALKYRIE_BLESS=1 writes it again");
    }
}

#[test]
fn hostile_requests_get_an_error_and_nothing_else() {
    let server = start(&[]);
    let with = |field: &str| format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\n{field}\r\n");
    let long = "x".repeat(20 << 10);
    let fields: String = (0..80).map(|at| format!("X-{at}: 1\r\n")).collect();
    let is_in = |request: String, codes: &[u16], word: &str| {
        let answer = send(&server, request.as_bytes());
        let shown: String = request.chars().take(80).collect();
        assert!(codes.contains(&status(&answer)), "{shown:?}: {answer}");
        assert!(answer.contains(word), "{shown:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.").count(), 1, "{shown:?}: {answer}");
    };
    // What is not there, and what cannot be done.
    for path in ["/", "*", "/HEALTHZ", "//healthz", "/healthz/", "/x/../healthz", "/%68ealthz", "/debug"] {
        is_in(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"), &[404], "there are /healthz");
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "PURGE"] {
        is_in(
            format!("{method} /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"),
            &[405],
            "allow: GET, HEAD\r\n",
        );
    }
    is_in("GET /reload HTTP/1.1\r\nHost: localhost\r\n\r\n".into(), &[405], "only POST");
    is_in("POST /reload HTTP/1.1\r\nHost: localhost\r\nOrigin: null\r\n\r\n".into(), &[403], "a page");
    is_in("POST /reload HTTP/1.1\r\nHost: a.example\r\n\r\n".into(), &[421], "");
    let body = "POST /reload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx";
    is_in(body.into(), &[413], "no body");
    is_in("CONNECT localhost:80 HTTP/1.1\r\nHost: localhost:80\r\n\r\n".into(), &[400, 404, 405], "");
    // Bodies.
    is_in(with("Content-Length: 3\r\n") + "abc", &[413], "no body");
    is_in(with("Content-Length: 99999999999999\r\nExpect: 100-continue\r\n"), &[413], "no body");
    is_in(with("Transfer-Encoding: chunked\r\n") + "3\r\nabc\r\n0\r\n\r\n", &[413], "no body");
    // Two ends of one request, which is how requests are smuggled.
    is_in(with("Content-Length: 5\r\nContent-Length: 6\r\n") + "abcdef", &[400], "");
    is_in(with("Content-Length: -1\r\n"), &[400], "");
    is_in(with("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n") + "0\r\n\r\n", &[400, 413], "");
    // Whom it is for.
    is_in("GET /healthz HTTP/1.1\r\n\r\n".into(), &[400], "one Host");
    is_in(with("Host: localhost\r\n"), &[400], "one Host");
    for host in
        ["evil.example", "evil.example:9090", "localhost.evil.example", "127.0.0.1.evil.example", ":", ""]
    {
        is_in(format!("GET /metrics HTTP/1.1\r\nHost: {host}\r\n\r\n"), &[400, 421], "");
    }
    is_in("GET http://evil.example/metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".into(), &[421], "localhost");
    // Too much.
    is_in(with(&format!("X: {long}\r\n")), &[431], "");
    is_in(with(&fields), &[431], "");
    is_in(format!("GET /{long} HTTP/1.1\r\nHost: localhost\r\n\r\n"), &[414, 431], "");
    is_in(long.clone(), &[400, 414, 431], "");
    // Other protocols, and none.
    for text in [
        "GET /healthz\r\n\r\n",
        "GET /healthz HTTP/9.9\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "\x16\x03\x01\x00\x05hello",
        "VLKR\x01",
        "GET /healthz HTTP/1.1\r\nHost localhost\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\n folded: 1\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost: local\0host\r\n\r\n",
        "GET /health\u{1b}[31mz HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "\0\0\0\0\r\n\r\n",
    ] {
        let answer = send(&server, text.as_bytes());
        assert!(answer.is_empty() || [400, 505].contains(&status(&answer)), "{text:?}: {answer}");
    }
    // One request for each connection.
    is_in(with("") + &with(""), &[200], "alive");
    // And what is old or odd, and no fault.
    is_in("GET /healthz HTTP/1.0\r\n\r\n".into(), &[200], "alive");
    for host in ["127.0.0.1", "127.0.0.1:1", "LocalHost:9090", "[::1]:9", "[::1]", "10.0.0.1"] {
        is_in(format!("GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n"), &[200], "alive");
    }
    is_in(with("Connection: Upgrade\r\nUpgrade: websocket\r\n"), &[200], "alive");
}

/// Whoever is slow is let go of; nobody waits for them meanwhile.
#[test]
fn slow_requests_are_cut_and_there_is_a_bound() {
    let server = start(&[]);
    let begun =
        ["", "G", "GET /healthz HTTP/1.1\r\nHost: local", "GET /healthz HTTP/1.1\r\nHost: localhost\r\n"];
    let mut slow: Vec<_> = begun
        .iter()
        .map(|begun| {
            let mut socket = connect(&server);
            socket.write_all(begun.as_bytes()).unwrap();
            socket
        })
        .collect();
    assert_eq!(get(&server, "/healthz").0, 200);
    // One that never stops is not given more time for it.
    let mut dripping = connect(&server);
    dripping.write_all(b"GET /healthz HTTP/1.1\r\n").unwrap();
    dripping.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    // A field each 100 ms, until it is cut.
    let waits = |kind| matches!(kind, io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
    loop {
        match dripping.read(&mut [0; 512]) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if waits(error.kind()) => drop(dripping.write_all(b"X: y\r\n")),
            Err(_) => break,
        }
    }
    for (socket, begun) in slow.drain(..).zip(begun) {
        let answer = rest(socket);
        assert!(answer.is_empty() || status(&answer) >= 400, "{begun:?}: {answer}");
    }

    // 64 are let in, whatever they do, and the next one is not.
    let silent: Vec<_> = (0..64).map(|_| connect(&server)).collect();
    assert_eq!(send(&server, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"), "");
    drop(silent);
    while !send(&server, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").contains("alive") {}
}

#[tokio::test(flavor = "multi_thread")]
async fn the_port_says_that_the_server_drains_and_answers_until_the_end() {
    let mut server = start(&[]);
    let client = server.client().await;
    let (mut send, mut recv) = open_echo(&client).await;
    assert_eq!(get(&server, "/readyz").0, 200);
    let output = run(&["probe", &server.admin]);
    assert!(output.status.code() == Some(0) && output.stdout == b"ready\n", "{output:?}");
    server.signal("TERM");
    server.wait_for_log("draining");
    while get(&server, "/readyz").0 == 200 {}
    let (code, _, body) = get(&server, "/readyz");
    assert_eq!((code, body.as_str()), (503, "draining\n"));
    let output = run(&["probe", &server.admin]);
    assert!(output.status.code() == Some(1) && output.stderr.ends_with(b": draining\n"), "{output:?}");
    assert_eq!(get(&server, "/healthz").0, 200);
    assert!(get(&server, "/metrics").2.contains("\nvalkyrie_draining 1\n"));
    assert!(get(&server, "/debug/connections").2.contains("\"streams\":1"));
    send.finish().await.unwrap();
    assert_eq!(recv.recv().await.unwrap(), None);
    let (code, log) = server.ended();
    assert_eq!(code, Some(0), "{log}");
}

#[test]
fn it_is_this_machines_unless_somebody_says_otherwise() {
    let folder = Folder::new();
    let file = folder.write("open.yaml", "metrics: true\nadmin: '0.0.0.0:9090'\n");
    let taken = start(&[]);
    let port = taken.admin.strip_prefix("http://").unwrap();
    let with = |admin| ["start", "--bind", "127.0.0.1:0", "--admin", admin];
    for (arguments, code, words) in [
        (
            &["check", &file][..],
            2,
            "open.yaml:2:1: admin: \"0.0.0.0:9090\" may be reached from other machines",
        ),
        (&with("0.0.0.0:0"), 2, "--admin: \"0.0.0.0:0\" may be reached"),
        (&with("example.com:9090"), 2, "may be reached"),
        (&with("[::]:0"), 2, "say admin_open: true"),
        (&with("9090"), 2, "has no port"),
        (&with("quic://127.0.0.1:0"), 2, "is neither host:port nor unix:///path"),
        (&with("memory:x"), 2, "is neither host:port nor unix:///path"),
        (&with("127.0.0.1:70000"), 2, "has no port from 0 to 65535"),
        (&with("unix:///etc/hostname"), 1, "not a socket"),
        (&with("unix:///no/such/folder/socket"), 1, "the address of admin"),
        (&with(port), 1, "in use"),
    ] {
        let output = run(arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
        assert!(error.contains(words), "{arguments:?}: {error}");
    }
    let mut open = Server::start(&["--bind", "127.0.0.1:0", "--admin", "0.0.0.0:0", "--admin-open", "true"]);
    open.wait_for_log("admin_open: whoever reaches");
    // Names are anybody's there.
    let port = open.admin.rsplit(':').next().unwrap();
    let asks = |host: IpAddr, request: &str| {
        let mut socket = TcpStream::connect(format!("{host}:{port}")).unwrap();
        socket
            .write_all(format!("{request} HTTP/1.1\r\nHost: valkyrie.internal\r\n\r\n").as_bytes())
            .unwrap();
        status(&rest(socket))
    };
    let here = Ipv4Addr::LOCALHOST.into();
    assert_eq!((asks(here, "GET /readyz"), asks(here, "POST /reload")), (200, 200));
    // By the address that other machines have for this one, one is as they are. No packet leaves: UDP only asks for the route.
    let route = UdpSocket::bind("0.0.0.0:0").unwrap();
    if route.connect("192.0.2.1:9").is_ok() {
        let there = route.local_addr().unwrap().ip();
        assert_eq!((asks(there, "GET /readyz"), asks(there, "POST /reload")), (200, 403));
        let output = run(&["reload", &format!("{there}:{port}")]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("only this machine"), "{output:?}");
    }
}

#[test]
fn a_unix_socket_is_its_owners() {
    let folder = Folder::new();
    let path = folder.path("admin");
    let admin = format!("unix://{path}");
    let arguments = ["--bind", "127.0.0.1:0", "--admin", &admin];
    let mut server = Server::start(&arguments);
    assert_eq!(server.admin, admin);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let mut socket = UnixStream::connect(&path).unwrap();
    socket.write_all(b"GET /readyz HTTP/1.1\r\nHost: whoever\r\n\r\n").unwrap();
    assert_eq!(status(&rest(socket)), 200);
    // It is another server's while that runs, and is replaced when that is gone.
    assert_eq!(run(&["probe", &admin]).stdout, b"ready\n");
    let output = run(&[&["start"], &arguments[..]].concat());
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    server.signal("KILL");
    server.ended();
    assert_eq!(run(&["probe", &admin]).status.code(), Some(1));
    let mut server = Server::start(&arguments);
    server.signal("TERM");
    let (code, log) = server.ended();
    assert_eq!((code, fs::exists(&path).unwrap()), (Some(0), false), "{log}");
}
