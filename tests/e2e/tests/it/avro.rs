//! Avro into Kafka with a schema registry: exactly once over kills, and what becomes of changes of a table.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lockstep_e2e::child::PATIENCE;
use lockstep_e2e::topics::{self, Record};
use lockstep_e2e::work::{self, Arrived, Work};
use lockstep_e2e::{Random, Setup};
use lockstep_encode::avro::read::{Reader, schema_id};
use lockstep_encode::envelope::Format;
use lockstep_kit::Component::{
    Kafka as NeedsKafka, Postgres as NeedsPostgres, Registry as NeedsRegistry,
};
use lockstep_kit::kafka::Kafka;
use lockstep_kit::postgres::Postgres;
use lockstep_kit::proxy::Proxy;
use lockstep_kit::registry::Registry;
use lockstep_kit::{require, unique};
use serde_json::{Value, json};
use tokio::runtime::Handle;

use crate::reconcile::{caught_up, equal};
use crate::support::{events, source};

const CATCH_UP: Duration = Duration::from_secs(120);
const KILLS: usize = 6;

/// Lines of a sink that writes Avro.
fn avro(registry: &str, format: &str) -> String {
    format!(
        "format = \"{format}\"\nencoding = \"avro\"\nregistry = {{ url = \"{registry}\" }}\npartitions = 2\n"
    )
}

