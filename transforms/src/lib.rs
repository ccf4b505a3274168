//! What happens to changes between a source and a sink: a verb per file.
//!
//! | `type` | what it does | state |
//! |---|---|---|
//! | [`dedupe`] | suppresses rows that repeat an idempotency key | a store per transform |
//! | [`filter`] | lets rows pass that satisfy a predicate | none |
//! | [`route`] | sets the schema and table that records go to | none |
//! | [`map`] | makes columns of expressions | none |
//! | [`project`] | keeps, drops and renames columns | none |
//! | [`mask`] | hashes and redacts columns | none |
//! | [`outbox`] | makes events of rows and logical messages | none |
//! | [`stitch`] | branches of a transaction of several databases go on together | what waits |
//!
//! Names are resolved once per schema version; per batch there is one call, and tables that a transform does not
//! concern cost one look-up per batch. Logical messages and events pass every transform as they are, except where a `filter`
//! leaves `message` or `event` out of its `ops`, and where an `outbox` makes events of messages.
//!
//! Expressions of `filter`, `route` and `map` are CEL.

pub mod dedupe;
mod expr;
mod failing;
pub mod filter;
mod image;
pub mod map;
pub mod mask;
pub mod outbox;
mod plans;
pub mod project;
pub mod route;
pub mod stitch;
mod tables;
mod text;

pub use dedupe::Dedupe;
pub use failing::{EXPRESSION, OnFailure};
pub use filter::Filter;
pub use map::Map;
pub use mask::Mask;
pub use outbox::Outbox;
pub use project::Project;
pub use route::Route;
pub use stitch::Stitch;
pub use tables::Tables;
