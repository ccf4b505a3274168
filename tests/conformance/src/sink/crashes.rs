//! Promises that hold over crashes: a sink that is dropped anywhere, opened again, and given the rest of a random history.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use lockstep_core::batch::{Batch, Phase};
use lockstep_core::position::{Position, SourceInfo};
use lockstep_core::sink::Sink;

use super::{Bench, Event, Held, Progress, SinkUnderTest, answer, put_ok};
use crate::history::{Random, Row, Step, cut, history, model, positions};

/// Steps of a history.
pub(super) const STEPS: usize = 300;
/// Crashes of a run.
const CRASHES: usize = 15;
/// The seed, when `LOCKSTEP_TEST_SEED` says none.
const SEED: u64 = 42;

pub(super) fn random() -> Random {
    let seed = std::env::var("LOCKSTEP_TEST_SEED").ok();
    Random(
        seed.and_then(|seed| seed.parse().ok())
            .unwrap_or(SEED)
            .max(1),
    )
}

/// A history is written by sinks that are dropped at any moment, in batches cut anywhere. What is resumed from, and what was
/// reported durable, is there; and in the end all is there, once.
///
/// # Panics
/// When it is not.
pub async fn any_crash_goes_on_to_the_right_end(sink: &dyn SinkUnderTest) {
    let bench = Bench::new(sink);
    let mut random = random();
    let history = history(&mut random, STEPS);
    let mut confirmed = None;
    for round in 0..=CRASHES {
        let mut sink = bench.open().await;
        let mut resumed = sink
            .resume(&bench.source)
            .await
            .expect("resume")
            .map(|held| held.upto());
        match bench.under_test.progress() {
            Progress::Atomic => assert!(
                resumed >= confirmed,
                "round {round}: durable up to {confirmed:?}, and resumed from {resumed:?}"
            ),
            // What was durable is not written again, whatever the sink remembers.
            Progress::Behind => resumed = resumed.max(confirmed),
        }
        check(&bench, &history, resumed, round).await;
        let batches = cut(&history, &bench.source, &bench.items, &mut random, resumed);
        if round == CRASHES {
            write_all(sink, batches, &mut random).await;
            break;
        }
        crash(sink, batches, &mut random, &mut confirmed).await;
    }
    match bench.under_test.held(&bench.items).await {
        Held::Rows(rows) => assert_eq!(rows, model(&history, None), "the rows in the end"),
        Held::Events(events) => {
            assert_eq!(
                events_of(&events),
                expected_events(&history, &bench.source, None)
            );
            in_order(&events);
        }
    }
}

/// State sinks: the same history again, from its beginning, in other batches: as rows that were put aside are.
///
/// # Panics
/// When anything changes by it.
pub async fn replays_with_other_cuts_change_nothing(sink: &dyn SinkUnderTest) {
    let bench = Bench::new(sink);
    let mut random = random();
    let mut open = bench.open().await;
    if bench.rows(&bench.items).await.is_none() {
        return open.close().await.expect("closes");
    }
    // Without TRUNCATEs and moves: what such a history had to read may be gone for good when it is read again.
    let history: Vec<(u64, Step)> = history(&mut random, STEPS)
        .into_iter()
        .filter(|(_, step)| !matches!(step, Step::Truncate | Step::Rekey(..)))
        .collect();
    let history = consistent(history);
    let expected = model(&history, None);
    for round in 0..3 {
        for mut batch in cut(&history, &bench.source, &bench.items, &mut random, None) {
            if round > 0
                && let Some(batch) = Arc::get_mut(&mut batch)
            {
                batch.phase = Phase::Replay;
            }
            put_ok(&mut open, batch).await;
        }
        let rows = bench.rows(&bench.items).await;
        assert_eq!(rows.as_ref(), Some(&expected), "round {round}");
        open.close().await.expect("closes");
        open = bench.open().await;
    }
    open.close().await.expect("closes");
}

/// Leaves out steps of rows that are not there, now that others were left out.
fn consistent(history: Vec<(u64, Step)>) -> Vec<(u64, Step)> {
    let mut there = BTreeSet::new();
    let keeps = |(_, step): &(u64, Step)| match step {
        Step::Put(id, _, note) => note.is_some() && there.insert(id.clone()) || there.contains(id),
        Step::Gone(id) => there.remove(id),
        Step::Rekey(..) | Step::Truncate => false,
    };
    history.into_iter().filter(keeps).collect()
}

/// Writes some of the batches and drops the sink in the middle.
async fn crash(
    mut sink: Box<dyn Sink>,
    batches: Vec<Arc<Batch>>,
    random: &mut Random,
    confirmed: &mut Option<Position>,
) {
    let most = 1 + random.below(6) as usize;
    let mut waiting = Vec::new();
    for batch in batches.into_iter().take(most) {
        let last = batch.changes().last().map(|change| batch.position(change));
        waiting.push((last, sink.write(batch).await.expect("taken")));
        if random.below(4) == 0 {
            for (last, durable) in waiting.drain(..) {
                answer(durable).await.expect("durable");
                *confirmed = last.max(*confirmed);
            }
        }
        if random.below(8) == 0 {
            tokio::time::sleep(Duration::from_micros(random.below(20_000))).await;
        }
    }
    if random.below(4) > 0 {
        tokio::time::sleep(Duration::from_micros(random.below(12_000))).await;
    }
    drop(sink);
    // What has been answered by then counts; the others may be there or not.
    for (last, durable) in waiting {
        if answer(durable).await.is_ok() {
            *confirmed = last.max(*confirmed);
        }
    }
}

