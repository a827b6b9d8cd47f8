//! Outages as they are: three servers, each a process of its own behind a link of its own, and one client whose calls go on while
//! they are restarted, killed, stopped and cut off.
#![forbid(unsafe_code)]

use std::{
    collections::{BTreeMap, HashMap},
    io::{BufRead, BufReader, Write},
    process::{Child, Command, ExitCode, Stdio},
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use clap::{Parser, Subcommand};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use valkyrie_faults::proxy::{Faults, Proxy};
use valkyrie_sdk::{
    CallOptions, Client, Reply, ServerBuilder, handler_fn,
    policy::{Random, ServiceConfig},
};

/// What a client is to say of its calls where servers stall: without a limit of each attempt a call waits for its stalled server.
const CONFIG: &str = r#"{
  "methods": [{"names": ["*"], "timeout_ms": 5000, "retry": {"max_attempts": 4, "attempt_timeout_ms": 500}}],
  "reconnect": {"base_ms": 100, "cap_ms": 2000}
}"#;
/// Far above the longest wait, `reconnect.cap_ms`. How long it was is printed; that it is no longer than that and a second is
/// tried in virtual time (`core/sdk/tests/outages.rs`).
const SETTLED: Duration = Duration::from_secs(60);
const SERVERS: usize = 3;

/// Three servers are restarted, killed, stopped and cut off while one client calls them at a steady rate.
///
/// Prints what became of the calls, and fails when that is not what is promised: nothing lost and nothing run twice by a restart,
/// nothing left behind by a link that flaps, 99.9 % of the calls done in an hour of outages.
#[derive(Parser)]
#[command(name = "valkyrie-outages", version)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Each server in turn gets SIGTERM and comes back; the calls may be run once only
    Restart {
        /// How often
        #[arg(long, default_value_t = 20)]
        rounds: usize,
        /// Calls in a second
        #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        rate: u32,
    },
    /// The links of all servers are cut and stopped again and again
    Flap {
        /// For how long, in seconds
        #[arg(long, default_value_t = 600)]
        seconds: u64,
        /// Calls in a second
        #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        rate: u32,
        /// The seed of the times
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// One server after the other is killed, stopped or cut off, and comes back
    Schedule {
        /// For how long, in seconds
        #[arg(long, default_value_t = 3_600)]
        seconds: u64,
        /// Calls in a second
        #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        rate: u32,
        /// The seed of the times and of what happens
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    #[command(hide = true)]
    Serve { address: String },
}

type Failed = String;

#[tokio::main]
async fn main() -> ExitCode {
    let result = match Arguments::parse().what {
        What::Restart { rounds, rate } => restart(rounds, rate).await,
        What::Flap { seconds, rate, seed } => flap(Duration::from_secs(seconds), rate, seed).await,
        What::Schedule { seconds, rate, seed } => schedule(Duration::from_secs(seconds), rate, seed).await,
        What::Serve { address } => serve(address).await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("valkyrie-outages: {why}");
            ExitCode::from(1)
        }
    }
}

/// A server that writes a line for each call that it runs, and goes gently at SIGTERM.
async fn serve(address: String) -> Result<(), Failed> {
    let say = |line: &[u8]| {
        let mut out = std::io::stdout().lock();
        // Whoever started it may be gone; then so is this process.
        let _ = out.write_all(&[line, b"\n"].concat()).and_then(|()| out.flush());
    };
    let once = handler_fn(move |mut call| async move {
        let message = call.message().await?;
        say(&message);
        Ok(Reply::message(message))
    });
    let server = ServerBuilder::new().bind(address).handler("/once", once).build().await;
    let server = server.map_err(|status| status.to_string())?;
    let mut terminated = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
    let control = server.control();
    say(format!("listening {}", server.local_addr().map(|at| at.to_string()).unwrap_or_default()).as_bytes());
    tokio::spawn(async move {
        terminated.recv().await;
        control.shutdown().await;
    });
    server.start().await.map_err(|status| status.to_string())
}

/// How often each call was run, by all servers.
type Executed = Arc<Mutex<HashMap<String, u32>>>;

