//! A QUIC peer that is not ours, against a real server and a real client.
#![cfg(feature = "quic")]

mod calling;

use std::{net::SocketAddr, sync::Arc};

use calling::bounded;
use quinn::{
    VarInt,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::net::UdpSocket;
use valkyrie_sdk::{CallOptions, Client, EchoHandler, Reason, ServerBuilder, ServerControl};

/// A server with /echo, and a connection to it on which HELLO has been said.
async fn greeted() -> (ServerControl, quinn::Endpoint, quinn::Connection, quinn::SendStream, quinn::RecvStream)
{
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = made.cert.pem();
    let server = ServerBuilder::new()
        .bind("quic://127.0.0.1:0")
        .identity(certificate.clone(), made.signing_key.serialize_pem())
        .open_to_all(true)
        .handler("/echo", EchoHandler)
        .build()
        .await
        .unwrap();
    let (address, control) = (server.local_addr().unwrap(), server.control());
    tokio::spawn(async move { server.start().await });

    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"valkyrie/1".to_vec()];
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    let mut endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    endpoint.set_default_client_config(config);
    let (connection, send, receive) = greets(&endpoint, address).await;
    (control, endpoint, connection, send, receive)
}

/// Connects and says HELLO.
async fn greets(
    endpoint: &quinn::Endpoint,
    server: SocketAddr,
) -> (quinn::Connection, quinn::SendStream, quinn::RecvStream) {
    let connecting = endpoint.connect(server, "127.0.0.1").unwrap();
    let connection = bounded("a handshake", connecting).await.unwrap();
    let (mut send, receive) = connection.open_bi().await.unwrap();
    send.write_all(&vector("hello")).await.unwrap();
    (connection, send, receive)
}

fn vector(name: &str) -> Vec<u8> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/v1.json");
    let vectors: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let hex = match vectors[name].as_str() {
        Some(hex) => hex,
        None => {
            let mut frames = vectors["frames"].as_array().unwrap().iter();
            frames.find(|frame| frame["name"] == name).unwrap()["hex"].as_str().unwrap()
        }
    };
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

/// Says one call on the next stream, and reads the answer: one STATUS.
async fn call(connection: &quinn::Connection) {
    let (mut send, mut receive) = bounded("a stream", connection.open_bi()).await.unwrap();
    let mut frame = vector("unary call in one frame");
    frame[8..16].copy_from_slice(&(2 * send.id().index() - 1).to_le_bytes());
    let crc = crc32c::crc32c(&frame[..36]);
    frame[36..40].copy_from_slice(&crc.to_le_bytes());
    send.write_all(&frame).await.unwrap();
    send.finish().unwrap();
    let answer = bounded("an answer", receive.read_to_end(1 << 20)).await.unwrap();
    assert_eq!(answer[5], 0x13);
}

#[tokio::test]
async fn a_stream_that_ends_before_its_call_leaves_nothing_behind() {
    let (control, _endpoint, connection, _send, _receive) = greeted().await;
    // More of them than may be open at once, with a call beside each, so that nobody is told to calm down.
    for _ in 0..1_300 {
        let (mut send, mut receive) = bounded("a stream", connection.open_bi()).await.unwrap();
        send.reset(VarInt::from_u32(11)).unwrap();
        receive.stop(VarInt::from_u32(11)).unwrap();
        call(&connection).await;
    }
    assert_eq!(control.connections()[0].streams, 0);
    bounded("a shutdown", control.shutdown()).await;
}

// spec: W11-09
#[tokio::test]
async fn a_stream_without_a_call_ends_the_connection() {
    let (_control, _endpoint, connection, _send, mut receive) = greeted().await;
    call(&connection).await;
    let (mut send, _unread) = connection.open_bi().await.unwrap();
    send.finish().unwrap();
    let said = bounded("a go-away", receive.read_to_end(1 << 20)).await.unwrap();
    // GOAWAY, whose record begins with the last stream and the code: PROTOCOL.
    let last = said.windows(4).rposition(|start| start == [0xf6, b'V', b'L', b'K']).unwrap();
    assert_eq!((said[last + 5], &said[last + 40..last + 42]), (0x05, &[1, 1][..]));
}

