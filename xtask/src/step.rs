//! Steps: the named, timed pieces that every verb is made of, and the commands that they run.
//! Knows nothing of what a step does.

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::{Duration, Instant};

/// Why a step ended early.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Something that should hold does not; the sentence says what.
    Failed(String),
    /// This machine cannot run the step; the sentence says why. With `CI=true` it counts as a failure.
    Skipped(String),
}

/// What a step gives back: a note for the summary ("213 tests"), or why it ended early.
pub(crate) type Outcome<T = String> = Result<T, Stop>;

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stop::Failed(reason) => write!(f, "failed: {reason}"),
            Stop::Skipped(reason) => write!(f, "skipped: {reason}"),
        }
    }
}

/// A failed step with this reason.
pub(crate) fn failed<T>(reason: impl Into<String>) -> Outcome<T> {
    Err(Stop::Failed(reason.into()))
}

/// Gives an error of the standard library the words that say what was tried.
pub(crate) trait During<T> {
    /// "`what`: `error`" as a failure.
    fn during(self, what: impl fmt::Display) -> Outcome<T>;
}

impl<T, E: fmt::Display> During<T> for Result<T, E> {
    fn during(self, what: impl fmt::Display) -> Outcome<T> {
        self.map_err(|error| Stop::Failed(format!("{what}: {error}")))
    }
}

/// Where the set-up puts Node when the system's is too old.
pub(crate) const OWN_NODE: &str = "target/node/bin";

/// The checkout and how it is being checked.
pub(crate) struct Project {
    /// The folder of the workspace's `Cargo.toml`.
    pub(crate) root: PathBuf,
    /// `CI=true`: a skip is a failure.
    pub(crate) ci: bool,
    /// Where all that is started keeps its temporary files. It goes with the project.
    room: OnceLock<PathBuf>,
}

/// Where cargo keeps what it gets from the network.
pub(crate) fn cargo_home() -> Outcome<PathBuf> {
    let of = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    match of("CARGO_HOME").or_else(|| Some(of("HOME")?.join(".cargo"))) {
        Some(home) => Ok(home),
        None => failed("neither CARGO_HOME nor HOME says where cargo keeps its packages"),
    }
}

impl Project {
    /// The checkout that this program was built from.
    pub(crate) fn find() -> Project {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask has a parent folder");
        let ci = std::env::var("CI").is_ok_and(|ci| ci == "true" || ci == "1");
        Project { root: root.to_owned(), ci, room: OnceLock::new() }
    }

    /// A path inside the checkout.
    pub(crate) fn path(&self, inside: &str) -> PathBuf {
        self.root.join(inside)
    }

    /// A command that starts in the root of the checkout. Its program may be a path inside the checkout.
    pub(crate) fn command(&self, program: impl AsRef<Path>) -> Command {
        let program = program.as_ref();
        let inside = program.components().count() > 1 && program.is_relative();
        let mut command = Command::new(if inside { self.root.join(program) } else { program.to_owned() });
        command.current_dir(&self.root).env("TMPDIR", self.room());
        // A Node that the set-up fetched comes before the system's.
        let node = self.path(OWN_NODE);
        if node.is_dir() {
            let path = std::env::var_os("PATH").unwrap_or_default();
            let folders = std::iter::once(node).chain(std::env::split_paths(&path));
            command.env("PATH", std::env::join_paths(folders).unwrap_or(path));
        }
        command
    }

