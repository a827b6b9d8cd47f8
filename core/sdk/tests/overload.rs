//! A server that is asked for more than it can do: its limit of concurrency, and who waits, runs and is refused then.

mod calling;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use calling::bounded;
use tokio::{sync::Semaphore, task::JoinHandle};
use valkyrie_sdk::{
    CallOptions, Client, Code, EchoHandler, Priority, Reason, Reply, Response, ServerBuilder, ServerControl,
    ServerStats, Status, handler_fn, policy::LimiterPolicy,
};

/// No call waits for so long.
const LONG: Duration = Duration::from_secs(600);

/// A limit that stays.
fn fixed(limit: u32) -> LimiterPolicy {
    LimiterPolicy { min: limit, initial: limit, max: limit, wait: LONG, ..LimiterPolicy::default() }
}

/// What the handler is asked by who is to find its thread standing still for so long, once it is let go.
const STANDS_STILL: &str = "stands still";
const STILL: Duration = Duration::from_millis(300);

/// A server whose handler `/hold` notes what it was asked, and ends when it is let go.
struct Holding {
    endpoint: String,
    control: ServerControl,
    started: Arc<Mutex<Vec<String>>>,
    let_go: Arc<Semaphore>,
}

impl Holding {
    async fn serve(builder: ServerBuilder) -> Self {
        let (started, let_go) = (Arc::<Mutex<Vec<String>>>::default(), Arc::new(Semaphore::new(0)));
        let (notes, gate) = (started.clone(), let_go.clone());
        let hold = handler_fn(move |mut call| {
            let (notes, gate) = (notes.clone(), gate.clone());
            async move {
                let message = call.message().await?;
                notes.lock().unwrap().push(String::from_utf8_lossy(&message).into_owned());
                gate.acquire().await.unwrap().forget();
                if message == STANDS_STILL {
                    std::thread::sleep(STILL);
                }
                Ok(Reply::message(message))
            }
        });
        let server = builder
            .bind("127.0.0.1:0")
            .handler("/hold", hold)
            .handler("/valkyrie.Health/Check", EchoHandler)
            .build()
            .await
            .unwrap();
        let (endpoint, control) = (server.endpoints().remove(0), server.control());
        tokio::spawn(async move { server.start().await });
        Self { endpoint, control, started, let_go }
    }

    async fn client(&self) -> Client {
        bounded("a connect", Client::connect(&self.endpoint)).await.unwrap()
    }

    /// Waits until the server's counts are so.
    async fn until(&self, what: &str, reached: impl Fn(ServerStats) -> bool) {
        let reached = async {
            while !reached(self.control.stats()) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), reached)
            .await
            .unwrap_or_else(|_| panic!("not {what}: {:?}", self.control.stats()));
    }

    fn started(&self) -> Vec<String> {
        self.started.lock().unwrap().clone()
    }
}

fn hold(client: &Client, name: &'static str, options: CallOptions) -> JoinHandle<Result<Response, Status>> {
    let client = client.clone();
    tokio::spawn(async move { bounded(name, client.call_with("/hold", name, options)).await })
}

fn of(class: Priority) -> CallOptions {
    CallOptions::new().with_priority(class).with_timeout(Duration::MAX)
}

// spec: W7-20
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_too_long_is_refused_before_a_handler_sees_it() {
    let policy = LimiterPolicy { wait: Duration::from_millis(100), ..fixed(2) };
    let server = Holding::serve(ServerBuilder::new().concurrency_limit(policy)).await;
    let (one, other) = (server.client().await, server.client().await);
    let running = [hold(&one, "a", of(Priority::Normal)), hold(&other, "b", of(Priority::Normal))];
    server.until("two running", |stats| stats.running == 2).await;

    let status = hold(&one, "late", of(Priority::Normal)).await.unwrap().unwrap_err();
    assert_eq!((status.code(), status.reason()), (Code::ResourceExhausted, Reason::OVERLOADED), "{status}");
    let pushback = status.pushback().unwrap();
    assert!((Duration::from_millis(50)..Duration::from_millis(150)).contains(&pushback), "{pushback:?}");
    // One that has less left is refused sooner: its caller may try elsewhere.
    let short = of(Priority::Critical).with_timeout(Duration::from_millis(150));
    let reason = hold(&other, "short", short).await.unwrap().unwrap_err().reason();
    assert!([Reason::OVERLOADED, Reason::DEADLINE_EXCEEDED].contains(&reason), "{reason}");
    // Whoever asks how the server is does not wait.
    bounded("health", one.call("/valkyrie.Health/Check", "")).await.unwrap();

    // One that its caller gave up may be given up here a little later, or be refused first.
    server.until("nobody in line", |stats| stats.queued == 0).await;
    let stats = server.control.stats();
    assert_eq!((stats.limit, stats.running), (Some(2), 2));
    assert!((1 + u64::from(reason == Reason::OVERLOADED)..=2).contains(&stats.shed), "{stats:?}");
    server.let_go.add_permits(2);
    for call in running {
        call.await.unwrap().unwrap();
    }
    server.until("at rest", |stats| stats.running == 0 && stats.streams == 0).await;
    let mut started = server.started();
    started.sort_unstable();
    assert_eq!(started, ["a", "b"]);
    server.control.shutdown_now();
}

