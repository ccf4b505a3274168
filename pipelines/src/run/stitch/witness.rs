//! What a stitch has read of branches that are in doubt, for those who have to end them.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::try_join_all;
use lockstep_core::batch::Prepared;
use lockstep_core::position::Lsn;
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_transactions::gid;
use lockstep_transactions::order::{Ended, InDoubt, Order};
use lockstep_transactions::resolve::{Doubt, Evidence, Heard};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::super::source_state::SourceShare;
use super::Message;
use super::fences::fence;
use super::notes::Notes;

/// How long all logs may take to be read up to where they ended when somebody asked.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long an answer may take of what is known anyway.
const AT_ONCE: Duration = Duration::from_secs(3);

/// What was read of transactions that are in doubt.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doubts {
    /// Everything has been read that any of the databases had written when it was asked: what is not told here has not happened by then.
    pub complete: bool,
    /// The branches that are prepared, and have not ended, as far as is read.
    pub branches: Vec<DoubtfulBranch>,
}

/// A branch that is prepared, and has not ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoubtfulBranch {
    /// The source whose database it is prepared in.
    pub source: String,
    /// What its coordinator calls it.
    pub gid: String,
    /// When it was prepared, microseconds since the Unix epoch: one that is prepared later under its name is another one.
    pub prepared_micros: i64,
    /// Sources where other branches of its transaction have committed.
    pub committed: Vec<String>,
    /// Sources where other branches of its transaction were rolled back.
    pub rolled_back: Vec<String>,
}

impl Evidence for Doubts {
    fn heard(&self, doubt: &Doubt) -> Heard {
        let mut branches = self.branches.iter();
        let known = branches.find(|branch| {
            branch.source == *doubt.source
                && branch.gid == doubt.in_doubt.gid
                && branch.prepared_micros == doubt.in_doubt.prepared_micros
        });
        known.map_or_else(Heard::default, |branch| Heard {
            committed: branch.committed.first().cloned(),
            rolled_back: branch.rolled_back.first().cloned(),
            is_closed: self.complete,
        })
    }
}

/// Asks a stitch, once there is one. Clones share it.
#[derive(Clone, Default)]
pub(in crate::run) struct Witness(Arc<OnceLock<Asked>>);

struct Asked {
    shares: Vec<Arc<SourceShare>>,
    /// It ends when nobody else sends any more.
    sender: mpsc::WeakSender<Message>,
}

impl Witness {
    /// From now on it is this one that is asked.
    pub(super) fn open(&self, shares: Vec<Arc<SourceShare>>, sender: mpsc::WeakSender<Message>) {
        // A pipeline has one.
        let _ = self.0.set(Asked { shares, sender });
    }

    /// What is known of branches in doubt; `None` where nothing is put together.
    ///
    /// # Errors
    /// Of kind `Unavailable` when there is no answer.
    pub async fn ask(&self) -> Result<Option<Doubts>> {
        match self.0.get() {
            Some(asked) => asked.ask().await.map(Some),
            None => Ok(None),
        }
    }
}

impl Asked {
    async fn ask(&self) -> Result<Doubts> {
        let deadline = Instant::now() + PATIENCE;
        let read = async {
            // Asked for first: what is read from there on was not written when they were.
            let ends = try_join_all(self.shares.iter().map(|share| fence(share))).await?;
            self.question(Some(ends)).await
        };
        match timeout_at(deadline, read).await {
            Ok(Ok(doubts)) => return Ok(doubts),
            Ok(Err(error)) => tracing::debug!(%error, "not all that is in doubt can be known"),
            Err(_) => tracing::debug!("not all that is in doubt is known in time"),
        }
        let known = tokio::time::timeout(AT_ONCE, self.question(None)).await;
        known.unwrap_or_else(|_| Err(silent()))
    }

    async fn question(&self, ends: Option<Vec<Lsn>>) -> Result<Doubts> {
        let (reply, answer) = oneshot::channel();
        let question = Question { ends, reply };
        let sender = self.sender.upgrade().ok_or_else(silent)?;
        let sent = sender.send(Message::Doubts(question)).await;
        drop(sender);
        sent.map_err(|_| silent())?;
        answer.await.map_err(|_| silent())
    }
}

fn silent() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "what puts transactions together does not answer",
    )
    .remedy("see /readyz, then ask again")
}

/// Somebody asks, and waits until all sources are read up to their places; without any, not at all.
pub(super) struct Question {
    ends: Option<Vec<Lsn>>,
    reply: oneshot::Sender<Doubts>,
}

