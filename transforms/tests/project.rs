//! `project`.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;

use common::*;
use lockstep_core::ErrorKind;
use lockstep_core::batch::OldImage;
use lockstep_core::schema::{ReplicaIdentity, TableSchema};
use lockstep_transforms::Project;
use serde_json::json;

fn orders() -> Arc<TableSchema> {
    table(
        "public.orders",
        &["a text", "id int8", "b text", "tenant text"],
        &["tenant", "id"],
        ReplicaIdentity::Default,
    )
}

#[test]
fn keep_orders_and_renames() {
    let orders = orders();
    let keep = json!({"keep": ["id", "b", "tenant"], "rename": {"b": "total", "id": "order_id"}});
    let mut project = open::<Project>(keep, &[&orders]).unwrap();
    let out = project
        .apply_now(
            Feed::new()
                .begin(1, 1)
                .insert(&orders, &["x", "1", "y", "t"])
                .delete(&orders, OldImage::Key, &[NULL, "1", NULL, "t"])
                .finish(),
        )
        .unwrap();
    assert_eq!(
        lines(&out),
        [
            "insert public.orders order_id=1 total=y tenant=t",
            "delete public.orders <- tenant=t order_id=1"
        ]
    );
    assert!(Arc::ptr_eq(
        &project.output(&orders).unwrap(),
        &out.schemas()[0]
    ));
}

#[test]
fn drop_leaves_the_rest_and_other_tables() {
    let (orders, other) = (
        orders(),
        table(
            "public.other",
            &["id int8"],
            &["id"],
            ReplicaIdentity::Default,
        ),
    );
    let drop = json!({"drop": ["a"], "tables": ["public.ord*"]});
    let mut project = open::<Project>(drop, &[&orders, &other]).unwrap();
    let batch = Feed::new()
        .begin(1, 1)
        .insert(&orders, &["x", "1", "y", "t"])
        .insert(&other, &["5"])
        .finish();
    assert_eq!(
        lines(&project.apply_now(batch).unwrap()),
        [
            "insert public.orders id=1 b=y tenant=t",
            "insert public.other id=5"
        ]
    );
}

#[test]
fn refusals_name_the_column() {
    let orders = orders();
    for (config, part) in [
        (
            json!({"keep": ["id", "tenent"]}),
            "there are a, id, b, tenant. Remedy: write `tenant`",
        ),
        (json!({"keep": ["a", "id"]}), "`tenant` belongs to the key"),
        (json!({"drop": ["id"]}), "`id` belongs to the key"),
        (json!({"drop": ["a"], "keep": ["b"]}), "exclude each other"),
        (
            json!({"drop": ["a"], "rename": {"a": "c"}}),
            "`a` is not kept",
        ),
        (
            json!({"rename": {"a": "b"}}),
            "two columns would be named `b`",
        ),
        (
            json!({"keep": ["id", "tenant", "id"]}),
            "two columns would be named `id`",
        ),
        (json!({}), "none of `keep`, `drop` and `rename`"),
        (
            json!({"drop": ["a"], "tables": ["orders"]}),
            "`orders` is not a table",
        ),
    ] {
        let error = refused::<Project>(config, &[&orders]);
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[test]
fn a_pattern_without_a_table_is_found_at_the_start() {
    let orders = orders();
    let config = json!({"drop": ["a"], "tables": ["public.order"]});
    let mut project = open::<Project>(config, &[&orders]).unwrap();
    let error = project.complete().expect_err("unmatched");
    assert!(
        error
            .to_string()
            .contains("no table matches `public.order`; there are shop.public.orders"),
        "{error}"
    );
}
