//! The Rust runner: one function per action of `README.md`. It knows nothing of a single case.

use std::{
    fmt::{self, Write},
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{
            AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    task::Poll,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use serde_json::Value;
use tokio::{task::JoinSet, time::timeout};
use valkyrie_sdk::{
    BoxFuture, CallOptions, Client, ClientBuilder, Code, Connectivity, Level, Log, Metadata, Pem, Reason,
    Record, RecvStream, Response, Security, SendStream, Status, Token, TokenSource, policy::ServiceConfig,
};

use crate::server::versions;

/// A hang must become a failed case.
const CASE_TIMEOUT: Duration = Duration::from_secs(60);

/// Where the runner finds the server and its absence.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The server's endpoint.
    pub endpoint: String,
    /// An endpoint of the same scheme where nobody listens.
    pub absent: String,
    /// PEM text of the certificate that the server shows where its transport is encrypted.
    pub certificates: String,
    /// Whether to seal what is carried.
    pub sealed: bool,
}

impl Settings {
    async fn connect(&self, endpoint: &str) -> Result<Client, Status> {
        self.builder(endpoint).build().await
    }

    fn builder(&self, endpoint: &str) -> ClientBuilder {
        let client = Client::builder().endpoint(endpoint).versions(versions());
        // Trust is for what is encrypted.
        let encrypted = ["tls:", "wss:", "quic:"].iter().any(|scheme| endpoint.starts_with(scheme));
        let client = match encrypted || self.sealed {
            true => client.trusted_certificates(self.certificates.clone()),
            false => client,
        };
        client.sealed(self.sealed)
    }
}

/// What became of a case.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The case's name.
    pub case: String,
    /// Whether everything was as expected.
    pub ok: bool,
    /// What was expected and what came, or a remark.
    pub detail: String,
}

impl fmt::Display for Outcome {
    /// The runner's line of JSON.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        serde_json::json!({ "case": self.case, "ok": self.ok, "detail": self.detail }).fmt(f)
    }
}

/// Runs every case of `cases` (the text of `cases.json`) and hands each outcome to `report` as it comes.
///
/// # Errors
/// A sentence, when the cases cannot be read or the server cannot be reached.
pub async fn run(settings: &Settings, cases: &str, mut report: impl FnMut(Outcome)) -> Result<(), String> {
    let cases: Vec<Value> = serde_json::from_str(cases).map_err(|error| format!("cases: {error}"))?;
    let client = settings.connect(&settings.endpoint).await.map_err(|status| status.to_string())?;
    for case in cases {
        let token = new_token();
        let case = Case { fields: &case, token, settings, client: &client };
        let result = match timeout(CASE_TIMEOUT, case.run()).await {
            Ok(result) => result,
            Err(_) => Err(format!("no end within {} s", CASE_TIMEOUT.as_secs())),
        };
        let ok = result.is_ok();
        let detail = result.unwrap_or_else(|detail| detail);
        report(Outcome { case: case.text("case").unwrap_or_default(), ok, detail });
    }
    client.close().await;
    Ok(())
}

fn new_token() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("rust{}x{}", std::process::id(), NEXT.fetch_add(1, Relaxed))
}

/// `Ok` holds a remark, mostly empty; `Err` what went wrong.
type Verdict = Result<String, String>;

struct Case<'a> {
    fields: &'a Value,
    token: String,
    settings: &'a Settings,
    client: &'a Client,
}

/// What a call gave: the reply or nothing, and the status.
#[derive(Debug)]
struct Got {
    reply: Bytes,
    status: Option<Status>,
    metadata: Metadata,
    trailers: Metadata,
}

impl Got {
    fn failed(status: Status) -> Self {
        let (metadata, trailers) = (status.metadata().clone(), status.trailers().clone());
        Self { reply: Bytes::new(), status: Some(status), metadata, trailers }
    }

    fn code(&self) -> Code {
        self.status.as_ref().map_or(Code::Ok, Status::code)
    }
}

impl From<Result<Response, Status>> for Got {
    fn from(result: Result<Response, Status>) -> Self {
        match result {
            Ok(Response { message, metadata, trailers, .. }) => {
                Self { reply: message, status: None, metadata, trailers }
            }
            Err(status) => Self::failed(status),
        }
    }
}

fn fail<T>(status: Status) -> Result<T, String> {
    Err(format!("{status} ({})", status.reason()))
}

fn pattern(i: u64, size: usize) -> Vec<u8> {
    // The remainder is below 251.
    vec![(i % 251) as u8; size]
}

