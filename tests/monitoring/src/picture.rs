//! Pictures of dashboards, drawn from what Prometheus has answered to their queries. Not by Grafana, and not pretending to be: for the
//! documentation, where it should be seen what is on them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::model::{Bad, Dashboard, Kind, Panel, Query};

/// Pixels of a column and of a line of the grid.
const COLUMN: f64 = 60.0;
const LINE: f64 = 30.0;
const GAP: f64 = 4.0;

const GREEN: &str = "#2e8b3d";
const RED: &str = "#d0342c";
const GREY: &str = "#6e7377";
const PALETTE: [&str; 8] = [
    "#1f77b4", "#e08214", "#2e8b3d", "#8c564b", "#9467bd", "#17a2b8", "#c2185b", "#7f7f7f",
];

/// Names in a legend, and rows of a table, at most.
const SHOWN: usize = 7;

/// One series of an answer.
#[derive(Clone, Debug)]
pub struct Series {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Seconds since the Unix epoch, and the value, in this order.
    pub points: Vec<(f64, f64)>,
}

/// A rectangle.
#[derive(Clone, Copy)]
struct Place {
    x: f64,
    y: f64,
    width: f64,
    height: f64,
}

/// What is drawn: the name it has in the legend, and where it is.
type Named<'a> = (String, &'a Series);

/// Draws a dashboard as SVG; `data` has the answer to each query.
#[must_use]
pub fn draw(dashboard: &Dashboard, data: impl Fn(&Query) -> Vec<Series>) -> String {
    let mut body = String::new();
    let mut y = 40.0;
    for row in &dashboard.rows {
        text(&mut body, 8.0, y + 20.0, 14, "#1f2328", "bold", row.title);
        y += LINE;
        let (mut x, mut height) = (0_u32, 0.0_f64);
        for panel in &row.panels {
            if x + panel.width > 24 {
                y += height;
                (x, height) = (0, 0.0);
            }
            let lines = panel_lines(panel);
            let place = Place {
                x: f64::from(x) * COLUMN + GAP,
                y: y + GAP,
                width: f64::from(panel.width) * COLUMN - 2.0 * GAP,
                height: lines * LINE - 2.0 * GAP,
            };
            let mut answers: Vec<Vec<Series>> = panel.queries.iter().map(&data).collect();
            if matches!(panel.kind, Kind::Stat | Kind::Table) {
                keep_those_of_now(&mut answers);
            }
            draw_panel(&mut body, place, panel, &answers);
            x += panel.width;
            height = height.max(lines * LINE);
        }
        y += height;
    }
    let (width, height) = (24.0 * COLUMN, y + 30.0);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"system-ui, sans-serif\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"#f3f4f5\"/>\n"
    );
    text(&mut out, 8.0, 26.0, 18, "#1f2328", "bold", dashboard.title);
    out += &body;
    let said = "Drawn from Prometheus' answers to the panels' queries, not by Grafana.";
    text(&mut out, 8.0, y + 20.0, 11, GREY, "normal", said);
    out + "</svg>\n"
}

/// Leaves out what ended before the last moment.
fn keep_those_of_now(answers: &mut [Vec<Series>]) {
    let end = |series: &Series| series.points.last().map_or(0.0, |point| point.0);
    let now = answers.iter().flatten().map(end).fold(0.0, f64::max);
    for all in answers {
        all.retain(|series| end(series) >= now - 1.0);
    }
}

fn panel_lines(panel: &Panel) -> f64 {
    match panel.kind {
        Kind::Stat => 3.0,
        Kind::States => 6.0,
        Kind::Lines | Kind::Table => 8.0,
    }
}

fn draw_panel(out: &mut String, place: Place, panel: &Panel, answers: &[Vec<Series>]) {
    let Place {
        x,
        y,
        width,
        height,
    } = place;
    let _ = writeln!(
        out,
        "<g><title>{}</title><rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"3\" fill=\"#fff\" stroke=\"#d8dbde\"/>",
        escaped(&panel.description)
    );
    let title = cut(panel.title, ((width - 12.0) / 6.6) as usize);
    text(out, x + 8.0, y + 18.0, 12, "#1f2328", "bold", &title);
    let inner = Place {
        x: x + 8.0,
        y: y + 26.0,
        width: width - 16.0,
        height: height - 32.0,
    };
    let named: Vec<Named<'_>> = panel
        .queries
        .iter()
        .zip(answers)
        .flat_map(|(query, all)| all.iter().map(|series| (name(query, series), series)))
        .filter(|(_, series)| series.points.iter().any(|point| point.1.is_finite()))
        .collect();
    if named.is_empty() {
        let middle = inner.y + inner.height / 2.0;
        text(out, inner.x, middle, 12, GREY, "normal", "no data");
    } else {
        match panel.kind {
            Kind::Stat => draw_stat(out, inner, panel, &named),
            Kind::Lines => draw_lines(out, inner, panel, &named),
            Kind::States => draw_states(out, inner, panel, &named),
            Kind::Table => draw_table(out, inner, panel, answers),
        }
    }
    *out += "</g>\n";
}

