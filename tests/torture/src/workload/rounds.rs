//! One round of each workload.

use bytes::Bytes;
use futures_util::SinkExt;
use tokio_postgres::{Client, Error};

use super::writer::Writer;
use super::{TABLES, Workload};

/// Keys that rounds contend for.
const KEYS: u64 = 60;
const COPIED: i64 = 2_500;
const SESSIONS: usize = 4;

impl Writer {
    pub(super) async fn round(&mut self, workload: Workload) {
        match workload {
            Workload::Copy => self.copy().await,
            Workload::Interleaved => self.interleaved().await,
            Workload::Large => self.large().await,
            Workload::Keys => self.keys().await,
            Workload::Reinserts => self.reinserts().await,
            Workload::Truncate => self.truncate().await,
            Workload::Schema => self.change_schema().await,
            Workload::Small => self.small(20).await,
            Workload::FirstCopy => self.small(3).await,
        }
    }

    fn table(&mut self) -> &'static str {
        TABLES[self.random.below(TABLES.len() as u64) as usize]
    }

    /// A key that rows of the first day have, of this writer's share.
    fn old_key(&mut self) -> u64 {
        1 + self.number + self.writers * self.random.below(KEYS)
    }

    /// Text with everything that has to be escaped somewhere.
    fn note(&mut self) -> String {
        let number = self.fresh();
        format!("'note {number} ü€😀 \"q\" \\ \t{{x}} <&> ''q''\nline'")
    }

    /// NULL, or a value that is kept out of line.
    fn big(&mut self) -> String {
        let number = self.fresh();
        if self.random.once_in(3) {
            format!("repeat('{number}-', {})", 300 + self.random.below(300))
        } else {
            "NULL".into()
        }
    }

    fn insert(&mut self, table: &str, id: i64) -> String {
        let (note, big) = (self.note(), self.big());
        format!("INSERT INTO {table} (id, note, big) VALUES ({id}, {note}, {big});")
    }

    /// Inserts the row, or changes the one that is there: mostly without its large value.
    fn put(&mut self, table: &str, id: u64) -> String {
        let (note, big) = (self.note(), self.big());
        let also = if self.random.once_in(4) {
            ", big = EXCLUDED.big"
        } else {
            ""
        };
        format!(
            "INSERT INTO {table} (id, note, big) VALUES ({id}, {note}, {big}) ON CONFLICT (id) DO UPDATE SET note = EXCLUDED.note{also};"
        )
    }

    fn change(&mut self) -> String {
        let table = self.table();
        match self.random.below(10) {
            0..=3 => {
                let id = self.fresh();
                self.insert(table, id)
            }
            4..=7 => {
                let id = self.old_key();
                self.put(table, id)
            }
            8 => {
                let (id, note) = (self.old_key(), self.note());
                format!("UPDATE {table} SET note = {note} WHERE id = {id};")
            }
            _ => format!("DELETE FROM {table} WHERE id = {};", self.old_key()),
        }
    }

    pub(super) async fn small(&mut self, commits: u32) {
        for _ in 0..commits {
            let sql = self.change();
            self.run(&sql).await;
        }
    }

    async fn copy(&mut self) {
        let client = self.session().await;
        let table = self.table();
        let first = self.next_block(COPIED);
        let mut rows = String::new();
        for id in first..first + COPIED {
            let big = if id % 50 == 0 {
                "copied-".repeat(400)
            } else {
                "\\N".into()
            };
            rows += &format!("{id}\tcopied {id} ü \\\\ \"q\"\t{big}\n");
        }
        let copied = copy_in(&client, table, rows.into()).await;
        self.count(&copied);
        let rows = 100 + self.random.below(400);
        let sql = format!(
            "UPDATE {table} SET note = note || '!' WHERE id BETWEEN {first} AND {first} + {rows};"
        );
        self.run(&sql).await;
    }

    /// The first of so many fresh keys in a row.
    fn next_block(&mut self, length: i64) -> i64 {
        let first = self.fresh();
        for _ in 1..length {
            self.fresh();
        }
        first
    }

    async fn interleaved(&mut self) {
        let mut sessions = Vec::new();
        for _ in 0..SESSIONS {
            sessions.push(self.session().await);
        }
        // Who has which keys changes from round to round: no two at the same time, so that nobody waits for another.
        let shift = self.random.below(SESSIONS as u64);
        for step in 0..self.random.below(12) + 6 {
            for (number, session) in sessions.iter().enumerate() {
                let mut sql = if step == 0 { "BEGIN;" } else { "" }.to_owned();
                let savepoint = step > 0 && self.random.once_in(4);
                if savepoint {
                    sql += "SAVEPOINT s;";
                }
                let share = (number as u64 + shift) % SESSIONS as u64;
                for _ in 0..self.random.below(3) + 1 {
                    let id = 1 + share + SESSIONS as u64 * self.random.below(KEYS);
                    let table = self.table();
                    sql += &self.put(table, id);
                    if self.random.once_in(6) {
                        sql += &format!("DELETE FROM {table} WHERE id = {id};");
                    }
                    let fresh = self.fresh();
                    sql += &self.insert(table, fresh);
                }
                if savepoint && self.random.once_in(2) {
                    sql += "ROLLBACK TO SAVEPOINT s;";
                }
                if session.batch_execute(&sql).await.is_err() {
                    // The server went away: so did all that is open.
                    return;
                }
            }
        }
        self.random.shuffle(&mut sessions);
        for session in &sessions {
            let end = if self.random.once_in(5) {
                "ROLLBACK"
            } else {
                "COMMIT"
            };
            let done = session.batch_execute(end).await;
            self.count(&done);
        }
    }

    async fn large(&mut self) {
        let (table, first) = (self.table(), self.next_block(10_000));
        let last = first + 7_999;
        let (note, old) = (self.note(), KEYS * 2);
        let sql = format!(
            "BEGIN;
             INSERT INTO {table} (id, note, big) SELECT n, 'large ' || n, CASE WHEN n % 100 = 0 THEN repeat(n || '-', 400) END
                 FROM generate_series({first}, {last}) n;
             SAVEPOINT s;
             INSERT INTO {table} (id, note) SELECT n, 'taken back' FROM generate_series({last} + 1, {last} + 900) n;
             UPDATE {table} SET note = 'taken back' WHERE id BETWEEN {first} AND {first} + 500;
             ROLLBACK TO SAVEPOINT s;
             UPDATE {table} SET note = note || '!' WHERE id BETWEEN {first} AND {first} + 1500;
             UPDATE {table} SET note = {note} WHERE id <= {old};
             DELETE FROM {table} WHERE id BETWEEN {last} - 800 AND {last};
             COMMIT;"
        );
        self.run(&sql).await;
        self.small(10).await;
    }

    async fn keys(&mut self) {
        let table = self.table();
        let mut sql = "BEGIN;".to_owned();
        for _ in 0..self.random.below(3) + 1 {
            let (from, to, third) = (self.old_key(), self.old_key(), self.old_key());
            let move_to = |from: u64, to: u64| {
                format!(
                    "UPDATE {table} SET id = {to} WHERE id = {from} AND NOT EXISTS (SELECT 1 FROM {table} WHERE id = {to});"
                )
            };
            match self.random.below(7) {
                // A chain, and sometimes back to where it began.
                0 => {
                    let temporary = self.fresh() as u64;
                    sql += &(move_to(from, temporary) + &move_to(temporary, third));
                    if self.random.once_in(2) {
                        sql += &move_to(third, from);
                    }
                }
                // The former key is used again at once.
                1 => {
                    sql += &(move_to(from, to) + &self.put(table, from));
                }
                // Another row takes the place.
                2 => sql += &(move_to(from, to) + &move_to(third, from)),
                // Two rows exchange their keys.
                3 => {
                    let temporary = self.fresh() as u64;
                    sql +=
                        &(move_to(from, temporary) + &move_to(to, from) + &move_to(temporary, to));
                }
                4 => sql += &format!("DELETE FROM {table} WHERE id = {from};"),
                5 => {
                    let big = self.fresh();
                    sql += &format!(
                        "UPDATE {table} SET big = repeat('{big}-', 500) WHERE id = {from};"
                    );
                }
                // Nothing of the large value in the log.
                _ => {
                    let note = self.note();
                    sql += &format!("UPDATE {table} SET note = {note} WHERE id = {from};");
                }
            }
            if self.random.once_in(3) {
                sql += &self.put(table, from);
            }
        }
        sql += "COMMIT;";
        self.run(&sql).await;
    }

    async fn reinserts(&mut self) {
        let table = self.table();
        let id = 1 + self.random.below(KEYS);
        let fresh = self.insert(table, id as i64);
        let sql = match self.random.below(5) {
            0 => format!("DELETE FROM {table} WHERE id = {id};"),
            1 => self.put(table, id),
            2 => format!("BEGIN; DELETE FROM {table} WHERE id = {id}; {fresh} COMMIT;"),
            3 => format!(
                "BEGIN; DELETE FROM {table} WHERE id = {id}; {fresh} DELETE FROM {table} WHERE id = {id}; COMMIT;"
            ),
            _ => format!(
                "BEGIN; DELETE FROM {table} WHERE id = {id}; {fresh} DELETE FROM {table} WHERE id = {id}; {} COMMIT;",
                self.put(table, id)
            ),
        };
        self.run(&sql).await;
    }

    async fn truncate(&mut self) {
        self.small(8).await;
        let table = self.table();
        let both = if self.random.once_in(3) {
            "a, b"
        } else {
            table
        };
        let mut sql = "BEGIN;".to_owned();
        for _ in 0..self.random.below(3) {
            let id = self.old_key();
            sql += &self.put(table, id);
        }
        sql += &format!("TRUNCATE {both};");
        for _ in 0..self.random.below(20) {
            let id = self.old_key();
            sql += &self.put(table, id);
        }
        sql += if self.random.once_in(6) {
            "ROLLBACK;"
        } else {
            "COMMIT;"
        };
        self.run(&sql).await;
        self.small(8).await;
    }

    async fn change_schema(&mut self) {
        let table = self.table();
        let columns = self
            .values(&format!(
                "SELECT column_name || ' ' || data_type FROM information_schema.columns
                 WHERE table_name = '{table}' AND column_name LIKE 'x%' ORDER BY ordinal_position"
            ))
            .await;
        let named = |column: &String| {
            let (name, kind) = column.split_once(' ').unwrap_or((column, ""));
            (name.to_owned(), kind.to_owned())
        };
        let columns: Vec<(String, String)> = columns.iter().map(named).collect();
        let some = (!columns.is_empty()).then(|| self.random.pick(&columns).clone());
        let sql = match (self.random.below(6), some) {
            (0..=2, Some((name, kind))) if kind != "text" => {
                let kind = if kind == "integer" { "bigint" } else { "text" };
                format!("ALTER TABLE {table} ALTER COLUMN {name} TYPE {kind};")
            }
            (3..=4, Some((name, _))) if columns.len() > 2 => {
                format!("ALTER TABLE {table} DROP COLUMN {name};")
            }
            _ if columns.len() < 6 => {
                let number = self.fresh();
                format!("ALTER TABLE {table} ADD COLUMN x{number} integer;")
            }
            _ => String::new(),
        };
        // Before, in, and after a transaction of its own; sometimes with rows around it in one.
        let around = self.random.once_in(2);
        let (id, number) = (self.old_key(), self.fresh());
        let set: Vec<String> = columns
            .iter()
            .filter(|(name, _)| !sql.contains(name.as_str()))
            .map(|(name, _)| format!(", {name} = '{number}'"))
            .collect();
        let update = format!(
            "UPDATE {table} SET note = 'changed {number}'{} WHERE id = {id};",
            set.concat()
        );
        if around {
            let put = self.put(table, id);
            self.run(&format!("BEGIN; {put} {update} {sql} {put} COMMIT;"))
                .await;
        } else {
            self.run(&sql).await;
        }
        self.run(&update).await;
        self.small(3).await;
    }
}

async fn copy_in(client: &Client, table: &str, rows: Bytes) -> Result<(), Error> {
    let sql = format!("COPY {table} (id, note, big) FROM STDIN");
    let sink = client.copy_in(&sql).await?;
    let mut sink = std::pin::pin!(sink);
    // In pieces: the server may go in the middle.
    let mut rest = rows;
    while !rest.is_empty() {
        let piece = rest.split_to(rest.len().min(16 * 1024));
        sink.send(piece).await?;
    }
    sink.finish().await.map(drop)
}
