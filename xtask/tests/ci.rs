//! What `CI=true` shows of a run: a line for each step, and what a step printed only when it failed. The steps that are run
//! here come later in `cargo xtask test` than these tests, so the files they leave are written again.

use std::process::{Command, Output};

fn xtask(only: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(["test", "--only", only]).env("CI", "true").env("CARGO", "/no/such/cargo");
    command.output().expect("xtask runs")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("what it shows is text")
}

#[test]
fn a_step_is_a_line_and_what_it_prints_is_a_file() {
    let ran = xtask("left,simulation");
    let shown = text(&ran.stdout);
    assert_eq!(ran.status.code(), Some(1), "{shown}");
    let lines: Vec<&str> = shown.lines().collect();
    assert!(lines[0].starts_with("[ 1/2,  0.0 min] simulation "), "{shown}");
    assert!(
        lines[0].ends_with("s  failed: /no/such/cargo: No such file or directory (os error 2)"),
        "{shown}"
    );
    // The end of its file, here the command that it could not start.
    assert!(lines[1].starts_with("      $ cargo "), "{shown}");
    let (file, left) = (lines[2], lines[3]);
    assert!(left.starts_with("[ 2/2,  0.0 min] left ") && left.ends_with("s  passed"), "{shown}");
    assert!(shown.ends_with("\n1 passed, 1 failed\n"), "{shown}");
    assert_eq!(text(&ran.stderr), "");
    let file = file.strip_prefix("   (all of it: ").and_then(|rest| rest.strip_suffix(')'));
    let all = std::fs::read_to_string(file.expect("the file is named")).expect("and can be read");
    assert!(all.starts_with("   $ cargo ") && all.lines().count() == 1, "{all}");
}
