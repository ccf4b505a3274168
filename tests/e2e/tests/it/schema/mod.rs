//! Tables change their shape, their name and their identity while rows flow, before every kind of sink: what each holds
//! afterwards, and what lockstep says where it cannot follow.

mod columns;
mod partitions;
mod tables;

use std::collections::BTreeSet;

use lockstep::demo::compare::Rules;
use lockstep_e2e::child::{Ended, PATIENCE};
use lockstep_e2e::copies::Compare;
use lockstep_e2e::topics::{self, Record};
use lockstep_e2e::{Pipeline, Setup};
use lockstep_kit::kafka::Kafka;
use lockstep_kit::opensearch::OpenSearch;
use lockstep_kit::postgres::{Database, Postgres};
use lockstep_kit::redis::Redis;
use lockstep_kit::unique;
use serde_json::Value;

use crate::support::{end_of_log, list};

/// One pipeline with every kind of sink.
pub struct Lab {
    pub database: Database,
    pub setup: Setup,
    pub name: String,
    kafka: &'static Kafka,
    pub search: &'static OpenSearch,
}

impl Lab {
    /// A database made by `sql`, and a pipeline for these of its tables; `more` are lines of the source's section.
    pub async fn new(major: u16, sql: &str, tables: &[&str], more: &str) -> Self {
        let (postgres, redis, kafka, search) = tokio::join!(
            Postgres::shared(major),
            Redis::shared(),
            Kafka::shared(),
            OpenSearch::shared()
        );
        let database = postgres.database("schema").await;
        database.execute(sql).await;
        let name = unique("schema");
        let tables: Vec<String> = tables.iter().map(|table| (*table).to_owned()).collect();
        let setup = Setup::new(&name, |folder| {
            let (url, cache, folder) = (database.url(), redis.url(), folder.display());
            let (brokers, search, tables) = (kafka.bootstrap(), search.url(), list(&tables));
            let redis = |value: &str| {
                format!(
                    "type = \"redis\"\nurl = \"{cache}\"\nkey = \"{name}:{value}:{{table}}:{{key}}\"\nvalue = \"{value}\""
                )
            };
            let kafka = |format: &str| {
                format!(
                    "type = \"kafka\"\nbrokers = \"{brokers}\"\ntopic = \"{name}.{format}.{{table}}\"\n\
                     progress_topic = \"{name}.{format}.progress\"\nformat = \"{format}\"\npartitions = 1"
                )
            };
            let sinks = [
                ("debezium", kafka("debezium")),
                ("flat", kafka("flat")),
                ("json", redis("json")),
                ("hash", redis("hash")),
                (
                    "search",
                    format!(
                        "type = \"opensearch\"\nurl = \"{search}\"\nindex = \"{name}-{{table}}\"\n\
                         progress_index = \"{name}-progress\"\nsettings = {{ number_of_replicas = 0 }}"
                    ),
                ),
                (
                    "embedded",
                    format!("type = \"tantivy\"\npath = \"{folder}/index\""),
                ),
                (
                    "files",
                    format!(
                        "type = \"file\"\npath = \"{folder}/{{table}}.jsonl\"\nformat = \"flat\""
                    ),
                ),
            ];
            let sinks = sinks
                .map(|(name, section)| format!("[sinks.{name}]\ninputs = [\"shop\"]\n{section}\n"));
            format!(
                "[sources.shop]\ntype = \"postgres\"\nurl = \"{url}\"\nslot = \"{name}\"\ntables = {tables}\n{more}\n{}",
                sinks.concat()
            )
        });
        Lab {
            database,
            setup,
            name,
            kafka,
            search,
        }
    }

    /// Waits until all that has been committed is durable in every sink.
    pub async fn settle(&self, pipeline: &mut Pipeline) {
        let end = end_of_log(&self.database).await;
        pipeline.wait_visible("shop", &end, PATIENCE).await;
    }

    /// `lockstep snapshot` of a table, to its end.
    pub async fn load(&self, pipeline: &mut Pipeline, table: &str, more: &[&str]) {
        let url = pipeline.url().await;
        let all = [&["--table", table, "--url", &url], more].concat();
        let ended = self.setup.lockstep("snapshot", &all).await;
        assert_eq!(ended.code(), Some(0), "{ended:?}\n{}", pipeline.log());
    }

