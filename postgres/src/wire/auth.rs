//! Startup and authentication (PostgreSQL documentation, §55.2.1 and §55.3).

use bytes::BytesMut;
use lockstep_core::error::{Error, ErrorKind, Result};
use postgres_protocol::authentication::{md5_hash, sasl};
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;

use super::connection::Connection;
use super::target::{ChannelBindingMode, Target};
use crate::error::{from_io, protocol};

/// Settings that fix the text form of values, whatever the database, the role or the server say. The same list is used
/// for streams, copies and plain SQL, so that the same value has the same text everywhere.
pub const PINNED: &[(&str, &str)] = &[
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO, MDY"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    // Rows that policies hide are in the log all the same: a copy or a comparison without them would be wrong. The server
    // refuses to read the table then, instead of leaving them out.
    ("row_security", "off"),
    // A copy may take as long as it takes, and a stream idles.
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
];

/// Sends the startup message and answers until the server is ready.
pub(super) async fn startup(
    connection: &mut Connection,
    target: &Target,
    replication: bool,
) -> Result<()> {
    let mut parameters = vec![
        ("user", target.user.as_str()),
        ("database", &target.database),
        ("application_name", &target.application_name),
    ];
    if replication {
        parameters.push(("replication", "database"));
    }
    parameters.extend(PINNED);
    let mut out = BytesMut::new();
    frontend::startup_message(parameters, &mut out)
        .map_err(|error| from_io("write the startup message", error))?;
    connection.send(&out).await?;
    loop {
        match connection.receive().await? {
            Message::AuthenticationOk => {
                require_bound(connection, target, "the server lets us in without it")?;
            }
            Message::AuthenticationCleartextPassword => {
                require_bound(connection, target, "the server asks for a bare password")?;
                let password = password(target)?;
                send_password(connection, password.as_bytes()).await?;
            }
            Message::AuthenticationMd5Password(body) => {
                require_bound(connection, target, "the server asks for an MD5 password")?;
                let hash = md5_hash(
                    target.user.as_bytes(),
                    password(target)?.as_bytes(),
                    body.salt(),
                );
                send_password(connection, hash.as_bytes()).await?;
            }
            Message::AuthenticationSasl(body) => {
                let mut list = body.mechanisms();
                let mut offered = Vec::new();
                while let Some(name) = next_mechanism(&mut list)? {
                    offered.push(name);
                }
                scram(connection, target, &offered).await?;
            }
            Message::ParameterStatus(body) => {
                let (name, value) = (body.name(), body.value());
                if let (Ok(name), Ok(value)) = (name, value) {
                    connection.parameter(name, value);
                }
            }
            Message::BackendKeyData(_) | Message::NoticeResponse(_) => {}
            Message::ReadyForQuery(_) => return Ok(()),
            Message::ErrorResponse(body) => {
                return Err(
                    connection.server_error(&format!("log in at {}", target.label()), &body)
                );
            }
            _ => {
                return Err(Error::new(
                    ErrorKind::Authentication,
                    "the server asks for a login method we do not have",
                )
                .remedy("use scram-sha-256, md5, password, cert or trust in pg_hba.conf"));
            }
        }
    }
}

fn next_mechanism(
    list: &mut postgres_protocol::message::backend::SaslMechanisms<'_>,
) -> Result<Option<String>> {
    use fallible_iterator::FallibleIterator;
    list.next()
        .map(|name| name.map(str::to_owned))
        .map_err(|error| protocol("the list of login mechanisms cannot be read").source(error))
}

fn password(target: &Target) -> Result<&str> {
    target
        .password
        .as_ref()
        .map(lockstep_core::config::Secret::reveal)
        .ok_or_else(|| password_wanted(target))
}

/// The server asks for a password and the pipeline file has none.
pub(crate) fn password_wanted(target: &Target) -> Error {
    Error::new(
        ErrorKind::Authentication,
        format!("the server asks for a password for user {}", target.user),
    )
    .remedy("give it as `password = \"${NAME}\"` or in the URL")
}

