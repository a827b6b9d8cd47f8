//! Credentials between a real client and a real server, over every transport: whom calls are made for, refresh while streams go
//! on, refusal, expiry, sources that fail, and what a stranger may cost.

mod calling;

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, SystemTime},
};

use bytes::BytesMut;
use calling::bounded;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Notify, Semaphore},
};
use valkyrie_protocol::{
    AUTH_FOLLOWS, Auth, Call, FLAG_END, FLAG_MESSAGE, FrameHeader, FrameType, HEADER_LEN, Hello,
};
use valkyrie_sdk::{
    Authenticator, BoxFuture, CallInfo, CallOptions, Client, ClientBuilder, Code, EchoHandler, Gate,
    Interceptor, MetadataValue, Peer, Principal, Reason, Refusal, Reply, ServerBuilder, ServerControl,
    Status, Token, TokenSource, handler_fn,
};

/// Accepts tokens that begin with `good` as `sub:` and the token, for a time.
#[derive(Default)]
struct Good {
    lasts: Option<Duration>,
    asked: AtomicUsize,
}

impl Authenticator for Good {
    fn authenticate<'a>(
        &'a self,
        token: &'a [u8],
        _: &'a Peer,
        now: SystemTime,
    ) -> BoxFuture<'a, Result<Principal, Refusal>> {
        self.asked.fetch_add(1, SeqCst);
        Box::pin(async move {
            let token = String::from_utf8_lossy(token);
            match &*token {
                // Decided on the spot, or later.
                "panic" => panic!("on purpose"),
                "late" => tokio::task::yield_now().await,
                "late panic" => {
                    tokio::task::yield_now().await;
                    panic!("on purpose");
                }
                token if !token.starts_with("good") => return Err(Refusal("not good".into())),
                _ => {}
            }
            let principal = Principal::new(&format!("sub:{token}"));
            Ok(match self.lasts {
                Some(lasts) => principal.with_expiry(now + lasts),
                None => principal,
            })
        })
    }
}

/// Tokens by number: `good 0`, `good 1` and so on, until it is told to fail.
#[derive(Default)]
struct Numbered {
    given: AtomicUsize,
    failing: AtomicBool,
    changed: Notify,
}

impl TokenSource for Numbered {
    fn token(&self) -> BoxFuture<'_, Result<Token, Status>> {
        Box::pin(async move {
            if self.failing.load(SeqCst) {
                return Err(Status::new(Code::Unavailable, "the vault is sealed"));
            }
            let number = self.given.fetch_add(1, SeqCst);
            self.changed.notify_waiters();
            Ok(Token::new(format!("good {number}")))
        })
    }
}

impl Numbered {
    async fn given(&self, count: usize) {
        loop {
            let changed = self.changed.notified();
            if self.given.load(SeqCst) >= count {
                return;
            }
            changed.await;
        }
    }
}

struct Scene {
    control: ServerControl,
    endpoints: Vec<String>,
    certificate: String,
    served: Arc<AtomicUsize>,
}

impl Scene {
    /// A server on every transport, that says whom it was called for, echoes and counts.
    async fn new(name: &str, builder: ServerBuilder) -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let certificate = made.cert.pem();
        let socket = std::env::temp_dir().join(format!("valkyrie-auth-{}-{name}", std::process::id()));
        let served = Arc::new(AtomicUsize::new(0));
        let counter = served.clone();
        let mut builder = builder
            .bind("127.0.0.1:0")
            .bind(format!("memory:auth-{name}"))
            .handler("/echo", EchoHandler)
            .handler(
                "/who",
                handler_fn(move |call| {
                    counter.fetch_add(1, SeqCst);
                    async move { Ok(Reply::message(call.principal().id().to_owned())) }
                }),
            )
            .handler("/hang", handler_fn(|_| std::future::pending::<Result<Reply, Status>>()));
        if cfg!(unix) {
            builder = builder.bind(format!("unix://{}", socket.display()));
        }
        #[cfg(feature = "quic")]
        {
            builder = builder
                .bind("quic://127.0.0.1:0")
                .identity(certificate.clone(), made.signing_key.serialize_pem());
        }
        let server = builder.open_to_all(true).build().await.unwrap();
        let (control, endpoints) = (server.control(), server.endpoints());
        tokio::spawn(async move { server.start().await });
        Self { control, endpoints, certificate, served }
    }

    fn client(&self, endpoint: &str) -> ClientBuilder {
        let builder = Client::builder().endpoint(endpoint).timeout_ms(60_000);
        match endpoint.starts_with("quic:") {
            true => builder.trusted_certificates(self.certificate.clone()),
            false => builder,
        }
    }

    fn tcp(&self) -> &str {
        self.endpoints.iter().find(|endpoint| endpoint.starts_with("tcp:")).unwrap()
    }
}

