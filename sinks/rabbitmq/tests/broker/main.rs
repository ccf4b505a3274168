//! Against a real RabbitMQ.

mod conformance;
mod delivery;
mod faults;
mod holder;
mod preflight;
mod secured;
mod support;
