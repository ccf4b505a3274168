//! Who is tortured: the same workloads, faults and checks for each.

use std::fmt;
use std::time::{Duration, SystemTime};

use lockstep_kit::postgres::Database;

use crate::debezium::Debezium;
use crate::lockstep::Lockstep;
use crate::program::Program;
use crate::workload::Workload;

/// How long the beginning may take on a busy machine.
const BEGIN: Duration = Duration::from_secs(240);
/// How long a worker may take to run its connector again.
const BACK: Duration = Duration::from_secs(120);

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Contestant {
    /// Into all sinks.
    Lockstep,
    /// Into Kafka.
    Debezium,
    /// The same with `provide.transaction.metadata`.
    DebeziumWithTransactions,
}

/// All of them, in the order of the table.
pub const CONTESTANTS: [Contestant; 3] = [
    Contestant::Lockstep,
    Contestant::Debezium,
    Contestant::DebeziumWithTransactions,
];

impl Contestant {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lockstep => "lockstep",
            Self::Debezium => "debezium",
            Self::DebeziumWithTransactions => "debezium-transactions",
        }
    }

    /// What the names of its topics begin with.
    pub fn topics(self, name: &str) -> String {
        match self {
            Self::Lockstep => name.to_owned(),
            Self::Debezium | Self::DebeziumWithTransactions => format!("{name}.public"),
        }
    }

    /// How many rounds its writers make for one of lockstep's: each of its restarts takes seconds, and without work a
    /// fault means nothing.
    pub fn rounds(self) -> u32 {
        match self {
            Self::Lockstep => 1,
            Self::Debezium | Self::DebeziumWithTransactions => 4,
        }
    }
}

impl fmt::Display for Contestant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Its process, and how to ask it.
#[derive(Debug)]
pub enum Subject {
    /// The product.
    Lockstep(Lockstep),
    /// The peer.
    Debezium(Debezium),
}

impl Subject {
    /// The process.
    pub fn program(&mut self) -> &mut Program {
        match self {
            Self::Lockstep(lockstep) => &mut lockstep.program,
            Self::Debezium(debezium) => &mut debezium.program,
        }
    }

    /// Starts it, and waits for the moment from which on every commit is in its stream.
    ///
    /// # Errors
    /// What did not happen.
    pub async fn begin(
        &mut self,
        workload: Workload,
        slot: &str,
        database: &Database,
    ) -> Result<(), String> {
        self.program().start();
        if workload == Workload::FirstCopy {
            let sql = format!(
                "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{slot}'"
            );
            lockstep_kit::wait_for(BEGIN, format!("the slot {slot}"), async || {
                database.value(&sql).await
            })
            .await;
            return Ok(());
        }
        match self {
            Self::Lockstep(lockstep) => {
                let copied = "the copy is durable in every sink";
                let said = lockstep.program.says(copied, BEGIN).await;
                said.then_some(())
                    .ok_or_else(|| "the initial copy did not end".to_owned())
            }
            Self::Debezium(debezium) => {
                debezium.caught_up(database, BEGIN).await?;
                let kept = debezium.has_offsets(BEGIN).await;
                kept.then_some(())
                    .ok_or_else(|| "no position was kept".to_owned())
            }
        }
    }

    /// When it last kept its position, where it does so by the clock.
    pub fn kept(&self) -> Option<SystemTime> {
        match self {
            Self::Lockstep(_) => None,
            Self::Debezium(debezium) => debezium.kept(),
        }
    }

    /// After a start: waits until it works again, where that takes so long that the next fault would meet nothing.
    pub async fn back(&mut self) {
        if let Self::Debezium(debezium) = self {
            // What is wrong with one that does not come back is seen later, at the latest when it does not drain.
            let _ = debezium.running(BACK).await;
        }
    }

    /// Starts it again when it has ended or given up, and says how.
    pub async fn revived(&mut self) -> Option<String> {
        if !self.program().runs() {
            let status = self.program().ended.last().map(|(_, status)| *status);
            self.program().start();
            self.back().await;
            return Some(format!("it ended by itself: {status:?}"));
        }
        if let Self::Debezium(debezium) = self
            && let Some(status) = debezium.has_failed().await
        {
            debezium.program.kill();
            debezium.program.start();
            self.back().await;
            return Some(format!("its task failed for good: {status}"));
        }
        None
    }

    /// Waits until everything that is committed now has arrived.
    ///
    /// # Errors
    /// How far it is, when the time is over.
    pub async fn caught_up(
        &mut self,
        database: &Database,
        deadline: Duration,
    ) -> Result<(), String> {
        match self {
            Self::Lockstep(lockstep) => {
                let lsn = database.value("SELECT pg_current_wal_flush_lsn()").await;
                let lsn = lsn.expect("a server has an LSN");
                let late = match lockstep.visible("shop", &lsn, deadline).await {
                    Ok(()) => return Ok(()),
                    Err(seen) => seen,
                };
                let status = lockstep.get("/api/status").await.unwrap_or_default();
                Err(format!("not drained up to {lsn}: {late}; {status}"))
            }
            Self::Debezium(debezium) => debezium.caught_up(database, deadline).await,
        }
    }
}
