//! What the broker's and the client's errors mean for the pipeline.

use std::fmt::Display;

use lapin::ErrorKind as Client;
use lapin::protocol::AMQPError;
use lockstep_core::refusal::reason;
use lockstep_core::token::Token;
use lockstep_core::{Error, ErrorKind};

const ACCESS_REFUSED: u16 = 403;
const NOT_FOUND: u16 = 404;
const RESOURCE_LOCKED: u16 = 405;
const PRECONDITION_FAILED: u16 = 406;

/// Codes by which the broker closes a channel or a connection. One that is not listed is of a newer broker: it may pass.
const CODES: [(u16, ErrorKind); 14] = [
    (311, ErrorKind::Refused),
    // A node that is shut down, or an operator who closes the connection.
    (320, ErrorKind::Unavailable),
    (402, ErrorKind::Setup),
    (ACCESS_REFUSED, ErrorKind::Permission),
    (NOT_FOUND, ErrorKind::Setup),
    (RESOURCE_LOCKED, ErrorKind::Busy),
    (PRECONDITION_FAILED, ErrorKind::Setup),
    (501, ErrorKind::Protocol),
    (502, ErrorKind::Protocol),
    (503, ErrorKind::Protocol),
    (505, ErrorKind::Protocol),
    (506, ErrorKind::Overloaded),
    (530, ErrorKind::Setup),
    (540, ErrorKind::Setup),
];

/// Texts that say more than the code.
const TEXTS: [(&str, ErrorKind); 8] = [
    ("Login was refused", ErrorKind::Authentication),
    ("refused for user", ErrorKind::Permission),
    ("is down or inaccessible", ErrorKind::Unavailable),
    ("vhost is down", ErrorKind::Unavailable),
    ("is down", ErrorKind::Unavailable),
    ("connection limit", ErrorKind::Overloaded),
    ("queue limit", ErrorKind::Overloaded),
    ("timed out", ErrorKind::Unavailable),
];

/// `what` failed with `cause`.
pub(crate) fn of(what: impl Display, cause: &lapin::Error) -> Error {
    if let Client::ProtocolError(said) = cause.kind() {
        return of_broker(what, said);
    }
    let kind = match cause.kind() {
        Client::InvalidProtocolVersion(_)
        | Client::ParsingError(_)
        | Client::SerialisationError(_) => ErrorKind::Protocol,
        Client::AuthProviderError(_) => ErrorKind::Config,
        // What is asked of a connection that has just failed is answered so.
        _ => ErrorKind::Unavailable,
    };
    let error = Error::new(kind, what.to_string()).source(cause.clone());
    match kind {
        ErrorKind::Unavailable => error.remedy(UNREACHABLE),
        _ => error,
    }
}

/// What helps when nobody answers.
pub(crate) const UNREACHABLE: &str =
    "check that the broker runs, and that the URL names an address and a port reachable from here";

/// `what` failed, and the broker has said why.
fn of_broker(what: impl Display, said: &AMQPError) -> Error {
    let (code, text) = (said.get_id(), said.get_message().as_str());
    let kind = kind_of(code, text);
    let error = Error::new(kind, format!("{what}: {text}"));
    match remedy_of(code, text, kind) {
        Some(remedy) => error.remedy(remedy),
        None => error,
    }
}

fn kind_of(code: u16, text: &str) -> ErrorKind {
    let by_text = TEXTS.iter().find(|(known, _)| text.contains(known));
    let by_code = || CODES.iter().find(|(known, _)| *known == code);
    match by_text {
        Some((_, kind)) => *kind,
        None => by_code().map_or(ErrorKind::Unavailable, |(_, kind)| *kind),
    }
}