    /// Waits until a table has been loaded that nobody asked for.
    pub async fn loads(&self, pipeline: &mut Pipeline, table: &str) {
        let what = format!("{table} to be loaded");
        pipeline
            .until(PATIENCE, what, async |pipeline| {
                // None before the source is open again.
                let (_, body) = pipeline
                    .get("/api/snapshot")
                    .await
                    .map_err(|error| error.to_string())?;
                let all: Value = serde_json::from_str(&body).map_err(|error| error.to_string())?;
                let mut requests = all["shop"].as_array().into_iter().flatten();
                let done = requests.any(|one| one["table"] == table && one["state"] == "done");
                done.then_some(()).ok_or(body)
            })
            .await;
        self.settle(pipeline).await;
    }

    /// The state sinks, which nobody may write meanwhile, hold exactly what these tables do.
    pub async fn assert_equal(&self, tables: &[&str]) {
        let compare = Compare {
            source: "shop",
            url: self.database.url(),
            publication: "lockstep",
            tables: tables.iter().map(|table| (*table).to_owned()).collect(),
            rules: Rules::default(),
        };
        let compared = compare.assert_equal(&self.setup).await;
        assert_eq!(compared.len(), 4 * tables.len(), "{compared:?}");
    }

    /// The events of a table in Kafka in the flat format, tombstones left out.
    pub async fn events(&self, table: &str) -> Vec<Record> {
        let topic = format!("{}.flat.{table}", self.name);
        let mut records = topics::read(self.kafka.bootstrap(), &topic).await;
        records.retain(|record| !record.value.is_null());
        records
    }

    /// As [`Lab::events`], in Debezium's format.
    pub async fn debezium(&self, table: &str) -> Vec<Record> {
        let topic = format!("{}.debezium.{table}", self.name);
        let mut records = topics::read(self.kafka.bootstrap(), &topic).await;
        records.retain(|record| !record.value.is_null());
        records
    }

    /// The lines of a table's file.
    pub fn lines(&self, table: &str) -> Vec<Record> {
        topics::read_file(&self.setup.folder().join(format!("{table}.jsonl")))
    }

    /// The ids of the rows that were inserted, by all files of these tables.
    pub fn inserted(&self, tables: &[&str]) -> BTreeSet<u64> {
        let lines = tables.iter().flat_map(|table| self.lines(table));
        lines
            .filter(|line| line.op() == "c")
            .map(|line| line.value["row"]["id"].as_u64().expect("an id"))
            .collect()
    }

    /// Waits until `/api/status` has a notice with all of `words`, and returns it.
    pub async fn notice(&self, pipeline: &mut Pipeline, words: &[&str]) -> Value {
        pipeline
            .until(
                PATIENCE,
                format!("a notice of {words:?}"),
                async |pipeline| {
                    let notices = pipeline.status().await["sources"]["shop"]["notices"].clone();
                    let all = notices.as_array().cloned().unwrap_or_default();
                    let found = all.into_iter().find(|notice| {
                        let text = notice.to_string();
                        words.iter().all(|word| text.contains(word))
                    });
                    found.ok_or_else(|| notices.to_string())
                },
            )
            .await
    }

    /// Waits until the pipeline ends with an error, and returns it.
    pub async fn stops(&self, pipeline: Pipeline) -> Ended {
        let ended = pipeline.ends().await;
        assert_eq!(ended.code(), Some(1), "{ended:?}");
        ended
    }

    /// Names of the columns of a table now, in their order.
    pub async fn columns(&self, table: &str) -> Vec<String> {
        let names = self
            .database
            .value(&format!(
                "SELECT string_agg(attname, ' ' ORDER BY attnum) FROM pg_attribute \
                 WHERE attrelid = '{table}'::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''"
            ))
            .await;
        names
            .expect("a table")
            .split(' ')
            .map(str::to_owned)
            .collect()
    }
}

/// The names in an object, in their order.
pub fn names(row: &Value) -> Vec<String> {
    row.as_object()
        .unwrap_or_else(|| panic!("{row}"))
        .keys()
        .cloned()
        .collect()
}
