//! What a healthy unary call costs on both sides together: echo of 32 bytes between a client and a server in one thread, over a pipe in
//! memory, with 1, 64 and 512 calls in flight. Prints the time and the allocations of a call, asserts nothing: `cargo bench -p
//! valkyrie-sdk --bench cost`. With two numbers, calls in flight and calls, it makes just these, for a program that counts instructions.

use std::time::Instant;

use tokio::task::LocalSet;
use valkyrie_sdk::{Bytes, Client, EchoHandler, ServerBuilder};

#[allow(dead_code, unreachable_pub)]
#[path = "../../../tests/fuzz/src/allocator.rs"]
mod allocator;

const ROUNDS: usize = 9;
const CALLS: usize = 50_000;

/// Makes that many calls, so many at a time. They share one message: whoever makes one for each has one allocation more for it, and
/// one as it is kept for another attempt.
async fn calls(client: &Client, in_flight: usize, calls: usize) {
    let (tasks, message) = (LocalSet::new(), Bytes::from(vec![7; 32]));
    for _ in 0..in_flight {
        let (client, message) = (client.clone(), message.clone());
        tasks.spawn_local(async move {
            for _ in 0..calls / in_flight {
                client.request(message.clone()).await.expect("the echo answers");
            }
        });
    }
    tasks.await;
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let server = ServerBuilder::new().bind("memory:cost").handler("/echo", EchoHandler).build().await;
    let server = server.expect("a server");
    tokio::spawn(async move { server.start().await });
    let client = Client::connect("memory:cost").await.expect("a client");
    let numbers: Vec<usize> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    if let [in_flight, count] = numbers[..] {
        return calls(&client, in_flight, count).await;
    }
    println!("{:13} {:>10} {:>12}", "calls", "ns", "allocations");
    for in_flight in [1, 64, 512] {
        calls(&client, in_flight, CALLS / 10).await;
        let mut times = [0.0; ROUNDS];
        let before = allocator::count();
        for time in &mut times {
            let began = Instant::now();
            calls(&client, in_flight, CALLS).await;
            *time = began.elapsed().as_nanos() as f64 / CALLS as f64;
        }
        let allocations = (allocator::count() - before) as f64 / (ROUNDS * CALLS) as f64;
        times.sort_by(f64::total_cmp);
        println!("{in_flight:>3} in flight {:>10.1} {allocations:>12.2}", times[ROUNDS / 2]);
    }
}
