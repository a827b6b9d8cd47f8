//! The sdk's runtime over the event loop of a page or a worker: tasks run in turns that JavaScript calls, time is
//! `performance.now()`, and one `setTimeout` serves every timer.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap, VecDeque},
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use js_sys::Function;
use valkyrie_sdk::{BoxFuture, Runtime, Time, Timer};
use wasm_bindgen::prelude::*;

/// The longest delay that `setTimeout` knows; what is later takes more than one.
const MAX_DELAY: Duration = Duration::from_millis(i32::MAX as u64);

#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(js_namespace = performance, js_name = now)]
    fn performance_now() -> f64;
    #[wasm_bindgen(js_name = setTimeout)]
    fn set_timeout(callback: &JsValue, delay_ms: f64) -> JsValue;
    #[wasm_bindgen(js_name = clearTimeout)]
    fn clear_timeout(timeout: &JsValue);
}

thread_local! {
    static WAKE: RefCell<Option<Function>> = const { RefCell::new(None) };
    static WOKEN: Cell<bool> = const { Cell::new(false) };
    static TASKS: RefCell<Tasks> = RefCell::default();
    static TIMERS: RefCell<Timers> = RefCell::default();
}

/// Sets what asks JavaScript for a turn soon.
pub(crate) fn set_wake(wake: Function) {
    WAKE.set(Some(wake));
}

/// Asks for a turn, once however often it is called before that turn.
pub(crate) fn request_turn() {
    if !WOKEN.replace(true) {
        // It only queues a microtask, which cannot fail.
        WAKE.with_borrow(|wake| wake.as_ref().map(|wake| wake.call0(&JsValue::UNDEFINED)));
    }
}

/// The turn is over: the next request asks JavaScript again.
pub(crate) fn end_turn() {
    WOKEN.set(false);
}

#[derive(Default)]
struct Tasks {
    ready: VecDeque<Arc<Task>>,
    futures: HashMap<u64, Pin<Box<dyn Future<Output = ()>>>>,
    last_id: u64,
}

/// What a task's waker holds. The future stays with the thread.
struct Task {
    id: u64,
    queued: AtomicBool,
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        if !self.queued.swap(true, Relaxed) {
            TASKS.with_borrow_mut(|tasks| tasks.ready.push_back(self));
            request_turn();
        }
    }
}

/// Runs a task to its end, in the turns to come.
pub(crate) fn spawn(task: impl Future<Output = ()> + 'static) {
    let id = TASKS.with_borrow_mut(|tasks| {
        tasks.last_id += 1;
        tasks.futures.insert(tasks.last_id, Box::pin(task));
        tasks.last_id
    });
    Arc::new(Task { id, queued: AtomicBool::new(false) }).wake();
}

/// Polls tasks until none is ready.
pub(crate) fn run_tasks() {
    while let Some((task, future)) = TASKS.with_borrow_mut(Tasks::next) {
        let Some(mut future) = future else { continue };
        task.queued.store(false, Relaxed);
        let waker = Waker::from(task.clone());
        if future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
            TASKS.with_borrow_mut(|tasks| tasks.futures.insert(task.id, future));
        }
    }
}

impl Tasks {
    /// The next task that was woken, with its future unless it has ended. Taken out, so that it may spawn and wake.
    #[allow(clippy::type_complexity, reason = "one caller, in sight")]
    fn next(&mut self) -> Option<(Arc<Task>, Option<Pin<Box<dyn Future<Output = ()>>>>)> {
        let task = self.ready.pop_front()?;
        let future = self.futures.remove(&task.id);
        Some((task, future))
    }
}

/// The event loop that this code runs on.
pub(crate) struct PageRuntime;

impl Runtime for PageRuntime {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        spawn(task);
    }

    fn now(&self) -> Time {
        now()
    }

    fn timer(&self) -> Box<dyn Timer> {
        Box::new(PageTimer::new())
    }

    fn seed(&self) -> u64 {
        // The standard library has no source of random bytes here.
        (js_sys::Math::random() * u64::MAX as f64) as u64
    }
}

pub(crate) fn now() -> Time {
    Time::from_micros((performance_now() * 1000.0) as u64)
}

#[derive(Default)]
struct Timers {
    waiting: BTreeMap<(Time, u64), Waker>,
    last_id: u64,
    /// The timeout that is set, and for when. It may be for a timer that has gone: then it fires for nothing, which
    /// costs less than setting it anew for every call.
    timeout: Option<(Time, JsValue)>,
    fire: Option<JsValue>,
}

impl Timers {
    fn arrange(&mut self) {
        let Some((&(first, _), _)) = self.waiting.first_key_value() else { return };
        if let Some((at, timeout)) = &self.timeout {
            if *at <= first {
                return;
            }
            clear_timeout(timeout);
        }
        let delay = first.since(now()).min(MAX_DELAY);
        let fire = self.fire.get_or_insert_with(|| Closure::<dyn FnMut()>::new(fire).into_js_value());
        self.timeout = Some((first, set_timeout(fire, (delay.as_micros() as f64 / 1000.0).ceil())));
    }
}

fn fire() {
    let now = now();
    let due = TIMERS.with_borrow_mut(|timers| {
        timers.timeout = None;
        let later = timers.waiting.split_off(&(now, u64::MAX));
        let due = std::mem::replace(&mut timers.waiting, later);
        timers.arrange();
        due
    });
    due.into_values().for_each(Waker::wake);
}

/// One timer. It holds numbers only; its waker stays with the thread.
pub(crate) struct PageTimer {
    id: u64,
    deadline: Option<Time>,
}

impl PageTimer {
    pub(crate) fn new() -> Self {
        let id = TIMERS.with_borrow_mut(|timers| {
            timers.last_id += 1;
            timers.last_id
        });
        Self { id, deadline: None }
    }
}

impl Timer for PageTimer {
    fn reset(&mut self, deadline: Option<Time>) {
        if let Some(before) = std::mem::replace(&mut self.deadline, deadline) {
            TIMERS.with_borrow_mut(|timers| timers.waiting.remove(&(before, self.id)));
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = self.deadline else { return Poll::Pending };
        if deadline <= now() {
            return Poll::Ready(());
        }
        TIMERS.with_borrow_mut(|timers| {
            timers.waiting.insert((deadline, self.id), cx.waker().clone());
            timers.arrange();
        });
        Poll::Pending
    }
}

impl Drop for PageTimer {
    fn drop(&mut self) {
        self.reset(None);
    }
}
