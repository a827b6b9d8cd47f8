//! The arrow test: which crate may depend on which, and what the sources of a room may not name.
//! The graph of crates is a decision (ARCHITECTURE.md has the drawing); this makes an accident in it a failure.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::step::{During, Outcome, Project, failed, output};

/// Every crate that ships, where it lives, and which crates of ours it may depend on. A crate of ours under `core/` or
/// `bindings/` that is missing here is refused, so that a new one is placed by decision.
const ROOMS: [Room; 14] = [
    Room { name: "valkyrie-protocol", kind: Kind::Core, may_use: &[] },
    Room { name: "valkyrie-sdk", kind: Kind::Core, may_use: &["valkyrie-protocol"] },
    Room { name: "valkyrie-otel", kind: Kind::Core, may_use: &["valkyrie-sdk"] },
    // Parsers of YAML and TOML are in no package of a language, so the configuration stands beside the sdk, not in it.
    Room { name: "valkyrie-config", kind: Kind::Core, may_use: &["valkyrie-otel", "valkyrie-sdk"] },
    Room {
        name: "valkyrie-server",
        kind: Kind::Core,
        may_use: &["valkyrie-config", "valkyrie-otel", "valkyrie-sdk"],
    },
    Room { name: "valkyrie-tools", kind: Kind::Core, may_use: &["valkyrie-config", "valkyrie-sdk"] },
    Room { name: "valkyrie-bridge", kind: Kind::Core, may_use: &["valkyrie-sdk"] },
    Room { name: "valkyrie-python", kind: Kind::Adapter, may_use: &["valkyrie-bridge"] },
    Room { name: "valkyrie-jni", kind: Kind::Adapter, may_use: &["valkyrie-bridge"] },
    Room { name: "valkyrie-node", kind: Kind::Adapter, may_use: &["valkyrie-bridge"] },
    Room { name: "valkyrie-c", kind: Kind::Adapter, may_use: &["valkyrie-bridge"] },
    // The browser has no threads, so its adapter stands on the sdk.
    Room { name: "valkyrie-wasm", kind: Kind::Adapter, may_use: &["valkyrie-bridge", "valkyrie-sdk"] },
    Room { name: "valkyrie-wasm-glue", kind: Kind::BuildTool, may_use: &[] },
    Room { name: "valkyrie-c-header", kind: Kind::BuildTool, may_use: &[] },
];

struct Room {
    name: &'static str,
    kind: Kind,
    may_use: &'static [&'static str],
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Core,
    Adapter,
    BuildTool,
}

/// All that the protocol may depend on directly: bytes, a checksum, a codec.
const PROTOCOL_USES: [&str; 3] = ["bytes", "crc32c", "wincode"];

/// All that the simulation may depend on: its network, its clock and its chance are its own, so that a seed means the
/// same for ever.
const SIMULATION_USES: [&str; 2] = ["bytes", "valkyrie-protocol"];

/// I/O, time, threads and randomness: nowhere below the protocol, however deep. A `*` at the end stands for any ending.
const IMPURE: &str = "tokio* mio async-io async-std smol polling socket2 quinn* hyper* rustls* ring openssl* native-tls \
    aws-lc* getrandom rand rand_* fastrand oorandom uuid time chrono jiff web-time instant quanta rayon* \
    crossbeam* parking_lot* threadpool futures*";

/// Runtimes of languages and parsers of command lines: nowhere below the sdk.
const HOSTS: &str = "pyo3* napi* node-* neon jni* uniffi* cbindgen wasm-bindgen-cli* cpython rustler magnus clap* maturin \
    argh";

/// What an adapter may not depend on itself: retry, TLS, transports, a runtime of its own.
const POLICY: &str = "tokio* mio socket2 async-std smol quinn* hyper* reqwest tungstenite ws_stream_wasm fastwebsockets \
    gloo-net rustls* ring openssl* native-tls aws-lc* backon backoff exponential-backoff retry tower* \
    failsafe governor again tryhard pyo3-async-runtimes pyo3-asyncio wasm-timer";

