//! Further connections to one server, where the calls need more streams than it takes over one (gRFC A105).

use std::sync::Arc;
#[cfg(feature = "native")]
use std::time::Duration;

use valkyrie_protocol::Time;

use super::{Ask, Backend, Member, Picked, Pool, State};
#[cfg(feature = "native")]
use crate::runtime::{race, sleep_until};
use crate::{
    connection::{Link, lock},
    policy::ConnectionsPolicy,
};

/// How long calls of a connection that nobody needs may go on, of which there should be none.
#[cfg(feature = "native")]
const LEAVE: Duration = Duration::from_secs(5);

impl ConnectionsPolicy {
    /// Connections to one server. A page has one.
    pub(super) fn most(&self) -> usize {
        if cfg!(feature = "native") { self.max_per_server as usize } else { 1 }
    }
}

impl Member {
    /// The connection for the next call: the first with room, so that those behind it fall idle when there is less to do. None while a
    /// further one is to be had; else the one that carries least, where the call waits for a stream.
    pub(super) fn link(&self, most: usize, now: Time) -> Option<&Arc<Link>> {
        let first = self.links.iter().find(|link| link.is_usable() && (most == 1 || link.has_room()));
        if first.is_some() || most == 1 || self.grows(most, now) {
            return first;
        }
        self.links.iter().filter(|link| link.is_usable()).min_by_key(|link| link.carried())
    }

    /// Whether a further connection is being made, or may be: the server takes no more streams over those that there are.
    pub(super) fn grows(&self, most: usize, now: Time) -> bool {
        let mut usable = 0;
        let full = self.links.iter().filter(|link| link.is_usable()).all(|link| {
            usable += 1;
            !link.has_room()
        });
        full && (1..most).contains(&usable) && (self.dialing || self.may_dial(now, Ask::new(false)))
    }
}

impl State {
    /// Whether one that waited found a connection that others have filled, and waits for the next one.
    pub(super) fn outgrew(&self, picked: &Picked, now: Time) -> bool {
        let most = self.config.connections.most();
        let full = most > 1 && picked.link.is_usable() && !picked.link.has_room();
        full && self.members[picked.place as usize].grows(most, now)
    }
}

impl Pool {
    /// Whether the server has a connection that takes calls.
    pub(super) fn is_connected(&self, backend: &Arc<Backend>) -> bool {
        let state = lock(&self.state);
        state.members.iter().any(|one| Arc::ptr_eq(&one.backend, backend) && one.usable().is_some())
    }

    /// Lets go of a connection once it had no call for so long and is not the only one of its server.
    #[cfg(feature = "native")]
    pub(super) fn watch_idle(self: &Arc<Self>, backend: Arc<Backend>, link: Arc<Link>) {
        let (pool, runtime) = (Arc::downgrade(self), self.runtime().clone());
        self.runtime().clone().spawn(Box::pin(async move {
            let mut calls = None;
            loop {
                let Some(idle) = pool.upgrade().map(|pool| lock(&pool.state).config.connections.idle) else {
                    return;
                };
                let at = runtime.now().after(idle);
                if race(link.closed(), sleep_until(&*runtime, at)).await.is_some() {
                    return;
                }
                let Some(pool) = pool.upgrade() else { return };
                if pool.retire(&backend, &link, &mut calls) {
                    let message = "the client needs fewer connections";
                    return link.close(runtime.now().after(LEAVE), message);
                }
            }
        }));
    }

    /// Takes the connection out if nobody has used it since it had so many calls.
    #[cfg(feature = "native")]
    fn retire(&self, backend: &Arc<Backend>, link: &Arc<Link>, calls: &mut Option<u64>) -> bool {
        let mut state = lock(&self.state);
        let now = Some(link.calls());
        let idle = link.carried() == 0 && std::mem::replace(calls, now) == now;
        let of = |member: &&mut Member| Arc::ptr_eq(&member.backend, backend);
        let Some(member) = state.members.iter_mut().find(of).filter(|_| idle) else { return false };
        let others = member.links.iter().any(|other| other.is_usable() && !Arc::ptr_eq(other, link));
        let before = member.links.len();
        member.links.retain(|other| !others || !Arc::ptr_eq(other, link));
        member.links.len() < before
    }
}
