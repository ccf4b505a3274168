//! Reading back what the sink holds.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::ops::Range;

use async_trait::async_trait;
use lockstep_core::batch::{Batch, Change, Op};
use lockstep_core::position::SourceInfo;
use lockstep_core::schema::TableSchema;
use lockstep_core::sink::{Held, HeldVersion, Inspect, Keys, Listing};
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_encode::key::{key_text, key_values};
use lockstep_redis::{Command, Link, Node};
use redis::Value;
use std::sync::Arc;

use crate::config::ValueFormat;
use crate::keys::Space;
use crate::rows::Tables;
use crate::scan::Scan;
use crate::version::Version;
use crate::{keys, splice, state};

/// Keys asked for at a time.
const READS: usize = 512;
/// Reads under way: the server looks some up while what it said before is compared.
const AHEAD: usize = 3;

/// Compares rows with what is held under their keys.
pub(crate) struct RedisInspect {
    link: Link,
    tables: Tables,
    /// Rows go by themselves: one that is not there may have been.
    expires: bool,
}

/// What should be under a key.
enum Expected {
    /// Where it stands in the window's text.
    Json(Range<usize>),
    Fields(BTreeMap<Vec<u8>, Vec<u8>>),
    /// Nothing, whatever its type.
    Nothing,
}

/// Rows that are compared together.
struct Window {
    /// Keys and values in JSON, one behind the other.
    text: Vec<u8>,
    /// Key, as its place in the text, and value of each that can be written.
    wanted: Vec<(Range<usize>, Expected)>,
    /// Of every row, why it cannot be.
    refused: Vec<Option<Held>>,
}

/// What should be under a key, as it is compared.
enum Wanted<'w> {
    Json(&'w [u8]),
    Fields(&'w BTreeMap<Vec<u8>, Vec<u8>>),
    Nothing,
}

impl Expected {
    /// `text` is the window's.
    fn shown<'w>(&'w self, text: &'w [u8]) -> Wanted<'w> {
        match self {
            Expected::Json(place) => Wanted::Json(&text[place.clone()]),
            Expected::Fields(fields) => Wanted::Fields(fields),
            Expected::Nothing => Wanted::Nothing,
        }
    }
}

impl RedisInspect {
    pub(crate) fn new(link: Link, tables: Tables, expires: bool) -> Self {
        RedisInspect {
            link,
            tables,
            expires,
        }
    }
}

impl Window {
    fn new(tables: &mut Tables, batch: &Batch, changes: &[Change]) -> Result<Self> {
        let mut window = Window {
            text: Vec::new(),
            wanted: Vec::with_capacity(changes.len()),
            refused: Vec::with_capacity(changes.len()),
        };
        for change in changes {
            let refused = match window.expect(tables, batch, change) {
                Ok(()) => None,
                Err(error) if error.kind() == ErrorKind::Refused => {
                    let message = error.to_string();
                    Some(Held::Refused { message })
                }
                Err(error) => return Err(error),
            };
            window.refused.push(refused);
        }
        Ok(window)
    }

    /// Takes in the key of a row, and what should be under it.
    fn expect(&mut self, tables: &mut Tables, batch: &Batch, change: &Change) -> Result<()> {
        let schema = batch.schema(change);
        let format = tables.format();
        let table = tables.get(schema)?;
        let row = match change.op {
            Op::Delete => batch.old_row(change),
            _ => batch.new_row(change),
        };
        let row = row.ok_or_else(|| no_row(schema))?;
        let mut key = String::new();
        key_text(schema, row, &mut key)?;
        let begin = self.text.len();
        table.space.render(&key, &mut self.text);
        let end = self.text.len();
        let expected = match format {
            _ if change.op == Op::Delete => Expected::Nothing,
            ValueFormat::Json => {
                table.row_json(row, &mut self.text)?;
                Expected::Json(end..self.text.len())
            }
            ValueFormat::Hash => Expected::Fields(table.row_fields(row)?.into_iter().collect()),
        };
        self.wanted.push((begin..end, expected));
        Ok(())
    }

    /// What the server holds under each key.
    async fn read(self, link: Link, format: ValueFormat) -> Result<(Self, Vec<Value>)> {
        let link = &link;
        let keys = self.wanted.iter().map(|(key, _)| &self.text[key.clone()]);
        let replies = match format {
            // The keys of a command must be in one slot of a cluster.
            ValueFormat::Json if !link.is_cluster() => read_together(link, keys.collect()).await,
            ValueFormat::Json => read_each(link, "GET", keys).await,
            ValueFormat::Hash => read_each(link, "HGETALL", keys).await,
        };
        Ok((self, replies?))
    }
}

/// Rows that differ: which of the answers it is, and the key of the row's version.
type Differing = Vec<(usize, Vec<u8>)>;

/// Reads the versions of rows that differ.
async fn tell_versions(
    link: &Link,
    source: &SourceInfo,
    rows: &Differing,
    answers: &mut [Held],
) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let Some(epoch) = state::epoch(link, source).await? else {
        return Ok(());
    };
    for part in rows.chunks(READS) {
        let keys = part.iter().map(|(_, key)| key.as_slice());
        let replies = read_each(link, "GET", keys).await?;
        for ((index, _), reply) in part.iter().zip(replies) {
            // Anything else under such a key is nobody's version.
            let (Value::BulkString(text), Some(Held::Different { version, .. })) =
                (reply, answers.get_mut(*index))
            else {
                continue;
            };
            if let Some(held) = Version::parse(&text) {
                *version = held.held(epoch);
            }
        }
    }
    Ok(())
}

