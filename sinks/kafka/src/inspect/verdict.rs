//! What is told of a row whose record was read once more.

use lockstep_core::position::SourceInfo;
use lockstep_core::sink::{Held, HeldVersion};
use lockstep_encode::envelope::read::{Image, Said, members, same_json};
use lockstep_encode::envelope::{Format, HEADER_ID, HEADER_SOURCE};

use super::index::At;
use super::state::Asked;

/// What a report names: the topic, and the key in it.
fn key(asked: &Asked) -> String {
    format!("{} {}", asked.topic, String::from_utf8_lossy(&asked.key))
}

pub(super) fn missing(asked: &Asked) -> Held {
    Held::Missing { key: key(asked) }
}

/// The record has gone since it was found.
pub(super) fn gone(asked: &Asked, expired: bool) -> Held {
    match &asked.row {
        Some(_) if !expired => missing(asked),
        _ => Held::Same,
    }
}

/// One of too many to be read again now.
pub(super) fn unseen(asked: &Asked, at: At) -> Held {
    let actual = format!(
        "the record at offset {} of partition {}",
        at.offset, at.partition
    );
    different(asked, asked.row.clone(), actual, HeldVersion::Unknown)
}

/// The version of a record by its headers, which lockstep puts on all that it writes. (`lsn` in the value is that of the change, which
/// says less: what was committed before may lie behind it.) A record that the same source has of another log is of an earlier one: a
/// log that is given up is followed by one with a higher number.
pub(super) fn version<'h>(
    source: &SourceInfo,
    header: &impl Fn(&str) -> Option<&'h str>,
) -> HeldVersion {
    let id = header(HEADER_ID).and_then(SourceInfo::parse_change_id);
    let (Some((identity, position)), Some(name)) = (id, header(HEADER_SOURCE)) else {
        return HeldVersion::Unknown;
    };
    let is_earlier = identity.incarnation <= source.identity.incarnation;
    match identity == source.identity {
        _ if *name != *source.name => HeldVersion::Unknown,
        true => HeldVersion::At(position.commit),
        false if is_earlier => HeldVersion::EarlierLog,
        false => HeldVersion::Unknown,
    }
}

/// By what the record holds.
pub(super) fn of(
    format: Format,
    asked: &Asked,
    value: Option<&[u8]>,
    version: HeldVersion,
) -> Held {
    let Some(value) = value else {
        return gone(asked, false);
    };
    let whole = || String::from_utf8_lossy(value).into_owned();
    let reading = format.read(value).map(|reading| reading.said);
    match (&asked.row, reading) {
        (Some(row), Some(Said::Row(image))) => {
            let expected = as_far_as(row, &image);
            match same_json(&expected, image.text) {
                true => Held::Same,
                false => different(asked, Some(expected), image.text.to_owned(), version),
            }
        }
        (None, Some(Said::Row(image))) => different(asked, None, image.text.to_owned(), version),
        (row, _) => different(asked, row.clone(), whole(), version),
    }
}

fn different(
    asked: &Asked,
    expected: Option<String>,
    actual: String,
    version: HeldVersion,
) -> Held {
    let key = key(asked);
    match expected {
        None => Held::Extra { key, actual },
        Some(expected) => Held::Different {
            key,
            expected,
            actual,
            version,
        },
    }
}

/// The row that is expected, in what the record lacks as the record has it: values that an update left as they were are in an
/// earlier record.
fn as_far_as(expected: &str, image: &Image<'_>) -> String {
    if image.unchanged.is_empty() {
        return expected.to_owned();
    }
    let (Some(wanted), Some(held)) = (members(expected.as_bytes()), members(image.text.as_bytes()))
    else {
        return expected.to_owned();
    };
    let mut out = String::from("{");
    for (name, value) in wanted {
        let value = match image.unchanged.contains(&name) {
            false => Some(value),
            true => {
                let held = held.iter().find(|(held, _)| *held == name);
                held.map(|(_, value)| *value)
            }
        };
        if let Some(value) = value {
            if out.len() > 1 {
                out.push(',');
            }
            out.push_str(&serde_json::Value::from(&*name).to_string());
            out.push(':');
            out.push_str(value);
        }
    }
    out.push('}');
    out
}

#[cfg(test)]
mod tests {
    use lockstep_core::position::Lsn;
    use lockstep_core::schema::TableSchema;

