//! The branches of a transaction of several databases go on together.
//!
//! Between the pumps of the sources and the transforms: takes batches as they leave their sources, cuts them into
//! transactions, and hands them on in the order that [`lockstep_transactions::order`] gives: every prefix of what goes on holds all
//! branches of a transaction, or none. Transactions of one database, while none of several waits before them, go on in the batches
//! that they came in.
//!
//! Where that is asked for, a transaction that has committed in one database goes on before the others have, with what is prepared there; which
//! then comes again when it commits.
//!
//! And where that is asked for, what has nothing to do with what has waited for very long passes by it.
//!
//! What waits has not been confirmed to its source, so nothing of it needs to survive a restart. What has gone on ahead of
//! something that waits is with the progress that sinks keep ([`lockstep_core::progress`]).

mod decided;
mod early;
mod fences;
mod going_early;
mod inflow;
mod lag;
mod notes;
mod rows;
mod shelf;
mod witness;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use lockstep_core::batch::{Batch, Branch, Global, Phase, Prepared};
use lockstep_core::folder::Folder;
use lockstep_core::memory::Budget;
use lockstep_core::position::{Lsn, Position};
use lockstep_core::progress::Standing;
use lockstep_core::sink::Trouble;
use lockstep_core::transform::Stitching;
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_transactions::gid::{self, Pattern};
use lockstep_transactions::marker::Marker;
use lockstep_transactions::order::{Committed, Member, Order, Reach, Unit};
use tokio::sync::{mpsc, oneshot};

use super::flow::Flow;
use super::inbox::Entry;
use super::lane_state::LaneState;
use super::source_state::SourceShare;
use crate::metrics::{Commit, StitchMetrics, manager};
use decided::Decided;
use early::{Due, Early};
use fences::{Fencing, Happened};
use inflow::Came;
use lag::Lag;
use notes::Notes;
use rows::Rows;
use shelf::{Shelf, Slice};
pub(super) use witness::Witness;
use witness::{Desk, Question};
pub use witness::{DoubtfulBranch, Doubts};

/// Batches that may wait at the door: what is behind it never waits for a source.
const WAITING: usize = 16;

/// Where a pump hands batches over.
#[derive(Clone)]
pub(super) struct Door {
    /// Which source, by number of the stitch.
    source: usize,
    sender: mpsc::Sender<Message>,
}

enum Message {
    Batch(usize, Box<Batch>),
    /// The source is read from an earlier place again: what has come in part comes as a whole.
    Again(usize),
    /// The source reads another log from here on. Answered when nothing of the old one waits.
    Renew(usize, oneshot::Sender<()>),
    /// Somebody asks what is known of branches in doubt.
    Doubts(Question),
}

impl Door {
    /// Hands a batch over. Cancel-safe: it is taken, or comes again.
    ///
    /// # Errors
    /// When nothing is taken any more; the reason is told elsewhere.
    pub async fn send(&self, batch: Batch) -> Result<()> {
        self.tell(Message::Batch(self.source, Box::new(batch)))
            .await
    }

    /// The source has been opened anew.
    pub async fn again(&self) -> Result<()> {
        self.tell(Message::Again(self.source)).await
    }

    /// The source reads another log: lets what waits of the old one go on first.
    pub async fn renew(&self) -> Result<()> {
        let (done, gone_on) = oneshot::channel();
        self.tell(Message::Renew(self.source, done)).await?;
        gone_on.await.map_err(|_| stopped())
    }

    async fn tell(&self, message: Message) -> Result<()> {
        self.sender.send(message).await.map_err(|_| stopped())
    }
}

fn stopped() -> Error {
    Error::new(
        ErrorKind::Stopping,
        "transactions are not put together any more",
    )
}

