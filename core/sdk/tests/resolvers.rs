//! Servers that come and go: sets from resolvers, from names and from files, with real servers, and a count of what was executed.
#![cfg(all(feature = "quic", feature = "websocket"))]

mod calling;
mod random;

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use calling::{Executed, bounded, call_all, counting};
use random::Random;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::sync::{mpsc, watch};
use valkyrie_sdk::{
    BoxFuture, CallOptions, Client, ClientBuilder, Connectivity, EchoHandler, Endpoint, Event, Level, Log,
    Observer, Reason, Record, Reply, ResolvedServer, Resolver, Security, ServerBuilder, ServerControl,
    Status, Watch, handler_fn, policy::ServiceConfig,
};

/// Keeps what is logged, and tells those who wait of that and of whatever else happens.
struct Said {
    records: Mutex<Vec<Record>>,
    events: watch::Sender<()>,
}

impl Log for Said {
    fn enabled(&self, _: Level) -> bool {
        true
    }

    fn log(&self, record: Record) {
        self.records.lock().unwrap().push(record);
        self.happened();
    }
}

impl Observer for Said {
    fn note(&self, _: &Event<'_>) {
        self.happened();
    }
}

impl Said {
    fn new() -> Arc<Self> {
        Arc::new(Self { records: Mutex::default(), events: watch::Sender::new(()) })
    }

    fn happened(&self) {
        self.events.send_replace(());
    }

    fn said(&self, level: Level) -> Vec<String> {
        let records = self.records.lock().unwrap();
        records.iter().filter(|record| record.level == level).map(|record| record.message.clone()).collect()
    }

    /// Waits for events until it is so.
    async fn until(&self, what: &str, is: impl Fn() -> bool) {
        let mut events = self.events.subscribe();
        bounded(what, async {
            while !is() {
                events.changed().await.unwrap();
            }
        })
        .await;
    }
}

struct Serving {
    endpoint: String,
    control: ServerControl,
}

impl Serving {
    fn calls(&self) -> u64 {
        self.control.stats().calls_total
    }
}

/// A server that counts what it executes, and answers `/who` with its name.
async fn serve(builder: ServerBuilder, name: &str, executed: &Executed) -> Serving {
    let name = name.to_owned();
    let who = handler_fn(move |_| {
        let name = name.clone();
        async move { Ok(Reply::message(name)) }
    });
    let builder =
        builder.handler("/count", counting(executed)).handler("/who", who).handler("/echo", EchoHandler);
    let server = bounded("a bind", builder.open_to_all(true).build()).await.unwrap();
    let serving = Serving { endpoint: server.endpoints().remove(0), control: server.control() };
    tokio::spawn(async move { server.start().await });
    serving
}

async fn plain(name: &str) -> Serving {
    serve(ServerBuilder::new().bind("127.0.0.1:0"), name, &Executed::default()).await
}

fn server(text: &str) -> ResolvedServer {
    ResolvedServer::new(Endpoint::parse(text).unwrap())
}

type Answer = Result<Vec<ResolvedServer>, Status>;

/// Gives what it is told.
struct Told {
    answers: Mutex<Option<mpsc::UnboundedReceiver<Answer>>>,
    asked: Arc<AtomicUsize>,
    gone: Arc<AtomicBool>,
    log: Arc<Said>,
}

struct Following {
    answers: mpsc::UnboundedReceiver<Answer>,
    /// Whether there was an answer since it was asked.
    answered: bool,
    asked: Arc<AtomicUsize>,
    gone: Arc<AtomicBool>,
    log: Arc<Said>,
}

impl Resolver for Told {
    fn watch(&self, _: &Endpoint) -> Result<Box<dyn Watch>, Status> {
        let answers = self.answers.lock().unwrap().take().expect("one endpoint");
        Ok(Box::new(Following {
            answers,
            answered: true,
            asked: self.asked.clone(),
            gone: self.gone.clone(),
            log: self.log.clone(),
        }))
    }
}

impl Watch for Following {
    fn next(&mut self) -> BoxFuture<'_, Answer> {
        if std::mem::take(&mut self.answered) {
            self.asked.fetch_add(1, SeqCst);
            self.log.happened();
        }
        Box::pin(async move {
            let Some(answer) = self.answers.recv().await else { std::future::pending().await };
            self.answered = true;
            answer
        })
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.gone.store(true, SeqCst);
        self.log.happened();
    }
}

struct Teller {
    tell: mpsc::UnboundedSender<Answer>,
    told: AtomicUsize,
    asked: Arc<AtomicUsize>,
    gone: Arc<AtomicBool>,
}

