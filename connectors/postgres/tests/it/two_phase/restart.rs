//! A transaction that is prepared meets the end of a connection, of lockstep or of the server. What PostgreSQL sends behind a
//! restart depends on what was confirmed: nothing is that would keep it from sending a transaction again.

use lockstep_core::position::Lsn;
use lockstep_kit::postgres::Database;
use lockstep_kit::wait_for;
use tokio_postgres::Client;

use super::{
    Pair, SERVERS, commit, named, nameless, pairs, prepare, retry_open, roll_back, section,
};
use crate::harness::{DEADLINE, Seen};
use crate::streamed::{run, same};

impl Pair {
    /// All that has come counts as durable, and the one ends.
    async fn confirm_and_close(&mut self) {
        self.on.feedback.confirm(self.on.through);
        self.on.source.close().await.expect("closes");
    }

    /// The server knows that everything before `place` is confirmed, and nothing behind it.
    async fn wait_confirmed(&self, place: Lsn) {
        wait_for(DEADLINE, "the server to know it", async || {
            let confirmed = self.confirmed().await;
            (confirmed == place)
                .then_some(())
                .ok_or_else(|| format!("{confirmed}, and not {place}"))
        })
        .await;
    }

    /// Where the first of those was prepared that are in doubt.
    async fn in_doubt_from(&self) -> Lsn {
        wait_for(DEADLINE, "it to be told", async || {
            self.on.status.get().in_doubt_from.map(Lsn)
        })
        .await
    }

    /// What the one sees in its next life, up to now, that is new behind `seen`; the rest has to be what it saw.
    async fn live_again(&mut self, seen: &mut Vec<Seen>) -> Vec<Seen> {
        let before = std::mem::take(&mut self.on.seen);
        seen.extend(before);
        self.open_again().await;
        self.on.catch_up(&self.database).await;
        let last = seen.last().map(|seen| seen.position);
        let (again, new): (Vec<Seen>, Vec<Seen>) = std::mem::take(&mut self.on.seen)
            .into_iter()
            .partition(|seen| Some(seen.position) <= last);
        for again in &again {
            let known = seen.iter().find(|seen| seen.position == again.position);
            let known = known.expect("nothing comes that should have come before");
            assert_eq!(
                (&known.new, &known.gid, known.lsn),
                (&again.new, &again.gid, again.lsn)
            );
        }
        new
    }

    /// All that was seen is what the other sees.
    async fn end(mut self, mut seen: Vec<Seen>) {
        self.off.catch_up(&self.database).await;
        for seen in seen.iter_mut().chain(&mut self.off.seen) {
            // What came before a connection is not known to it.
            seen.previous_commit = None;
        }
        same(&nameless(&seen), &self.off.seen);
        self.on.close().await;
        self.off.close().await;
    }
}

/// What becomes of it, and when.
#[derive(Clone, Copy, Debug)]
enum Decided {
    Commits { away: bool },
    RollsBack { away: bool },
}

#[tokio::test]
async fn one_in_doubt_comes_again_and_nothing_behind_it_is_confirmed() {
    for major in SERVERS {
        lockstep_kit::require!(lockstep_kit::Component::Postgres(major));
        for decided in [
            Decided::Commits { away: false },
            Decided::Commits { away: true },
            Decided::RollsBack { away: false },
            Decided::RollsBack { away: true },
        ] {
            let mut pair = Pair::open(major, false).await;
            prepare(&pair.database, "a", "INSERT INTO t VALUES (1)").await;
            pair.database.execute("INSERT INTO t VALUES (2)").await;
            pair.on.catch_up(&pair.database).await;
            let from = pair.in_doubt_from().await;
            assert!(pair.on.through > from, "what is behind it goes on");
            pair.confirm_and_close().await;
            pair.wait_confirmed(from).await;

            let decide = async |database: &_| match decided {
                Decided::Commits { .. } => commit(database, "a").await,
                Decided::RollsBack { .. } => roll_back(database, "a").await,
            };
            let mut seen = Vec::new();
            let away = match decided {
                Decided::Commits { away } | Decided::RollsBack { away } => away,
            };
            if away {
                decide(&pair.database).await;
            }
            let mut new = pair.live_again(&mut seen).await;
            if !away {
                assert_eq!(named(&new), [], "{decided:?} on PostgreSQL {major}");
                decide(&pair.database).await;
                pair.on.catch_up(&pair.database).await;
                new.append(&mut pair.on.seen);
            }
            let expected: &[(&str, &str)] = match decided {
                Decided::Commits { .. } => &[("a", "1")],
                Decided::RollsBack { .. } => &[],
            };
            assert_eq!(
                named(&new),
                pairs(expected),
                "{decided:?} on PostgreSQL {major}"
            );
            seen.extend(new);
            // Nothing is in doubt any more.
            pair.on.feedback.confirm(pair.on.through);
            let through = pair.on.through;
            wait_for(DEADLINE, "everything to be confirmed", async || {
                pair.confirmed().await >= through
            })
            .await;
            pair.end(seen).await;
        }
    }
}

