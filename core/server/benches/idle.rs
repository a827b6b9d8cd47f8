//! What a connection at rest costs: 19,000 clients over TCP loopback, each with one call behind it, and the resident
//! memory of both processes for each of them. Prints, asserts nothing: `cargo bench -p valkyrie-server --bench idle`.

use std::{
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use valkyrie_sdk::{Client, Status};

const CONNECTIONS: usize = 19_000;
/// Descriptors that each side needs for everything else: the server keeps 64 free.
const SPARE: usize = 128;
/// Connections that are made at once: fewer than a listener's queue holds.
const AT_ONCE: usize = 64;
/// Memory is at rest when it has been the same for so long.
const REST: Duration = Duration::from_secs(3);

/// A line of `/proc/PROCESS/FILE` that begins with `name`: its first number.
fn number(process: &str, file: &str, name: &str) -> usize {
    let text = std::fs::read_to_string(format!("/proc/{process}/{file}")).expect("a process that runs");
    let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("Linux's format");
    let mut words = line.split(|c: char| !c.is_ascii_digit()).filter(|word| !word.is_empty());
    words.next().and_then(|word| word.parse().ok()).unwrap_or(usize::MAX)
}

/// Resident memory in bytes, once it has been the same for a while.
async fn resident(process: &str) -> usize {
    let read = || number(process, "status", "VmRSS:") << 10;
    let (mut last, mut since) = (read(), Instant::now());
    while since.elapsed() < REST {
        // Nobody tells when memory has come to rest: the kernel is asked now and then.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = read();
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    last
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn connect(endpoint: &str) -> Result<Client, Status> {
    let client = Client::connect(endpoint).await?;
    client.request("hello").await?;
    Ok(client)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // The soft limit of descriptors is raised where a program without unsafe code can: before it begins.
    if std::env::var_os("VALKYRIE_BENCH_RAISED").is_none() {
        let mut again = Command::new("sh");
        again.args(["-c", "ulimit -n $(ulimit -Hn); exec \"$0\""]).arg(std::env::current_exe()?);
        return Err(again.env("VALKYRIE_BENCH_RAISED", "1").exec().into());
    }
    let count = CONNECTIONS.min(number("self", "limits", "Max open files").saturating_sub(SPARE));
    let mut server = Command::new(env!("CARGO_BIN_EXE_valkyrie-server"));
    server.args(["start", "--bind", "127.0.0.1:0", "--log-level", "warn"]).stdout(Stdio::piped());
    let mut server = Server(server.spawn()?);
    let mut line = String::new();
    BufReader::new(server.0.stdout.take().ok_or("no output")?).read_line(&mut line)?;
    let endpoint = line.split_whitespace().nth(1).ok_or("the server does not listen")?.to_owned();
    let pid = server.0.id().to_string();

    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        // The first ones pay for what both processes need in any case.
        let mut clients = Vec::with_capacity(count);
        for _ in 0..AT_ONCE {
            clients.push(connect(&endpoint).await?);
        }
        let before = (resident(&pid).await, resident("self").await);
        let first = clients.len();
        while clients.len() < count {
            let batch: Vec<_> = (clients.len()..count.min(clients.len() + AT_ONCE))
                .map(|_| {
                    let endpoint = endpoint.clone();
                    tokio::spawn(async move { connect(&endpoint).await })
                })
                .collect();
            for client in batch {
                clients.push(client.await??);
            }
        }
        let after = (resident(&pid).await, resident("self").await);
        let each = |after: usize, before: usize| {
            (after.saturating_sub(before)) as f64 / (count - first) as f64 / 1024.0
        };
        println!("{:34} {:>10} {:>10}", format!("{count} connections at rest"), "server", "client");
        println!(
            "{:34} {:>10.2} {:>10.2}",
            "KiB of memory for each",
            each(after.0, before.0),
            each(after.1, before.1)
        );
        println!(
            "{:34} {:>10.1} {:>10.1}",
            "MiB of the process",
            after.0 as f64 / (1 << 20) as f64,
            after.1 as f64 / (1 << 20) as f64
        );
        for client in clients.iter().step_by(1_000) {
            client.request("still there").await?;
        }
        Ok(())
    })
}
