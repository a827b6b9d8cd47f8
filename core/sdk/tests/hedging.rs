//! Copies of a call beside the first: servers that answer, hang and fail on real sockets, and a count of what each of them began.

mod calling;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use calling::{bounded, until};
use valkyrie_sdk::{
    Bytes, CallOptions, Client, Code, Reason, Reply, ServerBuilder, ServerControl, Status, handler_fn,
    policy::ServiceConfig,
};

const ANSWERS: usize = 0;
const HANGS: usize = 1;
const FAILS: usize = 2;
const REFUSES: usize = 3;
const PUSHES_BACK: usize = 4;
const PUSHES_FAR_BACK: usize = 5;

#[derive(Default)]
struct Counts {
    behaviour: AtomicUsize,
    begun: AtomicUsize,
    given_up: AtomicUsize,
}

/// Counts a handler that is dropped where it waits.
struct GivenUp(Arc<Counts>);

impl Drop for GivenUp {
    fn drop(&mut self) {
        self.0.given_up.fetch_add(1, SeqCst);
    }
}

struct Serving {
    endpoint: String,
    counts: Arc<Counts>,
    control: ServerControl,
}

impl Serving {
    fn behave(&self, behaviour: usize) {
        self.counts.behaviour.store(behaviour, SeqCst);
    }

    fn begun(&self) -> usize {
        self.counts.begun.load(SeqCst)
    }

    fn given_up(&self) -> usize {
        self.counts.given_up.load(SeqCst)
    }
}

async fn serve(behaviour: usize) -> Serving {
    let counts = Arc::new(Counts { behaviour: behaviour.into(), ..Counts::default() });
    let all = counts.clone();
    let work = handler_fn(move |mut call| {
        let counts = all.clone();
        async move {
            let message = call.message().await?;
            counts.begun.fetch_add(1, SeqCst);
            let unavailable = Status::new(Code::Unavailable, "failing");
            match counts.behaviour.load(SeqCst) {
                ANSWERS => Ok(Reply::message(message)),
                FAILS => Err(unavailable),
                REFUSES => Err(Status::from_reason(Reason::PERMISSION_DENIED, "no")),
                PUSHES_BACK => Err(unavailable.with_pushback(Duration::from_millis(200))),
                PUSHES_FAR_BACK => Err(unavailable.with_pushback(Duration::from_secs(3_600))),
                _ => {
                    let _given_up = GivenUp(counts);
                    std::future::pending().await
                }
            }
        }
    });
    let server = ServerBuilder::new().bind("127.0.0.1:0").handler("/work", work).build().await.unwrap();
    let serving = Serving { endpoint: server.endpoints().remove(0), counts, control: server.control() };
    tokio::spawn(async move { server.start().await });
    serving
}

/// A client of these servers, connected to each. Nothing but hedging does anything about failures.
async fn client(servers: &[&Serving], hedge: &str, more: &str) -> Client {
    let text = format!(
        r#"{{"methods": [{{"names": ["/work"], "idempotent": true, "hedge": {{"enabled": true{hedge}}},
        "breaker": {{"enabled": false}}}}], "throttle": {{"enabled": false}}, "outlier": {{"enabled": false}},
        "balance": {{"policy": "round_robin"}}{more}}}"#
    );
    let config = ServiceConfig::parse(&text).unwrap();
    let endpoints: Vec<_> = servers.iter().map(|serving| serving.endpoint.as_str()).collect();
    let client = Client::builder().endpoint(endpoints.join(",")).service_config(config);
    let client = bounded("a connect", client.build()).await.unwrap();
    bounded("all connections", async {
        while client.connections().len() < servers.len() {
            let _ = client.call("/nothing", "").await;
        }
    })
    .await;
    client
}

fn unlimited() -> CallOptions {
    CallOptions::new().with_timeout(Duration::MAX)
}

/// One of two servers hangs: each call is answered by the other one, which gets one copy of it, and the copy that hangs is given up.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_delays_a_call_and_no_more() {
    let (slow, fast) = (serve(HANGS).await, serve(ANSWERS).await);
    let client = client(&[&slow, &fast], r#", "delay_ms": 20"#, "").await;
    for number in 0..20 {
        let call = client.call_with("/work", number.to_string(), unlimited());
        assert_eq!(bounded("a call", call).await.unwrap().message, number.to_string());
    }
    assert_eq!(fast.begun(), 20);
    assert!((5..=20).contains(&slow.begun()), "{} of 20 by turns", slow.begun());
    until("the losers' end", || slow.given_up() == slow.begun()).await;
    assert_eq!(fast.given_up(), 0);

    // Whoever gives the call up gives up all of its copies.
    let (slow_before, fast_before) = (slow.begun(), fast.begun());
    fast.behave(HANGS);
    let call = {
        let client = client.clone();
        tokio::spawn(async move { client.call_with("/work", "", unlimited()).await.map(drop) })
    };
    until("two copies", || slow.begun() > slow_before && fast.begun() > fast_before).await;
    call.abort();
    until("both copies' end", || slow.given_up() == slow.begun() && fast.given_up() == 1).await;
    assert_eq!(
        (slow.begun(), fast.begun()),
        (slow_before + 1, fast_before + 1),
        "two copies are the default"
    );
    slow.control.shutdown_now();
    fast.control.shutdown_now();
}

