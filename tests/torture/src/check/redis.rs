//! Keys of Redis.

use ::redis::aio::MultiplexedConnection;
use ::redis::{Client, RedisError, pipe};
use serde_json::Value;

use super::rows::Rows;
use crate::sinks::Sink;

const PIECE: usize = 500;

/// The rows whose keys begin with `prefix`.
pub(super) async fn read(url: &str, prefix: &str, sink: Sink) -> Result<Rows, String> {
    let said = |error: RedisError| format!("{prefix}: {error}");
    let client = Client::open(url).map_err(said)?;
    let mut connection = client
        .get_multiplexed_async_connection()
        .await
        .map_err(said)?;
    let keys = keys(&mut connection, prefix).await.map_err(said)?;
    let mut rows = Rows::new();
    for keys in keys.chunks(PIECE) {
        let values = values(&mut connection, keys, sink).await.map_err(said)?;
        for (key, value) in std::iter::zip(keys, values) {
            let id = key[prefix.len()..]
                .parse()
                .map_err(|_| format!("the key {key}"))?;
            rows.insert(id, value.map_err(|error| format!("{key}: {error}"))?);
        }
    }
    Ok(rows)
}

async fn keys(
    connection: &mut MultiplexedConnection,
    prefix: &str,
) -> Result<Vec<String>, RedisError> {
    let mut keys = Vec::new();
    let mut cursor = 0_u64;
    loop {
        let (next, some): (u64, Vec<String>) = ::redis::cmd("SCAN")
            .arg(cursor)
            .arg("MATCH")
            .arg(format!("{prefix}*"))
            .arg("COUNT")
            .arg(5_000)
            .query_async(connection)
            .await?;
        keys.extend(some);
        cursor = next;
        if cursor == 0 {
            // A scan may show a key twice.
            keys.sort_unstable();
            keys.dedup();
            return Ok(keys);
        }
    }
}

async fn values(
    connection: &mut MultiplexedConnection,
    keys: &[String],
    sink: Sink,
) -> Result<Vec<Result<Value, serde_json::Error>>, RedisError> {
    let mut pipe = pipe();
    if sink == Sink::Hash {
        for key in keys {
            pipe.hgetall(key);
        }
        let all: Vec<Vec<(String, String)>> = pipe.query_async(connection).await?;
        let row = |fields: Vec<(String, String)>| {
            let fields = fields
                .into_iter()
                .map(|(name, value)| (name, Value::String(value)));
            Ok(Value::Object(fields.collect()))
        };
        return Ok(all.into_iter().map(row).collect());
    }
    for key in keys {
        pipe.get(key);
    }
    let all: Vec<String> = pipe.query_async(connection).await?;
    Ok(all.iter().map(|text| serde_json::from_str(text)).collect())
}
