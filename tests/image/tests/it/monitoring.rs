//! Prometheus and Grafana of the stack.

use std::path::Path;

use lockstep_image::{Stack, root, text, yaml};
use lockstep_kit::Component::{Containers, Prometheus};
use lockstep_kit::prometheus::promtool;
use lockstep_kit::require;
use serde_json::{Value, json};

/// In a folder that has what Prometheus sees in its own.
#[tokio::test]
async fn promtool_takes_the_configuration_with_rules_and_token() {
    require!(Containers, Prometheus);
    let stack = Stack::shipped();
    let service = stack.service("prometheus");
    let home = Path::new("/etc/prometheus");
    let folder = tempfile::tempdir().expect("a folder");
    for mount in service.mounts() {
        if let Ok(name) = mount.target.strip_prefix(home) {
            std::fs::copy(mount.source, folder.path().join(name)).expect("copied");
        }
    }
    let token = &service.0["configs"][0];
    let target = token["target"].as_str().map(Path::new);
    let name = target.and_then(|path| path.strip_prefix(home).ok());
    let content = stack.0["configs"][token["source"].as_str().expect("a name")]["content"].as_str();
    let token = content.expect("a token");
    std::fs::write(folder.path().join(name.expect("a path")), token).expect("written");
    let command = service.command();
    let config = command
        .iter()
        .find_map(|word| word.strip_prefix("--config.file=/etc/prometheus/"));
    let config = config.expect("a configuration");
    let said = promtool(folder.path(), &["check", "config", config]).await;
    let said = said.unwrap_or_else(|error| panic!("{error}"));
    assert!(said.contains("SUCCESS: 1 rule files found"), "{said}");
    let admin = stack.service("lockstep").environment();
    assert_eq!(admin["LOCKSTEP_ADMIN_TOKEN"], token);
}

#[test]
fn it_scrapes_the_pipeline() {
    require!(Containers);
    let stack = Stack::shipped();
    let config = yaml::document(&text("prometheus/prometheus.yaml"));
    let jobs = config["scrape_configs"].as_array().expect("jobs");
    let [job] = &jobs[..] else {
        panic!("{jobs:?}");
    };
    // By its name the rules know what is meant to run something.
    assert!(
        job["job_name"]
            .as_str()
            .is_some_and(|name| name.contains("lockstep"))
    );
    let document: toml_edit::DocumentMut = text("shop.toml").parse().expect("TOML");
    let target = &job["static_configs"][0];
    let [port] = stack.service("lockstep").ports()[..] else {
        panic!("ports");
    };
    assert_eq!(target["targets"], json!([format!("lockstep:{port}")]));
    assert_eq!(
        target["labels"]["pipeline"].as_str(),
        document["name"].as_str()
    );
}

#[test]
fn grafana_finds_prometheus_and_every_dashboard() {
    require!(Containers);
    let stack = Stack::shipped();
    let grafana = stack.service("grafana");
    let provisioning = Path::new("/etc/grafana/provisioning");
    let provisioned = |name: &str| {
        let path = grafana.sees(&provisioning.join(name));
        let text = std::fs::read_to_string(path.expect("it is mounted")).expect("a file");
        yaml::document(&text)
    };
    let sources = provisioned("datasources/lockstep.yaml");
    assert_eq!(sources["apiVersion"], 1);
    let source = &sources["datasources"][0];
    assert_eq!(source["type"], "prometheus");
    let [port] = stack.service("prometheus").ports()[..] else {
        panic!("ports");
    };
    assert_eq!(source["url"], json!(format!("http://prometheus:{port}")));

    let providers = provisioned("dashboards/lockstep.yaml");
    assert_eq!(providers["apiVersion"], 1);
    let path = &providers["providers"][0]["options"]["path"];
    let path = Path::new(path.as_str().expect("a folder"));
    let seen = grafana.sees(path).expect("it is mounted");
    let shipped = root().join("deploy/grafana");
    assert_eq!(seen.canonicalize().ok(), shipped.canonicalize().ok());
    let home = grafana.environment()["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"];
    let home = std::fs::read_to_string(grafana.sees(Path::new(home)).expect("it is mounted"));
    let home: Value = serde_json::from_str(&home.expect("a dashboard")).expect("JSON");
    assert_eq!(home["uid"], "lockstep-overview");
    // The dashboards let one choose among data sources of this type.
    assert_eq!(home["templating"]["list"][0]["query"], source["type"]);
}
