//! `valkyrie debug call` as its users run it: what it tells of calls that go well, are tried again, and fail in every common way.
#![cfg(unix)]

mod program;

use std::{
    io::{Read, Write},
    net::TcpListener,
    process::{Command, Output, Stdio},
};

use serde_json::Value;
use valkyrie_sdk::{
    EchoHandler, Metadata, Principal, Reply, Security, ServerBuilder, StaticTokens, handler_fn,
};

/// A token that nothing may print.
const CANARY: &str = "canary-9f31";

async fn run(arguments: &[&str]) -> Output {
    debug("call", arguments, None).await
}

async fn debug(verb: &str, arguments: &[&str], token: Option<&str>) -> Output {
    let mut command = Command::new(program::valkyrie());
    command.args(["debug", verb]).args(arguments).env_remove("VALKYRIE_TOKEN").stdin(Stdio::null());
    command.envs(token.map(|token| ("VALKYRIE_TOKEN", token)));
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What it says of a call, after looking at its exit code.
async fn told(arguments: &[&str], code: i32) -> String {
    let output = run(arguments).await;
    let all = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert!(!all.contains(CANARY), "{all}");
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {all}");
    all
}

async fn serve(bind: &str, builder: ServerBuilder) -> String {
    let builder =
        builder.handler("/echo", EchoHandler).handler("/hang", handler_fn(|_| std::future::pending()));
    let server = builder.bind(bind).build().await.unwrap();
    let endpoint = server.endpoints().remove(0);
    tokio::spawn(async move { server.start().await });
    endpoint
}

/// A file of a test's own, gone with it.
struct File(String);

impl File {
    fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("valkyrie-call-{}-{name}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        Self(path.to_str().unwrap().to_owned())
    }
}

impl std::ops::Deref for File {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[tokio::test]
async fn a_call_that_goes_well_is_told_from_its_name_to_its_answer() {
    let endpoint = serve("127.0.0.1:0", ServerBuilder::new()).await;
    let endpoint = endpoint.replace("127.0.0.1", "localhost");
    let all = told(&[&endpoint, "/echo", "Hello\x1b[2J", "--idempotent"], 0).await;
    let words = [
        "localhost is ",
        "idempotent call of /echo, within 5000.000 ms",
        "waits for a connection",
        &format!("dials {endpoint}"),
        &format!("connected to {endpoint} in "),
        &format!("attempt 1 goes to {endpoint}"),
        "attempt 1: OK, after ",
        "the call ends: OK",
        "OK: an answer of 9 bytes: Hello\\u{1b}[2J",
    ];
    let mut rest = all.as_str();
    for words in words {
        let at = rest.find(words).unwrap_or_else(|| panic!("{words:?} is not in {rest:?} of {all}"));
        rest = &rest[at + words.len()..];
    }
    assert!(all.contains("says HELLO: version 1, messages up to 4194304 bytes"), "{all}");

    let all = told(&[&endpoint, "/echo", "x", "--json"], 0).await;
    let steps: Vec<Value> = all.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<_> = steps.iter().map(|step| step["step"].as_str().unwrap()).collect();
    assert_eq!((names[0], names[1], names[names.len() - 1]), ("resolved", "call", "outcome"), "{all}");
    assert_eq!(steps[steps.len() - 1]["message"], "x", "{all}");
}

/// Servers that fail as they are told to are told of in the same words each time.
#[tokio::test]
async fn a_script_is_told_to_the_byte() {
    let all = told(&["script://a/1=UNAVAILABLE~200ms", "/echo", "--idempotent"], 0).await;
    let expected = "    0.000 ms  idempotent call of /echo, within 5000.000 ms
    0.000 ms  waits for a connection
    0.000 ms  dials script://a/1=UNAVAILABLE~200ms
    1.000 ms  connected to script://a/1=UNAVAILABLE~200ms in 1.000 ms
    1.000 ms  script://a/1=UNAVAILABLE~200ms says HELLO: version 1, messages up to 4194304 bytes, 1024 calls at once
    1.000 ms  attempt 1 goes to script://a/1=UNAVAILABLE~200ms
    2.000 ms  attempt 1: UNAVAILABLE, after 1.000 ms
    2.000 ms  is tried again in 200.000 ms
  202.000 ms  attempt 2 goes to script://a/1=UNAVAILABLE~200ms
  203.000 ms  attempt 2: OK, after 1.000 ms
  203.000 ms  the call ends: OK
OK: an answer of 1 bytes: a
";
    assert_eq!(all, expected);
    let config = File::new(
        "breaker.json",
        r#"{"methods": [{"names": ["*"], "retry": {"base_ms": 1}, "breaker": {"min_calls": 2}}]}"#,
    );
    let script = "script://a/*=UNAVAILABLE;seed=3";
    let all = told(&[script, "--idempotent", "--service-config", &config], 13).await;
    assert!(
        all.contains("the breaker of script://a/*=UNAVAILABLE;seed=3 for /echo was closed and is open"),
        "{all}"
    );
    assert!(
        all.contains("the client's breaker is open") || all.contains("breaker is open, as the server failed"),
        "{all}"
    );
}

#[tokio::test]
async fn what_goes_wrong_is_explained_in_a_sentence_with_its_fix() {
    let endpoint = serve("127.0.0.1:0", ServerBuilder::new()).await;
    let stranger = TcpListener::bind("127.0.0.1:0").unwrap();
    let strange = format!("tcp://{}", stranger.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in stranger.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        }
    });
    // Its port is free again: nobody listens there.
    let gone = format!("tcp://{}", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    let own = rcgen::generate_simple_self_signed(["other.example".to_owned()]).unwrap();
    let (certificate, key) = (own.cert.pem(), own.signing_key.serialize_pem());
    let authority = File::new("other.pem", &certificate);
    let named = ServerBuilder::new().identity(certificate.clone(), key.clone()).open_to_all(true);
    let named = serve("tls://127.0.0.1:0", named).await;
    let trusted = ["--trusted-certificates", &authority];
    let closed = ServerBuilder::new().identity(certificate.clone(), key.clone()).min_security(Security::Tls);
    let closed = serve("127.0.0.1:0", closed).await;
    for (endpoint, more, code, words) in [
        (&gone, &["--timeout-ms", "2000"][..], 13, ["CONNECT_FAILED", "Nobody takes connections there"]),
        (&strange, &[], 15, ["BAD_MAGIC", "does not speak Valkyrie: check the port"]),
        (&endpoint, &["/hang", "--timeout-ms", "2000"], 11, ["DEADLINE_EXCEEDED", "did not answer in time"]),
        (&endpoint, &["/missing"], 11, ["UNKNOWN_METHOD", "no method /missing"]),
        (&named, &trusted, 12, ["CERTIFICATE_NAME", "with --server-name"]),
        (&endpoint.replace("tcp", "tls"), &trusted, 12, ["TLS_NOT_SPOKEN", "does not speak TLS there"]),
        (&closed, &[], 12, ["TLS_REQUIRED", "use tls://"]),
        (
            &"tcp://no.such.name.invalid:1".to_owned(),
            &["--timeout-ms", "5000"],
            13,
            ["NAME_RESOLUTION", "how it is spelt"],
        ),
        (&"tcp://".to_owned(), &[], 11, ["INVALID_ENDPOINT", "host:port"]),
    ] {
        let all = told(&[&[endpoint.as_str()][..], more].concat(), code).await;
        assert!(words.iter().all(|words| all.contains(words)), "{words:?}: {all}");
    }
}

#[tokio::test]
async fn a_connection_is_told_from_its_name_to_its_round_trips() {
    let endpoint = serve("127.0.0.1:0", ServerBuilder::new()).await.replace("127.0.0.1", "localhost");
    let output = debug("connect", &[&endpoint, "--samples", "3"], Some(CANARY)).await;
    let all = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{all}{}", text(&output.stderr));
    let words = [
        "localhost is ",
        &format!("dials {endpoint}"),
        &format!("connected to {endpoint} in "),
        "says HELLO: version 1",
        "it takes frames of 65536 bytes, messages of 4194304, metadata of 16384; 1024 calls at once",
        "a round trip takes ",
        " of 3\n",
        "OK: a Valkyrie server answers there",
    ];
    let mut rest = all.as_str();
    for words in words {
        let at = rest.find(words).unwrap_or_else(|| panic!("{words:?} is not in {rest:?} of {all}"));
        rest = &rest[at + words.len()..];
    }
    let output = debug("connect", &[&endpoint, "--json"], None).await;
    let steps: Vec<Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let trips = steps.iter().find(|step| step["step"] == "round_trips").unwrap();
    let [least, median, most] = ["least_us", "median_us", "most_us"].map(|key| trips[key].as_u64().unwrap());
    assert!(trips["count"] == 5 && least <= median && median <= most, "{trips}");
    assert_eq!(steps.last().unwrap()["code"], "OK");
}

/// Eight servers that are broken in eight ways: each is explained in one sentence, which says what to do.
#[tokio::test]
async fn a_broken_server_is_explained_in_one_sentence() {
    let listener = || TcpListener::bind("127.0.0.1:0").unwrap();
    let at = |listener: &TcpListener| format!("tcp://{}", listener.local_addr().unwrap());
    let refused = at(&listener());
    let (silent, web) = (listener(), listener());
    let stranger = at(&web);
    std::thread::spawn(move || {
        for stream in web.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.6\r\n");
        }
    });
    let own = rcgen::generate_simple_self_signed(["other.example".to_owned()]).unwrap();
    let (certificate, key) = (own.cert.pem(), own.signing_key.serialize_pem());
    let authority = File::new("eight.pem", &certificate);
    let tls = ServerBuilder::new().identity(certificate, key).open_to_all(true);
    let tls = serve("tls://127.0.0.1:0", tls).await;
    let newer = serve("127.0.0.1:0", ServerBuilder::new().versions(2..=2)).await;
    let tokens = StaticTokens::new().unwrap().token("another", Principal::new("sub:a")).unwrap();
    let guarded = serve("127.0.0.1:0", ServerBuilder::new().authenticator(tokens).open_to_all(true)).await;
    let (plain, limit) = (tls.replace("tls://", "tcp://"), ["--timeout-ms", "1500"]);
    let trusted = ["--trusted-certificates", &authority];
    let roots = ["--system-roots"];
    for (endpoint, more, code, words) in [
        (refused.as_str(), &limit[..], 13, "Nobody takes connections there: start the server"),
        ("tls://no.such.name.invalid:1", &roots, 13, "check how it is spelt"),
        (&tls, &trusted, 12, "for another name: connect by that name, or say it with --server-name"),
        (&newer, &[], 15, "speaks no version of the protocol that this program does"),
        (&stranger, &[], 15, "does not speak Valkyrie: check the port"),
        (&guarded, &[], 12, "does not take the token: check whom it is from"),
        (&at(&silent), &limit, 11, "takes connections there and says nothing: check the port"),
        (&plain, &[], 12, "not protected enough: use tls://"),
    ] {
        let output = debug("connect", &[&[endpoint, "--json"], more].concat(), Some(CANARY)).await;
        let all = text(&output.stdout) + &text(&output.stderr);
        let end: Value = serde_json::from_str(all.lines().next_back().unwrap()).unwrap();
        let sentence = end["explanation"].as_str().unwrap();
        assert!(sentence.contains(words), "{words}: {all}");
        assert!(sentence.ends_with('.') && !sentence.contains(". "), "{sentence}");
        assert_eq!(output.status.code(), Some(code), "{all}");
        assert!(!all.contains(CANARY), "{all}");
    }
}

