//! `config validate` and `config convert`: what a server says of a configuration, and the same one in another format.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::{Args, Subcommand};
use valkyrie_config::{File, Format, Layers, Source};
use valkyrie_sdk::{Level, Log, Record};

use crate::output::{Failure, print};

#[derive(Subcommand)]
pub(crate) enum Config {
    /// Check a configuration file as `valkyrie-server check` does, with the files that it names; exit code 2 if it is refused.
    #[command(after_help = crate::EXIT_CODES)]
    Validate {
        /// The file, ending in .yaml, .yml, .toml or .json.
        file: PathBuf,
    },
    /// Write a configuration in another format: the same keys and values.
    ///
    /// Comments are not kept, and neither are YAML's aliases and other ways to write a number or a text: what is written has one key
    /// on each line, in the order of `valkyrie-server config generate`. So a file that is converted and converted back is the same
    /// as one that was converted once. A file with an unknown key or an illegal value is refused.
    #[command(after_help = crate::EXIT_CODES)]
    Convert(Convert),
}

#[derive(Args)]
pub(crate) struct Convert {
    /// The file, ending in .yaml, .yml, .toml or .json.
    file: PathBuf,
    /// The format to write.
    #[arg(long, value_enum)]
    to: Format,
    /// Where to write it; standard output without.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl Config {
    pub(crate) fn run(self) -> Result<(), Failure> {
        match self {
            Self::Validate { file } => crate::run(validate(file)),
            Self::Convert(convert) => convert.run(),
        }
    }
}

async fn validate(file: PathBuf) -> Result<(), Failure> {
    let config = Layers::new().source(File::new(&file)).load()?;
    let quiet: Arc<dyn Log> = Arc::new(Quiet);
    config.check(&quiet).await?;
    print(format!("{}: ok\n", file.display()).as_bytes())
}

impl Convert {
    fn run(self) -> Result<(), Failure> {
        let text = File::new(&self.file).layer()?.convert(self.to)?;
        match &self.output {
            None => print(text.as_bytes()),
            Some(path) => std::fs::write(path, text).map_err(|error| named(path, &error)),
        }
    }
}

fn named(path: &Path, error: &io::Error) -> Failure {
    io::Error::new(error.kind(), format!("{}: {error}", path.display())).into()
}

/// What a server would log while it looks at its files is in the verdict.
struct Quiet;

impl Log for Quiet {
    fn enabled(&self, _: Level) -> bool {
        false
    }

    fn log(&self, _: Record) {}
}
