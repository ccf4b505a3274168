//! Looks again and again at what coordinators have left behind in the sources' databases, tells what is to become of it, and ends what the
//! file says that it may ([`lockstep_transactions::resolve`]).
//!
//! What it cannot ask it leaves alone until the next look: nothing that fails here stops the pipeline, or keeps it waiting.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use lockstep_core::error::At;
use lockstep_core::query::{InDoubt, Queries};
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_transactions::resolve::{
    Consulted, Decision, Doubt, Evidence, Journal, Known, NoEvidence, Outcome, Policy, Verdict,
    act, consult, decide,
};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::now_micros;
use super::permit::Permit;
use super::source_state::SourceShare;
use super::stitch::Witness;
use super::traces;
use crate::file::Resolving;
use crate::metrics::ResolverMetrics;

/// How long a database may take to say what is prepared there, or what it knows of that.
const PATIENCE: Duration = Duration::from_secs(30);

/// The longest pause between two tries to end a branch that cannot be ended: each try is two lines in the journal.
const LONGEST: Duration = Duration::from_secs(60 * 60);

/// What a resolver is made from.
pub(super) struct Parts {
    pub pipeline: Arc<str>,
    pub sources: Vec<Arc<SourceShare>>,
    pub resolving: Resolving,
    /// From one look to the next.
    pub every: Duration,
    /// Where the journal is.
    pub state: PathBuf,
    /// What has been read of branches in doubt.
    pub witness: Witness,
    /// Asked before anything is ended.
    pub permit: Permit,
    pub metrics: ResolverMetrics,
    /// The pipeline stops.
    pub draining: CancellationToken,
}

/// See the module's page.
pub(super) struct Resolver {
    parts: Parts,
    policy: Policy,
    journal: Option<Journal>,
    /// What was logged of places that fail, so that it is not again at each look.
    logged: HashMap<String, String>,
    /// Branches that could not be ended.
    refused: HashMap<Name, Refused>,
}

/// Which branch: its source, its gid and its number.
type Name = (Arc<str>, String, u32);

struct Refused {
    times: u32,
    /// It is not tried before.
    until: Instant,
}

type Databases = Vec<(Arc<str>, Arc<dyn Queries>)>;

/// What a look finds.
struct Found {
    databases: Databases,
    decisions: Vec<Decision>,
    /// Everybody could be asked.
    is_all: bool,
}

impl Resolver {
    pub fn new(parts: Parts) -> Self {
        Resolver {
            policy: parts.resolving.by_itself(),
            parts,
            journal: None,
            logged: HashMap::new(),
            refused: HashMap::new(),
        }
    }

    /// Runs until the pipeline stops. What is being ended then is ended first. Dropped, a branch may have ended, and the journal say only
    /// that it was to.
    pub async fn run(mut self) {
        let draining = self.parts.draining.clone();
        loop {
            tokio::select! {
                biased;
                () = draining.cancelled() => return,
                () = sleep(self.parts.every) => {}
            }
            let found = tokio::select! {
                biased;
                () = draining.cancelled() => return,
                found = self.look() => found,
            };
            self.parts.metrics.looked(&found.decisions, found.is_all);
            self.forget_refused(&found.decisions);
            for decision in found.decisions.iter().filter(|decision| decision.acts()) {
                if draining.is_cancelled() || self.parts.permit.check().is_err() {
                    return;
                }
                self.end(decision, &found.databases).await;
            }
        }
    }

    /// What is to become of all that is in doubt, where databases answer.
    async fn look(&mut self) -> Found {
        let mut found = Found {
            databases: Vec::new(),
            decisions: Vec::new(),
            is_all: true,
        };
        let asked = self.parts.sources.iter().map(|share| async move {
            let told = in_time(prepared_in(share)).await;
            (Arc::clone(&share.name), told)
        });
        let mut doubts = Vec::new();
        for (name, told) in join_all(asked).await {
            match told.at(format!("sources.{name}")) {
                Ok(None) => {}
                Ok(Some((queries, in_doubt))) => {
                    self.works(&name);
                    let of_source = in_doubt.into_iter();
                    doubts.extend(of_source.map(|one| Doubt::new(Arc::clone(&name), one)));
                    found.databases.push((name, queries));
                }
                Err(error) => {
                    found.is_all = false;
                    self.fails(&name, &error);
                }
            }
        }
        if doubts.is_empty() {
            return found;
        }
        doubts.sort_by(|a, b| a.branch.global().cmp(b.branch.global()));
        let log = self.parts.resolving.log.as_deref();
        let consulted = match in_time(consult(&found.databases, log, &doubts)).await {
            Ok(consulted) => {
                self.works("what coordinators know");
                consulted
            }
            // Which of them has answered is not known: it is as if none had.
            Err(error) => {
                found.is_all = false;
                self.fails("what coordinators know", &error);
                Consulted::default()
            }
        };
        // Behind the questions to the databases: whatever they told of had been written by then.
        let evidence: Box<dyn Evidence> = match self.parts.witness.ask().await {
            Ok(Some(doubts)) => Box::new(doubts),
            Ok(None) => Box::new(NoEvidence),
            Err(error) => {
                found.is_all = false;
                self.fails("what was read", &error);
                Box::new(NoEvidence)
            }
        };
        let known = Known {
            logs: &consulted.logs,
            evidence: &*evidence,
            managers: &consulted.managers,
        };
        found.decisions = decide(&doubts, &known, &self.policy, now_micros());
        found
    }

