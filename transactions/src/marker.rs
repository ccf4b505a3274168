//! A word inside a transaction that says what it is a branch of, for whoever has no two-phase commit, or no say in the names that
//! its coordinator gives: sagas, ORMs, one-phase commits.
//!
//! ```sql
//! SELECT pg_logical_emit_message(true, 'gtx', '{"g": "order-17", "n": 2, "b": 1}');
//! ```
//!
//! `g` is what all branches share; `n` how many there are, and `b` which of them this is, from 1. The two may be left out;
//! then the content may be the shared part alone.

use lockstep_core::{Error, ErrorKind, Result};
use serde::Deserialize;

/// The prefix of the logical message.
pub use lockstep_core::batch::MARKER as PREFIX;

/// The longest shared part, in bytes: what is longer is no name.
pub const MOST_BYTES: usize = 1_000;

/// See the module's page.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Marker {
    /// What all branches share.
    #[serde(rename = "g")]
    pub global: String,
    /// How many branches there are.
    #[serde(rename = "n", default)]
    pub branches: Option<u32>,
    /// Which of them this is, from 1.
    #[serde(rename = "b", default)]
    pub branch: Option<u32>,
}

impl Marker {
    /// Reads the content of a message with [`PREFIX`].
    ///
    /// # Errors
    /// Of kind `Invalid`, saying what is wrong with it.
    pub fn parse(content: &[u8]) -> Result<Self> {
        let text =
            std::str::from_utf8(content).map_err(|error| wrong("it is not UTF-8").source(error))?;
        let text = text.trim();
        let marker = match text.starts_with('{') {
            true => serde_json::from_str(text)
                .map_err(|error| wrong(&format!("it cannot be read: {error}")))?,
            false => Marker {
                global: text.to_owned(),
                branches: None,
                branch: None,
            },
        };
        marker.check()?;
        Ok(marker)
    }

    fn check(&self) -> Result<()> {
        if self.global.is_empty() {
            return Err(wrong("it names nothing"));
        }
        if self.global.len() > MOST_BYTES {
            return Err(wrong(&format!(
                "the name has {} bytes, and {MOST_BYTES} are the most",
                self.global.len()
            )));
        }
        match (self.branches, self.branch) {
            (Some(0), _) | (_, Some(0)) => Err(wrong("branches are counted from 1")),
            (Some(branches), Some(branch)) if branch > branches => {
                Err(wrong(&format!("branch {branch} of {branches}")))
            }
            _ => Ok(()),
        }
    }
}

fn wrong(what: &str) -> Error {
    Error::new(
        ErrorKind::Invalid,
        format!("a message with the prefix `{PREFIX}` does not say what its transaction belongs to: {what}"),
    )
    .remedy(r#"write {"g": "the shared name", "n": 2, "b": 1}, or the shared name alone"#)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marker(global: &str, branches: Option<u32>, branch: Option<u32>) -> Marker {
        Marker {
            global: global.to_owned(),
            branches,
            branch,
        }
    }

    #[test]
    fn it_is_read_in_full_and_in_short() {
        for (content, expected) in [
            (
                r#"{"g": "o-17", "n": 2, "b": 1}"#,
                marker("o-17", Some(2), Some(1)),
            ),
            (r#" {"g":"o-17"} "#, marker("o-17", None, None)),
            (r#"{"g":"o-17","n":3}"#, marker("o-17", Some(3), None)),
            ("o-17\n", marker("o-17", None, None)),
        ] {
            assert_eq!(Marker::parse(content.as_bytes()).expect(content), expected);
        }
    }

    #[test]
    fn what_is_wrong_with_it_is_said() {
        let long = "x".repeat(MOST_BYTES + 1);
        for (content, word) in [
            ("", "names nothing"),
            (r#"{"g": ""}"#, "names nothing"),
            (r#"{"n": 2}"#, "missing field `g`"),
            (r#"{"g": "a", "x": 1}"#, "unknown field `x`"),
            (r#"{"g": "a", "n": 0}"#, "from 1"),
            (r#"{"g": "a", "n": 1, "b": 2}"#, "branch 2 of 1"),
            (&long, "1001 bytes"),
        ] {
            let error = Marker::parse(content.as_bytes()).expect_err(content);
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.to_string().contains(word), "{content}: {error}");
        }
        assert!(Marker::parse(b"\xff").is_err());
    }
}
