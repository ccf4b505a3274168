//! Golden vectors captured from PostgreSQL 15, and properties.

use proptest::prelude::*;

use super::*;

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex"))
        .collect()
}

fn plain(payload: &[u8]) -> Message<'_> {
    decode(payload, Context::default()).expect("a message").0
}

#[test]
fn golden_relation() {
    let payload =
        bytes("52000060507075626c69630074006400020169640000000017ffffffff00760000000019ffffffff");
    let Message::Relation(relation) = plain(&payload) else {
        panic!("a Relation")
    };
    assert_eq!(
        (relation.oid, relation.schema, relation.name),
        (0x6050, &b"public"[..], &b"t"[..])
    );
    assert_eq!((relation.identity, relation.count), (b'd', 2));
    let columns: Vec<_> = relation.columns().collect();
    assert_eq!(
        columns[0],
        RelationColumn {
            identity: true,
            name: b"id",
            type_oid: 23,
            typmod: -1
        }
    );
    assert_eq!(
        columns[1],
        RelationColumn {
            identity: false,
            name: b"v",
            type_oid: 25,
            typmod: -1
        }
    );
}

#[test]
fn golden_key_change() {
    let payload = bytes("55000060504b00027400000001316e4e00027400000001326e");
    let Message::Update {
        relation,
        old: Some(Old::Key(old)),
        new,
    } = plain(&payload)
    else {
        panic!("an Update")
    };
    assert_eq!(relation, 0x6050);
    assert_eq!(
        old.values().collect::<Vec<_>>(),
        [Value::Text(b"1"), Value::Null]
    );
    assert_eq!(
        new.values().collect::<Vec<_>>(),
        [Value::Text(b"2"), Value::Null]
    );
}

#[test]
fn golden_logical_message() {
    let payload = bytes("4d010000000012b9010867747800000000024731");
    let expected = Message::Logical {
        transactional: true,
        lsn: 0x12b9_0108,
        prefix: b"gtx",
        content: b"G1",
    };
    assert_eq!(plain(&payload), expected);
}

#[test]
fn golden_two_phase() {
    let tail = "0000000012b903600000000012b90468000303d9e95c81540000250e3133313037375f41513d3d5f41673d3d00";
    let the_gid = &b"131077_AQ==_Ag=="[..];
    for head in ["62", "5000"] {
        let payload = bytes(&format!("{head}{tail}"));
        let (Message::BeginPrepare(prepared) | Message::Prepare(prepared)) = plain(&payload) else {
            panic!("a PREPARE")
        };
        let expected = Prepared {
            prepare_lsn: 0x12b9_0360,
            end_lsn: 0x12b9_0468,
            prepare_time: 0x0003_03d9_e95c_8154,
            xid: 0x250e,
            gid: the_gid,
        };
        assert_eq!(prepared, expected);
    }
    let payload = bytes(
        "4b000000000012b904680000000012b904b0000303d9e95c817d0000250e3133313037375f41513d3d5f41673d3d00",
    );
    let Message::CommitPrepared {
        commit_lsn,
        end_lsn,
        gid,
        ..
    } = plain(&payload)
    else {
        panic!("a K")
    };
    assert_eq!(
        (commit_lsn, end_lsn, gid),
        (0x12b9_0468, 0x12b9_04b0, the_gid)
    );
    let payload =
        bytes("72000000000012b906280000000012b906b0000303d9e95c81ca000303d9e95c860f0000250f7800");
    let Message::RollbackPrepared {
        prepare_end_lsn,
        rollback_end_lsn,
        xid,
        gid,
        ..
    } = plain(&payload)
    else {
        panic!("an r")
    };
    assert_eq!(
        (prepare_end_lsn, rollback_end_lsn, xid, gid),
        (0x12b9_0628, 0x12b9_06b0, 0x250f, &b"x"[..])
    );
}

#[test]
fn abort_is_longer_when_parallel() {
    let short = [&b"A"[..], &7u32.to_be_bytes(), &8u32.to_be_bytes()].concat();
    assert_eq!(
        plain(&short),
        Message::StreamAbort {
            xid: 7,
            subxid: 8,
            at: None
        }
    );
    let long = [&short[..], &9u64.to_be_bytes(), &10i64.to_be_bytes()].concat();
    let parallel = Context {
        in_stream: false,
        parallel: true,
    };
    let expected = Message::StreamAbort {
        xid: 7,
        subxid: 8,
        at: Some((9, 10)),
    };
    assert_eq!(decode(&long, parallel).expect("valid").0, expected);
    assert!(
        decode(&long, Context::default()).is_err(),
        "left-over bytes are an error"
    );
    assert!(decode(&short, parallel).is_err());
}

#[test]
fn rows_inside_a_streamed_piece_carry_their_xid() {
    let payload = [
        &b"I"[..],
        &99u32.to_be_bytes(),
        &5u32.to_be_bytes(),
        b"N",
        &[0, 1, b'u'],
    ]
    .concat();
    let (message, xid) = decode(
        &payload,
        Context {
            in_stream: true,
            parallel: false,
        },
    )
    .expect("valid");
    assert_eq!(xid, Some(99));
    let Message::Insert { relation: 5, new } = message else {
        panic!("an Insert")
    };
    assert_eq!(new.values().collect::<Vec<_>>(), [Value::Unchanged]);
}

#[test]
fn truncate_lists_its_relations() {
    let payload = [
        &b"T"[..],
        &2u32.to_be_bytes(),
        &[3],
        &10u32.to_be_bytes(),
        &11u32.to_be_bytes(),
    ]
    .concat();
    let Message::Truncate {
        relations,
        cascade: true,
        restart_identity: true,
    } = plain(&payload)
    else {
        panic!("a T")
    };
    assert_eq!(relations.iter().collect::<Vec<_>>(), [10, 11]);
}

proptest! {
    /// Whatever the bytes, decoding ends with a message or an error, never with a panic.
    #[test]
    fn any_bytes(payload in proptest::collection::vec(any::<u8>(), 0..200), in_stream: bool, parallel: bool) {
        if let Ok((message, _)) = decode(&payload, Context { in_stream, parallel }) {
            walk(message);
        }
    }

    /// Cutting or bending a valid message never panics either.
    #[test]
    fn bent_messages(cut in 0usize..60, at in 0usize..60, bit in 0u8..8) {
        for golden in [
            "52000060507075626c69630074006400020169640000000017ffffffff00760000000019ffffffff",
            "55000060504b00027400000001316e4e00027400000001326e",
            "4d010000000012b9010867747800000000024731",
        ] {
            let mut payload = bytes(golden);
            let length = payload.len();
            payload[at % length] ^= 1 << bit;
            payload.truncate(length - cut % length);
            if let Ok((message, _)) = decode(&payload, Context::default()) {
                walk(message);
            }
        }
    }
}

fn walk(message: Message<'_>) {
    match message {
        Message::Relation(relation) => {
            assert_eq!(relation.columns().count(), usize::from(relation.count))
        }
        Message::Insert { new, .. } => assert_eq!(new.values().count(), usize::from(new.count())),
        Message::Truncate { relations, .. } => assert!(relations.iter().count() < 100),
        _ => {}
    }
}
