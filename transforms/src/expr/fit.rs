//! What goes together: literals beside columns, and types beside types.

use std::borrow::Cow;

use super::node::Node;
use super::types::Type;
use super::value::Value;

/// Whole numbers up to this are floats without loss.
const EXACT: u64 = 1 << 53;

/// A number in the text takes the type of what it stands beside, so that `total > 10.5` is exact for a `numeric`.
pub(super) fn fit(node: Node, ty: Type, beside: &Type) -> (Node, Type) {
    let fitted = match (&node, beside) {
        (Node::Constant(Value::Int(value)), Type::Decimal) => {
            Value::Decimal(Cow::Owned(value.to_string()))
        }
        (Node::Constant(Value::Double(value)), Type::Decimal) if value.is_finite() => {
            Value::Decimal(Cow::Owned(value.to_string()))
        }
        (Node::Constant(Value::Int(value)), Type::Double) if value.unsigned_abs() <= EXACT => {
            Value::Double(*value as f64)
        }
        _ => return (node, ty),
    };
    (Node::Constant(fitted), beside.clone())
}

/// Whether values of two types can be compared, or ordered.
pub(super) fn goes_with(a: &Type, b: &Type, ordered: bool) -> bool {
    match (a, b) {
        (Type::Null, _) | (_, Type::Null) => !ordered,
        (Type::Moment, Type::Moment) | (Type::Duration, Type::Duration) => true,
        (Type::Bool, Type::Bool) => !ordered,
        (Type::Text, Type::Text) => true,
        (Type::Json, other) | (other, Type::Json) => {
            let scalar = other.is_text() || other.is_number();
            !ordered && (scalar || matches!(other, Type::Json | Type::Bool))
        }
        (Type::List(a), Type::List(b)) => !ordered && goes_with(a, b, false),
        (a, b) if a.is_text() && b.is_text() => !ordered,
        (a, b) => a.is_number() && b.is_number(),
    }
}
