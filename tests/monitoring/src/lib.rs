//! lockstep's dashboards, made from the names of its metrics and the thresholds of its alerts.
//!
//! `cargo run -p lockstep-monitoring` writes `deploy/grafana`. A metric of another name does not compile, or changes the files, which
//! a test compares; a threshold that is changed in `deploy/prometheus/rules.yaml` changes them as well.

pub mod consistency;
pub mod model;
pub mod overview;
pub mod picture;
pub mod pipeline;
pub mod rules;

use std::path::PathBuf;

use crate::model::Dashboard;
use crate::rules::Rules;

/// The top of the workspace.
#[must_use]
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// All dashboards, with the names of their files in `deploy/grafana`.
///
/// # Panics
/// When the rules lack an alert that a panel takes its threshold from.
#[must_use]
pub fn dashboards(rules: &Rules) -> Vec<(&'static str, Dashboard)> {
    vec![
        ("overview.json", overview::dashboard(rules)),
        ("pipeline.json", pipeline::dashboard(rules)),
        ("consistency.json", consistency::dashboard(rules)),
    ]
}
