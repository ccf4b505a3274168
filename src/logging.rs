//! Log lines, to standard error: for people on a terminal, JSON elsewhere, each with what is needed to find again what it is about.

use std::fmt;
use std::io::{IsTerminal, Write};

use lockstep_core::trace::TARGET;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{FilterExt as _, filter_fn};
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormattedFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::{LookupSpan, SpanRef};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer};

use crate::cli::LogFormat;
use crate::progress::Bars;
use crate::traces::Traces;

/// What is logged when LOCKSTEP_LOG does not say. All that the AMQP client logs is an error that it also returns, or a whole message
/// that came back, with its row.
const DEFAULT_FILTER: &str =
    "info,lapin=off,librdkafka=warn,rdkafka=warn,tantivy=warn,fjall=warn,lsm_tree=warn";

/// Starts logging, and hands over what is to be exported as traces. Bars on the terminal stay below the lines.
pub fn start(format: LogFormat, bars: &Bars, traces: &Traces) {
    let filter =
        EnvFilter::try_from_env("LOCKSTEP_LOG").unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    let is_terminal = std::io::stderr().is_terminal();
    let lines = Lines {
        json: match format {
            LogFormat::Auto => !is_terminal,
            LogFormat::Text => false,
            LogFormat::Json => true,
        },
    };
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(AboveBars(bars.clone()))
        .with_ansi(!lines.json && crate::output::paint_errors().color)
        .event_format(lines);
    let logging = tracing_subscriber::registry().with(shown(lines, filter));
    // A second start (tests) keeps the first.
    let _ = match traces.layer() {
        Some(layer) => logging.with(layer).try_init(),
        None => logging.try_init(),
    };
}

/// Lines of what the filter says, and never of what is exported as traces, whatever it says.
fn shown<S>(lines: impl Layer<S>, filter: EnvFilter) -> impl Layer<S>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    let no_trace = filter_fn(|metadata| metadata.target() != TARGET);
    // It leaves the level to the other one.
    let no_trace = no_trace.with_max_level_hint(LevelFilter::TRACE);
    lines.with_filter(filter.and(no_trace))
}

/// One line per event. Behind its own fields come those of the spans it happened in (`pipeline`, `source`, `sink`), unless the event
/// has a field of that name itself. Each of these spans has one field.
struct Lines {
    json: bool,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        match self.json {
            true => json(context, writer, event),
            false => text(context, writer, event),
        }
    }
}

fn text<S, N>(
    context: &FmtContext<'_, S, N>,
    mut writer: Writer<'_>,
    event: &Event<'_>,
) -> fmt::Result
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    let level = *event.metadata().level();
    if writer.has_ansi_escapes() {
        write!(writer, "\x1b[2m")?;
        SystemTime.format_time(&mut writer)?;
        write!(writer, "\x1b[0m {}{level:>5}\x1b[0m ", colour(level))?;
    } else {
        SystemTime.format_time(&mut writer)?;
        write!(writer, " {level:>5} ")?;
    }
    let format = context.field_format();
    format.format_fields(writer.by_ref(), event)?;
    for span in around(context, event) {
        if let Some(fields) = span.extensions().get::<FormattedFields<N>>() {
            write!(writer, " {fields}")?;
        }
    }
    writeln!(writer)
}

fn colour(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\x1b[31m",
        Level::WARN => "\x1b[33m",
        Level::INFO => "\x1b[32m",
        Level::DEBUG => "\x1b[34m",
        Level::TRACE => "\x1b[35m",
    }
}

fn json<S, N>(
    context: &FmtContext<'_, S, N>,
    mut writer: Writer<'_>,
    event: &Event<'_>,
) -> fmt::Result
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    let mut time = String::new();
    SystemTime.format_time(&mut Writer::new(&mut time))?;
    let mut fields = Fields(Map::new());
    event.record(&mut fields);
    let mut line = Map::new();
    line.insert("timestamp".to_owned(), time.into());
    line.insert("level".to_owned(), event.metadata().level().as_str().into());
    if let Some(message) = fields.0.remove("message") {
        line.insert("message".to_owned(), message);
    }
    for span in around(context, event) {
        let extensions = span.extensions();
        let field = extensions.get::<FormattedFields<N>>();
        if let Some((name, value)) = field.and_then(|field| field.fields.split_once('=')) {
            line.insert(name.to_owned(), value.into());
        }
    }
    line.extend(fields.0);
    line.insert("target".to_owned(), event.metadata().target().into());
    writeln!(writer, "{}", Value::Object(line))
}

