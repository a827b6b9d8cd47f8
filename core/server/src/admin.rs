//! The admin port: what probes, scrapers and people at night ask, over HTTP/1.1. It asks nobody who they are, so it is this
//! machine's unless the configuration says otherwise. It tells, and it has the server read its own files again, which the server
//! does by itself when they change.
//!
//! A connection has one request and little time, so that nobody can hold the port for long. It answers while the server
//! drains, too, until the process ends.

use std::{convert::Infallible, io, net::IpAddr, sync::Arc, time::Duration};

use hyper::{
    Method, Request, Response, StatusCode, Version,
    body::{Body, Incoming},
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderValue, ORIGIN, X_CONTENT_TYPE_OPTIONS},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
#[cfg(unix)]
use tokio::net::UnixListener;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
    sync::{Semaphore, mpsc, oneshot},
    time::timeout,
};
use tracing::warn;
use valkyrie_sdk::{Endpoint, PrometheusText, Reason, Status};

use crate::{
    Asked, Failure,
    handlers::{self, NotReady, State},
};

/// Connections at once; further ones are closed as they come.
const MAX_CONNECTIONS: usize = 64;
/// How long a connection has for its request and the answer, and then to take the answer and go.
const TIME: Duration = Duration::from_secs(5);
const TIME_TO_GO: Duration = Duration::from_secs(1);
/// The longest head of a request, and its most fields.
const MAX_HEAD_BYTES: usize = 16 << 10;
const MAX_FIELDS: usize = 64;
/// Connections that `/debug/connections` lists.
const MAX_LISTED: usize = 1_000;
/// How long accepting rests after an error, such as "too many open files".
const ACCEPT_REST: Duration = Duration::from_millis(100);
/// What is read at once.
const PIECE: usize = 4 << 10;

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
/// The exposition format that [`PrometheusText`] writes.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The admin port, bound.
pub(crate) struct Admin {
    listener: Listener,
    address: String,
    /// Whether names of the host are anybody's: a page that a browser of this machine shows may give its own name this
    /// machine's address, and read what is answered (DNS rebinding).
    any_host: bool,
}

enum Listener {
    Tcp(TcpListener),
    #[cfg(unix)]
    Unix(UnixListener, std::path::PathBuf),
}

trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

