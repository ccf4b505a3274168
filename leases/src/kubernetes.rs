//! Leases as `coordination.k8s.io/v1` objects of a Kubernetes cluster, as its own components elect their leaders with.
//!
//! A lease is an object. It is taken, prolonged and let go by replacing it under the condition that nobody else has replaced it
//! since it was read (`resourceVersion`); the server refuses all but one of those who try at once. The server does not know
//! what a lease is, and lets none run out: whoever waits measures by a clock of its own for how long the object has not changed.
//! Then the holder takes it for lost by *its* clock already, which began before the change was made. The times in the object
//! are for people, and never compared with anything. Those who wait watch the object, and have it at once when it is let go.
//!
//! **The token** is `leaseTransitions`, which every acquisition counts up, also one by the holder before; other clients count
//! only changes of the holder. An object that is deleted begins to count again: so the second in which the object was made, as
//! the server wrote it down, stands in front, and the token is that second times 2²⁰, plus `leaseTransitions`.
//!
//! **What it promises.** One holder at a time, and tokens that only grow, as far as all who take the lease are lockstep.
//!
//! **What it does not.** An object that is deleted and made again within one second begins with a smaller token: do not give
//! the right to delete it. A cluster that is restored from a backup forgets, as any other. The server cannot refuse a renewal
//! that was held back on its way until after the lease has run out: such a one makes those who wait wait once more. And
//! someone who waits for the first time must watch a holder for the whole time of the lease before it knows that it is gone.
//!
//! An API server that has just been started refuses what it permits as soon as it has read the roles: who has been let in before believes
//! a refusal only once it has lasted for as long as a lease.
//!
//! The rights that are needed are `get`, `create`, `update` and `watch` on `leases`; without `watch` those who wait look three
//! times in the time of a lease.

mod client;
mod object;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use lockstep_core::config::Secret;
use lockstep_core::{Error, ErrorKind, Result};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::OnceCell;

use crate::config::default_ttl;
use crate::name;
use crate::provider::{Attempt, Candidate, Provider, Renewal};
use crate::term::Moment;
use client::{Answer, Client};
use object::Object;

/// Leases in a Kubernetes cluster.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KubernetesLeases {
    /// The API server: `https://host:6443`. Default: that of the cluster this runs in.
    #[serde(default)]
    pub url: Option<String>,
    /// The namespace of the leases. Default: that of the service account.
    #[serde(default)]
    pub namespace: Option<String>,
    /// A bearer token. Default: the service account's, which is read again for each request, as the cluster changes it.
    #[serde(default)]
    pub token: Option<Secret>,
    /// The certificate authorities to trust, as a PEM file. Default: the service account's, or with `url` the system's.
    #[serde(default)]
    pub ca: Option<std::path::PathBuf>,
    /// How long a lease lasts unless it is renewed, in whole seconds. Default: `10s`.
    #[serde(default = "default_ttl")]
    pub ttl: lockstep_core::config::Duration,
}

impl KubernetesLeases {
    /// Where leases are kept, for [`Leases::new`](crate::Leases::new). Does no I/O.
    ///
    /// # Errors
    /// Of kind `Config`, naming the field.
    pub fn provider(&self) -> Result<Kubernetes> {
        let ttl = self.ttl.0;
        if ttl.subsec_nanos() != 0 {
            return Err(Error::new(
                ErrorKind::Config,
                format!("a lease of {} is not one of whole seconds", self.ttl),
            )
            .remedy("use whole seconds: that is how Kubernetes writes it")
            .at("ttl"));
        }
        client::check(self)?;
        Ok(Kubernetes(Arc::new(Shared {
            config: self.clone(),
            client: OnceCell::new(),
        })))
    }
}

/// The provider.
#[derive(Clone, Debug)]
pub struct Kubernetes(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    config: KubernetesLeases,
    /// Made by the first attempt, since files are read for it.
    client: OnceCell<Client>,
}

impl Provider for Kubernetes {
    fn candidate(&self, name: &str, holder: &str) -> Result<Box<dyn Candidate>> {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let part = |part: &str| {
            part.chars().all(inner)
                && !part.is_empty()
                && !part.starts_with('-')
                && !part.ends_with('-')
        };
        if !name.split('.').all(part) {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("`{name}` cannot name an object of Kubernetes"),
            )
            .remedy("use lower-case letters, digits, `-` and `.`, as in a host name"));
        }
        Ok(Box::new(Contender {
            shared: Arc::clone(&self.0),
            name: name.to_owned(),
            holder: name::unique(holder)?,
            seen: None,
            mine: None,
            refused: None,
        }))
    }

    fn place(&self) -> String {
        let url = self.0.config.url.as_deref();
        url.unwrap_or("the Kubernetes cluster").to_owned()
    }
}

/// One who wants an object to name it.
struct Contender {
    shared: Arc<Shared>,
    name: String,
    /// In the object: this candidate and no other.
    holder: String,
    /// Somebody else's object as it was seen last, and since when it has been so.
    seen: Option<(String, Moment)>,
    /// The object as this candidate wrote it last.
    mine: Option<Object>,
    /// Since when the server has refused all that was asked, after it had answered.
    refused: Option<Moment>,
}

