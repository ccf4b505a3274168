//! Transactions of several databases as records of their own: all branches of one in one record, with the events that go to the topics
//! of the tables beside it.
//!
//! What is longer than a record may be goes into several: numbered parts with the events, and behind them one that tells of them
//! as a whole. All have one key, so they stand in one partition, in order.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::Arc;

use lockstep_core::batch::{Batch, Change, Global};
use lockstep_core::position::Lsn;
use lockstep_encode::envelope::{HEADER_ID, Record};
use serde::Serialize;

/// What a record has besides its branches and the names in it, at most.
const FRAME: usize = 200;

/// Transactions whose events are being encoded.
pub(crate) struct Gather {
    /// Bytes of a value.
    most: usize,
    /// Nearly always one; by what they share.
    open: Vec<Gathered>,
}

/// A record to be sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Whole {
    pub(crate) global: Arc<Global>,
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
    /// The id of the first event in it: should it be refused, then because of that.
    pub(crate) id: Vec<u8>,
}

struct Gathered {
    global: Arc<Global>,
    /// The beginning of an object for each branch, in the order they came.
    branches: Vec<Head>,
    /// Branches with their events, as far as they are in no part; the last is not closed.
    body: Vec<u8>,
    /// Which branch that is.
    at: Option<usize>,
    /// Events in `body`.
    events_in_body: u64,
    /// The id of the first of them, and of the first of all.
    first_in_body: Vec<u8>,
    first: Vec<u8>,
    events: u64,
    tables: BTreeMap<String, u64>,
    /// Parts that are full.
    parts: u64,
    last_commit_micros: i64,
}

struct Head {
    source: Arc<str>,
    commit: Lsn,
    json: Vec<u8>,
}

/// What is said of a branch before its events. Names as in the `source` of Debezium's envelope, where that has them.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Branch<'a> {
    source: &'a str,
    db: &'a str,
    tx_id: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    gid: Option<&'a str>,
    #[serde(rename = "prepare_lsn", skip_serializing_if = "Option::is_none")]
    prepare_lsn: Option<String>,
    #[serde(rename = "commit_lsn")]
    commit_lsn: String,
    #[serde(rename = "ts_ms")]
    ts_ms: i64,
}

/// How many events a table has. Named as in Debezium's topic of transactions.
#[derive(Serialize)]
struct Collection<'a> {
    data_collection: &'a str,
    event_count: u64,
}

impl Gather {
    /// With values of so many bytes at most, if no single event is larger.
    pub(crate) fn new(most: usize) -> Self {
        Gather {
            most,
            open: Vec::new(),
        }
    }

    /// Adds a record of a change to the transaction it belongs to, if that is one of several databases. Gives a part that is full.
    pub(crate) fn add(
        &mut self,
        batch: &Batch,
        change: &Change,
        topic: &str,
        record: &Record<'_>,
    ) -> Option<Whole> {
        let global = batch.transaction(change).global.as_ref()?;
        // A tombstone says what the event before it has said.
        let value = record.json_value()?;
        let id = id_of(record);
        let event = event(&id, topic, record.json_key().as_deref(), &value);
        let most = self.most;
        let gathered = self.of(global);
        let at = gathered.branch(batch, change);
        let room = gathered.body.len() + event.len() + gathered.branches[at].json.len() + FRAME;
        let full =
            (gathered.events_in_body > 0 && room + global.id.len() > most).then(|| gathered.part());
        gathered.push(at, &event, id);
        let schema = batch.schema(change);
        if !schema.id.name.is_empty() {
            let table = format!("{}.{}", batch.source.name, schema.id);
            *gathered.tables.entry(table).or_default() += 1;
        }
        full
    }

    /// What is left of all of them, in the order they began.
    pub(crate) fn finish(&mut self) -> Vec<Whole> {
        let most = self.most;
        let open = self.open.drain(..);
        open.flat_map(|gathered| gathered.finish(most)).collect()
    }

