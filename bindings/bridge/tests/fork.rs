//! Forks, as a web server's or a job runner's prefork model makes them: with calls under way on other threads.
#![cfg(unix)]

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
        mpsc::{Receiver, Sender, channel},
    },
    time::Duration,
};

use common::next;
use valkyrie_bridge::{
    Bytes, CallOptions, ClientOptions, Code, Handle, Level, Listener, Queue, Reason, Status, Value, call,
    cancel, client_free, connect, in_flight, open, recv, send, stream_free,
};
use valkyrie_sdk::{EchoHandler, Reply, ServerBuilder, handler_fn};

/// A server over every transport that a fork could disturb.
struct Server {
    tcp: String,
    unix: String,
    quic: String,
    certificates: Bytes,
}

impl Drop for Server {
    /// Its thread goes on until the process ends.
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.unix.trim_start_matches("unix://"));
    }
}

struct Held(Sender<()>);

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

/// Starts it; the other end hears of each handler of /held that ends.
fn server() -> (Server, Receiver<()>) {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let (certificates, key) = (Bytes::from(made.cert.pem()), made.signing_key.serialize_pem());
    let socket = std::env::temp_dir().join(format!("valkyrie-fork-{}", std::process::id()));
    let ((tell, told), (ends, ended)) = (channel(), channel());
    let identity = certificates.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let server = ServerBuilder::new()
                .bind("127.0.0.1:0")
                .bind(format!("unix://{}", socket.display()))
                .bind("quic://127.0.0.1:0")
                .identity(identity, key)
                .open_to_all(true)
                .handler("/echo", EchoHandler)
                .handler("/hang", handler_fn(|_| std::future::pending::<Result<Reply, Status>>()))
                .handler(
                    "/held",
                    handler_fn(move |_| {
                        let held = Held(ends.clone());
                        async move {
                            let _held = held;
                            std::future::pending::<Result<Reply, Status>>().await
                        }
                    }),
                )
                .build()
                .await
                .unwrap();
            tell.send(server.endpoints().to_vec()).unwrap();
            server.start().await.unwrap();
        });
    });
    let endpoints = told.recv().unwrap();
    let of = |scheme: &str| endpoints.iter().find(|endpoint| endpoint.starts_with(scheme)).unwrap().clone();
    (Server { tcp: of("tcp:"), unix: of("unix:"), quic: of("quic:"), certificates }, ended)
}

fn connected(queue: &Arc<Queue>, server: &Server, endpoint: &str) -> Handle {
    let mut options = ClientOptions::default();
    options.trusted_certificates = endpoint.starts_with("quic:").then(|| server.certificates.clone().into());
    common::connected(queue, endpoint, options)
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

/// What this process has open, by number.
#[cfg(target_os = "linux")]
fn descriptors() -> Vec<(i32, std::path::PathBuf)> {
    let listed: Vec<_> =
        std::fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap().path()).collect();
    let mut all: Vec<_> = listed
        .iter()
        // The listing's own is gone by now.
        .filter_map(|path| Some((path.file_name()?.to_str()?.parse().ok()?, std::fs::read_link(path).ok()?)))
        .collect();
    all.sort();
    all
}

#[cfg(target_os = "linux")]
fn a_child_has_no_descriptor_of_its_parents_connections(server: &Server) {
    use std::os::fd::AsRawFd;
    // In a process where nothing else opens and closes.
    let status = in_child(|| {
        let queue = Queue::blocking();
        let mut before = descriptors();
        // The runtime begins, and what the host opens next is the host's.
        let (absent, _) = connect(&queue, "tcp://127.0.0.1:1", ClientOptions::default()).unwrap();
        assert_eq!(next(&queue).outcome.unwrap_err().reason(), Reason::CONNECT_FAILED);
        client_free(absent);
        let hosts = [(); 3].map(|()| std::fs::File::open("/dev/null").unwrap());
        before.extend(hosts.iter().map(|file| (file.as_raw_fd(), "/dev/null".into())));
        before.sort();
        let clients = [&server.tcp, &server.unix, &server.quic].map(|to| connected(&queue, server, to));
        let works = || clients.iter().all(|client| echoes(*client, &queue, "over each".into()));
        // So often that this thread drives, and the runtime does not poll the sockets.
        assert!(clients.iter().all(|client| (0..64).all(|_| echoes(*client, &queue, "again".into()))));
        let opened = descriptors().len() - before.len();
        // epoll twice, its eventfd, three sockets, what this thread is woken with.
        assert!(opened >= 7, "{opened}");
        let status = in_child(|| {
            assert_eq!(descriptors(), before);
            // What is closed once is not closed again: its number is another's by now.
            let pairs = [(); 4].map(|()| std::os::unix::net::UnixStream::pair().unwrap());
            let opened = descriptors();
            in_child(|| descriptors() == opened) == 0 && pairs.len() == 4 && works()
        });
        assert_eq!(status, 0);
        assert_eq!(descriptors().len() - before.len(), opened);
        works()
    });
    assert_eq!(status, 0);
}

