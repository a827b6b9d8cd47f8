//! `valkyrie interactive` as its users have it: at a real terminal, which util-linux's `script` makes, and from a script.
#![cfg(target_os = "linux")]

mod program;
mod terminal;

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::Arc,
};

use tokio::sync::Semaphore;
use valkyrie_sdk::{EchoHandler, Reply, ServerBuilder, ServerControl, handler_fn};

use terminal::{PATIENCE, Terminal};

struct Server {
    endpoint: String,
    control: ServerControl,
    /// One permit for each call of `/hang` that came, and for each that ended.
    came: Arc<Semaphore>,
    gone: Arc<Semaphore>,
}

/// Tells that its handler is over.
struct Told(Arc<Semaphore>);

impl Drop for Told {
    fn drop(&mut self) {
        self.0.add_permits(1);
    }
}

async fn serve(bind: &str) -> Server {
    let [came, gone] = [0; 2].map(|permits| Arc::new(Semaphore::new(permits)));
    let (arrived, left) = (came.clone(), gone.clone());
    let server = ServerBuilder::new()
        .bind(bind)
        .drain_timeout_ms(100)
        .handler("/echo", EchoHandler)
        .handler(
            "/count",
            handler_fn(|mut call| async move {
                let to: u32 = String::from_utf8_lossy(&call.message().await?).parse().unwrap_or(3);
                for number in 1..=to {
                    call.send(format!("number {number}\x1b[2J")).await?;
                }
                Ok(Reply::end())
            }),
        )
        .handler(
            "/header",
            handler_fn(|call| async move {
                Ok(Reply::message(call.metadata().get_str("x-a").unwrap_or("none").to_owned()))
            }),
        )
        .handler(
            "/valkyrie.Metrics/Get",
            handler_fn(|_| async {
                Ok(Reply::message("valkyrie_server_calls_total{method=\"/from/metrics\",code=\"OK\"} 1\n"))
            }),
        )
        .handler(
            "/hang",
            handler_fn(move |_| {
                let told = Told(left.clone());
                arrived.add_permits(1);
                async move {
                    let _told = told;
                    std::future::pending().await
                }
            }),
        )
        .build()
        .await
        .unwrap();
    let (endpoint, control) = (server.endpoints().remove(0), server.control());
    tokio::spawn(async move { server.start().await });
    Server { endpoint, control, came, gone }
}

/// A place for the history, empty.
fn state(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("state-{name}"));
    let _ = std::fs::remove_dir_all(&folder);
    folder
}

