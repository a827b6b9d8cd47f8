//! `debug call`: one call, and each of its steps as it happens. `debug connect`: a connection's steps, what the server says of itself, and
//! round trips.

#[cfg(test)]
mod page;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use valkyrie_sdk::{
    CallOptions, Class, DEFAULT_METHOD, Endpoint, Event, Limits, Observer, Reason, Response, Status, Step,
    Time, policy::ServiceConfig,
};

use crate::{
    output::{Failure, escape, json_bytes, json_metadata, json_status, print},
    send::{Access, entry, is_secret, metadata_of, text_of, us},
};

/// How much of an answer is shown.
const SHOWN: usize = 200;
/// How many round trips are measured.
const SAMPLES: u32 = 5;
/// What a round trip is measured with.
const CHECK: &str = "/valkyrie.Health/Check";

/// Make one call and print its steps as they happen, and why it ended as it did.
///
/// Makes one call and prints what happens to it: names, connections, attempts, waits, breakers, and at its end why, and what helps.
#[derive(clap::Args)]
pub(crate) struct Call {
    #[command(flatten)]
    place: Place,
    /// The method to call.
    #[arg(default_value = DEFAULT_METHOD)]
    method: String,
    /// The message.
    #[arg(default_value = "", hide_default_value = true, allow_hyphen_values = true)]
    message: String,
    /// Metadata to send, repeatable. The value of a key that ends in -bin is hexadecimal.
    #[arg(long, value_name = "KEY=VALUE", value_parser = entry)]
    metadata: Vec<(String, Bytes)>,
    /// How calls are retried, held back and shared among servers, a file in JSON (docs/policies.md).
    #[arg(long, value_name = "FILE", value_parser = config_of)]
    service_config: Option<ServiceConfig>,
    /// The call may be executed twice: it is tried again as the service config says.
    #[arg(long)]
    idempotent: bool,
}

/// Connect, and print the handshake, the server's settings and round trips, or why it fails.
///
/// Connects and prints what happens: the name's addresses, dials, TLS, HELLO, the server's settings, and how long round trips take; and if it
/// cannot, why, and what helps. The round trips are calls of /valkyrie.Health/Check; a server without that method answers as fast.
#[derive(clap::Args)]
pub(crate) struct Connect {
    #[command(flatten)]
    place: Place,
    /// How many round trips to measure.
    #[arg(long, default_value_t = SAMPLES, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    samples: u32,
}

/// Whom to look at, and how to say what is seen.
#[derive(clap::Args)]
struct Place {
    /// The server, or several with commas between them, as --endpoint of `send`. script://… are servers that fail as they are told
    /// to (docs/policies.md).
    endpoint: String,
    #[command(flatten)]
    access: Access,
    /// Print each step, and in the end the outcome, as a JSON object on a line of its own.
    #[arg(long)]
    json: bool,
}

fn config_of(path: &str) -> Result<ServiceConfig, String> {
    ServiceConfig::parse(&text_of(path)?).map_err(|status| status.message().to_owned())
}

impl Call {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        tokio::select! {
            result = self.call() => result,
            _ = tokio::signal::ctrl_c() => Err(Failure::Interrupted),
        }
    }

    async fn call(&self) -> Result<(), Failure> {
        self.place.resolve().await?;
        let (teller, mut steps) = Teller::new(false);
        let builder = self.place.access.builder(&self.place.endpoint).observer(teller.clone());
        let builder = builder.service_config(self.service_config.clone().unwrap_or_default());
        let client = match builder.connect_lazily() {
            Ok(client) => client,
            Err(status) => return self.place.conclude(Err(status), Way::Nowhere, &self.method),
        };
        let options = CallOptions::new().with_metadata(metadata_of(&self.metadata)?);
        let message = Bytes::from(self.message.clone().into_bytes());
        let call = client.call_with(&self.method, message, options.with_idempotent(self.idempotent));
        let result = self.place.follow(call, &mut steps).await?;
        self.place.conclude(result, teller.way(), &self.method)
    }
}

