//! The standalone server: a user of the sdk with built-in methods, a configuration file, logs and signals. Whatever a
//! connection or a call does is decided by the sdk.
#![forbid(unsafe_code)]

mod admin;
mod ask;
mod handlers;
mod man;
mod notify;
mod security;
mod telemetry;

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
use tokio::sync::{mpsc, oneshot};
use tracing::{error, info, level_filters::LevelFilter, warn};
use tracing_subscriber::{
    Layer,
    filter::{FilterExt, filter_fn},
    layer::SubscriberExt,
    reload,
    util::SubscriberInitExt,
};
use valkyrie_config::{
    Change, Config, ConfigError, File, Format, Layer as ConfigLayer, Layers, LogFormat, LogLevel,
    MinSecurity, PREFIX, Profile, Settings,
};
use valkyrie_sdk::{Log, Reason, ServerControl, ServerStats, Status, VERSION};

use crate::{
    admin::Admin,
    handlers::{Logged, State},
    notify::Notify,
    security::{Door, Reload, ToLog},
    telemetry::Telemetry,
};

/// Exit code for a wrong command line (clap's) or configuration.
const USAGE: u8 = 2;
/// Exit code when a second signal ends the server at once: what a shell reports for SIGINT.
const SECOND_SIGNAL: i32 = 130;
/// How often a drain says how far it is: when that has changed, and when it has not for so long.
const PROGRESS: Duration = Duration::from_secs(1);
const NO_PROGRESS: Duration = Duration::from_secs(10);

const EXIT_CODES: &str = "\
Exit codes:
  0    the server was asked to end and has drained, or the command succeeded
  1    it cannot run: an address cannot be bound, say; or who was asked is not ready or not there
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
    /// Ask a server's admin port whether it is ready: exit code 0 when it is, and what it says.
    Probe {
        /// The port: 127.0.0.1:9090 or unix:///path.
        admin: String,
    },
    /// Have a server read its configuration and its policy again, by its admin port: prints what changed; exit code 2 when it was
    /// refused, and then the one before it stays in force.
    Reload {
        /// The port: 127.0.0.1:9090 or unix:///path.
        admin: String,
    },
    /// Print a completion script: for bash, `source <(valkyrie-server completions bash)`.
    #[command(alias = "completion")]
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Print the manual page, or write a page for each command.
    #[command(hide = true)]
    Man(man::Man),
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Print a configuration with every key, its meaning and its default.
    Generate {
        /// The file's format. JSON has no comments.
        #[arg(long, value_enum, default_value = "yaml")]
        format: Format,
    },
    /// Print the configuration that `start` would have, each value with where it is from: the file, the environment, a flag or the default.
    Show {
        /// The format. JSON has an object for each key, with value and origin.
        #[arg(long, value_enum, default_value = "yaml")]
        format: Format,
        #[command(flatten)]
        start: Box<Start>,
    },
}

/// Flags win over the environment, the environment over the file, the file over the defaults.
#[derive(clap::Args)]
struct Start {
    /// Configuration file, ending in .yaml, .yml, .toml or .json.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Other defaults, and prod refuses what is unsafe. [default: dev]
    #[arg(long, value_enum)]
    profile: Option<Profile>,
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
    /// Where /healthz, /readyz, /metrics, /debug/connections and /reload are answered over HTTP: 127.0.0.1:port or unix:///path.
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<String>,
    /// Whether that may be an address that other machines reach. [default: false]
    #[arg(long, value_name = "BOOL")]
    admin_open: Option<bool>,
    /// A receiver of OpenTelemetry for the metrics: http://host:4318 or https://host.
    #[arg(long, value_name = "URL")]
    otlp_endpoint: Option<String>,
    /// How logs are written to standard error. [default: text]
    #[arg(long, value_enum)]
    log_format: Option<LogFormat>,
    /// What is logged; debug has a line per call. [default: info]
    #[arg(long, value_enum)]
    log_level: Option<LogLevel>,
}

impl Start {
    /// The configuration, and the variables that are no keys, though they begin as one.
    fn settings(self) -> Result<(Settings, Vec<String>), ConfigError> {
        let (environment, unknown) = ConfigLayer::environment(std::env::vars_os())?;
        let mut layers = Layers::new();
        if let Some(path) = &self.config {
            layers = layers.source(File::new(path));
        }
        let layers = layers.over(environment).over(ConfigLayer::flags(self.flags()?));
        Ok((Settings::load(layers)?, unknown))
    }

