//! The Swift package: a toolchain for it, the package as users get it, and its tests through a project that has it.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::conformance::{ECHO, Server};
use crate::package::{self, DIST, FRESH, fresh_folder};
use crate::setup;
use crate::step::{During, Outcome, Project, Steps, Stop, failed, output, run, run_and_read, succeeds};

/// The package and the library that it needs, as users get them. Its folder's name is what others call it.
pub(crate) const PACKAGE: &str = "target/package/valkyrie-swift";
/// Where what uses it is compiled, and the home of Swift's package manager.
const SCRATCH: &str = "target/swift/build";
/// A user's project.
const USER: &str = "target/fresh/swift";

/// Where Debian's Swift lives where the system has none: root's, so that every checkout may use it and none else may change it.
const ROOT: &str = "/var/cache/valkyrie/swift-trixie";
/// Names another such place.
const ROOT_VARIABLE: &str = "VALKYRIE_SWIFT_ROOT";

/// Adds what brings a toolchain.
pub(crate) fn add_setup<'a>(steps: &mut Steps<'a>, project: &'a Project) {
    steps.add("setup: swift", "Swift 5.9 or newer, from Debian 13 where the system has none", &[], || {
        make(project)
    });
}

/// Adds what makes the package.
pub(crate) fn add_package<'a>(steps: &mut Steps<'a>, project: &'a Project) {
    steps.add("package: swift", "the sources and the C library, into a folder", &["package: c"], || {
        package(project)
    });
}

/// Adds what checks it.
pub(crate) fn add_check<'a>(steps: &mut Steps<'a>, project: &'a Project) {
    let about = "the package's tests";
    steps.add("swift", about, &["package: swift"], || check(project));
}

/// What runs Swift and what it compiled.
enum Toolchain {
    System,
    Debian(PathBuf),
}

fn root() -> PathBuf {
    std::env::var_os(ROOT_VARIABLE).map_or_else(|| ROOT.into(), PathBuf::from)
}

/// Whether the system has a Swift that is new enough.
fn system(project: &Project) -> bool {
    if !succeeds(project.command("swift").arg("--version")) {
        return false;
    }
    let said = output(project.command("swift").arg("--version")).unwrap_or_default();
    let version = said.split_once("Swift version ").map_or("", |(_, version)| version);
    let mut numbers = version.split(['.', ' ', '-']).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (5u32, 9u32)
}

fn toolchain(project: &Project) -> Outcome<Toolchain> {
    if system(project) {
        return Ok(Toolchain::System);
    }
    let root = root();
    if root.is_dir() && is_root(project)? {
        return Ok(Toolchain::Debian(root));
    }
    Err(Stop::Skipped(format!(
        "no Swift 5.9 or newer in the PATH, and none in {}: run `cargo xtask setup --only swift` as root on Debian",
        root.display()
    )))
}

fn is_root(project: &Project) -> Outcome<bool> {
    Ok(output(project.command("id").arg("-u"))?.trim() == "0")
}

fn make(project: &Project) -> Outcome {
    if system(project) {
        return Ok("the system's".into());
    }
    let root = root();
    if root.is_dir() {
        return Ok(format!("nothing to do: {}", root.display()));
    }
    if !succeeds(project.command("apt-get").arg("--version")) || !is_root(project)? {
        return Err(Stop::Skipped(
            "no Swift 5.9 or newer in the PATH; one is made on Debian as root only".into(),
        ));
    }
    if !succeeds(project.command("debootstrap").arg("--version")) {
        setup::install(project, &["debootstrap"])?;
    }
    let mut make = project.command("unshare");
    make.args(["-m", "sh", "xtask/swift-make.sh"]).arg(&root).arg(mirror(project)?);
    // Thousands of lines that nobody reads but where it fails.
    let log = project.path("target/swift-setup.log");
    let file = std::fs::File::create(&log).during(log.display())?;
    match run(make.stderr(Stdio::from(file))) {
        Ok(()) => Ok(format!("made {}", root.display())),
        Err(_) => failed(format!("no Swift could be made: {} says why", log.display())),
    }
}

