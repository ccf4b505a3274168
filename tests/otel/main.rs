//! Traces of the `lockstep` command: exported by builds with the feature `otel`, and asked for in vain of others.
//!
//! `cargo test -p lockstep --features otel --test otel` exports, with PostgreSQL and Redis from the kit.

#[cfg(feature = "otel")]
mod collector;
#[cfg(feature = "otel")]
mod exported;
#[cfg(not(feature = "otel"))]
mod unheard;
