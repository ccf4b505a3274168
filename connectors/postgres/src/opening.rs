//! The decision about the beginning: copy, copy again, go on, or stop.

use std::sync::Arc;
use std::time::Duration;

use lockstep_core::error::{Error, ErrorKind, Result};
use lockstep_core::folder::Folder;
use lockstep_core::position::{Lsn, SourceIdentity};
use lockstep_core::schema::TableSchema;
use lockstep_core::source::ReloadRequest;
use lockstep_pg::wire::target::Target;
use lockstep_pg::wire::{Connection, Mode};
use tokio_postgres::Client;

use crate::assemble::now_micros;
use crate::catalog::{Described, Published};
use crate::config::{OnSlotLost, PostgresConfig, SnapshotMode};
use crate::extent;
use crate::server::Server;
use crate::slot::{self, Slot};
use crate::standing::{Loss, Standing, judge};
use crate::state::{Copied, Known, Reached, State, StateFile};

/// How long the server may take to say how things stand: it reads no table for it.
const ANSWER: Duration = Duration::from_secs(30);

/// What is to be done first, and what is on record then.
pub struct Decided {
    pub start: Start,
    pub state: State,
    /// Who the server says it is.
    pub server: SourceIdentity,
}

/// What is to be done before the stream.
pub enum Start {
    /// Copy under the snapshot that this connection keeps open, then stream.
    Copy {
        keeper: Connection,
        snapshot: String,
        consistent_point: Lsn,
        /// Sinks may hold rows of an earlier attempt.
        again: bool,
    },
    /// Stream from where the slot stands, or stood before the server crashed, and load beside it what an interrupted copy has left, and
    /// tables that have come since. That is to be on record before the state is.
    Resume { from: Lsn, rest: Vec<ReloadRequest> },
    /// Stream from where the slot stands.
    Stream { from: Lsn },
}

/// Looks at the server and the slot, and judges. Changes nothing.
///
/// # Errors
/// The server's, by SQLSTATE, and those of [`judge`].
pub async fn look(
    config: &PostgresConfig,
    connection: &mut Connection,
    state: Option<&State>,
    slot: &str,
) -> Result<(Server, Standing)> {
    if config.failover {
        slot::require_failover(connection.server_version())?;
    }
    if config.two_phase {
        slot::require_two_phase(connection.server_version(), config.failover)?;
    }
    let reached = state.and_then(|state| state.reached.as_ref());
    let asked = async {
        let server = Server::look(connection, reached).await?;
        Ok((server, slot::read(connection, slot).await?))
    };
    let (server, found) = tokio::time::timeout(ANSWER, asked).await.map_err(|_| {
        Error::new(
            ErrorKind::Unavailable,
            format!(
                "the server did not say within {} s how the slot {slot} stands",
                ANSWER.as_secs()
            ),
        )
    })??;
    let standing = judge(state, slot, &server, found, config.failover)?;
    Ok((server, standing))
}

/// What the decision about the beginning looks at.
pub struct Opening<'a> {
    pub config: &'a PostgresConfig,
    pub target: &'a Target,
    pub client: &'a Client,
    pub slot: &'a str,
    pub file: &'a StateFile,
    /// The source's state directory.
    pub directory: &'a Folder,
    /// Whoever reads the slot now has lost the right to.
    pub takes_over: bool,
    pub tables: &'a [(Published, Described, Arc<TableSchema>)],
}

/// A name for the log that sinks have not heard of: which of the names it has had they know is forgotten, and under one that
/// was given up for another they would take the copy for an old one. By the clock, so that it is above all before.
fn unheard_of(server: SourceIdentity) -> SourceIdentity {
    let seconds = u32::try_from(now_micros() / 1_000_000).unwrap_or(u32::MAX);
    SourceIdentity {
        incarnation: seconds,
        ..server
    }
}

