//! `mask`.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;

use common::*;
use lockstep_core::batch::OldImage;
use lockstep_core::schema::{ReplicaIdentity, TableSchema};
use lockstep_transforms::Mask;
use serde_json::{Value, json};

const SALT: &str = "0123456789abcdef";

fn customers(identity: ReplicaIdentity) -> Arc<TableSchema> {
    table(
        "public.customers",
        &["id int8", "email text", "phone varchar", "born date"],
        &["id"],
        identity,
    )
}

fn all() -> Value {
    json!({"hash": ["email", "id"], "redact": ["phone", "born"], "salt": SALT})
}

/// HMAC-SHA-256 of `value` under the salt, 32 digits; values of `openssl dgst -sha256 -hmac 0123456789abcdef`.
fn hashed(value: &str) -> &'static str {
    match value {
        "1" => "6f51b61a3db920f1cbe06a4c38501bc0",
        "a@b.c" => "c8b9adc27ca0fc812e2cca09aab792e3",
        other => panic!("{other}"),
    }
}

#[test]
fn hashes_and_redacts() {
    let table = customers(ReplicaIdentity::Full);
    let mut mask = open::<Mask>(all(), &[&table]).unwrap();
    let batch = Feed::new()
        .begin(1, 1)
        .insert(&table, &["1", "a@b.c", "555", "2000-01-01"])
        .update_from(
            &table,
            OldImage::Full,
            &["1", "a@b.c", NULL, NULL],
            &["1", NULL, UNCHANGED, UNCHANGED],
        )
        .update(&table, &["1", UNCHANGED, "5", NULL])
        .finish();
    let before = lines(&batch);
    let keep = batch.with_changes(batch.changes().to_vec());
    let out = mask.apply_now(batch).unwrap();
    let (id, email) = (hashed("1"), hashed("a@b.c"));
    assert_eq!(
        lines(&out),
        [
            format!("insert public.customers id={id} email={email} phone=*** born=NULL"),
            format!(
                "update public.customers id={id} email=NULL phone=*** born=NULL <- id={id} email={email} phone=NULL born=NULL"
            ),
            format!("update public.customers id={id} email=? phone=*** born=NULL"),
        ]
    );
    assert_eq!(lines(&keep), before, "the input is left alone");
    let types: Vec<&str> = out.schemas()[0]
        .columns
        .iter()
        .map(|column| &*column.ty.name)
        .collect();
    assert_eq!(types, ["text", "text", "text", "date"]);
    assert!(Arc::ptr_eq(
        &mask.output(&table).unwrap(),
        &out.schemas()[0]
    ));
}

#[test]
fn deletes_meet_inserts() {
    let table = customers(ReplicaIdentity::Default);
    let mut mask = open::<Mask>(all(), &[&table]).unwrap();
    let batch = Feed::new()
        .begin(1, 1)
        .delete(&table, OldImage::Key, &["1", NULL, NULL, NULL])
        .finish();
    let expected = format!("delete public.customers <- id={}", hashed("1"));
    assert_eq!(lines(&mask.apply_now(batch).unwrap()), [expected]);
}

#[test]
fn refusals() {
    let table = customers(ReplicaIdentity::Default);
    for (config, part) in [
        (
            json!({"hash": ["email"], "salt": "short"}),
            "`salt` has 5 bytes",
        ),
        (json!({"hash": ["email"]}), "`salt` has 0 bytes"),
        (json!({}), "neither `hash` nor `redact`"),
        (json!({"redact": ["mail"]}), "write `email`"),
        (json!({"redact": ["id"]}), "cannot be redacted"),
        (
            json!({"hash": ["id"], "salt": SALT, "hash_length": 16}),
            "two rows could become one",
        ),
        (
            json!({"hash": ["email"], "salt": SALT, "hash_length": 65}),
            "`hash_length` is 65",
        ),
        (
            json!({"hash": ["email"], "redact": ["email"], "salt": SALT}),
            "in `hash` and in `redact`",
        ),
    ] {
        let error = refused::<Mask>(config, &[&table]).to_string();
        assert!(error.contains(part), "{error}");
        assert!(!error.contains(SALT));
    }
}
