//! Opens a source: who the server is, what is published, where the slot stands; then copy, then stream.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use lockstep_core::batch::{Batch, BatchBuilder, Op, Phase, Transaction};
use lockstep_core::check::Finding;
use lockstep_core::error::{At, Error, ErrorKind, Result};
use lockstep_core::position::{Lsn, SourceInfo};
use lockstep_core::schema::TableSchema;
use lockstep_core::source::{Reloads, Source, SourceContext, SourceFactory, SourcePhase};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::catalog::{Catalog, Described, Published, require_identity};
use crate::config::{PostgresConfig, SnapshotMode};
use crate::error::from_sql;
use crate::lookout::Lookout;
use crate::reload::{Desk, Merge, Reader};
use crate::snapshot::Copy;
use crate::state::{Copied, State, StateFile};
use crate::stream::Stream;
use crate::types::TypeCache;
use crate::wire::target::Target;
use crate::wire::{Connection, Mode};
use crate::{preflight, publication, slot, sql};

/// Batches that wait for the pump; their bytes are bounded by the budget.
const WAITING_BATCHES: usize = 16;
/// How often the slot is looked at for metrics.
const WATCH_EVERY: Duration = Duration::from_secs(5);
/// The oldest server there is support for.
pub const OLDEST_SERVER: u32 = 140_000;

/// `type = "postgres"`.
pub struct PostgresFactory;

#[async_trait]
impl SourceFactory for PostgresFactory {
    const KIND: &'static str = "postgres";
    type Config = PostgresConfig;

    fn validate(config: &PostgresConfig) -> Result<()> {
        config.validate()
    }

    async fn open(config: &PostgresConfig, context: SourceContext) -> Result<Box<dyn Source>> {
        Ok(Box::new(PostgresSource::open(config, context).await?))
    }

    async fn preflight(config: &PostgresConfig, _pipeline: &str, name: &str) -> Vec<Finding> {
        preflight::run(config, name).await
    }
}

/// An open source. The driver task owns everything that talks to the server.
struct PostgresSource {
    info: Arc<SourceInfo>,
    tables: Vec<Arc<TableSchema>>,
    batches: mpsc::Receiver<Result<Batch>>,
    /// Batches that a pass of the window has made of one, and that are not handed on yet.
    ready: VecDeque<Batch>,
    merge: Merge,
    desk: Arc<Desk>,
    shutdown: CancellationToken,
    driver: Option<JoinHandle<()>>,
}

#[async_trait]
impl Source for PostgresSource {
    fn info(&self) -> Arc<SourceInfo> {
        Arc::clone(&self.info)
    }

    fn tables(&self) -> Vec<Arc<TableSchema>> {
        self.tables.clone()
    }

    async fn next(&mut self) -> Result<Option<Batch>> {
        if self.ready.is_empty()
            && let Some(batch) = self.batches.recv().await.transpose()?
        {
            self.ready.extend(self.merge.pass(batch, &self.desk));
        }
        Ok(self.ready.pop_front())
    }

    fn reloads(&self) -> Option<Arc<dyn Reloads>> {
        Some(Arc::clone(&self.desk) as Arc<dyn Reloads>)
    }

    async fn close(&mut self) -> Result<()> {
        self.shutdown.cancel();
        // A driver that waits for room in the channel must see that nobody reads any more.
        self.batches.close();
        while let Some(left) = self.batches.recv().await {
            drop(left);
        }
        match self.driver.take() {
            Some(driver) => driver.await.map_err(|error| {
                Error::new(ErrorKind::Abandoned, "the source's driver panicked").source(error)
            }),
            None => Ok(()),
        }
    }
}