    /// A temporary folder of this run. Its name is short: a socket's path has 107 bytes at most.
    pub(crate) fn room(&self) -> &Path {
        self.room.get_or_init(|| {
            static NEXT: AtomicUsize = AtomicUsize::new(0);
            let name = format!("vk{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
            let room = std::env::temp_dir().join(name);
            std::fs::create_dir_all(&room).expect("the folder for temporary files can be written");
            room
        })
    }

    /// Fails when what was started left something of Valkyrie's in its temporary folder.
    pub(crate) fn nothing_left(&self) -> Outcome {
        let listed = std::fs::read_dir(self.room()).during("the temporary folder")?;
        let names = listed.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut left: Vec<_> = names.filter(|name| name.starts_with("valkyrie")).collect();
        left.sort();
        match left.first() {
            Some(first) => failed(format!("{} files or folders were left, such as {first}", left.len())),
            None => Ok(String::new()),
        }
    }

    /// `cargo` with these arguments, with the cargo and the toolchain that built this program.
    pub(crate) fn cargo<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(&self.root).args(arguments).env("TMPDIR", self.room());
        command
    }

    /// The files that git tracks or would track and whose names match the patterns.
    pub(crate) fn files(&self, patterns: &[&str]) -> Outcome<Vec<String>> {
        let mut git = self.command("git");
        git.args(["ls-files", "--cached", "--others", "--exclude-standard", "--"]).args(patterns);
        let listed = output(&mut git)?;
        Ok(listed.lines().filter(|file| self.path(file).is_file()).map(str::to_owned).collect())
    }

    /// The version that every package carries.
    pub(crate) fn version(&self) -> &'static str {
        env!("CARGO_PKG_VERSION")
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        if let Some(room) = self.room.get() {
            let _ = std::fs::remove_dir_all(room);
        }
    }
}

/// Runs a command with its output shown; fails unless it exits with 0.
pub(crate) fn run(command: &mut Command) -> Outcome<()> {
    announce(command);
    let status = command.status().during(program(command))?;
    if status.success() { Ok(()) } else { failed(format!("`{}` ended with {status}", line(command))) }
}

/// Runs a command with its output shown, and hands each line of its standard output to `seen`.
pub(crate) fn run_and_read(command: &mut Command, mut seen: impl FnMut(&str)) -> Outcome<()> {
    read_lines(command, |line| {
        println!("{line}");
        seen(line);
    })
}

/// Runs a command and hands each line of its standard output to `seen`, which shows what is worth showing.
pub(crate) fn read_lines(command: &mut Command, mut seen: impl FnMut(&str)) -> Outcome<()> {
    announce(command);
    let mut child = command.stdout(Stdio::piped()).spawn().during(program(command))?;
    let lines = BufReader::new(child.stdout.take().expect("its standard output is piped"));
    for line in lines.split(b'\n') {
        seen(String::from_utf8_lossy(&line.during(program(command))?).trim_end_matches('\r'));
    }
    let status = child.wait().during(program(command))?;
    if status.success() { Ok(()) } else { failed(format!("`{}` ended with {status}", line(command))) }
}

/// The standard output of a command that must exit with 0. Its standard error is shown.
pub(crate) fn output(command: &mut Command) -> Outcome {
    let output = command.stderr(Stdio::inherit()).output().during(program(command))?;
    if !output.status.success() {
        return failed(format!("`{}` ended with {}", line(command), output.status));
    }
    String::from_utf8(output.stdout).during(format!("output of `{}`", line(command)))
}

/// Whether a command exists and exits with 0. Its output is not shown.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// The number in a line such as `test result: ok. 12 passed; 0 failed; …`; 0 for any other line.
pub(crate) fn passed(line: &str) -> usize {
    let result = line.strip_prefix("test result: ok. ").and_then(|rest| rest.split(' ').next());
    result.and_then(|count| count.parse().ok()).unwrap_or(0)
}

fn announce(command: &Command) {
    println!("   $ {}", line(command));
}

fn program(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

/// The command as one would type it, cut where a list of files would fill the screen.
fn line(command: &Command) -> String {
    let mut words = vec![Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy()];
    words.extend(command.get_args().take(12).map(|word| word.to_string_lossy()));
    let more = command.get_args().count().saturating_sub(12);
    if more > 0 { format!("{} … {more} more", words.join(" ")) } else { words.join(" ") }
}

/// What a step does; it may say why it cannot.
type Work<'a> = Box<dyn FnOnce() -> Outcome + 'a>;

/// The steps of one verb, in order.
#[derive(Default)]
pub(crate) struct Steps<'a> {
    list: Vec<Step<'a>>,
}

