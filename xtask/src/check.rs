//! The checks of the sources and of each installed package, by the tools of its language.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::conformance::{ECHO, Server, Variables, echo_variables};
use crate::package::{self, FRESH, Profile};
use crate::setup::VENV;
use crate::step::{
    During, Outcome, Project, Steps, Stop, failed, output, passed, read_lines, run, run_and_read, succeeds,
};
use crate::{
    arrows, c, kotlin, pages, pains, release, simulation, spec, supply, support, swift, web, workflows,
};

/// The answer of a few minutes: what needs no package and no tool beside Rust and Python.
pub(crate) fn add_quick<'a>(steps: &mut Steps<'a>, project: &'a Project) {
    steps.add("fmt", "rustfmt has nothing to change", &[], || rustfmt(project));
    steps.add("clippy", "the core without a warning", &[], || clippy(project, &["--all-targets"]));
    steps.add("arrows", "no crate depends on what it must not", &[], || arrows::check(project));
    steps.add("supply", "licences, sources and floors of every dependency, as deny.toml says", &[], || {
        supply::check(project)
    });
    steps.add("spec", "every rule of PROTOCOL.md has a test or a vector", &[], || spec::check(project));
    steps.add("rust tests", "tests of the core", &[], || rust_tests(project, &[]));
    steps.add("vectors", "the decoder written from PROTOCOL.md alone reads every vector", &[], || {
        vectors(project)
    });
    add_left(steps, project);
}

/// The last step of the tests.
pub(crate) fn add_left<'a>(steps: &mut Steps<'a>, project: &'a Project) {
    steps.add("left", "nothing of ours is left in the temporary folder", &[], || project.nothing_left());
}

/// What reading the sources can show.
pub(crate) fn add_sources<'a>(steps: &mut Steps<'a>, project: &'a Project) {
    steps.add("fmt", "rustfmt has nothing to change", &[], || rustfmt(project));
    steps.add("arrows", "no crate depends on what it must not", &[], || arrows::check(project));
    steps.add("supply", "licences, sources and floors of every dependency, as deny.toml says", &[], || {
        supply::check(project)
    });
    steps.add("spec", "every rule of PROTOCOL.md has a test or a vector", &[], || spec::check(project));
    steps.add("pains", "every row of tests/PAINS.md names tests that exist, or a reason", &[], || {
        pains::check(project)
    });
    steps.add(
        "workflows",
        "each runs verbs that there are, of pinned actions, with least rights and an end",
        &[],
        || workflows::check(project, crate::HELP),
    );
    steps.add("versions", "each package has the version that tests/budgets.json says", &[], || {
        release::versions(project)
    });
    steps.add("support", "every feature is in every language's API, or a reason why not", &[], || {
        support::check(project)
    });
    steps.add(
        "clippy",
        "every crate and target without a warning, the sdk without its features, the fuzz targets",
        &[],
        || {
            clippy(project, &["--workspace", "--all-targets"])?;
            let sdk = ["-p", "valkyrie-sdk", "--no-default-features"];
            clippy(project, &sdk)?;
            clippy(project, &[&sdk[..], &["--features", "native"]].concat())?;
            // On their own, as they are built; without a sanitizer, which the stable compiler has not.
            clippy(
                project,
                &["--manifest-path", "tests/fuzz/Cargo.toml", "--target-dir", "target/fuzz/clippy"],
            )
        },
    );
    steps.add(
        "features",
        "the sdk with each set of its features, without cryptography and with each provider",
        &[],
        || supply::features(project),
    );
    steps.add("docs", "the core's documentation builds without a warning", &[], || {
        let packages = ["protocol", "sdk", "otel", "config", "bridge"];
        let packages = packages.iter().flat_map(|name| ["-p".to_owned(), format!("valkyrie-{name}")]);
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
        rust_tests(project, &["--workspace", "--exclude", "valkyrie-faults"])
    });
    steps.add("faults", "evil peers and bad links: what each is told, memory, an honest client", &[], || {
        faults(project)
    });
    steps.add("simulation", "seeded faults in simulated time; debug and release log the same", &[], || {
        simulation::check(project)
    });
    steps.add("protocol alone", "the protocol builds from its own package, away from here", &[], || {
        let package = ["package", "--quiet", "--offline", "--allow-dirty", "-p", "valkyrie-protocol"];
        run(&mut project.cargo(package))?;
        Ok(String::new())
    });
    steps.add("vectors", "the decoder written from PROTOCOL.md alone reads every vector", &[], || {
        vectors(project)
    });
}

