//! Sends one message to a server's `/echo` and prints the answer: `hello tcp://127.0.0.1:8080`.
use valkyrie_sdk::{ClientBuilder, Status};

#[tokio::main]
async fn main() -> Result<(), Status> {
    let endpoint = std::env::args().nth(1).unwrap_or_else(|| "tcp://127.0.0.1:8080".into());
    let client = ClientBuilder::new().endpoint(endpoint).timeout_ms(5000).build().await?;
    let response = client.request("Hello, World!").await?;
    println!("{}", String::from_utf8_lossy(&response));
    client.close().await;
    Ok(())
}
