//! Further connections to one server, where its streams are not enough for the calls that are to run at once.

mod calling;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use calling::{bounded, until};
use tokio::sync::Semaphore;
use valkyrie_sdk::{
    CallOptions, Client, Limits, Reply, ServerBuilder, ServerControl, handler_fn, policy::ServiceConfig,
};

/// Streams that the server takes over each connection: the least that it may say.
const STREAMS: usize = 100;

struct Serving {
    endpoint: String,
    control: ServerControl,
    running: Arc<AtomicUsize>,
    /// Lets handlers end.
    gate: Arc<Semaphore>,
}

async fn serve(max_connections: usize) -> Serving {
    let (running, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let slow = {
        let (running, gate) = (running.clone(), gate.clone());
        handler_fn(move |_| {
            let (running, gate) = (running.clone(), gate.clone());
            async move {
                running.fetch_add(1, SeqCst);
                gate.acquire().await.unwrap().forget();
                running.fetch_sub(1, SeqCst);
                Ok(Reply::message("done"))
            }
        })
    };
    let limits = Limits { max_concurrent_streams: STREAMS as u32, ..Limits::default() };
    let server = ServerBuilder::new().bind("127.0.0.1:0").limits(limits).max_connections(max_connections);
    let server = server.max_running_handlers(10_000).handler("/slow", slow);
    let server = server.handler("/quick", handler_fn(|_| async { Ok(Reply::message("")) }));
    let server = bounded("a bind", server.build()).await.unwrap();
    let (endpoint, control) = (server.endpoints().remove(0), server.control());
    tokio::spawn(async move { server.start().await });
    Serving { endpoint, control, running, gate }
}

/// One connection, over which the server has said how many streams it takes.
async fn client(serving: &Serving, most: usize) -> Client {
    let text = format!(r#"{{"connections": {{"max_per_server": {most}, "idle_ms": 100}}}}"#);
    let config = ServiceConfig::parse(&text).unwrap();
    let client = Client::builder().endpoint(serving.endpoint.as_str()).service_config(config);
    let client = bounded("a connect", client.build()).await.unwrap();
    client.call("/quick", "").await.unwrap();
    client
}

fn call(client: &Client, many: usize) -> Vec<tokio::task::JoinHandle<()>> {
    let call = |_| {
        let client = client.clone();
        tokio::spawn(async move {
            let options = CallOptions::new().with_timeout(Duration::from_secs(60));
            client.call_with("/slow", "", options).await.unwrap();
        })
    };
    (0..many).map(call).collect()
}

async fn all(calls: Vec<tokio::task::JoinHandle<()>>) {
    for call in calls {
        bounded("a call", call).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_beyond_the_streams_of_one_connection_run_at_once_over_further_ones() {
    let serving = serve(100).await;
    let client = client(&serving, 4).await;
    let calls = call(&client, 3 * STREAMS + STREAMS / 2);
    until("all of them running", || serving.running.load(SeqCst) == 3 * STREAMS + STREAMS / 2).await;
    assert_eq!((client.connections().len(), serving.control.connections().len()), (4, 4));
    // Most that there may be: what comes then waits for a stream, and is not lost.
    let more = call(&client, STREAMS);
    until("all four full", || serving.running.load(SeqCst) == 4 * STREAMS).await;
    assert_eq!((client.connections().len(), serving.control.connections().len()), (4, 4));
    serving.gate.add_permits(5 * STREAMS);
    all(calls).await;
    all(more).await;
    // Nobody needs them: they go, and calls find the one that stays.
    let single = |client: &Client| client.connections().len() == 1;
    bounded("one connection again", async {
        while !single(&client) || serving.control.connections().len() != 1 {
            client.call("/quick", "").await.unwrap();
        }
    })
    .await;
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_count_as_calls_do() {
    let serving = serve(100).await;
    let client = client(&serving, 3).await;
    let mut streams = Vec::new();
    for _ in 0..2 * STREAMS + 1 {
        streams.push(bounded("a stream", client.stream("/slow", "", CallOptions::new())).await.unwrap());
    }
    until("all of them running", || serving.running.load(SeqCst) == 2 * STREAMS + 1).await;
    assert_eq!(client.connections().len(), 3);
    // Those that are given up make room. Handlers that are dropped stay counted.
    streams.truncate(STREAMS);
    let more = call(&client, STREAMS);
    until("further calls", || serving.running.load(SeqCst) == 3 * STREAMS + 1).await;
    assert!(client.connections().len() <= 3);
    serving.gate.add_permits(3 * STREAMS);
    all(more).await;
    client.close_now();
}

#[tokio::test(flavor = "multi_thread")]
async fn by_default_and_where_the_server_takes_no_further_one_calls_wait_for_a_stream() {
    for (most, taken) in [(1, 100), (4, 1)] {
        let serving = serve(taken).await;
        let client = client(&serving, most).await;
        let calls = call(&client, STREAMS + 50);
        until("one connection's streams", || serving.running.load(SeqCst) == STREAMS).await;
        // Those that waited for another connection in vain run as soon as there is room.
        serving.gate.add_permits(1_000);
        all(calls).await;
        client.close().await;
    }
}
