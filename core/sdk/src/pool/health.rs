//! Asks each server on each connection whether it serves, beside the calls: no policy counts what is asked here (gRFC A17).

use std::{
    sync::{Arc, Weak},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use valkyrie_protocol::{Code, Metadata, Opened, Priority, Status};

use super::{Backend, Pool, State};
use crate::{
    Level,
    connection::{Health, Link, lock},
    log::of_connection,
    policy::{Reconnect, ReconnectPolicy, ServiceConfig},
    runtime::{race, sleep_until},
    stream,
};

const METHOD: &[u8] = b"/valkyrie.Health/Watch";
/// The one answer that lets calls go there.
const SERVING: &[u8] = b"serving";

/// What is asked on a connection, under which version of what there is to ask.
pub(super) struct Question {
    service: Bytes,
    version: u64,
    backoff: ReconnectPolicy,
}

impl State {
    /// What a connection is asked from now on, if anything.
    pub(super) fn question(&self, link: &Link) -> Option<Question> {
        let service = self.config.health.service.as_ref();
        link.set_health(if service.is_some() { Health::Unknown } else { Health::Serving });
        let service = Bytes::copy_from_slice(service?.as_bytes());
        Some(Question { service, version: self.questions, backoff: self.config.reconnect })
    }

    /// Every connection is asked something else from now on.
    pub(super) fn ask_all(&mut self) -> Vec<(Arc<Backend>, Arc<Link>, Question)> {
        self.questions += 1;
        let links = self.members.iter().flat_map(|one| one.links.iter().map(|link| (&one.backend, link)));
        let ask = |(backend, link): (&Arc<Backend>, &Arc<Link>)| {
            Some((backend.clone(), link.clone(), self.question(link)?))
        };
        links.filter_map(ask).collect()
    }
}

impl Pool {
    /// Asks every connection anew, if the config before asked something else.
    pub(super) fn ask_anew(self: &Arc<Self>, before: &ServiceConfig) {
        let (questions, wakers) = {
            let state = &mut *lock(&self.state);
            if state.config.health == before.health {
                return;
            }
            (state.ask_all(), std::mem::take(&mut state.watching))
        };
        wakers.into_iter().for_each(Waker::wake);
        questions
            .into_iter()
            .for_each(|(backend, link, question)| self.watch_health(backend, link, question));
    }

    pub(super) fn watch_health(self: &Arc<Self>, backend: Arc<Backend>, link: Arc<Link>, question: Question) {
        let watch = Watch { pool: Arc::downgrade(self), backend, link, question };
        self.runtime().spawn(Box::pin(watch.run()));
    }
}

/// The task of one connection. It keeps neither its client nor the connection alive.
struct Watch {
    pool: Weak<Pool>,
    backend: Arc<Backend>,
    link: Arc<Link>,
    question: Question,
}

impl Watch {
    async fn run(self) {
        let runtime = self.link.runtime.clone();
        let mut backoff = Reconnect::new(self.question.backoff);
        loop {
            backoff.dialling(runtime.now());
            let Some(status) = self.ask(&mut backoff).await else { break };
            // A server that knows no health has it (gRFC A17).
            if status.code() == Code::Unimplemented {
                self.says(Health::Serving, "does not say how it is");
                break;
            }
            self.says(Health::NotServing, status.message());
            let Some(pool) = self.pool.upgrade() else { return };
            let at = backoff.failed(runtime.now(), &mut lock(&pool.state).random);
            drop(pool);
            if race(self.over(), sleep_until(&*runtime, at)).await.is_some() {
                break;
            }
        }
        std::future::poll_fn(|cx| {
            if let Some(pool) = self.pool.upgrade() {
                lock(&pool.state).watching.retain(|waker| !waker.will_wake(cx.waker()));
            }
            Poll::Ready(())
        })
        .await;
    }

    /// Listens until there is nothing to listen to: why, unless nobody wants to know any more.
    async fn ask(&self, backoff: &mut Reconnect) -> Option<Status> {
        let call = Opened {
            method: Bytes::from_static(METHOD),
            metadata: Metadata::new(),
            priority: Priority::Critical,
            deadline: None,
            message: Some(self.question.service.clone()),
            end: true,
        };
        let mut stream = match stream::open_on(&self.link, call) {
            Ok(stream) => stream,
            Err(status) => return Some(status).filter(|_| self.link.is_usable()),
        };
        loop {
            match race(stream.recv(), self.over()).await? {
                Ok(Some(said)) if said == SERVING => {
                    backoff.reset();
                    self.says(Health::Serving, "serving");
                }
                Ok(Some(said)) => {
                    backoff.reset();
                    let said: String = String::from_utf8_lossy(&said).chars().take(32).collect();
                    self.says(Health::NotServing, &said);
                }
                Ok(None) => return Some(Status::new(Code::Unavailable, "it says nothing any more")),
                Err(status) => return Some(status),
            }
        }
    }

    /// Once nobody wants to know any more: the client is closed, asks something else, or the connection goes.
    async fn over(&self) {
        std::future::poll_fn(|cx| match self.link.poll_leaving(cx) {
            Poll::Ready(()) => Poll::Ready(()),
            Poll::Pending => self.poll_over(cx),
        })
        .await;
    }

    fn poll_over(&self, cx: &Context<'_>) -> Poll<()> {
        let Some(pool) = self.pool.upgrade() else { return Poll::Ready(()) };
        let mut state = lock(&pool.state);
        if state.closed || state.questions != self.question.version {
            return Poll::Ready(());
        }
        state.watch(cx);
        Poll::Pending
    }

    fn says(&self, health: Health, what: &str) {
        let Some(pool) = self.pool.upgrade() else { return };
        let now = pool.runtime().now();
        let wakers = {
            let state = &mut *lock(&pool.state);
            if state.questions != self.question.version || self.link.health() == health {
                return;
            }
            let member = state.members.iter_mut().find(|one| Arc::ptr_eq(&one.backend, &self.backend));
            let Some(member) = member else { return };
            let before = member.is_ready(now);
            self.link.set_health(health);
            let ready = member.is_ready(now);
            if before && !ready {
                member.flaps.fell(now);
            }
            if before == ready { Vec::new() } else { state.changed() }
        };
        wakers.into_iter().for_each(Waker::wake);
        let level = if health == Health::Serving { Level::Info } else { Level::Warn };
        if let Some(log) = pool.dialer.terms.log.wants(level) {
            let endpoint = &self.backend.endpoint.to_string();
            log.log(of_connection(level, &["health of ", endpoint, ": ", what], None, endpoint));
        }
    }
}
