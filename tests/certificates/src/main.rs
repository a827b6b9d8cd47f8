//! Writes every row of the table as files of PEM, for tests that are not in Rust.
#![forbid(unsafe_code)]

use std::{path::Path, process::ExitCode};

fn main() -> ExitCode {
    let Some(folder) = std::env::args_os().nth(1) else {
        eprintln!("usage: valkyrie-certificates FOLDER");
        return ExitCode::from(2);
    };
    match valkyrie_certificates::Certificates::new().write(Path::new(&folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("valkyrie-certificates: {}: {error}", Path::new(&folder).display());
            ExitCode::FAILURE
        }
    }
}
