//! What earlier coordinators have left behind: branches that are prepared, and decisions that nobody keeps in mind.
//!
//! A branch can still become prepared when its coordinator is long gone: its server was asked, and is slow. So this looks again and
//! again, and not once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use lockstep_core::Result;
use lockstep_core::error::At;

use super::finish::End;
use super::measures::Counters;
use super::session::{Fate, Participant, Remembered, Session, fate};
use super::{Inner, log, sql};
use crate::gid::{Manager, Own};
use crate::resolve::Verdict;

/// Decisions that are taken out of the log by one statement, at most.
const MOST_FORGOTTEN: usize = 1_000;

/// Until the coordinator is closed.
pub(super) async fn again_and_again(inner: Arc<Inner>) {
    let mut told = BTreeSet::new();
    loop {
        tokio::select! {
            biased;
            () = inner.closing.cancelled() => return,
            () = tokio::time::sleep(inner.settings.recover_every) => {}
        }
        pass(&inner).await;
        for tidied in [forget(&inner).await, settle(&inner, &mut told).await] {
            if let Err(error) = tidied {
                tracing::warn!(%error, "the decision log cannot be tidied up yet; it is tried again");
            }
        }
    }
}

/// Ends what is prepared and can be decided, in the databases that can be reached.
pub(super) async fn pass(inner: &Inner) {
    let looks = inner.databases.iter().map(|participant| async move {
        let found = prepared(inner, participant).await;
        let found = found.at(format!("database {}", participant.name));
        found.map(|found| (participant, found))
    });
    let mut found: Vec<(&Participant, Vec<Own>)> = Vec::new();
    for look in futures_util::future::join_all(looks).await {
        match look {
            Ok((_, there)) if there.is_empty() => {}
            Ok(there) => found.push(there),
            Err(error) => {
                tracing::warn!(%error, "cannot look for what is left prepared; it is tried again")
            }
        }
    }
    if found.is_empty() {
        return;
    }
    if let Err(error) = decide(inner, &found).await {
        tracing::warn!(%error, "what is left prepared cannot be ended yet; it is tried again");
    }
}

/// The branches of this log's coordinators, but those of this one: they are kept in mind.
async fn prepared(inner: &Inner, participant: &Participant) -> Result<Vec<Own>> {
    let session = participant.session(inner.settings.answer).await?;
    let like = sql::quote(&format!("{}\\_%", Manager::LOCKSTEP));
    let ask = format!(
        "SELECT gid FROM pg_catalog.pg_prepared_xacts WHERE database = current_database() AND gid LIKE {like}"
    );
    let answer = session.run("read pg_prepared_xacts", &ask).await?;
    session.release();
    let gids = answer.rows.iter().filter_map(|row| row.first()?.as_deref());
    let ours = |own: &Own| own.log == inner.log_id && own.epoch != inner.epoch;
    Ok(gids.filter_map(Own::parse).filter(ours).collect())
}

async fn decide(inner: &Inner, found: &[(&Participant, Vec<Own>)]) -> Result<()> {
    let gtrids = found
        .iter()
        .flat_map(|(_, all)| all.iter().map(Own::global));
    let gtrids: BTreeSet<String> = gtrids.collect();
    let session = log::session(inner.log(), inner.settings.answer).await?;
    // Behind the look at what is prepared: an epoch that is closed here has had its last word.
    let log = log::read(&session, inner.log_id, &gtrids).await?;
    session.release();
    let has_ended = |own: &&Own| {
        log.epochs
            .get(&own.epoch)
            .is_some_and(|epoch| epoch.is_closed)
    };
    for (participant, all) in found {
        let decided: Vec<(&Own, End)> = all
            .iter()
            // One that is alive ends its own.
            .filter(has_ended)
            .filter_map(|own| match log.judge(own).verdict {
                Verdict::Commit => Some((own, End::Commit)),
                Verdict::RollBack => Some((own, End::RollBack)),
                Verdict::LeaveAlone => None,
            })
            .collect();
        if decided.is_empty() {
            continue;
        }
        let ended = end(inner, participant, &decided).await;
        if let Err(error) = ended.at(format!("database {}", participant.name)) {
            tracing::warn!(%error, "a branch that was left behind cannot be ended yet; it is tried again");
        }
    }
    Ok(())
}

