//! The command line as its users run it: a process that talks to a server over a real socket.
#![cfg(unix)]

mod program;

use std::{
    io::{Read, Write},
    net::TcpListener,
    process::{Child, Command, Output, Stdio},
    sync::Arc,
};

use tokio::sync::Semaphore;
use valkyrie_sdk::{
    Code, EchoHandler, Principal, Reply, ServerBuilder, ServerControl, StaticTokens, Status, handler_fn,
};

fn binary(arguments: &[&str]) -> Command {
    let mut command = Command::new(program::valkyrie());
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

#[tokio::test]
async fn a_benchmark_of_streams_counts_their_messages() {
    let server = server().await;
    let arguments = ["benchmark", "--endpoint", &server.endpoint, "--connections", "2", "--requests", "3"];
    let output = run(&[&arguments[..], &["--stream", "5", "--size", "70000"]].concat()).await;
    let table = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{table}{}", text(&output.stderr));
    for words in ["5 messages sent in each, 30 came back in all", "messages received", "70000 bytes"] {
        assert!(table.contains(words), "{words}: {table}");
    }
    let output = run(&[&arguments[..], &["--stream", "5", "--json"]].concat()).await;
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&json["succeeded"], &json["messages_received"]), (&6.into(), &30.into()), "{json}");
    let output = run(&[&arguments[..], &["--stream", "2", "--method", "/fail"]].concat()).await;
    assert_eq!(output.status.code(), Some(10), "{}", text(&output.stdout));
    let hang = ["--stream", "1", "--method", "/hang", "--timeout-ms", "300"];
    let output = run(&[&arguments[..], &hang].concat()).await;
    assert_eq!(output.status.code(), Some(11), "{}", text(&output.stdout));
}

/// A server whose delays are known gives percentiles that are known, within 1 % and what this machine is late by, which the server measures, too.
#[tokio::test(flavor = "multi_thread")]
async fn known_delays_give_known_percentiles() {
    use std::{
        sync::{
            Mutex,
            atomic::{AtomicU64, Ordering::Relaxed},
        },
        time::{Duration, Instant},
    };
    // Of 100 calls 89 take 0.5 s, ten 1 s, and one 2 s: p50, p90 to p99, and the most.
    let (count, took) = (AtomicU64::new(0), Arc::new(Mutex::new(Vec::new())));
    let all = took.clone();
    let handler = handler_fn(move |_| {
        let (began, all) = (Instant::now(), all.clone());
        let delay = match count.fetch_add(1, Relaxed) {
            0 => 2_000,
            1..=10 => 1_000,
            _ => 500,
        };
        async move {
            tokio::time::sleep(Duration::from_millis(delay)).await;
            all.lock().unwrap().push(began.elapsed().as_secs_f64() * 1e6);
            Ok(Reply::message("slept"))
        }
    });
    let server = ServerBuilder::new().bind("127.0.0.1:0").handler("/sleep", handler).build().await.unwrap();
    let endpoint = server.endpoints().remove(0);
    tokio::spawn(async move { server.start().await });
    let calls =
        ["--connections", "10", "--in-flight", "10", "--requests", "10", "--method", "/sleep", "--json"];
    let output = run(&[&["benchmark", "--endpoint", &endpoint][..], &calls].concat()).await;
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut took = std::mem::take(&mut *took.lock().unwrap());
    took.sort_by(f64::total_cmp);
    assert_eq!((&json["succeeded"], took.len()), (&100.into(), 100), "{json}");
    for (name, least, rank) in [
        ("min", 500_000.0, 0),
        ("p50", 500_000.0, 49),
        ("p75", 500_000.0, 74),
        ("p90", 1_000_000.0, 89),
        ("p99", 1_000_000.0, 98),
        ("p99.9", 2_000_000.0, 99),
        ("max", 2_000_000.0, 99),
    ] {
        let found = json["latency_us"][name].as_f64().unwrap();
        println!("{name}: {found:.0} µs, and the server measured {:.0}", took[rank]);
        // The histogram rounds to three digits.
        assert!(found >= least * 0.999, "{name} is {found}: {json}");
        let most = took[rank] * 1.01 + 100_000.0;
        assert!(found <= most, "{name} is {found}, and the server measured {}: {json}", took[rank]);
    }
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
async fn a_benchmark_lasts_as_long_as_it_is_told_and_compares_itself() {
    let server = server().await;
    let folder = folder("benchmark");
    std::fs::create_dir(&folder).unwrap();
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let common = ["benchmark", "--endpoint", &server.endpoint, "--connections", "2"];
    // 40 calls are due while it counts, and 20 before.
    let timed = ["--duration", "0.2", "--warm-up", "0.1", "--rate", "200", "--json"];
    let output = run(&[&common[..], &timed].concat()).await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let calls = server.control.stats().calls_total;
    assert_eq!((&json["succeeded"], calls), (&40.into(), 60), "{json}");
    assert_eq!(
        (&json["duration_s"], &json["requests_per_connection"]),
        (&0.2.into(), &serde_json::Value::Null)
    );

    std::fs::write(path("earlier.json"), &output.stdout).unwrap();
    let (hdr, earlier) = (path("out.hgrm"), path("earlier.json"));
    let compared = ["--requests", "50", "--hdr", &hdr, "--compare", &earlier];
    let output = run(&[&common[..], &compared].concat()).await;
    let table = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{table}{}", text(&output.stderr));
    let p50 = table.lines().find(|line| line.starts_with("  p50 ")).unwrap();
    assert!(p50.contains(&format!(" x {:.1}", json["latency_us"]["p50"].as_f64().unwrap())), "{table}");
    let shares = table.lines().filter_map(|line| line.trim().strip_prefix("≤ ")?.split_whitespace().nth(1));
    let sum: f64 = shares.map(|share| share.parse::<f64>().unwrap()).sum();
    assert!((99.9..100.1).contains(&sum), "{table}");
    // Columns of value, percentile and count: the last has all of them.
    let written = std::fs::read_to_string(&hdr).unwrap();
    let last = written.lines().rfind(|line| !line.starts_with('#')).unwrap();
    let columns: Vec<_> = last.split_whitespace().collect();
    assert_eq!(columns[1..], ["1.000000000000", "100"], "{written}");

    let other = path("other.json");
    std::fs::write(&other, "{}").unwrap();
    for (arguments, words) in [
        (["--compare", &other], "is no result of benchmark --json"),
        (["--compare", "/no/such/file"], "No such file"),
        (["--duration", "0"], "write seconds from 0.001 to 86400"),
        (["--warm-up", "x"], "write seconds from 0.001 to 86400"),
    ] {
        let output = run(&[&common[..], &arguments].concat()).await;
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output.stderr).contains(words), "{}", text(&output.stderr));
    }
    let output = run(&[&common[..], &["--requests", "1", "--hdr", "/no/such/folder/x"]].concat()).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("/no/such/folder/x: No such file"), "{}", text(&output.stderr));
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