impl Drop for PostgresSource {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// What is to be done before the stream.
enum Start {
    /// Copy under the snapshot that this connection keeps open, then stream.
    Copy {
        keeper: Connection,
        snapshot: String,
        consistent_point: Lsn,
        /// Sinks may hold rows of an earlier attempt.
        again: bool,
    },
    /// Stream from where the slot stands.
    Stream { from: Lsn },
}

/// The parts of an open source that the driver takes along.
struct Driver {
    desk: Arc<Desk>,
    merge: Merge,
    config: PostgresConfig,
    context: SourceContext,
    target: Target,
    info: Arc<SourceInfo>,
    slot: String,
    tables: Vec<(Published, Described, Arc<TableSchema>)>,
    types: TypeCache,
    client: Client,
    state: StateFile,
    batches: mpsc::Sender<Result<Batch>>,
    shutdown: CancellationToken,
}

/// Connections to a server whose identity and tables are known.
struct Contact {
    client: Client,
    replication: Connection,
    info: Arc<SourceInfo>,
    tables: Vec<(Published, Described, Arc<TableSchema>)>,
    types: TypeCache,
}

impl Contact {
    /// Connects, makes sure of the publication, and reads the tables' shapes.
    async fn make(config: &PostgresConfig, target: &Target, name: &Arc<str>) -> Result<Self> {
        let mut replication = Connection::open(target, Mode::Replication).await?;
        let server_version = replication.server_version();
        require_version(server_version)?;
        let identity = slot::identify(&mut replication).await?;
        let info = Arc::new(SourceInfo {
            name: Arc::clone(name),
            identity,
        });
        let client = sql::connect(target).await?;
        let published =
            publication::ensure(&client, &config.publication, &config.tables, server_version)
                .await?;
        let mut catalog = Catalog::new(client, Arc::clone(name), TypeCache::default());
        let mut tables = Vec::with_capacity(published.len());
        for table in published {
            let place = format!("table {}", table.id);
            let facts = catalog.facts(table.relation).await?.ok_or_else(|| {
                Error::new(ErrorKind::Setup, "was dropped a moment ago").at(place.clone())
            })?;
            require_identity(&table.id, &facts)?;
            let described = catalog.described(&table, &facts, server_version);
            let schema = Arc::new(catalog.schema(&described).await.at(place)?);
            tables.push((table, described, schema));
        }
        let types = catalog.types();
        Ok(Contact {
            client: catalog.into_client(),
            replication,
            info,
            tables,
            types,
        })
    }
}

/// Whose log a source reads, and the tables it sends, as they are now. For those who compare, not for the pipeline.
///
/// # Errors
/// As when the source is opened.
pub async fn describe(
    config: &PostgresConfig,
    name: &str,
) -> Result<(Arc<SourceInfo>, Vec<Arc<TableSchema>>)> {
    let contact = Contact::make(config, &config.target()?, &name.into()).await?;
    contact.replication.terminate().await;
    Ok((
        contact.info,
        contact
            .tables
            .into_iter()
            .map(|(_, _, schema)| schema)
            .collect(),
    ))
}

impl PostgresSource {
    async fn open(config: &PostgresConfig, context: SourceContext) -> Result<Self> {
        context.status.update(|state| {
            state.phase = SourcePhase::Connecting;
            state.snapshot.clear();
            state.notices.clear();
        });
        let target = config.target()?;
        let slot = config.slot_name(&context.name);
        let contact = Contact::make(config, &target, &context.name).await?;
        let state = StateFile::new(&context.state);
        let opening = Opening {
            config,
            target: &target,
            client: &contact.client,
            info: &contact.info,
            slot: &slot,
            file: &state,
        };
        let start = opening.decide(contact.replication).await?;
        let (sender, batches) = mpsc::channel(WAITING_BATCHES);
        let shutdown = CancellationToken::new();
        let schemas = contact
            .tables
            .iter()
            .map(|(_, _, schema)| Arc::clone(schema))
            .collect();
        let info = Arc::clone(&contact.info);
        let names = contact
            .tables
            .iter()
            .map(|(table, ..)| table.id.to_string());
        let desk = Arc::new(Desk::open(&context.state, names.collect())?);
        let merge = Merge::default();
        let driver = Driver {
            desk: Arc::clone(&desk),
            merge: merge.clone(),
            config: config.clone(),
            context,
            target,
            info: contact.info,
            slot,
            tables: contact.tables,
            types: contact.types,
            client: contact.client,
            state,
            batches: sender,
            shutdown: shutdown.clone(),
        };
        let driver = tokio::spawn(driver.run(start));
        Ok(PostgresSource {
            info,
            tables: schemas,
            batches,
            ready: VecDeque::new(),
            merge,
            desk,
            shutdown,
            driver: Some(driver),
        })
    }
}

/// Refuses servers that are too old.
///
/// # Errors
/// Of kind `Setup`.
pub fn require_version(server_version: u32) -> Result<()> {
    if server_version < OLDEST_SERVER {
        return Err(Error::new(
            ErrorKind::Setup,
            format!("the server is PostgreSQL {}", server_version / 10_000),
        )
        .remedy("use PostgreSQL 14 or newer"));
    }
    Ok(())
}

/// What a new slot is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Begin {
    /// The stream alone.
    Stream,
    /// The first copy: no sink holds anything of ours.
    Copy,
    /// Another copy, which voids the ones before.
    CopyAgain,
}