async fn who(client: &Client) -> Result<String, Status> {
    let answer = client.call("/who", "").await?;
    Ok(String::from_utf8(answer.message.to_vec()).unwrap())
}

fn frame(frame_type: FrameType, stream: u64, payload: &[u8], record: impl FnOnce(&mut BytesMut)) -> Vec<u8> {
    let mut body = BytesMut::new();
    record(&mut body);
    let metadata_len = body.len() as u32;
    body.extend_from_slice(payload);
    let header = FrameHeader {
        frame_type,
        flags: if stream == 0 { 0 } else { FLAG_END | FLAG_MESSAGE },
        stream,
        payload_len: payload.len() as u32,
        metadata_len,
        priority: 0,
        epoch: 0,
        payload_crc: crc32c::crc32c(&body),
    };
    [&header.encode()[..], &body].concat()
}

/// HELLO and AUTH by hand.
fn greeting(token: &[u8]) -> Vec<u8> {
    let (settings, extensions) = (Vec::new(), vec![(AUTH_FOLLOWS, &b""[..])]);
    let hello = Hello { min_version: 1, max_version: 1, features: 0, settings, extensions };
    let auth = Auth { token, extensions: Vec::new() };
    let hello = frame(FrameType::HELLO, 0, b"", |out| hello.encode(out));
    [hello, frame(FrameType::AUTH, 0, b"", |out| auth.encode(out))].concat()
}