/// Crates whose types may not show in a public signature of the sdk. `bytes::Bytes` is the one that may.
const HIDDEN_IN_SDK: [&str; 18] = [
    "tokio",
    "tokio_tungstenite",
    "tungstenite",
    "futures_util",
    "futures_core",
    "socket2",
    "rustls",
    "wincode",
    "data_encoding",
    "hyper",
    "ring",
    "rustls_pki_types",
    "serde",
    "serde_json",
    "serde_path_to_error",
    "tokio_rustls",
    "toml",
    "zeroize",
];

/// Where unsafe code lives: what talks to a language's runtime, to the system about descriptors and forks, or hands out
/// pointers. Nowhere else, and never in `core/`.
const UNSAFE: [&str; 11] = [
    "bindings/bridge/src/descriptors.rs",
    "bindings/bridge/src/drive.rs",
    "bindings/bridge/src/fork.rs",
    "bindings/bridge/src/operation.rs",
    "bindings/bridge/src/queue.rs",
    "bindings/c/src/lib.rs",
    "bindings/jni/src/host.rs",
    "bindings/jni/src/lib.rs",
    "bindings/node/src/lib.rs",
    "bindings/python/src/lib.rs",
    "bindings/python/src/values.rs",
];

/// Checks the crate graph and the sources; the note counts what was looked at.
pub(crate) fn check(project: &Project) -> Outcome {
    let metadata = output(&mut project.cargo(["metadata", "--format-version", "1", "--all-features"]))?;
    let graph = Graph::read(&serde_json::from_str(&metadata).during("cargo metadata")?)?;
    let mut wrong = graph.forbidden_arrows();
    let mut looked_at = 0;
    for file in project.files(&["core/*.rs", "bindings/*.rs"])? {
        let text = std::fs::read_to_string(project.path(&file)).during(&file)?;
        wrong.extend(forbidden_words(&file, &text));
        looked_at += 1;
    }
    for package in ["node/package.json", "wasm/package.json"] {
        if let Ok(text) = std::fs::read_to_string(project.path(package)) {
            wrong.extend(package_arrows(package, &serde_json::from_str(&text).during(package)?));
        }
    }
    if wrong.is_empty() {
        return Ok(format!("{} crates, {looked_at} sources", graph.crates.len()));
    }
    for arrow in &wrong {
        println!("   {arrow}");
    }
    failed(format!("{} forbidden arrows: {}", wrong.len(), wrong[0]))
}

/// What `cargo metadata` says, reduced to names.
struct Graph {
    /// Our crates by name.
    crates: BTreeMap<String, Crate>,
    /// Every package of the resolved graph, ours and others', with what it needs to be built (tests left out).
    needs: BTreeMap<String, BTreeSet<String>>,
}

struct Crate {
    /// The folder inside the checkout, with `/` at its end.
    folder: String,
    /// Declared dependencies for any platform and feature, tests left out.
    uses: BTreeSet<String>,
}

