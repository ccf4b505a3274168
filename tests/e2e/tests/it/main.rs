//! The `lockstep` command as a child process, against real servers.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "tests tell what they measured"
)]

mod admin;
mod check;
mod config;
mod dead_letters;
mod dedupe;
mod demo;
mod drain;
mod examples;
mod invariants;
mod kills;
mod lost;
mod managers;
mod memory;
mod reconcile;
mod reconcile_faults;
mod reconcile_kafka;
mod reconcile_stale;
mod reload;
mod resolve;
mod resume;
mod schema;
mod sink_faults;
mod source_faults;
mod stalls;
mod stitch;
mod support;
mod two_phase;
