//! The statements.
//!
//! All read the clock by `clock_timestamp()`, which is the moment of reading: `now()` is the beginning of the transaction, and
//! a statement may have waited for a row since.

/// Whether nothing can be written here.
pub(super) const STANDBY: &str = "SELECT pg_catalog.pg_is_in_recovery()";

/// Rows stay when leases are let go: their tokens must be remembered. There is one for each name that was ever used.
pub(super) const CREATE: &str = "CREATE SCHEMA IF NOT EXISTS lockstep; \
     CREATE TABLE IF NOT EXISTS lockstep.lease (\
     name text PRIMARY KEY, holder text, token bigint NOT NULL, expires timestamptz NOT NULL);";

/// What [`RELEASE`] says, with the name of the lease.
pub(super) const LISTEN: &str = "LISTEN lockstep_lease";

/// What holds for one statement and nobody else who gets the session from a pooler: the commit is on disk before it counts, as a
/// token that is forgotten would be given out again; and nobody waits for a locked row for longer than the answer is of use.
macro_rules! settings {
    () => {
        "WITH settings AS MATERIALIZED (SELECT \
         pg_catalog.set_config('synchronous_commit', CASE pg_catalog.current_setting('synchronous_commit') \
           WHEN 'off' THEN 'on' ELSE pg_catalog.current_setting('synchronous_commit') END, true), \
         pg_catalog.set_config('lock_timeout', $3::bigint::text, true)) "
    };
}

/// Takes a lease: $1 its name, $2 the holder, $3 its time in milliseconds. No row: somebody has it.
///
/// A holder that asks again has not got the answer to its first question. The name of a WAL file begins with the timeline, in 8
/// hexadecimal digits.
pub(super) const TAKE: &str = concat!(
    settings!(),
    "INSERT INTO lockstep.lease AS held (name, holder, token, expires) \
     SELECT $1, $2, (('x' || pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8)) \
         ::bit(32)::bigint << 32) + 1, pg_catalog.clock_timestamp() + $3 * interval '1 millisecond' FROM settings \
     ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, token = greatest(held.token + 1, excluded.token), \
         expires = pg_catalog.clock_timestamp() + $3 * interval '1 millisecond' \
     WHERE held.expires <= pg_catalog.clock_timestamp() OR held.holder = excluded.holder \
     RETURNING token"
);

/// How many milliseconds the lease $1 has left, rounded up.
pub(super) const LOOK: &str = "SELECT greatest(0, pg_catalog.ceil(1000 * extract(epoch FROM expires - pg_catalog.clock_timestamp()))) \
     ::bigint FROM lockstep.lease WHERE name = $1 AND expires > pg_catalog.clock_timestamp()";

/// Prolongs the lease $1 of the holder $2 with the token $4 by $3 milliseconds. One that has run out is not brought back: the
/// request may have been on its way for long, and nobody may be behind it any more.
pub(super) const RENEW: &str = concat!(
    settings!(),
    "UPDATE lockstep.lease SET expires = pg_catalog.clock_timestamp() + $3 * interval '1 millisecond' FROM settings \
     WHERE name = $1 AND holder = $2 AND token = $4 AND expires > pg_catalog.clock_timestamp() RETURNING token"
);

/// Lets go of the lease $1 of the holder $2 with the token $3, and tells those who wait.
pub(super) const RELEASE: &str = "WITH freed AS (UPDATE lockstep.lease SET holder = NULL, expires = '-infinity' \
     WHERE name = $1 AND holder = $2 AND token = $3 RETURNING name) \
     SELECT pg_catalog.pg_notify('lockstep_lease', name) FROM freed";
