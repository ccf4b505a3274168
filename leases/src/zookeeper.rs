//! Leases in ZooKeeper: a queue of ephemeral nodes, of which the first has the lease.
//!
//! Each candidate has a session, and in the directory of the lease, `/lockstep/leases/NAME`, a node that goes when the session
//! ends. Its name begins with what only this candidate knows: a node may have been made although the answer was lost, and is
//! found again by it. Behind that ZooKeeper writes the place in the queue. Each candidate watches the one before it and no other,
//! so that one that goes wakes one. The token is the `czxid` of the node: the number of the transaction that made it.
//!
//! **What it promises.** One holder at a time, in the order of arrival; tokens that only grow for as long as the ensemble is the
//! same, also when a directory is removed and made again. What was answered is on the disks of a majority.
//!
//! **When a session counts as lost.** The leader ends it when it has not heard of it for the session's time. Servers tell the
//! leader every half tick of whom they have heard, so a request may have been seen by a server and not by the leader. Hence a
//! renewal is a write to the candidate's own node, which goes through the leader, and is good for two thirds of the session's
//! time: half a tick is at most a quarter of it, as the shortest session has two ticks. A read would prove nothing, as a server
//! that is cut off from the leader goes on answering reads.
//!
//! **What to set up.** A session lasts for 2 to 20 ticks of the server (`tickTime`, by default 2 s: 4 to 40 s); a `ttl` outside
//! is moved to the nearest by the server. The leader ends sessions by the tick: a crashed holder is followed within the `ttl` and
//! one tick, so half the `ttl` is the longest tick that keeps the promise of twice the `ttl`. Places are counted in 32 bits and
//! may overflow, which is taken care of.
//!
//! The protocol is spoken here, in the few requests that a lease needs: one request at a time, no threads, nothing that keeps
//! a session alive behind the back of the one who decides whether it still has a lease. Connections are not encrypted.

mod link;
mod record;

use std::time::Duration;

use async_trait::async_trait;
use lockstep_core::config::Secret;
use lockstep_core::{Error, ErrorKind, Result};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::config::default_ttl;
use crate::name;
use crate::provider::{Attempt, Candidate, Provider, Renewal, Token};
use link::{Link, Opened, Servers, Session};

/// Under the root that the servers' address names.
const DIRECTORY: &str = "/lockstep/leases";

/// Leases in ZooKeeper.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ZookeeperLeases {
    /// The servers of the ensemble, `host:port,host:port`; with `/path` behind them everything is kept under that path.
    pub servers: String,
    /// `user:password`, for servers that ask who one is (`digest`): nobody else can then use what is made.
    #[serde(default)]
    pub digest: Option<Secret>,
    /// How long a lease lasts unless it is renewed; the time of a session. Default: `10s`.
    #[serde(default = "default_ttl")]
    pub ttl: lockstep_core::config::Duration,
}

impl ZookeeperLeases {
    /// Where leases are kept, for [`Leases::new`](crate::Leases::new). Does no I/O.
    ///
    /// # Errors
    /// Of kind `Config` when the servers cannot be read.
    pub fn provider(&self) -> Result<Zookeeper> {
        Ok(Zookeeper {
            servers: Servers::parse(&self.servers, self.digest.clone(), self.ttl.0)?,
        })
    }
}

/// The provider.
#[derive(Clone, Debug)]
pub struct Zookeeper {
    servers: Servers,
}

impl Provider for Zookeeper {
    fn candidate(&self, name: &str, holder: &str) -> Result<Box<dyn Candidate>> {
        Ok(Box::new(Contender {
            servers: self.servers.clone(),
            directory: format!("{}{DIRECTORY}/{name}", self.servers.root),
            holder: holder.to_owned(),
            session: None,
            link: None,
            prefix: String::new(),
            node: None,
        }))
    }

    fn place(&self) -> String {
        self.servers.place()
    }
}

