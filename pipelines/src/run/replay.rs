//! Dead letters from outside: of a running pipeline through its lanes, of one that does not run through lanes made for it.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use lockstep_core::error::At;
use lockstep_core::{Error, ErrorKind, Result};
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

use super::aside::Aside;
use super::course::{Report, Request};
use super::lane::{self, Lane};
use super::lane_state::LaneState;
use super::permit::Permit;
use super::supervisor::{claim, desk, made_directory};
use crate::file::Pipeline;
use crate::letters::{Desk, Head, Letter, Selection};
use crate::metrics::Metrics;
use crate::status::SinkPhase;

/// What has become of a replay, by the place that had put the letters aside.
pub type Reports = BTreeMap<String, Report>;

/// Attempts to open a sink for a replay of its own, before that is given up.
const ATTEMPTS: u64 = 4;
/// How often a lane is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(50);

/// The letters that a selection takes, oldest first.
pub(super) async fn list(desk: &Arc<Desk>, selection: Selection) -> Result<Vec<Head>> {
    desk.blocking(move |store| {
        let mut heads = store.list()?;
        heads.retain(|head| selection.takes(head));
        match selection
            .ids
            .iter()
            .find(|id| !heads.iter().any(|head| head.id == **id))
        {
            Some(id) => Err(no_letter(*id)),
            None => Ok(heads),
        }
    })
    .await
}

/// One letter.
pub(super) async fn show(desk: &Arc<Desk>, id: u64) -> Result<Letter> {
    let letter = desk.blocking(move |store| store.get(id)).await?;
    letter.ok_or_else(|| no_letter(id))
}

/// Removes letters without writing them anywhere.
pub(super) async fn discard(desk: &Arc<Desk>, selection: Selection) -> Result<u64> {
    let heads = list(desk, selection).await?;
    desk.blocking(move |store| {
        let ids: Vec<u64> = heads.iter().map(|head| head.id).collect();
        store.remove(&ids)?;
        Ok(ids.len() as u64)
    })
    .await
}

fn no_letter(id: u64) -> Error {
    Error::new(ErrorKind::Invalid, format!("there is no dead letter {id}"))
        .remedy("`lockstep dead-letters list` shows those there are")
}

/// The places that a selection concerns, and how many letters each has.
async fn places(desk: &Arc<Desk>, selection: &Selection) -> Result<BTreeMap<String, u64>> {
    let mut places = BTreeMap::new();
    for head in list(desk, selection.clone()).await? {
        *places.entry(head.place).or_default() += 1;
    }
    Ok(places)
}

/// Replays through `lanes`, one after the other.
pub(super) async fn replay(
    desk: &Arc<Desk>,
    lanes: &[Arc<LaneState>],
    selection: &Selection,
) -> Result<Reports> {
    let mut reports = Reports::new();
    for (place, letters) in places(desk, selection).await? {
        let lane = place
            .strip_prefix("sinks.")
            .and_then(|name| lanes.iter().find(|lane| &*lane.name == name));
        let report = match lane {
            Some(lane) => ask(lane, selection.clone()).await.at(place.as_str())?,
            None if place.starts_with("sinks.") => Report {
                stopped: Some(format!("there is no {place} in the pipeline file any more")),
                ..Report::default()
            },
            None => Report {
                not_for_a_sink: letters,
                ..Report::default()
            },
        };
        reports.insert(place, report);
    }
    Ok(reports)
}

async fn ask(lane: &LaneState, selection: Selection) -> Result<Report> {
    let ended = || {
        Error::new(
            ErrorKind::Stopping,
            "the pipeline stops; what was not delivered stays",
        )
    };
    let (reply, answer) = oneshot::channel();
    let request = Request { selection, reply };
    lane.ask(request).await.map_err(|_| ended())?;
    answer.await.map_err(|_| ended())?
}

/// Why a sink cannot take a replay now.
pub(super) fn unready(lane: &LaneState) -> Option<Error> {
    let view = lane.view();
    if view.phase == SinkPhase::Running {
        return None;
    }
    let problem = view.problem.clone();
    let message = problem.unwrap_or_else(|| "the sink is not open".to_owned());
    Some(
        Error::new(ErrorKind::Unavailable, message)
            .remedy("replay when the sink is open again; `lockstep status` shows it")
            .at(format!("sinks.{}", lane.name)),
    )
}

/// The dead letters of a pipeline that does not run. Its state directory is claimed meanwhile.
pub struct Offline<'a> {
    pipeline: &'a Pipeline,
    desk: Arc<Desk>,
    metrics: Metrics,
    _lock: File,
}

