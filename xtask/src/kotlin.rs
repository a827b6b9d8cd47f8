//! The package for Kotlin and Java: a jar with the native part in it, and a fresh project that has it from its path.

use std::path::PathBuf;
use std::process::Command;

use crate::conformance::{ECHO, Server};
use crate::package::{self, DIST, Profile};
use crate::sbom::{self, Sbom};
use crate::setup;
use crate::step::{During, Outcome, Project, Steps, Stop, failed, output, run, run_and_read, succeeds};

/// Where Maven builds the jar.
const BUILD: &str = "target/package/kotlin";
/// The native part that is packed.
pub(crate) const LIBRARY: &str = "target/package/kotlin/natives/linux-x86-64/libvalkyrie_jni.so";
/// Where its users' project is.
const PROJECT: &str = "target/fresh/kotlin";
/// Programs that are compiled there, beside the tests.
const PROGRAMS: [&str; 2] = ["tests/conformance/kotlin/*.kt", "examples/kotlin/*.kt"];

/// Adds the step that brings a JDK and Maven.
pub(crate) fn add_setup<'a>(steps: &mut Steps<'a>, project: &'a Project) {
    steps.add("setup: jvm", "a JDK 17 or newer and Maven, from Debian where missing", &[], || jvm(project));
}

/// Adds the step that builds the jar and the project that uses it.
pub(crate) fn add_package<'a>(steps: &mut Steps<'a>, project: &'a Project, profile: Profile) {
    steps.add(
        "package: kotlin",
        "the jar with its native part, into a fresh Maven project",
        &["setup: jvm"],
        move || package(project, profile),
    );
}

/// Adds the step that runs its tests.
pub(crate) fn add_check<'a>(steps: &mut Steps<'a>, project: &'a Project) {
    steps.add(
        "kotlin",
        "JUnit against the installed jar, from Kotlin and from Java, and again with the server inside the library",
        &["package: kotlin"],
        || check(project),
    );
}

fn jvm(project: &Project) -> Outcome {
    let mut missing = Vec::new();
    if java_version(project).is_none_or(|version| version < 17) {
        missing.push("openjdk-17-jdk-headless");
    }
    if !succeeds(project.command("mvn").arg("--version")) {
        missing.push("maven");
    }
    if missing.is_empty() {
        return Ok("nothing to do".into());
    }
    setup::install(project, &missing)?;
    match java_version(project) {
        Some(17..) => Ok(format!("installed {}", missing.join(", "))),
        other => failed(format!("the JDK on the path is {other:?}, and 17 or newer is needed")),
    }
}

/// The first number of the compiler's version; `None` where there is none, or a JVM only.
fn java_version(project: &Project) -> Option<u32> {
    let said = output(project.command("javac").arg("-version")).ok()?;
    said.trim().strip_prefix("javac ")?.split('.').next()?.parse().ok()
}

/// Maven, with the user's repository. What is no error it says of what it fetches only.
fn maven(project: &Project) -> Command {
    let mut maven = project.command("mvn");
    maven.args(["-B", "-q", "-Dstyle.color=never"]);
    maven
}

/// The jar where Maven leaves it.
fn jar(project: &Project) -> PathBuf {
    project.path(BUILD).join(format!("valkyrie-{}.jar", project.version()))
}

fn package(project: &Project, profile: Profile) -> Outcome {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        return Err(Stop::Skipped("the only native part that is built so far is linux-x86-64".into()));
    }
    // On its own, as the wheel: so it shares the core that is compiled for all of them.
    let build = ["build", "--quiet", "--locked", "--profile", profile.name(), "-p", "valkyrie-jni"];
    run(&mut project.cargo(build))?;
    let build = package::fresh_folder(project, BUILD)?;
    let library = project.path(LIBRARY);
    package::copy(&project.path("target").join(profile.name()).join("libvalkyrie_jni.so"), &library)?;
    run(project.command("strip").arg(&library))?;
    let sbom = Sbom::of(project, &["valkyrie-jni"], &[], "valkyrie-jni", sbom::LINUX)?;
    sbom.names_what_is_in(&library)?;
    sbom.write(&build.join("natives/META-INF/sbom/valkyrie-jni.cdx.json"))?;
    for pom in ["bindings/kotlin/pom.xml", "bindings/kotlin/tests/pom.xml"] {
        has_our_version(project, pom)?;
    }
    let built = format!("-Dvalkyrie.build={}", build.display());
    run(maven(project).args(["-f", "bindings/kotlin/pom.xml", &built, "package"]))?;
    let published = project.path(DIST).join(format!("valkyrie-{}.jar", project.version()));
    package::copy(&jar(project), &published)?;
    install(project)?;
    let bytes = std::fs::metadata(&published).during("the jar")?.len();
    Ok(format!("{:.2} MB", bytes as f64 / 1e6))
}