/// However a client ends, its server hears of it and does not wait for its idle limit: closed, dropped, or dropped with
/// the runtime that it ran on, with and without a call.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_ends_says_so() {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = made.cert.pem();
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(made.signing_key.serialize_pem().as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    tls.alpn_protocols = vec![b"valkyrie/1".to_vec()];
    let config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
    let server = quinn::Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap();
    let endpoint = format!("quic://{}", server.local_addr().unwrap());
    for closes in [true, false] {
        for calls in [true, false] {
            for runtime in
                [tokio::runtime::Builder::new_multi_thread(), tokio::runtime::Builder::new_current_thread()]
            {
                let what = format!("a client that ends: closes {closes}, calls {calls}");
                let (mut runtime, certificate, endpoint) = (runtime, certificate.clone(), endpoint.clone());
                let ended = std::thread::spawn(move || {
                    let runtime = runtime.enable_all().build().unwrap();
                    runtime.block_on(async {
                        let client = Client::builder().endpoint(endpoint).trusted_certificates(certificate);
                        let client = client.build().await.unwrap();
                        let _call = match calls {
                            true => Some(client.open("/echo", CallOptions::new()).await.unwrap()),
                            false => None,
                        };
                        if closes {
                            client.close_now();
                        }
                    });
                });
                let connection = bounded(&what, server.accept()).await.unwrap().await.unwrap();
                let reason = bounded(&what, connection.closed()).await;
                assert!(matches!(reason, quinn::ConnectionError::ApplicationClosed(_)), "{what}: {reason}");
                ended.join().unwrap();
            }
        }
    }
}

/// Handshakes that stand still cost the server memory: beyond 32 of them whoever comes has to show that its address is its own, by a
/// Retry (RFC 9000, section 8.1.2), and is served like the others.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_handshakes_costs_a_client_one_round_trip() {
    let (_control, endpoint, connection, _send, _receive) = greeted().await;
    let server = connection.remote_address();
    let mut stalled = Vec::new();
    let answered_by_retry = loop {
        // The first packet of a client goes on to the server from here, and what comes back stays here.
        let relay = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let connecting = endpoint.connect(relay.local_addr().unwrap(), "127.0.0.1").unwrap();
        let mut packet = [0; 2_048];
        let len = bounded("the first packet", relay.recv(&mut packet)).await.unwrap();
        relay.send_to(&packet[..len], server).await.unwrap();
        while bounded("an answer", relay.recv_from(&mut packet)).await.unwrap().1 != server {}
        // RFC 9000, section 17.2: the type of a long header.
        match packet[0] >> 4 & 3 {
            0 => stalled.push((relay, connecting)),
            3 => break stalled.len(),
            other => panic!("a long header of type {other}"),
        }
    };
    assert!(answered_by_retry >= 32, "{answered_by_retry}");
    let (other, _other_send, _other_receive) = greets(&endpoint, server).await;
    call(&other).await;
    call(&connection).await;
}

/// A server that goes while its client waits for an answer: the client learns it by the packet that it sends next, and
/// what the system says of that packet is met by the write of the one after it.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn who_connects_learns_that_the_server_went() {
    let roots = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap().cert.pem();
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("quic://{}", silent.local_addr().unwrap());
    let client = tokio::spawn(async move {
        Client::builder().endpoint(endpoint).trusted_certificates(roots).build().await.map(drop)
    });
    tokio::task::spawn_blocking(move || silent.recv(&mut [0; 2048]).unwrap()).await.unwrap();
    let refused = client.await.unwrap().unwrap_err();
    assert_eq!(refused.reason(), Reason::CONNECT_FAILED, "{refused}");
    assert!(refused.message().contains("refused"), "{refused}");
}

/// That nobody listens is told once by the system, to whoever asks first. 400 dials, eight at a time: whoever missed it
/// waited for 5 s.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nobody_who_connects_misses_that_nobody_listens() {
    let identity = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let roots = identity.cert.pem();
    let gone = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut dials = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let roots = roots.clone();
        dials.spawn(async move {
            for _ in 0..50 {
                let client = Client::builder().endpoint(format!("quic://{gone}"));
                let refused =
                    client.trusted_certificates(roots.to_string()).build().await.map(drop).unwrap_err();
                assert_eq!(refused.reason(), Reason::CONNECT_FAILED, "{refused}");
                assert!(refused.message().contains("refused"), "{refused}");
            }
        });
    }
    while let Some(done) = dials.join_next().await {
        done.unwrap();
    }
}