/// One who stands in the queue.
struct Contender {
    servers: Servers,
    directory: String,
    /// What the node says, for people.
    holder: String,
    session: Option<Session>,
    /// Missing after anything failed, or was given up on the way. The session may be alive all the same.
    link: Option<Link>,
    /// What the node's name begins with: another one for each session.
    prefix: String,
    /// The name of the node, in the directory, once the lease was taken.
    node: Option<String>,
}

impl Contender {
    /// The connection, made anew in the same session where that is still there; `None` where it is not.
    ///
    /// Taken out: a future that is dropped on the way drops the connection, and with it the answer nobody has read.
    async fn link(&mut self) -> Result<Option<Link>> {
        if let Some(link) = self.link.take() {
            return Ok(Some(link));
        }
        let Some(session) = self.session.clone() else {
            return Ok(None);
        };
        match Link::open(&self.servers, Some(session)).await? {
            Opened::Link(link) => Ok(Some(*link)),
            Opened::Expired => {
                self.forget();
                Ok(None)
            }
        }
    }

    /// As [`Contender::link`], in a new session where there is none.
    async fn link_or_begin(&mut self) -> Result<Link> {
        if let Some(link) = self.link().await? {
            return Ok(link);
        }
        let Opened::Link(link) = Link::open(&self.servers, None).await? else {
            return Err(Error::new(
                ErrorKind::Unavailable,
                "the server ended the session in the same moment",
            ));
        };
        self.forget();
        self.prefix = format!("{}-", name::nonce()?);
        self.session = Some(link.session().clone());
        Ok(*link)
    }

    /// For the next call.
    fn keep(&mut self, link: Link) {
        self.session = Some(link.session().clone());
        self.link = Some(link);
    }

    /// The session has ended, and the node with it.
    fn forget(&mut self) {
        self.session = None;
        self.node = None;
    }

    fn path(&self, node: &str) -> String {
        format!("{}/{node}", self.directory)
    }

    /// Puts itself at the end of the queue.
    async fn stand(&mut self, link: &mut Link) -> Result<()> {
        let path = self.path(&self.prefix);
        if link.create(&path, &self.holder, true).await?.is_some() {
            return Ok(());
        }
        self.make_directory(link).await?;
        let made = link.create(&path, &self.holder, true).await?;
        made.map(drop).ok_or_else(|| removed(&self.directory))
    }

    async fn make_directory(&self, link: &mut Link) -> Result<()> {
        for (at, _) in self.directory.match_indices('/').skip(1) {
            link.create(&self.directory[..at], "", false).await?;
        }
        let made = link.create(&self.directory, "", false).await?;
        made.map(drop).ok_or_else(|| removed(&self.directory))
    }

    async fn look(&mut self, link: &mut Link) -> Result<Attempt> {
        // Again: the one before may go between two looks.
        loop {
            let queue = link.children(&self.directory).await?.unwrap_or_default();
            // Not there: never asked for, or removed by hand.
            let Some(mine) = find(&queue, &self.prefix).map(str::to_owned) else {
                self.stand(link).await?;
                continue;
            };
            match before(&queue, &mine) {
                None => {
                    // Goes through the leader, which says whether the session is alive.
                    let Some(czxid) = link.write(&self.path(&mine), &self.holder).await? else {
                        continue;
                    };
                    self.node = Some(mine);
                    return Ok(Attempt::Taken {
                        token: Token(czxid),
                        granted: link.session().granted(),
                    });
                }
                Some(before) => {
                    if link.watch(&self.path(before)).await? {
                        return Ok(Attempt::Refused { left: None });
                    }
                }
            }
        }
    }
}

fn removed(directory: &str) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!("{directory} was removed while a node was made in it"),
    )
}

/// The place in the queue; `None` for a node of somebody else.
fn place(node: &str) -> Option<i32> {
    let (nonce, place) = node.split_once('-')?;
    let ours = nonce.len() == 24 && nonce.bytes().all(|byte| byte.is_ascii_hexdigit());
    // Beyond 2³¹−1 it is negative.
    ours.then(|| place.parse().ok()).flatten()
}

