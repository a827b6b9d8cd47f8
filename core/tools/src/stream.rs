//! A stream as a command line has it: what comes in are messages, and each answer goes out as it comes.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::PathBuf,
};

use bytes::Bytes;
use clap::ValueEnum;
use data_encoding::BASE64;
use serde_json::{json, value::RawValue};
use tokio::sync::mpsc;
use valkyrie_sdk::{CallOptions, Client, Metadata, Reason, Status};

use crate::output::{Failure, escape_line, json_bytes, print};

/// The longest message that is read. What a server takes is less: 4 MiB unless it says otherwise.
const LONGEST: usize = 64 << 20;

/// How standard input, or a file, is cut into messages.
#[derive(Clone, Copy, Default, ValueEnum)]
pub(crate) enum Input {
    /// Each line is one, without its end.
    #[default]
    Lines,
    /// Each JSON value is one, as it is written.
    Json,
    /// Each has its length before it, four bytes, the most significant one first.
    Framed,
}

/// How messages are printed.
#[derive(Clone, Copy, Default, ValueEnum)]
pub(crate) enum Output {
    /// Each on a line, as text; control characters and line ends are escaped.
    #[default]
    Lines,
    /// Each on a line, in base64: exactly its bytes.
    Base64,
    /// Each as it is, with its length before it, four bytes, the most significant one first.
    Framed,
    /// Each as a JSON object on a line, its text or {"hex": …}: --json.
    #[value(skip)]
    Json,
}

impl Output {
    pub(crate) fn print(self, message: &[u8]) -> Result<(), Failure> {
        match self {
            Self::Lines => print(format!("{}\n", escape_line(&String::from_utf8_lossy(message))).as_bytes()),
            Self::Base64 => print(format!("{}\n", BASE64.encode(message)).as_bytes()),
            Self::Framed => {
                let len = u32::try_from(message.len()).map_err(io::Error::other)?;
                print(&len.to_be_bytes())?;
                print(message)
            }
            Self::Json => print(format!("{}\n", json!({ "message": json_bytes(message) })).as_bytes()),
        }
    }
}

/// Messages to send, as they come. One waits while another is sent: whoever writes them waits for the server.
pub(crate) type Messages = mpsc::Receiver<io::Result<Bytes>>;

/// Exactly these messages.
pub(crate) fn fixed(messages: impl IntoIterator<Item = Bytes>) -> Messages {
    let messages: Vec<_> = messages.into_iter().collect();
    let (to, from) = mpsc::channel(messages.len().max(1));
    for message in messages {
        // There is room for each.
        let _ = to.try_send(Ok(message));
    }
    from
}

/// What standard input or a file holds, read by a thread of its own: nothing else can leave off waiting for a terminal.
pub(crate) fn read(file: Option<PathBuf>, input: Input) -> Messages {
    let (to, from) = mpsc::channel(1);
    std::thread::spawn(move || {
        let cut = |source: &mut dyn BufRead| match input {
            Input::Lines => lines(source, &to),
            Input::Json => values(source, &to),
            Input::Framed => framed(source, &to),
        };
        let result = match &file {
            None => cut(&mut io::stdin().lock()),
            Some(path) => File::open(path)
                .and_then(|file| cut(&mut BufReader::new(file)))
                .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
        };
        if let Err(error) = result {
            // The call may be over.
            let _ = to.blocking_send(Err(error));
        }
    });
    from
}

type Sender = mpsc::Sender<io::Result<Bytes>>;

fn lines(source: &mut dyn BufRead, to: &Sender) -> io::Result<()> {
    for number in 1u64.. {
        let mut line = Vec::new();
        if source.take(LONGEST as u64 + 1).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        if line.len() > LONGEST {
            return Err(wrong(format!(
                "line {number} is longer than {LONGEST} bytes: send it with --input framed in parts"
            )));
        }
        if line.pop_if(|last| *last == b'\n').is_some() {
            line.pop_if(|last| *last == b'\r');
        }
        if to.blocking_send(Ok(line.into())).is_err() {
            break;
        }
    }
    Ok(())
}

fn values(source: &mut dyn BufRead, to: &Sender) -> io::Result<()> {
    for (number, value) in
        (1u64..).zip(serde_json::Deserializer::from_reader(source).into_iter::<Box<RawValue>>())
    {
        let value = value.map_err(|error| match error.is_io() {
            true => error.into(),
            false => wrong(format!("message {number} is no JSON: {error}")),
        })?;
        if to.blocking_send(Ok(String::from(Box::<str>::from(value)).into())).is_err() {
            break;
        }
    }
    Ok(())
}

fn framed(source: &mut dyn BufRead, to: &Sender) -> io::Result<()> {
    for number in 1u64.. {
        let ended = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => wrong(format!("the input ends inside message {number}")),
            _ => error,
        };
        if source.fill_buf()?.is_empty() {
            break;
        }
        let mut len = [0; 4];
        source.read_exact(&mut len).map_err(ended)?;
        let len = u32::from_be_bytes(len) as usize;
        if len > LONGEST {
            return Err(wrong(format!(
                "message {number} says that it has {len} bytes, and {LONGEST} is the most: is the input framed?"
            )));
        }
        let mut message = Vec::new();
        if source.take(len as u64).read_to_end(&mut message)? < len {
            return Err(ended(io::ErrorKind::UnexpectedEof.into()));
        }
        if to.blocking_send(Ok(message.into())).is_err() {
            break;
        }
    }
    Ok(())
}

fn wrong(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// What became of a stream.
pub(crate) struct Outcome {
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) metadata: Metadata,
    pub(crate) trailers: Metadata,
    pub(crate) end: Result<(), Status>,
}

