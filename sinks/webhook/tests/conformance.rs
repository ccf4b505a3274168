//! What every sink promises, of requests for each record and of arrays, one at a time and many.

mod support;

use std::sync::Arc;

use async_trait::async_trait;
use lockstep_conformance::sink::{Event, Held, Progress, SinkUnderTest, row_of};
use lockstep_core::Result;
use lockstep_core::schema::TableSchema;
use lockstep_core::sink::{Sink, SinkContext, SinkFactory};
use lockstep_sink_webhook::Webhook;
use serde_json::{Value, json};
use support::Receiver;
use support::receiver::Record;

/// What Debezium's format has in the place of a value that an update left alone.
const UNAVAILABLE: &str = "__debezium_unavailable_value";

struct Posts {
    receiver: Receiver,
    section: Value,
}

impl Posts {
    async fn new(section: Value) -> Option<Self> {
        let receiver = Receiver::willing().await;
        Some(Posts { receiver, section })
    }
}

fn event(record: &Record) -> Event {
    let row = match &record.value["row"] {
        Value::Null => &record.value["after"],
        row => row,
    };
    let row = row.is_object().then(|| {
        let mut row = row_of(row);
        row.retain(|_, value| value != UNAVAILABLE);
        row
    });
    let op = record.value["op"].as_str().expect("an op");
    // Behind the id of the change: what tells its records apart.
    let (id, _) = record.id.split_once(':').expect("an id");
    Event {
        id: id.to_owned(),
        op: op.chars().next().expect("a letter"),
        key: match &record.key {
            Value::Null => Default::default(),
            key => row_of(key),
        },
        row,
    }
}

#[async_trait]
impl SinkUnderTest for Posts {
    async fn open(&self, context: SinkContext) -> Result<Box<dyn Sink>> {
        let url = format!("{}/{{table}}", self.receiver.url);
        Webhook::open(&support::config(&url, &self.section), context).await
    }

    async fn held(&self, table: &Arc<TableSchema>) -> Held {
        let path = format!("/{}", table.id.name);
        let taken = self.receiver.taken();
        let ours = taken.iter().filter(|record| record.path == path);
        Held::Events(ours.map(event).collect())
    }

    fn progress(&self) -> Progress {
        Progress::Behind
    }
}

mod one_by_one {
    use super::*;

    async fn posts() -> Option<Posts> {
        Posts::new(json!({})).await
    }

    lockstep_conformance::sink_suite!(posts);
}

mod arrays {
    use super::*;

    async fn posts() -> Option<Posts> {
        Posts::new(json!({"format": "debezium", "batch": {"records": 3}})).await
    }

    lockstep_conformance::sink_suite!(posts);
}

/// Many at a time: keys are in order, and keys only.
mod many {
    use super::*;

    async fn posts() -> Option<Posts> {
        Posts::new(json!({"concurrency": 8})).await
    }

    lockstep_conformance::sink_suite!(posts;
        a_reopened_sink_knows_what_it_has,
        receipts_cover_everything_before_them,
        every_receipt_of_a_dropped_sink_is_answered,
        a_batch_without_changes_is_taken,
        two_sources_keep_a_position_each,
        branches_that_are_written_together_stay_together,
        any_crash_goes_on_to_the_right_end,
        answers_that_get_lost_change_nothing,
    );
}

mod many_arrays {
    use super::*;

    async fn posts() -> Option<Posts> {
        Posts::new(json!({"concurrency": 8, "batch": {"records": 3}})).await
    }

    lockstep_conformance::sink_suite!(posts;
        a_reopened_sink_knows_what_it_has,
        receipts_cover_everything_before_them,
        every_receipt_of_a_dropped_sink_is_answered,
        branches_that_are_written_together_stay_together,
        any_crash_goes_on_to_the_right_end,
        answers_that_get_lost_change_nothing,
    );
}
