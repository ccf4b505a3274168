//! The Kafka sink: change events on topics, each once for `read_committed` consumers.
//!
//! One thread per sink encodes batches straight into librdkafka and reads every delivery report. With
//! `exactly_once`, records and the progress of their sources are written in the same Kafka transaction: light load makes
//! small transactions that are committed at once, heavy load bigger ones. Opening takes over the transactional id, which
//! fences a predecessor, and then reads the progress; so the sink is right whenever it is dropped and opened again.
//!
//! To be compared with a source, topics are read back: see `inspect`.

mod client;
mod config;
mod error;
mod gather;
mod inspect;
mod open;
mod outlet;
mod preflight;
mod progress;
mod registrar;
mod reports;
mod sink;
mod topics;
mod transaction;
mod worker;

pub use config::{
    DEFAULT_COMMIT_INTERVAL, DEFAULT_COMMIT_RECORDS, DEFAULT_COMPARE_MEMORY, DEFAULT_EXACTLY_ONCE,
    DEFAULT_MESSAGE_TOPIC, DEFAULT_PROGRESS_TOPIC, DEFAULT_TOPIC, DEFAULT_TRANSACTION_BYTES,
    Encoding, KafkaConfig, Properties, Transactions,
};
pub use sink::KafkaSinkFactory;
