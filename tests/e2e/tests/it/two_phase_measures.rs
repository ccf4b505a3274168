//! What is measured of two-phase commits, by manager.

use std::time::Duration;

use lockstep_e2e::{Pipeline, Setup};
use lockstep_kit::Component::Postgres as NeedsPostgres;
use lockstep_kit::postgres::{Database, Postgres, PostgresOptions};
use lockstep_kit::{require_own, unique};

use crate::support::{end_of_log, files, source};

const CATCH_UP: Duration = Duration::from_secs(60);

/// Waits until the metrics have all these lines.
async fn wait_told(pipeline: &mut Pipeline, lines: &[&str]) {
    pipeline
        .until(CATCH_UP, "all of it to be told", async |pipeline| {
            let (_, metrics) = pipeline
                .get("/metrics")
                .await
                .map_err(|error| error.to_string())?;
            let is_there = |line: &&&str| metrics.lines().any(|one| one == **line);
            let missing = lines.iter().find(|line| !is_there(line));
            match missing {
                None => Ok(()),
                Some(line) => Err(format!("no {line} in\n{metrics}")),
            }
        })
        .await;
}

async fn run(databases: [&Database; 2], sql: impl Fn(&str) -> String) {
    for (database, branch) in databases.into_iter().zip(["AQ==", "Ag=="]) {
        database.execute(&sql(branch)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_phase_commits_are_measured_by_manager() {
    require_own!(NeedsPostgres(16), NeedsPostgres(17));
    let first = Postgres::start(PostgresOptions::new(16)).await;
    let second = Postgres::start(PostgresOptions::new(17)).await;
    let orders = first.database("orders").await;
    let inventory = second.database("inventory").await;
    for database in [&orders, &inventory] {
        database
            .execute("CREATE TABLE t (id bigint PRIMARY KEY)")
            .await;
    }
    let name = unique("measures");
    let setup = Setup::new(&name, |folder| {
        let section = |of: &str, database: &Database| {
            let section = source(database.url(), &format!("{name}_{of}"), &["t"]);
            section.replace("sources.shop", &format!("sources.{of}")) + "two_phase = true\n"
        };
        section("orders", &orders)
            + &section("inventory", &inventory)
            + "[transforms.whole]\ntype = \"stitch\"\ninputs = [\"orders\", \"inventory\"]\n"
            + &files(folder).replace("[\"shop\"]", "[\"whole\"]")
    });
    let mut pipeline = setup.start_ready().await;
    pipeline.wait_streaming("orders").await;
    pipeline.wait_streaming("inventory").await;

    // As pgjdbc calls the branches of a transaction of Narayana: three that commit, one that does not, one left behind.
    let both = [&orders, &inventory];
    let gid = |number: u64, branch: &str| format!("131077_AAA{number}_{branch}");
    for number in 1..=5 {
        let prepare = |branch: &str| {
            let gid = gid(number, branch);
            format!("BEGIN; INSERT INTO t VALUES ({number}); PREPARE TRANSACTION '{gid}'")
        };
        run(both, prepare).await;
        let word = match number {
            1..=3 => "COMMIT",
            4 => "ROLLBACK",
            _ => continue,
        };
        let end = |branch: &str| format!("{word} PREPARED '{}'", gid(number, branch));
        run(both, end).await;
    }
    wait_told(
        &mut pipeline,
        &[
            r#"lockstep_two_phase_branches_total{manager="narayana",outcome="committed",source="orders"} 3"#,
            r#"lockstep_two_phase_branches_total{manager="narayana",outcome="committed",source="inventory"} 3"#,
            r#"lockstep_two_phase_branches_total{manager="narayana",outcome="rolled_back",source="orders"} 1"#,
            r#"lockstep_two_phase_prepared_seconds_count{manager="narayana",source="orders"} 3"#,
            r#"lockstep_two_phase_visible_seconds_count{manager="narayana",sink="files"} 6"#,
            r#"lockstep_stitch_transactions_total{manager="narayana",outcome="whole",stitch="whole"} 3"#,
            r#"lockstep_stitch_skew_seconds_count{stitch="whole"} 3"#,
            r#"lockstep_stitch_hold_seconds_count{stitch="whole"} 6"#,
            r#"lockstep_stitch_decided_seconds_count{stitch="whole"} 6"#,
            r#"lockstep_source_in_doubt_transactions{source="orders"} 1"#,
        ],
    )
    .await;

    let file = setup.file().display().to_string();
    for branch in ["AQ==", "Ag=="] {
        let gid = gid(5, branch);
        let resolve = [
            "transactions",
            "resolve",
            &file,
            "--apply",
            "--gid",
            &gid,
            "--commit",
        ];
        let ended = setup.lockstep_with(&resolve, &[]).await;
        assert_eq!(ended.code(), Some(0), "{ended:?}");
    }
    wait_told(
        &mut pipeline,
        &[
            r#"lockstep_resolver_actions_total{action="commit",manager="narayana",outcome="done",rule="person"} 2"#,
            r#"lockstep_two_phase_branches_total{manager="narayana",outcome="committed",source="orders"} 4"#,
            r#"lockstep_source_in_doubt_transactions{source="orders"} 0"#,
        ],
    )
    .await;
    for (source, database) in [("orders", &orders), ("inventory", &inventory)] {
        let end = end_of_log(database).await;
        pipeline.wait_visible(source, &end, CATCH_UP).await;
    }
    assert!(pipeline.terminate(CATCH_UP).await.success());
}
