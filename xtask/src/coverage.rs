//! How many lines of the core its tests run: file by file, as lcov, and against the least that `tests/coverage.json` asks.

use std::collections::BTreeMap;
use std::ops::Bound::Excluded;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::instrument::rustc;
use crate::package::{fresh_folder, read_json};
use crate::setup;
use crate::step::{During, Outcome, Project, Stop, failed, output, passed, read_lines, run, succeeds};

/// What is asked: for each room its sources, the least per cent of their lines, and which lines no test can run, with the reason.
const ASKED: &str = "tests/coverage.json";
/// Where `lcov.info` and `summary.json` are written.
const FOLDER: &str = "target/coverage";
/// Whose unit and integration tests run; the vectors and traces are among them.
const TESTS: [&[&str]; 2] = [
    &["-p", "valkyrie-protocol", "-p", "valkyrie-sdk", "--lib", "--test", "*"],
    &["-p", "valkyrie-conformance", "--test", "traces"],
];

/// Prints how many lines the tests run, with the numbers of those that they do not, and fails below what is asked.
pub(crate) fn check(project: &Project) -> Outcome {
    let asked = Asked::read(&read_json(&project.path(ASKED))?).during(ASKED)?;
    let llvm = Llvm::find(project)?;
    let profiles = fresh_folder(project, &format!("{FOLDER}/profiles"))?;
    let wrapper = wrapper(project)?;
    let cargo = |arguments: &[&str]| {
        let mut cargo = project.cargo(["test", "--quiet"]);
        cargo.args(arguments).env("RUSTC_WORKSPACE_WRAPPER", &wrapper);
        cargo.env("CARGO_PROFILE_TEST_DEBUG", "0").env("CARGO_INCREMENTAL", "0");
        cargo.env("LLVM_PROFILE_FILE", profiles.join("%p-%m.profraw"));
        cargo
    };
    let (mut count, mut programs, mut tested) = (0, Vec::new(), Ok(()));
    for tests in TESTS {
        let built = output(cargo(tests).args(["--no-run", "--message-format", "json"]))?;
        let messages = built.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        programs.extend(messages.filter_map(|message| message["executable"].as_str().map(str::to_owned)));
        // Their dots say nothing; what fails is said on the lines after them.
        let ended = read_lines(cargo(tests).arg("--no-fail-fast"), |line| {
            count += passed(line);
            let dots = line.starts_with('.') || line.is_empty();
            if !dots && !line.starts_with("running ") && !line.starts_with("test result: ok") {
                println!("{line}");
            }
        });
        // What the others run is told all the same.
        tested = tested.and(ended);
    }
    let report = llvm.report(project, &profiles, &programs)?;
    let report = report.replace(&format!("SF:{}/", project.root.display()), "SF:");
    let lcov = project.path(FOLDER).join("lcov.info");
    std::fs::write(&lcov, &report).during(lcov.display())?;

    let mut files = BTreeMap::new();
    for (name, mut lines) in lines_run(&report) {
        let text = std::fs::read_to_string(project.path(name)).during(name)?;
        // Unit tests stand at the end of a file, and cover themselves.
        let tests =
            text.lines().position(|line| line == "#[cfg(test)]").map_or(usize::MAX, |before| before + 1);
        lines.retain(|line, _| *line < tests);
        asked.leave_out(name, &text, &mut lines)?;
        files.insert(name, lines);
    }
    let (mut notes, mut below, mut summary) = (Vec::new(), Vec::new(), BTreeMap::new());
    for room in &asked.rooms {
        let (mut total, mut ran) = (0, 0);
        println!("   {}:", room.name);
        for (name, lines) in files.iter().filter(|(name, _)| name.starts_with(&room.sources)) {
            let run = lines.values().filter(|run| **run).count();
            total += lines.len();
            ran += run;
            println!("   {}", line(&name[room.sources.len()..], run, lines));
        }
        let reached = per_cent(ran, total);
        let note = format!("{} {reached:.2} % of {total}", room.name);
        if total == 0 || reached < room.least {
            below.push(format!("{note} lines, and {ASKED} asks {} %", room.least));
        }
        summary.insert(
            &room.name,
            json!({ "lines": total, "run": ran, "per_cent": reached, "least": room.least }),
        );
        notes.push(note);
    }
    let written = project.path(FOLDER).join("summary.json");
    std::fs::write(&written, format!("{:#}\n", json!(summary))).during(written.display())?;
    tested?;
    match below.as_slice() {
        [] => Ok(format!("{count} tests run of the lines of {}", notes.join(", of "))),
        below => failed(below.join("; ")),
    }
}

