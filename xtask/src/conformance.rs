//! The support matrix: every conformance case, in every language, through the package that users install.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use serde_json::{Value, json};

use crate::check;
use crate::package::{FRESH, read_json};
use crate::setup::BROWSERS;
use crate::step::{During, Outcome, Project, Steps, failed, read_lines, run};
use crate::{kotlin, support, swift, web};

/// The case whose detail is a figure, for people.
const TIMED: &str = "cancel_times";

pub(crate) const CASES: &str = "tests/conformance/cases.json";
/// Scripts, and the trace of each.
const TRACES: &str = "tests/traces";
const CREDENTIALS: &str = "target/credentials.json";
/// What of the cases of certificates is a page's: it reads no other files than the project's.
const PAGES: &str = "target/certificates.json";

/// Which side offers a version of the protocol that the other does not know.
#[derive(Clone, Copy, PartialEq)]
enum Peers {
    Same,
    NewerServer,
    NewerClient,
}

/// A column of the matrix: a language over one transport.
struct Column {
    language: &'static str,
    scheme: &'static str,
    peers: Peers,
}

impl Column {
    const fn new(language: &'static str, scheme: &'static str, peers: Peers) -> Self {
        Self { language, scheme, peers }
    }

    fn head(&self) -> String {
        let peers = match self.peers {
            Peers::Same => "",
            Peers::NewerServer => ", newer server",
            Peers::NewerClient => ", newer client",
        };
        format!("{}/{}{peers}", self.language, self.scheme)
    }
}

/// Offers versions 1 and 2 to a program that is started with it.
const NEWER: (&str, &str) = ("VALKYRIE_CONFORMANCE_VERSIONS", "2");

/// Every language over every transport that it has, and each with a peer of another version.
const COLUMNS: [Column; 62] = [
    Column::new("rust", "tcp", Peers::Same),
    Column::new("rust", "unix", Peers::Same),
    Column::new("rust", "ws", Peers::Same),
    Column::new("rust", "tls", Peers::Same),
    Column::new("rust", "wss", Peers::Same),
    Column::new("rust", "quic", Peers::Same),
    Column::new("rust", "sealed", Peers::Same),
    Column::new("python", "tcp", Peers::Same),
    Column::new("python", "unix", Peers::Same),
    Column::new("python", "ws", Peers::Same),
    Column::new("python", "tls", Peers::Same),
    Column::new("python", "wss", Peers::Same),
    Column::new("python", "quic", Peers::Same),
    Column::new("python", "sealed", Peers::Same),
    Column::new("python", "echo", Peers::Same),
    Column::new("node", "tcp", Peers::Same),
    Column::new("node", "unix", Peers::Same),
    Column::new("node", "ws", Peers::Same),
    Column::new("node", "tls", Peers::Same),
    Column::new("node", "wss", Peers::Same),
    Column::new("node", "quic", Peers::Same),
    Column::new("node", "sealed", Peers::Same),
    Column::new("node", "echo", Peers::Same),
    Column::new("c", "tcp", Peers::Same),
    Column::new("c", "unix", Peers::Same),
    Column::new("c", "ws", Peers::Same),
    Column::new("c", "tls", Peers::Same),
    Column::new("c", "wss", Peers::Same),
    Column::new("c", "quic", Peers::Same),
    Column::new("c", "sealed", Peers::Same),
    Column::new("c", "echo", Peers::Same),
    Column::new("kotlin", "tcp", Peers::Same),
    Column::new("kotlin", "unix", Peers::Same),
    Column::new("kotlin", "ws", Peers::Same),
    Column::new("kotlin", "tls", Peers::Same),
    Column::new("kotlin", "wss", Peers::Same),
    Column::new("kotlin", "quic", Peers::Same),
    Column::new("kotlin", "sealed", Peers::Same),
    Column::new("kotlin", "echo", Peers::Same),
    Column::new("swift", "tcp", Peers::Same),
    Column::new("swift", "unix", Peers::Same),
    Column::new("swift", "ws", Peers::Same),
    Column::new("swift", "tls", Peers::Same),
    Column::new("swift", "wss", Peers::Same),
    Column::new("swift", "quic", Peers::Same),
    Column::new("swift", "sealed", Peers::Same),
    Column::new("swift", "echo", Peers::Same),
    Column::new("chromium", "ws", Peers::Same),
    Column::new("chromium", "wss", Peers::Same),
    Column::new("chromium", "sealed", Peers::Same),
    Column::new("firefox", "ws", Peers::Same),
    Column::new("firefox", "wss", Peers::Same),
    Column::new("firefox", "sealed", Peers::Same),
    Column::new("rust", "tcp", Peers::NewerServer),
    Column::new("python", "tcp", Peers::NewerServer),
    Column::new("node", "tcp", Peers::NewerServer),
    Column::new("c", "tcp", Peers::NewerServer),
    Column::new("kotlin", "tcp", Peers::NewerServer),
    Column::new("swift", "tcp", Peers::NewerServer),
    Column::new("chromium", "ws", Peers::NewerServer),
    Column::new("firefox", "ws", Peers::NewerServer),
    Column::new("rust", "tcp", Peers::NewerClient),
];

