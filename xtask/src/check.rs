//! The checks of the sources and of each installed package, by the tools of its language.

use std::path::PathBuf;
use std::process::Command;

use crate::conformance::Server;
use crate::package::{self, FRESH};
use crate::setup::{NODE_TOOLS, VENV};
use crate::step::{Outcome, Project, Steps, Stop, failed, output, run, run_and_read, succeeds};
use crate::{arrows, setup};

/// The answer of a few minutes: what needs no package and no tool beside Rust and Python.
pub(crate) fn add_quick<'a>(steps: &mut Steps<'a>, project: &'a Project) {
    steps.add("fmt", "rustfmt has nothing to change", &[], || rustfmt(project));
    steps.add("clippy", "the core without a warning", &[], || clippy(project, &[]));
    steps.add("arrows", "no crate depends on what it must not", &[], || arrows::check(project));
    steps.add("rust tests", "tests of the core", &[], || rust_tests(project, &[]));
    steps.add("vectors", "the decoder written from PROTOCOL.md alone reads every vector", &[], || {
        vectors(project)
    });
}

/// What reading the sources can show.
pub(crate) fn add_sources<'a>(steps: &mut Steps<'a>, project: &'a Project) {
    steps.add("fmt", "rustfmt has nothing to change", &[], || rustfmt(project));
    steps.add("arrows", "no crate depends on what it must not", &[], || arrows::check(project));
    steps
        .add("clippy", "every crate and target without a warning", &[], || clippy(project, &["--workspace"]));
    steps.add("docs", "the core's documentation builds without a warning", &[], || {
        let packages = ["-p", "valkyrie-protocol", "-p", "valkyrie-sdk", "-p", "valkyrie-bridge"];
        run(project.cargo(["doc", "--quiet", "--no-deps"]).args(packages).env("RUSTDOCFLAGS", "-Dwarnings"))?;
        Ok(String::new())
    });
    steps.add("ruff", "the Python sources: style and format", &[], || {
        ruff(project, &["check"])?;
        ruff(project, &["format", "--check"])
    });
}

/// The tests that cargo runs, and the vectors.
pub(crate) fn add_rust<'a>(steps: &mut Steps<'a>, project: &'a Project) {
    steps.add("rust tests", "unit, integration and documentation tests of every crate", &[], || {
        rust_tests(project, &["--workspace"])
    });
    steps.add("vectors", "the decoder written from PROTOCOL.md alone reads every vector", &[], || {
        vectors(project)
    });
}

/// The tests of each language against its installed package.
pub(crate) fn add_packages<'a>(steps: &mut Steps<'a>, project: &'a Project) {
    steps.add("python", "mypy --strict and pytest against the installed wheel", &["package: python"], || {
        python(project)
    });
    steps.add(
        "node",
        "tsc --strict and node --test against the installed packages",
        &["package: node"],
        || node(project),
    );
    steps.add(
        "c",
        "C99, C++17, pkg-config, CMake and valgrind against the installed tree",
        &["package: c"],
        || c(project),
    );
}

fn rustfmt(project: &Project) -> Outcome {
    run(&mut project.cargo(["fmt", "--all", "--check"]))?;
    Ok(String::new())
}

fn clippy(project: &Project, what: &[&str]) -> Outcome {
    let quiet = ["clippy", "--quiet", "--all-targets"];
    run(project.cargo(quiet).args(what).args(["--", "-D", "warnings"]))?;
    Ok(String::new())
}

fn rust_tests(project: &Project, what: &[&str]) -> Outcome {
    let kinds =
        [("unit", ["--lib", "--bins"].as_slice()), ("integration", &["--test", "*"]), ("doc", &["--doc"])];
    let mut counts = Vec::new();
    for (kind, which) in kinds {
        let mut count = 0;
        run_and_read(project.cargo(["test", "--quiet"]).args(what).args(which), |line| {
            count += passed(line)
        })?;
        counts.push(format!("{count} {kind}"));
    }
    Ok(counts.join(", "))
}

/// The number in a line such as `test result: ok. 12 passed; 0 failed; …`; 0 for any other line.
fn passed(line: &str) -> usize {
    let result = line.strip_prefix("test result: ok. ").and_then(|rest| rest.split(' ').next());
    result.and_then(|count| count.parse().ok()).unwrap_or(0)
}

fn vectors(project: &Project) -> Outcome {
    let mut last = String::new();
    run_and_read(project.command("python3").arg("tests/vectors/decode.py"), |line| last = line.to_owned())?;
    Ok(last)
}

/// Runs ruff over the Python sources that are ours.
pub(crate) fn ruff(project: &Project, verb: &[&str]) -> Outcome {
    let files = project.files(&["*.py", "*.pyi", ":!benches/peers"])?;
    run(project.command(format!("{VENV}/bin/ruff")).args(verb).args(["--quiet", "--no-cache"]).args(&files))?;
    Ok(format!("{} files", files.len()))
}

