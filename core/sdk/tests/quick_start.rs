//! The quick start, word for word. Needs port 8080, as its reader does.

use std::error::Error;

async fn serve(ready: tokio::sync::oneshot::Sender<()>) -> Result<(), Box<dyn Error + Send + Sync>> {
    use valkyrie_sdk::{EchoHandler, ServerBuilder};
    let server = ServerBuilder::new().bind("0.0.0.0:8080").handler("/echo", EchoHandler).build().await?;
    let _ = ready.send(());
    server.start().await?;
    Ok(())
}

async fn call() -> Result<valkyrie_sdk::Bytes, Box<dyn Error + Send + Sync>> {
    use valkyrie_sdk::ClientBuilder;
    let client = ClientBuilder::new().endpoint("tcp://localhost:8080").timeout_ms(5000).build().await?;
    let response = client.request("Hello, World!").await?; // the default method, /echo
    Ok(response)
}

#[tokio::test]
async fn the_quick_start_works_verbatim() {
    let (ready, is_ready) = tokio::sync::oneshot::channel();
    let server = tokio::spawn(serve(ready));
    if is_ready.await.is_err() {
        panic!("the server did not start: {:?}", server.await);
    }
    assert_eq!(call().await.unwrap(), "Hello, World!");
}
