use std::collections::BTreeMap;

use bytes::Bytes;
use lockstep_core::batch::{BatchBuilder, Cell, OldImage, Phase};
use lockstep_core::memory::Budget;
use lockstep_core::position::{SourceIdentity, SourceInfo};
use lockstep_core::schema::{Column, ColumnType, ReplicaIdentity, TypeKind};
use proptest::prelude::*;

use super::*;

fn source() -> Arc<SourceInfo> {
    Arc::new(SourceInfo {
        name: "shop".into(),
        identity: SourceIdentity {
            system: 1,
            timeline: 1,
            incarnation: 0,
            database: "shop".into(),
        },
    })
}

fn table(version: u32) -> Arc<TableSchema> {
    let column = |(slot, name): (usize, &str)| Column {
        name: name.into(),
        ty: ColumnType {
            oid: 25,
            typmod: -1,
            name: "text".into(),
            kind: TypeKind::Base,
        },
        slot: slot as u16,
        not_null: false,
    };
    Arc::new(TableSchema {
        source: "shop".into(),
        id: TableId::new("public", "t"),
        origin: TableId::new("public", "t"),
        relation: 1,
        version,
        columns: ["id", if version == 1 { "value" } else { "other" }]
            .into_iter()
            .enumerate()
            .map(column)
            .collect(),
        key: vec![0],
        identity: ReplicaIdentity::Default,
        width: 2,
    })
}

/// Puts batches of a stream together.
struct Stream {
    builder: BatchBuilder,
    block: Vec<u8>,
    table: Arc<TableSchema>,
    messages: Arc<TableSchema>,
}

impl Stream {
    fn new(table: &Arc<TableSchema>) -> Self {
        Stream {
            builder: BatchBuilder::new(),
            block: Vec::new(),
            table: Arc::clone(table),
            messages: Arc::new(TableSchema::message("shop".into())),
        }
    }

    fn begin(&mut self, commit: u64, xid: u32) -> &mut Self {
        self.builder.begin(Transaction {
            commit: Lsn(commit),
            commit_micros: 0,
            xid,
            origin: None,
            previous_commit: None,
            prepared: None,
            global: None,
        });
        self
    }

    fn cells(&mut self, values: [Option<&str>; 2]) -> usize {
        let start = self.builder.cells().len();
        for value in values {
            let cell = value.map_or(Cell::NULL, |value| {
                let at = self.block.len() as u32;
                self.block.extend_from_slice(value.as_bytes());
                Cell::text(at, value.len() as u32)
            });
            self.builder.cells().push(cell);
        }
        start
    }

    fn put(&mut self, key: &str, value: &str) -> &mut Self {
        let (table, new) = (
            Arc::clone(&self.table),
            self.cells([Some(key), Some(value)]),
        );
        let index = self.builder.schema(&table);
        self.builder
            .push(Op::Update, index, 1, Lsn(0), None, Some(new));
        self
    }

    fn delete(&mut self, key: &str) -> &mut Self {
        let (table, old) = (Arc::clone(&self.table), self.cells([Some(key), None]));
        let index = self.builder.schema(&table);
        let old = Some((OldImage::Key, old));
        self.builder.push(Op::Delete, index, 1, Lsn(0), old, None);
        self
    }

    fn truncate(&mut self) -> &mut Self {
        let table = Arc::clone(&self.table);
        let index = self.builder.schema(&table);
        self.builder
            .push(Op::Truncate, index, 1, Lsn(0), None, None);
        self
    }

    fn message(&mut self, prefix: &str, content: &str) -> &mut Self {
        let (messages, new) = (
            Arc::clone(&self.messages),
            self.cells([Some(prefix), Some(content)]),
        );
        let index = self.builder.schema(&messages);
        self.builder
            .push(Op::Message, index, 1, Lsn(0), None, Some(new));
        self
    }

    fn batch(&mut self, through: Option<u64>) -> Batch {
        let block = Bytes::from(std::mem::take(&mut self.block));
        let through = through.map(Lsn);
        self.builder.finish(source(), Phase::Stream, through, block)
    }
}