/// Copies are for calls that may be executed twice, and cost what retries cost.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sent_twice_unasked_or_unpaid() {
    let slow = serve(HANGS).await;
    let begin = |client: Client| {
        tokio::spawn(async move { client.call_with("/work", "", unlimited()).await.map(drop) })
    };
    // One that is copied after the same 10 ms, and began later: by its copy the other one would have had its own.
    let copied = client(&[&slow], r#", "delay_ms": 10"#, "").await;
    let sent = |client: &Client| client.metrics().servers[0].attempts;
    let copies_of = async |client: Client| {
        let (before, of_call, of_copied) = (slow.begun(), sent(&client), sent(&copied));
        let waiting = begin(client.clone());
        until("the call", || slow.begun() > before).await;
        let beside = begin(copied.clone());
        until("the copy of the other", || sent(&copied) == of_copied + 2).await;
        waiting.abort();
        beside.abort();
        until("their end", || slow.given_up() == slow.begun()).await;
        sent(&client) - of_call
    };
    let call = async |hedge: &str, more: &str| copies_of(client(&[&slow], hedge, more).await).await;
    for (copies, hedge) in [(2, r#", "delay_ms": 10"#), (4, r#", "delay_ms": 10, "max_copies": 4"#)] {
        // To the same server where it is the only one.
        let (before, client) = (slow.begun(), client(&[&slow], hedge, "").await);
        let waiting = begin(client);
        until("its copies", || slow.begun() >= before + copies).await;
        waiting.abort();
        until("their end", || slow.given_up() == slow.begun()).await;
        assert_eq!(slow.begun() - before, copies);
    }
    assert_eq!(call(r#", "delay_ms": 10, "max_copies": 1"#, "").await, 1);
    assert_eq!(call(r#", "delay_ms": 10"#, r#", "retry_budget": {"tokens": 0}"#).await, 1);
    // Before a hundred calls were measured nobody knows what is slow.
    assert_eq!(call("", "").await, 1);

    let text = r#"{"methods": [{"names": ["*"], "hedge": {"enabled": true, "delay_ms": 10}}]}"#;
    let config = ServiceConfig::parse(text).unwrap();
    let client = Client::builder().endpoint(slow.endpoint.as_str()).service_config(config);
    assert_eq!(copies_of(client.build().await.unwrap()).await, 1, "not idempotent");
    slow.control.shutdown_now();
}

/// A failure that another server may not have sends the next copy at once, or after the pushback; any other ends the call.
#[tokio::test(flavor = "multi_thread")]
async fn a_failure_sends_the_next_copy_or_ends_the_call() {
    let (bad, good) = (serve(FAILS).await, serve(ANSWERS).await);
    let both = client(&[&bad, &good], r#", "delay_ms": 3600000"#, "").await;
    for _ in 0..4 {
        bounded("a call", both.call_with("/work", "", unlimited())).await.unwrap();
    }
    assert_eq!((bad.begun(), good.begun()), (2, 4), "by turns");

    let alone = client(&[&bad], r#", "delay_ms": 3600000"#, "").await;
    let failing = async |behaviour| {
        bad.behave(behaviour);
        let before = bad.begun();
        let status = bounded("a call", alone.call_with("/work", "", unlimited())).await.unwrap_err();
        (status.code(), bad.begun() - before)
    };
    assert_eq!(failing(FAILS).await, (Code::Unavailable, 2));
    assert_eq!(failing(REFUSES).await, (Code::PermissionDenied, 1));
    let began = tokio::time::Instant::now();
    assert_eq!(failing(PUSHES_BACK).await, (Code::Unavailable, 2));
    assert!(began.elapsed() >= Duration::from_millis(200));

    // A call of which nothing is under way ends with its client.
    bad.behave(PUSHES_FAR_BACK);
    let before = bad.begun();
    let waiting = {
        let client = alone.clone();
        tokio::spawn(async move { client.call_with("/work", "", unlimited()).await.map(drop) })
    };
    until("the first copy", || bad.begun() > before).await;
    alone.close().await;
    let status = bounded("the call", waiting).await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    bad.control.shutdown_now();
    good.control.shutdown_now();
}

/// Without a delay that is configured, the method's own calls say how long it is usual to wait.
#[tokio::test(flavor = "multi_thread")]
async fn the_delay_is_learnt() {
    let (first, second) = (serve(ANSWERS).await, serve(ANSWERS).await);
    let client = client(&[&first, &second], "", "").await;
    let call =
        async |message: Bytes| bounded("a call", client.call_with("/work", message, unlimited())).await;
    for number in 0..200 {
        call(number.to_string().into()).await.unwrap();
    }
    first.behave(HANGS);
    let before = first.begun();
    for number in 0..6 {
        call(number.to_string().into()).await.unwrap();
    }
    assert!(first.begun() > before);
    until("the losers' end", || first.given_up() >= first.begun() - before).await;
    first.control.shutdown_now();
    second.control.shutdown_now();
}
