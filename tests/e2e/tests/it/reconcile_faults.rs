//! A thousand faults behind the back of the sinks, of every kind: all are found in one pass and nothing else, mended while rows
//! change, and no newer write is lost to a repair. What is there is read with plain clients.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use lockstep_e2e::Setup;
use lockstep_e2e::child::PATIENCE;
use lockstep_e2e::topics::{self, Record, produce_all};
use lockstep_kit::Component::{
    Kafka as NeedsKafka, OpenSearch as NeedsOpenSearch, Postgres as NeedsPostgres,
    Redis as NeedsRedis,
};
use lockstep_kit::kafka::Kafka;
use lockstep_kit::opensearch::OpenSearch;
use lockstep_kit::postgres::{Database, Postgres};
use lockstep_kit::redis::{Redis, Reply};
use lockstep_kit::{require, unique};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::reconcile::{caught_up, equal, hashes, index, reconcile, search, told};
use crate::support::{cache, events, source};

/// Rows that nothing but this test changes.
const STILL: u64 = 2_000;
/// Rows that change all the time, behind them.
const HOT: u64 = 1_000;
/// Faults of a kind in a sink.
const EACH: u64 = 50;
/// Rows that change in the source, and the same number that go, without a word of it in the stream.
const BYPASSED: u64 = 20;
/// Between two updates of rows that change.
const BEAT: Duration = Duration::from_millis(100);

/// What happens to a row in a sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Changed,
    /// Lacks a column.
    Dropped,
    Gone,
    /// One that was never there.
    Added,
    /// As it was before its last change.
    Restored,
    /// As it was before its last change, and under the version that it had then.
    Stale,
}

const FAULTS: [Fault; 6] = [
    Fault::Changed,
    Fault::Dropped,
    Fault::Gone,
    Fault::Added,
    Fault::Restored,
    Fault::Stale,
];

const SINKS: [&str; 4] = ["cache", "hashes", "search", "events"];
/// Nobody can ruin it while it is open.
const INDEX: &str = "index";

impl Fault {
    /// As it is told of a sink.
    fn drift(self, sink: &str) -> &'static str {
        match self {
            Fault::Changed | Fault::Dropped | Fault::Restored => "different",
            // Nobody can lower the version of a document.
            Fault::Stale if sink == "search" => "different",
            Fault::Stale => "stale",
            Fault::Gone => "missing",
            Fault::Added => "extra",
        }
    }

    /// The rows that it befalls in the sink of this number.
    fn rows(self, sink: u64) -> Range<u64> {
        let kind = FAULTS.iter().position(|fault| *fault == self);
        let kind = kind.expect("one of them") as u64;
        let first = 1 + sink * 300 + kind * EACH;
        let first = if self == Fault::Added {
            1_000_000 + first
        } else {
            first
        };
        first..first + EACH
    }
}

/// A sink before the last change of its rows.
struct Before {
    rows: BTreeMap<u64, Value>,
    /// What the sink knows of where in the log they are of, as it writes that.
    versions: BTreeMap<u64, String>,
}

/// What is to be told: sink, kind and key in the sink.
type Told = BTreeSet<(String, String, String)>;

struct Shop {
    name: String,
    redis: &'static Redis,
    opensearch: &'static OpenSearch,
    brokers: String,
}

impl Shop {
    fn held_as(&self, sink: &str, id: u64) -> String {
        let name = &self.name;
        match sink {
            "cache" => format!("{name}:stock:{id}"),
            "hashes" => format!("{name}:h:stock:{id}"),
            "search" => format!("{name}-stock/{id}"),
            INDEX => format!("shop.public.stock/{id}"),
            _ => format!("{name}.stock {{\"id\":{id}}}"),
        }
    }

    async fn redis(&self, words: &[&str]) -> Reply {
        let reply = self.redis.command(words).await;
        reply.expect("Redis answers")
    }

    async fn opensearch(&self, method: &str, path: &str, body: &str) -> Value {
        let path = format!("/{}-stock/{path}", self.name);
        let answer = self.opensearch.request(method, &path, body).await;
        let (status, answer) = answer.expect("an answer");
        assert!((200..300).contains(&status), "{answer}");
        serde_json::from_str(&answer).expect("JSON")
    }

    async fn records(&self) -> Vec<Record> {
        topics::read_any(&self.brokers, &format!("{}.stock", self.name)).await
    }

