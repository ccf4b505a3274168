//! Versions of documents that stay in order when a database is restored, promoted or replaced.
//!
//! Such a server issues LSNs again, perhaps lower ones, and all its writes would be refused as stale. So each identity of
//! a source gets an epoch, counted from 0 in the order of their appearance, and the version of a document is the epoch in
//! the upper bits and the commit LSN in the lower ones. The identities are kept in the progress index.

use std::fmt;
use std::sync::Arc;

use lockstep_core::position::{Lsn, SourceInfo};
use lockstep_core::{Error, ErrorKind, Result};
use reqwest::Method;
use serde::Deserialize;
use serde_json::json;

use super::client::{Body, Client};

/// Bits of a version that hold the LSN: two petabytes of log. The server's versions have 63 bits.
const LSN_BITS: u32 = 51;
/// Epochs that the other bits can count.
const EPOCHS: u64 = 1 << (63 - LSN_BITS);
/// Tries to add an identity while others add theirs.
const TRIES: usize = 10;

/// The external version of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(pub(super) u64);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The epoch of one identity of a source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Epoch(u64);

impl Epoch {
    /// The version of what a transaction wrote.
    ///
    /// # Errors
    /// When the LSN is beyond what a version can hold.
    pub(super) fn version(self, commit: Lsn) -> Result<Version> {
        if commit.0 >> LSN_BITS != 0 {
            return Err(Error::new(
                ErrorKind::Refused,
                format!("the position {commit} does not fit the version of a document"),
            )
            .remedy("report this: no log is that long"));
        }
        Ok(Version(self.0 << LSN_BITS | commit.0))
    }
}

/// The epochs of all sources, learnt as they are needed.
pub(super) struct Epochs {
    client: Arc<Client>,
    index: Arc<str>,
    known: Vec<(Arc<SourceInfo>, Epoch)>,
}

#[derive(Deserialize)]
struct Found {
    #[serde(rename = "_seq_no")]
    number: u64,
    #[serde(rename = "_primary_term")]
    term: u64,
    #[serde(rename = "_source")]
    stored: Stored,
}

#[derive(Deserialize)]
struct Stored {
    identities: Vec<String>,
}

impl Epochs {
    pub(super) fn new(client: Arc<Client>, index: &str) -> Self {
        Epochs {
            client,
            index: index.into(),
            known: Vec::new(),
        }
    }

    /// The epoch of a source as it is now; a new identity gets the next one.
    ///
    /// # Errors
    /// When the server refuses.
    pub(super) async fn of(&mut self, source: &Arc<SourceInfo>) -> Result<Epoch> {
        let is_known = |(known, _): &&(Arc<SourceInfo>, Epoch)| {
            Arc::ptr_eq(known, source) || **known == **source
        };
        if let Some((_, epoch)) = self.known.iter().find(is_known) {
            return Ok(*epoch);
        }
        let epoch = self.learn(source).await?;
        self.known.push((Arc::clone(source), epoch));
        Ok(epoch)
    }

    async fn learn(&self, source: &SourceInfo) -> Result<Epoch> {
        let id = format!("identities/{}", source.name);
        let identity = source.identity.to_string();
        for _ in 0..TRIES {
            let reply = self
                .client
                .call(Method::GET, &[&self.index, "_doc", &id], &[], Body::None)
                .await?;
            let (mut identities, guard) = if reply.status == 404 {
                (Vec::new(), vec![("op_type", "create".to_owned())])
            } else {
                let reply = reply.success("reading the identities of a source")?;
                let found: Found = reply.json("reading the identities of a source")?;
                let guard = vec![
                    ("if_seq_no", found.number.to_string()),
                    ("if_primary_term", found.term.to_string()),
                ];
                (found.stored.identities, guard)
            };
            if let Some(epoch) = identities.iter().position(|known| *known == identity) {
                return Ok(Epoch(epoch as u64));
            }
            let epoch = identities.len() as u64;
            if epoch >= EPOCHS {
                return Err(Error::new(
                    ErrorKind::Setup,
                    format!("source {} has had {EPOCHS} identities", source.name),
                )
                .remedy("rename the source, so that it gets indexes of its own, and load its tables again"));
            }
            identities.push(identity.clone());
            if self.store(&id, &identities, &guard).await? {
                tracing::info!(source = %source.name, identity, epoch, "a new identity of the source");
                return Ok(Epoch(epoch));
            }
        }
        Err(Error::new(
            ErrorKind::Busy,
            format!("others keep changing {id} in {}", self.index),
        )
        .remedy("let one process run this pipeline"))
    }

    /// Whether the list was stored; not when another one came first.
    async fn store(
        &self,
        id: &str,
        identities: &[String],
        guard: &[(&str, String)],
    ) -> Result<bool> {
        let query: Vec<_> = guard
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let body = Body::json(&json!({"identities": identities}));
        let reply = self
            .client
            .call(Method::PUT, &[&self.index, "_doc", id], &query, body)
            .await?;
        if reply.status == 409 {
            return Ok(false);
        }
        reply
            .success("storing the identities of a source")
            .map(|_| true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_identity_is_above_all_of_an_earlier_one() {
        let version = |epoch, lsn| Epoch(epoch).version(Lsn(lsn)).expect("fits");
        assert_eq!(version(0, 20), Version(20));
        assert!(version(1, 0) > version(0, (1 << LSN_BITS) - 1));
        assert!(version(EPOCHS - 1, u64::MAX >> (64 - LSN_BITS)).0 <= i64::MAX as u64);
        assert!(Epoch(0).version(Lsn(1 << LSN_BITS)).is_err());
    }
}
