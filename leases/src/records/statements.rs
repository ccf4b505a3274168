//! The statements.

/// One row for each document, and one without a place for the greatest token.
pub(super) const CREATE: &str = "CREATE SCHEMA IF NOT EXISTS lockstep; \
     CREATE TABLE IF NOT EXISTS lockstep.record (\
     pipeline text, place text, name text, token bigint NOT NULL, content bytea NOT NULL, PRIMARY KEY (pipeline, place, name));";

/// What holds for one statement: it is on disk before it counts.
macro_rules! durable {
    () => {
        "WITH durable AS MATERIALIZED (SELECT \
         pg_catalog.set_config('synchronous_commit', CASE pg_catalog.current_setting('synchronous_commit') \
           WHEN 'off' THEN 'on' ELSE pg_catalog.current_setting('synchronous_commit') END, true)) "
    };
}

/// As `durable`, and the right of the token $2 of the pipeline $1, held until the statement has ended.
macro_rules! permitted {
    () => {
        concat!(
            durable!(),
            ", permitted AS MATERIALIZED (SELECT 1 AS one FROM lockstep.record, durable \
             WHERE pipeline = $1 AND place = '' AND name = '' AND token <= $2 FOR SHARE OF record) "
        )
    };
}

/// Takes the documents of the pipeline $1 over with the token $2. No row: somebody has a greater one.
pub(super) const ADOPT: &str = concat!(
    durable!(),
    "INSERT INTO lockstep.record AS held (pipeline, place, name, token, content) SELECT $1, '', '', $2, '' FROM durable \
     ON CONFLICT (pipeline, place, name) DO UPDATE SET token = excluded.token WHERE held.token <= excluded.token \
     RETURNING 1"
);

/// The documents of the pipeline $1.
pub(super) const READ: &str =
    "SELECT place, name, content FROM lockstep.record WHERE pipeline = $1 AND place <> ''";

/// Keeps $5 as the document $4 of the place $3. No row: somebody has a greater token.
pub(super) const PUT: &str = concat!(
    permitted!(),
    "INSERT INTO lockstep.record AS held (pipeline, place, name, token, content) SELECT $1, $3, $4, $2, $5 FROM permitted \
     ON CONFLICT (pipeline, place, name) DO UPDATE SET token = excluded.token, content = excluded.content RETURNING 1"
);

/// Removes the document $4 of the place $3. No row: somebody has a greater token.
pub(super) const REMOVE: &str = concat!(
    permitted!(),
    ", removed AS (DELETE FROM lockstep.record USING permitted \
     WHERE pipeline = $1 AND place = $3 AND name = $4) SELECT one FROM permitted"
);