/// What a stitch is made from.
pub(super) struct Parts<'a> {
    pub name: Arc<str>,
    pub stitching: Stitching,
    /// Its sources, the ways of their batches, and what survives a restart of them.
    pub sources: Vec<(Arc<SourceShare>, Arc<Flow>, Folder)>,
    /// For what waits.
    pub directory: &'a Path,
    /// Memory that batches of all sources share.
    pub budget: Budget,
    pub metrics: StitchMetrics,
    pub trouble: Trouble,
    /// Who is to be asked about branches in doubt.
    pub witness: Witness,
}

/// See the module's page.
pub(super) struct Stitch {
    name: Arc<str>,
    pattern: Option<Pattern>,
    /// Bytes of a transaction that goes on as a whole.
    most: usize,
    sources: Vec<Side>,
    messages: mpsc::Receiver<Message>,
    order: Order,
    shelf: Shelf,
    /// Memory for what comes back from the file: nobody else takes of it, so those who hold it get rid of it by themselves.
    room: Budget,
    waiting: HashMap<Key, Waiting>,
    fencing: Fencing,
    desk: Desk,
    decided: Decided,
    early: Early,
    lag: Lag<Key>,
    notes: Notes,
    metrics: StitchMetrics,
}

/// A source.
struct Side {
    share: Arc<SourceShare>,
    flow: Arc<Flow>,
    /// A transaction of which the rest is to come.
    open: Option<Came>,
    /// What has been said of how far it has gone on, and up to where nothing is in doubt.
    told: Lsn,
    settled: Lsn,
}

/// What goes on as a part of a unit.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    /// A transaction of a source.
    Transaction(usize, Position),
    /// Rows of one.
    Rows(usize, u64),
}

struct Waiting {
    slices: Vec<Slice>,
    /// Of a transaction, how it committed.
    commit: Option<Commit>,
    since: Instant,
    /// When all branches of its transaction were known, where that was told of this one.
    known: Option<Instant>,
}

impl Stitch {
    /// A stitch, and a door for each of its sources, in their order.
    ///
    /// # Errors
    /// Of kind `Config` when the pattern for gids is none.
    pub fn new(parts: Parts<'_>) -> Result<(Self, Vec<Door>)> {
        let pattern = parts.stitching.gids.as_deref();
        let pattern = pattern.map(Pattern::new).transpose()?;
        // What waits must leave room for what it waits for.
        let most = parts.stitching.memory.min(parts.budget.total() / 4);
        let (sender, messages) = mpsc::channel(WAITING);
        let doors = (0..parts.sources.len()).map(|source| Door {
            source,
            sender: sender.clone(),
        });
        let doors = doors.collect();
        let reached = vec![Reach::default(); parts.sources.len()];
        let shares = parts.sources.iter().map(|(share, ..)| Arc::clone(share));
        let shares: Vec<Arc<SourceShare>> = shares.collect();
        let names = shares.iter().map(|share| Arc::clone(&share.name));
        let folders = parts.sources.iter();
        let folders = folders.map(|(share, _, folder)| (Arc::clone(&share.name), folder.clone()));
        let notes = Notes::open(folders.collect());
        parts.witness.open(shares.clone(), sender.downgrade());
        if parts.stitching.hold_max.is_some() || parts.stitching.lag_max.is_some() {
            tracing::warn!(
                stitch = %parts.name,
                "`mode = \"decision\"`, `hold_max` and `lag_max` are not proven yet: after faults a queue may have a change twice"
            );
        }
        let stitch = Stitch {
            name: parts.name,
            pattern,
            most,
            room: Budget::new(most),
            desk: Desk::new(names.collect()),
            decided: Decided::new(shares.len()),
            early: Early::new(parts.stitching.hold_max),
            lag: Lag::new(parts.stitching.lag_max),
            notes,
            fencing: Fencing::new(shares, parts.trouble),
            sources: parts
                .sources
                .into_iter()
                .map(|(share, flow, _)| Side {
                    share,
                    flow,
                    open: None,
                    told: Lsn::ZERO,
                    settled: Lsn::ZERO,
                })
                .collect(),
            messages,
            order: match parts.stitching.lag_max {
                Some(_) => Order::new(reached).with_rows(),
                None => Order::new(reached),
            },
            shelf: Shelf::new(parts.directory, most),
            waiting: HashMap::new(),
            metrics: parts.metrics,
        };
        Ok((stitch, doors))
    }

