//! Looks at every other side before a start, and at what lies between: what `lockstep check` prints.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use lockstep_core::check::Finding;
use lockstep_core::schema::TableSchema;
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_reconciler::invariants::{Ends, Invariant, shape};
use tempfile::TempDir;

use crate::file::Pipeline;
use crate::run::rehearsal::{Rehearsed, rehearse};
use crate::run::{directory, now_micros, standby};

/// A component that has not answered by then gets a finding that says so.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The tables of a source that could say which they are.
type Tables = Option<Vec<Arc<TableSchema>>>;

/// Asks every source, sink and server of a transform at the same time, then binds the tables that the sources have to the
/// transforms. Changes nothing on any server, nor in the pipeline's state. The answers come in the order of the graph,
/// each with its place (`sources.orders`).
pub async fn preflight(pipeline: &Pipeline) -> Vec<(String, Vec<Finding>)> {
    let found = laid_out(pipeline).await;
    let state = found
        .folder
        .as_ref()
        .map_or(&*pipeline.state, TempDir::path);
    let (sources, servers, mut sinks, invariants) = tokio::join!(
        ask_sources(pipeline, state),
        ask_transforms(pipeline),
        ask_sinks(pipeline),
        ask_invariants(pipeline)
    );
    let (mut answers, tables): (Vec<_>, Vec<Tables>) = sources.into_iter().unzip();
    let Rehearsed {
        transforms,
        sinks: unsuited,
    } = in_a_throwaway_state(pipeline, tables).await;
    let names = pipeline.plan.transforms.iter();
    let names = names.map(|node| format!("transforms.{}", node.name));
    let findings = servers.into_iter().zip(transforms);
    let findings = findings.map(|(of_servers, of_tables)| [of_servers, of_tables].concat());
    answers.extend(names.zip(findings));
    for ((_, findings), unsuited) in sinks.iter_mut().zip(unsuited) {
        findings.extend(unsuited);
    }
    answers.extend(sinks);
    answers.extend(invariants);
    answers.extend(
        pipeline
            .lease
            .is_some()
            .then(|| ("lease".to_owned(), found.findings)),
    );
    answers
}

/// What whoever runs the pipeline next would find.
struct Found {
    /// Where that is not the state directory.
    folder: Option<TempDir>,
    findings: Vec<Finding>,
}

/// Looks where the next one would: beside a lease that is not the state directory of this process. The lease itself is not asked for,
/// as only who takes it knows whether it can be had.
async fn laid_out(pipeline: &Pipeline) -> Found {
    let Some(leasing) = &pipeline.lease else {
        return Found {
            folder: None,
            findings: Vec::new(),
        };
    };
    let kept_at = leasing.config.open().map(|leases| leases.kept_at());
    let kept = match kept_at {
        Ok(place) => Finding::pass(
            "lease",
            format!("kept at {place}; it is asked for at the start"),
        ),
        Err(error) => failed("lease", &error),
    };
    let laid_out = async {
        let folder = throwaway()?;
        let known = standby::lay_out_below(pipeline, folder.path()).await?;
        Ok(known.map(|known| (folder, known)))
    };
    let (folder, state) = match laid_out.await {
        Ok(Some((folder, known))) => {
            let of = pipeline.plan.sources.len();
            let detail =
                format!("what {known} of {of} sources remember is kept for whoever takes over");
            (Some(folder), Finding::pass("state", detail))
        }
        Ok(None) => {
            let detail = "in one directory, which all who take turns must have";
            (None, Finding::pass("state", detail))
        }
        Err(error) => (None, failed("state", &error)),
    };
    Found {
        folder,
        findings: vec![kept, state],
    }
}

fn failed(subject: &str, error: &Error) -> Finding {
    let remedy = error.remedy_text().unwrap_or("see the message");
    Finding::fail(subject, error.to_string(), remedy)
}

