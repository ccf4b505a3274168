//! `stitch`: the branches of a transaction of several databases go on together.
//!
//! The work is done where batches leave their sources, before any transform sees them, so it stands directly behind whole
//! sources, and everything that reads them reads it. Here are its settings; batches pass as they are.

use std::sync::Arc;

use async_trait::async_trait;
use lockstep_core::batch::Batch;
use lockstep_core::config::{ByteSize, Duration};
use lockstep_core::schema::TableSchema;
use lockstep_core::transform::{Stitching, Transform, TransformContext, TransformFactory};
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_transactions::gid::Pattern;
use schemars::JsonSchema;
use serde::Deserialize;

/// Default of [`StitchConfig::memory`]: 32 MB.
pub const DEFAULT_MEMORY: ByteSize = ByteSize(32_000_000);

/// When a transaction goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// When all its branches have committed.
    #[default]
    Complete,
    /// When one of them has committed, and all are known: the others have been prepared, and will commit.
    Decision,
}

/// `type = "stitch"`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StitchConfig {
    /// Which part of the gids of the own coordinator is shared by the branches of a transaction: a regular expression with a
    /// group `global` and, where branches have one, a group `branch`. Gids that it does not match are read as those of the known
    /// managers. Default: only these.
    pub gids: Option<String>,
    /// Those of its sources in whose databases nothing is ever prepared: a commit there decides, behind the others' PREPARE, and says by a
    /// logical message what it is a branch of. All others need `two_phase = true`. Default: none.
    #[serde(default)]
    pub one_phase: Vec<String>,
    /// When a transaction goes on: `complete`, when all its branches have committed, or `decision`, when one has and the others are prepared.
    /// Default: `complete`.
    #[serde(default)]
    pub mode: Mode,
    /// In the mode `complete`, how long a transaction that has committed in one database waits for another one before it goes on with what is
    /// prepared there. Default: until it has committed there, too.
    pub hold_max: Option<Duration>,
    /// How long a transaction waits, for a database that is down or far behind, before what has no row in common with those that wait passes by
    /// them. Rows keep their order, and transactions of several databases go on as wholes; but what one has seen in other rows may come
    /// after it. Default: nothing passes.
    pub lag_max: Option<Duration>,
    /// Bytes of waiting transactions that are kept in memory, a quarter of the pipeline's `memory` at most; more go to a file in the state
    /// directory. Default: 32 MB.
    #[serde(default = "default_memory")]
    pub memory: ByteSize,
}

fn default_memory() -> ByteSize {
    DEFAULT_MEMORY
}

/// Builds `stitch`.
pub struct Stitch;

impl TransformFactory for Stitch {
    const KIND: &'static str = "stitch";
    type Config = StitchConfig;

    fn validate(config: &StitchConfig) -> Result<()> {
        if let Some(pattern) = &config.gids {
            Pattern::new(pattern)?;
        }
        if config.mode == Mode::Decision && config.hold_max.is_some() {
            let cause = "in the mode `decision` nothing is held that `hold_max` could bound";
            return Err(
                Error::new(ErrorKind::Config, format!("`hold_max`: {cause}"))
                    .remedy("leave one of the two out"),
            );
        }
        if config.memory.0 == 0 {
            return Err(Error::new(ErrorKind::Config, "`memory` is nothing")
                .remedy("leave it out, or write a size such as 32MB"));
        }
        Ok(())
    }

    fn open(_: &StitchConfig, _: TransformContext) -> Result<Box<dyn Transform>> {
        Ok(Box::new(Passes))
    }

    fn stitches(config: &StitchConfig) -> Option<Stitching> {
        Some(Stitching {
            gids: config.gids.clone(),
            one_phase: config.one_phase.clone(),
            memory: config.memory.bytes(),
            hold_max: match config.mode {
                Mode::Complete => config.hold_max.map(|hold| hold.0),
                Mode::Decision => Some(std::time::Duration::ZERO),
            },
            lag_max: config.lag_max.map(|lag| lag.0),
        })
    }
}

struct Passes;

#[async_trait]
impl Transform for Passes {
    fn bind(&mut self, _: &Arc<TableSchema>) -> Result<()> {
        Ok(())
    }

    async fn apply(&mut self, batch: Arc<Batch>) -> Result<Arc<Batch>> {
        Ok(batch)
    }
}
