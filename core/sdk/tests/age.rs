//! Connections that drain while calls are made over them: of age, and with their server. No call is lost, and none is run twice.

mod calling;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use calling::bounded;
use valkyrie_sdk::{Bytes, CallOptions, Client, Reason, Reply, Server, ServerBuilder, Status, handler_fn};

/// How often each call was run.
type Executed = Arc<Mutex<HashMap<Bytes, usize>>>;

async fn server(builder: ServerBuilder, executed: &Executed) -> Server {
    let executed = executed.clone();
    let count = handler_fn(move |mut call| {
        let executed = executed.clone();
        async move {
            let message = call.message().await?;
            *executed.lock().unwrap().entry(message.clone()).or_default() += 1;
            // The handler's work: nobody waits by it.
            tokio::time::sleep(Duration::from_millis(1)).await;
            Ok(Reply::message(message))
        }
    });
    let hang = handler_fn(|_| std::future::pending::<Result<Reply, Status>>());
    builder.handler("/count", count).handler("/hang", hang).build().await.unwrap()
}

fn bound() -> ServerBuilder {
    ServerBuilder::new().bind("127.0.0.1:0")
}

/// Calls that may be run once at most, from many tasks until told.
fn call_until(
    client: &Client,
    over: &Arc<AtomicBool>,
    made: &Arc<AtomicUsize>,
) -> Vec<tokio::task::JoinHandle<()>> {
    (0..16)
        .map(|_| {
            let (client, over, made) = (client.clone(), over.clone(), made.clone());
            tokio::spawn(async move {
                while !over.load(SeqCst) {
                    let number = made.fetch_add(1, SeqCst).to_string();
                    let answer = bounded("a call", client.call("/count", number.clone())).await;
                    assert_eq!(answer.unwrap_or_else(|status| panic!("{number}: {status}")).message, number);
                }
            })
        })
        .collect()
}

// spec: W9-19
#[tokio::test(flavor = "multi_thread")]
async fn connections_of_age_go_and_no_call_is_lost() {
    let executed = Executed::default();
    let server = server(bound().max_connection_age_ms(50), &executed).await;
    let (endpoint, control) = (server.endpoints().remove(0), server.control());
    tokio::spawn(async move { server.start().await });
    let client = Client::connect(&endpoint).await.unwrap();
    let (over, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let callers = call_until(&client, &over, &made);
    bounded("twenty connections", async {
        while control.stats().connections_total < 20 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    over.store(true, SeqCst);
    for caller in callers {
        caller.await.unwrap();
    }
    let executed = executed.lock().unwrap();
    assert_eq!(executed.len(), made.load(SeqCst));
    assert!(executed.values().all(|count| *count == 1));
    control.shutdown_now();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_for_longer_than_the_grace_is_cut() {
    let server =
        server(bound().max_connection_age_ms(20).connection_grace_ms(50), &Executed::default()).await;
    let (endpoint, control) = (server.endpoints().remove(0), server.control());
    tokio::spawn(async move { server.start().await });
    let client = Client::connect(&endpoint).await.unwrap();
    let (_send, mut recv) = client.open("/hang", CallOptions::new()).await.unwrap();
    let status = bounded("the end of the stream", recv.recv()).await.unwrap_err();
    assert_eq!(status.reason(), Reason::CONNECTION_LOST, "{status}");
    bounded("the server's end of it", async {
        while control.stats().connections > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let none = bound().max_connection_age_ms(0).build().await;
    assert_eq!(none.map(drop).unwrap_err().reason(), Reason::INVALID_CONFIGURATION);
    control.shutdown_now();
}

/// Servers that take turns in going away gently while many calls are made, none of which may be run twice.
// spec: W9-19
#[tokio::test(flavor = "multi_thread")]
async fn servers_restart_in_turn_and_no_call_is_lost() {
    let executed = Executed::default();
    let mut servers = Vec::new();
    for _ in 0..3 {
        let server = server(bound(), &executed).await;
        let (address, control) = (server.local_addr().unwrap(), server.control());
        servers.push((address, control, tokio::spawn(async move { server.start().await })));
    }
    let list: Vec<_> = servers.iter().map(|(address, ..)| format!("tcp://{address}")).collect();
    let client = Client::builder().endpoint(list.join(",")).build().await.unwrap();
    let (over, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let callers = call_until(&client, &over, &made);
    for round in 0..6 {
        let (address, control, serving) = &mut servers[round % 3];
        let before = made.load(SeqCst);
        bounded("calls", async {
            while made.load(SeqCst) < before + 200 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        bounded("a shutdown", control.shutdown()).await;
        (&mut *serving).await.unwrap().unwrap();
        assert_eq!(control.stats().calls_cut, 0);
        let server = server(ServerBuilder::new().bind(address.to_string()), &executed).await;
        *control = server.control();
        *serving = tokio::spawn(async move { server.start().await });
    }
    over.store(true, SeqCst);
    for caller in callers {
        caller.await.unwrap();
    }
    let executed = executed.lock().unwrap();
    assert_eq!(executed.len(), made.load(SeqCst));
    assert!(executed.values().all(|count| *count == 1));
    servers.iter().for_each(|(_, control, _)| control.shutdown_now());
}