fn rows(values: &[(String, String)]) -> Rows {
    let (mut block, mut cells, mut starts) = (Vec::new(), Vec::new(), Vec::new());
    for (key, value) in values {
        starts.push(cells.len());
        for text in [key, value] {
            cells.push(Cell::text(block.len() as u32, text.len() as u32));
            block.extend_from_slice(text.as_bytes());
        }
    }
    Rows::of(block, cells, starts)
}

async fn offer(
    schema: &Arc<TableSchema>,
    fence: &str,
    values: &[(String, String)],
    visible: &str,
) -> (Offer, oneshot::Receiver<Merged>) {
    let (answer, merged) = oneshot::channel();
    let offer = Offer {
        fence: fence.into(),
        schema: Arc::clone(schema),
        passed: Some(schema.version),
        rows: Some(rows(values)),
        permit: Budget::new(1 << 20).take(1).await,
        visible: Visible::parse(visible).expect("a snapshot"),
        check: None,
        answer,
    };
    (offer, merged)
}

/// What batches say, in order: `k=v`, `-k`, `truncate`, `other`, with `*` for rows of a chunk.
fn told(batches: &[Batch]) -> Vec<String> {
    let mut told = Vec::new();
    for batch in batches {
        for change in batch.changes() {
            let schema = batch.schema(change);
            let text = |row: Row<'_>, at: usize| match row.get(&schema.columns[at]) {
                CellRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
                _ => String::new(),
            };
            told.push(
                match (change.op, batch.new_row(change), batch.old_row(change)) {
                    (Op::Truncate, ..) => "truncate".into(),
                    (Op::Read, Some(new), _) => format!("*{}={}", text(new, 0), text(new, 1)),
                    (Op::Message, Some(new), _) => text(new, 1),
                    (_, Some(new), _) => format!("{}={}", text(new, 0), text(new, 1)),
                    (.., Some(old)) => format!("-{}", text(old, 0)),
                    _ => "other".into(),
                },
            );
        }
    }
    told
}

fn pairs(values: &[(&str, &str)]) -> Vec<(String, String)> {
    let pair = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    values.iter().map(pair).collect()
}

#[tokio::test]
async fn a_chunk_enters_at_its_fence_without_what_is_newer_in_the_stream() {
    let schema = table(1);
    let (mut window, mut stream) = (Window::default(), Stream::new(&schema));
    assert!(window.watch(schema.origin.clone(), false).is_empty());
    let values = pairs(&[("1", "old"), ("2", "old"), ("3", "old")]);
    // The snapshot sees 10, and not 11, which was committed while it was taken.
    let (offered, merged) = offer(&schema, "f", &values, "11:12:11").await;
    window.offer(offered);
    stream.begin(80, 10).put("1", "old");
    stream.begin(88, 11).put("2", "new");
    stream.begin(96, 12).message(FENCE, "f");
    stream
        .begin(104, 13)
        .put("3", "later")
        .message("mine", "mine");
    let found = window.pass(stream.batch(Some(112)));
    assert_eq!(
        told(&found.batches),
        ["1=old", "2=new", "*1=old", "*3=old", "3=later", "mine"]
    );
    let through: Vec<_> = found.batches.iter().map(|batch| batch.through).collect();
    assert_eq!(through, [None, None, Some(Lsn(112))]);
    let chunk = &found.batches[1];
    assert_eq!(
        (chunk.phase, chunk.transactions()[0].commit),
        (Phase::Snapshot, Lsn(96))
    );
    let Merged::Passed {
        fence,
        rows,
        superseded,
    } = merged.await.expect("answered")
    else {
        panic!("it did not pass");
    };
    assert_eq!((fence, rows, superseded), (Lsn(96), 2, 1));
}

