//! Binds the tables that the sources have to the transforms, as a start would, and says what it would say.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use lockstep_core::Result;
use lockstep_core::check::Finding;
use lockstep_core::schema::TableSchema;
use lockstep_core::transform::DeadLetters;

use super::flow::Flow;
use super::lane_state::LaneState;
use super::supervisor::open_transforms;
use crate::file::Pipeline;
use crate::letters::{Desk, Limits, Store};
use crate::metrics::Metrics;

/// The tables of one source, in the order of the plan; `None` when they are not known.
pub(crate) type Tables = Option<Vec<Arc<TableSchema>>>;

/// What was found, by the index of the node in the plan.
#[derive(Debug, Default)]
pub(crate) struct Rehearsed {
    pub transforms: Vec<Vec<Finding>>,
    pub sinks: Vec<Vec<Finding>>,
}

/// Opens the transforms with their state in `state`, which is the caller's to throw away, and sends the tables through.
///
/// # Errors
/// When a transform cannot be opened.
pub(crate) async fn rehearse(
    pipeline: &Pipeline,
    tables: Vec<Tables>,
    state: &Path,
) -> Result<Rehearsed> {
    let plan = &pipeline.plan;
    let metrics = Metrics::new(plan)?;
    let limits = Limits { rows: 0, bytes: 0 };
    let store = Store::new(state.join("dead-letters"), limits);
    let desk = Desk::embedded(store, metrics.dead_letters());
    let dead_letters: Arc<dyn DeadLetters> = Arc::new(desk);
    let nodes = open_transforms(pipeline, state, &dead_letters, &metrics).await?;
    let lanes: Vec<_> = plan
        .sinks
        .iter()
        .map(|sink| Arc::new(LaneState::new(Arc::clone(&sink.name), Vec::new())))
        .collect();
    let mut refused: BTreeMap<Arc<str>, Vec<Finding>> = BTreeMap::new();
    let mut sinks = vec![Vec::new(); plan.sinks.len()];
    let known: Vec<bool> = tables.iter().map(Option::is_some).collect();
    for (source, tables) in tables.into_iter().enumerate() {
        let Some(tables) = tables else { continue };
        let flow = Flow::new(
            Arc::clone(&pipeline.name),
            plan,
            source,
            &nodes,
            &lanes,
            Arc::default(),
        );
        let reached = flow
            .try_bind(tables, |node, table, error| {
                let subject = table.map_or_else(
                    || "tables".to_owned(),
                    |table| format!("table {}", table.origin),
                );
                let remedy = error.remedy_text().unwrap_or("correct the section");
                let finding = Finding::fail(subject, error.message(), remedy);
                refused
                    .entry(Arc::clone(node.name()))
                    .or_default()
                    .push(finding);
            })
            .await;
        for (sink, reached) in plan.sinks_of(source).zip(reached) {
            for table in &reached {
                sinks[sink].extend(pipeline.sinks[sink].suits(table));
            }
            sinks[sink].extend(pipeline.sinks[sink].accepts(&reached).await);
        }
    }
    let transforms = plan.transforms.iter().enumerate().map(|(index, node)| {
        let mut findings = refused.remove(&node.name).unwrap_or_default();
        let mut sources = plan.sources_of_transform(index).iter();
        if let Some(&source) = sources.find(|&&source| !known[source]) {
            findings.push(Finding::warn(
                "tables",
                format!(
                    "not checked: the tables of sources.{} are not known",
                    plan.sources[source]
                ),
                "repair that source, then check again",
            ));
        } else if findings.is_empty() {
            findings.push(Finding::pass("tables", "have all it needs"));
        }
        findings
    });
    Ok(Rehearsed {
        transforms: transforms.collect(),
        sinks,
    })
}
