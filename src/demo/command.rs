//! `lockstep demo`: creates the shop, runs the pipeline, shops, drains, compares, tells.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use lockstep_core::error::At as _;
use lockstep_core::position::Lsn;
use lockstep_core::sink::{SinkContext, Trouble};
use lockstep_core::source::SourcePhase;
use lockstep_core::{Error, ErrorKind};
use lockstep_pipelines::{Handle, Pipeline, Registry};
use tempfile::TempDir;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::answer;
use super::args::DemoArgs;
use super::compare::{Compared, Copy, compare};
use super::load::{Load, LoadReport};
use super::look::Look;
use super::measure::{Gathered, peak_resident, resident};
use super::only;
use super::pipeline::{self, Ends, STATE_SINKS, Search};
use super::shop::{INVENTORY_TABLES, ORDERS_TABLES, Shop};
use super::summary::{Both, SinkSummary, Summary, Verdict};
use super::view::{CopyMoment, DEFAULT_LINE_EVERY, Moment, Screen, SinkMoment, View};
use crate::admin::Seat;
use crate::cli::Format;
use crate::{Outcome, admin, cli, output, run};

/// How long the sinks may take to catch up after the load.
const CATCH_UP: Duration = Duration::from_secs(120);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// Exit code of a demo that was told to stop before its end, as of any command that a Ctrl-C ends.
const STOPPED: u8 = 130;

/// Runs the demo. Exit code 0 when every copy equals its source; 130 when it was told to stop before it could say so.
pub async fn demo(args: &DemoArgs, registry: &Registry) -> Outcome {
    if let Some(part) = args.only {
        return only::part(args, part).await;
    }
    let folder = Folder::of(args)?;
    let ends = args.ends(folder.path());
    let stop = CancellationToken::new();
    run::stop_on_signals(stop.clone())?;

    let say = Say(args.format);
    say.print("Filling the shop's two databases …\n");
    let shop = Shop::create(&args.orders_url, &args.inventory_url, args.shop());
    let Some(shop) = stop.run_until_cancelled(shop).await.transpose()? else {
        return Ok(say.stopped());
    };
    let pipeline = write_and_load(&ends, folder.path(), registry)?;
    say.print(&format!(
        "The pipeline file:\n\n{}\n",
        indent(&pipeline::shown(&ends))
    ));

    let started = Instant::now();
    let listener = admin::bind(pipeline.admin.as_ref().ok_or_else(no_admin)?).await?;
    let address = listener.address();
    // Not the user's token: when told to stop, the demo stops its load first and the pipeline last.
    let drain = CancellationToken::new();
    let running = lockstep_pipelines::start(&pipeline, drain.clone()).await?;
    let handle = running.handle();
    let server = tokio::spawn(listener.serve(Seat::running(handle.clone())));
    let mut ended = std::pin::pin!(running.wait());
    let told = tokio::select! {
        told = tell(args, &ends, &shop, &handle, &stop, started) => told,
        // A pipeline that ends by itself has met an error: there is nothing left to wait for.
        result = &mut ended => return result.and(Err(ended_early())),
    };
    let summary = match told {
        Ok(Some(summary)) => summary,
        Ok(None) => {
            drain.cancel();
            ended.await?;
            return Ok(say.stopped());
        }
        Err(error) => {
            drain.cancel();
            // The pipeline's own error, if it has one, is the cause of ours.
            return ended.await.and(Err(error));
        }
    };
    let is_shown = args.format == Format::Table;
    let stays = is_shown && output::is_terminal() && !stop.is_cancelled();
    let look = Look {
        ends: &ends,
        admin: address.filter(|_| stays),
        folder: stays || folder.is_kept(),
        order: an_order(&shop).await,
    };
    let summary = Summary {
        look: look.places(),
        ..summary
    };
    match args.format {
        Format::Json => output::print_json(&answer::json(&summary)),
        Format::Table => output::print(&format!("\n{}\n", summary.render(output::paint()))),
    }
    if stays {
        output::print("Everything stays up until Ctrl-C.\n");
        tokio::select! {
            () = stop.cancelled() => {}
            result = &mut ended => return result.and(Err(ended_early())),
        }
    }
    drain.cancel();
    ended.await?;
    server.abort();
    Ok(match summary.verdict() {
        Verdict::Equal => ExitCode::SUCCESS,
        Verdict::Differs | Verdict::Unknown => ExitCode::FAILURE,
    })
}

