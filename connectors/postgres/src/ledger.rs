//! Keeps the state file up to date while the stream runs: at most once a second, and before the server is told.

use std::time::{Duration, Instant};

use lockstep_core::batch::Transaction;
use lockstep_core::error::{Error, ErrorKind, Result};
use lockstep_core::position::Lsn;
use tokio::task::JoinHandle;

use crate::state::{Copied, Reached, State, StateFile, Witness};
use crate::trail::Trail;

/// The shortest time between two writes: each costs a disk flush.
const WRITE_EVERY: Duration = Duration::from_secs(1);

/// See the module's page.
pub struct Ledger {
    file: StateFile,
    /// What is on record.
    state: State,
    /// Where the slot stood when the stream began.
    from: Lsn,
    /// Where the stream began, while the copy before it is not on record as done.
    copied_to: Option<Lsn>,
    /// What the stream must show before anything of it counts: the slot stands before it.
    expected: Option<Witness>,
    /// What is being written.
    writing: Option<JoinHandle<Result<State>>>,
    begun_at: Option<Instant>,
    /// Why nothing can be put on record for now.
    trouble: Option<Error>,
    trail: Trail,
}

/// What a stream knows that is to be put on record.
pub struct Seen<'a> {
    /// Durable in every sink.
    pub confirmed: Lsn,
    /// What of that the server may be told.
    pub tellable: Lsn,
    /// Received from the server.
    pub received: Lsn,
    /// The last whole transaction.
    pub last: Option<&'a Transaction>,
    /// What it was sent for.
    pub publication: &'a str,
}

impl Ledger {
    /// For a stream from `from`, with what is on record.
    pub fn new(file: StateFile, state: State, from: Lsn, publication: &str) -> Self {
        let copied_to = (state.copy == Copied::Running).then_some(from);
        let last = state
            .reached
            .as_ref()
            .and_then(|reached| reached.last.clone());
        // What committed below the slot's position does not come again.
        let expected = last.filter(|last| from <= last.commit && last.publication == publication);
        Ledger {
            trail: Trail::new(file.directory()),
            file,
            state,
            from,
            copied_to,
            expected,
            writing: None,
            begun_at: None,
            trouble: None,
        }
    }

    /// Why nothing can be put on record for now: the disk is full, or the server does not answer that keeps copies. The stream goes on
    /// meanwhile, and the server is told nothing.
    pub fn trouble(&self) -> Option<&Error> {
        self.trouble.as_ref()
    }

    /// Puts on record, before a stream begins, whether it receives transactions when they are prepared.
    ///
    /// # Errors
    /// Of kind `Storage`, or `Full`.
    pub async fn begin(&mut self, two_phase: bool) -> Result<()> {
        if self.state.two_phase == two_phase {
            return Ok(());
        }
        self.settle().await?;
        self.write(State {
            two_phase,
            ..self.state.clone()
        })
    }

    /// What the server may be told of what it may be told at most: nothing while the copy before this stream is not on record
    /// as done, for a restart must find the slot where the copy began; and nothing while it is open whether this is the
    /// log that the sinks know.
    pub fn tellable(&self, most: Lsn) -> Lsn {
        if self.copied_to.is_some() || self.expected.is_some() {
            return Lsn::ZERO;
        }
        let recorded = self.state.reached.as_ref();
        recorded.map_or(Lsn::ZERO, |reached| reached.told().min(most))
    }

    /// Whether the stream has still to show a transaction that was received before.
    pub fn expects(&self) -> bool {
        self.expected.is_some()
    }

    /// Compares a transaction of the stream with the one that is expected.
    ///
    /// # Errors
    /// `Lost` when it is another one, or comes although the expected one has not.
    pub fn see(&mut self, transaction: &Transaction) -> Result<()> {
        let Some(expected) = &self.expected else {
            return Ok(());
        };
        if transaction.commit < expected.commit {
            return Ok(());
        }
        let same = transaction.commit == expected.commit
            && transaction.xid == expected.xid
            && transaction.commit_micros == expected.micros;
        if !same {
            return Err(another_log(expected));
        }
        self.expected = None;
        Ok(())
    }

