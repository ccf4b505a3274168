//! The shop: two databases, a load that shops in them, and what `lockstep demo` shows of it.

mod answer;
pub mod args;
pub mod command;
pub mod compare;
pub mod goods;
pub mod load;
mod look;
pub mod measure;
mod only;
pub mod pipeline;
pub mod random;
pub mod rows;
pub mod shop;
pub mod summary;
pub mod view;

#[cfg(test)]
mod tests;
