//! The running pipeline ends by itself what a coordinator has left behind: of those that the file names, and where it holds the lease.

use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use lockstep_e2e::{Pipeline, Setup};
use lockstep_kit::Component::Postgres as Needs;
use lockstep_kit::postgres::{Database, Postgres, PostgresOptions};
use lockstep_kit::{require, require_own, wait_for};
use lockstep_transactions::coordinator::{Coordinator, Direct, Onlooker, Point};
use rustix::process::{Signal, getpid, kill_process};
use serde_json::Value;
use tokio_postgres::NoTls;

use crate::evidence::{Shop, gid};
use crate::support::source;

const CATCH_UP: Duration = Duration::from_secs(60);
/// Looks that find the same: the next one would, too.
const LOOKS: u64 = 3;

/// The lines of `[transactions]` of a pipeline that ends these managers' branches.
fn section(automatic: &str) -> String {
    format!("automatic = {automatic}\nevery = \"1s\"\nsafety_interval = \"1s\"\n")
}

/// The variable that makes [`coordinator`] one: what it buys, and the URLs.
const VARIABLE: &str = "LOCKSTEP_TEST_COORDINATOR";

/// Not a test of its own: the body of a process that buys once, and dies when one of two databases has committed. Its log is in a third one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn coordinator() {
    let Ok(told) = std::env::var(VARIABLE) else {
        return;
    };
    let told: Vec<&str> = told.split('|').collect();
    let [name, orders, inventory, decisions] = told[..] else {
        panic!("{told:?}");
    };
    let direct = |url: &str| Direct::new(url.parse().expect("a URL"), NoTls);
    let coordinator = Coordinator::builder(name)
        .database("orders", direct(orders))
        .database("inventory", direct(inventory))
        .database("decisions", direct(decisions))
        .log("decisions")
        .onlooker(Dies)
        .open()
        .await
        .expect("opens");
    let purchase = coordinator.begin(["orders", "inventory"]).await;
    let purchase = purchase.expect("begins");
    for client in purchase.branches() {
        let insert = format!("INSERT INTO t VALUES ('{name}')");
        client.batch_execute(&insert).await.expect("inserts");
    }
    panic!("it lives on: {:?}", purchase.commit().await);
}

struct Dies;

#[async_trait]
impl Onlooker for Dies {
    async fn reached(&self, point: Point, database: &str) {
        match (point, database) {
            (Point::Ended, "orders") => kill_process(getpid(), Signal::KILL).expect("dies"),
            (Point::Ending, "inventory") => std::future::pending().await,
            _ => {}
        }
    }
}

/// Buys, by a coordinator that dies when the order has committed, and the reservation has not.
async fn buy_and_die(shop: &Shop, decisions: &Database, name: &str) {
    use std::os::unix::process::ExitStatusExt as _;
    let urls = [shop.orders.url(), shop.inventory.url(), decisions.url()];
    let mut command = tokio::process::Command::new(std::env::current_exe().expect("a program"));
    command
        .args(["--exact", "resolver::coordinator", "--nocapture"])
        .env(VARIABLE, format!("{name}|{}", urls.join("|")))
        .stdout(Stdio::null())
        .kill_on_drop(true);
    let status = command.status().await.expect("it starts");
    assert_eq!(status.signal(), Some(9), "{status:?}");
}

/// What is prepared in the second database.
async fn prepared(shop: &Shop) -> Vec<String> {
    let ask = "SELECT coalesce(string_agg(gid, ' ' ORDER BY prepared), '') FROM pg_prepared_xacts \
               WHERE database = current_database()";
    let gids = shop.inventory.value(ask).await.expect("a text");
    gids.split_whitespace().map(str::to_owned).collect()
}

/// A value that the pipeline tells; nothing where there is none.
async fn metric(pipeline: &mut Pipeline, name: &str) -> Option<u64> {
    let (_, text) = pipeline.get("/metrics").await.ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().parse().ok()
}

