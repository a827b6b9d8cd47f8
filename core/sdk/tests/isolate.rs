//! A client's breakers as its program sees and sets them, with real servers.

mod calling;

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Wake, Waker},
    time::Duration,
};

use calling::bounded;
use valkyrie_sdk::{
    BreakerInfo, Client, Code, Reason, Reply, ServerBuilder, Status, handler_fn,
    policy::{BreakerState, ServiceConfig},
};

/// A server that says its name by `/who` and `/other`, and fails at `/flaky` as long as it is told to.
async fn serve(name: &'static str, fails: &Arc<AtomicBool>) -> String {
    let who = move || handler_fn(move |_| async move { Ok(Reply::message(name)) });
    let fails = fails.clone();
    let flaky = handler_fn(move |_| {
        let fails = fails.load(SeqCst);
        async move {
            if fails { Err(Status::new(Code::Unavailable, "failing")) } else { Ok(Reply::message(name)) }
        }
    });
    let server = ServerBuilder::new().bind("127.0.0.1:0");
    let server = server.handler("/who", who()).handler("/other", who()).handler("/flaky", flaky);
    let server = bounded("a bind", server.build()).await.unwrap();
    let endpoint = server.endpoints().remove(0);
    tokio::spawn(async move { server.start().await });
    endpoint
}

async fn client(endpoint: &str) -> Client {
    let text = r#"{"methods": [{"names": ["*"], "retry": {"max_attempts": 1},
        "breaker": {"min_calls": 5, "open_ms": 100, "probes": 2}}], "balance": {"policy": "round_robin"},
        "throttle": {"enabled": false}}"#;
    let config = ServiceConfig::parse(text).unwrap();
    bounded("a connect", Client::builder().endpoint(endpoint).service_config(config).build()).await.unwrap()
}

fn shown(breakers: &[BreakerInfo]) -> Vec<(&str, Option<&str>, BreakerState)> {
    breakers.iter().map(|one| (one.server.as_str(), one.method.as_deref(), one.state)).collect()
}

#[tokio::test]
async fn an_isolated_server_gets_no_calls_until_it_is_restored() {
    let fails = Arc::default();
    let (a, b) = (serve("a", &fails).await, serve("b", &fails).await);
    let client = client(&format!("{a},{b}")).await;
    let call = async |method: &str| client.call(method, "").await.map(|answer| answer.message);
    // Before its first call.
    client.isolate(&a, None).unwrap();
    client.isolate(&a, None).unwrap();
    assert_eq!(shown(&client.breakers()), [(&*a, None, BreakerState::Isolated)]);
    for _ in 0..50 {
        assert_eq!(call("/who").await.unwrap(), "b");
    }
    // One method of the other one: nobody has it then.
    client.isolate(&b, Some("/who")).unwrap();
    assert_eq!(call("/who").await.unwrap_err().reason(), Reason::BREAKER_OPEN);
    assert_eq!(call("/other").await.unwrap(), "b");
    client.isolate(&b, None).unwrap();
    assert_eq!(call("/other").await.unwrap_err().reason(), Reason::BREAKER_OPEN);
    // A name beyond those that have a breaker of their own.
    let long = format!("/{}", "x".repeat(600));
    assert_eq!(call(&long).await.unwrap_err().reason(), Reason::BREAKER_OPEN);
    client.ready().await.unwrap();

    client.restore(&a, None).unwrap();
    assert_eq!(call("/who").await.unwrap(), "a");
    client.restore(&b, None).unwrap();
    client.restore(&b, None).unwrap();
    let mut both = [false; 2];
    bounded("both of them", async {
        while both != [true; 2] {
            both[usize::from(call("/who").await.unwrap() == "b")] = true;
        }
    })
    .await;
    assert!(client.breakers().iter().all(|one| one.state == BreakerState::Closed));
}

#[tokio::test]
async fn what_cannot_be_isolated_is_said() {
    let a = serve("a", &Arc::default()).await;
    let client = client(&a).await;
    let reason = |result: Result<(), Status>| result.unwrap_err().reason();
    assert_eq!(reason(client.isolate("nowhere", None)), Reason::INVALID_ENDPOINT);
    let status = client.isolate("tcp://127.0.0.1:1", None).unwrap_err();
    assert_eq!(status.reason(), Reason::INVALID_ARGUMENT);
    assert!(
        status.message().contains("tcp://127.0.0.1:1; it has ") && status.message().contains(&a),
        "{status}"
    );
    assert_eq!(reason(client.isolate(&a, Some(&"x".repeat(600)))), Reason::INVALID_ARGUMENT);
    client.restore(&a, Some("/never")).unwrap();
    assert_eq!(client.call("/who", "").await.unwrap().message, "a");
}

