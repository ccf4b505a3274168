//! Tables whose shape changes inside a transaction in progress.

use super::{ENDS, Pair, many, run, same_after, server, without_marks};
use crate::stream::MAJORS;

#[tokio::test]
async fn a_change_of_shape_inside_holds_where_it_was_made() {
    for major in MAJORS {
        lockstep_kit::require!(lockstep_kit::Component::Postgres(major));
        let server = server(major).await;
        let mut pair = Pair::open(
            &server,
            "CREATE TABLE t (id bigint PRIMARY KEY, note text); CREATE TABLE u (id bigint PRIMARY KEY, note text)",
            &["public.t", "public.u"],
        )
        .await;
        let client = pair.database.client().await;
        // One that stays, and one of a transaction that is rolled back whole.
        run(&client, &format!("BEGIN; {}", many("t", 0, 4_000))).await;
        pair.wait_streamed(1).await;
        pair.database.execute(&many("u", 0, 10)).await;
        run(&client, "SAVEPOINT a; ALTER TABLE t ADD more int DEFAULT 7").await;
        run(
            &client,
            &format!("{}; RELEASE a; COMMIT", many("t", 4_000, 4_000)),
        )
        .await;
        // Before anybody locks the tables again: new shapes are looked up.
        pair.catch_up().await;
        run(&client, "BEGIN; ALTER TABLE t DROP note").await;
        run(
            &client,
            "INSERT INTO t SELECT n FROM generate_series(10000, 13000) n",
        )
        .await;
        pair.wait_streamed(2).await;
        run(&client, "ROLLBACK").await;
        pair.database.execute(&many("t", 8_000, 10)).await;
        pair.catch_up().await;
        let seen = without_marks(&pair.on.seen);
        let with = seen
            .iter()
            .filter(|seen| seen.new.contains_key("more"))
            .count();
        assert_eq!((seen.len(), with), (8_020, 4_010), "PostgreSQL {major}");
        pair.on.close().await;
        pair.off.close().await;
    }
}

#[tokio::test]
async fn a_transaction_that_the_server_cannot_stream_comes_without_streaming() {
    for major in ENDS {
        lockstep_kit::require!(lockstep_kit::Component::Postgres(major));
        let server = server(major).await;
        let mut pair = Pair::of_notes(&server).await;
        pair.database.execute("INSERT INTO t VALUES (-1, '')").await;
        pair.catch_up().await;
        let client = pair.database.client().await;
        // PostgreSQL: could not map filenode … to relation OID.
        run(
            &client,
            &format!(
                "BEGIN; {}; SAVEPOINT a; ALTER TABLE t ADD gone int",
                many("t", 0, 2_000)
            ),
        )
        .await;
        run(&client, &many("t", 2_000, 2_000)).await;
        run(
            &client,
            &format!("ROLLBACK TO a; {}", many("t", 4_000, 2_000)),
        )
        .await;
        run(&client, "ALTER TABLE t ADD more int").await;
        run(
            &client,
            &format!("{}; COMMIT", many("t (id, note)", 6_000, 2_000)),
        )
        .await;
        let seen = std::mem::take(&mut pair.on.seen);
        pair.on.catch_up(&pair.database).await;
        pair.off.catch_up(&pair.database).await;
        let all = same_after(seen, &mut pair.on, &mut pair.off);
        assert_eq!(all.len(), 6_001, "PostgreSQL {major}");
        assert!(all.iter().all(|seen| !seen.new.contains_key("gone")));
        pair.on.close().await;
        pair.off.close().await;
    }
}
