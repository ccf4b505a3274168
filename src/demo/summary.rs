//! What the demo says at its end: from figures to text.

use std::fmt::{self, Write as _};
use std::time::Duration;

use super::compare::Compared;
use super::load::{Counts, Event};
use crate::figures::{Paint, Table, bytes, count, duration, of, rate};

/// Everything that the summary tells.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// How long the pipeline ran.
    pub elapsed: Duration,
    /// What the shop did meanwhile.
    pub shop: Counts,
    /// What of that changed both databases at once.
    pub both: Both,
    /// What came out of the sources.
    pub tables: Vec<TableSummary>,
    /// What went into the sinks.
    pub sinks: Vec<SinkSummary>,
    /// The most changes that came in within one second.
    pub top_rate: Option<f64>,
    /// Peak resident memory of this process, in bytes.
    pub memory: Option<u64>,
    /// CPU time of this process. It includes the demo's own load and comparison unless the caller takes them out.
    pub cpu: Option<Duration>,
    /// Changes that repeated an idempotency key and were dropped.
    pub duplicates: u64,
    /// How the copies stand; empty when nothing was compared.
    pub compared: Vec<Compared>,
    /// Why the comparison could not be done or finished, when it could not.
    pub not_compared: Option<String>,
    /// Where to look next: what, and where.
    pub look: Vec<(String, String)>,
}

/// Transactions of both databases, committed in two phases: purchases, cancellations, and what is shipped and delivered.
#[derive(Clone, Debug, Default)]
pub struct Both {
    /// How many the coordinator has committed.
    pub committed: u64,
    /// From their beginning to the decision, on average.
    pub deciding: Option<Duration>,
    /// How many went on behind the first copy, which has the others in it.
    pub stitched: u64,
    /// How many of them did so in parts.
    pub apart: u64,
    /// How long a branch was held back for the other one.
    pub hold: Option<Latency>,
}

/// Changes of one table, as the pipeline counted them.
#[derive(Clone, Debug, Default)]
pub struct TableSummary {
    /// Name of the source.
    pub source: String,
    /// Name of the table.
    pub table: String,
    /// Rows of the initial copy.
    pub reads: u64,
    /// INSERT.
    pub inserts: u64,
    /// UPDATE.
    pub updates: u64,
    /// DELETE.
    pub deletes: u64,
}

impl TableSummary {
    fn total(&self) -> u64 {
        self.reads + self.inserts + self.updates + self.deletes
    }
}

/// What one sink took.
#[derive(Clone, Debug, Default)]
pub struct SinkSummary {
    /// Name in the pipeline file.
    pub name: String,
    /// `type` in the pipeline file.
    pub kind: String,
    /// Messages, keys or documents written.
    pub records: u64,
    /// Writes that were older than what the sink held.
    pub stale: u64,
    /// Payload bytes.
    pub bytes: u64,
    /// From commit in PostgreSQL to durable in the sink, of the stream.
    pub latency: Option<Latency>,
    /// How often it failed and was opened again.
    pub restarts: u64,
}

/// Quantiles.
#[derive(Clone, Copy, Debug, Default)]
pub struct Latency {
    /// Half of all changes were faster.
    pub p50: Duration,
    /// 99 of 100 changes were faster.
    pub p99: Duration,
}

/// What the comparison says. The demo's exit code is 0 for `Equal` only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every copy equals its source.
    Equal,
    /// At least one row differs.
    Differs,
    /// There was no comparison, or it broke off.
    Unknown,
}

impl fmt::Display for Both {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of both databases",
            of(self.committed, "transaction", "transactions")
        )?;
        if let Some(deciding) = self.deciding {
            write!(f, ", decided after {} on average", duration(deciding))?;
        }
        write!(f, "; {} came behind the copy, ", count(self.stitched))?;
        match self.apart {
            0 => write!(f, "all of them whole")?,
            apart => write!(f, "{} of them in parts", count(apart))?,
        }
        if let Some(Latency { p50, p99 }) = self.hold {
            let (p50, p99) = (duration(p50), duration(p99));
            write!(f, ", held back for {p50}, 1 % for more than {p99}")?;
        }
        Ok(())
    }
}

