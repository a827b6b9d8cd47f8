//! Where a client stands with its servers, as an adapter sees it.

mod common;

use common::{connected, next};
use valkyrie_bridge::{
    Bytes, CallOptions, ClientOptions, Connectivity, Handle, Queue, Reason, Value, call, cancel, client_free,
    close, connectivity, connectivity_other_than, in_flight,
};

fn changed(queue: &std::sync::Arc<Queue>, op: u64) -> Connectivity {
    let completion = next(queue);
    assert_eq!(completion.op, op);
    match completion.outcome {
        Ok(Value::Connectivity(state)) => state,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_host_learns_of_each_change_and_of_the_end() {
    let (calls, changes) = (Queue::blocking(), Queue::blocking());
    let public = connected(&calls, "echo://core", ClientOptions::default());
    call(public, &calls, "/test/private", Bytes::from_static(b"echo"), CallOptions::default()).unwrap();
    let Ok(Value::Response(private)) = next(&calls).outcome else { panic!("no private server") };
    let endpoint = String::from_utf8(private.message.to_vec()).unwrap();
    let client = connected(&calls, &endpoint, ClientOptions::default());
    assert_eq!(connectivity(client), Connectivity::Ready);

    // What is so is told at once; what waits is no work, and a cancel ends it.
    let op = connectivity_other_than(client, &changes, Connectivity::Idle).unwrap();
    assert_eq!(changed(&changes, op), Connectivity::Ready);
    let op = connectivity_other_than(client, &changes, Connectivity::Ready).unwrap();
    assert_eq!(in_flight(), 0);
    cancel(op);
    assert_eq!(next(&changes).outcome.unwrap_err().reason(), Reason::CANCELLED);

    let op = connectivity_other_than(client, &changes, Connectivity::Ready).unwrap();
    call(client, &calls, "/test/shutdown", Bytes::from_static(b"now"), CallOptions::default()).unwrap();
    assert_ne!(changed(&changes, op), Connectivity::Ready);
    let _ = next(&calls);

    let seen = connectivity(client);
    let mut op = connectivity_other_than(client, &changes, seen).unwrap();
    let closing = close(client, &calls).unwrap();
    assert_eq!(next(&calls).op, closing);
    loop {
        match changed(&changes, op) {
            Connectivity::Shutdown => break,
            between => op = connectivity_other_than(client, &changes, between).unwrap(),
        }
    }
    assert_eq!(connectivity(client), Connectivity::Shutdown);
    let end = connectivity_other_than(client, &changes, Connectivity::Shutdown).unwrap_err();
    assert_eq!(end.reason(), Reason::CLIENT_CLOSED);
    client_free(client);

    // Freed is closed, and so is what never was.
    let op = connectivity_other_than(public, &changes, Connectivity::Ready).unwrap();
    client_free(public);
    assert_eq!(changed(&changes, op), Connectivity::Shutdown);
    assert_eq!(connectivity(Handle::from_raw(u64::MAX)), Connectivity::Shutdown);
}
