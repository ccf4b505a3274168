//! The alerts, their pages and the dashboards: as files, and on a real Prometheus that scrapes real pipelines with real faults.

#![allow(clippy::print_stdout, reason = "tests tell what they have seen")]

mod dashboards;
mod faults;
mod lab;
mod rules;
mod shop;
