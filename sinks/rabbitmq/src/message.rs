//! From records to messages.

use std::time::{SystemTime, UNIX_EPOCH};

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lockstep_core::batch::{Batch, Change, Op};
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_encode::envelope::{HEADER_ID, Record};

/// The key of the record, as JSON.
pub(crate) const HEADER_KEY: &str = "lockstep.key";
/// Who has written it.
const APP: &str = "lockstep";
/// Kept over a restart of the broker, where the queue is.
const PERSISTENT: u8 = 2;
/// What a message takes beside body and headers, in the client's memory.
const OVERHEAD: usize = 512;

/// A message, without where it goes.
pub(crate) struct Message {
    pub(crate) properties: BasicProperties,
    pub(crate) body: Vec<u8>,
    /// What it counts for while it is not confirmed.
    pub(crate) bytes: usize,
}

/// The message of a record; `None` of a tombstone, which tells nothing that the record before it has not told.
pub(crate) fn of_record(
    batch: &Batch,
    change: &Change,
    record: &Record<'_>,
) -> Result<Option<Message>> {
    let body = match record.value {
        Some(body) => body,
        None if record.op == Op::Event => &[],
        None => return Ok(None),
    };
    let mut headers = FieldTable::default();
    let mut id = None;
    let mut bytes = OVERHEAD + body.len();
    for (name, value) in record.headers.iter() {
        if name == HEADER_ID {
            id = Some(value);
        }
        bytes += name.len() + value.len();
        headers.insert(name.into(), text(value));
    }
    if let Some(key) = record.key {
        bytes += HEADER_KEY.len() + key.len();
        headers.insert(HEADER_KEY.into(), text(key));
    }
    let id = String::from_utf8_lossy(id.unwrap_or_default());
    let id = ShortString::try_new(id).map_err(|_| {
        let message = "the id of the change is too long for a `message_id`";
        Error::new(ErrorKind::Refused, message)
    })?;
    let properties = persistent()
        .with_message_id(id)
        .with_type(record.op.letter().into())
        .with_timestamp(seconds(batch.transaction(change).commit_micros))
        .with_headers(headers);
    Ok(Some(Message {
        properties,
        body: body.to_vec(),
        bytes,
    }))
}

/// Properties of all that is written: JSON that is to be kept.
pub(crate) fn persistent() -> BasicProperties {
    BasicProperties::default()
        .with_content_type("application/json".into())
        .with_delivery_mode(PERSISTENT)
        .with_app_id(APP.into())
}

fn text(value: &[u8]) -> AMQPValue {
    AMQPValue::LongString(LongString::from(value))
}

/// Of the commit; of a row of a copy, whose commit nobody knows, of now.
fn seconds(micros: i64) -> u64 {
    match u64::try_from(micros.div_euclid(1_000_000)) {
        Ok(seconds) if seconds > 0 => seconds,
        _ => SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs()),
    }
}

#[cfg(test)]
mod tests {
    use lockstep_conformance::feed::{Feed, INT8, source, table};
    use lockstep_encode::envelope::{Encoder, Format};

    use super::*;

    #[test]
    fn a_record_is_a_message_and_a_tombstone_is_none() {
        let schema = table("shop", "t", 1, &[("id", "int8", INT8)]);
        let source = source("shop");
        let mut feed = Feed::new(&source);
        feed.begin(10).delete(&schema, "7");
        let batch = feed.finish();
        let change = &batch.changes()[0];
        let mut messages = Vec::new();
        Encoder::new(Format::Flat)
            .encode(&batch, change, &mut |record| {
                messages.push(of_record(&batch, change, &record)?);
                Ok(())
            })
            .expect("encoded");
        assert_eq!(messages.len(), 2, "the event and its tombstone");
        assert!(messages[1].is_none());
        let message = messages[0].as_ref().expect("a message");
        let properties = &message.properties;
        let id = properties.message_id().as_ref().expect("an id");
        assert_eq!(id.as_str(), batch.source.change_id(batch.position(change)));
        assert_eq!(
            properties.kind().as_ref().map(ShortString::as_str),
            Some("d")
        );
        assert_eq!(properties.delivery_mode(), &Some(2));
        assert_eq!(properties.timestamp(), &Some(1_700_000_000));
        let headers = properties.headers().as_ref().expect("headers").inner();
        assert_eq!(headers[HEADER_KEY], text(br#"{"id":7}"#));
        assert_eq!(headers["lockstep.source"], text(b"shop"));
    }
}