/// The types of the frames that stand in `bytes`, and the length of what is whole.
fn whole_frames(bytes: &[u8]) -> (Vec<FrameType>, usize) {
    let (mut at, mut kinds) = (0, Vec::new());
    while let Some(start) = bytes[at..].first_chunk::<HEADER_LEN>() {
        let header = FrameHeader::decode(start).unwrap();
        let end = at + HEADER_LEN + header.body_len() as usize;
        if bytes.len() < end {
            break;
        }
        // Grease means nothing.
        if header.frame_type.0 < 0x80 {
            kinds.push(header.frame_type);
        }
        at = end;
    }
    (kinds, at)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_names_the_caller_over_every_transport() {
    let scene = Scene::new("names", ServerBuilder::new().authenticator(Good::default())).await;
    assert!(scene.endpoints.len() >= 3, "{:?}", scene.endpoints);
    for endpoint in &scene.endpoints {
        for token in ["good", "late"] {
            let client = scene.client(endpoint).token(token).build().await.unwrap();
            assert_eq!(bounded(endpoint, who(&client)).await.unwrap(), format!("sub:{token}"), "{endpoint}");
        }
        // Who has none is known by what the transport tells.
        let client = scene.client(endpoint).build().await.unwrap();
        let name = bounded(endpoint, who(&client)).await.unwrap();
        match endpoint.starts_with("unix:") {
            true => {
                assert!(name.strip_prefix("uid:").is_some_and(|uid| uid.parse::<u32>().is_ok()), "{name}")
            }
            false => assert_eq!(name, Principal::ANONYMOUS),
        }
    }
    scene.control.shutdown_now();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_an_authenticator_takes_any_token_and_none_seriously() {
    let scene = Scene::new("open", ServerBuilder::new()).await;
    for endpoint in scene.endpoints.iter().filter(|endpoint| !endpoint.starts_with("unix:")) {
        let client = scene.client(endpoint).token("whatever").build().await.unwrap();
        assert_eq!(bounded(endpoint, who(&client)).await.unwrap(), Principal::ANONYMOUS);
    }
    scene.control.shutdown_now();
}

/// HELLO, AUTH and the call, while the server has not said a byte.
#[tokio::test]
async fn the_first_flight_needs_no_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("tcp://{}", listener.local_addr().unwrap());
    let client = Client::builder().endpoint(endpoint).token("good").lazy(true).build().await.unwrap();
    let call = tokio::spawn(async move { client.request("hello").await });
    let (mut socket, _) = listener.accept().await.unwrap();
    let mut bytes = Vec::new();
    bounded("the first flight", async {
        while whole_frames(&bytes).0.len() < 3 {
            socket.read_buf(&mut bytes).await.unwrap();
        }
    })
    .await;
    assert_eq!(whole_frames(&bytes).0, [FrameType::HELLO, FrameType::AUTH, FrameType::CALL]);
    drop(socket);
    call.await.unwrap().unwrap_err();
}

/// Whatever is wrong with a token, the caller hears one sentence, nothing is processed, and nobody tries again by himself.
#[tokio::test(flavor = "multi_thread")]
async fn refused_tokens_are_told_and_not_tried_again() {
    let authenticator = Arc::new(Good::default());
    for (index, token) in ["bad", "panic", "late panic"].into_iter().enumerate() {
        // A server each: more would cost their address something.
        let name = format!("refused-{index}");
        let scene = Scene::new(&name, ServerBuilder::new().authenticator(authenticator.clone())).await;
        for endpoint in &scene.endpoints {
            let before = authenticator.asked.load(SeqCst);
            let client = scene.client(endpoint).token(token).lazy(true).build().await.unwrap();
            let status = bounded(endpoint, who(&client)).await.unwrap_err();
            assert_eq!(status.reason(), Reason::CREDENTIALS_REFUSED, "{endpoint}: {status}");
            assert_eq!(status.message(), "the credentials were refused");
            assert_eq!(scene.served.load(SeqCst), 0);
            assert_eq!(authenticator.asked.load(SeqCst), before + 1, "{endpoint}: it was tried again");
        }
        scene.control.shutdown_now();
    }
}

/// The next call dials anew and asks for a new token; many at once ask once.
#[tokio::test(flavor = "multi_thread")]
async fn the_call_after_a_refusal_asks_the_source_again() {
    struct Second(AtomicUsize);
    impl TokenSource for Second {
        fn token(&self) -> BoxFuture<'_, Result<Token, Status>> {
            let number = self.0.fetch_add(1, SeqCst);
            Box::pin(async move { Ok(Token::new(if number == 0 { "bad" } else { "good" })) })
        }
    }
    let scene = Scene::new("again", ServerBuilder::new().authenticator(Good::default())).await;
    let source = Arc::new(Second(AtomicUsize::new(0)));
    let client = scene.client(scene.tcp()).token_source(source.clone()).lazy(true).build().await.unwrap();
    assert_eq!(who(&client).await.unwrap_err().reason(), Reason::CREDENTIALS_REFUSED);
    assert_eq!(source.0.load(SeqCst), 1);
    let calls: Vec<_> = (0..100)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { who(&client).await })
        })
        .collect();
    for call in calls {
        assert_eq!(bounded("a call", call).await.unwrap().unwrap(), "sub:good");
    }
    assert_eq!(source.0.load(SeqCst), 2);
    scene.control.shutdown_now();
}

