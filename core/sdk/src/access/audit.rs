//! A record of every decision, as lines of JSON of which each holds the hash of the one before: a line that is changed,
//! missing, moved or repeated is found. What a chain alone cannot show is that its end was cut off, or that all of it was made anew:
//! for that its last hash is kept elsewhere ([`Audit::last`]), and it is made with a key.

use std::{
    collections::VecDeque,
    fmt::{self, Write as _},
    fs::{self, File, OpenOptions},
    io::{self, BufRead, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, SystemTime},
};

use ring::{digest, hmac};
use serde::Deserialize;
use valkyrie_protocol::{Reason, Status};

use super::hex;

/// What a line ends with: `,"hash":"`, 64 digits, `"}`.
const HASH: &str = ",\"hash\":\"";
const DIGITS: usize = 64;
/// The hash before the first line.
const NOTHING: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// The most bytes of one text from outside that a line holds.
const LONGEST_TEXT: usize = 1_024;
/// More than any line has: six texts, of which each byte may become six.
const LONGEST_LINE: usize = 64 << 10;
/// Bytes that are written in one piece, which is there whole or not at all.
const PIECE: usize = 64 << 10;
/// How long the writer waits before it tries again what failed.
const TRY_AGAIN: Duration = Duration::from_millis(200);

/// Describes an audit log; [`AuditBuilder::open`] opens it.
#[must_use = "a builder does nothing until it is opened"]
pub struct AuditBuilder {
    path: PathBuf,
    queue: usize,
    fail_closed: bool,
    max_file_bytes: u64,
    sync: bool,
    key: Option<hmac::Key>,
}

impl AuditBuilder {
    /// Records that may wait to be written. Default 8,192; about 1 KiB each, and 4 KiB at most.
    pub fn queue(mut self, records: usize) -> Self {
        self.queue = records;
        self
    }

    /// Refuses calls, with UNAVAILABLE, whose decision cannot be recorded: as long as the queue is full or the file cannot be
    /// written. By default they go on, and how many records are missing is recorded once there is room.
    pub fn fail_closed(mut self) -> Self {
        self.fail_closed = true;
        self
    }

    /// The size from which a file is set aside, as `PATH.` and the 20-digit number of its last record, and the chain goes on
    /// in a new one. Default 64 MiB. Nothing is ever deleted.
    pub fn max_file_bytes(mut self, bytes: u64) -> Self {
        self.max_file_bytes = bytes;
        self
    }

    /// Waits for the device after each batch of records: they survive a power cut. By default the system writes when it
    /// likes, and they survive the end of the process. A file that is set aside is always waited for.
    pub fn sync(mut self) -> Self {
        self.sync = true;
        self
    }

    /// Hashes with a key (HMAC-SHA-256): who has not got it can verify nothing, and cannot make the chain anew.
    pub fn key(mut self, key: &[u8]) -> Self {
        self.key = Some(hmac::Key::new(hmac::HMAC_SHA256, key));
        self
    }

    /// Opens the file, or makes it (readable for its owner only), and goes on with its chain. A last line that was not
    /// finished is taken out of it and recorded as such.
    ///
    /// # Errors
    /// INVALID_CONFIGURATION when it cannot be opened or read, when another process writes it, when its last line is not
    /// one of this log's, and when the first record cannot be written.
    pub fn open(self) -> Result<Audit, Status> {
        let path = self.path.display().to_string();
        let failed =
            |why: String| Status::from_reason(Reason::INVALID_CONFIGURATION, format!("audit {path}: {why}"));
        if self.queue == 0 {
            return Err(failed("queue is at least 1".into()));
        }
        let mut book = Book::open(&self).map_err(|error| failed(error.to_string()))?;
        let opened = book.opening(SystemTime::now());
        book.write(&opened).map_err(|(_, error)| failed(error.to_string()))?;
        let last = (book.chain.seq, book.chain.last.clone());
        let shared = Arc::new(Shared {
            state: Mutex::new(State { last, ..State::default() }),
            work: Condvar::new(),
            settled: Condvar::new(),
            most: self.queue,
            fail_closed: self.fail_closed,
        });
        let thread = std::thread::Builder::new().name("valkyrie-audit".into()).spawn({
            let shared = shared.clone();
            move || shared.write_all(book)
        });
        let thread = Some(thread.map_err(|error| failed(error.to_string()))?);
        Ok(Audit { shared, thread })
    }
}

