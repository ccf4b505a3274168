//! A bulk request on its way: every item's answer is read, and only items that may do better are sent again.

use std::borrow::Cow;
use std::time::Duration;

use lockstep_core::durable::Delivered;
use lockstep_core::refusal::{Refusals, reason};
use lockstep_core::{Error, ErrorKind, Result};
use reqwest::Method;
use serde::Deserialize;

use super::bulk::{Item, Request};
use super::client::{Body, Client};
use super::config::Refresh;
use super::reply::{Cause, Reply, meaning, reason_of};

/// Tries of an item that the cluster is too busy for, before the pipeline's own pauses take over.
const TRIES: u32 = 6;
/// Pause before the second try; it doubles from one to the next.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// Leaves of the answer that are read.
const FILTER: &str = "errors,items.*._id,items.*.status,items.*.error.type,items.*.error.reason,items.*.error.caused_by";

/// What became of the items of a batch.
pub(super) struct Answer {
    pub(super) batch: u64,
    pub(super) items: usize,
    pub(super) delivered: Delivered,
}

#[derive(Deserialize)]
struct BulkReply<'a> {
    #[serde(borrow, default)]
    items: Vec<Outcome<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Outcome<'a> {
    #[serde(borrow)]
    Index(ItemReply<'a>),
    #[serde(borrow)]
    Delete(ItemReply<'a>),
}

#[derive(Deserialize)]
struct ItemReply<'a> {
    #[serde(rename = "_id", borrow)]
    id: Cow<'a, str>,
    status: u16,
    error: Option<Cause>,
}

/// What an item's answer asks for.
enum Verdict {
    Written,
    /// The index holds a newer version.
    Stale,
    /// The cluster is too busy, or a shard is on the move.
    Again(Error),
    Failed(Error),
}

