//! PostgreSQL servers and databases.

mod database;
mod options;

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use tokio::sync::OnceCell;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

pub use database::Database;
use options::server_arguments;
pub use options::{Auth, PostgresOptions};

use crate::certificates::{self, Certificates};
use crate::component::{Component, POSTGRES_MAJORS, dir};
use crate::error::{Context, Error};
use crate::port::Port;
use crate::process::{End, Launch, Process};
use crate::scratch::{Scratch, unique};

/// The superuser of every server that the kit starts.
pub const USER: &str = "postgres";

/// The password of [`USER`] where the server asks for one.
pub const PASSWORD: &str = "lockstep kit's $ecret/@:%";

const START_DEADLINE: Duration = Duration::from_secs(120);

/// A running server.
#[derive(Debug)]
pub struct Postgres {
    /// Of its database `postgres`.
    url: String,
    major: u16,
    version: String,
    /// For the kit's own connections.
    admin: Config,
    /// `None` for a server that a variable provides.
    own: Option<Own>,
}

#[derive(Debug)]
struct Own {
    // The order matters: the process ends before its files are removed, and its port is free after that.
    process: Process,
    scratch: Scratch,
    port: Port,
    certificates: Option<Certificates>,
}

impl Postgres {
    /// The server of this major version that all tests of the process share, started at the first call.
    ///
    /// A transaction that stays open on it, prepared or not, blocks the creation of logical slots in all its databases:
    /// a test that leaves one open should start its own server.
    ///
    /// # Panics
    /// When it is not installed or does not start.
    pub async fn shared(major: u16) -> &'static Self {
        static SHARED: [OnceCell<Postgres>; POSTGRES_MAJORS.len()] =
            [const { OnceCell::const_new() }; _];
        let index = POSTGRES_MAJORS.iter().position(|&known| known == major);
        let cell = &SHARED
            [index.unwrap_or_else(|| panic!("PostgreSQL {major} is none of {POSTGRES_MAJORS:?}"))];
        cell.get_or_init(async || match Component::Postgres(major).provided() {
            Some(url) => Self::connect(major, &url)
                .await
                .unwrap_or_else(|error| panic!("{error}")),
            None => Self::start(PostgresOptions::new(major)).await,
        })
        .await
    }

    /// Starts a server of the test's own.
    ///
    /// # Panics
    /// When it is not installed or does not start.
    pub async fn start(options: PostgresOptions) -> Self {
        Self::try_start(options)
            .await
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`Postgres::start`].
    ///
    /// # Errors
    /// When it is not installed or does not start, with the end of its log.
    pub async fn try_start(options: PostgresOptions) -> Result<Self, Error> {
        let mut tries = 3;
        loop {
            match Self::start_once(&options).await {
                Err(error) if error.is_port_taken() && tries > 1 => tries -= 1,
                outcome => return outcome,
            }
        }
    }

    async fn start_once(options: &PostgresOptions) -> Result<Self, Error> {
        let major = options.major;
        let bin = bin_dir(major).ok_or_else(|| Component::Postgres(major).missing())?;
        let scratch = Scratch::new(&format!("pg{major}"))?;
        let port = Port::reserve()?;
        let certificates = if options.ssl {
            Some(certificates::make(&scratch)?)
        } else {
            None
        };
        let data = scratch.make_dir("data")?;
        let launch = Launch {
            name: format!("PostgreSQL {major}"),
            program: bin.join("postgres"),
            args: server_arguments(options, &scratch, &port, certificates.as_ref()),
            dir: scratch.path().into(),
            // Ends at once and, unlike after SIGKILL, leaves no shared memory segment behind.
            end: End::Quit,
        };
        match &options.primary {
            None => initdb(&launch, &bin, &data).await?,
            Some(primary) => base_backup(&launch, &bin, &data, primary).await?,
        }
        scratch.write("pg_hba.conf", &options.hba_lines())?;
        let mut admin = Config::new();
        admin
            .host_path(scratch.path())
            .port(port.number())
            .user(USER)
            .dbname("postgres");
        let password = match options.auth {
            Auth::Trust => String::new(),
            _ => format!(":{}", percent_encoded(PASSWORD)),
        };
        let mut server = Self {
            url: format!(
                "postgres://{USER}{password}@127.0.0.1:{}/postgres",
                port.number()
            ),
            major,
            version: String::new(),
            admin,
            own: Some(Own {
                process: Process::start(launch)?,
                scratch,
                port,
                certificates,
            }),
        };
        let client = server.ready().await?;
        if options.auth != Auth::Trust {
            let sql = format!(
                "ALTER ROLE {USER} PASSWORD '{}'",
                PASSWORD.replace('\'', "''")
            );
            client.batch_execute(&sql).await.context(|| sql.clone())?;
        }
        server.version = version_of(&client).await?;
        Ok(server)
    }

    async fn connect(major: u16, url: &str) -> Result<Self, Error> {
        let named = || {
            format!(
                "{}={url}",
                Component::Postgres(major).variable().unwrap_or_default()
            )
        };
        let admin: Config = url.parse().context(named)?;
        let client = client(&admin).await.context(named)?;
        let version = version_of(&client).await?;
        if version.split('.').next() != Some(&major.to_string()) {
            return Err(Error::new(format!(
                "{} is a server of version {version}",
                named()
            )));
        }
        Ok(Self {
            url: url.into(),
            major,
            version,
            admin,
            own: None,
        })
    }

    async fn ready(&self) -> Result<Client, Error> {
        self.own()
            .process
            .ready(START_DEADLINE, async || client(&self.admin).await)
            .await
    }

    fn own(&self) -> &Own {
        self.own
            .as_ref()
            .unwrap_or_else(|| panic!("{} is a server that the kit did not start", self.url))
    }

    /// Of the database `postgres`, as the superuser: `postgres://postgres@127.0.0.1:5432/postgres`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// On 127.0.0.1.
    ///
    /// # Panics
    /// For a server that a variable provides.
    pub fn port(&self) -> u16 {
        self.own().port.number()
    }

    /// 14 to 18.
    pub fn major(&self) -> u16 {
        self.major
    }

    /// As the server says it: `16.15`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The folder of `psql`, `pg_recvlogical` and `pgbench` of this version.
    ///
    /// # Panics
    /// When only a server is provided and the programs are not installed.
    pub fn bin_dir(&self) -> PathBuf {
        bin_dir(self.major)
            .unwrap_or_else(|| panic!("{}", Component::Postgres(self.major).missing()))
    }

    /// The files of a server started with [`PostgresOptions::ssl`].
    ///
    /// # Panics
    /// For any other.
    pub fn certificates(&self) -> &Certificates {
        self.own()
            .certificates
            .as_ref()
            .unwrap_or_else(|| panic!("the server was started without ssl"))
    }

    /// What the server has logged since its last start.
    pub fn log(&self) -> String {
        self.own().scratch.read("log")
    }

    /// A new connection to the database `postgres`.
    pub async fn client(&self) -> Client {
        client(&self.admin)
            .await
            .unwrap_or_else(|error| panic!("connecting to {}: {error}", self.url))
    }

    /// Runs statements separated by `;` in the database `postgres`.
    pub async fn execute(&self, sql: &str) {
        execute(&self.client().await, sql).await;
    }

    /// The first column of the first row, as text; `None` for NULL and for no row.
    pub async fn value(&self, sql: &str) -> Option<String> {
        value(&self.client().await, sql).await
    }

    /// Creates a database with a unique name that begins with `prefix`.
    pub async fn database(&self, prefix: &str) -> Database {
        Database::create(self, prefix).await
    }

    /// SIGKILL to the postmaster, as the kernel does when memory runs out; its children end by themselves soon after.
    pub fn kill(&self) {
        self.own().process.kill();
    }

    /// SIGKILL to every process of the cluster: what the loss of the machine looks like to clients, but for the disk.
    pub fn kill_all(&self) {
        self.own().process.kill_family();
    }

    /// An immediate shutdown (SIGQUIT): sessions end at once, nothing is written, the next start recovers.
    pub async fn stop_immediately(&self) {
        self.own()
            .process
            .stop(Signal::QUIT, Duration::from_secs(10))
            .await;
    }

    /// `true` stops every process of the cluster where it is (SIGSTOP), `false` lets them go on.
    pub fn freeze(&self, freeze: bool) {
        self.own().process.freeze_family(freeze);
    }

    /// A fast shutdown (SIGINT): it waits for replication clients to confirm all WAL; after 30 s an immediate one. Returns whether the
    /// fast one was enough.
    pub async fn stop(&self) -> bool {
        let process = &self.own().process;
        process.signal(Signal::INT);
        let ended =
            crate::wait::poll_until(Duration::from_secs(30), async || process.exited().is_some())
                .await
                .is_ok();
        process.stop(Signal::QUIT, Duration::from_secs(10)).await;
        ended
    }

    /// Makes a standby a primary, and waits until it is one.
    pub async fn promote(&self) {
        self.execute("SELECT pg_promote(true, 60)").await;
    }

    /// Stops it, copies its data, and leaves it down.
    ///
    /// # Panics
    /// When the data cannot be copied.
    pub async fn stop_and_save(&self) -> SavedData {
        self.stop().await;
        let scratch = &self.own().scratch;
        let saved = SavedData(unique("saved"));
        copy_folder(&scratch.join("data"), &scratch.join(&saved.0));
        saved
    }

    /// Starts it with data that was saved from it, as after a disaster: what was written since is gone.
    ///
    /// # Panics
    /// When the data cannot be copied.
    pub async fn restore(&self, saved: &SavedData) {
        if self.own().process.id().is_some() {
            self.stop().await;
        }
        let scratch = &self.own().scratch;
        let data = scratch.join("data");
        std::fs::remove_dir_all(&data)
            .unwrap_or_else(|error| panic!("removing {}: {error}", data.display()));
        copy_folder(&scratch.join(&saved.0), &data);
        self.restart().await;
    }

    /// Stops it unless it is down, starts it on the same port with the same data, and waits until it accepts connections.
    pub async fn restart(&self) {
        if self.own().process.id().is_some() {
            self.stop().await;
        }
        let try_once = async || {
            self.own().process.start_again()?;
            self.ready().await
        };
        // After `kill`, children that still run hold the shared memory, and the port, for a moment.
        crate::wait_for(
            START_DEADLINE,
            format_args!("PostgreSQL {} to start again", self.major),
            try_once,
        )
        .await;
    }
}

