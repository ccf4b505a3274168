//! Which topic a table goes to, and that it exists.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lockstep_core::schema::TableSchema;
use lockstep_core::template::Template;
use lockstep_core::{Error, ErrorKind, Result};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::{Client, ClientContext, DefaultClientContext};
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::types::RDKafkaRespErr;

use crate::client;
use crate::config::KafkaConfig;
use crate::error::Failure;

/// How long a metadata request may take.
pub(crate) const METADATA_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a created topic may take to have leaders.
const APPEAR_TIMEOUT: Duration = Duration::from_secs(30);
/// Kafka's own limit.
const MAX_LENGTH: usize = 249;

/// Replaces the characters that a topic name cannot have, one for one, by `_`.
pub(crate) fn sanitize(name: &str) -> String {
    name.chars()
        .map(|c| match c {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '_' | '-' => c,
            _ => '_',
        })
        .collect()
}

/// A topic that is there.
#[derive(Clone, Debug)]
pub(crate) struct Topic {
    pub(crate) name: Arc<str>,
}

/// A topic to be made.
#[derive(Clone, Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) name: &'a str,
    pub(crate) partitions: Option<u16>,
    pub(crate) config: &'a [(&'a str, &'a str)],
}

/// Names by table, rendered and checked once per schema version.
pub(crate) struct Topics {
    table: Template,
    message: Template,
    /// By address of the schema, which is held so that the address stays its own.
    known: HashMap<usize, (Arc<TableSchema>, Topic)>,
    /// The name before characters were replaced, to notice two tables that would share a topic by accident.
    raw: HashMap<Arc<str>, String>,
    /// Where transactions go, and no table.
    taken: Option<String>,
}

impl Topics {
    pub(crate) fn new(config: &KafkaConfig) -> Result<Self> {
        Ok(Topics {
            table: config.topic_template()?,
            message: config.message_template()?,
            known: HashMap::new(),
            raw: HashMap::new(),
            taken: config.transactions.as_ref().map(|to| to.topic.clone()),
        })
    }

    /// The topic of a schema that was seen before.
    pub(crate) fn known(&self, schema: &Arc<TableSchema>) -> Option<&Topic> {
        self.known
            .get(&(Arc::as_ptr(schema) as usize))
            .map(|(_, topic)| topic)
    }

    /// Remembers that the topic of `schema` is there.
    pub(crate) fn learn(&mut self, schema: &Arc<TableSchema>, name: Arc<str>) {
        // Schemas change rarely, and an entry is small; but a source that alters a table all day must not fill memory.
        if self.known.len() >= 4096 {
            self.known.clear();
        }
        let entry = (Arc::clone(schema), Topic { name });
        self.known.insert(Arc::as_ptr(schema) as usize, entry);
    }

    /// The topic's name.
    ///
    /// # Errors
    /// Of kind `Config`, when it is no topic name, or when another table has it only because characters were replaced.
    pub(crate) fn name(&mut self, schema: &TableSchema) -> Result<Arc<str>> {
        let (field, template) = match schema.id.name.is_empty() {
            true => ("message_topic", &self.message),
            false => ("topic", &self.table),
        };
        // An event says itself where it goes.
        let raw = match schema.destination() {
            Some(destination) => destination.to_owned(),
            None => template.render(schema, |_| None),
        };
        let name = sanitize(&raw);
        if name.is_empty() || name == "." || name == ".." || name.len() > MAX_LENGTH {
            return Err(Error::new(
                ErrorKind::Config,
                format!("`{raw}`, made for table {}, cannot be a topic: it has to have 1 to {MAX_LENGTH} characters and not be `.` or `..`", schema.id),
            )
            .remedy("change the template")
            .at(field));
        }
        if self.taken.as_ref() == Some(&name) {
            return Err(Error::new(
                ErrorKind::Config,
                format!(
                    "table {} would go to `{name}`, where transactions go",
                    schema.id
                ),
            )
            .remedy("name another topic in `transactions`")
            .at(field));
        }
        let name: Arc<str> = name.into();
        let first = self
            .raw
            .entry(Arc::clone(&name))
            .or_insert_with(|| raw.clone());
        if *first != raw {
            return Err(Error::new(
                ErrorKind::Config,
                format!(
                    "`{first}` and `{raw}` would both be topic `{name}`, and their keys would mix"
                ),
            )
            .remedy("rename one of the tables with a `route` transform, or change the template")
            .at(field));
        }
        Ok(name)
    }
}

/// How many partitions a topic has; `None` when there is no such topic. Does not create it.
pub(crate) fn partitions<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
) -> Result<Option<i32>, Failure> {
    let what = || format!("reading the metadata of topic `{topic}`");
    let metadata = client
        .fetch_metadata(Some(topic), METADATA_TIMEOUT)
        .map_err(|error| Failure::of(what(), &error))?;
    let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else {
        return Ok(None);
    };
    match found.error() {
        None => {}
        Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART) => return Ok(None),
        // Elections pass.
        Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE) => {}
        Some(error) => {
            let code = Code::from(error);
            return Err(Failure::of_code(what(), code, &code.to_string()));
        }
    }
    let count = found.partitions().len();
    Ok((count > 0).then(|| i32::try_from(count).unwrap_or(i32::MAX)))
}

