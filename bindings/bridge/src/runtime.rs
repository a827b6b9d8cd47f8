//! The one tokio runtime of the process, begun by the first operation and keyed by fork generation.
//!
//! A child of `fork()` has the parent's memory and none of its threads. The generation tells: the child leaves the
//! parent's runtime alone (dropping it would wait for threads that are not there) and begins its own.

use std::sync::{
    Arc, Mutex, Once,
    atomic::{AtomicU64, Ordering},
};

use tokio::runtime::{Builder, Runtime};
use valkyrie_sdk::{Reason, Status};

use crate::handle::lock;

static GENERATION: AtomicU64 = AtomicU64::new(0);
static CURRENT: Mutex<Option<(u64, Arc<Runtime>)>> = Mutex::new(None);

/// How many forks lie between this process and the one that loaded the library.
pub(crate) fn generation() -> u64 {
    GENERATION.load(Ordering::Acquire)
}

#[cfg(unix)]
extern "C" fn in_child() {
    // Only an atomic: the child may have been forked while any lock was held.
    GENERATION.fetch_add(1, Ordering::AcqRel);
}

fn watch_forks() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        #[cfg(unix)]
        // SAFETY: `in_child` is a plain function that lives as long as the process and touches one atomic.
        unsafe {
            libc::pthread_atfork(None, None, Some(in_child));
        }
    });
}

/// The runtime of this generation.
///
/// # Errors
/// INTERNAL when the system gives no thread.
pub(crate) fn runtime() -> Result<Arc<Runtime>, Status> {
    watch_forks();
    let now = generation();
    let mut current = lock(&CURRENT);
    if let Some((generation, runtime)) = &*current {
        if *generation == now {
            return Ok(runtime.clone());
        }
        // The parent's: its threads are not here, so it is forgotten, never dropped.
        std::mem::forget(current.take());
    }
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("valkyrie")
        .enable_all()
        .build()
        .map(Arc::new)
        .map_err(|error| {
            Status::from_reason(Reason::INTERNAL, format!("cannot start the runtime: {error}"))
        })?;
    *current = Some((now, runtime.clone()));
    Ok(runtime)
}

/// Stops the runtime without waiting for its tasks.
pub(crate) fn stop() {
    if let Some((made_in, runtime)) = lock(&CURRENT).take() {
        if made_in != generation() {
            std::mem::forget(runtime);
        } else if let Some(runtime) = Arc::into_inner(runtime) {
            runtime.shutdown_background();
        }
    }
}
