//! What the suite runs on.

use std::time::Duration;

use lockstep_kit::proxy::Proxy;
use lockstep_leases::{LeaseConfig, Leases};
use serde_json::Value;

/// A provider on a server.
pub trait Ground: Send + Sync + Sized + 'static {
    /// On the server that all tests share.
    fn shared() -> impl Future<Output = Self> + Send;

    /// On a server that the test may restart.
    fn own() -> impl Future<Output = Self> + Send;

    /// Stops the server and starts it again.
    fn restart(&self) -> impl Future<Output = ()>;

    /// Where the server listens, as `127.0.0.1:5432`.
    fn address(&self) -> String;

    /// The section of a file, for the server behind this address.
    fn config(&self, address: &str, ttl: Duration) -> Value;

    /// Whether the server knows of somebody who has the lease, or stands in its queue.
    fn is_taken(&self, name: &str) -> impl Future<Output = bool> + Send;

    /// Those who give out leases of `ttl`.
    fn leases(&self, ttl: Duration) -> Leases {
        leases(self.config(&self.address(), ttl))
    }

    /// As [`Ground::leases`], through a proxy.
    fn leases_through(&self, proxy: &Proxy, ttl: Duration) -> Leases {
        leases(self.config(&proxy.address(), ttl))
    }

    fn proxy(&self) -> impl Future<Output = Proxy> + Send {
        Proxy::start(self.address())
    }
}

pub fn config(section: Value) -> LeaseConfig {
    serde_json::from_value(section).expect("a valid section")
}

fn leases(section: Value) -> Leases {
    config(section).open().expect("leases")
}

/// `2s`, as files have it.
pub fn written(ttl: Duration) -> String {
    lockstep_core::config::Duration(ttl).to_string()
}
