//! A table changes its shape, or is seen for the first time, inside a transaction that is prepared.

use lockstep_kit::wait_for;

use super::{Pair, SERVERS, commit, named, pairs, prepare, retry_open, roll_back, section};
use crate::harness::DEADLINE;

#[tokio::test]
async fn a_table_that_changes_in_one_has_the_new_shape_behind_it_and_only_if_it_commits() {
    for major in SERVERS {
        lockstep_kit::require!(lockstep_kit::Component::Postgres(major));
        for commits in [true, false] {
            let mut pair = Pair::open(major, false).await;
            let database = &pair.database;
            database.execute("INSERT INTO t VALUES (1)").await;
            let work = "INSERT INTO t VALUES (2); ALTER TABLE t ADD COLUMN more text; \
                 INSERT INTO t VALUES (3, NULL, 'x')";
            prepare(database, "a", work).await;
            database.execute("INSERT INTO u VALUES (4)").await;
            pair.on.catch_up(&pair.database).await;
            let database = &pair.database;
            if commits {
                commit(database, "a").await;
                database
                    .execute("INSERT INTO t VALUES (5, NULL, 'y')")
                    .await;
            } else {
                roll_back(database, "a").await;
                database.execute("INSERT INTO t VALUES (5)").await;
            }
            pair.agree().await;
            let expected: &[(&str, &str)] = match commits {
                true => &[("", "1"), ("", "4"), ("a", "2"), ("a", "3"), ("", "5")],
                false => &[("", "1"), ("", "4"), ("", "5")],
            };
            assert_eq!(named(&pair.on.seen), pairs(expected), "PostgreSQL {major}");
            let more: Vec<_> = pair
                .on
                .seen
                .iter()
                .map(|seen| seen.new.get("more"))
                .collect();
            assert_eq!(more.iter().flatten().count(), if commits { 2 } else { 0 });
            pair.on.close().await;
            pair.off.close().await;
        }
    }
}

#[tokio::test]
async fn one_that_is_described_by_it_first_is_known_to_all_others() {
    for major in SERVERS {
        lockstep_kit::require!(lockstep_kit::Component::Postgres(major));
        for (streaming, commits) in [(false, true), (false, false), (true, true), (true, false)] {
            let mut pair = Pair::open(major, streaming).await;
            // In a shape that was not there when the stream began.
            pair.database
                .execute("ALTER TABLE t ADD COLUMN more text")
                .await;
            let count = if streaming { 2_000 } else { 1 };
            let work = format!(
                "INSERT INTO t SELECT n, repeat('x', 100), 'm' FROM generate_series(1, {count}) n"
            );
            prepare(&pair.database, "a", &work).await;
            let other = "INSERT INTO t VALUES (10001, NULL, 'm')";
            prepare(&pair.database, "b", other).await;
            pair.database
                .execute("INSERT INTO t VALUES (10002, NULL, 'm')")
                .await;
            commit(&pair.database, "b").await;
            match commits {
                true => commit(&pair.database, "a").await,
                false => roll_back(&pair.database, "a").await,
            }
            pair.database
                .execute("INSERT INTO t VALUES (10003, NULL, 'm')")
                .await;
            pair.agree().await;
            let rows = 3 + if commits { count } else { 0 };
            assert_eq!(named(&pair.on.seen).len(), rows, "PostgreSQL {major}");
            pair.on.close().await;
            pair.off.close().await;
        }
    }
}

#[tokio::test]
async fn a_start_waits_for_a_change_of_shape_that_is_in_doubt() {
    lockstep_kit::require!(lockstep_kit::Component::Postgres(18));
    let mut pair = Pair::open(18, false).await;
    let work = "ALTER TABLE t ADD COLUMN more text; INSERT INTO t VALUES (1, NULL, 'x')";
    prepare(&pair.database, "a", work).await;
    pair.on.catch_up(&pair.database).await;
    pair.on.feedback.confirm(pair.on.through);
    pair.on.source.close().await.expect("closes");
    let section = section(&pair.database, true, false);
    let opening = retry_open(&section, pair.states[0].path());
    // The catalog does not tell of the table before that is decided.
    let decided = async {
        let waits =
            "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = 't'::regclass)";
        wait_for(DEADLINE, "the start to wait", async || {
            pair.database.value(waits).await.as_deref() == Some("t")
        })
        .await;
        commit(&pair.database, "a").await;
    };
    let (opened, ()) = tokio::join!(opening, decided);
    pair.on = opened;
    pair.on.catch_up(&pair.database).await;
    assert_eq!(named(&pair.on.seen), pairs(&[("a", "1")]));
    let more = pair
        .on
        .seen
        .iter()
        .filter(|seen| seen.new.contains_key("more"));
    assert_eq!(more.count(), 1);
    pair.on.close().await;
    pair.off.close().await;
}

#[tokio::test]
async fn what_is_described_while_it_waits_is_not_for_its_rows() {
    lockstep_kit::require!(lockstep_kit::Component::Postgres(16));
    let mut pair = Pair::open(16, false).await;
    let database = &pair.database;
    let more = "ALTER TABLE u ADD COLUMN a text DEFAULT 'a', ADD COLUMN b text DEFAULT 'b'";
    database.execute(more).await;
    let publish = |columns: &str| format!("ALTER PUBLICATION lockstep SET TABLE t, u ({columns})");
    database.execute(&publish("id, note, a")).await;
    // Described before, so that nothing is in the transaction itself.
    database.execute("INSERT INTO u VALUES (1)").await;
    prepare(database, "a", "INSERT INTO u VALUES (2)").await;
    database.execute(&publish("id, note, b")).await;
    database.execute("INSERT INTO u VALUES (3)").await;
    commit(database, "a").await;
    pair.on.catch_up(&pair.database).await;
    let seen: Vec<_> = pair
        .on
        .seen
        .iter()
        .filter(|seen| !seen.new.is_empty())
        .collect();
    let columns = |id: &str| {
        let row = seen
            .iter()
            .find(|seen| seen.value("id") == id)
            .expect("the row");
        ["a", "b"].map(|column| row.new.get(column).cloned().flatten())
    };
    let value = |text: &str| Some(text.to_owned());
    assert_eq!(columns("1"), [value("a"), None]);
    assert_eq!(columns("3"), [None, value("b")]);
    assert_eq!(columns("2"), [value("a"), None]);
    pair.on.close().await;
}
