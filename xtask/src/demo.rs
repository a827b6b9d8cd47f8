//! The main job on real input: the installed server, and every language through its installed package.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::check::c_compiler;
use crate::package::{self, FRESH, installed_program};
use crate::step::{During, Outcome, Project, Steps, failed, output, read_lines, run};
use crate::{kotlin, swift, web};

/// The data set has at least this many bytes: the compiler's own libraries, which are on every machine that builds this.
const DATA_BYTES: u64 = 200_000_000;
/// A page takes this many of them.
const PAGE_BYTES: u64 = 20_000_000;
/// What SIGTERM leaves a call that does not end.
const DRAIN_MS: &str = "1000";
/// Calls that are open at once.
const IN_FLIGHT: &str = "1000";

/// Adds what the demo does once everything is installed.
pub(crate) fn add<'a>(steps: &mut Steps<'a>, project: &'a Project) {
    let needs = &[
        "package: rust",
        "package: python",
        "package: node",
        "package: c",
        "package: kotlin",
        "package: swift",
        "package: web",
    ];
    let about = "each language against the installed server: 200 MB hashed at both ends, 1,000 in flight, cancel, deadline, SIGTERM";
    steps.add("main job", about, needs, || main_job(project));
}

/// A `valkyrie-server`. Dropped, it is killed.
pub(crate) struct Server {
    child: Child,
    endpoints: String,
}

impl Server {
    /// The installed one.
    fn start(project: &Project) -> Outcome<Server> {
        let mut command = project.command(installed_program(project, "valkyrie-server"));
        command.args(["start", "--bind", "127.0.0.1:0", "--drain-timeout-ms", DRAIN_MS]);
        command.args(["--log-level", "error"]);
        Self::spawn(command)
    }

    /// Starts the command, and waits until it says where it listens.
    pub(crate) fn spawn(mut command: Command) -> Outcome<Server> {
        let mut child = command.stdout(Stdio::piped()).spawn().during("valkyrie-server")?;
        let said = child.stdout.take().expect("piped");
        let mut server = Server { child, endpoints: String::new() };
        BufReader::new(said).read_line(&mut server.endpoints).during("valkyrie-server")?;
        Ok(server)
    }

    pub(crate) fn endpoint(&self, scheme: &str) -> Outcome<&str> {
        match self.endpoints.split_whitespace().find(|word| word.starts_with(&format!("{scheme}://"))) {
            Some(endpoint) => Ok(endpoint),
            None => failed(format!("valkyrie-server said {:?} and no {scheme} endpoint", self.endpoints)),
        }
    }

    pub(crate) fn terminate(&self) -> Outcome<()> {
        run(Command::new("kill").args(["-TERM", &self.child.id().to_string()]))
    }

