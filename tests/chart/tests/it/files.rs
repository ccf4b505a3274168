//! Rules and dashboards: the chart has copies, since a chart can only read what is inside it.

use std::collections::BTreeMap;
use std::path::Path;

use lockstep_chart::helm::Helm;
use lockstep_chart::{REWRITE_VARIABLE, chart, root, yaml};
use lockstep_kit::Component::Helm as NeedsHelm;
use lockstep_kit::require;
use serde_json::json;

/// The files of a folder that end so, by name.
fn texts(folder: &Path, end: &str) -> BTreeMap<String, String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let files = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let text = std::fs::read_to_string(entry.path()).ok()?;
        name.ends_with(end).then_some((name, text))
    });
    files.collect()
}

/// `from`'s files are the chart's; with [`REWRITE_VARIABLE`] they are copied.
fn same(from: &Path, to: &Path, end: &str) {
    let mut there = texts(from, end);
    // Their tests are of no use in a cluster.
    there.retain(|name, _| !name.contains("test"));
    if std::env::var_os(REWRITE_VARIABLE).is_some() {
        std::fs::create_dir_all(to).expect("a folder");
        for (name, text) in &there {
            std::fs::write(to.join(name), text).expect("written");
        }
    }
    let here = texts(to, end);
    let names: Vec<_> = here.keys().collect();
    assert_eq!(
        names,
        there.keys().collect::<Vec<_>>(),
        "{REWRITE_VARIABLE}=1 copies them"
    );
    for (name, text) in &there {
        assert!(
            here[name] == *text,
            "{name} is another one: {REWRITE_VARIABLE}=1 copies it"
        );
    }
}

#[test]
fn they_are_those_of_deploy() {
    let deploy = root().join("deploy");
    same(
        &deploy.join("prometheus"),
        &chart().join("files"),
        "rules.yaml",
    );
    same(
        &deploy.join("grafana"),
        &chart().join("files/dashboards"),
        ".json",
    );
}

/// On a copy of the chart with small ones.
#[test]
fn they_are_rendered_as_they_are() {
    require!(NeedsHelm);
    let helm = Helm::alone();
    let folder = tempfile::tempdir().expect("a folder");
    let copied = folder.path().join("lockstep");
    copy(&chart(), &copied);
    let rules = "groups:\n  - name: lockstep\n    rules:\n      - alert: Lag\n        expr: lockstep_sink_lag_seconds > 60\n        annotations:\n          summary: \"{{ $labels.sink }} is {{ $value }} s behind\"\n";
    let dashboard = "{\n  \"title\": \"Lag of {{sink}}\"\n}\n";
    let dashboards = copied.join("files/dashboards");
    let _ = std::fs::remove_dir_all(copied.join("files"));
    std::fs::create_dir_all(&dashboards).expect("a folder");
    std::fs::write(copied.join("files/rules.yaml"), rules).expect("written");
    std::fs::write(dashboards.join("one_pipeline.json"), dashboard).expect("written");
    let values = helm.values(&json!({ "metrics": {
        "prometheusRule": { "enabled": true, "labels": { "release": "prometheus" } },
        "dashboards": { "enabled": true, "annotations": { "folder": "lockstep" } },
    } }));
    let rendered = helm.template_of(&copied, "shop", &[&values], &[]).output();
    let objects = yaml::documents(&rendered);
    let [one, two] = &objects[..] else {
        panic!("{rendered}");
    };
    let (shown, rule) = if one["kind"] == "ConfigMap" {
        (one, two)
    } else {
        (two, one)
    };
    assert_eq!(rule["spec"], yaml::document(rules), "{rendered}");
    assert_eq!(rule["metadata"]["labels"]["release"], "prometheus");
    assert_eq!(shown["metadata"]["name"], "shop-lockstep-one-pipeline");
    assert_eq!(shown["metadata"]["labels"]["grafana_dashboard"], "1");
    assert_eq!(shown["metadata"]["annotations"]["folder"], "lockstep");
    let text = shown["data"]["one_pipeline.json"]
        .as_str()
        .expect("a dashboard");
    assert_eq!(text.trim_end(), dashboard.trim_end());

    let linked = rules.replace(
        "        annotations:\n",
        "        annotations:\n          runbook_url: https://lockstep.example/docs/runbooks/Lag.md\n",
    );
    std::fs::write(copied.join("files/rules.yaml"), linked).expect("written");
    for (runbooks, link) in [
        ("", "https://lockstep.example/docs/runbooks/Lag.md"),
        ("https://wiki.example/r/", "https://wiki.example/r/Lag.md"),
    ] {
        let values = helm.values(&json!({ "metrics": {
            "prometheusRule": { "enabled": true, "runbooks": runbooks },
        } }));
        let rendered = helm.template_of(&copied, "shop", &[&values], &[]).output();
        let rule = yaml::document(&rendered);
        let alert = &rule["spec"]["groups"][0]["rules"][0];
        assert_eq!(alert["annotations"]["runbook_url"], link, "{rendered}");
    }

    std::fs::remove_file(copied.join("files/rules.yaml")).expect("there");
    std::fs::remove_dir_all(&dashboards).expect("there");
    let rendered = helm.template_of(&copied, "shop", &[&values], &[]).output();
    assert_eq!(rendered.trim(), "", "nothing is made of nothing");
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder").flatten() {
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        match path.is_dir() {
            true => copy(&path, &to),
            false => {
                std::fs::copy(&path, &to).expect("copied");
            }
        }
    }
}
