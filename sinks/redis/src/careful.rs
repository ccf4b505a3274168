//! Batches that must read what is there before they write, or that empty tables.
//!
//! They run alone: everything before them has been answered, nothing after them has been sent.

use std::sync::Arc;

use lockstep_core::batch::Batch;
use lockstep_core::durable::Delivered;
use lockstep_core::error::At;
use lockstep_core::position::Position;
use lockstep_core::refusal::Refusals;
use lockstep_core::schema::{TableId, TableSchema};
use lockstep_core::{Error, Result};
use lockstep_encode::fold::held::{Looked, Place, Seen, locate};
use lockstep_encode::fold::{Part, Write};
use lockstep_redis::{Command, Link, Node};
use redis::Value;
use redis::cluster_routing::Slot;

use crate::config::ValueFormat;
use crate::fence::Fence;
use crate::flush::{Flush, Limits};
use crate::keys;
use crate::rows::Base;
use crate::scan::Scan;
use crate::scripts::{self, How, Script};
use crate::version::Version;
use crate::writer::{Writer, put, warn_incomplete};

/// Rows at a time, so that the values read stay few.
pub(crate) const AT_ONCE: usize = 512;

impl Writer {
    /// Carries out the writes of a batch and waits for the answers.
    pub(crate) async fn apply_carefully(
        &mut self,
        batch: &Batch,
        parts: &[Part<'_>],
    ) -> Result<Delivered> {
        let mut delivered = Delivered::default();
        for part in parts {
            if let Some((schema, position)) = part.truncate() {
                delivered += self.truncate(batch, schema, position).await?;
                continue;
            }
            for round in part.rounds() {
                for rows in round.chunks(AT_ONCE) {
                    delivered += self.apply_rows(batch, rows).await?;
                }
            }
        }
        Ok(delivered)
    }

    /// Writes none of which needs what another one changes, and waits for the answers.
    async fn apply_rows(&mut self, batch: &Batch, writes: &[&Write<'_>]) -> Result<Delivered> {
        let mut bases = self.read_bases(batch, writes).await?.into_iter();
        let (mut delivered, mut incomplete) = (Delivered::default(), 0);
        let mut refusals = Refusals::default();
        let mut flush = Flush::default();
        for write in writes {
            let Some(base) = base_of(write, &mut bases) else {
                delivered.stale += 1;
                continue;
            };
            let put = self.put_one(batch, write, &base, &mut flush).await;
            let Some((done, gaps)) = refusals.take(put)? else {
                continue;
            };
            delivered += done;
            incomplete += u64::from(gaps > 0);
            if flush.is_full() {
                incomplete += self.send_now(&mut flush, &mut delivered).await?;
            }
        }
        incomplete += self.send_now(&mut flush, &mut delivered).await?;
        refusals.finish()?;
        delivered.incomplete += incomplete;
        if incomplete > 0 {
            warn_incomplete(&self.names, incomplete);
        }
        Ok(delivered)
    }

    pub(crate) async fn put_one(
        &mut self,
        batch: &Batch,
        write: &Write<'_>,
        base: &Base,
        flush: &mut Flush,
    ) -> Result<(Delivered, usize)> {
        let source = self
            .sources
            .get(&self.link, &self.names, &batch.source)
            .await?;
        put(&mut self.tables, flush, source, batch, write, base)
    }

    /// Sends a flush and waits. Returns how many rows lacked what they were to keep.
    async fn send_now(&mut self, flush: &mut Flush, delivered: &mut Delivered) -> Result<u64> {
        let tally = std::mem::take(flush).send(&self.link, &self.limits).await?;
        delivered.written -= tally.stale;
        delivered.stale += tally.stale;
        Ok(tally.gaps)
    }

    /// Reads what rows keep: one answer for each row that keeps something, in order. `None` for a row that the server
    /// holds in a later state: the write is a replay.
    ///
    /// Where the server is ahead, the row that a key change took the values from may be gone, or its key may have been
    /// taken by another row. The values are then where the change has put them: under the row's own key.
    pub(crate) async fn read_bases(
        &mut self,
        batch: &Batch,
        writes: &[&Write<'_>],
    ) -> Result<Vec<Option<Base>>> {
        let epoch = self
            .sources
            .get(&self.link, &self.names, &batch.source)
            .await?
            .epoch;
        let mut wanted = Vec::new();
        for write in writes {
            let Write::Upsert {
                key,
                schema,
                row,
                missing_from: Some(from),
                missing_before,
                position,
                ..
            } = write
            else {
                continue;
            };
            let format = self.tables.format();
            let table = self.tables.get(schema)?;
            let columns = match format {
                ValueFormat::Json => Vec::new(),
                ValueFormat::Hash => table.unchanged(row.row(batch)).map(str::to_owned).collect(),
            };
            wanted.push(Wanted {
                table: &schema.id,
                position: *position,
                from: table.key(from),
                to: table.key(key),
                version: Version::new(epoch, batch.phase, *position),
                before: Version::new(epoch, batch.phase, *missing_before),
                columns,
                merge: format == ValueFormat::Hash && from == key,
            });
        }
        let mut commands = Vec::new();
        for want in wanted.iter().filter(|want| !want.merge) {
            commands.extend([want.read(&want.from), version_of(&want.from)]);
            if want.from != want.to {
                commands.extend([want.read(&want.to), version_of(&want.to)]);
            }
        }
        let mut replies = self.link.ask(commands).await?.into_iter();
        let mut bases = Vec::with_capacity(wanted.len());
        let mut refusals = Refusals::default();
        for want in &wanted {
            if want.merge {
                bases.push(Some(Base::Merge));
                continue;
            }
            // Both are taken from the replies, also when the first is refused.
            let from = self.held(&want.from, &mut replies);
            let to = match want.from == want.to {
                true => Ok(None),
                false => self.held(&want.to, &mut replies).map(Some),
            };
            let both = from.and_then(|from| Ok((from, to?)));
            let about = |error: Error| error.about(&batch.source, want.table, want.position);
            let both = refusals.take(both.map_err(about))?;
            bases.push(both.and_then(|(from, to)| want.choose(from, to)));
        }
        refusals.finish()?;
        Ok(bases)
    }

    /// The next two replies: what is held under `data`, and its version.
    fn held(&self, data: &[u8], replies: &mut impl Iterator<Item = Value>) -> Result<Held> {
        let place = || format!("key {}", String::from_utf8_lossy(data));
        let mut next = || {
            let reply = replies.next().unwrap_or(Value::Nil);
            self.link.check(&reply).at(place()).map(|()| reply)
        };
        let (values, version) = (next(), next());
        let (values, version) = (values?, version?);
        let version = match version {
            Value::BulkString(text) => Version::parse(&text),
            _ => None,
        };
        let values = base(values)
            .map_err(|reply| self.link.unexpected("GET or HMGET", &reply).at(place()))?;
        Ok(Held { values, version })
    }

    /// Empties a table: notes the floor, then removes every row below it, step by step.
    pub(crate) async fn truncate(
        &mut self,
        batch: &Batch,
        schema: &Arc<TableSchema>,
        position: Position,
    ) -> Result<Delivered> {
        let place = format!("TRUNCATE of {}", schema.id);
        let source = self
            .sources
            .get(&self.link, &self.names, &batch.source)
            .await?;
        let version = Version::new(source.epoch, batch.phase, position);
        let floor = source
            .raise_floor(&self.link, self.limits.fence.as_ref(), schema, version)
            .await
            .at(&*place)?;
        let pattern = self.tables.get(schema)?.space.pattern();
        let mut delivered = Delivered::default();
        let mut scan = Scan::begin(&self.link, pattern).await.at(&*place)?;
        while let Some(mut found) = scan.next().await.at(&*place)? {
            // The sink's own keys have no braces: what has some belongs to someone else.
            found.retain(|key| {
                !keys::is_beside(key) && !key.contains(&b'{') && !key.contains(&b'}')
            });
            let kept = clear(&self.link, &self.limits, &found, floor)
                .await
                .at(&*place)?;
            delivered.written += found.len() as u64 - kept.min(found.len() as u64);
        }
        Ok(delivered)
    }
}

/// The base of a write; `read` are those of the writes that keep something, in order. `None`: the write comes too late.
pub(crate) fn base_of(
    write: &Write<'_>,
    read: &mut impl Iterator<Item = Option<Base>>,
) -> Option<Base> {
    match write {
        Write::Upsert {
            missing_from: Some(_),
            ..
        } => read.next().unwrap_or(Some(Base::Json(None))),
        _ => Some(Base::Whole),
    }
}

/// Removes rows, up to the limit of keys in a script call, unless they are newer than `floor`; returns how many are.
async fn clear(link: &Link, limits: &Limits, found: &[Vec<u8>], floor: Version) -> Result<u64> {
    let groups: Vec<(Node, &[Vec<u8>])> = if link.is_cluster() {
        let alone = found.iter().map(std::slice::from_ref);
        alone.map(|key| (Node::of_key(&key[0]), key)).collect()
    } else {
        found
            .chunks(limits.keys)
            .map(|keys| (Node::Any, keys))
            .collect()
    };
    let fence = limits.fence.as_ref();
    let build = |index: usize, how: How| {
        let (node, keys) = groups[index];
        let names = 2 * keys.len() + usize::from(fence.is_some());
        let bytes = 128 * keys.len();
        let mut cmd = Script::Clear.call(how, fence.is_some(), names, names + 2, bytes);
        let mut companion = Vec::new();
        for key in keys {
            companion.clear();
            keys::companion(key, &mut companion);
            cmd.arg(key.as_slice()).arg(&companion);
        }
        let slot = link.is_cluster().then(|| Slot::for_key(&keys[0]));
        Fence::add_key(fence, &mut cmd, slot);
        cmd.arg(floor.as_bytes()).arg(limits.channel());
        Fence::add_token(fence, &mut cmd);
        Command { cmd, node }
    };
    let replies = scripts::run(link, groups.len(), build).await?;
    replies
        .iter()
        .map(|reply| scripts::counts(link, Script::Clear, reply).map(|(kept, _)| kept))
        .sum()
}

/// A row that keeps values which the server holds under `from`.
struct Wanted<'a> {
    table: &'a TableId,
    position: Position,
    from: Vec<u8>,
    to: Vec<u8>,
    version: Version,
    /// What `from` holds from here on is not the row any more.
    before: Version,
    /// In a hash: the columns.
    columns: Vec<String>,
    /// The server itself puts the row into the hash that it has.
    merge: bool,
}

/// What the server holds under a key.
#[derive(Default)]
struct Held {
    /// `None` when there is nothing.
    values: Option<Base>,
    /// Of the row, or of its deletion.
    version: Option<Version>,
}

impl Held {
    fn seen(&self) -> Seen<Version> {
        Seen {
            is_there: self.values.is_some(),
            version: self.version,
        }
    }
}

impl Wanted<'_> {
    fn read(&self, data: &[u8]) -> Command {
        if self.columns.is_empty() {
            return Command::on_key("GET", data);
        }
        let mut command = Command::on_key("HMGET", data);
        for column in &self.columns {
            command.cmd.arg(column);
        }
        command
    }

    /// See [`Writer::read_bases`]. `to` is absent when it is `from`.
    fn choose(&self, from: Held, to: Option<Held>) -> Option<Base> {
        let looked = Looked {
            version: self.version,
            before: self.before,
            moved: to.is_some(),
            // A write below the table's floor is left out before it is sent.
            truncated: None,
        };
        let to = to.unwrap_or_default();
        match locate(&looked, &from.seen(), &to.seen()) {
            Place::From => from.values,
            Place::To => to.values,
            Place::Later => return None,
            Place::Nowhere => None,
        }
        .or(Some(Base::Json(None)))
    }
}

fn version_of(data: &[u8]) -> Command {
    let mut companion = Vec::with_capacity(data.len() + 16);
    keys::companion(data, &mut companion);
    Command::on_key("GET", companion)
}

/// An unchanged value is never NULL: a hash without any of the fields asked for is one that is not there.
fn base(reply: Value) -> Result<Option<Base>, Value> {
    match reply {
        Value::Nil => Ok(None),
        Value::BulkString(text) => Ok(Some(Base::Json(Some(text)))),
        Value::Array(fields) => fields
            .into_iter()
            .map(|field| match field {
                Value::Nil => Ok(None),
                Value::BulkString(value) => Ok(Some(value)),
                other => Err(other),
            })
            .collect::<Result<Vec<_>, _>>()
            .map(|fields| {
                let any = fields.iter().any(Option::is_some);
                any.then_some(Base::Fields(fields))
            }),
        other => Err(other),
    }
}

#[cfg(test)]
mod tests {
    use lockstep_core::batch::Phase;
    use lockstep_core::position::Lsn;

