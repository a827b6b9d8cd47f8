//! A thread that waits drives the connection itself, and nobody else on it loses by that.
#![cfg(unix)]

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
        mpsc::{Receiver, Sender, channel},
    },
    thread::{self, JoinHandle, ThreadId},
    time::Duration,
};

use common::{connected, next};
use tokio::sync::Semaphore;
use valkyrie_bridge::{
    Bytes, CallOptions, ClientOptions, Code, Completion, Handle, Queue, Reason, Status, Value, call, cancel,
    client_free, connect, expecting_to_lead, open, recv, send, stream_free,
};
use valkyrie_sdk::{EchoHandler, Reply, ServerBuilder, ServerControl, handler_fn};

/// How often a thread calls at most until it is seen to drive. It is after a few.
const TRIES: usize = 100_000;

struct Server {
    endpoint: String,
    control: ServerControl,
    /// A permit lets one call of /gate answer.
    gate: Arc<Semaphore>,
    thread: JoinHandle<()>,
}

fn server() -> Server {
    let (tell, told) = channel();
    let gate = Arc::new(Semaphore::new(0));
    let opens = gate.clone();
    let thread = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let server = ServerBuilder::new()
                .bind("127.0.0.1:0")
                .handler("/echo", EchoHandler)
                .handler("/hang", handler_fn(|_| std::future::pending::<Result<Reply, Status>>()))
                .handler(
                    "/gate",
                    handler_fn(move |_| {
                        let opens = opens.clone();
                        async move {
                            opens.acquire().await.unwrap().forget();
                            Ok::<_, Status>(Reply::message("through"))
                        }
                    }),
                )
                .build()
                .await
                .unwrap();
            tell.send((server.endpoints()[0].clone(), server.control())).unwrap();
            server.start().await.unwrap();
        });
    });
    let (endpoint, control) = told.recv().unwrap();
    Server { endpoint, control, gate, thread }
}

fn echoes(client: Handle, queue: &Arc<Queue>, message: &str) {
    let message = Bytes::copy_from_slice(message.as_bytes());
    let op = call(client, queue, "/echo", message.clone(), CallOptions::default()).unwrap();
    let completion = next(queue);
    assert_eq!(completion.op, op);
    assert!(matches!(completion.outcome, Ok(Value::Response(got)) if got.message == message));
}

/// A queue that tells which thread completes what.
fn told() -> (Arc<Queue>, Receiver<ThreadId>) {
    let (tell, told) = channel();
    let tell: Sender<ThreadId> = tell;
    (Queue::new(move || tell.send(thread::current().id()).unwrap()), told)
}

/// Makes calls until this thread drives: what completes elsewhere is completed by it.
fn drives(client: Handle, queue: &Arc<Queue>) {
    let (elsewhere, completed_by) = told();
    for _ in 0..TRIES {
        call(client, &elsewhere, "/echo", Bytes::new(), CallOptions::default()).unwrap();
        echoes(client, queue, "and another");
        let by = completed_by.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!(elsewhere.drain(&mut Vec::new(), 2), 1);
        if by == thread::current().id() {
            return;
        }
        (0..16).for_each(|_| echoes(client, queue, "one after the other"));
    }
    panic!("the thread never drove");
}

#[test]
fn a_thread_that_waits_call_after_call_drives() {
    let server = server();
    let queue = Queue::blocking();
    let client = connected(&queue, &server.endpoint, ClientOptions::default());
    drives(client, &queue);
    // More than a socket takes at once, in both directions.
    echoes(client, &queue, &"large".repeat(700_000));
    drives(client, &queue);
    let stream = open(client, &queue, "/echo", CallOptions::default()).unwrap();
    for number in 0..10_000u32 {
        let message = Bytes::copy_from_slice(&number.to_le_bytes());
        send(stream, &queue, message.clone()).unwrap();
        assert!(matches!(next(&queue).outcome, Ok(Value::Done)));
        recv(stream, &queue, 1).unwrap();
        let Ok(Value::Messages { messages, end: None }) = next(&queue).outcome else { panic!("no message") };
        assert_eq!(messages, [message]);
    }
    stream_free(stream);
    client_free(client);
}

