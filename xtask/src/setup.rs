//! Set-up: what the checks need from the machine, brought there step by step. Each step is quick when there is
//! nothing to do, and says in one sentence what is missing when it can do nothing about it.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::kotlin;
use crate::step::{During, OWN_NODE, Outcome, Project, Steps, Stop, failed, output, run, succeeds};
use crate::swift;

/// The tools of Python that the checks use; the wheel under test goes elsewhere.
pub(crate) const VENV: &str = "target/venv";
/// The tools of npm that the checks use.
pub(crate) const NODE_TOOLS: &str = "xtask/node/node_modules";

/// The browsers that the checks drive: the name, Debian's program, and the environment variable that names another.
pub(crate) const BROWSERS: [(&str, &str, &str); 2] = [
    ("chromium", "/usr/bin/chromium", "VALKYRIE_CHROMIUM"),
    ("firefox", "/usr/bin/firefox-esr", "VALKYRIE_FIREFOX"),
];

/// Programs that the checks call, with the Debian package that has each.
const PROGRAMS: [(&str, &str); 11] = [
    ("gcc", "gcc"),
    ("g++", "g++"),
    ("clang", "clang"),
    ("llvm-ar", "llvm"),
    ("pkg-config", "pkg-config"),
    ("cmake", "cmake"),
    ("make", "make"),
    ("valgrind", "valgrind"),
    ("python3", "python3"),
    ("node", "nodejs"),
    ("npm", "npm"),
];

/// Adds every set-up step.
pub(crate) fn add<'a>(steps: &mut Steps<'a>, project: &'a Project) {
    steps.add(
        "setup: programs",
        "compilers, Python, Node and browsers, from Debian where missing",
        &[],
        || programs(project),
    );
    steps.add(
        "setup: python tools",
        "maturin, mypy, ruff, pytest and what the tests run Valkyrie under, in target/venv",
        &["setup: programs"],
        || python_tools(project),
    );
    steps.add(
        "setup: npm tools",
        "TypeScript, esbuild, wasm-opt and the browser driver",
        &["setup: programs"],
        || npm_tools(project),
    );
    steps.add("setup: wasm toolchain", "a rustc that can build for wasm32-unknown-unknown", &[], || {
        let rustc = wasm_rustc(project)?;
        Ok(rustc.map_or_else(|| "the installed rustc".into(), |path| path.display().to_string()))
    });
    swift::add_setup(steps, project);
    kotlin::add_setup(steps, project);
}

pub(crate) fn programs(project: &Project) -> Outcome {
    let mut missing: Vec<&str> = PROGRAMS
        .iter()
        .filter(|(program, _)| !succeeds(project.command(program).arg("--version")))
        .map(|(_, package)| *package)
        .collect();
    // Who names another browser needs none of Debian's. It calls the program as it does the package.
    let lacking = BROWSERS.iter().filter(|(_, program, variable)| {
        std::env::var_os(variable).is_none() && !Path::new(program).is_file()
    });
    missing.extend(lacking.map(|(_, program, _)| program.trim_start_matches("/usr/bin/")));
    // Debian splits these two modules off the interpreter.
    if !succeeds(project.command("python3").args(["-c", "import venv, ensurepip"])) {
        missing.push("python3-venv");
    }
    if !missing.is_empty() {
        install(project, &missing)?;
    }
    let node = || version_at_least(project, "node", &["-p", "process.versions.node"], (20, 0));
    if node().is_err() {
        newer_node(project)?;
        node()?;
    }
    version_at_least(
        project,
        "python3",
        &["-c", "import platform; print(platform.python_version())"],
        (3, 11),
    )?;
    Ok(if missing.is_empty() { "nothing to do".into() } else { format!("installed {}", missing.join(", ")) })
}

/// Installs packages of Debian's.
pub(crate) fn install(project: &Project, packages: &[&str]) -> Outcome<()> {
    let list = packages.join(" ");
    if !succeeds(project.command("apt-get").arg("--version")) {
        return failed(format!("there is no apt-get here: install what Debian calls {list}"));
    }
    let root = output(project.command("id").arg("-u"))?.trim() == "0";
    let apt = || {
        let mut apt = project.command(if root { "apt-get" } else { "sudo" });
        if !root {
            // Never waits for a password: who has none to give is told what to type.
            apt.args(["-n", "apt-get"]);
        }
        apt
    };
    let mut install = apt();
    install.args(["install", "-y", "--no-install-recommends"]).args(packages);
    // Lists that could not be renewed may still do: the installation decides.
    let _ = run(apt().args(["update", "-q"]));
    // Thousands of lines that nobody reads; what goes wrong is on standard error.
    run(install.env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null()))
        .or_else(|_| failed(format!("could not install: run `apt-get install {list}` as root")))
}

