//! Steps of two processes between each other, in an order that no race has to bring about.

use std::path::Path;
use std::sync::Arc;

use lockstep_core::Result;
use lockstep_core::batch::{Batch, Change, Row};
use lockstep_core::position::{Lsn, Position, SourceIdentity};
use lockstep_core::transform::DeadLetters;
use lockstep_kit::Component::Redis as NeedsRedis;
use lockstep_kit::redis::Redis;

use super::super::digest::{Digest, Hasher};
use super::super::judge::Arrival;
use super::*;

struct Nowhere;

impl DeadLetters for Nowhere {
    fn keep(&self, _: &str, _: &str, _: &Batch, _: &Change, _: Option<Row<'_>>) -> Result<()> {
        Ok(())
    }
}

async fn replica(pipeline: &str, state: &Path) -> Shared {
    let section = serde_json::json!({ "url": Redis::shared().await.url() });
    let config: RedisStore = serde_json::from_value(section).expect("a section");
    let context = TransformContext {
        pipeline: pipeline.into(),
        name: "once".into(),
        state: state.to_owned(),
        dead_letters: Arc::new(Nowhere),
    };
    let window = Window {
        micros: 10,
        keys: None,
    };
    Shared::open(&config, &context, window).expect("a store")
}

fn digest(name: &str) -> Digest {
    let mut hasher = Hasher::root("test");
    hasher.part(name.as_bytes());
    hasher.finish()
}

/// A row that comes in at a commit and a time, with the key `k`.
fn arrives(source: u16, commit: u64, micros: i64) -> Case {
    Case::Arrives(Arrival {
        at: Moment {
            source,
            position: Position {
                commit: Lsn(commit),
                ordinal: 1,
            },
            micros,
        },
        row: digest(&format!("{source}/{commit}")),
        recognisable: true,
        key: Some(digest("k")),
        copied: false,
    })
}

fn source() -> SourceInfo {
    SourceInfo {
        name: "shop".into(),
        identity: SourceIdentity {
            system: 1,
            timeline: 1,
            incarnation: 0,
            database: "shop".into(),
        },
    }
}

async fn held(store: &mut Shared, case: Case) -> bool {
    let mut verdicts = Vec::new();
    store.judge(&[case], &mut verdicts).await.expect("judged");
    verdicts[0].held
}

/// A process looks, is stopped for a while, and writes on, when another one has taken over and gone further.
#[tokio::test]
async fn a_late_write_takes_nothing_away() {
    lockstep_kit::require!(NeedsRedis);
    let pipeline = lockstep_kit::unique("late");
    let folders = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
    let mut dead = replica(&pipeline, folders[0].path()).await;
    let mut alive = replica(&pipeline, folders[1].path()).await;
    let log = dead.log(&source()).await.expect("a number");
    assert_eq!(alive.log(&source()).await.expect("a number"), log);

    // The steps of `attempt`, as far as the write.
    let first = [arrives(log, 10, 100)];
    dead.notes.clear(0);
    dead.notes.claims.entry(digest("k")).or_default();
    dead.notes
        .rows
        .entry(digest(&format!("{log}/10")))
        .or_default();
    dead.fetch().await.expect("looked up");
    let mut verdicts = Vec::new();
    let window = dead.window;
    judge::all(&mut dead.notes, &window, &first, &mut verdicts).expect("judged");

    assert!(!held(&mut alive, first[0]).await);
    assert!(
        !held(&mut alive, arrives(log, 20, 200)).await,
        "after the window"
    );

    let last = first[0].at().expect("a moment");
    let late = dead.write(last).await.expect("answered");
    assert!(matches!(late, Attempt::Again), "it has to look again");
    assert!(
        !held(&mut dead, first[0]).await,
        "and judges as the other one did"
    );
    assert!(
        held(&mut alive, arrives(log, 30, 205)).await,
        "the later claim is there"
    );
}
