//! The dashboards as files: they are what the generator makes, and Grafana and Prometheus can read them.

use std::collections::BTreeSet;

use lockstep_core::metrics;
use lockstep_kit::Component::Prometheus as Needs;
use lockstep_kit::prometheus::promtool;
use lockstep_kit::require;
use lockstep_monitoring::rules::Rules;
use lockstep_monitoring::{dashboards, root};
use serde_json::{Value, json};

use crate::lab::filled_in;
use crate::rules::{is_known, metric_names, stems};

#[test]
fn the_files_are_what_the_generator_makes() {
    let folder = root().join("deploy/grafana");
    let made = dashboards(&Rules::shipped());
    let names: BTreeSet<String> = made
        .iter()
        .map(|(file, _)| file.trim_end_matches(".json").to_owned())
        .collect();
    assert_eq!(stems(&folder, "json"), names);
    for (file, dashboard) in made {
        let there = std::fs::read_to_string(folder.join(file)).expect("a dashboard");
        assert!(
            there == dashboard.to_text(),
            "deploy/grafana/{file} is not what it should be: cargo run -p lockstep-monitoring"
        );
    }
}

#[test]
fn each_metric_is_on_a_dashboard_and_no_other() {
    let mut shown = BTreeSet::new();
    let mut metrics_of = |text: &str| {
        for name in metric_names(text) {
            assert!(is_known(name), "{name}");
            let base = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|part| name.strip_suffix(part));
            shown.extend([name.to_owned(), base.unwrap_or(name).to_owned()]);
        }
    };
    for (_, dashboard) in dashboards(&Rules::shipped()) {
        for query in dashboard.panels().flat_map(|panel| &panel.queries) {
            metrics_of(&query.expr);
        }
    }
    for metric in metrics::ALL {
        assert!(shown.contains(metric.name), "{} is on none", metric.name);
    }
}

#[test]
fn ids_are_unique_panels_do_not_overlap_and_each_says_what_good_looks_like() {
    let (mut uids, mut titles) = (BTreeSet::new(), BTreeSet::new());
    for (file, dashboard) in dashboards(&Rules::shipped()) {
        assert!(uids.insert(dashboard.uid) && titles.insert(dashboard.title));
        let written = dashboard.to_json();
        let panels = written["panels"].as_array().expect("panels");
        let mut ids = BTreeSet::new();
        let mut taken = BTreeSet::new();
        for panel in panels {
            assert!(ids.insert(panel["id"].as_u64().expect("an id")), "{panel}");
            let place = |name: &str| panel["gridPos"][name].as_u64().expect("a place");
            assert!(place("x") + place("w") <= 24, "{panel}");
            for x in place("x")..place("x") + place("w") {
                for y in place("y")..place("y") + place("h") {
                    assert!(taken.insert((x, y)), "{file}: {panel:#}");
                }
            }
        }
        let variables = written["templating"]["list"].as_array().expect("variables");
        let variables: Vec<&str> = variables
            .iter()
            .filter_map(|variable| variable["name"].as_str())
            .collect();
        assert_eq!(variables[..3], ["datasource", "job", "pipeline"]);
        for panel in dashboard.panels() {
            let (title, said) = (panel.title, &panel.description);
            assert!(
                !panel.queries.is_empty() && !panel.unit.is_empty(),
                "{title}"
            );
            assert!(said.len() > 15 && said.ends_with('.'), "{title}: {said}");
            for query in &panel.queries {
                let expr = filled_in(&query.expr, "shop");
                assert!(!expr.contains('$'), "{title}: {expr}");
            }
        }
        let sources: Vec<&Value> = panels
            .iter()
            .filter_map(|panel| panel.get("datasource"))
            .collect();
        assert!(!sources.is_empty());
        for source in sources {
            assert_eq!(source["uid"], "${datasource}");
        }
    }
}

/// Each query as a recording rule: promtool parses what Grafana would send.
#[tokio::test]
async fn prometheus_can_read_each_query() {
    require!(Needs);
    let mut recorded = Vec::new();
    for (_, dashboard) in dashboards(&Rules::shipped()) {
        for query in dashboard.panels().flat_map(|panel| &panel.queries) {
            let record = format!("query:{}", recorded.len());
            recorded.push(json!({ "record": record, "expr": filled_in(&query.expr, "shop") }));
        }
    }
    assert!(recorded.len() > 80, "{}", recorded.len());
    let rules = json!({ "groups": [{ "name": "queries", "rules": recorded }] });
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("queries.yaml"), rules.to_string()).expect("written");
    let said = promtool(folder.path(), &["check", "rules", "queries.yaml"]).await;
    said.unwrap_or_else(|error| panic!("{error}"));
}