/// An audit log that is being written, by a thread of its own. Dropping it writes what it can and ends the thread.
pub struct Audit {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// Counts of an audit log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuditStats {
    /// Records written.
    pub written: u64,
    /// Records that are missing since there was no room for them.
    pub lost: u64,
    /// Decisions that were refused for the want of room.
    pub refused: u64,
    /// Attempts to write that failed: anything but 0 is an alarm.
    pub failures: u64,
    /// Why nothing can be written at the moment.
    pub failing: Option<String>,
}

impl Audit {
    /// Describes an audit log in that file.
    pub fn builder(path: impl Into<PathBuf>) -> AuditBuilder {
        AuditBuilder {
            path: path.into(),
            queue: 8_192,
            fail_closed: false,
            max_file_bytes: 64 << 20,
            sync: false,
            key: None,
        }
    }

    /// Counts.
    pub fn stats(&self) -> AuditStats {
        self.shared.lock().stats.clone()
    }

    /// The number and the hash of the last record written: kept elsewhere, they show later that the end was not cut off
    /// (`valkyrie audit verify --expect-last`).
    pub fn last(&self) -> (u64, String) {
        self.shared.lock().last.clone()
    }

    /// Waits until what was recorded so far is written: whether it is. False at once when writing fails.
    pub fn flush(&self) -> bool {
        let mut state = self.shared.lock();
        let until = state.taken;
        while state.stats.failing.is_none() && (state.settled < until || state.missing > 0) {
            state = self.shared.settled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.stats.failing.is_none()
    }

    /// Takes a record.
    ///
    /// # Errors
    /// UNAVAILABLE when there is no room and the log is to fail closed.
    pub(crate) fn record(&self, event: Event) -> Result<(), Status> {
        let shared = &*self.shared;
        let mut state = shared.lock();
        let full = state.queue.len() + state.writing >= shared.most;
        if shared.fail_closed && (full || state.stats.failing.is_some()) {
            state.stats.refused += 1;
            return Err(Status::from_reason(
                Reason::STREAM_REFUSED,
                "the audit log cannot be written, and nothing is done without it",
            ));
        }
        if full {
            state.missing += 1;
            state.stats.lost += 1;
            return Ok(());
        }
        // What is missing stood before this one.
        if state.missing > 0 {
            let gap = Event::gap(event.time, std::mem::take(&mut state.missing));
            state.queue.push_back(gap);
            state.taken += 1;
        }
        state.queue.push_back(event);
        state.taken += 1;
        drop(state);
        shared.work.notify_one();
        Ok(())
    }
}

impl fmt::Debug for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Audit").field("stats", &self.stats()).finish()
    }
}

impl Drop for Audit {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.work.notify_one();
        if let Some(thread) = self.thread.take() {
            // It does not panic, and if it did there is nothing to do about it here.
            let _ = thread.join();
        }
    }
}

/// One thing to record. What it does not concern is empty.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) time: SystemTime,
    pub(crate) what: &'static str,
    pub(crate) outcome: &'static str,
    pub(crate) connection: Option<u64>,
    pub(crate) peer: String,
    pub(crate) principal: String,
    pub(crate) method: String,
    pub(crate) policy: String,
    pub(crate) rule: Option<Arc<str>>,
    pub(crate) message: String,
    /// How many records are missing, or how many bytes.
    pub(crate) lost: u64,
}

impl Event {
    pub(crate) fn new(time: SystemTime, what: &'static str, outcome: &'static str) -> Self {
        Self {
            time,
            what,
            outcome,
            connection: None,
            peer: String::new(),
            principal: String::new(),
            method: String::new(),
            policy: String::new(),
            rule: None,
            message: String::new(),
            lost: 0,
        }
    }

