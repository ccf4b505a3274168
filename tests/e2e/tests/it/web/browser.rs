//! A browser that looks at the page as people do.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use lockstep_kit::chromium::Chromium;
use lockstep_kit::{Error, dir};
use serde_json::{Value, json};
use tokio::time::Instant;

/// How long something may take to show up.
const PATIENCE: Duration = Duration::from_secs(30);

/// What WebDriver calls an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A window with the page in it.
pub struct Browser(Chromium);

impl Browser {
    pub async fn open(url: &str) -> Self {
        let browser = Browser(Chromium::start().await);
        browser.resize(1280, 900).await;
        browser
            .post("/url", &json!({ "url": url }))
            .await
            .expect("the page");
        browser
    }

    async fn post(&self, path: &str, body: &Value) -> Result<Value, Error> {
        self.0.command("POST", path, body).await
    }

    async fn vendor(&self, path: &'static str, body: Value) -> Value {
        let answer = self.post(path, &body).await;
        answer.expect("an answer")
    }

    /// Tries until it works.
    async fn until<T>(&self, what: &str, work: impl AsyncFn() -> Result<T, String>) -> T {
        let end = Instant::now() + PATIENCE;
        loop {
            match work().await {
                Ok(value) => return value,
                Err(why) => assert!(Instant::now() < end, "{what}: {why}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What an expression of XPath finds first: a path of commands about it.
    async fn find(&self, path: &str) -> Result<String, String> {
        let wanted = json!({ "using": "xpath", "value": path });
        let found = self.post("/element", &wanted).await;
        let found = found.map_err(|error| error.to_string())?;
        Ok(format!(
            "/element/{}",
            found[ELEMENT].as_str().unwrap_or_default()
        ))
    }

    /// What is set is the viewport: a window has a least width.
    pub async fn resize(&self, width: u32, height: u32) {
        let phone = width < 500;
        let metrics =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone });
        let body = json!({ "cmd": "Emulation.setDeviceMetricsOverride", "params": metrics });
        self.vendor("/goog/cdp/execute", body).await;
    }

    /// `light` or `dark`, as the system says.
    pub async fn prefer(&self, scheme: &str) {
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        let body = json!({ "cmd": "Emulation.setEmulatedMedia", "params": features });
        self.vendor("/goog/cdp/execute", body).await;
    }

    /// What the console has of errors and warnings, refused styles and scripts among them. What it told before is not told again.
    pub async fn console(&self) -> Vec<String> {
        let log = self.vendor("/se/log", json!({ "type": "browser" })).await;
        let entries = log.as_array().cloned().unwrap_or_default().into_iter();
        let serious = entries.filter(|entry| entry["level"] != "INFO" && entry["level"] != "DEBUG");
        serious.map(|entry| entry["message"].to_string()).collect()
    }

    /// What a script returns, also if it returns a promise.
    pub async fn script(&self, text: &str) -> Value {
        let body = json!({ "script": text, "args": [] });
        let value = self.post("/execute/sync", &body).await;
        value.unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    /// Text of the page, as it is seen.
    pub async fn text(&self) -> String {
        let text = self.script("return document.body.innerText").await;
        text.as_str().unwrap_or_default().to_owned()
    }

    /// Waits until the page shows this.
    pub async fn shows(&self, wanted: &str) {
        let look = async || {
            let text = self.text().await;
            text.contains(wanted).then_some(()).ok_or(text)
        };
        self.until(&format!("no {wanted:?} on the page"), look)
            .await;
    }

    /// Clicks what an expression of XPath finds. It is looked for anew while the page is being drawn.
    async fn click(&self, path: &str) {
        let click = async || {
            let element = self.find(path).await?;
            let clicked = self.post(&format!("{element}/click"), &json!({})).await;
            clicked.map_err(|error| error.to_string())
        };
        self.until(path, click).await;
    }

    /// The link or button of this name.
    pub async fn press(&self, name: &str) {
        self.click(&format!(
            "//*[self::a or self::button or self::summary][contains(normalize-space(.), '{name}')]"
        ))
        .await;
    }

    /// Types into the field of this label.
    pub async fn fill(&self, label: &str, text: &str) {
        let path = format!("//label[contains(., '{label}')]//input");
        let fill = async || {
            let element = self.find(&path).await?;
            let clear = self.post(&format!("{element}/clear"), &json!({})).await;
            clear.map_err(|error| error.to_string())?;
            let typed = self
                .post(&format!("{element}/value"), &json!({ "text": text }))
                .await;
            typed.map_err(|error| error.to_string())
        };
        self.until(&path, fill).await;
    }

    /// Presses keys where the focus is.
    pub async fn keys(&self, text: &str) {
        let strokes = text.chars().flat_map(|key| {
            ["keyDown", "keyUp"].map(|what| json!({ "type": what, "value": key.to_string() }))
        });
        let strokes: Vec<Value> = strokes.collect();
        let body = json!({ "actions": [{ "type": "key", "id": "keyboard", "actions": strokes }] });
        self.post("/actions", &body).await.expect("pressed");
    }

    /// What those cannot use who do not see the page, or see it badly: by axe, each as one line.
    pub async fn barriers(&self) -> Vec<String> {
        let axe = std::fs::read_to_string(dir().join("axe/axe.js")).expect("axe");
        // By the driver, as the page's own policy forbids scripts of others.
        self.script(&axe).await;
        let look = "return axe.run().then(({ violations }) => violations.map((one) => \
                    `${one.id}: ${one.help}: ${one.nodes.map((node) => node.html + ' ' + node.failureSummary).join(' | ')}`))";
        let found = self.script(look).await;
        let lines = found.as_array().cloned().unwrap_or_default().into_iter();
        lines
            .map(|line| line.as_str().unwrap_or_default().to_owned())
            .collect()
    }

    /// A picture of it, into the folder that `LOCKSTEP_TEST_PICTURES` names.
    pub async fn picture(&self, name: &str) {
        let Some(folder) = std::env::var_os("LOCKSTEP_TEST_PICTURES") else {
            return;
        };
        let picture = self.0.command("GET", "/screenshot", &Value::Null).await;
        let picture = picture.expect("a picture");
        let picture = BASE64.decode(picture.as_str().unwrap_or_default());
        let picture = picture.expect("Base64");
        let path = std::path::Path::new(&folder).join(format!("{name}.png"));
        std::fs::write(&path, picture).expect("the folder can be written");
    }
}