#[tokio::test]
async fn a_commit_that_is_not_durable_comes_again_with_its_rows_and_one_that_is_does_not() {
    for major in SERVERS {
        lockstep_kit::require!(lockstep_kit::Component::Postgres(major));
        for durable in [false, true] {
            let mut pair = Pair::open(major, false).await;
            pair.on.catch_up(&pair.database).await;
            pair.on.feedback.confirm(pair.on.through);
            prepare(&pair.database, "a", "INSERT INTO t VALUES (1)").await;
            pair.on.catch_up(&pair.database).await;
            let a = pair.in_doubt_from().await;
            prepare(&pair.database, "b", "INSERT INTO t VALUES (2)").await;
            // The next one that is asked about is `b`.
            let here = pair.here().await;
            commit(&pair.database, "a").await;
            pair.on.catch_up(&pair.database).await;
            assert_eq!(named(&pair.on.seen), pairs(&[("a", "1")]));
            let b = wait_for(DEADLINE, "it to be told", async || {
                let from = pair.on.status.get().in_doubt_from.map(Lsn);
                from.filter(|from| *from > a && *from < here)
            })
            .await;
            if durable {
                pair.confirm_and_close().await;
                pair.wait_confirmed(b).await;
            } else {
                pair.on.feedback.confirm(here);
                pair.on.source.close().await.expect("closes");
                pair.wait_confirmed(a).await;
            }
            let again = std::mem::take(&mut pair.on.seen);
            let mut seen = Vec::new();
            if durable {
                // Its rows stay behind what is confirmed, and nobody misses them.
                seen = again;
            }
            pair.open_again().await;
            commit(&pair.database, "b").await;
            pair.on.catch_up(&pair.database).await;
            let expected: &[(&str, &str)] = match durable {
                true => &[("b", "2")],
                false => &[("a", "1"), ("b", "2")],
            };
            let new = std::mem::take(&mut pair.on.seen);
            assert_eq!(named(&new), pairs(expected), "PostgreSQL {major}");
            seen.extend(new);
            pair.end(seen).await;
        }
    }
}

#[tokio::test]
async fn one_that_outlives_a_crash_of_the_server_arrives() {
    for major in SERVERS {
        lockstep_kit::require!(lockstep_kit::Component::Postgres(major));
        let mut pair = Pair::open(major, false).await;
        prepare(&pair.database, "a", "INSERT INTO t VALUES (1)").await;
        pair.database.execute("INSERT INTO t VALUES (2)").await;
        pair.catch_up().await;
        pair.on.feedback.confirm(pair.on.through);
        pair.server.kill_all();
        for opened in [&mut pair.on, &mut pair.off] {
            while opened.next().await.is_ok() {}
        }
        pair.server.restart().await;
        pair.off = retry_open(
            &section(&pair.database, false, false),
            pair.states[1].path(),
        )
        .await;
        let mut seen = Vec::new();
        let new = pair.live_again(&mut seen).await;
        assert_eq!(named(&new), [], "PostgreSQL {major}");
        commit(&pair.database, "a").await;
        pair.on.catch_up(&pair.database).await;
        assert_eq!(
            named(&pair.on.seen),
            pairs(&[("a", "1")]),
            "PostgreSQL {major}"
        );
        pair.on.close().await;
        pair.off.close().await;
    }
}

