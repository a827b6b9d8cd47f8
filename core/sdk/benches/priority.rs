//! Critical calls while bulk fills the same connection, up and then down, beside the same calls on an idle one: p50, p99
//! and their ratios, and what the calls leave to bulk. Over TCP loopback, where the link is the processors and bulk takes
//! all of them. Prints, asserts nothing: `cargo bench -p valkyrie-sdk --bench priority`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::watch, task::JoinSet};
use valkyrie_sdk::{
    Bytes, CallOptions, Client, EchoHandler, Priority, Reply, ServerBuilder, Status, handler_fn,
};

const ROUNDS: usize = 7;
const CALLS: usize = 2_000;
const STREAMS: usize = 4;
/// Bulk that has moved before calls are timed, and that is timed without calls.
const WARM: u64 = 64 << 20;
const ALONE: u64 = 512 << 20;
static BLOCK: [u8; 64 << 10] = [7; 64 << 10];

/// Takes whatever comes.
const SINK: &str = "/sink";
/// Sends until the caller has enough.
const SOURCE: &str = "/source";

#[derive(Clone, Copy)]
enum Way {
    Up,
    Down,
}

/// Streams that move bulk as fast as they may, and how many bytes have arrived.
struct Bulk {
    moved: Arc<watch::Sender<u64>>,
    tasks: JoinSet<()>,
}

impl Bulk {
    async fn start(client: &Client, way: Way, received: &Arc<watch::Sender<u64>>) -> Result<Bulk, Status> {
        let mut tasks = JoinSet::new();
        let moved = match way {
            Way::Up => received.clone(),
            Way::Down => Arc::new(watch::Sender::new(0)),
        };
        for _ in 0..STREAMS {
            let options = CallOptions::new().with_priority(Priority::Bulk);
            let block = Bytes::from_static(&BLOCK);
            match way {
                Way::Up => {
                    let (mut send, recv) = client.open(SINK, options).await?;
                    tasks.spawn(async move {
                        // Dropped, it would give the call up.
                        let _recv = recv;
                        while send.send(block.clone()).await.is_ok() {}
                    });
                }
                Way::Down => {
                    let (mut send, mut recv) = client.open(SOURCE, options).await?;
                    send.finish_now();
                    let moved = moved.clone();
                    tasks.spawn(async move {
                        while let Ok(Some(message)) = recv.recv().await {
                            moved.send_modify(|bytes| *bytes += message.len() as u64);
                        }
                    });
                }
            }
        }
        let bulk = Bulk { moved, tasks };
        bulk.rate(WARM).await;
        Ok(bulk)
    }

    /// Waits until so many bytes more have moved: bytes per second.
    async fn rate(&self, bytes: u64) -> f64 {
        let mut moved = self.moved.subscribe();
        let (began, before) = (Instant::now(), *moved.borrow());
        // Its sender lives as long as this does.
        let now = moved.wait_for(|moved| moved - before >= bytes).await.map_or(before, |moved| *moved);
        (now - before) as f64 / began.elapsed().as_secs_f64()
    }

    /// Ends all streams; an answer tells that the server has read their ends, which go ahead of a call.
    async fn stop(mut self, client: &Client) -> Result<(), Status> {
        self.tasks.shutdown().await;
        client.request("over").await.map(drop)
    }
}

/// Calls one behind the other, from a task of the runtime: a thread outside of it would add the kernel's time to wake
/// one thread more than there are processors.
async fn critical(client: &Client) -> Result<Vec<Duration>, Status> {
    let client = client.clone();
    let calls = async move {
        let options = CallOptions::new().with_priority(Priority::Critical);
        let mut times = Vec::with_capacity(CALLS);
        for _ in 0..CALLS {
            let began = Instant::now();
            client.call_with("/echo", Bytes::from_static(&[7; 32]), options.clone()).await?;
            times.push(began.elapsed());
        }
        Ok(times)
    };
    tokio::spawn(calls).await.expect("no panic")
}

fn percentile(times: &mut [Duration], part: f64) -> f64 {
    times.sort_unstable();
    times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e6
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime")
}

/// A server with a runtime of its own, as another process would have: its endpoint, and the bytes that it received.
fn serve() -> (String, Arc<watch::Sender<u64>>) {
    let received = Arc::new(watch::Sender::new(0));
    let (count, (tell, told)) = (received.clone(), std::sync::mpsc::channel());
    std::thread::spawn(move || {
        runtime().block_on(async move {
            let sink = handler_fn(move |mut call| {
                let count = count.clone();
                async move {
                    while let Some(message) = call.recv().await? {
                        count.send_modify(|bytes| *bytes += message.len() as u64);
                    }
                    Ok::<_, Status>(Reply::end())
                }
            });
            let source = handler_fn(|mut call| async move {
                while call.send(Bytes::from_static(&BLOCK)).await.is_ok() {}
                Ok::<_, Status>(Reply::end())
            });
            let server = ServerBuilder::new().bind("127.0.0.1:0").handler("/echo", EchoHandler);
            let server = server.handler(SINK, sink).handler(SOURCE, source).build().await.expect("a server");
            tell.send(server.endpoints()[0].clone()).expect("a listener");
            server.start().await.expect("it runs");
        });
    });
    (told.recv().expect("the server starts"), received)
}

fn main() -> Result<(), Status> {
    let (endpoint, received) = serve();
    runtime().block_on(async {
        let client = Client::connect(&endpoint).await?;
        println!(
            "{:26} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "critical calls, 32 B", "idle p50", "beside", "ratio", "idle p99", "beside", "ratio", "bulk kept"
        );
        for (name, way) in [("bulk goes up", Way::Up), ("bulk comes down", Way::Down)] {
            let (mut idle, mut beside) = (Vec::new(), Vec::new());
            let (mut p50s, mut p99s, mut kept, mut alone) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                let mut quiet = critical(&client).await?;
                let bulk = Bulk::start(&client, way, &received).await?;
                let rate = bulk.rate(ALONE).await;
                let (began, before) = (Instant::now(), *bulk.moved.borrow());
                let mut busy = critical(&client).await?;
                let moved = (*bulk.moved.borrow() - before) as f64;
                kept.push(moved / began.elapsed().as_secs_f64() / rate);
                alone.push(rate);
                bulk.stop(&client).await?;
                p50s.push(percentile(&mut busy, 0.5) / percentile(&mut quiet, 0.5));
                p99s.push(percentile(&mut busy, 0.99) / percentile(&mut quiet, 0.99));
                idle.append(&mut quiet);
                beside.append(&mut busy);
            }
            println!(
                "{name:26} {:>9.1} {:>9.1} {:>9.2} {:>9.1} {:>9.1} {:>9.2} {:>8.0}%   of {:.2} GB/s",
                percentile(&mut idle, 0.5),
                percentile(&mut beside, 0.5),
                median(p50s),
                percentile(&mut idle, 0.99),
                percentile(&mut beside, 0.99),
                median(p99s),
                median(kept) * 100.0,
                median(alone) / 1e9
            );
        }
        println!("times in µs; ratios and shares are medians of {ROUNDS} rounds of {CALLS} calls");
        Ok(())
    })
}
