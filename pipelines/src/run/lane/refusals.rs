//! Rows that the sink refuses: told apart from those around them, put aside, and tried again.

use std::collections::HashMap;
use std::sync::Arc;

use lockstep_core::batch::{Batch, Change};
use lockstep_core::position::Position;
use lockstep_core::refusal::Refusal;
use lockstep_core::{Error, ErrorKind, Result};
use tokio::time::Instant;

use super::super::batches;
use super::super::course::Tag;
use super::super::now_micros;
use super::{Lane, Pending};
use crate::letters::Letter;

impl Lane {
    /// The letters that come next, or the end of the replay.
    pub(super) async fn next_letters(&mut self) -> Result<()> {
        let Some(mut course) = self.course.take() else {
            return Ok(());
        };
        let (desk, place) = (Arc::clone(self.parts.aside.desk()), self.place());
        let (waits, keeps_rows) = (self.parts.aside.waits(), self.parts.aside.keeps_rows());
        let stopping = self.parts.draining.is_cancelled();
        let (mut course, letters) = desk
            .blocking(move |store| {
                let letters = match stopping {
                    true => course.clear(store).map(|()| Vec::new()),
                    false => course.next(store, &place, waits),
                };
                Ok((course, letters))
            })
            .await?;
        let letters = match letters {
            Ok(letters) => letters,
            // The line does not need what the replay could not read.
            Err(error) => {
                course.answer(Some(&error));
                return Ok(());
            }
        };
        if letters.is_empty() {
            let stopped = Error::new(ErrorKind::Stopping, "the pipeline stops");
            course.answer(stopping.then_some(&stopped));
            return Ok(());
        }
        for letter in letters {
            if keeps_rows && (letter.head.overtaken.is_some() || self.is_of_a_former_log(&letter)) {
                course.stale(letter.head.id);
                continue;
            }
            let tag = Tag::of(&letter.head);
            match letter.batch(&mut course.schemas) {
                Ok(batch) => {
                    let pending = Pending::letter(tag, Arc::new(batch), waits);
                    self.pending.push_back(pending);
                }
                Err(error) => course.unreadable(&tag, &error),
            }
        }
        self.course = Some(course);
        let mut view = self.parts.state.view();
        view.in_flight = self.pending.len();
        view.moved = Instant::now();
        Ok(())
    }

    /// The source reads another log by now, and with it came every row there was: a letter of the former one is older.
    pub(super) fn is_of_a_former_log(&self, letter: &Letter) -> bool {
        let now = self.logs.get(letter.head.source.as_str());
        now.is_some_and(|now| *now != letter.head.identity)
    }

    /// Puts aside what the sink refuses for good, so that the next one gets the rest. False when the error is none of that
    /// kind, or the sink is to stop on it.
    ///
    /// # Errors
    /// When it can be kept nowhere.
    pub(super) async fn put_aside(&mut self, error: &Error) -> Result<bool> {
        if self.pending.iter().any(|pending| pending.letter.is_some()) {
            return self.refused_again(error).await;
        }
        if !self.parts.aside.takes(error) {
            return Ok(false);
        }
        if error.is_suspicion() && self.isolate(error.refusals()) {
            return Ok(true);
        }
        let refusals = by_position(error.refusals());
        let (mut letters, mut rests) = (Vec::new(), Vec::new());
        for (index, pending) in self.pending.iter().enumerate() {
            let batch = &pending.batch;
            let mut rest: Vec<Change> = Vec::with_capacity(batch.changes().len());
            for change in batch.changes() {
                match refusal_of(&refusals, batch, change) {
                    Some(refusal) => {
                        letters.push(self.parts.aside.letter(batch, change, refusal));
                    }
                    None => rest.push(*change),
                }
            }
            if rest.len() < batch.changes().len() {
                rests.push((index, Arc::new(batch.with_changes(rest))));
            }
        }
        let Some(first) = letters.first().map(|letter| letter.head.clone()) else {
            return Ok(false);
        };
        let rows = letters.len();
        self.parts.aside.keep(letters).await?;
        for (index, rest) in rests {
            self.pending[index].batch = rest;
        }
        self.parts.metrics.failed(error.kind().code());
        self.parts.state.view().errors += 1;
        tracing::warn!(
            sink = %self.parts.state.name, rows, source = first.source, table = first.table, key = first.keys.join(" → "),
            position = %first.position, reason = first.reason, %error,
            "refused for good: put aside among the dead letters, the rest goes on"
        );
        Ok(true)
    }