struct Step<'a> {
    name: &'static str,
    about: &'static str,
    needs: &'static [&'static str],
    work: Work<'a>,
}

impl<'a> Steps<'a> {
    /// Adds a step. It fails at once, without running, when a step that it needs did not pass.
    pub(crate) fn add(
        &mut self,
        name: &'static str,
        about: &'static str,
        needs: &'static [&'static str],
        work: impl FnOnce() -> Outcome + 'a,
    ) {
        self.list.push(Step { name, about, needs, work: Box::new(work) });
    }

    /// Runs the steps in order, all of them even when one fails, and prints the table of their times. `only`, a list
    /// with commas, leaves out every step but those of these names; a name that no step has means those that contain it.
    /// In CI a skip is a failure, and with a folder for `logs` a step is one line: what its commands print goes to a file there.
    pub(crate) fn run(mut self, only: Option<&str>, ci: bool, logs: Option<&Path>) -> ExitCode {
        if let Some(only) = only {
            let names: Vec<&str> = self.list.iter().map(|step| step.name).collect();
            let mut wanted = Vec::new();
            for only in only.split(',') {
                let exact = names.contains(&only);
                let before = wanted.len();
                wanted.extend(
                    names.iter().filter(|name| if exact { **name == only } else { name.contains(only) }),
                );
                if wanted.len() == before {
                    eprintln!("no step is named {only:?}; there are: {}", names.join(", "));
                    return ExitCode::from(2);
                }
            }
            self.list.retain(|step| wanted.contains(&step.name));
        }
        let total = self.list.len();
        let width = self.list.iter().map(|step| step.name.len()).max().unwrap_or(0);
        let logs = match logs.map(Logs::into_folder).transpose() {
            Ok(logs) => logs.map(Arc::new),
            Err(stop) => {
                eprintln!("{stop}");
                return ExitCode::from(1);
            }
        };
        let began = Instant::now();
        let mut done: Vec<Done> = Vec::new();
        for (number, step) in self.list.into_iter().enumerate() {
            let so_far = began.elapsed().as_secs_f64() / 60.0;
            let number = number + 1;
            match &logs {
                Some(logs) => logs.begin(
                    &format!("[{number:2}/{total}, {so_far:4.1} min] {:width$} ", step.name),
                    step.name,
                ),
                None => println!("\n== [{number}/{total}, {so_far:.1} min] {}: {}", step.name, step.about),
            }
            let began = Instant::now();
            // Long verbs are for people, who see that they go on.
            let _watched = ci.then(|| Watch::over(step.name, logs.clone()));
            let missing = step
                .needs
                .iter()
                .find(|need| done.iter().any(|other| other.name == **need && other.outcome.is_err()));
            let outcome = match missing {
                Some(need) => failed(format!("not run, because `{need}` did not pass")),
                None => (step.work)(),
            };
            let outcome = match outcome {
                Err(Stop::Skipped(reason)) if ci => {
                    failed(format!("would be skipped, and CI=true allows no skip: {reason}"))
                }
                outcome => outcome,
            };
            let step = Done { name: step.name, outcome, spent: began.elapsed() };
            match &logs {
                Some(logs) => logs.end(&step),
                None => println!("-- {}: {} ({})", step.name, step.result(), seconds(step.spent)),
            }
            done.push(step);
        }
        summary(&done, width, began.elapsed(), logs.is_some())
    }
}

/// In CI: each step is one line where the run is shown, and what it and its commands print is a file. A log of all would
/// bury the line that matters.
struct Logs {
    folder: PathBuf,
    /// Where the run is shown: standard output and standard error, as they were.
    shown: [OwnedFd; 2],
}

