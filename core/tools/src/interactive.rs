//! `interactive`: commands one after the other over one client, at a prompt or from a script.

use std::{
    borrow::Cow,
    collections::BTreeSet,
    io::{self, IsTerminal},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use rustyline::{
    Context, Editor, Helper, completion::Completer, error::ReadlineError, highlight::Highlighter,
    hint::Hinter, history::FileHistory, validate::Validator,
};
use valkyrie_sdk::{CallOptions, Client, Connectivity, Reason, Status};

use crate::{
    call,
    output::{Failure, colour, escape, is_coloured, named, print, say},
    send::{Access, Target, entry, is_secret},
    stream::{self, Input, Messages, Output},
};

const HELP: &str = "\
call METHOD [MESSAGE]     one message, one answer; METHOD alone, with its /, is the same
stream METHOD [MESSAGE]   a stream: that message, or the lines that follow until Ctrl-D or a line with only a dot
methods                   methods that are known: built in, called here, or named by the server's metrics
header [KEY[=VALUE]]      send this metadata with each call; without =VALUE no longer; alone: what is sent
timeout [MS]              the time limit of each call from now on; 0: none
json [on|off]             print answers as JSON
status                    where the connection stands, and what passed over it
debug                     connect anew, and show the handshake, settings and round trips
connect ENDPOINT          talk to another server
help                      this
quit                      leave; Ctrl-D does, too
Ctrl-C cancels the call that is under way, and its handler is told. Tab completes commands and methods.
";

/// The commands, for whoever presses Tab.
const VERBS: [&str; 11] =
    ["call", "connect", "debug", "header", "help", "json", "methods", "quit", "status", "stream", "timeout"];
/// What every Valkyrie server may have.
const BUILT_IN: [&str; 5] =
    ["/echo", "/valkyrie.Health/Check", "/valkyrie.Health/Watch", METRICS, "/valkyrie.Metrics/Connections"];
const METRICS: &str = "/valkyrie.Metrics/Get";
/// How many methods are remembered.
const METHODS: usize = 1_000;
/// How many lines the history file has.
const HISTORY: usize = 1_000;
/// How long to wait for what was cancelled to be on its way.
const GOODBYE: Duration = Duration::from_secs(1);

/// Talk to a server command by command, at a prompt or from a script.
///
/// Talks to a server, command by command: `help` lists them. On a terminal with line editing, a history, and Tab for commands and
/// methods; Ctrl-C cancels the call that is under way and nothing else, Ctrl-D leaves. Elsewhere it reads a command from each line, prints no
/// prompt, goes on after a command that failed, and ends with the exit code of the first one that did.
#[derive(clap::Args)]
pub(crate) struct Interactive {
    #[command(flatten)]
    target: Target,
    /// Neither read nor write the history file, which is valkyrie/history in $XDG_STATE_HOME or ~/.local/state. Lines that begin with a
    /// space, and those that set a secret, are not written in any case.
    #[arg(long)]
    no_history: bool,
    /// Stop at the first command that fails. On a terminal it does not count.
    #[arg(long)]
    fail_fast: bool,
}

/// What commands work on.
struct Session {
    endpoint: String,
    access: Access,
    client: Client,
    metadata: Vec<(String, Bytes)>,
    timeout: Option<Duration>,
    output: Output,
    methods: Methods,
    /// The line editor has the terminal.
    at_prompt: Arc<AtomicBool>,
}

type Methods = Arc<Mutex<BTreeSet<String>>>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where the messages of a stream come from, when its command has none.
enum Lines<'a> {
    /// What is typed.
    Terminal,
    /// The lines that follow in the script.
    Script(&'a mut Messages),
}

/// What a command does to the session.
enum Next {
    Goes,
    Connects(String),
    Ends,
}

impl Interactive {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let (endpoint, access) = (self.target.endpoint().to_owned(), self.target.access().clone());
        let _inside = runtime.enter();
        let client = access.builder(&endpoint).connect_lazily()?;
        let methods = Arc::new(Mutex::new(BUILT_IN.map(str::to_owned).into()));
        let timeout = Some(Duration::from_millis(access.timeout_ms()));
        let metadata = Vec::new();
        let mut session = Session {
            endpoint,
            access,
            client,
            metadata,
            timeout,
            output: Output::Lines,
            methods,
            at_prompt: Arc::default(),
        };
        if io::stdin().is_terminal() && io::stdout().is_terminal() {
            session.prompt(&runtime, !self.no_history)
        } else {
            let result = runtime.block_on(session.script(self.fail_fast));
            runtime.block_on(session.leave());
            result
        }
    }
}

