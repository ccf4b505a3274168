//! `dedupe`: suppresses rows that repeat an idempotency key.
//!
//! What repeats, and for how long, is in [`judge`]; why a replay is judged as the first time is in [`history`]; the
//! store is in [`store`].

mod digest;
mod expiry;
mod history;
mod judge;
mod sieve;
mod store;

use std::collections::BTreeMap;
use std::sync::Arc;

use lockstep_core::batch::{Batch, Change, OldImage, Op, Row};
use lockstep_core::config::Duration;
use lockstep_core::position::Position;
use lockstep_core::schema::{Column, ReplicaIdentity, TableSchema};
use lockstep_core::transform::{DeadLetters, Transform, TransformContext, TransformFactory};
use lockstep_core::{Error, ErrorKind, Result};
use schemars::JsonSchema;
use serde::Deserialize;

use self::digest::{Digest, Hasher};
use self::history::Moment;
use self::judge::{Alteration, Arrival, KeyAfter, Verdict, Window};
use self::store::Store;
use crate::image::enters;
use crate::plans::Plans;
use crate::tables::{is_message, nearest};
use crate::text::{Value, value};

/// How long a key is remembered.
pub const DEFAULT_WINDOW: Duration = Duration(std::time::Duration::from_secs(24 * 3600));
/// Why a row is put aside.
pub const REASON: &str = "duplicate";

/// `type = "dedupe"`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DedupeConfig {
    /// The columns that together are the idempotency key. Rows of tables without them, and rows in which one of them
    /// is NULL, pass.
    pub key: Vec<String>,
    /// How long a key is remembered, by the commit times of the changes: from its first occurrence on.
    #[serde(default = "default_window")]
    pub window: Duration,
    /// How many keys are remembered at most; the oldest are forgotten first. Default: as many as the window brings.
    pub max_keys: Option<u64>,
    /// What happens to a row that repeats a key, and to its later changes: `drop` leaves them out, `tag` passes them with a mark,
    /// `dead_letter` puts them aside.
    #[serde(default)]
    pub action: Action,
    /// Where keys are compared: within one `table` of one source, or across `all` tables and sources that reach the
    /// transform.
    #[serde(default)]
    pub scope: Scope,
}

fn default_window() -> Duration {
    DEFAULT_WINDOW
}

/// What happens to a row that repeats a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It is left out.
    #[default]
    Drop,
    /// It passes, marked as a duplicate.
    Tag,
    /// It is put aside among the dead letters.
    DeadLetter,
}

/// Where keys are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Within one table of one source: two tables may use the same keys.
    #[default]
    Table,
    /// Across all tables and sources: one keyed effect, wherever it is recorded.
    All,
}

/// Builds `dedupe`.
pub struct Dedupe;

impl TransformFactory for Dedupe {
    const KIND: &'static str = "dedupe";
    type Config = DedupeConfig;

    fn validate(config: &DedupeConfig) -> Result<()> {
        let wrong = |message: String, remedy: &str| {
            Err(Error::new(ErrorKind::Config, message).remedy(remedy))
        };
        if config.key.is_empty() || config.key.iter().any(String::is_empty) {
            return wrong(
                "`key` names no column".to_owned(),
                "list the columns of the idempotency key, such as `key = [\"idempotency_key\"]`",
            );
        }
        if let Some(twice) = config
            .key
            .iter()
            .enumerate()
            .find(|(index, name)| config.key[..*index].contains(name))
        {
            return wrong(
                format!("`key` names the column `{}` twice", twice.1),
                "name it once",
            );
        }
        if config.window.0.is_zero() {
            return wrong(
                "`window` is 0".to_owned(),
                "write how long keys are remembered, such as 24h",
            );
        }
        if config.max_keys == Some(0) {
            return wrong(
                "`max_keys` is 0: nothing would be remembered".to_owned(),
                "write how many keys are remembered, or leave `max_keys` out",
            );
        }
        Ok(())
    }

