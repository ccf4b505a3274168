//! `lockstep status`: a running pipeline's own words, once or again and again.

mod table;
mod watch;

use std::process::ExitCode;
use std::time::Duration;

use crate::cli::Format;
use crate::client::Client;
use crate::{Outcome, output};

pub use self::watch::watch;

/// Between two looks of `--watch`, when it is not said.
pub const DEFAULT_INTERVAL: &str = "2s";
/// The shortest time between two looks: an endpoint that is asked more often has no more to say.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);

/// A time between two looks.
///
/// # Errors
/// What is no time, or too short.
pub fn interval(text: &str) -> Result<Duration, String> {
    let every = lockstep_core::config::Duration::parse(text)?.0;
    match every < SHORTEST_INTERVAL {
        true => Err(format!("{text} is too short; use 100ms or more")),
        false => Ok(every),
    }
}

/// Asks and prints. Exit code 0 when the pipeline is ready, or the process ready to take over; 1 when it is not.
///
/// # Errors
/// When it cannot be asked.
pub async fn status(endpoint: &Client<'_>, format: Format) -> Outcome {
    let status = endpoint.status().await?;
    match format {
        Format::Json => output::print_json(&status),
        Format::Table => output::print(&table::table(&status, None, output::paint())),
    }
    let is_ready = status["ready"] == true || status["lease"]["role"] == "standby";
    Ok(match is_ready {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_a_time_that_is_not_too_short() {
        assert_eq!(interval(DEFAULT_INTERVAL), Ok(Duration::from_secs(2)));
        assert!(interval("10ms").is_err() && interval("soon").is_err());
    }
}
