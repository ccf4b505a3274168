//! What is written says what JSON says, to a reader that is not ours.

use apache_avro::types::Value as Avro;
use apache_avro::{Schema, from_avro_datum};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lockstep_core::ErrorKind;
use lockstep_core::batch::{Batch, OldImage, Op, Phase};
use lockstep_core::schema::ColumnType;
use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::read::{Reader, schema_id};
use super::types::Defined;
use super::*;
use crate::envelope::{DebeziumOptions, Decimals, Encoder};
use crate::testing::{Maker, Value, array, base, table, typed};
use crate::value::{Bad, Mapping};

/// One value: what JSON has of it is what a reader of Avro has.
pub(crate) fn says_the_same(mapping: Mapping, ty: &ColumnType, text: &[u8], json: &str) {
    let shown = || {
        format!(
            "{} {:?} {mapping:?}",
            ty.name,
            String::from_utf8_lossy(text)
        )
    };
    let Some(typed) = types::of(mapping, ty, &mut Defined::new()) else {
        assert_eq!(json, "", "{}", shown());
        return;
    };
    let mut bytes = header(1).to_vec();
    match typed.form.write(text, &mut bytes) {
        Ok(()) => {}
        Err(Bad::Formless(_) | Bad::Malformed("an integer")) => return,
        Err(bad) => panic!("{}: {bad:?}", shown()),
    }
    // A number that no reader has.
    let Ok(expected) = serde_json::from_str::<Json>(json) else {
        return;
    };
    let format = match mapping {
        Mapping::Natural => Format::Flat,
        Mapping::Debezium(decimals) => Format::Debezium(DebeziumOptions { decimals }),
    };
    let schema = typed.schema.to_string();
    let reader = Reader::new(format, &schema).expect("a schema");
    let back = reader.json(&bytes).unwrap_or_else(|| panic!("{}", shown()));
    let back = String::from_utf8(back).expect("UTF-8");
    let has_floats = schema.contains("\"float\"") || schema.contains("\"double\"");
    if !has_floats {
        assert_eq!(back, json, "{}", shown());
    }
    let back: Json = serde_json::from_str(&back).expect("JSON");
    assert!(is_same(&back, &expected), "{}: {back}", shown());
    let theirs = decoded(&schema, &bytes);
    assert!(
        is_same(&as_json(&theirs, &expected), &expected),
        "{}: {theirs:?}",
        shown()
    );
}

fn decoded(schema: &str, bytes: &[u8]) -> Avro {
    let schema = Schema::parse_str(schema).unwrap_or_else(|error| panic!("{error}: {schema}"));
    let mut rest = &bytes[wire::HEADER..];
    let value = from_avro_datum(&schema, &mut rest, None).expect("of this schema");
    assert!(rest.is_empty(), "{} bytes too many", rest.len());
    value
}

/// What a value is in JSON. `like` tells a document, which is a string in Avro, and a map whose keys are no strings.
fn as_json(value: &Avro, like: &Json) -> Json {
    let number = |value: f64, word: &str| match value.is_finite() {
        true => json!(value),
        false => json!(word),
    };
    let word = |value: f64| match value {
        _ if value.is_nan() => "NaN",
        _ if value > 0.0 => "Infinity",
        _ => "-Infinity",
    };
    match value {
        Avro::Null => Json::Null,
        Avro::Boolean(value) => json!(value),
        Avro::Int(value) => json!(value),
        Avro::Long(value) => json!(value),
        Avro::Float(value) => number(f64::from(*value), word(f64::from(*value))),
        Avro::Double(value) => number(*value, word(*value)),
        Avro::Bytes(bytes) => json!(STANDARD.encode(bytes)),
        Avro::Decimal(decimal) => {
            let bytes = Vec::<u8>::try_from(decimal).expect("bytes");
            json!(STANDARD.encode(bytes))
        }
        Avro::String(text) if like.is_string() => json!(text),
        Avro::String(text) => serde_json::from_str(text).unwrap_or_else(|_| json!(text)),
        Avro::Union(_, value) => as_json(value, like),
        Avro::Array(items) => {
            let items = items.iter().enumerate();
            Json::Array(items.map(|(at, item)| as_json(item, &like[at])).collect())
        }
        Avro::Map(pairs) => {
            let pairs = pairs.iter();
            let pairs = pairs.map(|(name, value)| (name.clone(), as_json(value, &like[name])));
            Json::Object(pairs.collect())
        }
        Avro::Record(fields) if like.is_array() => {
            let fields = fields.iter().enumerate();
            Json::Array(
                fields
                    .map(|(at, (_, value))| as_json(value, &like[at]))
                    .collect(),
            )
        }
        Avro::Record(fields) => {
            let fields = fields.iter();
            let fields = fields.map(|(name, value)| (name.clone(), as_json(value, &like[name])));
            Json::Object(fields.collect())
        }
        other => panic!("{other:?}"),
    }
}

