//! Opens a source: who the server is, what is published, where the slot stands; then copy, then stream.

use std::collections::VecDeque;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use lockstep_core::batch::{Batch, BatchBuilder, Op, Phase, Transaction};
use lockstep_core::check::Finding;
use lockstep_core::error::{At, Error, ErrorKind, Result};
use lockstep_core::position::{Lsn, SourceIdentity, SourceInfo};
use lockstep_core::query::Queries;
use lockstep_core::schema::{TableId, TableSchema};
use lockstep_core::source::{
    Checks, Fences, Reloads, Source, SourceContext, SourceFactory, SourcePhase,
};
use lockstep_pg::sql;
use lockstep_pg::wire::target::Target;
use lockstep_pg::wire::{Connection, Mode};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::catalog::{Catalog, Described, Published, require_identity};
use crate::config::{OnSlotLost, PostgresConfig, Streaming};
use crate::extent::{self, Recorder};
use crate::fence::{Fence, Wanted};
use crate::horizons::Horizons;
use crate::ledger::Ledger;
use crate::lookout::{self, Lookout};
use crate::opening::{Opening, Start};
use crate::query::Asking;
use crate::reload::{Asked, Counter, Desk, Merge, Reader, counter, reload_budget};
use crate::server::identify;
use crate::snapshot::Copy;
use crate::state::{Known, State, StateFile};
use crate::stream::Stream;
use crate::throttle::Throttle;
use crate::types::TypeCache;
use crate::watch::Watch;
use crate::{preflight, publication, watch};

