//! Queues of RabbitMQ, as a consumer reads them that remembers which messages it has had: they come at least once.

use std::collections::BTreeSet;

use lapin::options::{BasicGetOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, ShortString};
use lapin::{Connection, ConnectionProperties};
use serde_json::Value;

use super::history::Record;

/// The messages of a queue, in their order, each once. The queue is gone then.
pub(super) async fn read(url: &str, queue: &str) -> Result<Vec<Record>, String> {
    let said = |error: lapin::Error| format!("{queue}: {error}");
    let connection = Connection::connect(url, ConnectionProperties::default()).await;
    let connection = connection.map_err(said)?;
    let channel = connection.create_channel().await.map_err(said)?;
    let (mut records, mut known) = (Vec::new(), BTreeSet::new());
    let options = BasicGetOptions { no_ack: true };
    while let Some(message) = channel
        .basic_get(queue.into(), options)
        .await
        .map_err(said)?
    {
        let named = |text: &Option<ShortString>| {
            let text = text.as_ref().map(ToString::to_string);
            text.ok_or_else(|| format!("{queue}: a message without a name"))
        };
        let name = (
            named(message.properties.message_id())?,
            named(message.properties.kind())?,
        );
        if !known.insert(name) {
            continue;
        }
        let headers = message.properties.headers().as_ref();
        let key = headers.and_then(|headers| headers.inner().get("lockstep.key"));
        let key = key.and_then(AMQPValue::as_long_string);
        let json = |bytes: &[u8]| {
            serde_json::from_slice(bytes)
                .map_err(|error| format!("{queue}: {error}: {}", String::from_utf8_lossy(bytes)))
        };
        records.push(Record {
            partition: 0,
            key: key.map_or(Ok(Value::Null), |key| json(key.as_bytes()))?,
            value: json(&message.data)?,
        });
    }
    let options = QueueDeleteOptions::default();
    let deleted = channel.queue_delete(queue.into(), options).await;
    deleted.map(|_| records).map_err(said)
}
