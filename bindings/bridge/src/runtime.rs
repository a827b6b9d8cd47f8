//! The one tokio runtime of the process, begun by the first operation and keyed by fork generation.

use std::{
    ops::Deref,
    sync::{Arc, Mutex},
};

use tokio::runtime::{Builder, Runtime};
use valkyrie_sdk::{Client, ClientBuilder, Reason, Status};

#[cfg(target_os = "linux")]
use crate::descriptors::Descriptors;
use crate::echo::{self, Echo};
use crate::{
    fork::{self, Held, generation},
    handle::lock,
    log::Logs,
    operation,
};

static CURRENT: Mutex<Option<Running>> = Mutex::new(None);

struct Running {
    made_in: u64,
    runtime: Arc<Own>,
    #[cfg(target_os = "linux")]
    descriptors: Option<Descriptors>,
}

/// A runtime whose end nobody waits for: the last to let go of it may be a task of the host's.
pub(crate) struct Own {
    runtime: Option<Runtime>,
    echo: Arc<Echo>,
}

impl Own {
    /// What a client on it begins with.
    pub(crate) fn client(&self) -> ClientBuilder {
        Client::builder()
            .connector(echo::SCHEME, Arc::new(echo::EchoConnector(self.echo.clone())))
            .log(Arc::new(Logs))
    }
}

impl Deref for Own {
    type Target = Runtime;

    fn deref(&self) -> &Runtime {
        self.runtime.as_ref().expect("there until it is dropped")
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

pub(crate) fn hold(held: &mut Held) {
    held.push(Box::new(lock(&CURRENT)));
}

/// In a child: lets go of the descriptors that the parent's runtime lives on.
#[cfg(target_os = "linux")]
pub(crate) fn close_inherited() {
    if let Some(descriptors) = lock(&CURRENT).as_mut().and_then(|running| running.descriptors.take()) {
        descriptors.close_inherited();
    }
}

/// The runtime of this generation.
///
/// # Errors
/// INTERNAL when the system gives no thread.
pub(crate) fn runtime() -> Result<Arc<Own>, Status> {
    fork::watch();
    operation::settle();
    let now = generation();
    let mut current = lock(&CURRENT);
    if let Some(running) = &*current {
        if running.made_in == now {
            return Ok(running.runtime.clone());
        }
        // The parent's: dropping it would wait for threads that are not here.
        std::mem::forget(current.take());
    }
    // Begun with this lock held, over which no thread of a child can have been in the middle of it.
    operation::now();
    let runtime =
        Builder::new_multi_thread().worker_threads(1).thread_name("valkyrie").enable_all().build().map_err(
            |error| Status::from_reason(Reason::INTERNAL, format!("cannot start the runtime: {error}")),
        )?;
    #[cfg(target_os = "linux")]
    let descriptors = Descriptors::of(&runtime);
    let runtime = Arc::new(Own { runtime: Some(runtime), echo: Arc::default() });
    *current = Some(Running {
        made_in: now,
        runtime: runtime.clone(),
        #[cfg(target_os = "linux")]
        descriptors,
    });
    Ok(runtime)
}

/// Stops the runtime without waiting for its tasks.
pub(crate) fn stop() {
    let current = lock(&CURRENT).take();
    match current {
        Some(running) if running.made_in == generation() => drop(running),
        parents => std::mem::forget(parents),
    }
}
