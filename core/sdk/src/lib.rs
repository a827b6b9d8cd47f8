//! Valkyrie's SDK: turns a target and a method into an answer, and a handler into a server.
//!
//! It owns sockets, deadlines and connections; what bytes mean is decided by `valkyrie-protocol`. It holds no language
//! binding and reads no command line. Every fallible operation gives a [`Status`].
//!
//! ```
//! use valkyrie_sdk::{ClientBuilder, EchoHandler, ServerBuilder};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), valkyrie_sdk::Status> {
//! let server = ServerBuilder::new().bind("127.0.0.1:0").handler("/echo", EchoHandler).build().await?;
//! let endpoint = server.endpoints()[0].clone();
//! tokio::spawn(async move { server.start().await });
//!
//! let client = ClientBuilder::new().endpoint(endpoint).timeout_ms(5000).build().await?;
//! assert_eq!(client.request("Hello, World!").await?, "Hello, World!");
//! # Ok(())
//! # }
//! ```
//!
//! Features, the first five of them default: `native` brings tokio and the `tcp://`, `unix://` and `memory:` transports;
//! `websocket` brings `ws://`, `tls` brings `tls://`, `wss://` and sealed sessions, `quic` brings `quic://`, `access` what servers
//! check tokens with, policies, limits and the audit; `observe`, a part of `native`, brings metrics and observers of clients, `tracing` their spans; `jwks` brings keys of tokens from an https URL, `aws-lc-rs` takes ring's place in TLS. Without `native` the
//! crate builds for wasm32, and the host hands in a [`Runtime`] and a [`Connector`].
#![forbid(unsafe_code)]

#[cfg(feature = "access")]
pub mod access;
mod call;
mod channels;
mod client;
mod connection;
mod credentials;
mod endpoint;
#[cfg(feature = "native")]
mod failures;
mod flight;
#[cfg_attr(not(feature = "native"), expect(dead_code, reason = "a server needs the native part"))]
mod guard;
mod handler;
#[cfg(feature = "native")]
mod health;
#[cfg(feature = "access")]
mod jwt;
#[cfg(feature = "native")]
mod keys;
mod lead;
#[cfg(feature = "native")]
mod listen;
#[cfg(feature = "native")]
mod load;
mod log;
#[cfg_attr(not(feature = "observe"), expect(dead_code, reason = "nobody reads what is not counted"))]
mod metrics;
#[cfg_attr(not(feature = "observe"), expect(dead_code, unreachable_pub, reason = "nobody is told"))]
mod observer;
mod options;
pub mod policy;
mod pool;
#[cfg(feature = "native")]
mod resolve;
mod router;
mod runtime;
#[cfg(feature = "script")]
mod script;
mod security;
#[cfg(feature = "native")]
mod server;
#[doc(hidden)]
pub mod shared;
#[cfg(feature = "tracing")]
mod spans;
mod stream;
#[cfg(feature = "native")]
mod table;
mod timeline;
#[cfg(feature = "tls")]
mod tls;
mod traits;
pub mod transport;

#[cfg(feature = "native")]
mod sync {
    pub(crate) use std::sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU8, AtomicUsize, Ordering},
    };
}

// The public interface is:
pub use bytes::Bytes;
pub use client::{Client, ClientBuilder, Sink, Submission};
pub use connection::ConnectionInfo;
pub use endpoint::Endpoint;
pub use handler::{EchoHandler, HandlerFuture, MessageHandler, Peer, Reply, ServerCall, handler_fn};
#[cfg(feature = "native")]
pub use health::{Health, ServingStatus};
#[cfg(feature = "access")]
pub use jwt::{JwksFetch, Jwt, JwtAlgorithm, JwtBuilder, StaticTokens};
pub use lead::{Interest, Lead, expecting_to_lead};
pub use log::{Level, Log, Record, Records};
#[cfg(feature = "observe")]
pub use metrics::{
    BackendMetrics, ClientMetrics, FamilyKind, Histogram, MethodMetrics, MetricsWriter, PrometheusText,
};
#[cfg(feature = "native")]
pub use metrics::{DedupMetrics, LimitMetrics, ServerMetrics};
#[cfg(feature = "observe")]
pub use observer::{CallId, Event, Observer, Step};
pub use options::{CallOptions, IdempotencyKey, Response};
pub use pool::{BreakerInfo, Connectivity};
#[cfg(feature = "native")]
pub use resolve::{ResolvedServer, Resolver, Watch};
#[cfg(feature = "native")]
pub use runtime::TokioRuntime;
pub use runtime::{Runtime, Timer};
pub use security::{
    Authenticator, CallInfo, Gate, Interceptor, PeerCertificate, Principal, Refusal, Security, Token,
    TokenSource,
};
#[cfg(feature = "native")]
pub use server::{Server, ServerBuilder, ServerControl, ServerStats};
#[cfg(feature = "tracing")]
pub use spans::{Spans, Traced};
pub use stream::{RecvStream, SendStream};
#[cfg(feature = "tls")]
pub use tls::Pem;
pub use traits::{BoxFuture, ValkyrieClient, ValkyrieServer};
pub use transport::{Carrier, Connector, Listener, Pollable, ReadBuffer, StreamIo, Streams, Transport};
pub use valkyrie_protocol::{
    Class, Code, ConnectionState, Detail, Limits, Metadata, MetadataError, MetadataValue, Priority, Reason,
    Status, Time,
};

/// The version of this crate and of every package built on it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The method that [`Client::request`] calls.
pub const DEFAULT_METHOD: &str = "/echo";
/// Default time limit of unary calls in milliseconds.
pub const DEFAULT_TIMEOUT_MS: u64 = 5_000;
/// Default time limit of making a connection in milliseconds.
pub const DEFAULT_CONNECT_TIMEOUT_MS: u64 = 5_000;
