//! Random schedules in a model of databases and their coordinators, read at random speeds.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

mod backlog;
mod cases;
mod doubt;
mod early;
mod known;
mod passing;

const DATABASES: usize = 3;
const KEYS: usize = 4;
const SESSIONS: usize = 6;

/// What happens next.
#[derive(Clone, Debug)]
enum Event {
    /// A session does the next step of its transaction, or begins one: in these databases, with this key in each.
    Step {
        session: usize,
        databases: [bool; DATABASES],
        keys: [usize; DATABASES],
        /// Which of its branches is next.
        which: usize,
        /// Whether it is rolled back instead, once all is prepared; in its further steps, whether it commits without
        /// waiting for that, of a coordinator that does such things.
        fails: bool,
    },
    /// Something is read of a log.
    Read(usize),
    /// A question for the ends of all logs is answered.
    Answer(bool),
    /// Rows are read at the place where a log is read.
    Rows(usize),
    /// What was read of a log last is read again.
    Again(usize, usize),
    /// What is held is forgotten, and everything is read again.
    Restart,
}

/// What coordinators do that they should not.
#[derive(Clone, Copy, Debug, Default)]
struct Manners {
    /// They use names again.
    reuses: bool,
    /// They commit before all is prepared.
    hastens: bool,
}

fn events(restarts: u32) -> impl Strategy<Value = Vec<Event>> {
    let step = (
        0..SESSIONS,
        prop::array::uniform3(any::<bool>()),
        prop::array::uniform3(0..KEYS),
        0..DATABASES,
        prop::bool::weighted(0.1),
    );
    let event = prop_oneof![
        6 => step.prop_map(|(session, databases, keys, which, fails)| {
            Event::Step { session, databases, keys, which, fails }
        }),
        5 => (0..DATABASES).prop_map(Event::Read),
        2 => prop::bool::weighted(0.8).prop_map(Event::Answer),
        1 => (0..DATABASES).prop_map(Event::Rows),
        1 => ((0..DATABASES), (0..9_usize)).prop_map(|(at, back)| Event::Again(at, back)),
    ];
    let event = prop_oneof![
        150 => event,
        restarts => Just(Event::Restart),
    ];
    prop::collection::vec(event, 0..400)
}

#[derive(Clone, Debug)]
enum Record {
    Prepare(Arc<str>),
    Commit {
        branch: Option<(Arc<str>, Lsn)>,
        number: usize,
    },
    RollBack(Arc<str>, Lsn),
}

#[derive(Default)]
struct Database {
    log: Vec<(Lsn, Record)>,
    read: usize,
    furthest: usize,
    /// By key, the session that has it locked.
    locks: [Option<usize>; KEYS],
}

impl Database {
    fn end(&self) -> Lsn {
        Lsn(self.log.len() as u64 * 10 + 5)
    }

    /// A place to read on from, at or before the record with this number: nothing that is prepared there has not ended.
    fn again(&self, from: usize) -> usize {
        let mut from = from;
        for (_, record) in self.log[from..self.read].iter().rev() {
            let (Record::Commit {
                branch: Some((_, prepared)),
                ..
            }
            | Record::RollBack(_, prepared)) = record
            else {
                continue;
            };
            from = from.min(prepared.0 as usize / 10 - 1);
        }
        from
    }

    fn write(&mut self, record: Record) -> Lsn {
        let lsn = Lsn((self.log.len() as u64 + 1) * 10);
        self.log.push((lsn, record));
        lsn
    }
}

/// A transaction that is under way.
struct Session {
    number: usize,
    global: Option<Arc<str>>,
    /// Database, key, and where it was prepared.
    branches: Vec<(usize, usize, Option<Lsn>)>,
    /// Branches that have ended.
    ended: Vec<usize>,
    fails: bool,
}

/// What committed, in the end.
#[derive(Clone, Debug)]
struct Done {
    /// Database, key, prepared, committed.
    branches: Vec<(usize, usize, Lsn, Lsn)>,
}

