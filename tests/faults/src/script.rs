//! A fault as data: who is evil, what it sends and waits for, and what must be seen. One JSON file each in `scripts/`.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde::Deserialize;
use valkyrie_sdk::Limits;

use crate::frame::Frame;

/// One fault.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// Its number in the catalogue of faults: `F17`.
    pub fault: String,
    /// What it is, in a few words.
    pub about: String,
    /// Which side is evil.
    pub evil: Side,
    /// What an evil client meets.
    #[serde(default)]
    pub target: Target,
    /// Over which carriers it runs, one after another.
    #[serde(default = "tcp")]
    pub carriers: Vec<Carrier>,
    /// Limits other than the defaults, where a default takes minutes: the target is the sdk's server then.
    #[serde(default)]
    pub limits: OwnLimits,
    /// So many connections do it.
    #[serde(default = "one")]
    pub connections: usize,
    /// All at once, instead of one after another.
    #[serde(default)]
    pub together: bool,
    /// Instead of `connections`: one for each byte of this, which sends what comes before that byte after its steps and
    /// then ends its direction.
    #[serde(default)]
    pub cut: Option<Frame>,
    /// What it does.
    pub steps: Vec<Step>,
    /// What must be seen.
    pub seen: Expected,
}

fn tcp() -> Vec<Carrier> {
    vec![Carrier::Tcp]
}

fn one() -> usize {
    1
}

/// Which side is evil; the other is real.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// A client, against a real server.
    Client,
    /// A server, against the real client.
    Server,
}

/// The real server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// The program `valkyrie-server` as a process of its own, whose memory is measured.
    #[default]
    Program,
    /// The sdk's server in this process, with `/hold`, which never answers, beside `/echo`.
    Sdk,
}

/// What carries the frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Carrier {
    /// A TCP connection.
    Tcp,
    /// A Unix socket.
    Unix,
    /// A TCP connection on which the script speaks HTTP and WebSocket itself.
    Ws,
}

/// One step of a script.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Step {
    /// Sends these.
    Send(Vec<Frame>),
    /// Sends these so many times, or until nobody takes them.
    Repeat {
        /// How often.
        times: u64,
        /// What.
        send: Vec<Frame>,
        /// Waits so long between two rounds, for what must be slow.
        #[serde(default)]
        every_ms: u64,
    },
    /// Waits until so many frames of a type have come: `HELLO`, `RESET` …, or bytes of HTTP: `HTTP`.
    Wait {
        /// The type's name.
        frame: String,
        /// How many.
        #[serde(default = "one")]
        count: usize,
    },
    /// Reads nothing from now on.
    StopReading,
    /// Ends its direction.
    HalfClose,
}

/// Limits that differ from the defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OwnLimits {
    frame_timeout_ms: Option<u64>,
    frame_grace_ms: Option<u64>,
    handshake_timeout_ms: Option<u64>,
    stall_timeout_ms: Option<u64>,
}

impl OwnLimits {
    /// The defaults, with these instead.
    pub fn limits(&self) -> Limits {
        let mut limits = Limits::default();
        let put = |field: &mut Duration, value: Option<u64>| {
            *field = value.map_or(*field, Duration::from_millis);
        };
        put(&mut limits.frame_timeout, self.frame_timeout_ms);
        put(&mut limits.frame_grace, self.frame_grace_ms);
        put(&mut limits.handshake_timeout, self.handshake_timeout_ms);
        put(&mut limits.stall_timeout, self.stall_timeout_ms);
        put(&mut limits.stall_timeout_pressed, self.stall_timeout_ms);
        limits
    }
}

/// What must be seen, on each connection, besides: an honest peer beside it is served all the while.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Expected {
    /// The connection stays: a PING is answered after all steps. Otherwise the real side closes it.
    pub stays: bool,
    /// The code of the GOAWAY; none without it.
    pub goaway: Option<String>,
    /// That it comes if it can: not to a peer that does not read.
    pub goaway_may_be_lost: bool,
    /// The highest stream that the GOAWAY names is at most this: how far the peer came.
    pub last_stream_most: Option<u64>,
    /// RESETs by code: at least so many, and none of another code.
    pub resets: BTreeMap<String, usize>,
    /// STATUSes by the code's name: exactly so many.
    pub statuses: BTreeMap<String, usize>,
    /// HTTP's status code.
    pub http: Option<u16>,
    /// WebSocket's close code.
    pub ws_close: Option<u16>,
    /// An evil server: the reasons that the real client's call may end with. Empty: it is answered.
    pub client: Vec<String>,
    /// The program's memory grows by at most so much in KiB. 8,192 unless given.
    pub memory_kib: Option<u64>,
    /// `/hold` is started at most so often.
    pub handlers_most: Option<usize>,
    /// And runs exactly so many times at once at the peak.
    pub running_peak: Option<usize>,
}

/// Where the scripts are.
pub fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts"))
}

impl Script {
    /// Reads `scripts/NAME.json`.
    ///
    /// # Panics
    /// When there is none, or it is not a script.
    pub fn read(name: &str) -> Script {
        let path = folder().join(format!("{name}.json"));
        let text =
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }
}
