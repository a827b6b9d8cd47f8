//! A bare WebSocket that echoes each message: what a page's own protocol would talk to. The client is web/bench.mjs.
use futures::{StreamExt, TryStreamExt};
use tokio::net::{TcpListener, TcpStream};

async fn echo(stream: TcpStream) -> Result<(), tokio_tungstenite::tungstenite::Error> {
    stream.set_nodelay(true)?;
    let (sink, messages) = tokio_tungstenite::accept_async(stream).await?.split();
    // Flushes when no more messages lie there, so that those of one read leave in one write.
    messages.try_filter(|message| std::future::ready(message.is_binary())).forward(sink).await
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, serve, flag, port, ..] = arguments.as_slice() else { panic!("serve --port P") };
    assert!(serve == "serve" && flag == "--port", "serve --port P");
    let listener = TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(echo(stream));
    }
}