impl Case<'_> {
    async fn run(&self) -> Verdict {
        match self.text("action").unwrap_or_default().as_str() {
            "request" => self.request().await,
            "unary" => self.unary().await,
            "twice" => self.twice().await,
            "stream_with_key" => self.stream_with_key().await,
            "server_stream" => self.server_stream().await,
            "client_stream" => self.client_stream().await,
            "bidi" => self.bidi().await,
            "cancel_before" => self.cancel_before().await,
            "cancel_during" => self.cancel_during().await,
            "cancel_times" => self.cancel_times().await,
            "cancel_after" => self.cancel_after().await,
            "cancel_stream" => self.cancel_stream().await,
            "leave_stream" => self.leave_stream().await,
            "in_flight" => self.in_flight().await,
            "go_away" => self.go_away().await,
            "credentials" => self.credentials().await,
            "connect" => self.connect().await,
            "connect_with" => self.connect_with().await,
            "configured" => self.configured().await,
            "bad_metadata" => match self.metadata() {
                Ok(_) => Err("the metadata was taken".into()),
                Err(error) => Ok(error),
            },
            "wrong_type" => Ok("the compiler refuses it".into()),
            "connectivity" => self.connectivity().await,
            "keepalive" => self.keepalive().await,
            "reconfigured" => self.reconfigured().await,
            "isolate" => self.isolate().await,
            "breaker_changes" => self.breaker_changes().await,
            "metrics" => self.metrics().await,
            "call_closed" => self.call_closed().await,
            "double_close" => self.double_close().await,
            "after_shutdown" => self.after_shutdown().await,
            "script" => self.script().await,
            "failover" => self.failover().await,
            other => Err(format!("unknown action {other:?}")),
        }
    }

    fn text(&self, key: &str) -> Option<String> {
        Some(
            self.fields
                .get(key)?
                .as_str()?
                .replace("$TOKEN", &self.token)
                .replace("$ABSENT", &self.settings.absent),
        )
    }

    fn number(&self, key: &str) -> Option<u64> {
        self.fields.get(key)?.as_u64()
    }

    fn size(&self) -> usize {
        self.number("size").map_or(0, |size| usize::try_from(size).unwrap_or(usize::MAX))
    }

    fn method(&self) -> String {
        self.text("method").or_else(|| self.method_of_bytes()).unwrap_or_default()
    }

    /// `None` without such a method, and where it is no text of Rust's.
    fn method_of_bytes(&self) -> Option<String> {
        String::from_utf8(from_hex(&self.text("method_hex")?).ok()?.into()).ok()
    }

    fn message(&self) -> Result<Bytes, String> {
        if let Some(text) = self.text("text") {
            return Ok(text.into());
        }
        match self.text("hex") {
            Some(hex) => from_hex(&hex),
            None => Ok((0..self.size()).map(|i| (i % 251) as u8).collect()),
        }
    }

    fn metadata(&self) -> Result<Metadata, String> {
        let mut metadata = entries(&self.text("metadata").unwrap_or_default())?;
        if let Some(size) = self.number("metadata_size") {
            let value = "x".repeat(usize::try_from(size).unwrap_or(0));
            metadata.insert("x-large", value).map_err(|error| error.to_string())?;
        }
        Ok(metadata)
    }

    fn options(&self) -> Result<CallOptions, String> {
        let options = CallOptions::new()
            .with_metadata(self.metadata()?)
            .with_idempotent(self.number("idempotent") == Some(1));
        let options = match self.number("timeout_ms") {
            Some(ms) => options.with_timeout(Duration::from_millis(ms)),
            None => options,
        };
        Ok(match (self.text("idempotency_key"), self.number("draw_idempotency_key")) {
            (Some(key), _) => options.with_idempotency_key(key),
            (None, Some(_)) => options.with_drawn_idempotency_key(),
            (None, None) => options,
        })
    }

    /// Compares everything that the case names.
    async fn check(&self, got: &Got) -> Verdict {
        let mut wrong = Vec::new();
        let mut compare = |what: &str, expected: Option<String>, got: String| {
            if let Some(expected) = expected
                && expected != got
            {
                wrong.push(format!("{what}: expected {expected:.80?}, got {got:.80?}"));
            }
        };
        compare("code", self.text("code"), got.code().name().into());
        compare("code number", self.shown("code_number"), got.code().number().to_string());
        let status = got.status.as_ref();
        compare("reason", self.text("reason"), status.map_or("", |s| s.reason().name()).into());
        compare("status message", self.text("status_message"), status.map_or("", Status::message).into());
        let detail = status.and_then(|status| status.details().first());
        compare(
            "detail type",
            self.text("detail_type"),
            detail.map_or_else(String::new, |d| d.type_name.clone()),
        );
        let detail =
            detail.map_or_else(String::new, |detail| String::from_utf8_lossy(&detail.value).into_owned());
        compare("detail", self.text("detail_text"), detail);
        let pushback = status.and_then(Status::pushback).map_or(0, |pushback| pushback.as_millis());
        compare("pushback", self.shown("pushback_ms"), pushback.to_string());
        compare("reply", self.text("reply_text"), String::from_utf8_lossy(&got.reply).into_owned());
        compare("reply size", self.shown("reply_size"), got.reply.len().to_string());
        for (key, metadata) in [("expect_metadata", &got.metadata), ("expect_trailers", &got.trailers)] {
            if let Some(expected) = self.text(key) {
                compare(key, Some(format!("{:?}", entries(&expected)?)), format!("{metadata:?}"));
            }
        }
        if self.number("reply_echo").is_some() && got.reply != self.message()? {
            wrong.push(format!("the reply of {} bytes is not the message", got.reply.len()));
        }
        if let Some(most) = self.number("reply_max") {
            let reply = std::str::from_utf8(&got.reply).ok().and_then(|reply| reply.parse::<u64>().ok());
            if !reply.is_some_and(|reply| (1..=most).contains(&reply)) {
                wrong.push(format!("reply: expected 1 to {most}, got {:?}", got.reply));
            }
        }
        if !wrong.is_empty() {
            if let Some(status) = status {
                wrong.push(format!("status: {status:?}"));
            }
            return Err(wrong.join("; "));
        }
        self.check_dropped().await
    }

    fn shown(&self, key: &str) -> Option<String> {
        self.number(key).map(|number| number.to_string())
    }

    async fn check_dropped(&self) -> Verdict {
        if self.number("then_dropped").is_some() {
            self.hang_until("dropped").await.map_err(|why| format!("the handler was not dropped: {why}"))?;
        }
        Ok(String::new())
    }

    async fn hang_until(&self, what: &str) -> Result<Bytes, String> {
        let metadata = entries(&format!("until={what}"))?;
        let options = CallOptions::new().with_metadata(metadata).with_timeout(Duration::from_secs(30));
        match self.client.call_with("/test/hang_stats", self.token.clone(), options).await {
            Ok(stats) => Ok(stats.message),
            Err(status) => fail(status),
        }
    }

    async fn request(&self) -> Verdict {
        let got = match self.text("text") {
            Some(text) => self.client.request(text).await,
            None => self.client.request(self.message()?).await,
        };
        self.check(&match got {
            Ok(reply) => Got { reply, status: None, metadata: Metadata::new(), trailers: Metadata::new() },
            Err(status) => Got::failed(status),
        })
        .await
    }

    async fn unary(&self) -> Verdict {
        let got = self.client.call_with(&self.method(), self.message()?, self.options()?).await;
        self.check(&got.into()).await
    }

    /// Two calls with the same options; a server says which of the answers is not the first of its key.
    async fn twice(&self) -> Verdict {
        let first = Got::from(self.client.call_with(&self.method(), self.message()?, self.options()?).await);
        let message = self.text("then_message").map_or_else(|| self.message(), |text| Ok(text.into()))?;
        let then = Got::from(self.client.call_with(&self.method(), message, self.options()?).await);
        let code = then.code().name();
        if self.text("then_code").is_some_and(|wanted| wanted != code) {
            return Err(format!("the second call: {then:?}"));
        }
        if self.text("then_reply").is_some_and(|wanted| wanted != then.reply) {
            return Err(format!("the second reply: {:?}", then.reply));
        }
        let replayed = [&first, &then].map(|got| got.metadata.get_str("valkyrie-replayed") == Some("true"));
        if replayed != [false, self.number("replayed") == Some(1)] {
            return Err(format!("replayed: {replayed:?}"));
        }
        self.check(&first).await
    }

    async fn stream_with_key(&self) -> Verdict {
        match self.client.open(&self.method(), self.options()?).await {
            Ok(_) => Err("the key was taken".into()),
            Err(status) => self.check(&Got::failed(status)).await,
        }
    }

    async fn server_stream(&self) -> Verdict {
        let mut stream = match self
            .client
            .stream(&self.method(), self.text("text").unwrap_or_default(), self.options()?)
            .await
        {
            Ok(stream) => stream,
            Err(status) => return self.check(&Got::failed(status)).await,
        };
        let metadata = stream.metadata().await.unwrap_or_default();
        let mut count = 0;
        let status = loop {
            match stream.recv().await {
                Ok(Some(message)) => {
                    if message != pattern(count, self.size()) {
                        return Err(format!("message {count} of {} bytes is not the pattern", message.len()));
                    }
                    count += 1;
                }
                Ok(None) => break None,
                Err(status) => break Some(status),
            }
        };
        if Some(count) != self.number("count") {
            return Err(format!(
                "expected {:?} messages, got {count}, then {status:?}",
                self.number("count")
            ));
        }
        let trailers = stream.trailers().clone();
        self.check(&match status {
            None => Got { reply: Bytes::new(), status, metadata, trailers },
            Some(status) => Got::failed(status),
        })
        .await
    }

    async fn open(&self) -> Result<(SendStream, RecvStream), String> {
        self.client.open(&self.method(), self.options()?).await.or_else(fail)
    }

    async fn client_stream(&self) -> Verdict {
        let (mut send, mut recv) = self.open().await?;
        for i in 0..self.number("count").unwrap_or(0) {
            // The call may be over already; receiving says how it ended.
            if send.send(pattern(i, self.size())).await.is_err() {
                break;
            }
        }
        let _ = send.finish().await;
        let reply = recv.recv().await;
        let got = match reply {
            Ok(Some(reply)) => {
                let metadata = recv.metadata().await.or_else(fail)?;
                match recv.recv().await {
                    Ok(None) => Got { reply, status: None, metadata, trailers: recv.trailers().clone() },
                    Ok(Some(_)) => return Err("more than one reply".into()),
                    Err(status) => Got::failed(status),
                }
            }
            Ok(None) => return Err("no reply".into()),
            Err(status) => Got::failed(status),
        };
        self.check(&got).await
    }

    async fn bidi(&self) -> Verdict {
        let (mut send, mut recv) = self.open().await?;
        let count = self.number("count").unwrap_or(0);
        let lockstep = self.number("lockstep") == Some(1);
        for i in 0..count {
            send.send(pattern(i, self.size())).await.or_else(fail)?;
            if lockstep {
                self.receive_pattern(&mut recv, i).await?;
            }
        }
        send.finish().await.or_else(fail)?;
        if !lockstep {
            for i in 0..count {
                self.receive_pattern(&mut recv, i).await?;
            }
        }
        let got = match recv.recv().await {
            Ok(None) => {
                let trailers = recv.trailers().clone();
                Got { reply: Bytes::new(), status: None, metadata: Metadata::new(), trailers }
            }
            Ok(Some(_)) => return Err("a message after the last".into()),
            Err(status) => Got::failed(status),
        };
        self.check(&got).await
    }

    async fn receive_pattern(&self, recv: &mut RecvStream, i: u64) -> Result<(), String> {
        match recv.recv().await.or_else(fail)? {
            Some(message) if message == pattern(i, self.size()) => Ok(()),
            Some(message) => Err(format!("message {i} of {} bytes is not the one sent", message.len())),
            None => Err(format!("the end came before message {i}")),
        }
    }

    /// Dropping a future that was never polled: nothing may have been sent.
    async fn cancel_before(&self) -> Verdict {
        let calls =
            |client: &Client| client.connections().iter().map(|connection| connection.calls).sum::<u64>();
        let before = calls(self.client);
        let method = self.method();
        drop(self.client.call_with(&method, self.message()?, self.options()?));
        match calls(self.client) {
            after if after == before => Ok("a future that is not polled sends nothing".into()),
            after => Err(format!("{} calls were sent", after - before)),
        }
    }

    async fn cancel_during(&self) -> Verdict {
        self.cancel_a_call().await?;
        self.check_dropped().await
    }

    /// Gives the time of the cancel, since 1970.
    async fn cancel_a_call(&self) -> Result<Duration, String> {
        let method = self.method();
        let mut call = pin!(self.client.call_with(&method, self.message()?, self.options()?));
        let mut started = pin!(self.hang_until("started"));
        tokio::select! {
            result = &mut call => return Err(format!("the call ended before the cancel: {result:?}")),
            started = &mut started => { started?; }
        }
        // Here the call is dropped, which is how Rust cancels.
        Ok(SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default())
    }

    async fn cancel_times(&self) -> Verdict {
        let mut took = Vec::new();
        for round in 0..self.number("count").unwrap_or(0) {
            let one = Case { token: format!("{}-{round}", self.token), ..*self };
            let since = one.cancel_a_call().await?;
            let stats: Value = serde_json::from_slice(&one.hang_until("dropped").await?)
                .map_err(|error| error.to_string())?;
            let dropped = stats["dropped_us"].as_u64().ok_or("no time of the drop")?;
            took.push(dropped.saturating_sub(since.as_micros() as u64));
        }
        took.sort_unstable();
        Ok(format!("{} µs, {} at worst", took[took.len() / 2], took[took.len() - 1]))
    }

    async fn cancel_after(&self) -> Verdict {
        let method = self.method();
        for _ in 0..2 {
            let mut call = Box::pin(self.client.call_with(&method, self.message()?, self.options()?));
            let got = call.as_mut().await;
            drop(call);
            self.check(&got.into()).await?;
        }
        Ok(String::new())
    }

    async fn cancel_stream(&self) -> Verdict {
        let (mut send, mut recv) = self.open().await?;
        send.send(self.message()?).await.or_else(fail)?;
        self.hang_until("started").await?;
        send.cancel();
        match recv.recv().await {
            Ok(message) => Err(format!("received {message:?} after the cancel")),
            Err(status) => self.check(&Got::failed(status)).await,
        }
    }

    async fn leave_stream(&self) -> Verdict {
        let mut stream = self
            .client
            .stream(&self.method(), self.text("text").unwrap_or_default(), self.options()?)
            .await
            .or_else(fail)?;
        self.take(&mut stream).await?;
        drop(stream);
        match self.client.request("still here").await {
            Ok(_) => Ok(String::new()),
            Err(status) => fail(status),
        }
    }

    async fn take(&self, stream: &mut RecvStream) -> Result<(), String> {
        for i in 0..self.number("count").unwrap_or(0) {
            if stream.recv().await.or_else(fail)?.is_none() {
                return Err(format!("the end came before message {i}"));
            }
        }
        Ok(())
    }

    async fn in_flight(&self) -> Verdict {
        let mut calls = JoinSet::new();
        for i in 0..self.number("count").unwrap_or(0) {
            let (client, method, options) = (self.client.clone(), self.method(), self.options()?);
            calls.spawn(async move { (i, client.call_with(&method, i.to_string(), options).await) });
        }
        while let Some(call) = calls.join_next().await {
            match call.map_err(|error| error.to_string())? {
                (i, Ok(response)) if response.message == i.to_string() => {}
                (i, Ok(response)) => return Err(format!("call {i} got the reply {:?}", response.message)),
                (_, Err(status)) => return fail(status),
            }
        }
        Ok(String::new())
    }

    /// A client for a fresh server that may be shut down.
    async fn private(&self) -> Result<Client, String> {
        let scheme = self.client.endpoint().scheme().to_owned();
        let endpoint = self.client.call("/test/private", scheme).await.or_else(fail)?.message;
        let client =
            self.settings.builder(&String::from_utf8_lossy(&endpoint)).service_config(self.service_config()?);
        client.build().await.or_else(fail)
    }

    fn service_config(&self) -> Result<ServiceConfig, String> {
        ServiceConfig::parse(&self.text("service_config").unwrap_or("{}".into())).or_else(fail)
    }

    async fn credentials(&self) -> Verdict {
        if self.text("method_hex").is_some() && self.method_of_bytes().is_none() {
            return Ok("the type of a method refuses it".into());
        }
        let maker = Arc::new(TokenMaker {
            token: self.text("token").unwrap_or_default(),
            source: self.text("source").unwrap_or_default(),
            asked: AtomicU64::new(0),
        });
        let mut client = match self.text("endpoint") {
            Some(endpoint) => Client::builder().endpoint(endpoint),
            None => {
                let server = self.text("server").unwrap_or_else(|| "credentials".into());
                let scheme = format!("{} {server}", self.client.endpoint().scheme());
                let endpoint = self.client.call("/test/private", scheme).await.or_else(fail)?.message;
                self.settings.builder(&String::from_utf8_lossy(&endpoint))
            }
        };
        if let Some(ms) = self.number("connect_timeout_ms") {
            client = client.connect_timeout_ms(ms);
        }
        client = match (maker.token.is_empty(), maker.source.is_empty()) {
            (true, _) => client,
            (false, true) => client.token(maker.token.clone()),
            (false, false) => client.token_source(maker.clone()),
        };
        let heard = Arc::new(Heard::default());
        let got = Got::from(self.show_tokens(client.log(heard.clone()), &maker).await);
        let heard = heard.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if !maker.token.is_empty() && format!("{got:?} {heard}").contains(&maker.token) {
            return Err("the token is shown".into());
        }
        if got.code() == Code::Ok && !heard.contains("connected to") {
            return Err(format!("nothing of the connection is logged: {heard}"));
        }
        self.check(&got).await
    }

    /// A stream and calls of a client that shows tokens; the outcome of the last, or of the first that fails.
    async fn show_tokens(&self, client: ClientBuilder, maker: &TokenMaker) -> Result<Response, Status> {
        let client = client.build().await?;
        let (mut sender, mut receiver) = client.open("/echo", CallOptions::new()).await?;
        if self.number("hold").is_some() {
            receiver.recv().await?;
        }
        for _ in 1..self.number("count").unwrap_or(1) {
            client.call(&self.method(), "").await?;
        }
        while maker.asked.load(SeqCst) < self.number("asked").unwrap_or(0) {
            sender.send("x").await?;
            receiver.recv().await?;
            client.call(&self.method(), "").await?;
        }
        client.call_with(&self.method(), "", CallOptions::new()).await
    }

    async fn go_away(&self) -> Verdict {
        let client = self.private().await?;
        let text = self.text("text").unwrap_or_default();
        let mut stream = client.stream(&self.method(), text, self.options()?).await.or_else(fail)?;
        self.take(&mut stream).await?;
        let how = self.text("how").unwrap_or_default();
        // The answer may be lost with the server.
        let _ = client.call("/test/shutdown", how).await;
        let mut count = self.number("count").unwrap_or(0);
        let status = loop {
            match stream.recv().await {
                Ok(Some(_)) => count += 1,
                Ok(None) => break None,
                Err(status) => break Some(status),
            }
        };
        if let Some(total) = self.number("total")
            && total != count
        {
            return Err(format!("expected {total} messages in all, got {count}, then {status:?}"));
        }
        let ended = Got { reply: Bytes::new(), status, metadata: Metadata::new(), trailers: Metadata::new() };
        self.check(&ended).await?;
        let then = Got::from(client.call("/echo", "anyone there?").await).code();
        match self.text("then_code") {
            Some(expected) if expected != then.name() => {
                Err(format!("a later call: expected {expected}, got {then}"))
            }
            _ => Ok(String::new()),
        }
    }

    async fn connect(&self) -> Verdict {
        match self.settings.connect(&self.text("endpoint").unwrap_or_default()).await {
            Ok(_) => Err("connected".into()),
            Err(status) => self.check(&Got::failed(status)).await,
        }
    }

    /// As the case says, and in no other way.
    async fn connect_with(&self) -> Verdict {
        let mut client = Client::builder().endpoint(self.text("endpoint").unwrap_or_default());
        let file = |key: &str| self.text(key).map(Pem::file);
        if let Some(trusted) = file("trusted") {
            client = client.trusted_certificates(trusted);
        }
        if let Some(revoked) = file("revoked") {
            client = client.revocation_lists(revoked);
        }
        if let Some((certificates, key)) = file("identity").zip(file("key")) {
            client = client.identity(certificates, key);
        }
        if let Some(name) = self.text("server_name") {
            client = client.server_name(name);
        }
        client = client.sealed(self.number("sealed") == Some(1));
        if let Some(least) = self.text("min_security") {
            client = client.min_security(Security::from_name(&least).ok_or("no such security")?);
        }
        let got = match client.build().await {
            Ok(client) => client.call("/echo", "x").await.into(),
            Err(status) => Got::failed(status),
        };
        self.check(&got).await
    }

    async fn configured(&self) -> Verdict {
        let config = self.text("service_config").unwrap_or_default();
        let client = match ServiceConfig::parse(&config) {
            Ok(config) => self.settings.builder(&self.settings.endpoint).service_config(config).build().await,
            Err(status) => Err(status),
        };
        let got = match client {
            Ok(client) => client.call_with(&self.method(), self.message()?, self.options()?).await.into(),
            Err(status) => Got::failed(status),
        };
        self.check(&got).await
    }

    async fn reconfigured(&self) -> Verdict {
        let builder = self.settings.builder(&self.settings.endpoint).service_config(self.service_config()?);
        let client = builder.build().await.or_else(fail)?;
        let call = async || {
            let outcome = client.call_with(&self.method(), self.message()?, self.options()?).await;
            Ok::<_, String>(Got::from(outcome))
        };
        let first = call().await?;
        if self.text("first_code").is_some_and(|code| code != first.code().name()) {
            return Err(format!("the first call: {first:?}"));
        }
        let got = match ServiceConfig::parse(&self.text("then_config").unwrap_or_default()) {
            Ok(config) => {
                client.set_service_config(config);
                call().await?
            }
            Err(status) => Got::failed(status),
        };
        self.check(&got).await
    }

    /// Of the server as a whole, and of one of its methods.
    async fn isolate(&self) -> Verdict {
        let client = self.own_client().await?;
        let (method, other) = (self.method(), "/test/sleep");
        let reason = async |method: &str| match client.call(method, "1").await {
            Ok(_) => "OK",
            Err(status) => status.reason().name(),
        };
        let mut seen = vec![reason(&method).await];
        let server = client.breakers().first().map(|one| one.server.clone()).ok_or("no breaker")?;
        client.isolate(&server, None).or_else(fail)?;
        seen.extend([reason(&method).await, reason(other).await]);
        let isolated =
            client.breakers().iter().any(|one| one.method.is_none() && one.state.name() == "isolated");
        client.restore(&server, None).or_else(fail)?;
        seen.push(reason(&method).await);
        client.isolate(&server, Some(&method)).or_else(fail)?;
        seen.extend([reason(&method).await, reason(other).await]);
        client.restore(&server, Some(&method)).or_else(fail)?;
        seen.push(reason(&method).await);
        let restored = client.breakers().iter().all(|one| one.state.name() == "closed");
        if !isolated || !restored || seen.join(" ") != self.text("reasons").unwrap_or_default() {
            return Err(format!("isolated {isolated}, restored {restored}, {seen:?}"));
        }
        match client.isolate("tcp://192.0.2.1:1", None) {
            Ok(()) => Err("a stranger is isolated".into()),
            Err(status) => self.check(&Got::failed(status)).await,
        }
    }

    /// Nothing yet, a breaker that changes by itself, and the end.
    async fn breaker_changes(&self) -> Verdict {
        let config = ServiceConfig::parse(&self.text("service_config").unwrap_or_default()).or_else(fail)?;
        let client = self.settings.builder(&self.settings.endpoint).service_config(config);
        let client = client.build().await.or_else(fail)?;
        let (before, method, options) = (client.breakers(), self.method(), self.options()?);
        let calls = async {
            for _ in 0..self.number("count").unwrap_or(0) {
                let _ = client.call_with(&method, self.message()?, options.clone()).await;
            }
            Ok::<_, String>(())
        };
        let (changed, made) = tokio::join!(client.breakers_other_than(&before), calls);
        made?;
        let changed = changed.or_else(fail)?;
        let of_method = changed.iter().filter(|one| one.method.as_deref() == Some(&method));
        let states: Vec<_> = of_method.map(|one| one.state.name()).collect();
        let (further, ()) = tokio::join!(client.breakers_other_than(&changed), client.close());
        let ended = further.as_ref().is_err_and(|status| status.reason() == Reason::CLIENT_CLOSED);
        if before.is_empty() && ended && states == [self.text("state").unwrap_or_default()] {
            Ok(String::new())
        } else {
            Err(format!("before {before:?}, {states:?}, then {further:?}"))
        }
    }

    async fn metrics(&self) -> Verdict {
        let client = self.own_client().await?;
        for _ in 0..self.number("count").unwrap_or(0) {
            let _ = client.call_with(&self.method(), self.message()?, self.options()?).await;
        }
        let (text, line) = (client.metrics().prometheus(), self.text("line").unwrap_or_default());
        client.close().await;
        if text.lines().any(|one| one == line) {
            Ok(String::new())
        } else {
            Err(format!("no {line} in {text}"))
        }
    }

    async fn keepalive(&self) -> Verdict {
        let mut client = self.settings.builder(&self.settings.endpoint);
        if let Some(ms) = self.number("keepalive_ms") {
            client = client.keepalive_ms(ms);
        }
        if let Some(ms) = self.number("keepalive_timeout_ms") {
            client = client.keepalive_timeout_ms(ms);
        }
        if let Some(ms) = self.number("keepalive_idle_ms") {
            client = client.keepalive_idle_ms(ms);
        }
        let got = match client.build().await {
            Ok(client) => {
                client.call("/echo", "x").await.map_or_else(Got::failed, |reply| Got::from(Ok(reply)))
            }
            Err(status) => Got::failed(status),
        };
        self.check(&got).await
    }

    async fn own_client(&self) -> Result<Client, String> {
        self.settings.connect(&self.settings.endpoint).await.or_else(fail)
    }

    /// Ready, another while the server goes, and the end.
    async fn connectivity(&self) -> Verdict {
        let client = self.private().await?;
        let ready = client.connectivity();
        if ready != Connectivity::Ready {
            return Err(format!("connected, and {ready:?}"));
        }
        let how = self.text("how").unwrap_or_default();
        let (without, _) =
            tokio::join!(client.connectivity_other_than(ready), client.call("/test/shutdown", how));
        let mut seen = without;
        let changes = async {
            while seen != Connectivity::Shutdown {
                seen = client.connectivity_other_than(seen).await;
            }
        };
        tokio::join!(changes, client.close());
        match client.connectivity() {
            Connectivity::Shutdown => Ok(format!("{without:?} in between")),
            other => Err(format!("closed, and {other:?}")),
        }
    }

    async fn call_closed(&self) -> Verdict {
        let client = self.own_client().await?;
        client.close().await;
        let got = client.call_with(&self.method(), self.message()?, self.options()?).await;
        self.check(&got.into()).await
    }

    async fn double_close(&self) -> Verdict {
        let client = self.own_client().await?;
        client.close().await;
        client.close().await;
        Ok(String::new())
    }

    async fn after_shutdown(&self) -> Verdict {
        let client = self.private().await?;
        client.request("here").await.or_else(fail)?;
        let _ = client.call("/test/shutdown", "now").await;
        for _ in 0..100 {
            let got = client.call_with(&self.method(), self.message()?, self.options()?).await;
            if let Err(status) = got {
                return self.check(&Got::failed(status)).await;
            }
        }
        Err("100 calls succeeded after the shutdown".into())
    }
}