/// The heads of the columns, such as `python/tcp`.
pub(crate) fn columns() -> Vec<String> {
    let tables = ["certificates", "credentials", "traces", "failover"].into_iter();
    let tables = tables.flat_map(|name| languages().map(move |language| format!("{language}/{name}")));
    COLUMNS.iter().map(Column::head).chain(tables).collect()
}

/// Adds the step that fills the matrix.
pub(crate) fn add<'a>(steps: &mut Steps<'a>, project: &'a Project) {
    // It needs no step: a package that was not made is a column of missing cells beside the columns that tell something.
    steps.add("conformance", "every case in every language: the support matrix", &[], || matrix(project));
    steps.add("supported", "what SUPPORT.md says each language has passed there", &["conformance"], || {
        support::check_results(project)
    });
}

/// A conformance server, ended when dropped.
pub(crate) struct Server {
    child: Child,
    /// The server ends when this closes, so that it never outlives us.
    lifeline: Option<ChildStdin>,
    endpoints: Value,
}

impl Server {
    /// Builds the programs of the suite and gives the server's path.
    pub(crate) fn build(project: &Project) -> Outcome<PathBuf> {
        run(&mut project.cargo(["build", "--quiet", "-p", "valkyrie-conformance", "--bins", "--examples"]))?;
        Ok(project.path("target/debug/valkyrie-conformance-server"))
    }

    /// Starts a server and waits until it listens.
    pub(crate) fn start(project: &Project) -> Outcome<Server> {
        Server::run(project.command(Server::build(project)?))
    }

    fn run(mut command: Command) -> Outcome<Server> {
        Server::again(&mut command)
    }

    /// Starts another one.
    fn again(command: &mut Command) -> Outcome<Server> {
        // One case makes a handler panic: its backtrace would bury what matters.
        command.env("RUST_BACKTRACE", "0").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().during("conformance server")?;
        let mut line = String::new();
        let read =
            BufReader::new(child.stdout.take().expect("its standard output is piped")).read_line(&mut line);
        let lifeline = child.stdin.take();
        let mut server = Server { child, lifeline, endpoints: Value::Null };
        read.during("conformance server")?;
        server.endpoints = serde_json::from_str(&line).during("the conformance server's first line")?;
        Ok(server)
    }

    /// Takes away what it leaves when it is killed.
    fn take_away(&self) {
        let unix = self.endpoint("unix");
        for path in [unix.trim_start_matches("unix://"), &self.endpoint("certificates")] {
            let _ = std::fs::remove_file(path);
        }
    }

    /// Where it listens: `tcp`, `unix`, `ws`, `tls`, `wss` or `quic`; or another value of its first line.
    pub(crate) fn endpoint(&self, name: &str) -> String {
        self.endpoints[name].as_str().unwrap_or_default().to_owned()
    }

    /// What a runner or a test gets in its environment, for a transport.
    pub(crate) fn variables(&self, scheme: &str) -> Variables {
        self.variables_of(scheme, false)
    }

    fn variables_of(&self, scheme: &str, sealed: bool) -> Variables {
        let [certificates, absent] =
            ["certificates", &format!("absent_{scheme}")].map(|name| self.endpoint(name));
        variables(&self.endpoint(scheme), &certificates, &absent, sealed)
    }
}

pub(crate) type Variables = [(&'static str, String); 4];

fn variables(endpoint: &str, certificates: &str, absent: &str, sealed: bool) -> Variables {
    [
        ("VALKYRIE_CONFORMANCE_SEALED", u8::from(sealed).to_string()),
        ("VALKYRIE_CONFORMANCE_ENDPOINT", endpoint.to_owned()),
        ("VALKYRIE_CONFORMANCE_CERTIFICATES", certificates.to_owned()),
        ("VALKYRIE_CONFORMANCE_ABSENT_ENDPOINT", absent.to_owned()),
    ]
}

/// The server inside the native packages.
pub(crate) const ECHO: &str = "echo://core";

/// As [`Server::variables`], with no server but the one inside the package: nobody asks for a certificate there.
pub(crate) fn echo_variables() -> Variables {
    variables(ECHO, "/dev/null", "echo://absent", false)
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.lifeline.take());
        let _ = self.child.wait();
    }
}

