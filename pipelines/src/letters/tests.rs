use bytes::Bytes;
use lockstep_core::batch::{BatchBuilder, Cell, CellRef, OldImage, Op, Phase, Transaction};
use lockstep_core::position::{Lsn, Position, SourceIdentity, SourceInfo};
use lockstep_core::schema::{Column, ColumnType, ReplicaIdentity, TableId, TableSchema, TypeKind};

use super::*;

const PLACE: &str = "sinks.cache";
const LIMITS: Limits = Limits {
    rows: 3,
    bytes: 1 << 20,
};

fn source() -> Arc<SourceInfo> {
    Arc::new(SourceInfo {
        name: "shop".into(),
        identity: SourceIdentity {
            system: 7,
            timeline: 1,
            incarnation: 0,
            database: "shop".into(),
        },
    })
}

fn table() -> Arc<TableSchema> {
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
        version: 1,
        columns: ["id", "a", "b", "c"]
            .into_iter()
            .enumerate()
            .map(column)
            .collect(),
        key: vec![0],
        identity: ReplicaIdentity::Default,
        width: 4,
    })
}

/// An UPDATE that moved row `from` to `to`, with a value of each kind.
fn change(phase: Phase, commit: u64, from: &str, to: &str) -> Batch {
    let (schema, mut builder) = (table(), BatchBuilder::new());
    builder.begin(Transaction {
        commit: Lsn(commit),
        commit_micros: 5,
        xid: 9,
        origin: Some("elsewhere".into()),
        previous_commit: Some(Lsn(8)),
        prepared: None,
        global: None,
    });
    let index = builder.schema(&schema);
    let mut block = Vec::new();
    let mut text = |bytes: &[u8]| {
        let at = block.len() as u32;
        block.extend_from_slice(bytes);
        (at, bytes.len() as u32)
    };
    let place = |(at, length)| Cell::text(at, length);
    let (old, new) = (place(text(from.as_bytes())), place(text(to.as_bytes())));
    let (wild, (at, length)) = (place(text(b"caf\xe9")), text(b"\x00\x01"));
    let cells = builder.cells();
    cells.extend([old, Cell::NULL, Cell::NULL, Cell::NULL]);
    cells.extend([new, wild, Cell::binary(at, length), Cell::UNCHANGED]);
    let old = Some((OldImage::Key, 0));
    builder.push(Op::Update, index, 3, Lsn(11), old, Some(4));
    builder.finish(source(), phase, None, Bytes::from(block))
}

fn letter(batch: &Batch) -> Letter {
    let message = "refused".to_owned();
    Letter::of(PLACE, "wrong_type", message, batch, &batch.changes()[0])
}

#[test]
fn a_letter_comes_back_as_the_change_it_was() {
    let before = change(Phase::Stream, 16, "1:%", "2");
    let text = serde_json::to_string(&letter(&before)).expect("JSON");
    let read: Letter = serde_json::from_str(&text).expect("a letter");
    assert_eq!(read.head.keys, ["1%3A%25", "2"]);
    let after = read.batch(&mut Schemas::default()).expect("readable");
    // It must not move the progress of whom it is written to again.
    assert_eq!(after.phase, Phase::Replay);
    assert_eq!(after.transactions(), before.transactions());
    let (was, is) = (&before.changes()[0], &after.changes()[0]);
    assert_eq!(before.position(was), after.position(is));
    assert_eq!(
        (is.op, is.old_image, is.lsn),
        (was.op, was.old_image, was.lsn)
    );
    let values = |batch: &Batch, row: Row<'_>| {
        let schema = batch.schema(&batch.changes()[0]);
        let cell = |column| match row.get(column) {
            CellRef::Null => "null".to_owned(),
            CellRef::Unchanged => "unchanged".to_owned(),
            CellRef::Text(bytes) => format!("text {bytes:?}"),
            CellRef::Binary(bytes) => format!("binary {bytes:?}"),
        };
        schema.columns.iter().map(cell).collect::<Vec<_>>()
    };
    for row in [Batch::old_row, Batch::new_row] {
        let (was, is) = (row(&before, was), row(&after, is));
        assert_eq!(
            values(&before, was.expect("a row")),
            values(&after, is.expect("a row"))
        );
    }
}

