//! What leaves the program: bytes for pipes, escaped text for terminals, errors with their exit code.

use std::{
    io::{self, IsTerminal, Write},
    path::Path,
    process::ExitCode,
};

use serde_json::{Value, json};
use valkyrie_config::ConfigError;
use valkyrie_sdk::{Class, Metadata, Status};

/// Exit code after Ctrl-C: what a shell reports for SIGINT.
const INTERRUPTED: u8 = 130;
/// Exit code for a wrong command line (clap's) or configuration.
const USAGE: u8 = 2;

/// Why a command did not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A call failed.
    Status(Status),
    /// As `Status`, and already said on standard output.
    Reported(Class),
    /// This program could not read or write.
    Io(io::Error),
    /// A configuration was refused.
    Configuration(ConfigError),
    /// Ctrl-C.
    Interrupted,
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Configuration(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Failure {
    /// The same, once it was said.
    pub(crate) fn reported(self) -> Self {
        match self {
            Self::Status(status) => Self::Reported(status.class()),
            other => other,
        }
    }

    /// Says it on standard error and gives the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        match self {
            // Whoever reads our output has stopped: nothing is wrong.
            Self::Io(error) if error.kind() == io::ErrorKind::BrokenPipe => return ExitCode::SUCCESS,
            Self::Io(error) => say(&error.to_string()),
            Self::Status(status) if status.class() == Class::Application => say(&status.to_string()),
            Self::Status(status) => say(&format!("{status} ({})", status.reason())),
            Self::Configuration(error) => say(&error.to_string()),
            Self::Reported(_) | Self::Interrupted => {}
        }
        match self {
            Self::Io(_) => ExitCode::FAILURE,
            Self::Status(status) => exit_code(status.class()),
            Self::Reported(class) => exit_code(*class),
            Self::Configuration(_) => ExitCode::from(USAGE),
            Self::Interrupted => ExitCode::from(INTERRUPTED),
        }
    }
}

/// An error with the file that it is about.
pub(crate) fn named(path: &Path, error: io::Error) -> Failure {
    io::Error::new(error.kind(), format!("{}: {error}", path.display())).into()
}

/// Says it on standard error.
pub(crate) fn say(text: &str) {
    // Standard error may be gone too.
    let stderr = io::stderr();
    let name = if is_coloured(&stderr) { colour("valkyrie:") } else { "valkyrie:".to_owned() };
    let _ = writeln!(stderr.lock(), "{name} {}", escape(text));
}

/// Whether colours may be written there: to a terminal that has them, and whose user does not mind (<https://no-color.org>).
pub(crate) fn is_coloured(output: &impl IsTerminal) -> bool {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    output.is_terminal() && set("NO_COLOR").is_none() && set("TERM").is_some_and(|term| term != "dumb")
}

/// The text in the one colour that there is.
pub(crate) fn colour(text: &str) -> String {
    format!("\x1b[1;36m{text}\x1b[0m")
}

fn exit_code(class: Class) -> ExitCode {
    ExitCode::from(match class {
        Class::Application => 10,
        Class::Caller => 11,
        Class::Auth => 12,
        Class::Transient => 13,
        Class::Server => 14,
        Class::Protocol => 15,
    })
}

/// Writes to standard output as it is.
pub(crate) fn print(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()?;
    Ok(())
}

/// Writes a message from a server: exactly its bytes into a pipe or a file; on a terminal with control characters
/// escaped, because a message must not move the cursor or retitle the window, and with a line's end.
pub(crate) fn print_message(message: &[u8]) -> Result<(), Failure> {
    if io::stdout().is_terminal() {
        print(format!("{}\n", escape(&String::from_utf8_lossy(message))).as_bytes())
    } else {
        print(message)
    }
}

/// The text with every control character but newline and tab as `\u{1b}`, and what would turn the direction of the text, too.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' | '\t' => escaped.push(character),
            '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                escaped.extend(character.escape_unicode());
            }
            _ if character.is_control() => escaped.extend(character.escape_unicode()),
            _ => escaped.push(character),
        }
    }
    escaped
}

/// As [`escape`], on one line.
pub(crate) fn escape_line(text: &str) -> String {
    escape(text).replace('\n', "\\n")
}

/// Bytes in JSON: a string when they are text, else `{"hex": …}`.
pub(crate) fn json_bytes(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => json!({ "hex": hex(bytes) }),
    }
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Metadata in JSON: pairs, since a key may stand twice.
pub(crate) fn json_metadata(metadata: &Metadata) -> Value {
    metadata
        .iter()
        .map(|(key, value)| match key.ends_with("-bin") {
            true => json!([key, { "hex": hex(value) }]),
            false => json!([key, json_bytes(value)]),
        })
        .collect()
}

/// A status in JSON.
pub(crate) fn json_status(status: &Status) -> Value {
    json!({
        "code": status.code().name(),
        "number": status.code().number(),
        "reason": status.reason().name(),
        "class": status.class().name(),
        "message": status.message(),
        "details": status.details().iter().map(|detail| json!({
            "type": detail.type_name, "value": json_bytes(&detail.value),
        })).collect::<Vec<_>>(),
        "pushback_ms": status.pushback().map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
        "metadata": json_metadata(status.metadata()),
        "trailers": json_metadata(status.trailers()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_cannot_drive_the_terminal() {
        assert_eq!(escape("a\x1b[2Jb\u{9b}c\rd\n\te"), "a\\u{1b}[2Jb\\u{9b}c\\u{d}d\n\te");
        assert_eq!(escape("\u{202e}gpj.exe \u{e9}\u{1f600}"), "\\u{202e}gpj.exe \u{e9}\u{1f600}");
        assert_eq!(escape_line("a\nb\r\n"), "a\\nb\\u{d}\\n");
    }

    #[test]
    fn json_says_which_bytes_are_not_text() {
        assert_eq!(json_bytes(b"text"), json!("text"));
        assert_eq!(json_bytes(&[0xff, 0x00]), json!({ "hex": "ff00" }));
    }
}