/// Numbers as far as a float has them; beyond that there is no number but infinity.
fn is_same(one: &Json, other: &Json) -> bool {
    match (one, other) {
        (Json::Number(one), Json::Number(other)) => {
            let (Some(one), Some(other)) = (one.as_f64(), other.as_f64()) else {
                return one == other;
            };
            one == other || (one - other).abs() <= 1e-6 * one.abs().max(1e-38)
        }
        (Json::String(word), Json::Number(number)) => {
            let most = f64::from(f32::MAX);
            word.ends_with("Infinity") && number.as_f64().is_none_or(|number| number.abs() > most)
        }
        // A document that is a text.
        (Json::String(one), Json::String(other)) if one != other => {
            serde_json::from_str::<String>(one).is_ok_and(|one| one == *other)
        }
        (Json::Array(one), Json::Array(other)) => {
            let mut pairs = one.iter().zip(other);
            one.len() == other.len() && pairs.all(|(one, other)| is_same(one, other))
        }
        (Json::Object(one), Json::Object(other)) => {
            let same = |(name, value)| other.get(name).is_some_and(|other| is_same(value, other));
            one.len() == other.len() && one.iter().all(same)
        }
        (one, other) => one == other,
    }
}

/// A record: key and value.
type Sent = (Option<Vec<u8>>, Option<Vec<u8>>);

fn sent(encoder: &mut Encoder, batch: &Batch) -> Result<Vec<Sent>> {
    let mut all = Vec::new();
    for schema in batch.schemas() {
        if encoder.unregistered(schema)?.is_some() {
            encoder.register(schema, Ids { key: 7, value: 8 });
        }
    }
    for change in batch.changes() {
        encoder.encode(batch, change, &mut |record| {
            let owned = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
            all.push((owned(record.key), owned(record.value)));
            Ok(())
        })?;
    }
    Ok(all)
}

const FORMATS: [Format; 2] = [
    Format::Debezium(DebeziumOptions {
        decimals: Decimals::Precise,
    }),
    Format::Flat,
];

/// What Avro has where JSON has nothing, left out of both; and the clock.
fn comparable(bytes: &[u8]) -> Json {
    let mut value: Json = serde_json::from_slice(bytes).expect("JSON");
    if let Json::Object(fields) = &mut value {
        let is_flat = fields.contains_key("ordinal");
        for clock in ["ts_ms", "ts_us", "ts_ns"] {
            fields.remove(clock);
        }
        if is_flat {
            let unchanged = fields.get("unchanged").cloned().unwrap_or_default();
            for image in ["row", "old"] {
                if let Some(Json::Object(image)) = fields.get_mut(image) {
                    for name in unchanged.as_array().into_iter().flatten() {
                        image.remove(name.as_str().expect("a name"));
                    }
                }
            }
            fields.retain(|_, value| {
                !value.is_null() && *value != json!([]) && *value != json!(false)
            });
        }
    }
    value
}

