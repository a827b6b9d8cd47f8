//! What C's pointers name. They are numbers, not addresses: index and generation of a slot, the kind of object, and a
//! top bit that no address of a program has. So a pointer that was freed, is of another type or was never handed out
//! finds nothing, and nothing is ever read through it.

use std::{
    cell::Cell,
    ptr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use valkyrie_bridge::{self as bridge, Handle, Listener, Queue};

use crate::{Call, Failure, Message};

// A pointer has to hold such a number.
const _: () = assert!(usize::BITS == 64);

/// Bit 63 is set; below it the kind, the part, the generation and the index.
const MARK: u64 = 1 << 63;
const KIND_AT: u32 = 60;
const PART_AT: u32 = 58;
const INDEX_BITS: u32 = 28;
const GENERATION_BITS: u32 = PART_AT - INDEX_BITS;
/// Threads make objects in different shards, so that they seldom wait for each other.
const SHARDS: usize = 16;

/// An object that C may hold.
pub(crate) enum Object {
    Client(Handle),
    Call(Box<Call>),
    Queue(Arc<Queue>, Arc<Listener>),
    Message(Box<Message>),
    Failure(Box<Failure>),
}

impl Object {
    fn kind(&self) -> u64 {
        match self {
            Self::Client(_) => 1,
            Self::Call(_) => 2,
            Self::Queue(..) => 3,
            Self::Message(_) => 4,
            Self::Failure(_) => 5,
        }
    }
}

/// A part of an object that has a pointer of its own, which dies with the object.
#[derive(Clone, Copy)]
pub(crate) enum Part {
    Metadata = 1,
    Trailers = 2,
}

struct Shard {
    slots: Vec<Slot>,
    free: Vec<usize>,
}

struct Slot {
    generation: u64,
    object: Option<Object>,
}

static TABLE: [Mutex<Shard>; SHARDS] =
    [const { Mutex::new(Shard { slots: Vec::new(), free: Vec::new() }) }; SHARDS];

fn lock(shard: usize) -> MutexGuard<'static, Shard> {
    TABLE[shard].lock().unwrap_or_else(PoisonError::into_inner)
}

/// The shard in which this thread makes objects.
fn own_shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static OWN: Cell<usize> = const { Cell::new(SHARDS) });
    if OWN.get() == SHARDS {
        bridge::hold_over_forks(crate::hold);
        OWN.set(NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS);
    }
    OWN.get()
}

fn split(raw: u64) -> (usize, usize, u64) {
    let index = (raw & ((1 << INDEX_BITS) - 1)) as usize;
    (index % SHARDS, index / SHARDS, raw >> INDEX_BITS & ((1 << GENERATION_BITS) - 1))
}

impl Shard {
    fn find(&mut self, raw: u64) -> Option<&mut Option<Object>> {
        let (_, index, generation) = split(raw);
        let slot = self.slots.get_mut(index).filter(|slot| slot.generation == generation)?;
        let kind = slot.object.as_ref()?.kind();
        // The part's bits are in it too: a part is not the object.
        (raw >> PART_AT == (MARK | kind << KIND_AT) >> PART_AT).then_some(&mut slot.object)
    }
}

/// Stores an object and gives the pointer that names it; the object comes back when 2^24 of them are alive in a shard.
pub(crate) fn insert<T>(object: Object) -> Result<*mut T, Object> {
    let shard = own_shard();
    let kind = object.kind();
    let table = &mut *lock(shard);
    let index = match table.free.pop() {
        Some(index) => index,
        None if table.slots.len() < (1 << INDEX_BITS) / SHARDS => {
            table.slots.push(Slot { generation: 0, object: None });
            table.slots.len() - 1
        }
        None => return Err(object),
    };
    let slot = &mut table.slots[index];
    slot.object = Some(object);
    let raw = MARK | kind << KIND_AT | slot.generation << INDEX_BITS | (index * SHARDS + shard) as u64;
    Ok(ptr::without_provenance_mut(raw as usize))
}

/// Lets `read` see the object that a pointer names. Nothing that `read` calls may come back here.
pub(crate) fn with<T, R>(pointer: *const T, read: impl FnOnce(&mut Object) -> Option<R>) -> Option<R> {
    let raw = pointer.addr() as u64;
    lock(split(raw).0).find(raw)?.as_mut().and_then(read)
}

/// Takes an object out when it is the `wanted` one; its pointer names nothing from now on.
pub(crate) fn remove<T>(pointer: *const T, wanted: impl FnOnce(&Object) -> bool) -> Option<Object> {
    let raw = pointer.addr() as u64;
    let (shard, index, generation) = split(raw);
    let table = &mut *lock(shard);
    let object = table.find(raw)?.take_if(|object| wanted(object))?;
    // A slot whose generations are used up is retired: a pointer never comes back.
    if generation + 1 < 1 << GENERATION_BITS {
        table.slots[index].generation += 1;
        table.free.push(index);
    }
    Some(object)
}

/// The pointer to a part of the object that `pointer` names.
pub(crate) fn part<T, U>(pointer: *const T, part: Part) -> *const U {
    ptr::without_provenance(pointer.addr() | (part as usize) << PART_AT)
}

/// The object that a pointer to a part belongs to, and which part it is.
pub(crate) fn whole<T>(pointer: *const T) -> (*const T, Option<Part>) {
    let raw = pointer.addr();
    let part = match raw >> PART_AT & 3 {
        1 => Some(Part::Metadata),
        2 => Some(Part::Trailers),
        _ => None,
    };
    (ptr::without_provenance(raw & !(3 << PART_AT)), part)
}

/// How many objects are alive.
pub(crate) fn alive() -> usize {
    (0..SHARDS).map(|shard| lock(shard).slots.iter().filter(|slot| slot.object.is_some()).count()).sum()
}

/// Keeps the table locked.
pub(crate) fn hold(held: &mut bridge::Held) {
    for shard in 0..SHARDS {
        held.push(Box::new(lock(shard)));
    }
}
