//! What stands for a TOASTed value that the log does not carry, in the `debezium` format.

use std::sync::LazyLock;

use super::plan::Plan;
use super::text::write_base64_string;
use super::types::Mapping;
use lockstep_core::schema::{ColumnType, TypeKind};

/// Debezium's `unavailable.value.placeholder`.
pub(crate) const PLACEHOLDER: &str = "__debezium_unavailable_value";

/// The name-based (version 3) UUID of the placeholder.
pub(crate) const PLACEHOLDER_UUID: &str = "b68a35a7-17ad-35b3-af2a-ae46edb4545a";

/// The JSON that stands for an unchanged value of a type.
pub(crate) fn unavailable(ty: &ColumnType, mapping: Mapping) -> Vec<u8> {
    let mut out = Vec::new();
    match mapping.plan(ty) {
        Plan::Array { element, .. } => match &ty.kind {
            TypeKind::Array(element_type) if &*element_type.name == "uuid" => {
                out.extend_from_slice(format!("[\"{PLACEHOLDER_UUID}\"]").as_bytes());
            }
            _ => write_list(&element, &mut out),
        },
        Plan::Vector { .. } => write_byte_values(&mut out),
        plan => write_single(&plan, &mut out),
    }
    out
}

/// Whether a JSON text is what [`unavailable`] writes for some type.
pub(crate) fn is_unavailable(json: &str) -> bool {
    // Long enough for few values to be looked at.
    if json.len() < PLACEHOLDER.len() {
        return false;
    }
    static ALL: LazyLock<Vec<String>> = LazyLock::new(|| {
        let single = [
            Plan::String,
            Plan::Bytea,
            Plan::HstoreString,
            Plan::Geometry,
        ];
        let mut all = vec![format!("[\"{PLACEHOLDER_UUID}\"]")];
        for plan in single {
            let mut out = Vec::new();
            write_single(&plan, &mut out);
            let text = String::from_utf8_lossy(&out).into_owned();
            all.push(format!("[{text}]"));
            all.push(text);
        }
        let mut out = Vec::new();
        write_byte_values(&mut out);
        let bytes = String::from_utf8_lossy(&out).into_owned();
        // What Avro has instead, as JSON: numbers with a fraction, in both mappings, and a decimal.
        all.push(bytes.replace(',', ".0,").replace(']', ".0]"));
        all.push(bytes);
        let mut decimal = br#"{"scale":0,"value":"#.to_vec();
        write_base64_string(PLACEHOLDER.as_bytes(), &mut decimal);
        all.push(String::from_utf8_lossy(&decimal).into_owned() + "}");
        all
    });
    ALL.iter().any(|text| text == json)
}

fn write_single(plan: &Plan, out: &mut Vec<u8>) {
    match plan {
        Plan::Bytea | Plan::Bits => write_base64_string(PLACEHOLDER.as_bytes(), out),
        Plan::HstoreString => out
            .extend_from_slice(format!(r#""{{\"{PLACEHOLDER}\":\"{PLACEHOLDER}\"}}""#).as_bytes()),
        Plan::Geometry => {
            out.extend_from_slice(br#"{"wkb":"#);
            write_base64_string(PLACEHOLDER.as_bytes(), out);
            out.extend_from_slice(br#","srid":null}"#);
        }
        _ => out.extend_from_slice(format!("\"{PLACEHOLDER}\"").as_bytes()),
    }
}

/// Arrays of numbers hold the placeholder's bytes, all others the placeholder of one element.
fn write_list(element: &Plan, out: &mut Vec<u8>) {
    match element {
        Plan::Integer
        | Plan::JavaFloat
        | Plan::JavaDouble
        | Plan::Days
        | Plan::Time(_)
        | Plan::Epoch(_)
        | Plan::IntervalMicros
        | Plan::DecimalDouble => write_byte_values(out),
        _ => {
            out.push(b'[');
            write_single(element, out);
            out.push(b']');
        }
    }
}

fn write_byte_values(out: &mut Vec<u8>) {
    out.push(b'[');
    for (index, byte) in PLACEHOLDER.bytes().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        out.extend_from_slice(itoa::Buffer::new().format(byte).as_bytes());
    }
    out.push(b']');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_for_a_value_is_known_again() {
        use crate::envelope::Decimals;
        use crate::testing::{array, base};
        let mapping = Mapping::Debezium(Decimals::String);
        for (oid, name) in [
            (25, "text"),
            (17, "bytea"),
            (1700, "numeric"),
            (3802, "jsonb"),
            (1562, "varbit"),
            (600, "point"),
            (16_400, "hstore"),
            (16_401, "vector"),
            (16_402, "geometry"),
            (23, "int4"),
            (2950, "uuid"),
            (1184, "timestamptz"),
        ] {
            for ty in [base(oid, name), array(base(oid, name))] {
                let text = unavailable(&ty, mapping);
                let text = String::from_utf8(text).expect("UTF-8");
                assert!(is_unavailable(&text), "{} {text}", ty.name);
            }
        }
        for other in ["\"x\"", "null", "\"__debezium_unavailable_values\""] {
            assert!(!is_unavailable(other), "{other}");
        }
    }

    #[test]
    fn byte_values() {
        let mut out = Vec::new();
        write_byte_values(&mut out);
        let bytes: Vec<u8> = serde_json::from_slice(&out).expect("JSON");
        assert_eq!(bytes, PLACEHOLDER.as_bytes());
    }
}
