//! `hello` over TLS: `hello_tls tls://localhost:8443 certificates/ca.pem`.
use valkyrie_sdk::{ClientBuilder, Pem, Status};

#[tokio::main]
async fn main() -> Result<(), Status> {
    let mut arguments = std::env::args().skip(1);
    let endpoint = arguments.next().unwrap_or_else(|| "tls://localhost:8443".into());
    let ca = arguments.next().unwrap_or_else(|| "certificates/ca.pem".into());
    let client = ClientBuilder::new().endpoint(endpoint).trusted_certificates(Pem::file(ca)).build().await?;
    let response = client.request("Hello, World!").await?;
    println!("{}", String::from_utf8_lossy(&response));
    client.close().await;
    Ok(())
}
