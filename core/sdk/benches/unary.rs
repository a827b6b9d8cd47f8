//! Unary echo of 32 bytes beside a raw length-prefixed TCP echo on tokio, in one run: p50 and p99 at 1 in flight, requests
//! per second at 64 in flight on one connection. Prints, asserts nothing: `cargo bench -p valkyrie-sdk --bench unary`.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use valkyrie_sdk::{Bytes, Client, EchoHandler, ServerBuilder};

const ROUNDS: usize = 5;
const CALLS: usize = 20_000;
const IN_FLIGHT: usize = 64;
const MESSAGE: [u8; 32] = [7; 32];

/// The floor: a length, the bytes, and back.
async fn raw_echo(listener: TcpListener) -> std::io::Result<()> {
    let (mut stream, _) = listener.accept().await?;
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let len = stream.read(&mut buffer).await?;
        if len == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..len]).await?;
    }
}

fn framed() -> Vec<u8> {
    [&(MESSAGE.len() as u32).to_le_bytes()[..], &MESSAGE].concat()
}

async fn raw_one(stream: &mut TcpStream) -> std::io::Result<Duration> {
    let began = Instant::now();
    stream.write_all(&framed()).await?;
    let mut answer = [0; 36];
    stream.read_exact(&mut answer).await?;
    Ok(began.elapsed())
}

/// Keeps 64 requests on the wire and sends one for each answer, a batch per read.
async fn raw_many(stream: &mut TcpStream) -> std::io::Result<f64> {
    let began = Instant::now();
    let (one, mut buffer) = (framed(), vec![0; 64 << 10]);
    stream.write_all(&one.repeat(IN_FLIGHT)).await?;
    let (mut sent, mut done, mut rest) = (IN_FLIGHT, 0, 0);
    while done < CALLS {
        rest += stream.read(&mut buffer).await?;
        let answers = rest / one.len();
        rest %= one.len();
        done += answers;
        let more = answers.min(CALLS.saturating_sub(sent));
        sent += more;
        stream.write_all(&one.repeat(more)).await?;
    }
    Ok(CALLS as f64 / began.elapsed().as_secs_f64())
}

async fn valkyrie_many(client: &Client) -> f64 {
    let began = Instant::now();
    let tasks: VecDeque<_> = (0..IN_FLIGHT)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move {
                for _ in 0..CALLS / IN_FLIGHT {
                    client.request(Bytes::from_static(&MESSAGE)).await.expect("the echo answers");
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
    (CALLS / IN_FLIGHT * IN_FLIGHT) as f64 / began.elapsed().as_secs_f64()
}

fn percentile(times: &mut [Duration], part: f64) -> f64 {
    times.sort_unstable();
    times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e6
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Each server on a thread and runtime of its own, as another process would be.
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let server = ServerBuilder::new().bind("127.0.0.1:0").handler("/echo", EchoHandler).build().await;
            let server = server.expect("a server");
            tell.send((listener.local_addr().expect("bound"), server.endpoints()[0].clone()))
                .expect("a listener");
            tokio::spawn(raw_echo(listener));
            server.start().await.expect("it runs");
        });
    });
    let (raw_address, endpoint) = told.recv()?;
    let mut raw = TcpStream::connect(raw_address).await?;
    raw.set_nodelay(true)?;
    let client = Client::connect(&endpoint).await?;

    let (mut raw_times, mut our_times) = (Vec::new(), Vec::new());
    let (mut raw_rates, mut our_rates) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for _ in 0..CALLS / 10 {
            raw_times.push(raw_one(&mut raw).await?);
            let began = Instant::now();
            client.request(Bytes::from_static(&MESSAGE)).await?;
            our_times.push(began.elapsed());
        }
        raw_rates.push(raw_many(&mut raw).await?);
        our_rates.push(valkyrie_many(&client).await);
    }
    let (raw_p50, our_p50) = (percentile(&mut raw_times, 0.5), percentile(&mut our_times, 0.5));
    let (raw_p99, our_p99) = (percentile(&mut raw_times, 0.99), percentile(&mut our_times, 0.99));
    let (raw_rate, our_rate) = (median(raw_rates), median(our_rates));
    println!("{:34} {:>10} {:>10} {:>7}", "32 B echo, one connection", "valkyrie", "raw tokio", "ratio");
    println!("{:34} {our_p50:>10.1} {raw_p50:>10.1} {:>7.2}", "1 in flight, p50 in µs", our_p50 / raw_p50);
    println!("{:34} {our_p99:>10.1} {raw_p99:>10.1} {:>7.2}", "1 in flight, p99 in µs", our_p99 / raw_p99);
    println!(
        "{:34} {our_rate:>10.1} {raw_rate:>10.1} {:>7.2}",
        "64 in flight, requests/s (median)",
        our_rate / raw_rate
    );
    Ok(())
}
