//! The configuration in force while another one takes its place.

mod folder;

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
};

use folder::Folder;
use serde_json::{Map, Value, json};
use valkyrie_config::{ConfigError, File, Layer, Layers, Settings, Source};

/// Looks until there is something to tell.
fn told(settings: &Settings) -> Result<Vec<String>, String> {
    for _ in 0..100 {
        if let Some(told) = settings.look() {
            let keys = |changes: Vec<valkyrie_config::Change>| {
                changes.iter().map(|change| format!("{} {}", change.key, change.is_applied)).collect()
            };
            return told.map(keys).map_err(|error| error.to_string());
        }
    }
    panic!("nothing was told")
}

/// Two values that belong together, another pair each time.
struct Linked(AtomicU64);

impl Source for Linked {
    fn layer(&self) -> Result<Layer, ConfigError> {
        let version = self.0.fetch_add(1, Relaxed) % 1_000;
        let values = json!({"drain_timeout_ms": version, "max_connections": version + 1});
        Ok(Layer::new("linked", values.as_object().cloned().unwrap_or_else(Map::new)))
    }
}

/// No reader ever sees two keys of two versions, nor an older version than it saw before.
#[test]
fn no_read_is_torn() {
    let settings = Settings::load(Layers::new().source(Linked(AtomicU64::new(0)))).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut seen = 0;
                while !done.load(Relaxed) {
                    let config = settings.get();
                    assert_eq!(config.max_connections, config.drain_timeout_ms + 1);
                    seen += usize::from(config.drain_timeout_ms > 0);
                    // One that is kept is the same later.
                    let kept = settings.config();
                    assert_eq!(kept.max_connections, kept.drain_timeout_ms + 1);
                }
                seen
            });
        }
        for _ in 0..2_000 {
            assert_eq!(settings.reload().unwrap().len(), 2);
        }
        done.store(true, Relaxed);
    });
}

#[test]
fn what_cannot_change_stays_and_is_named() {
    let folder = Folder::new();
    let file = folder.0.join("server.yaml");
    let write = |text: &str| fs::write(&file, text).unwrap();
    write("drain_timeout_ms: 1\nmax_message_bytes: 70000\n");
    let settings = Settings::load(Layers::new().source(File::new(&file))).unwrap();
    write("drain_timeout_ms: 2\nmax_message_bytes: 80000\nlog_level: debug\n");
    let changes = settings.reload().unwrap();
    let changes: Vec<(&str, Value, Value, bool)> =
        changes.into_iter().map(|change| (change.key, change.from, change.to, change.is_applied)).collect();
    assert_eq!(
        changes,
        [
            ("drain_timeout_ms", json!(1), json!(2), true),
            ("max_message_bytes", json!(70_000), json!(80_000), false),
            ("log_level", json!("info"), json!("debug"), true),
        ]
    );
    let config = settings.config();
    assert_eq!((config.drain_timeout_ms, config.max_message_bytes), (2, 70_000));
    assert!(config.origin_of("log_level").ends_with("server.yaml:3"));
    // What is refused changes nothing.
    for bad in [
        "drain_timeout_ms: 3\nmetrics: 1\n",
        "drain_timeout_ms: [\n",
        "drain_timeout_ms: 3\nconcurrency_min: 21\n",
    ] {
        write(bad);
        assert!(settings.reload().is_err(), "{bad}");
        assert_eq!(settings.config(), config);
    }
    // At run time.
    assert_eq!(
        settings.set("drain_timeout_ms", json!(9)).unwrap_err().source_name(),
        file.display().to_string()
    );
    write("");
    settings.set("drain_timeout_ms", json!(9)).unwrap();
    assert_eq!(
        (settings.get().drain_timeout_ms, settings.get().origin_of("drain_timeout_ms")),
        (9, "run time".into())
    );
    let error = settings.set("drain_timeout_ms", json!(-1)).unwrap_err().to_string();
    assert_eq!(error, "run time: drain_timeout_ms: -1 is out of range; write a number from 0 to 86400000");
    assert!(settings.set("bnid", json!(1)).unwrap_err().to_string().contains("did you mean bind?"));
    settings.set("drain_timeout_ms", Value::Null).unwrap();
    assert_eq!(settings.get().drain_timeout_ms, 30_000);
}

