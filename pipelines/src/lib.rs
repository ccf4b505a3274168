//! From a pipeline file to a running pipeline: `config → plan → run`.
//!
//! [`registry`] knows the kinds of sources, transforms and sinks, [`file`] reads a pipeline file and reports every
//! mistake in it, [`plan`] is the graph, [`run`] moves the batches, [`letters`] keeps what sinks refuse, [`status`] and [`metrics`] say how it goes,
//! [`preflight`] looks at the other sides before a start, [`examples`] sends rows through transforms alone, and [`schema`] describes the file to editors.

pub mod examples;
pub mod file;
pub mod letters;
pub mod metrics;
pub mod plan;
pub mod preflight;
pub mod registry;
pub mod run;
pub mod schema;
pub mod selector;
pub mod status;

pub use file::{Mistake, Mistakes, Pipeline};
pub use lockstep_reconciler as reconciler;
pub use registry::Registry;
pub use run::{
    DoubtfulBranch, Doubts, Evaluation, Handle, InvariantRequest, InvariantsView, LeaseRole,
    Offline, Reconcile, ReconcileRequest, Report, Reports, Role, Running, Share, Standby, start,
    start_holding,
};
