//! Bars for the initial copy, on a terminal. Elsewhere the log says the same every few seconds.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use lockstep_core::source::SourcePhase;
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
        let style = ProgressStyle::with_template(
            "{prefix:32} {bar:24} {human_pos:>12} / {human_len} rows  {per_sec}  {eta} left",
        );
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        let mut shown: HashMap<(String, String), ProgressBar> = HashMap::new();
        let mut tick = tokio::time::interval(REDRAW);
        loop {
            tick.tick().await;
            for (name, source) in handle.status().sources {
                for table in &source.state.snapshot {
                    let key = (name.clone(), table.table.clone());
                    let over = table.done || source.state.phase != SourcePhase::Snapshot;
                    if over {
                        if let Some(bar) = shown.remove(&key) {
                            bar.finish_and_clear();
                        }
                        continue;
                    }
                    let bar = shown.entry(key).or_insert_with(|| {
                        let bar = self
                            .bars
                            .add(ProgressBar::new(table.estimated_rows).with_style(style.clone()));
                        bar.set_prefix(format!("{name} {}", table.table));
                        bar
                    });
                    bar.set_length(table.estimated_rows.max(table.rows));
                    bar.set_position(table.rows);
                }
            }
        }
    }
}
