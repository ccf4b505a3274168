//! Events that logical messages say.

use std::borrow::Cow;
use std::collections::BTreeMap;

use lockstep_core::batch::{CellRef, Row};
use serde_json::value::RawValue;

/// A logical message.
pub(super) struct Message<'a> {
    pub(super) prefix: &'a [u8],
    pub(super) content: &'a [u8],
}

/// The two cells of [`lockstep_core::schema::TableSchema::message`].
pub(super) fn message(row: Row<'_>) -> Option<Message<'_>> {
    let mut columns = row.values();
    let mut bytes = || match columns.next()? {
        CellRef::Text(bytes) | CellRef::Binary(bytes) => Some(bytes),
        CellRef::Null | CellRef::Unchanged => None,
    };
    Some(Message {
        prefix: bytes()?,
        content: bytes()?,
    })
}

/// The fields of a message's content.
pub(super) struct Fields<'a>(BTreeMap<String, &'a RawValue>);

impl<'a> Fields<'a> {
    /// `None` when the content is no JSON object.
    pub(super) fn read(content: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(content).ok().map(Fields)
    }

    /// The value of a field: of a string what it says, of others their JSON. `None` for null, and for what is not there.
    pub(super) fn get(&self, name: &str) -> Option<Cow<'a, [u8]>> {
        let json = self.0.get(name)?.get();
        match json.as_bytes().first()? {
            b'n' => None,
            b'"' => {
                let text: String = serde_json::from_str(json).ok()?;
                Some(Cow::Owned(text.into_bytes()))
            }
            _ => Some(Cow::Borrowed(json.as_bytes())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_texts_or_json() {
        let content =
            br#"{"a": "x\n\u00e4", "b": {"n": 1.50,  "m": []}, "c": null, "d": 7, "a\u0062": "1"}"#;
        let fields = Fields::read(content).expect("an object");
        let get = |name| {
            fields
                .get(name)
                .map(|value| String::from_utf8_lossy(&value).into_owned())
        };
        assert_eq!(get("a").as_deref(), Some("x\nä"));
        assert_eq!(get("b").as_deref(), Some(r#"{"n": 1.50,  "m": []}"#));
        assert_eq!(get("c"), None);
        assert_eq!(get("d").as_deref(), Some("7"));
        assert_eq!(get("ab").as_deref(), Some("1"));
        assert_eq!(get("e"), None);
        assert!(Fields::read(b"[1]").is_none() && Fields::read(b"{").is_none());
    }
}
