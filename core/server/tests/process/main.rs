//! The server as its users run it: a process, real sockets, real signals.
#![cfg(unix)]

mod admin;
mod config;
mod exposition;
#[cfg(target_os = "linux")]
mod faults;
mod notify;
mod reload;
mod security;
mod telemetry;

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    path::PathBuf,
    process::{Child, ChildStderr, Command, Output, Stdio},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use valkyrie_sdk::{CallOptions, Client, Code, Metadata, Reason, RecvStream, Security, SendStream};

/// The server that was built with the tests, or the installed one where `VALKYRIE_TEST_PROGRAMS` names the folder.
fn program() -> PathBuf {
    match std::env::var_os("VALKYRIE_TEST_PROGRAMS") {
        Some(folder) => PathBuf::from(folder).join("valkyrie-server"),
        None => env!("CARGO_BIN_EXE_valkyrie-server").into(),
    }
}

fn binary() -> Command {
    let mut command = Command::new(program());
    // Keys of the configuration are taken from there.
    for (variable, _) in
        std::env::vars_os().filter(|(variable, _)| variable.to_string_lossy().starts_with("VALKYRIE_"))
    {
        command.env_remove(variable);
    }
    command
}

fn run(arguments: &[&str]) -> Output {
    binary().args(arguments).output().unwrap()
}

