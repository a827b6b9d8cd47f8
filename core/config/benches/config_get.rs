//! N4: how long a read of the configuration takes while it is reloaded all the time, beside a lock in its place.
//! `cargo bench -p valkyrie-config --bench config_get`

use std::{
    hint::black_box,
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Instant,
};

use serde_json::json;
use valkyrie_config::{Config, Layers, Settings};

/// Reads of each kind, each timed by itself.
const READS: usize = 2_000_000;

fn main() {
    let settings = Settings::load(Layers::new()).expect("the defaults");
    let (locked, shared) = (Mutex::new(settings.config()), RwLock::new(settings.config()));
    let (done, reloads) = (AtomicBool::new(false), AtomicU64::new(0));
    let began = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Relaxed) {
                let next = reloads.fetch_add(1, Relaxed);
                settings.set("drain_timeout_ms", json!(next % 1_000)).expect("it is in range");
                let config: Arc<Config> = settings.config();
                *locked.lock().expect("nobody panics") = config.clone();
                *shared.write().expect("nobody panics") = config;
            }
        });
        measure("nothing, the clock", || 0);
        measure("Settings::get", || settings.get().drain_timeout_ms);
        measure("Mutex<Arc<Config>>", || locked.lock().expect("nobody panics").drain_timeout_ms);
        measure("RwLock<Arc<Config>>", || shared.read().expect("nobody panics").drain_timeout_ms);
        done.store(true, Relaxed);
    });
    let seconds = began.elapsed().as_secs_f64();
    println!("{:.0} reloads a second meanwhile", reloads.load(Relaxed) as f64 / seconds);
}

fn measure(what: &str, read: impl Fn() -> u64) {
    let mut took: Vec<u64> = (0..READS)
        .map(|_| {
            let began = Instant::now();
            black_box(read());
            u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX)
        })
        .collect();
    took.sort_unstable();
    let at = |share: f64| took[((READS - 1) as f64 * share) as usize];
    let began = Instant::now();
    for _ in 0..READS {
        black_box(read());
    }
    let mean = began.elapsed().as_nanos() as f64 / READS as f64;
    println!(
        "{what:22} mean {mean:6.1} ns, p50 {} ns, p99 {} ns, p99.9 {} ns, most {} ns",
        at(0.5),
        at(0.99),
        at(0.999),
        at(1.0)
    );
}