    fn gap(time: SystemTime, lost: u64) -> Self {
        Self { lost, ..Self::new(time, "gap", "lost") }
    }

    /// Its line, up to the hash of the line before.
    fn line(&self, seq: u64) -> String {
        let mut line =
            format!("{{\"seq\":{seq},\"time\":\"{}\",\"event\":\"{}\"", Rfc3339(self.time), self.what);
        let _ = write!(line, ",\"outcome\":\"{}\"", self.outcome);
        if let Some(connection) = self.connection {
            let _ = write!(line, ",\"connection\":{connection}");
        }
        for (key, text) in [
            ("peer", self.peer.as_str()),
            ("principal", &self.principal),
            ("method", &self.method),
            ("policy", &self.policy),
            ("rule", self.rule.as_deref().unwrap_or_default()),
            ("message", &self.message),
        ] {
            if !text.is_empty() {
                let _ = write!(line, ",\"{key}\":");
                push_text(&mut line, text);
            }
        }
        if self.lost > 0 {
            let _ = write!(line, ",\"lost\":{}", self.lost);
        }
        line
    }
}

/// A text as JSON in printable ASCII: what is neither moves no cursor and passes for nothing else.
fn push_text(line: &mut String, text: &str) {
    let end = (0..=LONGEST_TEXT.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    let kept = &text[..end.unwrap_or(0)];
    line.push('"');
    for character in kept.chars() {
        match character {
            '"' | '\\' => line.extend(['\\', character]),
            ' '..='~' => line.push(character),
            _ => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    // Writing to a string cannot fail.
                    let _ = write!(line, "\\u{unit:04x}");
                }
            }
        }
    }
    if kept.len() < text.len() {
        let _ = write!(line, " ... and {} bytes", text.len() - kept.len());
    }
    line.push('"');
}

/// A time in UTC, to the microsecond.
struct Rfc3339(SystemTime);

impl fmt::Display for Rfc3339 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Whatever was before 1970 was a clock that is not set.
        let since = self.0.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
        // Days to a date of the Gregorian calendar, whose years here begin in March: a leap day is then their last.
        let days = days + 719_468;
        let (era, day) = (days / 146_097, days % 146_097);
        let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
        let year = era * 400 + year + u64::from(month <= 2);
        let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
        let micros = since.subsec_micros();
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
    }
}

