//! The standalone server: a user of the sdk with built-in methods, a configuration file, logs and signals. Whatever a
//! connection or a call does is decided by the sdk.
#![forbid(unsafe_code)]

mod config;
mod handlers;
mod security;

use std::{
    io::{self, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use tracing::{info, level_filters::LevelFilter, warn};
use valkyrie_sdk::{Reason, Status, VERSION};

use crate::{
    config::{Config, ConfigError, Format, LogFormat, LogLevel, MinSecurity},
    handlers::{Health, State},
    security::{Door, Reload},
};

/// Exit code for a wrong command line (clap's) or configuration.
const USAGE: u8 = 2;
/// Exit code when a second signal ends the server at once: what a shell reports for SIGINT.
const SECOND_SIGNAL: i32 = 130;
/// How often a drain says how far it is.
const PROGRESS: Duration = Duration::from_secs(1);

const EXIT_CODES: &str = "\
Exit codes:
  0    the server was asked to end and has drained, or the command succeeded
  1    it cannot run: an address cannot be bound, say
  2    the command line or the configuration is wrong
  130  a second signal ended the drain";

/// The standalone Valkyrie server: /echo, /valkyrie.Health, /valkyrie.Metrics.
#[derive(Parser)]
#[command(name = "valkyrie-server", version, after_help = EXIT_CODES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve until SIGTERM or SIGINT, then drain; a second signal ends at once.
    Start(Box<Start>),
    /// Work with configuration files.
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Check a configuration file; errors name file, line, key, value and the fix.
    Check {
        /// The file, ending in .yaml, .yml, .toml or .json.
        file: PathBuf,
    },
    /// Print a completion script.
    Completion {
        /// The shell.
        shell: Shell,
    },
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Print a configuration with every key, its meaning and its default.
    Generate {
        /// The file's format. JSON has no comments.
        #[arg(long, value_enum, default_value = "yaml")]
        format: Format,
    },
}

/// Flags win over the file, the file over the defaults.
#[derive(clap::Args)]
struct Start {
    /// Configuration file, ending in .yaml, .yml, .toml or .json.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Where to listen: host:port (answers WebSocket too), tls://host:port (wss:// too), quic://host:port or unix:///path.
    /// May be repeated.
    /// [default: 0.0.0.0:8080]
    #[arg(long, value_name = "ENDPOINT")]
    bind: Vec<String>,
    /// Certificate chain in PEM, the server's own first, for tls://, quic:// and sealed sessions.
    #[arg(long, value_name = "FILE")]
    certificates: Option<PathBuf>,
    /// The certificate's private key in PEM.
    #[arg(long, value_name = "FILE")]
    private_key: Option<PathBuf>,
    /// Authorities in PEM; every client over TLS must show a certificate of theirs.
    #[arg(long, value_name = "FILE")]
    client_authorities: Option<PathBuf>,
    /// Revocation lists of those authorities in PEM.
    #[arg(long, value_name = "FILE")]
    revocation_lists: Option<PathBuf>,
    /// The least that every connection must have. [default: insecure]
    #[arg(long, value_enum, value_name = "LEVEL")]
    min_security: Option<MinSecurity>,
    /// Tokens for development, a file that only its owner may read. Issuers of tokens are for the configuration file.
    #[arg(long, value_name = "FILE")]
    static_tokens: Option<PathBuf>,
    /// Who may call what and how often, a file (.toml or .json); SIGHUP reads it again.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Whether everybody may call everything where there is no policy. [default: false]
    #[arg(long, value_name = "BOOL")]
    open_to_all: Option<bool>,
    /// The file that gets a line for every decision.
    #[arg(long, value_name = "FILE")]
    audit: Option<PathBuf>,
    /// How long a shutdown lets calls finish, in milliseconds. [default: 30000]
    #[arg(long, value_name = "MS")]
    drain_timeout_ms: Option<u64>,
    /// Whether /valkyrie.Metrics/* answers. [default: true]
    #[arg(long, value_name = "BOOL")]
    metrics: Option<bool>,
    /// How logs are written to standard error. [default: text]
    #[arg(long, value_enum)]
    log_format: Option<LogFormat>,
    /// What is logged; debug has a line per call. [default: info]
    #[arg(long, value_enum)]
    log_level: Option<LogLevel>,
}

impl Start {
    fn config(self) -> Result<Config, ConfigError> {
        let mut config = match &self.config {
            Some(path) => Config::read(path)?,
            None => Config::default(),
        };
        if !self.bind.is_empty() {
            config.bind = self.bind;
        }
        config.certificates = self.certificates.unwrap_or(config.certificates);
        config.private_key = self.private_key.unwrap_or(config.private_key);
        config.client_authorities = self.client_authorities.unwrap_or(config.client_authorities);
        config.revocation_lists = self.revocation_lists.unwrap_or(config.revocation_lists);
        config.min_security = self.min_security.unwrap_or(config.min_security);
        config.static_tokens = self.static_tokens.unwrap_or(config.static_tokens);
        config.policy = self.policy.unwrap_or(config.policy);
        config.open_to_all = self.open_to_all.unwrap_or(config.open_to_all);
        config.audit = self.audit.unwrap_or(config.audit);
        config.drain_timeout_ms = self.drain_timeout_ms.unwrap_or(config.drain_timeout_ms);
        config.metrics = self.metrics.unwrap_or(config.metrics);
        config.log_format = self.log_format.unwrap_or(config.log_format);
        config.log_level = self.log_level.unwrap_or(config.log_level);
        Ok(config)
    }
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Start(start) => match start.config() {
            Ok(config) => run(&config),
            Err(error) => fail(&error, USAGE),
        },
        Command::Check { file } => match check(&file) {
            Ok(()) => print(format!("{}: ok\n", file.display()).as_bytes()),
            Err(Failure::Configuration(error)) => fail(&error, USAGE),
            Err(Failure::Other(status)) => fail(&status.message(), 1),
        },
        Command::Config { command: ConfigCommand::Generate { format } } => {
            print(Config::generate(format).as_bytes())
        }
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "valkyrie-server", &mut script);
            print(&script)
        }
    }
}

