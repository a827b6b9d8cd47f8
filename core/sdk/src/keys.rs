//! Calls with an idempotency key, at a server that keeps them: each runs once, and whoever asks again gets its answer.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::watch;
use valkyrie_protocol::{Metadata, Reason, Status};

use crate::{
    HandlerFuture, MessageHandler, Reply, Runtime, ServerCall,
    connection::lock,
    handler::First,
    metrics::DedupMetrics,
    options::{KEY, KEY_AGE, KEY_MOST, REPLAYED},
    policy::{Dedup, DedupPolicy, Known},
    runtime::{race, sleep_until},
};

type Answer = Result<Reply, Status>;
type Watch = watch::Receiver<Option<Answer>>;

/// The keys of one server.
pub(crate) struct Keys {
    runtime: Arc<dyn Runtime>,
    /// Nobody can make two keys or two requests look alike who does not know these.
    hashers: [RandomState; 2],
    dedup: Mutex<Dedup<Watch, Answer>>,
    replayed: AtomicU64,
    forgotten: AtomicU64,
}

/// What a call says of its key.
pub(crate) struct Key {
    key: Bytes,
    age: Option<Duration>,
}

impl Key {
    /// The key of a call, if it has one.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for one that is no key.
    pub(crate) fn of(metadata: &Metadata) -> Result<Option<Self>, Status> {
        let Some(key) = metadata.get(KEY) else { return Ok(None) };
        if key.is_empty() || key.len() > KEY_MOST {
            return invalid(format!(
                "an idempotency key is 1 to {KEY_MOST} bytes; this one is {}",
                key.len()
            ));
        }
        let age = match metadata.get_str(KEY_AGE).map(str::parse) {
            None => None,
            Some(Ok(ms)) => Some(Duration::from_millis(ms)),
            Some(Err(_)) => return invalid(format!("{KEY_AGE} is to be a whole number of milliseconds")),
        };
        Ok(Some(Self { key: key.clone(), age }))
    }

    /// Of a server that keeps no keys: what was sent before may have been run.
    pub(crate) fn unkept(&self) -> Result<(), Status> {
        self.age.map_or(Ok(()), |_| Err(forgotten()))
    }
}

fn invalid<T>(why: String) -> Result<T, Status> {
    Err(Status::from_reason(Reason::INVALID_ARGUMENT, why))
}

fn forgotten() -> Status {
    let why = "the call may have been run before, and the server does not know its idempotency key any more";
    Status::from_reason(Reason::KEY_FORGOTTEN, why)
}

impl Keys {
    pub(crate) fn new(policy: DedupPolicy, runtime: Arc<dyn Runtime>) -> Self {
        let dedup = Mutex::new(Dedup::new(policy, runtime.now()));
        let (replayed, forgotten) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { runtime, hashers: [RandomState::new(), RandomState::new()], dedup, replayed, forgotten }
    }

    pub(crate) fn metrics(&self) -> DedupMetrics {
        let (keys, bytes) = lock(&self.dedup).kept();
        let (replayed, forgotten) = (self.replayed.load(Relaxed), self.forgotten.load(Relaxed));
        DedupMetrics { keys, bytes, replayed, forgotten }
    }

    /// The work of a call with a key.
    pub(crate) fn work(
        self: &Arc<Self>,
        handler: Arc<dyn MessageHandler>,
        call: ServerCall,
        key: Key,
    ) -> HandlerFuture {
        HandlerFuture::new(self.clone().run(handler, call, key))
    }

