//! The auditor notices what is broken on purpose, the same seed is the same log, and stored seeds stay clean.

use std::{fs, path::Path};

use valkyrie_simulation::{Fault, Mutation, RUN_SECONDS, Summary, run};

/// Each mistake, and the invariant that it breaks; two where it depends on the moment which of them is seen first.
const MISTAKES: [(Mutation, &[&str]); 21] = [
    (Mutation::SwapsReads, &["honest", "I5"]),
    (Mutation::RepeatsReads, &["honest", "I5"]),
    (Mutation::RepeatsPackets, &["honest", "I5"]),
    (Mutation::SkipsGaps, &["honest", "I5"]),
    (Mutation::OverlooksFlips, &["flip"]),
    (Mutation::ForgetsTimers, &["I1"]),
    (Mutation::StaysBlocked, &["I7"]),
    (Mutation::EndsTwice, &["I1"]),
    (Mutation::NeverEnds, &["I1", "I7"]),
    (Mutation::LeaksStream, &["I8"]),
    (Mutation::RepeatsProcessed, &["I2"]),
    // I1: its peer is short of memory and gives up the stream, for no reason that the auditor knows.
    (Mutation::KeepsCredit, &["I1", "I7", "I8"]),
    (Mutation::DoublesCredit, &["I6"]),
    (Mutation::DropsMessage, &["I5"]),
    (Mutation::DoublesMessage, &["I5"]),
    (Mutation::MixesMessages, &["I4"]),
    (Mutation::ExecutesTwice, &["I2"]),
    (Mutation::AnswersTwice, &["I5"]),
    (Mutation::EchoesAnother, &["I4"]),
    (Mutation::LeaksPermit, &["I8"]),
    (Mutation::TrustsAnyone, &["I9"]),
];

#[test]
fn the_auditor_notices_every_mistake() {
    for (mistake, expected) in MISTAKES {
        // A mistake needs its occasion, which not every seed has.
        let noticed = (1..=20).find_map(|seed| Some((seed, run(seed, Some(mistake), false).violation?)));
        let Some((seed, (violation, _))) = noticed else {
            panic!("nobody noticed that something {mistake:?}")
        };
        println!("{mistake:?}, seed {seed}: {}: {}", violation.invariant, violation.what);
        assert!(expected.contains(&violation.invariant), "{mistake:?} was taken for {violation:?}");
    }
}

#[test]
fn the_same_seed_is_the_same_log() {
    for seed in [1, 7] {
        let (first, second) = (run(seed, None, false), run(seed, None, false));
        assert_eq!(first, second);
        assert!(first.entries > 1_000);
        assert_ne!(first.hash, run(seed + 1, None, false).hash);
    }
}

/// Twenty runs meet every kind of trouble and every way for a call to end; a simulation that has stopped to do either
/// would pass for ever.
#[test]
fn nothing_is_left_out() {
    let mut summary = Summary::new(100);
    let mut faults = [0; Fault::ALL.len()];
    let mut codes = [0; 17];
    for seed in 100..120 {
        let report = run(seed, None, false);
        assert!(report.violation.is_none(), "{report}");
        faults.iter_mut().zip(report.faults).for_each(|(sum, count)| *sum += count);
        codes.iter_mut().zip(report.codes).for_each(|(sum, count)| *sum += count);
        summary.add(&report);
    }
    assert_eq!(summary.seconds(), 20 * RUN_SECONDS);
    for (fault, count) in Fault::ALL.iter().zip(faults) {
        assert!(count > 0, "no {fault:?} in 20 runs");
    }
    // OK, CANCELLED, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, ABORTED, UNAVAILABLE, DATA_LOSS, UNAUTHENTICATED.
    for code in [0, 1, 2 + 2, 8, 10, 14, 15, 16] {
        assert!(codes[code] > 0, "no call ended with code {code} in 20 runs");
    }
}

/// Each file of `seeds/` has a line `seed N` and says why it is kept.
#[test]
fn stored_seeds_are_clean() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    let mut count = 0;
    for file in fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let seed = text.lines().find_map(|line| line.strip_prefix("seed ")?.trim().parse().ok());
        let Some(seed) = seed else { panic!("{} has no line `seed N`", path.display()) };
        let report = run(seed, None, false);
        assert!(report.violation.is_none(), "{}: {report}", path.display());
        count += 1;
    }
    assert!(count > 0, "no seed is stored");
}
