//! Names that Avro allows: letters, digits and `_`, no digit first. What is not so is made fit as Debezium does it.

use lockstep_core::schema::{Column, TableSchema};
use lockstep_core::{Error, ErrorKind};

/// A name with `_` for what Avro does not allow, and before a digit that would be first.
pub(crate) fn fit(name: &str) -> String {
    let mut out = String::with_capacity(name.len() + 1);
    if !name.starts_with(|first: char| first == '_' || first.is_ascii_alphabetic())
        && !name.starts_with(|first: char| !first.is_ascii_digit())
    {
        out.push('_');
    }
    out.extend(name.chars().map(|c| match c {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '_' => c,
        _ => '_',
    }));
    out
}

/// What the records of a table are named behind: `orders.public.items`. A dot in the name of the source divides as in Debezium's.
pub(crate) fn namespace(schema: &TableSchema) -> String {
    let source = schema.source.split('.').map(fit);
    let table = [&schema.id.schema, &schema.id.name];
    let all = source.chain(table.map(|name| fit(name)));
    all.collect::<Vec<_>>().join(".")
}

/// Two columns would have one name.
#[cold]
pub(crate) fn clash(schema: &TableSchema, one: &Column, other: &Column) -> Error {
    let (one, other) = (&one.name, &other.name);
    Error::new(
        ErrorKind::Setup,
        format!(
            "columns `{one}` and `{other}` would both be `{}` in Avro",
            fit(one)
        ),
    )
    .remedy(
        "rename one of them, or drop it with a `project` transform; or set `encoding = \"json\"`",
    )
    .at(format!("table {}", schema.origin))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_made_fit() {
        for (name, fitting) in [
            ("id", "id"),
            ("_x", "_x"),
            ("order-no", "order_no"),
            ("2nd", "_2nd"),
            ("größe", "gr__e"),
            ("a.b", "a_b"),
            ("-1", "_1"),
            ("", "_"),
        ] {
            assert_eq!(fit(name), fitting, "{name}");
        }
    }
}
