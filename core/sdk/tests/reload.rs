//! Another service config in the place of a client's, while it makes calls.

mod calling;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
};

use calling::{bounded, call_all};
use valkyrie_sdk::{
    Bytes, Client, Code, Reason, Reply, ServerBuilder, ServerControl, Status, handler_fn,
    policy::ServiceConfig,
};

fn config(text: &str) -> ServiceConfig {
    ServiceConfig::parse(text).unwrap()
}

async fn serve(server: ServerBuilder) -> (String, ServerControl) {
    let server = bounded("a bind", server.bind("127.0.0.1:0").build()).await.unwrap();
    let (endpoint, control) = (server.endpoints().remove(0), server.control());
    tokio::spawn(async move { server.start().await });
    (endpoint, control)
}

/// A config of `attempts` attempts within `timeout_s`, which says to the server which one a call has.
fn version(timeout_s: u64, attempts: usize, balance: &str) -> ServiceConfig {
    config(&format!(
        r#"{{"methods": [{{"names": ["/count"], "idempotent": true, "timeout_ms": {}, "breaker": {{"enabled": false}},
            "retry": {{"max_attempts": {attempts}, "base_ms": 1, "cap_ms": 1}}}}],
            "retry_budget": {{"tokens": 1000000, "cost": 1, "extra_percent": 100, "extra_per_second": 1000000}},
            "throttle": {{"enabled": false}}, "balance": {{"policy": "{balance}"}}}}"#,
        timeout_s * 1_000
    ))
}

/// Each call's time limit says under which version it began, and the server lets exactly the last attempt of that version succeed: a
/// call with the time of one and the attempts of another would fail, or change its mind between two attempts.
#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_calls_see_one_version_each_while_a_thousand_take_the_place_of_each_other() {
    const CALLS: usize = 10_000;
    const VERSIONS: [(u64, usize, &str); 3] =
        [(1_000, 2, "least_request"), (2_000, 3, "round_robin"), (3_000, 1, "pick_first")];
    let seen: Arc<Mutex<HashMap<Bytes, (u64, usize)>>> = Arc::default();
    let torn = Arc::new(AtomicUsize::new(0));
    let mut endpoints = Vec::new();
    for _ in 0..2 {
        let (seen, torn) = (seen.clone(), torn.clone());
        let count = handler_fn(move |mut call| {
            let (seen, torn) = (seen.clone(), torn.clone());
            async move {
                let timeout_s = call.remaining().map_or(0, |left| left.as_secs().div_ceil(1_000) * 1_000);
                let message = call.message().await?;
                let attempt = {
                    let mut seen = seen.lock().unwrap();
                    let (first, attempt) = seen.entry(message.clone()).or_insert((timeout_s, 0));
                    torn.fetch_add(usize::from(*first != timeout_s), SeqCst);
                    *attempt += 1;
                    *attempt
                };
                let of = VERSIONS.iter().find(|(timeout, ..)| *timeout == timeout_s);
                match of {
                    Some((_, attempts, _)) if attempt < *attempts => {
                        Err(Status::new(Code::Unavailable, "not yet"))
                    }
                    Some(_) => Ok(Reply::message(message)),
                    None => Err(Status::new(Code::Internal, format!("no version has {timeout_s} s"))),
                }
            }
        });
        endpoints.push(serve(ServerBuilder::new().handler("/count", count)).await.0);
    }
    let [first, ..] = VERSIONS.map(|(timeout, attempts, balance)| version(timeout, attempts, balance));
    let client = Client::builder().endpoint(endpoints.join(",")).service_config(first).build().await.unwrap();

    let over = Arc::new(AtomicBool::new(false));
    let swaps = {
        let (client, over) = (client.clone(), over.clone());
        tokio::spawn(async move {
            let mut swaps = 0;
            while swaps < 1_000 || !over.load(SeqCst) {
                let (timeout, attempts, balance) = VERSIONS[swaps % VERSIONS.len()];
                client.set_service_config(version(timeout, attempts, balance));
                swaps += 1;
                tokio::task::yield_now().await;
            }
            swaps
        })
    };
    let (callers, _) = call_all(&client, 16, CALLS);
    for caller in callers {
        caller.await.unwrap();
    }
    over.store(true, SeqCst);
    let swaps = swaps.await.unwrap();
    assert!(swaps >= 1_000);
    assert_eq!(torn.load(SeqCst), 0, "attempts of one call had another time limit");
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    let versions = VERSIONS.map(|(timeout, attempts, _)| {
        let of: Vec<_> = seen.values().filter(|(seen, _)| *seen == timeout).collect();
        assert!(of.iter().all(|(_, made)| *made == attempts), "{timeout} s");
        of.len()
    });
    println!("{swaps} swaps; calls by version: {versions:?}");
    assert_eq!(versions.iter().sum::<usize>(), CALLS);
    client.close().await;
}

