//! What every sink promises, of Kafka with both formats of values, as JSON and in Avro.

use std::sync::Arc;

use async_trait::async_trait;
use lockstep_conformance::sink::{Event, Held, Progress, SinkUnderTest, row_of};
use lockstep_core::Result;
use lockstep_core::schema::TableSchema;
use lockstep_core::sink::{Sink, SinkContext, SinkFactory};
use lockstep_kit::component::available_or_say_so;
use lockstep_kit::kafka::Kafka;
use lockstep_kit::registry::Registry;
use lockstep_kit::{Component, unique};
use lockstep_sink_kafka::KafkaSinkFactory;
use serde_json::Value;

use crate::support::{Seen, config, read};

/// What Debezium's format has in the place of a value that an update left alone.
const UNAVAILABLE: &str = "__debezium_unavailable_value";

struct Topics {
    bootstrap: &'static str,
    prefix: String,
    format: &'static str,
    /// Where records are in Avro.
    registry: Option<&'static Registry>,
}

impl Topics {
    fn event(&self, seen: &Seen) -> Option<Event> {
        let json = |text: &String| serde_json::from_str::<Value>(text).expect("JSON");
        let value = seen.value.as_ref().map(json)?;
        let key = seen.key.as_ref().map(json).filter(Value::is_object);
        let row = match self.format {
            "flat" => &value["row"],
            _ => &value["after"],
        };
        let row = row.is_object().then(|| {
            let mut row = row_of(row);
            row.retain(|_, value| value != UNAVAILABLE);
            row
        });
        Some(Event {
            id: seen.id().to_owned(),
            op: value["op"]
                .as_str()
                .and_then(|op| op.chars().next())
                .expect("an op"),
            key: key.as_ref().map(row_of).unwrap_or_default(),
            row,
        })
    }
}

#[async_trait]
impl SinkUnderTest for Topics {
    async fn open(&self, context: SinkContext) -> Result<Box<dyn Sink>> {
        let mut more = serde_json::json!({
            "topic": format!("{}.{{table}}", self.prefix),
            "format": self.format,
            "partitions": 1,
            "commit_interval": "20ms",
        });
        if let Some(registry) = self.registry {
            more["encoding"] = "avro".into();
            more["registry"] = serde_json::json!({"url": registry.url()});
        }
        let pipeline = self.prefix.as_str().into();
        let config = config(self.bootstrap, &self.prefix, &more);
        KafkaSinkFactory::open(
            &config,
            SinkContext {
                pipeline,
                ..context
            },
        )
        .await
    }

    async fn held(&self, table: &Arc<TableSchema>) -> Held {
        let topic = format!("{}.{}", self.prefix, table.id.name);
        let seen = read(self.bootstrap, &topic).await;
        Held::Events(seen.iter().filter_map(|seen| self.event(seen)).collect())
    }

    fn progress(&self) -> Progress {
        Progress::Atomic
    }

    fn is_fenced(&self) -> bool {
        true
    }
}

async fn topics(format: &'static str) -> Option<Topics> {
    if !available_or_say_so(Component::Kafka) {
        return None;
    }
    Some(Topics {
        bootstrap: Kafka::shared().await.bootstrap(),
        prefix: unique("conforms"),
        format,
        registry: None,
    })
}

async fn avro(format: &'static str) -> Option<Topics> {
    if !available_or_say_so(Component::Registry) {
        return None;
    }
    let registry = Some(Registry::shared().await);
    topics(format)
        .await
        .map(|topics| Topics { registry, ..topics })
}

mod flat {
    async fn topics() -> Option<super::Topics> {
        super::topics("flat").await
    }

    lockstep_conformance::sink_suite!(topics);
}

mod debezium {
    async fn topics() -> Option<super::Topics> {
        super::topics("debezium").await
    }

    lockstep_conformance::sink_suite!(topics);
}

mod flat_in_avro {
    async fn topics() -> Option<super::Topics> {
        super::avro("flat").await
    }

    lockstep_conformance::sink_suite!(topics);
}

mod debezium_in_avro {
    async fn topics() -> Option<super::Topics> {
        super::avro("debezium").await
    }

    lockstep_conformance::sink_suite!(topics);
}
