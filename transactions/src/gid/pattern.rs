//! The user's own way of naming branches.

use lockstep_core::{Error, ErrorKind, Result};
use regex::Regex;

use super::{Branch, Dialect};

/// A regular expression over gids, with a group `global` and, where branches have one, a group `branch`:
/// `^(?<global>order-\d+)-(?<branch>\w+)$`.
#[derive(Clone, Debug)]
pub struct Pattern(Regex);

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// Of kind `Config`, when it is no regular expression, or has no group `global`.
    pub fn new(pattern: &str) -> Result<Self> {
        let regex = Regex::new(pattern).map_err(|error| {
            Error::new(
                ErrorKind::Config,
                format!("`{pattern}` is not a regular expression: {error}"),
            )
            .remedy("see the syntax of Rust's regex crate; a backslash is written twice in a TOML string in double quotes")
        })?;
        if !regex.capture_names().flatten().any(|name| name == "global") {
            return Err(Error::new(
                ErrorKind::Config,
                format!("`{pattern}` does not say which part of a gid the branches of a transaction share"),
            )
            .remedy(r"name it: ^(?<global>.+)-(?<branch>\d+)$"));
        }
        Ok(Pattern(regex))
    }

    /// What it finds in a gid; `None` when it does not match, or finds nothing that is shared.
    #[must_use]
    pub fn read(&self, gid: &str) -> Option<Branch> {
        let found = self.0.captures(gid)?;
        let part = |name| found.name(name).map_or("", |part| part.as_str()).to_owned();
        let global = part("global");
        (!global.is_empty()).then(|| Branch {
            dialect: Dialect::Pattern,
            global,
            qualifier: part("branch"),
        })
    }
}
