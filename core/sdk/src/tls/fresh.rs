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
    use crate::connection::lock;

    /// How often files are looked at again, at most.
    const LOOK_AGAIN: Duration = Duration::from_secs(1);

    pub(in super::super) struct Fresh<T> {
        current: Mutex<Current<T>>,
        /// Only with files.
        again: Option<Again<T>>,
    }

    struct Current<T> {
        value: Arc<T>,
        looked: Instant,
        stamps: Vec<Stamp>,
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
            let current = Current { value: Arc::new(make()?), looked: Instant::now(), stamps };
            let again = (!files.is_empty()).then(|| Again { files, make: Box::new(make) });
            Ok(Self { current: Mutex::new(current), again })
        }

        pub(in super::super) fn current(&self) -> Arc<T> {
            let mut current = lock(&self.current);
            if let Some(again) = &self.again
                && current.looked.elapsed() >= LOOK_AGAIN
            {
                current.looked = Instant::now();
                let stamps = stamps(&again.files);
                if stamps != current.stamps
                    && let Ok(value) = (again.make)()
                {
                    // A key that came without its certificate, or half a file: the next look may find both.
                    current.value = Arc::new(value);
                    current.stamps = stamps;
                }
            }
            current.value.clone()
        }
    }
}

/// A page has no files.
#[cfg(target_arch = "wasm32")]
mod page {
    use std::sync::Arc;

    use valkyrie_protocol::Status;

    use super::super::Pem;

    pub(in super::super) struct Fresh<T>(Arc<T>);

    impl<T> Fresh<T> {
        pub(in super::super) fn new(
            _: &[&Pem],
            make: impl Fn() -> Result<T, Status> + 'static,
        ) -> Result<Self, Status> {
            Ok(Self(Arc::new(make()?)))
        }

        pub(in super::super) fn current(&self) -> Arc<T> {
            self.0.clone()
        }
    }
}
