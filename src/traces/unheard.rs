//! A build that exports no traces.

use tracing_subscriber::layer::Identity;

use super::{asked_for, of_the_process};

/// Nothing but the word of who asked for traces.
pub struct Traces {
    /// The variable that says where they were to go.
    asked_by: Option<&'static str>,
}

impl Traces {
    /// Of a process that runs a pipeline, or does not.
    pub fn start(runs_pipeline: bool) -> Self {
        let asked = runs_pipeline.then(|| asked_for(&of_the_process)).flatten();
        Traces {
            asked_by: asked.map(|(variable, _)| variable),
        }
    }

    /// What takes spans: nothing does.
    pub fn layer(&self) -> Option<Identity> {
        None
    }

    /// Logs what is to be known about it.
    pub fn tell(&self) {
        if let Some(variable) = self.asked_by {
            tracing::warn!(
                variable,
                "traces are asked for, and this build exports none; one that does comes of `cargo build --release -p lockstep --features otel`"
            );
        }
    }

    /// Exports what is left: nothing is.
    pub fn finish(self) {}
}
