use lockstep_core::batch::{Batch, CellRef, OldImage, Op, Phase};
use serde_json::Value as Json;

use super::*;
use crate::testing::{Maker, Value, array, base, table, typed};

/// A record with its parts as text.
#[derive(Debug, PartialEq, Eq)]
struct Sent {
    op: Op,
    key: Option<String>,
    value: Option<String>,
    headers: Vec<(String, String)>,
}

fn records(format: Format, batch: &Batch) -> Vec<Sent> {
    let mut encoder = Encoder::new(format);
    let mut sent = Vec::new();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    for change in batch.changes() {
        encoder
            .encode(batch, change, &mut |record| {
                sent.push(Sent {
                    op: record.op,
                    key: record.key.map(text),
                    value: record.value.map(text),
                    headers: record
                        .headers
                        .iter()
                        .map(|(name, value)| (name.to_owned(), text(value)))
                        .collect(),
                });
                Ok(())
            })
            .expect("encodes");
    }
    sent
}

/// Replaces the record's own times, which come from the clock, after checking that they agree.
fn without_clock(value: &str) -> String {
    let at = value.rfind(",\"ts_ms\":").expect("has a clock");
    let times: Json = serde_json::from_str(&format!("{{{}", &value[at + 1..])).expect("JSON");
    let nanos = times["ts_ns"].as_i64().expect("a number");
    assert_eq!(times["ts_us"], nanos / 1000);
    assert_eq!(times["ts_ms"], nanos / 1_000_000);
    assert!(nanos > 1_700_000_000_000_000_000);
    format!("{}…", &value[..at])
}

fn customers() -> Arc<TableSchema> {
    table(
        "customers",
        &[
            ("id", base(23, "int4")),
            ("first_name", base(25, "text")),
            ("last_name", base(25, "text")),
            ("active", base(16, "bool")),
            ("created_at", base(1184, "timestamptz")),
        ],
        1,
    )
}

const ANN: [Value<'_>; 5] = [
    Value::Text("1"),
    Value::Text("Ann"),
    Value::Null,
    Value::Text("t"),
    Value::Text("2024-01-01 00:00:00+00"),
];

#[test]
fn a_row_of_the_initial_copy_reads_as_debeziums() {
    let mut maker = Maker::new(100);
    maker.push(Op::Read, &customers(), None, Some(&ANN));
    let sent = records(Format::default(), &maker.batch(Phase::Snapshot));
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].key.as_deref(), Some(r#"{"id":1}"#));
    let value = sent[0].value.as_deref().expect("a value");
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        without_clock(value),
        format!(
            r#"{{"before":null,"after":{{"id":1,"first_name":"Ann","last_name":null,"active":true,"created_at":"2024-01-01T00:00:00.000000Z"}},"source":{{"version":"lockstep-{version}","connector":"postgresql","name":"orders","ts_ms":1795342720581,"snapshot":"true","db":"shop","sequence":"[null,\"29672896\"]","ts_us":1795342720581473,"ts_ns":1795342720581473000,"schema":"public","table":"customers","txId":801,"lsn":29672896,"xmin":null,"origin":null,"origin_lsn":null}},"transaction":null,"op":"r"…"#
        )
    );
    assert_eq!(
        sent[0].headers,
        [
            (
                "lockstep.id".to_owned(),
                "7000000000000000001/1/shop/0000000000000064/1".to_owned()
            ),
            ("lockstep.source".to_owned(), "orders".to_owned()),
        ]
    );
}

#[test]
fn the_header_is_the_sources_change_id() {
    let mut maker = Maker::new(0x16_B374_D848);
    maker.push(Op::Insert, &customers(), None, Some(&ANN));
    maker.push(Op::Insert, &customers(), None, Some(&ANN));
    let batch = maker.batch(Phase::Stream);
    for (sent, change) in records(Format::Flat, &batch).iter().zip(batch.changes()) {
        assert_eq!(
            sent.headers[0].1,
            batch.source.change_id(batch.position(change))
        );
    }
}

