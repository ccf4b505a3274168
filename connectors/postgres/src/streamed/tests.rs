//! Random schedules, sent by a model of the server with and without streaming, in one phase and in two, and compared.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use bytes::Bytes;
use lockstep_core::batch::{Batch, CellRef, Op};
use lockstep_core::position::{SourceIdentity, SourceInfo};
use lockstep_core::schema::{Column, TableSchema};
use proptest::prelude::*;

use super::spool::Spools;
use super::*;
use crate::assemble::{Assembler, Step};

/// What a session does next.
#[derive(Clone, Debug)]
enum Act {
    Row(u32),
    Message,
    Savepoint,
    Release,
    RollBack,
    Commit,
    Abort,
    Prepare,
}

/// What happens next.
#[derive(Clone, Debug)]
enum Event {
    /// A session does something.
    Session(usize, Act),
    /// The server sends what it has of the transaction of a session.
    Stream(usize),
    /// A relation has another shape for what is sent from now on.
    Reshape(u32),
    /// One of those that are prepared commits, or is rolled back.
    Decide(usize, bool),
}

const RELATIONS: u32 = 2;

fn events(messages: u32, prepares: u32) -> impl Strategy<Value = Vec<Event>> {
    let act = prop_oneof![
        20 => (0..RELATIONS).prop_map(Act::Row),
        messages => Just(Act::Message),
        5 => Just(Act::Savepoint),
        2 => Just(Act::Release),
        3 => Just(Act::RollBack),
        2 => Just(Act::Commit),
        1 => Just(Act::Abort),
        prepares => Just(Act::Prepare),
    ];
    let event = prop_oneof![
        30 => (0..3_usize, act).prop_map(|(session, act)| Event::Session(session, act)),
        10 => (0..3_usize).prop_map(Event::Stream),
        1 => (0..RELATIONS).prop_map(Event::Reshape),
        prepares => (0..3_usize, any::<bool>()).prop_map(|(at, commits)| Event::Decide(at, commits)),
    ];
    prop::collection::vec(event, 0..200)
}

#[derive(Clone, Debug)]
struct Change {
    xid: u32,
    /// `None`: a message.
    relation: Option<u32>,
    value: u64,
    lsn: u64,
}

/// A transaction on the server.
struct Session {
    xid: u32,
    /// Open subtransactions, each with the ones released into it.
    open: Vec<Vec<u32>>,
    /// Not sent yet.
    waiting: Vec<Change>,
    /// All that is not rolled back.
    live: Vec<Change>,
    streamed: bool,
    sent: BTreeSet<u32>,
}

/// Sends what a server would.
#[derive(Default)]
struct Server {
    lsn: u64,
    xid: u32,
    values: u64,
    sessions: BTreeMap<usize, Session>,
    /// With the places where they were prepared.
    prepared: Vec<(u64, Session)>,
    shapes: BTreeMap<u32, u16>,
    /// Shapes sent outside of pieces.
    known: HashSet<u32>,
    /// Shapes sent inside, by transaction.
    known_in: HashSet<(u32, u32)>,
    out: Vec<(u64, Vec<u8>)>,
    /// What should arrive: commit, ordinal and value.
    expected: Vec<(u64, u64, u64)>,
}

impl Server {
    fn play(&mut self, event: Event) {
        self.lsn += 10;
        match event {
            Event::Reshape(relation) => {
                *self.shapes.entry(relation).or_insert(1) += 1;
                self.known.remove(&relation);
                self.known_in.retain(|(_, known)| *known != relation);
            }
            Event::Stream(at) => self.stream(at),
            Event::Session(at, act) => self.act(at, &act),
            Event::Decide(at, commits) if at < self.prepared.len() => self.decide(at, commits),
            Event::Decide(..) => {}
        }
    }