    use super::*;
    use crate::inspect::log::Owner;

    fn asked(row: Option<&str>) -> Asked {
        Asked {
            topic: "t".into(),
            owner: Owner::of(&TableSchema::message("orders".into())),
            key: br#"{"id":1}"#.to_vec(),
            row: row.map(str::to_owned),
        }
    }

    /// How it stands by a record of this value.
    fn of(format: Format, asked: &Asked, value: Option<&[u8]>) -> Held {
        super::of(format, asked, value, HeldVersion::At(Lsn(7)))
    }

    #[test]
    fn headers_tell_of_which_log_a_record_is_and_of_which_place() {
        let source = |identity: &str| SourceInfo {
            name: "shop".into(),
            identity: identity.parse().expect("an identity"),
        };
        let told = |id: Option<&'static str>, name: &'static str, now: &str| {
            let header = |header: &str| match header {
                HEADER_ID => id,
                _ => Some(name),
            };
            version(&source(now), &header)
        };
        let id = Some("7/1.5/shop/000000001637f2a8/3");
        assert_eq!(
            told(id, "shop", "7/1.5/shop"),
            HeldVersion::At(Lsn(0x1637_f2a8))
        );
        assert_eq!(told(id, "shop", "7/1.6/shop"), HeldVersion::EarlierLog);
        assert_eq!(told(id, "shop", "8/2.6/shop"), HeldVersion::EarlierLog);
        assert_eq!(told(id, "shop", "7/1.4/shop"), HeldVersion::Unknown);
        assert_eq!(told(id, "other", "7/1.5/shop"), HeldVersion::Unknown);
        for none in [None, Some(""), Some("7/1.5/shop/x/3")] {
            assert_eq!(told(none, "shop", "7/1.5/shop"), HeldVersion::Unknown);
        }
    }

    const ROW: &str = r#"{"id":1,"note":"x","big":"y"}"#;

    fn debezium(after: &str) -> String {
        format!(r#"{{"before":null,"after":{after},"op":"u"}}"#)
    }

    #[test]
    fn the_row_counts_and_not_how_it_is_written() {
        for after in [ROW, r#"{ "note":"\u0078", "id":1, "big":"y" }"#] {
            let value = debezium(after);
            let held = of(Format::default(), &asked(Some(ROW)), Some(value.as_bytes()));
            assert_eq!(held, Held::Same, "{after}");
        }
        let after = r#"{"id":1,"note":"z","big":"y"}"#;
        let held = of(
            Format::default(),
            &asked(Some(ROW)),
            Some(debezium(after).as_bytes()),
        );
        let key = r#"t {"id":1}"#.to_owned();
        let expected = Held::Different {
            key: key.clone(),
            expected: ROW.to_owned(),
            actual: after.to_owned(),
            version: HeldVersion::At(Lsn(7)),
        };
        assert_eq!(held, expected);
        let actual = after.to_owned();
        let held = of(
            Format::default(),
            &asked(None),
            Some(debezium(after).as_bytes()),
        );
        assert_eq!(held, Held::Extra { key, actual });
    }

    #[test]
    fn what_a_record_lacks_is_not_compared() {
        let held =
            |format: Format, value: &str| of(format, &asked(Some(ROW)), Some(value.as_bytes()));
        let after = r#"{"id":1,"note":"x","big":"__debezium_unavailable_value"}"#;
        assert_eq!(held(Format::default(), &debezium(after)), Held::Same);
        let flat = |row: &str| format!(r#"{{"op":"u","row":{row},"unchanged":["big"]}}"#);
        assert_eq!(
            held(Format::Flat, &flat(r#"{"id":1,"note":"x"}"#)),
            Held::Same
        );
        let wrong = r#"{"id":1,"note":"z"}"#;
        match held(Format::Flat, &flat(wrong)) {
            Held::Different {
                expected, actual, ..
            } => assert_eq!(
                (expected.as_str(), actual.as_str()),
                (r#"{"id":1,"note":"x"}"#, wrong)
            ),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_no_row_is_shown_as_it_is() {
        for value in ["{\"op\":", "17"] {
            match of(Format::default(), &asked(Some(ROW)), Some(value.as_bytes())) {
                Held::Different { actual, .. } => assert_eq!(actual, value),
                other => panic!("{other:?}"),
            }
        }
    }
}
