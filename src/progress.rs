//! Bars for the initial copy, on a terminal. Elsewhere the log says the same every few seconds.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use lockstep_core::source::{SourcePhase, SourceState};
use lockstep_pipelines::Handle;

/// How often bars are drawn.
const REDRAW: Duration = Duration::from_millis(200);

/// The terminal's bars. Clones share them.
#[derive(Clone, Debug)]
pub struct Bars {
    bars: MultiProgress,
    drawn: bool,
}

impl Bars {
    /// Bars on standard error, when it is a terminal and they are wanted.
    pub fn new(wanted: bool) -> Self {
        let drawn = wanted && std::io::stderr().is_terminal();
        let target = if drawn {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        Bars {
            bars: MultiProgress::with_draw_target(target),
            drawn,
        }
    }

    /// Does something that writes to the terminal, with the bars out of the way.
    pub fn above<T>(&self, write: impl FnOnce() -> T) -> T {
        if self.drawn {
            self.bars.suspend(write)
        } else {
            write()
        }
    }

    /// Draws copies as long as the task lives.
    pub async fn follow(&self, handle: Handle) {
        if !self.drawn {
            return std::future::pending().await;
        }
        let mut shown = Shown::default();
        let mut tick = tokio::time::interval(REDRAW);
        loop {
            tick.tick().await;
            for (name, source) in handle.status().sources {
                self.draw(&mut shown, &name, &source.state);
            }
        }
    }

    /// Draws how far the copies of one source are.
    fn draw(&self, shown: &mut Shown, name: &str, source: &SourceState) {
        for table in &source.snapshot {
            let key = (name.to_owned(), table.table.clone());
            if table.done || source.phase != SourcePhase::Snapshot {
                if let Some(bar) = shown.remove(&key) {
                    bar.finish_and_clear();
                }
                continue;
            }
            let bar = shown.entry(key).or_insert_with(|| {
                let bar = self.bars.add(ProgressBar::no_length());
                bar.set_prefix(format!("{name} {}", table.table));
                bar
            });
            // Statistics may be missing, or older than the table: a full bar with no time left would be a lie.
            if table.rows < table.estimated_rows {
                bar.set_style(style(KNOWN));
                bar.set_length(table.estimated_rows);
            } else {
                bar.set_style(style(UNKNOWN));
                bar.unset_length();
            }
            bar.set_position(table.rows);
            bar.tick();
        }
    }
}

/// The bars on the screen, by source and table.
type Shown = HashMap<(String, String), ProgressBar>;

const KNOWN: &str =
    "{prefix:32} {bar:24} {human_pos:>12} / {human_len} rows  {per_sec}  {eta} left";
const UNKNOWN: &str = "{prefix:32} {spinner:24} {human_pos:>12} rows  {per_sec}";

fn style(template: &str) -> ProgressStyle {
    // A template that does not parse would show indicatif's own, which is no harm.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use indicatif::InMemoryTerm;
    use lockstep_core::source::TableProgress;

    use super::*;

    fn source(tables: &[(&str, u64, u64, bool)]) -> SourceState {
        let tables = tables
            .iter()
            .map(|&(table, rows, estimated_rows, done)| TableProgress {
                table: table.into(),
                rows,
                estimated_rows,
                done,
            });
        SourceState {
            phase: SourcePhase::Snapshot,
            snapshot: tables.collect(),
            ..SourceState::default()
        }
    }

    /// What a terminal shows after these states of a source.
    fn screen(states: &[SourceState]) -> Vec<String> {
        let terminal = InMemoryTerm::new(10, 120);
        let target = ProgressDrawTarget::term_like_with_hz(Box::new(terminal.clone()), 255);
        let bars = Bars {
            bars: MultiProgress::with_draw_target(target),
            drawn: true,
        };
        let mut shown = Shown::default();
        for state in states {
            bars.draw(&mut shown, "orders", state);
        }
        let screen = terminal.contents();
        screen.lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_table_with_an_estimate_has_a_bar_and_the_time_left() {
        let screen = screen(&[source(&[("public.items", 250_000, 1_000_000, false)])]);
        let [line] = &screen[..] else {
            panic!("{screen:?}");
        };
        assert!(line.starts_with("orders public.items  "), "{line}");
        assert!(line.contains(" 250,000 / 1,000,000 rows  "), "{line}");
        assert!(line.contains("/s") && line.ends_with(" left"), "{line}");
        assert_eq!(line.matches('█').count(), 6, "a quarter of 24: {line}");
    }

    #[test]
    fn a_table_without_an_estimate_or_beyond_it_has_rows_and_rate_only() {
        for (rows, estimate) in [(1_234, 0), (1_000, 1_000), (1_200, 1_000)] {
            let state = source(&[("public.new", rows, estimate, false)]);
            let screen = screen(&[state]);
            let [line] = &screen[..] else {
                panic!("{screen:?}");
            };
            assert!(line.contains("rows  ") && line.contains("/s"), "{line}");
            assert!(!line.contains(" / ") && !line.contains("left"), "{line}");
            assert!(!line.contains('█'), "{line}");
        }
    }

    #[test]
    fn bars_go_when_their_tables_are_done_and_all_of_them_with_the_copy() {
        let begun = source(&[("public.a", 1, 10, false), ("public.b", 1, 10, false)]);
        let half = source(&[("public.a", 10, 10, true), ("public.b", 2, 10, false)]);
        let both = screen(std::slice::from_ref(&begun));
        assert_eq!(both.len(), 2, "{both:?}");
        let one = screen(&[begun.clone(), half]);
        assert!(one.len() == 1 && one[0].contains("public.b"), "{one:?}");
        let streaming = SourceState {
            phase: SourcePhase::Streaming,
            ..begun.clone()
        };
        let none = screen(&[begun, streaming]);
        assert!(none.is_empty(), "{none:?}");
    }
}