/// One stream, open from before the first refresh until after the last one.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_outlives_its_credentials_many_times() {
    let authenticator = Good { lasts: Some(Duration::from_secs(2)), ..Good::default() };
    let scene = Scene::new("refresh", ServerBuilder::new().authenticator(authenticator)).await;
    let mut running = Vec::new();
    for endpoint in scene.endpoints.clone() {
        let source = Arc::new(Numbered::default());
        let client = scene.client(&endpoint).token_source(source.clone()).build().await.unwrap();
        running.push(tokio::spawn(async move {
            let (mut send, mut recv) = client.open("/echo", CallOptions::new()).await.unwrap();
            let mut names = BTreeSet::new();
            for round in 1..=3 {
                bounded(&endpoint, source.given(round)).await;
                send.send("on").await.unwrap();
                assert_eq!(recv.recv().await.unwrap().unwrap(), "on", "{endpoint}");
                names.insert(who(&client).await.unwrap());
            }
            assert!(names.len() >= 2, "{endpoint}: {names:?}");
            send.finish().await.unwrap();
            assert_eq!(recv.recv().await.unwrap(), None);
            assert_eq!(client.connections().len(), 1);
        }));
    }
    for task in running {
        task.await.unwrap();
    }
    assert_eq!(
        scene.control.stats().connections_total as usize,
        scene.endpoints.len(),
        "one connection each"
    );
    scene.control.shutdown_now();
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_calls_during_refreshes_lose_none() {
    let authenticator = Good { lasts: Some(Duration::from_secs(2)), ..Good::default() };
    let scene = Scene::new("calls", ServerBuilder::new().authenticator(authenticator)).await;
    let source = Arc::new(Numbered::default());
    let client = scene.client(scene.tcp()).token_source(source.clone()).build().await.unwrap();
    let made = Arc::new(AtomicUsize::new(0));
    let callers: Vec<_> = (0..16)
        .map(|_| {
            let (client, source, made) = (client.clone(), source.clone(), made.clone());
            tokio::spawn(async move {
                while made.fetch_add(1, SeqCst) < 10_000 || source.given.load(SeqCst) < 4 {
                    bounded("a call", who(&client)).await.unwrap();
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
    assert_eq!(scene.control.stats().connections_total, 1);
    scene.control.shutdown_now();
}

/// Without a newer token what runs ends at the old one's end, and the next call begins anew.
#[tokio::test(flavor = "multi_thread")]
async fn expiry_ends_what_runs() {
    let authenticator = Good { lasts: Some(Duration::from_millis(500)), ..Good::default() };
    let scene = Scene::new("expiry", ServerBuilder::new().authenticator(authenticator)).await;
    for endpoint in &scene.endpoints {
        let source = Arc::new(Numbered::default());
        let client = scene.client(endpoint).token_source(source.clone()).build().await.unwrap();
        let (_send, mut recv) = client.open("/hang", CallOptions::new()).await.unwrap();
        source.failing.store(true, SeqCst);
        let status = bounded(endpoint, recv.recv()).await.unwrap_err();
        assert_eq!(status.reason(), Reason::CREDENTIALS_EXPIRED, "{endpoint}: {status}");
        let status = bounded(endpoint, who(&client)).await.unwrap_err();
        assert_eq!(status.reason(), Reason::CREDENTIALS_UNAVAILABLE, "{endpoint}: {status}");
        assert_eq!(status.message(), "the token source failed: the vault is sealed");
        source.failing.store(false, SeqCst);
        bounded(endpoint, who(&client)).await.unwrap();
    }
    bounded("the end of the old connections", async {
        while scene.control.stats().connections > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    scene.control.shutdown_now();
}

/// A newer token that is refused lets the stream go on until the old one's end; new calls go elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_refresh_leaves_the_stream_its_time() {
    struct Once(AtomicUsize, Notify);
    impl TokenSource for Once {
        fn token(&self) -> BoxFuture<'_, Result<Token, Status>> {
            let number = self.0.fetch_add(1, SeqCst);
            if number == 2 {
                self.1.notify_one();
            }
            Box::pin(async move { Ok(Token::new(if number == 1 { "bad" } else { "good" })) })
        }
    }
    let authenticator = Good { lasts: Some(Duration::from_secs(3)), ..Good::default() };
    let scene = Scene::new("refused-refresh", ServerBuilder::new().authenticator(authenticator)).await;
    let source = Arc::new(Once(AtomicUsize::new(0), Notify::new()));
    let client = scene.client(scene.tcp()).token_source(source.clone()).build().await.unwrap();
    let (mut send, mut recv) = client.open("/echo", CallOptions::new()).await.unwrap();
    let callers = {
        let client = client.clone();
        tokio::spawn(async move {
            // A call that crosses the refusal is refused too; the next one dials anew, with the third token.
            loop {
                let _ = client.call("/who", "").await;
            }
        })
    };
    bounded("the third token", source.1.notified()).await;
    send.send("still").await.unwrap();
    assert_eq!(recv.recv().await.unwrap().unwrap(), "still");
    let status = bounded("the end of the stream", recv.recv()).await.unwrap_err();
    assert_eq!(status.reason(), Reason::CREDENTIALS_EXPIRED, "{status}");
    callers.abort();
    scene.control.shutdown_now();
}

#[tokio::test(flavor = "multi_thread")]
async fn sources_that_fail_hang_or_panic_end_the_calls_that_wait() {
    struct Hangs;
    impl TokenSource for Hangs {
        fn token(&self) -> BoxFuture<'_, Result<Token, Status>> {
            Box::pin(std::future::pending())
        }
    }
    struct Panics;
    impl TokenSource for Panics {
        fn token(&self) -> BoxFuture<'_, Result<Token, Status>> {
            panic!("on purpose")
        }
    }
    let scene = Scene::new("sources", ServerBuilder::new().authenticator(Good::default())).await;
    let failing = Numbered { failing: AtomicBool::new(true), ..Numbered::default() };
    let sources: [(Arc<dyn TokenSource>, &str); 5] = [
        (Arc::new(failing), "the vault is sealed"),
        (Arc::new(Hangs), "none within 50 ms"),
        (Arc::new(Panics), "it panicked, or its runtime stopped"),
        (Arc::new(Token::new("")), "its token has 0 bytes, not 1 to 8192"),
        (Arc::new(Token::new("t".repeat(8_193))), "its token has 8193 bytes, not 1 to 8192"),
    ];
    for (source, why) in sources {
        let builder = scene.client(scene.tcp()).token_source(source).connect_timeout_ms(50);
        let client = builder.lazy(true).build().await.unwrap();
        let status = bounded(why, who(&client)).await.unwrap_err();
        assert_eq!(status.reason(), Reason::CREDENTIALS_UNAVAILABLE, "{status}");
        assert_eq!(status.message(), format!("the token source failed: {why}"));
    }
    assert_eq!(scene.control.stats().connections_total, 0, "a byte was sent without a token");
    scene.control.shutdown_now();
}

/// A server holds little behind a token that it has not decided on, whatever comes.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_the_first_decision_is_bounded() {
    struct Waits(Arc<Semaphore>, Arc<Notify>);
    impl Authenticator for Waits {
        fn authenticate<'a>(
            &'a self,
            _: &'a [u8],
            _: &'a Peer,
            _: SystemTime,
        ) -> BoxFuture<'a, Result<Principal, Refusal>> {
            Box::pin(async move {
                self.1.notify_one();
                self.0.acquire().await.unwrap().forget();
                Ok(Principal::new("sub:x"))
            })
        }
    }
    let (decide, asked) = (Arc::new(Semaphore::new(0)), Arc::new(Notify::new()));
    let scene =
        Scene::new("held", ServerBuilder::new().authenticator(Waits(decide.clone(), asked.clone()))).await;
    let mut socket = TcpStream::connect(scene.tcp().strip_prefix("tcp://").unwrap()).await.unwrap();
    let call = |stream: u64| {
        let call =
            Call { method: "/who", timeout_us: 0, codec: 0, schema: 0, metadata: vec![], extensions: vec![] };
        frame(FrameType::CALL, stream, &[b'x'; 1_000], |out| call.encode(out))
    };
    socket.write_all(&greeting(b"token")).await.unwrap();
    asked.notified().await;
    // 60 KB: within the windows of a first flight, and more than may be held.
    let flight: Vec<u8> = (0..60).flat_map(|number| call(2 * number + 1)).collect();
    socket.write_all(&flight).await.unwrap();
    // The server has had its chance to read too much by the time that it has served somebody else a hundred times.
    let other = scene.client(scene.tcp()).build().await.unwrap();
    for _ in 0..100 {
        who(&other).await.unwrap();
    }
    let served = scene.served.load(SeqCst);
    let held = scene.control.connections().into_iter().find(|info| info.calls == 0).unwrap();
    assert!(held.bytes_in <= 48 << 10, "{} bytes were read", held.bytes_in);
    assert_eq!(served, 100, "a call went ahead of the decision");
    decide.add_permits(1);
    let mut bytes = Vec::new();
    bounded("the answers", async {
        while whole_frames(&bytes).0.iter().filter(|kind| **kind == FrameType::STATUS).count() < 60 {
            assert_ne!(socket.read_buf(&mut bytes).await.unwrap(), 0);
        }
    })
    .await;
    assert_eq!(whole_frames(&bytes).0[..2], [FrameType::HELLO, FrameType::AUTHENTICATED]);
    assert_eq!(scene.served.load(SeqCst), 160);
    scene.control.shutdown_now();
}