    /// Runs until nobody sends any more. What waits then is left for the next start.
    ///
    /// # Errors
    /// What a transform says that stops the pipeline, or that what waits cannot be kept.
    pub async fn run(mut self) -> Result<()> {
        loop {
            if self.fencing.may_ask() {
                match self.order.wanted() {
                    Some(ticket) => self.fencing.ask(ticket),
                    None => self.fencing.rest(),
                }
            }
            tokio::select! {
                biased;
                happened = self.fencing.next() => if let Happened::Answered(ticket, ends) = happened {
                    self.order.fenced(ticket, ends.as_deref());
                },
                () = self.notes.settle(|source, lsn| {
                    self.desk.has(source, lsn) || self.order.read_up_to(source) <= lsn
                }) => {}
                Due(unit) = self.early.due() => self.ask_early(unit),
                () = self.lag.is_due() => {}
                message = self.messages.recv() => match message {
                    Some(message) => self.take(message).await?,
                    None => return Ok(()),
                },
            }
            self.look_at_lag();
            self.release().await?;
            self.shelf.settle()?;
            self.desk.answer(&self.order, &self.notes);
            self.metrics.waits(self.order.held(), self.shelf.filed());
        }
    }

    /// Lets others pass by what has waited for too long, or not any more.
    fn look_at_lag(&mut self) {
        let waiting = &self.waiting;
        let Some(passes) = self.lag.look(|key| waiting.contains_key(key)) else {
            return;
        };
        let waits = self.order.held();
        match passes {
            true => tracing::warn!(
                stitch = %self.name, waits,
                "a transaction has waited for longer than `lag_max`: what has no row in common with those that wait passes by them"
            ),
            false => {
                tracing::info!(stitch = %self.name, waits, "everything goes on in its order again")
            }
        }
        self.order.let_pass(passes);
    }

    async fn take(&mut self, message: Message) -> Result<()> {
        match message {
            Message::Batch(source, batch) => self.take_batch(source, *batch),
            Message::Again(source) => {
                self.drop_open(source);
                let left = self.early.again(source);
                self.let_go(left);
            }
            Message::Renew(source, done) => {
                self.drop_open(source);
                self.order.give_up(source);
                self.release().await?;
                self.order.forget(source);
                let left = self.early.forget(source);
                self.let_go(left);
                self.forget_waiting(source);
                self.desk.forget(source);
                self.decided.forget(source);
                self.notes.forget(source);
                (self.sources[source].told, self.sources[source].settled) = (Lsn::ZERO, Lsn::ZERO);
                // Whoever asked may be gone.
                let _ = done.send(());
            }
            Message::Doubts(question) => self.desk.put(question),
        }
        Ok(())
    }

    fn drop_open(&mut self, source: usize) {
        if let Some(open) = self.sources[source].open.take() {
            self.let_go(open.slices);
        }
    }

    /// What was shown of a source before it committed, and has not gone on, does not any more.
    fn forget_waiting(&mut self, source: usize) {
        let is_left = |key: &Key| matches!(key, Key::Transaction(of, _) if *of == source);
        let left = self.waiting.extract_if(|key, _| is_left(key));
        let left: Vec<Slice> = left.flat_map(|(_, waiting)| waiting.slices).collect();
        self.let_go(left);
    }

    fn let_go(&mut self, slices: Vec<Slice>) {
        slices
            .into_iter()
            .for_each(|slice| self.shelf.let_go(slice));
    }