/// Where this machine gets its Debian from.
fn mirror(project: &Project) -> Outcome {
    let mut apt = project.command("apt-get");
    apt.args(["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian"]);
    let listed = output(&mut apt)?;
    match listed.lines().find(|line| !line.contains("security")) {
        Some(mirror) => Ok(mirror.to_owned()),
        None => failed("apt has no list of a Debian mirror: run `apt-get update`"),
    }
}

impl Toolchain {
    /// A program of it, or one that it compiled, which sees the checkout and the temporary folder where they are.
    fn command(&self, project: &Project, program: impl Into<PathBuf>) -> Outcome<Command> {
        let program = program.into();
        let [home, temporary] = ["home", "tmp"].map(|name| scratch(project).map(|folder| folder.join(name)));
        let (home, temporary) = (home?, temporary?);
        for folder in [&home, &temporary] {
            std::fs::create_dir_all(folder).during(folder.display())?;
        }
        let mut command = match self {
            Toolchain::System => project.command(program),
            Toolchain::Debian(root) => {
                let target = std::fs::canonicalize(project.path("target")).during("target")?;
                let mut command = project.command("unshare");
                command.args(["-m", "sh", "xtask/swift-inside.sh"]).arg(root);
                command.arg(std::env::temp_dir()).args([&project.root, &target]).arg("--").arg(program);
                command
            }
        };
        let configured = project.path(PACKAGE).join("c/lib/pkgconfig");
        // Its package manager leaves an empty folder there each time.
        command.env("HOME", home).env("TMPDIR", temporary).env("PKG_CONFIG_PATH", configured);
        Ok(command)
    }

    /// `swift VERB` of the package in a folder, compiled elsewhere, under a name.
    fn swift(&self, project: &Project, verb: &str, package: &str, name: &str) -> Outcome<Command> {
        let mut swift = self.command(project, "swift")?;
        swift.args([verb, "-j", "2", "--package-path"]).arg(project.path(package));
        swift.arg("--scratch-path").arg(scratch(project)?.join(name));
        Ok(swift)
    }
}

/// The folder for what is compiled. Swift refuses what it compiled before the folder got its place.
fn scratch(project: &Project) -> Outcome<PathBuf> {
    let folder = project.path(SCRATCH);
    let stamp = folder.join("place.txt");
    let place = folder.to_string_lossy().into_owned();
    if std::fs::read_to_string(&stamp).ok().as_ref() != Some(&place) {
        fresh_folder(project, SCRATCH)?;
        std::fs::write(&stamp, place).during(stamp.display())?;
    }
    Ok(folder)
}

fn package(project: &Project) -> Outcome {
    let folder = fresh_folder(project, PACKAGE)?;
    for file in project.files(&["bindings/swift"])? {
        let inside = file.trim_start_matches("bindings/swift/");
        package::copy(&project.path(&file), &folder.join(inside))?;
    }
    // The static library: what is compiled with the package needs no path at run time.
    let prefix = project.path(FRESH).join("c");
    for file in ["include/valkyrie/valkyrie.h", "lib/libvalkyrie.a", "lib/pkgconfig/valkyrie.pc"] {
        package::copy(&prefix.join(file), &folder.join("c").join(file))?;
    }
    package::copy(&prefix.join("share/doc/valkyrie/sbom.cdx.json"), &folder.join("sbom.cdx.json"))?;
    for licence in ["LICENSE-APACHE", "LICENSE-MIT"] {
        package::copy(&project.path(licence), &folder.join(licence))?;
    }
    let tarball = project.path(DIST).join(format!("valkyrie-swift-{}-linux-x64.tar.gz", project.version()));
    std::fs::create_dir_all(project.path(DIST)).during(DIST)?;
    run(project.command("tar").arg("-czf").arg(&tarball).arg("-C").arg(&folder).arg("."))?;
    let bytes = std::fs::metadata(&tarball).during(tarball.display())?.len();
    Ok(format!("{:.2} MB", bytes as f64 / 1e6))
}