/// A copy of a server's data, which goes with the server.
#[derive(Debug)]
pub struct SavedData(String);

/// With owners and modes.
fn copy_folder(from: &Path, to: &Path) {
    let mut command = std::process::Command::new("cp");
    let status = command.arg("-a").arg(from).arg(to).status();
    assert!(
        status.as_ref().is_ok_and(std::process::ExitStatus::success),
        "copying {}: {status:?}",
        from.display()
    );
}

async fn initdb(launch: &Launch, bin: &Path, data: &Path) -> Result<(), Error> {
    let args: [&OsStr; _] = [
        "-D".as_ref(),
        data.as_ref(),
        "--username=postgres".as_ref(),
        "--auth=trust".as_ref(),
        "--encoding=UTF8".as_ref(),
        "--locale=C.UTF-8".as_ref(),
        "--no-sync".as_ref(),
    ];
    launch.run_to_end(&bin.join("initdb"), &args).await
}

async fn base_backup(launch: &Launch, bin: &Path, data: &Path, primary: &str) -> Result<(), Error> {
    let args: [&OsStr; _] = [
        "-D".as_ref(),
        data.as_ref(),
        "-d".as_ref(),
        primary.as_ref(),
        "--checkpoint=fast".as_ref(),
        // Writes `standby.signal`.
        "--write-recovery-conf".as_ref(),
        "--no-sync".as_ref(),
    ];
    launch.run_to_end(&bin.join("pg_basebackup"), &args).await?;
    // Unlike initdb it leaves the folder's mode as it was, and the server wants it to be its own.
    let own = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(data, own).context(|| data.display().to_string())
}

