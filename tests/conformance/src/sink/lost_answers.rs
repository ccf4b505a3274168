//! A sink that does the work, and whose answers get lost on the way.

use std::sync::Arc;

use async_trait::async_trait;
use lockstep_core::batch::Batch;
use lockstep_core::durable::Durable;
use lockstep_core::position::{Position, SourceInfo};
use lockstep_core::sink::Sink;
use lockstep_core::{Error, ErrorKind, Result};

use super::{Bench, Held, Progress, SinkUnderTest, answer};
use crate::history::{Random, cut, history, model};

use super::crashes::{STEPS, events_of, expected_events, in_order, random, write_all};

/// Sinks of a run whose answers get lost.
const ROUNDS: usize = 12;

/// Hands everything on to a sink, and says of some of what has become durable that it has not: what a connection looks like
/// that breaks between the work and the answer. It is then to be dropped and opened again, as after any other error.
#[derive(Debug)]
pub struct LosesAnswers<S> {
    inner: S,
    /// Answers that still come through.
    left: u64,
}

impl<S> LosesAnswers<S> {
    /// The first `left` answers come through, and no others.
    pub fn after(left: u64, inner: S) -> Self {
        LosesAnswers { inner, left }
    }
}

#[async_trait]
impl Sink for LosesAnswers<Box<dyn Sink>> {
    async fn resume(
        &mut self,
        source: &SourceInfo,
    ) -> Result<Option<lockstep_core::progress::Progress>> {
        self.inner.resume(source).await
    }

    async fn write(&mut self, batch: Arc<Batch>) -> Result<Durable> {
        let durable = self.inner.write(batch).await?;
        if self.left > 0 {
            self.left -= 1;
            return Ok(durable);
        }
        let (lost, receipt) = Durable::later();
        tokio::spawn(async move {
            let message = "the answer was lost";
            let lost = durable
                .await
                .and(Err(Error::new(ErrorKind::Unavailable, message)));
            receipt.resolve(lost);
        });
        Ok(lost)
    }

    async fn flush(&mut self) -> Result<()> {
        self.inner.flush().await
    }

    async fn close(self: Box<Self>) -> Result<()> {
        self.inner.close().await
    }
}

/// A history is written by sinks whose answers get lost, and by the next one again from where it says that it stands. In the
/// end all is there, once.
///
/// # Panics
/// When it is not, or a sink resumes from less than what it had made durable.
pub async fn answers_that_get_lost_change_nothing(sink: &dyn SinkUnderTest) {
    let bench = Bench::new(sink);
    let mut random = random();
    let history = history(&mut random, STEPS);
    // By the sink, whoever heard of it.
    let mut done = None;
    for round in 0..=ROUNDS {
        let mut sink = bench.open().await;
        let resumed = sink
            .resume(&bench.source)
            .await
            .expect("resume")
            .map(|held| held.upto());
        if bench.under_test.progress() == Progress::Atomic {
            assert!(
                resumed >= done,
                "round {round}: durable up to {done:?}, and resumed from {resumed:?}"
            );
        }
        let batches = cut(&history, &bench.source, &bench.items, &mut random, resumed);
        if round == ROUNDS {
            write_all(sink, batches, &mut random).await;
            break;
        }
        done = lose(sink, batches, &mut random).await.max(done);
    }
    match bench.under_test.held(&bench.items).await {
        Held::Rows(rows) => assert_eq!(rows, model(&history, None), "the rows in the end"),
        Held::Events(events) => {
            assert_eq!(
                events_of(&events),
                expected_events(&history, &bench.source, None)
            );
            in_order(&events);
        }
    }
}

/// Writes some batches, of which only the first are answered; gives how far all were made durable.
async fn lose(
    sink: Box<dyn Sink>,
    batches: Vec<Arc<Batch>>,
    random: &mut Random,
) -> Option<Position> {
    let mut sink = LosesAnswers::after(random.below(3), sink);
    let most = 1 + random.below(5) as usize;
    let mut waiting = Vec::new();
    for batch in batches.into_iter().take(most) {
        let last = batch.changes().last().map(|change| batch.position(change));
        waiting.push((last, sink.write(batch).await.expect("taken")));
    }
    sink.flush().await.expect("flushes");
    let mut done = None;
    for (last, durable) in waiting {
        match answer(durable).await {
            Ok(_) => {}
            Err(error) => assert_eq!(error.message(), "the answer was lost"),
        }
        done = last.max(done);
    }
    done
}
