//! Every row of tests/certificates/matrix.json between a real client and a real server, over each encrypted carrier: who
//! verifies a chain says the reason of the row, and nobody else gets through.
#![cfg(all(feature = "quic", feature = "websocket"))]

mod anyone;
mod calling;
mod kept;

use std::{net::TcpListener, sync::Arc};

use anyone::Anyone;
use calling::bounded;
use kept::{Kept, field};
use rustls::{
    ClientConfig, ServerConfig, SignatureScheme,
    client::ResolvesClientCert,
    crypto::ring::{default_provider, sign::any_supported_type},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use valkyrie_certificates::{Certificates, Made, Row, Side, rows};
use valkyrie_sdk::{Client, ClientBuilder, EchoHandler, Level, Reason, ServerBuilder, ServerControl, Status};

const SCHEMES: [&str; 3] = ["tls", "wss", "quic"];

/// Connects and calls once: the name of the reason, `OK` for an answer, and the sentence.
async fn outcome(what: &str, builder: ClientBuilder) -> (String, String) {
    let called = async {
        let client = builder.build().await?;
        let answer = client.request("hello").await?;
        client.close().await;
        Ok::<_, Status>(answer)
    };
    match bounded(what, called).await {
        Ok(answer) => {
            assert_eq!(answer, "hello", "{what}");
            ("OK".into(), String::new())
        }
        Err(status) => (status.reason().name().to_owned(), status.to_string()),
    }
}

async fn serve(what: &str, builder: ServerBuilder) -> (Vec<String>, ServerControl) {
    let builder = builder.bind("tls://127.0.0.1:0").bind("quic://127.0.0.1:0").handler("/echo", EchoHandler);
    let server = builder.build().await.unwrap_or_else(|status| panic!("{what}: {status}"));
    let (endpoints, control) = (server.endpoints(), server.control());
    tokio::spawn(async move { server.start().await });
    (endpoints, control)
}

/// What a server says of the handshakes that failed, once it knows all that did: every connection, with the one reason, and one
/// record for all of them, for they come from one address.
async fn said(what: &str, control: &ServerControl, kept: &Kept) -> Reason {
    let all = control.stats().connections_total;
    let counted = async {
        while control.failures().iter().map(|(_, count)| count).sum::<u64>() < all {
            tokio::task::yield_now().await;
        }
    };
    bounded(what, counted).await;
    let counts = control.failures();
    let &[(reason, count)] = counts.as_slice() else { panic!("{what}: {counts:?}") };
    let records = kept.take();
    let [record] = records.as_slice() else { panic!("{what}: {records:?}") };
    assert_eq!(
        (count, record.level, record.target),
        (all, Level::Warn, "valkyrie.server"),
        "{what}: {counts:?}"
    );
    assert_eq!((field(record, "reason"), field(record, "left_out")), (reason.name(), "0"), "{what}");
    assert!(field(record, "peer").contains("://127.0.0.1:"), "{what}: {record:?}");
    assert!(!record.message.contains("-----") && record.message.is_ascii(), "{what}: {record:?}");
    reason
}

fn of(endpoints: &[String], scheme: &str) -> String {
    endpoints.iter().find(|endpoint| endpoint.starts_with(&format!("{scheme}:"))).unwrap().clone()
}

/// A client that looks for the row's name and trusts what the row's verifier trusts.
fn client(row: &Row, made: &Made, endpoint: String) -> ClientBuilder {
    let builder = Client::builder()
        .endpoint(endpoint)
        .server_name(&row.dial)
        .trusted_certificates(made.trusted.clone());
    match &made.revoked {
        Some(list) => builder.revocation_lists(list.clone()),
        None => builder,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_say_what_is_wrong_with_a_servers_certificate() {
    let (certificates, mut wrong, mut looked_at) = (Certificates::new(), Vec::new(), 0);
    for row in rows().iter().filter(|row| row.side == Side::Server) {
        let made = certificates.make(row);
        let kept = Kept::default();
        let builder = ServerBuilder::new().identity(made.chain.clone(), made.key.clone()).open_to_all(true);
        let builder = builder.log(Arc::new(kept.clone()));
        let (endpoints, control) = if row.raw {
            let refused = builder.bind("tls://127.0.0.1:0").handler("/echo", EchoHandler).build().await;
            assert_eq!(
                refused.map(drop).unwrap_err().reason(),
                Reason::INVALID_CONFIGURATION,
                "{}",
                row.case
            );
            (raw_servers(&made), None)
        } else {
            let (endpoints, control) = serve(&row.case, builder).await;
            (endpoints, Some(control))
        };
        for scheme in SCHEMES {
            let what = format!("{} over {scheme}", row.case);
            let (reason, said) = outcome(&what, client(row, &made, of(&endpoints, scheme))).await;
            if reason != row.reason {
                wrong.push(format!("{what}: {} is expected, and came: {reason} ({said})", row.reason));
            }
            looked_at += 1;
        }
        if let Some(control) = control {
            match row.reason.as_str() {
                "OK" => assert!(control.failures().is_empty() && kept.take().is_empty(), "{}", row.case),
                // The client's alert says less than the client.
                _ => assert_eq!(said(&row.case, &control, &kept).await, Reason::TLS_FAILED, "{}", row.case),
            }
            control.shutdown_now();
        }
    }
    assert!(wrong.is_empty(), "{} of {looked_at}:\n{}", wrong.len(), wrong.join("\n"));
}

/// A client learns by a TLS alert that it is refused, and the alert does not say all: the row's `told`.
#[tokio::test(flavor = "multi_thread")]
async fn servers_refuse_what_is_wrong_with_a_clients_certificate() {
    let (certificates, mut wrong, mut looked_at) = (Certificates::new(), Vec::new(), 0);
    let rows = rows();
    let own = certificates.make(rows.iter().find(|row| row.case == "good_p256").unwrap());
    for row in rows.iter().filter(|row| row.side == Side::Client) {
        let made = certificates.make(row);
        let builder = ServerBuilder::new().identity(own.chain.clone(), own.key.clone()).open_to_all(true);
        let kept = Kept::default();
        let builder = builder.client_authorities(made.trusted.clone()).log(Arc::new(kept.clone()));
        let builder = match &made.revoked {
            Some(list) => builder.revocation_lists(list.clone()),
            None => builder,
        };
        let (endpoints, control) = serve(&row.case, builder).await;
        let expected = row.told.as_deref().unwrap_or(&row.reason);
        for scheme in SCHEMES {
            let what = format!("{} over {scheme}", row.case);
            let mut builder = Client::builder()
                .endpoint(of(&endpoints, scheme))
                .server_name(&row.dial)
                .trusted_certificates(own.trusted.clone());
            if !made.chain.is_empty() {
                builder = builder.identity(made.chain.clone(), made.key.clone());
            }
            let (reason, said) = outcome(&what, builder).await;
            let expected = if row.raw { "INVALID_CONFIGURATION" } else { expected };
            if reason != expected {
                wrong.push(format!("{what}: {expected} is expected, and came: {reason} ({said})"));
            }
            looked_at += 1;
        }
        if row.raw {
            let endpoint = of(&endpoints, "tls");
            let address = endpoint.split_once("://").unwrap().1.to_owned();
            let identity = certified(&made);
            let seen =
                bounded(&row.case, tokio::task::spawn_blocking(move || raw_client(&address, identity))).await;
            let seen = seen.unwrap();
            assert!(seen.contains("AlertReceived"), "{}: a raw client saw {seen}", row.case);
        }
        assert_eq!(control.stats().calls_total > 0, row.reason == "OK", "{}", row.case);
        match row.reason.as_str() {
            "OK" => assert!(control.failures().is_empty() && kept.take().is_empty(), "{}", row.case),
            // The server knows more than the client is told.
            reason => assert_eq!(said(&row.case, &control, &kept).await.name(), reason, "{}", row.case),
        }
        control.shutdown_now();
    }
    assert!(wrong.is_empty(), "{} of {looked_at}:\n{}", wrong.len(), wrong.join("\n"));
}

/// A chain and a key that were not compared.
fn certified(made: &Made) -> Arc<CertifiedKey> {
    let chain = CertificateDer::pem_slice_iter(made.chain.as_bytes()).collect::<Result<_, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_slice(made.key.as_bytes()).unwrap();
    Arc::new(CertifiedKey::new(chain, any_supported_type(&key).unwrap()))
}

/// Shows it to whoever asks.
#[derive(Debug)]
struct Shows(Arc<CertifiedKey>);

impl ResolvesServerCert for Shows {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

impl ResolvesClientCert for Shows {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Servers that are not ours and show what ours would not: their endpoints.
fn raw_servers(made: &Made) -> Vec<String> {
    let config = |alpn: &str| {
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Shows(certified(made))));
        config.alpn_protocols = vec![alpn.into()];
        config
    };
    let mut endpoints = Vec::new();
    for (scheme, alpn) in [("tls", "valkyrie/1"), ("wss", "http/1.1")] {
        let (listener, config) = (TcpListener::bind("127.0.0.1:0").unwrap(), Arc::new(config(alpn)));
        endpoints.push(format!("{scheme}://{}", listener.local_addr().unwrap()));
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let (mut socket, mut tls) =
                    (socket.unwrap(), rustls::ServerConnection::new(config.clone()).unwrap());
                while tls.complete_io(&mut socket).is_ok_and(|(read, _)| read > 0) {}
            }
        });
    }
    let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(config("valkyrie/1")).unwrap();
    let config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    let endpoint = quinn::Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap();
    endpoints.push(format!("quic://{}", endpoint.local_addr().unwrap()));
    tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            let _ = incoming.await;
        }
    });
    endpoints
}

/// What a client that is not ours sees after it showed this.
fn raw_client(address: &str, identity: Arc<CertifiedKey>) -> String {
    let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone))
        .with_client_cert_resolver(Arc::new(Shows(identity)));
    config.alpn_protocols = vec!["valkyrie/1".into()];
    let name = ServerName::try_from("localhost").unwrap();
    let mut tls = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut socket = std::net::TcpStream::connect(address).unwrap();
    loop {
        match tls.complete_io(&mut socket) {
            Ok((0, _)) => return "the end".into(),
            Ok(_) => {}
            Err(error) => return format!("{error:?}"),
        }
    }
}
