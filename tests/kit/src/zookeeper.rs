//! Apache ZooKeeper, one server.

use std::fmt::Write;
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;

use crate::component::{Component, dir};
use crate::error::Error;
use crate::java;
use crate::port::Port;
use crate::process::Process;
use crate::scratch::Scratch;

const START_DEADLINE: Duration = Duration::from_secs(180);

/// Sessions from 0.4 s to 2 minutes: tests of what happens when one ends should not take long.
const SETTINGS: &str = "\
tickTime=200
maxSessionTimeout=120000
maxClientCnxns=0
admin.enableServer=false
4lw.commands.whitelist=*
";

/// A test's own server.
#[derive(Clone, Debug, Default)]
pub struct ZookeeperOptions {
    /// Settings of the server; the last one of a name counts.
    pub settings: Vec<(String, String)>,
}

/// A running server.
#[derive(Debug)]
pub struct Zookeeper {
    address: String,
    own: Option<Own>,
}

#[derive(Debug)]
struct Own {
    process: Process,
    scratch: Scratch,
    port: Port,
}

impl Zookeeper {
    /// The server that all tests of the process share, started at the first call. Isolate by path.
    ///
    /// # Panics
    /// When it is not installed or does not start.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<Zookeeper> = OnceCell::const_new();
        SHARED
            .get_or_init(async || match Component::Zookeeper.provided() {
                Some(address) => Self { address, own: None },
                None => Self::start(ZookeeperOptions::default()).await,
            })
            .await
    }

    /// Starts a server of the test's own.
    ///
    /// # Panics
    /// When it is not installed or does not start.
    pub async fn start(options: ZookeeperOptions) -> Self {
        Self::try_start(options)
            .await
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`Zookeeper::start`].
    ///
    /// # Errors
    /// When it is not installed or does not start, with the end of its log.
    pub async fn try_start(options: ZookeeperOptions) -> Result<Self, Error> {
        let mut tries = 3;
        loop {
            match Self::start_once(&options).await {
                Err(error) if error.is_port_taken() && tries > 1 => tries -= 1,
                outcome => return outcome,
            }
        }
    }

    async fn start_once(options: &ZookeeperOptions) -> Result<Self, Error> {
        let scratch = Scratch::new("zookeeper")?;
        let port = Port::reserve()?;
        let data = scratch.make_dir("data")?;
        let mut settings = SETTINGS.to_owned();
        let mut set = |name: &str, value: &str| {
            // Writing to a String cannot fail.
            let _ = writeln!(settings, "{name}={value}");
        };
        set("clientPort", &port.number().to_string());
        set("clientPortAddress", "127.0.0.1");
        set("dataDir", &data.display().to_string());
        for (name, value) in &options.settings {
            set(name, value);
        }
        let settings = scratch.write("zoo.cfg", &settings)?;
        let launch = java::launch(
            Component::Zookeeper,
            &scratch,
            &[
                "-Xmx64m",
                "-XX:TieredStopAtLevel=1",
                // A killed process survives it, a lost machine would not.
                "-Dzookeeper.forceSync=no",
            ],
            "org.apache.zookeeper.server.ZooKeeperServerMain",
            &[settings.into()],
        )?;
        let server = Self {
            address: format!("127.0.0.1:{}", port.number()),
            own: Some(Own {
                process: Process::start(launch)?,
                scratch,
                port,
            }),
        };
        server.ready().await.map(|()| server)
    }

    async fn ready(&self) -> Result<(), Error> {
        let look = async || match self.ask("ruok").await {
            Ok(answer) if answer == "imok" => Ok(()),
            other => Err(other),
        };
        self.own().process.ready(START_DEADLINE, look).await
    }

    /// Sends one of the commands of four letters, such as `stat`, and returns the answer.
    ///
    /// # Errors
    /// When the server cannot be reached.
    pub async fn ask(&self, command: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(&self.address).await?;
        stream.write_all(command.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    fn own(&self) -> &Own {
        self.own
            .as_ref()
            .unwrap_or_else(|| panic!("{} is a server that the kit did not start", self.address))
    }

    /// `127.0.0.1:2181`
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Of clients, on 127.0.0.1.
    ///
    /// # Panics
    /// For a server that a variable provides.
    pub fn port(&self) -> u16 {
        self.own().port.number()
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

/// The version of the installed server, from the name of its jar.
pub fn installed_version() -> Option<String> {
    let jars = std::fs::read_dir(dir().join("zookeeper/libs")).ok()?;
    jars.flatten().find_map(|jar| {
        let name = jar.file_name();
        let version = name
            .to_str()?
            .strip_prefix("zookeeper-")?
            .strip_suffix(".jar")?;
        // Not `zookeeper-jute-…`.
        version
            .starts_with(|first: char| first.is_ascii_digit())
            .then(|| version.to_owned())
    })
}
