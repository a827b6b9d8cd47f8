//! The fuzz targets of `tests/fuzz`: built with libFuzzer's coverage and AddressSanitizer, run one after another, each
//! from the corpus in git, the wire's vectors, and what earlier runs found.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::instrument::with_address_sanitizer;
use crate::step::{During, Outcome, Project, failed, run};

/// What the coverage of libFuzzer needs of the compiler: counters of edges, where each is, and what is compared.
const FLAGS: [&str; 7] = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cforce-frame-pointers=yes",
];
const FOLDER: &str = "target/fuzz";
/// A kept input is at most that long.
const KEPT_BYTES: usize = 4 << 10;

/// The targets, and the longest input that each is given in bytes: 64 KiB and two bytes of choices for a wire.
const TARGETS: [(&str, usize); 9] = [
    ("header", 64),
    ("record", 16 << 10),
    ("handshake", (64 << 10) + 2),
    ("frames", (64 << 10) + 2),
    ("connection", 8 << 10),
    ("config", 4 << 10),
    ("jwt", 12 << 10),
    ("policy", 4 << 10),
    ("audit", 8 << 10),
];

/// What `cargo xtask fuzz` was asked for.
#[derive(Debug, PartialEq)]
pub(crate) struct Plan<'a> {
    /// How long each target runs.
    pub(crate) seconds: u64,
    /// Only this one.
    pub(crate) target: Option<&'a str>,
    /// A crash to run again instead.
    replay: Option<&'a str>,
    /// Whether what was found goes into the corpus in git, made as small as it goes.
    keep: bool,
}

impl<'a> Plan<'a> {
    /// Every target for that long.
    pub(crate) fn all(seconds: u64) -> Self {
        Plan { seconds, target: None, replay: None, keep: false }
    }

    /// Reads the flags of the verb; `None` when one is not known.
    pub(crate) fn read(mut words: &[&'a str]) -> Option<Self> {
        let mut plan = Plan::all(60);
        while let Some((word, rest)) = words.split_first() {
            words = match (*word, rest) {
                ("--keep", rest) => {
                    plan.keep = true;
                    rest
                }
                ("--seconds", [seconds, rest @ ..]) => {
                    plan.seconds = seconds.parse().ok().filter(|seconds| *seconds > 0)?;
                    rest
                }
                ("--target", [target, rest @ ..]) => {
                    plan.target = Some(TARGETS.iter().find(|(name, _)| name == target)?.0);
                    rest
                }
                ("--replay", [file, rest @ ..]) => {
                    plan.replay = Some(file);
                    rest
                }
                _ => return None,
            };
        }
        // A crash is one target's.
        (plan.replay.is_none() || plan.target.is_some()).then_some(plan)
    }
}

/// Builds the targets and runs them as planned. Fails when one crashed, after all have run.
pub(crate) fn fuzz(project: &Project, plan: Plan<'_>) -> Outcome {
    let (mut cargo, triple) = with_address_sanitizer(project, "build", FOLDER, &FLAGS)?;
    cargo.args(["--quiet", "--release", "--manifest-path", "tests/fuzz/Cargo.toml"]);
    if let Some(target) = plan.target {
        cargo.args(["--bin", target]);
    }
    run(&mut cargo)?;
    let programs = Path::new(FOLDER).join(triple).join("release");
    if let (Some(target), Some(file)) = (plan.target, plan.replay) {
        run(project.command(programs.join(target)).arg(file))?;
        return Ok(format!("{file} does not crash {target}"));
    }
    write_seeds(project)?;
    let (mut executions, mut crashes) = (0, 0);
    for (name, longest) in TARGETS {
        if plan.target.is_some_and(|only| only != name) {
            continue;
        }
        let target = Target { project, name, longest, program: programs.join(name) };
        let ran = target.run(plan.seconds)?;
        executions += ran.executions;
        crashes += ran.crashes;
        if plan.keep && ran.crashes == 0 {
            target.keep()?;
        }
    }
    let note = format!("{executions} executions, {crashes} crashes");
    if crashes == 0 { Ok(note) } else { failed(note) }
}

struct Target<'a> {
    project: &'a Project,
    name: &'static str,
    longest: usize,
    program: PathBuf,
}