    /// The rows of a sink as they are, by id.
    async fn rows(&self, sink: &str, ids: Range<u64>) -> BTreeMap<u64, Value> {
        let mut rows = BTreeMap::new();
        match sink {
            "cache" => {
                for id in ids {
                    if let Reply::Text(text) = self.redis(&["GET", &self.held_as(sink, id)]).await {
                        rows.insert(id, serde_json::from_str(&text).expect("JSON"));
                    }
                }
            }
            "hashes" => {
                for id in ids {
                    let reply = self.redis(&["HGETALL", &self.held_as(sink, id)]).await;
                    let Reply::List(words) = reply else {
                        panic!("{reply:?}");
                    };
                    let text = |reply: &Reply| match reply {
                        Reply::Text(text) => text.clone(),
                        other => panic!("{other:?}"),
                    };
                    let pairs = words.chunks(2);
                    let row: Value = pairs
                        .map(|pair| (text(&pair[0]), json!(text(&pair[1]))))
                        .collect();
                    if !words.is_empty() {
                        rows.insert(id, row);
                    }
                }
            }
            "search" => {
                let ids: Vec<String> = ids.map(|id| id.to_string()).collect();
                let body = json!({ "ids": ids }).to_string();
                let found = self.opensearch("POST", "_mget", &body).await;
                for doc in found["docs"].as_array().expect("documents") {
                    if doc["found"] == true {
                        let id = doc["_id"].as_str().expect("an id");
                        rows.insert(id.parse().expect("a number"), doc["_source"].clone());
                    }
                }
            }
            _ => {
                for record in self.records().await {
                    let Some(id) = record.key["id"].as_u64().filter(|id| ids.contains(id)) else {
                        continue;
                    };
                    match record.value["after"].is_object() {
                        true => drop(rows.insert(id, record.value["after"].clone())),
                        false => drop(rows.remove(&id)),
                    }
                }
            }
        }
        rows
    }

    /// Puts rows into a sink, or takes them out.
    async fn put(&self, sink: &str, rows: &BTreeMap<u64, Option<Value>>) {
        match sink {
            "cache" => {
                for (id, row) in rows {
                    let key = self.held_as(sink, *id);
                    match row {
                        Some(row) => self.redis(&["SET", &key, &row.to_string()]).await,
                        None => self.redis(&["DEL", &key]).await,
                    };
                }
            }
            "hashes" => {
                for (id, row) in rows {
                    let key = self.held_as(sink, *id);
                    self.redis(&["DEL", &key]).await;
                    for (name, value) in row.iter().filter_map(Value::as_object).flatten() {
                        let value = value
                            .as_str()
                            .map_or_else(|| value.to_string(), str::to_owned);
                        self.redis(&["HSET", &key, name, &value]).await;
                    }
                }
            }
            "search" => {
                let mut body = String::new();
                for (id, row) in rows {
                    let about = json!({ "_id": id.to_string() });
                    body += &match row {
                        Some(row) => format!("{}\n{row}\n", json!({ "index": about })),
                        None => format!("{}\n", json!({ "delete": about })),
                    };
                }
                let done = self.opensearch("POST", "_bulk?refresh=true", &body).await;
                assert_eq!(done["errors"], false, "{done}");
            }
            _ => {
                let record = |(id, row): (&u64, &Option<Value>)| {
                    let key = json!({ "id": id }).to_string();
                    let value = row.as_ref().map(|row| {
                        let from = json!({"name": "shop", "schema": "public", "table": "stock"});
                        json!({"op": "u", "before": null, "after": row, "source": from}).to_string()
                    });
                    (Some(key), value)
                };
                let records = rows.iter().map(record).collect();
                produce_all(&self.brokers, &format!("{}.stock", self.name), records).await;
            }
        }
    }

    /// Where the version of a row is in Redis.
    fn companion(&self, sink: &str, id: u64) -> String {
        format!("lockstep:v:{{{}}}", self.held_as(sink, id))
    }

    async fn look(&self, sink: &str, ids: Range<u64>) -> Before {
        let rows = self.rows(sink, ids.clone()).await;
        let mut versions = BTreeMap::new();
        match sink {
            "search" => {}
            "events" => {
                for record in self.records().await {
                    if let Some(id) = record.key["id"].as_u64() {
                        versions.insert(id, record.id);
                    }
                }
            }
            _ => {
                for id in ids {
                    let reply = self.redis(&["GET", &self.companion(sink, id)]).await;
                    let Reply::Text(version) = reply else {
                        panic!("{reply:?}");
                    };
                    versions.insert(id, version);
                }
            }
        }
        Before { rows, versions }
    }

