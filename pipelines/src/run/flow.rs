//! The way of one source's batches through the transforms to the inboxes of the lanes.

use std::collections::BTreeMap;
use std::sync::Arc;

use lockstep_core::batch::{Batch, Phase};
use lockstep_core::position::Lsn;
use lockstep_core::schema::{TableId, TableSchema};
use lockstep_core::transform::Comparable;
use lockstep_core::{Error, ErrorKind, Result};

use super::batches;
use super::checks::{Check, CheckDesk};
use super::inbox::Entry;
use super::lane_state::LaneState;
use super::node::Node;
use super::traces;
use crate::plan::{Input, Plan, Producer};
use crate::selector::Selector;

/// How far tables can be compared, by their names in the database; fully where one is not named.
pub(super) type Compares = BTreeMap<TableId, Comparable>;

/// What one node made of one batch; `None` when nothing is left.
type Made = Option<Arc<Batch>>;

/// The inputs from one node, resolved to where its batches are found. Together, so that what the node put into one batch
/// stays in one.
struct Tap {
    /// 0 is the source, then one per step.
    slot: usize,
    /// `None`: everything. Else what any of these takes.
    selectors: Option<Vec<Selector>>,
    /// Nobody reads the slot after this tap.
    last: bool,
}

struct Step {
    node: Arc<Node>,
    taps: Vec<Tap>,
}

struct Outlet {
    lane: Arc<LaneState>,
    taps: Vec<Tap>,
}

/// See the module's page.
pub(super) struct Flow {
    pipeline: Arc<str>,
    source: usize,
    steps: Vec<Step>,
    outlets: Vec<Outlet>,
    checks: Arc<CheckDesk>,
}

impl Flow {
    /// The way of source `source`: the transforms and sinks of the plan that it reaches.
    pub fn new(
        pipeline: Arc<str>,
        plan: &Plan,
        source: usize,
        nodes: &[Arc<Node>],
        lanes: &[Arc<LaneState>],
        checks: Arc<CheckDesk>,
    ) -> Self {
        let mut slots = BTreeMap::from([(Producer::Source(source), 0)]);
        let mut steps = Vec::new();
        for transform in plan.transforms_of(source) {
            let taps = taps(plan, source, &plan.transforms[transform].inputs, &slots);
            let node = Arc::clone(&nodes[transform]);
            steps.push(Step { node, taps });
            slots.insert(Producer::Transform(transform), steps.len());
        }
        let mut outlets: Vec<Outlet> = plan
            .sinks_of(source)
            .map(|sink| Outlet {
                lane: Arc::clone(&lanes[sink]),
                taps: taps(plan, source, &plan.sinks[sink].inputs, &slots),
            })
            .collect();
        let mut seen = vec![false; steps.len() + 1];
        let in_reverse = steps.iter_mut().map(|step| &mut step.taps);
        let in_reverse = in_reverse.chain(outlets.iter_mut().map(|outlet| &mut outlet.taps));
        for tap in in_reverse.rev().flat_map(|taps| taps.iter_mut().rev()) {
            tap.last = !std::mem::replace(&mut seen[tap.slot], true);
        }
        Flow {
            pipeline,
            source,
            steps,
            outlets,
            checks,
        }
    }

    /// The lanes at its end.
    pub fn lanes(&self) -> impl Iterator<Item = &Arc<LaneState>> {
        self.outlets.iter().map(|outlet| &outlet.lane)
    }

    /// Binds the tables that are going to come; gives what reaches each lane, in the order of [`Flow::lanes`].
    pub async fn bind(&self, tables: Vec<Arc<TableSchema>>) -> Result<Vec<Vec<Arc<TableSchema>>>> {
        let mut made = vec![tables];
        for step in &self.steps {
            let mut out = Vec::new();
            for schema in tables_at(&step.taps, &made) {
                out.extend(step.node.bind(&schema).await?);
            }
            step.node.bound(self.source).await?;
            made.push(out);
        }
        Ok(self
            .outlets
            .iter()
            .map(|outlet| tables_at(&outlet.taps, &made))
            .collect())
    }

    /// How far tables that have been bound can be compared at each lane, by their names in the database.
    pub async fn comparable(&self, tables: Vec<Arc<TableSchema>>) -> Vec<Compares> {
        let mut made = vec![tables];
        let mut compares: Vec<Compares> = vec![Compares::new()];
        for step in &self.steps {
            let (mut out, mut behind) = (Vec::new(), least(&step.taps, &compares));
            for schema in tables_at(&step.taps, &made) {
                let (output, how) = step.node.look(&schema).await;
                let known = behind.entry(schema.origin.clone()).or_default();
                *known = (*known).min(how);
                out.extend(output);
            }
            made.push(out);
            compares.push(behind);
        }
        let outlets = self.outlets.iter();
        outlets
            .map(|outlet| least(&outlet.taps, &compares))
            .collect()
    }