    fn open(config: &DedupeConfig, context: TransformContext) -> Result<Box<dyn Transform>> {
        Self::validate(config)?;
        let window = Window {
            micros: i64::try_from(config.window.0.as_micros()).unwrap_or(i64::MAX),
            keys: config.max_keys,
        };
        Ok(Box::new(Deduping {
            store: Store::open(&context.state, window)?,
            window,
            config: config.clone(),
            place: format!("transforms.{}", context.name),
            dead_letters: context.dead_letters,
            plans: Plans::new(),
            seen: Seen::default(),
            duplicates: 0,
        }))
    }
}

struct Deduping {
    config: DedupeConfig,
    window: Window,
    place: String,
    dead_letters: Arc<dyn DeadLetters>,
    store: Store,
    plans: Plans<Option<Arc<Plan>>>,
    seen: Seen,
    duplicates: u64,
}

/// What is worked out for a version of a table that has the key.
struct Plan {
    schema: Arc<TableSchema>,
    key: Vec<Column>,
    /// Every column of the key belongs to the replica identity, so that an UPDATE that sends no old image has not
    /// touched it.
    key_in_identity: bool,
    key_space: Digest,
    row_space: Digest,
}

/// The tables met before all were bound.
#[derive(Default)]
struct Seen {
    checked: bool,
    with_key: bool,
    /// Columns by table.
    without_key: BTreeMap<String, Vec<Arc<str>>>,
}

impl Transform for Deduping {
    fn bind(&mut self, schema: &Arc<TableSchema>) -> Result<()> {
        let plan = self
            .plans
            .bind(schema, |schema| Ok(Plan::new(&self.config, schema)))?;
        self.seen.note(schema, plan.is_some());
        Ok(())
    }

    fn complete(&mut self) -> Result<()> {
        self.seen.check(&self.config.key)
    }

    fn apply(&mut self, batch: Batch) -> Result<Batch> {
        let plans = self
            .plans
            .of(&batch, |schema| Ok(Plan::new(&self.config, schema)))?;
        if batch.changes().is_empty() || plans.iter().all(Option::is_none) {
            return Ok(batch);
        }
        let source = self.store.source(&batch.source.identity)?;
        self.store.begin();
        let mut kept = Vec::with_capacity(batch.changes().len());
        let mut discovered = 0;
        for change in batch.changes() {
            let Some(plan) = &plans[usize::from(change.schema)] else {
                kept.push(*change);
                continue;
            };
            let verdict = self.judge(plan, &batch, change, source)?;
            discovered += u64::from(verdict.discovered);
            kept.extend(self.act(plan, &batch, change, verdict)?);
        }
        self.store.commit()?;
        if let Some(last) = batch.changes().last() {
            self.store
                .advance(source, batch.transaction(last).commit_micros);
        }
        self.duplicates += discovered;
        Ok(batch.with_changes(kept))
    }

    fn persist(&mut self) -> Result<()> {
        self.store.sync()
    }

    fn duplicates(&self) -> u64 {
        self.duplicates
    }
}

const PASS: Verdict = Verdict {
    was_held: false,
    held: false,
    discovered: false,
};

