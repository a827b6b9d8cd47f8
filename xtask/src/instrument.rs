//! Tests in other builds of what they test: the protocol's, the bridge's and the C library's under AddressSanitizer, and the
//! protocol's counting the lines that they run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::conformance::Server;
use crate::step::{During, Outcome, Project, Stop, failed, output, passed, run, run_and_read, succeeds};
use crate::{package, setup};

const PROTOCOL: [&str; 3] = ["-p", "valkyrie-protocol", "--tests"];
/// Of the lines of `core/protocol/src`, tests apart, at least so many per cent are run by its tests.
const LEAST_PER_CENT: f64 = 95.0;

/// What `rustc -vV` says after a name.
fn rustc(project: &Project, what: &str) -> Outcome {
    let said = output(project.command("rustc").arg("-vV"))?;
    let value = said.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(": "));
    value.map_or_else(|| failed(format!("rustc -vV says no {what}")), |value| Ok(value.to_owned()))
}

/// `cargo` for builds with AddressSanitizer, in a target folder of their own, and the target it builds for. The
/// sanitizer comes with every toolchain for this target and is unlocked by a variable; build scripts stay without it.
pub(crate) fn with_address_sanitizer(
    project: &Project,
    verb: &str,
    folder: &str,
    flags: &[&str],
) -> Outcome<(Command, String)> {
    let target = rustc(project, "host")?;
    if target != "x86_64-unknown-linux-gnu" {
        return Err(Stop::Skipped(format!(
            "AddressSanitizer is set up for x86-64 Linux, and this is {target}"
        )));
    }
    let mut cargo = project.cargo([verb, "--target", &target, "--target-dir", folder]);
    let flags = [&["-Zsanitizer=address"], flags].concat().join(" ");
    cargo.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", flags);
    // Leaks are counted by the targets themselves; the sanitizer's own search needs rights that containers lack.
    cargo.env("ASAN_OPTIONS", "detect_leaks=0");
    Ok((cargo, target))
}

/// Runs the protocol's tests under AddressSanitizer.
pub(crate) fn sanitize(project: &Project) -> Outcome {
    let (mut cargo, _) = with_address_sanitizer(project, "test", "target/sanitize", &[])?;
    let mut count = 0;
    run_and_read(cargo.arg("--quiet").args(PROTOCOL), |line| count += passed(line))?;
    Ok(format!("{count} tests of the protocol under AddressSanitizer"))
}

/// Runs the bridge's tests under AddressSanitizer, but for those by a model checker, whose threads have stacks of its own.
pub(crate) fn sanitize_bridge(project: &Project) -> Outcome {
    let mut count = 0;
    let mut tests = Vec::new();
    for source in project.files(&["bindings/bridge/tests/*.rs"])? {
        let name = Path::new(&source).file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if source.matches('/').count() == 3 && name != "models" {
            tests.extend(["--test".to_owned(), name]);
        }
    }
    let (mut cargo, _) = with_address_sanitizer(project, "test", "target/sanitize", &[])?;
    cargo.args(["--quiet", "-p", "valkyrie-bridge", "--all-features", "--lib"]).args(tests);
    run_and_read(&mut cargo, |line| count += passed(line))?;
    Ok(format!("{count} tests of the bridge under AddressSanitizer"))
}

/// Builds the C library with AddressSanitizer and runs the C tests, which are built with gcc's, against it: both keep to
/// one version of the interface between them.
pub(crate) fn sanitize_c(project: &Project) -> Outcome {
    let (mut cargo, target) = with_address_sanitizer(project, "build", "target/sanitize", &[])?;
    run(cargo.args(["--quiet", "-p", "valkyrie-c"]))?;
    let folder = package::fresh_folder(project, "target/sanitize/c")?;
    let library = folder.join("libvalkyrie.so.0");
    let built = project.path("target/sanitize").join(target).join("debug/libvalkyrie.so");
    package::copy(&built, &library)?;
    let server = Server::start(project)?;
    let mut count = 0;
    for source in project.files(&["c/tests/*.c"])? {
        let program = folder.join(Path::new(&source).file_stem().unwrap_or_default());
        // The growth of a program's memory is the sanitizer's here.
        if program.ends_with("soak") {
            continue;
        }
        let mut gcc = project.command("gcc");
        gcc.args(["-std=c99", "-g", "-fsanitize=address", "-pthread", "-Ic/include/valkyrie", &source]);
        gcc.arg(&library).arg(format!("-Wl,-rpath,{}", folder.display())).arg("-o").arg(&program);
        run(&mut gcc)?;
        // Valgrind looks for leaks in the same programs.
        let mut test = project.command(&program);
        test.arg(server.endpoint("tcp")).envs(server.variables("tcp"));
        run(test.env("ASAN_OPTIONS", "detect_leaks=0"))?;
        count += 1;
    }
    if count == 0 {
        failed("c/tests has no program")
    } else {
        Ok(format!("{count} programs of the C library"))
    }
}