/// A breaker that is open stays so under another config, until that one switches breakers off; the calls that come next pass.
#[tokio::test]
async fn an_open_breaker_stays_open_until_it_is_switched_off() {
    let failing = handler_fn(|_| async { Err(Status::new(Code::Unavailable, "failing")) });
    let (endpoint, _) = serve(ServerBuilder::new().handler("/failing", failing)).await;
    let of = |enabled: bool, window: u64| {
        config(&format!(
            r#"{{"methods": [{{"names": ["*"], "retry": {{"max_attempts": 1}}, "breaker": {{"enabled": {enabled},
                "min_calls": 5, "window_ms": {window}, "open_ms": 60000}}}}], "throttle": {{"enabled": false}}}}"#
        ))
    };
    let client =
        Client::builder().endpoint(endpoint.as_str()).service_config(of(true, 10_000)).build().await.unwrap();
    let call = || async { client.call("/failing", "").await.unwrap_err().reason() };
    for _ in 0..5 {
        assert_eq!(call().await, Reason::NONE);
    }
    assert_eq!(call().await, Reason::BREAKER_OPEN);
    client.set_service_config(of(true, 20_000));
    assert_eq!(call().await, Reason::BREAKER_OPEN);
    client.set_service_config(of(false, 20_000));
    for _ in 0..20 {
        assert_eq!(call().await, Reason::NONE);
    }
    // A method that was never called has the newest policy, too.
    client.set_service_config(of(true, 20_000));
    for _ in 0..5 {
        let status = client.call("/unknown", "").await.unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented);
    }
    assert_eq!(call().await, Reason::NONE);
}

/// The throttle holds calls back until a config has none, and the balance of a new config has the next calls.
#[tokio::test]
async fn the_throttle_and_the_balance_change_at_once() {
    let mut endpoints = Vec::new();
    for name in ["a", "b"] {
        let who = handler_fn(move |_| async move { Ok(Reply::message(name)) });
        let no = handler_fn(|_| async { Err(Status::new(Code::Unavailable, "no")) });
        endpoints.push(serve(ServerBuilder::new().handler("/who", who).handler("/no", no)).await.0);
    }
    let of = |throttle: bool, balance: &str| {
        config(&format!(
            r#"{{"methods": [{{"names": ["*"], "retry": {{"max_attempts": 1}}, "breaker": {{"enabled": false}}}}],
                "throttle": {{"enabled": {throttle}, "min_calls": 10}}, "balance": {{"policy": "{balance}"}}}}"#
        ))
    };
    let client = Client::builder().endpoint(endpoints.join(","));
    let client = client.service_config(of(true, "pick_first")).build().await.unwrap();
    let who = || async { client.call("/who", "").await.unwrap().message };
    for _ in 0..10 {
        assert_eq!(who().await, "a");
    }
    client.set_service_config(of(true, "round_robin"));
    let mut both = [0, 0];
    bounded("the second server's first call", async {
        while both[1] == 0 {
            both[usize::from(who().await == "b")] += 1;
        }
    })
    .await;
    client.set_service_config(of(true, "pick_first"));
    for _ in 0..10 {
        assert_eq!(who().await, "a");
    }
    let throttled = || async {
        let mut throttled = 0;
        for _ in 0..200 {
            throttled += usize::from(client.call("/no", "").await.unwrap_err().reason() == Reason::THROTTLED);
        }
        throttled
    };
    assert!(throttled().await > 0);
    client.set_service_config(of(false, "pick_first"));
    assert_eq!(throttled().await, 0);
    // What is no config changes nothing: it is none.
    ServiceConfig::parse(r#"{"balance": {"policy": "random"}}"#).unwrap_err();
    assert_eq!(who().await, "a");
}
