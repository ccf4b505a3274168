//! The section of the pipeline file.

use std::path::PathBuf;
use std::time::Duration as StdDuration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use lockstep_core::config::{Duration, Secret};
use lockstep_core::{Error, ErrorKind, Result};
use reqwest::Url;
use reqwest::header::HeaderValue;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Default of [`RegistryConfig::auto_register`].
pub const DEFAULT_AUTO_REGISTER: bool = true;
/// Default of [`RegistryConfig::request_timeout`].
pub const DEFAULT_REQUEST_TIMEOUT: Duration = Duration(StdDuration::from_secs(10));

/// A schema registry that speaks Confluent's API.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RegistryConfig {
    /// Its address: `https://registry:8081`, of Apicurio `http://apicurio:8080/apis/ccompat/v7`. May carry `user:password@`.
    pub url: Secret,

    /// What the subjects of schemas are called.
    #[serde(default)]
    pub subject: SubjectNames,

    /// Registers schemas that a subject does not have. `false`: they must be there, and it is an error when they are not.
    #[serde(default = "default_auto_register")]
    pub auto_register: bool,

    /// User name, instead of one in the URL.
    #[serde(default)]
    pub user: Option<String>,
    /// Password of `user`.
    #[serde(default)]
    pub password: Option<Secret>,
    /// A token, sent as `Authorization: Bearer …`, instead of a user.
    #[serde(default)]
    pub bearer: Option<Secret>,

    /// A file of PEM certificates that the registry's certificate must descend from; the system's are used without it.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,

    /// How long the registry may take to answer a request.
    #[serde(default = "default_request_timeout")]
    pub request_timeout: Duration,
}

fn default_auto_register() -> bool {
    DEFAULT_AUTO_REGISTER
}

fn default_request_timeout() -> Duration {
    DEFAULT_REQUEST_TIMEOUT
}

/// What the subject of a schema is called, as Confluent's serializers have it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SubjectNames {
    /// By the topic: `orders.public.items-value` (TopicNameStrategy).
    #[default]
    Topic,
    /// By the record: `orders.public.items.Envelope` (RecordNameStrategy).
    Record,
    /// By both: `orders.public.items-orders.public.items.Envelope` (TopicRecordNameStrategy).
    TopicRecord,
}

/// What a schema is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The keys of a topic.
    Key,
    /// Its values.
    Value,
}

impl SubjectNames {
    /// The subject of a schema.
    #[must_use]
    pub fn of(self, topic: &str, role: Role, record: &str) -> String {
        match (self, role) {
            (SubjectNames::Topic, Role::Key) => format!("{topic}-key"),
            (SubjectNames::Topic, Role::Value) => format!("{topic}-value"),
            (SubjectNames::Record, _) => record.to_owned(),
            (SubjectNames::TopicRecord, _) => format!("{topic}-{record}"),
        }
    }
}

impl RegistryConfig {
    /// Checks what can be checked without I/O.
    ///
    /// # Errors
    /// Of kind `Config`, naming the field.
    pub fn check(&self) -> Result<()> {
        let url = self.base()?;
        self.authorization(&url)?;
        if self.password.is_some() && self.user.is_none() {
            return Err(wrong("`password` is given without `user`").remedy("add `user`"));
        }
        if self.bearer.is_some() && (self.user.is_some() || !url.username().is_empty()) {
            return Err(wrong("`bearer` and a user are both given").remedy("keep one of them"));
        }
        if self.request_timeout.0.is_zero() {
            return Err(
                wrong("`request_timeout` is zero").remedy("leave it out to use the default")
            );
        }
        Ok(())
    }

    /// The address as it is given.
    pub(crate) fn base(&self) -> Result<Url> {
        Url::parse(self.url.reveal())
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .ok_or_else(|| wrong("`url` is no address").remedy("write it as https://registry:8081"))
    }

    /// The value of `Authorization`, if there is to be one.
    pub(crate) fn authorization(&self, url: &Url) -> Result<Option<HeaderValue>> {
        let decoded = |text: &str| {
            percent_encoding::percent_decode_str(text)
                .decode_utf8_lossy()
                .into_owned()
        };
        let in_url = (!url.username().is_empty()).then(|| {
            let password = decoded(url.password().unwrap_or_default());
            (decoded(url.username()), password)
        });
        let user = self.user.clone().map(|user| {
            let password = self.password.as_ref().map_or("", Secret::reveal);
            (user, password.to_owned())
        });
        let value = match (&self.bearer, user.or(in_url)) {
            (Some(bearer), _) => format!("Bearer {}", bearer.reveal()),
            (None, Some((user, password))) => {
                format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
            }
            (None, None) => return Ok(None),
        };
        let mut value = HeaderValue::from_str(&value).map_err(|_| {
            wrong("`bearer` is none that a header can have").remedy("use visible ASCII characters")
        })?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

pub(crate) fn wrong(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Config, message).at("registry")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn config(more: &Value) -> Result<RegistryConfig, serde_json::Error> {
        let mut section = json!({"url": "https://r:8081"});
        let more = more.as_object().expect("an object").clone();
        section.as_object_mut().expect("an object").extend(more);
        serde_json::from_value(section)
    }

    #[test]
    fn defaults_are_as_documented() {
        let config = config(&json!({})).expect("valid");
        config.check().expect("valid");
        assert!(config.auto_register);
        assert_eq!(config.subject, SubjectNames::Topic);
        assert_eq!(config.request_timeout.to_string(), "10s");
    }

    #[test]
    fn subjects_are_named_as_confluent_names_them() {
        for (name, key, value) in [
            ("topic", "t-key", "t-value"),
            ("record", "a.Key", "a.Value"),
            ("topic-record", "t-a.Key", "t-a.Value"),
        ] {
            let names = config(&json!({"subject": name})).expect("valid").subject;
            assert_eq!(names.of("t", Role::Key, "a.Key"), key);
            assert_eq!(names.of("t", Role::Value, "a.Value"), value);
        }
    }

    #[test]
    fn what_cannot_work_is_told_by_its_name_and_no_secret_is_repeated() {
        for (more, named) in [
            (json!({"url": "ftp://hunter2/"}), "`url`"),
            (json!({"url": "hunter2"}), "`url`"),
            (json!({"password": "hunter2"}), "`password`"),
            (json!({"user": "u", "bearer": "hunter2"}), "`bearer`"),
            (
                json!({"url": "https://u:hunter2@h/", "bearer": "x"}),
                "`bearer`",
            ),
            (json!({"bearer": "hunter2\n"}), "`bearer`"),
            (json!({"request_timeout": "0s"}), "`request_timeout`"),
        ] {
            let config = config(&more).expect("a section");
            let error = config.check().expect_err(named).to_string();
            assert!(error.contains(named), "{more}: {error}");
            assert!(!error.contains("hunter2"), "{more}: {error}");
            assert!(!format!("{config:?}").contains("hunter2"), "{more}");
        }
        assert!(config(&json!({"subjects": "topic"})).is_err());
        assert!(config(&json!({"subject": "both"})).is_err());
    }

    #[test]
    fn a_login_of_the_address_is_decoded() {
        let config = config(&json!({"url": "https://u:p%40ss@h/"})).expect("valid");
        let url = config.base().expect("an address");
        let value = config.authorization(&url).expect("a header");
        assert_eq!(
            value.expect("a login"),
            format!("Basic {}", STANDARD.encode("u:p@ss"))
        );
    }
}