/// What `debug` says is copied into tickets: it has no secret in it, and no long answer.
#[tokio::test]
async fn what_is_secret_or_endless_is_not_shown() {
    let answer = handler_fn(|_| async {
        let secrets = [
            ("authorization", "Bearer canary-9f31"),
            ("x-session-token", "canary-9f31"),
            ("x-plain", "seen"),
        ];
        let metadata =
            secrets.iter().fold(Metadata::new(), |all, (key, value)| all.with(*key, *value).unwrap());
        let line = vec![b'x'; 4 << 20];
        Ok(Reply::message(line).with_metadata(metadata.clone()).with_trailers(metadata))
    });
    let endpoint = serve("127.0.0.1:0", ServerBuilder::new().handler("/answer", answer)).await;
    let all = told(&[&endpoint, "/answer", "x", "--metadata", "authorization=canary-9f31"], 0).await;
    assert!(all.contains("OK: an answer of 4194304 bytes: xxx") && all.len() < 2_000, "{} bytes", all.len());
    let all = told(&[&endpoint, "/answer", "x", "--json"], 0).await;
    let end: Value = serde_json::from_str(all.lines().next_back().unwrap()).unwrap();
    let shown = serde_json::json!([
        ["authorization", "[hidden]"],
        ["x-session-token", "[hidden]"],
        ["x-plain", "seen"],
    ]);
    assert_eq!((&end["metadata"], &end["trailers"]), (&shown, &shown));
}

#[tokio::test]
async fn a_service_config_that_is_wrong_is_a_wrong_command_line() {
    let config =
        File::new("wrong.json", "{\n\"methods\": [{\"names\": [\"*\"],\n\"retry\": {\"max_attempts\": 9}}]}");
    let all = told(&["script://a", "--service-config", &config], 2).await;
    assert!(all.contains("line 3") && all.contains("max_attempts") && all.contains('9'), "{all}");
    told(&["script://a", "--service-config", "/no/such/file"], 2).await;
}