impl Session {
    /// Commands from lines, without a prompt.
    async fn script(&mut self, fail_fast: bool) -> Result<(), Failure> {
        let mut lines = stream::read(None, Input::Lines);
        let mut first = None;
        loop {
            let line = tokio::select! {
                biased;
                () = interrupt() => return Err(Failure::Interrupted),
                line = lines.recv() => line,
            };
            let Some(line) = line.transpose()? else { break };
            match self.run(&String::from_utf8_lossy(&line), Lines::Script(&mut lines)).await {
                Ok(Next::Goes) => {}
                Ok(Next::Ends) => break,
                Ok(Next::Connects(endpoint)) => {
                    if let Err(failure) = self.connect(endpoint) {
                        failure.report();
                        first.get_or_insert(failure);
                    }
                }
                // Whoever reads has left, or nothing is to go on.
                Err(failure @ (Failure::Io(_) | Failure::Interrupted)) => return Err(failure),
                Err(failure) => {
                    failure.report();
                    first.get_or_insert(failure);
                }
            }
            if fail_fast && first.is_some() {
                break;
            }
        }
        // It was said when it happened.
        first.map_or(Ok(()), |failure| Err(failure.reported()))
    }

    /// Commands at a prompt.
    fn prompt(&mut self, runtime: &tokio::runtime::Runtime, history: bool) -> Result<(), Failure> {
        let config = rustyline::Config::builder().max_history_size(HISTORY).map_err(terminal)?;
        let config =
            config.history_ignore_space(true).completion_type(rustyline::CompletionType::List).build();
        let mut editor: Editor<Line, FileHistory> = Editor::with_config(config).map_err(terminal)?;
        editor.set_helper(Some(Line { methods: self.methods.clone(), coloured: is_coloured(&io::stdout()) }));
        let history = if history { history_file()? } else { None };
        if let Some(path) = &history {
            // There is none the first time.
            let _ = editor.load_history(path);
            for line in editor.history() {
                self.learn(method_of(line));
            }
        }
        print(
            format!("{} {}; help lists commands\n", env!("CARGO_BIN_NAME"), valkyrie_sdk::VERSION).as_bytes(),
        )?;
        let mut watch = runtime.block_on(self.greet());
        loop {
            self.at_prompt.store(true, Relaxed);
            let read = editor.readline(&format!("{}> ", escape(&self.endpoint)));
            self.at_prompt.store(false, Relaxed);
            match read {
                Ok(line) => {
                    if !line.trim().is_empty() && !sets_secret(&line) {
                        // A full disk does not end the session.
                        let _ = editor.add_history_entry(line.as_str());
                        let _ = history.as_ref().map(|path| editor.append_history(path));
                    }
                    match runtime.block_on(self.run(&line, Lines::Terminal)) {
                        Ok(Next::Goes) => {}
                        Ok(Next::Ends) => break,
                        Ok(Next::Connects(endpoint)) => match self.connect(endpoint) {
                            Ok(()) => {
                                watch.abort();
                                watch = runtime.block_on(self.greet());
                            }
                            Err(failure) => drop(failure.report()),
                        },
                        Err(Failure::Interrupted) => print(b"cancelled\n")?,
                        Err(failure) => drop(failure.report()),
                    }
                }
                Err(ReadlineError::Interrupted) => {}
                Err(ReadlineError::Eof) => break,
                Err(error) => return Err(terminal(error)),
            }
        }
        watch.abort();
        runtime.block_on(self.leave());
        Ok(())
    }

    /// Says whether the server is there, and from then on when the connection goes and comes.
    async fn greet(&self) -> tokio::task::JoinHandle<()> {
        let limit = Duration::from_millis(self.access.timeout_ms());
        let ready = tokio::select! {
            biased;
            () = interrupt() => Ok(Ok(())),
            ready = tokio::time::timeout(limit, self.client.ready()) => ready,
        };
        match ready {
            Ok(Ok(())) => {}
            Ok(Err(status)) => say(&format!("{status} ({}); the next call tries again", status.reason())),
            Err(_) => say("nobody answers yet; the next call tries again"),
        }
        let (client, endpoint, at_prompt) =
            (self.client.clone(), escape(&self.endpoint), self.at_prompt.clone());
        tokio::spawn(async move {
            let (mut seen, mut was_lost) = (client.connectivity(), false);
            loop {
                let now = client.connectivity_other_than(seen).await;
                let text = match now {
                    Connectivity::Shutdown => return,
                    Connectivity::Ready if was_lost => format!("connected to {endpoint} again"),
                    _ if seen == Connectivity::Ready => {
                        format!("the connection to {endpoint} is lost; the next call waits for another")
                    }
                    _ => String::new(),
                };
                was_lost = now != Connectivity::Ready && (was_lost || seen == Connectivity::Ready);
                seen = now;
                // In place of the prompt, which stands below it again.
                let again = if at_prompt.load(Relaxed) { format!("{endpoint}> ") } else { String::new() };
                if !text.is_empty() && print(format!("\r\x1b[K{text}\r\n{again}").as_bytes()).is_err() {
                    return;
                }
            }
        })
    }