/// From the third refused token on an address waits outside for a while.
#[tokio::test(flavor = "multi_thread")]
async fn an_address_pays_for_refused_tokens() {
    let scene = Scene::new("penalty", ServerBuilder::new().authenticator(Good::default())).await;
    let good = scene.client(scene.tcp()).token("good").build().await.unwrap();
    who(&good).await.unwrap();
    let mut refused = 0;
    while scene.control.stats().connections_refused == 0 {
        let client = scene.client(scene.tcp()).token("bad").lazy(true).build().await.unwrap();
        let status = bounded("a call", who(&client)).await.unwrap_err();
        refused += u32::from(status.reason() == Reason::CREDENTIALS_REFUSED);
        assert!(refused < 1_000, "nobody is kept outside");
    }
    assert!(refused >= 3);
    // Who is inside is no worse off.
    assert_eq!(who(&good).await.unwrap(), "sub:good");
    scene.control.shutdown_now();
}

/// What a gate saw, and what it says.
#[derive(Default)]
struct Watch {
    seen: Mutex<Vec<String>>,
}

impl Gate for Watch {
    fn admit(&self, call: &CallInfo<'_>) -> Result<(), Status> {
        let line = format!("{} calls {}", call.principal.id(), call.method);
        self.seen.lock().unwrap().push(line);
        assert!(call.peer.endpoint.starts_with("tcp:") && call.connection > 0);
        match call.method {
            "/denied" => Err(Status::new(Code::PermissionDenied, "not for you")),
            "/panics" => panic!("on purpose"),
            _ => Ok(()),
        }
    }

