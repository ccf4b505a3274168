//! A schema registry that speaks Confluent's API: Apicurio Registry, one server, in memory.

use std::time::Duration;

use tokio::sync::OnceCell;

use crate::component::{Component, dir};
use crate::error::Error;
use crate::java;
use crate::port::Port;
use crate::process::Process;
use crate::scratch::Scratch;

const START_DEADLINE: Duration = Duration::from_secs(180);
/// Where it speaks Confluent's API.
const API: &str = "/apis/ccompat/v7";

/// A test's own server.
#[derive(Clone, Debug, Default)]
pub struct RegistryOptions {
    /// Settings of the server, such as `("quarkus.http.access-log.enabled", "false")`.
    pub settings: Vec<(String, String)>,
}

/// A running server. What it has is in memory: it is gone with its process.
#[derive(Debug)]
pub struct Registry {
    url: String,
    own: Option<Own>,
}

#[derive(Debug)]
struct Own {
    process: Process,
    scratch: Scratch,
    port: Port,
}

impl Registry {
    /// The server that all tests of the process share, started at the first call. Isolate by the names of subjects; of schemas
    /// that are equal the id is the same.
    ///
    /// # Panics
    /// When it is not installed or does not start.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<Registry> = OnceCell::const_new();
        SHARED
            .get_or_init(async || match Component::Registry.provided() {
                Some(url) => Self { url, own: None },
                None => Self::start(RegistryOptions::default()).await,
            })
            .await
    }

    /// Starts a server of the test's own.
    ///
    /// # Panics
    /// When it is not installed or does not start.
    pub async fn start(options: RegistryOptions) -> Self {
        Self::try_start(options)
            .await
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`Registry::start`].
    ///
    /// # Errors
    /// When it is not installed or does not start, with the end of its log.
    pub async fn try_start(options: RegistryOptions) -> Result<Self, Error> {
        let mut tries = 3;
        loop {
            match Self::start_once(&options).await {
                Err(error) if error.is_port_taken() && tries > 1 => tries -= 1,
                outcome => return outcome,
            }
        }
    }

    async fn start_once(options: &RegistryOptions) -> Result<Self, Error> {
        let scratch = Scratch::new("registry")?;
        let port = Port::reserve()?;
        let mut jvm = vec![
            "-Xmx192m".to_owned(),
            "-XX:TieredStopAtLevel=1".to_owned(),
            "-Dquarkus.http.host=127.0.0.1".to_owned(),
            format!("-Dquarkus.http.port={}", port.number()),
            // Not a line for each request.
            "-Dquarkus.http.access-log.enabled=false".to_owned(),
        ];
        let settings = options.settings.iter();
        jvm.extend(settings.map(|(name, value)| format!("-D{name}={value}")));
        let jvm: Vec<&str> = jvm.iter().map(String::as_str).collect();
        let launch = java::launch(
            Component::Registry,
            &scratch,
            &jvm,
            "io.quarkus.runner.GeneratedMain",
            &[],
        )?;
        let server = Self {
            url: format!("http://127.0.0.1:{}{API}", port.number()),
            own: Some(Own {
                process: Process::start(launch)?,
                scratch,
                port,
            }),
        };
        server.ready().await.map(|()| server)
    }

    async fn ready(&self) -> Result<(), Error> {
        let look = async || match self.try_ask("GET", "/subjects", "").await {
            Ok((200, _)) => Ok(()),
            other => Err(other),
        };
        self.own().process.ready(START_DEADLINE, look).await
    }

    fn own(&self) -> &Own {
        self.own
            .as_ref()
            .unwrap_or_else(|| panic!("{} is a server that the kit did not start", self.url))
    }

    /// Where it speaks Confluent's API: `http://127.0.0.1:8080/apis/ccompat/v7`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The path of the API, behind host and port.
    pub fn path(&self) -> &str {
        self.parts().1
    }

    /// Host and port.
    pub fn address(&self) -> &str {
        self.parts().0
    }

    fn parts(&self) -> (&str, &str) {
        let rest = self.url.strip_prefix("http://").unwrap_or(&self.url);
        rest.split_at(rest.find('/').unwrap_or(rest.len()))
    }

    /// On 127.0.0.1.
    ///
    /// # Panics
    /// For a server that a variable provides.
    pub fn port(&self) -> u16 {
        self.own().port.number()
    }

    /// One request of Confluent's API, such as `ask("PUT", "/config/t-value", r#"{"compatibility":"BACKWARD"}"#)`; status and body.
    ///
    /// # Panics
    /// When there is no answer.
    pub async fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        self.try_ask(method, path, body)
            .await
            .unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    async fn try_ask(
        &self,
        method: &str,
        path: &str,
        body: &str,
    ) -> std::io::Result<(u16, String)> {
        let (address, api) = self.parts();
        crate::http::request(address, method, &format!("{api}{path}"), body).await
    }

    /// What the server has logged.
    pub fn log(&self) -> String {
        self.own().scratch.read("log")
    }

    /// SIGKILL.
    pub fn kill(&self) {
        self.own().process.kill();
    }

    /// `true` stops the process where it is (SIGSTOP), `false` lets it go on.
    pub fn freeze(&self, freeze: bool) {
        self.own().process.freeze(freeze);
    }
}

/// The version of the installed server, from the name of its jar.
pub fn installed_version() -> Option<String> {
    let jars = std::fs::read_dir(dir().join("registry/libs")).ok()?;
    jars.flatten().find_map(|jar| {
        let name = jar.file_name();
        let version = name
            .to_str()?
            .strip_prefix("apicurio-registry-app-")?
            .strip_suffix("-runner.jar")?;
        Some(version.to_owned())
    })
}