    fn connect(&mut self, endpoint: String) -> Result<(), Failure> {
        let client = self.access.builder(&endpoint).connect_lazily()?;
        std::mem::replace(&mut self.client, client).close_now();
        self.endpoint = endpoint;
        Ok(())
    }

    /// A server that does not listen is not waited for.
    async fn leave(&self) {
        let _ = tokio::time::timeout(GOODBYE, self.client.close()).await;
    }

    async fn run(&mut self, line: &str, lines: Lines<'_>) -> Result<Next, Failure> {
        let line = line.trim_start();
        let (verb, rest) = split(line);
        match verb {
            "" | "#" => {}
            "help" | "?" => print(HELP.as_bytes())?,
            "quit" | "exit" => return Ok(Next::Ends),
            "connect" if !rest.is_empty() => return Ok(Next::Connects(rest.trim().to_owned())),
            "call" if !rest.is_empty() => self.call(split(rest)).await?,
            _ if verb.starts_with('/') => self.call((verb, rest)).await?,
            "stream" if !rest.is_empty() => self.stream(split(rest), lines).await?,
            "methods" => self.list().await?,
            "header" => self.header(rest.trim())?,
            "timeout" => self.set_timeout(rest.trim())?,
            "json" => match rest.trim() {
                "off" => self.output = Output::Lines,
                "" | "on" => self.output = Output::Json,
                _ => return Err(usage("write json on, or json off")),
            },
            "status" => self.status()?,
            "debug" => call::connect(&self.endpoint, &self.access).await?,
            "call" | "stream" => {
                return Err(usage(&format!("write {verb} METHOD [MESSAGE], as {verb} /echo Hello")));
            }
            "connect" => return Err(usage("write connect ENDPOINT, as connect tcp://localhost:8080")),
            _ => return Err(usage(&format!("there is no command {verb:?}: help lists them"))),
        }
        Ok(Next::Goes)
    }

    fn options(&self) -> Result<CallOptions, Status> {
        Ok(CallOptions::new().with_metadata(crate::send::metadata_of(&self.metadata)?))
    }

    async fn call(&self, (method, message): (&str, &str)) -> Result<(), Failure> {
        let options = self.options()?.with_timeout(self.timeout.unwrap_or(Duration::MAX));
        let response = tokio::select! {
            biased;
            () = interrupt() => return Err(Failure::Interrupted),
            response = self.client.call_with(method, message.to_owned(), options) => response,
        };
        self.met(method, response.as_ref().err());
        self.output.print(&response?.message)
    }

    async fn stream(&self, (method, message): (&str, &str), lines: Lines<'_>) -> Result<(), Failure> {
        let (options, output) = (self.options()?, self.output);
        let show = |message: &Bytes| output.print(message);
        let mut ended = false;
        let outcome = match lines {
            _ if !message.is_empty() => {
                let messages = stream::fixed([Bytes::copy_from_slice(message.as_bytes())]);
                stream::exchange(&self.client, method, options, messages, show, interrupt()).await?
            }
            Lines::Script(script) => {
                let next = async || until_dot(script.recv().await, &mut ended);
                let outcome =
                    stream::exchange_with(&self.client, method, options, next, show, interrupt()).await?;
                // What it did not want are no commands.
                while !ended && until_dot(script.recv().await, &mut ended).is_some() {}
                outcome
            }
            Lines::Terminal => {
                let mut typed = Typed::new()?;
                print(b"each line is a message; Ctrl-D ends your side, Ctrl-C the call\n")?;
                let next = async || until_dot(typed.line().await, &mut ended);
                stream::exchange_with(&self.client, method, options, next, show, interrupt()).await?
            }
        };
        self.met(method, outcome.end.as_ref().err());
        match outcome.end {
            Err(status) if status.reason() == Reason::CANCELLED => Err(Failure::Interrupted),
            end => Ok(end?),
        }
    }

