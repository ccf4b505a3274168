//! Holding a lease: it is renewed until it is let go or lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lockstep_core::Result;
use lockstep_core::error::Policy;
use tokio::sync::{oneshot, watch};

use crate::measures::Measures;
use crate::provider::{Candidate, Renewal, Token};
use crate::term::{Moment, Term};

/// A lease is renewed so many times in its time: one renewal, and the next, may fail.
pub(crate) const RENEWALS: u32 = 3;

/// How often a waiting [`Right::lost`] looks at the clock, as a part of the time of the lease: timers stand still while the
/// machine is suspended, the clock does not.
const LOOKS: u32 = 10;

/// After a renewal that failed, the next try comes after this part of the time of the lease.
const RETRIES: u32 = 20;

/// A lease that is held. It is renewed until it is let go, lost, or dropped; dropping it lets go in the background.
#[derive(Debug)]
pub struct Held {
    right: Right,
    /// Taken when it is let go.
    orders: Option<oneshot::Sender<oneshot::Sender<Result<()>>>>,
}

/// The right to write that a lease gives, for those who write: it ends with the lease. A clone is the same right.
#[derive(Clone, Debug)]
pub struct Right(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    name: String,
    token: Token,
    term: Term,
    /// It ends, or has ended, because its holder wants it to.
    let_go: AtomicBool,
    /// Wakes those who wait for the end; the term decides.
    ended: watch::Sender<bool>,
    /// How long they wait at most before they look again.
    look: Duration,
}

impl Held {
    pub(crate) fn new(
        name: &str,
        token: Token,
        term: Term,
        candidate: Box<dyn Candidate>,
        ttl: Duration,
        measures: Arc<Measures>,
    ) -> Self {
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            token,
            term,
            let_go: AtomicBool::new(false),
            ended: watch::channel(false).0,
            look: ttl / LOOKS,
        });
        let right = Right(shared);
        let (orders, ordered) = oneshot::channel();
        let keeper = Keeper {
            candidate,
            right: right.clone(),
            ttl,
            measures,
        };
        // It ends when the lease does; a runtime that ends with it leaves a lease that runs out.
        tokio::spawn(keeper.keep(ordered));
        Held {
            right,
            orders: Some(orders),
        }
    }

    /// The name of the lease.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.right.0.name
    }

    /// See [`Right::token`].
    #[must_use]
    pub fn token(&self) -> Token {
        self.right.token()
    }

    /// See [`Right::is_valid_now`].
    #[must_use]
    pub fn is_valid_now(&self) -> bool {
        self.right.is_valid_now()
    }

    /// See [`Right::lost`].
    pub async fn lost(&self) {
        self.right.lost().await;
    }

    /// For those who write.
    #[must_use]
    pub fn right(&self) -> Right {
        self.right.clone()
    }

    /// Lets go: one who waits has it at once. The right ends before anything is sent. A future that is dropped does not change
    /// that; it goes on in the background. Nothing is done for a lease that is lost already.
    ///
    /// # Errors
    /// When the provider will not be told. One that cannot be reached is no error: after `ttl` others have the lease.
    pub async fn release(mut self) -> Result<()> {
        self.right.let_go();
        let (answer, answered) = oneshot::channel();
        let told = self.orders.take().map(|orders| orders.send(answer));
        match told {
            Some(Ok(())) => answered.await.unwrap_or(Ok(())),
            _ => Ok(()),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Then the keeper finds that nobody can give orders any more, and lets go.
        self.right.let_go();
    }
}

impl Right {
    /// The number to send along with each write.
    #[must_use]
    pub fn token(&self) -> Token {
        self.0.token
    }

    /// Whether the lease is still held, by a clock that goes on while this process is frozen and while the machine is suspended.
    /// Once it is `false` it stays so. Costs less than a microsecond: ask before each thing that is done in the lease's name,
    /// and take it for what it is, an answer that may be outdated before it is used. What protects is [`Right::token`].
    #[must_use]
    pub fn is_valid_now(&self) -> bool {
        self.left().is_some()
    }

    /// What is left before the lease is lost unless it is renewed; `None` when it is.
    #[must_use]
    pub fn left(&self) -> Option<Duration> {
        self.0.term.left(Moment::now())
    }

