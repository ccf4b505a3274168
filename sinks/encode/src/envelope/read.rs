//! Reading records back: what a record says of its row, without taking the row apart.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{Content, Format};
use crate::value::toast;

/// What the value of a record says.
#[derive(Debug)]
pub struct Reading<'a> {
    /// What became of the row.
    pub said: Said<'a>,
    /// Whose row it is.
    pub place: Place<'a>,
}

/// What a record says of a row.
#[derive(Debug)]
pub enum Said<'a> {
    /// It is this.
    Row(Image<'a>),
    /// It has been deleted.
    Gone,
    /// All rows of the table have been.
    Truncated,
    /// Nothing: a logical message.
    Nothing,
}

/// Where a row lives.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
pub struct Place<'a> {
    /// Name of the source.
    #[serde(borrow, default)]
    pub name: Cow<'a, str>,
    /// Of the table.
    #[serde(borrow, default)]
    pub schema: Cow<'a, str>,
    /// Its name.
    #[serde(borrow, default)]
    pub table: Cow<'a, str>,
}

/// A row as a record has it: a JSON object.
#[derive(Debug)]
pub struct Image<'a> {
    /// Its text.
    pub text: &'a str,
    /// Columns that it does not have, or has only something in the place of: large values that an update left as they were.
    pub unchanged: Vec<Cow<'a, str>>,
    /// Name and value of each column that it has, as their texts.
    pub members: Vec<(Cow<'a, str>, &'a str)>,
}

#[derive(Deserialize)]
struct Debezium<'a> {
    #[serde(borrow, default)]
    after: Option<&'a RawValue>,
    #[serde(borrow, default)]
    source: Option<Place<'a>>,
    #[serde(borrow)]
    op: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Flat<'a> {
    #[serde(borrow)]
    op: Cow<'a, str>,
    #[serde(borrow, default)]
    source: Cow<'a, str>,
    #[serde(borrow, default)]
    schema: Cow<'a, str>,
    #[serde(borrow, default)]
    table: Cow<'a, str>,
    #[serde(borrow, default)]
    row: Option<&'a RawValue>,
    #[serde(borrow, default)]
    unchanged: Vec<Name<'a>>,
}

#[derive(Deserialize)]
struct Structured<'a> {
    #[serde(borrow)]
    data: &'a RawValue,
}

impl Format {
    /// What the value of a record in this format says; `None` when it is not in this format.
    #[must_use]
    pub fn read(self, value: &[u8]) -> Option<Reading<'_>> {
        match self {
            Format::Debezium(_) => {
                let read: Debezium<'_> = serde_json::from_slice(value).ok()?;
                let said = said(&read.op, read.after, |_, text| toast::is_unavailable(text))?;
                let place = read.source.unwrap_or_default();
                Some(Reading { said, place })
            }
            Format::CloudEvents(Content::Structured) => {
                let read: Structured<'_> = serde_json::from_slice(value).ok()?;
                Format::Flat.read(read.data.get().as_bytes())
            }
            Format::Flat | Format::CloudEvents(Content::Binary) => {
                let read: Flat<'_> = serde_json::from_slice(value).ok()?;
                let mut said = said(&read.op, read.row, |_, _| false)?;
                if let Said::Row(image) = &mut said {
                    image.unchanged = read.unchanged.into_iter().map(|name| name.0).collect();
                    image.unchanged.sort_unstable();
                    // In Avro a record has all columns.
                    let unchanged = &image.unchanged;
                    image.members.retain(|(name, _)| !unchanged.contains(name));
                }
                let place = Place {
                    name: read.source,
                    schema: read.schema,
                    table: read.table,
                };
                Some(Reading { said, place })
            }
        }
    }
}

fn said<'a>(
    op: &str,
    row: Option<&'a RawValue>,
    is_unchanged: impl Fn(&str, &str) -> bool,
) -> Option<Said<'a>> {
    Some(match (op, row) {
        ("r" | "c" | "u", Some(row)) => Said::Row(image(row.get(), is_unchanged)?),
        ("d", None) => Said::Gone,
        ("t", None) => Said::Truncated,
        ("m", None) => Said::Nothing,
        _ => return None,
    })
}

fn image<'a>(text: &'a str, is_unchanged: impl Fn(&str, &str) -> bool) -> Option<Image<'a>> {
    let mut members = members(text.as_bytes())?;
    let mut unchanged = Vec::new();
    members.retain(|(name, value)| {
        let left_out = is_unchanged(name, value);
        if left_out {
            unchanged.push(name.clone());
        }
        !left_out
    });
    unchanged.sort_unstable();
    Some(Image {
        text,
        unchanged,
        members,
    })
}

/// The members of a JSON object in order, each value as its text. `None` when it is no JSON object.
#[must_use]
pub fn members(text: &[u8]) -> Option<Vec<(Cow<'_, str>, &str)>> {
    serde_json::from_slice::<Members<'_>>(text)
        .ok()
        .map(|members| members.0)
}

