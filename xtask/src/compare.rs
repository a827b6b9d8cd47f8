//! Is this checkout slower than another commit? Both are built here and run in turns on this machine, and what differs by more
//! than chance is told. What was measured goes to a history, and the history into a drawing.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::{Value, json};

use crate::step::{During, Outcome, Project, failed, output, run, succeeds};

/// Quick ones, from a header of the protocol to a call over a socket.
const BENCHES: [(&str, &str); 4] = [
    ("valkyrie-protocol", "codec"),
    ("valkyrie-sdk", "policy"),
    ("valkyrie-sdk", "cost"),
    ("valkyrie-sdk", "unary"),
];
/// How often each side is run: base, head, head, base, and so on.
const ROUNDS: usize = 7;
/// What is less is nobody's loss.
const LEAST: f64 = 0.05;
/// Of the 49 pairs of one run of each side, so many at most may be against what the others say. Were both sides the same, that
/// would come once in 850 times; and what looks slower is measured again, and must look so twice.
const AGAINST: usize = 2;

const FOLDER: &str = "target/bench";

/// One side: its programs and where they start.
struct Side {
    folder: PathBuf,
    programs: BTreeMap<String, PathBuf>,
}

/// The figures by their names: those of the base and those of the head, one of each round.
type Figures = BTreeMap<String, [Vec<f64>; 2]>;

/// Compares this checkout, as it lies here, with `base`, or with where it left main.
pub(crate) fn check(project: &Project, base: Option<&str>) -> Outcome {
    let base = commit(project, base)?;
    let head = output(project.command("git").args(["rev-parse", "HEAD"]))?.trim().to_owned();
    let changed = !output(project.command("git").args(["status", "--porcelain"]))?.is_empty();
    println!(
        "   {} (base) beside {}{}",
        &base[..12],
        &head[..12],
        if changed { " with changes" } else { "" }
    );
    let folder = project.path(FOLDER).join("base");
    let mut remove = project.command("git");
    let _ = succeeds(remove.args(["worktree", "remove", "--force"]).arg(&folder));
    run(project
        .command("git")
        .args(["worktree", "add", "--quiet", "--force", "--detach"])
        .arg(&folder)
        .arg(&base))?;
    let compared = compare(project, &folder);
    run(project.command("git").args(["worktree", "remove", "--force"]).arg(&folder))?;
    let (figures, slower) = compared?;

    let medians: BTreeMap<&String, [f64; 2]> =
        figures.iter().map(|(name, sides)| (name, sides.each_ref().map(|side| median(side)))).collect();
    let time = SystemTime::UNIX_EPOCH.elapsed().during("the clock")?.as_secs();
    let line = json!({
        "time": time, "base": base, "head": head, "changed": changed, "machine": machine(), "figures": medians,
    });
    let history = project.path(FOLDER).join("history.jsonl");
    let mut file = OpenOptions::new().create(true).append(true).open(&history).during(history.display())?;
    writeln!(file, "{line}").during(history.display())?;
    let lines = std::fs::read_to_string(&history).during(history.display())?;
    let drawing = history.with_extension("svg");
    std::fs::write(&drawing, draw(&lines)).during(drawing.display())?;
    println!("   {}, {}", history.display(), drawing.display());
    match slower.as_slice() {
        [] => Ok(format!("{} figures, none slower than {}", figures.len(), &base[..12])),
        slower => failed(format!("slower than {} beyond noise, twice: {}", &base[..12], slower.join(", "))),
    }
}

/// The commit of a name, or the last one that main has, too.
fn commit(project: &Project, name: Option<&str>) -> Outcome {
    let git = |words: &[&str]| {
        let mut git = project.command("git");
        let done = git.args(words).output().during("git")?;
        Ok(done.status.success().then(|| String::from_utf8_lossy(&done.stdout).trim().to_owned()))
    };
    let found = match name {
        Some(name) => {
            git(&["rev-parse", "--verify", "--quiet", "--end-of-options", &format!("{name}^{{commit}}")])?
        }
        None => match git(&["merge-base", "HEAD", "origin/main"])? {
            Some(commit) => Some(commit),
            None => git(&["merge-base", "HEAD", "main"])?,
        },
    };
    match (found, name) {
        (Some(commit), _) => Ok(commit),
        (None, Some(name)) => failed(format!("there is no commit {name:?} here")),
        (None, None) => {
            failed("there is neither origin/main nor main here: name the commit, --compare COMMIT")
        }
    }
}

