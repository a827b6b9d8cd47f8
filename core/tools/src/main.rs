//! The command line: `valkyrie send`, `interactive`, `benchmark`, `debug call`, `debug connect`, `debug connections`, `audit`,
//! `cert`, `config`, `completions`, `man`. A user of the sdk; what a call does is decided there.
#![forbid(unsafe_code)]

mod audit;
mod benchmark;
mod call;
mod cert;
mod config;
mod interactive;
mod man;
mod output;
mod send;
mod stream;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::output::{Failure, print};

const EXIT_CODES: &str = "\
Exit codes, by the class of what went wrong:
  0    everything succeeded
  1    input or output of this program failed
  2    the command line or a configuration is wrong
  10   application: the server's own status
  11   caller: the call is wrong (unknown method, bad endpoint, too large), or its deadline passed
  12   auth: credentials
  13   transient: cannot connect, connection lost; trying again may help
  14   server: the handler panicked, or the server broke a rule
  15   protocol: the bytes are not right; is it a Valkyrie server? An audit log: it is not as it was written
  130  interrupted";

const SEND: &str = "\
Examples:
  valkyrie send --message Hello
  valkyrie send --endpoint tls://example.org:443 --system-roots --method /orders/get --file order.json --json
  tail -f log | valkyrie send --stream --method /ingest
  valkyrie send --stream --method /valkyrie.Health/Watch --message ''";

const INTERACTIVE: &str = "\
Examples:
  valkyrie interactive --endpoint tcp://localhost:8080
  echo 'call /echo Hello' | valkyrie interactive --fail-fast";

const BENCHMARK: &str = "\
Examples:
  valkyrie benchmark --connections 100 --requests 1000
  valkyrie benchmark --duration 30 --warm-up 5 --rate 10000 --size 1024 --hdr latencies.hgrm
  valkyrie benchmark --stream 100 --json > before.json
  valkyrie benchmark --stream 100 --compare before.json";

const DEBUG_CALL: &str = "\
Examples:
  valkyrie debug call tcp://localhost:8080 /echo Hello
  valkyrie debug call 'script://a/1=UNAVAILABLE~200ms' /echo --idempotent";

const DEBUG_CONNECT: &str = "\
Examples:
  valkyrie debug connect tls://example.org:443 --system-roots";

/// What stands at the end of a command's help.
fn after(examples: &str) -> String {
    format!("{examples}\n\n{EXIT_CODES}")
}

/// Talks to Valkyrie servers.
#[derive(Parser)]
#[command(name = "valkyrie", version, after_help = EXIT_CODES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    #[command(after_help = after(SEND))]
    Send(send::Send),
    #[command(after_help = after(INTERACTIVE))]
    Interactive(interactive::Interactive),
    #[command(after_help = after(BENCHMARK))]
    Benchmark(benchmark::Benchmark),
    /// Look at a call step by step, or inside a running server.
    Debug {
        #[command(subcommand)]
        command: DebugCommand,
    },
    /// Look at audit logs.
    Audit {
        #[command(subcommand)]
        command: audit::Audit,
    },
    /// Make certificates for development, and look at certificates.
    Cert {
        #[command(subcommand)]
        command: cert::Cert,
    },
    /// Check and convert configurations of servers.
    Config {
        #[command(subcommand)]
        command: config::Config,
    },
    /// Print a completion script: for bash, `source <(valkyrie completions bash)`.
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
enum DebugCommand {
    #[command(after_help = after(DEBUG_CALL))]
    Call(Box<call::Call>),
    #[command(after_help = after(DEBUG_CONNECT))]
    Connect(Box<call::Connect>),
    /// List the server's connections: state, age, open streams, calls, bytes.
    #[command(after_help = EXIT_CODES)]
    Connections(send::Connections),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Man(man) => man.run(Arguments::command()),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "valkyrie", &mut script);
            print(&script)
        }
        Command::Audit { command } => command.run(),
        Command::Cert { command } => command.run(),
        Command::Config { command } => command.run(),
        Command::Send(send) => run(send.run()),
        Command::Interactive(interactive) => interactive.run(),
        Command::Benchmark(benchmark) => run(benchmark.run()),
        Command::Debug { command: DebugCommand::Call(call) } => run(call.run()),
        Command::Debug { command: DebugCommand::Connect(connect) } => run(connect.run()),
        Command::Debug { command: DebugCommand::Connections(connections) } => run(connections.run()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(work)
}
