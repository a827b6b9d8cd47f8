//! A real terminal, which util-linux's `script` makes.

use std::{
    io::{Read, Write},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    time::Duration,
};

use tokio::{
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    time::{Instant, timeout_at},
};

/// No step takes so long, even where many programs share a processor.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The program at a terminal of its own.
pub(crate) struct Terminal {
    process: Child,
    keys: ChildStdin,
    parts: UnboundedReceiver<Vec<u8>>,
    /// What it wrote that nothing has waited for yet, without escape sequences, and all of it with them.
    unread: String,
    raw: Vec<u8>,
}

impl Terminal {
    pub(crate) fn new(command: &str, state: &Path, variables: &[(&str, &str)]) -> Self {
        // `script` asks $SHELL. The program takes the shell's place: some, as dash, wait beside it, have Ctrl-C from the terminal as well,
        // and end with 130, whatever the program made of it.
        let line = format!("exec '{}' {command}", crate::program::valkyrie().display());
        let mut script = Command::new("script");
        script.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
        script
            .env("SHELL", "/bin/sh")
            .env("TERM", "xterm")
            .env("XDG_STATE_HOME", state)
            .env_remove("NO_COLOR")
            .env_remove("VALKYRIE_TOKEN");
        script.envs(variables.iter().copied()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = script.spawn().expect("script, of util-linux, makes the terminal");
        let (keys, mut screen) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let (to, parts) = unbounded_channel();
        std::thread::spawn(move || {
            let mut part = [0; 4_096];
            while let Ok(read @ 1..) = screen.read(&mut part) {
                if to.send(part[..read].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { process, keys, parts, unread: String::new(), raw: Vec::new() }
    }

    pub(crate) fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
        self.keys.flush().unwrap();
    }

    /// Waits until it has written this, and gives what came before.
    pub(crate) async fn sees(&mut self, text: &str) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.unread.find(text) {
                let before = self.unread[..at].to_owned();
                self.unread.drain(..at + text.len());
                return before;
            }
            let part = timeout_at(until, self.parts.recv()).await.ok().flatten();
            let part = part.unwrap_or_else(|| panic!("{text:?} is not in {:?}", self.unread));
            self.raw.extend_from_slice(&part);
            self.unread += &plain(&part);
        }
    }

    /// The exit code, once it has ended.
    pub(crate) async fn ends(mut self) -> (Option<i32>, Vec<u8>) {
        let mut process = self.process;
        let status = tokio::task::spawn_blocking(move || process.wait().unwrap()).await.unwrap();
        while let Some(part) = self.parts.recv().await {
            self.raw.extend(part);
        }
        (status.code(), self.raw)
    }
}

/// Without what moves the cursor or changes colours. A part may end inside of a sequence; then its rest is seen, and what tests wait for
/// is elsewhere.
fn plain(part: &[u8]) -> String {
    let text = String::from_utf8_lossy(part);
    let mut plain = String::new();
    let mut rest = text.as_ref();
    while let Some(at) = rest.find("\x1b[") {
        plain += &rest[..at];
        rest = &rest[at + 2..];
        let end =
            rest.find(|character: char| ('@'..='~').contains(&character)).map_or(rest.len(), |end| end + 1);
        rest = &rest[end..];
    }
    plain + rest
}