impl Deduping {
    fn judge(
        &mut self,
        plan: &Plan,
        batch: &Batch,
        change: &Change,
        source: u16,
    ) -> Result<Verdict> {
        let at = moment(batch, change, source);
        let memory = &mut self.store;
        match (change.op, batch.new_row(change), batch.old_row(change)) {
            (Op::Insert | Op::Read, Some(new), _) => {
                let named = plan.row(new);
                let arrival = Arrival {
                    at,
                    row: named.unwrap_or_else(|| plan.unnamed(new, &at, change.op)),
                    recognisable: named.is_some(),
                    key: plan.key(new),
                    copied: change.op == Op::Read,
                };
                judge::arrive(memory, &self.window, &arrival)
            }
            (Op::Update, Some(new), old) => {
                // An old image that lacks the primary key was sent for another reason: the row kept its name.
                let from = old.and_then(|old| plan.row(old));
                match plan.row(new).or(from) {
                    None => Ok(PASS),
                    Some(row) => {
                        let alteration = Alteration {
                            at,
                            from: from.unwrap_or(row),
                            row,
                            key: plan.key_after(new, old, change.old_image),
                        };
                        judge::alter(memory, &self.window, &alteration)
                    }
                }
            }
            (Op::Delete, _, Some(old)) => match plan.row(old) {
                Some(row) => judge::depart(memory, at, row),
                None => Ok(PASS),
            },
            _ => Ok(PASS),
        }
    }

    /// What becomes of a change.
    fn act(
        &self,
        plan: &Plan,
        batch: &Batch,
        change: &Change,
        verdict: Verdict,
    ) -> Result<Option<Change>> {
        if !verdict.held && !verdict.was_held {
            return Ok(Some(*change));
        }
        if self.config.action == Action::Tag {
            let mut tagged = *change;
            tagged.duplicate = verdict.held;
            return Ok(Some(tagged));
        }
        if verdict.held && self.config.action == Action::DeadLetter {
            let row = batch.new_row(change).or_else(|| batch.old_row(change));
            self.dead_letters
                .keep(&self.place, REASON, batch, change, row)?;
        }
        Ok(
            match (verdict.was_held, verdict.held, batch.new_row(change)) {
                (true, false, Some(row)) => Some(enters(&plan.schema, row, change)),
                (true, ..) => None,
                (false, ..) => Some(change.into_delete()),
            },
        )
    }
}

/// When a change was. Rows of an initial copy come in any order, and in another one when it is repeated.
fn moment(batch: &Batch, change: &Change, source: u16) -> Moment {
    let transaction = batch.transaction(change);
    let ordinal = if change.op == Op::Read {
        0
    } else {
        change.ordinal
    };
    Moment {
        source,
        position: Position {
            commit: transaction.commit,
            ordinal,
        },
        micros: transaction.commit_micros,
    }
}

impl Plan {
    /// `None` when the table lacks the key.
    fn new(config: &DedupeConfig, schema: &Arc<TableSchema>) -> Option<Arc<Self>> {
        if is_message(schema) {
            return None;
        }
        let columns = config.key.iter().map(|name| schema.column(name));
        let columns = columns.collect::<Option<Vec<_>>>()?;
        let in_identity = |index: &usize| schema.key.contains(&(*index as u16));
        let mut key_space = Hasher::root("key");
        for name in &config.key {
            key_space.part(name.as_bytes());
        }
        let mut row_space = Hasher::root("row");
        let place = [&schema.source, &schema.id.schema, &schema.id.name];
        for part in place {
            row_space.part(part.as_bytes());
            if config.scope == Scope::Table {
                key_space.part(part.as_bytes());
            }
        }
        for part in [&schema.origin.schema, &schema.origin.name] {
            row_space.part(part.as_bytes());
        }
        Some(Arc::new(Plan {
            schema: Arc::clone(schema),
            key_in_identity: schema.identity != ReplicaIdentity::Full
                && columns.iter().all(|(index, _)| in_identity(index)),
            key: columns
                .into_iter()
                .map(|(_, column)| column.clone())
                .collect(),
            key_space: key_space.finish(),
            row_space: row_space.finish(),
        }))
    }

    /// The idempotency key of a row; `None` when a part of it is not there.
    fn key(&self, row: Row<'_>) -> Option<Digest> {
        let mut hasher = Hasher::new(&self.key_space);
        let mut columns = self.key.iter();
        columns
            .all(|column| hasher.value(&value(&column.ty, row.get(column))))
            .then(|| hasher.finish())
    }

