//! Batches that wait for the answers to their records.

use std::collections::VecDeque;
use std::sync::Arc;

use lockstep_core::Error;
use lockstep_core::durable::{Delivered, Receipt};
use lockstep_core::position::SourceInfo;
use lockstep_core::progress::Progress;

/// What is durable of a source with a batch.
pub(crate) type Mark = (Arc<SourceInfo>, Progress);

/// Batches that are not durable yet, oldest first.
#[derive(Default)]
pub(crate) struct Ledger {
    /// Number of the oldest.
    first: u64,
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    receipt: Receipt,
    delivered: Delivered,
    mark: Option<Mark>,
    /// Records without an answer.
    open: u64,
    /// No record follows.
    sealed: bool,
}

impl Ledger {
    /// Takes a batch in, and returns its number.
    pub(crate) fn begin(&mut self, receipt: Receipt, mark: Option<Mark>) -> u64 {
        self.waiting.push_back(Waiting {
            receipt,
            delivered: Delivered::default(),
            mark,
            open: 0,
            sealed: false,
        });
        self.first + self.waiting.len() as u64 - 1
    }

    /// Whether all batches are durable.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// A record of the batch is to be answered.
    pub(crate) fn opened(&mut self, batch: u64) {
        if let Some(waiting) = self.get(batch) {
            waiting.open += 1;
        }
    }

    /// A record of the batch was taken.
    pub(crate) fn answered(&mut self, batch: u64, bytes: u64) {
        if let Some(waiting) = self.get(batch) {
            waiting.open -= 1;
            waiting.delivered += Delivered {
                written: 1,
                bytes,
                ..Delivered::default()
            };
        }
    }

    /// All records of the batch have been counted.
    pub(crate) fn seal(&mut self, batch: u64) {
        if let Some(waiting) = self.get(batch) {
            waiting.sealed = true;
        }
    }

    /// Answers the batches that are durable with all before them, after `note` was told how far that is.
    pub(crate) fn settle(&mut self, mut note: impl FnMut(Mark)) {
        let is_durable = |waiting: &Waiting| waiting.sealed && waiting.open == 0;
        while self.waiting.front().is_some_and(is_durable) {
            let Some(waiting) = self.waiting.pop_front() else {
                return;
            };
            self.first += 1;
            if let Some(mark) = waiting.mark {
                note(mark);
            }
            waiting.receipt.resolve(Ok(waiting.delivered));
        }
    }

    /// Answers the oldest batch with an error; gives it back when no batch waits. The others are dropped with the ledger, which is
    /// an answer too.
    pub(crate) fn fail(&mut self, error: Error) -> Option<Error> {
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
    use lockstep_core::durable::Durable;

    use super::*;

    #[tokio::test]
    async fn batches_become_durable_in_order() {
        let mut ledger = Ledger::default();
        let (first, receipt) = Durable::later();
        let one = ledger.begin(receipt, None);
        let (second, receipt) = Durable::later();
        let two = ledger.begin(receipt, None);
        ledger.opened(one);
        ledger.opened(two);
        ledger.seal(two);
        ledger.answered(two, 5);
        ledger.answered(one, 5);
        ledger.settle(|_| ());
        assert!(!ledger.is_empty(), "more of the first may follow");
        ledger.seal(one);
        ledger.settle(|_| ());
        assert!(ledger.is_empty());
        let expected = Delivered {
            written: 1,
            bytes: 5,
            ..Delivered::default()
        };
        assert_eq!(first.await.expect("durable"), expected);
        assert_eq!(second.await.expect("durable"), expected);
    }
}