struct Shared {
    state: Mutex<State>,
    /// Told to the writer.
    work: Condvar,
    /// Told by the writer.
    settled: Condvar,
    most: usize,
    fail_closed: bool,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Event>,
    /// Records that the writer has taken and not written.
    writing: usize,
    /// Records for which there was no room, since the last one that had some.
    missing: u64,
    /// Records that were ever taken, and of them those that are written.
    taken: u64,
    settled: u64,
    closing: bool,
    last: (u64, String),
    stats: AuditStats,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The writer's thread.
    fn write_all(&self, mut book: Book) {
        let mut batch: Vec<Event> = Vec::new();
        loop {
            let mut state = self.lock();
            // What failed may be the device alone, with nothing left to write.
            while batch.is_empty() && state.stats.failing.is_none() {
                batch.extend(state.queue.drain(..));
                // What is missing stood behind all of these.
                if state.missing > 0 {
                    let missing = std::mem::take(&mut state.missing);
                    batch.push(Event::gap(SystemTime::now(), missing));
                    state.taken += 1;
                }
                if batch.is_empty() {
                    if state.closing {
                        return;
                    }
                    state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
            state.writing = batch.len();
            drop(state);
            let (written, error) = match book.write(&batch) {
                Ok(()) => (batch.len(), None),
                Err((written, error)) => (written, Some(error)),
            };
            batch.drain(..written);
            let mut state = self.lock();
            state.writing = batch.len();
            state.settled += written as u64;
            state.stats.written += written as u64;
            state.last = (book.chain.seq, book.chain.last.clone());
            state.stats.failures += u64::from(error.is_some());
            state.stats.failing = error.map(|error| error.to_string());
            self.settled.notify_all();
            if state.stats.failing.is_some() {
                if state.closing {
                    return;
                }
                let waited = self.work.wait_timeout_while(state, TRY_AGAIN, |state| !state.closing);
                drop(waited.unwrap_or_else(PoisonError::into_inner));
            }
        }
    }
}

/// Where a chain has got to.
#[derive(Clone)]
struct Chain {
    /// The number of its last line; 0 for none.
    seq: u64,
    last: String,
}

/// The file that is written.
struct Book {
    path: PathBuf,
    file: File,
    /// Its length in whole lines.
    len: u64,
    chain: Chain,
    /// What was behind its last whole line when it was opened.
    torn: Vec<u8>,
    max_file_bytes: u64,
    sync: bool,
    key: Option<hmac::Key>,
    /// Whether `file` was set aside and its successor is not there yet.
    aside: bool,
    /// Whether the device may not have what is in the file, and should.
    unsynced: bool,
}

impl Book {
    fn open(builder: &AuditBuilder) -> io::Result<Self> {
        let path = &builder.path;
        let other = |why: &str| io::Error::other(why.to_owned());
        // What is no file, such as a pipe, could keep its reader for ever.
        match fs::metadata(path) {
            Ok(metadata) if !metadata.is_file() => return Err(other("is not a file")),
            _ => {}
        }
        let mut file = create(path, false)?;
        let (len, mut last, torn) = end_of(&mut file)?;
        if last.is_none()
            && let Some(aside) = newest_aside(path)?
        {
            last = end_of(&mut File::open(aside)?)?.1;
        }
        let chain = match last {
            None => Chain { seq: 0, last: NOTHING.to_owned() },
            Some(line) => {
                let line = Line::read(&line, builder.key.as_ref());
                let line = line.map_err(|why| {
                    io::Error::other(format!("its last line {why}; run `valkyrie audit verify`"))
                })?;
                Chain { seq: line.seq, last: line.hash }
            }
        };
        Ok(Self {
            path: path.clone(),
            file,
            len,
            chain,
            torn,
            max_file_bytes: builder.max_file_bytes,
            sync: builder.sync,
            key: builder.key.clone(),
            aside: false,
            unsynced: false,
        })
    }

    /// What is to be recorded of its opening.
    fn opening(&self, time: SystemTime) -> Vec<Event> {
        let mut events = vec![Event::new(time, "open", "opened")];
        if !self.torn.is_empty() {
            let message = String::from_utf8_lossy(&self.torn).into_owned();
            events.push(Event {
                message,
                lost: self.torn.len() as u64,
                ..Event::new(time, "torn", "recovered")
            });
        }
        events
    }

    /// Writes the records in order: each is in the file whole, or not at all.
    ///
    /// # Errors
    /// How many are written, and why the next one is not.
    fn write(&mut self, events: &[Event]) -> Result<(), (usize, io::Error)> {
        let (mut piece, mut chain, mut written) = (String::new(), self.chain.clone(), 0);
        for (index, event) in events.iter().enumerate() {
            let mut line = event.line(chain.seq + 1);
            let _ = write!(line, ",\"prev\":\"{}\"", chain.last);
            chain = Chain { seq: chain.seq + 1, last: hash(self.key.as_ref(), line.as_bytes()) };
            let _ = writeln!(line, "{HASH}{}\"}}", chain.last);
            piece.push_str(&line);
            if piece.len() >= PIECE || index + 1 == events.len() {
                self.write_piece(&piece).map_err(|error| (written, error))?;
                self.chain = chain.clone();
                written = index + 1;
                piece.clear();
            }
        }
        if self.unsynced {
            self.file.sync_data().map_err(|error| (written, error))?;
            self.unsynced = false;
        }
        Ok(())
    }

    fn write_piece(&mut self, piece: &str) -> io::Result<()> {
        if self.aside || (self.len > 0 && self.len + piece.len() as u64 > self.max_file_bytes) {
            self.rotate()?;
        }
        // What an earlier attempt left behind the last whole line goes.
        self.file.set_len(self.len)?;
        self.file.write_all(piece.as_bytes()).inspect_err(|_| {
            // Tried again before the next piece, if it fails now.
            let _ = self.file.set_len(self.len);
        })?;
        self.len += piece.len() as u64;
        self.unsynced = self.sync;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        if !self.aside {
            self.file.set_len(self.len)?;
            self.file.sync_data()?;
            let mut aside = self.path.clone().into_os_string();
            aside.push(format!(".{:020}", self.chain.seq));
            if fs::exists(&aside)? {
                return Err(io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    format!("{} is there", aside.display()),
                ));
            }
            fs::rename(&self.path, &aside)?;
            self.aside = true;
        }
        self.file = create(&self.path, true)?;
        (self.aside, self.len) = (false, 0);
        Ok(())
    }
}

/// Opens a file to append to, and keeps other processes from it.
fn create(path: &Path, new: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true).create_new(new);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(io::Error::other("another process writes it")),
        Err(fs::TryLockError::Error(error)) => Err(error),
    }
}