#[tokio::test]
async fn a_breaker_that_opens_tries_and_closes_is_seen_without_asking_again() {
    let fails = Arc::new(AtomicBool::new(true));
    let a = serve("a", &fails).await;
    let client = client(&a).await;
    client.call("/who", "").await.unwrap();
    let before = client.breakers();
    assert_eq!(shown(&before), [(&*a, Some("/who"), BreakerState::Closed)]);
    assert_eq!((before[0].age, before[0].calls, before[0].failures, before[0].changes), (None, 1, 0, 0));

    let watch = |seen: Vec<BreakerInfo>| {
        let client = client.clone();
        tokio::spawn(async move { client.breakers_other_than(&seen).await.unwrap() })
    };
    let opened = watch(before);
    for number in 0..5 {
        assert!(!opened.is_finished(), "{number}");
        client.call("/flaky", "").await.unwrap_err();
    }
    let opened = bounded("the breaker that opens", opened).await.unwrap();
    let flaky = opened.iter().find(|one| one.method.as_deref() == Some("/flaky")).unwrap();
    assert_eq!((flaky.state, flaky.calls, flaky.failures, flaky.changes), (BreakerState::Open, 5, 5, 1));
    assert!(flaky.opens_for.unwrap() <= Duration::from_millis(100), "{flaky:?}");

    fails.store(false, SeqCst);
    let tries = watch(opened.clone());
    bounded("the trial calls", async {
        let mut passed = 0;
        while passed < 2 {
            passed += usize::from(client.call("/flaky", "").await.is_ok());
            tokio::task::yield_now().await;
        }
    })
    .await;
    let tries = bounded("the breaker that tries", tries).await.unwrap();
    let mut last = tries;
    bounded("the breaker that closes", async {
        while last.iter().any(|one| one.state != BreakerState::Closed) {
            last = client.breakers_other_than(&last).await.unwrap();
        }
    })
    .await;
    let flaky = last.iter().find(|one| one.method.as_deref() == Some("/flaky")).unwrap();
    assert_eq!((flaky.changes, flaky.opens_for), (3, None));

    // By hand, too.
    let isolated = watch(last);
    client.isolate(&a, Some("/who")).unwrap();
    let isolated = bounded("the isolation", isolated).await.unwrap();
    assert!(shown(&isolated).contains(&(&*a, Some("/who"), BreakerState::Isolated)), "{isolated:?}");
}

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

#[tokio::test]
async fn who_gives_up_waiting_for_a_breaker_takes_nobodys_place() {
    let a = serve("a", &Arc::default()).await;
    let client = client(&a).await;
    let before = client.breakers();
    // Both wait in one task, so by one waker.
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(woken.clone());
    let mut cx = Context::from_waker(&waker);
    let mut stays = pin!(client.breakers_other_than(&before));
    let mut leaves = Box::pin(client.breakers_other_than(&before));
    assert!(stays.as_mut().poll(&mut cx).is_pending() && leaves.as_mut().poll(&mut cx).is_pending());
    drop(leaves);
    client.isolate(&a, None).unwrap();
    assert!(woken.0.load(SeqCst));
    let isolated = bounded("the other one", stays).await.unwrap();
    assert_eq!(shown(&isolated), [(&*a, None, BreakerState::Isolated)]);
}

#[tokio::test]
async fn nobody_waits_for_the_breakers_of_a_client_that_is_closed() {
    let a = serve("a", &Arc::default()).await;
    let client = client(&a).await;
    let other = client.clone();
    let wait = tokio::spawn(async move { other.breakers_other_than(&[]).await });
    tokio::task::yield_now().await;
    assert!(!wait.is_finished());
    client.close().await;
    let ended = bounded("the wait's end", wait).await.unwrap().unwrap_err();
    assert_eq!(ended.reason(), Reason::CLIENT_CLOSED);
    let later = bounded("a later one's", client.breakers_other_than(&[])).await.unwrap_err();
    assert_eq!(later.reason(), Reason::CLIENT_CLOSED);
}
