//! The section of a file that says where leases are kept.

use lockstep_core::config::Duration;
use lockstep_core::{Error, ErrorKind, Result};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::kubernetes::KubernetesLeases;
use crate::leases::Leases;
use crate::postgres::PostgresLeases;
use crate::provider::Provider;
use crate::redis::RedisLeases;
use crate::zookeeper::ZookeeperLeases;

/// `ttl` when the file does not say: a holder that is gone is followed within 20 s, and one that the network or a busy machine
/// holds up for 6 s keeps its lease.
pub const DEFAULT_TTL: Duration = Duration(std::time::Duration::from_secs(10));

/// The shortest `ttl`: with less a busy machine loses leases for no reason.
pub const LEAST_TTL: Duration = Duration(std::time::Duration::from_secs(1));

pub(crate) fn default_ttl() -> Duration {
    DEFAULT_TTL
}

/// Where leases are kept.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum LeaseConfig {
    /// In a table of a PostgreSQL database.
    Postgres(PostgresLeases),
    /// In Redis, or in a Redis Cluster.
    Redis(RedisLeases),
    /// In ZooKeeper.
    Zookeeper(ZookeeperLeases),
    /// In the API of a Kubernetes cluster.
    Kubernetes(KubernetesLeases),
}

impl LeaseConfig {
    /// How long a lease lasts unless it is renewed.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        match self {
            LeaseConfig::Postgres(config) => config.ttl,
            LeaseConfig::Redis(config) => config.ttl,
            LeaseConfig::Zookeeper(config) => config.ttl,
            LeaseConfig::Kubernetes(config) => config.ttl,
        }
    }

    /// What can be checked without a server.
    ///
    /// # Errors
    /// Of kind `Config`, naming the field.
    pub fn validate(&self) -> Result<()> {
        self.open().map(drop)
    }

    /// Those who give the leases out. Does no I/O: an attempt connects.
    ///
    /// # Errors
    /// As for [`LeaseConfig::validate`].
    pub fn open(&self) -> Result<Leases> {
        Ok(Leases::new(self.provider()?, self.ttl().0))
    }

    /// Where they are kept, for those who have their own way to give them out. Does no I/O.
    ///
    /// # Errors
    /// As for [`LeaseConfig::validate`].
    pub fn provider(&self) -> Result<Box<dyn Provider>> {
        let ttl = self.ttl();
        if ttl < LEAST_TTL {
            return Err(
                Error::new(ErrorKind::Config, format!("a lease of {ttl} is too short"))
                    .remedy(format!(
                        "use {LEAST_TTL} or more; {DEFAULT_TTL} is the default"
                    ))
                    .at("ttl"),
            );
        }
        Ok(match self {
            LeaseConfig::Postgres(config) => Box::new(config.provider()?),
            LeaseConfig::Redis(config) => Box::new(config.provider()?),
            LeaseConfig::Zookeeper(config) => Box::new(config.provider()?),
            LeaseConfig::Kubernetes(config) => Box::new(config.provider()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An editor that knows the schema takes what the reader takes: `type` is one of the keys.
    #[test]
    fn the_schema_knows_all_keys_and_no_others() {
        let schema = schemars::schema_for!(LeaseConfig).to_value();
        let kinds = schema["oneOf"].as_array().expect("alternatives");
        let mut names = Vec::new();
        for kind in kinds {
            assert_eq!(kind["additionalProperties"], false, "{kind}");
            assert!(kind["properties"]["ttl"].is_object(), "{kind}");
            names.push(
                kind["properties"]["type"]["const"]
                    .as_str()
                    .expect("a type"),
            );
        }
        assert_eq!(names, ["postgres", "redis", "zookeeper", "kubernetes"]);
    }
}
