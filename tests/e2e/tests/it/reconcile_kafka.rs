//! `lockstep reconcile` with topics: the latest record of each key is what a topic holds.

use std::collections::BTreeSet;
use std::path::Path;

use lockstep_e2e::child::PATIENCE;
use lockstep_e2e::topics::{self, Record, produce};
use lockstep_e2e::work::{self, Work};
use lockstep_e2e::{Random, Setup};
use lockstep_kit::Component::{Kafka as NeedsKafka, Postgres as NeedsPostgres};
use lockstep_kit::kafka::Kafka;
use lockstep_kit::postgres::Postgres;
use lockstep_kit::{require, unique};
use serde_json::{Value, json};

use crate::reconcile::{caught_up, equal, reconcile, told};
use crate::support::{events, files, source};

/// A sink with transactions and Debezium's envelope, and one without and with the flat one.
fn sinks(brokers: &str, name: &str) -> String {
    let flat = "format = \"flat\"\nexactly_once = false\npartitions = 2\n";
    let events_of = |sink: &str, more| events(brokers, &format!("{name}.{sink}"), more);
    events_of("events", "partitions = 3\n")
        + &events_of("flat", flat).replace("[sinks.events]", "[sinks.flat]")
}

/// A difference as it is told.
type Told = (String, String, String);

fn at_stage(state: &Path, stage: &str) -> BTreeSet<Told> {
    let audit = std::fs::read_to_string(state.join("repairs.jsonl")).expect("a record");
    let lines = audit
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    lines
        .filter(|line| line["stage"] == stage)
        .map(|line| {
            (
                text(&line["sink"]),
                text(&line["drift"]),
                text(&line["held_as"]),
            )
        })
        .collect()
}