/// The program of the conformance cases, compiled with the package.
pub(crate) fn runner(project: &Project) -> Outcome<Command> {
    const SOURCES: &str = "tests/conformance/swift";
    let toolchain = toolchain(project)?;
    // As it ships: some messages have megabytes.
    run(toolchain.swift(project, "build", SOURCES, "runner")?.args(["-c", "release"]))?;
    toolchain.command(project, scratch(project)?.join("runner/release/runner"))
}

/// The programs of examples/swift as a user's project: each a target of its own, with the package as a dependency.
fn user(project: &Project) -> Outcome<()> {
    let fresh = project.path(USER);
    let mut targets = String::new();
    for file in project.files(&["examples/swift/*.swift"])? {
        let source = project.path(&file);
        let name = source.file_stem().unwrap_or_default().to_string_lossy();
        let text = std::fs::read_to_string(&source).during(&file)?;
        // Statements at the top of a file are a program in main.swift only, where a type cannot be one.
        let inside = if text.contains("@main") { "Program.swift" } else { "main.swift" };
        let copied = fresh.join("Sources").join(&*name).join(inside);
        // What is the same keeps its time, so that it is compiled once.
        if std::fs::read_to_string(&copied).ok().as_ref() != Some(&text) {
            package::copy(&source, &copied)?;
        }
        targets += &format!(
            "        .executableTarget(name: \"{name}\", dependencies: [\n            \
             .product(name: \"Valkyrie\", package: \"valkyrie-swift\"),\n            \
             .product(name: \"ValkyrieFoundation\", package: \"valkyrie-swift\"),\n        ]),\n"
        );
    }
    let manifest = format!(
        "// swift-tools-version: 5.9\nimport PackageDescription\n\nlet package = Package(\n    name: \"examples\",\n    \
         platforms: [.macOS(.v13)],\n    dependencies: [.package(path: \"{}\")],\n    targets: [\n{targets}    ]\n)\n",
        project.path(PACKAGE).display()
    );
    std::fs::write(fresh.join("Package.swift"), manifest).during("Package.swift")
}

/// A program of examples/swift, compiled as a user does, as it ships.
pub(crate) fn example(project: &Project, name: &str) -> Outcome<Command> {
    let toolchain = toolchain(project)?;
    user(project)?;
    let mut build = toolchain.swift(project, "build", USER, "examples")?;
    run(build.args(["-c", "release"]))?;
    toolchain.command(project, scratch(project)?.join("examples/release").join(name))
}

/// The same files where a program of the toolchain sees them.
pub(crate) fn seen(project: &Project, files: &[PathBuf]) -> Outcome<Vec<PathBuf>> {
    if let Toolchain::System = toolchain(project)? {
        return Ok(files.to_vec());
    }
    let folder = fresh_folder(project, "target/package/swift-data")?;
    let give = |file: &PathBuf| {
        let here = folder.join(file.file_name().unwrap_or_default());
        std::fs::hard_link(file, &here)
            .or_else(|_| std::fs::copy(file, &here).map(drop))
            .during(here.display())?;
        Ok(here)
    };
    files.iter().map(give).collect()
}

fn check(project: &Project) -> Outcome {
    let toolchain = toolchain(project)?;
    let server = Server::start(project)?;
    let mut note = String::new();
    for (endpoint, more) in [(server.endpoint("tcp"), None), (ECHO.to_owned(), Some("--skip-build"))] {
        let mut tests = toolchain.swift(project, "test", PACKAGE, "package")?;
        run_and_read(tests.args(more).env("VALKYRIE_TEST_ENDPOINT", &endpoint), |line| {
            // Of each class, then of all.
            if let Some((count, rest)) =
                line.trim().strip_prefix("Executed ").and_then(|line| line.split_once(" tests"))
                && rest.contains(" 0 failures")
            {
                note = format!("{count} tests, with a server and with the one inside the library");
            }
        })?;
    }
    if note.is_empty() { failed("no test ran") } else { Ok(note) }
}
