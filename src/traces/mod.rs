//! Traces by OTLP over HTTP, to where the environment says, by the names that OpenTelemetry has for that.
//!
//! What is exported stands at [`lockstep_core::trace`] and where its spans are made. Builds without the feature `otel` export nothing, and
//! say so where somebody asks for it.

#[cfg(feature = "otel")]
mod client;
#[cfg(feature = "otel")]
mod export;
#[cfg(feature = "otel")]
mod settings;
#[cfg(not(feature = "otel"))]
mod unheard;

#[cfg(feature = "otel")]
pub use export::Traces;
#[cfg(not(feature = "otel"))]
pub use unheard::Traces;

/// Where traces go, to the letter.
const TRACES_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
/// Where all goes; traces to `v1/traces` below it.
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// The value of an environment variable, `None` where it is not set. For tests another than the process's.
type Variables<'v> = &'v dyn Fn(&str) -> Option<String>;

/// The variable that says where traces go, and its value; `None` where there is none, or another one says that nothing is exported.
fn asked_for(variables: Variables<'_>) -> Option<(&'static str, String)> {
    // What is empty is not set, as OpenTelemetry has it.
    let value = |name: &str| variables(name).filter(|value| !value.is_empty());
    let is_off = value("OTEL_SDK_DISABLED").is_some_and(|off| off.eq_ignore_ascii_case("true"));
    let exporters = value("OTEL_TRACES_EXPORTER");
    let by_otlp = exporters.is_none_or(|names| names.split(',').any(|name| name.trim() == "otlp"));
    if is_off || !by_otlp {
        return None;
    }
    let mut named = [TRACES_ENDPOINT, ENDPOINT].into_iter();
    named.find_map(|name| Some((name, value(name)?)))
}

/// Of the process.
fn of_the_process(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(set: &[(&str, &str)]) -> Option<(&'static str, String)> {
        let found = |name: &str| set.iter().find(|(other, _)| *other == name);
        asked_for(&|name| found(name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn an_endpoint_asks_for_traces_unless_they_are_switched_off() {
        assert_eq!(asked(&[]), None);
        assert_eq!(
            asked(&[(ENDPOINT, ""), ("OTEL_SERVICE_NAME", "shop")]),
            None
        );
        let general = (ENDPOINT, "http://c:4318");
        let of_all = Some((ENDPOINT, "http://c:4318".to_owned()));
        assert_eq!(asked(&[general]), of_all);
        let own = (TRACES_ENDPOINT, "http://t");
        let of_traces = Some((TRACES_ENDPOINT, "http://t".to_owned()));
        assert_eq!(asked(&[general, own]), of_traces);
        assert_eq!(asked(&[general, (TRACES_ENDPOINT, "")]), of_all);
        assert_eq!(asked(&[general, ("OTEL_SDK_DISABLED", "True")]), None);
        assert_eq!(asked(&[general, ("OTEL_SDK_DISABLED", "false")]), of_all);
        assert_eq!(asked(&[general, ("OTEL_TRACES_EXPORTER", "none")]), None);
        let several = ("OTEL_TRACES_EXPORTER", "console, otlp");
        assert_eq!(asked(&[general, several]), of_all);
    }
}
