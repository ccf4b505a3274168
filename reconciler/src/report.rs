//! What a pass says.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A pass over one table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableReport {
    /// Name of the source in the pipeline file.
    pub source: String,
    /// `schema.table`.
    pub table: String,
    /// How it stands.
    pub state: State,
    /// When it began, microseconds since the Unix epoch.
    pub began_micros: i64,
    /// When it ended.
    pub ended_micros: Option<i64>,
    /// Rows of the source that were sent to be compared.
    pub rows: u64,
    /// Rows that changed whenever they were read, so that nothing is said of them.
    pub undecided: u64,
    /// Why it could not be completed.
    pub problem: Option<String>,
    /// By name.
    pub sinks: BTreeMap<String, SinkReport>,
}

/// How a pass stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Rows are being compared.
    Running,
    /// All rows have been compared.
    Done,
    /// It could not be completed.
    Failed,
}

/// What a pass says of one sink.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkReport {
    /// Rows that were compared, or that a filter keeps from the sink.
    pub compared: u64,
    /// Rows that are not there.
    pub missing: u64,
    /// Rows that are not as they should be, and not known to be stale.
    pub different: u64,
    /// Rows that are as they were before their last change.
    #[serde(default)]
    pub stale: u64,
    /// Rows that should not be there.
    pub extra: u64,
    /// Rows that differ and have a dead letter.
    pub aside: u64,
    /// Rows that differed and have been mended.
    pub repaired: u64,
    /// The sink cannot be read by key: nothing was compared.
    pub unreadable: bool,
    /// Rows that should not be there were looked for.
    pub listed: bool,
    /// Why it could not be compared to the end.
    pub problem: Option<String>,
    /// The first of those that differ.
    pub drift: Vec<Drift>,
}

/// One row that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drift {
    /// The values of its key, in key order.
    pub key: Vec<String>,
    /// The key in the sink.
    pub held_as: String,
    /// The place of the log where it differed, `16/B374D848`; none of a key that no row can have.
    pub fence: Option<String>,
    /// How it differs.
    #[serde(flatten)]
    pub difference: Difference,
    /// It has been mended.
    pub repaired: bool,
}

/// Characters that a report has of a row.
const SHOWN: usize = 2_000;

impl Drift {
    /// With as much of the rows as a report has.
    pub(crate) fn shortened(mut self) -> Self {
        let cut = |text: &mut String| {
            if let Some((at, _)) = text.char_indices().nth(SHOWN) {
                text.truncate(at);
                text.push('…');
            }
        };
        match &mut self.difference {
            Difference::Missing => {}
            Difference::Extra { actual } => cut(actual),
            Difference::Different {
                expected, actual, ..
            }
            | Difference::Stale {
                expected, actual, ..
            } => {
                cut(expected);
                cut(actual);
            }
        }
        self
    }
}

/// How a row differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "drift", rename_all = "lowercase")]
pub enum Difference {
    /// It is not there.
    Missing,
    /// It is not as it should be.
    Different {
        /// The columns that differ; none where the row is not an object.
        columns: Vec<String>,
        /// What should be there.
        expected: String,
        /// What is there.
        actual: String,
    },
    /// It is from before the row's last change: that one was lost, or has been undone.
    Stale {
        /// The columns that differ; none where the row is not an object.
        columns: Vec<String>,
        /// What should be there.
        expected: String,
        /// What is there.
        actual: String,
        /// The place of the log that it is of, `16/B374D848`; none where it is of an earlier log.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        held: Option<String>,
        /// A place of the log behind which the row was changed last, and which is not before `held`; none where it is not known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        changed_after: Option<String>,
    },
    /// It should not be there.
    Extra {
        /// What is there.
        actual: String,
    },
}

impl SinkReport {
    /// Rows that differed when they were compared, and are not known to.
    #[must_use]
    pub fn differing(&self) -> u64 {
        self.missing + self.different + self.stale + self.extra
    }

    /// Those of them that differ still.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.differing().saturating_sub(self.repaired)
    }
}

impl TableReport {
    /// Whether some row of some sink differs, and has not been mended.
    #[must_use]
    pub fn has_drift(&self) -> bool {
        self.sinks.values().any(|sink| sink.left() > 0)
    }

    /// Whether something could not be told.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        let untold = |sink: &SinkReport| sink.problem.is_some();
        self.state != State::Done || self.undecided > 0 || self.sinks.values().any(untold)
    }
}