/// The tests of each language against its installed package, the examples, and the README.
pub(crate) fn add_packages<'a>(steps: &mut Steps<'a>, project: &'a Project) {
    steps.add(
        "python",
        "mypy --strict, stubtest and pytest against the installed wheel",
        &["package: python"],
        || python(project),
    );
    steps.add(
        "node",
        "node --test and tsc --strict against the installed packages",
        &["package: node"],
        || node(project),
    );
    steps.add("c", "the header, its symbols, C99, C++17 and valgrind", &["package: c"], || c::check(project));
    swift::add_check(steps, project);
    steps.add(
        "no server",
        "the tests of Python, Node and C again, with the server inside the library",
        &["python", "node", "c"],
        || {
            let python = pytest(
                project,
                echo_variables(),
                &["-k", &format!("not {}", CREDENTIALS.join(" and not "))],
            )?;
            let node = node_tests(project, project.command("node").env("VALKYRIE_TEST_ENDPOINT", ECHO), &[])?;
            Ok(format!("{python}, {node}, {}", c::check_without_server(project)?))
        },
    );
    kotlin::add_check(steps, project);
    if web::exists(project) {
        steps.add("web", "the package's tests in pages of Chromium and Firefox", &["package: web"], || {
            web::check(project)
        });
        steps.add(
            "bundles",
            "an app as Vite, webpack and esbuild build it, and as no bundler does, in both browsers",
            &["package: web", "package: node"],
            || web::bundles(project),
        );
    }
    steps.add(
        "one core",
        "every installed package tells the same version and the same hash of the core",
        &[],
        || one_core(project),
    );
    steps.add(
        "programs",
        "each verb of the installed valkyrie-server and valkyrie, by their own tests",
        &["package: rust"],
        || programs(project),
    );
    steps.add("examples", "every example in its language, through its installed package", &[], || {
        examples(project)
    });
    steps.add("readme", "what the README shows is what the tests run", &[], || readme(project));
    let needs = &["package: rust", "package: python", "package: node", "package: c"];
    steps.add("pages", "what docs/ shows is typed and compared with what it prints", needs, || {
        pages::check(project)
    });
}

/// The tests of the programs, which `rust tests` ran with those of cargo's, with those that users install.
fn programs(project: &Project) -> Outcome {
    let of = |package: &str| project.path("core").join(package).join("tests");
    let mut tests = project.cargo(["test", "--quiet", "--workspace", "--exclude", "valkyrie-faults"]);
    // As `rust tests` names the packages, so that nothing is compiled with other features.
    let mut names = BTreeSet::new();
    for folder in [of("server"), of("tools")] {
        for entry in std::fs::read_dir(&folder).during(folder.display())? {
            let path = entry.during(folder.display())?.path();
            let is_test = path.extension().is_some_and(|end| end == "rs") || path.join("main.rs").exists();
            names.extend(path.file_stem().filter(|_| is_test).map(ToOwned::to_owned));
        }
    }
    for name in names {
        tests.arg("--test").arg(name);
    }
    let folder = package::installed_program(project, "valkyrie");
    let mut count = 0;
    run_and_read(tests.env("VALKYRIE_TEST_PROGRAMS", folder.parent().unwrap_or(&folder)), |line| {
        count += passed(line)
    })?;
    if count == 0 { failed("no test ran") } else { Ok(format!("{count} tests")) }
}

