//! What is wrong with a pipeline file, for people.

use std::fmt;

use lockstep_core::{Error, ErrorKind};

use super::path::KeyPath;

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The file as it was named.
    pub file: String,
    /// Line, from 1, when known.
    pub line: Option<usize>,
    /// Column in characters, from 1, when known.
    pub column: Option<usize>,
    /// The environment variable that set the value, when it was not the file.
    pub variable: Option<String>,
    /// Where in the file; empty for the file as a whole.
    pub path: KeyPath,
    /// What is wrong, without a full stop.
    pub message: String,
    /// The nearest valid name.
    pub nearest: Option<String>,
    /// What there is to choose from, or what to do.
    pub hint: Option<String>,
}

impl fmt::Display for Mistake {
    /// `shop.toml:14:1: sinks.cache.tll: unknown key; did you mean `ttl`?`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.variable {
            Some(variable) => write!(f, "environment variable {variable}: ")?,
            None => {
                f.write_str(&self.file)?;
                if let Some(line) = self.line {
                    write!(f, ":{line}")?;
                    if let Some(column) = self.column {
                        write!(f, ":{column}")?;
                    }
                }
                f.write_str(": ")?;
            }
        }
        if !self.path.0.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        if let Some(nearest) = &self.nearest {
            write!(f, "; did you mean `{nearest}`?")?;
        } else if let Some(hint) = &self.hint {
            write!(f, "; {hint}")?;
        }
        Ok(())
    }
}

/// Everything that is wrong with a pipeline file, in the order of its lines. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistakes(pub Vec<Mistake>);

impl fmt::Display for Mistakes {
    /// One mistake per line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            mistake.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}

impl From<Mistakes> for Error {
    fn from(mistakes: Mistakes) -> Self {
        Error::new(ErrorKind::Config, mistakes.to_string())
    }
}

/// The name nearest to `wrong`, when one is near enough to be meant: the fewest slips of the finger first (up to two),
/// then likeness, in which a common beginning counts more.
pub fn nearest<'a>(wrong: &str, names: impl IntoIterator<Item = &'a str>) -> Option<String> {
    const NEAR: f64 = 0.8;
    const SLIPS: usize = 2;
    let wrong = wrong.to_lowercase();
    names
        .into_iter()
        .map(|name| {
            let lower = name.to_lowercase();
            let slips = strsim::damerau_levenshtein(&wrong, &lower).min(SLIPS + 1);
            (slips, strsim::jaro_winkler(&wrong, &lower), name)
        })
        .filter(|(slips, likeness, _)| *likeness >= NEAR || *slips <= SLIPS.min(wrong.len() / 3))
        .min_by(|a, b| a.0.cmp(&b.0).then(b.1.total_cmp(&a.1)).then(a.2.cmp(b.2)))
        .map(|(_, _, name)| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_the_one_that_was_meant() {
        for (wrong, names, meant) in [
            ("ulr", &["urls", "url", "user"][..], Some("url")),
            ("tabels", &["tables", "type"], Some("tables")),
            (
                "elastic",
                &["elasticsearch", "opensearch"],
                Some("elasticsearch"),
            ),
            ("Brokers", &["brokers"], Some("brokers")),
            ("zzz", &["brokers", "topic"], None),
        ] {
            assert_eq!(
                nearest(wrong, names.iter().copied()).as_deref(),
                meant,
                "{wrong}"
            );
        }
    }
}