/// Takes Node from npm, where it is a package for each system, as Debian's may be too old.
fn newer_node(project: &Project) -> Outcome<()> {
    let system = match (std::env::consts::OS, std::env::consts::ARCH) {
        ("linux", "x86_64") => "linux-x64",
        ("linux", "aarch64") => "linux-arm64",
        ("macos", "aarch64") => "darwin-arm64",
        ("macos", "x86_64") => "darwin-x64",
        (system, machine) => {
            return failed(format!("there is no Node for {system} on {machine} in npm: install 20 or newer"));
        }
    };
    let folder = project.path("target/node");
    let package = format!("node-{system}");
    run(project
        .command("npm")
        .args(["install", "--silent", "--ignore-scripts", "--prefix"])
        .arg(&folder)
        .arg(format!("{package}@22")))?;
    let bin = folder.join("node_modules").join(package).join("bin");
    let link = project.path(OWN_NODE);
    std::fs::rename(&bin, &link).during(link.display())
}

fn version_at_least(project: &Project, program: &str, arguments: &[&str], least: (u32, u32)) -> Outcome<()> {
    let version = output(project.command(program).args(arguments))?;
    let version = version.trim();
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let found = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    if found >= least {
        return Ok(());
    }
    failed(format!("{program} {}.{} or newer is needed, and this machine has {version}", least.0, least.1))
}

pub(crate) fn python_tools(project: &Project) -> Outcome {
    let wanted = std::fs::read_to_string(project.path("xtask/requirements.txt")).unwrap_or_default();
    let stamp = project.path(VENV).join("installed.txt");
    if std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok("nothing to do".into());
    }
    run(project.command("python3").args(["-m", "venv", "--clear", VENV]))?;
    let pip =
        ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", "xtask/requirements.txt"];
    run(project.command(format!("{VENV}/bin/python")).args(pip))?;
    write_stamp(stamp, &wanted)
}

fn npm_tools(project: &Project) -> Outcome {
    let wanted = std::fs::read_to_string(project.path("xtask/node/package-lock.json")).unwrap_or_default();
    let stamp = project.path(NODE_TOOLS).join(".installed.json");
    if std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok("nothing to do".into());
    }
    // Nothing here needs an install script: esbuild's only checks what is there.
    run(project.command("npm").args(["ci", "--ignore-scripts", "--prefix", "xtask/node"]))?;
    write_stamp(stamp, &wanted)
}

/// Remembers what was installed, so that the next run needs no package server to find nothing to do.
fn write_stamp(stamp: PathBuf, wanted: &str) -> Outcome {
    match std::fs::write(&stamp, wanted) {
        Ok(()) => Ok("installed".into()),
        Err(error) => failed(format!("{}: {error}", stamp.display())),
    }
}

/// The rustc that builds for wasm32, made ready if need be; `None` is the one that cargo uses anyway.
pub(crate) fn wasm_rustc(project: &Project) -> Outcome<Option<PathBuf>> {
    let said = output(project.command("bash").arg("xtask/wasm-toolchain.sh"))?;
    Ok(said.lines().find_map(|line| line.strip_prefix("RUSTC=")).map(PathBuf::from))
}

/// Skips where a browser is not to be had; the last word of its row in [`BROWSERS`] names another one.
pub(crate) fn browser(name: &str) -> Outcome<()> {
    let Some((_, program, variable)) = BROWSERS.iter().find(|(known, ..)| *known == name) else {
        return failed(format!("there is no browser {name}"));
    };
    let named = std::env::var_os(variable).map(PathBuf::from);
    let path = named.unwrap_or_else(|| PathBuf::from(program));
    if path.is_file() { Ok(()) } else { Err(Stop::Skipped(format!("no browser at {}", path.display()))) }
}
