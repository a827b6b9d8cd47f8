//! What an artifact is made of: a list of the crates that are linked into it, as CycloneDX 1.5 in JSON, which every package
//! carries. The same sources give the same bytes: no moment, no random number and no folder of this machine is in it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Value, json};
use toml::{Table, Value as Toml};

use crate::step::{During, Outcome, Project, failed, output};

/// The target of what is not for browsers.
pub(crate) const LINUX: &str = "x86_64-unknown-linux-gnu";

/// What stands before the folder of a crate in the paths that a panic names.
const REGISTRY_FOLDER: &[u8] = b"/index.crates.io-";

/// Crates of others that the standard library may bring, and their licences.
const OF_STD: [(&str, &str); 13] = [
    ("addr2line", "Apache-2.0 OR MIT"),
    ("adler2", "0BSD OR MIT OR Apache-2.0"),
    ("cfg-if", "MIT OR Apache-2.0"),
    ("dlmalloc", "MIT OR Apache-2.0"),
    ("getopts", "MIT OR Apache-2.0"),
    ("gimli", "MIT OR Apache-2.0"),
    ("hashbrown", "MIT OR Apache-2.0"),
    ("libc", "MIT OR Apache-2.0"),
    ("memchr", "Unlicense OR MIT"),
    ("miniz_oxide", "MIT OR Zlib OR Apache-2.0"),
    ("object", "Apache-2.0 OR MIT"),
    ("rustc-demangle", "MIT OR Apache-2.0"),
    ("rustc-literal-escaper", "Apache-2.0 OR MIT"),
];

/// The crates of one artifact.
pub(crate) struct Sbom {
    package: String,
    version: &'static str,
    /// Name and version; that of the package itself is not among them.
    crates: BTreeSet<(String, String)>,
    licences: BTreeMap<(String, String), String>,
    /// SHA-256 of what the registry has, from the lock file.
    hashes: BTreeMap<(String, String), String>,
}

impl Sbom {
    /// The crates of `package`, compiled for `target` in one call with `together`, as features are united over a call, and
    /// with these flags for features.
    pub(crate) fn of(
        project: &Project,
        together: &[&str],
        features: &[&str],
        package: &str,
        target: &str,
    ) -> Outcome<Sbom> {
        let mut tree =
            project.cargo(["tree", "--locked", "--no-dedupe", "--prefix", "depth", "--target", target]);
        // What runs while compiling is in no artifact.
        tree.args(["--edges", "normal,no-proc-macro"])
            .args(together.iter().flat_map(|package| ["-p", package]))
            .args(features);
        let (mut crates, mut inside) = (BTreeSet::new(), false);
        for line in output(&mut tree)?.lines() {
            let name = line.trim_start_matches(|c: char| c.is_ascii_digit());
            let mut words = name.split(' ');
            let (name, version) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            if line.starts_with('0') {
                inside = name == package;
            } else if inside {
                crates.insert((name.to_owned(), version.trim_start_matches('v').to_owned()));
            }
        }
        if crates.is_empty() {
            return failed(format!("cargo tree names nothing below {package}"));
        }
        let metadata = ["metadata", "--format-version", "1", "--all-features", "--locked"];
        let metadata: Value =
            serde_json::from_str(&output(&mut project.cargo(metadata))?).during("cargo metadata")?;
        let mut licences = BTreeMap::new();
        for package in metadata["packages"].as_array().into_iter().flatten() {
            let text = |key: &str| package[key].as_str().unwrap_or_default().to_owned();
            // An old way to write OR.
            licences.insert((text("name"), text("version")), text("license").replace('/', " OR "));
        }
        let lock = std::fs::read_to_string(project.path("Cargo.lock")).during("Cargo.lock")?;
        let lock: Table = lock.parse().during("Cargo.lock")?;
        let mut hashes = BTreeMap::new();
        for package in lock.get("package").and_then(Toml::as_array).into_iter().flatten() {
            let text = |key: &str| package.get(key).and_then(Toml::as_str).map(str::to_owned);
            if let (Some(name), Some(version), Some(hash)) = (text("name"), text("version"), text("checksum"))
            {
                hashes.insert((name, version), hash);
            }
        }
        Ok(Sbom { package: package.to_owned(), version: project.version(), crates, licences, hashes })
    }

    /// Adds what the standard library itself brings into the artifact, which no lock file of ours names. Where std was built from
    /// its sources, panics name it by its folder.
    pub(crate) fn add_std(&mut self, artifact: &Path) -> Outcome<()> {
        let bytes = std::fs::read(artifact).during(artifact.display())?;
        for folder in crates_in(&bytes) {
            if let Some((name, version)) = folder.rsplit_once('-')
                && let Some((_, licence)) = OF_STD.iter().find(|(of_std, _)| *of_std == name)
            {
                let id = (name.to_owned(), version.to_owned());
                self.licences.insert(id.clone(), (*licence).to_owned());
                self.crates.insert(id);
            }
        }
        Ok(())
    }

