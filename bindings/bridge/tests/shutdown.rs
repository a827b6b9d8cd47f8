//! The end of the library while it is in use, and its use inside somebody else's tokio.

mod common;

use std::{
    sync::{
        Arc, Barrier, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
        mpsc::{Receiver, Sender, channel},
    },
    time::Duration,
};

use common::{connected, next};
use valkyrie_bridge::{
    Bytes, CallOptions, ClientOptions, Handle, Listener, Queue, Reason, Status, Value, call, client_free,
    connect, half_close, in_flight, open, recv, send, shutdown, stream_free,
};
use valkyrie_sdk::{EchoHandler, Reply, ServerBuilder, handler_fn};

/// The library ends for the whole process: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Held(Sender<()>);

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

/// A server on a runtime of its own; the other end hears of each handler of /hang that ends.
fn server() -> (String, Receiver<()>) {
    let ((tell, told), (ends, ended)) = (channel(), channel());
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let hang = handler_fn(move |_| {
                let held = Held(ends.clone());
                async move {
                    let _held = held;
                    std::future::pending::<Result<Reply, Status>>().await
                }
            });
            let server =
                ServerBuilder::new().bind("127.0.0.1:0").handler("/echo", EchoHandler).handler("/hang", hang);
            let server = server.build().await.unwrap();
            tell.send(server.endpoints()[0].clone()).unwrap();
            server.start().await.unwrap();
        });
    });
    (told.recv().unwrap(), ended)
}

fn echoes(client: Handle, queue: &Arc<Queue>) -> bool {
    let op = call(client, queue, "/echo", Bytes::from_static(b"x"), CallOptions::default()).unwrap();
    let completion = next(queue);
    completion.op == op && matches!(completion.outcome, Ok(Value::Response(got)) if got.message == "x")
}

fn forever() -> CallOptions {
    CallOptions { timeout_ms: Some(u64::MAX), ..CallOptions::default() }
}

#[test]
fn what_is_under_way_at_shutdown_completes_once_and_stops_at_the_server() {
    let _alone = alone();
    let (endpoint, ended) = server();
    let queue = Queue::blocking();
    let client = connected(&queue, &endpoint, ClientOptions::default());
    let mut ops: Vec<u64> =
        (0..50).map(|_| call(client, &queue, "/hang", Bytes::new(), forever()).unwrap()).collect();
    let streams: Vec<Handle> =
        (0..50).map(|_| open(client, &queue, "/hang", CallOptions::default()).unwrap()).collect();
    for stream in &streams {
        ops.push(recv(*stream, &queue, 1).unwrap());
    }
    // Calls are begun in order: the handlers run by now.
    assert!(echoes(client, &queue));
    let (listener, listening) = (Listener::new(), Queue::blocking());
    let record = listener.next(&listening, 1).unwrap();
    assert_eq!(in_flight(), ops.len(), "who waits for records keeps nobody busy");
    shutdown();
    let completion = next(&listening);
    assert_eq!((completion.op, completion.outcome.unwrap_err().reason()), (record, Reason::CLIENT_CLOSED));
    assert_eq!(in_flight(), 0);
    shutdown();
    let mut completed: Vec<_> = ops
        .iter()
        .map(|_| {
            let completion = next(&queue);
            assert_eq!(completion.outcome.unwrap_err().reason(), Reason::CLIENT_CLOSED);
            completion.op
        })
        .collect();
    completed.sort_unstable();
    ops.sort_unstable();
    assert_eq!(completed, ops);
    assert_eq!(queue.drain(&mut Vec::new(), 1), 0, "an operation completed twice");
    for _ in 0..100 {
        ended.recv_timeout(Duration::from_secs(60)).unwrap();
    }

    // What is left of it is an error each, and nothing hangs.
    let refused = call(client, &queue, "/echo", Bytes::new(), CallOptions::default()).unwrap_err();
    assert_eq!(refused.reason(), Reason::CLIENT_CLOSED);
    let refused = open(client, &queue, "/echo", CallOptions::default()).unwrap_err();
    assert_eq!(refused.reason(), Reason::CLIENT_CLOSED);
    for stream in streams {
        // Of two directions, neither of which waits for the other.
        let both = [recv(stream, &queue, 1).unwrap(), send(stream, &queue, Bytes::new()).unwrap()];
        let mut completed = both.map(|_| {
            let completion = next(&queue);
            assert!(completion.outcome.is_err(), "{completion:?}");
            completion.op
        });
        completed.sort_unstable();
        assert_eq!(completed, both);
        // There is nothing left to close.
        let op = half_close(stream, &queue).unwrap();
        assert_eq!(next(&queue).op, op);
        stream_free(stream);
    }
    client_free(client);
    // A library that is used again begins again.
    let client = connected(&queue, &endpoint, ClientOptions::default());
    assert!(echoes(client, &queue));
    client_free(client);
    shutdown();
}