    use super::*;

    fn version(commit: u64) -> Version {
        let position = Position {
            commit: Lsn(commit),
            ordinal: 1,
        };
        Version::new(0, Phase::Stream, position)
    }

    fn held(value: Option<&str>, at: Option<u64>) -> Held {
        Held {
            values: value.map(|value| Base::Json(Some(value.into()))),
            version: at.map(version),
        }
    }

    /// The value chosen; `-` for none, `stale` for a replay.
    fn choose(from: Held, to: Option<Held>) -> String {
        let table = TableId::new("public", "t");
        let want = Wanted {
            table: &table,
            position: Position::default(),
            from: b"a".into(),
            to: b"b".into(),
            version: version(12),
            before: version(10),
            columns: Vec::new(),
            merge: false,
        };
        match want.choose(from, to) {
            None => "stale".into(),
            Some(Base::Json(Some(value))) => String::from_utf8(value).expect("UTF-8"),
            Some(_) => "-".into(),
        }
    }

    #[test]
    fn values_are_taken_from_where_they_are() {
        let (gone, none) = (|at| held(None, Some(at)), || held(None, None));
        let moved = |from, to| choose(from, Some(to));
        assert_eq!(moved(held(Some("1"), Some(9)), none()), "1");
        assert_eq!(moved(gone(10), held(Some("2"), Some(10))), "2");
        assert_eq!(moved(gone(10), gone(13)), "stale");
        assert_eq!(moved(none(), none()), "-");
        assert_eq!(choose(held(Some("1"), Some(12)), None), "1");
        assert_eq!(choose(gone(13), None), "stale");
        assert_eq!(choose(gone(11), None), "-");
    }
}
