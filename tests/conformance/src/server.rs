//! The conformance server: the methods of the library's own echo core, over sockets, and the fresh servers that it opens for
//! cases that end one.

use std::{
    net::{Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use serde_json::Value;
use valkyrie_bridge::Methods;
use valkyrie_sdk::{
    Authenticator, BoxFuture, CallInfo, Code, Gate, Jwt, JwtAlgorithm, JwtBuilder, Peer, Principal, Reason,
    Refusal, Reply, Server, ServerBuilder, Status,
    access::{Access, Policy},
    handler_fn,
};

/// The methods of a conformance server.
pub fn methods() -> Methods {
    Methods::new(|scheme| Box::pin(async move { private_server(&scheme).await }))
}

/// Opens a fresh server with the same methods that a caller may end, and gives its endpoint for `scheme`: `tcp`,
/// `ws`, `tls`, `wss`, `unix`, `quic` or `memory`. It lives until it is shut down or the process ends.
/// With ` credentials` or ` access POLICY` behind the scheme it wants tokens; README.md says which.
///
/// # Errors
/// INVALID_ARGUMENT for another scheme, server or policy; BIND_FAILED.
pub async fn private_server(scheme: &str) -> Result<String, Status> {
    let (scheme, kind) = scheme.split_once(' ').unwrap_or((scheme, ""));
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = format!("valkyrie-private-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
    let bind = match scheme {
        "tcp" | "ws" => "127.0.0.1:0".to_owned(),
        "unix" => format!("unix://{}", std::env::temp_dir().join(name).display()),
        "memory" => format!("memory:{name}"),
        "quic" => "quic://127.0.0.1:0".to_owned(),
        "tls" | "wss" => "tls://127.0.0.1:0".to_owned(),
        other => {
            let message = format!("no private server for scheme {other:?}");
            return Err(Status::new(Code::InvalidArgument, message));
        }
    };
    let methods = methods();
    let (certificates, key) = identity();
    let builder = ServerBuilder::new().bind(bind).versions(versions());
    let builder = builder.identity(certificates.as_str(), key.as_str()).open_to_all(true);
    let builder = match kind.split_once(' ').unwrap_or((kind, "")) {
        ("", "") => methods.register(builder),
        ("credentials", "") => {
            let authenticators: Vec<Box<dyn Authenticator>> = vec![Box::new(Tokens), Box::new(issuer()?)];
            methods
                .register(builder)
                .authenticator(authenticators)
                .gate(Arc::new(Subjects(Access::new(Policy::from_toml(POLICY)?))))
        }
        // Whatever gets through is answered with its own name, as it came.
        ("access", name) => {
            let policy = access_table()?["policies"][name].to_string();
            builder
                .authenticator(Stated)
                .gate(Arc::new(Access::new(Policy::from_json(&policy)?)))
                .handler("/*", handler_fn(|call| async move { Ok(Reply::message(call.method().to_owned())) }))
        }
        _ => return Err(Status::new(Code::InvalidArgument, format!("no private server is {kind:?}"))),
    };
    let server = builder.build().await?;
    methods.allow_shutdown(server.control());
    let endpoint = endpoint(&server, scheme)?;
    tokio::spawn(async move { server.start().await });
    Ok(endpoint)
}

/// Tokens in words: `good NAME` stands for `sub:NAME`, `brief MS NAME` for as many milliseconds; others are refused.
struct Tokens;

impl Authenticator for Tokens {
    fn authenticate<'a>(
        &'a self,
        token: &'a [u8],
        _: &'a Peer,
        now: SystemTime,
    ) -> BoxFuture<'a, Result<Principal, Refusal>> {
        let words: Vec<_> = str::from_utf8(token).unwrap_or_default().split(' ').collect();
        let principal = match words[..] {
            ["good", name] => Ok(Principal::new(&format!("sub:{name}"))),
            ["brief", ms, name] => ms.parse().map_or(Err(Refusal("no number".into())), |ms| {
                Ok(Principal::new(&format!("sub:{name}")).with_expiry(now + Duration::from_millis(ms)))
            }),
            _ => Err(Refusal("another token".into())),
        };
        Box::pin(std::future::ready(principal))
    }
}

/// Tokens that say whom they stand for: `{"principal":"…","roles":["…"]}`.
struct Stated;

impl Authenticator for Stated {
    fn authenticate<'a>(
        &'a self,
        token: &'a [u8],
        _: &'a Peer,
        _: SystemTime,
    ) -> BoxFuture<'a, Result<Principal, Refusal>> {
        let stated: Value = serde_json::from_slice(token).unwrap_or_default();
        let roles = stated["roles"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let principal = stated["principal"].as_str().ok_or_else(|| Refusal("no principal".into()));
        let principal = principal.map(|name| Principal::new(name).with_roles(roles.map(str::to_owned)));
        Box::pin(std::future::ready(principal))
    }
}