    /// A method was called: it is one, unless the server says otherwise.
    fn met(&self, method: &str, failure: Option<&Status>) {
        if failure.is_none_or(|status| {
            let reason = status.reason();
            reason != Reason::UNKNOWN_METHOD && reason != Reason::INVALID_ARGUMENT
        }) {
            self.learn(method);
        }
    }

    fn learn(&self, method: &str) {
        let mut methods = lock(&self.methods);
        if method.starts_with('/') && methods.len() < METHODS {
            methods.insert(method.to_owned());
        }
    }

    /// The protocol has no list of methods; the server's metrics name those that were called.
    async fn list(&self) -> Result<(), Failure> {
        let answer = tokio::select! {
            biased;
            () = interrupt() => return Err(Failure::Interrupted),
            answer = self.client.call(METRICS, Bytes::new()) => answer,
        };
        match answer {
            Ok(answer) => {
                let text = String::from_utf8_lossy(&answer.message).into_owned();
                for part in text.split("method=\"").skip(1) {
                    self.learn(part.split('"').next().unwrap_or(""));
                }
            }
            Err(status) => say(&format!("{METRICS} names no more: {status}")),
        }
        let methods: String =
            lock(&self.methods).iter().map(|method| format!("{}\n", escape(method))).collect();
        print(methods.as_bytes())
    }

    fn header(&mut self, text: &str) -> Result<(), Failure> {
        if text.is_empty() {
            let lines: String = self
                .metadata
                .iter()
                .map(|(key, value)| match is_secret(key) {
                    true => format!("{key}=[hidden]\n"),
                    false => format!("{key}={}\n", escape(&String::from_utf8_lossy(value))),
                })
                .collect();
            return print(lines.as_bytes());
        }
        let key = text.split('=').next().unwrap_or(text);
        if !text.contains('=') {
            self.metadata.retain(|(set, _)| set != key);
            return Ok(());
        }
        let entry = entry(text).map_err(|error| usage(&error))?;
        self.metadata.retain(|(set, _)| set != key);
        self.metadata.push(entry);
        Ok(())
    }

    fn set_timeout(&mut self, text: &str) -> Result<(), Failure> {
        match text.parse() {
            _ if text.is_empty() => {
                let limit =
                    self.timeout.map_or("none".to_owned(), |limit| format!("{} ms", limit.as_millis()));
                print(format!("{limit}\n").as_bytes())?;
            }
            Ok(0) => self.timeout = None,
            Ok(limit) => self.timeout = Some(Duration::from_millis(limit)),
            Err(_) => return Err(usage("write timeout MS, as timeout 500; 0 is none")),
        }
        Ok(())
    }

    fn status(&self) -> Result<(), Failure> {
        let state = match self.client.connectivity() {
            Connectivity::Idle => "not connected; the next call connects",
            Connectivity::Connecting => "connecting",
            Connectivity::Ready => "connected",
            Connectivity::TransientFailure => "not connected; the last try failed, the next one waits",
            _ => "closed",
        };
        let mut text = format!("{}: {state}\n", escape(&self.endpoint));
        for connection in self.client.connections() {
            text += &format!(
                "  {}: {:.1} s old, {} calls, {} open, {} bytes in, {} bytes out\n",
                escape(&connection.peer),
                connection.age.as_secs_f64(),
                connection.calls,
                connection.streams,
                connection.bytes_in,
                connection.bytes_out,
            );
        }
        print(text.as_bytes())
    }
}

/// Ctrl-C, from when this is first polled: before what it is to interrupt. Never, where the system cannot tell.
async fn interrupt() {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending().await
    }
}

fn usage(what: &str) -> Failure {
    Status::from_reason(Reason::INVALID_ARGUMENT, what.to_owned()).into()
}

fn terminal(error: ReadlineError) -> Failure {
    match error {
        ReadlineError::Io(error) => error.into(),
        error => io::Error::other(error).into(),
    }
}

/// The first word, and what is behind it.
fn split(line: &str) -> (&str, &str) {
    line.split_once(char::is_whitespace).unwrap_or((line, ""))
}

/// The method in a command, if it is there.
fn method_of(line: &str) -> &str {
    match split(line.trim_start()) {
        ("call" | "stream", rest) => split(rest).0,
        (verb, _) => verb,
    }
}

/// Whether a command has a value in it that nobody should find in a file.
fn sets_secret(line: &str) -> bool {
    let (verb, rest) = split(line.trim_start());
    verb == "header" && rest.split_once('=').is_some_and(|(key, _)| is_secret(key))
}

