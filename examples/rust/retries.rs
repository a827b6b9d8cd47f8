//! A call with a deadline that is retried, behind a circuit breaker: `retries tcp://127.0.0.1:8080,tcp://127.0.0.1:8081`.
use std::time::Duration;

use valkyrie_sdk::{CallOptions, Client, Status, policy::ServiceConfig};

#[tokio::main]
async fn main() -> Result<(), Status> {
    let endpoint = std::env::args().nth(1).unwrap_or_else(|| "tcp://127.0.0.1:8080".into());
    let config = ServiceConfig::parse(
        r#"{"methods": [{"names": ["*"], "retry": {"max_attempts": 4}, "breaker": {"open_ms": 10000}}]}"#,
    )?;
    let client = Client::builder().endpoint(endpoint).service_config(config).build().await?;
    let options = CallOptions::new().with_idempotent(true).with_timeout(Duration::from_secs(2));
    match client.call_with("/echo", "Hello, World!", options).await {
        Ok(reply) => println!("{}", String::from_utf8_lossy(&reply.message)),
        Err(status) => println!("{status}\n{}", status.timeline()),
    }
    client.close().await;
    Ok(())
}
