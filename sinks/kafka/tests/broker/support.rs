//! Batches to write, sinks to write them to, and what a consumer sees of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lockstep_core::batch::{Batch, BatchBuilder, Cell, OldImage, Op, Phase, Transaction};
use lockstep_core::error::Result;
use lockstep_core::position::{Lsn, Position, SourceIdentity, SourceInfo};
use lockstep_core::schema::{Column, ColumnType, ReplicaIdentity, TableId, TableSchema, TypeKind};
use lockstep_core::sink::{Sink, SinkContext, SinkFactory, Trouble};
use lockstep_sink_kafka::{KafkaConfig, KafkaSinkFactory};
use rdkafka::ClientConfig;
use rdkafka::Message;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Headers;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

pub const DEADLINE: Duration = Duration::from_secs(60);

/// One row event for [`Feed::batch`].
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    pub op: Op,
    pub id: u64,
    pub note: &'a str,
}

pub fn insert(id: u64, note: &str) -> Event<'_> {
    Event {
        op: Op::Insert,
        id,
        note,
    }
}

/// A source with one table `public.items (id int8 primary key, note text)`.
#[derive(Clone)]
pub struct Feed {
    pub source: Arc<SourceInfo>,
    pub schema: Arc<TableSchema>,
}

impl Feed {
    /// The name of the source is the beginning of the topic.
    pub fn new(source: &str) -> Self {
        Self::with_table(source, "items")
    }

    pub fn with_table(source: &str, table: &str) -> Self {
        let column = |name: &str, oid, ty: &str, slot| Column {
            name: name.into(),
            ty: ColumnType {
                oid,
                typmod: -1,
                name: ty.into(),
                kind: TypeKind::Base,
            },
            slot,
            not_null: slot == 0,
        };
        let schema = TableSchema {
            source: source.into(),
            id: TableId::new("public", table),
            origin: TableId::new("public", table),
            relation: 1,
            version: 1,
            columns: vec![column("id", 20, "int8", 0), column("note", 25, "text", 1)],
            key: vec![0],
            identity: ReplicaIdentity::Default,
            width: 2,
        };
        let identity = SourceIdentity {
            system: 7,
            timeline: 1,
            incarnation: 0,
            database: "shop".into(),
        };
        Feed {
            source: Arc::new(SourceInfo {
                name: source.into(),
                identity,
            }),
            schema: Arc::new(schema),
        }
    }

    pub fn topic(&self) -> String {
        format!("{}.public.{}", self.source.name, self.schema.id.name)
    }

    /// A batch of one transaction.
    pub fn batch(&self, commit: u64, events: &[Event<'_>]) -> Arc<Batch> {
        self.part(commit, 1, events)
    }

    /// A batch that holds a transaction's changes from `first` on.
    pub fn part(&self, commit: u64, first: u64, events: &[Event<'_>]) -> Arc<Batch> {
        let mut builder = BatchBuilder::new();
        let mut block = Vec::new();
        builder.begin(Transaction {
            commit: Lsn(commit),
            commit_micros: 1_700_000_000_000_000,
            xid: 9,
            origin: None,
            previous_commit: None,
            prepared: None,
            global: None,
        });
        let schema = builder.schema(&self.schema);
        for (index, event) in events.iter().enumerate() {
            let mut cell = |text: &str| {
                let offset = block.len() as u32;
                block.extend_from_slice(text.as_bytes());
                Cell::text(offset, text.len() as u32)
            };
            let (id, note) = (cell(&event.id.to_string()), cell(event.note));
            let start = builder.cells().len();
            let (old, new) = match event.op {
                Op::Truncate => (None, None),
                Op::Delete => {
                    builder.cells().extend([id, Cell::NULL]);
                    (Some((OldImage::Key, start)), None)
                }
                _ => {
                    builder.cells().extend([id, note]);
                    (None, Some(start))
                }
            };
            builder.push(
                event.op,
                schema,
                first + index as u64,
                Lsn(commit),
                old,
                new,
            );
        }
        let batch = builder.finish(
            Arc::clone(&self.source),
            Phase::Stream,
            Some(Lsn(commit + 1)),
            Bytes::from(block),
        );
        Arc::new(batch)
    }

    pub fn id(&self, commit: u64, ordinal: u64) -> String {
        self.source.change_id(Position {
            commit: Lsn(commit),
            ordinal,
        })
    }
}

/// A configuration for tests: a progress topic and topics of their own, four partitions.
pub fn config(bootstrap: &str, prefix: &str, more: &serde_json::Value) -> KafkaConfig {
    let mut config = serde_json::json!({
        "brokers": bootstrap,
        "partitions": 4,
        "progress_topic": format!("{prefix}.progress"),
    });
    let fields = more.as_object().expect("an object");
    config
        .as_object_mut()
        .expect("an object")
        .extend(fields.clone());
    serde_json::from_value(config).expect("valid")
}

pub fn context(pipeline: &str, feeds: &[&Feed]) -> SinkContext {
    SinkContext {
        pipeline: pipeline.into(),
        name: "events".into(),
        state: PathBuf::new(),
        sources: feeds.iter().map(|feed| Arc::clone(&feed.source)).collect(),
        tables: feeds.iter().map(|feed| Arc::clone(&feed.schema)).collect(),
        trouble: Trouble::default(),
        token: None,
    }
}

pub async fn open(config: &KafkaConfig, pipeline: &str, feeds: &[&Feed]) -> Result<Box<dyn Sink>> {
    KafkaSinkFactory::open(config, context(pipeline, feeds)).await
}

/// One record as a consumer sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub partition: i32,
    pub offset: i64,
    pub key: Option<String>,
    pub value: Option<String>,
    pub headers: BTreeMap<String, String>,
}

impl Seen {
    pub fn id(&self) -> &str {
        &self.headers["lockstep.id"]
    }
}

/// Everything that a `read_committed` consumer sees of a topic up to its present end, by partition and offset. Waits
/// until no open transaction stands before that end.
pub async fn read(bootstrap: &str, topic: &str) -> Vec<Seen> {
    let (bootstrap, topic) = (bootstrap.to_owned(), topic.to_owned());
    tokio::task::spawn_blocking(move || read_blocking(&bootstrap, &topic))
        .await
        .expect("reader")
}

pub fn consumer(bootstrap: &str, isolation: &str) -> BaseConsumer {
    ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "tests")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("isolation.level", isolation)
        .set("fetch.wait.max.ms", "10")
        .create()
        .expect("consumer")
}