impl Contender {
    async fn client(&self) -> Result<&Client> {
        let config = &self.shared.config;
        self.shared
            .client
            .get_or_try_init(|| Client::new(config))
            .await
    }

    fn ttl(&self) -> Duration {
        self.shared.config.ttl.0
    }

    fn taken(&mut self, object: Object) -> Result<Attempt> {
        let token = object.token()?;
        self.mine = Some(object);
        self.seen = None;
        Ok(Attempt::Taken {
            token,
            granted: self.ttl(),
        })
    }

    /// How long the holder has not been heard of, by the object it writes.
    fn silent(&mut self, object: &Object) -> Duration {
        let now = Moment::now();
        let version = object.version();
        match &self.seen {
            Some((seen, since)) if *seen == version => now.since(*since),
            _ => {
                self.seen = Some((version.to_owned(), now));
                Duration::ZERO
            }
        }
    }

    /// A refusal that may pass is `Unavailable`: see the module's page.
    fn believed<T>(&mut self, answer: Result<T>) -> Result<T> {
        let error = match answer {
            Ok(answer) => {
                self.refused = None;
                return Ok(answer);
            }
            Err(error) => error,
        };
        let is_refusal = matches!(
            error.kind(),
            ErrorKind::Authentication | ErrorKind::Permission
        );
        let was_let_in = self.shared.client.get().is_some_and(Client::was_let_in);
        if !is_refusal || !was_let_in {
            return Err(error);
        }
        let now = Moment::now();
        let since = *self.refused.get_or_insert(now);
        if now.since(since) >= self.ttl() {
            return Err(error);
        }
        Err(Error::new(
            ErrorKind::Unavailable,
            "the API server refuses what it permitted before, as one does that has just been started",
        )
        .source(error))
    }

    /// Takes the object if nobody has it.
    async fn take(&mut self) -> Result<Attempt> {
        let soon = Attempt::Refused {
            left: Some(Duration::ZERO),
        };
        let Some(mut object) = self.client().await?.read(&self.name).await? else {
            let object = Object::new(&self.name, &self.holder, self.ttl());
            return match self.client().await?.create(&object).await? {
                Answer::Object(made) => self.taken(made),
                Answer::Conflict | Answer::Missing => Ok(soon),
            };
        };
        // The holder that it names may be this one, which has not got the answer.
        if !object.holder().is_empty() && object.holder() != self.holder {
            let silent = self.silent(&object);
            let lasts = object.lasts().unwrap_or_else(|| self.ttl());
            if silent < lasts {
                let left = Some(lasts - silent);
                return Ok(Attempt::Refused { left });
            }
        }
        object.take(&self.holder, self.ttl())?;
        match self.client().await?.replace(&self.name, &object).await? {
            Answer::Object(written) => self.taken(written),
            Answer::Conflict | Answer::Missing => Ok(soon),
        }
    }

    /// Writes what `change` makes of the object that this candidate wrote last. Where somebody has changed it meanwhile and left
    /// the holder alone, or the answer to the last write was lost, once more. `None`: it is somebody else's.
    async fn rewrite(&mut self, change: impl Fn(&mut Object)) -> Result<Option<Object>> {
        let Some(mut mine) = self.mine.clone() else {
            return Ok(None);
        };
        let transitions = mine.transitions();
        for _ in 0..2 {
            change(&mut mine);
            match self.client().await?.replace(&self.name, &mine).await? {
                Answer::Object(written) => return Ok(Some(written)),
                Answer::Missing => return Ok(None),
                Answer::Conflict => {}
            }
            match self.client().await?.read(&self.name).await? {
                Some(now) if now.holder() == self.holder && now.transitions() == transitions => {
                    mine = now;
                }
                _ => return Ok(None),
            }
        }
        Err(Error::new(
            ErrorKind::Unavailable,
            "somebody changes the object all the time",
        ))
    }
}

#[async_trait]
impl Candidate for Contender {
    async fn attempt(&mut self) -> Result<Attempt> {
        let taken = self.take().await;
        self.believed(taken)
    }

    async fn wait(&mut self, limit: Duration) -> Result<()> {
        let since = self.seen.as_ref().map(|(version, _)| version.as_str());
        let client = self.client().await?;
        let changed = client.changed(&self.name, since.unwrap_or_default(), limit);
        // After the limit another look is due in any case.
        let _ = tokio::time::timeout(limit, changed).await;
        Ok(())
    }

    async fn renew(&mut self) -> Result<Renewal> {
        let written = self.rewrite(Object::renew).await;
        Ok(match self.believed(written)? {
            Some(written) => {
                self.mine = Some(written);
                Renewal::Prolonged(self.ttl())
            }
            None => Renewal::Lost,
        })
    }

    async fn release(&mut self) -> Result<()> {
        let written = self.rewrite(Object::release).await;
        self.believed(written)?;
        self.mine = None;
        Ok(())
    }
}
