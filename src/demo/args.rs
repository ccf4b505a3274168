//! The options of `lockstep demo`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lockstep_core::config::Secret;

use crate::cli::Format;

use super::load::{DEFAULT_CONNECTIONS, Import, LoadOptions, Rate};
use super::pipeline::{Ends, Search};
use super::shop::{DEFAULT_CUSTOMERS, DEFAULT_ORDERS, DEFAULT_PRODUCTS, ShopOptions};

/// Purchases a second: some 1,500 changes a second, which two cores serve beside the servers themselves.
pub const DEFAULT_RATE: f64 = 50.0;
/// Long enough for the copy, the schema change, the import and some calm afterwards.
pub const DEFAULT_SECONDS: u64 = 30;
/// A price list worth the name.
pub const DEFAULT_IMPORT_ROWS: u64 = 100_000;

/// Fills a shop's two databases, shops in them, keeps Kafka, Redis and search in lockstep, and compares.
///
/// `make demo` starts servers for it and sets the variables.
#[derive(Clone, Debug, clap::Args)]
pub struct DemoArgs {
    /// The orders database; it is created when missing, and must not hold the shop's tables yet.
    #[arg(
        long,
        env = "LOCKSTEP_DEMO_ORDERS_URL",
        hide_env_values = true,
        value_name = "URL"
    )]
    pub orders_url: String,
    /// The inventory database, of another server; as above.
    #[arg(
        long,
        env = "LOCKSTEP_DEMO_INVENTORY_URL",
        hide_env_values = true,
        value_name = "URL"
    )]
    pub inventory_url: String,
    /// Redis.
    #[arg(
        long,
        env = "LOCKSTEP_DEMO_REDIS_URL",
        hide_env_values = true,
        value_name = "URL",
        required_unless_present = "only"
    )]
    pub redis_url: Option<String>,
    /// Bootstrap address of a Kafka broker.
    #[arg(
        long,
        env = "LOCKSTEP_DEMO_KAFKA",
        value_name = "HOST:PORT",
        required_unless_present = "only"
    )]
    pub kafka: Option<String>,
    /// OpenSearch; without it, search is the embedded index.
    #[arg(
        long,
        env = "LOCKSTEP_DEMO_OPENSEARCH_URL",
        hide_env_values = true,
        value_name = "URL"
    )]
    pub opensearch_url: Option<String>,
    /// Only one part of it, beside a pipeline that runs elsewhere.
    #[arg(long, value_enum, value_name = "PART", conflicts_with_all = ["seconds", "import_rows", "folder", "listen"])]
    pub only: Option<Only>,
    /// Purchases per second.
    #[arg(long, default_value_t = DEFAULT_RATE, value_parser = positive)]
    pub rate: f64,
    /// How long to shop.
    #[arg(long, default_value_t = DEFAULT_SECONDS)]
    pub seconds: u64,
    /// Shoppers at the same time.
    #[arg(long, default_value_t = DEFAULT_CONNECTIONS)]
    pub connections: usize,
    /// Orders of the past, for the initial copy.
    #[arg(long, default_value_t = DEFAULT_ORDERS)]
    pub orders: u64,
    /// Products on sale.
    #[arg(long, default_value_t = DEFAULT_PRODUCTS, value_parser = clap::value_parser!(u64).range(1..))]
    pub products: u64,
    /// Products imported by COPY on the way; 0 for no import.
    #[arg(long, default_value_t = DEFAULT_IMPORT_ROWS)]
    pub import_rows: u64,
    /// Seed of everything that looks random.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Where the admin endpoint listens.
    #[arg(long, default_value = "127.0.0.1:9187", value_name = "HOST:PORT")]
    pub listen: SocketAddr,
    /// Where the pipeline keeps its file, its state and the embedded index; a temporary folder when not given.
    #[arg(long, value_name = "FOLDER")]
    pub folder: Option<PathBuf>,
    /// How the summary looks. As JSON it is all that is printed, and nothing stays up behind it.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
}

/// What of the demo there is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Only {
    /// The databases are made and filled, unless the shop is there already.
    Fill,
    /// People shop in databases that are there, until told to stop.
    Shop,
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number > 0.0 => Ok(number),
        _ => Err("a number above 0 is needed".to_owned()),
    }
}

impl DemoArgs {
    /// The shop on its first day.
    #[must_use]
    pub fn shop(&self) -> ShopOptions {
        ShopOptions {
            customers: DEFAULT_CUSTOMERS,
            products: self.products,
            orders: self.orders,
            seed: self.seed,
        }
    }

    /// The load: the schema changes after a third of the time, the import comes after half of it.
    #[must_use]
    pub fn load(&self) -> LoadOptions {
        let duration = Duration::from_secs(self.seconds);
        let import = Import {
            after: duration / 2,
            rows: self.import_rows,
        };
        LoadOptions {
            rate: Rate::Purchases(self.rate),
            connections: self.connections,
            duration: Some(duration),
            import: (self.import_rows > 0).then_some(import),
            schema_change: Some(duration / 3),
            seed: self.seed,
        }
    }

    /// What the pipeline joins, with everything local in `folder`.
    #[must_use]
    pub fn ends(&self, folder: &Path) -> Ends {
        let search = match &self.opensearch_url {
            Some(url) => Search::OpenSearch(Secret::new(url)),
            None => Search::Tantivy(folder.join("search")),
        };
        Ends {
            orders_url: Secret::new(&self.orders_url),
            inventory_url: Secret::new(&self.inventory_url),
            kafka: self.kafka.clone().unwrap_or_default(),
            redis_url: Secret::new(self.redis_url.as_deref().unwrap_or_default()),
            search,
            admin: self.listen,
            state: folder.join("state"),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        demo: DemoArgs,
    }

    const ENDS: [&str; 9] = [
        "demo",
        "--orders-url",
        "postgres://a/orders",
        "--inventory-url",
        "postgres://b/inventory",
        "--redis-url",
        "redis://c",
        "--kafka",
        "d:9092",
    ];

    #[test]
    fn options_become_a_shop_a_load_and_ends() {
        let given =
            ENDS.into_iter()
                .chain(["--seconds", "12", "--import-rows", "0", "--rate", "7.5"]);
        let args = Command::try_parse_from(given)
            .unwrap_or_else(|error| panic!("{error}"))
            .demo;
        let load = args.load();
        assert_eq!(load.rate, Rate::Purchases(7.5));
        assert!(load.import.is_none());
        assert_eq!(load.schema_change, Some(Duration::from_secs(4)));
        assert!(
            matches!(args.ends(Path::new("/f")).search, Search::Tantivy(path) if path == Path::new("/f/search"))
        );
    }

    #[test]
    fn a_part_of_it_needs_the_databases_alone() {
        let given = |more: &[&str]| {
            let given = ENDS.into_iter().take(5).chain(more.iter().copied());
            Command::try_parse_from(given.collect::<Vec<_>>())
        };
        let only = given(&["--only", "fill"]).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(only.demo.only, Some(Only::Fill));
        assert!(given(&[]).is_err(), "the whole demo needs every end");
        let timed = given(&["--only", "shop", "--seconds", "3"]);
        assert!(timed.is_err(), "it shops until it is told to stop");
    }

    #[test]
    fn a_rate_of_nothing_is_refused() {
        let given = ENDS.into_iter().chain(["--rate", "0"]);
        assert!(Command::try_parse_from(given).is_err());
    }
}
