//! Values that pipeline files use: secrets, durations, byte sizes.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration as StdDuration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error as _, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A text that is never printed: passwords, tokens, URLs with credentials.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SecretVisitor)
    }
}

/// Takes texts. What is of another type is not repeated, as serde itself would: a password of digits without its quotes is one all the
/// same.
struct SecretVisitor;

impl Visitor<'_> for SecretVisitor {
    type Value = Secret;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text in quotes")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Secret, E> {
        Ok(Secret::new(text))
    }

    fn visit_string<E: serde::de::Error>(self, text: String) -> Result<Secret, E> {
        Ok(Secret(text))
    }

    fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<Secret, E> {
        Err(E::invalid_type(Unexpected::Other("a boolean"), &self))
    }

    fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<Secret, E> {
        Err(E::invalid_type(Unexpected::Other("a number"), &self))
    }

    fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<Secret, E> {
        Err(E::invalid_type(Unexpected::Other("a number"), &self))
    }

    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<Secret, E> {
        Err(E::invalid_type(Unexpected::Other("a number"), &self))
    }
}

impl Secret {
    /// Wraps a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Secret(text.into())
    }

    /// The secret itself. For the place that uses it, never for logs.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// A URL without its user name, password and query, for messages: `redis://127.0.0.1:6379`. Where a password with an unencoded `/`,
    /// `?` or `#` may have cut it in the wrong place, only the scheme: `redis://***`.
    #[must_use]
    pub fn redacted_url(&self) -> String {
        let Some((scheme, rest)) = self.0.split_once("://") else {
            return "***".to_owned();
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, behind) = rest.split_at(end);
        if behind.contains('@') {
            return format!("{scheme}://***");
        }
        let path = behind.split(['?', '#']).next().unwrap_or_default();
        let host = authority
            .rsplit_once('@')
            .map_or(authority, |(_, host)| host);
        format!("{scheme}://{host}{path}")
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl JsonSchema for Secret {
    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A secret. Write `${NAME}` to take it from the environment or `${file:/path}` from a file."
        })
    }
}

/// A length of time, written `250ms`, `10s`, `15m`, `24h`, `7d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Duration(pub StdDuration);

impl Duration {
    /// Parses `250ms`, `10s`, `15m`, `24h`, `7d`.
    ///
    /// # Errors
    /// A sentence that says what is wrong and which units there are.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{text}` is not a duration; write a whole number and a unit of ms, s, m, h or d, such as 15m"
            )
        };
        let split = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u64 = text[..split].parse().map_err(|_| wrong())?;
        let millis = match &text[split..] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(wrong()),
        };
        let millis = number.checked_mul(millis).ok_or_else(wrong)?;
        Ok(Duration(StdDuration::from_millis(millis)))
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        for (size, unit) in [
            (86_400_000, "d"),
            (3_600_000, "h"),
            (60_000, "m"),
            (1_000, "s"),
        ] {
            if millis > 0 && millis.is_multiple_of(size) {
                return write!(f, "{}{unit}", millis / size);
            }
        }
        write!(f, "{millis}ms")
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Duration::parse(&text).map_err(D::Error::custom)
    }
}

/// As a pipeline file has it: so defaults are in the schema.
impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^[0-9]+(ms|s|m|h|d)$",
            "description": "A length of time: a whole number and a unit of ms, s, m, h or d.",
            "examples": ["250ms", "10s", "15m", "24h", "7d"]
        })
    }
}

