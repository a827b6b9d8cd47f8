//! `valkyrie send --stream` as its users run it: messages and answers as they come, over real sockets.
#![cfg(unix)]

mod program;

use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tokio::sync::Semaphore;
use valkyrie_sdk::{Code, EchoHandler, Reply, ServerBuilder, Status, handler_fn};

struct Server {
    endpoint: String,
    /// One permit for each call of `/hang` that came, and for each that its caller ended.
    came: Arc<Semaphore>,
    gone: Arc<Semaphore>,
    /// What `/wait` needs before it reads.
    go: Arc<Semaphore>,
}

/// Tells that its handler is over.
struct Told(Arc<Semaphore>);

impl Drop for Told {
    fn drop(&mut self) {
        self.0.add_permits(1);
    }
}

async fn server() -> Server {
    let [came, gone, go] = [0; 3].map(|permits| Arc::new(Semaphore::new(permits)));
    let (arrived, left, may) = (came.clone(), gone.clone(), go.clone());
    let server = ServerBuilder::new()
        .bind("127.0.0.1:0")
        .handler("/echo", EchoHandler)
        .handler(
            "/count",
            handler_fn(|mut call| async move {
                let to: u32 = String::from_utf8_lossy(&call.message().await?).parse().unwrap_or(3);
                for number in 1..=to {
                    call.send(number.to_string()).await?;
                }
                Ok(Reply::end())
            }),
        )
        .handler(
            "/join",
            handler_fn(|mut call| async move {
                let mut all = Vec::new();
                while let Some(message) = call.recv().await? {
                    all.push(String::from_utf8_lossy(&message).into_owned());
                }
                let metadata = call.metadata().clone();
                Ok(Reply::message(all.join("+")).with_trailers(metadata))
            }),
        )
        .handler(
            "/fail",
            handler_fn(|mut call| async move {
                call.send("before").await?;
                Err(Status::new(Code::NotFound, "no such thing\x1b[2J"))
            }),
        )
        .handler(
            "/hang",
            handler_fn(move |mut call| {
                let (arrived, told) = (arrived.clone(), Told(left.clone()));
                async move {
                    let _told = told;
                    call.send("begun").await?;
                    arrived.add_permits(1);
                    std::future::pending().await
                }
            }),
        )
        .handler(
            "/wait",
            handler_fn(move |mut call| {
                let may = may.clone();
                async move {
                    may.acquire().await.unwrap().forget();
                    let mut bytes = 0;
                    while let Some(message) = call.recv().await? {
                        bytes += message.len();
                    }
                    Ok(Reply::message(bytes.to_string()))
                }
            }),
        )
        .build()
        .await
        .unwrap();
    let endpoint = server.endpoints().remove(0);
    tokio::spawn(async move { server.start().await });
    Server { endpoint, came, gone, go }
}

