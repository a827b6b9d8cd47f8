//! Outages of minutes in virtual time: what a client's policies make of them, together, as one sees it from outside. The servers are
//! scripts (docs/policies.md), so a seed gives the same steps each time.
#![cfg(feature = "script")]

use valkyrie_sdk::{
    CallOptions, Client, Code,
    policy::{Random, ServiceConfig},
};

async fn client(endpoint: &str, config: &str) -> Client {
    let config = ServiceConfig::parse(config).unwrap();
    Client::builder().endpoint(endpoint).service_config(config).build().await.unwrap()
}

async fn sleep(client: &Client, ms: u64) {
    client.call(&format!("/script/sleep/{ms}"), "").await.unwrap();
}

async fn trace(client: &Client) -> String {
    String::from_utf8(client.call("/script/trace", "").await.unwrap().message.to_vec()).unwrap()
}

/// The lines of a trace: when, in microseconds, and what.
fn steps(trace: &str) -> impl Iterator<Item = (u64, &str)> {
    trace.lines().map(|line| {
        let (time, what) = line.split_once(' ').unwrap();
        (time.replace('.', "").parse().unwrap(), what)
    })
}

fn sent(what: &str) -> bool {
    // `attempt 1 a`, while its end has a code behind the server.
    what.starts_with("attempt ") && what.split(' ').count() == 3
}

fn idempotent() -> CallOptions {
    CallOptions::new().with_idempotent(true)
}

/// A server that refuses everything for a minute gets hardly more than the calls that are made, and after it recovers is trusted again.
#[tokio::test]
async fn an_outage_is_not_amplified() {
    // By the retry budget alone, and with the throttle.
    for (seed, throttled) in (1..=6).map(|seed| (seed, seed % 2 == 0)) {
        let endpoint = format!("script://a/seed={seed};0ms-60000ms=UNAVAILABLE");
        let config = format!(
            r#"{{"methods": [{{"names": ["*"], "breaker": {{"enabled": false}}}}], "throttle": {{"enabled": {throttled}}}}}"#
        );
        let client = client(&endpoint, &config).await;
        let (mut calls, mut attempts, mut late) = (0, 0, 0);
        for number in 0..9_000 {
            let answer = client.call_with("/echo", "", idempotent()).await;
            sleep(&client, 10).await;
            let trace = trace(&client).await;
            let now = steps(&trace).last().unwrap().0;
            if now < 60_000_000 {
                calls += 1;
                attempts += steps(&trace).filter(|(_, what)| sent(what)).count();
            } else if answer.is_err() && now > 75_000_000 {
                late += 1;
            }
            assert!(number < 10 || now > 10_000, "seed {seed}: time goes on");
        }
        let amplified = attempts as f64 / f64::from(calls);
        assert!(amplified <= 1.1, "seed {seed}: {attempts} attempts of {calls} calls");
        assert_eq!(late, 0, "seed {seed}: calls that fail 15 s after the outage");
    }
}

/// One server of three that fails every call is seen by less than one call in a hundred after two seconds.
#[tokio::test]
async fn one_bad_server_of_three_is_avoided() {
    for (seed, bad) in
        (1..=5).flat_map(|seed| ["*=UNAVAILABLE", "*=lose;dial:2+=refuse"].map(|bad| (seed, bad)))
    {
        let client = client(&format!("script://a/seed={seed};{bad},script://b,script://c"), "{}").await;
        let (mut failed, mut calls) = (0, 0);
        for number in 0..6_000 {
            let answer = client.call("/echo", "").await;
            sleep(&client, 1).await;
            if number > 1_000 {
                calls += 1;
                failed += u32::from(answer.is_err());
            }
        }
        assert!(failed * 100 < calls, "seed {seed}, {bad}: {failed} of {calls} failed");
    }
}

/// After a partition of half a minute everything is well again within the longest backoff and a second.
#[tokio::test]
async fn a_partition_heals() {
    const HEALED: u64 = 40_000_000;
    for seed in 1..=20 {
        let away = "10000ms-40000ms=lose;dial:10000ms-40000ms=refuse";
        let endpoint = format!("script://a/seed={seed};{away},script://b/{away},script://c/{away}");
        let client = client(&endpoint, "{}").await;
        loop {
            let options = idempotent().with_timeout(std::time::Duration::from_secs(1));
            let answer = client.call_with("/echo", "", options).await;
            sleep(&client, 100).await;
            let now = steps(&trace(&client).await).last().unwrap().0;
            if !(10_000_000..=HEALED + 31_000_000).contains(&now) {
                assert!(answer.is_ok(), "seed {seed}, after {now} us: {answer:?}");
            }
            if now > HEALED + 60_000_000 {
                break;
            }
        }
    }
}

