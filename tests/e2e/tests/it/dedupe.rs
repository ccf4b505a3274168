//! Two replicas share what `dedupe` remembers in Redis: they take turns by `kill -9`, the server dies and comes back, and
//! of all rows with one key the first has arrived, once, with its later changes.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lockstep_e2e::child::PATIENCE;
use lockstep_e2e::{Random, Setup, topics};
use lockstep_kit::Component::{
    Kafka as NeedsKafka, Postgres as NeedsPostgres, Redis as NeedsRedis,
};
use lockstep_kit::kafka::Kafka;
use lockstep_kit::postgres::{Database, Postgres};
use lockstep_kit::redis::{Redis, RedisOptions};
use lockstep_kit::{require, require_own, unique};

use crate::support::{end_of_log, events, files, source};

/// Kills, each of which hands over to the other replica.
const TURNS: u64 = 8;

async fn payments() -> Database {
    let database = Postgres::shared(17).await.database("shop").await;
    database
        .execute(
            "CREATE TABLE payments (id int PRIMARY KEY, idempotency_key text, note text);
             ALTER TABLE payments REPLICA IDENTITY FULL",
        )
        .await;
    database
}

fn once(redis: &str) -> String {
    format!(
        "[transforms.once]\ntype = \"dedupe\"\ninputs = [\"shop\"]\nkey = [\"idempotency_key\"]\n\
         store = {{ type = \"redis\", url = \"{redis}\", response_timeout = \"2s\" }}\n"
    )
}

/// The rows, and what is to arrive of each: operations in order.
#[derive(Default)]
struct Model {
    owners: HashMap<String, u64>,
    expected: BTreeMap<u64, Vec<&'static str>>,
}

impl Model {
    /// Whether the key is the row's from now on.
    fn take(&mut self, key: &str, id: u64) -> bool {
        *self.owners.entry(key.to_owned()).or_insert(id) == id
    }

    /// The statements for the next row, each a transaction.
    fn next(&mut self, id: u64, random: &mut Random) -> Vec<String> {
        // Keys of rows before, most of which are taken, and new ones.
        let key = format!("key-{}", id.saturating_sub(random.below(6)) / 3);
        let insert = |key: &str| format!("INSERT INTO payments VALUES ({id}, {key}, 'new')");
        let touch = format!("UPDATE payments SET note = 'paid' WHERE id = {id}");
        if random.below(4) == 0 {
            // The key comes later.
            let kept = self.take(&key, id);
            let arrives = if kept {
                ["c", "u", "u"].to_vec()
            } else {
                ["c", "d"].to_vec()
            };
            self.expected.insert(id, arrives);
            let set = format!("UPDATE payments SET idempotency_key = '{key}' WHERE id = {id}");
            return vec![insert("NULL"), set, touch];
        }
        let kept = self.take(&key, id);
        let arrives = if kept { vec!["c", "u"] } else { Vec::new() };
        self.expected.insert(id, arrives);
        vec![insert(&format!("'{key}'")), touch]
    }
}

