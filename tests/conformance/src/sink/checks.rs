//! Promises that take no crash to be broken.

use std::sync::Arc;

use lockstep_core::batch::Batch;
use lockstep_core::position::SourceInfo;
use lockstep_core::sink::Sink;
use lockstep_core::{Error, ErrorKind};

use super::{Bench, Progress, SinkUnderTest, answer, put, put_ok};
use crate::feed::{Feed, V, lsn, position, source};

const GIFT: V<'static> = V::Text("gift");

/// What was durable before it was closed is what the next one resumes from; another log has another position.
///
/// # Panics
/// When it is not.
pub async fn a_reopened_sink_knows_what_it_has(sink: &dyn SinkUnderTest) {
    let bench = Bench::new(sink);
    let mut sink = bench.open().await;
    let fresh = sink
        .resume(&bench.source)
        .await
        .expect("resume")
        .map(|held| held.upto());
    assert_eq!(fresh, None, "nothing was written yet");
    let batch = bench
        .feed()
        .begin(10)
        .insert(&bench.items, &["1".into(), "new".into(), GIFT])
        .begin(20)
        .insert(&bench.items, &["2".into(), "new".into(), GIFT])
        .insert(&bench.items, &["3".into(), "new".into(), GIFT])
        .finish();
    put_ok(&mut sink, batch).await;
    sink.flush().await.expect("flushes");
    sink.close().await.expect("closes");
    let mut sink = bench.open().await;
    let resumed = sink
        .resume(&bench.source)
        .await
        .expect("resume")
        .map(|held| held.upto());
    assert_eq!(resumed, Some(position(20, 2)));
    let mut other = SourceInfo::clone(&bench.source);
    other.identity.timeline += 1;
    let resumed = sink
        .resume(&other)
        .await
        .expect("resume")
        .map(|held| held.upto());
    assert_eq!(resumed, None, "positions of another log mean nothing");
    sink.close().await.expect("closes");
}

/// When a receipt is answered, so are all before it, and their changes are there.
///
/// # Panics
/// When they are not.
pub async fn receipts_cover_everything_before_them(sink: &dyn SinkUnderTest) {
    let bench = Bench::new(sink);
    let mut sink = bench.open().await;
    let mut durables = Vec::new();
    for commit in 1..=40_u64 {
        let batch = bench
            .feed()
            .begin(commit * 10)
            .insert(
                &bench.items,
                &[V::Text(&commit.to_string()), "new".into(), GIFT],
            )
            .finish();
        durables.push(sink.write(batch).await.expect("taken"));
    }
    let last = durables.pop().expect("some");
    answer(last).await.expect("durable, without a flush");
    for mut durable in durables.into_iter().rev() {
        // No patience: it must be there.
        let answer = futures_ready(&mut durable).expect("an earlier receipt is answered by then");
        answer.expect("durable");
    }
    let held = bench.ids().await.len();
    assert_eq!(held, 40);
    sink.close().await.expect("closes");
}

fn futures_ready<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::Pin::new(future).poll(&mut context) {
        std::task::Poll::Ready(output) => Some(output),
        std::task::Poll::Pending => None,
    }
}

/// Silence is not success: a sink that is dropped answers what it has taken, and says `Ok` of nothing that is not there.
///
/// # Panics
/// When a receipt is never answered, or is wrong.
pub async fn every_receipt_of_a_dropped_sink_is_answered(sink: &dyn SinkUnderTest) {
    let bench = Bench::new(sink);
    let mut sink = bench.open().await;
    let mut durables = Vec::new();
    for commit in 1..=30_u64 {
        let id = commit.to_string();
        let batch = bench
            .feed()
            .begin(commit * 10)
            .insert(&bench.items, &[V::Text(&id), "new".into(), GIFT])
            .finish();
        durables.push((commit, sink.write(batch).await.expect("taken")));
    }
    drop(sink);
    let mut durable = Vec::new();
    for (commit, receipt) in durables {
        if answer(receipt).await.is_ok() {
            durable.push(commit);
        }
    }
    let mut sink = bench.open().await;
    let resumed = sink
        .resume(&bench.source)
        .await
        .expect("resume")
        .map(|held| held.upto());
    if bench.under_test.progress() == Progress::Atomic {
        let reached = durable.last().map(|commit| position(commit * 10, 1));
        assert!(
            resumed >= reached,
            "durable up to {reached:?}, and resumed from {resumed:?}"
        );
    }
    let held = bench.ids().await;
    for commit in durable {
        assert!(held.contains(&commit.to_string()), "{commit} was durable");
    }
    sink.close().await.expect("closes");
}