/// A line as a message; the one with only a dot is the end.
fn until_dot(line: Option<io::Result<Bytes>>, ended: &mut bool) -> Option<io::Result<Bytes>> {
    *ended = matches!(&line, None | Some(Err(_))) || matches!(&line, Some(Ok(line)) if line == ".");
    line.filter(|line| line.is_err() || !*ended)
}

/// Where the history is kept: a folder that only its owner may enter, made if need be.
fn history_file() -> Result<Option<PathBuf>, Failure> {
    let absolute = |path: PathBuf| path.is_absolute().then_some(path);
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).and_then(absolute);
    let home = || std::env::home_dir().and_then(absolute).map(|home| home.join(".local/state"));
    let Some(folder) = state.or_else(home).map(|state| state.join("valkyrie")) else { return Ok(None) };
    let mut make = std::fs::DirBuilder::new();
    make.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut make, 0o700);
    make.create(&folder).map_err(|error| named(&folder, error))?;
    let path = folder.join("history");
    #[cfg(unix)]
    if path.exists() {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&path, mode).map_err(|error| named(&path, error))?;
    }
    Ok(Some(path))
}

/// Lines as they are typed while a stream is open, edited by the terminal itself. A thread waits for them, and for this to be dropped: the
/// next line is the prompt's again.
#[cfg(unix)]
struct Typed {
    lines: Messages,
    _until: io::PipeWriter,
}

#[cfg(unix)]
impl Typed {
    fn new() -> io::Result<Self> {
        let mut input: std::fs::File = std::os::fd::AsFd::as_fd(&io::stdin()).try_clone_to_owned()?.into();
        let (ended, until) = io::pipe()?;
        let (to, lines) = tokio::sync::mpsc::channel(1);
        std::thread::spawn(move || {
            let mut rest = Vec::new();
            while let Some(line) = typed(&mut input, &ended, &mut rest).transpose() {
                let is_last = line.is_err();
                if to.blocking_send(line).is_err() || is_last {
                    break;
                }
            }
        });
        Ok(Self { lines, _until: until })
    }

    async fn line(&mut self) -> Option<io::Result<Bytes>> {
        self.lines.recv().await
    }
}

/// The next line; `None` at Ctrl-D, or once nobody wants one.
#[cfg(unix)]
fn typed(input: &mut std::fs::File, ended: &io::PipeReader, rest: &mut Vec<u8>) -> io::Result<Option<Bytes>> {
    use rustix::event::{PollFd, PollFlags, poll};
    use std::io::Read;
    loop {
        if let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            return Ok(Some(Bytes::copy_from_slice(&line[..end])));
        }
        let mut either = [PollFd::new(&*input, PollFlags::IN), PollFd::new(ended, PollFlags::IN)];
        match poll(&mut either, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        if !either[1].revents().is_empty() {
            return Ok(None);
        }
        // A terminal that is ready has a line, or its end: this does not wait.
        let mut part = [0; 4_096];
        match input.read(&mut part)? {
            0 => return Ok(None),
            read => rest.extend_from_slice(&part[..read]),
        }
    }
}

#[cfg(not(unix))]
struct Typed(Messages);

#[cfg(not(unix))]
impl Typed {
    fn new() -> io::Result<Self> {
        Ok(Self(stream::read(None, Input::Lines)))
    }

    async fn line(&mut self) -> Option<io::Result<Bytes>> {
        self.0.recv().await
    }
}

/// What the line editor knows: how to complete, and the prompt's colour.
struct Line {
    methods: Methods,
    coloured: bool,
}

impl Completer for Line {
    type Candidate = String;

    fn complete(&self, line: &str, at: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        let before = &line[..at];
        let start = before.rfind(char::is_whitespace).map_or(0, |space| space + 1);
        let word = &before[start..];
        let is_verb = before[..start].trim().is_empty();
        let of_method = ["call", "stream"].contains(&before[..start].trim());
        let mut found = Vec::new();
        if is_verb {
            found.extend(VERBS.iter().filter(|verb| verb.starts_with(word)).map(|verb| format!("{verb} ")));
        }
        if of_method || is_verb && word.starts_with('/') {
            found.extend(lock(&self.methods).iter().filter(|method| method.starts_with(word)).cloned());
        }
        Ok((start, found))
    }
}

impl Highlighter for Line {
    fn highlight_prompt<'b, 's: 'b, 'p: 'b>(&'s self, prompt: &'p str, _: bool) -> Cow<'b, str> {
        match self.coloured {
            true => colour(prompt).into(),
            false => prompt.into(),
        }
    }
}

impl Hinter for Line {
    type Hint = String;
}

impl Validator for Line {}
impl Helper for Line {}
