//! The `lockstep` command as a child process, against real servers.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "tests tell what they measured"
)]

mod admin;
#[path = "../../../../leases/tests/it/api_server.rs"]
#[allow(dead_code, reason = "the tests of the leases use the rest")]
mod api_server;
mod avro;
mod check;
#[path = "../../../../leases/tests/it/cluster.rs"]
#[allow(dead_code, reason = "the tests of the leases use the rest")]
mod cluster;
mod config;
mod dead_letters;
mod decision;
mod dedupe;
mod demo;
mod drain;
mod evidence;
mod examples;
mod failover;
mod init;
mod invariants;
mod kills;
mod lag;
mod lost;
mod managers;
mod matrix;
mod memory;
mod outbox;
mod rabbitmq;
mod reconcile;
mod reconcile_faults;
mod reconcile_kafka;
mod reconcile_stale;
mod reload;
mod resolve;
mod resolver;
mod resume;
mod role;
mod schema;
mod secrets;
mod sink_faults;
mod source_faults;
mod stalls;
mod stitch;
mod support;
mod terminal;
mod tested;
mod two_phase;
mod two_phase_measures;
mod web;
mod webhook;
