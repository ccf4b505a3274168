//! The moment a write becomes safe, as a value.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::oneshot;

use crate::error::{Error, ErrorKind, Result};

/// What a sink did with a batch, for the metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delivered {
    /// Records (messages, keys, documents) written.
    pub written: u64,
    /// Writes the other side refused because it holds the same or a newer version. Not a loss: I4 at work.
    pub stale: u64,
    /// Of those written: rows without a value that an UPDATE left unchanged, because the other side did not hold it. The
    /// copy differs from its source until the row is loaded again.
    pub incomplete: u64,
    /// Payload bytes handed over.
    pub bytes: u64,
}

impl std::ops::AddAssign for Delivered {
    fn add_assign(&mut self, other: Self) {
        self.written += other.written;
        self.stale += other.stale;
        self.incomplete += other.incomplete;
        self.bytes += other.bytes;
    }
}

/// Resolves to `Ok` when a batch, and all batches written to the sink before it, are durable. Cancel-safe.
///
/// A [`Receipt`] dropped without an answer resolves to an error of kind [`ErrorKind::Abandoned`]: silence is not
/// success (I10).
#[must_use = "durability must be awaited or handed on"]
pub struct Durable(State);

enum State {
    Now(Option<Result<Delivered>>),
    Later(oneshot::Receiver<Result<Delivered>>),
}

/// The sink's end of a [`Durable`].
#[must_use = "dropping a receipt reports the batch as not durable"]
pub struct Receipt(oneshot::Sender<Result<Delivered>>);

impl Durable {
    /// Already durable.
    pub fn now(delivered: Delivered) -> Self {
        Durable(State::Now(Some(Ok(delivered))))
    }

    /// To be answered later.
    pub fn later() -> (Self, Receipt) {
        let (sender, receiver) = oneshot::channel();
        (Durable(State::Later(receiver)), Receipt(sender))
    }
}

impl Receipt {
    /// Answers. Whoever waited may be gone; that is no fault of the sink.
    pub fn resolve(self, result: Result<Delivered>) {
        let _ = self.0.send(result);
    }
}

impl Future for Durable {
    type Output = Result<Delivered>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            State::Now(result) => Poll::Ready(result.take().unwrap_or_else(|| Err(abandoned()))),
            State::Later(receiver) => Pin::new(receiver)
                .poll(cx)
                .map(|answer| answer.unwrap_or_else(|_| Err(abandoned()))),
        }
    }
}

fn abandoned() -> Error {
    Error::new(
        ErrorKind::Abandoned,
        "a batch was dropped without an answer; it counts as not written",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dropped_receipt_is_an_error() {
        let (durable, receipt) = Durable::later();
        drop(receipt);
        assert_eq!(
            durable.await.expect_err("dropped").kind(),
            ErrorKind::Abandoned
        );
    }
}
