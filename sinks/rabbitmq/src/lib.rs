//! The RabbitMQ sink: change events as AMQP messages, at least once, each repeat with the same `message_id`.
//!
//! A task per sink publishes on one channel, in order, and reads every confirm and every message that comes back. A batch is
//! durable once its messages, and all before them, are confirmed. The position is one message in a durable queue of length one,
//! written after the confirms of what it covers; so it may lag behind the messages, and what lies between comes again.
//!
//! An exclusive queue makes one process at a time the holder: the broker gives it up with the connection, and who has lost its
//! connection can publish nothing.

mod config;
mod error;
mod flight;
mod holder;
mod link;
mod message;
mod open;
mod preflight;
mod progress;
mod routes;
mod sink;
mod tls;
mod topology;
mod worker;

pub use config::{
    Argument, DEFAULT_CONNECT_TIMEOUT, DEFAULT_EXCHANGE, DEFAULT_HEARTBEAT,
    DEFAULT_IN_FLIGHT_BYTES, DEFAULT_IN_FLIGHT_MESSAGES, DEFAULT_MESSAGE_ROUTING_KEY,
    DEFAULT_ROUTING_KEY, Declare, ExchangeKind, ProgressQueue, Queue, QueueKind, RabbitmqConfig,
    TlsConfig,
};
pub use sink::RabbitmqSinkFactory;
