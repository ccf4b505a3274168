//! How a server is started.

use std::ffi::{OsStr, OsString};

use super::{Postgres, USER};
use crate::certificates::Certificates;
use crate::port::Port;
use crate::scratch::Scratch;

/// What every server gets. The session defaults are odd on purpose: code that depends on them, instead of setting what it
/// needs, fails here.
const SETTINGS: &[(&str, &str)] = &[
    ("wal_level", "logical"),
    ("max_replication_slots", "50"),
    ("max_wal_senders", "50"),
    ("max_prepared_transactions", "50"),
    ("max_connections", "200"),
    ("fsync", "off"),
    ("shared_buffers", "64MB"),
    ("max_wal_size", "1GB"),
    // Leaves nothing behind in /dev/shm.
    ("dynamic_shared_memory_type", "mmap"),
    ("log_line_prefix", "%m [%p] %q%u@%d %a "),
    ("TimeZone", "Asia/Kolkata"),
    ("log_timezone", "UTC"),
    ("DateStyle", "SQL, DMY"),
    ("IntervalStyle", "sql_standard"),
    ("extra_float_digits", "0"),
    ("bytea_output", "escape"),
];

/// How clients on TCP prove who they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Auth {
    /// They need not.
    #[default]
    Trust,
    /// SCRAM-SHA-256 with [`PASSWORD`](super::PASSWORD).
    Scram,
    /// MD5 with [`PASSWORD`](super::PASSWORD).
    Md5,
    /// [`PASSWORD`](super::PASSWORD) in clear text.
    Password,
}

impl Auth {
    fn method(self) -> &'static str {
        match self {
            Self::Trust => "trust",
            Self::Scram => "scram-sha-256",
            Self::Md5 => "md5",
            Self::Password => "password",
        }
    }
}

/// A test's own server.
#[derive(Clone, Debug)]
pub struct PostgresOptions {
    /// 14 to 18.
    pub major: u16,
    /// Settings over the kit's, such as `("wal_level", "replica")`; the last one of a name counts.
    pub settings: Vec<(String, String)>,
    /// For TCP connections to 127.0.0.1, unless `hba` is given.
    pub auth: Auth,
    /// Lines of `pg_hba.conf` in place of the kit's for TCP. The kit itself uses the Unix socket, which stays open.
    pub hba: Option<String>,
    /// TLS with [`Postgres::certificates`](super::Postgres::certificates); plain connections stay possible unless `hba` says otherwise.
    pub ssl: bool,
    /// The primary that it is a standby of, as a connection string; see [`PostgresOptions::standby_of`].
    pub primary: Option<String>,
}

impl PostgresOptions {
    /// A server of this major version as the shared one is.
    pub fn new(major: u16) -> Self {
        Self {
            major,
            settings: Vec::new(),
            auth: Auth::Trust,
            hba: None,
            ssl: false,
            primary: None,
        }
    }

    /// A standby of a server that the kit started, with the same version. It begins as a copy of it.
    pub fn standby_of(primary: &Postgres) -> Self {
        let host = primary.own().scratch.path().display().to_string();
        let port = primary.port();
        let there = format!("host={host} port={port} user={USER} dbname=postgres");
        let options = Self::new(primary.major()).set("primary_conninfo", &there);
        Self {
            primary: Some(there),
            ..options
        }
    }

    /// Adds a setting.
    #[must_use]
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    pub(super) fn hba_lines(&self) -> String {
        let tcp = self.hba.clone().unwrap_or_else(|| {
            let method = self.auth.method();
            format!(
                "host all all 127.0.0.0/8 {method}\nhost replication all 127.0.0.0/8 {method}\n"
            )
        });
        format!("local all all trust\nlocal replication all trust\n{tcp}\n")
    }
}

/// The arguments of the server program.
pub(super) fn server_arguments(
    options: &PostgresOptions,
    scratch: &Scratch,
    port: &Port,
    certificates: Option<&Certificates>,
) -> Vec<OsString> {
    let mut args: Vec<OsString> = ["-D".into(), scratch.join("data").into()].into();
    let mut set = |name: &str, value: &OsStr| {
        let mut setting = OsString::from(format!("{name}="));
        setting.push(value);
        args.extend(["-c".into(), setting]);
    };
    set("port", port.number().to_string().as_ref());
    set("unix_socket_directories", scratch.path().as_ref());
    set("hba_file", scratch.join("pg_hba.conf").as_ref());
    set(
        "listen_addresses",
        if options.ssl {
            "127.0.0.1,127.0.0.2"
        } else {
            "127.0.0.1"
        }
        .as_ref(),
    );
    if let Some(files) = certificates {
        set("ssl", "on".as_ref());
        set("ssl_ca_file", files.ca.as_ref());
        set("ssl_cert_file", files.server.as_ref());
        set("ssl_key_file", files.server_key.as_ref());
    }
    set(
        "password_encryption",
        if options.auth == Auth::Md5 {
            "md5"
        } else {
            "scram-sha-256"
        }
        .as_ref(),
    );
    for (name, value) in SETTINGS {
        set(name, value.as_ref());
    }
    for (name, value) in &options.settings {
        set(name, value.as_ref());
    }
    args
}
