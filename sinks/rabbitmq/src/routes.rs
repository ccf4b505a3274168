//! Which exchange a record goes to, and under which routing key.

use std::sync::Arc;

use lapin::types::ShortString;
use lockstep_core::batch::{Batch, Change, Op};
use lockstep_core::refusal::reason;
use lockstep_core::schema::TableSchema;
use lockstep_core::template::Template;
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_encode::key::key_text;

use crate::config::{MAX_NAME, RabbitmqConfig, wrong};

/// Fields of what depends on the table alone.
const TABLE: &[&str] = &["source", "schema", "table"];

/// The templates.
#[derive(Clone, Debug)]
pub(crate) struct Routes {
    exchange: Template,
    key: Template,
    /// `None`: not known, since that of tables names them.
    message_exchange: Option<Template>,
    message_key: Template,
}

/// Where records of a table go.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) exchange: ShortString,
    key: Key,
}

impl Default for Route {
    /// To nowhere: of a schema that no change has.
    fn default() -> Self {
        Route {
            exchange: ShortString::default(),
            key: Key::Fixed(ShortString::default()),
        }
    }
}

#[derive(Debug)]
enum Key {
    /// The same for all records.
    Fixed(ShortString),
    /// By operation or key.
    PerRecord(Template),
}

impl Routes {
    pub(crate) fn new(config: &RabbitmqConfig) -> Result<Self> {
        let parse = |field: &str, text: &str, allowed: &[&str]| {
            Template::parse(text, allowed).map_err(|cause| wrong(field, cause))
        };
        let exchange = parse("exchange", &config.exchange, TABLE)?;
        let per_record = [TABLE, &["op", "key"]].concat();
        let names_tables = names_tables(&exchange);
        for queue in config.declare.iter().flat_map(|declare| &declare.queues) {
            parse("declare.queues.name", &queue.name, TABLE)?;
            for bind in &queue.bind {
                parse("declare.queues.bind", bind, TABLE)?;
            }
        }
        Ok(Routes {
            key: parse("routing_key", &config.routing_key, &per_record)?,
            message_exchange: match &config.message_exchange {
                Some(text) => Some(parse("message_exchange", text, &["source"])?),
                None if names_tables => None,
                None => Some(exchange.clone()),
            },
            message_key: parse(
                "message_routing_key",
                &config.message_routing_key,
                &["source"],
            )?,
            exchange,
        })
    }

    /// Where records of a table go, or logical messages.
    ///
    /// # Errors
    /// Of kind `Config`, when a name is too long, or there is none for logical messages.
    pub(crate) fn of(&self, schema: &TableSchema) -> Result<Route> {
        let is_message = is_no_table(schema);
        let (fields, exchange, key) = match (is_message, &self.message_exchange) {
            (false, _) => (["exchange", "routing_key"], &self.exchange, &self.key),
            (true, Some(exchange)) => (
                ["message_exchange", "message_routing_key"],
                exchange,
                &self.message_key,
            ),
            (true, None) => {
                return Err(wrong(
                    "message_exchange",
                    "a logical message or an event has come, and `exchange` is for tables",
                )
                .remedy("name an exchange for logical messages, or leave them out by `inputs`"));
            }
        };
        let exchange = exchange.render(schema, |_| None);
        // An event says itself where it goes.
        if let Some(destination) = schema.destination() {
            return Ok(Route {
                exchange: name(fields[0], exchange, schema)?,
                key: Key::Fixed(name(fields[1], destination.to_owned(), schema)?),
            });
        }
        let per_record = key.has("op") || key.has("key");
        Ok(Route {
            exchange: name(fields[0], exchange, schema)?,
            key: match per_record {
                true => Key::PerRecord(key.clone()),
                false => Key::Fixed(name(fields[1], key.render(schema, |_| None), schema)?),
            },
        })
    }

    /// The exchange that all tables share, if they share one.
    pub(crate) fn shared_exchange(&self) -> Option<&str> {
        let fixed = !names_tables(&self.exchange) && !self.exchange.has("source");
        fixed.then(|| self.exchange.as_str())
    }

    /// The routing key that all records share, if they share one.
    pub(crate) fn shared_key(&self) -> Option<&str> {
        let fixed = !["source", "schema", "table", "op", "key"]
            .iter()
            .any(|field| self.key.has(field));
        fixed.then(|| self.key.as_str())
    }
}

/// Whether there is one for each table.
pub(crate) fn names_tables(template: &Template) -> bool {
    template.has("schema") || template.has("table")
}

/// Whether it is the shape of logical messages, or of events.
pub(crate) fn is_no_table(schema: &TableSchema) -> bool {
    schema.id.name.is_empty() || schema.destination().is_some()
}

fn name(field: &str, text: String, schema: &TableSchema) -> Result<ShortString> {
    ShortString::try_new(text).map_err(|_| {
        wrong(
            field,
            format!("it has more than {MAX_NAME} bytes for table {}", schema.id),
        )
        .remedy("make the template shorter")
    })
}