/// What is shown of the file of a step that failed.
const TAIL: (usize, usize) = (40, 300);

impl Logs {
    fn into_folder(folder: &Path) -> Outcome<Logs> {
        std::fs::create_dir_all(folder).during(folder.display())?;
        let kept = |stream| rustix::io::fcntl_dupfd_cloexec(stream, 3).during("a copy of standard output");
        let shown = [kept(rustix::stdio::stdout())?, kept(rustix::stdio::stderr())?];
        Ok(Logs { folder: folder.to_owned(), shown })
    }

    fn file(&self, step: &str) -> PathBuf {
        self.folder.join(format!("{}.txt", step.replace(": ", "-").replace(' ', "-")))
    }

    /// Shows the beginning of the step's line, and sends to its file what is printed from here on.
    fn begin(&self, line: &str, step: &str) {
        print!("{line}");
        let _ = std::io::stdout().flush();
        if let Ok(file) = File::create(self.file(step)) {
            let _ = rustix::stdio::dup2_stdout(&file).and_then(|()| rustix::stdio::dup2_stderr(&file));
        }
    }

    /// Shows the end of the line and, of a step that failed, the end of its file.
    fn end(&self, step: &Done) {
        let [out, err] = &self.shown;
        let _ = rustix::stdio::dup2_stdout(out).and_then(|()| rustix::stdio::dup2_stderr(err));
        println!("{:>8}  {}", seconds(step.spent), step.result());
        let file = self.file(step.name);
        if step.outcome.is_err()
            && let Ok(text) = std::fs::read(&file)
        {
            for line in tail(&String::from_utf8_lossy(&text)) {
                println!("   {line}");
            }
            println!("   (all of it: {})", file.display());
        }
    }
}

/// The last lines of a text, none of them longer than a screen can show. A panic's frames would leave no room for what it says.
fn tail(text: &str) -> impl Iterator<Item = String> {
    let (lines, length) = TAIL;
    let lines_of = || text.lines().filter(|line| !is_of_a_backtrace(line));
    let skipped = lines_of().count().saturating_sub(lines);
    lines_of().skip(skipped).map(move |line| line.chars().take(length).collect())
}

/// Whether it is a line of what RUST_BACKTRACE=1 prints: `   3: function`, and `             at file:line:column`.
fn is_of_a_backtrace(line: &str) -> bool {
    let line = line.trim_start();
    let numbered = line.split_once(": ").is_some_and(|(number, _)| number.parse::<u16>().is_ok());
    numbered || line.starts_with("at ") || line == "stack backtrace:"
}

