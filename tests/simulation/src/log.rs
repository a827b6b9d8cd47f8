//! The log of everything that happened: a running hash over all of it, and its last lines for whoever looks into a
//! violation.

use std::{collections::VecDeque, fmt};

use crate::random::mix;

/// Lines that are kept for a report.
const KEPT: usize = 60;

/// One thing that happened: what, where, and a number whose meaning goes with the word.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) at: u64,
    pub(crate) what: &'static str,
    pub(crate) host: usize,
    pub(crate) link: usize,
    pub(crate) nonce: u64,
    pub(crate) value: u64,
}

/// Not of a host, not on a link.
pub(crate) const NONE: usize = usize::MAX;

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:4}.{:06} {:<18}", self.at / 1_000_000, self.at % 1_000_000, self.what)?;
        if self.host != NONE {
            write!(f, " host {}", self.host)?;
        }
        if self.link != NONE {
            write!(f, " link {}", self.link)?;
        }
        if self.nonce != 0 {
            write!(f, " call {:016x}", self.nonce)?;
        }
        write!(f, " {}", self.value)
    }
}

#[derive(Debug)]
pub(crate) struct Log {
    hash: u64,
    pub(crate) entries: u64,
    print: bool,
    last: VecDeque<Entry>,
}

impl Log {
    /// An empty log; with `print`, every entry goes to standard output as well.
    pub(crate) fn new(print: bool) -> Self {
        Self { hash: 0, entries: 0, print, last: VecDeque::with_capacity(KEPT) }
    }

    pub(crate) fn add(&mut self, entry: Entry) {
        self.entries += 1;
        // Numbers only, each in 64 bits: the same on every machine and in every build.
        let word = entry.what.bytes().fold(0u64, |word, byte| word.rotate_left(7) ^ u64::from(byte));
        for word in [entry.at, word, entry.host as u64, entry.link as u64, entry.nonce, entry.value] {
            self.hash = chain(self.hash, word);
        }
        if self.print {
            println!("{entry}");
        }
        if self.last.len() == KEPT {
            self.last.pop_front();
        }
        self.last.push_back(entry);
    }

    pub(crate) fn hash(&self) -> u64 {
        mix(self.hash)
    }

    pub(crate) fn last(&self) -> String {
        self.last.iter().map(|entry| format!("{entry}\n")).collect()
    }
}

/// The hash of what went before and one more number.
pub(crate) fn chain(hash: u64, word: u64) -> u64 {
    let mixed = (hash.rotate_left(23) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed ^ (mixed >> 32)
}

/// The hash of bytes: four rows of eight at a time, as a processor can work on four at once.
pub(crate) fn digest(bytes: &[u8]) -> u64 {
    let mut rows = [0; 4];
    let (blocks, rest) = bytes.as_chunks::<32>();
    let mut add = |block: &[u8; 32]| {
        let (words, _) = block.as_chunks::<8>();
        for (row, word) in rows.iter_mut().zip(words) {
            *row = chain(*row, u64::from_le_bytes(*word));
        }
    };
    blocks.iter().for_each(&mut add);
    let mut last = [0; 32];
    last[..rest.len()].copy_from_slice(rest);
    add(&last);
    rows.into_iter().fold(bytes.len() as u64, chain)
}
