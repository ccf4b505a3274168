//! Transactions of several sources that go on together, and ahead of others.

use std::sync::Arc;
use std::time::Duration;

use lockstep_core::batch::Batch;
use lockstep_core::position::Position;
use lockstep_core::progress::{Progress as Holds, Standing};

use super::{Bench, Progress, SinkUnderTest, answer, put_ok};
use crate::feed::{Feed, V, lsn, position, source};
use crate::history::items;

const GIFT: V<'static> = V::Text("gift");

/// All of the transaction that commits there.
fn whole(commit: u64) -> Position {
    Position {
        commit: lsn(commit),
        ordinal: u64::MAX,
    }
}

fn beside(batch: Arc<Batch>, upto: Option<Position>, ahead: &[Position]) -> Arc<Batch> {
    let mut batch = Arc::try_unwrap(batch).expect("nobody else has it");
    batch.standing = Some(Arc::new(Standing {
        upto,
        ahead: ahead.to_vec(),
        ..Standing::default()
    }));
    Arc::new(batch)
}

/// A transaction that goes on before one that committed earlier is remembered, and the one between is not taken for it.
///
/// # Panics
/// When it is not so.
pub async fn what_went_on_ahead_is_known_when_it_is_opened_again(sink: &dyn SinkUnderTest) {
    let bench = Bench::new(sink);
    let batch = |commit: u64| {
        let id = (commit / 10).to_string();
        bench
            .feed()
            .begin(commit)
            .insert(&bench.items, &[V::Text(&id), "new".into(), GIFT])
            .finish()
    };
    let mut sink = bench.open().await;
    put_ok(&mut sink, batch(10)).await;
    put_ok(&mut sink, beside(batch(40), Some(whole(10)), &[])).await;
    sink.close().await.expect("closes");
    let mut sink = bench.open().await;
    let held = sink.resume(&bench.source).await.expect("resume");
    let held = held.expect("something is there");
    assert_eq!(held, Holds::new(whole(10), [position(40, 1)]));
    put_ok(&mut sink, beside(batch(20), Some(whole(10)), &[whole(40)])).await;
    put_ok(&mut sink, beside(batch(30), None, &[whole(40)])).await;
    sink.close().await.expect("closes");
    let mut sink = bench.open().await;
    let held = sink.resume(&bench.source).await.expect("resume");
    let expected = Holds::new(position(30, 1), [whole(40)]);
    assert_eq!(held, Some(expected));
    put_ok(&mut sink, batch(50)).await;
    sink.close().await.expect("closes");
    let mut sink = bench.open().await;
    let held = sink.resume(&bench.source).await.expect("resume");
    assert_eq!(held, Some(position(50, 1).into()));
    sink.close().await.expect("closes");
    let rows = ["1", "2", "3", "4", "5"].map(|id| (id, "new", "gift"));
    let events = ["1", "4", "2", "3", "5"].map(|id| format!("c {id} new gift"));
    let events: Vec<&str> = events.iter().map(String::as_str).collect();
    bench.assert_held(&bench.items, &rows, &events).await;
}