fn remedy_of(code: u16, text: &str, kind: ErrorKind) -> Option<&'static str> {
    Some(match (code, kind) {
        (_, ErrorKind::Authentication) => "correct user and password in the URL",
        (530, ErrorKind::Setup) if text.contains("vhost") => {
            "correct the vhost in the URL: the part behind the host's `/`, and `%2F`, or no `/` at all, for the one that is named `/`; or create it (rabbitmqctl add_vhost …)"
        }
        (530, ErrorKind::Permission) => {
            "give the user rights on the vhost: rabbitmqctl set_permissions -p VHOST USER CONFIGURE WRITE READ"
        }
        (_, ErrorKind::Permission) => {
            "give the user rights: rabbitmqctl set_permissions -p VHOST USER '^lockstep[.]' '.*' '^lockstep[.]'; with `declare`, CONFIGURE on the exchanges and queues as well"
        }
        (NOT_FOUND, ErrorKind::Setup) if text.contains("exchange") => {
            "create the exchange, or let lockstep create it: declare = { exchange = \"topic\" }"
        }
        (PRECONDITION_FAILED, ErrorKind::Setup) => {
            "what is there is of another kind or has other arguments: write these in `declare`, or delete it"
        }
        (_, ErrorKind::Overloaded) => "raise the limit, or close what is not needed",
        (_, ErrorKind::Unavailable) => "see the broker's log",
        _ => return None,
    })
}

/// Whether the broker has closed the channel because there is no such thing.
pub(crate) fn is_not_found(error: &lapin::Error) -> bool {
    code(error) == Some(NOT_FOUND)
}

/// Whether another connection has the queue.
pub(crate) fn is_locked(error: &lapin::Error) -> bool {
    code(error) == Some(RESOURCE_LOCKED)
}

/// The bytes that a message may have, where one was refused because it has more.
pub(crate) fn size_limit(error: &lapin::Error) -> Option<usize> {
    let Client::ProtocolError(said) = error.kind() else {
        return None;
    };
    size_limit_in(said.get_message().as_str())
}

/// `message size 200 is larger than configured max size 100`, `… larger than max size 100`.
fn size_limit_in(text: &str) -> Option<usize> {
    let (_, behind) = text.split_once("larger than")?;
    let (_, number) = behind.split_once("max size ")?;
    let end = number.find(|char: char| !char.is_ascii_digit());
    number[..end.unwrap_or(number.len())].parse().ok()
}

fn code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        Client::ProtocolError(said) => Some(said.get_id()),
        _ => None,
    }
}

/// Somebody with a newer token writes.
pub(crate) fn superseded(token: Token) -> Error {
    Error::new(
        ErrorKind::Busy,
        format!("a newer lease, of number {token}, has taken the sink over"),
    )
    .because(reason::FENCED)
    .remedy("another process runs the pipeline: this one starts anew when it is its turn")
}

/// The sink has gone.
pub(crate) fn dropped() -> Error {
    Error::new(ErrorKind::Stopping, "the sink was dropped")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_texts_decide() {
        for (code, text, kind) in [
            (
                403,
                "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN. For details see the broker logfile.",
                ErrorKind::Authentication,
            ),
            (
                403,
                "ACCESS_REFUSED - access to exchange 'x' in vhost '/' refused for user 'u'",
                ErrorKind::Permission,
            ),
            (530, "NOT_ALLOWED - vhost x not found", ErrorKind::Setup),
            (
                530,
                "NOT_ALLOWED - access to vhost 'x' refused for user 'u'",
                ErrorKind::Permission,
            ),
            (
                530,
                "NOT_ALLOWED - access to vhost 'x' refused for user 'u': connection limit (1) is reached",
                ErrorKind::Permission,
            ),
            (
                404,
                "NOT_FOUND - no exchange 'x' in vhost '/'",
                ErrorKind::Setup,
            ),
            (
                404,
                "NOT_FOUND - home node 'a@b' of durable queue 'q' in vhost '/' is down or inaccessible",
                ErrorKind::Unavailable,
            ),
            (
                406,
                "PRECONDITION_FAILED - inequivalent arg 'type'",
                ErrorKind::Setup,
            ),
            (
                320,
                "CONNECTION_FORCED - broker forced connection closure",
                ErrorKind::Unavailable,
            ),
            (541, "INTERNAL_ERROR", ErrorKind::Unavailable),
        ] {
            assert_eq!(kind_of(code, text), kind, "{text}");
        }
    }

    #[test]
    fn the_limit_of_a_message_is_read() {
        for (text, limit) in [
            (
                "PRECONDITION_FAILED - message size 200 is larger than configured max size 100",
                Some(100),
            ),
            (
                "PRECONDITION_FAILED - message size 536870913 larger than max size 536870912",
                Some(536_870_912),
            ),
            ("PRECONDITION_FAILED - inequivalent arg 'type'", None),
        ] {
            assert_eq!(size_limit_in(text), limit, "{text}");
        }
    }
}