#[derive(Default)]
struct World {
    databases: [Database; DATABASES],
    sessions: HashMap<usize, Session>,
    done: Vec<Done>,
    order: Order,
    asked: VecDeque<Ticket>,
    out: Vec<Vec<Unit>>,
    manners: Manners,
    gone: [BTreeSet<Position>; DATABASES],
    /// By source and number, how many records were read before.
    rows: HashMap<(usize, u64), usize>,
    /// What passes by rows; `None`: everything may have changed any row.
    keys: Option<()>,
    /// Units that wait for a branch.
    undecided: VecDeque<u64>,
}

impl World {
    fn new(manners: Manners) -> Self {
        World {
            order: Order::new(vec![Reach::default(); DATABASES]).with_rows(),
            manners,
            ..World::default()
        }
    }

    fn play(&mut self, event: Event) {
        match event {
            Event::Step {
                session,
                databases,
                keys,
                which,
                fails,
            } => {
                if self.sessions.contains_key(&session) {
                    self.step(session, which, fails && self.manners.hastens);
                } else {
                    self.begin(session, databases, keys, fails);
                }
            }
            Event::Read(at) => self.read(at),
            Event::Answer(true) => self.answer(),
            Event::Answer(false) => {
                if let Some(ticket) = self.asked.pop_front() {
                    self.order.fenced(ticket, None);
                }
            }
            Event::Rows(at) => {
                let database = &self.databases[at];
                // What is read again comes to no rows before it comes to what is new.
                if database.read == database.furthest {
                    let number = self.order.rows(at, true);
                    self.rows.insert((at, number), database.read);
                }
            }
            Event::Again(at, back) => {
                let read = self.databases[at].read;
                // What was prepared and has not ended is told again with the rest.
                self.databases[at].read = match back {
                    0 => 0,
                    back => self.databases[at].again(read.saturating_sub(back)),
                };
            }
            Event::Restart => {
                self.rows.clear();
                let reaches: Vec<Reach> = (0..DATABASES).map(|at| self.order.reach(at)).collect();
                self.order = Order::new(vec![Reach::default(); DATABASES]).with_rows();
                for (at, reach) in reaches.into_iter().enumerate() {
                    let held = Progress::new(reach.upto, reach.ahead).and_spans(reach.spans);
                    self.order.went_on(at, &held);
                }
                self.asked.clear();
                self.undecided.clear();
                for database in &mut self.databases {
                    database.read = 0;
                }
            }
        }
        self.ask();
        self.go_on();
    }

    fn begin(
        &mut self,
        session: usize,
        databases: [bool; DATABASES],
        keys: [usize; DATABASES],
        fails: bool,
    ) {
        let branches: Vec<(usize, usize, Option<Lsn>)> = (0..DATABASES)
            .filter(|at| databases[*at])
            .map(|at| (at, keys[at], None))
            .collect();
        // All locks at once: whom one is missing comes another time.
        let is_free =
            |(at, key, _): &(usize, usize, Option<Lsn>)| self.databases[*at].locks[*key].is_none();
        if branches.is_empty() || !branches.iter().all(is_free) {
            return;
        }
        for (at, key, _) in &branches {
            self.databases[*at].locks[*key] = Some(session);
        }
        let number = self.done.len();
        self.done.push(Done {
            branches: Vec::new(),
        });
        let is_global = branches.len() > 1;
        self.sessions.insert(
            session,
            Session {
                number,
                global: is_global.then(|| match self.manners.reuses {
                    true => format!("g{}", number % 3).into(),
                    false => format!("g{number}").into(),
                }),
                branches,
                ended: Vec::new(),
                fails,
            },
        );
    }