    fn take_batch(&mut self, source: usize, mut batch: Batch) {
        if let Some(branch) = &batch.branch {
            self.take_branch(source, branch);
            return;
        }
        let through = batch.through.take();
        if super::batches::is_early(&batch) {
            // It comes between two transactions: what has come of one before it is all of it.
            self.end_open(source, through);
            self.take_early(source, batch);
        } else if batch.phase != Phase::Stream || batch.mark.is_some() {
            self.take_rows(source, batch);
        } else {
            batch.through = through;
            self.take_changes(source, batch);
        }
        if let Some(through) = through {
            self.order.read(source, through);
        }
    }

    fn take_branch(&mut self, source: usize, branch: &Branch) {
        match branch {
            Branch::Prepared(prepared) => {
                let global = self.global_of(source, prepared);
                if self.order.prepared(source, &global, prepared.lsn) {
                    self.desk.prepared(source, prepared);
                    self.note(source, prepared.lsn, &global);
                }
            }
            Branch::RolledBack(prepared) => {
                let global = self.global_of(source, prepared);
                // Where it went on in an earlier life, that is known by what was noted of its siblings.
                let known = self.notes.of(source, prepared);
                let was_decided = known.is_some_and(|[committed, _]| !committed.is_empty());
                let is_undone = !self.order.rolled_back(source, &global, prepared.lsn);
                if is_undone || was_decided && self.early.is_asked_for() {
                    self.went_wrong(source, prepared);
                }
                self.is_ended(source, prepared);
                self.note(source, prepared.lsn, &global);
            }
            Branch::Empty(prepared) => self.leave_out(source, prepared),
            Branch::Early(prepared) => self.have_early(source, prepared),
        }
    }

    /// A branch has committed, and there is nothing of it that could go on.
    fn leave_out(&mut self, source: usize, prepared: &Prepared) {
        let global = self.global_of(source, prepared);
        self.order.left_out(source, &global, prepared.lsn);
        self.is_ended(source, prepared);
        self.note(source, prepared.lsn, &global);
    }

    /// A branch is not in doubt any more.
    fn is_ended(&mut self, source: usize, prepared: &Prepared) {
        let mut left = self.early.ended((source, prepared.lsn));
        // As it was prepared it has not gone on, and does not any more.
        let place = Order::early_place(prepared.lsn);
        let waiting = self.waiting.remove(&Key::Transaction(source, place));
        left.extend(waiting.into_iter().flat_map(|waiting| waiting.slices));
        self.let_go(left);
        self.desk.ended(source, prepared);
        self.notes.ended(source, prepared);
    }

    /// Keeps what is known of branches in doubt: the one that `source` has told of, behind this place, waits for nobody, and does not come again.
    fn note(&mut self, source: usize, place: Lsn, global: &Arc<str>) {
        let teller = (source, place);
        self.desk.note(&self.order, global, teller, &mut self.notes);
    }

    /// What a branch shares with the others: what it says itself, or what it is called.
    fn global_of(&self, source: usize, prepared: &Prepared) -> Arc<str> {
        let name = &self.sources[source].share.name;
        if let Some(content) = &prepared.marker {
            match Marker::parse(content.as_bytes()) {
                Ok(marker) => return marker.global.into(),
                Err(error) => {
                    tracing::warn!(source = %name, gid = %prepared.gid, %error, "it goes by its name");
                }
            }
        }
        let branch = gid::Branch::parse_with(&prepared.gid, self.pattern.as_ref());
        branch.key(name).into()
    }

    /// Rows that were read at this place, or a question how far all before is durable.
    fn take_rows(&mut self, source: usize, batch: Batch) {
        self.end_open(source, None);
        let are_written = batch.phase == Phase::Snapshot && !batch.changes().is_empty();
        let number = self.order.rows(source, are_written);
        let to = batch.changes().len();
        let batch = self.shelf.put(Arc::new(batch), 1);
        let slice = Slice {
            batch,
            from: 0,
            to,
            parts: 1,
        };
        self.wait(Key::Rows(source, number), vec![slice], None);
    }

