//! Which tables a request is about.

use std::collections::BTreeMap;
use std::sync::Arc;

use lockstep_core::{Error, ErrorKind, Result};
use lockstep_reconciler::Ends;
use tokio::time::Instant;

use super::super::checks::Route;
use super::super::lane_state::LaneState;
use super::{Parts, ReconcileRequest, Share};

/// The tables that a request is about, and the sinks they reach.
///
/// # Errors
/// Of kind `Invalid` when there is nothing to compare, naming what there is.
pub(super) fn routes(parts: &Parts, request: &ReconcileRequest) -> Result<Vec<Route>> {
    request.check()?;
    if let Some(sink) = &request.sink {
        require_sink(parts, sink)?;
    }
    let mut routes = Vec::new();
    let mut there = Vec::new();
    for (index, source) in parts.sources.iter().enumerate() {
        let lanes: Vec<_> = parts
            .lanes
            .iter()
            .zip(&parts.sinks)
            .filter(|(lane, _)| lane.sources.contains(&index))
            .map(|(lane, sink)| (Arc::clone(lane), Arc::clone(sink)))
            .collect();
        let tables = reached(lanes.iter().map(|(lane, _)| lane), index);
        let named = tables.keys();
        there.extend(named.map(|table| format!("{}.{table}", source.name)));
        for (table, has_key) in tables {
            let route = Route {
                desk: Arc::clone(&parts.desk),
                source: Arc::clone(source),
                index,
                lanes: lanes.clone(),
                wanted: request.sink.clone(),
                condition: request.condition.clone(),
                sample: request.sample.map(Share::sample),
                table,
                has_key,
                since: Instant::now(),
            };
            if is_wanted(request, &source.name, &route.table) && !route.sinks().is_empty() {
                route.accept(&request.keys)?;
                routes.push(route);
            }
        }
    }
    match routes.is_empty() {
        true => Err(nothing(&there)),
        false => Ok(routes),
    }
}

fn require_sink(parts: &Parts, sink: &str) -> Result<()> {
    if parts.lanes.iter().any(|lane| *lane.name == *sink) {
        return Ok(());
    }
    let names: Vec<&str> = parts.lanes.iter().map(|lane| &*lane.name).collect();
    let error = Error::new(ErrorKind::Invalid, format!("there is no sink {sink}"));
    Err(error.remedy(format!("choose one of {}", names.join(", "))))
}

/// Tables of a source that reach one of its lanes, and whether they have a key.
fn reached<'l>(
    lanes: impl Iterator<Item = &'l Arc<LaneState>>,
    source: usize,
) -> BTreeMap<String, bool> {
    let mut tables = BTreeMap::new();
    for lane in lanes {
        let reached = lane.reached_by(source);
        let all = reached.iter().flat_map(|reached| &reached.tables);
        tables.extend(all.map(|table| (table.origin.to_string(), !table.key.is_empty())));
    }
    tables
}

/// Whether a request is about a table, `schema.table`, of a source.
fn is_wanted(request: &ReconcileRequest, source: &str, table: &str) -> bool {
    let is_source = |wanted: &str| source == wanted;
    let is_table = |wanted: &str| table == wanted || table.rsplit('.').next() == Some(wanted);
    request.source.as_deref().is_none_or(is_source) && request.table.as_deref().is_none_or(is_table)
}

/// The error for a request that is about no table, among those that are there.
fn nothing(there: &[String]) -> Error {
    let error = Error::new(ErrorKind::Invalid, "there is nothing to compare");
    error.remedy(match there.is_empty() {
        true => "wait until the pipeline's sources are open".to_owned(),
        false => format!("there are {}", there.join(", ")),
    })
}