/// Every record of the batch says in Avro what it says in JSON.
fn check(batch: &Batch) {
    for format in FORMATS {
        let plain = sent(&mut Encoder::new(format), batch).expect("JSON");
        let ours = sent(&mut Encoder::avro(format).expect("has a form"), batch).expect("Avro");
        assert_eq!(plain.len(), ours.len());
        let schema = &batch.schemas()[0];
        let schemas = Schemas::of(format, schema).expect("fit");
        let schemas = schemas.expect("has schemas");
        for ((json_key, json_value), (key, value)) in plain.iter().zip(&ours) {
            let parts = [
                (json_key, key, schemas.key.as_ref(), 7),
                (json_value, value, Some(&schemas.value), 8),
            ];
            for (json, bytes, described, id) in parts {
                assert_eq!(json.is_some(), bytes.is_some());
                let (Some(json), Some(bytes), Some(described)) = (json, bytes, described) else {
                    continue;
                };
                assert_eq!(schema_id(bytes), Some(id));
                let reader = Reader::new(format, &described.text).expect("a schema");
                let back = reader.json(bytes).expect("reads back");
                let (back, expected) = (comparable(&back), comparable(json));
                assert_eq!(back, expected);
                let all: Json = serde_json::from_slice(json).expect("JSON");
                let theirs = as_json(&decoded(&described.text, bytes), &all).to_string();
                assert!(
                    is_same(&comparable(theirs.as_bytes()), &expected),
                    "{theirs}"
                );
            }
        }
    }
}

fn items() -> Arc<TableSchema> {
    let columns = [
        ("id", base(20, "int8")),
        ("note", base(25, "text")),
        ("price", typed(1700, "numeric", (10 << 16 | 2) + 4)),
        ("tags", array(base(25, "text"))),
        ("at", base(1114, "timestamp")),
        ("spot", base(600, "point")),
        ("other spot", base(600, "point")),
        ("any", base(1700, "numeric")),
    ];
    table("items", &columns, 1)
}

const ROW: [Value<'_>; 8] = [
    Value::Text("1"),
    Value::Text("ä \"x\""),
    Value::Text("12.50"),
    Value::Text("{a,NULL,\"b c\"}"),
    Value::Text("2024-02-29 13:51:30.123456"),
    Value::Text("(1,2)"),
    Value::Null,
    Value::Text("-0.001"),
];

#[test]
fn every_kind_of_change_says_what_json_says() {
    // Not the column with a space in its name, whose name another reader does not know.
    let columns: Vec<_> = items()
        .columns
        .iter()
        .map(|column| column.ty.clone())
        .collect();
    let names = ["id", "note", "price", "tags", "at", "spot", "spot2", "any"];
    let named: Vec<_> = names.into_iter().zip(columns).collect();
    let schema = table("items", &named, 1);
    let mut moved = ROW;
    moved[0] = Value::Text("2");
    let mut kept = ROW;
    kept[1] = Value::Unchanged;
    kept[3] = Value::Unchanged;
    let mut key = [Value::Null; 8];
    key[0] = Value::Text("1");
    let mut maker = Maker::new(100);
    maker.begin(200, Some(29_673_536));
    maker
        .push(Op::Insert, &schema, None, Some(&ROW))
        .push(Op::Update, &schema, None, Some(&kept))
        .push(
            Op::Update,
            &schema,
            Some((OldImage::Full, &ROW)),
            Some(&ROW),
        )
        .push(
            Op::Update,
            &schema,
            Some((OldImage::Key, &key)),
            Some(&moved),
        )
        .push(Op::Delete, &schema, Some((OldImage::Key, &key)), None)
        .push(Op::Delete, &schema, Some((OldImage::Full, &ROW)), None)
        .push(Op::Truncate, &schema, None, None);
    let batch = maker.batch(Phase::Stream);
    check(&batch);

    let keyless = table("items", &named, 0);
    let mut maker = Maker::new(100);
    maker.push(Op::Read, &keyless, None, Some(&ROW));
    check(&maker.batch(Phase::Snapshot));

    let message = Arc::new(TableSchema::message("orders".into()));
    let mut maker = Maker::new(100);
    let said = [Value::Text("audit \"x\""), Value::Bytes(b"\x00\xff")];
    maker.push(Op::Message, &message, None, Some(&said));
    check(&maker.batch(Phase::Stream));
}