/// The records of a row of a topic, in order.
fn of_row<'r>(records: &'r [Record], key: &Value) -> Vec<&'r Record> {
    records.iter().filter(|record| record.key == *key).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_what_differs_in_topics_is_found_and_mended() {
    require!(NeedsPostgres(17), NeedsKafka);
    let mut random = Random::from_environment();
    let (postgres, kafka) = tokio::join!(Postgres::shared(17), Kafka::shared());
    let brokers = kafka.bootstrap();
    let database = postgres.database("shop").await;
    work::create(&database, 6_000, 900).await;
    let name = unique("reconcile_kafka");
    let setup = Setup::new(&name, |folder| {
        source(database.url(), &name, &["ledger", "counters", "items"])
            + &sinks(brokers, &name)
            + &files(folder)
    });
    let mut pipeline = setup.start_ready().await;
    caught_up(&mut pipeline, &database).await;
    let mut passes = 1;
    let report = equal(&setup, &mut pipeline, &[]).await;
    let ledger = &report["reports"][2];
    for (sink, compared, listed) in [
        ("events", 6_000, true),
        ("flat", 6_000, true),
        ("files", 0, false),
    ] {
        let told = &ledger["sinks"][sink];
        let found = (&told["compared"], &told["listed"], &told["unreadable"]);
        let expected = (&json!(compared), &json!(listed), &json!(!listed));
        assert_eq!(found, expected, "{sink}: {told}");
    }

    // Among the rows of `items` are large values that updates leave alone, keys that change, and rows that go.
    let writers = Work::start(&database, random.below(1_000)).await;
    for _ in 0..4 {
        passes += 1;
        let (code, report) = reconcile(&setup, &mut pipeline, &[]).await;
        assert_eq!(told(&report), BTreeSet::new(), "{report:#}");
        // A row that changed whenever it was read is no difference, and no proof of the contrary.
        assert!(matches!(code, Some(0 | 1)), "{code:?} {report:#}");
    }

    // Behind its back. Nothing else touches these rows.
    let changed = "UPDATE ledger SET note = 'changed' WHERE id IN (31, 32)";
    database.execute(changed).await;
    caught_up(&mut pipeline, &database).await;
    let mut expected = BTreeSet::new();
    for (sink, row) in [("events", "after"), ("flat", "row")] {
        let topic = format!("{name}.{sink}.ledger");
        let records = topics::read_any(brokers, &topic).await;
        let mut expect = |kind: &str, key: &str| {
            let held_as = format!("{topic} {key}");
            assert!(expected.insert((sink.to_owned(), kind.to_owned(), held_as)));
        };
        let key = |id: u64| json!({ "id": id });
        let first = |id: u64| of_row(&records, &key(id))[0].value.clone();
        for id in [11, 12, 13] {
            let mut value = first(id);
            value[row]["note"] = json!("ruined");
            produce(
                brokers,
                &topic,
                Some(&key(id).to_string()),
                Some(&value.to_string()),
            )
            .await;
            expect("different", &key(id).to_string());
        }
        for id in [21, 22, 5_999] {
            produce(brokers, &topic, Some(&key(id).to_string()), None).await;
            expect("missing", &key(id).to_string());
        }
        // The version from before comes back.
        for id in [31, 32] {
            assert_eq!(
                of_row(&records, &key(id)).len(),
                2,
                "as it was and as it is"
            );
            produce(
                brokers,
                &topic,
                Some(&key(id).to_string()),
                Some(&first(id).to_string()),
            )
            .await;
            expect("different", &key(id).to_string());
        }
        produce(
            brokers,
            &topic,
            Some(&key(41).to_string()),
            Some("{\"op\":"),
        )
        .await;
        expect("different", &key(41).to_string());
        let mut value = first(51);
        value[row]["id"] = json!(900_001);
        for key in [r#"{"id":900001}"#, "no key", r#"{"id":"x"}"#] {
            produce(brokers, &topic, Some(key), Some(&value.to_string())).await;
            expect("extra", key);
        }
        // As it is: nothing to tell.
        produce(
            brokers,
            &topic,
            Some(&key(61).to_string()),
            Some(&first(61).to_string()),
        )
        .await;
    }
    passes += 1;
    let (code, report) = reconcile(&setup, &mut pipeline, &["--table", "ledger"]).await;
    assert_eq!(told(&report), expected, "{report:#}");
    assert_eq!(code, Some(3));
    let text = report.to_string();
    assert!(text.contains(r#""columns":["note"]"#), "{text}");
    assert!(
        text.contains("first day 31") && text.contains("{\\\"op\\\":"),
        "{text}"
    );

    // Mended under load. A key that no row can have is left to a person.
    let foreign =
        |(_, _, held_as): &Told| held_as.ends_with("no key") || held_as.ends_with("\"x\"}");
    passes += 1;
    let (code, report) = reconcile(&setup, &mut pipeline, &["--table", "ledger", "--repair"]).await;
    assert_eq!(told(&report), expected, "{report:#}");
    assert_eq!(code, Some(3), "some are left");
    let mendable: BTreeSet<Told> = expected
        .iter()
        .filter(|told| !foreign(told))
        .cloned()
        .collect();
    assert_eq!(at_stage(&setup.state(), "planned"), mendable);
    assert_eq!(at_stage(&setup.state(), "mended"), mendable);
    passes += 1;
    let (_, report) = reconcile(&setup, &mut pipeline, &["--table", "ledger"]).await;
    let left: BTreeSet<Told> = expected
        .iter()
        .filter(|told| foreign(told))
        .cloned()
        .collect();
    assert_eq!(told(&report), left, "{report:#}");
    for (sink, _, held_as) in left {
        let topic = format!("{name}.{sink}.ledger");
        let key = held_as
            .strip_prefix(&format!("{topic} "))
            .expect("the topic");
        produce(brokers, &topic, Some(key), None).await;
    }
    writers.stop().await;
    caught_up(&mut pipeline, &database).await;
    passes += 1;
    equal(&setup, &mut pipeline, &[]).await;
    // A topic is read once for all rows that are compared with it, and the next time from there on.
    let reads = pipeline.log().matches("read to be compared").count();
    println!("topics were read {reads} times in {passes} passes over 3 tables and 2 sinks");
    assert!((6..=6 * passes).contains(&reads), "{reads}");

    for (sink, row) in [("events", "after"), ("flat", "row")] {
        let records = topics::read_any(brokers, &format!("{name}.{sink}.ledger")).await;
        // Once mended, as a row of a copy, with the identity of a change.
        for id in [11, 21, 31, 41] {
            let last = *of_row(&records, &json!({ "id": id }))
                .last()
                .expect("a record");
            let note = if id == 31 {
                "changed".to_owned()
            } else {
                format!("first day {id}")
            };
            assert_eq!(
                (last.op(), &last.value[row]["note"]),
                ("r", &json!(note)),
                "{last:?}"
            );
            assert_eq!(last.id.split('/').count(), 5, "{last:?}");
        }
        let gone = of_row(&records, &json!({ "id": 900_001 }));
        let ops: Vec<&str> = gone.iter().map(|record| record.op()).collect();
        assert_eq!(
            ops[ops.len() - 2..],
            ["d", ""],
            "the event and its tombstone"
        );
        let untouched = of_row(&records, &json!({ "id": 100 }));
        assert_eq!(untouched.len(), 1);
    }
    assert!(pipeline.terminate(PATIENCE).await.success());
}

/// Keys of several columns and of types that JSON has other forms for; a topic of all tables; TRUNCATE.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_any_type_are_found_again_in_topics() {
    require!(NeedsPostgres(17), NeedsKafka);
    let (postgres, kafka) = tokio::join!(Postgres::shared(17), Kafka::shared());
    let brokers = kafka.bootstrap();
    let database = postgres.database("shop").await;
    database
        .execute(
            r"CREATE TYPE state AS ENUM ('new', 'it''s paid');
            CREATE TABLE pairs (a text, b int, note text, PRIMARY KEY (b, a));
            INSERT INTO pairs SELECT k || n, n, 'x' FROM generate_series(1, 40) n,
                unnest(ARRAY['a:b', '50%', '{c}', 'back\slash', 'quo\'te', 'ü ', '%3A', 'tab' || chr(9)]) k;
            CREATE TABLE moments (at timestamptz, on_day date, since timestamp(3), amount numeric, kind state,
                PRIMARY KEY (at, on_day, since, amount, kind));
            INSERT INTO moments SELECT timestamptz '2026-01-01 00:00:00.5+02' + n * interval '1 hour', date '1969-01-01' + n * 3,
                timestamp '1999-12-31 23:59:59.999' + n * interval '1 minute', n::numeric / 4, 'it''s paid'
                FROM generate_series(1, 300) n;
            CREATE TABLE ids (id uuid, raw bytea, yes bool, n text, PRIMARY KEY (id, raw, yes));
            INSERT INTO ids SELECT md5(n::text)::uuid, decode(md5(n::text), 'hex'), n % 2 = 0, n FROM generate_series(1, 300) n;
            CREATE TABLE one (id int PRIMARY KEY, note text); CREATE TABLE two (LIKE one INCLUDING ALL);
            INSERT INTO one SELECT n, 'one' FROM generate_series(1, 300) n;
            INSERT INTO two SELECT n, 'two' FROM generate_series(1, 300) n"
                .replace("quo\\'te", "quo''te")
                .as_str(),
        )
        .await;
    let name = unique("keys_kafka");
    let tables = ["ids", "moments", "one", "pairs", "two"];
    let setup = Setup::new(&name, |_| {
        let sinks = sinks(brokers, &name);
        // One for all of them.
        let all = sinks.replace(&format!("{name}.flat.{{table}}"), &format!("{name}.all"));
        source(database.url(), &name, &tables) + &all
    });
    let mut pipeline = setup.start_ready().await;
    caught_up(&mut pipeline, &database).await;
    let report = equal(&setup, &mut pipeline, &[]).await;
    for report in report["reports"].as_array().expect("reports") {
        let rows = report["rows"].as_u64().expect("a number");
        assert!(rows >= 300, "{report}");
        for sink in ["events", "flat"] {
            let told = &report["sinks"][sink];
            assert_eq!(
                (&told["compared"], &told["listed"]),
                (&json!(rows), &json!(true)),
                "{report}"
            );
        }
    }

    // Of each table one row goes, and one is too many.
    let mut expected = BTreeSet::new();
    for sink in ["events", "flat"] {
        for table in tables.iter().filter(|table| **table != "two") {
            let topic = match sink {
                "events" => format!("{name}.events.{table}"),
                _ => format!("{name}.all"),
            };
            let records = topics::read_any(brokers, &topic).await;
            let place = match sink {
                "events" => "/source/table",
                _ => "/table",
            };
            let mut ours = records
                .iter()
                .filter(|record| record.value.pointer(place) == Some(&json!(table)));
            let (gone, other) = (ours.next().expect("a row"), ours.next().expect("a row"));
            let mut expect = |kind: &str, key: String| {
                assert!(expected.insert((
                    sink.to_owned(),
                    kind.to_owned(),
                    format!("{topic} {key}")
                )));
            };
            if *table != "one" {
                produce(brokers, &topic, Some(&gone.key.to_string()), None).await;
                expect("missing", gone.key.to_string());
            }
            let mut key = other.key.clone();
            let (column, value) = match *table {
                "pairs" => ("b", json!(999)),
                "moments" => ("amount", json!("77.125")),
                "ids" => ("id", json!("00000000-0000-0000-0000-000000000009")),
                _ => ("id", json!(999)),
            };
            key[column] = value;
            let value = other.value.to_string();
            produce(brokers, &topic, Some(&key.to_string()), Some(&value)).await;
            expect("extra", key.to_string());
        }
    }
    let (code, report) = reconcile(&setup, &mut pipeline, &[]).await;
    assert_eq!(
        (code, told(&report)),
        (Some(3), expected.clone()),
        "{report:#}"
    );
    let (code, report) = reconcile(&setup, &mut pipeline, &["--repair"]).await;
    assert_eq!((code, told(&report)), (Some(0), expected), "{report:#}");
    equal(&setup, &mut pipeline, &[]).await;

    // The rows of one table go, those of the other with the same keys stay.
    database
        .execute("TRUNCATE one; INSERT INTO one VALUES (7, 'again'); DELETE FROM two WHERE id = 7")
        .await;
    caught_up(&mut pipeline, &database).await;
    let report = equal(&setup, &mut pipeline, &[]).await;
    let compared = |table: usize| report["reports"][table]["sinks"]["flat"]["compared"].clone();
    assert_eq!(
        (compared(2), compared(4)),
        (json!(1), json!(299)),
        "{report:#}"
    );
    assert!(pipeline.terminate(PATIENCE).await.success());
}
