//! Redis Cluster: three masters, no replicas.

use std::time::Duration;

use tokio::sync::OnceCell;

use crate::component::Component;
use crate::error::{Context, Error};
use crate::redis::{Redis, RedisOptions, Reply};
use crate::wait::poll_until;

const NODES: usize = 3;
const SLOTS: usize = 16_384;
const FORM_DEADLINE: Duration = Duration::from_secs(60);

/// A running cluster.
#[derive(Debug)]
pub struct RedisCluster {
    nodes: Vec<Redis>,
}

impl RedisCluster {
    /// The cluster that all tests of the process share, started at the first call. Isolate by key prefix.
    ///
    /// # Panics
    /// When Redis is not installed or the cluster does not form.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<RedisCluster> = OnceCell::const_new();
        SHARED
            .get_or_init(async || match Component::RedisCluster.provided() {
                Some(urls) => Self {
                    nodes: urls
                        .split(',')
                        .map(|url| Redis::provided(url.trim()))
                        .collect(),
                },
                None => Self::start().await,
            })
            .await
    }

    /// Starts a cluster of the test's own.
    ///
    /// # Panics
    /// When Redis is not installed or the cluster does not form.
    pub async fn start() -> Self {
        Self::try_start()
            .await
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`RedisCluster::start`].
    ///
    /// # Errors
    /// When Redis is not installed or the cluster does not form.
    pub async fn try_start() -> Result<Self, Error> {
        let mut nodes = Vec::new();
        for _ in 0..NODES {
            nodes.push(Redis::try_start_node(&RedisOptions::default(), true).await?);
        }
        let cluster = Self { nodes };
        cluster.form().await?;
        Ok(cluster)
    }

    /// What `redis-cli --cluster create` does, without its fixed pauses.
    async fn form(&self) -> Result<(), Error> {
        let bound = |index: usize| SLOTS * index / NODES;
        for (index, node) in self.nodes.iter().enumerate() {
            let (first, last) = (bound(index).to_string(), (bound(index + 1) - 1).to_string());
            expect_ok(node, &["CLUSTER", "ADDSLOTSRANGE", &first, &last]).await?;
            expect_ok(
                node,
                &["CLUSTER", "SET-CONFIG-EPOCH", &(index + 1).to_string()],
            )
            .await?;
        }
        for node in &self.nodes[1..] {
            let bus = node
                .bus_port()
                .map(|port| port.to_string())
                .unwrap_or_default();
            let port = node.port().to_string();
            expect_ok(
                &self.nodes[0],
                &["CLUSTER", "MEET", "127.0.0.1", &port, &bus],
            )
            .await?;
        }
        self.try_healthy().await
    }

    async fn try_healthy(&self) -> Result<(), Error> {
        for node in &self.nodes {
            let look = async || match node.command(&["CLUSTER", "INFO"]).await {
                Ok(Reply::Text(info))
                    if info.contains("cluster_state:ok")
                        && info.contains(&format!("cluster_known_nodes:{NODES}")) =>
                {
                    Ok(())
                }
                other => Err(other),
            };
            poll_until(FORM_DEADLINE, look).await.context(|| {
                format!(
                    "Redis Cluster: node {} after {FORM_DEADLINE:?}",
                    node.address()
                )
            })?;
        }
        Ok(())
    }

    /// Waits until every node sees all slots served, as after a node's restart.
    pub async fn healthy(&self) {
        self.try_healthy()
            .await
            .unwrap_or_else(|error| panic!("{error}"));
    }

    /// One per node.
    pub fn urls(&self) -> Vec<String> {
        self.nodes
            .iter()
            .map(|node| node.url().to_owned())
            .collect()
    }

    /// The nodes, to kill or restart one. Node i holds the i-th third of the slots.
    pub fn nodes(&self) -> &[Redis] {
        &self.nodes
    }
}

async fn expect_ok(node: &Redis, words: &[&str]) -> Result<(), Error> {
    match node.command(words).await {
        Ok(Reply::Text(said)) if said == "OK" => Ok(()),
        other => Err(Error::new(format!(
            "{} on {}: {other:?}",
            words.join(" "),
            node.address()
        ))),
    }
}
