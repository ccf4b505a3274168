//! Which of a transaction stays: savepoints, transactions that take turns, messages, prepared ones.

use std::time::Instant;

use lockstep_core::batch::Op;
use lockstep_kit::wait_for;

use super::{ENDS, Pair, many, run, same_after, server, source_on, without_marks};
use crate::harness::DEADLINE;

#[tokio::test]
async fn a_thousand_savepoints_of_which_some_are_rolled_back() {
    for major in ENDS {
        lockstep_kit::require!(lockstep_kit::Component::Postgres(major));
        let server = server(major).await;
        let mut pair = Pair::of_notes(&server).await;
        let client = pair.database.client().await;
        run(&client, "BEGIN").await;
        for number in 0..1000_u64 {
            // Every third is rolled back, every seventh holds one that is; every tenth is released first, into one that is
            // rolled back every hundredth time.
            let mut sql = format!("SAVEPOINT a; {};", many("t", number * 100, 5));
            if number % 7 == 0 {
                sql += &format!(
                    "SAVEPOINT b; {}; ROLLBACK TO b;",
                    many("t", number * 100 + 10, 5)
                );
            }
            if number % 10 == 0 {
                sql += &format!(
                    "SAVEPOINT c; {}; RELEASE c;",
                    many("t", number * 100 + 20, 5)
                );
            }
            sql += if number % 3 == 0 || number % 100 == 0 {
                "ROLLBACK TO a; RELEASE a"
            } else {
                "RELEASE a"
            };
            run(&client, &sql).await;
        }
        pair.wait_streamed(1).await;
        run(&client, "COMMIT").await;
        pair.catch_up().await;
        let seen = without_marks(&pair.on.seen);
        let ids: Vec<String> = seen
            .iter()
            .map(|seen| seen.value("id").to_owned())
            .collect();
        let rows = client
            .query("SELECT id::text FROM t ORDER BY t.id", &[])
            .await
            .expect("rows");
        let rows: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        assert_eq!(ids, rows, "PostgreSQL {major}");
        let ordinals: Vec<u64> = seen.iter().map(|seen| seen.position.ordinal).collect();
        assert_eq!(ordinals, (1..=rows.len() as u64).collect::<Vec<_>>());
        pair.on.close().await;
        pair.off.close().await;
    }
}

#[tokio::test]
async fn fifty_open_transactions_take_turns() {
    lockstep_kit::require!(lockstep_kit::Component::Postgres(17));
    let server = server(17).await;
    let mut pair = Pair::of_notes(&server).await;
    let mut clients = Vec::new();
    for _ in 0..50 {
        let client = pair.database.client().await;
        run(&client, "BEGIN").await;
        clients.push(client);
    }
    for turn in 0..5 {
        for (number, client) in (0..).zip(&clients) {
            run(client, &many("t", number * 10_000 + turn * 1_000, 150)).await;
        }
    }
    // All of them are streamed before the first ends.
    pair.wait_streamed(50).await;
    for (number, client) in clients.iter().enumerate().rev() {
        let end = if number % 5 == 0 {
            "ROLLBACK"
        } else {
            "COMMIT"
        };
        run(client, end).await;
    }
    pair.catch_up().await;
    assert_eq!(without_marks(&pair.on.seen).len(), 40 * 5 * 150);
    pair.on.close().await;
    pair.off.close().await;
}

