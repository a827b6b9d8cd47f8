//! `valkyrie config` as its users run it.

mod program;

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
};

fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } =
        Command::new(program::valkyrie()).arg("config").args(arguments).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

/// A folder that goes with its test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("valkyrie-tools-{name}-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn validate_says_ok_or_what_is_wrong() {
    let folder = Folder::new("validate");
    let good = folder.write("good.yaml", "bind: ['127.0.0.1:0']\n");
    assert_eq!(run(&["validate", &good]), (Some(0), format!("{good}: ok\n"), String::new()));
    for (text, words) in [
        ("metrics: true\n\nbnid: ['127.0.0.1:0']\n", ":3:1: bnid: unknown key; did you mean bind?"),
        ("concurrency_initial: 2\n", ": concurrency_min: 4 is more than concurrency_initial, 2"),
        ("metrics: [\n", ":2:1: "),
        // What a server finds in the files that are named.
        ("metrics: true\npolicy: /no/such/file.toml\n", ":2:1: policy: "),
        ("bind: ['quic://127.0.0.1:0']\n", ": certificates: quic://127.0.0.1:0 needs certificates"),
        ("otlp_endpoint: localhost\n", ":1:1: otlp_endpoint: "),
    ] {
        let file = folder.write("bad.yaml", text);
        let (code, out, error) = run(&["validate", &file]);
        assert_eq!((code, out.as_str()), (Some(2), ""), "{error}");
        assert!(error.starts_with("valkyrie: ") && error.contains(words), "{error}");
    }
}

/// D7, by files.
#[test]
fn yaml_to_toml_to_json_to_yaml_is_the_same_document() {
    let folder = Folder::new("convert");
    let written = "# where\nbind: ['127.0.0.1:0', \"unix:///tmp/v\"] # two\ntoken_issuers:\n  - &a {issuer: a, audience: 'b: c', jwks_file: k.json}\n\
                   metrics: false\ndrain_timeout_ms: 0x10\n";
    let first = folder.write("first.yaml", written);
    let (code, once, error) = run(&["convert", &first, "--to", "yaml"]);
    assert_eq!(code, Some(0), "{error}");
    let document = "bind: [\"127.0.0.1:0\", \"unix:///tmp/v\"]\ndrain_timeout_ms: 16\n\
                    token_issuers: [{\"audience\": \"b: c\", \"issuer\": \"a\", \"jwks_file\": \"k.json\"}]\nmetrics: false\n";
    assert_eq!(once, document);
    let mut file = first;
    for (to, output) in [("toml", "second.toml"), ("json", "third.json"), ("yaml", "fourth.yaml")] {
        let output = folder.0.join(output).display().to_string();
        let ran = run(&["convert", &file, "--to", to, "--output", &output]);
        assert_eq!(ran, (Some(0), String::new(), String::new()));
        file = output;
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), document);
    let bad = folder.write("bad.toml", "metrics = 3\n");
    let (code, out, error) = run(&["convert", &bad, "--to", "json"]);
    assert_eq!((code, out.as_str()), (Some(2), ""), "{error}");
    assert!(error.contains("bad.toml:1:1: metrics: invalid type: integer `3`"), "{error}");
}
