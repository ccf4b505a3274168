//! Changes as entries of Redis streams, each once: `type = "redis-stream"`.
//!
//! **Guarantee.** Exactly once, in order, whatever is killed: the entries of a step and how far their sources have come with it are one
//! call of a script, and the steps make a chain ([`crate::chain`]). Branches of one transaction are one step: who reads streams in one
//! command sees all of them or none (I6).

mod append;
mod config;
mod sink;
mod writer;

pub use config::{DEFAULT_MESSAGE_STREAM, DEFAULT_STREAM, StreamConfig};
pub use sink::{StreamFactory, StreamSink};
