//! One POST of OTLP over HTTP, and what its answer means: <https://opentelemetry.io/docs/specs/otlp/#otlphttp>.

use std::{fmt::Display, future::poll_fn, net::IpAddr, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    HeaderMap, Request, Response, StatusCode, Uri,
    body::{Body, Incoming},
    client::conn::http1,
    header::{self, HeaderName, HeaderValue},
};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
    version::TLS13,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use crate::protobuf::{self, Field};

/// How much of an answer is read: it is a few numbers and a sentence.
const ANSWER_BYTES: usize = 64 << 10;
/// How much of a receiver's own words is passed on.
const WORDS: usize = 200;

/// Whom to trust over https.
#[derive(Default)]
pub(crate) struct Trust {
    pub(crate) roots: Option<Vec<u8>>,
    pub(crate) system: bool,
}

/// A receiver whose URL was checked.
pub(crate) struct Receiver {
    uri: Uri,
    host: String,
    port: u16,
    /// `None` for `http://`.
    tls: Option<(TlsConnector, ServerName<'static>)>,
    headers: HeaderMap,
}

/// What a receiver said.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It took all but so many, for which it may give a reason.
    Taken { rejected: u64, why: String },
    /// It, or something on the way to it, was not able to: the same is to come again, not before that time.
    Later { after: Option<Duration>, why: String },
    /// The same must not come again.
    Refused(String),
}

impl Receiver {
    /// Checks what was written.
    pub(crate) fn new(url: &str, trust: &Trust, headers: &[(String, String)]) -> Result<Self, String> {
        if url.contains('@') {
            // Not a word of it: there may be a password.
            return Err("the endpoint has a user; write http://host:port, and give a header for it".into());
        }
        let wrong = |why: &str| format!("endpoint {url:?} {why}");
        let uri: Uri = url.parse().map_err(|_| wrong("is not a URL; write http://host:4318"))?;
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        if uri.query().is_some() {
            return Err(wrong("has a query; write what is before the ?"));
        }
        let tls = match uri.scheme_str() {
            None => return Err(wrong("has no scheme; write http://host:4318")),
            _ if host.is_empty() => return Err(wrong("has no host; write http://host:4318")),
            Some("https") => {
                let name = ServerName::try_from(host.clone()).map_err(|_| wrong("has no legal host"))?;
                if trust.roots.is_none() && !trust.system {
                    return Err(wrong("needs the authorities of its server: give roots, or system_roots"));
                }
                Some((connector(trust)?, name))
            }
            Some("http") => None,
            _ => return Err(wrong("is neither http:// nor https://; write http://host:4318")),
        };
        let loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        if tls.is_none() && !loopback && !headers.is_empty() {
            return Err(wrong("is http, over which anybody on the way reads the headers; write https"));
        }
        let port = uri.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
        let mut all = HeaderMap::new();
        for (name, value) in headers {
            // Not a word of the value: it may be a secret.
            let wrong = |what: &str| format!("header {name:?} has no legal {what}");
            let key: HeaderName = name.parse().map_err(|_| wrong("name"))?;
            let mut value: HeaderValue = value.parse().map_err(|_| wrong("value"))?;
            value.set_sensitive(true);
            all.append(key, value);
        }
        Ok(Self { uri, host, port, tls, headers: all })
    }

