//! `lockstep status --watch`: looks again and again. On a terminal the table stands still and its figures change; elsewhere a block
//! follows the other.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lockstep_core::error::Policy;
use lockstep_core::{Error, ErrorKind};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use super::table::table;
use crate::cli::Format;
use crate::client::Client;
use crate::figures::Paint;
use crate::terminal::{self, Changed};
use crate::{Outcome, output};

/// What happened per second between two looks.
#[derive(Clone, Debug, Default)]
pub struct Rates {
    sources: BTreeMap<String, f64>,
    sinks: BTreeMap<String, f64>,
}

impl Rates {
    /// Changes that came in from a source.
    pub fn source(&self, name: &str) -> Option<f64> {
        self.sources.get(name).copied()
    }

    /// Records that were written into a sink.
    pub fn sink(&self, name: &str) -> Option<f64> {
        self.sinks.get(name).copied()
    }

    /// Between two looks. What has begun to count anew, as a process that was restarted does, has no rate.
    fn between(before: &Value, now: &Value, passed: Duration) -> Self {
        let of = |section: &str, figure: &str| {
            let all = now[section].as_object().into_iter().flatten();
            let rates = all.filter_map(|(name, one)| {
                let more = one[figure].as_u64()?;
                let less = before[section][name][figure].as_u64()?;
                let rate = more.checked_sub(less)? as f64 / passed.as_secs_f64();
                rate.is_finite().then(|| (name.clone(), rate))
            });
            rates.collect()
        };
        Rates {
            sources: of("sources", "changes"),
            sinks: of("sinks", "written"),
        }
    }

    fn json(&self) -> Value {
        json!({ "sources": self.sources, "sinks": self.sinks })
    }
}

/// What was seen at one look.
struct Seen {
    status: Result<Value, Error>,
    rates: Option<Rates>,
}

