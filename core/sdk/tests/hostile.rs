//! A server that says nothing, one that has stopped, and transports from outside. Peers that break the rules are in
//! tests/faults.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::SeqCst},
    },
    task::{Context, Poll},
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use valkyrie_sdk::{
    BoxFuture, CallOptions, Carrier, Client, Code, Connector, EchoHandler, Endpoint, ReadBuffer, Reply,
    ServerBuilder, ServerControl, Status, Transport, ValkyrieClient, ValkyrieServer, handler_fn,
};

async fn serve() -> (String, ServerControl) {
    let server =
        ServerBuilder::new().bind("127.0.0.1:0").handler("/echo", EchoHandler).build().await.unwrap();
    let endpoint = server.endpoints()[0].clone();
    let control = server.control();
    tokio::spawn(async move { server.start().await });
    (endpoint, control)
}

fn vectors() -> serde_json::Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/v1.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn unhex(value: &serde_json::Value) -> Vec<u8> {
    let text = value.as_str().unwrap();
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_stopped_answers_nobody_who_comes_after() {
    let vectors = vectors();
    let mut frames = vectors["frames"].as_array().unwrap().iter();
    let call = frames.find(|frame| frame["name"] == "unary call in one frame").unwrap();
    let bytes = [unhex(&vectors["hello"]), unhex(&call["hex"])].concat();
    for round in 0..200 {
        let (endpoint, control) = serve().await;
        Client::connect(&endpoint).await.unwrap().request("serving").await.unwrap();
        control.shutdown_now();
        // Its listener may not know yet.
        let Ok(mut socket) = std::net::TcpStream::connect(endpoint.trim_start_matches("tcp://")) else {
            continue;
        };
        let _ = io::Write::write_all(&mut socket, &bytes);
        let mut answer = Vec::new();
        let _ = io::Read::read_to_end(&mut socket, &mut answer);
        let mut rest = &answer[..];
        while let Some(header) = rest.get(..40) {
            let long = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap()) as usize;
            assert_ne!(header[5], 0x13, "round {round}: a stopped server answered a call");
            rest = &rest[40 + long(16) + long(20)..];
        }
    }
}

#[tokio::test]
async fn a_server_that_says_nothing_costs_only_the_deadline() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("tcp://{}", listener.local_addr().unwrap());
    let client = Client::builder().endpoint(endpoint).timeout_ms(100).build().await.unwrap();
    let (_socket, _) = listener.accept().await.unwrap();
    let status = client.request("hello").await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(client.connections()[0].streams, 0);
}

/// A transport from outside: a TCP stream that hands over one byte at a time, both ways.
struct Slicer(TcpStream);

struct Slicing;

impl Connector for Slicing {
    fn connect<'a>(&'a self, endpoint: &'a Endpoint) -> BoxFuture<'a, io::Result<Box<dyn Transport>>> {
        Box::pin(async move {
            let stream = TcpStream::connect(endpoint.address()).await?;
            Ok(Box::new(Slicer(stream)) as Box<dyn Transport>)
        })
    }
}

impl Transport for Slicer {
    fn carrier(&self) -> Carrier {
        Carrier::Bytes
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut ReadBuffer) -> Poll<io::Result<usize>> {
        let mut byte = [0];
        let mut buffer = tokio::io::ReadBuf::new(&mut byte);
        std::task::ready!(tokio::io::AsyncRead::poll_read(Pin::new(&mut self.0), cx, &mut buffer))?;
        into.put(buffer.filled());
        Poll::Ready(Ok(buffer.filled().len()))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, parts: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let first = parts.iter().find(|part| !part.is_empty()).map_or(&[][..], |part| &part[..1]);
        tokio::io::AsyncWrite::poll_write(Pin::new(&mut self.0), cx, first)
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        tokio::io::AsyncWrite::poll_shutdown(Pin::new(&mut self.0), cx)
    }
}

