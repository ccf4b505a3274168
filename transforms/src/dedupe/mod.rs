//! `dedupe`: suppresses rows that repeat an idempotency key.
//!
//! What repeats, and for how long, is in [`judge`]; why a replay is judged as the first time is in [`history`]. What is
//! remembered lies on this machine ([`embedded`]), or in a Redis that replicas share ([`shared`]).

mod config;
mod digest;
mod embedded;
mod expiry;
mod history;
mod judge;
mod notes;
mod plan;
mod reopened;
mod seen;
mod shared;
mod sieve;

use std::sync::Arc;

use async_trait::async_trait;
use lockstep_core::batch::{Batch, Change};
use lockstep_core::check::Finding;
use lockstep_core::position::SourceInfo;
use lockstep_core::schema::TableSchema;
use lockstep_core::transform::{
    DeadLetters, StateSize, Transform, TransformContext, TransformFactory,
};
use lockstep_core::{Error, ErrorKind, Result};

pub use self::config::{
    Action, DEFAULT_WINDOW, DedupeConfig, OnLost, REASON, RedisStore, Scope, StoreConfig,
};
use self::judge::{Case, Verdict, Window};
use self::plan::Plan;
use self::reopened::Reopened;
use self::seen::Seen;
use self::shared::Shared;
use crate::image::enters;
use crate::plans::Plans;

/// Builds `dedupe`.
pub struct Dedupe;

#[async_trait]
impl TransformFactory for Dedupe {
    const KIND: &'static str = "dedupe";
    type Config = DedupeConfig;

    fn validate(config: &DedupeConfig) -> Result<()> {
        config.validate()
    }

    fn remembers_places() -> bool {
        true
    }

    fn keeps_here(config: &DedupeConfig) -> bool {
        matches!(config.store, StoreConfig::Embedded {})
    }

    fn open(config: &DedupeConfig, context: TransformContext) -> Result<Box<dyn Transform>> {
        config.validate()?;
        let window = Window {
            micros: i64::try_from(config.window.0.as_micros()).unwrap_or(i64::MAX),
            keys: config.max_keys,
        };
        let store = match &config.store {
            StoreConfig::Embedded {} => {
                Store::Embedded(Box::new(Reopened::open(&context.state, window)?))
            }
            StoreConfig::Redis(store) => {
                Store::Shared(Box::new(Shared::open(store, &context, window)?))
            }
        };
        Ok(Box::new(Deduping {
            store,
            config: config.clone(),
            place: format!("transforms.{}", context.name),
            dead_letters: context.dead_letters,
            plans: Plans::new(),
            seen: Seen::default(),
            cases: Vec::new(),
            verdicts: Vec::new(),
            duplicates: 0,
        }))
    }

    async fn preflight(config: &DedupeConfig, pipeline: &str, name: &str) -> Vec<Finding> {
        match &config.store {
            StoreConfig::Embedded {} => Vec::new(),
            StoreConfig::Redis(store) => shared::look(store, pipeline, name).await,
        }
    }
}

struct Deduping {
    config: DedupeConfig,
    place: String,
    dead_letters: Arc<dyn DeadLetters>,
    store: Store,
    plans: Plans<Option<Arc<Plan>>>,
    seen: Seen,
    /// One per change of the batch at hand; kept for their room.
    cases: Vec<Case>,
    verdicts: Vec<Verdict>,
    duplicates: u64,
}

/// Where keys are remembered.
enum Store {
    Embedded(Box<Reopened>),
    Shared(Box<Shared>),
}

impl Store {
    /// The number of the log that a batch is from.
    async fn log(&mut self, source: &SourceInfo) -> Result<u16> {
        match self {
            Store::Embedded(store) => store.with(|store| store.log(source)),
            Store::Shared(store) => store.log(source).await,
        }
    }

    /// A verdict for each case; what it rests on is written down when this returns.
    async fn judge(&mut self, cases: &[Case], verdicts: &mut Vec<Verdict>) -> Result<()> {
        match self {
            Store::Embedded(store) => store.with(|store| store.judge(cases, verdicts)),
            Store::Shared(store) => store.judge(cases, verdicts).await,
        }
    }
}

#[async_trait]
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

    async fn ready(&mut self) -> Result<()> {
        match &mut self.store {
            Store::Embedded(_) => Ok(()),
            Store::Shared(store) => store.ready().await,
        }
    }

    async fn apply(&mut self, batch: Arc<Batch>) -> Result<Arc<Batch>> {
        let plans = self
            .plans
            .of(&batch, |schema| Ok(Plan::new(&self.config, schema)))?;
        if batch.changes().is_empty() || plans.iter().all(Option::is_none) {
            return Ok(batch);
        }
        let log = self.store.log(&batch.source).await?;
        let plan = |change: &Change| plans[usize::from(change.schema)].as_deref();
        self.cases.clear();
        self.cases.extend(batch.changes().iter().map(|change| {
            plan(change).map_or(Case::Passes, |plan| plan.case(&batch, change, log))
        }));
        self.verdicts.clear();
        self.store.judge(&self.cases, &mut self.verdicts).await?;
        if self.verdicts.len() != batch.changes().len() {
            let message = "the judge has left changes out";
            return Err(Error::new(ErrorKind::Protocol, message));
        }
        let mut kept = Vec::with_capacity(batch.changes().len());
        for (change, verdict) in batch.changes().iter().zip(&self.verdicts) {
            match plan(change) {
                None => kept.push(*change),
                Some(plan) => kept.extend(self.act(plan, &batch, change, *verdict)?),
            }
        }
        let discovered = self.verdicts.iter().filter(|verdict| verdict.discovered);
        self.duplicates += discovered.count() as u64;
        Ok(Arc::new(batch.with_changes(kept)))
    }

    fn persist(&mut self) -> Result<()> {
        match &mut self.store {
            Store::Embedded(store) => store.with(|store| store.sync()),
            Store::Shared(store) => store.note(),
        }
    }

    fn duplicates(&self) -> u64 {
        self.duplicates
    }

    fn size(&self) -> Option<StateSize> {
        match &self.store {
            Store::Embedded(store) => store.size(),
            Store::Shared(store) => store.size(),
        }
    }
}

impl Deduping {
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
        let is_kept = batch.check.is_some();
        if verdict.held && !is_kept && self.config.action == Action::DeadLetter {
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