    fn act(&mut self, at: usize, act: &Act) {
        if !self.sessions.contains_key(&at) {
            self.xid += 1;
            let session = Session {
                xid: self.xid,
                open: Vec::new(),
                waiting: Vec::new(),
                live: Vec::new(),
                streamed: false,
                sent: BTreeSet::new(),
            };
            self.sessions.insert(at, session);
        }
        let Some(session) = self.sessions.get_mut(&at) else {
            return;
        };
        match *act {
            Act::Row(_) | Act::Message => {
                self.values += 1;
                let change = Change {
                    xid: *session
                        .open
                        .last()
                        .and_then(|ids| ids.first())
                        .unwrap_or(&session.xid),
                    relation: match *act {
                        Act::Row(relation) => Some(relation),
                        _ => None,
                    },
                    value: self.values,
                    lsn: self.lsn,
                };
                session.waiting.push(change.clone());
                session.live.push(change);
            }
            Act::Savepoint => {
                self.xid += 1;
                session.open.push(vec![self.xid]);
            }
            Act::Release => {
                let Some(released) = session.open.pop() else {
                    return;
                };
                if let Some(parent) = session.open.last_mut() {
                    parent.extend(released);
                }
            }
            Act::RollBack => {
                let Some(ids) = session.open.pop() else {
                    return;
                };
                session.waiting.retain(|change| !ids.contains(&change.xid));
                session.live.retain(|change| !ids.contains(&change.xid));
                let xid = session.xid;
                // Children first, as the log has them.
                for subxid in ids[1..].iter().chain(&ids[..1]) {
                    if session.sent.remove(subxid) {
                        self.out.push((self.lsn, ended(b'A', xid, *subxid)));
                        self.known_in.retain(|(known, _)| *known != xid);
                    }
                }
            }
            Act::Commit => self.commit(at),
            Act::Prepare => self.prepare(at),
            Act::Abort => {
                if let Some(session) = self.sessions.remove(&at)
                    && session.streamed
                {
                    self.out
                        .push((self.lsn, ended(b'A', session.xid, session.xid)));
                    self.known_in.retain(|(known, _)| *known != session.xid);
                }
            }
        }
    }

    fn stream(&mut self, at: usize) {
        let Some(session) = self.sessions.get_mut(&at) else {
            return;
        };
        let (xid, first) = (session.xid, !session.streamed);
        session.streamed = true;
        let waiting = std::mem::take(&mut session.waiting);
        session.sent.extend(waiting.iter().map(|change| change.xid));
        let mut start = ended(b'S', xid, 0);
        start.truncate(5);
        start.push(u8::from(first));
        self.out.push((0, start));
        for change in waiting {
            self.change(&change, Some(xid));
        }
        self.out.push((0, vec![b'E']));
    }

    fn commit(&mut self, at: usize) {
        if self
            .sessions
            .get(&at)
            .is_some_and(|session| session.streamed)
        {
            self.stream(at);
        }
        let Some(session) = self.sessions.remove(&at) else {
            return;
        };
        let commit = self.lsn;
        for (ordinal, change) in (1..).zip(&session.live) {
            self.expected.push((commit, ordinal, change.value));
        }
        if session.streamed {
            let mut message = ended(b'c', session.xid, 0);
            message.truncate(5);
            message.push(0);
            message.extend(tail(commit));
            self.out.push((commit, message));
            let xid = session.xid;
            let committed: Vec<u32> = self
                .known_in
                .iter()
                .filter(|(known, _)| *known == xid)
                .map(|(_, relation)| *relation)
                .collect();
            self.known.extend(committed);
            self.known_in.retain(|(known, _)| *known != xid);
        } else if !session.live.is_empty() {
            let mut begin = vec![b'B'];
            begin.extend(commit.to_be_bytes());
            begin.extend(0_i64.to_be_bytes());
            begin.extend(session.xid.to_be_bytes());
            self.out.push((commit, begin));
            for change in &session.live {
                self.change(change, None);
            }
            let mut end = vec![b'C', 0];
            end.extend(tail(commit));
            self.out.push((commit, end));
        }
    }

