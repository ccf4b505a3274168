//! Figures as people read them, and tables of them.

use std::time::Duration;

/// `1,234,567`.
#[must_use]
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `12.3 MB`, by powers of ten.
#[must_use]
pub fn bytes(number: u64) -> String {
    let units = [(1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "kB")];
    for (unit, name) in units {
        if number >= unit {
            return format!("{:.1} {name}", number as f64 / unit as f64);
        }
    }
    format!("{number} B")
}

/// Three figures and a unit: `850 µs`, `4.25 ms`, `1.20 s`; from a minute on `2 min 05 s`.
#[must_use]
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds >= 60.0 {
        return format!("{} min {:02} s", time.as_secs() / 60, time.as_secs() % 60);
    }
    let (value, unit) = if seconds >= 1.0 {
        (seconds, "s")
    } else if seconds >= 1e-3 {
        (seconds * 1e3, "ms")
    } else {
        (seconds * 1e6, "µs")
    };
    let decimals = match value {
        0.0..10.0 => 2,
        10.0..100.0 => 1,
        _ => 0,
    };
    format!("{value:.decimals$} {unit}")
}

/// `4,321/s`.
#[must_use]
pub fn rate(per_second: f64) -> String {
    format!("{}/s", count(per_second.round().max(0.0) as u64))
}

/// `1 row`, `2 rows`.
#[must_use]
pub fn of(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(number), if number == 1 { one } else { many })
}

/// A text in lines of so many columns at most, broken between words; a word that is longer has a line of its own.
#[must_use]
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for paragraph in text.lines() {
        let mut line = String::new();
        for word in paragraph.split(' ') {
            let wide = line.chars().count() + 1 + word.chars().count() > width;
            if wide && !line.is_empty() {
                lines.push(std::mem::take(&mut line));
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        lines.push(line);
    }
    lines
}

/// Colours of a terminal, or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paint {
    /// Whether to write escape sequences.
    pub color: bool,
}

impl Paint {
    /// A heading.
    #[must_use]
    pub fn bold(self, text: &str) -> String {
        self.wrap("1", text)
    }

    /// What matters less.
    #[must_use]
    pub fn dim(self, text: &str) -> String {
        self.wrap("2", text)
    }

    /// What is right.
    #[must_use]
    pub fn good(self, text: &str) -> String {
        self.wrap("1;32", text)
    }

    /// What deserves a look.
    #[must_use]
    pub fn attention(self, text: &str) -> String {
        self.wrap("1;33", text)
    }

    /// What is wrong.
    #[must_use]
    pub fn bad(self, text: &str) -> String {
        self.wrap("1;31", text)
    }

    fn wrap(self, code: &str, text: &str) -> String {
        if self.color {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// Rows of cells under a heading. The first `left` columns are texts, the others figures.
#[derive(Clone, Debug)]
pub struct Table {
    left: usize,
    heading: Vec<String>,
    rows: Vec<(Vec<String>, Look)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    Plain,
    Total,
    Bad,
}

impl Table {
    /// An empty table.
    #[must_use]
    pub fn new(left: usize, heading: &[&str]) -> Self {
        Table {
            left,
            heading: heading.iter().map(|&cell| cell.to_owned()).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row, with as many cells as the heading has.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push((cells, Look::Plain));
    }

    /// Adds a row of sums.
    pub fn total(&mut self, cells: Vec<String>) {
        self.rows.push((cells, Look::Total));
    }

    /// Adds a row that should not be as it is.
    pub fn bad_row(&mut self, cells: Vec<String>) {
        self.rows.push((cells, Look::Bad));
    }

    /// The same without the last column, if it is not wanted.
    #[must_use]
    pub fn without_last(mut self, unwanted: bool) -> Self {
        if unwanted {
            self.heading.pop();
            for (row, _) in &mut self.rows {
                row.pop();
            }
        }
        self
    }

    /// Whether there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The text, every line with its end.
    #[must_use]
    pub fn render(&self, paint: Paint) -> String {
        let all = || std::iter::once(&self.heading).chain(self.rows.iter().map(|(row, _)| row));
        let width = |column: usize| all().map(|row| row[column].chars().count()).max();
        let widths: Vec<usize> = (0..self.heading.len())
            .map(|column| width(column).unwrap_or(0))
            .collect();
        let mut out = self.line(&self.heading, &widths, |text| paint.bold(text));
        for (row, look) in &self.rows {
            out += &self.line(row, &widths, |text| match look {
                Look::Plain => text.to_owned(),
                Look::Total => paint.bold(text),
                Look::Bad => paint.bad(text),
            });
        }
        out
    }

    fn line(&self, row: &[String], widths: &[usize], paint: impl Fn(&str) -> String) -> String {
        let mut line = String::new();
        for (column, (cell, &width)) in std::iter::zip(row, widths).enumerate() {
            let padding = " ".repeat(width - cell.chars().count());
            line.push_str("  ");
            if column < self.left {
                line.push_str(cell);
                line.push_str(&padding);
            } else {
                line.push_str(&padding);
                line.push_str(cell);
            }
        }
        format!("{}\n", paint(line.trim_end()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_well() {
        assert_eq!(
            [0, 999, 1_000, 1_234_567].map(count),
            ["0", "999", "1,000", "1,234,567"]
        );
        assert_eq!(
            [999, 1_500, 12_345_678].map(bytes),
            ["999 B", "1.5 kB", "12.3 MB"]
        );
        let times = [850, 4_250, 42_500, 850_000, 1_200_000, 125_000_000];
        assert_eq!(
            times.map(|micros| duration(Duration::from_micros(micros))),
            [
                "850 µs",
                "4.25 ms",
                "42.5 ms",
                "850 ms",
                "1.20 s",
                "2 min 05 s"
            ]
        );
        assert_eq!(rate(4_321.4), "4,321/s");
        assert_eq!(of(1, "row", "rows"), "1 row");
    }

    #[test]
    fn lines_break_between_words() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("a enormously b", 5), ["a", "enormously", "b"]);
        assert_eq!(wrap("one\ntwo", 80), ["one", "two"]);
        assert_eq!(wrap("", 80), Vec::<String>::new());
        assert_eq!(wrap("one two", usize::MAX), ["one two"]);
    }

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(1, &["table", "rows"]);
        table.row(vec!["café".into(), "1,000".into()]);
        table.total(vec!["all".into(), "1".into()]);
        assert_eq!(
            table.render(Paint::default()),
            "  table   rows\n  café   1,000\n  all        1\n"
        );
        assert!(
            table
                .render(Paint { color: true })
                .contains("\x1b[1m  all        1\x1b[0m")
        );
    }
}
