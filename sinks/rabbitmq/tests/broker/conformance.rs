//! What every sink promises, of a queue per table, with both formats of bodies and in queues that are replicated.
//!
//! What comes again is seen as consumers are told to see it: once by `message_id` and `type`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use lockstep_conformance::sink::{Event, Held, Progress, SinkUnderTest, row_of};
use lockstep_core::Result;
use lockstep_core::schema::TableSchema;
use lockstep_core::sink::{Sink, SinkContext, SinkFactory};
use lockstep_kit::component::available_or_say_so;
use lockstep_kit::rabbitmq::Rabbitmq;
use lockstep_kit::{Component, unique};
use lockstep_sink_rabbitmq::RabbitmqSinkFactory;

use crate::support::{Seen, Tap, config};

/// What Debezium's format has in the place of a value that an update left alone.
const UNAVAILABLE: &str = "__debezium_unavailable_value";

struct Queues {
    tap: Tap,
    prefix: String,
    format: &'static str,
    kind: &'static str,
    /// What was taken out of the queues so far.
    taken: Mutex<BTreeMap<String, Vec<Event>>>,
}

impl Queues {
    fn event(&self, seen: &Seen) -> Event {
        let row = match self.format {
            "flat" => &seen.body["row"],
            _ => &seen.body["after"],
        };
        let row = row.is_object().then(|| {
            let mut row = row_of(row);
            row.retain(|_, value| value != UNAVAILABLE);
            row
        });
        let op = seen.body["op"].as_str().and_then(|op| op.chars().next());
        assert_eq!(op, Some(seen.op()), "the type is that of the body");
        Event {
            id: seen.id(),
            op: seen.op(),
            key: seen.key().as_ref().map(row_of).unwrap_or_default(),
            row,
        }
    }
}

#[async_trait]
impl SinkUnderTest for Queues {
    async fn open(&self, context: SinkContext) -> Result<Box<dyn Sink>> {
        let queue = format!("{}.{{table}}", self.prefix);
        let more = serde_json::json!({
            "exchange": "",
            "routing_key": queue,
            "format": self.format,
            "progress_queue": self.kind,
            "declare": {"queues": [{"name": queue, "type": self.kind}]},
        });
        let config = config(Rabbitmq::shared().await.url(), &more);
        let pipeline = self.prefix.as_str().into();
        RabbitmqSinkFactory::open(
            &config,
            SinkContext {
                pipeline,
                ..context
            },
        )
        .await
    }

    async fn held(&self, table: &Arc<TableSchema>) -> Held {
        let queue = format!("{}.{}", self.prefix, table.id.name);
        let seen = self.tap.take(&queue).await;
        let mut taken = self.taken.lock().expect("nobody has failed");
        let events = taken.entry(queue).or_default();
        for event in seen.iter().map(|seen| self.event(seen)) {
            let known = |known: &Event| known.id == event.id && known.op == event.op;
            match events.iter().find(|event| known(event)) {
                Some(first) => assert_eq!(*first, event, "what comes again is the same"),
                None => events.push(event),
            }
        }
        Held::Events(events.clone())
    }

    fn progress(&self) -> Progress {
        Progress::Behind
    }

    fn is_fenced(&self) -> bool {
        true
    }
}

async fn queues(format: &'static str, kind: &'static str) -> Option<Queues> {
    if !available_or_say_so(Component::Rabbitmq) {
        return None;
    }
    Some(Queues {
        tap: Tap::new(Rabbitmq::shared().await.url()).await,
        prefix: unique("conforms"),
        format,
        kind,
        taken: Mutex::default(),
    })
}

mod flat {
    async fn queues() -> Option<super::Queues> {
        super::queues("flat", "classic").await
    }

    lockstep_conformance::sink_suite!(queues);
}

mod debezium {
    async fn queues() -> Option<super::Queues> {
        super::queues("debezium", "classic").await
    }

    lockstep_conformance::sink_suite!(queues);
}

mod quorum {
    async fn queues() -> Option<super::Queues> {
        super::queues("flat", "quorum").await
    }

    lockstep_conformance::sink_suite!(queues);
}
