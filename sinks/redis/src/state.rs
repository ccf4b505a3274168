//! What a sink keeps about its sources beside the rows: identities, truncations, progress.

use std::collections::HashMap;
use std::sync::Arc;

use lockstep_core::batch::Phase;
use lockstep_core::position::{SourceIdentity, SourceInfo};
use lockstep_core::progress::Progress;
use lockstep_core::schema::{TableId, TableSchema};
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_redis::{Command, Link};
use redis::Value;

use crate::fence::Fence;
use crate::keys;
use crate::scripts::{self, Script};
use crate::version::Version;
use crate::writer::Reached;

/// The names that a sink's state is kept under.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    pub(crate) pipeline: Arc<str>,
    pub(crate) sink: Arc<str>,
}

/// What is known of one source.
pub(crate) struct Source {
    identity: SourceIdentity,
    /// Of the identity: writes of a later one win over all writes of an earlier one.
    pub(crate) epoch: u16,
    /// Versions of the last TRUNCATE of each table: rows below are gone, and writes below come too late.
    floors: HashMap<TableId, Version>,
    floors_key: String,
}

impl Source {
    async fn load(link: &Link, names: &Names, info: &SourceInfo) -> Result<Self> {
        let identity = info.identity.to_string();
        let reply = scripts::run_on_key(
            link,
            Script::Epoch,
            None,
            keys::IDENTITIES,
            &[identity.as_bytes()],
        )
        .await?;
        let Value::Int(epoch) = reply else {
            return Err(link.unexpected(Script::Epoch.name(), &reply));
        };
        let epoch = u16::try_from(epoch).map_err(|_| {
            Error::new(
                ErrorKind::Setup,
                format!("{} holds {epoch} identities of sources", keys::IDENTITIES),
            )
            .remedy("load all tables into an empty Redis")
        })?;
        let floors_key = keys::floors(&names.pipeline, &names.sink, &info.name);
        let reply = link
            .expect_one(Command::on_key("HGETALL", &floors_key))
            .await?;
        let mut floors = HashMap::new();
        for (table, version) in pairs(reply).map_err(|reply| link.unexpected("HGETALL", &reply))? {
            let table = String::from_utf8_lossy(&table).into_owned();
            let known = table.split_once('\0').zip(Version::parse(&version));
            let Some(((schema, name), version)) = known else {
                return Err(Error::new(
                    ErrorKind::Protocol,
                    format!("{floors_key} holds something that this sink did not write, in field `{table}`"),
                )
                .remedy(format!("delete the key {floors_key}")));
            };
            floors.insert(TableId::new(schema, name), version);
        }
        Ok(Source {
            identity: info.identity.clone(),
            epoch,
            floors,
            floors_key,
        })
    }

    /// Whether a write of `version` comes after a TRUNCATE of its table that has been carried out.
    pub(crate) fn is_stale(&self, table: &TableSchema, version: Version) -> bool {
        !self.floors.is_empty()
            && self
                .floors
                .get(&table.id)
                .is_some_and(|floor| version < *floor)
    }

    /// Notes a TRUNCATE, first on the server. Returns the version that rows must exceed from now on.
    pub(crate) async fn raise_floor(
        &mut self,
        link: &Link,
        fence: Option<&Fence>,
        table: &TableSchema,
        version: Version,
    ) -> Result<Version> {
        // Neither part of a name can hold a zero byte.
        let field = format!("{}\0{}", table.id.schema, table.id.name);
        let args = [field.as_bytes(), version.as_bytes()];
        let reply =
            scripts::run_on_key(link, Script::Floor, fence, &self.floors_key, &args).await?;
        let held = match &reply {
            Value::BulkString(text) => Version::parse(text),
            _ => None,
        };
        let held = held.ok_or_else(|| link.unexpected(Script::Floor.name(), &reply))?;
        self.floors.insert(table.id.clone(), held);
        Ok(held)
    }
}

/// The sources of a sink, by name.
#[derive(Default)]
pub(crate) struct Sources(HashMap<Arc<str>, Source>);

impl Sources {
    /// What is known of a source, asked for when it is seen first and when its identity changes.
    pub(crate) async fn get(
        &mut self,
        link: &Link,
        names: &Names,
        info: &SourceInfo,
    ) -> Result<&mut Source> {
        let known = self
            .0
            .get(&info.name)
            .is_some_and(|source| source.identity == info.identity);
        if !known {
            let source = Source::load(link, names, info).await?;
            self.0.insert(Arc::clone(&info.name), source);
        }
        Ok(self
            .0
            .get_mut(&info.name)
            .expect("it was there or has just been put there"))
    }
}

