//! What is depended on, checked without a network: licences, bans with their floors, and sources, as `deny.toml` says, of every
//! package of the lock files. cargo-deny reads the same file, and the advisories of the day with it (`cargo xtask security`).

use std::iter::Peekable;

use semver::{Version, VersionReq};
use serde_json::Value;
use toml::{Table, Value as Toml};

use crate::step::{During, Outcome, Project, Stop, failed, output, run, succeeds};

/// Whose dependencies ship or run here. What the yardsticks of benches/peers use is theirs.
const LOCKS: [&str; 2] = ["Cargo.lock", "tests/fuzz/Cargo.lock"];

/// The one registry. Its name and its index are the same for cargo.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Checks every package of the lock files; the note counts them.
pub(crate) fn check(project: &Project) -> Outcome {
    let read = |name: &str| -> Outcome<Table> {
        std::fs::read_to_string(project.path(name)).during(name)?.parse().during(name)
    };
    let rules = Rules::read(&read("deny.toml")?)?;
    let (mut wrong, mut looked_at) = (Vec::new(), 0);
    for lock in LOCKS {
        let packages = locked(&read(lock)?).during(lock)?;
        looked_at += packages.len();
        wrong.extend(
            packages.iter().filter_map(|package| rules.refuse(package)).map(|why| format!("{lock}: {why}")),
        );
    }
    let metadata = ["metadata", "--format-version", "1", "--all-features", "--locked"];
    let metadata: Value =
        serde_json::from_str(&output(&mut project.cargo(metadata))?).during("cargo metadata")?;
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let text = |key: &str| package[key].as_str().unwrap_or_default();
        if !rules.permits(text("license")) {
            wrong.push(format!(
                "{} {}: its licence {:?} is not among those of deny.toml",
                text("name"),
                text("version"),
                text("license")
            ));
        }
    }
    for why in &wrong {
        println!("   {why}");
    }
    match wrong.first() {
        Some(first) => failed(format!("{} dependencies are refused: {first}", wrong.len())),
        None => Ok(format!("{looked_at} packages, {} bans and floors", rules.bans.len())),
    }
}

/// What encrypts, signs or verifies: nowhere below the sdk without its features.
const CRYPTO: [&str; 9] = [
    "aws-lc-fips-sys",
    "aws-lc-rs",
    "aws-lc-sys",
    "openssl-sys",
    "quinn",
    "ring",
    "rustls",
    "rustls-webpki",
    "tokio-rustls",
];

/// Checks that the sdk compiles with each set of features that somebody may choose, with each provider of cryptography and
/// with none; and that with none there is none in its graph.
pub(crate) fn features(project: &Project) -> Outcome {
    const SETS: [&str; 7] = [
        "",
        "native",
        "native,websocket",
        "tls",
        "native,websocket,tls",
        "access",
        "native,websocket,quic,jwks",
    ];
    let sdk = ["-p", "valkyrie-sdk", "--no-default-features", "--features"];
    for features in SETS {
        run(project.cargo(["check", "--quiet"]).args(sdk).arg(features))?;
    }
    let below = |features: &str| -> Outcome<Vec<String>> {
        let listed =
            output(project.cargo(["tree", "--edges", "normal", "--prefix", "none"]).args(sdk).arg(features))?;
        let names = listed.lines().filter_map(|line| line.split(' ').next());
        Ok(names.filter(|name| CRYPTO.contains(name)).map(str::to_owned).collect())
    };
    for features in ["", "native", "native,websocket"] {
        let found = below(features)?;
        if !found.is_empty() {
            return failed(format!("the sdk with the features {features:?} depends on {}", found.join(", ")));
        }
    }
    for (features, provider) in [("tls", "ring"), ("aws-lc-rs", "aws-lc-rs")] {
        if !below(features)?.iter().any(|name| name == provider) {
            return failed(format!("the sdk with the feature {features} does not depend on {provider}"));
        }
    }
    if !succeeds(project.command("cc").arg("--version")) {
        return Err(Stop::Skipped(
            "aws-lc-rs needs a C compiler, and there is no cc; the other sets are in order".into(),
        ));
    }
    run(project.cargo(["check", "--quiet"]).args(sdk).arg("native,websocket,quic,aws-lc-rs"))?;
    Ok(format!("{} sets of features, 2 providers", SETS.len() + 1))
}

