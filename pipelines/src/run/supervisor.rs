//! Starts a pipeline's tasks, watches over them, and ends them in order.

use std::collections::HashMap;
use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lockstep_core::error::{At, Policy};
use lockstep_core::memory::Budget;
use lockstep_core::sink::{SinkContext, Trouble};
use lockstep_core::source::{Source, SourcePhase};
use lockstep_core::transform::{DeadLetters, Transform, TransformContext};
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_leases::Held;
use tokio::sync::Notify;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, Span};

use super::aside::Aside;
use super::flow::Flow;
use super::handle::{Handle, Inner, Running};
use super::invariants::{self, Invariants};
use super::keeper::Keeper;
use super::lane::{self, Lane};
use super::lane_state::LaneState;
use super::node::Node;
use super::permit::{self, Permit};
use super::pump::{self, Pump};
use super::reconcile::{self, Reconciler};
use super::resolutions::Resolutions;
use super::resolver::{self, Resolver};
use super::source_state::SourceShare;
use super::standby::Estate;
use super::stitch::{self, Door, Stitch, Witness};
use super::traces;
use crate::file::{DeadLettersTo, Pipeline};
use crate::letters::{Desk, Queue, Store};
use crate::metrics::Metrics;

/// How long a source may take to send its last confirmation.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Starts a pipeline. Sources and sinks that cannot be reached do not fail the start: they are tried again, and
/// [`Handle::ready`] says so. When `shutdown` is cancelled the pipeline drains: pumps stop, lanes write what they have
/// and wait for the receipts, transforms are persisted, positions confirmed, and the sources say goodbye.
///
/// Dropping the returned [`Running`] does not stop the pipeline.
///
/// # Errors
/// Of kind `Storage` when the state cannot be opened, of kind `Setup` when another process uses it, and what transforms
/// say when they open theirs.
pub async fn start(pipeline: &Pipeline, shutdown: CancellationToken) -> Result<Running> {
    begin(pipeline, Estate::own(pipeline)?, None, shutdown)
        .instrument(named(pipeline))
        .await
}

/// As [`start`], by the right of a lease: takes over what the former holder knew, lets go when the pipeline has ended in order, and
/// stops at once, writing nothing more, when the lease is lost.
///
/// # Errors
/// As for [`start`]; of kind `Busy` when the lease was lost meanwhile.
pub async fn start_holding(
    pipeline: &Pipeline,
    held: Held,
    shutdown: CancellationToken,
) -> Result<Running> {
    let trace = traces::take_over(&pipeline.name, held.token());
    let begun = async {
        let estate = Estate::taken_over(pipeline, &Permit::from(held.right())).await?;
        begin(pipeline, estate, Some(held), shutdown).await
    };
    let begun = begun.instrument(named(pipeline)).await;
    match &begun {
        Ok(_) => trace.ended("runs"),
        Err(error) => trace.failed(error),
    }
    begun
}

/// What every log line of the pipeline says. Spans of this kind have one field each, and are there at every level.
fn named(pipeline: &Pipeline) -> Span {
    tracing::error_span!("pipeline", pipeline = %pipeline.name)
}

