//! Lines in files, each once, whatever happens in between.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lockstep_core::batch::{Batch, BatchBuilder, Cell, OldImage, Op, Phase, Transaction};
use lockstep_core::check::Verdict;
use lockstep_core::position::{Lsn, Position, SourceIdentity, SourceInfo};
use lockstep_core::schema::{Column, ColumnType, ReplicaIdentity, TableId, TableSchema, TypeKind};
use lockstep_core::sink::{Sink, SinkContext, SinkFactory, Trouble};
use lockstep_core::{ErrorKind, Result};
use lockstep_sink_file::{FileConfig, FileSinkFactory};
use tempfile::TempDir;

struct Test {
    folder: TempDir,
    source: Arc<SourceInfo>,
    schema: Arc<TableSchema>,
}

impl Test {
    fn new() -> Self {
        Self::with_table("items")
    }

    fn with_table(table: &str) -> Self {
        let column = |name: &str, oid, ty: &str, slot| Column {
            name: name.into(),
            ty: ColumnType {
                oid,
                typmod: -1,
                name: ty.into(),
                kind: TypeKind::Base,
            },
            slot,
            not_null: slot == 0,
        };
        let schema = TableSchema {
            source: "orders".into(),
            id: TableId::new("public", table),
            origin: TableId::new("public", table),
            relation: 1,
            version: 1,
            columns: vec![column("id", 20, "int8", 0), column("data", 114, "json", 1)],
            key: vec![0],
            identity: ReplicaIdentity::Default,
            width: 2,
        };
        let identity = SourceIdentity {
            system: 7,
            timeline: 1,
            incarnation: 0,
            database: "sh\"op".into(),
        };
        Test {
            folder: TempDir::new().expect("folder"),
            source: Arc::new(SourceInfo {
                name: "orders".into(),
                identity,
            }),
            schema: Arc::new(schema),
        }
    }

    fn config(&self, format: &str) -> FileConfig {
        let path = self
            .folder
            .path()
            .join("out/{source}.{schema}.{table}.jsonl");
        serde_json::from_value(serde_json::json!({"path": path, "format": format})).expect("valid")
    }

    fn output(&self) -> PathBuf {
        self.folder.path().join("out/orders.public.items.jsonl")
    }

    async fn open(&self, format: &str) -> Result<Box<dyn Sink>> {
        let context = SinkContext {
            pipeline: "test".into(),
            name: "lines".into(),
            state: self.folder.path().join("state"),
            sources: vec![Arc::clone(&self.source)],
            tables: vec![Arc::clone(&self.schema)],
            trouble: Trouble::default(),
            token: None,
        };
        FileSinkFactory::open(&self.config(format), context).await
    }

    /// The changes `first..=last` of the transaction `commit`.
    fn batch(&self, commit: u64, first: u64, last: u64, data: &str) -> Arc<Batch> {
        let ops = (first..=last).map(|ordinal| (ordinal, Op::Insert, data));
        self.batch_of(commit, ops)
    }

    fn batch_of<'a>(
        &self,
        commit: u64,
        events: impl IntoIterator<Item = (u64, Op, &'a str)>,
    ) -> Arc<Batch> {
        let mut builder = BatchBuilder::new();
        let mut block = Vec::new();
        builder.begin(Transaction {
            commit: Lsn(commit),
            commit_micros: 1_700_000_000_000_000,
            xid: 9,
            origin: None,
            previous_commit: None,
            prepared: None,
            global: None,
        });
        let schema = builder.schema(&self.schema);
        for (ordinal, op, data) in events {
            let mut cell = |text: &str| {
                let offset = block.len() as u32;
                block.extend_from_slice(text.as_bytes());
                Cell::text(offset, text.len() as u32)
            };
            let (id, data) = (cell(&ordinal.to_string()), cell(data));
            let start = builder.cells().len();
            let (old, new) = match op {
                Op::Delete => {
                    builder.cells().extend([id, Cell::NULL]);
                    (Some((OldImage::Key, start)), None)
                }
                _ => {
                    builder.cells().extend([id, data]);
                    (None, Some(start))
                }
            };
            builder.push(op, schema, ordinal, Lsn(commit), old, new);
        }
        let through = Some(Lsn(commit + 1));
        Arc::new(builder.finish(
            Arc::clone(&self.source),
            Phase::Stream,
            through,
            Bytes::from(block),
        ))
    }

