//! Asks all sources where their logs end.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, try_join_all};
use lockstep_core::error::At;
use lockstep_core::position::Lsn;
use lockstep_core::sink::Trouble;
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_transactions::order::Ticket;
use tokio::time::{Instant, Sleep, sleep_until};

use super::super::source_state::SourceShare;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two questions, when the first had no answer.
const PAUSE: Duration = Duration::from_millis(100);
/// Between two questions otherwise: most of what commits meanwhile commits everywhere, and then needs no answer.
const SPACING: Duration = Duration::from_millis(5);

/// One question at a time: it is for all that waits.
pub(super) struct Fencing {
    shares: Vec<Arc<SourceShare>>,
    asking: Option<BoxFuture<'static, (Ticket, Result<Vec<Lsn>>)>>,
    /// After one.
    pause: Option<Pin<Box<Sleep>>>,
    trouble: Trouble,
    /// The last question had no answer, and somebody waits for one.
    is_troubled: bool,
}

/// What happened.
pub(super) enum Happened {
    /// An answer, or that there is none.
    Answered(Ticket, Option<Vec<Lsn>>),
    /// The pause is over: it may be asked again.
    MayAsk,
}

impl Fencing {
    pub fn new(shares: Vec<Arc<SourceShare>>, trouble: Trouble) -> Self {
        Fencing {
            shares,
            asking: None,
            pause: None,
            trouble,
            is_troubled: false,
        }
    }

    /// Whether a question may be asked now.
    pub fn may_ask(&self) -> bool {
        self.asking.is_none() && self.pause.is_none()
    }

    /// Asks a question.
    pub fn ask(&mut self, ticket: Ticket) {
        let shares = self.shares.clone();
        self.asking = Some(Box::pin(async move {
            let ends = try_join_all(shares.iter().map(|share| fence(share))).await;
            (ticket, ends)
        }));
    }

    /// Nobody waits for an answer.
    pub fn rest(&mut self) {
        if std::mem::take(&mut self.is_troubled) {
            self.trouble.clear();
        }
    }

    /// The next thing to happen; pends while nothing is asked. Cancel-safe.
    pub async fn next(&mut self) -> Happened {
        if let Some(asking) = &mut self.asking {
            let (ticket, ends) = asking.await;
            self.asking = None;
            let pause = match &ends {
                Ok(_) => {
                    self.rest();
                    SPACING
                }
                Err(error) => {
                    tracing::debug!(%error, "it is not known which branches there are");
                    self.trouble.report(error.to_string());
                    self.is_troubled = true;
                    PAUSE
                }
            };
            self.pause = Some(Box::pin(sleep_until(Instant::now() + pause)));
            return Happened::Answered(ticket, ends.ok());
        }
        match &mut self.pause {
            Some(pause) => {
                pause.await;
                self.pause = None;
                Happened::MayAsk
            }
            None => std::future::pending().await,
        }
    }
}

/// Where the log of a source ends.
///
/// # Errors
/// When it cannot be asked, or does not answer in time.
pub(super) async fn fence(share: &SourceShare) -> Result<Lsn> {
    let place = format!("sources.{}", share.name);
    let unavailable = |what: &str| Error::new(ErrorKind::Unavailable, what);
    let Some(fences) = share.fences() else {
        let what = "it is not open, or cannot tell where its log ends: transactions of several databases wait for it";
        return Err(unavailable(what).at(place));
    };
    let answer = tokio::time::timeout(PATIENCE, fences.fence()).await;
    answer
        .unwrap_or_else(|_| Err(unavailable("it does not say where its log ends")))
        .at(place)
}
