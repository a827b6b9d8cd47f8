//! The command line as its users run it: a process that talks to a server over a real socket.
#![cfg(unix)]

use std::{
    io::{Read, Write},
    net::TcpListener,
    process::{Child, Command, Output, Stdio},
    sync::Arc,
};

use tokio::sync::Semaphore;
use valkyrie_sdk::{Code, EchoHandler, Reply, ServerBuilder, ServerControl, Status, handler_fn};

fn binary(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_valkyrie"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

async fn run(arguments: &[&str]) -> Output {
    let mut command = binary(arguments);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

async fn wait(process: Child) -> Output {
    tokio::task::spawn_blocking(move || process.wait_with_output().unwrap()).await.unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

struct Server {
    endpoint: String,
    control: ServerControl,
    /// One permit for each call of `/hang`.
    hanging: Arc<Semaphore>,
}

async fn server() -> Server {
    let hanging = Arc::new(Semaphore::new(0));
    let arrived = hanging.clone();
    let server = ServerBuilder::new()
        .bind("127.0.0.1:0")
        .handler("/echo", EchoHandler)
        .handler(
            "/metadata",
            handler_fn(|call| async move {
                let metadata = call.metadata().clone();
                Ok(Reply::message(&b"\xff\x1b[2J"[..]).with_metadata(metadata.clone()).with_trailers(metadata))
            }),
        )
        .handler(
            "/fail",
            handler_fn(|_| async { Err(Status::new(Code::NotFound, "no such thing\x1b[2J").with_detail("a.B", "c")) }),
        )
        .handler("/panic", handler_fn(|_| async { panic!("on purpose") }))
        .handler(
            "/hang",
            handler_fn(move |_| {
                arrived.add_permits(1);
                std::future::pending()
            }),
        )
        .handler(
            "/valkyrie.Metrics/Connections",
            handler_fn(|_| async {
                Ok(Reply::message(
                    r#"[{"id":7,"peer":"tcp://1.2.3.4:5\u001b[2J","state":"open","age_ms":1500,"streams":2,"calls":3,"bytes_in":40,"bytes_out":50}]"#,
                ))
            }),
        )
        .build()
        .await
        .unwrap();
    let endpoint = server.endpoints().remove(0);
    let control = server.control();
    tokio::spawn(async move { server.start().await });
    Server { endpoint, control, hanging }
}

#[tokio::test]
async fn send_prints_the_answer() {
    let server = server().await;
    let output = run(&["send", "--endpoint", &server.endpoint, "--message", "Hello"]).await;
    assert_eq!(
        (output.status.code(), &output.stdout[..]),
        (Some(0), &b"Hello"[..]),
        "{}",
        text(&output.stderr)
    );
}

#[tokio::test]
async fn send_passes_bytes_from_standard_input_through() {
    let server = server().await;
    let input: Vec<u8> = (0..1_000_000u32).map(|i| (i % 251) as u8).collect();
    let mut process = binary(&["send", "--endpoint", &server.endpoint, "--message", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    process.stdin.take().unwrap().write_all(&input).unwrap();
    let output = wait(process).await;
    assert!(output.stdout == input, "{} bytes; {}", output.stdout.len(), text(&output.stderr));
}

#[tokio::test]
async fn json_has_message_metadata_and_trailers() {
    let server = server().await;
    let output = run(&[
        "send",
        "--endpoint",
        &server.endpoint,
        "--message",
        "x",
        "--method",
        "/metadata",
        "--metadata",
        "x-a=b",
        "--metadata",
        "x-bin=00ff",
        "--json",
    ])
    .await;
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let entries = serde_json::json!([["x-a", "b"], ["x-bin", { "hex": "00ff" }]]);
    assert_eq!(json["message"], serde_json::json!({ "hex": "ff1b5b324a" }));
    assert_eq!((&json["metadata"], &json["trailers"]), (&entries, &entries));
}

#[tokio::test]
async fn exit_codes_follow_the_class() {
    let server = server().await;
    let stranger = TcpListener::bind("127.0.0.1:0").unwrap();
    let strange = format!("tcp://{}", stranger.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in stranger.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream
                .write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
    });
    for (endpoint, method, code, words) in [
        (server.endpoint.as_str(), "/echo", 0, ""),
        (&server.endpoint, "/fail", 10, "NOT_FOUND: no such thing\\u{1b}[2J"),
        (&server.endpoint, "/no/such/method", 11, "UNKNOWN_METHOD"),
        (&server.endpoint, "/panic", 14, "on purpose"),
        ("tcp://127.0.0.1:1", "/echo", 13, "CONNECT_FAILED"),
        ("tcp://", "/echo", 11, "INVALID_ENDPOINT"),
        (&strange, "/echo", 15, "BAD_MAGIC"),
    ] {
        for json in [false, true] {
            let mut arguments = vec!["send", "--endpoint", endpoint, "--message", "x", "--method", method];
            arguments.extend(json.then_some("--json"));
            let output = run(&arguments).await;
            let all = format!("{}{}", text(&output.stdout), text(&output.stderr));
            assert_eq!(output.status.code(), Some(code), "{arguments:?}: {all}");
            assert!(json || all.contains(words), "{arguments:?}: {all}");
        }
    }
    let output = run(&["send", "--endpoint", &server.endpoint]).await;
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
}

#[tokio::test]
async fn errors_in_json_have_every_part() {
    let server = server().await;
    let output =
        run(&["send", "--endpoint", &server.endpoint, "--message", "x", "--method", "/fail", "--json"]).await;
    let error = serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()["error"].take();
    assert_eq!(
        (&error["code"], &error["number"], &error["class"]),
        (&"NOT_FOUND".into(), &5.into(), &"application".into())
    );
    assert_eq!(error["details"], serde_json::json!([{ "type": "a.B", "value": "c" }]));
}

#[tokio::test]
async fn benchmark_requests_are_per_connection() {
    let server = server().await;
    let arguments = ["benchmark", "--endpoint", &server.endpoint, "--connections", "3", "--requests", "7"];
    let output = run(&arguments).await;
    let table = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{table}{}", text(&output.stderr));
    assert!(table.contains("7 per connection, 21 in all"), "{table}");
    assert!(table.contains("p99.99"), "{table}");
    let stats = server.control.stats();
    assert_eq!((stats.calls_total, stats.connections_total), (21, 3));

    let output = run(&[&arguments[..], &["--in-flight", "5", "--json"]].concat()).await;
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&json["succeeded"], &json["failed"]), (&21.into(), &0.into()), "{json}");
    assert!(json["latency_us"]["p99.9"].as_f64().unwrap() > 0.0, "{json}");
}

/// With a rate that the server cannot keep, calls wait for their turn, and their latency must show it. A message of 1 MiB
/// takes long beside the microsecond between two calls.
#[tokio::test]
async fn a_rate_measures_from_when_calls_were_due() {
    let server = server().await;
    let common =
        ["benchmark", "--endpoint", &server.endpoint, "--connections", "1", "--requests", "20", "--json"];
    let measure = async |rate: &[&str]| -> serde_json::Value {
        let output = run(&[&common[..], &["--size", "1048576"], rate].concat()).await;
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let closed = measure(&[]).await;
    let due = measure(&["--rate", "1000000"]).await;
    assert_eq!((&closed["succeeded"], &due["succeeded"]), (&20.into(), &20.into()));
    assert_eq!((&closed["rate"], &due["rate"]), (&serde_json::Value::Null, &1_000_000.into()));
    // The last of 20 calls waits for 19 others, each of which takes at least as long as the fastest.
    let fastest = due["latency_us"]["min"].as_f64().unwrap();
    let last = due["latency_us"]["max"].as_f64().unwrap();
    assert!(last > 10.0 * fastest.min(closed["latency_us"]["min"].as_f64().unwrap()), "{due}");
}

#[tokio::test]
async fn an_interrupted_benchmark_prints_what_it_has() {
    let server = server().await;
    let process =
        binary(&["benchmark", "--endpoint", &server.endpoint, "--connections", "1", "--method", "/hang"])
            .spawn()
            .unwrap();
    server.hanging.acquire().await.unwrap().forget();
    let killed = Command::new("kill").args(["-s", "INT", &process.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let output = wait(process).await;
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("interrupted: partial"), "{}", text(&output.stdout));
}

#[tokio::test]
async fn a_benchmark_that_fails_says_how_often_and_why() {
    let server = server().await;
    let output = run(&[
        "benchmark",
        "--endpoint",
        &server.endpoint,
        "--connections",
        "2",
        "--requests",
        "3",
        "--method",
        "/fail",
    ])
    .await;
    assert_eq!(output.status.code(), Some(10));
    assert!(text(&output.stdout).contains("6 × NOT_FOUND (NONE)"), "{}", text(&output.stdout));
}

#[tokio::test]
async fn a_reader_that_left_is_no_error() {
    let server = server().await;
    let message = "x".repeat(100_000);
    let mut process =
        binary(&["send", "--endpoint", &server.endpoint, "--message", &message]).spawn().unwrap();
    drop(process.stdout.take());
    let output = wait(process).await;
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
}

#[tokio::test]
async fn debug_connections_prints_a_table() {
    let server = server().await;
    let output = run(&["debug", "connections", "--endpoint", &server.endpoint]).await;
    let table = text(&output.stdout);
    for word in ["tcp://1.2.3.4:5\\u{1b}[2J", "open", "1.5 s", "bytes out"] {
        assert!(table.contains(word), "{table}{}", text(&output.stderr));
    }
}

#[tokio::test]
async fn completion_names_the_commands() {
    let output = run(&["completion", "bash"]).await;
    assert!(text(&output.stdout).contains("benchmark"));
}
