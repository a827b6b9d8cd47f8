//! What is made of PEM: made again when a file among its sources changes.

#[cfg(not(target_arch = "wasm32"))]
pub(super) use native::Fresh;
#[cfg(target_arch = "wasm32")]
pub(super) use page::Fresh;

#[cfg(not(target_arch = "wasm32"))]
mod native {
    use std::{
        path::PathBuf,
        sync::{Arc, Mutex},
        time::{Duration, Instant, SystemTime},
    };

    use valkyrie_protocol::Status;

    use super::super::{Pem, Source};
    use crate::{Level, Record, connection::lock, log::Logger};

    /// How often files are looked at again, at most.
    const LOOK_AGAIN: Duration = Duration::from_secs(1);

    pub(in super::super) struct Fresh<T> {
        current: Mutex<Current<T>>,
        /// Only with files.
        again: Option<Again<T>>,
        log: Logger,
    }

    struct Current<T> {
        value: Arc<T>,
        looked: Instant,
        stamps: Vec<Stamp>,
        /// Why the files cannot be used now, as it was told.
        failure: Option<String>,
    }

    struct Again<T> {
        files: Vec<PathBuf>,
        make: Box<dyn Fn() -> Result<T, Status> + Send + Sync>,
    }

    /// What tells that a file is another.
    type Stamp = Option<(SystemTime, u64)>;

    fn stamps(files: &[PathBuf]) -> Vec<Stamp> {
        let stamp = |path: &PathBuf| {
            let found = std::fs::metadata(path).ok()?;
            Some((found.modified().ok()?, found.len()))
        };
        files.iter().map(stamp).collect()
    }

    impl<T> Fresh<T> {
        pub(in super::super) fn new(
            sources: &[&Pem],
            log: Logger,
            make: impl Fn() -> Result<T, Status> + Send + Sync + 'static,
        ) -> Result<Self, Status> {
            let files: Vec<_> = sources
                .iter()
                .filter_map(|pem| match &pem.0 {
                    Source::File(path) => Some(path.clone()),
                    Source::Text(_) => None,
                })
                .collect();
            // Before they are read: what changes meanwhile is read once more.
            let stamps = stamps(&files);
            let current = Current { value: Arc::new(make()?), looked: Instant::now(), stamps, failure: None };
            let again = (!files.is_empty()).then(|| Again { files, make: Box::new(make) });
            Ok(Self { current: Mutex::new(current), again, log })
        }

        pub(in super::super) fn current(&self) -> Arc<T> {
            self.at(Instant::now())
        }

        pub(super) fn at(&self, now: Instant) -> Arc<T> {
            let mut current = lock(&self.current);
            let Some(again) = &self.again else { return current.value.clone() };
            if now.saturating_duration_since(current.looked) < LOOK_AGAIN {
                return current.value.clone();
            }
            current.looked = now;
            let stamps = stamps(&again.files);
            let made = (stamps != current.stamps).then(&again.make).transpose();
            let failure = made.as_ref().err().map(|status| status.message().to_owned());
            if let Ok(Some(value)) = made {
                current.value = Arc::new(value);
                current.stamps = stamps;
            }
            // A key that came without its certificate, or half a file: the next look may find both.
            let is_news = failure != current.failure;
            current.failure.clone_from(&failure);
            let value = current.value.clone();
            drop(current);
            if is_news {
                self.tell(&again.files, failure);
            }
            value
        }

        fn tell(&self, files: &[PathBuf], failure: Option<String>) {
            let (level, message) = match failure {
                Some(why) => (
                    Level::Warn,
                    format!("{why}; what was read before it stays in force, for new connections too"),
                ),
                None => (Level::Info, "the files can be used again".to_owned()),
            };
            if let Some(log) = self.log.wants(level) {
                let files: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
                log.log(Record::new(level, "valkyrie.tls", message).with("files", &files.join(", ")));
            }
        }
    }
}

#[cfg(all(test, feature = "native"))]
mod tests {
    use std::{
        fs,
        sync::{Arc, Mutex},
        time::{Duration, Instant},
    };

    use super::{super::Pem, Fresh};
    use crate::{Level, Log, Record, Records, connection::lock, log::Logger};

    #[derive(Default)]
    struct Kept(Mutex<Records>);

    impl Log for Kept {
        fn enabled(&self, _: Level) -> bool {
            true
        }

        fn log(&self, record: Record) {
            lock(&self.0).push(record);
        }
    }

    #[test]
    fn each_failure_of_a_file_is_told_once_and_its_end_too() {
        // In the folder of builds: a test of the library is given no other.
        let path =
            std::env::current_exe().unwrap().with_file_name(format!("fresh-{}.pem", std::process::id()));
        let write = |text: &str| fs::write(&path, text).unwrap();
        write("good");
        let (pem, kept) = (Pem::file(&path), Arc::new(Kept::default()));
        let make = {
            let pem = pem.clone();
            move || match pem.read().map_err(super::super::invalid)?.as_slice() {
                text if text.starts_with(b"good") => Ok(text.to_vec()),
                text => Err(super::super::invalid(format!("{pem} has {} bad bytes", text.len()))),
            }
        };
        let fresh = Fresh::new(&[&pem], Logger(Some(kept.clone())), make).unwrap();
        let mut now = Instant::now();
        let mut look = |holds: &str, told: &[(Level, &str)]| {
            for told in [told, &[]] {
                // Looked at again after a second, and not before.
                for (later, told) in [(Duration::from_secs(1), told), (Duration::from_millis(999), &[])] {
                    assert_eq!(fresh.at(now + later), holds.as_bytes().to_vec().into(), "{told:?}");
                    let records = lock(&kept.0).take(usize::MAX);
                    assert_eq!(records.len(), told.len(), "{records:?}");
                    for (record, (level, words)) in records.iter().zip(told) {
                        assert!(record.level == *level && record.message.contains(words), "{record:?}");
                        assert_eq!(record.fields, [("files", path.display().to_string())]);
                    }
                    now += if later >= Duration::from_secs(1) { later } else { Duration::ZERO };
                }
            }
        };
        look("good", &[]);
        write("secret");
        look("good", &[(Level::Warn, "has 6 bad bytes; what was read before it stays in force")]);
        // Another file, and the same failure.
        write("SECRET");
        look("good", &[]);
        write("a secret");
        look("good", &[(Level::Warn, "has 8 bad bytes")]);
        fs::remove_file(&path).unwrap();
        look("good", &[(Level::Warn, "cannot be read")]);
        write("good too");
        look("good too", &[(Level::Info, "can be used again")]);
        write("good as well");
        look("good as well", &[]);
        fs::remove_file(&path).unwrap();
    }
}

/// A page has no files.
#[cfg(target_arch = "wasm32")]
mod page {
    use std::sync::Arc;

    use valkyrie_protocol::Status;

    use super::super::Pem;
    use crate::log::Logger;

    pub(in super::super) struct Fresh<T>(Arc<T>);

    impl<T> Fresh<T> {
        pub(in super::super) fn new(
            _: &[&Pem],
            _: Logger,
            make: impl Fn() -> Result<T, Status> + 'static,
        ) -> Result<Self, Status> {
            Ok(Self(Arc::new(make()?)))
        }

        pub(in super::super) fn current(&self) -> Arc<T> {
            self.0.clone()
        }
    }
}