    fn step(&mut self, at: usize, which: usize, hastens: bool) {
        let Some(session) = self.sessions.get_mut(&at) else {
            return;
        };
        let Some(global) = session.global.clone() else {
            let (database, key, _) = session.branches[0];
            let number = session.number;
            let database = &mut self.databases[database];
            let lsn = database.write(Record::Commit {
                branch: None,
                number,
            });
            database.locks[key] = None;
            self.done[number]
                .branches
                .push((session.branches[0].0, key, lsn, lsn));
            self.sessions.remove(&at);
            return;
        };
        let unprepared: Vec<usize> = (0..session.branches.len())
            .filter(|branch| session.branches[*branch].2.is_none())
            .collect();
        let prepared_open: Vec<usize> = (0..session.branches.len())
            .filter(|branch| {
                session.branches[*branch].2.is_some() && !session.ended.contains(branch)
            })
            .collect();
        let hastens = hastens && !session.fails && !prepared_open.is_empty();
        if !unprepared.is_empty() && !hastens {
            let branch = &mut session.branches[unprepared[which % unprepared.len()]];
            branch.2 = Some(self.databases[branch.0].write(Record::Prepare(global)));
            return;
        }
        let branch = prepared_open[which % prepared_open.len()];
        let (database, key, prepared) = session.branches[branch];
        let prepared = prepared.expect("all are");
        let number = session.number;
        if session.fails {
            self.databases[database].write(Record::RollBack(global, prepared));
        } else {
            let lsn = self.databases[database].write(Record::Commit {
                branch: Some((global, prepared)),
                number,
            });
            self.done[number]
                .branches
                .push((database, key, prepared, lsn));
        }
        self.databases[database].locks[key] = None;
        session.ended.push(branch);
        if session.ended.len() == session.branches.len() {
            self.sessions.remove(&at);
        }
    }

    /// The next record of a log, or that there is none.
    fn read(&mut self, at: usize) {
        let database = &mut self.databases[at];
        let Some((lsn, record)) = database.log.get(database.read).cloned() else {
            let end = database.end();
            self.order.read(at, end);
            return;
        };
        database.read += 1;
        database.furthest = database.furthest.max(database.read);
        match record {
            Record::Prepare(global) => {
                self.order.prepared(at, &global, lsn);
            }
            Record::RollBack(global, prepared) => {
                self.order.rolled_back(at, &global, prepared);
            }
            Record::Commit { branch, number } => {
                let branches = self.done[number].branches.iter();
                let mut keys = branches.filter(|one| (one.0, one.3) == (at, lsn));
                let key = keys
                    .next()
                    .map(|one| one.1 as u64)
                    .filter(|_| self.keys.is_some());
                self.order.committed(Committed {
                    source: at,
                    place: whole(lsn.0),
                    end: Lsn(lsn.0 + 5),
                    branch,
                    keys: key.map_or(Keys::Any, |key| Keys::These([key].into())),
                });
            }
        }
    }

    /// All that can. What is written of it says exactly what has gone on, at each of its members.
    fn go_on(&mut self) {
        while let Some(step) = self.order.release() {
            let units = step.iter().filter(|unit| unit.rows.is_none());
            let mut members: Vec<Member> = units.flat_map(|unit| unit.members.clone()).collect();
            members.sort_by_key(|member| (member.source, member.early, member.place));
            for (at, member) in members.iter().enumerate() {
                let later = members[at + 1..].iter();
                let later = later.filter(|other| other.source == member.source);
                let later: Vec<Position> = later.map(|other| other.place).collect();
                let progress = match member.early {
                    true => self
                        .order
                        .standing_early(member.source, &later)
                        .with_early(member.place),
                    false => self
                        .order
                        .standing(member.source, member.place, &later)
                        .with(member.place),
                };
                assert_eq!(member.early, progress.holds_early(member.place));
                let gone = &mut self.gone[member.source];
                gone.insert(member.place);
                for (lsn, record) in &self.databases[member.source].log {
                    let place = whole(lsn.0);
                    if matches!(record, Record::Commit { .. }) {
                        assert_eq!(
                            progress.holds(place),
                            gone.contains(&place),
                            "{place} in {progress}"
                        );
                    }
                }
            }
            self.out.push(step);
        }
        self.undecided.extend(self.order.undecided());
    }

    fn ask(&mut self) {
        self.asked.extend(self.order.wanted());
    }

    fn answer(&mut self) {
        if let Some(ticket) = self.asked.pop_front() {
            let ends: Vec<Lsn> = self.databases.iter().map(Database::end).collect();
            self.order.fenced(ticket, Some(&ends));
        }
    }

