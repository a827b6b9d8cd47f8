//! What reaches a terminal, a pipe and a file: escape sequences of servers, endless lines, colours, progress, readers that leave.
#![cfg(target_os = "linux")]

mod program;
mod terminal;

use std::{
    io::Read,
    path::Path,
    process::{Command, Output, Stdio},
};

use valkyrie_sdk::{Code, EchoHandler, Reply, ServerBuilder, Status, handler_fn};

use terminal::Terminal;

/// What would clear the screen, retitle the window, write to the clipboard and turn the text around.
const HOSTILE: &str = "\x1b[2J\x1b]0;title\x07\x1b]52;c;AAAA\x07\u{9b}31m\u{202e}end";
/// The same as it is shown.
const SHOWN: &str = "\\u{1b}[2J\\u{1b}]0;title\\u{7}\\u{1b}]52;c;AAAA\\u{7}\\u{9b}31m\\u{202e}end";
/// The longest message that servers take.
const LONG: usize = 4 << 20;

async fn serve() -> String {
    let server = ServerBuilder::new()
        .bind("127.0.0.1:0")
        .handler("/echo", EchoHandler)
        .handler("/hostile", handler_fn(|_| async { Ok(Reply::message(HOSTILE)) }))
        .handler("/fails", handler_fn(|_| async { Err(Status::new(Code::NotFound, HOSTILE)) }))
        .handler("/long", handler_fn(|_| async { Ok(Reply::message(vec![b'x'; LONG])) }))
        .handler(
            "/longs",
            handler_fn(|mut call| async move {
                for _ in 0..4 {
                    call.send(vec![b'x'; LONG]).await?;
                }
                Ok(Reply::end())
            }),
        )
        .build()
        .await
        .unwrap();
    let endpoint = server.endpoints().remove(0);
    tokio::spawn(async move { server.start().await });
    endpoint
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(program::valkyrie());
    command.args(arguments).env_remove("NO_COLOR").env("TERM", "xterm").stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

async fn run(arguments: &[&str]) -> Output {
    let mut command = command(arguments);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_a_server_says_drives_the_terminal() {
    let endpoint = serve().await;
    let state = Path::new(env!("CARGO_TARGET_TMPDIR"));
    for (command, code) in [
        (format!("send --endpoint {endpoint} --method /hostile --message x"), 0),
        (format!("send --endpoint {endpoint} --method /fails --message x"), 10),
        (format!("send --endpoint {endpoint} --method /hostile --message x --stream"), 0),
        (format!("send --endpoint {endpoint} --method /fails --message x --stream"), 10),
        (format!("debug call {endpoint} /hostile"), 0),
        (format!("debug call {endpoint} /fails"), 10),
    ] {
        let terminal = Terminal::new(&command, state, &[("NO_COLOR", "1")]);
        let (ended, raw) = terminal.ends().await;
        let seen = text(&raw);
        assert_eq!(ended, Some(code), "{command}: {seen}");
        assert!(seen.contains(SHOWN), "{command}: {seen:?}");
        assert!(!seen.contains(['\x1b', '\x07', '\u{9b}', '\u{202e}']), "{command}: {seen:?}");
    }
    // A pipe gets the bytes of a message as they are, and errors escaped all the same.
    let output = run(&["send", "--endpoint", &endpoint, "--method", "/hostile", "--message", "x"]).await;
    assert_eq!(text(&output.stdout), HOSTILE);
    let output = run(&["send", "--endpoint", &endpoint, "--method", "/fails", "--message", "x"]).await;
    assert!(text(&output.stderr).contains(SHOWN));
    // JSON has escapes of its own.
    let output =
        run(&["send", "--endpoint", &endpoint, "--method", "/hostile", "--message", "x", "--json"]).await;
    assert!(
        !output.stdout.contains(&0x1b) && text(&output.stdout).contains("\\u001b[2J"),
        "{}",
        text(&output.stdout)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn colours_are_for_terminals_that_want_them() {
    let endpoint = serve().await;
    let state = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let failing = format!("send --endpoint {endpoint} --method /no/such --message x");
    for (variables, coloured) in [
        (&[][..], true),
        (&[("NO_COLOR", "1")], false),
        (&[("NO_COLOR", "")], true),
        (&[("TERM", "dumb")], false),
    ] {
        let (code, raw) = Terminal::new(&failing, state, variables).ends().await;
        assert_eq!((code, raw.contains(&0x1b)), (Some(11), coloured), "{variables:?}: {}", text(&raw));
    }
    for arguments in [
        &["send", "--endpoint", &endpoint, "--method", "/no/such", "--message", "x"][..],
        &["send", "--help"],
        &["send", "--no-such-flag"],
        &["benchmark", "--endpoint", &endpoint, "--connections", "1", "--requests", "1"],
    ] {
        let output = run(arguments).await;
        assert!(![output.stdout, output.stderr].concat().contains(&0x1b), "{arguments:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_is_told_how_far_a_benchmark_is() {
    let endpoint = serve().await;
    let state = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let command = format!("benchmark --endpoint {endpoint} --connections 1 --rate 50 --duration 60");
    let mut terminal = Terminal::new(&command, state, &[]);
    // Without a call there are no percentiles, and the first line comes at once.
    while terminal.sees(" calls, ").await.ends_with(" 0") {}
    terminal.sees(" in the last second, 0 failed").await;
    terminal.press("\x03");
    terminal.sees("(interrupted: partial)").await;
    terminal.sees("p99.99").await;
    assert_eq!(terminal.ends().await.0, Some(130));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_may_be_very_long() {
    let endpoint = serve().await;
    let output = run(&["send", "--endpoint", &endpoint, "--method", "/long", "--message", "x"]).await;
    assert_eq!((output.status.code(), output.stdout.len()), (Some(0), LONG));
    let output =
        run(&["send", "--endpoint", &endpoint, "--method", "/longs", "--message", "x", "--stream"]).await;
    assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 4 * (LONG + 1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_leaves_early_is_no_error() {
    let endpoint = serve().await;
    for arguments in [
        &["send", "--endpoint", &endpoint, "--method", "/longs", "--message", "x", "--stream"][..],
        &["send", "--endpoint", &endpoint, "--method", "/long", "--message", "x", "--json"],
        &["debug", "call", &endpoint, "/echo", "x"],
        &["debug", "connect", &endpoint],
        &["benchmark", "--endpoint", &endpoint, "--connections", "1", "--requests", "1"],
        &["interactive", "--endpoint", &endpoint],
        &["completions", "bash"],
        &["man"],
        &["--help"],
    ] {
        let mut command = command(arguments);
        if arguments[0] == "interactive" {
            command.stdin(Stdio::piped());
        }
        let mut process = command.spawn().unwrap();
        if let Some(mut stdin) = process.stdin.take() {
            // Commands whose answers nobody reads.
            let _ = std::io::Write::write_all(&mut stdin, "help\n".repeat(1_000).as_bytes());
        }
        let mut stdout = process.stdout.take().unwrap();
        if !["benchmark", "debug"].contains(&arguments[0]) {
            let _ = stdout.read(&mut [0]).unwrap();
        }
        drop(stdout);
        let output = tokio::task::spawn_blocking(move || process.wait_with_output().unwrap()).await.unwrap();
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()), "{arguments:?}");
    }
}
