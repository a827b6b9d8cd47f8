//! Tests in another build of what they test: the protocol's, the bridge's and the C library's under AddressSanitizer.

use std::path::Path;
use std::process::Command;

use crate::conformance::Server;
use crate::package;
use crate::step::{Outcome, Project, Stop, failed, output, passed, run, run_and_read};

const PROTOCOL: [&str; 3] = ["-p", "valkyrie-protocol", "--tests"];

/// What `rustc -vV` says after a name.
pub(crate) fn rustc(project: &Project, what: &str) -> Outcome {
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