async fn begin(
    pipeline: &Pipeline,
    estate: Estate,
    held: Option<Held>,
    shutdown: CancellationToken,
) -> Result<Running> {
    let permit = held
        .as_ref()
        .map_or_else(Permit::default, |held| held.right().into());
    let metrics = Metrics::new(&pipeline.plan)?;
    let dead_letters = Arc::new(desk(pipeline, &metrics)?);
    let letters = Arc::clone(&dead_letters) as Arc<dyn DeadLetters>;
    let nodes = open_transforms(pipeline, &pipeline.state, &letters, &metrics).await?;
    let plan = &pipeline.plan;
    let sources: Vec<_> = plan
        .sources
        .iter()
        .zip(&pipeline.sources)
        .map(|(name, component)| {
            Arc::new(SourceShare::new(Arc::clone(name), Arc::clone(component)))
        })
        .collect();
    let lanes: Vec<_> = plan
        .sinks
        .iter()
        .enumerate()
        .map(|(index, sink)| {
            let sources = plan.sources_of(index).iter().copied().collect();
            Arc::new(LaneState::new(Arc::clone(&sink.name), sources))
        })
        .collect();
    let keeper = Keeper {
        pipeline: Arc::clone(&pipeline.name),
        sources: sources.clone(),
        lanes: lanes.clone(),
        nodes: nodes.clone(),
        dead_letters: Arc::clone(&dead_letters),
        wake: Arc::new(Notify::new()),
        trouble: Trouble::default(),
    };
    let draining = CancellationToken::new();
    let parts = reconcile::Parts {
        pipeline: Arc::clone(&pipeline.name),
        sources: sources.clone(),
        lanes: lanes.clone(),
        sinks: pipeline.sinks.clone(),
        desk: Arc::default(),
        metrics: metrics.reconciles(),
        pace: pipeline
            .reconcile
            .as_ref()
            .and_then(|section| section.rows_per_second),
        stopping: draining.clone(),
    };
    let reconciler = Reconciler::new(parts, &pipeline.state);
    let parts = invariants::Parts {
        declared: pipeline.invariants.clone(),
        sources: sources.clone(),
        metrics: metrics.invariants(),
        stopping: draining.clone(),
    };
    let invariants = Invariants::new(parts, &pipeline.state);
    let resolutions = Resolutions::new(&pipeline.state, metrics.resolver().actions);
    let handle = Handle::new(Inner {
        fingerprint: Mutex::new(pipeline.fingerprint.clone()),
        shown: Mutex::new(pipeline.shown.clone()),
        pipeline: Arc::clone(&pipeline.name),
        started: Instant::now(),
        budget: Budget::new(pipeline.memory.bytes()),
        sources,
        lanes,
        nodes,
        metrics,
        desk: dead_letters,
        keeper: keeper.trouble.clone(),
        resolutions,
        stitch: Trouble::default(),
        witness: Witness::default(),
        reconciler,
        invariants: invariants.clone(),
    });
    let mut supervisor = Supervisor {
        handle: handle.clone(),
        keeper,
        shutdown_timeout: pipeline.shutdown_timeout.0,
        shutdown,
        draining,
        abort: CancellationToken::new(),
        enough: CancellationToken::new(),
        tasks: JoinSet::new(),
        names: HashMap::new(),
        pumps: 0,
        stitches: 0,
        lanes: 0,
        idle: Vec::new(),
        failed: None,
        estate,
        permit,
        held,
    };
    supervisor.spawn(pipeline)?;
    handle.inner().reconciler.go_on();
    tokio::spawn(invariants.run().in_current_span());
    if let Some(section) = pipeline.reconcile.clone() {
        let reconciler = handle.inner().reconciler.clone();
        tokio::spawn(reconciler.run(section).in_current_span());
    }
    let finished = tokio::spawn(supervisor.run().in_current_span());
    Ok(Running::new(handle, finished))
}

/// Where the pipeline's dead letters go.
pub(super) fn desk(pipeline: &Pipeline, metrics: &Metrics) -> Result<Desk> {
    let folder = pipeline.state.join("dead-letters");
    Ok(match &pipeline.dead_letters {
        DeadLettersTo::Embedded(limits) => {
            Desk::embedded(Store::new(folder, *limits), metrics.dead_letters())
        }
        DeadLettersTo::Queue(component) => {
            let context = SinkContext {
                pipeline: Arc::clone(&pipeline.name),
                name: "dead-letters".into(),
                state: made_directory(&pipeline.state, "queues", "dead-letters")?,
                sources: Vec::new(),
                tables: Vec::new(),
                trouble: Trouble::default(),
                token: None,
            };
            let queue = Queue::start(Arc::clone(component), context);
            Desk::queue(queue, metrics.dead_letters())
        }
    })
}