/// INSERT, UPDATE, DELETE, and an UPDATE of the key.
///
/// # Panics
/// When they are not what is held.
pub async fn rows_come_change_move_and_go(sink: &dyn SinkUnderTest) {
    let bench = Bench::new(sink);
    let mut sink = bench.open().await;
    let mut feed = bench.feed();
    feed.begin(10);
    for id in ["1", "2", "3"] {
        feed.insert(&bench.items, &[V::Text(id), "new".into(), GIFT]);
    }
    put_ok(&mut sink, feed.finish()).await;
    let batch = bench
        .feed()
        .begin(20)
        .update(&bench.items, &["1".into(), "paid".into(), V::Null])
        .delete(&bench.items, "2")
        .rekey(&bench.items, "3", &["33".into(), "moved".into(), GIFT])
        .finish();
    put_ok(&mut sink, batch).await;
    sink.close().await.expect("closes");
    if let Some(rows) = bench.rows(&bench.items).await {
        assert_eq!(rows.keys().collect::<Vec<_>>(), ["1", "33"]);
        assert_eq!(rows["1"].get("status").map(String::as_str), Some("paid"));
        assert_eq!(rows["1"].get("note"), None, "NULL");
        assert_eq!(rows["33"], crate::history::row("33", "moved", "gift"));
    }
    let Some(events) = bench.events(&bench.items).await else {
        return;
    };
    let told: Vec<String> = events.iter().map(|event| event.told()).collect();
    let expected = [
        "c 1 new gift",
        "c 2 new gift",
        "c 3 new gift",
        "u 1 paid",
        "d 2",
        "d 3",
        "c 33 moved gift",
    ];
    assert_eq!(told, expected);
    let ids: Vec<&str> = events.iter().map(|event| &*event.id).collect();
    let places = [
        (10, 1),
        (10, 2),
        (10, 3),
        (20, 1),
        (20, 2),
        (20, 3),
        (20, 3),
    ];
    let expected =
        places.map(|(commit, ordinal)| bench.source.change_id(position(commit, ordinal)));
    assert_eq!(ids, expected);
}

/// Two rows take each other's keys by way of a third.
///
/// # Panics
/// When they have not.
pub async fn keys_are_exchanged_in_one_transaction(sink: &dyn SinkUnderTest) {
    let bench = Bench::new(sink);
    let mut sink = bench.open().await;
    let batch = bench
        .feed()
        .begin(10)
        .insert(&bench.items, &["1".into(), "one".into(), "first".into()])
        .insert(&bench.items, &["2".into(), "two".into(), "second".into()])
        .finish();
    put_ok(&mut sink, batch).await;
    let kept = |id, status| [V::Text(id), V::Text(status), V::Unchanged];
    let batch = bench
        .feed()
        .begin(20)
        .rekey(&bench.items, "1", &kept("9", "one"))
        .rekey(&bench.items, "2", &kept("1", "two"))
        .rekey(&bench.items, "9", &kept("2", "one"))
        .finish();
    put_ok(&mut sink, batch).await;
    sink.close().await.expect("closes");
    let rows = [("1", "two", "second"), ("2", "one", "first")];
    let events = [
        "c 1 one first",
        "c 2 two second",
        "d 1",
        "c 9 one",
        "d 2",
        "c 1 two",
        "d 9",
        "c 2 one",
    ];
    bench.assert_held(&bench.items, &rows, &events).await;
}