/// What a shell completes, by the shell itself: bash has to be there, the others are asked where they are.
#[tokio::test]
async fn shells_complete_commands_and_flags() {
    let folder = folder("completions");
    std::fs::create_dir_all(&folder).unwrap();
    let write = async |shell: &str| {
        let output = run(&["completions", shell]).await;
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let path = folder.join(shell);
        std::fs::write(&path, &output.stdout).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let script = write("bash").await;
    for (words, found) in [
        ("valkyrie se", &["send"][..]),
        ("valkyrie debug c", &["call", "connect", "connections"]),
        ("valkyrie send --str", &["--stream"]),
        ("valkyrie send --output b", &["base64"]),
    ] {
        let number = words.split(' ').count() - 1;
        let last = words.rsplit(' ').next().unwrap();
        let before = words.split(' ').nth(number - 1).unwrap();
        let ask = format!(
            "source '{script}'; COMP_WORDS=({words}); COMP_CWORD={number}; _valkyrie valkyrie '{last}' '{before}'; echo \"${{COMPREPLY[@]}}\""
        );
        let output = Command::new("bash").args(["--norc", "-c", &ask]).output().unwrap();
        let said = text(&output.stdout);
        let mut said: Vec<_> = said.split_whitespace().collect();
        said.sort_unstable();
        assert_eq!(said, found, "{words}: {}", text(&output.stderr));
    }
    for (shell, arguments) in [("zsh", ["-n"]), ("fish", ["--no-execute"])] {
        let script = write(shell).await;
        if let Ok(output) = Command::new(shell).args(arguments).arg(&script).output() {
            assert!(output.status.success(), "{shell}: {}", text(&output.stderr));
        }
    }
    // As it was called.
    assert_eq!(run(&["completion", "bash"]).await.status.code(), Some(0));
}

/// A page for each command, which man's own formatter reads without a word of complaint where it is there.
#[tokio::test]
async fn every_command_has_a_manual_page() {
    let folder = folder("man");
    let output = run(&["man", "--dir", folder.to_str().unwrap()]).await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    for page in
        ["valkyrie", "valkyrie-send", "valkyrie-interactive", "valkyrie-benchmark", "valkyrie-debug-connect"]
    {
        let path = folder.join(format!("{page}.1"));
        let source = std::fs::read_to_string(&path).unwrap();
        assert!(source.contains(".SH NAME") && source.contains(".SH SYNOPSIS"), "{page}: {source}");
        if let Ok(output) =
            Command::new("groff").args(["-Kutf8", "-man", "-Tutf8", "-ww", "-z"]).arg(&path).output()
        {
            assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()), "{page}");
        }
    }
    let page = text(&run(&["man"]).await.stdout);
    assert!(page.contains("valkyrie\\-send(1)"), "{page}");
    let output = run(&["man", "--dir", "/dev/null/x"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("/dev/null/x: "), "{}", text(&output.stderr));
}