    /// The server has decoded everything below `lsn`.
    ///
    /// # Errors
    /// `Lost` when what is expected had to come before.
    pub fn passed(&self, lsn: Lsn) -> Result<()> {
        match &self.expected {
            Some(expected) if lsn > expected.commit => Err(another_log(expected)),
            _ => Ok(()),
        }
    }

    /// Something of a transaction is about to be handed on: from here on any sink may hold it.
    pub fn hand_on(&mut self, received: Lsn, transaction: &Transaction, publication: &str) {
        // What is expected tells more than what comes before it again.
        if self.expected.is_none() {
            self.trail
                .put(&self.state, received, transaction, publication);
        }
    }

    /// Puts on record what has been seen, beside the stream, when there is news and the last time is long enough ago.
    ///
    /// # Errors
    /// When the last write failed, and not for a reason that may pass: then it is tried again.
    pub async fn keep(&mut self, seen: &Seen<'_>) -> Result<()> {
        if self.writing.as_ref().is_some_and(JoinHandle::is_finished) {
            match self.settle().await {
                Err(error) if passes(error.kind()) => self.trouble = Some(error),
                settled => {
                    settled?;
                    self.trouble = None;
                }
            }
        }
        let recently = self.begun_at.is_some_and(|at| at.elapsed() < WRITE_EVERY);
        if self.writing.is_some() || recently {
            return Ok(());
        }
        if let Some(next) = self.next(seen) {
            let file = self.file.clone();
            self.begun_at = Some(Instant::now());
            self.writing = Some(tokio::task::spawn_blocking(move || {
                file.write(&next).map(|()| next)
            }));
        }
        Ok(())
    }

    /// Puts on record what has been seen, at the stream's end.
    ///
    /// # Errors
    /// Of kind `Storage`.
    pub async fn close(&mut self, seen: &Seen<'_>) -> Result<()> {
        self.settle().await?;
        match self.next(seen) {
            Some(next) => self.write(next),
            None => Ok(()),
        }
    }

    /// Puts on record that the log is gone, or another one: the next start must not go on as if nothing were.
    ///
    /// # Errors
    /// Of kind `Storage`.
    pub async fn lose(&mut self, cause: &str) -> Result<()> {
        self.settle().await?;
        let copy = Copied::Lost {
            cause: cause.to_owned(),
        };
        self.write(State {
            copy,
            ..self.state.clone()
        })
    }

    /// Waits for the write that is under way.
    async fn settle(&mut self) -> Result<()> {
        let Some(writing) = self.writing.take() else {
            return Ok(());
        };
        let written = writing.await.map_err(|error| {
            Error::new(ErrorKind::Abandoned, "writing the state file panicked").source(error)
        })?;
        self.on_record(written?);
        Ok(())
    }

    fn write(&mut self, next: State) -> Result<()> {
        self.file.write(&next)?;
        self.on_record(next);
        Ok(())
    }

    fn on_record(&mut self, state: State) {
        self.state = state;
        if self.state.copy != Copied::Running && self.copied_to.take().is_some() {
            tracing::info!(slot = self.state.slot, "the copy is durable in every sink");
        }
    }

    /// The next record; `None` when it would say the same.
    fn next(&self, seen: &Seen<'_>) -> Option<State> {
        if self.expected.is_some() {
            return None;
        }
        let before = self.state.reached.clone().unwrap_or_default();
        let last = seen.last.map(|last| Witness::of(last, seen.publication));
        let confirmed = before.confirmed.max(seen.confirmed);
        let told = before.told().max(seen.tellable).max(self.from);
        let reached = Reached {
            timeline: before.timeline,
            confirmed,
            told: Some(told).filter(|told| *told < confirmed),
            received: before.received.max(seen.received),
            last: last.or(before.last),
        };
        let copy = match self.copied_to {
            Some(from) if seen.confirmed >= from => Copied::Done { from },
            _ => self.state.copy.clone(),
        };
        let next = State {
            copy,
            reached: Some(reached),
            ..self.state.clone()
        };
        (next != self.state).then_some(next)
    }
}