/// What has to be loaded: tables that have not been followed before, or were others of the same name.
fn fresh(before: Option<&Known>, now: &Known, never: bool) -> Vec<ReloadRequest> {
    let Some(before) = before else {
        return Vec::new();
    };
    let is_new = |(table, relation): &(&String, &i64)| before.get(*table) != Some(*relation);
    let fresh = now.iter().filter(is_new).map(|(table, _)| {
        let truncate = before.contains_key(table);
        match (never, truncate) {
            (true, _) => tracing::info!(table, "is followed from here on; `snapshot` is \"never\""),
            (_, true) => tracing::info!(
                table,
                "is another one than before; it is emptied, and loaded"
            ),
            _ => tracing::info!(table, "is new, and is loaded"),
        }
        ReloadRequest {
            table: table.clone(),
            condition: None,
            truncate,
        }
    });
    let fresh: Vec<_> = fresh.collect();
    if never { Vec::new() } else { fresh }
}

/// What has been followed until now. A table that is not followed at present counts as another one when it comes back.
fn merged(before: Option<&Known>, now: Known) -> Known {
    let gone = before.into_iter().flatten();
    let gone = gone.map(|(table, relation)| (table.clone(), -relation.abs()));
    gone.chain(now).collect()
}

impl Opening<'_> {
    /// The tables that are followed now.
    fn known(&self) -> Known {
        let tables = self.tables.iter();
        tables
            .map(|(table, ..)| (table.id.to_string(), table.relation.into()))
            .collect()
    }

    /// Where to begin, by how things stand and the settings:
    ///
    /// | standing | `initial` | `never` |
    /// |---|---|---|
    /// | nothing read yet | create the slot, copy | create the slot, stream |
    /// | a slot, and no state | move the slot, copy again | stream |
    /// | copy interrupted, and on record how far | stream, and read the rest beside it | stream |
    /// | copy interrupted | move or create the slot, copy again | create the slot when missing, stream |
    /// | goes on | stream | stream |
    /// | lost, `stop` | stop | stop |
    /// | lost, `resync` | move or make the slot anew, copy again | (refused in the file) |
    ///
    /// To copy *again* is to begin with a TRUNCATE: sinks may hold rows of an earlier copy that are gone by now. Where
    /// the slot is there and the state is not, somebody may have removed the state.
    ///
    /// # Errors
    /// `Lost` when changes are missing and the policy is to stop; the server's.
    pub async fn decide(&self, mut replication: Connection) -> Result<Decided> {
        let before = self.file.read()?;
        if self.takes_over {
            slot::take_over(self.client, self.slot).await?;
        }
        let (server, standing) =
            look(self.config, &mut replication, before.as_ref(), self.slot).await?;
        let never = self.config.snapshot == SnapshotMode::Never;
        let work = Work {
            opening: self,
            server,
            before,
        };
        let as_is = work.server.identity.clone();
        let (start, state) = match standing {
            Standing::New if never => work.stream(replication, &as_is, None).await?,
            Standing::New => {
                let identity = unheard_of(as_is.clone());
                work.create(replication, &identity, false).await?
            }
            Standing::Unknown(slot) if never => {
                work.stream(replication, &as_is, Some(slot)).await?
            }
            Standing::Unknown(slot) => {
                work.copy_again(replication, &unheard_of(as_is.clone()), Some(slot))
                    .await?
            }
            Standing::Interrupted { slot, identity } if never => {
                work.stream(replication, &identity, slot).await?
            }
            Standing::Interrupted { slot, identity } => {
                match work.resume(slot.as_ref(), &identity) {
                    Some(resumed) => {
                        replication.terminate().await;
                        resumed
                    }
                    None => work.copy_again(replication, &identity, slot).await?,
                }
            }
            Standing::Continues { slot, state } => {
                replication.terminate().await;
                let from = begins(&slot, state.reached.as_ref());
                let known = work.opening.known();
                let rest = fresh(state.tables.as_ref(), &known, never);
                let state = State {
                    tables: Some(merged(state.tables.as_ref(), known)),
                    ..state
                };
                (Start::Resume { from, rest }, state)
            }
            Standing::Lost(loss) => work.lost(replication, loss).await?,
        };
        Ok(Decided {
            start,
            state,
            server: as_is,
        })
    }
}

