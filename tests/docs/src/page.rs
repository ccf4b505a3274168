//! A Markdown page: its blocks of code, its headings, its links.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use crate::root;

/// A page.
#[derive(Debug)]
pub struct Page {
    /// Its path from the project's folder, with `/`.
    pub name: String,
    /// All of it.
    pub text: String,
    /// Its blocks of code, as they follow each other.
    pub blocks: Vec<Block>,
    /// What its headings are called in a link.
    pub anchors: Vec<String>,
    /// Where it leads.
    pub links: Vec<Link>,
    /// What stands between backticks in its lines.
    pub spans: Vec<Span>,
}

/// A block of code.
#[derive(Debug, Clone)]
pub struct Block {
    /// The page.
    pub page: String,
    /// The line of its fence.
    pub line: usize,
    /// The first word of what its fence says: `sh`, `toml`; nothing for pictures of characters.
    pub language: String,
    /// What is in it.
    pub text: String,
}

/// Code inside a line.
#[derive(Debug)]
pub struct Span {
    /// Its line.
    pub line: usize,
    /// What it is.
    pub text: String,
}

/// A link.
#[derive(Debug)]
pub struct Link {
    /// Its line.
    pub line: usize,
    /// Where it leads, as it is written.
    pub target: String,
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{} ({})", self.page, self.line, self.language)
    }
}

impl Page {
    /// Reads a page.
    ///
    /// # Panics
    /// When it cannot be read.
    #[must_use]
    pub fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let name = path.strip_prefix(root()).unwrap_or(path);
        Page::of(&name.to_string_lossy().replace('\\', "/"), text)
    }

    /// What is in `text`.
    ///
    /// # Panics
    /// When a fence has no end.
    #[must_use]
    pub fn of(name: &str, text: String) -> Self {
        let mut page = Page {
            name: name.to_owned(),
            text: String::new(),
            blocks: Vec::new(),
            anchors: Vec::new(),
            links: Vec::new(),
            spans: Vec::new(),
        };
        let mut open: Option<(String, Block)> = None;
        let mut anchors: BTreeMap<String, usize> = BTreeMap::new();
        for (number, line) in text.lines().enumerate() {
            let number = number + 1;
            if let Some((fence, block)) = &mut open {
                match line.trim() == fence.trim_start() {
                    true => page.blocks.extend(open.take().map(|(_, block)| block)),
                    false => {
                        let indent = fence.len() - fence.trim_start().len();
                        let blank = line.len() - line.trim_start().len();
                        block.text += &line[indent.min(blank)..];
                        block.text.push('\n');
                    }
                }
                continue;
            }
            open = Block::begins(name, number, line);
            if open.is_some() {
                continue;
            }
            if let Some(heading) = heading(line) {
                let slug = slug(heading);
                let seen = anchors.entry(slug.clone()).or_default();
                page.anchors.push(match *seen {
                    0 => slug,
                    again => format!("{slug}-{again}"),
                });
                *seen += 1;
            }
            page.anchors.extend(attributes(line, &["id", "name"]));
            page.spans.extend(code(line).map(|text| Span {
                line: number,
                text: text.to_owned(),
            }));
            let targets = targets(line);
            page.links.extend(targets.into_iter().map(|target| Link {
                line: number,
                target,
            }));
        }
        if let Some((_, block)) = open {
            panic!("{block} has no end");
        }
        page.text = text;
        page
    }
}

impl Block {
    /// The block that a line opens, with its fence and what stands before it.
    fn begins(page: &str, line: usize, text: &str) -> Option<(String, Block)> {
        let inner = text.trim_start();
        let ticks = inner.len() - inner.trim_start_matches('`').len();
        if ticks < 3 {
            return None;
        }
        let fence = &text[..text.len() - inner.len() + ticks];
        let words = inner[ticks..].split([' ', ',']);
        let block = Block {
            page: page.to_owned(),
            line,
            language: words.map(str::to_owned).next().unwrap_or_default(),
            text: String::new(),
        };
        Some((fence.to_owned(), block))
    }
}

fn heading(line: &str) -> Option<&str> {
    let text = line.trim_start_matches('#');
    let level = line.len() - text.len();
    ((1..=6).contains(&level) && text.starts_with(' ')).then(|| text.trim())
}

/// What a heading is called in a link, on the forge and in the book.
#[must_use]
pub fn slug(heading: &str) -> String {
    let mut plain = String::new();
    let mut rest = heading;
    // Of a link its text counts.
    while let Some((before, after)) = rest.split_once("](") {
        plain += before;
        rest = after.split_once(')').map_or("", |(_, rest)| rest);
    }
    plain += rest;
    let kept = plain.chars().filter_map(|one| match one {
        ' ' => Some('-'),
        '-' | '_' => Some(one),
        _ if one.is_alphanumeric() => Some(one),
        _ => None,
    });
    kept.collect::<String>().to_lowercase()
}

/// Where the links and pictures of a line lead.
fn targets(line: &str) -> Vec<String> {
    let line = without_code(line);
    let mut out = attributes(&line, &["src", "href", "srcset"]);
    let mut rest = &*line;
    while let Some((_, after)) = rest.split_once("](") {
        let target = after.split([')', ' ']).next().unwrap_or_default();
        out.push(target.to_owned());
        rest = after;
    }
    // `[word]: target`
    if line.starts_with('[')
        && let Some((_, target)) = line.split_once("]: ")
    {
        out.push(target.trim().to_owned());
    }
    out
}

/// Values of attributes of HTML.
fn attributes(line: &str, names: &[&str]) -> Vec<String> {
    let mut out = Vec::new();
    for name in names {
        let begin = format!(" {name}=\"");
        let parts = line.split(&*begin).skip(1);
        out.extend(
            parts
                .filter_map(|part| part.split('"').next())
                .map(str::to_owned),
        );
    }
    out
}

/// What stands between backticks.
fn code(line: &str) -> impl Iterator<Item = &str> {
    let closed = line.matches('`').count() / 2 * 2;
    line.split('`').take(closed).skip(1).step_by(2)
}

/// Without what stands between backticks.
fn without_code(line: &str) -> String {
    let mut parts = line.split('`');
    let mut out = parts.next().unwrap_or_default().to_owned();
    let parts: Vec<&str> = parts.collect();
    for pair in parts.chunks(2) {
        match pair {
            [_, outside] => out += outside,
            // It is not closed: no code.
            [open, ..] => out += open,
            [] => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_headings_and_links_are_found() {
        let text = "# The [`run`](a.md#x) of it, twice\n\nSee [b](b/c.md) and `[no](d.md)`.\n\n- one\n  ```sh\n  true\n    # inner\n  ```\n\n## A\n\n## A\n";
        let page = Page::of("p.md", text.to_owned());
        assert_eq!(page.anchors, ["the-run-of-it-twice", "a", "a-1"]);
        let targets: Vec<_> = page.links.iter().map(|link| &*link.target).collect();
        assert_eq!(targets, ["a.md#x", "b/c.md"]);
        let spans: Vec<_> = page.spans.iter().map(|span| &*span.text).collect();
        assert_eq!(spans, ["run", "[no](d.md)"]);
        let block = &page.blocks[0];
        assert_eq!((block.line, &*block.language), (6, "sh"));
        assert_eq!(block.text, "true\n  # inner\n");
    }
}