    fn prepare(&mut self, at: usize) {
        if self.sessions[&at].streamed {
            self.stream(at);
        }
        let Some(session) = self.sessions.remove(&at) else {
            return;
        };
        let (prepared, xid) = (self.lsn, session.xid);
        if session.streamed {
            self.known_in.retain(|(known, _)| *known != xid);
        } else {
            let begin = [&b"b"[..], &tail(prepared), &named(xid)].concat();
            self.out.push((prepared, begin));
            for change in &session.live {
                self.change(change, None);
            }
        }
        let tag = if session.streamed { b"p\0" } else { b"P\0" };
        let end = [&tag[..], &tail(prepared), &named(xid)].concat();
        self.out.push((prepared, end));
        self.prepared.push((prepared, session));
    }

    fn decide(&mut self, at: usize, commits: bool) {
        let (prepared, session) = self.prepared.remove(at);
        let (now, gid) = (tail(self.lsn), named(session.xid));
        if !commits {
            // The end of its PREPARE, that of its end, and two times.
            let ends = [&tail(prepared)[8..16], &now[8..16], &[0; 16]].concat();
            let message = [&b"r\0"[..], &ends, &gid].concat();
            self.out.push((self.lsn, message));
            return;
        }
        for (ordinal, change) in (1..).zip(&session.live) {
            self.expected.push((self.lsn, ordinal, change.value));
        }
        let message = [&b"K\0"[..], &now, &gid].concat();
        self.out.push((self.lsn, message));
    }

    fn change(&mut self, change: &Change, within: Option<u32>) {
        let head = |tag: u8, xid: u32| {
            let mut message = vec![tag];
            if within.is_some() {
                message.extend(xid.to_be_bytes());
            }
            message
        };
        let Some(relation) = change.relation else {
            // In the name of the transaction, whatever subtransaction it belongs to.
            let mut message = head(b'M', within.unwrap_or(0));
            message.push(1);
            message.extend(change.lsn.to_be_bytes());
            message.extend(b"p\0");
            let content = change.value.to_string();
            message.extend((content.len() as u32).to_be_bytes());
            message.extend(content.as_bytes());
            self.out.push((change.lsn, message));
            return;
        };
        let shape = *self.shapes.entry(relation).or_insert(1);
        let described = match within {
            Some(xid) => !self.known_in.insert((xid, relation)),
            None => !self.known.insert(relation),
        };
        if !described {
            let mut message = head(b'R', change.xid);
            message.extend(relation.to_be_bytes());
            message.extend(format!("public\0t{relation}\0d").as_bytes());
            message.extend(1_u16.to_be_bytes());
            message.push(1);
            message.extend(format!("c{shape}\0").as_bytes());
            message.extend(25_u32.to_be_bytes());
            message.extend((-1_i32).to_be_bytes());
            self.out.push((0, message));
        }
        let mut message = head(b'I', change.xid);
        message.extend(relation.to_be_bytes());
        message.extend(b"N\0\x01t");
        let value = format!("t{relation}.c{shape}={}", change.value);
        message.extend((value.len() as u32).to_be_bytes());
        message.extend(value.as_bytes());
        self.out.push((change.lsn, message));
    }
}

fn ended(tag: u8, xid: u32, subxid: u32) -> Vec<u8> {
    [&[tag][..], &xid.to_be_bytes(), &subxid.to_be_bytes()].concat()
}

/// The id of a transaction, and a name that it is prepared by.
fn named(xid: u32) -> Vec<u8> {
    [&xid.to_be_bytes()[..], format!("g{xid}\0").as_bytes()].concat()
}

fn tail(commit: u64) -> Vec<u8> {
    [commit.to_be_bytes(), (commit + 5).to_be_bytes(), [0; 8]].concat()
}

/// Receives what a server sends.
struct Client {
    assembler: Assembler,
    streams: Streams,
    chunk: usize,
    arrived: Vec<(u64, u64, u64)>,
    previous: Option<Lsn>,
    through: Lsn,
}

