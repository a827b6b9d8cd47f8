//! `dns+tcp://name:port` and its like: each address of the name is a server of its own.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use valkyrie_protocol::{Reason, Status, Time};

use super::{ResolvedServer, Resolver, Watch, failed};
use crate::{BoxFuture, Endpoint, Runtime, runtime::sleep_until};

/// What stands before the scheme of the servers.
pub(super) const PREFIX: &str = "dns+";
/// How often a name is looked up. The system's resolver tells no time to live.
const EVERY: Duration = Duration::from_secs(30);
/// How soon after the last look-up began, when a connection failed (gRPC has 30 s).
const AGAIN: Duration = Duration::from_secs(5);

type Found = io::Result<Vec<SocketAddr>>;
type LookUp = Box<dyn Fn(&str) -> BoxFuture<'static, Found> + Send>;

/// The endpoint of the servers before their name is looked up: `tcp://name:port`.
///
/// # Errors
/// INVALID_ENDPOINT where a name has no place.
pub(super) fn of_name(endpoint: &Endpoint) -> Result<Endpoint, Status> {
    let scheme = endpoint.scheme().strip_prefix(PREFIX).unwrap_or_default();
    if !matches!(scheme, "tcp" | "tls" | "quic" | "ws" | "wss") {
        let why = format!(
            "endpoint {endpoint} has a scheme without a name to look up; write dns+tcp://, dns+tls://, dns+quic://, dns+ws:// or dns+wss://"
        );
        return Err(Status::from_reason(Reason::INVALID_ENDPOINT, why));
    }
    Endpoint::parse(&format!("{scheme}://{}", endpoint.address()))
}

pub(super) struct Dns(pub(super) Arc<dyn Runtime>);

impl Resolver for Dns {
    fn watch(&self, endpoint: &Endpoint) -> Result<Box<dyn Watch>, Status> {
        let look_up: LookUp = Box::new(|authority| {
            let authority = authority.to_owned();
            Box::pin(async move { Ok(tokio::net::lookup_host(authority).await?.collect()) })
        });
        Ok(Box::new(Names::new(of_name(endpoint)?, self.0.clone(), look_up)))
    }
}

struct Names {
    endpoint: Endpoint,
    authority: String,
    runtime: Arc<dyn Runtime>,
    look_up: LookUp,
    /// The look-up that is under way, when the last one began, and when the next one is due.
    asking: Option<BoxFuture<'static, Found>>,
    asked: Time,
    due: Option<Time>,
}

impl Names {
    fn new(endpoint: Endpoint, runtime: Arc<dyn Runtime>, look_up: LookUp) -> Self {
        let authority = endpoint.host_and_port();
        Self { endpoint, authority, runtime, look_up, asking: None, asked: Time::default(), due: None }
    }

    async fn find(&mut self) -> Result<Vec<ResolvedServer>, Status> {
        let asking = match &mut self.asking {
            Some(asking) => asking,
            None => {
                if let Some(due) = self.due {
                    sleep_until(&*self.runtime, due).await;
                }
                self.asked = self.runtime.now();
                self.asking.insert((self.look_up)(&self.authority))
            }
        };
        let found = asking.await;
        (self.asking, self.due) = (None, None);
        let mut found = found.map_err(|error| failed(error.to_string()))?;
        // The same answer in another order is the same answer.
        found.sort_unstable();
        found.dedup();
        self.due = Some(self.runtime.now().after(EVERY));
        let server = |address| ResolvedServer::new(self.endpoint.clone().at(address));
        Ok(found.into_iter().map(server).collect())
    }
}

impl Watch for Names {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<ResolvedServer>, Status>> {
        Box::pin(self.find())
    }

    fn again(&mut self) {
        self.due = self.due.map(|due| due.min(self.asked.after(AGAIN)));
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::Future,
        pin::pin,
        sync::{
            Mutex,
            atomic::{AtomicU64, Ordering::Relaxed},
        },
        task::{Context, Poll, Waker},
    };

    use super::*;
    use crate::{Timer, connection::lock};

    /// Its time is what it is set to.
    #[derive(Clone, Default)]
    struct Clock(Arc<AtomicU64>);

    impl Clock {
        fn set(&self, seconds: u64) {
            self.0.store(seconds * 1_000_000, Relaxed);
        }
    }

    impl Runtime for Clock {
        fn spawn(&self, _: BoxFuture<'static, ()>) {}

        fn now(&self) -> Time {
            Time::from_micros(self.0.load(Relaxed))
        }

        fn timer(&self) -> Box<dyn Timer> {
            Box::new(At(self.clone(), None))
        }
    }

    struct At(Clock, Option<Time>);

