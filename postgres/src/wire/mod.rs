//! The frontend/backend protocol, as much of it as copies and replication need (PostgreSQL documentation, chapter 55).

pub mod attended;
pub mod auth;
pub mod bound;
pub mod connection;
pub mod frame;
pub mod stream;
pub mod target;
pub mod tls;

pub use connection::{Connection, Mode};
