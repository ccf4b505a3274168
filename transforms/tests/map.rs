//! `map`, and rows for which expressions of `filter` and `route` give no value.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;

use common::*;
use lockstep_core::ErrorKind;
use lockstep_core::batch::OldImage;
use lockstep_core::schema::{ReplicaIdentity, TableSchema};
use lockstep_core::transform::Transform;
use lockstep_transforms::{Filter, Map, Project, Route};
use serde_json::json;

fn items(identity: ReplicaIdentity) -> Arc<TableSchema> {
    let columns = ["id int8", "price numeric", "count int4", "body text"];
    table("public.items", &columns, &["id"], identity)
}

fn map(identity: ReplicaIdentity) -> (Arc<TableSchema>, Box<dyn Transform>) {
    let items = items(identity);
    let set = json!({"set": {"total": "price * count", "price": "price + 1", "intro": "body.substring(0, 1)"}});
    let map = open::<Map>(set, &[&items]).unwrap();
    (items, map)
}

#[test]
fn columns_are_made_of_the_row_as_it_came() {
    let (items, mut map) = map(ReplicaIdentity::Default);
    let batch = Feed::new()
        .begin(1, 1)
        .insert(&items, &["1", "2.50", "4", "text"])
        .update(&items, &["1", "2.50", "5", NULL])
        .delete(&items, OldImage::Key, &["1", NULL, NULL, NULL])
        .truncate(&items)
        .finish();
    let out = map.apply_now(batch).unwrap();
    assert_eq!(
        lines(&out),
        [
            "insert public.items id=1 price=3.50 count=4 body=text intro=t total=10.00",
            "update public.items id=1 price=3.50 count=5 body=NULL intro=NULL total=12.50",
            "delete public.items <- id=1",
            "truncate public.items",
        ]
    );
    let output = map.output(&items).unwrap();
    let types: Vec<&str> = output
        .columns
        .iter()
        .map(|column| &*column.ty.name)
        .collect();
    assert_eq!(
        types,
        ["int8", "numeric", "int4", "text", "text", "numeric"]
    );
    assert_eq!(output.width, 7);
}

#[test]
fn old_rows_are_mapped_as_well() {
    let (items, mut map) = map(ReplicaIdentity::Full);
    let old: &[&str] = &["1", "2.50", "4", "text"];
    let batch = Feed::new()
        .begin(1, 1)
        .update_from(&items, OldImage::Full, old, &["1", "3", "4", "next"])
        .delete(&items, OldImage::Full, old)
        .finish();
    assert_eq!(
        lines(&map.apply_now(batch).unwrap()),
        [
            "update public.items id=1 price=4 count=4 body=next intro=n total=12 <- id=1 price=3.50 count=4 body=text intro=t total=10.00",
            "delete public.items <- id=1 price=3.50 count=4 body=text intro=t total=10.00",
        ]
    );
    // An old row that gives no value is known by its key.
    let batch = Feed::new()
        .begin(2, 1)
        .delete(&items, OldImage::Full, &["1", "2", "1", ""])
        .finish();
    assert_eq!(
        lines(&map.apply_now(batch).unwrap()),
        ["delete public.items <- id=1"]
    );
}

#[test]
fn what_is_made_of_an_unchanged_value_alone_is_unchanged() {
    let (items, mut map) = map(ReplicaIdentity::Default);
    let update = |body: &str| {
        Feed::new()
            .begin(1, 1)
            .update(&items, &["1", "2", "1", body])
            .finish()
    };
    assert_eq!(
        lines(&map.apply_now(update(UNCHANGED)).unwrap()),
        ["update public.items id=1 price=3 count=1 body=? intro=? total=2"]
    );
    let both = json!({"set": {"both": "body + string(count)"}});
    let mut map = open::<Map>(both, &[&items]).unwrap();
    let error = map.apply_now(update(UNCHANGED)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Setup);
    let text = error.to_string();
    assert!(
        text.contains("`both` needs the value of the column `body`"),
        "{text}"
    );
    assert!(
        text.contains("ALTER TABLE public.items REPLICA IDENTITY FULL"),
        "{text}"
    );
    let decided = json!({"set": {"both": "count == 1 || body == 'x'"}});
    let mut map = open::<Map>(decided, &[&items]).unwrap();
    assert_eq!(
        lines(&map.apply_now(update(UNCHANGED)).unwrap()),
        ["update public.items id=1 price=2 count=1 body=? both=t"]
    );
}

