//! The pipeline file's own keys; the sections of sources, transforms and sinks belong to their factories.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU32;

use lockstep_core::config::{ByteSize, Duration, Secret};
use lockstep_leases::LeaseConfig;
use lockstep_reconciler::invariants::Rule;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::examples::Test;

/// Bytes that batches may hold, when the file does not say: enough to keep three sinks busy, small enough to stay far
/// below 100 MB of resident memory.
pub const DEFAULT_MEMORY: ByteSize = ByteSize(32 << 20);

/// How long a drain may take, when the file does not say. Kubernetes gives a pod 30 s before it kills it.
pub const DEFAULT_SHUTDOWN_TIMEOUT: Duration = Duration(std::time::Duration::from_secs(30));

/// Where the admin endpoint listens, when the section does not say: this machine only.
pub const DEFAULT_ADMIN_LISTEN: &str = "127.0.0.1:9187";

/// What an address looks like.
const ADDRESS_HINT: &str = "write host:port, such as 127.0.0.1:9187";

/// The most dead letters, when the section does not say: far more than anyone looks through, and no burden to keep.
pub const DEFAULT_MAX_LETTERS: u64 = 100_000;

/// The most bytes of dead letters, when the section does not say.
pub const DEFAULT_MAX_LETTER_BYTES: ByteSize = ByteSize(1 << 30);

/// How often sinks are compared with their sources, when the section does not say: a difference is known before most people
/// would have met it, and reading the tables so often is no burden.
pub const DEFAULT_RECONCILE_EVERY: Duration = Duration(std::time::Duration::from_secs(15 * 60));

/// How long a query of an invariant may take, when the invariant does not say: one that takes longer holds back VACUUM.
pub const DEFAULT_INVARIANT_TIMEOUT: Duration = Duration(std::time::Duration::from_secs(10 * 60));

/// How often a pipeline that runs looks at what is in doubt, when the section does not say: what coordinators have left behind waits for
/// little more than the safety interval, and a question now and then is no burden to a database.
pub const DEFAULT_RESOLVE_EVERY: Duration = Duration(std::time::Duration::from_secs(30));

/// A section of a source, transform or sink: `type`, `inputs`, and the keys of its kind.
pub type Section = Map<String, Value>;

/// A lockstep pipeline: sources, transforms and sinks, and how they are connected.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Name of the pipeline: lower-case letters, digits, `_` and `-`. Progress kept in sinks belongs to this name.
    #[schemars(regex(pattern = "^[a-z0-9_-]+$"))]
    pub name: String,
    /// The admin endpoint: `/metrics`, `/healthz`, `/readyz`, `/api/*`. Without this section there is none.
    #[serde(default)]
    pub admin: Option<Admin>,
    /// Where state is kept that must survive a restart.
    #[serde(default)]
    pub state: State,
    /// Where rows go that a sink refuses for good, and rows that transforms put aside.
    #[serde(default)]
    pub dead_letters: Section,
    /// Comparisons of sinks with their sources, made again and again. Without this section they are made when they are asked
    /// for.
    #[serde(default)]
    pub reconcile: Option<Reconciling>,
    /// Two-phase commits that a coordinator has left behind: who may end them, and whose.
    #[serde(default)]
    pub transactions: Option<TwoPhase>,
    /// Who runs the pipeline, where several processes are ready to: whoever holds this lease. Without this section whoever is started.
    #[serde(default)]
    pub lease: Option<LeaseConfig>,
    /// Bytes that batches may hold, all stages together; sources wait when they are spent. Default `32MiB`.
    #[serde(default = "default_memory")]
    pub memory: ByteSize,
    /// How long a drain may take after SIGTERM before what is not durable is left for the next start. Default `30s`.
    #[serde(default = "default_shutdown_timeout")]
    pub shutdown_timeout: Duration,
    /// Where changes come from, by name.
    #[serde(default)]
    pub sources: BTreeMap<String, Section>,
    /// What happens to changes on their way, by name.
    #[serde(default)]
    pub transforms: BTreeMap<String, Section>,
    /// Where changes go, by name.
    #[serde(default)]
    pub sinks: BTreeMap<String, Section>,
    /// Examples for `lockstep test`: rows, and what must come of them behind the transforms. Nobody else looks at them.
    #[serde(default)]
    pub tests: Vec<Test>,
}