/// Ends the whole run when a step has no end: what hangs is to be told, not to be guessed from a log that stops.
struct Watch(#[expect(dead_code, reason = "its end tells the thread")] mpsc::Sender<()>);

/// Several times what the longest step takes on a machine with nothing built.
const STEP_LIMIT: Duration = Duration::from_secs(25 * 60);

impl Watch {
    fn over(step: &'static str, logs: Option<Arc<Logs>>) -> Self {
        let (watched, end) = mpsc::channel();
        std::thread::spawn(move || {
            if end.recv_timeout(STEP_LIMIT) == Err(mpsc::RecvTimeoutError::Timeout) {
                let without_end =
                    failed(format!("no end within {}; what runs is below", seconds(STEP_LIMIT)));
                let step = Done { name: step, outcome: without_end, spent: STEP_LIMIT };
                match logs {
                    Some(logs) => logs.end(&step),
                    None => println!("-- {}: {}", step.name, step.result()),
                }
                let _ = Command::new("ps").args(["-eo", "pid,ppid,etimes,stat,wchan:24,args"]).status();
                std::process::exit(1);
            }
        });
        Self(watched)
    }
}

struct Done {
    name: &'static str,
    outcome: Outcome,
    spent: Duration,
}

impl Done {
    fn result(&self) -> String {
        match &self.outcome {
            Ok(note) if note.is_empty() => "passed".to_owned(),
            Ok(note) => format!("passed: {note}"),
            Err(stop) => stop.to_string(),
        }
    }
}

/// The table of the steps, or of those that did not pass where each had its line already.
fn summary(done: &[Done], width: usize, spent: Duration, shown: bool) -> ExitCode {
    let count = |stopped: fn(&Done) -> bool| done.iter().filter(|step| stopped(step)).count();
    let passed = count(|step| step.outcome.is_ok());
    let failed = count(|step| matches!(step.outcome, Err(Stop::Failed(_))));
    println!("\n{:width$}  {:>8}  result", "step", "time");
    for step in done.iter().filter(|step| !shown || step.outcome.is_err()) {
        println!("{:width$}  {:>8}  {}", step.name, seconds(step.spent), step.result());
    }
    println!("{:width$}  {:>8}", "all", seconds(spent));
    println!("{passed} passed, {failed} failed");
    // Nothing that ran is nothing that was shown.
    if failed == 0 && !done.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

fn seconds(spent: Duration) -> String {
    format!("{:.1} s", spent.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_step_fails_the_run_and_the_steps_that_need_it() {
        let mut ran = false;
        let mut steps = Steps::default();
        steps.add("first", "", &[], || failed("broken"));
        steps.add("second", "", &["first"], || {
            ran = true;
            Ok(String::new())
        });
        assert_eq!(steps.run(None, false, None), ExitCode::from(1));
        assert!(!ran);
    }

    #[test]
    fn the_end_of_a_log_has_what_a_panic_says_and_not_its_frames() {
        let frames: String =
            (0..20).map(|at| format!("  {at:>2}: a::function\n             at ./a.rs:{at}:5\n")).collect();
        let text = format!(
            "{}panicked at a.rs:1:5:\nleft: 130\nstack backtrace:\n{frames}the end\n",
            "before\n".repeat(50)
        );
        let shown: Vec<String> = tail(&text).collect();
        assert_eq!(shown.len(), 40);
        assert_eq!(shown[36..], ["before", "panicked at a.rs:1:5:", "left: 130", "the end"]);
    }

    #[test]
    fn only_takes_names_and_parts_of_names() {
        let ran = std::cell::RefCell::new(Vec::new());
        for (only, expected) in
            [("node", "node"), ("node,py", "python node"), ("no such step", ""), ("node,no such step", "")]
        {
            let mut steps = Steps::default();
            for name in ["python", "node", "node types"] {
                let ran = &ran;
                steps.add(name, "", &[], move || {
                    ran.borrow_mut().push(name);
                    Ok(String::new())
                });
            }
            let code = steps.run(Some(only), false, None);
            assert_eq!(ran.take().join(" "), expected);
            assert_eq!(code == ExitCode::SUCCESS, !expected.is_empty());
        }
    }

    #[test]
    fn what_is_left_in_the_temporary_folder_is_told_and_goes() {
        let project = Project::find();
        let room = project.room().to_owned();
        let touch =
            |name: &str| succeeds(project.command("sh").args(["-c", &format!("touch $TMPDIR/{name}")]));
        assert!(touch("others") && project.nothing_left().is_ok());
        assert!(touch("valkyrie-1"));
        let Err(Stop::Failed(why)) = project.nothing_left() else { panic!("nothing was found") };
        assert!(why.ends_with("valkyrie-1"), "{why}");
        drop(project);
        assert!(!room.exists());
    }

    #[test]
    fn a_skip_fails_only_in_ci() {
        for ci in [false, true] {
            let mut steps = Steps::default();
            steps.add("only", "", &[], || Err(Stop::Skipped("no such program".into())));
            assert_eq!(steps.run(None, ci, None) == ExitCode::SUCCESS, !ci);
        }
    }
}
