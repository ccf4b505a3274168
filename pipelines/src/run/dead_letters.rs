//! Rows that left the flow, one JSON line each, in `dead-letters.jsonl` of the state directory.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use lockstep_core::batch::{Batch, CellRef, Change, Row};
use lockstep_core::transform::DeadLetters;
use lockstep_core::{Error, ErrorKind, Result};
use prometheus::IntCounterVec;
use serde_json::{Map, Value, json};

use super::lock;

/// Appends rows to a file. A row is with the operating system when `keep` returns, so a killed process finds it again;
/// [`DeadLetterFile::persist`] makes it safe against power loss. After a crash, rows that were not confirmed come again
/// and are kept again: `position` tells repeats apart.
pub(super) struct DeadLetterFile {
    path: PathBuf,
    file: Mutex<Option<File>>,
    dirty: AtomicBool,
    kept: IntCounterVec,
}

impl DeadLetterFile {
    /// A file that is made when the first row comes. `kept` counts by place and reason.
    pub fn new(path: PathBuf, kept: IntCounterVec) -> Self {
        DeadLetterFile {
            path,
            file: Mutex::default(),
            dirty: AtomicBool::new(false),
            kept,
        }
    }

    /// Whether rows were kept since the last persist.
    pub fn is_dirty(&self) -> bool {
        self.dirty.load(Ordering::Acquire)
    }

    /// Makes what was kept safe against power loss. Waits for the disk: for a blocking thread.
    pub fn persist(&self) -> Result<()> {
        if !self.dirty.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let file = lock(&self.file);
        let synced = file.as_ref().map_or(Ok(()), File::sync_data);
        synced.map_err(|error| {
            self.dirty.store(true, Ordering::Release);
            self.failed(error)
        })
    }

    fn failed(&self, error: std::io::Error) -> Error {
        Error::new(
            ErrorKind::Storage,
            format!("cannot write {}", self.path.display()),
        )
        .source(error)
        .remedy("give the state directory room and write permission")
    }

    fn append(&self, line: &[u8]) -> std::io::Result<()> {
        let mut file = lock(&self.file);
        if file.is_none() {
            *file = Some(
                OpenOptions::new()
                    .create(true)
                    .append(true)
                    .open(&self.path)?,
            );
        }
        match file.as_mut() {
            Some(file) => file.write_all(line),
            None => Ok(()),
        }
    }
}

impl DeadLetters for DeadLetterFile {
    fn keep(
        &self,
        place: &str,
        reason: &str,
        batch: &Batch,
        change: &Change,
        row: Option<Row<'_>>,
    ) -> Result<()> {
        let mut line = letter(place, reason, batch, change, row)
            .to_string()
            .into_bytes();
        line.push(b'\n');
        self.append(&line).map_err(|error| self.failed(error))?;
        self.dirty.store(true, Ordering::Release);
        self.kept.with_label_values(&[place, reason]).inc();
        Ok(())
    }
}

fn letter(
    place: &str,
    reason: &str,
    batch: &Batch,
    change: &Change,
    row: Option<Row<'_>>,
) -> Value {
    let schema = batch.schema(change);
    let position = batch.position(change);
    let mut columns = Map::new();
    let mut unchanged = Vec::new();
    if let Some(row) = row {
        for column in &schema.columns {
            let name = column.name.to_string();
            match row.get(column) {
                CellRef::Null => drop(columns.insert(name, Value::Null)),
                CellRef::Unchanged => unchanged.push(name),
                CellRef::Text(text) => {
                    drop(columns.insert(name, String::from_utf8_lossy(text).into()))
                }
                CellRef::Binary(bytes) => drop(columns.insert(name, hex(bytes).into())),
            }
        }
    }
    json!({
        "place": place,
        "reason": reason,
        "source": &*schema.source,
        "table": schema.id.to_string(),
        "op": change.op.as_str(),
        "position": position.to_string(),
        "id": batch.source.change_id(position),
        "columns": columns,
        "unchanged": unchanged,
    })
}

/// `\x…`, as PostgreSQL writes bytes.
fn hex(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(2 + 2 * bytes.len());
    out.push_str("\\x");
    for byte in bytes {
        for digit in [byte >> 4, byte & 15] {
            out.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use lockstep_core::batch::{BatchBuilder, Cell, Op, Phase, Transaction};
    use lockstep_core::position::{Lsn, SourceIdentity, SourceInfo};
    use lockstep_core::schema::TableSchema;
    use prometheus::Opts;

    use super::*;

    #[test]
    fn keeps_rows_as_json_lines() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("dead-letters.jsonl");
        let kept =
            IntCounterVec::new(Opts::new("kept", "kept"), &["place", "reason"]).expect("valid");
        let letters = DeadLetterFile::new(path.clone(), kept.clone());
        let source = Arc::new(SourceInfo {
            name: "orders".into(),
            identity: SourceIdentity {
                system: 7,
                timeline: 1,
                incarnation: 0,
                database: "shop".into(),
            },
        });
        let mut builder = BatchBuilder::new();
        builder.begin(Transaction {
            commit: Lsn(16),
            commit_micros: 0,
            xid: 1,
            origin: None,
            previous_commit: None,
        });
        let schema = builder.schema(&Arc::new(TableSchema::message("orders".into())));
        builder
            .cells()
            .extend([Cell::text(0, 2), Cell::binary(2, 1)]);
        builder.push(Op::Message, schema, 1, Lsn(9), None, Some(0));
        let batch = builder.finish(source, Phase::Stream, None, Bytes::from_static(b"hi\xff"));
        let change = batch.changes()[0];
        for _ in 0..2 {
            letters
                .keep(
                    "transforms.once",
                    "duplicate",
                    &batch,
                    &change,
                    batch.new_row(&change),
                )
                .expect("kept");
        }
        letters.persist().expect("safe");
        assert!(!letters.is_dirty());
        let text = std::fs::read_to_string(path).expect("file");
        let lines: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(
            lines[0]["columns"],
            json!({"prefix": "hi", "content": "\\xff"})
        );
        assert_eq!(lines[0]["position"], "0/10#1");
        assert_eq!(lines[0]["id"], "7/1/shop/0000000000000010/1");
        assert_eq!(
            kept.with_label_values(&["transforms.once", "duplicate"])
                .get(),
            2
        );
    }
}
