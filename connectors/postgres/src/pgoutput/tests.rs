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

/// Messages without rows, field by field after the byte table of the protocol; every field has a value of its own.
#[test]
fn every_message_without_rows() {
    let prepared = Prepared {
        prepare_lsn: 0x0102,
        end_lsn: 0x0304,
        prepare_time: 0x0506,
        xid: 0x0708,
        gid: b"g",
    };
    let (at, end, time, xid) = (
        "0000000000000102",
        "0000000000000304",
        "0000000000000506",
        "00000708",
    );
    let cases = [
        (
            format!("42 {at} {time} {xid}"),
            Message::Begin {
                commit_lsn: 0x0102,
                commit_time: 0x0506,
                xid: 0x0708,
            },
        ),
        (
            format!("43 00 {at} {end} {time}"),
            Message::Commit {
                commit_lsn: 0x0102,
                end_lsn: 0x0304,
                commit_time: 0x0506,
            },
        ),
        (
            format!("4f {at} 6100"),
            Message::Origin {
                lsn: 0x0102,
                name: b"a",
            },
        ),
        (
            "59 00004001 7300 6d00".to_owned(),
            Message::Type {
                oid: 0x4001,
                schema: b"s",
                name: b"m",
            },
        ),
        (
            format!("4d 00 {at} 7000 00000002 00ff"),
            Message::Logical {
                transactional: false,
                lsn: 0x0102,
                prefix: b"p",
                content: &[0, 255],
            },
        ),
        (
            format!("53 {xid} 01"),
            Message::StreamStart {
                xid: 0x0708,
                first: true,
            },
        ),
        (
            format!("53 {xid} 00"),
            Message::StreamStart {
                xid: 0x0708,
                first: false,
            },
        ),
        ("45".to_owned(), Message::StreamStop),
        (
            format!("63 {xid} 00 {at} {end} {time}"),
            Message::StreamCommit {
                xid: 0x0708,
                commit_lsn: 0x0102,
                end_lsn: 0x0304,
                commit_time: 0x0506,
            },
        ),
        (
            format!("62 {at} {end} {time} {xid} 6700"),
            Message::BeginPrepare(prepared),
        ),
        (
            format!("50 00 {at} {end} {time} {xid} 6700"),
            Message::Prepare(prepared),
        ),
        (
            format!("70 00 {at} {end} {time} {xid} 6700"),
            Message::StreamPrepare(prepared),
        ),
        (
            format!("4b 00 {at} {end} {time} {xid} 6700"),
            Message::CommitPrepared {
                commit_lsn: 0x0102,
                end_lsn: 0x0304,
                commit_time: 0x0506,
                xid: 0x0708,
                gid: b"g",
            },
        ),
        (
            format!("72 00 {at} {end} {time} 0000000000000908 {xid} 6700"),
            Message::RollbackPrepared {
                prepare_end_lsn: 0x0102,
                rollback_end_lsn: 0x0304,
                prepare_time: 0x0506,
                rollback_time: 0x0908,
                xid: 0x0708,
                gid: b"g",
            },
        ),
    ];
    for (hex, expected) in cases {
        let payload = bytes(&hex.replace(' ', ""));
        assert_eq!(plain(&payload), expected, "{hex}");
        for cut in 0..payload.len() {
            assert!(
                decode(&payload[..cut], Context::default()).is_err(),
                "{hex} cut at {cut}"
            );
        }
        let longer = [&payload[..], &[0]].concat();
        assert!(
            decode(&longer, Context::default()).is_err(),
            "{hex} and more"
        );
    }
}

