//! Reading back what the sink holds.

use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher, RandomState};

use async_trait::async_trait;
use lockstep_core::batch::{Batch, Change, Op};
use lockstep_core::error::At;
use lockstep_core::schema::TableSchema;
use lockstep_core::sink::{Held, Inspect, Keys, Listing};
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_encode::key::{key_text, key_values};
use lockstep_redis::{Command, Link};
use redis::Value;
use std::sync::Arc;

use crate::config::ValueFormat;
use crate::keys::Space;
use crate::rows::Tables;
use crate::scan::Scan;
use crate::{keys, splice, state};

/// Keys asked for at a time.
const READS: usize = 512;

/// Compares rows with what is held under their keys.
pub(crate) struct RedisInspect {
    link: Link,
    tables: Tables,
    /// Rows go by themselves: one that is not there may have been.
    expires: bool,
}

/// What should be under a key.
enum Expected {
    Json(Vec<u8>),
    Fields(BTreeMap<Vec<u8>, Vec<u8>>),
    /// Nothing, whatever its type.
    Nothing,
}

impl RedisInspect {
    pub(crate) fn new(link: Link, tables: Tables, expires: bool) -> Self {
        RedisInspect {
            link,
            tables,
            expires,
        }
    }

    fn expect(&mut self, batch: &Batch, change: &Change) -> Result<(Vec<u8>, Expected)> {
        let schema = batch.schema(change);
        if change.op == Op::Delete {
            let row = batch.old_row(change).ok_or_else(|| no_row(schema))?;
            let mut key = String::new();
            key_text(schema, row, &mut key)?;
            return Ok((self.tables.get(schema)?.key(&key), Expected::Nothing));
        }
        let row = batch.new_row(change).ok_or_else(|| no_row(schema))?;
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
            let mut wanted = Vec::with_capacity(changes.len());
            let mut refused: Vec<Option<Held>> = Vec::with_capacity(changes.len());
            for change in changes {
                match self.expect(batch, change) {
                    Ok(one) => {
                        wanted.push(one);
                        refused.push(None);
                    }
                    Err(error) if error.kind() == ErrorKind::Refused => {
                        let message = error.to_string();
                        refused.push(Some(Held::Refused { message }));
                    }
                    Err(error) => return Err(error),
                }
            }
            let format = self.tables.format();
            let commands = wanted.iter().map(|(key, _)| match format {
                ValueFormat::Json => Command::on_key("GET", key),
                ValueFormat::Hash => Command::on_key("HGETALL", key),
            });
            let replies = self.link.ask(commands.collect()).await?;
            let mut found = Vec::with_capacity(wanted.len());
            for ((key, expected), reply) in wanted.into_iter().zip(replies) {
                let key = String::from_utf8_lossy(&key).into_owned();
                let held = compare(&self.link, &key, &expected, reply).at(format!("key {key}"))?;
                found.push(match held {
                    Held::Missing { .. } if self.expires => Held::Same,
                    held => held,
                });
            }
            let mut found = found.into_iter();
            let all = refused
                .into_iter()
                .map(|refused| refused.or_else(|| found.next()));
            answers.extend(all.flatten());
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

    async fn list(&mut self, table: &Arc<TableSchema>) -> Result<Option<Box<dyn Listing>>> {
        let space = self.tables.get(table)?.space.clone();
        Ok(Some(Box::new(RowKeys {
            scan: Scan::begin(&self.link, space.pattern()).await?,
            columns: table.key.len(),
            space,
        })))
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
        Expected::Nothing => match reply {
            Value::Nil => Ok(Held::Same),
            Value::BulkString(held) => {
                let held = String::from_utf8_lossy(&held).into_owned();
                Ok(different(key, expected, held))
            }
            reply => {
                let held = state::pairs(reply);
                let held = held.map_err(|reply| link.unexpected("HGETALL", &reply))?;
                Ok(match held.is_empty() {
                    true => Held::Same,
                    false => different(key, expected, show(&held.into_iter().collect())),
                })
            }
        },
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
    let key = key.to_owned();
    let expected = match expected {
        Expected::Json(text) => String::from_utf8_lossy(text).into_owned(),
        Expected::Fields(fields) => show(fields),
        Expected::Nothing => return Held::Extra { key, actual },
    };
    Held::Different {
        key,
        expected,
        actual,
    }
}

fn no_row(schema: &TableSchema) -> Error {
    let message = format!("a change of {} to compare has no row", schema.id);
    Error::new(ErrorKind::Invalid, message)
}

/// The keys of a table's rows.
struct RowKeys {
    scan: Scan,
    space: Space,
    columns: usize,
}

#[async_trait]
impl Listing for RowKeys {
    async fn next(&mut self) -> Result<Option<Keys>> {
        let Some(found) = self.scan.next().await? else {
            return Ok(None);
        };
        let mut page = Keys::default();
        // What has braces belongs to someone else: rows have none.
        let is_ours =
            |key: &&Vec<u8>| !keys::is_beside(key) && !key.contains(&b'{') && !key.contains(&b'}');
        for key in found.iter().filter(is_ours) {
            let text = self.space.key_text(key);
            match text.and_then(|text| key_values(text, self.columns)) {
                Some(values) => page.keys.push(values),
                None => page.foreign.push(String::from_utf8_lossy(key).into_owned()),
            }
        }
        Ok(Some(page))
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
