//! What is installed, what a variable provides, and how a test says that it cannot run.

use std::fmt;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::error::Error;

/// A kind of server, or what else tests run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Component {
    /// PostgreSQL of this major version. `LOCKSTEP_TEST_PG<major>_URL` provides it.
    Postgres(u16),
    /// Redis 7. `LOCKSTEP_TEST_REDIS_URL` provides it.
    Redis,
    /// Three nodes of Redis Cluster. `LOCKSTEP_TEST_REDIS_CLUSTER_URLS` (separated by commas) provides it.
    RedisCluster,
    /// Apache Kafka. `LOCKSTEP_TEST_KAFKA` (the bootstrap address) provides it.
    Kafka,
    /// RabbitMQ. `LOCKSTEP_TEST_RABBITMQ_URL` provides it.
    Rabbitmq,
    /// OpenSearch. `LOCKSTEP_TEST_OPENSEARCH_URL` provides it.
    OpenSearch,
    /// Elasticsearch. `LOCKSTEP_TEST_ELASTICSEARCH_URL` provides it.
    Elasticsearch,
    /// Apache ZooKeeper. `LOCKSTEP_TEST_ZOOKEEPER` (host:port) provides it.
    Zookeeper,
    /// A schema registry that speaks Confluent's API: Apicurio's. `LOCKSTEP_TEST_REGISTRY_URL` provides it.
    Registry,
    /// The API server of Kubernetes, and etcd behind it: nothing runs pods. `LOCKSTEP_TEST_KUBERNETES` (the path of an
    /// administrator's kubeconfig, in JSON) provides it.
    Kubernetes,
    /// The jars of Debezium's embedded engine, in `dir()/debezium/libs`.
    Debezium,
    /// Transaction managers: [`managers`](crate::managers).
    Managers,
    /// `dir()/helm/bin` has helm and kubectl, `dir()/helm/schemas` what objects of Kubernetes look like, by version.
    Helm,
    /// Chromium and its driver: [`chromium`](crate::chromium).
    Chromium,
    /// Prometheus, and promtool: [`prometheus`](crate::prometheus).
    Prometheus,
    /// Reads Dockerfiles and compose files: [`containers`](crate::containers).
    Containers,
}

/// The major versions of PostgreSQL that lockstep supports and the kit installs.
pub const POSTGRES_MAJORS: [u16; 5] = [14, 15, 16, 17, 18];

/// Set to `1`, or `CI` to `true`: a missing component, unless it is optional, is a failure instead of a test that is not run.
pub const REQUIRE_VARIABLE: &str = "LOCKSTEP_KIT_REQUIRE";

/// A file to which each test that could not run appends its line; `lockstep-kit run` sets it and prints it at the end.
pub const NOT_RUN_VARIABLE: &str = "LOCKSTEP_KIT_NOT_RUN";

/// Where `tests/kit/install` puts things.
pub fn dir() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let dir = match (set("LOCKSTEP_KIT_DIR"), set("XDG_CACHE_HOME"), set("HOME")) {
            (Some(dir), ..) => PathBuf::from(dir),
            _ if rustix::process::geteuid().is_root() => "/var/cache/lockstep-kit".into(),
            (None, Some(cache), _) => Path::new(&cache).join("lockstep-kit"),
            (None, None, home) => Path::new(&home.unwrap_or_default()).join(".cache/lockstep-kit"),
        };
        // Servers run in folders of their own.
        std::path::absolute(&dir).unwrap_or(dir)
    })
}

impl Component {
    /// The variable that provides an existing server instead.
    pub fn variable(self) -> Option<String> {
        match self {
            Self::Postgres(major) => Some(format!("LOCKSTEP_TEST_PG{major}_URL")),
            Self::Redis => Some("LOCKSTEP_TEST_REDIS_URL".into()),
            Self::RedisCluster => Some("LOCKSTEP_TEST_REDIS_CLUSTER_URLS".into()),
            Self::Kafka => Some("LOCKSTEP_TEST_KAFKA".into()),
            Self::Rabbitmq => Some("LOCKSTEP_TEST_RABBITMQ_URL".into()),
            Self::OpenSearch => Some("LOCKSTEP_TEST_OPENSEARCH_URL".into()),
            Self::Elasticsearch => Some("LOCKSTEP_TEST_ELASTICSEARCH_URL".into()),
            Self::Zookeeper => Some("LOCKSTEP_TEST_ZOOKEEPER".into()),
            Self::Registry => Some("LOCKSTEP_TEST_REGISTRY_URL".into()),
            Self::Kubernetes => Some("LOCKSTEP_TEST_KUBERNETES".into()),
            Self::Debezium
            | Self::Managers
            | Self::Helm
            | Self::Chromium
            | Self::Prometheus
            | Self::Containers => None,
        }
    }

    /// The value of [`Component::variable`], if it is set.
    pub fn provided(self) -> Option<String> {
        self.variable()
            .and_then(|name| std::env::var(name).ok())
            .filter(|value| !value.is_empty())
    }

