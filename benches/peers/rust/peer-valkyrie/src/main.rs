//! Valkyrie, with its own server and every default. `--spin US` lets either side spin before it sleeps; `--sealed` seals.
use bytes::{Buf, BufMut, Bytes, BytesMut};
use harness::{arg, Client, Opts, Res};
use std::time::Instant;
use valkyrie_sdk::{handler_fn, CallOptions, EchoHandler, Pem, Reply, ServerBuilder, ServerCall, Status};

/// Answers a message of count and size (u64, u32, little endian) with that many messages of that size.
async fn stream(mut call: ServerCall) -> Result<Reply, Status> {
    let mut wanted = call.message().await?;
    let (count, size) = (wanted.get_u64_le(), wanted.get_u32_le());
    let message = Bytes::from(vec![0; size as usize]);
    for _ in 0..count {
        call.send(message.clone()).await?;
    }
    Ok(Reply::end())
}

fn spin() -> u64 {
    arg("--spin").and_then(|us| us.parse().ok()).unwrap_or(0)
}

async fn server() -> Res<()> {
    let port = arg("--port").ok_or("--port is missing")?;
    let mut builder = ServerBuilder::new().bind(format!("127.0.0.1:{port}")).max_connections(20_000).spin_us(spin());
    if let (Some(tls), Some(chain), Some(key)) = (arg("--tls-port"), arg("--cert"), arg("--key")) {
        let certificates = (Pem::file(chain), Pem::file(key));
        builder = builder.bind(format!("tls://127.0.0.1:{tls}")).identity(certificates.0, certificates.1).open_to_all(true);
    }
    let server = builder.handler("/echo", EchoHandler).handler("/stream", handler_fn(stream)).build().await?;
    Ok(server.start().await?)
}

struct Valkyrie(valkyrie_sdk::Client);

impl Client for Valkyrie {
    async fn connect(options: &Opts) -> Res<Self> {
        let sealed = std::env::args().any(|argument| argument == "--sealed");
        let scheme = if options.tls { "tls" } else { "tcp" };
        let mut client = valkyrie_sdk::Client::builder().endpoint(format!("{scheme}://{}", options.addr)).spin_us(spin());
        if options.tls || sealed {
            client = client.trusted_certificates(Pem::file(&options.ca)).server_name("localhost").sealed(sealed);
        }
        Ok(Self(client.build().await?))
    }

    async fn echo(&self, payload: &Bytes) -> Res<usize> {
        Ok(self.0.request(payload.clone()).await?.len())
    }

    async fn server_stream(&self, count: u64, size: u32) -> Res<(u64, u64)> {
        let mut wanted = BytesMut::with_capacity(12);
        wanted.put_u64_le(count);
        wanted.put_u32_le(size);
        let mut stream = self.0.stream("/stream", wanted.freeze(), CallOptions::new()).await?;
        let (mut messages, mut bytes) = (0, 0);
        while let Some(message) = stream.recv().await? {
            messages += 1;
            bytes += message.len() as u64;
        }
        Ok((messages, bytes))
    }

    async fn ping_pong(&self, payload: &Bytes, more: &mut dyn FnMut(Instant) -> bool) -> Res<()> {
        let (mut send, mut recv) = self.0.open("/echo", CallOptions::new()).await?;
        loop {
            let began = Instant::now();
            send.send(payload.clone()).await?;
            recv.recv().await?.ok_or("the stream ended")?;
            if !more(began) {
                return Ok(());
            }
        }
    }
}

fn main() {
    harness::main::<Valkyrie, _>(server)
}
