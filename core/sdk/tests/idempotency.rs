//! Calls with idempotency keys: run once, answered as often as they are asked, over connections that break.

mod calling;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use calling::bounded;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Notify, Semaphore},
};
use valkyrie_sdk::{
    CallOptions, Client, Code, Metadata, Reason, Reply, ServerBuilder, ServerControl, Status, handler_fn,
    policy::DedupPolicy,
};

struct Serving {
    endpoint: String,
    control: ServerControl,
    /// How often a handler was run.
    runs: Arc<AtomicUsize>,
    /// A handler came to its gate.
    begun: Arc<Notify>,
    gate: Arc<Semaphore>,
}

/// `/count` answers with the number of its run, `/gate` when it is let go, `/fail` fails as its message says.
async fn serve(dedup: Option<DedupPolicy>) -> Serving {
    let runs = Arc::new(AtomicUsize::new(0));
    let (begun, gate) = (Arc::new(Notify::new()), Arc::new(Semaphore::new(0)));
    let counted = runs.clone();
    let count = handler_fn(move |mut call| {
        let counted = counted.clone();
        async move {
            call.message().await?;
            Ok(Reply::message((counted.fetch_add(1, SeqCst) + 1).to_string()))
        }
    });
    let (counted, told, open) = (runs.clone(), begun.clone(), gate.clone());
    let gated = handler_fn(move |_| {
        let (counted, told, open) = (counted.clone(), told.clone(), open.clone());
        async move {
            let number = counted.fetch_add(1, SeqCst) + 1;
            told.notify_one();
            open.acquire().await.unwrap().forget();
            Ok(Reply::message(number.to_string()))
        }
    });
    let counted = runs.clone();
    let fail = handler_fn(move |mut call| {
        let counted = counted.clone();
        async move {
            let message = call.message().await?;
            let number = counted.fetch_add(1, SeqCst) + 1;
            let status = Status::new(Code::NotFound, format!("run {number}")).with_detail("d", "detail");
            match &message[..] {
                b"later" => Err(status.with_pushback(Duration::from_millis(1))),
                b"never" => Err(status.with_pushback(Duration::MAX)),
                b"panic" => panic!("on purpose"),
                _ => Err(status),
            }
        }
    });
    let mut server = ServerBuilder::new()
        .bind("127.0.0.1:0")
        .handler("/count", count)
        .handler("/gate", gated)
        .handler("/fail", fail);
    if let Some(policy) = dedup {
        server = server.dedup(policy);
    }
    let server = server.build().await.unwrap();
    let (endpoint, control) = (server.endpoints().remove(0), server.control());
    tokio::spawn(async move { server.start().await });
    Serving { endpoint, control, runs, begun, gate }
}

fn keyed(key: &'static str) -> CallOptions {
    CallOptions::new().with_idempotency_key(key)
}

/// As another attempt says it, which was sent first so long ago.
fn again(key: &str, age: &str) -> CallOptions {
    let metadata = Metadata::new().with("valkyrie-idempotency-key-bin", key.to_owned()).unwrap();
    CallOptions::new().with_metadata(metadata.with("valkyrie-key-age-ms", age.to_owned()).unwrap())
}