/// What is said beside the summary: nothing to programs.
#[derive(Clone, Copy)]
struct Say(Format);

impl Say {
    fn print(self, text: &str) {
        if self.0 == Format::Table {
            output::print(text);
        }
    }

    /// Says so, and what is left.
    fn stopped(self) -> ExitCode {
        match self.0 {
            Format::Json => output::print_json(&serde_json::json!({ "verdict": "stopped" })),
            Format::Table => output::print(
                "\nStopped before the end: nothing was compared. What the demo made so far (databases, slots, topics, keys) is \
                 left as it is.\n",
            ),
        }
        ExitCode::from(STOPPED)
    }
}

/// Where everything local is: chosen, or temporary and gone with this value.
struct Folder {
    chosen: Option<PathBuf>,
    temporary: Option<TempDir>,
}

impl Folder {
    fn of(args: &DemoArgs) -> Result<Self, Error> {
        let chosen = args.folder.clone();
        let temporary = chosen.is_none().then(|| {
            tempfile::Builder::new()
                .prefix("lockstep-demo-")
                .tempdir()
                .map_err(|error| {
                    Error::new(ErrorKind::Storage, "cannot make a temporary folder")
                        .source(error)
                        .remedy("choose a folder with --folder, or another TMPDIR")
                })
        });
        Ok(Folder {
            chosen,
            temporary: temporary.transpose()?,
        })
    }

    fn path(&self) -> &Path {
        let temporary = self.temporary.as_ref().map(TempDir::path);
        self.chosen
            .as_deref()
            .or(temporary)
            .unwrap_or_else(|| Path::new(""))
    }

    fn is_kept(&self) -> bool {
        self.chosen.is_some()
    }
}

/// The id of one of the shop's orders, for a command that shows one; `None` when there is none to be had.
async fn an_order(shop: &Shop) -> Option<String> {
    let client = shop.orders_client().await.ok()?;
    let sql = "SELECT id::text FROM orders ORDER BY number DESC LIMIT 1";
    let row = client.query_opt(sql, &[]).await.ok()??;
    row.get(0)
}

fn no_admin() -> Error {
    Error::new(
        ErrorKind::Config,
        "the demo's pipeline has no admin section",
    )
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect()
}

fn ended_early() -> Error {
    Error::new(
        ErrorKind::Stopping,
        "the pipeline ended before the demo did",
    )
}

fn write_and_load(ends: &Ends, folder: &Path, registry: &Registry) -> Result<Pipeline, Error> {
    let path = folder.join("shop.toml");
    let write = || -> std::io::Result<()> {
        std::fs::create_dir_all(folder)?;
        std::fs::write(&path, pipeline::text(ends))
    };
    write().map_err(|error| {
        Error::new(
            ErrorKind::Storage,
            format!("cannot write {}", path.display()),
        )
        .source(error)
    })?;
    cli::load(&path, registry)
}

/// Shops, waits until everything has arrived, compares, and puts the summary together; `None` when told to stop.
async fn tell(
    args: &DemoArgs,
    ends: &Ends,
    shop: &Shop,
    handle: &Handle,
    stop: &CancellationToken,
    started: Instant,
) -> Result<Option<Summary>, Error> {
    let load = Load::start(shop, args.load()).await?;
    let counter = load.counter();
    let view = View::start(
        watch(handle.clone(), move || {
            counter().event(super::load::Event::Purchase)
        }),
        screen(args.format),
    );
    stop.run_until_cancelled(load.finished()).await;
    // Also when told to stop: cut short, the load could leave an order in one database and not in the other.
    let report = load.stop().await?;
    let rest = async {
        let arrived = catch_up(handle, &report).await;
        let mut summary = so_far(ends, handle, &report, started.elapsed());
        match arrived {
            Ok(()) => match compare_all(ends, handle, shop).await {
                Ok(compared) => summary.compared = compared,
                Err(error) => summary.not_compared = Some(error.to_string()),
            },
            Err(error) => summary.not_compared = Some(error.to_string()),
        }
        summary
    };
    let summary = stop.run_until_cancelled(rest).await;
    let top_rate = view.stop().await;
    Ok(summary.map(|summary| Summary {
        top_rate: Some(top_rate),
        ..summary
    }))
}