/// By what had passed when a chunk was handed over: what passes before its fence may have been written by a transaction that is
/// younger than the fence's.
#[tokio::test]
async fn a_fence_is_begun_behind_what_had_passed_before() {
    let schema = table(1);
    let horizons = Horizons::default();
    let behind = |xid| horizons.behind(xid);
    let (mut window, mut stream) = (Window::new(horizons.clone(), Lsn(64)), Stream::new(&schema));
    window.watch(schema.origin.clone(), false);
    let values = pairs(&[("1", "old")]);
    let (first, _merged) = offer(&schema, "f", &values, "10:10:").await;
    window.offer(first);
    stream.begin(72, 10).message(FENCE, "f");
    window.pass(stream.batch(None));
    assert_eq!(
        behind(11),
        Some(Lsn(64)),
        "nothing had passed since the beginning"
    );

    stream.begin(80, 12).put("1", "new");
    window.pass(stream.batch(None));
    let round = 1_u64 << 32;
    let (second, _merged) = offer(&schema, "g", &values, &format!("{0}:{0}:", round + 13)).await;
    window.offer(second);
    stream.begin(88, 15).put("1", "newer");
    stream.begin(96, 14).message(FENCE, "other");
    stream.begin(104, 14).message(FENCE, "g");
    window.pass(stream.batch(None));
    assert_eq!(behind(round + 14), Some(Lsn(64)));
    assert_eq!(behind(round + 15), Some(Lsn(80)));
}

#[tokio::test]
async fn a_truncate_that_the_snapshot_does_not_see_empties_the_chunk() {
    let schema = table(1);
    let (mut window, mut stream) = (Window::default(), Stream::new(&schema));
    window.watch(schema.origin.clone(), false);
    let (offered, merged) = offer(&schema, "f", &pairs(&[("1", "old")]), "10:10:").await;
    window.offer(offered);
    stream.begin(80, 10).truncate();
    stream.begin(88, 11).message(FENCE, "f");
    let found = window.pass(stream.batch(Some(96)));
    assert_eq!(told(&found.batches), ["truncate"]);
    assert_eq!(found.batches[0].through, Some(Lsn(96)));
    assert!(matches!(
        merged.await.expect("answered"),
        Merged::Passed {
            rows: 0,
            superseded: 1,
            ..
        }
    ));
}

#[tokio::test]
async fn a_table_of_another_shape_is_read_again() {
    let (old, new) = (table(1), table(2));
    let (mut window, mut stream) = (Window::default(), Stream::new(&new));
    window.watch(old.origin.clone(), false);
    let (offered, merged) = offer(&old, "f", &pairs(&[("1", "old")]), "10:10:").await;
    window.offer(offered);
    stream.begin(80, 10).put("2", "wide");
    stream.begin(88, 11).message(FENCE, "f");
    assert_eq!(told(&window.pass(stream.batch(None)).batches), ["2=wide"]);
    assert!(matches!(merged.await.expect("answered"), Merged::Again));
    assert_eq!(window.shape(&old.origin).expect("known").version, 2);
}

#[tokio::test]
async fn messages_of_ours_do_not_pass_and_those_of_others_do() {
    let schema = table(1);
    let (mut window, mut stream) = (Window::default(), Stream::new(&schema));
    stream
        .begin(80, 10)
        .message(FENCE, "of another pipeline")
        .message("mine", "mine");
    stream.begin(88, 11).message(SIGNAL, "{}");
    let found = window.pass(stream.batch(Some(96)));
    assert_eq!(told(&found.batches), ["mine"]);
    assert_eq!(found.signals, ["{}"]);
    stream.begin(104, 12).message(SIGNAL, "{}");
    let found = window.pass(stream.batch(Some(112)));
    assert_eq!(
        (found.batches.len(), found.batches[0].through),
        (1, Some(Lsn(112)))
    );
    assert_eq!(window.watch(schema.origin.clone(), false), [10, 11, 12]);
}

