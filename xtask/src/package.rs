//! The packages as users install them: built into `dist/`, each then installed into a fresh place under
//! `target/fresh/`, where the tests, the matrix and the demo find it.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::kotlin;
use crate::sbom::{self, Sbom};
use crate::setup::VENV;
use crate::step::{During, Outcome, Project, Steps, Stop, failed, output, run};
use crate::{standalone, swift, web};

/// Where each package is installed: `rust/bin`, `python` (a virtual environment), `node`, `web` and `c` (a prefix).
pub(crate) const FRESH: &str = "target/fresh";
/// Where the packages lie that are published.
pub(crate) const DIST: &str = "dist";
/// What is laid out before it is packed.
const STAGE: &str = "target/package";

/// The C header that is committed.
pub(crate) const C_HEADER: &str = "c/include/valkyrie/valkyrie.h";

/// How what ships is compiled.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Profile {
    /// Thin LTO: what every check uses, so that the core is compiled once.
    Release,
    /// Fat LTO and no symbols: what is published.
    Dist,
}

impl Profile {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Profile::Release => "release",
            Profile::Dist => "dist",
        }
    }
}

/// What cargo compiles for the packages, and in which calls: features are united over a call, so that programs which listen
/// to signals would give each library's runtime a pair of sockets. The libraries share theirs with the wheel, which
/// maturin builds in a call of its own.
const COMPILED: [[&str; 2]; 2] = [["valkyrie-server", "valkyrie-tools"], ["valkyrie-node", "valkyrie-c"]];

/// Adds the steps that build and install every package.
pub(crate) fn add<'a>(steps: &mut Steps<'a>, project: &'a Project, profile: Profile) {
    steps.add("package: compile", "programs and native parts, as users get them", &[], move || {
        for packages in COMPILED {
            let mut build = project.cargo(["build", "--quiet", "--locked", "--profile", profile.name()]);
            run(build.args(packages.iter().flat_map(|package| ["-p", package])))?;
        }
        Ok(String::new())
    });
    steps.add(
        "package: rust",
        "valkyrie-server and valkyrie, into a folder of programs",
        &["package: compile"],
        move || rust(project, profile),
    );
    standalone::add(steps, project, profile);
    steps.add(
        "package: python",
        "the wheel, into a fresh virtual environment",
        &["setup: python tools"],
        move || python(project, profile),
    );
    let needs = &["setup: programs", "package: compile"];
    steps.add("package: node", "the npm tarballs, into a fresh project", needs, move || {
        node(project, profile)
    });
    steps.add(
        "package: c",
        "header, libraries, pkg-config and CMake files, into a prefix",
        needs,
        move || c(project, profile),
    );
    swift::add_package(steps, project);
    kotlin::add_package(steps, project, profile);
    if web::exists(project) {
        let needs = &["setup: npm tools", "setup: wasm toolchain"];
        steps.add(
            "package: web",
            "the wasm module and its tarball, into a fresh project",
            needs,
            move || web::package(project),
        );
    }
}

fn rust(project: &Project, profile: Profile) -> Outcome {
    for program in ["valkyrie-server", "valkyrie"] {
        let built = project.path("target").join(profile.name()).join(program);
        replace(&built, &installed_program(project, program))?;
        manual(project, program)?;
    }
    for (package, program) in COMPILED[0].into_iter().zip(["valkyrie-server", "valkyrie"]) {
        let sbom = Sbom::of(project, &COMPILED[0], &[], package, sbom::LINUX)?;
        sbom.names_what_is_in(&installed_program(project, program))?;
        let name = format!("{DIST}/{program}-{}-linux-x64.cdx.json", project.version());
        sbom.write(&project.path(&name))?;
    }
    sizes(&[installed_program(project, "valkyrie-server"), installed_program(project, "valkyrie")])
}

/// Manual pages and completion scripts beside a program, where man and the shells look for them.
fn manual(project: &Project, program: &str) -> Outcome<()> {
    let share = project.path(FRESH).join("rust/share");
    let installed = installed_program(project, program);
    run(project.command(&installed).args(["man", "--dir"]).arg(share.join("man/man1")))?;
    for (shell, path) in [
        ("bash", format!("bash-completion/completions/{program}")),
        ("zsh", format!("zsh/site-functions/_{program}")),
        ("fish", format!("fish/vendor_completions.d/{program}.fish")),
    ] {
        let path = share.join(path);
        let folder = path.parent().unwrap_or(&share);
        std::fs::create_dir_all(folder).during(folder.display())?;
        let script = output(project.command(&installed).args(["completions", shell]))?;
        std::fs::write(&path, script).during(path.display())?;
    }
    Ok(())
}

/// Copies over a program that may be running: the old file goes first, so that its process keeps it.
fn replace(from: &Path, to: &Path) -> Outcome<()> {
    if to.exists() {
        std::fs::remove_file(to).during(to.display())?;
    }
    copy(from, to)
}

/// A program of the Rust packages where it was installed.
pub(crate) fn installed_program(project: &Project, name: &str) -> PathBuf {
    project.path(FRESH).join("rust/bin").join(name)
}