#[tokio::test]
async fn it_is_switched_on_for_a_slot_that_is_there_and_loses_nothing_of_what_was_prepared() {
    for major in SERVERS {
        lockstep_kit::require!(lockstep_kit::Component::Postgres(major));
        let mut pair = Pair::open(major, false).await;
        // The other one is switched, behind a place that is confirmed.
        prepare(&pair.database, "before", "INSERT INTO t VALUES (1)").await;
        prepare(&pair.database, "gone", "INSERT INTO t VALUES (2)").await;
        pair.database.execute("INSERT INTO t VALUES (3)").await;
        pair.catch_up().await;
        pair.off.feedback.confirm(pair.off.through);
        pair.off.source.close().await.expect("closes");
        let section = lockstep_postgres::PostgresConfig {
            two_phase: true,
            ..section(&pair.database, false, false)
        };
        let mut seen = std::mem::take(&mut pair.off.seen);
        pair.off = retry_open(&section, pair.states[1].path()).await;
        prepare(&pair.database, "after", "INSERT INTO t VALUES (4)").await;
        roll_back(&pair.database, "gone").await;
        commit(&pair.database, "after").await;
        commit(&pair.database, "before").await;
        pair.catch_up().await;
        let expected = [("", "3"), ("after", "4"), ("before", "1")];
        assert_eq!(named(&pair.on.seen), pairs(&expected), "PostgreSQL {major}");
        seen.append(&mut pair.off.seen);
        assert_eq!(named(&seen), pairs(&expected), "PostgreSQL {major}");

        // It stays so although the file says otherwise: the server goes on sending them.
        pair.off.feedback.confirm(pair.off.through);
        pair.off.source.close().await.expect("closes");
        let section = lockstep_postgres::PostgresConfig {
            two_phase: false,
            ..section
        };
        pair.off = retry_open(&section, pair.states[1].path()).await;
        prepare(&pair.database, "still", "INSERT INTO t VALUES (5)").await;
        commit(&pair.database, "still").await;
        pair.off.catch_up(&pair.database).await;
        assert_eq!(
            named(&pair.off.seen),
            pairs(&[("still", "5")]),
            "PostgreSQL {major}"
        );
        pair.on.close().await;
        pair.off.close().await;
    }
}

#[tokio::test]
async fn what_only_locks_and_what_changes_nothing_of_ours_arrives_as_nothing() {
    for major in SERVERS {
        lockstep_kit::require!(lockstep_kit::Component::Postgres(major));
        let mut pair = Pair::open(major, false).await;
        pair.database.execute("INSERT INTO t VALUES (1)").await;
        let nothing = [
            "SELECT FROM t WHERE id = 1 FOR UPDATE",
            "INSERT INTO unpublished SELECT count(*) FROM unpublished",
            "SAVEPOINT s; INSERT INTO t VALUES (2); ROLLBACK TO s",
            "SELECT pg_current_xact_id()",
        ];
        for (at, work) in nothing.iter().enumerate() {
            for commits in [true, false] {
                let gid = format!("nothing {at}");
                prepare(&pair.database, &gid, work).await;
                match commits {
                    true => commit(&pair.database, &gid).await,
                    false => roll_back(&pair.database, &gid).await,
                }
            }
        }
        pair.catch_up().await;
        assert_eq!(
            named(&pair.on.seen),
            pairs(&[("", "1")]),
            "PostgreSQL {major}"
        );
        assert_eq!(
            named(&pair.off.seen),
            pairs(&[("", "1")]),
            "PostgreSQL {major}"
        );
        pair.on.feedback.confirm(pair.on.through);
        let through = pair.on.through;
        wait_for(DEADLINE, "everything to be confirmed", async || {
            pair.confirmed().await >= through
        })
        .await;
        pair.on.close().await;
        pair.off.close().await;
    }
}

