//! Requests to a registry, and what its answers mean.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use lockstep_core::{Error, ErrorKind, Result};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, USER_AGENT};
use reqwest::{Method, Url};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::config::{RegistryConfig, SubjectNames, wrong};
use crate::tls::tls;

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of an answer that are read.
const READ: usize = 16 << 20;
/// Characters of an answer that is no answer of a registry.
const SHOWN: usize = 500;
/// What Confluent's API is asked in.
const CONTENT: HeaderValue = HeaderValue::from_static("application/vnd.schemaregistry.v1+json");

/// What a registry says of a schema that is to be registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The subject has it.
    Known,
    /// It would be taken, as the first one or beside those that are there.
    Accepted,
    /// It would not be.
    Refused(String),
}

/// A registry. Remembers what it was told: the id of a schema never changes.
#[derive(Debug)]
pub struct Registry {
    http: reqwest::Client,
    base: Url,
    /// The address without secrets, for people.
    shown: String,
    subjects: SubjectNames,
    auto_register: bool,
    /// By subject and schema.
    ids: HashMap<(String, String), u32>,
    schemas: HashMap<u32, Option<Arc<str>>>,
}

/// An answer.
struct Answer {
    status: u16,
    body: Vec<u8>,
}

#[derive(Deserialize)]
struct Registered {
    id: u32,
}

#[derive(Deserialize)]
struct Stored {
    schema: String,
}

#[derive(Deserialize)]
struct Compatible {
    is_compatible: bool,
    #[serde(default)]
    messages: Vec<String>,
}

#[derive(Deserialize)]
struct Complaint {
    #[serde(default)]
    error_code: u32,
    message: String,
}

