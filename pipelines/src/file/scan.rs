//! The lines of JSON and YAML files. The JSON scanner is exact; the YAML one knows block style and falls back to the
//! table around what it does not know.

use super::lines::{Lines, Place, Places};
use super::path::{KeyPath, PathPart};

impl Lines {
    /// The lines of a JSON text that has been parsed before, and the keys that are given twice.
    #[must_use]
    pub fn of_json(text: &str) -> (Self, Vec<(KeyPath, Place)>) {
        let mut scanner = Json {
            text,
            bytes: text.as_bytes(),
            at: 0,
            places: Places::new(text),
            lines: Lines::default(),
            twice: Vec::new(),
        };
        scanner.value(&KeyPath::root());
        (scanner.lines, scanner.twice)
    }

    /// The lines of a YAML text in block style.
    #[must_use]
    pub fn of_yaml(text: &str) -> Self {
        let mut scanner = Yaml::default();
        for (index, line) in text.lines().enumerate() {
            scanner.line(index + 1, line);
        }
        scanner.lines
    }
}

struct Json<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    places: Places<'a>,
    lines: Lines,
    twice: Vec<(KeyPath, Place)>,
}

impl Json<'_> {
    fn blank(&mut self) {
        while self.bytes.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
    }

    /// Moves past `byte`, if it is next.
    fn skip(&mut self, byte: u8) -> bool {
        self.blank();
        let next = self.bytes.get(self.at) == Some(&byte);
        self.at += usize::from(next);
        next
    }

    fn note(&mut self, path: &KeyPath) {
        self.blank();
        let place = self.places.at(self.at);
        if self.lines.0.insert(path.clone(), place).is_some() {
            self.twice.push((path.clone(), place));
        }
    }

    /// The string that begins here; empty when it is not one.
    fn string(&mut self) -> String {
        let start = self.at;
        self.at += 1;
        while let Some(byte) = self.bytes.get(self.at) {
            match byte {
                b'\\' => self.at += 2,
                b'"' => break,
                _ => self.at += 1,
            }
        }
        self.at += 1;
        let raw = self.text.get(start..self.at).unwrap_or_default();
        serde_json::from_str(raw).unwrap_or_default()
    }

    fn value(&mut self, path: &KeyPath) {
        self.blank();
        match self.bytes.get(self.at) {
            Some(b'{') => {
                self.at += 1;
                while !self.skip(b'}') && self.at < self.bytes.len() {
                    let start = self.at;
                    let key = self.string();
                    let end = std::mem::replace(&mut self.at, start);
                    let path = path.key(&key);
                    self.note(&path);
                    self.at = end;
                    self.skip(b':');
                    self.value(&path);
                    self.skip(b',');
                }
            }
            Some(b'[') => {
                self.at += 1;
                let mut index = 0;
                while !self.skip(b']') && self.at < self.bytes.len() {
                    let path = path.index(index);
                    self.note(&path);
                    self.value(&path);
                    self.skip(b',');
                    index += 1;
                }
            }
            Some(b'"') => {
                self.string();
            }
            _ => {
                while self
                    .bytes
                    .get(self.at)
                    .is_some_and(|byte| !matches!(byte, b',' | b'}' | b']'))
                {
                    self.at += 1;
                }
            }
        }
    }
}

/// An open table or list item. Items rank half a step deeper than keys of the same indent, since YAML allows a list to
/// stand under its key without being indented.
struct Open {
    rank: usize,
    part: PathPart,
    /// Items seen so far, when this is a key with a list under it.
    items: usize,
}

#[derive(Default)]
struct Yaml {
    open: Vec<Open>,
    /// Indent of the key whose block text (`|`, `>`) is being skipped.
    block: Option<usize>,
    lines: Lines,
}