/// What the decision about the beginning looks at.
struct Opening<'a> {
    config: &'a PostgresConfig,
    target: &'a Target,
    client: &'a Client,
    info: &'a SourceInfo,
    slot: &'a str,
    file: &'a StateFile,
}

impl Opening<'_> {
    /// Where to begin, by the slot, the state file and the `snapshot` setting:
    ///
    /// | slot | copy so far | `initial` | `when_needed` | `never` |
    /// |---|---|---|---|---|
    /// | missing | none | create, copy | create, copy | create, stream |
    /// | missing | interrupted | create, copy again | create, copy again | create, stream |
    /// | missing | done | stop: lost | create, copy again | stop: lost |
    /// | there | none, or interrupted | move it, copy again | move it, copy again | stream |
    /// | there | done | stream | stream | stream |
    /// | its log is gone | any | stop: lost | drop, create, copy again | stop: lost |
    ///
    /// To copy *again* is to begin with a TRUNCATE: sinks may hold rows of an earlier copy that are gone by now. Where
    /// the slot is there and the state is not, somebody may have removed the state.
    async fn decide(&self, replication: Connection) -> Result<Start> {
        let copied = self.copied_so_far()?;
        let (never, when_needed) = (
            self.config.snapshot == SnapshotMode::Never,
            self.config.snapshot == SnapshotMode::WhenNeeded,
        );
        match (slot::read(self.client, self.slot).await?, copied) {
            (Some(found), _) if found.wal_status == "lost" && when_needed => {
                tracing::warn!(
                    slot = self.slot,
                    "the slot's log is gone; dropping it and copying the tables again"
                );
                // On record before the slot is gone: a crash between the two must not take this for a first copy.
                self.remember(Copied::Running)?;
                self.client
                    .execute(
                        "SELECT pg_catalog.pg_drop_replication_slot($1::text::name)",
                        &[&self.slot],
                    )
                    .await
                    .map_err(|error| from_sql("drop the lost slot", error))?;
                self.create(replication, Begin::CopyAgain).await
            }
            (Some(found), copied) => {
                found.require_usable(self.slot, &self.info.identity.database)?;
                replication.terminate().await;
                match copied {
                    Some(Copied::Done { .. }) => Ok(Start::Stream {
                        from: found.confirmed,
                    }),
                    _ if never => Ok(Start::Stream {
                        from: found.confirmed,
                    }),
                    Some(Copied::Running) | None => self.copy_again().await,
                }
            }
            (None, Some(Copied::Done { from })) if !when_needed => {
                let slot = self.slot;
                Err(slot::lost(
                    &format!(
                        "the slot {slot}, streamed from {from} on, is gone; changes since then cannot be read"
                    ),
                    slot,
                ))
            }
            (None, _) if never => self.create(replication, Begin::Stream).await,
            (None, None) => self.create(replication, Begin::Copy).await,
            (None, Some(_)) => self.create(replication, Begin::CopyAgain).await,
        }
    }

    fn copied_so_far(&self) -> Result<Option<Copied>> {
        let Some(state) = self.file.read()? else {
            return Ok(None);
        };
        if state.identity != self.info.identity || state.slot != self.slot {
            return Err(Error::new(
                ErrorKind::Lost,
                format!(
                    "the state is of slot {} of {}; the server says {} and the slot is {}",
                    state.slot, state.identity, self.info.identity, self.slot
                ),
            )
            .remedy("point the URL at the server it was, or remove the source's state directory to start over"));
        }
        Ok(Some(state.copy))
    }

    fn remember(&self, copy: Copied) -> Result<()> {
        self.file.write(&State {
            identity: self.info.identity.clone(),
            slot: self.slot.to_owned(),
            copy,
        })
    }

    async fn create(&self, mut replication: Connection, begin: Begin) -> Result<Start> {
        slot::require_no_prepared(self.client).await?;
        // Written before the slot: a crash between the two copies again, never not at all.
        if begin != Begin::Stream {
            self.remember(Copied::Running)?;
        }
        let created = slot::create(&mut replication, self.slot).await?;
        tracing::info!(slot = self.slot, consistent_point = %created.consistent_point, "slot created");
        if begin != Begin::Stream {
            return Ok(Start::Copy {
                keeper: replication,
                snapshot: created.snapshot,
                consistent_point: created.consistent_point,
                again: begin == Begin::CopyAgain,
            });
        }
        replication.terminate().await;
        self.remember(Copied::Done {
            from: created.consistent_point,
        })?;
        Ok(Start::Stream {
            from: created.consistent_point,
        })
    }

    /// An interrupted copy, or a slot that somebody made for us: copies once more, under the snapshot of a slot that
    /// lives only for it, and moves ours to the point where that snapshot was taken. Sinks may hold rows of the first
    /// attempt that are gone by now, so the copy begins with a TRUNCATE.
    async fn copy_again(&self) -> Result<Start> {
        slot::require_no_prepared(self.client).await?;
        self.remember(Copied::Running)?;
        let mut keeper = Connection::open(self.target, Mode::Replication).await?;
        let name: String = self.slot.chars().take(58).chain("_copy".chars()).collect();
        let created = slot::create_temporary(&mut keeper, &name).await?;
        slot::advance(self.client, self.slot, created.consistent_point).await?;
        tracing::info!(slot = self.slot, consistent_point = %created.consistent_point, "copying once more");
        Ok(Start::Copy {
            keeper,
            snapshot: created.snapshot,
            consistent_point: created.consistent_point,
            again: true,
        })
    }
}

