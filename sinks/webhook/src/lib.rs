//! The webhook sink: each change is an HTTP POST.
//!
//! **Guarantee.** Each change arrives at least once, and those of one key in commit order: of two requests of a key the later one is
//! not sent before the earlier one was answered with 2xx. Whatever is sent again has the same `Idempotency-Key`.
//!
//! **Order.** What has to wait for what is kept by [`schedule`]. **Durability.** A batch is durable when it and all before it were
//! answered with 2xx. **Progress.** The receiver keeps none: a small file in the sink's state folder follows what is durable, a
//! second behind at most; without it the source's confirmed position is where it goes on.

mod address;
mod answer;
mod client;
mod config;
mod ledger;
mod preflight;
mod request;
mod schedule;
mod send;
mod sign;
mod sink;
mod tls;
mod writer;

pub use config::{
    BatchConfig, Config, DEFAULT_BATCH_BYTES, DEFAULT_BATCH_RECORDS, DEFAULT_CONCURRENCY,
    DEFAULT_REQUEST_TIMEOUT,
};
pub use sink::Webhook;
