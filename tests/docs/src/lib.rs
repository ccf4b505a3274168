//! What the tests of the documentation share: pages, what is in them, pipeline files made whole, and servers on which commands are run.
//!
//! Everything here panics when it fails, with the page and the line: it is for tests alone.

pub mod page;
pub mod pipeline;
pub mod shape;
pub mod shell;
pub mod world;

use std::path::{Path, PathBuf};

use page::Page;

/// Names another `lockstep` to test than the one of the same build.
pub const PROGRAM_VARIABLE: &str = "LOCKSTEP_TEST_PROGRAM";

/// The folder of the whole project.
#[must_use]
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// The command: [`PROGRAM_VARIABLE`], or next to the folder of the test program.
///
/// # Panics
/// When it has not been built.
#[must_use]
pub fn program() -> PathBuf {
    if let Some(program) = std::env::var_os(PROGRAM_VARIABLE) {
        return program.into();
    }
    let test = std::env::current_exe().expect("the test program has a path");
    let folder = test.parent().and_then(Path::parent);
    let program = folder.expect("target/<profile>/deps").join("lockstep");
    assert!(
        program.is_file(),
        "{} is missing: cargo build -p lockstep",
        program.display()
    );
    program
}

/// Folders without pages: what is built, and what belongs to nobody.
fn has_no_pages(folder: &Path) -> bool {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with('.') || matches!(&*name, "target" | "node_modules")
}

/// Every Markdown page of the project, in the order of their names.
///
/// # Panics
/// When a folder or a page cannot be read.
#[must_use]
pub fn pages() -> Vec<Page> {
    let mut paths = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder)
            .unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        for path in entries.flatten().map(|entry| entry.path()) {
            match path.extension() {
                _ if path.is_dir() && !has_no_pages(&path) => folders.push(path),
                Some(end) if end == "md" => paths.push(path),
                _ => {}
            }
        }
    }
    paths.sort();
    paths.iter().map(|path| Page::read(path)).collect()
}
