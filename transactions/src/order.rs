//! In which order transactions of several databases go on, so that every prefix of what went on holds all branches of each of them,
//! or none.
//!
//! For a unit `u`, which is a transaction of one database or the branches of one in several, and a source `s`: `p(u, s)` is
//! where it was prepared and `c(u, s)` where it committed there; for a transaction that was not prepared both are its commit.
//! Coordinators commit no branch before all of them are prepared.
//!
//! **Which branches there are.** When the first commit of `u` is read, all its branches have been prepared, and flushed. So a place of
//! each log that is asked for from then on (a *fence*) lies behind them all: once the log of every other source is read up to
//! there, the branches are known, and nobody waits for one that never comes. A commit is such a place of its own log: what has a branch
//! in every source, which has committed or will, needs no fence.
//!
//! **Order.** `u` goes before `v` if on some source `c(u, s) < p(v, s)`. Whatever `v` can have seen of `u` makes it so: a row
//! that `u` had locked, or one that it wrote, was free for `v` only when `u` had committed, and `v` was not prepared yet. No circle can come of
//! it: with `L(u)` for the time of the last PREPARE of `u`, `u` before `v` implies `L(u) <= c(u, s) < p(v, s) <= L(v)`. So
//! somebody can always go on, what belongs to one key goes on in the order of its commits, and transactions of one
//! database that were not prepared keep their order among each other altogether.
//!
//! **Who does not keep to it.** A coordinator that commits before all is prepared, or gives one name to two transactions at
//! a time, can make circles, and branches that come when the others have gone on. What is in a circle goes on together; a late branch
//! goes on by itself, and is counted. Nothing waits for ever.
//!
//! **Early.** A branch whose transaction has committed elsewhere will commit, and its rows are there since its PREPARE. Once all branches are
//! known, they can go on with those that have committed, if somebody asks for them ([`Order::undecided`], [`Order::shown`]): behind all that committed
//! before their PREPARE. What was said above holds for them, with a commit that is still to come. When it comes, it goes on
//! by itself, in its place, for those who keep rows under the place of their commit.
//!
//! **Passing.** While something waits for long, as one database is down or far behind, what has nothing to do with it can pass by it where
//! that is asked for ([`Order::let_pass`]): what has no key in common with all that is held before it. What belongs to one key still goes on
//! in the order of its commits, and a transaction of several databases as a whole; what was seen through other rows may come later.
//!
//! **Rows that were read at a place of a log**, to be compared or loaded again, go on behind all that committed before it and before all
//! that committed behind it: a [`Unit`] of their own. Where no order has such a place, they go on anywhere, and are told
//! ([`Unit::displaced`]).

mod candidates;
mod circle;
mod doubt;
mod early;
mod passing;
mod recent;
mod source;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use lockstep_core::position::{Lsn, Position};
use lockstep_core::progress::{Progress, Span, Standing};

use candidates::{Candidates, Look};
pub use doubt::{Ended, InDoubt};
pub use passing::Keys;
use passing::Passing;
use recent::Recent;
use source::Source;

/// A transaction of a source that has committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Which source, by number.
    pub source: usize,
    /// What identifies it: its last position.
    pub place: Position,
    /// A place of the log at or behind the end of its commit record, and before any other commit record's end.
    pub end: Lsn,
    /// What it is a branch of, and where it was prepared.
    pub branch: Option<(Arc<str>, Lsn)>,
    /// The rows it has changed.
    pub keys: Keys,
}

/// A transaction that goes on, with all that belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// What its branches share; `None` for a transaction of one database.
    pub global: Option<Arc<str>>,
    /// The branches, in the order their commits were read.
    pub members: Vec<Member>,
    /// A branch was rolled back although another has committed: somebody decided by hand.
    pub mixed: bool,
    /// It is what was missing from one that went on before: its coordinator had committed that one before all was prepared.
    pub late: bool,
    /// It is not a transaction: rows that were read at a place of the log. Their number in `members` is theirs alone.
    pub rows: Option<u64>,
    /// They do not stand where they were read: something that committed before that goes on behind something that committed later.
    pub displaced: bool,
    /// It has passed by what committed before it.
    pub passed: bool,
}

