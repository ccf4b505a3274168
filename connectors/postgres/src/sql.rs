//! Plain SQL through `tokio-postgres`, over our own TLS.

use lockstep_core::error::{Error, ErrorKind, Result};
use tokio_postgres::Client;
use tokio_postgres::config::{ChannelBinding, SslNegotiation};

use crate::error::from_sql;
use crate::wire::Connection;
use crate::wire::auth::{PINNED, binding_required, password_wanted};
use crate::wire::bound::EndPoint;
use crate::wire::target::{ChannelBindingMode, SslMode, Target};

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
    let (stream, end_point) = Connection::open_raw(target).await?;
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
        // Whether there is TLS is settled: nothing is left to negotiate, and `EndPoint` says what there is.
        .ssl_mode(tokio_postgres::config::SslMode::Require)
        .ssl_negotiation(SslNegotiation::Direct)
        .channel_binding(match target.channel_binding {
            ChannelBindingMode::Disable => ChannelBinding::Disable,
            ChannelBindingMode::Prefer => ChannelBinding::Prefer,
            ChannelBindingMode::Require => ChannelBinding::Require,
        });
    if let Some(password) = &target.password {
        config.password(password.reveal());
    }
    let doing = format!("log in at {}", target.label());
    let connecting = config.connect_raw(stream, EndPoint(end_point));
    let (client, connection) = tokio::time::timeout(target.connect_timeout, connecting)
        .await
        .map_err(|_| {
            Error::new(
                ErrorKind::Unavailable,
                format!("{} did not answer in time", target.label()),
            )
        })?
        .map_err(|error| login_error(target, &doing, error))?;
    // Ends when the client is dropped; an error shows up in the client's next call.
    tokio::spawn(connection);
    Ok(client)
}

/// The client's own complaints about a login have no SQLSTATE, and no kind but their text.
fn login_error(target: &Target, doing: &str, error: tokio_postgres::Error) -> Error {
    if error.as_db_error().is_some() {
        return from_sql(doing, error);
    }
    let cause = std::error::Error::source(&error)
        .map(ToString::to_string)
        .unwrap_or_default();
    if error.to_string() == "authentication error" {
        if cause.contains("channel binding") {
            return binding_required(target, "the server asks for, or offers, something else");
        }
        return Error::new(ErrorKind::Authentication, format!("cannot {doing}"))
            .source(error)
            .remedy("check the user and the password in the URL, and the method in pg_hba.conf");
    }
    if target.password.is_none() && cause.contains("password") {
        return password_wanted(target);
    }
    from_sql(doing, error)
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
