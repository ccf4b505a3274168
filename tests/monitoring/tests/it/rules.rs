//! The alerts as files: promtool takes them, each has a test and a page, and each has been seen to fire.

use std::collections::BTreeSet;
use std::path::Path;

use lockstep_core::metrics;
use lockstep_kit::Component::Prometheus as Needs;
use lockstep_kit::prometheus::promtool;
use lockstep_kit::require;
use lockstep_monitoring::root;
use lockstep_monitoring::rules::Rules;

use crate::{faults, shop};

/// Where pages are served is for whoever serves them to say: `docs/monitoring.md`.
const PAGES: &str = "https://lockstep.example/docs/runbooks/";

/// Names of files with this extension, without it.
pub fn stems(folder: &Path, extension: &str) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect()
}

/// Names that begin as metrics do.
pub fn metric_names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("lockstep_")).collect()
}

/// Whether there is such a metric, or such a part of a histogram.
pub fn is_known(name: &str) -> bool {
    let base = ["_bucket", "_sum", "_count"]
        .iter()
        .find_map(|part| name.strip_suffix(part));
    let names = [Some(name), base];
    let mut known = metrics::ALL.iter().map(|metric| metric.name);
    known.any(|known| names.contains(&Some(known)))
}

#[test]
fn each_alert_has_a_test_a_page_and_was_seen_to_fire_and_no_other_has() {
    let rules = Rules::shipped();
    let alerts: Vec<&str> = rules.alerts.iter().map(|alert| &*alert.name).collect();
    let unique: BTreeSet<String> = alerts.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(alerts.len(), unique.len(), "{alerts:?}");
    assert_eq!(
        stems(&root().join("tests/monitoring/rules"), "yaml"),
        unique
    );
    let mut pages = stems(&root().join("docs/runbooks"), "md");
    assert!(pages.remove("README"));
    assert_eq!(pages, unique);
    let fired = shop::FIRED.iter().chain(faults::FIRED);
    let fired: BTreeSet<String> = fired.map(|name| (*name).to_owned()).collect();
    assert_eq!(fired, unique);
}

#[test]
fn each_alert_says_what_to_do_and_asks_for_metrics_that_exist() {
    for alert in Rules::shipped().alerts {
        let name = &alert.name;
        assert!(
            ["critical", "warning"].contains(&&*alert.severity),
            "{name}: {}",
            alert.severity
        );
        let [summary, description, page] = &alert.annotations[..] else {
            panic!("{name}: {:?}", alert.annotations);
        };
        assert_eq!(
            [&*summary.0, &*description.0, &*page.0],
            ["summary", "description", "runbook_url"]
        );
        assert!(summary.1.len() < 110, "{name}: {}", summary.1);
        assert!(description.1.contains("$labels.pipeline"), "{name}");
        assert_eq!(page.1, format!("{PAGES}{name}.md"));
        let metrics = metric_names(&alert.expr);
        assert!(!metrics.is_empty(), "{name}");
        for metric in metrics {
            assert!(is_known(metric), "{name}: {metric}");
        }
    }
}

/// A page says what it is to say, and its commands exist.
#[test]
fn each_page_answers_the_same_questions() {
    let folder = root().join("docs/runbooks");
    let index = std::fs::read_to_string(folder.join("README.md")).expect("the index");
    let all = Rules::shipped().alerts;
    for alert in all {
        let path = folder.join(format!("{}.md", alert.name));
        let text = std::fs::read_to_string(&path).expect("a page");
        let headings: Vec<&str> = text.lines().filter(|line| line.starts_with('#')).collect();
        let title = format!("# {}", alert.name);
        let expected = [
            &*title,
            "## What it means",
            "## What breaks",
            "## Look",
            "## Mend",
            "## Prevent",
        ];
        assert_eq!(headings, expected, "{}", path.display());
        let row = format!("[{0}]({0}.md) | {1} |", alert.name, alert.severity);
        assert!(index.contains(&row), "{row} in the index");
        for metric in metric_names(&text) {
            let is_slot = metric == "lockstep_orders";
            assert!(is_slot || is_known(metric), "{}: {metric}", path.display());
        }
    }
}

#[tokio::test]
async fn promtool_takes_the_rules_and_each_fires_and_does_not_fire_where_it_should() {
    require!(Needs);
    let folder = root().join("tests/monitoring/rules");
    let said = promtool(
        &folder,
        &["check", "rules", "../../../deploy/prometheus/rules.yaml"],
    )
    .await;
    let said = said.unwrap_or_else(|error| panic!("{error}"));
    let count = Rules::shipped().alerts.len();
    assert!(said.contains(&format!("{count} rules found")), "{said}");
    let files: Vec<String> = stems(&folder, "yaml")
        .into_iter()
        .map(|name| format!("{name}.yaml"))
        .collect();
    let mut arguments = vec!["test", "rules"];
    arguments.extend(files.iter().map(String::as_str));
    let said = promtool(&folder, &arguments).await;
    said.unwrap_or_else(|error| panic!("{error}"));
}
