//! Servers that show and ask for every certificate of tests/certificates, and wires that change a record as records.json
//! says, one port for each row, and the cases that each language's runner then runs: it prints where they are as one line of JSON and ends when its standard input closes.
#![forbid(unsafe_code)]

use std::{
    error::Error,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use rustls::{
    ServerConfig,
    crypto::ring::{default_provider, sign::any_supported_type},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use valkyrie_certificates::{Certificates, Side, rows};
use valkyrie_conformance::{records, websocket_to};
use valkyrie_sdk::{Client, Code, EchoHandler, Pem, Reason, Security, ServerBuilder, Status};

type Outcome<T> = Result<T, Box<dyn Error>>;

#[tokio::main]
async fn main() -> ExitCode {
    match serve().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("valkyrie-conformance-certificates: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve() -> Outcome<()> {
    let folder =
        std::env::temp_dir().join(format!("valkyrie-conformance-certificates-{}", std::process::id()));
    Certificates::new().write(&folder)?;
    let [file, for_pages] = ["cases.json", "pages.json"].map(|name| folder.join(name));
    let (mut cases, mut pages) = (Vec::new(), Vec::new());
    for (case, page) in
        [of_certificates(&folder).await?, of_strangers(&folder).await?, of_wires(&folder).await?].concat()
    {
        pages.push(page.case(&case)?);
        cases.push(case);
    }
    std::fs::write(&file, serde_json::to_string(&cases)?)?;
    std::fs::write(&for_pages, serde_json::to_string(&pages)?)?;
    let rotating = folder.join("rotating");
    println!(
        "{}",
        json!({ "cases": file, "pages": for_pages, "rotating": rotating, "endpoint": rotates(&rotating).await? })
    );
    std::io::stdout().flush()?;
    let _ = tokio::io::stdin().read_to_end(&mut Vec::new()).await;
    std::fs::remove_dir_all(folder)?;
    Ok(())
}

/// Where a page meets what a case is about.
#[derive(Clone)]
enum Page {
    /// In a sealed session over this WebSocket.
    Sealed(String),
    /// Over this WebSocket, not sealed.
    Open(String),
    /// Nowhere, and why.
    Absent(&'static str),
}

impl Page {
    /// The case as a page has it, which reads no file and is given texts.
    fn case(&self, case: &Value) -> Outcome<Value> {
        let (endpoint, sealed) = match self {
            Page::Sealed(endpoint) => (endpoint, 1),
            Page::Open(endpoint) => (endpoint, 0),
            Page::Absent(why) => return Ok(json!({ "case": case["case"], "absent": why })),
        };
        let mut case = case.clone();
        case["endpoint"] = endpoint.as_str().into();
        case["sealed"] = sealed.into();
        for key in ["trusted", "identity", "key"] {
            if let Some(path) = case[key].as_str() {
                case[key] = std::fs::read_to_string(path)?.into();
            }
        }
        Ok(case)
    }
}

const NO_LISTS: &str = "a page's client takes no revocation lists: the option is refused with a TypeError before anything is sent";
const NO_LEAST: &str = "a page's client takes no least protection: the option is refused with a TypeError before anything is sent";
const NO_TRUST: &str =
    "without a sealed session the browser decides whom a page trusts: the option is refused with a TypeError";
const NO_ANSWER: &str = "a browser does not tell its page what somebody answers who is no WebSocket server";
const NO_TLS: &str = "TLS below a WebSocket is the browser's own: what a page decides on is a sealed session, which has its row";

/// What a client shall say of `endpoint`; `fields` are what it is told besides.
fn case(name: &str, endpoint: &str, reason: &str, fields: &[(&str, &Path)]) -> Value {
    let reasons = Reason::ALL.iter().find(|known| known.name() == reason);
    let code = reasons.map_or(Code::Ok, |known| Status::from_reason(*known, "").code());
    let mut case = json!({
        "case": name, "action": "connect_with", "endpoint": endpoint, "code": code.name(), "code_number": code.number(),
    });
    if reason != "OK" {
        case["reason"] = reason.into();
    }
    for (key, value) in fields {
        case[key] = value.display().to_string().into();
    }
    case
}

/// A server for each row of the table.
async fn of_certificates(folder: &Path) -> Outcome<Vec<(Value, Page)>> {
    let mut cases = Vec::new();
    let own = folder.join("good_p256");
    for row in rows() {
        let place = folder.join(&row.case);
        let [chain, key, trusted, revoked] =
            ["chain.pem", "key.pem", "trusted.pem", "revoked.pem"].map(|name| place.join(name));
        let dial = PathBuf::from(&row.dial);
        let mut fields: Vec<(&str, &Path)> = vec![("server_name", &dial)];
        let is_revoked = revoked.exists();
        let name = format!("certificate_{}", row.case);
        if row.side == Side::Server {
            fields.push(("trusted", &trusted));
            if is_revoked {
                fields.push(("revoked", &revoked));
            }
            let shows = || ServerBuilder::new().identity(Pem::file(&chain), Pem::file(&key));
            let endpoint = match row.raw {
                true => raw(&chain, &key, b"valkyrie/1")?,
                false => ours(shows()).await?,
            };
            let page = match row.raw {
                _ if is_revoked => Page::Absent(NO_LISTS),
                true => behind(&raw(&chain, &key, b"valkyrie-sealed/1")?).await?,
                false => Page::Sealed(sealing(shows()).await?),
            };
            cases.push((case(&name, &endpoint, &row.reason, &fields), page));
            continue;
        }
        let asks = || {
            let (chain, key) = (own.join("chain.pem"), own.join("key.pem"));
            let server = ServerBuilder::new().identity(Pem::file(chain), Pem::file(key));
            let server = server.client_authorities(Pem::file(&trusted));
            if is_revoked { server.revocation_lists(Pem::file(&revoked)) } else { server }
        };
        let root = own.join("trusted.pem");
        fields.push(("trusted", &root));
        if !row.chain.is_empty() {
            fields.extend([("identity", chain.as_path()), ("key", &key)]);
        }
        // The client's own side does not even try with what no other would take.
        let told = row.told.as_deref().unwrap_or(&row.reason);
        let told = if row.raw { "INVALID_CONFIGURATION" } else { told };
        let page = Page::Sealed(sealing(asks()).await?);
        cases.push((case(&name, &ours(asks()).await?, told, &fields), page));
    }
    Ok(cases)
}

/// Servers that speak something else, and clients that ask for more than they get.
async fn of_strangers(folder: &Path) -> Outcome<Vec<(Value, Page)>> {
    let own = folder.join("good_p256");
    let [chain, key, trusted] = ["chain.pem", "key.pem", "trusted.pem"].map(|name| own.join(name));
    let secure = ours(ServerBuilder::new().identity(Pem::file(&chain), Pem::file(&key))).await?;
    let plain = serve_on("127.0.0.1:0", ServerBuilder::new()).await?;
    let least = ServerBuilder::new().identity(Pem::file(&chain), Pem::file(&key));
    let demanding = serve_on("127.0.0.1:0", least.min_security(Security::Tls)).await?;
    let with = |endpoint: &str, scheme: &str| {
        let address = endpoint.split_once("://").map_or("", |(_, address)| address);
        format!("{scheme}://{address}")
    };
    let [tls, mtls] = ["tls", "mtls"].map(PathBuf::from);
    let trust: (&str, &Path) = ("trusted", &trusted);
    let name = PathBuf::from("localhost");
    let name: (&str, &Path) = ("server_name", &name);
    let other = raw(&chain, &key, b"h2")?;
    let page = |endpoint: &str| Page::Sealed(with(endpoint, "ws"));
    let mut cases = vec![
        (case("plaintext_to_tls", &with(&secure, "tcp"), "TLS_REQUIRED", &[]), Page::Absent(NO_ANSWER)),
        (
            case("plaintext_websocket_to_tls", &with(&secure, "ws"), "TLS_REQUIRED", &[]),
            Page::Absent(NO_ANSWER),
        ),
        (
            case("plaintext_to_a_server_that_asks_for_tls", &demanding, "TLS_REQUIRED", &[]),
            Page::Open(with(&demanding, "ws")),
        ),
        (case("tls_to_plaintext", &with(&plain, "tls"), "TLS_NOT_SPOKEN", &[name, trust]), page(&plain)),
        (
            case("tls_to_plaintext_websocket", &with(&plain, "wss"), "TLS_NOT_SPOKEN", &[name, trust]),
            Page::Absent(NO_TLS),
        ),
        (
            case("less_than_tls", &plain, "SECURITY_TOO_LOW", &[("min_security", &tls)]),
            Page::Absent(NO_LEAST),
        ),
        (
            case("less_than_mtls", &secure, "SECURITY_TOO_LOW", &[name, trust, ("min_security", &mtls)]),
            Page::Absent(NO_LEAST),
        ),
        (case("trust_without_tls", &plain, "SECURITY_TOO_LOW", &[trust]), Page::Absent(NO_TRUST)),
        (case("nobody_to_trust", &secure, "INVALID_CONFIGURATION", &[name]), page(&demanding)),
        (case("another_protocol", &other, "ALPN_MISMATCH", &[name, trust]), behind(&other).await?),
    ];
    // A ServerHello of TLS 1.2, where no extension says otherwise (RFC 8446, section 4.1.3), and the alert protocol_version.
    let hello: &[u8] =
        b"\x16\x03\x03\x00\x2a\x02\x00\x00\x26\x03\x03................................\x00\xc0\x2f\x00";
    for (what, bytes, reason) in [
        ("tls_1_2", hello, "TLS_VERSION"),
        ("alert_of_another_version", b"\x15\x03\x01\x00\x02\x02\x46", "TLS_VERSION"),
        ("alert_handshake_failure", b"\x15\x03\x03\x00\x02\x02\x28", "TLS_FAILED"),
        ("ssh_behind_tls", b"SSH-2.0-OpenSSH_9.9\r\n", "TLS_NOT_SPOKEN"),
    ] {
        let endpoint = saying(bytes)?;
        cases.push((case(what, &endpoint, reason, &[name, trust]), behind(&endpoint).await?));
    }
    Ok(cases)
}

/// Wires that change one record, of TLS and of a sealed session.
async fn of_wires(folder: &Path) -> Outcome<Vec<(Value, Page)>> {
    let own = folder.join("good_p256");
    let [chain, key, trusted] = ["chain.pem", "key.pem", "trusted.pem"].map(|name| own.join(name));
    let identity = || ServerBuilder::new().identity(Pem::file(&chain), Pem::file(&key));
    let servers = [("tls", ours(identity()).await?), ("tcp", serve_on("127.0.0.1:0", identity()).await?)];
    let mut cases = Vec::new();
    for row in records::rows() {
        for (scheme, server) in &servers {
            let sealed = *scheme == "tcp";
            let target = server.split_once("://").ok_or("an endpoint has a scheme")?.1;
            let endpoint = format!("{scheme}://{}", records::wire(&row, target)?);
            // The first connection passes unchanged, and is what later ones are changed by.
            let client = Client::builder().endpoint(&endpoint).sealed(sealed).server_name("localhost");
            let client = client.trusted_certificates(Pem::file(&trusted)).build().await?;
            client.request("first").await?;
            client.close().await;
            let name = format!("{}_{}", if sealed { "sealed" } else { "tls" }, row.case);
            let fields = [("server_name", Path::new("localhost")), ("trusted", trusted.as_path())];
            let mut case = case(&name, &endpoint, &row.reason, &fields);
            case["sealed"] = u8::from(sealed).into();
            let page = if sealed { behind(&endpoint).await? } else { Page::Absent(NO_TLS) };
            cases.push((case, page));
        }
    }
    Ok(cases)
}

/// A server whose files in `folder` a test replaces by those in `folder/next`, which another authority signed: `ca.pem`,
/// whom both sides trust, and `server.pem` and `client.pem`, each a certificate and its key.
async fn rotates(folder: &Path) -> Outcome<String> {
    for folder in [folder, &folder.join("next")] {
        std::fs::create_dir_all(folder)?;
        let certificates = Certificates::new();
        std::fs::write(folder.join("ca.pem"), certificates.root())?;
        for (case, name) in [("good_p256", "server.pem"), ("client_good", "client.pem")] {
            let row = rows().into_iter().find(|row| row.case == case).ok_or(case)?;
            let made = certificates.make(&row);
            std::fs::write(folder.join(name), made.chain + &made.key)?;
        }
    }
    let own = || Pem::file(folder.join("server.pem"));
    let server = ServerBuilder::new().identity(own(), own());
    ours(server.client_authorities(Pem::file(folder.join("ca.pem")))).await
}

/// A server of ours; its `tls://` endpoint.
async fn ours(builder: ServerBuilder) -> Outcome<String> {
    serve_on("tls://127.0.0.1:0", builder).await
}

/// A server of ours that seals; its `ws://` endpoint.
async fn sealing(builder: ServerBuilder) -> Outcome<String> {
    Ok(serve_on("127.0.0.1:0", builder).await?.replacen("tcp:", "ws:", 1))
}

/// A WebSocket in front of what speaks TLS at `endpoint`.
async fn behind(endpoint: &str) -> Outcome<Page> {
    let server = endpoint.split_once("://").ok_or("an endpoint has a scheme")?.1;
    Ok(Page::Sealed(websocket_to(server).await?))
}

async fn serve_on(bind: &str, builder: ServerBuilder) -> Outcome<String> {
    let server = builder.bind(bind).open_to_all(true).handler("/echo", EchoHandler).build().await?;
    let endpoint = server.endpoints().first().cloned().ok_or("no endpoint")?;
    tokio::spawn(async move { server.start().await });
    Ok(endpoint)
}

/// Shows to everybody what ours would not.
#[derive(Debug)]
struct Shows(Arc<CertifiedKey>);

impl ResolvesServerCert for Shows {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

/// A server that is not ours, which compares no key with its chain.
fn raw(chain: &Path, key: &Path, alpn: &[u8]) -> Outcome<String> {
    let chain = std::fs::read(chain)?;
    let chain = CertificateDer::pem_slice_iter(&chain).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(key)?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Shows(Arc::new(CertifiedKey::new(chain, any_supported_type(&key)?)))));
    config.alpn_protocols = vec![alpn.to_vec()];
    let config = Arc::new(config);
    answering(move |mut socket| {
        let Ok(mut tls) = rustls::ServerConnection::new(config.clone()) else { return };
        while tls.complete_io(&mut socket).is_ok_and(|(read, _)| read > 0) {}
    })
}

/// A server that answers every hello with these bytes, and then reads until its peer is gone.
fn saying(bytes: &'static [u8]) -> Outcome<String> {
    answering(move |mut socket| {
        let mut room = [0; 4 << 10];
        if socket.read(&mut room).is_ok() && socket.write_all(bytes).is_ok() {
            while socket.read(&mut room).is_ok_and(|len| len > 0) {}
        }
    })
}

fn answering(serve: impl Fn(TcpStream) + Send + 'static) -> Outcome<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let endpoint = format!("tls://{}", listener.local_addr()?);
    std::thread::spawn(move || listener.incoming().flatten().for_each(serve));
    Ok(endpoint)
}
