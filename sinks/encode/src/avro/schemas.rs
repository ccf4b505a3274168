//! The schemas of a table's records, as a registry gets them. The same table gives the same text in every run, so that a registry
//! gives the same id.

use std::sync::Arc;

use lockstep_core::Result;
use lockstep_core::schema::TableSchema;
use serde_json::{Value, json};

use super::columns::Columns;
use super::names::namespace;
use crate::envelope::Format;
use crate::value::Mapping;

/// A schema to be registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// The full name of its record: `orders.public.items.Envelope`.
    pub name: String,
    /// The schema, as JSON.
    pub text: String,
}

/// The schemas of the records of one version of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schemas {
    /// Of keys; `None` for a table without one.
    pub key: Option<Described>,
    /// Of values.
    pub value: Described,
}

/// In the `debezium` envelope, what Debezium calls its `source`.
const SOURCE: &str = "io.debezium.connector.postgresql.Source";
/// What the key of a logical message is called: by Debezium, and in the `flat` envelope.
const MESSAGE_KEYS: [&str; 2] = [
    "io.debezium.connector.postgresql.MessageKey",
    "lockstep.MessageKey",
];
/// The same of its value.
const MESSAGES: [&str; 2] = [
    "io.debezium.connector.postgresql.MessageValue",
    "lockstep.Message",
];

impl Schemas {
    /// Those of a table in an envelope; `None` for events of an outbox, which are what the application wrote.
    ///
    /// # Errors
    /// Kind `Setup`, when the names of two columns clash.
    pub fn of(format: Format, schema: &Arc<TableSchema>) -> Result<Option<Self>> {
        if schema.destination().is_some() {
            return Ok(None);
        }
        let is_flat = !matches!(format, Format::Debezium(_));
        if schema.id.name.is_empty() {
            let value = match is_flat {
                true => flat_message(),
                false => debezium_message(),
            };
            let key = message_key(MESSAGE_KEYS[usize::from(is_flat)]);
            return Ok(Some(Schemas {
                key: Some(described(key)),
                value: described(value),
            }));
        }
        let mapping = format.mapping();
        let key = key(schema, mapping)?;
        let value = match is_flat {
            true => flat(schema, key.as_ref())?,
            false => debezium(schema, mapping)?,
        };
        Ok(Some(Schemas {
            key: key.map(described),
            value: described(value),
        }))
    }
}

fn described(schema: Value) -> Described {
    let part = |name: &str| schema[name].as_str().unwrap_or_default().to_owned();
    Described {
        name: format!("{}.{}", part("namespace"), part("name")),
        text: schema.to_string(),
    }
}

/// A record of a full name.
fn record(name: &str, version: u32, fields: Value) -> Value {
    let (namespace, short) = name.rsplit_once('.').unwrap_or(("", name));
    json!({
        "type": "record",
        "name": short,
        "namespace": namespace,
        "fields": fields,
        "connect.version": version,
        "connect.name": name,
    })
}

fn field(name: &str, ty: Value) -> Value {
    json!({"name": name, "type": ty})
}

fn optional(name: &str, ty: Value) -> Value {
    json!({"name": name, "type": ["null", ty], "default": null})
}

fn key(schema: &Arc<TableSchema>, mapping: Mapping) -> Result<Option<Value>> {
    let (columns, fields) = Columns::key(schema, mapping)?;
    let name = format!("{}.Key", namespace(schema));
    Ok((!columns.is_empty()).then(|| record(&name, 1, Value::Array(fields))))
}

fn message_key(name: &str) -> Value {
    record(name, 1, json!([optional("prefix", json!("string"))]))
}