/// Until so many branches of a manager are told to commit by evidence.
async fn is_told(pipeline: &mut Pipeline, manager: &str) {
    let gauge = format!(
        r#"lockstep_resolver_branches{{action="commit",manager="{manager}",rule="evidence"}}"#
    );
    let told = pipeline.until(CATCH_UP, &gauge, async |pipeline| {
        let told = metric(pipeline, &gauge).await;
        (told == Some(1))
            .then_some(())
            .ok_or_else(|| format!("{told:?}"))
    });
    told.await;
}

/// Until it has looked a few times more.
async fn looks_again(pipeline: &mut Pipeline, outcome: &str) {
    let looks = format!(r#"lockstep_resolver_looks_total{{outcome="{outcome}"}}"#);
    let before = metric(pipeline, &looks).await.unwrap_or_default();
    let again = pipeline.until(CATCH_UP, &looks, async |pipeline| {
        let now = metric(pipeline, &looks).await;
        (now >= Some(before + LOOKS))
            .then_some(())
            .ok_or_else(|| format!("{before} {now:?}"))
    });
    again.await;
}

/// The names in all rows that arrived; what coordinators say in messages is none.
fn arrived(shop: &Shop) -> Vec<String> {
    let arrived = shop.arrived().into_iter().map(|(id, _)| id);
    arrived.filter(|id| !id.is_empty()).collect()
}

fn journal(setup: &Setup) -> Vec<Value> {
    let text = std::fs::read_to_string(setup.state().join("transactions.jsonl"));
    let text = text.unwrap_or_default();
    let lines = text.lines();
    lines
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dead_coordinator_has_left_behind_is_ended_for_those_that_are_named() {
    require_own!(Needs(16), Needs(17));
    let elsewhere = Postgres::start(PostgresOptions::new(17)).await;
    let audit = elsewhere.database("audit").await;
    audit.execute("CREATE TABLE t (id text PRIMARY KEY)").await;
    let named = section("[\"lockstep\"]");
    let shop = Shop::open_with(&named, |folder| {
        let slot = lockstep_kit::unique("audit");
        let section = source(audit.url(), &slot, &["t"]).replace("sources.shop", "sources.audit");
        let path = folder.join("audit.jsonl");
        section
            + &format!(
                "[sinks.audit]\ntype = \"file\"\ninputs = [\"audit\"]\npath = \"{}\"\n",
                path.display()
            )
    })
    .await;
    let decisions = shop.server.database("decisions").await;
    let mut pipeline = shop.start().await;
    looks_again(&mut pipeline, "complete").await;
    // One database that does not answer keeps nobody from being helped in the others.
    elsewhere.stop_immediately().await;
    buy_and_die(&shop, &decisions, "bought").await;
    shop.caught_up(&mut pipeline).await;
    wait_for(CATCH_UP, "the reservation to be committed", async || {
        let left = prepared(&shop).await;
        left.is_empty()
            .then_some(())
            .ok_or_else(|| format!("{left:?}"))
    })
    .await;
    shop.caught_up(&mut pipeline).await;
    assert_eq!(arrived(&shop), ["bought", "bought"]);
    looks_again(&mut pipeline, "incomplete").await;
    let done = r#"lockstep_resolver_actions_total{action="commit",manager="lockstep",outcome="done",rule="evidence"}"#;
    assert_eq!(metric(&mut pipeline, done).await, Some(1));
    let lines = journal(&shop.setup);
    let states: Vec<_> = lines.iter().map(|line| line["state"].as_str()).collect();
    assert_eq!(states, [Some("begun"), Some("ended")]);
    for line in &lines {
        let by = line["by"].as_str().unwrap_or_default();
        assert!(
            by.starts_with("pipeline ") && line["rule"] == "evidence",
            "{line}"
        );
        let gid = line["gid"].as_str().expect("a gid");
        assert!(pipeline.log().contains(gid), "{}", pipeline.log());
    }
    let log = pipeline.log();
    let mut lines = log.lines();
    let fails = lines.find(|line| line.contains("what is in doubt is not known everywhere"));
    let fails = fails.unwrap_or_else(|| panic!("{log}"));
    assert!(
        fails.contains("LS00") && fails.contains("sources.audit"),
        "{fails}"
    );

    // What is not named is only told, by evidence that is as good.
    shop.prepare("N").await;
    let commit = format!("COMMIT PREPARED '{}'", gid("N", 1));
    shop.orders.execute(&commit).await;
    is_told(&mut pipeline, "narayana").await;
    looks_again(&mut pipeline, "incomplete").await;
    assert_eq!(prepared(&shop).await, [gid("N", 2)]);
    assert!(pipeline.terminate(CATCH_UP).await.success());

    // And with nobody named, nothing is ended.
    shop.setup
        .change("automatic = [\"lockstep\"]", "automatic = []");
    let mut pipeline = shop.setup.start();
    pipeline.wait_streaming("inventory").await;
    buy_and_die(&shop, &decisions, "left").await;
    is_told(&mut pipeline, "narayana").await;
    is_told(&mut pipeline, "lockstep").await;
    looks_again(&mut pipeline, "incomplete").await;
    assert_eq!(prepared(&shop).await.len(), 2);
    assert_eq!(journal(&shop.setup).len(), 2);
    assert!(pipeline.terminate(CATCH_UP).await.success());
}

/// Until `/readyz` is green with these words.
async fn says(pipeline: &mut Pipeline, words: &str) {
    let said = pipeline.until(
        CATCH_UP,
        format!("{words:?}"),
        async |pipeline| match pipeline.get("/readyz").await {
            Ok((200, body)) if body == words => Ok(()),
            other => Err(format!("{other:?}")),
        },
    );
    said.await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_ends_nothing_until_it_is_its_turn() {
    require!(Needs(16));
    require_own!(Needs(16));
    let leases = Postgres::shared(16).await.database("leases").await;
    let lease = format!(
        "[lease]\nttl = \"4s\"\ntype = \"postgres\"\nurl = \"{}\"\n",
        leases.url()
    );
    let shop = Shop::open_with(&section("[]"), |_| lease).await;
    shop.setup.change("[state]\n", "[state]\nshared = true\n");
    // The same pipeline with the same state, in a process that would end what it finds.
    let other = Setup::new("standby", |_| String::new());
    let file = std::fs::read_to_string(shop.setup.file()).expect("a file");
    other.write(&file.replace("automatic = []", "automatic = [\"narayana\"]"));

    let mut holder = shop.setup.start();
    says(&mut holder, "ready\n").await;
    holder.wait_streaming("orders").await;
    holder.wait_streaming("inventory").await;
    let mut standby = other.start();
    says(&mut standby, "ready to take over\n").await;
    shop.prepare("A").await;
    let commit = format!("COMMIT PREPARED '{}'", gid("A", 1));
    shop.orders.execute(&commit).await;
    is_told(&mut holder, "narayana").await;
    let first = std::time::Instant::now();
    // Longer than the safety interval, by looks of the one that looks: the standby would have ended it.
    while first.elapsed() < Duration::from_secs(3) {
        looks_again(&mut holder, "complete").await;
    }
    assert_eq!(prepared(&shop).await, [gid("A", 2)]);
    let looks = r#"lockstep_resolver_looks_total{outcome="complete"}"#;
    assert_eq!(metric(&mut standby, looks).await, None, "it does not look");

    holder.kill9();
    says(&mut standby, "ready\n").await;
    let ended = standby.until(CATCH_UP, "the reservation to be committed", async |_| {
        let left = prepared(&shop).await;
        left.is_empty()
            .then_some(())
            .ok_or_else(|| format!("{left:?}"))
    });
    ended.await;
    shop.caught_up(&mut standby).await;
    assert!(standby.terminate(CATCH_UP).await.success());
    assert_eq!(arrived(&shop), ["A", "A"]);
}