/// The admin endpoint.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Admin {
    /// Address and port. Default `127.0.0.1:9187`: this machine only.
    #[serde(default = "default_admin_listen")]
    pub listen: String,
    /// When set, `/metrics` and `/api/*` ask for it as `Authorization: Bearer …`. An address that others can reach needs one.
    #[serde(default)]
    pub token: Option<Secret>,
    /// Whether it may listen beyond this machine without a token, where something else keeps others away: a proxy, a network policy.
    /// Default `false`.
    #[serde(default)]
    pub open: bool,
}

impl Admin {
    /// Why it must not be served so, with the key that says it and what to do.
    pub(super) fn refusal(&self) -> Option<(&'static str, String, &'static str)> {
        let Some((host, port)) = self.listen.rsplit_once(':') else {
            return Some(self.no_address());
        };
        if host.is_empty() || port.parse::<u16>().is_err() {
            return Some(self.no_address());
        }
        match &self.token {
            // As a variable that is set and empty leaves it.
            Some(token) if token.reveal().trim().is_empty() => Some((
                "token",
                "the token is empty".to_owned(),
                "give one that cannot be guessed, as `openssl rand -hex 32` does, or leave the key out",
            )),
            None if !self.open && !is_this_machine(host) => Some((
                "listen",
                format!(
                    "`{}` can be reached by others, and nothing is asked of them",
                    self.listen
                ),
                "set admin.token, or admin.open = true where something else keeps others away, or listen on 127.0.0.1",
            )),
            Some(_) | None => None,
        }
    }

    fn no_address(&self) -> (&'static str, String, &'static str) {
        let message = format!("`{}` is not an address", self.listen);
        ("listen", message, ADDRESS_HINT)
    }
}

/// Whether a host is one that only this machine reaches. A name other than `localhost` may lead anywhere.
fn is_this_machine(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.eq_ignore_ascii_case("localhost")
        || bare
            .parse::<IpAddr>()
            .is_ok_and(|address| address.to_canonical().is_loopback())
}

/// Comparisons of sinks with their sources.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Reconciling {
    /// From the beginning of one to the beginning of the next, or until it has ended. Default `15m`.
    #[serde(default = "default_every")]
    pub every: Duration,
    /// Whether what differs is mended. Default `false`: it is told, by the log, metrics and `/api/reconcile`.
    #[serde(default)]
    pub repair: bool,
    /// Rows of a table that a comparison reads per second at most. Default: no limit but those of the source.
    #[serde(default)]
    pub rows_per_second: Option<NonZeroU32>,
    /// What must hold in the sources' databases, and between them.
    #[serde(default)]
    pub invariants: Vec<InvariantSection>,
    /// Whether comparisons are made only when they are asked for: invariants are evaluated by themselves all the same. Default `false`.
    #[serde(default)]
    pub when_asked: bool,
}

/// What must hold in one database, or between two.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InvariantSection {
    /// Its name in reports and metrics: lower-case letters, digits, `_` and `-`.
    #[schemars(regex(pattern = "^[a-z0-9_-]+$"))]
    pub name: String,
    /// How the rows of one key relate.
    pub rule: Rule,
    /// The columns that rows are joined by, which every query yields.
    #[schemars(length(min = 1))]
    pub key: Vec<String>,
    /// One SELECT for each source that it is about, by the source's name.
    pub queries: BTreeMap<String, String>,
    /// The source whose rows are looked at, of a rule with a direction: `at_most`, `subset`, `exists_within`.
    #[serde(default)]
    pub for_each: Option<String>,
    /// The columns that the rule is about. Default: all but the key.
    #[serde(default)]
    pub compare: Option<Vec<String>>,
    /// How long a key may not hold, its rows unchanged, before that is a violation. Default `0s`; `exists_within` has to say.
    #[serde(default)]
    pub within: Option<Duration>,
    /// From the beginning of one evaluation to the beginning of the next. Default: `every` of the section.
    #[serde(default)]
    pub every: Option<Duration>,
    /// How long a query may take. Default `10m`.
    #[serde(default = "default_invariant_timeout")]
    pub timeout: Duration,
}

/// Two-phase commits that a coordinator has left behind.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TwoPhase {
    /// The source whose database has the decision log of lockstep's coordinators. Default: it is looked for in all sources.
    #[serde(default)]
    pub log: Option<String>,
    /// The managers whose transactions `lockstep transactions resolve --apply` may end: `lockstep`, `narayana`, `dtm`, `plain`, … Default:
    /// nobody's, it is only told what would be done.
    #[serde(default)]
    pub resolve: Vec<String>,
    /// The managers whose transactions the running pipeline ends by itself. Default: nobody's, it only tells in its metrics what it
    /// would do.
    #[serde(default)]
    pub automatic: Vec<String>,
    /// From one look of the running pipeline to the next. Default `30s`.
    #[serde(default = "default_resolve_every")]
    pub every: Duration,
    /// How old a branch must be before it is ended. Default `60s`.
    #[serde(default = "default_safety_interval")]
    pub safety_interval: Duration,
    /// The same of single managers, by their names.
    #[serde(default)]
    pub safety_intervals: BTreeMap<String, Duration>,
}