/// Whether two JSON texts say the same: members of objects in any order, and any white space between tokens. Numbers are
/// compared digit for digit: `1.0` is not `1.00`.
#[must_use]
pub fn same_json(one: &str, other: &str) -> bool {
    if one == other {
        return true;
    }
    match (one.as_bytes().first(), other.as_bytes().first()) {
        (Some(b'{'), Some(b'{')) => {
            let (Some(mut one), Some(mut other)) =
                (members(one.as_bytes()), members(other.as_bytes()))
            else {
                return false;
            };
            one.sort_unstable();
            other.sort_unstable();
            let same = |((name, value), (other_name, other)): (&Member<'_>, &Member<'_>)| {
                name == other_name && same_json(value, other)
            };
            one.len() == other.len() && one.iter().zip(&other).all(same)
        }
        (Some(b'['), Some(b'[')) => {
            let list = |text| serde_json::from_str::<Vec<&RawValue>>(text).ok();
            let (Some(one), Some(other)) = (list(one), list(other)) else {
                return false;
            };
            let mut pairs = one.iter().zip(&other);
            one.len() == other.len() && pairs.all(|(one, other)| same_json(one.get(), other.get()))
        }
        (Some(b'"'), Some(b'"')) => {
            let text = |text| serde_json::from_str::<String>(text).ok();
            matches!((text(one), text(other)), (Some(one), Some(other)) if one == other)
        }
        _ => false,
    }
}

type Member<'a> = (Cow<'a, str>, &'a str);

struct Members<'a>(Vec<Member<'a>>);

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

/// A text, borrowed where it holds no escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use lockstep_core::batch::{OldImage, Op, Phase};

    use super::*;
    use crate::envelope::Encoder;
    use crate::testing::{Maker, Value, base, table};

    const FORMATS: [Format; 4] = [
        Format::Debezium(crate::envelope::DebeziumOptions {
            decimals: crate::envelope::DEFAULT_DECIMALS,
        }),
        Format::Flat,
        Format::CloudEvents(Content::Structured),
        Format::CloudEvents(Content::Binary),
    ];

    #[test]
    fn the_same_in_another_order_and_with_other_space_is_the_same() {
        for (one, other) in [
            (r#"{"a":1,"b":[1,"x"]}"#, r#"{ "b" : [ 1, "x" ], "a":1 }"#),
            (r#""\u0041""#, r#""A""#),
            ("[]", "[ ]"),
        ] {
            assert!(same_json(one, other), "{one} {other}");
        }
        for (one, other) in [
            ("1.0", "1.00"),
            (r#"{"a":1}"#, r#"{"a":1,"b":null}"#),
            (
                r#"{"a":12345678901234567890.1}"#,
                r#"{"a":12345678901234567890.2}"#,
            ),
            ("[1,2]", "[2,1]"),
            (r#"{"a":1}"#, "{"),
            ("null", "{}"),
        ] {
            assert!(!same_json(one, other), "{one} {other}");
        }
    }

    #[test]
    fn what_was_written_is_read() {
        let columns = [
            ("id", base(23, "int4")),
            ("note", base(25, "text")),
            ("big", base(25, "text")),
        ];
        let schema = table("t", &columns, 1);
        let row: [Value<'_>; 3] = ["1".into(), "x".into(), Value::Unchanged];
        let old: [Value<'_>; 3] = ["1".into(), Value::Null, Value::Null];
        let mut maker = Maker::new(1);
        maker
            .push(Op::Update, &schema, None, Some(&row))
            .push(Op::Delete, &schema, Some((OldImage::Key, &old)), None)
            .push(Op::Truncate, &schema, None, None);
        let batch = maker.batch(Phase::Stream);
        for format in FORMATS {
            let mut told = Vec::new();
            let mut encoder = Encoder::new(format);
            for change in batch.changes() {
                let emitted = encoder.encode(&batch, change, &mut |record| {
                    let Some(value) = record.value else {
                        return Ok(());
                    };
                    let reading = format.read(value).expect("it is in the format");
                    let place = &reading.place;
                    assert_eq!(
                        (&*place.name, &*place.schema, &*place.table),
                        ("orders", "public", "t")
                    );
                    told.push(match reading.said {
                        Said::Row(image) => {
                            assert_eq!(image.unchanged, ["big"]);
                            let note = r#""x""#;
                            let members = [("id".into(), "1"), ("note".into(), note)];
                            assert_eq!(image.members, members);
                            "row"
                        }
                        Said::Gone => "gone",
                        Said::Truncated => "truncated",
                        Said::Nothing => "nothing",
                    });
                    Ok(())
                });
                emitted.expect("encodes");
            }
            assert_eq!(told, ["row", "gone", "truncated"]);
        }
    }

    #[test]
    fn what_is_in_no_format_is_not_read() {
        for value in [
            "",
            "{",
            "1",
            "{}",
            r#"{"op":"u","after":null}"#,
            r#"{"op":"c","after":1}"#,
            r#"{"op":"d","after":{},"row":{}}"#,
            r#"{"op":7}"#,
        ] {
            for format in FORMATS {
                assert!(format.read(value.as_bytes()).is_none(), "{value}");
            }
        }
        assert!(Format::Flat.read(&[0xff]).is_none());
    }
}
