//! Real servers for tests.
//!
//! Every server listens on a free loopback port, keeps its data in a temporary folder, and is gone when its value is
//! dropped or when the test process ends, however it ends. `tests/kit/install` puts the programs on the machine.
//!
//! ```no_run
//! # async fn test() {
//! use lockstep_kit::{postgres::Postgres, redis::Redis};
//!
//! let orders = Postgres::shared(16).await.database("orders").await;
//! orders.execute("CREATE TABLE t (id int PRIMARY KEY)").await;
//! let cache = Redis::shared().await;
//! println!("{} -> {}", orders.url(), cache.url());
//! # }
//! ```
//!
//! - `X::shared()` is one server for the whole process, or the one that a `LOCKSTEP_TEST_…` variable names
//!   ([`component`]). Isolate by database, topic and key prefix ([`unique`]); never kill it.
//! - `X::start(…)` is the test's own server, which it may kill, stop and restart.
//! - [`require!`] begins a test that cannot run everywhere, [`require_own!`] one that starts its own server.
//!
//! Functions here panic when something fails: the message says what, why and what to do.

pub mod certificates;
pub mod chromium;
pub mod clock;
pub mod component;
pub mod connect;
pub mod containers;
pub mod disk;
mod error;
mod http;
mod https;
mod java;
pub mod kafka;
pub mod kubernetes;
pub mod managers;
pub mod opensearch;
mod port;
pub mod postgres;
mod process;
pub mod prometheus;
pub mod proxy;
pub mod rabbitmq;
pub mod random;
pub mod redis;
pub mod redis_cluster;
pub mod registry;
mod scratch;
mod wait;
pub mod zookeeper;

pub use component::{Component, dir};
pub use error::Error;
pub use random::Random;
pub use scratch::unique;
pub use wait::{Outcome, wait_for};