/// Builds both sides, measures them, and names what is slower.
fn compare(project: &Project, folder: &Path) -> Outcome<(Figures, Vec<String>)> {
    let sides = [build(project, folder)?, build(project, &project.root)?];
    let both = |bench: &str| sides.iter().all(|side| side.programs.contains_key(bench));
    let benches: Vec<&str> = BENCHES.iter().map(|(_, bench)| *bench).filter(|bench| both(bench)).collect();
    if benches.is_empty() {
        return failed("the base has none of these benchmarks");
    }
    let mut figures = measure(project, &sides, &benches)?;
    table(&figures);
    let suspects: Vec<String> = names_slower(&figures);
    let mut slower = Vec::new();
    if !suspects.is_empty() {
        println!("   again, as these look slower: {}", suspects.join(", "));
        let again: Vec<&str> = benches
            .into_iter()
            .filter(|bench| suspects.iter().any(|name| name.starts_with(&format!("{bench}: "))))
            .collect();
        let second = measure(project, &sides, &again)?;
        table(&second);
        slower = names_slower(&second);
        slower.retain(|name| suspects.contains(name));
        figures.extend(second);
    }
    Ok((figures, slower))
}

/// The benchmarks of a checkout. The base has a target folder of its own: cargo gives programs of two checkouts the same name.
fn build(project: &Project, folder: &Path) -> Outcome<Side> {
    let mut programs = BTreeMap::new();
    for (package, bench) in BENCHES {
        if !folder.join(source(package, bench)).is_file() {
            continue;
        }
        let mut cargo = project.cargo(["bench", "--quiet", "--no-run", "--message-format", "json"]);
        cargo.current_dir(folder).args(["-p", package, "--bench", bench]);
        if folder != project.root {
            cargo.env("CARGO_TARGET_DIR", project.path(FOLDER).join("build"));
        }
        let built = output(&mut cargo)?;
        let messages = built.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let program =
            messages.filter_map(|message| message["executable"].as_str().map(PathBuf::from)).next_back();
        programs.extend(program.map(|program| (bench.to_owned(), program)));
    }
    Ok(Side { folder: folder.to_owned(), programs })
}

fn source(package: &str, bench: &str) -> String {
    format!("core/{}/benches/{bench}.rs", package.trim_start_matches("valkyrie-"))
}

/// Runs both sides in turns, and gives the figures that both print.
fn measure(project: &Project, sides: &[Side; 2], benches: &[&str]) -> Outcome<Figures> {
    let mut figures = Figures::new();
    for round in 0..ROUNDS {
        // Who is first changes, so that neither has the warmer machine.
        for at in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
            for bench in benches {
                let mut program = project.command(&sides[at].programs[*bench]);
                let said = output(program.current_dir(&sides[at].folder).arg("--bench"))?;
                for (name, value) in read(&said) {
                    figures.entry(format!("{bench}: {name}")).or_default()[at].push(value);
                }
            }
        }
    }
    figures.retain(|_, both| both.iter().all(|side| side.len() == ROUNDS));
    Ok(figures)
}

/// The figure of each line that has one: its first number with a decimal point; what stands before it is its name.
fn read(said: &str) -> Vec<(String, f64)> {
    let figure = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let at = words.iter().position(|word| word.contains('.') && word.parse::<f64>().is_ok())?;
        let name = words[..at].join(" ").trim_end_matches(':').to_owned();
        Some((name, words[at].parse().ok()?)).filter(|(name, _)| !name.is_empty())
    };
    said.lines().filter_map(figure).collect()
}

/// More is better of what is so many a second, and less of everything else.
fn more_is_better(name: &str) -> bool {
    name.contains("/s")
}

/// How much slower the head is: 0.1 for a tenth.
fn loss(name: &str, [base, head]: &[Vec<f64>; 2]) -> f64 {
    let change = median(head) / median(base);
    if more_is_better(name) { 1.0 / change - 1.0 } else { change - 1.0 }
}

/// Whether that is more than noise: nearly every run of the head is slower than nearly every run of the base.
fn beyond_noise(name: &str, [base, head]: &[Vec<f64>; 2]) -> bool {
    let against = |head: f64, base: f64| if more_is_better(name) { head >= base } else { head <= base };
    let pairs = base.iter().flat_map(|base| head.iter().map(move |head| (*head, *base)));
    pairs.filter(|(head, base)| against(*head, *base)).count() <= AGAINST
}

fn names_slower(figures: &Figures) -> Vec<String> {
    let slower =
        figures.iter().filter(|(name, sides)| loss(name, sides) > LEAST && beyond_noise(name, sides));
    slower.map(|(name, _)| name.clone()).collect()
}

fn table(figures: &Figures) {
    println!("   {:<48} {:>10} {:>10} {:>8} {:>8}", "medians", "base", "head", "slower", "noise");
    for (name, sides) in figures {
        let [base, head] = sides.each_ref().map(|side| median(side));
        // Half of the runs are within it.
        let noise = sides
            .iter()
            .map(|side| (quantile(side, 3) - quantile(side, 1)) / median(side))
            .fold(0.0, f64::max);
        let loss = loss(name, sides);
        let verdict = if loss > LEAST && beyond_noise(name, sides) { "  beyond noise" } else { "" };
        println!(
            "   {name:<48} {base:>10.1} {head:>10.1} {:>7.1}% {:>7.1}%{verdict}",
            loss * 100.0,
            noise * 100.0
        );
    }
}