/// core/sdk/tests/access.json: policies, and what each lets whom call.
///
/// # Errors
/// INTERNAL: it is no JSON.
pub fn access_table() -> Result<Value, Status> {
    serde_json::from_str(include_str!("../../../core/sdk/tests/access.json"))
        .map_err(|error| Status::new(Code::Internal, error.to_string()))
}

/// The issuer of core/sdk/tests/jwt.json, as its rows without a `config` want it.
///
/// # Errors
/// INVALID_CONFIGURATION for keys that are none.
pub fn issuer() -> Result<Jwt, Status> {
    let table: Value = serde_json::from_str(include_str!("../../../core/sdk/tests/jwt.json"))
        .map_err(|error| Status::new(Code::Internal, error.to_string()))?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut builder = JwtBuilder::new(text(&table["issuer"]), text(&table["audience"]));
    for (name, algorithm) in
        [("ed", JwtAlgorithm::EdDsa), ("ec", JwtAlgorithm::Es256), ("rsa", JwtAlgorithm::Rs256)]
    {
        builder = builder.key_pem(name, algorithm, text(&table["keys"][name]["pem"]));
    }
    builder.build()
}

/// What subjects may do there.
const POLICY: &str = r#"
version = 1
[roles.user]
allow = ["/echo", "/test/*"]
deny = ["/test/sum"]
[[bindings]]
principals = ["sub:*"]
roles = ["user"]
[[quotas]]
principals = ["sub:limited"]
calls = 2
seconds = 3600
"#;

/// The policy, for whoever has shown a token; others are nobody, whatever else is known of them.
struct Subjects(Access);

impl Gate for Subjects {
    fn admit(&self, call: &CallInfo<'_>) -> Result<(), Status> {
        if !call.principal.id().starts_with("sub:") {
            return Err(Status::from_reason(Reason::UNAUTHENTICATED, "a token is needed here"));
        }
        Gate::admit(&self.0, call)
    }
}

fn endpoint(server: &Server, scheme: &str) -> Result<String, Status> {
    let endpoints = server.endpoints();
    endpoints
        .iter()
        .find(|endpoint| endpoint.starts_with(&format!("{scheme}:")))
        .cloned()
        .ok_or_else(|| Status::new(Code::Internal, format!("no {scheme} among {endpoints:?}")))
}

/// The protocol versions that this program offers: the only one, or up to what `VALKYRIE_CONFORMANCE_VERSIONS` says.
pub fn versions() -> RangeInclusive<u8> {
    let most = std::env::var("VALKYRIE_CONFORMANCE_VERSIONS").ok().and_then(|most| most.parse().ok());
    1..=most.unwrap_or(1)
}

/// A certificate for this machine, made once for the process, and its key, both as PEM text.
///
/// # Panics
/// When the system has no random numbers.
pub fn identity() -> &'static (String, String) {
    static IDENTITY: OnceLock<(String, String)> = OnceLock::new();
    IDENTITY.get_or_init(|| {
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).expect("a certificate can be made");
        (made.cert.pem(), made.signing_key.serialize_pem())
    })
}

/// A UDP port that is taken and that nobody listens on: the system says so to whoever sends there.
///
/// # Errors
/// The system's.
pub fn absent_udp() -> std::io::Result<std::net::UdpSocket> {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    // It hears that one address only.
    socket.connect((Ipv4Addr::LOCALHOST, 9))?;
    Ok(socket)
}

/// A TCP port that is taken and that nobody listens on: connecting is refused for as long as this lives.
pub struct Absent(socket2::Socket);

impl Absent {
    /// Takes a port.
    ///
    /// # Errors
    /// The system's.
    pub fn new() -> std::io::Result<Self> {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
        Ok(Self(socket))
    }

    /// `127.0.0.1:port`.
    ///
    /// # Errors
    /// The system's.
    pub fn address(&self) -> std::io::Result<String> {
        match self.0.local_addr()?.as_socket() {
            Some(address) => Ok(address.to_string()),
            None => Err(std::io::Error::other("the socket has no address")),
        }
    }
}