impl Server {
    fn spawn(&self, method: &str, arguments: &[&str]) -> Child {
        let mut command = Command::new(program::valkyrie());
        command.args(["send", "--endpoint", &self.endpoint, "--method", method, "--stream"]).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Runs it with this input, to its end.
    async fn run(&self, method: &str, arguments: &[&str], input: &[u8]) -> Output {
        let mut process = self.spawn(method, arguments);
        // It may have ended already.
        let _ = process.stdin.take().unwrap().write_all(input);
        wait(process).await
    }
}

async fn wait(process: Child) -> Output {
    tokio::task::spawn_blocking(move || process.wait_with_output().unwrap()).await.unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn interrupt(process: &Child) {
    let killed = Command::new("kill").args(["-s", "INT", &process.id().to_string()]).status().unwrap();
    assert!(killed.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn each_line_is_sent_as_it_comes_and_each_answer_printed() {
    let server = server().await;
    let mut process = server.spawn("/echo", &[]);
    let (mut stdin, mut stdout) =
        (process.stdin.take().unwrap(), BufReader::new(process.stdout.take().unwrap()));
    for (line, answer) in
        [("one\n", "one\n"), ("\n", "\n"), ("a\x1b[2J\u{202e}b\n", "a\\u{1b}[2J\\u{202e}b\n")]
    {
        stdin.write_all(line.as_bytes()).unwrap();
        let mut read = String::new();
        stdout.read_line(&mut read).unwrap();
        assert_eq!(read, answer);
    }
    drop(stdin);
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    let output = wait(process).await;
    assert_eq!((output.status.code(), rest, text(&output.stderr)), (Some(0), String::new(), String::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_read_and_printed_in_every_form() {
    let server = server().await;
    let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("framed");
    std::fs::write(&file, b"\0\0\0\x03\xff\n\x1b\0\0\0\0").unwrap();
    let file = file.to_str().unwrap();
    for (arguments, input, printed) in [
        (
            &["--file", file, "--input", "framed", "--output", "framed"][..],
            "",
            &b"\0\0\0\x03\xff\n\x1b\0\0\0\0"[..],
        ),
        (&["--file", file, "--input", "framed", "--output", "base64"], "", b"/wob\n\n"),
        (&["--file", file, "--input", "framed"], "", "\u{fffd}\\n\\u{1b}\n\n".as_bytes()),
        (&["--input", "json"], "{\"a\":\n1} [2]", b"{\"a\":\\n1}\n[2]\n"),
        (&["--message", "only"], "not read", b"only\n"),
        (&["--message", "-"], "read\n", b"read\n"),
    ] {
        let output = server.run("/echo", arguments, input.as_bytes()).await;
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", text(&output.stderr));
        assert_eq!(text(&output.stdout), text(printed), "{arguments:?}");
    }
    let output = server.run("/join", &["--json", "--metadata", "x-a=b"], b"a\nb\n").await;
    let printed = text(&output.stdout);
    let values: Vec<Value> = printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((output.status.code(), values.len()), (Some(0), 2), "{printed}");
    assert_eq!(values[0], json!({ "message": "a+b" }));
    let (end, trailers) = (&values[1], json!([["x-a", "b"]]));
    assert_eq!((&end["code"], &end["sent"], &end["received"]), (&json!("OK"), &json!(2), &json!(1)));
    assert_eq!(end["trailers"], trailers, "{end}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_answers_ends_with_its_status() {
    let server = server().await;
    let output = server.run("/count", &["--message", "3"], b"").await;
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), "1\n2\n3\n".into()));
    // The call ends though the input does not.
    let mut process = server.spawn("/fail", &[]);
    let _open = process.stdin.take();
    let output = wait(process).await;
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(10), "before\n".into()));
    assert_eq!(text(&output.stderr), "valkyrie: NOT_FOUND: no such thing\\u{1b}[2J\n");
    let output = server.run("/fail", &["--json"], b"").await;
    let printed = text(&output.stdout);
    let end: Value = serde_json::from_str(printed.lines().next_back().unwrap()).unwrap();
    assert_eq!((output.status.code(), &end["error"]["code"]), (Some(10), &json!("NOT_FOUND")), "{end}");
    let output = server.run("/no/such/method", &[], b"x\n").await;
    assert_eq!(output.status.code(), Some(11), "{}", text(&output.stderr));
    let output = server.run("/hang", &["--timeout-ms", "2000"], b"").await;
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(11), "begun\n".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_cancels_the_call_and_its_handler_is_told() {
    let server = server().await;
    for arguments in [&[][..], &["--json"]] {
        let mut process = server.spawn("/hang", arguments);
        let _open = process.stdin.take();
        server.came.acquire().await.unwrap().forget();
        interrupt(&process);
        let output = wait(process).await;
        assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
        server.gone.acquire().await.unwrap().forget();
        let last = text(&output.stdout);
        assert_eq!(last.contains("\"code\":\"CANCELLED\""), !arguments.is_empty(), "{last}");
    }
}

/// A server that reads nothing makes whoever writes wait, and gets everything in the end.
#[tokio::test(flavor = "multi_thread")]
async fn input_waits_for_the_server() {
    const LINE: usize = 65_536;
    const LINES: u64 = 1_024;
    let server = server().await;
    let mut process = server.spawn("/wait", &[]);
    let mut stdin = process.stdin.take().unwrap();
    let written = Arc::new(AtomicU64::new(0));
    let count = written.clone();
    let writer = std::thread::spawn(move || {
        let line = [&[b'x'; LINE][..], b"\n"].concat();
        for _ in 0..LINES {
            if stdin.write_all(&line).is_err() {
                break;
            }
            count.fetch_add(1, Relaxed);
        }
    });
    let mut seen = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = written.load(Relaxed);
        if now > 0 && now == seen {
            break;
        }
        seen = now;
    }
    // The peer's credit and what waits for it: some megabytes of the 64.
    assert!(seen < LINES / 2, "{seen} lines were taken");
    server.go.add_permits(1);
    let output = wait(process).await;
    writer.join().unwrap();
    assert_eq!(text(&output.stdout), format!("{}\n", LINES * LINE as u64), "{}", text(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn input_that_is_wrong_cancels_the_call_and_says_why() {
    let server = server().await;
    for (arguments, input, code, words) in [
        (&["--input", "json"][..], &b"{} nope"[..], 1, "message 2 is no JSON"),
        (&["--input", "framed"], b"\0\0\0\x02a", 1, "the input ends inside message 1"),
        (&["--file", "/no/such/file"], b"", 1, "/no/such/file: No such file"),
        (&[], &[b'x'; 5_000_000], 11, "MESSAGE_TOO_LARGE"),
        (&["--message", "a", "--file", "b"], b"", 2, "cannot be used with"),
    ] {
        let output = server.run("/hang", arguments, input).await;
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains(words), "{arguments:?}: {}", text(&output.stderr));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_left_ends_a_stream_quietly() {
    let server = server().await;
    let mut process = server.spawn("/count", &["--message", "1000000"]);
    let mut first = String::new();
    BufReader::new(process.stdout.take().unwrap()).read_line(&mut first).unwrap();
    let output = wait(process).await;
    assert_eq!((first.as_str(), output.status.code(), text(&output.stderr)), ("1\n", Some(0), String::new()));
}
