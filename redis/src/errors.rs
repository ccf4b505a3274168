//! What the server's and the client's errors mean for the pipeline.

use lockstep_core::refusal::reason;
use lockstep_core::{Error, ErrorKind};
use redis::{RedisError, ServerErrorKind, Value};

/// The codes that decide an error's kind. A server before 7.0 wraps an error of a command inside a script in an `ERR` of
/// its own, so codes are also looked for inside the text.
const CODES: [(&str, ErrorKind); 18] = [
    // Of our own scripts.
    ("FENCED", ErrorKind::Busy),
    ("OOM", ErrorKind::Overloaded),
    ("BUSY", ErrorKind::Overloaded),
    ("WRONGTYPE", ErrorKind::Refused),
    ("NOPERM", ErrorKind::Permission),
    ("NOAUTH", ErrorKind::Authentication),
    ("WRONGPASS", ErrorKind::Authentication),
    ("READONLY", ErrorKind::Unavailable),
    ("LOADING", ErrorKind::Unavailable),
    ("MISCONF", ErrorKind::Unavailable),
    ("NOREPLICAS", ErrorKind::Unavailable),
    ("MASTERDOWN", ErrorKind::Unavailable),
    ("CLUSTERDOWN", ErrorKind::Unavailable),
    ("TRYAGAIN", ErrorKind::Unavailable),
    ("MOVED", ErrorKind::Unavailable),
    ("ASK", ErrorKind::Unavailable),
    ("CROSSSLOT", ErrorKind::Protocol),
    ("NOSCRIPT", ErrorKind::Protocol),
];

/// Texts of plain `ERR` replies that decide the kind.
const TEXTS: [(&str, ErrorKind); 8] = [
    ("max number of clients", ErrorKind::Overloaded),
    ("invalid password", ErrorKind::Authentication),
    ("without any password configured", ErrorKind::Authentication),
    ("no password is set", ErrorKind::Authentication),
    ("ACL failure in script", ErrorKind::Permission),
    ("can't run this command", ErrorKind::Permission),
    ("DB index is out of range", ErrorKind::Config),
    ("unknown command", ErrorKind::Setup),
];

/// The house error for an error reply. A redirection that gets here means that a cluster's client has given up on
/// following it, or that the server is a cluster and the section does not say so.
#[must_use]
pub fn of_reply(code: &str, detail: &str, cluster: bool) -> Error {
    let kind = reply_kind(code, detail);
    let error = Error::new(
        kind,
        format!("the server answered {}", sentence(code, detail)),
    );
    if !cluster && matches!(code, "MOVED" | "ASK" | "CROSSSLOT") {
        return Error::new(ErrorKind::Setup, "the server is a node of a Redis Cluster")
            .remedy("write cluster = true beside its URL");
    }
    let error = match kind {
        ErrorKind::Refused => error.because(reason::WRONG_TYPE),
        ErrorKind::Busy => error.because(reason::FENCED),
        _ => error,
    };
    match remedy(code, detail, kind) {
        Some(remedy) => error.remedy(remedy),
        None => error,
    }
}

fn sentence(code: &str, detail: &str) -> String {
    match detail.trim_end() {
        "" => code.to_owned(),
        detail => format!("{code} {detail}"),
    }
}

fn reply_kind(code: &str, detail: &str) -> ErrorKind {
    let of_code = |wanted: &str| {
        CODES
            .iter()
            .find(|(code, _)| *code == wanted)
            .map(|(_, kind)| *kind)
    };
    if let Some(kind) = of_code(code) {
        return kind;
    }
    if code != "ERR" {
        // A code this client does not know, of a newer server or of a provider: it may pass.
        return ErrorKind::Unavailable;
    }
    if let Some((_, kind)) = TEXTS.iter().find(|(text, _)| detail.contains(text)) {
        return *kind;
    }
    detail
        .split(|char: char| !char.is_ascii_uppercase())
        .find_map(of_code)
        .unwrap_or(ErrorKind::Protocol)
}

fn remedy(code: &str, detail: &str, kind: ErrorKind) -> Option<&'static str> {
    Some(match kind {
        ErrorKind::Overloaded if code == "BUSY" => {
            "a script of someone else blocks the server: SCRIPT KILL ends it"
        }
        ErrorKind::Overloaded if detail.contains("clients") => "raise the server's maxclients",
        ErrorKind::Overloaded => {
            "raise the server's maxmemory, or keep less there (a sink's `ttl`, the `window` of a dedupe); writing goes on when there is room"
        }
        ErrorKind::Refused => {
            "the key holds something that lockstep did not write: delete it, or give a sink keys of its own by `key`"
        }
        ErrorKind::Permission => "see `lockstep check` for the rights that the user needs",
        ErrorKind::Authentication => "correct user and password in the URL",
        ErrorKind::Unavailable if code == "READONLY" => {
            "this is a replica: use the primary's address"
        }
        ErrorKind::Unavailable if code == "MISCONF" => {
            "the server cannot save to disk: see its log"
        }
        ErrorKind::Busy => {
            "another process runs the pipeline by a newer lease: this one starts anew when it is its turn"
        }
        ErrorKind::Config => "correct the database in the URL",
        ErrorKind::Setup => "Redis 6.2 or later with EVAL is needed",
        _ => return None,
    })
}