/// Where state is kept.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// A directory. Default `.lockstep/<name>` in the working directory.
    #[serde(default)]
    pub dir: Option<String>,
    /// With a `[lease]`: the directory is on a volume that all who take turns have. Default `false`: each has its own.
    #[serde(default)]
    pub shared: bool,
    /// With a `[lease]` and a directory of each process's own: the PostgreSQL database that keeps what sources remember, for whoever takes
    /// over. Default: the one of the lease, where that is PostgreSQL.
    #[serde(default)]
    pub url: Option<Secret>,
    /// The password, when it is not part of the URL.
    #[serde(default)]
    pub password: Option<Secret>,
}

/// Dead letters in the pipeline's state directory, `type = "embedded"`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EmbeddedLetters {
    /// The most letters. A sink that would need more stops with an error. Default 100000.
    #[serde(default = "default_max")]
    pub max: u64,
    /// The most bytes of letters. Default `1GiB`.
    #[serde(default = "default_max_bytes")]
    pub max_bytes: ByteSize,
}

/// What every sink's section may say about rows that it refuses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SinkPolicy {
    /// What becomes of a row that the sink refuses for good.
    #[serde(default)]
    pub on_error: OnError,
    /// What becomes of later changes of its key.
    #[serde(default)]
    pub later: Later,
}

/// What becomes of a row that a sink refuses for good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// It is put aside among the dead letters, and the rest goes on.
    #[default]
    DeadLetter,
    /// The pipeline stops with the error; nothing is acknowledged.
    Stop,
}

/// What becomes of later changes of the key of a row that lies aside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Later {
    /// They go on.
    #[default]
    Pass,
    /// They are put aside behind it, and replayed with it in their order.
    Wait,
}

fn default_max() -> u64 {
    DEFAULT_MAX_LETTERS
}

fn default_max_bytes() -> ByteSize {
    DEFAULT_MAX_LETTER_BYTES
}

fn default_invariant_timeout() -> Duration {
    DEFAULT_INVARIANT_TIMEOUT
}

fn default_safety_interval() -> Duration {
    Duration(lockstep_transactions::resolve::DEFAULT_SAFETY_INTERVAL)
}

fn default_resolve_every() -> Duration {
    DEFAULT_RESOLVE_EVERY
}

fn default_every() -> Duration {
    DEFAULT_RECONCILE_EVERY
}

fn default_memory() -> ByteSize {
    DEFAULT_MEMORY
}

fn default_shutdown_timeout() -> Duration {
    DEFAULT_SHUTDOWN_TIMEOUT
}

fn default_admin_listen() -> String {
    DEFAULT_ADMIN_LISTEN.to_owned()
}

/// Whether `name` may name a pipeline or a node.
#[must_use]
pub fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.bytes().all(|byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_reach_the_endpoint_with_a_token_or_where_it_is_said_to_be_open() {
        let why = |listen: &str, token: Option<&str>, open: bool| {
            let admin = Admin {
                listen: listen.to_owned(),
                token: token.map(Secret::new),
                open,
            };
            admin.refusal().map(|(key, _, _)| key)
        };
        for near in [
            "127.0.0.1:1",
            "127.8.0.1:1",
            "[::1]:1",
            "[::ffff:127.0.0.1]:1",
            "localhost:1",
        ] {
            assert_eq!(why(near, None, false), None, "{near}");
        }
        for far in [
            "0.0.0.0:1",
            "[::]:1",
            "10.0.0.7:1",
            "shop.example:1",
            "localhost.example:1",
        ] {
            assert_eq!(why(far, None, false), Some("listen"), "{far}");
            assert_eq!(why(far, Some("t"), false), None, "{far}");
            assert_eq!(why(far, None, true), None, "{far}");
            assert_eq!(why(far, Some(" "), true), Some("token"), "{far}");
        }
        for wrong in ["127.0.0.1", ":1", "localhost:http"] {
            assert_eq!(why(wrong, Some("t"), true), Some("listen"), "{wrong}");
        }
    }
}
