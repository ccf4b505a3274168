//! How far a pass has come.

use serde::{Deserialize, Serialize};

use crate::report::TableReport;

/// Where a pass goes on that was interrupted: all before it has been looked at, proven, mended and told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bookmark {
    /// What it says so far.
    pub report: TableReport,
    /// Rows up to this key, by order of the key, have been compared; none without.
    pub after: Option<Vec<String>>,
    /// All rows have been compared.
    pub all_rows: bool,
    /// Sinks that have been searched for rows that should not be there.
    pub searched: Vec<String>,
    /// Where the record of repairs ended; `None` before the pass has begun.
    pub audited: Option<u64>,
}

impl Bookmark {
    /// At the beginning.
    pub(crate) fn new(report: TableReport) -> Self {
        Bookmark {
            report,
            after: None,
            all_rows: false,
            searched: Vec::new(),
            audited: None,
        }
    }
}