    /// The keys that flags set, as they stand in a file.
    fn flags(self) -> Result<serde_json::Map<String, serde_json::Value>, ConfigError> {
        let mut flags = serde_json::Map::new();
        macro_rules! take {
            ($($key:ident)*) => {$(
                if let Some(value) = self.$key {
                    let value = serde_json::to_value(value).map_err(|error| {
                        ConfigError::new("command line", format!("{}: {error}", stringify!($key)))
                    })?;
                    flags.insert(stringify!($key).to_owned(), value);
                }
            )*};
        }
        if !self.bind.is_empty() {
            flags.insert("bind".to_owned(), self.bind.into());
        }
        take! {
            profile certificates private_key client_authorities revocation_lists min_security static_tokens policy open_to_all audit
            drain_timeout_ms metrics admin admin_open otlp_endpoint log_format log_level
        }
        Ok(flags)
    }
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Start(start) => match start.settings() {
            Ok((settings, unknown)) => run(&Arc::new(settings), &unknown),
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
        Command::Config { command: ConfigCommand::Show { format, start } } => match start.settings() {
            Ok((settings, unknown)) => {
                unknown.iter().for_each(|variable| complain(&unknown_variable(variable)));
                print(settings.get().show(format).as_bytes())
            }
            Err(error) => fail(&error, USAGE),
        },
        Command::Probe { admin } => match ask::ask(&admin, "GET /readyz") {
            Ok((200, said)) => print(said.as_bytes()),
            Ok((_, said)) => fail(&format_args!("{admin}: {}", said.trim_end()), 1),
            Err(error) => fail(&format_args!("{admin}: {error}"), 1),
        },
        Command::Reload { admin } => match ask::ask(&admin, "POST /reload") {
            Ok((200, said)) => print(said.as_bytes()),
            Ok((422, said)) => fail(&said.trim_end(), USAGE),
            Ok((_, said)) => fail(&format_args!("{admin}: {}", said.trim_end()), 1),
            Err(error) => fail(&format_args!("{admin}: {error}"), 1),
        },
        Command::Man(man) => match man.run(Arguments::command()) {
            Ok(page) => print(&page),
            Err(error) => fail(&error, 1),
        },
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "valkyrie-server", &mut script);
            print(&script)
        }
    }
}

fn fail(error: &dyn std::fmt::Display, code: u8) -> ExitCode {
    complain(error);
    ExitCode::from(code)
}

/// Where nobody takes it, the exit code still tells.
fn complain(what: &dyn std::fmt::Display) {
    let _ = writeln!(io::stderr(), "valkyrie-server: {what}");
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
    Ok(runtime()?.block_on(config.check(&to_log()))?)
}

/// Other programs' variables may begin so, too: it is a word to whoever mistyped one.
fn unknown_variable(variable: &str) -> String {
    format!(
        "{variable} begins as a key of the configuration and is none; `config generate` has them, {PREFIX} stands before their names"
    )
}

fn run(settings: &Arc<Settings>, unknown: &[String]) -> ExitCode {
    match runtime().and_then(|runtime| runtime.block_on(serve(settings, unknown))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Configuration(error)) => fail(&error, USAGE),
        Err(Failure::Other(status)) => {
            let wrong = [Reason::INVALID_ENDPOINT, Reason::INVALID_CONFIGURATION, Reason::UNSUPPORTED_SCHEME];
            fail(&status.message(), if wrong.contains(&status.reason()) { USAGE } else { 1 })
        }
    }
}

fn to_log() -> Arc<dyn Log> {
    Arc::new(ToLog)
}

fn level(config: &Config) -> LevelFilter {
    match config.log_level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
    }
}

/// Begins to log. Gives what sets another level.
fn log(config: &Config, telemetry: &Telemetry) -> impl Fn(LevelFilter) + Send + 'static + use<> {
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_target(false);
    let lines = match config.log_format {
        LogFormat::Text => lines.with_ansi(false).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    // The spans that a line was written in are not repeated in it.
    let (level, handle) = reload::Layer::new(level(config));
    let lines = lines.with_filter(level.and(filter_fn(|metadata| !metadata.is_span())));
    tracing_subscriber::registry().with(lines).with(telemetry.layer()).init();
    // It fails when nothing logs any more.
    move |level| drop(handle.reload(level))
}

