//! The servers of a run, each behind a proxy on its way to lockstep.

use lockstep_kit::kafka::{Kafka, KafkaOptions};
use lockstep_kit::opensearch::{OpenSearch, OpenSearchOptions};
use lockstep_kit::postgres::{Postgres, PostgresOptions};
use lockstep_kit::proxy::Proxy;
use lockstep_kit::rabbitmq::{Rabbitmq, RabbitmqOptions};
use lockstep_kit::redis::{Redis, RedisOptions};

/// The major version of PostgreSQL that is tortured.
pub const POSTGRES: u16 = 17;

/// A connection of lockstep to one of its servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// To PostgreSQL.
    Postgres,
    /// To Kafka.
    Kafka,
    /// To Redis.
    Redis,
    /// To OpenSearch.
    OpenSearch,
    /// To RabbitMQ.
    Rabbitmq,
}

/// Servers of a run's own, which it may kill.
#[derive(Debug)]
pub struct Servers {
    /// The source.
    pub postgres: Postgres,
    /// With a proxy of its own.
    pub kafka: Kafka,
    /// It has what it has acknowledged on disk.
    pub redis: Redis,
    /// One node.
    pub opensearch: OpenSearch,
    /// One node.
    pub rabbitmq: Rabbitmq,
    to_postgres: Proxy,
    to_redis: Proxy,
    to_opensearch: Proxy,
    to_rabbitmq: Proxy,
}

impl Servers {
    /// Starts them all.
    ///
    /// # Panics
    /// When one is not installed or does not start.
    pub async fn start() -> Self {
        let options = PostgresOptions::new(POSTGRES)
            // A walsender behind a black hole lets its slot go soon.
            .set("wal_sender_timeout", "5s")
            .set("max_slot_wal_keep_size", "-1");
        let durable = RedisOptions {
            append_only: true,
            config: vec![("appendfsync".into(), "always".into())],
        };
        let proxied = KafkaOptions {
            proxy: true,
            ..KafkaOptions::default()
        };
        let (postgres, redis, kafka, opensearch, rabbitmq) = tokio::join!(
            Postgres::start(options),
            Redis::start(durable),
            Kafka::start(proxied),
            OpenSearch::start(OpenSearchOptions::default()),
            Rabbitmq::start(RabbitmqOptions::default()),
        );
        let local = |port: u16| format!("127.0.0.1:{port}");
        Self {
            to_postgres: Proxy::start(local(postgres.port())).await,
            to_redis: Proxy::start(local(redis.port())).await,
            to_opensearch: Proxy::start(local(opensearch.port())).await,
            to_rabbitmq: Proxy::start(local(rabbitmq.port())).await,
            postgres,
            kafka,
            redis,
            opensearch,
            rabbitmq,
        }
    }

    /// What stands between lockstep and a server.
    pub fn proxy(&self, link: Link) -> &Proxy {
        match link {
            Link::Postgres => &self.to_postgres,
            Link::Kafka => self.kafka.proxy(),
            Link::Redis => &self.to_redis,
            Link::OpenSearch => &self.to_opensearch,
            Link::Rabbitmq => &self.to_rabbitmq,
        }
    }

    /// `true` stops the processes of the server behind a link where they are, `false` lets them go on.
    pub fn freeze(&self, link: Link, freeze: bool) {
        match link {
            Link::Postgres => self.postgres.freeze(freeze),
            Link::Kafka => self.kafka.freeze(freeze),
            Link::Redis => self.redis.freeze(freeze),
            Link::OpenSearch => self.opensearch.freeze(freeze),
            Link::Rabbitmq => self.rabbitmq.freeze(freeze),
        }
    }

    /// Which versions these are, for people.
    ///
    /// # Panics
    /// When a server does not answer.
    pub async fn versions(&self) -> String {
        let kafka = lockstep_kit::kafka::installed_version().unwrap_or_default();
        let debezium = lockstep_kit::connect::installed_version();
        let debezium = debezium.map_or_else(String::new, |version| format!(", Debezium {version}"));
        format!(
            "PostgreSQL {}, Kafka {kafka}, Redis {}, OpenSearch {}, RabbitMQ {}{debezium}",
            self.postgres.version(),
            self.redis.version().await.expect("Redis answers"),
            self.opensearch.version().await.expect("OpenSearch answers"),
            self.rabbitmq.version(),
        )
    }
}