/// Opens a stream, sends the messages as they come, half-closes after the last one, and hands out what comes back as it comes, until the
/// call ends. `cancel` ends it early, with CANCELLED on both sides.
///
/// # Errors
/// What could not be read or printed; the call is cancelled then.
pub(crate) async fn exchange(
    client: &Client,
    method: &str,
    options: CallOptions,
    mut messages: Messages,
    print: impl FnMut(&Bytes) -> Result<(), Failure>,
    cancel: impl Future<Output = ()>,
) -> Result<Outcome, Failure> {
    exchange_with(client, method, options, async || messages.recv().await, print, cancel).await
}

/// As [`exchange`], with messages from wherever they come.
pub(crate) async fn exchange_with(
    client: &Client,
    method: &str,
    options: CallOptions,
    mut next: impl AsyncFnMut() -> Option<io::Result<Bytes>>,
    mut print: impl FnMut(&Bytes) -> Result<(), Failure>,
    cancel: impl Future<Output = ()>,
) -> Result<Outcome, Failure> {
    let mut outcome = Outcome {
        sent: 0,
        received: 0,
        metadata: Metadata::new(),
        trailers: Metadata::new(),
        end: Err(Status::from_reason(Reason::CANCELLED, "the call was interrupted")),
    };
    let mut cancel = std::pin::pin!(cancel);
    let opened = tokio::select! {
        biased;
        () = &mut cancel => return Ok(outcome),
        opened = client.open(method, options) => opened,
    };
    let (mut sender, mut receiver) = match opened {
        Ok(halves) => halves,
        Err(status) => return Ok(Outcome { end: Err(status), ..outcome }),
    };
    let (mut sent, mut received) = (0, 0);
    let end = {
        let mut sending = std::pin::pin!(async {
            while let Some(message) = next().await {
                sender.send(message?).await?;
                sent += 1;
            }
            Ok::<_, Failure>(sender.finish().await?)
        });
        let mut receiving = std::pin::pin!(async {
            while let Some(message) = receiver.recv().await? {
                received += 1;
                print(&message)?;
            }
            Ok::<_, Failure>(())
        });
        let mut is_sending = true;
        loop {
            tokio::select! {
                biased;
                () = &mut cancel => break None,
                result = &mut receiving => break Some(result),
                result = &mut sending, if is_sending => {
                    is_sending = false;
                    match result {
                        // The call goes on without what was too large, and would wait for us.
                        Err(Failure::Status(status)) if status.reason() == Reason::MESSAGE_TOO_LARGE => break Some(Err(status.into())),
                        // The call ended: how, is told to whoever receives.
                        Ok(()) | Err(Failure::Status(_)) => {}
                        Err(failure) => return Err(failure),
                    }
                }
            }
        }
    };
    (outcome.sent, outcome.received) = (sent, received);
    match end {
        None => receiver.cancel(),
        Some(Ok(())) => {
            outcome.metadata = receiver.metadata().await.unwrap_or_default();
            outcome.end = Ok(());
        }
        Some(Err(Failure::Status(status))) => {
            outcome.metadata = status.metadata().clone();
            outcome.end = Err(status);
        }
        Some(Err(failure)) => return Err(failure),
    }
    outcome.trailers = receiver.trailers().clone();
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The messages in an input, and what is wrong with it.
    fn cut(input: Input, mut bytes: &[u8]) -> (Vec<Bytes>, Option<String>) {
        let (to, mut from) = mpsc::channel(16);
        let result = match input {
            Input::Lines => lines(&mut bytes, &to),
            Input::Json => values(&mut bytes, &to),
            Input::Framed => framed(&mut bytes, &to),
        };
        drop(to);
        let found = std::iter::from_fn(|| from.blocking_recv()).map(Result::unwrap).collect();
        (found, result.err().map(|error| error.to_string()))
    }

    #[test]
    fn input_is_cut_into_messages() {
        let found = |input, bytes: &'static [u8]| {
            let (found, wrong) = cut(input, bytes);
            assert_eq!(wrong, None);
            found.iter().map(|message| String::from_utf8_lossy(message).into_owned()).collect::<Vec<_>>()
        };
        assert_eq!(found(Input::Lines, b""), [""; 0]);
        assert_eq!(found(Input::Lines, b"a\r\n\nb c\nlast"), ["a", "", "b c", "last"]);
        assert_eq!(
            found(Input::Json, b" {\"b\": 1e400,\n \"a\": 2} [1]3 \"x\""),
            ["{\"b\": 1e400,\n \"a\": 2}", "[1]", "3", "\"x\""]
        );
        assert_eq!(found(Input::Framed, b"\0\0\0\x02ab\0\0\0\0\0\0\0\x01\n"), ["ab", "", "\n"]);
    }

    #[test]
    fn what_is_no_message_is_named_and_those_before_it_count() {
        for (input, bytes, count, words) in [
            (Input::Json, &b"{} {"[..], 1, "message 2 is no JSON: EOF"),
            (Input::Json, b"[1] nope", 1, "message 2 is no JSON"),
            (Input::Framed, b"\0\0\0\x01a\0\0", 1, "the input ends inside message 2"),
            (Input::Framed, b"\0\0\0\x09abc", 0, "the input ends inside message 1"),
            (Input::Framed, b"{\"a\": 1}", 0, "is the input framed?"),
        ] {
            let (found, wrong) = cut(input, bytes);
            assert_eq!(found.len(), count);
            assert!(wrong.as_ref().is_some_and(|wrong| wrong.contains(words)), "{wrong:?}");
        }
    }
}