#[test]
fn the_sequence_names_the_commit_before() {
    let mut maker = Maker::new(100);
    maker.begin(200, Some(29_673_536));
    maker.push(Op::Insert, &customers(), None, Some(&ANN));
    let sent = records(Format::default(), &maker.batch(Phase::Stream));
    let value: Json =
        serde_json::from_str(sent[0].value.as_deref().expect("a value")).expect("JSON");
    assert_eq!(value["source"]["sequence"], r#"["29673536","29672896"]"#);
    assert_eq!(value["source"]["snapshot"], "false");
    assert_eq!(value["op"], "c");
}

#[test]
fn updates_show_the_old_row_and_placeholders() {
    let schema = table(
        "t",
        &[
            ("id", base(23, "int4")),
            ("note", base(25, "text")),
            ("list", array(base(20, "int8"))),
        ],
        1,
    );
    let mut maker = Maker::new(100);
    maker.push(
        Op::Update,
        &schema,
        None,
        Some(&["1".into(), Value::Unchanged, "{1}".into()]),
    );
    let old = ["1".into(), "a".into(), "{}".into()];
    maker.push(
        Op::Update,
        &schema,
        Some((OldImage::Full, &old)),
        Some(&["1".into(), "b".into(), "{1}".into()]),
    );
    let batch = maker.batch(Phase::Stream);
    let values: Vec<Json> = records(Format::default(), &batch)
        .iter()
        .map(|sent| serde_json::from_str(sent.value.as_deref().expect("a value")).expect("JSON"))
        .collect();
    assert_eq!(values[0]["before"], Json::Null);
    assert_eq!(values[0]["after"]["note"], "__debezium_unavailable_value");
    assert_eq!(values[1]["before"]["note"], "a");
    assert_eq!(values[1]["after"]["note"], "b");

    let flat = records(Format::Flat, &batch);
    assert_eq!(
        flat[0].value.as_deref(),
        Some(
            r#"{"op":"u","source":"orders","schema":"public","table":"t","commit_lsn":"0000000000000064","ordinal":1,"xid":801,"ts":"2026-11-22T10:18:40.581473Z","key":{"id":1},"row":{"id":1,"list":[1]},"unchanged":["note"]}"#
        )
    );
    assert_eq!(
        flat[1].value.as_deref(),
        Some(
            r#"{"op":"u","source":"orders","schema":"public","table":"t","commit_lsn":"0000000000000064","ordinal":2,"xid":801,"ts":"2026-11-22T10:18:40.581473Z","key":{"id":1},"row":{"id":1,"note":"b","list":[1]},"old":{"id":1,"note":"a","list":[]}}"#
        )
    );
}

#[test]
fn a_delete_is_the_event_and_a_tombstone() {
    let mut maker = Maker::new(100);
    let old = [
        "33".into(),
        Value::Null,
        Value::Null,
        Value::Null,
        Value::Null,
    ];
    maker.push(Op::Delete, &customers(), Some((OldImage::Key, &old)), None);
    let batch = maker.batch(Phase::Stream);
    let sent = records(Format::default(), &batch);
    assert_eq!(sent.len(), 2);
    let value = sent[0].value.as_deref().expect("a value");
    assert!(value.starts_with(r#"{"before":{"id":33,"first_name":null,"last_name":null,"active":null,"created_at":null},"after":null,"#), "{value}");
    assert!(without_clock(value).ends_with(r#""op":"d"…"#), "{value}");
    for sent in &sent {
        assert_eq!(sent.key.as_deref(), Some(r#"{"id":33}"#));
        assert_eq!(sent.op, Op::Delete);
    }
    assert_eq!(sent[1].value, None);

    let flat = records(Format::Flat, &batch);
    assert_eq!(
        flat[0].value.as_deref(),
        Some(
            r#"{"op":"d","source":"orders","schema":"public","table":"customers","commit_lsn":"0000000000000064","ordinal":1,"xid":801,"ts":"2026-11-22T10:18:40.581473Z","key":{"id":33}}"#
        )
    );
    assert_eq!(flat[1].value, None);
}

#[test]
fn a_key_change_is_delete_tombstone_create() {
    let mut maker = Maker::new(100);
    let old = [
        "3".into(),
        Value::Null,
        Value::Null,
        Value::Null,
        Value::Null,
    ];
    let mut new = ANN;
    new[0] = "33".into();
    maker.push(
        Op::Update,
        &customers(),
        Some((OldImage::Key, &old)),
        Some(&new),
    );
    let batch = maker.batch(Phase::Stream);
    let sent = records(Format::default(), &batch);
    let link = |sent: &Sent| sent.headers.last().cloned().expect("a link");
    let shape: Vec<_> = sent
        .iter()
        .map(|sent| {
            (
                sent.op,
                sent.key.as_deref(),
                sent.value.is_some(),
                link(sent),
            )
        })
        .collect();
    let new_key = || ("__debezium.newkey".to_owned(), r#"{"id":33}"#.to_owned());
    let old_key = || ("__debezium.oldkey".to_owned(), r#"{"id":3}"#.to_owned());
    assert_eq!(
        shape,
        [
            (Op::Delete, Some(r#"{"id":3}"#), true, new_key()),
            (Op::Delete, Some(r#"{"id":3}"#), false, new_key()),
            (Op::Insert, Some(r#"{"id":33}"#), true, old_key()),
        ]
    );
    let create = sent[2].value.as_deref().expect("a value");
    assert!(
        create.starts_with(r#"{"before":null,"after":{"id":33,"#)
            && without_clock(create).ends_with(r#""op":"c"…"#),
        "{create}"
    );

    let flat = records(Format::Flat, &batch);
    assert!(flat.iter().all(|sent| sent.headers.len() == 2));
    let values: Vec<Json> = [0, 2]
        .map(|index: usize| {
            serde_json::from_str(flat[index].value.as_deref().expect("a value")).expect("JSON")
        })
        .into();
    assert_eq!(
        (&values[0]["op"], &values[0]["new_key"]["id"]),
        (&"d".into(), &33.into())
    );
    assert_eq!(
        (&values[1]["op"], &values[1]["old_key"]["id"]),
        (&"c".into(), &3.into())
    );
}

#[test]
fn an_update_whose_key_stays_is_an_update() {
    let mut maker = Maker::new(100);
    maker.push(
        Op::Update,
        &customers(),
        Some((OldImage::Full, &ANN)),
        Some(&ANN),
    );
    // The key columns are not part of the replica identity index.
    let old = [
        Value::Null,
        "Ann".into(),
        Value::Null,
        Value::Null,
        Value::Null,
    ];
    maker.push(
        Op::Update,
        &customers(),
        Some((OldImage::Key, &old)),
        Some(&ANN),
    );
    let sent = records(Format::default(), &maker.batch(Phase::Stream));
    assert_eq!(sent.len(), 2);
    assert!(sent.iter().all(|sent| sent.op == Op::Update));
}

#[test]
fn truncate_and_message() {
    let mut maker = Maker::new(100);
    maker.push(Op::Truncate, &customers(), None, None);
    let message = Arc::new(TableSchema::message("orders".into()));
    let cells = ["my-prefix".into(), Value::Bytes(b"hello\xff")];
    maker.push(Op::Message, &message, None, Some(&cells));
    let batch = maker.batch(Phase::Stream);
    let sent = records(Format::default(), &batch);
    assert_eq!(sent[0].key, None);
    let value = sent[0].value.as_deref().expect("a value");
    assert!(
        value.starts_with(r#"{"before":null,"after":null,"source":{"#),
        "{value}"
    );
    assert!(without_clock(value).ends_with(r#""op":"t"…"#), "{value}");
    assert_eq!(sent[1].key.as_deref(), Some(r#"{"prefix":"my-prefix"}"#));
    let value = sent[1].value.as_deref().expect("a value");
    assert!(value.starts_with(r#"{"op":"m","ts_ms":"#), "{value}");
    assert!(
        value.ends_with(
            r#","transaction":null,"message":{"prefix":"my-prefix","content":"aGVsbG//"}}"#
        ),
        "{value}"
    );
    assert!(
        value.contains(r#""schema":"","table":"","txId":801"#),
        "{value}"
    );

    let flat = records(Format::Flat, &batch);
    assert!(
        flat[0]
            .value
            .as_deref()
            .expect("a value")
            .ends_with(r#""key":null}"#)
    );
    assert!(
        flat[1]
            .value
            .as_deref()
            .expect("a value")
            .ends_with(r#""message":{"prefix":"my-prefix","content":"aGVsbG//"}}"#)
    );
}

#[test]
fn tables_without_a_key_have_none_and_no_tombstones() {
    let schema = table("log", &[("line", base(25, "text"))], 0);
    let mut maker = Maker::new(100);
    maker.push(Op::Insert, &schema, None, Some(&["a".into()]));
    maker.push(
        Op::Delete,
        &schema,
        Some((OldImage::Full, &["a".into()])),
        None,
    );
    let batch = maker.batch(Phase::Stream);
    for format in [Format::default(), Format::Flat] {
        let sent = records(format, &batch);
        assert_eq!(sent.len(), 2);
        assert!(
            sent.iter()
                .all(|sent| sent.key.is_none() && sent.value.is_some())
        );
    }
}

#[test]
fn duplicates_are_marked() {
    let mut maker = Maker::new(100);
    maker.push(Op::Insert, &customers(), None, Some(&ANN));
    let mut rewrite = maker.batch(Phase::Stream).rewrite();
    rewrite.set_duplicate(0);
    let batch = rewrite.finish();
    let sent = records(Format::default(), &batch);
    assert_eq!(
        sent[0].headers[2],
        ("lockstep.duplicate".to_owned(), "true".to_owned())
    );
    let flat = records(Format::Flat, &batch);
    assert!(
        flat[0]
            .value
            .as_deref()
            .expect("a value")
            .ends_with(r#","duplicate":true}"#)
    );
}

#[test]
fn columns_without_a_form_are_left_out_and_named() {
    let schema = table(
        "t",
        &[
            ("a", base(628, "line")),
            ("b", base(23, "int4")),
            ("c", base(628, "line")),
        ],
        0,
    );
    assert_eq!(Format::default().omitted(&schema), ["a", "c"]);
    assert!(Format::Flat.omitted(&schema).is_empty());
    let mut maker = Maker::new(100);
    maker.push(
        Op::Insert,
        &schema,
        None,
        Some(&["{1,1,1}".into(), "2".into(), Value::Null]),
    );
    let sent = records(Format::default(), &maker.batch(Phase::Stream));
    assert!(
        sent[0]
            .value
            .as_deref()
            .expect("a value")
            .contains(r#""after":{"b":2},"#)
    );
}

#[test]
fn a_value_its_type_cannot_have_is_refused_by_name() {
    let mut maker = Maker::new(100);
    maker.push(
        Op::Insert,
        &customers(),
        None,
        Some(&[
            "x".into(),
            Value::Null,
            Value::Null,
            Value::Null,
            Value::Null,
        ]),
    );
    maker.push(
        Op::Insert,
        &customers(),
        None,
        Some(&[
            "1".into(),
            Value::Bytes(b"\xff"),
            Value::Null,
            Value::Null,
            Value::Null,
        ]),
    );
    maker.push(
        Op::Insert,
        &customers(),
        None,
        Some(&[
            "1".into(),
            Value::Null,
            Value::Null,
            Value::Binary(&[1]),
            Value::Null,
        ]),
    );
    maker.push(
        Op::Insert,
        &customers(),
        None,
        Some(&[
            Value::Null,
            Value::Null,
            Value::Null,
            Value::Null,
            Value::Null,
        ]),
    );
    let batch = maker.batch(Phase::Stream);
    let mut encoder = Encoder::new(Format::default());
    let errors: Vec<String> = batch
        .changes()
        .iter()
        .map(|change| {
            encoder
                .encode(&batch, change, &mut |_| panic!("nothing to send"))
                .expect_err("refused")
                .to_string()
        })
        .collect();
    for (error, (column, code)) in errors.iter().zip([
        ("id", "LS009"),
        ("first_name", "LS009"),
        ("active", "LS010"),
        ("id", "LS009"),
    ]) {
        assert!(
            error.starts_with(code)
                && error.contains("public.customers")
                && error.contains(&format!("column {column}")),
            "{error}"
        );
    }
}

#[test]
fn formats_are_read_by_name() {
    let format = |text: &str| serde_json::from_str::<Format>(text);
    assert_eq!(format("\"debezium\"").expect("known"), Format::default());
    assert_eq!(format("\"flat\"").expect("known"), Format::Flat);
    assert!(
        format("\"avro\"")
            .expect_err("unknown")
            .to_string()
            .contains("debezium")
    );
    let decimals: Decimals = serde_json::from_str("\"precise\"").expect("known");
    assert_eq!(
        Format::default()
            .with_decimals(decimals)
            .with_decimals(DEFAULT_DECIMALS),
        Format::default()
    );
    assert_ne!(Format::default().with_decimals(decimals), Format::default());
}

#[test]
fn keys_as_text_and_as_json() {
    use crate::key::{KeyJson, key_text};
    use crate::row::RowJson;
    let mut schema = Arc::unwrap_or_clone(table(
        "t",
        &[
            ("a", base(23, "int4")),
            ("b", base(25, "text")),
            ("c", typed(1114, "timestamp", 3)),
        ],
        0,
    ));
    schema.key = vec![1, 0];
    let schema = Arc::new(schema);
    let mut maker = Maker::new(100);
    maker.push(
        Op::Insert,
        &schema,
        None,
        Some(&["1".into(), "k:%é".into(), Value::Unchanged]),
    );
    maker.push(
        Op::Insert,
        &schema,
        None,
        Some(&["1".into(), Value::Null, Value::Null]),
    );
    let batch = maker.batch(Phase::Stream);
    let row = batch.new_row(&batch.changes()[0]).expect("a row");
    let mut text = String::new();
    key_text(&schema, row, &mut text).expect("a key");
    assert_eq!(text, "k%3A%25é:1");
    let mut json = Vec::new();
    assert!(KeyJson::new(&schema).write(row, &mut json).expect("a key"));
    assert_eq!(String::from_utf8_lossy(&json), r#"{"b":"k:%é","a":1}"#);

    let (mut out, mut missing) = (Vec::new(), Vec::new());
    let natural = RowJson::new(&schema);
    natural.write(row, &mut out, &mut missing).expect("a row");
    assert_eq!(
        (String::from_utf8_lossy(&out).as_ref(), &missing[..]),
        (r#"{"a":1,"b":"k:%é"}"#, &[2][..])
    );
    assert!(
        natural
            .write_value(2, CellRef::Unchanged, &mut out)
            .is_err()
    );
    assert!(
        !natural
            .write_text(2, CellRef::Null, &mut out)
            .expect("nothing")
    );

    let without = batch.new_row(&batch.changes()[1]).expect("a row");
    let error = key_text(&schema, without, &mut text).expect_err("no key value");
    assert!(error.to_string().contains("column b"), "{error}");
    assert!(KeyJson::new(&schema).write(without, &mut json).is_err());
}

#[test]
fn a_cloud_event_has_flat_as_its_data() {
    let old: [Value<'_>; 5] = [
        Value::Text("7"),
        Value::Null,
        Value::Null,
        Value::Null,
        Value::Null,
    ];
    let mut maker = Maker::new(100);
    maker
        .push(
            Op::Update,
            &customers(),
            Some((OldImage::Key, &old)),
            Some(&ANN),
        )
        .push(
            Op::Message,
            &Arc::new(TableSchema::message("orders".into())),
            None,
            Some(&["p".into(), "c".into()]),
        );
    let batch = maker.batch(Phase::Stream);
    let flat = records(Format::Flat, &batch);
    let structured = records(Format::CloudEvents(Content::Structured), &batch);
    let binary = records(Format::CloudEvents(Content::Binary), &batch);
    assert_eq!((flat.len(), structured.len(), binary.len()), (4, 4, 4));
    let header = |sent: &Sent, name: &str| {
        let found = sent.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.clone())
    };
    let mut kinds = Vec::new();
    for ((flat, structured), binary) in flat.iter().zip(&structured).zip(&binary) {
        assert_eq!((&flat.key, &flat.value), (&binary.key, &binary.value));
        let Some(data) = &flat.value else {
            assert_eq!(flat, structured, "a tombstone");
            continue;
        };
        let event: Json =
            serde_json::from_str(structured.value.as_deref().expect("a value")).expect("JSON");
        let data: Json = serde_json::from_str(data).expect("JSON");
        assert_eq!(event["data"], data);
        let content = header(structured, "content-type");
        assert_eq!(
            content.as_deref(),
            Some("application/cloudevents+json; charset=UTF-8")
        );
        assert_eq!(
            header(binary, "content-type").as_deref(),
            Some("application/json")
        );
        for name in ["specversion", "id", "source", "type", "time"] {
            let told = event[name].as_str().expect(name);
            assert_eq!(header(binary, &format!("ce_{name}")).as_deref(), Some(told));
            assert!(!told.is_empty());
        }
        assert_eq!(event["time"], data["ts"]);
        let id = header(flat, "lockstep.id").expect("an id");
        assert!(
            event["id"]
                .as_str()
                .expect("an id")
                .starts_with(&format!("{id}."))
        );
        kinds.push((
            event["type"].as_str().expect("a type").to_owned(),
            event["subject"].as_str().map(str::to_owned),
        ));
    }
    let subject = || Some("public.customers".to_owned());
    assert_eq!(
        kinds,
        [
            ("lockstep.row.deleted".to_owned(), subject()),
            ("lockstep.row.created".to_owned(), subject()),
            ("lockstep.message".to_owned(), None),
        ]
    );
}

#[test]
fn an_event_of_an_outbox_is_what_was_written() {
    let origin = table(
        "outbox",
        &[
            ("id", base(25, "text")),
            ("aggregateid", base(25, "text")),
            ("payload", base(17, "bytea")),
            ("type", base(25, "text")),
        ],
        1,
    );
    let columns = origin.columns.clone();
    let schema = Arc::new(TableSchema::event(
        &origin,
        "outbox.event.order",
        columns,
        4,
    ));
    let mut maker = Maker::new(100);
    maker
        .push(
            Op::Event,
            &schema,
            None,
            Some(&["e1".into(), "17".into(), r"\x7b7d".into(), "Placed".into()]),
        )
        .push(
            Op::Event,
            &schema,
            None,
            Some(&["e2".into(), Value::Null, Value::Null, Value::Null]),
        );
    let batch = maker.batch(Phase::Stream);
    for format in [
        Format::default(),
        Format::Flat,
        Format::CloudEvents(Content::Structured),
    ] {
        let sent = records(format, &batch);
        let shown: Vec<_> = sent
            .iter()
            .map(|sent| {
                let own = sent
                    .headers
                    .iter()
                    .filter(|(name, _)| !name.starts_with("lockstep."));
                let own: Vec<_> = own.map(|(name, value)| format!("{name}={value}")).collect();
                (sent.key.as_deref(), sent.value.as_deref(), own.join(" "))
            })
            .collect();
        assert_eq!(
            shown,
            [
                (Some("17"), Some("{}"), "id=e1 type=Placed".to_owned()),
                (None, None, "id=e2".to_owned()),
            ],
            "{format:?}"
        );
    }
}
