//! Acquiring leases.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use lockstep_core::error::{At, Policy};
use lockstep_core::{Error, ErrorKind, Result};

use crate::held::{Held, RENEWALS};
use crate::measures::{End, Figures, Measures};
use crate::name;
use crate::provider::{Attempt, Candidate, Provider, Token};
use crate::term::{Moment, Term};

/// The first pause after an error; each further one is twice as long, up to the time between renewals.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// A lease that runs out at this moment is looked at again after so long.
const LEAST_WAIT: Duration = Duration::from_millis(5);

/// Gives out the leases of one provider. A clone gives out the same.
#[derive(Clone)]
pub struct Leases(Arc<Inner>);

struct Inner {
    provider: Box<dyn Provider>,
    ttl: Duration,
    measures: Arc<Measures>,
}

impl fmt::Debug for Leases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leases")
            .field("place", &self.0.provider.place())
            .field("ttl", &self.0.ttl)
            .finish()
    }
}

impl Leases {
    /// Those of `provider`, which last for `ttl` unless they are renewed. The provider must have been made for the same time.
    #[must_use]
    pub fn new(provider: impl Provider, ttl: Duration) -> Self {
        Leases(Arc::new(Inner {
            provider: Box::new(provider),
            ttl,
            measures: Arc::default(),
        }))
    }