/// Waits until the creation of a slot waits for a transaction.
async fn waits_for(database: &Database, xid: &str) {
    let ask = format!(
        "SELECT EXISTS (SELECT FROM pg_locks l JOIN pg_stat_activity a USING (pid) \
         WHERE NOT l.granted AND l.locktype = 'transactionid' AND l.transactionid::text = '{xid}' \
         AND a.backend_type = 'walsender')"
    );
    wait_for(DEADLINE, "the slot to wait", async || {
        database.value(&ask).await.as_deref() == Some("t")
    })
    .await;
}

/// A session with a transaction that has written something, and the id of that.
async fn busy(database: &Database, id: u32) -> (Client, String) {
    let client = database.client().await;
    run(
        &client,
        &format!("BEGIN; INSERT INTO unpublished VALUES ({id})"),
    )
    .await;
    let row = client
        .query_one("SELECT pg_current_xact_id()::text", &[])
        .await;
    let xid = row.expect("an id").get(0);
    (client, xid)
}

#[tokio::test]
async fn one_that_is_prepared_while_the_tables_are_copied_again_arrives() {
    for major in SERVERS {
        lockstep_kit::require!(lockstep_kit::Component::Postgres(major));
        let mut pair = Pair::open(major, false).await;
        pair.on.catch_up(&pair.database).await;
        pair.confirm_and_close().await;
        pair.off.close().await;
        // Nothing is remembered of the slot: the tables are copied again, at a place that is consistent once two generations of
        // transactions have ended.
        let state = tempfile::tempdir().expect("a directory");
        let section = lockstep_postgres::PostgresConfig {
            snapshot: lockstep_postgres::SnapshotMode::Initial,
            ..section(&pair.database, true, false)
        };
        let database = &pair.database;
        let (first, first_xid) = busy(database, 1).await;
        let opening = retry_open(&section, state.path());
        let others = async {
            waits_for(database, &first_xid).await;
            let (second, second_xid) = busy(database, 2).await;
            run(&first, "COMMIT").await;
            waits_for(database, &second_xid).await;
            prepare(database, "a", "INSERT INTO t VALUES (1)").await;
            run(&second, "COMMIT").await;
        };
        let (mut opened, ()) = tokio::join!(opening, others);
        commit(database, "a").await;
        opened.catch_up(database).await;
        assert_eq!(
            named(&opened.seen),
            pairs(&[("", "NULL"), ("", "NULL"), ("a", "1")]),
            "PostgreSQL {major}"
        );
        opened.close().await;
    }
}

/// What the pipeline does when it opens a source again: the new one hears at once how far every sink is.
#[tokio::test]
async fn a_connection_that_is_made_again_confirms_nothing_before_it_knows_what_is_in_doubt() {
    for major in SERVERS {
        lockstep_kit::require!(lockstep_kit::Component::Postgres(major));
        let mut pair = Pair::open(major, false).await;
        prepare(&pair.database, "a", "INSERT INTO t VALUES (1)").await;
        // Nothing of ours follows, only the end of the log moves on.
        pair.database
            .execute("INSERT INTO unpublished VALUES (1)")
            .await;
        pair.on.catch_up(&pair.database).await;
        let from = pair.in_doubt_from().await;
        let durable = pair.on.through;
        assert!(durable > from);
        pair.confirm_and_close().await;
        pair.wait_confirmed(from).await;
        for _ in 0..3 {
            pair.open_again().await;
            pair.on.feedback.confirm(durable);
            // As it is when the process is killed at once, and as it is a while later.
            pair.on.source.close().await.expect("closes");
            pair.wait_confirmed(from).await;
        }
        pair.open_again().await;
        pair.on.feedback.confirm(durable);
        pair.on.catch_up(&pair.database).await;
        commit(&pair.database, "a").await;
        pair.on.catch_up(&pair.database).await;
        assert_eq!(
            named(&pair.on.seen),
            pairs(&[("a", "1")]),
            "PostgreSQL {major}"
        );
        pair.on.close().await;
        pair.off.close().await;
    }
}
