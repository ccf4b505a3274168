//! RabbitMQ, one node.

use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;

use crate::certificates::{self, Certificates};
use crate::component::Component;
use crate::error::Error;
use crate::port::Port;
use crate::process::{End, Launch, Process};
use crate::scratch::Scratch;

const START_DEADLINE: Duration = Duration::from_secs(180);

/// The scripts of Debian's package that do not ask for a user of their own.
const SCRIPTS: &str = "/usr/lib/rabbitmq/bin";

/// Little of everything: a node is one of many servers on the machine. Never out of disk, which no test of it is about.
const SETTINGS: &str = "\
log.file = false
log.console = true
log.console.level = info
disk_free_limit.absolute = 1MB
";

/// Of the virtual machine: one thread that does not wait busily, and a port for nobody but this machine.
const VM_ARGS: &str =
    "+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {127,0,0,1}";

/// A test's own server.
#[derive(Clone, Debug, Default)]
pub struct RabbitmqOptions {
    /// Lines of `rabbitmq.conf`; the last one of a name counts.
    pub config: Vec<(String, String)>,
    /// Listen with TLS as well.
    pub ssl: bool,
}

/// A running server.
#[derive(Debug)]
pub struct Rabbitmq {
    url: String,
    own: Option<Own>,
}

#[derive(Debug)]
struct Own {
    process: Process,
    /// The name server of Erlang: without one of its own a node would start one that stays.
    _names: Process,
    scratch: Scratch,
    environment: Vec<OsString>,
    port: Port,
    ssl: Option<(Port, Certificates)>,
    /// Of the name server, and of the node for other nodes.
    ports: [Port; 2],
}

