//! How connections are made, and what becomes of them.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Weak, atomic::Ordering::Relaxed},
    task::Waker,
    time::Duration,
};

use valkyrie_protocol::{Reason, Status};

use super::{Ask, Backend, Pool, State, closed, member::Member};
#[cfg(feature = "observe")]
use crate::observer::Watch;
use crate::{
    Connector, Endpoint, Level, Peer, Runtime, Security, Token,
    connection::{Guest, Link, Side, Terms, lock, status_in},
    credentials::Credentials,
    lead,
    log::of_connection,
    observer::Step,
    runtime::{race, sleep_until},
};
#[cfg(feature = "tls")]
use crate::{tls::ClientTls, transport::tls::Sealed};

/// How connections are made.
pub(crate) struct Dialer {
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) terms: Terms,
    pub(crate) timeout: Duration,
    pub(crate) credentials: Option<Arc<Credentials>>,
    pub(crate) min_security: Option<Security>,
    pub(crate) connectors: HashMap<String, Arc<dyn Connector>>,
    /// Who is told each step.
    #[cfg(feature = "observe")]
    pub(crate) watch: Option<Watch>,
    #[cfg(feature = "tls")]
    pub(crate) tls: ClientTls,
}

impl Dialer {
    pub(super) fn connector(&self, endpoint: &Endpoint) -> Result<Arc<dyn Connector>, Status> {
        let connector = match self.connectors.get(endpoint.scheme()) {
            Some(connector) => connector.clone(),
            None => crate::transport::connector(
                endpoint,
                #[cfg(feature = "tls")]
                &self.tls,
                &self.terms,
            )?,
        };
        #[cfg(feature = "tls")]
        if self.tls.sealed {
            let security = self.tls.build(endpoint)?;
            return Ok(Arc::new(Sealed { carrier: connector, security }));
        }
        Ok(connector)
    }

    /// A server that the client may use.
    pub(crate) fn backend(&self, endpoint: Endpoint) -> Result<Arc<Backend>, Status> {
        let connector = self.connector(&endpoint)?;
        Ok(Arc::new(Backend::new(endpoint, connector)))
    }

    /// Whether a connection to `endpoint` has the protection that the client asks for, and may carry its token.
    pub(crate) fn admits(&self, endpoint: &Endpoint) -> Result<(), Status> {
        self.check_security(endpoint)?;
        #[cfg(feature = "tls")]
        let sealed = self.tls.sealed;
        #[cfg(not(feature = "tls"))]
        let sealed = false;
        self.credentials.as_ref().map_or(Ok(()), |_| Credentials::check(endpoint, sealed))
    }

    fn check_security(&self, endpoint: &Endpoint) -> Result<(), Status> {
        let encrypted = matches!(endpoint.scheme(), "tls" | "wss" | "quic");
        #[cfg(feature = "tls")]
        let (encrypted, trusts, shows) = (
            encrypted || self.tls.sealed,
            self.tls.sealed || self.tls.trusted.is_some() || self.tls.system_roots,
            self.tls.identity.is_some(),
        );
        #[cfg(not(feature = "tls"))]
        let (trusts, shows) = (false, false);
        let level = |encrypted, shows| match (encrypted, shows) {
            (false, _) => Security::Insecure,
            (true, false) => Security::Tls,
            (true, true) => Security::Mtls,
        };
        let reached = level(encrypted, shows);
        let least = self.min_security.unwrap_or(level(trusts || shows, shows));
        if reached >= least {
            return Ok(());
        }
        Err(Status::from_reason(
            Reason::SECURITY_TOO_LOW,
            match reached {
                Security::Insecure => format!(
                    "{endpoint} is not encrypted, and the client asks for {least:?}: use tls://, wss://, quic:// or a sealed session"
                ),
                _ => format!(
                    "{endpoint} would not learn who the client is, and the client asks for {least:?}: give an identity, its certificates and key"
                ),
            },
        ))
    }
}

/// A dial that has taken so long is no reason to wait for it alone (RFC 8305's connection attempt delay; gRFC A61).
const TAKES_LONG: Duration = Duration::from_millis(250);
/// What a server is told that has left the list.
pub(super) const LEFT: &str = "the client has other servers now";

impl Pool {
    /// With nothing locked: a runtime that has ended drops the task here, which tells everybody who waits.
    pub(super) fn dial(self: &Arc<Self>, backend: Arc<Backend>) {
        self.note(None, || Step::Dial { server: &backend.endpoint });
        let attempt = Attempt { pool: self.clone(), backend, settled: false };
        self.runtime().spawn(Box::pin(attempt.run()));
    }

