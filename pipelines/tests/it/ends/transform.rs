//! A transform that remembers what it saw.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};

use async_trait::async_trait;
use lockstep_core::batch::Batch;
use lockstep_core::position::Position;
use lockstep_core::schema::{TableId, TableSchema};
use lockstep_core::transform::{DeadLetters, Transform, TransformContext, TransformFactory};
use lockstep_core::{ErrorKind, Result};

use super::{Config, Ends, error, find};

static WITNESSES: LazyLock<Ends<Witness>> = LazyLock::new(Mutex::default);

/// What a [`WitnessTransform`] saw, and what it is told to do.
#[derive(Default)]
pub struct Witness {
    state: Mutex<WitnessState>,
}

#[derive(Default)]
pub struct WitnessState {
    pub seen: Vec<(String, Position)>,
    pub bound: Vec<String>,
    /// Seen when persisted.
    pub persisted: usize,
    pub persists: usize,
    /// Rows of this table do not come out.
    pub drop_table: Option<&'static str>,
    /// Rows of this table are put aside.
    pub aside: Option<&'static str>,
    /// Tables become this one.
    pub rename: Option<&'static str>,
    pub fail: Option<ErrorKind>,
    pub fail_ready: Option<ErrorKind>,
    pub fail_persist: bool,
    pub panic: bool,
}

impl Witness {
    pub fn new(script: &str) -> Arc<Witness> {
        let witness = Arc::new(Witness::default());
        WITNESSES
            .lock()
            .unwrap()
            .insert(script.to_owned(), Arc::clone(&witness));
        witness
    }

    pub fn state(&self) -> MutexGuard<'_, WitnessState> {
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Remembers what it saw.
pub struct WitnessTransform {
    witness: Arc<Witness>,
    letters: Arc<dyn DeadLetters>,
    renamed: HashMap<usize, (Arc<TableSchema>, Arc<TableSchema>)>,
}

impl TransformFactory for WitnessTransform {
    const KIND: &'static str = "witness";
    type Config = Config;

    fn validate(_: &Config) -> Result<()> {
        Ok(())
    }

    fn open(config: &Config, context: TransformContext) -> Result<Box<dyn Transform>> {
        let witness = find(&WITNESSES, &config.script);
        Ok(Box::new(WitnessTransform {
            witness,
            letters: context.dead_letters,
            renamed: HashMap::new(),
        }))
    }
}

#[async_trait]
impl Transform for WitnessTransform {
    fn bind(&mut self, schema: &Arc<TableSchema>) -> Result<()> {
        let mut state = self.witness.state();
        state.bound.push(schema.id.to_string());
        if let Some(name) = state.rename {
            let mut renamed = TableSchema::clone(schema);
            renamed.id = TableId::new("public", name);
            let address = Arc::as_ptr(schema) as usize;
            self.renamed
                .insert(address, (Arc::clone(schema), Arc::new(renamed)));
        }
        Ok(())
    }

    async fn ready(&mut self) -> Result<()> {
        let fail = self.witness.state().fail_ready;
        fail.map_or(Ok(()), |kind| Err(error(kind)))
    }

    async fn apply(&mut self, batch: Arc<Batch>) -> Result<Arc<Batch>> {
        let mut state = self.witness.state();
        if let Some(kind) = state.fail {
            return Err(error(kind));
        }
        assert!(!state.panic, "a scripted panic");
        for change in batch.changes() {
            let source = batch.source.name.to_string();
            state.seen.push((source, batch.position(change)));
            if state.aside == Some(&*batch.schema(change).origin.name) {
                let row = batch.new_row(change);
                self.letters
                    .keep("transforms.w", "test", &batch, change, row)?;
            }
        }
        let batch = match state.drop_table {
            Some(table) => {
                let stays = |change: &&lockstep_core::batch::Change| {
                    &*batch.schema(change).origin.name != table
                };
                Arc::new(
                    batch.with_changes(batch.changes().iter().filter(stays).copied().collect()),
                )
            }
            None => batch,
        };
        if state.rename.is_none() {
            return Ok(batch);
        }
        let renamed = |schema: &Arc<TableSchema>| {
            Arc::clone(&self.renamed[&(Arc::as_ptr(schema) as usize)].1)
        };
        Ok(Arc::new(batch.with_schemas(
            batch.schemas().iter().map(renamed).collect(),
        )))
    }

    fn persist(&mut self) -> Result<()> {
        let mut state = self.witness.state();
        if state.fail_persist {
            return Err(error(ErrorKind::Storage));
        }
        state.persisted = state.seen.len();
        state.persists += 1;
        Ok(())
    }

    fn output(&self, schema: &Arc<TableSchema>) -> Option<Arc<TableSchema>> {
        let dropped = self.witness.state().drop_table == Some(&*schema.origin.name);
        let renamed = self.renamed.get(&(Arc::as_ptr(schema) as usize));
        (!dropped)
            .then(|| renamed.map_or_else(|| Arc::clone(schema), |(_, renamed)| Arc::clone(renamed)))
    }

    fn duplicates(&self) -> u64 {
        self.witness.state().seen.len() as u64
    }
}
