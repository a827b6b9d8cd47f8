//! The simulation of tests/simulation: any length of it as a verb, and a short one as a check.

use std::process::Command;

use crate::step::{Outcome, Project, failed, run_and_read};

/// Simulated seconds of the check: about 20 seconds on two cores.
const CHECK_SECONDS: &str = "40000";

/// Runs the simulation as released, with the flags of the program's own.
pub(crate) fn run(project: &Project, flags: &[&str]) -> Outcome {
    let summary = simulate(program(project, true).args(flags))?;
    let hash = summary.iter().find(|(name, _)| name == "hash");
    Ok(hash.map_or_else(String::new, |(_, hash)| format!("hash {hash}")))
}

/// A while of seeds that nobody has tried, and the same seeds in a debug build and as released.
pub(crate) fn check(project: &Project) -> Outcome {
    let tried = simulate(program(project, true).args(["--seconds", CHECK_SECONDS]))?;
    let same = ["--seed", "1", "--seconds", "1200"];
    let hash = |summary: Vec<(String, String)>| summary.into_iter().find(|(name, _)| name == "hash");
    let released = hash(simulate(program(project, true).args(same))?);
    let debug = hash(simulate(program(project, false).args(same))?);
    if released.is_none() || released != debug {
        return failed(format!("the log of a debug build is {debug:?}, as released {released:?}"));
    }
    let told = |name: &str| {
        let line = tried.iter().find(|(line, _)| line == name);
        line.map_or("", |(_, value)| value.split([':', ' ']).next().unwrap_or_default()).to_owned()
    };
    Ok(format!("{} simulated s, {} calls, {} faults", told("simulated"), told("calls"), told("faults")))
}

fn program(project: &Project, release: bool) -> Command {
    let mut cargo = project.cargo(["run", "--quiet", "--package", "valkyrie-simulation"]);
    cargo.args(release.then_some("--release")).arg("--");
    cargo
}

/// Runs it and gives the lines of the summary: a name, two spaces or more, and what there is to say.
fn simulate(command: &mut Command) -> Outcome<Vec<(String, String)>> {
    let mut summary = Vec::new();
    run_and_read(command, |line| {
        if let Some((name, value)) = line.split_once("  ").filter(|(name, _)| !name.is_empty()) {
            summary.push((name.to_owned(), value.trim_start().to_owned()));
        }
    })?;
    Ok(summary)
}
