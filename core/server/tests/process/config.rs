//! Configurations that are refused, by the program: broken files, what profile prod refuses, and what the machine has no room for.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use super::{Folder, Server, binary, program, run};

/// The same words as `valkyrie-config` says, and exit code 2.
#[test]
fn check_refuses_every_broken_file() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/tests/broken");
    let expected = fs::read_to_string(folder.join("expected.txt")).unwrap();
    assert!(expected.lines().count() >= 40);
    for line in expected.lines() {
        let file = folder.join(line.split(':').next().unwrap()).display().to_string();
        let output = run(&["check", &file]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert_eq!(said, format!("valkyrie-server: {}/{line}\n", folder.display()));
    }
}

#[test]
fn a_profile_has_defaults_that_everything_wins_over() {
    let folder = Folder::new();
    let file = folder.write("server.yaml", "profile: prod\nlog_format: text\n");
    let output = run(&["config", "show", "--config", &file]);
    let text = String::from_utf8(output.stdout).unwrap();
    for line in [
        format!("profile: \"prod\"  # {file}:1"),
        format!("log_format: \"text\"  # {file}:2"),
        "min_security: \"tls\"  # profile prod".to_owned(),
        "drain_timeout_ms: 30000  # default".to_owned(),
    ] {
        assert!(text.lines().any(|found| found == line), "no {line} in {text}");
    }
    // The environment wins over the file, and a flag over the environment.
    let show = |arguments: &[&str]| {
        let mut command = binary();
        command.args(["config", "show", "--config", &file]).args(arguments);
        String::from_utf8(command.env("VALKYRIE_PROFILE", "staging").output().unwrap().stdout).unwrap()
    };
    assert!(show(&[]).contains("profile: \"staging\"  # environment, VALKYRIE_PROFILE\n"));
    let test = show(&["--profile", "test"]);
    assert!(test.contains("profile: \"test\"  # flag, --profile\n"), "{test}");
    assert!(test.contains("bind: [\"127.0.0.1:0\"]  # profile test\n"), "{test}");
    let server = Server::start(&["--profile", "test"]);
    assert!(server.endpoint("tcp").starts_with("tcp://127.0.0.1:"));
}

#[test]
fn prod_refuses_what_is_unsafe() {
    let folder = Folder::new();
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let secret = |name: &str, text: &str| {
        let path = folder.write(name, text);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    };
    let certificates = folder.write("server.pem", &made.cert.pem());
    let key = secret("server.key", &made.signing_key.serialize_pem());
    let open = folder.write("open.key", &made.signing_key.serialize_pem());
    let (example, random) =
        (secret("example", &"changeme".repeat(5)), secret("random", "kQ3v9Zr1xW7bT5nLc8sMd2fGh4jPy6aE"));
    let identity = format!("profile: prod\ncertificates: {certificates}\nprivate_key: {key}\n");
    let issuer = |file: &str| {
        format!(
            "token_issuers: [{{issuer: a, audience: b, keys: [{{kid: k, algorithm: HS256, file: {file}}}]}}]\n"
        )
    };
    for (text, words) in [
        ("profile: prod\n".to_owned(), "certificates: min_security above insecure needs"),
        (format!("{identity}min_security: insecure\n"), "bind: \"0.0.0.0:8080\" takes what is not encrypted"),
        (
            format!("{identity}min_security: insecure\nbind: ['tls://0.0.0.0:1']\n"),
            ":4:1: min_security: insecure is refused by profile prod",
        ),
        (format!("{identity}open_to_all: true\n"), ":4:1: open_to_all: true lets everybody"),
        (format!("{identity}static_tokens: {random}\n"), ":4:1: static_tokens: "),
        (identity.replace(&key, &open), ":3:1: private_key: "),
        (format!("{identity}audit: {0}.log\naudit_key: {example}\n", folder.path("a")), ":5:1: audit_key: "),
        (format!("{identity}{}", issuer(&example)), "is a secret that stands in manuals"),
    ] {
        let file = folder.write("server.yaml", &text);
        let output = run(&["check", &file]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}: {said}");
        assert!(said.contains(words), "{text}: {said}");
        // Elsewhere it is somebody's own business, but for what nobody can use.
        let file = folder.write("server.yaml", &text.replace("profile: prod", "profile: staging"));
        let code = run(&["check", &file]).status.code();
        assert!(code == Some(0) || text.contains("static_tokens"), "{text}");
    }
    for text in [
        format!("{identity}audit: {}.log\naudit_key: {random}\n{}", folder.path("a"), issuer(&random)),
        format!(
            "profile: prod\nmin_security: insecure\nbind: ['unix://{}', '127.0.0.1:0', '[::1]:0']\n",
            folder.path("s")
        ),
    ] {
        let file = folder.write("server.yaml", &text);
        let output = run(&["check", &file]);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// I14, F53: with 256 descriptors.
#[test]
fn what_the_limits_forbid_is_refused_with_the_number_that_works() {
    let folder = Folder::new();
    let limited = |most: u64| {
        let file = folder.write("server.yaml", &format!("bind: ['127.0.0.1:0']\nmax_connections: {most}\n"));
        let script = format!("ulimit -n 256 && exec {} check {file}", program().display());
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, said) = limited(1_000_000);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains(":2:1: max_connections: 1000000 is more than the 256 descriptors"), "{said}");
    assert!(said.ends_with("write 192 or less\n"), "{said}");
    assert_eq!(limited(192), (Some(0), String::new()));
}

/// N14: what is generated says the defaults, and what reads it has them.
#[test]
fn what_is_generated_has_the_defaults_that_are_told() {
    let folder = Folder::new();
    for format in ["yaml", "toml", "json"] {
        let generated = run(&["config", "generate", "--format", format]);
        let file = folder.write(&format!("server.{format}"), std::str::from_utf8(&generated.stdout).unwrap());
        let shown = run(&["config", "show", "--format", "json", "--config", &file]);
        let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
        let value = |key: &str| shown[key]["value"].clone();
        assert_eq!(value("bind"), serde_json::json!(["0.0.0.0:8080"]), "{format}");
        assert_eq!(value("drain_timeout_ms"), 30_000, "{format}");
        for (key, of) in shown.as_object().unwrap() {
            assert!(of["origin"].as_str().is_some_and(|origin| origin.starts_with(&file)), "{key}: {of}");
        }
    }
    // Who calls agrees.
    let said = super::security::valkyrie(&["send", "--help"], 0);
    assert!(said.contains("[default: tcp://localhost:8080]") && said.contains("[default: 5000,"), "{said}");
    assert_eq!(valkyrie_sdk::DEFAULT_TIMEOUT_MS, 5_000);
}
