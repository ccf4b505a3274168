//! The Avro type of a column, and how its values are written: decided together, so that they agree.

use std::collections::BTreeSet;

use lockstep_core::schema::{ColumnType, TypeKind};
use serde_json::{Value, json};

use super::form::Form;
use crate::value::decimal::Money;
use crate::value::temporal::Unit;
use crate::value::types::{element_of, numeric_precision, oid};
use crate::value::{Mapping, Plan};

/// What Connect takes for the digits of a decimal that does not tell.
const MOST_DIGITS: u32 = 64;

/// Types that are defined where they are first used, and only named from there on.
pub(super) type Defined = BTreeSet<&'static str>;

/// The type of a column.
pub(super) struct Typed {
    pub(super) form: Form,
    pub(super) schema: Value,
}

/// `None` where the mapping leaves the type out.
pub(super) fn of(mapping: Mapping, ty: &ColumnType, defined: &mut Defined) -> Option<Typed> {
    let (form, schema) = match mapping.plan(ty) {
        Plan::Omit => return None,
        Plan::Array { delimiter, .. } => {
            let TypeKind::Array(element) = &ty.kind else {
                return None;
            };
            let inner = of(mapping, &element_of(ty, element), defined)?;
            let form = Form::Array {
                delimiter,
                element: Box::new(inner.form),
            };
            (
                form,
                json!({"type": "array", "items": ["null", inner.schema]}),
            )
        }
        Plan::String => match (mapping, text_name(ty)) {
            (Mapping::Debezium(_), Some(name)) => {
                let form = match ty.oid {
                    oid::UUID => Form::Uuid,
                    _ => Form::Text,
                };
                (form, named("string", name))
            }
            _ => (Form::Text, json!("string")),
        },
        Plan::Bool => (Form::Bool, json!("boolean")),
        Plan::Bit => (Form::Bit, json!("boolean")),
        Plan::Integer => match ty.oid {
            oid::INT2 => (Form::Int, json!({"type": "int", "connect.type": "int16"})),
            oid::INT4 => (Form::Int, json!("int")),
            _ => (Form::Long, json!("long")),
        },
        Plan::Float | Plan::JavaFloat | Plan::JavaDouble => match ty.oid {
            oid::FLOAT4 => (Form::Single, json!("float")),
            _ => (Form::Double, json!("double")),
        },
        plan @ (Plan::DecimalNatural
        | Plan::DecimalText
        | Plan::Money(Money::Text)
        | Plan::BitText
        | Plan::DateIso
        | Plan::TimestampIso
        | Plan::TimeIso
        | Plan::TimetzIso
        | Plan::IntervalIso) => (Form::Quoted(plan), json!("string")),
        plan @ Plan::Instant(_) => {
            let schema = match mapping {
                Mapping::Natural => json!("string"),
                Mapping::Debezium(_) => named("string", "io.debezium.time.ZonedTimestamp"),
            };
            (Form::Quoted(plan), schema)
        }
        plan @ Plan::TimeUtc => (
            Form::Quoted(plan),
            named("string", "io.debezium.time.ZonedTime"),
        ),
        Plan::DecimalDouble => (Form::Double, json!("double")),
        plan @ Plan::Money(Money::Double) => (Form::Reckoned(plan), json!("double")),
        plan @ Plan::Money(Money::Precise) => (Form::Coded(plan), decimal(MOST_DIGITS, 2)),
        Plan::DecimalPrecise(scale) => {
            let digits = numeric_precision(ty.typmod).unwrap_or(MOST_DIGITS);
            // A fraction may have more digits than the number; Avro does not know that.
            let digits = digits.max(u32::from(scale));
            (Form::Precise(scale), decimal(digits, scale))
        }
        Plan::DecimalVariable => (Form::Variable, variable_decimal(defined)),
        Plan::Bytea => (Form::Bytes, json!("bytes")),
        plan @ Plan::Bits => {
            let mut schema = named("bytes", "io.debezium.data.Bits");
            if ty.typmod > 0 {
                schema["connect.parameters"] = json!({"length": ty.typmod.to_string()});
            }
            (Form::Coded(plan), schema)
        }
        plan @ Plan::Days => (
            Form::CountedInt(plan),
            named("int", "io.debezium.time.Date"),
        ),
        plan @ Plan::Time(Unit::Millis) => (
            Form::CountedInt(plan),
            named("int", "io.debezium.time.Time"),
        ),
        plan @ Plan::Time(Unit::Micros) => (
            Form::Counted(plan),
            named("long", "io.debezium.time.MicroTime"),
        ),
        Plan::Epoch(unit) => {
            let name = match unit {
                Unit::Millis => "io.debezium.time.Timestamp",
                Unit::Micros => "io.debezium.time.MicroTimestamp",
            };
            (Form::Epoch(unit), named("long", name))
        }
        plan @ Plan::IntervalMicros => (
            Form::Counted(plan),
            named("long", "io.debezium.time.MicroDuration"),
        ),
        Plan::Json => (Form::Document, named("string", DOCUMENT)),
        Plan::Hstore => (
            Form::Hstore,
            json!({"type": "map", "values": ["null", "string"]}),
        ),
        Plan::HstoreString => (Form::HstoreText, named("string", DOCUMENT)),
        Plan::Point => (Form::Point, point(defined)),
        Plan::Vector { single: true } => (
            Form::Vector { single: true },
            vector("float", "io.debezium.data.FloatVector"),
        ),
        Plan::Vector { single: false } => (
            Form::Vector { single: false },
            vector("double", "io.debezium.data.DoubleVector"),
        ),
        Plan::SparseVector => (Form::SparseVector, sparse_vector(defined)),
        Plan::Geometry => (Form::Geometry, geometry(ty, defined)),
    };
    Some(Typed { form, schema })
}

