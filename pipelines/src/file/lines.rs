//! From a key path to the line it stands on.

use std::collections::HashMap;

use toml_edit::{Document, Item, Table, Value};

use super::path::KeyPath;

/// Line and column, both from 1; the column counts characters.
pub type Place = (usize, usize);

/// Where the keys of a file stand.
#[derive(Debug, Default)]
pub struct Lines(pub(super) HashMap<KeyPath, Place>);

impl Lines {
    /// The place of `path`, or of the nearest table around it.
    #[must_use]
    pub fn find(&self, path: &KeyPath) -> Option<Place> {
        let mut path = path.clone();
        loop {
            if let Some(&place) = self.0.get(&path) {
                return Some(place);
            }
            path = path.parent()?;
        }
    }

    /// The lines of a TOML file.
    ///
    /// # Errors
    /// What the parser says, and where: bad syntax and keys given twice.
    pub fn of_toml(text: &str) -> Result<Self, (String, Option<Place>)> {
        let places = Places::new(text);
        let document = Document::parse(text).map_err(|error| {
            let place = error.span().map(|span| places.at(span.start));
            (error.message().trim().replace('\n', ", "), place)
        })?;
        let mut lines = Lines::default();
        table(document.as_table(), &KeyPath::root(), &places, &mut lines);
        Ok(lines)
    }
}

fn table(table: &Table, path: &KeyPath, places: &Places<'_>, lines: &mut Lines) {
    for (key, value) in table.iter() {
        let path = path.key(key);
        let key = table.key(key).and_then(|key| key.span());
        if let Some(span) = key.or_else(|| value.span()) {
            lines.0.insert(path.clone(), places.at(span.start));
        }
        item(value, &path, places, lines);
    }
}

fn item(item: &Item, path: &KeyPath, places: &Places<'_>, lines: &mut Lines) {
    match item {
        Item::None => {}
        Item::Value(inner) => value(inner, path, places, lines),
        Item::Table(inner) => table(inner, path, places, lines),
        Item::ArrayOfTables(tables) => {
            for (index, inner) in tables.iter().enumerate() {
                let path = path.index(index);
                if let Some(span) = inner.span() {
                    lines.0.insert(path.clone(), places.at(span.start));
                }
                table(inner, &path, places, lines);
            }
        }
    }
}

fn value(outer: &Value, path: &KeyPath, places: &Places<'_>, lines: &mut Lines) {
    match outer {
        Value::Array(array) => {
            for (index, inner) in array.iter().enumerate() {
                let path = path.index(index);
                if let Some(span) = inner.span() {
                    lines.0.insert(path.clone(), places.at(span.start));
                }
                value(inner, &path, places, lines);
            }
        }
        Value::InlineTable(table) => {
            for (key, inner) in table.iter() {
                let path = path.key(key);
                let key = table.key(key).and_then(|key| key.span());
                if let Some(span) = key.or_else(|| inner.span()) {
                    lines.0.insert(path.clone(), places.at(span.start));
                }
                value(inner, &path, places, lines);
            }
        }
        Value::String(_)
        | Value::Integer(_)
        | Value::Float(_)
        | Value::Boolean(_)
        | Value::Datetime(_) => {}
    }
}

/// Byte offsets to places.
pub(super) struct Places<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Places<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        let ends = text.match_indices('\n').map(|(at, _)| at + 1);
        Places {
            text,
            starts: std::iter::once(0).chain(ends).collect(),
        }
    }

    pub(super) fn at(&self, offset: usize) -> Place {
        let line = self.starts.partition_point(|&start| start <= offset);
        let start = self.starts[line.saturating_sub(1)];
        let before = self.text.get(start..offset).unwrap_or_default();
        (line, before.chars().count() + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn toml_keys_have_places() {
        let text = "name = \"x\"\n\n[sinks.cache]\ntype = \"redis\"\ninputs = [\n  \"a\",\n  \"b\"\n]\n\
                    properties = { \"a.b\" = 1 }\n";
        let lines = Lines::of_toml(text).expect("valid");
        let find = |path: KeyPath| lines.find(&path).expect("found");
        assert_eq!(find(KeyPath::keys(&["name"])), (1, 1));
        assert_eq!(find(KeyPath::keys(&["sinks", "cache"])).0, 3);
        assert_eq!(
            find(KeyPath::keys(&["sinks", "cache", "inputs"]).index(1)),
            (7, 3)
        );
        assert_eq!(
            find(KeyPath::keys(&["sinks", "cache", "properties", "a.b"])),
            (9, 16)
        );
        assert_eq!(find(KeyPath::keys(&["sinks", "cache", "missing"])).0, 3);
    }

    #[test]
    fn a_key_given_twice_has_a_place() {
        let (message, place) = Lines::of_toml("a = 1\nb = 2\na = 3\n").expect_err("twice");
        assert!(message.contains("duplicate key"), "{message}");
        assert_eq!(place.expect("a place").0, 3);
    }
}
