//! Prometheus, which scrapes what a test tells it to, and promtool.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::component::Component;
use crate::error::{Context, Error};
use crate::http;
use crate::port::Port;
use crate::process::{End, Launch, Process};
use crate::scratch::Scratch;

const START_DEADLINE: Duration = Duration::from_secs(60);

/// What each sample and each alert is labelled with.
pub type Labels = BTreeMap<String, String>;

/// A test's own server.
#[derive(Clone, Debug)]
pub struct PrometheusOptions {
    /// How often targets are scraped and rules evaluated.
    pub every: Duration,
    /// Files of rules, each as its text.
    pub rules: Vec<String>,
}

impl Default for PrometheusOptions {
    fn default() -> Self {
        PrometheusOptions {
            every: Duration::from_secs(1),
            rules: Vec::new(),
        }
    }
}

/// What is scraped, at `/metrics`.
#[derive(Clone, Debug)]
pub struct Target {
    /// Of the endpoint; the label `instance`.
    pub address: SocketAddr,
    /// Further labels; `job` is `lockstep` unless it is among them.
    pub labels: Vec<(String, String)>,
}

/// A running server.
#[derive(Debug)]
pub struct Prometheus {
    address: String,
    process: Process,
    scratch: Scratch,
    _port: Port,
}

/// One result of a query.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Its labels.
    pub labels: Labels,
    /// Its value now.
    pub value: f64,
}

/// One series of a query over some time.
#[derive(Clone, Debug)]
pub struct Range {
    /// Its labels.
    pub labels: Labels,
    /// Seconds since the Unix epoch, and the value then.
    pub points: Vec<(f64, f64)>,
}

/// An alert that is pending or fires.
#[derive(Clone, Debug)]
pub struct Alert {
    /// With `alertname` and the rule's own labels.
    pub labels: Labels,
    /// As they were rendered.
    pub annotations: Labels,
    /// Whether it fires, or is pending.
    pub fires: bool,
}

impl Alert {
    /// The rule's name.
    pub fn name(&self) -> &str {
        self.labels.get("alertname").map_or("", String::as_str)
    }
}

impl Prometheus {
    /// Starts a server that scrapes nothing yet.
    ///
    /// # Panics
    /// When it is not installed or does not start, as with rules that cannot be read.
    pub async fn start(options: PrometheusOptions) -> Self {
        let mut tries = 3;
        loop {
            match Self::start_once(&options).await {
                Ok(server) => return server,
                Err(error) if error.is_port_taken() && tries > 1 => tries -= 1,
                Err(error) => panic!("{error}"),
            }
        }
    }