/// The house error for an error of the client library.
#[must_use]
pub fn of_client(cause: RedisError, cluster: bool) -> Error {
    use redis::ErrorKind as Client;
    let kind = match cause.kind() {
        Client::Server(_) | Client::Extension => {
            let code = cause.code().unwrap_or("ERR").to_owned();
            return of_reply(&code, cause.detail().unwrap_or_default(), cluster);
        }
        Client::AuthenticationFailed => return unauthenticated(cause),
        // The cluster's client wraps the failures of all nodes in one of its own, as text.
        Client::Io if cause.to_string().contains("AuthenticationFailed") => {
            return unauthenticated(cause);
        }
        Client::Io | Client::ClusterConnectionNotFound => {
            let what = if cause.is_timeout() {
                "the server did not answer in time"
            } else {
                "the connection failed"
            };
            return Error::new(ErrorKind::Unavailable, what).source(cause);
        }
        Client::InvalidClientConfig => ErrorKind::Config,
        Client::Parse | Client::UnexpectedReturnType | Client::Client => ErrorKind::Protocol,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, "the Redis client failed").source(cause)
}

fn unauthenticated(cause: RedisError) -> Error {
    Error::new(
        ErrorKind::Authentication,
        "the server refuses the credentials",
    )
    .source(cause)
    .remedy("correct user and password in the URL")
}

/// The error for a reply of another shape than the command has.
#[must_use]
pub fn unexpected(command: &str, reply: &Value) -> Error {
    let mut shown = format!("{reply:?}");
    if let Some((end, _)) = shown.char_indices().nth(200) {
        shown.truncate(end);
    }
    Error::new(
        ErrorKind::Protocol,
        format!("unexpected reply to {command}: {shown}"),
    )
    .remedy("check that the URL leads to a Redis server and not to something in between")
}

/// Whether the reply says that the server does not have the script.
#[must_use]
pub fn is_no_script(reply: &Value) -> bool {
    matches!(reply, Value::ServerError(error) if error.kind() == Some(ServerErrorKind::NoScript))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_core::error::Policy;

    #[test]
    fn codes_decide() {
        for (code, detail, kind) in [
            (
                "OOM",
                "command not allowed when used memory > 'maxmemory'.",
                ErrorKind::Overloaded,
            ),
            ("WRONGTYPE", "Operation against a key", ErrorKind::Refused),
            (
                "NOPERM",
                "this user has no permissions",
                ErrorKind::Permission,
            ),
            (
                "WRONGPASS",
                "invalid username-password pair",
                ErrorKind::Authentication,
            ),
            (
                "NOAUTH",
                "Authentication required.",
                ErrorKind::Authentication,
            ),
            (
                "READONLY",
                "You can't write against a read only replica.",
                ErrorKind::Unavailable,
            ),
            (
                "LOADING",
                "Redis is loading the dataset in memory",
                ErrorKind::Unavailable,
            ),
            (
                "CLUSTERDOWN",
                "Hash slot not served",
                ErrorKind::Unavailable,
            ),
            ("WHATEVER", "of a provider", ErrorKind::Unavailable),
            (
                "ERR",
                "max number of clients reached",
                ErrorKind::Overloaded,
            ),
            ("ERR", "wrong number of arguments", ErrorKind::Protocol),
            (
                "ERR",
                "Error running script (call to f_1): @user_script:1: @user_script: 1: -OOM command not allowed",
                ErrorKind::Overloaded,
            ),
            (
                "ERR",
                "Error running script: WRONGTYPE Operation against",
                ErrorKind::Refused,
            ),
        ] {
            assert_eq!(of_reply(code, detail, true).kind(), kind, "{code} {detail}");
        }
    }

    #[test]
    fn a_cluster_met_by_surprise_is_named() {
        let error = of_reply("MOVED", "3999 127.0.0.1:6381", false);
        assert_eq!(error.kind().policy(), Policy::Stop);
        assert!(error.to_string().contains("cluster = true"));
    }

    #[test]
    fn connection_errors_are_retried() {
        let cause = RedisError::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        assert_eq!(of_client(cause, false).kind().policy(), Policy::Retry);
    }
}
