//! Values that cannot work are refused before anything is made, with what to do about it.

use lockstep_chart::helm::Helm;
use lockstep_kit::Component::Helm as NeedsHelm;
use lockstep_kit::require;
use serde_json::{Value, json};

/// Values with one pipeline that works.
fn right() -> Value {
    json!({
        "admin": { "existingSecret": "lockstep-admin" },
        "pipelines": { "shop": { "file": {
            "sources": { "orders": { "type": "postgres", "url": "postgres://h/db", "tables": ["public.t"] } },
            "sinks": { "cache": { "type": "redis", "inputs": ["orders"], "url": "redis://h" } },
        } } },
    })
}

/// Its pipeline stands by: the file says all that this needs.
fn standing_by() -> Value {
    let mut values = right();
    let shop = &mut values["pipelines"]["shop"];
    shop["replicas"] = 2.into();
    shop["file"]["state"] = json!({ "url": "postgres://records/db" });
    shop["file"]["dead_letters"] = json!({ "type": "redis", "url": "redis://h" });
    values
}

/// Puts a value at a path of keys, making what is not there.
fn put(values: &mut Value, path: &str, value: Value) {
    let mut at = values;
    for key in path.split('/') {
        at = &mut at[key];
    }
    *at = value;
}

fn refused(helm: &Helm, name: &str, values: &Value, words: &[&str]) {
    let file = helm.values(values);
    let rendered = helm.template("shop", &[&file], &[]);
    assert!(!rendered.well, "{name} is taken:\n{rendered}");
    let missing: Vec<_> = words
        .iter()
        .filter(|word| !rendered.stderr.contains(**word))
        .collect();
    assert!(
        missing.is_empty(),
        "{name}: {missing:?} in {}",
        rendered.stderr
    );
}

fn taken(helm: &Helm, name: &str, values: &Value) -> String {
    let file = helm.values(values);
    let rendered = helm.template("shop", &[&file], &[]);
    assert!(rendered.well, "{name}: {rendered}");
    rendered.stdout
}

#[test]
fn what_cannot_work_is_refused_with_a_remedy() {
    require!(NeedsHelm);
    let helm = Helm::alone();
    taken(&helm, "what is right", &right());
    taken(&helm, "a standby", &standing_by());
    let shop = "pipelines/shop";
    let mistakes = [
        (
            "admin/existingSecret",
            json!(""),
            &["shop.admin.existingSecret", "kubectl create secret"][..],
        ),
        (
            "pipelines/shop/file",
            json!("name = 'shop'\n[sinks]"),
            &["shop.file", "TOML"],
        ),
        (
            "pipelines/shop/file",
            json!({}),
            &["shop.file", "--set-file"],
        ),
        (
            "pipelines/shop/file/admin",
            json!({ "listen": "0.0.0.0:1" }),
            &["shop.file.admin", "Remedy"],
        ),
        (
            "pipelines/shop/file/state",
            json!({ "dir": "/x" }),
            &["shop.file.state.dir", "persistence"],
        ),
        (
            "pipelines/shop/file/shutdown_timeout",
            json!("${T}"),
            &[
                "shop.file.shutdown_timeout",
                "terminationGracePeriodSeconds",
            ],
        ),
        (
            "fullnameOverride",
            json!("a".repeat(40)),
            &["pipelines.shop", "fullnameOverride"],
        ),
        (
            "pipelines/shop/replicas",
            json!(2),
            &["lease: kubernetes", "file.state.url", "replicas: 1"],
        ),
        (
            "pipelines/shop/file/lease",
            json!({ "type": "zookeeper", "servers": "z:2181" }),
            &["lease: zookeeper", "file.state.shared"],
        ),
        (
            "pipelines/shop/file/state",
            json!({ "shared": true }),
            &["shop.persistence.accessModes", "ReadWriteMany"],
        ),
    ];
    for (path, value, words) in mistakes {
        let mut values = right();
        put(&mut values, path, value);
        refused(&helm, path, &values, words);
    }
    let of_standbys = [
        (
            "file/dead_letters",
            json!({ "type": "embedded" }),
            &["file.dead_letters", "Remedy"][..],
        ),
        (
            "file/sinks/log",
            json!({ "type": "file", "inputs": ["orders"], "path": "/x" }),
            &["file.sinks.log is of type file"],
        ),
        (
            "file/sinks/index",
            json!({ "type": "tantivy", "inputs": ["orders"], "path": "/x" }),
            &["file.sinks.index is of type tantivy"],
        ),
        (
            "file/transforms/once",
            json!({ "type": "dedupe", "inputs": ["orders"], "key": ["k"], "window": "1h" }),
            &["file.transforms.once", "redis"],
        ),
        ("file/name", json!("the_shop"), &["file.name", "the_shop"]),
        (
            "file/lease",
            json!({ "type": "kubernetes", "namespace": "${NS}" }),
            &["file.lease.namespace"],
        ),
        (
            "persistence",
            json!({ "existingClaim": "mine" }),
            &["shop.persistence.existingClaim"],
        ),
    ];
    for (path, value, words) in of_standbys {
        let mut values = standing_by();
        put(&mut values, &format!("{shop}/{path}"), value);
        refused(&helm, path, &values, words);
    }
}

#[test]
fn the_schema_refuses_what_is_misspelt_and_takes_placeholders() {
    require!(NeedsHelm);
    let helm = Helm::alone();
    let mistakes = [
        ("replica", json!(2), &["replica"][..]),
        ("replicas", json!("two"), &["/replicas"]),
        ("replicas", json!(-1), &["/replicas"]),
        ("pipelines/shop/replica", json!(2), &["replica"]),
        ("pipelines/The_Shop", json!({}), &["The_Shop"]),
        ("admin/port", json!(70_000), &["/admin/port"]),
        ("fileIn", json!("Pod"), &["/fileIn"]),
        (
            "persistence/accessModes",
            json!(["ReadOnlyMany"]),
            &["/persistence/accessModes"],
        ),
        (
            "pipelines/shop/file/sources/orders/tabels",
            json!([]),
            &["tabels"],
        ),
        (
            "pipelines/shop/file/sources/orders/snapshot_workers",
            json!("two"),
            &["snapshot_workers"],
        ),
        (
            "pipelines/shop/file/sources/orders/snapshot",
            json!("once"),
            &["snapshot"],
        ),
        (
            "pipelines/shop/file/sinks/cache/ttl",
            json!("seven"),
            &["/sinks/cache/ttl"],
        ),
        (
            "pipelines/shop/file/sinks/cache/type",
            json!("rediss"),
            &["/sinks/cache/type"],
        ),
        ("pipelines/shop/file/memroy", json!("1MiB"), &["memroy"]),
    ];
    for (path, value, words) in mistakes {
        let mut values = right();
        put(&mut values, path, value);
        refused(&helm, path, &values, words);
    }
    let placeholders = [
        ("sources/orders/snapshot_workers", "snapshot_workers: ${N}"),
        ("sources/orders/snapshot", "snapshot: ${N}"),
        ("sources/orders/two_phase", "two_phase: ${N}"),
        ("sources/orders/url", "url: ${N}"),
        ("sinks/cache/ttl", "ttl: ${N}"),
        ("memory", "memory: ${N}"),
    ];
    for (path, line) in placeholders {
        let mut values = right();
        put(
            &mut values,
            &format!("pipelines/shop/file/{path}"),
            json!("${N}"),
        );
        let rendered = taken(&helm, path, &values);
        assert!(rendered.contains(line), "{path}: {rendered}");
    }
}