/// Prints how many lines of the protocol its own tests run, file by file, with the numbers of those that they do not.
pub(crate) fn coverage(project: &Project) -> Outcome {
    let profiles = project.path("target/coverage/profiles");
    let _ = std::fs::remove_dir_all(&profiles);
    let llvm = Llvm::find(project)?;
    let cargo = |arguments: &[&str]| {
        let mut cargo = project.cargo(["test", "--target-dir", "target/coverage"]);
        cargo.args(PROTOCOL).args(arguments).env("RUSTFLAGS", "-Cinstrument-coverage");
        cargo.env("LLVM_PROFILE_FILE", profiles.join("%p-%m.profraw"));
        cargo
    };
    run(&mut cargo(&["--quiet"]))?;
    let built = output(&mut cargo(&["--no-run", "--quiet", "--message-format", "json"]))?;
    let programs: Vec<String> = built
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|message| message["executable"].as_str().map(str::to_owned))
        .collect();
    let merged = profiles.join("merged.profdata");
    let mut merge = project.command(&llvm.profdata);
    merge.args(["merge", "--sparse", "-o"]).arg(&merged);
    for entry in std::fs::read_dir(&profiles).during(profiles.display())? {
        merge.arg(entry.during(profiles.display())?.path());
    }
    run(&mut merge)?;
    let mut export = project.command(&llvm.cov);
    export.args(["export", "--format=lcov", "--instr-profile"]).arg(&merged);
    let (first, others) = programs.split_first().ok_or(Stop::Failed("cargo built no tests".into()))?;
    export.arg(first);
    for program in others {
        export.args(["--object", program]);
    }
    let sources = project.path("core/protocol/src");
    let report = output(export.arg("--sources").arg(&sources))?;
    let (mut total, mut ran) = (0, 0);
    for (file, lines) in lines_run(&report) {
        // Unit tests stand at the end of a file, and cover themselves.
        let text = std::fs::read_to_string(file).during(file)?;
        let tests = text.lines().position(|line| line == "#[cfg(test)]").unwrap_or(usize::MAX);
        let code: Vec<_> = lines.iter().filter(|(line, _)| **line <= tests).collect();
        let missed: Vec<_> =
            code.iter().filter(|(_, run)| !**run).map(|(line, _)| line.to_string()).collect();
        total += code.len();
        ran += code.len() - missed.len();
        let name = Path::new(file).file_name().unwrap_or_default().to_string_lossy();
        println!(
            "   {name:<16} {:>5} of {:>5} lines {:>6.2} %  {}",
            code.len() - missed.len(),
            code.len(),
            per_cent(code.len() - missed.len(), code.len()),
            missed.join(" ")
        );
    }
    let (least, reached) = (LEAST_PER_CENT, per_cent(ran, total));
    let note = format!("{ran} of {total} lines of the protocol are run by its tests: {reached:.2} %");
    if total > 0 && reached > least {
        Ok(note)
    } else {
        failed(format!("{note}; more than {least} % should be"))
    }
}

fn per_cent(part: usize, whole: usize) -> f64 {
    100.0 * part as f64 / whole.max(1) as f64
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
        if !debians.works(project) {
            setup::install(project, &[&format!("llvm-{major}")])?;
        }
        Ok(debians)
    }

    fn works(&self, project: &Project) -> bool {
        [&self.cov, &self.profdata].into_iter().all(|tool| succeeds(project.command(tool).arg("--version")))
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
}