    impl Timer for At {
        fn reset(&mut self, deadline: Option<Time>) {
            self.1 = deadline;
        }

        fn poll(&mut self, _: &mut Context<'_>) -> Poll<()> {
            if self.1.is_some_and(|at| at <= self.0.now()) { Poll::Ready(()) } else { Poll::Pending }
        }
    }

    /// What the system says of the name, and how often it was asked.
    #[derive(Clone, Default)]
    struct System(Arc<Mutex<(Option<Answer>, u32)>>);

    type Answer = Result<Vec<SocketAddr>, io::ErrorKind>;

    impl System {
        fn says(&self, answer: Result<&[&str], io::ErrorKind>) {
            let parse = |all: &[&str]| all.iter().map(|one| one.parse().unwrap()).collect();
            lock(&self.0).0 = Some(answer.map(parse));
        }

        fn is_silent(&self) {
            lock(&self.0).0 = None;
        }

        fn asked(&self) -> u32 {
            lock(&self.0).1
        }

        fn names(&self, endpoint: &str, clock: &Clock) -> Names {
            let system = self.clone();
            let look_up: LookUp = Box::new(move |_| {
                lock(&system.0).1 += 1;
                let system = system.clone();
                Box::pin(std::future::poll_fn(move |_| match &lock(&system.0).0 {
                    Some(answer) => Poll::Ready(answer.clone().map_err(io::Error::from)),
                    None => Poll::Pending,
                }))
            });
            let endpoint = of_name(&Endpoint::parse(endpoint).unwrap()).unwrap();
            Names::new(endpoint, Arc::new(clock.clone()), look_up)
        }
    }

    /// What it gives now, if anything; asked afresh each time, as whoever follows it may.
    fn poll(names: &mut Names) -> Option<Result<Vec<String>, Reason>> {
        match pin!(names.next()).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(servers)) => {
                Some(Ok(servers.iter().map(|server| server.endpoint.to_string()).collect()))
            }
            Poll::Ready(Err(status)) => Some(Err(status.reason())),
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_name_is_looked_up_every_thirty_seconds_and_sooner_after_trouble() {
        let (clock, system) = (Clock::default(), System::default());
        let mut names = system.names("dns+tcp://name:80", &clock);
        clock.set(100);
        system.says(Ok(&["[::1]:80", "10.0.0.2:80", "10.0.0.1:80", "10.0.0.2:80"]));
        let sorted =
            ["tcp://name:80 at 10.0.0.1:80", "tcp://name:80 at 10.0.0.2:80", "tcp://name:80 at [::1]:80"];
        let sorted: Vec<_> = sorted.map(str::to_owned).into();
        assert_eq!(poll(&mut names), Some(Ok(sorted.clone())), "both families, in one order");
        clock.set(129);
        assert_eq!((poll(&mut names), system.asked()), (None, 1));
        clock.set(130);
        system.says(Ok(&["10.0.0.2:80", "10.0.0.1:80", "[::1]:80"]));
        assert_eq!((poll(&mut names), system.asked()), (Some(Ok(sorted)), 2));
        // However often connections fail, once in five seconds.
        for (second, asked) in [(131, 2), (134, 2), (135, 3), (136, 3), (139, 3), (140, 4)] {
            clock.set(second);
            names.again();
            poll(&mut names);
            assert_eq!(system.asked(), asked, "at {second}");
        }
        clock.set(169);
        assert_eq!((poll(&mut names), system.asked()), (None, 4));
    }

    #[test]
    fn failures_are_told_and_asked_about_again_by_whoever_follows() {
        let (clock, system) = (Clock::default(), System::default());
        let mut names = system.names("dns+wss://name/path", &clock);
        for kind in [io::ErrorKind::NotFound, io::ErrorKind::TimedOut, io::ErrorKind::Other] {
            system.says(Err(kind));
            assert_eq!(poll(&mut names), Some(Err(Reason::NAME_RESOLUTION)));
        }
        assert_eq!(system.asked(), 3);
        // No address is for the pool to judge.
        system.says(Ok(&[]));
        assert_eq!(poll(&mut names), Some(Ok(Vec::new())));
    }

    #[test]
    fn a_slow_answer_is_not_lost_by_trouble_meanwhile() {
        let (clock, system) = (Clock::default(), System::default());
        let mut names = system.names("dns+tcp://name:80", &clock);
        system.is_silent();
        for second in 0..100 {
            clock.set(second);
            names.again();
            assert_eq!((poll(&mut names), system.asked()), (None, 1), "one look-up at a time");
        }
        system.says(Ok(&["10.0.0.1:80"]));
        assert_eq!(poll(&mut names), Some(Ok(vec!["tcp://name:80 at 10.0.0.1:80".to_owned()])));
    }
}
