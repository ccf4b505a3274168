//! One transaction, or its branch in one database, as one message to the server.

use lockstep_core::batch::Op;
use lockstep_core::{Error, ErrorKind, Result};
use tokio_postgres::{Client, SimpleQueryMessage};

use super::super::rows::{Rows, failed};
use super::counts::{Counters, Event, Table};

/// Statements of a transaction, with what each of them changes.
///
/// Sent whole, so it costs one round trip; each statement's row count is read from the answer.
#[derive(Debug)]
pub(super) struct Script {
    sql: String,
    effects: Vec<Option<(Table, Op)>>,
    events: Vec<Event>,
}

impl Script {
    /// From `BEGIN` to its end.
    pub(super) fn new() -> Self {
        let mut script = Self::branch();
        script.run("BEGIN");
        script
    }

    /// Inside a transaction that somebody else begins and ends.
    pub(super) fn branch() -> Self {
        Script {
            sql: String::new(),
            effects: Vec::new(),
            events: Vec::new(),
        }
    }

    /// A statement that changes no rows, or none that stay.
    pub(super) fn run(&mut self, sql: &str) {
        self.add(None, sql);
    }

    /// A statement whose row count is the number of changes.
    pub(super) fn change(&mut self, table: Table, op: Op, sql: &str) {
        self.add(Some((table, op)), sql);
    }

    /// Inserts rows; none is no statement.
    pub(super) fn insert(&mut self, table: Table, rows: &Rows) {
        if !rows.rows.is_empty() {
            self.change(table, Op::Insert, &rows.insert());
        }
    }

    /// What has happened once this commits.
    pub(super) fn event(&mut self, event: Event) {
        self.events.push(event);
    }

    /// Commits, counts, and returns the number of changes.
    pub(super) async fn commit(mut self, client: &Client, counters: &Counters) -> Result<u64> {
        self.run("COMMIT");
        let done = self.work(client).await?;
        Ok(done.committed(counters))
    }

    /// Runs the statements of a branch.
    pub(super) async fn work(self, client: &Client) -> Result<Done> {
        let rows = self.send(client).await?;
        Ok(Done { script: self, rows })
    }

    /// Rolls back after all statements ran. Only the events count.
    pub(super) async fn roll_back(mut self, client: &Client, counters: &Counters) -> Result<()> {
        self.run("ROLLBACK");
        self.send(client).await?;
        for &event in &self.events {
            counters.add_event(event, 1);
        }
        Ok(())
    }

    fn add(&mut self, effect: Option<(Table, Op)>, sql: &str) {
        if !self.sql.is_empty() {
            self.sql.push_str("; ");
        }
        self.sql.push_str(sql);
        self.effects.push(effect);
    }

    /// The row count of every statement.
    async fn send(&self, client: &Client) -> Result<Vec<u64>> {
        let answer = client.simple_query(&self.sql).await.map_err(|error| {
            let start: String = self.sql.chars().take(400).collect();
            failed(format!("a transaction of the load ({start}…)"), error)
        })?;
        let rows: Vec<u64> = answer
            .iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::CommandComplete(rows) => Some(*rows),
                _ => None,
            })
            .collect();
        if rows.len() != self.effects.len() {
            let message = format!(
                "{} statements got {} answers",
                self.effects.len(),
                rows.len()
            );
            return Err(Error::new(ErrorKind::Protocol, message));
        }
        Ok(rows)
    }
}

/// Statements that ran. They count when their transaction has committed.
#[derive(Debug)]
#[must_use = "what has committed counts"]
pub(super) struct Done {
    script: Script,
    rows: Vec<u64>,
}

impl Done {
    /// Counts, and returns the number of changes.
    pub(super) fn committed(self, counters: &Counters) -> u64 {
        let mut changes = 0;
        for (effect, rows) in std::iter::zip(&self.script.effects, self.rows) {
            if let Some((table, op)) = *effect {
                counters.add_changes(table, op, rows);
                changes += rows;
            }
        }
        counters.add_event(Event::Transaction, 1);
        for &event in &self.script.events {
            counters.add_event(event, 1);
        }
        changes
    }
}
