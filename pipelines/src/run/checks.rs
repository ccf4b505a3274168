//! Checks on their way: rows that lanes compare with their sinks instead of writing them, and what the lanes say.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use lockstep_core::batch::{Batch, Op};
use lockstep_core::position::Position;
use lockstep_core::schema::TableSchema;
use lockstep_core::sink::{Held, Inspect, Listing};
use lockstep_core::source::{CheckRequest, CheckRows, Checks, Purpose, Sample};
use lockstep_core::transform::Comparable;
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_reconciler::{Answer, Compared, Ends, Outcome, Sent, Verdict};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::aside::Aside;
use super::inspector::Walk;
use super::lane_state::LaneState;
use super::lock;
use super::source_state::SourceShare;
use crate::registry::SinkComponent;
use crate::status::SinkPhase;

/// A check as a lane gets it.
#[derive(Clone, Debug)]
pub(super) struct Check {
    /// Which one.
    pub number: u64,
    /// The rows that are for this sink, if any.
    pub batch: Option<Arc<Batch>>,
    /// Why it did not come through the transforms.
    pub failed: Option<Error>,
}

/// Where lanes answer.
#[derive(Default)]
pub(super) struct CheckDesk {
    last: AtomicU64,
    waiting: Mutex<HashMap<u64, Waiting>>,
}

struct Waiting {
    answers: mpsc::UnboundedSender<Answer>,
    /// The sinks that are asked.
    sinks: Vec<Arc<str>>,
}

impl CheckDesk {
    /// A number for a check of these sinks, and the answers to it.
    fn open(&self, sinks: Vec<Arc<str>>) -> (u64, mpsc::UnboundedReceiver<Answer>) {
        let number = 1 + self.last.fetch_add(1, Ordering::Relaxed);
        let (answers, receiver) = mpsc::unbounded_channel();
        lock(&self.waiting).insert(number, Waiting { answers, sinks });
        (number, receiver)
    }

    /// Whether a sink is asked. None is once nobody waits any more.
    pub fn asks(&self, number: u64, sink: &str) -> bool {
        let waiting = lock(&self.waiting);
        let waiting = waiting.get(&number);
        waiting.is_some_and(|waiting| waiting.sinks.iter().any(|asked| **asked == *sink))
    }

    fn close(&self, number: u64) {
        lock(&self.waiting).remove(&number);
    }

    /// A lane has looked.
    pub fn answer(&self, number: u64, sink: &Arc<str>, outcome: Outcome) {
        if let Some(waiting) = lock(&self.waiting).get(&number) {
            let sink = Arc::clone(sink);
            // Whoever asked may have gone.
            let _ = waiting.answers.send(Answer { sink, outcome });
        }
    }
}

/// Compares the rows of a check with what a sink holds. `is_alone` says of a table of the sink whether rows of one table of the
/// database come to it and no others: else a row that must not be there may be another table's.
///
/// # Errors
/// When the sink cannot be read.
pub(super) async fn compare(
    inspector: &mut dyn Inspect,
    batch: &Batch,
    aside: &Aside,
    is_alone: impl Fn(&TableSchema) -> bool,
) -> Result<Outcome> {
    let held = inspector.compare(batch).await?;
    if held.len() != batch.changes().len() {
        let message = format!(
            "the sink was asked for {} rows, and answered for {}",
            batch.changes().len(),
            held.len()
        );
        return Err(Error::new(ErrorKind::Protocol, message));
    }
    let mut different = Vec::new();
    for (change, held) in batch.changes().iter().zip(held) {
        let may_be_others = matches!(held, Held::Extra { .. }) && !is_alone(batch.schema(change));
        if held != Held::Same && !may_be_others {
            different.push(Verdict {
                ordinal: change.ordinal,
                held,
                aside: aside.has(batch, change)?,
            });
        }
    }
    let rows = batch
        .changes()
        .iter()
        .filter(|change| change.op == Op::Read);
    Ok(Outcome::Compared {
        rows: rows.count() as u64,
        different,
    })
}

/// Whether no rows of another table of the database come to the same table of a sink.
pub(super) fn is_alone(tables: &[Arc<TableSchema>], table: &TableSchema) -> bool {
    !tables.iter().any(|other| {
        other.source == table.source && other.id == table.id && other.origin != table.origin
    })
}

/// How long sinks are waited for that have not been open since the start.
const OPENING: Duration = Duration::from_secs(30);
/// How often it is looked whether answers can still come.
const LOOK: Duration = Duration::from_secs(1);
/// The position of nothing: every letter is before it.
pub(super) const LAST: Position = Position {
    commit: lockstep_core::position::Lsn(u64::MAX),
    ordinal: u64::MAX,
};

