//! The language of expressions, by what `map` makes of them and by what a start refuses.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;

use common::*;
use lockstep_core::batch::CellRef;
use lockstep_core::schema::{ReplicaIdentity, TableSchema};
use lockstep_core::{Error, ErrorKind};
use lockstep_transforms::{Filter, Map};
use serde_json::json;

fn orders() -> Arc<TableSchema> {
    table(
        "public.orders",
        &[
            "id int8",
            "status text",
            "total numeric",
            "rate float8",
            "quantity int4",
            "at timestamptz",
            "day date",
            "state order_status",
            "paid bool",
            "code bpchar",
            "doc jsonb",
            "tags text[]",
            "sizes int4[]",
            "lag interval",
            "who uuid",
            "Order No text",
            "in text",
        ],
        &["id"],
        ReplicaIdentity::Full,
    )
}

const ROW: &[(&str, &str)] = &[
    ("id", "7"),
    ("status", "paid"),
    ("total", "19.90"),
    ("rate", "0.5"),
    ("quantity", "3"),
    ("at", "2026-11-23 04:05:06.789+00"),
    ("day", "2026-11-22"),
    ("state", "open"),
    ("paid", "t"),
    ("code", "ab  "),
    (
        "doc",
        r#"{"kind": "card", "n": 3, "ok": true, "list": [1, {"x": null}], "big": 12.5}"#,
    ),
    ("tags", r#"{new,"a b",NULL}"#),
    ("sizes", "{38,40}"),
    ("lag", "01:00:00"),
    ("who", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    ("Order No", "A-1"),
    ("in", "eu"),
];

/// What an expression makes of the row, and as which type; a row that is put aside gives why.
fn made(expression: &str) -> String {
    made_of(expression, ROW)
}

fn made_of(expression: &str, values: &[(&str, &str)]) -> String {
    let table = orders();
    let mut row = vec![NULL; table.columns.len()];
    for (name, value) in values {
        row[table.column(name).unwrap().0] = value;
    }
    let letters = Arc::default();
    let section = json!({"set": {"made": expression}});
    let mut map = open_with::<Map>(section, &[&table], &letters)
        .unwrap_or_else(|error| panic!("{expression}: {error}"));
    let batch = Feed::new().begin(1, 1).insert(&table, &row).finish();
    let out = map.apply_now(batch).unwrap();
    let Some(change) = out.changes().first() else {
        assert_eq!(letters.0.lock().unwrap().len(), 1);
        return "aside".to_owned();
    };
    let (_, column) = out.schema(change).column("made").unwrap();
    let value = match out.new_row(change).unwrap().get(column) {
        CellRef::Null => "NULL".to_owned(),
        CellRef::Text(text) => String::from_utf8(text.to_vec()).unwrap(),
        other => format!("{other:?}"),
    };
    format!("{value} {}", column.ty.name)
}

fn refused_map(expression: &str) -> Error {
    let error = refused::<Map>(json!({"set": {"made": expression}}), &[&orders()]);
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    error
}

#[test]
fn expressions_give_values() {
    for (expression, expected) in [
        // Numbers.
        ("quantity * 2 + 1", "7 int8"),
        ("-quantity / 2", "-1 int8"),
        ("quantity % 2", "1 int8"),
        ("total * 3", "59.70 numeric"),
        ("total * 1.19", "23.6810 numeric"),
        ("total - 20", "-0.10 numeric"),
        ("-total", "-19.90 numeric"),
        ("rate * 2", "1 float8"),
        ("double(quantity) / 4.0", "0.75 float8"),
        ("int(total)", "19 int8"),
        ("int('12') + int(rate)", "12 int8"),
        ("decimal('1e3') + total", "1019.90 numeric"),
        ("string(total)", "19.90 text"),
        ("double(total)", "19.9 float8"),
        // Comparisons, across types of numbers as well.
        ("total > 19.9", "f bool"),
        ("total >= 19.9 && total == 19.90", "t bool"),
        ("quantity < 3.5", "t bool"),
        ("quantity < total", "t bool"),
        ("rate == 0.5 && rate < quantity", "t bool"),
        ("paid", "t bool"),
        ("paid == true && !(!paid)", "t bool"),
        ("status == 'paid' || 1 / (quantity - 3) == 1", "t bool"),
        ("status in ['sent', 'paid']", "t bool"),
        ("quantity in [1, 2]", "f bool"),
        ("total in [19.9, 5]", "t bool"),
        ("'new' in tags && !('old' in tags)", "t bool"),
        ("38 in sizes", "t bool"),
        // Texts.
        ("status + '/' + state", "paid/open text"),
        (
            "status.startsWith('pa') && status.endsWith('d') && status.contains('ai')",
            "t bool",
        ),
        ("status.matches('^p.*d$')", "t bool"),
        ("matches(status, 'x')", "f bool"),
        ("status.upperAscii() + state.upperAscii()", "PAIDOPEN text"),
        ("status.substring(1, 3) + status.substring(2)", "aiid text"),
        ("status.replace('a', 'o').size()", "4 int8"),
        ("size('größe')", "5 int8"),
        ("code + '|'", "ab| text"),
        ("code == 'ab'", "t bool"),
        ("' x '.trim()", "x text"),
        ("who == 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'", "t bool"),
        ("string(lag)", "01:00:00 text"),
        ("row['Order No'] + row['in']", "A-1eu text"),
        // Times.
        ("at", "2026-11-23 04:05:06.789+00 timestamptz"),
        (
            "at + duration('1h30m')",
            "2026-11-23 05:35:06.789+00 timestamptz",
        ),
        ("at - day > duration('24h')", "t bool"),
        ("string(at - day)", "101106.789s text"),
        ("at < timestamp('2026-11-23T06:00:00+01:00')", "t bool"),
        ("timestamp(0)", "1970-01-01 00:00:00+00 timestamptz"),
        ("int(day)", "1795305600 int8"),
        (
            "at.getFullYear() * 10000 + (at.getMonth() + 1) * 100 + at.getDate()",
            "20261123 int8",
        ),
        (
            "at.getHours() * 3600 + at.getMinutes() * 60 + at.getSeconds()",
            "14706 int8",
        ),
        (
            "at.getMilliseconds() + day.getDayOfWeek() + day.getDayOfMonth()",
            "810 int8",
        ),
        ("(at - day).getHours()", "28 int8"),
        // JSON.
        (
            "doc.kind == 'card' && doc.n == 3 && doc.ok == true && doc.big == 12.5",
            "t bool",
        ),
        ("doc.n == 4 || doc.kind == 3", "f bool"),
        ("string(doc.kind)", "card text"),
        ("int(doc.n) + int(doc.list[0])", "4 int8"),
        ("doc.list[1].x == null && doc.none == null", "t bool"),
        ("has(doc.kind) && !has(doc.none)", "t bool"),
        ("doc.list", r#"[1,{"x":null}] jsonb"#),
        ("doc['kind']", "\"card\" jsonb"),
        ("size(doc.list) + size(doc)", "7 int8"),
        // Lists.
        ("size(tags)", "3 int8"),
        ("tags[1] + '!'", "a b! text"),
        ("tags[2]", "NULL text"),
        ("sizes == [38, 40]", "t bool"),
        ("tags", r#"{new,"a b",NULL} text[]"#),
        // One or the other.
        ("paid ? 'yes' : 'no'", "yes text"),
        ("total > 100 ? 'large' : null", "NULL text"),
        ("quantity > 2 ? total : 0", "19.90 numeric"),
        ("null", "NULL text"),
    ] {
        assert_eq!(made(expression), expected, "{expression}");
    }
}

#[test]
fn null_is_the_same_as_null_and_otherwise_makes_null() {
    for (expression, expected) in [
        ("status == null", "t bool"),
        ("status != null", "f bool"),
        ("status == 'paid'", "f bool"),
        ("status != 'paid'", "t bool"),
        ("status == state", "t bool"),
        ("total > 1", "NULL bool"),
        ("total + 1", "NULL numeric"),
        ("status + 'x'", "NULL text"),
        ("status.startsWith('x')", "NULL bool"),
        ("!(total > 1)", "NULL bool"),
        ("total > 1 && false", "f bool"),
        ("total > 1 && true", "NULL bool"),
        ("true && total > 1", "NULL bool"),
        ("total > 1 || true", "t bool"),
        ("total > 1 ? 'a' : 'b'", "b text"),
        ("total != null ? total : 0", "0 numeric"),
        ("'x' in tags", "NULL bool"),
        ("status in ['a', null]", "t bool"),
        ("doc.kind == null", "t bool"),
        ("at.getHours()", "NULL int8"),
        ("status", "NULL text"),
    ] {
        assert_eq!(
            made_of(expression, &[("id", "1")]),
            expected,
            "{expression}"
        );
    }
}

#[test]
fn what_cannot_be_worked_out_puts_the_row_aside() {
    for expression in [
        "quantity / (quantity - 3)",
        "int(status)",
        "decimal(status)",
        "bool(status)",
        "timestamp(status)",
        "string(duration(status))",
        "9223372036854775807 + quantity",
        "tags[3]",
        "status.substring(3, 2)",
        "int(doc.kind)",
        "size(doc.n)",
        "status == 'sent' || 1 / (quantity - 3) == 1",
    ] {
        assert_eq!(made(expression), "aside", "{expression}");
    }
}

#[test]
fn what_does_not_fit_is_refused_at_the_start_with_its_place_and_a_remedy() {
    for (expression, place, problem, remedy) in [
        ("totl > 1", 1, "there is no column `totl`", "write `total`"),
        (
            "paid && tota > 1",
            9,
            "there is no column `tota`",
            "write `total`",
        ),
        (
            "total > 'x'",
            7,
            "a decimal and a string cannot be ordered",
            "`decimal(…)`",
        ),
        (
            "at > '2026-11-23'",
            4,
            "a timestamp and a string",
            "timestamp('2026",
        ),
        ("state < 'x'", 7, "cannot be ordered", "`string(column)`"),
        ("lag == '1h'", 5, "only known as text", "string(column)"),
        ("doc.n > 1", 7, "a json and a int", "say what the json is"),
        (
            "paid && status",
            9,
            "a string is no condition",
            "compare it",
        ),
        ("status + 1", 8, "`+` of a string and a int", "string(…)"),
        (
            "quantity + rate",
            10,
            "`+` of a int and a double",
            "make them one type",
        ),
        ("total / 2", 7, "`/` of a decimal", "double(a)"),
        (
            "status.startWith('x')",
            17,
            "there is no function `startWith`",
            "`startsWith`",
        ),
        (
            "startsWith(status, 'x')",
            11,
            "is not called like this",
            "x.startsWith(y)",
        ),
        ("size(quantity)", 5, "`size` is given int", "a list"),
        (
            "timestamp('soon')",
            10,
            "`soon` is no timestamp",
            "correct the value",
        ),
        ("1 / 0", 3, "divides by zero", "correct the value"),
        (
            "status.matches('(')",
            15,
            "no regular expression",
            "correct the pattern",
        ),
        (
            "status.matches(code)",
            15,
            "a pattern in quotes",
            "write x.matches",
        ),
        (
            "tags.exists(t, t == 'x')",
            12,
            "not known here",
            "x in list",
        ),
        ("{'a': 1}", 1, "maps and messages", "values"),
        ("1u + 2u", 1, "unsigned", "without `u`"),
        (
            "paid ? 1 : 'x'",
            6,
            "one value is a int, the other a string",
            "one type",
        ),
        ("has(row.status)", 4, "has every column", "!= null"),
        ("status.length", 7, "has no field", "only json"),
        ("'x' in status", 8, "is no list", "brackets"),
        ("(at - day)", 5, "", ""),
        ("status ==", 10, "", "written in CEL"),
        ("status = 'x'", 8, "", "written in CEL"),
    ] {
        if problem.is_empty() && remedy.is_empty() {
            continue;
        }
        let error = refused_map(expression);
        let text = error.to_string();
        assert!(error.message().starts_with("`set`: made: "), "{text}");
        assert!(
            error.message().contains(&format!("character {place}:")),
            "{expression}: {text}"
        );
        assert!(error.message().contains(problem), "{expression}: {text}");
        assert!(
            error.remedy_text().unwrap().contains(remedy),
            "{expression}: {text}"
        );
    }
}

#[test]
fn places_are_counted_in_characters() {
    let error = refused_map("'größe' + totl");
    assert!(error.message().contains("character 11:"), "{error}");
}

#[test]
fn a_filter_takes_one_language_and_a_condition() {
    let orders = orders();
    let refused = |section| refused::<Filter>(section, &[&orders]).to_string();
    let both = refused(json!({"where": "id > 1", "when": "id > 1"}));
    assert!(both.contains("`where` as well as `when`"), "{both}");
    let number = refused(json!({"when": "id + 1"}));
    assert!(
        number.contains("`when`: the expression is a int and no condition"),
        "{number}"
    );
}
