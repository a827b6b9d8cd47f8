//! A receiver of OTLP over HTTP on a real socket: it gives what was posted, and answers as a test says.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::{
    sync::{Arc, Mutex},
    time::Instant,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
    sync::mpsc,
};
use valkyrie_sdk::{Level, Log, Record};

/// A post, as it came.
pub(crate) struct Posted {
    pub(crate) path: String,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
    /// When it was there, before it was answered.
    pub(crate) at: Instant,
}

/// What a receiver does with a post.
#[derive(Clone)]
pub(crate) enum Reaction {
    /// Says that, whatever it is, and closes.
    Says(Vec<u8>),
    /// Begins to say that, and goes on with zeros for as long as somebody reads.
    SaysForEver(Vec<u8>),
    /// Nothing, and keeps the connection.
    IsSilent,
}

pub(crate) fn says(status: &str, headers: &str, body: &[u8]) -> Reaction {
    let head = format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n", body.len());
    Reaction::Says([head.as_bytes(), body].concat())
}

pub(crate) fn takes() -> Reaction {
    says("200 OK", "content-type: application/x-protobuf\r\n", b"")
}

/// Reacts to each post with the next of these, and to all that follow with the last one.
pub(crate) fn receive(
    listener: TcpListener,
    tls: Option<tokio_rustls::TlsAcceptor>,
    reactions: Vec<Reaction>,
) -> mpsc::UnboundedReceiver<Posted> {
    let (sender, posts) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut reactions = reactions.into_iter().peekable();
        let mut last = takes();
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let reaction = reactions.next().unwrap_or_else(|| last.clone());
            last = reaction.clone();
            let (sender, tls) = (sender.clone(), tls.clone());
            tokio::spawn(async move {
                match tls {
                    None => serve(socket, sender, reaction).await,
                    Some(tls) => {
                        // Who does not trust us leaves.
                        let Ok(socket) = tls.accept(socket).await else { return };
                        serve(socket, sender, reaction).await;
                    }
                }
            });
        }
    });
    posts
}

/// One that is told where it is.
pub(crate) async fn receiver(reactions: Vec<Reaction>) -> (String, mpsc::UnboundedReceiver<Posted>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    (endpoint, receive(listener, None, reactions))
}

async fn serve(
    mut socket: impl AsyncRead + AsyncWrite + Unpin,
    sender: mpsc::UnboundedSender<Posted>,
    reaction: Reaction,
) {
    let mut bytes = Vec::new();
    let head = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        if socket.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return;
        }
    };
    let body = bytes.split_off(head);
    let head = String::from_utf8(bytes).unwrap();
    let header = |name: &str| {
        head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    };
    let len: usize = header("content-length").expect(&head).parse().unwrap();
    let mut body = body;
    while body.len() < len {
        assert!(socket.read_buf(&mut body).await.unwrap() > 0, "the post ends early");
    }
    assert_eq!(body.len(), len);
    assert_eq!(header("content-type"), Some("application/x-protobuf"));
    let path = head.split(' ').nth(1).unwrap().to_owned();
    assert!(head.starts_with("POST "), "{head}");
    // A test that has what it wanted listens no more.
    let _ = sender.send(Posted { path, head, body, at: Instant::now() });
    match reaction {
        Reaction::Says(answer) => {
            let _ = socket.write_all(&answer).await;
            let _ = socket.shutdown().await;
        }
        Reaction::SaysForEver(answer) => {
            let _ = socket.write_all(&answer).await;
            while socket.write_all(&[0; 4_096]).await.is_ok() {}
        }
        Reaction::IsSilent => std::future::pending().await,
    }
}

/// Keeps what an exporter says, each with its level.
#[derive(Default)]
pub(crate) struct Said(Mutex<Vec<(Level, String)>>);

impl Said {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    pub(crate) fn lines(&self) -> Vec<(Level, String)> {
        self.0.lock().unwrap().clone()
    }
}

impl Log for Said {
    fn enabled(&self, _: Level) -> bool {
        true
    }

    fn log(&self, record: Record) {
        assert_eq!((record.target, record.fields[0].0), ("valkyrie.otel", "endpoint"));
        self.0.lock().unwrap().push((record.level, record.message));
    }
}