impl Graph {
    fn read(metadata: &Value) -> Outcome<Graph> {
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let root = text(&metadata["workspace_root"]);
        let members: BTreeSet<String> = list(&metadata["workspace_members"]).iter().map(text).collect();
        let (mut names, mut crates) = (BTreeMap::new(), BTreeMap::new());
        for package in list(&metadata["packages"]) {
            let (id, name) = (text(&package["id"]), text(&package["name"]));
            if members.contains(&id) {
                let manifest = text(&package["manifest_path"]).replace('\\', "/");
                let folder = manifest.trim_start_matches(&root).trim_start_matches('/');
                let uses = list(&package["dependencies"]);
                let uses = uses.iter().filter(|dependency| dependency["kind"] != "dev");
                crates.insert(
                    name.clone(),
                    Crate {
                        folder: folder.trim_end_matches("Cargo.toml").to_owned(),
                        uses: uses.map(|dependency| text(&dependency["name"])).collect(),
                    },
                );
            }
            names.insert(id, name);
        }
        let mut needs: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for node in list(&metadata["resolve"]["nodes"]) {
            let of = needs.entry(names.get(&text(&node["id"])).cloned().unwrap_or_default()).or_default();
            for dependency in list(&node["deps"]) {
                if list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"] != "dev") {
                    of.extend(names.get(&text(&dependency["pkg"])).cloned());
                }
            }
        }
        if crates.is_empty() {
            failed("cargo metadata names no crate of ours")
        } else {
            Ok(Graph { crates, needs })
        }
    }

    /// One sentence for each arrow that must not exist.
    fn forbidden_arrows(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let room = |name: &str| ROOMS.iter().find(|room| room.name == name);
        for (name, Crate { folder, uses }) in &self.crates {
            let ships = folder.starts_with("core/") || folder.starts_with("bindings/");
            let Some(room) = room(name) else {
                if name == "valkyrie-simulation" {
                    let others = uses.iter().filter(|other| !SIMULATION_USES.contains(&other.as_str()));
                    wrong.extend(others.map(|other| {
                        format!("{name} -> {other}: the simulation may depend on {SIMULATION_USES:?} only")
                    }));
                }
                if ships {
                    wrong.push(format!("{name} ({folder}) has no room: give it one in xtask/src/arrows.rs"));
                }
                continue;
            };
            for other in uses {
                let arrow = format!("{name} -> {other}");
                if let Some(ours) = self.crates.get(other) {
                    let both_adapters = self.is_adapter(name) && self.is_adapter(other);
                    if both_adapters {
                        wrong.push(format!("{arrow}: an adapter may not depend on another adapter"));
                    } else if !(ours.folder.starts_with("core/") || ours.folder.starts_with("bindings/")) {
                        wrong.push(format!("{arrow}: what ships may not depend on {}", ours.folder));
                    } else if !room.may_use.contains(&other.as_str()) {
                        wrong.push(format!(
                            "{arrow}: {name} may depend on {:?} of ours, and on no other",
                            room.may_use
                        ));
                    }
                } else if room.kind == Kind::Adapter && matches(other, POLICY) {
                    wrong.push(format!(
                        "{arrow}: retry, TLS, transports and runtimes live once, below the bridge"
                    ));
                } else if name == "valkyrie-protocol" && !PROTOCOL_USES.contains(&other.as_str()) {
                    wrong.push(format!(
                        "{arrow}: the protocol may depend on {PROTOCOL_USES:?} and on nothing else"
                    ));
                } else if name == "valkyrie-sdk"
                    && ["wasm-bindgen", "js-sys", "web-sys"].contains(&other.as_str())
                {
                    wrong.push(format!("{arrow}: the sdk may not depend on a language's runtime"));
                }
            }
        }
        for other in self.below("valkyrie-protocol") {
            if matches(&other, IMPURE) {
                wrong.push(format!(
                    "valkyrie-protocol -> … -> {other}: the protocol has no I/O, time, threads or chance"
                ));
            }
        }
        for other in self.below("valkyrie-sdk") {
            if matches(&other, HOSTS) || self.is_adapter(&other) {
                wrong.push(format!(
                    "valkyrie-sdk -> … -> {other}: the sdk knows no binding, language runtime or clap"
                ));
            }
        }
        wrong
    }

    fn is_adapter(&self, name: &str) -> bool {
        ROOMS.iter().any(|room| room.name == name && room.kind == Kind::Adapter)
    }

    /// Every package that is needed, however indirectly, to build this one.
    fn below(&self, name: &str) -> BTreeSet<String> {
        let (mut found, mut open) = (BTreeSet::new(), vec![name.to_owned()]);
        while let Some(name) = open.pop() {
            for next in self.needs.get(&name).into_iter().flatten() {
                if found.insert(next.clone()) {
                    open.push(next.clone());
                }
            }
        }
        found
    }
}

fn matches(name: &str, patterns: &str) -> bool {
    patterns.split_whitespace().any(|pattern| match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    })
}

