//! What is written when: changes, replays, another server, TRUNCATE, the order of a key.

use std::collections::BTreeMap;
use std::sync::Arc;

use lockstep_core::ErrorKind;
use lockstep_core::position::SourceInfo;
use lockstep_core::sink::SinkContext;
use lockstep_core::token::Token;
use serde_json::json;

use super::support::*;
use super::{Corner, orders, row};

on_each_server!(
    rows_come_change_move_and_go,
    older_writes_and_late_replays_are_refused,
    who_has_an_older_token_moves_no_position,
    a_new_server_with_lower_positions_is_not_stale,
    a_truncate_takes_what_is_older_only,
    small_bulks_side_by_side_keep_the_order_of_a_key,
);

async fn rows_come_change_move_and_go(corner: Corner<'static>) {
    let (source, orders) = (source("shop"), orders());
    let mut sink = corner.sink(&[&orders]).await;
    assert_eq!(
        sink.resume(&source)
            .await
            .expect("resume")
            .map(|held| held.upto()),
        None
    );
    let mut feed = Feed::new(&source);
    feed.begin(10);
    for id in ["1", "2", "3"] {
        feed.insert(&orders, &row(id, "new"));
    }
    let delivered = put_ok(&mut sink, feed.finish()).await;
    assert_eq!((delivered.written, delivered.stale), (3, 0));
    let batch = Feed::new(&source)
        .begin(20)
        .update(&orders, &row("1", "paid"))
        .delete(&orders, "2")
        .rekey(&orders, "3", &row("33", "moved"))
        .finish();
    put_ok(&mut sink, Arc::clone(&batch)).await;
    let rows = corner.all("orders").await;
    assert_eq!(rows.keys().collect::<Vec<_>>(), ["1", "33"]);
    assert_eq!(
        rows["1"],
        (20, json!({"id": 1, "status": "paid", "note": "gift wrap"}))
    );
    // The same again changes nothing, and is not stale: an equal version is accepted.
    assert_eq!(put_ok(&mut sink, batch).await.stale, 0);
    assert_eq!(corner.all("orders").await, rows);
    sink.close().await.expect("close");
    let mut sink = corner.sink(&[&orders]).await;
    assert_eq!(
        sink.resume(&source)
            .await
            .expect("resume")
            .map(|held| held.upto()),
        Some(position(20, 3))
    );
}

async fn older_writes_and_late_replays_are_refused(corner: Corner<'static>) {
    let (source, orders) = (source("shop"), orders());
    let mut sink = corner.sink(&[&orders]).await;
    let first = Feed::new(&source)
        .begin(10)
        .insert(&orders, &row("1", "old"))
        .insert(&orders, &row("2", "old"))
        .finish();
    put_ok(&mut sink, Arc::clone(&first)).await;
    let second = Feed::new(&source)
        .begin(30)
        .update(&orders, &row("1", "paid"))
        .delete(&orders, "2")
        .finish();
    put_ok(&mut sink, second).await;
    drop(sink);
    let mut late = corner.sink(&[&orders]).await;
    let delivered = put_ok(&mut late, first).await;
    assert_eq!((delivered.written, delivered.stale), (0, 2));
    let rows = corner.all("orders").await;
    assert_eq!(rows.keys().collect::<Vec<_>>(), ["1"], "nothing comes back");
    assert_eq!(rows["1"].1["status"], "paid");
    let (_, settings) = corner
        .ask(
            "GET",
            &format!("/{}/_settings?flat_settings=true", corner.index("orders")),
            "",
        )
        .await;
    assert_eq!(
        settings[corner.index("orders")]["settings"]["index.gc_deletes"],
        "1h"
    );
}

/// A process that has lost its lease moves no position, and opens nothing.
async fn who_has_an_older_token_moves_no_position(corner: Corner<'static>) {
    let (source, orders) = (source("shop"), orders());
    let open = async |token: u64| {
        let context = SinkContext {
            token: Some(Token(token)),
            ..context(&source, &[&orders])
        };
        corner.open(json!({}), context).await
    };
    let insert = |n: u64| {
        Feed::new(&source)
            .begin(n)
            .insert(&orders, &row(&n.to_string(), "new"))
            .finish()
    };
    let mut former = open(5).await.expect("opens");
    put_ok(&mut former, insert(10)).await;
    former.close().await.expect("closes");
    let mut former = open(5).await.expect("opens");
    let mut newer = open(7).await.expect("opens");
    let held = newer.resume(&source).await.expect("resume");
    assert!(held.is_some(), "closing keeps the position");
    // A row is taken by its version: the newer one would write the same.
    put_ok(&mut former, insert(20)).await;
    let refused = former.close().await.expect_err("it is older");
    assert_eq!(refused.kind(), ErrorKind::Busy, "{refused}");
    let refused = open(6).await.err().expect("it is older");
    assert_eq!(refused.kind(), ErrorKind::Busy, "{refused}");
    assert_eq!(newer.resume(&source).await.expect("resume"), held);
    put_ok(&mut newer, insert(20)).await;
    newer.close().await.expect("closes");
}