fn python(project: &Project) -> Outcome {
    let fresh = project.path(FRESH).join("python");
    let python = fresh.join("bin/python");
    // From the fresh place, so that no source folder can stand in for what is installed.
    let mypy = || {
        let mut mypy = project.command(format!("{VENV}/bin/mypy"));
        mypy.current_dir(&fresh).args(["--strict", "--no-incremental", "--python-executable"]).arg(&python);
        mypy
    };
    run(mypy().args(["-p", "valkyrie"]))?;
    let typed = project.files(&["python/tests/*.py", "examples/python/*.py", "tests/conformance/*.py"])?;
    for file in &typed {
        run(mypy().arg(project.path(file)))?;
    }
    let server = Server::start(project)?;
    let mut note = String::new();
    let mut pytest = Command::new(&python);
    pytest.current_dir(&fresh).args([
        "-P",
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--import-mode=importlib",
    ]);
    pytest
        .arg(project.path("python/tests"))
        .env("PYTHONPATH", site_packages(project)?)
        .envs(server.variables("tcp"));
    run_and_read(&mut pytest, |line| {
        if line.contains(" passed") {
            note = line.trim_matches('=').trim().to_owned();
        }
    })?;
    Ok(note)
}

/// Where the tools' virtual environment keeps its modules: pytest comes from there, the fresh place stays as a user's.
fn site_packages(project: &Project) -> Outcome<PathBuf> {
    let script = "import sysconfig; print(sysconfig.get_path('purelib'))";
    let path = output(project.command(format!("{VENV}/bin/python")).args(["-c", script]))?;
    Ok(PathBuf::from(path.trim()))
}

fn node(project: &Project) -> Outcome {
    let fresh = project.path(FRESH).join("node");
    let tests = project.files(&["node/test/*.mjs", "node/test/*.cjs", "node/test/*.js"])?;
    if tests.is_empty() {
        return failed("node/test has no test");
    }
    // Node resolves packages from where a file lies: a test in the fresh project sees what is installed there.
    package::copy_folder(&project.path("node/test"), &fresh.join("test"))?;
    type_check(project, &fresh, &project.files(&["node/test/*.ts", "examples/node/*.ts"])?)?;
    let server = Server::start(project)?;
    let mut note = String::new();
    let mut node = project.command("node");
    node.current_dir(&fresh).args(["--test", "--test-reporter=tap"]).envs(server.variables("tcp"));
    for test in &tests {
        node.arg(fresh.join(test.trim_start_matches("node/")));
    }
    run_and_read(&mut node, |line| {
        if let Some(count) = line.strip_prefix("# pass ") {
            note = format!("{count} tests");
        }
    })?;
    Ok(note)
}

/// `tsc --strict` over these sources, seen from a fresh project, so that the types are those of the installed package.
pub(crate) fn type_check(project: &Project, fresh: &std::path::Path, sources: &[String]) -> Outcome<()> {
    if sources.is_empty() {
        return failed("there is no TypeScript source that uses the package");
    }
    let folder = fresh.join("types");
    std::fs::create_dir_all(&folder).map_err(|error| Stop::Failed(error.to_string()))?;
    let mut names = Vec::new();
    for source in sources {
        let name = source.replace('/', "_");
        std::fs::copy(project.path(source), folder.join(&name))
            .map_err(|error| Stop::Failed(error.to_string()))?;
        names.push(format!("types/{name}"));
    }
    let mut tsc = project.command(format!("{NODE_TOOLS}/.bin/tsc"));
    tsc.current_dir(fresh)
        .args(["--strict", "--noEmit", "--target", "es2022", "--module", "nodenext", "--lib"]);
    tsc.args(["es2022,esnext.disposable,dom,dom.iterable", "--types", "node", "--typeRoots"]);
    run(tsc.arg(project.path(NODE_TOOLS).join("@types")).args(names))
}

fn c(_project: &Project) -> Outcome {
    Err(Stop::Skipped("the C sources are not here yet".into()))
}

/// Licences, sources and known vulnerabilities. The vulnerabilities come from a database on the network.
pub(crate) fn deny(project: &Project) -> Outcome {
    const TOOL: &str = "target/tools/bin/cargo-deny";
    if !succeeds(project.command(TOOL).arg("--version")) {
        let what = ["cargo-deny@0.20.2", "--no-default-features", "--root", "target/tools"];
        run(project.cargo(["install", "--locked"]).args(what))?;
    }
    run(project.command(TOOL).args(["--all-features", "check", "licenses", "bans", "sources"]))?;
    if !succeeds(project.command(TOOL).args(["fetch", "db"])) {
        return Err(Stop::Skipped(
            "the advisory database cannot be reached; licences and sources are in order".into(),
        ));
    }
    run(project.command(TOOL).args(["--all-features", "check", "advisories"]))?;
    Ok("licences, sources, advisories".into())
}

/// Prints the figures of the benchmark programs.
pub(crate) fn bench(project: &Project) -> Outcome {
    setup::programs(project)?;
    run(project.command("bash").arg("benches/run.sh"))?;
    Ok(String::new())
}