/// What a runner said about one case, or why it was not asked.
enum Cell {
    Passed(String),
    Failed(String),
    Absent(String),
}

/// By the case's name.
type Cells = BTreeMap<String, Cell>;

fn matrix(project: &Project) -> Outcome {
    let cases = read_json(&project.path(CASES))?;
    let cases = names(&cases);
    if cases.is_empty() {
        return failed(format!("{CASES} has no case"));
    }
    let program = Server::build(project)?;
    let server = Server::run(project.command(&program))?;
    let mut newer = project.command(&program);
    newer.env(NEWER.0, NEWER.1);
    let newer = Server::run(newer)?;
    let mut columns = Vec::new();
    let shown: Vec<&Column> =
        COLUMNS.iter().filter(|column| !is_browser(column.language) || web::exists(project)).collect();
    for column in &shown {
        let server = if column.peers == Peers::NewerServer { &newer } else { &server };
        columns.push(said(&column.head(), || {
            let mut runner = runner(project, column.language)?;
            if column.peers == Peers::NewerClient {
                runner.env(NEWER.0, NEWER.1);
            }
            runner.envs(match column.scheme {
                "echo" => echo_variables(),
                // A sealed session over what the language has that is not encrypted.
                "sealed" if is_browser(column.language) => server.variables_of("ws", true),
                "sealed" => server.variables_of("tcp", true),
                scheme => server.variables(scheme),
            });
            Ok(runner)
        }));
    }
    let heads = shown.iter().map(|column| column.head()).collect();
    let transports = Table { cases, heads, columns };
    let tables = [
        transports,
        certificates(project, &server)?,
        credentials(project, &server)?,
        traces(project, &server)?,
        failover(project, &server)?,
    ];
    report(project, &tables)
}

/// What each language's client makes of servers that fail as a script says: the same steps at the same times, to the byte.
fn traces(project: &Project, server: &Server) -> Outcome<Table> {
    let path = project.path(TRACES).join("scripts.json");
    let cases = names(&read_json(&path)?);
    let pages = Path::new(TRACES).join("scripts.json");
    let mut table = everywhere(project, server, "traces", cases, [&path, &pages], &all());
    for (case, cell) in table.columns.iter_mut().flatten() {
        let kept = project.path(TRACES).join(format!("{case}.txt"));
        let kept = std::fs::read_to_string(&kept).during(kept.display())?;
        if let Cell::Passed(trace) = cell
            && *trace != kept
        {
            let same = trace.lines().zip(kept.lines()).take_while(|(one, other)| one == other).count();
            let line = |text: &str| text.lines().nth(same).unwrap_or("the end").to_owned();
            let (expected, got) = (line(&kept), line(trace));
            *cell = Cell::Failed(format!("line {}: expected {expected:?}, got {got:?}", same + 1));
        }
    }
    Ok(table)
}

/// What each language says of every certificate of tests/certificates, of peers that speak something else, and of records that
/// a wire changed.
fn certificates(project: &Project, server: &Server) -> Outcome<Table> {
    let shows = Server::run(project.command("target/debug/valkyrie-conformance-certificates"))?;
    let path = shows.endpoint("cases");
    let cases = names(&read_json(Path::new(&path))?);
    let pages = read_json(Path::new(&shows.endpoint("pages")))?;
    let (absent, pages): (Vec<Value>, Vec<Value>) = pages
        .as_array()
        .cloned()
        .unwrap_or_default()
        .into_iter()
        .partition(|case| case["absent"].is_string());
    std::fs::write(project.path(PAGES), Value::from(pages).to_string()).during(PAGES)?;
    let mut table =
        everywhere(project, server, "certificates", cases, [Path::new(&path), Path::new(PAGES)], &all());
    for (cells, head) in table.columns.iter_mut().zip(&table.heads) {
        if head.split_once('/').is_some_and(|(language, _)| is_browser(language)) {
            let text = |case: &Value, key: &str| case[key].as_str().unwrap_or_default().to_owned();
            cells.extend(absent.iter().map(|case| (text(case, "case"), Cell::Absent(text(case, "absent")))));
        }
    }
    Ok(table)
}

