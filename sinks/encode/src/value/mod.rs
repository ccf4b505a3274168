//! One column's values: how they are written, chosen once per schema version.

mod back;
mod bad;
pub(crate) mod bits;
pub(crate) mod decimal;
mod interval;
pub(crate) mod nested;
pub(crate) mod number;
mod plan;
pub(crate) mod shape;
pub(crate) mod temporal;
pub(crate) mod text;
pub(crate) mod toast;
pub(crate) mod types;

pub(crate) use bad::{Bad, Done};
pub(crate) use plan::Plan;
pub(crate) use types::Mapping;

#[cfg(test)]
mod tests;
