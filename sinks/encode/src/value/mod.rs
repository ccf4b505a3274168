//! One column's values: how they are written, chosen once per schema version.

mod back;
mod bad;
mod bits;
mod decimal;
mod interval;
mod nested;
mod number;
mod plan;
mod shape;
pub(crate) mod temporal;
pub(crate) mod text;
pub(crate) mod toast;
mod types;

pub(crate) use bad::Bad;
pub(crate) use plan::Plan;
pub(crate) use types::Mapping;

#[cfg(test)]
mod tests;
