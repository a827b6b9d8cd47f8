//! The floods F17 to F23 against a release build, each again and again for as long as an honest client beside it makes its
//! calls: the honest client's 99th percentile beside that of the same client alone. The evil client is a process that runs
//! when nobody else wants its processor, as it would have its own: what is measured is what the server lets it do to others.
//! Prints, asserts no time: `cargo bench -p valkyrie-faults --bench floods [NAME]`. `VALKYRIE_ATTACKER` is the command that
//! runs it with less urgency than the rest, `nice -n 19` by default; on a busy machine `chrt -r 1` with the rest under
//! `chrt -r 5`.

use std::{io::Read, process::Command, time::Duration};

use valkyrie_faults::{
    evil,
    script::{self, Script, Side},
};

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [attack, name, endpoint] = &arguments[..]
        && attack == "--attack"
    {
        return attack_until_told(name, endpoint).await;
    }
    let wanted = arguments.first().map_or("", String::as_str);
    let files = std::fs::read_dir(script::folder()).expect("the scripts");
    let mut names: Vec<String> = files
        .filter_map(|file| Some(file.ok()?.path().file_stem()?.to_str()?.to_owned()))
        .filter(|name| ("f17".."f24").contains(&name.as_str()) && name.contains(wanted))
        .filter(|name| Script::read(name).evil == Side::Client)
        .collect();
    names.sort();
    let width = names.iter().map(String::len).max().unwrap_or(0);
    println!("{:width$} {:>8} {:>9} {:>9} {:>7}", "honest p99 in µs", "attacks", "alone", "beside", "ratio");
    for name in names {
        let program = std::env::current_exe().expect("a program knows where it is");
        let (attacks, alone, beside) = evil::flood(&name, |endpoint| {
            let prefix = std::env::var("VALKYRIE_ATTACKER").unwrap_or_else(|_| "nice -n 19".into());
            let mut words = prefix.split_whitespace();
            let mut attacker = Command::new(words.next().expect("VALKYRIE_ATTACKER is a command"));
            attacker.args(words).arg(program).args(["--attack", &name, endpoint]);
            attacker
        })
        .await;
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        let ratio = beside.as_secs_f64() / alone.as_secs_f64();
        println!("{name:width$} {attacks:>8} {:>9.0} {:>9.0} {ratio:>7.2}", micros(alone), micros(beside));
    }
}

/// Attacks until the input ends.
async fn attack_until_told(name: &str, endpoint: &str) {
    let told = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
    let mut attacks = 0;
    while !told.is_finished() {
        evil::attack(name, endpoint).await;
        attacks += 1;
    }
    println!("{attacks}");
}