impl Summary {
    /// What the comparison says.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        if self.compared.iter().any(|compared| !compared.is_equal()) {
            Verdict::Differs
        } else if self.compared.is_empty() || self.not_compared.is_some() {
            Verdict::Unknown
        } else {
            Verdict::Equal
        }
    }

    /// The text, some 50 lines.
    #[must_use]
    pub fn render(&self, paint: Paint) -> String {
        let parts = [
            self.headline(paint),
            self.changes(paint),
            self.delivered(paint),
            self.figures(paint),
            self.comparison(paint),
            self.verdict_line(paint),
            self.where_to_look(paint),
        ];
        let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        parts.join("\n")
    }

    fn all_changes(&self) -> u64 {
        self.tables.iter().map(TableSummary::total).sum()
    }

    fn headline(&self, paint: Paint) -> String {
        let mut out = paint.bold(&format!("The shop ran for {}", duration(self.elapsed)));
        out.push('\n');
        // Transactions are the shop's own business: the tables below say what they changed.
        let told: Vec<String> = Event::ALL
            .iter()
            .filter(|&&event| event != Event::Transaction)
            .map(|&event| (event, self.shop.event(event)))
            .filter(|&(_, times)| times > 0)
            .map(|(event, times)| format!("{} {}", count(times), event.label(times)))
            .collect();
        for line in told.chunks(4) {
            let _ = writeln!(out, "  {}", line.join(" · "));
        }
        out
    }

    fn changes(&self, paint: Paint) -> String {
        if self.tables.is_empty() {
            return String::new();
        }
        let mut table = Table::new(
            1,
            &["Changes", "copied", "insert", "update", "delete", "total"],
        );
        let mut sum = TableSummary::default();
        let cells = |name: String, one: &TableSummary| {
            let figures = [
                one.reads,
                one.inserts,
                one.updates,
                one.deletes,
                one.total(),
            ];
            std::iter::once(name).chain(figures.map(count)).collect()
        };
        for one in &self.tables {
            table.row(cells(format!("{}.{}", one.source, one.table), one));
            sum.reads += one.reads;
            sum.inserts += one.inserts;
            sum.updates += one.updates;
            sum.deletes += one.deletes;
        }
        table.total(cells("all".into(), &sum));
        table.render(paint)
    }

    fn delivered(&self, paint: Paint) -> String {
        if self.sinks.is_empty() {
            return String::new();
        }
        let heading = [
            "Delivered",
            "",
            "records",
            "stale",
            "bytes",
            "latency p50",
            "p99",
        ];
        let mut table = Table::new(2, &heading);
        for sink in &self.sinks {
            let latency = |pick: fn(&Latency) -> Duration| {
                sink.latency
                    .as_ref()
                    .map_or_else(|| "–".into(), |latency| duration(pick(latency)))
            };
            table.row(vec![
                sink.name.clone(),
                sink.kind.clone(),
                count(sink.records),
                count(sink.stale),
                bytes(sink.bytes),
                latency(|latency| latency.p50),
                latency(|latency| latency.p99),
            ]);
        }
        let mut out = table.render(paint);
        for sink in self.sinks.iter().filter(|sink| sink.restarts > 0) {
            let times = of(sink.restarts, "time", "times");
            let _ = writeln!(out, "  {} failed and was opened again {times}", sink.name);
        }
        out
    }

    fn figures(&self, paint: Paint) -> String {
        let mut out = String::new();
        let mut line = |name: &str, text: String| {
            let _ = writeln!(out, "  {} {text}", paint.bold(&format!("{name:<11}")));
        };
        let changes = self.all_changes();
        let seconds = self.elapsed.as_secs_f64();
        if seconds > 0.0 && changes > 0 {
            let top = self.top_rate.map(|top| format!(", up to {}", rate(top)));
            let mean = rate(changes as f64 / seconds);
            line(
                "Rate",
                format!("{mean} on average{}", top.unwrap_or_default()),
            );
        }
        if self.both.committed > 0 {
            line("Two-phase", self.both.to_string());
        }
        if let Some(memory) = self.memory {
            line("Memory", format!("{} at most", bytes(memory)));
        }
        if let (Some(cpu), 1..) = (self.cpu, changes) {
            let each = cpu.as_secs_f64() * 1e6 / changes as f64;
            line(
                "CPU",
                format!("{each:.1} µs per change, all sinks and the demo itself included"),
            );
        }
        let dropped = of(self.duplicates, "change", "changes");
        line(
            "Duplicates",
            format!("{dropped} dropped by idempotency key"),
        );
        out
    }

    fn comparison(&self, paint: Paint) -> String {
        let heading = [
            "Compared row by row",
            "",
            "rows",
            "same",
            "missing",
            "different",
            "extra",
            "",
        ];
        let mut table = Table::new(2, &heading);
        let mut examples = String::new();
        for one in &self.compared {
            let name = format!("{}.{}", one.source, one.table);
            let figures = [one.rows, one.same, one.missing, one.different, one.extra].map(count);
            let mut cells = vec![one.sink.clone(), name.clone()];
            cells.extend(figures);
            cells.push(if one.is_equal() { "✓" } else { "✗" }.into());
            if one.is_equal() {
                table.row(cells);
            } else {
                table.bad_row(cells);
                for example in &one.examples {
                    let _ = writeln!(examples, "  {} {name}: {example}", one.sink);
                }
            }
        }
        if table.is_empty() {
            return String::new();
        }
        table.render(paint) + &examples
    }

    fn verdict_line(&self, paint: Paint) -> String {
        let sum = |pick: fn(&Compared) -> u64| self.compared.iter().map(pick).sum::<u64>();
        let mut out = match self.verdict() {
            Verdict::Equal => {
                let rows = of(sum(|one| one.rows), "row", "rows");
                paint.good(&format!(
                    "✓ Equal: {rows} compared, every copy is the same as its source."
                ))
            }
            Verdict::Differs => {
                let wrong = sum(|one| one.missing + one.different + one.extra);
                let places = self.compared.iter().filter(|one| !one.is_equal());
                let places: Vec<String> = places
                    .map(|one| format!("{} {}.{}", one.sink, one.source, one.table))
                    .collect();
                let wrong = of(wrong, "row differs", "rows differ");
                paint.bad(&format!("✗ Not equal: {wrong} in {}.", places.join(", ")))
            }
            Verdict::Unknown => paint.bad("✗ Not compared."),
        };
        if let Some(why) = &self.not_compared {
            let _ = write!(out, " {why}");
        }
        out.push('\n');
        out
    }

    fn where_to_look(&self, paint: Paint) -> String {
        if self.look.is_empty() {
            return String::new();
        }
        let width = self
            .look
            .iter()
            .map(|(what, _)| what.chars().count())
            .max()
            .unwrap_or(0);
        let mut out = paint.bold("  Where to look");
        out.push('\n');
        for (what, place) in &self.look {
            let padding = " ".repeat(width - what.chars().count());
            let _ = writeln!(out, "  {}{padding}  {place}", paint.dim(what));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary() -> Summary {
        let table = |source: &str, table: &str, figures: [u64; 4]| TableSummary {
            source: source.into(),
            table: table.into(),
            reads: figures[0],
            inserts: figures[1],
            updates: figures[2],
            deletes: figures[3],
        };
        let compared = |table: &str, rows| Compared {
            sink: "cache".into(),
            source: "orders".into(),
            table: table.into(),
            rows,
            same: rows,
            ..Compared::default()
        };
        let latency = Latency {
            p50: Duration::from_micros(2_130),
            p99: Duration::from_micros(15_800),
        };
        Summary {
            elapsed: Duration::from_millis(30_250),
            tables: vec![
                table("orders", "orders", [20_000, 6_000, 12_345, 0]),
                table("orders", "payments", [20_000, 6_270, 300, 0]),
                table("inventory", "products", [2_000, 100_000, 1_200, 0]),
            ],
            sinks: vec![
                SinkSummary {
                    name: "events".into(),
                    kind: "kafka".into(),
                    records: 168_080,
                    bytes: 151_234_567,
                    latency: Some(latency),
                    ..SinkSummary::default()
                },
                SinkSummary {
                    name: "cache".into(),
                    kind: "redis".into(),
                    records: 161_000,
                    stale: 12,
                    bytes: 61_234_567,
                    restarts: 1,
                    ..SinkSummary::default()
                },
            ],
            both: Both {
                committed: 6_000,
                deciding: Some(Duration::from_micros(3_210)),
                stitched: 5_980,
                apart: 0,
                hold: Some(latency),
            },
            top_rate: Some(48_210.4),
            memory: Some(86_400_000),
            cpu: Some(Duration::from_millis(1_345)),
            duplicates: 35,
            compared: vec![compared("orders", 26_000), compared("payments", 26_235)],
            look: vec![
                ("status".into(), "http://127.0.0.1:9187/api/status".into()),
                (
                    "keys".into(),
                    "redis-cli --scan --pattern 'orders:orders:*'".into(),
                ),
            ],
            ..Summary::default()
        }
    }

    #[test]
    fn it_reads_well() {
        let expected = "\
The shop ran for 30.2 s

  Changes             copied   insert  update  delete    total
  orders.orders       20,000    6,000  12,345       0   38,345
  orders.payments     20,000    6,270     300       0   26,570
  inventory.products   2,000  100,000   1,200       0  103,200
  all                 42,000  112,270  13,845       0  168,115

  Delivered         records  stale     bytes  latency p50      p99
  events     kafka  168,080      0  151.2 MB      2.13 ms  15.8 ms
  cache      redis  161,000     12   61.2 MB            –        –
  cache failed and was opened again 1 time

  Rate        5,558/s on average, up to 48,210/s
  Two-phase   6,000 transactions of both databases, decided after 3.21 ms on average; 5,980 came behind the copy, all of them whole, held back for 2.13 ms, 1 % for more than 15.8 ms
  Memory      86.4 MB at most
  CPU         8.0 µs per change, all sinks and the demo itself included
  Duplicates  35 changes dropped by idempotency key

  Compared row by row                     rows    same  missing  different  extra
  cache                orders.orders    26,000  26,000        0          0      0  ✓
  cache                orders.payments  26,235  26,235        0          0      0  ✓

✓ Equal: 52,235 rows compared, every copy is the same as its source.

  Where to look
  status  http://127.0.0.1:9187/api/status
  keys    redis-cli --scan --pattern 'orders:orders:*'
";
        let text = summary().render(Paint::default());
        assert_eq!(text, expected, "\n{text}");
    }

    #[test]
    fn a_difference_cannot_be_overlooked() {
        let mut summary = summary();
        let payments = &mut summary.compared[1];
        payments.same -= 2;
        payments.missing = 1;
        payments.different = 1;
        payments.extra = 1;
        payments.examples = vec!["orders:payments:7 is missing".into()];
        assert_eq!(summary.verdict(), Verdict::Differs);
        let text = summary.render(Paint::default());
        assert!(
            text.contains("26,235  26,233        1          1      1  ✗"),
            "{text}"
        );
        assert!(
            text.contains("\n  cache orders.payments: orders:payments:7 is missing\n"),
            "{text}"
        );
        assert!(
            text.contains("\n✗ Not equal: 3 rows differ in cache orders.payments.\n"),
            "{text}"
        );
        assert!(
            summary
                .render(Paint { color: true })
                .contains("\x1b[1;31m✗ Not equal")
        );
    }

    #[test]
    fn silence_is_not_equality() {
        let mut summary = summary();
        summary.not_compared = Some("cache did not catch up within 60 s".into());
        assert_eq!(summary.verdict(), Verdict::Unknown);
        let text = summary.render(Paint::default());
        assert!(
            text.contains("✗ Not compared. cache did not catch up within 60 s\n"),
            "{text}"
        );
        summary.not_compared = None;
        summary.compared.clear();
        assert_eq!(summary.verdict(), Verdict::Unknown);
    }

    #[test]
    fn nothing_at_all_is_a_summary_too() {
        let text = Summary::default().render(Paint::default());
        assert!(text.starts_with("The shop ran for 0.00 µs\n"), "{text}");
        assert!(text.contains("Not compared"));
    }
}