    fn of(&mut self, global: &Arc<Global>) -> &mut Gathered {
        let known = self.open.iter().position(|one| one.global == *global);
        let at = known.unwrap_or_else(|| {
            self.open.push(Gathered::new(global));
            self.open.len() - 1
        });
        &mut self.open[at]
    }
}

impl Gathered {
    fn new(global: &Arc<Global>) -> Self {
        Gathered {
            global: Arc::clone(global),
            branches: Vec::new(),
            body: Vec::new(),
            at: None,
            events_in_body: 0,
            first_in_body: Vec::new(),
            first: Vec::new(),
            events: 0,
            tables: BTreeMap::new(),
            parts: 0,
            last_commit_micros: i64::MIN,
        }
    }

    /// Which branch a change is of.
    fn branch(&mut self, batch: &Batch, change: &Change) -> usize {
        let (source, transaction) = (&batch.source, batch.transaction(change));
        let is_it = |head: &Head| head.commit == transaction.commit && head.source == source.name;
        if let Some(at) = self.branches.iter().rposition(is_it) {
            return at;
        }
        self.last_commit_micros = self.last_commit_micros.max(transaction.commit_micros);
        let prepared = transaction.prepared.as_deref();
        let json = json(&Branch {
            source: &source.name,
            db: &source.identity.database,
            tx_id: transaction.xid,
            gid: prepared.map(|prepared| &*prepared.gid),
            prepare_lsn: prepared.map(|prepared| prepared.lsn.to_string()),
            commit_lsn: transaction.commit.to_string(),
            ts_ms: transaction.commit_micros.div_euclid(1000),
        });
        self.branches.push(Head {
            source: Arc::clone(&source.name),
            commit: transaction.commit,
            json,
        });
        self.branches.len() - 1
    }