fn rustfmt(project: &Project) -> Outcome {
    run(&mut project.cargo(["fmt", "--all", "--check"]))?;
    run(&mut project.cargo(["fmt", "--manifest-path", "tests/fuzz/Cargo.toml", "--check"]))?;
    Ok(String::new())
}

fn clippy(project: &Project, what: &[&str]) -> Outcome {
    run(project.cargo(["clippy", "--quiet"]).args(what).args(["--", "-D", "warnings"]))?;
    Ok(String::new())
}

/// Tests over random input; what they find is found by integration tests of cargo's.
const PROPERTIES: [&str; 6] = ["test", "--quiet", "-p", "valkyrie-protocol", "--test", "properties"];

fn rust_tests(project: &Project, what: &[&str]) -> Outcome {
    let kinds =
        [("unit", ["--lib", "--bins"].as_slice()), ("integration", &["--test", "*"]), ("doc", &["--doc"])];
    let mut counts = Vec::new();
    for (kind, which) in kinds {
        let mut count = 0;
        run_and_read(project.cargo(["test", "--quiet"]).args(what).args(which), |line| {
            count += passed(line)
        })?;
        if kind == "integration" {
            let listed = output(project.cargo(PROPERTIES.iter().copied()).args(["--", "--list"]))?;
            let properties = listed.lines().filter(|line| line.ends_with(": test")).count();
            count -= properties;
            counts.push(format!("{properties} property"));
        }
        counts.push(format!("{count} {kind}"));
    }
    Ok(counts.join(", "))
}

/// Runs the scripts of evil peers and prints their table: what the evil side saw, by how much the server's memory grew,
/// and the 99th percentile of an honest client's calls beside them.
fn faults(project: &Project) -> Outcome {
    let mut count = 0;
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut worst = 0;
    // Two at a time: each has a server and a client of its own.
    let mut test =
        project.cargo(["test", "--quiet", "-p", "valkyrie-faults", "--", "--nocapture", "--test-threads=2"]);
    let ran = read_lines(test.env("RUST_BACKTRACE", "0"), |line| {
        count += passed(line);
        // Behind the dots of the test runner.
        let Some((_, row)) = line.split_once("fault\t") else {
            if !line.trim_matches('.').is_empty() {
                println!("{line}");
            }
            return;
        };
        let row: Vec<String> = row.split('\t').map(str::to_owned).collect();
        let grown = row.get(4).and_then(|memory| memory.strip_suffix(" KiB")?.parse().ok());
        worst = worst.max(grown.unwrap_or(0));
        rows.push(row);
    });
    rows.sort();
    rows.insert(0, ["fault", "evil", "what", "seen", "memory", "honest p99"].map(str::to_owned).into());
    let columns = rows[0].len();
    let width = |at: usize| rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|at| width(at).unwrap_or(0)).collect();
    for row in &rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        println!("   {}", cells.join("  ").trim_end());
    }
    ran?;
    Ok(format!("{count} tests, {} rows, memory grew by {worst} KiB at most", rows.len() - 1))
}

fn vectors(project: &Project) -> Outcome {
    let mut told = Vec::new();
    for stranger in ["tests/vectors/decode.py", "tests/vectors/policies.py"] {
        let mut last = String::new();
        run_and_read(project.command("python3").arg(stranger), |line| last = line.to_owned())?;
        told.push(last);
    }
    Ok(told.join(", "))
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
    for file in project.files(&["python/tests/*.py", "examples/python/*.py", "tests/conformance/*.py"])? {
        run(mypy().arg(project.path(&file)))?;
    }
    // What the binary has is what the .pyi says; stubtest reads it from the interpreter that it runs in.
    let mut stubtest = Command::new(&python);
    stubtest.current_dir(&fresh).args(["-P", "-m", "mypy.stubtest", "valkyrie"]);
    run(stubtest.env("PYTHONPATH", site_packages(project)?))?;
    let server = Server::start(project)?;
    pytest(project, server.variables("tcp"), &[])
}

