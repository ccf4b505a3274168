//! `lockstep explain`: the page of an error, by the code that the log line begins with.

use std::process::ExitCode;

use lockstep_core::{Error, ErrorKind};
use serde_json::{Value, json};

use crate::cli::Format;
use crate::{Outcome, output};

/// The pages, as they are in the documentation.
const PAGES: &str = include_str!("../docs/errors.md");

/// Prints the page of a code; without one the list of all.
///
/// # Errors
/// Kind `Invalid` for a code that there is not.
pub fn explain(code: Option<&str>, format: Format) -> Outcome {
    match code {
        Some(code) => {
            let page = page(code).ok_or_else(|| {
                Error::new(ErrorKind::Invalid, format!("there is no error {code}"))
                    .remedy("`lockstep explain` lists them all")
            })?;
            match format {
                Format::Json => output::print_json(&json(page)),
                Format::Table => output::print(&format!("{page}\n")),
            }
        }
        None => match format {
            Format::Json => output::print_json(&titles().map(named).collect()),
            Format::Table => {
                let titles: String = titles().map(|title| format!("{title}\n")).collect();
                output::print(&titles);
            }
        },
    }
    Ok(ExitCode::SUCCESS)
}

/// The code and the title of a page, taken apart.
fn named(title: &str) -> Value {
    let (code, title) = title.split_once(' ').unwrap_or((title, ""));
    json!({ "code": code, "title": title })
}

/// A page: what it is about, and its text, in Markdown.
fn json(page: &str) -> Value {
    let (title, text) = page.split_once('\n').unwrap_or((page, ""));
    let mut page = named(title);
    page["text"] = text.trim().into();
    page
}

/// `LS004 Authentication`, and so on.
fn titles() -> impl Iterator<Item = &'static str> {
    PAGES.lines().filter_map(|line| line.strip_prefix("## "))
}

/// The section of a code, with its title. Upper or lower case, with or without `LS`.
fn page(code: &str) -> Option<&'static str> {
    let code = code.to_uppercase();
    let number = code.strip_prefix("LS").unwrap_or(&code);
    let mut pages = PAGES.split("\n## ").skip(1);
    let page = pages.find(|page| {
        let title = page.split_whitespace().next();
        title.and_then(|title| title.strip_prefix("LS")) == Some(number)
    });
    page.map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_a_page() {
        for kind in ErrorKind::ALL {
            let page = page(kind.code()).unwrap_or_else(|| panic!("{} has none", kind.code()));
            assert!(page.starts_with(kind.code()), "{page}");
            assert!(page.lines().count() > 1, "{page}");
        }
        assert_eq!(titles().count(), ErrorKind::ALL.len());
        assert_eq!(page("ls004"), page("004"));
        assert_eq!(page("LS099"), None);
        let told = json(page("LS004").expect("a page"));
        assert_eq!(
            (&told["code"], &told["title"]),
            (&json!("LS004"), &json!("Authentication"))
        );
        assert!(
            told["text"]
                .as_str()
                .is_some_and(|text| !text.is_empty() && !text.starts_with("LS"))
        );
    }
}
