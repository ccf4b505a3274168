//! Evaluations of invariants that a running pipeline makes by itself, or is asked for: when, one after the other, and what came
//! of them. They ask the databases directly: whether the stream flows makes no difference.

mod memory;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lockstep_core::query::Queries;
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_reconciler::State;
use lockstep_reconciler::invariants::{Book, Ends, Invariant, InvariantReport, Standing, evaluate};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::source_state::SourceShare;
use super::{lock, now_micros};
use crate::file::DeclaredInvariant;
use crate::metrics::InvariantMetrics;
use memory::Memory;

/// Evaluations that may wait for their turn.
const MOST: usize = 10;
/// Those that were asked for and have ended, that are kept.
const KEPT: usize = 20;
/// Before the first evaluations: sources and sinks have enough to do while they are opened.
const FIRST: Duration = Duration::from_secs(1);

/// What is to be evaluated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InvariantRequest {
    /// This invariant only.
    pub invariant: Option<String>,
}

/// An evaluation that somebody has asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Evaluation {
    /// Its number, counted from 1 since the start of the process.
    pub id: u64,
    /// What was asked for.
    #[serde(flatten)]
    pub request: InvariantRequest,
    /// All have been evaluated, or could not be.
    pub done: bool,
    /// How many there are.
    pub invariants: usize,
    /// Those that have been.
    pub reports: Vec<InvariantReport>,
}

/// What is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InvariantsView {
    /// Names of the invariants, as the file has them.
    pub declared: Vec<String>,
    /// The last evaluation of each that has been evaluated by this process.
    pub latest: Vec<InvariantReport>,
    /// Evaluations that were asked for: those that have ended lately, the one under way, those that wait.
    pub asked: Vec<Evaluation>,
}

/// What evaluations need of a running pipeline.
pub(super) struct Parts {
    pub declared: Vec<DeclaredInvariant>,
    pub sources: Vec<Arc<SourceShare>>,
    pub metrics: InvariantMetrics,
    /// The pipeline stops.
    pub stopping: CancellationToken,
}

#[derive(Default)]
struct Told {
    /// By index of the invariant.
    latest: Vec<Option<InvariantReport>>,
    asked: VecDeque<Evaluation>,
    last: u64,
}

/// What is known of each invariant's keys, by its index, and where that is kept.
struct Known {
    books: Vec<Book>,
    memory: Memory,
}

/// See the module's page. Clones share it.
#[derive(Clone)]
pub(super) struct Invariants {
    parts: Arc<Parts>,
    told: Arc<Mutex<Told>>,
    /// Whoever has it evaluates: one at a time, so that databases answer one query of ours at a time.
    known: Arc<tokio::sync::Mutex<Known>>,
}

impl Invariants {
    /// With what the state directory remembers.
    pub fn new(parts: Parts, state: &Path) -> Self {
        let declared = parts.declared.iter().map(|one| &one.invariant);
        let mut memory = Memory::open(state.join("invariants.json"));
        memory.only(declared.clone());
        let books = declared.map(|invariant| {
            let sources = invariant.sides.iter().map(|side| Arc::clone(&side.source));
            let remembered = memory.of(invariant);
            let told = remembered.keys.iter().filter(|key| key.told).count();
            let verified = remembered.verified_micros;
            parts.metrics.known(&invariant.name, told, verified);
            Book::new(sources.collect(), remembered.keys.clone())
        });
        let known = Known {
            books: books.collect(),
            memory,
        };
        let told = Told {
            latest: vec![None; parts.declared.len()],
            ..Told::default()
        };
        Invariants {
            parts: Arc::new(parts),
            told: Arc::new(Mutex::new(told)),
            known: Arc::new(tokio::sync::Mutex::new(known)),
        }
    }

    /// Begins an evaluation once those before it have ended, and returns its number.
    ///
    /// # Errors
    /// Of kind `Invalid` when there is no such invariant, `Overloaded` when many wait already.
    pub fn begin(&self, request: InvariantRequest) -> Result<u64> {
        let wanted = self.wanted(&request)?;
        let id = {
            let mut told = lock(&self.told);
            if told.asked.iter().filter(|one| !one.done).count() >= MOST {
                let message = format!("{MOST} evaluations wait already");
                return Err(
                    Error::new(ErrorKind::Overloaded, message).remedy("wait until some have ended")
                );
            }
            told.last += 1;
            let id = told.last;
            if told.asked.len() >= KEPT + MOST {
                told.asked.pop_front();
            }
            told.asked.push_back(Evaluation {
                id,
                request,
                done: false,
                invariants: wanted.len(),
                reports: Vec::new(),
            });
            id
        };
        let this = self.clone();
        tokio::spawn(async move {
            let work = async {
                for index in wanted {
                    let report = this.evaluate(index).await;
                    this.change(id, |one| one.reports.push(report));
                }
            };
            tokio::select! {
                biased;
                () = this.parts.stopping.cancelled() => {}
                () = work => {}
            }
            this.change(id, |one| one.done = true);
        });
        Ok(id)
    }

    fn change(&self, id: u64, change: impl FnOnce(&mut Evaluation)) {
        let mut told = lock(&self.told);
        if let Some(one) = told.asked.iter_mut().find(|one| one.id == id) {
            change(one);
        }
    }