impl std::fmt::Debug for Offline<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Offline").field(&self.pipeline.name).finish()
    }
}

impl<'a> Offline<'a> {
    /// Claims the state directory; makes it when missing.
    ///
    /// # Errors
    /// Kind `Setup` when another process uses it: the pipeline runs.
    pub fn open(pipeline: &'a Pipeline) -> Result<Self> {
        let lock = claim(&pipeline.state)?;
        let metrics = Metrics::new(&pipeline.plan)?;
        Ok(Offline {
            desk: Arc::new(desk(pipeline, &metrics)?),
            pipeline,
            metrics,
            _lock: lock,
        })
    }

    /// The letters that a selection takes, oldest first.
    ///
    /// # Errors
    /// Kind `Invalid` for numbers that there are not, and when letters go to a queue; kind `Storage`.
    pub async fn list(&self, selection: Selection) -> Result<Vec<Head>> {
        list(&self.desk, selection).await
    }

    /// One letter.
    ///
    /// # Errors
    /// As for [`Offline::list`].
    pub async fn show(&self, id: u64) -> Result<Letter> {
        show(&self.desk, id).await
    }

    /// Removes letters without writing them anywhere, and says how many.
    ///
    /// # Errors
    /// As for [`Offline::list`].
    pub async fn discard(&self, selection: Selection) -> Result<u64> {
        discard(&self.desk, selection).await
    }

    /// Writes letters to their sinks, and removes those that the sinks have made durable.
    ///
    /// # Errors
    /// As for [`Offline::list`]; what keeps a sink from being opened.
    pub async fn replay(&self, selection: &Selection) -> Result<Reports> {
        let mut reports = Reports::new();
        for (place, letters) in places(&self.desk, selection).await? {
            let sinks = &self.pipeline.plan.sinks;
            let index = place
                .strip_prefix("sinks.")
                .and_then(|name| sinks.iter().position(|sink| &*sink.name == name));
            let report = match index {
                Some(index) => self.through_a_lane(index, selection).await?,
                None if place.starts_with("sinks.") => Report {
                    stopped: Some(format!("there is no {place} in the pipeline file any more")),
                    ..Report::default()
                },
                None => Report {
                    not_for_a_sink: letters,
                    ..Report::default()
                },
            };
            reports.insert(place, report);
        }
        Ok(reports)
    }

    /// A lane that no source reaches: it opens the sink, replays, and closes the sink.
    async fn through_a_lane(&self, index: usize, selection: &Selection) -> Result<Report> {
        let pipeline = self.pipeline;
        let name = Arc::clone(&pipeline.plan.sinks[index].name);
        let state = Arc::new(LaneState::new(Arc::clone(&name), Vec::new()));
        let abort = CancellationToken::new();
        let lane = Lane::new(lane::Parts {
            state: Arc::clone(&state),
            component: Arc::clone(&pipeline.sinks[index]),
            permit: Permit::default(),
            pipeline: Arc::clone(&pipeline.name),
            directory: made_directory(&pipeline.state, "sinks", &name)?,
            metrics: self.metrics.sink(index),
            aside: Aside::new(
                Arc::clone(&self.desk),
                &name,
                pipeline.policies[index],
                pipeline.sinks[index].keeps_rows(),
            ),
            keeper: Arc::new(Notify::new()),
            checks: Arc::default(),
            draining: CancellationToken::new(),
            abort: abort.clone(),
        });
        let mut task = tokio::spawn(lane.run());
        let report = tokio::select! {
            report = ask(&state, selection.clone()) => report,
            ended = &mut task => return Err(failure(ended)),
            problem = given_up(&state) => {
                abort.cancel();
                Err(problem)
            }
        };
        state.inbox.close();
        match task.await {
            Ok(Ok(())) => report,
            ended => report.and_then(|_| Err(failure(ended))),
        }
    }
}

/// Why a lane has ended before it answered.
fn failure(ended: Result<Result<()>, tokio::task::JoinError>) -> Error {
    match ended {
        Ok(Err(error)) => error,
        Ok(Ok(())) => Error::new(
            ErrorKind::Abandoned,
            "the sink was closed before its letters were tried",
        ),
        Err(error) => {
            Error::new(ErrorKind::Protocol, "the replay has ended unexpectedly").source(error)
        }
    }
}

/// Resolves when a sink has failed to open, or has failed in the middle, too often.
async fn given_up(lane: &LaneState) -> Error {
    loop {
        tokio::time::sleep(LOOK).await;
        let errors = lane.view().errors;
        if errors >= ATTEMPTS
            && let Some(problem) = unready(lane)
        {
            return problem;
        }
    }
}
