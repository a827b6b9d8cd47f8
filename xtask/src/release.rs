//! What a release is: which packages there are, with which versions, each built and installed from itself alone; and how they
//! go to the registries.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::check::c_program;
use crate::conformance::ECHO;
use crate::package::{DIST, FRESH, Profile, copy, fresh_folder, only_file, read_json};
use crate::setup::VENV;
use crate::step::{During, Outcome, Project, Steps, cargo_home, failed, output, run};

const BUDGETS: &str = "tests/budgets.json";
/// Where crates are packed and built from their packages.
const APART: &str = "target/package/apart";

/// Adds what is to be had from the packages in `dist/` and from each crate alone.
pub(crate) fn add<'a>(steps: &mut Steps<'a>, project: &'a Project, profile: Profile) {
    steps.add(
        "package: crates",
        "each crate that is published builds from its own package alone",
        &[],
        || crates(project),
    );
    if profile == Profile::Dist {
        let needs = &["setup: python tools"];
        steps.add(
            "package: sdist",
            "Python's sources, and a wheel of them in a fresh environment",
            needs,
            || sdist(project),
        );
    }
    steps.add(
        "package: c alone",
        "a program against the tarball, where it was unpacked",
        &["package: c"],
        || c_alone(project),
    );
}

/// Adds the checksums of what lies in `dist/`, once all of it does.
pub(crate) fn add_sums<'a>(steps: &mut Steps<'a>, project: &'a Project) {
    steps.add("package: sums", "SHA-256 of every package, in dist/SHA256SUMS", &[], || sums(project));
}

/// The crates that are published, and their versions.
fn published(project: &Project) -> Outcome<Vec<(String, String)>> {
    let metadata = ["metadata", "--format-version", "1", "--no-deps", "--locked", "--offline"];
    let metadata: Value =
        serde_json::from_str(&output(&mut project.cargo(metadata))?).during("cargo metadata")?;
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let ours = packages.filter(|package| package["publish"].as_array().is_none_or(|to| !to.is_empty()));
    let text = |package: &Value, key: &str| package[key].as_str().unwrap_or_default().to_owned();
    Ok(ours.map(|package| (text(package, "name"), text(package, "version"))).collect())
}

/// Every package has a version of its own, and the budget file says which: one that changes does so there, too.
pub(crate) fn versions(project: &Project) -> Outcome {
    let mut found: BTreeMap<String, String> = published(project)?.into_iter().collect();
    for manifest in project.files(&["node/package.json", "node/npm/*/package.json", "wasm/package.json"])? {
        let package = read_json(&project.path(&manifest))?;
        let text = |key: &str| package[key].as_str().unwrap_or_default().to_owned();
        found.insert(format!("npm {}", text("name")), text("version"));
    }
    for (package, manifest) in
        [("c valkyrie", "bindings/c/Cargo.toml"), ("pypi valkyrie-sdk", "bindings/python/Cargo.toml")]
    {
        let id = output(project.cargo(["pkgid", "--offline", "--manifest-path", manifest]).arg("--quiet"))?;
        let version = id.trim().rsplit(['#', '@']).next().unwrap_or_default();
        found.insert(package.into(), version.into());
    }
    let pom =
        std::fs::read_to_string(project.path("bindings/kotlin/pom.xml")).during("bindings/kotlin/pom.xml")?;
    let version =
        pom.lines().find_map(|line| line.trim().strip_prefix("<version>")?.strip_suffix("</version>"));
    found.insert("maven dev.valkyrie:valkyrie".into(), version.unwrap_or_default().into());

    let budgets = read_json(&project.path(BUDGETS))?;
    let stated: BTreeMap<String, String> =
        serde_json::from_value(budgets["versions"].clone()).during(BUDGETS)?;
    for (package, version) in &found {
        match stated.get(package) {
            Some(stated) if stated == version => {}
            stated => {
                return failed(format!("{package} has version {version}, and {BUDGETS} says {stated:?}"));
            }
        }
    }
    match stated.keys().find(|package| !found.contains_key(*package)) {
        Some(gone) => failed(format!("{BUDGETS} says a version of {gone}, which is no package")),
        None => Ok(format!("{} packages", found.len())),
    }
}