// spec: W5-11, W5-12
#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_run_once_and_answered_each_time() {
    let server = serve(Some(DedupPolicy::default())).await;
    let mut callers = Vec::new();
    for _ in 0..8 {
        let client = Client::connect(&server.endpoint).await.unwrap();
        callers.push(tokio::spawn(async move {
            bounded("a call", client.call_with("/gate", "x", keyed("one"))).await.unwrap()
        }));
    }
    bounded("a run", server.begun.notified()).await;
    let all_are_there = async {
        while server.control.stats().running < 8 {
            tokio::task::yield_now().await;
        }
    };
    bounded("the others", all_are_there).await;
    server.gate.add_permits(1);
    let mut replayed = 0;
    for caller in callers {
        let answer = caller.await.unwrap();
        assert_eq!(answer.message, "1");
        replayed += usize::from(answer.metadata.get_str("valkyrie-replayed") == Some("true"));
    }
    assert_eq!((replayed, server.runs.load(SeqCst)), (7, 1));

    let client = Client::connect(&server.endpoint).await.unwrap();
    let later = client.call_with("/gate", "x", keyed("one")).await.unwrap();
    assert_eq!((&later.message[..], later.metadata.get_str("valkyrie-replayed")), (&b"1"[..], Some("true")));
    // Another method, another key: another call.
    for (options, run) in [
        (keyed("one"), "2"),
        (keyed("two"), "3"),
        (CallOptions::new().with_drawn_idempotency_key(), "4"),
        (CallOptions::new().with_drawn_idempotency_key(), "5"),
        (CallOptions::new(), "6"),
        (CallOptions::new(), "7"),
        (keyed("two"), "3"),
    ] {
        assert_eq!(client.call_with("/count", "x", options).await.unwrap().message, run);
    }
    // What has no meaning yet has none.
    let unknown = Metadata::new().with("valkyrie-idempotency-key", "two").unwrap();
    let answer = client.call_with("/count", "x", CallOptions::new().with_metadata(unknown)).await.unwrap();
    assert_eq!(answer.message, "8");
    // A message that takes many frames is one, too.
    let large = vec![7; 1 << 20];
    for _ in 0..2 {
        assert_eq!(client.call_with("/count", large.clone(), keyed("large")).await.unwrap().message, "9");
    }
    let status = client.call_with("/count", "y", keyed("two")).await.unwrap_err();
    assert_eq!(status.reason(), Reason::INVALID_ARGUMENT, "{status}");
    assert!(status.message().contains("another request"), "{status}");
    assert_eq!(server.runs.load(SeqCst), 9);
    server.control.shutdown_now();
}

// spec: W5-12
#[tokio::test]
async fn errors_are_answers_but_those_that_ask_for_another_try() {
    let server = serve(Some(DedupPolicy::default())).await;
    let client = Client::connect(&server.endpoint).await.unwrap();
    let fail = async |message: &'static str| {
        client.call_with("/fail", message, keyed(message)).await.map(drop).unwrap_err()
    };
    for _ in 0..2 {
        let status = fail("wrong").await;
        assert_eq!((status.code(), status.message()), (Code::NotFound, "run 1"));
        assert_eq!(status.details()[0].value, "detail");
    }
    assert_eq!((fail("never").await.message(), fail("never").await.message()), ("run 2", "run 2"));
    assert_eq!((fail("later").await.message(), fail("later").await.message()), ("run 3", "run 4"));
    assert_eq!(fail("panic").await.reason(), Reason::HANDLER_PANICKED);
    assert_eq!(fail("panic").await.reason(), Reason::CANCELLED);
    assert_eq!(server.runs.load(SeqCst), 5);
    server.control.shutdown_now();
}

/// Between a client and a server. The first connection is cut when told.
async fn cuttable(server: &str) -> (String, Arc<Notify>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("tcp://{}", listener.local_addr().unwrap());
    let (target, cut) = (server.strip_prefix("tcp://").unwrap().to_owned(), Arc::new(Notify::new()));
    let told = cut.clone();
    tokio::spawn(async move {
        let mut first = true;
        while let Ok((mut client, _)) = listener.accept().await {
            let (target, told, is_first) = (target.clone(), told.clone(), std::mem::take(&mut first));
            tokio::spawn(async move {
                let mut server = TcpStream::connect(target).await.unwrap();
                let (mut from_client, mut from_server) = (vec![0; 65_536], vec![0; 65_536]);
                loop {
                    tokio::select! {
                        () = told.notified(), if is_first => return,
                        read = client.read(&mut from_client) => {
                            let Ok(len @ 1..) = read else { return };
                            if server.write_all(&from_client[..len]).await.is_err() { return }
                        }
                        read = server.read(&mut from_server) => {
                            let Ok(len @ 1..) = read else { return };
                            if client.write_all(&from_server[..len]).await.is_err() { return }
                        }
                    }
                }
            });
        }
    });
    (endpoint, cut)
}

