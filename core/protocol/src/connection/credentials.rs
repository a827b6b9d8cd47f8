//! Whom a connection speaks for: AUTH, its answer and its end (PROTOCOL.md, "Credentials"). What a token says is decided
//! outside.
//!
//! ```text
//!            HELLO          AUTH              AUTHENTICATED           AUTH
//! none ─────────► announced ───► undecided ──────────────► accepted ◄─────► refreshing
//!                                    │ refused                 │ AUTHENTICATED   │
//!                                    ▼                         ▼ expired         ▼ refused, expired
//!                                 closed                      over              over
//! ```

use std::{fmt, time::Duration};

use bytes::Bytes;

use super::{Connection, Event, Role, abuse::Bucket, malformed};
use crate::{
    ConnectionError, ErrorCode, FrameType, Reason, Status, Time,
    record::{Auth, Authenticated, MAX_TOKEN, RecordError},
};

/// The same for every token, whatever was wrong with it.
const REFUSED: &str = "the credentials were refused";
const EXPIRED: &str = "the credentials of the connection expired";

/// AUTH frames that a server takes at once, and each second.
const AUTHS: (u32, u32) = (5, 1);

/// A token as the peer sent it. Debug does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Bytes);

impl Secret {
    /// The token's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// HELLO did not speak of any: calls are made without.
    None,
    /// HELLO said that they follow; no call goes before them.
    Announced,
    /// The first are being decided on.
    Undecided,
    Accepted,
    /// Accepted, and newer ones are being decided on.
    Refreshing,
    /// Refused after they were accepted, or expired: the connection drains.
    Over,
}

#[derive(Debug)]
pub(super) struct Credentials {
    pub(super) stage: Stage,
    /// When those that a server accepted end.
    pub(super) expires: Option<Time>,
    /// What a client's server said when it took them no more.
    refusal: Option<ConnectionError>,
    rate: Bucket,
}

impl Credentials {
    pub(super) fn new(announced: bool) -> Self {
        let stage = if announced { Stage::Announced } else { Stage::None };
        Self { stage, expires: None, refusal: None, rate: Bucket::new(AUTHS.0, AUTHS.1) }
    }
}

impl Connection {
    /// Sends credentials: the first ones ahead of the calls that wait for them, later ones while streams go on. Whether it
    /// did: not on a server, not without [`Config::authenticates`](super::Config::authenticates), not while others are
    /// undecided, and not once they were refused or have expired.
    pub fn authenticate(&mut self, token: &[u8]) -> bool {
        if self.config.role == Role::Server || self.failed.is_some() || token.len() > MAX_TOKEN {
            return false;
        }
        self.credentials.stage = match self.credentials.stage {
            Stage::Announced => Stage::Undecided,
            Stage::Accepted => Stage::Refreshing,
            _ => return false,
        };
        let auth = Auth { token, extensions: Vec::new() };
        self.push_control(FrameType::AUTH, 0, |out| auth.encode(out));
        true
    }

    /// A server takes the credentials of [`Event::Auth`]; they end after `expires_in`, `None` for never. Does nothing when
    /// none are undecided: they came too late.
    pub fn accept_credentials(&mut self, now: Time, expires_in: Option<Duration>) {
        if self.config.role != Role::Server || self.failed.is_some() || !self.is_undecided() {
            return;
        }
        self.now = now;
        self.credentials.stage = Stage::Accepted;
        self.credentials.expires = expires_in.map(|left| now.after(left));
        self.handshake_deadline = None;
        // 0 would mean never.
        let expires_in_ms = expires_in.map_or(0, |left| u64::try_from(left.as_millis()).unwrap_or(0).max(1));
        let answer = Authenticated { expires_in_ms, extensions: Vec::new() };
        self.push_control(FrameType::AUTHENTICATED, 0, |out| answer.encode(out));
    }

    /// A server refuses the credentials of [`Event::Auth`]. If they were the first, the connection is over; if not, it
    /// drains, and its streams go on until the old ones expire.
    pub fn refuse_credentials(&mut self, now: Time) {
        if self.config.role != Role::Server || self.failed.is_some() || !self.is_undecided() {
            return;
        }
        self.now = now;
        if self.holds_back() {
            self.fail(ConnectionError::new(ErrorCode::UNAUTHENTICATED, REFUSED));
            return;
        }
        self.credentials.stage = Stage::Over;
        self.going_away = true;
        self.push_go_away(ErrorCode::UNAUTHENTICATED, REFUSED);
    }