/// A branch that goes on before it commits is remembered by where it was prepared, which lies before or behind what is there, until what goes on does
/// not speak of it any more.
///
/// # Panics
/// When it is not so.
pub async fn what_went_on_early_is_known_when_it_is_opened_again(sink: &dyn SinkUnderTest) {
    let bench = Bench::new(sink);
    let batch = |id: &str, at: u64, is_early: bool| {
        let mut feed = bench.feed();
        let feed = match is_early {
            true => feed.prepare(at),
            false => feed.begin(at),
        };
        let row = [V::Text(id), "new".into(), GIFT];
        feed.insert(&bench.items, &row).finish()
    };
    let with_early = |batch: Arc<Batch>, upto: Option<Position>, early: &[Position]| {
        let standing = Standing {
            upto,
            early: early.to_vec(),
            ..Standing::default()
        };
        Arc::new(batch.with_standing(standing))
    };
    let mut sink = bench.open().await;
    put_ok(&mut sink, batch("1", 10, false)).await;
    let early = batch("2", 20, true);
    put_ok(&mut sink, with_early(early, Some(whole(10)), &[])).await;
    sink.close().await.expect("closes");
    let mut sink = bench.open().await;
    let held = sink.resume(&bench.source).await.expect("resume");
    let expected = Holds::from(whole(10)).and_early([position(20, 1)]);
    assert_eq!(held, Some(expected));
    let passed = batch("3", 30, false);
    put_ok(&mut sink, with_early(passed, None, &[position(20, 1)])).await;
    // It was prepared before what is there, and goes on behind it.
    let early = batch("4", 25, true);
    put_ok(
        &mut sink,
        with_early(early, Some(whole(30)), &[position(20, 1)]),
    )
    .await;
    sink.close().await.expect("closes");
    let mut sink = bench.open().await;
    let held = sink.resume(&bench.source).await.expect("resume");
    let expected = Holds::from(whole(30)).and_early([position(20, 1), position(25, 1)]);
    assert_eq!(held, Some(expected));
    put_ok(&mut sink, batch("5", 50, false)).await;
    sink.close().await.expect("closes");
    let mut sink = bench.open().await;
    let held = sink.resume(&bench.source).await.expect("resume");
    assert_eq!(held, Some(position(50, 1).into()));
    sink.close().await.expect("closes");
    let rows = ["1", "2", "3", "4", "5"].map(|id| (id, "new", "gift"));
    let events = ["1", "2", "3", "4", "5"].map(|id| format!("c {id} new gift"));
    let events: Vec<&str> = events.iter().map(String::as_str).collect();
    bench.assert_held(&bench.items, &rows, &events).await;
}

/// Branches are there together: whenever the sink is dropped, what is opened next has both or neither, where data and progress are
/// one; and in the end, everywhere, each once.
///
/// # Panics
/// When they are not.
pub async fn branches_that_are_written_together_stay_together(sink: &dyn SinkUnderTest) {
    const ROUNDS: u64 = 40;
    let bench = Bench::new(sink);
    let other = source("stock");
    let table = items("stock", "shelf");
    let both = [&bench.source, &other];
    let pair = |round: u64| {
        let id = round.to_string();
        let row = [V::Text(&id), "new".into(), GIFT];
        let first = bench
            .feed()
            .begin(round * 10)
            .insert(&bench.items, &row)
            .finish();
        let second = Feed::new(&other)
            .begin(round * 10)
            .insert(&table, &row)
            .finish();
        vec![first, second]
    };
    let round_of = |held: Option<Holds>| held.map_or(0, |held| held.upto().commit.0 / lsn(10).0);
    let mut drops = 0;
    loop {
        let mut sink = bench.try_open(&both).await.expect("opens");
        let first = round_of(sink.resume(&bench.source).await.expect("resume"));
        let second = round_of(sink.resume(&other).await.expect("resume"));
        if bench.under_test.is_whole() {
            assert_eq!(first, second, "one branch without the other");
        }
        let from = first.min(second);
        assert!(drops <= 8 * ROUNDS, "it gets nowhere");
        if from >= ROUNDS {
            sink.close().await.expect("closes");
            break;
        }
        // Between none and a few are answered before it is dropped with others on their way.
        let answered = drops % 3;
        let mut durables = Vec::new();
        for round in (from + 1..=ROUNDS).take(4) {
            let mut parts = pair(round);
            // Only of a sink that is not whole one may be there without the other.
            if round <= second {
                parts.pop();
            } else if round <= first {
                parts.remove(0);
            }
            let count = parts.len();
            let taken = match count {
                1 => sink
                    .write(parts.remove(0))
                    .await
                    .map(|durable| vec![durable]),
                _ => sink.write_together(parts).await,
            };
            let taken = taken.expect("taken");
            assert_eq!(taken.len(), count, "a receipt for each");
            durables.extend(taken);
        }
        for durable in durables.into_iter().take(2 * answered as usize) {
            answer(durable).await.expect("durable");
        }
        if drops % 4 == 3 {
            sink.close().await.expect("closes");
        } else {
            tokio::time::sleep(Duration::from_micros(300 * (drops % 7))).await;
            drop(sink);
        }
        drops += 1;
    }
    for (table, name) in [(&bench.items, "items"), (&table, "shelf")] {
        let ids = bench.ids_of(table).await;
        let all: Vec<u64> = (1..=ROUNDS).collect();
        let mut there: Vec<u64> = ids.iter().map(|id| id.parse().expect("a number")).collect();
        if bench.under_test.progress() == Progress::Behind {
            // What is written again changes nothing.
            there.sort_unstable();
            there.dedup();
        }
        assert_eq!(there, all, "{name}");
    }
}