struct Ran {
    executions: u64,
    crashes: usize,
}

impl Target<'_> {
    /// A folder of this target's, made when it is not there.
    fn folder(&self, inside: &str) -> Outcome<PathBuf> {
        let folder = self.project.path(inside).join(self.name);
        fs::create_dir_all(&folder).during(folder.display())?;
        Ok(folder)
    }

    /// Where inputs come from; new ones go into the first.
    fn corpora(&self) -> Outcome<[PathBuf; 3]> {
        Ok([
            self.folder("target/fuzz/found")?,
            self.folder("tests/fuzz/corpus")?,
            self.folder("target/fuzz/seeds")?,
        ])
    }

    fn run(&self, seconds: u64) -> Outcome<Ran> {
        let crashes = self.folder("target/fuzz/crashes")?;
        let before = files(&crashes)?;
        let path = self.folder("target/fuzz/logs")?.join("log.txt");
        let log = File::create(&path).during(path.display())?;
        let mut program = self.project.command(&self.program);
        program.args(self.corpora()?).stderr(log).env("ASAN_OPTIONS", "detect_leaks=0");
        program.args(["-print_final_stats=1", "-timeout=60", "-rss_limit_mb=4096"]);
        program.arg(format!("-max_total_time={seconds}")).arg(format!("-max_len={}", self.longest));
        program.arg(format!("-artifact_prefix={}/", crashes.display()));
        let status = program.status().during(self.program.display())?;
        let text = fs::read(&path).during(path.display())?;
        let log = String::from_utf8_lossy(&text);
        let ran = Ran { executions: executions(&log), crashes: usize::from(!status.success()) };
        println!(
            "   {:<10} {:>9} executions, {:>6} a second, corpus of {}, {} crashes",
            self.name,
            ran.executions,
            ran.executions / seconds,
            corpus(&log),
            ran.crashes
        );
        if ran.crashes > 0 {
            let told =
                log.lines().skip_while(|line| !line.contains("panicked at") && !line.contains("ERROR: "));
            told.take(12).for_each(|line| println!("      {line}"));
            println!("      all of it: {}", path.display());
            for file in files(&crashes)?.into_iter().filter(|file| !before.contains(file)) {
                let file = file.strip_prefix(&self.project.root).unwrap_or(&file).display();
                println!("      again: cargo xtask fuzz --target {} --replay {file}", self.name);
            }
        } else if ran.executions == 0 {
            return failed(format!("{} ran nothing: {}", self.name, path.display()));
        }
        Ok(ran)
    }

    /// Writes the corpus in git anew: the fewest and shortest inputs that reach all that any input reaches.
    fn keep(&self) -> Outcome<()> {
        let kept = self.folder("tests/fuzz/corpus")?;
        let merged = self.folder("target/fuzz/merged")?;
        fs::remove_dir_all(&merged).during(merged.display())?;
        fs::create_dir_all(&merged).during(merged.display())?;
        let log = self.folder("target/fuzz/logs")?.join("merge.txt");
        let mut program = self.project.command(&self.program);
        program.args(["-set_cover_merge=1", "-use_counters=0"]).arg(format!("-max_len={KEPT_BYTES}"));
        program.arg(&merged).args(self.corpora()?).env("ASAN_OPTIONS", "detect_leaks=0");
        run(program.stderr(File::create(&log).during(log.display())?))?;
        fs::remove_dir_all(&kept).during(kept.display())?;
        fs::create_dir_all(&kept).during(kept.display())?;
        for file in files(&merged)? {
            let name = file.file_name().unwrap_or_default();
            fs::copy(&file, kept.join(name)).during(file.display())?;
        }
        println!("   {:<10} keeps {} inputs", self.name, files(&kept)?.len());
        Ok(())
    }
}

