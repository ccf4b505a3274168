//! Where to connect: a libpq-style URL.

use std::path::PathBuf;

use lockstep_core::config::Secret;
use lockstep_core::error::{Error, ErrorKind, Result};
use percent_encoding::percent_decode_str;

/// libpq's `sslmode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SslMode {
    /// Never TLS.
    Disable,
    /// Plain first; TLS when the server refuses plain.
    Allow,
    /// TLS when the server offers it, without verification.
    Prefer,
    /// TLS or nothing; verified against `sslrootcert` when that is given.
    Require,
    /// TLS, the certificate chain is verified.
    VerifyCa,
    /// TLS, chain and host name are verified.
    VerifyFull,
}

/// A parsed URL.
#[derive(Clone, Debug)]
pub struct Target {
    /// Host name, address, or directory of a Unix socket (begins with `/`).
    pub host: String,
    /// Port.
    pub port: u16,
    /// User.
    pub user: String,
    /// Password.
    pub password: Option<Secret>,
    /// Database.
    pub database: String,
    /// TLS mode.
    pub sslmode: SslMode,
    /// CA file; `system` for the operating system's.
    pub sslrootcert: Option<PathBuf>,
    /// Client certificate file (PEM).
    pub sslcert: Option<PathBuf>,
    /// Client key file (PEM).
    pub sslkey: Option<PathBuf>,
    /// `application_name`.
    pub application_name: String,
    /// Whether channel binding must be used (`channel_binding=require`), may be (`prefer`, the default) or not.
    pub channel_binding: ChannelBindingMode,
    /// Connect timeout.
    pub connect_timeout: std::time::Duration,
}

/// libpq's `channel_binding`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelBindingMode {
    /// Not used.
    Disable,
    /// Used when TLS and the server allow it.
    Prefer,
    /// Without it there is no login.
    Require,
}

/// How long a connection attempt may take when the URL does not say.
pub const DEFAULT_CONNECT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

const ENCODE: &str =
    "write / as %2F, ? as %3F, # as %23, @ as %40 and % as %25, or give the password in `password`";