/// Packs every crate that is published, and builds each from its package, with those of ours that it depends on from theirs.
fn crates(project: &Project) -> Outcome {
    let published = published(project)?;
    // Whatever the lock file names is here then, and a registry is asked for nothing of ours.
    run(&mut project.cargo(["fetch", "--quiet", "--locked"]))?;
    let mut package = apart(project, &["package", "--quiet", "--locked", "--offline", "--allow-dirty"])?;
    run(package.args(published.iter().flat_map(|(name, _)| ["-p", name])))?;
    // Everything was compiled anew; what was packed is in it, too.
    fresh_folder(project, APART)?;
    Ok(published.iter().map(|(name, version)| format!("{name} {version}")).collect::<Vec<_>>().join(", "))
}

/// cargo with folders of its own for what it compiles and unpacks: it takes a package of a registry for one that never changes, ours
/// too, which are others each time under the same version. What it got from the network it shares.
fn apart(project: &Project, arguments: &[&str]) -> Outcome<Command> {
    let folder = fresh_folder(project, APART)?;
    let (home, shared) = (folder.join("home"), cargo_home()?);
    std::fs::create_dir_all(home.join("registry")).during(home.display())?;
    for name in ["config.toml", "credentials.toml", "registry/cache", "registry/index"] {
        let there = shared.join(name);
        if there.exists() {
            std::os::unix::fs::symlink(&there, home.join(name)).during(there.display())?;
        }
    }
    let mut cargo = project.cargo(arguments.iter().copied());
    cargo.env("CARGO_HOME", home).arg("--target-dir").arg(folder.join("target"));
    Ok(cargo)
}

/// Packs Python's sources, builds a wheel of them away from the checkout, and imports it.
fn sdist(project: &Project) -> Outcome {
    let folder = fresh_folder(project, "target/package/sdist")?;
    let mut pack = project.command(format!("{VENV}/bin/maturin"));
    run(pack.current_dir(project.path("python")).args(["sdist", "--out"]).arg(&folder))?;
    let sources = only_file(&folder, ".tar.gz")?;
    let fresh = project.path(FRESH).join("sdist");
    run(project.command("python3").args(["-m", "venv", "--clear"]).arg(&fresh))?;
    // maturin is the tools'; what it compiles is in the package, and what that depends on is cargo's to get.
    let wheel = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"];
    let mut build = project.command(format!("{VENV}/bin/python"));
    let tools = project.path(VENV).join("bin");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(tools).chain(std::env::split_paths(&path));
    build.env("PATH", std::env::join_paths(folders).during("PATH")?);
    // Files of a package are old, so that cargo would take what was compiled from the checkout for them.
    build.env_remove("CARGO_TARGET_DIR");
    run(build.current_dir(&folder).args(wheel).arg(&folder).arg(&sources))?;
    let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"];
    run(project.command(fresh.join("bin/python")).args(install).arg(only_file(&folder, ".whl")?))?;
    let import = ["-P", "-c", "import valkyrie; print(valkyrie.version())"];
    let version = output(project.command(fresh.join("bin/python")).args(import))?;
    copy(&sources, &project.path(DIST).join(sources.file_name().unwrap_or_default()))?;
    Ok(format!("{} gives {}", sources.file_name().unwrap_or_default().to_string_lossy(), version.trim()))
}