/// The page that shows the commands has each of them, and the exit codes that help has.
#[tokio::test]
async fn the_page_of_the_command_line_is_complete() {
    let page = include_str!("../../../docs/cli.md");
    let help = text(&run(&["--help"]).await.stdout);
    let commands = help.split("Commands:").nth(1).unwrap().split("Options:").next().unwrap();
    let verbs: Vec<_> =
        commands.lines().filter_map(|line| line.strip_prefix("  ")?.split(' ').next()).collect();
    assert!(verbs.contains(&"interactive"), "{help}");
    for verb in verbs.into_iter().filter(|verb| !["", "help"].contains(verb)) {
        assert!(page.contains(&format!("`{verb}`")), "{verb}");
    }
    for code in ["0", "1", "2", "10", "11", "12", "13", "14", "15", "130"] {
        assert!(help.contains(&format!("\n  {code} ")) && page.contains(&format!("\n| {code} |")), "{code}");
    }
}

/// Help says what a command does, with examples and exit codes.
#[tokio::test]
async fn help_has_examples_and_exit_codes() {
    for (verb, more) in [
        (&["send"][..], "the end of the input ends this side"),
        (&["interactive"], "Ctrl-D leaves"),
        (&["benchmark"], "100 connections with 1000 requests make 100,000 calls"),
        (&["debug", "call"], "names, connections, attempts, waits"),
        (&["debug", "connect"], "how long round trips take"),
    ] {
        let mut command = binary(verb);
        let output = wait(command.arg("--help").spawn().unwrap()).await;
        let help = text(&output.stdout);
        assert_eq!(output.status.code(), Some(0));
        assert!(help.contains("Examples:") && help.contains("Exit codes, by the class"), "{help}");
        let in_a_row = help.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(in_a_row.contains(more) && !help.contains('\x1b'), "{help}");
    }
}

/// A folder for one test's files, empty.
fn folder(name: &str) -> std::path::PathBuf {
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&folder);
    folder
}

#[tokio::test]
async fn certificates_that_were_made_serve_a_call() {
    use std::os::unix::fs::PermissionsExt;
    let folder = folder("cert-serves");
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let output = run(&["cert", "ca", "--out", &path("ca")]).await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("next: valkyrie cert leaf --ca "), "{}", text(&output.stdout));
    let (ca, own) = (path("ca"), path("own"));
    let leaf = ["cert", "leaf", "--ca", &ca, "--out", &own, "--host", "localhost", "--host", "127.0.0.1"];
    let output = run(&leaf).await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("next: valkyrie-server start --bind "), "{}", text(&output.stdout));
    for key in ["ca/ca.key", "own/server.key"] {
        let mode = std::fs::metadata(path(key)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{key}");
    }

    let server = ServerBuilder::new()
        .bind("tls://127.0.0.1:0")
        .open_to_all(true)
        .identity(
            std::fs::read_to_string(path("own/server.pem")).unwrap(),
            std::fs::read_to_string(path("own/server.key")).unwrap(),
        )
        .handler("/echo", EchoHandler)
        .build()
        .await
        .unwrap();
    let endpoint = server.endpoints().remove(0);
    tokio::spawn(async move { server.start().await });
    let authority = path("ca/ca.pem");
    let send = ["send", "--endpoint", &endpoint, "--trusted-certificates", &authority, "--message", "Hello"];
    let output = run(&send).await;
    assert_eq!(
        (output.status.code(), text(&output.stdout)),
        (Some(0), "Hello".into()),
        "{}",
        text(&output.stderr)
    );

    // Whoever trusts another authority is not spoken with.
    assert_eq!(run(&["cert", "ca", "--out", &path("other")]).await.status.code(), Some(0));
    let other = path("other/ca.pem");
    let output =
        run(&["send", "--endpoint", &endpoint, "--trusted-certificates", &other, "--message", "x"]).await;
    assert_ne!(output.status.code(), Some(0), "{}", text(&output.stdout));
}

