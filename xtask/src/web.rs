//! The browser's package: the wasm module, its glue, and the hand-written face around both.

use std::path::Path;
use std::process::Command;

use crate::budgets;
use crate::conformance::Server;
use crate::package::{FRESH, copy_folder, fresh_folder, npm_install, npm_pack};
use crate::sbom::Sbom;
use crate::setup::{BROWSERS, NODE_TOOLS, browser, wasm_rustc};
use crate::step::{During, Outcome, Project, Steps, cargo_home, failed, output, run, run_and_read};

/// Wasm is compiled by another rustc where the ordinary one lacks the target: apart, so that neither throws out the
/// other's work.
const TARGET_DIR: &str = "target/wasm";
const TARGET: &str = "wasm32-unknown-unknown";

/// What browsers have had for years, one by one: `--all-features` makes a module that Chromium refuses.
const FEATURES: [&str; 8] = [
    "--enable-bulk-memory",
    "--enable-bulk-memory-opt",
    "--enable-nontrapping-float-to-int",
    "--enable-sign-ext",
    "--enable-mutable-globals",
    "--enable-reference-types",
    "--enable-multivalue",
    "--enable-call-indirect-overlong",
];

/// Whether the browser's package is in the checkout: until it is, no verb asks for it, and the matrix has no column.
pub(crate) fn exists(project: &Project) -> bool {
    project.path("wasm/package.json").is_file()
}

/// Adds the check that the protocol and the sdk build without threads, sockets and clocks.
pub(crate) fn add_check<'a>(steps: &mut Steps<'a>, project: &'a Project) {
    steps.add("wasm32", "the protocol and the sdk build for wasm32", &["setup: wasm toolchain"], || {
        run(cargo(project, "check")?.args(["-p", "valkyrie-protocol"]))?;
        run(cargo(project, "check")?.args(["-p", "valkyrie-sdk", "--no-default-features"]))?;
        Ok(String::new())
    });
}

/// Runs a module in a page of a headless browser, which imports the package from `target/fresh/web`.
pub(crate) fn page(project: &Project, name: &str, module: &str) -> Outcome<Command> {
    browser(name)?;
    let mut node = project.command("node");
    node.args(["xtask/node/page.mjs", name]).arg(project.path(FRESH).join("web")).arg(project.path(module));
    Ok(node)
}

/// The package's tests, each a module that runs in a page, in every browser.
pub(crate) fn check(project: &Project) -> Outcome {
    let program = Server::build(project)?;
    let server = Server::start(project)?;
    let tests = project.files(&["wasm/test/*.test.mjs"])?;
    let mut pages = 0;
    for (name, ..) in BROWSERS {
        for test in &tests {
            let mut page = page(project, name, test)?;
            run(page.envs(server.variables("ws")).env("VALKYRIE_TEST_SERVER", &program))?;
            pages += 1;
        }
    }
    if pages == 0 { failed("wasm/test has no test") } else { Ok(format!("{pages} pages")) }
}

/// A small app, built from the installed package with each bundler and without any, in every browser.
pub(crate) fn bundles(project: &Project) -> Outcome {
    let server = Server::start(project)?;
    let mut node = project.command("node");
    let fresh = project.path(FRESH);
    node.arg("xtask/node/bundles.mjs").args([fresh.join("web"), fresh.join("node")]).arg("wasm/test/app");
    for (name, ..) in BROWSERS {
        browser(name)?;
        node.arg(name);
    }
    let mut pages = 0;
    run_and_read(node.envs(server.variables("ws")), |line| pages += usize::from(line.starts_with("ok ")))?;
    Ok(format!("{pages} pages"))
}

/// Builds the package into `dist/` and installs it into `target/fresh/web`; the note has the module's sizes.
pub(crate) fn package(project: &Project) -> Outcome {
    let stage = fresh_folder(project, "target/package/web")?;
    copy_folder(&project.path("wasm"), &stage)?;
    let sizes = module(project, &stage, "valkyrie", &[])?;
    let brotli =
        budgets::within(project, "browser_module_brotli_bytes", "the browser's module", sizes.brotli)?;
    // The same face over the module that has TLS in it.
    let sealed = module(project, &stage, "valkyrie_sealed", &["--features", "sealed"])?;
    let added = sealed.brotli.saturating_sub(sizes.brotli);
    budgets::within(project, "browser_sealed_brotli_bytes", "what sealed sessions add to a page", added)?;
    let mut face = std::fs::read_to_string(stage.join("index.js")).during("index.js")?;
    for (from, to) in
        [("./pkg/valkyrie.js", "./pkg/valkyrie_sealed.js"), ("const SEALS = false;", "const SEALS = true;")]
    {
        if !face.contains(from) {
            return failed(format!("index.js has no {from:?}, which sealed.js has otherwise"));
        }
        face = face.replace(from, to);
    }
    std::fs::write(stage.join("sealed.js"), face).during("sealed.js")?;
    npm_install(project, "web", &[npm_pack(project, &stage)?])?;
    Ok(format!(
        "module: {} bytes, {} gzip, {brotli} brotli; with sealed sessions {} brotli",
        sizes.raw, sizes.gzip, sealed.brotli
    ))
}

