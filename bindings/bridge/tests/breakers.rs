//! Changes of a client's breakers, as an adapter sees them.

mod common;

use std::sync::{Arc, Mutex, PoisonError};

use common::{connected, next};
use valkyrie_bridge::{
    Bytes, CallOptions, ClientOptions, Handle, Queue, Reason, Value, breakers, breakers_other_than, call,
    cancel, client_free, close, in_flight, isolate, restore,
};

/// What is in flight is counted for the process: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// What it completed with, and what stands for that.
fn changed(queue: &Arc<Queue>, op: u64) -> (String, u64) {
    let completion = next(queue);
    assert_eq!(completion.op, op);
    match completion.outcome {
        Ok(Value::Breakers { seen, json }) => (json, seen),
        other => panic!("{other:?}"),
    }
}

fn refused(queue: &Arc<Queue>) -> Reason {
    next(queue).outcome.unwrap_err().reason()
}

#[test]
fn a_host_learns_of_each_change_of_a_breaker_and_of_the_end() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (calls, changes) = (Queue::blocking(), Queue::blocking());
    let mut options = ClientOptions::default();
    let config =
        r#"{"methods": [{"names": ["*"], "breaker": {"min_calls": 2}}], "throttle": {"enabled": false}}"#;
    options.service_config = Some(config.to_owned());
    let client = connected(&calls, "echo://core", options);
    let wait = |seen| breakers_other_than(client, &changes, seen).unwrap();

    // What there is, is told at once; what waits is no work, and a cancel ends it.
    let (none, first) = changed(&changes, wait(0));
    assert_eq!(none, "[]");
    assert!((1..1 << 53).contains(&first));
    let op = wait(first);
    assert_eq!(in_flight(), 0);
    cancel(op);
    assert_eq!(refused(&changes), Reason::CANCELLED);

    // Calls that change no breaker are no news.
    let op = wait(first);
    for (method, message) in [("/echo", "x"), ("/test/flaky", "one"), ("/test/flaky", "two")] {
        // The last of them opens one, as soon as it is made.
        assert_eq!(changes.drain(&mut Vec::new(), 1), 0);
        let mut options = CallOptions::default();
        options.metadata.insert("n", "1").unwrap();
        call(client, &calls, method, Bytes::from_static(message.as_bytes()), options).unwrap();
        let _ = next(&calls);
    }
    let (open, second) = changed(&changes, op);
    assert!(open.contains(r#""method":"/test/flaky","state":"open""#) && second != first, "{open}");
    assert_eq!(changed(&changes, wait(first)).1, second);

    // By hand, from wherever.
    let op = wait(second);
    isolate(client, "echo://core", None).unwrap();
    let (isolated, third) = changed(&changes, op);
    assert!(isolated.contains(r#""method":null,"state":"isolated""#), "{isolated}");
    restore(client, "echo://core", None).unwrap();
    // Others than those that were seen last are told, though they are as before.
    let (restored, last) = changed(&changes, wait(third));
    assert!(last == second && !restored.contains("isolated"), "{restored}");

    let op = wait(last);
    let closing = close(client, &calls).unwrap();
    assert_eq!(next(&calls).op, closing);
    let end = next(&changes);
    assert_eq!((end.op, end.outcome.unwrap_err().reason()), (op, Reason::CLIENT_CLOSED));
    let later = breakers_other_than(client, &changes, 0).unwrap_err();
    assert_eq!(later.reason(), Reason::CLIENT_CLOSED);
    client_free(client);
}

#[test]
fn a_client_that_is_freed_ends_the_wait() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (calls, changes) = (Queue::blocking(), Queue::blocking());
    let client = connected(&calls, "echo://core", ClientOptions::default());
    let (_, seen) = changed(&changes, breakers_other_than(client, &changes, 0).unwrap());
    breakers_other_than(client, &changes, seen).unwrap();
    client_free(client);
    assert_eq!(refused(&changes), Reason::CLIENT_CLOSED);
    let stale = breakers_other_than(Handle::from_raw(u64::MAX), &changes, 0).unwrap_err();
    assert_eq!(stale.reason(), Reason::CLIENT_CLOSED);
    assert!(breakers(client).is_err());
}