/// Creates the topics that are missing, and returns when all can be written to.
pub(crate) fn ensure<C: ClientContext>(
    client: &Client<C>,
    config: &KafkaConfig,
    wanted: &[Wanted<'_>],
) -> Result<(), Failure> {
    let mut missing = Vec::new();
    for topic in wanted {
        if partitions(client, topic.name)?.is_none() {
            missing.push(topic.clone());
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    create(config, &missing, false)?;
    let end = Instant::now() + APPEAR_TIMEOUT;
    for topic in &missing {
        tracing::info!(topic = topic.name, "topic created");
        let mut pause = Duration::from_millis(5);
        while partitions(client, topic.name)?.is_none() {
            if Instant::now() > end {
                return Err(Failure::new(
                    ErrorKind::Unavailable,
                    format!(
                        "topic `{}` was created and has no partitions after {APPEAR_TIMEOUT:?}",
                        topic.name
                    ),
                    "look at the controller's log",
                ));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(200));
        }
    }
    Ok(())
}

/// Asks the brokers to create topics; with `only_check` they say whether they would.
pub(crate) fn create(
    config: &KafkaConfig,
    topics: &[Wanted<'_>],
    only_check: bool,
) -> Result<(), Failure> {
    let new = topics.iter().map(|topic| {
        let partitions = topic.partitions.map_or(-1, i32::from);
        let replication = TopicReplication::Fixed(config.replication.map_or(-1, i32::from));
        let mut new = NewTopic::new(topic.name, partitions, replication);
        new.config = topic.config.to_vec();
        new
    });
    let new: Vec<_> = new.collect();
    let options = AdminOptions::new()
        .request_timeout(Some(Duration::from_secs(30)))
        .operation_timeout(Some(Duration::from_secs(20)))
        .validate_only(only_check);
    let admin: AdminClient<DefaultClientContext> = client::admin(config)
        .create()
        .map_err(|error| Failure::from(&client::creation(&error)))?;
    let results = wait(admin.create_topics(&new, &options))
        .and_then(|results| results.map_err(|error| Failure::of("creating topics", &error)))?;
    for result in results {
        match result {
            Ok(_) | Err((_, Code::TopicAlreadyExists)) => {}
            Err((name, code)) => return Err(not_created(config, &name, code)),
        }
    }
    Ok(())
}

fn not_created(config: &KafkaConfig, name: &str, code: Code) -> Failure {
    let failure = Failure::of_code(
        format!("topic `{name}` does not exist and cannot be created"),
        code,
        &code.to_string(),
    );
    let by_hand = format!(
        "create it by hand: kafka-topics --bootstrap-server {} --create --topic {name}; or allow Create on it",
        config.brokers
    );
    match failure.kind {
        ErrorKind::Permission => Failure {
            remedy: Some(by_hand),
            ..failure
        },
        _ if failure.remedy.is_none() => Failure {
            remedy: Some(by_hand),
            ..failure
        },
        _ => failure,
    }
}

/// Waits for an answer of the admin API, which comes from a thread of its own.
pub(crate) fn wait<F: Future>(future: F) -> Result<F::Output, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.map_err(|error| {
        Failure::new(
            ErrorKind::Storage,
            format!("no runtime for the admin API: {error}"),
            "free memory or threads",
        )
    })?;
    Ok(runtime.block_on(future))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_core::schema::{ReplicaIdentity, TableId};

    fn table(schema: &str, name: &str) -> TableSchema {
        TableSchema {
            id: TableId::new(schema, name),
            origin: TableId::new(schema, name),
            identity: ReplicaIdentity::Default,
            ..TableSchema::message("orders".into())
        }
    }

    fn topics(template: &str) -> Topics {
        let config = serde_json::json!({"brokers": "b", "topic": template});
        Topics::new(&serde_json::from_value(config).expect("config")).expect("templates")
    }

    #[test]
    fn names_are_rendered_and_cleaned() {
        let mut topics = topics("{source}.{schema}.{table}");
        assert_eq!(
            &*topics.name(&table("public", "items")).expect("name"),
            "orders.public.items"
        );
        assert_eq!(
            &*topics.name(&table("public", "größe €")).expect("name"),
            "orders.public.gr__e__"
        );
        assert_eq!(
            &*topics
                .name(&TableSchema::message("orders".into()))
                .expect("name"),
            "orders.message"
        );
    }

    #[test]
    fn an_accidental_collision_is_an_error_and_a_chosen_one_is_not() {
        let mut by_table = topics("{source}.{schema}.{table}");
        by_table.name(&table("public", "a b")).expect("first");
        let error = by_table
            .name(&table("public", "a_b"))
            .expect_err("collides");
        assert_eq!(error.kind(), ErrorKind::Config);
        let mut one = topics("{source}.all");
        assert_eq!(
            one.name(&table("public", "a b")).expect("a"),
            one.name(&table("public", "a_b")).expect("b")
        );
    }

    #[test]
    fn no_table_goes_where_transactions_go() {
        let config = serde_json::json!({
            "brokers": "b", "topic": "{table}", "transactions": {"topic": "gtx"},
        });
        let config = serde_json::from_value(config).expect("config");
        let mut topics = Topics::new(&config).expect("templates");
        assert!(topics.name(&table("public", "orders")).is_ok());
        let error = topics.name(&table("public", "gtx")).expect_err("taken");
        assert_eq!(error.kind(), ErrorKind::Config);
    }

    #[test]
    fn names_that_kafka_has_not_are_refused() {
        assert!(
            topics("{table}")
                .name(&table("public", &"x".repeat(250)))
                .is_err()
        );
        assert!(topics("{table}").name(&table("public", "..")).is_err());
    }
}
