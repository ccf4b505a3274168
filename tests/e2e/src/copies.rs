//! Compares the state sinks of a pipeline with its sources, row by row, by the product's own comparer.

use std::sync::Arc;

use lockstep::demo::compare::{Compared, Copy, Rules, compare};
use lockstep_core::config::Secret;
use lockstep_core::sink::{SinkContext, Trouble};
use lockstep_postgres::{PostgresConfig, describe};

use crate::Setup;

/// One source of the pipeline under test.
#[derive(Clone, Debug)]
pub struct Compare<'a> {
    /// Its name in the pipeline file.
    pub source: &'a str,
    /// The URL of its database.
    pub url: &'a str,
    /// Its publication.
    pub publication: &'a str,
    /// Its tables, with their schema.
    pub tables: Vec<String>,
    /// What counts as equal.
    pub rules: Rules,
}

impl Compare<'_> {
    /// Compares all tables with every sink that can be read back.
    ///
    /// # Panics
    /// When it cannot be done.
    pub async fn run(&self, setup: &Setup) -> Vec<Compared> {
        let config = serde_json::json!({
            "url": self.url,
            "publication": self.publication,
            "tables": self.tables,
        });
        let config: PostgresConfig = serde_json::from_value(config).expect("a source");
        let (source, tables) = describe(&config, self.source)
            .await
            .expect("the source can be described");
        let pipeline = lockstep_pipelines::file::load(&setup.file(), &lockstep::builtin());
        let pipeline = pipeline.expect("the pipeline file");
        let mut copies = Vec::new();
        for (plan, sink) in std::iter::zip(&pipeline.plan.sinks, &pipeline.sinks) {
            // A topic has rows as they were when they were written, without what `rules` say of columns that came later.
            if !sink.keeps_rows() {
                continue;
            }
            let context = SinkContext {
                pipeline: Arc::clone(&pipeline.name),
                name: Arc::clone(&plan.name),
                state: pipeline.state.join("sinks").join(&*plan.name),
                sources: vec![Arc::clone(&source)],
                tables: tables.clone(),
                trouble: Trouble::default(),
                token: None,
            };
            let inspect = sink
                .inspect(context)
                .await
                .unwrap_or_else(|error| panic!("sinks.{}: {error}", plan.name));
            copies.extend(inspect.map(|inspect| Copy {
                name: plan.name.to_string(),
                inspect,
            }));
        }
        assert!(!copies.is_empty(), "no sink can be read back");
        let url = Secret::new(self.url);
        compare(&url, &source, &tables, &self.rules, &mut copies)
            .await
            .expect("the copies can be compared")
    }

    /// Compares, and panics with all differences.
    ///
    /// # Panics
    /// When there are any.
    pub async fn assert_equal(&self, setup: &Setup) -> Vec<Compared> {
        let all = self.run(setup).await;
        let unequal: Vec<&Compared> = all.iter().filter(|one| !one.is_equal()).collect();
        assert!(unequal.is_empty(), "{unequal:#?}");
        all
    }
}