fn python(project: &Project, profile: Profile) -> Outcome {
    let maturin = project.path(VENV).join("bin/maturin");
    let wheels = fresh_folder(project, "target/package/python")?;
    let sbom = Sbom::of(project, &["valkyrie-python"], &[], "valkyrie-python", sbom::LINUX)?;
    let listed = wheels.join("valkyrie-python.cdx.json");
    sbom.write(&listed)?;
    let mut build = project.command(maturin);
    build.current_dir(project.path("python")).args(["build", "--quiet", "--locked", "--strip", "--profile"]);
    build.args([profile.name(), "--interpreter", "python3", "--sbom-include"]).arg(&listed);
    run(build.arg("--out").arg(&wheels))?;
    let wheel = only_file(&wheels, ".whl")?;
    let fresh = project.path(FRESH).join("python");
    run(project.command("python3").args(["-m", "venv", "--clear"]).arg(&fresh))?;
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"];
    run(project.command(fresh.join("bin/python")).args(pip).arg(&wheel))?;
    sbom.names_what_is_in(&python_library(&fresh)?)?;
    sizes(&[to_dist(project, &wheel)?])
}

/// The native part of the wheel in a virtual environment.
fn python_library(fresh: &Path) -> Outcome<PathBuf> {
    let lib = fresh.join("lib");
    let versions =
        std::fs::read_dir(&lib).during(lib.display())?.filter_map(|entry| Some(entry.ok()?.path()));
    let mut found = versions.map(|version| version.join("site-packages/valkyrie/_native.abi3.so"));
    found.find(|path| path.is_file()).map_or_else(|| failed("the wheel has no native part"), Ok)
}

fn node(project: &Project, profile: Profile) -> Outcome {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        return Err(Stop::Skipped("the only native part that is built so far is linux-x64-gnu".into()));
    }
    for manifest in project.files(&["node/package.json", "node/npm/*/package.json"])? {
        has_our_version(project, project.path(&manifest).parent().unwrap_or(Path::new("")))?;
    }
    let dist = project.path(DIST);
    std::fs::create_dir_all(&dist).during(DIST)?;
    let library = node_library(project, profile);
    let sbom = Sbom::of(project, &COMPILED[1], &[], "valkyrie-node", sbom::LINUX)?;
    sbom.names_what_is_in(&library)?;
    let listed = project.path(STAGE).join("valkyrie-node.cdx.json");
    sbom.write(&listed)?;
    let mut pack = project.command("node");
    let packed = output(pack.arg("node/pack.mjs").args([&library, &dist, &listed]))?;
    let tarballs: Vec<PathBuf> = packed.lines().map(PathBuf::from).collect();
    npm_install(project, "node", &tarballs)?;
    sizes(&tarballs)
}

/// The native part of the Node package as cargo leaves it.
pub(crate) fn node_library(project: &Project, profile: Profile) -> PathBuf {
    project.path("target").join(profile.name()).join("libvalkyrie_node.so")
}

fn c(project: &Project, profile: Profile) -> Outcome {
    let scratch = "target/package/valkyrie.h";
    std::fs::create_dir_all(project.path(STAGE)).during(STAGE)?;
    write_c_header(project, scratch)?;
    if std::fs::read(project.path(C_HEADER)).ok() != std::fs::read(project.path(scratch)).ok() {
        return failed(format!("{C_HEADER} is not what bindings/c gives: run `cargo xtask header`"));
    }
    let built = project.path("target").join(profile.name());
    let prefix = fresh_folder(project, "target/fresh/c")?;
    copy_folder(&project.path("c/include"), &prefix.join("include"))?;
    // As cargo-c lays it out: the library by its whole version, and links by which programs and linkers find it.
    let library = format!("libvalkyrie.so.{}", project.version());
    copy(&built.join("libvalkyrie.so"), &prefix.join("lib").join(&library))?;
    for link in ["libvalkyrie.so.0", "libvalkyrie.so"] {
        std::os::unix::fs::symlink(&library, prefix.join("lib").join(link)).during(link)?;
    }
    copy(&built.join("libvalkyrie.a"), &prefix.join("lib/libvalkyrie.a"))?;
    let sbom = Sbom::of(project, &COMPILED[1], &[], "valkyrie-c", sbom::LINUX)?;
    sbom.names_what_is_in(&prefix.join("lib/libvalkyrie.so.0"))?;
    sbom.write(&prefix.join("share/doc/valkyrie/sbom.cdx.json"))?;
    for template in project.files(&["c/*.in"])? {
        let name = Path::new(&template).file_stem().unwrap_or_default();
        let folder = if template.ends_with(".pc.in") { "lib/pkgconfig" } else { "lib/cmake/valkyrie" };
        let text = std::fs::read_to_string(project.path(&template)).during(&template)?;
        std::fs::create_dir_all(prefix.join(folder)).during(folder)?;
        let text = text.replace("@VERSION@", project.version());
        std::fs::write(prefix.join(folder).join(name), text).during(&template)?;
    }
    let tarball = project.path(DIST).join(format!("valkyrie-c-{}-linux-x64.tar.gz", project.version()));
    std::fs::create_dir_all(project.path(DIST)).during(DIST)?;
    run(project.command("tar").arg("-czf").arg(&tarball).arg("-C").arg(&prefix).arg("."))?;
    sizes(&[prefix.join("lib/libvalkyrie.so.0"), tarball])
}

