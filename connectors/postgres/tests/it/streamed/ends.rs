//! A transaction in progress meets the end of a connection or of the server.

use lockstep_kit::postgres::Database;

use super::{ENDS, Pair, many, run, same, server, source_on, without_marks};

/// An open source loses its connection.
async fn terminate(database: &Database, of: &str) {
    let slot = format!("{}_{of}", crate::harness::slot_name(database.url()));
    database
        .execute(&format!(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{slot}'"
        ))
        .await;
}

#[tokio::test]
async fn a_connection_lost_in_the_middle_loses_nothing() {
    lockstep_kit::require!(lockstep_kit::Component::Postgres(17));
    let server = server(17).await;
    let mut pair = Pair::of_notes(&server).await;
    let slow = pair.database.client().await;
    run(&slow, "BEGIN").await;
    run(&slow, &many("t", 0, 2_000)).await;
    pair.wait_streamed(1).await;
    // Others commit, and are confirmed, while it is open.
    pair.database.execute(&many("t", 10_000, 10)).await;
    pair.catch_up().await;
    assert_eq!(without_marks(&pair.on.seen).len(), 10);
    pair.confirm().await;

    // The server's side ends in the middle: everything that is open comes again.
    terminate(&pair.database, "on").await;
    while pair.on.next().await.is_ok() {}
    let mut seen = std::mem::take(&mut pair.on.seen);
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
    run(&slow, &many("t", 2_000, 2_000)).await;
    pair.wait_streamed(before + 1).await;

    // It goes on without streaming: the open transaction comes when it commits.
    pair.on.close().await;
    let mut on = source_on(
        &pair.database,
        &pair.tables,
        &pair.states[0],
        false,
        "on",
        &slot,
    )
    .await;
    run(&slow, "COMMIT").await;
    on.catch_up(&pair.database).await;
    pair.off.catch_up(&pair.database).await;
    seen.append(&mut on.seen);
    for seen in &mut seen {
        // What came before a connection is not known to it.
        seen.previous_commit = None;
    }
    for seen in &mut pair.off.seen {
        seen.previous_commit = None;
    }
    same(&seen, &pair.off.seen);
    assert_eq!(without_marks(&seen).len(), 4_010);
    on.close().await;
    pair.off.close().await;
}

#[tokio::test]
async fn a_transaction_that_comes_again_has_the_same_positions_either_way() {
    lockstep_kit::require!(lockstep_kit::Component::Postgres(16));
    let server = server(16).await;
    let mut pair = Pair::of_notes(&server).await;
    let client = pair.database.client().await;
    // More than a batch, so that a part of it can be received without the rest.
    let large = format!(
        "BEGIN; {}; SAVEPOINT a; {}; ROLLBACK TO a; {}; COMMIT",
        many("t", 0, 15_000),
        many("t", 20_000, 100),
        many("t", 30_000, 15_000)
    );
    run(&client, &large).await;
    let slot = crate::harness::slot_name(pair.database.url());
    let mut parts = Vec::new();
    for streaming in [true, false, true] {
        while pair.on.seen.len() < 5_000 {
            pair.on.next().await.expect("the stream goes on");
        }
        assert!(
            pair.on.through < pair.on.seen[0].position.commit,
            "nothing of it is confirmed"
        );
        parts.push(std::mem::take(&mut pair.on.seen));
        pair.on.close().await;
        pair.on = source_on(
            &pair.database,
            &pair.tables,
            &pair.states[0],
            streaming,
            "on",
            &slot,
        )
        .await;
    }
    pair.catch_up().await;
    for part in parts {
        assert!(without_marks(&pair.off.seen).starts_with(&part));
    }
    pair.on.close().await;
    pair.off.close().await;
}

#[tokio::test]
async fn a_transaction_that_a_crash_of_the_server_ended_does_not_arrive() {
    for major in ENDS {
        lockstep_kit::require!(lockstep_kit::Component::Postgres(major));
        let server = server(major).await;
        let mut pair = Pair::of_notes(&server).await;
        let client = pair.database.client().await;
        run(&client, &format!("BEGIN; {}", many("t", 0, 2_000))).await;
        pair.wait_streamed(1).await;
        // On disk, so that the server streams it again after the crash, and only then learns that it has ended.
        pair.database.execute(&many("t", 10_000, 10)).await;
        pair.catch_up().await;
        let mut seen = [
            std::mem::take(&mut pair.on.seen),
            std::mem::take(&mut pair.off.seen),
        ];
        server.kill_all();
        for opened in [&mut pair.on, &mut pair.off] {
            while opened.next().await.is_ok() {}
        }
        server.restart().await;
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
        pair.off = source_on(
            &pair.database,
            &pair.tables,
            &pair.states[1],
            false,
            "off",
            &slot,
        )
        .await;
        pair.database.execute(&many("t", 20_000, 2_000)).await;
        pair.on.catch_up(&pair.database).await;
        pair.off.catch_up(&pair.database).await;
        for (seen, opened) in seen.iter_mut().zip([&mut pair.on, &mut pair.off]) {
            let last = seen.last().map(|seen| seen.position);
            let more = opened.seen.drain(..);
            seen.extend(more.filter(|seen| Some(seen.position) > last));
            for seen in seen {
                seen.previous_commit = None;
            }
        }
        same(&seen[0], &seen[1]);
        assert_eq!(without_marks(&seen[0]).len(), 2_010, "PostgreSQL {major}");
        pair.on.close().await;
        pair.off.close().await;
    }
}
