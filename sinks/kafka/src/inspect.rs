//! Reading back what topics hold: the latest record of each key.
//!
//! A topic cannot be asked for a key. So it is read once, from its beginning to its end, and of each key is kept what its latest
//! record says ([`index`]); each comparison reads on from there. Rows are compared by what the pipeline would write now, as far
//! as it is the row and not the change that brought it: `after` of the `debezium` envelope, `row` of the `flat` one. What is in Avro is
//! read as the JSON that it would be without.
//!
//! | module | what it knows |
//! |---|---|
//! | `state` | the topics that are compared, within `compare_memory` |
//! | `log` | what the records of one topic say |
//! | `lens` | records in Avro, as JSON |
//! | `index` | the latest record of each key |
//! | `broker` | reading, to an end that is stable |
//! | `verdict` | what is told of a row that differs |
//! | `walk` | the keys that a topic has |

mod broker;
mod digest;
mod index;
mod lens;
mod log;
mod state;
mod verdict;
mod walk;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use lockstep_core::batch::{Batch, Op};
use lockstep_core::error::At as _;
use lockstep_core::schema::TableSchema;
use lockstep_core::sink::{Held, Inspect, Listing, SinkContext};
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_encode::envelope::Encoder;
use lockstep_encode::envelope::read::Said;
use tokio::runtime::Handle;

use crate::config::KafkaConfig;
use crate::topics::Topics;
use lens::Lens;
use log::Owner;
use state::{Asked, State, lock, lost};
use walk::{Over, Walk};

/// Compares rows with the latest records of their keys.
pub(crate) struct KafkaInspect {
    config: Arc<KafkaConfig>,
    topics: Topics,
    encoder: Encoder,
    lens: Lens,
    state: Arc<Mutex<State>>,
}

impl KafkaInspect {
    pub(crate) fn open(config: &KafkaConfig, context: &SinkContext) -> Result<Self> {
        let config = Arc::new(config.clone());
        let mut topics = Topics::new(&config)?;
        let mut tables = Vec::with_capacity(context.tables.len());
        for table in &context.tables {
            tables.push((topics.name(table)?, Arc::clone(table)));
        }
        let lens = Lens::new(&config, Handle::current())?;
        Ok(KafkaInspect {
            // As JSON, which is what records are read as.
            encoder: Encoder::new(config.format.with_decimals(config.decimals)),
            state: Arc::new(Mutex::new(State::new(&config, &lens, &tables)?)),
            lens,
            topics,
            config,
        })
    }

    fn topic(&mut self, schema: &Arc<TableSchema>) -> Result<Arc<str>> {
        if let Some(topic) = self.topics.known(schema) {
            return Ok(Arc::clone(&topic.name));
        }
        let name = self.topics.name(schema)?;
        self.topics.learn(schema, Arc::clone(&name));
        Ok(name)
    }

    /// What the sink would write of each row now; or why it would not.
    fn expect(&mut self, batch: &Batch) -> Result<Vec<Result<Asked, Held>>> {
        let format = self.config.format;
        let mut all = Vec::with_capacity(batch.changes().len());
        for change in batch.changes() {
            let schema = batch.schema(change);
            let topic = self.topic(schema)?;
            let mut asked = None;
            let encoded = self.encoder.encode(batch, change, &mut |record| {
                let row = match (change.op, record.value) {
                    (Op::Read, Some(value)) => match format.read(value).map(|read| read.said) {
                        Some(Said::Row(image)) => Some(image.text.to_owned()),
                        _ => return Err(no_row(schema)),
                    },
                    _ => None,
                };
                let key = record.key.ok_or_else(|| no_key(schema))?;
                asked.get_or_insert_with(|| Asked {
                    topic: Arc::clone(&topic),
                    owner: Owner::of(schema),
                    key: key.to_vec(),
                    row,
                });
                Ok(())
            });
            all.push(match encoded {
                Ok(()) => Ok(asked.ok_or_else(|| no_row(schema))?),
                Err(error) if error.kind() == ErrorKind::Refused => Err(Held::Refused {
                    message: error.to_string(),
                }),
                Err(error) => return Err(error),
            });
        }
        Ok(all)
    }

    /// Does something with the state where it may wait. What has been begun stops when nobody waits for it.
    async fn with_state<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut State, &dyn Fn() -> bool) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let state = Arc::clone(&self.state);
        let halt = Halt::default();
        let halted = Arc::clone(&halt.0);
        let done = tokio::task::spawn_blocking(move || {
            work(&mut lock(&state), &|| halted.load(Ordering::Acquire))
        });
        done.await.map_err(|error| lost(&error))?
    }
}

/// Tells a thread to stop once it is dropped.
#[derive(Default)]
struct Halt(Arc<AtomicBool>);

impl Drop for Halt {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[async_trait]
impl Inspect for KafkaInspect {
    async fn prepare(&mut self, table: &Arc<TableSchema>) -> Result<()> {
        let (topic, owner) = (self.topic(table)?, Owner::of(table));
        let ready = self.with_state(move |state, stop| state.prepare(&topic, &owner, stop));
        ready.await.at(format!("table {}", table.origin))
    }

    async fn compare(&mut self, batch: &Batch) -> Result<Vec<Held>> {
        let expected = self.expect(batch)?;
        let mut asked = Vec::with_capacity(expected.len());
        let mut held: Vec<Option<Held>> = Vec::with_capacity(expected.len());
        for one in expected {
            match one {
                Ok(one) => {
                    asked.push(one);
                    held.push(None);
                }
                Err(refused) => held.push(Some(refused)),
            }
        }
        let source = Arc::clone(&batch.source);
        let found = self.with_state(move |state, stop| state.compare(&source, &asked, stop));
        let mut found = found.await?.into_iter();
        let all = held.into_iter().map(|known| known.or_else(|| found.next()));
        Ok(all.flatten().collect())
    }

    async fn count(&mut self, table: &TableSchema) -> Result<u64> {
        let table = Arc::new(table.clone());
        let (topic, owner) = (self.topics.name(&table)?, Owner::of(&table));
        self.with_state(move |state, stop| state.count(&topic, &owner, stop))
            .await
    }

    async fn list(&mut self, table: &Arc<TableSchema>) -> Result<Option<Box<dyn Listing>>> {
        let format = self.config.format.with_decimals(self.config.decimals);
        let key = format.key(table);
        if !key.reads_back() {
            return Ok(None);
        }
        let (topic, owner) = (self.topic(table)?, Owner::of(table));
        let (config, lens) = (Arc::clone(&self.config), self.lens.clone());
        let over = self.with_state(move |state, stop| {
            let (log, bounds) = state.log(&topic, &owner, stop)?;
            Ok(Over {
                config,
                lens,
                topic,
                owner,
                key,
                log,
                bounds,
            })
        });
        Ok(Some(Box::new(Walk::begin(over.await?))))
    }
}

fn no_row(schema: &TableSchema) -> Error {
    let message = format!("a change of {} to compare has no row", schema.id);
    Error::new(ErrorKind::Invalid, message)
}

fn no_key(schema: &TableSchema) -> Error {
    let message = format!("rows of {} have no key to compare them by", schema.id);
    Error::new(ErrorKind::Invalid, message)
}