/// The last file that was set aside.
fn newest_aside(path: &Path) -> io::Result<Option<PathBuf>> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
        return Err(io::Error::other("has no name in UTF-8"));
    };
    let mut newest: Option<(String, PathBuf)> = None;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let other = entry.file_name();
        let number = other.to_str().and_then(|other| other.strip_prefix(name)?.strip_prefix('.'));
        let Some(number) = number.filter(|n| n.len() == 20 && n.bytes().all(|byte| byte.is_ascii_digit()))
        else {
            continue;
        };
        if newest.as_ref().is_none_or(|(newest, _)| **newest < *number) {
            newest = Some((number.to_owned(), entry.path()));
        }
    }
    Ok(newest.map(|(_, path)| path))
}

/// How long a file is in whole lines, the last of them, and what is behind it.
fn end_of(file: &mut File) -> io::Result<(u64, Option<Vec<u8>>, Vec<u8>)> {
    let len = file.seek(SeekFrom::End(0))?;
    let start = len.saturating_sub(2 * LONGEST_LINE as u64);
    file.seek(SeekFrom::Start(start))?;
    let mut end = Vec::new();
    file.take(len - start).read_to_end(&mut end)?;
    let whole = end.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    let torn = end.split_off(whole);
    if torn.len() > LONGEST_LINE || (whole == 0 && start > 0) {
        return Err(io::Error::other("is not an audit log: it has longer lines"));
    }
    let line = end
        .strip_suffix(b"\n")
        .map(|lines| lines.split(|byte| *byte == b'\n').next_back().unwrap_or(lines).to_vec());
    Ok((start + whole as u64, line, torn))
}

fn hash(key: Option<&hmac::Key>, bytes: &[u8]) -> String {
    match key {
        Some(key) => hex(hmac::sign(key, bytes).as_ref()),
        None => hex(digest::digest(&digest::SHA256, bytes).as_ref()),
    }
}

/// What a line says of its place in the chain.
struct Line {
    seq: u64,
    prev: String,
    hash: String,
}

impl Line {
    /// Reads a line without its end.
    ///
    /// # Errors
    /// What is wrong with it, as the rest of a sentence about it.
    fn read(line: &[u8], key: Option<&hmac::Key>) -> Result<Self, &'static str> {
        #[derive(Deserialize)]
        struct Place {
            seq: u64,
            prev: String,
        }
        let parts = line.len().checked_sub(HASH.len() + DIGITS + 2).map(|at| line.split_at(at));
        let Some((content, stated)) = parts else { return Err("is not a record") };
        let stated = stated.strip_prefix(HASH.as_bytes()).and_then(|stated| stated.strip_suffix(b"\"}"));
        let Some(stated) = stated else { return Err("is not a record, or its end was changed") };
        let hash = hash(key, content);
        if stated != hash.as_bytes() {
            return Err("was changed: it does not match its hash");
        }
        let Ok(Place { seq, prev }) = serde_json::from_slice(line) else {
            return Err("is not a record: it has no seq and prev");
        };
        Ok(Self { seq, prev, hash })
    }
}

