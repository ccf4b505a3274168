//! A connection to a Redis server or cluster, for everything in lockstep that keeps something there.
//!
//! - [`Server`] is where it is and how to get in: URL, TLS, cluster, patience. It never prints a secret.
//! - [`Link`] sends many commands at once and returns a reply for each; nothing counts as done without its reply.
//! - [`Script`] is a server-side script, sent by name, and by its text to a server that has lost it.
//! - [`preflight`] is what `lockstep check` finds out about any Redis.
//!
//! Errors are the house's: their kind decides whether to wait or to stop ([`errors`]).

pub mod errors;
mod link;
pub mod preflight;
mod script;
mod server;

pub use link::{Command, Link, Node};
pub use script::{How, Script, load, replies, run, run_on_key};
pub use server::{
    DEFAULT_CONNECT_TIMEOUT, DEFAULT_RESPONSE_TIMEOUT, Server, TlsConfig, default_connect_timeout,
    default_response_timeout,
};
