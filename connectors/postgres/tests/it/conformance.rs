//! What every source promises, of PostgreSQL.

use async_trait::async_trait;
use lockstep_conformance::PATIENCE;
use lockstep_conformance::source::SourceUnderTest;
use lockstep_core::position::Lsn;
use lockstep_core::source::{Source, SourceContext, SourceFactory};
use lockstep_core::{ErrorKind, Result};
use lockstep_kit::Component;
use lockstep_kit::component::available_or_say_so;
use lockstep_kit::postgres::{Database, Postgres};
use lockstep_postgres::{PostgresConfig, PostgresFactory};
use serde_json::json;

use crate::harness::{config, slot_name};

struct Table {
    database: Database,
    config: PostgresConfig,
}

#[async_trait]
impl SourceUnderTest for Table {
    async fn open(&self, context: SourceContext) -> Result<Box<dyn Source>> {
        let give_up = tokio::time::Instant::now() + PATIENCE;
        loop {
            match PostgresFactory::open(&self.config, context.clone()).await {
                // The server has not noticed yet that the last one is gone.
                Err(error)
                    if error.kind() == ErrorKind::Busy && tokio::time::Instant::now() < give_up =>
                {
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                }
                opened => return opened,
            }
        }
    }

    async fn commit(&self, keys: &[u64]) {
        let keys: Vec<String> = keys.iter().map(u64::to_string).collect();
        let keys = keys.join(",");
        let insert = format!("INSERT INTO t SELECT unnest('{{{keys}}}'::int8[]), 'v'");
        self.database.execute(&insert).await;
    }

    async fn told(&self) -> Lsn {
        let slot = slot_name(self.database.url());
        let told = self
            .database
            .value(&format!(
                "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{slot}'"
            ))
            .await;
        told.expect("a slot").parse().expect("an LSN")
    }

    fn copies(&self) -> bool {
        true
    }
}

async fn table() -> Option<Table> {
    if !available_or_say_so(Component::Postgres(17)) {
        return None;
    }
    let database = Postgres::shared(17).await.database("conforms").await;
    database
        .execute("CREATE TABLE t (id int8 PRIMARY KEY, v text)")
        .await;
    Some(Table {
        config: config(database.url(), &["public.t"], json!({})),
        database,
    })
}

lockstep_conformance::source_suite!(table);
