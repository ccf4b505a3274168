//! What is asked for.

use std::str::FromStr;

use lockstep_core::source::Sample;
use lockstep_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

/// Keys that one may name.
const MOST_KEYS: usize = 1_000;

/// What is to be compared. Everything that is given must hold; nothing given means all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReconcileRequest {
    /// Tables of this source.
    pub source: Option<String>,
    /// This table, `schema.table` or the bare name.
    pub table: Option<String>,
    /// With this sink.
    pub sink: Option<String>,
    /// A condition in SQL that rows must meet. Rows that should not be there are not looked for then.
    #[serde(rename = "where")]
    pub condition: Option<String>,
    /// Only some of the rows, others each time: `1%`. Rows that should not be there are not looked for then.
    pub sample: Option<Share>,
    /// Only the rows with these keys, of one table: the values of the key columns, in key order, as PostgreSQL writes them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<Vec<String>>,
    /// What differs is mended; else it is only told.
    pub repair: bool,
    /// Who asks, for the record of repairs.
    pub by: Option<String>,
}

impl ReconcileRequest {
    /// Whether it is about all rows of its tables.
    pub(super) fn is_whole(&self) -> bool {
        self.condition.is_none() && self.sample.is_none() && self.keys.is_empty()
    }

    /// Whether it makes sense.
    ///
    /// # Errors
    /// Of kind `Invalid`, saying what does not.
    pub(super) fn check(&self) -> Result<()> {
        let invalid = |message: &str| Err(Error::new(ErrorKind::Invalid, message));
        if self.keys.is_empty() {
            return Ok(());
        }
        if self.table.is_none() {
            return invalid("keys are those of one table: name it");
        }
        if self.condition.is_some() || self.sample.is_some() {
            return invalid("rows are chosen by their keys, by a condition, or as a sample");
        }
        if self.keys.len() > MOST_KEYS {
            return invalid(&format!(
                "{} keys are more than {MOST_KEYS}, which may be named at a time",
                self.keys.len()
            ));
        }
        Ok(())
    }
}

/// A part of the rows, of which a text like `1%` or `0.05%` tells how large it is. In millionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Share(u32);

impl Share {
    /// Some of the rows; which ones is not decided.
    pub(super) fn sample(self) -> Sample {
        Sample {
            per_million: self.0,
            seed: 0,
        }
    }
}

impl FromStr for Share {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let percent = text
            .strip_suffix('%')
            .and_then(|text| text.parse::<f64>().ok());
        let millionths = percent.map_or(0.0, |percent| percent * 10_000.0);
        if !(1.0..=1_000_000.0).contains(&millionths) {
            let message = format!("`{text}` is no share of rows");
            return Err(Error::new(ErrorKind::Invalid, message)
                .remedy("give a percentage from 0.0001% to 100%, such as `1%`"));
        }
        // In range, and a part of a millionth of the rows does not matter.
        Ok(Share(millionths as u32))
    }
}

impl TryFrom<String> for Share {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Share> for String {
    fn from(share: Share) -> String {
        format!("{}%", f64::from(share.0) / 10_000.0)
    }
}
