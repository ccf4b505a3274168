//! Every type of Debezium's PostgreSQL connector, in both mappings and with every form of decimals.

use lockstep_core::schema::{ColumnType, TypeKind};
use proptest::prelude::*;

use super::toast::unavailable;
use super::*;
use crate::envelope::Decimals;
use crate::testing::{array, base, typed};

const STRING: Mapping = Mapping::Debezium(Decimals::String);
const PRECISE: Mapping = Mapping::Debezium(Decimals::Precise);
const DOUBLE: Mapping = Mapping::Debezium(Decimals::Double);

/// Type, text, natural JSON, Debezium JSON. `""` for JSON: left out.
type Case = (ColumnType, &'static str, &'static str, &'static str);

fn numeric(precision: i32, scale: i32) -> ColumnType {
    typed(1700, "numeric", (precision << 16 | (scale & 0x7ff)) + 4)
}

fn kind(name: &str, kind: TypeKind) -> ColumnType {
    ColumnType {
        oid: 50_000,
        typmod: -1,
        name: name.into(),
        kind,
    }
}

fn written(mapping: Mapping, ty: &ColumnType, text: &str) -> String {
    let mut out = Vec::new();
    let plan = mapping.plan(ty);
    plan.write(text.as_bytes(), &mut out)
        .unwrap_or_else(|bad| panic!("{} {text}: {bad:?}", ty.name));
    let json = String::from_utf8(out).expect("UTF-8");
    // Whatever has a form in JSON has the same in Avro.
    crate::avro::tests::says_the_same(mapping, ty, text.as_bytes(), &json);
    json
}

fn check(cases: &[Case]) {
    for (ty, text, natural, debezium) in cases {
        assert_eq!(
            written(Mapping::Natural, ty, text),
            *natural,
            "{} {text}",
            ty.name
        );
        for mapping in [STRING, PRECISE, DOUBLE] {
            assert_eq!(
                written(mapping, ty, text),
                *debezium,
                "{} {text} {mapping:?}",
                ty.name
            );
        }
    }
}

#[test]
fn numbers_and_booleans() {
    check(&[
        (base(16, "bool"), "t", "true", "true"),
        (base(16, "bool"), "f", "false", "false"),
        (base(21, "int2"), "-32768", "-32768", "-32768"),
        (base(23, "int4"), "0", "0", "0"),
        (
            base(20, "int8"),
            "9223372036854775807",
            "9223372036854775807",
            "9223372036854775807",
        ),
        (base(26, "oid"), "4294967295", "4294967295", "4294967295"),
        (base(701, "float8"), "1e+300", "1e+300", "1.0E300"),
        (base(701, "float8"), "1e-10", "1e-10", "1.0E-10"),
        (base(701, "float8"), "0", "0", "0.0"),
        (base(701, "float8"), "NaN", "\"NaN\"", "\"NaN\""),
        (
            base(701, "float8"),
            "-Infinity",
            "\"-Infinity\"",
            "\"-Infinity\"",
        ),
        (base(700, "float4"), "100", "100", "100.0"),
        (base(700, "float4"), "10000000", "10000000", "1.0E7"),
        (base(700, "float4"), "1e-45", "1e-45", "1.4E-45"),
    ]);
}

#[test]
fn decimals() {
    for (ty, text, natural, string, precise, double) in [
        (
            numeric(10, 2),
            "123.45",
            "\"123.45\"",
            "\"123.45\"",
            "\"MDk=\"",
            "123.45",
        ),
        (
            numeric(10, 2),
            "-0.01",
            "\"-0.01\"",
            "\"-0.01\"",
            "\"/w==\"",
            "-0.01",
        ),
        (
            numeric(10, 2),
            "0.00",
            "\"0.00\"",
            "\"0.00\"",
            "\"AA==\"",
            "0.0",
        ),
        (numeric(5, 0), "7", "\"7\"", "\"7\"", "\"Bw==\"", "7.0"),
        (
            numeric(3, -2),
            "12300",
            "\"12300\"",
            "\"12300\"",
            "\"MAw=\"",
            "12300.0",
        ),
        (
            base(1700, "numeric"),
            "123.4500",
            "\"123.4500\"",
            "\"123.4500\"",
            r#"{"scale":2,"value":"MDk="}"#,
            "123.45",
        ),
        (
            base(1700, "numeric"),
            "10000000",
            "\"10000000\"",
            "\"10000000\"",
            r#"{"scale":0,"value":"AJiWgA=="}"#,
            "1.0E7",
        ),
        (
            base(1700, "numeric"),
            "NaN",
            "\"NaN\"",
            "\"NAN\"",
            "\"NaN\"",
            "\"NaN\"",
        ),
        (
            numeric(10, 2),
            "NaN",
            "\"NaN\"",
            "\"NAN\"",
            "\"NaN\"",
            "\"NaN\"",
        ),
        (
            base(1700, "numeric"),
            "Infinity",
            "\"Infinity\"",
            "\"POSITIVE_INFINITY\"",
            "\"Infinity\"",
            "\"Infinity\"",
        ),
        (
            base(1700, "numeric"),
            "-Infinity",
            "\"-Infinity\"",
            "\"NEGATIVE_INFINITY\"",
            "\"-Infinity\"",
            "\"-Infinity\"",
        ),
        (
            base(790, "money"),
            "$1,234.56",
            "\"1234.56\"",
            "\"1234.56\"",
            "\"AeJA\"",
            "1234.56",
        ),
        (
            base(790, "money"),
            "-$0.01",
            "\"-0.01\"",
            "\"-0.01\"",
            "\"/w==\"",
            "-0.01",
        ),
        (
            array(base(1700, "numeric")),
            "{1.1,NULL,NaN}",
            r#"["1.1",null,"NaN"]"#,
            r#"["1.1",null,"NAN"]"#,
            r#"[{"scale":1,"value":"Cw=="},null,"NaN"]"#,
            r#"[1.1,null,"NaN"]"#,
        ),
        (
            array(numeric(10, 2)),
            "{1.10}",
            r#"["1.10"]"#,
            r#"["1.10"]"#,
            r#"["bg=="]"#,
            "[1.1]",
        ),
    ] {
        for (mapping, expected) in [
            (Mapping::Natural, natural),
            (STRING, string),
            (PRECISE, precise),
            (DOUBLE, double),
        ] {
            assert_eq!(
                written(mapping, &ty, text),
                expected,
                "{} {text} {mapping:?}",
                ty.name
            );
        }
    }
}

#[test]
fn texts_and_bytes() {
    let same =
        |oid, name, text: &'static str, json: &'static str| (base(oid, name), text, json, json);
    check(&[
        same(25, "text", "a \"b\"", r#""a \"b\"""#),
        same(1042, "bpchar", "ab   ", "\"ab   \""),
        same(1043, "varchar", "é", "\"é\""),
        same(19, "name", "nm", "\"nm\""),
        same(18, "char", "x", "\"x\""),
        same(142, "xml", "<a/>", "\"<a/>\""),
        same(90_000, "citext", "MiXed", "\"MiXed\""),
        same(90_001, "ltree", "a.b.c", "\"a.b.c\""),
        same(90_002, "isbn", "0-393-04002-X", "\"0-393-04002-X\""),
        same(
            2950,
            "uuid",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            "\"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11\"",
        ),
        same(869, "inet", "192.168.0.1/24", "\"192.168.0.1/24\""),
        same(650, "cidr", "10.0.0.0/8", "\"10.0.0.0/8\""),
        same(829, "macaddr", "08:00:2b:01:02:03", "\"08:00:2b:01:02:03\""),
        same(
            774,
            "macaddr8",
            "08:00:2b:01:02:03:04:05",
            "\"08:00:2b:01:02:03:04:05\"",
        ),
        same(3614, "tsvector", "'a' 'cat' 'fat'", "\"'a' 'cat' 'fat'\""),
        same(17, "bytea", r"\xdeadbeef00ff", "\"3q2+7wD/\""),
        same(17, "bytea", r"\x", "\"\""),
        (typed(1560, "bit", 1), "1", "\"1\"", "true"),
        (typed(1562, "varbit", 1), "0", "\"0\"", "false"),
        (typed(1560, "bit", 5), "10101", "\"10101\"", "\"FQ==\""),
        (
            typed(1560, "bit", 20),
            "11111111111111111111",
            "\"11111111111111111111\"",
            "\"//8P\"",
        ),
        (base(1562, "varbit"), "1010", "\"1010\"", "\"Cg==\""),
        (
            base(114, "json"),
            "{\"b\": 1,\n  \"a\": [1, 2.50]}",
            "{\"b\": 1,   \"a\": [1, 2.50]}",
            r#""{\"b\": 1,\n  \"a\": [1, 2.50]}""#,
        ),
        (base(3802, "jsonb"), "null", "null", "\"null\""),
        (
            base(90_003, "hstore"),
            r#""k1"=>"v1", "k2"=>NULL"#,
            r#"{"k1":"v1","k2":null}"#,
            r#""{\"k1\":\"v1\",\"k2\":null}""#,
        ),
        (
            kind("order_status", TypeKind::Enum),
            "paid",
            "\"paid\"",
            "\"paid\"",
        ),
    ]);
}

#[test]
fn ranges_and_shapes() {
    let range = |oid, name| ColumnType {
        kind: TypeKind::Range,
        ..base(oid, name)
    };
    check(&[
        (
            range(3904, "int4range"),
            "[1,10)",
            "\"[1,10)\"",
            "\"[1,10)\"",
        ),
        (
            range(3926, "int8range"),
            "[2,101)",
            "\"[2,101)\"",
            "\"[2,101)\"",
        ),
        (
            range(3908, "tsrange"),
            "[\"2024-01-01 00:00:00\",)",
            r#""[\"2024-01-01 00:00:00\",)""#,
            r#""[\"2024-01-01 00:00:00\",)""#,
        ),
        (range(50_001, "floatrange"), "[1,2)", "\"[1,2)\"", ""),
        (
            kind("int4multirange", TypeKind::Multirange),
            "{[1,2)}",
            "\"{[1,2)}\"",
            "",
        ),
        (
            kind("address", TypeKind::Composite),
            "(a,1)",
            "\"(a,1)\"",
            "",
        ),
        (
            base(600, "point"),
            "(1.5,-2)",
            "\"(1.5,-2)\"",
            r#"{"x":1.5,"y":-2.0,"wkb":"AQEAAAAAAAAAAAD4PwAAAAAAAADA","srid":null}"#,
        ),
        (base(628, "line"), "{1,-1,0}", "\"{1,-1,0}\"", ""),
        (base(603, "box"), "(1,1),(0,0)", "\"(1,1),(0,0)\"", ""),
        (base(3220, "pg_lsn"), "16/B374D848", "\"16/B374D848\"", ""),
        (
            base(90_004, "vector"),
            "[1,2.5]",
            "\"[1,2.5]\"",
            "[1.0,2.5]",
        ),
        (base(90_005, "cube"), "(1, 2)", "\"(1, 2)\"", ""),
    ]);
}

#[test]
fn times() {
    check(&[
        (base(1082, "date"), "2024-02-29", "\"2024-02-29\"", "19782"),
        (
            base(1082, "date"),
            "0044-03-15 BC",
            "\"-0043-03-15\"",
            "-735160",
        ),
        (base(1082, "date"), "infinity", "\"infinity\"", "2147483647"),
        (
            typed(1083, "time", 3),
            "13:51:30.123",
            "\"13:51:30.123\"",
            "49890123",
        ),
        (
            base(1083, "time"),
            "13:51:30.123456",
            "\"13:51:30.123456\"",
            "49890123456",
        ),
        (
            base(1083, "time"),
            "24:00:00",
            "\"24:00:00\"",
            "86400000000",
        ),
        (
            base(1266, "timetz"),
            "13:51:30.123456+02",
            "\"13:51:30.123456+02:00\"",
            "\"11:51:30.123456Z\"",
        ),
        (
            typed(1114, "timestamp", 3),
            "2024-02-29 13:51:30.123",
            "\"2024-02-29T13:51:30.123\"",
            "1709214690123",
        ),
        (
            typed(1114, "timestamp", 0),
            "2024-02-29 13:51:30",
            "\"2024-02-29T13:51:30\"",
            "1709214690000",
        ),
        (
            typed(1114, "timestamp", 4),
            "2024-02-29 13:51:30.1234",
            "\"2024-02-29T13:51:30.1234\"",
            "1709214690123400",
        ),
        (
            base(1114, "timestamp"),
            "2024-02-29 13:51:30.123456",
            "\"2024-02-29T13:51:30.123456\"",
            "1709214690123456",
        ),
        (
            base(1114, "timestamp"),
            "infinity",
            "\"infinity\"",
            "9223372036825200000",
        ),
        (
            typed(1114, "timestamp", 3),
            "-infinity",
            "\"-infinity\"",
            "-9223372036832400",
        ),
        (
            base(1184, "timestamptz"),
            "2024-02-29 11:51:30+00",
            "\"2024-02-29T11:51:30Z\"",
            "\"2024-02-29T11:51:30.000000Z\"",
        ),
        (
            typed(1184, "timestamptz", 3),
            "2024-02-29 11:51:30.12+00",
            "\"2024-02-29T11:51:30.12Z\"",
            "\"2024-02-29T11:51:30.120Z\"",
        ),
        (
            typed(1184, "timestamptz", 0),
            "2024-02-29 11:51:30+00",
            "\"2024-02-29T11:51:30Z\"",
            "\"2024-02-29T11:51:30Z\"",
        ),
        (
            base(1184, "timestamptz"),
            "infinity",
            "\"infinity\"",
            "\"infinity\"",
        ),
        (
            base(1186, "interval"),
            "1 year 2 mons 3 days 04:05:06.789",
            "\"P1Y2M3DT4H5M6.789S\"",
            "37091106789000",
        ),
    ]);
}

#[test]
fn arrays() {
    check(&[
        (
            array(base(23, "int4")),
            "{1,NULL,3}",
            "[1,null,3]",
            "[1,null,3]",
        ),
        (
            array(base(23, "int4")),
            "{{1,2},{3,4}}",
            "[[1,2],[3,4]]",
            "[[1,2],[3,4]]",
        ),
        (array(base(25, "text")), "{}", "[]", "[]"),
        (
            array(typed(1184, "timestamptz", 6)),
            "{\"2024-02-29 11:51:30+00\"}",
            "[\"2024-02-29T11:51:30Z\"]",
            "[\"2024-02-29T11:51:30.000000Z\"]",
        ),
        (
            array(base(3802, "jsonb")),
            r#"{"{\"a\": 1}"}"#,
            r#"[{"a": 1}]"#,
            r#"["{\"a\": 1}"]"#,
        ),
        (
            array(base(17, "bytea")),
            r#"{"\\xdead"}"#,
            "[\"3q0=\"]",
            "[\"3q0=\"]",
        ),
        (
            array(kind("mood", TypeKind::Enum)),
            "{happy}",
            "[\"happy\"]",
            "[\"happy\"]",
        ),
        (
            array(base(603, "box")),
            "{(1,1),(0,0)}",
            "[\"(1,1),(0,0)\"]",
            "",
        ),
        (
            array(typed(1560, "bit", 3)),
            "{101}",
            "[\"101\"]",
            "[\"BQ==\"]",
        ),
    ]);
}

#[test]
fn placeholders() {
    const WORD: &str = "__debezium_unavailable_value";
    const BYTES: &str = "[95,95,100,101,98,101,122,105,117,109,95,117,110,97,118,97,105,108,97,98,108,101,95,118,97,108,117,101]";
    for (ty, expected) in [
        (base(25, "text"), format!("\"{WORD}\"")),
        (base(3802, "jsonb"), format!("\"{WORD}\"")),
        (
            base(17, "bytea"),
            "\"X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==\"".to_owned(),
        ),
        (
            base(90_003, "hstore"),
            format!(r#""{{\"{WORD}\":\"{WORD}\"}}""#),
        ),
        (array(base(1043, "varchar")), format!("[\"{WORD}\"]")),
        (array(base(23, "int4")), BYTES.to_owned()),
        (array(base(701, "float8")), BYTES.to_owned()),
        (array(base(1082, "date")), BYTES.to_owned()),
        (
            array(base(2950, "uuid")),
            "[\"b68a35a7-17ad-35b3-af2a-ae46edb4545a\"]".to_owned(),
        ),
        (
            array(base(17, "bytea")),
            "[\"X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==\"]".to_owned(),
        ),
        (array(base(16, "bool")), format!("[\"{WORD}\"]")),
        (base(90_004, "vector"), BYTES.to_owned()),
    ] {
        assert_eq!(
            String::from_utf8_lossy(&unavailable(&ty, STRING)),
            expected,
            "{}",
            ty.name
        );
    }
}

#[test]
fn plain_text_is_json_without_quotes_and_escapes() {
    for (ty, text, expected) in [
        (base(25, "text"), "a \"b\"\n", "a \"b\"\n"),
        (base(23, "int4"), "5", "5"),
        (base(16, "bool"), "t", "true"),
        (base(1700, "numeric"), "1.50", "1.50"),
        (base(701, "float8"), "NaN", "NaN"),
        (base(17, "bytea"), r"\xdead", "3q0="),
        (
            base(1184, "timestamptz"),
            "2024-02-29 11:51:30+00",
            "2024-02-29T11:51:30Z",
        ),
        (base(3802, "jsonb"), "\"text\"", "\"text\""),
        (array(base(25, "text")), "{a}", "[\"a\"]"),
    ] {
        let mut out = b"before".to_vec();
        Mapping::Natural
            .plan(&ty)
            .write_text(text.as_bytes(), &mut out)
            .expect("valid");
        assert_eq!(
            String::from_utf8_lossy(&out),
            format!("before{expected}"),
            "{}",
            ty.name
        );
    }
}

#[test]
fn binary_values_are_refused_but_bytes_and_text() {
    let mut out = Vec::new();
    assert_eq!(
        STRING
            .plan(&base(23, "int4"))
            .write_binary(&[0, 0, 0, 1], &mut out),
        Err(Bad::Binary)
    );
    STRING
        .plan(&base(25, "text"))
        .write_binary(b"a", &mut out)
        .expect("text");
    STRING
        .plan(&base(17, "bytea"))
        .write_binary(b"\xde\xad", &mut out)
        .expect("bytes");
    assert_eq!(out, b"\"a\"\"3q0=\"");
}

fn any_type() -> impl Strategy<Value = ColumnType> {
    let scalar = proptest::sample::select(vec![
        base(16, "bool"),
        base(17, "bytea"),
        base(23, "int4"),
        base(25, "text"),
        base(114, "json"),
        base(600, "point"),
        base(700, "float4"),
        base(701, "float8"),
        base(790, "money"),
        base(1082, "date"),
        base(1083, "time"),
        base(1114, "timestamp"),
        typed(1114, "timestamp", 3),
        base(1184, "timestamptz"),
        base(1186, "interval"),
        base(1266, "timetz"),
        typed(1560, "bit", 1),
        typed(1560, "bit", 9),
        base(1700, "numeric"),
        numeric(10, 2),
        base(90_000, "hstore"),
        base(90_001, "vector"),
        base(90_002, "sparsevec"),
        base(90_003, "geometry"),
    ]);
    (scalar, any::<bool>()).prop_map(|(ty, list)| if list { array(ty) } else { ty })
}

/// Bytes that look like values of some type, and any bytes.
fn any_cell() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..40),
        proptest::collection::vec(proptest::sample::select(br#"{}[](),;:.-+eE"\0123456789tfNULANinfty =>x/"#.to_vec()), 0..30),
        "-?[0-9]{1,45}(\\.[0-9]{1,45})?".prop_map(String::into_bytes),
        "[0-9]{4,7}-[01][0-9]-[0-3][0-9]( [0-2][0-9]:[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,6})?(\\+00|-03:30)?)?( BC)?".prop_map(String::into_bytes),
        "\\{(\"?[a-z0-9 ,\\\\]{0,6}\"?,){0,4}[a-z0-9]{1,3}\\}".prop_map(String::into_bytes),
        "\"[a-z]{0,4}\"=>(NULL|\"[a-z\\\\\"]{0,4}\")".prop_map(String::into_bytes),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, ..ProptestConfig::default() })]
    #[test]
    fn what_is_written_is_json(ty in any_type(), cell in any_cell()) {
        for mapping in [Mapping::Natural, STRING, PRECISE, DOUBLE] {
            let mut out = Vec::new();
            if mapping.plan(&ty).write(&cell, &mut out).is_ok() {
                prop_assert!(
                    serde_json::from_slice::<Box<serde_json::value::RawValue>>(&out).is_ok(),
                    "{} {:?}: {}", ty.name, String::from_utf8_lossy(&cell), String::from_utf8_lossy(&out)
                );
                prop_assert!(!out.contains(&b'\n'));
                let json = String::from_utf8(out).expect("UTF-8");
                crate::avro::tests::says_the_same(mapping, &ty, &cell, &json);
            }
        }
    }
}
