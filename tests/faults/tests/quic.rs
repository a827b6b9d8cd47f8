//! QUIC over links that misbehave, and QUIC peers that do.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, LazyLock, Mutex},
    time::Duration,
};

use tokio::task::JoinSet;
use valkyrie_faults::proxy::{Direction, Faults, Proxy};
use valkyrie_sdk::{
    CallOptions, Client, EchoHandler, HandlerFuture, MessageHandler, Reply, ServerBuilder, ServerCall,
    ServerControl, handler_fn,
};

/// A hang is bounded far above anything that should take that long.
async fn bounded<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(200), work).await.unwrap_or_else(|_| panic!("{what} hangs"))
}

/// Chances come from a seed of the environment, or from one that is printed.
fn seed() -> u64 {
    static SEED: LazyLock<u64> = LazyLock::new(|| {
        let seed = std::env::var("VALKYRIE_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
        println!("VALKYRIE_SEED={seed}");
        seed
    });
    *SEED
}

/// A certificate and its key, as PEM.
static IDENTITY: LazyLock<(String, String)> = LazyLock::new(|| {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
});

/// Answers with every bit the other way, and counts how often it was called with each message's first eight bytes.
#[derive(Clone, Default)]
struct Inverts(Arc<Mutex<HashMap<u64, u32>>>);

impl MessageHandler for Inverts {
    fn handle(&self, mut call: ServerCall) -> HandlerFuture {
        let counts = self.0.clone();
        HandlerFuture::new(async move {
            let message = call.message().await?;
            let nonce = u64::from_le_bytes(message[..8].try_into().unwrap());
            *counts.lock().unwrap().entry(nonce).or_default() += 1;
            Ok(Reply::message(inverted(&message)))
        })
    }
}

fn inverted(message: &[u8]) -> Vec<u8> {
    message.iter().map(|byte| !byte).collect()
}

/// A message that no other call sends.
fn message(nonce: u64, len: usize) -> Vec<u8> {
    let pattern = (8..len as u64).map(|at| (at * 7 + at / 251 + nonce) as u8);
    nonce.to_le_bytes().into_iter().chain(pattern).collect()
}

/// A server, a client of it through a proxy, and what the handler counted.
struct Through {
    proxy: Proxy,
    client: Client,
    control: ServerControl,
    inverts: Inverts,
}

impl Through {
    async fn new(faults: Faults) -> Through {
        let inverts = Inverts::default();
        let flood = handler_fn(|mut call| async move {
            loop {
                call.send(vec![1; 32 << 10]).await?;
            }
        });
        let server = ServerBuilder::new()
            .bind("quic://127.0.0.1:0")
            .identity(IDENTITY.0.clone(), IDENTITY.1.clone())
            .handler("/echo", EchoHandler)
            .handler("/invert", inverts.clone())
            .handler("/flood", flood)
            .build()
            .await
            .unwrap();
        let (endpoint, control) = (server.endpoints()[0].replace("quic://", "udp://"), server.control());
        tokio::spawn(async move { server.start().await });
        let proxy = Proxy::start("udp://127.0.0.1:0", &endpoint, seed()).await.unwrap();
        proxy.set_both(faults);
        let client = Client::builder()
            .endpoint(proxy.endpoint().replace("udp://", "quic://"))
            .trusted_certificates(IDENTITY.0.clone())
            .timeout_ms(150_000)
            .build()
            .await
            .unwrap();
        Through { proxy, client, control, inverts }
    }

    /// Calls, so many at once, and checks each answer; gives the nonce after the last.
    async fn calls(&self, first: u64, count: u64, at_once: u64, len: impl Fn(u64) -> usize) -> u64 {
        let mut running = JoinSet::new();
        for nonce in first..first + count {
            if running.len() as u64 >= at_once {
                running.join_next().await.unwrap().unwrap();
            }
            let (client, message) = (self.client.clone(), message(nonce, len(nonce)));
            running.spawn(async move {
                let answer = bounded("a call", client.call("/invert", message.clone())).await.unwrap();
                assert!(answer.message == inverted(&message), "another answer than that of call {nonce}");
            });
        }
        while let Some(ended) = running.join_next().await {
            ended.unwrap();
        }
        first + count
    }

    /// Every call was handled once, all of them on the one connection.
    fn check(&self, calls: u64) {
        let counts = self.inverts.0.lock().unwrap();
        assert_eq!(counts.len() as u64, calls);
        assert!(counts.values().all(|count| *count == 1));
        assert_eq!(self.control.stats().connections_total, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f35_a_client_whose_port_changes_loses_no_call() {
    let through = Through::new(Faults::default()).await;
    let mut next = 0;
    for round in 0..5 {
        let (calls, ()) =
            tokio::join!(through.calls(next, 200, 16, |nonce| 8 + nonce as usize * 97 % 40_000), async {
                // In the middle of them.
                let so_far = || through.inverts.0.lock().unwrap().len();
                while so_far() < round * 200 + 50 {
                    tokio::task::yield_now().await;
                }
                through.proxy.rebind();
            });
        next = calls;
    }
    // And while nothing is on its way.
    through.proxy.rebind();
    next = through.calls(next, 20, 1, |_| 100).await;
    through.check(next);
}

/// Each fault by itself, and then all of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f36_bad_datagrams_are_nobodys_answer() {
    let through = Through::new(Faults::default()).await;
    let none = Faults::default();
    let lossy = Faults { loss: 0.3, ..none };
    let all = Faults { duplicate: 2.0, reorder: 0.1, loss: 0.1, corrupt: 5e-5, ..none };
    // About one datagram in five.
    let corrupt = Faults { corrupt: 1.5e-4, ..none };
    let mut next = 0;
    for (faults, calls) in [
        ([Faults { duplicate: 2.0, ..none }; 2], 1_000),
        ([Faults { reorder: 0.1, ..none }; 2], 1_000),
        // One way at a time: both at once let the probes for what was lost wait for tens of seconds.
        ([lossy, none], 100),
        ([none, lossy], 100),
        ([corrupt; 2], 200),
        ([all; 2], 200),
    ] {
        let before = Direction::BOTH.map(|direction| through.proxy.passed(direction));
        for (direction, faults) in Direction::BOTH.into_iter().zip(faults) {
            through.proxy.set(direction, faults);
        }
        next = through.calls(next, calls, 64, |nonce| 8 + nonce as usize * 97 % 5_000).await;
        for direction in Direction::BOTH {
            let (faults, before) = (faults[direction as usize], before[direction as usize]);
            let passed = through.proxy.passed(direction);
            assert_eq!(passed.lost > before.lost, faults.loss > 0.0);
            assert_eq!(passed.flipped > before.flipped, faults.corrupt > 0.0);
        }
    }
    through.check(next);
}

/// A link that never carries more than 1,200 bytes, and one that stops to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f38_datagrams_above_1200_bytes_are_lost() {
    let narrow = Faults { mtu: Some(1_200), ..Faults::default() };
    for at_first in [true, false] {
        let through = Through::new(if at_first { narrow } else { Faults::default() }).await;
        let mut next = 0;
        if !at_first {
            // Until the connection has found out that more passes.
            while Direction::BOTH.iter().any(|direction| through.proxy.passed(*direction).longest <= 1_200) {
                next = through.calls(next, 1, 1, |_| 100_000).await;
            }
            through.proxy.set_both(narrow);
        }
        next = through.calls(next, 200, 16, |nonce| 8 + nonce as usize * 97 % 20_000).await;
        next = through.calls(next, 1, 1, |_| 4 << 20).await;
        through.check(next);
        // Longer ones were tried.
        assert!(Direction::BOTH.iter().all(|direction| through.proxy.passed(*direction).lost > 0));
    }
}

/// A reader that does not read holds up no call beside it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_nobody_reads_holds_up_no_other() {
    let through = Through::new(Faults::default()).await;
    let mut floods = Vec::new();
    for _ in 0..3 {
        let mut flood = through.client.stream("/flood", "", CallOptions::new()).await.unwrap();
        assert!(bounded("a flood", flood.recv()).await.unwrap().is_some());
        floods.push(flood);
    }
    let calls = through.calls(0, 500, 8, |_| 32 << 10).await;
    through.check(calls);
    // Nor is a flood lost.
    for mut flood in floods {
        for _ in 0..100 {
            assert_eq!(bounded("a flood", flood.recv()).await.unwrap().unwrap(), vec![1; 32 << 10]);
        }
    }
}