// spec: W11-01
#[tokio::test]
async fn a_transport_from_outside_works_one_byte_at_a_time() {
    let (endpoint, _) = serve().await;
    let client = Client::builder()
        .endpoint(endpoint.replace("tcp://", "slicer://"))
        .connector("slicer", Arc::new(Slicing))
        .timeout_ms(60_000)
        .build()
        .await
        .unwrap();
    let message = vec![7; 100_000];
    assert_eq!(client.request(message.clone()).await.unwrap(), message);
}

/// A TCP stream that breaks: from then on a write fails, and nothing is read before one was tried.
struct Breaking(TcpStream, Arc<AtomicU8>);

const WHOLE: u8 = 0;
const BREAKS: u8 = 1;
const BROKEN: u8 = 2;

struct Breaker(Arc<AtomicU8>);

impl Connector for Breaker {
    fn connect<'a>(&'a self, endpoint: &'a Endpoint) -> BoxFuture<'a, io::Result<Box<dyn Transport>>> {
        Box::pin(async move {
            let stream = TcpStream::connect(endpoint.address()).await?;
            Ok(Box::new(Breaking(stream, self.0.clone())) as Box<dyn Transport>)
        })
    }
}

impl Transport for Breaking {
    fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut ReadBuffer) -> Poll<io::Result<usize>> {
        if self.1.load(SeqCst) == BREAKS {
            return Poll::Pending;
        }
        let mut room = [0; 4096];
        let mut buffer = tokio::io::ReadBuf::new(&mut room);
        std::task::ready!(tokio::io::AsyncRead::poll_read(Pin::new(&mut self.0), cx, &mut buffer))?;
        into.put(buffer.filled());
        Poll::Ready(Ok(buffer.filled().len()))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, parts: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if self.1.load(SeqCst) == WHOLE {
            return tokio::io::AsyncWrite::poll_write_vectored(Pin::new(&mut self.0), cx, parts);
        }
        self.1.store(BROKEN, SeqCst);
        Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        tokio::io::AsyncWrite::poll_shutdown(Pin::new(&mut self.0), cx)
    }
}

#[tokio::test]
async fn what_was_answered_before_the_connection_broke_is_not_lost() {
    let gate = Arc::new(Semaphore::new(0));
    let opens = gate.clone();
    let gated = handler_fn(move |_| {
        let opens = opens.clone();
        async move {
            opens.add_permits(1);
            Ok::<_, Status>(Reply::message("before"))
        }
    });
    let server = ServerBuilder::new().bind("127.0.0.1:0").handler("/gated", gated).build().await.unwrap();
    let endpoint = server.endpoints()[0].replace("tcp://", "breaking://");
    tokio::spawn(async move { server.start().await });
    let state = Arc::new(AtomicU8::new(WHOLE));
    let builder =
        Client::builder().endpoint(endpoint).connector("breaking", Arc::new(Breaker(state.clone())));
    let client = builder.build().await.unwrap();
    client.call("/gated", "").await.unwrap();
    gate.acquire().await.unwrap().forget();

    let answered = tokio::spawn({
        let client = client.clone();
        async move { client.call("/gated", "").await }
    });
    // It was sent, and from here on its answer is not read before a write has failed.
    gate.acquire().await.unwrap().forget();
    state.store(BREAKS, SeqCst);
    let late = client.call("/gated", "").await.unwrap_err();
    assert_eq!(late.code(), Code::Unavailable, "{late:?}");
    assert_eq!(answered.await.unwrap().unwrap().message, "before");
}

#[tokio::test]
async fn the_traits_are_object_safe_and_work_over_memory() {
    let server: Arc<dyn ValkyrieServer> = Arc::new(
        ServerBuilder::new().bind("memory:traits").handler("/echo", EchoHandler).build().await.unwrap(),
    );
    let running = tokio::spawn({
        let server = server.clone();
        async move { server.start().await }
    });
    let client: Box<dyn ValkyrieClient> = Box::new(Client::connect(&server.endpoints()[0]).await.unwrap());
    let response = client.call("/echo", "hello".into(), CallOptions::new()).await.unwrap();
    assert_eq!(response.message, "hello");
    client.close().await;
    server.shutdown().await;
    running.await.unwrap().unwrap();
}