    /// Whether a server has yet to decide on the first credentials: nothing behind them is read.
    pub fn holds_back(&self) -> bool {
        self.credentials.stage == Stage::Undecided && self.config.role == Role::Server
    }

    /// When the credentials that a server accepted end; `None` for never.
    pub fn credentials_end(&self) -> Option<Time> {
        self.credentials.expires
    }

    fn is_undecided(&self) -> bool {
        matches!(self.credentials.stage, Stage::Undecided | Stage::Refreshing)
    }

    /// Whether a server has not read the credentials that HELLO spoke of.
    pub(super) fn awaits_auth(&self) -> bool {
        self.credentials.stage == Stage::Announced && self.config.role == Role::Server
    }

    /// Whether AUTH is to go ahead of what waits for the wire.
    pub(super) fn is_silent(&self) -> bool {
        self.credentials.stage == Stage::Announced && self.config.role == Role::Client
    }

    pub(super) fn handle_auth(&mut self, now: Time, record: &Bytes) -> Result<(), ConnectionError> {
        let protocol = |what: &'static str| Err(ConnectionError::new(ErrorCode::PROTOCOL, what));
        let token = Auth::decode(record).map_err(malformed)?.token;
        if token.len() > MAX_TOKEN {
            return Err(malformed(RecordError::new("a token of more than 8192 bytes")));
        }
        if self.config.role == Role::Client {
            return protocol("credentials from a server");
        }
        self.credentials.stage = match self.credentials.stage {
            Stage::Announced => Stage::Undecided,
            Stage::Accepted => Stage::Refreshing,
            // Too late, and it was told so.
            Stage::Over => return self.count_glitch(),
            _ => return protocol("credentials while others are undecided"),
        };
        if self.config.authenticates {
            self.events.push_back(Event::Auth { token: Secret(record.slice_ref(token)) });
        } else {
            self.accept_credentials(now, None);
            self.count_answer()?;
        }
        if self.credentials.rate.add(now) { Ok(()) } else { self.count_glitch() }
    }

    pub(super) fn handle_authenticated(&mut self, record: &Bytes) -> Result<(), ConnectionError> {
        let ms = Authenticated::decode(record).map_err(malformed)?.expires_in_ms;
        if self.config.role == Role::Server || !self.is_undecided() {
            let what = "an answer to credentials that nobody sent";
            return Err(ConnectionError::new(ErrorCode::PROTOCOL, what));
        }
        self.credentials.stage = Stage::Accepted;
        let expires_in = (ms != 0).then(|| Duration::from_millis(ms));
        self.events.push_back(Event::Authenticated { expires_in });
        Ok(())
    }

    /// Why a client's credentials are worth nothing any more: what a call ends with that finds the connection like this.
    pub fn unauthenticated(&self) -> Option<Status> {
        self.credentials.refusal.as_ref().map(ConnectionError::status)
    }

    /// The peer said GOAWAY(UNAUTHENTICATED), with this.
    pub(super) fn end_credentials(&mut self, error: ConnectionError) -> ConnectionError {
        let known = self.credentials.refusal.is_some();
        let accepted = self.credentials.stage == Stage::Accepted || known;
        self.credentials.stage = Stage::Over;
        let error = if accepted { error.with_reason(Reason::CREDENTIALS_EXPIRED) } else { error };
        self.credentials.refusal = Some(error.clone());
        error
    }

    /// The peer reset a stream for it, and where streams are the carrier's that overtakes its GOAWAY.
    pub(super) fn note_expiry(&mut self) {
        self.peer_going_away = true;
        self.credentials.stage = Stage::Over;
        let error = ConnectionError::new(ErrorCode::UNAUTHENTICATED, EXPIRED);
        self.credentials.refusal.get_or_insert(error.with_reason(Reason::CREDENTIALS_EXPIRED));
    }

    /// A server's: whoever calls has proved nothing any more.
    pub(super) fn expire(&mut self) {
        self.credentials.expires = None;
        self.going_away = true;
        if self.credentials.stage != Stage::Over {
            self.credentials.stage = Stage::Over;
            self.push_go_away(ErrorCode::UNAUTHENTICATED, EXPIRED);
        }
        let streams: Vec<_> =
            self.streams.iter().filter(|(_, stream)| !stream.local).map(|(key, _)| key).collect();
        for key in streams {
            self.reset_and_tell(key, ErrorCode::UNAUTHENTICATED, expired());
        }
        self.events.push_back(Event::Expired);
    }
}

pub(super) fn expired() -> Status {
    Status::from_reason(Reason::CREDENTIALS_EXPIRED, EXPIRED)
}
