//! `simulate [--seconds N] [--seed S] [--jobs J] [--log]`: runs of seeds that follow each other, several at a time.
#![forbid(unsafe_code)]

use std::{
    collections::BTreeMap,
    process::ExitCode,
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    time::{Duration, Instant, SystemTime},
};

use valkyrie_simulation::{RUN_SECONDS, Summary, run};

const HELP: &str = "\
usage: simulate [--seconds N] [--seed S] [--jobs J] [--log]

  --seconds N  simulated seconds, rounded up to whole runs of 120 s; default: one run
  --seed S     the first seed; the runs that follow have the next ones. Default: another one each time
  --jobs J     runs at a time; default: one for each core. The result does not depend on it
  --log        prints every entry of the log, with one job

Exit code: 0 nothing was violated, 1 a violation (its seed and the command that replays it are printed), 2 no such flag.";

struct Options {
    runs: u64,
    seed: u64,
    jobs: usize,
    log: bool,
}

fn options() -> Option<Options> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut options = Options { runs: 1, seed: since.as_secs(), jobs: cores, log: false };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || words.next()?.replace('_', "").parse::<u64>().ok();
        match word.as_str() {
            "--seconds" => options.runs = number()?.div_ceil(RUN_SECONDS).max(1),
            "--seed" => options.seed = number()?,
            "--jobs" => options.jobs = usize::try_from(number()?).ok()?.max(1),
            "--log" => options.log = true,
            _ => return None,
        }
    }
    if options.log {
        options.jobs = 1;
    }
    Some(options)
}

fn main() -> ExitCode {
    let Some(Options { runs, seed, jobs, log }) = options() else {
        eprintln!("{HELP}");
        return ExitCode::from(2);
    };
    println!("simulate --seconds {} --seed {seed} --jobs {jobs}", runs * RUN_SECONDS);
    let began = Instant::now();
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let (sender, receiver) = mpsc::sync_channel(1_024);
    let mut summary = Summary::new(seed);
    let mut violation = None;
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            let (sender, next, stop) = (sender.clone(), &next, &stop);
            scope.spawn(move || {
                while !stop.load(Relaxed) {
                    let number = next.fetch_add(1, Relaxed);
                    let done = number >= runs
                        || sender.send((number, run(seed.wrapping_add(number), None, log))).is_err();
                    if done {
                        return;
                    }
                }
            });
        }
        drop(sender);
        // Whichever is done first, they are added in the order of their seeds.
        let mut early = BTreeMap::new();
        let mut expected = 0;
        let mut told = Duration::ZERO;
        for (number, report) in receiver {
            early.insert(number, report);
            while let Some(report) = early.remove(&expected) {
                expected += 1;
                summary.add(&report);
                if report.violation.is_some() {
                    stop.store(true, Relaxed);
                    violation.get_or_insert(report);
                }
            }
            if violation.is_some() {
                break;
            }
            if began.elapsed() - told >= Duration::from_secs(10) {
                told = began.elapsed();
                println!(
                    "{:5.1} %  {} simulated s, {:.0} per s, {} calls, {} faults, hash {:016x}",
                    summary.seconds() as f64 * 100.0 / (runs * RUN_SECONDS) as f64,
                    summary.seconds(),
                    summary.seconds() as f64 / told.as_secs_f64(),
                    summary.calls(),
                    summary.faults(),
                    summary.hash()
                );
            }
        }
    });
    print!("{}", summary.print(usize::from(violation.is_some()), began.elapsed(), jobs));
    match violation {
        None => ExitCode::SUCCESS,
        Some(report) => {
            println!("{report}");
            println!(
                "to keep it: a file in tests/simulation/seeds/ with the line `seed {}` and why",
                report.seed
            );
            ExitCode::from(1)
        }
    }
}
