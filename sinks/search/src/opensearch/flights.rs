//! Bulk requests under way, and the batches that wait for them.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use lockstep_core::durable::{Delivered, Receipt};
use lockstep_core::position::SourceInfo;
use lockstep_core::progress::Progress as Held;
use lockstep_core::{Error, ErrorKind, Result};
use tokio::task::JoinSet;

use super::bulk::{Bulk, KeyHash};
use super::client::Client;
use super::config::Refresh;
use super::send::{Answer, send};

/// Bulk requests under way. Dropping it gives them up.
pub(super) struct Flights {
    client: Arc<Client>,
    refresh: Refresh,
    tasks: JoinSet<(u64, Result<Vec<Answer>>)>,
    /// The keys of each.
    keys: Vec<(u64, HashSet<KeyHash>)>,
    started: u64,
}

impl Flights {
    pub(super) fn new(client: Arc<Client>, refresh: Refresh) -> Self {
        Flights {
            client,
            refresh,
            tasks: JoinSet::new(),
            keys: Vec::new(),
            started: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    pub(super) fn has(&self, key: KeyHash) -> bool {
        self.keys.iter().any(|(_, keys)| keys.contains(&key))
    }

    pub(super) fn start(&mut self, bulk: Bulk) {
        let number = self.started;
        self.started += 1;
        self.keys.push((number, bulk.keys().collect()));
        let client = Arc::clone(&self.client);
        let refresh = self.refresh;
        self.tasks
            .spawn(async move { (number, send(&client, refresh, bulk.finish()).await) });
    }

    /// The answers of the next request to end; `None` when none is under way. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Result<Vec<Answer>>> {
        match self.tasks.join_next().await? {
            Ok((number, result)) => {
                self.keys.retain(|(known, _)| *known != number);
                Some(result)
            }
            Err(error) => Some(Err(Error::new(
                ErrorKind::Protocol,
                "a bulk request ended without an answer",
            )
            .source(error))),
        }
    }
}

/// Batches that are not durable yet, oldest first.
#[derive(Default)]
pub(super) struct Ledger {
    /// Number of the oldest.
    first: u64,
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    receipt: Receipt,
    delivered: Delivered,
    /// Items without an answer.
    open: usize,
    /// No item follows.
    sealed: bool,
    /// The next batch belongs to it: the two become durable together.
    joined: bool,
    mark: Option<Mark>,
}

/// What is durable of a source with a batch.
pub(super) struct Mark {
    pub(super) source: Arc<SourceInfo>,
    pub(super) held: Held,
}

impl Ledger {
    /// Takes a batch in, and returns its number.
    pub(super) fn begin(&mut self, receipt: Receipt, mark: Option<Mark>) -> u64 {
        self.waiting.push_back(Waiting {
            receipt,
            delivered: Delivered::default(),
            open: 0,
            sealed: false,
            joined: false,
            mark,
        });
        self.first + self.waiting.len() as u64 - 1
    }

    /// The next batch that begins belongs to this one.
    pub(super) fn join(&mut self, batch: u64) {
        if let Some(waiting) = self.get(batch) {
            waiting.joined = true;
        }
    }

    /// The number of the oldest batch that is not durable, or of the next one.
    pub(super) fn oldest(&self) -> u64 {
        self.first
    }

    /// An item of the batch was added to a request.
    pub(super) fn opened(&mut self, batch: u64) {
        if let Some(waiting) = self.get(batch) {
            waiting.open += 1;
        }
    }

    /// Items of the batch have their answers.
    pub(super) fn answered(&mut self, batch: u64, items: usize, delivered: Delivered) {
        if let Some(waiting) = self.get(batch) {
            waiting.open -= items;
            waiting.delivered += delivered;
        }
    }

    /// Counts what was delivered outside of bulk requests.
    pub(super) fn counted(&mut self, batch: u64, delivered: Delivered) {
        self.answered(batch, 0, delivered);
    }

    /// All items of the batch have been added.
    pub(super) fn seal(&mut self, batch: u64) {
        if let Some(waiting) = self.get(batch) {
            waiting.sealed = true;
        }
    }

    /// Hands out the batches that are durable with all before them: their positions, and what is to be answered.
    pub(super) fn settle(&mut self, mut done: impl FnMut(Option<Mark>, Receipt, Delivered)) {
        while let Some(count) = self.durable() {
            self.first += count as u64;
            for waiting in self.waiting.drain(..count) {
                done(waiting.mark, waiting.receipt, waiting.delivered);
            }
        }
    }

    /// How many batches come next that belong together, when all of them are durable.
    fn durable(&self) -> Option<usize> {
        let joined = self.waiting.iter().take_while(|waiting| waiting.joined);
        let count = joined.count() + 1;
        let mut next = self.waiting.iter().take(count);
        let is_durable = |waiting: &Waiting| waiting.sealed && waiting.open == 0;
        (self.waiting.len() >= count && next.all(is_durable)).then_some(count)
    }

    /// Answers the oldest batch with an error; gives it back when no batch waits. The others are dropped with the
    /// ledger, which is an answer too.
    pub(super) fn fail(&mut self, error: Error) -> Option<Error> {
        match self.waiting.pop_front() {
            Some(waiting) => {
                waiting.receipt.resolve(Err(error));
                None
            }
            None => Some(error),
        }
    }

    fn get(&mut self, batch: u64) -> Option<&mut Waiting> {
        let index = usize::try_from(batch.checked_sub(self.first)?).ok()?;
        self.waiting.get_mut(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_core::durable::Durable;

    fn answer(_: Option<Mark>, receipt: Receipt, delivered: Delivered) {
        receipt.resolve(Ok(delivered));
    }

    #[tokio::test]
    async fn batches_become_durable_in_order() {
        let mut ledger = Ledger::default();
        let (first, receipt) = Durable::later();
        let one = ledger.begin(receipt, None);
        let (second, receipt) = Durable::later();
        let two = ledger.begin(receipt, None);
        ledger.opened(one);
        ledger.opened(two);
        ledger.seal(one);
        ledger.seal(two);
        let delivered = Delivered {
            written: 1,
            ..Delivered::default()
        };
        ledger.answered(two, 1, delivered);
        ledger.settle(answer);
        assert_eq!(ledger.waiting.len(), 2, "the first is still open");
        ledger.answered(one, 1, delivered);
        ledger.settle(answer);
        assert_eq!(first.await.expect("durable"), delivered);
        assert_eq!(second.await.expect("durable"), delivered);
    }

    #[tokio::test]
    async fn what_belongs_together_becomes_durable_together() {
        let mut ledger = Ledger::default();
        let (_first, receipt) = Durable::later();
        let one = ledger.begin(receipt, None);
        ledger.join(one);
        ledger.seal(one);
        ledger.settle(answer);
        assert_eq!(ledger.oldest(), 0, "the other has not begun");
        let (_second, receipt) = Durable::later();
        let two = ledger.begin(receipt, None);
        ledger.opened(two);
        ledger.seal(two);
        ledger.settle(answer);
        assert_eq!(ledger.oldest(), 0, "the other has no answer");
        ledger.answered(two, 1, Delivered::default());
        ledger.settle(answer);
        assert_eq!((ledger.oldest(), ledger.waiting.len()), (2, 0));
    }
}
