//! The Rust runner as a program: reads its settings from the environment, prints one line of JSON per case.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use valkyrie_conformance::{Settings, run};

#[tokio::main]
async fn main() -> ExitCode {
    match cases().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("valkyrie-conformance-rust: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn cases() -> Result<(), String> {
    let setting = |name: &str| {
        let name = format!("VALKYRIE_CONFORMANCE_{name}");
        std::env::var(&name).map_err(|_| format!("{name} is not set; see tests/conformance/README.md"))
    };
    let path = setting("CASES")?;
    let cases = std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    let certificates = setting("CERTIFICATES")?;
    let certificates =
        std::fs::read_to_string(&certificates).map_err(|error| format!("{certificates}: {error}"))?;
    let settings = Settings {
        endpoint: setting("ENDPOINT")?,
        absent: setting("ABSENT_ENDPOINT")?,
        certificates,
        sealed: setting("SEALED").is_ok_and(|sealed| sealed == "1"),
    };
    run(&settings, &cases, |outcome| println!("{outcome}")).await
}