    fn take_changes(&mut self, source: usize, batch: Batch) {
        let through = batch.through;
        let batch = Arc::new(batch);
        let runs = inflow::cut(&batch);
        let number = self.shelf.put(Arc::clone(&batch), runs.len());
        for run in runs {
            let changes = &batch.changes()[run.changes.clone()];
            let place = inflow::place(run.transaction);
            let is_more = |open: &Came| open.place == place;
            if !self.sources[source].open.as_ref().is_some_and(is_more) {
                self.end_open(source, Some(run.transaction.commit));
                self.sources[source].open = Some(Came {
                    place,
                    committed_micros: run.transaction.commit_micros,
                    prepared: run.transaction.prepared.clone(),
                    marker: None,
                    rows: Rows::default(),
                    slices: Vec::new(),
                });
            }
            if let Some(open) = &mut self.sources[source].open {
                open.slices.push(Slice {
                    batch: number,
                    from: run.changes.start,
                    to: run.changes.end,
                    parts: 1,
                });
                if open.marker.is_none() {
                    open.marker = inflow::marker(&batch, changes);
                }
                if self.lag.is_asked_for() {
                    open.rows.note(&batch, changes);
                }
            }
            if let Some(end) = run.end {
                self.end_open(source, Some(end));
            }
        }
        let Some(through) = through else { return };
        let commit = |open: &Came| open.place.commit;
        if self.sources[source].open.as_ref().map(commit) < Some(through) {
            self.end_open(source, Some(through));
        }
        // Of those whose changes are all gone on the way here, nothing else is said.
        let mut transactions = batch.transactions().iter();
        while let Some(transaction) = transactions.find(|one| one.commit < through) {
            if let Some(prepared) = &transaction.prepared {
                self.leave_out(source, prepared);
            }
        }
    }

    /// All has come of the transaction that is coming, whose commit record ends at `end` or before it.
    fn end_open(&mut self, source: usize, end: Option<Lsn>) {
        let Some(came) = self.sources[source].open.take() else {
            return;
        };
        if let Some(prepared) = &came.prepared {
            self.is_ended(source, prepared);
        }
        let branch = match (&came.prepared, &came.marker) {
            (Some(prepared), _) => Some((self.global_of(source, prepared), prepared.lsn)),
            (None, Some(marker)) => Some((marker.global.as_str().into(), came.place.commit)),
            (None, None) => None,
        };
        let behind = inflow::behind(came.place.commit);
        let is_new = self.order.committed(Committed {
            source,
            place: came.place,
            end: end.map_or(behind, |end| end.max(behind)),
            branch,
            keys: came.rows.keys(),
        });
        if is_new {
            let commit = Commit {
                micros: came.committed_micros,
                manager: came.prepared.as_deref().map(manager),
            };
            let key = Key::Transaction(source, came.place);
            self.wait(key, came.slices, Some(commit));
        } else {
            self.let_go(came.slices);
        }
    }

    fn wait(&mut self, key: Key, slices: Vec<Slice>, commit: Option<Commit>) {
        let waiting = Waiting {
            slices,
            commit,
            since: Instant::now(),
            known: None,
        };
        self.waiting.insert(key, waiting);
        if matches!(key, Key::Transaction(..)) {
            self.lag.waits(key);
        }
    }

    /// Notes when the branches of those that wait have become known.
    fn note_known(&mut self) {
        let known = self.order.known();
        if known.is_empty() {
            return;
        }
        let now = Instant::now();
        for member in known {
            let key = Key::Transaction(member.source, member.place);
            if let Some(waiting) = self.waiting.get_mut(&key) {
                waiting.known = Some(now);
            }
        }
    }

    /// Hands on what can go on.
    async fn release(&mut self) -> Result<()> {
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
