//! What every source, transform and sink promises, as tests that run on any of them: those in the tree, and your own.
//!
//! A suite is a list of checks, each an async function that panics where a promise is broken. One needs a small trait around
//! what is tested ([`sink::SinkUnderTest`], [`source::SourceUnderTest`], [`transform::TransformUnderTest`]); a macro
//! makes a test of each check:
//!
//! ```ignore
//! async fn acme() -> Option<Acme> { Some(Acme::on_a_fresh_server().await) }   // None: not here, the tests pass
//! lockstep_conformance::sink_suite!(acme);
//! ```
//!
//! There is no trait for a store of positions: progress lives in the sinks ([`lockstep_core::sink::Sink::resume`]) and at the
//! source's server. The suites of both hold them to it.

pub mod feed;
pub mod history;
pub mod memory;
pub mod sink;
pub mod source;
pub mod transform;

use std::time::Duration;

/// How long anything may take that is expected to happen at once.
pub const PATIENCE: Duration = Duration::from_secs(60);
