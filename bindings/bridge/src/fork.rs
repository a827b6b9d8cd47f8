//! What `fork()` does to the boundary: the child has the parent's memory and none of its threads.
//!
//! Around a fork the forking thread holds every lock of the boundary, so that the child finds whole data and free
//! locks whatever the other threads were doing. The child counts one generation more; what an earlier generation made
//! (runtime, connections, streams) is left alone and leaked, never used and never dropped. On Linux the child closes its
//! copies of the parent's descriptors, so that a connection ends with the parent.

use std::{
    any::Any,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::handle::lock;

static GENERATION: AtomicU64 = AtomicU64::new(0);

/// How many forks lie between this process and the one that loaded the library.
pub(crate) fn generation() -> u64 {
    GENERATION.load(Ordering::Acquire)
}

/// Locks that are held over a fork, in the order they were taken.
pub type Held = Vec<Box<dyn Any>>;

/// What an adapter locks.
static ADAPTER: OnceLock<fn(&mut Held)> = OnceLock::new();

/// Before each fork from now on, `hold` takes the locks of the one adapter of this library and adds their guards, which
/// are dropped after the fork. It runs before the boundary takes its own, so an adapter may call in with its own held.
pub fn hold_over_forks(hold: fn(&mut Held)) {
    let _ = ADAPTER.set(hold);
    watch();
}

/// A lock that is held without a scope, with what the lock is a part of. The guard is dropped first.
pub(crate) struct OwnedGuard<O: 'static, T: 'static> {
    _guard: MutexGuard<'static, T>,
    _owner: Arc<O>,
}

impl<O, T> OwnedGuard<O, T> {
    pub(crate) fn lock(owner: Arc<O>, part: fn(&O) -> &Mutex<T>) -> Self {
        // SAFETY: the mutex is a part of `owner`, which the result keeps alive and in its place until after the guard
        // is dropped.
        let mutex: &'static Mutex<T> = unsafe { &*std::ptr::from_ref(part(&owner)) };
        Self { _guard: lock(mutex), _owner: owner }
    }
}

/// Takes part in forks from now on. Cheap after the first time.
pub(crate) fn watch() {
    #[cfg(unix)]
    unix::watch();
}

#[cfg(unix)]
mod unix {
    use std::{
        cell::RefCell,
        sync::{Once, atomic::Ordering},
    };

    use super::{ADAPTER, GENERATION, Held};
    use crate::{log, operation, queue, runtime};

    thread_local! {
        static HELD: RefCell<Held> = const { RefCell::new(Vec::new()) };
    }

    pub(super) fn watch() {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            // SAFETY: the three are plain functions that live as long as the process and do not unwind.
            unsafe {
                libc::pthread_atfork(Some(prepare), Some(in_parent), Some(in_child));
            }
        });
    }

    extern "C" fn prepare() {
        // The order in which every other place takes them. A thread that is already ending holds nothing.
        let _ = HELD.try_with(|held| {
            let held = &mut *held.borrow_mut();
            if let Some(hold) = ADAPTER.get() {
                hold(held);
            }
            runtime::hold(held);
            operation::hold(held);
            queue::hold(held);
            log::hold(held);
            #[cfg(target_os = "linux")]
            crate::descriptors::hold(held);
        });
    }

    fn release() {
        let held = HELD.try_with(|held| std::mem::take(&mut *held.borrow_mut())).unwrap_or_default();
        held.into_iter().rev().for_each(drop);
    }

    extern "C" fn in_parent() {
        release();
    }

    extern "C" fn in_child() {
        GENERATION.fetch_add(1, Ordering::AcqRel);
        release();
        #[cfg(target_os = "linux")]
        runtime::close_inherited();
        queue::renew();
        log::forget();
    }
}