impl Listener {
    /// The connection, and whether it comes from this machine. Dropping the future loses no connection.
    async fn accept(&self) -> io::Result<(Box<dyn Socket>, bool)> {
        Ok(match self {
            Self::Tcp(listener) => {
                let (socket, peer) = listener.accept().await?;
                (Box::new(socket), peer.ip().to_canonical().is_loopback())
            }
            #[cfg(unix)]
            Self::Unix(listener, _) => (Box::new(listener.accept().await?.0), true),
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        #[cfg(unix)]
        if let Self::Unix(_, path) = self {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Admin {
    /// Binds the address that [`Config::admin`] gave.
    ///
    /// # Errors
    /// The system's reason.
    pub(crate) async fn bind(endpoint: Endpoint) -> Result<Self, Failure> {
        let failed = |error: io::Error| {
            let message = format!("cannot listen on {endpoint}, the address of admin: {error}");
            Failure::Other(Status::from_reason(Reason::BIND_FAILED, message))
        };
        #[cfg(unix)]
        if endpoint.scheme() == "unix" {
            let path = std::path::PathBuf::from(endpoint.address());
            let listener = valkyrie_sdk::shared::bind_unix(&path).and_then(UnixListener::from_std);
            let listener = listener.map_err(failed)?;
            return Ok(Self {
                listener: Listener::Unix(listener, path),
                address: endpoint.to_string(),
                any_host: true,
            });
        }
        let listener = TcpListener::bind(endpoint.authority()).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let any_host = !address.ip().is_loopback();
        Ok(Self { listener: Listener::Tcp(listener), address: format!("http://{address}"), any_host })
    }

    /// Where it is, with the port that the system chose.
    pub(crate) fn address(&self) -> String {
        self.address.clone()
    }

    /// Answers whoever comes, for ever.
    pub(crate) async fn serve(self, state: State, reloads: mpsc::Sender<Asked>) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut failing = false;
        loop {
            let (socket, from_here) = match self.listener.accept().await {
                Ok(came) => came,
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        warn!(%error, "the admin port cannot accept a connection; it goes on trying");
                    }
                    tokio::time::sleep(ACCEPT_REST).await;
                    continue;
                }
            };
            failing = false;
            // Dropped, where there is none.
            let Ok(place) = places.clone().try_acquire_owned() else { continue };
            let (state, reloads) = (state.clone(), reloads.clone());
            let asks = Asks { any_host: self.any_host, from_here };
            tokio::spawn(async move {
                converse(socket, &state, &reloads, asks).await;
                drop(place);
            });
        }
    }
}

/// Who asks.
#[derive(Clone, Copy)]
struct Asks {
    /// They may call this machine by any name.
    any_host: bool,
    /// They are on this machine.
    from_here: bool,
}

/// One request, and its answer.
async fn converse(mut socket: Box<dyn Socket>, state: &State, reloads: &mpsc::Sender<Asked>, asks: Asks) {
    let service = service_fn(async |request| {
        let answer = match answer(&request, state, asks) {
            Answer::Now(answer) => answer,
            Answer::Reloaded => reload(reloads).await,
        };
        Ok::<_, Infallible>(answer)
    });
    let served = http1::Builder::new()
        .keep_alive(false)
        .half_close(true)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_FIELDS)
        .serve_connection(TokioIo::new(&mut socket), service);
    if timeout(TIME, served).await.is_err() {
        return;
    }
    // A socket that is closed with something unread is reset, and the answer may be lost with it.
    let unread = async {
        let _ = socket.shutdown().await;
        let mut piece = [0; PIECE];
        while matches!(socket.read(&mut piece).await, Ok(1..)) {}
    };
    let _ = timeout(TIME_TO_GO, unread).await;
}

enum Answer {
    Now(Response<String>),
    /// What becomes of a reload.
    Reloaded,
}

fn answer(request: &Request<Incoming>, state: &State, asks: Asks) -> Answer {
    let refused = |status, why: &str| Answer::Now(said(status, TEXT, why));
    if let Err((status, why)) = check_host(request, asks.any_host) {
        return refused(status, why);
    }
    let answers: Option<fn(&State) -> Response<String>> = match request.uri().path() {
        "/healthz" => Some(|_| said(StatusCode::OK, TEXT, "alive\n")),
        "/readyz" => Some(|state| match state.ready() {
            Ok(()) => said(StatusCode::OK, TEXT, "ready\n"),
            Err(why) => not_ready(&why),
        }),
        "/metrics" => Some(metrics),
        "/debug/connections" => Some(connections),
        "/reload" => None,
        _ => {
            let there =
                "there are /healthz, /readyz, /metrics and /debug/connections, and /reload to POST to\n";
            return refused(StatusCode::NOT_FOUND, there);
        }
    };
    let (allowed, methods, only): (&[Method], _, _) = match answers {
        Some(_) => (&[Method::GET, Method::HEAD], "GET, HEAD", "only GET and HEAD\n"),
        None => (&[Method::POST], "POST", "only POST\n"),
    };
    if !allowed.contains(request.method()) {
        let mut refused = said(StatusCode::METHOD_NOT_ALLOWED, TEXT, only);
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
        return Answer::Now(refused);
    }
    if !request.body().is_end_stream() {
        return refused(StatusCode::PAYLOAD_TOO_LARGE, "a request has no body here\n");
    }
    match answers {
        Some(answers) => Answer::Now(answers(state)),
        // With admin_open others reach this port, and an error says what is in the files.
        None if !asks.from_here => {
            refused(StatusCode::FORBIDDEN, "only this machine may ask for that, by a loopback address\n")
        }
        // A browser says on whose behalf it sends a POST (the Fetch standard, `Origin` header).
        None if request.headers().contains_key(ORIGIN) => {
            refused(StatusCode::FORBIDDEN, "a page in a browser may not ask for that\n")
        }
        None => Answer::Reloaded,
    }
}

async fn reload(reloads: &mpsc::Sender<Asked>) -> Response<String> {
    let (who, came) = oneshot::channel();
    // Nobody takes it before the server is built.
    if reloads.send(who).await.is_err() {
        return not_ready(&NotReady::Starting);
    }
    match came.await {
        Ok(Ok(changes)) => said(StatusCode::OK, TEXT, changes),
        Ok(Err(why)) => said(StatusCode::UNPROCESSABLE_ENTITY, TEXT, format!("{why}\n")),
        Err(_) => not_ready(&NotReady::Starting),
    }
}

/// RFC 9112, section 3.2: a request of HTTP/1.1 has one Host. And on a loopback address it is this machine's.
fn check_host(request: &Request<Incoming>, any_host: bool) -> Result<(), (StatusCode, &'static str)> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let (host, more) = (hosts.next(), hosts.next());
    if more.is_some() || (host.is_none() && request.version() == Version::HTTP_11) {
        return Err((StatusCode::BAD_REQUEST, "a request has one Host\n"));
    }
    let said = host.map(|host| host.to_str().unwrap_or("?"));
    let meant = request.uri().authority().map(|authority| authority.as_str());
    if !any_host && said.into_iter().chain(meant).any(|host| !is_this_machine(host)) {
        return Err((StatusCode::MISDIRECTED_REQUEST, "the Host is an address here, or localhost\n"));
    }
    Ok(())
}

/// An address or `localhost`, perhaps with a port: no name that somebody else says the address of.
fn is_this_machine(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok()
}

fn metrics(state: &State) -> Response<String> {
    let Some(control) = state.control.get() else { return not_ready(&NotReady::Starting) };
    let mut text = PrometheusText::new();
    handlers::write_metrics(state, control, &mut text);
    said(StatusCode::OK, METRICS, text.into_text())
}

fn connections(state: &State) -> Response<String> {
    let Some(control) = state.control.get() else { return not_ready(&NotReady::Starting) };
    let (listed, all) = handlers::connections(control, MAX_LISTED);
    let text = serde_json::json!({ "left_out": all - listed.len(), "connections": listed });
    said(StatusCode::OK, JSON, format!("{text}\n"))
}

fn not_ready(why: &NotReady) -> Response<String> {
    said(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{why}\n"))
}

fn said(status: StatusCode, kind: &'static str, text: impl Into<String>) -> Response<String> {
    let mut response = Response::new(text.into());
    *response.status_mut() = status;
    let fields = response.headers_mut();
    fields.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    fields.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    fields.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_and_localhost_are_this_machine() {
        for host in
            ["localhost", "LOCALHOST:80", "127.0.0.1", "10.1.2.3:9090", "[::1]", "[::1]:9090", "localhost:"]
        {
            assert!(is_this_machine(host), "{host}");
        }
        for host in [
            "",
            ":",
            "evil.example",
            "evil.example:80",
            "localhost.evil",
            "127.0.0.1.evil",
            "[::1",
            "a@localhost",
        ] {
            assert!(!is_this_machine(host), "{host}");
        }
    }
}