/// Where a stream begins that is continued: where the slot stands, or further on where a crash of the server has taken it back, to
/// where it was saved last. What was confirmed is not asked for again, but for the last transaction: it shows that this is the same log.
fn begins(slot: &Slot, reached: Option<&Reached>) -> Lsn {
    let last = reached.and_then(|reached| Some((reached, reached.last.as_ref()?)));
    let known = last.map(|(reached, last)| reached.told().min(last.commit));
    slot.confirmed.max(known.unwrap_or(Lsn::ZERO))
}

/// The carrying out of a decision.
struct Work<'a> {
    opening: &'a Opening<'a>,
    server: Server,
    /// What was on record.
    before: Option<State>,
}

impl Work<'_> {
    /// Stops or copies again, by the policy.
    async fn lost(&self, replication: Connection, loss: Loss) -> Result<(Start, State)> {
        if self.opening.config.on_slot_lost() == OnSlotLost::Stop {
            return Err(loss.error());
        }
        tracing::warn!(
            slot = self.opening.slot,
            cause = loss.cause,
            "the log cannot be continued; emptying the copies and copying the tables again"
        );
        let identity = match self.before {
            Some(_) => loss.identity,
            None => unheard_of(loss.identity),
        };
        self.copy_again(replication, &identity, loss.slot).await
    }

    /// What is left of a copy that was interrupted, where it is known and can be read beside the stream; `None`: make
    /// another copy.
    fn resume(&self, slot: Option<&Slot>, identity: &SourceIdentity) -> Option<(Start, State)> {
        let opening = self.opening;
        // Behind another log's copy nothing would take away what sinks hold of it.
        let is_same_log = self
            .before
            .as_ref()
            .is_some_and(|before| before.identity == *identity);
        if !is_same_log {
            return None;
        }
        let slot = slot.filter(|slot| slot.invalid.is_none() && !self.server.in_recovery);
        let (Some(slot), Some(extent)) = (slot, extent::read(opening.directory)) else {
            return None;
        };
        let from = extent.consistent_point;
        if slot.confirmed != from {
            return None;
        }
        let mut rest = Vec::new();
        for (published, _, schema) in opening.tables {
            let table = published.id.to_string();
            let copied = extent.tables.get(&table);
            let is_other = copied.is_some_and(|copied| copied.relation != published.relation);
            let copied = copied.filter(|_| !is_other);
            if copied.is_some_and(extent::Table::is_complete) {
                continue;
            }
            if schema.key.is_empty() {
                tracing::info!(
                    table,
                    "has no key to read the rest by; the tables are copied from the beginning"
                );
                return None;
            }
            let condition = copied.and_then(|copied| copied.rest(extent.xmin));
            rest.push(ReloadRequest {
                table,
                condition,
                // What has been sent of another table of that name must not stay.
                truncate: is_other,
            });
        }
        tracing::info!(slot = opening.slot, %from, tables = rest.len(), "the copy goes on where it was interrupted");
        let reached = Reached {
            timeline: self.server.identity.timeline,
            confirmed: from,
            told: None,
            received: self.received(identity).max(from),
            last: None,
        };
        let state = State {
            identity: identity.clone(),
            slot: opening.slot.to_owned(),
            tables: Some(opening.known()),
            copy: Copied::Done { from },
            reached: Some(reached),
            two_phase: self.before.as_ref().is_some_and(|before| before.two_phase),
        };
        Some((Start::Resume { from, rest }, state))
    }

    /// Writes down that a copy is under way, before anything of the earlier one is given up: a crash must not take it for
    /// a first one.
    fn begin_copy(&self, identity: &SourceIdentity, received: Lsn) -> Result<State> {
        let opening = self.opening;
        let state = State {
            identity: identity.clone(),
            slot: opening.slot.to_owned(),
            tables: Some(opening.known()),
            copy: Copied::Running,
            reached: Some(Reached {
                timeline: self.server.identity.timeline,
                confirmed: Lsn::ZERO,
                told: None,
                received,
                last: None,
            }),
            two_phase: false,
        };
        opening.file.write(&state)?;
        Ok(state)
    }

    /// What sinks may hold of the log with this identity.
    fn received(&self, identity: &SourceIdentity) -> Lsn {
        let before = self.before.as_ref();
        let same = before.filter(|before| before.identity == *identity);
        let reached = same.and_then(|before| before.reached.as_ref());
        reached.map_or(Lsn::ZERO, |reached| reached.received)
    }

    /// Makes a copy that voids the ones before, with the slot that is there or a new one.
    async fn copy_again(
        &self,
        replication: Connection,
        identity: &SourceIdentity,
        slot: Option<Slot>,
    ) -> Result<(Start, State)> {
        match slot {
            // One that decodes prepared transactions is not moved: of those that are prepared before the place where it would be
            // moved to, and commit behind it, nothing would come.
            Some(slot) if slot.invalid.is_none() && !slot.two_phase => {
                replication.terminate().await;
                self.move_slot(identity).await
            }
            Some(_) => {
                slot::require_no_prepared(self.opening.client).await?;
                self.begin_copy(identity, self.received(identity))?;
                slot::drop(self.opening.client, self.opening.slot).await?;
                self.create(replication, identity, true).await
            }
            None => self.create(replication, identity, true).await,
        }
    }

    /// Copies under the snapshot of a new slot; `again` voids earlier copies.
    async fn create(
        &self,
        mut replication: Connection,
        identity: &SourceIdentity,
        again: bool,
    ) -> Result<(Start, State)> {
        slot::require_no_prepared(self.opening.client).await?;
        // Before the slot: a crash between the two copies again, never not at all.
        self.begin_copy(identity, self.received(identity))?;
        let created = self.create_slot(&mut replication).await?;
        let state = self.begin_copy(identity, created.consistent_point)?;
        let start = Start::Copy {
            keeper: replication,
            snapshot: created.snapshot,
            consistent_point: created.consistent_point,
            again,
        };
        Ok((start, state))
    }

    async fn create_slot(&self, replication: &mut Connection) -> Result<slot::Created> {
        let opening = self.opening;
        let created = slot::create(replication, opening.slot, opening.config.failover).await?;
        tracing::info!(slot = opening.slot, consistent_point = %created.consistent_point, "slot created");
        Ok(created)
    }

    /// Copies once more, under the snapshot of a slot that lives only for it, and moves ours to the point where that
    /// snapshot was taken. Sinks may hold rows of the first attempt that are gone by now, so the copy begins with a
    /// TRUNCATE.
    async fn move_slot(&self, identity: &SourceIdentity) -> Result<(Start, State)> {
        let opening = self.opening;
        slot::require_no_prepared(opening.client).await?;
        self.begin_copy(identity, self.received(identity))?;
        let mut keeper = Connection::open(opening.target, Mode::Replication).await?;
        let name: String = opening
            .slot
            .chars()
            .take(58)
            .chain("_copy".chars())
            .collect();
        let created = slot::create_temporary(&mut keeper, &name).await?;
        slot::advance(opening.target, opening.slot, created.consistent_point).await?;
        tracing::info!(slot = opening.slot, consistent_point = %created.consistent_point, "copying once more");
        let state = self.begin_copy(identity, created.consistent_point)?;
        let start = Start::Copy {
            keeper,
            snapshot: created.snapshot,
            consistent_point: created.consistent_point,
            again: true,
        };
        Ok((start, state))
    }

    /// Streams from where a slot stands that was not read from here, or from a new one.
    async fn stream(
        &self,
        mut replication: Connection,
        identity: &SourceIdentity,
        slot: Option<Slot>,
    ) -> Result<(Start, State)> {
        let two_phase = slot.as_ref().is_some_and(|slot| slot.two_phase);
        let from = match slot {
            Some(slot) => slot.confirmed,
            None => {
                slot::require_no_prepared(self.opening.client).await?;
                self.create_slot(&mut replication).await?.consistent_point
            }
        };
        replication.terminate().await;
        let state = State {
            identity: identity.clone(),
            slot: self.opening.slot.to_owned(),
            tables: Some(self.opening.known()),
            copy: Copied::Done { from },
            reached: Some(Reached {
                timeline: self.server.identity.timeline,
                confirmed: from,
                told: None,
                received: from,
                last: None,
            }),
            two_phase,
        };
        self.opening.file.write(&state)?;
        Ok((Start::Stream { from }, state))
    }
}
