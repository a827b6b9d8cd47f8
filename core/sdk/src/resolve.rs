//! Where a client's servers come from when they change: from resolvers, which turn an endpoint into sets of servers over time.

mod dns;
mod file;

use std::{collections::HashMap, future::Future, pin::Pin, sync::Arc, task::Poll, time::Duration};

use valkyrie_protocol::{Reason, Status};

use crate::{
    BoxFuture, Endpoint, Level,
    log::of_connection,
    policy::{Random, Reconnect},
    pool::{Dialer, Pool},
};

/// Between two sets, however fast they come: others run, too.
const BREATH: Duration = Duration::from_millis(1);

/// One server of a set.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct ResolvedServer {
    /// Where it is; not an endpoint that is resolved itself. One of a name with its address, [`Endpoint::at`], is connected to there and
    /// verified by its name.
    pub endpoint: Endpoint,
    /// Its share of the calls under least_request, beside the others'. 0 counts as 1. Default 1.
    pub weight: u32,
    /// How far away it is, beside the others of its set: 0 is nearest. Default 0.
    pub level: u8,
}

impl ResolvedServer {
    /// With weight 1 and level 0.
    pub fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, weight: 1, level: 0 }
    }

    /// The same with that weight.
    #[must_use]
    pub fn weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// The same at that level.
    #[must_use]
    pub fn level(mut self, level: u8) -> Self {
        self.level = level;
        self
    }
}

/// Finds the servers of endpoints of a scheme. Given to [`ClientBuilder::resolver`](crate::ClientBuilder::resolver).
pub trait Resolver: Send + Sync + 'static {
    /// What follows the servers of `endpoint`. Called once for each endpoint of its scheme when a client is built; nothing is to be
    /// asked for yet.
    ///
    /// # Errors
    /// What is wrong with the endpoint, which the client is not built with.
    fn watch(&self, endpoint: &Endpoint) -> Result<Box<dyn Watch>, Status>;
}

/// Follows the servers of one endpoint, until it is dropped with its client.
///
/// The client keeps the last good set: a failure, an empty set, one of more than 1,024 servers, or one with a server that the client
/// would not connect to (an unknown scheme, less protection than it asks for), is logged, and changes nothing. It is asked for
/// again after the waits of `reconnect` in the service config.
pub trait Watch: Send + 'static {
    /// The first set at once, each further one when there is another. Order counts for pick_first; a server that stands twice counts
    /// once.
    ///
    /// # Errors
    /// Why there is none. Before the first set, calls fail with it as NAME_RESOLUTION.
    ///
    /// # Cancel safety
    /// Nothing may be lost by dropping the future: that happens whenever [`Watch::again`] is called.
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<ResolvedServer>, Status>>;

    /// A connection to one of the servers failed or was lost, or the last set was of no use: looking again soon may help. Default:
    /// nothing.
    fn again(&mut self) {}
}

/// An endpoint that is to be followed, and the part of the client's list that it fills.
pub(crate) struct Source {
    pub(crate) part: usize,
    endpoint: Endpoint,
    watch: Box<dyn Watch>,
}

impl Source {
    /// Nothing, if the endpoint is a server's own.
    ///
    /// # Errors
    /// What is wrong with it. Of a name that is looked up, what would be wrong with each of its addresses, too.
    pub(crate) fn of(
        endpoint: &Endpoint,
        part: usize,
        resolvers: &HashMap<String, Arc<dyn Resolver>>,
        dialer: &Dialer,
    ) -> Result<Option<Self>, Status> {
        let resolver: Arc<dyn Resolver> = match resolvers.get(endpoint.scheme()) {
            Some(resolver) => resolver.clone(),
            None if endpoint.scheme() == file::SCHEME => Arc::new(file::Files(dialer.runtime.clone())),
            None if endpoint.scheme().starts_with(dns::PREFIX) => {
                let named = dns::of_name(endpoint)?;
                dialer.backend(named.clone())?;
                dialer.admits(&named)?;
                Arc::new(dns::Dns(dialer.runtime.clone()))
            }
            None => return Ok(None),
        };
        Ok(Some(Self { part, endpoint: endpoint.clone(), watch: resolver.watch(endpoint)? }))
    }
}

pub(crate) fn failed(why: String) -> Status {
    Status::from_reason(Reason::NAME_RESOLUTION, why)
}

/// Tells the pool each set, until the client is closed.
pub(crate) async fn follow(pool: Arc<Pool>, source: Source) {
    let Source { part, endpoint, mut watch } = source;
    let _stopped = Stopped { pool: &pool, part, endpoint: &endpoint };
    let mut random = Random::new(pool.runtime().seed());
    let mut backoff = Reconnect::new(pool.reconnect());
    let mut seen = 0;
    backoff.dialling(pool.runtime().now());
    loop {
        let found = match hear(&pool, &mut *watch, &mut seen).await {
            Heard::Set(found) => found,
            Heard::Trouble => {
                watch.again();
                continue;
            }
            Heard::Closed => return,
        };
        let taken = found
            .map_err(|status| failed(status.message().to_owned()))
            .and_then(|servers| Ok(pool.update(part, &servers)?.then_some(servers.len())));
        let now = pool.runtime().now();
        match taken {
            Ok(changed) => {
                backoff.reset();
                if let Some(count) = changed {
                    say(&pool, &endpoint, Ok(count));
                }
                pool.until(now.after(BREATH)).await;
            }
            Err(status) => {
                let why = format!("cannot resolve {endpoint}: {}", status.message());
                let status = Status::from_reason(status.reason(), why);
                backoff.set_policy(pool.reconnect());
                let at = backoff.failed(now, &mut random);
                say(&pool, &endpoint, Err(&status));
                pool.unresolved(part, status, Some(at));
                pool.until(at).await;
                watch.again();
            }
        }
        backoff.dialling(pool.runtime().now());
    }
}

enum Heard {
    Set(Result<Vec<ResolvedServer>, Status>),
    Trouble,
    Closed,
}

async fn hear(pool: &Pool, watch: &mut dyn Watch, seen: &mut u64) -> Heard {
    let mut next = watch.next();
    std::future::poll_fn(|cx| match pool.poll_trouble(cx, seen) {
        Poll::Ready(true) => Poll::Ready(Heard::Closed),
        Poll::Ready(false) => Poll::Ready(Heard::Trouble),
        Poll::Pending => Pin::new(&mut next).poll(cx).map(Heard::Set),
    })
    .await
}

fn say(pool: &Pool, endpoint: &Endpoint, what: Result<usize, &Status>) {
    let level = if what.is_ok() { Level::Info } else { Level::Warn };
    let Some(log) = pool.log().wants(level) else { return };
    let endpoint = &endpoint.to_string();
    log.log(match what {
        Ok(count) => {
            of_connection(level, &[endpoint, " is ", &count.to_string(), " servers now"], None, endpoint)
        }
        Err(status) => {
            let sentence = [status.message(), "; what was found before stays"];
            of_connection(level, &sentence, Some(status.reason()), endpoint)
        }
    });
}

/// Told to those who wait for a first set when nobody will look for it any more: the resolver panicked, or its runtime stopped.
struct Stopped<'a> {
    pool: &'a Pool,
    part: usize,
    endpoint: &'a Endpoint,
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        let why = format!("cannot resolve {}: its resolver panicked, or its runtime stopped", self.endpoint);
        self.pool.unresolved(self.part, failed(why), None);
    }
}