    /// How long a lease lasts unless it is renewed. Who follows a holder that is frozen, killed or cut off has it within twice
    /// this time.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        self.0.ttl
    }

    /// The server, for messages, without credentials.
    #[must_use]
    pub fn kept_at(&self) -> String {
        self.0.provider.place()
    }

    /// Whether a lease may have this name.
    ///
    /// # Errors
    /// Of kind `Invalid` when it may not, or as the provider says.
    pub fn suits(&self, name: &str) -> Result<()> {
        self.candidate(name, "anybody").map(drop)
    }

    /// What came of attempts so far.
    #[must_use]
    pub fn figures(&self) -> Figures {
        self.0.measures.figures()
    }

    /// Waits until it holds the lease `name`, however long that takes, through outages of the provider too. `holder` is for
    /// people to read: two with the same are two all the same. The lease is renewed by a task of the runtime that this is
    /// called on, until it is let go or lost.
    ///
    /// Those who wait get it in the order in which they came from ZooKeeper, mostly so from Redis, and in no order from others.
    ///
    /// Cancel-safe. A call that is dropped may have taken the lease in just that moment: nobody renews it then, and others have
    /// it after `ttl` at the latest. It leaves nothing else behind.
    ///
    /// # Errors
    /// What only a person can mend: credentials, rights, a name that cannot be one. `Invalid` for the latter.
    pub async fn acquire(&self, name: &str, holder: &str) -> Result<Held> {
        let attempted = self.0.measures.begin();
        let held = self.wait_for(name, holder).await;
        attempted.ends(match held {
            Ok(_) => End::Acquired,
            Err(_) => End::Failed,
        });
        held
    }

    /// As [`Leases::acquire`], for at most as long as `patience`: `None` after it.
    ///
    /// # Errors
    /// As for [`Leases::acquire`].
    pub async fn acquire_within(
        &self,
        name: &str,
        holder: &str,
        patience: Duration,
    ) -> Result<Option<Held>> {
        let attempted = self.0.measures.begin();
        let held = match tokio::time::timeout(patience, self.wait_for(name, holder)).await {
            Ok(held) => held.map(Some),
            Err(_) => Ok(None),
        };
        attempted.ends(match held {
            Ok(Some(_)) => End::Acquired,
            Ok(None) => End::TimedOut,
            Err(_) => End::Failed,
        });
        held
    }

    /// Takes the lease if nobody has it; `None` when somebody has. Does not wait for more than the provider's answers.
    /// Kubernetes cannot tell at a first look whether a holder is alive, and takes every one for alive.
    ///
    /// Cancel-safe, as [`Leases::acquire`].
    ///
    /// # Errors
    /// As for [`Leases::acquire`], and those that may pass by themselves: nothing is tried again.
    pub async fn try_acquire(&self, name: &str, holder: &str) -> Result<Option<Held>> {
        let attempted = self.0.measures.begin();
        let held = self.look_once(name, holder).await;
        attempted.ends(match held {
            Ok(Some(_)) => End::Acquired,
            Ok(None) => End::Refused,
            Err(_) => End::Failed,
        });
        held
    }

    async fn look_once(&self, name: &str, holder: &str) -> Result<Option<Held>> {
        let mut candidate = self.candidate(name, holder)?;
        let asked = Moment::now();
        let place = || self.place(name);
        match self.attempt(&mut *candidate).await.at(place())? {
            Attempt::Taken { token, granted } => {
                let term = Term::new(asked, granted);
                if term.left(Moment::now()).is_none() {
                    return Err(self.late().at(place()));
                }
                Ok(Some(self.held(name, token, term, candidate)))
            }
            Attempt::Refused { .. } => {
                // What it has left there would go by itself.
                let _ = tokio::time::timeout(self.0.ttl, candidate.release()).await;
                Ok(None)
            }
        }
    }

    async fn wait_for(&self, name: &str, holder: &str) -> Result<Held> {
        let mut candidate = self.candidate(name, holder)?;
        let mut pause = FIRST_PAUSE;
        loop {
            let failed = match self.step(name, &mut *candidate).await {
                Ok(Some((token, term))) => return Ok(self.held(name, token, term, candidate)),
                Ok(None) => {
                    pause = FIRST_PAUSE;
                    continue;
                }
                Err(error) => error.at(self.place(name)),
            };
            match failed.kind().policy() {
                Policy::Stop => return Err(failed),
                Policy::Retry => {
                    tracing::warn!(lease = name, error = %failed, "cannot be asked for; it is tried again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(self.between());
                }
            }
        }
    }

    /// One attempt, and the wait after a refusal.
    async fn step(
        &self,
        name: &str,
        candidate: &mut dyn Candidate,
    ) -> Result<Option<(Token, Term)>> {
        let asked = Moment::now();
        match self.attempt(candidate).await? {
            Attempt::Taken { token, granted } => {
                let term = Term::new(asked, granted);
                if term.left(Moment::now()).is_some() {
                    return Ok(Some((token, term)));
                }
                tracing::warn!(lease = name, %token, "the answer came too late to be of use");
                Ok(None)
            }
            Attempt::Refused { left } => {
                // Never so long that a word that was lost would cost more than a renewal.
                let between = self.between();
                let limit = left.map_or(between, |left| left.min(between));
                candidate.wait(limit.max(LEAST_WAIT)).await.map(|()| None)
            }
        }
    }

    /// An answer that comes after the time of a lease is of no use.
    async fn attempt(&self, candidate: &mut dyn Candidate) -> Result<Attempt> {
        tokio::time::timeout(self.0.ttl, candidate.attempt())
            .await
            .unwrap_or_else(|_| Err(self.late()))
    }

    fn candidate(&self, name: &str, holder: &str) -> Result<Box<dyn Candidate>> {
        name::check(name, holder)?;
        let candidate = self.0.provider.candidate(name, holder);
        candidate.at(self.place(name))
    }

    fn held(&self, name: &str, token: Token, term: Term, candidate: Box<dyn Candidate>) -> Held {
        tracing::info!(lease = name, %token, "held");
        let measures = Arc::clone(&self.0.measures);
        Held::new(name, token, term, candidate, self.0.ttl, measures)
    }

    /// The time between two renewals.
    fn between(&self) -> Duration {
        self.0.ttl / RENEWALS
    }

    fn late(&self) -> Error {
        Error::new(
            ErrorKind::Unavailable,
            format!("no answer within {:?}, the time of a lease", self.0.ttl),
        )
        .remedy("look at the server and at what is between; or raise the lease's ttl")
    }

    fn place(&self, name: &str) -> String {
        format!("lease {name} at {}", self.0.provider.place())
    }
}