/// The first of those whose names begin so: a second one is there when a request went on its way although its connection was
/// given up.
fn find<'a>(queue: &'a [String], prefix: &str) -> Option<&'a str> {
    let mut mine = queue.iter().filter(|node| node.starts_with(prefix));
    let mut first = mine.next()?;
    for other in mine {
        if place(other)?.wrapping_sub(place(first)?) < 0 {
            first = other;
        }
    }
    Some(first)
}

/// The node directly before `mine`.
fn before<'a>(queue: &'a [String], mine: &str) -> Option<&'a str> {
    let mine = place(mine)?;
    // Differences, as the counter overflows.
    let ahead = queue.iter().filter_map(|node| {
        let distance = mine.wrapping_sub(place(node)?);
        (distance > 0).then_some((distance, node.as_str()))
    });
    ahead.min().map(|(_, node)| node)
}

#[async_trait]
impl Candidate for Contender {
    async fn attempt(&mut self) -> Result<Attempt> {
        let mut link = self.link_or_begin().await?;
        let attempt = self.look(&mut link).await;
        if let Err(error) = &attempt
            && link::is_expired(error)
        {
            self.forget();
        }
        let attempt = attempt?;
        self.keep(link);
        Ok(attempt)
    }

    async fn wait(&mut self, limit: Duration) -> Result<()> {
        let Some(link) = &mut self.link else {
            return Ok(());
        };
        // The next attempt keeps the session alive.
        let limit = limit.min(link.session().granted() / 2);
        if let Ok(Err(error)) = tokio::time::timeout(limit, link.event()).await {
            self.link = None;
            return Err(error);
        }
        Ok(())
    }

    async fn renew(&mut self) -> Result<Renewal> {
        let (Some(mut link), Some(node)) = (self.link().await?, self.node.clone()) else {
            return Ok(Renewal::Lost);
        };
        let renewal = match link.write(&self.path(&node), &self.holder).await {
            Ok(Some(_)) => Renewal::Prolonged(link.session().granted()),
            Ok(None) => Renewal::Lost,
            Err(error) if link::is_expired(&error) => Renewal::Lost,
            Err(error) => return Err(error),
        };
        self.keep(link);
        Ok(renewal)
    }

    async fn release(&mut self) -> Result<()> {
        if let Some(link) = self.link().await? {
            link.end_session().await?;
        }
        self.forget();
        Ok(())
    }
}

impl Drop for Contender {
    /// Else the node would keep its place until the session runs out.
    fn drop(&mut self) {
        if let (Some(link), Ok(runtime)) = (self.link.take(), tokio::runtime::Handle::try_current())
        {
            // If it fails, the session runs out.
            runtime.spawn(async move { link.end_session().await.is_ok() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(nonce: char, place: i32) -> String {
        format!("{}-{place:010}", nonce.to_string().repeat(24))
    }

    #[test]
    fn one_watches_the_one_before_it() {
        let queue = [
            node('b', 7),
            node('c', 3),
            node('a', 5),
            "other-0000000006".into(),
        ];
        assert_eq!(before(&queue, &queue[0]), Some(queue[2].as_str()));
        assert_eq!(before(&queue, &queue[2]), Some(queue[1].as_str()));
        assert_eq!(before(&queue, &queue[1]), None);
    }

    #[test]
    fn the_queue_goes_on_when_its_counter_overflows() {
        let queue = [
            node('a', i32::MIN),
            node('b', i32::MAX),
            node('c', i32::MIN + 1),
        ];
        assert_eq!(before(&queue, &queue[1]), None);
        assert_eq!(before(&queue, &queue[0]), Some(queue[1].as_str()));
        assert_eq!(before(&queue, &queue[2]), Some(queue[0].as_str()));
    }

    #[test]
    fn a_node_whose_name_was_never_heard_is_found_and_the_first_of_two() {
        let queue = [node('a', 1), node('b', 3), node('b', 2)];
        let prefix = |nonce: &str| format!("{}-", nonce.repeat(24));
        assert_eq!(find(&queue, &prefix("b")), Some(queue[2].as_str()));
        assert_eq!(find(&queue, &prefix("c")), None);
    }
}
