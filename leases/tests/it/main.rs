//! Leases on real servers: one suite for all providers, and what is special to each.

mod api_server;
mod child;
mod cluster;
mod ground;
#[macro_use]
mod suite;

mod kubernetes;
mod kubernetes_cluster;
mod postgres;
mod records;
mod redis;
mod zookeeper;