/// A package of a lock file.
struct Package {
    name: String,
    version: Version,
    /// None where it is ours.
    source: Option<String>,
}

fn locked(lock: &Table) -> Result<Vec<Package>, String> {
    let packages = lock.get("package").and_then(Toml::as_array).ok_or("no package is in it")?;
    let read = |package: &Toml| {
        let text = |key: &str| package.get(key).and_then(Toml::as_str);
        let name = text("name").ok_or("a package has no name")?;
        let version =
            Version::parse(text("version").unwrap_or_default()).map_err(|why| format!("{name}: {why}"))?;
        Ok(Package { name: name.into(), version, source: text("source").map(str::to_owned) })
    };
    packages.iter().map(read).collect()
}

/// What `deny.toml` says.
struct Rules {
    bans: Vec<Ban>,
    licences: Vec<String>,
}

struct Ban {
    name: String,
    versions: VersionReq,
    reason: String,
}

impl Rules {
    fn read(deny: &Table) -> Outcome<Rules> {
        let list = |section: &str, key: &str| -> Outcome<Vec<Toml>> {
            let list = deny.get(section).and_then(|section| section.get(key)).and_then(Toml::as_array);
            list.cloned().map_or_else(|| failed(format!("deny.toml has no {section}.{key}")), Ok)
        };
        let mut bans = Vec::new();
        for ban in list("bans", "deny")? {
            let text = |key: &str| ban.get(key).and_then(Toml::as_str).unwrap_or_default();
            let (name, versions) = text("crate").split_once(':').unwrap_or((text("crate"), "*"));
            if name.is_empty() || text("reason").is_empty() {
                return failed(format!("deny.toml: a ban needs a crate and a reason: {:?}", text("crate")));
            }
            let versions = VersionReq::parse(versions).during(format!("deny.toml: {name}"))?;
            bans.push(Ban { name: name.into(), versions, reason: text("reason").into() });
        }
        let licences = list("licenses", "allow")?;
        let licences = licences.iter().filter_map(Toml::as_str).map(str::to_owned).collect();
        Ok(Rules { bans, licences })
    }

    /// Why this package may not be depended on.
    fn refuse(&self, package: &Package) -> Option<String> {
        let Package { name, version, source } = package;
        let source = source.as_ref()?;
        if source != REGISTRY {
            return Some(format!("{name} {version} comes from {source}, which is not the registry"));
        }
        // A pre-release of a version below the floor is below it too, which a requirement does not say.
        let plain = Version::new(version.major, version.minor, version.patch);
        let ban = self.bans.iter().find(|ban| ban.name == *name && ban.versions.matches(&plain))?;
        Some(format!("{name} {version} is refused: {} ({})", ban.reason, ban.versions))
    }

    /// Whether an expression of SPDX can be met with the licences that are allowed.
    fn permits(&self, expression: &str) -> bool {
        // An old way to write OR.
        let text = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
        let mut words = text.split_whitespace().peekable();
        self.any(&mut words) == Some(true) && words.next().is_none()
    }

