//! Apache Kafka, one node that is broker and controller.

mod protocol;

use std::collections::hash_map::RandomState;
use std::fmt::Write;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

use rustix::process::Signal;
use tokio::sync::OnceCell;

use crate::component::{Component, dir};
use crate::error::{Context, Error};
use crate::java;
use crate::port::Port;
use crate::process::Process;
use crate::proxy::Proxy;
use crate::scratch::Scratch;

const START_DEADLINE: Duration = Duration::from_secs(180);

/// One broker that can do what three do, with internal topics that are made in no time.
const SETTINGS: &str = "\
process.roles=broker,controller
node.id=1
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
default.replication.factor=1
min.insync.replicas=1
num.partitions=1
auto.create.topics.enable=true
group.initial.rebalance.delay.ms=0
num.network.threads=2
num.io.threads=4
log.cleaner.dedupe.buffer.size=16777216
# After a kill, the controller lets the broker in again only when its former session is over: 9 s by default.
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
";

/// A test's own broker.
#[derive(Clone, Debug, Default)]
pub struct KafkaOptions {
    /// Settings of the broker; the last one of a name counts.
    pub settings: Vec<(String, String)>,
    /// Also listens behind a [`Proxy`]: a client that starts at [`Kafka::proxied_bootstrap`] never gets past it.
    pub proxy: bool,
}

/// A running broker.
#[derive(Debug)]
pub struct Kafka {
    bootstrap: String,
    own: Option<Own>,
}

#[derive(Debug)]
struct Own {
    process: Process,
    scratch: Scratch,
    port: Port,
    _others: Vec<Port>,
    proxy: Option<Proxy>,
}