    fn id(&self, commit: u64, ordinal: u64) -> String {
        self.source.change_id(Position {
            commit: Lsn(commit),
            ordinal,
        })
    }
}

fn lines(path: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(path).expect("file");
    assert!(
        text.is_empty() || text.ends_with('\n'),
        "the last line is torn"
    );
    text.lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

#[tokio::test]
async fn one_line_a_record_with_id_key_and_value() {
    for format in ["debezium", "flat"] {
        let test = Test::new();
        let mut sink = test.open(format).await.expect("opens");
        let events = [(1, Op::Insert, "{\"a\":\n1}"), (2, Op::Delete, "")];
        let durable = sink.write(test.batch_of(5, events)).await.expect("taken");
        assert_eq!(
            durable.await.expect("durable").written,
            2,
            "tombstones are left out"
        );
        sink.close().await.expect("closes");
        let lines = lines(&test.output());
        assert_eq!(
            lines.len(),
            2,
            "{format}: a newline in a value does not end the line"
        );
        assert_eq!(lines[0]["id"], test.id(5, 1));
        assert_eq!(lines[0]["key"], serde_json::json!({"id": 1}));
        assert_eq!(lines[1]["key"], serde_json::json!({"id": 2}));
        assert!(
            lines.iter().all(|line| line["value"].is_object()),
            "{lines:?}"
        );
    }
}

/// Writes transactions of three changes from where the sink resumes, until the future is dropped.
async fn write_all(test: &Test, last: u64, confirmed: &mut Option<Position>) -> Result<()> {
    let mut sink = test.open("flat").await?;
    let resume = sink.resume(&test.source).await?.map(|held| held.upto());
    assert!(
        resume >= *confirmed,
        "confirmed {confirmed:?}, resumed from {resume:?}"
    );
    let mut receipts = VecDeque::new();
    for commit in 1..=last {
        let first = match resume {
            Some(at) if at.commit.0 > commit => continue,
            Some(at) if at.commit.0 == commit => at.ordinal + 1,
            _ => 1,
        };
        if first <= 3 {
            let durable = sink.write(test.batch(commit, first, 3, "{}")).await?;
            receipts.push_back((
                Position {
                    commit: Lsn(commit),
                    ordinal: 3,
                },
                durable,
            ));
        }
        if receipts.len() > 5 {
            let (position, durable) = receipts.pop_front().expect("not empty");
            durable.await?;
            *confirmed = Some(position);
        }
    }
    for (position, durable) in receipts {
        durable.await?;
        *confirmed = Some(position);
    }
    sink.close().await
}

fn check(test: &Test, last: u64) {
    let mut count = BTreeMap::new();
    for line in lines(&test.output()) {
        *count
            .entry(line["id"].as_str().expect("id").to_owned())
            .or_insert(0) += 1;
    }
    let expected: BTreeSet<_> = (1..=last)
        .flat_map(|commit| (1..=3).map(move |ordinal| (commit, ordinal)))
        .collect();
    for &(commit, ordinal) in &expected {
        assert_eq!(
            count.get(&test.id(commit, ordinal)),
            Some(&1),
            "{commit}#{ordinal}"
        );
    }
    assert_eq!(count.len(), expected.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn drops_and_torn_ends_lose_and_double_nothing() {
    let test = Test::new();
    let mut confirmed = None;
    let mut dropped = 0;
    let mut cut: u64 = 300;
    while dropped < 50 {
        cut = cut * 7919 % 9973;
        let run = write_all(&test, 3000, &mut confirmed);
        match tokio::time::timeout(Duration::from_micros(cut + 100), run).await {
            Ok(ended) => {
                ended.expect("to the end");
                break;
            }
            Err(_) => dropped += 1,
        }
        // What a crash leaves: lines that were never confirmed, the last one torn. The lock tells when the thread is gone.
        let lock = fs::File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(test.folder.path().join("state/lock"));
        let Ok(lock) = lock else { continue };
        lock.lock().expect("locked");
        if test.output().exists() {
            let mut file = fs::File::options()
                .append(true)
                .open(test.output())
                .expect("file");
            file.write_all(b"{\"id\":\"lost\",\"key\":{}}\n{\"id\":\"to")
                .expect("written");
        }
    }
    assert!(dropped > 10, "{dropped} drops");
    write_all(&test, 3000, &mut confirmed)
        .await
        .expect("to the end");
    check(&test, 3000);
}

#[tokio::test]
async fn a_full_disk_is_an_error_and_not_success() {
    let test = Test::new();
    fs::create_dir_all(test.output().parent().expect("folder")).expect("made");
    std::os::unix::fs::symlink("/dev/full", test.output()).expect("linked");
    let mut sink = test.open("flat").await.expect("opens");
    let durable = sink.write(test.batch(1, 1, 3, "{}")).await.expect("taken");
    let error = durable.await.expect_err("no space");
    assert_eq!(error.kind(), ErrorKind::Full, "{error}");
    assert!(error.to_string().contains("free space"), "{error}");
    let error = sink
        .write(test.batch(2, 1, 3, "{}"))
        .await
        .err()
        .expect("it has failed");
    assert!(
        matches!(error.kind(), ErrorKind::Full | ErrorKind::Storage),
        "{error}"
    );
    drop(sink);
    let mut sink = test.open("flat").await.expect("opens again");
    assert_eq!(
        sink.resume(&test.source)
            .await
            .expect("resume")
            .map(|held| held.upto()),
        None
    );
}

#[tokio::test]
async fn what_was_there_before_is_kept() {
    let test = Test::new();
    fs::create_dir_all(test.output().parent().expect("folder")).expect("made");
    fs::write(test.output(), "{\"mine\":1}\n").expect("written");
    let mut sink = test.open("flat").await.expect("opens");
    sink.write(test.batch(1, 1, 1, "{}"))
        .await
        .expect("taken")
        .await
        .expect("durable");
    sink.close().await.expect("closes");
    let lines = lines(&test.output());
    assert_eq!(
        (lines.len(), &lines[0]),
        (2, &serde_json::json!({"mine": 1}))
    );
}

#[tokio::test]
async fn a_file_cut_short_by_somebody_else_is_an_error() {
    let test = Test::new();
    let mut sink = test.open("flat").await.expect("opens");
    sink.write(test.batch(1, 1, 2, "{}"))
        .await
        .expect("taken")
        .await
        .expect("durable");
    sink.close().await.expect("closes");
    fs::write(test.output(), "").expect("emptied");
    let error = test
        .open("flat")
        .await
        .err()
        .expect("confirmed lines are gone");
    assert_eq!(error.kind(), ErrorKind::Storage, "{error}");
    fs::remove_file(test.output()).expect("removed");
    let error = test
        .open("flat")
        .await
        .err()
        .expect("confirmed lines are gone");
    assert!(error.to_string().contains("is missing"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_at_once_are_refused() {
    let test = Test::new();
    let first = test.open("flat").await.expect("opens");
    let error = test.open("flat").await.err().expect("locked");
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    first.close().await.expect("closes");
    test.open("flat")
        .await
        .expect("free again")
        .close()
        .await
        .expect("closes");
}

#[tokio::test]
async fn a_table_cannot_write_outside_the_folder() {
    let test = Test::with_table("../../evil");
    let mut sink = test.open("flat").await.expect("opens");
    sink.write(test.batch(1, 1, 1, "{}"))
        .await
        .expect("taken")
        .await
        .expect("durable");
    sink.close().await.expect("closes");
    assert!(
        test.folder
            .path()
            .join("out/orders.public..._.._evil.jsonl")
            .exists()
    );
}

#[tokio::test]
async fn preflight_looks_at_the_folder() {
    let test = Test::new();
    let good = FileSinkFactory::preflight(&test.config("flat"), "p", "s").await;
    assert_eq!(good[0].verdict, Verdict::Pass, "{good:?}");
    fs::write(test.folder.path().join("out"), "a file").expect("written");
    let bad = FileSinkFactory::preflight(&test.config("flat"), "p", "s").await;
    assert_eq!(bad[0].verdict, Verdict::Fail, "{bad:?}");
    let config = serde_json::json!({"path": "out/{tabel}"});
    let config: FileConfig = serde_json::from_value(config).expect("parses");
    assert_eq!(
        FileSinkFactory::validate(&config)
            .expect_err("unknown field")
            .kind(),
        ErrorKind::Config
    );
}