/// The parent dies while its child lives: the server learns of it at once.
#[cfg(target_os = "linux")]
fn a_connection_ends_with_the_process_that_made_it(server: &Server, ended: &Receiver<()>) {
    use std::io::{Read, Write};
    for endpoint in [&server.tcp, &server.unix] {
        let (mut told, mut tell) = std::os::unix::net::UnixStream::pair().unwrap();
        let status = in_child(|| {
            let queue = Queue::blocking();
            let client = connected(&queue, server, endpoint);
            let forever = CallOptions { timeout_ms: Some(u64::MAX), ..CallOptions::default() };
            call(client, &queue, "/held", Bytes::new(), forever).unwrap();
            // Behind it on the same connection: the handler runs by now.
            assert!(echoes(client, &queue, "after".into()));
            // SAFETY: the grandchild does nothing but wait for the signal that ends it.
            match unsafe { libc::fork() } {
                0 => loop {
                    // SAFETY: neither takes a pointer.
                    unsafe {
                        libc::alarm(600);
                        libc::pause();
                    }
                },
                grandchild => tell.write_all(&grandchild.to_ne_bytes()).is_ok() && grandchild > 0,
            }
        });
        assert_eq!(status, 0);
        let mut grandchild = [0; 4];
        told.read_exact(&mut grandchild).unwrap();
        let grandchild = i32::from_ne_bytes(grandchild);
        let ended = ended.recv_timeout(Duration::from_secs(60));
        // SAFETY: kill takes numbers; the process is ours and waits for this.
        assert_eq!(unsafe { libc::kill(grandchild, libc::SIGKILL) }, 0, "it did not live");
        assert!(ended.is_ok(), "the server was not told that {endpoint} ended");
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
    let (server, ended) = server();
    let server = Arc::new(server);
    #[cfg(target_os = "linux")]
    {
        a_child_has_no_descriptor_of_its_parents_connections(&server);
        a_connection_ends_with_the_process_that_made_it(&server, &ended);
    }
    let queue = Queue::blocking();
    // What was not logged at the fork is the parent's to log; a child hears of its own connections.
    let (listener, listening) = (Listener::new(), Queue::blocking());
    listener.set_level(Some(Level::Info));
    let client = connected(&queue, &server, &server.tcp);

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
        assert!(listener.take().is_empty());
        assert_eq!(send(stream, &queue, Bytes::new()).unwrap_err().reason(), Reason::FORKED);
        stream_free(stream);
        cancel(unary);
        assert!(echoes(client, &queue, "child".into()));
        assert!(listener.take()[0].message.starts_with("connected to tcp://"));
        queue.drain(&mut Vec::new(), 1) == 0
    });
    assert_eq!(status, 0);
    assert_eq!(in_flight(), 2);
    assert_eq!(listener.take().len(), 1);
    listener.next(&listening, 1).unwrap();
    cancel(unary);
    assert_eq!(next(&queue).outcome.unwrap_err().code(), Code::Cancelled);
    send(stream, &queue, Bytes::from_static(b"on")).unwrap();
    let ops = [next(&queue).op, next(&queue).op];
    assert!(ops.contains(&receiving));
    stream_free(stream);

    // A descriptor of the parent's is not the child's: neither wakes the other.
    #[cfg(target_os = "linux")]
    for polled in [Queue::with_fd().unwrap(), Queue::driving().unwrap()] {
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
            let (stop, server) = (stop.clone(), server.clone());
            std::thread::spawn(move || {
                let queue = Queue::blocking();
                let own = connected(&queue, &server, [&server.tcp, &server.unix, &server.quic][thread]);
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
    let over_quic = connected(&queue, &server, &server.quic);
    for fork in 0..200 {
        // A handshake costs more than the rest of such a child.
        let client = if fork % 10 == 0 { over_quic } else { client };
        let status = in_child(|| (0..5).all(|number| echoes(client, &queue, format!("{fork}/{number}"))));
        assert_eq!(status, 0, "fork {fork}");
        assert!(echoes(client, &queue, format!("parent {fork}")));
    }
    stop.store(true, SeqCst);
    for thread in busy {
        assert!(thread.join().unwrap() > 0);
    }
    let Ok(Value::Logs(records)) = next(&listening).outcome else { panic!("no record") };
    assert_eq!(records.len(), 1);
    listener.set_level(None);
}
