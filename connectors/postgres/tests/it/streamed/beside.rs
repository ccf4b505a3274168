//! What happens beside a transaction in progress: a disk without room, a table loaded again.

use std::collections::BTreeMap;

use lockstep_core::batch::Op;
use lockstep_core::position::Lsn;
use lockstep_core::source::{Reload, ReloadRequest, ReloadState};
use lockstep_kit::disk::SmallDisk;

use super::{Pair, many, run, same_after, server, source_on, without_marks};
use crate::harness::{Opened, Seen};

#[tokio::test]
async fn a_disk_without_room_is_left_alone_and_nothing_is_lost() {
    lockstep_kit::require!(lockstep_kit::Component::Postgres(17));
    // Most of it is to stay free.
    let disk = match SmallDisk::start(70 << 20) {
        Ok(disk) => disk,
        Err(error) => {
            println!("NOT RUN: {error}");
            return;
        }
    };
    let server = server(17).await;
    let mut pair = Pair::of_notes(&server).await;
    pair.on.close().await;
    let slot = crate::harness::slot_name(pair.database.url());
    let state = tempfile::tempdir_in(disk.seen()).expect("a directory");
    let before = pair.states[0].path().join("source.json");
    std::fs::copy(before, state.path().join("source.json")).expect("copied");
    pair.on = source_on(&pair.database, &pair.tables, &state, true, "on", &slot).await;
    let free = || {
        let room = rustix::fs::statvfs(state.path()).expect("a file system");
        room.f_bavail * room.f_frsize
    };
    let client = pair.database.client().await;
    run(&client, &format!("BEGIN; {}", many("t", 0, 50_000))).await;
    pair.wait_streamed(1).await;
    run(&client, &many("t", 50_000, 100_000)).await;
    run(&client, "COMMIT").await;
    let seen = std::mem::take(&mut pair.on.seen);
    pair.on.catch_up(&pair.database).await;
    pair.off.catch_up(&pair.database).await;
    let all = same_after(seen, &mut pair.on, &mut pair.off);
    assert_eq!(all.len(), 150_000);
    assert!(free() > 64 << 20, "{} bytes are free", free());
    // It has gone on without streaming.
    let streamed = pair.streamed().await;
    run(&client, &many("t", 200_000, 10_000)).await;
    pair.on.catch_up(&pair.database).await;
    assert_eq!(pair.streamed().await, streamed);
    let receives = |opened: &Opened| opened.status.get().receives_in_progress;
    assert_eq!(
        (receives(&pair.on), receives(&pair.off)),
        (Some(false), None)
    );
    // Once it is opened anew, it streams again.
    pair.on.close().await;
    pair.on = source_on(&pair.database, &pair.tables, &state, true, "on", &slot).await;
    run(&client, &many("t", 300_000, 10_000)).await;
    pair.wait_streamed(streamed + 1).await;
    assert_eq!(receives(&pair.on), Some(true));
    pair.on.close().await;
    pair.off.close().await;
}

#[tokio::test]
async fn a_table_is_loaded_again_while_a_transaction_on_it_is_in_progress() {
    lockstep_kit::require!(lockstep_kit::Component::Postgres(17));
    let server = server(17).await;
    let mut pair = Pair::of_notes(&server).await;
    pair.database.execute(&many("t", 0, 5_000)).await;
    pair.on.catch_up(&pair.database).await;
    let client = pair.database.client().await;
    let change = "UPDATE t SET note = 'changed' WHERE id % 2 = 0; DELETE FROM t WHERE id % 5 = 0";
    run(
        &client,
        &format!("BEGIN; {change}; {}", many("t", 5_000, 1_000)),
    )
    .await;
    pair.wait_streamed(1).await;
    let reloads = pair
        .on
        .source
        .reloads()
        .expect("tables can be loaded again");
    let request = ReloadRequest {
        table: "public.t".into(),
        condition: None,
        truncate: false,
    };
    reloads.request(request).expect("taken");
    let loaded = |seen: &[Seen]| seen.iter().filter(|seen| seen.op == Op::Read).count();
    while loaded(&pair.on.seen) == 0 {
        pair.on.next().await.expect("the stream goes on");
    }
    run(&client, "COMMIT").await;
    let done = || {
        let ended = |one: &Reload| one.state == ReloadState::Done;
        reloads.list().iter().all(ended)
    };
    while !done() {
        pair.on.catch_up(&pair.database).await;
        pair.on.feedback.confirm(pair.on.through);
    }
    let mut rows: BTreeMap<String, (Lsn, Option<String>)> = BTreeMap::new();
    for seen in without_marks(&pair.on.seen) {
        let values = if seen.op == Op::Delete {
            &seen.old
        } else {
            &seen.new
        };
        let key = values["id"].clone().expect("a key");
        let version = seen.position.commit;
        let note = (seen.op != Op::Delete).then(|| seen.value("note").to_owned());
        // As a sink that keeps versions.
        let known = rows.get(&key).map_or(Lsn::ZERO, |(version, _)| *version);
        if version >= known {
            rows.insert(key, (version, note));
        }
    }
    let there = client.query("SELECT id::text, note FROM t", &[]).await;
    let there: BTreeMap<String, String> = there
        .expect("rows")
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    let arrived: BTreeMap<String, String> = rows
        .into_iter()
        .filter_map(|(key, (_, note))| Some((key, note?)))
        .collect();
    assert_eq!(arrived, there);
    assert!(loaded(&pair.on.seen) > 1_000);
    pair.on.close().await;
    pair.off.close().await;
}