/// The spans that say something of an event that it does not say itself, the outermost first.
fn around<'a, S, N>(
    context: &'a FmtContext<'_, S, N>,
    event: &'a Event<'_>,
) -> impl Iterator<Item = SpanRef<'a, S>>
where
    S: Subscriber + for<'s> LookupSpan<'s>,
    N: for<'s> FormatFields<'s> + 'static,
{
    let scope = context.event_scope();
    let spans = scope.into_iter().flat_map(|scope| scope.from_root());
    spans.filter(|span| {
        let mut names = span.metadata().fields().iter();
        names.all(|field| event.metadata().fields().field(field.name()).is_none())
    })
}

/// The fields of an event: numbers and truth values as such, anything else as text.
struct Fields(Map<String, Value>);

impl Fields {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        // What `log` events bring with them is of no use to anybody.
        if !field.name().starts_with("log.") {
            self.0.insert(field.name().to_owned(), value.into());
        }
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }
}

#[derive(Clone)]
struct AboveBars(Bars);

impl<'a> MakeWriter<'a> for AboveBars {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Write for AboveBars {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.above(|| std::io::stderr().lock().write(bytes))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().lock().flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl<'a> MakeWriter<'a> for Kept {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("nobody panics").extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// The lines that `log` writes.
    fn logged(json: bool, log: impl FnOnce()) -> Vec<String> {
        let kept = Kept::default();
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(kept.clone())
            .with_ansi(false)
            .event_format(Lines { json });
        let shown = shown(lines, EnvFilter::new("trace"));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(shown), log);
        let bytes = kept.0.lock().expect("nobody panics");
        let text = String::from_utf8(bytes.clone()).expect("text");
        text.lines().map(str::to_owned).collect()
    }

    fn a_day() {
        let _pipeline = tracing::error_span!("pipeline", pipeline = %"shop").entered();
        let _source = tracing::error_span!("source", source = %"orders").entered();
        tracing::info!(rows = 7_u64, slot = "s", "line\nbroken");
        tracing::warn!(source = "another", error = %"LS003 away", "failed");
    }

    #[test]
    fn a_line_of_json_says_where_it_happened() {
        let lines = logged(true, a_day);
        assert_eq!(lines.len(), 2, "{lines:?}");
        let lines = lines.iter().map(|line| serde_json::from_str(line));
        let lines: Vec<Value> = lines.collect::<Result<_, _>>().expect("JSON");
        let [first, second] = &lines[..] else {
            panic!("{lines:?}");
        };
        assert_eq!(first["level"], "INFO");
        assert_eq!(first["message"], "line\nbroken");
        assert_eq!(first["pipeline"], "shop");
        assert_eq!(first["source"], "orders");
        assert_eq!(first["rows"], 7);
        assert!(first["timestamp"].is_string() && first["target"].is_string());
        assert_eq!(second["source"], "another", "the event knows better");
        assert_eq!(second["error"], "LS003 away");
    }

    #[test]
    fn what_is_exported_is_not_logged_and_costs_nothing_where_nobody_exports() {
        let lines = logged(false, || {
            let write = tracing::info_span!(target: TARGET, "write", changes = 3);
            assert!(write.is_disabled());
            write.in_scope(|| tracing::info!(target: TARGET, "exported"));
            write.in_scope(|| tracing::info!("logged"));
        });
        let [line] = &lines[..] else {
            panic!("{lines:?}");
        };
        assert!(line.ends_with(" INFO logged"), "{line}");

        let subscriber = || {
            let lines = tracing_subscriber::fmt::layer();
            tracing_subscriber::registry().with(shown(lines, EnvFilter::new(DEFAULT_FILTER)))
        };
        assert_eq!(subscriber().max_level_hint(), Some(LevelFilter::INFO));
        // Made where everything is of interest.
        let span = tracing::subscriber::with_default(
            tracing_subscriber::registry(),
            || tracing::info_span!(target: TARGET, "write"),
        );
        let callsite = span.metadata().expect("a callsite");
        assert!(subscriber().register_callsite(callsite).is_never());
    }

    #[test]
    fn a_line_of_text_begins_with_what_happened() {
        let lines = logged(false, a_day);
        let last = lines.last().expect("lines");
        let (_, said) = last.split_once(" WARN ").expect("a level");
        assert_eq!(
            said,
            "failed source=\"another\" error=LS003 away pipeline=shop"
        );
    }
}