pub(super) async fn write_all(
    mut sink: Box<dyn Sink>,
    batches: Vec<Arc<Batch>>,
    random: &mut Random,
) {
    let mut waiting = Vec::new();
    for batch in batches {
        waiting.push(sink.write(batch).await.expect("taken"));
        if random.below(10) == 0 {
            for durable in waiting.drain(..) {
                answer(durable).await.expect("durable");
            }
        }
    }
    sink.flush().await.expect("flushes");
    for durable in waiting {
        answer(durable).await.expect("durable after a flush");
    }
    sink.close().await.expect("closes");
}

/// What is held by a sink that resumes from `resumed`.
async fn check(
    bench: &Bench<'_>,
    history: &[(u64, Step)],
    resumed: Option<Position>,
    round: usize,
) {
    let at = Some(resumed.unwrap_or_default());
    let place = format!("round {round}, resumed from {resumed:?}");
    match bench.under_test.held(&bench.items).await {
        Held::Rows(rows) if bench.under_test.progress() == Progress::Atomic => {
            let expected = model(history, at);
            if !bench.under_test.empties_at_once() && empties_next(history, at) {
                for (id, row) in &rows {
                    assert_eq!(Some(row), expected.get(id), "{place}: row {id}");
                }
                return;
            }
            assert_eq!(rows, expected, "{place}");
        }
        // The data may be ahead: only rows that nobody has touched since are known.
        Held::Rows(rows) => {
            let expected = model(history, at);
            let touched = touched_after(history, at);
            let Some(touched) = touched else { return };
            let known = |rows: &BTreeMap<String, Row>| -> BTreeMap<String, Row> {
                let known = rows.iter().filter(|(id, _)| !touched.contains(*id));
                known.map(|(id, row)| (id.clone(), row.clone())).collect()
            };
            assert_eq!(known(&rows), known(&expected), "{place}");
        }
        Held::Events(events) => {
            let expected = expected_events(history, &bench.source, at);
            let told = events_of(&events);
            match bench.under_test.progress() {
                Progress::Atomic => assert_eq!(told, expected, "{place}"),
                Progress::Behind => {
                    let missing: Vec<_> = expected.difference(&told).collect();
                    assert!(missing.is_empty(), "{place}: {missing:?}");
                }
            }
        }
    }
}

/// Whether the step behind a position is a TRUNCATE.
fn empties_next(history: &[(u64, Step)], at: Option<Position>) -> bool {
    let mut behind = positions(history).filter(|(position, _)| Some(*position) > at);
    matches!(behind.next(), Some((_, Step::Truncate)))
}

/// Ids of rows that steps after a position are about; `None` when a TRUNCATE is among them.
fn touched_after(history: &[(u64, Step)], at: Option<Position>) -> Option<BTreeSet<String>> {
    let mut touched = BTreeSet::new();
    for (_, step) in positions(history).filter(|(position, _)| Some(*position) > at) {
        match step {
            Step::Put(id, ..) | Step::Gone(id) => drop(touched.insert(id.clone())),
            Step::Rekey(old, new, _) => touched.extend([old.clone(), new.clone()]),
            Step::Truncate => return None,
        }
    }
    Some(touched)
}

/// Id, operation and key; each must be there once.
pub(super) fn events_of(events: &[Event]) -> BTreeSet<(String, char, String)> {
    let mut told = BTreeSet::new();
    for event in events {
        let key = event.key.get("id").cloned().unwrap_or_default();
        let event = (event.id.clone(), event.op, key);
        assert!(told.insert(event.clone()), "{event:?} is there twice");
    }
    told
}

pub(super) fn expected_events(
    history: &[(u64, Step)],
    source: &SourceInfo,
    until: Option<Position>,
) -> BTreeSet<(String, char, String)> {
    let mut expected = BTreeSet::new();
    for (position, step) in positions(history) {
        if until.is_some_and(|until| position > until) {
            break;
        }
        let mut tell =
            |op, key: &str| expected.insert((source.change_id(position), op, key.to_owned()));
        match step {
            Step::Put(id, ..) => tell('u', id),
            Step::Gone(id) => tell('d', id),
            Step::Rekey(old, new, _) => tell('d', old) && tell('c', new),
            Step::Truncate => tell('t', ""),
        };
    }
    expected
}

/// Events of a key come in the order of their positions.
pub(super) fn in_order(events: &[Event]) {
    let mut last: BTreeMap<&Row, Position> = BTreeMap::new();
    for event in events.iter().filter(|event| event.op != 't') {
        let (_, position) = SourceInfo::parse_change_id(&event.id).expect("an id");
        let before = last.insert(&event.key, position);
        assert!(
            before.is_none_or(|before| before <= position),
            "{:?}: {position:?} behind {before:?}",
            event.key
        );
    }
}
