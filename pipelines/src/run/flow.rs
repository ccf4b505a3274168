//! The way of one source's batches through the transforms to the inboxes of the lanes.

use std::collections::BTreeMap;
use std::sync::Arc;

use lockstep_core::batch::Batch;
use lockstep_core::schema::TableSchema;
use lockstep_core::{Error, Result};

use super::batches;
use super::inbox::Entry;
use super::lane_state::LaneState;
use super::node::Node;
use crate::plan::{Input, Plan, Producer};
use crate::selector::Selector;

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
    source: usize,
    steps: Vec<Step>,
    outlets: Vec<Outlet>,
}

impl Flow {
    /// The way of source `source`: the transforms and sinks of the plan that it reaches.
    pub fn new(plan: &Plan, source: usize, nodes: &[Arc<Node>], lanes: &[Arc<LaneState>]) -> Self {
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
            source,
            steps,
            outlets,
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
        if let Some(mark) = batch.mark {
            for outlet in &self.outlets {
                outlet.lane.inbox.push(Entry::marker(self.source, mark));
            }
            return Ok(());
        }
        let mut made: Vec<Made> = vec![None; self.steps.len() + 1];
        made[0] = (!batch.changes().is_empty()).then(|| Arc::new(batch));
        for (index, step) in self.steps.iter().enumerate() {
            if let Some(batch) = take(&step.taps, &mut made)? {
                let batch = step.node.apply(batch).await?;
                made[index + 1] = (!batch.changes().is_empty()).then_some(batch);
            }
        }
        let mut entries = Vec::with_capacity(self.outlets.len());
        for outlet in &self.outlets {
            let batch = take(&outlet.taps, &mut made)?;
            if batch.is_some() || through.is_some() {
                entries.push((&outlet.lane, Entry::new(self.source, batch, through)));
            }
        }
        for (lane, entry) in entries {
            lane.inbox.push(entry);
        }
        Ok(())
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
