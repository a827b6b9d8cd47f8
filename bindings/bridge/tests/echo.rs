//! The echo core: a whole client and server with no socket, in a child of a fork too.
#![cfg(target_os = "linux")]

mod common;

use std::sync::Arc;

use common::{connected, next};
use valkyrie_bridge::{
    Bytes, CallOptions, ClientOptions, Code, Handle, Queue, Reason, Value, call, client_free, connect, open,
    recv, send, shutdown, stream_free,
};

fn answer(client: Handle, queue: &Arc<Queue>, method: &str, message: &str) -> String {
    call(client, queue, method, Bytes::from(message.to_owned()), CallOptions::default()).unwrap();
    let Ok(Value::Response(response)) = next(queue).outcome else { panic!("no answer") };
    String::from_utf8(response.message.to_vec()).unwrap()
}

fn sockets() -> usize {
    let all = std::fs::read_dir("/proc/self/fd").unwrap();
    all.filter(|entry| {
        let to = std::fs::read_link(entry.as_ref().unwrap().path());
        to.is_ok_and(|to| to.as_os_str().to_string_lossy().starts_with("socket:"))
    })
    .count()
}

/// Forks and sockets are the process's, so this is one test: nothing else may be under way.
#[test]
fn the_echo_core_needs_no_socket_and_is_each_processs_own() {
    // Built beside crates that listen to signals, a runtime has sockets of its own: as many as the second of these.
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (_first, second) = (runtime(), runtime());
    let before = sockets();
    drop(second);
    let queue = Queue::blocking();
    let client = connected(&queue, "echo://core", ClientOptions::default());
    assert_eq!(answer(client, &queue, "/echo", "hello"), "hello");
    assert_eq!(answer(client, &queue, "/test/any/where", ""), "/test/any/where");
    let stream = open(client, &queue, "/echo", CallOptions::default()).unwrap();
    let large = Bytes::from(vec![7; 3 << 20]);
    send(stream, &queue, large.clone()).unwrap();
    recv(stream, &queue, 1).unwrap();
    let mut got = [next(&queue), next(&queue)].map(|completion| completion.outcome.unwrap());
    got.sort_by_key(|value| matches!(value, Value::Done));
    assert!(matches!(&got[0], Value::Messages { messages, .. } if *messages == [large]));
    stream_free(stream);

    // What goes wrong in it is an error, and the host lives.
    call(client, &queue, "/test/panic", Bytes::new(), CallOptions::default()).unwrap();
    assert_eq!(next(&queue).outcome.unwrap_err().code(), Code::Internal);
    let (absent, _) = connect(&queue, "echo://absent", ClientOptions::default()).unwrap();
    assert_eq!(next(&queue).outcome.unwrap_err().reason(), Reason::CONNECT_FAILED);
    client_free(absent);

    // A server that a caller may end, which the core is not.
    let private = answer(client, &queue, "/test/private", "echo");
    let ends = connected(&queue, &private, ClientOptions::default());
    assert_eq!(answer(ends, &queue, "/test/shutdown", "now"), "now");
    client_free(ends);
    call(client, &queue, "/test/shutdown", Bytes::from_static(b"now"), CallOptions::default()).unwrap();
    assert_eq!(next(&queue).outcome.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(sockets(), before);

    for fork in 0..20 {
        // SAFETY: the child uses only this library and the allocator, and ends with _exit.
        match unsafe { libc::fork() } {
            0 => {
                // SAFETY: alarm takes a number.
                unsafe { libc::alarm(60) };
                let child = std::panic::AssertUnwindSafe(|| {
                    answer(client, &queue, "/echo", "child") == "child" && sockets() == before
                });
                let held = std::panic::catch_unwind(child).unwrap_or(false);
                // SAFETY: the child ends here and runs no destructor of the parent's.
                unsafe { libc::_exit(i32::from(!held)) } // The child's verdict, which the parent looks at.
            }
            child => {
                let mut status = 0;
                // SAFETY: `status` is writable and the child is ours.
                assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child, "no fork");
                assert_eq!(status, 0, "fork {fork}");
                assert_eq!(answer(client, &queue, "/echo", "parent"), "parent");
            }
        }
    }
    shutdown();
    let client = connected(&queue, "echo://core", ClientOptions::default());
    assert_eq!(answer(client, &queue, "/echo", "again"), "again");
    client_free(client);
}
