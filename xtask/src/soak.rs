//! What must leave nothing behind, for long: the programs whose short forms are among the tests of their packages.

use std::process::Command;

use crate::check::{self, c_compiler};
use crate::conformance::Server;
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

fn soak(project: &Project, mut program: Command, counts: &[&str]) -> Outcome {
    let server = Server::start(project)?;
    let mut said = Vec::new();
    run_and_read(program.arg(server.endpoint("tcp")).args(counts), |line| said.push(line.to_owned()))?;
    Ok(said.join(", "))
}