    fn any<'a>(&self, words: &mut Peekable<impl Iterator<Item = &'a str>>) -> Option<bool> {
        let mut met = self.all(words)?;
        while words.next_if_eq(&"OR").is_some() {
            met |= self.all(words)?;
        }
        Some(met)
    }

    fn all<'a>(&self, words: &mut Peekable<impl Iterator<Item = &'a str>>) -> Option<bool> {
        let mut met = self.one(words)?;
        while words.next_if_eq(&"AND").is_some() {
            met &= self.one(words)?;
        }
        Some(met)
    }

    fn one<'a>(&self, words: &mut Peekable<impl Iterator<Item = &'a str>>) -> Option<bool> {
        let licence = words.next()?;
        if licence == "(" {
            let met = self.any(words)?;
            return words.next_if_eq(&")").map(|_| met);
        }
        let licence = match words.next_if_eq(&"WITH") {
            Some(_) => format!("{licence} WITH {}", words.next()?),
            None => licence.to_owned(),
        };
        Some(self.licences.contains(&licence))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DENY: &str = r#"
        [licenses]
        allow = ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"]
        [bans]
        deny = [
            { crate = "rustls-webpki:<0.103.13", reason = "RUSTSEC-2026-0049" },
            { crate = "bincode:>=3", reason = "does not compile" },
            { crate = "openssl-sys", reason = "TLS is rustls" },
        ]"#;

    fn rules() -> Rules {
        Rules::read(&DENY.parse().unwrap()).unwrap()
    }

    fn refused(name: &str, version: &str) -> Option<String> {
        let lock = format!(
            "[[package]]\nname = \"ours\"\nversion = \"0.1.0\"\n[[package]]\nname = {name:?}\nversion = {version:?}\n\
             source = {REGISTRY:?}"
        );
        let packages = locked(&lock.parse().unwrap()).unwrap();
        assert_eq!(packages.len(), 2);
        packages.iter().find_map(|package| rules().refuse(package))
    }

    #[test]
    fn an_old_version_that_was_planted_is_refused() {
        for version in ["0.103.12", "0.102.8", "0.103.0-alpha.1", "0.103.12+meta"] {
            let why = refused("rustls-webpki", version).expect(version);
            assert!(why.contains("RUSTSEC-2026-0049"), "{why}");
        }
        for version in ["0.103.13", "0.103.16", "0.104.0-alpha.2", "1.0.0"] {
            assert_eq!(refused("rustls-webpki", version), None, "{version}");
        }
        assert!(refused("openssl-sys", "0.9.1").is_some());
        assert!(refused("bincode", "3.0.0").is_some());
        assert_eq!(refused("bincode", "2.0.1"), None);
        assert_eq!(refused("webpki", "0.1.0"), None);
    }

    /// The lock file of the project itself, with one version put back.
    #[test]
    fn an_old_version_in_our_own_lock_is_refused() {
        let read = |name: &str| std::fs::read_to_string(Project::find().path(name)).unwrap();
        let (rules, lock) = (Rules::read(&read("deny.toml").parse().unwrap()).unwrap(), read("Cargo.lock"));
        let refused = |lock: &str| {
            let packages = locked(&lock.parse().unwrap()).unwrap();
            packages.iter().find_map(|package| rules.refuse(package))
        };
        assert_eq!(refused(&lock), None);
        for (name, old) in [
            ("quinn-proto", "0.11.14"),
            ("rustls-webpki", "0.103.12"),
            ("ring", "0.17.11"),
            ("pyo3", "0.28.9"),
        ] {
            let (before, after) = lock.split_once(&format!("name = \"{name}\"\nversion = \"")).expect(name);
            let (_, rest) = after.split_once('"').unwrap();
            let planted = format!("{before}name = \"{name}\"\nversion = \"{old}\"{rest}");
            let why = refused(&planted).expect(name);
            assert!(why.contains(name) && why.contains("RUSTSEC-"), "{why}");
        }
    }

    #[test]
    fn another_source_is_refused() {
        let package = |source: &str| Package {
            name: "a".into(),
            version: Version::new(1, 0, 0),
            source: Some(source.into()),
        };
        assert_eq!(rules().refuse(&package(REGISTRY)), None);
        for source in [
            "git+https://example.org/a?rev=1#1",
            "registry+https://example.org/index",
            "sparse+https://example.org/",
        ] {
            assert!(rules().refuse(&package(source)).is_some(), "{source}");
        }
    }

    #[test]
    fn licences_are_expressions() {
        for good in [
            "MIT",
            "MIT OR GPL-3.0",
            "GPL-3.0 OR Apache-2.0",
            "MIT/Apache-2.0",
            "(MIT OR GPL-3.0) AND Apache-2.0",
            "Apache-2.0 WITH LLVM-exception",
            "GPL-3.0 AND MIT OR MIT",
        ] {
            assert!(rules().permits(good), "{good}");
        }
        for bad in [
            "",
            "GPL-3.0",
            "MIT AND GPL-3.0",
            "MIT WITH LLVM-exception",
            "(MIT",
            "MIT)",
            "MIT OR",
            "MIT MIT",
            "MIT AND (GPL-3.0 OR BSD)",
        ] {
            assert!(!rules().permits(bad), "{bad}");
        }
    }

    #[test]
    fn a_ban_without_a_reason_is_refused() {
        let deny = DENY.replace("TLS is rustls", "");
        assert!(Rules::read(&deny.parse().unwrap()).is_err());
    }
}