#[test]
fn a_name_that_avro_does_not_know_comes_back_and_one_that_clashes_is_told() {
    let schema = items();
    let mut maker = Maker::new(100);
    maker.push(Op::Insert, &schema, None, Some(&ROW));
    let batch = maker.batch(Phase::Stream);
    for format in FORMATS {
        let schemas = Schemas::of(format, &schema).expect("fit").expect("some");
        assert!(schemas.value.text.contains(r#""name":"other_spot""#));
        let sent = sent(&mut Encoder::avro(format).expect("Avro"), &batch).expect("encodes");
        let reader = Reader::new(format, &schemas.value.text).expect("a schema");
        let back = reader.json(sent[0].1.as_ref().expect("a value"));
        let back = String::from_utf8(back.expect("reads back")).expect("UTF-8");
        assert!(back.contains(r#""other spot":null"#), "{back}");
    }
    let columns = [("a-b", base(23, "int4")), ("a b", base(23, "int4"))];
    let clashing = table("t", &columns, 1);
    let error = Schemas::of(Format::Flat, &clashing).expect_err("they clash");
    assert_eq!(error.kind(), ErrorKind::Setup);
    let said = error.to_string();
    assert!(said.contains("`a-b`") && said.contains("`a b`"), "{said}");
}

#[test]
fn schemas_are_as_debezium_has_them() {
    let schemas = Schemas::of(FORMATS[0], &items())
        .expect("fit")
        .expect("some");
    let key = schemas.key.expect("a key");
    assert_eq!(key.name, "orders.public.items.Key");
    let expected = json!({
        "type": "record", "name": "Key", "namespace": "orders.public.items",
        "fields": [{"name": "id", "type": "long"}],
        "connect.version": 1, "connect.name": "orders.public.items.Key",
    });
    assert_eq!(key.text, expected.to_string());
    assert_eq!(schemas.value.name, "orders.public.items.Envelope");
    let value: Json = serde_json::from_str(&schemas.value.text).expect("JSON");
    let fields = value["fields"].as_array().expect("fields");
    let names: Vec<&str> = fields
        .iter()
        .filter_map(|field| field["name"].as_str())
        .collect();
    assert_eq!(
        names,
        [
            "before",
            "after",
            "source",
            "transaction",
            "op",
            "ts_ms",
            "ts_us",
            "ts_ns"
        ]
    );
    let row = &fields[0]["type"][1];
    assert_eq!(row["connect.name"], "orders.public.items.Value");
    let of = |at: usize| row["fields"][at]["type"][1].clone();
    assert_eq!(row["fields"][0]["type"], "long");
    assert_eq!(of(1), "string");
    assert_eq!(
        of(2),
        json!({
            "type": "bytes", "scale": 2, "precision": 10, "connect.version": 1,
            "connect.parameters": {"scale": "2", "connect.decimal.precision": "10"},
            "connect.name": "org.apache.kafka.connect.data.Decimal", "logicalType": "decimal",
        })
    );
    assert_eq!(of(4)["connect.name"], "io.debezium.time.MicroTimestamp");
    assert_eq!(of(5)["connect.name"], "io.debezium.data.geometry.Point");
    assert_eq!(of(6), "io.debezium.data.geometry.Point");
    assert_eq!(of(7)["name"], "VariableScaleDecimal");
    // The same in every run.
    let again = Schemas::of(FORMATS[0], &items())
        .expect("fit")
        .expect("some");
    assert_eq!(again.value, schemas.value);
}

#[test]
fn what_was_not_registered_is_not_written() {
    let schema = items();
    let mut maker = Maker::new(100);
    maker.push(Op::Insert, &schema, None, Some(&ROW));
    let batch = maker.batch(Phase::Stream);
    let mut encoder = Encoder::avro(Format::Flat).expect("Avro");
    let error = encoder.encode(&batch, &batch.changes()[0], &mut |_| Ok(()));
    assert_eq!(error.expect_err("no id").kind(), ErrorKind::Protocol);
    let cloud = Format::CloudEvents(crate::envelope::Content::Structured);
    assert_eq!(
        Encoder::avro(cloud).expect_err("is JSON").kind(),
        ErrorKind::Config
    );
}

#[test]
fn what_has_no_form_is_refused_by_table_and_column() {
    let columns = [
        ("id", base(23, "int4")),
        ("grid", array(base(23, "int4"))),
        ("big", base(1700, "numeric")),
    ];
    let schema = table("t", &columns, 1);
    let double = Format::Debezium(DebeziumOptions {
        decimals: Decimals::Double,
    });
    for (format, row, named) in [
        (
            Format::Flat,
            [Value::Text("1"), Value::Text("{{1},{2}}"), Value::Null],
            "column grid",
        ),
        (
            double,
            [Value::Text("1"), Value::Null, Value::Unchanged],
            "REPLICA IDENTITY FULL",
        ),
        (
            FORMATS[0],
            [Value::Text("1"), Value::Null, Value::Text("NaN")],
            "column big",
        ),
    ] {
        let mut maker = Maker::new(100);
        maker.push(Op::Insert, &schema, None, Some(&row));
        let batch = maker.batch(Phase::Stream);
        let error = sent(&mut Encoder::avro(format).expect("Avro"), &batch);
        let error = error.expect_err("has no form");
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.to_string().contains(named), "{error}");
    }
}

#[test]
fn what_is_cut_off_is_not_read() {
    let mut maker = Maker::new(100);
    maker.push(Op::Insert, &items(), None, Some(&ROW));
    let batch = maker.batch(Phase::Stream);
    for format in FORMATS {
        let schemas = Schemas::of(format, &batch.schemas()[0])
            .expect("fit")
            .expect("some");
        let reader = Reader::new(format, &schemas.value.text).expect("a schema");
        let sent = sent(&mut Encoder::avro(format).expect("Avro"), &batch).expect("encodes");
        let bytes = sent[0].1.as_ref().expect("a value");
        assert!(reader.json(bytes).is_some());
        for len in 0..bytes.len() {
            assert!(reader.json(&bytes[..len]).is_none(), "{len}");
        }
        assert!(reader.json(&[bytes, &b"x"[..]].concat()).is_none());
    }
    for foreign in [
        "",
        "{}",
        r#"{"type":"enum","name":"e","symbols":["a"]}"#,
        "\"unknown\"",
    ] {
        assert!(Reader::new(Format::Flat, foreign).is_none(), "{foreign}");
    }
}

fn any_value(text: &'static str) -> impl Strategy<Value = Option<String>> {
    proptest::option::of(text.prop_map(|text: String| text))
}

proptest! {
    #[test]
    fn random_rows_say_what_json_says(
        id in any::<i64>(),
        note in any_value("\\PC{0,80}"),
        price in any_value("-?[1-9][0-9]{0,7}\\.[0-9]{2}"),
        tags in proptest::option::of(proptest::collection::vec(proptest::option::of("[a-z]{1,9}"), 0..150)),
        at in any_value("[12][0-9]{3}-0[1-9]-[0-2][1-9] [01][0-9]:[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,5}[1-9])?"),
        any in any_value("-?[1-9][0-9]{0,60}(\\.[0-9]{0,30}[1-9])?"),
        bytes in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..300)),
        flag in proptest::option::of(any::<bool>()),
    ) {
        let columns = [
            ("id", base(20, "int8")),
            ("note", base(25, "text")),
            ("price", typed(1700, "numeric", (10 << 16 | 2) + 4)),
            ("tags", array(base(25, "text"))),
            ("at", base(1114, "timestamp")),
            ("any", base(1700, "numeric")),
            ("bytes", base(17, "bytea")),
            ("flag", base(16, "bool")),
        ];
        let schema = table("items", &columns, 1);
        let id = id.to_string();
        let tags = tags.map(|tags| {
            let tags = tags.into_iter().map(|tag| tag.unwrap_or_else(|| "NULL".to_owned()));
            format!("{{{}}}", tags.collect::<Vec<_>>().join(","))
        });
        let bytes = bytes.map(|bytes| {
            let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("\\x{digits}")
        });
        let flag = flag.map(|flag| if flag { "t" } else { "f" });
        let row = [
            Value::Text(&id),
            note.as_deref().map_or(Value::Null, Value::Text),
            price.as_deref().map_or(Value::Null, Value::Text),
            tags.as_deref().map_or(Value::Null, Value::Text),
            at.as_deref().map_or(Value::Null, Value::Text),
            any.as_deref().map_or(Value::Null, Value::Text),
            bytes.as_deref().map_or(Value::Null, Value::Text),
            flag.map_or(Value::Null, Value::Text),
        ];
        let mut maker = Maker::new(100);
        maker.push(Op::Update, &schema, Some((OldImage::Full, &row)), Some(&row));
        check(&maker.batch(Phase::Stream));
    }
}
