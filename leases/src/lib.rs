//! The right to write, for one holder at a time, and the number that proves it.
//!
//! - [`Leases`] gives them out: [`Leases::acquire`] waits until it holds the lease of a name.
//! - [`Held`] is one that is held: its [`Token`], the future that resolves when it is lost or may be, and the way to let go.
//!   [`Right`] is the part of it that writers carry about.
//! - [`Provider`] is where leases are kept. There are four, named by a [`LeaseConfig`]: PostgreSQL, Redis, ZooKeeper and
//!   Kubernetes. What each can promise, and what it cannot, stands at the top of its module.
//! - [`Measures`] counts what came of attempts.
//! - [`RecordStore`] keeps what whoever takes over has to know, and takes nothing from those with a smaller token.
//!
//! # What a lease promises
//!
//! A lease lasts for a time, its `ttl`, and is renewed three times in it. A holder takes it for lost by a clock of its own that
//! goes on while the process is frozen or the machine is suspended, counted from *before* the request that prolonged it was
//! sent: no later than the provider can give it to somebody else. So two holders are never right at the same time, unless the
//! provider forgets, or clocks run at different speeds by more than a twentieth. Where a wall clock stands is never compared with
//! where another stands.
//!
//! **A lease alone does not protect what is written.** Between looking at the clock and the arrival of the write at its goal
//! anything can happen: the process is frozen, the network holds the bytes back. What protects is the token: each acquisition
//! has a greater one than all before it, it goes along with each write, and whoever takes the write refuses tokens less than the
//! greatest seen. The lease sees to it that there is normally nobody to refuse.
//!
//! A holder that is frozen, killed or cut off is followed within twice the `ttl`.

mod config;
mod held;
mod leases;
mod measures;
mod name;
mod provider;
mod records;
mod term;

pub mod kubernetes;
pub mod postgres;
pub mod redis;
pub mod zookeeper;

pub use config::{DEFAULT_TTL, LEAST_TTL, LeaseConfig};
pub use held::{Held, Right};
pub use leases::Leases;
pub use measures::{Figures, Measures};
pub use provider::{Attempt, Candidate, Provider, Renewal, Token};
pub use records::{Documents, RecordStore, Records};