/// What Debezium calls a JSON document.
pub(super) const DOCUMENT: &str = "io.debezium.data.Json";
/// What Connect calls a pair of a map whose keys are no strings.
pub(super) const PAIR: &str = "io.confluent.connect.avro.MapEntry";

/// What Debezium calls a type whose values are text.
fn text_name(ty: &ColumnType) -> Option<&'static str> {
    if matches!(ty.kind, TypeKind::Enum) {
        return Some("io.debezium.data.Enum");
    }
    match ty.oid {
        oid::UUID => Some("io.debezium.data.Uuid"),
        oid::JSON | oid::JSONB => Some(DOCUMENT),
        oid::XML => Some("io.debezium.data.Xml"),
        oid::TSVECTOR => Some("io.debezium.data.Tsvector"),
        _ if &*ty.name == "ltree" => Some("io.debezium.data.Ltree"),
        _ => None,
    }
}

/// A type with a meaning.
fn named(primitive: &str, name: &str) -> Value {
    json!({"type": primitive, "connect.version": 1, "connect.name": name})
}

fn decimal(precision: u32, scale: u16) -> Value {
    json!({
        "type": "bytes",
        "scale": scale,
        "precision": precision,
        "connect.version": 1,
        "connect.parameters": {"scale": scale.to_string(), "connect.decimal.precision": precision.to_string()},
        "connect.name": "org.apache.kafka.connect.data.Decimal",
        "logicalType": "decimal",
    })
}

fn vector(number: &str, name: &str) -> Value {
    json!({"type": "array", "items": number, "connect.version": 1, "connect.name": name})
}

/// A record of its full name, or the name where it is defined already.
fn record(name: &'static str, doc: &str, fields: Value, defined: &mut Defined) -> Value {
    if !defined.insert(name) {
        return json!(name);
    }
    let (namespace, short) = name.rsplit_once('.').unwrap_or(("", name));
    json!({
        "type": "record",
        "name": short,
        "namespace": namespace,
        "doc": doc,
        "fields": fields,
        "connect.version": 1,
        "connect.doc": doc,
        "connect.name": name,
    })
}

fn variable_decimal(defined: &mut Defined) -> Value {
    let fields = json!([{"name": "scale", "type": "int"}, {"name": "value", "type": "bytes"}]);
    record(
        "io.debezium.data.VariableScaleDecimal",
        "Variable scaled decimal",
        fields,
        defined,
    )
}

fn point(defined: &mut Defined) -> Value {
    let fields = json!([
        {"name": "x", "type": "double"},
        {"name": "y", "type": "double"},
        {"name": "wkb", "type": ["null", "bytes"], "default": null},
        {"name": "srid", "type": ["null", "int"], "default": null},
    ]);
    let name = "io.debezium.data.geometry.Point";
    record(name, "Geometry (POINT)", fields, defined)
}

fn geometry(ty: &ColumnType, defined: &mut Defined) -> Value {
    let fields = json!([
        {"name": "wkb", "type": "bytes"},
        {"name": "srid", "type": ["null", "int"], "default": null},
    ]);
    let name = match &*ty.name {
        "geography" => "io.debezium.data.geometry.Geography",
        _ => "io.debezium.data.geometry.Geometry",
    };
    record(name, "Geometry", fields, defined)
}

fn sparse_vector(defined: &mut Defined) -> Value {
    let pair = json!([
        {"name": "key", "type": {"type": "int", "connect.type": "int16"}},
        {"name": "value", "type": "double"},
    ]);
    if defined.contains(SPARSE) {
        return json!(SPARSE);
    }
    let pair = record(PAIR, "", pair, defined);
    let fields = json!([
        {"name": "dimensions", "type": {"type": "int", "connect.type": "int16"}},
        {"name": "vector", "type": {"type": "array", "items": pair}},
    ]);
    record(SPARSE, "Sparse double vector", fields, defined)
}

const SPARSE: &str = "io.debezium.data.SparseDoubleVector";