/// Unpacks the tarball elsewhere, and runs a program that pkg-config there says how to compile.
fn c_alone(project: &Project) -> Outcome {
    let tarball =
        only_file(&project.path(DIST), &format!("valkyrie-c-{}-linux-x64.tar.gz", project.version()))?;
    let prefix = fresh_folder(project, "target/fresh/c-tarball")?;
    run(project.command("tar").arg("-xzf").arg(&tarball).arg("-C").arg(&prefix))?;
    let program = project.path("target/package/c-alone");
    run(&mut c_program(project, &prefix, "gcc", "-std=c99", &project.path("examples/c/hello.c"), &program)?)?;
    let said = output(project.command(&program).arg(ECHO))?;
    if !said.contains("Hello, World!") {
        return failed(format!("hello.c printed {said:?}"));
    }
    let named = std::fs::read_link(prefix.join("lib/libvalkyrie.so.0")).during("lib/libvalkyrie.so.0")?;
    Ok(format!("libvalkyrie.so.0 is {}", named.display()))
}

fn sums(project: &Project) -> Outcome {
    let dist = project.path(DIST);
    let mut names = packages(project, "")?;
    names.retain(|name| name != "SHA256SUMS");
    let sums = output(project.command("sha256sum").current_dir(&dist).arg("--").args(&names))?;
    std::fs::write(dist.join("SHA256SUMS"), sums).during("SHA256SUMS")?;
    Ok(format!("{} files", names.len()))
}

/// The names in `dist/` that end so, in order.
fn packages(project: &Project, ending: &str) -> Outcome<Vec<String>> {
    let entries = std::fs::read_dir(project.path(DIST)).during(DIST)?;
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.retain(|name| name.ends_with(ending));
    names.sort();
    Ok(names)
}

/// Hands the packages of one kind to their registry; with `--try` all but that.
pub(crate) fn publish(project: &Project, registry: &str, try_only: bool) -> Outcome {
    let version = project.version();
    let dry = try_only.then_some("--dry-run");
    match registry {
        "crates" => {
            let published = published(project)?;
            let names = published.iter().flat_map(|(name, _)| ["-p", name]);
            // cargo brings them into order, and waits for each until the next can be built from it.
            run(apart(project, &["publish", "--locked"])?.args(names).args(dry))?;
            Ok(format!("{} crates", published.len()))
        }
        "npm" => {
            let mut names = packages(project, &format!("-{version}.tgz"))?;
            // What names the others comes after them.
            names.sort_by_key(|name| !is_platform(name));
            for name in &names {
                let mut publish = project.command("npm");
                publish.args(["publish", "--access", "public"]).args(dry);
                run(publish.args((!try_only).then_some("--provenance")).arg(project.path(DIST).join(name)))?;
            }
            if names.is_empty() {
                failed("there is no tarball of npm's in dist/")
            } else {
                Ok(names.join(", "))
            }
        }
        "pypi" => {
            let folder = fresh_folder(project, "target/publish/pypi")?;
            let files: Vec<PathBuf> = packages(project, "")?
                .into_iter()
                .filter(|name| name.starts_with(&format!("valkyrie_sdk-{version}")))
                .map(|name| Path::new(&project.path(DIST)).join(name))
                .collect();
            for file in &files {
                copy(file, &folder.join(file.file_name().unwrap_or_default()))?;
            }
            if files.len() < 2 {
                return failed(format!("dist/ has {} of the wheel and the sdist of {version}", files.len()));
            }
            Ok(format!(
                "{} files in {}, for whoever holds the right to upload them",
                files.len(),
                folder.display()
            ))
        }
        other => failed(format!("{other:?} is not one of crates, npm and pypi")),
    }
}

/// Whether a tarball of npm's is the native part for one platform.
fn is_platform(name: &str) -> bool {
    ["-linux-", "-darwin-", "-win32-"].iter().any(|platform| name.contains(platform))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_native_parts_are_published_before_what_names_them() {
        let mut names =
            ["valkyrie-sdk-0.1.0.tgz", "valkyrie-sdk-linux-x64-gnu-0.1.0.tgz", "valkyrie-sdk-web-0.1.0.tgz"];
        names.sort_by_key(|name| !is_platform(name));
        assert_eq!(names[0], "valkyrie-sdk-linux-x64-gnu-0.1.0.tgz");
    }
}
