//! Sessions that do as chance has it.

use lockstep_kit::random::Random;
use tokio_postgres::Client;

use super::{Pair, many, run, server};
use crate::stream::MAJORS;

/// A session that does as chance has it. Tables are its own, but for the one all share.
struct Session {
    client: Client,
    number: u64,
    /// Savepoints that are open.
    depth: u32,
    open: bool,
    /// It has locked its table against everybody, who looks its shape up included.
    locks: bool,
    next: u64,
    columns: u64,
}

impl Session {
    async fn act(&mut self, random: &mut Random) {
        let number = self.number;
        if !self.open {
            run(&self.client, "BEGIN").await;
            self.open = true;
        }
        let sql = match random.below(20) {
            0..=5 => {
                let count = 1 + random.below(300);
                // Keys that no other session has.
                let from = number * 1_000_000 + self.next;
                self.next += count;
                many("shared", from, count)
            }
            6..=8 => {
                let count = 1 + random.below(300);
                let from = number * 1_000_000 + self.next;
                self.next += count;
                format!(
                    "INSERT INTO own{number} (id, note, big) SELECT n, 'a', repeat('y', 3000) \
                     FROM generate_series({from}, {from} + {count} - 1) n"
                )
            }
            9 => format!(
                "UPDATE own{number} SET note = note || 'b' WHERE id % 7 = {}",
                random.below(7)
            ),
            10 => format!(
                "UPDATE own{number} SET id = -id WHERE id % 11 = {}",
                random.below(11)
            ),
            11 => format!("DELETE FROM own{number} WHERE id % 5 = {}", random.below(5)),
            // Not where they may be rolled back alone: see the last test.
            12 if self.depth == 0 && random.once_in(4) => {
                self.locks = true;
                format!("TRUNCATE own{number}")
            }
            13 if self.depth == 0 && random.once_in(2) => {
                self.locks = true;
                self.columns += 1;
                format!(
                    "ALTER TABLE own{number} ADD c{} int DEFAULT {number}",
                    self.columns
                )
            }
            14 => "SELECT pg_logical_emit_message(false, 'outside', 'x')".to_owned(),
            15 | 16 => {
                self.depth += 1;
                format!("SAVEPOINT s{}", self.depth)
            }
            17 if self.depth > 0 => {
                // With those inside it.
                let to = 1 + random.below(u64::from(self.depth));
                self.depth = to as u32 - 1;
                format!("RELEASE s{to}")
            }
            18 if self.depth > 0 => {
                let to = 1 + random.below(u64::from(self.depth));
                self.depth = to as u32;
                format!("ROLLBACK TO s{to}")
            }
            19 => {
                let end = if random.once_in(4) {
                    "ROLLBACK"
                } else {
                    "COMMIT"
                };
                return self.end(end).await;
            }
            _ => format!(
                "UPDATE shared SET note = 'again' WHERE id BETWEEN {0} AND {0} + 50",
                number * 1_000_000
            ),
        };
        run(&self.client, &sql).await;
    }

    async fn end(&mut self, how: &str) {
        run(&self.client, how).await;
        (self.open, self.depth, self.locks) = (false, 0, false);
    }
}

#[tokio::test]
async fn whatever_happens_arrives_as_without_streaming() {
    const SESSIONS: u64 = 6;
    let mut random = Random::from_environment();
    for major in MAJORS {
        lockstep_kit::require!(lockstep_kit::Component::Postgres(major));
        let server = server(major).await;
        let mut sql = "CREATE TABLE shared (id bigint PRIMARY KEY, note text);".to_owned();
        let mut tables = vec!["public.shared".to_owned()];
        for number in 0..SESSIONS {
            sql += &format!(
                "CREATE TABLE own{number} (id bigint PRIMARY KEY, note text, big text); \
                 ALTER TABLE own{number} ALTER big SET STORAGE EXTERNAL;"
            );
            tables.push(format!("public.own{number}"));
        }
        sql +=
            "ALTER TABLE own1 REPLICA IDENTITY FULL; CREATE TABLE hidden (id bigint, note text);";
        let names: Vec<&str> = tables.iter().map(String::as_str).collect();
        let mut pair = Pair::open(&server, &sql, &names).await;
        let mut sessions = Vec::new();
        for number in 0..SESSIONS {
            sessions.push(Session {
                client: pair.database.client().await,
                number,
                depth: 0,
                open: false,
                locks: false,
                next: 0,
                columns: 0,
            });
        }
        for round in 0..4 {
            for _ in 0..100 {
                let at = random.below(SESSIONS) as usize;
                sessions[at].act(&mut random).await;
            }
            for session in sessions.iter_mut().filter(|session| session.locks) {
                session.end("COMMIT").await;
            }
            // Large, and nothing of it is published.
            pair.database.execute(&many("hidden", 0, 2_000)).await;
            pair.catch_up().await;
            println!(
                "PostgreSQL {major}, round {round}: {} changes",
                pair.on.seen.len()
            );
        }
        let streamed = pair.streamed().await;
        assert!(streamed > 0, "PostgreSQL {major} has streamed");
        println!("PostgreSQL {major}: {streamed} transactions streamed");
        drop(sessions);
        pair.on.close().await;
        pair.off.close().await;
    }
}
