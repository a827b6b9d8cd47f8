//! Keys of tokens from an https URL: a server of this test's own, with certificates of its own authority.

mod tokens;

use std::{
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    version::TLS13,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
    sync::mpsc,
};
use tokio_rustls::TlsAcceptor;
use valkyrie_sdk::{Authenticator, JwtBuilder, Peer, Reason, Status};

use self::tokens::Table;

const NOW: u64 = 1_800_000_000;

/// An authority, and a server's certificate by it.
struct Authority {
    pem: String,
    config: Arc<ServerConfig>,
}

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &ca).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)
        .unwrap();
    Authority { pem: ca.pem(), config: Arc::new(config) }
}

/// Answers each connection with the next of these texts, and gives the heads of the requests.
async fn serve(
    tls: Option<Arc<ServerConfig>>,
    answers: Vec<String>,
) -> (u16, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        for answer in answers {
            let (tcp, _) = listener.accept().await.unwrap();
            match &tls {
                None => exchange(tcp, &answer, &sender).await,
                // A handshake that a client refuses is over.
                Some(config) => match TlsAcceptor::from(config.clone()).accept(tcp).await {
                    Ok(tls) => exchange(tls, &answer, &sender).await,
                    Err(_) => continue,
                },
            }
        }
    });
    (port, receiver)
}

async fn exchange(
    mut io: impl AsyncRead + AsyncWrite + Unpin,
    answer: &str,
    heads: &mpsc::UnboundedSender<String>,
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(io.read_u8().await.unwrap());
    }
    heads.send(String::from_utf8(head).unwrap()).unwrap();
    // A client that has read too much leaves.
    let _ = io.write_all(answer.as_bytes()).await;
    let _ = io.shutdown().await;
}

fn document(table: &Table) -> String {
    let key = &table.0["keys"]["ed"]["jwk"];
    json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": key["x"], "kid": "ed"}]}).to_string()
}

fn whole(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nContent-Type: application/json\r\n\r\n{body}",
        body.len()
    )
}

fn issuer(table: &Table, url: impl Into<String>) -> JwtBuilder {
    JwtBuilder::new(table.0["issuer"].as_str().unwrap(), table.0["audience"].as_str().unwrap()).jwks_url(url)
}

/// Checks a good token by keys from there.
async fn check(table: &Table, builder: JwtBuilder) -> Result<(), String> {
    let token = table.token(&Value::Null, NOW);
    let now = UNIX_EPOCH + Duration::from_secs(NOW);
    let jwt = builder.build().unwrap();
    let result = jwt.authenticate(&token, &Peer::new("memory:"), now).await;
    result.map(drop).map_err(|refusal| refusal.to_string())
}

#[tokio::test]
async fn keys_come_over_tls_in_one_get() {
    let table = Table::read();
    let authority = authority("localhost");
    let answer = whole("200 OK", &document(&table));
    let (port, mut heads) = serve(Some(authority.config), vec![answer]).await;
    let url = format!("https://localhost:{port}/realms/x/keys?format=jwks");
    assert_eq!(check(&table, issuer(&table, url).jwks_roots_pem(&authority.pem)).await, Ok(()));
    let head = heads.recv().await.unwrap();
    assert!(head.starts_with("GET /realms/x/keys?format=jwks HTTP/1.1\r\n"), "{head}");
    assert!(head.contains(&format!("\r\nhost: localhost:{port}\r\n")), "{head}");
}

#[tokio::test]
async fn this_machine_may_be_asked_in_the_clear_and_answer_in_pieces() {
    let table = Table::read();
    let text = document(&table);
    let (first, second) = text.split_at(text.len() / 2);
    let chunks = format!("{:x}\r\n{first}\r\n{:x}\r\n{second}\r\n0\r\n\r\n", first.len(), second.len());
    let chunked = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
    let until_the_end = format!("HTTP/1.0 200 OK\r\n\r\n{text}");
    let (port, _heads) = serve(None, vec![chunked, until_the_end]).await;
    for _ in 0..2 {
        assert_eq!(check(&table, issuer(&table, format!("http://127.0.0.1:{port}"))).await, Ok(()));
    }
}

