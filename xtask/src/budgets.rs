//! The budgets of what ships, `tests/budgets.json`: bytes and counts are asserted, times only printed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::kotlin;
use crate::package::{DIST, FRESH, fresh_folder, read_json};
use crate::step::{During, Outcome, Project, Steps, failed, output, run};

const BUDGETS: &str = "tests/budgets.json";

/// Adds the step that weighs the packages. Those of an earlier run count where nothing builds them.
pub(crate) fn add<'a>(steps: &mut Steps<'a>, project: &'a Project) {
    let needs = &["package: python", "package: node", "package: c", "package: kotlin"];
    steps.add(
        "budgets",
        "sizes of the packages, no thread and no socket at import, no path that two packages own",
        needs,
        || check(project),
    );
}

/// One number of the budget file.
pub(crate) fn budget(project: &Project, name: &str) -> Outcome<u64> {
    match read_json(&project.path(BUDGETS))?[name].as_u64() {
        Some(number) => Ok(number),
        None => failed(format!("{BUDGETS} has no number {name}")),
    }
}

/// Fails when there is more of something than its budget; gives `<amount> of <budget>`.
pub(crate) fn within(project: &Project, name: &str, what: &str, amount: u64) -> Outcome {
    let budget = budget(project, name)?;
    if amount > budget {
        return failed(format!("{what}: {amount}, and {name} in {BUDGETS} is {budget}"));
    }
    Ok(format!("{amount} of {budget}"))
}

fn check(project: &Project) -> Outcome {
    let artefacts = artefacts(project)?;
    let mut weighed = 0;
    let mut weigh = |name: &str, what: &str, bytes: u64| -> Outcome<()> {
        println!("   {what}: {} bytes", within(project, name, what, bytes)?);
        weighed += 1;
        Ok(())
    };
    for path in &artefacts {
        let name = file_name(path);
        if name.ends_with(".whl") {
            weigh("wheel_bytes", &name, size(path)?)?;
        } else if name.contains("-sdk-linux-") {
            weigh("npm_platform_package_bytes", &name, size(path)?)?;
        } else if name.ends_with(".jar") {
            weigh("jar_bytes", &name, size(path)?)?;
        }
    }
    let fresh = project.path(FRESH);
    let stripped = fresh_folder(project, "target/package/stripped")?;
    for library in natives(project)? {
        let bare = stripped.join(file_name(&library));
        run(project.command("strip").arg("-o").arg(&bare).arg(&library))?;
        weigh("native_library_stripped_bytes", &format!("{}, stripped", file_name(&library)), size(&bare)?)?;
    }
    if weighed != 7 {
        return failed(format!(
            "{weighed} things were weighed, and there are 7: a wheel, a tarball, a jar, 4 libraries"
        ));
    }

    let goal = budget(project, "import_goal_ms")?;
    let mut times = Vec::new();
    for language in ["python", "node", "c"] {
        let import = import(project, &fresh, language)?;
        within(project, "import_threads", &format!("import in {language}: threads started"), import.threads)?;
        within(project, "import_sockets", &format!("import in {language}: sockets opened"), import.sockets)?;
        println!(
            "   import in {language}: {:.1} ms (goal: {goal}), no thread, no socket",
            import.milliseconds
        );
        times.push(format!("{language} {:.1}", import.milliseconds));
    }

    let mut owned = Vec::new();
    for path in &artefacts {
        owned.push((file_name(path), installed_paths(project, path)?));
    }
    if let Some(shared) = shared_path(&owned) {
        return failed(shared);
    }
    let files: usize = owned.iter().map(|(_, paths)| paths.len()).sum();
    Ok(format!("{weighed} sizes, import ms: {}, {files} paths of {} packages", times.join(", "), owned.len()))
}

/// The packages of this version in `dist/`; the lists of crates that lie there are of programs, which nothing installs.
fn artefacts(project: &Project) -> Outcome<Vec<PathBuf>> {
    let dist = project.path(DIST);
    let version = format!("-{}", project.version());
    let mut found: Vec<PathBuf> =
        std::fs::read_dir(&dist).during(DIST)?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    found.retain(|path| file_name(path).contains(&version) && !file_name(path).ends_with(".cdx.json"));
    found.sort();
    Ok(found)
}

/// The native part of each installed package.
fn natives(project: &Project) -> Outcome<Vec<PathBuf>> {
    let fresh = project.path(FRESH);
    let mut python = project.command(fresh.join("python/bin/python"));
    let python = output(python.args(["-P", "-c", "import valkyrie._native as n; print(n.__file__)"]))?;
    Ok(vec![
        PathBuf::from(python.trim()),
        fresh.join("node/node_modules/valkyrie-sdk-linux-x64-gnu/valkyrie.node"),
        fresh.join("c/lib/libvalkyrie.so.0"),
        project.path(kotlin::LIBRARY),
    ])
}

/// What importing a package does to a process.
struct Import {
    threads: u64,
    sockets: u64,
    milliseconds: f64,
}

