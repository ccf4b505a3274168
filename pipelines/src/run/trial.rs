//! Sends the examples of a pipeline file through its transforms, and compares what comes of them.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lockstep_core::batch::{Batch, Change, Row};
use lockstep_core::error::At;
use lockstep_core::schema::TableSchema;
use lockstep_core::transform::DeadLetters;
use lockstep_core::{Error, ErrorKind, Result};

use super::flow::Flow;
use super::lane_state::LaneState;
use super::lock;
use super::supervisor::open_transforms;
use crate::examples::came::{Came, Line, compare};
use crate::examples::table::{Feed, named, schema};
use crate::examples::{DEAD_LETTERS, Table, Test};
use crate::file::{Pipeline, nearest};
use crate::metrics::Metrics;

/// A transform that has not answered by then waits for a server.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How a test has gone.
#[derive(Clone, Debug)]
pub struct Tested {
    /// Its name.
    pub name: String,
    /// What was expected beside what came, for each node that is named.
    pub seen: Vec<Seen>,
    /// Why it could not be gone through with.
    pub error: Option<Error>,
}

/// What was seen of one node.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The sink or transform.
    pub node: String,
    /// In order.
    pub lines: Vec<Line>,
}

impl Tested {
    /// Whether all is as expected.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        let mut lines = self.seen.iter().flat_map(|seen| &seen.lines);
        self.error.is_none() && lines.all(|line| matches!(line, Line::Same(_)))
    }
}

/// Runs the tests of a file, each by itself. No source and no sink is asked.
///
/// # Errors
/// Of kind `Config`: a test that cannot be understood.
pub async fn test(pipeline: &Pipeline) -> Result<Vec<Tested>> {
    let mut tested = Vec::new();
    let mut tables: &[Table] = &[];
    for test in &pipeline.tests {
        if !test.tables.is_empty() {
            tables = &test.tables;
        }
        let place = || format!("tests: {}", test.name);
        let trial = Trial::new(pipeline, test, tables).at(place())?;
        let folder = tempfile::Builder::new().prefix("lockstep-test-").tempdir();
        let folder = folder.map_err(|error| {
            Error::new(ErrorKind::Storage, "cannot make a temporary folder")
                .source(error)
                .remedy("set TMPDIR to a folder that can be written")
        })?;
        let went = tokio::time::timeout(TIMEOUT, trial.run(folder.path())).await;
        let went = went.unwrap_or_else(|_| {
            Err(
                Error::new(ErrorKind::Unavailable, "a transform waits for a server")
                    .remedy("test it without: `dedupe` with its embedded store, for one"),
            )
        });
        let (seen, error) = match went {
            Ok(seen) => (seen, None),
            Err(error) => (Vec::new(), Some(error)),
        };
        tested.push(Tested {
            name: test.name.clone(),
            seen,
            error,
        });
    }
    Ok(tested)
}

/// A test that has been understood.
struct Trial<'a> {
    pipeline: &'a Pipeline,
    test: &'a Test,
    tables: Vec<Arc<TableSchema>>,
    /// In the order of the file; what follows of one source goes together.
    batches: Vec<Batch>,
    /// Of what is expected and does not say.
    table: String,
}

/// Keeps what transforms put aside.
#[derive(Default)]
struct Aside(Mutex<Vec<Came>>);

impl DeadLetters for Aside {
    fn keep(
        &self,
        _: &str,
        _: &str,
        batch: &Batch,
        change: &Change,
        _: Option<Row<'_>>,
    ) -> Result<()> {
        lock(&self.0).push(Came::of(batch, change));
        Ok(())
    }
}

impl<'a> Trial<'a> {
    fn new(pipeline: &'a Pipeline, test: &'a Test, tables: &[Table]) -> Result<Self> {
        let sources = &pipeline.plan.sources;
        let tables: Vec<Arc<TableSchema>> = tables
            .iter()
            .map(|table| schema(table, sources).at(table.table.clone()))
            .collect::<Result<_>>()?;
        let only = match tables.as_slice() {
            [only] => only.id.to_string(),
            _ => String::new(),
        };
        let trial = Trial {
            batches: batches(test, &tables, sources)?,
            pipeline,
            test,
            tables,
            table: only,
        };
        trial.expects_what_there_is()?;
        Ok(trial)
    }

    fn expects_what_there_is(&self) -> Result<()> {
        let plan = &self.pipeline.plan;
        let nodes = plan.transforms.iter().chain(&plan.sinks);
        let names: Vec<&str> = nodes
            .map(|node| &*node.name)
            .chain([DEAD_LETTERS])
            .collect();
        for (node, expected) in &self.test.expect {
            if !names.contains(&node.as_str()) {
                let near = nearest(node, names.iter().copied());
                let remedy = near.map_or_else(
                    || format!("there are {}", names.join(", ")),
                    |near| format!("write `{near}`"),
                );
                let problem = format!("`expect`: there is no sink or transform `{node}`");
                return Err(Error::new(ErrorKind::Config, problem).remedy(remedy));
            }
            if self.table.is_empty() && expected.iter().any(|example| example.table.is_none()) {
                let problem =
                    format!("`expect`: a change at `{node}` does not say of which table it is");
                return Err(Error::new(ErrorKind::Config, problem).remedy("add `table`"));
            }
        }
        Ok(())
    }

