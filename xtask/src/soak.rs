//! What must hold for long: programs whose short forms are among the tests.

use std::process::Command;

use crate::check::{self, c_compiler};
use crate::conformance::Server;
use crate::kotlin;
use crate::package::FRESH;
use crate::step::{Outcome, Project, Steps, run, run_and_read};
use crate::web;

const CALLS: &str = "1000000";
const CLIENTS: &str = "100000";

/// Adds a step for each package that has such a program.
pub(crate) fn add<'a>(steps: &mut Steps<'a>, project: &'a Project) {
    steps.add("soak: c", "10,000 cancels, 10^6 calls, 10^5 clients", &["package: c"], || {
        let program = project.path("target/package/c-soak");
        run(&mut c_compiler(project, "gcc", "-std=c99", &project.path("c/tests/soak.c"), &program)?)?;
        soak(project, project.command(program), &["10000", CALLS, CLIENTS])
    });
    steps.add("soak: python", "10^6 calls, 10^5 clients", &["package: python"], || {
        let mut python = project.command(project.path(FRESH).join("python/bin/python"));
        python.arg("-P").arg("python/tests/soak.py");
        soak(project, python, &[CALLS, CLIENTS])
    });
    steps.add("soak: node", "10^6 calls, 10^5 clients, among the tests", &["package: compile"], || {
        check::node_soak(project)
    });
    steps.add("soak: kotlin", "10^6 calls, among the tests", &["package: kotlin"], || kotlin::soak(project));
    steps.add("soak: page", "10^6 calls, 10^5 clients, in a page of Chromium", &["package: web"], || {
        let server = Server::start(project)?;
        for (name, times) in [("calls", "160"), ("clients", "670")] {
            let mut page = web::page(project, "chromium", "wasm/test/leaks.test.mjs")?;
            page.envs(server.variables("ws")).env("VALKYRIE_TEST", name).env("VALKYRIE_SOAK", times);
            run(&mut page)?;
        }
        Ok(String::new())
    });
}

/// Adds the outages of tests/faults in their full length; the flags are those of an hour of them.
pub(crate) fn add_outages<'a>(steps: &mut Steps<'a>, project: &'a Project, flags: &'a [&'a str]) {
    let run = move |words: &[&str]| {
        let program =
            ["run", "--quiet", "--release", "-p", "valkyrie-faults", "--bin", "valkyrie-outages", "--"];
        let mut last = String::new();
        run_and_read(project.cargo(program).args(words), |line| last = line.trim().to_owned())?;
        Ok(last)
    };
    steps.add("outages: restart", "20 rolling restarts of three servers at 500 calls/s", &[], move || {
        run(&["restart"])
    });
    steps.add("outages: flap", "links that flap for ten minutes", &[], move || run(&["flap"]));
    steps.add("outages: schedule", "servers that are killed, stopped and cut off", &[], move || {
        run(&[&["schedule"], flags].concat())
    });
}

fn soak(project: &Project, mut program: Command, counts: &[&str]) -> Outcome {
    let server = Server::start(project)?;
    let mut said = Vec::new();
    run_and_read(program.arg(server.endpoint("tcp")).args(counts), |line| said.push(line.to_owned()))?;
    Ok(said.join(", "))
}
