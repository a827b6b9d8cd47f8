//! The URL a user writes: where to connect or to listen, and over which transport.

use std::fmt;

use valkyrie_protocol::{Reason, Status};

/// A parsed endpoint: `tcp://host:port`, `tls://host:port`, `quic://host:port`, `ws://host:port/path`, `wss://host:port/path`,
/// `unix:///path`, `memory:name`, or a scheme of a transport that was registered from outside. `host:port` alone means `tcp://`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    scheme: String,
    rest: String,
}

impl Endpoint {
    /// Parses an endpoint.
    ///
    /// # Errors
    /// `INVALID_ENDPOINT`, naming the text and what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, Status> {
        let invalid = |why: &str| {
            Err(Status::from_reason(
                Reason::INVALID_ENDPOINT,
                format!(
                    "endpoint {text:?} {why}; write tcp://host:port, tls://host:port, unix:///path, ws://host:port or memory:name"
                ),
            ))
        };
        if text.is_empty() {
            return invalid("is empty");
        }
        if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return invalid("holds a space or a control character");
        }
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (scheme, rest),
            None => match text.split_once(':') {
                Some(("memory", rest)) => ("memory", rest),
                _ => ("tcp", text),
            },
        };
        if scheme.is_empty()
            || !scheme.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b))
        {
            return invalid("has no legal scheme");
        }
        if rest.is_empty() {
            return invalid("names no address");
        }
        let endpoint = Self { scheme: scheme.to_owned(), rest: rest.to_owned() };
        match scheme {
            "tcp" | "tls" | "quic" if rest.contains('/') => {
                invalid("has a path, which its scheme does not know")
            }
            "tcp" | "tls" | "quic" | "ws" | "wss" => match endpoint.authority().rsplit_once(':') {
                Some(("", _)) => invalid("names no host"),
                Some((host, _)) if host.contains(':') && !(host.starts_with('[') && host.ends_with(']')) => {
                    invalid("has an IPv6 address without [brackets]")
                }
                Some((_, port)) if port.parse::<u16>().is_err() => invalid("has no port from 0 to 65535"),
                None if !scheme.starts_with("ws") => invalid("has no port"),
                _ => Ok(endpoint),
            },
            "unix" if !rest.starts_with('/') => invalid("has no absolute path"),
            _ => Ok(endpoint),
        }
    }

    /// Parses a list of endpoints, with commas between them. In the path of `unix://` a comma ends it only where a scheme follows.
    ///
    /// # Errors
    /// As [`Endpoint::parse`], for the first that is wrong.
    pub fn parse_all(text: &str) -> Result<Vec<Self>, Status> {
        let mut parts: Vec<String> = Vec::new();
        for part in text.split(',') {
            match parts.last_mut() {
                Some(last) if last.starts_with("unix://") && !part.contains("://") => {
                    last.push(',');
                    last.push_str(part);
                }
                _ => parts.push(part.to_owned()),
            }
        }
        parts.iter().map(|part| Self::parse(part)).collect()
    }

    /// The part before `://`, in lower case: `tcp`.
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// Everything after the scheme: `localhost:8080`, `/run/valkyrie.sock`, `localhost:8080/rpc`.
    pub fn address(&self) -> &str {
        &self.rest
    }

    /// Host and port, without a path.
    pub fn authority(&self) -> &str {
        self.rest.split('/').next().unwrap_or("")
    }

    /// The host alone, an IPv6 address without its brackets.
    pub fn host(&self) -> &str {
        let authority = self.authority();
        match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, _)) => address,
            None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
        }
    }
}

impl Endpoint {
    /// As people name the server: without a path behind host and port.
    pub(crate) fn label(&self) -> String {
        match self.scheme.as_str() {
            "unix" | "memory" => self.to_string(),
            scheme => format!("{scheme}://{}", self.authority()),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.scheme.as_str() {
            "memory" => write!(f, "memory:{}", self.rest),
            scheme => write!(f, "{scheme}://{}", self.rest),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_users_write() {
        for (text, scheme, address) in [
            ("tcp://localhost:8080", "tcp", "localhost:8080"),
            ("0.0.0.0:8080", "tcp", "0.0.0.0:8080"),
            ("tcp://[::1]:80", "tcp", "[::1]:80"),
            ("unix:///run/v.sock", "unix", "/run/v.sock"),
            ("ws://localhost:8080/rpc", "ws", "localhost:8080/rpc"),
            ("memory:test", "memory", "test"),
            ("chaos://anything", "chaos", "anything"),
        ] {
            let endpoint = Endpoint::parse(text).unwrap();
            assert_eq!((endpoint.scheme(), endpoint.address()), (scheme, address));
        }
    }

    #[test]
    fn reads_lists() {
        let read = |text: &str| -> Vec<String> {
            Endpoint::parse_all(text).unwrap().iter().map(ToString::to_string).collect()
        };
        assert_eq!(read("tcp://a:1"), ["tcp://a:1"]);
        assert_eq!(read("a:1,b:2,ws://c"), ["tcp://a:1", "tcp://b:2", "ws://c"]);
        assert_eq!(read("unix:///a,b,tcp://c:1"), ["unix:///a,b", "tcp://c:1"]);
        for text in ["", "tcp://a:1,", ",tcp://a:1", "tcp://a:1,,b:1", "tcp://a:1, tcp://b:1"] {
            assert_eq!(Endpoint::parse_all(text).unwrap_err().reason(), Reason::INVALID_ENDPOINT, "{text}");
        }
    }

    #[test]
    fn refuses_with_the_text_and_the_fix() {
        for text in [
            "",
            "tcp://",
            "localhost",
            "tcp://host:99999",
            "tcp://host:1/x",
            "unix://relative",
            "a b:1",
            "://x",
            "tcp://::1:80",
            "tcp://:80",
        ] {
            let status = Endpoint::parse(text).unwrap_err();
            assert_eq!(status.reason(), Reason::INVALID_ENDPOINT, "{text}");
            assert!(status.message().contains("tcp://host:port"), "{status}");
        }
    }
}