/// A branch, or a transaction of one database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Which source, by number.
    pub source: usize,
    /// Its last position; of rows that were read, that of the transaction before them.
    pub place: Position,
    /// Where it was prepared: whatever committed before that in its source goes before it. Of what was not prepared, its commit.
    pub prepared: Lsn,
    /// It has not committed: it stands where it was prepared, and comes again when it has.
    pub early: bool,
    at: u64,
}

/// How far what went on reaches in one source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Everything that ended at or below this has gone on.
    pub through: Lsn,
    /// The same as a position: everything at or below it.
    pub upto: Position,
    /// What stands behind that, and has gone on all the same.
    pub ahead: BTreeSet<Position>,
    /// Spans behind that of which everything has gone on.
    pub spans: Vec<Span>,
}

/// A question for the ends of all logs. They are to be asked for behind it, not before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// Takes in what is read of each source, in the order of its log, and says what goes on. Pure: no clock, and no I/O.
#[derive(Debug, Default)]
pub struct Order {
    sources: Vec<Source>,
    units: BTreeMap<u64, Waiting>,
    /// Those of them that have names.
    named: BTreeSet<u64>,
    /// The same by their names, the oldest first.
    by_name: HashMap<Arc<str>, Vec<u64>>,
    /// Those of them that may go on.
    candidates: Candidates,
    /// Those of them that want to know where all logs end, and those that have asked.
    wanting: BTreeSet<u64>,
    asked: BTreeMap<Ticket, Vec<u64>>,
    /// How many of them have committed, in part at least.
    held: usize,
    next: u64,
    tickets: u64,
    /// Of each whose branches have become known, and that waits for something else, its first.
    known: Vec<Member>,
    /// What went on lately, with the sources that it was in.
    gone: Recent,
    /// The same of what was rolled back.
    rolled_back: Recent,
    /// The same of what has committed, and had nothing that could go on.
    left_out: Recent,
    /// What may pass by what is held.
    passing: Passing,
    /// Branches that have gone on, and not ended: sources and places of their PREPARE.
    early: BTreeMap<(usize, Lsn), early::Gone>,
    /// Units that were found to wait for nothing but the end of a branch, since it was asked for last.
    undecided: Vec<u64>,
    late: u64,
    /// What work it was.
    #[cfg(test)]
    looks: std::cell::Cell<u64>,
}

#[derive(Debug)]
struct Waiting {
    unit: Unit,
    /// Branches that are prepared, and have not ended: sources and places.
    prepared: Vec<(usize, Lsn)>,
    /// Those of them that can go on as they are.
    shown: Vec<(usize, Lsn)>,
    /// Sources where a branch was rolled back.
    rolled_back: Vec<usize>,
    /// Sources where a branch has committed that had nothing that could go on.
    left_out: Vec<usize>,
    fences: Fences,
    /// It is to go on before all of it has ended: a branch that is prepared says nothing then of others in its source.
    is_early: bool,
    /// Whether it was told that its branches are known.
    is_known: bool,
}

/// How far each source is to be read, of branches.
#[derive(Debug, PartialEq, Eq)]
enum Fences {
    /// Nothing has committed; or it is no branch.
    None,
    /// Not asked for yet.
    Wanted,
    Asked(Ticket),
    At(Vec<Lsn>),
}

impl Order {
    /// For sources of which this much has gone on before. Each is read from there, or from an earlier place.
    #[must_use]
    pub fn new(reached: Vec<Reach>) -> Self {
        Order {
            candidates: Candidates::of(reached.len()),
            sources: reached.into_iter().map(Source::new).collect(),
            ..Order::default()
        }
    }

    /// This much of a source went on in an earlier life, as is known of whoever it went on to. To be told before anything else of it.
    ///
    /// What is read of it again waits for nobody: it is not to be found out once more which branches it had, for which the others would
    /// have to be read to the ends of their logs.
    pub fn went_on(&mut self, source: usize, held: &Progress) {
        self.sources[source].went_on(held);
    }

