//! The WebSocket handshake and what is no binary message, from a peer that writes both by hand.
#![cfg(feature = "websocket")]

use std::{future::Future, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use valkyrie_sdk::{EchoHandler, ServerBuilder};

async fn serve() -> String {
    let server = ServerBuilder::new()
        .bind("127.0.0.1:0")
        .handler("/echo", EchoHandler)
        .allow_origin("https://app.example")
        .build()
        .await
        .unwrap();
    let address = server.local_addr().unwrap().to_string();
    tokio::spawn(async move { server.start().await });
    address
}

/// Offers a handshake with these headers on top; the connection and the first line of the answer.
async fn handshake(address: &str, headers: &str) -> (TcpStream, String) {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "GET / HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{headers}\r\n"
    );
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(bounded(socket.read_u8()).await.unwrap());
    }
    let answer = String::from_utf8(answer).unwrap();
    (socket, answer.lines().next().unwrap_or_default().to_owned())
}

/// A hang is bounded far above anything that should take that long.
async fn bounded<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), work).await.expect("hangs")
}

const OURS: &str = "Sec-WebSocket-Protocol: chat, valkyrie.1\r\n";

// spec: W11-04, W11-06
#[tokio::test]
async fn a_page_of_a_foreign_origin_gets_403() {
    let address = serve().await;
    for (origin, status) in [
        ("https://app.example".to_owned(), "101"),
        (format!("http://{address}"), "101"),
        ("http://localhost:3000".to_owned(), "101"),
        ("https://evil.example".to_owned(), "403"),
        ("null".to_owned(), "403"),
    ] {
        let (_socket, line) = handshake(&address, &format!("Origin: {origin}\r\n{OURS}")).await;
        assert!(line.starts_with(&format!("HTTP/1.1 {status} ")), "{origin}: {line}");
    }
}

// spec: W11-05
#[tokio::test]
async fn an_offer_of_other_subprotocols_gets_400() {
    let address = serve().await;
    for (headers, status) in [(OURS, "101"), ("", "101"), ("Sec-WebSocket-Protocol: chat\r\n", "400")] {
        let (_socket, line) = handshake(&address, headers).await;
        assert!(line.starts_with(&format!("HTTP/1.1 {status} ")), "{headers}: {line}");
    }
}

// spec: W11-03
#[tokio::test]
async fn text_is_refused_with_1003() {
    let address = serve().await;
    let (mut socket, _) = handshake(&address, OURS).await;
    // A text message of two bytes, masked with zeros.
    socket.write_all(&[0x81, 0x82, 0, 0, 0, 0, b'h', b'i']).await.unwrap();
    let mut answer = Vec::new();
    bounded(socket.read_to_end(&mut answer)).await.unwrap();
    // The server's HELLO may be ahead of it, in a binary message.
    let close = answer.windows(4).position(|at| at[0] == 0x88 && at[2..] == 1003u16.to_be_bytes());
    assert!(close.is_some(), "{answer:02x?}");
}
