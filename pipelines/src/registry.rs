//! The kinds of sources, transforms and sinks that a pipeline file may name.
//!
//! Authors write a typed factory with a real configuration struct; it is erased here, once, to a function that parses
//! a section and returns a [`SourceComponent`], [`TransformComponent`] or [`SinkComponent`].

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use lockstep_core::check::Finding;
use lockstep_core::query::Queries;
use lockstep_core::schema::TableSchema;
use lockstep_core::sink::{Inspect, Sink, SinkContext, SinkFactory};
use lockstep_core::source::{Source, SourceContext, SourceFactory};
use lockstep_core::transform::{Stitching, Transform, TransformContext, TransformFactory};
use lockstep_core::{Error, Result};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::file::{KeyPath, PathPart};

/// A source with its section parsed and checked.
#[async_trait]
pub trait SourceComponent: Send + Sync {
    /// See [`SourceFactory::open`].
    async fn open(&self, context: SourceContext) -> Result<Box<dyn Source>>;
    /// See [`SourceFactory::preflight`].
    async fn preflight(&self, pipeline: &str, name: &str, state: &Path) -> Vec<Finding>;
    /// See [`SourceFactory::tables`].
    async fn tables(&self, name: &str) -> Result<Option<Vec<Arc<TableSchema>>>>;
    /// See [`SourceFactory::queries`].
    fn queries(&self) -> Result<Option<Arc<dyn Queries>>>;
    /// See [`SourceFactory::tells_of_branches`].
    fn tells_of_branches(&self) -> bool;
}

/// A transform with its section parsed and checked.
#[async_trait]
pub trait TransformComponent: Send + Sync {
    /// See [`TransformFactory::open`]. May do file I/O.
    fn open(&self, context: TransformContext) -> Result<Box<dyn Transform>>;
    /// See [`TransformFactory::preflight`].
    async fn preflight(&self, pipeline: &str, name: &str) -> Vec<Finding>;
    /// See [`TransformFactory::stitches`].
    fn stitches(&self) -> Option<Stitching>;
    /// See [`TransformFactory::remembers_places`].
    fn remembers_places(&self) -> bool;
    /// See [`TransformFactory::keeps_here`].
    fn keeps_here(&self) -> bool;
}

/// A sink with its section parsed and checked.
#[async_trait]
pub trait SinkComponent: Send + Sync {
    /// See [`SinkFactory::open`].
    async fn open(&self, context: SinkContext) -> Result<Box<dyn Sink>>;
    /// See [`SinkFactory::preflight`].
    async fn preflight(&self, pipeline: &str, name: &str) -> Vec<Finding>;
    /// See [`SinkFactory::inspect`].
    async fn inspect(&self, context: SinkContext) -> Result<Option<Box<dyn Inspect>>>;
    /// See [`SinkFactory::suits`].
    fn suits(&self, table: &TableSchema) -> Vec<Finding>;
    /// See [`SinkFactory::accepts`].
    async fn accepts(&self, _tables: &[Arc<TableSchema>]) -> Vec<Finding> {
        Vec::new()
    }
    /// See [`SinkFactory::keeps_rows`].
    fn keeps_rows(&self) -> bool;

    /// See [`SinkFactory::resumes_exactly`].
    fn resumes_exactly(&self) -> bool;

    /// See [`SinkFactory::is_exact`].
    fn is_exact(&self) -> bool;

    /// See [`SinkFactory::keeps_here`].
    fn keeps_here(&self) -> bool;
}

/// Why a section was not accepted.
#[derive(Debug)]
pub enum SectionError {
    /// The section does not have the shape of the configuration; `path` is relative to the section.
    Shape {
        /// Where in the section.
        path: KeyPath,
        /// What serde said.
        message: String,
    },
    /// The factory's own check refused it.
    Refused(Error),
}

type Parse<C> = fn(&Value) -> Result<Arc<C>, SectionError>;
type Describe = fn(&mut SchemaGenerator) -> Schema;

/// One kind.
pub struct Kind<C: ?Sized> {
    parse: Parse<C>,
    describe: Describe,
}

impl<C: ?Sized> Kind<C> {
    /// Parses and checks a section from which `type` and `inputs` have been taken. No I/O.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn parse(&self, section: &Value) -> Result<Arc<C>, SectionError> {
        (self.parse)(section)
    }

    /// The JSON Schema of the section, without `type` and `inputs`.
    pub fn schema(&self, generator: &mut SchemaGenerator) -> Schema {
        (self.describe)(generator)
    }
}

/// The kinds of one stage, by `type`.
pub type Kinds<C> = BTreeMap<&'static str, Kind<C>>;

/// The kinds there are. A third party adds its own in its `main`.
#[derive(Default)]
pub struct Registry {
    sources: Kinds<dyn SourceComponent>,
    transforms: Kinds<dyn TransformComponent>,
    sinks: Kinds<dyn SinkComponent>,
}

impl Registry {
    /// No kinds yet.
    #[must_use]
    pub fn new() -> Self {
        Registry::default()
    }

    /// Adds a kind of source; a later one of the same name replaces it.
    #[must_use]
    pub fn with_source<F: SourceFactory>(mut self) -> Self {
        let kind: Kind<dyn SourceComponent> = Kind {
            parse: |section| {
                let config = parse::<F::Config>(section)?;
                F::validate(&config).map_err(SectionError::Refused)?;
                Ok(Arc::new(TypedSource::<F>(config)))
            },
            describe: |generator| F::Config::json_schema(generator),
        };
        self.sources.insert(F::KIND, kind);
        self
    }

