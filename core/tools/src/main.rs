//! The command line: `valkyrie send`, `benchmark`, `debug connections`, `audit`, `cert`, `completion`. A user of the sdk; what a call
//! does is decided there.
#![forbid(unsafe_code)]

mod audit;
mod benchmark;
mod cert;
mod output;
mod send;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::output::{Failure, print};

const EXIT_CODES: &str = "\
Exit codes, by the class of what went wrong:
  0    everything succeeded
  1    input or output of this program failed
  2    the command line is wrong
  10   application: the server's own status
  11   caller: the call is wrong (unknown method, bad endpoint, too large), or its deadline passed
  12   auth: credentials
  13   transient: cannot connect, connection lost; trying again may help
  14   server: the handler panicked, or the server broke a rule
  15   protocol: the bytes are not right; is it a Valkyrie server? An audit log: it is not as it was written
  130  interrupted";

/// Talks to Valkyrie servers.
#[derive(Parser)]
#[command(name = "valkyrie", version, after_help = EXIT_CODES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Send one message and print the answer.
    #[command(after_help = EXIT_CODES)]
    Send(send::Send),
    /// Measure a server with many calls and print a latency histogram.
    #[command(after_help = EXIT_CODES)]
    Benchmark(benchmark::Benchmark),
    /// Look inside a running server.
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
    /// Print a completion script.
    Completion {
        /// The shell.
        shell: Shell,
    },
}

#[derive(Subcommand)]
enum DebugCommand {
    /// List the server's connections: state, age, open streams, calls, bytes.
    #[command(after_help = EXIT_CODES)]
    Connections(send::Connections),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "valkyrie", &mut script);
            print(&script)
        }
        Command::Audit { command } => command.run(),
        Command::Cert { command } => command.run(),
        Command::Send(send) => run(send.run()),
        Command::Benchmark(benchmark) => run(benchmark.run()),
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
