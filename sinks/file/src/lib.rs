//! The file sink: change events as JSON lines, each once, whatever crashes.
//!
//! Lines are appended and synced by one thread; a small file in the sink's state folder then records how long each file
//! is and how far each source got. At the next start, what lies behind the recorded length is removed: it was never
//! confirmed and comes again.

mod config;
mod files;
mod sidecar;
mod sink;
mod writer;

pub use config::{DEFAULT_SYNC_INTERVAL, FileConfig};
pub use sink::FileSinkFactory;