impl Target {
    /// Parses `postgres://user:password@host:port/database?key=value&…`.
    ///
    /// # Errors
    /// Of kind `Config`: what is wrong with which part. The password is not repeated.
    pub fn parse(url: &str) -> Result<Self> {
        let wrong =
            |message: String, remedy: &str| Error::new(ErrorKind::Config, message).remedy(remedy);
        let rest = url
            .strip_prefix("postgres://")
            .or_else(|| url.strip_prefix("postgresql://"))
            .ok_or_else(|| {
                wrong(
                    "the URL does not begin with postgres://".into(),
                    "write postgres://user@host:5432/database",
                )
            })?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        if database.contains('@') || (!authority.contains('@') && query.contains('@')) {
            return Err(wrong(
                "the user name or password has a character that ends it early".into(),
                ENCODE,
            ));
        }
        let (login, address) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = login
            .split_once(':')
            .map_or((login, None), |(user, pass)| (user, Some(pass)));
        if address.contains(',') {
            return Err(wrong(
                "the URL names several hosts".into(),
                "name one: replication follows one server's log; use a name that moves with the primary",
            ));
        }
        let (host, port) = match address.strip_prefix('[') {
            Some(v6) => {
                let (host, port) = v6.split_once(']').ok_or_else(|| {
                    wrong(
                        "the IPv6 address lacks its closing bracket".into(),
                        "write [::1]:5432",
                    )
                })?;
                (host, port.strip_prefix(':').unwrap_or(""))
            }
            None => address.rsplit_once(':').unwrap_or((address, "")),
        };
        let port = if port.is_empty() {
            5432
        } else {
            port.parse().map_err(|_| {
                // It may be the beginning of a password: `user:pass` without its `@host`.
                wrong(
                    "what stands behind the host's colon is not a port".into(),
                    "use a number from 1 to 65535; write user:password@ before the host",
                )
            })?
        };
        let user = decode(user);
        let user = if user.is_empty() {
            std::env::var("USER").unwrap_or_else(|_| "postgres".into())
        } else {
            user
        };
        let database = decode(database);
        let mut target = Target {
            host: if host.is_empty() {
                "localhost".into()
            } else {
                decode(host)
            },
            port,
            database: if database.is_empty() {
                user.clone()
            } else {
                database
            },
            user,
            password: password.map(|password| Secret::new(decode(password))),
            sslmode: SslMode::Prefer,
            sslrootcert: None,
            sslcert: None,
            sslkey: None,
            application_name: "lockstep".into(),
            channel_binding: ChannelBindingMode::Prefer,
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
        };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            target.set(key, decode(value))?;
        }
        Ok(target)
    }

    fn set(&mut self, key: &str, value: String) -> Result<()> {
        let choice = |there_are: &str| {
            Error::new(ErrorKind::Config, format!("{key}={value} is not known"))
                .remedy(format!("use {there_are}"))
        };
        match key {
            "sslmode" => {
                self.sslmode = match value.as_str() {
                    "disable" => SslMode::Disable,
                    "allow" => SslMode::Allow,
                    "prefer" => SslMode::Prefer,
                    "require" => SslMode::Require,
                    "verify-ca" => SslMode::VerifyCa,
                    "verify-full" => SslMode::VerifyFull,
                    _ => {
                        return Err(choice(
                            "disable, allow, prefer, require, verify-ca or verify-full",
                        ));
                    }
                }
            }
            "sslrootcert" => self.sslrootcert = Some(value.into()),
            "sslcert" => self.sslcert = Some(value.into()),
            "sslkey" => self.sslkey = Some(value.into()),
            "application_name" => self.application_name = value,
            "host" => self.host = value,
            "port" => {
                self.port = value
                    .parse()
                    .map_err(|_| choice("a number from 1 to 65535"))?
            }
            "user" => self.user = value,
            "password" => self.password = Some(Secret::new(value)),
            "dbname" => self.database = value,
            "connect_timeout" => {
                let seconds = value.parse().map_err(|_| choice("a number of seconds"))?;
                self.connect_timeout = std::time::Duration::from_secs(seconds);
            }
            "channel_binding" => {
                self.channel_binding = match value.as_str() {
                    "disable" => ChannelBindingMode::Disable,
                    "prefer" => ChannelBindingMode::Prefer,
                    "require" => ChannelBindingMode::Require,
                    _ => return Err(choice("disable, prefer or require")),
                }
            }
            _ => {
                // A part of a password with an unencoded `?` looks like a parameter, but hardly like a name.
                let is_name = key
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte == b'_');
                let key = if is_name { key } else { "***" };
                return Err(Error::new(ErrorKind::Config, format!("the URL parameter `{key}` is not known")).remedy(
                    "there are sslmode, sslrootcert, sslcert, sslkey, channel_binding, application_name, \
                     connect_timeout, host, port, user, password, dbname",
                ));
            }
        }
        Ok(())
    }

    /// `host:port/database`, for messages.
    #[must_use]
    pub fn label(&self) -> String {
        format!("{}:{}/{}", self.host, self.port, self.database)
    }
}

fn decode(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_the_parts() {
        let url = "postgres://me:p%40ss@db.example:6543/shop?sslmode=verify-full&sslrootcert=/ca.pem&connect_timeout=3";
        let target = Target::parse(url).expect("valid");
        assert_eq!((target.host.as_str(), target.port), ("db.example", 6543));
        assert_eq!(
            (target.user.as_str(), target.database.as_str()),
            ("me", "shop")
        );
        assert_eq!(target.password.expect("given").reveal(), "p@ss");
        assert_eq!(target.sslmode, SslMode::VerifyFull);
        let v6 = Target::parse("postgresql://u@[::1]/d").expect("valid");
        assert_eq!((v6.host.as_str(), v6.port), ("::1", 5432));
        let socket = Target::parse("postgres://u@/d?host=/run/pg").expect("valid");
        assert_eq!(socket.host, "/run/pg");
    }

    #[test]
    fn refuses_without_repeating_the_password() {
        for bad in [
            "mysql://u@h/d",
            "postgres://u:secret@h:port/d",
            "postgres://u:secret@h/d?sslmode=yes",
            "postgres://u:secret@h/d?frobnicate=1",
            "postgres://u:secret@a,b/d",
            "postgres://u:secret",
            "postgres://u:secret/more@h/d",
            "postgres://u:1/secret@h/d",
            "postgres://u:se?secret@h/d",
            "postgres://u:1?secret@h/d",
            "postgres://u:x@1/secret@h/d",
            "postgres://u@h/d?x/secret=1",
        ] {
            let error = Target::parse(bad).expect_err(bad).to_string();
            assert!(
                !error.contains("secret") && error.contains("Remedy"),
                "{error}"
            );
        }
    }
}
