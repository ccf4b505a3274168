//! From the JSON of a key's value back to the text that PostgreSQL prints.
//!
//! Read back are the types that keys have, where nothing was lost on the way. What comes out need not be right for a JSON that
//! was not written here: whoever asks writes it once more and compares.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::plan::Plan;
use super::temporal;

impl Plan {
    /// Whether values of this plan can be read back at all.
    pub(crate) fn reads_back(&self) -> bool {
        match self {
            Plan::String
            | Plan::Bool
            | Plan::Integer
            | Plan::Float
            | Plan::DecimalNatural
            | Plan::DecimalText
            | Plan::Bytea
            | Plan::BitText
            | Plan::Bit
            | Plan::Days
            | Plan::Time(_)
            | Plan::Epoch(_)
            | Plan::Instant(_)
            | Plan::DateIso
            | Plan::TimestampIso
            | Plan::TimeIso => true,
            Plan::Omit
            | Plan::JavaFloat
            | Plan::JavaDouble
            | Plan::DecimalDouble
            | Plan::DecimalPrecise(_)
            | Plan::DecimalVariable
            | Plan::Money(_)
            | Plan::Bits
            | Plan::TimeUtc
            | Plan::TimetzIso
            | Plan::IntervalMicros
            | Plan::IntervalIso
            | Plan::Json
            | Plan::Hstore
            | Plan::HstoreString
            | Plan::Point
            | Plan::Vector { .. }
            | Plan::SparseVector
            | Plan::Geometry
            | Plan::Array { .. } => false,
        }
    }

    /// The text of which [`Plan::write`] may have made `json`; `None` when there is none, or it cannot be told.
    pub(crate) fn read(&self, json: &str) -> Option<String> {
        if !self.reads_back() {
            return None;
        }
        let string = || serde_json::from_str::<String>(json).ok();
        match self {
            Plan::Bool => match json {
                "true" => Some("t".to_owned()),
                "false" => Some("f".to_owned()),
                _ => None,
            },
            Plan::Bit => match json {
                "true" => Some("1".to_owned()),
                "false" => Some("0".to_owned()),
                _ => None,
            },
            Plan::Integer => Some(json.to_owned()),
            Plan::Float => match json.starts_with('"') {
                true => string(),
                false => Some(json.to_owned()),
            },
            Plan::DecimalText => string().map(|text| match text.as_str() {
                "NAN" => "NaN".to_owned(),
                "POSITIVE_INFINITY" => "Infinity".to_owned(),
                "NEGATIVE_INFINITY" => "-Infinity".to_owned(),
                _ => text,
            }),
            Plan::Bytea => {
                let bytes = STANDARD.decode(string()?).ok()?;
                let hex = bytes.iter().map(|byte| format!("{byte:02x}"));
                Some(format!("\\x{}", hex.collect::<String>()))
            }
            Plan::Days => temporal::days_back(json.parse().ok()?),
            Plan::Time(unit) => temporal::time_back(json.parse().ok()?, *unit),
            Plan::Epoch(unit) => temporal::epoch_back(json.parse().ok()?, *unit),
            Plan::Instant(_) => temporal::iso_back(string()?.as_str(), true),
            Plan::DateIso | Plan::TimestampIso => temporal::iso_back(string()?.as_str(), false),
            _ => string(),
        }
    }
}
