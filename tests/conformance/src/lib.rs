//! What every source, transform and sink promises, and whatever keeps checkpoints, as tests that run on any of them: those in the tree, and your own.
//!
//! A suite is a list of checks, each an async function that panics where a promise is broken. One needs a small trait around
//! what is tested ([`sink::SinkUnderTest`], [`source::SourceUnderTest`], [`transform::TransformUnderTest`],
//! [`checkpoint::CheckpointsUnderTest`]); a macro makes a test of each check:
//!
//! ```ignore
//! async fn acme() -> Option<Acme> { Some(Acme::on_a_fresh_server().await) }   // None: not here, the tests pass
//! lockstep_conformance::sink_suite!(acme);
//! ```
//!
//! How far a sink has come is no checkpoint of its own: it lives with the sink's data ([`lockstep_core::sink::Sink::resume`]) and at the
//! source's server, and the suites of both hold them to it.

pub mod checkpoint;
pub mod feed;
pub mod history;
pub mod memory;
pub mod sink;
pub mod source;
pub mod transform;

use std::time::Duration;

/// How long anything may take that is expected to happen at once.
pub const PATIENCE: Duration = Duration::from_secs(60);