    /// Waits until every transform on the way has what it needs elsewhere.
    pub async fn ready(&self) -> Result<()> {
        for step in &self.steps {
            step.node.ready().await?;
        }
        Ok(())
    }

    /// As [`Flow::bind`], for one who wants to know everything that is wrong: a table that a step refuses goes no further,
    /// and `refused` is told. Gives what reaches each lane.
    pub async fn try_bind(
        &self,
        tables: Vec<Arc<TableSchema>>,
        mut refused: impl FnMut(&Node, Option<&TableSchema>, Error),
    ) -> Vec<Vec<Arc<TableSchema>>> {
        let mut made = vec![tables];
        for step in &self.steps {
            let mut out = Vec::new();
            for schema in tables_at(&step.taps, &made) {
                match step.node.bind(&schema).await {
                    Ok(schema) => out.extend(schema),
                    Err(error) => refused(&step.node, Some(&schema), error),
                }
            }
            if let Err(error) = step.node.bound(self.source).await {
                refused(&step.node, None, error);
            }
            made.push(out);
        }
        self.outlets
            .iter()
            .map(|outlet| tables_at(&outlet.taps, &made))
            .collect()
    }

    /// Sends a batch to every lane: what the lane's inputs take of it, and how far the source has come with it. When the
    /// future is dropped, no lane has got anything of it.
    pub async fn send(&self, batch: Batch) -> Result<()> {
        let through = batch.through;
        if let Some(number) = batch.check {
            self.send_check(number, batch).await;
            // Behind it, as behind any part of a batch.
            for outlet in self.outlets.iter().filter(|_| through.is_some()) {
                let entry = Entry::new(self.source, None, through);
                outlet.lane.inbox.push(entry);
            }
            return Ok(());
        }
        if let Some(mark) = batch.mark {
            for outlet in &self.outlets {
                outlet.lane.inbox.push(Entry::marker(self.source, mark));
            }
            return Ok(());
        }
        let span = traces::batch(&self.pipeline, &batch);
        let mut made = self.made(batch).await?;
        let mut entries = Vec::with_capacity(self.outlets.len());
        for outlet in &self.outlets {
            let batch = take(&outlet.taps, &mut made)?;
            if batch.is_some() || through.is_some() {
                let entry = Entry::new(self.source, batch, through).within(&span);
                entries.push((&outlet.lane, entry));
            }
        }
        for (lane, entry) in entries {
            lane.inbox.push(entry);
        }
        Ok(())
    }

    /// What each lane is to get of a batch of the stream, for those who send more with it.
    pub async fn entries(&self, batch: Batch) -> Result<Vec<(&Arc<LaneState>, Entry)>> {
        let span = traces::batch(&self.pipeline, &batch);
        let mut made = self.made(batch).await?;
        let mut entries = Vec::with_capacity(self.outlets.len());
        for outlet in &self.outlets {
            if let Some(batch) = take(&outlet.taps, &mut made)? {
                let entry = Entry::new(self.source, Some(batch), None).within(&span);
                entries.push((&outlet.lane, entry));
            }
        }
        Ok(entries)
    }

    /// Tells every lane how far the source has come with what has been sent, and up to where nothing of it is in doubt.
    pub fn passed(&self, through: Lsn, settled: Option<Lsn>) {
        for outlet in &self.outlets {
            let mut entry = Entry::new(self.source, None, Some(through));
            entry.settled = settled;
            outlet.lane.inbox.push(entry);
        }
    }

    /// Sends rows to be compared, or mended, to the lanes that are asked; to be compared also where none of them is for it. What keeps them from it is told, and is
    /// no reason to stop: nothing is lost with them.
    async fn send_check(&self, number: u64, batch: Batch) {
        let is_check = batch.phase == Phase::Check;
        let made = self.made(batch).await;
        let parts = made.and_then(|mut made| {
            let outlets = self.outlets.iter();
            outlets
                .map(|outlet| take(&outlet.taps, &mut made))
                .collect()
        });
        let parts: Result<Vec<Made>> = parts;
        for (index, outlet) in self.outlets.iter().enumerate() {
            if !self.checks.asks(number, &outlet.lane.name) {
                continue;
            }
            let batch = parts.as_ref().ok().and_then(|parts| parts[index].clone());
            let failed = parts.as_ref().err().cloned();
            let entry = match (is_check, batch) {
                (true, batch) => Entry::check(
                    self.source,
                    Check {
                        number,
                        batch,
                        failed,
                    },
                ),
                (false, Some(batch)) => Entry::new(self.source, Some(batch), None),
                // What was to be mended differs still, which is seen when it is compared again.
                (false, None) => continue,
            };
            outlet.lane.inbox.push(entry);
        }
    }

