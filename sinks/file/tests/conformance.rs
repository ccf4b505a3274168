//! What every sink promises, of this one.

use std::sync::Arc;

use async_trait::async_trait;
use lockstep_conformance::history::Row;
use lockstep_conformance::sink::{Event, Held, Progress, SinkUnderTest, row_of};
use lockstep_core::Result;
use lockstep_core::schema::TableSchema;
use lockstep_core::sink::{Sink, SinkContext, SinkFactory};
use lockstep_sink_file::FileSinkFactory;
use serde_json::Value;
use tempfile::TempDir;

struct Files(TempDir);

#[async_trait]
impl SinkUnderTest for Files {
    async fn open(&self, context: SinkContext) -> Result<Box<dyn Sink>> {
        let path = self.0.path().join("{table}.jsonl");
        let config = serde_json::json!({"path": path, "format": "flat"});
        let config = serde_json::from_value(config).expect("a section");
        FileSinkFactory::open(&config, context).await
    }

    async fn held(&self, table: &Arc<TableSchema>) -> Held {
        let path = self.0.path().join(format!("{}.jsonl", table.id.name));
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let event = |line: &str| {
            let line: Value = serde_json::from_str(line).expect("JSON");
            let (key, value) = (&line["key"], &line["value"]);
            Event {
                id: line["id"].as_str().expect("an id").to_owned(),
                op: value["op"]
                    .as_str()
                    .and_then(|op| op.chars().next())
                    .expect("an op"),
                key: key.as_object().map_or_else(Row::new, |_| row_of(key)),
                row: value["row"].is_object().then(|| row_of(&value["row"])),
            }
        };
        Held::Events(text.lines().map(event).collect())
    }

    fn progress(&self) -> Progress {
        Progress::Atomic
    }
}

async fn files() -> Option<Files> {
    Some(Files(TempDir::new().expect("a folder")))
}

lockstep_conformance::sink_suite!(files);