    /// Posts a message below the receiver's URL.
    pub(crate) async fn post(&self, path: &str, message: Bytes, limit: Duration) -> Answer {
        let later = |why: String| Answer::Later { after: None, why };
        match tokio::time::timeout(limit, self.exchange(path, message)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(why)) => later(why),
            Err(_) => later(format!("no answer in {} ms", limit.as_millis())),
        }
    }

    async fn exchange(&self, path: &str, message: Bytes) -> Result<Answer, String> {
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await;
        let tcp = tcp.map_err(|error| format!("no connection: {error}"))?;
        let Some((connector, name)) = &self.tls else { return self.talk(tcp, path, message).await };
        let tls = connector.connect(name.clone(), tcp).await;
        self.talk(tls.map_err(|error| format!("no TLS: {error}"))?, path, message).await
    }

    async fn talk(
        &self,
        io: impl AsyncRead + AsyncWrite + Unpin,
        path: &str,
        message: Bytes,
    ) -> Result<Answer, String> {
        let failed = |error: &dyn Display| format!("no answer of HTTP: {error}");
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(io)).await.map_err(|error| failed(&error))?;
        let target = [self.uri.path().trim_end_matches('/'), path].concat();
        let mut request = Request::post(target)
            .header(header::HOST, self.uri.authority().map_or("", |authority| authority.as_str()))
            .header(header::CONTENT_TYPE, "application/x-protobuf")
            .header(header::USER_AGENT, concat!("valkyrie-otel/", env!("CARGO_PKG_VERSION")))
            .header(header::CONNECTION, "close")
            .body(Full::new(message))
            .map_err(|error| failed(&error))?;
        request.headers_mut().extend(self.headers.clone());
        let answer = async {
            let response = sender.send_request(request).await.map_err(|error| failed(&error))?;
            Ok(read(response).await)
        };
        // The connection moves the bytes; when it ends before the answer, the answer says why.
        tokio::pin!(answer);
        tokio::select! {
            biased;
            answer = &mut answer => answer,
            _ = connection => answer.await,
        }
    }
}

/// What the answer means. A receiver that says 200 has taken it, however it goes on.
async fn read(response: Response<Incoming>) -> Answer {
    let (head, mut body) = response.into_parts();
    let status = head.status;
    if status.is_success() {
        let mut answer = Vec::new();
        while let Some(Ok(frame)) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            let Ok(data) = frame.into_data() else { continue };
            if answer.len() + data.len() > ANSWER_BYTES {
                break;
            }
            answer.extend_from_slice(&data);
        }
        let (rejected, why) = rejected(&answer);
        return Answer::Taken { rejected, why };
    }
    let why = format!("it answers with status {}", status.as_u16());
    let passing = [
        StatusCode::TOO_MANY_REQUESTS,
        StatusCode::BAD_GATEWAY,
        StatusCode::SERVICE_UNAVAILABLE,
        StatusCode::GATEWAY_TIMEOUT,
    ];
    if !passing.contains(&status) {
        return Answer::Refused(why);
    }
    // A date is not read: then the wait is ours.
    let after = head.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    Answer::Later { after: after.map(Duration::from_secs), why }
}

/// How many data points or spans of a post the answer says were not taken, and why.
fn rejected(answer: &[u8]) -> (u64, String) {
    let (mut rejected, mut why) = (0, String::new());
    for (number, field) in protobuf::fields(answer) {
        let (1, Field::Bytes(partial)) = (number, field) else { continue };
        for field in protobuf::fields(partial) {
            match field {
                (1, Field::Number(count)) => rejected = i64::try_from(count).map_or(0, i64::unsigned_abs),
                (2, Field::Bytes(text)) => {
                    why = String::from_utf8_lossy(text).chars().take(WORDS).collect();
                }
                _ => {}
            }
        }
    }
    (rejected, why)
}

fn connector(trust: &Trust) -> Result<TlsConnector, String> {
    let wrong = |why: String| format!("the authorities of the endpoint's server {why}");
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(trust.roots.as_deref().unwrap_or_default()) {
        let certificate = certificate.map_err(|error| wrong(format!("are not PEM: {error}")))?;
        store
            .add(certificate)
            .map_err(|error| wrong(format!("hold a certificate that does not read: {error}")))?;
    }
    if store.is_empty() && trust.roots.is_some() {
        return Err(wrong("hold no section CERTIFICATE".into()));
    }
    if trust.system {
        // What the system has and rustls does not read vouches for nobody.
        store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if store.is_empty() {
            return Err(wrong("are none: the system has no certificates; give roots".into()));
        }
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| wrong(format!("serve no TLS 1.3: {error}")))?
        .with_root_certificates(store)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}
