//! A WebSocket in front of a server of bytes, so that a page reaches what is not one of ours: it changes nothing.

use std::io;

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_tungstenite::{
    accept_hdr_async,
    tungstenite::{
        Error, Message,
        handshake::server::{ErrorResponse, Request, Response},
        http::{HeaderValue, header::SEC_WEBSOCKET_PROTOCOL},
    },
};

/// Opens a port for pages whose messages go on to `server`, `host:port`, as bytes; its `ws://` endpoint.
///
/// # Errors
/// No port is to be had.
pub async fn websocket_to(server: &str) -> io::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let endpoint = format!("ws://{}", listener.local_addr()?);
    let server = server.to_owned();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let server = server.clone();
            // One side's end is the other's: both sockets are dropped.
            tokio::spawn(async move { pass(near, TcpStream::connect(&server).await?).await });
        }
    });
    Ok(endpoint)
}

async fn pass(near: TcpStream, mut far: TcpStream) -> Result<(), Error> {
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    #[allow(clippy::result_large_err, reason = "tungstenite's callback fixes the type")]
    let subprotocol = |_: &Request, mut response: Response| -> Result<Response, ErrorResponse> {
        response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("valkyrie.1"));
        Ok(response)
    };
    let mut near = accept_hdr_async(near, subprotocol).await?;
    let mut room = BytesMut::with_capacity(16 << 10);
    loop {
        tokio::select! {
            message = near.next() => match message.transpose()? {
                Some(Message::Binary(bytes)) => far.write_all(&bytes).await?,
                Some(_) => {}
                None => return Ok(()),
            },
            read = far.read_buf(&mut room) => match read? {
                0 => return near.close(None).await,
                _ => near.send(Message::Binary(Bytes::from(room.split()))).await?,
            },
        }
    }
}