/// A connection whose task ends with the client.
async fn client(config: &Config) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(async move {
        // The client's calls see the error too.
        let _ = connection.await;
    });
    Ok(client)
}

async fn execute(client: &Client, sql: &str) {
    client
        .batch_execute(sql)
        .await
        .unwrap_or_else(|error| panic!("{}", shown(&error, sql)));
}

async fn value(client: &Client, sql: &str) -> Option<String> {
    let messages = client.simple_query(sql).await;
    let messages = messages.unwrap_or_else(|error| panic!("{}", shown(&error, sql)));
    messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).map(ToOwned::to_owned)),
        _ => None,
    })?
}

fn shown(error: &tokio_postgres::Error, sql: &str) -> String {
    let cause = error
        .as_db_error()
        .map_or_else(|| error.to_string(), ToString::to_string);
    format!("{cause}\nin: {sql}")
}

async fn version_of(client: &Client) -> Result<String, Error> {
    let row = client
        .query_one("SHOW server_version", &[])
        .await
        .context(|| "SHOW server_version".into())?;
    let version: &str = row.get(0);
    Ok(version.split(' ').next().unwrap_or_default().to_owned())
}

/// The folder of the programs of this major version, if it is installed: the kit's, or the system's package.
pub fn bin_dir(major: u16) -> Option<PathBuf> {
    let folders = [
        dir().join(format!("postgres-{major}/bin")),
        format!("/usr/lib/postgresql/{major}/bin").into(),
    ];
    folders
        .into_iter()
        .find(|folder: &PathBuf| folder.join("postgres").is_file())
}

fn percent_encoded(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}
