//! The connector against real servers.

mod copy;
mod decode;
mod errors;
mod harness;
mod login;
mod preflight;
mod stream;
mod tables;