/// A compiler that counts, for the crates of the workspace alone: what they depend on stays as it was compiled for other tests.
fn wrapper(project: &Project) -> Outcome<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let path = project.path(FOLDER).join("rustc");
    // Another modification time is another compiler for cargo.
    let text = "#!/bin/sh\nexec \"$@\" -Cinstrument-coverage\n";
    if std::fs::read_to_string(&path).is_ok_and(|there| there == text) {
        return Ok(path);
    }
    std::fs::write(&path, text).during(path.display())?;
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).during(path.display())?;
    Ok(path)
}

/// A file's line of the table.
fn line(name: &str, run: usize, lines: &BTreeMap<usize, bool>) -> String {
    let missed = missed(lines).join(" ");
    let total = lines.len();
    format!("{name:<24} {run:>5} of {total:>5} lines {:>6.2} %  {missed}", per_cent(run, total))
        .trim_end()
        .to_owned()
}

/// The lines that no test runs: "7", or "7-9" where they stand together.
fn missed(lines: &BTreeMap<usize, bool>) -> Vec<String> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (&line, _) in lines.iter().filter(|(_, run)| !**run) {
        match runs.last_mut() {
            // Lines between them that hold no code do not part them.
            Some((_, last)) if lines.range((Excluded(*last), Excluded(line))).next().is_none() => {
                *last = line
            }
            _ => runs.push((line, line)),
        }
    }
    runs.iter()
        .map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") })
        .collect()
}

fn per_cent(part: usize, whole: usize) -> f64 {
    100.0 * part as f64 / whole.max(1) as f64
}

/// What `tests/coverage.json` says.
struct Asked {
    rooms: Vec<Room>,
    apart: Vec<Apart>,
}

struct Room {
    name: String,
    /// The folder, with its slash.
    sources: String,
    least: f64,
}

/// Lines that no test runs, and why.
struct Apart {
    file: String,
    /// The first of them, as it stands there, once or more.
    line: String,
    /// How many lines of code they are.
    count: usize,
}

impl Asked {
    fn read(json: &Value) -> Result<Asked, String> {
        let text = |value: &Value, key: &str| match value[key].as_str() {
            Some(text) if !text.is_empty() => Ok(text.to_owned()),
            _ => Err(format!("{value} has no {key}")),
        };
        let list = |key: &str| json[key].as_array().cloned().unwrap_or_default();
        let mut asked = Asked { rooms: Vec::new(), apart: Vec::new() };
        for room in list("rooms") {
            let least = room["least_per_cent"].as_f64().ok_or(format!("{room} has no least_per_cent"))?;
            let sources = format!("{}/", text(&room, "sources")?);
            asked.rooms.push(Room { name: text(&room, "name")?, sources, least });
        }
        for apart in list("apart") {
            text(&apart, "reason")?;
            let count = apart["lines"].as_u64().ok_or(format!("{apart} has no lines"))? as usize;
            asked.apart.push(Apart { file: text(&apart, "file")?, line: text(&apart, "first")?, count });
        }
        if asked.rooms.is_empty() { Err("no room is in it".into()) } else { Ok(asked) }
    }

    /// Takes a file's lines that are accounted for out of its count, wherever they stand in it; those that tests do run are no
    /// longer to be listed.
    fn leave_out(&self, file: &str, text: &str, lines: &mut BTreeMap<usize, bool>) -> Outcome<()> {
        for apart in self.apart.iter().filter(|apart| apart.file == file) {
            let found = text.lines().enumerate().filter(|(_, line)| line.trim() == apart.line);
            let mut left_out = 0;
            for (at, _) in found {
                let those = lines.range(at + 1..).take(apart.count).map(|(line, run)| (*line, *run));
                let those: Vec<(usize, bool)> = those.collect();
                if those.len() == apart.count && those.iter().all(|(_, run)| !run) {
                    those.iter().for_each(|(line, _)| _ = lines.remove(line));
                    left_out += 1;
                }
            }
            if left_out == 0 {
                return failed(format!(
                    "{ASKED}: {file} has no {} lines from {:?} on that no test runs: they are not to be listed",
                    apart.count, apart.line
                ));
            }
        }
        Ok(())
    }
}