/// Makes the state directory and claims it for this process, for as long as the file lives.
pub(super) fn claim(directory: &Path) -> Result<File> {
    let path = directory.join("lock");
    let storage = |error: std::io::Error| {
        Error::new(
            ErrorKind::Storage,
            format!("cannot use the state directory {}", directory.display()),
        )
        .source(error)
        .remedy("make it writable, or name another with `dir` in `[state]`")
    };
    std::fs::create_dir_all(directory).map_err(storage)?;
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(storage)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::Error(error)) => Err(storage(error)),
        Err(TryLockError::WouldBlock) => {
            let message = format!(
                "another process uses the state directory {}",
                directory.display()
            );
            Err(Error::new(ErrorKind::Setup, message)
                .remedy("stop it, or give this pipeline another `name` or `dir` in `[state]`"))
        }
    }
}

/// The directory of one node.
pub(crate) fn directory(state: &Path, section: &str, name: &str) -> std::path::PathBuf {
    state.join(section).join(name)
}

/// The directory of one node, made when missing.
pub(super) fn made_directory(
    state: &Path,
    section: &str,
    name: &str,
) -> Result<std::path::PathBuf> {
    let path = directory(state, section, name);
    std::fs::create_dir_all(&path).map_err(|error| {
        Error::new(
            ErrorKind::Storage,
            format!("cannot make the directory {}", path.display()),
        )
        .source(error)
    })?;
    Ok(path)
}

/// Opens every transform, with its state below `state`.
pub(super) async fn open_transforms(
    pipeline: &Pipeline,
    state: &Path,
    dead_letters: &Arc<dyn DeadLetters>,
    metrics: &Metrics,
) -> Result<Vec<Arc<Node>>> {
    let mut nodes = Vec::new();
    for (index, (consumer, component)) in pipeline
        .plan
        .transforms
        .iter()
        .zip(&pipeline.transforms)
        .enumerate()
    {
        let context = TransformContext {
            pipeline: Arc::clone(&pipeline.name),
            name: Arc::clone(&consumer.name),
            state: made_directory(state, "transforms", &consumer.name)?,
            dead_letters: Arc::clone(dead_letters),
        };
        let component = Arc::clone(component);
        let opened = tokio::task::spawn_blocking(move || component.open(context)).await;
        let place = format!("transforms.{}", consumer.name);
        let transform: Box<dyn Transform> = opened
            .unwrap_or_else(|error| Err(unexpected("opening it", error)))
            .at(place)?;
        nodes.push(Arc::new(Node::new(
            Arc::clone(&consumer.name),
            transform,
            pipeline.plan.sources_of_transform(index).clone(),
            metrics.transform_errors(),
        )));
    }
    Ok(nodes)
}

fn unexpected(what: &str, error: JoinError) -> Error {
    Error::new(
        ErrorKind::Protocol,
        format!("{what} has ended unexpectedly"),
    )
    .source(error)
    .remedy("this is a defect of lockstep; report it with the log")
}

/// What a task leaves when it ends.
enum Ended {
    Pump(usize, Option<Box<dyn Source>>, Result<()>),
    Stitch(Result<()>),
    Lane(Result<()>),
    Keeper(Result<()>),
    Resolver,
}

/// What kind of task it was, for the one that leaves nothing because it panicked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Pump,
    Stitch,
    Lane,
    Keeper,
    Resolver,
}

