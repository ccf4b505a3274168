//! Tables are loaded again while the stream goes on: on demand, in chunks by primary key, each fenced ([`window`]).
//!
//! [`Desk`] takes requests, from the admin endpoint and from SQL, and keeps them in a file; [`reader`] reads the chunks;
//! [`Window`] puts them at their place in the stream.

mod desk;
mod reader;
mod shape;
mod window;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lockstep_core::batch::{Batch, Phase};
use lockstep_core::source::ReloadRequest;

pub use desk::Desk;
pub use reader::Reader;
use window::{Found, Window};

/// The window, shared by the one who reads chunks and the one who hands batches on.
#[derive(Clone, Default)]
pub struct Merge(Arc<Mutex<Window>>);

impl Merge {
    fn lock(&self) -> MutexGuard<'_, Window> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What becomes of a batch on its way: itself as a rule. Requests in it are taken to the desk.
    pub fn pass(&self, batch: Batch, desk: &Desk) -> Vec<Batch> {
        if batch.phase == Phase::Snapshot {
            return vec![batch];
        }
        let Found { batches, signals } = self.lock().pass(batch);
        for signal in signals {
            let asked = signal_of(&signal).and_then(|request| desk.take(request));
            match asked {
                Ok(id) => tracing::info!(id, signal, "a table is loaded again"),
                Err(error) => tracing::warn!(signal, %error, "a signal is not understood"),
            }
        }
        batches
    }
}

#[derive(serde::Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Signal {
    Snapshot(ReloadRequest),
}

fn signal_of(text: &str) -> lockstep_core::Result<ReloadRequest> {
    match serde_json::from_str(text) {
        Ok(Signal::Snapshot(request)) => Ok(request),
        Err(error) => Err(lockstep_core::Error::new(
            lockstep_core::ErrorKind::Invalid,
            "it is not what signals look like",
        )
        .source(error)
        .remedy(r#"write {"type": "snapshot", "table": "schema.table", "where": "condition"}"#)),
    }
}
