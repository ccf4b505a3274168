//! The shop, end to end: what `lockstep demo` prints, how it ends, and that it notices a copy that differs.

use std::time::Duration;

use lockstep_e2e::Setup;
use lockstep_e2e::child::{PATIENCE, Pipeline};
use lockstep_kit::Component::{
    Kafka as NeedsKafka, OpenSearch as NeedsOpenSearch, Postgres as NeedsPostgres,
    Redis as NeedsRedis,
};
use lockstep_kit::kafka::Kafka;
use lockstep_kit::opensearch::{OpenSearch, OpenSearchOptions};
use lockstep_kit::postgres::{Database, Postgres};
use lockstep_kit::redis::{Redis, RedisOptions, Reply};
use lockstep_kit::{require, require_own};
use rustix::process::Signal;
use serde_json::Value;
use tokio::sync::{Mutex, MutexGuard};

/// The demo's slots and its transactional id have fixed names: two demos on the same servers would be one too many.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// A small shop, for a short while.
const SMALL: &[&str] = &[
    "--listen=127.0.0.1:0",
    "--orders=200",
    "--products=40",
    "--import-rows=300",
    "--rate=25",
    "--connections=2",
];

const TABLES: [&str; 9] = [
    "orders.carts",
    "orders.orders",
    "orders.order_items",
    "orders.payments",
    "orders.refunds",
    "inventory.products",
    "inventory.stock",
    "inventory.reservations",
    "inventory.stock_movements",
];

struct Servers {
    orders: Database,
    inventory: Database,
    redis: Redis,
    kafka: &'static Kafka,
    setup: Setup,
    /// Last: the databases go first, and their slots with them.
    _alone: MutexGuard<'static, ()>,
}

impl Servers {
    async fn start() -> Self {
        let alone = ONE_AT_A_TIME.lock().await;
        let (orders, inventory) = (Postgres::shared(15).await, Postgres::shared(17).await);
        Servers {
            orders: orders.database("orders").await,
            inventory: inventory.database("inventory").await,
            redis: Redis::start(RedisOptions::default()).await,
            kafka: Kafka::shared().await,
            setup: Setup::new("demo", |_| String::new()),
            _alone: alone,
        }
    }

    fn arguments<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        let ends = [
            "demo",
            "--orders-url",
            self.orders.url(),
            "--inventory-url",
            self.inventory.url(),
            "--redis-url",
            self.redis.url(),
            "--kafka",
            self.kafka.bootstrap(),
        ];
        [&ends, SMALL, more].concat()
    }

    fn demo(&self, more: &[&str]) -> Pipeline {
        self.setup.spawn(&self.arguments(more), &[])
    }
}

/// The figures of the line of a table that begins with these words, if there is one.
fn line_of(output: &str, words: &[&str]) -> Option<Vec<u64>> {
    let figures = output.lines().find_map(|line| {
        let cells: Vec<&str> = line.split_whitespace().collect();
        let found = cells.starts_with(words);
        found.then(|| cells[words.len()..].join(" "))
    })?;
    let figures = figures.split(' ');
    Some(
        figures
            .map_while(|cell| cell.replace(',', "").parse().ok())
            .collect(),
    )
}

/// As [`line_of`], which must be there.
fn figures(output: &str, words: &[&str]) -> Vec<u64> {
    line_of(output, words).unwrap_or_else(|| panic!("no line {words:?} in\n{output}"))
}

/// How often something happened in the shop, as the head of the summary says.
fn times(output: &str, one: &str, many: &str) -> u64 {
    let told = output.lines().flat_map(|line| line.split('·'));
    let times = told.into_iter().find_map(|part| {
        let (times, what) = part.trim().split_once(' ')?;
        (what == one || what == many).then(|| times.replace(',', "").parse().ok())?
    });
    times.unwrap_or(0)
}

/// What changed both databases at once, by the head of the summary: one word, and several.
const BOTH: [[&str; 2]; 4] = [
    ["purchase", "purchases"],
    ["order shipped", "orders shipped"],
    ["order delivered", "orders delivered"],
    ["order cancelled", "orders cancelled"],
];

/// Transactions of both databases, and those that went on behind the copy: as a whole.
fn of_both(output: &str) -> [u64; 2] {
    let line = output
        .lines()
        .find_map(|line| line.trim().strip_prefix("Two-phase "))
        .unwrap_or_else(|| panic!("no transactions of both in\n{output}"));
    assert!(line.contains("all of them whole, held back for"), "{line}");
    let number = |before: &str| {
        let words = line.split(before).next()?.split_whitespace();
        words.last()?.replace(',', "").parse().ok()
    };
    [" transaction", " came behind the copy"]
        .map(|before| number(before).unwrap_or_else(|| panic!("{before} in {line}")))
}

/// What stands behind a word of the list of places.
fn place<'a>(output: &'a str, what: &str) -> Option<&'a str> {
    let (_, list) = output
        .split_once("Where to look")
        .expect("a list of places");
    list.lines()
        .find_map(|line| line.trim().strip_prefix(what)?.strip_prefix("  "))
        .map(str::trim)
}