    /// A branch was prepared. May be told again: then false.
    pub fn prepared(&mut self, source: usize, global: &Arc<str>, lsn: Lsn) -> bool {
        // What has become of it has been told, too, or is told next.
        if !self.sources[source].is_prepared(lsn) {
            return false;
        }
        let id = self.join(source, global, lsn);
        if let Some(waiting) = self.units.get_mut(&id) {
            waiting.prepared.push((source, lsn));
            if !waiting.unit.members.is_empty() {
                self.candidates.look_at(id);
            }
        }
        true
    }

    /// A branch that was prepared at `lsn` was rolled back. False when it had gone on: somebody has decided by hand, too late.
    pub fn rolled_back(&mut self, source: usize, global: &Arc<str>, lsn: Lsn) -> bool {
        self.rolled_back.put(global, source);
        self.sources[source].ended(lsn);
        if self.early.remove(&(source, lsn)).is_some() {
            return false;
        }
        let Some(id) = self.find(global, source, lsn) else {
            return true;
        };
        if let Some(waiting) = self.units.get_mut(&id) {
            waiting.end_branch(source, lsn);
            waiting.rolled_back.push(source);
        }
        self.want_anew(id);
        self.candidates.look_at(id);
        self.drop_if_empty(id);
        true
    }

    /// A branch that was prepared at `lsn` has committed, and there is nothing of it that could go on.
    pub fn left_out(&mut self, source: usize, global: &Arc<str>, lsn: Lsn) {
        self.sources[source].ended(lsn);
        if self.early.remove(&(source, lsn)).is_some() {
            self.left_out.put(global, source);
        }
        let Some(id) = self.find(global, source, lsn) else {
            return;
        };
        self.left_out.put(global, source);
        if let Some(waiting) = self.units.get_mut(&id) {
            waiting.end_branch(source, lsn);
            waiting.left_out.push(source);
        }
        self.candidates.look_at(id);
        self.drop_if_empty(id);
    }

    /// Rows have been read at the place where a source is read now, to be written or to be compared. Gives the number that they go on with.
    pub fn rows(&mut self, source: usize, are_written: bool) -> u64 {
        let id = self.put(None);
        let (at, place, prepared) = self.sources[source].put_rows(id);
        if are_written {
            self.hide_early(source);
        }
        if let Some(waiting) = self.units.get_mut(&id) {
            self.held += 1;
            waiting.unit.rows = Some(at);
            waiting.unit.members.push(Member {
                source,
                place,
                at,
                prepared,
                early: false,
            });
        }
        at
    }

    /// A transaction committed. False when it is known: it is told again, as its source reads from an earlier place.
    pub fn committed(&mut self, committed: Committed) -> bool {
        let Committed {
            source,
            place,
            end,
            branch,
            keys,
        } = committed;
        let was_prepared = branch.as_ref().map(|(_, lsn)| *lsn);
        let branch = branch.filter(|(global, lsn)| !self.has_gone_early(source, global, *lsn));
        let prepared = branch.as_ref().map_or(place.commit, |(_, lsn)| *lsn);
        let has_gone_on = self.sources[source].is_known(place, end);
        let id = match branch {
            None if has_gone_on => None,
            None => Some(self.put(None)),
            Some((global, lsn)) => {
                let known = self.find(&global, source, lsn);
                if let Some(waiting) = known.and_then(|id| self.units.get_mut(&id)) {
                    waiting.end_branch(source, lsn);
                }
                known.into_iter().for_each(|id| self.candidates.look_at(id));
                match known {
                    Some(id) if has_gone_on => {
                        self.want_anew(id);
                        self.drop_if_empty(id);
                        None
                    }
                    None if has_gone_on => None,
                    Some(id) => Some(id),
                    // It was prepared before it was looked at.
                    None => Some(self.join(source, &global, lsn)),
                }
            }
        };
        let waiting = id.and_then(|id| Some((id, self.units.get_mut(&id)?)));
        let Some((id, waiting)) = waiting else {
            was_prepared.inspect(|lsn| self.sources[source].ended(*lsn));
            self.sources[source].passed(place, end);
            self.is_read(source);
            return false;
        };
        let at = self.sources[source].hold(place, end, id, was_prepared);
        self.passing.hold(source, place, id, keys);
        self.held += usize::from(waiting.unit.members.is_empty());
        waiting.unit.members.push(Member {
            source,
            place,
            at,
            prepared,
            early: false,
        });
        if waiting.unit.global.is_some() {
            if waiting.fences == Fences::None {
                waiting.fences = Fences::Wanted;
                self.wanting.insert(id);
            }
            self.candidates.look_at(id);
        }
        self.is_read(source);
        true
    }

