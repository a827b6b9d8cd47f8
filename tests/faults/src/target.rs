//! What evil clients meet: the real program in a process of its own, or the sdk's server in this one; and the honest
//! client that is served beside them.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::task::JoinHandle;
use valkyrie_sdk::{Client, EchoHandler, Limits, ServerBuilder, ServerControl, handler_fn};

/// A server that is attacked.
pub enum Server {
    /// The program.
    Program(Program),
    /// The sdk's.
    Sdk {
        /// Where it listens.
        endpoints: Vec<String>,
        /// Its handle.
        control: ServerControl,
        /// What `/hold` did.
        held: Arc<Held>,
    },
}

/// How often `/hold` was started, how often it runs now, and how often it ran at once.
#[derive(Default)]
pub struct Held {
    started: AtomicUsize,
    running: AtomicUsize,
    peak: AtomicUsize,
}

struct Running(Arc<Held>);

impl Running {
    fn new(held: &Arc<Held>) -> Self {
        held.started.fetch_add(1, Relaxed);
        let now = held.running.fetch_add(1, Relaxed) + 1;
        held.peak.fetch_max(now, Relaxed);
        Self(held.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Relaxed);
    }
}

/// `valkyrie-server`, in a process of its own.
pub struct Program {
    process: Child,
    endpoints: Vec<String>,
    log: PathBuf,
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_file(&self.log);
        // A killed process leaves its socket behind.
        for path in self.endpoints.iter().filter_map(|endpoint| endpoint.strip_prefix("unix://")) {
            let _ = fs::remove_file(path);
        }
    }
}

fn place(ending: &str) -> PathBuf {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let name = format!("valkyrie-faults-{}-{}{ending}", std::process::id(), NEXT.fetch_add(1, Relaxed));
    std::env::temp_dir().join(name)
}

/// The program beside this test's own, built if it is not there or not up to date.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "-p", "valkyrie-server"]);
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        let built = build.status();
        assert!(built.is_ok_and(|status| status.success()), "valkyrie-server cannot be built");
        let mut path = std::env::current_exe().expect("a program knows where it is");
        // target/debug/deps/this-test
        path.pop();
        path.pop();
        path.join("valkyrie-server")
    })
}

impl Program {
    /// Starts it with these arguments more, on a TCP port and a Unix socket.
    pub fn start(arguments: &[&str]) -> Program {
        Self::run(Command::new(program()), arguments)
    }

    /// Starts it with so many file descriptors at most.
    pub fn start_with_descriptors(most: usize) -> Program {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("ulimit -n {most} && exec \"$0\" \"$@\"")]).arg(program());
        Self::run(shell, &[])
    }

    fn run(mut command: Command, arguments: &[&str]) -> Program {
        let log = place(".log");
        let unix = format!("unix://{}", place(".sock").display());
        let stderr = fs::File::create(&log).expect("a file for the log");
        let mut process = command
            .args(["start", "--bind", "127.0.0.1:0", "--bind", &unix])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .expect("valkyrie-server starts");
        let mut line = String::new();
        let stdout = process.stdout.take().expect("its output is piped");
        BufReader::new(stdout).read_line(&mut line).expect("valkyrie-server says where it listens");
        let endpoints = line.trim().strip_prefix("listening ").unwrap_or_default().split(' ');
        Program { process, endpoints: endpoints.map(str::to_owned).collect(), log }
    }

    /// What it logged so far.
    pub fn log(&self) -> Vec<u8> {
        fs::read(&self.log).unwrap_or_default()
    }

    /// A line of `/proc/PID/status` in KiB.
    fn memory(&self, line: &str) -> u64 {
        let path = format!("/proc/{}/status", self.process.id());
        let status = fs::read_to_string(path).expect("the program runs");
        let line = status.lines().find_map(|text| text.strip_prefix(line)).unwrap_or_default();
        line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().expect("a number of kB")
    }

    /// Resident memory now in KiB; the peak counts from here.
    fn rest(&self) -> u64 {
        let _ = fs::write(format!("/proc/{}/clear_refs", self.process.id()), "5");
        self.memory("VmRSS")
    }
}

impl Server {
    /// The sdk's server with `/echo` and `/hold`.
    pub async fn sdk(limits: Limits) -> Server {
        let held = Arc::new(Held::default());
        let of = held.clone();
        let hold = handler_fn(move |_| {
            let running = Running::new(&of);
            async move {
                let _running = running;
                std::future::pending().await
            }
        });
        let unix = format!("unix://{}", place(".sock").display());
        let server = ServerBuilder::new()
            .bind("127.0.0.1:0")
            .bind(unix)
            .limits(limits)
            .handler("/echo", EchoHandler)
            .handler("/hold", hold)
            .build()
            .await
            .expect("loopback can be bound");
        let (endpoints, control) = (server.endpoints(), server.control());
        tokio::spawn(async move { server.start().await });
        Server::Sdk { endpoints, control, held }
    }

    /// Where it listens: `tcp` or `unix`.
    pub fn endpoint(&self, scheme: &str) -> &str {
        let (Server::Program(Program { endpoints, .. }) | Server::Sdk { endpoints, .. }) = self;
        endpoints.iter().find(|endpoint| endpoint.starts_with(scheme)).expect("it listens there")
    }

    /// Resident memory now in KiB, of the program.
    pub fn rest(&self) -> Option<u64> {
        match self {
            Server::Program(program) => Some(program.rest()),
            Server::Sdk { .. } => None,
        }
    }

    /// The highest resident memory since [`Server::rest`] in KiB.
    pub fn peak(&self) -> Option<u64> {
        match self {
            Server::Program(program) => Some(program.memory("VmHWM")),
            Server::Sdk { .. } => None,
        }
    }

    /// How often `/hold` was started.
    pub fn held(&self) -> usize {
        match self {
            Server::Program(_) => 0,
            Server::Sdk { held, .. } => held.started.load(Relaxed),
        }
    }

    /// How often `/hold` ran at once.
    pub fn running_peak(&self) -> usize {
        match self {
            Server::Program(_) => 0,
            Server::Sdk { held, .. } => held.peak.load(Relaxed),
        }
    }
}

/// An honest client that calls without a pause, and how long its calls take.
pub struct Honest {
    over: Arc<AtomicBool>,
    task: JoinHandle<Vec<Duration>>,
}

/// Calls whose times are taken before and at least beside an attack; more where figures are asked for.
const CALLS: usize = if cfg!(debug_assertions) { 300 } else { 3_000 };

impl Honest {
    /// The 99th percentile of calls with nobody beside.
    pub async fn alone(client: Client) -> Duration {
        let mut times = Vec::new();
        for _ in 0..CALLS {
            times.push(call(&client).await);
        }
        p99(times)
    }

    /// Calls until it is stopped.
    pub fn start(client: Client) -> Honest {
        let over = Arc::new(AtomicBool::new(false));
        let stop = over.clone();
        let task = tokio::spawn(async move {
            let mut times = Vec::new();
            while times.len() < CALLS || !stop.load(Relaxed) {
                times.push(call(&client).await);
            }
            times
        });
        Honest { over, task }
    }

    /// The 99th percentile of all its calls, each of which was answered.
    pub async fn stop(self) -> Duration {
        self.over.store(true, Relaxed);
        p99(self.task.await.expect("an honest client is served"))
    }
}

async fn call(client: &Client) -> Duration {
    let began = Instant::now();
    let answer = client.request("honest").await.expect("an honest client is served");
    assert_eq!(answer, "honest");
    began.elapsed()
}

fn p99(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() * 99 / 100]
}
