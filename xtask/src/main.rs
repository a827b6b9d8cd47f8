//! The project's own commands, run as `cargo xtask <verb>`. A verb does one whole thing, set-up included, so that a
//! person, a workflow and the README all say the same line.
#![forbid(unsafe_code)]

mod arrows;
mod budgets;
mod c;
mod check;
mod compare;
mod conformance;
mod coverage;
mod demo;
mod fuzz;
mod instrument;
mod kotlin;
mod package;
mod pages;
mod pains;
mod release;
mod sbom;
mod setup;
mod simulation;
mod soak;
mod spec;
mod standalone;
mod step;
mod supply;
mod support;
mod swift;
mod web;
mod workflows;

use std::process::ExitCode;

use crate::fuzz::Plan;
use crate::package::Profile;
use crate::step::{Project, Steps, run};

const HELP: &str = "\
usage: cargo xtask <verb> [flags]

  test [--quick]    set-up, then every check; --quick: formatting, clippy, Rust tests and vectors of the core, in minutes
  demo              set-up, packages, then the main job in every language against the installed server: 200 MB up and
                    down with equal hashes at both ends, 1,000 calls in flight, cancel, deadline, SIGTERM in mid-stream;
                    and the conformance cases as one table
  matrix            set-up, packages, then the conformance cases in every language as one table
  package [--dist]  builds what users install into dist/, installs each into a fresh place under target/fresh/, builds each
                    crate from its own package alone, and compares versions, sizes and imports with tests/budgets.json;
                    --dist: with the profile of a release, smaller and slower to build, with the static server, Python's sdist
                    and dist/SHA256SUMS, and the image, where there is a daemon of Docker
  publish WHERE [--try]
                    WHERE: crates, npm or pypi; hands the packages of dist/ to their registry in the right order, crates from
                    their sources; --try: all but that. release.yml does it for a tag
  lint              formatting, clippy, docs, the arrow test, the rules of PROTOCOL.md and their tests, licences, floors and
                    sources of every dependency without a network, ruff
  fmt               formats the Rust and Python sources in place
  support           writes tests/conformance/SUPPORT.md: every feature in every language, from features.json and the APIs
  header            writes c/include/valkyrie/valkyrie.h from bindings/c
  bench [--peers | --copies | --compare [BASE]]
                    builds the programs as released and prints their figures beside a raw TCP echo, critical calls beside
                    bulk, and 19,000 connections at rest; --peers: every language beside what its users would pick
                    instead (benches/peers), in about 6 minutes; --copies: how often each language copies a message;
                    --compare: the quick ones in turns with those of the commit BASE, or of the last one that main has, too,
                    on this machine. It fails where most of what runs here is slower by more than a twentieth and more than
                    noise, twice; target/bench has history.jsonl and history.svg
  simulate [--seconds N] [--seed S] [--jobs J] [--log]
                    the protocol in a simulated network with seeded faults and an auditor: N simulated seconds from seed
                    S on; 2,000,000 take about 15 minutes on 2 cores. The last lines are the log to keep
  security          licences, sources and known vulnerabilities of every dependency (cargo-deny)
  fuzz [flags]      every target of tests/fuzz for 60 s each, with AddressSanitizer; a crash is kept as a file, beside the
                    line that runs it again. --seconds N: for so long each; --target NAME: only one; --replay FILE:
                    runs a crash of the target again; --keep: writes what was found into tests/fuzz/corpus, minimized
  sanitize          the protocol's and the bridge's tests, and the C library with its tests, under AddressSanitizer
  soak              1,000,000 calls and 100,000 clients through the packages of C, Python and Node, and in a page, and the calls
                    through Kotlin's: what they leave, and how much memory, in some minutes each; `test` has the short form of it
  outages [--seconds N] [--seed S]
                    one client and three servers that are processes: 20 rolling restarts at 500 calls/s, links that flap for
                    ten minutes, and an hour, or N seconds, of servers killed, stopped and cut off; what became of the
                    calls. The lines are the log to keep; `test` has the short form
  coverage          how many lines of the protocol, the policies and the sdk their tests run, against tests/coverage.json;
                    target/coverage has lcov.info and summary.json; llvm-cov comes from Debian where rustc has none
  setup             what the other verbs need from the machine: programs, tools of Python and npm, the wasm toolchain,
                    a JDK and Maven, Swift
  help              this text

  --only A,B        with any verb: only the steps of these names, or those whose names contain them

Exit code: 0 every step passed, 1 a step failed, 2 no such verb or flag.
A step that this machine cannot run is skipped with its reason; with CI=true in the environment a skip is a failure.
With CI=true each step is one line, too: what it prints goes to target/log/, and its end is shown when the step fails.
VALKYRIE_WASM_NO_RUSTUP=1 gets the wasm toolchain without rustup. VALKYRIE_CHROMIUM and VALKYRIE_FIREFOX name other
browsers than /usr/bin/chromium and /usr/bin/firefox-esr. Without a Swift in the PATH Debian 13's is made in
/var/cache/valkyrie/swift-trixie (2.7 GB), or where VALKYRIE_SWIFT_ROOT says, as root on Debian.";

