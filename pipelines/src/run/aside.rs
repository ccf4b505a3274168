//! What a lane does about changes that lie aside, or should: it leaves out what is kept already, holds later changes of a
//! key back behind earlier ones where the sink's policy says so, and notes what passes them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use lockstep_core::batch::{Batch, Change, Op, Phase};
use lockstep_core::error::At;
use lockstep_core::position::{Position, SourceIdentity};
use lockstep_core::refusal::{Refusal, reason};
use lockstep_core::{Error, ErrorKind, Result};

use super::checks::LAST;
use crate::file::{Later, OnError, SinkPolicy};
use crate::letters::{Desk, Head, Letter, Store, keys};

/// See the module's page.
pub(super) struct Aside {
    desk: Arc<Desk>,
    /// `sinks.cache`.
    place: String,
    policy: SinkPolicy,
    /// See [`lockstep_core::sink::SinkFactory::keeps_rows`].
    keeps_rows: bool,
    /// By source that has sent something: how far changes may come that lie aside since an earlier run.
    horizons: HashMap<SourceIdentity, Option<Position>>,
}

impl Aside {
    pub fn new(desk: Arc<Desk>, sink: &str, policy: SinkPolicy, keeps_rows: bool) -> Self {
        Aside {
            desk,
            place: format!("sinks.{sink}"),
            policy,
            keeps_rows,
            horizons: HashMap::new(),
        }
    }

    pub fn desk(&self) -> &Arc<Desk> {
        &self.desk
    }

    pub fn place(&self) -> &str {
        &self.place
    }

    pub fn waits(&self) -> bool {
        self.policy.later == Later::Wait
    }

    pub fn keeps_rows(&self) -> bool {
        self.keeps_rows
    }

    /// Whether the changes that an error names are to be put aside.
    pub fn takes(&self, error: &Error) -> bool {
        error.kind() == ErrorKind::Refused
            && !error.refusals().is_empty()
            && self.policy.on_error == OnError::DeadLetter
    }

    /// A batch has come. The first of a source's stream shows where the source began: nothing before it comes again.
    pub fn arrived(&mut self, batch: &Batch) -> Result<()> {
        let source = &batch.source.identity;
        let (Phase::Stream, Some(first)) = (batch.phase, batch.changes().first()) else {
            return Ok(());
        };
        let Some(store) = self.desk.store() else {
            return Ok(());
        };
        if self.horizons.contains_key(source) {
            return Ok(());
        }
        // What has gone on ahead is not where it began.
        let upto = batch.standing.as_ref().and_then(|standing| standing.upto);
        let first = batch.position(first);
        let begins = upto.map_or(first, |upto| upto.min(first));
        store.passed(&self.place, source, begins)?;
        let horizon = store.horizon(&self.place, source)?;
        self.horizons.insert(source.clone(), horizon);
        Ok(())
    }

    /// What of a batch the sink is to get; `None` when that is nothing. What waits is safe when this returns.
    ///
    /// # Errors
    /// When the store cannot be read, or takes no more.
    pub async fn sift(&self, batch: Arc<Batch>) -> Result<Option<Arc<Batch>>> {
        let Some(store) = self.desk.store() else {
            return Ok(Some(batch));
        };
        let batch = self.without_known(store, batch)?;
        if batch.changes().is_empty() {
            return Ok(None);
        }
        if !(self.waits() || self.keeps_rows) || !store.has(&self.place)? {
            return Ok(Some(batch));
        }
        if !self.waits() {
            self.note_passing(store, &batch)?;
            return Ok(Some(batch));
        }
        let (pass, behind) = self.split(store, &batch)?;
        let pass = match behind.is_empty() {
            true => batch,
            false => Arc::new(batch.with_changes(pass)),
        };
        self.keep(behind).await?;
        if self.keeps_rows {
            self.note_passing(store, &pass)?;
        }
        Ok((!pass.changes().is_empty()).then_some(pass))
    }