/// `debug connect`, for `interactive`.
pub(crate) async fn connect(endpoint: &str, access: &Access) -> Result<(), Failure> {
    let place = Place { endpoint: endpoint.to_owned(), access: access.clone(), json: false };
    Connect { place, samples: SAMPLES }.run().await
}

impl Connect {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        tokio::select! {
            result = self.connect() => result,
            _ = tokio::signal::ctrl_c() => Err(Failure::Interrupted),
        }
    }

    async fn connect(&self) -> Result<(), Failure> {
        self.place.resolve().await?;
        let (teller, mut steps) = Teller::new(true);
        let builder = self.place.access.builder(&self.place.endpoint).observer(teller.clone());
        let client = match builder.connect_lazily() {
            Ok(client) => client,
            Err(status) => return self.place.conclude(Err(status), Way::Nowhere, CHECK),
        };
        // The first one brings the connection and HELLO with it, and is no round trip of its own.
        let mut trips = Vec::new();
        for number in 0..=self.samples {
            let began = Instant::now();
            let call = client.call(CHECK, Bytes::new());
            let result = self.place.follow(call, &mut steps).await?;
            match result {
                // The server's word, whatever it is: it was reached, and does not mind who calls.
                Ok(_) => {}
                Err(status)
                    if [Class::Application, Class::Caller].contains(&status.class())
                        && teller.greeted().is_some()
                        && status.reason() != Reason::DEADLINE_EXCEEDED => {}
                Err(status) => return self.place.conclude(Err(status), teller.way(), CHECK),
            }
            if number > 0 {
                trips.push(began.elapsed());
            }
        }
        if let Some(limits) = teller.greeted() {
            self.place.print(&settings(&limits))?;
        }
        trips.sort_unstable();
        let [least, middle, most] = [trips[0], trips[trips.len() / 2], trips[trips.len() - 1]];
        let count = trips.len();
        self.place.print(&Line {
            at: None,
            text: format!("a round trip takes {}, at least {}, at most {}, of {count}", ms(middle), ms(least), ms(most)),
            value: json!({
                "step": "round_trips", "count": count, "least_us": us(least), "median_us": us(middle), "most_us": us(most),
            }),
        })?;
        let text = "OK: a Valkyrie server answers there".to_owned();
        self.place.print(&Line { at: None, text, value: json!({ "step": "outcome", "code": "OK" }) })
    }
}

/// What a server is ready to receive.
fn settings(limits: &Limits) -> Line {
    let text = format!(
        "it takes frames of {} bytes, messages of {}, metadata of {}; {} calls at once; {} bytes ahead of a stream's reader, {} ahead of all",
        limits.max_frame_bytes,
        limits.max_message_bytes,
        limits.max_metadata_bytes,
        limits.max_concurrent_streams,
        limits.stream_window_bytes,
        limits.connection_window_bytes,
    );
    let value = json!({
        "step": "settings", "max_frame_bytes": limits.max_frame_bytes, "max_message_bytes": limits.max_message_bytes,
        "max_metadata_bytes": limits.max_metadata_bytes, "max_concurrent_streams": limits.max_concurrent_streams,
        "stream_window_bytes": limits.stream_window_bytes, "connection_window_bytes": limits.connection_window_bytes,
    });
    Line { at: None, text, value }
}