const FUZZ: &str = "no input crashes a target, or makes it take more memory than it may";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
    let only = match words.iter().position(|word| *word == "--only") {
        Some(flag) if flag + 2 == words.len() => words.drain(flag..).nth(1),
        _ => None,
    };
    let project = Project::find();
    let mut steps = Steps::default();
    match words.as_slice() {
        ["test"] => {
            setup::add(&mut steps, &project);
            check::add_sources(&mut steps, &project);
            check::add_rust(&mut steps, &project);
            steps.add("fuzz", FUZZ, &[], || fuzz::fuzz(&project, Plan::all(5)));
            web::add_check(&mut steps, &project);
            package::add(&mut steps, &project, Profile::Release);
            budgets::add(&mut steps, &project);
            check::add_packages(&mut steps, &project);
            demo::add(&mut steps, &project);
            conformance::add(&mut steps, &project);
            check::add_left(&mut steps, &project);
        }
        ["test", "--quick"] => check::add_quick(&mut steps, &project),
        ["demo"] => {
            setup::add(&mut steps, &project);
            package::add(&mut steps, &project, Profile::Release);
            demo::add(&mut steps, &project);
            conformance::add(&mut steps, &project);
        }
        ["matrix"] => {
            setup::add(&mut steps, &project);
            package::add(&mut steps, &project, Profile::Release);
            conformance::add(&mut steps, &project);
        }
        ["package"] | ["package", "--dist"] => {
            setup::add(&mut steps, &project);
            let profile = if words.len() == 2 { Profile::Dist } else { Profile::Release };
            package::add(&mut steps, &project, profile);
            release::add(&mut steps, &project, profile);
            budgets::add(&mut steps, &project);
            if profile == Profile::Dist {
                release::add_sums(&mut steps, &project);
            }
        }
        ["publish", registry @ ("crates" | "npm" | "pypi"), flag @ ..] if matches!(flag, [] | ["--try"]) => {
            let (project, try_only) = (&project, !flag.is_empty());
            steps.add("publish", "hands packages to their registry", &[], move || {
                release::publish(project, registry, try_only)
            });
        }
        ["lint"] => {
            steps.add("python tools", "ruff, in target/venv", &[], || setup::python_tools(&project));
            check::add_sources(&mut steps, &project);
        }
        ["fmt"] => steps.add("fmt", "formats the sources in place", &[], || {
            run(&mut project.cargo(["fmt", "--all"]))?;
            run(&mut project.cargo(["fmt", "--manifest-path", "tests/fuzz/Cargo.toml"]))?;
            setup::python_tools(&project)?;
            check::ruff(&project, &["format"])
        }),
        ["header"] => steps.add("header", "writes the C header from bindings/c", &[], || {
            package::write_c_header(&project, package::C_HEADER)
        }),
        ["support"] => {
            steps.add("support", "writes what each language has", &[], || support::write(&project))
        }
        ["bench"] => {
            steps.add("bench", "figures of the programs as released", &[], || check::bench(&project))
        }
        ["bench", "--compare", base @ ..] if base.len() < 2 => {
            steps.add("compare", "this checkout beside its base, in turns on this machine", &[], || {
                compare::check(&project, base.first().copied())
            });
        }
        ["bench", which @ ("--peers" | "--copies")] => {
            setup::add(&mut steps, &project);
            // Its script makes the packages that the selected peers use.
            let needs = &["setup: programs", "setup: python tools"];
            if *which == "--peers" {
                steps.add("peers", "each language beside its yardsticks, from one run", needs, || {
                    check::peers(&project)
                });
            } else {
                steps.add("copies", "how often each language copies a message", needs, || {
                    check::copies(&project)
                });
            }
        }
        ["simulate", flags @ ..] => {
            let project = &project;
            steps.add("simulate", "the protocol under seeded faults in simulated time", &[], move || {
                simulation::run(project, flags)
            });
        }
        ["security"] => {
            steps.add("cargo-deny", "licences, sources, vulnerabilities", &[], || check::deny(&project))
        }
        ["fuzz", flags @ ..] => {
            let Some(plan) = Plan::read(flags) else { return usage() };
            steps.add("fuzz", FUZZ, &[], || fuzz::fuzz(&project, plan));
        }
        ["sanitize"] => {
            steps.add("sanitize", "the protocol's tests under AddressSanitizer", &[], || {
                instrument::sanitize(&project)
            });
            steps.add("sanitize bridge", "the bridge's tests under AddressSanitizer", &[], || {
                instrument::sanitize_bridge(&project)
            });
            steps.add("sanitize c", "the C library and its tests under AddressSanitizer", &[], || {
                instrument::sanitize_c(&project)
            });
        }
        ["soak"] => {
            setup::add(&mut steps, &project);
            package::add(&mut steps, &project, Profile::Release);
            soak::add(&mut steps, &project);
        }
        ["outages", flags @ ..] => soak::add_outages(&mut steps, &project, flags),
        ["coverage"] => steps
            .add("coverage", "the lines of the core that its tests run", &[], || coverage::check(&project)),
        ["setup"] => setup::add(&mut steps, &project),
        ["help" | "--help" | "-h"] => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        _ => return usage(),
    }
    let logs = project.ci.then(|| project.path("target/log"));
    steps.run(only, project.ci, logs.as_deref())
}

fn usage() -> ExitCode {
    eprintln!("{HELP}");
    ExitCode::from(2)
}