impl Kafka {
    /// The broker that all tests of the process share, started at the first call. Isolate by topic prefix, group and
    /// transactional id.
    ///
    /// # Panics
    /// When it is not installed or does not start.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<Kafka> = OnceCell::const_new();
        SHARED
            .get_or_init(async || match Component::Kafka.provided() {
                Some(bootstrap) => Self {
                    bootstrap,
                    own: None,
                },
                None => Self::start(KafkaOptions::default()).await,
            })
            .await
    }

    /// Starts a broker of the test's own.
    ///
    /// # Panics
    /// When it is not installed or does not start.
    pub async fn start(options: KafkaOptions) -> Self {
        Self::try_start(options)
            .await
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`Kafka::start`].
    ///
    /// # Errors
    /// When it is not installed or does not start, with the end of its log.
    pub async fn try_start(options: KafkaOptions) -> Result<Self, Error> {
        let mut tries = 3;
        loop {
            match Self::start_once(&options).await {
                Err(error) if error.is_port_taken() && tries > 1 => tries -= 1,
                outcome => return outcome,
            }
        }
    }

    async fn start_once(options: &KafkaOptions) -> Result<Self, Error> {
        let scratch = Scratch::new("kafka")?;
        let (port, controller, proxied) = (Port::reserve()?, Port::reserve()?, Port::reserve()?);
        let proxy = match options.proxy {
            true => Some(Proxy::start(format!("127.0.0.1:{}", proxied.number())).await),
            false => None,
        };
        let data = scratch.make_dir("data")?;
        // What `kafka-storage format` writes for a fixed set of voters, without the start of another virtual machine.
        let identity = format!(
            "version=1\ncluster.id={}\nnode.id=1\ndirectory.id={}\n",
            random_uuid(),
            random_uuid()
        );
        scratch.write("data/meta.properties", &identity)?;
        let mut properties = SETTINGS.to_owned();
        let mut set = |name: &str, value: &str| {
            // Writing to a String cannot fail.
            let _ = writeln!(properties, "{name}={value}");
        };
        let (number, controller_number) = (port.number(), controller.number());
        let mut listeners = format!("PLAINTEXT://127.0.0.1:{number}");
        let mut advertised = listeners.clone();
        if let Some(proxy) = &proxy {
            let _ = write!(listeners, ",PROXIED://127.0.0.1:{}", proxied.number());
            let _ = write!(advertised, ",PROXIED://{}", proxy.address());
        }
        set(
            "listeners",
            &format!("{listeners},CONTROLLER://127.0.0.1:{controller_number}"),
        );
        set("advertised.listeners", &advertised);
        set(
            "controller.quorum.voters",
            &format!("1@127.0.0.1:{controller_number}"),
        );
        set("log.dirs", &data.display().to_string());
        for (name, value) in &options.settings {
            set(name, value);
        }
        let properties = scratch.write("server.properties", &properties)?;
        let launch = java::launch(
            Component::Kafka,
            &scratch,
            &[],
            "kafka.Kafka",
            &[properties.into()],
        )?;
        let server = Self {
            bootstrap: format!("127.0.0.1:{number}"),
            own: Some(Own {
                process: Process::start(launch)?,
                scratch,
                port,
                _others: vec![controller, proxied],
                proxy,
            }),
        };
        server.ready().await.map(|()| server)
    }

    /// Ready once the coordinators of groups and of transactions answer, which makes their topics.
    async fn ready(&self) -> Result<(), Error> {
        let look = async || protocol::coordinators_answer(&self.bootstrap).await;
        self.own().process.ready(START_DEADLINE, look).await
    }

    fn own(&self) -> &Own {
        self.own
            .as_ref()
            .unwrap_or_else(|| panic!("{} is a broker that the kit did not start", self.bootstrap))
    }

    /// `127.0.0.1:9092`
    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// Of clients, on 127.0.0.1.
    ///
    /// # Panics
    /// For a broker that a variable provides.
    pub fn port(&self) -> u16 {
        self.own().port.number()
    }

    /// The proxy of a broker started with [`KafkaOptions::proxy`].
    ///
    /// # Panics
    /// For any other.
    pub fn proxy(&self) -> &Proxy {
        self.own()
            .proxy
            .as_ref()
            .unwrap_or_else(|| panic!("the broker was started without a proxy"))
    }

    /// The bootstrap address whose clients talk through [`Kafka::proxy`] alone.
    pub fn proxied_bootstrap(&self) -> String {
        self.proxy().address()
    }

    /// Gives a user a password for `SCRAM-SHA-512`, which the broker keeps in its metadata: by its own program, on the plain listener.
    ///
    /// # Errors
    /// When the program fails, with what it has said.
    pub async fn scram_user(&self, name: &str, password: &str) -> Result<(), Error> {
        let java = java::program().ok_or_else(|| Component::Kafka.missing())?;
        let said = tokio::process::Command::new(java)
            .arg("-cp")
            .arg(dir().join("kafka/libs/*"))
            .args(["kafka.admin.ConfigCommand", "--bootstrap-server"])
            .arg(&self.bootstrap)
            .args(["--alter", "--entity-type", "users", "--entity-name", name])
            .args([
                "--add-config",
                &format!("SCRAM-SHA-512=[password={password}]"),
            ])
            .output()
            .await
            .context(|| "starting kafka.admin.ConfigCommand".into())?;
        let text = String::from_utf8_lossy(&said.stderr);
        match said.status.success() && !text.contains("Error") {
            true => Ok(()),
            false => Err(Error::new(format!("no user {name}: {text}"))),
        }
    }

    /// What the broker has logged since its last start.
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

/// The version of the installed broker, from the name of its jar.
pub fn installed_version() -> Option<String> {
    let jars = std::fs::read_dir(dir().join("kafka/libs")).ok()?;
    jars.flatten().find_map(|jar| {
        let name = jar.file_name();
        let version = name
            .to_str()?
            .strip_prefix("kafka_2.13-")?
            .strip_suffix(".jar")?;
        Some(version.to_owned())
    })
}

/// As Kafka writes them: 16 bytes in URL-safe base64, that is 22 characters of which the last carries two bits.
fn random_uuid() -> String {
    const LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdef";
    let mut bits = 0;
    let random = (0..21).map(|at| {
        if at % 12 == 0 {
            bits = RandomState::new().build_hasher().finish();
        }
        let letter = LETTERS[(bits % 32) as usize];
        bits /= 32;
        char::from(letter)
    });
    random.chain(['A']).collect()
}