/// Builds a module with these features into the package as `pkg/NAME.js` and `pkg/NAME_bg.wasm`.
fn module(project: &Project, stage: &Path, name: &str, features: &[&str]) -> Outcome<Sizes> {
    run(cargo(project, "build")?.args(["--release", "-p", "valkyrie-wasm"]).args(features))?;
    let built = project.path(TARGET_DIR).join(TARGET).join("release/valkyrie_wasm.wasm");
    let glue = stage.join("pkg");
    run(project
        .cargo(["run", "--quiet", "-p", "valkyrie-wasm-glue", "--"])
        .arg(&built)
        .arg(&glue)
        .arg(name))?;
    let module = glue.join(format!("{name}_bg.wasm"));
    let mut optimise = project.command(format!("{NODE_TOOLS}/.bin/wasm-opt"));
    // Flattened and built anew, loops and branches take 1 KB less of 150. Nothing is at the addresses below 1,024: the stack ends there.
    optimise.args(["-Oz", "--flatten", "--rereloop", "-Oz", "--converge", "--low-memory-unused"]);
    optimise.args(["--strip-debug", "--strip-producers"]).args(FEATURES);
    run(optimise.arg(&module).arg("-o").arg(&module))?;
    leaks_no_path(project, &module)?;
    let mut sbom = Sbom::of(project, &["valkyrie-wasm"], features, "valkyrie-wasm", TARGET)?;
    sbom.add_std(&module)?;
    sbom.names_what_is_in(&module)?;
    sbom.write(&glue.join(format!("{name}.cdx.json")))?;
    Sizes::of(project, &module)
}

/// `cargo` for wasm32: small code, no unwinding, no folder of this machine in what comes out.
fn cargo(project: &Project, verb: &str) -> Outcome<Command> {
    let mut cargo =
        project.cargo([verb, "--quiet", "--locked", "--target", TARGET, "--target-dir", TARGET_DIR]);
    if let Some(rustc) = wasm_rustc(project)? {
        cargo.env("RUSTC", rustc);
    }
    let home = cargo_home()?;
    let flags = format!(
        "--remap-path-prefix={}=/cargo\u{1f}--remap-path-prefix={}=/valkyrie",
        home.display(),
        project.root.display()
    );
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags);
    // ring is C in part, which gcc does not compile for wasm32.
    cargo.env("CC_wasm32_unknown_unknown", "clang").env("AR_wasm32_unknown_unknown", "llvm-ar");
    for (key, value) in [("OPT_LEVEL", "z"), ("LTO", "fat"), ("PANIC", "abort"), ("STRIP", "none")] {
        // Names of target features must stay until the glue is made: wasm-opt strips afterwards.
        cargo.env(format!("CARGO_PROFILE_RELEASE_{key}"), value);
    }
    Ok(cargo)
}

struct Sizes {
    raw: u64,
    gzip: u64,
    brotli: u64,
}

impl Sizes {
    fn of(project: &Project, module: &Path) -> Outcome<Sizes> {
        const SCRIPT: &str = "const z = require('node:zlib'), b = require('node:fs').readFileSync(process.argv[1]); \
            console.log(b.length, z.gzipSync(b, { level: 9 }).length, z.brotliCompressSync(b).length)";
        let said = output(project.command("node").args(["-e", SCRIPT]).arg(module))?;
        let numbers: Vec<u64> = said.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        match numbers.as_slice() {
            &[raw, gzip, brotli] => Ok(Sizes { raw, gzip, brotli }),
            _ => failed(format!("node did not tell the module's sizes: {said}")),
        }
    }
}

/// What ships names no folder of the machine that built it.
fn leaks_no_path(project: &Project, module: &Path) -> Outcome<()> {
    let bytes = std::fs::read(module).during(module.display())?;
    let home = std::env::var("HOME").unwrap_or_default();
    for path in [project.root.to_string_lossy().into_owned(), home] {
        if path.len() > 1 && bytes.windows(path.len()).any(|window| window == path.as_bytes()) {
            return failed(format!("the module contains the path {path}"));
        }
    }
    Ok(())
}