/// A number of bytes, written `64KiB`, `16MiB`, `2GiB`, or a bare number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// Parses `512`, `64KiB`, `16MiB`, `2GiB`; `kB`, `MB`, `GB` are powers of ten.
    ///
    /// # Errors
    /// A sentence that says what is wrong and which units there are.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{text}` is not a size; write a whole number and a unit of B, KiB, MiB, GiB, kB, MB or GB, such as 64MiB"
            )
        };
        let split = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        let number: u64 = text[..split].parse().map_err(|_| wrong())?;
        let factor = match text[split..].trim() {
            "" | "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "kB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            _ => return Err(wrong()),
        };
        number.checked_mul(factor).map(ByteSize).ok_or_else(wrong)
    }

    /// As `usize`, saturating.
    #[must_use]
    pub fn bytes(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (size, unit) in [
            (1 << 30, "GiB"),
            (1 << 20, "MiB"),
            (1_000_000_000, "GB"),
            (1_000_000, "MB"),
            (1 << 10, "KiB"),
            (1_000, "kB"),
        ] {
            if self.0 > 0 && self.0.is_multiple_of(size) {
                return write!(f, "{}{unit}", self.0 / size);
            }
        }
        write!(f, "{}", self.0)
    }
}

/// As a pipeline file has it: so defaults are in the schema.
impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(u64),
            Text(String),
        }
        match Either::deserialize(deserializer)? {
            Either::Number(bytes) => Ok(ByteSize(bytes)),
            Either::Text(text) => ByteSize::parse(&text).map_err(D::Error::custom),
        }
    }
}

impl JsonSchema for ByteSize {
    fn schema_name() -> Cow<'static, str> {
        "ByteSize".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["string", "integer"],
            "description": "A number of bytes: a whole number, alone or with a unit of B, KiB, MiB, GiB, kB, MB or GB.",
            "examples": ["64KiB", "16MiB", 1048576]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_parse_and_print() {
        for text in ["250ms", "10s", "15m", "24h", "7d"] {
            let shown = Duration::parse(text).expect(text).to_string();
            assert_eq!(Duration::parse(&shown), Duration::parse(text));
        }
        for bad in [
            "",
            "10",
            "s",
            "1.5h",
            "10 s",
            "99999999999999999999d",
            "18446744073709551615d",
        ] {
            assert!(Duration::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_parse() {
        assert_eq!(ByteSize::parse("64KiB"), Ok(ByteSize(65_536)));
        assert_eq!(ByteSize::parse("1MB"), Ok(ByteSize(1_000_000)));
        assert!(ByteSize::parse("1 apple").is_err());
        for text in ["64KiB", "32MiB", "15MB", "1GiB", "100kB", "512"] {
            let size = ByteSize::parse(text).expect(text);
            assert_eq!(size.to_string(), text);
        }
    }

    #[test]
    fn secrets_do_not_print() {
        let secret = Secret::new("postgres://u:p@h:5432/db?sslmode=disable");
        assert_eq!(format!("{secret:?}"), "***");
        assert_eq!(secret.redacted_url(), "postgres://h:5432/db");
    }

    #[test]
    fn no_part_of_a_password_is_taken_for_a_host_or_a_path() {
        for (url, shown) in [
            ("redis://u:pa/ss@h:1/0", "redis://***"),
            ("redis://u:pa?ss@h:1/0", "redis://***"),
            ("redis://u:pa#ss@h:1/0", "redis://***"),
            ("redis://u:p@a/ss@h:1/0", "redis://***"),
            ("redis://u:p@a@h:1/0", "redis://h:1/0"),
            (
                "https://h:9200/search/?key=pass#pass",
                "https://h:9200/search/",
            ),
            ("u:pass@h", "***"),
        ] {
            assert_eq!(Secret::new(url).redacted_url(), shown, "{url}");
        }
    }

    #[test]
    fn a_secret_of_another_type_is_not_repeated() {
        for text in ["90210", "-90210", "90210.5", "true"] {
            let value: serde_json::Value = serde_json::from_str(text).expect("JSON");
            let error = serde_json::from_value::<Secret>(value).expect_err(text);
            let error = error.to_string();
            assert!(
                !error.contains(text.trim_start_matches('-')) && error.contains("quotes"),
                "{error}"
            );
        }
    }
}