/// A table of a source, and the sinks that it reaches.
pub(super) struct Route {
    pub desk: Arc<CheckDesk>,
    pub source: Arc<SourceShare>,
    /// Of the source.
    pub index: usize,
    /// `schema.table`.
    pub table: String,
    /// Rows can be told apart; else none can be compared.
    pub has_key: bool,
    /// The lanes of the source, and what opens their sinks.
    pub lanes: Vec<(Arc<LaneState>, Arc<dyn SinkComponent>)>,
    /// The sinks that are asked for; all when there are none.
    pub wanted: Option<String>,
    /// What rows must meet to be compared.
    pub condition: Option<String>,
    /// Only some of them.
    pub sample: Option<Sample>,
    /// When the request was looked at.
    pub since: Instant,
}

impl Route {
    /// The tables of a sink that hold rows of this one, and how far they can be compared.
    fn tables_in(&self, lane: &LaneState) -> (Vec<Arc<TableSchema>>, Comparable) {
        let Some(reached) = lane.reached_by(self.index) else {
            return (Vec::new(), Comparable::Fully);
        };
        let ours = reached.tables.iter();
        let ours = ours.filter(|table| table.origin.to_string() == self.table);
        let tables: Vec<Arc<TableSchema>> = ours.cloned().collect();
        let compares = tables
            .first()
            .and_then(|table| reached.compares.get(&table.origin));
        (tables, compares.copied().unwrap_or_default())
    }

    /// Whether these can be keys of the table.
    ///
    /// # Errors
    /// Of kind `Invalid`, naming the first that cannot.
    pub fn accept(&self, keys: &[Vec<String>]) -> Result<()> {
        let lanes = self.lanes.iter().map(|(lane, _)| lane);
        let table = lanes.flat_map(|lane| self.tables_in(lane).0).next();
        let Some(table) = table else {
            return Ok(());
        };
        let Some(other) = keys.iter().find(|key| key.len() != table.key.len()) else {
            return Ok(());
        };
        let columns: Vec<&str> = table.key_columns().map(|column| &*column.name).collect();
        let message = format!(
            "{other:?} is no key of {}, which has the key columns {}",
            self.table,
            columns.join(", ")
        );
        Err(Error::new(ErrorKind::Invalid, message)
            .remedy("give the value of each, in this order: `--key 17`, `--key '[\"17\",\"a\"]'`"))
    }

    fn lane(&self, sink: &str) -> Option<&(Arc<LaneState>, Arc<dyn SinkComponent>)> {
        self.lanes.iter().find(|(lane, _)| *lane.name == *sink)
    }

    /// What a sink says that need not be asked.
    fn without_asking(&self, sink: &str) -> Option<Outcome> {
        let (lane, _) = self.lane(sink)?;
        if self.tables_in(lane).1 == Comparable::Not {
            return Some(Outcome::Unreadable);
        }
        let view = lane.view();
        (view.phase != SinkPhase::Running).then(|| {
            let problem = view.problem.clone();
            let problem = problem.unwrap_or_else(|| "the sink is not open".to_owned());
            Outcome::Failed(Error::new(ErrorKind::Unavailable, problem))
        })
    }

    /// Lets a sink read what it has to, so that its lane does not stand still for it.
    async fn prepare(&self, sink: &str) -> Result<()> {
        let Some((lane, component)) = self.lane(sink) else {
            return Ok(());
        };
        let Some(context) = lane.context() else {
            return Ok(());
        };
        let opened = lane.inspectors.get(component.as_ref(), context).await?;
        let Some(inspector) = opened else {
            return Ok(());
        };
        // While the lane compares it has what it needs.
        if let Ok(mut inspector) = inspector.try_lock() {
            for table in self.tables_in(lane).0 {
                inspector.prepare(&table).await?;
            }
        }
        Ok(())
    }

    /// Right behind a start sinks are about to be open: that is waited for, and no longer than it takes most times.
    ///
    /// # Errors
    /// Of kind `Unavailable` while it is.
    fn require_tried(&self, sinks: &[Arc<str>]) -> Result<()> {
        let opens = |sink: &&Arc<str>| {
            let lane = self.lane(sink);
            lane.is_some_and(|(lane, _)| lane.view().phase == SinkPhase::Opening)
        };
        match sinks.iter().find(opens) {
            Some(sink) if self.since.elapsed() < OPENING => {
                let message = format!("sinks.{sink} is being opened");
                Err(Error::new(ErrorKind::Unavailable, message))
            }
            _ => Ok(()),
        }
    }

    fn checks(&self) -> Result<Arc<dyn Checks>> {
        self.source
            .checks()
            .ok_or_else(|| match self.source.info() {
                None => Error::new(ErrorKind::Unavailable, "the source is not open yet"),
                Some(_) => Error::new(ErrorKind::Setup, "sources of this type cannot be compared"),
            })
    }

    fn is_still(&self, checks: &Arc<dyn Checks>) -> bool {
        let now = self.source.checks();
        now.is_some_and(|now| Arc::ptr_eq(&now, checks))
    }

