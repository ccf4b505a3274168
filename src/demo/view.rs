//! What one sees while the demo runs: a few lines that redraw themselves on a terminal, a line every few seconds elsewhere.

use std::fmt::Write as _;
use std::io::Write;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::figures::{Paint, Table, count, duration, of, rate};

/// How often a terminal is redrawn and the phase is looked at.
const TICK: Duration = Duration::from_millis(250);

/// How often a line is written where there is no terminal.
pub const DEFAULT_LINE_EVERY: Duration = Duration::from_secs(5);

/// Width of a progress bar, in cells.
const BAR: u64 = 24;

/// How things stand at one moment. Totals only; the view works out the rates.
#[derive(Clone, Debug, Default)]
pub struct Moment {
    /// In a word: `connecting`, `copying`, `streaming`.
    pub phase: String,
    /// The initial copy, by table; may stay when it is done.
    pub copies: Vec<CopyMoment>,
    /// Changes that came in so far, those of the initial copy too.
    pub changes: u64,
    /// Purchases so far.
    pub purchases: u64,
    /// By sink.
    pub sinks: Vec<SinkMoment>,
    /// Resident memory in bytes, when known.
    pub memory: Option<u64>,
    /// What keeps a source from going on, when something does.
    pub problem: Option<String>,
}

/// The initial copy of one table.
#[derive(Clone, Debug, Default)]
pub struct CopyMoment {
    /// `orders.payments`.
    pub table: String,
    /// Rows read.
    pub rows: u64,
    /// Rows expected.
    pub expected: u64,
    /// Whether all were read.
    pub done: bool,
}

/// One sink.
#[derive(Clone, Debug, Default)]
pub struct SinkMoment {
    /// Name in the pipeline file.
    pub name: String,
    /// Records written so far.
    pub records: u64,
    /// Age of the oldest change that is not durable there; `None` when there is none.
    pub lag: Option<Duration>,
    /// Median from commit to durable.
    pub p50: Option<Duration>,
    /// 99th percentile of the same.
    pub p99: Option<Duration>,
    /// Why it waits, when it does.
    pub problem: Option<String>,
}

/// Where moments come from.
pub trait Watch: Send + 'static {
    /// How things stand now. Called a few times a second; must not block.
    fn look(&mut self) -> Moment;
}

impl<F: FnMut() -> Moment + Send + 'static> Watch for F {
    fn look(&mut self) -> Moment {
        self()
    }
}

/// Where the view is shown.
pub enum Screen {
    /// Standard output, which is a terminal.
    Terminal,
    /// Anything else: a line now and then.
    Lines {
        /// Where lines go.
        out: Box<dyn Write + Send>,
        /// How often.
        every: Duration,
    },
}

/// A view at work, until [`View::stop`] or until it is dropped.
#[derive(Debug)]
pub struct View {
    stop: DropGuard,
    task: JoinHandle<f64>,
}

impl View {
    /// Begins to show what `watch` sees.
    #[must_use]
    pub fn start(watch: impl Watch, screen: Screen) -> Self {
        let stop = CancellationToken::new();
        let task = tokio::spawn(show(watch, screen, stop.clone()));
        View {
            stop: stop.drop_guard(),
            task,
        }
    }

    /// Clears the terminal's lines and returns the most changes that came in per second.
    pub async fn stop(self) -> f64 {
        drop(self.stop);
        // A view that broke down shows nothing; the run itself is not touched by that.
        self.task.await.unwrap_or_default()
    }
}

async fn show(mut watch: impl Watch, screen: Screen, stop: CancellationToken) -> f64 {
    let mut screen = match screen {
        Screen::Terminal => Shown::Terminal(Terminal::new()),
        Screen::Lines { out, every } => Shown::Lines(Lines {
            out,
            every,
            next: Instant::now(),
            phase: String::new(),
        }),
    };
    let mut speed = Speed::new();
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            _ = ticks.tick() => {}
        }
        let moment = watch.look();
        speed.note(Instant::now(), moment.changes);
        match &mut screen {
            Shown::Terminal(terminal) => terminal.draw(&moment, &speed),
            Shown::Lines(lines) => lines.write(&moment, &speed),
        }
    }
    if let Shown::Terminal(terminal) = screen {
        terminal.clear();
    }
    speed.top
}

enum Shown {
    Terminal(Terminal),
    Lines(Lines),
}

/// Changes per second over about the last second.
#[derive(Debug)]
struct Speed {
    started: Instant,
    since: Option<(Instant, u64)>,
    now: f64,
    top: f64,
}

impl Speed {
    fn new() -> Self {
        Speed {
            started: Instant::now(),
            since: None,
            now: 0.0,
            top: 0.0,
        }
    }

