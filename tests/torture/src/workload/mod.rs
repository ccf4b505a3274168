//! What is written to PostgreSQL meanwhile. What of it must arrive, the database itself says: see `schema.sql`.

mod rounds;
mod writer;

use std::time::Duration;

use lockstep_kit::Random;
use lockstep_kit::postgres::Database;
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use writer::Tally;
use writer::Writer;

/// A kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Workload {
    /// COPY imports: pages full of rows with one LSN.
    Copy,
    /// Several transactions are open at once, with savepoints, and commit in another order than they began.
    Interleaved,
    /// Transactions of ten thousand rows.
    Large,
    /// Keys change beside TOASTed values that do not: chains, exchanges, reuse of a former key.
    Keys,
    /// Rows are deleted and inserted again.
    Reinserts,
    /// Tables are truncated between and inside transactions.
    Truncate,
    /// Columns come, change their type and go.
    Schema,
    /// At least 2000 small commits.
    Small,
    /// Small commits while the initial copy is under way.
    FirstCopy,
}

/// All kinds, in the order of the table.
pub const WORKLOADS: [Workload; 9] = [
    Workload::FirstCopy,
    Workload::Copy,
    Workload::Interleaved,
    Workload::Large,
    Workload::Keys,
    Workload::Reinserts,
    Workload::Truncate,
    Workload::Schema,
    Workload::Small,
];

impl Workload {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Interleaved => "interleaved",
            Self::Large => "large",
            Self::Keys => "keys",
            Self::Reinserts => "reinserts",
            Self::Truncate => "truncate",
            Self::Schema => "schema",
            Self::Small => "small",
            Self::FirstCopy => "first-copy",
        }
    }

    /// Rows of each table before lockstep starts.
    pub fn rows_at_first(self) -> u32 {
        match self {
            Self::FirstCopy => 25_000,
            _ => 300,
        }
    }

    fn writers(self) -> u64 {
        match self {
            // One makes what the others could only be in the way of: large transactions, DDL, its own set of sessions.
            Self::Copy | Self::Interleaved | Self::Large | Self::Schema | Self::Truncate => 1,
            Self::Keys | Self::Reinserts | Self::FirstCopy => 2,
            Self::Small => 4,
        }
    }

    /// Rounds that each writer makes, however soon it is told to stop.
    fn least_rounds(self) -> u32 {
        match self {
            Self::Large | Self::Copy => 2,
            Self::Small => 25,
            _ => 5,
        }
    }

    /// Rounds after which a writer makes small commits instead, however long the faults take: there is enough to check.
    fn most_rounds(self) -> u32 {
        match self {
            Self::Large => 3,
            Self::Copy => 6,
            _ => 150,
        }
    }

    /// Between rounds: it bounds how much there is to check.
    fn pause(self) -> Duration {
        Duration::from_millis(match self {
            Self::Large => 1_500,
            Self::Copy => 700,
            Self::Truncate => 150,
            Self::Small => 120,
            Self::FirstCopy => 40,
            _ => 30,
        })
    }
}

/// Makes the tables, with rows for the initial copy.
pub async fn create(database: &Database, rows: u32) {
    database.execute(include_str!("../schema.sql")).await;
    for table in TABLES {
        database
            .execute(&format!(
                "INSERT INTO {table} (id, note, big) SELECT n, 'first day ' || n, CASE WHEN n % 5 = 0 THEN repeat('{table}' || n || '-', 700) END
                 FROM generate_series(1, {rows}) n"
            ))
            .await;
    }
    database.execute("ANALYZE").await;
}

/// The tables.
pub const TABLES: [&str; 2] = ["a", "b"];

/// Writers at work. Dropping it ends them.
#[derive(Debug)]
pub struct Load {
    stop: watch::Sender<bool>,
    writers: JoinSet<Tally>,
}

impl Load {
    /// Begins to write, to the server itself and not through its proxy: `more` times as many rounds as usual, before small
    /// commits take their place.
    pub fn start(workload: Workload, url: &str, random: &mut Random, more: u32) -> Self {
        let (stop, stopped) = watch::channel(false);
        let mut writers = JoinSet::new();
        for number in 0..workload.writers() {
            let mut writer = Writer::new(url, number, workload.writers(), random.fork());
            let mut stopped = stopped.clone();
            writers.spawn(async move {
                let mut rounds = 0;
                while rounds < workload.least_rounds() || !*stopped.borrow() {
                    if rounds < workload.most_rounds() * more {
                        writer.round(workload).await;
                    } else {
                        writer.small(1).await;
                    }
                    rounds += 1;
                    // A stop ends the pause; a sender that is gone is one.
                    let _ = tokio::time::timeout(workload.pause(), stopped.wait_for(|&stop| stop))
                        .await;
                }
                writer.tally()
            });
        }
        Self { stop, writers }
    }

    /// Lets every writer end its round.
    ///
    /// # Panics
    /// When one does.
    pub async fn stop(mut self) -> Tally {
        self.stop.send_replace(true);
        let mut all = Tally::default();
        while let Some(one) = self.writers.join_next().await {
            all.add(one.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())));
        }
        all
    }
}