fn throwaway() -> Result<TempDir> {
    let folder = tempfile::Builder::new().prefix("lockstep-check-").tempdir();
    folder.map_err(|error| {
        Error::new(ErrorKind::Storage, "cannot make a temporary folder")
            .source(error)
            .remedy("set TMPDIR to a folder that can be written")
    })
}

/// Whether the databases understand the queries, and these yield what the rules are about.
async fn ask_invariants(pipeline: &Pipeline) -> Vec<(String, Vec<Finding>)> {
    join_all(pipeline.invariants.iter().map(|declared| async move {
        let invariant = &declared.invariant;
        let findings = in_time(async {
            let rule = invariant.rule.as_str();
            vec![match shaped(pipeline, invariant).await {
                Ok(()) => Finding::pass(rule, "every database understands its query"),
                Err(error) => failed(rule, &error),
            }]
        });
        let place = format!("reconcile.invariants.{}", invariant.name);
        (place, findings.await)
    }))
    .await
}

async fn shaped(pipeline: &Pipeline, invariant: &Invariant) -> Result<()> {
    let mut databases = Vec::new();
    for side in &invariant.sides {
        let at = pipeline
            .plan
            .sources
            .iter()
            .position(|name| *name == side.source);
        let queries = at.map(|at| pipeline.sources[at].queries()).transpose()?;
        databases.extend(queries.flatten());
    }
    let ends = Ends {
        databases: &databases,
        now: &now_micros,
    };
    shape(invariant, ends).await.map(drop)
}

async fn ask_sources(pipeline: &Pipeline, state: &Path) -> Vec<((String, Vec<Finding>), Tables)> {
    let name = &*pipeline.name;
    let sources = pipeline.plan.sources.iter().zip(&pipeline.sources);
    join_all(sources.map(|(node, source)| async move {
        let state = directory(state, "sources", node);
        let findings = in_time(source.preflight(name, node, &state)).await;
        // What keeps it from telling its tables is among the findings.
        let tables = tokio::time::timeout(TIMEOUT, source.tables(node)).await;
        let tables = tables.ok().and_then(Result::ok).flatten();
        ((format!("sources.{node}"), findings), tables)
    }))
    .await
}

async fn ask_transforms(pipeline: &Pipeline) -> Vec<Vec<Finding>> {
    let name = &*pipeline.name;
    let transforms = pipeline.plan.transforms.iter().zip(&pipeline.transforms);
    let asked = transforms.map(|(node, transform)| in_time(transform.preflight(name, &node.name)));
    join_all(asked).await
}

async fn ask_sinks(pipeline: &Pipeline) -> Vec<(String, Vec<Finding>)> {
    let name = &*pipeline.name;
    let sinks = pipeline.plan.sinks.iter().zip(&pipeline.sinks);
    join_all(sinks.map(|(node, sink)| async move {
        let findings = in_time(sink.preflight(name, &node.name)).await;
        (format!("sinks.{}", node.name), findings)
    }))
    .await
}

async fn in_time(findings: impl Future<Output = Vec<Finding>>) -> Vec<Finding> {
    let answer = tokio::time::timeout(TIMEOUT, findings).await;
    answer.unwrap_or_else(|_| {
        let detail = format!("no answer within {} s", TIMEOUT.as_secs());
        vec![Finding::fail(
            "reachable",
            detail,
            "see whether the server is up and the network lets you through",
        )]
    })
}

/// The pipeline's own state may be in use, and is not for a check to touch.
async fn in_a_throwaway_state(pipeline: &Pipeline, tables: Vec<Tables>) -> Rehearsed {
    let rehearsed = async {
        let folder = throwaway()?;
        rehearse(pipeline, tables, folder.path()).await
    };
    rehearsed.await.unwrap_or_else(|error| {
        let finding = failed("tables", &error);
        Rehearsed {
            transforms: vec![vec![finding]; pipeline.plan.transforms.len()],
            sinks: Vec::new(),
        }
    })
}
