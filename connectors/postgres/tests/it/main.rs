//! The connector against real servers.

mod copy;
mod errors;
mod harness;
mod login;
mod stream;
