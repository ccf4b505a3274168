//! Transactions that are prepared, and kills while they are in doubt.

use std::time::Duration;

use lockstep_e2e::topics;
use lockstep_e2e::{Pipeline, Random, Setup};
use lockstep_kit::Component::{Kafka as NeedsKafka, Postgres as NeedsPostgres};
use lockstep_kit::kafka::Kafka;
use lockstep_kit::postgres::{Database, Postgres, PostgresOptions};
use lockstep_kit::{require, require_own, unique};

use crate::support::{end_of_log, events, source};

const CATCH_UP: Duration = Duration::from_secs(120);
/// Rows that commit, with the numbers from 1 on; others are rolled back.
const ROWS: u64 = 3_000;

/// Writes rows in one phase and in two, some of which are rolled back, with some in doubt at any time.
async fn write(database: &Database, mut random: Random) {
    let client = database.client().await;
    let run = async |sql: String| {
        let done = client.batch_execute(&sql).await;
        done.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    };
    let mut in_doubt: Vec<String> = Vec::new();
    for id in 1..ROWS {
        let insert = |id: u64| format!("INSERT INTO t VALUES ({id}, 'row {id}')");
        match random.below(5) {
            0 | 1 => run(insert(id)).await,
            2 => {
                let gone = insert(ROWS + id);
                run(format!("BEGIN; {gone}; PREPARE TRANSACTION 'gone {id}'")).await;
                in_doubt.push(format!("ROLLBACK PREPARED 'gone {id}'"));
                run(insert(id)).await;
            }
            _ => {
                let kept = insert(id);
                run(format!("BEGIN; {kept}; PREPARE TRANSACTION 'kept {id}'")).await;
                in_doubt.push(format!("COMMIT PREPARED 'kept {id}'"));
            }
        }
        while in_doubt.len() as u64 > random.below(30) {
            let next = random.below(in_doubt.len() as u64) as usize;
            run(in_doubt.swap_remove(next)).await;
        }
    }
    for end in in_doubt {
        run(end).await;
    }
}

/// Until as many transactions are in doubt, and the metrics say so.
async fn wait_in_doubt(pipeline: &mut Pipeline, count: u64) {
    pipeline
        .until(CATCH_UP, "what is in doubt to be told", async |pipeline| {
            let source = pipeline.status().await["sources"]["shop"].clone();
            let (_, metrics) = pipeline
                .get("/metrics")
                .await
                .map_err(|error| error.to_string())?;
            let gauge = format!("lockstep_source_in_doubt_transactions{{source=\"shop\"}} {count}");
            let dated = metrics.contains("lockstep_source_in_doubt_oldest_timestamp_seconds{");
            let held = metrics.contains("lockstep_source_in_doubt_retained_bytes{");
            let is_told = source["in_doubt"] == count
                && metrics.contains(&gauge)
                && [dated, held] == [count > 0; 2];
            is_told.then_some(()).ok_or_else(|| source.to_string())
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_while_transactions_are_in_doubt_lose_and_double_nothing() {
    require!(NeedsKafka);
    require_own!(NeedsPostgres(17));
    let mut random = Random::from_environment();
    // While something is prepared, nobody could make a slot on a server that is shared.
    let server = Postgres::start(PostgresOptions::new(17)).await;
    let database = server.database("shop").await;
    database
        .execute("CREATE TABLE t (id bigint PRIMARY KEY, note text)")
        .await;
    let kafka = Kafka::shared().await;
    let name = unique("two_phase");
    let setup = Setup::new(&name, |_| {
        source(database.url(), &name, &["t"])
            + "two_phase = true\n"
            + &events(kafka.bootstrap(), &name, "exactly_once = true")
    });
    let mut pipeline = setup.start_ready().await;
    pipeline.wait_streaming("shop").await;
    let of_writer = random.fork();
    let mut writing = std::pin::pin!(write(&database, of_writer));
    loop {
        tokio::select! {
            () = &mut writing => break,
            () = tokio::time::sleep(random.millis(300, 2_000)) => {
                pipeline.kill9();
                pipeline = setup.start();
            }
        }
    }
    // One is in doubt across an end in order, and one of lockstep alone.
    let last = format!("BEGIN; INSERT INTO t VALUES ({ROWS}); PREPARE TRANSACTION 'last'");
    database.execute(&last).await;
    let end = end_of_log(&database).await;
    pipeline.wait_visible("shop", &end, CATCH_UP).await;
    wait_in_doubt(&mut pipeline, 1).await;
    assert!(pipeline.terminate(CATCH_UP).await.success());
    let mut pipeline = setup.start_ready().await;
    wait_in_doubt(&mut pipeline, 1).await;
    pipeline.kill9();
    database.execute("COMMIT PREPARED 'last'").await;
    let mut pipeline = setup.start_ready().await;
    let end = end_of_log(&database).await;
    pipeline.wait_visible("shop", &end, CATCH_UP).await;
    wait_in_doubt(&mut pipeline, 0).await;
    assert!(pipeline.terminate(CATCH_UP).await.success());
    let wrong = topics::not_once(kafka.bootstrap(), &format!("{name}.t"), ROWS, CATCH_UP).await;
    assert_eq!(wrong, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_doubt_is_listed_with_its_branches_together() {
    require_own!(NeedsPostgres(16));
    let server = Postgres::start(PostgresOptions::new(16)).await;
    let orders = server.database("orders").await;
    let inventory = server.database("inventory").await;
    let name = unique("list");
    let setup = Setup::new(&name, |folder| {
        let section = |source: &str, database: &Database| {
            let section = crate::support::source(database.url(), &name, &["t"]);
            section.replace("sources.shop", &format!("sources.{source}"))
        };
        section("orders", &orders)
            + &section("inventory", &inventory)
            + &crate::support::files(folder).replace("[\"shop\"]", "[\"orders\", \"inventory\"]")
    });
    let file = setup.file().display().to_string();
    let list = async |more: &[&str]| {
        let arguments = [&["transactions", "list", &file][..], more].concat();
        let ended = setup.lockstep_with(&arguments, &[]).await;
        assert_eq!(ended.code(), Some(0), "{ended:?}");
        ended.stdout
    };
    assert_eq!(list(&[]).await, "nothing is in doubt\n");
    // As pgjdbc calls two branches of a transaction of Narayana; and one that is none of ours.
    for (database, gid) in [
        (&orders, "131077_AQ==_Ag=="),
        (&inventory, "131077_AQ==_Aw=="),
        (&inventory, "by hand"),
    ] {
        let prepare = format!("BEGIN; CREATE TABLE \"{gid}\" (); PREPARE TRANSACTION '{gid}'");
        database.execute(&prepare).await;
    }
    let found: serde_json::Value =
        serde_json::from_str(&list(&["--format", "json"]).await).expect("JSON");
    let found = found.as_array().expect("a list");
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!(found[0]["dialect"], "narayana");
    let sources: Vec<_> = [0, 1]
        .iter()
        .map(|&at: &usize| &found[0]["branches"][at]["source"])
        .collect();
    assert_eq!(sources, ["orders", "inventory"]);
    assert_eq!(found[1]["transaction"], "by hand");
    assert!(list(&[]).await.contains("131077_AQ==_Aw=="));
    server.kill();
    let ended = setup
        .lockstep_with(&["transactions", "list", &file], &[])
        .await;
    assert_eq!(ended.code(), Some(1), "nobody knows what is left there");
    assert!(ended.error().contains("sources.inventory"), "{ended:?}");
}
