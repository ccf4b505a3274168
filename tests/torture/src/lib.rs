//! Workloads × faults × sinks, and an independent look at what arrived.
//!
//! A *cell* is a workload under a fault. A *run* of it makes a database and lets a contestant copy it, lockstep into every
//! sink at once or Debezium into Kafka; writes, breaks things at random moments, lets it catch up, and compares.

pub mod cell;
pub mod check;
pub mod contestant;
pub mod debezium;
pub mod fault;
mod http;
pub mod lockstep;
pub mod plan;
pub mod program;
pub mod report;
pub mod servers;
pub mod sinks;
pub mod soak;
mod topics;
pub mod workload;
