//! What a dashboard is, as far as these need it, and how Grafana writes it down (versions 10 to 12).

use lockstep_core::metrics::Metric;
use serde_json::{Value, json};

/// Grafana's own schema of dashboards as of version 10; newer versions read it, and bring it up to theirs.
const SCHEMA: u32 = 38;

/// The grid's width.
const COLUMNS: u32 = 24;

/// What stands for the time between two points of a graph in a query.
pub const RATE: &str = "$__rate_interval";

/// A dashboard.
#[derive(Clone, Debug)]
pub struct Dashboard {
    /// Stays, so that links go on to work.
    pub uid: &'static str,
    /// Its title.
    pub title: &'static str,
    /// What it is for.
    pub description: &'static str,
    /// What may be chosen, beside the data source.
    pub variables: Vec<Variable>,
    /// From top to bottom.
    pub rows: Vec<Row>,
}

/// What may be chosen at the top.
#[derive(Clone, Debug)]
pub struct Variable {
    /// `$name` in queries.
    pub name: &'static str,
    /// Where its values come from.
    pub query: String,
    /// Whether several, and all, may be chosen.
    pub is_many: bool,
}

/// Panels under one heading.
#[derive(Clone, Debug)]
pub struct Row {
    /// The heading.
    pub title: &'static str,
    /// From left to right, and then on the next line.
    pub panels: Vec<Panel>,
}

/// How a panel shows what it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One large number, of now.
    Stat,
    /// Lines over time.
    Lines,
    /// Of now, a row for each series, the queries' values side by side.
    Table,
    /// States over time, a line for each series.
    States,
}

/// A panel.
#[derive(Clone, Debug)]
pub struct Panel {
    /// Its title.
    pub title: &'static str,
    /// What it shows, and what good looks like.
    pub description: String,
    /// How.
    pub kind: Kind,
    /// Grafana's word for the unit.
    pub unit: &'static str,
    /// What it asks.
    pub queries: Vec<Query>,
    /// From this value on it is not well.
    pub bad: Option<Bad>,
    /// Columns of the grid, of 24.
    pub width: u32,
    /// In a healthy pipeline there may be nothing to show.
    pub may_be_empty: bool,
}

/// When a value is not well.
#[derive(Clone, Copy, Debug)]
pub enum Bad {
    /// From here up.
    From(f64),
    /// Below this.
    Below(f64),
    /// Never; below this it is at rest.
    Idle(f64),
}

/// A query.
#[derive(Clone, Debug)]
pub struct Query {
    /// In PromQL, with the dashboard's variables.
    pub expr: String,
    /// What its series are called; in a table the name of the column.
    pub legend: &'static str,
}

impl Panel {
    /// A panel of a third of the width, without a query.
    #[must_use]
    pub fn new(kind: Kind, title: &'static str, unit: &'static str, description: &str) -> Self {
        Panel {
            title,
            description: description.into(),
            kind,
            unit,
            queries: Vec::new(),
            bad: None,
            width: if kind == Kind::Stat { 3 } else { 8 },
            may_be_empty: false,
        }
    }

    /// With one query more.
    #[must_use]
    pub fn query(mut self, legend: &'static str, expr: String) -> Self {
        self.queries.push(Query { expr, legend });
        self
    }

    /// Not well from this value on.
    #[must_use]
    pub fn bad_from(mut self, value: f64) -> Self {
        self.bad = Some(Bad::From(value));
        self
    }

    /// Not well below this value.
    #[must_use]
    pub fn bad_below(mut self, value: f64) -> Self {
        self.bad = Some(Bad::Below(value));
        self
    }

    /// At rest below this value, which is as well.
    #[must_use]
    pub fn idle_below(mut self, value: f64) -> Self {
        self.bad = Some(Bad::Idle(value));
        self
    }

    /// So wide.
    #[must_use]
    pub fn wide(mut self, columns: u32) -> Self {
        self.width = columns;
        self
    }

    /// Nothing to show is well.
    #[must_use]
    pub fn may_be_empty(mut self) -> Self {
        self.may_be_empty = true;
        self
    }

    fn height(&self) -> u32 {
        match self.kind {
            Kind::Stat => 4,
            Kind::States => 6,
            Kind::Lines | Kind::Table => 8,
        }
    }

    fn to_json(&self, id: u32, x: u32, y: u32) -> Value {
        let kind = match self.kind {
            Kind::Stat => "stat",
            Kind::Lines => "timeseries",
            Kind::Table => "table",
            Kind::States => "state-timeline",
        };
        let is_now = matches!(self.kind, Kind::Stat | Kind::Table);
        let targets: Vec<Value> = self
            .queries
            .iter()
            .enumerate()
            .map(|(at, query)| {
                json!({
                    "refId": letter(at),
                    "datasource": datasource(),
                    "editorMode": "code",
                    "expr": query.expr,
                    "legendFormat": query.legend,
                    "instant": is_now,
                    "range": !is_now,
                    "format": if self.kind == Kind::Table { "table" } else { "time_series" },
                })
            })
            .collect();
        json!({
            "id": id,
            "type": kind,
            "title": self.title,
            "description": self.description,
            "datasource": datasource(),
            "gridPos": { "x": x, "y": y, "w": self.width, "h": self.height() },
            "targets": targets,
            "fieldConfig": { "defaults": self.field(), "overrides": [] },
            "options": self.options(),
            "transformations": self.transformations(),
        })
    }

