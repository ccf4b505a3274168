//! Where in a pipeline file something stands: `sinks.cache.ttl`, `sinks.cache.inputs[1]`.

use std::fmt;

/// One step of a [`KeyPath`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PathPart {
    /// A key of a table.
    Key(String),
    /// An element of a list, from 0.
    Index(usize),
}

/// A path of keys from the top of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyPath(pub Vec<PathPart>);

impl KeyPath {
    /// The top of the file.
    #[must_use]
    pub fn root() -> Self {
        KeyPath::default()
    }

    /// A path of keys.
    #[must_use]
    pub fn keys(keys: &[&str]) -> Self {
        keys.iter()
            .map(|key| PathPart::Key((*key).to_owned()))
            .collect()
    }

    /// This path and a key more.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        self.part(PathPart::Key(key.to_owned()))
    }

    /// This path and a list index more.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        self.part(PathPart::Index(index))
    }

    /// This path and a part more.
    #[must_use]
    pub fn part(&self, part: PathPart) -> Self {
        let mut parts = self.0.clone();
        parts.push(part);
        KeyPath(parts)
    }

    /// This path followed by `rest`.
    #[must_use]
    pub fn join(&self, rest: &KeyPath) -> Self {
        KeyPath([self.0.as_slice(), rest.0.as_slice()].concat())
    }

    /// The path without its last part; `None` at the top.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        let (_, rest) = self.0.split_last()?;
        Some(KeyPath(rest.to_vec()))
    }

    /// The last part, when it is a key.
    #[must_use]
    pub fn last_key(&self) -> Option<&str> {
        match self.0.last() {
            Some(PathPart::Key(key)) => Some(key),
            Some(PathPart::Index(_)) | None => None,
        }
    }
}

impl FromIterator<PathPart> for KeyPath {
    fn from_iter<I: IntoIterator<Item = PathPart>>(parts: I) -> Self {
        KeyPath(parts.into_iter().collect())
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, part) in self.0.iter().enumerate() {
            match part {
                PathPart::Index(element) => write!(f, "[{element}]")?,
                PathPart::Key(key) => {
                    if index > 0 {
                        f.write_str(".")?;
                    }
                    let bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
                    if !key.is_empty() && key.chars().all(bare) {
                        f.write_str(key)?;
                    } else {
                        write!(f, "{key:?}")?;
                    }
                }
            }
        }
        Ok(())
    }
}