#[tokio::test]
async fn a_key_is_not_overwritten_unless_told() {
    let folder = folder("cert-overwrites");
    let folder = folder.to_str().unwrap();
    let key = format!("{folder}/ca.key");
    assert_eq!(run(&["cert", "ca", "--out", folder]).await.status.code(), Some(0));
    let first = std::fs::read(&key).unwrap();
    for missing in ["ca.pem", "ca.key"] {
        let output = run(&["cert", "ca", "--out", folder]).await;
        assert_eq!(output.status.code(), Some(1));
        assert!(
            text(&output.stderr).contains("exists: choose another --out, or replace it with --force"),
            "{}",
            text(&output.stderr)
        );
        assert_eq!(std::fs::read(&key).unwrap(), first, "{missing}");
        // The key alone is as good a reason as both.
        let _ = std::fs::remove_file(format!("{folder}/ca.pem"));
    }
    assert_eq!(run(&["cert", "ca", "--out", folder, "--force"]).await.status.code(), Some(0));
    assert_ne!(std::fs::read(&key).unwrap(), first);
}

#[tokio::test]
async fn cert_says_what_is_wrong_and_what_helps() {
    let folder = folder("cert-says");
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (ca, other, out, absent) = (path("ca"), path("other"), path("out"), path("absent"));
    assert_eq!(run(&["cert", "ca", "--out", &ca, "--days", "1"]).await.status.code(), Some(0));
    assert_eq!(run(&["cert", "ca", "--out", &other]).await.status.code(), Some(0));
    let leaf = ["cert", "leaf", "--out", &out, "--host", "a.example", "--ca"];
    for (arguments, code, words) in [
        (&[&leaf[..], &[&absent]].concat()[..], 1, "make one with `valkyrie cert ca --out"),
        (&["cert", "leaf", "--ca", &ca, "--out", &out], 1, "pass --host"),
        (&["cert", "leaf", "--ca", &ca, "--out", &out, "--client"], 1, "pass --spiffe"),
        (&["cert", "leaf", "--ca", &ca, "--out", &out, "--host", "a:1"], 2, "without scheme and port"),
        (&["cert", "leaf", "--ca", &ca, "--out", &out, "--spiffe", "a"], 2, "write spiffe://domain/path"),
        (&["cert", "ca", "--out", &out, "--days", "0"], 2, "0 is not in 1..=36500"),
        (&["cert", "show", &absent], 1, "cannot read"),
        (&["cert", "show", &format!("{ca}/ca.key")], 1, "has no certificate: it has PRIVATE KEY"),
    ] {
        let output = run(arguments).await;
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains(words), "{arguments:?}: {}", text(&output.stderr));
    }

    // An authority does not vouch beyond its own end, and only with its own key.
    assert_eq!(run(&[&leaf[..], &[&ca]].concat()).await.status.code(), Some(0));
    let until = |output: &Output| {
        let shown = text(&output.stdout);
        shown.split_once(" until ").unwrap().1.split_once(" UTC").unwrap().0.to_owned()
    };
    let authority = run(&["cert", "show", &format!("{ca}/ca.pem")]).await;
    let made = run(&["cert", "show", &format!("{out}/server.pem")]).await;
    assert_eq!(until(&authority), until(&made));
    let key = std::fs::read(format!("{out}/server.key")).unwrap();
    std::fs::copy(format!("{other}/ca.key"), format!("{ca}/ca.key")).unwrap();
    let output = run(&[&leaf[..], &[&ca], &["--force"]].concat()).await;
    assert!(
        text(&output.stderr).contains("ca.key belongs to another certificate"),
        "{}",
        text(&output.stderr)
    );
    // A command that cannot do its work has replaced nothing.
    assert_eq!(std::fs::read(format!("{out}/server.key")).unwrap(), key);
    for file in ["ca.pem", "ca.key"] {
        std::fs::copy(format!("{out}/server.{}", &file[3..]), format!("{other}/{file}")).unwrap();
    }
    let output = run(&[&leaf[..], &[&other], &["--force"]].concat()).await;
    assert!(text(&output.stderr).contains("is no authority's"), "{}", text(&output.stderr));
}