impl Place {
    /// Says what the servers' names stand for, before anything is timed. What cannot be found out is the call's to say.
    async fn resolve(&self) -> Result<(), Failure> {
        for (endpoint, _) in Endpoint::parse_all(&self.endpoint).unwrap_or_default() {
            let is_name =
                endpoint.host().parse::<std::net::IpAddr>().is_err() && !endpoint.host().starts_with('[');
            if !is_name || !["tcp", "tls", "quic", "ws", "wss"].contains(&endpoint.scheme()) {
                continue;
            }
            let (began, host) = (Instant::now(), endpoint.host().to_owned());
            let limit = Duration::from_millis(self.access.timeout_ms());
            let found = tokio::time::timeout(limit, tokio::net::lookup_host((host.as_str(), 0))).await;
            let took = began.elapsed();
            let (text, value) = match found {
                Ok(Ok(found)) => {
                    let mut found: Vec<_> = found.map(|address| address.ip().to_string()).collect();
                    found.dedup();
                    let text = format!("{host} is {} ({})", found.join(", "), ms(took));
                    (
                        text,
                        json!({ "step": "resolved", "name": host, "addresses": found, "took_us": us(took) }),
                    )
                }
                Ok(Err(error)) => {
                    let text = format!("{host} has no address: {error} ({})", ms(took));
                    (text, json!({ "step": "not_resolved", "name": host, "error": error.to_string() }))
                }
                Err(_) => {
                    let text = format!("{host} was not found within {}", ms(limit));
                    let value = json!({ "step": "not_resolved", "name": host, "error": text });
                    (text, value)
                }
            };
            self.print(&Line { at: None, text, value })?;
        }
        Ok(())
    }

    /// What becomes of a call, with its steps printed as they happen.
    async fn follow(
        &self,
        call: impl Future<Output = Result<Response, Status>>,
        steps: &mut UnboundedReceiver<Line>,
    ) -> Result<Result<Response, Status>, Failure> {
        let mut call = std::pin::pin!(call);
        let result = loop {
            tokio::select! {
                biased;
                Some(line) = steps.recv() => self.print(&line)?,
                result = &mut call => break result,
            }
        };
        while let Ok(line) = steps.try_recv() {
            self.print(&line)?;
        }
        Ok(result)
    }

    /// Prints the outcome, and what helps.
    fn conclude(&self, result: Result<Response, Status>, way: Way, method: &str) -> Result<(), Failure> {
        let status = match result {
            Ok(response) => {
                let value = json!({
                    "step": "outcome", "code": "OK", "message": json_bytes(&response.message),
                    "metadata": discreet(json_metadata(&response.metadata)),
                    "trailers": discreet(json_metadata(&response.trailers)),
                });
                let shown: String = String::from_utf8_lossy(&response.message).chars().take(SHOWN).collect();
                let text = format!("OK: an answer of {} bytes: {shown}", response.message.len());
                return self.print(&Line { at: None, text, value });
            }
            Err(status) => status,
        };
        let why = explain(&status, way, method);
        let mut value = json_status(&status);
        for key in ["metadata", "trailers"] {
            value[key] = discreet(value[key].take());
        }
        value["step"] = "outcome".into();
        value["explanation"] = why.as_str().into();
        let text = format!("{} ({})\n{why}", status, status.reason());
        self.print(&Line { at: None, text, value })?;
        Err(Failure::Reported(status.class()))
    }

    fn print(&self, line: &Line) -> Result<(), Failure> {
        let text = match (self.json, line.at) {
            (true, _) => line.value.to_string(),
            (false, Some(at)) => format!("{:>12}  {}", ms(at), escape(&line.text)),
            (false, None) => escape(&line.text),
        };
        print(format!("{text}\n").as_bytes())
    }
}

/// Metadata in JSON without what is nobody's to see: what `debug` says is copied into tickets.
fn discreet(mut metadata: Value) -> Value {
    for entry in metadata.as_array_mut().into_iter().flatten() {
        let key = entry[0].as_str().unwrap_or("");
        if is_secret(key) {
            entry[1] = "[hidden]".into();
        }
    }
    metadata
}

/// One step: since when the call began, for people, and for programs.
struct Line {
    at: Option<Duration>,
    text: String,
    value: Value,
}

/// Hands the steps on, which are told with the client's locks held.
struct Teller {
    told: UnboundedSender<Line>,
    /// Of connections only, not of calls.
    connections: bool,
    state: Mutex<Timed>,
}

