//! Calls a method that does not exist and prints what the error says: `errors tcp://127.0.0.1:8080`.
use valkyrie_sdk::{Client, Code, Status};

#[tokio::main]
async fn main() -> Result<(), Status> {
    let endpoint = std::env::args().nth(1).unwrap_or_else(|| "tcp://127.0.0.1:8080".into());
    let client = Client::connect(&endpoint).await?;
    match client.call("/no/such/method", "").await {
        Err(status) if status.code() == Code::Unimplemented => {
            println!("{}: {} ({})", status.code(), status.message(), status.reason());
        }
        Err(status) => return Err(status),
        Ok(_) => println!("the server has such a method"),
    }
    client.close().await;
    Ok(())
}
