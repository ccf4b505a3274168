//! Looks at an invariant until all that does not hold is proven, or cannot be for now.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use lockstep_core::error::At as _;
use lockstep_core::query::{Queries, QueryColumn, Question, Row};
use lockstep_core::{Error, ErrorKind, Result};

use super::book::{Book, Found, LOOKS, Moment};
use super::merge::Merge;
use super::report::{Columns, InvariantReport, shown};
use super::rule::Shape;
use super::{Invariant, Key};
use crate::report::State;

/// Looks after the first one, at most.
const AGAIN: u32 = 8;
/// Before the first of them; it doubles.
const PAUSE: Duration = Duration::from_millis(50);
/// The longest.
const LONGEST: Duration = Duration::from_secs(2);
/// Keys that are asked for one by one; more are found by looking at all.
const FEW: usize = 500;

/// The databases of an invariant's sides, in their order, and the time of day.
#[derive(Clone, Copy)]
pub struct Ends<'a> {
    /// By side.
    pub databases: &'a [Arc<dyn Queries>],
    /// Microseconds since the Unix epoch.
    pub now: &'a (dyn Fn() -> i64 + Sync),
}

/// Whether the queries yield what the rule is about, without running them.
///
/// # Errors
/// Of kind `Config` when they do not, with the place; the servers'.
pub async fn shape(invariant: &Invariant, ends: Ends<'_>) -> Result<Shape> {
    let sides = invariant.sides.iter().zip(ends.databases);
    let columns = try_join_all(sides.map(|(side, database)| async move {
        let columns = database
            .describe(&side.query)
            .await
            .at(place(&side.source))?;
        key_first(columns, &invariant.key).at(place(&side.source))
    }));
    Shape::of(invariant, &columns.await?)
}

fn place(source: &str) -> String {
    format!("queries.{source}")
}

fn key_first(mut columns: Vec<QueryColumn>, key: &[String]) -> Result<Vec<QueryColumn>> {
    let mut first = Vec::new();
    for name in key {
        let at = columns.iter().position(|column| column.name == *name);
        let at = at.ok_or_else(|| {
            let message = format!("the query has no column {name}, which is in the key");
            Error::new(ErrorKind::Config, message)
                .remedy("select it, or give a column that name with AS")
        })?;
        first.push(columns.remove(at));
    }
    first.append(&mut columns);
    Ok(first)
}

/// Evaluates it, and says what came of it. `book` is what is known from earlier evaluations. An evaluation that fails leaves what
/// was known.
pub async fn evaluate(invariant: &Invariant, ends: Ends<'_>, book: &mut Book) -> InvariantReport {
    let mut report = InvariantReport::new(invariant, (ends.now)());
    let ended = looks(invariant, ends, book, &mut report).await;
    let now = (ends.now)();
    let counts = book.counts(now, invariant.within);
    report.violated = counts.violated;
    report.in_doubt = counts.in_doubt;
    report.undecided = counts.undecided;
    report.pending = counts.pending;
    report.broken = book.tell(now, invariant.within);
    report.ended_micros = Some(now);
    report.state = match &ended {
        Ok(()) => State::Done,
        Err(_) => State::Failed,
    };
    report.problem = ended.err().map(|error| error.to_string());
    report
}

async fn looks(
    invariant: &Invariant,
    ends: Ends<'_>,
    book: &mut Book,
    report: &mut InvariantReport,
) -> Result<()> {
    look(invariant, ends, None, book, report).await?;
    let mut pause = PAUSE;
    for _ in 0..AGAIN {
        let open = book.open((ends.now)(), invariant.within);
        if open.is_empty() {
            break;
        }
        tokio::time::sleep(pause).await;
        pause = LONGEST.min(pause * 2);
        let only = (open.len() <= FEW).then_some(&open[..]);
        look(invariant, ends, only, book, report).await?;
    }
    Ok(())
}

/// One look, over all keys or some.
async fn look(
    invariant: &Invariant,
    ends: Ends<'_>,
    only: Option<&[Key]>,
    book: &mut Book,
    report: &mut InvariantReport,
) -> Result<()> {
    let opened = ends.databases.iter().zip(&invariant.sides);
    let opened = opened.map(|(database, side)| async {
        let session = database.open(invariant.timeout).await;
        session.at(place(&side.source))
    });
    let mut sessions = try_join_all(opened).await?;
    // Nothing comes between these: the nearer the snapshots, the fewer transactions are seen by half.
    let at_micros = (ends.now)();
    let snapshots = try_join_all(sessions.iter_mut().map(|session| session.freeze())).await?;
    let after = try_join_all(sessions.iter_mut().map(|session| session.in_progress())).await?;
    let moment = Moment {
        at_micros,
        snapshots,
        after: Arc::new(after),
    };
    let begun = sessions.iter_mut().zip(&invariant.sides);
    let begun = begun.map(|(session, side)| async move {
        let question = Question {
            query: &side.query,
            key: &invariant.key,
            only,
        };
        session.begin(&question).await.at(place(&side.source))
    });
    let columns = try_join_all(begun).await?;
    let shape = Shape::of(invariant, &columns)?;
    let names: Columns = columns
        .iter()
        .map(|columns| columns.iter().map(|column| column.name.clone()).collect())
        .collect();
    let sources = invariant.sides.iter().map(|side| Arc::clone(&side.source));
    let mut merge = Merge::new(sources.zip(sessions).collect(), invariant.key.len());
    let wanted: Option<BTreeSet<&Key>> = only.map(|only| only.iter().collect());
    let is_wanted = |key: &Key| wanted.as_ref().is_none_or(|wanted| wanted.contains(key));
    book.begin(only.is_none());
    report.looks += 1;
    let mut keys = 0;
    while let Some(mut group) = merge.next().await? {
        keys += 1;
        if !is_wanted(&group.key) {
            continue;
        }
        let Some(why) = shape.broken(&group.sides)? else {
            continue;
        };
        // They come in the order of their keys only.
        group.sides.iter_mut().for_each(|rows| rows.sort_unstable());
        let (rows, more) = shown(invariant, &names, &group.sides);
        let found = Found {
            digest: digest(&group.sides),
            why,
            rows,
            more,
        };
        book.found(&moment, group.key, found);
    }
    let over = book.end(is_wanted);
    report.ended += over.len() as u64;
    if only.is_none() {
        report.keys = keys;
        let rows = merge.rows();
        report.rows = rows
            .map(|(source, rows)| (source.to_string(), rows))
            .collect();
    }
    Ok(())
}

/// The same in another process of the same version: what is unchanged over a restart is known to be.
fn digest(sides: &[Vec<Row>]) -> u64 {
    let mut hasher = DefaultHasher::new();
    sides.hash(&mut hasher);
    hasher.finish()
}

// Fewer could not prove anything.
const _: () = assert!(AGAIN + 1 >= LOOKS);
