//! The short form of `cargo xtask outages`: servers that are processes, and what becomes of calls while they go and come.

use std::process::Command;

/// Runs the program, which says what was not as it must be.
fn outages(words: &[&str]) {
    let said = Command::new(env!("CARGO_BIN_EXE_valkyrie-outages")).args(words).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    println!("{words:?}\n{out}");
    assert!(said.status.success(), "{words:?}: {err}");
    assert!(out.contains("% done"), "{words:?}: {out}");
}

#[test]
fn servers_that_restart_in_turn_lose_no_call_and_run_none_twice() {
    outages(&["restart", "--rounds", "4", "--rate", "200"]);
}

#[test]
fn links_that_flap_leave_nothing_behind() {
    outages(&["flap", "--seconds", "6", "--rate", "100", "--seed", &valkyrie_faults::seed().to_string()]);
}

#[test]
fn calls_outlive_servers_that_are_killed_stopped_and_cut_off() {
    outages(&[
        "schedule",
        "--seconds",
        "20",
        "--rate",
        "100",
        "--seed",
        &valkyrie_faults::seed().to_string(),
    ]);
}