impl Teller {
    fn answer(&self, answer: Answer) {
        self.told.fetch_add(1, SeqCst);
        self.tell.send(answer).unwrap();
    }

    fn set(&self, endpoints: &[&str]) {
        self.answer(Ok(endpoints.iter().map(|text| server(text)).collect()));
    }

    fn fail(&self, why: &'static str) {
        self.answer(Err(Status::new(valkyrie_sdk::Code::Internal, why)));
    }

    /// All that was told is dealt with, as the next question was asked.
    fn is_heard(&self) -> bool {
        self.asked.load(SeqCst) > self.told.load(SeqCst)
    }
}

/// Failures are asked about again soon.
fn quick() -> ServiceConfig {
    ServiceConfig::parse(r#"{"reconnect": {"base_ms": 2, "cap_ms": 20}}"#).unwrap()
}

/// A client of `endpoint`, whose `told://` is told.
fn client(endpoint: &str) -> (ClientBuilder, Teller, Arc<Said>) {
    let log = Said::new();
    let (tell, answers) = mpsc::unbounded_channel();
    let (asked, gone) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
    let teller = Teller { tell, told: AtomicUsize::new(0), asked: asked.clone(), gone: gone.clone() };
    let resolver = Told { answers: Mutex::new(Some(answers)), asked, gone, log: log.clone() };
    let builder = Client::builder().endpoint(endpoint).resolver("told", Arc::new(resolver));
    let builder = builder.log(log.clone()).observer(log.clone());
    (builder.service_config(quick()).timeout_ms(60_000), teller, log)
}

async fn who(client: &Client) -> String {
    let answer = bounded("a call", client.call("/who", "")).await;
    String::from_utf8(answer.unwrap_or_else(|status| panic!("{status}")).message.to_vec()).unwrap()
}

/// Calls until another server answers than one of these.
async fn until_answered_by(client: &Client, name: &str) {
    bounded("another server", async {
        while who(client).await != name {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Ten thousand calls that may be executed once at most, while the set changes a hundred times.
#[tokio::test(flavor = "multi_thread")]
async fn calls_survive_a_hundred_changes_of_the_set() {
    const CALLS: usize = 10_000;
    let mut random = Random::new();
    let executed = Executed::default();
    let mut servers = Vec::new();
    for number in 0..6 {
        let bind = if number < 4 { "127.0.0.1:0".into() } else { format!("memory:churn-{number}") };
        servers.push(serve(ServerBuilder::new().bind(bind), "", &executed).await);
    }
    let (builder, teller, log) = client("told://x");
    teller.set(&[&servers[0].endpoint]);
    let client = bounded("a connect", builder.build()).await.unwrap();
    let (callers, made) = call_all(&client, 32, CALLS);
    let mut last = HashSet::new();
    for change in 1..=100 {
        bounded("calls", async {
            while made.load(SeqCst) < change * CALLS / 101 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        let mut chosen: Vec<_> = servers.iter().map(|serving| serving.endpoint.as_str()).collect();
        while chosen.len() > 1 && (chosen.len() == servers.len() || random.below(2) == 0) {
            chosen.remove(random.below(chosen.len()));
        }
        last = chosen.iter().map(|endpoint| (*endpoint).to_owned()).collect();
        teller.set(&chosen);
    }
    for caller in callers {
        bounded("a caller", caller).await.unwrap();
    }
    let executed = executed.lock().unwrap().clone();
    assert_eq!(executed.len(), CALLS);
    assert!(executed.values().all(|times| *times == 1), "each once");
    let used = servers.iter().filter(|serving| serving.calls() > 0).count();
    assert!(used > 2, "{used} servers had calls");
    // Whoever has left has no connection any more.
    log.until("the connections of those that have left", || {
        client.connections().iter().all(|connection| last.contains(&connection.peer))
    })
    .await;
    bounded("a close", client.close()).await;
    log.until("the resolver's end", || teller.gone.load(SeqCst)).await;
}

/// Whoever waits for a change of the breakers is told when a server leaves with its own.
#[tokio::test]
async fn the_breakers_of_a_server_that_leaves_go_with_it() {
    let (stays, leaves) = (plain("stays").await, plain("leaves").await);
    let (builder, teller, _log) = client("told://x");
    teller.set(&[&stays.endpoint, &leaves.endpoint]);
    let client = bounded("a connect", builder.build()).await.unwrap();
    until_answered_by(&client, "stays").await;
    client.isolate(&leaves.endpoint, None).unwrap();
    let seen = client.breakers();
    assert!(seen.iter().any(|breaker| breaker.server == leaves.endpoint), "{seen:?}");
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.breakers_other_than(&seen).await }
    });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    teller.set(&[&stays.endpoint]);
    let left = bounded("a change", waiting).await.unwrap().unwrap();
    assert!(left.iter().all(|breaker| breaker.server != leaves.endpoint), "{left:?}");
}

/// A server that leaves the set ends what it has begun, however long that takes, and then has no connection any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_leaves_ends_its_calls() {
    let (begun, go) = (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
    let slow = {
        let (begun, go) = (begun.clone(), go.clone());
        handler_fn(move |_| {
            let (begun, go) = (begun.clone(), go.clone());
            async move {
                begun.notify_one();
                go.notified().await;
                Ok(Reply::message("slow"))
            }
        })
    };
    let old =
        serve(ServerBuilder::new().bind("127.0.0.1:0").handler("/slow", slow), "old", &Executed::default())
            .await;
    let new = plain("new").await;
    let (builder, teller, log) = client("told://x");
    teller.set(&[&old.endpoint]);
    let client = bounded("a connect", builder.build()).await.unwrap();
    let call = {
        let client = client.clone();
        tokio::spawn(async move { client.call("/slow", "").await })
    };
    bounded("the call's begin", begun.notified()).await;
    teller.set(&[&new.endpoint]);
    until_answered_by(&client, "new").await;
    let before = old.calls();
    for _ in 0..50 {
        assert_eq!(who(&client).await, "new");
    }
    assert_eq!(old.calls(), before, "no new calls");
    let peers =
        || client.connections().iter().map(|connection| connection.peer.clone()).collect::<HashSet<_>>();
    assert!(peers().contains(&old.endpoint), "its call goes on");
    go.notify_one();
    assert_eq!(bounded("the call", call).await.unwrap().unwrap().message, "slow");
    log.until("the end of its connection", || !peers().contains(&old.endpoint)).await;
    // It may come back.
    teller.set(&[&old.endpoint]);
    until_answered_by(&client, "old").await;
}

/// Before the first set calls wait; what fails then is told; what fails later changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_good_set_stays() {
    let one = plain("one").await;
    let (builder, teller, log) = client("told://registry");
    let client = builder.lazy(true).build().await.unwrap();
    tokio::task::yield_now().await;
    assert_eq!((teller.asked.load(SeqCst), client.connectivity()), (0, Connectivity::Idle), "lazy");
    let call = {
        let client = client.clone();
        tokio::spawn(async move { who(&client).await })
    };
    log.until("a question", || teller.asked.load(SeqCst) > 0).await;
    assert_eq!(client.connectivity(), Connectivity::Connecting);
    let short = CallOptions::new().with_timeout(Duration::from_millis(50));
    let late = bounded("a call", client.call_with("/who", "", short)).await.unwrap_err();
    assert_eq!(late.reason(), Reason::DEADLINE_EXCEEDED, "{late}");
    teller.set(&[&one.endpoint]);
    assert_eq!(bounded("the call that waited", call).await.unwrap(), "one");

    let dead = "tcp://127.0.0.1:1";
    let stays = [
        ("an error", Err(Status::new(valkyrie_sdk::Code::Internal, "an error"))),
        ("no server in it", Ok(Vec::new())),
        ("1025 servers", Ok((0..1_025).map(|port| server(&format!("127.0.0.1:{port}"))).collect())),
        ("gopher", Ok(vec![server("gopher://x"), server(dead)])),
        ("dns+tcp", Ok(vec![server("dns+tcp://localhost:1")])),
    ];
    for (why, answer) in stays {
        teller.answer(answer);
        log.until("the next question", || teller.is_heard()).await;
        let said = log.said(Level::Warn);
        assert!(
            said.iter().any(|line| line.contains(why) && line.contains("told://registry")),
            "{why}: {said:?}"
        );
        for _ in 0..20 {
            assert_eq!(who(&client).await, "one", "after {why}");
        }
    }
    // Duplicates are one server; the same set again is no change.
    let sets = || log.said(Level::Info).iter().filter(|line| line.contains("servers now")).count();
    let two = plain("two").await;
    teller.set(&[&two.endpoint, &two.endpoint, &two.endpoint]);
    until_answered_by(&client, "two").await;
    log.until("the next question", || teller.is_heard()).await;
    let told = sets();
    teller.set(&[&two.endpoint]);
    log.until("the next question", || teller.is_heard()).await;
    assert_eq!(sets(), told);
    assert_eq!(client.connections().iter().filter(|connection| connection.peer == two.endpoint).count(), 1);
    drop(client);
    log.until("the resolver's end", || teller.gone.load(SeqCst)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_set_that_fails_is_told_with_its_reason() {
    let one = plain("one").await;
    let (builder, teller, _) = client("told://registry");
    teller.fail("the registry is away");
    let failed = bounded("a build", builder.build()).await.err().expect("no set");
    assert_eq!(failed.reason(), Reason::NAME_RESOLUTION);
    for part in ["told://registry", "the registry is away"] {
        assert!(failed.message().contains(part), "{failed}");
    }
    // A call tries again as its policy says, and is answered when there is a set.
    let (builder, teller, _) = client("told://registry");
    let client = builder.lazy(true).build().await.unwrap();
    teller.fail("away");
    teller.answer(Ok(Vec::new()));
    teller.set(&[&one.endpoint]);
    assert_eq!(who(&client).await, "one");

    // One that panics keeps nobody waiting.
    struct Broken;
    impl Resolver for Broken {
        fn watch(&self, _: &Endpoint) -> Result<Box<dyn Watch>, Status> {
            Ok(Box::new(Broken))
        }
    }
    impl Watch for Broken {
        fn next(&mut self) -> BoxFuture<'_, Answer> {
            Box::pin(async { panic!("on purpose") })
        }
    }
    let builder = Client::builder().endpoint("broken://x").resolver("broken", Arc::new(Broken));
    let failed = bounded("a build", builder.build()).await.err().expect("no set");
    assert_eq!(failed.reason(), Reason::NAME_RESOLUTION);
    assert!(failed.message().contains("panicked"), "{failed}");
}

/// What a client would not connect to when it is written, it does not connect to when it is found.
#[tokio::test(flavor = "multi_thread")]
async fn a_resolver_brings_in_no_server_of_less_protection() {
    let one = plain("one").await;
    type Change = fn(ClientBuilder) -> ClientBuilder;
    let cases: [(Change, &str, Reason); 3] = [
        (|builder| builder.min_security(Security::Tls), &one.endpoint, Reason::SECURITY_TOO_LOW),
        (|builder| builder.system_roots(true), &one.endpoint, Reason::SECURITY_TOO_LOW),
        (|builder| builder.token("secret"), "tcp://192.0.2.1:80", Reason::INSECURE_CREDENTIALS),
    ];
    for (change, endpoint, reason) in cases {
        let (builder, teller, _) = client("told://x");
        teller.set(&[endpoint]);
        let failed = bounded("a build", change(builder).build()).await.err().expect("too little protection");
        assert_eq!(failed.reason(), reason, "{failed}");
    }
    // An address of a name is what counts, wherever the name seems to lead.
    let (builder, teller, _) = client("told://x");
    let found = Endpoint::parse("tcp://localhost:80").unwrap().at("192.0.2.1:80".parse().unwrap());
    teller.answer(Ok(vec![ResolvedServer::new(found)]));
    let failed =
        bounded("a build", builder.token("secret").build()).await.err().expect("it leaves the machine");
    assert_eq!(failed.reason(), Reason::INSECURE_CREDENTIALS, "{failed}");
    // Names are refused before anybody looks them up.
    for (builder, reason) in [
        (
            Client::builder().endpoint("dns+tcp://example.com:80").token("secret"),
            Reason::INSECURE_CREDENTIALS,
        ),
        (
            Client::builder().endpoint("dns+tcp://localhost:80").min_security(Security::Tls),
            Reason::SECURITY_TOO_LOW,
        ),
        (Client::builder().endpoint("dns+tls://example.com:80"), Reason::INVALID_CONFIGURATION),
        (Client::builder().endpoint("dns+unix:///x"), Reason::INVALID_ENDPOINT),
        (Client::builder().endpoint("dns+tcp://example.com"), Reason::INVALID_ENDPOINT),
        (Client::builder().endpoint("file:servers.json"), Reason::INVALID_ENDPOINT),
        (Client::builder().endpoint("file://servers.json"), Reason::INVALID_ENDPOINT),
    ] {
        let failed = builder.connect_lazily().err().expect("refused");
        assert_eq!(failed.reason(), reason, "{failed}");
    }
}

/// A thousand servers of which one is there, and thousands of sets in a row.
#[tokio::test(flavor = "multi_thread")]
async fn large_sets_and_many_sets() {
    let (one, two) = (plain("one").await, plain("two").await);
    let (builder, teller, log) = client("told://x");
    let client = builder.lazy(true).service_config(ServiceConfig::default()).build().await.unwrap();
    let mut servers: Vec<_> = (0..999).map(|number| server(&format!("memory:nobody-{number}"))).collect();
    servers.insert(500, server(&one.endpoint));
    teller.answer(Ok(servers));
    for _ in 0..20 {
        assert_eq!(who(&client).await, "one");
    }
    assert_eq!(client.connections().len(), 1);
    // Flapping, and never the same again.
    for number in 0..2_000 {
        let other = format!("memory:other-{number}");
        match number % 2 {
            0 => teller.set(&[&one.endpoint, &other]),
            _ => teller.set(&[&other, &two.endpoint]),
        }
    }
    let mut calls = 0;
    while !teller.is_heard() {
        who(&client).await;
        calls += 1;
    }
    eprintln!("{calls} calls meanwhile");
    until_answered_by(&client, "two").await;
    teller.set(&[&one.endpoint]);
    until_answered_by(&client, "one").await;
    log.until("one connection", || client.connections().len() == 1).await;
}

/// Resolved servers have levels and weights, and stand beside fixed ones.
#[tokio::test(flavor = "multi_thread")]
async fn levels_and_weights_of_resolved_servers() {
    let (near, far, fixed) = (plain("near").await, plain("far").await, plain("fixed").await);
    let (builder, teller, _) = client(&format!("told://x|{}", fixed.endpoint));
    let both = [server(&far.endpoint).level(2), server(&near.endpoint).weight(3)];
    teller.answer(Ok(both.to_vec()));
    let client = bounded("a connect", builder.build()).await.unwrap();
    until_answered_by(&client, "near").await;
    for _ in 0..50 {
        assert_eq!(who(&client).await, "near");
    }
    bounded("a shutdown", near.control.shutdown()).await;
    until_answered_by(&client, "fixed").await;
    bounded("a shutdown", fixed.control.shutdown()).await;
    until_answered_by(&client, "far").await;
}

fn servers_json(endpoints: &[&str]) -> String {
    let servers: Vec<_> =
        endpoints.iter().map(|endpoint| format!("{{\"endpoint\": \"{endpoint}\"}}")).collect();
    format!("{{\"servers\": [\n{}\n]}}", servers.join(",\n"))
}

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("valkyrie-resolvers-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// As an editor or a deployment does it: whole, at once.
    fn replace(&self, name: &str, text: &str) {
        fs::write(self.0.join("next"), text).unwrap();
        fs::rename(self.0.join("next"), self.0.join(name)).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn of_file(path: &Path) -> (ClientBuilder, Arc<Said>) {
    let log = Said::new();
    let builder = Client::builder().endpoint(format!("file://{}", path.display()));
    (builder.service_config(quick()).log(log.clone()).timeout_ms(60_000), log)
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_servers_is_followed() {
    let (one, two, three) = (plain("one").await, plain("two").await, plain("three").await);
    let folder = Folder::new("followed");
    let (builder, log) = of_file(&folder.path("servers.json"));
    let missing = bounded("a build", builder.build()).await.err().expect("no file");
    assert_eq!(missing.reason(), Reason::NAME_RESOLUTION, "{missing}");
    assert!(missing.message().contains("servers.json"), "{missing}");
    drop(log);

    folder.replace("servers.json", &servers_json(&[&one.endpoint]));
    let (builder, log) = of_file(&folder.path("servers.json"));
    let client = bounded("a build", builder.build()).await.unwrap();
    assert_eq!(who(&client).await, "one");
    folder.replace("servers.json", &servers_json(&[&two.endpoint]));
    until_answered_by(&client, "two").await;
    // Written in place.
    fs::write(folder.path("servers.json"), servers_json(&[&one.endpoint])).unwrap();
    until_answered_by(&client, "one").await;
    // What is wrong with a file is told with line and key, once, and what was read before stays.
    let bad = [
        ("{\"servers\": [\n{\"endpoint\": \"tcp://h:1\", \"weight\": 0}]}", "line 2: servers[0].weight is 0"),
        ("{\"servers\": [{\"endpoint\": \"h\"}]}", "line 1: servers[0].endpoint: endpoint \"h\" has no port"),
        ("{\"servers\": [{\"level\": 1}]}", "servers[0] has no endpoint"),
        ("{\"servers\": [{\"endpoint\": \"h:1\", \"zone\": 1}]}", "servers[0] has no key \"zone\""),
        (
            "{\"servers\": [{\"endpoint\": \"h:1\", \"level\": 8}]}",
            "servers[0].level is 8; write a whole number from 0 to 7",
        ),
        ("{\"servers\": [\n", "line 2: the text ends"),
        ("[]", "it is no object"),
        ("{}", "the key servers is missing"),
        ("{\"servers\": []}", "there is no server in it"),
    ];
    for (text, why) in bad {
        folder.replace("servers.json", text);
        log.until(why, || log.said(Level::Warn).iter().any(|line| line.contains(why))).await;
        assert_eq!(who(&client).await, "one");
    }
    fs::remove_file(folder.path("servers.json")).unwrap();
    log.until("a word on the missing file", || {
        log.said(Level::Warn).last().is_some_and(|line| line.contains("os error 2"))
    })
    .await;
    assert_eq!(who(&client).await, "one");
    // A link that leads elsewhere, as configuration maps are swapped.
    folder.replace("a.json", &servers_json(&[&two.endpoint]));
    folder.replace("b.json", &servers_json(&[&three.endpoint]));
    std::os::unix::fs::symlink(folder.path("a.json"), folder.path("servers.json")).unwrap();
    until_answered_by(&client, "two").await;
    std::os::unix::fs::symlink(folder.path("b.json"), folder.path("link")).unwrap();
    fs::rename(folder.path("link"), folder.path("servers.json")).unwrap();
    until_answered_by(&client, "three").await;
}

/// A name: each address of it is a server, and TLS verifies the name.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_as_many_servers_as_it_has_addresses() {
    let none = Client::builder().endpoint("dns+tcp://no-such-host.invalid:80").build();
    let none = bounded("a build", none).await.err().expect("no such name");
    assert_eq!(none.reason(), Reason::NAME_RESOLUTION, "{none}");
    assert!(none.message().contains("dns+tcp://no-such-host.invalid:80"), "{none}");

    let addresses: HashSet<_> =
        tokio::net::lookup_host("localhost:1").await.unwrap().map(|found| found.ip()).collect();
    eprintln!("localhost is {addresses:?}");
    let served = plain("plain").await;
    let port = served.endpoint.rsplit(':').next().unwrap();
    for endpoint in [format!("dns+tcp://localhost:{port}"), format!("dns+ws://localhost:{port}/rpc")] {
        let client = bounded("a build", Client::connect(&endpoint)).await.unwrap();
        assert_eq!(who(&client).await, "plain");
        assert_eq!(client.endpoint().to_string(), endpoint);
        let peers: Vec<_> = client.connections().into_iter().map(|connection| connection.peer).collect();
        assert!(peers.iter().any(|peer| peer.ends_with(&format!(" at 127.0.0.1:{port}"))), "{peers:?}");
        // It can be named as it is shown.
        let mut servers = client.breakers().into_iter().map(|breaker| breaker.server);
        let shown = servers.find(|server| peers.contains(server)).expect("a breaker of a connected server");
        client.isolate(&shown, None).unwrap();
        client.restore(&shown, None).unwrap();
        let why = client.isolate("tcp://192.0.2.1:80", None).unwrap_err();
        assert!(why.message().contains(&shown), "{why}");
        bounded("a close", client.close()).await;
    }

    // A certificate for the name and for no address.
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let authority = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let chain = leaf.signed_by(&key, &issuer).unwrap().pem();
    for scheme in ["tls", "wss", "quic"] {
        let bind = if scheme == "quic" { "quic://127.0.0.1:0" } else { "tls://127.0.0.1:0" };
        let builder = ServerBuilder::new().bind(bind).identity(chain.clone(), key.serialize_pem());
        let served = serve(builder, scheme, &Executed::default()).await;
        let port = served.endpoint.rsplit(':').next().unwrap();
        let to = |endpoint: String| {
            bounded(
                "a build",
                Client::builder().endpoint(endpoint).trusted_certificates(authority.clone()).build(),
            )
        };
        let client = to(format!("dns+{scheme}://localhost:{port}"))
            .await
            .unwrap_or_else(|status| panic!("{scheme}: {status}"));
        assert_eq!(who(&client).await, scheme);
        let refused =
            to(format!("dns+{scheme}://127.0.0.1:{port}")).await.err().expect("it is for another name");
        assert_eq!(refused.reason(), Reason::CERTIFICATE_NAME, "{scheme}: {refused}");
    }
}