pub fn partition_count(bootstrap: &str, topic: &str) -> usize {
    let consumer = consumer(bootstrap, "read_committed");
    let metadata = consumer
        .fetch_metadata(Some(topic), DEADLINE)
        .expect("metadata");
    metadata.topics()[0].partitions().len()
}

fn read_blocking(bootstrap: &str, topic: &str) -> Vec<Seen> {
    let committed = consumer(bootstrap, "read_committed");
    let uncommitted = consumer(bootstrap, "read_uncommitted");
    let metadata = committed
        .fetch_metadata(Some(topic), DEADLINE)
        .expect("metadata");
    let partitions = metadata.topics()[0].partitions().len() as i32;
    assert!(partitions > 0, "topic {topic} is missing");
    let end = |consumer: &BaseConsumer, partition| {
        consumer
            .fetch_watermarks(topic, partition, DEADLINE)
            .expect("watermarks")
            .1
    };
    let deadline = Instant::now() + DEADLINE;
    let mut from = TopicPartitionList::new();
    for partition in 0..partitions {
        let high = end(&uncommitted, partition);
        while end(&committed, partition) < high {
            assert!(
                Instant::now() < deadline,
                "an open transaction holds {topic}/{partition} back"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        from.add_partition_offset(topic, partition, Offset::Beginning)
            .expect("add");
    }
    committed.assign(&from).expect("assign");
    let mut seen = Vec::new();
    let mut ended = 0;
    while ended < partitions {
        assert!(
            Instant::now() < deadline,
            "the end of {topic} was not reached"
        );
        match committed.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => seen.push(see(&message)),
            Some(Err(KafkaError::PartitionEOF(_))) => ended += 1,
            Some(Err(error)) => panic!("{error}"),
            None => {}
        }
    }
    seen.sort_by_key(|record| (record.partition, record.offset));
    seen
}

fn see(message: &impl Message) -> Seen {
    // What is in Avro begins with a zero.
    let text = |bytes: &[u8]| match bytes.first() {
        Some(0) => crate::avro::json(bytes).to_string(),
        _ => String::from_utf8(bytes.to_vec()).expect("UTF-8"),
    };
    let headers = message.headers().map(|headers| {
        let pair = |header: rdkafka::message::Header<'_, &[u8]>| {
            (
                header.key.to_owned(),
                text(header.value.unwrap_or_default()),
            )
        };
        headers.iter().map(pair).collect()
    });
    Seen {
        partition: message.partition(),
        offset: message.offset(),
        key: message.key().map(text),
        value: message.payload().map(text),
        headers: headers.unwrap_or_default(),
    }
}

/// A small generator of random numbers, so that a failing run can be repeated from its seed.
pub struct Random(u64);

impl Random {
    #[expect(
        clippy::print_stdout,
        reason = "a failing run is repeated with its seed"
    )]
    pub fn new() -> Self {
        let seed = std::env::var("LOCKSTEP_TEST_SEED")
            .ok()
            .and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.expect("after 1970").as_nanos() as u64 | 1
        });
        println!("LOCKSTEP_TEST_SEED={seed}");
        Random(seed)
    }

    pub fn fixed(seed: u64) -> Self {
        Random(seed)
    }

    /// Below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % end
    }
}
