//! Two databases in memory, and clients that write into both in two phases. They go on whenever somebody asks a database.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use lockstep_core::Result;
use lockstep_core::query::{
    Ending, Finish, InDoubt, InProgress, Queries, QueryColumn, QuerySession, Question, Row,
    Snapshot, XactStatus,
};

pub fn text(text: &str) -> Option<String> {
    Some(text.to_owned())
}

/// Rows of one key: quantity and version.
type State = BTreeMap<String, Vec<(i64, u64)>>;

#[derive(Clone, Debug)]
struct Branch {
    xid: u64,
    gid: Option<String>,
    key: String,
    rows: Vec<(i64, u64)>,
}

#[derive(Default)]
struct Side {
    rows: State,
    open: Vec<Branch>,
    next: u64,
}

/// A global transaction: what is to be done in each database, and how far that is.
struct Global {
    number: u64,
    key: String,
    rows: [Vec<(i64, u64)>; 2],
    /// By database: 0 not begun, 1 begun, 2 prepared, 3 ended.
    stage: [u8; 2],
    /// Decided to be rolled back.
    aborts: bool,
    /// Stays where it is, most times.
    slow: bool,
}

struct Inner {
    random: u64,
    sides: Vec<Side>,
    globals: Vec<Global>,
    numbers: u64,
    micros: i64,
    still: bool,
    /// Nobody touches these.
    ruined: BTreeSet<String>,
    restless: Option<String>,
    /// See [`World::straddle`].
    straddle: Option<String>,
    answer: Option<Vec<Row>>,
}

/// See the module's page. Clones share it.
#[derive(Clone)]
pub struct World(Arc<Mutex<Inner>>);

impl Inner {
    fn below(&mut self, most: u64) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) % most
    }

    fn begin(&mut self, side: usize, key: &str, rows: &[(i64, u64)]) -> u64 {
        let side = &mut self.sides[side];
        side.next += 1;
        side.open.push(Branch {
            xid: side.next,
            gid: None,
            key: key.to_owned(),
            rows: rows.to_vec(),
        });
        side.next
    }

    fn branch(&mut self, side: usize, key: &str) -> Option<usize> {
        self.sides[side].open.iter().position(|one| one.key == key)
    }

    fn end(&mut self, side: usize, key: &str, aborts: bool) {
        let Some(at) = self.branch(side, key) else {
            return;
        };
        let side = &mut self.sides[side];
        let branch = side.open.remove(at);
        if aborts {
            return;
        }
        match branch.rows.is_empty() {
            true => drop(side.rows.remove(&branch.key)),
            false => drop(side.rows.insert(branch.key, branch.rows)),
        }
    }

    /// Something happens.
    fn act(&mut self) {
        let busy: BTreeSet<&str> = self.globals.iter().map(|one| &*one.key).collect();
        if self.globals.len() < 8 {
            self.numbers += 1;
            let number = self.numbers;
            let known: Vec<String> = self.sides[0]
                .rows
                .keys()
                .filter(|key| !busy.contains(&***key) && !self.ruined.contains(*key))
                .cloned()
                .collect();
            let (key, rows) = match self.below(4) {
                // A shelf, which goes up and down.
                0 => {
                    let key = format!("shelf{}", self.below(3));
                    let quantity = self.below(4) as i64;
                    let rows = vec![(quantity, number)];
                    (key, [rows.clone(), rows])
                }
                1 if !known.is_empty() => {
                    let key = known[self.below(known.len() as u64) as usize].clone();
                    (key, [Vec::new(), Vec::new()])
                }
                _ => {
                    let quantity = 1 + self.below(5) as i64;
                    let split = vec![(1, number), (quantity, number)];
                    (format!("o{number}"), [vec![(quantity + 1, number)], split])
                }
            };
            if self.globals.iter().all(|one| one.key != key) {
                let (aborts, slow) = (self.below(5) == 0, self.below(4) == 0);
                self.globals.push(Global {
                    number,
                    key,
                    rows,
                    stage: [0; 2],
                    aborts,
                    slow,
                });
            }
        }
        if self.globals.is_empty() {
            return;
        }
        let at = self.below(self.globals.len() as u64) as usize;
        if self.globals[at].slow && self.below(400) != 0 {
            // Between the phases is where it hurts.
            let stage = self.globals[at].stage;
            if stage.contains(&3) {
                return;
            }
        }
        self.advance(at);
    }

    fn advance(&mut self, at: usize) {
        let side = self.below(2) as usize;
        let global = &self.globals[at];
        let (key, rows) = (global.key.clone(), global.rows[side].clone());
        let other = global.stage[1 - side];
        let (number, aborts) = (global.number, global.aborts);
        match global.stage[side] {
            0 => {
                self.begin(side, &key, &rows);
            }
            1 => {
                if let Some(at) = self.branch(side, &key) {
                    self.sides[side].open[at].gid = Some(format!("gtx-{number}-{side}"));
                }
            }
            // Phase two, once both are prepared.
            2 if other >= 2 => self.end(side, &key, aborts),
            _ => return,
        }
        self.globals[at].stage[side] += 1;
        if self.globals[at].stage == [3, 3] {
            self.globals.remove(at);
        }
    }

    /// Time passes between two questions.
    fn pass(&mut self, most: u64) {
        self.micros += 100;
        if let Some(key) = self.restless.clone() {
            self.numbers += 1;
            let row = vec![(1, self.numbers)];
            self.sides[0].rows.insert(key, row);
        }
        if !self.still {
            for _ in 0..self.below(most) {
                self.act();
            }
        }
    }
}

