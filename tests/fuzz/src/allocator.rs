//! The global allocator of every target: the system's, counted.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

/// What a piece of code did with memory, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// The largest single allocation.
    pub largest: usize,
    /// The most that was held at one time beyond what was held before.
    pub peak: usize,
}

static LARGEST: AtomicUsize = AtomicUsize::new(0);
static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// How often memory was taken or moved since the process began.
pub fn count() -> usize {
    COUNT.load(Relaxed)
}

/// Counts what `work` allocates. Targets have one thread; libFuzzer's own memory is C++'s and is not counted.
///
/// # Panics
/// When `work` keeps memory that its result does not hold: a leak.
pub fn measure(work: impl FnOnce()) -> Usage {
    let before = HELD.load(Relaxed);
    LARGEST.store(0, Relaxed);
    PEAK.store(before, Relaxed);
    work();
    assert_eq!(HELD.load(Relaxed), before, "memory was leaked");
    Usage { largest: LARGEST.load(Relaxed), peak: PEAK.load(Relaxed) - before }
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn took(size: usize) {
    COUNT.fetch_add(1, Relaxed);
    LARGEST.fetch_max(size, Relaxed);
    let held = HELD.fetch_add(size, Relaxed) + size;
    PEAK.fetch_max(held, Relaxed);
}

// SAFETY: every call is passed on to the system's allocator as it came; the counters are numbers beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        took(layout.size());
        // SAFETY: the caller keeps the contract of `alloc`, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        took(layout.size());
        // SAFETY: the caller keeps the contract of `alloc_zeroed`, which is the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both blocks exist while the bytes are copied.
        took(size);
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: `pointer` came from the system's allocator, as every block here, with this layout.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: `pointer` came from the system's allocator, as every block here, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}
