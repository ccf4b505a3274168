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

/// The kind for a SQLSTATE (PostgreSQL documentation, appendix A).
#[must_use]
pub fn kind_of(sqlstate: &str) -> ErrorKind {
    match sqlstate {
        "28000" | "28P01" => ErrorKind::Authentication,
        "42501" => ErrorKind::Permission,
        // object_in_use: the slot is active for another process.
        "55006" => ErrorKind::Busy,
        // too_many_connections, lock_not_available, query_canceled by a timeout.
        "53300" | "55P03" | "57014" => ErrorKind::Overloaded,
        // admin_shutdown, crash_shutdown, cannot_connect_now, idle_session_timeout; database_dropped is not one.
        "57P01" | "57P02" | "57P03" | "57P05" => ErrorKind::Unavailable,
        // undefined_file: a WAL segment that was removed.
        "58P01" => ErrorKind::Lost,
        // configuration_limit_exceeded (all slots in use), object_not_in_prerequisite_state (wal_level, lost slot),
        // invalid_catalog_name, undefined_table, undefined_column, undefined_object, feature_not_supported.
        "53400" | "55000" | "3D000" | "42P01" | "42703" | "42704" | "0A000" => ErrorKind::Setup,
        code if code.starts_with("08") => ErrorKind::Unavailable,
        code if code.starts_with("53") => ErrorKind::Overloaded,
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
        "42501" if error.message.contains("replication") => Some("ALTER ROLE the_user REPLICATION"),
        "42501" => Some("GRANT the missing right to the user"),
        "53300" => Some("raise max_connections, or max_wal_senders for replication connections"),
        "53400" => Some("raise max_replication_slots or drop a slot that nobody reads"),
        "55000" if error.message.contains("wal_level") => {
            Some("ALTER SYSTEM SET wal_level = 'logical', then restart the server")
        }
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