/// A TRUNCATE takes the rows that were there before it, of its table.
///
/// # Panics
/// When it takes others, or fewer.
pub async fn a_truncate_empties_its_table_alone(sink: &dyn SinkUnderTest) {
    let bench = Bench::new(sink);
    let mut sink = bench.open().await;
    let batch = bench
        .feed()
        .begin(10)
        .insert(&bench.items, &["1".into(), "old".into(), GIFT])
        .insert(&bench.others, &["1".into(), "stays".into(), GIFT])
        .begin(20)
        .insert(&bench.items, &["2".into(), "old".into(), GIFT])
        .truncate(&bench.items)
        .insert(&bench.items, &["3".into(), "after".into(), GIFT])
        .finish();
    put_ok(&mut sink, Arc::clone(&batch)).await;
    let later = bench
        .feed()
        .begin(30)
        .insert(&bench.items, &["4".into(), "later".into(), GIFT])
        .finish();
    put_ok(&mut sink, later).await;
    if bench.rows(&bench.items).await.is_some() {
        put_ok(&mut sink, batch).await;
    }
    sink.close().await.expect("closes");
    let rows = [("3", "after", "gift"), ("4", "later", "gift")];
    let events = [
        "c 1 old gift",
        "c 2 old gift",
        "t",
        "c 3 after gift",
        "c 4 later gift",
    ];
    bench.assert_held(&bench.items, &rows, &events).await;
    let (rows, events) = ([("1", "stays", "gift")], ["c 1 stays gift"]);
    bench.assert_held(&bench.others, &rows, &events).await;
}

/// A value that an UPDATE left alone keeps what is held, also under another key; a queue leaves it out. It is never NULL.
///
/// # Panics
/// When it is.
pub async fn an_unchanged_value_is_never_made_up(sink: &dyn SinkUnderTest) {
    let bench = Bench::new(sink);
    let mut sink = bench.open().await;
    let long = "long ".repeat(1000);
    let batch = bench
        .feed()
        .begin(10)
        .insert(&bench.items, &["1".into(), "new".into(), V::Text(&long)])
        .insert(&bench.items, &["2".into(), "new".into(), V::Text(&long)])
        .finish();
    put_ok(&mut sink, batch).await;
    let batch = bench
        .feed()
        .begin(20)
        .update(&bench.items, &["1".into(), "paid".into(), V::Unchanged])
        .begin(30)
        .update(&bench.items, &["1".into(), "sent".into(), V::Unchanged])
        .rekey(
            &bench.items,
            "2",
            &["3".into(), "moved".into(), V::Unchanged],
        )
        .finish();
    put_ok(&mut sink, batch).await;
    sink.close().await.expect("closes");
    let rows = [("1", "sent", &*long), ("3", "moved", &*long)];
    let new = [format!("c 1 new {long}"), format!("c 2 new {long}")];
    let events = [
        &*new[0],
        &*new[1],
        "u 1 paid",
        "u 1 sent",
        "d 2",
        "c 3 moved",
    ];
    bench.assert_held(&bench.items, &rows, &events).await;
}

/// Rows of the same key in several tables, one among the other.
///
/// # Panics
/// When they are mixed up.
pub async fn a_batch_of_many_tables_is_told_apart(sink: &dyn SinkUnderTest) {
    let bench = Bench::new(sink);
    let mut sink = bench.open().await;
    let mut feed = bench.feed();
    for commit in 1..=5_u64 {
        feed.begin(commit * 10);
        let status = commit.to_string();
        feed.update(&bench.items, &["7".into(), V::Text(&status), "item".into()]);
        feed.update(
            &bench.others,
            &["7".into(), V::Text(&status), "other".into()],
        );
    }
    put_ok(&mut sink, feed.finish()).await;
    sink.close().await.expect("closes");
    for (table, note) in [(&bench.items, "item"), (&bench.others, "other")] {
        let events: Vec<String> = (1..=5)
            .map(|status| format!("u 7 {status} {note}"))
            .collect();
        let events: Vec<&str> = events.iter().map(String::as_str).collect();
        bench.assert_held(table, &[("7", "5", note)], &events).await;
    }
}

