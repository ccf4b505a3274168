//! What goes on, handed to the lanes: transactions of one database in the batches that they came in, those of several in one step.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use lockstep_core::Result;
use lockstep_core::batch::{Batch, Global};
use lockstep_core::position::{Lsn, Position};
use lockstep_core::progress::Standing;
use lockstep_transactions::order::{Member, Unit};

use super::super::inbox::Entry;
use super::super::lane_state::LaneState;
use super::shelf::Slice;
use super::{Key, Stitch, Waiting, inflow};
use crate::metrics::Commit;

impl Stitch {
    /// Hands on what can go on.
    pub(super) async fn release(&mut self) -> Result<()> {
        let mut run: Option<(usize, Slice, Option<Arc<Standing>>)> = None;
        while let Some(step) = self.order.release() {
            self.note_known();
            let [unit] = step.as_slice() else {
                self.send_run(run.take()).await?;
                self.go_on(step).await?;
                continue;
            };
            if unit.passed {
                self.metrics.passed();
            }
            // What is joined to what went before it says nothing of gaps between the two.
            if unit.global.is_some() || unit.rows.is_some() || unit.passed {
                self.send_run(run.take()).await?;
                self.go_on(step).await?;
                continue;
            }
            let member = unit.members[0];
            let source = member.source;
            let Some(waiting) = self.waiting.remove(&Key::Transaction(source, member.place)) else {
                continue;
            };
            for slice in waiting.slices {
                let joined = run.as_ref().and_then(|(of, last, standing)| {
                    let joined = last.and(slice).filter(|_| *of == source)?;
                    Some((source, joined, standing.clone()))
                });
                if joined.is_none() {
                    self.send_run(run.take()).await?;
                }
                run = joined
                    .or_else(|| Some((source, slice, self.standing(source, member.place, &[]))));
            }
        }
        self.note_known();
        self.send_run(run).await?;
        for unit in self.order.undecided() {
            self.early.waits(unit);
        }
        for (source, side) in self.sources.iter_mut().enumerate() {
            let through = self.order.reach(source).through;
            let settled = self.early.is_asked_for();
            let settled = settled.then(|| self.order.settled(source));
            // What waits to be written is told again, if the process ends before it is.
            let limit = self.notes.limit(source).unwrap_or(Lsn(u64::MAX));
            let (through, settled) = (through.min(limit), settled.map(|lsn| lsn.min(limit)));
            if through > side.told || settled > Some(side.settled) {
                side.told = side.told.max(through);
                side.settled = side.settled.max(settled.unwrap_or_default());
                side.flow.passed(side.told, settled.map(|_| side.settled));
            }
        }
        Ok(())
    }

    async fn send_run(&mut self, run: Option<(usize, Slice, Option<Arc<Standing>>)>) -> Result<()> {
        let Some((source, slice, standing)) = run else {
            return Ok(());
        };
        let mut batch = self.take_from_shelf(slice).await?;
        (batch.through, batch.standing) = (None, standing);
        self.sources[source].flow.send(batch).await
    }

    /// A part of what waits. What comes back from the file takes its share of memory, as sinks make room for it.
    async fn take_from_shelf(&mut self, slice: Slice) -> Result<Batch> {
        let share = self.shelf.share(slice);
        let batch = self.shelf.take(slice)?;
        if batch.has_permit() || batch.changes().is_empty() {
            return Ok(batch);
        }
        let permit = self.room.take(share).await;
        Ok(batch.with_permit(permit))
    }

    /// What a part of a step stands beside. Places of the step that are not written before it are `later`.
    fn standing(
        &self,
        source: usize,
        place: Position,
        later: &[Position],
    ) -> Option<Arc<Standing>> {
        let standing = self.order.standing(source, place, later);
        (standing != Standing::default()).then(|| Arc::new(standing))
    }

    /// Hands a step on.
    async fn go_on(&mut self, step: Vec<Unit>) -> Result<()> {
        let (rows, units): (Vec<Unit>, Vec<Unit>) =
            step.into_iter().partition(|unit| unit.rows.is_some());
        if units.len() > 1 {
            tracing::warn!(
                stitch = %self.name, transactions = units.len(),
                "transactions that each committed before the other was prepared go on together: their coordinator commits before all is prepared"
            );
        }
        for unit in rows {
            self.send_rows(&unit).await?;
        }
        self.send_units(units).await
    }

    async fn send_rows(&mut self, unit: &Unit) -> Result<()> {
        let (source, number) = (unit.members[0].source, unit.rows.unwrap_or_default());
        let Some(waiting) = self.waiting.remove(&Key::Rows(source, number)) else {
            return Ok(());
        };
        for slice in waiting.slices {
            let batch = self.take_from_shelf(slice).await?;
            let flow = &self.sources[source].flow;
            match batch.check {
                // What they were to be compared with has changed.
                Some(number) if unit.displaced => flow.fail_check(number, &batch),
                _ => flow.send(batch).await?,
            }
        }
        Ok(())
    }