    /// The argument of `tests/kit/install`.
    pub fn install_name(self) -> &'static str {
        match self {
            Self::Postgres(_) => "postgres",
            Self::Redis | Self::RedisCluster => "redis",
            Self::Kafka => "kafka",
            Self::Rabbitmq => "rabbitmq",
            Self::OpenSearch => "opensearch",
            Self::Elasticsearch => "elasticsearch",
            Self::Zookeeper => "zookeeper",
            Self::Registry => "registry",
            Self::Kubernetes => "kubernetes",
            Self::Debezium => "debezium",
            Self::Managers => "managers",
            Self::Helm => "helm",
            Self::Chromium => "chromium",
            Self::Prometheus => "prometheus",
            Self::Containers => "containers",
        }
    }

    /// Whether its programs are on this machine.
    pub fn is_installed(self) -> bool {
        match self {
            Self::Postgres(major) => crate::postgres::bin_dir(major).is_some(),
            Self::Redis | Self::RedisCluster => on_path("redis-server"),
            Self::Rabbitmq => crate::rabbitmq::is_installed(),
            Self::Kafka
            | Self::OpenSearch
            | Self::Elasticsearch
            | Self::Zookeeper
            | Self::Registry
            | Self::Debezium => is_made(self.install_name()) && crate::java::program().is_some(),
            Self::Kubernetes | Self::Helm | Self::Containers => is_made(self.install_name()),
            Self::Chromium => on_path("chromium") && on_path("chromedriver") && is_made("axe"),
            Self::Managers => {
                let is_there = is_made(self.install_name()) && is_made("psycopg");
                is_there && crate::java::program().is_some() && on_path("python3")
            }
            Self::Prometheus => on_path("prometheus") && on_path("promtool"),
        }
    }

    /// Whether tests are left out without it, wherever they run: what takes too long to make for every machine that tests
    /// run on is not among what `tests/kit/install all` brings.
    pub fn is_optional(self) -> bool {
        self == Self::Kubernetes
    }

    /// Whether a shared server of it can be had: provided by its variable, or installed.
    pub fn is_available(self) -> bool {
        self.provided().is_some() || self.is_installed()
    }

    pub(crate) fn missing(self) -> Error {
        let or = self
            .variable()
            .map(|name| format!(", or set {name}"))
            .unwrap_or_default();
        Error::new(format!(
            "{self} is not installed: run tests/kit/install {}{or}",
            self.install_name()
        ))
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Postgres(major) => write!(f, "PostgreSQL {major}"),
            Self::Redis => f.write_str("Redis"),
            Self::RedisCluster => f.write_str("Redis Cluster"),
            Self::Kafka => f.write_str("Kafka"),
            Self::Rabbitmq => f.write_str("RabbitMQ"),
            Self::OpenSearch => f.write_str("OpenSearch"),
            Self::Elasticsearch => f.write_str("Elasticsearch"),
            Self::Zookeeper => f.write_str("ZooKeeper"),
            Self::Registry => f.write_str("the schema registry"),
            Self::Kubernetes => f.write_str("Kubernetes"),
            Self::Debezium => f.write_str("Debezium"),
            Self::Managers => f.write_str("the transaction managers"),
            Self::Helm => f.write_str("Helm"),
            Self::Chromium => f.write_str("Chromium"),
            Self::Prometheus => f.write_str("Prometheus"),
            Self::Containers => f.write_str("the reader of Dockerfiles and compose files"),
        }
    }
}

/// Whether `tests/kit/install` has made a folder whole.
fn is_made(name: &str) -> bool {
    dir().join(name).join("VERSION").exists()
}

pub(crate) fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// Returns from the test, loudly, when a component can neither be started nor is provided; where
/// [`component::REQUIRE_VARIABLE`](crate::component::REQUIRE_VARIABLE) or `CI` asks for it, panics, unless the component
/// [is optional](crate::Component::is_optional).
///
/// ```no_run
/// # async fn test() {
/// use lockstep_kit::Component::{Kafka, Postgres};
/// lockstep_kit::require!(Postgres(17), Kafka);
/// # }
/// ```
#[macro_export]
macro_rules! require {
    ($($component:expr),+ $(,)?) => {
        $(
            if !$crate::component::available_or_say_so($component) {
                return;
            }
        )+
    };
}

/// As [`require!`], for a test that starts a server of its own: one that a variable provides does not help it.
#[macro_export]
macro_rules! require_own {
    ($($component:expr),+ $(,)?) => {
        $(
            if !$crate::component::installed_or_say_so($component) {
                return;
            }
        )+
    };
}

/// The function behind [`require!`].
#[doc(hidden)]
pub fn available_or_say_so(component: Component) -> bool {
    component.is_available() || say_so(component)
}

/// The function behind [`require_own!`].
#[doc(hidden)]
pub fn installed_or_say_so(component: Component) -> bool {
    component.is_installed() || say_so(component)
}

/// Says that the test is not run, and answers `false`.
fn say_so(component: Component) -> bool {
    assert!(
        !is_required() || component.is_optional(),
        "{}",
        component.missing()
    );
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    let name = component.install_name();
    let line = format!("NOT RUN: {test}: needs {component}: run tests/kit/install {name}\n");
    // Straight to the descriptor: `eprint!` is captured in a test that passes. A closed one is nobody's loss.
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(path) = std::env::var_os(NOT_RUN_VARIABLE) {
        let written = OpenOptions::new().create(true).append(true).open(&path);
        let written = written.and_then(|mut file| file.write_all(line.as_bytes()));
        assert!(
            written.is_ok(),
            "cannot append to {NOT_RUN_VARIABLE}={}: {written:?}",
            path.display()
        );
    }
    false
}

/// Whether a missing component is a failure.
pub fn is_required() -> bool {
    let is = |name, value| std::env::var(name).is_ok_and(|set| set == value);
    is("CI", "true") || is(REQUIRE_VARIABLE, "1")
}
