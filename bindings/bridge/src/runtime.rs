//! The one tokio runtime of the process, begun by the first operation and keyed by fork generation.

use std::sync::{Arc, Mutex};

use tokio::runtime::{Builder, Runtime};
use valkyrie_sdk::{Reason, Status};

use crate::{
    fork::{self, Held, generation},
    handle::lock,
    operation,
};

static CURRENT: Mutex<Option<(u64, Arc<Runtime>)>> = Mutex::new(None);

pub(crate) fn hold(held: &mut Held) {
    held.push(Box::new(lock(&CURRENT)));
}

/// The runtime of this generation.
///
/// # Errors
/// INTERNAL when the system gives no thread.
pub(crate) fn runtime() -> Result<Arc<Runtime>, Status> {
    fork::watch();
    operation::settle();
    let now = generation();
    let mut current = lock(&CURRENT);
    if let Some((generation, runtime)) = &*current {
        if *generation == now {
            return Ok(runtime.clone());
        }
        // The parent's: dropping it would wait for threads that are not here.
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
    let current = lock(&CURRENT).take();
    if let Some((made_in, runtime)) = current {
        if made_in != generation() {
            std::mem::forget(runtime);
        } else if let Some(runtime) = Arc::into_inner(runtime) {
            runtime.shutdown_background();
        }
    }
}