    /// A source has been read up to `lsn`: all that ends at or below it has been told.
    pub fn read(&mut self, source: usize, lsn: Lsn) {
        self.sources[source].read_to(lsn);
        self.is_read(source);
    }

    /// Those who waited for what has been read of a source are looked at.
    fn is_read(&mut self, source: usize) {
        self.candidates
            .read(source, self.sources[source].read_up_to());
    }

    /// Asks for the ends of all logs, for all that has been read and not asked about; `None`: nothing waits for it.
    pub fn wanted(&mut self) -> Option<Ticket> {
        let ticket = Ticket(self.tickets + 1);
        let mut asking = Vec::with_capacity(self.wanting.len());
        for id in std::mem::take(&mut self.wanting) {
            let waiting = self.units.get_mut(&id);
            let wanted = waiting.filter(|waiting| waiting.fences == Fences::Wanted);
            let sources = self.sources.len();
            let needs =
                |waiting: &&mut Waiting| waiting.is_early || !waiting.is_known_everywhere(sources);
            if let Some(waiting) = wanted.filter(needs) {
                waiting.fences = Fences::Asked(ticket);
                asking.push(id);
            }
        }
        if asking.is_empty() {
            return None;
        }
        self.tickets += 1;
        self.asked.insert(ticket, asking);
        Some(ticket)
    }

    /// The answer: where the log of each source ended, asked for behind [`Order::wanted`]; `None` when there was none, and it
    /// is wanted again.
    pub fn fenced(&mut self, ticket: Ticket, ends: Option<&[Lsn]>) {
        for id in self.asked.remove(&ticket).into_iter().flatten() {
            let waiting = self.units.get_mut(&id);
            let asked = waiting.filter(|waiting| waiting.fences == Fences::Asked(ticket));
            let Some(waiting) = asked else {
                continue;
            };
            if let Some(ends) = ends {
                waiting.fences = Fences::At(ends.to_vec());
                self.candidates.look_at(id);
            } else {
                waiting.fences = Fences::Wanted;
                self.wanting.insert(id);
            }
        }
    }

    /// What goes on next, if something can. Units of one step go on together, in each source in the order of their commits; nearly
    /// always it is one.
    pub fn release(&mut self) -> Option<Vec<Unit>> {
        // Not before: what the last step stands beside is asked for behind it.
        self.sources.iter_mut().for_each(Source::forget_passed);
        let free = self.next_free();
        let is_free = free.is_some();
        let ids = free.map(|id| vec![id]).or_else(|| self.next_circle());
        let passes = ids.is_none();
        let ids = ids.or_else(|| self.next_passing().map(|id| vec![id]))?;
        let mut step: Vec<Unit> = ids.into_iter().filter_map(|id| self.go_on(id)).collect();
        for unit in &mut step {
            unit.displaced = !is_free && unit.rows.is_some();
            unit.passed = passes;
        }
        Some(step)
    }

    /// Units of several databases of which all branches have become known, since it was asked for last, and that wait all the same: for a
    /// branch that has not ended, or for what goes before them. One branch of each, that has committed. To be asked for behind [`Order::release`].
    pub fn known(&mut self) -> Vec<Member> {
        std::mem::take(&mut self.known)
    }

