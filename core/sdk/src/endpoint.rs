//! The URL a user writes: where to connect or to listen, and over which transport.

use std::fmt;
#[cfg(feature = "native")]
use std::net::SocketAddr;

use valkyrie_protocol::{Reason, Status};

/// How many levels a list of endpoints has at most.
const MAX_LEVELS: u8 = 8;
/// Servers of a client at most.
pub(crate) const MAX_SERVERS: usize = 1_024;

/// A parsed endpoint: `tcp://host:port`, `tls://host:port`, `quic://host:port`, `ws://host:port/path`, `wss://host:port/path`,
/// `unix:///path`, `memory:name`, or a scheme of a transport that was registered from outside. `host:port` alone means `tcp://`.
/// `dns+tcp://name:port` and its like, `file:///path` and schemes of resolvers that were registered are for clients, and name many servers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    scheme: String,
    rest: String,
    #[cfg(feature = "native")]
    resolved: Option<SocketAddr>,
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
        let (scheme, rest) = match text.split_once(':') {
            Some((scheme, rest)) if rest.starts_with("//") => (scheme, &rest[2..]),
            Some(("memory", rest)) => ("memory", rest),
            Some(("file", rest)) if rest.parse::<u16>().is_err() => ("file", rest),
            _ => ("tcp", text),
        };
        if scheme.is_empty()
            || !scheme.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b))
        {
            return invalid("has no legal scheme");
        }
        if rest.is_empty() {
            return invalid("names no address");
        }
        let endpoint = Self {
            scheme: scheme.to_owned(),
            rest: rest.to_owned(),
            #[cfg(feature = "native")]
            resolved: None,
        };
        match scheme.strip_prefix("dns+").unwrap_or(scheme) {
            "tcp" | "tls" | "quic" if rest.contains('/') => {
                invalid("has a path, which its scheme does not know")
            }
            "tcp" | "tls" | "quic" | "ws" | "wss" => match endpoint.authority().rsplit_once(':') {
                Some(("", _)) => invalid("names no host"),
                Some((host, _)) if host.contains(':') && !(host.starts_with('[') && host.ends_with(']')) => {
                    invalid("has an IPv6 address without [brackets]")
                }
                Some((_, port)) if port.parse::<u16>().is_err() => invalid("has no port from 0 to 65535"),
                None if !scheme.ends_with("ws") && !scheme.ends_with("wss") => invalid("has no port"),
                _ => Ok(endpoint),
            },
            "unix" | "file" if !rest.starts_with('/') => invalid("has no absolute path"),
            _ => Ok(endpoint),
        }
    }

    /// Parses a list of endpoints, each with its level. Between endpoints of one level there are commas, between levels `|`, the
    /// nearest first: in `tcp://a:1,tcp://b:1|tcp://c:1` the first two are of level 0. In the path of `unix://` and `file://` a comma or
    /// a `|` ends it only where a scheme follows.
    ///
    /// # Errors
    /// `INVALID_ENDPOINT`: as [`Endpoint::parse`], for the first that is wrong; for a level without an endpoint, for more than 8
    /// levels, and for more than 1,024 endpoints.
    pub fn parse_all(text: &str) -> Result<Vec<(Self, u8)>, Status> {
        let mut parts: Vec<(&str, u8)> = Vec::new();
        let (mut begins, mut level) = (0, 0);
        let end_from = |at: usize| {
            let found = text.as_bytes()[at..].iter().position(|byte| b",|".contains(byte));
            found.map_or(text.len(), |count| at + count)
        };
        let is_path = |text: &str| text.starts_with("unix://") || text.starts_with("file://");
        let has_scheme = |text: &str| text.as_bytes().windows(3).any(|part| part == b"://");
        loop {
            let mut ends = end_from(begins);
            // What is a path goes on to the next one, unless an endpoint begins there.
            while is_path(&text[begins..]) && ends < text.len() {
                let next = end_from(ends + 1);
                if has_scheme(&text[ends + 1..next]) {
                    break;
                }
                ends = next;
            }
            if parts.len() == MAX_SERVERS {
                let message = format!(
                    "the endpoint names more than the {MAX_SERVERS} servers of a client; leave some out"
                );
                return Err(Status::from_reason(Reason::INVALID_ENDPOINT, message));
            }
            parts.push((&text[begins..ends], level));
            match text.as_bytes().get(ends) {
                None => break,
                Some(b'|') if level == MAX_LEVELS - 1 => {
                    let message = format!(
                        "endpoint {text:?} has more than {MAX_LEVELS} levels; put servers of one level behind commas"
                    );
                    return Err(Status::from_reason(Reason::INVALID_ENDPOINT, message));
                }
                Some(b'|') => level += 1,
                Some(_) => {}
            }
            begins = ends + 1;
        }
        let is_alone = |level: u8| parts.iter().filter(|(_, other)| *other == level).count() == 1;
        if let Some((_, level)) =
            parts.iter().find(|(part, own)| part.is_empty() && level > 0 && is_alone(*own))
        {
            let message = format!(
                "endpoint {text:?} has no server of level {level}; write tcp://near:1|tcp://far:1, with one at least on each side of |"
            );
            return Err(Status::from_reason(Reason::INVALID_ENDPOINT, message));
        }
        parts.into_iter().map(|(part, level)| Ok((Self::parse(part)?, level))).collect()
    }

    /// The same server at this address, wherever its name leads to: it is connected to there, and verified by its name.
    #[cfg(feature = "native")]
    #[must_use]
    pub fn at(mut self, address: SocketAddr) -> Self {
        self.resolved = Some(address);
        self
    }

    /// The address to connect to, if it was given by [`Endpoint::at`].
    #[cfg(feature = "native")]
    pub fn resolved(&self) -> Option<SocketAddr> {
        self.resolved
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
            _ => Self { rest: self.authority().to_owned(), ..self.clone() }.to_string(),
        }
    }

    /// As it is written, without the address.
    #[cfg(feature = "websocket")]
    pub(crate) fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.rest)
    }

    /// Host and port, which `ws://` and `wss://` need not name.
    #[cfg(feature = "native")]
    pub(crate) fn host_and_port(&self) -> String {
        let authority = self.authority();
        let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        match self.scheme.as_str() {
            "ws" if !has_port => format!("{authority}:80"),
            "wss" if !has_port => format!("{authority}:443"),
            _ => authority.to_owned(),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.scheme.as_str() {
            "memory" => write!(f, "memory:{}", self.rest)?,
            scheme => write!(f, "{scheme}://{}", self.rest)?,
        }
        #[cfg(feature = "native")]
        if let Some(address) = self.resolved {
            write!(f, " at {address}")?;
        }
        Ok(())
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
            Endpoint::parse_all(text).unwrap().iter().map(|(endpoint, _)| endpoint.to_string()).collect()
        };
        assert_eq!(read("tcp://a:1"), ["tcp://a:1"]);
        assert_eq!(read("a:1,b:2,ws://c"), ["tcp://a:1", "tcp://b:2", "ws://c"]);
        assert_eq!(read("unix:///a,b,tcp://c:1"), ["unix:///a,b", "tcp://c:1"]);
        for text in ["", "tcp://a:1,", ",tcp://a:1", "tcp://a:1,,b:1", "tcp://a:1, tcp://b:1"] {
            assert_eq!(Endpoint::parse_all(text).unwrap_err().reason(), Reason::INVALID_ENDPOINT, "{text}");
        }
    }

    #[test]
    fn reads_levels() {
        let read = |text: &str| -> Vec<(String, u8)> {
            let all = Endpoint::parse_all(text).unwrap();
            all.iter().map(|(endpoint, level)| (endpoint.to_string(), *level)).collect()
        };
        let expected = |all: &[(&str, u8)]| -> Vec<(String, u8)> {
            all.iter().map(|(text, level)| ((*text).to_owned(), *level)).collect()
        };
        assert_eq!(
            read("tcp://a:1,b:1|tcp://c:1"),
            expected(&[("tcp://a:1", 0), ("tcp://b:1", 0), ("tcp://c:1", 1)])
        );
        assert_eq!(
            read("unix:///a|b,c|unix:///d,e,tcp://f:1"),
            expected(&[("unix:///a|b,c", 0), ("unix:///d,e", 1), ("tcp://f:1", 1)])
        );
        assert_eq!(read("a:1|b:1|c:1|d:1|e:1|f:1|g:1|h:1").last().unwrap().1, 7);
        for (text, why) in [
            ("|tcp://a:1", "no server of level 0"),
            ("tcp://a:1|", "no server of level 1"),
            ("tcp://a:1||tcp://b:1", "no server of level 1"),
            ("|", "no server of level 0"),
            ("a:1|b:1|c:1|d:1|e:1|f:1|g:1|h:1|i:1", "more than 8 levels"),
            ("tcp://a:1,|tcp://b:1", "is empty"),
            ("tcp://a:1|b", "has no port"),
        ] {
            let status = Endpoint::parse_all(text).unwrap_err();
            assert_eq!(status.reason(), Reason::INVALID_ENDPOINT, "{text}");
            assert!(status.message().contains(why), "{text}: {status}");
        }
        let many = |count| Endpoint::parse_all(&vec!["a:1"; count].join(","));
        assert_eq!(many(MAX_SERVERS).unwrap().len(), 1_024);
        let status = many(MAX_SERVERS + 1).unwrap_err();
        assert_eq!(status.reason(), Reason::INVALID_ENDPOINT);
        assert!(status.message().contains("more than the 1024 servers"), "{status}");
        assert!(Endpoint::parse_all(&format!("a:1|{}", ",".repeat(1_000_000))).is_err());
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
