//! The main job on real input: the installed server, and every language through its installed package.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::package::{FRESH, installed_program};
use crate::step::{During, Outcome, Project, Steps, failed, output, run};

/// The data set has at least this many bytes: the compiler's own libraries, which are on every machine that builds this.
const DATA_BYTES: u64 = 200_000_000;

/// Adds what the demo does once everything is installed.
pub(crate) fn add<'a>(steps: &mut Steps<'a>, project: &'a Project) {
    let needs = &["package: rust", "package: python", "package: node"];
    steps.add("transfers", "200 MB up and down in each language, hashed at both ends", needs, || {
        transfers(project)
    });
}

/// `valkyrie-server` as it was installed; SIGTERM drains it when dropped.
struct Server {
    child: Child,
    endpoint: String,
}

impl Server {
    fn start(project: &Project) -> Outcome<Server> {
        let mut command = Command::new(installed_program(project, "valkyrie-server"));
        command.args(["start", "--bind", "127.0.0.1:0"]).stdout(Stdio::piped());
        let mut child = command.spawn().during("valkyrie-server")?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).during("valkyrie-server")?;
        match line.split_whitespace().find(|word| word.starts_with("tcp://")) {
            Some(endpoint) => Ok(Server { endpoint: endpoint.to_owned(), child }),
            None => failed(format!("valkyrie-server said {line:?} and no tcp endpoint")),
        }
    }

    fn stop(mut self) -> Outcome<()> {
        run(Command::new("kill").args(["-TERM", &self.child.id().to_string()]))?;
        match self.child.wait().during("valkyrie-server")? {
            status if status.success() => Ok(()),
            status => failed(format!("valkyrie-server ended with {status} after SIGTERM")),
        }
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

fn transfers(project: &Project) -> Outcome {
    let files = data(project)?;
    let example = ["build", "--quiet", "--release", "-p", "valkyrie-conformance", "--example", "transfer"];
    run(&mut project.cargo(example))?;
    let fresh = project.path(FRESH);
    let server = Server::start(project)?;
    let node = fresh.join("node");
    // Node looks packages up from where a program lies.
    std::fs::copy(project.path("examples/node/transfer.mjs"), node.join("transfer.mjs"))
        .during("transfer.mjs")?;
    let mut python = project.command(fresh.join("python/bin/python"));
    python.arg("-P").arg(project.path("examples/python/transfer.py"));
    let mut javascript = project.command("node");
    javascript.arg(node.join("transfer.mjs"));
    let programs = [
        ("rust", project.command("target/release/examples/transfer")),
        ("python", python),
        ("node", javascript),
    ];
    let mut figures = Vec::new();
    for (language, mut program) in programs {
        let said = output(program.arg(&server.endpoint).args(&files))?;
        let said: Value = serde_json::from_str(&said).during(format!("what {language} said"))?;
        if said["sent"] != said["received"] || said["sent"] != said["server"] {
            return failed(format!("{language}: the hashes differ: {said}"));
        }
        let (bytes, seconds) =
            (said["bytes"].as_f64().unwrap_or(0.0), said["seconds"].as_f64().unwrap_or(f64::NAN));
        println!(
            "   {language:7} {:.0} MB up and down in {seconds:.2} s, {:.0} MB/s each way, sha-256 equal at both ends",
            bytes / 1e6,
            bytes / 1e6 / seconds
        );
        figures.push(format!("{language} {:.0} MB/s", bytes / 1e6 / seconds));
    }
    let message = ["send", "--endpoint", &server.endpoint, "--message", "Hello, World!"];
    let said = output(Command::new(installed_program(project, "valkyrie")).args(message))?;
    if said.trim() != "Hello, World!" {
        return failed(format!("valkyrie send said {said:?}"));
    }
    server.stop()?;
    Ok(figures.join(", "))
}