/// Written in place, renamed over it, behind a link that is swapped as Kubernetes does it, taken away and put back.
#[cfg(unix)]
#[test]
fn a_look_finds_every_way_to_change_a_file() {
    let folder = Folder::new();
    let path = |name: &str| folder.0.join(name);
    let version = |name: &str, ms: u64| {
        fs::create_dir(path(name)).unwrap();
        fs::write(path(name).join("server.yaml"), format!("drain_timeout_ms: {ms}\n")).unwrap();
    };
    let link = |to: &str| {
        std::os::unix::fs::symlink(to, path("..data_tmp")).unwrap();
        fs::rename(path("..data_tmp"), path("..data")).unwrap();
    };
    version("..1", 1);
    link("..1");
    let file: &Path = &path("server.yaml");
    std::os::unix::fs::symlink("..data/server.yaml", file).unwrap();
    let settings = Settings::load(Layers::new().source(File::new(file))).unwrap();
    assert_eq!(settings.get().drain_timeout_ms, 1);
    version("..2", 2);
    link("..2");
    assert_eq!(told(&settings).unwrap(), ["drain_timeout_ms true"]);
    assert_eq!(settings.get().drain_timeout_ms, 2);
    // Renamed over the link.
    fs::write(path("new"), "drain_timeout_ms: 3\n").unwrap();
    fs::rename(path("new"), file).unwrap();
    assert_eq!(told(&settings).unwrap(), ["drain_timeout_ms true"]);
    // In place.
    fs::write(file, "drain_timeout_ms: 4\n").unwrap();
    assert_eq!(told(&settings).unwrap(), ["drain_timeout_ms true"]);
    // Half of it, and the other half by the next look.
    fs::write(file, "drain_timeout_ms: 5\nmetr").unwrap();
    assert_eq!(settings.look(), None);
    fs::write(file, "drain_timeout_ms: 5\nmetrics: false\n").unwrap();
    assert_eq!(settings.look(), None);
    assert_eq!(told(&settings).unwrap(), ["drain_timeout_ms true", "metrics true"]);
    // Gone: told once, and nothing else.
    fs::remove_file(file).unwrap();
    assert!(told(&settings).unwrap_err().contains("No such file"));
    assert!((0..10).all(|_| settings.look().is_none()));
    assert_eq!(settings.get().drain_timeout_ms, 5);
    fs::write(file, "drain_timeout_ms: 5\nmetrics: false\nbind: ['127.0.0.1:1']\n").unwrap();
    assert_eq!(told(&settings).unwrap(), ["bind false"]);
    assert!((0..10).all(|_| settings.look().is_none()));
    // Bad: all of it is told, and it stays whole.
    fs::write(file, "drain_timeout_ms: 6\nmetrics: maybe\n").unwrap();
    assert!(told(&settings).unwrap_err().contains("server.yaml:2:1: metrics: "));
    assert_eq!(settings.get().drain_timeout_ms, 5);
    // An alias bomb.
    let bomb: String =
        (1..20).map(|at| format!("a{at}: &a{at} [{}]\n", format!("*a{},", at - 1).repeat(9))).collect();
    fs::write(file, format!("a0: &a0 [x]\n{bomb}")).unwrap();
    assert!(told(&settings).unwrap_err().contains("aliases stand for more than the file has"));
    fs::write(file, "drain_timeout_ms: 7\n").unwrap();
    assert_eq!(told(&settings).unwrap(), ["drain_timeout_ms true", "metrics true"]);
}
