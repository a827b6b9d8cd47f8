//! The C library: its header's rules, its symbols, and its tests as programs that use the installed tree.

use std::collections::BTreeSet;
use std::path::Path;

use crate::check::c_compiler;
use crate::conformance::{ECHO, Server, echo_variables};
use crate::package::{self, FRESH};
use crate::step::{During, Outcome, Project, failed, output, run};

/// The waist stays narrow.
const MOST_FUNCTIONS: usize = 47;

/// Where the tests and examples are compiled.
const PROGRAMS: &str = "target/package/c-programs";

/// How valgrind runs each test.
const MEMCHECK: [&str; 6] = [
    "--quiet",
    "--leak-check=full",
    "--show-leak-kinds=definite",
    "--errors-for-leak-kinds=definite",
    "--error-exitcode=99",
    // In turns: a thread that never blocks would keep the one lock under which valgrind runs all of them.
    "--fair-sched=yes",
];

/// A function of the header: its name, its comment, and its declaration.
struct Function<'a> {
    name: &'a str,
    comment: &'a str,
    declaration: &'a str,
}

/// Every function that a header declares. Its comments stand in front of what they explain.
fn functions(header: &str) -> Vec<Function<'_>> {
    let mut found = Vec::new();
    let mut rest = header;
    while let Some((_, after)) = rest.split_once("/*") {
        let Some((comment, after)) = after.split_once("*/") else { break };
        let end = after.find([';', '{', '#']).unwrap_or(after.len());
        let declaration = after[..end].trim();
        let name = declaration.split_once('(').map_or("", |(before, _)| before);
        let name = name.rsplit([' ', '*']).next().unwrap_or_default();
        if name.starts_with("valkyrie_") && !declaration.starts_with("typedef") {
            found.push(Function { name, comment, declaration });
        }
        rest = after;
    }
    found
}

/// Checks that the header says of each function where it may be called and who owns what its pointers point to.
fn rules(header: &str) -> Result<usize, String> {
    let functions = functions(header);
    for Function { name, comment, declaration } in &functions {
        let points = declaration.contains('*') || declaration.contains("valkyrie_bytes");
        for (rule, needed) in [("Thread: ", true), ("Owner: ", points)] {
            if needed && !comment.contains(rule) {
                return Err(format!("the header does not say {rule:?} of {name}"));
            }
        }
    }
    match functions.len() {
        1..=MOST_FUNCTIONS => Ok(functions.len()),
        count => Err(format!("the header has {count} functions, at most {MOST_FUNCTIONS}")),
    }
}

/// The shared library exports what the header declares and nothing else.
fn symbols(project: &Project) -> Outcome<usize> {
    let prefix = project.path(FRESH).join("c");
    let path = prefix.join("include/valkyrie/valkyrie.h");
    let header = std::fs::read_to_string(&path).during(path.display())?;
    let count = rules(&header).or_else(failed)?;
    let declared: BTreeSet<&str> = functions(&header).iter().map(|function| function.name).collect();
    let mut nm = project.command("nm");
    nm.args(["--dynamic", "--defined-only", "--format=just-symbols"]);
    let listed = output(nm.arg(prefix.join("lib/libvalkyrie.so.0")))?;
    let exported: BTreeSet<&str> =
        listed.lines().map(|name| name.split('@').next().unwrap_or(name)).collect();
    let differ: Vec<_> = declared.symmetric_difference(&exported).copied().collect();
    if differ.is_empty() {
        Ok(count)
    } else {
        failed(format!("in the header or among the exported symbols, not in both: {}", differ.join(", ")))
    }
}