impl Case<'_> {
    /// One of several servers is killed among many calls, 50 at a time, that may be executed twice.
    async fn failover(&self) -> Verdict {
        let client = self.settings.connect(&self.text("endpoint").unwrap_or_default()).await.or_else(fail)?;
        let count = self.number("count").unwrap_or(0);
        let mut failures = Vec::new();
        for first in (0..count).step_by(50) {
            let call = |number: u64| {
                let options = CallOptions::new().with_idempotent(true);
                client.call_with("/echo", number.to_string(), options)
            };
            let dies = async {
                if first == count / 4 / 50 * 50 {
                    let _ = client.call("/test/die", "").await;
                }
            };
            let (answers, ()) = tokio::join!(all((first..first + 50).map(call)), dies);
            for (number, answer) in (first..).zip(answers) {
                match answer {
                    Ok(answer) if answer.message == number.to_string() => {}
                    Ok(answer) => failures.push(format!("call {number}: {:?}", answer.message)),
                    Err(status) => failures.push(format!("call {number}: {status}\n{}", status.timeline())),
                }
            }
        }
        client.close().await;
        match failures.first() {
            Some(first) => Err(format!("{} of {count} failed: {first}", failures.len())),
            None => Ok(String::new()),
        }
    }

    /// The outcomes of its calls, and the core's trace of them.
    async fn script(&self) -> Verdict {
        let endpoint = self.text("endpoint").unwrap_or_default();
        let client = Client::builder().endpoint(endpoint).service_config(self.service_config()?);
        let client = client.build().await.or_else(fail)?;
        let mut trace = String::new();
        let steps = self.text("steps").unwrap_or_default();
        for step in steps.split(';').map(str::trim) {
            let words: Vec<&str> = step.split(' ').collect();
            let (count, together, words) = match words[0].split_at_checked(words[0].len() - 1) {
                Some((count, kind @ ("x" | "&"))) => {
                    (count.parse().map_err(|_| format!("no count: {step}"))?, kind == "&", &words[1..])
                }
                _ => (1, false, &words[..]),
            };
            if together {
                client.call(&format!("/script/together/{count}"), "").await.or_else(fail)?;
            }
            let call = || client.call_with(words[0], "", step_options(&words[1..]));
            let mut outcomes = Vec::new();
            if together {
                outcomes = all((0..count).map(|_| call())).await;
            } else {
                for _ in 0..count {
                    outcomes.push(call().await);
                }
            }
            for outcome in outcomes.into_iter().filter(|_| !words[0].starts_with("/script/")) {
                trace += &match outcome {
                    Ok(response) => format!("OK {}\n", String::from_utf8_lossy(&response.message)),
                    Err(status) => {
                        let timeline = status.timeline().lines().map(|line| format!("  {line}\n"));
                        format!("{} {}\n", status.code().name(), status.reason())
                            + &timeline.collect::<String>()
                    }
                };
            }
        }
        let steps = client.call("/script/trace", "").await.or_else(fail)?.message;
        client.close().await;
        Ok(trace + &String::from_utf8_lossy(&steps))
    }
}

