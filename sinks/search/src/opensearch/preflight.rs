//! What `lockstep check` looks at.

use std::collections::HashMap;

use lockstep_core::check::Finding;
use lockstep_core::{ErrorKind, Result};
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::client::{Body, Client};
use super::config::Config;
use super::reply::Reply;

/// What a user needs on the indexes of a sink.
const PRIVILEGES: &[&str] = &[
    "create_index",
    "index",
    "delete",
    "read",
    "view_index_metadata",
    "manage",
];

/// Looks at the cluster; changes nothing.
pub(super) async fn preflight(config: &Config, pipeline: &str, name: &str) -> Vec<Finding> {
    let client = match config.validate().and_then(|()| Client::new(config)) {
        Ok(client) => client,
        Err(error) => {
            return vec![Finding::fail(
                "configuration",
                error.to_string(),
                error
                    .remedy_text()
                    .unwrap_or("mend the section of the sink"),
            )];
        }
    };
    let mut findings = Vec::new();
    let Some(server) = server(&client, &mut findings).await else {
        return findings;
    };
    health(&client, &mut findings).await;
    disk(&client, &mut findings).await;
    blocks(&client, config, &mut findings).await;
    privileges(&client, config, &server, &mut findings).await;
    progress(
        &client,
        config,
        &format!("{pipeline}/{name}"),
        &mut findings,
    )
    .await;
    findings
}

struct Server {
    opensearch: bool,
}

/// Reachable, known, recent enough.
async fn server(client: &Client, findings: &mut Vec<Finding>) -> Option<Server> {
    #[derive(Deserialize)]
    struct About {
        version: Version,
    }
    #[derive(Deserialize)]
    struct Version {
        number: String,
        #[serde(default)]
        distribution: Option<String>,
    }
    let subject = format!("server {}", client.shown());
    let about = async {
        let reply = get(client, &[], &[]).await?.success("GET /")?;
        reply.json::<About>("GET /")
    };
    let version = match about.await {
        Ok(about) => about.version,
        Err(error) => {
            let fallback = "see that `url` leads to OpenSearch or Elasticsearch";
            let remedy = error.remedy_text().unwrap_or(fallback).to_owned();
            findings.push(Finding::fail(subject, error.to_string(), remedy));
            return None;
        }
    };
    let opensearch = version.distribution.as_deref() == Some("opensearch");
    let product = if opensearch {
        "OpenSearch"
    } else {
        "Elasticsearch"
    };
    let shown = format!("{product} {}", version.number);
    let major: u32 = version
        .number
        .split('.')
        .next()
        .and_then(|major| major.parse().ok())
        .unwrap_or_default();
    if !opensearch && major < 7 {
        findings.push(Finding::fail(
            subject,
            shown,
            "upgrade to Elasticsearch 7 or later, or to OpenSearch",
        ));
    } else {
        findings.push(Finding::pass(subject, shown));
    }
    Some(Server { opensearch })
}

async fn health(client: &Client, findings: &mut Vec<Finding>) {
    #[derive(Deserialize)]
    struct Health {
        status: String,
    }
    let subject = "cluster health";
    match look::<Health>(client, &["_cluster", "health"], &[]).await {
        Ok(health) if health.status == "red" => findings.push(Finding::warn(
            subject,
            "red: a primary shard is missing, writes to it fail",
            "see GET /_cluster/allocation/explain",
        )),
        Ok(health) => findings.push(Finding::pass(subject, health.status)),
        Err(finding) => findings.push(finding(subject)),
    }
}

