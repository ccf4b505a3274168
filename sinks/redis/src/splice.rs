//! Taking a JSON object apart without touching its values.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

struct Members<'a>(Vec<(Cow<'a, str>, &'a str)>);

/// The members of a JSON object in order, each value as its text. `None` when it is no JSON object.
pub(crate) fn parse(text: &[u8]) -> Option<Vec<(Cow<'_, str>, &str)>> {
    serde_json::from_slice::<Members<'_>>(text)
        .ok()
        .map(|members| members.0)
}

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MembersVisitor)
    }
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        while let Some(Name(name)) = map.next_key()? {
            let value: &RawValue = map.next_value()?;
            members.push((name, value.get()));
        }
        Ok(Members(members))
    }
}

/// A member's name, borrowed where it holds no escapes.
struct Name<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameVisitor;
        impl<'de> Visitor<'de> for NameVisitor {
            type Value = Name<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a name")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Name(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Name(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(NameVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_keep_their_text() {
        let text = br#"{"n":12345678901234567890.10,"a\"b":[1, 2],"e":1e400,"z":null}"#;
        let members = parse(text).expect("an object");
        let members: Vec<_> = members
            .iter()
            .map(|(name, value)| (&**name, *value))
            .collect();
        assert_eq!(
            members,
            [
                ("n", "12345678901234567890.10"),
                ("a\"b", "[1, 2]"),
                ("e", "1e400"),
                ("z", "null")
            ]
        );
    }

    #[test]
    fn anything_else_is_none() {
        for text in [&b""[..], b"[1]", b"{", b"\xff", b"null"] {
            assert!(parse(text).is_none());
        }
    }
}
