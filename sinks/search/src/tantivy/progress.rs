//! Positions, carried in the payload of each commit.

use lockstep_core::position::{Position, SourceIdentity, SourceInfo};
use lockstep_core::progress::{Progress as Held, Span};
use lockstep_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

/// Changes when the payload does.
const FORMAT: u32 = 1;

/// How far the index is, by source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Progress {
    format: u32,
    sources: Vec<Reached>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Reached {
    name: String,
    identity: SourceIdentity,
    position: Position,
    /// What is there although something before it is not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ahead: Vec<Position>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    spans: Vec<Span>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    early: Vec<Position>,
}

impl Progress {
    /// Reads a payload; an index without one is at the beginning.
    ///
    /// # Errors
    /// When it is not one of ours.
    pub(super) fn read(payload: Option<&str>) -> Result<Self> {
        let Some(payload) = payload else {
            return Ok(Progress {
                format: FORMAT,
                sources: Vec::new(),
            });
        };
        let foreign = |error: Error| {
            error.remedy("the index was not written by this version of lockstep: choose another `path`, or remove it and load its tables again")
        };
        let read: Progress = serde_json::from_str(payload).map_err(|error| {
            foreign(
                Error::new(ErrorKind::Setup, "the position in the index cannot be read")
                    .source(error),
            )
        })?;
        if read.format != FORMAT {
            return Err(foreign(Error::new(
                ErrorKind::Setup,
                format!("the position in the index has format {}", read.format),
            )));
        }
        Ok(read)
    }

    /// The payload.
    ///
    /// # Errors
    /// Never for what this type can hold.
    pub(super) fn write(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|error| {
            Error::new(ErrorKind::Protocol, "the position cannot be written").source(error)
        })
    }

    pub(super) fn get(&self, source: &SourceInfo) -> Option<Held> {
        let is = |reached: &&Reached| {
            *reached.name == *source.name && reached.identity == source.identity
        };
        let found = self.sources.iter().find(is);
        found.map(|reached| {
            Held::new(reached.position, reached.ahead.iter().copied())
                .and_spans(reached.spans.iter().copied())
                .and_early(reached.early.iter().copied())
        })
    }

    /// Moves forward. The position of an earlier identity of the source is forgotten: its log is gone.
    pub(super) fn advance(&mut self, source: &SourceInfo, held: &Held) {
        let has = |known: Held| known.covers(held) && known.early() == held.early();
        if self.get(source).is_some_and(has) {
            return;
        }
        self.sources.retain(|reached| *reached.name != *source.name);
        self.sources.push(Reached {
            name: source.name.to_string(),
            identity: source.identity.clone(),
            position: held.upto(),
            ahead: held.ahead().to_vec(),
            spans: held.spans().to_vec(),
            early: held.early().to_vec(),
        });
    }
}
