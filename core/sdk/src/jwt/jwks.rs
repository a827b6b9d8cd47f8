//! Key sets (RFC 7517): the document, and the places that it is read from again while a server runs. No place is ever named
//! by a token, and no token makes a place be asked more often than its limit.

use std::{
    fs,
    io::Read as _,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use tokio::{sync::watch, time::timeout};

use super::{
    json::{Json, LIST, Object},
    keys::Key,
};
use crate::{BoxFuture, connection::lock};

/// The longest document that is read.
pub(super) const DOCUMENT_BYTES: usize = 256 << 10;
/// A document that came this long ago is asked for again before it is used.
const REFRESH: Duration = Duration::from_secs(5 * 60);
/// Between two requests at least.
const REST: Duration = Duration::from_secs(30);
/// No key is used this long after it was last seen published.
const KEPT: Duration = Duration::from_secs(60 * 60);
/// How long a request may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Between two looks at a file at least.
const LOOK: Duration = Duration::from_secs(1);

/// Brings a JSON Web Key Set from wherever it is published, for [`JwtBuilder::jwks_from`](super::JwtBuilder::jwks_from).
pub trait JwksFetch: Send + Sync + 'static {
    /// The document as it is now, at most 256 KiB. Runs as a task of its own, one at a time, at least 30 s after the last
    /// began. Connections that come meanwhile wait for it; after 5 s it is dropped.
    ///
    /// # Errors
    /// A sentence for the server's log.
    fn fetch(&self) -> BoxFuture<'_, Result<Vec<u8>, String>>;
}

/// The keys of a document. Those that verify nothing here are left out.
pub(super) fn parse(document: &[u8]) -> Result<Vec<Key>, String> {
    if document.len() > DOCUMENT_BYTES {
        return Err(format!("has {} bytes, more than {DOCUMENT_BYTES}", document.len()));
    }
    let set = Object::parse(document, &["keys"], 3)?;
    let Some(Json::List(list)) = set.get("keys") else { return Err("has no list \"keys\"".into()) };
    if list.len() > LIST {
        return Err(format!("has more than {LIST} keys"));
    }
    let mut keys: Vec<Key> = Vec::new();
    for jwk in list {
        let Json::Object(jwk) = jwk else { return Err("has a key that is no object".into()) };
        let Some(key) = Key::jwk(jwk) else { continue };
        if key.kid.is_some() && keys.iter().any(|other| other.kid == key.kid) {
            return Err(format!("has two keys {:?}", key.kid.unwrap_or_default()));
        }
        keys.push(key);
    }
    if keys.is_empty() {
        return Err("has no key that verifies EdDSA, ES256 or RS256 (RSA from 2048 bits on)".into());
    }
    Ok(keys)
}

/// Where keys come from that may change.
pub(super) enum Source {
    File(File),
    Remote(Arc<Remote>),
}

impl Source {
    /// The keys as they are published; `has` is whether what a token needs is among them, which decides whether a remote
    /// place is asked again before its time.
    pub(super) async fn keys(
        &self,
        has: impl Fn(&[Key]) -> bool + Send,
        now: SystemTime,
    ) -> Result<Arc<[Key]>, String> {
        match self {
            Source::File(file) => file.keys(now),
            Source::Remote(remote) => remote.keys(has, now).await,
        }
    }

    /// What went wrong with the place since this was called last, unless it is the same again.
    pub(super) fn news(&self) -> Option<String> {
        let take = |known: &mut Known| std::mem::take(&mut known.news).then(|| known.error.clone());
        match self {
            Source::File(file) => take(&mut lock(&file.state).0),
            Source::Remote(remote) => take(&mut lock(&remote.state).known),
        }
    }
}

/// What is known of a place.
#[derive(Default)]
struct Known {
    /// The keys that were last seen published, and when. Times are the wall clock's as authenticating got it: it is what
    /// tokens are checked by, too.
    seen: Option<(Arc<[Key]>, SystemTime)>,
    /// When the place was last looked at or asked.
    tried: Option<SystemTime>,
    /// What was wrong since.
    error: String,
    /// Whether nobody was told of the error.
    news: bool,
}

impl Known {
    /// How long it is since the place was tried and since keys were seen; `None` for never. After the clock was set back, a
    /// time that is still to come is now: what it is waited for would be late by as much.
    fn ages(&mut self, now: SystemTime) -> (Option<Duration>, Option<Duration>) {
        let age = |at: &mut SystemTime| {
            *at = now.min(*at);
            now.duration_since(*at).unwrap_or_default()
        };
        (self.tried.as_mut().map(age), self.seen.as_mut().map(|(_, at)| age(at)))
    }

    /// The keys, unless they are too old.
    fn usable(&mut self, now: SystemTime) -> Result<Arc<[Key]>, String> {
        let age = self.ages(now).1;
        match &self.seen {
            Some((keys, _)) if age.is_some_and(|age| age <= KEPT) => Ok(keys.clone()),
            Some(_) => Err(format!("the issuer's keys are older than 1 h: {}", self.error)),
            None => Err(format!("the issuer's keys are not known: {}", self.error)),
        }
    }