fn lock<T>(shared: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One server, and the link that leads to it.
struct Site {
    address: String,
    process: Option<Child>,
    reader: Option<std::thread::JoinHandle<()>>,
    link: Proxy,
    executed: Executed,
}

impl Site {
    async fn new(executed: &Executed) -> Result<Site, Failed> {
        // A port that is free, so that the server has the same one after a restart.
        let port = TcpListener::bind("127.0.0.1:0").await.and_then(|port| port.local_addr());
        let address = port.map_err(|error| error.to_string())?.to_string();
        let link = Proxy::start("tcp://127.0.0.1:0", &format!("tcp://{address}"), 1).await;
        let link = link.map_err(|error| error.to_string())?;
        let mut site = Site { address, process: None, reader: None, link, executed: executed.clone() };
        site.start()?;
        Ok(site)
    }

    /// Starts the server, and waits until it listens.
    fn start(&mut self) -> Result<(), Failed> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut process = Command::new(program)
            .args(["serve", &self.address])
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("cannot start a server: {error}"))?;
        let out = process.stdout.take().ok_or("a server without output")?;
        let mut lines = BufReader::new(out).lines();
        self.process = Some(process);
        match lines.next() {
            Some(Ok(line)) if line.starts_with("listening ") => {}
            other => return Err(format!("a server said {other:?} instead of where it listens")),
        }
        let executed = self.executed.clone();
        self.reader = Some(std::thread::spawn(move || {
            // A line that was cut off by a kill is no call's.
            for line in lines.map_while(Result::ok) {
                *lock(&executed).entry(line).or_default() += 1;
            }
        }));
        Ok(())
    }

    fn signal(&self, name: &str) -> Result<(), Failed> {
        let id = self.process.as_ref().ok_or("no server to send a signal to")?.id().to_string();
        match Command::new("kill").args([name, &id]).status() {
            Ok(status) if status.success() => Ok(()),
            other => Err(format!("kill {name} {id}: {other:?}")),
        }
    }

    /// Waits for its end, and for the last of what it said.
    async fn ended(&mut self) -> Result<std::process::ExitStatus, Failed> {
        let (mut process, reader) = match (self.process.take(), self.reader.take()) {
            (Some(process), Some(reader)) => (process, reader),
            _ => return Err("no server to wait for".to_owned()),
        };
        let waiting = tokio::task::spawn_blocking(move || {
            let status = process.wait();
            let _ = reader.join();
            status
        });
        match timeout(Duration::from_secs(60), waiting).await {
            Ok(Ok(Ok(status))) => Ok(status),
            other => Err(format!("a server did not end: {other:?}")),
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// What became of the calls.
#[derive(Default)]
struct Tally {
    begun: AtomicU64,
    done: AtomicU64,
    failures: Mutex<BTreeMap<String, u64>>,
    took: Mutex<Vec<Duration>>,
}

impl Tally {
    fn failed(&self) -> u64 {
        lock(&self.failures).values().sum()
    }

    /// One line for the log.
    fn line(&self) -> String {
        let (done, failed) = (self.done.load(Relaxed), self.failed());
        let percent = 100.0 * done as f64 / (done + failed).max(1) as f64;
        let mut took = lock(&self.took).clone();
        took.sort_unstable();
        let at =
            |share: f64| took.get(((took.len() as f64 * share) as usize).min(took.len().saturating_sub(1)));
        let ms = |share| at(share).map_or(0.0, |took| took.as_secs_f64() * 1e3);
        let (p50, p99, p999) = (ms(0.5), ms(0.99), ms(0.999));
        let why =
            lock(&self.failures).iter().map(|(why, count)| format!(", {why} {count}")).collect::<String>();
        format!(
            "{} calls, {percent:.3} % done, {failed} failed{why}; p50 {p50:.1} ms, p99 {p99:.1} ms, p99.9 {p999:.1} ms",
            done + failed
        )
    }
}

/// Calls at a steady rate, whether or not earlier ones were answered, until told; then waits for all of them.
async fn call(
    client: Client,
    rate: u32,
    idempotent: bool,
    tally: Arc<Tally>,
    over: tokio::sync::oneshot::Receiver<()>,
) {
    let mut ticks = interval(Duration::from_secs(1) / rate);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut calls = JoinSet::new();
    let mut over = std::pin::pin!(over);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = &mut over => break,
        }
        while calls.try_join_next().is_some() {}
        let (client, tally) = (client.clone(), tally.clone());
        let nonce = tally.begun.fetch_add(1, Relaxed).to_string();
        calls.spawn(async move {
            let began = Instant::now();
            let options = CallOptions::new().with_idempotent(idempotent);
            match client.call_with("/once", nonce.clone(), options).await {
                Ok(answer) if answer.message == nonce => {
                    tally.done.fetch_add(1, Relaxed);
                    lock(&tally.took).push(began.elapsed());
                }
                Ok(answer) => wrong(&tally, &format!("another call's answer {:?}", answer.message)),
                Err(status) => wrong(&tally, status.reason().name()),
            }
        });
    }
    while calls.join_next().await.is_some() {}
}

