//! The Helm chart: what it renders, what it refuses, and what a real API server makes of it.

mod cases;
mod cluster;
mod documents;
mod files;
mod objects;
mod refused;
mod snapshots;
