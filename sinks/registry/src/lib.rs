//! A client of schema registries that speak Confluent's API: Confluent's own, Apicurio's (`/apis/ccompat/v7`), Karapace,
//! Redpanda's.
//!
//! | module | what it knows |
//! |---|---|
//! | `config` | the section of the pipeline file, and the names of subjects |
//! | `client` | requests, and what answers mean |
//! | `tls` | what is trusted |

mod client;
mod config;
mod tls;

pub use client::{Registry, Verdict};
pub use config::{
    DEFAULT_AUTO_REGISTER, DEFAULT_REQUEST_TIMEOUT, RegistryConfig, Role, SubjectNames,
};
