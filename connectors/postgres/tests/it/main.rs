//! The connector against real servers.

mod conformance;
mod copy;
mod decode;
mod errors;
mod failover;
mod harness;
mod horizons;
mod login;
mod lost;
mod preflight;
mod reload;
mod resume;
mod shutdown;
mod silence;
mod stream;
mod streamed;
mod tables;
mod two_phase;
