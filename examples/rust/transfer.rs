//! Files up and down through `/echo`, hashed at both ends: `transfer tcp://127.0.0.1:8080 FILE…`.
use std::{error::Error, fs::File, io::Read, time::Instant};

use sha2::{Digest, Sha256};
use valkyrie_sdk::{Bytes, CallOptions, Client, Metadata};

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let endpoint = arguments.next().ok_or("usage: transfer ENDPOINT FILE…")?;
    let began = Instant::now();
    let client = Client::connect(&endpoint).await?;
    let options = CallOptions::new().with_metadata(Metadata::new().with("want-digest", "sha-256")?);
    let (mut send, mut recv) = client.open("/echo", options).await?;
    let upload = async {
        let (mut hash, mut size) = (Sha256::new(), 0);
        for path in arguments {
            let mut file = File::open(path)?;
            loop {
                let mut chunk = vec![0; 64 << 10];
                let len = file.read(&mut chunk)?;
                if len == 0 {
                    break;
                }
                chunk.truncate(len);
                hash.update(&chunk);
                size += len;
                send.send(Bytes::from(chunk)).await?;
            }
        }
        send.finish().await?;
        Ok::<_, Box<dyn Error>>((size, hex(hash)))
    };
    let download = async {
        let mut hash = Sha256::new();
        while let Some(message) = recv.recv().await? {
            hash.update(&message);
        }
        let server = recv.trailers().get_str("digest-sha-256").unwrap_or_default().to_owned();
        Ok::<_, Box<dyn Error>>((hex(hash), server))
    };
    let ((bytes, sent), (received, server)) = tokio::try_join!(upload, download)?;
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{{\"bytes\":{bytes},\"seconds\":{seconds:.3},\"sent\":\"{sent}\",\"received\":\"{received}\",\"server\":\"{server}\"}}"
    );
    client.close().await;
    Ok(())
}
