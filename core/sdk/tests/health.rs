//! What servers say of their health, and what clients make of it.

mod calling;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use calling::bounded;
use tokio::sync::watch;
use valkyrie_sdk::{
    Bytes, CallOptions, Client, Code, Connectivity, Health, Reply, ServerBuilder, ServerControl,
    ServingStatus::{self, Draining, NotServing, Serving},
    Status, handler_fn,
    policy::ServiceConfig,
};

struct Serve {
    endpoint: String,
    control: ServerControl,
    health: Health,
}

/// A server that says its name by `/who`.
fn who(name: &'static str) -> ServerBuilder {
    ServerBuilder::new().handler("/who", handler_fn(move |_| async move { Ok(Reply::message(name)) }))
}

async fn start(server: ServerBuilder, bind: &str) -> (String, ServerControl) {
    let server = bounded("a bind", server.bind(bind).build()).await.unwrap();
    let (endpoint, control) = (server.endpoints().remove(0), server.control());
    tokio::spawn(async move { server.start().await });
    (endpoint, control)
}

async fn serve(name: &'static str) -> Serve {
    let health = Health::new();
    let (endpoint, control) = start(who(name).health(&health), "127.0.0.1:0").await;
    Serve { endpoint, control, health }
}

fn config(service: Option<&str>) -> ServiceConfig {
    let service = service.map_or("null".to_owned(), |service| format!("{service:?}"));
    let text = format!(
        r#"{{"health": {{"service": {service}}}, "balance": {{"policy": "round_robin"}}, "reconnect": {{"base_ms": 20, "cap_ms": 100}}}}"#
    );
    ServiceConfig::parse(&text).unwrap()
}

async fn client(endpoint: &str, service: Option<&str>) -> Client {
    let client = Client::builder().endpoint(endpoint).service_config(config(service));
    bounded("a connect", client.build()).await.unwrap()
}

async fn ask(client: &Client) -> Bytes {
    bounded("a call", client.call("/who", "")).await.unwrap().message
}

/// Calls until so many one after the other went there.
async fn only(client: &Client, name: &str) {
    bounded("calls to one server only", async {
        let mut in_a_row = 0;
        while in_a_row < 50 {
            in_a_row = if ask(client).await == name { in_a_row + 1 } else { 0 };
        }
    })
    .await;
}

async fn both(client: &Client) {
    bounded("calls to both servers", async {
        let mut seen = [false; 2];
        while seen != [true; 2] {
            seen[usize::from(ask(client).await == "b")] = true;
        }
    })
    .await;
}

#[tokio::test]
async fn a_server_that_does_not_serve_gets_no_calls_until_it_does() {
    let (a, b) = (serve("a").await, serve("b").await);
    a.health.set("store.Items", Serving);
    b.health.set("store.Items", Serving);
    let client = client(&format!("{},{}", a.endpoint, b.endpoint), Some("store.Items")).await;
    both(&client).await;
    a.health.set("store.Items", NotServing);
    only(&client, "b").await;
    // Another service of it is none of this client's business.
    a.health.set("", NotServing);
    a.health.set("store.Items", Serving);
    both(&client).await;

    // Where nobody serves both are tried all the same, and the client says that it is not well.
    a.health.set("store.Items", NotServing);
    b.health.set("store.Items", NotServing);
    let stands = async {
        let mut stands = Connectivity::Ready;
        while stands != Connectivity::TransientFailure {
            stands = client.connectivity_other_than(stands).await;
        }
    };
    bounded("a client that is not well", stands).await;
    both(&client).await;
    b.health.set("store.Items", Serving);
    only(&client, "b").await;
    assert_eq!(client.connectivity(), Connectivity::Ready);

    // Nobody asks any more, and then about something that nobody knows.
    client.set_service_config(config(None));
    both(&client).await;
    b.health.set("", Serving);
    client.set_service_config(config(Some("")));
    only(&client, "b").await;
    client.set_service_config(config(Some("unknown")));
    both(&client).await;
    bounded("a close that no watch holds up", client.close()).await;
}