impl Registry {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// When the section or a file that it names cannot be used.
    pub fn new(config: &RegistryConfig) -> Result<Self> {
        config.check()?;
        let mut base = config.base()?;
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, CONTENT);
        headers.insert(CONTENT_TYPE, CONTENT);
        let agent = concat!("lockstep/", env!("CARGO_PKG_VERSION"));
        headers.insert(USER_AGENT, HeaderValue::from_static(agent));
        if let Some(value) = config.authorization(&base)? {
            headers.insert(AUTHORIZATION, value);
        }
        // A login goes by the header; both fail only for addresses without a host.
        let _ = base.set_username("");
        let _ = base.set_password(None);
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls(config, base.scheme() == "https")?)
            .default_headers(headers)
            .timeout(config.request_timeout.0)
            .connect_timeout(CONNECT_TIMEOUT.min(config.request_timeout.0))
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| wrong("cannot set up the HTTP client").source(error))?;
        Ok(Registry {
            http,
            shown: config.url.redacted_url(),
            base,
            subjects: config.subject,
            auto_register: config.auto_register,
            ids: HashMap::new(),
            schemas: HashMap::new(),
        })
    }

    /// What subjects are called.
    #[must_use]
    pub fn subjects(&self) -> SubjectNames {
        self.subjects
    }

    /// The id of a schema in a subject. One that is not there is registered, where that is allowed.
    ///
    /// # Errors
    /// Kind `Unavailable` when the registry is away; kind `Setup`, with its own words, when it refuses the schema.
    pub async fn id(&mut self, subject: &str, schema: &str) -> Result<u32> {
        let known = (subject.to_owned(), schema.to_owned());
        if let Some(id) = self.ids.get(&known) {
            return Ok(*id);
        }
        let id = match self.auto_register {
            true => self.register(subject, schema).await?,
            false => match self.look_up(subject, schema).await? {
                Some(id) => id,
                None => return Err(self.not_there(subject)),
            },
        };
        tracing::info!(subject, id, "the registry has the schema");
        self.ids.insert(known, id);
        Ok(id)
    }

    async fn register(&self, subject: &str, schema: &str) -> Result<u32> {
        let body = json!({"schema": schema});
        let path = ["subjects", subject, "versions"];
        let answer = self.ask(Method::POST, &path, &[], Some(&body)).await?;
        match answer.status {
            200 => self.read::<Registered>(&answer).map(|answer| answer.id),
            409 | 422 => Err(self.refused(subject, &answer)),
            _ => Err(self.unexpected(&answer)),
        }
    }

    /// The id of a schema that a subject has.
    async fn look_up(&self, subject: &str, schema: &str) -> Result<Option<u32>> {
        let body = json!({"schema": schema});
        let path = ["subjects", subject];
        let answer = self.ask(Method::POST, &path, &[], Some(&body)).await?;
        match answer.status {
            200 => self
                .read::<Registered>(&answer)
                .map(|answer| Some(answer.id)),
            // Nor has it one that is none.
            404 | 422 => Ok(None),
            _ => Err(self.unexpected(&answer)),
        }
    }

    /// The schema of an id; `None` when the registry has none.
    ///
    /// # Errors
    /// Kind `Unavailable` when the registry is away.
    pub async fn schema(&mut self, id: u32) -> Result<Option<Arc<str>>> {
        if let Some(known) = self.schemas.get(&id) {
            return Ok(known.clone());
        }
        let number = id.to_string();
        let path = ["schemas", "ids", &number];
        let answer = self.ask(Method::GET, &path, &[], None).await?;
        let schema = match answer.status {
            200 => Some(Arc::from(self.read::<Stored>(&answer)?.schema)),
            404 => None,
            _ => return Err(self.unexpected(&answer)),
        };
        self.schemas.insert(id, schema.clone());
        Ok(schema)
    }

    /// What would become of a schema if it was registered; nothing is.
    ///
    /// # Errors
    /// When the registry is away, or does not say.
    pub async fn judge(&self, subject: &str, schema: &str) -> Result<Verdict> {
        if self.look_up(subject, schema).await?.is_some() {
            return Ok(Verdict::Known);
        }
        if !self.auto_register {
            return Ok(Verdict::Refused(format!(
                "subject `{subject}` does not have this schema"
            )));
        }
        let body = json!({"schema": schema});
        let path = ["compatibility", "subjects", subject, "versions", "latest"];
        let query = [("verbose", "true")];
        let answer = self.ask(Method::POST, &path, &query, Some(&body)).await?;
        match answer.status {
            200 => {
                let answer: Compatible = self.read(&answer)?;
                Ok(match (answer.is_compatible, answer.messages.join("; ")) {
                    (true, _) => Verdict::Accepted,
                    (false, why) if why.is_empty() => Verdict::Refused(format!(
                        "it is not compatible with what subject `{subject}` has"
                    )),
                    (false, why) => Verdict::Refused(why),
                })
            }
            // There is no such subject yet.
            404 => Ok(Verdict::Accepted),
            409 | 422 => Ok(Verdict::Refused(words(&answer))),
            _ => Err(self.unexpected(&answer)),
        }
    }

    /// How many subjects there are: whether it answers, and whether it knows us.
    ///
    /// # Errors
    /// When it does not.
    pub async fn subject_count(&self) -> Result<usize> {
        let answer = self.ask(Method::GET, &["subjects"], &[], None).await?;
        match answer.status {
            200 => self.read::<Vec<Value>>(&answer).map(|all| all.len()),
            _ => Err(self.unexpected(&answer)),
        }
    }

    async fn ask(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<Answer> {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        for (name, value) in query {
            url.query_pairs_mut().append_pair(name, value);
        }
        let mut request = self.http.request(method, url);
        if let Some(body) = body {
            request = request.body(body.to_string());
        }
        let mut response = request.send().await.map_err(|error| self.away(error))?;
        let status = response.status().as_u16();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.away(error))? {
            body.extend_from_slice(&chunk);
            if body.len() > READ {
                break;
            }
        }
        Ok(Answer { status, body })
    }

    fn read<T: serde::de::DeserializeOwned>(&self, answer: &Answer) -> Result<T> {
        serde_json::from_slice(&answer.body).map_err(|error| {
            let what = format!(
                "{} answers what no schema registry answers: {}",
                self.shown,
                words(answer)
            );
            Error::new(ErrorKind::Setup, what)
                .source(error)
                .remedy("see that `url` is that of the registry's API; that of Apicurio ends with /apis/ccompat/v7")
                .at("registry")
        })
    }

    fn away(&self, error: reqwest::Error) -> Error {
        let what = match (error.is_connect(), error.is_timeout()) {
            (true, _) => format!("cannot connect to the schema registry {}", self.shown),
            (_, true) => format!("the schema registry {} does not answer in time", self.shown),
            _ => format!("no answer of the schema registry {}", self.shown),
        };
        Error::new(ErrorKind::Unavailable, what)
            .source(error.without_url())
            .remedy("see that it is up and can be reached from here, that its certificate is one of `ca_file`, and that `url` is right")
            .at("registry")
    }

    /// In its own words.
    fn refused(&self, subject: &str, answer: &Answer) -> Error {
        let what = format!(
            "the schema registry refuses a schema for subject `{subject}`: {}",
            words(answer)
        );
        Error::new(ErrorKind::Setup, what)
            .remedy("change the table so that readers of the schemas before can go on; or let the registry take it by another compatibility for the subject (PUT /config/<subject>), once its readers can; or write to another topic. Nothing was written in this schema, and nothing is skipped")
            .at("registry")
    }

    fn not_there(&self, subject: &str) -> Error {
        let what = format!("subject `{subject}` of the schema registry does not have the schema");
        Error::new(ErrorKind::Setup, what)
            .remedy("register it (`lockstep check` shows what is missing), or set `auto_register = true`")
            .at("registry")
    }

    fn unexpected(&self, answer: &Answer) -> Error {
        let (kind, remedy) = match answer.status {
            401 => (
                ErrorKind::Authentication,
                "set `user` and `password`, or `bearer`, to what the registry knows",
            ),
            403 => (
                ErrorKind::Permission,
                "allow the user to read and write the subjects",
            ),
            429 => (ErrorKind::Overloaded, "it asks to be asked less often"),
            408 | 500.. => (ErrorKind::Unavailable, "see the registry's log"),
            _ => (
                ErrorKind::Setup,
                "see that `url` is that of the registry's API; that of Apicurio ends with /apis/ccompat/v7",
            ),
        };
        let what = format!(
            "the schema registry {} answers {}: {}",
            self.shown,
            answer.status,
            words(answer)
        );
        Error::new(kind, what).remedy(remedy).at("registry")
    }
}

/// What an answer says, as it is.
fn words(answer: &Answer) -> String {
    match serde_json::from_slice::<Complaint>(&answer.body) {
        Ok(complaint) if complaint.error_code > 0 => {
            format!("{} (error {})", complaint.message, complaint.error_code)
        }
        Ok(complaint) => complaint.message,
        Err(_) => {
            let text = String::from_utf8_lossy(&answer.body);
            let clean = text.trim().chars().take(SHOWN);
            clean
                .map(|c| if c.is_control() { ' ' } else { c })
                .collect()
        }
    }
}