impl Driver {
    /// Copies, streams, and reports an error as the last thing the source yields.
    async fn run(self, start: Start) {
        let (sender, status, shutdown) = (
            self.batches.clone(),
            self.context.status.clone(),
            self.shutdown.clone(),
        );
        let result = tokio::select! {
            biased;
            result = self.drive(start) => result,
            // The stream ends by itself, with a goodbye; anything before it is simply given up.
            () = async { shutdown.cancelled().await; tokio::time::sleep(GIVE_UP_AFTER).await } => Ok(()),
        };
        status.update(|state| state.phase = SourcePhase::Stopped);
        if let Err(error) = result
            && error.kind() != ErrorKind::Stopping
        {
            // Nobody reads any more: the source was dropped, and the error with it.
            let _ = sender.send(Err(error)).await;
        }
    }

    async fn drive(self, start: Start) -> Result<()> {
        let watch = tokio::spawn(watch(
            self.target.clone(),
            self.slot.clone(),
            self.context.clone(),
            Lookout::new(
                &self.config.publication,
                &self.config.tables,
                self.tables.iter().map(|(_, _, schema)| &**schema),
            ),
        ));
        let result = self.copy_then_stream(start).await;
        watch.abort();
        result
    }

    async fn copy_then_stream(self, start: Start) -> Result<()> {
        let (from, copied) = match start {
            Start::Stream { from } => (from, true),
            Start::Copy {
                keeper,
                snapshot,
                consistent_point,
                again,
            } => {
                if again {
                    self.truncate(consistent_point).await?;
                }
                self.copy(keeper, snapshot, consistent_point).await?;
                (consistent_point, false)
            }
        };
        let remember = (!copied).then(|| {
            let state = State {
                identity: self.info.identity.clone(),
                slot: self.slot.clone(),
                copy: Copied::Done { from },
            };
            (self.state.clone(), state)
        });
        let reader = Reader {
            target: self.target.clone(),
            tables: self
                .tables
                .iter()
                .map(|(table, _, schema)| (table.clone(), Arc::clone(schema)))
                .collect(),
            desk: self.desk,
            merge: self.merge,
            feedback: self.context.feedback.clone(),
            budget: self.context.budget.clone(),
        };
        // Ends with this future: the reader and the stream belong to one connection to the server.
        let mut beside = JoinSet::new();
        beside.spawn(reader.run());
        let stream = Stream {
            target: self.target,
            source: self.info,
            slot: self.slot,
            publication: self.config.publication,
            tables: self
                .tables
                .into_iter()
                .map(|(_, described, schema)| (described, schema))
                .collect(),
            types: self.types,
            from,
            remember,
            status_interval: self.config.status_interval.0,
            nap: Duration::from_micros(self.config.coalesce_micros.into()),
            batches: self.batches,
            feedback: self.context.feedback,
            budget: self.context.budget,
            status: self.context.status,
            shutdown: self.shutdown,
        };
        let (done, ended) = tokio::sync::oneshot::channel();
        let name = format!("source-{}", stream.source.name);
        std::thread::Builder::new()
            .name(name.chars().take(15).collect())
            .spawn(move || {
                let _ = done.send(stream.run());
            })
            .map_err(|error| {
                Error::new(ErrorKind::Storage, "cannot start the stream's thread").source(error)
            })?;
        ended.await.unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::Abandoned,
                "the stream's thread panicked",
            ))
        })
    }

    /// Empties the tables' copies in the sinks, at a version just below the rows that come.
    async fn truncate(&self, consistent_point: Lsn) -> Result<()> {
        let mut builder = BatchBuilder::new();
        builder.begin(Transaction {
            commit: Lsn(consistent_point.0.saturating_sub(1)),
            commit_micros: crate::assemble::now_micros(),
            xid: 0,
            origin: None,
            previous_commit: None,
        });
        for (ordinal, (_, _, schema)) in self.tables.iter().enumerate() {
            let index = builder.schema(schema);
            builder.push(
                Op::Truncate,
                index,
                ordinal as u64 + 1,
                consistent_point,
                None,
                None,
            );
        }
        let batch = builder.finish(
            Arc::clone(&self.info),
            Phase::Snapshot,
            None,
            bytes::Bytes::new(),
        );
        self.batches
            .send(Ok(batch))
            .await
            .map_err(|_| Error::new(ErrorKind::Stopping, "the pipeline is stopping"))
    }

    /// Copies the tables, then says that everything up to the consistent point has been sent.
    async fn copy(
        &self,
        keeper: Connection,
        snapshot: String,
        consistent_point: Lsn,
    ) -> Result<()> {
        let copy = Copy {
            target: self.target.clone(),
            source: Arc::clone(&self.info),
            tables: self
                .tables
                .iter()
                .map(|(table, _, schema)| (table.clone(), Arc::clone(schema)))
                .collect(),
            snapshot,
            consistent_point,
            workers: self.config.snapshot_workers,
            chunk: self.config.snapshot_chunk,
            batches: self.batches.clone(),
            budget: self.context.budget.clone(),
            status: self.context.status.clone(),
        };
        let shutdown = self.shutdown.clone();
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return Err(Error::new(ErrorKind::Stopping, "the pipeline is stopping")),
            copied = copy.run(&self.client) => copied?,
        };
        keeper.terminate().await;
        let end = Batch::progress(Arc::clone(&self.info), consistent_point);
        self.batches
            .send(Ok(end))
            .await
            .map_err(|_| Error::new(ErrorKind::Stopping, "the pipeline is stopping"))
    }
}