/// Batches that wait for the pump; their bytes are bounded by the budget.
const WAITING_BATCHES: usize = 16;
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

    async fn preflight(
        config: &PostgresConfig,
        _pipeline: &str,
        name: &str,
        state: &Path,
    ) -> Vec<Finding> {
        preflight::run(config, name, state).await
    }

    fn queries(config: &PostgresConfig) -> Result<Option<Arc<dyn Queries>>> {
        Ok(Some(Arc::new(Asking::new(config.target()?))))
    }

    fn tells_of_branches(config: &PostgresConfig) -> bool {
        config.two_phase
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
    checks: Arc<Counter>,
    fence: Arc<Fence>,
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
            self.ready.extend(self.merge.pass(batch, &self.desk)?);
        }
        Ok(self.ready.pop_front())
    }

    fn reloads(&self) -> Option<Arc<dyn Reloads>> {
        Some(Arc::clone(&self.desk) as Arc<dyn Reloads>)
    }

    fn checks(&self) -> Option<Arc<dyn Checks>> {
        Some(Arc::clone(&self.checks) as Arc<dyn Checks>)
    }

    fn fences(&self) -> Option<Arc<dyn Fences>> {
        Some(Arc::clone(&self.fence) as Arc<dyn Fences>)
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

/// The parts of an open source that the driver takes along.
struct Driver {
    desk: Arc<Desk>,
    asked: Asked,
    merge: Merge,
    horizons: Horizons,
    config: PostgresConfig,
    context: SourceContext,
    target: Target,
    info: Arc<SourceInfo>,
    slot: String,
    tables: Vec<(Published, Described, Arc<TableSchema>)>,
    types: TypeCache,
    /// Of the server, as `server_version_num`.
    version: u32,
    client: Client,
    file: StateFile,
    /// What is on record, or will be with the first word of the stream.
    state: State,
    /// Who the server says it is.
    server: SourceIdentity,
    batches: mpsc::Sender<Result<Batch>>,
    throttle: Arc<Throttle>,
    wanted: Arc<Wanted>,
    /// The server shuts down.
    departs: CancellationToken,
    shutdown: CancellationToken,
}

/// Connections to a server whose identity and tables are known.
struct Contact {
    client: Client,
    replication: Connection,
    version: u32,
    identity: SourceIdentity,
    tables: Vec<(Published, Described, Arc<TableSchema>)>,
    types: TypeCache,
}

impl Contact {
    /// Connects, makes sure of the publication, and reads the tables' shapes.
    async fn make(
        config: &PostgresConfig,
        target: &Target,
        name: &Arc<str>,
        known: Option<&Known>,
    ) -> Result<Self> {
        let mut replication = Connection::open(target, Mode::Replication).await?;
        let server_version = replication.server_version();
        require_version(server_version)?;
        let identity = identify(&mut replication).await?;
        let client = sql::connect(target).await?;
        let wanted = publication::Wanted {
            name: &config.publication,
            patterns: &config.tables,
        };
        let published = wanted.ensure(&client, known, server_version).await?;
        let mut catalog = Catalog::new(client, Arc::clone(name), TypeCache::default());
        let mut tables = Vec::with_capacity(published.len());
        for table in published {
            let place = format!("table {}", table.id);
            let facts = catalog.facts(table.relation).await?.ok_or_else(|| {
                Error::new(ErrorKind::Setup, "was dropped a moment ago").at(place.clone())
            })?;
            if let Err(error) = require_identity(&table.id, &facts) {
                // One that has come since is no reason to stop for the others.
                let is_new = known.is_some_and(|known| !known.contains_key(&table.id.to_string()));
                let in_full = config.tables.contains(&table.id.to_string());
                if is_new && !in_full {
                    tracing::warn!(table = %table.id, %error, "is not followed yet");
                    continue;
                }
                return Err(error);
            }
            let described = catalog.described(&table, &facts, server_version);
            let schema = Arc::new(catalog.schema(&described).await.at(place)?);
            tables.push((table, described, schema));
        }
        let types = catalog.types();
        Ok(Contact {
            client: catalog.into_client(),
            replication,
            version: server_version,
            identity,
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
    let name: Arc<str> = name.into();
    let contact = Contact::make(config, &config.target()?, &name, None).await?;
    contact.replication.terminate().await;
    Ok((
        Arc::new(SourceInfo {
            name,
            identity: contact.identity,
        }),
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
        let file = StateFile::new(&context.state);
        let before = file.read()?;
        let known = before.as_ref().and_then(|before| before.tables.as_ref());
        let contact = Contact::make(config, &target, &context.name, known).await?;
        let carried = contact.tables.iter().map(|(_, _, schema)| &**schema);
        lookout::remember_partitions(&contact.client, carried, &context.state).await?;
        let opening = Opening {
            config,
            target: &target,
            client: &contact.client,
            slot: &slot,
            file: &file,
            directory: &context.state,
            takes_over: context.token.is_some(),
            tables: &contact.tables,
        };
        let decided = opening.decide(contact.replication).await?;
        let (sender, batches) = mpsc::channel(WAITING_BATCHES);
        let shutdown = CancellationToken::new();
        let schemas = contact
            .tables
            .iter()
            .map(|(_, _, schema)| Arc::clone(schema))
            .collect();
        let info = Arc::new(SourceInfo {
            name: Arc::clone(&context.name),
            identity: decided.state.identity.clone(),
        });
        let names = contact
            .tables
            .iter()
            .map(|(table, ..)| table.id.to_string());
        let desk = Arc::new(Desk::open(&context.state, names.collect())?);
        let received = decided.state.reached.as_ref();
        let received = received.map_or(Lsn::ZERO, |reached| reached.received);
        let horizons = Horizons::open(&context.state, &info.identity, received);
        let from = match &decided.start {
            Start::Stream { from } | Start::Resume { from, .. } => *from,
            Start::Copy {
                consistent_point, ..
            } => *consistent_point,
        };
        let merge = Merge::new(horizons.clone(), from);
        let start = match decided.start {
            Start::Resume { from, rest } => {
                // First what is left to do, then that the rest is done.
                if !rest.is_empty() {
                    desk.take_rest(rest)?;
                }
                if before.as_ref() != Some(&decided.state) {
                    file.write(&decided.state)?;
                }
                Start::Stream { from }
            }
            start => start,
        };
        if matches!(start, Start::Stream { .. }) {
            extent::remove(&context.state);
        }
        let throttle = Arc::new(Throttle::new(config, &target));
        let (checks, asked) = counter();
        let wanted = Arc::new(Wanted::default());
        let fence = Arc::new(Fence::new(target.clone(), Arc::clone(&wanted)));
        let driver = Driver {
            throttle,
            wanted,
            departs: CancellationToken::new(),
            asked,
            desk: Arc::clone(&desk),
            merge: merge.clone(),
            horizons,
            config: config.clone(),
            context,
            target,
            info: Arc::clone(&info),
            slot,
            tables: contact.tables,
            types: contact.types,
            version: contact.version,
            client: contact.client,
            file,
            state: decided.state,
            server: decided.server,
            batches: sender,
            shutdown: shutdown.clone(),
        };
        let driver = tokio::spawn(driver.run(start).in_current_span());
        Ok(PostgresSource {
            info,
            tables: schemas,
            batches,
            ready: VecDeque::new(),
            merge,
            desk,
            checks: Arc::new(checks),
            fence,
            shutdown,
            driver: Some(driver),
        })
    }
}

fn grown(table: &TableId) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!("the table {table} is to be followed, too"),
    )
    .remedy("the source is opened again with it")
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

impl Driver {
    /// Copies, streams, and reports an error as the last thing the source yields.
    async fn run(self, start: Start) {
        let (sender, status, shutdown) = (
            self.batches.clone(),
            self.context.status.clone(),
            self.shutdown.clone(),
        );
        let resync = self.config.on_slot_lost() == OnSlotLost::Resync;
        let horizons = self.horizons.clone();
        let result = tokio::select! {
            biased;
            result = self.drive(start) => result,
            // The stream ends by itself, with a goodbye; anything before it is simply given up.
            () = async { shutdown.cancelled().await; tokio::time::sleep(GIVE_UP_AFTER).await } => Ok(()),
        };
        status.update(|state| state.phase = SourcePhase::Stopped);
        // A failure has been told.
        let _ = tokio::task::spawn_blocking(move || horizons.save()).await;
        if let Err(error) = result
            && error.kind() != ErrorKind::Stopping
        {
            let error = if resync && error.kind() == ErrorKind::Lost {
                // It is on record: opened again, the source copies again.
                Error::new(ErrorKind::Unavailable, error.message())
                    .remedy("the tables are copied again")
            } else {
                error
            };
            // Nobody reads any more: the source was dropped, and the error with it.
            let _ = sender.send(Err(error)).await;
        }
    }

    async fn drive(mut self, start: Start) -> Result<()> {
        let (tell, mut told) = mpsc::channel(1);
        // Ends with this future.
        let mut watching = JoinSet::new();
        let watch = watch::run(Watch {
            target: self.target.clone(),
            slot: self.slot.clone(),
            context: self.context.clone(),
            grown: tell,
            desk: Arc::clone(&self.desk),
            horizons: self.horizons.clone(),
            departs: self.departs.clone(),
            lookout: Lookout::new(
                &self.config.publication,
                &self.config.tables,
                self.version,
                self.tables.iter().map(|(_, _, schema)| &**schema),
                &self.context.state,
            ),
        });
        watching.spawn(watch.in_current_span());
        // Of the source's own end: the stream says goodbye, and another follows.
        self.shutdown = self.shutdown.child_token();
        let stop = self.shutdown.clone();
        let mut work = pin!(self.copy_then_stream(start));
        let result = tokio::select! {
            result = &mut work => result,
            Some(table) = told.recv() => {
                stop.cancel();
                work.await.and_then(|()| Err(grown(&table)))
            }
        };
        result
    }

    async fn copy_then_stream(self, start: Start) -> Result<()> {
        // Ends with this future: all that runs beside the stream belongs to one connection to the server.
        let mut beside = JoinSet::new();
        let from = match start {
            Start::Stream { from } | Start::Resume { from, .. } => from,
            Start::Copy {
                keeper,
                snapshot,
                consistent_point,
                again,
            } => {
                if again {
                    self.truncate(consistent_point).await?;
                }
                let recorder = Recorder::new(&self.context.state, consistent_point);
                let kept = recorder.clone().keep(self.context.feedback.clone());
                beside.spawn(kept.in_current_span());
                self.copy(keeper, snapshot, consistent_point, recorder)
                    .await?;
                consistent_point
            }
        };
        let ledger = Ledger::new(self.file, self.state, from, &self.config.publication);
        let reader = Reader {
            pipeline: Arc::clone(&self.context.pipeline),
            source: Arc::clone(&self.context.name),
            target: self.target.clone(),
            publication: self.config.publication.clone(),
            tables: self
                .tables
                .iter()
                .map(|(table, _, schema)| (table.clone(), Arc::clone(schema)))
                .collect(),
            desk: self.desk,
            merge: self.merge,
            feedback: self.context.feedback.clone(),
            budget: reload_budget(),
            throttle: Arc::clone(&self.throttle),
            horizons: self.horizons,
        };
        beside.spawn(reader.run(self.asked).in_current_span());
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
            begins: from,
            server: self.server,
            ledger,
            status_interval: self.config.status_interval.0,
            nap: Duration::from_micros(self.config.coalesce_micros.into()),
            streaming: self.config.streaming == Streaming::On,
            two_phase: self.config.two_phase,
            directory: self.context.state.to_path_buf(),
            batches: self.batches,
            feedback: self.context.feedback,
            budget: self.context.budget,
            status: self.context.status,
            wanted: self.wanted,
            departs: self.departs,
            shutdown: self.shutdown,
        };
        let (done, ended) = tokio::sync::oneshot::channel();
        let name = format!("source-{}", stream.source.name);
        let span = tracing::Span::current();
        std::thread::Builder::new()
            .name(name.chars().take(15).collect())
            .spawn(move || {
                let _entered = span.entered();
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
            prepared: None,
            global: None,
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
        recorder: Recorder,
    ) -> Result<()> {
        let copy = Copy {
            pipeline: Arc::clone(&self.context.pipeline),
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
            recorder,
            throttle: Arc::clone(&self.throttle),
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
