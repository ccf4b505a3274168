//! Removes what no look-up can count any more, while table files are compacted.
//!
//! A key ages by the commit times of its own source, so a source that lags behind, or is read again from days ago,
//! keeps what it needs. Nothing is removed of a source that has sent nothing since the start, and everything of a log that
//! no source reads any more.

use std::collections::HashSet;
use std::panic::RefUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fjall::compaction::filter::{
    CompactionFilter, CompactionFilterResult, Context, Factory, ItemAccessor, Verdict,
};

use super::history::{Claim, Fact, History, Moment, Standing, State};
use super::judge::Window;

/// Kept beyond the window, for changes that are replayed from before: 24 hours of commit time.
pub(crate) const GRACE_MICROS: i64 = 24 * 3600 * 1_000_000;

/// What a keyspace holds.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Claims,
    Rows,
}

/// How far the sources have come.
#[derive(Debug)]
pub(crate) struct Expiry {
    window: Window,
    sequence: AtomicU64,
    logs: Mutex<Logs>,
}

/// How far the logs have come, by number.
#[derive(Clone, Debug, Default)]
struct Logs {
    times: Vec<Option<i64>>,
    /// Logs that no source reads any more.
    given_up: HashSet<u16>,
}

impl Expiry {
    pub(crate) fn new(window: Window) -> Self {
        Expiry {
            window,
            sequence: AtomicU64::new(0),
            logs: Mutex::default(),
        }
    }

    /// A source has come to this commit time. It may go back: clocks do.
    pub(crate) fn advance(&self, source: u16, micros: i64) {
        let mut logs = self.logs();
        let index = usize::from(source);
        if logs.times.len() <= index {
            logs.times.resize(index + 1, None);
        }
        logs.times[index] = Some(micros);
    }

    /// Nothing that is known from this log counts any more.
    pub(crate) fn give_up(&self, source: u16) {
        self.logs().given_up.insert(source);
    }

    /// The log is read, perhaps again.
    pub(crate) fn take_up(&self, source: u16) {
        self.logs().given_up.remove(&source);
    }

    fn logs(&self) -> MutexGuard<'_, Logs> {
        self.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many keys have been claimed.
    pub(crate) fn count(&self, sequence: u64) {
        self.sequence.store(sequence, Ordering::Relaxed);
    }

    pub(crate) fn factory(expiry: &Arc<Expiry>, kind: Kind) -> Arc<dyn Factory> {
        Arc::new(FilterFactory {
            expiry: Arc::clone(expiry),
            kind,
        })
    }
}

struct FilterFactory {
    expiry: Arc<Expiry>,
    kind: Kind,
}

const _: () = {
    const fn unwind_safe<T: RefUnwindSafe>() {}
    unwind_safe::<FilterFactory>();
};

impl Factory for FilterFactory {
    fn name(&self) -> &str {
        match self.kind {
            Kind::Claims => "dedupe claims",
            Kind::Rows => "dedupe rows",
        }
    }

    fn make_filter(&self, _: &Context) -> Box<dyn CompactionFilter> {
        Box::new(Filter {
            kind: self.kind,
            window: self.expiry.window,
            logs: self.expiry.logs().clone(),
            sequence: self.expiry.sequence.load(Ordering::Relaxed),
        })
    }
}

/// The times at the start of one compaction.
struct Filter {
    kind: Kind,
    window: Window,
    logs: Logs,
    sequence: u64,
}

impl CompactionFilter for Filter {
    fn filter_item(&mut self, item: ItemAccessor<'_>, _: &Context) -> CompactionFilterResult {
        let value = item.value()?;
        let spent = match self.kind {
            Kind::Claims => self.is_spent(&value, |claim| self.claim_is_spent(claim)),
            Kind::Rows => self.is_spent(&value, |standing| self.standing_is_spent(standing)),
        };
        Ok(if spent {
            Verdict::Remove
        } else {
            Verdict::Keep
        })
    }
}

impl Filter {
    /// What cannot be read is kept, so that the next look-up reports it.
    fn is_spent<F: Fact>(&self, value: &[u8], spent: impl Fn(&F) -> bool) -> bool {
        let Some(mut history) = History::read(value) else {
            return false;
        };
        history.forget(|log| !self.logs.given_up.contains(&log));
        history.latest().is_none_or(spent)
    }

    fn claim_is_spent(&self, claim: &Claim) -> bool {
        let later = self.sequence.saturating_sub(claim.sequence);
        let counted_out = self.window.outlived().is_some_and(|most| later > most);
        counted_out || self.is_old(&claim.at, claim.since)
    }

    /// A row is remembered for as long as it is held: its later changes must not appear, however late.
    fn standing_is_spent(&self, standing: &Standing) -> bool {
        let over = match standing.state {
            State::Free | State::HeldOnce(_) => true,
            State::Held(_) => false,
        };
        over && self.is_old(&standing.at, standing.at.micros)
    }

    fn is_old(&self, at: &Moment, since: i64) -> bool {
        let now = self
            .logs
            .times
            .get(usize::from(at.source))
            .copied()
            .flatten();
        let age = now.map(|now| now.saturating_sub(since));
        age.is_some_and(|age| age > self.window.micros.saturating_add(GRACE_MICROS))
    }
}
