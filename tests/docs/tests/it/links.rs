//! Every link leads somewhere, and the contents of the book have every page.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use lockstep_docs::page::Page;
use lockstep_docs::{pages, root};

const CONTENTS: &str = "docs/SUMMARY.md";

/// Without `.` and `..`.
fn plain(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(out.pop()),
            Component::CurDir => {}
            other => out.push(other),
        }
    }
    out
}

/// Where a link of a page leads: the file, and the place in it.
fn place<'a>(page: &Page, target: &'a str) -> (String, Option<&'a str>) {
    let (file, anchor) = target
        .split_once('#')
        .map_or((target, None), |(file, anchor)| (file, Some(anchor)));
    let file = match file {
        "" => PathBuf::from(&page.name),
        _ => plain(
            &Path::new(&page.name)
                .parent()
                .unwrap_or_else(|| Path::new(""))
                .join(file),
        ),
    };
    (file.to_string_lossy().into_owned(), anchor)
}

fn is_elsewhere(target: &str) -> bool {
    ["https://", "http://", "mailto:"]
        .iter()
        .any(|begin| target.starts_with(begin))
}

#[test]
fn links_lead_somewhere() {
    let pages = pages();
    let anchors: BTreeMap<&str, &[String]> = pages
        .iter()
        .map(|page| (&*page.name, &*page.anchors))
        .collect();
    let mut mistakes = Vec::new();
    for page in &pages {
        for link in page.links.iter().filter(|link| !is_elsewhere(&link.target)) {
            let (file, anchor) = place(page, &link.target);
            let here = format!("{}:{}: {}", page.name, link.line, link.target);
            match (root().join(&file).exists(), anchor, anchors.get(&*file)) {
                (false, ..) => mistakes.push(format!("{here}: there is no {file}")),
                (true, Some(anchor), Some(there)) if !there.iter().any(|one| one == anchor) => {
                    mistakes.push(format!("{here}: {file} has no heading of that name"));
                }
                _ => {}
            }
        }
    }
    assert!(mistakes.is_empty(), "{}", mistakes.join("\n"));
}

#[test]
fn the_contents_have_every_page_once() {
    let pages = pages();
    let contents = pages
        .iter()
        .find(|page| page.name == CONTENTS)
        .expect(CONTENTS);
    let mut listed = BTreeSet::new();
    let mut twice = Vec::new();
    for link in &contents.links {
        let (file, _) = place(contents, &link.target);
        if !listed.insert(file.clone()) {
            twice.push(file);
        }
    }
    assert_eq!(twice, Vec::<String>::new(), "listed twice");
    let there = pages.iter().map(|page| page.name.clone());
    let there: BTreeSet<String> = there
        .filter(|name| name.starts_with("docs/") && name != CONTENTS)
        .collect();
    let missing: Vec<_> = there.difference(&listed).collect();
    assert_eq!(
        missing,
        Vec::<&String>::new(),
        "{CONTENTS} does not have these pages"
    );
}