struct Supervisor {
    handle: Handle,
    keeper: Keeper,
    shutdown_timeout: Duration,
    /// From outside: begin to stop.
    shutdown: CancellationToken,
    /// To pumps and lanes: the pipeline stops.
    draining: CancellationToken,
    /// To lanes: time is up.
    abort: CancellationToken,
    /// To the keeper: no more.
    enough: CancellationToken,
    tasks: JoinSet<Ended>,
    names: HashMap<Id, (Kind, String)>,
    /// Pumps, stitches and lanes that run.
    pumps: usize,
    stitches: usize,
    lanes: usize,
    /// Sources whose pumps have ended.
    idle: Vec<(usize, Box<dyn Source>)>,
    /// The first error.
    failed: Option<Error>,
    /// Held until the end.
    estate: Estate,
    /// Asked before anything is done in the pipeline's name.
    permit: Permit,
    /// The lease, where one decides: let go at the end.
    held: Option<Held>,
}

impl Supervisor {
    fn spawn(&mut self, pipeline: &Pipeline) -> Result<()> {
        let inner = self.handle.inner();
        let flow = |source| {
            Arc::new(Flow::new(
                Arc::clone(&pipeline.name),
                &pipeline.plan,
                source,
                &inner.nodes,
                &inner.lanes,
                Arc::clone(inner.reconciler.desk()),
            ))
        };
        let flows: Vec<Arc<Flow>> = (0..inner.sources.len()).map(flow).collect();
        let mut doors = self.spawn_stitch(pipeline, &flows)?;
        let inner = self.handle.inner();
        for (index, share) in inner.sources.iter().enumerate() {
            let pump = Pump::new(pump::Parts {
                index,
                share: Arc::clone(share),
                pipeline: Arc::clone(&pipeline.name),
                folder: self.estate.folder(&pipeline.state, &share.name)?,
                permit: self.permit.clone(),
                budget: inner.budget.clone(),
                flow: Arc::clone(&flows[index]),
                stitch: doors.remove(&index),
                desk: Arc::clone(&inner.desk),
                metrics: inner.metrics.source(index),
                draining: self.draining.clone(),
            });
            let span = tracing::error_span!("source", source = %share.name);
            let run = async move {
                let (source, result) = pump.run().await;
                Ended::Pump(index, source, result)
            };
            let task = self.tasks.spawn(run.instrument(span));
            self.names
                .insert(task.id(), (Kind::Pump, format!("sources.{}", share.name)));
            self.pumps += 1;
        }
        for (index, state) in inner.lanes.iter().enumerate() {
            let lane = Lane::new(lane::Parts {
                state: Arc::clone(state),
                component: Arc::clone(&pipeline.sinks[index]),
                permit: self.permit.clone(),
                pipeline: Arc::clone(&pipeline.name),
                directory: made_directory(&pipeline.state, "sinks", &state.name)?,
                metrics: inner.metrics.sink(index),
                aside: Aside::new(
                    Arc::clone(&inner.desk),
                    &state.name,
                    pipeline.policies[index],
                    pipeline.sinks[index].keeps_rows(),
                ),
                keeper: Arc::clone(&self.keeper.wake),
                checks: Arc::clone(inner.reconciler.desk()),
                draining: self.draining.clone(),
                abort: self.abort.clone(),
            });
            let span = tracing::error_span!("sink", sink = %state.name);
            let run = async move { Ended::Lane(lane.run().await) };
            let task = self.tasks.spawn(run.instrument(span));
            self.names
                .insert(task.id(), (Kind::Lane, format!("sinks.{}", state.name)));
            self.lanes += 1;
        }
        let (keeper, enough) = (self.keeper.clone(), self.enough.clone());
        let run = async move { Ended::Keeper(keeper.run(enough).await) };
        let task = self.tasks.spawn(run.in_current_span());
        self.names.insert(
            task.id(),
            (Kind::Keeper, "the keeper of positions".to_owned()),
        );
        self.spawn_resolver(pipeline);
        Ok(())
    }

