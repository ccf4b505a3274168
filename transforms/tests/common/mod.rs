//! Tables, batches and contexts for tests: changes are written as rows of texts, and read back as lines.

#![allow(dead_code, reason = "every test file uses a part of it")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

use bytes::Bytes;
use lockstep_core::batch::{
    Batch, BatchBuilder, Cell, CellRef, Change, OldImage, Op, Phase, Row, Transaction,
};
use lockstep_core::position::{Lsn, SourceIdentity, SourceInfo};
use lockstep_core::schema::{Column, ColumnType, ReplicaIdentity, TableId, TableSchema, TypeKind};
use lockstep_core::transform::{DeadLetters, Transform, TransformContext, TransformFactory};
use lockstep_core::{Error, Result};
use lockstep_kit::redis::Redis;
use lockstep_kit::unique;
use lockstep_transforms::Dedupe;
use serde::de::DeserializeOwned;
use serde_json::{Value as Json, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// A base type by name.
pub fn base(name: &str) -> ColumnType {
    let oid = match name {
        "bool" => 16,
        "bytea" => 17,
        "int8" => 20,
        "int2" => 21,
        "int4" => 23,
        "text" => 25,
        "json" => 114,
        "jsonb" => 3802,
        "float8" => 701,
        "bpchar" => 1042,
        "varchar" => 1043,
        "date" => 1082,
        "time" => 1083,
        "timestamp" => 1114,
        "timestamptz" => 1184,
        "interval" => 1186,
        "numeric" => 1700,
        "uuid" => 2950,
        _ => 70_000,
    };
    let kind = match name.strip_suffix("[]") {
        Some(element) => TypeKind::Array(Arc::new(base(element))),
        None if name == "order_status" => TypeKind::Enum,
        None => TypeKind::Base,
    };
    ColumnType {
        oid,
        typmod: -1,
        name: name.into(),
        kind,
    }
}

/// A table of source `shop`: columns as `name type`, key columns by name.
pub fn table(
    id: &str,
    columns: &[&str],
    key: &[&str],
    identity: ReplicaIdentity,
) -> Arc<TableSchema> {
    table_of("shop", id, columns, key, identity)
}

/// A table of a source.
pub fn table_of(
    source: &str,
    id: &str,
    columns: &[&str],
    key: &[&str],
    identity: ReplicaIdentity,
) -> Arc<TableSchema> {
    let (schema, name) = id.split_once('.').unwrap();
    let columns: Vec<Column> = columns
        .iter()
        .enumerate()
        .map(|(slot, column)| {
            let (name, ty) = column.rsplit_once(' ').unwrap();
            Column {
                name: name.into(),
                ty: base(ty),
                slot: slot as u16,
                not_null: false,
            }
        })
        .collect();
    let index = |name: &&str| {
        columns
            .iter()
            .position(|column| &*column.name == *name)
            .unwrap() as u16
    };
    Arc::new(TableSchema {
        source: source.into(),
        id: TableId::new(schema, name),
        origin: TableId::new(schema, name),
        relation: 1,
        version: 1,
        key: key.iter().map(index).collect(),
        width: columns.len() as u16,
        columns,
        identity,
    })
}

/// The source `name`.
pub fn source(name: &str) -> Arc<SourceInfo> {
    Arc::new(SourceInfo {
        name: name.into(),
        identity: SourceIdentity {
            system: 1,
            timeline: 1,
            incarnation: 0,
            database: name.into(),
        },
    })
}

/// NULL in a row of texts.
pub const NULL: &str = "\u{0}null";
/// Unchanged TOAST in a row of texts.
pub const UNCHANGED: &str = "\u{0}unchanged";

/// Puts a batch together.
pub struct Feed {
    builder: BatchBuilder,
    block: Vec<u8>,
    ordinal: u64,
    source: Arc<SourceInfo>,
    phase: Phase,
    last: Lsn,
}

impl Feed {
    pub fn new() -> Self {
        Feed::of("shop")
    }

    pub fn of(name: &str) -> Self {
        Feed::from(source(name))
    }

    pub fn from(source: Arc<SourceInfo>) -> Self {
        Feed {
            builder: BatchBuilder::new(),
            block: Vec::new(),
            ordinal: 0,
            source,
            phase: Phase::Stream,
            last: Lsn(0),
        }
    }

    /// A transaction at `commit`, committed `seconds` after the epoch.
    pub fn begin(mut self, commit: u64, seconds: i64) -> Self {
        self.ordinal = 0;
        self.last = Lsn(commit);
        self.builder.begin(Transaction {
            commit: Lsn(commit),
            commit_micros: seconds * 1_000_000,
            xid: 1,
            origin: None,
            previous_commit: None,
            prepared: None,
            global: None,
        });
        self
    }

    /// The rest of a transaction that an earlier batch began: `sent` changes came before.
    pub fn resume(mut self, commit: u64, seconds: i64, sent: u64) -> Self {
        self = self.begin(commit, seconds);
        self.ordinal = sent;
        self
    }

    fn row(&mut self, row: &[&str]) -> usize {
        let start = self.builder.cells().len();
        for value in row {
            let cell = match *value {
                NULL => Cell::NULL,
                UNCHANGED => Cell::UNCHANGED,
                text => {
                    let offset = self.block.len() as u32;
                    self.block.extend_from_slice(text.as_bytes());
                    Cell::text(offset, text.len() as u32)
                }
            };
            self.builder.cells().push(cell);
        }
        start
    }

    pub fn push(
        mut self,
        op: Op,
        schema: &Arc<TableSchema>,
        old: Option<(OldImage, &[&str])>,
        new: Option<&[&str]>,
    ) -> Self {
        let index = self.builder.schema(schema);
        self.ordinal += 1;
        let old = old.map(|(image, row)| (image, self.row(row)));
        let new = new.map(|row| self.row(row));
        self.builder
            .push(op, index, self.ordinal, self.last, old, new);
        self
    }

    pub fn insert(self, schema: &Arc<TableSchema>, row: &[&str]) -> Self {
        self.push(Op::Insert, schema, None, Some(row))
    }

    pub fn read(mut self, schema: &Arc<TableSchema>, row: &[&str]) -> Self {
        self.phase = Phase::Snapshot;
        self.push(Op::Read, schema, None, Some(row))
    }

    pub fn update(self, schema: &Arc<TableSchema>, row: &[&str]) -> Self {
        self.push(Op::Update, schema, None, Some(row))
    }

    pub fn update_from(
        self,
        schema: &Arc<TableSchema>,
        image: OldImage,
        old: &[&str],
        row: &[&str],
    ) -> Self {
        self.push(Op::Update, schema, Some((image, old)), Some(row))
    }

    pub fn delete(self, schema: &Arc<TableSchema>, image: OldImage, old: &[&str]) -> Self {
        self.push(Op::Delete, schema, Some((image, old)), None)
    }

    pub fn truncate(self, schema: &Arc<TableSchema>) -> Self {
        self.push(Op::Truncate, schema, None, None)
    }

    pub fn finish(mut self) -> Batch {
        self.builder.finish(
            self.source,
            self.phase,
            Some(self.last),
            Bytes::from(self.block),
        )
    }
}

/// The changes of a batch as lines: `insert public.orders id=1 status=paid`, the old image after `<-`.
pub fn lines(batch: &Batch) -> Vec<String> {
    batch
        .changes()
        .iter()
        .map(|change| line(batch, change))
        .collect()
}

fn line(batch: &Batch, change: &Change) -> String {
    let schema = batch.schema(change);
    let mut out = format!("{} {}", change.op.as_str(), schema.id);
    if let Some(new) = batch.new_row(change) {
        out += &cells(schema, new, false);
    }
    if let Some(old) = batch.old_row(change) {
        out += " <-";
        out += &cells(schema, old, change.old_image == OldImage::Key);
    }
    if change.duplicate {
        out += " duplicate";
    }
    out
}

fn cells(schema: &TableSchema, row: Row<'_>, key_only: bool) -> String {
    let columns: Vec<&Column> = if key_only {
        schema.key_columns().collect()
    } else {
        schema.columns.iter().collect()
    };
    columns
        .into_iter()
        .map(|column| {
            let value = match row.get(column) {
                CellRef::Null => "NULL".to_owned(),
                CellRef::Unchanged => "?".to_owned(),
                CellRef::Text(text) | CellRef::Binary(text) => {
                    String::from_utf8_lossy(text).into_owned()
                }
            };
            format!(" {}={value}", column.name)
        })
        .collect()
}

/// Remembers what was put aside.
#[derive(Default)]
pub struct Letters(pub Mutex<Vec<String>>);

impl DeadLetters for Letters {
    fn keep(
        &self,
        place: &str,
        reason: &str,
        batch: &Batch,
        change: &Change,
        row: Option<Row<'_>>,
    ) -> Result<()> {
        assert!(row.is_some());
        self.0
            .lock()
            .unwrap()
            .push(format!("{place} {reason} {}", line(batch, change)));
        Ok(())
    }
}

/// A context over a directory.
pub fn context(state: &Path, letters: Arc<Letters>) -> TransformContext {
    TransformContext {
        pipeline: "tests".into(),
        name: "here".into(),
        state: state.to_owned(),
        dead_letters: letters,
    }
}

/// Runs a future to its end, from a test that is none.
pub fn block_on<F: Future>(future: F) -> F::Output {
    static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());
    RUNTIME.block_on(future)
}