/// A watch is no call: it is not counted, and its server can go.
#[tokio::test]
async fn a_server_that_goes_ends_the_watch_and_its_connection_leaves_before_the_next_call() {
    let (a, b) = (serve("a").await, serve("b").await);
    let client = client(&format!("{},{}", a.endpoint, b.endpoint), Some("")).await;
    both(&client).await;
    let mut watch = client.stream("/valkyrie.Health/Watch", "", CallOptions::new()).await.unwrap();
    assert!(watch.recv().await.unwrap().is_some());
    bounded("a shutdown that no watch holds up", a.control.shutdown()).await;
    // Not one call fails meanwhile, and nothing is retried: nothing fails.
    for _ in 0..50 {
        assert_eq!(ask(&client).await, "b");
    }
    bounded("the dead connection", async {
        while client.connections().len() != 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // It comes back at its address, healthy a moment later.
    let health = Health::new();
    health.set("", NotServing);
    let address = a.endpoint.strip_prefix("tcp://").unwrap();
    let (_, _control) = start(who("a").health(&health), address).await;
    bounded("its connection", async {
        while client.connections().len() != 2 {
            assert_eq!(ask(&client).await, "b");
        }
    })
    .await;
    for _ in 0..50 {
        assert_eq!(ask(&client).await, "b");
    }
    health.set("", Serving);
    both(&client).await;
}

/// One without health counts as healthy; one whose watch fails is asked again and counts as ill until it answers.
#[tokio::test]
async fn no_health_is_health_and_a_watch_that_breaks_is_begun_again() {
    let (a, _a) = start(who("a"), "127.0.0.1:0").await;
    let (asked, mends) = (Arc::new(AtomicUsize::new(0)), watch::Sender::new(false));
    let breaks = {
        let (asked, mends) = (asked.clone(), mends.clone());
        handler_fn(move |mut call| {
            let (asked, mut mends) = (asked.clone(), mends.subscribe());
            async move {
                asked.fetch_add(1, SeqCst);
                if !*mends.borrow_and_update() {
                    return Err(Status::new(Code::Internal, "broken"));
                }
                call.send("serving").await?;
                let _ = mends.changed().await;
                Ok(Reply::end())
            }
        })
    };
    let (b, _b) = start(who("b").handler("/valkyrie.Health/Watch", breaks), "127.0.0.1:0").await;
    let client = client(&format!("{a},{b}"), Some("")).await;
    bounded("three watches", async {
        while asked.load(SeqCst) < 3 {
            assert_eq!(ask(&client).await, "a");
        }
    })
    .await;
    mends.send_replace(true);
    both(&client).await;
    // It ends without a word, though its connection lives.
    mends.send_replace(false);
    only(&client, "a").await;
    assert_eq!(client.connections().len(), 2);
}

/// More than five times in a minute, and nobody believes it for half a minute.
#[tokio::test]
async fn a_server_whose_health_flaps_is_left_alone() {
    let (a, b) = (serve("a").await, serve("b").await);
    let client = client(&format!("{},{}", a.endpoint, b.endpoint), Some("")).await;
    both(&client).await;
    for fall in 1..=6 {
        a.health.set("", NotServing);
        only(&client, "b").await;
        a.health.set("", Serving);
        if fall < 6 {
            both(&client).await;
        }
    }
    for _ in 0..500 {
        assert_eq!(ask(&client).await, "b");
    }
}

/// What the handlers say, as any client reads it.
#[tokio::test]
async fn check_and_watch_say_how_a_service_stands() {
    let a = serve("a").await;
    a.health.set("half", NotServing);
    let client = Client::connect(&a.endpoint).await.unwrap();
    let check = async |service: &str| client.call("/valkyrie.Health/Check", service.to_owned()).await;
    assert_eq!(check("").await.unwrap().message, "serving");
    assert_eq!(check("half").await.unwrap().message, "not_serving");
    assert_eq!(check("none").await.unwrap_err().code(), Code::NotFound);
    assert_eq!((a.health.status("half"), a.health.status("none")), (Some(NotServing), None));
    let mut watch = client.stream("/valkyrie.Health/Watch", "half", CallOptions::new()).await.unwrap();
    let mut next = async || bounded("a word", watch.recv()).await.unwrap();
    assert_eq!(next().await.unwrap(), "not_serving");
    // What changes nothing is not said again.
    a.health.set("other", Serving);
    a.health.set("half", Serving);
    assert_eq!(next().await.unwrap(), "serving");
    let shutdown = tokio::spawn(async move { a.control.shutdown().await });
    assert_eq!(next().await.unwrap(), "draining");
    assert_eq!(next().await, None);
    bounded("the shutdown", shutdown).await.unwrap();
    assert_eq!(
        [Serving, NotServing, Draining].map(ServingStatus::name),
        ["serving", "not_serving", "draining"]
    );
}
