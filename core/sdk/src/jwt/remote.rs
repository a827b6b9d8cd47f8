//! Key sets by https: one GET for one document, and nothing that an HTTP client does beside it.

use std::{future::poll_fn, net::IpAddr, pin::Pin, sync::Arc};

use hyper::{Request, StatusCode, Uri, body::Body, client::conn::http1, header};
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

use super::jwks::{DOCUMENT_BYTES, JwksFetch};
use crate::BoxFuture;

/// A URL that was checked, and whom to trust there.
pub(super) struct Https {
    uri: Uri,
    host: String,
    port: u16,
    /// `None` for `http://` to this machine.
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Https {
    pub(super) fn new(url: &str, roots: Option<&[u8]>) -> Result<Self, String> {
        if url.contains('@') {
            // Not a word of it: there may be a password.
            return Err("the key set's URL has a user; write https://host/path".into());
        }
        let wrong = |why: &str| format!("key set {url:?} {why}");
        let uri: Uri = url.parse().map_err(|_| wrong("is not a URL; write https://host/path"))?;
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        if host.is_empty() {
            return Err(wrong("has no host; write https://host/path"));
        }
        let address = host.parse::<IpAddr>();
        let tls = match uri.scheme_str() {
            Some("https") => {
                let name = ServerName::try_from(host.clone()).map_err(|_| wrong("has no legal host"))?;
                let roots =
                    roots.ok_or_else(|| wrong("needs the authorities of its server: jwks_roots_pem"))?;
                Some((connector(roots)?, name))
            }
            Some("http") if host == "localhost" || address.is_ok_and(|ip| ip.is_loopback()) => None,
            Some("http") => return Err(wrong("is http, by which anybody on the way can sign; write https")),
            _ => return Err(wrong("is not https://")),
        };
        let port = uri.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
        Ok(Self { uri, host, port, tls })
    }

    async fn get(&self) -> Result<Vec<u8>, String> {
        let failed = |what: &str, error: &dyn std::error::Error| {
            // Who fetches wants to know what was below, too: "certificate expired".
            let below = error.source().map(|source| format!(": {source}")).unwrap_or_default();
            format!("{what} {}: {error}{below}", self.uri)
        };
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await;
        let tcp = tcp.map_err(|error| failed("cannot connect to", &error))?;
        let Some((connector, name)) = &self.tls else { return self.exchange(tcp).await };
        let tls = connector.connect(name.clone(), tcp).await;
        self.exchange(tls.map_err(|error| failed("no TLS with", &error))?).await
    }

    async fn exchange(&self, io: impl AsyncRead + AsyncWrite + Unpin) -> Result<Vec<u8>, String> {
        let failed = |error: hyper::Error| format!("no answer of {}: {error}", self.uri);
        let (mut sender, connection) =
            http1::handshake::<_, String>(TokioIo::new(io)).await.map_err(failed)?;
        let request = Request::get(self.uri.path_and_query().map_or("/", |path| path.as_str()))
            .header(header::HOST, self.uri.authority().map_or("", |authority| authority.as_str()))
            .header(header::ACCEPT, "application/jwk-set+json, application/json")
            .header(header::CONNECTION, "close")
            .body(String::new())
            .map_err(|error| format!("no request for {}: {error}", self.uri))?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(failed)?;
            if response.status() != StatusCode::OK {
                let status = response.status().as_u16();
                return Err(format!("{} answers with status {status}, not 200", self.uri));
            }
            let mut body = response.into_body();
            let mut document = Vec::new();
            while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                let Ok(data) = frame.map_err(failed)?.into_data() else { continue };
                if document.len() + data.len() > DOCUMENT_BYTES {
                    return Err(format!("{} sends more than {DOCUMENT_BYTES} bytes", self.uri));
                }
                document.extend_from_slice(&data);
            }
            Ok(document)
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

impl JwksFetch for Https {
    fn fetch(&self) -> BoxFuture<'_, Result<Vec<u8>, String>> {
        Box::pin(self.get())
    }
}

fn connector(roots: &[u8]) -> Result<TlsConnector, String> {
    let wrong = |why: String| format!("the authorities for the key set's server {why}");
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(roots) {
        let certificate = certificate.map_err(|error| wrong(format!("are not PEM: {error}")))?;
        store
            .add(certificate)
            .map_err(|error| wrong(format!("hold a certificate that does not read: {error}")))?;
    }
    if store.is_empty() {
        return Err(wrong("hold no section CERTIFICATE".into()));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| wrong(format!("serve no TLS 1.3: {error}")))?
        .with_root_certificates(store)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}