/// What each language says of tokens: those that are right, wrong, late, and made by functions; and what each principal of a
/// policy may call.
fn credentials(project: &Project, server: &Server) -> Outcome<Table> {
    // Made now: some of the tokens end in minutes.
    let path = project.path(CREDENTIALS);
    run(project.command("target/debug/valkyrie-conformance-tokens").arg(&path))?;
    let cases = names(&read_json(&path)?);
    Ok(everywhere(project, server, "credentials", cases, [&path, Path::new(CREDENTIALS)], &all()))
}

/// 10,000 calls of each language to three servers, one of which is killed meanwhile.
fn failover(project: &Project, server: &Server) -> Outcome<Table> {
    const CASES: &str = "target/failover.json";
    let (mut columns, mut heads) = (Vec::new(), Vec::new());
    for language in languages().filter(|language| !is_browser(language) || web::exists(project)) {
        let mut start = project.command("target/debug/valkyrie-conformance-server");
        start.env("VALKYRIE_CONFORMANCE_MAY_DIE", "1");
        let three = [Server::again(&mut start)?, Server::again(&mut start)?, Server::again(&mut start)?];
        let scheme = if is_browser(language) { "ws" } else { "tcp" };
        let endpoint = three.each_ref().map(|server| server.endpoint(scheme)).join(",");
        let cases = json!([{"case": "one_of_three_is_killed", "action": "failover", "endpoint": endpoint, "count": 10_000}]);
        std::fs::write(project.path(CASES), cases.to_string()).during(CASES)?;
        let cases = project.path(CASES);
        let table =
            everywhere(project, server, "failover", Vec::new(), [&cases, Path::new(CASES)], &[language]);
        columns.extend(table.columns);
        heads.extend(table.heads);
        three.iter().for_each(Server::take_away);
    }
    Ok(Table { cases: vec!["one_of_three_is_killed".to_owned()], heads, columns })
}

/// A table with a column for each language. The cases are in two files: of programs, and of pages, which lies in the project.
fn everywhere(
    project: &Project,
    server: &Server,
    name: &str,
    cases: Vec<String>,
    [programs, pages]: [&Path; 2],
    languages: &[&str],
) -> Table {
    let (mut columns, mut heads) = (Vec::new(), Vec::new());
    for language in languages.iter().filter(|language| !is_browser(language) || web::exists(project)) {
        let head = format!("{language}/{name}");
        columns.push(said(&head, || {
            let mut runner = runner(project, language)?;
            match is_browser(language) {
                // What a page decides on about certificates is a sealed session, whose module has scripts, too.
                true => runner
                    .envs(server.variables_of("ws", ["certificates", "traces"].contains(&name)))
                    .env("VALKYRIE_CONFORMANCE_CASES", Path::new("/page").join(pages)),
                false => runner.envs(server.variables("tcp")).env("VALKYRIE_CONFORMANCE_CASES", programs),
            };
            Ok(runner)
        }));
        heads.push(head);
    }
    Table { cases, heads, columns }
}

/// Every language, and the package for pages in each browser.
fn languages() -> impl Iterator<Item = &'static str> {
    ["rust", "python", "node", "c", "kotlin", "swift"]
        .into_iter()
        .chain(BROWSERS.iter().map(|(browser, ..)| *browser))
}

fn all() -> Vec<&'static str> {
    languages().collect()
}

/// The names of cases.
fn names(cases: &Value) -> Vec<String> {
    cases
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|case| Some(case["case"].as_str()?.to_owned()))
        .collect()
}

/// Runs a runner and takes what it says of each case.
fn said(head: &str, runner: impl FnOnce() -> Outcome<Command>) -> Cells {
    let mut cells = BTreeMap::new();
    let ran = runner().and_then(|mut runner| {
        read_lines(&mut runner, |line| match serde_json::from_str::<Value>(line) {
            Ok(said) if said["case"].is_string() => {
                let text = |key: &str| said[key].as_str().unwrap_or_default().to_owned();
                let cell = if said["ok"] == true { Cell::Passed } else { Cell::Failed };
                cells.insert(text("case"), cell(text("detail")));
            }
            _ => println!("{line}"),
        })
    });
    // A runner that breaks off leaves empty cells, and those fail below with the rest in view.
    if let Err(stop) = ran {
        println!("   {head}: {stop}");
    }
    cells
}

/// Whether this is the package for browsers, in one of them.
fn is_browser(language: &str) -> bool {
    BROWSERS.iter().any(|(name, ..)| *name == language)
}

