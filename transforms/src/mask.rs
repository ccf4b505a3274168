//! `mask`: hashes and redacts columns.
//!
//! A hash is HMAC-SHA-256 under a secret salt over the value's text form, so equal values have equal hashes in every
//! table and joins go on working, and nobody without the salt can try values out. NULL stays NULL: whether a value is
//! there is not hidden.

use std::sync::Arc;

use async_trait::async_trait;
use hmac::{Hmac, KeyInit, Mac};
use lockstep_core::batch::{Batch, CellRef, Edit, Rewrite};
use lockstep_core::config::Secret;
use lockstep_core::schema::{Column, ColumnType, TableSchema, TypeKind};
use lockstep_core::transform::{Comparable, Transform, TransformContext, TransformFactory};
use lockstep_core::{Error, ErrorKind, Result};
use schemars::JsonSchema;
use serde::Deserialize;
use sha2::Sha256;

use crate::plans::Plans;
use crate::tables::{Applies, Tables, column};
use crate::text::{Value, oid, push_hex, value};

/// Hexadecimal digits of a hash: 128 bits.
pub const DEFAULT_HASH_LENGTH: u8 = 32;
/// The shortest salt that is accepted, in bytes.
pub const MIN_SALT: usize = 16;
/// What a redacted text becomes.
pub const REDACTED: &str = "***";

/// Below this a hash of a key could make two rows one.
const MIN_KEY_HASH_LENGTH: u8 = 32;

/// `type = "mask"`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MaskConfig {
    /// The tables it applies to, `schema.table` or `source.schema.table` with `*`; other tables pass as they are.
    /// Default: every table. Each of them must have every column that is listed.
    #[serde(default)]
    pub tables: Tables,
    /// Columns whose values are replaced by a hash: the same value has the same hash everywhere, so that joins go on
    /// working. The columns become text.
    #[serde(default)]
    pub hash: Vec<String>,
    /// Columns whose values are hidden: a text becomes `***`, a value of any other type NULL. Not for key columns.
    #[serde(default)]
    pub redact: Vec<String>,
    /// The secret that hashes are made with, at least 16 bytes. Whoever has it can try values out; whoever changes it
    /// changes every hash.
    pub salt: Option<Secret>,
    /// Hexadecimal digits of a hash, 8 to 64; at least 32 for key columns.
    #[serde(default = "default_hash_length")]
    pub hash_length: u8,
}

fn default_hash_length() -> u8 {
    DEFAULT_HASH_LENGTH
}

/// Builds `mask`.
pub struct Mask;

impl TransformFactory for Mask {
    const KIND: &'static str = "mask";
    type Config = MaskConfig;

    fn validate(config: &MaskConfig) -> Result<()> {
        config.tables.validate()?;
        let wrong = |message: String, remedy: &str| {
            Err(Error::new(ErrorKind::Config, message).remedy(remedy))
        };
        if config.hash.is_empty() && config.redact.is_empty() {
            return wrong(
                "there is neither `hash` nor `redact`".to_owned(),
                "list the columns to hash or to redact",
            );
        }
        if let Some(twice) = config.hash.iter().find(|name| config.redact.contains(name)) {
            return wrong(
                format!("the column `{twice}` is in `hash` and in `redact`"),
                "choose one",
            );
        }
        if !(8..=64).contains(&config.hash_length) {
            return wrong(
                format!("`hash_length` is {}", config.hash_length),
                "write a number from 8 to 64",
            );
        }
        let salt = config.salt.as_ref().map_or(0, |salt| salt.reveal().len());
        if !config.hash.is_empty() && salt < MIN_SALT {
            return wrong(
                format!(
                    "`salt` has {salt} bytes; hashes without a long secret can be undone by trying values out"
                ),
                "set `salt` to a secret of 16 bytes or more, such as the output of `openssl rand -hex 32`, through `${NAME}` or `${file:/path}`",
            );
        }
        Ok(())
    }

    fn open(config: &MaskConfig, _: TransformContext) -> Result<Box<dyn Transform>> {
        Self::validate(config)?;
        let salt = config.salt.as_ref().map_or("", Secret::reveal);
        let hmac = Hmac::<Sha256>::new_from_slice(salt.as_bytes())
            .map_err(|error| Error::new(ErrorKind::Config, "`salt` is not usable").source(error))?;
        Ok(Box::new(Masking {
            shared: Shared {
                applies: Applies::new(&config.tables),
                config: config.clone(),
            },
            hmac,
            plans: Plans::new(),
        }))
    }
}

struct Masking {
    shared: Shared,
    hmac: Hmac<Sha256>,
    plans: Plans<Arc<Plan>>,
}

/// What plans are made from.
struct Shared {
    config: MaskConfig,
    applies: Applies,
}

struct Plan {
    output: Arc<TableSchema>,
    cells: Vec<Masked>,
}

/// One column to mask.
struct Masked {
    slot: u16,
    column: Column,
    how: How,
}

#[derive(Clone, Copy)]
enum How {
    Hash,
    Stars,
    Null,
}

#[async_trait]
impl Transform for Masking {
    fn bind(&mut self, schema: &Arc<TableSchema>) -> Result<()> {
        self.shared.applies.note(schema);
        self.plans
            .bind(schema, |schema| self.shared.plan(schema))
            .map(drop)
    }

    fn complete(&mut self) -> Result<()> {
        self.shared.applies.check()
    }