/// A loop that polls its queue's descriptor and nothing else. The next completions.
#[cfg(target_os = "linux")]
fn turn(queue: &Queue) -> Vec<Completion> {
    let mut out = Vec::new();
    while out.is_empty() {
        let mut readable = libc::pollfd { fd: queue.fd().unwrap(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one entry, which is ours, and its descriptor is the queue's.
        assert_eq!(unsafe { libc::poll(&raw mut readable, 1, 60_000) }, 1, "nothing completed");
        queue.drive_and_drain(&mut out, 1_024);
    }
    out
}

/// Makes calls as a loop does until it is seen to drive.
#[cfg(target_os = "linux")]
fn loop_drives(client: Handle, queue: &Arc<Queue>) {
    let (elsewhere, completed_by) = told();
    for _ in 0..TRIES {
        let begin = |on: &Arc<Queue>| {
            let message = Bytes::from_static(b"turn");
            call(client, on, "/echo", message, CallOptions::default()).unwrap()
        };
        // What is begun in one turn leaves at its end, on whichever queue it completes.
        let ops = if queue.drives() {
            expecting_to_lead(|| [begin(&elsewhere), begin(queue)])
        } else {
            [begin(&elsewhere), begin(queue)]
        };
        queue.drive();
        assert_eq!(turn(queue)[0].op, ops[1]);
        let by = completed_by.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!(elsewhere.drain(&mut Vec::new(), 2), 1);
        if by == thread::current().id() && queue.drives() {
            return;
        }
    }
    panic!("the loop never drove");
}

#[cfg(target_os = "linux")]
#[test]
fn a_loop_that_polls_drives() {
    let server = server();
    let queue = Queue::driving().unwrap();
    let (client, connecting) = connect(&queue, &server.endpoint, ClientOptions::default()).unwrap();
    assert_eq!(turn(&queue)[0].op, connecting);
    loop_drives(client, &queue);
    // More than a socket takes at once, in both directions.
    let large = Bytes::from("large".repeat(700_000));
    expecting_to_lead(|| call(client, &queue, "/echo", large.clone(), CallOptions::default())).unwrap();
    queue.drive();
    let completion = turn(&queue).remove(0);
    assert!(matches!(completion.outcome, Ok(Value::Response(got)) if got.message == large));
    for _ in 0..8 {
        loop_drives(client, &queue);
        // A loop that does other things: the runtime takes the connection back, and what completes is told.
        let op = expecting_to_lead(|| call(client, &queue, "/gate", Bytes::new(), CallOptions::default()));
        server.gate.add_permits(1);
        while queue.drives() {
            thread::yield_now();
        }
        assert_eq!(turn(&queue)[0].op, op.unwrap());
    }
    // What it drove goes with it, and others go on.
    loop_drives(client, &queue);
    queue.close();
    drop(queue);
    let waits = Queue::blocking();
    echoes(client, &waits, "after the loop");
    client_free(client);
}

#[test]
fn threads_that_wait_at_once_each_get_their_own() {
    let server = server();
    let queue = Queue::blocking();
    let client = connected(&queue, &server.endpoint, ClientOptions::default());
    thread::scope(|scope| {
        for thread in 0..8 {
            scope.spawn(move || {
                let queue = Queue::blocking();
                (0..2_000).for_each(|number| echoes(client, &queue, &format!("{thread}/{number}")));
            });
        }
    });
    drives(client, &queue);
    client_free(client);
}

#[test]
fn what_is_under_way_goes_on_when_the_thread_does_not_come_back() {
    let server = server();
    let queue = Queue::blocking();
    let client = connected(&queue, &server.endpoint, ClientOptions::default());
    let (elsewhere, completed) = told();
    for _ in 0..8 {
        call(client, &elsewhere, "/gate", Bytes::new(), CallOptions::default()).unwrap();
        drives(client, &queue);
        server.gate.add_permits(1);
        completed.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!(elsewhere.drain(&mut Vec::new(), 2), 1);

        // Nor does a call stay where it is that a thread begins and does not wait for.
        drives(client, &queue);
        let op = call(client, &queue, "/gate", Bytes::new(), CallOptions::default()).unwrap();
        server.gate.add_permits(1);
        let mut out = Vec::new();
        while queue.drain(&mut out, 1) == 0 {
            thread::yield_now();
        }
        assert_eq!(out[0].op, op);
    }
    client_free(client);
}

/// A thread that drives waits for what never answers, until `end` is done.
fn hangs(server: &Server, end: impl FnOnce(Handle, &Arc<Queue>, u64)) -> Status {
    let queue = Queue::blocking();
    let client = connected(&queue, &server.endpoint, ClientOptions::default());
    let (tell, told) = channel();
    let waits = Arc::new(AtomicBool::new(false));
    thread::scope(|scope| {
        let waiting = scope.spawn({
            let (queue, waits) = (queue.clone(), waits.clone());
            move || {
                drives(client, &queue);
                let forever = CallOptions { timeout_ms: Some(u64::MAX), ..CallOptions::default() };
                tell.send(call(client, &queue, "/hang", Bytes::new(), forever).unwrap()).unwrap();
                waits.store(true, SeqCst);
                next(&queue).outcome.unwrap_err()
            }
        });
        let op = told.recv().unwrap();
        // What the thread completes shows that it waits.
        let (elsewhere, completed_by) = self::told();
        call(client, &elsewhere, "/echo", Bytes::new(), CallOptions::default()).unwrap();
        completed_by.recv_timeout(Duration::from_secs(60)).unwrap();
        end(client, &queue, op);
        waiting.join().unwrap()
    })
}

#[test]
fn a_thread_that_drives_hears_of_what_others_end() {
    let server = server();
    assert_eq!(hangs(&server, |_, _, op| cancel(op)).code(), Code::Cancelled);
    assert_eq!(hangs(&server, |client, _, _| client_free(client)).reason(), Reason::CLIENT_CLOSED);
    let gone = hangs(&server, |_, _, _| server.control.shutdown_now());
    assert_eq!(gone.code(), Code::Unavailable, "{gone:?}");
    server.thread.join().unwrap();
}

#[test]
fn a_deadline_ends_a_call_that_a_thread_drives() {
    let server = server();
    let queue = Queue::blocking();
    let client = connected(&queue, &server.endpoint, ClientOptions::default());
    drives(client, &queue);
    let soon = CallOptions { timeout_ms: Some(20), ..CallOptions::default() };
    call(client, &queue, "/hang", Bytes::new(), soon).unwrap();
    assert_eq!(next(&queue).outcome.unwrap_err().code(), Code::DeadlineExceeded);
    drives(client, &queue);
    assert!(!queue.wait(Some(Duration::from_millis(20))), "nothing was to come");
    client_free(client);
}