#[tokio::test]
async fn no_answer_but_a_whole_document_will_do() {
    let table = Table::read();
    let text = document(&table);
    let moved = format!(
        "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: {}\r\n\r\n{text}",
        text.len()
    );
    let short = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len() + 1);
    for (answer, why) in [
        (moved, "answers with status 302, not 200"),
        (whole("404 Not Found", &text), "answers with status 404, not 200"),
        (whole("200 OK", &" ".repeat((256 << 10) + 1)), "sends more than 262144 bytes"),
        (format!("HTTP/1.1 200 OK\r\n\r\n{}", " ".repeat(300 << 10)), "sends more than 262144 bytes"),
        (whole("200 OK", "<html>"), "the key set is not JSON"),
        (short, "no answer of http://127.0.0.1:"),
        ("SSH-2.0-OpenSSH_9.2\r\n".into(), "no answer of http://127.0.0.1:"),
        (String::new(), "no answer of http://127.0.0.1:"),
        (format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(1 << 20)), "no answer of http://127.0.0.1:"),
    ] {
        let (port, _heads) = serve(None, vec![answer]).await;
        let refusal =
            check(&table, issuer(&table, format!("http://127.0.0.1:{port}/keys"))).await.unwrap_err();
        assert!(refusal.starts_with("jwt: the issuer's keys are not known: "), "{refusal}");
        assert!(refusal.contains(why), "{refusal}");
    }
}

#[tokio::test]
async fn a_server_that_the_authorities_do_not_certify_is_not_believed() {
    let table = Table::read();
    let good = authority("localhost");
    let answer = vec![whole("200 OK", &document(&table))];
    for server in [authority("localhost").config, authority("elsewhere.example").config] {
        let (port, _heads) = serve(Some(server), answer.clone()).await;
        let url = format!("https://localhost:{port}/");
        let refusal = check(&table, issuer(&table, url).jwks_roots_pem(&good.pem)).await.unwrap_err();
        assert!(refusal.contains("invalid peer certificate: "), "{refusal}");
    }
    // Certified, for another name; and nobody there.
    let (port, _heads) = serve(Some(good.config), answer.clone()).await;
    let url = format!("https://127.0.0.1:{port}/");
    let refusal = check(&table, issuer(&table, url).jwks_roots_pem(&good.pem)).await.unwrap_err();
    assert!(refusal.contains("not valid for name"), "{refusal}");
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let url = format!("https://localhost:{closed}/");
    let refusal = check(&table, issuer(&table, url).jwks_roots_pem(&good.pem)).await.unwrap_err();
    assert!(refusal.contains("cannot connect to https://localhost:"), "{refusal}");
}

#[test]
fn a_url_that_proves_nothing_is_refused_when_it_is_given() {
    let table = Table::read();
    let pem = authority("localhost").pem;
    let refused = |result: Result<_, Status>, words: &str| {
        let Err::<valkyrie_sdk::Jwt, _>(status) = result else { panic!("{words:?} is accepted") };
        assert_eq!(status.reason(), Reason::INVALID_CONFIGURATION);
        assert!(status.message().contains(words), "{}", status.message());
        assert!(!status.message().contains("canary"), "{}", status.message());
    };
    for (url, words) in [
        ("http://id.example.com/keys", "is http, by which anybody on the way can sign; write https"),
        ("http://127.0.0.1.example.com/", "is http"),
        ("http://10.0.0.1/", "is http"),
        ("ftp://localhost/", "is not https://"),
        ("localhost:80", "is not https://"),
        ("/etc/passwd", "has no host"),
        ("file:///etc/passwd", "is not a URL"),
        ("https://", "is not a URL"),
        ("", "is not a URL"),
        ("https://user:canary@localhost/", "has a user"),
    ] {
        refused(issuer(&table, url).jwks_roots_pem(&pem).build(), words);
    }
    let url = "https://id.example.com/keys";
    refused(issuer(&table, url).build(), "needs the authorities of its server: jwks_roots_pem");
    refused(issuer(&table, url).jwks_roots_pem("").build(), "hold no section CERTIFICATE");
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    refused(issuer(&table, url).jwks_roots_pem(broken).build(), "hold a certificate that does not read");
    refused(
        issuer(&table, url).jwks_roots_pem(&pem).jwks(document(&table)).jwks_file("/x").build(),
        "cannot be read",
    );
    assert!(issuer(&table, url).jwks_roots_pem(&pem).build().is_ok());
}
