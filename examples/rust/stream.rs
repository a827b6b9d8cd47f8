//! Sends three messages on one stream and prints each as it comes back: `stream tcp://127.0.0.1:8080`.
use valkyrie_sdk::{CallOptions, Client, Status};

#[tokio::main]
async fn main() -> Result<(), Status> {
    let endpoint = std::env::args().nth(1).unwrap_or_else(|| "tcp://127.0.0.1:8080".into());
    let client = Client::connect(&endpoint).await?;
    let (mut send, mut recv) = client.open("/echo", CallOptions::new()).await?;
    for word in ["one", "two", "three"] {
        send.send(word).await?;
    }
    send.finish().await?;
    while let Some(message) = recv.recv().await? {
        println!("{}", String::from_utf8_lossy(&message));
    }
    client.close().await;
    Ok(())
}
