//! Writes the C header from the exported functions and types of one crate.
//! It decides nothing about the header's looks: that is `cbindgen.toml`.
//!
//! `valkyrie-c-header --config CBINDGEN_TOML --crate CRATE_DIR --output PATH`

use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "usage: valkyrie-c-header --config CBINDGEN_TOML --crate CRATE_DIR --output PATH";

fn main() -> ExitCode {
    let Some(Arguments { config, crate_dir, output }) = Arguments::parse(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match write_header(config, crate_dir, output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("valkyrie-c-header: {message}");
            ExitCode::from(1)
        }
    }
}

struct Arguments {
    config: PathBuf,
    crate_dir: PathBuf,
    output: PathBuf,
}

impl Arguments {
    fn parse(mut words: impl Iterator<Item = String>) -> Option<Arguments> {
        let (mut config, mut crate_dir, mut output) = (None, None, None);
        while let Some(word) = words.next() {
            let slot = match word.as_str() {
                "--config" => &mut config,
                "--crate" => &mut crate_dir,
                "--output" => &mut output,
                _ => return None,
            };
            *slot = Some(PathBuf::from(words.next()?));
        }
        Some(Arguments { config: config?, crate_dir: crate_dir?, output: output? })
    }
}

fn write_header(config: PathBuf, crate_dir: PathBuf, output: PathBuf) -> Result<(), String> {
    let config = cbindgen::Config::from_file(&config)?;
    let bindings = cbindgen::Builder::new()
        .with_crate(crate_dir)
        .with_config(config)
        .generate()
        .map_err(|error| error.to_string())?;
    let mut header = Vec::new();
    bindings.write(&mut header);
    // Written by us and not by cbindgen's `write_to_file`, which exits the process when it cannot create the file.
    std::fs::write(&output, header).map_err(|error| format!("cannot write {}: {error}", output.display()))
}
