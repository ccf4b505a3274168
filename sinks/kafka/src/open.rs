//! Opening: connect, fence the predecessor, learn how far it got.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lockstep_core::sink::{SinkContext, Trouble};
use lockstep_core::{ErrorKind, Result};
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, Producer};

use crate::client;
use crate::config::KafkaConfig;
use crate::error::{Failure, UNREACHABLE};
use crate::outlet::{Outlet, Shared, dropped};
use crate::progress::{self, Positions};
use crate::registrar::Registrar;
use crate::reports::Reports;
use crate::topics::{self, Topics, Wanted};
use crate::transaction::Book;
use crate::worker::Worker;

/// How long a broker may take to answer at all.
const REACH_TIMEOUT: Duration = Duration::from_secs(15);
/// How long the transaction coordinator may take: the first one on a cluster creates its topic.
const INIT_TIMEOUT: Duration = Duration::from_secs(60);

/// `lockstep.<pipeline>.<sink>`: the same in every run, so that a restart fences its predecessor.
pub(crate) fn transactional_id(pipeline: &str, sink: &str) -> String {
    format!("lockstep.{pipeline}.{sink}")
}

/// Everything that has to be done before the first record. Blocks; runs on the sink's thread.
pub(crate) fn open(
    config: &Arc<KafkaConfig>,
    context: &SinkContext,
    shared: &Arc<Shared>,
    registrar: Option<Registrar>,
) -> Result<(Worker, Positions)> {
    let id = config
        .exactly_once
        .then(|| transactional_id(&context.pipeline, &context.name));
    let producer = producer(config, id.as_deref(), context.trouble.clone())?;
    let outlet = Outlet {
        producer,
        shared: Arc::clone(shared),
    };
    let stop = || shared.is_dropped();

    let mut topics = Topics::new(config)?;
    let mut names = Vec::with_capacity(context.tables.len());
    for table in &context.tables {
        names.push(topics.name(table)?);
    }
    let mut wanted: Vec<Wanted<'_>> = names
        .iter()
        .map(|name| Wanted {
            name,
            partitions: config.partitions,
            config: &[],
        })
        .collect();
    wanted.extend(config.transactions.iter().map(|transactions| Wanted {
        name: &transactions.topic,
        partitions: config.partitions,
        config: &[],
    }));
    wanted.sort_by_key(|topic| topic.name);
    wanted.dedup_by_key(|topic| topic.name);
    if config.exactly_once {
        wanted.push(Wanted {
            name: &config.progress_topic,
            partitions: Some(1),
            config: progress::TOPIC_CONFIG,
        });
    }

    reach(&outlet, &config.brokers)?;
    topics::ensure(outlet.producer.client(), config, &wanted).map_err(|failure| failure.error())?;
    for (table, name) in context.tables.iter().zip(&names) {
        topics.learn(table, Arc::clone(name));
    }
    let Some(id) = id else {
        return Ok((
            Worker::new(Arc::clone(config), outlet, topics, registrar, None)?,
            Positions::new(),
        ));
    };
    init_transactions(&outlet, &id)?;
    let positions = progress::read(
        config,
        &context.pipeline,
        &context.name,
        context.token,
        &stop,
    )
    .map_err(|failure| failure.error())?;
    let book = Book {
        pipeline: Arc::clone(&context.pipeline),
        sink: Arc::clone(&context.name),
        topic: config.progress_topic.clone(),
        token: context.token,
    };
    Ok((
        Worker::new(Arc::clone(config), outlet, topics, registrar, Some(book))?,
        positions,
    ))
}

/// A producer that has talked to nobody yet.
pub(crate) fn producer(
    config: &KafkaConfig,
    id: Option<&str>,
    trouble: Trouble,
) -> Result<BaseProducer<Reports>> {
    client::producer(config, id)
        .create_with_context(Reports::telling(trouble))
        .map_err(|error| client::creation(&error))
}

/// Waits for the first answer of any broker.
pub(crate) fn reach(outlet: &Outlet, brokers: &str) -> Result<()> {
    let end = Instant::now() + REACH_TIMEOUT;
    loop {
        // The cluster's id comes with the first metadata, whatever the topics.
        let answered = outlet
            .producer
            .client()
            .fetch_cluster_id(Duration::from_millis(500))
            .is_some();
        outlet.pump();
        if answered {
            outlet.reports().answered();
            return Ok(());
        }
        if outlet.shared.is_dropped() {
            return Err(dropped());
        }
        let trouble = outlet.reports().trouble();
        if let Some(refusal) = trouble
            .as_ref()
            .filter(|trouble| trouble.kind == ErrorKind::Authentication)
        {
            return Err(refusal.error());
        }
        if Instant::now() > end {
            let reason = trouble.as_ref();
            let reason = reason.map_or_else(String::new, |why| format!(" ({})", why.message));
            let remedy = trouble.and_then(|trouble| trouble.remedy);
            return Err(Failure::new(
                ErrorKind::Unavailable,
                format!("no broker of `{brokers}` answers{reason}"),
                remedy.unwrap_or_else(|| UNREACHABLE.to_owned()),
            )
            .error());
        }
    }
}

/// Takes the transactional id over: what a predecessor left open is aborted, what it was committing is completed, and
/// it can write no more.
pub(crate) fn init_transactions(outlet: &Outlet, id: &str) -> Result<()> {
    let end = Instant::now() + INIT_TIMEOUT;
    loop {
        let error = match outlet.producer.init_transactions(Duration::from_secs(1)) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        outlet.pump();
        if outlet.shared.is_dropped() {
            return Err(dropped());
        }
        let again = matches!(&error, KafkaError::Transaction(inner) if inner.is_retriable());
        if !again || Instant::now() > end {
            return Err(outlet.cause(
                format!("the transactional id `{id}` cannot be taken over"),
                &error,
            ));
        }
    }
}