impl Client {
    fn new(folder: &Path, in_memory: usize, chunk: usize) -> Self {
        let identity = SourceIdentity {
            system: 1,
            timeline: 1,
            incarnation: 0,
            database: "d".into(),
        };
        let info = SourceInfo {
            name: "s".into(),
            identity,
        };
        Client {
            assembler: Assembler::new(Arc::new(info), Lsn(0)),
            streams: Streams::with(Spools::bounded(folder, in_memory, 0)),
            chunk,
            arrived: Vec::new(),
            previous: None,
            through: Lsn(0),
        }
    }

    /// False: in doubt.
    fn take(&mut self, lsn: u64, payload: &[u8]) -> bool {
        let number = self.assembler.number();
        match self
            .streams
            .take(payload, Lsn(lsn), number)
            .expect("in order")
        {
            Taken::Plain => {
                loop {
                    let step = self.assembler.take(payload, 0, payload.len(), Lsn(lsn));
                    if self.step(step.expect("in order")) {
                        break;
                    }
                }
                self.flush(payload.to_vec());
            }
            Taken::Described => {
                let noted = self.assembler.note(payload, number);
                noted.expect("a description");
            }
            Taken::Kept | Taken::Told(_) => {}
            Taken::Committed(committed) => self.replay(*committed),
            Taken::Doubt(_) => return false,
        }
        true
    }

    /// Whether it has been taken.
    fn step(&mut self, step: Step) -> bool {
        let is_taken = !matches!(step, Step::DefineFirst(_));
        if let Step::Define(described) | Step::DefineFirst(described) = step {
            let mut schema = TableSchema::message("s".into());
            schema.id = described.id.clone();
            schema.columns.truncate(1);
            schema.columns[0] = Column {
                name: described.columns[0].0.as_str().into(),
                ..schema.columns[0].clone()
            };
            schema.width = 1;
            self.assembler.define(described, Some(Arc::new(schema)));
        }
        is_taken
    }

    fn replay(&mut self, mut committed: Committed) {
        self.assembler
            .begin_streamed(committed.head.clone(), false)
            .expect("between transactions");
        let end = committed.end;
        let pieces = committed.pieces();
        let (mut block, mut at) = (Vec::new(), 0);
        while !pieces.is_done() {
            let wanted = Pieces::needed(&block, at).saturating_sub(block.len());
            pieces
                .fill(&mut block, wanted.max(self.chunk))
                .expect("readable");
            while let Some(piece) = pieces.next(&block, &mut at) {
                loop {
                    let Piece { start, end, lsn } = piece;
                    let step = self.assembler.take_piece(&block, start, end, lsn);
                    if self.step(step.expect("in order")) {
                        break;
                    }
                }
            }
            let rest = block.split_off(at);
            self.flush(std::mem::replace(&mut block, rest));
            at = 0;
        }
        assert!(block.is_empty());
        self.assembler.end_streamed(end).expect("it has begun");
        self.flush(Vec::new());
    }

    fn flush(&mut self, block: Vec<u8>) {
        let batch = match self.assembler.has_changes() {
            true => Some(self.assembler.flush(Bytes::from(block))),
            false => self.assembler.progress(),
        };
        if let Some(batch) = batch {
            self.look(&batch);
        }
    }

