//! Looks at every other side before a start: what `lockstep check` prints.

use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt, join_all};
use lockstep_core::check::Finding;

use crate::file::Pipeline;

/// A component that has not answered by then gets a finding that says so.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Asks every source and sink of the pipeline at the same time; changes nothing on any of them. The answers come in the
/// order of the graph, each with its place (`sources.orders`).
pub async fn preflight(pipeline: &Pipeline) -> Vec<(String, Vec<Finding>)> {
    let name = &*pipeline.name;
    let sources = pipeline.plan.sources.iter().zip(&pipeline.sources);
    let sources = sources.map(|(node, source)| {
        let findings: BoxFuture<'_, Vec<Finding>> = source.preflight(name, node).boxed();
        (format!("sources.{node}"), findings)
    });
    let sinks = pipeline.plan.sinks.iter().zip(&pipeline.sinks);
    let sinks = sinks.map(|(node, sink)| {
        let findings: BoxFuture<'_, Vec<Finding>> = sink.preflight(name, &node.name).boxed();
        (format!("sinks.{}", node.name), findings)
    });
    let asked = sources.chain(sinks).map(|(place, findings)| async move {
        let findings = tokio::time::timeout(TIMEOUT, findings)
            .await
            .unwrap_or_else(|_| {
                let detail = format!("no answer within {} s", TIMEOUT.as_secs());
                vec![Finding::fail(
                    "reachable",
                    detail,
                    "see whether the server is up and the network lets you through",
                )]
            });
        (place, findings)
    });
    join_all(asked).await
}