    /// Waits for what these sinks say, and puts it behind what is known already.
    async fn answers(
        &self,
        checks: &Arc<dyn Checks>,
        mut asked: Vec<Arc<str>>,
        mut answered: mpsc::UnboundedReceiver<Answer>,
        mut answers: Vec<Answer>,
    ) -> Result<Vec<Answer>> {
        while !asked.is_empty() {
            match tokio::time::timeout(LOOK, answered.recv()).await {
                Ok(Some(answer)) => {
                    asked.retain(|sink| *sink != answer.sink);
                    answers.push(answer);
                }
                // The source has been opened anew: what it had handed on may have gone with it.
                Err(_) if !self.is_still(checks) => return Err(interrupted()),
                // One that has failed meanwhile looks at it when it is open again, which nobody waits for.
                Err(_) => asked.retain(|sink| {
                    let failed = self.without_asking(sink).map(|outcome| Answer {
                        sink: Arc::clone(sink),
                        outcome,
                    });
                    let waits = failed.is_none();
                    answers.extend(failed);
                    waits
                }),
                Ok(None) => return Err(interrupted()),
            }
        }
        Ok(answers)
    }

    fn is_wanted(&self, sink: &str) -> bool {
        self.wanted.as_deref().is_none_or(|wanted| wanted == sink)
    }
}

#[async_trait]
impl Ends for Route {
    fn sinks(&self) -> Vec<Arc<str>> {
        let lanes = self.lanes.iter().map(|(lane, _)| lane);
        let reached =
            lanes.filter(|lane| self.is_wanted(&lane.name) && !self.tables_in(lane).0.is_empty());
        reached.map(|lane| Arc::clone(&lane.name)).collect()
    }

    async fn repair(&self, keys: Vec<Vec<String>>, sink: &Arc<str>) -> Result<Compared> {
        let checks = self.checks()?;
        let only = std::slice::from_ref(sink);
        let (number, _) = self.desk.open(only.to_vec());
        // Rows on their way through the transforms are for whom it names: until they are compared behind them.
        let _closed = Closed(&self.desk, number);
        let request = CheckRequest {
            number,
            purpose: Purpose::Repair,
            table: self.table.clone(),
            rows: CheckRows::Keys(keys.clone()),
            condition: None,
            sample: None,
        };
        checks.check(request).await?;
        self.check(CheckRows::Keys(keys), only).await
    }

    async fn send<'a>(&'a self, rows: CheckRows, sinks: &[Arc<str>]) -> Result<Sent<'a>> {
        let checks = self.checks()?;
        self.require_tried(sinks)?;
        let mut answers = Vec::new();
        let mut asked = Vec::new();
        for sink in sinks {
            match self.without_asking(sink) {
                Some(outcome) => answers.push(Answer {
                    sink: Arc::clone(sink),
                    outcome,
                }),
                None => match self.prepare(sink).await {
                    Ok(()) => asked.push(Arc::clone(sink)),
                    Err(error) => answers.push(Answer {
                        sink: Arc::clone(sink),
                        outcome: Outcome::Failed(error),
                    }),
                },
            }
        }
        let (number, answered) = self.desk.open(asked.clone());
        let closed = Closed(&self.desk, number);
        // Keys are looked at because of what they are.
        let (condition, sample) = match &rows {
            CheckRows::Behind(_) => (self.condition.clone(), self.sample),
            CheckRows::Keys(_) | CheckRows::Absent(_) => (None, None),
        };
        let request = CheckRequest {
            number,
            purpose: Purpose::Compare,
            table: self.table.clone(),
            rows,
            condition,
            sample,
        };
        let checked = checks.check(request).await?;
        if checked.keys.is_empty() {
            asked.clear();
        }
        let answers = Box::pin(async move {
            let _closed = closed;
            self.answers(&checks, asked, answered, answers).await
        });
        Ok(Sent { checked, answers })
    }

    async fn list(&self, sink: &str) -> Result<Vec<Box<dyn Listing>>> {
        let Some((lane, component)) = self.lane(sink) else {
            return Ok(Vec::new());
        };
        let (tables, compares) = self.tables_in(lane);
        // A sink cannot tell which of the rows that it has would meet a condition.
        let all = self.condition.is_none() && self.sample.is_none();
        if compares != Comparable::Fully || !all {
            return Ok(Vec::new());
        }
        let context = lane
            .context()
            .ok_or_else(|| Error::new(ErrorKind::Unavailable, "the sink is not open"))?;
        let all = context.tables.clone();
        if !tables.iter().all(|table| is_alone(&all, table)) {
            return Ok(Vec::new());
        }
        let mut listings = Vec::new();
        let opened = lane.inspectors.get(component.as_ref(), context).await?;
        if let Some(inspector) = opened {
            let mut inspector = inspector.lock().await;
            for table in &tables {
                let listing = inspector.list(table).await?;
                listings.extend(listing.map(|listing| {
                    let inspectors = Arc::clone(&lane.inspectors);
                    Box::new(Walk {
                        listing,
                        inspectors,
                    }) as Box<dyn Listing>
                }));
            }
        }
        Ok(listings)
    }
}

fn interrupted() -> Error {
    Error::new(ErrorKind::Unavailable, "the stream was interrupted")
}

/// Ends the waiting for a check, however it ended.
struct Closed<'a>(&'a CheckDesk, u64);

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.0.close(self.1);
    }
}