    fn authenticated(&self, _: &Peer, _: u64, outcome: Result<&Principal, &Refusal>) {
        let line = match outcome {
            Ok(principal) => format!("{} came", principal.id()),
            Err(refusal) => format!("refused: {refusal}"),
        };
        self.seen.lock().unwrap().push(line);
    }
}

/// The gate sees each decision and each call, and what it denies waits for no permit.
#[tokio::test(flavor = "multi_thread")]
async fn a_gate_comes_before_permits_and_handlers() {
    let gate = Arc::new(Watch::default());
    let builder =
        ServerBuilder::new().authenticator(Good::default()).gate(gate.clone()).max_running_handlers(1);
    let scene = Scene::new("gate", builder).await;
    let client = scene.client(scene.tcp()).token("good").build().await.unwrap();
    who(&client).await.unwrap();
    let running = client.open("/hang", CallOptions::new()).await.unwrap();
    let denied = bounded("a denied call", client.call("/denied", "")).await.unwrap_err();
    assert_eq!((denied.code(), denied.message()), (Code::PermissionDenied, "not for you"));
    let panicked = bounded("a gate that panics", client.call("/panics", "")).await.unwrap_err();
    assert_eq!(panicked.reason(), Reason::INTERNAL);
    drop(running);
    let bad = scene.client(scene.tcp()).token("bad").lazy(true).build().await.unwrap();
    who(&bad).await.unwrap_err();
    let seen = gate.seen.lock().unwrap().clone();
    assert_eq!(
        seen,
        [
            "sub:good came",
            "sub:good calls /who",
            "sub:good calls /hang",
            "sub:good calls /denied",
            "sub:good calls /panics",
            "refused: not good",
        ]
    );
    scene.control.shutdown_now();
}