    /// Tells those who asked for rows to compare that these are not what they should be.
    pub fn fail_check(&self, number: u64, batch: &Batch) {
        if batch.phase != Phase::Check {
            return;
        }
        let error = Error::new(
            ErrorKind::Unavailable,
            "the rows cannot stand at one place of the stream: transactions changed them that go on together with others",
        );
        for outlet in &self.outlets {
            if self.checks.asks(number, &outlet.lane.name) {
                let check = Check {
                    number,
                    batch: None,
                    failed: Some(error.clone().remedy("they are compared again")),
                };
                outlet.lane.inbox.push(Entry::check(self.source, check));
            }
        }
    }

    /// What each step makes of a batch, and what each lane would get, by name: for one who sends nothing.
    pub async fn looked_at(&self, batch: Batch) -> Result<Vec<(Arc<str>, Made)>> {
        let mut seen = Vec::new();
        let mut made = self
            .made_with(batch, |node, made| {
                seen.push((Arc::clone(node.name()), made.clone()));
            })
            .await?;
        for outlet in &self.outlets {
            seen.push((
                Arc::clone(&outlet.lane.name),
                take(&outlet.taps, &mut made)?,
            ));
        }
        Ok(seen)
    }

    /// What the source and each step make of a batch.
    async fn made(&self, batch: Batch) -> Result<Vec<Made>> {
        self.made_with(batch, |_, _| {}).await
    }

    /// The same, and tells of each step.
    async fn made_with(
        &self,
        batch: Batch,
        mut tell: impl FnMut(&Node, &Made) + Send,
    ) -> Result<Vec<Made>> {
        let mut made: Vec<Made> = vec![None; self.steps.len() + 1];
        made[0] = (!batch.changes().is_empty()).then(|| Arc::new(batch));
        for (index, step) in self.steps.iter().enumerate() {
            if let Some(batch) = take(&step.taps, &mut made)? {
                let batch = step.node.apply(batch).await?;
                made[index + 1] = (!batch.changes().is_empty()).then_some(batch);
            }
            tell(&step.node, &made[index + 1]);
        }
        Ok(made)
    }
}

/// The inputs that this source comes by.
fn taps(
    plan: &Plan,
    source: usize,
    inputs: &[Input],
    slots: &BTreeMap<Producer, usize>,
) -> Vec<Tap> {
    let mut taps: Vec<Tap> = Vec::new();
    let from_here = |input: &&Input| input.selector.source.matches(&plan.sources[source]);
    for input in inputs.iter().filter(from_here) {
        let Some(&slot) = slots.get(&input.from) else {
            continue;
        };
        let selector = (!input.selector.is_all()).then(|| input.selector.clone());
        match taps.iter_mut().find(|tap| tap.slot == slot) {
            Some(tap) => match (&mut tap.selectors, selector) {
                (Some(selectors), Some(selector)) => selectors.push(selector),
                (selectors, _) => *selectors = None,
            },
            None => taps.push(Tap {
                slot,
                selectors: selector.map(|selector| vec![selector]),
                last: false,
            }),
        }
    }
    taps
}

/// What the taps take, merged in the order of positions.
fn take(taps: &[Tap], made: &mut [Made]) -> Result<Made> {
    let mut inputs = taps.iter().filter_map(|tap| {
        let batch = match tap.last {
            true => made[tap.slot].take(),
            false => made[tap.slot].clone(),
        };
        match &tap.selectors {
            None => batch,
            Some(selectors) => batches::select(batch?, selectors),
        }
    });
    match taps.len() {
        1 => Ok(inputs.next()),
        _ => batches::merge(inputs.collect()),
    }
}

/// The least of what comes by several taps.
fn least(taps: &[Tap], compares: &[Compares]) -> Compares {
    let mut all = Compares::new();
    for (table, how) in taps.iter().flat_map(|tap| &compares[tap.slot]) {
        let known = all.entry(table.clone()).or_default();
        *known = (*known).min(*how);
    }
    all
}

fn tables_at(taps: &[Tap], made: &[Vec<Arc<TableSchema>>]) -> Vec<Arc<TableSchema>> {
    let mut tables: Vec<Arc<TableSchema>> = Vec::new();
    for tap in taps {
        for schema in &made[tap.slot] {
            let selected = tap
                .selectors
                .as_ref()
                .is_none_or(|selectors| selectors.iter().any(|selector| selector.matches(schema)));
            if selected && !tables.iter().any(|known| Arc::ptr_eq(known, schema)) {
                tables.push(Arc::clone(schema));
            }
        }
    }
    tables
}