impl World {
    pub fn new(seed: u64, sides: usize) -> Self {
        World(Arc::new(Mutex::new(Inner {
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            sides: (0..sides).map(|_| Side::default()).collect(),
            globals: Vec::new(),
            numbers: 0,
            micros: 1_000_000,
            still: sides == 1,
            ruined: BTreeSet::new(),
            restless: None,
            straddle: None,
            answer: None,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("whole")
    }

    pub fn now(&self) -> i64 {
        self.lock().micros
    }

    pub fn pass(&self, time: Duration) {
        self.lock().micros += time.as_micros() as i64;
    }

    pub fn step(&self, times: usize) {
        let mut inner = self.lock();
        (0..times).for_each(|_| inner.act());
    }

    /// Nobody writes any more.
    pub fn still(&self) {
        self.lock().still = true;
    }

    /// A row of a key, committed in one database.
    pub fn put(&self, side: usize, key: &str, quantity: i64) {
        self.lock().sides[side]
            .rows
            .insert(key.to_owned(), vec![(quantity, 0)]);
    }

    /// A branch that is prepared, and nobody goes on with.
    pub fn prepare(&self, side: usize, gid: &str, key: &str, quantity: i64) {
        let mut inner = self.lock();
        inner.begin(side, key, &[(quantity, 0)]);
        let at = inner.branch(side, key).expect("there");
        inner.sides[side].open[at].gid = Some(gid.to_owned());
    }

    /// The key's row changes whenever somebody looks.
    pub fn restless(&self, key: &str) {
        let mut inner = self.lock();
        inner.restless = Some(key.to_owned());
        inner.still = true;
    }

    /// As soon as the first database has taken a snapshot, a branch is prepared in it, and its sibling in the second database
    /// committed.
    pub fn straddle(&self, key: &str) {
        self.lock().straddle = Some(key.to_owned());
    }

    /// What the first database answers from now on.
    pub fn answer(&self, rows: Vec<Row>) {
        self.lock().answer = Some(rows);
    }

    /// All that is prepared by itself is rolled back.
    pub fn abort(&self) {
        let inner = &mut *self.lock();
        inner.sides.iter_mut().for_each(|side| side.open.clear());
    }

    /// All come to their end, and nobody begins anything.
    pub fn finish(&self) {
        let mut inner = self.lock();
        inner.still = true;
        while !inner.globals.is_empty() {
            let open = inner.globals.len() as u64;
            let at = inner.below(open) as usize;
            inner.advance(at);
        }
        for side in 0..inner.sides.len() {
            while let Some(branch) = inner.sides[side].open.first() {
                let key = branch.key.clone();
                inner.end(side, &key, false);
            }
        }
    }

    /// Breaks some orders in one of the databases, which nobody touches from then on; their keys.
    pub fn ruin(&self) -> Vec<String> {
        let inner = &mut *self.lock();
        let busy: BTreeSet<String> = inner.globals.iter().map(|one| one.key.clone()).collect();
        let idle = |key: &&String| !busy.contains(*key) && key.starts_with('o');
        let known: Vec<String> = inner.sides[0].rows.keys().filter(idle).cloned().collect();
        let ruined: Vec<String> = known.into_iter().take(3).collect();
        for (at, key) in ruined.iter().enumerate() {
            if at % 2 == 0 {
                inner.sides[0].rows.remove(key);
            } else {
                inner.sides[1].rows.remove(key);
            }
            inner.ruined.insert(key.clone());
        }
        let mut ruined = ruined;
        ruined.sort();
        ruined
    }
}

/// One of the databases.
pub struct Database {
    world: World,
    side: usize,
}

impl Database {
    pub fn new(world: &World, side: usize) -> Self {
        Database {
            world: world.clone(),
            side,
        }
    }
}

fn columns() -> Vec<QueryColumn> {
    let column = |name: &str| QueryColumn {
        name: name.to_owned(),
        kind: "int8".to_owned(),
        exact: true,
    };
    ["id", "quantity", "version"].map(column).to_vec()
}

#[async_trait]
impl Queries for Database {
    async fn describe(&self, _query: &str) -> Result<Vec<QueryColumn>> {
        Ok(columns())
    }

    async fn open(&self, _timeout: Duration) -> Result<Box<dyn QuerySession>> {
        self.world.lock().pass(60);
        Ok(Box::new(Session {
            world: self.world.clone(),
            side: self.side,
            frozen: State::new(),
            rows: Vec::new(),
        }))
    }

    async fn in_doubt(&self) -> Result<Vec<InDoubt>> {
        unreachable!("nobody lists them here")
    }

    async fn finish(&self, _: &InDoubt, _: Ending) -> Result<Finish> {
        unreachable!("nobody asks here")
    }

    async fn xact_status(&self, _: u32) -> Result<XactStatus> {
        unreachable!("nobody asks here")
    }
}

struct Session {
    world: World,
    side: usize,
    frozen: State,
    rows: Vec<Row>,
}

#[async_trait]
impl QuerySession for Session {
    async fn freeze(&mut self) -> Result<Snapshot> {
        let mut world = self.world.lock();
        world.pass(12);
        let side = &world.sides[self.side];
        self.frozen = side.rows.clone();
        let running: Vec<u64> = side.open.iter().map(|one| one.xid).collect();
        let snapshot = Snapshot {
            xmin: running.iter().min().copied().unwrap_or(side.next + 1),
            xmax: side.next + 1,
            running,
        };
        drop(world);
        let straddle = self.world.lock().straddle.take();
        if let Some(key) = straddle {
            self.world.prepare(0, "straddler", &key, 1);
            self.world.put(1, &key, 1);
        }
        Ok(snapshot)
    }

    async fn in_progress(&mut self) -> Result<Vec<InProgress>> {
        let mut world = self.world.lock();
        world.pass(12);
        let open = world.sides[self.side].open.iter().map(|one| InProgress {
            xid: one.xid,
            gid: one.gid.clone(),
            prepared_micros: one.gid.as_ref().map(|_| 1),
        });
        Ok(open.collect())
    }

    async fn begin(&mut self, question: &Question<'_>) -> Result<Vec<QueryColumn>> {
        let mut world = self.world.lock();
        world.pass(12);
        let only = |key: &String| {
            let only = question.only;
            only.is_none_or(|only| only.iter().any(|one| one[0] == *key))
        };
        let row = |key: &String, (quantity, version): &(i64, u64)| {
            vec![
                text(key),
                Some(quantity.to_string()),
                Some(version.to_string()),
            ]
        };
        let keys = self.frozen.iter().filter(|(key, _)| only(key));
        let mut rows: Vec<Row> = keys
            .flat_map(|(key, rows)| rows.iter().map(move |one| row(key, one)))
            .collect();
        // Any order is one within a key.
        if world.below(2) == 0 {
            rows.reverse();
            rows.sort_by(|one, two| one[0].cmp(&two[0]));
        }
        if let (0, Some(answer)) = (self.side, &world.answer) {
            rows = answer.clone();
            rows.iter_mut().for_each(|row| row.push(text("0")));
        }
        rows.reverse();
        self.rows = rows;
        Ok(columns())
    }

    async fn next(&mut self) -> Result<Vec<Row>> {
        let mut world = self.world.lock();
        let most = 1 + world.below(5) as usize;
        let rest = self.rows.len().saturating_sub(most);
        Ok(self.rows.drain(rest..).rev().collect())
    }
}
