//! Who gets in, as operators set it up: certificates and the audit's proof are made with the command line, `valkyrie`.

use std::{
    os::unix::fs::PermissionsExt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use data_encoding::{BASE64, BASE64URL_NOPAD};
use ring::{
    rand::SystemRandom,
    signature::{Ed25519KeyPair, KeyPair},
};
use valkyrie_sdk::{ClientBuilder, Status};

use super::*;

impl Folder {
    fn write_secret(&self, name: &str, text: &str) -> String {
        let path = self.write(name, text);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.0.join(name)).unwrap()
    }

    /// An authority in `ca.pem`, and a certificate of its for this machine in `server.pem`.
    fn certified(self) -> Self {
        let here = self.0.to_str().unwrap();
        valkyrie(&["cert", "ca", "--out", here], 0);
        valkyrie(&["cert", "leaf", "--ca", here, "--out", here, "--host", "127.0.0.1"], 0);
        self
    }

    /// The lines of a configuration that show that certificate.
    fn identity(&self) -> String {
        format!("certificates = {:?}\nprivate_key = {:?}\n", self.path("server.pem"), self.path("server.key"))
    }

    fn client(&self, endpoint: &str) -> ClientBuilder {
        Client::builder().endpoint(endpoint).trusted_certificates(self.read("ca.pem"))
    }
}

/// Runs the command line, built if it is not there or not up to date; what it says.
pub(super) fn valkyrie(arguments: &[&str], code: i32) -> String {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let built = PROGRAM.get_or_init(|| {
        let beside = program().with_file_name("valkyrie");
        if std::env::var_os("VALKYRIE_TEST_PROGRAMS").is_some() {
            return beside;
        }
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "-p", "valkyrie-tools"]);
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success(), "valkyrie-tools cannot be built");
        beside
    });
    let output = Command::new(built).args(arguments).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    said
}

/// Signs tokens.
struct Issuer(Ed25519KeyPair);

impl Issuer {
    fn new() -> Self {
        let key = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Self(Ed25519KeyPair::from_pkcs8(key.as_ref()).unwrap())
    }