    /// The sink cannot tell which of these it refuses: each goes by itself from now on. False when all do already.
    pub(super) fn isolate(&mut self, suspects: &[Refusal]) -> bool {
        let suspects = by_position(suspects);
        let mut isolated = false;
        let pending = std::mem::take(&mut self.pending);
        for pending in pending {
            let batch = &pending.batch;
            let is_suspect = |change: &Change| refusal_of(&suspects, batch, change).is_some();
            if pending.alone || !batch.changes().iter().any(is_suspect) {
                self.pending.push_back(pending);
                continue;
            }
            isolated = true;
            // It goes without those it belongs to.
            if let Some(before) = self.pending.back_mut() {
                before.entry.joined = false;
            }
            if pending.letter.is_some() {
                self.pending.push_back(Pending {
                    alone: true,
                    ..pending
                });
                continue;
            }
            let runs = batches::runs(batch, is_suspect);
            let last = runs.len() - 1;
            for (index, (alone, run)) in runs.into_iter().enumerate() {
                let mut entry = pending.entry.clone();
                entry.through = entry.through.filter(|_| index == last);
                entry.mark = entry.mark.filter(|_| index == last);
                entry.joined = false;
                let part = Arc::new(batch.with_changes(run));
                self.pending.push_back(Pending {
                    alone,
                    ..Pending::new(entry, part)
                });
            }
        }
        self.parts.state.view().in_flight = self.pending.len();
        isolated
    }

    /// Letters that are refused once more stay where they are.
    pub(super) async fn refused_again(&mut self, error: &Error) -> Result<bool> {
        if error.kind() != ErrorKind::Refused || error.refusals().is_empty() {
            return Ok(false);
        }
        if error.is_suspicion() && self.isolate(error.refusals()) {
            return Ok(true);
        }
        let refusals = by_position(error.refusals());
        let Some(course) = &mut self.course else {
            return Ok(false);
        };
        let mut tried: Vec<(u64, Refusal)> = Vec::new();
        self.pending.retain(|pending| {
            let batch = &pending.batch;
            let mut changes = batch.changes().iter();
            let refusal = changes.find_map(|change| refusal_of(&refusals, batch, change));
            if let (Some(refusal), Some(tag)) = (refusal, &pending.letter) {
                tried.push((tag.id, refusal.clone()));
                course.refused(tag, refusal);
            }
            refusal.is_none()
        });
        if tried.is_empty() {
            return Ok(false);
        }
        if self.parts.aside.waits() {
            self.pending.retain(|pending| {
                let tag = pending.letter.as_ref();
                !tag.is_some_and(|tag| course.is_stuck(tag))
            });
        }
        self.parts.metrics.failed(error.kind().code());
        let now = now_micros();
        let desk = Arc::clone(self.parts.aside.desk());
        desk.blocking(move |store| {
            tried.iter().try_for_each(|(id, refusal)| {
                store.tried(*id, refusal.reason, &refusal.message, now)
            })
        })
        .await?;
        Ok(true)
    }

    /// Ends a replay whose letters have met an error that only a person can mend. False when none is under way.
    pub(super) fn give_up_replay(&mut self, error: &Error) -> bool {
        if !self.pending.iter().any(|pending| pending.letter.is_some()) {
            return false;
        }
        self.pending.clear();
        self.parts.state.view().in_flight = 0;
        let Some(mut course) = self.course.take() else {
            return false;
        };
        // What was delivered meanwhile stays a letter if this fails: better twice than lost.
        if let Some(store) = self.parts.aside.desk().store()
            && let Err(error) = course.clear(store)
        {
            tracing::warn!(sink = %self.parts.state.name, %error, "delivered letters were not removed");
        }
        course.answer(Some(error));
        true
    }
}

/// Refusals by position; a position may have several, of different tables or sources.
fn by_position(refusals: &[Refusal]) -> HashMap<Position, Vec<&Refusal>> {
    let mut by_position: HashMap<Position, Vec<&Refusal>> = HashMap::new();
    for refusal in refusals {
        by_position
            .entry(refusal.position)
            .or_default()
            .push(refusal);
    }
    by_position
}

fn refusal_of<'r>(
    refusals: &HashMap<Position, Vec<&'r Refusal>>,
    batch: &Batch,
    change: &Change,
) -> Option<&'r Refusal> {
    let at = refusals.get(&batch.position(change))?;
    at.iter()
        .find(|refusal| refusal.is_of(batch, change))
        .copied()
}