#[test]
fn what_was_kept_is_known_by_name_over_restarts_also_when_it_is_gone() {
    let folder = tempfile::tempdir().expect("a folder");
    let open = || Store::new(folder.path().join("letters"), LIMITS);
    let (first, second) = (
        change(Phase::Stream, 16, "1", "2"),
        change(Phase::Stream, 24, "3", "4"),
    );
    let store = open();
    assert!(!store.has(PLACE).expect("asked"));
    let kept = store
        .keep(&[letter(&first), letter(&second)])
        .expect("kept");
    assert_eq!(
        kept.iter().map(|one| (one.id, one.new)).collect::<Vec<_>>(),
        [(1, true), (2, true)]
    );
    store.persist().expect("safe");
    drop(store);

    let store = open();
    let again = store.keep(&[letter(&first)]).expect("kept");
    assert_eq!((again[0].id, again[0].new), (1, false), "kept once");
    let at = |commit| Position {
        commit: Lsn(commit),
        ordinal: 3,
    };
    let blocks = |store: &Store, key: &str, commit| {
        let (source, keys) = (source(), [key.to_owned()]);
        store
            .blocks(PLACE, &source.identity, "public.t", &keys, at(commit))
            .expect("asked")
    };
    // Both keys of a row that moved wait for it; earlier changes and other keys do not.
    assert!(blocks(&store, "1", 17) && blocks(&store, "2", 17));
    assert!(!blocks(&store, "1", 16) && !blocks(&store, "5", 99));
    store.remove(&[1]).expect("removed");
    assert!(!blocks(&store, "1", 17));
    drop(store);

    let store = open();
    let known = |batch: &Batch| {
        let change = &batch.changes()[0];
        store.knows(PLACE, batch, change).expect("asked")
    };
    assert!(known(&first) && known(&second));
    let identity = &source().identity;
    assert_eq!(store.horizon(PLACE, identity).expect("asked"), Some(at(24)));
    store.passed(PLACE, identity, at(20)).expect("noted");
    assert!(!known(&first), "the source does not go back there");
    assert!(known(&second), "it still lies aside");
    let third = change(Phase::Stream, 32, "5", "6");
    assert_eq!(
        store.keep(&[letter(&third)]).expect("kept")[0].id,
        3,
        "no number twice"
    );
}

#[test]
fn a_row_of_a_later_copy_takes_the_place_of_its_letter() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Store::new(folder.path().join("letters"), LIMITS);
    for (commit, attempts) in [(16, 1), (24, 2)] {
        let copied = change(Phase::Snapshot, commit, "1", "1");
        store.keep(&[letter(&copied)]).expect("kept");
        let heads = store.list().expect("listed");
        let [head] = &heads[..] else {
            panic!("{heads:?}");
        };
        assert_eq!(
            (head.position.commit, head.attempts),
            (Lsn(commit), attempts)
        );
        let read = store.get(head.id).expect("asked").expect("there");
        let batch = read.batch(&mut Schemas::default()).expect("readable");
        assert_eq!(batch.phase, Phase::Snapshot);
    }
}

#[test]
fn what_passes_is_noted_once_and_a_full_store_takes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Store::new(folder.path().join("letters"), LIMITS);
    let letters: Vec<_> = (1..=2_u64)
        .map(|n| {
            letter(&change(
                Phase::Stream,
                16 * n,
                &format!("{n}"),
                &format!("{n}"),
            ))
        })
        .collect();
    store.keep(&letters).expect("kept");
    for word in ["delete", "truncate"] {
        let passed = |head: &Head| head.keys.contains(&"1".to_owned()).then(|| word.to_owned());
        store.overtake(PLACE, passed).expect("noted");
    }
    let noted: Vec<_> = store.list().expect("listed");
    let noted: Vec<_> = noted.iter().map(|head| head.overtaken.as_deref()).collect();
    assert_eq!(noted, [Some("delete"), None], "the first is the reason");

    let more: Vec<_> = (3..=4_u64)
        .map(|n| letter(&change(Phase::Stream, 16 * n, "x", "x")))
        .collect();
    let error = store.keep(&more).expect_err("three at most");
    assert_eq!(error.kind(), ErrorKind::Storage);
    assert_eq!(store.counts().expect("counted")[PLACE], 2);
    store.keep(&more[..1]).expect("there is room for one");
}