    /// SubjectPublicKeyInfo of an Ed25519 key (RFC 8410) is these bytes and the key.
    fn pem(&self) -> String {
        let info = [&b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00"[..], self.0.public_key().as_ref()];
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", BASE64.encode(&info.concat()))
    }

    /// A token that ends in so many seconds.
    fn token(&self, subject: &str, seconds: i64) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
        let header = BASE64URL_NOPAD.encode(br#"{"alg":"EdDSA","typ":"at+jwt","kid":"k1"}"#);
        let claims = serde_json::json!({
            "iss": "https://issuer.example", "aud": "orders", "sub": subject, "exp": now + seconds,
        });
        let claims = BASE64URL_NOPAD.encode(claims.to_string().as_bytes());
        let signed = format!("{header}.{claims}");
        let signature = BASE64URL_NOPAD.encode(self.0.sign(signed.as_bytes()).as_ref());
        format!("{signed}.{signature}")
    }
}

const POLICY: &str = r#"
version = 1
[roles.caller]
allow = ["/echo"]
[roles.operator]
allow = ["/valkyrie.Metrics/*"]
[[bindings]]
principals = ["sub:alice", "sub:carol"]
roles = ["caller"]
[[bindings]]
principals = ["sub:operator"]
roles = ["operator"]
[[quotas]]
principals = ["sub:carol"]
calls = 1
seconds = 86400
"#;

#[tokio::test]
async fn tokens_a_policy_and_an_audit_over_tls() {
    let (folder, issuer) = (Folder::new().certified(), Issuer::new());
    let audit_key = folder.write_secret("audit.key", "canary-audit-key-canary-audit-key-");
    let config = folder.write(
        "server.toml",
        &format!(
            "bind = [\"tls://127.0.0.1:0\"]\n{}policy = {:?}\naudit = {:?}\naudit_key = {audit_key:?}\n\
             audit_on_failure = \"fail_closed\"\nlog_level = \"debug\"\n\n[[token_issuers]]\n\
             issuer = \"https://issuer.example\"\naudience = \"orders\"\n\
             keys = [{{ kid = \"k1\", algorithm = \"EdDSA\", file = {:?} }}]\n",
            folder.identity(),
            folder.write("policy.toml", POLICY),
            folder.path("audit.log"),
            folder.write("k1.pem", &issuer.pem()),
        ),
    );
    let checked = run(&["check", &config]);
    assert_eq!(checked.status.code(), Some(0), "{}", String::from_utf8_lossy(&checked.stderr));
    let mut server = Server::start(&["--config", &config]);
    let endpoint = server.endpoint("tls").to_owned();
    let mut tokens = Vec::new();
    let mut client = |subject: &str, seconds| {
        let token = issuer.token(subject, seconds);
        tokens.push(token.clone());
        folder.client(&endpoint).token(token).build()
    };
    let alice = client("alice", 300).await.unwrap();
    let (mallory, carol) = (client("mallory", 300).await.unwrap(), client("carol", 300).await.unwrap());
    let (operator, late) = (client("operator", 300).await.unwrap(), client("alice", -300).await.unwrap());
    let anonymous = folder.client(&endpoint).build().await.unwrap();

    assert_eq!(alice.request("hello").await.unwrap(), "hello");
    let reason = |result: Result<valkyrie_sdk::Bytes, Status>| result.unwrap_err().reason();
    assert_eq!(reason(mallory.request("x").await), Reason::PERMISSION_DENIED);
    assert_eq!(reason(anonymous.request("x").await), Reason::UNAUTHENTICATED);
    assert_eq!(reason(late.request("x").await), Reason::CREDENTIALS_REFUSED);
    assert_eq!(anonymous.call("/valkyrie.Health/Check", "").await.unwrap().message, "serving");
    assert_eq!(carol.request("once").await.unwrap(), "once");
    assert_eq!(reason(carol.request("twice").await), Reason::RATE_LIMITED);
    let metrics = operator.call("/valkyrie.Metrics/Get", "").await.unwrap().message;
    let metrics = String::from_utf8(metrics.to_vec()).unwrap();
    for count in ["calls_denied_total 2", "calls_limited_total 1", "audit_lost_total 0"] {
        assert!(metrics.contains(&format!("\nvalkyrie_{count}\n")), "{count}: {metrics}");
    }
    // A client may try more than once.
    assert!(!metrics.contains("\nvalkyrie_credentials_refused_total 0\n"), "{metrics}");
    // What was good runs out while its stream stands.
    let short = client("alice", 2).await.unwrap();
    let (_send, mut recv) = open_echo(&short).await;
    assert_eq!(recv.recv().await.unwrap_err().reason(), Reason::CREDENTIALS_EXPIRED);

    // The policy changes under a connection and its stream.
    let (mut send, mut recv) = open_echo(&alice).await;
    folder.write("policy.toml", &POLICY.replace("sub:alice", "sub:nobody"));
    server.signal("HUP");
    server.wait_for_log("policy loaded");
    assert_eq!(reason(alice.request("x").await), Reason::PERMISSION_DENIED);
    send.send("still here").await.unwrap();
    assert_eq!(recv.recv().await.unwrap().unwrap(), "still here");
    // What cannot be read changes nothing.
    folder.write("policy.toml", "version = 1\n[roles.caller]\nalow = [\"/*\"]\n");
    server.signal("HUP");
    let line = server.wait_for_log("rules before it stay in force");
    assert!(line.contains("policy.toml:3"), "{line}");
    assert_eq!(reason(alice.request("x").await), Reason::PERMISSION_DENIED);
    drop((send, recv));
    server.signal("TERM");
    let (code, log) = server.ended();
    assert_eq!(code, Some(0), "{log}");

    let (log, audit) = (server.heard.clone() + &log, folder.read("audit.log"));
    for word in [
        "call refused",
        "sub:mallory",
        "PERMISSION_DENIED",
        "RATE_LIMITED",
        "credentials refused",
        "expired",
        "principal=\"sub:alice\" correlation_id",
    ] {
        assert!(log.contains(word), "{word}: {log}");
    }
    for word in ["\"allowed\"", "\"denied\"", "\"limited\"", "\"accepted\"", "\"refused\"", "\"loaded\""] {
        assert!(audit.contains(word), "{word}: {audit}");
    }
    // No token, no part of one that signs, and no key in what is written anywhere.
    let mut secrets = vec!["canary-audit".to_owned()];
    secrets
        .extend(folder.read("server.key").lines().filter(|line| !line.starts_with('-')).map(str::to_owned));
    for token in &tokens {
        let signed = token.split_once('.').map_or("", |(_header, rest)| rest);
        secrets.extend(signed.split('.').filter(|part| !part.is_empty()).map(str::to_owned));
    }
    for secret in &secrets {
        assert!(!log.contains(secret.as_str()) && !audit.contains(secret.as_str()), "{secret}: {log}{audit}");
    }

    let (file, key) = (folder.path("audit.log"), audit_key.as_str());
    valkyrie(&["audit", "verify", "--key-file", key, &file], 0);
    let changed = folder.write("changed.log", &audit.replace("sub:mallory", "sub:alice"));
    let said = valkyrie(&["audit", "verify", "--key-file", key, &changed], 15);
    assert!(said.contains("changed.log:"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_show_certificates_or_stay_outside() {
    let folder = Folder::new().certified();
    let (here, clients) = (folder.0.to_str().unwrap(), folder.path("clients"));
    let spiffe = "spiffe://example.org/web/one";
    valkyrie(&["cert", "leaf", "--ca", here, "--out", &clients, "--client", "--spiffe", spiffe], 0);
    let policy = POLICY.replace("sub:alice", "spiffe://example.org/web/*");
    let mut server = Server::start(&[
        "--bind",
        "tls://127.0.0.1:0",
        "--bind",
        "127.0.0.1:0",
        "--certificates",
        &folder.path("server.pem"),
        "--private-key",
        &folder.path("server.key"),
        "--client-authorities",
        &folder.path("ca.pem"),
        "--min-security",
        "mtls",
        "--policy",
        &folder.write("policy.toml", &policy.replace("sub:operator", "spiffe://example.org/web/*")),
    ]);
    let (tls, tcp) = (server.endpoint("tls").to_owned(), server.endpoint("tcp").to_owned());
    let known = || {
        let read = |name: &str| folder.read(&format!("clients/{name}"));
        folder.client(&tls).identity(read("client.pem"), read("client.key"))
    };
    assert_eq!(known().build().await.unwrap().request("hello").await.unwrap(), "hello");
    assert_eq!(known().endpoint(&tcp).sealed(true).build().await.unwrap().request("x").await.unwrap(), "x");
    // TLS 1.3 tells a client of its certificate after its handshake: the first call finds out, if building has not.
    let told = async |builder: ClientBuilder| match builder.build().await {
        Ok(client) => client.request("x").await.unwrap_err().reason(),
        Err(status) => status.reason(),
    };
    assert_eq!(told(folder.client(&tls)).await, Reason::CLIENT_CERTIFICATE_REQUIRED);
    // Plain words: to the port of TLS, and to one where they are legal and not enough.
    let plain = Client::builder().min_security(Security::Insecure);
    assert_eq!(told(plain.endpoint(tls.replace("tls://", "tcp://"))).await, Reason::TLS_REQUIRED);
    let plain = Client::builder().min_security(Security::Insecure);
    assert_eq!(told(plain.endpoint(&tcp)).await, Reason::TLS_REQUIRED);
    let watching = known().build().await.unwrap();
    let counted = async {
        loop {
            let metrics = watching.call("/valkyrie.Metrics/Get", "").await.unwrap().message;
            let metrics = String::from_utf8(metrics.to_vec()).unwrap();
            let count = |name: &str| -> u64 {
                let line = metrics.lines().find_map(|line| line.strip_prefix(name));
                line.map_or(0, |line| line.trim().parse().unwrap())
            };
            let failed = ["CLIENT_CERTIFICATE_REQUIRED", "TLS_REQUIRED"]
                .map(|reason| count(&format!("valkyrie_connections_failed_total{{reason=\"{reason}\"}}")));
            // Every connection but those of the three clients that were let in: whoever tries twice is counted twice. The server may
            // count after a client is told.
            if failed.iter().sum::<u64>() + 3 == count("valkyrie_connections_total ") {
                assert!(failed.iter().all(|count| *count > 0), "{metrics}");
                break;
            }
        }
    };
    // A hang is bounded far above anything that should take that long.
    tokio::time::timeout(std::time::Duration::from_secs(60), counted).await.expect("the counts do not fit");
    // What is read again and cannot be used is told, and changes nothing.
    let key = folder.read("server.key");
    folder.write("server.key", "canary of a key");
    // It is looked at when somebody connects.
    let stop = Arc::new(AtomicBool::new(false));
    let connecting = tokio::spawn({
        let (stop, endpoint) = (stop.clone(), tls.clone());
        let read = |name: &str| folder.read(&format!("clients/{name}"));
        let (certificates, key, ca) = (read("client.pem"), read("client.key"), folder.read("ca.pem"));
        async move {
            while !stop.load(Relaxed) {
                let builder = Client::builder().endpoint(&endpoint);
                let builder = builder.trusted_certificates(ca.clone());
                let client = builder.identity(certificates.clone(), key.clone()).build().await.unwrap();
                assert_eq!(client.request("hello").await.unwrap(), "hello");
            }
        }
    });
    let told = server.wait_for_log("stays in force");
    stop.store(true, Relaxed);
    connecting.await.unwrap();
    assert!(told.contains("WARN") && told.contains("server.key holds no private key"), "{told}");
    folder.write("server.key", &key);
    server.signal("TERM");
    let (code, log) = server.ended();
    assert_eq!(code, Some(0));
    let log = server.heard.clone() + &log;
    // One for the address, whatever its connections failed of.
    assert_eq!(log.matches("reason=\\\"").count() + log.matches("reason=\"").count(), 1, "{log}");
    assert_eq!(log.matches("stays in force").count(), 1, "{log}");
    assert!(!log.contains("canary") && !log.contains(key.lines().nth(1).unwrap()), "{log}");
}

#[tokio::test]
async fn with_a_certificate_and_no_policy_everything_is_denied_until_it_is_said_otherwise() {
    let folder = Folder::new().certified();
    let (certificates, key) = (folder.path("server.pem"), folder.path("server.key"));
    let shown = ["--bind", "tls://127.0.0.1:0", "--certificates", &certificates, "--private-key", &key];
    for (open, warnings) in [("false", 1), ("true", 0)] {
        let mut server = Server::start(&[&shown[..], &["--open-to-all", open]].concat());
        let client = folder.client(server.endpoint("tls")).build().await.unwrap();
        let answer = client.request("hello").await;
        match open {
            "true" => assert_eq!(answer.unwrap(), "hello"),
            _ => assert_eq!(answer.unwrap_err().reason(), Reason::UNAUTHENTICATED),
        }
        assert_eq!(client.call("/valkyrie.Health/Check", "").await.unwrap().message, "serving");
        server.signal("TERM");
        let (_, log) = server.ended();
        assert_eq!(log.matches("the key `policy` names a file of rules").count(), warnings, "{log}");
    }
}

#[tokio::test]
async fn static_tokens_come_from_a_file_that_nobody_else_reads() {
    let folder = Folder::new();
    let policy = folder.write("policy.toml", POLICY);
    let tokens = folder.write("tokens", "# who, what with\nsub:alice canary-token-of-alice\n");
    let start = ["start", "--bind", "127.0.0.1:0", "--policy", &policy, "--static-tokens", &tokens];
    fs::set_permissions(&tokens, fs::Permissions::from_mode(0o644)).unwrap();
    let said = |output: Output| {
        assert_eq!(output.status.code(), Some(2));
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(!said.contains("canary"), "{said}");
        said
    };
    assert!(said(run(&start)).contains("chmod 600"));
    for (text, line, words) in [
        ("sub:alice\n", 1, "sub:alice has no token"),
        ("\ncanary sub:alice\n", 2, "begins with no principal"),
        ("sub:alice canary\nsub:bob canary\n", 2, "another principal's too"),
        ("# nothing\n", 1, "lists no token"),
    ] {
        folder.write_secret("tokens", text);
        let said = said(run(&start));
        assert!(said.contains(words) && said.contains(&format!("{tokens}:{line}: ")), "{said}");
    }
    folder.write_secret("tokens", "sub:alice canary-token-of-alice\n");
    let mut server = Server::start(&start[1..]);
    let client = |token: &str| Client::builder().endpoint(server.endpoint("tcp")).token(token).build();
    assert_eq!(client("canary-token-of-alice").await.unwrap().request("x").await.unwrap(), "x");
    let refused = client("canary-token-of-bob").await.unwrap().request("x").await.unwrap_err();
    assert_eq!(refused.reason(), Reason::CREDENTIALS_REFUSED);
    server.signal("TERM");
    let (code, log) = server.ended();
    assert_eq!(code, Some(0));
    assert!(log.contains("the token is not listed") && !log.contains("canary"), "{log}");
}

#[test]
fn check_tells_what_does_not_fit() {
    let folder = Folder::new().certified();
    let other = Folder::new().certified();
    let (identity, ca) = (folder.identity(), folder.path("ca.pem"));
    let issuer = "[[token_issuers]]\nissuer = \"https://a.example\"\naudience = \"x\"\n";
    let policy = folder.write("policy.toml", "version = 1\n[roles.x]\nallow = [\"echo\"]\n");
    for (text, line, key, words) in [
        (
            "bind = [\"tls://127.0.0.1:0\"]\n".into(),
            None,
            "certificates",
            "needs certificates and private_key",
        ),
        (
            "metrics = true\nmin_security = \"tls\"\n".into(),
            None,
            "certificates",
            "min_security above insecure",
        ),
        (format!("{identity}min_security = \"mtls\"\n"), None, "client_authorities", "mtls needs them"),
        (format!("{identity}revocation_lists = {ca:?}\n"), None, "client_authorities", "no use without"),
        (format!("client_authorities = {ca:?}\n"), None, "certificates", "client_authorities need"),
        (
            format!("{identity}\nclient_authorities = \"/none.pem\"\n"),
            Some(4),
            "client_authorities",
            "/none.pem",
        ),
        (
            format!(
                "certificates = {:?}\nprivate_key = {:?}\n",
                folder.path("server.pem"),
                other.path("server.key")
            ),
            Some(1),
            "certificates",
            "key",
        ),
        (format!("{identity}policy = {policy:?}\n"), Some(3), "policy", "policy.toml:3: roles.x.allow"),
        ("\npolicy = \"/none.toml\"\n".into(), Some(2), "policy", "/none.toml"),
        ("audit_key = \"/none\"\n".into(), None, "audit", "no use without it"),
        ("min_security = \"high\"\n".into(), Some(1), "min_security", "mtls"),
        (issuer.into(), Some(2), "token_issuers[0].issuer", "has no keys"),
        (format!("{issuer}leeway_s = 301\n"), Some(4), "token_issuers[0].leeway_s", "from 0 to 300"),
        (
            format!("{issuer}jwks_roots = {ca:?}\n"),
            Some(2),
            "token_issuers[0].issuer",
            "no use without jwks_url",
        ),
        (
            format!("{issuer}keys = [{{ kid = \"k\", algorithm = \"none\", file = \"k\" }}]\n"),
            Some(4),
            "token_issuers[0].keys[0].algorithm",
            "EdDSA",
        ),
        (
            format!("{issuer}keys = [{{ kid = \"k\", algorithm = \"ES256\", file = {ca:?} }}]\n"),
            Some(2),
            "token_issuers[0].issuer",
            "give a section PUBLIC KEY",
        ),
        (
            format!("{issuer}jwks_url = \"ftp://x\"\n\n{issuer}jwks_file = \"/none\"\n"),
            Some(2),
            "token_issuers[0].issuer",
            "ftp://x",
        ),
    ] {
        let file = folder.write("wrong.toml", &text);
        let output = run(&["check", &file]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}: {said}");
        let place = line.map_or(format!("{file}: {key}: "), |line: usize| format!("{file}:{line}:"));
        let says = |words: &str| said.contains(words);
        assert!(says(&place) && says(&format!(": {key}: ")) && says(words), "{text}: {said}");
    }
}
