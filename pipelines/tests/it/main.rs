//! The runtime and the pipeline file, tried with ends that live in memory.

#![allow(
    clippy::unwrap_used,
    reason = "tests, helpers included, fail by panicking"
)]

mod config;
mod conformance;
mod dead_letters;
mod ends;
mod examples;
mod faults;
mod lifecycle;
mod overhead;
mod paths;
mod schema;