/// How long the stream may take to say goodbye before it is given up.
const GIVE_UP_AFTER: Duration = Duration::from_secs(8);

/// Looks at the slot and at the tables every few seconds, for metrics and the status page. A failure is retried: the stream itself is
/// what reports a server that is gone.
async fn watch(target: Target, slot: String, context: SourceContext, mut lookout: Lookout) {
    const LOOK: &str = "SELECT pg_catalog.pg_wal_lsn_diff(here, restart_lsn)::int8, \
        pg_catalog.pg_wal_lsn_diff(here, '0/0')::int8 \
        FROM (SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() \
              ELSE pg_catalog.pg_current_wal_lsn() END AS here) w \
        LEFT JOIN pg_catalog.pg_replication_slots ON slot_name = $1";
    let mut tick = tokio::time::interval(WATCH_EVERY);
    let mut client: Option<Client> = None;
    loop {
        tick.tick().await;
        if client.as_ref().is_none_or(Client::is_closed) {
            client = match sql::connect(&target).await {
                Ok(client) => Some(client),
                Err(error) => {
                    tracing::debug!(source = &*context.name, %error, "cannot look at the slot");
                    None
                }
            };
        }
        let Some(open) = &client else { continue };
        match sql::query_one(open, "look at the slot", LOOK, &[&slot]).await {
            Ok(row) => context.status.update(|state| {
                state.retained_bytes = row
                    .get::<_, Option<i64>>(0)
                    .and_then(|bytes| u64::try_from(bytes).ok());
                state.server = u64::try_from(row.get::<_, i64>(1)).unwrap_or(0);
            }),
            Err(error) => {
                tracing::debug!(source = &*context.name, %error, "cannot look at the slot")
            }
        }
        match lookout.look(open).await {
            Ok(notices) => context.status.update(|state| state.notices = notices),
            Err(error) => tracing::debug!(source = &*context.name, %error, "{error}"),
        }
    }
}
