//! Versions of documents: one number of 63 bits that orders all writes of a source.
//!
//! | bits | what | why |
//! |---|---|---|
//! | 6 | epoch | A restored or promoted server issues LSNs again, perhaps lower ones, and all its writes would be refused. So each identity of a source gets an epoch, in the order of their appearance; they are kept in the progress index, by source and `index` |
//! | 48 | commit LSN ÷ 8 | records of the log begin at multiples of 8 (`MAXALIGN`) |
//! | 9 | step | tells the first changes of a transaction apart, and later ones by groups that double in length: a replay must see whether what it meets is of an earlier or of a later change |

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use lockstep_core::batch::Phase;
use lockstep_core::position::{Lsn, Position, SourceInfo};
use lockstep_core::sink::HeldVersion;
use lockstep_core::{Error, ErrorKind, Result};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::client::{Body, Client};
use super::config::Config;

/// Bits of a version that hold the step inside the transaction.
const STEP_BITS: u32 = 9;
/// Bits that hold the LSN: two petabytes of log.
const LSN_BITS: u32 = 48;
/// What LSNs are multiples of.
const ALIGNMENT: u64 = 8;
/// Epochs that the other bits can count. The server's versions have 63 bits.
const EPOCHS: u64 = 1 << (63 - LSN_BITS - STEP_BITS);
/// No log begins before: initdb leaves the first segment out, and segments have 1 MiB at least.
const LOG_BEGINS: u64 = 1 << 20;
/// Changes of a transaction that have a step of their own.
const EXACT: u64 = 448;
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
    /// The version of what a change wrote. Rows of a copy are below all changes at their point.
    ///
    /// # Errors
    /// When the LSN is none, or beyond what a version can hold.
    pub(super) fn version(self, phase: Phase, position: Position) -> Result<Version> {
        let (lsn, rest) = (position.commit.0 / ALIGNMENT, position.commit.0 % ALIGNMENT);
        let step = match phase {
            Phase::Snapshot | Phase::Check => 0,
            Phase::Stream | Phase::Replay => step(position.ordinal),
        };
        if lsn >> LSN_BITS != 0 || (rest != 0 && phase != Phase::Snapshot) {
            return Err(Error::new(
                ErrorKind::Protocol,
                format!(
                    "{} is not where a record of the log begins",
                    position.commit
                ),
            )
            .remedy("report this, with the version of the server"));
        }
        let version = (self.0 << LSN_BITS | lsn) << STEP_BITS;
        Ok(Version(version | step))
    }
}

/// The number of a transaction of a source: a version without its step. It fits the numbers of JSON in every language.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Number(pub(super) u64);

impl Epoch {
    /// The number of the transaction that commits there.
    pub(super) fn number(self, commit: Lsn) -> Number {
        Number((self.0 << LSN_BITS) | (commit.0 / ALIGNMENT))
    }
}

impl Version {
    /// The transaction that wrote it; `None` of rows of a copy.
    pub(super) fn transaction(self) -> Option<Number> {
        let step = self.0 & ((1 << STEP_BITS) - 1);
        (step > 0).then_some(Number(self.0 >> STEP_BITS))
    }

    /// What it tells of a document, where the source's log of now has this epoch. The commit is rounded down as
    /// [`Epoch::version`] rounds it, which no record of the log lies between.
    ///
    /// A write without a version of its own counts up the one that is there, or from 1 on where there was none: what names no
    /// place of a log is unknown.
    pub(super) fn held(self, epoch: Epoch) -> HeldVersion {
        let own = self.0 >> (LSN_BITS + STEP_BITS);
        let commit = (self.0 >> STEP_BITS & ((1 << LSN_BITS) - 1)) * ALIGNMENT;
        match own.cmp(&epoch.0) {
            _ if commit < LOG_BEGINS => HeldVersion::Unknown,
            Ordering::Less => HeldVersion::EarlierLog,
            Ordering::Equal => HeldVersion::At(Lsn(commit)),
            Ordering::Greater => HeldVersion::Unknown,
        }
    }
}

/// Which of the steps of a transaction a change is: its ordinal, as long as there are enough of them.
fn step(ordinal: u64) -> u64 {
    match ordinal.checked_ilog2() {
        Some(log) if ordinal >= EXACT => {
            // Far fewer than the steps that are left.
            let groups = u64::from(log - EXACT.ilog2());
            EXACT + groups
        }
        _ => ordinal,
    }
}

/// The epochs of all sources, learnt as they are needed.
pub(super) struct Epochs {
    client: Arc<Client>,
    /// Where they are kept.
    index: Arc<str>,
    /// What names the indexes that the versions are in.
    template: Arc<str>,
    known: Vec<(Arc<SourceInfo>, Epoch)>,
}

