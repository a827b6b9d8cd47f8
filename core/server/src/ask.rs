//! `probe` and `reload`: ask an admin port, for health checks and operators where there is no other program, as in an image that
//! holds the server alone.

use std::{
    io::{self, Read, Write},
    net::{TcpStream, ToSocketAddrs},
    time::Duration,
};

/// How long each step may take: longer than a server leaves whoever asks.
const PATIENCE: Duration = Duration::from_secs(6);
/// Longer than any answer to these questions.
const MAX_ANSWER_BYTES: u64 = 256 << 10;

trait Socket: Read + Write {}
impl<T: Read + Write> Socket for T {}

/// What the admin port of `127.0.0.1:9090`, `http://127.0.0.1:9090` or `unix:///path` answers to a request such as `GET /readyz`: the
/// status, and the text with its lines as they are and other control characters escaped.
pub(crate) fn ask(admin: &str, request: &str) -> io::Result<(u16, String)> {
    let mut socket = connect(admin)?;
    let head = format!("{request} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    socket.write_all(head.as_bytes())?;
    let mut answer = Vec::new();
    socket.take(MAX_ANSWER_BYTES).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let not_http = || io::Error::new(io::ErrorKind::InvalidData, "what answers is no admin port");
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(not_http)?;
    let status = head.strip_prefix("HTTP/1.1 ").and_then(|head| head.get(..3)?.parse().ok());
    let escaped = |character: char| match character {
        '\n' => "\n".to_owned(),
        control if control.is_control() => control.escape_default().to_string(),
        other => other.to_string(),
    };
    Ok((status.ok_or_else(not_http)?, body.chars().map(escaped).collect()))
}

fn connect(admin: &str) -> io::Result<Box<dyn Socket>> {
    #[cfg(unix)]
    if let Some(path) = admin.strip_prefix("unix://") {
        let socket = std::os::unix::net::UnixStream::connect(path)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        return Ok(Box::new(socket));
    }
    let address = admin.strip_prefix("http://").unwrap_or(admin).to_socket_addrs()?.next();
    let socket = TcpStream::connect_timeout(&address.ok_or(io::ErrorKind::AddrNotAvailable)?, PATIENCE)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(Box::new(socket))
}