/// Writes the C header of bindings/c to a path inside the checkout.
pub(crate) fn write_c_header(project: &Project, output: &str) -> Outcome {
    let arguments = ["--config", "bindings/c/cbindgen.toml", "--crate", "bindings/c", "--output", output];
    run(project.cargo(["run", "--quiet", "-p", "valkyrie-c-header", "--"]).args(arguments))?;
    Ok(output.to_owned())
}

/// Packs a folder as npm would publish it, and gives the tarball in `dist/`.
pub(crate) fn npm_pack(project: &Project, folder: &Path) -> Outcome<PathBuf> {
    has_our_version(project, folder)?;
    let dist = project.path(DIST);
    std::fs::create_dir_all(&dist).during(DIST)?;
    let mut pack = project.command("npm");
    pack.current_dir(folder).args(["pack", "--silent", "--pack-destination"]).arg(&dist);
    Ok(dist.join(output(&mut pack)?.trim()))
}

/// Every package carries one version, that of the workspace.
fn has_our_version(project: &Project, folder: &Path) -> Outcome<()> {
    let package = read_json(&folder.join("package.json"))?;
    let (name, version, ours) = (&package["name"], &package["version"], project.version());
    if version == ours {
        Ok(())
    } else {
        failed(format!("{name} has version {version}, and the workspace has {ours}"))
    }
}

/// Installs tarballs into a fresh project `target/fresh/<name>`, without a package server.
pub(crate) fn npm_install(project: &Project, name: &str, tarballs: &[PathBuf]) -> Outcome<PathBuf> {
    let fresh = fresh_folder(project, &format!("{FRESH}/{name}"))?;
    std::fs::write(fresh.join("package.json"), "{ \"private\": true }\n").during("package.json")?;
    let mut install = project.command("npm");
    run(install.current_dir(&fresh).args(["install", "--silent", "--offline", "--no-audit"]).args(tarballs))?;
    Ok(fresh)
}

/// Copies a file into `dist/` and gives its new path.
fn to_dist(project: &Project, file: &Path) -> Outcome<PathBuf> {
    let copied = project.path(DIST).join(file.file_name().unwrap_or_default());
    copy(file, &copied)?;
    Ok(copied)
}

/// An empty folder of this name inside the checkout; what was there is gone.
pub(crate) fn fresh_folder(project: &Project, name: &str) -> Outcome<PathBuf> {
    let folder = project.path(name);
    if folder.exists() {
        std::fs::remove_dir_all(&folder).during(name)?;
    }
    std::fs::create_dir_all(&folder).during(name)?;
    Ok(folder)
}

/// Copies one file and makes the folders above it.
pub(crate) fn copy(from: &Path, to: &Path) -> Outcome<()> {
    if let Some(folder) = to.parent() {
        std::fs::create_dir_all(folder).during(folder.display())?;
    }
    std::fs::copy(from, to).during(format!("copying {}", from.display()))?;
    Ok(())
}

/// Copies a folder and all below it, except installed modules.
pub(crate) fn copy_folder(from: &Path, to: &Path) -> Outcome<()> {
    std::fs::create_dir_all(to).during(to.display())?;
    for entry in std::fs::read_dir(from).during(from.display())? {
        let path = entry.during(from.display())?.path();
        let name = path.file_name().unwrap_or_default();
        if path.is_file() {
            copy(&path, &to.join(name))?;
        } else if name != "node_modules" {
            copy_folder(&path, &to.join(name))?;
        }
    }
    Ok(())
}

/// A file of JSON.
pub(crate) fn read_json(path: &Path) -> Outcome<Value> {
    let text = std::fs::read_to_string(path).during(path.display())?;
    serde_json::from_str(&text).during(path.display())
}

/// The one file of a folder whose name ends so.
pub(crate) fn only_file(folder: &Path, ending: &str) -> Outcome<PathBuf> {
    let files =
        std::fs::read_dir(folder).during(folder.display())?.filter_map(|entry| Some(entry.ok()?.path()));
    let found: Vec<PathBuf> = files.filter(|path| path.to_string_lossy().ends_with(ending)).collect();
    match found.as_slice() {
        [one] => Ok(one.clone()),
        found => failed(format!("expected one *{ending} in {}, found {}", folder.display(), found.len())),
    }
}

/// "name 1.2 MB, other 0.3 MB", for the summary.
fn sizes(files: &[PathBuf]) -> Outcome {
    let size = |file: &PathBuf| {
        let bytes = std::fs::metadata(file).during(file.display())?.len();
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        Ok(format!("{name} {:.2} MB", bytes as f64 / 1e6))
    };
    Ok(files.iter().map(size).collect::<Outcome<Vec<String>>>()?.join(", "))
}
