//! The main job: `demo ENDPOINT FILE…` prints a line per thing done. After "ready" it waits for the server to stop.
use std::{
    error::Error,
    fs::File,
    io::Read,
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};
use valkyrie_sdk::{Bytes, CallOptions, Client, Metadata};

type Outcome = Result<(), Box<dyn Error>>;

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn call(client: &Client) -> Outcome {
    println!("call {}", str::from_utf8(&client.request("Hello, World!").await?)?);
    Ok(())
}

/// The files go up and come down on one stream. Each end hashes what it gets.
async fn transfer(client: &Client, files: &[String]) -> Outcome {
    let began = Instant::now();
    let options = CallOptions::new().with_metadata(Metadata::new().with("want-digest", "sha-256")?);
    let (mut send, mut recv) = client.open("/echo", options).await?;
    let upload = async {
        let (mut hash, mut bytes) = (Sha256::new(), 0);
        for path in files {
            let mut file = File::open(path)?;
            loop {
                let mut chunk = vec![0; 64 << 10];
                let len = file.read(&mut chunk)?;
                if len == 0 {
                    break;
                }
                chunk.truncate(len);
                hash.update(&chunk);
                bytes += len;
                send.send(Bytes::from(chunk)).await?;
            }
        }
        send.finish().await?;
        Ok::<_, Box<dyn Error>>((bytes, hex(hash)))
    };
    let download = async {
        let mut hash = Sha256::new();
        while let Some(message) = recv.recv().await? {
            hash.update(&message);
        }
        Ok::<_, Box<dyn Error>>(hex(hash))
    };
    let ((bytes, sent), received) = tokio::try_join!(upload, download)?;
    println!("bytes {bytes}\nseconds {:.3}", began.elapsed().as_secs_f64());
    println!("sent {sent}\nreceived {received}");
    println!("server {}", recv.trailers().get_str("digest-sha-256").unwrap_or_default());
    Ok(())
}

/// None of the calls can end before all of them are open, on one connection.
async fn in_flight(client: &Client, count: usize) -> Outcome {
    let began = Instant::now();
    let mut streams = Vec::new();
    for number in 0..count {
        let (mut send, recv) = client.open("/echo", CallOptions::new()).await?;
        send.send(number.to_string()).await?;
        streams.push((send, recv));
    }
    for (send, _) in &mut streams {
        send.finish().await?;
    }
    let mut answered = 0;
    for (number, (_, mut recv)) in streams.into_iter().enumerate() {
        answered += usize::from(recv.recv().await?.is_some_and(|message| message == number.to_string()));
        assert!(recv.recv().await?.is_none());
    }
    println!("in_flight {answered}\nin_flight_seconds {:.3}", began.elapsed().as_secs_f64());
    Ok(())
}

/// A call that waits for an answer is given up; the same connection goes on.
async fn cancel(client: &Client) -> Outcome {
    let (_send, mut recv) = client.open("/echo", CallOptions::new()).await?;
    let waiting = tokio::spawn(async move { recv.recv().await });
    tokio::task::yield_now().await;
    waiting.abort();
    let cancelled = waiting.await.is_err_and(|error| error.is_cancelled());
    client.request("still here").await?;
    println!("cancelled {cancelled}");
    Ok(())
}

async fn deadline(client: &Client) -> Outcome {
    let options = CallOptions::new().with_timeout(Duration::from_millis(100));
    let (_send, mut recv) = client.open("/echo", options).await?;
    let status = recv.recv().await.expect_err("nobody sends anything");
    println!("deadline {} {}", status.code().name(), status.reason());
    Ok(())
}

/// The server stops between two messages: one call ends well in the time it is given, another does not end.
async fn server_stops(client: &Client) -> Outcome {
    let (mut ends, mut answers) = client.open("/echo", CallOptions::new()).await?;
    let (mut stays, mut cut) = client.open("/echo", CallOptions::new()).await?;
    ends.send("before").await?;
    stays.send("before").await?;
    answers.recv().await?;
    cut.recv().await?;
    println!("ready");
    // So short a time leaves none to wait for the server's return.
    let briefly = CallOptions::new().with_timeout(Duration::from_millis(500));
    let refused = loop {
        if let Err(status) = client.call_with("/echo", "anyone there?", briefly.clone()).await {
            break status;
        }
    };
    println!("refused {} {}", refused.code().name(), refused.reason());
    ends.send("after").await?;
    ends.finish().await?;
    let after = answers.recv().await?.unwrap_or_default();
    assert!(answers.recv().await?.is_none());
    println!("finished OK {}", String::from_utf8_lossy(&after));
    let status = cut.recv().await.expect_err("the server is gone");
    println!("cut {} {}", status.code().name(), status.reason());
    Ok(())
}

#[tokio::main]
async fn main() -> Outcome {
    let mut arguments = std::env::args().skip(1);
    let endpoint = arguments.next().ok_or("usage: demo ENDPOINT FILE…")?;
    let files: Vec<String> = arguments.collect();
    let client = Client::connect(&endpoint).await?;
    call(&client).await?;
    transfer(&client, &files).await?;
    in_flight(&client, 1000).await?;
    cancel(&client).await?;
    deadline(&client).await?;
    server_stops(&client).await?;
    client.close().await;
    Ok(())
}