    /// Nothing more comes of the log of a source: [`Order::release`] gives all that is held of it, as it is, with what goes before that.
    /// Then [`Order::forget`] it.
    pub fn give_up(&mut self, source: usize) {
        for id in self.named.clone() {
            if let Some(waiting) = self.units.get_mut(&id) {
                waiting.prepared.retain(|(of, _)| *of != source);
                waiting.fences.let_pass(source);
                if waiting.fences == Fences::Wanted {
                    self.wanting.insert(id);
                }
            }
            self.candidates.look_at(id);
            self.drop_if_empty(id);
        }
        let mut all: BTreeSet<u64> = self.sources[source].held().collect();
        for id in all.clone() {
            all.extend(self.waited_for(id));
        }
        for id in all {
            if let Some(waiting) = self
                .units
                .get_mut(&id)
                .filter(|one| one.unit.global.is_some())
            {
                waiting.prepared.clear();
                waiting.fences = Fences::At(vec![Lsn::ZERO; self.sources.len()]);
                self.candidates.look_at(id);
            }
        }
    }

    /// A source reads another log from now on: nothing that was told of it counts any more. Nothing of it may be held.
    pub fn forget(&mut self, source: usize) {
        self.sources[source] = Source::new(Reach::default());
        if self.passing.is_asked_for() {
            self.sources[source].gather_spans();
        }
        self.early.retain(|(of, _), _| *of != source);
        self.passing.forget(source);
        self.named
            .iter()
            .for_each(|id| self.candidates.look_at(*id));
    }

    /// Whether something of a source is held.
    #[must_use]
    pub fn holds(&self, source: usize) -> bool {
        self.sources[source].first().is_some()
    }

    /// How far what went on reaches in a source.
    #[must_use]
    pub fn reach(&self, source: usize) -> Reach {
        self.sources[source].reach()
    }

    /// What of a source had gone on when a member of the last step goes on, beside that member. Members of the step that go on
    /// after it are `later`. To be asked for before the next step.
    #[must_use]
    pub fn standing(&self, source: usize, place: Position, later: &[Position]) -> Standing {
        let mut reach = self.sources[source].reach();
        let upto = (reach.upto < place).then_some(reach.upto);
        let before = upto.unwrap_or(place);
        reach.spans.retain(|(_, to)| *to > before);
        let ahead = reach.ahead.into_iter();
        let is_else = |ahead: &Position| *ahead != place && !later.contains(ahead);
        Standing {
            upto,
            ahead: ahead
                .filter(|ahead| *ahead > before && is_else(ahead))
                .collect(),
            spans: reach.spans,
            early: Vec::new(),
        }
    }