/// When what goes on began.
#[derive(Default)]
struct Timed {
    call: Option<Time>,
    attempts: HashMap<u64, Time>,
    dials: HashMap<String, Time>,
    /// An attempt went out.
    sent: bool,
    /// What the server said in its HELLO.
    greeted: Option<Limits>,
}

impl Teller {
    fn new(connections: bool) -> (Arc<Self>, UnboundedReceiver<Line>) {
        let (told, steps) = unbounded_channel();
        (Arc::new(Self { told, connections, state: Mutex::default() }), steps)
    }

    fn greeted(&self) -> Option<Limits> {
        self.timed(|timed| timed.greeted)
    }

    fn way(&self) -> Way {
        self.timed(|timed| match (timed.sent, timed.greeted) {
            (false, _) => Way::Nowhere,
            (true, None) => Way::Connected,
            (true, Some(_)) => Way::Greeted,
        })
    }

    fn timed<T>(&self, use_it: impl FnOnce(&mut Timed) -> T) -> T {
        use_it(&mut self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

impl Observer for Teller {
    fn note(&self, event: &Event<'_>) {
        let Some((began, text, mut value)) = self.timed(|timed| {
            let began = *timed.call.get_or_insert(event.at);
            timed.tell(event).map(|(text, value)| (began, text, value))
        }) else {
            return;
        };
        let at = event.at.since(began);
        value["at_us"] = us(at).into();
        use Step::{Connected, Dial, Dialled, Greeted, Lost};
        if self.connections
            && !matches!(
                event.step,
                Dial { .. } | Connected { .. } | Greeted { .. } | Dialled { .. } | Lost { .. }
            )
        {
            return;
        }
        // Whoever read it has gone.
        let _ = self.told.send(Line { at: Some(at), text, value });
    }
}

impl Timed {
    /// A step in words and in JSON.
    fn tell(&mut self, event: &Event<'_>) -> Option<(String, Value)> {
        let at = event.at;
        let since = |began: Option<Time>| began.map_or(Duration::ZERO, |began| at.since(began));
        Some(match event.step {
            Step::Call { method, idempotent, deadline, .. } => {
                let limit = deadline.map(|deadline| deadline.since(at));
                let until = limit
                    .map_or(", without a deadline".to_owned(), |limit| format!(", within {}", ms(limit)));
                let kind = if idempotent { "idempotent call" } else { "call" };
                let value = json!({
                    "step": "call", "method": method, "idempotent": idempotent, "timeout_us": limit.map(us)
                });
                (format!("{kind} of {method}{until}"), value)
            }
            Step::Waits => ("waits for a connection".to_owned(), json!({ "step": "waits" })),
            Step::Dial { server, .. } => {
                let server = server.to_string();
                self.dials.insert(server.clone(), at);
                (format!("dials {server}"), json!({ "step": "dial", "server": server }))
            }
            Step::Connected { server, .. } => {
                let server = server.to_string();
                let took = since(self.dials.get(&server).copied());
                let with = match server.split(':').next() {
                    Some("tls" | "wss" | "quic") => ", with TLS",
                    _ => "",
                };
                let text = format!("connected to {server} in {}{with}", ms(took));
                (text, json!({ "step": "connected", "server": server, "took_us": us(took) }))
            }
            Step::Greeted { server, version, limits, .. } => {
                self.greeted = Some(*limits);
                let server = server.to_string();
                let took = since(self.dials.get(&server).copied());
                let (bytes, streams) = (limits.max_message_bytes, limits.max_concurrent_streams);
                let text = format!(
                    "{server} says HELLO: version {version}, messages up to {bytes} bytes, {streams} calls at once"
                );
                let value = json!({
                    "step": "hello", "server": server, "version": version, "max_message_bytes": bytes,
                    "max_concurrent_streams": streams, "took_us": us(took),
                });
                (text, value)
            }
            // What could be made was told.
            Step::Dialled { failure: None, .. } => return None,
            Step::Dialled { server, failure: Some(status), .. } => {
                let server = server.to_string();
                let took = since(self.dials.get(&server).copied());
                let text =
                    format!("no connection after {}: {} ({})", ms(took), status.message(), status.reason());
                let value = json!({
                    "step": "not_connected", "server": server, "took_us": us(took), "reason": status.reason().name(),
                    "message": status.message(),
                });
                (text, value)
            }
            Step::Lost { server, failure, .. } => {
                let (server, why) = (server.to_string(), failure.map_or("", |status| status.message()));
                (
                    format!("the connection to {server} is over: {why}"),
                    json!({ "step": "lost", "server": server, "message": why }),
                )
            }
            Step::Attempt { number, server, .. } => {
                self.attempts.insert(number, at);
                self.sent = true;
                let server = server.to_string();
                (
                    format!("attempt {number} goes to {server}"),
                    json!({ "step": "attempt", "number": number, "server": server }),
                )
            }
            Step::AttemptEnded { number, failure, .. } => {
                let began = self.attempts.get(&number).copied();
                let (took, outcome) = (since(began), outcome(failure));
                let text = match began {
                    Some(_) => format!("attempt {number}: {outcome}, after {}", ms(took)),
                    None => format!("attempt {number} did not go out: {outcome}"),
                };
                (
                    text,
                    json!({ "step": "attempt_ended", "number": number, "outcome": outcome, "took_us": us(took) }),
                )
            }
            Step::Retry { at: next, transparent, .. } => {
                let wait = next.since(at);
                let text = match transparent {
                    true => format!("is sent again in {}: no server has processed it", ms(wait)),
                    false => format!("is tried again in {}", ms(wait)),
                };
                (text, json!({ "step": "retry", "wait_us": us(wait), "transparent": transparent }))
            }
            Step::NoRetry { why, .. } => {
                let text = format!("is not tried again: {}", why.name().replace('_', " "));
                (text, json!({ "step": "no_retry", "why": why.name() }))
            }
            Step::Breaker { server, method, edge, .. } => {
                let (server, from, to) = (server.to_string(), edge.from.name(), edge.to.name());
                let text = format!("the breaker of {server} for {method} was {from} and is {to}");
                (
                    text,
                    json!({ "step": "breaker", "server": server, "method": method, "from": from, "to": to }),
                )
            }
            Step::Ended { failure, .. } => {
                let (took, outcome) = (since(self.call), outcome(failure));
                (
                    format!("the call ends: {outcome}"),
                    json!({ "step": "ended", "outcome": outcome, "took_us": us(took) }),
                )
            }
            _ => return None,
        })
    }
}

fn outcome(failure: Option<&Status>) -> String {
    match failure {
        None => "OK".to_owned(),
        Some(status) if status.reason() == Reason::NONE => status.code().name().to_owned(),
        Some(status) => format!("{} {}", status.code().name(), status.reason()),
    }
}

fn ms(time: Duration) -> String {
    format!("{:.3} ms", time.as_secs_f64() * 1_000.0)
}

/// How far a call came.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Nowhere,
    /// To whoever takes connections there.
    Connected,
    /// To a server that has said HELLO.
    Greeted,
}

/// Why a call failed, and what helps, in one sentence.
fn explain(status: &Status, way: Way, method: &str) -> String {
    let text = match status.reason() {
        Reason::NAME_RESOLUTION => {
            "The server's name has no address: check how it is spelt, and this machine's DNS."
        }
        Reason::CONNECT_FAILED => {
            "Nobody takes connections there: start the server, or check the host, the port, and what a firewall lets through."
        }
        Reason::CONNECT_TIMEOUT => {
            "Nothing came back from there: check the address; a firewall that drops what it does not like looks like this, too."
        }
        Reason::DEADLINE_EXCEEDED if way == Way::Connected => {
            "Something takes connections there and says nothing: check the port, whether the endpoint is to begin with tls://, and whether the server stands still."
        }
        Reason::DEADLINE_EXCEEDED if way == Way::Greeted => {
            "The server has the call and did not answer in time: give it longer with --timeout-ms, or see what its handler waits for."
        }
        Reason::DEADLINE_EXCEEDED => {
            "The call never left, as there was no connection in time: see above why, or give it longer with --timeout-ms."
        }
        Reason::BAD_MAGIC | Reason::HANDSHAKE_TIMEOUT | Reason::MALFORMED_RECORD => {
            "Something answers there that does not speak Valkyrie: check the port, and whether the endpoint is to begin with ws:// or tls://."
        }
        Reason::TLS_NOT_SPOKEN => {
            "The server does not speak TLS there: use tcp:// or ws://, or the port that has TLS."
        }
        Reason::TLS_REQUIRED | Reason::SECURITY_TOO_LOW => {
            "The connection is not protected enough: use tls://, wss:// or quic://, or --sealed, with --trusted-certificates."
        }
        Reason::CERTIFICATE_NAME => {
            "The server's certificate is for another name: connect by that name, or say it with --server-name."
        }
        Reason::CERTIFICATE_UNTRUSTED => {
            "Nobody that is trusted vouches for the server's certificate: give its authority with --trusted-certificates."
        }
        Reason::CERTIFICATE_EXPIRED | Reason::CERTIFICATE_NOT_YET_VALID => {
            "The server's certificate is not valid now: it needs a new one, or one of the two clocks is wrong."
        }
        Reason::CLIENT_CERTIFICATE_REQUIRED => {
            "The server wants to see a certificate: show one with --client-certificate and --client-key."
        }
        Reason::CLIENT_CERTIFICATE_REFUSED => {
            "The server does not take the certificate that was shown: it must come from an authority that it trusts."
        }
        Reason::UNAUTHENTICATED => {
            "The server wants to know who calls: give a token with --token-file or VALKYRIE_TOKEN."
        }
        Reason::CREDENTIALS_REFUSED => {
            "The server does not take the token: check whom it is from, for which server it is, and whether it is over."
        }
        Reason::CREDENTIALS_EXPIRED => "The token is over: get a new one.",
        Reason::INSECURE_CREDENTIALS => {
            "A token is not sent unencrypted beyond this machine: use tls://, wss:// or quic://, or --sealed."
        }
        Reason::PERMISSION_DENIED => {
            "The server knows who calls and does not allow it: its policy is to name the caller, or open_to_all is to be true."
        }
        Reason::UNKNOWN_METHOD => {
            return format!("The server has no method {method}: check how it is spelt.");
        }
        Reason::BREAKER_OPEN => {
            "The client's breaker is open, as the server failed too often: it tries again by itself after some seconds."
        }
        Reason::THROTTLED => "The client holds calls back, as its servers refuse too many: ask less often.",
        Reason::OVERLOADED | Reason::QUEUE_FULL | Reason::RATE_LIMITED | Reason::ENHANCE_CALM => {
            "The server takes no more now: try again later, and call less often."
        }
        Reason::CONNECTION_LOST => {
            "The connection ended while the call was under way: the server stopped, or something between cut it; its log says which."
        }
        Reason::VERSION_MISMATCH => {
            "The server speaks no version of the protocol that this program does: update the older of the two."
        }
        Reason::HANDLER_PANICKED => "The server's handler panicked: its log says where.",
        _ => match status.class() {
            Class::Application => "This is the server's own answer: its handler decided so.",
            Class::Caller => "The call itself is wrong: the message says what to change.",
            Class::Auth => {
                "The two sides do not trust each other: the message says whose certificate or token it is about."
            }
            Class::Transient => "This may pass: try again, and look at the server if it does not.",
            Class::Server => "The server failed at it: its log says more.",
            Class::Protocol => {
                "What came is not what the protocol allows: check that it is a Valkyrie server, and nothing between changes bytes."
            }
        },
    };
    text.to_owned()
}
