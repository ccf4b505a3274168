//! Leases on real servers: one suite for all providers, and what is special to each.

mod child;
mod ground;
#[macro_use]
mod suite;

mod postgres;
mod redis;
mod zookeeper;
