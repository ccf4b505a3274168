//! Against a real Apache Kafka.

mod avro;
mod conformance;
mod delivery;
mod encrypted;
mod exactly_once;
mod faults;
mod inspect;
mod mock;
mod partitions;
mod preflight;
mod rate;
mod replay;
mod secured;
mod support;
mod transactions;
