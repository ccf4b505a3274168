//! From SQLSTATE and I/O to the house error.

use lockstep_core::error::{Error, ErrorKind};

/// The fields of an ErrorResponse that matter here.
#[derive(Clone, Debug, Default)]
pub struct ServerError {
    /// SQLSTATE.
    pub code: String,
    /// Primary message.
    pub message: String,
    /// Detail line.
    pub detail: Option<String>,
    /// Hint line.
    pub hint: Option<String>,
}

impl std::fmt::Display for ServerError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (SQLSTATE {})", self.message, self.code)?;
        if let Some(detail) = &self.detail {
            write!(f, "; {detail}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "; {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ServerError {}

/// The kind for a SQLSTATE (PostgreSQL documentation, appendix A): single codes first, then their classes.
///
/// What may pass by itself is tried again; what only a person can mend stops the pipeline; what our own statements
/// could never cause is a violation of the protocol.
#[must_use]
pub fn kind_of(sqlstate: &str) -> ErrorKind {
    match sqlstate {
        // insufficient_privilege
        "42501" => ErrorKind::Permission,
        // object_in_use: the slot is active for another process.
        "55006" => ErrorKind::Busy,
        // duplicate_object, and unique_violation in a catalog: somebody else created the slot or the publication at the
        // same moment, or a temporary slot of a connection that just ended is not gone yet. Another look tells.
        "42710" | "23505" => ErrorKind::Busy,
        // lock_not_available, query_canceled by a timeout.
        "55P03" | "57014" => ErrorKind::Overloaded,
        // idle_in_transaction_session_timeout, transaction_timeout: the server ended the session.
        "25P03" | "25P04" => ErrorKind::Unavailable,
        // read_only_sql_transaction: a standby.
        "25006" => ErrorKind::Setup,
        // configuration_limit_exceeded: all slots are in use, and stay so.
        "53400" => ErrorKind::Setup,
        // database_dropped
        "57P04" => ErrorKind::Setup,
        // undefined_file: a WAL segment that was removed.
        "58P01" => ErrorKind::Lost,
        // syntax_error: our statements have none.
        "42601" => ErrorKind::Protocol,
        // data_corrupted, index_corrupted: reading it again does not mend it.
        "XX001" | "XX002" => ErrorKind::Protocol,
        code => kind_of_class(code.get(..2).unwrap_or_default()),
    }
}

fn kind_of_class(class: &str) -> ErrorKind {
    match class {
        // Connection exceptions; poolers use them for being full, too.
        "08" => ErrorKind::Unavailable,
        // Invalid authorization.
        "28" => ErrorKind::Authentication,
        // Transaction rollback: a deadlock, a conflict with recovery on a standby.
        "40" => ErrorKind::Busy,
        // Insufficient resources: connections, memory, disk.
        "53" => ErrorKind::Overloaded,
        // Operator intervention: shutdown, crash of another process, start-up.
        "57" => ErrorKind::Unavailable,
        // System error: I/O on the server's side.
        "58" => ErrorKind::Unavailable,
        // Snapshot too old: the copy is made under another one.
        "72" => ErrorKind::Overloaded,
        // Internal error: mostly a race inside the server, seldom a bug that stays. Nothing is acknowledged meanwhile.
        "XX" => ErrorKind::Unavailable,
        // The server lacks a feature, role, database, schema, table, column or function; an object is in the wrong
        // state (wal_level, a lost slot) or too large; its configuration is wrong.
        "0A" | "0L" | "0P" | "3D" | "3F" | "42" | "54" | "55" | "F0" => ErrorKind::Setup,
        // Code of the database's owner says no: a row filter divides by zero, an event trigger refuses the publication.
        "22" | "38" | "39" | "HV" | "P0" => ErrorKind::Setup,
        // No data, cursors, constraints, transaction states, …: our statements do nothing of the kind.
        _ => ErrorKind::Protocol,
    }
}

/// What to do about a SQLSTATE, where there is something to say in general.
fn remedy_of(error: &ServerError) -> Option<&'static str> {
    match error.code.as_str() {
        "28P01" => Some("check the user and the password in the URL"),
        "28000" => Some(
            "check pg_hba.conf: the user needs a `host` line for this database, and for `replication`",
        ),
        "42501" if error.message.contains("row-level security") => Some(
            "ALTER ROLE the_user BYPASSRLS: all rows of the table are in the log, whatever its policies hide",
        ),
        "42501" if error.message.contains("replication") => Some("ALTER ROLE the_user REPLICATION"),
        "42501" => Some("GRANT the missing right to the user"),
        "25006" => Some("name the primary in the URL: a standby takes no changes"),
        "53100" => Some("free disk space on the server"),
        "53300" => Some("raise max_connections, or max_wal_senders for replication connections"),
        "53400" => Some("raise max_replication_slots or drop a slot that nobody reads"),
        "55000" if error.message.contains("wal_level") => {
            Some("ALTER SYSTEM SET wal_level = 'logical', then restart the server")
        }
        "55P03" => Some("see pg_locks for who holds it; it is tried again"),
        "55006" => Some("stop the other process that reads the slot, or wait until it ends"),
        "3D000" => Some("check the database name in the URL"),
        _ => None,
    }
}

/// The house error for an ErrorResponse; `doing` completes "cannot …".
pub fn from_server(doing: &str, error: ServerError) -> Error {
    let remedy = remedy_of(&error);
    let kind = kind_of(&error.code);
    let house = Error::new(kind, format!("cannot {doing}")).source(error);
    match remedy {
        Some(remedy) => house.remedy(remedy),
        None => house,
    }
}

/// The SQLSTATE of what the server said, when an error comes from that.
#[must_use]
pub fn sqlstate(error: &Error) -> Option<&str> {
    let said = error.cause()?.downcast_ref::<ServerError>()?;
    Some(&said.code)
}

/// The house error for an I/O failure of a connection.
pub fn from_io(doing: &str, error: std::io::Error) -> Error {
    Error::new(ErrorKind::Unavailable, format!("cannot {doing}")).source(error)
}

/// The house error for a failure of `tokio-postgres`.
pub fn from_sql(doing: &str, error: tokio_postgres::Error) -> Error {
    match error.as_db_error() {
        Some(db) => from_server(
            doing,
            ServerError {
                code: db.code().code().to_owned(),
                message: db.message().to_owned(),
                detail: db.detail().map(str::to_owned),
                hint: db.hint().map(str::to_owned),
            },
        ),
        None => Error::new(ErrorKind::Unavailable, format!("cannot {doing}")).source(error),
    }
}

/// A violation of the protocol by the server, or by our reading of it.
pub fn protocol(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Protocol, message)
        .remedy("report this with the server's version; nothing was acknowledged")
}

#[cfg(test)]
mod tests {
    use lockstep_core::error::Policy;

    use super::*;

    #[test]
    fn what_may_pass_is_tried_again_and_what_may_not_stops() {
        let again = [
            "08006", "08P01", "23505", "25P03", "25P04", "40001", "40P01", "42710", "53000",
            "53100", "53200", "53300", "55006", "55P03", "57000", "57014", "57P01", "57P02",
            "57P03", "57P05", "58000", "58030", "72000", "XX000",
        ];
        for code in again {
            assert_eq!(kind_of(code).policy(), Policy::Retry, "{code}");
        }
        let stop = [
            ("0A000", ErrorKind::Setup),
            ("22012", ErrorKind::Setup),
            ("23503", ErrorKind::Protocol),
            ("25006", ErrorKind::Setup),
            ("25P02", ErrorKind::Protocol),
            ("28000", ErrorKind::Authentication),
            ("28P01", ErrorKind::Authentication),
            ("3D000", ErrorKind::Setup),
            ("42501", ErrorKind::Permission),
            ("42601", ErrorKind::Protocol),
            ("42703", ErrorKind::Setup),
            ("42P01", ErrorKind::Setup),
            ("42P10", ErrorKind::Setup),
            ("53400", ErrorKind::Setup),
            ("54000", ErrorKind::Setup),
            ("55000", ErrorKind::Setup),
            ("57P04", ErrorKind::Setup),
            ("58P01", ErrorKind::Lost),
            ("P0001", ErrorKind::Setup),
            ("XX001", ErrorKind::Protocol),
            ("XX002", ErrorKind::Protocol),
            ("", ErrorKind::Protocol),
            ("é", ErrorKind::Protocol),
            ("99999", ErrorKind::Protocol),
        ];
        for (code, kind) in stop {
            assert_eq!(kind_of(code), kind, "{code}");
            assert_eq!(kind.policy(), Policy::Stop, "{code}");
        }
    }
}
