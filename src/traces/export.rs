//! Spans on their way to a collector: a queue that is bounded, and a thread of its own that sends them. Where the collector is away, what does not
//! fit the queue is dropped; nothing else waits for it.

use std::time::Duration;

use lockstep_core::trace::TARGET;
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

use super::client::Client;
use super::of_the_process;
use super::settings::Settings;

/// How long the end of the process waits for the last spans to be sent.
const FLUSH: Duration = Duration::from_secs(3);

/// The export of traces, or the reason why there is none.
pub struct Traces {
    state: State,
}

enum State {
    NotAskedFor,
    Refused(String),
    Exporting {
        provider: SdkTracerProvider,
        endpoint: String,
        notes: Vec<String>,
    },
}

impl Traces {
    /// Of a process that runs a pipeline, or does not: only those export. Connects to nothing yet. TLS has its provider by then.
    pub fn start(runs_pipeline: bool) -> Self {
        let settings = match runs_pipeline {
            true => Settings::read(&of_the_process),
            false => Ok(None),
        };
        let state = match settings.and_then(|settings| settings.map(exporting).transpose()) {
            Ok(Some(exporting)) => exporting,
            Ok(None) => State::NotAskedFor,
            Err(problem) => State::Refused(problem),
        };
        Traces { state }
    }

    /// What takes spans of [`TARGET`], and no others; `None` where they go nowhere: then they cost nothing.
    pub fn layer<S>(&self) -> Option<impl Layer<S> + use<S>>
    where
        S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
    {
        let State::Exporting { provider, .. } = &self.state else {
            return None;
        };
        let exported = filter_fn(|metadata| metadata.target() == TARGET)
            .with_max_level_hint(LevelFilter::INFO);
        let layer = tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("lockstep"))
            // Where a span was made, and by which thread, says nothing about a pipeline.
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            // Spans are held, not entered.
            .with_tracked_inactivity(false)
            .with_context_activation(false);
        Some(layer.with_filter(exported))
    }

    /// Logs what is to be known about it.
    pub fn tell(&self) {
        match &self.state {
            State::NotAskedFor => {}
            State::Refused(problem) => {
                tracing::warn!(problem, "traces are asked for, and not exported");
            }
            State::Exporting {
                endpoint, notes, ..
            } => {
                for note in notes {
                    tracing::warn!("{note}");
                }
                tracing::info!(endpoint, "traces are exported");
            }
        }
    }

    /// Sends what is left, and waits for a few seconds at most. Blocks.
    pub fn finish(self) {
        if let State::Exporting { provider, .. } = self.state
            && provider.shutdown_with_timeout(FLUSH).is_err()
        {
            let waited = FLUSH.as_secs();
            tracing::warn!("the last traces were not exported within {waited} s");
        }
    }
}

fn exporting(settings: Settings) -> Result<State, String> {
    let client = Client::new(&settings)?;
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(client)
        .with_endpoint(settings.endpoint.as_str())
        .with_timeout(settings.timeout)
        .build()
        // It may tell the endpoint, and with that a secret.
        .map_err(|_| format!("{} cannot be used", settings.shown()))?;
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource())
        .build();
    Ok(State::Exporting {
        provider,
        endpoint: settings.shown(),
        notes: settings.notes,
    })
}

/// Which process it is: as lockstep knows it, but for what the environment says.
fn resource() -> Resource {
    let own = [
        KeyValue::new("service.name", "lockstep"),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", crate::run::holder()),
    ];
    let resource = Resource::builder_empty()
        .with_attributes(own)
        .with_detectors(&[
            Box::new(TelemetryResourceDetector),
            Box::new(EnvResourceDetector::new()),
        ]);
    match of_the_process("OTEL_SERVICE_NAME").filter(|name| !name.is_empty()) {
        Some(name) => resource.with_service_name(name).build(),
        None => resource.build(),
    }
}