    /// Writes it and makes the folders above it.
    pub(crate) fn write(&self, path: &Path) -> Outcome<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).during(folder.display())?;
        }
        std::fs::write(path, self.json()).during(path.display())
    }

    fn json(&self) -> String {
        let component = |name: &str, version: &str, own: bool| {
            let (purl, id) = (format!("pkg:cargo/{name}@{version}"), (name.to_owned(), version.to_owned()));
            let mut component = json!({
                "type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl,
                "licenses": [{ "expression": self.licences.get(&id) }],
            });
            if !own {
                component["scope"] = "required".into();
            }
            if let Some(hash) = self.hashes.get(&id) {
                component["hashes"] = json!([{ "alg": "SHA-256", "content": hash }]);
            }
            component
        };
        let crates = self.crates.iter().map(|(name, version)| component(name, version, false));
        let sbom = json!({
            "$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json",
            "bomFormat": "CycloneDX",
            "specVersion": "1.5",
            "version": 1,
            "metadata": { "component": component(&self.package, self.version, true) },
            "components": crates.collect::<Vec<_>>(),
        });
        format!("{sbom:#}\n")
    }

    /// Checks it against the artifact: each crate whose path a panic would name is in the list.
    pub(crate) fn names_what_is_in(&self, artifact: &Path) -> Outcome<()> {
        let bytes = std::fs::read(artifact).during(artifact.display())?;
        let named: BTreeSet<String> =
            self.crates.iter().map(|(name, version)| format!("{name}-{version}")).collect();
        let found = crates_in(&bytes);
        if found.is_empty() {
            return failed(format!(
                "{} names no crate, so that its list cannot be checked",
                artifact.display()
            ));
        }
        match found.difference(&named).next() {
            Some(missing) => {
                failed(format!("{} contains {missing}, which its list does not name", artifact.display()))
            }
            None => Ok(()),
        }
    }
}

/// The folders of crates, with their versions, that the paths in an artifact name.
fn crates_in(bytes: &[u8]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let starts =
        bytes.windows(REGISTRY_FOLDER.len()).enumerate().filter(|(_, window)| *window == REGISTRY_FOLDER);
    for (at, _) in starts {
        let path = &bytes[at + 1..bytes.len().min(at + 300)];
        // The folder of the index, the crate's, and what is in it.
        let mut folders = path.split(|byte| *byte == b'/').skip(1);
        if let (Some(name), Some(_)) = (folders.next(), folders.next())
            && let Ok(name) = std::str::from_utf8(name)
        {
            found.insert(name.to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Exactly what cargo links, asked in another way, the same bytes twice, and nothing of this machine.
    #[test]
    fn the_list_is_what_cargo_links() {
        let project = Project::find();
        const WASM: &str = "wasm32-unknown-unknown";
        let sealed: &[&str] = &["--features", "sealed"];
        for (package, target, features) in
            [("valkyrie-c", LINUX, &[][..]), ("valkyrie-wasm", WASM, &[]), ("valkyrie-wasm", WASM, sealed)]
        {
            let sbom = Sbom::of(&project, &[package], features, package, target).unwrap();
            let mut tree = project.cargo(["tree", "-p", package, "--target", target, "--prefix", "none"]);
            tree.args(["--edges", "normal,no-proc-macro", "--format", "{p}"]).args(features);
            let listed = output(&mut tree).unwrap();
            let listed: BTreeSet<(String, String)> = listed
                .lines()
                .skip(1)
                .map(|line| {
                    let mut words = line.split(' ');
                    (words.next().unwrap().into(), words.next().unwrap().trim_start_matches('v').into())
                })
                .collect();
            assert_eq!(sbom.crates, listed, "{package}");
            assert!(listed.contains(&("valkyrie-protocol".into(), project.version().into())));

            let text = sbom.json();
            assert_eq!(text, Sbom::of(&project, &[package], features, package, target).unwrap().json());
            assert!(!text.contains(&*project.root.to_string_lossy()), "{text}");
            let json: Value = serde_json::from_str(&text).unwrap();
            for component in json["components"].as_array().unwrap() {
                assert!(component["licenses"][0]["expression"].is_string(), "{component}");
                let ours = component["name"].as_str().unwrap().starts_with("valkyrie-");
                assert_eq!(component["hashes"].is_array(), !ours, "{component}");
            }
        }
    }

    /// Which of them a panic names is up to rustc, from one version to the next: none may be unknown.
    #[test]
    fn the_crates_of_the_standard_library_are_known() {
        /// Parts of rustc's own sources.
        const OWN: [&str; 12] = [
            "alloc",
            "compiler_builtins",
            "core",
            "panic_abort",
            "panic_unwind",
            "proc_macro",
            "profiler_builtins",
            "std",
            "std_detect",
            "sysroot",
            "test",
            "unwind",
        ];
        let sysroot = output(Project::find().command("rustc").args(["--print", "target-libdir"])).unwrap();
        let names: BTreeSet<String> = std::fs::read_dir(sysroot.trim())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter_map(|file| {
                Some(file.strip_prefix("lib")?.strip_suffix(".rlib")?.rsplit_once('-')?.0.to_owned())
            })
            .filter(|name| !OWN.contains(&name.as_str()) && !name.starts_with("rustc_std_workspace_"))
            .collect();
        assert!(names.contains("hashbrown"), "{sysroot}: {names:?}");
        let known = OF_STD.map(|(name, _)| name.replace('-', "_"));
        let unknown: Vec<_> = names.iter().filter(|name| !known.contains(name)).collect();
        assert!(unknown.is_empty(), "the standard library has {unknown:?}, of which OF_STD knows no licence");
    }

    #[test]
    fn a_crate_that_is_not_named_is_found() {
        let bytes = b"\0\x01/c/registry/src/index.crates.io-1949cf8c6b5b557f/tokio-1.54.1/src/a.rs\xff/index.crates.io-1/";
        assert_eq!(crates_in(bytes), BTreeSet::from(["tokio-1.54.1".to_owned()]));
    }
}