#[test]
fn what_is_made_goes_on_through_other_transforms() {
    let (items, mut map) = map(ReplicaIdentity::Full);
    let mapped = map.output(&items).unwrap();
    let mut filter = open::<Filter>(json!({"when": "total > 10"}), &[&mapped]).unwrap();
    let mut project = open::<Project>(json!({"keep": ["total", "id"]}), &[&mapped]).unwrap();
    let batch = Feed::new()
        .begin(1, 1)
        .insert(&items, &["1", "5", "3", "a"])
        .insert(&items, &["2", "5", "2", "a"])
        .update_from(
            &items,
            OldImage::Full,
            &["1", "5", "3", "a"],
            &["1", "5", "1", "a"],
        )
        .finish();
    let mut out = map.apply_now(batch).unwrap();
    for transform in [&mut filter, &mut project] {
        out = block_on(transform.apply(out)).unwrap();
    }
    assert_eq!(
        lines(&out),
        [
            "insert public.items total=15 id=1",
            "delete public.items <- total=15 id=1",
        ]
    );
}

#[test]
fn what_a_map_cannot_do_is_refused() {
    let items = items(ReplicaIdentity::Default);
    for (set, problem) in [
        (json!({}), "`set` is empty"),
        (json!({"id": "id + 1"}), "`id` belongs to the key"),
        (json!({"": "1"}), "no name"),
        (
            json!({"x": "duration('1h')"}),
            "a duration is no type of a column",
        ),
        (
            json!({"x": "[1, 2]"}),
            "a list of int is no type of a column",
        ),
    ] {
        let error = refused::<Map>(json!({"set": set}), &[&items]);
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains(problem), "{error}");
    }
}

#[test]
fn a_row_that_gives_no_value_is_put_aside_or_stops() {
    let items = items(ReplicaIdentity::Full);
    let batch = || {
        Feed::new()
            .begin(1, 1)
            .insert(&items, &["1", "1", "0", "a"])
            .insert(&items, &["2", "1", "5", "a"])
            .finish()
    };
    let sections = [
        json!({"set": {"x": "10 / count"}}),
        json!({"when": "10 / count > 1"}),
    ];
    let letters = Arc::default();
    let mut both = [
        open_with::<Map>(sections[0].clone(), &[&items], &letters).unwrap(),
        open_with::<Filter>(sections[1].clone(), &[&items], &letters).unwrap(),
    ];
    for transform in &mut both {
        let out = transform.apply_now(batch()).unwrap();
        assert_eq!(out.changes().len(), 1);
        assert!(lines(&out)[0].starts_with("insert public.items id=2"));
    }
    let kept = letters.0.lock().unwrap().clone();
    let letter = "transforms.here expression insert public.items id=1 price=1 count=0 body=a";
    assert_eq!(kept, [letter, letter]);
    for (mut section, is_map) in sections.into_iter().zip([true, false]) {
        section["on_error"] = "stop".into();
        let opened = match is_map {
            true => open::<Map>(section, &[&items]),
            false => open::<Filter>(section, &[&items]),
        };
        let error = opened.unwrap().apply_now(batch()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.to_string().contains("it divides by zero"), "{error}");
    }
}

#[test]
fn a_route_takes_the_rows_that_its_expression_names() {
    let items = items(ReplicaIdentity::Full);
    let letters = Arc::default();
    let section = json!({"table": "{table}_dear", "when": "price / 1.0 > 100.0 || 10 / count > 9"});
    assert!(
        open::<Route>(section, &[&items]).is_err(),
        "a decimal has no division"
    );
    let section = json!({"table": "{table}_dear", "when": "price > 100 || 10 / count > 9"});
    let mut route = open_with::<Route>(section, &[&items], &letters).unwrap();
    let row = |price, count| ["1", price, count, "a"];
    let batch = Feed::new()
        .begin(1, 1)
        .insert(&items, &row("5", "5"))
        .update_from(&items, OldImage::Full, &row("5", "5"), &row("500", "5"))
        .update_from(&items, OldImage::Full, &row("500", "5"), &row("600", "5"))
        .update_from(&items, OldImage::Full, &row("600", "5"), &row("5", "0"))
        .update_from(&items, OldImage::Full, &row("5", "0"), &row("5", "5"))
        .delete(&items, OldImage::Full, &row("5", "5"))
        .finish();
    let heads: Vec<String> = lines(&route.apply_now(batch).unwrap())
        .iter()
        .map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(
        heads,
        [
            "insert public.items",
            "delete public.items",
            "insert public.items_dear",
            "update public.items_dear",
            "insert public.items",
            "delete public.items",
        ]
    );
    let kept = letters.0.lock().unwrap().clone();
    assert_eq!(kept.len(), 1);
    assert!(
        kept[0].starts_with("transforms.here expression update public.items id=1 price=5 count=0"),
        "{kept:?}"
    );
}

#[test]
fn a_route_needs_what_decides_in_every_delete() {
    let items = items(ReplicaIdentity::Default);
    let error = refused::<Route>(json!({"table": "x", "when": "price > 1"}), &[&items]);
    assert_eq!(error.kind(), ErrorKind::Setup);
    assert!(
        error.to_string().contains("`price` decides where rows go"),
        "{error}"
    );
    assert!(open::<Route>(json!({"table": "x", "when": "id > 1"}), &[&items]).is_ok());
}
