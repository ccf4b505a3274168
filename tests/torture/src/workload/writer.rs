//! A session that writes, whatever happens to the server.

use std::time::Duration;

use lockstep_kit::Random;
use tokio::time::sleep;
use tokio_postgres::{Client, Error, NoTls};

/// How often a connection is tried, every 50 ms, before the server counts as gone for good.
const TRIES: u32 = 2_400;

/// What a writer did.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Transactions that said so.
    pub committed: u64,
    /// Those that failed, or whose answer was lost: the audit knows.
    pub failed: u64,
    /// The last failure that the server explained.
    pub last: Option<String>,
}

impl Tally {
    /// Adds another's.
    pub fn add(&mut self, other: Tally) {
        self.committed += other.committed;
        self.failed += other.failed;
        self.last = other.last.or_else(|| self.last.take());
    }
}

#[derive(Debug)]
pub(super) struct Writer {
    url: String,
    client: Option<Client>,
    tally: Tally,
    pub(super) random: Random,
    pub(super) number: u64,
    pub(super) writers: u64,
    /// For keys and values that nobody has used yet.
    next: i64,
}

impl Writer {
    pub(super) fn new(url: &str, number: u64, writers: u64, random: Random) -> Self {
        Self {
            url: url.into(),
            client: None,
            tally: Tally::default(),
            random,
            number,
            writers,
            next: 0,
        }
    }

    pub(super) fn tally(self) -> Tally {
        self.tally
    }

    /// A number that no other call gives, of any writer.
    pub(super) fn fresh(&mut self) -> i64 {
        self.next += 1;
        (self.number as i64 + 1) * 10_000_000 + self.next
    }

    /// Runs statements on the writer's session; whether they were all answered well.
    pub(super) async fn run(&mut self, sql: &str) -> bool {
        let client = match self.client.take() {
            Some(client) if !client.is_closed() => client,
            _ => connect(&self.url).await,
        };
        let done = client.batch_execute(sql).await;
        let fine = self.count(&done);
        if !fine {
            // It may sit in a failed transaction. It can only fail with the connection.
            let _ = client.batch_execute("ROLLBACK").await;
        }
        self.client = Some(client);
        fine
    }

    /// A session for one round.
    pub(super) async fn session(&self) -> Client {
        connect(&self.url).await
    }

    /// Counts a transaction.
    pub(super) fn count<T>(&mut self, done: &Result<T, Error>) -> bool {
        match done {
            Ok(_) => self.tally.committed += 1,
            Err(error) => {
                self.tally.failed += 1;
                let said = error.as_db_error();
                // 57: it was told to go, or is not up yet.
                if let Some(said) = said.filter(|said| !said.code().code().starts_with("57")) {
                    self.tally.last = Some(said.to_string());
                }
            }
        }
        done.is_ok()
    }

    /// The values of the first column.
    pub(super) async fn values(&mut self, sql: &str) -> Vec<String> {
        loop {
            let client = match self.client.take() {
                Some(client) if !client.is_closed() => client,
                _ => connect(&self.url).await,
            };
            let rows = client.query(sql, &[]).await;
            self.client = Some(client);
            if let Ok(rows) = rows {
                return rows.iter().map(|row| row.get(0)).collect();
            }
        }
    }
}

async fn connect(url: &str) -> Client {
    let mut last = None;
    for _ in 0..TRIES {
        match tokio_postgres::connect(url, NoTls).await {
            Ok((client, connection)) => {
                tokio::spawn(async move {
                    // The client's calls see the error too.
                    let _ = connection.await;
                });
                return client;
            }
            Err(error) => last = Some(error),
        }
        sleep(Duration::from_millis(50)).await;
    }
    panic!("{url} is gone for good: {last:?}")
}