/// The names of branches in doubt, and who has asked about them.
pub(super) struct Desk {
    sources: Vec<Arc<str>>,
    named: HashMap<(usize, Lsn), Arc<Prepared>>,
    questions: Vec<Question>,
}

impl Desk {
    pub fn new(sources: Vec<Arc<str>>) -> Self {
        Desk {
            sources,
            named: HashMap::new(),
            questions: Vec::new(),
        }
    }

    /// A branch was prepared.
    pub fn prepared(&mut self, source: usize, prepared: &Arc<Prepared>) {
        self.named
            .insert((source, prepared.lsn), Arc::clone(prepared));
    }

    /// It has ended.
    pub fn ended(&mut self, source: usize, prepared: &Prepared) {
        self.named.remove(&(source, prepared.lsn));
    }

    /// The source reads another log.
    pub fn forget(&mut self, source: usize) {
        self.named.retain(|(of, _), _| *of != source);
    }

    pub fn put(&mut self, question: Question) {
        self.questions.push(question);
    }

    /// What is prepared at a place.
    pub fn get(&self, place: (usize, Lsn)) -> Option<&Arc<Prepared>> {
        self.named.get(&place)
    }

    /// Whether a branch was prepared there that has not ended.
    pub fn has(&self, source: usize, lsn: Lsn) -> bool {
        self.named.contains_key(&(source, lsn))
    }

    /// Notes what is known of branches of a name, since a source has told of one of them behind a place.
    pub fn note(&self, order: &Order, global: &Arc<str>, teller: (usize, Lsn), notes: &mut Notes) {
        for one in order.in_doubt_as(global) {
            let branch = (one.source, one.prepared);
            if let Some(prepared) = self.named.get(&branch) {
                let known = self.known(prepared, one, notes);
                notes.put((branch.0, prepared), known, teller);
            }
        }
    }

    /// Answers what can be answered.
    pub fn answer(&mut self, order: &Order, notes: &Notes) {
        if self.questions.is_empty() {
            return;
        }
        let is_due = |question: &Question| {
            let ends = question.ends.as_deref();
            question.reply.is_closed() || ends.is_none_or(|ends| order.is_read_to(ends))
        };
        let (due, wait) = std::mem::take(&mut self.questions)
            .into_iter()
            .partition(is_due);
        self.questions = wait;
        for question in due {
            let doubts = Doubts {
                complete: question.ends.is_some(),
                branches: self.branches(order.in_doubt(), notes),
            };
            // Whoever asked may have gone.
            let _ = question.reply.send(doubts);
        }
    }

    fn branches(&self, in_doubt: Vec<InDoubt>, notes: &Notes) -> Vec<DoubtfulBranch> {
        let mut branches: Vec<DoubtfulBranch> = in_doubt
            .into_iter()
            .filter_map(|one| {
                let source = one.source;
                let prepared = self.named.get(&(source, one.prepared))?;
                let [committed, rolled_back] = self.known(prepared, one, notes);
                Some(DoubtfulBranch {
                    source: self.sources[source].to_string(),
                    gid: prepared.gid.to_string(),
                    prepared_micros: prepared.micros,
                    committed,
                    rolled_back,
                })
            })
            .collect();
        branches.sort_by(|a, b| (&a.source, &a.gid).cmp(&(&b.source, &b.gid)));
        branches
    }

    /// Sources where others of the transaction of a branch have committed, and where they were rolled back: as was read, and as was
    /// before a restart.
    fn known(&self, prepared: &Prepared, one: InDoubt, notes: &Notes) -> [Vec<String>; 2] {
        let noted = notes.of(one.source, prepared);
        let ended = match names_once(prepared) {
            true => with(one.siblings, one.namesakes),
            false => one.siblings,
        };
        let read = [self.names(&ended.committed), self.names(&ended.rolled_back)];
        let Some([committed, rolled_back]) = noted else {
            return read;
        };
        let [mut all_committed, mut all_rolled_back] = read;
        for (all, noted) in [
            (&mut all_committed, committed),
            (&mut all_rolled_back, rolled_back),
        ] {
            let more = noted.iter().filter(|name| !all.contains(*name)).cloned();
            let more: Vec<String> = more.collect();
            all.extend(more);
        }
        [all_committed, all_rolled_back]
    }

    fn names(&self, places: &[usize]) -> Vec<String> {
        let names = places.iter().map(|place| self.sources[*place].to_string());
        names.collect()
    }
}