    fn note(&mut self, at: Instant, changes: u64) {
        let Some((since, before)) = self.since else {
            self.since = Some((at, changes));
            return;
        };
        let passed = at - since;
        if passed >= Duration::from_secs(1) {
            self.now = changes.saturating_sub(before) as f64 / passed.as_secs_f64();
            self.top = self.top.max(self.now);
            self.since = Some((at, changes));
        }
    }
}

/// A line now and then, and one at once when the phase changes.
struct Lines {
    out: Box<dyn Write + Send>,
    every: Duration,
    next: Instant,
    phase: String,
}

impl Lines {
    fn write(&mut self, moment: &Moment, speed: &Speed) {
        let now = Instant::now();
        if now < self.next && moment.phase == self.phase {
            return;
        }
        self.next = now + self.every;
        self.phase.clone_from(&moment.phase);
        let seconds = speed.started.elapsed().as_secs();
        // Whoever closed the pipe does not want to read on; the run goes on.
        let _ = writeln!(self.out, "{seconds:>4} s  {}", line(moment, speed.now));
        let _ = self.out.flush();
    }
}

/// Everything in one line.
fn line(moment: &Moment, per_second: f64) -> String {
    let mut line = format!("{:<10}", moment.phase);
    let copying: Vec<&CopyMoment> = moment.copies.iter().filter(|copy| !copy.done).collect();
    if !copying.is_empty() {
        let rows: u64 = moment.copies.iter().map(|copy| copy.rows).sum();
        let expected: u64 = moment
            .copies
            .iter()
            .map(|copy| copy.expected.max(copy.rows))
            .sum();
        let _ = write!(line, " copied {} of {} rows,", count(rows), count(expected));
    }
    let _ = write!(
        line,
        " {} changes, {}",
        count(moment.changes),
        rate(per_second)
    );
    if moment.purchases > 0 {
        let _ = write!(line, ", {}", of(moment.purchases, "purchase", "purchases"));
    }
    for sink in &moment.sinks {
        let _ = write!(line, " | {} {}", sink.name, count(sink.records));
        match (&sink.problem, sink.p50) {
            (Some(problem), _) => {
                let _ = write!(line, " WAITS: {problem}");
            }
            (None, Some(p50)) => {
                let _ = write!(line, ", p50 {}", duration(p50));
            }
            (None, None) => {}
        }
    }
    if let Some(problem) = &moment.problem {
        let _ = write!(line, " | WAITS: {problem}");
    }
    line
}

/// A block of lines that redraws itself.
struct Terminal {
    lines: ProgressBar,
    all: MultiProgress,
    paint: Paint,
}

impl Terminal {
    fn new() -> Self {
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stdout_with_hz(8));
        let lines = all.add(ProgressBar::new_spinner());
        // A template that does not parse would show indicatif's own, which is no harm.
        if let Ok(style) = ProgressStyle::with_template("{msg}") {
            lines.set_style(style);
        }
        let paint = Paint { color: true };
        Terminal { lines, all, paint }
    }

    fn draw(&self, moment: &Moment, speed: &Speed) {
        let text = block(moment, speed.now, speed.started.elapsed(), self.paint);
        self.lines.set_message(text);
    }

    fn clear(self) {
        self.lines.finish_and_clear();
        // A terminal that is gone needs no clearing.
        let _ = self.all.clear();
    }
}

/// The block of lines.
fn block(moment: &Moment, per_second: f64, elapsed: Duration, paint: Paint) -> String {
    let mut out = format!(
        "{}  {}  {} changes  {}",
        paint.bold(&moment.phase),
        paint.dim(&format!("{} s", elapsed.as_secs())),
        count(moment.changes),
        paint.good(&rate(per_second)),
    );
    if moment.purchases > 0 {
        let _ = write!(out, "  {}", of(moment.purchases, "purchase", "purchases"));
    }
    if let Some(memory) = moment.memory {
        let _ = write!(out, "  {}", crate::figures::bytes(memory));
    }
    out.push('\n');
    if let Some(problem) = &moment.problem {
        let _ = writeln!(out, "{}", paint.bad(&format!("waits: {problem}")));
    }
    out += &copies(&moment.copies, per_second, paint);
    let mut table = Table::new(1, &["sink", "records", "lag", "p50", "p99"]);
    let show = |time: Option<Duration>| time.map_or_else(|| "–".into(), duration);
    for sink in &moment.sinks {
        let mut cells = vec![sink.name.clone(), count(sink.records)];
        cells.extend([sink.lag, sink.p50, sink.p99].map(show));
        match &sink.problem {
            None => table.row(cells),
            Some(problem) => {
                cells[0] = format!("{} waits: {problem}", sink.name);
                table.bad_row(cells);
            }
        }
    }
    if !table.is_empty() {
        out += &table.render(paint);
    }
    out.truncate(out.trim_end().len());
    out
}

