//! Leases in Redis, or in a Redis Cluster: a key that runs out, and beside it the counter of its tokens.
//!
//! One script takes a lease: `SET … NX PX` and the new token in one step, so that there is no lease without its token. Others
//! prolong it and let go, and compare the holder first. Who lets go leaves a word in a list that those who wait read by a
//! blocking pop: the first of them has it at once. All keys of a lease are in one hash slot: `lockstep:lease:{NAME}`, `…:token`
//! and `…:free`.
//!
//! **What it promises.** One holder at a time for as long as the server keeps what it was told.
//!
//! **What it does not.** Replication is asynchronous, and so is writing to disk: after a failover, or after the crash of a
//! server that does not write each command to disk, a lease can be forgotten and given to somebody else while its holder is
//! right by its own clock. So this is a lease for efficiency, to keep work from being done twice. The counter can be forgotten
//! in the same way, and a counter that began again would disarm the tokens too. That is why a token is never less than the
//! milliseconds of the server's clock: one that was forgotten is exceeded by the next, unless the clock of the new server is
//! behind by more than the failover took. Where even that must not be, use PostgreSQL or ZooKeeper, or let the sink's own
//! versions decide.
//!
//! A server that may evict keys is refused: it would let a lease, or its counter, go for want of memory. Locks over several
//! independent servers (Redlock) are not offered: they have no number that only grows.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use lockstep_core::config::Secret;
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_redis::{Command, How, Link, Node, Script, Server, TlsConfig, preflight, run};
use redis::Value;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::config::default_ttl;
use crate::name;
use crate::provider::{Attempt, Candidate, Provider, Renewal, Token};

/// Leases in Redis.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RedisLeases {
    /// The server: `redis://[user:password@]host[:port][/db]`, `rediss://…` for TLS, `unix:///path` for a socket. For a
    /// cluster, any of its nodes.
    #[serde(default)]
    pub url: Option<Secret>,
    /// Several nodes of a cluster to start from, instead of `url`.
    #[serde(default)]
    pub urls: Option<Vec<Secret>>,
    /// Whether the server is a Redis Cluster. Default: false.
    #[serde(default)]
    pub cluster: bool,
    /// Certificates for `rediss://`. Without it the system's certificate authorities are trusted.
    #[serde(default)]
    pub tls: Option<TlsConfig>,
    /// How long a lease lasts unless it is renewed. Default: `10s`.
    #[serde(default = "default_ttl")]
    pub ttl: lockstep_core::config::Duration,
}

impl RedisLeases {
    /// Where leases are kept, for [`Leases::new`](crate::Leases::new). Does no I/O.
    ///
    /// # Errors
    /// Of kind `Config`, naming the field.
    pub fn provider(&self) -> Result<Redis> {
        let server = Server {
            url: self.url.clone(),
            urls: self.urls.clone(),
            cluster: self.cluster,
            tls: self.tls.clone(),
            // An answer that comes later than a lease lasts is of no use.
            connect_timeout: self.ttl,
            response_timeout: self.ttl,
        };
        server.validate()?;
        Ok(Redis(Arc::new(Shared {
            server,
            ttl: self.ttl.0,
            take: Script::new("take", include_str!("redis/take.lua")),
            renew: Script::new("renew", include_str!("redis/renew.lua")),
            release: Script::new("release", include_str!("redis/release.lua")),
        })))
    }
}

/// The provider.
#[derive(Clone, Debug)]
pub struct Redis(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    server: Server,
    ttl: Duration,
    take: Script,
    renew: Script,
    release: Script,
}

impl Provider for Redis {
    fn candidate(&self, name: &str, holder: &str) -> Result<Box<dyn Candidate>> {
        Ok(Box::new(Contender {
            shared: Arc::clone(&self.0),
            keys: Keys::of(name),
            holder: name::unique(holder)?,
            link: None,
        }))
    }

    fn place(&self) -> String {
        self.0.server.place()
    }
}

/// The keys of a lease, all in the hash slot of its name.
struct Keys {
    /// Who has it; gone when nobody has.
    lease: String,
    /// The last token.
    token: String,
    /// A list, of one word after it was let go.
    free: String,
}

impl Keys {
    fn of(name: &str) -> Self {
        let lease = format!("lockstep:lease:{{{name}}}");
        Keys {
            token: format!("{lease}:token"),
            free: format!("{lease}:free"),
            lease,
        }
    }
}

/// One who wants a key to be its own.
struct Contender {
    shared: Arc<Shared>,
    keys: Keys,
    /// In the key: this candidate and no other.
    holder: String,
    /// Missing after anything failed, or was given up on the way.
    link: Option<Link>,
}

impl Contender {
    /// Taken out: a future that is dropped on the way drops the connection, and with it a command that may still block there.
    async fn link(&mut self) -> Result<Link> {
        if let Some(link) = self.link.take() {
            return Ok(link);
        }
        let link = Link::open(&self.shared.server).await?;
        refuse_eviction(&link).await?;
        Ok(link)
    }

