//! What a call does, as a function of its nonce alone: the caller sends the nonce, and the server that reads it knows
//! what to do. And the bytes of every message, so that whoever receives one can tell whose it is.

use std::sync::LazyLock;

use bytes::{BufMut, Bytes, BytesMut};
use valkyrie_protocol::Priority;

use crate::random::{Random, mix};

/// Index of a side of a link: the one that connected, the one that accepted. A direction is named by the side it goes to.
pub(crate) const CLIENT: usize = 0;
pub(crate) const SERVER: usize = 1;

/// The four shapes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Unary,
    ServerStreaming,
    ClientStreaming,
    Bidirectional,
}

/// When the caller gives up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cancel {
    Never,
    /// Before there is a stream, when there is no connection yet; else at once.
    AtOnce,
    /// After so long, wherever the call stands then.
    After(u64),
    /// As soon as so many messages are on their way.
    AfterSending(u32),
    /// With the first answer in hand.
    AfterFirstAnswer,
}

/// How the server ends the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Ok,
    /// A status of the application's after so many messages.
    Refuse(u32),
    /// OK, and whatever the caller still wants to say is not heard.
    OkEarly,
}

#[derive(Clone, Debug)]
pub(crate) struct Plan {
    nonce: u64,
    pub(crate) shape: Shape,
    pub(crate) priority: Priority,
    pub(crate) requests: u32,
    pub(crate) responses: u32,
    /// The first message goes in the CALL frame; the last answer in STATUS.
    pub(crate) first_rides: bool,
    pub(crate) last_rides: bool,
    pub(crate) head: bool,
    pub(crate) think_us: u64,
    pub(crate) request_gap_us: u64,
    pub(crate) response_gap_us: u64,
    /// How long the application holds a message before it asks for the next.
    pub(crate) client_hold_us: u64,
    pub(crate) server_hold_us: u64,
    pub(crate) timeout_us: Option<u64>,
    pub(crate) cancel: Cancel,
    pub(crate) answer: Answer,
    /// A message above everybody's limit.
    pub(crate) oversize: bool,
    most: usize,
}

impl Plan {
    /// The plan of a call whose messages have at most `most` bytes.
    pub(crate) fn of(nonce: u64, most: usize) -> Self {
        let mut random = Random::new(nonce);
        let shape = random.pick(&[
            Shape::Unary,
            Shape::Unary,
            Shape::Unary,
            Shape::ServerStreaming,
            Shape::ClientStreaming,
            Shape::Bidirectional,
        ]);
        // A waiting time that is mostly none.
        let mut pause = |chance, most| if random.one_in(chance) { random.between(1, most) } else { 0 };
        let request_gap_us = pause(3, 60_000);
        let response_gap_us = pause(3, 60_000);
        let client_hold_us = pause(6, 200_000);
        let server_hold_us = pause(6, 100_000);
        let think_us = if random.one_in(40) { random.between(0, 800_000) } else { random.between(0, 8_000) };
        let many = |random: &mut Random, streams| {
            if streams { random.pick(&[0, 1, 2, 3, 5, 8, 20]) } else { 1 }
        };
        let client_streams = matches!(shape, Shape::ClientStreaming | Shape::Bidirectional);
        let requests = many(&mut random, client_streams);
        let responses = match shape {
            Shape::Bidirectional => requests,
            shape => many(&mut random, shape == Shape::ServerStreaming),
        };
        let timeout_us = match random.below(10) {
            0 => Some(random.between(0, 30_000)),
            1..=4 => Some(random.between(30_000, 2_000_000)),
            5..=7 => Some(random.between(2_000_000, 9_000_000)),
            _ => None,
        };
        let cancel = match random.below(40) {
            0 => Cancel::AtOnce,
            1 | 2 => Cancel::After(random.between(0, 400_000)),
            3 => Cancel::AfterSending(random.between(1, u64::from(requests.max(1))) as u32),
            4 => Cancel::AfterFirstAnswer,
            _ => Cancel::Never,
        };
        let answer = match random.below(30) {
            0 | 1 => Answer::Refuse(random.between(0, u64::from(responses)) as u32),
            2 => Answer::OkEarly,
            _ => Answer::Ok,
        };
        Self {
            nonce,
            shape,
            priority: random.pick(&[Priority::Critical, Priority::Normal, Priority::Normal, Priority::Bulk]),
            requests,
            responses,
            first_rides: random.below(4) != 0,
            last_rides: random.below(3) != 0,
            head: random.one_in(5),
            think_us,
            request_gap_us,
            response_gap_us,
            client_hold_us,
            server_hold_us,
            timeout_us,
            cancel,
            answer,
            oversize: requests > 0 && random.one_in(400),
            most,
        }
    }

    /// The plan of a call that must succeed when nothing is broken.
    pub(crate) fn probe(nonce: u64, most: usize) -> Self {
        Self {
            shape: Shape::Unary,
            requests: 1,
            responses: 1,
            timeout_us: Some(5_000_000),
            cancel: Cancel::Never,
            answer: Answer::Ok,
            oversize: false,
            think_us: 0,
            ..Self::of(nonce, most)
        }
    }

    /// The length of a message.
    pub(crate) fn len(&self, to: usize, index: u32) -> usize {
        if self.oversize && to == SERVER && index + 1 == self.requests {
            return self.most + 1;
        }
        // An echo is as long as what it answers.
        let to = if self.shape == Shape::Bidirectional { SERVER } else { to };
        let mut random = Random::new(self.nonce ^ mix(u64::from(index) << 1 | to as u64));
        let most = match random.below(100) {
            0..=9 => 0,
            10..=59 => 200,
            60..=93 => 3_000,
            94..=98 => 30_000,
            _ if random.one_in(8) => self.most,
            _ => 100_000,
        };
        random.between(0, most.min(self.most) as u64) as usize
    }

    /// The message with that number, counted from 0 in its direction.
    pub(crate) fn message(&self, to: usize, index: u32) -> Bytes {
        let len = self.len(to, index);
        let (head, noise) = content(self.nonce, to, index, len);
        let mut message = BytesMut::with_capacity(len);
        message.put_slice(&head[..len.min(head.len())]);
        message.put_slice(noise);
        message.freeze()
    }
}

/// Whether these are the bytes of that message of that call.
pub(crate) fn is_message(bytes: &[u8], nonce: u64, to: usize, index: u32) -> bool {
    let (head, noise) = content(nonce, to, index, bytes.len());
    let (start, rest) = bytes.split_at(bytes.len().min(head.len()));
    *start == head[..start.len()] && rest == noise
}

/// A message is 16 bytes that say whose it is, cut where it is shorter, and noise from a place that they choose.
fn content(nonce: u64, to: usize, index: u32, len: usize) -> ([u8; 16], &'static [u8]) {
    const ROOM: usize = 64 << 10;
    static NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let mut random = Random::new(0);
        (0..((4 << 20) + ROOM) / 8 + 1).flat_map(|_| random.next().to_le_bytes()).collect()
    });
    let mut head = [0; 16];
    head[..8].copy_from_slice(&nonce.to_le_bytes());
    head[8..12].copy_from_slice(&(index << 1 | to as u32).to_le_bytes());
    head[12..].copy_from_slice(&(len as u32).to_le_bytes());
    let at = mix(nonce ^ u64::from(index)) as usize % ROOM;
    (head, &NOISE[at..at + len.saturating_sub(head.len())])
}