    /// Everybody ends what is begun, and everything is read.
    fn end(&mut self) {
        while let Some(at) = self.sessions.keys().next().copied() {
            self.step(at, 0, false);
        }
        for at in 0..DATABASES {
            while self.databases[at].read < self.databases[at].log.len() {
                self.read(at);
            }
        }
        self.ask();
        while !self.asked.is_empty() {
            self.answer();
        }
        for at in 0..DATABASES {
            self.read(at);
        }
        self.go_on();
    }

    /// Whose transaction a unit is.
    fn number(&self, unit: &Unit) -> usize {
        let member = &unit.members[0];
        let found =
            self.databases[member.source]
                .log
                .iter()
                .find_map(|(lsn, record)| match record {
                    Record::Commit { number, .. } if *lsn == member.place.commit => Some(*number),
                    _ => None,
                });
        found.expect("somebody's")
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_prefix_is_whole_and_in_order_and_all_arrives(events in events(0)) {
        let mut world = World::new(Manners::default());
        let mut reaches: Vec<[Reach; DATABASES]> = Vec::new();
        for event in events {
            world.play(event);
            reaches.push([0, 1, 2].map(|at| world.order.reach(at)));
        }
        world.end();
        prop_assert_eq!(world.order.held(), 0);
        prop_assert_eq!(world.order.late(), 0);

        prop_assert!(world.out.iter().all(|step| step.len() == 1));
        // Rows go on behind all that was read before them, and before the rest.
        let mut passed = [0; DATABASES];
        for unit in world.out.iter().flatten() {
            let member = unit.members[0];
            match unit.rows {
                Some(_) if unit.displaced => {}
                Some(number) => {
                    let read = world.rows[&(member.source, number)];
                    let log = &world.databases[member.source].log[..read];
                    let committed = log.iter().filter(|(_, record)| matches!(record, Record::Commit { .. }));
                    prop_assert_eq!(passed[member.source], committed.count());
                }
                None => unit.members.iter().for_each(|member| passed[member.source] += 1),
            }
        }
        world.out.retain(|step| step[0].rows.is_none());

        let out: Vec<Unit> = world.out.iter().flatten().cloned().collect();
        let numbers: Vec<usize> = out.iter().map(|unit| world.number(unit)).collect();
        let committed = (0..world.done.len()).filter(|number| !world.done[*number].branches.is_empty());
        let mut sorted = numbers.clone();
        sorted.sort_unstable();
        prop_assert_eq!(sorted, committed.collect::<Vec<_>>(), "each once");
        for (unit, number) in out.iter().zip(&numbers) {
            let mut members: Vec<(usize, Lsn)> =
                unit.members.iter().map(|member| (member.source, member.place.commit)).collect();
            let mut branches: Vec<(usize, Lsn)> =
                world.done[*number].branches.iter().map(|branch| (branch.0, branch.3)).collect();
            members.sort_unstable();
            branches.sort_unstable();
            prop_assert_eq!(members, branches, "all branches");
            prop_assert!(!unit.mixed && !unit.late);
        }
        // Nobody goes before one that he may have seen.
        for (at, later) in numbers.iter().enumerate() {
            for earlier in &numbers[..at] {
                for (database, _, prepared, _) in &world.done[*earlier].branches {
                    for (other, _, _, commit) in &world.done[*later].branches {
                        prop_assert!(database != other || commit >= prepared);
                    }
                }
            }
        }
        // What belongs to one key is in the order of its commits.
        for database in 0..DATABASES {
            for key in 0..KEYS {
                let commits: Vec<Lsn> = numbers.iter()
                    .flat_map(|number| &world.done[*number].branches)
                    .filter(|branch| (branch.0, branch.1) == (database, key))
                    .map(|branch| branch.3)
                    .collect();
                prop_assert!(commits.is_sorted(), "{:?}", commits);
            }
            let reach = world.order.reach(database);
            let through = world.databases[database].end();
            prop_assert_eq!(reach.through, through);
            prop_assert!(reach.ahead.is_empty());
        }
        for pair in reaches.windows(2) {
            for (before, after) in std::iter::zip(&pair[0], &pair[1]) {
                prop_assert!(before.through <= after.through);
            }
        }
    }

    #[test]
    fn what_is_reached_is_what_went_on(events in events(1)) {
        let mut world = World::new(Manners::default());
        for event in events {
            let restarts = matches!(event, Event::Restart);
            world.play(event);
            if restarts {
                continue;
            }
            for (at, database) in world.databases.iter().enumerate() {
                let reach = world.order.reach(at);
                let went = |commit: Lsn| world.out.iter().flatten().filter(|unit| unit.rows.is_none()).flat_map(|unit| &unit.members)
                    .any(|member| (member.source, member.place.commit) == (at, commit));
                for (lsn, record) in &database.log[..database.read] {
                    if matches!(record, Record::Commit { .. }) {
                        let reached = lsn.0 + 5 <= reach.through.0 || reach.ahead.contains(&whole(lsn.0))
                            || reach.spans.iter().any(|(from, to)| (*from..=*to).contains(&whole(lsn.0)));
                        prop_assert_eq!(reached, went(*lsn), "{} by {:?}", lsn, reach);
                    }
                }
            }
        }
    }

    #[test]
    fn whatever_coordinators_do_everything_goes_on_once_and_in_order_of_its_keys(
        events in events(2),
        reuses in any::<bool>(),
        hastens in any::<bool>(),
    ) {
        let mut world = World::new(Manners { reuses, hastens });
        for event in events {
            world.play(event);
        }
        world.end();
        prop_assert_eq!(world.order.held(), 0);
        for step in &mut world.out {
            step.retain(|unit| unit.rows.is_none());
        }
        let mut went: Vec<(usize, Lsn)> = Vec::new();
        for step in &world.out {
            let members = step.iter().flat_map(|unit| &unit.members);
            let mut members: Vec<_> = members.map(|member| (member.source, member.place.commit)).collect();
            members.sort_unstable();
            went.extend(members);
        }
        let branches = world.done.iter().flat_map(|done| &done.branches);
        let keys: HashMap<(usize, Lsn), usize> =
            branches.map(|branch| ((branch.0, branch.3), branch.1)).collect();
        prop_assert_eq!(went.len(), keys.len(), "each once");
        let mut last: HashMap<(usize, usize), Lsn> = HashMap::new();
        for place in went {
            let key = (place.0, keys[&place]);
            let before = last.insert(key, place.1);
            prop_assert!(before < Some(place.1), "{:?} behind {:?}", place, before);
        }
        if !hastens && !reuses {
            prop_assert_eq!(world.order.late(), 0);
        }
    }

    #[test]
    fn a_restart_doubles_and_breaks_nothing(events in events(3)) {
        let mut world = World::new(Manners::default());
        for event in events {
            world.play(event);
        }
        world.end();
        let out = world.out.iter().flatten().filter(|unit| unit.rows.is_none());
        let out: Vec<Unit> = out.cloned().collect();
        let numbers: Vec<usize> = out.iter().map(|unit| world.number(unit)).collect();
        for (unit, number) in out.iter().zip(&numbers) {
            prop_assert_eq!(unit.members.len(), world.done[*number].branches.len(), "whole");
        }
        let mut sorted = numbers;
        sorted.sort_unstable();
        let committed = (0..world.done.len()).filter(|number| !world.done[*number].branches.is_empty());
        prop_assert_eq!(sorted, committed.collect::<Vec<_>>(), "each once");
    }
}

fn name(text: &str) -> Arc<str> {
    text.into()
}

fn whole(commit: u64) -> Position {
    Position {
        commit: Lsn(commit),
        ordinal: u64::MAX,
    }
}

/// All that goes on now.
fn released(order: &mut Order) -> Vec<Vec<Unit>> {
    std::iter::from_fn(|| order.release()).collect()
}

fn commit(source: usize, at: u64, branch: Option<(&str, u64)>) -> Committed {
    Committed {
        source,
        place: whole(at),
        end: Lsn(at + 5),
        branch: branch.map(|(global, prepared)| (name(global), Lsn(prepared))),
        keys: Keys::Any,
    }
}

/// With an answer to what is wanted: everything is read up to `read`.
fn settle(order: &mut Order, read: u64) {
    if let Some(ticket) = order.wanted() {
        order.fenced(ticket, Some(&[Lsn(read), Lsn(read)]));
    }
    order.read(0, Lsn(read));
    order.read(1, Lsn(read));
}