fn fail(error: &dyn std::fmt::Display, code: u8) -> ExitCode {
    eprintln!("valkyrie-server: {error}");
    ExitCode::from(code)
}

/// Whoever reads may stop reading: that is no error.
fn print(bytes: &[u8]) -> ExitCode {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => fail(&error, 1),
    }
}

/// Why the server does not run.
enum Failure {
    Configuration(ConfigError),
    Other(Status),
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Configuration(error)
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let built = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    built.map_err(|error| internal("cannot start the runtime", &error))
}

fn internal(what: &str, error: &dyn std::fmt::Display) -> Failure {
    Failure::Other(Status::new(valkyrie_sdk::Code::Internal, format!("{what}: {error}")))
}

fn check(file: &Path) -> Result<(), Failure> {
    let config = Config::read(file)?;
    Ok(runtime()?.block_on(config.check())?)
}

fn run(config: &Config) -> ExitCode {
    log(config);
    match runtime().and_then(|runtime| runtime.block_on(serve(config))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Configuration(error)) => fail(&error, USAGE),
        Err(Failure::Other(status)) => {
            let wrong = [Reason::INVALID_ENDPOINT, Reason::INVALID_CONFIGURATION, Reason::UNSUPPORTED_SCHEME];
            fail(&status.message(), if wrong.contains(&status.reason()) { USAGE } else { 1 })
        }
    }
}

fn log(config: &Config) {
    let level = match config.log_level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
    };
    let subscriber =
        tracing_subscriber::fmt().with_max_level(level).with_writer(io::stderr).with_target(false);
    match config.log_format {
        LogFormat::Text => subscriber.with_ansi(false).init(),
        LogFormat::Json => subscriber.json().flatten_event(true).init(),
    }
}