fn wrong(tally: &Tally, why: &str) {
    *lock(&tally.failures).entry(why.to_owned()).or_default() += 1;
}

/// Three servers, a client of them, and its calls.
struct Scene {
    sites: Vec<Site>,
    client: Client,
    tally: Arc<Tally>,
    executed: Executed,
    calls: tokio::task::JoinHandle<()>,
    over: tokio::sync::oneshot::Sender<()>,
    began: Instant,
}

impl Scene {
    /// A link takes a connection though its server is away, and breaks it: who calls what may be run once goes there directly.
    async fn new(rate: u32, idempotent: bool) -> Result<Scene, Failed> {
        let executed = Executed::default();
        let mut sites = Vec::new();
        for _ in 0..SERVERS {
            sites.push(Site::new(&executed).await?);
        }
        let endpoint = |site: &Site| match idempotent {
            true => site.link.endpoint().to_owned(),
            false => format!("tcp://{}", site.address),
        };
        let list: Vec<_> = sites.iter().map(endpoint).collect();
        let config = ServiceConfig::parse(CONFIG).map_err(|status| status.to_string())?;
        let client = Client::builder().endpoint(list.join(",")).service_config(config).build().await;
        let client = client.map_err(|status| status.to_string())?;
        let tally = Arc::new(Tally::default());
        let (over, ends) = tokio::sync::oneshot::channel();
        let calls = tokio::spawn(call(client.clone(), rate, idempotent, tally.clone(), ends));
        Ok(Scene { sites, client, tally, executed, calls, over, began: Instant::now() })
    }

