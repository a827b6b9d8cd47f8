//! `send`: one call, and `debug connections`, which is one call with a table.

use std::{
    fmt::Write,
    io::{self, Read},
    time::{Duration, Instant},
};

use bytes::Bytes;
use serde_json::{Value, json};
use valkyrie_sdk::{CallOptions, ClientBuilder, DEFAULT_METHOD, Metadata, Reason, Response, Status};

use crate::output::{Failure, escape, json_bytes, json_metadata, json_status, print, print_message};

/// Sends one message and prints the answer: exactly its bytes into a pipe or a file, with a line's end and with control
/// characters escaped on a terminal.
#[derive(clap::Args)]
pub(crate) struct Send {
    #[command(flatten)]
    target: Target,
    /// The message; - reads standard input to its end.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    message: String,
    /// The method to call.
    #[arg(long, default_value = DEFAULT_METHOD)]
    method: String,
    /// Metadata to send, repeatable. The value of a key that ends in -bin is hexadecimal.
    #[arg(long, value_name = "KEY=VALUE", value_parser = entry)]
    metadata: Vec<(String, Bytes)>,
    /// Print the answer or the error as one JSON object.
    #[arg(long)]
    json: bool,
}

/// Where to call, and for how long.
#[derive(clap::Args)]
pub(crate) struct Target {
    /// The server: tcp://host:port, tls://host:port, quic://host:port, ws://host:port, wss://host:port or unix:///path.
    #[arg(long, default_value = "tcp://localhost:8080")]
    endpoint: String,
    /// Time limit in milliseconds, for connecting and again for the call.
    #[arg(long, value_name = "MS", default_value_t = valkyrie_sdk::DEFAULT_TIMEOUT_MS, value_parser = clap::value_parser!(u64).range(1..))]
    timeout_ms: u64,
    /// Certificates to trust, a file in PEM; tls://, wss:// and quic:// need it, or --system-roots.
    #[arg(long, value_name = "FILE", value_parser = text_of)]
    trusted_certificates: Option<String>,
    /// Trust the authorities that this system trusts.
    #[arg(long)]
    system_roots: bool,
    /// The certificate to show to a server that asks for one, a file in PEM.
    #[arg(long, value_name = "FILE", value_parser = text_of, requires = "client_key")]
    client_certificate: Option<String>,
    /// The private key of --client-certificate, a file in PEM.
    #[arg(long, value_name = "FILE", value_parser = text_of, requires = "client_certificate")]
    client_key: Option<String>,
    /// The name that the server's certificate must be for, when it is not the endpoint's host.
    #[arg(long, value_name = "NAME")]
    server_name: Option<String>,
    /// Speak TLS with the server inside of what carries the bytes: through proxies, and over tcp://, ws:// and unix://.
    #[arg(long)]
    sealed: bool,
    /// The token that says whom to call for, a file whose surrounding white space does not count; without it the environment's
    /// VALKYRIE_TOKEN. There is no flag for the token itself: everybody on this machine reads command lines.
    #[arg(long, value_name = "FILE", value_parser = token_of)]
    token_file: Option<Token>,
}

/// A token as it was read, for the first client and those after it.
#[derive(Clone)]
struct Token(String);

fn token_of(path: &str) -> Result<Token, String> {
    token(text_of(path)?).ok_or_else(|| "holds no token".to_owned())
}

fn token(mut text: String) -> Option<Token> {
    text.truncate(text.trim_end().len());
    text.drain(..text.len() - text.trim_start().len());
    (!text.is_empty()).then_some(Token(text))
}

fn text_of(path: &str) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| error.to_string())
}

impl Target {
    pub(crate) fn builder(&self) -> ClientBuilder {
        let mut builder = ClientBuilder::new()
            .endpoint(&self.endpoint)
            .timeout_ms(self.timeout_ms)
            .connect_timeout_ms(self.timeout_ms)
            .system_roots(self.system_roots)
            .sealed(self.sealed);
        if let Some(pem) = &self.trusted_certificates {
            builder = builder.trusted_certificates(pem.clone());
        }
        if let (Some(certificate), Some(key)) = (&self.client_certificate, &self.client_key) {
            builder = builder.identity(certificate.clone(), key.clone());
        }
        if let Some(name) = &self.server_name {
            builder = builder.server_name(name);
        }
        let token = self.token_file.clone().or_else(|| token(std::env::var("VALKYRIE_TOKEN").ok()?));
        if let Some(Token(token)) = token {
            builder = builder.token(token);
        }
        builder
    }

    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }
}

