//! What a decision costs: principals and methods of a policy with 100 roles and 1,000 bound principals, and the same with a
//! limit, and with an audit. `cargo bench -p valkyrie-sdk --bench access` prints the quickest and the median of 200 short
//! runs, in nanoseconds: a loaded machine stretches most of them.

use std::{
    hint::black_box,
    path::Path,
    time::{Instant, SystemTime},
};

use valkyrie_sdk::{
    Principal, Time,
    access::{Access, Audit, Policy},
};

const RUNS: usize = 200;
const TIMES: u64 = 5_000;

fn policy(limits: &str) -> Policy {
    let mut text = String::from("version = 1\n");
    for role in 0..100 {
        text += &format!("[roles.r{role}]\nallow = ['/store.S{role}/*']\ndeny = ['/store.S{role}/Drop']\n");
    }
    for number in 0..1_000 {
        let role = number % 100;
        let principals =
            format!("['spiffe://example.org/ns/{number}', 'spiffe://example.org/ns/{number}/*']");
        text += &format!("[[bindings]]\nprincipals = {principals}\nroles = ['r{role}']\n");
    }
    Policy::from_toml(&(text + limits)).expect("a policy")
}

fn print(name: &str, mut work: impl FnMut(u64)) {
    let mut runs: Vec<f64> = (0..RUNS)
        .map(|_| {
            let began = Instant::now();
            (0..TIMES).for_each(&mut work);
            began.elapsed().as_nanos() as f64 / TIMES as f64
        })
        .collect();
    runs.sort_by(f64::total_cmp);
    println!("{name:<24} {:>8.0} {:>8.0} ns", runs[0], runs[RUNS / 2]);
}

fn main() {
    let principals: Vec<_> =
        (0..1_000).map(|number| Principal::new(&format!("spiffe://example.org/ns/{number}/pod-7"))).collect();
    let methods: Vec<_> = (0..1_000).map(|number| format!("/store.S{}/Get", number % 100)).collect();
    let index = |number: u64| (number % 1_000) as usize;

    let rules = policy("").rules();
    print("decide, allowed", |number| {
        let number = index(number);
        assert!(black_box(rules.decide(&principals[number], &methods[number])).allowed);
    });
    print("decide, denied", |number| {
        let number = index(number);
        assert!(!black_box(rules.decide(&principals[number], &methods[999 - number])).allowed);
    });
    let limit = "[[limits]]\nprincipals = ['*']\nper_second = 1000000000\n";
    let log = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-audit.log");
    let _ = std::fs::remove_file(&log);
    let audited = || Audit::builder(&log).max_file_bytes(u64::MAX).open().expect("an audit log");
    for (name, access) in [
        ("admit", Access::new(policy(""))),
        ("admit, with a limit", Access::new(policy(limit))),
        ("admit, with an audit", Access::new(policy("")).with_audit(audited())),
    ] {
        let mut now = 0;
        print(name, |number| {
            let number = index(number);
            now += 1;
            let (principal, method) = (&principals[number], &methods[number]);
            let outcome = access.admit(
                principal,
                method,
                "tcp://192.0.2.1:5",
                1,
                Time::from_micros(now),
                SystemTime::UNIX_EPOCH,
            );
            assert!(outcome.is_ok());
        });
        if let Some(audit) = access.audit() {
            let began = Instant::now();
            audit.flush();
            println!("{:<24} {:?}, and {:?} to be written", "", audit.stats(), began.elapsed());
        }
    }
    let _ = std::fs::remove_file(&log);
}