/// A link that comes and goes for ten minutes leaves one connection, or none.
#[tokio::test]
async fn a_flapping_link_leaves_nothing() {
    let away: Vec<_> = (0..600)
        .map(|second| second * 1_000)
        .map(|from| format!("{from}ms-{to}ms=lose;dial:{from}ms-{to}ms=refuse", to = from + 500))
        .collect();
    let client = client(&format!("script://a/{}", away.join(";")), "{}").await;
    let (mut now, mut dials, mut lost) = (0, 0, 0);
    while now < 620_000_000 {
        let answer = client.call_with("/echo", "", idempotent()).await;
        sleep(&client, 50).await;
        let trace = trace(&client).await;
        now = steps(&trace).last().unwrap().0;
        dials += steps(&trace).filter(|(_, what)| *what == "dial a").count();
        lost += steps(&trace).filter(|(_, what)| *what == "lost a").count();
        assert!(client.connections().len() <= 1);
        if now > 605_000_000 {
            answer.unwrap();
        }
    }
    assert!(dials < 1_300, "{dials} dials in ten minutes");
    assert!(lost <= dials, "{lost} lost, {dials} dialled");
}

/// Whatever servers do, each call ends once, in its time, with no more attempts than it may have; what may be executed once is.
#[tokio::test]
async fn no_script_breaks_a_rule() {
    let seeds = match std::env::var("VALKYRIE_TEST_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (1..=300).collect(),
    };
    for seed in seeds {
        let mut random = Random::new(seed);
        let mut pick = |of: &[&'static str]| of[random.below(of.len() as u64) as usize];
        let mut servers = Vec::new();
        for name in ["a", "b", "c"] {
            let mut rules = vec![format!("seed={seed}")];
            for _ in 0..6 {
                let which = pick(&["1", "2-4", "3", "5+", "7-9", "0ms-80ms", "100ms-700ms", "1500ms+"]);
                let what = pick(&[
                    "ok",
                    "ok@30ms",
                    "UNAVAILABLE",
                    "UNAVAILABLE~40ms",
                    "UNAVAILABLE~never",
                    "RESOURCE_EXHAUSTED~10ms",
                    "INTERNAL",
                    "hang",
                    "lose",
                    "lose@20ms",
                    "refuse",
                    "leave",
                ]);
                rules.push(format!("{which}={what}"));
                let dial = pick(&["ok@9ms", "refuse", "refuse@30ms", "hang"]);
                rules.push(format!("dial:{}={dial}", pick(&["2", "3-4", "5+", "200ms-400ms"])));
            }
            servers.push(format!("script://{name}/{}", rules.join(";")));
        }
        let balance = pick(&["round_robin", "least_request", "pick_first"]);
        let hedged = pick(&["true", "false"]);
        let config = format!(
            r#"{{"methods": [{{"names": ["*"], "retry": {{"max_attempts": 4}}, "breaker": {{"min_calls": 5, "open_ms": 300}},
            "hedge": {{"enabled": {hedged}, "delay_ms": 20}}}}], "balance": {{"policy": "{balance}"}}, "reconnect": {{"base_ms": 50}}}}"#
        );
        let client = client(&servers.join(","), &config).await;
        for number in 0..40 {
            let idempotent = number % 3 != 0;
            let options = CallOptions::new().with_idempotent(idempotent);
            let answer = client
                .call_with("/echo", "", options.with_timeout(std::time::Duration::from_millis(500)))
                .await;
            let trace = trace(&client).await;
            let context =
                || format!("seed {seed}, call {number}, {answer:?}:\n{}\n{trace}", servers.join("\n"));
            let began = steps(&trace).position(|(_, what)| what.starts_with("call /echo")).unwrap();
            let of_call: Vec<_> = steps(&trace).skip(began).collect();
            let ends =
                of_call.iter().filter(|(_, what)| what.starts_with("call ") && !what.starts_with("call /"));
            assert_eq!(ends.count(), 1, "{}", context());
            let (from, to) = (of_call[0].0, of_call.last().unwrap().0);
            assert!(to - from <= 500_000, "{}", context());
            let attempts = of_call.iter().filter(|(_, what)| sent(what)).count();
            assert!(attempts <= 5, "four, and one that nobody processed: {}", context());
            // What left and was not refused unread may have been executed.
            let unseen = ["STREAM_REFUSED", "GOING_AWAY"];
            let refused = of_call.iter().filter(|(_, what)| {
                what.starts_with("attempt ") && unseen.iter().any(|reason| what.ends_with(reason))
            });
            assert!(idempotent || attempts - refused.count() <= 1, "{}", context());
            if let Err(status) = &answer {
                let own = ["BREAKER_OPEN", "THROTTLED"].contains(&status.reason().name());
                assert!(own || !status.timeline().is_empty(), "{}", context());
                assert_ne!(status.code(), Code::Unknown, "{}", context());
            }
            sleep(&client, 15).await;
        }
        client.close().await;
    }
}
