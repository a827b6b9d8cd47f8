//! A server that can do at most 400 calls a second is asked for 1,200, of all classes: what it still does, and how soon it refuses the rest.
//!
//! `cargo bench -p valkyrie-sdk --bench overload [-- seconds]`, 10 by default. Aims: at least 90 % of the peak is done in time, 99.9 % of
//! the critical calls succeed, and 99 % of the refusals come within 5 ms.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{Semaphore, mpsc},
    time::{MissedTickBehavior, interval, sleep},
};
use valkyrie_sdk::{
    CallOptions, Client, Priority, Reason, Reply, ServerBuilder, handler_fn,
    policy::{LimiterPolicy, ServiceConfig},
};

/// Calls at once behind the handler, and how long each takes there.
const WORKERS: usize = 4;
const WORK: Duration = Duration::from_millis(10);
/// Calls each second, by class: critical, normal, bulk.
const RATES: [u32; 3] = [120, 600, 480];
const TIMEOUT: Duration = Duration::from_millis(500);
/// Of each client: the server's connections are many.
const CLIENTS: usize = 8;

struct Outcome {
    class: Priority,
    /// In time, or why not.
    reason: Option<Reason>,
    took: Duration,
}

#[tokio::main(flavor = "multi_thread")]
async fn main() {
    let seconds = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(10);
    let length = Duration::from_secs(seconds);
    for limited in [false, true] {
        let workers = Arc::new(Semaphore::new(WORKERS));
        let work = handler_fn(move |mut call| {
            let workers = workers.clone();
            async move {
                let message = call.message().await?;
                let _worker = workers.acquire().await;
                sleep(WORK).await;
                Ok(Reply::message(message))
            }
        });
        let mut server = ServerBuilder::new().bind("127.0.0.1:0").handler("/work", work);
        if limited {
            server = server.concurrency_limit(LimiterPolicy::default());
        }
        let server = server.build().await.unwrap();
        let (endpoint, control) = (server.endpoints().remove(0), server.control());
        tokio::spawn(async move { server.start().await });
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            let config = r#"{"methods": [{"names": ["*"], "breaker": {"enabled": false},
                "retry": {"max_attempts": 1}}], "throttle": {"enabled": false}}"#;
            let config = ServiceConfig::parse(config).unwrap();
            clients.push(Client::builder().endpoint(&endpoint).service_config(config).build().await.unwrap());
        }
        println!("{}", if limited { "with a limit of concurrency:" } else { "without:" });
        let peak =
            flood(&clients, [0, WORKERS as u32 * 1_000 / WORK.as_millis() as u32 * 9 / 10, 0], 3).await;
        let done = peak.iter().filter(|outcome| outcome.reason.is_none()).count();
        println!("  at 90 % load     {:.1} /s done", done as f64 / 3.0);
        println!("  at most          {:.1} /s done", peak_of(&clients).await);
        let outcomes = flood(&clients, RATES, seconds).await;
        let done = outcomes.iter().filter(|outcome| outcome.reason.is_none()).count();
        println!("  at 3 times that  {:.1} /s done in time", done as f64 / length.as_secs_f64());
        for class in Priority::ALL {
            let of_class: Vec<_> = outcomes.iter().filter(|outcome| outcome.class == class).collect();
            let done: Vec<_> = of_class.iter().filter(|outcome| outcome.reason.is_none()).collect();
            println!(
                "    {class:?}: {} of {} ({:.2} %), p99 {:?}",
                done.len(),
                of_class.len(),
                done.len() as f64 * 100.0 / of_class.len().max(1) as f64,
                percentile(done.iter().map(|outcome| outcome.took), 99),
            );
        }
        let refused = |outcome: &&Outcome| outcome.reason == Some(Reason::OVERLOADED);
        let refusals: Vec<_> = outcomes.iter().filter(refused).map(|outcome| outcome.took).collect();
        println!(
            "  {} refused, p50 {:?}, p99 {:?}; {} late; the limit is {:?}",
            refusals.len(),
            percentile(refusals.iter().copied(), 50),
            percentile(refusals.iter().copied(), 99),
            outcomes.len() - done - refusals.len(),
            control.stats().limit,
        );
        control.shutdown_now();
    }
}

/// Calls done each second when every worker has one, and one waits for it, for three seconds.
async fn peak_of(clients: &[Client]) -> f64 {
    let began = Instant::now();
    let callers: Vec<_> = (0..2 * WORKERS)
        .map(|number| {
            let client = clients[number % clients.len()].clone();
            tokio::spawn(async move {
                let mut done = 0;
                while began.elapsed() < Duration::from_secs(3) {
                    done += u32::from(client.call("/work", "").await.is_ok());
                }
                done
            })
        })
        .collect();
    let mut done = 0;
    for caller in callers {
        done += caller.await.unwrap();
    }
    f64::from(done) / began.elapsed().as_secs_f64()
}

/// So many calls of each class each second, whatever becomes of them.
async fn flood(clients: &[Client], rates: [u32; 3], seconds: u64) -> Vec<Outcome> {
    let (told, mut outcomes) = mpsc::unbounded_channel();
    for (class, rate) in Priority::ALL.into_iter().zip(rates).filter(|(_, rate)| *rate > 0) {
        let (clients, told) = (clients.to_vec(), told.clone());
        tokio::spawn(async move {
            let mut tick = interval(Duration::from_secs(1) / rate);
            tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
            for number in 0..u64::from(rate) * seconds {
                tick.tick().await;
                let (client, told) = (clients[number as usize % clients.len()].clone(), told.clone());
                tokio::spawn(async move {
                    let options = CallOptions::new().with_priority(class).with_timeout(TIMEOUT);
                    let began = Instant::now();
                    let result = client.call_with("/work", "x", options).await;
                    let reason = result.err().map(|status| status.reason());
                    let _ = told.send(Outcome { class, reason, took: began.elapsed() });
                });
            }
        });
    }
    drop(told);
    let mut all = Vec::new();
    while let Some(outcome) = outcomes.recv().await {
        all.push(outcome);
    }
    all
}

fn percentile(times: impl Iterator<Item = Duration>, percent: usize) -> Duration {
    let mut times: Vec<_> = times.collect();
    times.sort_unstable();
    times.get((times.len() * percent / 100).min(times.len().saturating_sub(1))).copied().unwrap_or_default()
}
