//! `outbox`: what an application writes beside its rows is told once, whatever is killed, and is gone from the table at once.

use std::collections::BTreeMap;

use lockstep_e2e::child::PATIENCE;
use lockstep_e2e::{Random, Setup, topics};
use lockstep_kit::Component::{Kafka as NeedsKafka, Postgres as NeedsPostgres};
use lockstep_kit::kafka::Kafka;
use lockstep_kit::postgres::{Database, Postgres};
use lockstep_kit::{require, unique};

use crate::dead_letters::list;
use crate::support::{end_of_log, source};

const TABLE: &str = "CREATE TABLE outbox (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), \
     aggregatetype text NOT NULL, aggregateid text NOT NULL, type text NOT NULL, payload jsonb)";

/// A pipeline whose events go to topics that begin with its name.
async fn set_up(database: &Database, name: &str) -> Setup {
    let kafka = Kafka::shared().await.bootstrap();
    Setup::new(name, |_| {
        let source = source(database.url(), name, &["outbox"]);
        format!(
            r#"{source}
[transforms.events]
type = "outbox"
inputs = ["shop"]
tables = ["public.outbox"]
messages = ["outbox"]
topic = "{name}.{{aggregatetype}}"
headers = {{ eventType = "type" }}

[sinks.events]
type = "kafka"
inputs = ["events"]
brokers = "{kafka}"
topic = "{name}.table.{{table}}"
progress_topic = "{name}.progress"
"#
        )
    })
}

#[tokio::test]
async fn events_are_what_the_application_wrote() {
    require!(NeedsPostgres(16), NeedsKafka);
    let database = Postgres::shared(16).await.database("shop").await;
    database.execute(TABLE).await;
    let name = unique("outbox");
    let setup = set_up(&database, &name).await;
    let mut pipeline = setup.start_ready().await;
    pipeline.wait_streaming("shop").await;
    database
        .execute(
            "BEGIN; \
             INSERT INTO outbox VALUES ('00000000-0000-0000-0000-000000000001', 'order', '17', 'Placed', '{\"total\": 12.50}'); \
             DELETE FROM outbox; COMMIT",
        )
        .await;
    database
        .execute(
            "BEGIN; INSERT INTO outbox (aggregatetype, aggregateid, type) VALUES ('order', '18', 'Lost'); \
             SELECT pg_logical_emit_message(true, 'outbox', '{\"aggregatetype\":\"order\",\"payload\":1}'); ROLLBACK",
        )
        .await;
    database
        .execute(
            "SELECT pg_logical_emit_message(true, 'outbox', jsonb_build_object('id', 'm1', 'aggregatetype', 'order', \
             'aggregateid', 17, 'type', 'Paid', 'payload', jsonb_build_object('by', 'card'))::text)",
        )
        .await;
    database
        .execute(
            "INSERT INTO outbox VALUES ('00000000-0000-0000-0000-000000000002', 'stock', 'a', 'Gone', NULL); \
             UPDATE outbox SET type = 'Back'",
        )
        .await;
    let end = end_of_log(&database).await;
    pipeline.wait_visible("shop", &end, PATIENCE).await;
    let kafka = Kafka::shared().await.bootstrap();
    let read = async |topic: &str| {
        let records = topics::read_raw(kafka, &format!("{name}.{topic}")).await;
        let shown = records.into_iter().map(|record| {
            assert!(record.headers.contains_key("lockstep.id"), "{record:?}");
            let header = |name: &str| record.headers.get(name).cloned().unwrap_or_default();
            (
                record.key.clone(),
                record.value.clone(),
                header("id"),
                header("eventType"),
            )
        });
        shown.collect::<Vec<_>>()
    };
    let said = |key: &str, value: Option<&str>, id: &str, kind: &str| {
        let value = value.map(str::to_owned);
        (Some(key.to_owned()), value, id.to_owned(), kind.to_owned())
    };
    assert_eq!(
        read("order").await,
        [
            said(
                "17",
                Some(r#"{"total": 12.50}"#),
                "00000000-0000-0000-0000-000000000001",
                "Placed"
            ),
            said("17", Some(r#"{"by": "card"}"#), "m1", "Paid"),
        ]
    );
    let gone = said("a", None, "00000000-0000-0000-0000-000000000002", "Gone");
    assert_eq!(read("stock").await, [gone]);
    // The UPDATE says nothing that could be told, and is not forgotten either.
    assert_eq!(list(&setup, Some(&mut pipeline)).await.len(), 1);
    assert_eq!(
        list(&setup, Some(&mut pipeline)).await[0].0,
        "outbox_update"
    );
    assert!(pipeline.terminate(PATIENCE).await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_event_is_told_once_over_kills() {
    const KILLS: u32 = 6;
    require!(NeedsPostgres(17), NeedsKafka);
    let mut random = Random::from_environment();
    let database = Postgres::shared(17).await.database("shop").await;
    database.execute(TABLE).await;
    let name = unique("outbox_kills");
    let setup = set_up(&database, &name).await;
    let mut written = 0_u64;
    for _ in 0..KILLS {
        let pipeline = setup.start_ready().await;
        for _ in 0..random.below(40) + 10 {
            written += 1;
            let key = written % 7;
            // Half of them by rows that are gone at once, half by messages.
            database
                .execute(&match written % 2 {
                    0 => format!(
                        "BEGIN; INSERT INTO outbox (aggregatetype, aggregateid, type, payload) \
                         VALUES ('order', '{key}', 'Counted', '{{\"n\": {written}}}'); DELETE FROM outbox; COMMIT"
                    ),
                    _ => format!(
                        "SELECT pg_logical_emit_message(true, 'outbox', \
                         '{{\"aggregatetype\": \"order\", \"aggregateid\": \"{key}\", \"type\": \"Counted\", \"payload\": {{\"n\": {written}}}}}')"
                    ),
                })
                .await;
        }
        pipeline.kill9();
    }
    let mut pipeline = setup.start_ready().await;
    let end = end_of_log(&database).await;
    pipeline.wait_visible("shop", &end, PATIENCE).await;
    assert!(pipeline.terminate(PATIENCE).await.success());
    let records =
        topics::read_raw(Kafka::shared().await.bootstrap(), &format!("{name}.order")).await;
    let mut by_key: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for record in &records {
        let value = record.value.as_deref().expect("a payload");
        let value: serde_json::Value = serde_json::from_str(value).expect("JSON");
        let key = record.key.clone().expect("a key");
        by_key
            .entry(key)
            .or_default()
            .push(value["n"].as_u64().expect("a number"));
    }
    assert_eq!(records.len() as u64, written, "each once");
    for (key, numbers) in &by_key {
        let ordered = numbers.windows(2).all(|pair| pair[0] < pair[1]);
        assert!(ordered, "{key}: {numbers:?}");
    }
    let left = database.value("SELECT count(*)::text FROM outbox").await;
    assert_eq!(left.as_deref(), Some("0"));
}