// spec: W7-20
#[tokio::test(flavor = "multi_thread")]
async fn the_urgent_go_first_whatever_their_connection() {
    let server = Holding::serve(ServerBuilder::new().concurrency_limit(fixed(1))).await;
    let (one, other) = (server.client().await, server.client().await);
    let mut calls = vec![hold(&one, "first", of(Priority::Bulk))];
    server.until("one running", |stats| stats.running == 1).await;
    for (at, (client, name, class)) in [
        (&one, "bulk", Priority::Bulk),
        (&one, "normal 1", Priority::Normal),
        (&other, "normal 2", Priority::Normal),
        (&other, "critical", Priority::Critical),
    ]
    .into_iter()
    .enumerate()
    {
        calls.push(hold(client, name, of(class)));
        server.until("one more in line", |stats| stats.queued == at + 1).await;
    }
    for call in 1..=calls.len() {
        let all = server.started().len();
        assert_eq!(all, call, "{:?}", server.started());
        server.let_go.add_permits(1);
        let ended = calls.len() - call;
        server.until("the next one", |stats| stats.running + stats.queued == ended).await;
        let next = async {
            while server.started().len() < (call + 1).min(calls.len()) {
                tokio::task::yield_now().await;
            }
        };
        bounded("the next one's start", next).await;
    }
    for call in calls {
        call.await.unwrap().unwrap();
    }
    assert_eq!(server.started(), ["first", "critical", "normal 1", "normal 2", "bulk"]);
    assert_eq!(server.control.stats().shed, 0);
    server.control.shutdown_now();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_in_line_is_given_back_with_its_call_and_its_connection() {
    let policy = LimiterPolicy { max_waiting: 1, ..fixed(1) };
    let server = Holding::serve(ServerBuilder::new().concurrency_limit(policy)).await;
    let (one, other) = (server.client().await, server.client().await);
    let running = hold(&one, "running", of(Priority::Normal));
    server.until("one running", |stats| stats.running == 1).await;
    let cancelled = hold(&one, "cancelled", of(Priority::Normal));
    server.until("one in line", |stats| stats.queued == 1).await;
    // The line of a class is full; another class has its own.
    let status = hold(&other, "too many", of(Priority::Normal)).await.unwrap().unwrap_err();
    assert_eq!(status.reason(), Reason::OVERLOADED, "{status}");
    assert!(status.pushback().is_some());
    let bulk = hold(&one, "bulk", of(Priority::Bulk));
    server.until("bulk in line", |stats| stats.queued == 2).await;

    cancelled.abort();
    server.until("one gone", |stats| stats.queued == 1).await;
    let cut = hold(&other, "cut", of(Priority::Normal));
    server.until("two in line", |stats| stats.queued == 2).await;
    other.close_now();
    assert!(cut.await.unwrap().is_err());
    server.until("one left", |stats| stats.queued == 1).await;
    let last = hold(&one, "last", of(Priority::Normal));
    server.until("two in line again", |stats| stats.queued == 2).await;

    server.let_go.add_permits(3);
    for call in [running, bulk, last] {
        call.await.unwrap().unwrap();
    }
    assert_eq!(server.started(), ["running", "last", "bulk"]);
    server.until("at rest", |stats| stats.running == 0 && stats.streams == 0).await;
    server.control.shutdown_now();
}

/// Many connections, handlers that answer at once, wait, fail and panic, callers that give up: the limit holds all the time, and
/// nothing is left behind.
#[tokio::test(flavor = "multi_thread")]
async fn the_limit_holds_and_nothing_leaks() {
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counts = (running.clone(), most.clone());
    struct Leave(Arc<AtomicUsize>);
    impl Drop for Leave {
        fn drop(&mut self) {
            self.0.fetch_sub(1, SeqCst);
        }
    }
    let work = handler_fn(move |mut call| {
        let (running, most) = counts.clone();
        async move {
            let message = call.message().await?;
            most.fetch_max(running.fetch_add(1, SeqCst) + 1, SeqCst);
            let _leave = Leave(running);
            // The handler's work, of three kinds: nobody waits by it.
            match message.first() {
                Some(b'0'..=b'3') => {}
                Some(b'4'..=b'8') => tokio::time::sleep(Duration::from_micros(500)).await,
                _ => {
                    tokio::task::yield_now().await;
                    panic!("on purpose");
                }
            }
            Ok(Reply::message(message))
        }
    });
    let server = ServerBuilder::new().bind("127.0.0.1:0").handler("/work", work).concurrency_limit(fixed(8));
    let server = server.build().await.unwrap();
    let (endpoint, control) = (server.endpoints().remove(0), server.control());
    tokio::spawn(async move { server.start().await });
    let mut callers = Vec::new();
    for caller in 0..32_u32 {
        let client = Client::connect(&endpoint).await.unwrap();
        callers.push(tokio::spawn(async move {
            let mut answered = 0;
            for number in 0..50_u32 {
                let class = Priority::ALL[(caller as usize + number as usize) % 3];
                let timeout = if number % 11 == 0 { Duration::from_micros(800) } else { LONG };
                let options = of(class).with_timeout(timeout);
                let message = ((caller * 7 + number) % 10).to_string();
                let result = bounded("a call", client.call_with("/work", message, options)).await;
                answered += usize::from(result.is_ok());
            }
            answered
        }));
    }
    let mut answered = 0;
    for caller in callers {
        answered += caller.await.unwrap();
    }
    assert!(answered >= 32 * 50 * 7 / 10, "{answered} answered");
    assert!((1..=8).contains(&most.load(SeqCst)), "{} at once", most.load(SeqCst));
    bounded("rest", async {
        let at_rest = |stats: ServerStats| (stats.running, stats.queued, stats.streams) == (0, 0, 0);
        while !at_rest(control.stats()) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(running.load(SeqCst), 0);
    // Every place is free again.
    let client = Client::connect(&endpoint).await.unwrap();
    for _ in 0..20 {
        bounded("a call", client.call("/work", "5")).await.unwrap();
    }
    bounded("a shutdown", control.shutdown()).await;
}

/// Without a limit, too: a call whose deadline has passed while it waited is never started, and not either when a place is free
/// before anybody looked at the time: the one thread stands still until all of them are late.
// spec: W7-20
#[tokio::test]
async fn what_is_late_is_never_started() {
    let server = Holding::serve(ServerBuilder::new().max_running_handlers(1)).await;
    let client = server.client().await;
    let running = hold(&client, STANDS_STILL, of(Priority::Normal));
    server.until("one running", |stats| stats.running == 1).await;
    let short = of(Priority::Normal).with_timeout(STILL);
    // Once more where the machine was too busy to have them in line in time: a server counts from when it has read a call.
    let late = loop {
        let late: Vec<_> = (0..20).map(|_| hold(&client, "late", short.clone())).collect();
        server.until("in line", |stats| stats.queued == 20 || late.iter().any(JoinHandle::is_finished)).await;
        if server.control.stats().queued == 20 {
            break late;
        }
        server
            .until("nobody in line", |stats| stats.queued == 0 && late.iter().all(JoinHandle::is_finished))
            .await;
    };
    server.let_go.add_permits(1);
    running.await.unwrap().unwrap();
    for call in late {
        assert_eq!(call.await.unwrap().unwrap_err().reason(), Reason::DEADLINE_EXCEEDED);
    }
    server.until("at rest", |stats| (stats.running, stats.queued) == (0, 0)).await;
    assert_eq!((server.control.stats().limit, server.started()), (None, vec![STANDS_STILL.to_owned()]));
    server.control.shutdown_now();
}

#[tokio::test]
async fn a_limit_that_makes_no_sense_is_refused() {
    let policy = LimiterPolicy { min: 30, ..LimiterPolicy::default() };
    let server = ServerBuilder::new().bind("127.0.0.1:0").concurrency_limit(policy).build().await;
    let status = server.map(drop).unwrap_err();
    assert_eq!(status.reason(), Reason::INVALID_CONFIGURATION);
    assert!(status.message().contains("min is 30, initial 20"), "{status}");
}
