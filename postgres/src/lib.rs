//! A connection to a PostgreSQL server, for everything in lockstep that has to do with one.
//!
//! - [`wire`] speaks the protocol itself: framing that loses nothing when a read is cancelled, TLS by libpq's rules, logins,
//!   and the raw bytes of copies and of replication, which nothing else reads fast enough.
//! - [`sql`] is everything else: plain SQL through `tokio-postgres`, over the same TLS, with the same settings, and never
//!   without a limit of time.
//! - [`wire::target::Target`] is where a server is and how to get in, by a URL as libpq's. It never prints a secret.
//!
//! Errors are the house's: the SQLSTATE decides whether to wait or to stop ([`error`]).

pub mod error;
pub mod sql;
pub mod wire;