fn draw_stat(out: &mut String, place: Place, panel: &Panel, named: &[Named<'_>]) {
    let each = place.height / named.len().min(2) as f64;
    for (at, (name, series)) in named.iter().take(2).enumerate() {
        let value = last(series);
        let size = if named.len() == 1 { 26 } else { 16 };
        let shown = format!("{} {name}", in_unit(value, panel.unit));
        let y = place.y + each * at as f64 + each * 0.7;
        text(
            out,
            place.x,
            y,
            size,
            colour(value, panel.bad),
            "bold",
            shown.trim(),
        );
    }
}

fn draw_lines(out: &mut String, place: Place, panel: &Panel, named: &[Named<'_>]) {
    let legend = named.len().min(SHOWN).div_ceil(2) as f64 * 15.0;
    let plot = Place {
        x: place.x + 52.0,
        y: place.y,
        width: place.width - 56.0,
        height: place.height - legend - 20.0,
    };
    let points = || named.iter().flat_map(|(_, series)| &series.points);
    let most = points()
        .map(|point| point.1)
        .filter(|value| value.is_finite())
        .fold(0.0, f64::max);
    let top = if most > 0.0 { most * 1.1 } else { 1.0 };
    let first = points().map(|point| point.0).fold(f64::INFINITY, f64::min);
    let end = points().map(|point| point.0).fold(0.0, f64::max);
    let span = (end - first).max(1.0);
    let at = |(time, value): (f64, f64)| {
        let x = plot.x + (time - first) / span * plot.width;
        let y = plot.y + plot.height * (1.0 - value / top);
        (x, y)
    };
    for part in [0.0, 0.5, 1.0] {
        let (_, y) = at((first, top * part));
        line(out, (plot.x, y), (plot.x + plot.width, y), "#e5e7e9", "");
        let label = in_unit(top * part, panel.unit);
        text(out, place.x, y + 4.0, 10, GREY, "normal", &label);
    }
    let below = plot.y + plot.height + 13.0;
    text(
        out,
        plot.x,
        below,
        10,
        GREY,
        "normal",
        &format!("{span:.0} s ago"),
    );
    text(
        out,
        plot.x + plot.width - 20.0,
        below,
        10,
        GREY,
        "normal",
        "now",
    );
    if let Some(Bad::From(value) | Bad::Below(value)) = panel.bad
        && value <= top
    {
        let (_, y) = at((first, value));
        line(out, (plot.x, y), (plot.x + plot.width, y), RED, "4 3");
    }
    for (number, (_, series)) in named.iter().enumerate() {
        let stroke = PALETTE[number % PALETTE.len()];
        let mut path = String::new();
        for point in series.points.iter().filter(|point| point.1.is_finite()) {
            let (x, y) = at(*point);
            let verb = if path.is_empty() { 'M' } else { 'L' };
            let _ = write!(path, "{verb}{x:.1} {y:.1}");
        }
        let _ = writeln!(
            out,
            "<path d=\"{path}\" fill=\"none\" stroke=\"{stroke}\" stroke-width=\"1.3\"/>"
        );
    }
    for (number, (name, series)) in named.iter().take(SHOWN).enumerate() {
        let x = place.x + (number % 2) as f64 * place.width / 2.0;
        let y = below + 16.0 + (number / 2) as f64 * 15.0;
        let stroke = PALETTE[number % PALETTE.len()];
        let _ = writeln!(
            out,
            "<rect x=\"{x}\" y=\"{}\" width=\"10\" height=\"3\" fill=\"{stroke}\"/>",
            y - 5.0
        );
        let more = named.len() - SHOWN.min(named.len());
        let shown = if number + 1 == SHOWN && more > 0 {
            format!("and {} more", more + 1)
        } else {
            format!("{name}  {}", in_unit(last(series), panel.unit))
        };
        let room = (place.width / 2.0 - 16.0) / 5.4;
        text(
            out,
            x + 14.0,
            y,
            10,
            "#1f2328",
            "normal",
            &cut(&shown, room as usize),
        );
    }
}

fn draw_states(out: &mut String, place: Place, panel: &Panel, named: &[Named<'_>]) {
    let each = (place.height / named.len() as f64).min(34.0);
    let times = || named.iter().flat_map(|(_, series)| &series.points);
    let first = times().map(|point| point.0).fold(f64::INFINITY, f64::min);
    let end = times().map(|point| point.0).fold(0.0, f64::max);
    // A value every second.
    let span = end - first + 1.0;
    for (number, (name, series)) in named.iter().enumerate() {
        let y = place.y + each * number as f64;
        text(
            out,
            place.x,
            y + each * 0.6,
            10,
            "#1f2328",
            "normal",
            &cut(name, 22),
        );
        let (from, room) = (place.x + 140.0, place.width - 144.0);
        let width = room / span;
        for point in &series.points {
            let x = from + width * (point.0 - first);
            let fill = colour(point.1, panel.bad);
            let _ = writeln!(
                out,
                "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{fill}\"/>",
                y + 2.0,
                width + 0.3,
                each - 6.0
            );
        }
    }
}

fn draw_table(out: &mut String, place: Place, panel: &Panel, answers: &[Vec<Series>]) {
    let mut rows: BTreeMap<&BTreeMap<String, String>, Vec<Option<f64>>> = BTreeMap::new();
    for (at, all) in answers.iter().enumerate() {
        for series in all {
            let row = rows
                .entry(&series.labels)
                .or_insert_with(|| vec![None; answers.len()]);
            row[at] = Some(last(series));
        }
    }
    let labels: BTreeSet<&String> = rows.keys().flat_map(|labels| labels.keys()).collect();
    let mut lines: Vec<Vec<String>> = vec![
        labels
            .iter()
            .map(|label| label.to_string())
            .chain(panel.queries.iter().map(|query| query.legend.to_owned()))
            .collect(),
    ];
    for (of, values) in rows.iter().take(SHOWN) {
        let values = values.iter().map(|value| match value {
            Some(value) => in_unit(*value, panel.unit),
            None => String::new(),
        });
        let named = labels
            .iter()
            .map(|label| of.get(*label).cloned().unwrap_or_default());
        lines.push(named.chain(values).collect());
    }
    let columns = lines[0].len();
    let width = place.width / columns as f64;
    for (at, cells) in lines.iter().enumerate() {
        for (column, cell) in cells.iter().enumerate() {
            let weight = if at == 0 { "bold" } else { "normal" };
            let x = place.x + width * column as f64;
            let y = place.y + 14.0 + 22.0 * at as f64;
            let room = (width / 6.0) as usize;
            text(out, x, y, 11, "#1f2328", weight, &cut(cell, room));
        }
    }
}

/// A legend with the values of labels in it.
fn name(query: &Query, series: &Series) -> String {
    let mut name = query.legend.to_owned();
    for (label, value) in &series.labels {
        name = name.replace(&format!("{{{{{label}}}}}"), value);
    }
    name
}

fn last(series: &Series) -> f64 {
    let finite = series.points.iter().rev().map(|point| point.1);
    finite
        .into_iter()
        .find(|value| value.is_finite())
        .unwrap_or(f64::NAN)
}

fn colour(value: f64, bad: Option<Bad>) -> &'static str {
    match bad {
        Some(Bad::From(limit)) if value >= limit => RED,
        Some(Bad::Below(limit)) if value < limit => RED,
        Some(Bad::Idle(limit)) if value < limit => GREY,
        None | Some(_) => GREEN,
    }
}

/// As Grafana writes it, roughly.
fn in_unit(value: f64, unit: &str) -> String {
    let scaled = |steps: &[(f64, &str)]| {
        let fits = steps.iter().rfind(|(size, _)| value.abs() >= *size);
        let (size, name) = fits.or_else(|| steps.first()).copied().unwrap_or((1.0, ""));
        format!("{} {name}", short(value / size))
            .trim_end()
            .to_owned()
    };
    const KIB: f64 = 1024.0;
    match unit {
        "s" => scaled(&[
            (1e-6, "µs"),
            (1e-3, "ms"),
            (1.0, "s"),
            (60.0, "min"),
            (3600.0, "h"),
        ]),
        "bytes" => scaled(&[
            (1.0, "B"),
            (KIB, "KiB"),
            (KIB * KIB, "MiB"),
            (KIB * KIB * KIB, "GiB"),
        ]),
        "Bps" => scaled(&[(1.0, "B/s"), (1e3, "kB/s"), (1e6, "MB/s")]),
        "cps" => format!("{}/s", short(value)),
        "percentunit" => format!("{} %", short(value * 100.0)),
        _ => short(value),
    }
}

fn short(value: f64) -> String {
    let text = match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    };
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

fn cut(text: &str, room: usize) -> String {
    if text.chars().count() <= room {
        return text.to_owned();
    }
    let kept: String = text.chars().take(room.saturating_sub(1)).collect();
    kept + "…"
}

fn text(out: &mut String, x: f64, y: f64, size: u32, fill: &str, weight: &str, said: &str) {
    let said = escaped(said);
    // Writing to a String cannot fail, here and elsewhere.
    let _ = writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" font-weight=\"{weight}\" fill=\"{fill}\">{said}</text>"
    );
}

fn line(out: &mut String, from: (f64, f64), to: (f64, f64), stroke: &str, dashes: &str) {
    let _ = writeln!(
        out,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{stroke}\" stroke-dasharray=\"{dashes}\"/>",
        from.0, from.1, to.0, to.1
    );
}

fn escaped(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    text.replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::in_unit;

    #[test]
    fn numbers_are_written_as_people_read_them() {
        for (value, unit, written) in [
            (0.0, "s", "0 µs"),
            (0.0032, "s", "3.2 ms"),
            (90.0, "s", "1.5 min"),
            (1_048_576.0, "bytes", "1 MiB"),
            (0.25, "percentunit", "25 %"),
            (100.0, "short", "100"),
        ] {
            assert_eq!(in_unit(value, unit), written);
        }
    }
}