async fn end(inner: &Inner, participant: &Participant, decided: &[(&Own, End)]) -> Result<()> {
    let session = participant.session(inner.settings.answer).await?;
    for (own, end) in decided {
        let gid = own.to_string();
        match session.run("end the branch", &end.statement(&gid)).await {
            Ok(_) => {
                let counter = match end {
                    End::Commit => &inner.counters.recovered_committed,
                    End::RollBack => &inner.counters.recovered_rolled_back,
                };
                Counters::add(counter);
                tracing::info!(database = %participant.name, gid, end = ?end, "a branch that was left behind has ended");
            }
            // Another coordinator was faster.
            Err(failure)
                if failure
                    .state
                    .as_ref()
                    .is_some_and(|state| state.code() == "42704") => {}
            Err(failure) => return Err(failure.error),
        }
    }
    session.release();
    Ok(())
}

/// Takes decisions of this coordinator out of the log that are old enough.
async fn forget(inner: &Inner) -> Result<()> {
    loop {
        let old: Vec<String> = {
            let mut done = inner.done();
            let old = done.iter().take(MOST_FORGOTTEN);
            let count = old
                .take_while(|(_, at)| at.elapsed() >= inner.settings.keep_log)
                .count();
            done.drain(..count).map(|(id, _)| id).collect()
        };
        if old.is_empty() {
            return Ok(());
        }
        let forgotten = async {
            let session = log::session(inner.log(), inner.settings.answer).await?;
            log::forget(&session, &old, std::time::Duration::ZERO).await?;
            session.release();
            Ok(())
        };
        let forgotten: Result<()> = forgotten.await;
        if forgotten.is_err() {
            let again = old.into_iter().map(|id| (id, Instant::now()));
            inner.done().extend(again);
            return forgotten;
        }
    }
}

/// Takes decisions of epochs that are closed out of the log, when they are old enough and all their branches have committed.
/// `told` has those with a branch that has not and never will.
async fn settle(inner: &Inner, told: &mut BTreeSet<String>) -> Result<()> {
    let session = log::session(inner.log(), inner.settings.answer).await?;
    let left = log::left_behind(&session).await?;
    let mut sessions: BTreeMap<&str, Session> = BTreeMap::new();
    let mut done = Vec::new();
    for (gtrid, branches) in &left {
        if told.contains(gtrid) {
            continue;
        }
        let mut fates = Vec::with_capacity(branches.len());
        for branch in branches {
            fates.push(look(inner, &mut sessions, branch).await?);
        }
        if fates.iter().all(|fate| *fate == Some(Fate::Committed)) {
            done.push(gtrid.clone());
        } else if fates
            .iter()
            .any(|fate| matches!(fate, Some(Fate::Aborted | Fate::Unknown)))
        {
            Counters::add(&inner.counters.heuristic);
            told.insert(gtrid.clone());
            tracing::error!(
                transaction = gtrid, fates = ?fates,
                "a transaction that was decided to commit has a branch that has not, and never will; its databases disagree"
            );
        }
    }
    for session in sessions.into_values() {
        session.release();
    }
    log::forget(&session, &done, inner.settings.keep_log).await?;
    session.release();
    Ok(())
}

/// `None`: its database is none of this coordinator's.
async fn look<'a>(
    inner: &'a Inner,
    sessions: &mut BTreeMap<&'a str, Session>,
    branch: &Remembered,
) -> Result<Option<Fate>> {
    let Some(participant) = inner
        .databases
        .iter()
        .find(|one| one.name == branch.database)
    else {
        return Ok(None);
    };
    let name: &str = &participant.name;
    let session = match sessions.remove(name) {
        Some(session) => session,
        None => participant.session(inner.settings.answer).await?,
    };
    let fate = fate(&session, branch)
        .await
        .at(format!("database {name}"))?;
    sessions.insert(name, session);
    Ok(Some(fate))
}