    async fn end(&mut self, decision: &Decision, databases: &Databases) {
        let doubt = &decision.doubt;
        let name = name(doubt);
        let now = Instant::now();
        if self.refused.get(&name).is_some_and(|one| now < one.until) {
            return;
        }
        let mut databases = databases.iter();
        let Some((_, queries)) = databases.find(|(source, _)| *source == doubt.source) else {
            return;
        };
        let action = match decision.judged.verdict {
            Verdict::Commit => "committed",
            Verdict::RollBack | Verdict::LeaveAlone => "rolled back",
        };
        let (source, gid) = (&doubt.source, &doubt.in_doubt.gid);
        let (rule, why) = (decision.judged.rule.as_str(), &decision.judged.why);
        let trace = traces::resolve(&self.parts.pipeline, decision, action);
        let acted = self.act(decision, &**queries).await;
        match &acted {
            Ok(outcome) => trace.ended(outcome.label()),
            Err(error) => trace.failed(error),
        }
        match acted {
            Ok(Outcome::Done | Outcome::Already) => {
                tracing::info!(%source, gid, rule, why, "{action}, what its coordinator has left behind");
            }
            Ok(outcome) => {
                let outcome = outcome.as_str();
                tracing::warn!(%source, gid, rule, why, outcome, "was to be {action}");
            }
            Err(error) => {
                let every = self.parts.every;
                let refused = self.refused.entry(name).or_insert(Refused {
                    times: 0,
                    until: now,
                });
                refused.until = now + pause(every, refused.times);
                refused.times += 1;
                tracing::warn!(%source, gid, rule, why, %error, "was to be {action}; it is tried again");
            }
        }
    }

    async fn act(&mut self, decision: &Decision, queries: &dyn Queries) -> Result<Outcome> {
        let journal = match &mut self.journal {
            Some(journal) => journal,
            None => {
                let by = format!("pipeline {}", self.parts.pipeline);
                self.journal.insert(Journal::open(&self.parts.state, &by)?)
            }
        };
        act(decision, queries, journal).await
    }

    /// Those that are not in doubt any more need not be remembered.
    fn forget_refused(&mut self, decisions: &[Decision]) {
        let there: BTreeSet<Name> = decisions.iter().map(|one| name(&one.doubt)).collect();
        self.refused.retain(|name, _| there.contains(name));
    }

    fn fails(&mut self, place: &str, error: &Error) {
        let text = error.to_string();
        if self.logged.get(place) == Some(&text) {
            tracing::debug!(%error, "what is in doubt is still not known everywhere");
        } else {
            tracing::warn!(%error, "what is in doubt is not known everywhere; it is asked again");
            self.logged.insert(place.to_owned(), text);
        }
    }

    fn works(&mut self, place: &str) {
        self.logged.remove(place);
    }
}

/// What is prepared in the database of a source; `None` where it cannot be asked at all.
async fn prepared_in(share: &SourceShare) -> Result<Option<(Arc<dyn Queries>, Vec<InDoubt>)>> {
    let Some(queries) = share.component().queries()? else {
        return Ok(None);
    };
    let in_doubt = queries.in_doubt().await?;
    Ok(Some((queries, in_doubt)))
}

async fn in_time<T>(answer: impl Future<Output = Result<T>>) -> Result<T> {
    let silent = |_| {
        let message = format!("no answer within {} s", PATIENCE.as_secs());
        Error::new(ErrorKind::Unavailable, message)
    };
    timeout(PATIENCE, answer).await.map_err(silent)?
}

fn name(doubt: &Doubt) -> Name {
    let in_doubt = &doubt.in_doubt;
    (
        Arc::clone(&doubt.source),
        in_doubt.gid.clone(),
        in_doubt.xid,
    )
}

/// Until a branch is tried again that could not be ended so often before.
fn pause(every: Duration, times: u32) -> Duration {
    every.saturating_mul(1 << times.min(16)).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_cannot_be_ended_is_tried_less_and_less_often() {
        let every = Duration::from_secs(30);
        let pauses: Vec<u64> = [0, 1, 2, 40]
            .map(|times| pause(every, times).as_secs())
            .to_vec();
        assert_eq!(pauses, [30, 60, 120, 3600]);
    }
}