    /// Puts rows back under the versions that they had, where a sink lets anybody.
    async fn put_back(&self, sink: &str, rows: &BTreeMap<u64, Option<Value>>, before: &Before) {
        match sink {
            "events" => {
                let record = |(id, row): (&u64, &Option<Value>)| {
                    let value = json!({"op": "u", "before": null, "after": row});
                    let key = json!({ "id": id }).to_string();
                    (
                        Some(key),
                        Some(value.to_string()),
                        Some(before.versions[id].clone()),
                    )
                };
                let records = rows.iter().map(record).collect();
                let topic = format!("{}.stock", self.name);
                topics::produce_as(&self.brokers, &topic, "shop", records).await;
            }
            _ => {
                self.put(sink, rows).await;
                for id in rows.keys() {
                    if let Some(version) = before.versions.get(id) {
                        self.redis(&["SET", &self.companion(sink, *id), version])
                            .await;
                    }
                }
            }
        }
    }

    /// Ruins a sink, and tells what differs then. `before`: as it was before the last change of its rows.
    async fn ruin(&self, number: u64, before: &Before) -> Told {
        let sink = SINKS[number as usize];
        let now = self.rows(sink, 1..STILL + 1).await;
        let mut told = Told::new();
        for fault in FAULTS {
            let mut ruined = BTreeMap::new();
            for id in fault.rows(number) {
                let mut row = now
                    .get(&id)
                    .or_else(|| now.get(&1))
                    .cloned()
                    .expect("a row");
                let fields = row.as_object_mut().expect("an object");
                match fault {
                    Fault::Changed => drop(fields.insert("note".to_owned(), json!("ruined"))),
                    Fault::Dropped => drop(fields.remove("note")),
                    Fault::Added => drop(fields.insert("id".to_owned(), json!(id))),
                    Fault::Restored | Fault::Stale => row = before.rows[&id].clone(),
                    Fault::Gone => {}
                }
                ruined.insert(id, (fault != Fault::Gone).then_some(row));
                told.insert((
                    sink.to_owned(),
                    fault.drift(sink).to_owned(),
                    self.held_as(sink, id),
                ));
            }
            match fault {
                Fault::Stale => self.put_back(sink, &ruined, before).await,
                _ => self.put(sink, &ruined).await,
            }
        }
        told
    }
}

/// Changes rows of the source without a word in the stream, and tells what differs then, in every sink.
async fn bypass(shop: &Shop, database: &Database) -> Told {
    let publication = database
        .value("SELECT quote_ident(pubname) FROM pg_publication")
        .await;
    let publication = publication.expect("a publication");
    let (first, last) = (STILL - 2 * BYPASSED, STILL - BYPASSED);
    database
        .execute(&format!(
            "ALTER PUBLICATION {publication} SET (publish = 'insert')"
        ))
        .await;
    database
        .execute(&format!(
            "UPDATE stock SET version = version + 1, note = 'bypassed' WHERE id > {first} AND id <= {last}"
        ))
        .await;
    database
        .execute(&format!(
            "DELETE FROM stock WHERE id > {last} AND id <= {STILL}"
        ))
        .await;
    database
        .execute(&format!(
            "ALTER PUBLICATION {publication} SET (publish = 'insert, update, delete, truncate')"
        ))
        .await;
    let mut told = Told::new();
    for sink in SINKS.into_iter().chain([INDEX]) {
        for id in first + 1..=STILL {
            // Each sink has them as of a place that a fence has come behind since.
            let drift = if id > last { "extra" } else { "stale" };
            told.insert((sink.to_owned(), drift.to_owned(), shop.held_as(sink, id)));
        }
    }
    told
}