    fn learn(&mut self, read: Result<Vec<Key>, String>, now: SystemTime) {
        match read {
            Ok(keys) => {
                self.seen = Some((keys.into(), now));
                self.error.clear();
            }
            Err(error) if error == self.error => {}
            Err(error) => (self.error, self.news) = (error, true),
        }
    }
}

/// A document in a file, which is read again when its time of change or its length is another.
pub(super) struct File {
    path: PathBuf,
    /// And what the file was like when its keys were read.
    state: Mutex<(Known, Option<(SystemTime, u64)>)>,
}

impl File {
    /// Reads it for the first time.
    pub(super) fn open(path: PathBuf) -> Result<Self, String> {
        let file = Self { path, state: Mutex::default() };
        match file.keys(SystemTime::now()) {
            Ok(_) => Ok(file),
            Err(_) => Err(std::mem::take(&mut lock(&file.state).0.error)),
        }
    }

    fn keys(&self, now: SystemTime) -> Result<Arc<[Key]>, String> {
        let mut state = lock(&self.state);
        let (known, stamp) = &mut *state;
        if known.ages(now).0.is_none_or(|age| age >= LOOK) {
            known.tried = Some(now);
            self.look(known, stamp, now);
        }
        known.usable(now)
    }

    fn look(&self, known: &mut Known, stamp: &mut Option<(SystemTime, u64)>, now: SystemTime) {
        let path = self.path.display();
        let unreadable = |error| format!("key set {path} cannot be read: {error}");
        let read = || {
            // Anything but a file may keep its reader waiting.
            if !fs::metadata(&self.path).map_err(unreadable)?.is_file() {
                return Err(format!("key set {path} is not a file"));
            }
            let file = fs::File::open(&self.path).map_err(unreadable)?;
            let about = file.metadata().map_err(unreadable)?;
            let new = (about.modified().map_err(unreadable)?, about.len());
            if *stamp == Some(new) {
                return Ok(None);
            }
            let mut document = Vec::new();
            file.take(DOCUMENT_BYTES as u64 + 1).read_to_end(&mut document).map_err(unreadable)?;
            let keys = parse(&document).map_err(|why| format!("key set {path} {why}"))?;
            Ok(Some((keys, new)))
        };
        match (read(), &mut known.seen) {
            (Ok(None), Some((_, at))) => *at = now,
            (Ok(None), None) => {}
            (Ok(Some((keys, new))), _) => {
                *stamp = Some(new);
                known.learn(Ok(keys), now);
            }
            (Err(error), _) => known.learn(Err(error), now),
        }
    }
}

/// A document that is fetched.
pub(super) struct Remote {
    fetch: Box<dyn JwksFetch>,
    state: Mutex<RemoteState>,
}

#[derive(Default)]
struct RemoteState {
    known: Known,
    /// Ends, without a word, with the fetch that runs.
    running: Option<watch::Receiver<()>>,
}

impl Remote {
    pub(super) fn new(fetch: Box<dyn JwksFetch>) -> Self {
        Self { fetch, state: Mutex::default() }
    }

    async fn keys(
        self: &Arc<Self>,
        has: impl Fn(&[Key]) -> bool + Send,
        now: SystemTime,
    ) -> Result<Arc<[Key]>, String> {
        let running = {
            let mut state = lock(&self.state);
            let (tried, seen) = state.known.ages(now);
            match &state.known.seen {
                Some((keys, _)) if seen.is_some_and(|age| age < REFRESH) && has(keys) => {
                    return Ok(keys.clone());
                }
                _ => {}
            }
            // A fetch that panicked has ended, too.
            if state.running.as_ref().is_none_or(|running| running.has_changed().is_err()) {
                let rested = tried.is_none_or(|age| age >= REST);
                state.running = if rested { self.start(&mut state.known, now) } else { None };
            }
            state.running.clone()
        };
        if let Some(mut running) = running {
            // An error is its end, which is all that is waited for.
            let _ = running.changed().await;
        }
        lock(&self.state).known.usable(now)
    }

    /// Fetches in a task of its own: whoever waits for it may leave, and a stranger that leaves at once must not keep the
    /// keys from being fetched.
    fn start(self: &Arc<Self>, known: &mut Known, now: SystemTime) -> Option<watch::Receiver<()>> {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            known.error = "there is no tokio runtime to fetch them on".into();
            return None;
        };
        known.tried = Some(now);
        let (sender, receiver) = watch::channel(());
        let this = self.clone();
        runtime.spawn(async move {
            let read = Err("fetching them has panicked".into());
            let mut end = End { remote: this, now, read, _sender: sender };
            let fetched = timeout(TIMEOUT, end.remote.fetch.fetch()).await;
            let fetched =
                fetched.unwrap_or_else(|_| Err(format!("no answer within {} s", TIMEOUT.as_secs())));
            end.read =
                fetched.and_then(|document| parse(&document).map_err(|why| format!("the key set {why}")));
        });
        Some(receiver)
    }
}

/// The end of a fetch, however it comes: what it brought is learnt, and then whoever waits goes on.
struct End {
    remote: Arc<Remote>,
    now: SystemTime,
    read: Result<Vec<Key>, String>,
    _sender: watch::Sender<()>,
}

impl Drop for End {
    fn drop(&mut self) {
        let read = std::mem::replace(&mut self.read, Ok(Vec::new()));
        lock(&self.remote.state).known.learn(read, self.now);
    }
}