    /// Runs a script with the holder and the time of the lease, in milliseconds.
    async fn call(&self, link: &Link, script: &Script, keys: [&str; 2]) -> Result<Value> {
        let milliseconds = self.shared.ttl.as_millis().to_string();
        let build = |_, how: How| {
            let mut cmd = script.call(how, keys.len(), 4, 256);
            cmd.arg(&keys).arg(&self.holder).arg(&milliseconds);
            Command {
                cmd,
                node: Node::of_key(&self.keys.lease),
            }
        };
        let mut replies = run(link, 1, build).await?;
        Ok(replies.pop().expect("run returns a reply for each call"))
    }
}

/// A server that evicts keys lets go of leases that are held.
async fn refuse_eviction(link: &Link) -> Result<()> {
    let mut cmd = redis::cmd("INFO");
    cmd.arg("memory");
    // Nodes of a cluster are set up alike.
    let node = Node::Any;
    let info = match link.expect_one(Command { cmd, node }).await? {
        Value::BulkString(text) => String::from_utf8_lossy(&text).into_owned(),
        Value::VerbatimString { text, .. } => text,
        other => return Err(link.unexpected("INFO", &other)),
    };
    let (policy, limit, words) = preflight::eviction_limit(&info);
    if limit > 0 && policy != "noeviction" {
        return Err(Error::new(
            ErrorKind::Setup,
            format!("the server may evict leases that are held ({words})"),
        )
        .at(link.place())
        .remedy("use a server with maxmemory-policy noeviction"));
    }
    Ok(())
}

#[async_trait]
impl Candidate for Contender {
    async fn attempt(&mut self) -> Result<Attempt> {
        let link = self.link().await?;
        let keys = [self.keys.lease.as_str(), self.keys.token.as_str()];
        let reply = self.call(&link, &self.shared.take, keys).await?;
        let attempt = read(&reply, self.shared.ttl)
            .ok_or_else(|| link.unexpected("the take script", &reply))?;
        self.link = Some(link);
        Ok(attempt)
    }

    async fn wait(&mut self, limit: Duration) -> Result<()> {
        let link = self.link().await?;
        let mut command = Command::on_key("BLPOP", &self.keys.free);
        // In seconds; zero would be for ever.
        command
            .cmd
            .arg(format!("{:.3}", limit.as_secs_f64().max(0.001)));
        match link.expect_one(command).await? {
            Value::Nil | Value::Array(_) => {}
            other => return Err(link.unexpected("BLPOP", &other)),
        }
        self.link = Some(link);
        Ok(())
    }

    async fn renew(&mut self) -> Result<Renewal> {
        let link = self.link().await?;
        let keys = [self.keys.lease.as_str(), self.keys.token.as_str()];
        let reply = self.call(&link, &self.shared.renew, keys).await?;
        let renewal = match reply {
            Value::Int(1) => Renewal::Prolonged(self.shared.ttl),
            Value::Int(0) => Renewal::Lost,
            other => return Err(link.unexpected("the renew script", &other)),
        };
        self.link = Some(link);
        Ok(renewal)
    }

    async fn release(&mut self) -> Result<()> {
        let link = self.link().await?;
        let keys = [self.keys.lease.as_str(), self.keys.free.as_str()];
        match self.call(&link, &self.shared.release, keys).await? {
            Value::Int(0 | 1) => {}
            other => return Err(link.unexpected("the release script", &other)),
        }
        self.link = Some(link);
        Ok(())
    }
}

/// What the take script answers: 1 and the token, or 0 and the milliseconds left.
fn read(reply: &Value, ttl: Duration) -> Option<Attempt> {
    let Value::Array(parts) = reply else {
        return None;
    };
    match parts.as_slice() {
        [Value::Int(1), Value::BulkString(token)] => Some(Attempt::Taken {
            token: Token(std::str::from_utf8(token).ok()?.parse().ok()?),
            granted: ttl,
        }),
        // Negative for a key without an end, which is none of ours.
        [Value::Int(0), Value::Int(left)] => Some(Attempt::Refused {
            left: u64::try_from(*left).ok().map(Duration::from_millis),
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_in_one_slot() {
        let keys = Keys::of("shop");
        let slot = |key: &str| redis::cluster_routing::Slot::for_key(key);
        assert_eq!(slot(&keys.lease), slot("shop"));
        assert_eq!(slot(&keys.token), slot("shop"));
        assert_eq!(slot(&keys.free), slot("shop"));
    }

    #[test]
    fn answers_are_read_to_the_last_word() {
        let ttl = Duration::from_secs(1);
        let taken = Value::Array(vec![Value::Int(1), Value::BulkString(b"12".to_vec())]);
        let token = Token(12);
        assert_eq!(
            read(&taken, ttl),
            Some(Attempt::Taken {
                token,
                granted: ttl
            })
        );
        let endless = Value::Array(vec![Value::Int(0), Value::Int(-1)]);
        assert_eq!(read(&endless, ttl), Some(Attempt::Refused { left: None }));
        for bad in [
            Value::Nil,
            Value::Array(vec![Value::Int(1)]),
            Value::Array(vec![Value::Int(1), Value::Nil]),
            Value::Array(vec![Value::Int(1), Value::BulkString(b"x".to_vec())]),
        ] {
            assert_eq!(read(&bad, ttl), None, "{bad:?}");
        }
    }
}