/// A batch that only says how far the source is.
///
/// # Panics
/// When it is refused, or its receipt is not answered.
pub async fn a_batch_without_changes_is_taken(sink: &dyn SinkUnderTest) {
    let bench = Bench::new(sink);
    let mut sink = bench.open().await;
    let idle = |at| Arc::new(Batch::progress(Arc::clone(&bench.source), lsn(at)));
    put_ok(&mut sink, idle(5)).await;
    let batch = bench
        .feed()
        .begin(10)
        .insert(&bench.items, &["1".into(), "new".into(), GIFT])
        .finish();
    put_ok(&mut sink, batch).await;
    put_ok(&mut sink, idle(1000)).await;
    sink.close().await.expect("closes");
    let mut sink = bench.open().await;
    let resumed = sink
        .resume(&bench.source)
        .await
        .expect("resume")
        .map(|held| held.upto());
    assert_eq!(
        resumed,
        Some(position(10, 1)),
        "an end of the log is no position"
    );
    sink.close().await.expect("closes");
    bench
        .assert_held(&bench.items, &[("1", "new", "gift")], &["c 1 new gift"])
        .await;
}

/// Rows of a copy do not move the position, and lose against what streamed later.
///
/// # Panics
/// When they do not.
pub async fn a_copy_is_no_progress_and_overwrites_nothing_newer(sink: &dyn SinkUnderTest) {
    let bench = Bench::new(sink);
    let mut sink = bench.open().await;
    let copy = |point, status| {
        Feed::snapshot(&bench.source, point)
            .read(&bench.items, &["1".into(), V::Text(status), GIFT])
            .finish()
    };
    put_ok(&mut sink, copy(10, "copied")).await;
    sink.flush().await.expect("flushes");
    sink.close().await.expect("closes");
    let mut sink = bench.open().await;
    let resumed = sink
        .resume(&bench.source)
        .await
        .expect("resume")
        .map(|held| held.upto());
    assert_eq!(resumed, None, "a copy begins anew when it is cut");
    let batch = bench
        .feed()
        .begin(20)
        .update(&bench.items, &["1".into(), "streamed".into(), GIFT])
        .finish();
    put_ok(&mut sink, batch).await;
    let is_state = bench.rows(&bench.items).await.is_some();
    if is_state {
        put_ok(&mut sink, copy(15, "late")).await;
    }
    sink.close().await.expect("closes");
    let events = ["r 1 copied gift", "u 1 streamed gift"];
    bench
        .assert_held(&bench.items, &[("1", "streamed", "gift")], &events)
        .await;
}

/// State sinks: an older write lands nowhere, whatever came between.
///
/// # Panics
/// When it does.
pub async fn what_was_deleted_does_not_come_back(sink: &dyn SinkUnderTest) {
    let bench = Bench::new(sink);
    let mut sink = bench.open().await;
    if bench.rows(&bench.items).await.is_none() {
        return sink.close().await.expect("closes");
    }
    let put_at = |commit, id, status| {
        bench
            .feed()
            .begin(commit)
            .update(&bench.items, &[V::Text(id), V::Text(status), GIFT])
            .finish()
    };
    put_ok(&mut sink, put_at(10, "1", "old")).await;
    put_ok(&mut sink, put_at(11, "2", "old")).await;
    let gone = bench.feed().begin(20).delete(&bench.items, "1").finish();
    put_ok(&mut sink, gone).await;
    put_ok(&mut sink, put_at(30, "2", "new")).await;
    put_ok(&mut sink, put_at(10, "1", "old")).await;
    put_ok(&mut sink, put_at(11, "2", "old")).await;
    let old_delete = bench.feed().begin(25).delete(&bench.items, "2").finish();
    put_ok(&mut sink, old_delete).await;
    sink.close().await.expect("closes");
    bench
        .assert_held(&bench.items, &[("2", "new", "gift")], &[])
        .await;
}

