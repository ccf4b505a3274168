//! `lockstep init` writes files that pass `lockstep check` and run, from what it is told, asked, or finds.

use std::path::Path;
use std::time::{Duration, Instant};

use lockstep::demo::shop::{Shop, ShopOptions};
use lockstep_e2e::Setup;
use lockstep_e2e::child::{Ended, PATIENCE, Pipeline};
use lockstep_kit::Component::{
    Kafka as NeedsKafka, Postgres as NeedsPostgres, Rabbitmq as NeedsRabbitmq, Redis as NeedsRedis,
};
use lockstep_kit::kafka::Kafka;
use lockstep_kit::postgres::{Auth, Database, PASSWORD, Postgres, PostgresOptions};
use lockstep_kit::rabbitmq::Rabbitmq;
use lockstep_kit::redis::{Redis, Reply};
use lockstep_kit::{require, require_own, unique};
use serde_json::Value;

/// A folder to write into; its own pipeline file is not used.
fn folder() -> Setup {
    Setup::new("unused", |_| String::new())
}

fn written(setup: &Setup, name: &str) -> String {
    let path = setup.folder().join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn assert_done(ended: &Ended) {
    assert_eq!(ended.code(), Some(0), "{}\n{}", ended.stdout, ended.stderr);
}

/// The shop's two databases, as the demo makes them.
async fn shop() -> (Database, Database) {
    let servers = (Postgres::shared(15).await, Postgres::shared(17).await);
    let orders = servers.0.database("orders").await;
    let inventory = servers.1.database("inventory").await;
    let small = ShopOptions {
        customers: 20,
        products: 20,
        orders: 50,
        seed: 1,
    };
    let made = Shop::create(orders.url(), inventory.url(), small).await;
    made.unwrap_or_else(|error| panic!("{error}"));
    (orders, inventory)
}

async fn table() -> Database {
    let database = Postgres::shared(17).await.database("shop").await;
    let make = "CREATE TABLE t (id int PRIMARY KEY, note text); INSERT INTO t VALUES (1, 'one'); ANALYZE t;
        CREATE TABLE log (at timestamptz, line text)";
    database.execute(make).await;
    database
}

#[tokio::test]
async fn the_shops_two_databases_are_checked_and_running_within_two_minutes() {
    require!(NeedsPostgres(15), NeedsPostgres(17), NeedsKafka, NeedsRedis);
    let (orders, inventory) = shop().await;
    orders
        .execute("CREATE TABLE audit (at timestamptz, what text)")
        .await;
    let (kafka, redis) = (Kafka::shared().await, Redis::shared().await);
    let setup = folder();
    let (name, here, there) = (unique("shop"), unique("orders"), unique("inventory"));
    let arguments = [
        "init".to_owned(),
        "shop.toml".to_owned(),
        format!("--url={here}={}", orders.url()),
        format!("--url={there}={}", inventory.url()),
        "--stitch".to_owned(),
        format!("--sink=kafka={}", kafka.bootstrap()),
        format!("--sink=redis={}", redis.url()),
        "--sink=file=changes".to_owned(),
        format!("--name={name}"),
        "--yes".to_owned(),
    ];
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let begun = Instant::now();
    let ended = setup.lockstep_with(&arguments, &[]).await;
    assert_done(&ended);
    let next = [
        "  lockstep check shop.toml\n",
        "  lockstep run shop.toml\n",
        "ready to run",
    ];
    for words in next {
        assert!(ended.stdout.contains(words), "{words} in {}", ended.stdout);
    }
    let file = written(&setup, "shop.toml");
    assert!(
        file.contains("# not taken: public.audit: it has no primary key"),
        "{file}"
    );
    assert!(
        file.contains("inputs = [\"whole\"]") && file.contains("two_phase = true"),
        "{file}"
    );

    assert_done(&setup.lockstep_with(&["check", "shop.toml"], &[]).await);
    let mut pipeline = setup.spawn(&["run", "shop.toml"], &[]);
    pipeline.wait_ready().await;
    println!("from init to a running pipeline: {:?}", begun.elapsed());
    assert!(
        begun.elapsed() < Duration::from_secs(120),
        "{:?}",
        begun.elapsed()
    );
    // And it does what it is for.
    let end = crate::support::end_of_log(&orders).await;
    pipeline.wait_visible(&here, &end, PATIENCE).await;
    let copied = written(&setup, &format!("changes/{here}.public.orders.jsonl"));
    assert_eq!(copied.lines().count(), 50);
    assert!(pipeline.terminate(PATIENCE).await.success());
}

/// Where their records go is made at the start.
#[tokio::test]
async fn queues_streams_and_webhooks_are_written_checked_and_run() {
    require!(NeedsPostgres(17), NeedsRedis, NeedsRabbitmq);
    let database = table().await;
    let (redis, rabbitmq) = (Redis::shared().await, Rabbitmq::shared().await);
    let setup = folder();
    let name = unique("told");
    let arguments = [
        "init".to_owned(),
        "told.toml".to_owned(),
        format!("--url={name}={}", database.url()),
        "--tables=t".to_owned(),
        format!("--sink=rabbitmq={}", rabbitmq.url()),
        format!("--sink=redis-stream={}", redis.url()),
        format!("--name={name}"),
        "--yes".to_owned(),
    ];
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    assert_done(&setup.lockstep_with(&arguments, &[]).await);
    let file = written(&setup, "told.toml");
    let secret = ("QUEUE_PASSWORD", "guest");
    assert!(file.contains("${QUEUE_PASSWORD}"), "{file}");
    assert_done(
        &setup
            .lockstep_with(&["check", "told.toml"], &[secret])
            .await,
    );
    let mut pipeline = setup.spawn(&["run", "told.toml"], &[secret]);
    pipeline.wait_ready().await;
    let end = crate::support::end_of_log(&database).await;
    pipeline.wait_visible(&name, &end, PATIENCE).await;
    let stream = format!("{name}:public:t");
    let held = redis.command(&["XLEN", &stream]).await;
    assert!(matches!(held, Ok(Reply::Integer(1))), "{held:?}");
    assert!(pipeline.terminate(PATIENCE).await.success());
}

#[tokio::test]
async fn a_database_alone_is_enough_and_its_password_is_nowhere() {
    require!(NeedsPostgres(17));
    let database = table().await;
    let setup = folder();
    // This server asks nobody for a password; one may be given all the same.
    let url = database
        .url()
        .replacen("postgres@", "postgres:planted%40s3cret@", 1);
    let arguments = [
        "init", "--from", &url, "--name", "found", "--format", "json",
    ];
    let ended = setup.lockstep_with(&arguments, &[]).await;
    assert_done(&ended);
    let told = json(&ended.stdout);
    assert_eq!(
        (&told["file"], &told["name"]),
        (&"found.toml".into(), &"found".into())
    );
    assert_eq!(told["check"]["ok"], true, "{told:#}");
    assert_eq!(told["sinks"][0]["type"], "file");
    let tables = told["sources"][0]["tables"].as_array().expect("tables");
    let [log, t] = &tables[..] else {
        panic!("{tables:?}");
    };
    assert_eq!((&log["taken"], &t["taken"]), (&false.into(), &true.into()));
    assert!(
        log["remedy"]
            .as_str()
            .is_some_and(|remedy| remedy.contains("ADD PRIMARY KEY")),
        "{log}"
    );
    assert_eq!((&t["key"][0], &t["rows"]), (&"id".into(), &1.into()));
    let variable = told["environment"][0].as_str().expect("a variable");
    let file = written(&setup, "found.toml");
    assert!(
        file.contains(&format!("password = \"${{{variable}}}\"")),
        "{file}"
    );
    for text in [&file, &ended.stdout, &ended.stderr] {
        assert!(
            !text.contains("planted") && !text.contains("s3cret"),
            "{text}"
        );
    }
    let check = ["check", "found.toml"];
    let without = setup.lockstep_with(&check, &[]).await;
    assert_eq!(without.code(), Some(2), "{without:?}");
    assert!(without.stderr.contains(variable), "{without:?}");
    assert_done(
        &setup
            .lockstep_with(&check, &[(variable, "planted@s3cret")])
            .await,
    );

    // What is there stays.
    let again = setup.lockstep_with(&arguments, &[]).await;
    assert_eq!(again.code(), Some(2), "{again:?}");
    let told = json(&again.stderr);
    assert_eq!(told["error"]["code"], "LS002");
    assert!(
        told["error"]["remedy"]
            .as_str()
            .is_some_and(|remedy| remedy.contains("--force")),
        "{told}"
    );
    assert_eq!(written(&setup, "found.toml"), file);
    assert_done(
        &setup
            .lockstep_with(&[&arguments[..], &["--force"]].concat(), &[])
            .await,
    );
}

#[tokio::test]
async fn names_that_others_have_on_the_server_are_left_to_them() {
    require!(NeedsPostgres(17));
    let database = table().await;
    let name = unique("taken");
    let taken =
        "CREATE TABLE other (id int PRIMARY KEY); CREATE PUBLICATION lockstep FOR TABLE other";
    database.execute(taken).await;
    // Not in one transaction with what is written.
    let slot = format!("SELECT pg_create_logical_replication_slot('lockstep_{name}', 'pgoutput')");
    database.execute(&slot).await;
    let setup = folder();
    let source = format!("{name}={}", database.url());
    let arguments = [
        "init", "--url", &source, "--tables", "t", "--sink", "file", "--name", "mine",
    ];
    let ended = setup.lockstep_with(&arguments, &[]).await;
    let file = written(&setup, "mine.toml");
    let check = setup.lockstep_with(&["check", "mine.toml"], &[]).await;
    database
        .execute(&format!(
            "SELECT pg_drop_replication_slot('lockstep_{name}')"
        ))
        .await;
    assert_done(&ended);
    assert!(
        file.contains(&format!("slot = \"lockstep_mine_{name}\"")),
        "{file}"
    );
    assert!(file.contains("publication = \"lockstep_mine\""), "{file}");
    assert_done(&check);
}

#[tokio::test]
async fn without_a_terminal_it_names_the_flags_that_say_it() {
    let setup = folder();
    let ended = setup.lockstep_with(&["init"], &[]).await;
    assert_eq!(ended.code(), Some(2), "{ended:?}");
    for flag in ["--url", "--tables", "--sink", "--from", "--yes"] {
        assert!(ended.error().contains(flag), "{flag} in {}", ended.error());
    }
    let ended = setup
        .lockstep_with(&["init", "shop.yaml", "--from", "postgres://h/x"], &[])
        .await;
    assert!(
        ended.code() == Some(2) && ended.error().contains(".toml"),
        "{ended:?}"
    );
    assert!(!Path::new(&setup.folder().join("shop.yaml")).exists());
}

/// Waits until the terminal shows the words.
async fn shows(terminal: &mut Pipeline, words: &str) {
    terminal
        .until(
            PATIENCE,
            format!("the terminal to show {words}"),
            async |terminal| {
                let screen = terminal.log();
                screen.contains(words).then_some(()).ok_or(screen)
            },
        )
        .await;
}

#[tokio::test]
async fn on_a_terminal_it_asks_five_questions() {
    require!(NeedsPostgres(17));
    let database = table().await;
    let setup = folder();
    let mut terminal = setup.spawn_on_terminal(&["init"]);
    shows(&mut terminal, "Which database?").await;
    terminal.types("mysql://h/x\n");
    shows(&mut terminal, "does not begin with postgres://").await;
    terminal.types(&format!("{}\n", database.url()));
    shows(&mut terminal, "Another database?").await;
    terminal.types("\n");
    shows(&mut terminal, "Which tables?").await;
    shows(&mut terminal, "public.log: it has no primary key").await;
    terminal.types("1\n");
    shows(&mut terminal, "Where to?").await;
    terminal.types("file=out\n");
    shows(&mut terminal, "What is the pipeline called?").await;
    terminal.types("asked\n");
    let status = terminal.wait_exit(PATIENCE).await;
    assert_eq!(status.code(), Some(0), "{}", terminal.log());
    assert!(
        terminal.log().contains("lockstep run asked.toml"),
        "{}",
        terminal.log()
    );
    let file = written(&setup, "asked.toml");
    assert!(
        file.contains("\"public.t\",") && file.contains("\"out/{source}"),
        "{file}"
    );
    assert_done(&setup.lockstep_with(&["check", "asked.toml"], &[]).await);
}

#[tokio::test]
async fn a_server_that_is_not_ready_is_told_with_what_helps_and_a_password_is_asked_for_unseen() {
    require_own!(NeedsPostgres(16));
    let options = PostgresOptions {
        auth: Auth::Scram,
        ..PostgresOptions::new(16).set("wal_level", "replica")
    };
    let server = Postgres::start(options).await;
    let database = server.database("shop").await;
    database
        .execute("CREATE TABLE t (id int PRIMARY KEY)")
        .await;
    let (login, rest) = database.url().rsplit_once('@').expect("a login");
    let user = login
        .rsplit('/')
        .next()
        .and_then(|login| login.split(':').next())
        .expect("a user");
    let source = format!("shop=postgres://{user}@{rest}");
    let setup = folder();

    // Nobody to ask: the variable's name is the remedy, and what helps.
    let arguments = ["init", "told.toml", "--from", &source];
    let ended = setup.lockstep_with(&arguments, &[]).await;
    assert_eq!(ended.code(), Some(1), "{ended:?}");
    assert!(ended.error().contains("SHOP_PASSWORD"), "{ended:?}");
    let ended = setup
        .lockstep_with(&arguments, &[("SHOP_PASSWORD", PASSWORD)])
        .await;
    assert_done(&ended);
    for words in [
        "✗ fail  wal_level",
        "ALTER SYSTEM SET wal_level = 'logical'",
        "to repair",
    ] {
        assert!(ended.stdout.contains(words), "{words} in {}", ended.stdout);
    }
    assert!(written(&setup, "told.toml").contains("password = \"${SHOP_PASSWORD}\""));

    let mut terminal = setup.spawn_on_terminal(&[
        "init",
        "asked.toml",
        "--url",
        &source,
        "--tables",
        "t",
        "--sink",
        "file",
        "--name",
        "x",
    ]);
    shows(&mut terminal, "Password of").await;
    terminal.types(&format!("{PASSWORD}\n"));
    let status = terminal.wait_exit(PATIENCE).await;
    assert_eq!(status.code(), Some(0), "{}", terminal.log());
    let screen = terminal.log();
    assert!(
        screen.contains("export SHOP_PASSWORD=…") && !screen.contains(PASSWORD),
        "{screen}"
    );
    assert!(!written(&setup, "asked.toml").contains(PASSWORD));
}