    /// Who looks at what coordinators have left behind.
    fn spawn_resolver(&mut self, pipeline: &Pipeline) {
        let Some(every) = pipeline.resolving.every else {
            return;
        };
        let inner = self.handle.inner();
        let resolver = Resolver::new(resolver::Parts {
            pipeline: Arc::clone(&pipeline.name),
            sources: inner.sources.clone(),
            resolving: pipeline.resolving.clone(),
            every,
            state: pipeline.state.clone(),
            witness: inner.witness.clone(),
            permit: self.permit.clone(),
            metrics: inner.metrics.resolver(),
            draining: self.draining.clone(),
        });
        let run = async move {
            resolver.run().await;
            Ended::Resolver
        };
        let task = self.tasks.spawn(run.in_current_span());
        let name = "the resolver of what is in doubt".to_owned();
        self.names.insert(task.id(), (Kind::Resolver, name));
    }

    /// Where transactions of several databases are put together; gives the doors by their sources.
    fn spawn_stitch(
        &mut self,
        pipeline: &Pipeline,
        flows: &[Arc<Flow>],
    ) -> Result<HashMap<usize, Door>> {
        let Some(stitched) = &pipeline.stitch else {
            return Ok(HashMap::new());
        };
        let inner = self.handle.inner();
        let sources = stitched.sources.iter().map(|source| {
            let share = &inner.sources[*source];
            let folder = self.estate.folder(&pipeline.state, &share.name)?;
            Ok((
                *source,
                Arc::clone(share),
                Arc::clone(&flows[*source]),
                folder,
            ))
        });
        let sources = sources.collect::<Result<Vec<_>>>()?;
        let place = format!("transforms.{}", stitched.name);
        let directory = made_directory(&pipeline.state, "transforms", &stitched.name)?;
        let (stitch, doors) = Stitch::new(stitch::Parts {
            name: Arc::clone(&stitched.name),
            stitching: stitched.stitching.clone(),
            sources,
            directory: &directory,
            budget: inner.budget.clone(),
            metrics: inner.metrics.stitch(&stitched.name),
            trouble: inner.stitch.clone(),
            witness: inner.witness.clone(),
        })
        .at(place.clone())?;
        let of = place.clone();
        let run = async move { Ended::Stitch(stitch.run().await.at(of)) };
        let task = self.tasks.spawn(run.in_current_span());
        self.names.insert(task.id(), (Kind::Stitch, place));
        self.stitches += 1;
        Ok(stitched.sources.iter().copied().zip(doors).collect())
    }