    fn push(&mut self, at: usize, event: &[u8], id: Vec<u8>) {
        if self.at == Some(at) {
            self.body.push(b',');
        } else {
            if self.at.is_some() {
                self.body.extend_from_slice(b"]},");
            }
            let head = &self.branches[at].json;
            self.body.extend_from_slice(&head[..head.len() - 1]);
            self.body.extend_from_slice(br#","events":["#);
            self.at = Some(at);
        }
        self.body.extend_from_slice(event);
        if self.events_in_body == 0 {
            self.first_in_body.clone_from(&id);
        }
        if self.events == 0 {
            self.first = id;
        }
        self.events_in_body += 1;
        self.events += 1;
    }

    /// What is in no part yet, as one.
    fn part(&mut self) -> Whole {
        self.parts += 1;
        let mut value = self.begin();
        // A `Vec` takes everything.
        let _ = write!(value, r#","part":{},"branches":["#, self.parts);
        value.append(&mut self.body);
        value.extend_from_slice(b"]}]}");
        self.at = None;
        self.events_in_body = 0;
        self.record(value, self.first_in_body.clone())
    }

    fn finish(mut self, most: usize) -> Vec<Whole> {
        let tail = self.tail();
        let frame = self.global.id.len() + FRAME + tail.len();
        let mut records = Vec::new();
        if self.parts > 0 || (self.body.len() + frame > most && self.events > 1) {
            records.push(self.part());
        }
        let mut value = self.begin();
        value.extend_from_slice(&tail);
        if self.parts == 0 {
            value.extend_from_slice(br#","branches":["#);
            value.append(&mut self.body);
            value.extend_from_slice(b"]}]}");
        } else {
            let heads: Vec<&[u8]> = self.branches.iter().map(|head| &*head.json).collect();
            let _ = write!(value, r#","parts":{},"branches":["#, self.parts);
            value.extend_from_slice(&heads.join(&b","[..]));
            value.extend_from_slice(b"]}");
        }
        let first = std::mem::take(&mut self.first);
        records.push(self.record(value, first));
        records
    }

    /// The beginning of a value.
    fn begin(&self) -> Vec<u8> {
        let mut value = br#"{"id":"#.to_vec();
        value.append(&mut json(&self.global.id));
        value
    }

    /// What is known of the whole.
    fn tail(&self) -> Vec<u8> {
        let tables = self.tables.iter();
        let tables: Vec<Collection<'_>> = tables
            .map(|(table, count)| Collection {
                data_collection: table,
                event_count: *count,
            })
            .collect();
        let mut tail = Vec::new();
        let _ = write!(
            tail,
            r#","complete":{},"count":{},"ts_ms":{},"event_count":{},"data_collections":"#,
            !self.global.cut,
            self.global.branches,
            self.last_commit_micros.div_euclid(1000),
            self.events,
        );
        tail.append(&mut json(&tables));
        tail
    }

    fn record(&self, value: Vec<u8>, id: Vec<u8>) -> Whole {
        let mut key = self.begin();
        key.push(b'}');
        Whole {
            global: Arc::clone(&self.global),
            key,
            value,
            id,
        }
    }
}

fn id_of(record: &Record<'_>) -> Vec<u8> {
    let mut headers = record.headers.iter();
    let id = headers.find(|(name, _)| *name == HEADER_ID);
    id.map_or_else(Vec::new, |(_, id)| id.to_vec())
}

fn event(id: &[u8], topic: &str, key: Option<&[u8]>, value: &[u8]) -> Vec<u8> {
    let mut event = br#"{"id":"#.to_vec();
    event.append(&mut json(&String::from_utf8_lossy(id)));
    event.extend_from_slice(br#","topic":"#);
    event.append(&mut json(topic));
    event.extend_from_slice(br#","key":"#);
    event.extend_from_slice(key.unwrap_or(b"null"));
    event.extend_from_slice(br#","value":"#);
    event.extend_from_slice(value);
    event.push(b'}');
    event
}

/// Texts and numbers only: it can be written.
fn json<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use lockstep_conformance::feed::{Feed, INT8, TEXT, V, source, table};
    use lockstep_encode::envelope::{Encoder, Format};
    use serde_json::{Value, json};

    use super::*;

    const IDS: [&str; 9] = ["1", "2", "3", "4", "5", "6", "7", "8", "9"];

    fn global(cut: bool) -> Arc<Global> {
        Arc::new(Global {
            id: "plain:order \"17\"".into(),
            branches: 2,
            cut,
        })
    }

    /// A branch in each of two sources, with so many rows and one that is deleted.
    fn purchase(rows: usize, cut: bool) -> [Batch; 2] {
        ["orders", "stock"].map(|name| {
            let (source, schema) = (
                source(name),
                table(
                    name,
                    "t",
                    1,
                    &[("id", "int8", INT8), ("note", "text", TEXT)],
                ),
            );
            let mut feed = Feed::new(&source);
            feed.begin(10);
            for id in &IDS[..rows] {
                feed.insert(&schema, &[V::Text(id), "a note".into()]);
            }
            feed.delete(&schema, "0");
            let batch = feed.finish();
            batch.with_globals(|_| Some(global(cut)))
        })
    }

    /// All records, with values of so many bytes at most.
    fn gathered(batches: &[Batch], most: usize) -> Vec<Whole> {
        let (mut gather, mut encoder) = (Gather::new(most), Encoder::new(Format::Flat));
        let mut records = Vec::new();
        for batch in batches {
            for change in batch.changes() {
                let emit = &mut |record: Record<'_>| {
                    let topic = format!("{}.t", batch.source.name);
                    records.extend(gather.add(batch, change, &topic, &record));
                    Ok(())
                };
                encoder.encode(batch, change, emit).expect("encoded");
            }
        }
        records.extend(gather.finish());
        assert!(gather.finish().is_empty(), "all of it");
        records
    }

    fn value(record: &Whole) -> Value {
        serde_json::from_slice(&record.value)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&record.value)))
    }

    /// The ids of the events in a record, by source.
    fn events(value: &Value) -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let branches = value["branches"].as_array().expect("branches").iter();
        let events = branches.flat_map(|branch| {
            let events = branch["events"].as_array().into_iter().flatten();
            events.map(|event| (text(&branch["source"]), text(&event["id"])))
        });
        events.collect()
    }

    #[test]
    fn a_transaction_is_one_record_with_all_its_branches() {
        let records = gathered(&purchase(1, false), 10_000);
        assert_eq!(records.len(), 1);
        let whole = value(&records[0]);
        let id = "plain:order \"17\"";
        assert_eq!(
            serde_json::from_slice::<Value>(&records[0].key).expect("JSON"),
            json!({"id": id})
        );
        assert_eq!(whole["id"], id);
        assert_eq!(
            (&whole["complete"], &whole["count"], &whole["event_count"]),
            (&json!(true), &json!(2), &json!(4))
        );
        assert_eq!(
            whole["data_collections"],
            json!([
                {"data_collection": "orders.public.t", "event_count": 2},
                {"data_collection": "stock.public.t", "event_count": 2},
            ])
        );
        let branch = &whole["branches"][1];
        assert_eq!(
            (
                &branch["source"],
                &branch["txId"],
                &branch["commit_lsn"],
                &branch["ts_ms"]
            ),
            (
                &json!("stock"),
                &json!(1),
                &json!("0/50"),
                &json!(1_700_000_000_000_i64)
            )
        );
        let event = &branch["events"][0];
        assert_eq!(event["topic"], "stock.t");
        assert_eq!(event["key"], json!({"id": 1}));
        assert!(event["value"].to_string().contains("a note"), "{event}");
        // The tombstone of the delete is none.
        assert_eq!(branch["events"].as_array().map(Vec::len), Some(2));
        assert_eq!(records[0].id, event_id(&whole["branches"][0]["events"][0]));
    }

    fn event_id(event: &Value) -> Vec<u8> {
        event["id"].as_str().expect("an id").as_bytes().to_vec()
    }

    #[test]
    fn what_is_too_long_goes_into_parts_with_one_behind_them_that_tells_of_all() {
        let batches = purchase(IDS.len(), false);
        let whole = gathered(&batches, 100_000);
        let all = events(&value(&whole[0]));
        assert_eq!(all.len(), 2 * (IDS.len() + 1));
        let mut split = 0;
        for most in (300..whole[0].value.len() + 600).step_by(7) {
            let records = gathered(&batches, most);
            let values: Vec<Value> = records.iter().map(value).collect();
            assert!(records.iter().all(|record| record.key == whole[0].key));
            let told: Vec<_> = values.iter().flat_map(events).collect();
            assert_eq!(told, all, "each once, in order");
            for (record, value) in records.iter().zip(&values) {
                let fits = record.value.len() <= most || events(value).len() <= 1;
                assert!(fits, "{} bytes of {most}", record.value.len());
            }
            let (last, parts) = values.split_last().expect("one at least");
            assert_eq!(
                (&last["count"], &last["event_count"]),
                (&json!(2), &json!(all.len()))
            );
            if parts.is_empty() {
                assert_eq!(last.get("parts"), None);
                continue;
            }
            split += 1;
            assert_eq!(last["parts"], json!(parts.len()));
            assert_eq!(last["branches"].as_array().map(Vec::len), Some(2));
            for (number, part) in parts.iter().enumerate() {
                assert_eq!(
                    (&part["id"], &part["part"]),
                    (&last["id"], &json!(number + 1))
                );
            }
        }
        assert!(split > 100, "{split}");
    }

    #[test]
    fn pieces_of_what_is_too_large_do_not_call_themselves_whole() {
        let records = gathered(&purchase(1, true)[..1], 10_000);
        assert_eq!(value(&records[0])["complete"], false);
    }

    #[test]
    fn what_is_of_one_database_has_no_record() {
        let plain = purchase(2, false).map(|batch| batch.with_globals(|_| None));
        assert_eq!(gathered(&plain, 10_000), []);
    }
}
