//! Plain SQL through `tokio-postgres`, over our own TLS.

use lockstep_core::error::{Error, ErrorKind, Result};
use tokio_postgres::{Client, NoTls};

use crate::error::from_sql;
use crate::wire::Connection;
use crate::wire::auth::PINNED;
use crate::wire::target::{SslMode, Target};

/// A client; the connection task ends with it.
pub async fn connect(target: &Target) -> Result<Client> {
    match attempt(target).await {
        // `allow` and `prefer` try the other way when pg_hba.conf refuses the first, as libpq does.
        Err(error) if error.kind() == ErrorKind::Authentication => {
            let other = match target.sslmode {
                SslMode::Allow => SslMode::Require,
                SslMode::Prefer => SslMode::Disable,
                _ => return Err(error),
            };
            let target = Target {
                sslmode: other,
                ..target.clone()
            };
            attempt(&target).await.map_err(|_| error)
        }
        other => other,
    }
}

async fn attempt(target: &Target) -> Result<Client> {
    let stream = Connection::open_raw(target).await?;
    let options: Vec<String> = PINNED
        .iter()
        .filter(|(name, _)| *name != "client_encoding")
        .map(|(name, value)| {
            format!(
                "-c {name}={}",
                value.replace('\\', "\\\\").replace(' ', "\\ ")
            )
        })
        .collect();
    let mut config = tokio_postgres::Config::new();
    config
        .user(&target.user)
        .dbname(&target.database)
        .application_name(&target.application_name)
        .options(options.join(" "))
        .ssl_mode(tokio_postgres::config::SslMode::Disable);
    if let Some(password) = &target.password {
        config.password(password.reveal());
    }
    let doing = format!("log in at {}", target.label());
    let connecting = config.connect_raw(stream, NoTls);
    let (client, connection) = tokio::time::timeout(target.connect_timeout, connecting)
        .await
        .map_err(|_| {
            Error::new(
                ErrorKind::Unavailable,
                format!("{} did not answer in time", target.label()),
            )
        })?
        .map_err(|error| match (&target.password, error.as_db_error()) {
            // The client's own complaint has no SQLSTATE.
            (None, None)
                if std::error::Error::source(&error)
                    .is_some_and(|s| s.to_string().contains("password")) =>
            {
                crate::wire::auth::password_wanted(target)
            }
            _ => from_sql(&doing, error),
        })?;
    // Ends when the client is dropped; an error shows up in the client's next call.
    tokio::spawn(connection);
    Ok(client)
}

/// `"a""b"`.
#[must_use]
pub fn quote_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `'it''s'`, with standard_conforming_strings on.
#[must_use]
pub fn quote_literal(text: &str) -> String {
    if text.contains('\\') {
        format!(" E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
    } else {
        format!("'{}'", text.replace('\'', "''"))
    }
}