/// What this file of a room names and may not: arrows that no manifest shows.
fn forbidden_words(file: &str, text: &str) -> Vec<String> {
    // A test may open sockets and read clocks: it is the world around the room.
    if file.split('/').any(|folder| ["tests", "benches", "examples"].contains(&folder))
        || file.ends_with("/tests.rs")
    {
        return Vec::new();
    }
    let code: Vec<(usize, &str)> = shipped_code(text);
    let mut rules: Vec<(&[&str], &str)> = Vec::new();
    if file.starts_with("core/protocol/src/") {
        rules.push((
            &[
                "Instant::now",
                "SystemTime",
                "std::net",
                "std::thread",
                "std::fs",
                "std::env",
                "tokio",
                "getrandom",
                "rand::",
            ],
            "the protocol has no clock, socket, thread, file or chance",
        ));
    }
    if file.starts_with("core/") {
        rules.push((
            &[
                "pyo3",
                "napi",
                "asyncio",
                "JavaScript",
                "Python",
                "NodeJs",
                "Kotlin",
                "Swift",
                "jni::",
                "wasm_bindgen",
            ],
            "core code names no language",
        ));
    }
    if file.starts_with("bindings/") {
        rules.push((
            &[
                "TcpStream",
                "TcpListener",
                "UdpSocket",
                "UnixStream",
                "UnixListener",
                "std::net",
                "tokio::net",
                "socket2",
            ],
            "sockets live in the sdk, and a binding has none",
        ));
    }
    if !UNSAFE.contains(&file) {
        rules.push((
            &[
                "unsafe {",
                "unsafe fn",
                "unsafe impl",
                "unsafe extern",
                "unsafe trait",
                "#[unsafe(",
                "#![allow(unsafe_code",
            ],
            "unsafe code has its addresses, in xtask/src/arrows.rs",
        ));
    }
    let mut wrong = Vec::new();
    for (number, line) in &code {
        for (words, why) in &rules {
            if let Some(word) = words.iter().find(|word| line.contains(**word)) {
                wrong.push(format!("{file}:{number}: `{word}`: {why}"));
            }
        }
    }
    if file.starts_with("core/sdk/src/") {
        wrong.extend(foreign_types_in_public(file, &code));
    }
    wrong
}

/// The lines with their numbers, without comments and without the tests at the bottom of the file.
fn shipped_code(text: &str) -> Vec<(usize, &str)> {
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line));
    let lines = lines.take_while(|(_, line)| !line.starts_with("#[cfg(test)]"));
    let code = lines.map(|(number, line)| (number, line.find("//").map_or(line, |comment| &line[..comment])));
    code.filter(|(_, line)| !line.trim().is_empty()).collect()
}

/// Public signatures that show a type of another crate. Items that are not reachable from outside are `pub(crate)`
/// here (a lint sees to it), so that `pub` in the text is public in fact.
fn foreign_types_in_public(file: &str, code: &[(usize, &str)]) -> Vec<String> {
    let mut foreign: Vec<String> = HIDDEN_IN_SDK.iter().map(|name| format!("{name}::")).collect();
    for (_, line) in code {
        let Some(import) = line.trim().strip_prefix("use ") else { continue };
        if HIDDEN_IN_SDK.iter().any(|name| import.starts_with(&format!("{name}::"))) {
            let names = import.rsplit("::").next().unwrap_or_default();
            let names = names.split(|c: char| !c.is_alphanumeric() && c != '_');
            let types = names.filter(|name| name.starts_with(char::is_uppercase));
            foreign.extend(types.map(str::to_owned));
        }
    }
    let mut wrong = Vec::new();
    let mut lines = code.iter();
    while let Some((number, line)) = lines.next() {
        if !line.trim_start().starts_with("pub ") {
            continue;
        }
        // A signature goes on to its body or its end.
        let mut signature = (*line).to_owned();
        while !signature.contains(['{', ';', ',']) || unclosed(&signature) {
            match lines.next() {
                Some((_, more)) => signature.push_str(more),
                None => break,
            }
        }
        let words: BTreeSet<&str> = signature.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
        for name in &foreign {
            let shown = if name.ends_with("::") {
                signature.contains(name.as_str())
            } else {
                words.contains(name.as_str())
            };
            if shown {
                wrong.push(format!(
                    "{file}:{number}: a public signature shows `{name}`, a type of another crate"
                ));
            }
        }
    }
    wrong
}

fn unclosed(signature: &str) -> bool {
    signature.matches('(').count() > signature.matches(')').count()
}

