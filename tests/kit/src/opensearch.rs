//! OpenSearch or Elasticsearch, one node: they are started and asked in the same way.

mod secure;

use std::ffi::OsString;
use std::io;
use std::time::Duration;

use rustix::process::Signal;
use tokio::sync::OnceCell;

use crate::certificates::Certificates;
use crate::component::Component;
use crate::error::{Context, Error};
use crate::port::Port;
use crate::process::Process;
use crate::scratch::Scratch;
use crate::{http, java};
use secure::Secure;

const START_DEADLINE: Duration = Duration::from_secs(180);

/// Whose server it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Product {
    /// The OpenSearch project's.
    #[default]
    OpenSearch,
    /// Elastic's, without the modules of its distribution: no security, no scripts, no analyzers of languages.
    Elasticsearch,
}

impl Product {
    /// What a test [requires](crate::require!).
    pub fn component(self) -> Component {
        match self {
            Self::OpenSearch => Component::OpenSearch,
            Self::Elasticsearch => Component::Elasticsearch,
        }
    }

    /// The class that starts a node.
    fn main(self) -> &'static str {
        match self {
            Self::OpenSearch => "OpenSearchNode",
            Self::Elasticsearch => "org.elasticsearch.plugins.ElasticsearchNode",
        }
    }
}

/// A test's own server.
#[derive(Clone, Debug, Default)]
pub struct OpenSearchOptions {
    /// OpenSearch, unless it is said.
    pub product: Product,
    /// Settings of the node, such as `("indices.breaker.total.limit", "10%")`.
    pub settings: Vec<(String, String)>,
    /// It speaks TLS only, and asks for a user and a password: OpenSearch with its security plugin. The administrator is `admin`,
    /// with the password `admin`, and makes others by `/_plugins/_security/api`.
    pub secure: bool,
}

impl OpenSearchOptions {
    /// A node of `product` with its usual settings.
    pub fn of(product: Product) -> Self {
        Self {
            product,
            ..Self::default()
        }
    }
}

/// A running server.
#[derive(Debug)]
pub struct OpenSearch {
    product: Product,
    url: String,
    own: Option<Own>,
}

#[derive(Debug)]
struct Own {
    process: Process,
    scratch: Scratch,
    port: Port,
    _transport: Port,
    secure: Option<Secure>,
}

