//! How long it takes to prove that Redis equals a table, beside what the server's own tools take to read it.

use std::path::Path;
use std::process::Command;

use lockstep_kit::Component;
use lockstep_kit::postgres::{Database, Postgres, PostgresOptions};
use lockstep_kit::redis::{Redis, RedisOptions};
use lockstep_pipelines::ReconcileRequest;

use crate::pipeline::Pipeline;
use crate::report::median;
use crate::workload::Workload;
use crate::{Result, measure};

/// For `--only`.
pub const NAME: &str = "compare/lockstep = redis";

/// Rows of a chunk whose md5 sum is taken, as tools that compare two databases do.
const CHUNK: u32 = 10_000;

/// One way to read the table, and what each run took.
struct Way {
    name: &'static str,
    seconds: Vec<f64>,
    peak_kib: Vec<f64>,
}

/// The pipeline's ways, and what is asked of it.
fn passes() -> [(&'static str, ReconcileRequest); 2] {
    let rows_only = ReconcileRequest {
        condition: Some("true".to_owned()),
        ..ReconcileRequest::default()
    };
    [
        ("lockstep, all rows and keys", ReconcileRequest::default()),
        ("lockstep, rows of the table", rows_only),
    ]
}

/// Measures and prints.
///
/// # Errors
/// When a server or the pipeline does not start, or a comparison finds what is not so.
pub async fn print(postgres: u16, runs: u32, quick: bool) -> Result<()> {
    if !Component::Redis.is_installed() {
        println!("NOT RUN: {NAME}: no Redis here: run tests/kit/install redis");
        return Ok(());
    }
    let server = Postgres::try_start(PostgresOptions::new(postgres)).await?;
    let database = server.database("compare").await;
    let workload = Workload::Table;
    let rows = workload.rows(quick);
    database.execute(&workload.create()).await;
    database.execute(&workload.fill(rows)).await;
    database
        .execute(&format!("VACUUM ANALYZE {}", workload.table()))
        .await;
    let redis = Redis::try_start(RedisOptions::default()).await?;
    let folder = std::env::temp_dir().join(lockstep_kit::unique("lockstep-benches"));
    std::fs::create_dir_all(&folder)?;
    let measured = measure(&server, &database, &redis, &folder, rows, runs).await;
    std::fs::remove_dir_all(&folder)?;
    let ways = measured?;
    let yardstick = ways.first().map_or(0.0, |way| median(way.seconds.clone()));
    println!("\n| {rows} rows compared with Redis | s | × COPY | most MB |");
    println!("|---|--:|--:|--:|");
    for way in ways {
        let seconds = median(way.seconds);
        let peak = match way.peak_kib.is_empty() {
            true => String::new(),
            false => format!("{:.0}", median(way.peak_kib) * 1024.0 / 1e6),
        };
        println!(
            "| {} | {seconds:.2} | {:.2} | {peak} |",
            way.name,
            seconds / yardstick
        );
    }
    Ok(())
}

async fn measure(
    server: &Postgres,
    database: &Database,
    redis: &Redis,
    folder: &Path,
    rows: u64,
    runs: u32,
) -> Result<Vec<Way>> {
    let table = Workload::Table.table();
    let statements = [
        (
            "COPY … TO STDOUT",
            format!("COPY (SELECT * FROM {table}) TO STDOUT"),
        ),
        (
            "COPY … ORDER BY key",
            format!("COPY (SELECT * FROM {table} ORDER BY id) TO STDOUT"),
        ),
        (
            "md5 per 10,000 rows",
            format!(
                "SELECT id / {CHUNK}, count(*), md5(string_agg({table}::text, '' ORDER BY id)) FROM {table} GROUP BY 1"
            ),
        ),
    ];
    let mut ways: Vec<Way> = statements
        .iter()
        .map(|(name, _)| *name)
        .chain(passes().iter().map(|(name, _)| *name))
        .map(|name| Way {
            name,
            seconds: Vec::new(),
            peak_kib: Vec::new(),
        })
        .collect();
    let mut pipeline = Pipeline::start(database, &[table], redis, folder).await?;
    for _ in 0..runs {
        for ((_, statement), way) in statements.iter().zip(&mut ways) {
            way.seconds.push(psql(server, database, statement)?);
        }
        for ((_, request), way) in passes().iter().zip(&mut ways[statements.len()..]) {
            pipeline.forget_peak()?;
            let compared = pipeline.compare(request).await?;
            let report = compared.reconcile.reports.first().ok_or("no report")?;
            if report.rows != rows || report.has_drift() || report.is_partial() {
                return Err(format!("the comparison says {report:?}").into());
            }
            way.seconds.push(compared.seconds);
            way.peak_kib.push(pipeline.peak_kib() as f64);
            eprintln!("  {} {:.2} s", way.name, compared.seconds);
        }
    }
    pipeline.end().await?;
    Ok(ways)
}

/// Seconds that the server's own client takes.
fn psql(server: &Postgres, database: &Database, statement: &str) -> Result<f64> {
    let mut command = Command::new(server.bin_dir().join("psql"));
    command.args([
        "-X",
        "-q",
        "-o",
        "/dev/null",
        "-c",
        statement,
        database.url(),
    ]);
    let (sample, _) = measure::run(command, 1, 0)?;
    Ok(sample.wall.as_secs_f64())
}
