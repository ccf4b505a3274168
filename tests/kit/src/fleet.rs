//! The servers of one run of the command.

use std::time::{Duration, Instant};

use lockstep_kit::component::POSTGRES_MAJORS;
use lockstep_kit::kafka::{Kafka, KafkaOptions};
use lockstep_kit::kubernetes::{Kubernetes, KubernetesOptions};
use lockstep_kit::opensearch::{OpenSearch, OpenSearchOptions, Product};
use lockstep_kit::postgres::{Postgres, PostgresOptions};
use lockstep_kit::rabbitmq::{Rabbitmq, RabbitmqOptions};
use lockstep_kit::redis::{Redis, RedisOptions};
use lockstep_kit::redis_cluster::RedisCluster;
use lockstep_kit::registry::{Registry, RegistryOptions};
use lockstep_kit::zookeeper::{Zookeeper, ZookeeperOptions};
use lockstep_kit::{Component, Error};
use tokio::task::JoinSet;

/// What can be named after `--with`.
pub(crate) fn all() -> Vec<Component> {
    let postgres = POSTGRES_MAJORS.into_iter().map(Component::Postgres);
    let others = [
        Component::Redis,
        Component::RedisCluster,
        Component::Kafka,
        Component::Rabbitmq,
        Component::OpenSearch,
        Component::Elasticsearch,
        Component::Zookeeper,
        Component::Registry,
        Component::Kubernetes,
    ];
    postgres.chain(others).collect()
}

/// The name after `--with`.
pub(crate) fn name(component: Component) -> String {
    match component {
        Component::Postgres(major) => format!("pg{major}"),
        Component::RedisCluster => "redis-cluster".into(),
        other => other.install_name().into(),
    }
}

/// A running server, or one that a variable provides.
pub(crate) struct Server {
    pub(crate) component: Component,
    pub(crate) version: String,
    /// The value of the component's variable.
    pub(crate) value: String,
    /// `None`: provided.
    pub(crate) start_up: Option<Duration>,
    /// It ends when this is dropped.
    _handle: Option<Handle>,
}

enum Handle {
    Postgres { _server: Postgres },
    Redis { _server: Redis },
    RedisCluster { _server: RedisCluster },
    Kafka { _server: Kafka },
    Rabbitmq { _server: Rabbitmq },
    Search { _server: OpenSearch },
    Zookeeper { _server: Zookeeper },
    Registry { _server: Registry },
    Kubernetes { _server: Kubernetes },
}

/// Starts all of them side by side; they come back in the order of `components`.
pub(crate) async fn start(components: &[Component]) -> Result<Vec<Server>, Error> {
    let mut starting = JoinSet::new();
    for &component in components {
        starting.spawn(start_one(component));
    }
    let mut servers = Vec::new();
    while let Some(joined) = starting.join_next().await {
        servers.push(joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?);
    }
    let place = |server: &Server| components.iter().position(|&one| one == server.component);
    servers.sort_by_key(place);
    Ok(servers)
}

async fn start_one(component: Component) -> Result<Server, Error> {
    let provided = |value| Server {
        component,
        version: "provided".into(),
        value,
        start_up: None,
        _handle: None,
    };
    if let Some(value) = component.provided() {
        return Ok(provided(value));
    }
    let began = Instant::now();
    let (version, value, handle) = match component {
        Component::Postgres(major) => {
            let server = Postgres::try_start(PostgresOptions::new(major)).await?;
            (
                server.version().into(),
                server.url().into(),
                Handle::Postgres { _server: server },
            )
        }
        Component::Redis => {
            let server = Redis::try_start(RedisOptions::default()).await?;
            (
                server.version().await?,
                server.url().into(),
                Handle::Redis { _server: server },
            )
        }
        Component::RedisCluster => {
            let server = RedisCluster::try_start().await?;
            let version = server.nodes()[0].version().await?;
            (
                version,
                server.urls().join(","),
                Handle::RedisCluster { _server: server },
            )
        }
        Component::Kafka => {
            let server = Kafka::try_start(KafkaOptions::default()).await?;
            let version = lockstep_kit::kafka::installed_version().unwrap_or_default();
            (
                version,
                server.bootstrap().into(),
                Handle::Kafka { _server: server },
            )
        }
        Component::Rabbitmq => {
            let server = Rabbitmq::try_start(RabbitmqOptions::default()).await?;
            (
                server.version(),
                server.url().into(),
                Handle::Rabbitmq { _server: server },
            )
        }
        Component::OpenSearch => search(Product::OpenSearch).await?,
        Component::Elasticsearch => search(Product::Elasticsearch).await?,
        Component::Zookeeper => {
            let server = Zookeeper::try_start(ZookeeperOptions::default()).await?;
            let version = lockstep_kit::zookeeper::installed_version().unwrap_or_default();
            (
                version,
                server.address().into(),
                Handle::Zookeeper { _server: server },
            )
        }
        Component::Registry => {
            let server = Registry::try_start(RegistryOptions::default()).await?;
            let version = lockstep_kit::registry::installed_version().unwrap_or_default();
            (
                version,
                server.url().into(),
                Handle::Registry { _server: server },
            )
        }
        Component::Kubernetes => {
            let server = Kubernetes::try_start(KubernetesOptions::default()).await?;
            (
                server.version().await?,
                server.kubeconfig().display().to_string(),
                Handle::Kubernetes { _server: server },
            )
        }
        Component::Debezium
        | Component::Managers
        | Component::Helm
        | Component::Chromium
        | Component::Prometheus
        | Component::Containers => {
            unreachable!("not a server, and not among `all()`")
        }
    };
    Ok(Server {
        component,
        version,
        value,
        start_up: Some(began.elapsed()),
        _handle: Some(handle),
    })
}

async fn search(product: Product) -> Result<(String, String, Handle), Error> {
    let server = OpenSearch::try_start(OpenSearchOptions::of(product)).await?;
    Ok((
        server.version().await?,
        server.url().into(),
        Handle::Search { _server: server },
    ))
}

/// A table for people.
pub(crate) fn table(servers: &[Server]) -> String {
    let mut table = format!(
        "{:<14} {:<9} {:>8}  {}\n",
        "server", "version", "start-up", "where"
    );
    for server in servers {
        let start_up = server
            .start_up
            .map_or_else(|| "-".into(), |time| format!("{:.1} s", time.as_secs_f32()));
        let component = server.component.to_string();
        table += &format!(
            "{component:<14} {:<9} {start_up:>8}  {}\n",
            server.version, server.value
        );
    }
    table
}
