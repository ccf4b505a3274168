use super::*;
use crate::position::SourceIdentity;

fn batch() -> Batch {
    let schema = Arc::new(TableSchema::message("orders".into()));
    let source = Arc::new(SourceInfo {
        name: "orders".into(),
        identity: SourceIdentity {
            system: 1,
            timeline: 1,
            incarnation: 0,
            database: "orders".into(),
        },
    });
    let mut builder = BatchBuilder::new();
    let transaction = Transaction {
        commit: Lsn(10),
        commit_micros: 0,
        xid: 7,
        origin: None,
        previous_commit: None,
        prepared: None,
        global: None,
    };
    builder.begin(transaction);
    let index = builder.schema(&schema);
    for ordinal in 1..=2 {
        let start = builder.cells().len();
        builder.cells().extend([Cell::text(0, 2), Cell::text(2, 3)]);
        builder.push(Op::Insert, index, ordinal, Lsn(9), None, Some(start));
    }
    builder.finish(
        source,
        Phase::Stream,
        Some(Lsn(11)),
        Bytes::from_static(b"abcde"),
    )
}

#[test]
fn cells_resolve_to_the_block() {
    let batch = batch();
    let change = batch.changes()[1];
    let row = batch.new_row(&change).expect("insert has a new row");
    assert_eq!(
        row.get(&batch.schema(&change).columns[1]),
        CellRef::Text(b"cde")
    );
    assert_eq!(
        batch.position(&change),
        Position {
            commit: Lsn(10),
            ordinal: 2
        }
    );
    assert!(batch.old_row(&change).is_none());
}

#[test]
fn a_batch_that_was_put_away_comes_back_as_it_was() {
    let original = batch();
    let mut rewrite = original.rewrite();
    rewrite.edit_cell(0, 1, |_, out| {
        out.extend_from_slice(b"other");
        Edit::Text
    });
    let mut original = rewrite.finish();
    original.check = Some(7);
    let mut bytes = b"before".to_vec();
    let folded = original.fold(&mut bytes);
    let bytes = Bytes::from(bytes).slice(6..);
    let back = folded.unfold(&bytes).expect("as it was written");
    assert_eq!(back.changes(), original.changes());
    assert_eq!(
        (back.check, back.through, &back.source),
        (Some(7), original.through, &original.source)
    );
    for (change, other) in original.changes().iter().zip(back.changes()) {
        let (row, again) = (original.new_row(change), back.new_row(other));
        let (row, again) = (row.expect("a row"), again.expect("a row"));
        for column in &original.schema(change).columns {
            assert_eq!(row.get(column), again.get(column));
        }
    }
    assert!(folded.unfold(&bytes.slice(..bytes.len() - 1)).is_err());
    assert!(folded.unfold(&Bytes::new()).is_err());
}

#[test]
fn a_shared_row_is_edited_once() {
    let batch = batch();
    let head = batch.changes()[0];
    let twice = batch.with_changes(vec![head, head]);
    let mut rewrite = twice.rewrite();
    for change in 0..2 {
        rewrite.edit_cell(change, 0, |value, out| {
            out.extend_from_slice(value.text().expect("text"));
            out.push(b'!');
            Edit::Text
        });
        rewrite.edit_cell(change, 1, |_, _| Edit::Null);
    }
    let edited = rewrite.finish();
    for change in edited.changes() {
        let row = edited.new_row(change).expect("row");
        let columns = &edited.schema(change).columns;
        assert_eq!(row.get(&columns[0]), CellRef::Text(b"ab!"));
        assert_eq!(row.get(&columns[1]), CellRef::Null);
    }
}

#[test]
fn an_update_becomes_a_delete_of_its_own_key() {
    let batch = batch();
    let head = batch.changes()[0].into_delete();
    assert_eq!((head.op, head.old_image), (Op::Delete, OldImage::Key));
    let batch = batch.with_changes(vec![head]);
    assert!(batch.new_row(&head).is_none());
    assert!(batch.old_row(&head).is_some());
}

#[test]
fn a_rewrite_leaves_the_original_alone() {
    let batch = batch();
    let mut rewrite = batch.rewrite();
    rewrite.edit_cell(0, 1, |value, out| {
        out.extend(value.text().unwrap_or_default().repeat(2));
        Edit::Text
    });
    rewrite.retain(|index| index == 0);
    let masked = rewrite.finish();
    let column = &batch.schemas()[0].columns[1];
    assert_eq!(masked.changes().len(), 1);
    assert_eq!(
        masked
            .new_row(&masked.changes()[0])
            .expect("row")
            .get(column),
        CellRef::Text(b"cdecde")
    );
    assert_eq!(
        batch.new_row(&batch.changes()[0]).expect("row").get(column),
        CellRef::Text(b"cde")
    );
    let mut again = masked.rewrite();
    again.edit_cell(0, 0, |_, out| {
        out.push(b'x');
        Edit::Text
    });
    let again = again.finish();
    assert_eq!(
        again.new_row(&again.changes()[0]).expect("row").get(column),
        CellRef::Text(b"cdecde")
    );
}

#[test]
fn joined_batches_hold_what_each_had() {
    let plain = Arc::new(batch());
    let rewritten = |text: &'static str| {
        let mut rewrite = plain.rewrite();
        rewrite.edit_cell(1, 1, |_, out| {
            out.extend_from_slice(text.as_bytes());
            Edit::Text
        });
        Arc::new(rewrite.finish())
    };
    let mut foreign = batch();
    foreign.block = Bytes::from_static(b"ABCDE");
    let parts = [
        rewritten("one"),
        Arc::clone(&plain),
        rewritten("three"),
        Arc::new(foreign),
    ];
    let picked: Vec<_> = [(0, 1), (1, 0), (2, 1), (3, 1), (2, 0)]
        .map(|(part, change): (usize, usize)| (part, parts[part].changes()[change]))
        .into();
    let joined = Batch::join(&parts, &picked).expect("small").expect("some");
    let shown: Vec<_> = joined
        .changes()
        .iter()
        .map(|change| {
            let row = joined.new_row(change).expect("inserts");
            let text = |column: &Column| row.get(column).text().map(<[u8]>::to_vec);
            let columns = &joined.schema(change).columns;
            (
                joined.position(change).ordinal,
                text(&columns[0]).expect("a text"),
                text(&columns[1]).expect("a text"),
            )
        })
        .collect();
    let expected: [(u64, &[u8], &[u8]); 5] = [
        (2, b"ab", b"one"),
        (1, b"ab", b"cde"),
        (2, b"ab", b"three"),
        (2, b"AB", b"CDE"),
        (1, b"ab", b"cde"),
    ];
    let expected: Vec<_> = expected
        .map(|(ordinal, a, b)| (ordinal, a.to_vec(), b.to_vec()))
        .into();
    assert_eq!(shown, expected);
    assert_eq!(joined.through, plain.through);
    assert!(Batch::join(&[], &[]).expect("nothing").is_none());
}