async fn serve(settings: &Arc<Settings>, unknown: &[String]) -> Result<(), Failure> {
    // What cannot change is by this version.
    let config = &*settings.config();
    let telemetry = Telemetry::new(config)?;
    let set_level = log(config, &telemetry);
    unknown.iter().for_each(|variable| warn!("{}", unknown_variable(variable)));
    let notify = Arc::new(Notify::from_environment());
    // Before anybody can know that the server is there, and so before anybody can send one.
    let mut signals = Signals::new().map_err(|error| internal("signals", &error))?;
    let (builder, access) = config.secured(&to_log())?;
    let door = match (access, config.open_audit()?) {
        (Some(access), Some(audit)) => Some(Arc::new(Door::new(access.with_audit(audit)))),
        (access, _) => access.map(|access| Arc::new(Door::new(access))),
    };
    let usize = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
    let mut builder = builder
        .limits(config.limits())
        .max_connections(usize(config.max_connections))
        .max_running_handlers(usize(config.max_running_handlers))
        .drain_timeout_ms(config.drain_timeout_ms)
        .connection_grace_ms(config.connection_grace_ms)
        .max_connection_idle_ms(config.max_connection_idle_ms)
        .keepalive_ms(config.keepalive_ms)
        .keepalive_timeout_ms(config.keepalive_timeout_ms)
        .keepalive_idle_ms(config.keepalive_idle_ms);
    if config.max_connection_age_ms > 0 {
        builder = builder.max_connection_age_ms(config.max_connection_age_ms);
    }
    if let Some(policy) = config.limiter()? {
        builder = builder.concurrency_limit(policy);
    }
    if let Some(policy) = config.dedup()? {
        builder = builder.dedup(policy);
    }
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
    let (reloads, asked) = mpsc::channel(1);
    let state = State::new(settings.clone(), door.clone());
    for (path, handler) in handlers::all(&state) {
        builder = builder.handler(path, Logged(telemetry.traced(handler.0)));
    }
    let admin = match config.admin()? {
        Some(endpoint) => Some(Admin::bind(endpoint).await?),
        None => None,
    };
    let admin_address = admin.as_ref().map(Admin::address);
    // Until the process ends: a probe is told that the server drains.
    let _admin = admin.map(|admin| tokio::spawn(admin.serve(state.clone(), reloads)));
    let failed = |status: Status| match config.blame(&status) {
        Some(error) => Failure::Configuration(error),
        None => Failure::Other(status),
    };
    let server = builder.build().await.map_err(failed)?;
    let control = server.control();
    let _ = state.control.set(control.clone());
    telemetry.observe(&state);
    let hangup = Reload::new().map_err(|error| internal("signals", &error))?;
    let follows = Follows {
        settings: settings.clone(),
        state: state.clone(),
        control: control.clone(),
        notify: notify.clone(),
    };
    tokio::spawn(follows.run(hangup, asked, set_level));
    let endpoints = server.endpoints();
    for endpoint in &endpoints {
        info!(%endpoint, version = VERSION, "listening");
    }
    if let Some(address) = &admin_address {
        info!(%address, "admin");
        if config.admin_open {
            warn!(%address, "admin_open: whoever reaches this address reads the metrics and who is connected");
        }
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
    // One line for whoever started us with port 0, and one for the admin port. Nobody may be reading it.
    let admin_line = admin_address.map(|address| format!("admin {address}\n")).unwrap_or_default();
    print(format!("listening {}\n{admin_line}", endpoints.join(" ")).as_bytes());

    let mut serving = tokio::spawn(async move { server.start().await });
    notify.say(&format!("READY=1\nSTATUS=listening on {}", endpoints.join(" ")));
    let watched = notify.clone();
    tokio::spawn(async move { watched.watch().await });
    let signal = tokio::select! {
        ended = &mut serving => return match ended {
            Ok(ended) => ended.map_err(Failure::Other),
            Err(error) => Err(internal("the server's task died", &error)),
        },
        signal = signals.next() => signal,
    };
    let began = Instant::now();
    // First, so that watchers learn it from the server and not from a broken stream.
    state.health.drain();
    let limit_ms = settings.get().drain_timeout_ms;
    let ServerStats { streams: calls, connections, .. } = control.stats();
    info!(signal, calls, connections, limit_ms, "draining");
    notify.say(&format!("STOPPING=1\nSTATUS=draining, {calls} calls left"));
    let mut told = (calls, began);
    let mut progress = tokio::time::interval_at(tokio::time::Instant::now() + PROGRESS, PROGRESS);
    let shutdown = control.shutdown();
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            _ = progress.tick() => {
                let ServerStats { streams: calls, connections, .. } = control.stats();
                if calls != told.0 || told.1.elapsed() >= NO_PROGRESS {
                    let elapsed_ms = elapsed_ms(began);
                    info!(calls, connections, elapsed_ms, limit_ms, "still draining");
                    notify.say(&format!("STATUS=draining, {calls} calls left"));
                    told = (calls, Instant::now());
                }
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
    telemetry.end().await;
    info!(elapsed_ms = elapsed_ms(began), "ended");
    Ok(())
}

/// How often it is looked whether the configuration's files are others. What is written is in force after two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Puts what changes of the configuration in force.
struct Follows {
    settings: Arc<Settings>,
    state: State,
    control: ServerControl,
    notify: Arc<Notify>,
}

/// Who asks for a reload, and waits for what came of it: a line for each key that changed, or what is wrong.
type Asked = oneshot::Sender<Result<String, String>>;

impl Follows {
    /// Looks at the files, and reads them at once when it is told to. Never ends.
    async fn run(
        self,
        mut hangup: Reload,
        mut asked: mpsc::Receiver<Asked>,
        set_level: impl Fn(LevelFilter),
    ) {
        let mut looks = tokio::time::interval(LOOK_AGAIN);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let (now, who) = tokio::select! {
                () = hangup.asked() => (true, None),
                Some(who) = asked.recv() => (true, Some(who)),
                _ = looks.tick() => (false, None),
            };
            if now {
                self.notify.reloading();
            }
            let settings = self.settings.clone();
            // A file may be waited for.
            let looked =
                tokio::task::spawn_blocking(
                    move || {
                        if now { Some(settings.reload()) } else { settings.look() }
                    },
                );
            let came = match looked.await.ok().flatten() {
                None => Ok(Vec::new()),
                Some(Ok(changes)) => {
                    self.apply(&changes, &set_level);
                    Ok(changes)
                }
                Some(Err(why)) => {
                    error!(%why, "the configuration was refused; the one before it stays in force, whole");
                    Err(why.to_string())
                }
            };
            if now {
                self.notify.say("READY=1");
            }
            if let Some(who) = who {
                // SIGHUP reaches whoever tends the policy by itself.
                let policy = self.state.reload_policy();
                let _ = who.send(came.and_then(|changes| Ok(told(&changes, policy?))));
            }
        }
    }

    fn apply(&self, changes: &[Change], set_level: &impl Fn(LevelFilter)) {
        let config = self.settings.get();
        self.control.set_drain_timeout_ms(config.drain_timeout_ms);
        self.control.set_max_connections(usize::try_from(config.max_connections).unwrap_or(usize::MAX));
        self.state.tell_metrics(config.metrics);
        set_level(level(&config));
        for Change { key, from, to, is_applied, .. } in changes {
            if *is_applied {
                info!(key, %from, %to, "the configuration has changed");
            } else {
                warn!(key, %from, %to, "the configuration has changed, and this key needs a restart: the old value stays");
            }
        }
        info!(changes = changes.len(), "configuration loaded");
    }
}

/// What changed, for whoever asked: a line for each. Values are in JSON.
fn told(changes: &[Change], is_other_policy: bool) -> String {
    let line = |Change { key, from, to, is_applied, .. }: &Change| match is_applied {
        true => format!("{key}: {from} -> {to}\n"),
        false => format!("{key}: {from} stays until a restart, then {to}\n"),
    };
    let mut lines: String = changes.iter().map(line).collect();
    if is_other_policy {
        lines.push_str("the policy has other rules\n");
    }
    if lines.is_empty() { "nothing changed\n".to_owned() } else { lines }
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