    /// Resolves when the lease is lost, may be lost, or was let go: before the provider can give it to somebody else. After the
    /// machine was suspended it may take a tenth of the lease's time to notice; [`Right::is_valid_now`] knows at once.
    /// Cancel-safe; any number may wait.
    pub async fn lost(&self) {
        let mut ended = self.0.ended.subscribe();
        while let Some(left) = self.left() {
            tokio::select! {
                () = tokio::time::sleep(left.min(self.0.look)) => {}
                // The sender lives in `self`.
                _ = ended.wait_for(|ended| *ended) => {}
            }
        }
    }

    fn let_go(&self) {
        self.0.let_go.store(true, Ordering::SeqCst);
        self.end();
    }

    fn end(&self) {
        self.0.term.end();
        self.0.ended.send_replace(true);
    }
}

/// Renews a lease.
struct Keeper {
    candidate: Box<dyn Candidate>,
    right: Right,
    ttl: Duration,
    measures: Arc<Measures>,
}

impl Keeper {
    async fn keep(mut self, mut ordered: oneshot::Receiver<oneshot::Sender<Result<()>>>) {
        let mut pause = self.pause();
        loop {
            let order = tokio::select! {
                biased;
                order = &mut ordered => Some(order.ok()),
                () = tokio::time::sleep(pause) => None,
            };
            if let Some(answer) = order {
                return self.release(answer).await;
            }
            // A process that was frozen comes here when it wakes up, and must not bring anything back.
            let Some(left) = self.right.left() else {
                return self.over(ordered, "was not renewed in time").await;
            };
            let name = self.right.0.name.as_str();
            let asked = Moment::now();
            let patience = left.min(self.ttl / RENEWALS);
            let renewed = tokio::time::timeout(patience, self.candidate.renew()).await;
            pause = match renewed {
                Ok(Ok(Renewal::Prolonged(granted))) => {
                    let now = Moment::now();
                    if !self.right.0.term.prolong(now, asked, granted) {
                        return self.over(ordered, "was renewed too late").await;
                    }
                    self.pause()
                }
                Ok(Ok(Renewal::Lost)) => return self.lose("is somebody else's"),
                Ok(Err(error)) => {
                    tracing::warn!(lease = name, %error, "not renewed; it is tried again");
                    self.ttl / RETRIES
                }
                Err(_) => {
                    tracing::warn!(
                        lease = name,
                        ?patience,
                        "not renewed: no answer; it is tried again"
                    );
                    self.ttl / RETRIES
                }
            };
        }
    }

    /// The term is over: by the clock, or because the holder has let go, which it says in this moment if it has not yet.
    async fn over(self, ordered: oneshot::Receiver<oneshot::Sender<Result<()>>>, why: &str) {
        match self.right.0.let_go.load(Ordering::SeqCst) {
            true => self.release(ordered.await.ok()).await,
            false => self.lose(why),
        }
    }

    /// Until the next renewal. What is granted may be less than was asked for.
    fn pause(&self) -> Duration {
        let left = self.right.left().unwrap_or_default();
        (self.ttl / RENEWALS).min(left / 2)
    }

    async fn release(mut self, answer: Option<oneshot::Sender<Result<()>>>) {
        // After that time it has run out.
        let released = tokio::time::timeout(self.ttl, self.let_go()).await;
        let released = released.unwrap_or(Ok(()));
        let name = self.right.0.name.as_str();
        match &released {
            Ok(()) => tracing::info!(lease = name, token = %self.right.token(), "let go"),
            Err(error) => {
                tracing::warn!(lease = name, %error, "cannot be let go; it runs out by itself");
            }
        }
        if let Some(answer) = answer {
            // Who asked may be gone.
            let _ = answer.send(released);
        }
    }

    /// A connection that is found broken only now is made anew.
    async fn let_go(&mut self) -> Result<()> {
        loop {
            match self.candidate.release().await {
                Err(error) if error.kind().policy() == Policy::Retry => {
                    tracing::warn!(lease = self.right.0.name, %error, "not let go; it is tried again");
                    tokio::time::sleep(self.ttl / RETRIES).await;
                }
                released => return released,
            }
        }
    }

    fn lose(self, why: &str) {
        let (name, token) = (self.right.0.name.as_str(), self.right.token());
        tracing::warn!(lease = name, %token, "lost: it {why}");
        self.right.end();
        self.measures.lost();
    }
}
