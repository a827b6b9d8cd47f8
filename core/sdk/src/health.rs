//! What a server says of its own health, to clients and to whoever else asks.

use std::{collections::HashMap, sync::Arc};

use tokio::sync::watch;
use valkyrie_protocol::{Code, Status};

use crate::{MessageHandler, Reply, ServerCall, handler_fn};

/// Whether a service takes calls, as it is written on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ServingStatus {
    /// It does: `serving`.
    Serving,
    /// It does not: `not_serving`.
    NotServing,
    /// It takes no new ones, as its server goes: `draining`.
    Draining,
}

impl ServingStatus {
    /// As it is written on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::NotServing => "not_serving",
            Self::Draining => "draining",
        }
    }
}

/// The health of a server and its services, which `/valkyrie.Health/Check` and `/valkyrie.Health/Watch` tell
/// ([`ServerBuilder::health`](crate::ServerBuilder::health)). The empty name is the server itself, serving at first. Cheap to clone;
/// clones are one.
#[derive(Clone, Debug)]
pub struct Health(Arc<watch::Sender<Book>>);

#[derive(Debug, Default)]
struct Book {
    services: HashMap<String, ServingStatus>,
    draining: bool,
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

impl Health {
    /// A server that serves.
    pub fn new() -> Self {
        let services = HashMap::from([(String::new(), ServingStatus::Serving)]);
        Self(Arc::new(watch::Sender::new(Book { services, draining: false })))
    }

    /// The service stands so from now on, and whoever watches it is told; `""` is the server itself.
    pub fn set(&self, service: impl Into<String>, status: ServingStatus) {
        self.0.send_modify(|book| {
            book.services.insert(service.into(), status);
        });
    }

    /// Every service that serves drains from now on, and watches end with that word, so that none of them holds up a shutdown. A
    /// server that drains does it to its own.
    pub fn drain(&self) {
        self.0.send_modify(|book| book.draining = true);
    }

    /// How a service stands; `None` for one that nobody has named.
    pub fn status(&self, service: &str) -> Option<ServingStatus> {
        self.0.borrow().status(service)
    }

    /// What answers `/valkyrie.Health/Check`: the message is a service's name, the answer its status.
    pub fn check(&self) -> impl MessageHandler + use<> {
        let health = self.clone();
        handler_fn(move |mut call: ServerCall| {
            let health = health.clone();
            async move {
                let service = name(&call.message().await?)?;
                health
                    .status(&service)
                    .map(|status| Reply::message(status.name()))
                    .ok_or_else(|| unknown(&service))
            }
        })
    }

    /// What answers `/valkyrie.Health/Watch`: as Check, and once more for each change. Ends when the server drains.
    pub fn watch(&self) -> impl MessageHandler + use<> {
        let health = self.clone();
        handler_fn(move |mut call: ServerCall| {
            let mut changes = health.0.subscribe();
            async move {
                let service = name(&call.message().await?)?;
                let mut told = None;
                loop {
                    let (status, draining) = {
                        let book = changes.borrow_and_update();
                        (book.status(&service).ok_or_else(|| unknown(&service))?, book.draining)
                    };
                    if told.replace(status) != Some(status) {
                        call.send(status.name()).await?;
                    }
                    if draining || changes.changed().await.is_err() {
                        return Ok(Reply::end());
                    }
                }
            }
        })
    }
}

impl Book {
    fn status(&self, service: &str) -> Option<ServingStatus> {
        match *self.services.get(service)? {
            ServingStatus::Serving if self.draining => Some(ServingStatus::Draining),
            status => Some(status),
        }
    }
}

fn name(message: &[u8]) -> Result<String, Status> {
    let text = std::str::from_utf8(message);
    text.map(str::to_owned).map_err(|_| unknown(&String::from_utf8_lossy(message)))
}

fn unknown(service: &str) -> Status {
    let service: String = service.chars().take(100).collect();
    Status::new(Code::NotFound, format!("unknown service {service:?}"))
}