impl Route {
    /// The routing key of a record of a change that says `op`.
    ///
    /// # Errors
    /// Of kind `Refused`, when it is too long, or the row does not carry its key.
    pub(crate) fn key(
        &self,
        batch: &Batch,
        change: &Change,
        schema: &Arc<TableSchema>,
        op: Op,
    ) -> Result<ShortString> {
        let template = match &self.key {
            Key::Fixed(key) => return Ok(key.clone()),
            Key::PerRecord(template) => template,
        };
        let values = match template.has("key") {
            true => key_of(batch, change, schema, op)?,
            false => String::new(),
        };
        let text = template.render(schema, |field| match field {
            "op" => Some(op.letter().to_owned()),
            _ => Some(values.clone()),
        });
        let length = text.len();
        ShortString::try_new(text).map_err(|_| {
            Error::new(
                ErrorKind::Refused,
                format!("a routing key of {length} bytes is too long: {MAX_NAME} is the most"),
            )
            .because(reason::KEY)
            .remedy("leave `{key}` out of `routing_key`")
        })
    }
}

/// The key values that a record is about; empty where there is no key.
fn key_of(batch: &Batch, change: &Change, schema: &TableSchema, op: Op) -> Result<String> {
    let mut text = String::new();
    if schema.key.is_empty() {
        return Ok(text);
    }
    let (old, new) = (batch.old_row(change), batch.new_row(change));
    let rows = match op {
        Op::Delete => [old, None],
        // What of a key did not change may be in the old image alone.
        Op::Read | Op::Insert | Op::Update => [new, old],
        Op::Truncate | Op::Message | Op::Event => [None, None],
    };
    let mut failed = None;
    for row in rows.into_iter().flatten() {
        text.clear();
        match key_text(schema, row, &mut text) {
            Ok(()) => return Ok(text),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    failed.map_or(Ok(String::new()), Err)
}

#[cfg(test)]
mod tests {
    use lockstep_conformance::feed::{Feed, INT8, TEXT, V, source, table};
    use lockstep_core::schema::TableId;

    use super::*;

    fn routes(json: serde_json::Value) -> Routes {
        let mut config = serde_json::json!({"url": "amqp://h"});
        let fields = json.as_object().expect("an object").clone();
        config.as_object_mut().expect("an object").extend(fields);
        Routes::new(&serde_json::from_value(config).expect("config")).expect("templates")
    }

    fn schema(name: &str) -> TableSchema {
        TableSchema {
            id: TableId::new("public", name),
            ..TableSchema::message("shop".into())
        }
    }

    #[test]
    fn names_are_made_of_their_fields() {
        let routes = routes(
            serde_json::json!({"exchange": "{source}-{table}", "routing_key": "{schema}.{table}"}),
        );
        let route = routes.of(&schema("items")).expect("a route");
        assert_eq!(route.exchange.as_str(), "shop-items");
        assert!(matches!(&route.key, Key::Fixed(key) if key.as_str() == "public.items"));
        assert_eq!(routes.shared_exchange(), None);
        let error = routes
            .of(&TableSchema::message("shop".into()))
            .expect_err("no exchange for messages");
        assert_eq!(error.kind(), ErrorKind::Config);
        let error = routes.of(&schema(&"x".repeat(260))).expect_err("too long");
        assert_eq!(error.kind(), ErrorKind::Config);
    }

    #[test]
    fn messages_go_where_tables_go_unless_said_otherwise() {
        let routes = routes(serde_json::json!({"exchange": "x"}));
        let route = routes
            .of(&TableSchema::message("shop".into()))
            .expect("a route");
        assert_eq!(route.exchange.as_str(), "x");
        assert!(matches!(&route.key, Key::Fixed(key) if key.as_str() == "shop.message"));
        assert_eq!(routes.shared_exchange(), Some("x"));
    }

    #[test]
    fn a_key_has_the_values_of_the_row_that_a_record_is_about() {
        let columns = [("id", "int8", INT8), ("name", "text", TEXT)];
        let mut schema = TableSchema::clone(&table("shop", "t", 1, &columns));
        schema.key = vec![0, 1];
        let schema = Arc::new(schema);
        let source = source("shop");
        let mut feed = Feed::new(&source);
        feed.begin(10)
            .insert(&schema, &["1".into(), "a:b".into()])
            .insert(&schema, &["1".into(), V::Text(&"x".repeat(260))]);
        let batch = feed.finish();
        let routes = routes(serde_json::json!({"routing_key": "{table}.{op}.{key}"}));
        let route = routes.of(&schema).expect("a route");
        let key = |index: usize, op| route.key(&batch, &batch.changes()[index], &schema, op);
        assert_eq!(key(0, Op::Insert).expect("a key").as_str(), "t.c.1:a%3Ab");
        assert_eq!(key(0, Op::Truncate).expect("a key").as_str(), "t.t.");
        let error = key(1, Op::Insert).expect_err("too long");
        assert_eq!(
            (error.kind(), error.reason()),
            (ErrorKind::Refused, Some(reason::KEY))
        );
    }
}