async fn send_password(connection: &mut Connection, password: &[u8]) -> Result<()> {
    let mut out = BytesMut::new();
    frontend::password_message(password, &mut out)
        .map_err(|error| from_io("write the password message", error))?;
    connection.send(&out).await
}

/// Under `channel_binding=require` nothing that helps to log in elsewhere is sent before the login is bound to this
/// very TLS connection: whoever stands in between could pass it on.
fn require_bound(connection: &Connection, target: &Target, instead: &str) -> Result<()> {
    if target.channel_binding == ChannelBindingMode::Require && !connection.channel_bound {
        return Err(binding_required(target, instead));
    }
    Ok(())
}

/// Channel binding is required and the server does something else.
pub(crate) fn binding_required(target: &Target, instead: &str) -> Error {
    Error::new(
        ErrorKind::Authentication,
        format!(
            "{} must be logged in to with channel binding, and {instead}",
            target.label()
        ),
    )
    .remedy("use TLS and scram-sha-256, or channel_binding=prefer")
}

async fn scram(connection: &mut Connection, target: &Target, offered: &[String]) -> Result<()> {
    let plus = offered.iter().any(|name| name == sasl::SCRAM_SHA_256_PLUS);
    if !plus && !offered.iter().any(|name| name == sasl::SCRAM_SHA_256) {
        return Err(Error::new(
            ErrorKind::Authentication,
            format!("the server offers only {}", offered.join(", ")),
        )
        .remedy("use scram-sha-256 in pg_hba.conf"));
    }
    let end_point = match target.channel_binding {
        ChannelBindingMode::Disable => None,
        ChannelBindingMode::Prefer | ChannelBindingMode::Require => connection.end_point.clone(),
    };
    let (mechanism, binding) = match end_point {
        Some(hash) if plus => (
            sasl::SCRAM_SHA_256_PLUS,
            sasl::ChannelBinding::tls_server_end_point(hash),
        ),
        // We could bind and the server does not offer to: say so, which unmasks a stripped offer.
        Some(_) => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unrequested()),
        None => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unsupported()),
    };
    let bound = mechanism == sasl::SCRAM_SHA_256_PLUS;
    if target.channel_binding == ChannelBindingMode::Require && !bound {
        let instead = if connection.end_point.is_none() {
            "the connection has no TLS, or a certificate that nothing can be bound to"
        } else {
            "the server does not offer it"
        };
        return Err(binding_required(target, instead));
    }
    let wrong = |error: std::io::Error| {
        Error::new(ErrorKind::Authentication, "the SCRAM exchange failed")
            .source(error)
            .remedy("check the user and the password in the URL")
    };
    let mut exchange = sasl::ScramSha256::new(password(target)?.as_bytes(), binding);
    let mut out = BytesMut::new();
    frontend::sasl_initial_response(mechanism, exchange.message(), &mut out).map_err(wrong)?;
    connection.send(&out).await?;
    match connection.receive().await? {
        Message::AuthenticationSaslContinue(body) => exchange.update(body.data()).map_err(wrong)?,
        Message::ErrorResponse(body) => return Err(connection.server_error("log in", &body)),
        _ => return Err(protocol("the server broke off the SCRAM exchange")),
    }
    out.clear();
    frontend::sasl_response(exchange.message(), &mut out).map_err(wrong)?;
    connection.send(&out).await?;
    match connection.receive().await? {
        Message::AuthenticationSaslFinal(body) => exchange.finish(body.data()).map_err(wrong)?,
        Message::ErrorResponse(body) => {
            return Err(connection.server_error(&format!("log in as {}", target.user), &body));
        }
        _ => return Err(protocol("the server broke off the SCRAM exchange")),
    }
    connection.channel_bound = bound;
    Ok(())
}
