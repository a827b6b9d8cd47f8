//! The WebAssembly part of the npm package `valkyrie-sdk-web`: the sdk's [`valkyrie_sdk::Runtime`] and
//! [`valkyrie_sdk::Connector`] over what a page or a worker has, and the boundary to JavaScript. No policy lives here.
//!
//! JavaScript picks a *slot* (a small number) for each operation and finds its promise by it. Everything an operation
//! ends with, a refusal too, comes out of [`boundary::turn`], which runs the tasks that are ready and hands over a
//! batch of outcomes in one crossing (in the layout of `layout.rs`). Exactly one outcome per operation.
#![cfg(target_arch = "wasm32")]
#![forbid(unsafe_code)]

pub mod boundary;
#[path = "../../bridge/src/layout.rs"]
pub mod layout;
mod pack;
#[path = "../../bridge/src/report.rs"]
mod report;
#[path = "../../bridge/src/requests.rs"]
mod requests;
mod runtime;
mod socket;
mod stream;