fn files(folder: &Path) -> Outcome<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).during(folder.display())?;
    entries.map(|entry| entry.map(|entry| entry.path()).during(folder.display())).collect()
}

/// What libFuzzer says at its end, or at its last crash.
fn executions(log: &str) -> u64 {
    let said = log.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    said.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// The corpus in memory as libFuzzer last told it: `18/570b`.
fn corpus(log: &str) -> &str {
    let word = log.rsplit("corp: ").next().filter(|rest| rest.len() < log.len());
    word.and_then(|rest| rest.split_whitespace().next()).unwrap_or("nothing")
}

/// Writes every vector of the wire as an input of the targets that it is one for.
fn write_seeds(project: &Project) -> Outcome<()> {
    let path = project.path("tests/vectors/v1.json");
    let text = fs::read_to_string(&path).during(path.display())?;
    let vectors: Value = serde_json::from_str(&text).during(path.display())?;
    let all = ["frames", "broken"].into_iter().filter_map(|part| vectors[part].as_array()).flatten();
    for (number, vector) in all.enumerate() {
        let text = |field: &str| vector[field].as_str().unwrap_or_default();
        let bytes = unhex(text("hex"));
        let seed = |target: &str, choices: &[u8], bytes: &[u8]| {
            let folder = project.path("target/fuzz/seeds").join(target);
            fs::create_dir_all(&folder).during(folder.display())?;
            let name = format!("{number}-{}", choices.first().unwrap_or(&0));
            fs::write(folder.join(name), [choices, bytes].concat()).during(target)
        };
        seed("header", &[], &bytes[..bytes.len().min(40)])?;
        if let (Some(kind), Some(body)) = (record_kind(text("type")), bytes.get(40..)) {
            let payload = text("payload").len() / 2;
            seed("record", &[kind], &body[..body.len() - payload])?;
        }
        // The first byte chooses the side, whether it was greeted, and a flood of the same.
        if text("name").starts_with("first: ") || text("type") == "HELLO" || text("type") == "GOAWAY" {
            for choices in [0x00, 0xe1] {
                seed("handshake", &[choices, 0], &bytes)?;
            }
        }
        for choices in [0x08, 0x09, 0xe8, 0xe9] {
            seed("frames", &[choices, 0], &bytes)?;
        }
    }
    Ok(())
}

/// The number by which the target `record` chooses the type of a frame's record.
fn record_kind(frame_type: &str) -> Option<u8> {
    let kinds = ["HELLO", "PING", "GOAWAY", "WINDOW", "CALL", "HEAD", "STATUS", "RESET"];
    let record = if frame_type == "PONG" { "PING" } else { frame_type };
    kinds.iter().position(|kind| *kind == record).map(|kind| kind as u8)
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        text.chars().filter_map(|digit| digit.to_digit(16)).map(|digit| digit as u8).collect();
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_make_a_plan() {
        assert_eq!(Plan::read(&[]), Some(Plan::all(60)));
        let words = ["--seconds", "5", "--keep", "--target", "frames"];
        let plan = Plan { seconds: 5, target: Some("frames"), replay: None, keep: true };
        assert_eq!(Plan::read(&words), Some(plan));
        for words in
            [&["--seconds"][..], &["--seconds", "0"], &["--target", "none"], &["--replay", "a"], &["x"]]
        {
            assert_eq!(Plan::read(words), None, "{words:?}");
        }
    }

    #[test]
    fn the_end_of_a_log_says_what_ran() {
        let log = "#59\tINITED cov: 148 ft: 203 corp: 9/325b exec/s: 0\n#126\tDONE   cov: 150 corp: 18/570b lim: 12\n\
            stat::number_of_executed_units: 126\n";
        assert_eq!((executions(log), corpus(log)), (126, "18/570b"));
        assert_eq!((executions(""), corpus("")), (0, "nothing"));
    }
}
