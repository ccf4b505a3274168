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
mod outflow;
mod rows;
mod shelf;
mod witness;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use lockstep_core::batch::{Batch, Branch, Phase, Prepared};
use lockstep_core::folder::Folder;
use lockstep_core::memory::Budget;
use lockstep_core::position::{Lsn, Position};
use lockstep_core::sink::Trouble;
use lockstep_core::transform::Stitching;
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_transactions::gid::{self, Pattern};
use lockstep_transactions::marker::Marker;
use lockstep_transactions::order::{Committed, Order, Reach};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::flow::Flow;
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
/// How long sinks may take to open before it is begun without knowing what they hold.
const PATIENCE: Duration = Duration::from_secs(10);

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
    /// Its sources by their numbers in the pipeline, the ways of their batches, and what survives a restart of them.
    pub sources: Vec<(usize, Arc<SourceShare>, Arc<Flow>, Folder)>,
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
    /// Its number in the pipeline.
    index: usize,
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
        let shares = parts.sources.iter().map(|(_, share, ..)| Arc::clone(share));
        let shares: Vec<Arc<SourceShare>> = shares.collect();
        let names = shares.iter().map(|share| Arc::clone(&share.name));
        let folders = parts.sources.iter();
        let folders =
            folders.map(|(_, share, _, folder)| (Arc::clone(&share.name), folder.clone()));
        let notes = Notes::open(folders.collect());
        parts.witness.open(shares.clone(), sender.downgrade());
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
                .map(|(index, share, flow, _)| Side {
                    index,
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
        if timeout(PATIENCE, self.look_at_sinks()).await.is_err() {
            tracing::info!(
                stitch = %self.name,
                "not all sinks are open: which branches transactions had that went on before is found out once more"
            );
        }
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

    /// Waits until all sinks are open, and takes from them what went on before. Nothing is lost without: it comes again, and they
    /// know it.
    async fn look_at_sinks(&mut self) {
        let mut held = Vec::with_capacity(self.sources.len());
        for side in &self.sources {
            let all = side.flow.lanes().map(|lane| lane.held_first(side.index));
            let all = join_all(all).await.into_iter();
            // Of one that cannot tell it is not known what it holds.
            let common = all.reduce(|one, other| Some(one?.common(&other?)));
            held.push(common.flatten());
        }
        for (source, held) in held.iter().enumerate() {
            if let Some(held) = held {
                self.order.went_on(source, held);
            }
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
        let open = self.sources[source].open.as_ref().map(|open| open.place);
        for run in &runs {
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
        for prepared in inflow::without_changes(&batch, &runs, open, through) {
            self.leave_out(source, prepared);
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
}