/// Begins them in order, and waits for all.
async fn all<T: Unpin>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut waiting: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|cx| {
        for (future, output) in waiting.iter_mut().filter(|(_, output)| output.is_none()) {
            if let Poll::Ready(ready) = future.as_mut().poll(cx) {
                *output = Some(ready);
            }
        }
        match waiting.iter().all(|(_, output)| output.is_some()) {
            true => Poll::Ready(waiting.iter_mut().filter_map(|(_, output)| output.take()).collect()),
            false => Poll::Pending,
        }
    })
    .await
}

fn step_options(words: &[&str]) -> CallOptions {
    words.iter().fold(CallOptions::new(), |options, word| match word.split_once('=') {
        Some(("timeout", ms)) => options.with_timeout(Duration::from_millis(ms.parse().unwrap_or(1))),
        _ => options.with_idempotent(*word == "idempotent"),
    })
}

/// All that is logged, as text.
#[derive(Default)]
struct Heard(Mutex<String>);

impl Log for Heard {
    fn enabled(&self, _: Level) -> bool {
        true
    }

    fn log(&self, record: Record) {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = writeln!(heard, "{record:?}");
    }
}

/// How the tokens of one case are made.
struct TokenMaker {
    token: String,
    source: String,
    asked: AtomicU64,
}