#[tokio::test]
async fn cert_show_tells_names_purposes_and_fingerprint() {
    let folder = folder("cert-shows");
    let folder = folder.to_str().unwrap();
    assert_eq!(run(&["cert", "ca", "--out", folder, "--name", "Us & them"]).await.status.code(), Some(0));
    let leaf =
        ["cert", "leaf", "--ca", folder, "--out", folder, "--client", "--spiffe", "spiffe://a.example/b"];
    assert_eq!(run(&[&leaf[..], &["--host", "::1"]].concat()).await.status.code(), Some(0));
    let chain = format!("{folder}/chain.pem");
    let read = |name: &str| std::fs::read_to_string(format!("{folder}/{name}")).unwrap();
    std::fs::write(&chain, read("client.pem") + &read("ca.pem")).unwrap();
    let output = run(&["cert", "show", &chain]).await;
    let shown = text(&output.stdout);
    let (first, second) = shown.split_once("certificate 2 of 2\n").unwrap();
    for row in [
        "subject     CN=spiffe://a.example/b\n",
        "issuer      CN=Us & them\n",
        "name        spiffe://a.example/b\n",
        "name        ::1\n",
        "authority   no\n",
        "purpose     client\n",
        "signed with ecdsa-with-SHA256\n",
    ] {
        assert!(first.contains(row), "{row:?}: {first}");
    }
    assert!(second.contains("authority   yes, with at most 0 authorities below it\n"), "{second}");
    let fingerprint = first.lines().find_map(|line| line.strip_prefix("sha-256     ")).unwrap();
    assert!(fingerprint.len() == 64 && fingerprint.bytes().all(|byte| byte.is_ascii_hexdigit()));
}

#[tokio::test]
async fn an_audit_log_is_verified_and_what_was_done_to_it_is_named() {
    use std::{fs, path::PathBuf, time::SystemTime};
    use valkyrie_sdk::{
        Principal,
        access::{Access, Audit, Policy},
    };

    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("audit");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join("audit.log");
    let access = Access::new(Policy::default()).with_audit(Audit::builder(&path).open().unwrap());
    for number in 0..9 {
        let principal = Principal::new(&format!("sub:{number}"));
        let _ = access.admit(&principal, "/a", "memory:", 1, Default::default(), SystemTime::UNIX_EPOCH);
    }
    assert!(access.audit().unwrap().flush());
    let (_, last) = access.audit().unwrap().last();
    let path = path.to_str().unwrap();
    let intact = run(&["audit", "verify", path, "--expect-last", &last]).await;
    assert_eq!(intact.status.code(), Some(0), "{intact:?}");
    assert_eq!(
        text(&intact.stdout),
        format!("10 lines are as they were written; the last is number 10, {last}\n")
    );

    // The end cut off shows only to who knows the last hash; the beginning always does.
    let lines = fs::read_to_string(path).unwrap();
    let lines: Vec<&str> = lines.split_inclusive('\n').collect();
    let cut = folder.join("cut.log");
    let cut = cut.to_str().unwrap();
    fs::write(cut, lines[..7].concat()).unwrap();
    assert_eq!(run(&["audit", "verify", cut]).await.status.code(), Some(0));
    let found = run(&["audit", "verify", cut, "--expect-last", &last]).await;
    assert_eq!(found.status.code(), Some(15), "{found:?}");
    assert!(text(&found.stdout).contains("lines are missing after it"), "{found:?}");
    let rest = folder.join("rest.log");
    let rest = rest.to_str().unwrap();
    fs::write(rest, lines[7..].concat()).unwrap();
    let found = run(&["audit", "verify", rest]).await;
    assert_eq!(text(&found.stdout), format!("{rest}:1: the line follows 7 missing lines, numbers 1 to 7\n"));
    assert_eq!(run(&["audit", "verify", cut, rest, "--expect-last", &last]).await.status.code(), Some(0));
    let seventh = &lines[6].trim_end()[lines[6].len() - 67..][..64];
    assert_eq!(run(&["audit", "verify", rest, "--following", seventh]).await.status.code(), Some(0));

    fs::write(cut, lines[..7].concat().replacen("denied", "allowed", 1)).unwrap();
    let found = run(&["audit", "verify", "--json", cut, rest]).await;
    assert_eq!(found.status.code(), Some(15), "{found:?}");
    let report: serde_json::Value = serde_json::from_slice(&found.stdout).unwrap();
    let wrong = serde_json::json!([
        {"file": cut, "line": 2, "what": "the line was changed: it does not match its hash"},
    ]);
    assert_eq!((&report["lines"], &report["wrong"]), (&serde_json::json!(10), &wrong));
    let key = folder.join("key");
    fs::write(&key, "secret").unwrap();
    let found = run(&["audit", "verify", path, "--key-file", key.to_str().unwrap()]).await;
    assert_eq!((found.status.code(), text(&found.stdout).lines().count()), (Some(15), 10));
    let absent = run(&["audit", "verify", "no such file"]).await;
    assert_eq!(absent.status.code(), Some(1));
    assert!(text(&absent.stderr).contains("no such file"), "{absent:?}");
}

