//! `filter`.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;

use common::*;
use lockstep_core::ErrorKind;
use lockstep_core::batch::OldImage;
use lockstep_core::schema::{ReplicaIdentity, TableSchema};
use lockstep_transforms::Filter;
use serde_json::json;

fn orders(identity: ReplicaIdentity) -> Arc<TableSchema> {
    table(
        "public.orders",
        &[
            "id int8",
            "status text",
            "total numeric",
            "at timestamptz",
            "state order_status",
            "paid bool",
            "day date",
            "code bpchar",
            "doc json",
            "lag interval",
            "who uuid",
        ],
        &["id"],
        identity,
    )
}

/// Whether a row with these values passes; other columns are NULL.
fn passes(predicate: &str, values: &[(&str, &str)]) -> bool {
    let table = orders(ReplicaIdentity::Full);
    let mut row = vec![NULL; table.columns.len()];
    for (name, value) in values {
        row[table.column(name).unwrap().0] = value;
    }
    let mut filter = open::<Filter>(json!({"where": predicate}), &[&table]).unwrap();
    let batch = Feed::new().begin(1, 1).insert(&table, &row).finish();
    !filter.apply_now(batch).unwrap().changes().is_empty()
}

#[test]
fn values_compare_by_their_type() {
    for (predicate, values, expected) in [
        (
            "status <> 'cancelled' and total > 10",
            &[("status", "paid"), ("total", "10.01")][..],
            true,
        ),
        (
            "status <> 'cancelled' and total > 10",
            &[("status", "paid"), ("total", "9.99")],
            false,
        ),
        (
            "status <> 'cancelled' and total > 10",
            &[("status", "paid")],
            false,
        ),
        ("total > 10", &[("total", "9")], false),
        (
            "total > 9007199254740992",
            &[("total", "9007199254740993")],
            true,
        ),
        ("total = 1.50", &[("total", "1.5")], true),
        ("total > 1e3", &[("total", "NaN")], true),
        ("10 < total", &[("total", "11")], true),
        ("total between 1 and 2", &[("total", "2.0")], true),
        ("total not between 1 and 2", &[("total", "2.0")], false),
        ("id in (1, 2, 3)", &[("id", "2")], true),
        ("id not in (1, 2, 3)", &[("id", "2")], false),
        ("id not in (1, 2, 3)", &[], false),
        ("status in ('a', 'b')", &[("status", "b")], true),
        ("status like 'pa%'", &[("status", "paid")], true),
        ("status not like 'pa%'", &[("status", "paid")], false),
        ("status is null", &[], true),
        ("status is not null or id = 1", &[("id", "1")], true),
        ("not (status = 'x')", &[], false),
        ("paid", &[("paid", "t")], true),
        ("not paid", &[("paid", "f")], true),
        ("paid = false", &[("paid", "f")], true),
        ("state = 'open'", &[("state", "open")], true),
        (
            "at >= '2026-01-01 00:00:00+01'",
            &[("at", "2025-12-31 23:00:00+00")],
            true,
        ),
        (
            "at < '2026-01-01'",
            &[("at", "10000-01-01 00:00:00+00")],
            false,
        ),
        (
            "at < '2026-01-01'",
            &[("at", "0044-03-15 00:00:00+00 BC")],
            true,
        ),
        ("at < '2026-01-01'", &[("at", "infinity")], false),
        ("day = '2026-11-23'", &[("day", "2026-11-23")], true),
        ("code = 'ab'", &[("code", "ab   ")], true),
        ("doc is not null", &[("doc", "{}")], true),
        (
            "who = 'A0EEBC999C0B4EF8BB6D6BB9BD380A11'",
            &[("who", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")],
            true,
        ),
        ("\"id\" = '7'", &[("id", "7")], true),
        ("STATUS = 'it''s'", &[("status", "it's")], true),
    ] {
        assert_eq!(
            passes(predicate, values),
            expected,
            "{predicate} over {values:?}"
        );
    }
}

#[test]
fn refusals_point_at_the_place() {
    let table = orders(ReplicaIdentity::Full);
    for (predicate, part) in [
        (
            "statsu = 'x'",
            "`where`: character 1: there is no column `statsu`; there are id, status",
        ),
        ("id = 1 and statsu = 'x'", "write `status`"),
        (
            "total > 'ten'",
            "character 9: `ten` is no value for the column `total` of type numeric",
        ),
        ("status = 5", "write a text in single quotes"),
        (
            "state > 'open'",
            "the order of type order_status is not known",
        ),
        ("doc = '{}'", "cannot be compared"),
        ("lag = '1 day'", "cannot be compared"),
        ("id like '1%'", "`like` compares a text column"),
        ("id", "no condition by itself"),
        ("at > '2026-13-01'", "without an offset it is UTC"),
        ("day > '2026-01-01 10:00'", "a date in single quotes"),
        ("id = status", "cannot be compared"),
        ("1 = 1", "neither side"),
        ("total >", "`where`: character 8"),
    ] {
        let error = refused::<Filter>(json!({"where": predicate}), &[&table]);
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
    assert!(
        refused::<Filter>(json!({}), &[])
            .to_string()
            .contains("neither `where` nor `ops`")
    );
    assert!(
        refused::<Filter>(json!({"ops": []}), &[])
            .to_string()
            .contains("nothing would pass")
    );
}

fn small(identity: ReplicaIdentity) -> Arc<TableSchema> {
    table(
        "public.t",
        &["id int8", "status text", "note text"],
        &["id"],
        identity,
    )
}

#[test]
fn rows_move_in_and_out_when_the_old_row_is_known() {
    let table = small(ReplicaIdentity::Full);
    let mut filter = open::<Filter>(json!({"where": "status = 'on'"}), &[&table]).unwrap();
    let full = OldImage::Full;
    let batch = Feed::new()
        .begin(1, 1)
        .insert(&table, &["1", "off", "a"])
        .update_from(&table, full, &["1", "off", "a"], &["1", "off", "b"])
        .update_from(&table, full, &["1", "off", "b"], &["1", "on", "c"])
        .update_from(&table, full, &["1", "on", "c"], &["1", "on", "d"])
        .update_from(&table, full, &["1", "on", "d"], &["2", "off", "e"])
        .delete(&table, full, &["2", "off", "e"])
        .delete(&table, full, &["3", "on", "f"])
        .truncate(&table)
        .finish();
    assert_eq!(
        lines(&filter.apply_now(batch).unwrap()),
        [
            "insert public.t id=1 status=on note=c",
            "update public.t id=1 status=on note=d <- id=1 status=on note=c",
            "delete public.t <- id=1 status=on note=d",
            "delete public.t <- id=3 status=on note=f",
            "truncate public.t",
        ]
    );
}

#[test]
fn without_the_old_row_a_mismatch_deletes() {
    let table = small(ReplicaIdentity::Default);
    let mut filter = open::<Filter>(json!({"where": "status = 'on'"}), &[&table]).unwrap();
    let batch = Feed::new()
        .begin(1, 1)
        .update(&table, &["1", "off", UNCHANGED])
        .update(&table, &["1", "on", UNCHANGED])
        .update_from(
            &table,
            OldImage::Key,
            &["1", NULL, NULL],
            &["2", "off", "b"],
        )
        .delete(&table, OldImage::Key, &["2", NULL, NULL])
        .finish();
    assert_eq!(
        lines(&filter.apply_now(batch).unwrap()),
        [
            "delete public.t <- id=1",
            "update public.t id=1 status=on note=?",
            "delete public.t <- id=1",
            "delete public.t <- id=2",
        ]
    );
}

#[test]
fn predicates_on_the_key_are_exact_without_full() {
    let table = small(ReplicaIdentity::Default);
    let mut filter = open::<Filter>(json!({"where": "id < 10"}), &[&table]).unwrap();
    let key = OldImage::Key;
    let batch = Feed::new()
        .begin(1, 1)
        .update(&table, &["11", "a", "a"])
        .update_from(&table, key, &["11", NULL, NULL], &["1", "b", "b"])
        .update_from(&table, key, &["1", NULL, NULL], &["12", "c", "c"])
        .delete(&table, key, &["12", NULL, NULL])
        .delete(&table, key, &["2", NULL, NULL])
        .finish();
    assert_eq!(
        lines(&filter.apply_now(batch).unwrap()),
        [
            "insert public.t id=1 status=b note=b",
            "delete public.t <- id=1",
            "delete public.t <- id=2"
        ]
    );
}

#[test]
fn an_unsent_value_stops_only_when_it_decides() {
    let table = small(ReplicaIdentity::Default);
    let config = json!({"where": "status = 'on' or note = 'x'"});
    let mut filter = open::<Filter>(config, &[&table]).unwrap();
    let batch = |row: &[&str]| Feed::new().begin(1, 1).update(&table, row).finish();
    assert_eq!(
        filter
            .apply_now(batch(&["1", "on", UNCHANGED]))
            .unwrap()
            .changes()
            .len(),
        1
    );
    let error = filter
        .apply_now(batch(&["1", "off", UNCHANGED]))
        .expect_err("undecidable");
    assert_eq!(error.kind(), ErrorKind::Setup);
    assert!(
        error
            .to_string()
            .contains("ALTER TABLE public.t REPLICA IDENTITY FULL"),
        "{error}"
    );
}

#[test]
fn ops_select_what_comes_out() {
    let table = small(ReplicaIdentity::Default);
    let message = Arc::new(TableSchema::message("shop".into()));
    let config = json!({"where": "status = 'on'", "ops": ["insert", "delete"]});
    let mut filter = open::<Filter>(config, &[&table, &message]).unwrap();
    let batch = Feed::new()
        .begin(1, 1)
        .insert(&table, &["1", "on", "a"])
        .update(&table, &["1", "on", "b"])
        .update(&table, &["1", "off", "c"])
        .truncate(&table)
        .push(
            lockstep_core::batch::Op::Message,
            &message,
            None,
            Some(&["p", "c"]),
        )
        .finish();
    assert_eq!(
        lines(&filter.apply_now(batch).unwrap()),
        [
            "insert public.t id=1 status=on note=a",
            "delete public.t <- id=1"
        ]
    );
}

#[test]
fn tables_outside_pass_untouched() {
    let (inside, outside) = (
        small(ReplicaIdentity::Default),
        table("x.y", &["id int8"], &["id"], ReplicaIdentity::Default),
    );
    let config = json!({"where": "status = 'on'", "tables": ["shop.public.*"], "ops": ["insert"]});
    let mut filter = open::<Filter>(config, &[&inside, &outside]).unwrap();
    let batch = Feed::new()
        .begin(1, 1)
        .insert(&inside, &["1", "off", "a"])
        .truncate(&outside)
        .finish();
    assert_eq!(lines(&filter.apply_now(batch).unwrap()), ["truncate x.y"]);
}
