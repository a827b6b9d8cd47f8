//! The fault proxy as a program: one listener, one upstream, faults from the command line.
#![forbid(unsafe_code)]

use std::{process::ExitCode, time::Duration};

use clap::{Parser, ValueEnum};
use valkyrie_faults::proxy::{Direction, Faults, Proxy};

/// Carries TCP, Unix sockets or UDP to an upstream, and does to them what a bad network does.
///
/// Prints `listening ENDPOINT` and runs until it is ended. Needs neither root nor netem.
#[derive(Parser)]
#[command(name = "valkyrie-fault-proxy", version)]
struct Arguments {
    /// Where to listen: tcp://host:port, unix:///path or udp://host:port; port 0 lets the system choose
    #[arg(long, value_name = "ENDPOINT", default_value = "tcp://127.0.0.1:0")]
    listen: String,
    /// Where to carry to, of the same family: streams to streams, datagrams to datagrams
    #[arg(long, value_name = "ENDPOINT")]
    upstream: String,
    /// Which way the faults apply: up is from the client to the upstream
    #[arg(long, value_enum, default_value = "both")]
    direction: Way,
    /// Everything arrives so much later, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 0)]
    delay_ms: u64,
    /// And up to so much later still, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 0)]
    jitter_ms: u64,
    /// Bytes per second at most
    #[arg(long, value_name = "BYTES")]
    bandwidth: Option<u64>,
    /// Streams: one write holds at most so many bytes
    #[arg(long, value_name = "BYTES")]
    slice: Option<usize>,
    /// The chance of each byte to have a bit flipped, 0 to 1
    #[arg(long, value_name = "CHANCE", default_value_t = 0.0)]
    corrupt: f64,
    /// Nothing passes: a black hole
    #[arg(long)]
    stop: bool,
    /// Streams: reset each connection after so many bytes
    #[arg(long, value_name = "BYTES")]
    cut_after: Option<u64>,
    /// Streams: end the direction after so many bytes
    #[arg(long, value_name = "BYTES")]
    half_close_after: Option<u64>,
    /// Datagrams: the chance of each to be lost, 0 to 1
    #[arg(long, value_name = "CHANCE", default_value_t = 0.0)]
    loss: f64,
    /// Datagrams: how often each arrives beyond the first time; 0.5 doubles every second one
    #[arg(long, value_name = "TIMES", default_value_t = 0.0)]
    duplicate: f64,
    /// Datagrams: the chance of each to be overtaken by those of the next 20 ms, 0 to 1
    #[arg(long, value_name = "CHANCE", default_value_t = 0.0)]
    reorder: f64,
    /// Datagrams: longer ones are lost
    #[arg(long, value_name = "BYTES")]
    mtu: Option<usize>,
    /// The seed of all chances
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Clone, Copy, ValueEnum)]
enum Way {
    Up,
    Down,
    Both,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let proxy = match Proxy::start(&arguments.listen, &arguments.upstream, arguments.seed).await {
        Ok(proxy) => proxy,
        Err(error) => {
            eprintln!("valkyrie-fault-proxy: {error}");
            return ExitCode::from(1);
        }
    };
    let faults = Faults {
        delay: Duration::from_millis(arguments.delay_ms),
        jitter: Duration::from_millis(arguments.jitter_ms),
        bandwidth: arguments.bandwidth,
        slice: arguments.slice,
        corrupt: arguments.corrupt,
        stop: arguments.stop,
        cut_after: arguments.cut_after,
        half_close_after: arguments.half_close_after,
        loss: arguments.loss,
        duplicate: arguments.duplicate,
        reorder: arguments.reorder,
        mtu: arguments.mtu,
    };
    match arguments.direction {
        Way::Up => proxy.set(Direction::Up, faults),
        Way::Down => proxy.set(Direction::Down, faults),
        Way::Both => proxy.set_both(faults),
    }
    println!("listening {}", proxy.endpoint());
    std::future::pending().await
}