/// Everything in a topic, read by the schemas that the registry has.
async fn read(
    registry: &'static Registry,
    kafka: &Kafka,
    topic: &str,
    format: Format,
) -> Vec<Record> {
    let readers: Mutex<HashMap<u32, Arc<Reader>>> = Mutex::default();
    let decode = move |bytes: &[u8]| -> Value {
        let id = schema_id(bytes).expect("in the wire format");
        let known = readers.lock().expect("no panic").get(&id).cloned();
        let reader = known.unwrap_or_else(|| {
            let path = format!("/schemas/ids/{id}");
            let (status, body) = Handle::current().block_on(registry.ask("GET", &path, ""));
            assert_eq!(status, 200, "{body}");
            let answer: Value = serde_json::from_str(&body).expect("JSON");
            let schema = answer["schema"].as_str().expect("a schema");
            let reader = Arc::new(Reader::new(format, schema).expect("one of ours"));
            readers
                .lock()
                .expect("no panic")
                .insert(id, Arc::clone(&reader));
            reader
        });
        let json = reader.json(bytes).expect("of its schema");
        serde_json::from_slice(&json).expect("JSON")
    };
    topics::read_as(kafka.bootstrap(), topic, decode).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_under_load_leave_each_change_once_in_avro() {
    require!(NeedsPostgres(17), NeedsKafka, NeedsRegistry);
    let mut random = Random::from_environment();
    let (postgres, kafka, registry) =
        tokio::join!(Postgres::shared(17), Kafka::shared(), Registry::shared());
    let database = postgres.database("shop").await;
    work::create(&database, 2_000, 200).await;
    let name = unique("avro");
    let setup = Setup::new(&name, |_| {
        let more = avro(registry.url(), "debezium");
        source(database.url(), &name, &["ledger", "counters", "items"])
            + &events(kafka.bootstrap(), &name, &more)
    });
    let mut pipeline = setup.start();
    pipeline.wait_streaming("shop").await;
    let begin = work::look(&database).await;
    let writers = Work::start(&database, random.below(1_000)).await;
    for _ in 0..KILLS {
        tokio::time::sleep(random.millis(100, 1_800)).await;
        pipeline.kill9();
        pipeline = setup.start();
    }
    writers.stop().await;
    let end = work::look(&database).await;
    pipeline.wait_visible("shop", &end.lsn, CATCH_UP).await;
    // What the topics hold is read back, and is what the tables hold.
    equal(&setup, &mut pipeline, &[]).await;
    assert!(pipeline.terminate(CATCH_UP).await.success());

    let records = async |table: &str| {
        read(
            registry,
            kafka,
            &format!("{name}.{table}"),
            Format::default(),
        )
        .await
    };
    let arrived = Arrived {
        ledger: records("ledger").await,
        counters: records("counters").await,
        items: records("items").await,
    };
    arrived.assert_exactly_once(&begin, &end);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_changes_has_new_versions_and_what_the_registry_refuses_stops_in_its_words() {
    require!(NeedsPostgres(17), NeedsKafka, NeedsRegistry);
    let (postgres, kafka, registry) =
        tokio::join!(Postgres::shared(17), Kafka::shared(), Registry::shared());
    let proxy = Proxy::start(registry.address()).await;
    let url = format!("http://{}{}", proxy.address(), registry.path());
    let database = postgres.database("shop").await;
    database
        .execute("CREATE TABLE t (id int PRIMARY KEY, note text); INSERT INTO t VALUES (1, 'a')")
        .await;
    let name = unique("avro");
    let setup = Setup::new(&name, |_| {
        source(database.url(), &name, &["t"])
            + &events(kafka.bootstrap(), &name, &avro(&url, "flat"))
    });
    let topic = format!("{name}.t");
    let versions = async || {
        let path = format!("/subjects/{topic}-value/versions");
        registry.ask("GET", &path, "").await.1
    };
    let compatibility = async |level: &str| {
        let body = json!({"compatibility": level}).to_string();
        let path = format!("/config/{topic}-value");
        assert_eq!(registry.ask("PUT", &path, &body).await.0, 200);
    };
    let mut pipeline = setup.start_ready().await;
    caught_up(&mut pipeline, &database).await;
    database
        .execute("ALTER TABLE t ADD COLUMN more int; INSERT INTO t VALUES (2, 'b', 7)")
        .await;
    caught_up(&mut pipeline, &database).await;
    assert_eq!(versions().await.trim(), "[1,2]");

    // Away: the change that needs it waits, however long.
    proxy.down().await;
    database
        .execute("ALTER TABLE t ADD COLUMN third text; INSERT INTO t VALUES (3, 'c', 8, 'x')")
        .await;
    pipeline.wait_unready(&["schema registry"]).await;
    proxy.refuse(false).await;
    caught_up(&mut pipeline, &database).await;
    pipeline.wait_ready().await;
    assert_eq!(versions().await.trim(), "[1,2,3]");

    // Readers of `more` as a number could not read a text.
    compatibility("BACKWARD").await;
    database
        .execute(
            "ALTER TABLE t ALTER COLUMN more TYPE text; INSERT INTO t VALUES (4, 'd', 'many', 'x')",
        )
        .await;
    let ended = pipeline.ends().await;
    assert_eq!(ended.code(), Some(1), "{ended:?}");
    for words in ["LS006", "Incompatible artifact", "public.t"] {
        assert!(ended.stderr.contains(words), "{words}: {}", ended.stderr);
    }
    let check = setup.lockstep("check", &[]).await;
    assert_eq!(check.code(), Some(1), "{check:?}");
    let told = format!("subject {topic}-value");
    assert!(check.stdout.contains(&told), "{}", check.stdout);

    compatibility("NONE").await;
    let check = setup.lockstep("check", &[]).await;
    assert_eq!(check.code(), Some(0), "{check:?}");
    let mut pipeline = setup.start_ready().await;
    caught_up(&mut pipeline, &database).await;
    assert!(pipeline.terminate(PATIENCE).await.success());
    assert_eq!(versions().await.trim(), "[1,2,3,4]");
    let mut records = read(registry, kafka, &topic, Format::Flat).await;
    records.sort_by_key(|record| record.key["id"].as_i64());
    let rows: Vec<Value> = records
        .iter()
        .map(|record| record.value["row"].clone())
        .collect();
    assert_eq!(
        Value::from(rows),
        json!([
            {"id": 1, "note": "a"},
            {"id": 2, "note": "b", "more": 7},
            {"id": 3, "note": "c", "more": 8, "third": "x"},
            {"id": 4, "note": "d", "more": "many", "third": "x"},
        ])
    );
}