/// Whether a record that could not be written is written a while later.
fn passes(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Full | ErrorKind::Unavailable)
}

fn another_log(expected: &Witness) -> Error {
    Error::new(
        ErrorKind::Lost,
        format!(
            "the server's log does not have transaction {}, which was read from it and committed at {}: it was restored \
             to an earlier point and has gone on from there",
            expected.xid, expected.commit
        ),
    )
}

#[cfg(test)]
mod tests {
    use lockstep_core::position::SourceIdentity;

    use super::*;

    fn transaction(commit: u64, xid: u32) -> Transaction {
        Transaction {
            commit: Lsn(commit),
            commit_micros: 5,
            xid,
            origin: None,
            previous_commit: None,
            prepared: None,
            global: None,
        }
    }

    fn seen(confirmed: u64, received: u64, last: Option<&Transaction>) -> Seen<'_> {
        Seen {
            confirmed: Lsn(confirmed),
            tellable: Lsn(confirmed),
            received: Lsn(received),
            last,
            publication: "p",
        }
    }

    fn ledger(directory: &std::path::Path, copy: Copied, last: Option<Witness>) -> Ledger {
        let state = State {
            identity: SourceIdentity {
                system: 7,
                timeline: 1,
                incarnation: 0,
                database: "d".into(),
            },
            slot: "s".into(),
            tables: None,
            copy,
            reached: Some(Reached {
                timeline: 1,
                confirmed: Lsn(100),
                told: None,
                received: Lsn(120),
                last,
            }),
            two_phase: false,
        };
        Ledger::new(StateFile::new(&directory.into()), state, Lsn(100), "p")
    }

    fn witness(commit: u64, xid: u32, publication: &str) -> Option<Witness> {
        Some(Witness {
            commit: Lsn(commit),
            xid,
            micros: 5,
            publication: publication.into(),
        })
    }

    #[tokio::test]
    async fn the_server_is_told_what_is_on_record() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut ledger = ledger(directory.path(), Copied::Done { from: Lsn(50) }, None);
        assert_eq!(ledger.tellable(Lsn(300)), Lsn(100));
        assert_eq!(ledger.tellable(Lsn(90)), Lsn(90), "nor what no sink has");
        ledger.close(&seen(200, 220, None)).await.expect("written");
        assert_eq!(ledger.tellable(Lsn(300)), Lsn(200));
        let read = StateFile::new(&directory.path().into())
            .read()
            .expect("readable");
        let reached = read.and_then(|state| state.reached).expect("a position");
        assert_eq!((reached.confirmed, reached.received), (Lsn(200), Lsn(220)));
    }

    #[tokio::test]
    async fn what_is_held_back_is_on_record_as_not_told() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut ledger = ledger(directory.path(), Copied::Done { from: Lsn(50) }, None);
        let held = Seen {
            tellable: Lsn(150),
            ..seen(200, 220, None)
        };
        ledger.close(&held).await.expect("written");
        assert_eq!(ledger.tellable(Lsn(300)), Lsn(150));
        let recorded = || {
            let read = StateFile::new(&directory.path().into())
                .read()
                .expect("readable");
            read.and_then(|state| state.reached).expect("a position")
        };
        assert_eq!(
            (recorded().confirmed, recorded().told()),
            (Lsn(200), Lsn(150))
        );
        // Behind a new connection less may be told than before.
        let held = Seen {
            tellable: Lsn(120),
            ..seen(210, 220, None)
        };
        ledger.close(&held).await.expect("written");
        assert_eq!(recorded().told(), Lsn(150));
        ledger.close(&seen(210, 220, None)).await.expect("written");
        assert_eq!((recorded().told, recorded().told()), (None, Lsn(210)));
    }

    #[tokio::test]
    async fn two_phases_are_on_record_before_they_begin() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut ledger = ledger(directory.path(), Copied::Done { from: Lsn(50) }, None);
        for two_phase in [true, false] {
            ledger.begin(two_phase).await.expect("written");
            let read = StateFile::new(&directory.path().into())
                .read()
                .expect("readable");
            assert_eq!(read.map(|state| state.two_phase), Some(two_phase));
        }
    }

    /// Keeps until `done`, for some seconds.
    async fn keep_until(ledger: &mut Ledger, done: impl Fn(&Ledger) -> bool) {
        let end = Instant::now() + Duration::from_secs(30);
        while !done(ledger) {
            assert!(Instant::now() < end, "{:?}", ledger.trouble());
            ledger.keep(&seen(200, 220, None)).await.expect("goes on");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn a_full_disk_holds_back_the_server_and_not_the_stream() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut ledger = ledger(directory.path(), Copied::Done { from: Lsn(50) }, None);
        let temporary = directory.path().join("source.json.new");
        std::os::unix::fs::symlink("/dev/full", &temporary).expect("a link");
        keep_until(&mut ledger, |ledger| ledger.trouble().is_some()).await;
        assert_eq!(ledger.tellable(Lsn(300)), Lsn(100));
        std::fs::remove_file(&temporary).expect("room again");
        keep_until(&mut ledger, |ledger| ledger.trouble().is_none()).await;
        assert_eq!(ledger.tellable(Lsn(300)), Lsn(200));
    }

    #[tokio::test]
    async fn a_copy_is_done_once_all_of_it_is_confirmed() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut ledger = ledger(directory.path(), Copied::Running, None);
        ledger.close(&seen(99, 130, None)).await.expect("written");
        assert_eq!(ledger.tellable(Lsn(300)), Lsn::ZERO);
        ledger.close(&seen(100, 130, None)).await.expect("written");
        assert_eq!(ledger.tellable(Lsn(300)), Lsn(100));
        let read = StateFile::new(&directory.path().into())
            .read()
            .expect("readable");
        let copy = read.map(|state| state.copy);
        assert_eq!(copy, Some(Copied::Done { from: Lsn(100) }));
    }

    #[tokio::test]
    async fn nothing_counts_before_the_expected_transaction_has_come() {
        let directory = tempfile::tempdir().expect("a directory");
        let done = Copied::Done { from: Lsn(50) };
        let mut ledger = ledger(directory.path(), done, witness(110, 9, "p"));
        assert_eq!(ledger.tellable(Lsn(300)), Lsn::ZERO);
        ledger.see(&transaction(105, 8)).expect("before it");
        ledger.passed(Lsn(110)).expect("up to it");
        assert!(ledger.expects());
        ledger.see(&transaction(110, 9)).expect("it");
        assert!(!ledger.expects());
        ledger.see(&transaction(115, 4)).expect("after it");
        assert_eq!(ledger.tellable(Lsn(300)), Lsn(100));
    }

    #[test]
    fn another_transaction_in_its_place_or_none_is_another_log() {
        let directory = tempfile::tempdir().expect("a directory");
        let done = || Copied::Done { from: Lsn(50) };
        for wrong in [transaction(110, 10), transaction(111, 9)] {
            let mut ledger = ledger(directory.path(), done(), witness(110, 9, "p"));
            let error = ledger.see(&wrong).expect_err("another log");
            assert_eq!(error.kind(), ErrorKind::Lost);
        }
        let ledger_ = ledger(directory.path(), done(), witness(110, 9, "p"));
        assert!(ledger_.passed(Lsn(111)).is_err());
        // What the slot has behind it does not come again, nor has another publication to have it.
        assert!(!ledger(directory.path(), done(), witness(99, 9, "p")).expects());
        assert!(!ledger(directory.path(), done(), witness(110, 9, "q")).expects());
    }
}