/// A folder that goes with its test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("valkyrie-server-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    fn write(&self, name: &str, text: &str) -> String {
        // Renamed into place, as the policy asks for.
        fs::write(self.0.join("new"), text).unwrap();
        fs::rename(self.0.join("new"), self.0.join(name)).unwrap();
        self.path(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

struct Server {
    process: Child,
    endpoints: Vec<String>,
    /// Where the admin port is, if there is one.
    admin: String,
    log: BufReader<ChildStderr>,
    /// What was read of the log.
    heard: String,
}

impl Server {
    fn start(arguments: &[&str]) -> Self {
        Self::spawn(&mut binary(), arguments)
    }

    fn spawn(command: &mut Command, arguments: &[&str]) -> Self {
        let mut process = command
            .arg("start")
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(process.stderr.take().unwrap());
        let mut stdout = BufReader::new(process.stdout.take().unwrap());
        let (mut line, mut admin) = (String::new(), String::new());
        stdout.read_line(&mut line).unwrap();
        if arguments.contains(&"--admin") {
            stdout.read_line(&mut admin).unwrap();
        }
        let admin = admin.trim().trim_start_matches("admin ").to_owned();
        let endpoints =
            line.trim().strip_prefix("listening ").expect(&line).split(' ').map(str::to_owned).collect();
        Self { process, endpoints, admin, log, heard: String::new() }
    }

    fn endpoint(&self, scheme: &str) -> &str {
        self.endpoints.iter().find(|endpoint| endpoint.starts_with(scheme)).unwrap()
    }

    async fn client(&self) -> Client {
        Client::connect(self.endpoint("tcp")).await.unwrap()
    }

    fn signal(&self, name: &str) {
        let killed =
            Command::new("kill").args(["-s", name, &self.process.id().to_string()]).status().unwrap();
        assert!(killed.success());
    }

    /// Reads the log until a line has the word.
    fn wait_for_log(&mut self, word: &str) -> String {
        let mut line = String::new();
        while self.log.read_line(&mut line).unwrap() > 0 {
            self.heard.push_str(&line);
            if line.contains(word) {
                return line;
            }
            line.clear();
        }
        panic!("the log ended before {word:?}");
    }

    /// The exit code and the rest of the log.
    fn ended(&mut self) -> (Option<i32>, String) {
        let mut rest = String::new();
        self.log.read_to_string(&mut rest).unwrap();
        (self.process.wait().unwrap().code(), rest)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        // A killed process leaves its socket behind.
        for path in self.endpoints.iter().filter_map(|endpoint| endpoint.strip_prefix("unix://")) {
            let _ = fs::remove_file(path);
        }
    }
}

async fn open_echo(client: &Client) -> (SendStream, RecvStream) {
    let (mut send, mut recv) = client.open("/echo", CallOptions::new()).await.unwrap();
    send.send("ping").await.unwrap();
    assert_eq!(recv.recv().await.unwrap().unwrap(), "ping");
    (send, recv)
}

#[tokio::test]
async fn echoes_on_every_transport() {
    let folder = Folder::new();
    let unix = format!("unix://{}", folder.path("sock"));
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let (certificates, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let server = Server::start(&[
        "--bind",
        "127.0.0.1:0",
        "--bind",
        &unix,
        "--bind",
        "quic://127.0.0.1:0",
        "--certificates",
        &folder.write("echo.pem", &certificates),
        "--private-key",
        &folder.write("echo.key", &key),
        "--open-to-all",
        "true",
    ]);
    for scheme in ["tcp", "ws", "unix", "quic"] {
        let builder = Client::builder().endpoint(server.endpoint(scheme)).min_security(Security::Insecure);
        let client = builder.trusted_certificates(certificates.clone()).build().await.unwrap();
        assert_eq!(client.request("Hello, World!").await.unwrap(), "Hello, World!", "{scheme}");
        open_echo(&client).await;
    }
}

/// FEATURES' N8 with 400 connections, so that no machine runs out of descriptors: `benches/idle.rs` has 19,000. A debug
/// build takes about as much as a release build; a read buffer that stayed would be 4 KiB more.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn n8_a_connection_at_rest_costs_less_than_10_kib() {
    let server = Server::start(&["--bind", "127.0.0.1:0"]);
    let resident = || -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", server.process.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    let mut clients = Vec::new();
    let mut before = 0;
    for at in 0..500 {
        // The first hundred pay for what the process needs in any case.
        if at == 100 {
            before = resident();
        }
        let client = server.client().await;
        client.request("hello").await.unwrap();
        clients.push(client);
    }
    let grown = resident() - before;
    println!("{grown} KiB for 400 connections");
    assert!(grown < 400 * 10, "{grown} KiB for 400 connections");
}

#[tokio::test]
async fn health_is_told_per_service() {
    let server = Server::start(&["--bind", "127.0.0.1:0", "--metrics", "false"]);
    let client = server.client().await;
    for (service, health) in [("", "serving"), ("/echo", "serving"), ("valkyrie.Metrics", "not_serving")] {
        assert_eq!(
            client.call("/valkyrie.Health/Check", service).await.unwrap().message,
            health,
            "{service}"
        );
    }
    assert_eq!(client.call("/valkyrie.Health/Check", "nobody").await.unwrap_err().code(), Code::NotFound);
    let mut watched = Vec::new();
    for service in ["/echo", "valkyrie.Metrics"] {
        watched.push(client.stream("/valkyrie.Health/Watch", service, CallOptions::new()).await.unwrap());
    }
    for (watch, health) in watched.iter_mut().zip(["serving", "not_serving"]) {
        assert_eq!(watch.recv().await.unwrap().unwrap(), health);
    }
    server.signal("TERM");
    let [echo, metrics] = &mut watched[..] else { panic!("two watches") };
    assert_eq!(echo.recv().await.unwrap().unwrap(), "draining");
    // Nothing has changed about this one.
    for watch in [echo, metrics] {
        assert_eq!(watch.recv().await.unwrap(), None);
    }
}

#[tokio::test]
async fn metrics_count_and_can_be_turned_off() {
    let server = Server::start(&["--bind", "127.0.0.1:0"]);
    let client = server.client().await;
    client.request("one").await.unwrap();
    let text = client.call("/valkyrie.Metrics/Get", "").await.unwrap().message;
    let text = String::from_utf8(text.to_vec()).unwrap();
    assert!(text.contains("\nvalkyrie_calls_total 2\n"), "{text}");
    assert!(text.contains("\nvalkyrie_connections 1\n"), "{text}");
    assert!(text.contains("\nvalkyrie_server_calls_total{method=\"/echo\",code=\"OK\"} 1\n"), "{text}");
    let list = client.call("/valkyrie.Metrics/Connections", "").await.unwrap().message;
    let list: serde_json::Value = serde_json::from_slice(&list).unwrap();
    assert_eq!(list[0]["state"], "open", "{list}");
    assert_eq!(list[0]["streams"], 1, "{list}");
    assert!(list[0]["bytes_in"].as_u64().unwrap() > 0, "{list}");

    let server = Server::start(&["--bind", "127.0.0.1:0", "--metrics", "false"]);
    let refused = server.client().await.call("/valkyrie.Metrics/Get", "").await.unwrap_err();
    assert_eq!(refused.reason(), Reason::UNKNOWN_METHOD);
}

/// The keys of what a server does about load, repeated calls and connections do what they say.
#[tokio::test]
async fn keys_of_load_and_connections_are_in_force() {
    let folder = Folder::new();
    let file = folder.write(
        "server.yaml",
        "bind: ['127.0.0.1:0']\nconcurrency_limit: true\nconcurrency_initial: 7\nconcurrency_min: 3\ndedup: true\n\
         max_connection_age_ms: 500\nconnection_grace_ms: 1000\nmax_connection_idle_ms: 60000\nkeepalive_ms: 10000\n",
    );
    let server = Server::start(&["--config", &file]);
    let client = server.client().await;
    for _ in 0..2 {
        let once = CallOptions::new().with_idempotency_key("once");
        assert_eq!(client.call_with("/echo", "x", once).await.unwrap().message, "x");
    }
    let mut text = String::new();
    // Its age comes to the connection, and the client has another one then.
    while !text.contains("\nvalkyrie_server_connections_closed_total{why=\"age\"} 1\n") {
        let metrics = client.call("/valkyrie.Metrics/Get", "").await.unwrap().message;
        text = String::from_utf8(metrics.to_vec()).unwrap();
    }
    for line in
        ["concurrency_limit 7", "dedup_keys 1", "dedup_replayed_total 1", "shed_total{class=\"bulk\"} 0"]
    {
        assert!(text.contains(&format!("\nvalkyrie_server_{line}\n")), "{line}: {text}");
    }

    let wrong = folder.write("wrong.yaml", "metrics: true\nconcurrency_initial: 2\n");
    let output = run(&["check", &wrong]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("concurrency_min: 4 is more than concurrency_initial, 2"), "{said}");
}

#[tokio::test]
async fn a_digest_of_what_came_is_in_the_trailers() {
    let server = Server::start(&["--bind", "127.0.0.1:0"]);
    let client = server.client().await;
    let options = CallOptions::new().with_metadata(Metadata::new().with("want-digest", "sha-256").unwrap());
    let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"; // of "abc", FIPS 180-4
    let response = client.call_with("/echo", "abc", options.clone()).await.unwrap();
    assert_eq!(response.trailers.get_str("digest-sha-256"), Some(digest));

    let (mut send, mut recv) = client.open("/echo", options).await.unwrap();
    for message in ["a", "bc"] {
        send.send(message).await.unwrap();
        assert_eq!(recv.recv().await.unwrap().unwrap(), message);
    }
    send.finish().await.unwrap();
    assert_eq!(recv.recv().await.unwrap(), None);
    assert_eq!(recv.trailers().get_str("digest-sha-256"), Some(digest));
}

#[tokio::test]
async fn sigterm_lets_streams_finish() {
    let mut server = Server::start(&["--bind", "127.0.0.1:0"]);
    let client = server.client().await;
    let mut watch = client.stream("/valkyrie.Health/Watch", "", CallOptions::new()).await.unwrap();
    assert_eq!(watch.recv().await.unwrap().unwrap(), "serving");
    let mut streams = Vec::new();
    for _ in 0..100 {
        streams.push(open_echo(&client).await);
    }
    server.signal("TERM");
    assert_eq!(watch.recv().await.unwrap().unwrap(), "draining");
    assert_eq!(watch.recv().await.unwrap(), None);
    for (mut send, mut recv) in streams {
        send.send("still here").await.unwrap();
        assert_eq!(recv.recv().await.unwrap().unwrap(), "still here");
        send.finish().await.unwrap();
        assert_eq!(recv.recv().await.unwrap(), None);
    }
    let (code, log) = server.ended();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("draining") && log.contains("ended") && !log.contains("cut"), "{log}");
}

