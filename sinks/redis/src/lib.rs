//! Rows as Redis keys: one key per row, kept in step with the source, in a single server or a cluster.
//!
//! **Guarantee.** Once a batch is reported durable, the server has answered every write of it; a write that comes late or
//! twice never takes a newer row back and never brings a deleted one back (I2, I4). On a single server what is there is what the
//! position says, wherever the server's memory ends.
//!
//! **How.** Beside each row's key lies a companion key in the same hash slot, `lockstep:v:{<key>}`, that holds the row's
//! version. Server-side scripts write a row together with its version, and only when the version is not older
//! than what is held. A delete leaves the version as a tombstone for a while. A TRUNCATE leaves a floor per table. On a single server such a call also
//! notes how far the sources have come, and which call it followed; in a cluster that is noted after the batch is answered, and
//! writing twice is harmless.
//! The branches of a transaction of several databases are one call of a script: on a single server a reader sees all of them or
//! none (I6).
//!
//! The crate's README has the configuration and the limits.

mod careful;
mod chain;
mod config;
mod fence;
mod flush;
mod inspect;
mod keys;
mod preflight;
mod rows;
mod scan;
mod scripts;
mod sink;
mod splice;
mod state;
mod steps;
mod streams;
mod together;
mod version;
mod writer;

pub use config::{
    BatchConfig, DEFAULT_BATCH_BYTES, DEFAULT_BATCH_KEYS, DEFAULT_KEY, DEFAULT_TOMBSTONE_TTL,
    RedisConfig, ValueFormat,
};
pub use lockstep_redis::{DEFAULT_CONNECT_TIMEOUT, DEFAULT_RESPONSE_TIMEOUT, TlsConfig};
pub use sink::{RedisFactory, RedisSink};
pub use streams::{
    DEFAULT_MESSAGE_STREAM, DEFAULT_STREAM, StreamConfig, StreamFactory, StreamSink,
};