/// The summary without what the comparison says.
fn so_far(ends: &Ends, handle: &Handle, report: &LoadReport, elapsed: Duration) -> Summary {
    let measured = Gathered::now(handle);
    let [stitched, apart] = measured.stitched();
    let transforms = handle.status().transforms;
    Summary {
        elapsed,
        shop: report.counts.clone(),
        both: Both {
            committed: report.both.committed,
            deciding: report.both.mean_deciding(),
            stitched,
            apart,
            hold: measured.hold(),
        },
        tables: measured.tables(),
        sinks: sinks(handle, ends, &measured),
        memory: peak_resident(),
        cpu: cpu_time(),
        duplicates: transforms
            .values()
            .map(|transform| transform.duplicates)
            .sum(),
        ..Summary::default()
    }
}

fn screen(format: Format) -> Screen {
    let lines = |out: Box<dyn std::io::Write + Send>| Screen::Lines {
        out,
        every: DEFAULT_LINE_EVERY,
    };
    match (format, output::is_terminal()) {
        (Format::Json, _) => lines(Box::new(std::io::sink())),
        (Format::Table, true) => Screen::Terminal,
        (Format::Table, false) => lines(Box::new(std::io::stdout())),
    }
}

/// What the view sees.
fn watch(
    handle: Handle,
    purchases: impl Fn() -> u64 + Send + 'static,
) -> impl FnMut() -> Moment + Send + 'static {
    move || {
        let status = handle.status();
        let latencies = Gathered::now(&handle).latencies();
        let phases: Vec<SourcePhase> = status
            .sources
            .values()
            .map(|source| source.state.phase)
            .collect();
        let copies = status.sources.iter().flat_map(|(name, source)| {
            source.state.snapshot.iter().map(move |table| CopyMoment {
                table: format!(
                    "{name}.{}",
                    table.table.rsplit('.').next().unwrap_or_default()
                ),
                rows: table.rows,
                expected: table.estimated_rows,
                done: table.done,
            })
        });
        Moment {
            phase: phase(&phases).to_owned(),
            copies: copies.collect(),
            changes: status.sources.values().map(|source| source.changes).sum(),
            purchases: purchases(),
            sinks: status
                .sinks
                .iter()
                .map(|(name, sink)| SinkMoment {
                    name: name.clone(),
                    records: sink.written,
                    lag: (sink.lag_seconds > 0.0)
                        .then(|| Duration::from_secs_f64(sink.lag_seconds)),
                    p50: latencies.get(name).map(|latency| latency.p50),
                    p99: latencies.get(name).map(|latency| latency.p99),
                    problem: sink.problem.clone(),
                })
                .collect(),
            memory: resident(),
            problem: status
                .sources
                .values()
                .find_map(|source| source.state.problem.clone()),
        }
    }
}

/// What the sources do, in a word.
fn phase(phases: &[SourcePhase]) -> &'static str {
    if phases.contains(&SourcePhase::Snapshot) {
        "copying"
    } else if phases.iter().all(|&phase| phase == SourcePhase::Streaming) {
        "streaming"
    } else {
        "connecting"
    }
}