    pub(crate) fn ends_well(mut self) -> Outcome<()> {
        match self.child.wait().during("valkyrie-server")? {
            status if status.success() => Ok(()),
            status => failed(format!("valkyrie-server ended with {status} after SIGTERM")),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The compiler's shared libraries, the largest first, until they are enough.
fn data(project: &Project) -> Outcome<Vec<PathBuf>> {
    let sysroot = output(project.command("rustc").args(["--print", "sysroot"]))?;
    let folder = PathBuf::from(sysroot.trim()).join("lib");
    let mut files: Vec<(u64, PathBuf)> = std::fs::read_dir(&folder)
        .during(folder.display())?
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let metadata = path.metadata().ok()?;
            metadata.is_file().then_some((metadata.len(), path))
        })
        .collect();
    files.sort_by(|a, b| b.cmp(a));
    let mut total = 0;
    files.retain(|(len, _)| {
        let wanted = total < DATA_BYTES;
        total += if wanted { len } else { &0 };
        wanted
    });
    if total < DATA_BYTES {
        return failed(format!("only {total} bytes of data in {}", folder.display()));
    }
    Ok(files.into_iter().map(|(_, path)| path).collect())
}

/// The programs of examples/, each with its arguments.
fn programs(project: &Project, files: &[PathBuf]) -> Outcome<Vec<(&'static str, &'static str, Command)>> {
    let fresh = project.path(FRESH);
    run(&mut project.cargo([
        "build",
        "--quiet",
        "--release",
        "-p",
        "valkyrie-conformance",
        "--example",
        "demo",
    ]))?;
    let mut python = project.command(fresh.join("python/bin/python"));
    python.arg("-P").arg(project.path("examples/python/demo.py"));
    // Node looks packages up from where a program lies.
    let script = fresh.join("node/demo.mjs");
    package::copy(&project.path("examples/node/demo.mjs"), &script)?;
    let mut node = project.command("node");
    node.arg(script);
    let compiled = project.path("target/package/c-demo");
    run(&mut c_compiler(project, "gcc", "-std=c99", &project.path("examples/c/demo.c"), &compiled)?)?;
    let mut page = web::page(project, "chromium", "examples/web/demo.mjs")?;
    page.env("VALKYRIE_FILE", "/demo.data");
    head(&files[0], &fresh.join("web/demo.data"))?;
    Ok(vec![
        ("rust", "tcp", project.command("target/release/examples/demo")),
        ("python", "tcp", python),
        ("node", "tcp", node),
        ("c", "tcp", project.command(compiled)),
        ("kotlin", "tcp", kotlin::example(project, "demo")),
        ("swift", "tcp", swift::example(project, "demo")?),
        ("browser", "ws", page),
    ])
}

/// Copies what a page is to send.
fn head(from: &Path, to: &Path) -> Outcome<()> {
    let mut part = std::fs::File::open(from).during(from.display())?.take(PAGE_BYTES);
    let mut copy = std::fs::File::create(to).during(to.display())?;
    std::io::copy(&mut part, &mut copy).during(to.display())?;
    Ok(())
}

fn main_job(project: &Project) -> Outcome {
    let files = data(project)?;
    let mut figures = Vec::new();
    let mut lines = Vec::new();
    for (language, scheme, mut program) in programs(project, &files)? {
        let server = Server::start(project)?;
        let endpoint = server.endpoint(scheme)?;
        println!("   {language} against {endpoint}");
        program.arg(endpoint).env("VALKYRIE_ENDPOINT", endpoint);
        if language == "swift" {
            program.args(swift::seen(project, &files)?);
        } else if scheme != "ws" {
            program.args(&files);
        }
        let mut said = BTreeMap::new();
        let mut terminated = Ok(());
        read_lines(&mut program, |line| {
            let (what, value) = line.split_once(' ').unwrap_or((line, ""));
            said.insert(what.to_owned(), value.to_owned());
            if what == "ready" {
                terminated = server.terminate();
            }
        })?;
        terminated?;
        server.ends_well()?;
        let figure = judge(language, &said, if scheme == "ws" { PAGE_BYTES } else { DATA_BYTES })?;
        println!("   {figure}");
        lines.push(figure);
        figures.push(language);
    }
    says_hello(project)?;
    println!();
    lines.iter().for_each(|line| println!("   {line}"));
    Ok(figures.join(", "))
}

/// Holds what a program said against what every language must say, and gives its line of figures.
fn judge(language: &str, said: &BTreeMap<String, String>, least: u64) -> Outcome {
    let get = |what: &str| said.get(what).map_or("", String::as_str);
    let number = |what: &str| get(what).parse().unwrap_or(f64::NAN);
    let hash = |what: &str| get(what).split(' ').next().unwrap_or_default().to_owned();
    let expected = [
        ("call", "Hello, World!"),
        ("in_flight", IN_FLIGHT),
        ("cancelled", "true"),
        ("deadline", "DEADLINE_EXCEEDED DEADLINE_EXCEEDED"),
        ("ready", ""),
        ("refused", "UNAVAILABLE"),
        ("finished", "OK after"),
        ("cut", "UNAVAILABLE"),
    ];
    for (what, value) in expected {
        if !said.get(what).is_some_and(|said| said.starts_with(value)) {
            return failed(format!("{language}: {what} should be {value:?} and is {:?}", said.get(what)));
        }
    }
    let (bytes, seconds) = (number("bytes"), number("seconds"));
    if hash("sent").len() != 64 || hash("sent") != hash("received") || hash("sent") != hash("server") {
        return failed(format!("{language}: the hashes differ: {said:?}"));
    }
    if bytes < least as f64 {
        return failed(format!("{language}: only {bytes} bytes were sent"));
    }
    Ok(format!(
        "{language:7} {:3.0} MB up and down, {:4.0} MB/s each way, SHA-256 equal at both ends; {} calls in flight in {:.0} ms; \
         cancel and deadline as asked; SIGTERM in mid-stream: {}, {}",
        bytes / 1e6,
        bytes / 1e6 / seconds,
        get("in_flight"),
        number("in_flight_seconds") * 1000.0,
        get("finished").split(' ').next().unwrap_or_default(),
        get("cut"),
    ))
}

/// The command line's client against the same server.
fn says_hello(project: &Project) -> Outcome<()> {
    let server = Server::start(project)?;
    let message = ["send", "--endpoint", server.endpoint("tcp")?, "--message", "Hello, World!"];
    let said = output(Command::new(installed_program(project, "valkyrie")).args(message))?;
    if said.trim() != "Hello, World!" {
        return failed(format!("valkyrie send said {said:?}"));
    }
    server.terminate()?;
    server.ends_well()
}