    /// Waits until so many further calls were done.
    async fn calls(&self, further: u64) -> Result<(), Failed> {
        let until = self.tally.done.load(Relaxed) + further;
        let reached = async {
            // A count tells nobody when it grows.
            while self.tally.done.load(Relaxed) < until {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(60), reached).await.map_err(|_| format!("no {further} calls within 60 s"))
    }

    fn say(&self, what: &str) {
        println!("{:7.1} s  {what}", self.began.elapsed().as_secs_f64());
    }

    /// Ends the calls and says what became of them.
    async fn end(self) -> Result<(Vec<Site>, Client, Arc<Tally>, Executed), Failed> {
        let _ = self.over.send(());
        timeout(Duration::from_secs(60), self.calls)
            .await
            .map_err(|_| "calls hang")?
            .map_err(|e| e.to_string())?;
        println!("          {}", self.tally.line());
        Ok((self.sites, self.client, self.tally, self.executed))
    }
}

async fn restart(rounds: usize, rate: u32) -> Result<(), Failed> {
    let mut scene = Scene::new(rate, false).await?;
    for round in 0..rounds {
        scene.calls(u64::from(rate)).await?;
        let site = &mut scene.sites[round % SERVERS];
        site.signal("-TERM")?;
        let status = site.ended().await?;
        site.start()?;
        scene.say(&format!(
            "round {}: server {} ended with {status} and is back",
            round + 1,
            round % SERVERS
        ));
        if !status.success() {
            return Err(format!("a server that was asked to go ended with {status}"));
        }
    }
    scene.calls(u64::from(rate)).await?;
    let (mut sites, client, tally, executed) = scene.end().await?;
    client.close().await;
    for site in &mut sites {
        site.signal("-TERM")?;
        site.ended().await?;
    }
    let executed = lock(&executed);
    let (run, twice) = (executed.len() as u64, executed.values().filter(|count| **count > 1).count());
    println!("          {run} run, {twice} of them twice");
    match (tally.failed(), twice, run == tally.begun.load(Relaxed)) {
        (0, 0, true) => Ok(()),
        _ => Err("not every call was run once".to_owned()),
    }
}

async fn flap(time: Duration, rate: u32, seed: u64) -> Result<(), Failed> {
    let scene = Scene::new(rate, true).await?;
    let mut random = Random::new(seed);
    scene.calls(u64::from(rate)).await?;
    let before = Held::now()?;
    let until = scene.began + time;
    let mut times = 0;
    while Instant::now() < until {
        let stop = random.below(2) == 0;
        for site in &scene.sites {
            match stop {
                true => site.link.set_both(Faults { stop, ..Faults::default() }),
                false => site.link.cut(),
            }
        }
        sleep(Duration::from_millis(20 + random.below(480))).await;
        scene.sites.iter().for_each(|site| site.link.set_both(Faults::default()));
        sleep(Duration::from_millis(100 + random.below(1_900))).await;
        times += 1;
    }
    // The last of them takes the connections that were made meanwhile, too: they are dialled when their backoff says so.
    for site in &scene.sites {
        site.link.set_both(Faults { stop: true, ..Faults::default() });
    }
    sleep(Duration::from_secs(1)).await;
    for site in &scene.sites {
        site.link.set_both(Faults::default());
        site.link.cut();
    }
    let healed = Instant::now();
    scene.calls(1).await?;
    while scene.client.connections().len() < SERVERS {
        if healed.elapsed() > SETTLED {
            let there = scene.client.connections().len();
            return Err(format!("{there} of {SERVERS} connections {SETTLED:?} after the links healed"));
        }
        // How many connections there are tells nobody when it grows.
        sleep(Duration::from_millis(5)).await;
    }
    scene.say(&format!("flapped {times} times, whole again {:.1} s later", healed.elapsed().as_secs_f64()));
    scene.calls(u64::from(rate)).await?;
    let after = Held::now()?;
    scene.say(&format!(
        "descriptors {} and {}, memory {} and {} KiB",
        before.descriptors, after.descriptors, before.kib, after.kib
    ));
    let (_sites, client, tally, _) = scene.end().await?;
    let left: usize = client.connections().len();
    client.close().await;
    // The samples of the calls' times are this program's own.
    let own = lock(&tally.took).capacity() as u64 * 16 / 1_024;
    if after.descriptors > before.descriptors + 6
        || after.kib > before.kib + own + (32 << 10)
        || left > SERVERS
    {
        return Err("the link that flapped left something behind".to_owned());
    }
    Ok(())
}

async fn schedule(time: Duration, rate: u32, seed: u64) -> Result<(), Failed> {
    let mut scene = Scene::new(rate, true).await?;
    let mut random = Random::new(seed);
    let until = scene.began + time;
    let mut times = [0; 3];
    while Instant::now() < until {
        scene.calls(u64::from(rate)).await?;
        let (at, what) = (random.below(SERVERS as u64) as usize, random.below(3) as usize);
        let lasts = Duration::from_millis(1_000 + random.below(9_000));
        let site = &mut scene.sites[at];
        match what {
            0 => {
                site.signal("-KILL")?;
                site.ended().await?;
                sleep(lasts).await;
                site.start()?;
            }
            1 => {
                site.signal("-STOP")?;
                sleep(lasts).await;
                site.signal("-CONT")?;
            }
            _ => {
                site.link.set_both(Faults { stop: true, ..Faults::default() });
                sleep(lasts).await;
                site.link.set_both(Faults::default());
            }
        }
        times[what] += 1;
        let what = ["killed", "stopped", "cut off"][what];
        scene.say(&format!(
            "server {at} was {what} for {:.1} s; {}",
            lasts.as_secs_f64(),
            scene.tally.line()
        ));
        sleep(Duration::from_millis(random.below(5_000))).await;
    }
    let [killed, stopped, cut] = times;
    scene.say(&format!("{killed} killed, {stopped} stopped, {cut} cut off"));
    let (_sites, client, tally, _) = scene.end().await?;
    client.close().await;
    let (done, failed) = (tally.done.load(Relaxed), tally.failed());
    match failed * 1_000 <= done + failed {
        true => Ok(()),
        false => Err("fewer than 99.9 % of the calls were done".to_owned()),
    }
}

/// What this process holds.
struct Held {
    descriptors: usize,
    kib: u64,
}

impl Held {
    fn now() -> Result<Held, Failed> {
        let descriptors = std::fs::read_dir("/proc/self/fd").map_err(|error| error.to_string())?.count();
        let status = std::fs::read_to_string("/proc/self/status").map_err(|error| error.to_string())?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
        let kib = line.split_whitespace().next().and_then(|kib| kib.parse().ok());
        Ok(Held { descriptors, kib: kib.ok_or("no VmRSS in /proc/self/status")? })
    }
}