impl Yaml {
    fn line(&mut self, number: usize, line: &str) {
        let mut content = line.trim_start();
        let mut indent = line.len() - content.len();
        if content.is_empty() || content.starts_with('#') {
            return;
        }
        if let Some(block) = self.block {
            if indent > block {
                return;
            }
            self.block = None;
        }
        while let Some(rest) = content.strip_prefix('-') {
            if !rest.is_empty() && !rest.starts_with(' ') {
                break;
            }
            self.close(2 * indent + 1);
            let index = self.open.last_mut().map_or(0, |key| {
                key.items += 1;
                key.items - 1
            });
            self.enter(2 * indent + 1, PathPart::Index(index), (number, indent + 1));
            content = rest.trim_start();
            indent = line.len() - content.len();
        }
        let Some((key, rest)) = key(content) else {
            return;
        };
        self.close(2 * indent);
        self.enter(2 * indent, PathPart::Key(key), (number, indent + 1));
        if rest.starts_with(['|', '>']) {
            self.block = Some(indent);
        }
    }

    fn close(&mut self, rank: usize) {
        while self.open.last().is_some_and(|open| open.rank >= rank) {
            self.open.pop();
        }
    }

    fn enter(&mut self, rank: usize, part: PathPart, place: Place) {
        self.open.push(Open {
            rank,
            part,
            items: 0,
        });
        let path: KeyPath = self.open.iter().map(|open| open.part.clone()).collect();
        self.lines.0.entry(path).or_insert(place);
    }
}

/// The key that a line begins with, and what follows its colon.
fn key(content: &str) -> Option<(String, &str)> {
    let quote = content.chars().next().filter(|c| matches!(c, '"' | '\''));
    let (key, rest) = match quote {
        Some(quote) => {
            let end = content[1..].find(quote)? + 1;
            (
                &content[1..end],
                content[end + 1..].trim_start().strip_prefix(':')?,
            )
        }
        None => {
            let end = content
                .match_indices(':')
                .map(|(at, _)| at)
                .find(|at| content[at + 1..].is_empty() || content[at + 1..].starts_with(' '))?;
            (content[..end].trim_end(), &content[end + 1..])
        }
    };
    Some((key.to_owned(), rest.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_keys_have_places() {
        let text = "{\n  \"name\": \"a\\\"}\",\n  \"sinks\": {\"s\": {\n    \"inputs\": [\"a\",\n \"b\"], \"n\": 1}}\n}";
        let (lines, twice) = Lines::of_json(text);
        assert_eq!(lines.find(&KeyPath::keys(&["name"])), Some((2, 3)));
        let inputs = KeyPath::keys(&["sinks", "s", "inputs"]);
        assert_eq!(lines.find(&inputs), Some((4, 5)));
        assert_eq!(lines.find(&inputs.index(1)), Some((5, 2)));
        assert_eq!(
            lines
                .find(&KeyPath::keys(&["sinks", "s", "n"]))
                .map(|(line, _)| line),
            Some(5)
        );
        assert!(twice.is_empty());
        let (_, twice) = Lines::of_json("{\"a\": 1,\n\"a\": 2}");
        assert_eq!(twice, [(KeyPath::keys(&["a"]), (2, 1))]);
    }

    #[test]
    fn yaml_keys_have_places() {
        let text = "# a pipeline\nname: shop\nsinks:\n  cache:\n    type: redis\n    inputs:\n    - a\n    - b:c.d\n    \
                    'odd key': |\n      not: a key\n    url: redis://x\nlist:\n  - name: one\n    value: 1\n  - name: two\n";
        let lines = Lines::of_yaml(text);
        let line = |path: KeyPath| lines.find(&path).map(|(line, _)| line);
        let cache = KeyPath::keys(&["sinks", "cache"]);
        assert_eq!(line(KeyPath::keys(&["name"])), Some(2));
        assert_eq!(line(cache.clone()), Some(4));
        assert_eq!(line(cache.key("inputs").index(1)), Some(8));
        assert_eq!(line(cache.key("odd key")), Some(9));
        assert_eq!(line(cache.key("url")), Some(11));
        assert_eq!(
            line(KeyPath::keys(&["list"]).index(0).key("value")),
            Some(14)
        );
        assert_eq!(
            line(KeyPath::keys(&["list"]).index(1).key("name")),
            Some(15)
        );
    }
}