async fn arrives(what: &Semaphore) {
    tokio::time::timeout(PATIENCE, what.acquire()).await.expect("it comes").unwrap().forget();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_at_a_terminal() {
    use std::os::unix::fs::PermissionsExt;
    let server = serve("127.0.0.1:0").await;
    let state = state("session");
    let mut terminal = Terminal::new(&format!("interactive --endpoint {}", server.endpoint), &state, &[]);
    let prompt = format!("{}> ", server.endpoint);
    terminal.sees("help lists commands").await;
    terminal.sees(&prompt).await;
    // A call, by Tab: `cal` is `call `, `/ec` is `/echo`.
    terminal.press("cal\t/ec\t Hello\r");
    terminal.sees("\nHello").await;
    terminal.sees(&prompt).await;
    terminal.press("/header\r");
    terminal.sees("\nnone").await;
    terminal.sees(&prompt).await;
    terminal.press("header x-a=seven\r");
    terminal.sees(&prompt).await;
    terminal.press("/header\r");
    terminal.sees("\nseven").await;
    terminal.sees(&prompt).await;
    // What the server has, as far as anybody can tell.
    terminal.press("methods\r");
    for method in ["/echo", "/from/metrics", "/header", "/valkyrie.Health/Check"] {
        terminal.sees(method).await;
    }
    terminal.sees(&prompt).await;
    // A stream of answers, whose escapes do nothing.
    terminal.press("stream /count 2\r");
    terminal.sees("number 1\\u{1b}[2J").await;
    terminal.sees("number 2\\u{1b}[2J").await;
    terminal.sees(&prompt).await;
    // A stream of both, ended by Ctrl-D, which does not leave.
    terminal.press("stream /echo\r");
    terminal.sees("each line is a message").await;
    terminal.press("first\r");
    terminal.sees("first\r\n").await;
    terminal.press("second\r");
    terminal.sees("second\r\n").await;
    terminal.press("\x04");
    terminal.sees(&prompt).await;
    // Ctrl-C cancels the call, and the server saw it; the program goes on.
    for command in ["call /hang\r", "stream /hang x\r", "stream /hang\r"] {
        terminal.press(command);
        arrives(&server.came).await;
        terminal.press("\x03");
        terminal.sees("cancelled").await;
        arrives(&server.gone).await;
        terminal.sees(&prompt).await;
    }
    terminal.press("\x03");
    terminal.sees(&prompt).await;
    terminal.press("status\r");
    terminal.sees("connected").await;
    terminal.sees(" calls, 0 open").await;
    terminal.sees(&prompt).await;
    terminal.press("no such\r");
    terminal.sees("there is no command \"no\": help lists them").await;
    terminal.sees(&prompt).await;
    terminal.press(" call /echo unseen\r");
    terminal.sees(&prompt).await;
    terminal.press("header x-token=canary\r");
    terminal.sees(&prompt).await;
    terminal.press("\x04");
    let (code, raw) = terminal.ends().await;
    assert_eq!(code, Some(0));
    assert!(raw.windows(7).any(|part| part == b"\x1b[1;36m"), "no colour at a terminal");

    // What was typed is kept, for its owner only, and not what is secret.
    let history = state.join("valkyrie/history");
    let kept = std::fs::read_to_string(&history).unwrap();
    assert!(kept.contains("call /hang") && !kept.contains("unseen") && !kept.contains("canary"), "{kept}");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&history), mode(history.parent().unwrap())), (0o600, 0o700));

    // Another session knows it, and has no colours where they are not wanted.
    let command = format!("interactive --endpoint {}", server.endpoint);
    let mut terminal = Terminal::new(&command, &state, &[("NO_COLOR", "1")]);
    terminal.sees(&prompt).await;
    terminal.press("call /cou\t 1\r");
    terminal.sees("number 1").await;
    terminal.sees(&prompt).await;
    terminal.press("quit\r");
    let (code, raw) = terminal.ends().await;
    assert_eq!(code, Some(0));
    assert!(!raw.windows(4).any(|part| part == b"\x1b[1;"), "{}", String::from_utf8_lossy(&raw));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_lost_says_so_and_comes_back() {
    let server = serve("127.0.0.1:0").await;
    let state = state("lost");
    let command = format!("interactive --no-history --timeout-ms 30000 --endpoint {}", server.endpoint);
    let mut terminal = Terminal::new(&command, &state, &[]);
    let prompt = format!("{}> ", server.endpoint);
    terminal.sees(&prompt).await;
    terminal.press("call /echo before\r");
    terminal.sees("\nbefore").await;
    terminal.sees(&prompt).await;
    server.control.shutdown().await;
    terminal.sees("is lost").await;
    let again = serve(server.endpoint.trim_start_matches("tcp://")).await;
    terminal.press("call /echo after\r");
    terminal.sees("\nafter").await;
    terminal.sees(&prompt).await;
    let other = serve("127.0.0.1:0").await;
    terminal.press(&format!("connect {}\r", other.endpoint));
    terminal.sees(&format!("{}> ", other.endpoint)).await;
    terminal.press("/header\r");
    terminal.sees("\nnone").await;
    terminal.press("quit\r");
    assert_eq!(terminal.ends().await.0, Some(0));
    assert!(!state.exists());
    drop(again);
}

/// Runs a script of commands.
async fn run(endpoint: &str, arguments: &[&str], commands: &str) -> Output {
    let mut command = Command::new(program::valkyrie());
    command.args(["interactive", "--endpoint", endpoint]).args(arguments);
    command.env("XDG_STATE_HOME", state("script")).stdin(Stdio::piped());
    let mut process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    process.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
    tokio::task::spawn_blocking(move || process.wait_with_output().unwrap()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_has_no_prompt_and_the_exit_code_of_its_first_failure() {
    let server = serve("127.0.0.1:0").await;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let commands = "# says hello\ncall /echo Hello\nheader x-a=b\n/header\n\nstream /echo\none\ntwo\n.\njson\ncall /echo x\n";
    let output = run(&server.endpoint, &[], commands).await;
    assert_eq!(text(&output.stdout), "Hello\nb\none\ntwo\n{\"message\":\"x\"}\n", "{}", text(&output.stderr));
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));

    let commands =
        "call /no/such\nconnect nowhere:\ncall /echo x\nstream /no/such\nnot a command\n.\n/echo last";
    for (arguments, printed) in [(&[][..], "x\nlast\n"), (&["--fail-fast"], "")] {
        let output = run(&server.endpoint, arguments, commands).await;
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(11), printed.into()));
        assert!(!text(&output.stderr).contains("no command"), "{}", text(&output.stderr));
    }
    let output = run("tcp://127.0.0.1:1", &["--timeout-ms", "500"], "/echo x\nhelp\n").await;
    assert!(text(&output.stdout).contains("stream METHOD [MESSAGE]"));
    assert_eq!(output.status.code(), Some(13), "{}", text(&output.stderr));
}
