//! Workloads × faults × sinks, and an independent look at what arrived.
//!
//! A *cell* is a workload under a fault. A *run* of it makes a database, a pipeline into every sink, writes, breaks things at
//! random moments, lets lockstep catch up, and compares.

pub mod cell;
pub mod check;
pub mod fault;
pub mod lockstep;
pub mod plan;
pub mod report;
pub mod servers;
pub mod sinks;
mod topics;
pub mod workload;
