//! `route`.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;

use common::*;
use lockstep_core::ErrorKind;
use lockstep_core::batch::OldImage;
use lockstep_core::schema::{ReplicaIdentity, TableSchema};
use lockstep_transforms::Route;
use serde_json::json;

fn orders(identity: ReplicaIdentity) -> Arc<TableSchema> {
    table(
        "public.orders",
        &["id int8", "region text", "note text"],
        &["id"],
        identity,
    )
}

#[test]
fn a_fixed_name_is_worked_out_once() {
    let orders = orders(ReplicaIdentity::Default);
    let config = json!({"schema": "{source}", "table": "{schema}_{table}_v2"});
    let mut route = open::<Route>(config, &[&orders]).unwrap();
    let out = route
        .apply_now(
            Feed::new()
                .begin(1, 1)
                .insert(&orders, &["1", "eu", "n"])
                .finish(),
        )
        .unwrap();
    assert_eq!(
        lines(&out),
        ["insert shop.public_orders_v2 id=1 region=eu note=n"]
    );
    assert_eq!(out.schemas()[0].origin.to_string(), "public.orders");
    assert!(Arc::ptr_eq(
        &route.output(&orders).unwrap(),
        &out.schemas()[0]
    ));
}

#[test]
fn groups_of_match_are_fields() {
    let columns = ["id int8"];
    let tables: Vec<_> = [
        "public.orders_2025",
        "public.orders_2026",
        "public.orders_x",
        "x.public_orders_1",
    ]
    .iter()
    .map(|id| table(id, &columns, &["id"], ReplicaIdentity::Default))
    .collect();
    let config =
        json!({"match": r"public\.(?<base>\w+)_(\d+)", "table": "{base}", "schema": "y{2}"});
    let mut route = open::<Route>(config, &tables.iter().collect::<Vec<_>>()).unwrap();
    let batch = tables
        .iter()
        .fold(Feed::new().begin(1, 1), |feed, table| {
            feed.insert(table, &["1"])
        })
        .finish();
    assert_eq!(
        lines(&route.apply_now(batch).unwrap()),
        [
            "insert y2025.orders id=1",
            "insert y2026.orders id=1",
            "insert public.orders_x id=1",
            "insert x.public_orders_1 id=1"
        ]
    );
}

#[test]
fn a_row_that_moves_leaves_and_enters() {
    let orders = orders(ReplicaIdentity::Full);
    let mut route = open::<Route>(json!({"table": "{table}_{region}"}), &[&orders]).unwrap();
    let batch = Feed::new()
        .begin(1, 1)
        .insert(&orders, &["1", "eu", "a"])
        .update_from(
            &orders,
            OldImage::Full,
            &["1", "eu", "a"],
            &["1", "eu", "b"],
        )
        .update_from(
            &orders,
            OldImage::Full,
            &["1", "eu", "b"],
            &["1", "us", "b"],
        )
        .update_from(
            &orders,
            OldImage::Full,
            &["1", "us", "b"],
            &["2", NULL, "b"],
        )
        .delete(&orders, OldImage::Full, &["2", NULL, "b"])
        .finish();
    let out = route.apply_now(batch).unwrap();
    assert_eq!(
        lines(&out),
        [
            "insert public.orders_eu id=1 region=eu note=a",
            "update public.orders_eu id=1 region=eu note=b <- id=1 region=eu note=a",
            "delete public.orders_eu <- id=1 region=eu note=b",
            "insert public.orders_us id=1 region=us note=b",
            "delete public.orders_us <- id=1 region=us note=b",
            "insert public.orders_null id=2 region=NULL note=b",
            "delete public.orders_null <- id=2 region=NULL note=b",
        ]
    );
    let ordinals: Vec<u64> = out.changes().iter().map(|change| change.ordinal).collect();
    assert_eq!(ordinals, [1, 2, 3, 3, 4, 4, 5]);
}

#[test]
fn the_same_destination_is_the_same_schema() {
    let orders = orders(ReplicaIdentity::Full);
    let mut route = open::<Route>(json!({"table": "{region}"}), &[&orders]).unwrap();
    let batch = || {
        Feed::new()
            .begin(1, 1)
            .insert(&orders, &["1", "eu", "a"])
            .insert(&orders, &["2", "eu", "a"])
            .finish()
    };
    let (a, b) = (
        route.apply_now(batch()).unwrap(),
        route.apply_now(batch()).unwrap(),
    );
    let schemas: Vec<_> = [&a, &b]
        .iter()
        .flat_map(|batch| batch.changes().iter().map(|c| batch.schema(c)))
        .collect();
    assert!(schemas.windows(2).all(|pair| Arc::ptr_eq(pair[0], pair[1])));
}

#[test]
fn key_columns_route_without_full() {
    let table = table(
        "public.t",
        &["id int8", "region text"],
        &["region", "id"],
        ReplicaIdentity::Default,
    );
    let mut route = open::<Route>(json!({"table": "t_{region}"}), &[&table]).unwrap();
    let batch = Feed::new()
        .begin(1, 1)
        .update(&table, &["1", "eu"])
        .update_from(&table, OldImage::Key, &["1", "eu"], &["1", "us"])
        .delete(&table, OldImage::Key, &["1", "us"])
        .finish();
    assert_eq!(
        lines(&route.apply_now(batch).unwrap()),
        [
            "update public.t_eu id=1 region=eu",
            "delete public.t_eu <- region=eu id=1",
            "insert public.t_us id=1 region=us",
            "delete public.t_us <- region=us id=1",
        ]
    );
}

#[test]
fn refusals() {
    let plain = orders(ReplicaIdentity::Default);
    for (config, kind, part) in [
        (
            json!({"table": "{table}_{region}"}),
            ErrorKind::Setup,
            "ALTER TABLE public.orders REPLICA IDENTITY FULL",
        ),
        (
            json!({"table": "{table}_{regoin}"}),
            ErrorKind::Config,
            "write `region`",
        ),
        (
            json!({"table": "{table"}),
            ErrorKind::Config,
            "without a `}`",
        ),
        (
            json!({"table": "x", "match": "("}),
            ErrorKind::Config,
            "not a regular expression",
        ),
        (json!({}), ErrorKind::Config, "neither `table` nor `schema`"),
        (json!({"table": ""}), ErrorKind::Setup, "is empty"),
    ] {
        let error = refused::<Route>(config, &[&plain]);
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
    let full = orders(ReplicaIdentity::Full);
    let mut route = open::<Route>(json!({"table": "{region}"}), &[&full]).unwrap();
    let error = route
        .apply_now(Feed::new().begin(1, 1).truncate(&full).finish())
        .expect_err("no row");
    assert!(
        error.to_string().contains("TRUNCATE carries no row"),
        "{error}"
    );
}
