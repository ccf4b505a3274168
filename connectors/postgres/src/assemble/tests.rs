use lockstep_core::position::SourceIdentity;

use super::*;

fn assembler() -> Assembler {
    let identity = SourceIdentity {
        system: 1,
        timeline: 1,
        incarnation: 0,
        database: "d".into(),
    };
    Assembler::new(
        Arc::new(SourceInfo {
            name: "s".into(),
            identity,
        }),
        Lsn(50),
    )
}

/// Payloads laid out in one block, and where each begins and ends.
fn block(payloads: &[Vec<u8>]) -> (Vec<u8>, Vec<(usize, usize)>) {
    let mut bytes = Vec::new();
    let places = payloads
        .iter()
        .map(|payload| {
            let start = bytes.len();
            bytes.extend_from_slice(payload);
            (start, bytes.len())
        })
        .collect();
    (bytes, places)
}

fn begin(commit: u64) -> Vec<u8> {
    [
        &b"B"[..],
        &commit.to_be_bytes(),
        &0i64.to_be_bytes(),
        &7u32.to_be_bytes(),
    ]
    .concat()
}

fn commit(commit: u64, end: u64) -> Vec<u8> {
    [
        &b"C\0"[..],
        &commit.to_be_bytes(),
        &end.to_be_bytes(),
        &0i64.to_be_bytes(),
    ]
    .concat()
}

fn insert(value: &[u8]) -> Vec<u8> {
    let length = (value.len() as u32).to_be_bytes();
    [
        &b"I"[..],
        &5u32.to_be_bytes(),
        b"N",
        &1u16.to_be_bytes(),
        b"t",
        &length,
        value,
    ]
    .concat()
}

fn relation() -> Vec<u8> {
    let column = [
        &[1][..],
        b"id\0",
        &25u32.to_be_bytes(),
        &(-1i32).to_be_bytes(),
    ]
    .concat();
    [
        &b"R"[..],
        &5u32.to_be_bytes(),
        b"public\0t\0d",
        &1u16.to_be_bytes(),
        &column,
    ]
    .concat()
}

fn take_all(assembler: &mut Assembler, payloads: &[Vec<u8>]) -> Bytes {
    let (bytes, places) = block(payloads);
    for (start, end) in places {
        if let Step::Define(described) = assembler.take(&bytes, start, end, Lsn(60)).expect("valid")
        {
            let mut schema = TableSchema::message("s".into());
            schema.id = described.id.clone();
            schema.columns.truncate(1);
            schema.width = 1;
            assembler.define(described, Some(Arc::new(schema)));
        }
    }
    Bytes::from(bytes)
}

#[test]
fn a_transaction_cut_by_a_flush_keeps_its_head_and_says_nothing_early() {
    let mut assembler = assembler();
    let bytes = take_all(
        &mut assembler,
        &[begin(100), relation(), insert(b"a"), insert(b"b")],
    );
    let first = assembler.flush(bytes);
    assert_eq!((first.changes().len(), first.through), (2, None));
    assembler.keepalive(Lsn(500));
    let bytes = take_all(
        &mut assembler,
        &[
            insert(b"c"),
            commit(100, 110),
            begin(110),
            insert(b"d"),
            commit(110, 120),
        ],
    );
    let second = assembler.flush(bytes);
    assert_eq!(
        second.through,
        Some(Lsn(120)),
        "a keepalive inside a transaction says nothing"
    );
    let positions: Vec<_> = second
        .changes()
        .iter()
        .map(|change| second.position(change))
        .collect();
    assert_eq!((positions[0].commit, positions[0].ordinal), (Lsn(100), 3));
    assert_eq!((positions[1].commit, positions[1].ordinal), (Lsn(110), 1));
    assert_eq!(
        second.transaction(&second.changes()[1]).previous_commit,
        Some(Lsn(100))
    );
}

#[test]
fn keepalives_move_an_idle_source() {
    let mut assembler = assembler();
    assert!(assembler.progress().is_none());
    assembler.keepalive(Lsn(70));
    assert_eq!(assembler.progress().expect("news").through, Some(Lsn(70)));
    assert!(assembler.progress().is_none(), "said once");
    assembler.keepalive(Lsn(60));
    assert!(assembler.progress().is_none(), "never back");
}

#[test]
fn messages_out_of_order_are_errors() {
    for payloads in [
        vec![commit(1, 2)],
        vec![begin(1), begin(2)],
        vec![begin(1), commit(2, 3)],
        vec![begin(1), insert(b"before its relation")],
        vec![relation(), insert(b"outside")],
        vec![vec![b'S', 0, 0, 0, 1, 1]],
    ] {
        let mut assembler = assembler();
        let (bytes, places) = block(&payloads);
        let outcome: Result<Vec<Step>> = places
            .iter()
            .map(|&(start, end)| {
                let step = assembler.take(&bytes, start, end, Lsn(1))?;
                if let Step::Define(described) = &step {
                    let mut schema = TableSchema::message("s".into());
                    schema.width = 1;
                    assembler.define(described.clone(), Some(Arc::new(schema)));
                }
                Ok(step)
            })
            .collect();
        assert!(outcome.is_err(), "{payloads:?}");
    }
}

#[test]
fn an_abort_of_what_was_never_sent_is_passed_over() {
    let abort = vec![b'A', 0, 0, 0, 7, 0, 0, 0, 9];
    let mut assembler = assembler();
    let (bytes, places) = block(&[
        abort.clone(),
        begin(100),
        relation(),
        abort,
        commit(100, 110),
    ]);
    for (start, end) in places {
        assembler
            .take(&bytes, start, end, Lsn(1))
            .expect("taken in");
    }
    assert_eq!(assembler.through(), Lsn(110));
}

#[test]
fn tables_that_are_not_ours_are_dropped() {
    let mut assembler = assembler();
    let (bytes, places) = block(&[begin(100), relation(), insert(b"a"), commit(100, 110)]);
    for (start, end) in places {
        if let Step::Define(described) = assembler.take(&bytes, start, end, Lsn(1)).expect("valid")
        {
            assembler.define(described, None);
        }
    }
    assert!(!assembler.has_changes());
    assert_eq!(
        assembler.progress().expect("the position moves").through,
        Some(Lsn(110))
    );
}
