//! The configuration of a Valkyrie server, for every program that has one: what its keys mean ([`KEYS`]), how it is put together
//! from layers ([`Layers`]), and what is refused, with source, line, column, key, value and the fix ([`ConfigError`]).
//!
//! Precedence, the weakest first: the defaults, those of the profile, the sources in the order in which they were added (files, or any [`Source`] of a
//! program's own), the environment (`VALKYRIE_` and the key), flags, what is set at run time. [`Settings`] has the one in force, and reads them again.
//!
//! ```
//! use valkyrie_config::{Format, Layer, Layers};
//!
//! let file = Layer::parse("server.yaml", "drain_timeout_ms: 5000\n", Format::Yaml)?;
//! let config = Layers::new().source(file).load()?;
//! assert_eq!((config.drain_timeout_ms, config.metrics), (5_000, true));
//! assert_eq!(config.origin_of("drain_timeout_ms"), "server.yaml:1");
//!
//! let wrong = Layer::parse("server.yaml", "metrics: true\ndrain_timeout_ms: -5\n", Format::Yaml)?;
//! let error = Layers::new().source(wrong).load().unwrap_err().to_string();
//! assert_eq!(
//!     error,
//!     "server.yaml:2:1: drain_timeout_ms: -5 is out of range; write a number from 0 to 86400000"
//! );
//! # Ok::<(), valkyrie_config::ConfigError>(())
//! ```
//!
//! The features, all off by default: `clap` (formats and levels as values of flags), `server` (a server's builder from a configuration, and
//! a check of the files that it names), `otel` (the exporter of the keys `otlp_*`).
#![forbid(unsafe_code)]

mod error;
mod format;
mod layers;
mod machine;
mod profile;
mod schema;
#[cfg(feature = "server")]
mod server;
mod settings;

pub use error::{ConfigError, Position};
pub use format::Format;
pub use layers::{File, Layer, Layers, PREFIX, Source};
pub use machine::Machine;
pub use profile::Profile;
pub use schema::{
    Algorithm, AuditOnFailure, Config, KEYS, Key, LogFormat, LogLevel, MinSecurity, TokenIssuer, TokenKey,
};
#[cfg(feature = "server")]
pub use server::given;
pub use settings::{Change, Settings, Snapshot};
