//! Calls that end in every way, many of them, and what was counted of them.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::sync::oneshot;
use valkyrie_sdk::{
    Bytes, CallOptions, Client, Code, EchoHandler, MethodMetrics, Reply, ServerBuilder, ServerControl,
    Status, handler_fn,
    policy::{Random, ServiceConfig},
};

use super::calling::bounded;

/// Waits until it is so, which something else is about to bring about.
pub(crate) async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            match look() {
                Some(found) => return found,
                None => tokio::task::yield_now().await,
            }
        }
    };
    bounded(what, looking).await
}

pub(crate) async fn serve(bind: &str, builder: ServerBuilder) -> (String, ServerControl) {
    let server = bounded("a bind", builder.bind(bind).build()).await.unwrap();
    let (endpoint, control) = (server.endpoints().remove(0), server.control());
    tokio::spawn(async move { server.start().await });
    (endpoint, control)
}

pub(crate) async fn connect(endpoint: &str, config: &str) -> Client {
    let config = ServiceConfig::parse(config).unwrap();
    bounded("a connection", Client::builder().endpoint(endpoint).service_config(config).build())
        .await
        .unwrap()
}

/// Neither side lets a call go that the other one would not see.
pub(crate) const EACH_CALL_GOES_OUT: &str =
    r#"{"methods": [{"names": ["*"], "breaker": {"enabled": false}}], "throttle": {"enabled": false}}"#;

pub(crate) type Counted = BTreeMap<(String, &'static str), u64>;

pub(crate) fn counted(methods: &[MethodMetrics]) -> Counted {
    let all = methods.iter().flat_map(|of| of.calls.iter().map(move |(code, count)| (of, code, count)));
    let mut counted = Counted::new();
    for (of, code, count) in all {
        // A server has no room for the names that callers make up.
        let method = if of.method == "/missing" { "other" } else { &of.method };
        *counted.entry((method.to_owned(), code.name())).or_default() += count;
    }
    counted
}

/// Who waits for the beginning of a call that hangs, by its message.
pub(crate) type Hanging = Arc<Mutex<HashMap<Bytes, oneshot::Sender<()>>>>;

/// Handlers that end in every way.
pub(crate) fn handlers(hanging: &Hanging) -> ServerBuilder {
    let hanging = hanging.clone();
    ServerBuilder::new()
        .handler("/echo", EchoHandler)
        .handler(
            "/waits",
            handler_fn(|mut call| async move {
                tokio::task::yield_now().await;
                Ok(Reply::message(call.message().await?))
            }),
        )
        .handler(
            "/fails",
            handler_fn(|mut call| async move {
                let name = call.message().await?;
                let name = std::str::from_utf8(&name).unwrap_or_default();
                Err(Status::new(Code::from_name(name).unwrap_or(Code::Unknown), "as asked"))
            }),
        )
        .handler("/panics", handler_fn(|_| async { panic!("on purpose") }))
        .handler(
            "/hangs",
            handler_fn(move |mut call| {
                let hanging = hanging.clone();
                async move {
                    let id = call.message().await?;
                    let begun = hanging.lock().unwrap().remove(&id);
                    begun.into_iter().for_each(|begun| _ = begun.send(()));
                    std::future::pending().await
                }
            }),
        )
        .handler(
            "/counts",
            handler_fn(|mut call| async move {
                for number in 0..3 {
                    call.send(format!("{number}")).await?;
                }
                Err(Status::new(Code::Aborted, "in the middle"))
            }),
        )
}

/// How many calls [`ten_thousand`] makes.
pub(crate) const CALLS: u64 = 10_000;

/// Makes them, and gives what their callers saw.
pub(crate) async fn ten_thousand(client: &Client, hanging: &Hanging) -> Counted {
    const TASKS: u64 = 25;
    let seed = 7;
    println!("seed {seed}");
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let (client, hanging) = (client.clone(), hanging.clone());
            tokio::spawn(async move {
                let mut random = Random::new(seed + task);
                let mut seen = Counted::new();
                for number in 0..CALLS / TASKS {
                    let id = Bytes::from(format!("{task} {number}"));
                    let (method, code) = call(&client, &hanging, id, &mut random).await;
                    *seen.entry((method.to_owned(), code.name())).or_default() += 1;
                }
                seen
            })
        })
        .collect();
    let mut seen = Counted::new();
    for task in tasks {
        let part = bounded("a task", task).await.unwrap();
        part.into_iter().for_each(|(key, count)| *seen.entry(key).or_default() += count);
    }
    seen
}

/// One call of some kind: what it was, and how it ended.
pub(crate) async fn call(
    client: &Client,
    hanging: &Hanging,
    id: Bytes,
    random: &mut Random,
) -> (&'static str, Code) {
    let code = |result: Result<_, Status>| result.err().map_or(Code::Ok, |status| status.code());
    match random.below(20) {
        0..5 => ("/echo", code(client.call("/echo", "x").await.map(drop))),
        5..8 => ("/waits", code(client.call("/waits", "x").await.map(drop))),
        8..14 => {
            let name = Code::ALL[1 + random.below(16) as usize].name();
            ("/fails", code(client.call("/fails", name).await.map(drop)))
        }
        14 => ("/panics", code(client.call("/panics", "").await.map(drop))),
        15 => ("other", code(client.call("/missing", "").await.map(drop))),
        16 if random.below(10) == 0 => {
            // Time enough for its server to see it.
            let brief = CallOptions::new().with_timeout(Duration::from_secs(1));
            ("/hangs", code(client.call_with("/hangs", id, brief).await.map(drop)))
        }
        16 | 17 => {
            let (begun, begins) = oneshot::channel();
            hanging.lock().unwrap().insert(id.clone(), begun);
            // One that its server has not seen is no call there.
            tokio::select! {
                result = client.call("/hangs", id) => panic!("{result:?}"),
                begun = begins => begun.unwrap(),
            }
            ("/hangs", Code::Cancelled)
        }
        18 => {
            let mut stream = client.stream("/counts", "", CallOptions::new()).await.unwrap();
            let status = loop {
                match stream.recv().await {
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("it ends badly"),
                    Err(status) => break status,
                }
            };
            ("/counts", status.code())
        }
        _ => {
            let (mut sender, mut receiver) = client.open("/echo", CallOptions::new()).await.unwrap();
            sender.send("x").await.unwrap();
            sender.finish_now();
            while receiver.recv().await.unwrap().is_some() {}
            ("/echo", Code::Ok)
        }
    }
}