    /// Transactions that have committed, in part at least, and not gone on.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held
    }

    /// Branches that were prepared when the others had gone on, or could have: their coordinators commit before all is prepared.
    #[must_use]
    pub fn late(&self) -> u64 {
        self.late
    }

    /// The unit that a branch of this name belongs to: the oldest of which it can be one.
    fn join(&mut self, source: usize, global: &Arc<str>, lsn: Lsn) -> u64 {
        let mut late = self.gone.was_elsewhere(global, source);
        for id in self.by_name.get(global).into_iter().flatten() {
            let Some(waiting) = self.units.get(id) else {
                continue;
            };
            let is_behind = waiting.is_behind_fence(source, lsn);
            let has_ended = waiting.has_ended_in(source);
            if !is_behind && !has_ended {
                return *id;
            }
            late |= is_behind && !has_ended;
        }
        let id = self.put(Some(global));
        let rolled_back = self.rolled_back.was_elsewhere(global, source);
        if let Some(waiting) = self.units.get_mut(&id) {
            waiting.unit.late = late;
            waiting.unit.mixed = rolled_back;
        }
        id
    }

    fn put(&mut self, global: Option<&Arc<str>>) -> u64 {
        self.next += 1;
        let unit = Unit {
            global: global.cloned(),
            members: Vec::new(),
            mixed: false,
            late: false,
            rows: None,
            displaced: false,
            passed: false,
        };
        let waiting = Waiting {
            unit,
            prepared: Vec::new(),
            shown: Vec::new(),
            rolled_back: Vec::new(),
            left_out: Vec::new(),
            fences: Fences::None,
            is_early: false,
            is_known: false,
        };
        self.units.insert(self.next, waiting);
        if let Some(global) = global {
            let named = self.by_name.entry(Arc::clone(global)).or_default();
            named.push(self.next);
            self.named.insert(self.next);
        }
        self.next
    }

    /// The unit that has a branch prepared there.
    fn find(&self, global: &Arc<str>, source: usize, lsn: Lsn) -> Option<u64> {
        let mut named = self.by_name.get(global)?.iter().copied();
        named.find(|id| {
            let waiting = self.units.get(id);
            waiting.is_some_and(|waiting| waiting.prepared.contains(&(source, lsn)))
        })
    }

    /// A branch of it has ended that nobody waits for: whatever else there is in its source is not known any more.
    fn want_anew(&mut self, id: u64) {
        let waiting = self.units.get(&id);
        if waiting.is_some_and(|waiting| waiting.fences == Fences::Wanted) {
            self.wanting.insert(id);
        }
    }

    fn drop_if_empty(&mut self, id: u64) {
        let is_empty =
            |waiting: &Waiting| waiting.unit.members.is_empty() && waiting.prepared.is_empty();
        if self.units.get(&id).is_some_and(is_empty) {
            self.remove(id);
        }
    }

    fn remove(&mut self, id: u64) -> Option<Waiting> {
        let waiting = self.units.remove(&id)?;
        self.named.remove(&id);
        self.candidates.gone(id);
        self.held -= usize::from(!waiting.unit.members.is_empty());
        if let Some(global) = &waiting.unit.global
            && let Some(named) = self.by_name.get_mut(global)
        {
            named.retain(|other| *other != id);
            if named.is_empty() {
                self.by_name.remove(global);
            }
        }
        Some(waiting)
    }

    /// One that may go on: of those that have no name only the first of each source can.
    fn next_free(&mut self) -> Option<u64> {
        let heads = self.sources.iter().filter_map(Source::first);
        let head = heads.filter(|id| self.look(*id) == Look::Free).min();
        while let Some(id) = self.candidates.first() {
            // Nothing that is looked at from here on is older.
            if head.is_some_and(|head| head < id) {
                return head;
            }
            let found = self.look(id);
            if found == Look::Free {
                return Some(head.map_or(id, |head| head.min(id)));
            }
            if matches!(found, Look::InDoubt | Look::Behind(_)) {
                self.note_known(id, &found);
            }
            if matches!(found, Look::Behind(_)) {
                self.passing.look_at(id);
            }
            self.candidates.put_aside(id, &found);
        }
        head
    }

    fn note_known(&mut self, id: u64, found: &Look) {
        let waiting = self.units.get_mut(&id);
        if let Some(waiting) = waiting.filter(|waiting| !waiting.is_known) {
            waiting.is_known = true;
            self.known.extend(waiting.unit.members.first());
            if *found == Look::InDoubt {
                self.undecided.push(id);
            }
        }
    }

    /// Whether it may go on, and if not, what for it waits.
    fn look(&self, id: u64) -> Look {
        #[cfg(test)]
        self.looks.set(self.looks.get() + 1);
        let Some(waiting) = self.units.get(&id) else {
            return Look::Incomplete;
        };
        if waiting.unit.members.is_empty() {
            return Look::Incomplete;
        }
        if waiting.unit.global.is_some() && !waiting.is_known_everywhere(self.sources.len()) {
            let Fences::At(ends) = &waiting.fences else {
                return Look::Incomplete;
            };
            let mut sources = self.sources.iter().zip(ends).enumerate();
            let unread = sources
                .find(|(at, (source, end))| !waiting.is_known_in(*at) && !source.is_read_to(**end));
            if let Some((at, (_, end))) = unread {
                return Look::Unread(at, *end);
            }
        }
        if !waiting.is_shown() {
            return Look::InDoubt;
        }
        if let Some(found) = self.unread_early(waiting) {
            return found;
        }
        self.last_blocker(id).map_or(Look::Free, Look::Behind)
    }

    /// Whether all its branches are known, and none is left that has not ended.
    fn is_complete(&self, id: u64) -> bool {
        matches!(self.look(id), Look::Free | Look::Behind(_))
    }

    /// What is held and goes before it.
    fn blockers(&self, id: u64) -> impl Iterator<Item = u64> {
        let waiting = self.units.get(&id);
        let places = waiting.into_iter().flat_map(Waiting::places);
        places.flat_map(move |(source, prepared, at)| {
            let held = self.sources[source].held_before(prepared, at);
            held.filter(move |other| *other != id)
        })
    }

    /// One of [`Order::blockers`], of those that are likely to go on last.
    fn last_blocker(&self, id: u64) -> Option<u64> {
        let waiting = self.units.get(&id);
        let mut places = waiting.into_iter().flat_map(Waiting::places);
        places.find_map(|(source, prepared, at)| {
            self.sources[source].last_held_before(prepared, at, id)
        })
    }

    fn go_on(&mut self, id: u64) -> Option<Unit> {
        let waiting = self.remove(id)?;
        let ended = waiting.ended();
        let Waiting {
            mut unit,
            rolled_back,
            shown,
            prepared,
            ..
        } = waiting;
        unit.mixed |= !rolled_back.is_empty();
        self.late += u64::from(unit.late);
        for member in &unit.members {
            self.sources[member.source].go_on(member.at);
            match unit.rows {
                Some(_) => self.passing.rows_gone(member.source, member.place),
                None => self.passing.gone(member.source, member.place),
            }
            if let Some(global) = &unit.global {
                self.gone.put(global, member.source);
            }
        }
        let early = prepared.iter().filter(|branch| shown.contains(branch));
        self.go_early(&mut unit, early, &ended);
        Some(unit)
    }
}