    fn look(&mut self, batch: &Batch) {
        for change in batch.changes() {
            let row = batch.new_row(change).expect("a row");
            let schema = batch.schema(change);
            let text = |at: usize| match row.get(&schema.columns[at]) {
                CellRef::Text(bytes) => String::from_utf8(bytes.to_vec()).expect("text"),
                other => panic!("{other:?}"),
            };
            let value = match change.op {
                Op::Message => text(1),
                _ => {
                    // A row was written by the shape that it is read by.
                    let name = format!("{}.{}=", schema.id.name, schema.columns[0].name);
                    let value = text(0);
                    let value = value.strip_prefix(&name);
                    value
                        .unwrap_or_else(|| panic!("{} by {name}", text(0)))
                        .to_owned()
                }
            };
            let commit = batch.position(change).commit;
            let transaction = batch.transaction(change);
            if let Some(prepared) = &transaction.prepared {
                assert_eq!(*prepared.gid, format!("g{}", transaction.xid));
                assert!(prepared.lsn < commit);
            }
            if change.ordinal == 1 {
                assert_eq!(transaction.previous_commit, self.previous);
                self.previous = Some(commit);
            }
            let value = value.parse().expect("a number");
            self.arrived.push((commit.0, change.ordinal, value));
        }
        if let Some(through) = batch.through {
            assert!(through > self.through);
            self.through = through;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn what_was_streamed_arrives_as_if_it_had_not_been(
        events in prop_oneof![events(0, 0), events(0, 4)],
        in_memory in 0..400_usize,
        chunk in 1..200_usize,
    ) {
        let folder = tempfile::tempdir().expect("a folder");
        let mut server = Server::default();
        let mut client = Client::new(folder.path(), in_memory, chunk);
        for event in events {
            server.play(event);
            for (lsn, payload) in server.out.drain(..) {
                prop_assert!(client.take(lsn, &payload), "no messages, no doubt");
            }
            let first = server.prepared.iter().map(|(lsn, _)| Lsn(*lsn)).min();
            prop_assert_eq!(client.streams.hold(Lsn(u64::MAX)), first);
            prop_assert_eq!(client.streams.in_doubt().count, server.prepared.len() as u64);
        }
        prop_assert_eq!(&client.arrived, &server.expected);
        for session in 0..3 {
            server.act(session, &Act::Abort);
        }
        while !server.prepared.is_empty() {
            server.decide(0, false);
        }
        for (lsn, payload) in server.out.drain(..) {
            prop_assert!(client.take(lsn, &payload));
        }
        prop_assert_eq!((client.streams.len(), client.streams.kept()), (0, 0));
    }

    #[test]
    fn messages_are_right_or_in_doubt(events in events(3, 2), chunk in 1..200_usize) {
        let folder = tempfile::tempdir().expect("a folder");
        let mut server = Server::default();
        let mut client = Client::new(folder.path(), 100, chunk);
        for event in events {
            server.play(event);
            for (lsn, payload) in server.out.drain(..) {
                if !client.take(lsn, &payload) {
                    prop_assert!(server.expected.starts_with(&client.arrived));
                    return Ok(());
                }
            }
        }
        prop_assert_eq!(&client.arrived, &server.expected);
    }
}

fn play(events: &[Event]) -> (Vec<(u64, Vec<u8>)>, Client, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let client = Client::new(folder.path(), 0, 10);
    let mut server = Server::default();
    for event in events {
        server.play(event.clone());
    }
    (server.out, client, folder)
}

#[test]
fn a_message_that_may_be_rolled_back_is_in_doubt_and_one_that_cannot_is_not() {
    let session = |act| Event::Session(0, act);
    let mut before = vec![session(Act::Message)];
    let after = [
        session(Act::Savepoint),
        session(Act::Row(0)),
        Event::Stream(0),
        session(Act::RollBack),
    ];
    let (out, mut client, _folder) = play(&[&before[..], &after].concat());
    let certain = out.iter().all(|(lsn, payload)| client.take(*lsn, payload));
    assert!(!certain, "who says that the savepoint was not before it?");
    before.push(session(Act::Row(0)));
    let (out, mut client, _folder) = play(&[&before[..], &after].concat());
    let certain = out.iter().all(|(lsn, payload)| client.take(*lsn, payload));
    assert!(certain, "a row of the transaction itself is between them");
}

#[test]
fn a_description_of_an_older_shape_does_not_outlive_a_later_one() {
    let session = |at, act| Event::Session(at, act);
    let (out, mut client, _folder) = play(&[
        session(0, Act::Row(0)),
        Event::Stream(0),
        Event::Reshape(0),
        session(1, Act::Row(0)),
        session(1, Act::Commit),
        session(0, Act::Commit),
        // Not described again: the server did so when the second session committed.
        session(1, Act::Row(0)),
        session(1, Act::Commit),
    ]);
    for (lsn, payload) in out {
        assert!(client.take(lsn, &payload));
    }
    let values: Vec<u64> = client.arrived.iter().map(|(_, _, value)| *value).collect();
    assert_eq!(values, [2, 1, 3]);
}

#[test]
fn messages_out_of_order_are_errors() {
    let start = |first| [&ended(b'S', 7, 0)[..5], &[first]].concat();
    let insert = [&ended(b'I', 7, 5)[..], b"N\0\0"].concat();
    let commit = [&ended(b'c', 7, 0)[..5], &[0], &tail(9)].concat();
    for payloads in [
        vec![start(0)],
        vec![commit.clone()],
        vec![start(1), commit.clone()],
        vec![start(1), start(1)],
        vec![start(1), ended(b'A', 7, 7)],
        vec![start(1), vec![]],
        vec![start(1), vec![b'I', 0]],
        vec![start(1)[..4].to_vec()],
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let mut streams = Streams::new(folder.path());
        let taken: Result<Vec<Taken>> = payloads
            .iter()
            .map(|payload| streams.take(payload, Lsn(1), 1))
            .collect();
        assert!(taken.is_err(), "{payloads:?}");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let mut streams = Streams::new(folder.path());
    // An abort of what we know nothing of; a first piece where there was one before.
    for payload in [
        ended(b'A', 9, 9),
        ended(b'A', 9, 10),
        start(1),
        insert,
        vec![b'E'],
        start(1),
        vec![b'E'],
    ] {
        assert!(matches!(streams.take(&payload, Lsn(1), 1), Ok(Taken::Kept)));
    }
    let taken = streams.take(&commit, Lsn(1), 1).expect("in order");
    let Taken::Committed(mut committed) = taken else {
        panic!("{taken:?}");
    };
    assert!(committed.pieces().is_done(), "it began anew");
    assert_eq!(streams.kept(), 0);
}

#[test]
fn a_description_inside_a_prepared_transaction_is_for_everybody() {
    let session = |at, act| Event::Session(at, act);
    // Rolled back, not decided, or committed behind one that needs it: the server describes the table once.
    for decided in [None, Some(false), Some(true)] {
        let mut events = vec![session(0, Act::Row(0)), session(0, Act::Prepare)];
        let decide = decided.map(|commits| Event::Decide(0, commits));
        events.extend(decide.clone().filter(|_| decided == Some(false)));
        events.extend([session(1, Act::Row(0)), session(1, Act::Commit)]);
        events.extend(decide.filter(|_| decided == Some(true)));
        let (out, mut client, _folder) = play(&events);
        let descriptions = out.iter().filter(|(_, payload)| payload[0] == b'R');
        assert_eq!(descriptions.count(), 1);
        for (lsn, payload) in &out {
            assert!(client.take(*lsn, payload));
        }
        let values: Vec<u64> = client.arrived.iter().map(|(_, _, value)| *value).collect();
        match decided {
            Some(true) => assert_eq!(values, [2, 1]),
            _ => assert_eq!(values, [2]),
        }
    }
}

#[test]
fn a_commit_of_which_nothing_came_moves_the_position_and_nothing_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut client = Client::new(folder.path(), 0, 10);
    for tag in [b"r\0", b"K\0"] {
        let ends = match tag[0] {
            b'r' => [
                tail(5)[8..16].to_vec(),
                tail(10)[8..16].to_vec(),
                vec![0; 16],
            ]
            .concat(),
            _ => tail(10),
        };
        let message = [&tag[..], &ends, &named(7)].concat();
        assert!(client.take(10, &message));
    }
    assert_eq!(client.arrived, []);
    assert_eq!(client.through, Lsn(15));
    assert_eq!(client.streams.hold(Lsn(0)), None);
}
