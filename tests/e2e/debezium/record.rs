//! Records of either side, with JSON kept as the bytes it came in.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// A JSON object as it is written: fields in order, values unread.
#[derive(Clone, Debug, Default)]
pub struct Fields(pub Vec<(String, Box<RawValue>)>);

impl Fields {
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.get())
    }

    /// The fields of an object; none for anything else.
    pub fn of(json: &str) -> Option<Self> {
        json.starts_with('{')
            .then(|| serde_json::from_str(json).expect("an object"))
    }
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Fields(pairs))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

/// A record as it was emitted.
#[derive(Clone, Debug)]
pub struct Record {
    pub topic: String,
    /// `null` for none.
    pub key: String,
    /// `null` for a tombstone.
    pub value: String,
    /// Those that the format defines: neither side's own.
    pub headers: Vec<(String, String)>,
}

impl Record {
    /// The text of a field of `source`.
    pub fn source(&self, name: &str) -> Option<String> {
        let source = Fields::of(&self.value)?.get("source")?.to_owned();
        Fields::of(&source)?.get(name).map(str::to_owned)
    }

    pub fn is_snapshot(&self) -> bool {
        Fields::of(&self.value).is_some_and(|value| value.get("op") == Some("\"r\""))
    }
}
