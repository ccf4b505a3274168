//! Transactions that commit in several databases at once.
//!
//! - [`gid`]: which branches belong together, from what their coordinators call them.
//! - [`marker`]: the same, from a word inside the transaction.
//! - [`order`]: in which order transactions go on, so that every prefix holds all branches of each, or none.

pub mod gid;
pub mod marker;
pub mod order;