    /// Tells who watches what a server's HELLO says.
    fn watch_greeting(self: &Arc<Self>, backend: &Arc<Backend>, link: &Arc<Link>) {
        #[cfg(feature = "observe")]
        if self.watch().is_some_and(Watch::has_observer) {
            let (pool, backend) = (Arc::downgrade(self), backend.clone());
            link.on_greeting(Box::new(move |version, limits| {
                if let Some(pool) = pool.upgrade() {
                    pool.note(None, || Step::Greeted { server: &backend.endpoint, version, limits });
                }
            }));
        }
        #[cfg(not(feature = "observe"))]
        let _ = (backend, link);
    }

    /// A dial takes long, and no server has a connection: another one is tried beside it.
    fn dial_another(self: &Arc<Self>) {
        let now = self.runtime().now();
        let backend = {
            let state = &mut *lock(&self.state);
            if state.closed || state.listed().any(|(_, member)| member.usable().is_some()) {
                return;
            }
            let may_dial = |(_, member): &(u32, &Member)| {
                member.isolated.is_none() && member.may_dial(now, Ask::new(false))
            };
            let Some((place, _)) = state.listed().find(may_dial) else { return };
            state.members[place as usize].dial(now)
        };
        self.dial(backend);
    }

    fn dialled(self: &Arc<Self>, backend: &Arc<Backend>, result: Result<Arc<Link>, Status>) {
        let failure = result.as_ref().err();
        self.note(None, || Step::Dialled { server: &backend.endpoint, failure });
        let now = self.runtime().now();
        let (wakers, late, made) = {
            let state = &mut *lock(&self.state);
            let mut made = None;
            let closed = state.closed;
            let State { members, random, tries, .. } = state;
            let mut member = members.iter_mut().find(|member| Arc::ptr_eq(&member.backend, backend));
            let late = match (&mut member, result) {
                (Some(member), Ok(link)) if !closed && member.at.is_some() => {
                    member.dialing = false;
                    made = Some((link.clone(), !member.links.is_empty()));
                    member.made(link, now, tries, random);
                    None
                }
                (_, Ok(link)) => {
                    member.into_iter().for_each(|member| member.dialing = false);
                    Some((link, closed))
                }
                (Some(member), Err(status)) => {
                    member.dialing = false;
                    member.counts.dials_failed += 1;
                    member.failed_now(status, now, tries, random);
                    #[cfg(feature = "native")]
                    state.parts.trouble();
                    None
                }
                (None, Err(_)) => None,
            };
            #[cfg(feature = "native")]
            let made = made.map(|(link, further)| (state.question(&link), link, further));
            (state.changed(), late, made)
        };
        match late {
            Some((link, true)) => link.abort(self::closed()),
            Some((link, false)) => link.close(now, LEFT),
            None => {}
        }
        #[cfg(feature = "native")]
        if let Some((question, link, further)) = made {
            if further {
                self.watch_idle(backend.clone(), link.clone());
            }
            question
                .into_iter()
                .for_each(|question| self.watch_health(backend.clone(), link.clone(), question));
        }
        #[cfg(not(feature = "native"))]
        drop(made);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// A connection is over. One on which nothing was ever heard is a try that failed.
    fn over(&self, backend: &Arc<Backend>, link: &Arc<Link>) {
        let now = self.runtime().now();
        let wakers = {
            let state = &mut *lock(&self.state);
            let State { members, tries, random, .. } = state;
            let of = |member: &&mut Member| Arc::ptr_eq(&member.backend, backend);
            let mut member = members.iter_mut().find(of);
            if let Some(member) = &mut member {
                let (bytes_in, bytes_out) = link.bytes();
                member.counts.bytes_in += bytes_in;
                member.counts.bytes_out += bytes_out;
            }
            if let Some(member) = member
                && let Some(at) = member.links.iter().position(|other| Arc::ptr_eq(other, link))
            {
                member.counts.connections_lost += 1;
                member.note_silence();
                member.links.remove(at);
                #[cfg(feature = "native")]
                if member.at.is_some() {
                    state.parts.trouble();
                }
                match link.is_mute() {
                    None => member.backoff.reset(),
                    Some(status) => member.failed_now(status, now, tries, random),
                }
            }
            state.changed()
        };
        // Told when it is so: whoever is told sees a client without it.
        if self.is_watched() {
            let status = link.why_over();
            self.note(None, || Step::Lost { server: &backend.endpoint, failure: status.as_ref() });
        }
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// A dial in progress. Dropped with its runtime, it tells everybody who waits.
struct Attempt {
    pool: Arc<Pool>,
    backend: Arc<Backend>,
    settled: bool,
}

impl Attempt {
    async fn run(mut self) {
        let result = {
            let runtime = self.pool.runtime().clone();
            let too_long = sleep_until(&*runtime, runtime.now().after(TAKES_LONG));
            let mut made = std::pin::pin!(self.made());
            match race(made.as_mut(), too_long).await {
                Some(result) => result,
                None => {
                    self.pool.dial_another();
                    made.await
                }
            }
        };
        self.log(&result);
        self.settle(result);
    }

    async fn made(&self) -> Result<Arc<Link>, Status> {
        match &self.pool.dialer.credentials {
            None => self.connect(None).await,
            Some(credentials) => self.connect(Some(credentials.token().await?)).await,
        }
    }

    async fn connect(&self, token: Option<Token>) -> Result<Arc<Link>, Status> {
        let Dialer { runtime, terms, timeout, credentials, .. } = &self.pool.dialer;
        let endpoint = &self.backend.endpoint;
        let deadline = runtime.now().after(*timeout);
        let connecting = self.backend.connector.connect(endpoint);
        match race(connecting, sleep_until(&**runtime, deadline)).await {
            Some(Ok(transport)) => {
                let peer = Peer::new(endpoint.to_string());
                // Where calls wait because others are full, how many it takes is to be known first.
                let provisional = transport.is_provisional()
                    || self.backend.silent.load(Relaxed)
                    || self.pool.is_connected(&self.backend);
                let (guest, side) = (Guest::new(transport, peer), Side::Client(token));
                let (link, driver) = Link::new(guest, terms, runtime.clone(), side);
                self.pool.note(None, || Step::Connected { server: endpoint });
                self.pool.watch_greeting(&self.backend, &link);
                let (pool, backend, driven) =
                    (Arc::downgrade(&self.pool), self.backend.clone(), link.clone());
                runtime.spawn(Box::pin(async move {
                    let _over = Over { pool, backend, link: driven };
                    lead::seat(driver).await;
                }));
                let greeted = match provisional {
                    true => race(link.greeted(), sleep_until(&**runtime, deadline)).await,
                    false => Some(Ok(())),
                };
                let greeted = greeted.unwrap_or_else(|| Err(self.too_late()));
                if provisional && greeted.is_ok() {
                    self.backend.silent.store(false, Relaxed);
                }
                if let Err(status) = &greeted {
                    link.abort(status.clone());
                } else if let Some(credentials) = credentials {
                    runtime.spawn(Box::pin(credentials.clone().keep_fresh(link.clone())));
                }
                greeted.map(|()| link)
            }
            Some(Err(error)) => Err(connect_failed(endpoint, &error)),
            None => Err(self.too_late()),
        }
    }

    fn too_late(&self) -> Status {
        let (endpoint, timeout) = (&self.backend.endpoint, self.pool.dialer.timeout);
        let message = format!("no connection to {endpoint} within {} ms", timeout.as_millis() as u64);
        Status::from_reason(Reason::CONNECT_TIMEOUT, message)
    }

    fn log(&self, result: &Result<Arc<Link>, Status>) {
        let level = if result.is_ok() { Level::Info } else { Level::Warn };
        let Some(log) = self.pool.dialer.terms.log.wants(level) else { return };
        let endpoint = &self.backend.endpoint.to_string();
        log.log(match result {
            Ok(_) => of_connection(level, &["connected to ", endpoint], None, endpoint),
            Err(status) => of_connection(level, &[status.message()], Some(status.reason()), endpoint),
        });
    }

    fn settle(&mut self, result: Result<Arc<Link>, Status>) {
        self.settled = true;
        self.pool.dialled(&self.backend, result);
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if !self.settled {
            let message = "the runtime stopped while connecting";
            self.settle(Err(Status::from_reason(Reason::CONNECT_FAILED, message)));
        }
    }
}

/// Takes a connection out of its pool when its driver ends.
struct Over {
    pool: Weak<Pool>,
    backend: Arc<Backend>,
    link: Arc<Link>,
}

impl Drop for Over {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.over(&self.backend, &self.link);
        }
    }
}

fn connect_failed(endpoint: &Endpoint, error: &io::Error) -> Status {
    if let Some(status) = status_in(error) {
        let message = format!("cannot connect to {endpoint}: {}", status.message());
        return Status::from_reason(status.reason(), message);
    }
    let reason = match error.kind() {
        io::ErrorKind::NotFound if endpoint.scheme() != "unix" => Reason::NAME_RESOLUTION,
        _ => Reason::CONNECT_FAILED,
    };
    Status::from_reason(reason, format!("cannot connect to {endpoint}: {error}"))
}