/// What happens in a database whose commits are in the log a while before snapshots see them.
#[derive(Clone, Debug)]
enum Step {
    Put(u8),
    Delete(u8),
    Truncate,
    /// The oldest commit that snapshots do not see is seen from now on.
    Appear,
    /// A chunk is read, offered, and its fence committed.
    Chunk,
    /// What is in the log is streamed.
    Stream,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..5_u8).prop_map(Step::Put),
        2 => (0..5_u8).prop_map(Step::Delete),
        1 => Just(Step::Truncate),
        4 => Just(Step::Appear),
        3 => Just(Step::Chunk),
        3 => Just(Step::Stream),
    ]
}

type State = BTreeMap<String, String>;

/// Applies what batches say, as a sink that holds one value per key.
fn apply(told: &[String], copy: &mut State) {
    for one in told {
        let one = one.trim_start_matches('*');
        match (one, one.split_once('=')) {
            ("truncate", _) => copy.clear(),
            (_, Some((key, value))) => drop(copy.insert(key.into(), value.into())),
            _ => drop(copy.remove(one.trim_start_matches('-'))),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// A copy that began with every row, then lost some, is whole again after all rows were loaded, whatever happened
    /// meanwhile; and no chunk ever sets it back.
    #[test]
    fn no_stale_row_overwrites_a_newer_one(steps in proptest::collection::vec(step(), 0..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let schema = table(1);
        let (mut window, mut stream) = (Window::default(), Stream::new(&schema));
        let (mut database, mut copy) = (State::new(), State::new());
        // What snapshots see: the state after each commit, oldest first; the first is seen.
        let mut states: VecDeque<(u32, State)> = VecDeque::from([(9, State::new())]);
        let (mut xid, mut fences) = (10_u32, 0);
        window.watch(schema.origin.clone(), false);
        let mut answers = Vec::new();
        for step in steps.into_iter().chain([Step::Stream]) {
            let commit = u64::from(xid) * 8;
            match step {
                Step::Put(key) => {
                    let (key, value) = (key.to_string(), format!("v{xid}"));
                    stream.begin(commit, xid).put(&key, &value);
                    database.insert(key, value);
                }
                Step::Delete(key) => {
                    if database.remove(&key.to_string()).is_none() {
                        continue;
                    }
                    stream.begin(commit, xid).delete(&key.to_string());
                }
                Step::Truncate => {
                    stream.begin(commit, xid).truncate();
                    database.clear();
                }
                Step::Appear => {
                    if states.len() > 1 {
                        states.pop_front();
                    }
                    continue;
                }
                Step::Chunk => {
                    // One chunk is under way at a time.
                    apply(&told(&window.pass(stream.batch(None)).batches), &mut copy);
                    prop_assert_eq!(&copy, &database);
                    let (seen, state) = &states[0];
                    let values: Vec<_> = state.clone().into_iter().collect();
                    let running: Vec<String> = (seen + 1..xid).map(|xid| xid.to_string()).collect();
                    let visible = format!("{}:{xid}:{}", seen + 1, running.join(","));
                    fences += 1;
                    let offered = runtime.block_on(offer(&schema, &fences.to_string(), &values, &visible));
                    window.offer(offered.0);
                    answers.push(offered.1);
                    stream.begin(commit, xid).message(FENCE, &fences.to_string());
                }
                Step::Stream => {
                    apply(&told(&window.pass(stream.batch(None)).batches), &mut copy);
                    prop_assert_eq!(&copy, &database);
                    continue;
                }
            }
            states.push_back((xid, database.clone()));
            xid += 1;
        }
        for mut answer in answers {
            let passed = matches!(answer.try_recv(), Ok(Merged::Passed { .. }));
            prop_assert!(passed, "a chunk was not answered");
        }
    }
}

/// Rows of a check that are not as a sink holds them that has been given everything before it.
fn untrue(batch: &Batch, copy: &State) -> Vec<String> {
    let schema = &batch.schemas()[0];
    let text = |row: Row<'_>, at: usize| {
        let bytes = row.get(&schema.columns[at]).text().unwrap_or_default();
        String::from_utf8_lossy(bytes).into_owned()
    };
    let changes = batch.changes().iter();
    changes
        .filter_map(|change| {
            let row = batch.new_row(change).or_else(|| batch.old_row(change))?;
            let key = text(row, 0);
            let expected = (change.op == Op::Read).then(|| text(row, 1));
            (copy.get(&key) != expected.as_ref()).then(|| format!("{key}: {expected:?}"))
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// What is sent to be compared is what a sink holds at that place of the stream, and every key that was asked for is
    /// sent or told as unsteady, whatever happens meanwhile.
    #[test]
    fn a_check_asks_for_nothing_that_is_not_so(steps in proptest::collection::vec(step(), 0..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let schema = table(1);
        let (mut window, mut stream) = (Window::default(), Stream::new(&schema));
        let (mut database, mut copy) = (State::new(), State::new());
        let mut states: VecDeque<(u32, State)> = VecDeque::from([(9, State::new())]);
        let (mut xid, mut fences) = (10_u32, 0_u64);
        window.watch(schema.origin.clone(), true);
        let keys: Vec<Vec<String>> = (0..5_u8).map(|key| vec![key.to_string()]).collect();
        let mut answers = Vec::new();
        let pass = |window: &mut Window, batch: Batch, copy: &mut State| -> Vec<String> {
            let mut wrong = Vec::new();
            for batch in window.pass(batch).batches {
                match batch.phase {
                    Phase::Check => wrong.extend(untrue(&batch, copy)),
                    _ => apply(&told(&[batch]), copy),
                }
            }
            wrong
        };
        for step in steps.into_iter().chain([Step::Stream]) {
            let commit = u64::from(xid) * 8;
            match step {
                Step::Put(key) => {
                    let (key, value) = (key.to_string(), format!("v{xid}"));
                    stream.begin(commit, xid).put(&key, &value);
                    database.insert(key, value);
                }
                Step::Delete(key) => {
                    if database.remove(&key.to_string()).is_none() {
                        continue;
                    }
                    stream.begin(commit, xid).delete(&key.to_string());
                }
                Step::Truncate => {
                    stream.begin(commit, xid).truncate();
                    database.clear();
                }
                Step::Appear => {
                    if states.len() > 1 {
                        states.pop_front();
                    }
                    continue;
                }
                Step::Chunk => {
                    let wrong = pass(&mut window, stream.batch(None), &mut copy);
                    prop_assert_eq!(wrong, Vec::<String>::new());
                    let (seen, state) = &states[0];
                    let values: Vec<_> = state.clone().into_iter().collect();
                    let running: Vec<String> = (seen + 1..xid).map(|xid| xid.to_string()).collect();
                    let visible = format!("{}:{xid}:{}", seen + 1, running.join(","));
                    fences += 1;
                    let (mut offered, merged) =
                        runtime.block_on(offer(&schema, &fences.to_string(), &values, &visible));
                    offered.check = Some(Wanted {
                        number: fences,
                        purpose: lockstep_core::source::Purpose::Compare,
                        keys: keys.clone(),
                        changed_after: Vec::new(),
                        only_absent: false,
                        whole: true,
                    });
                    window.offer(offered);
                    answers.push(merged);
                    stream.begin(commit, xid).message(FENCE, &fences.to_string());
                }
                Step::Stream => {
                    let wrong = pass(&mut window, stream.batch(None), &mut copy);
                    prop_assert_eq!(wrong, Vec::<String>::new());
                    prop_assert_eq!(&copy, &database);
                    continue;
                }
            }
            states.push_back((xid, database.clone()));
            xid += 1;
        }
        for mut answer in answers {
            let Ok(Merged::Checked(checked)) = answer.try_recv() else {
                return Err(TestCaseError::fail("a check was not answered"));
            };
            let mut all = [checked.keys, checked.unsteady].concat();
            all.sort_unstable();
            prop_assert_eq!(&all, &keys);
        }
    }
}
