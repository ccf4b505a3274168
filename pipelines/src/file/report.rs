//! Collects the mistakes of one file.

use std::collections::HashMap;

use super::lines::{Lines, Place};
use super::mistake::{Mistake, Mistakes};
use super::path::KeyPath;

/// A value that does not stand in the file itself.
#[derive(Clone, Debug)]
pub(super) struct Outside {
    /// The overriding variable; `None` for `${…}` inside the file's own text.
    pub variable: Option<String>,
    /// The value as text, to read it again as another type, and never to be printed.
    pub text: String,
    /// Whether it has been read again.
    pub tried: bool,
}

/// The mistakes so far, and what is needed to place them.
pub(super) struct Report {
    file: String,
    pub lines: Lines,
    /// Values that the environment gave, by path.
    pub outside: HashMap<KeyPath, Outside>,
    mistakes: Vec<Mistake>,
}

impl Report {
    pub fn new(file: String) -> Self {
        Report {
            file,
            lines: Lines::default(),
            outside: HashMap::new(),
            mistakes: Vec::new(),
        }
    }

    /// Notes a mistake at `path`; more can be said about it through the reference.
    pub fn mistake(&mut self, path: KeyPath, message: &str) -> &mut Mistake {
        let mut message = message.to_owned();
        let outside = self.outside.get(&path);
        if let Some(outside) = outside.filter(|outside| !outside.text.is_empty()) {
            message = message.replace(&outside.text, "***");
        }
        let variable = outside.and_then(|outside| outside.variable.clone());
        let place = self.lines.find(&path);
        self.push(path, message, variable, place)
    }

    /// Notes a mistake in an overriding variable.
    pub fn variable(&mut self, variable: &str, path: KeyPath, message: &str) {
        self.push(path, message.to_owned(), Some(variable.to_owned()), None);
    }

    /// Notes a mistake at a place of the text.
    pub fn place(&mut self, path: KeyPath, message: String, place: Option<Place>) -> &mut Mistake {
        self.push(path, message, None, place)
    }

    fn push(
        &mut self,
        path: KeyPath,
        message: String,
        variable: Option<String>,
        place: Option<Place>,
    ) -> &mut Mistake {
        let place = place.filter(|_| variable.is_none());
        let index = self.mistakes.len();
        self.mistakes.push(Mistake {
            file: self.file.clone(),
            line: place.map(|(line, _)| line),
            column: place.map(|(_, column)| column),
            variable,
            path,
            message,
            nearest: None,
            hint: None,
        });
        &mut self.mistakes[index]
    }

    /// Whether a mistake at or under `path` has been noted.
    pub fn speaks_at(&self, path: &KeyPath) -> bool {
        self.mistakes
            .iter()
            .any(|mistake| mistake.path.0.starts_with(&path.0))
    }

    /// Whether a mistake in a section, or in the spelling of its name, has been noted.
    pub fn speaks_of(&self, section: &str) -> bool {
        self.speaks_at(&KeyPath::keys(&[section]))
            || self
                .mistakes
                .iter()
                .any(|mistake| mistake.nearest.as_deref() == Some(section))
    }

    /// How many mistakes there are.
    pub fn len(&self) -> usize {
        self.mistakes.len()
    }

    /// The mistakes by line; `None` when there are none.
    pub fn finish(mut self) -> Option<Mistakes> {
        if self.mistakes.is_empty() {
            return None;
        }
        self.mistakes.sort_by(|a, b| {
            let place =
                |mistake: &Mistake| (mistake.line.unwrap_or(0), mistake.column.unwrap_or(0));
            place(a).cmp(&place(b)).then_with(|| a.path.cmp(&b.path))
        });
        Some(Mistakes(self.mistakes))
    }
}