fn entry(text: &str) -> Result<(String, Bytes), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    let value = if key.ends_with("-bin") {
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        let bytes: Option<Bytes> =
            value.as_bytes().chunks(2).map(|pair| (pair.len() == 2).then(|| byte(pair))?).collect();
        bytes.ok_or_else(|| format!("the value of {key:?} is not hexadecimal"))?
    } else {
        Bytes::copy_from_slice(value.as_bytes())
    };
    // Checked here, so that a wrong one is a usage error.
    Metadata::new().insert(key, value.clone()).map_err(|error| error.to_string())?;
    Ok((key.to_owned(), value))
}

impl Send {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let message: Bytes = if self.message == "-" {
            let mut input = Vec::new();
            io::stdin().lock().read_to_end(&mut input)?;
            input.into()
        } else {
            self.message.clone().into()
        };
        let started = Instant::now();
        let result = tokio::select! {
            result = self.call(message) => result,
            _ = tokio::signal::ctrl_c() => return Err(Failure::Interrupted),
        };
        if !self.json {
            return print_message(&result?.message);
        }
        let elapsed_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        let (value, failed) = match result {
            Ok(response) => (
                json!({
                    "message": json_bytes(&response.message),
                    "metadata": json_metadata(&response.metadata),
                    "trailers": json_metadata(&response.trailers),
                    "elapsed_us": elapsed_us,
                }),
                None,
            ),
            Err(status) => {
                (json!({ "error": json_status(&status), "elapsed_us": elapsed_us }), Some(status.class()))
            }
        };
        print(format!("{value}\n").as_bytes())?;
        failed.map_or(Ok(()), |class| Err(Failure::Reported(class)))
    }

    async fn call(&self, message: Bytes) -> Result<Response, Status> {
        let mut metadata = Metadata::new();
        for (key, value) in &self.metadata {
            metadata.insert(key, value.clone())?;
        }
        let client = self.target.builder().build().await?;
        let response =
            client.call_with(&self.method, message, CallOptions::new().with_metadata(metadata)).await?;
        client.close().await;
        Ok(response)
    }
}

/// Lists a server's connections.
#[derive(clap::Args)]
pub(crate) struct Connections {
    #[command(flatten)]
    target: Target,
    /// Print the server's JSON as it is.
    #[arg(long)]
    json: bool,
}

impl Connections {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let client = self.target.builder().build().await?;
        let response = client.call("/valkyrie.Metrics/Connections", Bytes::new()).await?;
        client.close().await;
        if self.json {
            print_message(&response.message)?;
            return print(b"\n");
        }
        let unreadable =
            || Status::from_reason(Reason::MALFORMED_RECORD, "the server's list is not readable");
        let connections: Vec<Value> = serde_json::from_slice(&response.message).map_err(|_| unreadable())?;
        let mut table = format!(
            "{:>6}  {:<28} {:<12} {:>9} {:>8} {:>10} {:>14} {:>14}\n",
            "id", "peer", "state", "age", "streams", "calls", "bytes in", "bytes out"
        );
        for connection in &connections {
            let number = |key: &str| connection[key].as_u64().unwrap_or(0);
            let text = |key: &str| escape(connection[key].as_str().unwrap_or("?"));
            // Writing to a string cannot fail.
            let _ = writeln!(
                table,
                "{:>6}  {:<28} {:<12} {:>9} {:>8} {:>10} {:>14} {:>14}",
                number("id"),
                text("peer"),
                text("state"),
                format!("{:.1} s", Duration::from_millis(number("age_ms")).as_secs_f64()),
                number("streams"),
                number("calls"),
                number("bytes_in"),
                number("bytes_out"),
            );
        }
        print(table.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_metadata_as_users_write_it() {
        assert_eq!(entry("x-a=b=c").unwrap(), ("x-a".into(), "b=c".into()));
        assert_eq!(entry("x-bin=00fF").unwrap(), ("x-bin".into(), vec![0x00, 0xff].into()));
        for wrong in ["x", "X=1", "x-bin=0", "x-bin=zz", "=1", "x=a\nb"] {
            assert!(entry(wrong).is_err(), "{wrong:?}");
        }
    }
}