async fn read_each<'k>(
    link: &Link,
    command: &str,
    keys: impl Iterator<Item = &'k [u8]>,
) -> Result<Vec<Value>> {
    let commands = keys.map(|key| Command::on_key(command, key));
    link.ask(commands.collect()).await
}

/// By one command, which costs the server less than half of what as many cost.
async fn read_together(link: &Link, keys: Vec<&[u8]>) -> Result<Vec<Value>> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let mut cmd = redis::cmd("MGET");
    cmd.arg(&keys);
    let node = Node::Any;
    let mut replies = match link.expect_one(Command { cmd, node }).await? {
        Value::Array(replies) if replies.len() == keys.len() => replies,
        other => return Err(link.unexpected("MGET", &other)),
    };
    // A value of another type is none to it.
    let none = |place: &usize| replies[*place] == Value::Nil;
    let places: Vec<usize> = (0..keys.len()).filter(none).collect();
    let again = read_each(link, "GET", places.iter().map(|place| keys[*place])).await?;
    for (place, reply) in places.into_iter().zip(again) {
        replies[place] = reply;
    }
    Ok(replies)
}

#[async_trait]
impl Inspect for RedisInspect {
    async fn compare(&mut self, batch: &Batch) -> Result<Vec<Held>> {
        let (link, tables) = (&self.link, &mut self.tables);
        let format = tables.format();
        let mut chunks = batch.changes().chunks(READS);
        let mut reads = VecDeque::new();
        let mut answers = Vec::with_capacity(batch.changes().len());
        let mut differing = Differing::new();
        loop {
            while reads.len() < AHEAD
                && let Some(changes) = chunks.next()
            {
                let window = Window::new(tables, batch, changes)?;
                reads.push_back(tokio::spawn(window.read(link.clone(), format)));
            }
            let Some(read) = reads.pop_front() else {
                tell_versions(link, &batch.source, &differing, &mut answers).await?;
                return Ok(answers);
            };
            // What was asked for is on its way only when others have had a turn on this thread.
            tokio::task::yield_now().await;
            let failed =
                |cause| Error::new(ErrorKind::Protocol, "rows were not read").source(cause);
            let (window, replies) = read.await.map_err(failed)??;
            let mut rows = window.wanted.iter().zip(replies);
            for refused in window.refused {
                let held = match refused {
                    Some(held) => held,
                    None => {
                        let row = rows.next();
                        let ((key, expected), reply) =
                            row.ok_or_else(|| link.unexpected("a read", &Value::Nil))?;
                        let key = &window.text[key.clone()];
                        let place = |error: Error| error.at(format!("key {}", key.escape_ascii()));
                        let expected = expected.shown(&window.text);
                        let held = compare(link, key, &expected, reply).map_err(place)?;
                        if let Held::Different { .. } = held {
                            let mut companion = Vec::new();
                            keys::companion(key, &mut companion);
                            differing.push((answers.len(), companion));
                        }
                        held
                    }
                };
                answers.push(match held {
                    Held::Missing { .. } if self.expires => Held::Same,
                    held => held,
                });
            }
        }
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

fn compare(link: &Link, key: &[u8], expected: &Wanted<'_>, reply: Value) -> Result<Held> {
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
        Wanted::Nothing => match reply {
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
        Wanted::Json(text) => match reply {
            Value::Nil => Ok(missing(key)),
            Value::BulkString(held) if same_json(text, &held) => Ok(Held::Same),
            Value::BulkString(held) => Ok(different(
                key,
                expected,
                String::from_utf8_lossy(&held).into_owned(),
            )),
            other => Err(link.unexpected("GET", &other)),
        },
        Wanted::Fields(fields) => {
            let held = state::pairs(reply).map_err(|reply| link.unexpected("HGETALL", &reply))?;
            if held.is_empty() {
                return Ok(missing(key));
            }
            let held: BTreeMap<_, _> = held.into_iter().collect();
            if held == **fields {
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

fn missing(key: &[u8]) -> Held {
    Held::Missing {
        key: String::from_utf8_lossy(key).into_owned(),
    }
}

fn different(key: &[u8], expected: &Wanted<'_>, actual: String) -> Held {
    let key = String::from_utf8_lossy(key).into_owned();
    let expected = match expected {
        Wanted::Json(text) => String::from_utf8_lossy(text).into_owned(),
        Wanted::Fields(fields) => show(fields),
        Wanted::Nothing => return Held::Extra { key, actual },
    };
    Held::Different {
        key,
        expected,
        actual,
        version: HeldVersion::Unknown,
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
