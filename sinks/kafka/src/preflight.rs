//! What `lockstep check` finds out about a Kafka cluster, without changing it.

use std::sync::Arc;
use std::time::Duration;

use lockstep_core::check::Finding;
use lockstep_core::schema::{TableId, TableSchema};
use lockstep_core::sink::Trouble;
use lockstep_core::{Error, ErrorKind};
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::Producer;

use crate::client;
use crate::config::KafkaConfig;
use crate::error::Failure;
use crate::open::{self, transactional_id};
use crate::outlet::{Outlet, Shared};
use crate::progress;
use crate::registrar;
use crate::topics::{self, Topics, Wanted};

/// Runs all checks; blocking calls are kept off the runtime.
pub(crate) async fn run(config: KafkaConfig, pipeline: String, name: String) -> Vec<Finding> {
    let checks = tokio::task::spawn_blocking(move || check(&config, &pipeline, &name));
    checks.await.unwrap_or_else(|error| {
        vec![Finding::fail(
            "kafka",
            error.to_string(),
            "report this; it is a bug of lockstep",
        )]
    })
}

fn check(config: &KafkaConfig, pipeline: &str, name: &str) -> Vec<Finding> {
    let outlet = match connect(config, None) {
        Ok(outlet) => outlet,
        Err(error) => return vec![failed("brokers", &error)],
    };
    let mut findings = vec![brokers(&outlet)];
    findings.extend(registrar::reach(config));
    findings.push(record_size(config, &outlet));
    findings.push(creatable(config));
    if config.exactly_once {
        findings.push(progress_topic(config, &outlet));
        findings.push(coordinator(config, pipeline, name));
    }
    findings
}

fn connect(config: &KafkaConfig, id: Option<&str>) -> Result<Outlet, Error> {
    config.check()?;
    let producer = open::producer(config, id, Trouble::default())?;
    let outlet = Outlet {
        producer,
        shared: Arc::new(Shared::new(1)),
    };
    open::reach(&outlet, &config.brokers)?;
    Ok(outlet)
}

fn failed(subject: &str, error: &Error) -> Finding {
    let remedy = error.remedy_text().unwrap_or("see the broker's log");
    Finding::fail(subject, Failure::from(error).message, remedy)
}

fn brokers(outlet: &Outlet) -> Finding {
    // Of one topic that need not exist: with none named, the answer would list all there are.
    match outlet
        .producer
        .client()
        .fetch_metadata(Some("lockstep.check"), topics::METADATA_TIMEOUT)
    {
        Ok(metadata) => Finding::pass(
            "brokers",
            match metadata.brokers().len() {
                1 => "1 broker answers".to_owned(),
                count => format!("{count} brokers, {} answers", metadata.orig_broker_name()),
            },
        ),
        Err(error) => failed(
            "brokers",
            &Failure::of("asking for the brokers", &error).error(),
        ),
    }
}

fn record_size(config: &KafkaConfig, outlet: &Outlet) -> Finding {
    let subject = "largest record";
    let ours = config
        .properties
        .0
        .get("message.max.bytes")
        .map_or("1000000", String::as_str);
    match broker_limit(config, outlet) {
        Ok(Some(theirs)) => {
            let detail = format!(
                "brokers take {theirs} bytes (`message.max.bytes`), this sink sends up to {ours}"
            );
            match (ours.parse::<u64>(), theirs.parse::<u64>()) {
                (Ok(ours), Ok(theirs)) if ours > theirs => Finding::warn(
                    subject,
                    detail,
                    "raise `message.max.bytes` of the brokers or `max.message.bytes` of the topics, or lower `\"message.max.bytes\"` in `properties`",
                ),
                _ => Finding::pass(subject, detail),
            }
        }
        Ok(None) => Finding::pass(subject, format!("this sink sends up to {ours} bytes")),
        Err(failure) => Finding::warn(
            subject,
            format!(
                "this sink sends up to {ours} bytes; what the brokers take cannot be read: {}",
                failure.message
            ),
            "allow DescribeConfigs on the cluster to see it",
        ),
    }
}