#[tokio::test]
async fn tokens_come_from_a_file_or_the_environment_and_never_from_the_command_line() {
    let tokens = StaticTokens::new().unwrap();
    let tokens = tokens.token("canary-good", Principal::new("sub:alice")).unwrap();
    let server = ServerBuilder::new()
        .bind("127.0.0.1:0")
        .authenticator(tokens)
        .open_to_all(true)
        .handler(
            "/echo",
            handler_fn(|call| async move { Ok(Reply::message(call.principal().id().to_owned())) }),
        )
        .build()
        .await
        .unwrap();
    let endpoint = server.endpoints().remove(0);
    tokio::spawn(async move { server.start().await });
    let folder = folder("tokens");
    std::fs::create_dir_all(&folder).unwrap();
    let file = |name: &str, text: &str| {
        std::fs::write(folder.join(name), text).unwrap();
        folder.join(name).to_str().unwrap().to_owned()
    };
    let (good, bad) = (file("good", "\ncanary-good \n"), file("bad", "canary-bad"));
    let send = |endpoint: &str, file: Option<&str>, variable: &str| {
        let mut command = binary(&["send", "--endpoint", endpoint, "--message", "x"]);
        command.args(file.map(|file| ["--token-file", file]).into_iter().flatten());
        command.env("VALKYRIE_TOKEN", variable);
        let waiting = command.spawn().unwrap();
        async move {
            let output = wait(waiting).await;
            let (said, error) = (text(&output.stdout), text(&output.stderr));
            assert!(!said.contains("canary") && !error.contains("canary"), "{said}{error}");
            (output.status.code(), said, error)
        }
    };
    for (file, variable, said) in [
        (Some(good.as_str()), "", "sub:alice"),
        (Some(&good), "canary-bad", "sub:alice"),
        (None, "canary-good", "sub:alice"),
        (None, "", "anonymous"),
    ] {
        let (code, answer, error) = send(&endpoint, file, variable).await;
        assert_eq!((code, answer.as_str()), (Some(0), said), "{file:?} {error}");
    }
    let (code, _, error) = send(&endpoint, Some(&bad), "").await;
    assert_eq!(code, Some(12), "{error}");
    assert!(error.contains("CREDENTIALS_REFUSED"), "{error}");
    // Beyond this machine it would go unencrypted: nothing is dialled.
    let (code, _, error) = send("tcp://192.0.2.1:9", Some(&good), "").await;
    assert_eq!(code, Some(12), "{error}");
    assert!(error.contains("INSECURE_CREDENTIALS"), "{error}");
    for (wrong, words) in [(file("empty", " \n"), "holds no token"), ("/no/such/file".into(), "No such file")]
    {
        let (code, _, error) = send(&endpoint, Some(&wrong), "").await;
        assert_eq!(code, Some(2), "{error}");
        assert!(error.contains(words), "{error}");
    }
    let mut benchmark =
        binary(&["benchmark", "--endpoint", &endpoint, "--connections", "2", "--requests", "3"]);
    let output = wait(benchmark.env("VALKYRIE_TOKEN", "canary-good").spawn().unwrap()).await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let output = run(&["send", "--help"]).await;
    assert!(text(&output.stdout).contains("VALKYRIE_TOKEN"), "{}", text(&output.stdout));
}