/// Whether what ended under its name, and was not prepared beside it, is of its transaction all the same: its coordinator gives no
/// name twice.
fn names_once(prepared: &Prepared) -> bool {
    prepared.marker.is_none() && gid::Branch::parse(&prepared.gid).dialect().names_once()
}

fn with(mut siblings: Ended, namesakes: Ended) -> Ended {
    siblings.committed.extend(namesakes.committed);
    siblings.rolled_back.extend(namesakes.rolled_back);
    for places in [&mut siblings.committed, &mut siblings.rolled_back] {
        places.sort_unstable();
        places.dedup();
    }
    siblings
}

#[cfg(test)]
mod tests {
    use lockstep_transactions::order::Reach;

    use super::*;

    fn prepared(gid: &str, lsn: u64) -> Arc<Prepared> {
        Arc::new(Prepared {
            gid: gid.into(),
            lsn: Lsn(lsn),
            micros: 7,
            marker: None,
        })
    }

    /// Folders in which nothing is.
    fn nowhere() -> Vec<(Arc<str>, lockstep_core::folder::Folder)> {
        let of = |name: &str| {
            (
                name.into(),
                std::path::Path::new("/nowhere").join(name).into(),
            )
        };
        vec![of("orders"), of("inventory")]
    }

    fn asked(desk: &mut Desk, order: &Order, ends: Option<&[u64]>) -> Option<Doubts> {
        let (reply, mut answer) = oneshot::channel();
        let ends = ends.map(|ends| ends.iter().map(|end| Lsn(*end)).collect());
        desk.put(Question { ends, reply });
        desk.answer(order, &Notes::open(nowhere()));
        answer.try_recv().ok()
    }

    /// One that is prepared in the second source when one of its name was rolled back in the first.
    fn behind_a_rollback(gid: &str) -> Doubts {
        let mut desk = Desk::new(vec!["orders".into(), "inventory".into()]);
        let mut order = Order::new(vec![Reach::default(); 2]);
        let global: Arc<str> = gid::Branch::parse(gid).key("").into();
        order.prepared(0, &global, Lsn(10));
        order.rolled_back(0, &global, Lsn(10));
        order.prepared(1, &global, Lsn(20));
        desk.prepared(1, &prepared(gid, 20));
        order.read(0, Lsn(50));
        let ends: &[u64] = &[50, 60];
        assert_eq!(asked(&mut desk, &order, Some(ends)), None, "not read yet");
        let known = asked(&mut desk, &order, None).expect("at once");
        assert!(!known.complete);
        order.read(1, Lsn(60));
        let told = asked(&mut desk, &order, Some(ends)).expect("all is read");
        assert!(desk.questions.is_empty(), "also the one that waited");
        assert_eq!(known.branches, told.branches);
        told
    }

    #[test]
    fn what_was_read_is_of_the_very_branch_that_is_in_doubt() {
        let known = DoubtfulBranch {
            source: "inventory".to_owned(),
            gid: "g".to_owned(),
            prepared_micros: 7,
            committed: vec!["orders".to_owned()],
            rolled_back: Vec::new(),
        };
        let doubts = Doubts {
            complete: false,
            branches: vec![known],
        };
        let heard = |source: &str, gid: &str, prepared_micros| {
            let in_doubt = lockstep_core::query::InDoubt {
                gid: gid.to_owned(),
                xid: 1,
                prepared_micros,
                owner: "shop".to_owned(),
            };
            doubts.heard(&Doubt::new(source.into(), in_doubt))
        };
        let expected = Heard {
            committed: Some("orders".to_owned()),
            rolled_back: None,
            is_closed: false,
        };
        assert_eq!(heard("inventory", "g", 7), expected);
        for (source, gid, prepared) in [
            ("orders", "g", 7),
            ("inventory", "h", 7),
            ("inventory", "g", 8),
        ] {
            assert_eq!(heard(source, gid, prepared), Heard::default());
        }
    }

    #[test]
    fn names_that_are_given_once_join_what_was_not_prepared_at_a_time() {
        let once = "131077_AQ==_Ag==";
        let told = behind_a_rollback(once);
        let expected = DoubtfulBranch {
            source: "inventory".to_owned(),
            gid: once.to_owned(),
            prepared_micros: 7,
            committed: Vec::new(),
            rolled_back: vec!["orders".to_owned()],
        };
        assert_eq!((told.complete, told.branches), (true, vec![expected]));
        let told = behind_a_rollback("nightly");
        assert_eq!(told.branches[0].rolled_back, Vec::<String>::new());
    }
}
