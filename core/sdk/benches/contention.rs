//! A server's table of connections under one thread and under two, beside one map behind one lock: connections that come
//! and go, a million times. And calls of two threads over the memory transport, with a connection each and over one that
//! they share. `cargo bench -p valkyrie-sdk --bench contention` prints medians of five runs and what the second thread adds.

mod sync {
    pub(crate) use std::sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU8, AtomicUsize, Ordering},
    };
}
#[allow(dead_code)]
#[path = "../src/table.rs"]
mod table;

use std::{
    collections::HashMap,
    sync::{Barrier, Mutex},
    thread,
    time::Instant,
};

use valkyrie_sdk::{Bytes, Client, EchoHandler, ServerBuilder};

const RUNS: usize = 5;
const TIMES: u64 = 1_000_000;
const CALLS: usize = 50_000;

/// Rounds per second of all threads together, each of which does `work` as often as `times` says.
fn rate<W: FnMut(u64)>(threads: u64, times: u64, make: impl Fn(u64) -> W + Sync) -> f64 {
    let mut runs: Vec<f64> = (0..RUNS)
        .map(|_| {
            let barrier = Barrier::new(threads as usize + 1);
            let began = thread::scope(|scope| {
                for thread in 0..threads {
                    let (barrier, make) = (&barrier, &make);
                    scope.spawn(move || {
                        let mut work = make(thread);
                        barrier.wait();
                        (0..times).for_each(&mut work);
                    });
                }
                barrier.wait();
                Instant::now()
            });
            (threads * times) as f64 / began.elapsed().as_secs_f64()
        })
        .collect();
    runs.sort_by(f64::total_cmp);
    runs[RUNS / 2]
}

/// Echoes over the memory transport to a server on the same thread.
fn calls(name: &str) -> impl FnMut(u64) + use<> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let endpoint = format!("memory:{name}");
    let client = runtime.block_on(async {
        let server = ServerBuilder::new().bind(&endpoint).handler("/echo", EchoHandler).build().await;
        let server = server.expect("a server");
        tokio::spawn(async move { server.start().await });
        Client::connect(&endpoint).await.expect("a connection")
    });
    move |_| {
        runtime.block_on(client.request(Bytes::from_static(b"hello"))).expect("an echo");
    }
}

fn main() {
    println!("{:44} {:>11} {:>11} {:>6}", "millions a second", "1 thread", "2 threads", "gain");
    let row = |what: &str, one: f64, two: f64| {
        println!("{what:44} {:>11.3} {:>11.3} {:>6.2}", one / 1e6, two / 1e6, two / one);
    };
    let table = table::Table::default();
    let ours = |threads| {
        rate(threads, TIMES, |thread| {
            let (table, mut id) = (&table, thread);
            move |_| {
                // Ids are dealt to whoever comes next.
                id += threads;
                table.insert(id, id);
                table.remove(id);
            }
        })
    };
    row("connections that come and go, the table", ours(1), ours(2));
    let map = Mutex::new(HashMap::new());
    let plain = |threads| {
        rate(threads, TIMES, |thread| {
            let (map, mut id) = (&map, thread);
            move |_| {
                id += threads;
                map.lock().expect("no panic").insert(id, id);
                map.lock().expect("no panic").remove(&id);
            }
        })
    };
    row("connections that come and go, one lock", plain(1), plain(2));
    let echoes =
        |threads| rate(threads, CALLS as u64, |thread| calls(&format!("contention-{threads}-{thread}")));
    row("calls over connections of their own", echoes(1), echoes(2));
}