/// Looks every so often until `q`, Ctrl-C or SIGTERM. A pipeline that cannot be reached is asked again. Exit code 0.
///
/// # Errors
/// What asking again does not mend: a wrong token.
pub async fn watch(endpoint: &Client<'_>, every: Duration, format: Format) -> Outcome {
    let mut screen = match (format, output::is_terminal()) {
        (Format::Table, true) => Screen::Terminal(Terminal::open()),
        (Format::Table, false) => Screen::Blocks,
        (Format::Json, _) => Screen::Lines,
    };
    let mut keys = screen.keys();
    let hear = |kind| {
        signal(kind)
            .map_err(|error| Error::new(ErrorKind::Storage, "cannot hear signals").source(error))
    };
    let (mut interrupt, mut terminate) = (
        hear(SignalKind::interrupt())?,
        hear(SignalKind::terminate())?,
    );
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last: Option<(Instant, Value)> = None;
    loop {
        let look = async {
            ticks.tick().await;
            endpoint.status().await
        };
        let status = tokio::select! {
            biased;
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            () = quits(&mut keys) => break,
            status = look => status,
        };
        let now = Instant::now();
        let rates = match (&status, &last) {
            (Ok(status), Some((then, before))) => Some(Rates::between(before, status, now - *then)),
            _ => None,
        };
        match &status {
            Ok(status) => last = Some((now, status.clone())),
            Err(error) if error.kind().policy() == Policy::Stop => {
                drop(screen);
                return status.map(|_| ExitCode::SUCCESS);
            }
            Err(_) => last = None,
        }
        if !screen.show(&Seen { status, rates }, every) {
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Resolves when somebody presses `q`; never where there are no keys.
async fn quits(keys: &mut Option<mpsc::Receiver<u8>>) {
    let Some(keys) = keys else {
        return std::future::pending().await;
    };
    while let Some(key) = keys.recv().await {
        if matches!(key, b'q' | b'Q') {
            return;
        }
    }
    // A terminal that sends nothing any more is still looked at.
    std::future::pending().await
}

enum Screen {
    /// Redrawn in place.
    Terminal(Terminal),
    /// One block behind the other.
    Blocks,
    /// One JSON object a line.
    Lines,
}

impl Screen {
    fn keys(&self) -> Option<mpsc::Receiver<u8>> {
        match self {
            Screen::Terminal(terminal) => terminal.keys(),
            Screen::Blocks | Screen::Lines => None,
        }
    }

    /// `false` when nobody reads it any more.
    fn show(&mut self, seen: &Seen, every: Duration) -> bool {
        match self {
            Screen::Terminal(terminal) => terminal.draw(seen, every),
            Screen::Blocks => written(&format!("{}\n", body(seen, output::paint()))),
            Screen::Lines => written(&format!("{}\n", line(seen))),
        }
    }
}

fn written(text: &str) -> bool {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_bytes());
    written.and_then(|()| out.flush()).is_ok()
}

fn body(seen: &Seen, paint: Paint) -> String {
    match &seen.status {
        Ok(status) => {
            let none = Rates::default();
            table(status, Some(seen.rates.as_ref().unwrap_or(&none)), paint)
        }
        Err(error) => format!("{}\nit is asked again\n", paint.bad(&error.to_string())),
    }
}

fn line(seen: &Seen) -> Value {
    let at = SystemTime::now().duration_since(UNIX_EPOCH);
    let at = at.map_or(0.0, |at| at.as_secs_f64());
    match &seen.status {
        Ok(status) => json!({
            "at": at,
            "status": status,
            "per_second": seen.rates.as_ref().map(Rates::json),
        }),
        Err(error) => json!({ "at": at, "error": output::error_json(error) }),
    }
}

/// The terminal's other screen, for as long as this lives; what was there before comes back, with the last table below it.
struct Terminal {
    keyboard: Option<Changed>,
    last: String,
}

/// Takes the other screen, and hides the cursor.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
/// The other way round.
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

impl Terminal {
    fn open() -> Self {
        let keyboard = Changed::keys();
        written(ENTER);
        Terminal {
            keyboard,
            last: String::new(),
        }
    }

    /// Keys, as they are pressed. Whoever reads them waits for the keyboard, and does not hold up the end of the process.
    fn keys(&self) -> Option<mpsc::Receiver<u8>> {
        self.keyboard.as_ref()?;
        let (pressed, keys) = mpsc::channel(16);
        std::thread::spawn(move || {
            for key in std::io::stdin().lock().bytes() {
                match key {
                    Ok(key) if pressed.blocking_send(key).is_ok() => {}
                    _ => return,
                }
            }
        });
        Some(keys)
    }

    fn draw(&mut self, seen: &Seen, every: Duration) -> bool {
        let paint = output::paint();
        self.last = body(seen, paint);
        let every = lockstep_core::config::Duration(every);
        let foot = paint.dim(&format!("every {every}; q ends"));
        let all = format!("{}\n{foot}", self.last);
        let (columns, rows) = terminal::size().unwrap_or((80, 24));
        written(&frame(&all, columns, rows))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        written(LEAVE);
        written(&self.last);
    }
}

/// What is sent to draw a text over what was drawn before: lines end where the screen ends, and what is left of old ones goes.
fn frame(text: &str, columns: usize, rows: usize) -> String {
    let lines: Vec<String> = text
        .lines()
        .take(rows)
        .map(|line| format!("{}\x1b[K", cut(line, columns)))
        .collect();
    format!("\x1b[H{}\x1b[J", lines.join("\r\n"))
}

/// So much of a line as can be seen, with its colours, which take no room.
fn cut(line: &str, columns: usize) -> String {
    let mut out = String::new();
    let mut left = columns;
    let mut painted = false;
    let mut characters = line.chars();
    while let Some(c) = characters.next() {
        if c == '\x1b' {
            painted = true;
            out.push(c);
            for c in characters.by_ref() {
                out.push(c);
                if c.is_ascii_alphabetic() {
                    break;
                }
            }
        } else if left > 0 {
            left -= 1;
            out.push(c);
        }
    }
    if painted {
        out.push_str("\x1b[0m");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(changes: u64, written: u64) -> Value {
        json!({
            "pipeline": "shop", "version": "0.1.0", "uptime_seconds": 1.0, "ready": true, "problems": [],
            "sources": { "orders": { "phase": "streaming", "durable": "0/1", "changes": changes } },
            "sinks": { "cache": { "state": "running", "lag_seconds": 0.0, "written": written } },
        })
    }

    #[test]
    fn rates_are_of_the_time_between_two_looks() {
        let passed = Duration::from_secs(2);
        let rates = Rates::between(&status(1_000, 10), &status(9_000, 14), passed);
        assert_eq!(rates.source("orders"), Some(4_000.0));
        assert_eq!(rates.sink("cache"), Some(2.0));
        let restarted = Rates::between(&status(1_000, 10), &status(5, 14), passed);
        assert_eq!(restarted.source("orders"), None, "it counts anew");
        assert_eq!(restarted.sink("cache"), Some(2.0));
        assert_eq!(
            Rates::between(&json!({}), &status(1, 1), passed).source("orders"),
            None
        );
        let seen = Seen {
            status: Ok(status(9_000, 14)),
            rates: Some(rates),
        };
        let text = body(&seen, Paint::default());
        assert!(
            text.contains("4,000/s\n") && text.contains("2/s\n"),
            "{text}"
        );
        assert_eq!(line(&seen)["per_second"]["sources"]["orders"], 4_000.0);
    }

    #[test]
    fn a_frame_fits_the_screen_and_leaves_nothing_of_the_one_before() {
        let drawn = frame("one\nlonger than that\nthree\nfour", 6, 3);
        assert_eq!(
            drawn,
            "\x1b[Hone\x1b[K\r\nlonger\x1b[K\r\nthree\x1b[K\x1b[J"
        );
        let painted = Paint { color: true }.good("ready");
        assert_eq!(cut(&painted, 3), "\x1b[1;32mrea\x1b[0m\x1b[0m");
        assert_eq!(cut("né", 5), "né");
    }

    #[test]
    fn one_that_cannot_be_reached_is_told() {
        let seen = Seen {
            status: Err(Error::new(ErrorKind::Unavailable, "cannot ask").remedy("start it")),
            rates: None,
        };
        assert!(body(&seen, Paint::default()).contains("cannot ask. Remedy: start it"));
        assert_eq!(line(&seen)["error"]["code"], "LS003");
    }
}