    fn wanted(&self, request: &InvariantRequest) -> Result<Vec<usize>> {
        let declared = &self.parts.declared;
        let names: Vec<&str> = declared.iter().map(|one| &*one.invariant.name).collect();
        let wanted: Vec<usize> = match &request.invariant {
            None => (0..declared.len()).collect(),
            Some(name) => names
                .iter()
                .position(|one| one == name)
                .into_iter()
                .collect(),
        };
        if !wanted.is_empty() {
            return Ok(wanted);
        }
        let error = |message: String, remedy: String| {
            Err(Error::new(ErrorKind::Invalid, message).remedy(remedy))
        };
        match &request.invariant {
            Some(name) if !names.is_empty() => error(
                format!("there is no invariant {name}"),
                format!("choose one of {}", names.join(", ")),
            ),
            _ => error(
                "the pipeline has no invariants".to_owned(),
                "declare them as [[reconcile.invariants]] and start it again".to_owned(),
            ),
        }
    }

    /// What is known.
    pub fn view(&self) -> InvariantsView {
        let told = lock(&self.told);
        let names = self.parts.declared.iter();
        InvariantsView {
            declared: names.map(|one| one.invariant.name.to_string()).collect(),
            latest: told.latest.iter().flatten().cloned().collect(),
            asked: told.asked.iter().cloned().collect(),
        }
    }

    /// Evaluates each again and again until the pipeline stops.
    pub async fn run(self) {
        let first = Instant::now() + FIRST;
        let mut due: Vec<Instant> = vec![first; self.parts.declared.len()];
        let work = async {
            while let Some(index) = (0..due.len()).min_by_key(|index| due[*index]) {
                tokio::time::sleep_until(due[index]).await;
                self.evaluate(index).await;
                let next = due[index] + self.parts.declared[index].every.0;
                due[index] = next.max(Instant::now());
            }
        };
        tokio::select! {
            biased;
            () = self.parts.stopping.cancelled() => {}
            () = work => {}
        }
    }

    async fn evaluate(&self, index: usize) -> InvariantReport {
        let mut known = self.known.lock().await;
        let invariant = &self.parts.declared[index].invariant;
        let report = match self.databases(invariant) {
            Ok(databases) => {
                let ends = Ends {
                    databases: &databases,
                    now: &now_micros,
                };
                evaluate(invariant, ends, &mut known.books[index]).await
            }
            Err(error) => InvariantReport {
                state: State::Failed,
                problem: Some(error.to_string()),
                ..InvariantReport::new(invariant, now_micros())
            },
        };
        self.parts.metrics.evaluated(&report);
        let keys = known.books[index].kept();
        known.memory.remember(invariant, &report, keys);
        // It waits for the disk, a moment at most.
        let memory = known.memory.clone();
        let written = tokio::task::spawn_blocking(move || memory.write()).await;
        if let Err(error) = written.unwrap_or_else(|error| Err(error.into())) {
            tracing::warn!(%error, "what is known of invariants cannot be written");
        }
        let before = lock(&self.told).latest[index].replace(report.clone());
        log(&report, before.as_ref());
        report
    }

    /// By side.
    fn databases(&self, invariant: &Invariant) -> Result<Vec<Arc<dyn Queries>>> {
        let sides = invariant.sides.iter().map(|side| {
            let sources = &self.parts.sources;
            let share = sources.iter().find(|share| share.name == side.source);
            let queries = share.map(|share| share.component().queries()).transpose()?;
            queries.flatten().ok_or_else(|| {
                let message = format!("sources.{} has no database to ask", side.source);
                Error::new(ErrorKind::Config, message)
            })
        });
        sides.collect()
    }
}

/// Tells how an evaluation has ended, unless the one before it has ended like this.
fn log(report: &InvariantReport, before: Option<&InvariantReport>) {
    let invariant = &*report.invariant;
    let standing = |one: &InvariantReport| {
        (
            one.violated,
            one.in_doubt,
            one.undecided > 0,
            one.problem.clone(),
        )
    };
    if report.ended > 0 {
        let ended = report.ended;
        tracing::info!(invariant, ended, "violations of the invariant are over");
    }
    if before.map(standing) == Some(standing(report)) {
        return;
    }
    if let Some(problem) = &report.problem {
        tracing::warn!(invariant, problem, "the invariant could not be evaluated");
        return;
    }
    let first = |standing| report.broken.iter().find(|one| one.standing == standing);
    if let Some(first) = first(Standing::Violated) {
        let (keys, key, why) = (report.violated, first.key.join(", "), &*first.why);
        tracing::warn!(invariant, keys, key, why, "the invariant is violated");
    }
    if let Some(first) = first(Standing::InDoubt) {
        let gids = first.waits_for.iter().filter_map(|one| one.gid.as_deref());
        let gids = gids.collect::<Vec<_>>().join(", ");
        let (keys, key) = (report.in_doubt, first.key.join(", "));
        tracing::warn!(
            invariant,
            keys,
            key,
            gids,
            "the invariant does not hold while prepared transactions are not decided"
        );
    }
    if report.undecided > 0 {
        let keys = report.undecided;
        tracing::info!(
            invariant,
            keys,
            "it is not decided whether the invariant holds; it is looked at again"
        );
    }
    if report.holds() {
        tracing::debug!(invariant, keys = report.keys, "the invariant holds");
    }
}
