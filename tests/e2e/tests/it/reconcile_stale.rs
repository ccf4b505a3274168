//! Rows that a sink has as they were before their last change are told apart from rows that somebody has altered.

use std::collections::BTreeSet;
use std::ops::Range;

use lockstep_core::position::Lsn;
use lockstep_e2e::child::PATIENCE;
use lockstep_e2e::{Pipeline, Setup};
use lockstep_kit::Component::{Postgres as NeedsPostgres, Redis as NeedsRedis};
use lockstep_kit::postgres::{Database, Postgres};
use lockstep_kit::redis::{Redis, Reply};
use lockstep_kit::{require, unique};
use serde_json::Value;

use crate::reconcile::{caught_up, equal, reconcile, told};
use crate::support::{cache, source};

/// Rows that come back as they were, with their versions.
const STALE: Range<u64> = 1..41;
/// Rows whose values alone do.
const ALTERED: Range<u64> = 41..61;
const ROWS: u64 = 100;

struct Cache {
    redis: &'static Redis,
    prefix: String,
}

impl Cache {
    fn key(&self, id: u64) -> String {
        format!("{}:t:{id}", self.prefix)
    }

    fn version(&self, id: u64) -> String {
        format!("lockstep:v:{{{}}}", self.key(id))
    }

    /// Where a dump has it.
    fn saved(&self, key: &str) -> String {
        format!("dump-of-{}:{key}", self.prefix)
    }

    async fn copy(&self, from: &str, to: &str) {
        let words = ["COPY", from, to, "REPLACE"];
        let reply = self.redis.command(&words).await.expect("Redis answers");
        assert!(matches!(reply, Reply::Integer(1)), "{from}: {reply:?}");
    }

    async fn dump(&self) {
        for id in 1..=ROWS {
            for key in [self.key(id), self.version(id)] {
                self.copy(&key, &self.saved(&key)).await;
            }
        }
    }

    async fn restore(&self) {
        for id in STALE {
            let version = self.version(id);
            self.copy(&self.saved(&version), &version).await;
        }
        for id in STALE.chain(ALTERED) {
            let key = self.key(id);
            self.copy(&self.saved(&key), &key).await;
        }
    }

    fn expected(&self) -> BTreeSet<(String, String, String)> {
        let tell = |id, kind: &str| ("cache".to_owned(), kind.to_owned(), self.key(id));
        let stale = STALE.map(|id| tell(id, "stale"));
        stale
            .chain(ALTERED.map(|id| tell(id, "different")))
            .collect()
    }
}

async fn checkpoint(database: &Database) -> Lsn {
    database.execute("CHECKPOINT").await;
    let redo = "SELECT redo_lsn FROM pg_control_checkpoint()";
    let redo = database.value(redo).await.expect("a place");
    redo.parse().expect("an LSN")
}

/// Waits until the pipeline has a checkpoint on record. It asks for the last one when it opens its source.
async fn recorded(setup: &Setup, pipeline: &mut Pipeline, redo: Lsn) {
    let file = setup.state().join("sources/shop/horizons.json");
    pipeline
        .until(PATIENCE, "the checkpoint to be on record", async |_| {
            let kept = std::fs::read(&file).map_err(|error| error.to_string())?;
            let kept: Value = serde_json::from_slice(&kept).expect("JSON");
            let mut horizons = kept["horizons"].as_array().expect("a list").iter();
            let known = horizons.any(|one| one[0].as_u64() >= Some(redo.0));
            known.then_some(()).ok_or_else(|| kept.to_string())
        })
        .await;
}

/// What a pipeline knew when it was killed is enough: the checkpoint came between what a cache is set back to and what it had.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_that_was_set_back_is_stale_and_what_was_altered_in_it_is_not() {
    require!(NeedsPostgres(17), NeedsRedis);
    let (postgres, redis) = tokio::join!(Postgres::shared(17), Redis::shared());
    let database = postgres.database("shop").await;
    database
        .execute(&format!(
            "CREATE TABLE t (id int PRIMARY KEY, note text); \
             INSERT INTO t SELECT n, 'first' FROM generate_series(1, {ROWS}) n"
        ))
        .await;
    let name = unique("stale");
    let setup = Setup::new(&name, |_| {
        source(database.url(), &name, &["t"]) + &cache(redis.url(), &name)
    });
    let cache = Cache {
        redis,
        prefix: name.clone(),
    };
    let mut pipeline = setup.start_ready().await;
    caught_up(&mut pipeline, &database).await;
    database.execute("UPDATE t SET note = 'second'").await;
    caught_up(&mut pipeline, &database).await;
    cache.dump().await;
    assert!(pipeline.terminate(PATIENCE).await.success());
    let redo = checkpoint(&database).await;
    let mut pipeline = setup.start_ready().await;
    recorded(&setup, &mut pipeline, redo).await;
    database.execute("UPDATE t SET note = 'third'").await;
    caught_up(&mut pipeline, &database).await;
    pipeline.kill9();
    // The server has had other checkpoints since.
    checkpoint(&database).await;

    let mut pipeline = setup.start_ready().await;
    caught_up(&mut pipeline, &database).await;
    equal(&setup, &mut pipeline, &[]).await;
    cache.restore().await;
    let (code, report) = reconcile(&setup, &mut pipeline, &[]).await;
    assert_eq!(
        (code, told(&report)),
        (Some(3), cache.expected()),
        "{report:#}"
    );
    let sink = &report["reports"][0]["sinks"]["cache"];
    assert_eq!(
        (&sink["stale"], &sink["different"]),
        (&40.into(), &20.into())
    );
    let rows = sink["drift"].as_array().expect("rows").iter();
    for row in rows.filter(|row| row["drift"] == "stale") {
        let lsn = |name: &str| {
            row[name]
                .as_str()
                .expect(name)
                .parse::<Lsn>()
                .expect("an LSN")
        };
        assert!(lsn("held") <= lsn("changed_after"), "{row}");
        assert!(lsn("changed_after") < lsn("fence"), "{row}");
        assert_eq!(row["columns"], serde_json::json!(["note"]));
    }
    let (_, metrics) = pipeline.get("/metrics").await.expect("metrics");
    let mut drift = metrics
        .lines()
        .filter(|line| line.starts_with("lockstep_reconcile_drift_total"));
    let counted = "{drift=\"stale\",sink=\"cache\",source=\"shop\",table=\"public.t\"} 40";
    assert!(drift.any(|line| line.ends_with(counted)), "{metrics}");

    let url = pipeline.url().await;
    let file = setup.file().display().to_string();
    let command = ["reconcile", &*file, "--url", &*url, "--repair"];
    let ended = setup.spawn(&command, &[]).ends_within(PATIENCE).await;
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    let line = format!("{} is stale in note: of ", cache.key(1));
    assert!(ended.stdout.contains(&line), "{}", ended.stdout);
    let repairs = setup.state().join("repairs.jsonl");
    let repairs = std::fs::read_to_string(repairs).expect("a record");
    let planned = repairs.lines().filter(|line| {
        line.contains("\"stage\":\"planned\"") && line.contains("\"drift\":\"stale\"")
    });
    assert_eq!(planned.count(), 40, "{repairs}");
    equal(&setup, &mut pipeline, &[]).await;
    assert!(pipeline.terminate(PATIENCE).await.success());
}