    async fn run(
        self: Arc<Self>,
        handler: Arc<dyn MessageHandler>,
        mut call: ServerCall,
        key: Key,
    ) -> Answer {
        let message = call.message().await?;
        if call.recv().await?.is_some() {
            return invalid("an idempotency key is for calls of one message, and this one has more".into());
        }
        let of_whom = (call.principal().id(), call.method(), &key.key[..]);
        let [low, high] = [0, 1].map(|at: usize| u128::from(self.hashers[at].hash_one(of_whom)));
        let (id, request) = (high << 64 | low, self.hashers[0].hash_one(&message[..]));
        let (tell, told) = watch::channel(None);
        let known = lock(&self.dedup).begin(id, request, key.age, self.runtime.now(), told);
        match known {
            Known::Running(_) | Known::Ended(_) => _ = self.replayed.fetch_add(1, Relaxed),
            Known::Forgotten => _ = self.forgotten.fetch_add(1, Relaxed),
            Known::New | Known::Other | Known::Full => {}
        }
        match known {
            Known::New => {}
            Known::Running(mut told) => {
                let answer = told.wait_for(Option::is_some).await.ok().and_then(|answer| answer.clone());
                return replayed(answer.unwrap_or_else(|| Err(given_up())));
            }
            Known::Ended(answer) => return replayed(answer),
            Known::Forgotten => return Err(forgotten()),
            Known::Other => {
                return invalid("the idempotency key was used for another request of the method".into());
            }
            Known::Full => {
                let why = "as many calls with idempotency keys run as the server keeps keys";
                return Err(
                    Status::from_reason(Reason::OVERLOADED, why).with_pushback(Duration::from_secs(1))
                );
            }
        }
        let running = Running { keys: self.clone(), id, tell, ended: false };
        let deadline = call.remaining().map(|remaining| self.runtime.now().after(remaining));
        call.first = First::Message(message, true);
        let work = handler.handle(call);
        let answer = match deadline {
            None => work.await,
            // The connection, which ends what is late, may be gone by then.
            Some(deadline) => race(work, sleep_until(&*self.runtime, deadline)).await.unwrap_or_else(|| {
                Err(Status::from_reason(Reason::DEADLINE_EXCEEDED, "the deadline of the call has passed"))
            }),
        };
        running.ended(&answer);
        answer
    }
}

/// What a call came to whose handler was cut off.
fn given_up() -> Status {
    let why = "the call that the idempotency key was first used for was given up: whether it took effect is not known";
    Status::from_reason(Reason::CANCELLED, why)
}

/// A handler runs for a key. Dropped before its end, the key is not run again.
struct Running {
    keys: Arc<Keys>,
    id: u128,
    tell: watch::Sender<Option<Answer>>,
    ended: bool,
}

impl Running {
    fn ended(mut self, answer: &Answer) {
        self.keep(answer);
    }

    fn keep(&mut self, answer: &Answer) {
        self.ended = true;
        let asks_again = answer.as_ref().is_err_and(|status| {
            status.pushback().is_some_and(|pushback| pushback.as_millis() < u128::from(u64::MAX))
        });
        let kept = owned(answer);
        let now = self.keys.runtime.now();
        let mut dedup = lock(&self.keys.dedup);
        match asks_again {
            true => dedup.undone(self.id),
            false => dedup.ended(self.id, kept.clone(), now),
        }
        drop(dedup);
        let answer = kept.map_or_else(|| answer.clone(), |(answer, _)| answer);
        self.tell.send_replace(Some(answer));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            self.keep(&Err(given_up()));
        }
    }
}

/// An answer that holds no more memory than it has bytes, which what was read may; none of one that cannot be given again.
fn owned(answer: &Answer) -> Option<(Answer, usize)> {
    let mut len = 0;
    let mut copy = |bytes: &Bytes| {
        len += bytes.len();
        Bytes::copy_from_slice(bytes)
    };
    let answer = match answer {
        Ok(Reply { message, metadata, trailers }) => Ok(Reply {
            message: Some(copy(message.as_ref()?)),
            metadata: copied(metadata, &mut copy),
            trailers: copied(trailers, &mut copy),
        }),
        Err(status) => {
            let mut kept = Status::new(status.code(), status.message().to_owned())
                .with_reason(status.reason())
                .with_metadata(copied(status.metadata(), &mut copy))
                .with_trailers(copied(status.trailers(), &mut copy));
            for detail in status.details() {
                kept = kept.with_detail(detail.type_name.clone(), copy(&detail.value));
            }
            len += status.message().len();
            Err(kept)
        }
    };
    Some((answer, len))
}

fn copied(metadata: &Metadata, copy: &mut impl FnMut(&Bytes) -> Bytes) -> Metadata {
    let mut copied = Metadata::new();
    for (key, value) in metadata.iter() {
        // What is legal there is legal here.
        let _ = copied.insert(key, copy(value));
    }
    copied
}

/// Says that the answer is an earlier call's.
fn replayed(answer: Answer) -> Answer {
    let mark = |mut metadata: Metadata| {
        let _ = metadata.insert(REPLAYED, "true");
        metadata
    };
    match answer {
        Ok(reply) => Ok(Reply { metadata: mark(reply.metadata), ..reply }),
        Err(status) => {
            let metadata = mark(status.metadata().clone());
            Err(status.with_metadata(metadata))
        }
    }
}