/// Updates the rows that change until it is told to stop.
async fn load(database: &Database, stop: CancellationToken) -> JoinHandle<()> {
    let client = database.client().await;
    let update = format!(
        "UPDATE stock SET version = version + 1, note = 'hot ' || version WHERE id > {STILL} AND id % 10 = $1::int8"
    );
    tokio::spawn(async move {
        let mut turn = 0_i64;
        while !stop.is_cancelled() {
            client
                .execute(&update, &[&(turn % 10)])
                .await
                .expect("updated");
            turn += 1;
            tokio::time::sleep(BEAT).await;
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_faults_are_found_and_mended_under_load() {
    require!(NeedsPostgres(17), NeedsRedis, NeedsOpenSearch, NeedsKafka);
    let (postgres, redis, opensearch, kafka) = tokio::join!(
        Postgres::shared(17),
        Redis::shared(),
        OpenSearch::shared(),
        Kafka::shared()
    );
    let database = postgres.database("shop").await;
    database
        .execute(&format!(
            "CREATE TABLE stock (id bigint PRIMARY KEY, version bigint NOT NULL DEFAULT 0, amount numeric(12,2), note text);
             INSERT INTO stock SELECT n, 0, n / 4.0, 'row ' || n FROM generate_series(1, {STILL} + {HOT}) n"
        ))
        .await;
    let name = unique("faults");
    let setup = Setup::new(&name, |folder| {
        source(database.url(), &name, &["stock"])
            + &cache(redis.url(), &name)
            + &hashes(redis.url(), &name)
            + &search(opensearch.url(), &name)
            + &index(folder)
            + &events(kafka.bootstrap(), &name, "partitions = 3\n")
    });
    let shop = Shop {
        name,
        redis,
        opensearch,
        brokers: kafka.bootstrap().to_owned(),
    };
    let mut pipeline = setup.start_ready().await;
    caught_up(&mut pipeline, &database).await;
    let mut before = Vec::new();
    for sink in SINKS {
        before.push(shop.look(sink, 1..STILL + 1).await);
    }
    // Its fence tells of what comes behind it.
    equal(&setup, &mut pipeline, &[]).await;
    let change = format!(
        "UPDATE stock SET version = version + 1, note = 'newer ' || id WHERE id <= {STILL}"
    );
    database.execute(&change).await;
    caught_up(&mut pipeline, &database).await;
    equal(&setup, &mut pipeline, &[]).await;

    let mut expected = bypass(&shop, &database).await;
    let stop = CancellationToken::new();
    let writer = load(&database, stop.clone()).await;
    for (number, before) in before.iter().enumerate() {
        expected.append(&mut shop.ruin(number as u64, before).await);
    }
    assert_eq!(expected.len() as u64, 4 * 6 * EACH + 5 * 2 * BYPASSED);
    let (code, report) = reconcile(&setup, &mut pipeline, &[]).await;
    assert_eq!(told(&report), expected);
    assert_eq!(code, Some(3));

    // Rows that change, too: what is ruined of them is mended by the next change, or before.
    let hot: BTreeMap<u64, Option<Value>> = (STILL + 1..STILL + 101).map(|id| (id, None)).collect();
    for sink in SINKS {
        shop.put(sink, &hot).await;
    }
    let (_, report) = reconcile(&setup, &mut pipeline, &["--repair"]).await;
    let mended: Told = told(&report);
    assert!(
        mended.is_superset(&expected),
        "{:?}",
        expected.difference(&mended)
    );
    let (code, report) = reconcile(&setup, &mut pipeline, &[]).await;
    assert_eq!(told(&report), Told::new(), "{report:#}");
    assert!(matches!(code, Some(0 | 1)), "{code:?} {report:#}");

    // No repair has undone what came behind it.
    stop.cancel();
    writer.await.expect("the writer");
    caught_up(&mut pipeline, &database).await;
    let client = database.client().await;
    let rows = client
        .query("SELECT id, version, note FROM stock", &[])
        .await
        .expect("rows");
    let source: BTreeMap<u64, (String, String)> = rows
        .iter()
        .map(|row| {
            let (id, version): (i64, i64) = (row.get(0), row.get(1));
            (id.cast_unsigned(), (version.to_string(), row.get(2)))
        })
        .collect();
    for sink in SINKS {
        let held = shop.rows(sink, 1..STILL + HOT + 1).await;
        assert_eq!(versions(&held), source, "{sink}");
    }
    assert!(pipeline.terminate(PATIENCE).await.success());
}

/// Version and note of each row.
fn versions(rows: &BTreeMap<u64, Value>) -> BTreeMap<u64, (String, String)> {
    let text = |value: &Value| {
        value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned)
    };
    let row = |(id, row): (&u64, &Value)| (*id, (text(&row["version"]), text(&row["note"])));
    rows.iter().map(row).collect()
}
