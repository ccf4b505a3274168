//! Schemas at their registry: they are there before the first record that needs them.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use lockstep_core::check::Finding;
use lockstep_core::schema::TableSchema;
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_encode::avro::{Described, Ids, Schemas};
use lockstep_registry::{Registry, Role, Verdict};
use tokio::runtime::Handle;

use crate::config::{Encoding, KafkaConfig};
use crate::outlet::{Shared, dropped};
use crate::topics::Topics;

/// How often a wait for the registry looks whether the sink is still wanted.
const LOOK: Duration = Duration::from_millis(100);

/// Registers schemas from the sink's thread.
pub(crate) struct Registrar {
    registry: Registry,
    runtime: Handle,
}

impl Registrar {
    /// `None` where records have no schemas.
    ///
    /// # Errors
    /// When the section cannot be used.
    pub(crate) fn new(config: &KafkaConfig, runtime: Handle) -> Result<Option<Self>> {
        match (config.encoding, &config.registry) {
            (Encoding::Avro, Some(registry)) => Ok(Some(Registrar {
                registry: Registry::new(registry)?,
                runtime,
            })),
            _ => Ok(None),
        }
    }

    /// What the registry calls the schemas of a table in a topic. Blocks until it answers, or until the sink is gone.
    ///
    /// # Errors
    /// When the registry is away, or refuses one.
    pub(crate) fn register(
        &mut self,
        topic: &str,
        schemas: &Schemas,
        shared: &Shared,
    ) -> Result<Ids> {
        let registry = &mut self.registry;
        let subjects = registry.subjects();
        self.runtime.block_on(async {
            let mut asked = pin!(async {
                let mut ids = Ids::default();
                if let Some(key) = &schemas.key {
                    let subject = subjects.of(topic, Role::Key, &key.name);
                    ids.key = registry.id(&subject, &key.text).await?;
                }
                let subject = subjects.of(topic, Role::Value, &schemas.value.name);
                ids.value = registry.id(&subject, &schemas.value.text).await?;
                Ok::<Ids, Error>(ids)
            });
            loop {
                match tokio::time::timeout(LOOK, asked.as_mut()).await {
                    Ok(answered) => return answered,
                    Err(_) if shared.is_dropped() => return Err(dropped()),
                    Err(_) => {}
                }
            }
        })
    }
}

/// Whether the registry answers.
pub(crate) fn reach(config: &KafkaConfig) -> Option<Finding> {
    let subject = "schema registry";
    let runtime = Handle::current();
    let registrar = match Registrar::new(config, runtime) {
        Ok(registrar) => registrar?,
        Err(error) => return Some(failed(subject, &error)),
    };
    let counted = registrar.registry.subject_count();
    Some(match registrar.runtime.block_on(counted) {
        Ok(1) => Finding::pass(subject, "it answers, and has 1 subject"),
        Ok(count) => Finding::pass(subject, format!("it answers, and has {count} subjects")),
        Err(error) => failed(subject, &error),
    })
}

/// What the registry would say to the schemas of tables as they are now.
pub(crate) async fn judge(config: &KafkaConfig, tables: &[Arc<TableSchema>]) -> Vec<Finding> {
    let (Ok(Some(registrar)), Ok(mut topics)) = (
        Registrar::new(config, Handle::current()),
        Topics::new(config),
    ) else {
        return Vec::new();
    };
    let format = config.format.with_decimals(config.decimals);
    let mut findings = Vec::new();
    for table in tables {
        // What is wrong with names is told elsewhere.
        let (Ok(Some(schemas)), Ok(topic)) = (Schemas::of(format, table), topics.name(table))
        else {
            continue;
        };
        let key = schemas.key.iter().map(|key| (Role::Key, key));
        for (role, described) in key.chain([(Role::Value, &schemas.value)]) {
            match finding(&registrar.registry, &topic, role, described).await {
                Ok(finding) => findings.push(finding),
                // Which the check of the registry itself tells.
                Err(error) if error.kind() == ErrorKind::Unavailable => return findings,
                Err(error) => findings.push(failed(&format!("table {}", table.origin), &error)),
            }
        }
    }
    findings
}

async fn finding(
    registry: &Registry,
    topic: &str,
    role: Role,
    described: &Described,
) -> Result<Finding> {
    let name = registry.subjects().of(topic, role, &described.name);
    let subject = format!("subject {name}");
    Ok(match registry.judge(&name, &described.text).await? {
        Verdict::Known => Finding::pass(subject, "has the schema"),
        Verdict::Accepted => Finding::pass(subject, "would take the schema"),
        Verdict::Refused(words) => Finding::fail(
            subject,
            format!("would not take the schema: {words}"),
            format!(
                "change the table, or the compatibility of the subject (PUT /config/{name}); or register the schema by hand: {}",
                described.text
            ),
        ),
    })
}

fn failed(subject: &str, error: &Error) -> Finding {
    let remedy = error.remedy_text().unwrap_or("see the registry's log");
    Finding::fail(subject, crate::error::Failure::from(error).message, remedy)
}
