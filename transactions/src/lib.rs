//! Transactions that commit in several databases at once.
//!
//! - [`gid`]: which branches belong together, from what their coordinators call them.
//! - [`marker`]: the same, from a word inside the transaction.
//! - `coordinator`, behind the feature of its name: commits them, for programs that have nobody else to do it.
//! - [`resolve`]: what is to become of branches that a coordinator has left behind.
//! - [`order`]: in which order transactions go on, so that every prefix holds all branches of each, or none.

#[cfg(feature = "coordinator")]
pub mod coordinator;
pub mod gid;
pub mod marker;
pub mod order;
pub mod resolve;