/// The lines of each file in a report of the format of lcov, and whether each was run.
fn lines_run(report: &str) -> BTreeMap<&str, BTreeMap<usize, bool>> {
    let mut files: BTreeMap<&str, BTreeMap<usize, bool>> = BTreeMap::new();
    let mut file = "";
    for line in report.lines() {
        if let Some(name) = line.strip_prefix("SF:") {
            file = name;
        } else if let Some((number, count)) = line.strip_prefix("DA:").and_then(|data| data.split_once(',')) {
            let lines = files.entry(file).or_default();
            *lines.entry(number.parse().unwrap_or(0)).or_default() |= count != "0";
        }
    }
    files
}

/// The two tools of LLVM that read what rustc's instrumentation writes: they must be of rustc's own version of LLVM.
struct Llvm {
    cov: PathBuf,
    profdata: PathBuf,
}

impl Llvm {
    fn find(project: &Project) -> Outcome<Llvm> {
        let version = rustc(project, "LLVM version")?;
        let major = version.split('.').next().unwrap_or_default();
        let sysroot = output(project.command("rustc").args(["--print", "sysroot"]))?;
        let component =
            Path::new(sysroot.trim()).join("lib/rustlib").join(rustc(project, "host")?).join("bin");
        let beside_rustc =
            Llvm { cov: component.join("llvm-cov"), profdata: component.join("llvm-profdata") };
        let debians = Llvm {
            cov: format!("llvm-cov-{major}").into(),
            profdata: format!("llvm-profdata-{major}").into(),
        };
        if beside_rustc.works(project) {
            return Ok(beside_rustc);
        }
        // What Debian has not, rustup may: its component is of rustc's own version.
        if !debians.works(project) && setup::install(project, &[&format!("llvm-{major}")]).is_err() {
            let mut rustup = project.command("rustup");
            run(rustup.args(["component", "add", "llvm-tools"]))?;
            return Ok(beside_rustc);
        }
        Ok(debians)
    }

    fn works(&self, project: &Project) -> bool {
        [&self.cov, &self.profdata].into_iter().all(|tool| succeeds(project.command(tool).arg("--version")))
    }

    /// What the profiles in a folder say of the core's lines, in the format of lcov.
    fn report(&self, project: &Project, profiles: &Path, programs: &[String]) -> Outcome {
        let merged = profiles.join("merged.profdata");
        let mut merge = project.command(&self.profdata);
        merge.args(["merge", "--sparse", "-o"]).arg(&merged).arg(profiles);
        run(&mut merge)?;
        let mut export: Command = project.command(&self.cov);
        export.args(["export", "--format=lcov", "--skip-functions", "--instr-profile"]).arg(&merged);
        let (first, others) = programs.split_first().ok_or(Stop::Failed("cargo built no tests".into()))?;
        export.arg(first).args(others.iter().flat_map(|program| ["--object", program]));
        output(
            export
                .arg("--sources")
                .args(["core/protocol/src", "core/sdk/src"].map(|folder| project.path(folder))),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_run_when_any_copy_of_it_is() {
        let report = "SF:a.rs\nDA:1,0\nDA:2,7\nend_of_record\nSF:a.rs\nDA:1,3\nDA:3,0\nend_of_record\n";
        let expected = BTreeMap::from([(1, true), (2, true), (3, false)]);
        assert_eq!(lines_run(report), BTreeMap::from([("a.rs", expected)]));
    }

    #[test]
    fn lines_that_no_test_runs_are_told_together() {
        let lines = BTreeMap::from([(1, false), (3, false), (4, true), (6, false), (9, true)]);
        assert_eq!(missed(&lines), ["1-3", "6"]);
    }

    #[test]
    fn lines_that_are_accounted_for_leave_the_count_until_a_test_runs_them() {
        let asked = r#"{ "rooms": [{ "name": "a", "sources": "s", "least_per_cent": 99.5 }],
            "apart": [{ "file": "a.rs", "first": "two", "lines": 2, "reason": "none" }] }"#;
        let asked = Asked::read(&serde_json::from_str(asked).unwrap()).unwrap();
        let text = "one\n  two\nthree\n";
        let mut lines = BTreeMap::from([(1, true), (2, false), (3, false)]);
        asked.leave_out("a.rs", text, &mut lines).unwrap();
        assert_eq!(lines, BTreeMap::from([(1, true)]));
        let mut run = BTreeMap::from([(1, true), (2, false), (3, true)]);
        assert!(asked.leave_out("a.rs", text, &mut run).is_err(), "a test runs the third line");
        assert!(asked.leave_out("a.rs", "gone", &mut run).is_err(), "the line is gone");
        assert!(Asked::read(&serde_json::json!({ "rooms": [{ "name": "a" }] })).is_err(), "nothing is asked");
    }
}
