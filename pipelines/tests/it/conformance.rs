//! The ends keep the promises that the runtime is built on: else its tests would show little.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use lockstep_conformance::sink::{Event, Held, Progress, SinkUnderTest};
use lockstep_conformance::source::SourceUnderTest;
use lockstep_conformance::transform::TransformUnderTest;
use lockstep_core::Result;
use lockstep_core::batch::Op;
use lockstep_core::position::{Lsn, SourceInfo};
use lockstep_core::schema::TableSchema;
use lockstep_core::sink::{Sink, SinkContext, SinkFactory};
use lockstep_core::source::{Source, SourceContext, SourceFactory};
use lockstep_core::transform::{Transform, TransformContext, TransformFactory};

use crate::ends::{
    Config, LogRow, MemorySink, ScriptedSource, Server, Store, Witness, WitnessTransform,
};

/// A name that no other end has.
fn script() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("conformance-{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

struct Memory {
    store: Arc<Store>,
    config: Config,
}

#[async_trait]
impl SinkUnderTest for Memory {
    async fn open(&self, context: SinkContext) -> Result<Box<dyn Sink>> {
        MemorySink::open(&self.config, context).await
    }

    async fn held(&self, table: &Arc<TableSchema>) -> Held {
        let mut events = Vec::new();
        let state = self.store.state();
        for held in state
            .held
            .iter()
            .filter(|held| held.table == *table.id.name)
        {
            // Both sources of the suite read the same log.
            let source = lockstep_conformance::feed::source(&held.source);
            let mut tell = |op, key: &str, row: Option<_>| {
                let key = (op != 't').then(|| ("id".to_owned(), key.to_owned()));
                events.push(Event {
                    id: SourceInfo::change_id(&source, held.position),
                    op,
                    key: key.into_iter().collect(),
                    row,
                });
            };
            let row = held.row.clone();
            match (held.op, &held.old_key) {
                (Op::Update, Some(old)) if *old != held.key => {
                    tell('d', old, None);
                    tell('c', &held.key, row);
                }
                (Op::Read, _) => tell('r', &held.key, row),
                (Op::Insert, _) => tell('c', &held.key, row),
                (Op::Update, _) => tell('u', &held.key, row),
                (Op::Delete, _) => tell('d', &held.key, None),
                (Op::Truncate, _) => tell('t', "", None),
                (Op::Message | Op::Event, _) => {}
            }
        }
        Held::Events(events)
    }

    fn progress(&self) -> Progress {
        Progress::Atomic
    }

    /// This one writes one batch behind the other.
    fn is_whole(&self) -> bool {
        false
    }
}

async fn memory() -> Option<Memory> {
    let script = script();
    Some(Memory {
        store: Store::new(&script),
        config: Config { script },
    })
}

mod sink {
    use super::memory;
    lockstep_conformance::sink_suite!(memory);
}

struct Scripted {
    server: Arc<Server>,
    config: Config,
}

#[async_trait]
impl SourceUnderTest for Scripted {
    async fn open(&self, context: SourceContext) -> Result<Box<dyn Source>> {
        ScriptedSource::open(&self.config, context).await
    }

    async fn commit(&self, keys: &[u64]) {
        let row = |key: &u64| LogRow {
            table: "t",
            key: *key,
        };
        let rows: Vec<LogRow> = keys.iter().map(row).collect();
        let is_copied = self.server.state().opened == 0;
        if is_copied {
            self.server.state().snapshot.extend(rows);
        } else {
            self.server.commit(&rows);
        }
    }

    async fn told(&self) -> Lsn {
        self.server.state().confirmed
    }

    fn copies(&self) -> bool {
        true
    }
}

async fn scripted() -> Option<Scripted> {
    let script = script();
    let server = Server::new(&script, "shop", &["t"]);
    server.state().batch_sizes = vec![3, 1, 50];
    Some(Scripted {
        server,
        config: Config { script },
    })
}

mod source {
    use super::scripted;
    lockstep_conformance::source_suite!(scripted);
}

fn witness() -> impl TransformUnderTest {
    let script = script();
    Witness::new(&script);
    move |context: TransformContext| -> Result<Box<dyn Transform>> {
        let script = script.clone();
        WitnessTransform::open(&Config { script }, context)
    }
}

mod transform {
    use super::witness;
    lockstep_conformance::transform_suite!(witness);
}
