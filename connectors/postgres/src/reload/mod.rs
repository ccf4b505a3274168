//! Tables are loaded again while the stream goes on: on demand, in chunks by primary key, each fenced ([`window`]).
//!
//! Rows can be sent the same way to be compared with what sinks hold, and not written ([`check`]).
//!
//! [`Desk`] takes requests, from the admin endpoint and from SQL, and keeps them in a file; [`reader`] carries them out;
//! [`load`] reads the chunks of one; [`Window`] puts them at their place in the stream.

mod check;
mod desk;
mod load;
mod reader;
mod shape;
mod window;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lockstep_core::batch::{Batch, Phase};
use lockstep_core::position::Lsn;
use lockstep_core::source::ReloadRequest;
use lockstep_core::{Error, ErrorKind, Result};

pub use check::{Asked, Counter, counter};
pub use desk::Desk;
pub use reader::{Reader, budget as reload_budget};
use window::Window;

use crate::horizons::Horizons;

/// The window, shared by the one who reads chunks and the one who hands batches on.
#[derive(Clone, Default)]
pub struct Merge(Arc<Mutex<Window>>);

impl Merge {
    /// One whose fences make horizons, for a stream from this place of the log.
    pub fn new(horizons: Horizons, from: Lsn) -> Self {
        Merge(Arc::new(Mutex::new(Window::new(horizons, from))))
    }

    fn lock(&self) -> MutexGuard<'_, Window> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What becomes of a batch on its way: itself as a rule. Requests in it, and rows that have to be read once more, are on
    /// record at the desk before it goes on.
    ///
    /// # Errors
    /// When that cannot be written for now: the batch has to come again.
    pub fn pass(&self, batch: Batch, desk: &Desk) -> Result<Vec<Batch>> {
        if batch.phase == Phase::Snapshot || batch.branch.is_some() {
            return Ok(vec![batch]);
        }
        let found = self.lock().pass(batch);
        if !found.owed.is_empty() {
            desk.owe(found.owed)?;
        }
        for signal in found.signals {
            let asked = signal_of(&signal).and_then(|request| desk.take_signal(request));
            match asked {
                Ok(id) => tracing::info!(id, signal, "a table is loaded again"),
                Err(error) if error.kind() == ErrorKind::Invalid => {
                    tracing::warn!(signal, %error, "a signal is not understood");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(found.batches)
    }
}

#[derive(serde::Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Signal {
    Snapshot(ReloadRequest),
}

fn signal_of(text: &str) -> Result<ReloadRequest> {
    match serde_json::from_str(text) {
        Ok(Signal::Snapshot(request)) => Ok(request),
        Err(error) => Err(
            Error::new(ErrorKind::Invalid, "it is not what signals look like")
                .source(error)
                .remedy(
                    r#"write {"type": "snapshot", "table": "schema.table", "where": "condition"}"#,
                ),
        ),
    }
}
