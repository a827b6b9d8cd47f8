//! TLS as users have it: tls://, wss://, quic:// and sealed sessions between a real client and a real server.
#![cfg(all(feature = "quic", feature = "websocket"))]

mod anyone;
mod calling;
mod kept;
mod random;

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

use anyone::Anyone;
use calling::bounded;
use kept::{Kept, field};
use random::Random;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use valkyrie_sdk::{
    Authenticator, BoxFuture, CallOptions, Client, ClientBuilder, Code, EchoHandler, Level, Peer, Pem,
    Principal, Reason, Refusal, Reply, Security, ServerBuilder, ServerControl, Status, handler_fn,
};

/// A development CA.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A chain and its key.
#[derive(Clone)]
struct Shown {
    chain: String,
    key: String,
}

impl Authority {
    fn new() -> Self {
        static MADE: AtomicU64 = AtomicU64::new(0);
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        let name = format!("authority {}", MADE.fetch_add(1, Relaxed));
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    fn leaf(&self, change: impl FnOnce(&mut CertificateParams)) -> Shown {
        let mut params =
            CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        Shown { chain: params.signed_by(&key, &self.issuer).unwrap().pem(), key: key.serialize_pem() }
    }
}

/// Takes one token.
struct One;

impl Authenticator for One {
    fn authenticate<'a>(
        &'a self,
        token: &'a [u8],
        _: &'a Peer,
        _: std::time::SystemTime,
    ) -> BoxFuture<'a, Result<Principal, Refusal>> {
        Box::pin(async move {
            match token {
                b"good" => Ok(Principal::new("sub:alice")),
                _ => Err(Refusal("it is another".into())),
            }
        })
    }
}

/// Answers with who calls, as the server sees it.
fn who() -> impl valkyrie_sdk::MessageHandler {
    handler_fn(|call| async move {
        let Peer { endpoint, encrypted, certificate, .. } = call.peer().clone();
        let scheme = endpoint.split(':').next().unwrap_or_default().to_owned();
        let uris = certificate.map(|certificate| certificate.uris.join(",")).unwrap_or_default();
        Ok(Reply::message(format!("{scheme} {encrypted} {uris}")))
    })
}

async fn start(builder: ServerBuilder) -> (Vec<String>, ServerControl) {
    let builder = builder.open_to_all(true).handler("/echo", EchoHandler);
    let server = builder.handler("/who", who()).build().await.unwrap();
    let (endpoints, control) = (server.endpoints(), server.control());
    tokio::spawn(async move { server.start().await });
    (endpoints, control)
}

fn of<'a>(endpoints: &'a [String], scheme: &str) -> &'a str {
    endpoints.iter().find(|endpoint| endpoint.starts_with(&format!("{scheme}:"))).unwrap()
}

const ENCRYPTED: [&str; 3] = ["tls", "wss", "quic"];

async fn who_is(client: &Client) -> String {
    let answer = bounded("a call", client.call("/who", "")).await.unwrap();
    String::from_utf8(answer.message.to_vec()).unwrap()
}

/// The status of a connect and one call.
async fn refused(builder: ClientBuilder) -> Status {
    match bounded("a connect", builder.build()).await {
        Err(status) => status,
        Ok(client) => bounded("a call", client.request("hello")).await.unwrap_err(),
    }
}

// spec: W11-15
#[tokio::test(flavor = "multi_thread")]
async fn every_encrypted_carrier_carries_every_shape() {
    let (authority, clients) = (Authority::new(), Authority::new());
    let server = authority.leaf(|_| {});
    let client = clients.leaf(|params| {
        params.subject_alt_names = vec![SanType::URI("spiffe://example.org/billing".try_into().unwrap())];
    });
    let builder = ServerBuilder::new()
        .bind("tls://127.0.0.1:0")
        .bind("quic://127.0.0.1:0")
        .identity(server.chain.clone(), server.key.clone())
        .client_authorities(clients.pem.clone());
    let (endpoints, control) = start(builder).await;
    for scheme in ENCRYPTED {
        let builder = Client::builder()
            .endpoint(of(&endpoints, scheme))
            .trusted_certificates(authority.pem.clone())
            .identity(client.chain.clone(), client.key.clone());
        let client = bounded("a connect", builder.build()).await.unwrap();
        assert_eq!(who_is(&client).await, format!("{scheme} true spiffe://example.org/billing"));
        // Over many records, and over many small messages.
        let long: Vec<u8> = (0..3_000_000u32).map(|at| at as u8).collect();
        assert!(bounded("a long call", client.request(long.clone())).await.unwrap() == long);
        let (mut send, mut receive) = client.open("/echo", CallOptions::new()).await.unwrap();
        for number in 0..1_000u32 {
            bounded("a send", send.send(number.to_le_bytes().to_vec())).await.unwrap();
        }
        send.finish().await.unwrap();
        for number in 0..1_000u32 {
            let message = bounded("an answer", receive.recv()).await.unwrap().unwrap();
            assert_eq!(message, number.to_le_bytes().to_vec());
        }
        assert_eq!(bounded("the end", receive.recv()).await.unwrap(), None);
        client.close().await;
    }
    control.shutdown().await;
}