impl TokenSource for TokenMaker {
    fn token(&self) -> BoxFuture<'_, Result<Token, Status>> {
        Box::pin(async {
            let asked = self.asked.fetch_add(1, SeqCst) + 1;
            match self.source.as_str() {
                "silent" => std::future::pending().await,
                "once" if asked > 1 => Err(Status::new(Code::Unavailable, "no token today")),
                "fails" => Err(Status::new(Code::Unavailable, "no token today")),
                _ => Ok(Token::new(self.token.clone())),
            }
        })
    }
}

fn from_hex(text: &str) -> Result<Bytes, String> {
    let digits = text.as_bytes();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    digits.chunks(2).map(|pair| byte(pair).ok_or_else(|| format!("{text:?} is not hexadecimal"))).collect()
}

fn entries(text: &str) -> Result<Metadata, String> {
    let mut metadata = Metadata::new();
    for entry in text.split('&').filter(|entry| !entry.is_empty()) {
        let (key, value) = entry.split_once('=').ok_or_else(|| format!("{entry:?} has no ="))?;
        let value =
            if key.ends_with("-bin") { from_hex(value)? } else { Bytes::copy_from_slice(value.as_bytes()) };
        metadata.insert(key, value).map_err(|error| error.to_string())?;
    }
    Ok(metadata)
}