    fn field(&self) -> Value {
        let steps = match self.bad {
            None => json!([{ "color": "green", "value": null }]),
            Some(Bad::From(value)) => {
                json!([{ "color": "green", "value": null }, { "color": "red", "value": value }])
            }
            Some(Bad::Below(value)) => {
                json!([{ "color": "red", "value": null }, { "color": "green", "value": value }])
            }
            Some(Bad::Idle(value)) => {
                json!([{ "color": "#8e8e8e", "value": null }, { "color": "green", "value": value }])
            }
        };
        let mut field = json!({
            "unit": self.unit,
            "color": { "mode": if self.kind == Kind::Lines { "palette-classic" } else { "thresholds" } },
            "thresholds": { "mode": "absolute", "steps": steps },
        });
        if self.kind == Kind::Lines {
            field["min"] = json!(0);
            let style = if self.bad.is_some() { "dashed" } else { "off" };
            field["custom"] = json!({
                "drawStyle": "line", "lineWidth": 1, "fillOpacity": 10, "showPoints": "never", "spanNulls": false,
                "thresholdsStyle": { "mode": style },
            });
        }
        field
    }

    fn options(&self) -> Value {
        match self.kind {
            Kind::Stat => json!({
                "reduceOptions": { "calcs": ["lastNotNull"], "fields": "", "values": false },
                "colorMode": "value", "graphMode": "none", "textMode": "auto",
            }),
            Kind::Lines => json!({
                "legend": { "displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"] },
                "tooltip": { "mode": "multi", "sort": "desc" },
            }),
            Kind::Table => json!({ "showHeader": true }),
            Kind::States => json!({ "mergeValues": true, "showValue": "never", "rowHeight": 0.8 }),
        }
    }

    /// A table has a column for each query, and none for the time.
    fn transformations(&self) -> Value {
        if self.kind != Kind::Table {
            return json!([]);
        }
        let mut names = serde_json::Map::new();
        for (at, query) in self.queries.iter().enumerate() {
            let column = if self.queries.len() == 1 {
                "Value".to_owned()
            } else {
                format!("Value #{}", letter(at))
            };
            names.insert(column, query.legend.into());
        }
        json!([
            { "id": "merge", "options": {} },
            { "id": "organize", "options": { "excludeByName": { "Time": true }, "renameByName": names } },
        ])
    }
}

fn letter(at: usize) -> String {
    // No panel has as many queries as there are letters.
    char::from(b'A' + u8::try_from(at).unwrap_or(0)).to_string()
}

fn datasource() -> Value {
    json!({ "type": "prometheus", "uid": "${datasource}" })
}

impl Dashboard {
    /// As Grafana reads it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut panels = Vec::new();
        let (mut id, mut y) = (0, 0);
        for row in &self.rows {
            id += 1;
            panels.push(json!({
                "id": id, "type": "row", "title": row.title, "collapsed": false, "panels": [],
                "gridPos": { "x": 0, "y": y, "w": COLUMNS, "h": 1 },
            }));
            y += 1;
            let (mut x, mut height) = (0, 0);
            for panel in &row.panels {
                if x + panel.width > COLUMNS {
                    y += height;
                    (x, height) = (0, 0);
                }
                id += 1;
                panels.push(panel.to_json(id, x, y));
                x += panel.width;
                height = height.max(panel.height());
            }
            y += height;
        }
        json!({
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": ["lockstep"],
            "schemaVersion": SCHEMA,
            "version": 1,
            "editable": true,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": { "from": "now-1h", "to": "now" },
            "timezone": "browser",
            "templating": { "list": self.variables() },
            "links": [{
                "type": "dashboards", "title": "lockstep", "tags": ["lockstep"], "asDropdown": true, "includeVars": true, "keepTime": true,
            }],
            "annotations": { "list": [] },
            "panels": panels,
        })
    }

    /// As it stands in its file.
    #[must_use]
    pub fn to_text(&self) -> String {
        format!("{:#}\n", self.to_json())
    }

    fn variables(&self) -> Vec<Value> {
        let mut variables = vec![json!({
            "name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "refresh": 1,
        })];
        for variable in &self.variables {
            let mut value = json!({
                "name": variable.name,
                "label": variable.name,
                "type": "query",
                "datasource": datasource(),
                "definition": variable.query,
                "query": { "query": variable.query, "refId": variable.name },
                "refresh": 2,
                "sort": 1,
                "multi": variable.is_many,
                "includeAll": variable.is_many,
            });
            if variable.is_many {
                value["allValue"] = json!(".*");
                value["current"] = json!({ "text": ["All"], "value": ["$__all"] });
            }
            variables.push(value);
        }
        variables
    }

    /// All panels.
    pub fn panels(&self) -> impl Iterator<Item = &Panel> {
        self.rows.iter().flat_map(|row| &row.panels)
    }
}

/// The series of a metric that have these labels.
#[must_use]
pub fn series(metric: Metric, labels: &str) -> String {
    format!("{}{{{labels}}}", metric.name)
}

/// How fast a counter grows, a second.
#[must_use]
pub fn rate(metric: Metric, labels: &str) -> String {
    format!("rate({}[{RATE}])", series(metric, labels))
}

/// By how much a counter has grown within the last hour.
#[must_use]
pub fn hour(metric: Metric, labels: &str) -> String {
    format!("increase({}[1h])", series(metric, labels))
}

/// A quantile of a histogram, by some of its labels.
#[must_use]
pub fn quantile(quantile: f64, metric: Metric, labels: &str, by: &str) -> String {
    let name = metric.name;
    format!(
        "histogram_quantile({quantile}, sum by (le, {by}) (rate({name}_bucket{{{labels}}}[{RATE}])))"
    )
}

/// The average of a histogram, by some of its labels.
#[must_use]
pub fn average(metric: Metric, labels: &str, by: &str) -> String {
    let name = metric.name;
    format!(
        "sum by ({by}) (rate({name}_sum{{{labels}}}[{RATE}])) / sum by ({by}) (rate({name}_count{{{labels}}}[{RATE}]))"
    )
}