/// Sends a bulk request until every item is written, is stale, or has failed for good. The answers are per batch.
///
/// # Errors
/// The first failure; items that did not fail have been carried out all the same. A refusal names every item that is
/// refused; where the request was refused as a whole, all its items are suspects.
pub(super) async fn send(
    client: &Client,
    refresh: Refresh,
    mut request: Request,
) -> Result<Vec<Answer>> {
    let mut answers = Vec::new();
    let mut failure = None;
    let mut refusals = Refusals::default();
    let mut pause = FIRST_PAUSE;
    for attempt in 1.. {
        let reply = post(client, refresh, &request).await?;
        let (again, error) = if reply.is_success() {
            sort(&request, &reply, &mut answers, &mut failure, &mut refusals)?
        } else {
            let error = refused(&request, &reply);
            if reply.status != 429 {
                return Err(error);
            }
            (vec![true; request.items.len()], Some(error))
        };
        let Some(error) = error else { break };
        if attempt == TRIES {
            failure.get_or_insert(error);
            break;
        }
        tracing::debug!(%error, attempt, "items of a bulk request are sent again");
        let mut again = again.into_iter();
        request = request.part(|_| again.next().unwrap_or(false));
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
    if let Some(error) = failure {
        return Err(error);
    }
    refusals.finish()?;
    let replaced = request.replaced.iter().map(|&batch| Answer {
        batch,
        items: 1,
        delivered: Delivered::default(),
    });
    answers.extend(replaced);
    Ok(answers)
}

async fn post(client: &Client, refresh: Refresh, request: &Request) -> Result<Reply> {
    let mut query = vec![("filter_path", FILTER)];
    match refresh {
        Refresh::None => {}
        Refresh::WaitFor => query.push(("refresh", "wait_for")),
        Refresh::Now => query.push(("refresh", "true")),
    }
    client
        .call(
            Method::POST,
            &["_bulk"],
            &query,
            Body::Lines(request.body.clone()),
        )
        .await
}

/// The error of a request that was answered as a whole; it names the row when there is only one.
fn refused(request: &Request, reply: &Reply) -> Error {
    let what = format!(
        "a bulk request of {} items and {} bytes",
        request.items.len(),
        request.body.len()
    );
    let error = reply.error(&what);
    match &*request.items {
        [item] => at(item, error),
        items if error.kind() == ErrorKind::Refused => {
            let about = |item: &Item| item.of(error.clone()).refusals().to_vec();
            let suspects = items.iter().flat_map(about).collect();
            error.suspecting(suspects)
        }
        _ => error,
    }
}

fn at(item: &Item, error: Error) -> Error {
    let error = error
        .at(format!("document {}", item.id))
        .at(format!("index {}", item.index));
    item.of(error)
}

/// Sorts the answers of the items. Returns which items are to be sent again, and why.
fn sort(
    request: &Request,
    reply: &Reply,
    answers: &mut Vec<Answer>,
    failure: &mut Option<Error>,
    refusals: &mut Refusals,
) -> Result<(Vec<bool>, Option<Error>)> {
    let outcomes = reply.json::<BulkReply<'_>>("a bulk request")?.items;
    if outcomes.len() != request.items.len() {
        return Err(Error::new(
            ErrorKind::Protocol,
            format!(
                "a bulk request of {} items was answered with {}",
                request.items.len(),
                outcomes.len()
            ),
        )
        .remedy("see whether a proxy before the cluster changes requests or answers"));
    }
    let mut again = Vec::with_capacity(outcomes.len());
    let mut reason = None;
    for (item, outcome) in request.items.iter().zip(&outcomes) {
        let (Outcome::Index(outcome) | Outcome::Delete(outcome)) = outcome;
        let mut stale = false;
        let verdict = judge(item, outcome)?;
        again.push(matches!(verdict, Verdict::Again(_)));
        match verdict {
            Verdict::Written => {}
            Verdict::Stale => stale = true,
            Verdict::Again(error) => {
                reason.get_or_insert(error);
                continue;
            }
            Verdict::Failed(error) => {
                if let Err(other) = refusals.take::<()>(Err(error)) {
                    failure.get_or_insert(other);
                }
                continue;
            }
        }
        let delivered = Delivered {
            written: u64::from(!stale),
            stale: u64::from(stale),
            incomplete: 0,
            bytes: item.lines.len() as u64,
        };
        match answers
            .iter_mut()
            .rev()
            .find(|answer| answer.batch == item.batch)
        {
            Some(answer) => {
                answer.items += 1;
                answer.delivered += delivered;
            }
            None => answers.push(Answer {
                batch: item.batch,
                items: 1,
                delivered,
            }),
        }
    }
    Ok((again, reason))
}

fn judge(item: &Item, outcome: &ItemReply<'_>) -> Result<Verdict> {
    if *outcome.id != *item.id {
        return Err(Error::new(
            ErrorKind::Protocol,
            format!(
                "item `{}` of a bulk request was answered as `{}`",
                item.id, outcome.id
            ),
        )
        .remedy("see whether a proxy before the cluster changes requests or answers"));
    }
    let Some(cause) = &outcome.error else {
        return Ok(match outcome.status {
            // 404 without an error: a deletion of what is not there.
            200..=299 | 404 => Verdict::Written,
            status => Verdict::Failed(failed(item, status, &Cause::default())),
        });
    };
    if cause.kind == "version_conflict_engine_exception" {
        return Ok(Verdict::Stale);
    }
    let error = failed(item, outcome.status, cause);
    Ok(match error.kind() {
        ErrorKind::Overloaded | ErrorKind::Unavailable => Verdict::Again(error),
        _ => Verdict::Failed(error),
    })
}

fn failed(item: &Item, status: u16, cause: &Cause) -> Error {
    let (kind, remedy) = meaning(status, cause);
    let error = Error::new(kind, format!("the row was answered with status {status}"))
        .source(cause.text())
        .because(reason_of(status).unwrap_or(reason::REFUSED))
        .remedy(remedy);
    at(item, error)
}
