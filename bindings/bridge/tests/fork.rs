//! Forks, as a web server's or a job runner's prefork model makes them: with calls under way on other threads.
#![cfg(unix)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use valkyrie_bridge::{
    Bytes, CallOptions, ClientOptions, Code, Completion, Handle, Queue, Reason, Status, Value, call, cancel,
    connect, in_flight, open, recv, send, stream_free,
};
use valkyrie_sdk::{EchoHandler, Reply, ServerBuilder, handler_fn};

fn server() -> String {
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let server = ServerBuilder::new()
                .bind("127.0.0.1:0")
                .handler("/echo", EchoHandler)
                .handler("/hang", handler_fn(|_| std::future::pending::<Result<Reply, Status>>()))
                .build()
                .await
                .unwrap();
            tell.send(server.endpoints()[0].clone()).unwrap();
            server.start().await.unwrap();
        });
    });
    told.recv().unwrap()
}

fn next(queue: &Arc<Queue>) -> Completion {
    let mut out = Vec::new();
    assert!(queue.wait(Some(Duration::from_secs(60))), "nothing completed");
    assert_eq!(queue.drain(&mut out, 1), 1);
    out.pop().unwrap()
}

fn connected(queue: &Arc<Queue>, endpoint: &str) -> Handle {
    let (client, _) = connect(queue, endpoint, ClientOptions::default()).unwrap();
    assert!(matches!(next(queue).outcome, Ok(Value::Done)));
    client
}

fn echoes(client: Handle, queue: &Arc<Queue>, message: String) -> bool {
    let message = Bytes::from(message);
    let op = call(client, queue, "/echo", message.clone(), CallOptions::default()).unwrap();
    let completion = next(queue);
    completion.op == op && matches!(completion.outcome, Ok(Value::Response(got)) if got.message == message)
}

/// Runs `body` in a child and gives its exit status: 0 when it held, a signal's when it hung for 60 s.
fn in_child(body: impl FnOnce() -> bool) -> i32 {
    // SAFETY: the child runs `body`, which uses only this library and the allocator, and ends with _exit.
    match unsafe { libc::fork() } {
        0 => {
            // SAFETY: alarm takes a number.
            unsafe { libc::alarm(60) };
            let held = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(false);
            // SAFETY: the child ends here and runs no destructor of the parent's.
            unsafe { libc::_exit(if held { 0 } else { 1 }) }
        }
        child => {
            assert!(child > 0, "no fork");
            let mut status = 0;
            // SAFETY: `status` is writable and the child is ours.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            status
        }
    }
}

#[cfg(target_os = "linux")]
fn readable(fd: i32) -> bool {
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid pollfd is passed, and its count is 1.
    unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
}

/// Forks are the process's, so this is one test: nothing else may be under way.
#[test]
fn a_fork_is_survived_by_both() {
    let endpoint = server();
    let queue = Queue::blocking();
    let client = connected(&queue, &endpoint);

    // Calls in flight fail in the child, once and by name, and go on in the parent.
    let unary = call(client, &queue, "/hang", Bytes::new(), CallOptions::default()).unwrap();
    let stream = open(client, &queue, "/echo", CallOptions::default()).unwrap();
    let receiving = recv(stream, &queue, 1).unwrap();
    assert_eq!(in_flight(), 2);
    let status = in_child(|| {
        let mut failed: Vec<_> = [next(&queue), next(&queue)]
            .into_iter()
            .map(|completion| {
                let status = completion.outcome.unwrap_err();
                assert_eq!((status.code(), status.reason()), (Code::Unavailable, Reason::FORKED));
                completion.op
            })
            .collect();
        failed.sort_unstable();
        assert_eq!(failed, [unary, receiving]);
        assert_eq!(in_flight(), 0);
        assert_eq!(send(stream, &queue, Bytes::new()).unwrap_err().reason(), Reason::FORKED);
        stream_free(stream);
        cancel(unary);
        assert!(echoes(client, &queue, "child".into()));
        queue.drain(&mut Vec::new(), 1) == 0
    });
    assert_eq!(status, 0);
    assert_eq!(in_flight(), 2);
    cancel(unary);
    assert_eq!(next(&queue).outcome.unwrap_err().code(), Code::Cancelled);
    send(stream, &queue, Bytes::from_static(b"on")).unwrap();
    let ops = [next(&queue).op, next(&queue).op];
    assert!(ops.contains(&receiving));
    stream_free(stream);

    // A descriptor of the parent's is not the child's: neither wakes the other.
    #[cfg(target_os = "linux")]
    {
        let polled = Queue::with_fd().unwrap();
        let fd = polled.fd().unwrap();
        let op = call(client, &polled, "/hang", Bytes::new(), CallOptions::default()).unwrap();
        assert!(!readable(fd));
        let status = in_child(|| {
            let mut out = Vec::new();
            assert!(readable(fd), "the child is not told that its call failed");
            assert_eq!(polled.drain(&mut out, 8), 1);
            assert_eq!(out[0].outcome.as_ref().unwrap_err().reason(), Reason::FORKED);
            assert!(!readable(fd));
            call(client, &polled, "/echo", Bytes::new(), CallOptions::default()).unwrap();
            assert!(polled.wait(Some(Duration::from_secs(60))));
            readable(fd)
        });
        assert_eq!(status, 0);
        assert!(!readable(fd), "the child woke the parent");
        cancel(op);
        assert!(readable(fd));
    }

    // Forks at any moment: other threads hold whatever they hold.
    let stop = Arc::new(AtomicBool::new(false));
    let busy: Vec<_> = (0..3)
        .map(|thread| {
            let (stop, endpoint) = (stop.clone(), endpoint.clone());
            std::thread::spawn(move || {
                let queue = Queue::blocking();
                let own = connected(&queue, &endpoint);
                let mut count = 0;
                while !stop.load(SeqCst) {
                    let client = if count % 2 == 0 { client } else { own };
                    assert!(echoes(client, &queue, format!("thread {thread} call {count}")));
                    count += 1;
                }
                count
            })
        })
        .collect();
    for fork in 0..200 {
        let status = in_child(|| (0..5).all(|number| echoes(client, &queue, format!("{fork}/{number}"))));
        assert_eq!(status, 0, "fork {fork}");
        assert!(echoes(client, &queue, format!("parent {fork}")));
    }
    stop.store(true, SeqCst);
    for thread in busy {
        assert!(thread.join().unwrap() > 0);
    }
}