/// Waits until every commit of the load is durable in every sink.
async fn catch_up(handle: &Handle, report: &LoadReport) -> Result<(), Error> {
    let deadline = Instant::now() + CATCH_UP;
    let ends: [(&str, Lsn); 2] = [
        ("orders", report.orders_end),
        ("inventory", report.inventory_end),
    ];
    loop {
        let waiting: Vec<String> = ends
            .iter()
            .flat_map(|(source, end)| {
                let sinks = handle.visible(source, *end).unwrap_or_default();
                sinks
                    .into_iter()
                    .filter(|(_, visible)| !visible)
                    .map(move |(sink, _)| format!("{source} → {sink}"))
            })
            .collect();
        if waiting.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let problems = handle.ready().err().unwrap_or_default().join("; ");
            return Err(Error::new(
                ErrorKind::Overloaded,
                format!("not caught up: {}", waiting.join(", ")),
            )
            .remedy(if problems.is_empty() {
                "shop more slowly with --rate".to_owned()
            } else {
                problems
            }));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Compares the copies that can be read back with both databases, row by row.
async fn compare_all(ends: &Ends, handle: &Handle, shop: &Shop) -> Result<Vec<Compared>, Error> {
    let sources = [
        ("orders", &ends.orders_url, shop.orders_url(), ORDERS_TABLES),
        (
            "inventory",
            &ends.inventory_url,
            shop.inventory_url(),
            INVENTORY_TABLES,
        ),
    ];
    let pipeline = handle.status().pipeline;
    let mut all = Vec::new();
    for (name, url, read_url, tables) in sources {
        let config = serde_json::json!({
            "url": url.reveal(),
            "tables": tables.iter().map(|table| format!("public.{table}")).collect::<Vec<_>>(),
        });
        let config: lockstep_postgres::PostgresConfig =
            serde_json::from_value(config).map_err(|error| {
                Error::new(ErrorKind::Config, "the demo's source is wrong").source(error)
            })?;
        let (source, tables) = lockstep_postgres::describe(&config, name).await?;
        let context = |sink: &str| SinkContext {
            pipeline: pipeline.as_str().into(),
            name: sink.into(),
            state: ends.state.join("sinks").join(sink),
            sources: vec![source.clone()],
            tables: tables.clone(),
            trouble: Trouble::default(),
            token: None,
        };
        let mut copies = open_copies(ends, context).await?;
        all.extend(
            compare(read_url, &source, &tables, &pipeline::rules(), &mut copies)
                .await
                .at(format!("sources.{name}"))?,
        );
    }
    Ok(all)
}

/// Opens the state sinks for reading, with the very sections of the pipeline file.
async fn open_copies(
    ends: &Ends,
    context: impl Fn(&str) -> SinkContext,
) -> Result<Vec<Copy>, Error> {
    let registry = crate::builtin();
    let folder: PathBuf = ends.state.parent().map(Path::to_owned).unwrap_or_default();
    let pipeline = cli::load(&folder.join("shop.toml"), &registry)?;
    let mut copies = Vec::new();
    for (plan, sink) in pipeline.plan.sinks.iter().zip(&pipeline.sinks) {
        if STATE_SINKS.contains(&&*plan.name)
            && let Some(inspect) = sink
                .inspect(context(&plan.name))
                .await
                .at(format!("sinks.{}", plan.name))?
        {
            copies.push(Copy {
                name: plan.name.to_string(),
                inspect,
            });
        }
    }
    Ok(copies)
}

fn sinks(handle: &Handle, ends: &Ends, measured: &Gathered) -> Vec<SinkSummary> {
    let (latencies, bytes) = (measured.latencies(), measured.bytes());
    let kind = |name: &str| match (name, &ends.search) {
        ("cache", _) => "redis",
        ("search", Search::Tantivy(_)) => "tantivy",
        ("search", Search::OpenSearch(_)) => "opensearch",
        _ => "kafka",
    };
    handle
        .status()
        .sinks
        .into_iter()
        .map(|(name, sink)| SinkSummary {
            kind: kind(&name).to_owned(),
            records: sink.written,
            stale: sink.stale,
            bytes: bytes.get(&name).copied().unwrap_or(0),
            latency: latencies.get(&name).copied(),
            restarts: sink.errors,
            name,
        })
        .collect()
}

/// CPU time of this process so far.
fn cpu_time() -> Option<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // Behind the command name, which may hold anything: utime and stime are fields 14 and 15 of all.
    let mut fields = stat.rsplit(')').next()?.split_whitespace().skip(11);
    let ticks: u64 = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    Some(Duration::from_millis(
        ticks * 1000 / rustix::param::clock_ticks_per_second(),
    ))
}
