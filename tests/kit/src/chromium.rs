//! Chromium without a window, driven by `chromedriver`, which speaks WebDriver.

use std::time::Duration;

use serde_json::{Value, json};

use crate::component::Component;
use crate::error::{Context, Error};
use crate::http::request;
use crate::port::Port;
use crate::process::{End, Launch, Process};
use crate::scratch::Scratch;

const START_DEADLINE: Duration = Duration::from_secs(60);

/// No window, no sandbox, which needs rights that tests have not, and nothing that calls home.
const ARGUMENTS: [&str; 9] = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
];

/// A browser, with a profile of its own. Gone on drop.
#[derive(Debug)]
pub struct Chromium {
    process: Process,
    port: Port,
    // Behind the process: profiles are in it.
    _scratch: Scratch,
    /// The browser that it has been asked for.
    session: String,
}

impl Chromium {
    /// Starts one.
    ///
    /// # Panics
    /// When it is not installed or does not start.
    pub async fn start() -> Self {
        Self::try_start()
            .await
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`Chromium::start`].
    ///
    /// # Errors
    /// When it is not installed or does not start, with the end of its log.
    pub async fn try_start() -> Result<Self, Error> {
        if !Component::Chromium.is_installed() {
            return Err(Component::Chromium.missing());
        }
        let scratch = Scratch::new("chromium")?;
        let port = Port::reserve()?;
        let launch = Launch {
            name: "chromedriver".into(),
            program: "chromedriver".into(),
            args: vec![format!("--port={}", port.number()).into()],
            dir: scratch.path().into(),
            end: End::Kill,
        };
        let mut chromium = Self {
            process: Process::start(launch)?,
            port,
            _scratch: scratch,
            session: String::new(),
        };
        let look = async || match chromium.ask("GET", "/status", &Value::Null).await {
            Ok(status) if status["ready"] == true => Ok(()),
            other => Err(format!("{other:?}")),
        };
        chromium.process.ready(START_DEADLINE, look).await?;
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "goog:chromeOptions": { "args": ARGUMENTS },
            "goog:loggingPrefs": { "browser": "ALL" },
        } } });
        let session = chromium.ask("POST", "/session", &wanted).await?;
        let id = session["sessionId"].as_str().unwrap_or_default();
        chromium.session = format!("/session/{id}");
        Ok(chromium)
    }

    /// A command of [WebDriver](https://www.w3.org/TR/webdriver2/#endpoints) to the browser: the path is what stands behind
    /// `/session/{session id}`, and what comes back the value of the answer.
    ///
    /// # Errors
    /// What the driver says.
    pub async fn command(&self, method: &str, path: &str, body: &Value) -> Result<Value, Error> {
        let path = format!("{}{path}", self.session);
        self.ask(method, &path, body).await
    }

    async fn ask(&self, method: &str, path: &str, body: &Value) -> Result<Value, Error> {
        let address = format!("127.0.0.1:{}", self.port.number());
        let body = match body {
            Value::Null => String::new(),
            body => body.to_string(),
        };
        let (code, answer) = request(&address, method, path, &body)
            .await
            .context(|| format!("{method} {path}"))?;
        let answer: Value = serde_json::from_str(&answer).unwrap_or(Value::String(answer));
        match code {
            200 => Ok(answer["value"].clone()),
            _ => Err(Error::new(format!("{method} {path}: {answer}"))),
        }
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        // The driver alone would leave its browsers.
        self.process.kill_family();
    }
}
