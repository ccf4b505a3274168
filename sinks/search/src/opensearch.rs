//! OpenSearch and Elasticsearch over HTTP.
//!
//! **Guarantee.** One document per row under the row's key; after a replay, however late, the index ends in the state of
//! the source. A write carries the commit LSN in its external version, so that an older one is refused by the server.
//!
//! **Order.** Two writes of one key are never under way at the same time; a TRUNCATE and a read of unchanged values wait
//! for everything before them. **Durability.** A batch is durable when the server has answered every one of its items
//! (the server answers after its translog is on disk, unless the index says otherwise). The position is kept in a
//! progress index and only ever follows what is durable. **Visibility** of transactions of several databases: see [`visible`],
//! where the section says `gtx_epoch`.

mod bulk;
mod client;
mod config;
mod epoch;
mod flights;
mod index;
mod inspect;
mod mapping;
mod preflight;
mod progress;
mod reply;
mod scroll;
mod send;
mod sink;
mod toast;
mod truncate;
mod visible;
mod writer;

pub use config::{
    Config, DEFAULT_BULK_BYTES, DEFAULT_BULK_DOCUMENTS, DEFAULT_CONCURRENCY, DEFAULT_GC_DELETES,
    DEFAULT_INDEX, DEFAULT_PROGRESS_INDEX, DEFAULT_REQUEST_TIMEOUT, DEFAULT_VISIBLE_EVERY, Mapping,
    Refresh,
};
pub use sink::{Elasticsearch, OpenSearch};
