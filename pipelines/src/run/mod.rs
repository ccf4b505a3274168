//! The runtime: a pump per source, a lane per sink, and a keeper that confirms what every sink has made durable.
//!
//! ```text
//!  source ─▶ pump ─▶ transforms ─▶ inbox ─▶ lane ─▶ sink
//!    ▲                                       │ through
//!    └───────────── keeper ◀─────────────────┘ (persist transforms, then confirm the minimum)
//! ```
//!
//! Work is done per batch. Changes are looked at one by one only where an input takes a part of a batch, or a resume
//! point cuts one.

mod aside;
mod backoff;
mod batches;
mod checks;
mod copying;
pub(crate) mod course;
mod flow;
mod handle;
mod inbox;
mod inspector;
mod invariants;
mod keeper;
mod lane;
mod lane_state;
mod node;
mod permit;
mod pump;
mod reconcile;
pub(crate) mod rehearsal;
mod replay;
mod resolutions;
mod resolver;
mod source_state;
pub(crate) mod standby;
mod stitch;
mod supervisor;
mod traces;
pub(crate) mod trial;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use course::{Refused, Report};
pub use handle::{Handle, Running};
pub use invariants::{Evaluation, InvariantRequest, InvariantsView};
pub use reconcile::{Reconcile, ReconcileRequest, Share};
pub use replay::{Offline, Reports};
pub use standby::{LeaseRole, Role, Standby};
pub use stitch::{DoubtfulBranch, Doubts};
pub(crate) use supervisor::directory;
pub use supervisor::{start, start_holding};

/// Locks a mutex whose holders do not panic half-way through a change: a poisoned value is still whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Microseconds since the Unix epoch.
pub(crate) fn now_micros() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
        })
}
