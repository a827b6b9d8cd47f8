//! A server's connections: each comes and goes once, and now and then something concerns all of them.
//!
//! Nothing in here is of this crate but `sync`, the primitives: `tests/table.rs` puts a model checker's in their place.

use std::{array, collections::HashMap, sync::PoisonError};

use super::sync::{AtomicU8, AtomicUsize, Mutex, MutexGuard, Ordering::Relaxed};

/// Connections that come and go on different processors seldom meet in one of so many.
const SHARDS: usize = 8;

/// Values that a shard has room for at once: small maps would lie side by side in memory.
const ROOM: usize = 64;

/// How far a server is with its end. It never goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    Serving,
    Draining,
    Stopping,
}

/// Values by id, and the phase that each of them has to hear of.
pub(crate) struct Table<T> {
    shards: [Shard<T>; SHARDS],
    phase: AtomicU8,
}

/// On cache lines of its own, or two processors would wait for each other's shards too.
#[repr(align(128))]
struct Shard<T> {
    values: Mutex<HashMap<u64, T>>,
    len: AtomicUsize,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self {
            shards: array::from_fn(|_| Shard {
                values: Mutex::new(HashMap::with_capacity(ROOM)),
                len: AtomicUsize::new(0),
            }),
            phase: AtomicU8::new(Phase::Serving as u8),
        }
    }
}

impl<T> Shard<T> {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, T>> {
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Clone> Table<T> {
    fn shard(&self, id: u64) -> &Shard<T> {
        &self.shards[id as usize % SHARDS]
    }

    /// Adds a value, and tells the phase that it has come into: whoever enters a later one finds the value here.
    pub(crate) fn insert(&self, id: u64, value: T) -> Phase {
        let shard = self.shard(id);
        let mut values = shard.lock();
        values.insert(id, value);
        shard.len.store(values.len(), Relaxed);
        // Under the lock: `enter` has either not been here and finds the value, or has set the phase before it was.
        match self.phase.load(Relaxed) {
            phase if phase == Phase::Serving as u8 => Phase::Serving,
            phase if phase == Phase::Draining as u8 => Phase::Draining,
            _ => Phase::Stopping,
        }
    }

    pub(crate) fn remove(&self, id: u64) {
        let shard = self.shard(id);
        let mut values = shard.lock();
        values.remove(&id);
        shard.len.store(values.len(), Relaxed);
    }

    /// How many there are, without a lock.
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.len.load(Relaxed)).sum()
    }

    /// All of them, for work that needs no lock.
    pub(crate) fn all(&self) -> Vec<T> {
        self.shards.iter().flat_map(|shard| shard.lock().values().cloned().collect::<Vec<_>>()).collect()
    }

    /// Begins a phase; gives all that have to hear of it. Those that come later hear of it from [`Table::insert`].
    pub(crate) fn enter(&self, phase: Phase) -> Vec<T> {
        self.phase.fetch_max(phase as u8, Relaxed);
        self.all()
    }
}