/// A port that accepts nobody more: whoever connects to it waits.
#[cfg(target_os = "linux")]
fn full_port() -> (String, Vec<std::net::TcpStream>, std::net::TcpListener) {
    use std::os::fd::AsRawFd;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    // SAFETY: listen takes numbers; the descriptor is open.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
    let address = listener.local_addr().unwrap();
    let one = std::net::TcpStream::connect(address).unwrap();
    (format!("tcp://{address}"), vec![one], listener)
}

#[cfg(target_os = "linux")]
#[test]
fn a_stream_that_is_being_opened_at_shutdown_is_an_error_afterwards() {
    let _alone = alone();
    let (endpoint, _held, _listener) = full_port();
    let queue = Queue::blocking();
    let (client, connecting) = connect(&queue, &endpoint, ClientOptions::default()).unwrap();
    let stream = open(client, &queue, "/echo", CallOptions::default()).unwrap();
    let receiving = recv(stream, &queue, 1).unwrap();
    assert_eq!(in_flight(), 2, "the port answers");
    shutdown();
    for op in [connecting, receiving] {
        let completion = next(&queue);
        assert!(completion.op == op || completion.op == connecting + receiving - op);
        assert_eq!(completion.outcome.unwrap_err().reason(), Reason::CLIENT_CLOSED);
    }
    recv(stream, &queue, 1).unwrap();
    assert!(next(&queue).outcome.is_err());
    stream_free(stream);
    client_free(client);
    shutdown();
}

#[test]
fn shutdowns_at_any_moment_lose_no_operation() {
    let _alone = alone();
    let (endpoint, _ended) = server();
    let (stop, begin) = (Arc::new(AtomicBool::new(false)), Arc::new(Barrier::new(5)));
    let busy: Vec<_> = (0..3)
        .map(|_| {
            let (endpoint, stop, begin) = (endpoint.clone(), stop.clone(), begin.clone());
            std::thread::spawn(move || {
                let queue = Queue::blocking();
                let mut completed = 0;
                begin.wait();
                while !stop.load(SeqCst) {
                    // A shutdown between any two of these makes an error of the next.
                    let Ok((client, _)) = connect(&queue, &endpoint, ClientOptions::default()) else {
                        continue;
                    };
                    let mut accepted = 1;
                    let ops =
                        (0..10).map(|_| call(client, &queue, "/echo", Bytes::new(), CallOptions::default()));
                    accepted += ops.filter(Result::is_ok).count();
                    if let Ok(stream) = open(client, &queue, "/echo", CallOptions::default()) {
                        accepted += usize::from(send(stream, &queue, Bytes::new()).is_ok());
                        accepted += usize::from(recv(stream, &queue, 1).is_ok());
                        stream_free(stream);
                    }
                    (0..accepted).for_each(|_| drop(next(&queue)));
                    completed += accepted;
                    client_free(client);
                }
                assert_eq!(queue.drain(&mut Vec::new(), 1), 0, "an operation completed twice");
                completed
            })
        })
        .collect();
    let ends: Vec<_> = (0..2)
        .map(|_| {
            let begin = begin.clone();
            std::thread::spawn(move || {
                begin.wait();
                for _ in 0..100 {
                    shutdown();
                    std::thread::yield_now();
                }
            })
        })
        .collect();
    ends.into_iter().for_each(|thread| thread.join().unwrap());
    stop.store(true, SeqCst);
    assert!(busy.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>() > 0);
    shutdown();
    assert_eq!(in_flight(), 0);
}

/// As a host that is itself a tokio program.
fn inside_another_runtime(endpoint: &str) {
    let queue = Queue::blocking();
    let client = connected(&queue, endpoint, ClientOptions::default());
    assert!(echoes(client, &queue));
    let stream = open(client, &queue, "/echo", CallOptions::default()).unwrap();
    send(stream, &queue, Bytes::from_static(b"x")).unwrap();
    assert!(next(&queue).outcome.is_ok());
    recv(stream, &queue, 1).unwrap();
    assert!(matches!(next(&queue).outcome, Ok(Value::Messages { messages, .. }) if messages == ["x"]));
    stream_free(stream);
    client_free(client);
    // The runtime ends here, on a thread that must not wait for it.
    shutdown();
}

#[test]
fn it_works_inside_another_runtime() {
    let _alone = alone();
    let (endpoint, _ended) = server();
    let mut one = tokio::runtime::Builder::new_current_thread();
    one.enable_all().build().unwrap().block_on(async { inside_another_runtime(&endpoint) });
    let mut several = tokio::runtime::Builder::new_multi_thread();
    let several = several.worker_threads(2).enable_all().build().unwrap();
    several.block_on(
        async move { tokio::spawn(async move { inside_another_runtime(&endpoint) }).await.unwrap() },
    );
}
