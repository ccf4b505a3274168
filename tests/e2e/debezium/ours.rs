//! Our side: the PostgreSQL connector and the `debezium` format.

use std::time::Duration;

use lockstep_core::batch::{Batch, Op};
use lockstep_core::feedback::Feedback;
use lockstep_core::memory::Budget;
use lockstep_core::source::{Source, SourceContext, SourceFactory, SourceStatus};
use lockstep_encode::envelope::{Decimals, Encoder, Format};
use lockstep_kit::postgres::Database;
use lockstep_postgres::{PostgresConfig, PostgresFactory};
use serde_json::json;
use tempfile::TempDir;

use crate::record::Record;

const DEADLINE: Duration = Duration::from_secs(60);

/// An open source with an encoder behind it.
pub struct Ours {
    source: Box<dyn Source>,
    encoder: Encoder,
    // The source's own folder.
    _state: TempDir,
}

impl Ours {
    pub async fn open(database: &Database, name: &str, decimals: Decimals) -> Self {
        let slot = format!(
            "ours_{}",
            database.name().to_ascii_lowercase().replace('-', "_")
        );
        let config: PostgresConfig = serde_json::from_value(json!({
            "url": database.url(),
            "tables": ["public.*"],
            "slot": slot,
            "publication": "ours",
        }))
        .expect("a valid section");
        let state = tempfile::tempdir().expect("a folder");
        let context = SourceContext {
            pipeline: "test".into(),
            name: name.into(),
            state: state.path().into(),
            feedback: Feedback::default(),
            budget: Budget::new(64 << 20),
            status: SourceStatus::default(),
            token: None,
        };
        Ours {
            source: PostgresFactory::open(&config, context)
                .await
                .expect("the source opens"),
            encoder: Encoder::new(Format::default().with_decimals(decimals)),
            _state: state,
        }
    }

    /// Reads on until a batch for which `last` says so, that one included.
    pub async fn read_until(&mut self, last: impl Fn(&Batch, &[Record]) -> bool) -> Vec<Record> {
        let mut records = Vec::new();
        loop {
            let batch = tokio::time::timeout(DEADLINE, self.source.next())
                .await
                .unwrap_or_else(|_| panic!("the source went silent after {:?}", records.last()))
                .expect("the source goes on")
                .expect("the source has no end");
            for change in batch.changes() {
                let name = batch.source.name.clone();
                let done = self.encoder.encode(&batch, change, &mut |record| {
                    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
                    let topic = match record.op {
                        Op::Message => format!("{name}.message"),
                        _ => format!("{name}.{}", record.schema.id),
                    };
                    records.push(Record {
                        topic: clean(&topic),
                        key: record.key.map_or_else(|| "null".to_owned(), text),
                        value: record.value.map_or_else(|| "null".to_owned(), text),
                        headers: record
                            .headers
                            .iter()
                            .filter(|(name, _)| !name.starts_with("lockstep."))
                            .map(|(name, value)| (name.to_owned(), text(value)))
                            .collect(),
                    });
                    Ok(())
                });
                done.unwrap_or_else(|error| panic!("{error}"));
            }
            if last(&batch, &records) {
                return records;
            }
        }
    }
}

/// A topic name as Debezium makes it.
fn clean(topic: &str) -> String {
    topic
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "._-".contains(c) {
                c
            } else {
                '_'
            }
        })
        .collect()
}
