//! Handles: index and generation in 64 bits. A stale one is an error, never somebody else's object.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::fork::Held;

/// Names a client or a stream across the boundary. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Handle(u64);

impl Handle {
    /// The number that crosses the boundary. Below 2^53, so that a JavaScript number holds it; never 0.
    pub const fn to_raw(self) -> u64 {
        self.0
    }

    /// The handle of that number, which may be stale or nonsense: every use checks.
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }
}

/// Bits of the index; the generation takes the rest of 53.
const INDEX_BITS: u32 = 24;

pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Objects by handle.
pub(crate) struct Table<T>(Mutex<Slots<T>>);

struct Slots<T> {
    slots: Vec<(u32, Option<Arc<T>>)>,
    free: Vec<usize>,
}

impl<T> Slots<T> {
    fn all(&self) -> Vec<Arc<T>> {
        self.slots.iter().filter_map(|(_, value)| value.clone()).collect()
    }
}

impl<T> Table<T> {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(Slots { slots: Vec::new(), free: Vec::new() }))
    }

    /// Stores an object; `None` when 2^24 of them are alive.
    pub(crate) fn insert(&self, value: Arc<T>) -> Option<Handle> {
        let mut table = lock(&self.0);
        let index = match table.free.pop() {
            Some(index) => index,
            None if table.slots.len() < 1 << INDEX_BITS => {
                table.slots.push((1, None));
                table.slots.len() - 1
            }
            None => return None,
        };
        let slot = &mut table.slots[index];
        slot.1 = Some(value);
        Some(Handle(u64::from(slot.0) << INDEX_BITS | index as u64))
    }

    pub(crate) fn get(&self, handle: Handle) -> Option<Arc<T>> {
        let table = lock(&self.0);
        let (generation, value) = table.slots.get(index(handle))?;
        if u64::from(*generation) != handle.0 >> INDEX_BITS {
            return None;
        }
        value.clone()
    }

    pub(crate) fn remove(&self, handle: Handle) -> Option<Arc<T>> {
        let mut table = lock(&self.0);
        let index = index(handle);
        let (generation, value) = table.slots.get_mut(index)?;
        if u64::from(*generation) != handle.0 >> INDEX_BITS {
            return None;
        }
        let value = value.take()?;
        // A slot whose generations are used up is retired: a handle never comes back.
        if *generation < (1 << (53 - INDEX_BITS)) - 1 {
            *generation += 1;
            table.free.push(index);
        }
        Some(value)
    }

    pub(crate) fn all(&self) -> Vec<Arc<T>> {
        lock(&self.0).all()
    }

    /// Keeps the table locked, and gives what is in it.
    pub(crate) fn hold(&'static self, held: &mut Held) -> Vec<Arc<T>> {
        let table = lock(&self.0);
        let all = table.all();
        held.push(Box::new(table));
        all
    }
}

fn index(handle: Handle) -> usize {
    (handle.0 & ((1 << INDEX_BITS) - 1)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_handle_finds_nothing() {
        let table = Table::new();
        let first = table.insert(Arc::new(1)).unwrap();
        assert_eq!(table.get(first).as_deref(), Some(&1));
        assert!(table.remove(first).is_some());
        assert!(table.remove(first).is_none());
        let second = table.insert(Arc::new(2)).unwrap();
        assert_ne!(first, second);
        assert!(table.get(first).is_none());
        assert_eq!(table.get(second).as_deref(), Some(&2));
        for nonsense in [0, 1, u64::MAX] {
            assert!(table.get(Handle::from_raw(nonsense)).is_none());
        }
    }
}
