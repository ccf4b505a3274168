//! What a branch has changed is asked for before it commits.

use std::sync::Arc;

use lockstep_core::batch::{Branch, Prepared};
use lockstep_core::position::Lsn;

use super::{Pair, SERVERS, commit, nameless, prepare, roll_back};
use crate::harness::{Opened, Seen};
use crate::streamed::{many, same};

/// The last branch that was told to be prepared.
fn prepared(opened: &Opened) -> Arc<Prepared> {
    let mut branches = opened.branches.iter().rev();
    let last = branches.find_map(|branch| match branch {
        Branch::Prepared(prepared) => Some(Arc::clone(prepared)),
        _ => None,
    });
    last.expect("one was prepared")
}

/// Asks for it; whether it comes.
async fn ask(opened: &Opened, prepared: &Arc<Prepared>) -> bool {
    let fences = opened.source.fences().expect("it can be asked");
    fences.early(prepared).await.expect("an answer")
}

fn is_told(opened: &Opened, place: Lsn) -> bool {
    let mut branches = opened.branches.iter();
    branches.any(|branch| matches!(branch, Branch::Early(early) if early.lsn == place))
}

/// What arrived as it was prepared, and what otherwise.
fn parted(seen: &[Seen], place: Lsn) -> (Vec<Seen>, Vec<Seen>) {
    let all = seen.iter().cloned();
    all.partition(|seen| seen.position.commit == place)
}

#[tokio::test]
async fn it_comes_as_it_was_prepared_and_again_when_it_commits() {
    for major in SERVERS {
        lockstep_kit::require!(lockstep_kit::Component::Postgres(major));
        for streaming in [true, false] {
            let mut pair = Pair::open(major, streaming).await;
            let work = format!(
                "{}; SAVEPOINT s; {}; ROLLBACK TO s; {}; INSERT INTO unpublished VALUES (1); UPDATE t SET note = 'b' WHERE id = 1",
                many("t", 0, 2_000),
                many("t", 10_000, 2_000),
                many("u", 20_000, 2_000)
            );
            prepare(&pair.database, "a", &work).await;
            pair.database.execute("INSERT INTO u VALUES (1)").await;
            pair.on.catch_up(&pair.database).await;
            let branch = prepared(&pair.on);
            assert!(ask(&pair.on, &branch).await);
            while !is_told(&pair.on, branch.lsn) {
                pair.on.next().await.expect("it comes");
            }
            let (early, _) = parted(&pair.on.seen, branch.lsn);
            assert_eq!(early.len(), 4_001, "PostgreSQL {major}");
            pair.database.execute("INSERT INTO u VALUES (2)").await;
            commit(&pair.database, "a").await;
            pair.catch_up().await;
            let (again, rest) = parted(&pair.on.seen, branch.lsn);
            assert_eq!(again.len(), early.len(), "asked for once, told once");
            same(&nameless(&rest), &pair.off.seen);
            let committed: Vec<&Seen> = rest
                .iter()
                .filter(|seen| seen.gid.as_deref() == Some("a"))
                .collect();
            assert_eq!(committed.len(), early.len());
            for (early, late) in early.iter().zip(committed) {
                let of = |seen: &Seen| {
                    (
                        seen.op,
                        seen.table.clone(),
                        seen.position.ordinal,
                        seen.new.clone(),
                    )
                };
                assert_eq!(of(early), of(late));
                assert_eq!((early.lsn, &early.gid), (late.lsn, &late.gid));
            }
            pair.on.close().await;
            pair.off.close().await;
        }
    }
}

#[tokio::test]
async fn one_that_has_ended_does_not_come() {
    lockstep_kit::require!(lockstep_kit::Component::Postgres(16));
    let mut pair = Pair::open(16, false).await;
    prepare(&pair.database, "a", "INSERT INTO t VALUES (1)").await;
    pair.on.catch_up(&pair.database).await;
    let branch = prepared(&pair.on);
    roll_back(&pair.database, "a").await;
    assert!(!ask(&pair.on, &branch).await, "the server does not list it");
    // One of its name is another one, and is not taken for it.
    prepare(&pair.database, "a", "INSERT INTO t VALUES (2)").await;
    assert!(!ask(&pair.on, &branch).await, "another one");
    pair.agree().await;
    let second = prepared(&pair.on);
    assert!(second.lsn > branch.lsn && ask(&pair.on, &second).await);
    assert!(!is_told(&pair.on, branch.lsn));
    assert!(pair.on.seen.iter().all(|seen| seen.gid.is_none()));
    roll_back(&pair.database, "a").await;
    pair.on.close().await;
    pair.off.close().await;
}

/// What the catalog does not show yet is not guessed: its rows come when it commits.
#[tokio::test]
async fn one_that_changes_a_table_does_not_come_before_it_commits() {
    lockstep_kit::require!(lockstep_kit::Component::Postgres(17));
    let mut pair = Pair::open(17, false).await;
    let work = "INSERT INTO t VALUES (1); ALTER TABLE t ADD COLUMN more text; INSERT INTO t VALUES (2, NULL, 'x')";
    prepare(&pair.database, "a", work).await;
    pair.on.catch_up(&pair.database).await;
    let branch = prepared(&pair.on);
    for _ in 0..2 {
        assert!(ask(&pair.on, &branch).await, "it is listed");
        pair.database.execute("INSERT INTO u VALUES (9)").await;
        pair.database.execute("DELETE FROM u").await;
        pair.on.catch_up(&pair.database).await;
    }
    assert!(!is_told(&pair.on, branch.lsn));
    commit(&pair.database, "a").await;
    pair.catch_up().await;
    let (_, rest) = parted(&pair.on.seen, branch.lsn);
    same(&nameless(&rest), &pair.off.seen);
    pair.on.close().await;
    pair.off.close().await;
}