/// After a restore or an upgrade the server counts its log anew.
async fn a_new_server_with_lower_positions_is_not_stale(corner: Corner<'static>) {
    let (source, orders) = (source("shop"), orders());
    let mut sink = corner.sink(&[&orders]).await;
    let old = Feed::new(&source)
        .begin(1000)
        .insert(&orders, &row("1", "old"))
        .insert(&orders, &row("2", "old"))
        .finish();
    put_ok(&mut sink, Arc::clone(&old)).await;
    let mut identity = source.identity.clone();
    identity.timeline += 1;
    let promoted = Arc::new(SourceInfo {
        name: Arc::clone(&source.name),
        identity,
    });
    assert_eq!(
        sink.resume(&promoted)
            .await
            .expect("resume")
            .map(|held| held.upto()),
        None
    );
    let new = Feed::new(&promoted)
        .begin(20)
        .update(&orders, &row("1", "new"))
        .delete(&orders, "2")
        .finish();
    let delivered = put_ok(&mut sink, new).await;
    assert_eq!((delivered.written, delivered.stale), (2, 0));
    drop(sink);
    // A process left over from before the promotion.
    let mut sink = corner.sink(&[&orders]).await;
    assert_eq!(put_ok(&mut sink, old).await.stale, 2);
    let rows = corner.all("orders").await;
    assert_eq!(rows.keys().collect::<Vec<_>>(), ["1"]);
    assert_eq!(rows["1"].1["status"], "new");
}

async fn a_truncate_takes_what_is_older_only(corner: Corner<'static>) {
    let (source, orders) = (source("shop"), orders());
    let mut sink = corner.sink(&[&orders]).await;
    let mut feed = Feed::new(&source);
    feed.begin(10);
    let ids: Vec<String> = (0..4500).map(|id| id.to_string()).collect();
    for id in &ids {
        feed.insert(&orders, &row(id, "new"));
    }
    put_ok(&mut sink, feed.finish()).await;
    let truncate = Feed::new(&source)
        .begin(20)
        .insert(&orders, &row("5000", "goes"))
        .truncate(&orders)
        .insert(&orders, &row("7", "stays"))
        .finish();
    put_ok(&mut sink, Arc::clone(&truncate)).await;
    let expected = BTreeMap::from([(
        "7".to_owned(),
        (20, json!({"id": 7, "status": "stays", "note": "gift wrap"})),
    )]);
    assert_eq!(corner.all("orders").await, expected);
    let after = Feed::new(&source)
        .begin(30)
        .insert(&orders, &row("8", "after"))
        .finish();
    put_ok(&mut sink, Arc::clone(&after)).await;
    let rows = corner.all("orders").await;
    // A replay of the TRUNCATE leaves newer rows alone, and what follows it lands again.
    put_ok(&mut sink, truncate).await;
    put_ok(&mut sink, after).await;
    assert_eq!(corner.all("orders").await, rows);
    assert_eq!(rows.keys().collect::<Vec<_>>(), ["7", "8"]);
}

async fn small_bulks_side_by_side_keep_the_order_of_a_key(corner: Corner<'static>) {
    let (source, orders) = (source("shop"), orders());
    let more = json!({"bulk_documents": 3, "concurrency": 4});
    let mut sink = corner.sink_with(more, &[&orders]).await;
    let mut waiting = Vec::new();
    // One transaction in many batches: all versions are equal, so that only the order of writing decides.
    for step in 0..60_u64 {
        let mut feed = Feed::new(&source);
        feed.continued(10, step * 5);
        let status = format!("s{step}");
        for id in 0..5 {
            let id = ((step + id) % 7).to_string();
            if (step + 1).is_multiple_of(9) {
                feed.delete(&orders, &id);
            } else {
                feed.update(&orders, &row(&id, &status));
            }
        }
        waiting.push(sink.write(feed.finish()).await.expect("taken"));
    }
    for durable in waiting {
        durable.await.expect("durable");
    }
    let rows = corner.all("orders").await;
    let seen: BTreeMap<_, _> = rows
        .iter()
        .map(|(id, (_, row))| (id.as_str(), row["status"].as_str().expect("a text")))
        .collect();
    let mut expected = BTreeMap::new();
    let names: Vec<String> = (0..7).map(|id| id.to_string()).collect();
    let statuses: Vec<String> = (0..60).map(|step| format!("s{step}")).collect();
    for step in 0..60_usize {
        for id in 0..5 {
            let id = &*names[(step + id) % 7];
            if (step + 1).is_multiple_of(9) {
                expected.remove(id);
            } else {
                expected.insert(id, &*statuses[step]);
            }
        }
    }
    assert_eq!(seen, expected);
}