    async fn apply(&mut self, batch: Arc<Batch>) -> Result<Arc<Batch>> {
        let plans = self.plans.of(&batch, |schema| self.shared.plan(schema))?;
        if plans.iter().all(|plan| plan.cells.is_empty()) {
            return Ok(batch);
        }
        let mut rewrite = batch.rewrite();
        for (index, change) in batch.changes().iter().enumerate() {
            for masked in &plans[usize::from(change.schema)].cells {
                self.mask(&mut rewrite, index, masked)?;
            }
        }
        let outputs = plans.iter().map(|plan| Arc::clone(&plan.output)).collect();
        Ok(Arc::new(rewrite.finish().with_schemas(outputs)))
    }

    fn comparable(&self, schema: &Arc<TableSchema>) -> Comparable {
        let keys: Vec<u16> = schema.key_columns().map(|column| column.slot).collect();
        let is_key = |masked: &Masked| keys.contains(&masked.slot);
        match self.shared.plan(schema) {
            // The keys that a sink has lead back to no row.
            Ok(plan) if plan.cells.iter().any(is_key) => Comparable::Rows,
            _ => Comparable::Fully,
        }
    }

    fn output(&self, schema: &Arc<TableSchema>) -> Option<Arc<TableSchema>> {
        let bound = self.plans.get(schema).map(|plan| Arc::clone(&plan.output));
        bound.or_else(|| {
            self.shared
                .plan(schema)
                .ok()
                .map(|plan| Arc::clone(&plan.output))
        })
    }
}

impl Masking {
    fn mask(&self, rewrite: &mut Rewrite, change: usize, masked: &Masked) -> Result<()> {
        let mut opaque = false;
        rewrite.edit_cell(change, masked.slot, |cell, out| match (masked.how, cell) {
            (_, CellRef::Null) => Edit::Keep,
            (How::Null, _) => Edit::Null,
            (How::Stars, _) => {
                out.extend_from_slice(REDACTED.as_bytes());
                Edit::Text
            }
            (How::Hash, cell) => match value(&masked.column.ty, cell) {
                Value::Null | Value::Unchanged => Edit::Keep,
                Value::Text(text) => {
                    self.hash(&text, out);
                    Edit::Text
                }
                Value::Opaque(_) => {
                    opaque = true;
                    Edit::Null
                }
            },
        });
        if opaque {
            return Err(Error::new(
                ErrorKind::Setup,
                format!(
                    "the column `{}` of type {} comes in binary form, which has no stable text to hash",
                    masked.column.name, masked.column.ty.name
                ),
            )
            .remedy("redact the column instead"));
        }
        Ok(())
    }

    fn hash(&self, text: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        let digest = self.hmac.clone().chain_update(text).finalize().into_bytes();
        for byte in digest {
            push_hex(out, byte);
        }
        out.truncate(start + usize::from(self.shared.config.hash_length));
    }
}

impl Shared {
    fn plan(&self, schema: &Arc<TableSchema>) -> Result<Arc<Plan>> {
        if !self.applies.to(schema) {
            return Ok(Arc::new(Plan {
                output: Arc::clone(schema),
                cells: Vec::new(),
            }));
        }
        let mut output = TableSchema::clone(schema);
        let mut cells = Vec::new();
        let hashed = self.config.hash.iter().map(|name| (name, true));
        let redacted = self.config.redact.iter().map(|name| (name, false));
        for (name, hash) in hashed.chain(redacted) {
            let (index, column) = column(schema, name)?;
            let key = schema.key.contains(&(index as u16));
            let how = self.how(column, key, hash)?;
            cells.push(Masked {
                slot: column.slot,
                column: column.clone(),
                how,
            });
            mask_column(&mut output.columns[index], how);
        }
        Ok(Arc::new(Plan {
            output: Arc::new(output),
            cells,
        }))
    }

    fn how(&self, column: &Column, key: bool, hash: bool) -> Result<How> {
        if hash {
            if key && self.config.hash_length < MIN_KEY_HASH_LENGTH {
                return Err(Error::new(
                    ErrorKind::Config,
                    format!(
                        "the column `{}` belongs to the key; with `hash_length` {} two rows could become one",
                        column.name, self.config.hash_length
                    ),
                )
                .remedy("set `hash_length` to 32 or more"));
            }
            return Ok(How::Hash);
        }
        if key {
            return Err(Error::new(
                ErrorKind::Config,
                format!(
                    "the column `{}` belongs to the key and cannot be redacted",
                    column.name
                ),
            )
            .remedy("hash it instead: rows stay apart, and the value stays hidden"));
        }
        Ok(if is_text(&column.ty) {
            How::Stars
        } else {
            How::Null
        })
    }
}

fn is_text(ty: &ColumnType) -> bool {
    ty.kind == TypeKind::Base
        && (matches!(ty.oid, oid::TEXT | oid::VARCHAR | oid::BPCHAR | oid::NAME)
            || &*ty.name == "citext")
}

/// The column as it leaves: a masked text is of no declared length.
fn mask_column(column: &mut Column, how: How) {
    match how {
        How::Hash | How::Stars => {
            column.ty = ColumnType {
                oid: oid::TEXT,
                typmod: -1,
                name: "text".into(),
                kind: TypeKind::Base,
            };
        }
        How::Null => column.not_null = false,
    }
}