/// What keeps a write from undoing another one.
type Guard = Vec<(&'static str, String)>;

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
    pub(super) fn new(client: Arc<Client>, config: &Config) -> Self {
        Epochs {
            client,
            index: config.progress_index.as_str().into(),
            template: config.index.as_str().into(),
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

    /// The epoch that a source has already, for who only reads.
    ///
    /// # Errors
    /// When the server refuses.
    pub(super) async fn find(&self, source: &SourceInfo) -> Result<Option<Epoch>> {
        let (identities, _) = self.identities(source).await?;
        let identity = source.identity.to_string();
        let epoch = identities.iter().position(|known| *known == identity);
        Ok(epoch.map(|epoch| Epoch(epoch as u64)))
    }

    /// Where the identities of a source are kept.
    fn id(&self, source: &SourceInfo) -> String {
        // By the indexes and not by the pipeline: versions of documents outlive its name. Another pipeline's indexes are
        // another matter.
        let indexes = self.template.replace("{source}", &source.name);
        format!("identities/{}/{indexes}", source.name)
    }

    /// The identities that a source has had, and what another list is to be guarded by.
    async fn identities(&self, source: &SourceInfo) -> Result<(Vec<String>, Guard)> {
        if let Some(found) = self.read(&self.id(source)).await? {
            return Ok(found);
        }
        // Kept by the source's name alone, before.
        let former = self.read(&format!("identities/{}", source.name)).await?;
        let identities = former.map_or_else(Vec::new, |(identities, _)| identities);
        Ok((identities, vec![("op_type", "create".to_owned())]))
    }

    async fn learn(&self, source: &SourceInfo) -> Result<Epoch> {
        let id = self.id(source);
        let identity = source.identity.to_string();
        for _ in 0..TRIES {
            let (mut identities, guard) = self.identities(source).await?;
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

    /// A list of identities, and what its replacement is to be guarded by.
    async fn read(&self, id: &str) -> Result<Option<(Vec<String>, Guard)>> {
        let reply = self
            .client
            .call(Method::GET, &[&self.index, "_doc", id], &[], Body::None)
            .await?;
        if reply.status == 404 {
            return Ok(None);
        }
        let reply = reply.success("reading the identities of a source")?;
        let found: Found = reply.json("reading the identities of a source")?;
        let guard = vec![
            ("if_seq_no", found.number.to_string()),
            ("if_primary_term", found.term.to_string()),
        ];
        Ok(Some((found.stored.identities, guard)))
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

    fn version(epoch: u64, lsn: u64, ordinal: u64) -> Version {
        let position = Position {
            commit: Lsn(lsn),
            ordinal,
        };
        Epoch(epoch).version(Phase::Stream, position).expect("fits")
    }

    #[test]
    fn versions_are_in_the_order_of_epoch_commit_and_ordinal() {
        let last = ((1 << LSN_BITS) - 1) * ALIGNMENT;
        assert!(version(1, 0, 1) > version(0, last, u64::MAX));
        assert!(version(0, 24, 1) > version(0, 16, u64::MAX));
        let ordinals: Vec<u64> = (0..1000).chain([1 << 20, 1 << 40, u64::MAX]).collect();
        for pair in ordinals.windows(2) {
            let (before, after) = (version(0, 16, pair[0]), version(0, 16, pair[1]));
            assert!(before <= after && (pair[1] >= EXACT || before < after));
        }
        assert!(version(EPOCHS - 1, last, u64::MAX).0 <= i64::MAX as u64);
    }

    #[test]
    fn a_version_tells_of_which_log_it_is_and_of_which_place() {
        let one = version(3, 0x16_b374_d848, 7);
        let held = |epoch| one.held(Epoch(epoch));
        assert_eq!(held(3), HeldVersion::At(Lsn(0x16_b374_d848)));
        assert_eq!(held(4), HeldVersion::EarlierLog);
        assert_eq!(held(2), HeldVersion::Unknown);
        // Counted up by others, or from the beginning.
        assert_eq!(Version(one.0 + 1).held(Epoch(3)), held(3));
        for counted in [1, 600, 1_000_000] {
            let held = Version(counted).held(Epoch(1));
            assert_eq!(held, HeldVersion::Unknown, "{counted}");
        }
    }

    #[test]
    fn all_changes_of_a_transaction_have_its_number_and_copies_have_none() {
        let last = ((1 << LSN_BITS) - 1) * ALIGNMENT;
        for (epoch, lsn) in [(0, 16), (3, 0x16_b374_d848), (31, last)] {
            let number = Epoch(epoch).number(Lsn(lsn));
            for ordinal in [1, 447, 448, u64::MAX] {
                assert_eq!(version(epoch, lsn, ordinal).transaction(), Some(number));
            }
            assert_eq!((number.0 as f64) as u64, number.0, "a double holds it");
        }
        let position = Position {
            commit: Lsn(16),
            ordinal: 1,
        };
        let copied = Epoch(0).version(Phase::Snapshot, position).expect("fits");
        assert_eq!(copied.transaction(), None);
    }

    #[test]
    fn what_is_no_lsn_is_refused_and_a_copy_is_below_the_stream() {
        let at = |phase, lsn| {
            let position = Position {
                commit: Lsn(lsn),
                ordinal: 1,
            };
            Epoch(0).version(phase, position)
        };
        assert!(at(Phase::Stream, 17).is_err());
        assert!(at(Phase::Stream, ALIGNMENT << LSN_BITS).is_err());
        let copied = at(Phase::Snapshot, 16).expect("fits");
        assert!(copied < at(Phase::Stream, 16).expect("fits"));
        assert!(at(Phase::Snapshot, 15).expect("fits") < copied);
    }
}
