//! What tests of clients share: waits that have a bound, handlers that count what they run, and many calls at once.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::{
    collections::HashMap,
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::task::JoinHandle;
use valkyrie_sdk::{Bytes, Client, MessageHandler, Reply, handler_fn};

/// A hang is bounded far above anything that should take that long.
pub(crate) async fn bounded<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(120), work).await.unwrap_or_else(|_| panic!("{what} hangs"))
}

/// Lets others run until it is so: for what tells nobody when it changes.
pub(crate) async fn until(what: &str, is: impl Fn() -> bool) {
    bounded(what, async {
        while !is() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// How often each message was executed, by all servers together.
pub(crate) type Executed = Arc<Mutex<HashMap<Bytes, usize>>>;

/// Answers with the message, and counts it.
pub(crate) fn counting(executed: &Executed) -> impl MessageHandler + use<> {
    let executed = executed.clone();
    handler_fn(move |mut call| {
        let executed = executed.clone();
        async move {
            let message = call.message().await?;
            *executed.lock().unwrap().entry(message.clone()).or_default() += 1;
            Ok(Reply::message(message))
        }
    })
}

/// So many calls of `/count`, each with a number of its own, from so many tasks; and how many were begun. Each is to be answered with
/// its number.
pub(crate) fn call_all(
    client: &Client,
    tasks: usize,
    calls: usize,
) -> (Vec<JoinHandle<()>>, Arc<AtomicUsize>) {
    let made = Arc::new(AtomicUsize::new(0));
    let caller = |_| {
        let (client, made) = (client.clone(), made.clone());
        tokio::spawn(async move {
            loop {
                let number = made.fetch_add(1, SeqCst);
                if number >= calls {
                    return;
                }
                let answer = bounded("a call", client.call("/count", number.to_string())).await;
                let answer = answer.unwrap_or_else(|status| panic!("{number}: {status}"));
                assert_eq!(answer.message, number.to_string());
            }
        })
    };
    ((0..tasks).map(caller).collect(), made)
}