#[tokio::test]
async fn the_drain_timeout_cuts_what_does_not_finish() {
    let mut server = Server::start(&["--bind", "127.0.0.1:0", "--drain-timeout-ms", "200"]);
    let client = server.client().await;
    let mut streams = Vec::new();
    for _ in 0..100 {
        streams.push(open_echo(&client).await);
    }
    server.signal("INT");
    for (_send, mut recv) in streams {
        assert_eq!(recv.recv().await.unwrap_err().code(), Code::Unavailable);
    }
    let (code, log) = server.ended();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("calls were cut"), "{log}");
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let mut server = Server::start(&["--bind", "127.0.0.1:0"]);
    let client = server.client().await;
    let (_send, mut recv) = open_echo(&client).await;
    server.signal("TERM");
    server.wait_for_log("draining");
    server.signal("TERM");
    let (code, log) = server.ended();
    assert_eq!(code, Some(130), "{log}");
    assert_eq!(recv.recv().await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn json_logs_carry_the_correlation_id() {
    let mut server =
        Server::start(&["--bind", "127.0.0.1:0", "--log-format", "json", "--log-level", "debug"]);
    let client = server.client().await;
    let metadata = Metadata::new().with("x-correlation-id", "order-7").unwrap();
    client.call_with("/echo", "x", CallOptions::new().with_metadata(metadata)).await.unwrap();
    let line: serde_json::Value = serde_json::from_str(&server.wait_for_log("call ended")).unwrap();
    assert_eq!(line["correlation_id"], "order-7");
    assert_eq!(line["code"], "OK");
    client.request("x").await.unwrap();
    let line: serde_json::Value = serde_json::from_str(&server.wait_for_log("call ended")).unwrap();
    assert_ne!(line["correlation_id"], "");
}

/// One id from the caller's command to the server's log, in both of its formats.
#[test]
fn a_correlation_id_goes_from_process_to_process() {
    for (format, shown) in
        [("text", "correlation_id=\"order \\\"7\\\"\""), ("json", r#""correlation_id":"order \"7\"""#)]
    {
        let mut server =
            Server::start(&["--bind", "127.0.0.1:0", "--log-format", format, "--log-level", "debug"]);
        let endpoint = server.endpoint("tcp").to_owned();
        let id = "x-correlation-id=order \"7\"";
        let sent = ["send", "--endpoint", &endpoint, "--message", "x", "--metadata", id];
        assert_eq!(security::valkyrie(&sent, 0), "x");
        let line = server.wait_for_log("call ended");
        assert!(line.contains(shown), "{shown}: {line}");
    }
}

/// Who waits for a drain sees how far it is: when that changes, and no line a second for nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_drain_says_how_far_it_is() {
    let mut server = Server::start(&["--bind", "127.0.0.1:0", "--drain-timeout-ms", "60000"]);
    let client = server.client().await;
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(open_echo(&client).await);
    }
    server.signal("TERM");
    let line = server.wait_for_log("draining");
    for word in ["signal=\"SIGTERM\"", "calls=3", "connections=1", "limit_ms=60000"] {
        assert!(line.contains(word), "{word}: {line}");
    }
    for left in [2, 1] {
        let (mut send, mut recv) = streams.pop().unwrap();
        send.finish().await.unwrap();
        assert_eq!(recv.recv().await.unwrap(), None);
        let line = server.wait_for_log("still draining");
        assert!(line.contains(&format!("calls={left}")), "{line}");
    }
    drop(streams);
    let (code, log) = server.ended();
    assert!(code == Some(0) && !log.contains("still draining"), "{log}");
}

#[test]
fn completions_and_the_manual_are_the_programs_own() {
    let folder = Folder::new();
    for shell in ["bash", "zsh", "fish"] {
        let output = run(&["completions", shell]);
        assert!(output.status.success());
        assert!(String::from_utf8_lossy(&output.stdout).contains("drain-timeout-ms"), "{shell}");
    }
    let pages = folder.path("man1");
    assert!(run(&["man", "--dir", &pages]).status.success());
    let page = fs::read_to_string(format!("{pages}/valkyrie-server-start.1")).unwrap();
    assert!(page.contains(".SH SYNOPSIS") && page.contains("drain\\-timeout"), "{page}");
    assert!(String::from_utf8_lossy(&run(&["man"]).stdout).contains(".SH NAME"));
}

#[test]
fn warns_of_open_addresses_only() {
    for (bind, warned) in [("0.0.0.0:0", true), ("127.0.0.1:0", false)] {
        let mut server = Server::start(&["--bind", bind]);
        server.signal("TERM");
        let (_, log) = server.ended();
        assert_eq!(log.matches("insecure").count(), usize::from(warned), "{log}");
    }
}

#[test]
fn a_file_sets_what_flags_do_not() {
    let folder = Folder::new();
    let file = folder.write("start.toml", "bind = [\"127.0.0.1:0\"]\nlog_level = \"error\"\n");
    let mut server = Server::start(&["--config", &file, "--log-level", "info"]);
    assert!(server.endpoint("tcp").starts_with("tcp://127.0.0.1:"));
    server.signal("TERM");
    assert!(server.ended().1.contains("draining"));
}

#[test]
fn the_environment_stands_between_flags_and_the_file() {
    let folder = Folder::new();
    let file = folder.write("server.toml", "metrics = false\ndrain_timeout_ms = 5\nlog_level = \"error\"\n");
    let show = |variables: &[(&str, &str)], arguments: &[&str]| {
        let mut command = binary();
        command.args(["config", "show", "--config", &file]).args(arguments).envs(variables.iter().copied());
        let Output { status, stdout, stderr } = command.output().unwrap();
        (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
    };
    let variables =
        [("VALKYRIE_DRAIN_TIMEOUT_MS", "6"), ("VALKYRIE_LOG_LEVEL", "warn"), ("VALKYRIE_BNID", "x")];
    let (code, text, errors) = show(&variables, &["--log-level", "debug"]);
    assert_eq!(code, Some(0), "{errors}");
    for line in [
        format!("metrics: false  # {file}:1"),
        "drain_timeout_ms: 6  # environment, VALKYRIE_DRAIN_TIMEOUT_MS".to_owned(),
        "log_level: \"debug\"  # flag, --log-level".to_owned(),
        "max_connections: 65536  # default".to_owned(),
    ] {
        assert!(text.lines().any(|found| found == line), "no {line} in {text}");
    }
    assert!(errors.contains("VALKYRIE_BNID begins as a key"), "{errors}");
    let (code, _, error) = show(&[("VALKYRIE_METRICS", "perhaps")], &[]);
    assert_eq!(code, Some(2));
    assert!(error.contains("environment: VALKYRIE_METRICS: \"perhaps\": write true or false"), "{error}");
    // A server takes them as well.
    let mut command = binary();
    command.args(["start", "--bind", "127.0.0.1:0"]).env("VALKYRIE_CONCURRENCY_MIN", "21");
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("environment: VALKYRIE_CONCURRENCY_MIN: 21 is more than"), "{error}");
}

#[test]
fn check_names_line_and_key() {
    let folder = Folder::new();
    let file = folder.write("bad.yaml", "metrics: true\n\nbnid: ['127.0.0.1:0']\n");
    for arguments in [&["check", &file][..], &["start", "--config", &file]] {
        let output = run(arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(&format!("{file}:3:1: bnid: unknown key; did you mean bind?")), "{error}");
    }
}

#[test]
fn generated_files_pass_the_check() {
    let folder = Folder::new();
    for format in ["yaml", "toml", "json"] {
        let generated = run(&["config", "generate", "--format", format]);
        let file =
            folder.write(&format!("generated.{format}"), &String::from_utf8(generated.stdout).unwrap());
        let checked = run(&["check", &file]);
        assert_eq!(checked.status.code(), Some(0), "{}", String::from_utf8_lossy(&checked.stderr));
    }
}

#[tokio::test]
async fn exit_codes_tell_usage_from_failure() {
    let server = Server::start(&["--bind", "127.0.0.1:0"]);
    let taken = server.endpoint("tcp");
    for (arguments, code, words) in [
        (&["start", "--bind", taken][..], 1, "cannot listen"),
        (&["start", "--bind", "tcp://"], 2, "names no address"),
        (&["start", "--bnid", "x"], 2, "--bnid"),
        (&["check", "/no/such/file.yaml"], 2, "/no/such/file.yaml"),
        (&["start", "--bind", "quic://127.0.0.1:0"], 2, "needs certificates and private_key"),
        (&["start", "--bind", "127.0.0.1:0", "--private-key", "x"], 2, "certificates"),
        (&["check", "/etc/hostname"], 2, "name it .yaml"),
        (&["start", "--bind", "127.0.0.1:0", "--otlp-endpoint", "localhost:4318"], 2, "--otlp-endpoint: "),
    ] {
        let output = run(arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
        assert!(error.contains(words), "{arguments:?}: {error}");
    }
}
