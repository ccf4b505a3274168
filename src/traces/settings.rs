//! What the environment says about the export of traces. What is not here the SDK reads itself: headers, sampler, limits, resource.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;

use super::{ENDPOINT, Variables, asked_for};

/// How long a request may take, where nothing else is said: OpenTelemetry's own default.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// See the module's page.
#[derive(Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where spans are sent.
    pub endpoint: Url,
    /// Of one batch of spans, with all tries.
    pub timeout: Duration,
    /// The only authorities that are trusted, in PEM; those of the system where it is not given.
    pub authorities: Option<PathBuf>,
    /// What is asked for and cannot be had, and does not matter much.
    pub notes: Vec<String>,
}

impl Settings {
    /// `None` where no traces are asked for.
    ///
    /// # Errors
    /// Why none can be exported. It names variables, and no values: there may be secrets in them.
    pub fn read(variables: Variables<'_>) -> Result<Option<Self>, String> {
        let Some((variable, endpoint)) = asked_for(variables) else {
            return Ok(None);
        };
        // For traces, or else for all.
        let either = |name: &str| {
            let of = |prefix: &str| variables(&format!("{prefix}{name}"));
            let value = of("OTEL_EXPORTER_OTLP_TRACES_").or_else(|| of("OTEL_EXPORTER_OTLP_"));
            value.filter(|value| !value.is_empty())
        };
        match either("PROTOCOL").as_deref() {
            None | Some("http/protobuf") => {}
            Some(other) => {
                return Err(format!(
                    "OTEL_EXPORTER_OTLP_PROTOCOL asks for {other}, and only http/protobuf is spoken; its usual port is 4318"
                ));
            }
        }
        let mut notes = Vec::new();
        if let Some(compression) = either("COMPRESSION").filter(|value| value != "none") {
            notes.push(format!(
                "OTEL_EXPORTER_OTLP_COMPRESSION asks for {compression}; traces are sent as they are"
            ));
        }
        let timeout = match either("TIMEOUT").map(|millis| millis.parse()) {
            None => DEFAULT_TIMEOUT,
            Some(Ok(millis)) => Duration::from_millis(millis),
            Some(Err(_)) => {
                return Err("OTEL_EXPORTER_OTLP_TIMEOUT is no number of milliseconds".to_owned());
            }
        };
        Ok(Some(Settings {
            endpoint: parsed(variable, &endpoint)?,
            timeout,
            authorities: either("CERTIFICATE").map(PathBuf::from),
            notes,
        }))
    }

    /// The endpoint as it may be logged: without what may be a secret.
    pub fn shown(&self) -> String {
        let url = &self.endpoint;
        format!("{}{}", url.origin().ascii_serialization(), url.path())
    }
}

fn parsed(variable: &str, endpoint: &str) -> Result<Url, String> {
    let below = match variable == ENDPOINT {
        true => "/v1/traces",
        false => "",
    };
    let whole = match below.is_empty() {
        true => endpoint.to_owned(),
        false => format!("{}{below}", endpoint.trim_end_matches('/')),
    };
    match Url::parse(&whole) {
        Ok(url) if matches!(url.scheme(), "http" | "https") => Ok(url),
        _ => Err(format!(
            "{variable} is not the URL of a collector, such as http://127.0.0.1:4318"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::super::TRACES_ENDPOINT;
    use super::*;

    fn read(set: &[(&str, &str)]) -> Result<Option<Settings>, String> {
        let found = |name: &str| set.iter().find(|(other, _)| *other == name);
        Settings::read(&|name| found(name).map(|(_, value)| (*value).to_owned()))
    }

    fn some(set: &[(&str, &str)]) -> Settings {
        read(set).expect("valid").expect("asked for")
    }

    #[test]
    fn nothing_is_exported_unless_an_endpoint_is_set() {
        assert_eq!(read(&[("OTEL_SERVICE_NAME", "shop")]), Ok(None));
        assert_eq!(read(&[("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]), Ok(None));
    }

    #[test]
    fn the_endpoint_of_all_has_traces_below_it_and_that_of_traces_is_as_it_is() {
        let of = |variable, value| some(&[(variable, value)]).endpoint.to_string();
        for value in ["http://c:4318", "http://c:4318/"] {
            assert_eq!(of(ENDPOINT, value), "http://c:4318/v1/traces");
        }
        assert_eq!(of(ENDPOINT, "https://c/otlp"), "https://c/otlp/v1/traces");
        assert_eq!(of(TRACES_ENDPOINT, "https://c/in"), "https://c/in");
    }

    #[test]
    fn what_is_said_of_traces_counts_more_than_what_is_said_of_all() {
        let endpoint = (ENDPOINT, "http://c:4318");
        let settings = some(&[endpoint]);
        assert_eq!(
            (settings.timeout, settings.authorities),
            (DEFAULT_TIMEOUT, None)
        );
        let settings = some(&[
            endpoint,
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "1"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "2500"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "none"),
        ]);
        assert_eq!(settings.timeout, Duration::from_millis(2500));
        assert_eq!(settings.authorities, Some("/ca.pem".into()));
        assert!(settings.notes.is_empty(), "{settings:?}");
        let settings = some(&[endpoint, ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")]);
        assert_eq!(settings.notes.len(), 1, "{settings:?}");
    }

    #[test]
    fn what_cannot_be_done_is_told_without_a_secret() {
        let endpoint = (ENDPOINT, "http://c:4318");
        for (name, value) in [
            (TRACES_ENDPOINT, "user:secret@c:4318"),
            (TRACES_ENDPOINT, "ftp://user:secret@c"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
        ] {
            let problem = read(&[endpoint, (name, value)]).expect_err(value);
            assert!(problem.contains("OTEL_EXPORTER_OTLP_"), "{problem}");
            assert!(!problem.contains("secret"), "{problem}");
        }
        let settings = some(&[(TRACES_ENDPOINT, "https://user:secret@c:4318/in?key=secret")]);
        assert_eq!(settings.shown(), "https://c:4318/in");
    }
}
