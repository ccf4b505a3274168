//! What the end-to-end tests share: the `lockstep` command as a child process, a workload whose outcome is known, and
//! readers for what arrived.
//!
//! Everything here panics when it fails, with the cause and the end of the child's log: it is for tests alone.

pub mod child;
pub mod copies;
pub mod http;
pub mod topics;
pub mod work;

pub use child::{Ended, Pipeline, Setup};
pub use lockstep_kit::Random;