    async fn run(mut self) -> Result<()> {
        self.watch().await;
        if self.permit.check().is_err() {
            self.break_off().await;
        } else {
            self.end_in_order().await;
        }
        match self.failed {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Another one may run the pipeline by now: nothing more is written or confirmed.
    async fn break_off(&mut self) {
        for stop in [&self.draining, &self.abort, &self.enough] {
            stop.cancel();
        }
        self.tasks.shutdown().await;
        self.failed.get_or_insert_with(permit::lost);
    }

    /// Writes what has been read, confirms it, closes the sources, and lets go of the lease.
    async fn end_in_order(&mut self) {
        let deadline = Instant::now() + self.shutdown_timeout;
        self.drain(deadline).await;
        self.confirm_and_close().await;
        let Some(held) = self.held.take() else {
            return;
        };
        if let Err(error) = held.release().await {
            tracing::warn!(%error, "the lease is not let go of; it runs out by itself");
        }
    }

    /// Until something asks for the end: the caller, an error, or the end of every source.
    async fn watch(&mut self) {
        let (shutdown, permit) = (self.shutdown.clone(), self.permit.clone());
        while self.failed.is_none() && self.pumps > 0 {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => {
                    tracing::info!(pipeline = %self.handle.inner().pipeline, "stopping: writing what has been read");
                    return;
                }
                () = permit.lost() => return self.fail(permit::lost()),
                ended = self.tasks.join_next_with_id() => match ended {
                    Some(ended) => self.ended(ended),
                    None => return,
                },
            }
        }
    }

    /// Stops the pumps, then lets the lanes finish until `deadline`.
    async fn drain(&mut self, deadline: Instant) {
        self.draining.cancel();
        self.join_while(deadline, |supervisor| supervisor.pumps > 0)
            .await;
        // It ends when the last pump has.
        self.join_while(deadline, |supervisor| supervisor.stitches > 0)
            .await;
        for lane in &self.handle.inner().lanes {
            lane.inbox.close();
        }
        self.join_while(deadline, |supervisor| supervisor.lanes > 0)
            .await;
        if self.pumps + self.lanes > 0 {
            self.abort.cancel();
            let grace = Instant::now() + CLOSE_TIMEOUT;
            self.join_while(grace, |supervisor| supervisor.pumps + supervisor.lanes > 0)
                .await;
        }
        self.enough.cancel();
        let grace = Instant::now() + CLOSE_TIMEOUT;
        self.join_while(grace, |supervisor| !supervisor.tasks.is_empty())
            .await;
        // Only a task that is stuck in a call that does not yield is left by now.
        self.tasks.shutdown().await;
    }

    /// Takes in what tasks leave, while `more` says so and until `deadline`.
    async fn join_while(&mut self, deadline: Instant, more: impl Fn(&Self) -> bool) {
        while more(self) {
            match tokio::time::timeout_at(deadline, self.tasks.join_next_with_id()).await {
                Ok(Some(ended)) => self.ended(ended),
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// Confirms what has become durable in the end, and closes the sources.
    async fn confirm_and_close(&mut self) {
        match tokio::time::timeout(CLOSE_TIMEOUT, self.keeper.confirm()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) if error.kind().policy() == Policy::Retry => {
                tracing::warn!(%error, "the last positions were not confirmed; what they cover comes again");
            }
            Ok(Err(error)) => self.fail(error),
            // A queue for dead letters may be away: what waits for it comes again.
            Err(_) => tracing::warn!("the last positions were not confirmed in time"),
        }
        let closing = self.idle.drain(..).map(|(index, mut source)| {
            let share = Arc::clone(&self.handle.inner().sources[index]);
            async move {
                match tokio::time::timeout(CLOSE_TIMEOUT, source.close()).await {
                    Ok(Ok(())) => {}
                    // The next start begins at an older position, and lanes skip what they hold.
                    Ok(Err(error)) => {
                        tracing::warn!(source = %share.name, %error, "did not close in order")
                    }
                    Err(_) => tracing::warn!(source = %share.name, "did not close in time"),
                }
            }
        });
        futures_util::future::join_all(closing).await;
        for source in &self.handle.inner().sources {
            source
                .status
                .update(|status| status.phase = SourcePhase::Stopped);
        }
    }

    fn ended(&mut self, ended: Result<(Id, Ended), JoinError>) {
        let result = match ended {
            Ok((id, ended)) => {
                self.names.remove(&id);
                match ended {
                    Ended::Pump(index, source, result) => {
                        self.pumps -= 1;
                        self.idle.extend(source.map(|source| (index, source)));
                        result
                    }
                    Ended::Lane(result) => {
                        self.lanes -= 1;
                        result
                    }
                    Ended::Stitch(result) => {
                        self.stitches -= 1;
                        result
                    }
                    Ended::Keeper(result) => result,
                    Ended::Resolver => Ok(()),
                }
            }
            Err(error) => {
                let (kind, name) = self
                    .names
                    .remove(&error.id())
                    .unwrap_or_else(|| (Kind::Keeper, "a task".to_owned()));
                match kind {
                    Kind::Pump => self.pumps -= 1,
                    Kind::Stitch => self.stitches -= 1,
                    Kind::Lane => self.lanes -= 1,
                    Kind::Keeper | Kind::Resolver => {}
                }
                Err(unexpected(&name, error))
            }
        };
        if let Err(error) = result {
            self.fail(error);
        }
    }

    fn fail(&mut self, error: Error) {
        tracing::error!(pipeline = %self.handle.inner().pipeline, %error, "the pipeline stops");
        self.failed.get_or_insert(error);
    }
}