/// Runs Python's tests with the installed wheel.
/// Tests of Python whose server checks credentials, as the one inside the library does not.
const CREDENTIALS: [&str; 2] =
    ["test_tokens_survive_a_fork_and_are_in_no_record", "test_token_functions_under_trio"];

fn pytest(project: &Project, variables: Variables, more: &[&str]) -> Outcome {
    let fresh = project.path(FRESH).join("python");
    let mut note = String::new();
    let mut pytest = project.command(fresh.join("bin/python"));
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
        .args(more)
        .arg(project.path("python/tests"))
        .env("PYTHONPATH", site_packages(project)?)
        .envs(variables);
    let certificates = project.path("target/debug/valkyrie-conformance-certificates");
    pytest.env("VALKYRIE_CONFORMANCE_CERTIFICATE_SERVER", certificates);
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
    let server = Server::build(project)?;
    node_tests(project, project.command("node").env("VALKYRIE_TEST_SERVER", server), &[])
}

/// Node's tests with a million calls and a hundred thousand clients.
pub(crate) fn node_soak(project: &Project) -> Outcome {
    let server = Server::build(project)?;
    node_tests(project, project.command("node").env("VALKYRIE_TEST_SERVER", server), &["--long"])
}

/// Runs Node's tests, in an environment that says whom they call.
fn node_tests(project: &Project, node: &mut Command, flags: &[&str]) -> Outcome {
    let mut note = String::new();
    node.arg("node/test/run.mjs").args(flags);
    node.env("VALKYRIE_NODE_LIBRARY", package::node_library(project, Profile::Release));
    run_and_read(node, |line| {
        if let Some(count) = line.trim_start_matches(['#', 'ℹ', ' ']).strip_prefix("pass ") {
            note = format!("{count} tests");
        }
    })?;
    Ok(note)
}

/// A compiler's command for one program that uses the installed tree as pkg-config describes it.
pub(crate) fn c_compiler(
    project: &Project,
    compiler: &str,
    standard: &str,
    source: &Path,
    program: &Path,
) -> Outcome<Command> {
    c_program(project, &project.path(FRESH).join("c"), compiler, standard, source, program)
}

/// The same with the tree that lies in another folder.
pub(crate) fn c_program(
    project: &Project,
    prefix: &Path,
    compiler: &str,
    standard: &str,
    source: &Path,
    program: &Path,
) -> Outcome<Command> {
    let mut command = project.command(compiler);
    command.args([standard, "-Wall", "-Wextra", "-Werror", "-pedantic", "-g", "-x"]);
    command
        .arg(if compiler == "g++" { "c++" } else { "c" })
        .arg(source)
        .args(["-x", "none", "-o"])
        .arg(program);
    let mut flags = project.command("pkg-config");
    flags.args(["--cflags", "--libs", "valkyrie"]).env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig"));
    command.args(output(&mut flags)?.split_whitespace());
    command.arg(format!("-Wl,-rpath,{}", prefix.join("lib").display())).arg("-pthread");
    Ok(command)
}

/// Asks each installed package for its version: a package that was left behind by a change of the core differs.
fn one_core(project: &Project) -> Outcome {
    const FROM_C: &str = "import ctypes, sys; library = ctypes.CDLL(sys.argv[1]); \
        library.valkyrie_version.restype = ctypes.c_char_p; print(library.valkyrie_version().decode())";
    let fresh = project.path(FRESH);
    let library = fresh.join("c/lib/libvalkyrie.so.0");
    let mut python = project.command(fresh.join("python/bin/python"));
    python.args(["-P", "-c", "import valkyrie; print(valkyrie.version())"]);
    let mut node = project.command("node");
    node.current_dir(fresh.join("node")).args(["-p", "require('valkyrie-sdk').version"]);
    let mut c = project.command("python3");
    c.args(["-c", FROM_C]).arg(library);
    let kotlin = kotlin::program(project, "dev.valkyrie.conformance.version.VersionKt");
    let mut swift = swift::runner(project)?;
    swift.arg("--version");
    let mut packages =
        vec![("python", python), ("node", node), ("c", c), ("kotlin", kotlin), ("swift", swift)];
    if web::exists(project) {
        packages.push(("browser", web::page(project, "chromium", "xtask/node/version.mjs")?));
    }
    let mut told: Vec<(&str, String)> = Vec::new();
    for (language, mut command) in packages {
        told.push((language, output(&mut command)?.trim().to_owned()));
        println!("   {language}: {}", told[told.len() - 1].1);
    }
    let (_, first) = &told[0];
    match told.iter().find(|(_, version)| version != first) {
        Some((language, version)) => failed(format!("{language} has {version}, python has {first}")),
        None => Ok(first.clone()),
    }
}