    /// Whether units are more than goes on in one step.
    fn is_too_much(&self, units: &[Unit]) -> bool {
        let members = units.iter().flat_map(|unit| &unit.members);
        let slices = members
            .filter_map(|member| {
                self.waiting
                    .get(&Key::Transaction(member.source, member.place))
            })
            .flat_map(|waiting| &waiting.slices);
        let shares: Vec<usize> = slices.map(|slice| self.shelf.share(*slice)).collect();
        shares.iter().filter(|share| **share > 0).count() > 1
            && shares.iter().sum::<usize>() > self.most
    }

    /// What waits of a unit.
    fn waiting_of(&self, unit: &Unit) -> impl Iterator<Item = &Waiting> {
        unit.members.iter().filter_map(|member| {
            let key = Key::Transaction(member.source, member.place);
            self.waiting.get(&key)
        })
    }

    /// How the branches of a unit have committed.
    fn commits(&self, unit: &Unit) -> Vec<Commit> {
        let waiting = self.waiting_of(unit);
        waiting.filter_map(|waiting| waiting.commit).collect()
    }

    async fn send_units(&mut self, units: Vec<Unit>) -> Result<()> {
        let cut = self.is_too_much(&units);
        let mut parts: Vec<(Member, Option<Arc<Global>>, Waiting)> = Vec::new();
        for unit in units {
            self.note_early(&unit);
            let branches = u32::try_from(unit.members.len()).unwrap_or(u32::MAX);
            let global = unit.global.clone().map(|id| {
                self.metrics.goes_on(&unit, &self.commits(&unit));
                Arc::new(Global { id, branches, cut })
            });
            let now = Instant::now();
            let known = self.waiting_of(&unit).filter_map(|waiting| waiting.known);
            let known = known.max().unwrap_or(now);
            let decided = self.decided.at(&unit, known);
            for member in unit.members {
                let key = Key::Transaction(member.source, member.place);
                if let Some(waiting) = self.waiting.remove(&key) {
                    let since = waiting.since;
                    self.metrics.held(
                        now.saturating_duration_since(since),
                        decided.saturating_duration_since(since),
                    );
                    parts.push((member, global.clone(), waiting));
                }
            }
        }
        let place_of = |member: &Member| (member.source, member.place);
        // What is prepared goes behind what has committed: only then it is known to a place what has.
        parts.sort_by_key(|(member, ..)| (member.source, member.early, member.place));
        let mut later: Vec<(usize, Position)> =
            parts.iter().map(|(member, ..)| place_of(member)).collect();
        later.reverse();
        let mut together = Together::default();
        let mut bytes = 0;
        for (member, global, waiting) in parts {
            let (source, place) = place_of(&member);
            later.pop();
            let of_source = later.iter().filter(|(other, _)| *other == source);
            let of_source: Vec<Position> = of_source.map(|(_, place)| *place).collect();
            let standing = match member.early {
                true => Some(Arc::new(self.order.standing_early(source, &of_source))),
                false => self.standing(source, place, &of_source),
            };
            for slice in waiting.slices {
                let share = self.shelf.share(slice);
                if bytes > 0 && bytes + share > self.most {
                    // It cannot be held as a whole by those who come behind: see `is_too_much`.
                    self.metrics.cut(waiting.commit.as_slice());
                    together.send();
                    bytes = 0;
                }
                bytes += share;
                let batch = self.take_from_shelf(slice).await?;
                let is_of = |transaction: &_| inflow::place(transaction) == place;
                let mut batch = batch.with_globals(|one| global.clone().filter(|_| is_of(one)));
                (batch.through, batch.standing) = (None, standing.clone());
                together.put(self.sources[source].flow.entries(batch).await?);
            }
        }
        together.send();
        Ok(())
    }
}

/// What lanes get in one step.
#[derive(Default)]
struct Together(BTreeMap<Arc<str>, OfLane>);

/// What one of them gets.
#[derive(Default)]
struct OfLane {
    lane: Option<Arc<LaneState>>,
    entries: Vec<Entry>,
}

impl Together {
    fn put(&mut self, entries: Vec<(&Arc<LaneState>, Entry)>) {
        for (lane, entry) in entries {
            let of = self.0.entry(Arc::clone(&lane.name)).or_default();
            of.lane.get_or_insert_with(|| Arc::clone(lane));
            of.entries.push(entry);
        }
    }

    fn send(&mut self) {
        for OfLane { lane, entries } in std::mem::take(&mut self.0).into_values() {
            if let Some(lane) = lane {
                lane.inbox.push_together(entries);
            }
        }
    }
}
