//! Streams of Redis.

use std::collections::HashMap;

use ::redis::{Client, RedisError, cmd};
use serde_json::Value;

use super::history::Record;

const PAGE: usize = 2_000;

/// The entries of a stream, in their order.
pub(super) async fn read(url: &str, key: &str) -> Result<Vec<Record>, String> {
    let said = |error: RedisError| format!("{key}: {error}");
    let client = Client::open(url).map_err(said)?;
    let connection = client.get_multiplexed_async_connection().await;
    let mut connection = connection.map_err(said)?;
    let mut records = Vec::new();
    let mut from = "-".to_owned();
    loop {
        let mut range = cmd("XRANGE");
        range.arg(key).arg(&from).arg("+").arg("COUNT").arg(PAGE);
        let page: Vec<(String, HashMap<String, String>)> =
            range.query_async(&mut connection).await.map_err(said)?;
        let Some((last, _)) = page.last() else {
            return Ok(records);
        };
        from = format!("({last}");
        for (id, fields) in &page {
            let json = |name: &str| match fields.get(name) {
                None => Ok(Value::Null),
                Some(text) => serde_json::from_str(text)
                    .map_err(|error| format!("{key} {id}: {error}: {text}")),
            };
            records.push(Record {
                partition: 0,
                key: json("key")?,
                value: json("value")?,
            });
        }
    }
}