    /// Whether a letter of a row lies aside; false where letters go to a queue.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn has(&self, batch: &Batch, change: &Change) -> Result<bool> {
        let Some(store) = self.desk.store() else {
            return Ok(false);
        };
        let (keys, table) = (keys(batch, change), batch.schema(change).id.to_string());
        store.blocks(&self.place, &batch.source.identity, &table, &keys, LAST)
    }

    /// Keeps letters, and returns when they are safe.
    ///
    /// # Errors
    /// See [`Desk::put`].
    pub async fn keep(&self, letters: Vec<Letter>) -> Result<()> {
        if letters.is_empty() {
            return Ok(());
        }
        self.desk.put(letters).await.at("dead letters")
    }

    /// The letter of a refused change.
    pub fn letter(&self, batch: &Batch, change: &Change, refusal: &Refusal) -> Letter {
        let message = refusal.message.clone();
        Letter::of(&self.place, refusal.reason, message, batch, change)
    }

    fn without_known(&self, store: &Store, batch: Arc<Batch>) -> Result<Arc<Batch>> {
        let horizon = self.horizons.get(&batch.source.identity).copied().flatten();
        let first = batch.changes().first().map(|first| batch.position(first));
        if batch.phase != Phase::Stream || first > horizon {
            return Ok(batch);
        }
        let mut rest = Vec::with_capacity(batch.changes().len());
        for change in batch.changes() {
            let beyond = Some(batch.position(change)) > horizon;
            if beyond || !store.knows(&self.place, &batch, change)? {
                rest.push(*change);
            }
        }
        if rest.len() == batch.changes().len() {
            return Ok(batch);
        }
        Ok(Arc::new(batch.with_changes(rest)))
    }

    /// What goes on, and the letters of what waits.
    fn split(&self, store: &Store, batch: &Batch) -> Result<(Vec<Change>, Vec<Letter>)> {
        let (mut pass, mut behind) = (Vec::new(), Vec::new());
        // A change that waits holds back what follows it under each of its keys.
        let mut held: HashSet<(String, String)> = HashSet::new();
        for change in batch.changes() {
            let (keys, position) = (keys(batch, change), batch.position(change));
            let table = batch.schema(change).id.to_string();
            let waits = keys
                .iter()
                .any(|key| held.contains(&(table.clone(), key.clone())))
                || store.blocks(&self.place, &batch.source.identity, &table, &keys, position)?;
            // A TRUNCATE has no key and waits for nothing: what lies aside is older.
            if !waits {
                pass.push(*change);
                continue;
            }
            held.extend(keys.into_iter().map(|key| (table.clone(), key)));
            let message = "an earlier change of its key lies aside".to_owned();
            let letter = Letter::of(&self.place, reason::BEHIND, message, batch, change);
            behind.push(letter);
        }
        Ok((pass, behind))
    }

    /// A row that is deleted, moved or truncated leaves nothing in the sink to compare versions with, at least not for
    /// ever; nor does every sink tell the changes of one transaction apart. So it is noted on the letters they pass.
    fn note_passing(&self, store: &Store, batch: &Batch) -> Result<()> {
        let mut passing = Vec::new();
        for change in batch.changes() {
            let (position, table) = (batch.position(change), batch.schema(change).id.to_string());
            let keys = keys(batch, change);
            let all = change.op == Op::Truncate;
            let source = &batch.source.identity;
            if all || store.blocks(&self.place, source, &table, &keys, position)? {
                passing.push(Passing {
                    op: change.op,
                    all,
                    ends: all || change.op == Op::Delete,
                    left: (change.op == Op::Update && keys.len() > 1).then(|| keys[0].clone()),
                    keys,
                    table,
                    position,
                });
            }
        }
        if passing.is_empty() {
            return Ok(());
        }
        let source = &batch.source.identity;
        store.overtake(&self.place, |head| {
            let passing = passing
                .iter()
                .find(|passing| head.identity == *source && passing.overtakes(head))?;
            Some(format!("{} at {}", passing.op.as_str(), passing.position))
        })?;
        self.desk.noted();
        Ok(())
    }
}

/// A change that passes letters.
struct Passing {
    op: Op,
    table: String,
    keys: Vec<String>,
    position: Position,
    /// It is about every row of the table.
    all: bool,
    /// The row is gone with it.
    ends: bool,
    /// The key that the row has left.
    left: Option<String>,
}

impl Passing {
    fn overtakes(&self, head: &Head) -> bool {
        if head.table != self.table || head.position >= self.position {
            return false;
        }
        let of = |key: &String| head.keys.contains(key);
        let same_commit = !head.copied && head.position.commit == self.position.commit;
        self.all
            || (self.ends || same_commit) && self.keys.iter().any(of)
            || self.left.as_ref().is_some_and(of)
    }
}