async fn serve(config: &Config) -> Result<(), Failure> {
    // Before anybody can know that the server is there, and so before anybody can send one.
    let mut signals = Signals::new().map_err(|error| internal("signals", &error))?;
    let (builder, access) = config.secured()?;
    let door = match (access, config.open_audit()?) {
        (Some(access), Some(audit)) => Some(Arc::new(Door::new(access.with_audit(audit)))),
        (access, _) => access.map(|access| Arc::new(Door::new(access))),
    };
    let usize = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
    let mut builder = builder
        .limits(config.limits())
        .max_connections(usize(config.max_connections))
        .max_running_handlers(usize(config.max_running_handlers))
        .drain_timeout_ms(config.drain_timeout_ms);
    if let Some(door) = &door {
        let reload = Reload::new().map_err(|error| internal("signals", &error))?;
        tokio::spawn(door.clone().tend(reload));
        builder = builder.gate(door.clone());
    }
    for endpoint in &config.bind {
        builder = builder.bind(endpoint);
    }
    for origin in &config.allow_origins {
        builder = builder.allow_origin(origin);
    }
    let state = State::new(config, door.clone());
    for (path, handler) in handlers::all(&state, config) {
        builder = builder.handler(path, handler);
    }
    let failed = |status: Status| match config.blame(&status) {
        Some(error) => Failure::Configuration(error),
        None => Failure::Other(status),
    };
    let server = builder.build().await.map_err(failed)?;
    let control = server.control();
    let _ = state.control.set(control.clone());
    let endpoints = server.endpoints();
    for endpoint in &endpoints {
        info!(%endpoint, version = VERSION, "listening");
    }
    let open = endpoints.iter().find(|endpoint| is_open(endpoint));
    if config.denies_all() {
        warn!(
            "no policy: every call but /valkyrie.Health/* is denied; the key `policy` names a file of rules, `open_to_all: true` \
             lets everybody call"
        );
    }
    if let Some(endpoint) = open {
        if config.allows_all() {
            warn!(
                %endpoint,
                "insecure: anybody who reaches this address may call; bind 127.0.0.1 or a unix socket to keep others out, or give \
                 certificates for tls:// and a policy"
            );
        } else if config.min_security == MinSecurity::Insecure {
            warn!(
                %endpoint,
                "not encrypted: whoever is on the way reads and changes what is said, tokens too; bind tls:// in its place, or set \
                 min_security: tls"
            );
        }
    }
    // One line for whoever started us with port 0. Nobody may be reading it.
    print(format!("listening {}\n", endpoints.join(" ")).as_bytes());

    let mut serving = tokio::spawn(async move { server.start().await });
    let signal = tokio::select! {
        ended = &mut serving => return match ended {
            Ok(ended) => ended.map_err(Failure::Other),
            Err(error) => Err(internal("the server's task died", &error)),
        },
        signal = signals.next() => signal,
    };
    info!(signal, calls = control.stats().streams, limit_ms = config.drain_timeout_ms, "draining");
    let began = Instant::now();
    // First, so that watchers learn it from the server and not from a broken stream.
    state.health.send_replace(Health::Draining);
    let mut progress = tokio::time::interval_at(tokio::time::Instant::now() + PROGRESS, PROGRESS);
    let shutdown = control.shutdown();
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            _ = progress.tick() => {
                info!(calls = control.stats().streams, elapsed_ms = elapsed_ms(began), "still draining");
            }
            signal = signals.next() => {
                warn!(signal, calls = control.stats().streams, "ended before the drain was over");
                std::process::exit(SECOND_SIGNAL);
            }
        }
    }
    let cut = control.stats().calls_cut;
    if cut > 0 {
        warn!(calls = cut, "the drain timeout passed; calls were cut");
    }
    if let Some(door) = &door {
        door.flush();
    }
    info!(elapsed_ms = elapsed_ms(began), "ended");
    Ok(())
}

fn elapsed_ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Whether others than this machine may reach the endpoint.
fn is_open(endpoint: &str) -> bool {
    let address = endpoint.strip_prefix("tcp://").and_then(|address| address.parse::<SocketAddr>().ok());
    address.is_some_and(|address| !address.ip().is_loopback())
}

/// The signals that ask the server to end.
struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    #[cfg(unix)]
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    #[cfg(unix)]
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }

    #[cfg(not(unix))]
    fn new() -> io::Result<Self> {
        Ok(Self {})
    }

    #[cfg(not(unix))]
    async fn next(&mut self) -> &'static str {
        match tokio::signal::ctrl_c().await {
            Ok(()) => "Ctrl-C",
            // Without a handler the system ends the process itself.
            Err(_) => std::future::pending().await,
        }
    }
}
