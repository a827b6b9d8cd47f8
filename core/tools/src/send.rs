//! `send`: one call, and `debug connections`, which is one call with a table.

use std::{
    fmt::Write,
    io::{self, IsTerminal, Read},
    path::PathBuf,
    time::{Duration, Instant},
};

use bytes::Bytes;
use serde_json::{Value, json};
use valkyrie_sdk::{CallOptions, ClientBuilder, DEFAULT_METHOD, Metadata, Reason, Response, Status};

use crate::{
    output::{Failure, escape, json_bytes, json_metadata, json_status, named, print, print_message, say},
    stream::{self, Input, Output},
};

/// Send a message and print the answer, or a stream of them.
///
/// Sends one message and prints the answer: exactly its bytes into a pipe or a file, with a line's end and with control
/// characters escaped on a terminal. With --stream it sends each line of standard input as it comes, and prints each answer as it comes;
/// the end of the input ends this side, and Ctrl-C cancels the call.
#[derive(clap::Args)]
pub(crate) struct Send {
    #[command(flatten)]
    target: Target,
    /// The message; - reads standard input to its end.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, required_unless_present_any = ["file", "stream"])]
    message: Option<String>,
    /// The file whose bytes are the message; with --stream, the file that holds the messages.
    #[arg(long, value_name = "FILE", conflicts_with = "message")]
    file: Option<PathBuf>,
    /// The method to call.
    #[arg(long, default_value = DEFAULT_METHOD)]
    method: String,
    /// Metadata to send, repeatable. The value of a key that ends in -bin is hexadecimal.
    #[arg(long, value_name = "KEY=VALUE", value_parser = entry)]
    metadata: Vec<(String, Bytes)>,
    /// Open a stream: many messages, many answers. --message is its only message; without it standard input or --file has them.
    #[arg(long)]
    stream: bool,
    /// What is one message of a stream.
    #[arg(long, value_enum, default_value = "lines", requires = "stream")]
    input: Input,
    /// How the messages of a stream are printed.
    #[arg(long, value_enum, default_value = "lines", requires = "stream", conflicts_with = "json")]
    output: Output,
    /// Print the answer or the error as one JSON object; of a stream, each message, and in the end how it ended.
    #[arg(long)]
    json: bool,
}

/// Where to call, and how.
#[derive(clap::Args)]
pub(crate) struct Target {
    /// The server: tcp://host:port, tls://host:port, quic://host:port, ws://host:port, wss://host:port or unix:///path.
    #[arg(long, default_value = "tcp://localhost:8080")]
    endpoint: String,
    #[command(flatten)]
    access: Access,
}

/// For how long to call, what to trust, and for whom.
#[derive(Clone, clap::Args)]
pub(crate) struct Access {
    /// Time limit in milliseconds, for connecting and again for the call. [default: 5000, and for a stream none once it is connected]
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..))]
    timeout_ms: Option<u64>,
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

pub(crate) fn text_of(path: &str) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| error.to_string())
}

impl Access {
    pub(crate) fn builder(&self, endpoint: &str) -> ClientBuilder {
        let mut builder = ClientBuilder::new()
            .endpoint(endpoint)
            .timeout_ms(self.timeout_ms())
            .connect_timeout_ms(self.timeout_ms())
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

    pub(crate) fn timeout_ms(&self) -> u64 {
        self.timeout_ms.unwrap_or(valkyrie_sdk::DEFAULT_TIMEOUT_MS)
    }
}

impl Target {
    pub(crate) fn builder(&self) -> ClientBuilder {
        self.access.builder(&self.endpoint)
    }

    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub(crate) fn access(&self) -> &Access {
        &self.access
    }
}

pub(crate) fn entry(text: &str) -> Result<(String, Bytes), String> {
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
        if self.stream {
            return self.exchange().await;
        }
        let message: Bytes = match (&self.file, &self.message) {
            (Some(path), _) => std::fs::read(path).map_err(|error| named(path, error))?.into(),
            (None, Some(text)) if text != "-" => text.clone().into(),
            (None, _) => {
                let mut input = Vec::new();
                io::stdin().lock().read_to_end(&mut input)?;
                input.into()
            }
        };
        let started = Instant::now();
        let result = tokio::select! {
            result = self.call(message) => result,
            _ = tokio::signal::ctrl_c() => return Err(Failure::Interrupted),
        };
        if !self.json {
            return print_message(&result?.message);
        }
        let elapsed_us = us(started.elapsed());
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
        let client = self.target.builder().build().await?;
        let options = CallOptions::new().with_metadata(metadata_of(&self.metadata)?);
        let response = client.call_with(&self.method, message, options).await?;
        client.close().await;
        Ok(response)
    }

    /// A stream from its opening to its end.
    async fn exchange(self) -> Result<(), Failure> {
        let started = Instant::now();
        let mut options = CallOptions::new().with_metadata(metadata_of(&self.metadata)?);
        if let Some(limit) = self.target.access.timeout_ms {
            options = options.with_timeout(Duration::from_millis(limit));
        }
        let mut interrupt = std::pin::pin!(async {
            if tokio::signal::ctrl_c().await.is_err() {
                std::future::pending().await
            }
        });
        let client = tokio::select! {
            client = self.target.builder().build() => client?,
            () = &mut interrupt => return Err(Failure::Interrupted),
        };
        let messages = match self.message {
            Some(text) if text != "-" => stream::fixed([text.into()]),
            _ => stream::read(self.file, self.input),
        };
        let output = if self.json { Output::Json } else { self.output };
        let mut interrupted = false;
        let cancel = async {
            interrupt.await;
            interrupted = true;
        };
        let outcome = stream::exchange(
            &client,
            &self.method,
            options,
            messages,
            |message| output.print(message),
            cancel,
        )
        .await?;
        // What was cancelled is the server's to know, too; one that does not listen is not waited for.
        let _ = tokio::time::timeout(GOODBYE, client.close()).await;
        if self.json {
            let mut value = json!({
                "sent": outcome.sent, "received": outcome.received, "metadata": json_metadata(&outcome.metadata),
                "trailers": json_metadata(&outcome.trailers), "elapsed_us": us(started.elapsed()),
            });
            match &outcome.end {
                Ok(()) => value["code"] = "OK".into(),
                Err(status) => value["error"] = json_status(status),
            }
            print(format!("{value}\n").as_bytes())?;
        }
        match outcome.end {
            _ if interrupted => Err(Failure::Interrupted),
            Err(status) if self.json => Err(Failure::Reported(status.class())),
            Err(status) => Err(status.into()),
            Ok(()) => {
                if !self.json && io::stderr().is_terminal() {
                    say(&format!("OK: {} sent, {} received", outcome.sent, outcome.received));
                }
                Ok(())
            }
        }
    }
}

/// How long to wait for a connection's end.
const GOODBYE: Duration = Duration::from_secs(1);

pub(crate) fn metadata_of(entries: &[(String, Bytes)]) -> Result<Metadata, Status> {
    let mut metadata = Metadata::new();
    for (key, value) in entries {
        metadata.insert(key, value.clone())?;
    }
    Ok(metadata)
}

/// What the keys of metadata have in them whose values are nobody's to see.
const SECRET: [&str; 7] = ["authorization", "cookie", "token", "secret", "password", "api-key", "apikey"];

pub(crate) fn is_secret(key: &str) -> bool {
    SECRET.iter().any(|part| key.contains(part))
}

pub(crate) fn us(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
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
