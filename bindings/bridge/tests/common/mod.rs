//! What a host does in every test: waits for a completion, and connects.

use std::{sync::Arc, time::Duration};

use valkyrie_bridge::{ClientOptions, Completion, Handle, Queue, Value, connect};

/// The next completion; a hang is bounded far above anything that should take that long.
pub(crate) fn next(queue: &Arc<Queue>) -> Completion {
    let mut out = Vec::new();
    assert!(queue.wait(Some(Duration::from_secs(60))), "nothing completed");
    assert_eq!(queue.drain(&mut out, 1), 1);
    out.pop().unwrap()
}

/// A client whose connection is there.
pub(crate) fn connected(queue: &Arc<Queue>, endpoint: &str, options: ClientOptions) -> Handle {
    let (client, op) = connect(queue, endpoint, options).unwrap();
    let completion = next(queue);
    assert_eq!(completion.op, op);
    assert!(matches!(completion.outcome, Ok(Value::Done)), "{completion:?}");
    client
}