fn broker_limit(config: &KafkaConfig, outlet: &Outlet) -> Result<Option<String>, Failure> {
    let what = "describing a broker";
    let metadata = outlet
        .producer
        .client()
        .fetch_metadata(Some("lockstep.check"), topics::METADATA_TIMEOUT)
        .map_err(|error| Failure::of(what, &error))?;
    let Some(broker) = metadata.brokers().first().map(|broker| broker.id()) else {
        return Ok(None);
    };
    let admin: AdminClient<DefaultClientContext> = client::admin(config)
        .create()
        .map_err(|error| Failure::from(&client::creation(&error)))?;
    let options = AdminOptions::new().request_timeout(Some(Duration::from_secs(10)));
    let resources =
        topics::wait(admin.describe_configs(&[ResourceSpecifier::Broker(broker)], &options))?
            .map_err(|error| Failure::of(what, &error))?;
    let Some(resource) = resources.into_iter().next() else {
        return Ok(None);
    };
    let resource = resource.map_err(|code| Failure::of_code(what, code, &code.to_string()))?;
    Ok(resource
        .get("message.max.bytes")
        .and_then(|entry| entry.value.clone()))
}

/// Asks for a topic named as tables' topics are, with the flag that only validates.
fn creatable(config: &KafkaConfig) -> Finding {
    let subject = "create topics";
    let table = TableSchema {
        id: TableId::new("schema", "table"),
        ..TableSchema::message("source".into())
    };
    let name = match Topics::new(config).and_then(|mut topics| topics.name(&table)) {
        Ok(name) => name,
        Err(error) => return failed(subject, &error),
    };
    let wanted = Wanted {
        name: &name,
        partitions: config.partitions,
        config: &[],
    };
    match topics::create(config, &[wanted], true) {
        Ok(()) => Finding::pass(subject, "missing topics can be created"),
        Err(failure) if failure.kind == ErrorKind::Permission => Finding::warn(
            subject,
            format!("missing topics cannot be created: {}", failure.message),
            "create the topics of all tables by hand (kafka-topics --create), or allow Create on them",
        ),
        Err(failure) => failed(subject, &failure.error()),
    }
}

fn progress_topic(config: &KafkaConfig, outlet: &Outlet) -> Finding {
    let topic = &config.progress_topic;
    let subject = format!("topic {topic}");
    match topics::partitions(outlet.producer.client(), topic) {
        Ok(Some(_)) => Finding::pass(subject, "exists"),
        Ok(None) => {
            let wanted = Wanted {
                name: topic,
                partitions: Some(1),
                config: progress::TOPIC_CONFIG,
            };
            match topics::create(config, &[wanted], true) {
                Ok(()) => Finding::pass(subject, "does not exist yet and can be created"),
                Err(failure) => Finding::fail(
                    subject,
                    failure.message,
                    format!(
                        "kafka-topics --bootstrap-server {} --create --topic {topic} --partitions 1 --config cleanup.policy=compact --config segment.bytes=16777216",
                        config.brokers
                    ),
                ),
            }
        }
        Err(failure) => failed(&subject, &failure.error()),
    }
}

/// Asks the transaction coordinator for a producer id, under a transactional id beside the sink's own: the sink's would
/// fence a running pipeline.
fn coordinator(config: &KafkaConfig, pipeline: &str, name: &str) -> Finding {
    let subject = "transactions";
    let id = transactional_id(pipeline, name);
    let probe = format!("{id}.check");
    let answer =
        connect(config, Some(&probe)).and_then(|outlet| open::init_transactions(&outlet, &probe));
    match answer {
        Ok(()) => Finding::pass(
            subject,
            format!("the coordinator answers; transactional id `{id}`"),
        ),
        Err(error) if error.kind() == ErrorKind::Permission => Finding::fail(
            subject,
            Failure::from(&error).message,
            format!(
                "kafka-acls --bootstrap-server {} --add --allow-principal … --transactional-id {id} --resource-pattern-type prefixed --operation Write --operation Describe; or set `exactly_once = false`",
                config.brokers
            ),
        ),
        Err(error) => failed(subject, &error),
    }
}
