//! Waiting for the turn to run a pipeline, and taking over what the former knew.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use lockstep_core::error::{At, Policy};
use lockstep_core::folder::{self, Folder};
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_leases::{Documents, Held, Leases, Records, Right};
use serde::Serialize;
use tokio::time::sleep;

use super::backoff::Backoff;
use super::permit::Permit;
use super::supervisor::{claim, made_directory};
use crate::file::{HandedOn, Leasing, Pipeline};
use crate::metrics::lease_text;

/// Between two looks at whether a directory that all have is free.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What is not taken over with the documents of a source: it is written without being kept elsewhere, and tells what this machine knew.
const LOCAL: &str = "trail.json";

/// A process that is ready to run a pipeline, and waits for its lease. A clone is the same.
#[derive(Clone)]
pub struct Standby(Arc<Inner>);

struct Inner {
    leases: Leases,
    name: Arc<str>,
    holder: String,
    right: OnceLock<Right>,
}

impl std::fmt::Debug for Standby {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Standby").field(&self.0.name).finish()
    }
}

impl Standby {
    /// For a pipeline whose file has a `[lease]`; `None` where it has none. `holder` is for people to read.
    ///
    /// # Errors
    /// Of kind `Config`, when the section is wrong.
    pub fn new(pipeline: &Pipeline, holder: &str) -> Result<Option<Self>> {
        let Some(leasing) = &pipeline.lease else {
            return Ok(None);
        };
        Ok(Some(Standby(Arc::new(Inner {
            leases: leasing.config.open().at("lease")?,
            name: Arc::clone(&pipeline.name),
            holder: holder.to_owned(),
            right: OnceLock::new(),
        }))))
    }

    /// Name of the pipeline.
    #[must_use]
    pub fn pipeline(&self) -> &str {
        &self.0.name
    }

    /// Waits until it is this one's turn, through outages too. Once.
    ///
    /// # Errors
    /// What only a person can mend: credentials, rights.
    pub async fn turn(&self) -> Result<Held> {
        let inner = &self.0;
        tracing::info!(pipeline = %inner.name, holder = inner.holder, "ready, and waiting for the lease");
        let held = inner.leases.acquire(&inner.name, &inner.holder).await?;
        // Set once: nobody waits for a second turn.
        let _ = inner.right.set(held.right());
        Ok(held)
    }

    /// Takes the lease if nobody has it, for one who would not wait. Once.
    ///
    /// # Errors
    /// Of kind `Busy` when somebody has it; as for [`Standby::turn`], and those that may pass.
    pub async fn turn_at_once(&self) -> Result<Held> {
        let inner = &self.0;
        let held = inner.leases.try_acquire(&inner.name, &inner.holder).await?;
        let held = held.ok_or_else(|| {
            Error::new(
                ErrorKind::Busy,
                "another process runs the pipeline: it has the lease",
            )
            .remedy("ask that one: name its admin endpoint with `--url`")
        })?;
        // Set once, as above.
        let _ = inner.right.set(held.right());
        Ok(held)
    }

    /// How it stands to the lease, for people and programs.
    #[must_use]
    pub fn role(&self) -> LeaseRole {
        let inner = &self.0;
        let right = inner.right.get();
        LeaseRole {
            role: match right {
                Some(right) if right.is_valid_now() => Role::Holder,
                Some(_) => Role::Lost,
                None => Role::Standby,
            },
            process: inner.holder.clone(),
            token: right.map(|right| right.token().0),
            left_seconds: right.and_then(Right::left).map(|left| left.as_secs_f64()),
        }
    }

    /// The measures of the lease, for Prometheus.
    ///
    /// # Errors
    /// Of kind `Protocol`, when they cannot be written down.
    pub fn metrics_text(&self) -> Result<String> {
        let inner = &self.0;
        lease_text(&inner.leases.figures(), inner.right.get())
    }
}

/// How a process stands to the lease of its pipeline.
#[derive(Clone, Debug, Serialize)]
pub struct LeaseRole {
    /// In a word.
    pub role: Role,
    /// The process, for people to read.
    pub process: String,
    /// The number that its writes carry, once it has had the lease.
    pub token: Option<u64>,
    /// Seconds before the lease is lost unless it is renewed; `None` for one who does not hold it.
    pub left_seconds: Option<f64>,
}

/// See [`LeaseRole`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Runs the pipeline.
    Holder,
    /// Waits for its turn.
    Standby,
    /// Held it, and does not any more: it is about to end.
    Lost,
}

/// The state of a pipeline, as whoever runs it from now on finds it.
pub(super) struct Estate {
    /// The claim on the state directory, held for as long as the pipeline runs.
    _lock: std::fs::File,
    records: Option<Records>,
}

impl Estate {
    /// Of a pipeline that nobody else runs.
    ///
    /// # Errors
    /// See [`claim`].
    pub fn own(pipeline: &Pipeline) -> Result<Self> {
        Ok(Estate {
            _lock: claim(&pipeline.state)?,
            records: None,
        })
    }

    /// Takes over what the former knew: waits for the directory that all have, or takes the documents over.
    ///
    /// # Errors
    /// Of kind `Busy` when the lease was lost meanwhile; what only a person can mend.
    pub async fn taken_over(pipeline: &Pipeline, permit: &Permit) -> Result<Self> {
        let Some(leasing) = &pipeline.lease else {
            return Estate::own(pipeline);
        };
        tokio::select! {
            biased;
            () = permit.lost() => Err(super::permit::lost()),
            estate = take_over(pipeline, leasing, permit) => estate,
        }
    }

