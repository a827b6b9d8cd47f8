//! ws://: one binary message holds whole frames, never a split one (PROTOCOL.md, "Carriers").

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::{
    WebSocketStream, accept_hdr_async_with_config, client_async_with_config,
    tungstenite::{
        self, Message,
        client::IntoClientRequest,
        handshake::server::{ErrorResponse, Request, Response},
        http::{HeaderValue, StatusCode, header},
        protocol::{CloseFrame, WebSocketConfig, frame::coding::CloseCode},
    },
};

use valkyrie_protocol::{Reason, Status};

use super::socket::connect_tcp;
use crate::{BoxFuture, Carrier, Connector, Endpoint, ReadBuffer, Transport};

/// The subprotocol of version 1.
const SUBPROTOCOL: &str = "valkyrie.1";
/// No carrier message is longer: a turn's frames, and the largest frame on top.
const MAX_MESSAGE: usize = 4 << 20;

fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(8 << 10)
        .write_buffer_size(0)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE))
}

struct WebSocket<S> {
    stream: WebSocketStream<Counted<S>>,
    closing: bool,
}

/// A stream that counts what is read: what came since the last message is of one that is not whole yet, but for what
/// the library's read buffer of 8 KiB held already.
struct Counted<S> {
    stream: S,
    read: usize,
}

