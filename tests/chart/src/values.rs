//! What `values.yaml` says about each key, and the table that is made of it.

use std::fmt::Write as _;

use serde_json::Value;

use crate::yaml;

/// What begins the part of `values.yaml` that each pipeline may set again.
const OF_EACH_PIPELINE: &str = "# ---- ";

/// A comment that says what the key below is for.
const MARK: &str = "# -- ";

/// A key of `values.yaml`.
#[derive(Debug)]
pub struct Key {
    /// `persistence.size`
    pub path: Vec<String>,
    /// What is said about it.
    pub about: Option<String>,
    /// What it is unless it is set.
    pub default: Value,
    /// Whether each pipeline may set it again.
    pub of_each_pipeline: bool,
}

/// All keys, in their order.
///
/// # Panics
/// When a comment is about nothing.
#[must_use]
pub fn keys(text: &str) -> Vec<Key> {
    let all = yaml::document(text);
    let mut keys = Vec::new();
    let (mut above, mut about, mut of_each_pipeline) = (Vec::<String>::new(), None, false);
    for line in text.lines() {
        let inner = line.trim_start();
        of_each_pipeline |= line.starts_with(OF_EACH_PIPELINE);
        if let Some(said) = inner.strip_prefix(MARK) {
            assert!(about.is_none(), "two comments, and no key between: {said}");
            about = Some(said.to_owned());
        }
        let key = inner.split_once(':').map(|(key, _)| key);
        let Some(key) =
            key.filter(|key| key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'))
        else {
            continue;
        };
        above.truncate((line.len() - inner.len()) / 2);
        above.push(key.to_owned());
        let default = above.iter().try_fold(&all, |at, part| at.get(part));
        keys.push(Key {
            path: above.clone(),
            about: about.take(),
            default: default.cloned().unwrap_or_default(),
            of_each_pipeline,
        });
    }
    assert!(about.is_none(), "a comment about nothing: {about:?}");
    keys
}

/// The tables for the README, in Markdown.
#[must_use]
pub fn tables(keys: &[Key]) -> String {
    let mut out = String::new();
    let parts = [
        (false, "### Of the release\n\n"),
        (
            true,
            "\n### Of each pipeline\n\nThe defaults of all, and below `pipelines.NAME` those of one: objects are merged, lists are replaced.\n\n",
        ),
    ];
    for (of_each_pipeline, title) in parts {
        out += title;
        out += "| value | default | |\n|---|---|---|\n";
        let keys = keys
            .iter()
            .filter(|key| key.of_each_pipeline == of_each_pipeline);
        for key in keys {
            if let Some(about) = &key.about {
                let about = about.replace('|', "\\|");
                // Writing to a String cannot fail.
                let _ = writeln!(
                    out,
                    "| `{}` | `{}` | {about} |",
                    key.path.join("."),
                    key.default
                );
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_is_about_the_key_below() {
        let text = "a:\n  # -- The first.\n  b: 1\n  c: {d: 2}\n# ---- Of each pipeline\n# -- The last.\ne: []\n";
        let keys = keys(text);
        let paths: Vec<_> = keys.iter().map(|key| key.path.join(".")).collect();
        assert_eq!(paths, ["a", "a.b", "a.c", "e"]);
        let tables = tables(&keys);
        assert!(
            tables.contains("| `a.b` | `1` | The first. |\n\n### Of each"),
            "{tables}"
        );
        assert!(tables.ends_with("| `e` | `[]` | The last. |\n"), "{tables}");
    }
}