/// Bars of the initial copy, while there is one.
fn copies(copies: &[CopyMoment], per_second: f64, paint: Paint) -> String {
    if copies.iter().all(|copy| copy.done) {
        return String::new();
    }
    let mut out = String::new();
    let width = copies
        .iter()
        .map(|copy| copy.table.chars().count())
        .max()
        .unwrap_or(0);
    let mut left = 0;
    for copy in copies {
        let expected = if copy.done {
            copy.rows
        } else {
            copy.expected.max(copy.rows)
        };
        left += expected - copy.rows;
        let full = if copy.done {
            BAR
        } else {
            BAR * copy.rows / expected.max(1)
        };
        let bar = format!(
            "{}{}",
            "━".repeat(full as usize),
            " ".repeat((BAR - full) as usize)
        );
        let _ = writeln!(
            out,
            "  {:<width$} {} {}",
            copy.table,
            paint.good(&bar),
            paint.dim(&format!("{} of {}", count(copy.rows), count(expected)))
        );
    }
    if left > 0 && per_second >= 1.0 {
        let seconds = Duration::from_secs((left as f64 / per_second).ceil() as u64);
        let _ = writeln!(
            out,
            "  {}",
            paint.dim(&format!("about {} left", duration(seconds)))
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    fn moment() -> Moment {
        Moment {
            phase: "streaming".into(),
            changes: 123_456,
            purchases: 1_200,
            sinks: vec![
                SinkMoment {
                    name: "events".into(),
                    records: 120_000,
                    lag: Some(Duration::from_millis(3)),
                    p50: Some(Duration::from_micros(2_100)),
                    p99: Some(Duration::from_micros(15_000)),
                    problem: None,
                },
                SinkMoment {
                    name: "cache".into(),
                    problem: Some("connection refused".into()),
                    ..SinkMoment::default()
                },
            ],
            memory: Some(64_000_000),
            ..Moment::default()
        }
    }

    fn copying() -> Moment {
        let copy = |table: &str, rows, expected, done| CopyMoment {
            table: table.into(),
            rows,
            expected,
            done,
        };
        Moment {
            phase: "copying".into(),
            changes: 25_500,
            copies: vec![
                copy("orders.orders", 20_000, 19_800, true),
                copy("orders.payments", 5_500, 11_000, false),
            ],
            ..Moment::default()
        }
    }

    #[test]
    fn a_line_tells_it_all() {
        assert_eq!(
            line(&moment(), 4_321.0),
            "streaming  123,456 changes, 4,321/s, 1,200 purchases | events 120,000, p50 2.10 ms \
             | cache 0 WAITS: connection refused"
        );
        assert_eq!(
            line(&copying(), 5_500.0),
            "copying    copied 25,500 of 31,000 rows, 25,500 changes, 5,500/s"
        );
    }

    #[test]
    fn a_block_shows_bars_and_sinks() {
        let block_of =
            |moment: &Moment| block(moment, 5_500.0, Duration::from_secs(3), Paint::default());
        let text = block_of(&copying());
        let (full, half) = ("━".repeat(24), "━".repeat(12));
        assert_eq!(
            text,
            format!(
                "copying  3 s  25,500 changes  5,500/s\n  orders.orders   {full} 20,000 of 20,000\n  \
                 orders.payments {half}             5,500 of 11,000\n  about 1.00 s left"
            )
        );
        let text = block_of(&moment());
        assert!(
            text.starts_with(
                "streaming  3 s  123,456 changes  5,500/s  1,200 purchases  64.0 MB\n"
            ),
            "{text}"
        );
        assert!(text.contains("cache waits: connection refused"), "{text}");
        assert!(
            text.contains("120,000  3.00 ms  2.10 ms  15.0 ms"),
            "{text}"
        );
    }

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("no panic").write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn lines_come_at_their_pace_and_when_the_phase_changes() {
        let out = Shared::default();
        let screen = Screen::Lines {
            out: Box::new(out.clone()),
            every: Duration::from_secs(5),
        };
        let begin = Instant::now();
        let watch = move || {
            let seconds = begin.elapsed().as_secs();
            Moment {
                phase: if seconds < 7 { "copying" } else { "streaming" }.into(),
                changes: seconds * 1_000,
                ..Moment::default()
            }
        };
        let view = View::start(watch, screen);
        tokio::time::sleep(Duration::from_millis(11_100)).await;
        let top = view.stop().await;
        assert!((900.0..1_100.0).contains(&top), "{top}");
        let bytes = out.0.lock().expect("no panic").clone();
        let text = String::from_utf8(bytes).expect("UTF-8");
        let starts: Vec<&str> = text.lines().map(|line| line[..16].trim_end()).collect();
        assert_eq!(
            starts,
            ["   0 s  copying", "   5 s  copying", "   7 s  streamin"],
            "{text}"
        );
    }
}