/// Transforms for tests that are no futures.
pub trait ApplyNow {
    fn apply_now(&mut self, batch: Batch) -> Result<Arc<Batch>>;
}

impl ApplyNow for Box<dyn Transform> {
    fn apply_now(&mut self, batch: Batch) -> Result<Arc<Batch>> {
        block_on(self.apply(Arc::new(batch)))
    }
}

/// Where `dedupe` remembers: one memory, and the replicas that share it.
pub struct Place {
    pub pipeline: String,
    /// The state directories of the replicas: one over the embedded store, two over Redis, which take turns.
    folders: Vec<TempDir>,
    turn: AtomicUsize,
    store: Json,
}

impl Place {
    pub fn embedded() -> Self {
        Place::new(1, json!({"type": "embedded"}))
    }

    /// In the server that all tests share.
    pub fn redis() -> Self {
        Place::redis_at(block_on(Redis::shared()).url(), json!({}))
    }

    pub fn redis_at(url: &str, more: Json) -> Self {
        let mut store = json!({"type": "redis", "url": url});
        for (name, value) in more.as_object().into_iter().flatten() {
            store[name] = value.clone();
        }
        Place::new(2, store)
    }

    fn new(replicas: usize, store: Json) -> Self {
        Place {
            pipeline: unique("dedupe"),
            folders: (0..replicas)
                .map(|_| tempfile::tempdir().unwrap())
                .collect(),
            turn: AtomicUsize::new(0),
            store,
        }
    }