/// Sources that read the same log by two slots.
///
/// # Panics
/// When they share a position.
pub async fn two_sources_keep_a_position_each(sink: &dyn SinkUnderTest) {
    let bench = Bench::new(sink);
    let second = source("stock");
    let table = crate::history::items("stock", "shelf");
    let both = [&bench.source, &second];
    let mut sink = bench.try_open(&both).await.expect("opens");
    let a = bench
        .feed()
        .begin(100)
        .insert(&bench.items, &["1".into(), "new".into(), GIFT])
        .insert(&bench.items, &["2".into(), "new".into(), GIFT])
        .finish();
    let b = Feed::new(&second)
        .begin(50)
        .insert(&table, &["1".into(), "new".into(), GIFT])
        .finish();
    let a = sink.write(a).await.expect("taken");
    let b = sink.write(b).await.expect("taken");
    answer(a).await.expect("durable");
    answer(b).await.expect("durable");
    sink.close().await.expect("closes");
    let mut sink = bench.try_open(&both).await.expect("opens");
    let first = sink
        .resume(&bench.source)
        .await
        .expect("resume")
        .map(|held| held.upto());
    assert_eq!(first, Some(position(100, 2)));
    let second = sink
        .resume(&second)
        .await
        .expect("resume")
        .map(|held| held.upto());
    assert_eq!(second, Some(position(50, 1)));
    sink.close().await.expect("closes");
}

/// Bytes that are no text: the row is named, and without it the rest is written by a sink that is opened anew.
///
/// # Panics
/// When another row is named, or one is lost.
pub async fn rows_that_cannot_be_written_are_named_and_the_others_are_written(
    sink: &dyn SinkUnderTest,
) {
    let bench = Bench::new(sink);
    let poison = [2, 5];
    let batch = |left_out: &[u64]| {
        let mut feed = bench.feed();
        for id in (1..=6).filter(|id| !left_out.contains(id)) {
            let text = id.to_string();
            let note = match poison.contains(&id) {
                true => V::Bytes(b"no \xff text"),
                false => GIFT,
            };
            feed.continued(10, id - 1);
            feed.insert(&bench.items, &[V::Text(&text), "new".into(), note]);
        }
        feed.finish()
    };
    let mut left_out: Vec<u64> = Vec::new();
    while left_out.len() < poison.len() {
        let mut sink = bench.open().await;
        let resumed = sink
            .resume(&bench.source)
            .await
            .expect("resume")
            .map(|held| held.upto());
        assert_eq!(
            resumed, None,
            "the position does not pass a row that was refused"
        );
        let error = put(&mut sink, batch(&left_out)).await.expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
        let named = named(&error, &bench);
        assert!(!named.is_empty(), "nobody is named: {error}");
        for id in named {
            assert!(poison.contains(&id), "row {id} is not to blame: {error}");
            assert!(!left_out.contains(&id), "row {id} was not written again");
            left_out.push(id);
        }
        drop(sink);
    }
    let mut sink: Box<dyn Sink> = bench.open().await;
    put_ok(&mut sink, batch(&left_out)).await;
    sink.close().await.expect("closes");
    let good = ["1", "3", "4", "6"];
    let events = good.map(|id| format!("c {id} new gift"));
    let events: Vec<&str> = events.iter().map(String::as_str).collect();
    bench
        .assert_held(&bench.items, &good.map(|id| (id, "new", "gift")), &events)
        .await;
}

/// The ids that a refusal names.
fn named(error: &Error, bench: &Bench<'_>) -> Vec<u64> {
    let refusals = error.refusals().iter();
    refusals
        .map(|refusal| {
            assert_eq!(refusal.position.commit, lsn(10), "{refusal:?}");
            assert_eq!(refusal.table.as_ref(), Some(&bench.items.id), "{refusal:?}");
            refusal.position.ordinal
        })
        .collect()
}