/// A package may depend on its own platform packages and on no other package of ours. One exception is a decision:
/// a bundler that builds a page takes `valkyrie-sdk-web` for `valkyrie-sdk`, when the page's project has it.
fn package_arrows(file: &str, package: &Value) -> Vec<String> {
    let own = package["name"].as_str().unwrap_or_default();
    let mut wrong = Vec::new();
    for kind in ["dependencies", "optionalDependencies", "peerDependencies"] {
        for other in package[kind].as_object().into_iter().flat_map(|names| names.keys()) {
            let web = other == "valkyrie-sdk-web";
            let platform = kind == "optionalDependencies" && other.starts_with(&format!("{own}-")) && !web;
            let page = web
                && kind == "peerDependencies"
                && package["peerDependenciesMeta"][other]["optional"] == true;
            if other.starts_with("valkyrie") && !platform && !page {
                wrong.push(format!("{file}: {own} -> {other}: a package may not depend on another package"));
            }
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Metadata of made-up crates: (name, folder, what it uses). A crate without a folder is somebody else's.
    fn metadata(crates: &[(&str, &str, &[&str])]) -> Value {
        let names =
            |all: &[&str]| all.iter().map(|name| json!({"name": name, "kind": null})).collect::<Vec<_>>();
        let needs = |all: &[&str]| {
            all.iter().map(|name| json!({"pkg": name, "dep_kinds": [{"kind": null}]})).collect::<Vec<_>>()
        };
        json!({
            "workspace_root": "/w",
            "workspace_members": crates.iter().filter(|c| !c.1.is_empty()).map(|c| c.0).collect::<Vec<_>>(),
            "packages": crates.iter().map(|(name, folder, uses)| json!({
                "id": name, "name": name, "manifest_path": format!("/w/{folder}/Cargo.toml"), "dependencies": names(uses),
            })).collect::<Vec<_>>(),
            "resolve": {"nodes": crates.iter().map(|(name, _, uses)| json!({"id": name, "deps": needs(uses)})).collect::<Vec<_>>()},
        })
    }

    fn arrows(crates: &[(&str, &str, &[&str])]) -> Vec<String> {
        Graph::read(&metadata(crates)).expect("made-up metadata reads").forbidden_arrows()
    }

    #[track_caller]
    fn refuses(crates: &[(&str, &str, &[&str])], arrow: &str) {
        let wrong = arrows(crates);
        assert!(wrong.iter().any(|sentence| sentence.starts_with(arrow)), "{arrow} is not in {wrong:#?}");
    }

    #[test]
    fn the_drawing_itself_is_allowed() {
        let none = arrows(&[
            ("valkyrie-protocol", "core/protocol", &["bytes", "wincode"]),
            ("valkyrie-sdk", "core/sdk", &["valkyrie-protocol", "tokio"]),
            ("valkyrie-bridge", "bindings/bridge", &["valkyrie-sdk"]),
            ("valkyrie-python", "bindings/python", &["valkyrie-bridge", "pyo3"]),
            ("valkyrie-wasm", "bindings/wasm", &["valkyrie-sdk", "wasm-bindgen"]),
            ("valkyrie-conformance", "tests/conformance", &["valkyrie-sdk", "valkyrie-protocol"]),
            ("tokio", "", &["mio"]),
            ("pyo3", "", &[]),
        ]);
        assert_eq!(none, Vec::<String>::new());
    }

    #[test]
    fn tokio_in_the_protocol_is_refused_direct_and_deep() {
        refuses(
            &[("valkyrie-protocol", "core/protocol", &["tokio"]), ("tokio", "", &[])],
            "valkyrie-protocol -> tokio",
        );
        let deep: [(&str, &str, &[&str]); 4] = [
            ("valkyrie-protocol", "core/protocol", &["bytes"]),
            ("bytes", "", &["innocent"]),
            ("innocent", "", &["tokio"]),
            ("tokio", "", &[]),
        ];
        refuses(&deep, "valkyrie-protocol -> … -> tokio");
    }

    #[test]
    fn an_adapter_on_an_adapter_is_refused() {
        let crates: [(&str, &str, &[&str]); 2] =
            [("valkyrie-python", "bindings/python", &["valkyrie-c"]), ("valkyrie-c", "bindings/c", &[])];
        refuses(&crates, "valkyrie-python -> valkyrie-c: an adapter");
    }

    #[test]
    fn policy_in_an_adapter_is_refused() {
        refuses(&[("valkyrie-node", "bindings/node", &["rustls"])], "valkyrie-node -> rustls");
        refuses(&[("valkyrie-c", "bindings/c", &["tokio"])], "valkyrie-c -> tokio");
    }

    #[test]
    fn a_language_below_the_sdk_is_refused() {
        let crates: [(&str, &str, &[&str]); 3] =
            [("valkyrie-sdk", "core/sdk", &["middle"]), ("middle", "", &["pyo3-ffi"]), ("pyo3-ffi", "", &[])];
        refuses(&crates, "valkyrie-sdk -> … -> pyo3-ffi");
        refuses(&[("valkyrie-sdk", "core/sdk", &["clap"]), ("clap", "", &[])], "valkyrie-sdk -> … -> clap");
    }

    #[test]
    fn a_test_crate_in_what_ships_is_refused() {
        for test in ["valkyrie-conformance", "valkyrie-faults"] {
            let folder = test.replace("valkyrie-", "tests/");
            let crates: [(&str, &str, &[&str]); 2] =
                [("valkyrie-server", "core/server", &[test]), (test, &folder, &[])];
            refuses(&crates, &format!("valkyrie-server -> {test}: what ships"));
        }
    }

    #[test]
    fn the_simulation_stands_on_the_protocol_alone() {
        let simulation = "valkyrie-simulation";
        let allowed = arrows(&[(simulation, "tests/simulation", &["bytes", "valkyrie-protocol"])]);
        assert_eq!(allowed, Vec::<String>::new());
        refuses(&[(simulation, "tests/simulation", &["tokio"])], "valkyrie-simulation -> tokio");
    }

    #[test]
    fn a_step_past_the_next_room_is_refused() {
        let crates: [(&str, &str, &[&str]); 2] =
            [("valkyrie-python", "bindings/python", &["valkyrie-sdk"]), ("valkyrie-sdk", "core/sdk", &[])];
        refuses(&crates, "valkyrie-python -> valkyrie-sdk");
        refuses(&[("valkyrie-new", "bindings/new", &[])], "valkyrie-new (bindings/new/) has no room");
    }

    #[test]
    fn words_that_no_manifest_shows_are_refused() {
        let refused = |file: &str, text: &str| !forbidden_words(file, text).is_empty();
        assert!(refused("core/protocol/src/a.rs", "let now = Instant::now();"));
        assert!(refused("bindings/c/src/a.rs", "use std::net::TcpStream;"));
        assert!(refused("core/sdk/src/a.rs", "fn for_python() { pyo3::attach() }"));
        assert!(refused(
            "core/sdk/src/a.rs",
            "use tokio::net::TcpStream;\npub fn of(\n    stream: TcpStream,\n) -> u8 {"
        ));
        assert!(refused("core/sdk/src/a.rs", "pub use tokio::time::Instant;"));
        assert!(!refused(
            "core/sdk/src/a.rs",
            "use tokio::net::TcpStream;\npub(crate) fn of(stream: TcpStream) {}"
        ));
        assert!(!refused("core/protocol/src/a.rs", "// never calls Instant::now\nfn of() {}"));
        assert!(!refused("bindings/c/tests/a.rs", "use std::net::TcpStream;"));
        assert!(refused("core/sdk/src/a.rs", "let value = unsafe { *pointer };"));
        assert!(refused("bindings/bridge/src/a.rs", "unsafe impl Send for A {}"));
        assert!(refused("bindings/wasm/src/lib.rs", "#[unsafe(no_mangle)]"));
        assert!(!refused("bindings/c/src/lib.rs", "let value = unsafe { *pointer };"));
        assert!(!refused("core/sdk/src/a.rs", "#![forbid(unsafe_code)]"));
    }

    #[test]
    fn a_package_on_a_package_is_refused() {
        let node = |other: &str| json!({"name": "valkyrie-sdk", "optionalDependencies": {other: "0.1.0"}});
        assert!(package_arrows("node", &node("valkyrie-sdk-linux-x64-gnu")).is_empty());
        assert!(!package_arrows("node", &node("valkyrie-sdk-web")).is_empty());
    }
}