// spec: W11-17, W11-18
#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_session_passes_every_carrier() {
    let authority = Authority::new();
    let shown = authority.leaf(|_| {});
    let path = std::env::temp_dir().join(format!("valkyrie-sealed-{}.sock", std::process::id()));
    let memory = format!("memory:sealed-{}", std::process::id());
    let builder = ServerBuilder::new()
        .bind("127.0.0.1:0")
        .bind("tls://127.0.0.1:0")
        .bind("quic://127.0.0.1:0")
        .bind(format!("unix://{}", path.display()))
        .bind(memory.clone())
        .identity(shown.chain.clone(), shown.key.clone())
        .min_security(Security::Tls);
    let (endpoints, control) = start(builder).await;
    for scheme in ["tcp", "ws", "tls", "wss", "quic", "unix", "memory"] {
        let builder = Client::builder()
            .endpoint(of(&endpoints, scheme))
            .trusted_certificates(authority.pem.clone())
            .server_name("localhost")
            .sealed(true);
        let client = bounded("a connect", builder.build()).await.unwrap();
        assert_eq!(who_is(&client).await, format!("{scheme} true "));
        let long = vec![7; 1_000_000];
        assert!(bounded("a long call", client.request(long.clone())).await.unwrap() == long);
        client.close().await;
        // Whoever does not seal, where nothing else encrypts, is told so.
        if matches!(scheme, "tcp" | "ws" | "unix" | "memory") {
            let status = refused(Client::builder().endpoint(of(&endpoints, scheme))).await;
            assert_eq!(
                (status.reason(), status.code()),
                (Reason::TLS_REQUIRED, Code::FailedPrecondition),
                "{scheme}"
            );
        }
    }
    control.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_certificate_has_its_own_reason() {
    let (authority, other) = (Authority::new(), Authority::new());
    let year = |year| rcgen::date_time_ymd(year, 1, 1);
    let expired = authority.leaf(|params| (params.not_before, params.not_after) = (year(2000), year(2001)));
    let early = authority.leaf(|params| (params.not_before, params.not_after) = (year(2300), year(2301)));
    let named = authority.leaf(|params| {
        params.subject_alt_names = vec![SanType::DnsName("other.example".try_into().unwrap())];
    });
    let usage =
        authority.leaf(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]);
    for (shown, reason, says) in [
        (other.leaf(|_| {}), Reason::CERTIFICATE_UNTRUSTED, "ends in no authority that is trusted"),
        (expired, Reason::CERTIFICATE_EXPIRED, "expired on 2001-01-01"),
        (early, Reason::CERTIFICATE_NOT_YET_VALID, "is not valid before 2300-01-01"),
        (named, Reason::CERTIFICATE_NAME, "is not for 127.0.0.1, only for"),
        (usage, Reason::CERTIFICATE_USAGE, "is not for this usage"),
    ] {
        let builder = ServerBuilder::new().bind("tls://127.0.0.1:0").bind("quic://127.0.0.1:0");
        let (endpoints, control) = start(builder.identity(shown.chain, shown.key)).await;
        for scheme in ENCRYPTED {
            let builder = Client::builder().endpoint(of(&endpoints, scheme));
            let status = refused(builder.trusted_certificates(authority.pem.clone())).await;
            assert_eq!(
                (status.reason(), status.code()),
                (reason, Code::Unauthenticated),
                "{scheme}: {status}"
            );
            assert!(status.message().contains(says), "{scheme}: {status}");
        }
        control.shutdown_now();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_is_asked_for_and_looked_at() {
    let (authority, clients) = (Authority::new(), Authority::new());
    let shown = authority.leaf(|_| {});
    let builder = ServerBuilder::new().bind("tls://127.0.0.1:0").bind("quic://127.0.0.1:0");
    let builder = builder.identity(shown.chain, shown.key).client_authorities(clients.pem.clone());
    let (endpoints, control) = start(builder).await;
    let stranger = authority.leaf(|_| {});
    let expired = clients.leaf(|params| {
        (params.not_before, params.not_after) =
            (rcgen::date_time_ymd(2000, 1, 1), rcgen::date_time_ymd(2001, 1, 1));
    });
    for scheme in ENCRYPTED {
        let connect =
            || Client::builder().endpoint(of(&endpoints, scheme)).trusted_certificates(authority.pem.clone());
        // The connect itself fails, not the first call.
        let none = bounded("a connect", connect().build()).await.map(drop).unwrap_err();
        assert_eq!(none.reason(), Reason::CLIENT_CERTIFICATE_REQUIRED, "{scheme}: {none}");
        for shown in [&stranger, &expired] {
            let builder = connect().identity(shown.chain.clone(), shown.key.clone());
            let wrong = bounded("a connect", builder.build()).await.map(drop).unwrap_err();
            assert_eq!(wrong.reason(), Reason::CLIENT_CERTIFICATE_REFUSED, "{scheme}: {wrong}");
        }
    }
    control.shutdown().await;
}

// spec: W11-16
#[tokio::test(flavor = "multi_thread")]
async fn plaintext_and_tls_tell_each_other_apart() {
    let authority = Authority::new();
    let shown = authority.leaf(|_| {});
    let builder = ServerBuilder::new().bind("tls://127.0.0.1:0").identity(shown.chain, shown.key);
    let (secure, control) = start(builder).await;
    let (plain, plain_control) = start(ServerBuilder::new().bind("127.0.0.1:0")).await;
    let address = |endpoint: &str| endpoint.split_once("://").unwrap().1.to_owned();
    for scheme in ["tcp", "ws"] {
        let status =
            refused(Client::builder().endpoint(format!("{scheme}://{}", address(of(&secure, "tls"))))).await;
        assert_eq!(status.reason(), Reason::TLS_REQUIRED, "{scheme}: {status}");
    }
    for scheme in ["tls", "wss"] {
        let builder = Client::builder().endpoint(format!("{scheme}://{}", address(of(&plain, "tcp"))));
        let status = refused(builder.trusted_certificates(authority.pem.clone())).await;
        assert_eq!(status.reason(), Reason::TLS_NOT_SPOKEN, "{scheme}: {status}");
    }
    control.shutdown().await;
    plain_control.shutdown().await;
}

/// Says it to a server and reads to the end. Too little for the server is all that it says.
async fn stranger(endpoint: &str, says: &[u8]) {
    let mut stranger = TcpStream::connect(endpoint.split_once("://").unwrap().1).await.unwrap();
    stranger.write_all(says).await.unwrap();
    if says.len() < 5 {
        stranger.shutdown().await.unwrap();
    }
    // A server that has not read everything resets.
    let _ = bounded("the end", stranger.read_to_end(&mut Vec::new())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_before_a_connection_stands_is_counted_and_told_once() {
    const ORIGIN: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nOrigin: https://canary.example\r\n\r\n";
    // A hello that offers nothing of TLS 1.3.
    const OLD: &[u8] =
        b"\x16\x03\x01\x00\x37\x01\x00\x00\x33\x03\x03................................\x00\x00\x02\xc0\x2f\
        \x01\x00\x00\x08\x00\x0d\x00\x04\x00\x02\x04\x03";
    let shown = Authority::new().leaf(|_| {});
    for (scheme, says, reason) in [
        ("tls", &b"canary-of-a-token \x1b[31m\r\n"[..], Reason::TLS_REQUIRED),
        ("tls", b"GET /canary HTTP/1.1\r\n\r\n", Reason::TLS_REQUIRED),
        ("tls", OLD, Reason::TLS_VERSION),
        ("tls", b"\x16\x03\x01\x00\x06canary", Reason::TLS_FAILED),
        ("tls", b"\x16\x03\x01\x20", Reason::CONNECTION_LOST),
        ("tcp", b"\x16\x03\x01\x00\x06canary", Reason::TLS_FAILED),
        ("tcp", b"canary-of-a-token \x1b[31m canary-of-a-token canary-of-a-token", Reason::BAD_MAGIC),
        ("tcp", b"GET /canary HTTP/1.1\r\nHost: \x1b[31m\r\n\r\n", Reason::BAD_MAGIC),
        ("tcp", ORIGIN, Reason::PERMISSION_DENIED),
    ] {
        let kept = Kept::default();
        let builder = ServerBuilder::new().bind("tls://127.0.0.1:0").bind("127.0.0.1:0");
        let builder = builder.identity(shown.chain.clone(), shown.key.clone()).log(Arc::new(kept.clone()));
        let (endpoints, control) = start(builder).await;
        for _ in 0..3 {
            // Who only looks whether somebody listens is no failure.
            stranger(of(&endpoints, scheme), b"").await;
            stranger(of(&endpoints, scheme), says).await;
        }
        let what = format!("{scheme} {}", says.escape_ascii());
        let counted = async {
            while control.failures().iter().map(|(_, count)| count).sum::<u64>() < 3 {
                tokio::task::yield_now().await;
            }
        };
        bounded(&what, counted).await;
        bounded("the shutdown", control.shutdown()).await;
        assert_eq!(control.failures(), [(reason, 3)], "{what}");
        let records = kept.take();
        let [record] = records.as_slice() else { panic!("{what}: {records:?}") };
        assert_eq!(
            (record.level, field(record, "reason")),
            (Level::Warn, reason.name()),
            "{what}: {record:?}"
        );
        assert!(field(record, "peer").starts_with(&format!("{scheme}://127.0.0.1:")), "{record:?}");
        assert!(!format!("{record:?}").contains("canary") && record.message.is_ascii(), "{record:?}");
        assert!(!record.message.contains(char::is_control), "{record:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whom_a_limit_refuses_is_counted_and_told() {
    let kept = Kept::default();
    let builder = ServerBuilder::new().bind("127.0.0.1:0").max_connections(1).log(Arc::new(kept.clone()));
    let (endpoints, control) = start(builder).await;
    let client = Client::connect(of(&endpoints, "tcp")).await.unwrap();
    assert_eq!(client.request("hello").await.unwrap(), "hello");
    for _ in 0..5 {
        stranger(of(&endpoints, "tcp"), b"").await;
    }
    assert_eq!((control.failures(), control.stats().connections_refused), (vec![(Reason::QUEUE_FULL, 5)], 5));
    let records = kept.take();
    let [record] = records.as_slice() else { panic!("{records:?}") };
    assert_eq!(field(record, "reason"), "QUEUE_FULL", "{record:?}");
    client.close().await;
    control.shutdown().await;
}

/// Limits of a server that runs, for who comes from now on, and for a drain that has not begun.
#[tokio::test(flavor = "multi_thread")]
async fn a_running_server_takes_other_limits() {
    let builder = ServerBuilder::new().bind("127.0.0.1:0").max_connections(1).drain_timeout_ms(86_400_000);
    let (endpoints, control) = start(builder).await;
    let first = Client::connect(of(&endpoints, "tcp")).await.unwrap();
    let (mut send, mut recv) = first.open("/echo", CallOptions::new()).await.unwrap();
    send.send("hello").await.unwrap();
    assert_eq!(recv.recv().await.unwrap().unwrap(), "hello");
    stranger(of(&endpoints, "tcp"), b"").await;
    assert_eq!(control.stats().connections_refused, 1);
    control.set_max_connections(2);
    let second = Client::connect(of(&endpoints, "tcp")).await.unwrap();
    assert_eq!(second.request("hello").await.unwrap(), "hello");
    // Those that are there stay, and an answer says that the server knows of it.
    control.set_max_connections(0);
    for client in [&first, &second] {
        assert_eq!(client.request("hello").await.unwrap(), "hello");
    }
    stranger(of(&endpoints, "tcp"), b"").await;
    assert_eq!(control.stats().connections_refused, 2);
    // The stream would hold it for a day.
    control.set_drain_timeout_ms(0);
    control.shutdown().await;
    assert_eq!(control.stats().calls_cut, 1);
}

/// A server with TLS, one client that does this to it, and why that client's connection never stood.
async fn why_it_fails(client: impl FnOnce(&str) + Send + 'static) -> (Reason, String) {
    let (shown, kept) = (Authority::new().leaf(|_| {}), Kept::default());
    let builder = ServerBuilder::new().bind("tls://127.0.0.1:0").identity(shown.chain, shown.key);
    let (endpoints, control) = start(builder.log(Arc::new(kept.clone()))).await;
    let address = of(&endpoints, "tls").trim_start_matches("tls://").to_owned();
    let client = tokio::task::spawn_blocking(move || client(&address));
    calling::until("a failure", || !control.failures().is_empty()).await;
    bounded("the client", client).await.unwrap();
    control.shutdown().await;
    let [(reason, 1)] = control.failures()[..] else { panic!("{:?}", control.failures()) };
    (reason, kept.take().remove(0).message)
}

/// Whatever a hello says of its length, no more is kept of it than a client has reason to say.
#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_of_a_client_has_a_length() {
    use std::io::{Read, Write};
    let (reason, why) = why_it_fails(|address| {
        let mut socket = std::net::TcpStream::connect(address).unwrap();
        // RFC 8446, sections 4 and 5.1: a ClientHello of 60 KiB in records of 4 KiB.
        let mut record = [&[0x16, 3, 1, 0x10, 0, 1, 0, 0xF0, 0][..], &[0; 4_092]].concat();
        while socket.write_all(&record).is_ok() {
            record[5..9].fill(0);
        }
        let _ = socket.read_to_end(&mut Vec::new());
    })
    .await;
    assert_eq!(reason, Reason::TLS_FAILED);
    assert!(why.contains("the client's handshake is longer than 16384 bytes"), "{why}");
}

/// What is TLS' own and brings nothing has a budget, also where a byte stands between: here new keys, each of which costs the server a
/// derivation and an answer (RFC 8446, section 4.6.3).
// spec: W11-19
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_new_keys_ends_the_connection() {
    use std::io::{Read, Write};
    let (reason, why) = why_it_fails(|address| {
        let (mut tls, mut socket) = greeted(address);
        // The first bytes of a frame, and none of them is the last one of its header.
        for byte in b"\xF6VLK\x01".iter().chain(std::iter::repeat(&0)).take(39) {
            tls.refresh_traffic_keys().unwrap();
            tls.writer().write_all(&[*byte]).unwrap();
            if tls.write_tls(&mut socket).is_err() {
                break;
            }
        }
        let _ = socket.read_to_end(&mut Vec::new());
    })
    .await;
    assert_eq!(reason, Reason::ENHANCE_CALM, "{why}");
    assert!(why.contains("the client sent 32 records without a byte in them"), "{why}");
}

/// 256 handshakes run at once, and newcomers have 5 s in all: who is silent in the middle of one is cut off by then, who waits behind
/// them for 4 s is refused, and who comes after them is served.
#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_stand_still_make_way() {
    let authority = Authority::new();
    let shown = authority.leaf(|_| {});
    let builder = ServerBuilder::new().bind("tls://127.0.0.1:0").identity(shown.chain, shown.key);
    let (endpoints, control) = start(builder).await;
    let address = of(&endpoints, "tls").trim_start_matches("tls://").to_owned();
    let count =
        |reason| control.failures().iter().find(|(of, _)| *of == reason).map_or(0, |(_, count)| *count);
    let mut begun = 0;
    // On a machine where 300 take more than a second to come, the first may be gone in time for the last.
    while count(Reason::QUEUE_FULL) == 0 {
        assert!(begun < 3_000, "{:?}", control.failures());
        let mut silent = Vec::new();
        for _ in 0..300 {
            let mut socket = bounded("a connection", TcpStream::connect(&address)).await.unwrap();
            socket.write_all(b"\x16\x03\x01").await.unwrap();
            silent.push(socket);
        }
        begun += silent.len() as u64;
        for mut socket in silent {
            // A server that has not read everything resets.
            let _ = bounded("the end", socket.read_to_end(&mut Vec::new())).await;
        }
    }
    calling::until("all to be counted", || {
        count(Reason::CONNECT_TIMEOUT) + count(Reason::QUEUE_FULL) == begun
    })
    .await;
    let client = Client::builder().endpoint(of(&endpoints, "tls")).trusted_certificates(authority.pem);
    let client = bounded("a connect", client.build()).await.unwrap();
    assert_eq!(bounded("a call", client.request("hello")).await.unwrap(), "hello");
    client.close().await;
    control.shutdown().await;
}

/// A server of TLS that is not ours.
async fn foreign(shown: &Shown, alpn: &[&[u8]]) -> String {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
    let chain =
        CertificateDer::pem_slice_iter(shown.chain.as_bytes()).collect::<Result<Vec<_>, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_slice(shown.key.as_bytes()).unwrap();
    let mut config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let config = Arc::new(config);
    answering(move |mut socket| {
        let mut tls = rustls::ServerConnection::new(config.clone()).unwrap();
        while tls.complete_io(&mut socket).is_ok_and(|(read, _)| read > 0) {}
    })
}

fn answering(serve: impl Fn(std::net::TcpStream) + Send + 'static) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("tls://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || listener.incoming().for_each(|socket| serve(socket.unwrap())));
    endpoint
}

/// A server that answers every hello with these bytes, and then reads until its peer is gone.
fn saying(bytes: &'static [u8]) -> String {
    use std::io::{Read, Write};
    answering(move |mut socket| {
        let mut room = [0; 4 << 10];
        assert!(socket.read(&mut room).unwrap() > 0);
        socket.write_all(bytes).unwrap();
        while socket.read(&mut room).is_ok_and(|len| len > 0) {}
    })
}

/// A ServerHello of TLS 1.2 and of 1.1: no extension says otherwise (RFC 8446, section 4.1.3).
const HELLO_1_2: &[u8] =
    b"\x16\x03\x03\x00\x2a\x02\x00\x00\x26\x03\x03................................\x00\xc0\x2f\x00";
const HELLO_1_1: &[u8] =
    b"\x16\x03\x02\x00\x2a\x02\x00\x00\x26\x03\x02................................\x00\xc0\x13\x00";
/// The alert protocol_version, which most servers answer with.
const NOT_THAT_VERSION: &[u8] = b"\x15\x03\x01\x00\x02\x02\x46";
const HANDSHAKE_FAILURE: &[u8] = b"\x15\x03\x03\x00\x02\x02\x28";

// spec: W11-15
#[tokio::test(flavor = "multi_thread")]
async fn another_version_and_another_protocol_are_refused() {
    let authority = Authority::new();
    let shown = authority.leaf(|_| {});
    for (endpoint, reason) in [
        (saying(HELLO_1_2), Reason::TLS_VERSION),
        (saying(HELLO_1_1), Reason::TLS_VERSION),
        (saying(NOT_THAT_VERSION), Reason::TLS_VERSION),
        (saying(HANDSHAKE_FAILURE), Reason::TLS_FAILED),
        (saying(b"SSH-2.0-OpenSSH_9.9\r\n"), Reason::TLS_NOT_SPOKEN),
        (saying(b"HTTP/1.1 400 Bad Request\r\n\r\n"), Reason::TLS_NOT_SPOKEN),
        (foreign(&shown, &[b"h2"]).await, Reason::ALPN_MISMATCH),
        (foreign(&shown, &[]).await, Reason::ALPN_MISMATCH),
    ] {
        let builder = Client::builder().endpoint(endpoint).trusted_certificates(authority.pem.clone());
        let status = refused(builder).await;
        assert_eq!(status.reason(), reason, "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clients_own_policy_is_not_lowered() {
    let pem = Authority::new().pem;
    let shown = Authority::new().leaf(|_| {});
    let plain = |scheme: &str| Client::builder().endpoint(format!("{scheme}localhost:1"));
    for builder in [
        plain("tcp://").min_security(Security::Tls),
        plain("ws://").min_security(Security::Mtls),
        // Whoever says whom to trust means to verify.
        plain("tcp://").trusted_certificates(pem.clone()),
        plain("tcp://").identity(shown.chain.clone(), shown.key.clone()),
        plain("tls://").trusted_certificates(pem.clone()).min_security(Security::Mtls),
        plain("quic://").trusted_certificates(pem.clone()).min_security(Security::Mtls),
    ] {
        let status = builder.connect_lazily().map(drop).unwrap_err();
        assert_eq!(
            (status.reason(), status.code()),
            (Reason::SECURITY_TOO_LOW, Code::FailedPrecondition),
            "{status}"
        );
    }
    for (builder, says) in [
        (plain("tls://"), "whom to trust"),
        (plain("tls://").trusted_certificates("no PEM"), "holds no certificate"),
        (plain("tls://").trusted_certificates(Pem::file("/nowhere/ca.pem")), "/nowhere/ca.pem"),
        (
            plain("tls://").trusted_certificates(pem.clone()).identity(shown.chain, pem.clone()),
            "no private key",
        ),
        (
            plain("tls://").trusted_certificates(pem.clone()).server_name("a name"),
            "neither a DNS name nor an IP",
        ),
    ] {
        let status = builder.connect_lazily().map(drop).unwrap_err();
        assert_eq!(status.reason(), Reason::INVALID_CONFIGURATION, "{status}");
        assert!(status.message().contains(says), "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_while_certificates_and_keys_are_replaced() {
    let authority = Authority::new();
    let folder = std::env::temp_dir().join(format!("valkyrie-rotation-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (chain, key) = (folder.join("server.pem"), folder.join("server.key"));
    let write = |shown: &Shown| {
        // One after the other, as people do it: between the two nothing fits.
        std::fs::write(&chain, &shown.chain).unwrap();
        std::fs::write(&key, &shown.key).unwrap();
    };
    write(&authority.leaf(|_| {}));
    let builder = ServerBuilder::new()
        .bind("tls://127.0.0.1:0")
        .bind("quic://127.0.0.1:0")
        .identity(Pem::file(&chain), Pem::file(&key));
    let (endpoints, control) = start(builder).await;
    let (stop, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut running = tokio::task::JoinSet::new();
    for scheme in ENCRYPTED {
        let (endpoint, pem) = (of(&endpoints, scheme).to_owned(), authority.pem.clone());
        let (stop, calls) = (stop.clone(), calls.clone());
        running.spawn(async move {
            while !stop.load(Relaxed) {
                let builder = Client::builder().endpoint(&endpoint).trusted_certificates(pem.clone());
                let client = builder.build().await.unwrap();
                for _ in 0..100 {
                    client.request("hello").await.unwrap();
                    calls.fetch_add(1, Relaxed);
                }
                client.close().await;
            }
        });
    }
    let mut shown = std::collections::BTreeSet::new();
    shown.insert(certificate_of(of(&endpoints, "tls")).await);
    while calls.load(Relaxed) < 10_000 || shown.len() < 4 {
        write(&authority.leaf(|_| {}));
        let before = shown.len();
        while shown.len() == before {
            shown.insert(certificate_of(of(&endpoints, "tls")).await);
        }
    }
    stop.store(true, Relaxed);
    while let Some(ended) = running.join_next().await {
        ended.unwrap();
    }
    control.shutdown().await;
    std::fs::remove_dir_all(&folder).unwrap();
}

/// The end-entity certificate that a port of TLS shows.
async fn certificate_of(endpoint: &str) -> Vec<u8> {
    let address = endpoint.split_once("://").unwrap().1.to_owned();
    let shown =
        tokio::task::spawn_blocking(move || greeted(&address).0.peer_certificates().unwrap()[0].to_vec());
    shown.await.unwrap()
}

/// A connection to a port of TLS that verifies nobody.
fn greeted(address: &str) -> (rustls::ClientConnection, std::net::TcpStream) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"valkyrie/1".to_vec()];
    let mut socket = std::net::TcpStream::connect(address).unwrap();
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    let mut tls = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    while tls.is_handshaking() {
        tls.complete_io(&mut socket).unwrap();
    }
    (tls, socket)
}

/// A wire that keeps what passed it, and may change one byte of it.
struct Wire {
    address: std::net::SocketAddr,
    passed: Arc<std::sync::Mutex<Vec<u8>>>,
}

impl Wire {
    /// `change` is asked for each piece that the client sends, with the number of bytes before it.
    async fn to(target: String, change: impl Fn(usize, &mut Vec<u8>) + Send + Sync + 'static) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let passed: Arc<std::sync::Mutex<Vec<u8>>> = Arc::default();
        let (all, change) = (passed.clone(), Arc::new(change));
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let far = TcpStream::connect(&target).await.unwrap();
                let ((mut near_in, mut near_out), (mut far_in, mut far_out)) =
                    (near.into_split(), far.into_split());
                let (up, down, change) = (all.clone(), all.clone(), change.clone());
                tokio::spawn(async move {
                    let (mut room, mut before) = (vec![0; 64 << 10], 0);
                    while let Ok(len @ 1..) = near_in.read(&mut room).await {
                        let mut piece = room[..len].to_vec();
                        up.lock().unwrap().extend_from_slice(&piece);
                        change(before, &mut piece);
                        before += len;
                        if far_out.write_all(&piece).await.is_err() {
                            break;
                        }
                    }
                    let _ = far_out.shutdown().await;
                });
                tokio::spawn(async move {
                    let mut room = vec![0; 64 << 10];
                    while let Ok(len @ 1..) = far_in.read(&mut room).await {
                        down.lock().unwrap().extend_from_slice(&room[..len]);
                        if near_out.write_all(&room[..len]).await.is_err() {
                            break;
                        }
                    }
                    let _ = near_out.shutdown().await;
                });
            }
        });
        Wire { address, passed }
    }
}

const CANARY: &[u8] = b"canary-4f1b9c62";

fn holds(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|window| window == what)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wire_sees_no_plaintext() {
    let authority = Authority::new();
    let shown = authority.leaf(|_| {});
    let builder = ServerBuilder::new().bind("127.0.0.1:0").bind("tls://127.0.0.1:0");
    let (endpoints, control) = start(builder.identity(shown.chain, shown.key)).await;
    for (scheme, sealed) in [("tcp", false), ("tls", false), ("tcp", true), ("ws", true), ("wss", false)] {
        let target = of(&endpoints, scheme).split_once("://").unwrap().1.to_owned();
        let wire = Wire::to(target, |_, _| {}).await;
        let mut builder = Client::builder().endpoint(format!("{scheme}://{}", wire.address));
        builder = builder.token("canary-4f1b9c62");
        if sealed || scheme != "tcp" {
            builder = builder.trusted_certificates(authority.pem.clone()).sealed(sealed);
        }
        let client = bounded("a connect", builder.build()).await.unwrap();
        let mut metadata = valkyrie_sdk::Metadata::new();
        metadata.insert("x-canary", "canary-4f1b9c62").unwrap();
        let options = CallOptions::new().with_metadata(metadata);
        let message = [CANARY, &[0; 100], CANARY].concat();
        let answer = bounded("a call", client.call_with("/echo", message.clone(), options)).await.unwrap();
        assert_eq!(answer.message, message);
        let passed = wire.passed.lock().unwrap().clone();
        // The wire does see what is sent in the clear: the test can fail.
        let clear = scheme == "tcp" && !sealed;
        assert_eq!(holds(&passed, CANARY), clear, "{scheme}, sealed: {sealed}");
        assert_eq!(holds(&passed, b"/echo"), clear, "{scheme}, sealed: {sealed}");
        client.close().await;
    }
    control.shutdown().await;
}

// spec: W11-19
#[tokio::test(flavor = "multi_thread")]
async fn a_changed_record_ends_the_connection() {
    let authority = Authority::new();
    let shown = authority.leaf(|_| {});
    let builder = ServerBuilder::new().bind("127.0.0.1:0").bind("tls://127.0.0.1:0");
    let (endpoints, control) = start(builder.identity(shown.chain, shown.key)).await;
    for (scheme, sealed) in [("tls", false), ("tcp", true)] {
        let target = of(&endpoints, scheme).split_once("://").unwrap().1.to_owned();
        let armed = Arc::new(AtomicBool::new(false));
        let flips = armed.clone();
        let wire = Wire::to(target, move |_, piece| {
            if flips.swap(false, Relaxed) {
                let middle = piece.len() / 2;
                piece[middle] ^= 1;
            }
        })
        .await;
        let client = Client::builder()
            .endpoint(format!("{scheme}://{}", wire.address))
            .trusted_certificates(authority.pem.clone())
            .sealed(sealed);
        let client = bounded("a connect", client.build()).await.unwrap();
        bounded("a call", client.request("hello")).await.unwrap();
        armed.store(true, Relaxed);
        let status = bounded("a call", client.request("hello")).await.unwrap_err();
        assert_eq!(
            (status.reason(), status.code()),
            (Reason::RECORD_AUTHENTICATION, Code::DataLoss),
            "{status}"
        );
        // The next call dials anew.
        bounded("a call", client.request("hello")).await.unwrap();
        client.close().await;
    }
    control.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_credentials_and_without_a_policy_nobody_may_call_anything_but_health() {
    let (authority, clients) = (Authority::new(), Authority::new());
    let (server, client) = (authority.leaf(|_| {}), clients.leaf(|_| {}));
    let builder = || {
        let health = handler_fn(|_| async { Ok(Reply::message("serving")) });
        ServerBuilder::new()
            .bind("tls://127.0.0.1:0")
            .identity(server.chain.clone(), server.key.clone())
            .handler("/echo", EchoHandler)
            .handler("/valkyrie.Health/Check", health)
    };
    for (builder, reason, code) in [
        (builder(), Reason::UNAUTHENTICATED, Code::Unauthenticated),
        (
            builder().client_authorities(clients.pem.clone()),
            Reason::PERMISSION_DENIED,
            Code::PermissionDenied,
        ),
    ] {
        let server = builder.build().await.unwrap();
        let (endpoints, control) = (server.endpoints(), server.control());
        tokio::spawn(async move { server.start().await });
        let builder =
            Client::builder().endpoint(of(&endpoints, "tls")).trusted_certificates(authority.pem.clone());
        let client = builder.identity(client.chain.clone(), client.key.clone()).min_security(Security::Tls);
        let client = bounded("a connect", client.build()).await.unwrap();
        for method in ["/echo", "/no/such/method", "/valkyrie.Healthy/Check"] {
            let status = bounded("a call", client.call(method, "")).await.unwrap_err();
            assert_eq!((status.reason(), status.code()), (reason, code), "{method}: {status}");
        }
        assert_eq!(
            bounded("a call", client.call("/valkyrie.Health/Check", "")).await.unwrap().message,
            "serving"
        );
        control.shutdown_now();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_pass_inside_of_what_is_encrypted() {
    let authority = Authority::new();
    let shown = authority.leaf(|_| {});
    let whoami = handler_fn(|call| async move { Ok(Reply::message(call.principal().id().to_owned())) });
    let builder =
        ServerBuilder::new().bind("127.0.0.1:0").bind("tls://127.0.0.1:0").bind("quic://127.0.0.1:0");
    let builder = builder.identity(shown.chain, shown.key).authenticator(One).handler("/whoami", whoami);
    let (endpoints, control) = start(builder).await;
    for (scheme, sealed) in
        [("tls", false), ("wss", false), ("quic", false), ("tcp", true), ("ws", true), ("wss", true)]
    {
        let connect = |token: &str| {
            let builder = Client::builder().endpoint(of(&endpoints, scheme)).sealed(sealed).token(token);
            builder.trusted_certificates(authority.pem.clone())
        };
        let client = bounded("a connect", connect("good").build()).await.unwrap();
        let answer = bounded("a call", client.call("/whoami", "")).await.unwrap();
        assert_eq!(answer.message, "sub:alice", "{scheme}, sealed: {sealed}");
        client.close().await;
    }
    let builder = Client::builder().endpoint(of(&endpoints, "tls")).token("bad");
    let status = refused(builder.trusted_certificates(authority.pem.clone())).await;
    assert_eq!(status.reason(), Reason::CREDENTIALS_REFUSED, "{status}");
    control.shutdown().await;
}

/// What a client says first, and what it says once it is greeted.
async fn said_to(endpoint: &str, authority: String, sealed: bool) -> Vec<u8> {
    let said: Arc<std::sync::Mutex<Vec<u8>>> = Arc::default();
    let (scheme, target) = endpoint.split_once("://").unwrap();
    let all = said.clone();
    let wire =
        Wire::to(target.to_owned(), move |_, piece| all.lock().unwrap().extend_from_slice(piece)).await;
    let builder = Client::builder().endpoint(format!("{scheme}://{}", wire.address)).sealed(sealed);
    let client = builder.trusted_certificates(authority).build().await.unwrap();
    client.request("hello").await.unwrap();
    client.close().await;
    said.lock().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_stranger_says_to_tls_the_server_lives() {
    let authority = Authority::new();
    let shown = authority.leaf(|_| {});
    let builder = ServerBuilder::new().bind("127.0.0.1:0").bind("tls://127.0.0.1:0");
    let (endpoints, control) = start(builder.identity(shown.chain, shown.key)).await;
    let mut chance = Random::new();
    for (scheme, sealed) in [("tls", false), ("tcp", true)] {
        let endpoint = of(&endpoints, scheme);
        let said = bounded("a client", said_to(endpoint, authority.pem.clone(), sealed)).await;
        for _ in 0..1_000 {
            let mut bytes = said.clone();
            for _ in 0..=chance.below(4) {
                let (at, len) = (chance.below(bytes.len()), 1 + chance.below(64));
                match chance.below(4) {
                    0 => bytes[at] ^= 1 << chance.below(8),
                    1 => bytes.truncate(at.max(1)),
                    2 => {
                        let end = (at + len).min(bytes.len());
                        bytes.extend_from_within(at..end);
                    }
                    _ => {
                        let noise = (0..len).map(|_| chance.below(256) as u8).collect::<Vec<_>>();
                        bytes.splice(at..at, noise);
                    }
                }
            }
            let mut stranger = TcpStream::connect(endpoint.split_once("://").unwrap().1).await.unwrap();
            // A server that has seen enough does not read the rest.
            let _ = stranger.write_all(&bytes).await;
            let _ = stranger.shutdown().await;
            let _ = bounded("the end", stranger.read_to_end(&mut Vec::new())).await;
        }
        let builder =
            Client::builder().endpoint(endpoint).trusted_certificates(authority.pem.clone()).sealed(sealed);
        let client = bounded("a connect", builder.build()).await.unwrap();
        assert_eq!(bounded("a call", client.request("still there")).await.unwrap(), "still there");
        client.close().await;
    }
    // Nobody is left over: this ends when every connection has.
    bounded("the shutdown", control.shutdown()).await;
}