/// The server refuses writes above its flood-stage watermark, 95 % by default.
async fn disk(client: &Client, findings: &mut Vec<Finding>) {
    #[derive(Deserialize)]
    struct Node {
        node: Option<String>,
        #[serde(rename = "disk.percent")]
        percent: Option<String>,
    }
    let subject = "disk space of the cluster";
    let query = [("format", "json"), ("h", "node,disk.percent")];
    let nodes = match look::<Vec<Node>>(client, &["_cat", "allocation"], &query).await {
        Ok(nodes) => nodes,
        Err(finding) => return findings.push(finding(subject)),
    };
    let percent = |node: &Node| {
        node.percent
            .as_deref()
            .and_then(|text| text.parse::<u32>().ok())
    };
    let fullest = nodes
        .iter()
        .filter_map(|node| percent(node).map(|percent| (percent, node)))
        .max_by_key(|(percent, _)| *percent);
    let Some((percent, node)) = fullest else {
        return;
    };
    let detail = format!(
        "{percent} % used on {}",
        node.node.as_deref().unwrap_or("a node")
    );
    findings.push(if percent >= 90 {
        Finding::warn(
            subject,
            detail,
            "free or add disk space: at 95 % (cluster.routing.allocation.disk.watermark.flood_stage) the server makes its indexes read-only",
        )
    } else {
        Finding::pass(subject, detail)
    });
}

/// Indexes of ours that refuse writes, and those that answer before a write is on disk.
async fn blocks(client: &Client, config: &Config, findings: &mut Vec<Finding>) {
    #[derive(Deserialize)]
    struct Settings {
        settings: HashMap<String, Value>,
    }
    let pattern = pattern(config);
    let query = [("flat_settings", "true"), ("ignore_unavailable", "true")];
    let path = [pattern.as_str(), "_settings"];
    let subject = format!("indexes {pattern}");
    let indexes = match look::<HashMap<String, Settings>>(client, &path, &query).await {
        Ok(indexes) => indexes,
        Err(finding) => return findings.push(finding(&subject)),
    };
    let is = |index: &Settings, name: &str, value: &str| {
        index.settings.get(name).and_then(Value::as_str) == Some(value)
    };
    let mut fine = true;
    for (name, index) in &indexes {
        for block in ["read_only", "read_only_allow_delete", "write"] {
            if is(index, &format!("index.blocks.{block}"), "true") {
                fine = false;
                findings.push(Finding::fail(
                    format!("index {name}"),
                    format!("blocked: index.blocks.{block}"),
                    format!("PUT /{name}/_settings {{\"index.blocks.{block}\":null}}, after freeing disk space if it is full"),
                ));
            }
        }
        if is(index, "index.translog.durability", "async") {
            fine = false;
            findings.push(Finding::warn(
                format!("index {name}"),
                "index.translog.durability is async: a write may be lost after it was acknowledged",
                format!("PUT /{name}/_settings {{\"index.translog.durability\":\"request\"}}"),
            ));
        }
        if config.gtx_epoch && !is(index, "index.refresh_interval", "-1") {
            fine = false;
            findings.push(Finding::warn(
                format!("index {name}"),
                "it refreshes by itself: a row that changes is missing from what is visible until lockstep has refreshed, up to `visible_every`",
                format!("PUT /{name}/_settings {{\"index.refresh_interval\":\"-1\"}}"),
            ));
        }
        if config.gtx_epoch && is(index, "index.replication.type", "SEGMENT") {
            fine = false;
            findings.push(Finding::warn(
                format!("index {name}"),
                "with segment replication a refresh says nothing of replicas: `gtx_epoch` is true of primaries only",
                "let readers search with preference=_primary, or create the index with replication.type DOCUMENT",
            ));
        }
    }
    if fine {
        findings.push(Finding::pass(
            subject,
            format!("{} there, none blocked", indexes.len()),
        ));
    }
}

