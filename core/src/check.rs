//! What `lockstep check` finds out, from any stage.

use serde::Serialize;

use crate::schema::TableSchema;

/// How a finding stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Pass,
    /// Works, but deserves a look.
    Warn,
    /// `lockstep run` would not work.
    Fail,
}

/// One line of the table that `lockstep check` prints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at: `wal_level`, `public.orders: primary key`, `index template`.
    pub subject: String,
    /// How it stands.
    pub verdict: Verdict,
    /// What was found: `logical`, `3 of 10 free`.
    pub detail: String,
    /// The SQL, setting or command that repairs it. Always set for `Fail`.
    pub remedy: Option<String>,
}

impl Finding {
    /// What is wrong with a table on its way into a sink that holds one record per key.
    #[must_use]
    pub fn keyless(table: &TableSchema) -> Option<Self> {
        table.key.is_empty().then(|| {
            let origin = &table.origin;
            Finding::fail(
                format!("table {origin}"),
                "has no key, and this sink holds one record per key",
                format!(
                    "ALTER TABLE {origin} ADD PRIMARY KEY (…), or keep it out of the sink's `inputs`; queues take it"
                ),
            )
        })
    }

    /// A finding that is as it should be.
    pub fn pass(subject: impl Into<String>, detail: impl Into<String>) -> Self {
        Finding {
            subject: subject.into(),
            verdict: Verdict::Pass,
            detail: detail.into(),
            remedy: None,
        }
    }

    /// A finding that deserves a look.
    pub fn warn(
        subject: impl Into<String>,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Finding {
            subject: subject.into(),
            verdict: Verdict::Warn,
            detail: detail.into(),
            remedy: Some(remedy.into()),
        }
    }

    /// A finding that stops `lockstep run`, with what repairs it.
    pub fn fail(
        subject: impl Into<String>,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Finding {
            subject: subject.into(),
            verdict: Verdict::Fail,
            detail: detail.into(),
            remedy: Some(remedy.into()),
        }
    }
}
