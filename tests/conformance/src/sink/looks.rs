//! What a reader sees of transactions of several sources while they are written.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lockstep_core::batch::Batch;
use lockstep_core::position::SourceInfo;
use lockstep_core::progress::Progress as Holds;
use lockstep_core::schema::TableSchema;

use super::{Bench, Rows, SinkUnderTest, answer};
use crate::feed::{Feed, V, lsn, source};
use crate::history::items;

/// Transactions that are written.
const ROUNDS: u64 = 60;
/// How many of them a row stays.
const STAYS: u64 = 5;
/// A row that each of them changes, in both sources.
const COUNTER: &str = "0";

/// A transaction of two sources, the same in both: a row comes, one changes, and one goes where `deletes` says so.
fn branch(
    source: &Arc<SourceInfo>,
    table: &Arc<TableSchema>,
    round: u64,
    deletes: bool,
) -> Arc<Batch> {
    let text = round.to_string();
    // More than a server reads at a time, so that others have their turn between two rows.
    let note = "gift".repeat(if deletes { 8_000 } else { 1 });
    let row = |id, status| [V::Text(id), V::Text(status), V::Text(&note)];
    let mut feed = Feed::new(source);
    feed.begin(round * 10).insert(table, &row(&text, "new"));
    match round {
        1 => feed.insert(table, &row(COUNTER, &text)),
        _ => feed.update(table, &row(COUNTER, &text)),
    };
    let gone = round.saturating_sub(STAYS);
    if deletes && gone > 0 {
        feed.delete(table, &gone.to_string());
    }
    feed.finish()
}

/// Whoever looks while transactions of two sources are written, by sinks that are dropped at any moment, sees all of each or nothing.
///
/// # Panics
/// When it sees a part.
pub async fn whoever_looks_sees_branches_together(sink: &dyn SinkUnderTest) {
    if !sink.shows_whole() {
        return;
    }
    let bench = Bench::new(sink);
    let other = source("stock");
    let shelf = items("stock", "shelf");
    let done = AtomicBool::new(false);
    let write = async {
        write_all(&bench, &other, &shelf).await;
        done.store(true, Ordering::Release);
    };
    let ((), looks) = tokio::join!(write, look_until(&bench, &shelf, &done));
    assert!(looks > 0, "it could never be seen");
    let last = one_look(&bench, &shelf)
        .await
        .expect("nothing is under way");
    for rows in last {
        let there: BTreeSet<u64> = rows
            .keys()
            .map(|id| id.parse().expect("a number"))
            .collect();
        let first = match sink.hides_changes() {
            true => 1,
            false => ROUNDS - STAYS + 1,
        };
        assert_eq!(there, (first..=ROUNDS).chain([0]).collect());
        assert_eq!(rows[COUNTER]["status"], ROUNDS.to_string());
    }
}

/// Writes all of them, and drops the sink after every few.
async fn write_all(bench: &Bench<'_>, other: &Arc<SourceInfo>, shelf: &Arc<TableSchema>) {
    let round_of = |held: Option<Holds>| held.map_or(0, |held| held.upto().commit.0 / lsn(10).0);
    let deletes = !bench.under_test.hides_changes();
    let mut drops = 0;
    loop {
        let mut sink = bench
            .try_open(&[&bench.source, other])
            .await
            .expect("opens");
        let first = round_of(sink.resume(&bench.source).await.expect("resume"));
        let second = round_of(sink.resume(other).await.expect("resume"));
        assert!(drops <= 8 * ROUNDS, "it gets nowhere");
        let from = first.min(second);
        let mut durables = Vec::new();
        for round in (from + 1..=ROUNDS).take(4) {
            let branches = [(&bench.source, &bench.items, first), (other, shelf, second)];
            let lacking = branches.into_iter().filter(|(.., held)| *held < round);
            let mut parts: Vec<Arc<Batch>> = lacking
                .map(|(source, table, _)| branch(source, table, round, deletes))
                .collect();
            durables.extend(match parts.len() {
                1 => vec![sink.write(parts.remove(0)).await.expect("taken")],
                _ => sink.write_together(parts).await.expect("taken"),
            });
        }
        if from >= ROUNDS {
            return sink.close().await.expect("closes");
        }
        // Between none and all are answered before it is dropped with others on their way.
        let answered = (drops % 5 * 2) as usize;
        for durable in durables.into_iter().take(answered) {
            answer(durable).await.expect("durable");
        }
        match drops % 4 {
            3 => {
                sink.close().await.expect("closes");
                // A while in which nothing changes: some looks need one.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            _ => {
                tokio::time::sleep(Duration::from_micros(700 * (drops % 7))).await;
                drop(sink);
            }
        }
        drops += 1;
    }
}

/// Looks again and again; returns how often something was seen.
async fn look_until(bench: &Bench<'_>, shelf: &Arc<TableSchema>, done: &AtomicBool) -> usize {
    let mut looks = 0;
    while !done.load(Ordering::Acquire) {
        if let Some(seen) = one_look(bench, shelf).await {
            looks += usize::from(!seen[0].is_empty());
            assert_whole(&seen[0], &seen[1], bench.under_test.hides_changes());
        }
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
    looks
}

async fn one_look(bench: &Bench<'_>, shelf: &Arc<TableSchema>) -> Option<Vec<Rows>> {
    let ids: Vec<String> = (0..=ROUNDS).map(|id| id.to_string()).collect();
    bench.under_test.look(&[&bench.items, shelf], &ids).await
}

fn assert_whole(first: &Rows, second: &Rows, hides_changes: bool) {
    if !hides_changes {
        assert_eq!(first, second, "one branch without the other");
        return;
    }
    let come = |rows: &Rows| -> BTreeSet<String> {
        let keys = rows.keys().filter(|id| *id != COUNTER);
        keys.cloned().collect()
    };
    assert_eq!(come(first), come(second), "one branch without the other");
    if let (Some(first), Some(second)) = (first.get(COUNTER), second.get(COUNTER)) {
        assert_eq!(first, second, "one branch without the other");
    }
}