fn quantile(values: &[f64], quarters: usize) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[(values.len() - 1) * quarters / 4]
}

fn median(values: &[f64]) -> f64 {
    quantile(values, 2)
}

/// Figures of different machines are not to be compared.
fn machine() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("", |(_, model)| model);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{} {model}, {cores} cores", std::env::consts::ARCH)
}

/// The history as SVG: of each figure the head's medians on the machine of the last line, from 0 up.
fn draw(history: &str) -> String {
    const SIZE: [f64; 2] = [360.0, 60.0];
    let lines: Vec<Value> = history.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let machine = lines.last().map(|line| line["machine"].clone()).unwrap_or_default();
    let mut courses: BTreeMap<&String, Vec<f64>> = BTreeMap::new();
    for line in lines.iter().filter(|line| line["machine"] == machine) {
        for (name, medians) in line["figures"].as_object().into_iter().flatten() {
            courses.entry(name).or_default().extend(medians[1].as_f64());
        }
    }
    let [width, height] = SIZE;
    let tall = courses.len() as f64 * (height + 24.0) + 24.0;
    let escape = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;");
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{tall}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<text x=\"10\" y=\"16\">{}</text>\n",
        width + 20.0,
        escape(machine.as_str().unwrap_or_default())
    );
    for (at, (name, values)) in courses.iter().enumerate() {
        let top = 24.0 + at as f64 * (height + 24.0);
        let most = values.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        let step = width / (values.len().max(2) - 1) as f64;
        let points = values.iter().enumerate().map(|(at, value)| {
            format!("{:.1},{:.1}", 10.0 + at as f64 * step, top + 18.0 + height * (1.0 - value / most))
        });
        let points: Vec<String> = points.collect();
        let last = values.last().copied().unwrap_or_default();
        let _ = writeln!(
            svg,
            "<text x=\"10\" y=\"{}\">{}: {last:.1}</text>\n<polyline fill=\"none\" stroke=\"#36c\" points=\"{}\"/>\n\
             <circle cx=\"{}\" r=\"2\" fill=\"#36c\"/>",
            top + 14.0,
            escape(name),
            points.join(" "),
            points.last().map(|point| point.replace(',', "\" cy=\"")).unwrap_or_default()
        );
    }
    svg + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figure_of_a_line_is_its_first_number_with_a_point() {
        let said = "header, encoded and decoded: 12.5 ns\n   message  batch\n      32     64      123.4    61.7\n\
            64 in flight, requests/s (median)   23000.1   41000.2   0.56\nall of 3      40.0   41.5 ns   0 bytes allocated\n";
        let expected = [
            ("header, encoded and decoded", 12.5),
            ("32 64", 123.4),
            ("64 in flight, requests/s (median)", 23000.1),
            ("all of 3", 40.0),
        ];
        let expected: Vec<(String, f64)> =
            expected.into_iter().map(|(name, value)| (name.into(), value)).collect();
        assert_eq!(read(said), expected);
    }

    #[test]
    fn slower_is_more_than_a_twentieth_and_more_than_noise() {
        let sides = |head: [f64; 7]| [vec![10.0, 10.1, 9.9, 10.2, 9.8, 10.0, 13.0], head.to_vec()];
        let told = |name: &str, head| {
            let figures = BTreeMap::from([(name.to_owned(), sides(head))]);
            !names_slower(&figures).is_empty()
        };
        assert!(told("a", [11.0, 11.1, 10.9, 11.2, 13.5, 13.4, 13.3].map(|time| time + 2.1)));
        assert!(!told("a", [10.3; 7]), "less than a twentieth");
        assert!(!told("a", [9.0, 9.5, 10.0, 14.0, 15.0, 16.0, 17.0]), "noise");
        assert!(!told("a", [8.0; 7]), "quicker");
        assert!(told("calls/s", [8.0; 7]), "fewer a second");
        assert!(!told("calls/s", [15.0; 7]), "more a second");
    }

    #[test]
    fn a_history_is_drawn_for_the_machine_of_its_last_line() {
        let line = |machine: &str, value: f64| {
            format!("{{\"machine\": \"{machine}\", \"figures\": {{\"a<b\": [1, {value}]}}}}\n")
        };
        let drawn = draw(&(line("old", 7.0) + &line("new", 2.0) + &line("new", 4.0)));
        assert!(
            drawn.contains("points=\"10.0,72.0 370.0,42.0\"") && drawn.contains("a&lt;b: 4.0"),
            "{drawn}"
        );
        assert!(draw("").ends_with("</svg>\n"));
    }
}