/// What a shell prints when it is given the line.
fn shell(line: &str) -> String {
    let said = std::process::Command::new("sh")
        .args(["-c", line])
        .env("NO_COLOR", "1")
        .output()
        .expect("a shell");
    assert!(said.status.success(), "{line}: {said:?}");
    String::from_utf8_lossy(&said.stdout).into_owned()
}

/// A summary with all its parts, of copies that are equal.
fn assert_complete(output: &str, search: &str) {
    let mut all = 0;
    for table in TABLES {
        // Refunds are rare: in a short while there may be none.
        let Some(found) = line_of(output, &[table]).or_else(|| {
            assert_eq!(table, "orders.refunds", "{output}");
            None
        }) else {
            continue;
        };
        let [copied, inserts, updates, deletes, total] = found[..] else {
            panic!("{table}: {found:?} in\n{output}");
        };
        assert!(total > 0, "{table} in\n{output}");
        assert_eq!(copied + inserts + updates + deletes, total, "{table}");
        all += total;
    }
    assert_eq!(figures(output, &["all"])[4], all, "{output}");
    // The import by COPY came through as well.
    assert!(
        figures(output, &["inventory.products"])[1] >= 300,
        "{output}"
    );

    for (sink, kind) in [("events", "kafka"), ("cache", "redis"), ("search", search)] {
        assert!(
            figures(output, &[sink, kind])[0] > 500,
            "{sink} in\n{output}"
        );
        let line = output
            .lines()
            .find(|line| line.trim().starts_with(sink) && line.contains(kind))
            .expect("the line was found before");
        // Both quantiles are there: `–` stands for none.
        assert!(line.contains('s') && !line.contains('–'), "{line}");
        for table in TABLES.iter().filter(|_| sink != "events") {
            let found = figures(output, &[sink, table]);
            let [rows, same, 0, 0, 0] = found[..] else {
                panic!("{sink} {table}: {found:?} in\n{output}");
            };
            assert_eq!(rows, same);
        }
    }
    assert_eq!(
        output.matches('✓').count(),
        2 * TABLES.len() + 1,
        "{output}"
    );
    assert!(!output.contains('✗'), "{output}");
    for words in [
        "The shop ran for ",
        "1 schema change",
        "300 rows imported by COPY",
        "/s on average",
        " at most",
        "µs per change",
        " dropped by idempotency key",
        "\n✓ Equal: ",
    ] {
        assert!(output.contains(words), "{words} in\n{output}");
    }
}

/// The order that the printed command for Redis shows.
fn assert_shows_an_order(output: &str) {
    let command = place(output, "keys").expect("keys");
    let order: Value = serde_json::from_str(&shell(command)).expect("a row as JSON");
    assert!(
        order["id"].is_string() && order["number"].is_number(),
        "{order}"
    );
}

#[tokio::test]
async fn a_short_demo_ends_with_a_summary_and_equal_copies() {
    require!(NeedsPostgres(15), NeedsPostgres(17), NeedsKafka);
    require_own!(NeedsRedis);
    let servers = Servers::start().await;
    let ended = servers.demo(&["--seconds=6"]).ends().await;
    assert_eq!(ended.code(), Some(0), "{}\n{}", ended.stdout, ended.stderr);
    assert_complete(&ended.stdout, "tantivy");
    let [committed, stitched] = of_both(&ended.stdout);
    let made: u64 = BOTH
        .iter()
        .map(|[one, many]| times(&ended.stdout, one, many))
        .sum();
    // The first ones are in the copy.
    assert!(
        committed == made && (1..=made).contains(&stitched),
        "{}",
        ended.stdout
    );
    let suppressed = figures(&ended.stdout, &["Duplicates"])[0];
    let again = times(&ended.stdout, "payment sent again", "payments sent again")
        + times(&ended.stdout, "refund sent again", "refunds sent again");
    assert_eq!(suppressed, again, "{}", ended.stdout);
    assert_shows_an_order(&ended.stdout);
    // The pipeline and its folder are gone.
    for what in ["status", "metrics", "search"] {
        assert_eq!(place(&ended.stdout, what), None, "{}", ended.stdout);
    }
}

#[tokio::test]
async fn a_demo_with_opensearch_says_where_its_documents_are() {
    require!(NeedsPostgres(15), NeedsPostgres(17), NeedsKafka);
    require_own!(NeedsRedis, NeedsOpenSearch);
    let servers = Servers::start().await;
    let opensearch = OpenSearch::start(OpenSearchOptions::default()).await;
    let demo = servers.demo(&["--seconds=6", "--opensearch-url", opensearch.url()]);
    let ended = demo.ends().await;
    assert_eq!(ended.code(), Some(0), "{}\n{}", ended.stdout, ended.stderr);
    assert_complete(&ended.stdout, "opensearch");
    let address = place(&ended.stdout, "search").expect("an address");
    let path = address
        .strip_prefix(opensearch.url())
        .unwrap_or_else(|| panic!("{address}"));
    let (code, body) = opensearch
        .request("GET", path, "")
        .await
        .expect("OpenSearch answers");
    let found: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(code, 200, "{body}");
    assert!(found["hits"]["total"]["value"].as_u64() > Some(0), "{body}");
}