/// What a source has on record of its log goes along, or its slot would look moved by someone else. What `dedupe` knows on
/// this machine does not.
fn hand_over(from: &Path, to: &Path) {
    let (from, to) = (from.join("sources/shop"), to.join("sources/shop"));
    std::fs::create_dir_all(&to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("the state of the source") {
        let entry = entry.expect("an entry");
        std::fs::copy(entry.path(), to.join(entry.file_name())).expect("copied");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_are_killed_in_turn_pass_the_first_row_of_each_key_once() {
    require!(NeedsPostgres(17), NeedsKafka);
    require_own!(NeedsRedis);
    let mut random = Random::from_environment();
    let database = Arc::new(payments().await);
    let options = RedisOptions {
        append_only: true,
        config: vec![("appendfsync".into(), "always".into())],
    };
    let (redis, kafka) = tokio::join!(Redis::start(options), Kafka::shared());
    let name = unique("once");
    let body = |_: &Path| {
        let sink = events(
            kafka.bootstrap(),
            &name,
            "exactly_once = true\npartitions = 2",
        );
        source(database.url(), &name, &["payments"])
            + "snapshot = \"never\"\n"
            + &once(redis.url())
            + &sink.replace("[\"shop\"]", "[\"once\"]")
    };
    let replicas = [Setup::new(&name, body), Setup::new(&name, body)];

    let mut pipeline = replicas[0].start();
    pipeline.wait_streaming("shop").await;
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (database, stop) = (Arc::clone(&database), Arc::clone(&stop));
        let mut random = Random::from_environment();
        tokio::spawn(async move {
            let mut model = Model::default();
            let mut id = 0;
            while !stop.load(Ordering::Relaxed) || id < 500 {
                id += 1;
                for statement in model.next(id, &mut random) {
                    database.execute(&statement).await;
                }
            }
            model
        })
    };
    for turn in 1..=TURNS {
        tokio::time::sleep(random.millis(200, 1_500)).await;
        pipeline.kill9();
        let outage = turn == TURNS / 2;
        if outage {
            redis.kill();
        }
        let [from, to] = [(turn + 1) % 2, turn % 2].map(|index| &replicas[index as usize]);
        hand_over(&from.state(), &to.state());
        pipeline = to.start();
        if outage {
            pipeline
                .wait_unready(&["transforms.once", redis.address()])
                .await;
            redis.restart().await;
            pipeline.wait_ready().await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    let model = writer.await.expect("the writer");
    let end = end_of_log(&database).await;
    pipeline.wait_visible("shop", &end, PATIENCE).await;
    // The size is told when positions are confirmed, which is after they are visible.
    let owners = model.owners.len() as u64;
    pipeline
        .until(PATIENCE, "all keys to be counted", async |pipeline| {
            let keys = pipeline.status().await["transforms"]["once"]["size"]["keys"].clone();
            match keys.as_u64() == Some(owners) {
                true => Ok(()),
                false => Err(format!("{keys} of {owners}")),
            }
        })
        .await;

    let mut arrived: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    for record in topics::read(kafka.bootstrap(), &format!("{name}.payments")).await {
        let id = record.key["id"].as_u64().expect("a key");
        let op = record.op().to_owned();
        if !op.is_empty() {
            arrived.entry(id).or_default().push(op);
        }
    }
    let wrong: Vec<_> = model
        .expected
        .iter()
        .filter(|(id, expected)| {
            let arrived = arrived.get(id).map_or(&[][..], Vec::as_slice);
            arrived != expected.as_slice()
        })
        .map(|(id, expected)| format!("{id}: {expected:?}, and arrived {:?}", arrived.get(id)))
        .collect();
    assert!(
        wrong.is_empty(),
        "of {} rows: {wrong:#?}",
        model.expected.len()
    );
    let held = model.expected.values().filter(|ops| ops.is_empty()).count();
    assert!(held > 50 && model.owners.len() > 50, "{held} held");
}

#[tokio::test]
async fn a_store_that_has_forgotten_ends_the_run_and_a_check_looks_at_it() {
    require!(NeedsPostgres(17));
    require_own!(NeedsRedis);
    let database = payments().await;
    let redis = Redis::start(RedisOptions::default()).await;
    let name = unique("forgets");
    let setup = Setup::new(&name, |folder| {
        source(database.url(), &name, &["payments"])
            + &once(redis.url())
            + &files(folder).replace("[\"shop\"]", "[\"once\"]")
    });
    let checked = setup.lockstep("check", &[]).await;
    assert_eq!(checked.code(), Some(0), "{checked:?}");
    let told = |words: &[&str]| words.iter().all(|word| checked.stdout.contains(word));
    assert!(
        told(&[
            "✓ ok    store",
            redis.url(),
            "! look  persistence",
            "✓ ok    keys"
        ]),
        "{checked:?}"
    );

    let mut pipeline = setup.start_ready().await;
    database
        .execute("INSERT INTO payments VALUES (1, 'k', ''), (2, 'k', '')")
        .await;
    let end = end_of_log(&database).await;
    pipeline.wait_visible("shop", &end, PATIENCE).await;
    redis.restart().await;
    database
        .execute("INSERT INTO payments VALUES (3, 'k', '')")
        .await;
    let ended = pipeline.ends().await;
    assert_eq!(ended.code(), Some(1), "{ended:?}");
    assert!(ended.error().contains("LS011"), "{}", ended.error());
    assert!(
        ended.error().contains("has lost what it knew"),
        "{}",
        ended.error()
    );

    // It stays that way until somebody decides.
    let ended = setup.start().ends().await;
    assert_eq!(ended.code(), Some(1), "{ended:?}");
    setup.change(
        "response_timeout",
        "on_lost = \"continue\", response_timeout",
    );
    let mut pipeline = setup.start_ready().await;
    let end = end_of_log(&database).await;
    pipeline.wait_visible("shop", &end, PATIENCE).await;
    let drained = pipeline.terminate(PATIENCE).await;
    assert!(drained.success(), "{drained}");

    redis.kill();
    let checked = setup.lockstep("check", &[]).await;
    assert_eq!(checked.code(), Some(1), "{checked:?}");
    assert!(checked.stdout.contains("✗ fail  store"), "{checked:?}");
}
