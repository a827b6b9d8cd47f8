//! The server that every language's runner calls. It prints its endpoints as one line of JSON and ends when its
//! standard input closes, so that it never outlives whoever started it.
#![forbid(unsafe_code)]

use std::{
    error::Error,
    io::Write,
    process::{Command, ExitCode},
};

use tokio::io::AsyncReadExt;
use valkyrie_conformance::{Absent, absent_udp, identity, methods, versions};
use valkyrie_sdk::{Code, Reply, ServerBuilder, Status, handler_fn};

#[tokio::main]
async fn main() -> ExitCode {
    // One case makes a handler panic: a line of it is enough.
    std::panic::set_hook(Box::new(|panic| eprintln!("valkyrie-conformance-server: {panic}")));
    match serve().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("valkyrie-conformance-server: {error}");
            ExitCode::FAILURE
        }
    }
}

/// As by `kill -9`: nothing is said, flushed or taken away.
async fn die() -> Result<Reply, Status> {
    let killed = Command::new("kill").args(["-9", &std::process::id().to_string()]).status();
    Err(Status::new(Code::Internal, format!("it lives: {killed:?}")))
}

async fn serve() -> Result<(), Box<dyn Error>> {
    let path = std::env::temp_dir().join(format!("valkyrie-conformance-{}", std::process::id()));
    let (absent, absent_udp) = (Absent::new()?, absent_udp()?);
    let (certificates, key) = identity();
    let trusted = path.with_extension("pem");
    std::fs::write(&trusted, certificates)?;
    let bind = std::env::var("VALKYRIE_CONFORMANCE_BIND").unwrap_or_else(|_| "127.0.0.1:0".into());
    let builder = ServerBuilder::new()
        .versions(versions())
        .bind(bind)
        .bind(format!("unix://{}", path.display()))
        .bind("quic://127.0.0.1:0")
        .bind("tls://127.0.0.1:0")
        .identity(certificates.as_str(), key.as_str())
        .open_to_all(true);
    let mut builder = methods().register(builder);
    if std::env::var_os("VALKYRIE_CONFORMANCE_MAY_DIE").is_some() {
        builder = builder.handler("/test/die", handler_fn(|_| die()));
    }
    let server = builder.build().await?;
    let address = server.local_addr().ok_or("no tcp address")?;
    let endpoint =
        |scheme: &str| server.endpoints().into_iter().find(|endpoint| endpoint.starts_with(scheme));
    let endpoints = serde_json::json!({
        "tcp": format!("tcp://{address}"),
        "ws": format!("ws://{address}"),
        "unix": format!("unix://{}", path.display()),
        "quic": endpoint("quic:"),
        "tls": endpoint("tls:"),
        "wss": endpoint("wss:"),
        "certificates": trusted,
        "absent_quic": format!("quic://{}", absent_udp.local_addr()?),
        "absent_tcp": format!("tcp://{}", absent.address()?),
        "absent_ws": format!("ws://{}", absent.address()?),
        "absent_tls": format!("tls://{}", absent.address()?),
        "absent_wss": format!("wss://{}", absent.address()?),
        "absent_unix": format!("unix://{}.absent", path.display()),
    });
    println!("{endpoints}");
    std::io::stdout().flush()?;
    let (mut stdin, mut ignored) = (tokio::io::stdin(), Vec::new());
    tokio::select! {
        served = server.start() => served?,
        _ = stdin.read_to_end(&mut ignored) => server.control().shutdown_now(),
    }
    // The unix socket outlives a server that is cut.
    let _ = std::fs::remove_file(path);
    let _ = std::fs::remove_file(trusted);
    Ok(())
}