/// Waits until the key has arrived in Redis.
async fn arrives(demo: &mut Pipeline, redis: &Redis, key: &str) {
    demo.until(PATIENCE, format!("{key} in Redis"), async |_| {
        match redis.command(&["EXISTS", key]).await {
            Ok(Reply::Integer(1)) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

#[tokio::test]
async fn copies_that_differ_are_named_and_fail_the_demo() {
    require!(NeedsPostgres(15), NeedsPostgres(17), NeedsKafka);
    require_own!(NeedsRedis);
    let servers = Servers::start().await;
    let redis = &servers.redis;
    let mut demo = servers.demo(&["--seconds=6"]);
    // The shop only ever adds to this table: no later change repairs what is broken here.
    let [gone, other] = [1, 2].map(|id| format!("inventory:stock_movements:{id}"));
    for key in [&gone, &other] {
        arrives(&mut demo, redis, key).await;
    }
    let deleted = redis.command(&["DEL", &gone]).await;
    assert_eq!(deleted.expect("an answer"), Reply::Integer(1));
    let set = redis.command(&["SET", &other, r#"{"id":2}"#]).await;
    set.expect("an answer");

    let ended = demo.ends().await;
    assert_eq!(ended.code(), Some(1), "{}\n{}", ended.stdout, ended.stderr);
    let found = figures(&ended.stdout, &["cache", "inventory.stock_movements"]);
    assert_eq!(found[2..], [1, 1, 0], "{}", ended.stdout);
    assert_eq!(found[1] + 2, found[0], "{}", ended.stdout);
    for words in [
        "\n✗ Not equal: 2 rows differ in cache inventory.stock_movements.\n".to_owned(),
        format!("\n  cache inventory.stock_movements: {gone} is missing\n"),
        format!("\n  cache inventory.stock_movements: {other}"),
    ] {
        assert!(
            ended.stdout.contains(&words),
            "{words} in\n{}",
            ended.stdout
        );
    }
    // Whatever was not touched is equal.
    assert_eq!(ended.stdout.matches('✓').count(), 2 * TABLES.len() - 1);
}

#[tokio::test]
async fn on_a_terminal_it_stays_up_and_what_it_says_to_try_works() {
    require!(NeedsPostgres(15), NeedsPostgres(17), NeedsKafka);
    require_own!(NeedsRedis);
    let servers = Servers::start().await;
    let arguments = servers.arguments(&["--seconds=3"]);
    let mut demo = servers.setup.spawn_on_terminal(&arguments);
    let screen = demo
        .until(PATIENCE, "the end of the load", async |demo| {
            let screen = demo.log().replace('\r', "");
            let stays = screen.contains("Everything stays up until Ctrl-C.");
            stays.then(|| screen.clone()).ok_or(screen)
        })
        .await;
    assert_shows_an_order(&screen);
    let found = shell(place(&screen, "search").expect("a command"));
    assert!(found.contains("orders"), "{found}");
    assert!(!found.contains("\n0 found"), "{found}");
    for what in ["status", "metrics"] {
        let address = place(&screen, what).expect("an address");
        let rest = address.strip_prefix("http://").expect("a URL");
        let (host, path) = rest.split_once('/').expect("a path");
        let host = host.parse().expect("an address");
        let answer = lockstep_e2e::http::get(host, &format!("/{path}"), None).await;
        let (code, body) = answer.expect("it is up");
        assert_eq!(code, 200, "{body}");
        assert!(body.contains("orders"), "{body}");
    }
    demo.press_ctrl_c();
    let status = demo.wait_exit(PATIENCE).await;
    assert_eq!(status.code(), Some(0), "{}", demo.log());
}

#[tokio::test]
async fn told_to_stop_in_the_middle_it_stops_cleanly_and_says_what_it_did_not_do() {
    require!(NeedsPostgres(15), NeedsPostgres(17), NeedsKafka);
    require_own!(NeedsRedis);
    let servers = Servers::start().await;
    let mut demo = servers.demo(&["--seconds=600"]);
    demo.until(PATIENCE, "purchases", async |demo| {
        let output = demo.output();
        output.contains(" purchase").then_some(()).ok_or(output)
    })
    .await;
    demo.signal(Signal::INT);
    let ended = demo.ends().await;
    assert_eq!(
        ended.code(),
        Some(130),
        "{}\n{}",
        ended.stdout,
        ended.stderr
    );
    assert!(
        ended
            .stdout
            .contains("\nStopped before the end: nothing was compared."),
        "{}",
        ended.stdout
    );
    assert!(!ended.stderr.contains("error"), "{}", ended.stderr);
    // It left in order: its slots are free for whoever comes next.
    let active =
        "SELECT count(*) FROM pg_replication_slots WHERE database = current_database() AND active";
    for database in [&servers.orders, &servers.inventory] {
        lockstep_kit::wait_for(Duration::from_secs(10), "slots to be free", async || {
            database.value(active).await.as_deref() == Some("0")
        })
        .await;
    }
}