impl Fences {
    /// Nothing is waited for in a source any more: its places of the log mean nothing from now on.
    fn let_pass(&mut self, source: usize) {
        match self {
            Fences::At(ends) => ends[source] = Lsn::ZERO,
            Fences::Asked(_) => *self = Fences::Wanted,
            Fences::None | Fences::Wanted => {}
        }
    }
}

impl Waiting {
    fn end_branch(&mut self, source: usize, lsn: Lsn) {
        self.prepared.retain(|branch| *branch != (source, lsn));
    }

    /// Whether all of its branches have ended, or can go on as they are.
    fn is_shown(&self) -> bool {
        let mut prepared = self.prepared.iter();
        prepared.all(|branch| self.shown.contains(branch))
    }

    /// What has committed before these places of sources goes before it, and rows that were read before these numbers.
    fn places(&self) -> impl Iterator<Item = (usize, Lsn, u64)> {
        let members = self.unit.members.iter();
        let members = members.map(|member| (member.source, member.prepared, member.at));
        let early = self.prepared.iter();
        members.chain(early.map(|(source, lsn)| (*source, *lsn, u64::MAX)))
    }

    fn is_in(&self, source: usize) -> bool {
        let mut members = self.unit.members.iter();
        members.any(|member| member.source == source)
    }

    /// Whether its branch there is known, which has committed or will end. A commit is a fence of its own log.
    fn is_known_in(&self, source: usize) -> bool {
        self.is_in(source)
            || self.left_out.contains(&source)
            || self.prepared.iter().any(|(of, _)| *of == source)
    }

    /// Whether that is so in each source: no fence tells more.
    fn is_known_everywhere(&self, sources: usize) -> bool {
        (0..sources).all(|source| self.is_known_in(source))
    }

    /// Whether a branch of it has ended there: all of them had been prepared by then.
    fn has_ended_in(&self, source: usize) -> bool {
        self.is_in(source) || self.rolled_back.contains(&source) || self.left_out.contains(&source)
    }

    /// Whether all its branches had been prepared before this place.
    fn is_behind_fence(&self, source: usize, lsn: Lsn) -> bool {
        matches!(&self.fences, Fences::At(ends) if lsn >= ends[source])
    }
}

#[cfg(test)]
mod tests;