/// Runs every file of examples/ in its language, through the installed packages, and compares what it prints.
fn examples(project: &Project) -> Outcome {
    let server = Server::start(project)?;
    let fresh = project.path(FRESH);
    let mut ran = 0;
    for file in project.files(&["examples"])? {
        let path = project.path(&file);
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let language = file.split('/').nth(1).unwrap_or_default();
        // The main job runs the demo, which needs a server that stops; pytest runs what forks.
        if name == "demo" || file.starts_with("examples/python/fork/") {
            continue;
        }
        let secure = name.ends_with("_tls");
        let mut scheme = if secure { "tls" } else { "tcp" };
        let mut command = match (language, path.extension().and_then(|ending| ending.to_str())) {
            ("rust", Some("rs")) => project.command(format!("target/debug/examples/{name}")),
            ("python", Some("py")) => {
                let mut python = project.command(fresh.join("python/bin/python"));
                python.arg("-P").arg(&path);
                python
            }
            ("node", Some("mjs" | "cjs")) => {
                // Node looks for packages from where the program lies.
                let copied = fresh.join("node/examples").join(path.file_name().unwrap_or_default());
                package::copy(&path, &copied)?;
                let mut node = project.command("node");
                node.arg(copied);
                node
            }
            ("c", Some("c")) => {
                let program = project.path("target/package/c-programs").join(&name);
                run(&mut c_compiler(project, "gcc", "-std=c99", &path, &program)?)?;
                project.command(program)
            }
            ("kotlin", Some("kt")) => kotlin::example(project, &name),
            ("swift", Some("swift")) => swift::example(project, &name)?,
            ("web", Some("mjs")) => {
                scheme = "ws";
                web::page(project, "chromium", &file)?
            }
            (_, Some("md")) => continue,
            _ => return failed(format!("nothing runs {file}")),
        };
        command.arg(server.endpoint(scheme)).env("VALKYRIE_ENDPOINT", server.endpoint(scheme));
        if secure {
            let file = if language == "c" { "file:" } else { "" };
            command.arg(format!("{file}{}", server.endpoint("certificates")));
        }
        let mut printed = String::new();
        run_and_read(&mut command, |line| printed = format!("{printed}{line}\n"))?;
        // The same program prints the same in every language.
        let expected = match name.split(['_', '-']).next() {
            Some("hello" | "retries") => "Hello, World!",
            Some("stream") => "one\ntwo\nthree",
            Some("errors") => "UNIMPLEMENTED",
            _ => return failed(format!("nothing says what {file} should print")),
        };
        if !printed.contains(expected) {
            return failed(format!("{file} printed {printed:?}, without {expected:?}"));
        }
        ran += 1;
    }
    if ran == 0 { failed("there is no example") } else { Ok(format!("{ran} programs")) }
}