    async fn run(self, state: &Path) -> Result<Vec<Seen>> {
        let plan = &self.pipeline.plan;
        let metrics = Metrics::new(plan)?;
        let aside = Arc::new(Aside::default());
        let letters = Arc::clone(&aside) as Arc<dyn DeadLetters>;
        let nodes = open_transforms(self.pipeline, state, &letters, &metrics).await?;
        let lanes: Vec<_> = plan
            .sinks
            .iter()
            .map(|sink| Arc::new(LaneState::new(Arc::clone(&sink.name), Vec::new())))
            .collect();
        let mut flows = Vec::new();
        for (source, name) in plan.sources.iter().enumerate() {
            let pipeline = Arc::clone(&self.pipeline.name);
            let flow = Flow::new(pipeline, plan, source, &nodes, &lanes, Arc::default());
            let of_source = |table: &&Arc<TableSchema>| table.source == *name;
            let tables = self.tables.iter().filter(of_source).cloned().collect();
            let mut refused = None;
            flow.try_bind(tables, |_, table, error| {
                // A test has the tables that it is about, and says nothing of others.
                if table.is_some() {
                    refused.get_or_insert(error);
                }
            })
            .await;
            match refused {
                None => flows.push(flow),
                Some(error) => return Err(error),
            }
        }
        let mut came: Vec<(Arc<str>, Vec<Came>)> = Vec::new();
        for batch in self.batches {
            let flow = plan
                .sources
                .iter()
                .position(|name| *name == batch.source.name);
            let Some(flow) = flow.map(|source| &flows[source]) else {
                continue;
            };
            for (node, made) in flow.looked_at(batch).await? {
                let changes = made.iter().flat_map(|batch| {
                    batch
                        .changes()
                        .iter()
                        .map(move |change| Came::of(batch, change))
                });
                match came.iter_mut().find(|(name, _)| *name == node) {
                    Some((_, known)) => known.extend(changes),
                    None => came.push((node, changes.collect())),
                }
            }
        }
        came.push((DEAD_LETTERS.into(), std::mem::take(&mut *lock(&aside.0))));
        let mut seen: Vec<Seen> = self
            .test
            .expect
            .iter()
            .map(|(node, expected)| {
                let found = came.iter().find(|(name, _)| **name == **node);
                let came = found.map_or(&[][..], |(_, came)| came.as_slice());
                Seen {
                    node: node.clone(),
                    lines: compare(expected, came, &self.table),
                }
            })
            .collect();
        let lies_aside = came.iter().find(|(name, _)| **name == *DEAD_LETTERS);
        if let Some((_, aside)) = lies_aside
            && !aside.is_empty()
            && !self.test.expect.contains_key(DEAD_LETTERS)
        {
            seen.push(Seen {
                node: DEAD_LETTERS.to_owned(),
                lines: compare(&[], aside, &self.table),
            });
        }
        Ok(seen)
    }
}

fn batches(test: &Test, tables: &[Arc<TableSchema>], sources: &[Arc<str>]) -> Result<Vec<Batch>> {
    let mut batches = Vec::new();
    let mut open: Option<(Arc<str>, Feed)> = None;
    for (index, example) in test.input.iter().enumerate() {
        let place = || format!("`input`, change {}", index + 1);
        let schema = match (&example.table, tables) {
            (None, [only]) => only,
            (None, _) => {
                return Err(
                    Error::new(ErrorKind::Config, "it does not say of which table it is")
                        .remedy("add `table`; the test, or one before it, declares `tables`")
                        .at(place()),
                );
            }
            (Some(name), tables) => {
                let (source, id) = named(name, sources).at(place())?;
                let found = tables
                    .iter()
                    .find(|table| *table.source == *source && table.id == id);
                found.ok_or_else(|| {
                    Error::new(
                        ErrorKind::Config,
                        format!("the table `{name}` is not declared"),
                    )
                    .remedy("add it to `tables` of the test")
                    .at(place())
                })?
            }
        };
        if let Some((_, feed)) = open.take_if(|(source, _)| *source != schema.source) {
            batches.push(feed.finish());
        }
        let (_, feed) =
            open.get_or_insert_with(|| (Arc::clone(&schema.source), Feed::new(&schema.source)));
        feed.push(schema, example, index as u64 + 1).at(place())?;
    }
    batches.extend(open.map(|(_, feed)| feed.finish()));
    Ok(batches)
}
