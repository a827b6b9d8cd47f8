//! A runtime that does not come to its deadlines: nothing that a host waits for is lost. One test, as it stalls the
//! process's one runtime.

mod common;

use std::sync::{Mutex, mpsc::channel};

use common::{connected, next};
use valkyrie_bridge::{
    Bytes, CallOptions, ClientOptions, Code, Level, Listener, Queue, Reason, call, client_free, in_flight,
    open, recv, stream_free,
};

#[test]
fn what_the_core_does_not_end_in_time_is_ended_by_whoever_waits() {
    let queue = Queue::blocking();
    let client = connected(&queue, "echo://core", ClientOptions::default());
    let listener = Listener::new();
    listener.set_level(Some(Level::Warn));

    // The runtime has one thread, and this wake function, which must not block, keeps it.
    let (entered, enters) = channel();
    let (leave, left) = channel::<()>();
    let left = Mutex::new(left);
    let stalling = Queue::new(move || {
        entered.send(()).unwrap();
        left.lock().unwrap().recv().unwrap();
    });
    let stalled = call(client, &stalling, "/echo", Bytes::new(), CallOptions::default()).unwrap();
    enters.recv().unwrap();

    let options = || CallOptions { timeout_ms: Some(1), ..CallOptions::default() };
    let calling = call(client, &queue, "/echo", Bytes::new(), options()).unwrap();
    let stream = open(client, &queue, "/echo", options()).unwrap();
    let receiving = recv(stream, &queue, 1).unwrap();
    let mut ended = [next(&queue), next(&queue)].map(|completion| {
        let status = completion.outcome.unwrap_err();
        assert_eq!((status.code(), status.reason()), (Code::DeadlineExceeded, Reason::DEADLINE_EXCEEDED));
        completion.op
    });
    ended.sort_unstable();
    assert_eq!(ended, [calling, receiving]);
    let mut said: Vec<_> = listener.take().into_iter().map(|record| (record.target, record.fields)).collect();
    said.sort_unstable();
    let of = |op: u64| ("valkyrie.boundary", vec![("operation", op.to_string())]);
    assert_eq!(said, [of(calling), of(receiving)]);
    listener.set_level(None);

    // Its thread is back, finds both given up, and goes on.
    leave.send(()).unwrap();
    let mut out = Vec::new();
    assert_eq!((stalling.drain(&mut out, 2), out[0].op), (1, stalled));
    let op = call(client, &queue, "/echo", Bytes::new(), CallOptions::default()).unwrap();
    let completion = next(&queue);
    assert_eq!((completion.op, completion.outcome.is_ok()), (op, true));
    assert_eq!((queue.drain(&mut out, 1), in_flight()), (0, 0));
    stream_free(stream);
    client_free(client);
}