async fn privileges(
    client: &Client,
    config: &Config,
    server: &Server,
    findings: &mut Vec<Finding>,
) {
    let subject = "permissions";
    let needed = PRIVILEGES.join(", ");
    if server.opensearch {
        let reply = get(client, &["_plugins", "_security", "authinfo"], &[]).await;
        findings.push(match reply {
            Ok(reply) if reply.is_success() => Finding::warn(
                subject,
                "the security plugin is on and cannot be asked without writing",
                format!(
                    "see that the user's role allows {needed} on {} and {}",
                    pattern(config),
                    config.progress_index
                ),
            ),
            Ok(_) => Finding::pass(subject, "no security plugin: everything is allowed"),
            Err(error) => Finding::warn(subject, error.to_string(), "see the cluster's log"),
        });
        return;
    }
    #[derive(Deserialize)]
    struct Answer {
        has_all_requested: bool,
        #[serde(default)]
        index: HashMap<String, HashMap<String, bool>>,
    }
    let asked = json!({"index": [{"names": [pattern(config), config.progress_index], "privileges": PRIVILEGES}]});
    let reply = client
        .call(
            Method::POST,
            &["_security", "user", "_has_privileges"],
            &[],
            Body::json(&asked),
        )
        .await;
    // Without the security feature there is nobody to ask, and everything is allowed.
    let answer = reply.and_then(|reply| match reply.is_success() {
        true => reply.json::<Answer>("a question for privileges").map(Some),
        false => Ok(None),
    });
    findings.push(match answer {
        Ok(None) => Finding::pass(subject, "security is off: everything is allowed"),
        Ok(Some(answer)) if answer.has_all_requested => Finding::pass(subject, needed),
        Ok(Some(answer)) => {
            let missing: Vec<_> = answer
                .index
                .iter()
                .flat_map(|(index, held)| {
                    held.iter()
                        .filter(|(_, has)| !**has)
                        .map(move |(privilege, _)| format!("{privilege} on {index}"))
                })
                .collect();
            Finding::fail(
                subject,
                format!("missing: {}", missing.join(", ")),
                "grant them to the role of the user: PUT /_security/role/<role>",
            )
        }
        Err(error) => Finding::warn(subject, error.to_string(), "see the cluster's log"),
    });
}

async fn progress(client: &Client, config: &Config, owner: &str, findings: &mut Vec<Finding>) {
    let subject = format!("progress index {}", config.progress_index);
    let reply = client
        .call(Method::HEAD, &[&config.progress_index], &[], Body::None)
        .await;
    findings.push(match reply {
        Ok(reply) if reply.is_success() => Finding::pass(
            subject,
            format!("there; positions of {owner} are kept in it"),
        ),
        Ok(reply) if reply.status == 404 => Finding::pass(subject, "will be created"),
        Ok(reply) => {
            let error = reply.error("looking for it");
            Finding::fail(
                subject,
                error.to_string(),
                error.remedy_text().unwrap_or_default(),
            )
        }
        Err(error) => Finding::fail(subject, error.to_string(), "see that the cluster is up"),
    });
}

/// The template with `*` for what it takes from tables.
fn pattern(config: &Config) -> String {
    let Ok(template) = config.index_template() else {
        return config.index.clone();
    };
    let parts = template.parts().iter().map(|part| match part {
        lockstep_core::template::Part::Literal(text) => super::index::sanitize_part(text),
        lockstep_core::template::Part::Field(_) => "*".to_owned(),
    });
    parts.collect()
}

async fn get(client: &Client, path: &[&str], query: &[(&str, &str)]) -> Result<Reply> {
    client.call(Method::GET, path, query, Body::None).await
}

/// Reads something. When it may not be read, that is a finding about the subject, not a fault: less privilege is enough
/// to write.
async fn look<T: for<'a> Deserialize<'a>>(
    client: &Client,
    path: &[&str],
    query: &[(&str, &str)],
) -> Result<T, impl FnOnce(&str) -> Finding> {
    let what = format!("GET /{}", path.join("/"));
    let answer = match get(client, path, query).await {
        Ok(reply) => reply.success(&what).and_then(|reply| reply.json(&what)),
        Err(error) => Err(error),
    };
    answer.map_err(|error| {
        move |subject: &str| match error.kind() {
            ErrorKind::Permission => Finding::warn(
                subject,
                "not allowed to look",
                format!("allow {what} to the user, or look yourself"),
            ),
            _ => Finding::fail(
                subject,
                error.to_string(),
                error.remedy_text().unwrap_or("see the cluster's log"),
            ),
        }
    })
}
