//! The pipeline file of the demo, as one would write it by hand.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use lockstep_core::config::Secret;

use super::compare::Rules;
use super::load::ADDED_COLUMN;
use super::shop::{INVENTORY_TABLES, ORDERS_TABLES};
use crate::quoted;

/// Name of the pipeline.
pub const NAME: &str = "shop";
/// Sinks that hold a copy of the sources and can be compared with them.
pub const STATE_SINKS: &[&str] = &["cache", "search"];
/// The columns by which repeated payments and refunds are recognised.
pub const ONCE: &[&str] = &["idempotency_key"];

/// How its copies are compared with the sources.
#[must_use]
pub fn rules() -> Rules {
    Rules {
        once: ONCE.iter().map(|&name| name.to_owned()).collect(),
        added: vec![ADDED_COLUMN.to_owned()],
    }
}

/// What the pipeline joins.
#[derive(Clone, Debug)]
pub struct Ends {
    /// The orders database.
    pub orders_url: Secret,
    /// The inventory database.
    pub inventory_url: Secret,
    /// Bootstrap address.
    pub kafka: String,
    /// The cache.
    pub redis_url: Secret,
    /// The search index.
    pub search: Search,
    /// Where the admin endpoint listens.
    pub admin: SocketAddr,
    /// Where the pipeline keeps its state.
    pub state: PathBuf,
}

/// Where search documents go.
#[derive(Clone, Debug)]
pub enum Search {
    /// The embedded index, in this folder.
    Tantivy(PathBuf),
    /// An OpenSearch server.
    OpenSearch(Secret),
}

/// The file with everything in it, passwords too: for the pipeline, not for eyes.
#[must_use]
pub fn text(ends: &Ends) -> String {
    write(ends, |url| url.reveal().to_owned())
}

/// The file with URLs that hold neither user nor password nor parameters.
#[must_use]
pub fn shown(ends: &Ends) -> String {
    write(ends, Secret::redacted_url)
}

fn write(ends: &Ends, url: impl Fn(&Secret) -> String) -> String {
    let search = match &ends.search {
        Search::Tantivy(path) => format!("type = \"tantivy\"\npath = {}", path_string(path)),
        Search::OpenSearch(server) => format!(
            "type = \"opensearch\"\nurl = {}\nindex = \"{{source}}-{{table}}\"",
            string(&url(server))
        ),
    };
    format!(
        r#"name = "{NAME}"

[admin]
listen = "{admin}"
open = {open}

[state]
dir = {state}

[sources.orders]
type = "postgres"
url = {orders_url}
tables = {orders_tables}
two_phase = true

[sources.inventory]
type = "postgres"
url = {inventory_url}
tables = {inventory_tables}
two_phase = true

[transforms.whole]                # an order and its reservations are one purchase
type = "stitch"
inputs = ["orders", "inventory"]

[transforms.once]                 # a payment sent again is not a second payment
type = "dedupe"
inputs = ["whole"]
key = {once}
window = "24h"

[sinks.events]
type = "kafka"
inputs = ["once"]
brokers = {kafka}
topic = "{{source}}.{{schema}}.{{table}}"
format = "debezium"
exactly_once = true

[sinks.cache]
type = "redis"
inputs = ["once"]
url = {redis_url}
key = "{{source}}:{{table}}:{{key}}"
value = "json"

[sinks.search]
inputs = ["once"]
{search}
"#,
        admin = ends.admin,
        // Whoever lets others at a demo has said so.
        open = !ends.admin.ip().is_loopback(),
        state = path_string(&ends.state),
        orders_url = string(&url(&ends.orders_url)),
        orders_tables = tables(ORDERS_TABLES),
        inventory_url = string(&url(&ends.inventory_url)),
        inventory_tables = tables(INVENTORY_TABLES),
        once = list(ONCE.iter().map(|&name| name.to_owned())),
        kafka = string(&ends.kafka),
        redis_url = string(&url(&ends.redis_url)),
    )
}

fn tables(names: &[&str]) -> String {
    list(names.iter().map(|name| format!("public.{name}")))
}

fn list(values: impl Iterator<Item = String>) -> String {
    let values: Vec<String> = values.map(|value| string(&value)).collect();
    format!("[{}]", values.join(", "))
}

fn path_string(path: &Path) -> String {
    string(&path.display().to_string())
}

fn string(value: &str) -> String {
    quoted::string(&quoted::literal(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends() -> Ends {
        Ends {
            orders_url: Secret::new(
                "postgres://shop:p\"a${ss@127.0.0.1:5432/orders?sslmode=disable",
            ),
            inventory_url: Secret::new("postgres://postgres@127.0.0.1:5433/inventory"),
            kafka: "127.0.0.1:9092".into(),
            redis_url: Secret::new("redis://:secret@127.0.0.1:6379"),
            search: Search::Tantivy("/tmp/shop/search".into()),
            admin: ([127, 0, 0, 1], 9187).into(),
            state: "/tmp/shop/state".into(),
        }
    }

    #[test]
    fn it_is_toml_with_the_ends_in_it() {
        let document: toml_edit::DocumentMut = text(&ends()).parse().expect("TOML");
        let orders = &document["sources"]["orders"];
        assert_eq!(
            orders["url"].as_str(),
            Some("postgres://shop:p\"a$${ss@127.0.0.1:5432/orders?sslmode=disable")
        );
        assert_eq!(orders["tables"][3].as_str(), Some("public.payments"));
        assert_eq!(
            document["sinks"]["events"]["topic"].as_str(),
            Some("{source}.{schema}.{table}")
        );
        assert_eq!(
            document["sinks"]["search"]["type"].as_str(),
            Some("tantivy")
        );
        assert_eq!(
            document["transforms"]["once"]["key"][0].as_str(),
            Some("idempotency_key")
        );
        assert_eq!(
            document["transforms"]["once"]["inputs"][0].as_str(),
            Some("whole")
        );
        for sink in STATE_SINKS {
            assert!(document["sinks"].get(sink).is_some(), "{sink}");
        }
    }

    #[test]
    fn opensearch_has_an_index_per_table() {
        let search = Search::OpenSearch(Secret::new("http://127.0.0.1:9200"));
        let document: toml_edit::DocumentMut =
            text(&Ends { search, ..ends() }).parse().expect("TOML");
        let search = &document["sinks"]["search"];
        assert_eq!(search["url"].as_str(), Some("http://127.0.0.1:9200"));
        assert_eq!(search["index"].as_str(), Some("{source}-{table}"));
    }

    #[test]
    fn what_is_shown_holds_no_secrets() {
        let shown = shown(&ends());
        assert!(shown.contains("redis://127.0.0.1:6379"), "{shown}");
        assert!(
            !shown.contains("secret") && !shown.contains("p\\\"a"),
            "{shown}"
        );
    }
}