/// Verifies the lines of an audit log, one after another, through all of its files.
///
/// It finds lines that were changed, taken out, put in, moved or repeated. It cannot find that the end was cut off unless
/// the last hash is known from elsewhere, nor that a chain without a key was made anew from some line on.
#[derive(Clone)]
pub struct AuditVerifier {
    key: Option<hmac::Key>,
    /// The number and the hash of the line before; no number where that is not known.
    seq: Option<u64>,
    last: String,
}

impl Default for AuditVerifier {
    fn default() -> Self {
        Self::new()
    }
}

impl AuditVerifier {
    /// From the first line of a chain on.
    pub fn new() -> Self {
        Self { key: None, seq: Some(0), last: NOTHING.to_owned() }
    }

    /// A chain that is made with that key.
    #[must_use]
    pub fn with_key(mut self, key: &[u8]) -> Self {
        self.key = Some(hmac::Key::new(hmac::HMAC_SHA256, key));
        self
    }

    /// From the line on that follows the one with that hash: those before it are not looked at.
    #[must_use]
    pub fn following(mut self, hash: &str) -> Self {
        (self.seq, self.last) = (None, hash.to_owned());
        self
    }

    /// Takes all lines of the next file, and tells of each that is wrong its number and what, as the rest of a sentence about
    /// it. Gives the count of its lines. Holds no more than one line.
    ///
    /// # Errors
    /// What the reader says.
    pub fn file(&mut self, file: impl BufRead, mut wrong: impl FnMut(u64, String)) -> io::Result<u64> {
        let (mut file, mut line, mut lines) = (file, Vec::new(), 0);
        loop {
            line.clear();
            if (&mut file).take(LONGEST_LINE as u64 + 1).read_until(b'\n', &mut line)? == 0 {
                return Ok(lines);
            }
            lines += 1;
            match line.strip_suffix(b"\n") {
                Some(line) => self.line(line).unwrap_or_else(|why| wrong(lines, why)),
                None if line.len() > LONGEST_LINE => {
                    wrong(lines, format!("is not a record: it is longer than {LONGEST_LINE} bytes"));
                    while !line.is_empty() && !line.ends_with(b"\n") {
                        line.clear();
                        (&mut file).take(LONGEST_LINE as u64).read_until(b'\n', &mut line)?;
                    }
                }
                None => wrong(lines, "is not finished".to_owned()),
            }
        }
    }

    /// Takes the next line, without its end.
    ///
    /// # Errors
    /// What is wrong with it, as the rest of a sentence about it. It can go on with the next line.
    pub fn line(&mut self, line: &[u8]) -> Result<(), String> {
        let expected = self.seq.map(|seq| seq.saturating_add(1));
        let found = match Line::read(line, self.key.as_ref()) {
            Ok(found) => found,
            Err(why) => {
                // Whatever it was, it stands where the next one belongs, and those after it follow the hash that it states.
                self.seq = expected;
                let end = &line[line.len().saturating_sub(DIGITS + 2)..];
                self.last = String::from_utf8_lossy(end.get(..DIGITS).unwrap_or_default()).into_owned();
                return Err(why.to_owned());
            }
        };
        let Line { seq, prev, hash } = found;
        let wrong = match expected {
            Some(expected) if seq > expected => Err(match seq - expected {
                1 => format!("follows a missing line, number {expected}"),
                missing => format!("follows {missing} missing lines, numbers {expected} to {}", seq - 1),
            }),
            Some(_) if Some(seq) == self.seq && hash == self.last => {
                return Err("repeats the line before it".into());
            }
            Some(expected) if seq < expected => {
                return Err(format!("is out of its place: number {seq} after {}", expected - 1));
            }
            _ if prev != self.last => Err("does not follow the line before it: that has another hash".into()),
            _ => Ok(()),
        };
        (self.seq, self.last) = (Some(seq), hash);
        wrong
    }

    /// The number and the hash of the last line taken; 0 and zeros before the first.
    pub fn last(&self) -> (u64, &str) {
        (self.seq.unwrap_or(0), &self.last)
    }
}