impl Rabbitmq {
    /// The server that all tests of the process share, started at the first call. Isolate by the names of exchanges and queues, and of
    /// the pipeline.
    ///
    /// # Panics
    /// When it is not installed or does not start.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<Rabbitmq> = OnceCell::const_new();
        SHARED
            .get_or_init(async || match Component::Rabbitmq.provided() {
                Some(url) => Self { url, own: None },
                None => Self::start(RabbitmqOptions::default()).await,
            })
            .await
    }

    /// Starts a server of the test's own.
    ///
    /// # Panics
    /// When it is not installed or does not start.
    pub async fn start(options: RabbitmqOptions) -> Self {
        Self::try_start(options)
            .await
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`Rabbitmq::start`].
    ///
    /// # Errors
    /// When it is not installed or does not start, with the end of its log.
    pub async fn try_start(options: RabbitmqOptions) -> Result<Self, Error> {
        let mut tries = 3;
        loop {
            match Self::start_once(&options).await {
                Err(error) if error.is_port_taken() && tries > 1 => tries -= 1,
                outcome => return outcome,
            }
        }
    }

    async fn start_once(options: &RabbitmqOptions) -> Result<Self, Error> {
        if !Component::Rabbitmq.is_installed() {
            return Err(Component::Rabbitmq.missing());
        }
        let scratch = Scratch::new("rabbitmq")?;
        let port = Port::reserve()?;
        let ports = [Port::reserve()?, Port::reserve()?];
        let [names_port, node_port] = ports.each_ref().map(Port::number);
        let mut settings = SETTINGS.to_owned();
        let mut set = |name: &str, value: &str| {
            // Writing to a String cannot fail.
            let _ = writeln!(settings, "{name} = {value}");
        };
        set("listeners.tcp.1", &format!("127.0.0.1:{}", port.number()));
        let ssl = match options.ssl {
            true => Some((Port::reserve()?, certificates::make(&scratch)?)),
            false => None,
        };
        if let Some((port, files)) = &ssl {
            // The second is in no certificate.
            for (number, address) in [(1, "127.0.0.1"), (2, "127.0.0.2")] {
                set(
                    &format!("listeners.ssl.{number}"),
                    &format!("{address}:{}", port.number()),
                );
            }
            for (name, path) in [
                ("cacertfile", &files.ca),
                ("certfile", &files.server),
                ("keyfile", &files.server_key),
            ] {
                set(&format!("ssl_options.{name}"), &path.display().to_string());
            }
            set("ssl_options.verify", "verify_none");
            set("ssl_options.fail_if_no_peer_cert", "false");
        }
        for (name, value) in &options.config {
            set(name, value);
        }
        let environment = environment(&scratch, &settings, names_port, node_port)?;
        let names = scratch.make_dir("names")?;
        let names = Process::start(Launch {
            name: "Erlang's name server".into(),
            program: "epmd".into(),
            args: vec![
                "-port".into(),
                names_port.to_string().into(),
                "-address".into(),
                "127.0.0.1".into(),
            ],
            dir: names,
            end: End::Kill,
        })?;
        let listens = async || TcpStream::connect(("127.0.0.1", names_port)).await;
        names.ready(START_DEADLINE, listens).await?;
        let server = Self {
            url: format!("amqp://guest:guest@127.0.0.1:{}", port.number()),
            own: Some(Own {
                process: Process::start(launch(&scratch, &environment, "rabbitmq-server", &[]))?,
                _names: names,
                scratch,
                environment,
                port,
                ssl,
                ports,
            }),
        };
        server.ready().await.map(|()| server)
    }

    async fn ready(&self) -> Result<(), Error> {
        let address = ("127.0.0.1", self.port());
        let look = async || -> std::io::Result<bool> {
            let mut stream = TcpStream::connect(address).await?;
            stream.write_all(b"AMQP\x00\x00\x09\x01").await?;
            // A frame with a method, on channel 0.
            let mut frame = [0; 3];
            stream.read_exact(&mut frame).await?;
            if let Some((port, _)) = &self.own().ssl {
                // It listens there a moment later.
                TcpStream::connect(("127.0.0.1", port.number())).await?;
            }
            Ok(frame == [1, 0, 0])
        };
        let greets = async || match look().await {
            Ok(true) => Ok(()),
            other => Err(other),
        };
        self.own().process.ready(START_DEADLINE, greets).await
    }

    fn own(&self) -> &Own {
        self.own
            .as_ref()
            .unwrap_or_else(|| panic!("{} is a server that the kit did not start", self.url))
    }

    /// `amqp://guest:guest@127.0.0.1:5672`
    pub fn url(&self) -> &str {
        &self.url
    }

    /// With TLS: `amqps://guest:guest@127.0.0.1:5671`.
    ///
    /// # Panics
    /// When the server was not started with `ssl`.
    pub fn ssl_url(&self) -> String {
        let (port, _) = self.ssl();
        format!("amqps://guest:guest@127.0.0.1:{}", port.number())
    }

    /// Of a server with `ssl`.
    ///
    /// # Panics
    /// When the server was not started with `ssl`.
    pub fn certificates(&self) -> &Certificates {
        &self.ssl().1
    }

    fn ssl(&self) -> &(Port, Certificates) {
        let ssl = self.own().ssl.as_ref();
        ssl.unwrap_or_else(|| panic!("{} was started without `ssl`", self.url))
    }

    /// Of clients, on 127.0.0.1.
    ///
    /// # Panics
    /// For a server that a variable provides.
    pub fn port(&self) -> u16 {
        self.own().port.number()
    }

    /// Of Erlang's name server, which is the node's own.
    ///
    /// # Panics
    /// For a server that a variable provides.
    pub fn names_port(&self) -> u16 {
        self.own().ports[0].number()
    }

    /// The server's version: `3.10.8`.
    pub fn version(&self) -> String {
        let log = self.log();
        let behind = log.split_once("Starting RabbitMQ ").map(|(_, rest)| rest);
        let version = behind.and_then(|rest| rest.split_whitespace().next());
        version.unwrap_or("unknown").to_owned()
    }

    /// What the server has logged since its last start.
    pub fn log(&self) -> String {
        self.own().scratch.read("log")
    }

    /// `rabbitmqctl` with these arguments. It takes a second or two.
    ///
    /// # Panics
    /// When it fails.
    pub async fn ctl(&self, args: &[&str]) {
        let own = self.own();
        let launch = launch(&own.scratch, &own.environment, "rabbitmqctl", args);
        let args: Vec<&OsStr> = launch.args.iter().map(OsString::as_os_str).collect();
        let done = launch.run_to_end(&launch.program, &args).await;
        done.unwrap_or_else(|error| panic!("{error}"));
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

/// What the scripts read, as arguments of env(1).
fn environment(
    scratch: &Scratch,
    settings: &str,
    names_port: u16,
    node_port: u16,
) -> Result<Vec<OsString>, Error> {
    let config = scratch.write("rabbitmq.conf", settings)?;
    let plugins = scratch.write("enabled_plugins", "[].\n")?;
    let data = scratch.make_dir("data")?;
    let logs = scratch.make_dir("logs")?;
    let set = |name: &str, value: &dyn std::fmt::Display| OsString::from(format!("{name}={value}"));
    Ok(vec![
        set("RABBITMQ_CONF_ENV_FILE", &"/dev/null"),
        set("RABBITMQ_NODENAME", &"kit@localhost"),
        set("RABBITMQ_CONFIG_FILE", &config.display()),
        set("RABBITMQ_ENABLED_PLUGINS_FILE", &plugins.display()),
        set("RABBITMQ_MNESIA_BASE", &data.display()),
        set("RABBITMQ_LOG_BASE", &logs.display()),
        set("RABBITMQ_DIST_PORT", &node_port),
        set("ERL_EPMD_PORT", &names_port),
        set("ERL_EPMD_ADDRESS", &"127.0.0.1"),
        set("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", &VM_ARGS),
        // Nor does anything start a name server that would stay: a node that misses its own does, by a helper that outlives it.
        set("ERL_FLAGS", &"-start_epmd false"),
        // The script becomes the server then, instead of waiting for it: signals reach it.
        set("RUNNING_UNDER_SYSTEMD", &"1"),
    ])
}

fn launch(scratch: &Scratch, environment: &[OsString], script: &str, args: &[&str]) -> Launch {
    let script: PathBuf = Path::new(SCRIPTS).join(script);
    let mut all = environment.to_vec();
    all.push(script.into());
    all.extend(args.iter().map(OsString::from));
    Launch {
        name: "RabbitMQ".into(),
        program: "env".into(),
        args: all,
        dir: scratch.path().into(),
        end: End::Kill,
    }
}

/// Whether Debian's package is there.
pub(crate) fn is_installed() -> bool {
    Path::new(SCRIPTS).join("rabbitmq-server").is_file() && crate::component::on_path("epmd")
}