/// Compiles every test and example as C99 and as C++17 against the installed tree; runs the tests, those in C under
/// valgrind.
pub(crate) fn check(project: &Project) -> Outcome {
    let functions = symbols(project)?;
    let programs = package::fresh_folder(project, PROGRAMS)?;
    let mut tests = Vec::new();
    for source in project.files(&["c/tests/*.c", "examples/c/*.c"])? {
        let name = source.trim_end_matches(".c").replace('/', "-");
        for (compiler, standard) in [("gcc", "-std=c99"), ("g++", "-std=c++17")] {
            let program = programs.join(format!("{name}-{compiler}"));
            run(&mut c_compiler(project, compiler, standard, &project.path(&source), &program)?)?;
            if source.starts_with("c/tests/") {
                tests.push((compiler, program));
            }
        }
    }
    if tests.is_empty() {
        return failed("c/tests has no program");
    }
    let server = Server::start(project)?;
    for (compiler, program) in &tests {
        let mut test = project.command(program);
        let mut forks = None;
        // The memory of a program under valgrind is valgrind's.
        if *compiler == "gcc" && !program.ends_with("c-tests-soak-gcc") {
            test = project.command("valgrind");
            test.args(MEMCHECK);
            if program.ends_with("c-tests-fork-gcc") {
                // A child of a fork leaves alone what its parent's threads use.
                test.arg("--leak-check=no");
                forks = Some("10");
            }
            test.arg(program);
        }
        run(test.arg(server.endpoint("tcp")).args(forks).envs(server.variables("tcp")))?;
    }
    let mut drd = project.command("valgrind");
    drd.args(["--quiet", "--tool=drd", "--suppressions=c/tests/drd.supp", "--error-exitcode=99"]);
    run(drd.arg(programs.join("c-tests-threads-gcc")).args([&server.endpoint("tcp"), "2"]))?;
    other_ways_to_link(project, &programs)?;
    Ok(format!("{functions} functions, {} programs in C and C++, memcheck and DRD", tests.len() / 2))
}

/// Runs the tests that [`check`] has compiled as C99 again, with the server inside the library, and not under valgrind.
pub(crate) fn check_without_server(project: &Project) -> Outcome {
    let sources = project.files(&["c/tests/*.c"])?;
    for source in &sources {
        let name = source.trim_end_matches(".c").replace('/', "-");
        let program = project.path(PROGRAMS).join(format!("{name}-gcc"));
        run(project.command(program).arg(ECHO).envs(echo_variables()))?;
    }
    Ok(format!("{} programs", sources.len()))
}

/// Links one example through CMake's find_package, and one with the static library.
fn other_ways_to_link(project: &Project, programs: &Path) -> Outcome<()> {
    let prefix = project.path(FRESH).join("c");
    let hello = project.path("examples/c/hello.c");
    let lists = format!(
        "cmake_minimum_required(VERSION 3.16)\nproject(hello C)\nfind_package(valkyrie {} REQUIRED)\n\
         add_executable(hello {})\ntarget_link_libraries(hello PRIVATE valkyrie::valkyrie)\n",
        project.version(),
        hello.display()
    );
    let source = programs.join("cmake");
    std::fs::create_dir_all(&source).during(source.display())?;
    std::fs::write(source.join("CMakeLists.txt"), lists).during("CMakeLists.txt")?;
    let build = source.join("build");
    let mut configure = project.command("cmake");
    configure.arg("-S").arg(&source).arg("-B").arg(&build);
    run(configure.arg(format!("-DCMAKE_PREFIX_PATH={}", prefix.display())))?;
    run(project.command("cmake").arg("--build").arg(&build))?;
    let mut link = project.command("gcc");
    link.arg(hello).arg("-I").arg(prefix.join("include/valkyrie")).arg(prefix.join("lib/libvalkyrie.a"));
    run(link.args(["-lpthread", "-ldl", "-lm", "-o"]).arg(programs.join("hello-static")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = include_str!("../../c/include/valkyrie/valkyrie.h");

    #[test]
    fn every_function_of_the_header_says_its_thread_and_its_owner() {
        let declared =
            HEADER.lines().filter(|line| line.contains(" valkyrie_") || line.contains("*valkyrie_"));
        let declared = declared.filter(|line| line.contains('(') && !line.starts_with([' ', '#', '/']));
        // The types of callbacks are none.
        assert_eq!(rules(HEADER), Ok(declared.filter(|line| !line.starts_with("typedef")).count()));
    }

    #[test]
    fn a_function_without_a_rule_is_found() {
        let named =
            |comment: &str, arguments: &str| format!("/* {comment} */\nint valkyrie_one({arguments});\n");
        assert_eq!(rules(&named("Thread: any.", "void")), Ok(1));
        assert!(rules(&named("", "void")).is_err());
        assert!(rules(&named("Thread: any.", "const char *text")).is_err());
        assert_eq!(rules(&named("Thread: any.\nOwner: the caller.", "const char *text")), Ok(1));
        assert!(rules(&named("Thread: any.", "void").repeat(MOST_FUNCTIONS + 1)).is_err());
    }
}