    /// An empty memory of the same kind.
    pub fn fresh(&self) -> Self {
        Place::new(self.folders.len(), self.store.clone())
    }

    /// A section with this store.
    pub fn section(&self, mut json: Json) -> Json {
        json["store"] = self.store.clone();
        json
    }

    /// The state directory of the replica whose turn it is.
    pub fn folder(&self) -> PathBuf {
        self.folders[self.turn.load(Ordering::Relaxed) % self.folders.len()]
            .path()
            .to_owned()
    }

    /// The replica whose turn it is.
    pub fn open(
        &self,
        json: Json,
        tables: &[&Arc<TableSchema>],
        letters: &Arc<Letters>,
    ) -> Box<dyn Transform> {
        self.open_as(self.section(json), tables, letters)
    }

    /// The same under a section with a store of its own.
    pub fn open_as(
        &self,
        section: Json,
        tables: &[&Arc<TableSchema>],
        letters: &Arc<Letters>,
    ) -> Box<dyn Transform> {
        let context = TransformContext {
            pipeline: self.pipeline.as_str().into(),
            ..context(&self.folder(), Arc::clone(letters))
        };
        let mut dedupe = Dedupe::open(&config(section), context).unwrap();
        for table in tables {
            dedupe.bind(table).unwrap();
        }
        dedupe
    }

    /// The next replica's turn, if there is one; the same one's again if not.
    pub fn next(&self) {
        self.turn.fetch_add(1, Ordering::Relaxed);
    }
}

/// A configuration from JSON.
pub fn config<C: DeserializeOwned>(json: serde_json::Value) -> C {
    serde_json::from_value(json).unwrap()
}

/// A transform without state, bound to `tables`.
pub fn open<F: TransformFactory>(
    json: serde_json::Value,
    tables: &[&Arc<TableSchema>],
) -> Result<Box<dyn Transform>> {
    open_with::<F>(json, tables, &Arc::default())
}

/// The same, with a place for dead letters.
pub fn open_with<F: TransformFactory>(
    json: serde_json::Value,
    tables: &[&Arc<TableSchema>],
    letters: &Arc<Letters>,
) -> Result<Box<dyn Transform>> {
    let config = config::<F::Config>(json);
    F::validate(&config)?;
    let context = context(Path::new("/nonexistent"), Arc::clone(letters));
    let mut transform = F::open(&config, context)?;
    for table in tables {
        transform.bind(table)?;
    }
    Ok(transform)
}

/// The error of opening or binding.
pub fn refused<F: TransformFactory>(
    json: serde_json::Value,
    tables: &[&Arc<TableSchema>],
) -> Error {
    match open::<F>(json, tables) {
        Ok(_) => panic!("accepted"),
        Err(error) => error,
    }
}