/// Notes how far sources have come: all in one step on a single server. In a cluster, where it cannot be, readers get what is the
/// same for all sources in one key, [`keys::visible`], before: what is resumed from is visible.
///
/// # Errors
/// When the server cannot be told, or somebody has a newer token.
pub(crate) async fn save_progress(
    link: &Link,
    names: &Names,
    fence: Option<&Fence>,
    latest: &[Reached],
) -> Result<()> {
    if link.is_cluster() && !latest.is_empty() {
        show(link, names, fence, latest).await?;
    }
    let notes: Vec<(String, Vec<u8>)> = latest
        .iter()
        .map(|reached| {
            let key = keys::progress(&names.pipeline, &names.sink, &reached.source);
            (key, reached.progress.to_hex().into_bytes())
        })
        .collect();
    let at_once = if link.is_cluster() { 1 } else { notes.len() };
    let steps: Vec<&[(String, Vec<u8>)]> = notes.chunks(at_once.max(1)).collect();
    scripts::run(link, steps.len(), |index, how| {
        let (keys, values): (Vec<&[u8]>, Vec<&[u8]>) = steps[index]
            .iter()
            .map(|(key, value)| (key.as_bytes(), &**value))
            .unzip();
        scripts::counted(link, how, Script::Save, fence, &keys, &values)
    })
    .await
    .map(drop)
}

/// Tells readers of a cluster up to where everything is there.
async fn show(link: &Link, names: &Names, fence: Option<&Fence>, latest: &[Reached]) -> Result<()> {
    let visible = keys::visible(&names.pipeline, &names.sink);
    let shown: Vec<Vec<u8>> = latest
        .iter()
        .map(|reached| visible_text(reached.epoch, &reached.progress))
        .collect();
    let pairs = latest.iter().zip(&shown);
    let words: Vec<&[u8]> = pairs
        .flat_map(|(reached, text)| [reached.source.name.as_bytes(), text])
        .collect();
    scripts::run(link, 1, |_, how| {
        scripts::counted(
            link,
            how,
            Script::Show,
            fence,
            &[visible.as_bytes()],
            &words,
        )
    })
    .await
    .map(drop)
}

/// How far a source is visible, as versions: the one up to which everything is there, and behind `+` each the last ones of
/// transactions that are there as well, or two with dots between them, the ends of a span of which everything is.
fn visible_text(epoch: u16, progress: &Progress) -> Vec<u8> {
    let version = |position| Version::new(epoch, Phase::Stream, position);
    let mut text = version(progress.upto()).as_bytes().to_vec();
    for held in progress.ahead().iter().chain(progress.early()) {
        text.push(b'+');
        text.extend_from_slice(version(*held).as_bytes());
    }
    for (from, to) in progress.spans() {
        text.push(b'+');
        text.extend_from_slice(version(*from).as_bytes());
        text.extend_from_slice(b"..");
        text.extend_from_slice(version(*to).as_bytes());
    }
    text
}

/// How far a source had come.
///
/// # Errors
/// When the server cannot be asked, or holds something else under the key.
pub(crate) async fn load_progress(
    link: &Link,
    names: &Names,
    source: &SourceInfo,
) -> Result<Option<Progress>> {
    let key = keys::progress(&names.pipeline, &names.sink, source);
    match link.expect_one(Command::on_key("GET", &key)).await? {
        Value::Nil => Ok(None),
        Value::BulkString(text) => {
            let reached = Progress::parse_hex(&String::from_utf8_lossy(&text));
            reached.map(Some).map_err(|error| {
                Error::new(
                    ErrorKind::Protocol,
                    format!("{key} holds something that this sink did not write"),
                )
                .source(error)
                .remedy(format!(
                    "delete the key {key}; changes are then written again, which does no harm"
                ))
            })
        }
        other => Err(link.unexpected("GET", &other)),
    }
}

/// The epoch of a source's identity, if it has one here.
///
/// # Errors
/// When the server cannot be asked.
pub(crate) async fn epoch(link: &Link, source: &SourceInfo) -> Result<Option<u16>> {
    let mut ask = Command::on_key("HGET", keys::IDENTITIES);
    ask.cmd.arg(source.identity.to_string());
    match link.expect_one(ask).await? {
        Value::BulkString(text) => Ok(std::str::from_utf8(&text)
            .ok()
            .and_then(|text| text.parse().ok())),
        _ => Ok(None),
    }
}

/// A field of a hash, and its value.
pub(crate) type Pair = (Vec<u8>, Vec<u8>);

/// Fields and values of a HGETALL, which RESP2 sends flat.
pub(crate) fn pairs(reply: Value) -> Result<Vec<Pair>, Value> {
    let mut pairs = Vec::new();
    match reply {
        Value::Array(items) => {
            let mut items = items.into_iter();
            while let (Some(field), Some(value)) = (items.next(), items.next()) {
                pairs.push((bulk(field)?, bulk(value)?));
            }
        }
        Value::Map(items) => {
            for (field, value) in items {
                pairs.push((bulk(field)?, bulk(value)?));
            }
        }
        other => return Err(other),
    }
    Ok(pairs)
}

fn bulk(value: Value) -> Result<Vec<u8>, Value> {
    match value {
        Value::BulkString(bytes) => Ok(bytes),
        other => Err(other),
    }
}
