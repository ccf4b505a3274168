//! A stand-in for the runtime: writes a history, drops the sink at will, and writes again what is not durable.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lockstep_core::position::{Lsn, Position};
use lockstep_core::sink::Sink;
use lockstep_sink_kafka::KafkaConfig;

use crate::support::{Feed, Random, Seen, insert, open};

/// A history of transactions of random sizes over a few keys.
pub struct History {
    pub feed: Feed,
    /// Changes of each transaction; commit LSN = index + 1.
    sizes: Vec<u64>,
}

/// How a round of writing ended.
#[derive(Debug)]
pub enum End {
    /// Everything is durable.
    Complete,
    /// Dropped on purpose.
    Dropped,
    /// The sink failed.
    Failed(lockstep_core::Error),
}

impl History {
    pub fn new(feed: Feed, transactions: u64, random: &mut Random) -> Self {
        let size = |random: &mut Random| match random.below(10) {
            0 => 1 + random.below(900),
            1..4 => 1 + random.below(40),
            _ => 1,
        };
        let sizes = (0..transactions).map(|_| size(random)).collect();
        History { feed, sizes }
    }

    pub fn changes(&self) -> u64 {
        self.sizes.iter().sum()
    }

    /// Opens, resumes and writes, until done, failed, or dropped after `cut`.
    ///
    /// # Panics
    /// When something that was reported durable is not in the position that the next sink resumes from.
    pub async fn run(
        &self,
        config: &KafkaConfig,
        pipeline: &str,
        confirmed: &mut Option<Position>,
        cut: Option<Duration>,
    ) -> End {
        let mut sink = match open(config, pipeline, &[&self.feed]).await {
            Ok(sink) => sink,
            Err(error) => return End::Failed(error),
        };
        let resume = sink
            .resume(&self.feed.source)
            .await
            .expect("resume")
            .map(|held| held.upto());
        assert!(
            resume >= *confirmed,
            "confirmed {confirmed:?} and resumed from {resume:?}"
        );
        *confirmed = resume;
        let work = self.write(sink, resume, confirmed);
        match cut {
            // The future owns the sink: the end of the time drops it wherever it is.
            Some(cut) => tokio::time::timeout(cut, work)
                .await
                .unwrap_or(End::Dropped),
            None => work.await,
        }
    }

    async fn write(
        &self,
        mut sink: Box<dyn Sink>,
        resume: Option<Position>,
        confirmed: &mut Option<Position>,
    ) -> End {
        let mut receipts = std::collections::VecDeque::new();
        for (index, &size) in self.sizes.iter().enumerate() {
            let commit = index as u64 + 1;
            let first = match resume {
                Some(at) if at.commit > Lsn(commit) => continue,
                Some(at) if at.commit == Lsn(commit) => at.ordinal + 1,
                _ => 1,
            };
            if first > size {
                continue;
            }
            let events: Vec<_> = (first..=size)
                .map(|ordinal| insert((commit * 31 + ordinal) % 13, "x"))
                .collect();
            match sink.write(self.feed.part(commit, first, &events)).await {
                Ok(durable) => receipts.push_back((
                    Position {
                        commit: Lsn(commit),
                        ordinal: size,
                    },
                    durable,
                )),
                Err(error) => return End::Failed(error),
            }
            // Some receipts are awaited early, as an idle runtime would.
            while receipts.len() > 20 {
                let (position, durable) = receipts.pop_front().expect("not empty");
                match durable.await {
                    Ok(_) => *confirmed = Some(position),
                    Err(error) => return End::Failed(error),
                }
            }
        }
        for (position, durable) in receipts {
            match durable.await {
                Ok(_) => *confirmed = Some(position),
                Err(error) => return End::Failed(error),
            }
        }
        match sink.close().await {
            Ok(()) => End::Complete,
            Err(error) => End::Failed(error),
        }
    }

    /// Every change is there exactly once, and each key in order.
    pub fn check(&self, seen: &[Seen]) {
        let mut expected = BTreeSet::new();
        for (index, &size) in self.sizes.iter().enumerate() {
            for ordinal in 1..=size {
                expected.insert(self.feed.id(index as u64 + 1, ordinal));
            }
        }
        let mut count = BTreeMap::new();
        for record in seen {
            *count.entry(record.id().to_owned()).or_insert(0) += 1;
        }
        let lost: Vec<_> = expected
            .iter()
            .filter(|id| !count.contains_key(*id))
            .collect();
        let doubled: Vec<_> = count.iter().filter(|(_, count)| **count != 1).collect();
        assert!(
            lost.is_empty(),
            "{} lost, the first {:?}",
            lost.len(),
            lost.first()
        );
        assert!(
            doubled.is_empty(),
            "{} doubled, the first {:?}",
            doubled.len(),
            doubled.first()
        );
        assert_eq!(count.len(), expected.len(), "nothing else");
        let mut last = BTreeMap::new();
        for record in seen {
            let at = position(record.id());
            let before = last.insert(record.key.clone(), at);
            assert!(
                before.is_none_or(|before| before < at),
                "{:?}: {before:?} before {at:?}",
                record.key
            );
        }
    }
}

/// The position in an idempotency id.
pub fn position(id: &str) -> Position {
    let mut parts = id.rsplit('/');
    let ordinal = parts
        .next()
        .and_then(|part| part.parse().ok())
        .expect("ordinal");
    let commit = parts
        .next()
        .and_then(|part| u64::from_str_radix(part, 16).ok())
        .expect("commit");
    Position {
        commit: Lsn(commit),
        ordinal,
    }
}