    /// Adds a kind of transform; a later one of the same name replaces it.
    #[must_use]
    pub fn with_transform<F: TransformFactory>(mut self) -> Self {
        let kind: Kind<dyn TransformComponent> = Kind {
            parse: |section| {
                let config = parse::<F::Config>(section)?;
                F::validate(&config).map_err(SectionError::Refused)?;
                Ok(Arc::new(TypedTransform::<F>(config)))
            },
            describe: |generator| F::Config::json_schema(generator),
        };
        self.transforms.insert(F::KIND, kind);
        self
    }

    /// Adds a kind of sink; a later one of the same name replaces it.
    #[must_use]
    pub fn with_sink<F: SinkFactory>(mut self) -> Self {
        let kind: Kind<dyn SinkComponent> = Kind {
            parse: |section| {
                let config = parse::<F::Config>(section)?;
                F::validate(&config).map_err(SectionError::Refused)?;
                Ok(Arc::new(TypedSink::<F>(config)))
            },
            describe: |generator| F::Config::json_schema(generator),
        };
        self.sinks.insert(F::KIND, kind);
        self
    }

    /// The kinds of sources.
    #[must_use]
    pub fn sources(&self) -> &Kinds<dyn SourceComponent> {
        &self.sources
    }

    /// The kinds of transforms.
    #[must_use]
    pub fn transforms(&self) -> &Kinds<dyn TransformComponent> {
        &self.transforms
    }

    /// The kinds of sinks.
    #[must_use]
    pub fn sinks(&self) -> &Kinds<dyn SinkComponent> {
        &self.sinks
    }
}

fn parse<C: DeserializeOwned>(section: &Value) -> Result<C, SectionError> {
    serde_path_to_error::deserialize(section).map_err(|error| SectionError::Shape {
        path: error.path().iter().filter_map(path_part).collect(),
        message: error.inner().to_string(),
    })
}

/// A segment of serde's path; the variant of an enum has no place of its own in the file.
pub(crate) fn path_part(segment: &serde_path_to_error::Segment) -> Option<PathPart> {
    match segment {
        serde_path_to_error::Segment::Seq { index } => Some(PathPart::Index(*index)),
        serde_path_to_error::Segment::Map { key } => Some(PathPart::Key(key.clone())),
        serde_path_to_error::Segment::Enum { .. } | serde_path_to_error::Segment::Unknown => None,
    }
}

struct TypedSource<F: SourceFactory>(F::Config);

#[async_trait]
impl<F: SourceFactory> SourceComponent for TypedSource<F> {
    async fn open(&self, context: SourceContext) -> Result<Box<dyn Source>> {
        F::open(&self.0, context).await
    }

    async fn preflight(&self, pipeline: &str, name: &str, state: &Path) -> Vec<Finding> {
        F::preflight(&self.0, pipeline, name, state).await
    }

    async fn tables(&self, name: &str) -> Result<Option<Vec<Arc<TableSchema>>>> {
        F::tables(&self.0, name).await
    }

    fn queries(&self) -> Result<Option<Arc<dyn Queries>>> {
        F::queries(&self.0)
    }

    fn tells_of_branches(&self) -> bool {
        F::tells_of_branches(&self.0)
    }
}

struct TypedTransform<F: TransformFactory>(F::Config);

#[async_trait]
impl<F: TransformFactory> TransformComponent for TypedTransform<F> {
    fn open(&self, context: TransformContext) -> Result<Box<dyn Transform>> {
        F::open(&self.0, context)
    }

    async fn preflight(&self, pipeline: &str, name: &str) -> Vec<Finding> {
        F::preflight(&self.0, pipeline, name).await
    }

    fn stitches(&self) -> Option<Stitching> {
        F::stitches(&self.0)
    }

    fn remembers_places(&self) -> bool {
        F::remembers_places()
    }

    fn keeps_here(&self) -> bool {
        F::keeps_here(&self.0)
    }
}

struct TypedSink<F: SinkFactory>(F::Config);

#[async_trait]
impl<F: SinkFactory> SinkComponent for TypedSink<F> {
    async fn open(&self, context: SinkContext) -> Result<Box<dyn Sink>> {
        F::open(&self.0, context).await
    }

    async fn preflight(&self, pipeline: &str, name: &str) -> Vec<Finding> {
        F::preflight(&self.0, pipeline, name).await
    }

    async fn inspect(&self, context: SinkContext) -> Result<Option<Box<dyn Inspect>>> {
        F::inspect(&self.0, context).await
    }

    fn suits(&self, table: &TableSchema) -> Vec<Finding> {
        F::suits(&self.0, table)
    }

    async fn accepts(&self, tables: &[Arc<TableSchema>]) -> Vec<Finding> {
        F::accepts(&self.0, tables).await
    }

    fn keeps_rows(&self) -> bool {
        F::keeps_rows()
    }

    fn resumes_exactly(&self) -> bool {
        F::resumes_exactly()
    }

    fn is_exact(&self) -> bool {
        F::is_exact(&self.0)
    }

    fn keeps_here(&self) -> bool {
        F::keeps_here()
    }
}
