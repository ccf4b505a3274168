//! Exchanges and queues: that they are there, and made where the file says so.

use std::collections::{BTreeMap, HashSet};

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lockstep_core::Result;
use lockstep_core::schema::TableSchema;
use lockstep_core::template::Template;

use crate::config::{Argument, ExchangeKind, MAX_NAME, Queue, QueueKind, RabbitmqConfig, wrong};
use crate::link::Link;
use crate::routes::{is_no_table, names_tables};

/// What has been looked at, and what is to be made.
pub(crate) struct Topology {
    exchange: Option<ExchangeKind>,
    queues: Vec<Plan>,
    /// Exchanges that are there.
    exchanges: HashSet<ShortString>,
    /// Queues that are there, and their bindings.
    made: HashSet<(ShortString, Option<(ShortString, ShortString)>)>,
}

struct Plan {
    name: Template,
    bind: Vec<Template>,
    arguments: FieldTable,
}

impl Topology {
    pub(crate) fn new(config: &RabbitmqConfig) -> Result<Self> {
        let queues = config.declare.iter().flat_map(|declare| &declare.queues);
        Ok(Topology {
            exchange: config.declare.as_ref().and_then(|declare| declare.exchange),
            queues: queues.map(Plan::new).collect::<Result<_>>()?,
            exchanges: HashSet::new(),
            made: HashSet::new(),
        })
    }

    /// Sees to it that records of a table can go to an exchange.
    pub(crate) async fn ensure(
        &mut self,
        link: &Link,
        schema: &TableSchema,
        exchange: &ShortString,
    ) -> Result<()> {
        if !exchange.as_str().is_empty() && !self.exchanges.contains(exchange) {
            self.ensure_exchange(link, exchange).await?;
            self.exchanges.insert(exchange.clone());
        }
        let mut wanted = Vec::new();
        for plan in &self.queues {
            wanted.extend(plan.wants(schema, exchange)?);
        }
        wanted.retain(|want| !self.made.contains(&want.made()));
        if wanted.is_empty() {
            return Ok(());
        }
        let channel = link.channel().await?;
        for want in wanted {
            let queue = (want.queue.clone(), None);
            if !self.made.contains(&queue) {
                let options = QueueDeclareOptions {
                    durable: true,
                    ..QueueDeclareOptions::default()
                };
                let declared =
                    channel.queue_declare(want.queue.clone(), options, want.arguments.clone());
                declared.await.map_err(|error| {
                    link.failed(format!("queue `{}` cannot be had", want.queue), &error)
                })?;
                self.made.insert(queue);
            }
            if let Some((exchange, key)) = &want.bind {
                let bound = channel.queue_bind(
                    want.queue.clone(),
                    exchange.clone(),
                    key.clone(),
                    QueueBindOptions::default(),
                    FieldTable::default(),
                );
                bound.await.map_err(|error| {
                    let what = format!(
                        "queue `{}` cannot be bound to exchange `{exchange}`",
                        want.queue
                    );
                    link.failed(what, &error)
                })?;
                self.made.insert(want.made());
            }
        }
        Ok(())
    }

    async fn ensure_exchange(&self, link: &Link, exchange: &ShortString) -> Result<()> {
        let channel = link.channel().await?;
        let options = ExchangeDeclareOptions {
            passive: self.exchange.is_none(),
            durable: true,
            ..ExchangeDeclareOptions::default()
        };
        let kind = self
            .exchange
            .map_or_else(lapin::ExchangeKind::default, kind);
        let declared =
            channel.exchange_declare(exchange.clone(), kind, options, FieldTable::default());
        let declared = declared.await;
        declared
            .map_err(|error| link.failed(format!("exchange `{exchange}` cannot be had"), &error))
    }
}

/// A queue that is to be there, and bound.
struct Want<'a> {
    queue: ShortString,
    arguments: &'a FieldTable,
    bind: Option<(ShortString, ShortString)>,
}

impl Want<'_> {
    fn made(&self) -> (ShortString, Option<(ShortString, ShortString)>) {
        (self.queue.clone(), self.bind.clone())
    }
}

impl Plan {
    fn new(queue: &Queue) -> Result<Self> {
        let parse = |field: &str, text: &str| {
            Template::parse_any(text).map_err(|cause| wrong(field, cause))
        };
        let bind = queue.bind.iter();
        Ok(Plan {
            name: parse("declare.queues.name", &queue.name)?,
            bind: bind
                .map(|bind| parse("declare.queues.bind", bind))
                .collect::<Result<_>>()?,
            arguments: arguments(queue.kind, &queue.arguments)?,
        })
    }

    /// What of it is for a table, or for logical messages, which know no table.
    fn wants(&self, schema: &TableSchema, exchange: &ShortString) -> Result<Vec<Want<'_>>> {
        let is_message = is_no_table(schema);
        if is_message && names_tables(&self.name) {
            return Ok(Vec::new());
        }
        let render = |field: &str, template: &Template| {
            let text = template.render(schema, |_| None);
            ShortString::try_new(text).map_err(|_| {
                wrong(
                    field,
                    format!("it has more than {MAX_NAME} bytes for table {}", schema.id),
                )
            })
        };
        let queue = render("declare.queues.name", &self.name)?;
        let want = |bind| Want {
            queue: queue.clone(),
            arguments: &self.arguments,
            bind,
        };
        let mut wants = vec![want(None)];
        if !exchange.as_str().is_empty() {
            for bind in &self.bind {
                if is_message && names_tables(bind) {
                    continue;
                }
                let key = render("declare.queues.bind", bind)?;
                wants.push(want(Some((exchange.clone(), key))));
            }
        }
        Ok(wants)
    }
}

fn arguments(kind: QueueKind, more: &BTreeMap<String, Argument>) -> Result<FieldTable> {
    let kind = match kind {
        QueueKind::Classic => "classic",
        QueueKind::Quorum => "quorum",
        QueueKind::Stream => "stream",
    };
    let mut table = FieldTable::default();
    table.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
    for (name, value) in more {
        let value = match value {
            Argument::Flag(flag) => AMQPValue::Boolean(*flag),
            Argument::Integer(number) => AMQPValue::LongLongInt(*number),
            Argument::Text(text) => AMQPValue::LongString(text.as_str().into()),
        };
        let name = ShortString::try_new(name.as_str()).map_err(|_| {
            wrong(
                "declare.queues.arguments",
                format!("`{name}` has more than {MAX_NAME} bytes"),
            )
        })?;
        table.insert(name, value);
    }
    Ok(table)
}

fn kind(kind: ExchangeKind) -> lapin::ExchangeKind {
    match kind {
        ExchangeKind::Topic => lapin::ExchangeKind::Topic,
        ExchangeKind::Direct => lapin::ExchangeKind::Direct,
        ExchangeKind::Fanout => lapin::ExchangeKind::Fanout,
        ExchangeKind::Headers => lapin::ExchangeKind::Headers,
        ExchangeKind::ConsistentHash => lapin::ExchangeKind::Custom("x-consistent-hash".into()),
    }
}