    /// The directory of a source.
    ///
    /// # Errors
    /// Of kind `Storage`, when it cannot be made.
    pub fn folder(&self, state: &Path, source: &str) -> Result<Folder> {
        let path = made_directory(state, "sources", source)?;
        Ok(match &self.records {
            None => path.into(),
            Some(records) => Folder::with_copies(path, records.of(&place(source))),
        })
    }
}

/// What whoever runs a pipeline would find of its sources, laid out below a folder as below the state directory; how many sources
/// are known. `None` where everything is in the state directory.
///
/// # Errors
/// When the database cannot be asked; of kind `Storage`.
pub(crate) async fn lay_out_below(pipeline: &Pipeline, folder: &Path) -> Result<Option<usize>> {
    let Some(HandedOn::Records(store)) = pipeline.lease.as_ref().map(|lease| &lease.handed_on)
    else {
        return Ok(None);
    };
    let mut places = store.look(&pipeline.name).await.at(store.label())?;
    let mut known = 0;
    for source in &pipeline.plan.sources {
        let directory = made_directory(folder, "sources", source)?;
        if let Some(documents) = places.remove(&place(source)) {
            lay_out(&directory, documents)?;
            known += 1;
        }
    }
    Ok(Some(known))
}

/// Where the documents of a source are kept.
fn place(source: &str) -> String {
    format!("sources/{source}")
}

async fn take_over(pipeline: &Pipeline, leasing: &Leasing, permit: &Permit) -> Result<Estate> {
    let store = match &leasing.handed_on {
        HandedOn::Volume => {
            let lock = wait_for(&pipeline.state).await?;
            return Ok(Estate {
                _lock: lock,
                records: None,
            });
        }
        HandedOn::Records(store) => store,
    };
    let lock = claim(&pipeline.state)?;
    let token = permit.token().ok_or_else(super::permit::lost)?;
    let mut backoff = Backoff::default();
    let (records, mut places) = loop {
        match store.adopt(&pipeline.name, token).await.at(store.label()) {
            Ok(adopted) => break adopted,
            Err(error)
                if error.kind() == ErrorKind::Busy || error.kind().policy() == Policy::Stop =>
            {
                return Err(error.at("state"));
            }
            Err(error) => {
                tracing::warn!(%error, "what the former knew cannot be taken over; it is tried again");
                sleep(backoff.next()).await;
            }
        }
    };
    let mut from_here = Vec::new();
    for source in &pipeline.plan.sources {
        let folder = made_directory(&pipeline.state, "sources", source)?;
        match places.remove(&place(source)) {
            Some(documents) => lay_out(&folder, documents)?,
            None => from_here.push((folder, records.of(&place(source)))),
        }
    }
    // What was kept here before anything was kept there goes there first: it is all that is known.
    let handed_in = tokio::task::spawn_blocking(move || {
        for (folder, copies) in from_here {
            for (name, content) in documents(&folder)? {
                copies.put(&name, &content)?;
            }
        }
        Ok(())
    });
    handed_in.await.unwrap_or_else(|error| {
        Err(Error::new(ErrorKind::Protocol, "taking over has failed unexpectedly").source(error))
    })?;
    Ok(Estate {
        _lock: lock,
        records: Some(records),
    })
}

/// Claims a directory that another machine's process may still have: a frozen one for as long as it is not ended.
async fn wait_for(state: &Path) -> Result<std::fs::File> {
    let mut told = false;
    loop {
        match claim(state) {
            Err(error) if error.kind() == ErrorKind::Setup => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(%error, "waiting for the state directory: the former process is not ended");
                }
                sleep(LOOK_AGAIN).await;
            }
            claimed => return claimed,
        }
    }
}

/// Makes the documents of a directory those that were kept elsewhere, and no others.
fn lay_out(directory: &Path, kept: Documents) -> Result<()> {
    let failed = |error: std::io::Error| {
        let message = format!("cannot lay out the state in {}", directory.display());
        Error::new(ErrorKind::of_storage(&error), message).source(error)
    };
    for name in documents(directory)?.into_keys() {
        if !kept.contains_key(&name) {
            std::fs::remove_file(directory.join(&name)).map_err(failed)?;
        }
    }
    for (name, content) in kept {
        folder::put(&directory.join(name), &content).map_err(failed)?;
    }
    Ok(())
}

/// The documents in a directory.
fn documents(directory: &Path) -> Result<Documents> {
    let read = || -> std::io::Result<Documents> {
        let mut found = BTreeMap::new();
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if name.ends_with(".json") && name != LOCAL && entry.file_type()?.is_file() {
                found.insert(name, std::fs::read(entry.path())?);
            }
        }
        Ok(found)
    };
    read().map_err(|error| {
        let message = format!("cannot read the state in {}", directory.display());
        Error::new(ErrorKind::of_storage(&error), message).source(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(documents: &[(&str, &str)]) -> Documents {
        let documents = documents.iter();
        documents
            .map(|(name, content)| ((*name).to_owned(), content.as_bytes().to_vec()))
            .collect()
    }

    #[test]
    fn what_is_kept_elsewhere_is_all_there_is() {
        let folder = tempfile::tempdir().expect("a directory");
        for name in ["source.json", "copy.json", LOCAL, "spool"] {
            std::fs::write(folder.path().join(name), "old").expect("written");
        }
        let now = kept(&[("source.json", "new"), ("reloads.json", "1")]);
        lay_out(folder.path(), now.clone()).expect("laid out");
        assert_eq!(documents(folder.path()).expect("readable"), now);
        for name in [LOCAL, "spool"] {
            assert!(folder.path().join(name).exists(), "{name}");
        }
    }
}