fn debezium(schema: &Arc<TableSchema>, mapping: Mapping) -> Result<Value> {
    let namespace = namespace(schema);
    let (_, fields) = Columns::all(schema, mapping)?;
    let name = format!("{namespace}.Value");
    let row = record(&name, 1, Value::Array(fields));
    let fields = json!([
        optional("before", row),
        optional("after", json!(name)),
        field("source", source()),
        optional("transaction", transaction()),
        field("op", json!("string")),
        optional("ts_ms", json!("long")),
        optional("ts_us", json!("long")),
        optional("ts_ns", json!("long")),
    ]);
    Ok(record(&format!("{namespace}.Envelope"), 2, fields))
}

fn debezium_message() -> Value {
    let message = record(
        "io.debezium.connector.postgresql.Message",
        1,
        json!([
            optional("prefix", json!("string")),
            optional("content", json!("bytes"))
        ]),
    );
    let fields = json!([
        field("op", json!("string")),
        optional("ts_ms", json!("long")),
        field("source", source()),
        optional("transaction", transaction()),
        field("message", message),
    ]);
    record(MESSAGES[0], 1, fields)
}

fn source() -> Value {
    let snapshot = json!({
        "type": "string",
        "connect.version": 1,
        "connect.parameters": {"allowed": "true,first,first_in_data_collection,last_in_data_collection,last,false,incremental"},
        "connect.default": "false",
        "connect.name": "io.debezium.data.Enum",
    });
    let fields = json!([
        field("version", json!("string")),
        field("connector", json!("string")),
        field("name", json!("string")),
        field("ts_ms", json!("long")),
        {"name": "snapshot", "type": [snapshot, "null"], "default": "false"},
        field("db", json!("string")),
        optional("sequence", json!("string")),
        optional("ts_us", json!("long")),
        optional("ts_ns", json!("long")),
        field("schema", json!("string")),
        field("table", json!("string")),
        optional("txId", json!("long")),
        optional("lsn", json!("long")),
        optional("xmin", json!("long")),
        optional("origin", json!("string")),
        optional("origin_lsn", json!("long")),
    ]);
    record(SOURCE, 1, fields)
}

fn transaction() -> Value {
    let fields = json!([
        field("id", json!("string")),
        field("total_order", json!("long")),
        field("data_collection_order", json!("long")),
    ]);
    record("event.block", 1, fields)
}

fn flat(schema: &Arc<TableSchema>, key: Option<&Value>) -> Result<Value> {
    let namespace = namespace(schema);
    let (_, fields) = Columns::all(schema, Mapping::Natural)?;
    let name = format!("{namespace}.Row");
    let row = record(&name, 1, Value::Array(fields));
    let mut fields = flat_head();
    match key {
        Some(key) => {
            let name = format!("{namespace}.Key");
            fields.push(optional("key", key.clone()));
            fields.push(optional("new_key", json!(name)));
            fields.push(optional("old_key", json!(name)));
        }
        None => fields.push(json!({"name": "key", "type": "null", "default": null})),
    }
    fields.push(optional("row", row));
    fields.push(optional("old", json!(name)));
    let names = json!({"type": "array", "items": "string"});
    fields.push(json!({"name": "unchanged", "type": names, "default": []}));
    fields.push(duplicate());
    Ok(record(
        &format!("{namespace}.Change"),
        1,
        Value::Array(fields),
    ))
}

fn flat_message() -> Value {
    let message = record(
        "lockstep.MessageContent",
        1,
        json!([
            field("prefix", json!("string")),
            field("content", json!("bytes"))
        ]),
    );
    let mut fields = flat_head();
    fields.push(field("message", message));
    fields.push(duplicate());
    record(MESSAGES[1], 1, Value::Array(fields))
}

fn flat_head() -> Vec<Value> {
    vec![
        field("op", json!("string")),
        field("source", json!("string")),
        field("schema", json!("string")),
        field("table", json!("string")),
        field("commit_lsn", json!("string")),
        field("ordinal", json!("long")),
        optional("xid", json!("long")),
        field("ts", json!("string")),
    ]
}

fn duplicate() -> Value {
    json!({"name": "duplicate", "type": "boolean", "default": false})
}
