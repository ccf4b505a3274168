//! Transactions at a steady pace: updates of hot rows that leave a large value alone, of cold rows, inserts and deletes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lockstep_kit::postgres::Database;
use lockstep_kit::random::Random;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_postgres::{Client, Error, Statement};

/// The table.
pub const TABLE: &str = "items";
/// Rows that are updated again and again. They hold a value that is stored out of line, which updates do not send again.
const HOT: u64 = 100;
/// Bytes of that value.
const LARGE: u64 = 8_192;
/// Rows that come and go, behind those that stay.
const PASSING: u64 = 50_000;
/// Changes of one transaction.
pub const CHANGES: u64 = 5;
/// Connections that write.
const WRITERS: u64 = 4;

/// Makes the table, with this many rows.
///
/// # Panics
/// When the server does not do it.
pub async fn create(database: &Database, rows: u64) {
    let statements = format!(
        "CREATE TABLE {TABLE} (id bigint PRIMARY KEY, customer_id bigint NOT NULL, reference uuid NOT NULL, \
         status text NOT NULL, quantity integer NOT NULL, total numeric(12,2) NOT NULL, \
         updated_at timestamptz NOT NULL, note text, picture text); \
         ALTER TABLE {TABLE} ALTER picture SET STORAGE EXTERNAL; \
         INSERT INTO {TABLE} SELECT i, i % 90000, md5(i::text)::uuid, 'new', i % 90, i / 100.0, now(), md5((-i)::text), \
         CASE WHEN i <= {HOT} THEN repeat(md5(i::text), {LARGE} / 32) END FROM generate_series(1, {rows}::bigint) i; \
         VACUUM ANALYZE {TABLE}"
    );
    for statement in statements.split("; ") {
        database.execute(statement).await;
    }
}

/// A load that runs until it is dropped or stopped.
#[derive(Debug)]
pub struct Load {
    writers: JoinSet<Result<(), Error>>,
    changes: Arc<AtomicU64>,
    began: Instant,
}

impl Load {
    /// Begins to write so many changes per second into a table of so many rows.
    ///
    /// # Panics
    /// When the server cannot be reached.
    pub async fn start(database: &Database, rows: u64, changes: u64, seed: u64) -> Self {
        let mut writers = JoinSet::new();
        let count = Arc::new(AtomicU64::new(0));
        let pause = Duration::from_secs_f64((CHANGES * WRITERS) as f64 / changes.max(1) as f64);
        for number in 0..WRITERS {
            let writer = Writer {
                client: database.client().await,
                random: Random::seeded(seed.wrapping_mul(1_000) + number),
                rows,
                // No two writers insert the same row.
                passing: rows + 1 + number * PASSING,
            };
            writers.spawn(writer.run(pause, Arc::clone(&count)));
        }
        Self {
            writers,
            changes: count,
            began: Instant::now(),
        }
    }

    /// Changes until now.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    /// Changes per second until now.
    pub fn rate(&self) -> f64 {
        self.changes() as f64 / self.began.elapsed().as_secs_f64()
    }

    /// Why it does not write any more, if it does not.
    pub fn ended(&mut self) -> Option<String> {
        self.writers.try_join_next().map(|ended| match ended {
            Ok(Err(error)) => error.to_string(),
            Ok(Ok(())) => "a writer has ended".to_owned(),
            Err(error) => error.to_string(),
        })
    }
}

struct Writer {
    client: Client,
    random: Random,
    rows: u64,
    passing: u64,
}

struct Statements {
    hot: Statement,
    cold: Statement,
    insert: Statement,
    delete: Statement,
}

impl Statements {
    async fn prepare(client: &Client) -> Result<Self, Error> {
        let prepare = async |text: &str| client.prepare(&text.replace("{TABLE}", TABLE)).await;
        Ok(Self {
            hot: prepare(
                "UPDATE {TABLE} SET quantity = quantity + 1, updated_at = clock_timestamp() WHERE id = $1",
            )
            .await?,
            cold: prepare(
                "UPDATE {TABLE} SET status = md5(random()::text), total = total + 1, updated_at = clock_timestamp() WHERE id = $1",
            )
            .await?,
            insert: prepare(
                "INSERT INTO {TABLE} VALUES ($1, 1, gen_random_uuid(), 'passing', 1, 1, now(), 'comes and goes') \
                 ON CONFLICT (id) DO UPDATE SET quantity = {TABLE}.quantity + 1",
            )
            .await?,
            delete: prepare("DELETE FROM {TABLE} WHERE id = $1").await?,
        })
    }
}

impl Writer {
    async fn run(mut self, pause: Duration, changes: Arc<AtomicU64>) -> Result<(), Error> {
        let statements = Statements::prepare(&self.client).await?;
        let mut due = interval(pause);
        // What a checkpoint has held up is written behind it.
        due.set_missed_tick_behavior(MissedTickBehavior::Burst);
        for turn in 0.. {
            due.tick().await;
            self.transaction(&statements, turn).await?;
            changes.fetch_add(CHANGES, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Half of the rows that come are gone when their turn comes again.
    async fn transaction(&mut self, statements: &Statements, turn: u64) -> Result<(), Error> {
        // In order of the key, so that no two writers wait for each other in turn.
        let mut hot = [1 + self.random.below(HOT), 1 + self.random.below(HOT)];
        hot.sort_unstable();
        let cold = HOT + 1 + self.random.below(self.rows.saturating_sub(HOT + 1).max(1));
        let comes = (self.passing + turn % PASSING).cast_signed();
        let goes = (self.passing + (turn + PASSING / 2) % PASSING).cast_signed();
        let transaction = self.client.transaction().await?;
        for id in hot {
            transaction
                .execute(&statements.hot, &[&id.cast_signed()])
                .await?;
        }
        transaction
            .execute(&statements.cold, &[&cold.cast_signed()])
            .await?;
        transaction.execute(&statements.insert, &[&comes]).await?;
        transaction.execute(&statements.delete, &[&goes]).await?;
        transaction.commit().await
    }
}
