//! Reading back what the sink holds.

use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher, RandomState};

use async_trait::async_trait;
use lockstep_core::batch::{Batch, Change};
use lockstep_core::error::At;
use lockstep_core::schema::TableSchema;
use lockstep_core::sink::{Held, Inspect};
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_encode::key::key_text;
use lockstep_redis::{Command, Link};
use redis::Value;
use std::sync::Arc;

use crate::config::ValueFormat;
use crate::rows::Tables;
use crate::scan::Scan;
use crate::{keys, splice, state};

/// Keys asked for at a time.
const READS: usize = 512;

/// Compares rows with what is held under their keys.
pub(crate) struct RedisInspect {
    link: Link,
    tables: Tables,
}

/// What should be under a key.
enum Expected {
    Json(Vec<u8>),
    Fields(BTreeMap<Vec<u8>, Vec<u8>>),
}

impl RedisInspect {
    pub(crate) fn new(link: Link, tables: Tables) -> Self {
        RedisInspect { link, tables }
    }

    fn expect(&mut self, batch: &Batch, change: &Change) -> Result<(Vec<u8>, Expected)> {
        let schema = batch.schema(change);
        let row = batch.new_row(change).ok_or_else(|| {
            Error::new(
                ErrorKind::Invalid,
                format!("a change of {} to compare has no row", schema.id),
            )
        })?;
        let mut key = String::new();
        key_text(schema, row, &mut key)?;
        let format = self.tables.format();
        let table = self.tables.get(schema)?;
        let expected = match format {
            ValueFormat::Json => {
                let mut text = Vec::new();
                table.row_json(row, &mut text)?;
                Expected::Json(text)
            }
            ValueFormat::Hash => Expected::Fields(table.row_fields(row)?.into_iter().collect()),
        };
        Ok((table.key(&key), expected))
    }
}

#[async_trait]
impl Inspect for RedisInspect {
    async fn compare(&mut self, batch: &Batch) -> Result<Vec<Held>> {
        let mut answers = Vec::with_capacity(batch.changes().len());
        for changes in batch.changes().chunks(READS) {
            let wanted = changes
                .iter()
                .map(|change| self.expect(batch, change))
                .collect::<Result<Vec<_>>>()?;
            let commands = wanted.iter().map(|(key, expected)| match expected {
                Expected::Json(_) => Command::on_key("GET", key),
                Expected::Fields(_) => Command::on_key("HGETALL", key),
            });
            let replies = self.link.ask(commands.collect()).await?;
            for ((key, expected), reply) in wanted.into_iter().zip(replies) {
                let key = String::from_utf8_lossy(&key).into_owned();
                answers.push(compare(&self.link, &key, &expected, reply).at(format!("key {key}"))?);
            }
        }
        Ok(answers)
    }

    async fn count(&mut self, table: &TableSchema) -> Result<u64> {
        let pattern = self.tables.get(&Arc::new(table.clone()))?.space.pattern();
        // A walk may meet a key twice while the server's table grows or shrinks. Eight bytes per key instead of the key.
        let hasher = RandomState::new();
        let mut seen = HashSet::new();
        let mut scan = Scan::begin(&self.link, pattern).await?;
        while let Some(found) = scan.next().await? {
            let rows = found.iter().filter(|key| !keys::is_beside(key));
            seen.extend(rows.map(|key| hasher.hash_one(key)));
        }
        Ok(seen.len() as u64)
    }
}

fn compare(link: &Link, key: &str, expected: &Expected, reply: Value) -> Result<Held> {
    if let Value::ServerError(error) = &reply
        && error.code() == "WRONGTYPE"
    {
        return Ok(different(
            key,
            expected,
            "a value of another type".to_owned(),
        ));
    }
    link.check(&reply)?;
    match expected {
        Expected::Json(text) => match reply {
            Value::Nil => Ok(missing(key)),
            Value::BulkString(held) if same_json(text, &held) => Ok(Held::Same),
            Value::BulkString(held) => Ok(different(
                key,
                expected,
                String::from_utf8_lossy(&held).into_owned(),
            )),
            other => Err(link.unexpected("GET", &other)),
        },
        Expected::Fields(fields) => {
            let held = state::pairs(reply).map_err(|reply| link.unexpected("HGETALL", &reply))?;
            if held.is_empty() {
                return Ok(missing(key));
            }
            let held: BTreeMap<_, _> = held.into_iter().collect();
            if held == *fields {
                return Ok(Held::Same);
            }
            Ok(different(key, expected, show(&held)))
        }
    }
}

/// Equal texts, or the same members with the same texts in another order: columns may have been added since.
fn same_json(expected: &[u8], held: &[u8]) -> bool {
    if expected == held {
        return true;
    }
    let (Some(mut expected), Some(mut held)) = (splice::parse(expected), splice::parse(held))
    else {
        return false;
    };
    expected.sort_unstable();
    held.sort_unstable();
    expected == held
}

fn missing(key: &str) -> Held {
    Held::Missing {
        key: key.to_owned(),
    }
}

fn different(key: &str, expected: &Expected, actual: String) -> Held {
    Held::Different {
        key: key.to_owned(),
        expected: match expected {
            Expected::Json(text) => String::from_utf8_lossy(text).into_owned(),
            Expected::Fields(fields) => show(fields),
        },
        actual,
    }
}

/// A hash as JSON, for people.
fn show(fields: &BTreeMap<Vec<u8>, Vec<u8>>) -> String {
    let object: serde_json::Map<_, _> = fields
        .iter()
        .map(|(name, value)| {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            (text(name), serde_json::Value::String(text(value)))
        })
        .collect();
    serde_json::Value::Object(object).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_does_not_matter_and_texts_do() {
        assert!(same_json(br#"{"a":1,"b":2}"#, br#"{"b":2,"a":1}"#));
        assert!(!same_json(br#"{"a":1.0}"#, br#"{"a":1.00}"#));
        assert!(!same_json(br#"{"a":1,"b":2}"#, br#"{"a":1}"#));
        assert!(!same_json(br#"{"a":1}"#, b"1"));
    }
}