/// Every form of a row message, as it is and with the xid of a streamed piece in front.
#[test]
fn every_message_with_rows() {
    // NULL, unchanged, text `x`, binary 00 ff.
    let (row, key) = (
        "0004 6e 75 7400000001 78 6200000002 00ff",
        "0001 7400000001 31",
    );
    let row_values = [
        Value::Null,
        Value::Unchanged,
        Value::Text(b"x"),
        Value::Binary(&[0, 255]),
    ];
    let key_values = [Value::Text(b"1")];
    let values = |tuple: &Tuple<'_>, expected: &[Value<'_>]| {
        assert_eq!(tuple.values().collect::<Vec<_>>(), expected);
    };
    let streamed = Context {
        in_stream: true,
        parallel: false,
    };
    let cases = [
        ("49", format!("4e {row}")),
        ("55", format!("4e {row}")),
        ("55", format!("4b {key} 4e {row}")),
        ("55", format!("4f {key} 4e {row}")),
        ("44", format!("4b {key}")),
        ("44", format!("4f {key}")),
    ];
    for (tag, rest) in cases {
        let as_it_is = bytes(&format!("{tag} 00000007 {rest}").replace(' ', ""));
        let in_a_piece = bytes(&format!("{tag} 00000063 00000007 {rest}").replace(' ', ""));
        let outside = decode(&as_it_is, Context::default()).expect("valid");
        let inside = decode(&in_a_piece, streamed).expect("valid");
        assert_eq!(inside, (outside.0, Some(0x63)), "{tag} {rest}");
        assert_eq!(outside.1, None);
        match outside.0 {
            Message::Insert { relation: 7, new } => values(&new, &row_values),
            Message::Update {
                relation: 7,
                old,
                new,
            } => {
                match old {
                    Some(Old::Key(old)) if rest.starts_with("4b") => values(&old, &key_values),
                    Some(Old::Row(old)) if rest.starts_with("4f") => values(&old, &key_values),
                    None if rest.starts_with("4e") => {}
                    other => panic!("{rest}: {other:?}"),
                }
                values(&new, &row_values);
            }
            Message::Delete { relation: 7, old } => match old {
                Old::Key(old) if rest.starts_with("4b") => values(&old, &key_values),
                Old::Row(old) if rest.starts_with("4f") => values(&old, &key_values),
                other => panic!("{rest}: {other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }
    for (tag, rest) in [
        ("52", "00000007 7300 7400 66 0001 01 6900 00000017 ffffffff"),
        ("59", "00000007 7300 6d00"),
        ("54", "00000001 01 00000007"),
        ("4d", "01 0000000000000102 7000 00000000"),
    ] {
        let as_it_is = bytes(&format!("{tag} {rest}").replace(' ', ""));
        let in_a_piece = bytes(&format!("{tag} 00000063 {rest}").replace(' ', ""));
        let inside = decode(&in_a_piece, streamed).expect("valid");
        assert_eq!(inside, (plain(&as_it_is), Some(0x63)), "{tag} {rest}");
    }
}

proptest! {
    /// Whatever the bytes, decoding ends with a message or an error, never with a panic.
    #[test]
    fn any_bytes(payload in proptest::collection::vec(any::<u8>(), 0..200), in_stream: bool, parallel: bool) {
        walk(&payload, Context { in_stream, parallel });
    }

    /// Cutting or bending a valid message never panics either.
    #[test]
    fn bent_messages(cut in 0usize..60, at in 0usize..60, bit in 0u8..8, in_stream: bool, parallel: bool) {
        for golden in [
            "52000060507075626c69630074006400020169640000000017ffffffff00760000000019ffffffff",
            "55000060504b00027400000001316e4e00027400000001326e",
            "44000060504f0003740000000131620000000231326e",
            "5400000002010000605000006051",
            "4d010000000012b9010867747800000000024731",
            "4b000000000012b904680000000012b904b0000303d9e95c817d0000250e3133313037375f41513d3d5f41673d3d00",
        ] {
            let mut payload = bytes(golden);
            let length = payload.len();
            payload[at % length] ^= 1 << bit;
            payload.truncate(length - cut % length);
            walk(&payload, Context { in_stream, parallel });
        }
    }
}