/// Both say what the workspace says.
fn has_our_version(project: &Project, pom: &str) -> Outcome<()> {
    let text = std::fs::read_to_string(project.path(pom)).during(pom)?;
    let ours = format!("<artifactId>valkyrie</artifactId>\n{{}}<version>{}</version>", project.version());
    let ours: Vec<&str> = ours.split("{}").collect();
    match text.split_once(ours[0]) {
        Some((_, rest)) if rest.trim_start().starts_with(ours[1]) => Ok(()),
        _ => failed(format!("{pom} does not say that valkyrie has version {}", project.version())),
    }
}

/// A project that knows the jar and nothing of its sources: tests and programs, compiled, and beside them what they need.
fn install(project: &Project) -> Outcome<()> {
    let fresh = package::fresh_folder(project, PROJECT)?;
    package::copy_folder(&project.path("bindings/kotlin/tests"), &fresh)?;
    package::copy(&jar(project), &fresh.join("lib/valkyrie.jar"))?;
    package::copy(&project.path("bindings/bridge/tests/layout.json"), &fresh.join("layout.json"))?;
    std::fs::create_dir_all(fresh.join("programs")).during("programs")?;
    for file in project.files(&PROGRAMS)? {
        let path = project.path(&file);
        package::copy(&path, &fresh.join("programs").join(path.file_name().unwrap_or_default()))?;
    }
    let goals =
        ["test-compile", "dependency:copy-dependencies", "-DoutputDirectory=lib", "-DincludeScope=runtime"];
    run(used(project).args(goals))
}

/// Maven in that project.
fn used(project: &Project) -> Command {
    let mut maven = maven(project);
    let fresh = project.path(PROJECT);
    maven.arg(format!("-Dvalkyrie.jar={}", fresh.join("lib/valkyrie.jar").display())).current_dir(fresh);
    maven
}

/// A program that was compiled there, by the name of its main class.
pub(crate) fn program(project: &Project, main: &str) -> Command {
    let fresh = project.path(PROJECT);
    let mut java = project.command("java");
    java.arg("-cp").arg(format!("{0}/target/classes:{0}/lib/*", fresh.display())).arg(main);
    java
}

/// A program of examples/kotlin: the main class of a file that has a package of its own.
pub(crate) fn example(project: &Project, name: &str) -> Command {
    let (first, rest) = name.split_at(1);
    program(project, &format!("{name}.{}{rest}Kt", first.to_uppercase()))
}

fn check(project: &Project) -> Outcome {
    let server = Server::build(project)?;
    let tests = tests(project, |maven| maven.env("VALKYRIE_TEST_SERVER", &server))?;
    let without = self::tests(project, |maven| maven.env("VALKYRIE_TEST_ENDPOINT", ECHO))?;
    Ok(format!("{tests} tests, and {without} without a server"))
}

/// Its tests with a million calls.
pub(crate) fn soak(project: &Project) -> Outcome {
    let server = Server::build(project)?;
    let only = ["-Dtest=LoadTest", "-Dsurefire.failIfNoSpecifiedTests=true"];
    let ran = tests(project, |maven| {
        maven.args(only).env("VALKYRIE_TEST_SERVER", &server).env("VALKYRIE_SOAK", "1")
    })?;
    Ok(format!("{ran} tests"))
}

/// How many tests ran, in an environment that says whom they call.
fn tests(project: &Project, ask: impl FnOnce(&mut Command) -> &mut Command) -> Outcome<usize> {
    let mut maven = used(project);
    let mut wrong = String::new();
    run_and_read(ask(&mut maven).arg("surefire:test"), |line| {
        // Of -Xcheck:jni.
        if line.starts_with("WARNING") && line.contains("JNI") {
            wrong = line.to_owned();
        }
    })?;
    if !wrong.is_empty() {
        return failed(wrong);
    }
    let reports = project.path(PROJECT).join("target/surefire-reports");
    let mut count = 0;
    for entry in std::fs::read_dir(&reports).during("the reports of JUnit")? {
        let path = entry.during("the reports of JUnit")?.path();
        if path.extension().is_some_and(|ending| ending == "xml") {
            let text = std::fs::read_to_string(&path).during(path.display())?;
            count += text.matches("<testcase ").count() - text.matches("<skipped").count();
        }
    }
    if count == 0 { failed("no test ran") } else { Ok(count) }
}
