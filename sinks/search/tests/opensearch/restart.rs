//! The sink or the server ends at any moment.

use std::collections::BTreeMap;
use std::sync::Arc;

use lockstep_conformance::history::{Random, Row, cut, history, model};
use lockstep_core::ErrorKind;
use lockstep_core::error::Policy;
use lockstep_kit::opensearch::{OpenSearch as Server, OpenSearchOptions, Product};
use serde_json::json;

use super::support::*;
use super::{Corner, orders, row};

on_each_server!(any_restart_ends_right);

/// A history cut into batches anywhere, by a sink that is dropped again and again with requests under way, and then sees
/// part of it once more.
#[allow(clippy::print_stdout, reason = "a failure names its seed")]
async fn any_restart_ends_right(corner: Corner<'static>) {
    // The last two once found rows that were in no document for a moment.
    for seed in [7, 66, 77] {
        println!("seed {seed}");
        restart_until_done(&Corner::on(corner.server), Random(seed)).await;
    }
}

async fn restart_until_done(corner: &Corner<'_>, mut random: Random) {
    let (source, orders) = (source("shop"), orders());
    let history = history(&mut random, 250);
    let more = json!({"bulk_documents": 4, "concurrency": 3});
    let mut after = None;
    let mut drops = 0;
    loop {
        let mut sink = corner.sink_with(more.clone(), &[&orders]).await;
        let resumed = sink
            .resume(&source)
            .await
            .expect("resume")
            .map(|held| held.upto());
        assert!(resumed >= after, "{resumed:?} is before {after:?}");
        let batches = cut(&history, &source, &orders, &mut random, after);
        let last = drops == 12;
        let until = if last {
            batches.len()
        } else {
            batches.len().min(12)
        };
        let mut waiting = Vec::new();
        for batch in batches.into_iter().take(until) {
            waiting.push(sink.write(batch).await.expect("taken"));
        }
        // A flush may have made the end of it durable.
        if last || waiting.is_empty() {
            for durable in waiting {
                durable.await.expect("durable");
            }
            break;
        }
        // Requests of the other batches may be on their way.
        let at = random.below(waiting.len() as u64) as usize;
        waiting.swap_remove(at).await.expect("durable");
        if random.below(2) == 0 {
            sink.flush().await.expect("flushed");
            after = sink
                .resume(&source)
                .await
                .expect("resume")
                .map(|held| held.upto());
        }
        drop(sink);
        drops += 1;
    }
    let seen: BTreeMap<_, _> = corner
        .all("orders")
        .await
        .into_iter()
        .map(|(id, (_, row))| (id, format!("{} {}", row["status"], row["note"])))
        .collect();
    let shown = |row: Row| format!("{:?} {:?}", row["status"], row["note"]);
    let expected = model(&history, None).into_iter();
    assert_eq!(seen, expected.map(|(id, row)| (id, shown(row))).collect());
}

#[tokio::test]
async fn a_killed_server_loses_nothing() {
    killed_server_loses_nothing(Product::OpenSearch).await;
}

#[tokio::test]
async fn nor_does_a_killed_elasticsearch() {
    killed_server_loses_nothing(Product::Elasticsearch).await;
}

async fn killed_server_loses_nothing(product: Product) {
    // It is killed: one that a variable provides is no help.
    lockstep_kit::require_own!(product.component());
    let mut options = OpenSearchOptions::of(product);
    options
        .settings
        .push(("http.max_content_length".into(), "1mb".into()));
    let server = Server::start(options).await;
    let corner = Corner::on(&server);
    let (source, orders) = (source("shop"), orders());
    let batches: Vec<_> = (1..=80_u64)
        .map(|step| {
            let mut feed = Feed::new(&source);
            feed.begin(step * 10);
            let status = format!("s{step}");
            for id in 0..40_u64 {
                let id = ((step * 13 + id) % 300).to_string();
                if id.ends_with('7') && step % 3 == 0 {
                    feed.delete(&orders, &id);
                } else {
                    feed.update(&orders, &row(&id, &status));
                }
            }
            feed.finish()
        })
        .collect();
    let more = json!({"bulk_documents": 50, "request_timeout": "5s"});
    let mut sink = corner.sink_with(more.clone(), &[&orders]).await;
    let mut waiting = Vec::new();
    for batch in &batches {
        match sink.write(Arc::clone(batch)).await {
            Ok(durable) => waiting.push(durable),
            Err(error) => {
                assert_eq!(error.kind().policy(), Policy::Retry, "{error}");
                break;
            }
        }
        if waiting.len() == 20 {
            server.kill();
        }
    }
    let mut durable = 0;
    let mut failure = None;
    for answer in waiting {
        match answer.await {
            Ok(_) => durable += 1,
            Err(error) => {
                failure.get_or_insert(error);
            }
        }
    }
    let failure = failure.expect("the server was killed");
    assert_eq!(failure.kind(), ErrorKind::Unavailable, "{failure}");
    drop(sink);
    server.restart().await;
    let mut sink = corner.sink_with(more, &[&orders]).await;
    let resumed = sink
        .resume(&source)
        .await
        .expect("resume")
        .map(|held| held.upto());
    assert!(
        resumed.is_none_or(|resumed| resumed.commit <= lsn(durable * 10)),
        "{resumed:?} is beyond the {durable} batches that are durable"
    );
    for batch in &batches[usize::try_from(durable).expect("small")..] {
        put_ok(&mut sink, Arc::clone(batch)).await;
    }
    let mut expected = BTreeMap::new();
    for step in 1..=80_u64 {
        for id in 0..40_u64 {
            let id = ((step * 13 + id) % 300).to_string();
            if id.ends_with('7') && step % 3 == 0 {
                expected.remove(&id);
            } else {
                expected.insert(id, step * 10);
            }
        }
    }
    let seen: BTreeMap<_, _> = corner
        .all("orders")
        .await
        .into_iter()
        .map(|(id, (version, _))| (id, version))
        .collect();
    assert_eq!(seen, expected);
    sink.flush().await.expect("the position is stored");
    assert_eq!(
        sink.resume(&source)
            .await
            .expect("resume")
            .map(|held| held.upto()),
        Some(position(800, 40))
    );
    too_large_is_refused(&corner).await;
}

/// Before the server has read all of it: it answers in the middle of the request.
async fn too_large_is_refused(corner: &Corner<'_>) {
    let (source, orders) = (source("shop"), orders());
    let mut sink = corner.sink(&[&orders]).await;
    let large = "x".repeat(8 << 20);
    let batch = Feed::new(&source)
        .begin(900)
        .insert(&orders, &row("900", &large))
        .finish();
    let error = put_err(&mut sink, batch).await;
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    let reasons: Vec<_> = error.refusals().iter().map(|one| one.reason).collect();
    assert_eq!(reasons, ["too_large"], "{error}");
}