/// Every piece of code that the README shows is a piece of an example or of a documentation test, both of which run.
fn readme(project: &Project) -> Outcome {
    let mut sources = Vec::new();
    for file in project.files(&["examples", "core/sdk/src/lib.rs", "core/sdk/tests/*.rs"])? {
        let text = std::fs::read_to_string(project.path(&file)).during(&file)?;
        sources.push(plain(text.lines().map(|line| line.trim_start().trim_start_matches("//! "))));
    }
    let text = std::fs::read_to_string(project.path("README.md")).during("README.md")?;
    let mut shown = 0;
    for (number, language, block) in code_blocks(&text) {
        if !["rust", "python", "js", "javascript", "mjs", "ts", "c", "kotlin", "swift", "html"]
            .contains(&language)
        {
            continue;
        }
        let block = plain(block.into_iter());
        if !sources.iter().any(|source| source.contains(&block)) {
            return failed(format!(
                "README.md:{number}: this is in no example and no test of the sdk:\n{block}"
            ));
        }
        shown += 1;
    }
    let links = pages::links(project)?;
    if shown == 0 {
        failed("README.md shows no code")
    } else {
        Ok(format!("{shown} pieces of code, {links} links"))
    }
}

/// Lines without their indentation, so that a piece may be shown without what surrounds it.
fn plain<'a>(lines: impl Iterator<Item = &'a str>) -> String {
    lines.map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
}

/// The fenced blocks of a Markdown text: line number, language, lines.
fn code_blocks(text: &str) -> Vec<(usize, &str, Vec<&str>)> {
    let mut blocks: Vec<(usize, &str, Vec<&str>)> = Vec::new();
    let mut inside = false;
    for (index, line) in text.lines().enumerate() {
        if let Some(language) = line.strip_prefix("```") {
            inside = !inside;
            if inside {
                blocks.push((index + 1, language.trim(), Vec::new()));
            }
        } else if let (true, Some((_, _, lines))) = (inside, blocks.last_mut()) {
            lines.push(line);
        }
    }
    blocks
}

/// Licences, sources and known vulnerabilities. The vulnerabilities come from a database on the network.
pub(crate) fn deny(project: &Project) -> Outcome {
    const TOOL: &str = "target/tools/bin/cargo-deny";
    if !succeeds(project.command(TOOL).arg("--version")) {
        let what = ["cargo-deny@0.20.2", "--no-default-features", "--root", "target/tools"];
        run(project.cargo(["install", "--locked"]).args(what))?;
    }
    // What fuzzes is not shipped, so that its licences are its own matter; what it runs is looked at as everything is.
    let fuzz =
        ["--manifest-path", "tests/fuzz/Cargo.toml", "--config", "deny.toml", "--all-features", "check"];
    run(project.command(TOOL).args(["--all-features", "check", "licenses", "bans", "sources"]))?;
    run(project.command(TOOL).args(fuzz).args(["bans", "sources"]))?;
    if !succeeds(project.command(TOOL).args(["fetch", "db"])) {
        return Err(Stop::Skipped(
            "the advisory database cannot be reached; licences and sources are in order".into(),
        ));
    }
    run(project.command(TOOL).args(["--all-features", "check", "advisories"]))?;
    run(project.command(TOOL).args(fuzz).arg("advisories"))?;
    Ok("licences, sources, advisories".into())
}

/// Each language's installed package beside the yardsticks of benches/peers: unary calls and streams, from one run.
pub(crate) fn peers(project: &Project) -> Outcome {
    const PEERS: &str = "valkyrie,rust-tonic,rust-tokio-raw,c-blocking,c-raw-blocking,c-zmq,py-grpcio,\
        py-asyncio-protocol,py-uvloop-protocol,py-raw-blocking,node-grpc,node-net-raw,web-websocket";
    let mut driver = project.command("benches/peers/run.sh");
    run(driver.env("QUIET", "1").args(["--only", PEERS, "--groups", "unary,stream"]))?;
    Ok(String::new())
}

/// How often each language's installed package copies a message in user space.
pub(crate) fn copies(project: &Project) -> Outcome {
    run(project.command("benches/peers/run.sh").arg("--copies"))?;
    Ok(String::new())
}

/// Prints the figures of the benchmark programs.
pub(crate) fn bench(project: &Project) -> Outcome {
    run(project.command("bash").arg("benches/run.sh"))?;
    Ok(String::new())
}
