//! Fields of an index, from the columns of a table.
//!
//! The source of a document always keeps the exact value; a field only says how it is searched. So fields are lenient:
//! a value that PostgreSQL has and the index has not (`NaN`, `infinity`, a year above 9999) is kept and not indexed.

use lockstep_core::schema::{ColumnType, TableSchema, TypeKind};
use lockstep_core::{Error, ErrorKind, Result};
use serde_json::{Map, Value, json};

/// Longest keyword, in characters, of which the server indexes the whole: 32766 bytes, four a character.
const KEYWORD_LIMIT: u32 = 8191;

/// Names that documents cannot have as a field.
const RESERVED: &[&str] = &[
    "_id",
    "_index",
    "_source",
    "_type",
    "_routing",
    "_field_names",
    "_ignored",
    "_version",
    "_seq_no",
    "_primary_term",
    "_nested_path",
    "_doc_count",
    "_size",
    "_tier",
    "_data_stream_timestamp",
];

/// The fields of a table, by column, with `overrides` in place of derived ones.
///
/// # Errors
/// When a column has a name that a field cannot have.
pub(super) fn properties(
    schema: &TableSchema,
    overrides: &Map<String, Value>,
) -> Result<Map<String, Value>> {
    let mut fields = Map::new();
    for column in &schema.columns {
        let name = &*column.name;
        if RESERVED.contains(&name) || name.split('.').any(|part| part.trim().is_empty()) {
            return Err(Error::new(
                ErrorKind::Setup,
                format!("column `{name}` has a name that a field of an index cannot have"),
            )
            .remedy("rename the column on its way with a `project` transform")
            .at(format!("table {}", schema.id)));
        }
        let field = overrides.get(name).cloned();
        fields.insert(
            name.to_owned(),
            field.unwrap_or_else(|| field_of(&column.ty)),
        );
    }
    Ok(fields)
}

fn field_of(ty: &ColumnType) -> Value {
    match &ty.kind {
        // A field takes one value or many: arrays are of the type of their elements.
        TypeKind::Array(element) => field_of(element),
        TypeKind::Enum | TypeKind::Range | TypeKind::Multirange | TypeKind::Composite => keyword(),
        TypeKind::Base => base(&ty.name),
    }
}

fn base(name: &str) -> Value {
    match name {
        "bool" => json!({"type": "boolean"}),
        // One type for all widths, so that widening a column needs no new index.
        "int2" | "int4" | "int8" | "oid" | "xid" | "cid" => {
            json!({"type": "long", "ignore_malformed": true})
        }
        "float4" | "float8" => json!({"type": "double", "ignore_malformed": true}),
        // Ranges and sums by the nearest double, equality by the exact digits.
        "numeric" => json!({
            "type": "double",
            "ignore_malformed": true,
            "fields": {"exact": {"type": "keyword", "ignore_above": 256}},
        }),
        "date" | "timestamp" | "timestamptz" => json!({
            "type": "date",
            "format": "strict_date_optional_time||epoch_millis",
            "ignore_malformed": true,
        }),
        "text" | "varchar" | "bpchar" | "citext" | "name" | "xml" => json!({
            "type": "text",
            "fields": {"keyword": {"type": "keyword", "ignore_above": 256}},
        }),
        // Any JSON is legal here, scalars too, and its keys are data: kept, not indexed. `fields` can say otherwise.
        "json" | "jsonb" | "hstore" => json!({"type": "object", "enabled": false}),
        "bytea" => json!({"type": "binary"}),
        // `inet` and `cidr` too: an `ip` field takes no network mask.
        _ => keyword(),
    }
}

fn keyword() -> Value {
    json!({"type": "keyword", "ignore_above": KEYWORD_LIMIT})
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn ty(name: &str, kind: TypeKind) -> ColumnType {
        ColumnType {
            oid: 0,
            typmod: -1,
            name: name.into(),
            kind,
        }
    }

    #[test]
    fn arrays_are_their_elements() {
        let element = Arc::new(ty("timestamptz", TypeKind::Base));
        assert_eq!(
            field_of(&ty("_timestamptz", TypeKind::Array(element)))["type"],
            "date"
        );
        assert_eq!(
            field_of(&ty("order_status", TypeKind::Enum))["type"],
            "keyword"
        );
        assert_eq!(field_of(&ty("jsonb", TypeKind::Base))["enabled"], false);
        assert_eq!(field_of(&ty("uuid", TypeKind::Base))["type"], "keyword");
    }

    #[test]
    fn metadata_names_are_refused() {
        let mut schema = TableSchema::message("orders".into());
        schema.columns[0].name = "_id".into();
        let error = properties(&schema, &Map::new()).expect_err("a reserved name");
        assert!(error.to_string().contains("`_id`"), "{error}");
        schema.columns[0].name = "id".into();
        let overrides = Map::from_iter([("id".to_owned(), json!({"type": "ip"}))]);
        assert_eq!(
            properties(&schema, &overrides).expect("legal")["id"]["type"],
            "ip"
        );
    }
}