    async fn start_once(options: &PrometheusOptions) -> Result<Self, Error> {
        if !Component::Prometheus.is_installed() {
            return Err(Component::Prometheus.missing());
        }
        let scratch = Scratch::new("prometheus")?;
        let port = Port::reserve()?;
        let data = scratch.make_dir("data")?;
        let every = format!("{}ms", options.every.as_millis());
        let mut rules = Vec::new();
        for (number, text) in options.rules.iter().enumerate() {
            let path = scratch.write(&format!("rules{number}.yaml"), text)?;
            rules.push(path.display().to_string());
        }
        // JSON is YAML.
        let config = json!({
            "global": { "scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every },
            "rule_files": rules,
            "scrape_configs": [{
                "job_name": "lockstep",
                "file_sd_configs": [{ "files": [scratch.join(TARGETS)], "refresh_interval": "5s" }],
            }],
        });
        scratch.write(TARGETS, "[]")?;
        let config = scratch.write("prometheus.yaml", &config.to_string())?;
        let address = format!("127.0.0.1:{}", port.number());
        let launch = Launch {
            name: "Prometheus".into(),
            program: "prometheus".into(),
            args: [
                format!("--config.file={}", config.display()),
                format!("--storage.tsdb.path={}", data.display()),
                format!("--web.listen-address={address}"),
                "--log.level=warn".into(),
            ]
            .map(Into::into)
            .into(),
            dir: scratch.path().into(),
            end: End::Kill,
        };
        let process = Process::start(launch)?;
        let server = Prometheus {
            address,
            process,
            scratch,
            _port: port,
        };
        let look = async || http::get(&server.address, "/-/ready").await;
        server.process.ready(START_DEADLINE, look).await?;
        Ok(server)
    }

    /// `127.0.0.1:9090`
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What is scraped from now on. What was, and is not any more, is marked as gone at once.
    ///
    /// # Panics
    /// When the list cannot be written.
    pub fn scrape(&self, targets: &[Target]) {
        let groups: Vec<Value> = targets.iter().map(Target::group).collect();
        let text = Value::from(groups).to_string();
        // The server must never read a half.
        let written = self.scratch.write("targets.new", &text);
        let written = written.and_then(|path| {
            std::fs::rename(path, self.scratch.join(TARGETS)).context(|| TARGETS.into())
        });
        written.unwrap_or_else(|error| panic!("{error}"));
    }

    /// The result of a query now. Of a scalar it is one sample without labels.
    ///
    /// # Errors
    /// When the server does not answer, or the query is refused.
    pub async fn query(&self, expression: &str) -> Result<Vec<Sample>, Error> {
        let path = format!("/api/v1/query?query={}", percent_encoded(expression));
        let data = self.ask(&path).await?;
        let result = &data["result"];
        if data["resultType"] == "scalar" {
            let labels = Labels::new();
            let value = number(&result[1]);
            return Ok(vec![Sample { labels, value }]);
        }
        let samples = result.as_array().into_iter().flatten();
        let sample = |one: &Value| Sample {
            labels: labels(&one["metric"]),
            value: number(&one["value"][1]),
        };
        Ok(samples.map(sample).collect())
    }

    /// The results of a query over the time between these, a value every second.
    ///
    /// # Errors
    /// As [`Prometheus::query`].
    pub async fn range(
        &self,
        expression: &str,
        [from, to]: [SystemTime; 2],
    ) -> Result<Vec<Range>, Error> {
        let seconds = |time: SystemTime| {
            let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            since.as_secs()
        };
        let path = format!(
            "/api/v1/query_range?start={}&end={}&step=1&query={}",
            seconds(from),
            seconds(to),
            percent_encoded(expression)
        );
        let data = self.ask(&path).await?;
        let series = data["result"].as_array().into_iter().flatten();
        let range = |one: &Value| {
            let points = one["values"].as_array().into_iter().flatten();
            let point = |point: &Value| (point[0].as_f64().unwrap_or_default(), number(&point[1]));
            Range {
                labels: labels(&one["metric"]),
                points: points.map(point).collect(),
            }
        };
        Ok(series.map(range).collect())
    }

    /// All alerts that are pending or fire.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn alerts(&self) -> Result<Vec<Alert>, Error> {
        let data = self.ask("/api/v1/alerts").await?;
        let alerts = data["alerts"].as_array().into_iter().flatten();
        let alert = |one: &Value| Alert {
            labels: labels(&one["labels"]),
            annotations: labels(&one["annotations"]),
            fires: one["state"] == "firing",
        };
        Ok(alerts.map(alert).collect())
    }

    async fn ask(&self, path: &str) -> Result<Value, Error> {
        let answer = http::request(&self.address, "GET", path, "").await;
        let (code, body) = answer.context(|| format!("asking Prometheus for {path}"))?;
        let mut answer: Value = serde_json::from_str(&body)
            .map_err(|error| Error::new(format!("{path}: {code} {error}: {body}")))?;
        match answer["status"].as_str() {
            Some("success") => Ok(answer["data"].take()),
            _ => Err(Error::new(format!("{path}: {code} {body}"))),
        }
    }
}

const TARGETS: &str = "targets.json";

impl Target {
    fn group(&self) -> Value {
        let labels: BTreeMap<&str, &str> = self
            .labels
            .iter()
            .map(|(name, value)| (&**name, &**value))
            .collect();
        json!({ "targets": [self.address.to_string()], "labels": labels })
    }
}

fn labels(of: &Value) -> Labels {
    let pairs = of.as_object().into_iter().flatten();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    pairs
        .map(|(name, value)| (name.clone(), text(value)))
        .collect()
}

/// Numbers come as texts, `NaN` and `+Inf` among them.
fn number(of: &Value) -> f64 {
    let text = of.as_str().unwrap_or_default();
    text.parse().unwrap_or(f64::NAN)
}

fn percent_encoded(text: &str) -> String {
    let encoded = text.bytes().map(|byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => {
            char::from(byte).to_string()
        }
        other => format!("%{other:02X}"),
    });
    encoded.collect()
}

/// Runs promtool in a folder, and returns what it says.
///
/// # Errors
/// When it cannot be started or exits with another code than 0; the text is all that it has said.
pub async fn promtool(folder: &Path, arguments: &[&str]) -> Result<String, Error> {
    let mut command = tokio::process::Command::new("promtool");
    command.args(arguments).current_dir(folder);
    let output = command.output().await.context(|| "promtool".into())?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        Ok(said)
    } else {
        Err(Error::new(format!("promtool {arguments:?}: {said}")))
    }
}
