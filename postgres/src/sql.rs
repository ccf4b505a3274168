//! Plain SQL through `tokio-postgres`, over our own TLS.

use std::future::poll_fn;
use std::time::Duration;

use lockstep_core::error::{Error, ErrorKind, Result};
use tokio_postgres::config::{ChannelBinding, SslNegotiation};
use tokio_postgres::types::ToSql;
use tokio_postgres::{AsyncMessage, Client, Notification, Row};

use crate::error::from_sql;
use crate::wire::Connection;
use crate::wire::auth::{PINNED, binding_required, password_wanted};
use crate::wire::bound::{Bound, EndPoint};
use crate::wire::stream::Stream;
use crate::wire::target::{ChannelBindingMode, SslMode, Target};

/// How long a question to the catalog may take: it reads a handful of rows, so a server that takes longer hangs, or
/// somebody keeps the catalog locked.
const ANSWER: Duration = Duration::from_secs(30);

/// How long a change may wait for a lock; shorter than [`ANSWER`], so that the server says so.
const LOCK: Duration = Duration::from_secs(20);

type Parameters<'a> = &'a [&'a (dyn ToSql + Sync)];

/// The rows of a question to the catalog; `doing` completes "cannot …".
///
/// # Errors
/// The server's, by SQLSTATE; `Unavailable` when there is no answer in time.
pub async fn query(
    client: &Client,
    doing: &str,
    sql: &str,
    parameters: Parameters<'_>,
) -> Result<Vec<Row>> {
    in_time(doing, client.query(sql, parameters)).await
}

/// As [`query`], for one row or none.
pub async fn query_opt(
    client: &Client,
    doing: &str,
    sql: &str,
    parameters: Parameters<'_>,
) -> Result<Option<Row>> {
    in_time(doing, client.query_opt(sql, parameters)).await
}

/// As [`query`], for exactly one row.
pub async fn query_one(
    client: &Client,
    doing: &str,
    sql: &str,
    parameters: Parameters<'_>,
) -> Result<Row> {
    in_time(doing, client.query_one(sql, parameters)).await
}

/// Statements that change the catalog, in a transaction of their own.
///
/// # Errors
/// As for [`query`]; `Overloaded` when somebody keeps what they need locked. The server itself gives up waiting then:
/// a session that waits does not notice that nobody is there any more, and tries would pile up.
pub async fn change(client: &Client, doing: &str, statements: &str) -> Result<()> {
    let milliseconds = LOCK.as_millis();
    let all = format!("SET LOCAL lock_timeout = {milliseconds}; {statements}");
    in_time(doing, client.batch_execute(&all)).await
}

/// As [`query`], for other work.
pub async fn in_time<T>(
    doing: &str,
    work: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T> {
    in_time_raw(doing, work)
        .await?
        .map_err(|error| from_sql(doing, error))
}

/// As [`in_time`], for one who reads the server's error: that is the inner one.
pub async fn in_time_raw<T>(
    doing: &str,
    work: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<Result<T, tokio_postgres::Error>> {
    match tokio::time::timeout(ANSWER, work).await {
        Ok(answer) => Ok(answer),
        Err(_) => Err(Error::new(
            ErrorKind::Unavailable,
            format!(
                "cannot {doing}: the server did not answer for {} s",
                ANSWER.as_secs()
            ),
        )
        .remedy("see pg_stat_activity and pg_locks for what it waits for; it is tried again")),
    }
}

/// A client; the connection task ends with it.
///
/// # Errors
/// By kind: `Unavailable` when nobody answers, `Authentication`, `Permission`, `Setup` by the server's SQLSTATE.
pub async fn connect(target: &Target) -> Result<Client> {
    let (client, connection) = log_in(target).await?;
    // Ends when the client is dropped; an error shows up in the client's next call.
    tokio::spawn(connection);
    Ok(client)
}

/// As [`connect`]; `hear` is called with what `LISTEN` brings, and is dropped when the connection has ended. It must not block.
///
/// # Errors
/// As for [`connect`].
pub async fn connect_to_listen(
    target: &Target,
    mut hear: impl FnMut(Notification) + Send + 'static,
) -> Result<Client> {
    let (client, mut connection) = log_in(target).await?;
    tokio::spawn(async move {
        while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
            if let AsyncMessage::Notification(notification) = message {
                hear(notification);
            }
        }
    });
    Ok(client)
}

type LoggedIn = (Client, tokio_postgres::Connection<Stream, Bound>);

async fn log_in(target: &Target) -> Result<LoggedIn> {
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

async fn attempt(target: &Target) -> Result<LoggedIn> {
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
    tokio::time::timeout(target.connect_timeout, connecting)
        .await
        .map_err(|_| {
            Error::new(
                ErrorKind::Unavailable,
                format!("{} did not answer in time", target.label()),
            )
        })?
        .map_err(|error| login_error(target, &doing, error))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_server_that_does_not_answer_is_unavailable() {
        let never = std::future::pending::<Result<(), tokio_postgres::Error>>();
        let error = in_time("read the catalog", never)
            .await
            .expect_err("no answer");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("read the catalog"), "{error}");
    }
}