/// The connection breaks while the handler runs: the call is sent again, and gets the answer of the run that went on.
// spec: W5-13, W5-14
#[tokio::test(flavor = "multi_thread")]
async fn a_run_outlives_its_connection() {
    let server = serve(Some(DedupPolicy::default())).await;
    let (endpoint, cut) = cuttable(&server.endpoint).await;
    let client = Client::connect(&endpoint).await.unwrap();
    let call = tokio::spawn(async move {
        let options = CallOptions::new().with_drawn_idempotency_key().with_timeout(Duration::from_secs(60));
        client.call_with("/gate", "x", options).await
    });
    bounded("a run", server.begun.notified()).await;
    cut.notify_one();
    let second = async {
        while server.control.stats().connections_total < 2 || server.control.stats().running < 1 {
            tokio::task::yield_now().await;
        }
    };
    bounded("another attempt", second).await;
    server.gate.add_permits(1);
    let answer = bounded("the answer", call).await.unwrap().unwrap();
    assert_eq!((&answer.message[..], server.runs.load(SeqCst)), (&b"1"[..], 1));
    assert_eq!(answer.metadata.get_str("valkyrie-replayed"), Some("true"));
    server.control.shutdown_now();
}

/// The caller gives up: the handler ends, and the key is not run again.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_given_up_is_not_run_again() {
    let server = serve(Some(DedupPolicy::default())).await;
    let client = Client::connect(&server.endpoint).await.unwrap();
    let call = {
        let client = client.clone();
        tokio::spawn(async move { client.call_with("/gate", "x", keyed("key")).await })
    };
    bounded("a run", server.begun.notified()).await;
    call.abort();
    let ended = async {
        while server.control.stats().running > 0 {
            tokio::task::yield_now().await;
        }
    };
    bounded("the end of the handler", ended).await;
    let status = bounded("a call", client.call_with("/gate", "x", keyed("key"))).await.unwrap_err();
    assert_eq!((status.reason(), server.runs.load(SeqCst)), (Reason::CANCELLED, 1), "{status}");
    server.control.shutdown_now();
}

// spec: W5-13
#[tokio::test]
async fn what_may_have_been_forgotten_is_not_run_again() {
    let one = DedupPolicy { capacity: 1, ..DedupPolicy::default() };
    for policy in [Some(one), None] {
        let server = serve(policy).await;
        let client = Client::connect(&server.endpoint).await.unwrap();
        client.call_with("/count", "x", keyed("first")).await.unwrap();
        // Takes its place.
        client.call_with("/count", "x", keyed("second")).await.unwrap();
        let forgotten = client.call_with("/count", "x", again("first", "600000")).await.unwrap_err();
        assert_eq!(forgotten.reason(), Reason::KEY_FORGOTTEN, "{forgotten}");
        assert_eq!(forgotten.code(), Code::FailedPrecondition);
        // Of a time before the server was there, too.
        let unknown = client.call_with("/count", "x", again("third", "600000")).await.unwrap_err();
        assert_eq!(unknown.reason(), Reason::KEY_FORGOTTEN, "{unknown}");
        assert_eq!(server.runs.load(SeqCst), 2, "{policy:?}");
        server.control.shutdown_now();
    }
}

#[tokio::test]
async fn what_is_no_key_is_refused_on_both_sides() {
    let server = serve(Some(DedupPolicy::default())).await;
    let client = Client::connect(&server.endpoint).await.unwrap();
    let long: &str = "kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk";
    for (options, says) in [
        (keyed(""), "this one is 0"),
        (keyed(long), "this one is 65"),
        (again("", "1"), "this one is 0"),
        (again(long, "1"), "this one is 65"),
        (again("key", "soon"), "whole number"),
        (again("key", "99999999999999999999999"), "whole number"),
    ] {
        let status = client.call_with("/count", "x", options).await.unwrap_err();
        assert_eq!(status.reason(), Reason::INVALID_ARGUMENT, "{status}");
        assert!(status.message().contains(says), "{status}");
    }
    let status = client.open("/count", keyed("key")).await.map(drop).unwrap_err();
    assert_eq!(status.reason(), Reason::INVALID_ARGUMENT, "{status}");
    // A stream that says it by hand.
    let (mut send, mut recv) = client.open("/count", again("stream", "0")).await.unwrap();
    send.send("one").await.unwrap();
    send.send("two").await.unwrap();
    send.finish().await.unwrap();
    assert_eq!(recv.recv().await.unwrap_err().reason(), Reason::INVALID_ARGUMENT);
    assert_eq!(server.runs.load(SeqCst), 0);

    let none = DedupPolicy { capacity: 0, ..DedupPolicy::default() };
    let status = ServerBuilder::new().bind("127.0.0.1:0").dedup(none).build().await.map(drop).unwrap_err();
    assert!(status.message().contains("capacity"), "{status}");
    server.control.shutdown_now();
}