    /// The name of a row by its primary key; `None` when the table has none or the image lacks a part of it.
    fn row(&self, row: Row<'_>) -> Option<Digest> {
        if self.schema.key.is_empty() {
            return None;
        }
        let mut hasher = Hasher::new(&self.row_space);
        let mut columns = self.schema.key_columns();
        columns
            .all(|column| hasher.value(&value(&column.ty, row.get(column))))
            .then(|| hasher.finish())
    }

    /// A name for a row that has no primary key: its place in the log, or for a copied row what it holds.
    fn unnamed(&self, row: Row<'_>, at: &Moment, op: Op) -> Digest {
        let mut hasher = Hasher::new(&self.row_space);
        if op == Op::Read {
            for column in &self.schema.columns {
                let there = hasher.value(&value(&column.ty, row.get(column)));
                hasher.part(&[u8::from(there)]);
            }
        } else {
            hasher.part(&at.source.to_be_bytes());
            hasher.part(&at.position.commit.0.to_be_bytes());
            hasher.part(&at.position.ordinal.to_be_bytes());
        }
        hasher.finish()
    }

    /// What an UPDATE did to the key of a row.
    fn key_after(&self, new: Row<'_>, old: Option<Row<'_>>, image: OldImage) -> KeyAfter {
        let is = |wanted: &Value<'_>| {
            let mut columns = self.key.iter();
            columns.any(|column| value(&column.ty, new.get(column)) == *wanted)
        };
        if is(&Value::Null) {
            return KeyAfter::None;
        }
        if is(&Value::Unchanged) {
            return KeyAfter::Kept(None);
        }
        let Some(key) = self.key(new) else {
            return KeyAfter::None;
        };
        match (image, old) {
            (OldImage::Full, Some(old)) => self.compare(key, old),
            (OldImage::Key, Some(old)) if self.key_in_identity => self.compare(key, old),
            (OldImage::None, _) if self.key_in_identity => KeyAfter::Kept(Some(key)),
            _ => KeyAfter::Perhaps(key),
        }
    }

    fn compare(&self, key: Digest, old: Row<'_>) -> KeyAfter {
        if self.key(old) == Some(key) {
            KeyAfter::Kept(Some(key))
        } else {
            KeyAfter::Set(key)
        }
    }
}

/// Tables listed in a message.
const LISTED: usize = 20;

impl Seen {
    fn note(&mut self, schema: &TableSchema, with_key: bool) {
        if self.checked || is_message(schema) {
            return;
        }
        self.with_key |= with_key;
        if !with_key && self.without_key.len() < LISTED {
            let columns = schema.columns.iter().map(|column| Arc::clone(&column.name));
            self.without_key.insert(
                format!("{}.{}", schema.source, schema.id),
                columns.collect(),
            );
        }
    }

    /// When every table of every source has been bound: a key that none of them has is a mistake.
    fn check(&mut self, key: &[String]) -> Result<()> {
        if self.checked {
            return Ok(());
        }
        if !self.with_key && !self.without_key.is_empty() {
            return Err(self.missing(key));
        }
        self.checked = true;
        Ok(())
    }

    fn missing(&self, key: &[String]) -> Error {
        let tables: Vec<String> = self
            .without_key
            .iter()
            .map(|(table, columns)| format!("{table} ({})", columns.join(", ")))
            .collect();
        let error = Error::new(
            ErrorKind::Config,
            format!(
                "`key`: no table that reaches the transform has the columns {}; there are {}",
                key.join(", "),
                tables.join("; ")
            ),
        );
        let columns = || self.without_key.values().flatten().map(|name| &**name);
        let absent = |name: &&String| columns().all(|column| column != name.as_str());
        let nearest = key
            .iter()
            .find(absent)
            .and_then(|name| nearest(name, columns()));
        match nearest {
            Some(nearest) => error.remedy(format!("write `{nearest}`, if that is meant")),
            None => error.remedy("name the columns of the idempotency key, or take other `inputs`"),
        }
    }
}