/// The program that runs the cases in a language.
fn runner(project: &Project, language: &str) -> Outcome<Command> {
    let fresh = project.path(FRESH);
    let mut runner = match language {
        "rust" => project.command("target/debug/valkyrie-conformance-rust"),
        "python" => {
            let mut python = project.command(fresh.join("python/bin/python"));
            python.arg("-P").arg(project.path("tests/conformance/python/runner.py"));
            python
        }
        "node" => {
            let mut node = project.command("node");
            node.arg(project.path("tests/conformance/node/runner.mjs")).current_dir(fresh.join("node"));
            node
        }
        "c" => {
            let program = project.path("target/package/conformance-c");
            let runner = project.path("tests/conformance/c/runner.c");
            run(&mut check::c_compiler(project, "gcc", "-std=c99", &runner, &program)?)?;
            project.command(program)
        }
        "kotlin" => kotlin::program(project, "dev.valkyrie.conformance.RunnerKt"),
        "swift" => swift::runner(project)?,
        browser if is_browser(browser) => {
            let mut page = web::page(project, browser, "tests/conformance/web/runner.mjs")?;
            page.env("VALKYRIE_CONFORMANCE_CASES", format!("/page/{CASES}"));
            return Ok(page);
        }
        language => return failed(format!("there is no runner for {language}")),
    };
    runner.env("VALKYRIE_CONFORMANCE_CASES", project.path(CASES));
    Ok(runner)
}

/// Cases, and what became of them in each column.
struct Table {
    cases: Vec<String>,
    heads: Vec<String>,
    columns: Vec<Cells>,
}

/// Prints the tables, writes them to `target/matrix.md` and `target/matrix.json`, and fails on any cell that is not ok.
fn report(project: &Project, tables: &[Table]) -> Outcome {
    let (mut text, mut ok, mut all) = (String::new(), 0, 0);
    let (mut wrong, mut rows) = (Vec::new(), Vec::new());
    let mut reasons: Vec<&str> = Vec::new();
    for Table { cases, heads, columns } in tables {
        let width = cases.iter().map(|case| case.len()).max().unwrap_or(0);
        text += &format!("| {:width$} | {} |\n", "case", heads.join(" | "));
        text += &format!(
            "|-{:-<width$}-|{}\n",
            "",
            heads.iter().map(|head| format!("-{:-<1$}-|", "", head.len())).collect::<String>()
        );
        for case in cases {
            let mut row = serde_json::Map::from_iter([("case".to_owned(), json!(case))]);
            text += &format!("| {case:width$} |");
            for (cells, head) in columns.iter().zip(heads) {
                let mark = match cells.get(case) {
                    Some(Cell::Passed(_)) => "ok".to_owned(),
                    Some(Cell::Failed(detail)) => {
                        wrong.push(format!("{head} {case}: {detail}"));
                        "FAILED".to_owned()
                    }
                    Some(Cell::Absent(reason)) => {
                        format!("no ({})", support::number_of(&mut reasons, reason))
                    }
                    None => "MISSING".to_owned(),
                };
                all += usize::from(!mark.starts_with("no"));
                ok += usize::from(mark == "ok");
                let column = head.len();
                text += &format!(" {mark:column$} |");
                row.insert(head.clone(), json!(mark));
            }
            text.push('\n');
            rows.push(Value::Object(row));
        }
        text.push('\n');
        for (cells, head) in columns.iter().zip(heads) {
            let missing: Vec<_> = cases.iter().filter(|case| !cells.contains_key(*case)).collect();
            if let Some(first) = missing.first() {
                wrong.push(format!(
                    "{head}: nothing was said about {} cases, the first is {first}",
                    missing.len()
                ));
            }
        }
    }
    if !reasons.is_empty() {
        text += "Why not:\n\n";
        for (number, reason) in reasons.iter().enumerate() {
            text += &format!("{}. {reason}\n", number + 1);
        }
    }
    println!("\n{text}");
    println!("from a call's cancel to the end of its handler (case {TIMED}):");
    for (cells, head) in tables.iter().flat_map(|table| table.columns.iter().zip(&table.heads)) {
        if let Some(Cell::Passed(detail)) = cells.get(TIMED) {
            println!("   {head:24} {detail}");
        }
    }
    std::fs::write(project.path("target/matrix.md"), &text).during("target/matrix.md")?;
    std::fs::write(project.path("target/matrix.json"), format!("{:#}\n", Value::from(rows)))
        .during("matrix.json")?;
    for cell in &wrong {
        println!("   {cell}");
    }
    let note = format!("{ok} of {all} cells");
    if wrong.is_empty() { Ok(note) } else { failed(format!("{note}; first: {}", wrong[0])) }
}