#[tokio::test]
async fn messages_that_may_have_been_rolled_back_are_told_apart_without_streaming() {
    for major in ENDS {
        lockstep_kit::require!(lockstep_kit::Component::Postgres(major));
        let server = server(major).await;
        let mut pair = Pair::of_notes(&server).await;
        let emit = |text: &str| format!("SELECT pg_logical_emit_message(true, 'p', '{text}')");
        let client = pair.database.client().await;
        // Certain: a row of the transaction itself is behind it.
        run(
            &client,
            &format!(
                "BEGIN; {}; {}; {}",
                many("t", 0, 2_000),
                emit("kept"),
                many("t", 2_000, 2_000)
            ),
        )
        .await;
        run(&client, "SAVEPOINT a").await;
        run(&client, &many("t", 5_000, 2_000)).await;
        pair.wait_streamed(1).await;
        run(&client, "ROLLBACK TO a; COMMIT").await;
        pair.catch_up().await;
        assert_eq!(without_marks(&pair.on.seen).len(), 4_001);
        let slot = format!("{}_on", crate::harness::slot_name(pair.database.url()));
        let pid =
            format!("SELECT active_pid::text FROM pg_replication_slots WHERE slot_name = '{slot}'");
        let before = pair.database.value(&pid).await;
        let streamed = pair.streamed().await;

        // In doubt: the server does not say whose they are.
        run(&client, "BEGIN").await;
        run(&client, &emit("kept too")).await;
        run(&client, "SAVEPOINT a").await;
        run(&client, &emit("rolled back")).await;
        run(&client, &many("t", 10_000, 2_000)).await;
        pair.wait_streamed(streamed + 1).await;
        run(&client, "ROLLBACK TO a").await;
        run(&client, &many("t", 20_000, 2_000)).await;
        wait_for(DEADLINE, "another connection", async || {
            let now = pair.database.value(&pid).await;
            now.is_some() && now != before
        })
        .await;
        run(&client, "COMMIT").await;
        // What was not confirmed comes again; whoever receives it knows its position.
        let seen = std::mem::take(&mut pair.on.seen);
        pair.on.catch_up(&pair.database).await;
        pair.off.catch_up(&pair.database).await;
        let messages = same_after(seen, &mut pair.on, &mut pair.off);
        let messages = messages.iter().filter(|seen| seen.op == Op::Message);
        let messages: Vec<&str> = messages.map(|seen| seen.value("content")).collect();
        assert_eq!(messages, ["kept", "kept too"], "PostgreSQL {major}");
        pair.on.close().await;
        pair.off.close().await;
    }
}

#[tokio::test]
async fn a_prepared_transaction_comes_when_it_is_committed() {
    for major in ENDS {
        lockstep_kit::require!(lockstep_kit::Component::Postgres(major));
        let server = server(major).await;
        let mut pair = Pair::of_notes(&server).await;
        let client = pair.database.client().await;
        for (gid, from) in [("kept", 0), ("gone", 10_000)] {
            run(&client, &format!("BEGIN; {}", many("t", from, 2_000))).await;
            run(&client, &format!("PREPARE TRANSACTION '{gid}'")).await;
        }
        pair.wait_streamed(2).await;
        pair.catch_up().await;
        assert!(without_marks(&pair.on.seen).is_empty());
        run(&client, "ROLLBACK PREPARED 'gone'").await;
        run(&client, "COMMIT PREPARED 'kept'").await;
        pair.catch_up().await;
        assert_eq!(
            without_marks(&pair.on.seen).len(),
            2_000,
            "PostgreSQL {major}"
        );
        pair.on.close().await;
        pair.off.close().await;
    }
}

/// What lies before the confirmed position the server reads again, and does not send at once; of a savepoint that it streams
/// then, it does not say when that is rolled back.
#[tokio::test]
async fn a_rolled_back_savepoint_that_nobody_told_of_stays_away() {
    for major in [14, 17, 18] {
        lockstep_kit::require!(lockstep_kit::Component::Postgres(major));
        let server = server(major).await;
        let mut pair = Pair::of_notes(&server).await;
        let slow = pair.database.client().await;
        run(&slow, &format!("BEGIN; {}; SAVEPOINT a", many("t", 0, 100))).await;
        run(&slow, &many("t", 20_000, 6_000)).await;
        pair.wait_streamed(1).await;
        pair.database.execute(&many("t", 10_000, 10)).await;
        pair.catch_up().await;
        pair.confirm().await;
        let seen = std::mem::take(&mut pair.on.seen);
        pair.on.close().await;
        let slot = crate::harness::slot_name(pair.database.url());
        pair.on = source_on(
            &pair.database,
            &pair.tables,
            &pair.states[0],
            true,
            "on",
            &slot,
        )
        .await;
        let before = pair.streamed().await;
        // Once: what it has in memory then, it does not forget.
        let mut next = 50_000;
        let deadline = Instant::now() + DEADLINE;
        while pair.streamed().await <= before {
            assert!(Instant::now() < deadline, "the server does not stream");
            run(&slow, &many("t", next, 20)).await;
            next += 20;
            let mark = "SELECT pg_logical_emit_message(true, 'test', '')";
            pair.database.execute(mark).await;
        }
        let more = many("t", 8_000, 1);
        run(&slow, &format!("ROLLBACK TO a; {more}; COMMIT")).await;
        pair.on.catch_up(&pair.database).await;
        pair.off.catch_up(&pair.database).await;
        let all = same_after(seen, &mut pair.on, &mut pair.off);
        assert_eq!(all.len(), 111, "PostgreSQL {major}");
        pair.on.close().await;
        pair.off.close().await;
    }
}