impl OpenSearch {
    /// The OpenSearch that all tests of the process share, started at the first call. Isolate by index prefix.
    ///
    /// # Panics
    /// When it is not installed or does not start.
    pub async fn shared() -> &'static Self {
        Self::shared_of(Product::OpenSearch).await
    }

    /// As [`OpenSearch::shared`].
    ///
    /// # Panics
    /// When it is not installed or does not start.
    pub async fn shared_of(product: Product) -> &'static Self {
        static SHARED: [OnceCell<OpenSearch>; 2] = [const { OnceCell::const_new() }; 2];
        SHARED[product as usize]
            .get_or_init(async || match product.component().provided() {
                Some(url) => Self {
                    product,
                    url: url.trim_end_matches('/').into(),
                    own: None,
                },
                None => Self::start(OpenSearchOptions::of(product)).await,
            })
            .await
    }

    /// Starts a server of the test's own.
    ///
    /// # Panics
    /// When it is not installed or does not start.
    pub async fn start(options: OpenSearchOptions) -> Self {
        Self::try_start(options)
            .await
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`OpenSearch::start`].
    ///
    /// # Errors
    /// When it is not installed or does not start, with the end of its log.
    pub async fn try_start(options: OpenSearchOptions) -> Result<Self, Error> {
        let mut tries = 3;
        loop {
            match Self::start_once(&options).await {
                Err(error) if error.is_port_taken() && tries > 1 => tries -= 1,
                outcome => return outcome,
            }
        }
    }

    async fn start_once(options: &OpenSearchOptions) -> Result<Self, Error> {
        let component = options.product.component();
        let scratch = Scratch::new(component.install_name())?;
        let (port, transport) = (Port::reserve()?, Port::reserve()?);
        let mut settings = vec![
            format!("path.home={}", scratch.path().display()),
            "cluster.name=lockstep-kit".into(),
            "node.name=kit".into(),
            "network.host=127.0.0.1".into(),
            "discovery.type=single-node".into(),
            // A full disk of the machine is not what a test is about.
            "cluster.routing.allocation.disk.threshold_enabled=false".into(),
            format!("http.port={}", port.number()),
            format!("transport.port={}", transport.number()),
        ];
        settings.extend(
            options
                .settings
                .iter()
                .map(|(name, value)| format!("{name}={value}")),
        );
        let secure = match options.secure {
            true => Some(Secure::prepare(options.product, &scratch)?),
            false => None,
        };
        if options.secure {
            settings.extend(Secure::settings());
        }
        let settings: Vec<OsString> = settings.into_iter().map(Into::into).collect();
        let launch = java::launch(
            component,
            &scratch,
            // The optimizing compiler costs more than it gains in the life of a test.
            &["-XX:TieredStopAtLevel=1"],
            options.product.main(),
            &settings,
        )?;
        let server = Self {
            product: options.product,
            url: match secure {
                Some(_) => format!("https://127.0.0.1:{}", port.number()),
                None => format!("http://127.0.0.1:{}", port.number()),
            },
            own: Some(Own {
                process: Process::start(launch)?,
                scratch,
                port,
                _transport: transport,
                secure,
            }),
        };
        server.ready().await.map(|()| server)
    }

    /// Ready once the primaries of all indexes are.
    async fn ready(&self) -> Result<(), Error> {
        let look = async || {
            let path = "/_cluster/health?wait_for_status=yellow&timeout=1s";
            match self.request("GET", path, "").await? {
                (200, body) => Ok(body),
                (status, body) => Err(io::Error::other(format!("{status} {body}"))),
            }
        };
        self.own()
            .process
            .ready(START_DEADLINE, look)
            .await
            .map(drop)
    }

    fn own(&self) -> &Own {
        self.own
            .as_ref()
            .unwrap_or_else(|| panic!("{} is a server that the kit did not start", self.url))
    }

    /// Whose server it is.
    pub fn product(&self) -> Product {
        self.product
    }

    /// `http://127.0.0.1:9200`
    pub fn url(&self) -> &str {
        &self.url
    }

    fn address(&self) -> &str {
        self.url
            .split_once("://")
            .map_or(&self.url, |(_, address)| address)
    }

    /// Of HTTP, on 127.0.0.1.
    ///
    /// # Panics
    /// For a server that a variable provides.
    pub fn port(&self) -> u16 {
        self.own().port.number()
    }

    /// Sends one request with a JSON body, which may be empty; status and body of the answer. A
    /// [secure](OpenSearchOptions::secure) server is asked as its administrator.
    ///
    /// # Errors
    /// When the server cannot be reached.
    pub async fn request(&self, method: &str, path: &str, body: &str) -> io::Result<(u16, String)> {
        let secure = self.own.as_ref().and_then(|own| own.secure.as_ref());
        match secure {
            Some(secure) => secure.request(&self.url, method, path, body).await,
            None => http::request(self.address(), method, path, body).await,
        }
    }

    /// Of a [secure](OpenSearchOptions::secure) server.
    ///
    /// # Panics
    /// For any other.
    pub fn certificates(&self) -> &Certificates {
        let secure = self.own().secure.as_ref();
        &secure.expect("it is a secure server").certificates
    }

    /// The server's version: `2.19.1`.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub async fn version(&self) -> Result<String, Error> {
        let (_, about) = self
            .request("GET", "/", "")
            .await
            .context(|| format!("asking {}", self.url))?;
        let version = about
            .split_once("\"number\" : \"")
            .and_then(|(_, rest)| rest.split('"').next());
        Ok(version.unwrap_or("unknown").to_owned())
    }

    /// What the server has logged since its last start.
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

    /// SIGTERM, and SIGKILL after 30 s.
    pub async fn stop(&self) {
        self.own()
            .process
            .stop(Signal::TERM, Duration::from_secs(30))
            .await;
    }

    /// Stops it unless it is down, starts it on the same port with the same data, and waits until it answers.
    pub async fn restart(&self) {
        self.stop().await;
        self.own()
            .process
            .start_again()
            .unwrap_or_else(|error| panic!("{error}"));
        self.ready().await.unwrap_or_else(|error| panic!("{error}"));
    }
}