/// Imports a package in fresh processes: the counts of all of them, the time of the quickest.
fn import(project: &Project, fresh: &Path, language: &str) -> Outcome<Import> {
    // What there is after the import less what there was before; what the timer itself imports comes first.
    const PYTHON: &str = "import os, sys, time
def sockets():
    held = 0
    for fd in os.listdir('/proc/self/fd'):
        try: held += os.readlink('/proc/self/fd/' + fd).startswith('socket:')
        except OSError: pass
    return held
threads = lambda: len(os.listdir('/proc/self/task'))
if sys.argv[1:]: import ctypes
before = threads(), sockets()
began = time.perf_counter()
if sys.argv[1:]: ctypes.CDLL(sys.argv[1])
else: import valkyrie
spent = time.perf_counter() - began
print(threads() - before[0], sockets() - before[1], spent * 1e3)";
    const NODE: &str = "const { readdirSync, readlinkSync } = require('node:fs');
const sockets = () => readdirSync('/proc/self/fd').filter((fd) => {
  try { return readlinkSync('/proc/self/fd/' + fd).startsWith('socket:'); } catch { return false; }
}).length;
const threads = () => readdirSync('/proc/self/task').length;
const before = [threads(), sockets()];
const began = performance.now();
require('valkyrie-sdk');
const spent = performance.now() - began;
console.log(threads() - before[0], sockets() - before[1], spent);";
    let mut all = Import { threads: 0, sockets: 0, milliseconds: f64::INFINITY };
    for _ in 0..5 {
        let mut command = match language {
            "node" => {
                let mut node = project.command("node");
                node.current_dir(fresh.join("node")).args(["-e", NODE]);
                node
            }
            language => {
                let mut python = project.command(fresh.join("python/bin/python"));
                python.args(["-P", "-c", PYTHON]);
                if language == "c" {
                    python.arg(fresh.join("c/lib/libvalkyrie.so.0"));
                }
                python
            }
        };
        let said = output(&mut command)?;
        let mut words = said.split_whitespace();
        let mut word = || words.next().and_then(|word| word.parse::<f64>().ok());
        let (Some(threads), Some(sockets), Some(milliseconds)) = (word(), word(), word()) else {
            return failed(format!("the import in {language} said {said:?}"));
        };
        all.threads = all.threads.max(threads as u64);
        all.sockets = all.sockets.max(sockets as u64);
        all.milliseconds = all.milliseconds.min(milliseconds);
    }
    Ok(all)
}

/// The files that a package brings, where its installer puts them: site-packages, node_modules or a prefix.
fn installed_paths(project: &Project, artefact: &Path) -> Outcome<Vec<String>> {
    let name = file_name(artefact);
    let (list, strip, prefix) = if name.ends_with(".whl") || name.ends_with(".jar") {
        let script = "import sys, zipfile; print(*zipfile.ZipFile(sys.argv[1]).namelist(), sep='\\n')";
        let place = if name.ends_with(".jar") { "class-path/" } else { "site-packages/" };
        (output(project.command("python3").args(["-c", script]).arg(artefact))?, "", place.to_owned())
    } else if name.ends_with(".tgz") {
        let mut manifest = project.command("tar");
        let manifest = output(manifest.arg("-xOzf").arg(artefact).arg("package/package.json"))?;
        let manifest: Value = serde_json::from_str(&manifest).during(&name)?;
        let package = manifest["name"].as_str().unwrap_or_default();
        (
            output(project.command("tar").arg("-tzf").arg(artefact))?,
            "package/",
            format!("node_modules/{package}/"),
        )
    } else if name.ends_with(".tar.gz") {
        (output(project.command("tar").arg("-tzf").arg(artefact))?, "./", "prefix/".to_owned())
    } else {
        return failed(format!("nothing says where {name} is installed"));
    };
    let files = list.lines().filter(|line| !line.ends_with('/'));
    Ok(files.map(|file| format!("{prefix}{}", file.strip_prefix(strip).unwrap_or(file))).collect())
}

/// The first path that two packages bring, as a sentence: whichever is removed breaks the other.
fn shared_path(owned: &[(String, Vec<String>)]) -> Option<String> {
    let mut owners: BTreeMap<&str, &str> = BTreeMap::new();
    for (package, paths) in owned {
        for path in paths {
            if let Some(other) = owners.insert(path, package).filter(|other| other != package) {
                return Some(format!("{path} is in {other} and in {package}"));
            }
        }
    }
    None
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn size(path: &Path) -> Outcome<u64> {
    Ok(std::fs::metadata(path).during(path.display())?.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_two_packages_own_is_found() {
        let owned = |paths: &[(&str, &[&str])]| -> Vec<(String, Vec<String>)> {
            let strings = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect();
            paths.iter().map(|(name, paths)| ((*name).to_owned(), strings(paths))).collect()
        };
        assert_eq!(shared_path(&owned(&[("one", &["a", "b"]), ("two", &["c"])])), None);
        let shared = shared_path(&owned(&[("one", &["a", "b"]), ("two", &["c", "b"])]));
        assert_eq!(shared.as_deref(), Some("b is in one and in two"));
    }
}
