//! The floods F17 to F23 against a release build, each again and again for as long as an honest client beside it makes its
//! calls: the honest client's 99th percentile beside that of the same client alone. The evil client takes processors too, as
//! it is on the same machine. Prints, asserts no time: `cargo bench -p valkyrie-faults --bench floods`.

use std::time::Duration;

use valkyrie_faults::{
    evil,
    script::{self, Script, Side},
};

#[tokio::main]
async fn main() {
    let files = std::fs::read_dir(script::folder()).expect("the scripts");
    let mut names: Vec<String> = files
        .filter_map(|file| Some(file.ok()?.path().file_stem()?.to_str()?.to_owned()))
        .filter(|name| ("f17".."f24").contains(&name.as_str()))
        .filter(|name| Script::read(name).evil == Side::Client)
        .collect();
    names.sort();
    let width = names.iter().map(String::len).max().unwrap_or(0);
    println!("{:width$} {:>8} {:>9} {:>9} {:>7}", "honest p99 in µs", "attacks", "alone", "beside", "ratio");
    for name in names {
        let (floods, alone, beside) = evil::flood(&name).await;
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        let ratio = beside.as_secs_f64() / alone.as_secs_f64();
        println!("{name:width$} {floods:>8} {:>9.0} {:>9.0} {ratio:>7.2}", micros(alone), micros(beside));
    }
}
