//! What records hold, as JSON: what is in Avro is read by the schema that the registry has for it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use lockstep_core::Result;
use lockstep_encode::avro::read::{Reader, schema_id};
use lockstep_encode::envelope::Format;
use lockstep_registry::Registry;
use tokio::runtime::Handle;

use super::state::lock;
use crate::config::{Encoding, KafkaConfig};
use crate::error::Failure;

/// See the module's page.
#[derive(Clone)]
pub(super) enum Lens {
    Json,
    Avro(Arc<Mutex<Readers>>),
}

pub(super) struct Readers {
    format: Format,
    registry: Registry,
    runtime: Handle,
    /// By the id of the schema; `None` for what is not written by lockstep.
    known: HashMap<u32, Option<Arc<Reader>>>,
}

impl Lens {
    /// # Errors
    /// When the section of the registry cannot be used.
    pub(super) fn new(config: &KafkaConfig, runtime: Handle) -> Result<Self> {
        let (Encoding::Avro, Some(registry)) = (config.encoding, &config.registry) else {
            return Ok(Lens::Json);
        };
        Ok(Lens::Avro(Arc::new(Mutex::new(Readers {
            format: config.format,
            registry: Registry::new(registry)?,
            runtime,
            known: HashMap::new(),
        }))))
    }

    /// A key or a value as JSON; as it is where it cannot be read, which then is no record of lockstep's. Blocks while a schema
    /// is asked for.
    ///
    /// # Errors
    /// When the registry is away.
    pub(super) fn json<'a>(&self, bytes: &'a [u8]) -> Result<Cow<'a, [u8]>, Failure> {
        let (Lens::Avro(readers), Some(id)) = (self, schema_id(bytes)) else {
            return Ok(Cow::Borrowed(bytes));
        };
        let reader = lock(readers).reader(id)?;
        let json = reader.and_then(|reader| reader.json(bytes));
        Ok(json.map_or(Cow::Borrowed(bytes), Cow::Owned))
    }

    /// [`Lens::json`] of what may not be there.
    ///
    /// # Errors
    /// When the registry is away.
    pub(super) fn json_of<'a>(
        &self,
        bytes: Option<&'a [u8]>,
    ) -> Result<Option<Cow<'a, [u8]>>, Failure> {
        bytes.map(|bytes| self.json(bytes)).transpose()
    }
}

impl Readers {
    fn reader(&mut self, id: u32) -> Result<Option<Arc<Reader>>, Failure> {
        if let Some(known) = self.known.get(&id) {
            return Ok(known.clone());
        }
        let schema = self.runtime.block_on(self.registry.schema(id));
        let schema = schema.map_err(|error| Failure::from(&error))?;
        let reader = schema.and_then(|schema| Reader::new(self.format, &schema));
        if reader.is_none() {
            tracing::warn!(
                id,
                "records of this schema are not read: it is none that lockstep writes"
            );
        }
        let reader = reader.map(Arc::new);
        self.known.insert(id, reader.clone());
        Ok(reader)
    }
}