struct Adds;

impl Interceptor for Adds {
    fn before(&self, method: &str, options: &mut CallOptions) -> Result<(), Status> {
        if method == "/never" {
            return Err(Status::new(Code::FailedPrecondition, "not from here"));
        }
        options.metadata.insert("added", MetadataValue::from_static(b"yes")).map_err(Status::from)
    }
}

/// In each way of calling.
#[tokio::test]
async fn interceptors_change_calls_and_end_them() {
    let shows = handler_fn(|call| async move {
        Ok(Reply::message(call.metadata().get("added").cloned().unwrap_or_default()))
    });
    let scene = Scene::new("interceptor", ServerBuilder::new().handler("/shows", shows)).await;
    let client = scene.client(scene.tcp()).interceptor(Arc::new(Adds)).build().await.unwrap();
    assert_eq!(client.call("/shows", "").await.unwrap().message, "yes");
    let mut answers = client.stream("/shows", "", CallOptions::new()).await.unwrap();
    assert_eq!(answers.recv().await.unwrap().unwrap(), "yes");
    let (_send, mut answers) = client.open("/shows", CallOptions::new()).await.unwrap();
    assert_eq!(answers.recv().await.unwrap().unwrap(), "yes");
    let refused = [
        client.call("/never", "").await.map(drop).unwrap_err(),
        client.stream("/never", "", CallOptions::new()).await.map(drop).unwrap_err(),
        client.open("/never", CallOptions::new()).await.map(drop).unwrap_err(),
    ];
    assert!(refused.iter().all(|status| status.message() == "not from here"));
    scene.control.shutdown_now();
}

/// A canary in a token is in nothing that may be printed.
#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_not_shown() {
    #[derive(Default)]
    struct Lines(Mutex<String>);
    impl valkyrie_sdk::Log for Lines {
        fn enabled(&self, _: valkyrie_sdk::Level) -> bool {
            true
        }
        fn log(&self, record: valkyrie_sdk::Record) {
            self.0.lock().unwrap().push_str(&format!("{record:?}\n"));
        }
    }
    let lines = Arc::new(Lines::default());
    let scene = Scene::new("canary", ServerBuilder::new().authenticator(Good::default())).await;
    let token = Token::new("canary-7f3a");
    let source: Arc<dyn TokenSource> = Arc::new(token.clone());
    let client =
        scene.client(scene.tcp()).token_source(source).log(lines.clone()).lazy(true).build().await.unwrap();
    let status = who(&client).await.unwrap_err();
    let text = format!("{token:?} {status:?} {status} {}", lines.0.lock().unwrap());
    assert!(!text.contains("7f3a"), "{text}");
    assert!(text.contains("Token(…)") && text.contains("connected to"), "{text}");
    scene.control.shutdown_now();
}