impl<S> Counted<S> {
    fn new(stream: S) -> Self {
        Self { stream, read: 0 }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, into);
        self.read += into.filled().len() - before;
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

fn failed(error: tungstenite::Error) -> io::Error {
    match error {
        tungstenite::Error::Io(error) => error,
        other => io::Error::new(io::ErrorKind::InvalidData, other),
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocket<S> {
    /// After the handshake, which is over.
    fn new(mut stream: WebSocketStream<Counted<S>>) -> Self {
        stream.get_mut().read = 0;
        Self { stream, closing: false }
    }

    /// Closes with a code. Best effort: the connection ends either way.
    fn say_why(&mut self, cx: &mut Context<'_>, code: CloseCode, reason: &'static str) {
        self.closing = true;
        let frame = CloseFrame { code, reason: reason.into() };
        if Pin::new(&mut self.stream).poll_ready(cx).is_ready() {
            let _ = Pin::new(&mut self.stream).start_send(Message::Close(Some(frame)));
            let _ = Pin::new(&mut self.stream).poll_flush(cx);
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Transport for WebSocket<S> {
    fn carrier(&self) -> Carrier {
        Carrier::Messages
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut ReadBuffer) -> Poll<io::Result<usize>> {
        loop {
            let next = ready!(Pin::new(&mut self.stream).poll_next(cx));
            self.stream.get_mut().read = 0;
            return Poll::Ready(match next {
                None
                | Some(Ok(Message::Close(_)))
                | Some(Err(tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed)) => {
                    Ok(0)
                }
                Some(Ok(Message::Binary(bytes))) if bytes.is_empty() => continue,
                Some(Ok(Message::Binary(bytes))) => {
                    let len = bytes.len();
                    into.push(bytes);
                    Ok(len)
                }
                Some(Ok(Message::Text(_))) => {
                    self.say_why(cx, CloseCode::Unsupported, "text is not spoken here");
                    Err(io::Error::new(io::ErrorKind::InvalidData, "the peer sent a text message"))
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => continue,
                Some(Err(error)) => {
                    match &error {
                        tungstenite::Error::Protocol(_) => self.say_why(cx, CloseCode::Protocol, ""),
                        tungstenite::Error::Capacity(_) => self.say_why(cx, CloseCode::Size, ""),
                        _ => {}
                    }
                    Err(failed(error))
                }
            });
        }
    }

    fn unfinished(&self) -> usize {
        self.stream.get_ref().read
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        ready!(Pin::new(&mut self.stream).poll_ready(cx)).map_err(failed)?;
        let mut message = BytesMut::with_capacity(parts.iter().map(|part| part.len()).sum());
        parts.iter().for_each(|part| message.extend_from_slice(part));
        let len = message.len();
        Pin::new(&mut self.stream).start_send(Message::Binary(Bytes::from(message))).map_err(failed)?;
        Poll::Ready(Ok(len))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx).map_err(failed)
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.closing {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_close(cx).map_err(failed)
    }
}

pub(crate) struct Ws {
    pub(crate) patience: Option<Duration>,
}

impl Connector for Ws {
    fn connect<'a>(&'a self, endpoint: &'a Endpoint) -> BoxFuture<'a, io::Result<Box<dyn Transport>>> {
        Box::pin(async move {
            let stream = connect_tcp(endpoint, self.patience).await?;
            connect(Box::new(stream), endpoint).await
        })
    }
}

/// `wss://`.
#[cfg(feature = "tls")]
pub(crate) struct Wss {
    pub(crate) security: crate::tls::ClientSecurity,
    pub(crate) patience: Option<Duration>,
}

#[cfg(feature = "tls")]
impl Connector for Wss {
    fn connect<'a>(&'a self, endpoint: &'a Endpoint) -> BoxFuture<'a, io::Result<Box<dyn Transport>>> {
        Box::pin(async move {
            let stream = connect_tcp(endpoint, self.patience).await?;
            let socket = Box::new(super::socket::Socket::Attached(stream));
            let secured = super::tls::connect(socket, &self.security, crate::tls::ALPN_HTTP).await?;
            connect(Box::new(Io::new(secured)), endpoint).await
        })
    }
}

/// What a client's WebSocket is over: one kind, so that the library's code is there once.
trait Below: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Below for S {}

async fn connect(stream: Box<dyn Below>, endpoint: &Endpoint) -> io::Result<Box<dyn Transport>> {
    let mut request = endpoint.url().into_client_request().map_err(failed)?;
    request.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    match client_async_with_config(request, Counted::new(stream), Some(config())).await {
        Ok((stream, _)) => Ok(Box::new(WebSocket::new(stream))),
        #[cfg(feature = "tls")]
        Err(tungstenite::Error::Http(answer)) if answer.status() == StatusCode::UPGRADE_REQUIRED => {
            Err(crate::tls::failed(Reason::TLS_REQUIRED, "the server's port speaks TLS: use wss://"))
        }
        Err(error) => Err(failed(error)),
    }
}

/// Tells who asks for a WebSocket in the clear that the port speaks TLS (RFC 2817, section 4.2).
#[cfg(feature = "tls")]
pub(crate) async fn ask_for_tls(mut stream: tokio::net::TcpStream) -> io::Error {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    const ANSWER: &[u8] =
        b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: TLS/1.3, HTTP/1.1\r\nConnection: Upgrade, close\r\n\
        Content-Length: 0\r\n\r\n";
    // What it has sent is read, or the system would reset the connection before the answer is there.
    let mut asked = [0; 4 << 10];
    let _ = stream.read(&mut asked).await;
    let _ = stream.write_all(ANSWER).await;
    let _ = stream.shutdown().await;
    let _ = stream.read(&mut asked).await;
    crate::tls::failed(Reason::TLS_REQUIRED, "the peer asks for a WebSocket on a port of TLS")
}

/// A transport as a stream of tokio's, for the library of WebSocket.
#[cfg(feature = "tls")]
pub(crate) struct Io<T> {
    transport: T,
    read: ReadBuffer,
}

#[cfg(feature = "tls")]
impl<T: Transport> Io<T> {
    pub(crate) fn new(transport: T) -> Self {
        Self { transport, read: ReadBuffer::default() }
    }
}

#[cfg(feature = "tls")]
impl<T: Transport + Unpin> AsyncRead for Io<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.read.bytes.is_empty() {
            ready!(this.transport.poll_read(cx, &mut this.read))?;
        }
        let len = this.read.bytes.len().min(into.remaining());
        into.put_slice(&this.read.bytes.split_to(len));
        Poll::Ready(Ok(()))
    }
}

#[cfg(feature = "tls")]
impl<T: Transport + Unpin> AsyncWrite for Io<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().transport.poll_write(cx, &[IoSlice::new(bytes)])
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().transport.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().transport.poll_close(cx)
    }
}

/// Answers a WebSocket handshake. A page's origin must be this server's own, loopback, or one of `origins`.
pub(crate) async fn accept<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    origins: &[String],
) -> io::Result<Box<dyn Transport>> {
    // The error type is the library's.
    #[allow(clippy::result_large_err, reason = "tungstenite's callback fixes the type")]
    let check = |request: &Request, mut response: Response| -> Result<Response, ErrorResponse> {
        let text = |name| request.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        if let Some(origin) = text(header::ORIGIN)
            && !origin_allowed(origin, text(header::HOST), origins)
        {
            let mut refused = ErrorResponse::new(Some(format!("origin {origin:?} is not allowed")));
            *refused.status_mut() = StatusCode::FORBIDDEN;
            return Err(refused);
        }
        if let Some(offered) = text(header::SEC_WEBSOCKET_PROTOCOL) {
            if !offered.split(',').any(|one| one.trim() == SUBPROTOCOL) {
                let mut refused = ErrorResponse::new(Some(format!("the subprotocol is {SUBPROTOCOL}")));
                *refused.status_mut() = StatusCode::BAD_REQUEST;
                return Err(refused);
            }
            response
                .headers_mut()
                .insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
        }
        Ok(response)
    };
    let stream = Counted::new(stream);
    let accepted = accept_hdr_async_with_config(stream, check, Some(config())).await;
    let stream = accepted.map_err(|error| match error {
        tungstenite::Error::Http(answer) if answer.status() == StatusCode::FORBIDDEN => {
            let why = "a page of an origin that is not allowed asks for a WebSocket";
            let status = Status::from_reason(Reason::PERMISSION_DENIED, why);
            io::Error::new(io::ErrorKind::InvalidData, status)
        }
        other => failed(other),
    })?;
    Ok(Box::new(WebSocket::new(stream)))
}

fn origin_allowed(origin: &str, host: Option<&str>, origins: &[String]) -> bool {
    if origins.iter().any(|allowed| allowed == "*" || allowed == origin) {
        return true;
    }
    let Some((_, authority)) = origin.split_once("://") else { return false };
    let name = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((inside, _)) => inside,
        None => authority.rsplit_once(':').map_or(authority, |(name, _)| name),
    };
    let loopback = name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    loopback || host.is_some_and(|host| host.eq_ignore_ascii_case(authority))
}

#[cfg(test)]
mod tests {
    use super::origin_allowed;

    #[test]
    fn a_foreign_page_is_refused() {
        let listed = ["https://app.example".to_owned()];
        assert!(origin_allowed("http://localhost:3000", Some("10.0.0.1:80"), &[]));
        assert!(origin_allowed("http://[::1]:3000", None, &[]));
        assert!(origin_allowed("https://api.example", Some("api.example"), &[]));
        assert!(origin_allowed("https://app.example", Some("api.example"), &listed));
        assert!(!origin_allowed("https://evil.example", Some("api.example"), &listed));
        assert!(!origin_allowed("https://localhost.evil.example", Some("api.example"), &[]));
        assert!(!origin_allowed("null", Some("api.example"), &[]));
    }
}
